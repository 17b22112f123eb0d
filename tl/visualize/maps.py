"""What a layer makes of one picture, as pictures: its channels one by one, or positions by channels all at once.

NumPy on maps that a forward pass has made; which pictures of a data set drive a channel is `tl.visualize.exemplars`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tl.types import Array


def strongest(maps: Array, k: int) -> np.ndarray:
    """The channels that one picture drives most.

    Args:
      maps: f32 or bf16[h w c] of one picture.
      k: how many; c where there are fewer.

    Returns:
      int[k], by falling mean over the positions; of equals the lower index first.

    Raises:
      ValueError: not three axes, or numbers that are not finite.

    Example:
      >>> strongest(np.array([[[1.0, 3.0, 2.0]]], np.float32), 2).tolist()
      [1, 2]
    """
    means = _checked(maps).mean(axis=(0, 1), dtype=np.float64)
    return np.argsort(-means, kind="stable")[:k]


def tiles(maps: Array, order: Sequence[int] | np.ndarray) -> np.ndarray:
    """Channels as grey pictures, each stretched to its own range: where it is active shows, how much does not.

    Args:
      maps: f32 or bf16[h w c] of one picture.
      order: the channels wanted, such as `strongest(maps, 48)`.

    Returns:
      f32[n h w] in [0, 1], smallest value black, largest white; a flat channel is black.

    Raises:
      ValueError: as for `strongest`.

    Example:
      >>> tiles(np.array([[[1.0, 5.0], [3.0, 5.0]]], np.float32), [0, 1]).tolist()
      [[[0.0, 1.0]], [[0.0, 0.0]]]
    """
    chosen = np.moveaxis(_checked(maps)[..., np.asarray(order, int)], 2, 0)
    low, high = (rule(chosen, axis=(1, 2), keepdims=True) for rule in (np.min, np.max))
    return _stretched(chosen, low, high)


def flat(maps: Array) -> np.ndarray:
    """The whole map as one grey picture on one scale: a row a position, a column a channel.

    Args:
      maps: f32 or bf16[h w c] of one picture.

    Returns:
      f32[h * w c] in [0, 1], positions row by row. Black is 0, or the smallest value where some are negative; white the
      largest; a map of zeros is black.

    Raises:
      ValueError: as for `strongest`.

    Example:
      >>> flat(np.array([[[0.0, 1.0]], [[4.0, 2.0]]], np.float32)).tolist()
      [[0.0, 0.25], [1.0, 0.5]]
    """
    values = _checked(maps)
    rows = values.reshape(-1, values.shape[2])
    return _stretched(rows, np.minimum(rows.min(), np.float32(0)), rows.max())


def _stretched(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """`values` from [low, high] to [0, 1]; zero where the two are equal."""
    span = high - low
    return np.where(span > 0, (values - low) / np.where(span > 0, span, 1), 0).astype(np.float32)


def _checked(maps: Array) -> np.ndarray:
    values = np.asarray(maps).astype(np.float32)
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(
            f"the maps of one picture are [h w c]; got {list(values.shape)}: index the batch first"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            "maps hold NaN or infinity, wanted finite numbers; look at the weights, or at --dtype"
        )
    return values
