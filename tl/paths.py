"""Names of pytree leaves, and what is done by name: label, split, merge, hash; "did you mean"; and where caches live.

A leaf's name is the "/"-joined path to it. One polarity: leaves are *trainable* or *frozen*; there are no masks.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TRAINABLE, FROZEN = "trainable", "frozen"
Rules = Sequence[tuple[str, str]]
"""`((regex, label), ...)`: the first regex that matches a leaf's whole name gives its label."""


def nearest(name: str, names: Iterable[str], n: int = 3) -> str:
    """The `n` known names that look most like `name`, quoted, for an error message.

    Example:
      >>> nearest("resnet5", ["vgg16", "resnet50", "resnet18"], n=1)
      "'resnet50'"
    """
    known = sorted(set(names))
    lowered = {k.lower(): k for k in reversed(known)}
    close = [lowered[m] for m in difflib.get_close_matches(name.lower(), lowered, n=n, cutoff=0.4)]
    close += [k for k in known if k not in close and name and name.lower() in k.lower()]
    return ", ".join(repr(k) for k in (close or known)[:n])


def cache_dir() -> Path:
    """Where feature banks, fingerprints and compiled programs live: `$TL_CACHE`, or `tl` in the user's cache folder."""
    if os.environ.get("TL_CACHE"):
        return Path(os.environ["TL_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tl"


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a nested dict by name, sorted by name.

    Example:
      >>> flatten({"b": {"c": 2}, "a": 1})
      {'a': 1, 'b/c': 2}
    """
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, Mapping):
            for key in node:
                walk(node[key], f"{prefix}/{key}" if prefix else str(key))
        else:
            flat[prefix] = node

    walk(tree, "")
    return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict whose leaves have these names; the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def label(tree: Mapping[str, Any], rules: Rules) -> dict[str, str]:
    """The label of every leaf, by name.

    Args:
      tree: nested dict of arrays.
      rules: `((regex, label), ...)`, matched against whole names; the first match wins.

    Returns:
      name -> label, covering every leaf.

    Raises:
      ValueError: a leaf that no rule covers, a rule that decides nothing, or no leaf left to train;
        all of them in one message. Before that, a rule that is no regular expression.

    Reference:
      Rules that must cover: big_vision, `optax.py::_split_frozen`.

    Example:
      >>> label({"head": {"w": 0}, "stem": {"w": 0}}, [("head/.*", "trainable"), (".*", "frozen")])
      {'head/w': 'trainable', 'stem/w': 'frozen'}
    """
    names = list(flatten(tree))
    for pattern, _ in rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"rule {pattern!r} is no regular expression: {error}") from None
    labels: dict[str, str] = {}
    used = set()
    for name in names:
        for i, (pattern, what) in enumerate(rules):
            if re.fullmatch(pattern, name):
                labels[name] = what
                used.add(i)
                break
    problems = [f"no rule covers {name!r}" for name in names if name not in labels]
    for i, (pattern, _) in enumerate(rules):
        if i not in used:
            problems.append(
                f"rule {pattern!r} decides no leaf; nearest names: {nearest(pattern, names)}"
            )
    if not problems and all(what == FROZEN for what in labels.values()):
        problems.append("every leaf is frozen, so there is nothing to train")
    if problems:
        raise ValueError(f"rules {list(rules)!r} do not fit this tree: " + "; ".join(problems))
    return labels


def split(
    tree: Mapping[str, Any], labels: Mapping[str, str], keep: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The leaves labelled `keep`, and the rest: two trees of the same shape with `None` holes.

    Returns:
      `(kept, rest)`; `None` is an empty pytree to JAX, so gradients and optimizer states of `kept` have no hole.

    Reference:
      equinox `_filters.py::partition`.
    """
    flat = flatten(tree)
    kept = {name: leaf if labels[name] == keep else None for name, leaf in flat.items()}
    rest = {name: None if labels[name] == keep else leaf for name, leaf in flat.items()}
    return unflatten(kept), unflatten(rest)


def merge(kept: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The whole tree again from the two halves of `split`."""
    a, b = flatten(kept), flatten(rest)
    return unflatten({name: b[name] if a[name] is None else a[name] for name in a})


def digest(tree: Mapping[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all leaves: equal exactly when the trees are bit-equal."""
    sha = hashlib.sha256()
    for name, leaf in flatten(tree).items():
        if leaf is not None:
            array = np.asarray(leaf)
            sha.update(f"{name}|{array.dtype}|{array.shape}|".encode())
            sha.update(array.tobytes())
    return sha.hexdigest()
