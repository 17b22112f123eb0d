"""Chooses the weights of a network among the entries of a checkpoint.

A training checkpoint holds weights under a key, often a second copy averaged over the training
(EMA), settings, and the state of an optimizer. `contents` chooses the weights by the names of the
keys and reports everything else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from tl.weights.contents import Arrays, Contents, cleaned, shared_prefix, without_wrappers
from tl.weights.pickles import NumpyArray, Placeholder, Tensor, module_entries

# Keys of weights that come before others, as in timm.
_FIRST = ("state_dict", "model", "model_state_dict")
# Words of which the keys of weights consist.
_WEIGHTS = set(
    "state model weight weights params parameters net network dict sd module student online "
    "checkpoint ckpt best last final pretrained variables".split()
)
# Words that mark weights averaged over the training.
_AVERAGED = {"ema", "shadow", "averaged", "average", "avg", "swa", "teacher"}
# Words that mark entries that are not weights of a network.
_TRAINING = set(
    "opt optim optimizer optimizers optimiser scheduler schedulers schedule scaler amp loops "
    "callbacks loss criterion rng momentum buffer sampler collected".split()
)
# Branches of one dict among which averaged weights are looked for.
_MOST_BRANCHES = 100
# Values of metadata that are kept: numbers, words and settings.
_MOST_VALUES, _MOST_LETTERS, _MOST_NUMBERS = 2000, 500, 16


def _words(key: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", key).lower()))


class _State(NamedTuple):
    """A dict of weights: its key path, name -> leaf, and the names of its other entries."""

    path: tuple[str, ...]
    leaves: dict[str, Any]
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "/".join(self.path)

    @property
    def shown(self) -> str:
        """The name for messages: short, without control characters."""
        return "".join(c if c.isprintable() else "?" for c in self.name[:50])

    @property
    def averaged(self) -> bool:
        return any(_words(key) & _AVERAGED for key in self.path)


def _is_leaf(node: Any) -> bool:
    return isinstance(node, (Tensor, np.ndarray)) or (
        isinstance(node, NumpyArray) and node.array is not None
    )


def _array(leaf: Any) -> np.ndarray:
    if isinstance(leaf, np.ndarray):
        return leaf
    return leaf.array() if isinstance(leaf, Tensor) else leaf.array


def _entries(node: Any) -> dict[str, Any] | None:
    """The named parts of a dict, a list or a pickled module; None for other nodes."""
    if isinstance(node, Mapping):
        return {str(key): value for key, value in node.items()}
    if isinstance(node, (list, tuple)) and not isinstance(node, Tensor):
        return {str(number): value for number, value in enumerate(node)}
    if isinstance(node, Placeholder):
        return dict(module_entries(node)) or {str(k): v for k, v in node.entries.items()} or None
    return None


def _with_tensors(tree: Any) -> set[int]:
    """The ids of all nodes of a tree that contain a tensor."""
    parents: dict[int, list[int]] = {}
    nodes, visited, reached = [tree], {id(tree)}, []
    for node in nodes:  # which grows
        if _is_leaf(node):
            reached.append(id(node))
        for child in (_entries(node) or {}).values():
            parents.setdefault(id(child), []).append(id(node))
            if id(child) not in visited and not isinstance(child, (str, bytes, int, float)):
                visited.add(id(child))
                nodes.append(child)
    found: set[int] = set()
    while reached:
        if (node_id := reached.pop()) not in found:
            found.add(node_id)
            reached += parents.get(node_id, [])
    return found


def _flat(tree: Any) -> tuple[dict[str, Any], list[str]]:
    """Names joined by "/" -> leaves, and the names of all that is not a tensor."""
    flat: dict[str, Any] = {}
    others: list[str] = []
    visited: set[int] = set()

    def walk(node: Any, prefix: str) -> None:
        entries = _entries(node)
        if _is_leaf(node):
            flat[prefix] = node
        elif entries is None:
            others.append(prefix)
        else:
            # A container that contains itself, or is in many others, could take forever to walk.
            if id(node) in visited and entries:
                raise ValueError(f"the {type(node).__name__} {prefix!r} is in the file twice")
            visited.add(id(node))
            for key, value in entries.items():
                walk(value, f"{prefix}/{key}" if prefix else key)

    walk(tree, "")
    return flat, others


def _states(
    node: Any, holding: set[int], visited: set[int], path: tuple[str, ...] = ()
) -> Iterator[_State]:
    """The dicts of weights in a tree, the preferred first."""
    if id(node) in visited:  # a dict in many others could take forever to walk
        return
    visited.add(id(node))
    entries = _entries(node) or {}
    parts = {key: value for key, value in entries.items() if id(value) in holding}
    leaves = {key: value for key, value in parts.items() if _is_leaf(value)}
    inner = {
        key: value
        for key, value in parts.items()
        if key not in leaves and not _words(key) & _TRAINING
    }
    known = [key for key in inner if _words(key) and _words(key) <= _WEIGHTS | _AVERAGED]
    known.sort(key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST))
    averaged = [key for key in inner if _words(key) & _AVERAGED]
    full = [value for value in entries.values() if _entries(value) != {}]
    single = len(inner) == 1 < len(full) and not leaves
    if "batch_stats" not in inner and not any("." in key for key in leaves):
        # Statistics under "batch_stats" belong to the parameters next to them.
        for keys in (known, list(inner) if single or averaged else []):
            if keys and len(leaves) <= len(_entries(inner[keys[0]]) or ()):
                for key in keys:
                    yield from _states(inner[key], holding, visited, (*path, key))
                return
    if any("." in key for key in leaves):  # a state dict of torch
        inner = {}
    flat, others = _flat(leaves | inner)
    if flat:
        yield from _branches(_State(path, flat, tuple(others)))


def _averaged_states(
    node: Any, holding: set[int], visited: set[int], path: tuple[str, ...]
) -> Iterator[_State]:
    """The averaged weights among other entries."""
    for key, value in (_entries(node) or {}).items():
        if id(value) not in holding or _is_leaf(value) or id(value) in visited:
            continue
        if _words(key) & _AVERAGED and any("." in name for name in _entries(value) or {}):
            yield from _states(value, holding, visited, (*path, key))
        else:
            visited.add(id(value))
            yield from _averaged_states(value, holding, visited, (*path, key))


def _branches(state: _State) -> Iterator[_State]:
    """A state, or its averaged and its other weights if they are side by side in one dict."""
    bare, _ = without_wrappers(state.leaves)
    shared = shared_prefix(bare)
    groups: dict[str, dict[str, Any]] = {}
    for name, leaf in bare.items():
        first, _, rest = name[len(shared) :].partition(".")
        groups.setdefault(first, {})[rest] = leaf
    few = len(groups) <= _MOST_BRANCHES
    for first, leaves in groups.items():
        for other, raw in groups.items() if _words(first) & _AVERAGED and few else ():
            if other != first and "" not in leaves and _same_network(leaves, raw):
                for word, chosen in ((other, raw), (first, leaves)):
                    others = (key for key in groups if key != word)
                    yield _State((*state.path, word), chosen, (*state.others, *others))
                return
    yield state


def _shape(leaf: Any) -> tuple[int, ...]:
    return leaf.shape if isinstance(leaf, Tensor) else np.shape(_array(leaf))


def _same_network(averaged: Mapping[str, Any], raw: Mapping[str, Any]) -> bool:
    """Whether averaged weights have the names and shapes of at least half of the raw ones."""
    first, second = without_wrappers(averaged)[0], without_wrappers(raw)[0]
    common = first.keys() & second.keys()
    return 2 * len(common) >= len(second) and all(
        _shape(first[name]) == _shape(second[name]) for name in common
    )


def flat_arrays(tree: Any) -> Arrays:
    """All tensors of a tree, with the names of nested dicts joined by "/"."""
    return {name: _array(leaf) for name, leaf in _flat(tree)[0].items()}


def contents(
    tree: Any, form: str, which: str = "", metadata: Mapping[str, Any] | None = None
) -> Contents:
    """The weights among the entries of a file.

    Args:
      tree: nested dicts, lists, arrays, and tensors and placeholders of `pickles`.
      form: the `format` of the contents.
      which: as in `readers.open_weights`.
      metadata: what the file says next to the tree.

    Raises:
      ValueError: there is no tensor, or nothing is named `which`.
    """
    holding = _with_tensors(tree)
    if _is_leaf(tree) or id(tree) not in holding:
        raise ValueError(f"it has no dict of tensors: {_describe(tree)}")
    states = list(_states(tree, holding, set()))
    if states and "callbacks" in (entries := _entries(tree) or {}):  # of Lightning
        states += _averaged_states(entries["callbacks"], holding, set(), ("callbacks",))
    if not states:
        raise ValueError(f"it has tensors, but no weights of a network: {_describe(tree)}")
    state, remarks = _choose(states, which)
    found, left_out = _surroundings(tree, state, holding)
    arrays = {name: _array(leaf) for name, leaf in state.leaves.items()}
    return cleaned(
        Contents(
            arrays,
            form,
            {**(metadata or {}), **found},
            state.name,
            "",
            tuple(left_out),
            tuple(remarks),
        )
    )


def _describe(tree: Any) -> str:
    """The type of a tree and its first keys, for error messages."""
    if isinstance(tree, Placeholder):
        return f"got an object of {tree.path}"
    entries = _entries(tree)
    if entries is None:
        return f"got {type(tree).__name__}"
    parts = [f"{key[:40]} ({_type_name(value)})" for key, value in list(entries.items())[:5]]
    return f"got {type(tree).__name__.strip('_').lower()} with {', '.join(parts) or 'nothing'}"


def _type_name(node: Any) -> str:
    if isinstance(node, Placeholder):
        return node.path[:60]
    return "array" if isinstance(node, (Tensor, NumpyArray)) else type(node).__name__.strip("_")


def _choose(states: list[_State], which: str) -> tuple[_State, list[str]]:
    """The state that `which` names, or by default averaged weights before others, as in timm.

    Reference:
      timm 1.0, models/_helpers.py, `load_state_dict`.
    """
    raw = [state for state in states if not state.averaged]
    averaged = [state for state in states if state.averaged]
    usable = [state for state in averaged if not raw or _same_network(state.leaves, raw[0].leaves)]
    if which == "ema":
        chosen = usable or averaged
    elif which == "raw":
        chosen = raw
    elif which:
        spelled = which.replace(".", "/")
        chosen = [state for state in states if state.name.replace(".", "/") == spelled]
        chosen = chosen or [state for state in states if state.path and state.path[-1] == which]
    else:
        chosen = usable or raw or averaged
    if not chosen:
        names = ["ema"] * bool(averaged) + ["raw"] * bool(raw)
        names += [state.name for state in states if state.path]
        raise ValueError(
            f"it has no weights named `which={which[:60]}`, expected one of: "
            + ", ".join(name[:60] for name in names[:8])
        )
    state, remarks = chosen[0], []
    if not which and state.averaged and raw:
        remarks.append(
            f"EMA weights ({state.shown}) are used instead of the raw ones "
            f"({raw[0].shown}); `which=raw` selects those"
        )
    elif not which and averaged and state not in averaged:
        remarks.append(
            f"averaged weights ({averaged[0].shown}) are not used, because they lack the names "
            f"and shapes of {state.shown}"
        )
    elif not which and len(states) > 1:
        others = ", ".join(other.shown for other in states if other is not state)
        remarks.append(f"weights {state.shown} are used; `which` selects others: {others[:80]}")
    if state.averaged and raw:
        state, more = _with_statistics(state, raw[0])
        remarks += more
    return state, remarks


def _with_statistics(averaged: _State, raw: _State) -> tuple[_State, list[str]]:
    """Averaged weights, with the running statistics of the raw ones if they have none.

    An average over parameters only, as many scripts keep it, lacks the buffers of BatchNorm.
    """
    own, _ = without_wrappers(averaged.leaves)
    missing = {
        name: leaf for name, leaf in without_wrappers(raw.leaves)[0].items() if name not in own
    }
    if not missing or not all(
        name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in missing
    ):
        return averaged, []
    remark = (
        f"running statistics are those of {raw.shown} ({len(missing)} tensors), because "
        f"{averaged.shown} has none"
    )
    return averaged._replace(leaves=own | missing), [remark]


def _surroundings(tree: Any, state: _State, holding: set[int]) -> tuple[dict[str, Any], list[str]]:
    """The metadata next to a state, and the names of the entries that are not in it."""
    metadata: dict[str, Any] = {}
    left_out: list[str] = []
    node, above = tree, ""
    used = {id(leaf) for leaf in state.leaves.values()}
    first_parts = {name.partition("/")[0] for name in state.leaves}
    for key in (*state.path, None):
        entries = _entries(node) or {}
        inside = key not in entries  # `node` is the dict of weights
        for name, value in entries.items():
            leaf, container = _is_leaf(value), not _is_leaf(value) and id(value) in holding
            if name == key or (inside and leaf and (id(value) in used or key is not None)):
                continue  # among the weights, or of another branch, which `state.others` names
            if inside and container and name.partition("/")[0] in first_parts:
                continue
            left_out.append(f"{above}{name}"[:100])
            if not container and not _words(name) & _TRAINING:
                json = _json(value, [_MOST_VALUES])
                if json is not None:
                    metadata.setdefault(name[:100], json)
        if inside:
            break
        node, above = entries[key], f"{above}{key}/"
    inner = [f"{above}{name}"[:100] for name in state.others]
    return metadata, left_out + [name for name in inner if name not in left_out]


def _json(node: Any, budget: list[int], depth: int = 6) -> Any:
    """A value as JSON can hold it; None for tensors and for what is too large or too deep."""
    budget[0] -= 1
    if budget[0] < 0 or depth < 0:
        return None
    if isinstance(node, (bool, int)) or (isinstance(node, float) and math.isfinite(node)):
        return node if abs(node) < 2**63 else None
    if isinstance(node, str):
        return node[:_MOST_LETTERS]
    if _is_leaf(node):
        return _array(node).tolist() if math.prod(_shape(node)) <= _MOST_NUMBERS else None
    if isinstance(node, Placeholder):
        if node.path.startswith("pathlib"):
            return str(PurePosixPath(*map(str, node.args)))[:_MOST_LETTERS]
        attributes = node.attributes or node.entries
        if attributes:
            return _json(dict(attributes), budget, depth)
        arguments = [_json(argument, budget, depth - 1) for argument in node.args]
        return f"{node.path}({', '.join(map(str, arguments))})"[:_MOST_LETTERS]
    if isinstance(node, Mapping):
        values = {str(k): _json(value, budget, depth - 1) for k, value in node.items()}
        return {key: value for key, value in values.items() if value is not None} or None
    if isinstance(node, (list, tuple, set)):
        values = [_json(value, budget, depth - 1) for value in node]
        return [value for value in values if value is not None] or None
    return None
