"""Square: the paper's moves, one query per step, and no gradient.

Its properties as an attack are tested in `test_attacks`.
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
    raise AssertionError("a gradient was computed")


def network(variables: Any, images01: jax.Array) -> jax.Array:
    """Two layers over an image in 16 levels, which raise an error when differentiated."""
    return toys.mlp(variables, sixteen_levels(images01))


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


NET = {"in": normal(1, N, 16) / 6, "out": normal(2, 16, CLASSES)}


@functools.cache
def true_classes() -> np.ndarray:
    top = np.asarray(jax.jit(network)(NET, jnp.asarray(IMAGES01))).argmax(axis=1)
    return goals.class_mask(top[:, None].tolist(), CLASSES)


MARGINS: list[np.ndarray] = []


@functools.cache
def attack(norm: str) -> attacks.Attack:
    """One jitted attack for all tests, with all images in slots; records its margins."""
    search = blackbox.square(steps=200) if norm == "l2" else blackbox.square(steps=20, restarts=2)

    def recorded(task: Any, state: Any) -> Any:
        record = lambda margin: MARGINS.append(np.asarray(margin))
        jax.debug.callback(record, state.margin, ordered=True)
        return search.step(task, state)

    search_ = search._replace(step=recorded)
    return attacks.make(search_, network, norm=norms.get(norm), goal=goals.UNTARGETED, slots=COUNT)


# ---- the attack ----


def test_a_step_is_a_query_and_success_ends_the_queries() -> None:
    class_mask = true_classes().copy()
    class_mask[0] = ~class_mask[0]  # the clean image meets the goal
    steps, success = [], []
    for eps in (1.0, 0.25):
        result = attack("l2")(NET, KEY, IMAGES01, class_mask, eps=eps)
        steps, success = steps + result.steps.tolist()[1:], success + result.success.tolist()[1:]
        assert result.success[0] and result.steps[0] == 0
    assert 0 < sum(success) < len(success)
    rows = list(zip(steps, success, strict=True))
    assert all((1 <= count < 200) if met else count == 200 for count, met in rows)
    # Some succeed after the start.
    assert max(count for count, met in rows if met) > 1


def test_a_restart_attacks_only_unsolved_images() -> None:
    eps = np.float32([6, 9, 14, 18, 22, 26]) / 255
    result = attack("linf")(NET, KEY, IMAGES01, true_classes(), eps=eps)
    steps, success = np.asarray(result.steps), np.asarray(result.success)
    # Some are solved in the first 20 queries, some in the next 20.
    assert (steps <= 20).any() and ((steps > 20) & success).any()
    assert (steps[~success] == 40).all() and (steps[success] < 40).all() and not success.all()


def test_the_margin_never_falls() -> None:
    MARGINS.clear()
    result = attack("l2")(NET, KEY, IMAGES01, true_classes(), eps=0.05)
    jax.block_until_ready(result.images)
    jax.effects_barrier()
    margins = np.stack(MARGINS)
    assert margins.shape == (200, COUNT) and np.isinf(margins[0]).all()
    assert (np.diff(margins[1:], axis=0) >= 0).all() and np.unique(margins[:, 0]).size > 5


# ---- moves ----


def test_the_side_of_a_square_follows_the_schedule_of_the_paper() -> None:
    """10,000 queries on 224 x 224: 0.8 of the image until query 10, then half of that, and so on.

    The schedule is scaled to other numbers of queries.
    """
    side = lambda i, *arguments: int(blackbox.side_at(jnp.int32(i), *arguments))
    queries = (0, 10, 11, 51, 201, 8001, 9999)
    sides = [side(i, 10_000, 0.8, (224, 224, 3), 1) for i in queries]
    assert sides == [round(224 * (0.8 * 0.5**n) ** 0.5) for n in (0, 0, 1, 2, 3, 9, 9)]
    assert side(26, 5_000, 0.8, (224, 224, 3), 1) == sides[3]
    assert side(9_999, 10_000, 0.1, (8, 8, 3), 3) == 3
    assert side(0, 10_000, 1.0, (8, 6, 3), 1) == 6


def test_the_l2_square_has_two_halves_of_rings() -> None:
    """A window of 4: two halves of 2 x 4, whose rings add 1, 1/4 and 1/9 from outside to inside."""
    i, j = jnp.meshgrid(jnp.arange(4), jnp.arange(4), indexing="ij")
    ring = [1 + 1 / 4 + 1 / 9, 1 / 4 + 1 / 9, 1 / 9]
    half = np.asarray([[ring[2], ring[1], ring[1], ring[1]], [ring[2], ring[1], ring[0], ring[1]]])
    square = jax.jit(blackbox.bumps)(i, j, 4)
    np.testing.assert_allclose(square, np.concatenate([half, -half]), rtol=1e-6)


JITTED = {norm: tuple(jax.jit(move) for move in moves) for norm, moves in blackbox.MOVES.items()}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@settings(max_examples=30)
@given(seed=st.integers(0, 999), side=st.integers(1, SIZE))
def test_a_move_changes_squares_and_stays_in_the_ball(norm: str, seed: int, side: int) -> None:
    begin, move = JITTED[norm]
    center, eps = jnp.asarray(IMAGES01[seed % COUNT]), jnp.float32(EPS[norm])
    x = begin(jax.random.key(seed), center, eps)
    moved = move(jax.random.key(seed + 1), x, center, eps, jnp.int32(side))
    for image in map(np.asarray, (x, moved)):
        assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
        change = np.asarray(image - center)
        distance = np.abs(change).max() if norm == "linf" else np.linalg.norm(change)
        assert distance <= EPS[norm] * (1 + 1e-5)
    changed = np.argwhere((np.asarray(moved) != np.asarray(x)).any(axis=2))
    squares = 1 if norm == "linf" else 2
    assert len(changed) <= squares * side * side
    if squares == 1 and len(changed):
        assert (np.ptp(changed, axis=0) < side).all()


def test_every_position_of_a_square_is_drawn() -> None:
    keys = jax.random.split(KEY, 200)
    corners = jax.vmap(lambda key: blackbox._corner(key, jnp.int32(6), (8, 7, 3)))(keys)
    positions = {(i, j) for i in range(3) for j in range(2)}
    assert {tuple(corner) for corner in np.asarray(corners).tolist()} == positions


# ---- errors ----


def test_an_unsupported_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'l1', expected one of linf, l2"):
        attacks.make(blackbox.square(), network, norm=norms.L1, goal=goals.UNTARGETED)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"`share` of the image must be in .0, 1.: got {share}"):
        blackbox.square(share=share)
