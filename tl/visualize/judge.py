"""How good an ideal image is, in numbers: is its spectrum a photograph's, and do several of them differ?

What networks that took no part say of it is `Classifier.logits`; how restless it is, `objectives.total_variation`.
"""

from __future__ import annotations

import numpy as np

from tl.types import Array


def spectral_slope(images01: Array) -> np.ndarray:
    """How fast the amplitude falls with the frequency: a in amplitude ~ f^a, by least squares on logarithmic axes.

    Photographs have about -1 to -1.3, white noise 0, a picture full of fine pattern lies between.

    Args:
      images01: f32[b h w c]; its luminance counts, under a Hann window, over rings from 3 cycles a picture to 0.35 cycles a
        pixel (chosen: below, the window counts; above, the sensor and JPEG).

    Returns:
      f64[b].

    Raises:
      ValueError: pictures of fewer than 32 pixels a side, which have too few rings.

    Reference: Field 1987, "Relations between the statistics of natural images and the response properties of cortical
      cells", figure 7.
    """
    gray = np.asarray(images01, np.float64).mean(axis=3)
    b, h, w = gray.shape
    if min(h, w) < 32:
        raise ValueError(
            f"the slope of a spectrum wants pictures of at least 32 pixels a side; got {h} x {w}"
        )
    window = np.hanning(h)[:, None] * np.hanning(w)[None]
    amplitude = np.abs(np.fft.rfft2((gray - gray.mean(axis=(1, 2), keepdims=True)) * window[None]))
    f = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])
    edges = np.geomspace(3 / min(h, w), 0.35, 13)
    ring = np.digitize(f, edges)
    rings = [i for i in range(1, len(edges)) if (ring == i).any()]
    means = np.stack([amplitude[:, ring == i].mean(axis=1) for i in rings], axis=1)
    places = np.log([f[ring == i].mean() for i in rings])
    return np.array([np.polyfit(places, np.log(row + 1e-12), 1)[0] for row in means]).reshape(b)


def diversity(features: Array) -> float:
    """One less the mean cosine between the features f32[n d] of n images of one target: 0 where all are alike.

    Raises:
      ValueError: fewer than two images.
    """
    rows = np.asarray(features, np.float64)
    if len(rows) < 2:
        raise ValueError(f"diversity is of at least two images; got {len(rows)}")
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    n = len(rows)
    return float(1.0 - (cosines.sum() - np.trace(cosines)) / (n * (n - 1)))
