"""Data sets prepared by TensorFlow Datasets (TFDS), read in place and without TensorFlow.

Sets in the file format array_record are read by the random access of TFDS, sets in TFRecord, its
default, by `packed.py`. Images stay encoded, so that `decode.py` converts them to pixels, as for
all other data sets. This module downloads and prepares nothing, because that needs TensorFlow; the
error for a missing data set contains the command.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tl import storage
from tl.data.decode import ImageError, decode
from tl.data.packed import FILENAMES, Keys, index
from tl.data.spec import PARTS, DataSpec, Example, Skipped, Source
from tl.labels.names import counted, listed
from tl.paths import absolute, expanded, is_url, nearest

# Files known to be bad, by the end of their path -> the known defect. Files that cannot be decoded
# are left out.
KNOWN_BAD: dict[str, str] = {
    # The Oxford-IIIT Pet Dataset: github.com/tensorflow/models/issues/2194. TFDS keeps all of them.
    "beagle_116.jpg": "its JPEG data is corrupt",
    "chihuahua_121.jpg": "its JPEG data is corrupt",
    **{
        f"{name}.jpg": "it is a PNG"
        for name in ("Abyssinian_5", *(f"Egyptian_Mau_{i}" for i in (14, 156, 186)))
    },
    **{
        f"{name}.jpg": "it is a GIF"
        for name in ("Abyssinian_34", *(f"Egyptian_Mau_{i}" for i in (139, 145, 167, 177, 191)))
    },
    # Microsoft's archive of cats and dogs. TFDS omits these and 1,736 others without a JFIF header.
    "PetImages/Cat/666.jpg": "it is empty",
    "PetImages/Dog/11702.jpg": "it is empty",
}


@dataclass(frozen=True, slots=True)
class Record:
    """An image inside a prepared data set; a `Stored`.

    Attributes:
      directory: the prepared data set, e.g. "/data/cats_vs_dogs/4.0.1".
      split: the split that holds the image, e.g. "train".
      index: the position in that split.
      filename: the published file name, e.g. "PetImages/Cat/133.jpg".
      version: `_version` of the files. A position identifies an image only together with it,
        because the data set may be prepared again in the same folder.
    """

    directory: str
    split: str
    index: int
    filename: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.directory}/{self.split}/{self.index}/{self.filename}"

    @property
    def name(self) -> str:
        """The last part of the file name, as `Path.name`."""
        return PurePosixPath(self.filename).name

    @property
    def suffix(self) -> str:
        """The ending of the file name, as `Path.suffix`."""
        return PurePosixPath(self.filename).suffix

    def read_bytes(self) -> bytes:
        """The encoded image file; each process opens the data set once and keeps it open.

        Raises:
          OSError: the prepared data set is missing or damaged.
        """
        try:
            return _open(self.directory, self.split, self.version, os.getpid())[self.index]["image"]
        except Exception as error:  # the reader raises many types of error on damaged files
            raise OSError(f"{type(error).__name__}: {error}") from error


def known_bad(source: Source) -> str:
    """The known defect of a published file with this name, or ""."""
    name = source.as_posix() if isinstance(source, Path) else str(source)
    parts = PurePosixPath(name).parts
    return next((why for n in (1, 3) if (why := KNOWN_BAD.get("/".join(parts[-n:])))), "")


def tfds(word: str) -> DataSpec:
    """A prepared data set of labeled images, with official parts if it has more than one split.

    Args:
      word: `NAME`, `NAME/VERSION` or `NAME/CONFIG`, followed by an optional `@DIR`, the folder that
        holds NAME. The default folder is `$TFDS_DATA_DIR` or `~/tensorflow_datasets`. Without a
        version, the newest is read.

    Returns:
      A `DataSpec`, one split after another. Splits whose names are not in `PARTS` are listed as
      skipped, and so are images without a label and files in `KNOWN_BAD` that cannot be decoded.

    Raises:
      ValueError: the data set is not prepared in the folder, its file format is not array_record
        or TFRecord, a file is damaged, or it holds no labeled images.
    """
    import tensorflow_datasets as library  # a slow import, which `import tl` must not pay for

    name, _, root = word.partition("@")
    directory = _prepared(
        name,
        absolute(expanded(root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")),
    )
    try:
        info = library.builder_from_directory(str(directory)).info
    except Exception as error:  # TFDS raises many types of error on files that it did not write
        raise ValueError(
            f"{directory} is not a data set that TFDS can read ({error}); prepare it again"
        ) from error
    file_format = info.file_format.value if info.file_format else "an unknown format"
    if file_format not in ("array_record", "tfrecord"):
        raise ValueError(
            f"{directory} is stored as {file_format}, expected array_record or tfrecord, which can "
            f"be read without TensorFlow; {_recipe(name)}"
        )
    if file_format == "array_record" and is_url(directory):
        raise ValueError(
            f"{directory} is stored as array_record, which cannot be read from a bucket; copy it "
            "to a local folder, or prepare it with file_format='tfrecord'"
        )
    features = _features(info)
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, library.features.Image) or not isinstance(
        label, library.features.ClassLabel
    ):
        names = ", ".join(map(repr, sorted(features))) or "no named features"
        raise ValueError(
            f"tfds:{word} has the features {names}, expected an Image named 'image' and a "
            "ClassLabel named 'label'; export other data sets to a folder or a CSV file"
        )
    parts = _parts(info.splits)
    unused = [split for split in info.splits if split not in parts]
    examples: list[Example] = []
    reason = "its split is not one of train, validation and test, or another one is this part"
    skipped = [Skipped(f"{directory}/{split}", reason) for split in unused]
    version = "" if is_url(directory) else _version(directory)
    for split, part in parts.items():
        rows = (
            _array_records(str(directory), split, version)
            if file_format == "array_record"
            else _tfrecords(info.splits[split], len(label.names))
        )
        for record, number, reason in rows:
            if not reason and known_bad(record):
                reason = _decoding_error(record)
            if reason:
                skipped.append(Skipped(str(record), reason))
            else:
                examples.append(Example(record, number, part=part))
    origin = (f"{info.full_name}, TensorFlow Datasets", info.homepage, _one_line(info.citation))
    return DataSpec(
        name=f"tfds:{word}",
        examples=tuple(examples),
        classes=tuple(label.names),
        source=" ".join(filter(None, origin)),
        license=_one_line(info.redistribution_info.license) or "unknown",
        skipped=tuple(skipped),
        remarks=(
            (f"not used: the splits {listed(unused)}; read {listed(parts, most=3)}",)
            if unused
            else ()
        ),
    )


def _array_records(directory: str, split: str, version: str) -> Iterator[tuple[Source, int, str]]:
    """The images of a split, their labels, and the reason why one is left out, or ""."""
    for i, row in enumerate(_open(directory, split, version, os.getpid())):
        file = next((row[f].decode() for f in FILENAMES if f in row), f"{split}_{i}")
        record = Record(directory, split, i, file, version)
        yield record, int(row["label"]), "it has no label" if row["label"] < 0 else ""


def _tfrecords(split: Any, classes: int) -> Iterator[tuple[Source, int, str]]:
    """As `_array_records`, of a split in TFRecord files.

    Raises:
      ValueError: a file is missing, damaged or has another number of records than stated.
    """
    files = [expanded(path) for path in split.filepaths]
    lists = index(files, Keys("image", "label"))
    for file, rows, n in zip(files, lists, split.shard_lengths, strict=True):
        if len(rows) != n:
            raise ValueError(
                f"{file} has {counted(len(rows), 'record')}, expected {n} as dataset_info.json "
                "states; copy it again"
            )
        for row in rows:
            reason = row.why
            if not reason and not (isinstance(row.label, int) and row.label < classes):
                reason = f"its label is {row.label!r}, expected a number below {classes}"
            yield row.image, row.label if isinstance(row.label, int) else -1, reason


def _parts(splits: Iterable[str]) -> dict[str, str]:
    """Split -> official part, of the splits that are read; "" for those without official parts.

    Example:
      >>> _parts(["dev", "Train", "validation", "extra"]), _parts(["corrupted"])
      ({'Train': 'train', 'validation': 'validation'}, {'corrupted': ''})
    """
    splits = list(splits)
    of_part: dict[str, str] = {}
    for name, part in PARTS.items():
        for split in splits:
            if split.lower() == name and (name == part or part not in of_part):
                of_part[part] = split
    if not of_part or len(splits) == 1:
        return dict.fromkeys(splits, "")
    return {split: part for part, split in of_part.items()}


@functools.lru_cache(maxsize=16)
def _open(directory: str, split: str, _version: str, _process: int) -> Sequence[dict[str, Any]]:
    """A split as a sequence of rows, cached per process because a fork breaks open files."""
    import tensorflow_datasets as library

    builder: Any = library.builder_from_directory(directory)
    # All images stay encoded, including masks, which are not used.
    encoded = {
        name: library.decode.SkipDecoding()
        for name, feature in _features(builder.info).items()
        if isinstance(feature, library.features.Image)
    }
    return builder.as_data_source(split, decoders=encoded)


def _version(directory: Path) -> str:
    """A hash of the names, sizes and modification times of the files of a prepared data set."""
    rows = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(directory.iterdir())]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def _features(info: Any) -> dict[str, Any]:
    """The named features of a data set; some data sets have none."""
    return dict(info.features.items()) if hasattr(info.features, "items") else {}


def _decoding_error(record: Source) -> str:
    """The reason why an image cannot be decoded, or ""."""
    try:
        decode(record)
    except ImageError as error:
        return error.why
    return ""


def _prepared(name: str, root: Path) -> Path:
    """The folder of the newest version: DIR/NAME/VERSION or DIR/NAME/CONFIG/VERSION."""
    base = root / name.replace(":", "/")
    with storage.listing(root):
        versions = [
            p.parent for depth in ("", "*/", "*/*/") for p in base.glob(f"{depth}dataset_info.json")
        ]
    if not versions:
        names = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        content = f"it holds {nearest(name, names)}" if names else "it holds no data set"
        raise ValueError(
            f"tfds:{name} is not prepared in {str(root)!r} ({content}); write tfds:{name}@DIR for "
            f"another folder, or {_recipe(name)}"
        )
    configs = sorted(
        {p.parent.relative_to(root).as_posix() for p in versions if base in p.parent.parents}
    )
    if len(configs) > 1:
        raise ValueError(
            f"tfds:{name} has {len(configs)} configurations, expected one of: "
            f"{', '.join(map(repr, configs))}"
        )
    return max(
        versions,
        key=lambda p: [
            (part.isdigit(), int(part) if part.isdigit() else 0) for part in p.name.split(".")
        ],
    )


def _recipe(name: str) -> str:
    return (
        "prepare it where TensorFlow is installed, with "
        'python -c "import tensorflow_datasets as t; '
        f"t.builder({name!r}, data_dir='DIR', file_format='array_record').download_and_prepare()\""
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
