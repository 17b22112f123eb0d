"""Labelled pictures by name, the parts they are divided in, files from a user's words, and fixed-shape batches of them.

To add a data set: one function that returns a `DataSpec`, and one row in `SETS`. Nothing here normalises.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from tl.data.decode import ImageError, decode
from tl.data.duplicates import content_hash, leaks, split_digest
from tl.data.find import find_images
from tl.data.folder import folder
from tl.data.loader import Batch, load
from tl.data.packaged import Photograph, elpv, photographs
from tl.data.spec import DataSpec, Example, Skipped, Source, Split, Stored
from tl.data.split import (
    Parts,
    divide,
    folds,
    remap_labels,
    remap_test_labels,
    split,
    split_by_content,
    split_stratified,
    split_validation,
)
from tl.data.table import table
from tl.data.tfds import Record, tfds
from tl.paths import nearest

# word -> (function, what follows the colon; "" where nothing does)
SETS: dict[str, tuple[Callable[..., DataSpec], str]] = {
    "folder": (folder, "DIR"),
    "csv": (table, "FILE"),
    "tfds": (tfds, "NAME"),
    "elpv": (elpv, ""),
}


def names() -> tuple[str, ...]:
    """Every data set as a user writes it.

    Example:
      >>> names()
      ('folder:DIR', 'csv:FILE', 'tfds:NAME', 'elpv')
    """
    return tuple(f"{word}:{takes}" if takes else word for word, (_, takes) in SETS.items())


def get(word: str) -> DataSpec:
    """The data set that `folder:DIR`, `csv:FILE`, `tfds:NAME`, `tfds:NAME@DIR` or `elpv` names.

    Raises:
      ValueError: an unknown word, or one whose set cannot be made; it lists the nearest.
    """
    kind, colon, rest = word.partition(":")
    if kind not in SETS:
        if os.path.isdir(os.path.expanduser(word)):
            raise ValueError(
                f"{word!r} is a folder, wanted a data set's name: write 'folder:{word}'"
            )
        raise ValueError(
            f"unknown data set {word!r}, wanted {' or '.join(names())}; nearest: {nearest(kind, SETS)}"
        )
    make, takes = SETS[kind]
    if bool(rest) != bool(takes) or (colon and not takes):
        raise ValueError(
            f"the data set {word!r} is incomplete or has too much, wanted {kind}{takes and ':' + takes}"
        )
    return make(rest) if takes else make()


__all__ = [
    "Batch",
    "DataSpec",
    "Example",
    "ImageError",
    "Parts",
    "Photograph",
    "Record",
    "Skipped",
    "Source",
    "Split",
    "Stored",
    "content_hash",
    "decode",
    "divide",
    "elpv",
    "find_images",
    "folder",
    "folds",
    "get",
    "leaks",
    "load",
    "names",
    "photographs",
    "remap_labels",
    "remap_test_labels",
    "split",
    "split_by_content",
    "split_digest",
    "split_stratified",
    "split_validation",
    "table",
    "tfds",
]
