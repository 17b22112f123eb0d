"""The page of `prepare`: the sizes of a data set, and how to use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import common


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of `prepare`.

    Args:
      result: as `tl.data.downloads.prepare` returns it.
      folder: the run's folder.
    """
    del folder
    table = reporting.table(list(result["parts"].items()), ["part", "images"])
    return common.Page("Data set", " ".join(lines(result)), [reporting.section("Parts", table)])


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The sizes, and the word for `--data`."""
    yield (
        f"{result['data']}: {result['n']} images of {len(result['classes'])} classes, license "
        f"{result['license']}."
    )
    yield f"Use it with --data=csv:{result['table']}"
