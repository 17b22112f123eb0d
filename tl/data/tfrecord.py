"""Images in TFRecord files of `tf.train.Example`, as most data sets in buckets are stored.

A first pass over the files lists the records, with the label and the content hash of each image.
An image is then read from its position in the file. TensorFlow is not needed.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tl import reporting
from tl.data.find import describe_content, is_litter, missing
from tl.data.records import features, read_record, records, values
from tl.data.spec import PARTS, DataSpec, Example, Skipped
from tl.data.table import label_order
from tl.labels.names import check_names, counted, listed, normalize, path_end, shown
from tl.paths import expanded, nearest

# Names of features, the most specific first: those of TF-Slim and TensorFlow's models begin with
# "image/"; TensorFlow Datasets writes "image" and "label".
IMAGES = ("image/encoded", "image", "encoded_image", "image_raw", "image_bytes", "jpeg", "img")
LABELS = (
    "image/class/label",
    "label",
    "class",
    "image/label",
    "class/label",
    "class_label",
    "category",
    "target",
    "labels",
    "image/class/text",
)
# Features with the name of the class of an integer label, and of the image file.
_TEXTS = ("image/class/text", "class/text", "label/text", "label_text", "class_name", "label_name")
FILENAMES = ("image/filename", "file_name", "filename", "image/file_name", "image_name", "image_id")
# Names of TFRecord files: "a.tfrecord", "a.tfrecord-00000-of-00002", "train-00000-of-00002".
_FILE = re.compile(
    r".*\.(tfrecords?|tfrec|records?|tfr)(-\d+-of-\d+)?|[^.]*-\d+-of-\d+", re.IGNORECASE
)
_SHARD = re.compile(r"([-_.]\d+-of-\d+)?(\.[a-z]+)?([-_.]\d+-of-\d+)?$", re.IGNORECASE)
# Bytes of files of which the first pass shows its progress; chosen, not tuned.
_LONG = 1 << 30

Label = int | str | None


@dataclass(frozen=True, slots=True)
class PackedImage:
    """An image inside a TFRecord file; a `Stored`.

    Attributes:
      file: the TFRecord file.
      offset: where its record begins, in bytes.
      key: the feature with the encoded image, e.g. "image/encoded".
      filename: the file name that the record states, or a number.
      digest: SHA-256 of the encoded image, so that an image of a file that was written again is
        another image.
    """

    file: str
    offset: int
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
            data = read_record(Path(self.file), self.offset)
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


def tfrecord(word: str, *, min_classes: int = 2) -> DataSpec:
    """A data set in TFRecord files of `tf.train.Example` with encoded images.

    Args:
      word: a folder (searched recursively), a glob, or a file; optionally followed by
        `@IMAGE,LABEL`, the names of the features that hold the image and the label. By default they
        are the first ones of `IMAGES` and `LABELS` in the files.
      min_classes: smallest number of classes: 2 to train, 1 to test.

    Returns:
      A `DataSpec` in the order of the files' names. Files whose names state different parts, such
      as `train-00000-of-00008`, `pets_val.tfrecord` or `test/0.tfrecord`, are official parts. A
      label is text or a whole number. The names of numbers are the lines of `LABEL.labels.txt` or
      `labels.txt` in the folder of the files, else the texts that the records state, else the
      numbers. Records without image or label, or that are not messages, are listed as skipped.

    Raises:
      ValueError: no file exists, one cannot be read or is damaged between records, its features
        have other names, a record has several labels, a number has no name, or there are fewer
        classes than `min_classes`.
    """
    root, files, chosen, others = _find(word)
    keys, remarks = _choose_keys(files, chosen, word)
    part_of, unused = _parts(files, root)
    files = [file for file in files if file in part_of]
    rows = dict(zip(files, index(files, keys), strict=True))
    usable = [(row, part_of[file]) for file in files for row in rows[file] if not row.why]
    _check_rows(rows, keys, word)
    classes, number_of, name_remarks = _classes([row for row, _ in usable], keys, files[0].parent)
    if len(classes) < min_classes:
        only = f" ({shown(classes[0])})" if classes else ""
        raise ValueError(
            f"tfrecord:{word} has {'one label' if classes else 'no label'}{only} in "
            f"{counted(len(usable), 'image')}, expected at least two classes"
        )
    if unused:
        remarks.append(f"not used: {listed(p.name for p in unused)}, whose names state no part")
    reason = "its name states no part, and those of other files do"
    return DataSpec(
        name=f"tfrecord:{word}",
        examples=tuple(Example(row.image, number_of[row.label], part=part) for row, part in usable),
        classes=classes,
        source=str(root.absolute()),
        license="unknown",
        skipped=(
            *(Skipped(str(row.image), row.why) for c in rows.values() for row in c if row.why),
            *(Skipped(str(path), reason) for path in unused),
            *others,
        ),
        remarks=(*remarks, *name_remarks),
    )


def index(files: Sequence[Path], keys: Keys) -> list[list[Row]]:
    """The records of each file, read in one pass over the files.

    Raises:
      ValueError: a file cannot be read or is damaged, or a record has several labels.
    """
    with ThreadPoolExecutor() as pool:
        lists: Iterable[list[Row]] = pool.map(lambda file: _index(file, keys), files)
        if sum(file.stat().st_size for file in files if file.exists()) >= _LONG:
            lists = reporting.progress(lists, len(files), "listing records, files")
        return list(lists)


def _index(file: Path, keys: Keys) -> list[Row]:
    rows = []
    try:
        for i, (offset, data) in enumerate(records(file)):
            rows.append(_row(file, offset, i, data, keys))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    return rows


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
    return Row(PackedImage(str(file), offset, keys.image, filename, digest), label, text, why)


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


# ---- files ----


def _find(word: str) -> tuple[Path, list[Path], tuple[str, ...], list[Skipped]]:
    """The folder, its TFRecord files, the names of features that are stated, and other files."""
    path, at, names = word.rpartition("@")
    chosen = tuple(name.strip() for name in names.split(","))
    stated = at and len(chosen) == 2 and all(chosen) and not _matches(word)
    path, chosen = (path, chosen) if stated else (word, ())
    start, matches = expanded(path), _matches(path)
    if start.is_dir():
        files = [p for p in matches if _FILE.fullmatch(p.name)]
        if not files:
            kinds = describe_content([Skipped(str(p), "") for p in matches])
            raise ValueError(
                f"{path_end(path)} has no TFRecord file ({kinds}), expected names such as "
                "train-00000-of-00008 or pets.tfrecord; write a glob for other names"
            )
        return start, files, chosen, []
    if matches:
        return matches[0].parent, matches, chosen, []
    if glob.has_magic(path):
        raise ValueError(f"the glob {path_end(path)} matches no file, expected TFRecord files")
    raise ValueError(f"{path_end(path)} does not exist: {missing(start)}")


def _matches(word: str) -> list[Path]:
    """The files in a folder, or that match a glob, without hidden ones; sorted by path."""
    path = expanded(word)
    pattern = f"{glob.escape(str(path))}/**/*" if path.is_dir() else str(path)
    files = [path] if path.is_file() else map(Path, glob.glob(pattern, recursive=True))
    return sorted(p for p in files if not is_litter(p.name) and p.is_file())


def _choose_keys(
    files: Sequence[Path], chosen: tuple[str, ...], word: str
) -> tuple[Keys, list[str]]:
    """The features to be read, by the first record of each file until all are there."""
    names: dict[str, None] = {}
    for file in files:
        names |= dict.fromkeys(_first_names(file))
        image, label = chosen or (
            next((key for key in keys if key in names), "") for keys in (IMAGES, LABELS)
        )
        if image in names and label in names:
            break
    else:
        if not names:
            raise ValueError(
                f"tfrecord:{word} holds no tf.train.Example in "
                f"{counted(len(files), 'file')}, expected encoded images with labels"
            )
        content = f"has the features {listed(sorted(names), most=6)}"
        for key in chosen:
            if key not in names:
                raise ValueError(
                    f"tfrecord:{word} {content}, and no feature {key!r}; nearest: "
                    f"{nearest(key, names)}"
                )
        raise ValueError(
            f"tfrecord:{word} {content}, expected an encoded image under {listed(IMAGES, most=3)} "
            f"and a label under {listed(LABELS, most=3)}; state the names as "
            f"tfrecord:{word}@IMAGE,LABEL"
        )
    text = next((key for key in _TEXTS if key in names and key != label), "")
    remarks = []
    for kind, key, keys in (("images", image, IMAGES), ("labels", label, LABELS)):
        others = [k for k in keys if k in names and k not in (key, text)]
        if others and not chosen:
            remarks.append(
                f"read {key!r} as {kind}, not {listed(others)}; write tfrecord:GLOB@IMAGE,LABEL "
                "for other features"
            )
    return Keys(image, label, text), remarks


def _first_names(file: Path) -> Iterable[str]:
    """The names of the features in the first record that is a message."""
    try:
        for _, data in records(file):
            try:
                return features(data)
            except ValueError:
                continue
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    return ()


def _parts(files: Sequence[Path], root: Path) -> tuple[dict[Path, str], list[Path]]:
    """The official part of each file, "" without parts; files that state none if others do."""
    named = {file: _part(file, root) for file in files}
    if len(set(named.values())) == 1:
        return dict.fromkeys(files, ""), []
    return (
        {file: part for file, part in named.items() if part},
        [file for file, part in named.items() if not part],
    )


def _part(file: Path, root: Path) -> str:
    """The part that the name of a file or of its folder states, or ""."""
    words = re.split(r"[^a-z]+", _SHARD.sub("", file.name.lower()).strip("-_."))
    folders = [f.lower() for f in reversed(file.parent.relative_to(root).parts)]
    candidates = (words[-1], words[0], *folders)
    return next((PARTS[word] for word in candidates if word in PARTS), "")


# ---- classes ----


def _check_rows(rows: dict[Path, list[Row]], keys: Keys, word: str) -> None:
    """Raises ValueError unless there are records, and they are messages."""
    n = sum(map(len, rows.values()))
    reasons = Counter(row.why for content in rows.values() for row in content if row.why)
    if sum(reasons.values()) < n:
        return
    why = f"; all {n} were left out, for example because {min(reasons)}" if reasons else ""
    raise ValueError(
        f"tfrecord:{word} holds no labeled image under {keys.image!r} and {keys.label!r} in "
        f"{counted(n, 'record')}{why}"
    )


def _classes(
    rows: Sequence[Row], keys: Keys, folder: Path
) -> tuple[tuple[str, ...], dict[Label, int], tuple[str, ...]]:
    """The class names, the index of each label, and remarks."""
    labels = {row.label: row.image for row in rows}
    numbers = [label for label in labels if isinstance(label, int)]
    texts = [label for label in labels if isinstance(label, str)]
    if numbers and texts:
        raise ValueError(
            f"{labels[numbers[0]].file} has labels that are numbers and labels that are text under "
            f"{keys.label!r}, expected one kind; state the feature as tfrecord:GLOB@IMAGE,LABEL"
        )
    if texts:
        classes = tuple(sorted(texts, key=label_order(texts)))
        return classes, {name: i for i, name in enumerate(classes)}, check_names(classes)
    numbers = sorted(numbers)
    if file := _names_file(folder, keys.label):
        names = _read_names(file)
        if outside := [n for n in numbers if n not in names]:
            advice = (
                f"; if 1 is the first, write its lines as 1:{names[0]}"
                if min(numbers) == 1 and outside == [len(names)]
                else ""
            )
            raise ValueError(
                f"{labels[outside[0]].file} has the label {outside[0]} under {keys.label!r}, "
                f"expected {min(names)} to {max(names)}, the {len(names)} names of {file}{advice}"
            )
        return (
            tuple(names.values()),
            {n: i for i, n in enumerate(names)},
            check_names(list(names.values())),
        )
    of_number: dict[Label, set[str]] = defaultdict(set)
    for row in rows:
        of_number[row.label].add(normalize(row.text))
    named = [name for n in numbers for name in of_number[n] if len(of_number[n]) == 1 and name]
    index_of: dict[Label, int] = {n: i for i, n in enumerate(numbers)}
    if len(set(named)) == len(numbers):
        return tuple(named), index_of, check_names(named)
    return tuple(map(str, numbers)), index_of, ()


def _names_file(folder: Path, key: str) -> Path | None:
    """The file with the names of classes in the folder of the TFRecord files."""
    stems = (key.replace("/", "_"), key.replace("/", "-"), key.rpartition("/")[2], "label")
    names = (*(f"{stem}.labels.txt" for stem in stems), "labels.txt")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_names(file: Path) -> dict[int, str]:
    """The names in a file by number: one per line, or lines of `number:name` as TF-Slim writes."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as text in UTF-8: {error}") from None
    lines = [line.strip() for line in lines if line.strip()]
    pairs = [re.fullmatch(r"(\d+):(.+)", line) for line in lines]
    names = {i: normalize(line) for i, line in enumerate(lines)}
    if lines and all(pairs):
        names = {int(pair[1]): normalize(pair[2]) for pair in pairs if pair}
    if len(set(names.values())) < len(lines):
        twice = Counter(names.values()).most_common(1)[0][0]
        raise ValueError(f"{file} has a number or the name {shown(twice)} twice, expected it once")
    return dict(sorted(names.items()))
