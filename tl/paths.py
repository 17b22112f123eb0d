"""Operations on pytree leaves by name (partition, split, merge, hash) and suggestions of names.

The name of a leaf is its path, joined by "/". A leaf is either *trainable* or *frozen*; there are
no masks. The module also gives the location of the cache, `cache_dir`.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from tl.types import CacheWarning

TRAINABLE, FROZEN = "trainable", "frozen"
Rules = Sequence[tuple[str, str]]
"""`((regex, label), ...)`: the first regex that matches a leaf's whole name gives its label."""


def nearest(name: str, names: Iterable[str], n: int = 3) -> str:
    """The names most similar to `name`, quoted and joined by commas, for use in an error message.

    Args:
      name: the unknown name.
      names: the known names.
      n: largest number of names in the result.

    Example:
      >>> nearest("resnet5", ["vgg16", "resnet50", "resnet18"], n=1)
      "'resnet50'"
    """
    choices = sorted(set(names))
    lowered = {choice.lower(): choice for choice in reversed(choices)}
    close = [lowered[m] for m in difflib.get_close_matches(name.lower(), lowered, n=n, cutoff=0.4)]
    close += [c for c in choices if c not in close and name and name.lower() in c.lower()]
    return ", ".join(repr(choice) for choice in (close or choices)[:n])


# Scheme of the address of a bucket -> the package of fsspec that reads and writes it.
SCHEMES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}


def is_url(path: object) -> bool:
    """Whether a path is the address of a file or folder in a bucket.

    Example:
      >>> is_url("gs://bucket/pets"), is_url("pets"), is_url("/gs/pets")
      (True, False, False)
    """
    scheme, separator, _ = str(path).partition("://")
    return bool(separator) and scheme in SCHEMES


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path that a user gives: a local one with `~` as the home folder, or one in a bucket.

    `~name` of an unknown user stays as it is. An address in a bucket becomes an `epath.Path`, which
    has the methods of a `Path` but is not an instance of it, and which `os` cannot open.

    Raises:
      ValueError: the package that reads and writes the bucket is not installed.
    """
    if not is_url(path):
        return Path(os.path.expanduser(path))
    scheme = str(path).partition("://")[0]
    package = SCHEMES[scheme]
    if importlib.util.find_spec(package) is None:
        extra = "'tl[gcs]'" if package == "gcsfs" else package
        raise ValueError(
            f"{str(path)!r} needs the package {package}, which is missing; pip install {extra}"
        )
    # Otherwise epath reads with TensorFlow where that is installed, and with fsspec elsewhere.
    os.environ.setdefault("EPATH_USE_TF", "0")
    from etils import epath  # slow imports, which local paths must not pay for
    from fsspec.config import conf

    # A listing that is kept would hide what other processes write.
    for name in (scheme, package.removesuffix("fs")):
        conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    return cast(Path, epath.Path(os.fspath(path)))


def absolute(path: Path) -> Path:
    """The absolute path; that of a file in a bucket is absolute already."""
    return path if is_url(path) else path.absolute()


def ending(text: object, length: int) -> str:
    """The end of a text, at most `length` characters, for a message.

    Example:
      >>> ending("/data/pets/cat", 11), ending("/cat", 11)
      ('...pets/cat', '/cat')
    """
    word = str(text)
    return word if len(word) <= length else f"...{word[3 - length :]}"


def first_few(words: Sequence[str], most: int) -> str:
    """The first words of a list, for a message.

    Example:
      >>> first_few(["a", "b", "c"], 2), first_few(["a", "b"], 2)
      ('a, b, ...', 'a, b')
    """
    return ", ".join(words[:most]) + (", ..." if words[most:] else "")


def shortened(text: str, length: int, end: str = "") -> str:
    """The start of a text, cut at a word, and `end`: at most `length` characters in all.

    A text of at most `length` characters is returned as it is, without `end`.

    Example:
      >>> shortened("one two three", 10), shortened("one two three", 13, "; see log.txt")
      ('one ...', 'one two three')
    """
    if len(text) <= length:
        return text
    start = text[: max(0, length - len(end) - 4)]
    # A word longer than a quarter of the text, such as a path, is cut inside.
    space = start.rfind(" ")
    return f"{start[:space] if 4 * space > 3 * len(start) else start} ...{end}"


def printable(text: str) -> str:
    """The text without lone surrogates, which stand for the bytes of file names not in UTF-8.

    The bytes are written as in Python, so that every UTF-8 file or terminal can hold the result.

    Example:
      >>> printable("caf\\udce9")
      'caf\\\\xe9'
    """
    if text.isascii():
        return text
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        data = text.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


def cache_dir() -> Path:
    """The folder of feature banks, fingerprints and compiled programs.

    It is `$TL_CACHE` if that is set, otherwise `tl` in `$XDG_CACHE_HOME` or `~/.cache`. A relative
    `$XDG_CACHE_HOME` is ignored, as the XDG base directory specification demands. Without a home
    folder, it is a folder that cannot be made.
    """
    if folder := os.environ.get("TL_CACHE"):
        return expanded(folder)
    folder = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(folder):
        home = os.path.expanduser("~")
        folder = os.path.join(home if os.path.isabs(home) else os.devnull, ".cache")
    return Path(folder) / "tl"


def warn_of_cache(folder: Path, error: Exception, variable: str = "") -> None:
    """Warns that a cache cannot be written: the work goes on without it.

    Args:
      folder: the cache, or a folder in `cache_dir`.
      error: why it cannot be written.
      variable: environment variable that names the folder; default: that of `cache_dir`.
    """
    root = cache_dir()
    if not variable:
        names = ("TL_CACHE", "XDG_CACHE_HOME")
        variable = next((name for name in names if os.environ.get(name)), names[0])
        folder = root if root in folder.parents else folder
    reason = getattr(error, "strerror", None) or shortened(" ".join(str(error).split()), 60)
    warnings.warn(
        f"the cache {ending(folder, 60)!r} cannot be written ({reason}), so nothing is kept for "
        f"later runs; set {variable} to another folder",
        CacheWarning,
        stacklevel=3,
    )


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
    """The nested dict with these named leaves; the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


@dataclass(frozen=True)
class Partition:
    """Rules applied to a tree: the label of every leaf, and the split that follows from the labels.

    Make one with `partition`, once per set of rules, and pass it to everything that needs labels.

    Attributes:
      labels: leaf name -> label, covering every leaf.
      groups: the labels in use, in the order of the rules, `FROZEN` last.
    """

    labels: Mapping[str, str]
    groups: tuple[str, ...]

    @functools.cached_property
    def trained(self) -> frozenset[str]:
        """Names of the trainable leaves."""
        return frozenset(name for name, group in self.labels.items() if group != FROZEN)

    @property
    def label_tree(self) -> dict[str, Any]:
        """The tree of labels, with `None` where a leaf is frozen, as `optax.partition` takes it."""
        return unflatten({n: None if g == FROZEN else g for n, g in self.labels.items()})

    def split(self, tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """`(trainable, frozen)`: two trees of the structure of `tree` with `None` holes.

        Args:
          tree: nested dict with the leaf names of the partitioned tree.
        """
        frozen, trainable = split(tree, self.labels, FROZEN)
        return trainable, frozen


def partition(tree: Mapping[str, Any], rules: Rules) -> Partition:
    """Applies rules to a tree.

    Args:
      tree: nested dict of arrays.
      rules: `((regex, label), ...)`, matched against whole names; the first match wins.

    Returns:
      Partition.

    Raises:
      ValueError: a rule is not a regular expression; or no rule covers a leaf, a rule decides no
        leaf, a label resembles "frozen" but differs from it, or no leaf is trainable. The message
        lists all of the latter.

    Reference:
      Rules that must cover every leaf: big_vision, `optax.py::_split_frozen`.

    Example:
      >>> params = {"head": {"w": 0}, "stem": {"w": 0}}
      >>> partition(params, [("head/.*", "trainable"), (".*", "frozen")]).labels
      {'head/w': 'trainable', 'stem/w': 'frozen'}
    """
    names = list(flatten(tree))
    for pattern, _ in rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"rule {pattern!r} is not a regular expression: {error}") from None
    labels: dict[str, str] = {}
    used = set()
    for name in names:
        for i, (pattern, group) in enumerate(rules):
            if re.fullmatch(pattern, name):
                labels[name] = group
                used.add(i)
                break
    problems = [f"no rule covers {name!r}" for name in names if name not in labels]
    for i, (pattern, group) in enumerate(rules):
        if i not in used:
            problems.append(
                f"rule {pattern!r} decides no leaf; nearest names: {nearest(pattern, names)}"
            )
        if group != FROZEN and _like_frozen(group):
            problems.append(
                f"label {group!r} of rule {pattern!r} would train; write {FROZEN!r} to freeze"
            )
    if not problems and all(group == FROZEN for group in labels.values()):
        problems.append("every leaf is frozen, so there is nothing to train")
    if problems:
        raise ValueError(f"rules {list(rules)!r} do not fit this tree: " + "; ".join(problems))
    groups = dict.fromkeys(group for _, group in rules if group in labels.values())
    return Partition(labels, tuple(sorted(groups, key=lambda group: group == FROZEN)))


# Other words for `FROZEN`, and what a configuration file writes for "does not train".
_MEAN_FROZEN = ("fixed", "locked", "static", "const", "constant", "none", "no", "off", "false", "0")


def _like_frozen(group: str) -> bool:
    """Whether a label means `FROZEN`: "forzen", "Frozen", "freeze", "frozen_body", "fixed", "0"."""
    label = group.partition("*")[0].lower()
    # 0.8 (chosen, not tuned) accepts "front", which is 0.73.
    return label in _MEAN_FROZEN or any(
        word.startswith("freez") or difflib.SequenceMatcher(None, word, FROZEN).ratio() >= 0.8
        for word in [label, *label.split("_")]
    )


def split(
    tree: Mapping[str, Any], labels: Mapping[str, str], group: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The leaves with the label `group`, and all other leaves: two trees with `None` holes.

    JAX treats `None` as an empty pytree, so gradients and optimizer states have no leaf for a hole.

    Args:
      tree: nested dict of arrays.
      labels: leaf name -> label.
      group: the label of the first tree.

    Reference:
      equinox `_filters.py::partition`.
    """
    flat = flatten(tree)
    inside = {name: leaf if labels[name] == group else None for name, leaf in flat.items()}
    outside = {name: None if labels[name] == group else leaf for name, leaf in flat.items()}
    return unflatten(inside), unflatten(outside)


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The whole tree from the two halves of `split`, in either order."""
    a, b = flatten(one), flatten(other)
    return unflatten({name: b[name] if a[name] is None else a[name] for name in a})


def digest(tree: Mapping[str, Any]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes of all leaves: equal only for bit-equal trees."""
    sha = hashlib.sha256()
    for name, leaf in flatten(tree).items():
        if leaf is not None:
            array = np.asarray(leaf)
            sha.update(f"{name}|{array.dtype}|{array.shape}|".encode())
            sha.update(array.tobytes())
    return sha.hexdigest()
