"""Square: in the ball, by the paper's moves, better than noise, and without a gradient."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl import pixels
from tl.attacks import blackbox, checks, goals, norms

SIZE, CLASSES, COUNT = 8, 4, 6
N = 3 * SIZE * SIZE
KEY = jax.random.key(3)
GOALS = {"targeted": goals.TARGETED, "untargeted": goals.UNTARGETED}
CASES = [("linf", "untargeted"), ("l2", "untargeted"), ("linf", "targeted")]
EPS = {"linf": 16 / 255, "l2": 1.0}
IMAGES8 = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
IMAGES8[:, 0] = [[0], [255], [0], [255]] * 2
IMAGES01 = pixels.to_images01(IMAGES8)
TRACED: list[tuple[int, ...]] = []


def network(variables: Any, images01: jax.Array) -> jax.Array:
    """Two layers over a picture in 16 levels: no gradient anywhere."""
    TRACED.append(images01.shape)
    x = jnp.round(images01 * 16) / 16
    return jnp.tanh((x.reshape(images01.shape[0], -1) - 0.5) @ variables["in"]) @ variables["out"]


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


NET = {"in": normal(1, N, 16) / 6, "out": normal(2, 16, CLASSES)}
TOP = np.asarray(network(NET, jnp.asarray(IMAGES01))).argmax(axis=1)
RIGHT = goals.members(TOP[:, None].tolist(), CLASSES)
ASIDE = goals.members(((TOP + 1) % CLASSES)[:, None].tolist(), CLASSES)
MEMBERS = {"untargeted": RIGHT, "targeted": ASIDE}


@functools.cache
def find(norm: str, goal: str = "untargeted", *, on_grid: bool = True, **counts: int) -> Any:
    counts = {"steps": 200, **counts}
    return blackbox.find_square(network, norm=norms.get(norm), goal=GOALS[goal], on_grid=on_grid, **counts)


# --------------------------------------------------------------------------------------------------------- the attack


@pytest.mark.parametrize(("norm", "goal"), CASES)
def test_results_are_8_bit_pictures_in_the_ball_and_success_is_theirs(norm: str, goal: str) -> None:
    run, members = find(norm, goal), MEMBERS[goal]
    for i, share in enumerate((1.0, 0.3, 0.0)):
        TRACED.clear()
        result = run(NET, jax.random.key(i), IMAGES01, members, eps=share * EPS[norm])
        assert bool(TRACED) == (i == 0)  # a sweep compiles once
        images = np.asarray(result.images)
        assert images.dtype == np.float32 and images.min() >= 0 and images.max() <= 1
        np.testing.assert_array_equal(pixels.to_images01(pixels.to_uint8(images)), images)
        assert (norms.get(norm).distance(images, IMAGES01) <= share * EPS[norm] * (1 + 1e-5) + 1e-6).all()
        logits = network(NET, result.images)
        np.testing.assert_array_equal(result.success, GOALS[goal].success(logits, members))
        np.testing.assert_allclose(result.score, GOALS[goal].score(logits, members), rtol=1e-4, atol=1e-5)
        clean = GOALS[goal].score(network(NET, jnp.asarray(IMAGES01)), members)
        assert (np.asarray(result.success) | (np.asarray(result.score) >= np.asarray(clean) - 1e-6)).all()
        if share == 0:
            np.testing.assert_array_equal(images, IMAGES01)


@pytest.mark.parametrize(("norm", "goal"), CASES)
def test_queries_are_counted_until_the_goal_is_met(norm: str, goal: str) -> None:
    members = MEMBERS[goal].copy()
    members[0] = ~members[0]  # met as it is
    queries, success = find(norm, goal)(NET, KEY, IMAGES01, members, eps=EPS[norm])[3:0:-2]
    print(queries, success)
    assert queries[0] == 0 and success[0]
    assert (np.asarray(queries)[~np.asarray(success)] == 200).all()
    assert (np.asarray(queries)[1:] >= 1).all()
    assert (np.asarray(queries)[np.asarray(success)] < 200).all()
    assert (np.asarray(queries) > 1).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_are_attacked_apart_and_keys_repeat(norm: str) -> None:
    run = functools.partial(find(norm), eps=0.5 * EPS[norm])
    together = run(NET, KEY, IMAGES01, RIGHT)
    np.testing.assert_array_equal(together.images, run(NET, KEY, IMAGES01, RIGHT).images)
    assert (np.asarray(together.images) != np.asarray(run(NET, jax.random.key(9), IMAGES01, RIGHT).images)).any()
    neighbours = IMAGES01.copy()
    neighbours[1:] = 1 - neighbours[1:]
    np.testing.assert_array_equal(run(NET, KEY, neighbours, RIGHT).images[0], together.images[0])
    if norm == "l2":
        return  # compiles once more for one picture: once is enough
    alone = run(NET, norms.own_keys(KEY, COUNT)[2:3], IMAGES01[2:3], RIGHT[2:3])
    np.testing.assert_array_equal(alone.images[0], together.images[2])


def test_another_start_is_never_worse() -> None:
    one, two = (find("linf", steps=20, restarts=r)(NET, KEY, IMAGES01, RIGHT, eps=8 / 255) for r in (1, 2))
    assert (two.success >= one.success).all()
    assert (np.asarray(two.queries)[~np.asarray(two.success)] == 40).all()
    assert two.success.sum() > one.success.sum() or (np.asarray(two.queries) > np.asarray(one.queries)).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_squares_beat_noise(norm: str) -> None:
    """Fifty noisy pictures of the same length."""
    eps = 0.4 * EPS[norm]
    found = find(norm)(NET, KEY, IMAGES01, RIGHT, eps=eps)
    draw = jax.jit(lambda key: network(NET, checks.noisy(norms.get(norm), key, IMAGES01, eps)))
    noise = [draw(jax.random.key(i)) for i in range(50)]
    lucky = np.mean([(np.argmax(z, axis=1) != TOP) for z in noise])
    print(found.success, lucky)
    assert float(found.success.mean()) > lucky + 0.3


def test_off_the_grid_the_ball_may_be_smaller_than_a_level() -> None:
    run = find("linf", on_grid=False, steps=20)
    images = run(NET, KEY, IMAGES01, ~RIGHT, eps=0.4 / 255).images  # met as it is
    np.testing.assert_array_equal(images, IMAGES01)
    moved = np.abs(np.asarray(run(NET, KEY, IMAGES01, RIGHT, eps=0.4 / 255).images) - IMAGES01)
    assert moved.max() <= 0.4 / 255 + 1e-6


# ------------------------------------------------------------------------------------------------------------ its moves


def test_the_schedule_of_sides_by_hand() -> None:
    """Of 10,000 queries on 224 x 224: 0.8 of the picture until query 10, then a half, ...; scaled to fewer."""
    sides = [
        int(blackbox.side_at(jnp.int32(i), 10_000, 0.8, (224, 224, 3), 1)) for i in (0, 10, 11, 51, 201, 8001, 9999)
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
    np.testing.assert_allclose(jax.jit(blackbox.bumps)(i, j, 4), np.concatenate([half, -half]), rtol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@settings(max_examples=30)
@given(seed=st.integers(0, 999), side=st.integers(1, SIZE))
def test_a_move_changes_squares_and_stays_in_ball_and_box(norm: str, seed: int, side: int) -> None:
    begin, move = (jax.jit(f) for f in blackbox.MOVES[norm])
    center, eps = jnp.asarray(IMAGES01[seed % COUNT]), jnp.float32(EPS[norm])
    x = begin(jax.random.key(seed), center, eps)
    new = move(jax.random.key(seed + 1), x, center, eps, jnp.int32(side))
    for picture in (x, new):
        assert np.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 1
        assert norms.get(norm).distance(picture[None], center[None])[0] <= EPS[norm] * (1 + 1e-5)
    changed = np.argwhere((np.asarray(new) != np.asarray(x)).any(axis=2))
    squares = 1 if norm == "linf" else 2
    assert len(changed) <= squares * side * side
    if squares == 1 and len(changed):
        assert (np.ptp(changed, axis=0) < side).all()


def test_every_place_of_a_square_is_drawn() -> None:
    corners = jax.vmap(lambda key: blackbox._corner(key, jnp.int32(6), (8, 7, 3)))(jax.random.split(KEY, 200))
    assert {tuple(c) for c in np.asarray(corners).tolist()} == {(i, j) for i in range(3) for j in range(2)}


# -------------------------------------------------------------------------------------------------------------- errors


def test_bad_input_is_told() -> None:
    for make in (blackbox.make_square, blackbox.find_square):
        with pytest.raises(ValueError, match="must be at least 1; got 0"):
            make(network, norm=norms.LINF, goal=goals.UNTARGETED, steps=0)
        with pytest.raises(ValueError, match="works in the norms linf, l2; got 'l1'"):
            make(network, norm=norms.L1, goal=goals.UNTARGETED)
        with pytest.raises(ValueError, match="share is a part of the picture, in .0, 1.; got 0"):
            make(network, norm=norms.L2, goal=goals.UNTARGETED, share=0.0)
    with pytest.raises(ValueError, match="must be float32"):
        find("linf")(NET, KEY, IMAGES8, RIGHT, eps=0.1)
    with pytest.raises(ValueError, match="eps is a share"):
        find("linf")(NET, KEY, IMAGES01, RIGHT, eps=8.0)
