"""Data sets listed in a CSV file with the columns `path` and `label`, and optionally parts."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from tl import storage
from tl.data.columns import select_columns
from tl.data.csv_file import read_csv
from tl.data.find import missing
from tl.data.locate import REMARKS, Located, Locator
from tl.data.spec import PARTS, DataSpec, Example
from tl.labels.names import (
    check_names,
    counted,
    equal_numbers,
    listed,
    normalize,
    number,
    path_end,
    shown,
)
from tl.paths import absolute, expanded, is_url, nearest

# Lines listed in an error; chosen, not tuned.
_MAX_LINES = 3
# What spreadsheets write for a failed formula.
_FAILED = re.compile(r"#(N/?A|NV|REF!|VALUE!|NAME\?|DIV/0!|NULL!|NUM!|BEZUG!|WERT!)", re.IGNORECASE)
# What programs write for a missing value, in lower case.
_MISSING = frozenset(
    "nan null none na n/a n.a. <na> nil - -- ? missing unlabeled unlabelled".split()
)


def table(file: Path | str, *, min_classes: int = 2) -> DataSpec:
    """A data set listed in a CSV file.

    Args:
      file: a CSV file, local or in a bucket, in UTF-8, or in UTF-16 with a byte order mark,
        separated by commas, semicolons, tabs or vertical bars, with the names of the columns in the
        first line. The columns of `COLUMNS` are read, in any order. `path` is relative to the
        folder of the file (`Locator.find` has the other forms). `split` is a name in `PARTS` in
        every line, or the column is absent. `stratum` and `confidence` in (0, 1] have the meaning
        of the attributes of `Example`. Columns with a certain meaning are read in their place, such
        as `filename`, `class` and `is_valid`; `columns.py` has the names.
      min_classes: smallest number of labels: 2 to train, 1 to test.

    Returns:
      A `DataSpec` in the order of the lines. Its classes are the labels in Unicode's form NFC,
      sorted as numbers if all are numbers and as text otherwise; its license is unknown. Its
      remarks are on columns that are not used or have another name, similar labels, and
      paths that are not read as they are written.

    Raises:
      ValueError: the file does not exist or is not CSV, a required column is missing, a column
        occurs twice, there are fewer labels than `min_classes`, labels are equal as numbers but
        not as text, or an image has two labels; or a line has no label, an invalid split or
        confidence, or an image that does not exist. The message has the cell and the numbers of the
        first lines.
    """
    path = expanded(file)
    if not storage.is_file(path):
        problem, advice = "does not exist", ""
        if not is_url(path):
            problem = f"does not exist: {missing(path)}"
        if path.is_dir():
            problem, advice = "is a folder", "; a folder of classes is read as folder:DIR"
        raise ValueError(
            f"the table {path_end(str(file))} {problem}, expected a CSV file with the columns path "
            f"and label{advice}"
        )
    header, lines = read_csv(path)
    numbers = [line.number for line in lines]
    cells, remarks = select_columns(header, [line.cells for line in lines], path)
    labels, label_remarks = _labels(path, numbers, cells["label"])
    parts = _parts(path, numbers, cells.get("split"))
    confidence = _confidence(path, numbers, cells.get("confidence"))
    files, file_remarks = _files(path, numbers, cells["path"])
    copy_remarks = _check_copies(path, numbers, files, labels, parts)
    classes = tuple(sorted(set(labels), key=label_order(set(labels))))
    if len(classes) < min_classes:
        raise ValueError(
            f"{path} has {counted(len(classes), 'label')} in {counted(len(labels), 'line')}"
            f"{f' ({shown(classes[0])})' if classes else ''}, expected at least two classes"
        )
    index = {label: i for i, label in enumerate(classes)}
    strata = cells.get("stratum", [""] * len(lines))
    return DataSpec(
        name=f"csv:{file}",
        examples=tuple(
            Example(located.path, index[label], stratum, part, probability)
            for located, label, stratum, part, probability in zip(
                files, labels, strata, parts, confidence, strict=True
            )
            if located.path
        ),
        classes=classes,
        source=str(absolute(path)),
        license="unknown",
        remarks=(*remarks, *label_remarks, *file_remarks, *copy_remarks),
    )


def _labels(
    path: Path, numbers: Sequence[int], cells: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    """The labels in NFC, and remarks on those with several spellings."""
    labels = [normalize(cell) for cell in cells]
    absent = [i for i, label in enumerate(labels) if not label or _FAILED.fullmatch(label)]
    if absent:
        content = "no label" if not labels[absent[0]] else f"the label {shown(labels[absent[0]])}"
        _check_lines(path, content, "a label in each", [numbers[i] for i in absent])
    for group in equal_numbers(dict.fromkeys(labels)):
        lines = [numbers[labels.index(label)] for label in group[:2]]
        raise ValueError(
            f"{path} has the labels {shown(group[0])} in line {lines[0]} and {shown(group[1])} in "
            f"line {lines[1]}, which are the same number, expected one spelling of each class"
        )
    remarks = list(check_names(list(dict.fromkeys(labels))))
    spellings: dict[str, dict[str, int]] = defaultdict(dict)
    for label, cell in zip(labels, cells, strict=True):
        spellings[label][cell] = spellings[label].get(cell, 0) + 1
    forms = {label: {cell.strip() for cell in s} for label, s in spellings.items()}
    if several := [label for label in forms if len(forms[label]) > 1]:
        n = sum(sum(spellings[label].values()) for label in several)
        remarks.append(
            f"read {counted(n, 'line')} with the {_of(several)} in several Unicode forms as one "
            "class for each name"
        )
    if several := [label for label, f in forms.items() if len(f) < len(spellings[label])]:
        remarks.append(
            f"read the {_of(several)} with and without surrounding space as one class for each name"
        )
    if empty := [label for label in spellings if label.lower() in _MISSING]:
        n = sum(sum(spellings[label].values()) for label in empty)
        remarks.append(
            f"read {counted(n, 'line')} with the {_of(empty)} as a class; remove such lines if the "
            "label is missing"
        )
    if multiple := [label for label in spellings if _several(label, spellings)]:
        remarks.append(
            f"read {counted(len(multiple), 'label')} like a list as one class each, such as "
            f"{shown(multiple[0])}, because an image has one label"
        )
    return labels, tuple(remarks)


def _several(label: str, labels: Collection[str]) -> bool:
    """Whether a label looks like a list of several: "a|b", "['a', 'b']", or two of `labels`."""
    if re.search(r"[^\s|;][|;]\s*[^\s|;]", label) or re.fullmatch(r"[\[{(].*,.*[)}\]]", label):
        return True
    words = [word for word in re.split(r"[\s,/+&]+", label) if word]
    return len(words) > 1 and all(word in labels for word in words)


def _parts(path: Path, numbers: Sequence[int], cells: Sequence[str] | None) -> list[str]:
    """The official part of each line; "" without a column of parts."""
    if cells is None:
        return [""] * len(numbers)
    wrong = [i for i, cell in enumerate(cells) if cell.lower() not in PARTS]
    if wrong:
        cell = cells[wrong[0]]
        choices = "train, validation or test in each line"
        if re.search(r"[^\W\d]", cell):
            choices += f"; nearest: {nearest(cell, PARTS, 1)}"
        _check_lines(path, f"the split {shown(cell)}", choices, [numbers[i] for i in wrong])
    return [PARTS[cell.lower()] for cell in cells]


def _confidence(path: Path, numbers: Sequence[int], cells: Sequence[str] | None) -> list[float]:
    """The confidence of each label; 1 without a column for it."""
    if cells is None:
        return [1.0] * len(numbers)
    values = [_probability(cell) for cell in cells]
    wrong = [i for i, value in enumerate(values) if not 0.0 < value <= 1.0]
    if wrong:
        content = f"the confidence {shown(cells[wrong[0]])}"
        _check_lines(path, content, "a number in (0, 1] in each", [numbers[i] for i in wrong])
    return values


def _probability(word: str) -> float:
    """The number in a cell, with a point or a comma; NaN if it is not a number."""
    try:
        return float(word.replace(",", "."))
    except ValueError:
        return math.nan


def _files(
    path: Path, numbers: Sequence[int], cells: Sequence[str]
) -> tuple[list[Located], tuple[str, ...]]:
    """The image of each line, and remarks on paths that are not read as they are written."""
    locator = Locator(path.parent)
    files = [locator.find(cell) for cell in cells]
    if absent := [i for i, located in enumerate(files) if not located.path]:
        expected = "an image in each; paths are relative to the folder of the table"
        expected += locator.elsewhere(cells[absent[0]])
        _check_lines(path, files[absent[0]].why, expected, [numbers[i] for i in absent])
    remarks = []
    for how, sentence in REMARKS.items():
        if rows := [i for i, located in enumerate(files) if located.how == how]:
            cell = path_end(cells[rows[0]], 30)
            file = path_end(os.path.relpath(str(files[rows[0]].path), path.parent), 30)
            n = counted(len(rows), "absolute path" if how == "moved" else "path")
            remarks.append(sentence.format(n=n, cell=cell, file=file))
    return files, tuple(remarks)


def _check_copies(
    path: Path,
    numbers: Sequence[int],
    files: Sequence[Located],
    labels: Sequence[str],
    parts: Sequence[str],
) -> tuple[str, ...]:
    """Remarks on files that several lines list with one label.

    Raises:
      ValueError: a file has two labels.
    """
    rows: dict[tuple[int, int] | str, list[int]] = defaultdict(list)
    for i, located in enumerate(files):
        rows[located.identity].append(i)
    copies = [group for group in rows.values() if len(group) > 1]
    if contradictions := [group for group in copies if len({labels[i] for i in group}) > 1]:
        first = contradictions[0][0]
        other = next(i for i in contradictions[0] if labels[i] != labels[first])
        n, name = len(contradictions), path_end(str(files[first].path))
        raise ValueError(
            f"{path} has {counted(n, 'image')} under two labels, such as {name} with "
            f"{shown(labels[first], 24)} in line {numbers[first]} and {shown(labels[other], 24)} "
            f"in line {numbers[other]}, expected one label per image; keep one of the lines"
        )
    remarks = []
    example = lambda group: (
        f"{path_end(str(files[group[0]].path), 40)} in lines {numbers[group[0]]} and "
        f"{numbers[group[1]]}"
    )
    if copies:
        remarks.append(
            f"{counted(len(copies), 'image')} listed more than once, and each line counts: "
            f"{example(copies[0])}"
        )
    if leaks := [group for group in copies if len({parts[i] for i in group}) > 1]:
        remarks.append(
            f"{counted(len(leaks), 'image')} listed in more than one part, which is not corrected: "
            f"{example(leaks[0])}"
        )
    return tuple(remarks)


def label_order(labels: Iterable[str]) -> Callable[[str], tuple[Any, str]]:
    """The key by which labels are sorted: as numbers if all are numbers."""
    if all(number(label) is not None for label in labels):
        return lambda label: (number(label), label)
    return lambda label: (0, label)


def _of(labels: Sequence[str]) -> str:
    """`the label 'a'` or `the labels 'a' and 'b'`, without the article."""
    return f"label{'s' if len(labels) > 1 else ''} {listed(labels)}"


def _check_lines(path: Path, content: str, expected: str, lines: Sequence[int]) -> None:
    """Raises an error that lists the invalid lines, if there are any."""
    if lines:
        numbers = ", ".join(map(str, lines[:_MAX_LINES]))
        more = f" and {len(lines) - _MAX_LINES} more" if lines[_MAX_LINES:] else ""
        raise ValueError(f"{path} has {content} in line {numbers}{more}, expected {expected}")
