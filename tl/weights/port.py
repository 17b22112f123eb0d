"""Renames the tensors of a file to `tl`'s variables by a table.

Every tensor must be used and every variable must be filled; one error summarizes all mismatches and
lists them in its `details`. The tables are in `tl.weights.tables`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tl.paths import flatten, nearest, unflatten
from tl.types import DetailedError

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """The layout of a tensor in a source.

    Attributes:
      rank: number of axes in the source, or None for any.
      ours: converts a tensor to tl's layout (kernels HWIO, dense layers IO, feature maps flattened
        row by row).
      theirs: converts tl's shape to the source's.
    """

    rank: int | None
    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[Shape], Shape]


LAYOUTS = {
    "same": Layout(None, lambda a: a, lambda s: s),
    "oihw": Layout(4, lambda a: a.transpose(2, 3, 1, 0), lambda s: (s[3], s[2], s[0], s[1])),
    "oi": Layout(2, lambda a: a.T, lambda s: (s[1], s[0])),
    # torch's 1x1 convolution, a dense layer in tl.
    "oi11": Layout(4, lambda a: a[:, :, 0, 0].T, lambda s: (s[1], s[0], 1, 1)),
    # Keras' 1x1 convolution, a dense layer in tl.
    "11io": Layout(4, lambda a: a[0, 0], lambda s: (1, 1, *s)),
    # Keras' depthwise convolution.
    "hwcm": Layout(4, lambda a: a.transpose(0, 1, 3, 2), lambda s: (s[0], s[1], s[3], s[2])),
    # torchvision's VGG: a dense layer on a 7x7 map that is flattened channel by channel.
    "chw_7x7": Layout(
        2,
        lambda a: a.reshape(len(a), -1, 7, 7).transpose(2, 3, 1, 0).reshape(-1, len(a)),
        lambda s: (s[1], s[0]),
    ),
    # timm's VGG: the same matrix as a 7x7 convolution.
    "oi77": Layout(
        4, lambda a: a.transpose(2, 3, 1, 0).reshape(-1, len(a)), lambda s: (s[1], s[0] // 49, 7, 7)
    ),
}


class Target(NamedTuple):
    """The leaf that a source tensor fills: its path in the variables, and the source's layout."""

    path: str
    layout: str = "same"


Table = Mapping[str, Target]
"""Source name -> target. The functions in `tl.weights.tables` create it from an architecture."""


def port(
    arrays: Mapping[str, np.ndarray],
    table: Table,
    shapes: Mapping[str, Any],
    *,
    ignore: tuple[str, ...] = (),
    cast: bool = False,
) -> dict:
    """The variables of a file, with `tl`'s names and layouts.

    Args:
      arrays: name -> array, as `readers.read` returns them.
      table: source name -> target.
      shapes: nested tree of values with a `shape`: all variables of the network.
      ignore: suffixes of the names of unneeded tensors, such as torch's `num_batches_tracked`.
      cast: whether to convert tensors of another number type to float32 instead of raising an
        error.

    Returns:
      Nested variables, float32.

    Raises:
      DetailedError: there are missing, extra or misshaped tensors, other number types, or
        non-finite values; the message has their number and the first three, `details` all of them.
    """
    expected = {name: tuple(leaf.shape) for name, leaf in flatten(shapes).items()}
    problems, types, out = [], Counter(), {}
    for source in sorted(set(table) - set(arrays)):
        problems.append(f"missing {source} (for {table[source].path})")
    for source in sorted(arrays):
        array = arrays[source]
        if source not in table:
            if not source.endswith(ignore):
                problems.append(f"extra {source} {array.shape}")
            continue
        path, layout = table[source]
        theirs = LAYOUTS[layout].theirs(expected[path]) if path in expected else array.shape
        if array.shape != theirs:
            transposed = array.shape in (theirs[::-1], _swapped(theirs))
            problems.append(
                f"shape of {source}: got {array.shape}{', the transpose' if transposed else ''}, "
                f"expected {theirs} for {path} in the layout {layout!r}"
            )
            continue
        if array.dtype != np.float32 and not cast:
            problems.append(f"{source} is {array.dtype}, expected float32")
            types[str(array.dtype)] += 1
            continue
        with np.errstate(over="ignore"):  # an overflow becomes infinity, which is reported below
            out[path] = LAYOUTS[layout].ours(array).astype(np.float32)
        if not np.isfinite(out[path]).all():
            problems.append(f"{source} holds NaN or infinity")
    filled = Counter(target.path for target in table.values())
    problems += [
        f"two rows of the table fill {path}" for path in sorted(filled) if filled[path] > 1
    ]
    for path in sorted(set(expected) - set(filled)):
        problems.append(f"no row of the table fills {path}")
    for path in sorted(set(out) - set(expected)):
        problems.append(f"the table fills {path}, which this network does not have")
    if types and len(problems) == sum(types.values()):
        counts = " and ".join(f"{count} tensors in {name}" for name, count in types.items())
        # A cast of quantized weights gives other numbers than those of the training.
        quantized = any(name.startswith(("int", "uint", "bool")) for name in types)
        advice = "" if quantized else ", or convert the tensors with `cast=True`"
        raise DetailedError(
            f"wrong number type: got {counts} ({_first(problems)}), expected float32, the type of "
            f"the training; use the float32 file{advice}",
            problems,
        )
    if problems:
        mismatches = "1 mismatch" if len(problems) == 1 else f"{len(problems)} mismatches"
        raise DetailedError(
            f"these weights do not fit ({mismatches}): {_first(problems)}{_similar(arrays, table)}",
            problems,
        )
    return unflatten({path: np.ascontiguousarray(array) for path, array in out.items()})


def _swapped(shape: Shape) -> Shape:
    """A shape with its first two axes swapped."""
    return (shape[1], shape[0], *shape[2:]) if len(shape) > 1 else shape


def _first(problems: list[str], count: int = 3) -> str:
    shown = [p if len(p) <= 100 else f"{p[:97]}..." for p in problems[:count]]
    return "; ".join(shown) + ("; ..." if len(problems) > count else "")


def _similar(arrays: Mapping[str, Any], table: Table) -> str:
    """The name in the file that is most similar to the first missing one, if there is one."""
    missing = sorted(set(table) - set(arrays))
    extra = sorted(set(arrays) - set(table))
    if not missing or not extra:
        return ""
    return f"; nearest to {missing[0][:60]} is {nearest(missing[0], extra[:2000], 1)[:60]}"
