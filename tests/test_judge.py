"""Spectral slope and diversity, on images whose values are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.visualize import judge


def noise(slope: float, size: int = 128, n: int = 4) -> np.ndarray:
    """Images whose amplitude is f^slope, exactly in the mean."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    f[0, 0] = 1.0
    rng = np.random.default_rng(0)
    white = np.fft.rfft2(rng.standard_normal((n, size, size)))
    gray = np.fft.irfft2(white * f**slope, (size, size))
    gray = 0.5 + 0.1 * gray / gray.std()
    return np.broadcast_to(gray[..., None], (n, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("slope", [0.0, -0.5, -1.0, -1.5])
def test_the_spectral_slope_of_filtered_noise_is_that_of_the_filter(slope: float) -> None:
    slopes = judge.spectral_slope(noise(slope, n=32))
    assert slopes.shape == (32,)
    assert slopes.mean() == pytest.approx(slope, abs=0.05)


@given(st.floats(0.2, 3.0), st.floats(-0.2, 0.2))
def test_contrast_and_brightness_do_not_change_the_slope(gain: float, shift: float) -> None:
    image = noise(-1.0, 64, 1)
    np.testing.assert_allclose(
        judge.spectral_slope(gain * image + shift), judge.spectral_slope(image), atol=1e-3
    )


def test_a_uniform_image_has_a_finite_slope() -> None:
    assert np.isfinite(judge.spectral_slope(np.full((1, 64, 64, 3), 0.5, np.float32))).all()


def test_a_small_image_has_too_few_rings() -> None:
    with pytest.raises(ValueError, match="got 31 x 64, expected at least 32 pixels"):
        judge.spectral_slope(np.zeros((1, 31, 64, 3), np.float32))


def test_photographs_have_the_slope_of_the_literature(shared_data) -> None:
    from tl import data, pixels

    paths, _ = data.find_images(str(shared_data / "imagenet_samples"))
    spec = pixels.PixelSpec()
    images = np.stack([pixels.prepare(spec, data.decode(path)) for path in paths[:24]])
    slopes = judge.spectral_slope(pixels.to_images01(images))
    assert -1.45 < slopes.mean() < -0.9


def test_diversity_equals_values_by_hand() -> None:
    assert judge.diversity(np.eye(3)) == pytest.approx(1.0)
    assert judge.diversity(np.ones((4, 5))) == pytest.approx(0.0, abs=1e-9)
    assert judge.diversity(np.array([[1.0, 0.0], [1.0, 1.0]])) == pytest.approx(1 - np.sqrt(0.5))
    assert judge.diversity(np.array([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(2.0)


def test_diversity_needs_two_images() -> None:
    with pytest.raises(ValueError, match="too few images: got 1, expected at least 2"):
        judge.diversity(np.ones((1, 3)))
