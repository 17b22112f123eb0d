"""Sets that TensorFlow Datasets prepared, read where they lie, without TensorFlow.

A set is read through TFDS' own random access, which only the file format array_record has. Pictures stay the encoded
files that they were, so that the one rule of `decode.py` makes pixels of them, here as everywhere. Nothing is downloaded
or prepared: that takes TensorFlow, and the sentence for a missing set says how.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tl.data.decode import ImageError, decode
from tl.data.spec import PARTS, DataSpec, Example, Record, Skipped, Source
from tl.paths import nearest

_FILENAMES = (
    "image/filename",
    "file_name",
    "filename",
    "image/file_name",
)  # features in which sets keep it

# Files known to be bad, by the end of their path -> what is known of them. Those that cannot be decoded are left out.
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
    # Microsoft's archive of cats and dogs. TFDS leaves out these and 1,736 others that do not begin as JFIF.
    "PetImages/Cat/666.jpg": "it is empty",
    "PetImages/Dog/11702.jpg": "it is empty",
}


def known_bad(source: Source) -> str:
    """What is known to be wrong with a file of this name, or ""."""
    parts = PurePosixPath(
        source.filename if isinstance(source, Record) else source.as_posix()
    ).parts
    return next((why for n in (1, 3) if (why := KNOWN_BAD.get("/".join(parts[-n:])))), "")


def tfds(word: str) -> DataSpec:
    """A prepared set of labelled pictures, with its official parts where it has a test or a validation split.

    Args:
      word: `NAME`, `NAME/VERSION` or `NAME/CONFIG`; after an `@`, the folder that holds NAME. Default:
        `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`. The newest version is taken.

    Returns:
      A `DataSpec`, split by split. Splits of other names than `PARTS` knows are listed as skipped, and so are pictures
      without a label and files of `KNOWN_BAD` that cannot be decoded.

    Raises:
      ValueError: the set is not prepared there, its files are no array_record, or it holds no labelled pictures.
    """
    import tensorflow_datasets as library  # here, for it costs a second and `import tl` should not

    name, _, root = word.partition("@")
    directory = _prepared(
        name,
        Path(root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
        .expanduser()
        .absolute(),
    )
    try:
        info = library.builder_from_directory(str(directory)).info
    except Exception as error:  # TFDS raises nearly anything on files it did not write
        raise ValueError(
            f"{directory} is not a set that TFDS can read ({error}); prepare it again"
        ) from error
    stored = info.file_format.value if info.file_format else "an unknown format"
    if stored != "array_record":
        raise ValueError(
            f"{directory} is stored as {stored}, wanted array_record, which needs no TensorFlow to be read: {_recipe(name)}"
        )
    features = _features(info)
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, library.features.Image) or not isinstance(
        label, library.features.ClassLabel
    ):
        found = ", ".join(map(repr, sorted(features))) or "no named features"
        raise ValueError(
            f"tfds:{word} holds {found}, wanted an Image named 'image' and a ClassLabel named 'label'; export a set of "
            "another kind to a folder or a CSV"
        )
    parts = {
        split: part if len(info.splits) > 1 else ""
        for split, part in PARTS.items()
        if split in info.splits
    }
    parts = parts or dict.fromkeys(info.splits, "")
    examples: list[Example] = []
    skipped = [
        Skipped(f"{directory}/{s}", "a split that is none of train, validation and test")
        for s in info.splits
        if s not in parts
    ]
    for split, part in parts.items():
        for index, row in enumerate(_open(str(directory), split, os.getpid())):
            file = next((row[f].decode() for f in _FILENAMES if f in row), f"{split}_{index}")
            record = Record(str(directory), split, index, file)
            why = (
                _damage(record)
                if known_bad(record)
                else "it has no label"
                if row["label"] < 0
                else ""
            )
            if why:
                skipped.append(Skipped(str(record), why))
            else:
                examples.append(Example(record, int(row["label"]), part=part))
    return DataSpec(
        name=f"tfds:{word}",
        examples=tuple(examples),
        classes=tuple(label.names),
        source=" ".join(
            filter(
                None,
                (f"{info.full_name}, TensorFlow Datasets", info.homepage, _flat(info.citation)),
            )
        ),
        licence=_flat(info.redistribution_info.license) or "unknown",
        skipped=tuple(skipped),
    )


def read_bytes(record: Record) -> bytes:
    """The encoded file of a picture; the set is opened once a process and stays open.

    Raises:
      OSError: the set is not there any more, or damaged.
    """
    try:
        return _open(record.directory, record.split, os.getpid())[record.index]["image"]
    except Exception as error:  # the reader raises nearly anything on damaged files
        raise OSError(f"{type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=16)
def _open(directory: str, split: str, _process: int) -> Sequence[dict[str, Any]]:
    """A split as a sequence of rows; open files do not survive a fork, hence the process."""
    import tensorflow_datasets as library

    builder: Any = library.builder_from_directory(directory)
    encoded = {
        name: library.decode.SkipDecoding()
        for name, feature in _features(builder.info).items()
        if isinstance(
            feature, library.features.Image
        )  # masks too: they would be decoded for nothing
    }
    return builder.as_data_source(split, decoders=encoded)


def _features(info: Any) -> dict[str, Any]:
    """The named features of a set; some sets have none."""
    return dict(info.features.items()) if hasattr(info.features, "items") else {}


def _damage(record: Record) -> str:
    """Why a picture cannot be decoded, or ""."""
    try:
        decode(record)
    except ImageError as error:
        return error.why
    return ""


def _prepared(name: str, root: Path) -> Path:
    """The folder of the newest version of a set: DIR/NAME/VERSION or DIR/NAME/CONFIG/VERSION."""
    wanted = root / name.replace(":", "/")
    found = [
        p.parent for depth in ("", "*/", "*/*/") for p in wanted.glob(f"{depth}dataset_info.json")
    ]
    if not found:
        there = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        beside = f"it holds {nearest(name, there)}" if there else "it holds no set"
        raise ValueError(
            f"tfds:{name} is not prepared in {str(root)!r} ({beside}): name the right folder with tfds:{name}@DIR, "
            f"or {_recipe(name)}"
        )
    configs = sorted(
        {p.parent.relative_to(root).as_posix() for p in found if wanted in p.parent.parents}
    )
    if len(configs) > 1:
        raise ValueError(
            f"tfds:{name} has {len(configs)} configurations, wanted one: {', '.join(map(repr, configs))}"
        )
    return max(
        found,
        key=lambda p: [
            (part.isdigit(), int(part) if part.isdigit() else 0) for part in p.name.split(".")
        ],
    )


def _recipe(name: str) -> str:
    return (
        'prepare it where TensorFlow is installed, with python -c "import tensorflow_datasets as t; '
        f"t.builder({name!r}, data_dir='DIR', file_format='array_record').download_and_prepare()\""
    )


def _flat(words: str) -> str:
    return " ".join(words.split())
