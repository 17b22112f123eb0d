"""Convolution filters: the first layer as color tiles, and the change between two weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tl.paths import flatten, nearest
from tl.pixels import PixelSpec
from tl.types import Array, Params

# A filter whose norm is below this share of its layer's median is dead: its ratio means nothing
# (chosen, not tuned).
DEAD = 0.05


class FilterChange(NamedTuple):
    """The change of one filter between two sets of weights.

    Attributes:
      name: the kernel's path in the backbone, "stage4/block0/conv1/kernel".
      index: the output channel of the filter.
      relative: ||after - before|| / ||before|| in the Frobenius norm; 0 if no bit changed.
    """

    name: str
    index: int
    relative: float


def tiles(kernel: Array) -> list[np.ndarray]:
    """A first layer's filters as color images around mid-gray.

    Each filter is scaled by its own largest absolute weight.

    Args:
      kernel: f32[h w 3 o], input channels red, green, blue (see `rgb_kernel`), or f32[h w 1 o],
        gray.

    Returns:
      o images f32[h w 3] in [0, 1]. A weight of 0 is 0.5, and a filter of zeros is uniform gray.

    Raises:
      ValueError: if the kernel does not have four axes and 3 or 1 input channels.

    Example:
      >>> tile, = tiles(np.array([-0.1, 0.0, 0.2], np.float32).reshape(1, 1, 3, 1))
      >>> tile.tolist()
      [[[0.25, 0.5, 1.0]]]
    """
    weights = np.asarray(kernel, np.float32)
    if weights.ndim != 4 or weights.shape[2] not in (1, 3):
        raise ValueError(
            f"`kernel` cannot be shown in color: got {list(weights.shape)}, expected [h w 3 o] or "
            "[h w 1 o]; pass the first layer's"
        )
    largest = np.abs(weights).max(axis=(0, 1, 2))
    scale = np.where(largest > 0, largest, np.float32(1))
    scaled = np.float32(0.5) + np.float32(0.5) * weights / scale
    colored = np.broadcast_to(scaled, (*weights.shape[:2], 3, weights.shape[3]))
    return [np.ascontiguousarray(colored[..., i]) for i in range(weights.shape[3])]


def rgb_kernel(kernel: np.ndarray, spec: PixelSpec) -> np.ndarray:
    """A first layer's kernel with its input channels in the order red, green, blue."""
    return kernel[:, :, ::-1] if spec.channels == "bgr" else kernel


def kernels(params: Params) -> dict[str, np.ndarray]:
    """The convolution kernels f32[h w i o] of a backbone by path."""
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    return {
        name: leaf
        for name, leaf in leaves.items()
        if leaf.ndim == 4 and name.rpartition("/")[2] == "kernel"
    }


def writers(params: Params, endpoint: str, channels: int) -> list[tuple[str, int]]:
    """The filter that computes each channel of an endpoint.

    It belongs to the last convolution of the last block. If the last convolutions are concatenated
    (fire modules), it belongs to the one that computes the channel. The contribution of a shortcut
    is not counted.

    Args:
      params: a backbone's parameters.
      endpoint: a stage or block, "stage4", "stage4/block0".
      channels: the number of channels of the endpoint.

    Returns:
      `(kernel's name, index)` for each channel, in order; empty if no convolution computes them (if
      a BatchNorm is last).

    Example:
      >>> left, right = np.ones((1, 1, 4, 2)), np.ones((3, 3, 4, 1))
      >>> fire = {"expand1x1": {"kernel": left}, "expand3x3": {"kernel": right}}
      >>> writers({"stage1": {"block0": fire}}, "stage1", 3)[1:]
      [('stage1/block0/expand1x1/kernel', 1), ('stage1/block0/expand3x3/kernel', 0)]
    """
    sizes = {
        name: kernel.shape[3]
        for name, kernel in kernels(params).items()
        if name.startswith(f"{endpoint}/")
    }
    names = sorted((name for name in sizes if "/shortcut/" not in name), key=natural_order)
    if names:  # "stage4/block10/", "stage5/conv2/", "stem/"
        last = "/".join(names[-1].split("/")[:-1][:2])
        names = [name for name in names if name.startswith(f"{last}/")]
    if single := [name for name in names if sizes[name] == channels]:
        return [(single[-1], i) for i in range(channels)]
    concatenated = [(name, i) for name in names if "/expand" in name for i in range(sizes[name])]
    return concatenated if len(concatenated) == channels else []


def natural_order(name: str) -> list[str | int]:
    """A key to sort paths by: block 10 after block 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def changes(before: Params, after: Params) -> list[FilterChange]:
    """The change of every filter between two sets of weights of one network, the largest first.

    Pass the weights without BatchNorm folded in. Dead filters, whose norm before is below `DEAD` of
    their layer's median, are left out.

    Args:
      before, after: a backbone's parameters, `variables["params"]["backbone"]`; kernels f32[h w i
        o] (depthwise: i = 1).

    Returns:
      One row per filter, by falling `relative`, then by name and index.

    Raises:
      ValueError: if the kernels of the two do not have the same names and shapes.

    Example:
      >>> one = {"stem": {"kernel": np.ones((3, 3, 3, 2), np.float32)}}
      >>> two = {"stem": {"kernel": one["stem"]["kernel"] * np.float32([1.0, 1.5])}}
      >>> [(row.index, row.relative) for row in changes(one, two)]
      [(1, 0.5), (0, 0.0)]
    """
    old, new = kernels(before), kernels(after)
    _check_same_network(old, new)
    rows = []
    for name, kernel in old.items():
        norm, change = (
            np.sqrt(np.square(k, dtype=np.float64).sum(axis=(0, 1, 2)))
            for k in (kernel, new[name].astype(np.float64) - kernel)
        )
        alive = (norm > 0) & (norm >= DEAD * np.median(norm))
        rows += [
            FilterChange(name, int(i), float(change[i] / norm[i])) for i in np.flatnonzero(alive)
        ]
    return sorted(rows, key=lambda row: (-row.relative, row.name, row.index))


def _check_same_network(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> None:
    if single := sorted(set(old) ^ set(new)):
        others = new if single[0] in old else old
        raise ValueError(
            f"`before` and `after` are of different networks: {single[0]!r} is a kernel of one "
            f"only; nearest in the other: {nearest(single[0], others)}"
        )
    for name, kernel in old.items():
        if kernel.shape != new[name].shape:
            raise ValueError(
                f"`before` and `after` are of different networks: {name} is {list(kernel.shape)} "
                f"before and {list(new[name].shape)} after"
            )
