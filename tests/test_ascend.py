"""The one climb: uphill for every optimizer, best kept, images apart, one compile for a sweep."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.ascend import OPTIMIZERS, Ascent, ascend, direction

KEY = jax.random.key(0)
TOPS = jnp.asarray([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]])


def slope(theta: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.sum(theta, axis=1)


def hill(theta: jax.Array, key: jax.Array) -> jax.Array:
    return -jnp.sum(jnp.square(theta - TOPS[: theta.shape[0]]), axis=1)


@pytest.mark.parametrize(("name", "step_size"), [("sgd", 0.1), ("momentum", 0.02), ("adam", 0.1), ("sign", 0.05)])
def test_every_optimizer_climbs_a_hill(name: str, step_size: float) -> None:
    fall = lambda done: step_size * (1.0 - 0.9 * done)  # noqa: E731
    theta = jnp.zeros((2, 3))
    path = ascend(hill, theta, KEY, steps=100, optimizer=OPTIMIZERS[name](), step_size=fall)
    assert (path.scores[-1] > 0.01 * path.scores[0]).all()  # scores are negative: within a hundredth of the way
    np.testing.assert_allclose(path.last, TOPS, atol=0.06)
    np.testing.assert_allclose(path.scores[0], hill(theta, KEY))
    np.testing.assert_allclose(path.scores[-1], hill(path.last, KEY), rtol=1e-5)


def test_the_table_is_all_there_is_to_test() -> None:
    assert set(OPTIMIZERS) == {"sgd", "momentum", "adam", "sign"}


def test_one_step_of_each_by_hand() -> None:
    """At 0 the gradient is 2 tops; all four first steps are known."""
    wanted = {"sgd": 2 * TOPS, "momentum": 2 * TOPS, "adam": jnp.sign(TOPS), "sign": jnp.sign(TOPS)}
    for name, uphill in wanted.items():
        path = ascend(hill, jnp.zeros((2, 3)), KEY, steps=1, optimizer=OPTIMIZERS[name](), step_size=0.25)
        np.testing.assert_allclose(path.last, 0.25 * uphill, rtol=1e-5, err_msg=name)


def test_momentum_is_the_heavy_ball() -> None:
    path = ascend(slope, jnp.zeros((1, 1)), KEY, steps=3, optimizer=OPTIMIZERS["momentum"](), step_size=1.0)
    np.testing.assert_allclose(path.scores[:, 0], [0, 1, 1 + 1.9, 1 + 1.9 + 2.71], rtol=1e-6)


@given(st.floats(0.01, 1.5), st.integers(1, 8))
def test_best_is_where_the_highest_score_was(step_size: float, steps: int) -> None:
    """Steps beyond 1 overshoot and climb down again: then the best is not the last."""
    path = RUN[steps](jnp.zeros((2, 3)), jnp.float32(step_size))
    np.testing.assert_allclose(hill(path.best, KEY), path.scores.max(axis=0), rtol=1e-6)
    if step_size > 1.01:
        np.testing.assert_array_equal(path.best, np.zeros((2, 3)))
        assert (path.scores[-1] < path.scores[0]).all()


def climb(steps: int) -> Any:
    def run(theta: jax.Array, step_size: jax.Array) -> Ascent:
        return ascend(hill, theta, KEY, steps=steps, optimizer=OPTIMIZERS["sgd"](), step_size=step_size)

    return jax.jit(run)


RUN = {steps: climb(steps) for steps in range(9)}


def test_no_step_is_the_start() -> None:
    start = jnp.asarray([[0.5, 0.5, 0.5]])
    path = RUN[0](start, jnp.float32(0.1))
    np.testing.assert_array_equal(path.last, start)
    np.testing.assert_array_equal(path.best, start)
    assert path.scores.shape == (1, 1)
    np.testing.assert_array_equal(path.scores[0], hill(start, KEY))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_images_do_not_see_each_other(name: str) -> None:
    """A batch climbs as each image alone: no optimizer may normalise over the batch."""

    def run(theta: jax.Array, tops: jax.Array) -> Ascent:
        score = lambda x, key: -jnp.sum(jnp.square(x - tops), axis=1)  # noqa: E731
        return ascend(score, theta, KEY, steps=5, optimizer=OPTIMIZERS[name](), step_size=0.07)

    tops = TOPS * jnp.asarray([[1.0], [100.0]])
    together = run(jnp.zeros((2, 3)), tops)
    for i in range(2):
        alone = run(jnp.zeros((1, 3)), tops[i : i + 1])
        np.testing.assert_allclose(together.last[i], alone.last[0], rtol=1e-6)
        np.testing.assert_allclose(together.scores[:, i], alone.scores[:, 0], rtol=1e-6)


def test_a_sweep_over_step_sizes_compiles_once() -> None:
    run = climb(4)
    ends = [run(jnp.zeros((2, 3)), jnp.float32(size)).last for size in (0.01, 0.1, 0.3)]
    assert run._cache_size() == 1
    assert len({float(end[0, 0]) for end in ends}) == 3


def test_each_step_has_its_own_key_and_the_same_key_the_same_climb() -> None:
    noise = lambda theta, key: theta[:, 0] * 0 + jax.random.normal(key, theta.shape[:1])  # noqa: E731

    def run(seed: int) -> Ascent:
        return ascend(
            noise, jnp.zeros((2, 1)), jax.random.key(seed), steps=6, optimizer=OPTIMIZERS["sgd"](), step_size=1.0
        )

    once, again, other = run(0), run(0), run(1)
    np.testing.assert_array_equal(once.scores, again.scores)
    assert not np.isin(once.scores, other.scores).any()
    assert len(np.unique(once.scores)) == once.scores.size


def test_projection_after_every_step() -> None:
    path = ascend(
        slope,
        jnp.zeros((1, 2)),
        KEY,
        steps=9,
        optimizer=direction(jnp.sign),
        step_size=0.3,
        project=lambda theta: jnp.minimum(theta, jnp.asarray([[1.0, 0.5]])),
    )
    np.testing.assert_allclose(path.scores[:6, 0], [0, 0.6, 1.1, 1.4, 1.5, 1.5], rtol=1e-6)
    np.testing.assert_array_equal(path.last, [[1.0, 0.5]])


def test_the_rate_sees_the_share_that_is_done() -> None:
    path = ascend(slope, jnp.zeros((1, 1)), KEY, steps=4, optimizer=optax.identity(), step_size=lambda d: d)
    np.testing.assert_allclose(np.diff(path.scores[:, 0]), [0, 0.25, 0.5, 0.75], rtol=1e-6)


def test_a_score_that_is_nan_is_never_the_best() -> None:
    cliff = lambda theta, key: jnp.where(theta[:, 0] > 0.25, jnp.nan, theta[:, 0])  # noqa: E731
    path = ascend(cliff, jnp.zeros((1, 1)), KEY, steps=5, optimizer=OPTIMIZERS["sign"](), step_size=0.1)
    np.testing.assert_allclose(path.best, [[0.2]], rtol=1e-6)
