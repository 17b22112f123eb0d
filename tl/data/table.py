"""Data sets listed in a CSV file with the columns `path` and `label`, and optionally parts."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path

from tl.data.find import missing
from tl.data.spec import PARTS, DataSpec, Example
from tl.paths import nearest

DELIMITERS = ",;\t"
# The first two are required.
COLUMNS = ("path", "label", "split", "stratum", "confidence")
# Lines listed in an error; chosen, not tuned.
_MAX_LINES = 3


def table(file: Path | str) -> DataSpec:
    """A data set listed in a CSV file.

    Args:
      file: a CSV file in UTF-8, separated by commas, semicolons or tabs, with the names of the
        columns in the first line. The columns of `COLUMNS` are read, in any order; others are
        ignored. `path` is relative to the folder of the file. `split` is train, validation (val) or
        test in every line, or the column is absent. `stratum` and `confidence` in (0, 1] have the
        meaning of the attributes of `Example`.

    Returns:
      A `DataSpec` in the order of the lines. Its classes are the labels, sorted as numbers if all
      consist of digits and as text otherwise; its license is unknown.

    Raises:
      ValueError: the file does not exist or is not UTF-8, a required column is missing, or there
        are fewer than two labels; or a line has no label, an invalid split or confidence, or an
        image that does not exist. The message has the numbers of the first such lines.
    """
    path = Path(os.path.expanduser(file))
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else f"does not exist: {missing(path)}"
        raise ValueError(
            f"the table {str(file)!r} {problem}, expected a CSV file with the columns path and "
            "label"
        )
    rows, columns = _rows(path)
    lacking = [column for column in COLUMNS[:2] if column not in columns]
    if lacking:
        present = ", ".join(map(repr, columns)) or "none"
        raise ValueError(
            f"{path} has no column {' and no column '.join(map(repr, lacking))}, expected path and "
            f"label in its first line; its columns: {present}"
        )
    _check_lines(path, "no label", "a label in each", [n for n, row in rows if not row["label"]])
    wrong = [
        (n, row["split"])
        for n, row in rows
        if "split" in columns and row["split"].lower() not in PARTS
    ]
    if wrong:
        value = f"the split {wrong[0][1]!r}"
        choices = f"train, validation or test; nearest: {nearest(wrong[0][1], PARTS, 1)}"
        _check_lines(path, value, choices, [n for n, _ in wrong])
    confidence = {
        n: _probability(row["confidence"]) if "confidence" in row else 1.0 for n, row in rows
    }
    out_of_range = [n for n, p in confidence.items() if not 0.0 < p <= 1.0]
    _check_lines(path, "no confidence in (0, 1]", "one in each", out_of_range)
    images = {n: path.parent / os.path.expanduser(row["path"]) for n, row in rows}
    absent = [n for n, row in rows if not row["path"] or not images[n].is_file()]
    if absent:
        _check_lines(path, f"no image at {str(images[absent[0]])!r}", "one in each", absent)
    labels = {row["label"] for _, row in rows}
    if len(labels) < 2:
        raise ValueError(
            f"{path} has {len(labels)} labels in {len(rows)} lines, expected at least two classes"
        )
    integers = all(label.isdecimal() for label in labels)
    classes = tuple(sorted(labels, key=lambda label: (int(label) if integers else 0, label)))
    index = {label: i for i, label in enumerate(classes)}
    return DataSpec(
        name=f"csv:{file}",
        examples=tuple(
            Example(
                images[n],
                index[row["label"]],
                row.get("stratum", ""),
                PARTS[row["split"].lower()] if "split" in row else "",
                confidence[n],
            )
            for n, row in rows
        ),
        classes=classes,
        source=str(path.absolute()),
        license="unknown",
    )


def _rows(path: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """The lines that are not empty, as (number, column -> cell), and the names of the columns."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            delimiter = max(DELIMITERS, key=first.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            columns = [name.strip().lower() for name in next(reader, [])]
            rows = []
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    padded = [cell.strip() for cell in cells] + [""] * (len(columns) - len(cells))
                    rows.append((reader.line_num, dict(zip(columns, padded, strict=False))))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise ValueError(f"{path} cannot be read as a CSV in UTF-8: {error}") from error
    return rows, columns


def _probability(word: str) -> float:
    """The number in a cell; NaN if it is not a number."""
    try:
        return float(word)
    except ValueError:
        return math.nan


def _check_lines(path: Path, content: str, expected: str, lines: Sequence[int]) -> None:
    """Raises an error that lists the invalid lines, if there are any."""
    if lines:
        numbers = ", ".join(map(str, lines[:_MAX_LINES]))
        more = f" and {len(lines) - _MAX_LINES} more" if lines[_MAX_LINES:] else ""
        raise ValueError(f"{path} has {content} in line {numbers}{more}, expected {expected}")
