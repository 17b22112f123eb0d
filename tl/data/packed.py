"""Encoded images in TFRecord files: where they are, their labels and content hashes.

One pass over the files makes the index, which has the content hash of each image and is cached in
`cache_dir()`. An image is then read from its position in the file, local or in a bucket.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tl import hosts, reporting, storage
from tl.data.records import features, read_record, records, values
from tl.labels.names import normalize
from tl.paths import absolute, cache_dir, expanded, warn_of_cache

# Features with the name of the image file.
FILENAMES = ("image/filename", "file_name", "filename", "image/file_name", "image_name", "image_id")
# Number of files of which the first pass shows its progress; chosen, not tuned.
_LONG = 20

# Part of the name of a cached index.
_FORMAT = 1

Label = int | str | None


@dataclass(frozen=True, slots=True)
class PackedImage:
    """An image inside a TFRecord file; a `Stored`.

    Attributes:
      file: the TFRecord file.
      offset: where its record begins, in bytes.
      length: the length of the data of the record, in bytes.
      key: the feature with the encoded image, e.g. "image/encoded".
      filename: the file name that the record states, or a number.
      digest: SHA-256 of the encoded image, so that an image of a file that was written again is
        another image.
    """

    file: str
    offset: int
    length: int
    key: str
    filename: str
    digest: bytes

    def __str__(self) -> str:
        return f"{self.file}/{self.offset}/{self.filename}"

    @property
    def name(self) -> str:
        """The last part of the file name, as `Path.name`."""
        return PurePosixPath(self.filename).name

    @property
    def suffix(self) -> str:
        """The ending of the file name, as `Path.suffix`."""
        return PurePosixPath(self.filename).suffix

    @property
    def sha256(self) -> str:
        """The content hash in hex, without reading the file."""
        return self.digest.hex()

    def read_bytes(self) -> bytes:
        """The encoded image file; the checksums of its record are checked.

        Raises:
          OSError: the file is missing, damaged, or has changed since it was listed.
        """
        try:
            data = read_record(expanded(self.file), self.offset, self.length)
            content = _image(features(data), self.key)
        except ValueError as error:
            raise OSError(f"{error}; the file is damaged or has changed") from None
        if hashlib.sha256(content).digest() != self.digest:
            raise OSError("the file has changed since its images were listed")
        return content


class Keys(NamedTuple):
    """The features that are read from each record; "" for none.

    Attributes:
      image: the feature with the encoded image.
      label: the feature with the label, a number or text.
      text: the feature with the name of the class.
    """

    image: str
    label: str
    text: str = ""


class Row(NamedTuple):
    """One record.

    Attributes:
      image: the image; it cannot be read if `why` is set.
      label: its label; None if it has none.
      text: the name of its class; "" if the record states none.
      why: the reason why the record is left out; "" if it is not.
    """

    image: PackedImage
    label: Label
    text: str
    why: str


def index(files: Sequence[Path], keys: Keys) -> list[list[Row]]:
    """The records of each file, read in one pass over the files, or from the cache of such passes.

    Several processes divide the files, and each must call it.

    Raises:
      ValueError: a file cannot be read or is damaged, a record has several labels, or processes
        have different files.
    """
    n, mine, failure = hosts.count(), files[hosts.index() :: hosts.count()], ""
    lists: Iterable[list[Row]] = []
    try:
        with ThreadPoolExecutor() as pool:
            lists = pool.map(lambda file: _index(file, keys), mine)
            if len(mine) >= _LONG:
                lists = reporting.progress(lists, len(mine), "listing records, files")
            lists = list(lists)
    except ValueError as error:  # raised below, in every process
        failure = str(error)
    gathered = hosts.gather((lists, failure, [file.name for file in files]))
    of_all, failures, names = zip(*gathered, strict=True)
    if other := next((i for i, listed in enumerate(names) if listed != names[0]), 0):
        raise ValueError(
            f"process {other} lists {len(names[other])} TFRecord files and process 0 "
            f"{len(names[0])}, or others of them; copy the same files to every machine"
        )
    if any(failures):
        raise ValueError(next(filter(None, failures)))
    return [of_all[i % n][i // n] for i in range(len(files))]


def _index(file: Path, keys: Keys) -> list[Row]:
    folder = cache_dir() / "tfrecord"
    try:
        facts = repr((_FORMAT, str(absolute(file)), storage.version(file), keys))
        cached = folder / f"{hashlib.sha256(facts.encode()).hexdigest()}.json"
        if (rows := _cached(cached, file, keys)) is not None:
            return rows
        rows = [
            _row(file, offset, number, data, keys)
            for number, (offset, data) in enumerate(records(file))
        ]
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    table = [
        (i.offset, i.length, i.filename, i.digest.hex(), row.label, row.text, row.why)
        for row in rows
        for i in [row.image]
    ]
    try:
        storage.make_folder(folder)
        storage.write_whole(cached, json.dumps({"rows": table}).encode())
    except OSError as error:
        warn_of_cache(folder, error)
    return rows


def _cached(cached: Path, file: Path, keys: Keys) -> list[Row] | None:
    """The rows of a file from the cache; None if they are not there."""
    try:
        table = json.loads(storage.read_range(cached))["rows"]
        return [
            Row(
                PackedImage(str(file), offset, length, keys.image, name, bytes.fromhex(digest)),
                label,
                text,
                why,
            )
            for offset, length, name, digest, label, text, why in table
        ]
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _row(file: Path, offset: int, number: int, data: bytes, keys: Keys) -> Row:
    filename, label, text, content, why = f"record_{number}", None, "", b"", ""
    try:
        entries = features(data)
        content = _image(entries, keys.image)
        label = _label(entries, keys.label, f"{file} has in the record at byte {offset}")
        names = (_text(entries, key) for key in FILENAMES)
        filename = next(filter(None, names), filename)
        text = _text(entries, keys.text)
        why = "it has no image" if not content else "it has no label" if label is None else ""
    except _LabelError:
        raise
    except ValueError:
        why = "its data are not a tf.train.Example"
    digest = hashlib.sha256(content).digest()
    image = PackedImage(str(file), offset, len(data), keys.image, filename, digest)
    return Row(image, label, text, why)


class _LabelError(ValueError):
    """A label that is not one number or one text."""


def _image(entries: dict[str, memoryview], key: str) -> bytes:
    """The encoded image of a record; b"" if it has none."""
    content = values(entries.get(key, b""))[:1]
    return content[0] if content and isinstance(content[0], bytes) else b""


def _text(entries: dict[str, memoryview], key: str) -> str:
    """The text of a feature; "" if there is none."""
    content = values(entries.get(key, b""))[:1]
    return (
        content[0].decode("utf-8", "replace") if content and isinstance(content[0], bytes) else ""
    )


def _label(entries: dict[str, memoryview], key: str, where: str) -> Label:
    """The label of a record: a whole number, text in NFC, or None if there is none."""
    content = values(entries.get(key, b""))
    if len(content) > 1:
        raise _LabelError(
            f"{where} {len(content)} values under {key!r}, expected one label per image; write the "
            "images into a folder per class or a CSV file"
        )
    label = content[0] if content else None
    if isinstance(label, float):
        if not label.is_integer():
            raise _LabelError(
                f"{where} the label {label:.6g} under {key!r}, expected a whole number or text"
            )
        label = int(label)
    if isinstance(label, int):
        return label if label >= 0 else None
    try:
        return normalize(label.decode()) or None if label else None
    except UnicodeDecodeError:
        raise _LabelError(
            f"{where} bytes that are not text under {key!r}, expected a number or text in UTF-8"
        ) from None
