"""The page of `torture`: what was killed, and what was left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages.common import Page


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of a run of `torture`.

    Args:
      result: the content of `result.json`.
      folder: not used; the page has no images.
    """
    del folder
    columns = ["run", "processes", "signal", "after, s", "statuses", "ended in, s", "repeated"]
    rows = [
        (
            row["case"],
            row["processes"],
            row["signal"],
            f"{row['after']:.2f}",
            ", ".join(map(str, row["statuses"])),
            f"{row['seconds']:.1f}",
            f"{row['repeated']} of {row['interval']} steps" if row["interval"] else "",
        )
        for row in result["kills"]
    ]
    sections = [reporting.section("Kills", reporting.table(rows, columns))]
    return Page("Runs that were killed", " ".join(lines(result)), sections)


def lines(result: Mapping[str, Any]) -> list[str]:
    """The outcome in a few sentences."""
    text = [
        f"{result['n']} kills of {result['runs']} runs: {result['lost']} lost, {result['hangs']} "
        f"hung, {result['different']} with other bits.",
        f"After a kill, all processes ended within {result['seconds_to_end']:.1f} s, and at most "
        f"{result['repeated_intervals']:.2g} of the steps between two checkpoints were repeated.",
    ]
    for row in result["failures"]:
        text.append(f"{row['problem']}: {row['case']}, {row['processes']}: {row['output'][-300:]}")
    return text
