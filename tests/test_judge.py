"""Is a spectrum a photograph's, do images differ: on pictures whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.visualize import judge


def noise(slope: float, size: int = 128, n: int = 4) -> np.ndarray:
    """Pictures whose amplitude falls as f^slope, exactly in the mean."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    f[0, 0] = 1.0
    rng = np.random.default_rng(0)
    white = np.fft.rfft2(rng.standard_normal((n, size, size)))
    gray = np.fft.irfft2(white * f**slope, (size, size))
    gray = 0.5 + 0.1 * gray / gray.std()
    return np.broadcast_to(gray[..., None], (n, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("slope", [0.0, -0.5, -1.0, -1.5])
def test_the_slope_is_the_one_that_was_made(slope: float) -> None:
    found = judge.spectral_slope(noise(slope, n=32))
    assert found.shape == (32,)
    assert found.mean() == pytest.approx(slope, abs=0.05)


@given(st.floats(0.2, 3.0), st.floats(-0.2, 0.2))
def test_contrast_and_brightness_do_not_matter(gain: float, shift: float) -> None:
    picture = noise(-1.0, 64, 1)
    np.testing.assert_allclose(
        judge.spectral_slope(gain * picture + shift), judge.spectral_slope(picture), atol=1e-3
    )


def test_a_picture_of_one_colour_has_no_slope_and_a_small_one_too_few_rings() -> None:
    assert np.isfinite(judge.spectral_slope(np.full((1, 64, 64, 3), 0.5, np.float32))).all()
    with pytest.raises(ValueError, match="got 31 x 64, expected at least 32 pixels"):
        judge.spectral_slope(np.zeros((1, 31, 64, 3), np.float32))


def test_photographs_have_the_slope_that_field_found(shared_data) -> None:
    from tl import data, pixels

    paths, _ = data.find_images(str(shared_data / "imagenet_samples"))
    spec = pixels.PixelSpec()
    pictures = np.stack([pixels.prepare(spec, data.decode(path)) for path in paths[:24]])
    slopes = judge.spectral_slope(pixels.to_images01(pictures))
    assert -1.45 < slopes.mean() < -0.9


def test_diversity_by_hand() -> None:
    assert judge.diversity(np.eye(3)) == pytest.approx(1.0)
    assert judge.diversity(np.ones((4, 5))) == pytest.approx(0.0, abs=1e-9)
    assert judge.diversity(np.array([[1.0, 0.0], [1.0, 1.0]])) == pytest.approx(1 - np.sqrt(0.5))
    assert judge.diversity(np.array([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="too few images: got 1, expected at least 2"):
        judge.diversity(np.ones((1, 3)))
