"""The page of `bench`: speeds compared with those of other libraries. `peers` shares its table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages.common import Page

EXTRAS = {
    "compile_seconds": "compiling {:.0f} s",
    "solved": "{:.0f} % solved",
    "not_found": "{} not found",
    "map_error": "maps differ by {:.0e}",
    "program_mb": "the program alone {:.0f} MB",
}
HEADER = ("measurement", "architecture", "tl", "compared with", "its value", "ratio", "goal")


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of `bench`.

    Args:
      result: `rows`, `batch_size`, `size` in pixels, `dtype`, `device`, and `rounds`.
      folder: the run's folder, which is not used.
    """
    del folder
    lead = (
        f"Batch size {result['batch_size']}, {result['size']} pixels, {result['dtype']}, on "
        f"{result['device']}. Each value is the median of {result['rounds']} rounds, with the "
        "slowest and the fastest round; the interval of a ratio is that of the mean over rounds. A "
        "ratio above 1 means that tl is faster, or that it uses more memory."
    )
    rows = result["rows"]
    return Page("Speed", lead, [*memory_sections(rows), section("Measurements", rows)])


def memory_sections(rows: Iterable[Mapping[str, Any]]) -> list[reporting.Html]:
    """Peak memory of integrated gradients over the number of nodes, one figure per network."""
    sections = []
    measured = [row for row in rows if "nodes" in row]
    for arch in dict.fromkeys(row["arch"] for row in measured):
        series: dict[str, dict[float, float]] = {}
        for row in (row for row in measured if row["arch"] == arch):
            for name, value in (
                ("tl, the compiled program", row["program_mb"]),
                ("tl, the process", row["ours"]),
                (f"{row['peer']}, the process", row["peer_value"]),
            ):
                if value is not None:
                    series.setdefault(name, {})[row["nodes"]] = value
        figure = reporting.curves(
            {name: points.items() for name, points in series.items()},
            x_label="nodes",
            y_label="peak memory (MB)",
        )
        text = (
            f"{arch}. The memory of a process includes the libraries and the network. A line ends "
            "where the next number of nodes would not fit into memory."
        )
        sections.append(reporting.section("Memory of integrated gradients", figure, text=text))
    return sections


def section(heading: str, rows: Iterable[Mapping[str, Any]]) -> reporting.Html:
    """The table of the rows."""
    cells = [
        (row["what"], row["arch"], value_text(row, "ours"), row.get("peer") or "-")
        + (value_text(row, "peer_value"), ratio_text(row) or "-")
        + (f"{row['goal']}: {'yes' if row['met'] else 'no'}" if "goal" in row else "-",)
        for row in rows
    ]
    return reporting.section(heading, reporting.table(cells, HEADER))


def value_text(row: Mapping[str, Any], key: str) -> str:
    """A value with its unit and its interval or spread; `key` is "ours" or "peer_value".

    JSON's null, the median distance of a search that mostly fails, is infinity.
    """
    side = "peer_" if key == "peer_value" else ""
    value = row.get(key)
    if value is None and not row.get(f"{side}not_found"):
        return "-"
    text = f"{math.inf if value is None else value:.4g} {row.get('unit', 'images/s')}"
    for name in ("interval", "spread"):
        if f"{side}{name}" in row:
            text += " ({:.4g} to {:.4g})".format(*row[f"{side}{name}"])
    for name, form in EXTRAS.items():
        if f"{side}{name}" in row:
            text += ", " + form.format(row[f"{side}{name}"])
    return text


def ratio_text(row: Mapping[str, Any]) -> str:
    """The ratio of a row with the interval over its rounds; "" without one."""
    if row.get("ratio") is None:
        return ""
    text = f"{row['ratio']:.3f}"
    if "ratio_ci95" in row:
        text += " ({:.3f} to {:.3f})".format(*row["ratio_ci95"])
    return text


def line(row: Mapping[str, Any]) -> str:
    """A row as the terminal shows it."""
    text = f"{row['arch']:22s} {row['what']:24s} {value_text(row, 'ours')}"
    if row.get("peer"):
        text += f"   {row['peer']} {value_text(row, 'peer_value')}"
    if ratio := ratio_text(row):
        text += f"   ratio {ratio}"
    if "goal" in row:
        text += f"   {row['goal']}: {'yes' if row['met'] else 'NO'}"
    if "parts" in row:
        text += "   " + ", ".join(f"{name} {value:.1f} s" for name, value in row["parts"].items())
    if "same_top1" in row:
        text += f"   logits differ by {row['logit_error']:.1%} of the largest,"
        text += f" the same top-1 for {row['same_top1']:.1%} of {row['n']} images"
    return text
