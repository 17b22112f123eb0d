"""CSV files as spreadsheets and programs write them: encodings, delimiters, lines and cells.

The meaning of the columns is the matter of `columns.py`.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

from tl.data.columns import recognized
from tl.data.find import SUFFIXES
from tl.labels.names import shown

DELIMITERS = ",;\t|"
# Lines in which the names of columns are looked for, if a title or comments are above them.
_TITLE_LINES = 20

# Byte order mark -> encoding; UTF-32 first, because its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
# First bytes of files that are not text -> what they are.
_OTHER_FORMATS = {
    b"PK\x03\x04": "an Excel workbook (.xlsx) or another zip archive",
    b"\xd0\xcf\x11\xe0": "an Excel workbook of the old format (.xls)",
    b"PAR1": "a Parquet file",
    b"ARROW1": "a Feather file",
    b"\x93NUMPY": "an array of NumPy",
    b"\x80": "a pickle",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"RIFF": "an image",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF file",
    b"{": "a JSON file",
    b"[{": "a JSON file",
    b"<": "an HTML or XML file",
}


class Line(NamedTuple):
    """A line with cells.

    Attributes:
      number: line number in the file, from 1.
      cells: its cells as written, as many as the table has columns.
    """

    number: int
    cells: list[str]


def read_csv(path: Path) -> tuple[list[str], list[Line]]:
    """The names of the columns and the lines that are not empty.

    The encoding is UTF-8, or UTF-16 or UTF-32 with a byte order mark. The delimiter is that of a
    first line such as `sep=;`, else the one in `DELIMITERS` that separates the first line into
    known columns.

    Args:
      path: the file.

    Returns:
      `(header, lines)`. The header has the names as written, without surrounding space; "" for a
      column without a name.

    Raises:
      ValueError: the file is not text in these encodings, is not valid CSV, has no line with the
        names of the columns, or a line has more cells than the header.
    """
    text = _text(path)
    separator = re.match(r'\ufeff?"?sep=(.)"?[,;\t| ]*(\r\n|\r|\n)', text, re.IGNORECASE)
    if separator:
        text, delimiter = text[separator.end() :], separator[1]
    else:
        delimiter = max(DELIMITERS, key=lambda d: _score(text, d))
    before = 1 if separator else 0
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    rows: list[Line] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append(Line(before + reader.line_num, cells))
    except csv.Error as error:
        raise ValueError(
            f"{path} is not valid CSV: {error} in line {before + reader.line_num}, expected cells "
            "with commas or quotes in double quotes"
        ) from error
    if not rows:
        return [], []
    _check_title(text, before, path)
    header = [name.strip().strip("\ufeff").strip() for name in rows[0].cells]
    if files := [name for name in header if _image_name(name)]:
        raise ValueError(
            f"{path} has no line with the names of its columns: line {rows[0].number} has the "
            f"image {shown(_image_name(files[0]))}; add a first line such as "
            f"path{'<TAB>' if delimiter == chr(9) else delimiter}label"
        )
    # R's write.table writes the numbers of the rows without a name for their column.
    if all(len(row.cells) == len(header) + 1 and row.cells[0].isdecimal() for row in rows[1:]):
        header = ["", *header]
    return header, [_fitted(row, len(header), path, delimiter) for row in rows[1:]]


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8")
    start = data[:64].lstrip() if encoding == "utf-8" else b""
    packed = start.startswith(b"PK\x03\x04") and b".csv" in data[:200]
    if packed or start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        raise ValueError(f"{path} is an archive, expected a CSV file; unpack it first")
    start = re.sub(rb"^\[\s+(?=[\[{])", b"[", start)
    for magic, kind in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise ValueError(f"{path} is {kind}, expected a CSV file; export it as CSV in UTF-8")
    if encoding.startswith("utf-8") and b"\0" in data:
        raise ValueError(
            f"{path} has bytes of value 0, as UTF-16 without its mark has, expected a CSV file in "
            "UTF-8; save it as 'CSV UTF-8'"
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if not encoding.startswith("utf-8"):
            raise ValueError(
                f"{path} begins with the mark of {encoding.upper()} but cannot be decoded: "
                f"{error.reason}; save it as 'CSV UTF-8'"
            ) from error
        body = data.removeprefix(codecs.BOM_UTF8) if encoding == "utf-8-sig" else data
        at = error.start
        line = 1 + len(re.findall(rb"\r\n|\r|\n", body[:at]))
        left = re.search(rb"[^,;\t|\"\r\n]*\Z", body[:at])
        right = re.match(rb"[^,;\t|\"\r\n]*", body[at:])
        cell = b"".join(match[0] for match in (left, right) if match).decode("cp1252", "replace")
        raise ValueError(
            f"{path} is not in UTF-8: byte 0x{body[at]:02X} in line {line}, in a cell that reads "
            f"{shown(cell)} in cp1252 of Windows; save it as 'CSV UTF-8'"
        ) from error


def _image_name(cell: str) -> str:
    """The name of an image file at the beginning of a cell; "" if there is none."""
    words = cell.split(" ")
    names = (" ".join(words[:n]) for n in range(len(words), 0, -1))
    return next((name for name in names if Path(name).suffix.lower() in SUFFIXES), "")


def _score(text: str, delimiter: str) -> tuple[int, int]:
    """The number of known columns, and of all columns, in the first line that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        cells = next((row for row in reader if any(cell.strip() for cell in row)), [])
    except csv.Error:
        return 0, 0
    return sum(map(recognized, cells)), len(cells)


def _check_title(text: str, before: int, path: Path) -> None:
    """Raises ValueError if the names of the columns are in a later line, below a title."""
    lines = re.split(r"\r\n|\r|\n", text[:10_000])[:_TITLE_LINES]
    scores = [max(_score(line, d)[0] for d in DELIMITERS) for line in lines]
    first = next((i for i, line in enumerate(lines) if line.strip(" ,;\t|")), 0)
    one_cell = not any(d in lines[first].strip() for d in DELIMITERS)
    if max(scores, default=0) > 1 and (one_cell or not scores[first]):
        line = scores.index(max(scores)) + 1
        raise ValueError(
            f"{path} has the names of its columns in line {before + line}, below "
            f"{shown(lines[first].strip())}, expected in the first line; remove the lines before it"
        )


def _fitted(row: Line, n: int, path: Path, delimiter: str) -> Line:
    """The line with exactly `n` cells; empty ones are added or removed at the end."""
    if extra := [cell for cell in row.cells[n:] if cell.strip()]:
        raise ValueError(
            f"{path} has {len(row.cells)} cells in line {row.number}, expected {n}: "
            f"{shown(extra[0].strip())} has no column; name the column, or put cells that contain "
            f"{delimiter!r} in double quotes"
        )
    cells = [re.sub(r'^="(.*)"$', r"\1", cell) for cell in row.cells[:n]]  # ="01" of spreadsheets
    return Line(row.number, [*cells, *[""] * (n - len(cells))])
