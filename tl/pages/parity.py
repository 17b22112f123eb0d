"""The page of `parity`: errors of the ports compared with the libraries that they come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages.common import Page

Row = Mapping[str, Any]
LIBRARIES = ("torchvision", "timm", "keras")


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of `parity`.

    Args:
      result: `rows`, `sizes`, `batch_size`, `tolerance`, and `errors`: per row the error of each
        endpoint, or [] where there are too many rows to show.
      folder: the run's folder, which is not used.
    """
    del folder
    rows = result["rows"]
    sizes = ", ".join(f"{h} x {w}" for h, w in result["sizes"])
    lead = (
        f"{count(rows)} of a network and its source, batch size {result['batch_size']} at {sizes} "
        "pixels, float32 in tl and float64 in the source. An error is the largest difference in "
        "units of the largest value, over logits, pooled features and every endpoint; the "
        f"tolerance is {result['tolerance']:g}. {largest(rows).capitalize()}."
    )
    header, *lines = summary(rows)
    sections = [reporting.section("Errors by architecture", reporting.table(lines, header))]
    if wrong := failures(rows):
        cells = [
            (row["arch"], row["source"], row["first_divergence"] or "not compared", row["cause"])
            for row in wrong
        ]
        header = ("architecture", "source", "first divergence", "likely cause")
        sections.insert(0, reporting.section("Divergences", reporting.table(cells, header)))
    for row, errors in zip(rows, result["errors"], strict=False):
        cells = [(end, _text(value)) for end, value in errors.items()]
        title = f"{row['arch']} and {row['source']}"
        sections.append(reporting.section(title, reporting.table(cells, ("endpoint", "error"))))
    return Page("Parity with the source libraries", lead, sections)


def count(rows: Sequence[Row]) -> str:
    """The number of pairs in words."""
    return f"{len(rows)} pair{'s' * (len(rows) != 1)}"


def largest(rows: Sequence[Row]) -> str:
    """The largest error of all pairs in words."""
    errors = [value for value in map(_error, rows) if value is not None]
    return f"largest error {max(errors):.1e}" if errors else "none could be compared"


def failures(rows: Sequence[Row]) -> list[Row]:
    """The pairs that diverge or could not be compared."""
    return [row for row in rows if row["max_rel_error"] is None or row["first_divergence"]]


def line(row: Row) -> str:
    """A row as the terminal shows it."""
    pair = f"{row['arch']} against {row['source']}'s {row['call']}"
    error = _error(row)
    if error is None:
        return f"{pair}, not compared: {row['cause']}"
    first = row["first_divergence"]
    where = f", first at {first}; likely cause: {row['cause']}" if first else ""
    return f"{pair} ({row['form']}): {error:.1e}{where}"


def summary(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The largest error of each architecture and source as a table, its header first."""
    libraries = [name for name in LIBRARIES if any(row["source"] == name for row in rows)]
    errors = {(row["arch"], row["source"]): _error(row) for row in rows}

    def cell(arch: str, library: str) -> str:
        if (arch, library) not in errors:
            return "-"
        value = errors[arch, library]
        return "failed" if value is None else _text(value)

    archs = dict.fromkeys(row["arch"] for row in rows)
    lines = [(arch, *(cell(arch, library) for library in libraries)) for arch in archs]
    return [("architecture", *libraries), *lines]


def _error(row: Row) -> float | None:
    """The pair's largest error; None if it could not be compared, and then nothing diverges."""
    diverges = row["max_rel_error"] is None and row["first_divergence"]
    return math.inf if diverges else row["max_rel_error"]


def _text(error: float | None) -> str:
    """An error in scientific notation; JSON's null is an infinite one."""
    return f"{math.inf if error is None else error:.1e}"
