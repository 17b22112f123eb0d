"""Report pages: one function per experiment, from `result.json` and the run's folder to sections of HTML.

A page computes nothing and needs no network: it can be drawn again from the files of a finished run. To add one: a function
`page(result, folder) -> Page` and a row in `PAGES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import evaluation
from tl.pages.common import Page

PAGES: dict[str, Callable[[Mapping[str, Any], Path], Page]] = {"evaluate": evaluation.page}
"""Experiment -> `(result, folder) -> Page`. `result` is JSON-ready and `folder` holds `figures/`."""


def finish(run: reporting.Run, result: Mapping[str, Any]) -> Path:
    """Writes the page and `result.json` of a run, and returns the path of the page.

    Args:
      run: the run; its name is a row of `PAGES`.
      result: as `result.json` holds it; `result["facts"]`, where present, is added to the small print.
    """
    page = PAGES[run.name](reporting.jsonable(result), run.workdir)
    facts = run.facts() | dict(result.get("facts", {}))
    return run.finish(result, reporting.page(*page, facts=facts))
