"""DeepFool, Carlini-Wagner and FAB: as near as can be where the nearest is known. As attacks they are in `test_attacks`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    """Two dense layers, and a linear one beside them: without `out` the nearest pictures are known."""
    x = images01.reshape(images01.shape[0], -1)
    return (
        jnp.tanh((x - 0.5) @ variables["in"]) @ variables["out"]
        + x @ variables["line"]
        + variables["shift"][None]
    )


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


NONE = {
    "out": jnp.zeros((16, CLASSES)),
    "line": jnp.zeros((N, CLASSES)),
    "shift": jnp.zeros(CLASSES),
}
CURVED = NONE | {"in": normal(1, N, 16), "out": normal(2, 16, CLASSES)}
CONSTANT = NONE | {"in": CURVED["in"]}  # class 0 for ever
TOP = np.asarray(network(CURVED, jnp.asarray(IMAGES01))).argmax(axis=1)
RIGHT = goals.class_mask(TOP[:, None].tolist(), CLASSES)
ASIDE = goals.class_mask(((TOP + 1) % CLASSES)[:, None].tolist(), CLASSES)


def class_mask(goal: str) -> np.ndarray:
    return RIGHT if goal == "untargeted" else ASIDE


RESTARTS = {
    ("deepfool", "linf", "untargeted"): 2,
    ("cw", "l2", "targeted"): 2,
    ("fab", "linf", "targeted"): 2,
}


@functools.cache
def made(name: str, norm: str, goal: str) -> attacks.Search:
    search = attacks.get(name)(restarts=RESTARTS.get((name, norm, goal), 1), **STEPS[name])
    assert isinstance(search, attacks.Search)
    return search


def find(name: str, norm: str, goal: str = "untargeted") -> attacks.Find:
    """One jitted search for all tests that want it; four slots for six pictures, so that some wait in the queue."""
    return attacks.find(
        made(name, norm, goal), network, norm=norms.get(norm), goal=GOALS[goal], slots=4
    )


# ------------------------------------------------------------------------------------------------- the nearest is known


DUAL = {"linf": lambda w: np.abs(w).sum(axis=0), "l2": lambda w: np.sqrt(np.square(w).sum(axis=0))}


def linear(norm: str) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    """Variables, pictures, members and distances: to a hyperplane it is the gap over the dual norm of its normal.

    The pictures are far from the box.
    """
    x = np.random.default_rng(4).uniform(0.45, 0.55, (COUNT, SIZE, SIZE, 3)).astype(np.float32)
    w = normal(5, N, CLASSES)
    variables = CONSTANT | {"line": w, "shift": -jnp.sum(w, axis=0) * 0.5}
    z = np.asarray(network(variables, jnp.asarray(x)), np.float64)
    top = z.argmax(axis=1)
    away = [w - np.asarray(w)[:, [t]] for t in top]
    with np.errstate(invalid="ignore"):
        known = [
            np.nanmin((row[t] - row) / DUAL[norm](v))
            for row, t, v in zip(z, top, away, strict=True)
        ]
    return variables, x, goals.class_mask(top[:, None].tolist(), CLASSES), np.asarray(known)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_on_a_linear_network_the_nearest_is_found(name: str, norm: str) -> None:
    variables, x, class_mask, known = linear(norm)
    found = find(name, norm)(variables, KEY, x, class_mask)
    print(found.distance / known)
    assert found.success.all()
    assert (np.asarray(found.distance) >= known * (1 - 1e-3)).all()
    np.testing.assert_allclose(found.distance, known, rtol=0.02)


def test_one_step_of_deepfool_is_looked_at_and_asks_for_each_class_that_counts() -> None:
    """A look at the start and one at the end, at each as many gradients as classes other than the right one."""
    asked: list[int] = []

    @jax.custom_vjp
    def spied(x: jax.Array) -> jax.Array:
        return x

    def back(_: None, slope: jax.Array) -> tuple[jax.Array]:
        jax.debug.callback(lambda: asked.append(1))
        return (slope,)

    spied.defvjp(lambda x: (x, None), back)
    variables, x, class_mask, known = linear("linf")
    spy = lambda variables, x: network(variables, spied(x))
    search = minimum_norm.deepfool(steps=1)
    run = attacks.make(
        search, spy, norm=norms.LINF, goal=goals.UNTARGETED, eight_bit=False, slots=COUNT
    )
    for share in (0.98, 1.05):
        asked.clear()
        found = run(variables, KEY, x, class_mask, eps=(share * known).astype(np.float32))
        jax.effects_barrier()
        assert found.success.all() if share > 1 else not found.success.any()
        assert (found.steps == 2).all() and len(asked) == 2 * (CLASSES - 1)


def reference(norm: str, x: np.ndarray, w: np.ndarray, gap: float) -> np.ndarray:
    """Nearest point of a hyperplane in the box, in float64, by halving its multiplier: (n,), (n,) -> (n,)."""
    headroom = np.where(w > 0, 1 - x, x)
    speed = np.abs(w) if norm == "l2" else np.ones_like(w)
    if gap >= np.abs(w) @ headroom:  # out of reach: the corner
        return np.sign(w) * headroom
    low, high = 0.0, 1e9
    for _ in range(200):
        time = (low + high) / 2
        low, high = (
            (time, high) if np.abs(w) @ np.minimum(time * speed, headroom) < gap else (low, time)
        )
    return np.sign(w) * np.minimum(high * speed, headroom)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fab_finds_the_nearest_at_the_border_of_the_box(norm: str) -> None:
    """Most pixels are black or white, where half of the directions are closed."""
    rng = np.random.default_rng(6)
    x = np.where(
        rng.random((COUNT, SIZE, SIZE, 3)) < 0.8, rng.integers(0, 2, (COUNT, SIZE, SIZE, 3)), 0.4
    )
    x = x.astype(np.float32)
    w = np.asarray(normal(7, N), np.float64)
    flat = x.reshape(COUNT, -1).astype(np.float64)
    run, value = find("fab", norm, "targeted"), flat @ w
    for share in (0.05, 0.3, 0.6):
        level = value.max() + share * (
            np.maximum(w, 0).sum() - value.max()
        )  # of the plane <w, x> = level
        line = jnp.zeros((N, CLASSES)).at[:, 1].set(jnp.asarray(w, jnp.float32))
        shift = jnp.asarray([level, 0, -1e4, -1e4], jnp.float32)
        found = run(
            CONSTANT | {"line": line, "shift": shift},
            KEY,
            x,
            goals.class_mask([[1]] * COUNT, CLASSES),
        )
        order = {"linf": np.inf, "l2": 2}[norm]
        known = [
            np.linalg.norm(reference(norm, row, w, level - v), order)
            for row, v in zip(flat, value, strict=True)
        ]
        assert (np.asarray(found.distance) >= np.asarray(known) * (1 - 1e-3)).all()
        np.testing.assert_allclose(found.distance, known, rtol=0.02)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@settings(max_examples=30)
@given(
    seed=st.integers(0, 999),
    share=st.sampled_from([0.0, 1e-3, 0.3, 0.95, 1.5]),
    sign=st.sampled_from([-1, 1]),
)
def test_the_projection_onto_plane_and_box_is_exact(
    norm: str, seed: int, share: float, sign: int
) -> None:
    rng = np.random.default_rng(seed)
    x = np.clip(rng.uniform(-0.5, 1.5, (2, 3, 3, 3)), 0, 1).astype(np.float32)
    w = (
        10.0 ** rng.uniform(-6, 3) * rng.normal(size=x.shape) * (rng.random(x.shape) < 0.8)
    ).astype(np.float32)
    flat, normals = x.reshape(2, -1).astype(np.float64), sign * w.reshape(2, -1).astype(np.float64)
    reach = np.sum(np.where(normals > 0, normals * (1 - flat), -normals * flat), axis=1)
    gap = share * reach
    d = np.asarray(
        jax.jit(linearized.onto_plane, static_argnums=0)(
            norm, x, w, jnp.asarray(sign * gap, jnp.float32)
        )
    )
    assert np.isfinite(d).all()
    assert (x + d).min() >= -1e-6 and (x + d).max() <= 1 + 1e-6
    for i in range(2):
        known = reference(norm, flat[i], normals[i], gap[i])
        np.testing.assert_allclose(d[i].ravel(), known, atol=3e-4)
        np.testing.assert_allclose(
            normals[i] @ d[i].ravel(), min(gap[i], reach[i]), rtol=1e-4, atol=1e-4 * reach[i]
        )


# ----------------------------------------------------------------------------------------------------- every search, table


@pytest.mark.parametrize(
    ("name", "norm", "goal"),
    [*((*c, "untargeted") for c in CASES), ("cw", "l2", "targeted"), ("fab", "linf", "targeted")],
)
def test_what_is_found_is_adversarial_and_as_far_as_it_says(
    name: str, norm: str, goal: str
) -> None:
    found = find(name, norm, goal)(CURVED, KEY, IMAGES01, class_mask(goal))
    images = np.asarray(found.images)
    assert images.dtype == np.float32 and images.min() >= 0 and images.max() <= 1
    assert found.success.all()
    np.testing.assert_array_equal(
        found.success, GOALS[goal].success(network(CURVED, found.images), class_mask(goal))
    )
    np.testing.assert_allclose(
        found.distance, norms.get(norm).distance(images, IMAGES01), rtol=1e-5
    )
    assert (np.asarray(found.distance) > 0).all()
    solved = find(name, norm, goal)(
        CURVED, KEY, IMAGES01, ~class_mask(goal)
    )  # the goal is met already
    np.testing.assert_array_equal(solved.images, IMAGES01)
    assert not np.asarray(solved.distance).any()


@pytest.mark.parametrize(
    ("name", "norm", "goal"),
    [("deepfool", "l2", "untargeted"), ("cw", "l2", "targeted"), ("fab", "linf", "untargeted")],
)
def test_nothing_found_is_infinitely_far(name: str, norm: str, goal: str) -> None:
    aims = goals.class_mask([[2 if goal == "targeted" else 0]] * COUNT, CLASSES)
    found = find(name, norm, goal)(CONSTANT, KEY, IMAGES01, aims)
    assert not found.success.any() and np.isinf(found.distance).all()
    np.testing.assert_array_equal(found.images, IMAGES01)


@pytest.mark.parametrize(("name", "norm", "goal"), RESTARTS)
def test_images_are_searched_apart_and_by_their_keys(name: str, norm: str, goal: str) -> None:
    run = find(name, norm, goal)
    together = run(CURVED, KEY, IMAGES01, class_mask(goal))
    np.testing.assert_array_equal(
        together.images, run(CURVED, KEY, IMAGES01, class_mask(goal)).images
    )
    others = [run(CURVED, jax.random.key(seed), IMAGES01, class_mask(goal)) for seed in range(3)]
    assert name == "deepfool" or any(
        (other.images != together.images).any() for other in others
    )  # a random start
    neighbours = IMAGES01.copy()
    neighbours[1:] = 1 - neighbours[1:]
    np.testing.assert_array_equal(
        run(CURVED, KEY, neighbours, class_mask(goal)).images[0], together.images[0]
    )


@pytest.mark.parametrize(("name", "norm"), [("deepfool", "l2"), ("fab", "l2")])
def test_a_single_start_is_the_clean_picture(name: str, norm: str) -> None:
    run = find(name, norm)
    once, again = (run(CURVED, key, IMAGES01, RIGHT).images for key in (KEY, jax.random.key(9)))
    np.testing.assert_array_equal(once, again)


def test_deepfool_begins_again_where_it_found_nothing() -> None:
    """In each of two starts all of its 20 steps, and a look at where the last one led."""
    search = made("deepfool", "linf", "untargeted")
    run = attacks.make(
        search, network, norm=norms.LINF, goal=goals.UNTARGETED, eight_bit=False, slots=4
    )
    found = run(CONSTANT, KEY, IMAGES01, goals.class_mask([[0]] * COUNT, CLASSES), eps=0.1)
    assert found.steps.tolist() == [42] * COUNT and not found.success.any()


def test_enough_ends_the_search() -> None:
    """A search that may stop early does: it looks no further than asked."""
    run = find("fab", "l2")
    best, quick = (run(CURVED, KEY, IMAGES01, RIGHT, stop_distance=e) for e in (0.0, 6.0))
    assert (quick.distance >= best.distance * 0.99).all()
    assert (quick.distance > best.distance * 1.001).any()


def test_fab_and_cw_are_no_further_than_deepfool() -> None:
    medians = {
        name: float(np.median(find(name, "l2")(CURVED, KEY, IMAGES01, RIGHT).distance))
        for name in STEPS
    }
    print(medians)
    assert medians["fab"] <= 1.01 * medians["deepfool"]
    assert medians["cw"] <= 1.01 * medians["deepfool"]


# ---------------------------------------------------------------------------------------------------------- as attacks


@pytest.mark.parametrize(("name", "norm"), [("deepfool", "l2"), ("fab", "linf")])
def test_off_the_grid_an_attack_succeeds_within_the_distance_that_is_found(
    name: str, norm: str
) -> None:
    distance = np.asarray(find(name, norm)(CURVED, KEY, IMAGES01, RIGHT).distance)
    search = made(name, norm, "untargeted")
    run = attacks.make(
        search, network, norm=norms.get(norm), goal=goals.UNTARGETED, eight_bit=False, slots=4
    )
    for share in (1.02, 0.98):
        success = np.asarray(run(CURVED, KEY, IMAGES01, RIGHT, eps=share * distance).success)
        assert success.all() if share > 1 else not success.any()


# -------------------------------------------------------------------------------------------------------------- errors


def test_bad_input_is_told() -> None:
    make = {"logits": network, "goal": goals.UNTARGETED}
    for name in STEPS:
        for build in (attacks.make, attacks.find):
            with pytest.raises(ValueError, match="works in the norms .*l2; got 'l1'"):
                build(attacks.get(name)(), norm=norms.L1, **make)  # pyright: ignore
    for build in (attacks.make, attacks.find):
        with pytest.raises(ValueError, match="works in the norms l2; got 'linf'"):
            build(minimum_norm.cw(), norm=norms.LINF, **make)
    for counts in ({"candidates": 0}, {"steps": 0}, {"restarts": 0}):
        with pytest.raises(ValueError, match="must be at least 1; got "):
            minimum_norm.deepfool(**counts)
    with pytest.raises(
        ValueError, match="does not look for the nearest picture; take deepfool, cw or fab"
    ):
        attacks.find(attacks.get("pgd")(steps=1), norm=norms.L2, **make)  # pyright: ignore
    with pytest.raises(ValueError, match="must be float32"):
        find("fab", "l2")(CURVED, KEY, IMAGES8, RIGHT)
    with pytest.raises(ValueError, match="eps is a"):
        find("fab", "l2")(CURVED, KEY, IMAGES01, RIGHT, stop_distance=-1.0)
