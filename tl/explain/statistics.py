"""Statistics of maps: rank correlation, sparseness, order of the pixels, intervals over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tl.types import Array

RESAMPLES = 2000
# Fewer images decide nothing: the two-sided sign test needs six for p < 0.05.
FEWEST = 6


def spearman(a: Array, b: Array) -> np.ndarray:
    """Rank correlation of the absolute values of two maps f32[b h w] of each image, f64[b].

    Ties have their mean rank. The correlation with a constant map is 0.
    """
    pairs = zip(np.abs(np.asarray(a)), np.abs(np.asarray(b)), strict=True)
    return np.array([rank_correlation(x, y) for x, y in pairs])


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation of two arrays of the same size, signs included; 0 if one is constant.

    Ties have their mean rank.
    """
    x, y = _mean_ranks(x), _mean_ranks(y)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else 0.0


def correlations(maps: Sequence[Array]) -> np.ndarray:
    """Mean rank correlation f64[m m] of the absolute values of m methods' maps f32[b h w] each.

    The correlation with a constant map is 0.
    """
    total = np.zeros((len(maps), len(maps)))
    for same_image in zip(*maps, strict=True):
        centered = np.stack([_mean_ranks(np.abs(values)) for values in same_image])
        centered -= centered.mean(axis=1, keepdims=True)
        norms = np.sqrt(np.square(centered).sum(axis=1, keepdims=True))
        unit = centered / np.maximum(norms, 1e-12)
        total += unit @ unit.T
    return total / len(maps[0])


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places.ravel()]


def gini(maps: Array) -> np.ndarray:
    """Sparseness of maps f32[b h w], f64[b]: the Gini index of their absolute values.

    0 for a uniform map or a map of zeros, 1 - 1 / (h w) for one pixel.

    Reference: Hurley & Rickard 2009, arXiv:0811.4706; for explanations Chalasani et al. 2020,
      arXiv:1810.06583.
    """
    values = np.sort(np.abs(np.asarray(maps, np.float64)).reshape(len(maps), -1), axis=1)
    n = values.shape[1]
    total = values.sum(axis=1)
    weighted = values @ (2 * np.arange(1, n + 1) - n - 1)
    return np.where(total > 0, weighted / np.where(total > 0, n * total, 1), 0.0)


def ranks(maps: Array, *, seed: int = 0) -> np.ndarray:
    """Rank of each pixel of maps f32[b h w], i32[b h w]: 0 is the largest value.

    Signed values are compared with their sign. Ties are in random order.
    """
    flat = np.asarray(maps).reshape(len(maps), -1)
    rng, out = np.random.default_rng(seed), np.empty(flat.shape, np.int32)
    for row, values in zip(out, flat, strict=True):
        row[np.lexsort((rng.random(len(values)), -values))] = np.arange(len(values))
    return out.reshape(np.shape(maps))


def by_image(values: np.ndarray, groups: Array) -> np.ndarray:
    """The mean f[n] of the rows f[b] of each image; `groups` i[b] is the image of each row."""
    return np.bincount(groups, values) / np.bincount(groups)


def bootstrap(values: np.ndarray) -> dict[str, Any]:
    """`{"value", "ci95"}`: the mean of f[b] and its 95 % percentile interval over images.

    The interval of one image is None.
    """
    if len(values) == 1:
        return {"value": float(values[0]), "ci95": None}
    rows = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[rows].mean(axis=1), [2.5, 97.5])
    return {"value": float(values.mean()), "ci95": [float(low), float(high)]}


def per_image(values: np.ndarray) -> dict[str, Any]:
    """As `bootstrap`, and "per_image", the values f[n] of the images."""
    return {**bootstrap(values), "per_image": values.tolist()}


def against_controls(
    values: Mapping[str, np.ndarray], name: str, controls: Sequence[str], *, sign: int
) -> dict[str, Any]:
    """The mean of a method, its interval, and whether the method is better than all controls.

    Args:
      values: method -> f[n], one value per image.
      name: the method.
      controls: other keys of `values`.
      sign: 1 if larger values are better, -1 if smaller ones are.

    Returns:
      As `per_image`, and "passed". A method is better if the interval of the mean difference from
      each control excludes 0. With fewer than `FEWEST` images this is None, except for a control:
      it is never better than itself.
    """
    chosen = values[name]
    ends = [bootstrap(sign * (chosen - values[control]))["ci95"] for control in controls]
    passed = None if len(chosen) < FEWEST else all(low > 0 for low, _ in ends)
    return {**per_image(chosen), "passed": False if name in controls else passed}
