"""Square: the paper's moves, a query a step, and never a gradient. That it is an attack is told by `test_attacks`."""

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
from tl.attacks import blackbox, goals, norms

SIZE, CLASSES, COUNT = 8, 4, 6
N = 3 * SIZE * SIZE
KEY = jax.random.key(3)
EPS = {"linf": 16 / 255, "l2": 1.0}
IMAGES8 = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
IMAGES8[:, 0] = [[0], [255], [0], [255]] * 2
IMAGES01 = pixels.to_images01(IMAGES8)


@jax.custom_jvp
def sixteen_levels(x: jax.Array) -> jax.Array:
    return jnp.round(x * 16) / 16


@sixteen_levels.defjvp
def _no_gradient(*_: Any) -> Any:
    raise AssertionError("a gradient was asked for")


def network(variables: Any, images01: jax.Array) -> jax.Array:
    """Two layers over a picture in 16 levels, which nobody may differentiate."""
    x = sixteen_levels(images01)
    return jnp.tanh((x.reshape(images01.shape[0], -1) - 0.5) @ variables["in"]) @ variables["out"]


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


NET = {"in": normal(1, N, 16) / 6, "out": normal(2, 16, CLASSES)}
TOP = np.asarray(network(NET, jnp.asarray(IMAGES01))).argmax(axis=1)
RIGHT = goals.class_mask(TOP[:, None].tolist(), CLASSES)


MARGINS: list[np.ndarray] = []


@functools.cache
def attack(norm: str) -> attacks.Attack:
    """One jitted attack for all tests that want it; all pictures side by side. It notes its margins down."""
    search = blackbox.square(steps=200) if norm == "l2" else blackbox.square(steps=20, restarts=2)

    def spied(task: Any, at: Any) -> Any:
        jax.debug.callback(lambda above: MARGINS.append(np.asarray(above)), at.above, ordered=True)
        return search.step(task, at)

    spy = search._replace(step=spied)
    return attacks.make(spy, network, norm=norms.get(norm), goal=goals.UNTARGETED, slots=COUNT)


# --------------------------------------------------------------------------------------------------------- the attack


def test_a_step_is_a_query_and_none_is_asked_after_success() -> None:
    class_mask = RIGHT.copy()
    class_mask[0] = ~class_mask[0]  # met as it is
    steps, success = [], []
    for eps in (1.0, 0.25):
        found = attack("l2")(NET, KEY, IMAGES01, class_mask, eps=eps)
        steps, success = steps + found.steps.tolist()[1:], success + found.success.tolist()[1:]
        assert found.success[0] and found.steps[0] == 0
    print(steps, success)
    assert 0 < sum(success) < len(success)
    assert all(
        (1 <= taken < 200) if met else taken == 200
        for taken, met in zip(steps, success, strict=True)
    )
    assert (
        max(taken for taken, met in zip(steps, success, strict=True) if met) > 1
    )  # not all by the start


def test_another_start_is_for_those_that_are_left() -> None:
    found = attack("linf")(NET, KEY, IMAGES01, RIGHT, eps=np.float32([6, 9, 14, 18, 22, 26]) / 255)
    steps, success = np.asarray(found.steps), np.asarray(found.success)
    print(steps, success)
    assert (steps <= 20).any() and (
        (steps > 20) & success
    ).any()  # some by the first start, some by the second
    assert (steps[~success] == 40).all() and (steps[success] < 40).all() and not success.all()


def test_the_margin_only_grows() -> None:
    MARGINS.clear()
    jax.block_until_ready(attack("l2")(NET, KEY, IMAGES01, RIGHT, eps=0.05).images)
    jax.effects_barrier()
    above = np.stack(MARGINS)
    assert above.shape == (200, COUNT) and np.isinf(above[0]).all()
    assert (np.diff(above[1:], axis=0) >= 0).all() and np.unique(above[:, 0]).size > 5


# ------------------------------------------------------------------------------------------------------------ its moves


def test_the_schedule_of_sides_by_hand() -> None:
    """Of 10,000 queries on 224 x 224: 0.8 of the picture until query 10, then a half, ...; scaled to fewer."""
    sides = [
        int(blackbox.side_at(jnp.int32(i), 10_000, 0.8, (224, 224, 3), 1))
        for i in (0, 10, 11, 51, 201, 8001, 9999)
    ]
    assert sides == [round(224 * (0.8 * 0.5**n) ** 0.5) for n in (0, 0, 1, 2, 3, 9, 9)]
    assert int(blackbox.side_at(jnp.int32(26), 5_000, 0.8, (224, 224, 3), 1)) == sides[3]
    assert int(blackbox.side_at(jnp.int32(9_999), 10_000, 0.1, (8, 8, 3), 3)) == 3
    assert int(blackbox.side_at(jnp.int32(0), 10_000, 1.0, (8, 6, 3), 1)) == 6


def test_bumps_by_hand() -> None:
    """A window of 4: two halves of 2 x 4, the rings around each one's middle 1, 1/4 and 1/9 high in sum from outside in."""
    i, j = jnp.meshgrid(jnp.arange(4), jnp.arange(4), indexing="ij")
    look = [1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9, 1 / 9]
    half = np.asarray([[look[2], look[1], look[1], look[1]], [look[2], look[1], look[0], look[1]]])
    np.testing.assert_allclose(
        jax.jit(blackbox.bumps)(i, j, 4), np.concatenate([half, -half]), rtol=1e-6
    )


JITTED = {norm: tuple(jax.jit(move) for move in moves) for norm, moves in blackbox.MOVES.items()}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@settings(max_examples=30)
@given(seed=st.integers(0, 999), side=st.integers(1, SIZE))
def test_a_move_changes_squares_and_stays_in_ball_and_box(norm: str, seed: int, side: int) -> None:
    begin, move = JITTED[norm]
    center, eps = jnp.asarray(IMAGES01[seed % COUNT]), jnp.float32(EPS[norm])
    x = begin(jax.random.key(seed), center, eps)
    new = move(jax.random.key(seed + 1), x, center, eps, jnp.int32(side))
    for picture in map(np.asarray, (x, new)):
        assert np.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 1
        far = {"linf": np.abs(picture - center).max(), "l2": np.linalg.norm(picture - center)}[norm]
        assert far <= EPS[norm] * (1 + 1e-5)
    changed = np.argwhere((np.asarray(new) != np.asarray(x)).any(axis=2))
    squares = 1 if norm == "linf" else 2
    assert len(changed) <= squares * side * side
    if squares == 1 and len(changed):
        assert (np.ptp(changed, axis=0) < side).all()


def test_every_place_of_a_square_is_drawn() -> None:
    corners = jax.vmap(lambda key: blackbox._corner(key, jnp.int32(6), (8, 7, 3)))(
        jax.random.split(KEY, 200)
    )
    assert {tuple(c) for c in np.asarray(corners).tolist()} == {
        (i, j) for i in range(3) for j in range(2)
    }


# -------------------------------------------------------------------------------------------------------------- errors


def test_bad_input_is_told() -> None:
    with pytest.raises(ValueError, match="works in the norms linf, l2; got 'l1'"):
        attacks.make(blackbox.square(), network, norm=norms.L1, goal=goals.UNTARGETED)
    for share in (0.0, 1.5):
        with pytest.raises(
            ValueError, match=f"share is a part of the picture, in .0, 1.; got {share}"
        ):
            blackbox.square(share=share)
