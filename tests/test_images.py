"""Every parameterization of images: range, one key per image, round trips, and spectra."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl.visualize import images

NAMES = sorted(images.PARAMETERIZATIONS)


def keys(n: int, seed: int = 7) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


def photographs(*shape: int, low: float = 1 / 256, high: float = 255 / 256) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).uniform(low, high, shape), jnp.float32)


def decorrelated(images01: jax.Array) -> np.ndarray:
    """The decorrelated colors before the sigmoid, in NumPy and float64."""
    x = np.asarray(images01, np.float64)
    return np.log(x / (1 - x)) @ np.linalg.inv(images.COLOR.T.astype(np.float64))


@pytest.mark.parametrize("size", [2, 7, 8])
@pytest.mark.parametrize("name", NAMES)
def test_an_image_depends_on_its_own_key_and_is_in_range(name: str, size: int) -> None:
    """In [0, 1] for any theta; a change of one theta changes no other image."""
    image = images.PARAMETERIZATIONS[name](size)

    @jax.jit
    def images01(keys: jax.Array, shift: jax.Array, factor: jax.Array) -> jax.Array:
        theta = image.init(keys)
        return image.decode(
            image.project(factor * (theta + shift.reshape(-1, *(1,) * (theta.ndim - 1))))
        )

    no_shift, one = jnp.zeros(3), jnp.float32(1.0)
    start = np.asarray(images01(keys(3), no_shift, one))
    assert start.shape == (3, size, size, 3) and start.dtype == np.float32
    np.testing.assert_array_equal(start, images01(keys(3), no_shift, one))
    reversed_batch = np.asarray(images01(keys(3)[::-1], no_shift, one))
    # The middle image is in the same row, next to other images: the same bits. In another row, an
    # image may fall into the scalar rest of a vectorized loop, whose sines round differently
    # (JAX 0.12).
    np.testing.assert_array_equal(reversed_batch[1], start[1])
    np.testing.assert_allclose(
        reversed_batch[::-1], start, rtol=0, atol=2 * np.finfo(np.float32).eps
    )
    assert len({row.tobytes() for row in start}) == 3
    shifted = np.asarray(images01(keys(3), jnp.asarray([0.0, 1.0, 0.0]), one))
    np.testing.assert_allclose(shifted[::2], start[::2], atol=1e-6)
    assert np.abs(shifted[1] - start[1]).max() > 0.01
    for factor in (1.0, 1e4, -1e4):
        scaled = np.asarray(images01(keys(3), no_shift, jnp.float32(factor)))
        assert (0 <= scaled).all() and (scaled <= 1).all()


@pytest.mark.optimized
def test_a_start_has_the_same_bits_alone_and_in_a_batch() -> None:
    init = jax.jit(images.fourier(6).init)
    np.testing.assert_array_equal(init(keys(3))[1:2], init(keys(3)[1:2]))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_and_not_zero(name: str) -> None:
    image = images.PARAMETERIZATIONS[name](7)
    weights = photographs(1, 7, 7, 3)

    @jax.jit
    def gradient(x: jax.Array) -> jax.Array:
        return jax.grad(lambda theta: jnp.sum(weights * image.decode(theta)))(image.encode(x))

    middle = gradient(photographs(1, 7, 7, 3, low=0.3, high=0.7))
    assert np.isfinite(middle).all() and np.abs(middle).max() > 1e-3
    for level in (0.0, 0.5, 1.0):  # black, gray and white
        assert np.isfinite(gradient(jnp.full((1, 7, 7, 3), level))).all()


# ---- starts and photographs ----


@pytest.mark.parametrize("name", ["pixel", "box"])
def test_pixels_start_as_gray_noise(name: str) -> None:
    image = images.PARAMETERIZATIONS[name](32)
    start = jax.jit(lambda keys: image.decode(image.init(keys)))(keys(4))
    assert start.mean() == pytest.approx(0.5, abs=2e-3)
    assert start.std() == pytest.approx(0.025, rel=0.05)


def test_the_box_is_clipped_after_each_step() -> None:
    theta = jnp.asarray([-0.5, 0.0, 0.25, 1.0, 3.0])
    np.testing.assert_array_equal(
        images.box(2).project(theta), np.float32([0.0, 0.0, 0.25, 1.0, 1.0])
    )


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("name", ["pixel", "box", "fourier", "pyramid"])
def test_encode_and_decode_return_the_photograph(name: str, size: int) -> None:
    image = images.PARAMETERIZATIONS[name](size)
    round_trip = jax.jit(lambda x: image.decode(image.encode(x)))
    photos = photographs(2, size, size, 3)
    back = round_trip(photos)
    assert jax.eval_shape(image.encode, photos).shape == jax.eval_shape(image.init, keys(2)).shape
    np.testing.assert_allclose(back, photos, atol=1e-3)
    np.testing.assert_allclose(back.mean(axis=(1, 2)), photos.mean(axis=(1, 2)), atol=1e-4)
    ends = jnp.round(photos)  # 0 and 1: to half a level of 256
    np.testing.assert_allclose(round_trip(ends), ends, atol=1 / 512 + 1e-5)


# ---- colors ----


def test_the_color_matrix_is_lucids_with_a_largest_column_of_norm_one() -> None:
    table = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
    np.testing.assert_allclose(images.COLOR, table / np.sqrt(0.26**2 + 2 * 0.27**2), rtol=1e-5)
    np.testing.assert_allclose(images.PLAIN @ images.COLOR, np.eye(3), atol=1e-5)


@pytest.mark.parametrize("matrix", [images.COLOR, images.PLAIN, np.arange(9.0).reshape(3, 3)])
def test_mixing_colors_is_a_matrix_product(matrix: np.ndarray) -> None:
    x = photographs(2, 3, 4, 3)
    np.testing.assert_allclose(
        images._mixed(x, matrix), np.asarray(x) @ matrix.T, rtol=1e-4, atol=1e-5
    )


# ---- spectra ----


@pytest.mark.parametrize("decay", [1.0, 2.0])
@pytest.mark.parametrize("family", [images.fourier, images.maco])
def test_amplitudes_fall_as_a_power_of_the_frequency(family, decay: float) -> None:  # pyright: ignore
    """The slope on logarithmic axes, measured on the image, is -decay."""
    size = 64
    image = family(size, decay=decay)
    starts = jax.jit(lambda keys: image.decode(image.init(keys)))(keys(8))
    power = np.abs(np.fft.fft2(decorrelated(starts), axes=(1, 2))).mean(axis=(0, 3))
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    ring = (f > 2 / size) & (f < 0.45) & (np.abs(np.fft.fftfreq(size)) > 0.5 / size)[None]
    slope = np.polyfit(np.log(f[ring]), np.log(power[ring]), 1)[0]
    assert slope == pytest.approx(-decay, abs=0.05)


def test_fourier_decodes_one_coefficient_to_one_wave() -> None:
    """A real coefficient t at frequency (0, 1) is t weight 2/s^2 cos(2 pi x / s): lucid's scale."""
    size = 8
    image = images.fourier(size)
    theta = jnp.zeros((1, 2, size, size // 2 + 1, 3)).at[0, 0, 0, 1, 0].set(3.0)
    weight = size / 4 * size  # decay 1 at f = 1/size
    wave = 3.0 * weight * 2 / size**2 * np.cos(2 * np.pi * np.arange(size) / size)
    expected = np.zeros((1, size, size, 3))
    expected[..., 0] = wave
    np.testing.assert_allclose(decorrelated(image.decode(theta)), expected, atol=1e-5)


def test_the_coarsest_level_of_a_pyramid_covers_the_whole_image() -> None:
    """A constant at 2 x 2 is one color everywhere; the sides are 16, 8, 4 and 2."""
    image = images.pyramid(16)
    shape = (1, 3 * (16**2 + 8**2 + 4**2 + 2**2))
    assert jax.eval_shape(image.init, keys(1)).shape == shape
    coarse = jnp.asarray(
        np.r_[np.zeros(shape[1] - 12), np.tile([0.5, -1.0, 2.0], 4)][None], jnp.float32
    )
    np.testing.assert_allclose(
        decorrelated(jax.jit(image.decode)(coarse)),
        np.broadcast_to([0.5, -1.0, 2.0], (1, 16, 16, 3)),
        atol=1e-5,
    )


def free(size: int) -> np.ndarray:
    """The frequencies of a real transform that have a phase; self-conjugate ones have a sign."""
    conjugate = np.zeros((size, size // 2 + 1), bool)
    ends = (0, size // 2) if size % 2 == 0 else (0,)
    conjugate[np.ix_(ends, ends)] = True
    return ~conjugate


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("factor", [1.0, 37.0])
def test_maco_keeps_its_magnitudes_for_any_theta(size: int, factor: float) -> None:
    """All magnitudes of an image are 1/f times one number, which sets its contrast."""
    image = images.maco(size, contrast=0.7)
    colors = decorrelated(jax.jit(lambda keys: image.decode(factor * image.init(keys)))(keys(3)))
    np.testing.assert_allclose(colors.mean(axis=(1, 2, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(colors.std(axis=(1, 2, 3)), 0.7, rtol=1e-4)
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    factors = (np.abs(np.fft.rfft2(colors, axes=(1, 2))) * f[..., None])[:, free(size)]
    np.testing.assert_allclose(
        factors, np.broadcast_to(factors[:, :1, :1], factors.shape), rtol=1e-3
    )


@pytest.mark.parametrize("size", [7, 8])
def test_maco_keeps_the_phases_of_an_image(size: int) -> None:
    """The phases of a MACO image are recovered, and so are those of any photograph."""
    image = images.maco(size)
    theta = jax.jit(image.init)(keys(2))
    decode, encode = jax.jit(image.decode), jax.jit(image.encode)
    phases = lambda x: np.exp(1j * np.angle(np.fft.rfft2(decorrelated(x), axes=(1, 2))))[
        :, free(size)
    ]
    image01 = decode(theta)
    np.testing.assert_allclose(phases(decode(encode(image01))), phases(image01), atol=1e-3)
    # Where theta is the phase, without a conjugate.
    half = (slice(None), slice(None), slice(1, (size + 1) // 2))
    turns = np.asarray(encode(image01) - theta)[half] / (2 * np.pi)
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-3)
    photos = photographs(2, size, size, 3)
    np.testing.assert_allclose(phases(decode(encode(photos))), phases(photos), atol=1e-3)
