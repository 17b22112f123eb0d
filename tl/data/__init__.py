"""Labeled data sets by name, their division into parts, image files, and batches of one shape.

To add a data set, write a function that returns a `DataSpec` and add a row to `SETS`. If the images
are in a container, such as a tar file, the function creates a `Stored` for each of them. This
package does not normalize pixels; see `tl.pixels`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from tl.data.augment import Augment, make_augment
from tl.data.decode import ImageError, decode, thumbnail
from tl.data.doctor import Report, examine
from tl.data.duplicates import content_hash, hash_remote, leaks, split_digest
from tl.data.feed import BatchIterator, Prefetched, prefetch
from tl.data.find import find_images
from tl.data.folder import folder
from tl.data.loader import Batch, Stream, load, stream
from tl.data.packaged import Photograph, elpv, labeled_photographs, photographs
from tl.data.packed import PackedImage
from tl.data.pixel_checks import check_pixels, check_readable
from tl.data.plan import Plan, balanced, class_weights
from tl.data.remap import match_classes, remap_labels, remap_test_labels
from tl.data.spec import DataSpec, Example, Skipped, Source, Split, Stored, WithWhite, with_white
from tl.data.split import (
    Parts,
    describe_parts,
    divide,
    folds,
    part_remarks,
    split,
    split_by_content,
    split_stratified,
    split_validation,
    subset,
)
from tl.data.table import table
from tl.data.tfds import Record, tfds
from tl.data.tfrecord import tfrecord
from tl.paths import nearest

# Name -> (function, placeholder after the colon, or "" if the function has no parameter).
SETS: dict[str, tuple[Callable[..., DataSpec], str]] = {
    "folder": (folder, "DIR"),
    "csv": (table, "FILE"),
    "tfds": (tfds, "NAME"),
    "tfrecord": (tfrecord, "GLOB"),
    "elpv": (elpv, ""),
}


def names() -> tuple[str, ...]:
    """The names of all data sets, with placeholders.

    Example:
      >>> names()
      ('folder:DIR', 'csv:FILE', 'tfds:NAME', 'tfrecord:GLOB', 'elpv')
    """
    return tuple(f"{word}:{value}" if value else word for word, (_, value) in SETS.items())


def get(word: str, *, min_classes: int = 2, white: int = 0) -> DataSpec:
    """A data set by name.

    Args:
      word: `folder:DIR`, `csv:FILE`, `tfds:NAME`, `tfds:NAME@DIR`, `tfrecord:GLOB`,
        `tfrecord:GLOB@IMAGE,LABEL` or `elpv`; DIR, FILE and GLOB may be in a bucket, gs://.
      min_classes: smallest number of classes of a folder, table or TFRecord: 1 for a test set.
      white: value of white in images of 16 bits per channel, in [1, 65535]; 0 for that of the file.

    Raises:
      ValueError: the name is unknown (the message lists the nearest), the data set cannot be read,
        or `white` is out of range.
    """
    kind, colon, rest = word.partition(":")
    if kind not in SETS:
        path = os.path.expanduser(word)
        if os.path.isdir(path) or os.path.isfile(path):
            form, fit = ("folder", "folder") if os.path.isdir(path) else ("file", "csv")
            raise ValueError(
                f"{word!r} is a {form}, expected the name of a data set; write '{fit}:{word}'"
            )
        raise ValueError(
            f"unknown data set {word!r}, expected {' or '.join(names())}; nearest: "
            f"{nearest(kind, SETS)}"
        )
    make, value = SETS[kind]
    if bool(rest) != bool(value) or (colon and not value):
        raise ValueError(
            f"the data set {word!r} is incomplete or too long, expected "
            f"{kind}{value and ':' + value}"
        )
    if make in (folder, table, tfrecord):
        spec = make(rest, min_classes=min_classes)
    else:
        spec = make(rest) if value else make()
    if not white:
        return spec
    examples = tuple(replace(e, path=with_white(e.path, white)) for e in spec.examples)
    return replace(spec, examples=examples, white=white)


__all__ = [
    "Augment",
    "Batch",
    "BatchIterator",
    "DataSpec",
    "Example",
    "ImageError",
    "PackedImage",
    "Parts",
    "Photograph",
    "Plan",
    "Prefetched",
    "Record",
    "Report",
    "Skipped",
    "Source",
    "Split",
    "Stored",
    "Stream",
    "WithWhite",
    "balanced",
    "check_pixels",
    "check_readable",
    "class_weights",
    "content_hash",
    "decode",
    "describe_parts",
    "divide",
    "elpv",
    "examine",
    "find_images",
    "folder",
    "folds",
    "get",
    "hash_remote",
    "labeled_photographs",
    "leaks",
    "load",
    "make_augment",
    "match_classes",
    "names",
    "part_remarks",
    "photographs",
    "prefetch",
    "remap_labels",
    "remap_test_labels",
    "split",
    "split_by_content",
    "split_digest",
    "split_stratified",
    "split_validation",
    "stream",
    "table",
    "tfds",
    "tfrecord",
    "subset",
    "thumbnail",
    "with_white",
]
