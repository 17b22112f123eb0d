"""Maps as colored images: viridis for maps without a sign, blue to red for maps with one.

Both color maps are ordered by lightness from 0, so that equal steps look equal; a map of zeros is
drawn without color.
"""

from __future__ import annotations

import numpy as np

from tl.types import Array

# Ten samples of matplotlib's viridis (CC0), from 0 to 1.
VIRIDIS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725"
# Seven samples of ColorBrewer's RdBu (Apache-2.0), reversed, from -1 to 1.
SIGNED = "2166ac 67a9cf d1e5f0 f7f7f7 fddbc7 ef8a62 b2182b"
# Quantile of the absolute values at which the colors end, so that a few pixels do not decide the
# scale; chosen, not tuned.
QUANTILE = 0.995


def colors(values: Array, *, signed: bool) -> np.ndarray:
    """A map in colors.

    Args:
      values: f32[h w].
      signed: whether negative values have a meaning.

    Returns:
      uint8[h w 3]; the scale ends at the 99.5 % quantile of the absolute values. A map of zeros is
      gray.

    Example:
      >>> colors(np.array([[0.0, 2.0]], np.float32), signed=False).tolist()
      [[[68, 1, 84], [253, 231, 37]]]
    """
    values = np.asarray(values, np.float64)
    scale = np.quantile(np.abs(values), QUANTILE) or np.abs(values).max()
    if not scale:
        return np.full((*values.shape, 3), 128, np.uint8)
    words = (SIGNED if signed else VIRIDIS).split()
    table = np.array([[int(word[i : i + 2], 16) for i in (0, 2, 4)] for word in words])
    share = np.clip(values / scale, -1, 1)
    place = ((share + 1) / 2 if signed else np.maximum(share, 0)) * (len(table) - 1)
    channels = [np.interp(place, np.arange(len(table)), table[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def overlay(image: np.ndarray, values: Array, *, signed: bool) -> np.ndarray:
    """A map over its image, uint8[h w 3].

    Args:
      image: uint8[h w 3]; it is shown in gray.
      values: f32[h w].
      signed: as for `colors`.
    """
    gray = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1)
    return np.rint(0.4 * gray + 0.6 * colors(values, signed=signed)).astype(np.uint8)


def top_patches(values: Array, n: int, side: int) -> list[tuple[int, int]]:
    """Row and column of the n squares with the largest sums that do not overlap.

    Args:
      values: f32[h w].
      n: largest number of squares.
      side: side of a square, in pixels.

    Returns:
      Upper left corners, the largest sum first; only squares with a positive sum.

    Example:
      >>> top_patches(np.diag([3.0, 0.0, 1.0]), n=2, side=1)
      [(0, 0), (2, 2)]
    """
    table = np.pad(np.asarray(values, np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
    corners: list[tuple[int, int]] = []
    while len(corners) < n and sums.size and sums.max() > 0:
        row, column = (int(i) for i in np.unravel_index(sums.argmax(), sums.shape))
        corners.append((row, column))
        sums[max(row - side + 1, 0) : row + side, max(column - side + 1, 0) : column + side] = 0
    return corners
