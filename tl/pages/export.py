"""The page of `export`: the size of the exported program and the command that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages.common import Page


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page.

    Args:
      result: "arch", "classes" (number of classes), "bytes" (size of the program), "platforms",
        and "command" (a command line that runs the program).
      folder: not used; the page has no images.
    """
    del folder
    figures = {"megabytes": f"{result['bytes'] / 1e6:.1f}", "classes": result["classes"]}
    text = f"To run it: {result['command']}"
    section = reporting.section("Program", reporting.numbers(figures), text=text)
    lead = f"{result['arch']} with its preprocessing, for {', '.join(result['platforms'])}."
    return Page("Exported classifier", lead, [section])
