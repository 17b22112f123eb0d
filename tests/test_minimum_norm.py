"""DeepFool, Carlini-Wagner and FAB find the nearest image where it is known.

Their properties as attacks are tested in `test_attacks`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import toys
from tl import attacks, pixels
from tl.attacks import goals, linearized, minimum_norm, norms

SIZE, CLASSES, COUNT = 4, 4, 6
N = 3 * SIZE * SIZE
KEY = jax.random.key(3)
GOALS = {"targeted": goals.TARGETED, "untargeted": goals.UNTARGETED}
STEPS = {"deepfool": {"steps": 20}, "cw": {"steps": 300}, "fab": {"steps": 20}}
CASES = [("deepfool", "linf"), ("deepfool", "l2"), ("cw", "l2"), ("fab", "linf"), ("fab", "l2")]
IMAGES8 = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
IMAGES8[:, 0] = [[0], [255], [0], [255]]
IMAGES01 = pixels.to_images01(IMAGES8)


def network(variables: Any, images01: jax.Array) -> jax.Array:
    """Two dense layers plus a linear one; if `out` is 0, the nearest images are known."""
    x = images01.reshape(images01.shape[0], -1)
    return toys.mlp(variables, images01) + x @ variables["line"] + variables["shift"][None]


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


ZEROS = {
    "out": jnp.zeros((16, CLASSES)),
    "line": jnp.zeros((N, CLASSES)),
    "shift": jnp.zeros(CLASSES),
}
CURVED = ZEROS | {"in": normal(1, N, 16), "out": normal(2, 16, CLASSES)}
CONSTANT = ZEROS | {"in": CURVED["in"]}  # always class 0


@functools.cache
def class_mask(goal: str) -> np.ndarray:
    """The predicted class of each image, or for a targeted goal the one after it."""
    top = np.asarray(jax.jit(network)(CURVED, jnp.asarray(IMAGES01))).argmax(axis=1)
    classes = top if goal == "untargeted" else (top + 1) % CLASSES
    return goals.class_mask(classes[:, None].tolist(), CLASSES)


RESTARTS = {
    ("deepfool", "linf", "untargeted"): 2,
    ("cw", "l2", "targeted"): 2,
    ("fab", "linf", "targeted"): 2,
}


@functools.cache
def make_search(name: str, norm: str, goal: str) -> attacks.Search:
    search = attacks.get(name)(restarts=RESTARTS.get((name, norm, goal), 1), **STEPS[name])
    assert isinstance(search, attacks.Search)
    return search


def find(name: str, norm: str, goal: str = "untargeted") -> attacks.Find:
    """One jitted search for all tests, with four slots for six images."""
    search = make_search(name, norm, goal)
    return attacks.find(search, network, norm=norms.get(norm), goal=GOALS[goal], slots=4)


def attack(search: attacks.Search, norm: str = "linf", **arguments: Any) -> attacks.Attack:
    defaults: dict[str, Any] = {"logits": network, "goal": goals.UNTARGETED, "slots": 4}
    return attacks.make(search, norm=norms.get(norm), eight_bit=False, **defaults | arguments)


# ---- networks for which the nearest image is known ----

DUAL = {"linf": lambda w: np.abs(w).sum(axis=0), "l2": lambda w: np.sqrt(np.square(w).sum(axis=0))}


def linear(norm: str) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """Variables, images far from the bounds, class mask, and distances to the nearest hyperplane.

    The distance to a hyperplane is the gap over the dual norm of its normal.
    """
    x = np.random.default_rng(4).uniform(0.45, 0.55, (COUNT, SIZE, SIZE, 3)).astype(np.float32)
    w = normal(5, N, CLASSES)
    variables = CONSTANT | {"line": w, "shift": -jnp.sum(w, axis=0) * 0.5}
    logits = np.asarray(network(variables, jnp.asarray(x)), np.float64)
    top = logits.argmax(axis=1)
    normals = [w - np.asarray(w)[:, [t]] for t in top]
    rows = zip(logits, top, normals, strict=True)
    with np.errstate(invalid="ignore"):
        distances = [np.nanmin((row[t] - row) / DUAL[norm](v)) for row, t, v in rows]
    return variables, x, goals.class_mask(top[:, None].tolist(), CLASSES), np.asarray(distances)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_the_nearest_image_of_a_linear_network_is_found(name: str, norm: str) -> None:
    variables, x, mask, distances = linear(norm)
    result = find(name, norm)(variables, KEY, x, mask)
    assert result.success.all()
    assert (np.asarray(result.distance) >= distances * (1 - 1e-3)).all()
    np.testing.assert_allclose(result.distance, distances, rtol=0.02)


def test_one_step_of_deepfool_computes_one_gradient_per_other_class() -> None:
    """At the start and at the end, as many gradients as there are other classes."""
    gradients: list[int] = []

    @jax.custom_vjp
    def counted(x: jax.Array) -> jax.Array:
        return x

    def backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
        jax.debug.callback(lambda: gradients.append(1))
        return (cotangent,)

    counted.defvjp(lambda x: (x, None), backward)
    variables, x, mask, distances = linear("linf")
    logits = lambda variables, x: network(variables, counted(x))
    run = attack(minimum_norm.deepfool(steps=1), logits=logits, slots=COUNT)
    for share in (0.98, 1.05):
        gradients.clear()
        result = run(variables, KEY, x, mask, eps=(share * distances).astype(np.float32))
        jax.effects_barrier()
        assert result.success.all() if share > 1 else not result.success.any()
        assert (result.steps == 2).all() and len(gradients) == 2 * (CLASSES - 1)


def nearest_on_plane(norm: str, x: np.ndarray, w: np.ndarray, gap: float) -> np.ndarray:
    """`project_onto_plane` for one image f64[n], by bisection of the multiplier: f64[n]."""
    headroom = np.where(w > 0, 1 - x, x)
    speed = np.abs(w) if norm == "l2" else np.ones_like(w)
    if gap >= np.abs(w) @ headroom:  # out of reach: the corner
        return np.sign(w) * headroom
    low, high = 0.0, 1e9
    for _ in range(200):
        time = (low + high) / 2
        short = np.abs(w) @ np.minimum(time * speed, headroom) < gap
        low, high = (time, high) if short else (low, time)
    return np.sign(w) * np.minimum(high * speed, headroom)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_finds_the_nearest_image_at_the_bounds(norm: str) -> None:
    """Most values are 0 or 1, where half of the directions are closed."""
    rng = np.random.default_rng(6)
    shape = (COUNT, SIZE, SIZE, 3)
    x = np.where(rng.random(shape) < 0.8, rng.integers(0, 2, shape), 0.4).astype(np.float32)
    w = np.asarray(normal(7, N), np.float64)
    flat = x.reshape(COUNT, -1).astype(np.float64)
    run, values = find("fab", norm, "targeted"), flat @ w
    for share in (0.05, 0.3, 0.6):
        # The plane is <w, x> = level.
        level = values.max() + share * (np.maximum(w, 0).sum() - values.max())
        line = jnp.zeros((N, CLASSES)).at[:, 1].set(jnp.asarray(w, jnp.float32))
        shift = jnp.asarray([level, 0, -1e4, -1e4], jnp.float32)
        mask = goals.class_mask([[1]] * COUNT, CLASSES)
        result = run(CONSTANT | {"line": line, "shift": shift}, KEY, x, mask)
        order = {"linf": np.inf, "l2": 2}[norm]
        rows = zip(flat, values, strict=True)
        ways = [nearest_on_plane(norm, row, w, level - value) for row, value in rows]
        distances = np.array([np.linalg.norm(way, order) for way in ways])
        assert (np.asarray(result.distance) >= distances * (1 - 1e-3)).all()
        np.testing.assert_allclose(result.distance, distances, rtol=0.02)


project = jax.jit(linearized.project_onto_plane, static_argnums=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@settings(max_examples=30)
@given(
    seed=st.integers(0, 999),
    share=st.sampled_from([0.0, 1e-3, 0.3, 0.95, 1.5]),
    sign=st.sampled_from([-1, 1]),
)
def test_the_projection_onto_a_plane_within_bounds_is_exact(
    norm: str, seed: int, share: float, sign: int
) -> None:
    rng = np.random.default_rng(seed)
    x = np.clip(rng.uniform(-0.5, 1.5, (2, 3, 3, 3)), 0, 1).astype(np.float32)
    w = 10.0 ** rng.uniform(-6, 3) * rng.normal(size=x.shape) * (rng.random(x.shape) < 0.8)
    w = w.astype(np.float32)
    flat, normals = x.reshape(2, -1).astype(np.float64), sign * w.reshape(2, -1).astype(np.float64)
    reach = np.sum(np.where(normals > 0, normals * (1 - flat), -normals * flat), axis=1)
    gap = share * reach
    d = np.asarray(project(norm, x, w, jnp.asarray(sign * gap, jnp.float32)))
    assert np.isfinite(d).all()
    assert (x + d).min() >= -1e-6 and (x + d).max() <= 1 + 1e-6
    for i in range(2):
        expected = nearest_on_plane(norm, flat[i], normals[i], gap[i])
        np.testing.assert_allclose(d[i].ravel(), expected, atol=3e-4)
        value, reached = normals[i] @ d[i].ravel(), min(gap[i], reach[i])
        np.testing.assert_allclose(value, reached, rtol=1e-4, atol=1e-4 * reach[i])


# ---- every search ----

EVERY = [
    *((*case, "untargeted") for case in CASES),
    ("cw", "l2", "targeted"),
    ("fab", "linf", "targeted"),
]


@pytest.mark.parametrize(("name", "norm", "goal"), EVERY)
def test_the_result_is_adversarial_and_at_its_distance(name: str, norm: str, goal: str) -> None:
    mask = class_mask(goal)
    result = find(name, norm, goal)(CURVED, KEY, IMAGES01, mask)
    images = np.asarray(result.images)
    assert images.dtype == np.float32 and images.min() >= 0 and images.max() <= 1
    assert result.success.all()
    success = GOALS[goal].success(network(CURVED, result.images), mask)
    np.testing.assert_array_equal(result.success, success)
    distance = norms.get(norm).distance(images, IMAGES01)
    np.testing.assert_allclose(result.distance, distance, rtol=1e-5)
    assert (np.asarray(result.distance) > 0).all()


@pytest.mark.parametrize(("name", "norm", "goal"), EVERY)
def test_an_image_that_meets_the_goal_is_at_distance_0(name: str, norm: str, goal: str) -> None:
    result = find(name, norm, goal)(CURVED, KEY, IMAGES01, ~class_mask(goal))
    np.testing.assert_array_equal(result.images, IMAGES01)
    assert not np.asarray(result.distance).any()


@pytest.mark.parametrize(
    ("name", "norm", "goal"),
    [("deepfool", "l2", "untargeted"), ("cw", "l2", "targeted"), ("fab", "linf", "untargeted")],
)
def test_a_failure_is_infinitely_far(name: str, norm: str, goal: str) -> None:
    mask = goals.class_mask([[2 if goal == "targeted" else 0]] * COUNT, CLASSES)
    result = find(name, norm, goal)(CONSTANT, KEY, IMAGES01, mask)
    assert not result.success.any() and np.isinf(result.distance).all()
    np.testing.assert_array_equal(result.images, IMAGES01)


@pytest.mark.parametrize(("name", "norm", "goal"), RESTARTS)
def test_results_depend_on_the_image_and_its_key_only(name: str, norm: str, goal: str) -> None:
    run, mask = find(name, norm, goal), class_mask(goal)
    together, again = (run(CURVED, KEY, IMAGES01, mask).images for _ in range(2))
    np.testing.assert_array_equal(together, again)
    images01 = IMAGES01.copy()
    images01[1:] = 1 - images01[1:]
    np.testing.assert_array_equal(run(CURVED, KEY, images01, mask).images[0], together[0])


@pytest.mark.parametrize(
    ("name", "norm", "goal"), [case for case in RESTARTS if case[0] != "deepfool"]
)
def test_restarts_are_random(name: str, norm: str, goal: str) -> None:
    run, mask = find(name, norm, goal), class_mask(goal)
    first, *others = (
        run(CURVED, key, IMAGES01, mask).images for key in (KEY, *map(jax.random.key, range(3)))
    )
    assert any((other != first).any() for other in others)


@pytest.mark.parametrize(("name", "norm"), [("deepfool", "l2"), ("fab", "l2")])
def test_the_first_start_is_the_clean_image(name: str, norm: str) -> None:
    run, mask = find(name, norm), class_mask("untargeted")
    first, other = (run(CURVED, key, IMAGES01, mask).images for key in (KEY, jax.random.key(9)))
    np.testing.assert_array_equal(first, other)


def test_deepfool_restarts_where_it_found_nothing() -> None:
    """Two starts of 20 steps, and an evaluation of the last point of each."""
    run = attack(make_search("deepfool", "linf", "untargeted"))
    mask = goals.class_mask([[0]] * COUNT, CLASSES)
    result = run(CONSTANT, KEY, IMAGES01, mask, eps=0.1)
    assert result.steps.tolist() == [42] * COUNT and not result.success.any()


def test_the_stop_distance_ends_a_search_early() -> None:
    run, mask = find("fab", "l2"), class_mask("untargeted")
    best, early = (run(CURVED, KEY, IMAGES01, mask, stop_distance=d) for d in (0.0, 6.0))
    assert (early.distance >= best.distance * 0.99).all()
    assert (early.distance > best.distance * 1.001).any()


def test_fab_and_cw_find_images_no_further_than_deepfool() -> None:
    mask = class_mask("untargeted")
    distances = {name: find(name, "l2")(CURVED, KEY, IMAGES01, mask).distance for name in STEPS}
    medians = {name: float(np.median(values)) for name, values in distances.items()}
    assert medians["fab"] <= 1.01 * medians["deepfool"], medians
    assert medians["cw"] <= 1.01 * medians["deepfool"], medians


@pytest.mark.parametrize(("name", "norm"), [("deepfool", "l2"), ("fab", "linf")])
def test_as_an_attack_a_search_succeeds_exactly_above_its_distance(name: str, norm: str) -> None:
    mask = class_mask("untargeted")
    distance = np.asarray(find(name, norm)(CURVED, KEY, IMAGES01, mask).distance)
    run = attack(make_search(name, norm, "untargeted"), norm)
    for share in (1.02, 0.98):
        success = np.asarray(run(CURVED, KEY, IMAGES01, mask, eps=share * distance).success)
        assert success.all() if share > 1 else not success.any()


# ---- errors ----

ARGUMENTS: dict[str, Any] = {"logits": network, "goal": goals.UNTARGETED}


@pytest.mark.parametrize("build", [attacks.make, attacks.find])
@pytest.mark.parametrize(
    ("name", "norm"), [*((name, norms.L1) for name in STEPS), ("cw", norms.LINF)]
)
def test_unsupported_norms_are_refused(build: Any, name: str, norm: norms.Norm) -> None:
    message = f"got '{norms.name(norm)}', expected one of .*l2"
    with pytest.raises(ValueError, match=message):
        build(attacks.get(name)(), norm=norm, **ARGUMENTS)


@pytest.mark.parametrize("counts", [{"candidates": 0}, {"steps": 0}, {"restarts": 0}])
def test_counts_below_one_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1: got "):
        minimum_norm.deepfool(**counts)


def test_find_refuses_attacks_that_do_not_minimize_the_distance() -> None:
    with pytest.raises(ValueError, match="does not search for the nearest.*deepfool, cw or fab"):
        attacks.find(attacks.get("pgd")(steps=1), norm=norms.L2, **ARGUMENTS)  # pyright: ignore


def test_find_checks_images_and_the_stop_distance() -> None:
    run, mask = find("fab", "l2"), class_mask("untargeted")
    with pytest.raises(ValueError, match="must be float32"):
        run(CURVED, KEY, IMAGES8, mask)
    with pytest.raises(ValueError, match="`eps` is out of range"):
        run(CURVED, KEY, IMAGES01, mask, stop_distance=-1.0)
