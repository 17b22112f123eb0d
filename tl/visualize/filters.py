"""Filters themselves, with no picture run through them: a first layer's as colour tiles, and how far training moved each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from tl.paths import flatten, nearest
from tl.types import Array, Params

DEAD = 0.05  # of the layer's median norm: a filter below it has no meaningful ratio (chosen, not tuned)


class Moved(NamedTuple):
    """How far one filter went.

    Attributes:
      name: the kernel's path in the backbone, "stage4/block0/conv1/kernel".
      index: which of its outputs.
      relative: ||after - before|| / ||before||, Frobenius; 0 where not a bit changed.
    """

    name: str
    index: int
    relative: float


def tiles(kernel: Array) -> list[np.ndarray]:
    """A first layer's filters as colour pictures, each stretched by its own largest weight, either way about mid-grey.

    Args:
      kernel: f32[h w 3 o], input channels red, green, blue (f32[h w 1 o]: grey); of weights that want BGR, turn axis 2 first.

    Returns:
      o pictures f32[h w 3] in [0, 1]; a zero weight is 0.5, and a filter of zeros is flat grey.

    Raises:
      ValueError: not four axes, or neither 3 nor 1 input channels.

    Example:
      >>> tile, = tiles(np.array([-0.1, 0.0, 0.2], np.float32).reshape(1, 1, 3, 1))
      >>> tile.tolist()
      [[[0.25, 0.5, 1.0]]]
    """
    weights = np.asarray(kernel, np.float32)
    if weights.ndim != 4 or weights.shape[2] not in (1, 3):
        raise ValueError(
            f"filters are shown in colour from a kernel [h w 3 o] (or [h w 1 o]); got {list(weights.shape)}: take the "
            "first layer's"
        )
    largest = np.abs(weights).max(axis=(0, 1, 2))
    stretched = np.float32(0.5) + np.float32(0.5) * weights / np.where(
        largest > 0, largest, np.float32(1)
    )
    coloured = np.broadcast_to(stretched, (*weights.shape[:2], 3, weights.shape[3]))
    return [np.ascontiguousarray(coloured[..., i]) for i in range(weights.shape[3])]


def kernels(params: Params) -> dict[str, np.ndarray]:
    """The convolution kernels of a backbone's parameters by path, f32[h w i o]; biases, scales and dense layers left out."""
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    return {
        name: leaf
        for name, leaf in leaves.items()
        if leaf.ndim == 4 and name.rpartition("/")[2] == "kernel"
    }


def writers(params: Params, endpoint: str, channels: int) -> list[tuple[str, int]]:
    """Which filter writes each channel of an endpoint: the last convolution of its last block, or those put side by side.

    What a shortcut adds to a channel is not counted.

    Args:
      params: a backbone's parameters.
      endpoint: a stage or block, "stage4", "stage4/block0".
      channels: how many the endpoint has.

    Returns:
      `(kernel's name, index)` a channel, in their order; nothing where no convolution writes them (a last BatchNorm).

    Example:
      >>> sides = {"expand1x1": {"kernel": np.ones((1, 1, 4, 2))}, "expand3x3": {"kernel": np.ones((3, 3, 4, 1))}}
      >>> writers({"stage1": {"block0": sides}}, "stage1", 3)[1:]
      [('stage1/block0/expand1x1/kernel', 1), ('stage1/block0/expand3x3/kernel', 0)]
    """
    sizes = {
        name: kernel.shape[3]
        for name, kernel in kernels(params).items()
        if name.startswith(f"{endpoint}/")
    }
    names = sorted((name for name in sizes if "/shortcut/" not in name), key=in_order)
    if names:  # "stage4/block10/", "stage5/conv2/", "stem/"
        last = "/".join(names[-1].split("/")[:-1][:2])
        names = [name for name in names if name.startswith(f"{last}/")]
    if alone := [name for name in names if sizes[name] == channels]:
        return [(alone[-1], i) for i in range(channels)]
    top_activating = [(name, i) for name in names if "/expand" in name for i in range(sizes[name])]
    return top_activating if len(top_activating) == channels else []


def in_order(name: str) -> list[str | int]:
    """A key to sort paths by: block 10 after block 9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def moved(before: Params, after: Params) -> list[Moved]:
    """How far every filter went between two sets of weights of one network, the farthest first.

    Of the plain weights, not those with BatchNorm folded in. Dead filters, below `DEAD` of their layer's median norm before,
    are left out.

    Args:
      before, after: a backbone's parameters, `variables["params"]["backbone"]`; kernels f32[h w i o] (depthwise: i = 1).

    Returns:
      A row a filter, by falling `relative`, then by name and index.

    Raises:
      ValueError: the kernels of the two have not the same names and shapes.

    Example:
      >>> one = {"stem": {"kernel": np.ones((3, 3, 3, 2), np.float32)}}
      >>> two = {"stem": {"kernel": one["stem"]["kernel"] * np.float32([1.0, 1.5])}}
      >>> moved(one, two)
      [Moved(name='stem/kernel', index=1, relative=0.5), Moved(name='stem/kernel', index=0, relative=0.0)]
    """
    old, new = kernels(before), kernels(after)
    _same_network(old, new)
    rows = []
    for name, kernel in old.items():
        start, change = (
            np.sqrt(np.square(k, dtype=np.float64).sum(axis=(0, 1, 2)))
            for k in (kernel, new[name].astype(np.float64) - kernel)
        )
        alive = (start > 0) & (start >= DEAD * np.median(start))
        rows += [Moved(name, int(i), float(change[i] / start[i])) for i in np.flatnonzero(alive)]
    return sorted(rows, key=lambda row: (-row.relative, row.name, row.index))


def _same_network(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> None:
    if lone := sorted(set(old) ^ set(new)):
        near = nearest(lone[0], new if lone[0] in old else old)
        raise ValueError(
            f"these are two networks: {lone[0]!r} is a kernel of one only; nearest in the other: {near}"
        )
    for name, kernel in old.items():
        if kernel.shape != new[name].shape:
            raise ValueError(
                f"these are two networks: {name} is {list(kernel.shape)} before and {list(new[name].shape)} after"
            )
