"""The page of `rerun`: a published number and its new measurement, or the list of all numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages.common import Page
from tl.reporting import results


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of a run of `rerun`.

    Args:
      result: the content of `result.json`.
      folder: not used; the page has no images.
    """
    del folder
    if "after" not in result:
        rows = list(result["claims"].items())
        section = reporting.section("Names", reporting.table(rows, ["name", "claim"]))
        return Page("Published numbers", f"{len(rows)} numbers can be measured again.", [section])
    rows = [
        (old["what"], results.format_value(old), results.format_value({**old, **new}))
        for old, new in zip(result["before"]["values"], result["after"]["values"], strict=True)
    ]
    table = reporting.table(rows, ["measurement", "before", "after"])
    lead = f"{result['name']}: measured at {result['before']['commit']}, and again now."
    return Page("A published number, measured again", lead, [reporting.section("Values", table)])
