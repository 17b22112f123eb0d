"""The honesty panel: each line by hand, and whole panels on networks that are plain, masked, constant or softmaxed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl import attacks, pixels
from tl.attacks import baselines, blackbox, goals, gradient, norms, sanity_checks
from tl.attacks.sanity_checks import Check

SIZE, CLASSES, COUNT = 6, 4, 8
N = 3 * SIZE * SIZE
KEY = jax.random.key(0)
IMAGES01 = pixels.to_images01(
    np.random.default_rng(0).integers(64, 192, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
)


# ------------------------------------------------------------------------------------------------------------ by hand

FLAT = np.zeros((2, 2, 2, 3), np.float32)
STEEP = FLAT + 1e-30
SURE = np.float32([[0.9, 0.1], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("check", "passed", "found"),
    [
        (sanity_checks.gradients_flow(STEEP), True, 0),
        (sanity_checks.gradients_flow(np.stack([FLAT[0], STEEP[0]])), False, 0.5),
        (sanity_checks.gradients_flow(np.stack([FLAT[0] * np.nan, STEEP[0]])), False, 0.5),
        (sanity_checks.logits_not_probabilities(np.log(SURE)), True, 0),
        (sanity_checks.logits_not_probabilities(SURE * 2), True, 0),
        (sanity_checks.logits_not_probabilities(SURE), False, 1),
        (sanity_checks.logits_vary(SURE), True, np.float32(0.7)),
        (sanity_checks.logits_vary(SURE[[0, 0]]), False, 0),
        (sanity_checks.calls_agree(SURE, SURE.copy()), True, 0),
        (sanity_checks.calls_agree(SURE, SURE + np.float32([0, 0.5])), False, 0.5),
        (sanity_checks.calls_agree(SURE, SURE * np.nan), False, np.nan),
        (sanity_checks.whole_box_breaks(np.ones(4, bool)), True, 1),
        (sanity_checks.whole_box_breaks(np.arange(4) > 0), False, 0.75),
        (sanity_checks.curve_rises([0.1, 0.5, 0.5, 1.0], 20), True, 0),
        (sanity_checks.curve_rises([0.1, 0.5, 0.45, 1.0], 20), True, 0.05),
        (sanity_checks.curve_rises([0.1, 0.5, 0.3, 1.0], 20), False, 0.2),
        (sanity_checks.curve_rises([0.1], 20), True, 0),
        (sanity_checks.noise_is_weaker(0.1, 0.9), True, 0.1),
        (sanity_checks.noise_is_weaker(0.9, 0.9), False, 0.9),
        (sanity_checks.noise_is_weaker(0.0, 0.0), False, 0),
        (sanity_checks.black_box_no_better(0.5, 0.5), True, 0.5),
        (sanity_checks.black_box_no_better(0.6, 0.5), False, 0.6),
        (sanity_checks.steps_suffice(0.5, 0.51, 200), True, 0.01),
        (sanity_checks.steps_suffice(0.5, 0.6, 10), True, 0.1),
        (sanity_checks.steps_suffice(0.5, 0.6, 200), False, 0.1),
    ],
    ids=lambda value: value.name if isinstance(value, Check) else "",
)
def test_a_line_by_hand(check: Check, passed: bool, found: float) -> None:
    assert check.passed is passed
    np.testing.assert_allclose(check.found, found, rtol=1e-5, atol=1e-7)
    assert str(check).startswith("pass  " if passed else "FAIL  ") and check.wanted in str(check)
    assert isinstance(check.found, float)  # for result.json


def test_gradients_are_each_picture_s_own_a_few_at_a_time() -> None:
    """Slots of 3 for 8 pictures: the last group is filled up, and every member of the goal stays with its picture."""
    seen: list[int] = []

    def spied(variables: Any, images01: jax.Array) -> jax.Array:
        seen.append(len(images01))
        return network(variables, images01)

    found = sanity_checks._slopes(spied, goals.UNTARGETED, 3)(PLAIN, (IMAGES01, RIGHT))
    assert set(seen) == {3}
    plain = jax.jit(jax.grad(lambda x: jnp.sum(goals.UNTARGETED.score(network(PLAIN, x), RIGHT))))(
        IMAGES01
    )
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-7)


# -------------------------------------------------------------------------------------------------------------- panels


KINDS = ["plain", "quantised", "saturated", "softmaxed", "constant"]


def network(variables: Any, images01: jax.Array) -> jax.Array:
    """Five networks, so that they compile as one.

    quantised: masked, as levels hide the gradient and nothing else is changed; saturated: masked, by sigmoids so steep that
    float32 has no slope left.
    """
    kind = variables["kind"]
    x = jnp.where(kind == KINDS.index("quantised"), jnp.round(images01 * 32) / 32, images01)
    z = jnp.tanh((x.reshape(images01.shape[0], -1) - 0.5) @ variables["in"]) @ variables["out"]
    constant = 0 * z + jnp.arange(CLASSES, 0.0, -1.0)[None]
    return jnp.stack([z, z, jax.nn.sigmoid(300 * z), jax.nn.softmax(z, axis=1), constant])[kind]


RNG = np.random.default_rng(1)
NET = {
    k: jnp.asarray(RNG.normal(size=s) / 4, jnp.float32)
    for k, s in (("in", (N, 16)), ("out", (16, CLASSES)))
}
PLAIN = NET | {"kind": jnp.int32(0)}
TOP = np.asarray(network(PLAIN, jnp.asarray(IMAGES01))).argmax(axis=1)
RIGHT = goals.class_mask(TOP[:, None].tolist(), CLASSES)


def make(search: Any) -> attacks.Attack:
    return attacks.make(search, network, norm=norms.LINF, goal=goals.UNTARGETED)


WHITE = make(gradient.pgd(steps=20))
MADE: dict[str, Any] = {
    "norm": norms.LINF,
    "goal": goals.UNTARGETED,
    "eps": 8 / 255,
    "attack": WHITE,
    "whole": WHITE,
    "doubled": make(gradient.pgd(steps=40)),
    "black": make(blackbox.square(steps=100)),
    "noise": make(baselines.noise(steps=sanity_checks.DRAWS)),
}


def panel(kind: str) -> dict[str, Check]:
    variables = NET | {"kind": jnp.int32(KINDS.index(kind))}
    top = np.asarray(network(variables, jnp.asarray(IMAGES01))).argmax(axis=1)
    class_mask = goals.class_mask(top[:, None].tolist(), CLASSES)
    lines = sanity_checks.panel(network, variables, KEY, IMAGES01, class_mask, **MADE)
    print("\n".join(map(str, lines)))
    return {line.name: line for line in lines}


def failed(lines: dict[str, Check]) -> set[str]:
    return {name for name, line in lines.items() if not line.passed}


ZERO, SOFTMAX, VARY = (
    "share of zero gradients",
    "logits, not softmax",
    "logits depend on the picture",
)
BLACK, BOX = "black-box no better than white-box", "any change at all (Linf, eps = 1) reaches all"


def test_a_plain_network_passes_every_line() -> None:
    lines = panel("plain")
    assert len(lines) == 9 and not failed(lines)


def test_a_quantised_network_fails_where_its_gradient_is_asked_for() -> None:
    wrong = failed(panel("quantised"))
    assert {ZERO, BLACK} <= wrong
    assert not wrong & {SOFTMAX, VARY, "two calls give equal logits"}


def test_a_saturated_network_fails_where_its_gradient_is_asked_for() -> None:
    wrong = failed(panel("saturated"))
    assert ZERO in wrong
    assert VARY not in wrong


def test_softmax_in_place_of_logits_is_told() -> None:
    assert SOFTMAX in failed(panel("softmaxed"))


def test_a_constant_network_is_told() -> None:
    assert {ZERO, VARY, BOX} <= failed(panel("constant"))


def test_pictures_that_meet_the_goal_already_are_left_out() -> None:
    with pytest.raises(ValueError, match="all 8 pictures meet the goal as they are"):
        sanity_checks.panel(network, PLAIN, KEY, IMAGES01, ~RIGHT, **MADE)
    with pytest.raises(ValueError, match="curve must rise and hold 1.0"):
        sanity_checks.panel(network, PLAIN, KEY, IMAGES01, RIGHT, curve=(1.0, 0.5), **MADE)
