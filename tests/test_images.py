"""Every parameterisation: pictures in range, each from its own key, back from a photograph, with the promised spectrum."""

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


def plain(picture: jax.Array) -> np.ndarray:
    """The decorrelated colours before the sigmoid, in NumPy and float64."""
    x = np.asarray(picture, np.float64)
    return np.log(x / (1 - x)) @ np.linalg.inv(images.COLOR.T.astype(np.float64))


@pytest.mark.parametrize("size", [2, 7, 8])
@pytest.mark.parametrize("name", NAMES)
def test_every_parameterisation_is_a_picture_of_its_key(name: str, size: int) -> None:
    """In range however far theta goes; each from its own key alone; and what moves one moves no other."""
    image = images.PARAMETERIZATIONS[name](size)

    @jax.jit
    def pictures(keys: jax.Array, shift: jax.Array, factor: jax.Array) -> jax.Array:
        theta = image.init(keys)
        return image.decode(
            image.project(factor * (theta + shift.reshape(-1, *(1,) * (theta.ndim - 1))))
        )

    at_rest, one = jnp.zeros(3), jnp.float32(1.0)
    start = np.asarray(pictures(keys(3), at_rest, one))
    assert start.shape == (3, size, size, 3) and start.dtype == np.float32
    np.testing.assert_array_equal(start, pictures(keys(3), at_rest, one))
    reversed_batch = np.asarray(pictures(keys(3)[::-1], at_rest, one))
    np.testing.assert_array_equal(
        reversed_batch[1], start[1]
    )  # the same place, other neighbors: the same bits
    # A row at another place may fall into the scalar rest of a vectorized loop, whose sines round differently (JAX 0.12).
    np.testing.assert_allclose(
        reversed_batch[::-1], start, rtol=0, atol=2 * np.finfo(np.float32).eps
    )
    assert len({row.tobytes() for row in start}) == 3
    moved = np.asarray(pictures(keys(3), jnp.asarray([0.0, 1.0, 0.0]), one))
    np.testing.assert_allclose(moved[::2], start[::2], atol=1e-6)
    assert np.abs(moved[1] - start[1]).max() > 0.01
    for factor in (1.0, 1e4, -1e4):
        each = np.asarray(pictures(keys(3), at_rest, jnp.float32(factor)))
        assert (0 <= each).all() and (each <= 1).all()


@pytest.mark.optimized
def test_a_start_alone_is_that_in_a_batch() -> None:
    init = jax.jit(images.fourier(6).init)
    np.testing.assert_array_equal(init(keys(3))[1:2], init(keys(3)[1:2]))


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_theta_has_a_finite_gradient(name: str) -> None:
    image = images.PARAMETERIZATIONS[name](7)
    weights = photographs(1, 7, 7, 3)

    @jax.jit
    def slope(there: jax.Array) -> jax.Array:
        return jax.grad(lambda theta: jnp.sum(weights * image.decode(theta)))(image.encode(there))

    at = slope(photographs(1, 7, 7, 3, low=0.3, high=0.7))
    assert np.isfinite(at).all() and np.abs(at).max() > 1e-3
    for level in (0.0, 0.5, 1.0):  # black, grey and white too
        assert np.isfinite(slope(jnp.full((1, 7, 7, 3), level))).all()


# ------------------------------------------------------------------------------------------------ starts and photographs


@pytest.mark.parametrize("name", ["pixel", "box"])
def test_pixels_start_as_grey_noise(name: str) -> None:
    image = images.PARAMETERIZATIONS[name](32)
    picture = jax.jit(lambda keys: image.decode(image.init(keys)))(keys(4))
    assert picture.mean() == pytest.approx(0.5, abs=2e-3)
    assert picture.std() == pytest.approx(0.025, rel=0.05)


def test_the_box_is_cut_off_after_each_step() -> None:
    theta = jnp.asarray([-0.5, 0.0, 0.25, 1.0, 3.0])
    np.testing.assert_array_equal(
        images.box(2).project(theta), np.float32([0.0, 0.0, 0.25, 1.0, 1.0])
    )


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("name", ["pixel", "box", "fourier", "pyramid"])
def test_a_photograph_comes_back(name: str, size: int) -> None:
    image = images.PARAMETERIZATIONS[name](size)
    round_trip = jax.jit(lambda x: image.decode(image.encode(x)))
    there = photographs(2, size, size, 3)
    back = round_trip(there)
    assert jax.eval_shape(image.encode, there).shape == jax.eval_shape(image.init, keys(2)).shape
    np.testing.assert_allclose(back, there, atol=1e-3)
    np.testing.assert_allclose(back.mean(axis=(1, 2)), there.mean(axis=(1, 2)), atol=1e-4)
    ends = jnp.round(there)  # 0 and 1: to half a level of 256
    np.testing.assert_allclose(round_trip(ends), ends, atol=1 / 512 + 1e-5)


# ---------------------------------------------------------------------------------------------------------------- colour


def test_colours_are_lucids_largest_column_of_length_one() -> None:
    table = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
    np.testing.assert_allclose(images.COLOR, table / np.sqrt(0.26**2 + 2 * 0.27**2), rtol=1e-5)
    np.testing.assert_allclose(images.PLAIN @ images.COLOR, np.eye(3), atol=1e-5)


@pytest.mark.parametrize("matrix", [images.COLOR, images.PLAIN, np.arange(9.0).reshape(3, 3)])
def test_mixing_is_a_product_with_the_matrix(matrix: np.ndarray) -> None:
    x = photographs(2, 3, 4, 3)
    np.testing.assert_allclose(
        images._mixed(x, matrix), np.asarray(x) @ matrix.T, rtol=1e-4, atol=1e-5
    )


# -------------------------------------------------------------------------------------------------------------- spectra


@pytest.mark.parametrize("decay", [1.0, 2.0])
@pytest.mark.parametrize("family", [images.fourier, images.maco])
def test_the_spectrum_falls_as_promised(family, decay: float) -> None:  # pyright: ignore
    """Amplitudes fall as 1/f^decay: the slope on log axes, measured on the picture."""
    size = 64
    image = family(size, decay=decay)
    pictures = jax.jit(lambda keys: image.decode(image.init(keys)))(keys(8))
    power = np.abs(np.fft.fft2(plain(pictures), axes=(1, 2))).mean(axis=(0, 3))
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    ring = (f > 2 / size) & (f < 0.45) & (np.abs(np.fft.fftfreq(size)) > 0.5 / size)[None]
    slope = np.polyfit(np.log(f[ring]), np.log(power[ring]), 1)[0]
    assert slope == pytest.approx(-decay, abs=0.05)


def test_fourier_decodes_one_coefficient_to_one_wave() -> None:
    """lucid's scale: a real coefficient t at frequency (0, 1) of size s is t weight 2/s^2 cos(2 pi x / s)."""
    size = 8
    image = images.fourier(size)
    theta = jnp.zeros((1, 2, size, size // 2 + 1, 3)).at[0, 0, 0, 1, 0].set(3.0)
    weight = size / 4 * size  # decay 1 at f = 1/size
    wave = 3.0 * weight * 2 / size**2 * np.cos(2 * np.pi * np.arange(size) / size)
    wanted = np.zeros((1, size, size, 3))
    wanted[..., 0] = wave
    np.testing.assert_allclose(plain(image.decode(theta)), wanted, atol=1e-5)


def test_the_coarsest_level_of_a_pyramid_is_the_whole_picture() -> None:
    """A constant at 2 x 2 is one colour everywhere; sides are 16, 8, 4, 2, and no level below."""
    image = images.pyramid(16)
    shape = (1, 3 * (16**2 + 8**2 + 4**2 + 2**2))
    assert jax.eval_shape(image.init, keys(1)).shape == shape
    coarse = jnp.asarray(
        np.r_[np.zeros(shape[1] - 12), np.tile([0.5, -1.0, 2.0], 4)][None], jnp.float32
    )
    np.testing.assert_allclose(
        plain(jax.jit(image.decode)(coarse)),
        np.broadcast_to([0.5, -1.0, 2.0], (1, 16, 16, 3)),
        atol=1e-5,
    )


def free(size: int) -> np.ndarray:
    """The frequencies of a real transform that are not their own mirror; those have a sign in place of a phase."""
    own = np.zeros((size, size // 2 + 1), bool)
    ends = (0, size // 2) if size % 2 == 0 else (0,)
    own[np.ix_(ends, ends)] = True
    return ~own


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("factor", [1.0, 37.0])
def test_macos_magnitudes_stay_whatever_theta(size: int, factor: float) -> None:
    """Of each image all are 1/f times one number, which gives the whole a deviation of `contrast`."""
    image = images.maco(size, contrast=0.7)
    colors = plain(jax.jit(lambda keys: image.decode(factor * image.init(keys)))(keys(3)))
    np.testing.assert_allclose(colors.mean(axis=(1, 2, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(colors.std(axis=(1, 2, 3)), 0.7, rtol=1e-4)
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    times = (np.abs(np.fft.rfft2(colors, axes=(1, 2))) * f[..., None])[:, free(size)]
    np.testing.assert_allclose(times, np.broadcast_to(times[:, :1, :1], times.shape), rtol=1e-3)


@pytest.mark.parametrize("size", [7, 8])
def test_maco_keeps_the_phases_of_a_picture(size: int) -> None:
    """From a picture of its own family the phases come back; of any photograph, those that it has."""
    image = images.maco(size)
    theta = jax.jit(image.init)(keys(2))
    decode, encode = jax.jit(image.decode), jax.jit(image.encode)
    phases = lambda x: np.exp(1j * np.angle(np.fft.rfft2(plain(x), axes=(1, 2))))[:, free(size)]
    own = decode(theta)
    np.testing.assert_allclose(phases(decode(encode(own))), phases(own), atol=1e-3)
    half = (
        slice(None),
        slice(None),
        slice(1, (size + 1) // 2),
    )  # where theta is the phase, with no twin
    turns = np.asarray(encode(own) - theta)[half] / (2 * np.pi)
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-3)
    there = photographs(2, size, size, 3)
    np.testing.assert_allclose(phases(decode(encode(there))), phases(there), atol=1e-3)
