"""From a file's tensors to `tl`'s variables by a rename table: strict both ways, and one error that lists everything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tl.paths import flatten, unflatten

# How a source lays out a tensor, as the function that turns it to tl's layout (kernels HWIO, dense IO).
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda a: a,
    "oihw": lambda a: a.transpose(2, 3, 1, 0),
    "oi": lambda a: a.transpose(1, 0),
    "chw_7x7": lambda a: a.reshape(a.shape[0], -1, 7, 7).transpose(2, 3, 1, 0).reshape(-1, a.shape[0]),  # torch's VGG
}
RANKS = {"oihw": 4, "oi": 2, "chw_7x7": 2}


class Target(NamedTuple):
    """Where one source tensor goes: `tl`'s name of the leaf, and the source's layout."""

    path: str
    layout: str = "same"


Table = Mapping[str, Target]
"""Source name -> target; made by the functions of `tl.weights.tables` from an architecture's own numbers."""


def port(
    arrays: Mapping[str, np.ndarray], table: Table, shapes: Mapping[str, Any], *, ignore: tuple[str, ...] = ()
) -> dict:
    """The variables that a file holds, renamed and laid out as `tl` wants them.

    Args:
      arrays: name -> array, as `readers.read` returns them.
      table: source name -> target.
      shapes: nested tree of things with a `shape`: the variables expected, all of them.
      ignore: endings of source names that are known and not needed (torch's `num_batches_tracked`).

    Returns:
      Nested variables, float32.

    Raises:
      ValueError: missing, extra and misshaped tensors and non-finite values, every one of them in one message.
    """
    wanted = {name: tuple(leaf.shape) for name, leaf in flatten(shapes).items()}
    problems, out = [], {}
    for source in sorted(set(table) - set(arrays)):
        problems.append(f"missing {source} (for {table[source].path})")
    for source in sorted(arrays):
        if source in table:
            path, layout = table[source]
            found = arrays[source]
            if found.ndim != RANKS.get(layout, found.ndim) or (layout == "chw_7x7" and found.shape[1] % 49):
                problems.append(f"shape of {source} is {found.shape}, which is no {layout} layout")
                continue
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and is told below
                array = LAYOUTS[layout](found).astype(np.float32)
            if path in wanted and array.shape != wanted[path]:
                problems.append(f"shape of {source} is {found.shape}; {path} wants {wanted[path]} after {layout!r}")
            elif not np.isfinite(array).all():
                problems.append(f"{source} holds NaN or infinity")
            out[path] = array
        elif not source.endswith(ignore or ("\0",)):
            problems.append(f"extra {source} {arrays[source].shape}")
    filled = Counter(target.path for target in table.values())
    problems += [f"two rows of the table fill {path}" for path in sorted(filled) if filled[path] > 1]
    for path in sorted(set(wanted) - set(filled)):
        problems.append(f"no row of the table fills {path}")
    for path in sorted(set(out) - set(wanted)):
        problems.append(f"the table fills {path}, which this network does not have")
    if problems:
        raise ValueError(f"these weights do not fit ({len(problems)} mismatches): " + "; ".join(problems))
    return unflatten({path: np.ascontiguousarray(array) for path, array in out.items()})
