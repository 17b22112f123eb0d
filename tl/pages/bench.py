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
    "read_mb": "{:.0f} MB read",
    "bank_mb": "bank of {:.0f} MB",
    "memory_gb": "{:.2f} GB",
    "peak_share": "{:.0%} of the peak",
    "count": "{} in the network",
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
    sections = [
        *ratio_sections(rows),
        *growth_sections(rows, result["batch_size"], result["size"]),
        *memory_sections(rows),
        *bank_sections(rows),
    ]
    return Page("Speed", lead, [*sections, section("Measurements", rows)])


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


def ratio_sections(rows: Iterable[Mapping[str, Any]]) -> list[reporting.Html]:
    """The ratio of each network and pass with its interval, without rows of growth and of layers.

    The mark is the geometric mean of the ratios within the rounds, the center of the interval.
    """
    measured = [row for row in rows if "ratio_ci95" in row and not {"pass", "count"} & row.keys()]
    if not measured:
        return []
    several = len({row["peer"] for row in measured}) > 1
    bars = []
    for row in measured:
        low, high = row["ratio_ci95"]
        label = f"{row['arch']}, {row['what']}" + (f", {row['peer']}" if several else "")
        bars.append(reporting.Interval(label, math.sqrt(low * high), low, high))
    figure = reporting.intervals(bars, references=[("equal speed", 1.0)], ratios=True)
    text = "The mean over the rounds, with its interval. Above 1, tl is faster."
    heading = "Ratios" if several else f"Ratio to {measured[0]['peer']}"
    return [reporting.section(heading, figure, text=text)]


def growth_sections(
    rows: Iterable[Mapping[str, Any]], batch_size: int, size: int
) -> list[reporting.Html]:
    """Time per image over the batch size and over the size of the images, one section per network.

    Args:
      rows: of the result.
      batch_size, size: of the result; the figures over the one have the other fixed.
    """
    measured = [row for row in rows if "pass" in row]
    sections = []
    for arch in dict.fromkeys(row["arch"] for row in measured):
        figures = []
        for axis, x_label, fixed in (
            ("batch_size", "batch size", {"size": size}),
            ("size", "side of the images (pixels)", {"batch_size": batch_size}),
        ):
            some = [row for row in measured if row["arch"] == arch and fixed.items() <= row.items()]
            figures += [
                _growth([row for row in some if row["pass"] == name], axis, x_label, name)
                for name in dict.fromkeys(row["pass"] for row in some)
            ]
        text = (
            f"{arch}, {size} pixels or batch size {batch_size}. Bands reach from the fastest to "
            "the slowest round."
        )
        sections.append(reporting.section("Time per image", *figures, text=text))
    return sections


def _growth(rows: list[Mapping[str, Any]], axis: str, x_label: str, title: str) -> reporting.Html:
    """Milliseconds per image over `axis`, of `tl` and each peer."""
    series: dict[str, dict[float, float]] = {"tl": {}}
    bands = {}
    for row in sorted(rows, key=lambda row: row[axis]):
        series["tl"][row[axis]] = 1e3 / row["ours"]
        bands[row[axis]] = (row[axis], *(1e3 / rate for rate in reversed(row["spread"])))
        if row["peer_value"] is not None:
            series.setdefault(row["peer"], {})[row[axis]] = 1e3 / row["peer_value"]
    return reporting.curves(
        {name: points.items() for name, points in series.items()},
        x_label=x_label,
        y_label="time per image (ms)",
        title=title,
        bands={"tl": list(bands.values())},
        log_x=True,
    )


def bank_sections(rows: Iterable[Mapping[str, Any]]) -> list[reporting.Html]:
    """Private memory of a process over the number of images in the feature bank that it reads."""
    measured = [row for row in rows if row.get("images") and "bank_mb" in row]
    sections = []
    for arch in dict.fromkeys(row["arch"] for row in measured):
        some = [row for row in measured if row["arch"] == arch]
        figure = reporting.curves(
            {
                "files of the bank": [(row["images"], row["bank_mb"]) for row in some],
                "growth of private memory": [(row["images"], row["ours"]) for row in some],
            },
            x_label="images",
            y_label="MB",
            log_x=True,
        )
        text = (
            f"{arch}, one epoch in batches of 32. Private memory is what the process allocates; "
            "pages of mapped files, which the system can drop, are not part of it."
        )
        sections.append(reporting.section("Memory of a feature bank", figure, text=text))
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
