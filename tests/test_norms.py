"""Balls met with the box: inside, nearest, on the 8-bit grid, steepest; against references in float64."""

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


def pictures(seed: int) -> np.ndarray:
    """uint8[b h w 3]: noise, with a black and a white stripe at the ends of the range, where the box cuts."""
    images = np.random.default_rng(seed).integers(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
    images[:, 0], images[:, 1] = 0, 255
    return images


def center(seed: int) -> jax.Array:
    return jnp.asarray(pixels.to_images01(pictures(seed)))


def near(seed: int, spread: float) -> jax.Array:
    """A point beside the center, in the ball or far out of it, and of the box."""
    return center(seed) + spread * jax.random.normal(jax.random.key(seed), (COUNT, SIZE, SIZE, 3))


spreads = st.sampled_from([1e-4, 0.002, 0.02, 0.3, 2.0])


@functools.cache
def jitted(name: str, function: str) -> Any:
    return jax.jit(getattr(norms.get(name), function))


def within(name: str, x: jax.Array, seed: int, eps: float) -> None:
    assert (np.asarray(norms.get(name).distance(x, center(seed))) <= eps * (1 + 1e-5) + 2e-6).all()
    assert x.min() >= 0 and x.max() <= 1


# ------------------------------------------------------------------------------------------------------------- project


def project_in_float64(name: str, x: np.ndarray, c: np.ndarray, eps: float) -> np.ndarray:
    """By two hundred halvings of Lagrange's multiplier, one picture."""
    x, c = x.astype(np.float64), c.astype(np.float64)
    if name == "linf":
        return np.clip(x, np.maximum(c - eps, 0), np.minimum(c + eps, 1))
    d = x - c
    if name == "l2":
        at, size = (
            lambda m: np.clip(c + d / (1 + m), 0, 1),
            lambda y: np.sqrt(np.square(y - c).sum()),
        )
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
@given(share=shares, spread=spreads, seed=seeds)
def test_projection_is_the_nearest_point_of_ball_and_box(
    name: str, share: float, spread: float, seed: int
) -> None:
    eps = share * LARGEST[name]
    x, c = near(seed, spread), center(seed)
    found = jitted(name, "project")(x, c, jnp.float32(eps))
    within(name, found, seed, eps)
    wanted = np.stack(
        [
            project_in_float64(name, a, b, eps)
            for a, b in zip(np.asarray(x), np.asarray(c), strict=True)
        ]
    )
    np.testing.assert_allclose(found, wanted, atol=2e-6 * max(1.0, spread))
    np.testing.assert_allclose(
        jitted(name, "project")(found, c, jnp.float32(eps)), found, atol=2e-6
    )


@pytest.mark.parametrize("name", NAMES)
@given(share=shares, spread=spreads, seed=seeds)
def test_no_point_of_ball_and_box_is_nearer(
    name: str, share: float, spread: float, seed: int
) -> None:
    """Without Lagrange: from the projection, every other point lies away from x (the variational inequality)."""
    eps = share * LARGEST[name]
    x, c = near(seed, spread), center(seed)
    found = np.asarray(jitted(name, "project")(x, c, jnp.float32(eps)), np.float64)
    away = np.asarray(x, np.float64) - found
    rng = np.random.default_rng(seed)
    for _ in range(20):
        other = rng.normal(size=c.shape) * rng.integers(0, 2, c.shape) + rng.choice([0, 1]) * away
        other = np.clip(np.asarray(c) + other, 0, 1) - np.asarray(c)
        length = np.asarray(
            norms.get(name).distance(other.astype(np.float32), np.zeros_like(other, np.float32))
        )
        other = np.asarray(c) + other * np.minimum(1, eps / np.maximum(length, 1e-9)).reshape(
            -1, 1, 1, 1
        )
        assert (
            np.sum(away * (other - found), axis=(1, 2, 3)) <= 2e-5 * max(1.0, spread) ** 2 * N
        ).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_radius_for_each_image(name: str) -> None:
    eps = np.float32([0.0, 0.01, 0.1, 1.0]) * np.float32(LARGEST[name])
    x, c = near(1, 0.3), center(1)
    for function in ("project", "quantize"):
        together = jitted(name, function)(x, c, jnp.asarray(eps))
        for i, radius in enumerate(eps):
            alike = jitted(name, function)(x, c, jnp.float32(radius))
            np.testing.assert_allclose(together[i], alike[i], atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- lattice


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(share=shares, spread=spreads, seed=seeds)
def test_rounded_pictures_are_8_bit_and_in_the_ball(
    name: str, share: float, spread: float, seed: int
) -> None:
    eps = share * LARGEST[name]
    c, radius = center(seed), jnp.float32(eps)
    inside = jitted(name, "project")(near(seed, spread), c, radius)
    for x in (inside, near(seed, spread)):
        found = jitted(name, "quantize")(x, c, radius)
        within(name, found, seed, eps)
        np.testing.assert_array_equal(pixels.to_images01(pixels.to_uint8(np.asarray(found))), found)
        np.testing.assert_array_equal(
            jitted(name, "quantize")(found, c, radius), found
        )  # idempotent
    change = (np.asarray(found) - np.asarray(c)) * (np.asarray(x) - np.asarray(c))
    assert (change >= -1e-6).all()  # nowhere the other way


@pytest.mark.parametrize("name", ["l1", "l2"])
@pytest.mark.parametrize("levels", [3.0, 20.0, 200.0])
def test_rounding_keeps_the_length_of_a_change(name: str, levels: float) -> None:
    """3 levels over 108 channels, 0.3 each: rounded to nearest, nothing would be left; nor is the ball ever left."""
    c = jnp.full((COUNT, SIZE, SIZE, 3), norms.GRID[128])
    way = jax.random.normal(jax.random.key(0), c.shape)
    eps = jnp.float32(levels / 255)
    x = c + eps * way / norms.get(name).distance(way, jnp.zeros_like(way)).reshape(-1, 1, 1, 1)
    found = jitted(name, "quantize")(x, c, eps)
    length = norms.get(name).distance(found, c)
    assert (length <= eps * (1 + 1e-5)).all()
    assert (length >= eps - 1.01 / 255).all()
    most = 127 / 255  # as good as the best whole numbers: below, by search
    assert jnp.abs(found - c).max() <= most


def test_l2_rounding_is_the_best_of_all_whole_changes() -> None:
    """Among all changes by -1, 0, 1, 2 of six channels that are no longer, none points further along the change."""
    rng = np.random.default_rng(0)
    c = np.full((1, 1, 2, 3), norms.GRID[100])
    options = np.stack(np.meshgrid(*[np.arange(4)] * 6), -1).reshape(-1, 6)
    for _ in range(20):
        t = rng.uniform(0.0, 1.5, 6)
        x = (c + (t / 255).reshape(c.shape)).astype(np.float32)
        found = jitted("l2", "quantize")(jnp.asarray(x), jnp.asarray(c), jnp.float32(1))
        change = np.rint((np.asarray(found) - c) * 255).reshape(6)
        as_long = options[np.square(options).sum(1) <= np.square(change).sum()]
        assert change @ t >= (as_long @ t).max() - 1e-3


def test_rounding_takes_back_what_costs_least() -> None:
    """Three channels round up, of 0.9, 0.7 and 0.6 levels; L1 has room for two of them."""
    c = np.full((1, 1, 1, 3), norms.GRID[100])
    x = (c + np.float32([0.9, 0.7, 0.6]) / 255).astype(np.float32)
    found = jitted("l1", "quantize")(jnp.asarray(x), jnp.asarray(c), jnp.float32(2.5 / 255))
    assert np.rint((np.asarray(found) - c) * 255).ravel().tolist() == [1, 1, 0]
    found = jitted("l2", "quantize")(
        jnp.asarray(x), jnp.asarray(c), jnp.float32(1.42 / 255)
    )  # the length itself is 1.29
    assert np.rint((np.asarray(found) - c) * 255).ravel().tolist() == [1, 0, 0]


# --------------------------------------------------------------------------------------------------- start, directions


@pytest.mark.parametrize("name", NAMES)
@given(share=shares, seed=seeds)
def test_starts_are_in_the_ball_and_no_row_depends_on_the_others(
    name: str, share: float, seed: int
) -> None:
    eps = share * LARGEST[name]
    c, keys = center(seed), norms.per_image_keys(jax.random.key(seed), COUNT)
    x = jitted(name, "start")(keys, c, jnp.float32(eps))
    within(name, x, seed, eps)
    turned = jitted(name, "start")(
        keys[::-1], c[::-1], jnp.float32(eps)
    )  # a picture's place and company are nothing
    np.testing.assert_allclose(turned[::-1], x, atol=1e-6)
    other = jitted(name, "start")(
        norms.per_image_keys(jax.random.key(1000), COUNT), c, jnp.float32(eps)
    )
    assert eps < 1e-3 or (np.asarray(x) != np.asarray(other)).any()


@pytest.mark.parametrize("name", NAMES)
def test_starts_are_spread_as_said(name: str) -> None:
    """Of a ball in three dimensions, a share r ** 3 lies within r of its radius, far from the box; in L2 a share r."""
    c = jnp.full((4000, 1, 1, 3), 0.5)
    x = jitted(name, "start")(jax.random.key(0), c, jnp.float32(0.4))
    distance = np.asarray(norms.get(name).distance(x, c)) / 0.4
    for r in (0.3, 0.5, 0.8):
        assert abs((distance <= r).mean() - (r if name == "l2" else r**3)) < 0.02
    assert np.abs(np.asarray(jnp.mean(x - c, axis=0))).max() < 0.01


@pytest.mark.parametrize("name", NAMES)
@given(scale=st.sampled_from([1e-30, 1e-10, 1.0, 1e10]), seed=seeds)
def test_directions_are_of_unit_size_and_uphill(name: str, scale: float, seed: int) -> None:
    gradient = jax.random.normal(jax.random.key(seed), (COUNT, SIZE, SIZE, 3)) * scale
    step = jitted(name, "direction")(gradient)
    np.testing.assert_allclose(norms.get(name).distance(step, jnp.zeros_like(step)), 1.0, rtol=1e-5)
    assert (jnp.sum(step * (gradient / scale), axis=(1, 2, 3)) > 0).all()
    np.testing.assert_array_equal(jitted(name, "direction")(jnp.zeros_like(gradient)), 0.0)


def test_directions_by_hand() -> None:
    gradient = jnp.asarray([[3.0, -4.0, 0.0] + [0.0] * 197]).reshape(1, 1, 1, 200)
    np.testing.assert_allclose(
        norms.L2.direction(gradient).ravel()[:3], [0.6, -0.8, 0.0], rtol=1e-6
    )
    np.testing.assert_allclose(
        norms.L1.direction(gradient).ravel()[:3], [0.5, -0.5, 0.0]
    )  # 1 % of 200 is two
    np.testing.assert_allclose(norms.LINF.direction(gradient).ravel()[:3], [1.0, -1.0, 0.0])


def test_distances_by_hand() -> None:
    x = jnp.zeros((2, 1, 2, 3)).at[0, 0, 0, 0].set(3.0).at[0, 0, 1, 2].set(-4.0)
    for name, distance in (("linf", 4.0), ("l2", 5.0), ("l1", 7.0)):
        assert norms.get(name).distance(x, jnp.zeros_like(x)).tolist() == [distance, 0.0]


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown norm 'lnif'; nearest: 'linf'"):
        norms.get("lnif")
