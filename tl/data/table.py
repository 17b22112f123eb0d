"""Pictures listed in a table: a CSV with a column `path` and a column `label`, and the parts they belong to if it says so."""

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
COLUMNS = ("path", "label", "split", "stratum", "confidence")  # the first two are needed
_SHOWN = 3  # lines that an error names


def table(file: Path | str) -> DataSpec:
    """The pictures that a CSV lists.

    Args:
      file: its first line names the columns, separated by commas, semicolons or tabs; those of `COLUMNS` are read, in any
        order and beside others. A `path` is relative to the file's folder. `split` is train, validation (val) or test,
        in every line or not there. `stratum` is what a stratified split keeps in proportion beside the label, `confidence` how
        sure the label is, above 0 and up to 1.

    Returns:
      A `DataSpec` in the order of the lines, whose classes are the labels, sorted (as numbers where all are whole
      numbers), and whose licence is unknown.

    Raises:
      ValueError: the file is not there or no UTF-8 text, a column is missing, a line without a label, a split or a
        confidence that is none, a picture that is not there, or fewer than two labels; with the first such lines and their
        number.
    """
    path = Path(os.path.expanduser(file))
    if not path.is_file():
        why = "is a folder" if path.is_dir() else f"is not there: {missing(path)}"
        raise ValueError(
            f"the table {str(file)!r} {why}, wanted a CSV file with the columns path and label"
        )
    rows, columns = _rows(path)
    lacking = [column for column in COLUMNS[:2] if column not in columns]
    if lacking:
        found = ", ".join(map(repr, columns)) or "nothing"
        raise ValueError(
            f"{path} has no column {' and no column '.join(map(repr, lacking))}, wanted path and label in its first line; "
            f"it has {found}"
        )
    _refuse(path, "no label", "a label in each", [n for n, row in rows if not row["label"]])
    wrong = [
        (n, row["split"])
        for n, row in rows
        if "split" in columns and row["split"].lower() not in PARTS
    ]
    if wrong:
        said = f"the split {wrong[0][1]!r}"
        close = f"train, validation or test; nearest: {nearest(wrong[0][1], PARTS, 1)}"
        _refuse(path, said, close, [n for n, _ in wrong])
    sure = {n: _probability(row["confidence"]) if "confidence" in row else 1.0 for n, row in rows}
    _refuse(
        path,
        "no confidence above 0 and up to 1",
        "one in each",
        [n for n, p in sure.items() if not 0.0 < p <= 1.0],
    )
    pictures = {n: path.parent / os.path.expanduser(row["path"]) for n, row in rows}
    absent = [n for n, row in rows if not row["path"] or not pictures[n].is_file()]
    if absent:
        _refuse(path, f"no picture at {str(pictures[absent[0]])!r}", "one in each", absent)
    labels = {row["label"] for _, row in rows}
    if len(labels) < 2:
        raise ValueError(
            f"{path} has {len(labels)} labels in {len(rows)} lines, wanted at least two classes"
        )
    whole = all(label.isdecimal() for label in labels)
    classes = tuple(sorted(labels, key=lambda label: (int(label) if whole else 0, label)))
    number = {label: i for i, label in enumerate(classes)}
    return DataSpec(
        name=f"csv:{file}",
        examples=tuple(
            Example(
                pictures[n],
                number[row["label"]],
                row.get("stratum", ""),
                PARTS[row["split"].lower()] if "split" in row else "",
                sure[n],
            )
            for n, row in rows
        ),
        classes=classes,
        source=str(path.absolute()),
        licence="unknown",
    )


def _rows(path: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """Every line that is not empty, with its number, by column; and the columns."""
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
    """The number that a cell holds; NaN where it holds none."""
    try:
        return float(word)
    except ValueError:
        return math.nan


def _refuse(path: Path, found: str, wanted: str, lines: Sequence[int]) -> None:
    """Raises the sentence for lines that are wrong, if there are any."""
    if lines:
        shown = ", ".join(map(str, lines[:_SHOWN])) + (
            f" and {len(lines) - _SHOWN} more" if lines[_SHOWN:] else ""
        )
        raise ValueError(f"{path} has {found} in line {shown}, wanted {wanted}")
