"""Gradient ascent: optimizers, the best point, independent images, one compilation per sweep."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import toys
from tl import optim
from tl.ascent.ascend import OPTIMIZERS, Ascent, ascend, direction

KEY = jax.random.key(0)
TOPS = jnp.asarray([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]])


def slope(theta: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.sum(theta, axis=1)


def hill(theta: jax.Array, key: jax.Array) -> jax.Array:
    return -jnp.sum(jnp.square(theta - TOPS[: theta.shape[0]]), axis=1)


@pytest.mark.parametrize(
    ("name", "step_size"),
    [("sgd", 0.1), ("momentum", 0.02), ("adam", 0.1), ("sign", 0.05), ("lbfgs", 1.0)],
)
def test_every_optimizer_reaches_the_top_of_a_hill(name: str, step_size: float) -> None:
    decay = lambda progress: step_size * (1.0 - 0.9 * progress)
    theta = jnp.zeros((2, 3))
    path = ascend(hill, theta, KEY, steps=100, optimizer=OPTIMIZERS[name](), step_size=decay)
    # Scores are negative: at most a hundredth of the first score is left.
    assert (path.scores[-1] > 0.01 * path.scores[0]).all()
    np.testing.assert_allclose(path.last, TOPS, atol=0.06)
    np.testing.assert_allclose(path.scores[0], hill(theta, KEY))
    np.testing.assert_allclose(path.scores[-1], hill(path.last, KEY), rtol=1e-5)


def test_the_tests_cover_every_optimizer() -> None:
    assert set(OPTIMIZERS) == {"sgd", "momentum", "adam", "sign", "lbfgs"}


def test_the_first_step_of_every_optimizer_equals_the_formula() -> None:
    """At 0 the gradient is 2 TOPS, so the first step of each optimizer is known."""
    # Both gradients are longer than one.
    unit = TOPS / jnp.linalg.norm(TOPS, axis=1, keepdims=True)
    expected = {
        "sgd": 2 * TOPS,
        "momentum": 2 * TOPS,
        "adam": jnp.sign(TOPS),
        "sign": jnp.sign(TOPS),
        "lbfgs": unit,
    }
    for name, uphill in expected.items():
        path = ascend(
            hill, jnp.zeros((2, 3)), KEY, steps=1, optimizer=OPTIMIZERS[name](), step_size=0.25
        )
        np.testing.assert_allclose(path.last, 0.25 * uphill, rtol=1e-5, err_msg=name)


def test_momentum_adds_a_decaying_sum_of_gradients() -> None:
    path = ascend(
        slope, jnp.zeros((1, 1)), KEY, steps=3, optimizer=OPTIMIZERS["momentum"](), step_size=1.0
    )
    np.testing.assert_allclose(path.scores[:, 0], [0, 1, 1 + 1.9, 1 + 1.9 + 2.71], rtol=1e-6)


@given(st.floats(0.01, 1.5), st.integers(1, 8))
def test_best_has_the_highest_score(step_size: float, steps: int) -> None:
    """Steps larger than 1 overshoot and scores fall, so the best is not the last."""
    path = RUN[steps](jnp.zeros((2, 3)), jnp.float32(step_size))
    np.testing.assert_allclose(hill(path.best, KEY), path.scores.max(axis=0), rtol=1e-6)
    if step_size > 1.01:
        np.testing.assert_array_equal(path.best, np.zeros((2, 3)))
        assert (path.scores[-1] < path.scores[0]).all()


def jitted(steps: int) -> Any:
    def run(theta: jax.Array, step_size: jax.Array) -> Ascent:
        return ascend(
            hill, theta, KEY, steps=steps, optimizer=OPTIMIZERS["sgd"](), step_size=step_size
        )

    return jax.jit(run)


RUN = {steps: jitted(steps) for steps in range(9)}


def test_zero_steps_give_the_start() -> None:
    start = jnp.asarray([[0.5, 0.5, 0.5]])
    path = RUN[0](start, jnp.float32(0.1))
    np.testing.assert_array_equal(path.last, start)
    np.testing.assert_array_equal(path.best, start)
    assert path.scores.shape == (1, 1)
    np.testing.assert_array_equal(path.scores[0], hill(start, KEY))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_images_do_not_depend_on_each_other(name: str) -> None:
    """A batch gives the same as each image alone: no optimizer may normalize over the batch."""

    @jax.jit
    def run(theta: jax.Array, tops: jax.Array) -> Ascent:
        score = lambda x, key: -jnp.sum(jnp.square(x - tops), axis=1)
        return ascend(score, theta, KEY, steps=5, optimizer=OPTIMIZERS[name](), step_size=0.07)

    tops = TOPS * jnp.asarray([[1.0], [100.0]])
    together = run(jnp.zeros((2, 3)), tops)
    for i in range(2):
        alone = run(jnp.zeros((1, 3)), tops[i : i + 1])
        np.testing.assert_allclose(together.last[i], alone.last[0], rtol=1e-5)
        np.testing.assert_allclose(together.scores[:, i], alone.scores[:, 0], rtol=1e-5)


def test_a_sweep_over_step_sizes_compiles_once() -> None:
    run = jitted(4)
    ends = [run(jnp.zeros((2, 3)), jnp.float32(size)).last for size in (0.01, 0.1, 0.3)]
    assert run._cache_size() == 1
    assert len({float(end[0, 0]) for end in ends}) == 3


def test_each_step_has_its_own_key_and_equal_keys_give_equal_scores() -> None:
    noise = lambda theta, key: theta[:, 0] * 0 + jax.random.normal(key, theta.shape[:1])

    def run(seed: int) -> Ascent:
        return ascend(
            noise,
            jnp.zeros((2, 1)),
            jax.random.key(seed),
            steps=6,
            optimizer=OPTIMIZERS["sgd"](),
            step_size=1.0,
        )

    once, again, other = run(0), run(0), run(1)
    np.testing.assert_array_equal(once.scores, again.scores)
    assert not np.isin(once.scores, other.scores).any()
    assert len(np.unique(once.scores)) == once.scores.size


def test_every_step_is_projected() -> None:
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


def test_the_step_size_is_a_function_of_the_completed_share() -> None:
    path = ascend(
        slope, jnp.zeros((1, 1)), KEY, steps=4, optimizer=optax.identity(), step_size=lambda d: d
    )
    np.testing.assert_allclose(np.diff(path.scores[:, 0]), [0, 0.25, 0.5, 0.75], rtol=1e-6)


def test_a_nan_score_is_never_the_best() -> None:
    cliff = lambda theta, key: jnp.where(theta[:, 0] > 0.25, jnp.nan, theta[:, 0])
    path = ascend(
        cliff, jnp.zeros((1, 1)), KEY, steps=5, optimizer=OPTIMIZERS["sign"](), step_size=0.1
    )
    np.testing.assert_allclose(path.best, [[0.2]], rtol=1e-6)


# ---- lbfgs ----


def test_lbfgs_adapts_to_the_curvature() -> None:
    """Curvatures from 1 to 1000: 30 steps reach the top, which SGD does not at any stable step."""
    scales = jnp.asarray([[1.0, 10.0, 100.0, 1000.0]])
    score = lambda theta, key: -0.5 * jnp.sum(scales * jnp.square(theta - 1.0), axis=1)

    def gap(name: str, step_size: float) -> np.ndarray:
        path = ascend(
            score,
            jnp.zeros((1, 4)),
            KEY,
            steps=30,
            optimizer=OPTIMIZERS[name](),
            step_size=step_size,
        )
        return np.abs(path.last[0] - 1.0)

    assert gap("lbfgs", 1.0).max() < 1e-2
    assert gap("sgd", 2 / 1001).max() > 0.9


def test_lbfgs_never_steps_downhill() -> None:
    """It uses the gradient where the estimated curvature points downhill: bowl, saddle, waves."""
    bends = jnp.asarray([[1.0, 4.0, 9.0], [-1.0, 4.0, -9.0], [0.0, 0.0, 0.0]])
    waves = jnp.asarray([0.0, 0.0, 1.0])

    def score(theta: jax.Array) -> jax.Array:
        return jnp.sum(0.5 * bends * theta**2, axis=1) + waves * jnp.sum(
            jnp.sin(3.0 * theta), axis=1
        )

    uphill = jax.jit(jax.grad(lambda theta: jnp.sum(score(theta))))
    raw = optax.scale_by_lbfgs(memory_size=10)
    ours = OPTIMIZERS["lbfgs"]()
    steps = {"ours": ours.update, "optax's": jax.vmap(raw.update)}
    states = {"ours": ours.init, "optax's": jax.vmap(raw.init)}
    slopes: dict[str, list[np.ndarray]] = {"ours": [], "optax's": []}
    for name, update in steps.items():
        jitted = jax.jit(
            lambda g, s, x, update=update: optim.update(
                optax.GradientTransformation(ours.init, update), g, s, x
            )
        )
        theta = jnp.asarray([[0.1, -0.2, 0.3], [0.4, 0.1, -0.2], [0.3, -0.7, 1.1]])
        opt_state = states[name](theta)
        for _ in range(20):
            gradient = uphill(theta)
            step, opt_state = jitted(gradient if name == "ours" else -gradient, opt_state, theta)
            step = step if name == "ours" else -step
            slopes[name].append(np.sum(np.asarray(step) * np.asarray(gradient), axis=1))
            theta = theta + 0.1 * step / jnp.maximum(
                1.0, jnp.linalg.norm(step, axis=1, keepdims=True)
            )
    assert (np.array(slopes["ours"]) > 0).all()
    # Otherwise this test could not fail.
    assert (np.array(slopes["optax's"])[:, :2] < 0).any(axis=0).all()


def test_lbfgs_stays_at_a_zero_gradient() -> None:
    flat = lambda theta, key: jnp.sum(0.0 * theta, axis=1)
    path = ascend(flat, TOPS, KEY, steps=12, optimizer=OPTIMIZERS["lbfgs"](), step_size=1.0)
    np.testing.assert_array_equal(path.last, TOPS)


# ---- keys, first steps, frames ----


@pytest.mark.parametrize("name", ["sgd", "lbfgs"])
def test_with_one_key_per_image_an_image_gives_the_same_alone_and_in_a_batch(name: str) -> None:
    """The score's noise depends on the image's key, not on its batch."""

    def noisy(theta: jax.Array, keys: jax.Array) -> jax.Array:
        return -jnp.sum(jnp.square(theta - jax.vmap(toys.uniform)(keys)[:, None]), axis=1)

    @jax.jit
    def run(keys: jax.Array) -> Ascent:
        theta = jnp.zeros((keys.shape[0], 3))
        return ascend(noisy, theta, keys, steps=5, optimizer=OPTIMIZERS[name](), step_size=0.2)

    keys = jax.random.split(KEY, 3)
    together = run(keys)
    for i in range(3):
        alone = run(keys[i : i + 1])
        np.testing.assert_allclose(together.scores[:, i], alone.scores[:, 0], rtol=1e-5)
        np.testing.assert_allclose(together.last[i], alone.last[0], rtol=1e-5)
    # Each step and each image has its own noise.
    assert len(np.unique(together.scores)) == together.scores.size


def test_the_first_steps_may_maximize_another_score() -> None:
    """Slope 1 for two steps, then 10, with step sizes 0, 1/4, 2/4, 3/4."""
    steeper = lambda theta, key: 10.0 * slope(theta, key)

    def run(first: tuple | None) -> Ascent:
        start = jnp.zeros((1, 1))
        return ascend(
            steeper,
            start,
            KEY,
            steps=4,
            optimizer=optax.identity(),
            step_size=lambda d: d,
            first=first,
        )

    path = run((2, slope))
    np.testing.assert_allclose(path.scores[:, 0], [0.0, 0.0, 2.5, 52.5, 127.5], rtol=1e-6)
    np.testing.assert_allclose(path.last, [[12.75]], rtol=1e-6)
    # The last score is always that of the final objective.
    scores = run((9, slope)).scores[:, 0]
    np.testing.assert_allclose(scores, [0.0, 0.0, 0.25, 0.75, 15.0], rtol=1e-6)
    for a, b in zip(run((0, slope)), run(None), strict=True):
        np.testing.assert_array_equal(a, b)


# Adam has a step count, L-BFGS a memory.
@pytest.mark.parametrize("name", ["adam", "lbfgs"])
def test_state_rate_and_keys_continue_when_the_score_changes(name: str) -> None:
    """With the same score before and after the change, the result is that of a single loop."""
    noisy = lambda theta, key: hill(theta + 0.1 * toys.uniform(key), key)

    def run(first: tuple | None) -> Ascent:
        rate = lambda d: 0.1 * (1.0 - 0.9 * d)
        start = jnp.zeros((2, 3))
        return ascend(
            noisy,
            start,
            KEY,
            steps=7,
            optimizer=OPTIMIZERS[name](),
            step_size=rate,
            first=first,
            frames=3,
        )

    for a, b in zip(run((3, noisy)), run(None), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "frames", "places"),
    [
        (6, 3, [2, 4, 6]),
        (7, 3, [3, 5, 7]),
        (4, 4, [1, 2, 3, 4]),
        (5, 1, [5]),
        (3, 0, []),
        (0, 0, []),
    ],
)
def test_frames_are_evenly_spaced_and_end_with_the_last_point(
    steps: int, frames: int, places: list[int]
) -> None:
    start = jnp.zeros((2, 1))
    path = ascend(
        slope, start, KEY, steps=steps, optimizer=OPTIMIZERS["sgd"](), step_size=1.0, frames=frames
    )
    assert path.frames.shape == (frames, 2, 1)
    np.testing.assert_array_equal(path.frames[:, 1, 0], places)
    if frames:
        np.testing.assert_array_equal(path.frames[-1], path.last)
