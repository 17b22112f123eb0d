"""Quality measures of ideal images that need no network: the slope of the spectrum, and diversity.

Other measures: `objectives.total_variation`, and the probability under held-out networks,
`ideal.held_out_probabilities`.
"""

from __future__ import annotations

import numpy as np

from tl.types import Array

# Side in pixels below which a spectrum has too few rings (chosen, not tuned).
SMALLEST = 32


def spectral_slope(images01: Array) -> np.ndarray:
    """The exponent a of the amplitude spectrum f^a, by least squares on logarithmic axes.

    Photographs have about -1 to -1.3 and white noise has 0; images with much fine texture lie
    between.

    Args:
      images01: f32[b h w c]. The luminance is measured under a Hann window, over rings from 3
        cycles per image to 0.35 cycles per pixel (chosen: the window dominates below, the sensor
        and JPEG above).

    Returns:
      f64[b].

    Raises:
      ValueError: if a side has fewer than 32 pixels.

    Reference:
      Field 1987, "Relations between the statistics of natural images and the response properties of
      cortical cells", figure 7.
    """
    gray = np.asarray(images01, np.float64).mean(axis=3)
    b, h, w = gray.shape
    if min(h, w) < SMALLEST:
        raise ValueError(
            f"`images01` are too small for a spectral slope: got {h} x {w}, expected at least "
            f"{SMALLEST} pixels per side"
        )
    window = np.hanning(h)[:, None] * np.hanning(w)[None]
    amplitude = np.abs(np.fft.rfft2((gray - gray.mean(axis=(1, 2), keepdims=True)) * window[None]))
    f = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])
    edges = np.geomspace(3 / min(h, w), 0.35, 13)
    ring = np.digitize(f, edges)
    rings = [i for i in range(1, len(edges)) if (ring == i).any()]
    means = np.stack([amplitude[:, ring == i].mean(axis=1) for i in rings], axis=1)
    log_f = np.log([f[ring == i].mean() for i in rings])
    return np.array([np.polyfit(log_f, np.log(row + 1e-12), 1)[0] for row in means]).reshape(b)


def diversity(features: Array) -> float:
    """One minus the mean cosine between the features of images; 0 if all are equal.

    Args:
      features: f32[n d], n >= 2.

    Returns:
      A number in [0, 2].

    Raises:
      ValueError: if there are fewer than two images.
    """
    rows = np.asarray(features, np.float64)
    if len(rows) < 2:
        raise ValueError(f"`features` are of too few images: got {len(rows)}, expected at least 2")
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    n = len(rows)
    return float(1.0 - (cosines.sum() - np.trace(cosines)) / (n * (n - 1)))
