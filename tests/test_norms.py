"""Norms: projection, rounding to 8 bits, starts and directions, against float64 references."""

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
from tl.attacks import norms

SIZE, COUNT = 6, 4
NAMES = sorted(norms.NORMS)
N = 3 * SIZE * SIZE
LARGEST = {"linf": 1.0, "l2": N**0.5, "l1": float(N)}
seeds = st.integers(0, 999)
shares = st.sampled_from([0.0, 1e-4, 1e-3, 0.01, 0.1, 0.5, 1.0]) | st.floats(0, 1)
distances = st.sampled_from([1e-4, 0.002, 0.02, 0.3, 2.0])


@functools.cache
def center(seed: int) -> jax.Array:
    """Noise with a black and a white stripe at the bounds, f32[b h w 3]."""
    images = np.random.default_rng(seed).integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
    images[:, 0], images[:, 1] = 0, 255
    return jnp.asarray(pixels.to_images01(images))


def point(seed: int, std: float) -> jax.Array:
    """A point near the center, in or outside of the ball and of [0, 1]."""
    return center(seed) + std * jax.random.normal(jax.random.key(seed), (COUNT, SIZE, SIZE, 3))


@functools.cache
def jitted(name: str, function: str) -> Any:
    return jax.jit(getattr(norms.get(name), function))


def assert_inside(name: str, x: jax.Array, seed: int, eps: float) -> None:
    distance = np.asarray(jitted(name, "distance")(x, center(seed)))
    assert (distance <= eps * (1 + 1e-5) + 2e-6).all()
    assert x.min() >= 0 and x.max() <= 1


# ---- projection ----


def project_in_float64(name: str, x: np.ndarray, c: np.ndarray, eps: float) -> np.ndarray:
    """Projection of one image by bisection of Lagrange's multiplier."""
    x, c = x.astype(np.float64), c.astype(np.float64)
    if name == "linf":
        return np.clip(x, np.maximum(c - eps, 0), np.minimum(c + eps, 1))
    d = x - c
    if name == "l2":
        at = lambda m: np.clip(c + d / (1 + m), 0, 1)
        size = lambda y: np.sqrt(np.square(y - c).sum())
    else:
        at = lambda m: np.clip(c + np.sign(d) * np.maximum(np.abs(d) - m, 0), 0, 1)
        size = lambda y: np.abs(y - c).sum()
    if size(at(0)) <= eps:
        return at(0)
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if size(at(middle)) <= eps else (middle, high)
    return at(high)


@pytest.mark.parametrize("name", NAMES)
@given(share=shares, std=distances, seed=seeds)
def test_projection_equals_a_reference_in_float64(
    name: str, share: float, std: float, seed: int
) -> None:
    eps = share * LARGEST[name]
    x, c = point(seed, std), center(seed)
    projected = jitted(name, "project")(x, c, jnp.float32(eps))
    assert_inside(name, projected, seed, eps)
    rows = zip(np.asarray(x), np.asarray(c), strict=True)
    expected = np.stack([project_in_float64(name, a, b, eps) for a, b in rows])
    np.testing.assert_allclose(projected, expected, atol=2e-6 * max(1.0, std))
    again = jitted(name, "project")(projected, c, jnp.float32(eps))
    np.testing.assert_allclose(again, projected, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
@given(share=shares, std=distances, seed=seeds)
def test_no_other_point_of_the_ball_is_nearer(
    name: str, share: float, std: float, seed: int
) -> None:
    """The variational inequality: seen from the projection, every other point lies away from x."""
    eps = share * LARGEST[name]
    x, c = point(seed, std), center(seed)
    projected = np.asarray(jitted(name, "project")(x, c, jnp.float32(eps)), np.float64)
    away = np.asarray(x, np.float64) - projected
    rng = np.random.default_rng(seed)
    for _ in range(20):
        d = rng.normal(size=c.shape) * rng.integers(0, 2, c.shape) + rng.choice([0, 1]) * away
        d = (np.clip(np.asarray(c) + d, 0, 1) - np.asarray(c)).astype(np.float32)
        length = np.asarray(jitted(name, "distance")(d, np.zeros_like(d)))
        factor = np.minimum(1, eps / np.maximum(length, 1e-9)).reshape(-1, 1, 1, 1)
        other = np.asarray(c) + d.astype(np.float64) * factor
        inner = np.sum(away * (other - projected), axis=(1, 2, 3))
        assert (inner <= 2e-5 * max(1.0, std) ** 2 * N).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("function", ["project", "quantize"])
def test_each_image_may_have_its_own_eps(name: str, function: str) -> None:
    eps = np.float32([0.0, 0.01, 0.1, 1.0]) * np.float32(LARGEST[name])
    x, c = point(1, 0.3), center(1)
    together = jitted(name, function)(x, c, jnp.asarray(eps))
    for i, radius in enumerate(eps):
        same = jitted(name, function)(x, c, jnp.float32(radius))
        np.testing.assert_allclose(together[i], same[i], atol=1e-6)


# ---- rounding to 8 bits ----


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(share=shares, std=distances, seed=seeds)
def test_rounded_images_are_8_bit_and_in_the_ball(
    name: str, share: float, std: float, seed: int
) -> None:
    eps = share * LARGEST[name]
    c, radius = center(seed), jnp.float32(eps)
    inside = jitted(name, "project")(point(seed, std), c, radius)
    for x in (inside, point(seed, std)):
        rounded = jitted(name, "quantize")(x, c, radius)
        assert_inside(name, rounded, seed, eps)
        eight_bit = pixels.to_images01(pixels.to_uint8(np.asarray(rounded)))
        np.testing.assert_array_equal(eight_bit, rounded)
        again = jitted(name, "quantize")(rounded, c, radius)
        np.testing.assert_array_equal(again, rounded)
    # No value changes in the opposite direction.
    product = (np.asarray(rounded) - np.asarray(c)) * (np.asarray(x) - np.asarray(c))
    assert (product >= -1e-6).all()


@pytest.mark.parametrize("name", ["l1", "l2"])
@pytest.mark.parametrize("levels", [3.0, 20.0, 200.0])
def test_rounding_keeps_the_length_of_a_change(name: str, levels: float) -> None:
    """3 levels over 108 values are small changes; rounding to the nearest would remove them."""
    c = jnp.full((COUNT, SIZE, SIZE, 3), norms.GRID[128])
    d = jax.random.normal(jax.random.key(0), c.shape)
    eps = jnp.float32(levels / 255)
    x = c + eps * d / norms.get(name).distance(d, jnp.zeros_like(d)).reshape(-1, 1, 1, 1)
    rounded = jitted(name, "quantize")(x, c, eps)
    length = norms.get(name).distance(rounded, c)
    assert (length <= eps * (1 + 1e-5)).all()
    assert (length >= eps - 1.01 / 255).all()
    assert jnp.abs(rounded - c).max() <= 127 / 255


def test_l2_rounding_is_the_best_of_all_whole_changes() -> None:
    """No change by 0 to 3 levels of six values that is as short is better aligned with it."""
    rng = np.random.default_rng(0)
    c = np.full((1, 1, 2, 3), norms.GRID[100])
    options = np.stack(np.meshgrid(*[np.arange(4)] * 6), -1).reshape(-1, 6)
    for _ in range(20):
        t = rng.uniform(0.0, 1.5, 6)
        x = (c + (t / 255).reshape(c.shape)).astype(np.float32)
        rounded = jitted("l2", "quantize")(jnp.asarray(x), jnp.asarray(c), jnp.float32(1))
        change = np.rint((np.asarray(rounded) - c) * 255).reshape(6)
        as_short = options[np.square(options).sum(1) <= np.square(change).sum()]
        assert change @ t >= (as_short @ t).max() - 1e-3


@pytest.mark.parametrize(
    # The length of the change is 1.29 levels in L2.
    ("name", "levels", "expected"),
    [("l1", 2.5, [1, 1, 0]), ("l2", 1.42, [1, 0, 0])],
)
def test_rounding_removes_the_smallest_changes_first(
    name: str, levels: float, expected: list[int]
) -> None:
    """Changes of 0.9, 0.7 and 0.6 levels round up, and eps has room for some of them."""
    c = np.full((1, 1, 1, 3), norms.GRID[100])
    x = (c + np.float32([0.9, 0.7, 0.6]) / 255).astype(np.float32)
    eps = jnp.float32(levels / 255)
    rounded = jitted(name, "quantize")(jnp.asarray(x), jnp.asarray(c), eps)
    assert np.rint((np.asarray(rounded) - c) * 255).ravel().tolist() == expected


# ---- starts and directions ----


@pytest.mark.parametrize("name", NAMES)
@given(share=shares, seed=seeds)
def test_starts_are_in_the_ball_and_depend_on_the_image_and_its_key_only(
    name: str, share: float, seed: int
) -> None:
    eps = jnp.float32(share * LARGEST[name])
    c, keys = center(seed), norms.per_image_keys(jax.random.key(seed), COUNT)
    x = jitted(name, "start")(keys, c, eps)
    assert_inside(name, x, seed, float(eps))
    reversed_ = jitted(name, "start")(keys[::-1], c[::-1], eps)
    np.testing.assert_allclose(reversed_[::-1], x, atol=1e-6)
    other_keys = norms.per_image_keys(jax.random.key(1000), COUNT)
    other = jitted(name, "start")(other_keys, c, eps)
    assert eps < 1e-3 or (np.asarray(x) != np.asarray(other)).any()


@pytest.mark.parametrize("name", NAMES)
def test_starts_are_uniform_over_the_ball_or_in_l2_over_the_length(name: str) -> None:
    """In three dimensions, a share r ** 3 of a ball lies within r times its radius."""
    c = jnp.full((4000, 1, 1, 3), 0.5)
    x = jitted(name, "start")(jax.random.key(0), c, jnp.float32(0.4))
    distance = np.asarray(norms.get(name).distance(x, c)) / 0.4
    for r in (0.3, 0.5, 0.8):
        assert abs((distance <= r).mean() - (r if name == "l2" else r**3)) < 0.02
    assert np.abs(np.asarray(jnp.mean(x - c, axis=0))).max() < 0.01


@pytest.mark.parametrize("name", NAMES)
@given(scale=st.sampled_from([1e-30, 1e-10, 1.0, 1e10]), seed=seeds)
def test_directions_have_unit_length_and_point_uphill(name: str, scale: float, seed: int) -> None:
    gradient = jax.random.normal(jax.random.key(seed), (COUNT, SIZE, SIZE, 3)) * scale
    step = jitted(name, "direction")(gradient)
    length = jitted(name, "distance")(step, jnp.zeros_like(step))
    np.testing.assert_allclose(length, 1.0, rtol=1e-5)
    assert (jnp.sum(step * (gradient / scale), axis=(1, 2, 3)) > 0).all()
    np.testing.assert_array_equal(jitted(name, "direction")(jnp.zeros_like(gradient)), 0.0)


@pytest.mark.parametrize(
    # L1 changes 1 % of the values, two of 200.
    ("name", "expected"),
    [("l2", [0.6, -0.8, 0.0]), ("l1", [0.5, -0.5, 0.0]), ("linf", [1.0, -1.0, 0.0])],
)
def test_directions_equal_values_by_hand(name: str, expected: list[float]) -> None:
    gradient = jnp.asarray([[3.0, -4.0, 0.0] + [0.0] * 197]).reshape(1, 1, 1, 200)
    direction = norms.get(name).direction(gradient).ravel()[:3]
    np.testing.assert_allclose(direction, expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "expected"), [("linf", 4.0), ("l2", 5.0), ("l1", 7.0)])
def test_distances_equal_values_by_hand(name: str, expected: float) -> None:
    x = jnp.zeros((2, 1, 2, 3)).at[0, 0, 0, 0].set(3.0).at[0, 0, 1, 2].set(-4.0)
    assert norms.get(name).distance(x, jnp.zeros_like(x)).tolist() == [expected, 0.0]


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown norm 'lnif'; nearest: 'linf'"):
        norms.get("lnif")


@pytest.mark.optimized
def test_eight_bit_values_have_the_bits_of_the_grid():
    levels = jnp.array([*range(256), -3, 300, jnp.nan, 7.9], jnp.float32)
    expected = np.append(norms.GRID, norms.GRID[[0, 255, 0, 7]])
    for function in (norms._eight_bit, jax.jit(norms._eight_bit)):
        np.testing.assert_array_equal(function(levels), expected)
