"""Feature maps of one image as grayscale images: channel by channel, or all channels at once.

These are NumPy functions of maps that a forward pass computed. The real images that activate a
channel most are in `tl.visualize.exemplars`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tl.types import Array


def strongest(maps: Array, k: int) -> np.ndarray:
    """The channels with the highest mean activation.

    Args:
      maps: f32 or bf16[h w c] of one image.
      k: number of channels; all c if there are fewer.

    Returns:
      int[k], by falling mean over the positions; ties by index.

    Raises:
      ValueError: if `maps` does not have three axes, or is not finite.

    Example:
      >>> strongest(np.array([[[1.0, 3.0, 2.0]]], np.float32), 2).tolist()
      [1, 2]
    """
    means = _check(maps).mean(axis=(0, 1), dtype=np.float64)
    return np.argsort(-means, kind="stable")[:k]


def tiles(maps: Array, order: Sequence[int] | np.ndarray) -> np.ndarray:
    """Channels as grayscale images, each scaled to its own range.

    They show where a channel is active; magnitudes of two channels cannot be compared.

    Args:
      maps: f32 or bf16[h w c] of one image.
      order: the channels, such as `strongest(maps, 48)`.

    Returns:
      f32[n h w] in [0, 1]: the smallest value is black, the largest white; a constant channel is
      black.

    Raises:
      ValueError: as for `strongest`.

    Example:
      >>> tiles(np.array([[[1.0, 5.0], [3.0, 5.0]]], np.float32), [0, 1]).tolist()
      [[[0.0, 1.0]], [[0.0, 0.0]]]
    """
    chosen = np.moveaxis(_check(maps)[..., np.asarray(order, int)], 2, 0)
    low, high = (rule(chosen, axis=(1, 2), keepdims=True) for rule in (np.min, np.max))
    return _scale(chosen, low, high)


def flat(maps: Array) -> np.ndarray:
    """The whole map as one grayscale image: one row per position, one column per channel.

    Args:
      maps: f32 or bf16[h w c] of one image.

    Returns:
      f32[h * w c] in [0, 1], positions in row-major order. Black is 0, or the smallest value if
      some are negative; white is the largest; a map of zeros is black.

    Raises:
      ValueError: as for `strongest`.

    Example:
      >>> flat(np.array([[[0.0, 1.0]], [[4.0, 2.0]]], np.float32)).tolist()
      [[0.0, 0.25], [1.0, 0.5]]
    """
    values = _check(maps)
    rows = values.reshape(-1, values.shape[2])
    return _scale(rows, np.minimum(rows.min(), np.float32(0)), rows.max())


def _scale(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """`values` from [low, high] to [0, 1]; 0 where the two are equal."""
    span = high - low
    return np.where(span > 0, (values - low) / np.where(span > 0, span, 1), 0).astype(np.float32)


def _check(maps: Array) -> np.ndarray:
    values = np.asarray(maps).astype(np.float32)
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(
            f"`maps` must be of one image: got {list(values.shape)}, expected [h w c]; index the "
            "batch first"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            "`maps` hold NaN or infinity, expected finite numbers; check the weights and `dtype`"
        )
    return values
