"""Report pages: one function per experiment turns a result and the run's folder into HTML sections.

A page computes nothing and needs no network, so it can be drawn again from the files of a finished
run. To add a page, write a function `page(result, folder) -> Page` and add a row to `PAGES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tl import hosts, reporting
from tl.pages import (
    activations,
    attack,
    attack_transfer,
    audit,
    averaging,
    bench,
    choose,
    compare,
    describe,
    doctor,
    evaluation,
    explain,
    export,
    ideal,
    lesson,
    parity,
    peers,
    plan,
    predict,
    prepare,
    protocol,
    quickstart,
    remeasured,
    shots,
    support,
    sweep,
    torture,
    training,
    tricks,
    versus,
)
from tl.pages.common import Page, failed_section, remarks_section

PAGES: dict[str, Callable[[Mapping[str, Any], Path], Page]] = {
    "accelerator": bench.page,
    "attack": attack.page,
    "attack_transfer": attack_transfer.page,
    "audit": audit.page,
    "average": averaging.page,
    "bench": bench.page,
    "choose": choose.page,
    "compare": compare.page,
    "describe": describe.page,
    "doctor": doctor.page,
    "evaluate": evaluation.page,
    "explain": explain.page,
    "export": export.page,
    "features": activations.page,
    "ideal": ideal.page,
    "lesson": lesson.page,
    "parity": parity.page,
    "peers": peers.page,
    "plan": plan.page,
    "predict": predict.page,
    "prepare": prepare.page,
    "protocol": protocol.page,
    "quickstart": quickstart.page,
    "rerun": remeasured.page,
    "shots": shots.page,
    "support": support.page,
    "sweep": sweep.page,
    "torture": torture.page,
    "transfer": training.page,
    "tricks": tricks.page,
    "versus": versus.page,
}
"""Experiment -> `(result, folder) -> Page`; `result` is JSON-ready, `folder` holds `figures/`."""


def finish(run: reporting.Run, result: Mapping[str, Any]) -> Path:
    """Writes the page and `result.json` of a run, and returns the path of the page.

    If the page cannot be drawn, `result.json` is written without it, and its path is returned.

    Args:
      run: the run; its name is a row of `PAGES`.
      result: the content of `result.json`; `result["facts"]`, if present, is added to the footer.
    """
    if not hosts.first():
        return run.finish(result, None)
    numbers = reporting.jsonable(result)
    if run.remarks:
        numbers["remarks"] = list(run.remarks)
    if run.failures:
        numbers["failed"] = dict(run.failures)
    return run.finish(result, run.attempt("page", lambda: draw(run, numbers), None))


def draw(run: reporting.Run, result: Mapping[str, Any]) -> str:
    """The page of a run as HTML.

    Args:
      run: the run; its name is a row of `PAGES`.
      result: JSON-ready, as `result.json` holds it.
    """
    page = PAGES[run.name](result, run.workdir)
    failed = failed_section(result.get("failed", {}))
    remarks = remarks_section(result.get("remarks", []))
    return reporting.page(
        page.title,
        page.lead,
        [*failed, *page.sections, *remarks],
        facts=run.facts() | dict(result.get("facts", {})),
    )


def redraw(folder: Path) -> Path:
    """Draws the page of a finished run again from its files, and returns the path of the page.

    Args:
      folder: holds `result.json`, `config.json` and `figures/`.

    Raises:
      ValueError: the folder holds no finished run, its experiment has no row in `PAGES`, or an
        another version wrote it and the page needs more.
    """
    run, result = reporting.read_run(folder)
    if run.name not in PAGES:
        raise ValueError(
            f"{run.name} has no page that can be drawn again; experiments that have one: "
            f"{', '.join(sorted(PAGES)) or 'none'}"
        )
    try:
        return run.write_report(draw(run, result))
    except (LookupError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else f"another form ({error})"
        raise ValueError(
            f"{str(folder)!r} was written by another version: result.json has {reason}, which "
            f"the page needs; run {run.name} again"
        ) from error
