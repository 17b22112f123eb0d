"""The tensors of a weights file, without wrappers of torch, normalizing layers and copies.

This module does not know architectures: `tl.models.fitting` removes the other prefixes of names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tl.labels.names import counted

Arrays = dict[str, np.ndarray]


class Contents(NamedTuple):
    """The tensors of a file, and what else the file says about them.

    Attributes:
      arrays: name -> array, with the dtype and in the order of the file, without `prefix`.
      format: "safetensors", "torch", "numpy", "numpy pickle" or "keras".
      metadata: JSON-ready values: safetensors' `__metadata__`, timm's `arch`, `epoch`, `metric` and
        `args`, the name and preprocessing layers of a Keras config, and "normalizer" with `mean`
        and `std` if the file has a layer that normalizes its input; empty if there are none.
      chosen: key path of the dict that was read, such as "state_dict_ema"; "" for the top level.
      prefix: what was removed from the beginning of all names, such as "module.", or "".
      left_out: names of the entries that are not among `arrays`, such as "optimizer" and "epoch".
      remarks: what a user should know about this choice, one sentence each.
    """

    arrays: Arrays
    format: str
    metadata: Mapping[str, Any] = {}
    chosen: str = ""
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


# Attributes under which torch's wrappers hold the network; no architecture has such a name.
_WRAPPERS = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
}


def without_wrappers(named: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Names without the parts of torch's wrappers, and the part that all names began with."""
    bare = {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS) or name: value
        for name, value in named.items()
    }
    if len(bare) < len(named):  # two names would become one
        return dict(named), ""
    prefix = ""
    for part in os.path.commonprefix([name.split(".")[:-1] for name in named if "." in name]):
        if part not in _WRAPPERS:
            break
        prefix += f"{part}."
    return bare, prefix


def shared_prefix(names: Mapping[str, Any]) -> str:
    """The parts, each ended by a dot or slash, with which all names begin."""
    parts = os.path.commonprefix([re.findall(r"[^./]*[./]", name) for name in names])
    return "".join(parts)


def cleaned(read: Contents) -> Contents:
    """The tensors of the network alone: without wrappers, a normalizing layer, and copies.

    The layer that normalizes the input of a wrapped network (`normalizer.new_mean`, as in
    MadryLab's robustness library) becomes "normalizer" in the metadata.
    """
    arrays, prefix = without_wrappers(read.arrays)
    remarks = list(read.remarks)
    changed = sum(a != b for a, b in zip(arrays, read.arrays, strict=True))
    if changed:
        what = f"prefix {prefix!r}" if prefix else "the name of a wrapper"
        remarks.append(f"{what} was removed from the names of {counted(changed, 'tensor')}")
    left_out = list(read.left_out)
    metadata = dict(read.metadata)
    # Counters of torch.optim.swa_utils.AveragedModel and of mmengine's BaseAveragedModel.
    for name in ("n_averaged", "steps"):
        if name in arrays and arrays[name].size == 1:
            del arrays[name]
            left_out.append(name)
    flat = {f"ema_{name.replace('.', '_')}" for name in arrays}  # buffers of mmcv's EMAHook
    if copies := [name for name in arrays if name in flat]:
        arrays = {name: array for name, array in arrays.items() if name not in flat}
        left_out += copies
        remarks.append(
            f"{len(copies)} tensors named ema_* are left out, because mmcv stores the averaged "
            "weights under the usual names"
        )
    for mean, std in _normalizers(arrays):
        values = {"mean": _numbers(arrays.pop(mean)), "std": _numbers(arrays.pop(std))}
        left_out += [mean, std]
        if metadata.setdefault("normalizer", values) is values:
            remarks.append(
                f"the file normalizes its input with mean {values['mean']} and std {values['std']} "
                f"({mean.rpartition('.')[0][:40] or 'mean, std'})"
            )
    for copy, original in _copies(arrays):
        names = [name for name in arrays if name.startswith(copy)]
        arrays = {name: array for name, array in arrays.items() if not name.startswith(copy)}
        left_out.append(copy.rstrip("."))
        remarks.append(
            f"{counted(len(names), 'tensor')} under {copy[:60]!r} are left out as copies of those "
            f"under {original[:60]!r}"
        )
    return read._replace(
        arrays=arrays,
        metadata=metadata,
        prefix=prefix,
        left_out=tuple(left_out),
        remarks=tuple(remarks),
    )


def _numbers(array: np.ndarray) -> list[float]:
    """The values in the fewest decimals that give the same float32."""
    return [float(str(value)) for value in array.astype(np.float32).ravel()]


def _normalizers(arrays: Arrays) -> list[tuple[str, str]]:
    """Pairs of names: the mean and the standard deviation of a few channels, in one module."""
    pairs = []
    for name, array in arrays.items():
        scope, dot, last = name.rpartition(".")
        found = re.fullmatch(r"(\w*_)?(mean|mu)", last)
        if not found or not 1 <= array.size <= 4:
            continue
        for std in ("std", "sigma", "stdev"):
            partner = f"{scope}{dot}{found[1] or ''}{std}"
            if partner in arrays and arrays[partner].size == array.size:
                pairs.append((name, partner))
                break
    return pairs


def _copies(arrays: Arrays) -> list[tuple[str, str]]:
    """Pairs of prefixes whose tensors are all equal: the copy, and the original.

    A pair must have 80 % of all tensors, so that equal layers of one network are no pair.
    """
    shared = shared_prefix(arrays)
    suffixes: dict[str, list[str]] = {}
    for name in arrays:
        parts = name[len(shared) :].split(".")
        for depth in range(1, min(4, len(parts))):
            prefix = shared + ".".join(parts[:depth]) + "."
            suffixes.setdefault(prefix, []).append(name[len(prefix) :])
    large = sorted(
        (prefix for prefix, rest in suffixes.items() if 5 * len(rest) >= 2 * len(arrays)),
        key=lambda prefix: prefix.count("."),
    )
    pairs: list[tuple[str, str]] = []
    for index, original in enumerate(large):
        for copy in large[index + 1 :]:
            rest = suffixes[original]
            nested = copy.startswith(original) or any(copy.startswith(p) for p, _ in pairs)
            if nested or set(rest) != set(suffixes[copy]):
                continue
            both = [(arrays[original + name], arrays[copy + name]) for name in rest]
            varied = any(a.size > 1 and (a != a.flat[0]).any() for a, _ in both)
            if varied and all(np.array_equal(a, b) for a, b in both):
                pairs.append((copy, original))
    return pairs
