"""The page of `peers`: attacks of several libraries on the same network and images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl.pages import bench
from tl.pages.common import Page


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of `peers`.

    Args:
      result: `rows`, as for `tl.pages.bench.section`, and `device`.
      folder: the run's folder, which is not used.
    """
    del folder
    lead = (
        f"The same weights, images and budget, on {result['device']}. Intervals are Wilson's, at "
        "95 %; spreads are the slowest and the fastest round."
    )
    section = bench.section("Comparison with other libraries", result["rows"])
    return Page("Attacks of several libraries", lead, [section])
