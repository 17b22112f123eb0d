"""From a file's tensors to `tl`'s variables by a rename table: strict both ways, and one error that lists everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tl.paths import flatten, unflatten

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How a source lays out a tensor.

    Attributes:
      rank: number of axes there, or None for any.
      ours: the tensor in tl's layout (kernels HWIO, dense IO, pictures flattened row by row).
      theirs: the source's shape, from tl's.
    """

    rank: int | None
    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[Shape], Shape]


LAYOUTS = {
    "same": Layout(None, lambda a: a, lambda s: s),
    "oihw": Layout(4, lambda a: a.transpose(2, 3, 1, 0), lambda s: (s[3], s[2], s[0], s[1])),
    "oi": Layout(2, lambda a: a.T, lambda s: (s[1], s[0])),
    "oi11": Layout(
        4, lambda a: a[:, :, 0, 0].T, lambda s: (s[1], s[0], 1, 1)
    ),  # torch's 1x1 convolution, dense here
    "11io": Layout(
        4, lambda a: a[0, 0], lambda s: (1, 1, *s)
    ),  # Keras' 1x1 convolution, dense here
    "hwcm": Layout(
        4, lambda a: a.transpose(0, 1, 3, 2), lambda s: (s[0], s[1], s[3], s[2])
    ),  # Keras' depthwise
    "chw_7x7": Layout(  # torchvision's VGG: a 7x7 map, flattened channel by channel
        2,
        lambda a: a.reshape(len(a), -1, 7, 7).transpose(2, 3, 1, 0).reshape(-1, len(a)),
        lambda s: (s[1], s[0]),
    ),
    "oi77": Layout(  # timm's VGG: the same matrix as a 7x7 convolution
        4, lambda a: a.transpose(2, 3, 1, 0).reshape(-1, len(a)), lambda s: (s[1], s[0] // 49, 7, 7)
    ),
}


class Target(NamedTuple):
    """Where one source tensor goes: `tl`'s name of the leaf, and the source's layout."""

    path: str
    layout: str = "same"


Table = Mapping[str, Target]
"""Source name -> target; made by the functions of `tl.weights.tables` from an architecture's own numbers."""


def port(
    arrays: Mapping[str, np.ndarray],
    table: Table,
    shapes: Mapping[str, Any],
    *,
    ignore: tuple[str, ...] = (),
    cast: bool = False,
) -> dict:
    """The variables that a file holds, renamed and laid out as `tl` wants them.

    Args:
      arrays: name -> array, as `readers.read` returns them.
      table: source name -> target.
      shapes: nested tree of things with a `shape`: the variables expected, all of them.
      ignore: endings of source names that are known and not needed (torch's `num_batches_tracked`).
      cast: whether numbers of another type than float32 are converted instead of refused.

    Returns:
      Nested variables, float32.

    Raises:
      ValueError: missing, extra and misshaped tensors, other number types and non-finite values, every one in one message.
    """
    wanted = {name: tuple(leaf.shape) for name, leaf in flatten(shapes).items()}
    problems, types, out = [], Counter(), {}
    for source in sorted(set(table) - set(arrays)):
        problems.append(f"missing {source} (for {table[source].path})")
    for source in sorted(arrays):
        found = arrays[source]
        if source not in table:
            if not source.endswith(ignore or ("\0",)):
                problems.append(f"extra {source} {found.shape}")
            continue
        path, layout = table[source]
        theirs = LAYOUTS[layout].theirs(wanted[path]) if path in wanted else found.shape
        if found.shape != theirs:
            hint = (
                ", which is its transpose"
                if found.shape in (theirs[::-1], _swapped(theirs))
                else ""
            )
            problems.append(
                f"shape of {source} is {found.shape}{hint}; {path} wants {theirs} in the layout {layout!r}"
            )
            continue
        if found.dtype != np.float32 and not cast:
            problems.append(f"{source} is {found.dtype}, wanted float32")
            types[str(found.dtype)] += 1
            continue
        with np.errstate(
            over="ignore"
        ):  # what float32 cannot hold becomes infinity, and is told below
            out[path] = LAYOUTS[layout].ours(found).astype(np.float32)
        if not np.isfinite(out[path]).all():
            problems.append(f"{source} holds NaN or infinity")
    filled = Counter(target.path for target in table.values())
    problems += [
        f"two rows of the table fill {path}" for path in sorted(filled) if filled[path] > 1
    ]
    for path in sorted(set(wanted) - set(filled)):
        problems.append(f"no row of the table fills {path}")
    for path in sorted(set(out) - set(wanted)):
        problems.append(f"the table fills {path}, which this network does not have")
    if types and len(problems) == sum(types.values()):
        held = " and ".join(f"{count} tensors in {name}" for name, count in types.items())
        raise ValueError(
            f"these weights hold {held} ({_some(problems)}); wanted float32, as they were trained: take the float32 file, "
            "or say that a conversion is meant (tl.load(..., cast=True), --cast)"
        )
    if problems:
        raise ValueError(
            f"these weights do not fit ({len(problems)} mismatches): " + "; ".join(problems)
        )
    return unflatten({path: np.ascontiguousarray(array) for path, array in out.items()})


def _swapped(shape: Shape) -> Shape:
    """A shape with its first two axes in the other order."""
    return (shape[1], shape[0], *shape[2:]) if len(shape) > 1 else shape


def _some(problems: list[str], count: int = 3) -> str:
    return "; ".join(problems[:count]) + ("; ..." if len(problems) > count else "")
