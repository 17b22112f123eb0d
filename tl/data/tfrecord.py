"""Images in TFRecord files of `tf.train.Example`, as most data sets in buckets are stored.

The features of the records are found by common names, or stated by the user. TensorFlow is not
needed. `packed.py` reads the records.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tl import storage
from tl.data.find import describe_content, is_litter, missing
from tl.data.packed import Keys, Label, Row, index
from tl.data.records import features, records
from tl.data.spec import PARTS, DataSpec, Example, Skipped
from tl.data.table import label_order
from tl.labels.names import check_names, counted, listed, normalize, path_end, shown
from tl.paths import absolute, expanded, is_url, nearest

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
# Features with the name of the class of an integer label.
_TEXTS = ("image/class/text", "class/text", "label/text", "label_text", "class_name", "label_name")
# Names of TFRecord files: "a.tfrecord", "a.tfrecord-00000-of-00002", "train-00000-of-00002".
_FILE = re.compile(
    r".*\.(tfrecords?|tfrec|records?|tfr)(-\d+-of-\d+)?|[^.]*-\d+-of-\d+", re.IGNORECASE
)
_SHARD = re.compile(r"([-_.]\d+-of-\d+)?(\.[a-z]+)?([-_.]\d+-of-\d+)?$", re.IGNORECASE)


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
    root, files, chosen = _find(word)
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
        source=str(absolute(root)),
        license="unknown",
        skipped=(
            *(Skipped(str(row.image), row.why) for c in rows.values() for row in c if row.why),
            *(Skipped(str(path), reason) for path in unused),
        ),
        remarks=(*remarks, *name_remarks),
    )


# ---- files ----


def _find(word: str) -> tuple[Path, list[Path], tuple[str, ...]]:
    """The folder, its TFRecord files, and the names of features that are stated."""
    path, at, names = word.rpartition("@")
    chosen = tuple(name.strip() for name in names.split(","))
    stated = at and len(chosen) == 2 and all(chosen) and not _matches(word)[1]
    path, chosen = (path, chosen) if stated else (word, ())
    kind, matches = _matches(path)
    if kind == "directory":
        files = [p for p in matches if _FILE.fullmatch(p.name)]
        if not files:
            kinds = describe_content([Skipped(str(p), "") for p in matches])
            raise ValueError(
                f"{path_end(path)} has no TFRecord file ({kinds}), expected names such as "
                "train-00000-of-00008 or pets.tfrecord; write a glob for other names"
            )
        return expanded(path), files, chosen
    if matches:
        return matches[0].parent, matches, chosen
    if kind == "glob":
        raise ValueError(f"the glob {path_end(path)} matches no file, expected TFRecord files")
    advice = "" if is_url(path) else f": {missing(expanded(path))}"
    raise ValueError(f"{path_end(path)} does not exist, expected TFRecord files{advice}")


def _matches(word: str) -> tuple[str, list[Path]]:
    """The kind of a name, as `storage.find` returns it, and its files without those of systems."""
    kind, files = storage.find(word)
    return kind, [expanded(str(file)) for file in files if not is_litter(file.name)]


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
    paths = (folder / name for name in names)
    return next((path for path in paths if storage.is_file(path)), None)


def _read_names(file: Path) -> dict[int, str]:
    """The names in a file by number: one per line, or lines of `number:name` as TF-Slim writes."""
    try:
        lines = storage.read_range(file).decode("utf-8-sig").splitlines()
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
