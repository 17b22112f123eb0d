"""The sanity checks: each on numbers, and all on plain, masked, constant and softmax networks."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tl import attacks, pixels
from tl.ascent import ascend
from tl.attacks import goals, gradient, norms, sanity_checks
from tl.attacks.sanity_checks import Check

SIDE, CLASSES, COUNT = 6, 4, 8
IMAGES01 = pixels.to_images01(
    np.random.default_rng(0).integers(64, 192, (COUNT, SIDE, SIDE, 3)).astype(np.uint8)
)


# ---- each check on numbers ----

FLAT = np.zeros((2, 2, 2, 3), np.float32)
STEEP = FLAT + 1e-30
PROBABILITIES = np.float32([[0.9, 0.1], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("check", "passed", "value"),
    [
        (sanity_checks.gradients_flow(STEEP), True, 0),
        (sanity_checks.gradients_flow(np.stack([FLAT[0], STEEP[0]])), False, 0.5),
        (sanity_checks.gradients_flow(np.stack([FLAT[0] * np.nan, STEEP[0]])), False, 0.5),
        (sanity_checks.logits_not_probabilities(np.log(PROBABILITIES)), True, 0),
        (sanity_checks.logits_not_probabilities(PROBABILITIES * 2), True, 0),
        (sanity_checks.logits_not_probabilities(PROBABILITIES), False, 1),
        (sanity_checks.logits_vary(PROBABILITIES), True, np.float32(0.7)),
        (sanity_checks.logits_vary(PROBABILITIES[[0, 0]]), False, 0),
        (sanity_checks.calls_agree(PROBABILITIES, PROBABILITIES.copy()), True, 0),
        (
            sanity_checks.calls_agree(PROBABILITIES, PROBABILITIES + np.float32([0, 0.5])),
            False,
            0.5,
        ),
        (sanity_checks.calls_agree(PROBABILITIES, PROBABILITIES * np.nan), False, np.nan),
        (sanity_checks.unbounded_succeeds(np.ones(4, bool)), True, 1),
        (sanity_checks.unbounded_succeeds(np.arange(4) > 0), False, 0.75),
        (sanity_checks.curve_rises([0.1, 0.5, 0.5, 1.0], 20), True, 0),
        (sanity_checks.curve_rises([0.1, 0.5, 0.45, 1.0], 20), True, 0.05),
        (sanity_checks.curve_rises([0.1, 0.5, 0.3, 1.0], 20), False, 0.2),
        (sanity_checks.curve_rises([0.1], 20), True, 0),
        (sanity_checks.noise_is_weaker(0.1, 0.9), True, 0.1),
        (sanity_checks.noise_is_weaker(0.9, 0.9), False, 0.9),
        (sanity_checks.noise_is_weaker(0.0, 0.0), False, 0),
        (sanity_checks.black_box_no_better(np.arange(4) < 1, np.arange(4) < 2), True, 0),
        (sanity_checks.black_box_no_better(np.arange(4) < 1, np.arange(4) > 0), False, 0.25),
        (sanity_checks.runs_agree(np.arange(4) > 0, np.arange(4) > 0), True, 0.75),
        (sanity_checks.runs_agree(np.arange(4) > 0, np.arange(4) > 1), False, 0.75),
        (sanity_checks.runs_agree(np.arange(4) > 0, np.arange(4) < 3), False, 0.75),
        (sanity_checks.steps_suffice(0.5, 0.51, 200), True, 0.01),
        (sanity_checks.steps_suffice(0.5, 0.6, 10), True, 0.1),
        (sanity_checks.steps_suffice(0.5, 0.6, 200), False, 0.1),
        (sanity_checks.steps_suffice(0.5, 0.75, 4), False, 0.25),
        (sanity_checks.steps_suffice(0.0, 1.0, 1), False, 1),
    ],
    ids=lambda value: value.name if isinstance(value, Check) else "",
)
def test_a_check_passes_or_fails_with_its_value(check: Check, passed: bool, value: float) -> None:
    assert check.passed is passed
    np.testing.assert_allclose(check.value, value, rtol=1e-5, atol=1e-7)
    assert str(check).startswith("pass  " if passed else "FAIL  ") and check.expected in str(check)
    assert isinstance(check.value, float)  # for result.json
    assert check.json() == {"passed": passed, "found": check.value, "wanted": check.expected} or (
        np.isnan(check.value)
    )


def test_gradients_in_groups_equal_gradients_of_the_batch() -> None:
    """Slots of 3 for 8 images: the last group is padded, and every image keeps its own mask."""
    sizes: list[int] = []

    def recorded(variables: Any, images01: jax.Array) -> jax.Array:
        sizes.append(len(images01))
        return network(variables, images01)

    variables = of_kind("plain")
    class_mask = true_classes(variables)
    in_groups = sanity_checks._score_gradients(recorded, goals.UNTARGETED, 3)(
        variables, (IMAGES01, class_mask)
    )
    assert set(sizes) == {3}
    score = lambda x: jnp.sum(goals.UNTARGETED.score(network(variables, x), class_mask))
    whole = jax.jit(jax.grad(score))(IMAGES01)
    np.testing.assert_allclose(in_groups, whole, rtol=1e-4, atol=1e-7)


# ---- all checks on toy networks ----

KINDS = ["plain", "quantized", "saturated", "softmax", "constant"]


def network(variables: Any, images01: jax.Array) -> jax.Array:
    """Five networks that compile as one.

    plain: two dense layers.
    quantized: rounded inputs, which mask the gradient and change little else.
    saturated: sigmoids so steep that their slope is zero in float32.
    softmax: probabilities instead of logits.
    constant: the same logits for every image.
    """
    kind = variables["kind"]
    rounded = jnp.round(images01 * 32) / 32
    z = toys.mlp(variables, jnp.where(kind == KINDS.index("quantized"), rounded, images01))
    constant = 0 * z + jnp.arange(CLASSES, 0.0, -1.0)[None]
    return jnp.stack([z, z, jax.nn.sigmoid(300 * z), jax.nn.softmax(z, axis=1), constant])[kind]


@functools.cache
def of_kind(kind: str) -> dict[str, jax.Array]:
    rng, n = np.random.default_rng(1), 3 * SIDE * SIDE
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / 4, jnp.float32)
    weights = {"in": draw(n, 16), "out": draw(16, CLASSES)}
    return weights | {"kind": jnp.int32(KINDS.index(kind))}


def true_classes(variables: Any) -> np.ndarray:
    top = np.asarray(jax.jit(network)(variables, jnp.asarray(IMAGES01))).argmax(axis=1)
    return goals.class_mask(top[:, None].tolist(), CLASSES)


SEARCHES = (gradient.pgd(steps=20),)


def checks(kind: str, class_mask: Any = None, **changes: Any) -> dict[str, Check]:
    """The checks of a PGD of 20 steps; `changes` are changed arguments of `check_attack`."""
    variables, key = of_kind(kind), jax.random.key(0)
    class_mask = true_classes(variables) if class_mask is None else class_mask
    arguments = {
        "searches": SEARCHES,
        "default_steps": (20,),
        "norm": norms.LINF,
        "goal": goals.UNTARGETED,
        "eps": 8 / 255,
        "queries": 100,
    } | changes
    if "success" not in arguments:
        shared = {name: arguments[name] for name in ("norm", "goal")}
        attack = attacks.make(arguments["searches"], network, **shared)
        eps, step_size = arguments["eps"], arguments.get("step_size")
        result = attack(variables, key, IMAGES01, class_mask, eps=eps, step_size=step_size)
        arguments["success"] = np.asarray(result.success)
    rows = sanity_checks.check_attack(network, variables, key, IMAGES01, class_mask, **arguments)
    return {check.name: check for check in rows}


def failed(kind: str) -> set[str]:
    return {name for name, check in checks(kind).items() if not check.passed}


ZERO_GRADIENTS = "share of zero gradients"
SOFTMAX = "logits, not softmax"
VARY = "logits depend on the picture"
BLACK_BOX = "black-box no better than white-box"
UNBOUNDED = "any change at all (Linf, eps = 1) reaches all"


def test_a_plain_network_passes_every_check() -> None:
    rows = checks("plain")
    assert len(rows) == 11 and all(check.passed for check in rows.values())


@pytest.mark.parametrize(
    ("norm", "eps"), [("l2", 0.5), pytest.param("l1", 3.0, marks=pytest.mark.full)]
)
def test_a_plain_network_passes_every_check_in_other_norms(norm: str, eps: float) -> None:
    rows = checks("plain", norm=norms.get(norm), eps=eps)
    assert not [str(check) for check in rows.values() if not check.passed]


def test_a_quantized_network_fails_the_checks_of_the_gradient() -> None:
    names = failed("quantized")
    assert {ZERO_GRADIENTS, BLACK_BOX} <= names
    assert not names & {SOFTMAX, VARY, "two calls give equal logits"}


def test_a_saturated_network_fails_the_check_of_the_gradient() -> None:
    names = failed("saturated")
    assert ZERO_GRADIENTS in names
    assert VARY not in names


def test_softmax_outputs_fail_the_check_of_logits() -> None:
    assert SOFTMAX in failed("softmax")


def test_a_constant_network_fails_the_checks_of_gradient_range_and_unbounded_attack() -> None:
    assert {ZERO_GRADIENTS, VARY, UNBOUNDED} <= failed("constant")


def test_images_that_meet_the_goal_already_are_refused() -> None:
    with pytest.raises(ValueError, match="all 8 images meet the goal without an attack"):
        checks("plain", ~true_classes(of_kind("plain")), success=np.ones(COUNT, bool))


# ---- weak attacks ----

AGREES = "success rate agrees with the run's"
DOUBLED = "doubled steps change little"
DEFAULT = "default steps and step size add little"
NOISE = "noise of the same norm does less"


def test_steps_that_are_too_small_fail() -> None:
    rows = checks("plain", step_size=1e-7)
    assert rows[AGREES].passed and rows[AGREES].value < 0.5
    assert not rows[DEFAULT].passed and not rows[NOISE].passed


def test_one_step_fails_where_more_steps_succeed() -> None:
    """With steps of eps / 4, four steps are needed to reach the surface of the ball."""
    one = (SEARCHES[0]._replace(steps=1),)
    rows = checks("plain", searches=one, step_size=2 / 255)
    assert rows[AGREES].passed
    assert not rows[DEFAULT].passed


def test_the_wrong_sign_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    ascent = ascend.direction
    monkeypatch.setattr(ascend, "direction", lambda rule: ascent(lambda g: -rule(g)))
    rows = checks("plain", searches=(gradient.pgd(steps=20),))
    assert rows[AGREES].passed and rows[AGREES].value == 0
    assert not rows[NOISE].passed and not rows[BLACK_BOX].passed


def test_checks_of_another_attack_than_the_run_fail() -> None:
    """The run's outcomes are those of steps of 1e-7, the checks' those of the default."""
    assert not checks("plain", success=np.zeros(COUNT, bool))[AGREES].passed


def test_the_checks_compile_no_search_again() -> None:
    """The attack's program serves every check, unless the attack misses an image."""
    traces: list[int] = []

    def counted(variables: Any, images01: jax.Array) -> jax.Array:
        traces.append(len(images01))
        return network(variables, images01)

    variables, key, mask = of_kind("plain"), jax.random.key(0), true_classes(of_kind("plain"))
    shared = {"norm": norms.LINF, "goal": goals.UNTARGETED}
    attack = attacks.make(SEARCHES, counted, **shared)
    success = attack(variables, key, IMAGES01, mask, eps=0.1).success
    count = len(traces)
    assert bool(success.all())
    sanity_checks.check_attack(
        counted,
        variables,
        key,
        IMAGES01,
        mask,
        searches=SEARCHES,
        default_steps=(40,),
        eps=0.1,
        step_size=None,
        success=np.asarray(success),
        queries=100,
        **shared,
    )
    assert len(traces) == count
