"""What `bench` and `peers` share: timing in turns, rows of a comparison, and their report."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from tl import cli, reporting

Row = dict[str, Any]
"""`what`, `arch`, `ours`, and where measured `unit` (images/s by default), `spread` or `interval`,
`peer`, `peer_value`, `ratio`, `goal` and `met`."""


def spent(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and its result."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def take_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, *, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each call in each round; calls take turns, so that other load affects them all."""
    for call in calls.values():
        for _ in range(warm_up):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(spent(call)[0])
    return times


def rate_row(name: str, arch: str, rates: Iterable[float], **more: Any) -> Row:
    """A row with the median of rates (or of seconds), and its slowest and fastest round."""
    values = np.array(list(rates), float)
    spread = [float(values.min()), float(values.max())][:: -1 if more.get("unit") == "s" else 1]
    return {"what": name, "arch": arch, "ours": float(np.median(values)), "spread": spread, **more}


def compared(row: Row, peer: str | None, value: float | None) -> Row:
    """The row next to a peer's value; None where there is no peer."""
    ratio = row["ours"] / value if value else None
    return {**row, "peer": peer, "peer_value": value, "ratio": ratio}


@contextlib.contextmanager
def empty_caches(folder: Path) -> Iterator[None]:
    """No feature bank and no compiled program from before."""
    cache = os.environ.get("TL_CACHE")
    os.environ["TL_CACHE"] = str(folder)
    cli.use_compile_cache()
    compilation_cache.reset_cache()
    jax.clear_caches()
    try:
        yield
    finally:
        del os.environ["TL_CACHE"]
        if cache is not None:
            os.environ["TL_CACHE"] = cache
        cli.use_compile_cache()
        compilation_cache.reset_cache()


EXTRAS = {
    "compile_seconds": "compiling {:.0f} s",
    "solved": "{:.0f} % solved",
    "not_found": "{} not found",
}


def value_text(row: Row, key: str) -> str:
    """A value with its unit and its interval or spread; `key` is "ours" or "peer_value"."""
    if row.get(key) is None:
        return "-"
    side = "peer_" if key == "peer_value" else ""
    text = f"{row[key]:.4g} {row.get('unit', 'images/s')}"
    for name in ("interval", "spread"):
        if f"{side}{name}" in row:
            text += " ({:.4g} to {:.4g})".format(*row[f"{side}{name}"])
    for name, form in EXTRAS.items():
        if f"{side}{name}" in row:
            text += ", " + form.format(row[f"{side}{name}"])
    return text


def line(row: Row) -> str:
    """A row as the terminal shows it."""
    text = f"{row['arch']:22s} {row['what']:24s} {value_text(row, 'ours')}"
    if row.get("peer"):
        text += f"   {row['peer']} {value_text(row, 'peer_value')}"
    if row.get("ratio") is not None:
        text += f"   ratio {row['ratio']:.3f}"
    if "goal" in row:
        text += f"   {row['goal']}: {'yes' if row['met'] else 'NO'}"
    if "parts" in row:
        text += "   " + ", ".join(f"{name} {value:.1f} s" for name, value in row["parts"].items())
    if "same_top1" in row:
        text += f"   logits differ by {row['logit_error']:.1%} of the largest,"
        text += f" the same top-1 for {row['same_top1']:.1%} of {row['n']} images"
    return text


def collect(run: reporting.Run, rows: Iterable[Row]) -> list[Row]:
    """The rows, logged and printed one by one."""
    collected = []
    for row in rows:
        run.log(row)
        print(line(row), flush=True)
        collected.append(row)
    return collected


def section(heading: str, rows: Iterable[Row]) -> reporting.Html:
    """The table of the rows."""
    header = ("what", "architecture", "tl", "peer", "value of the peer", "ratio", "goal")
    cells = [
        (row["what"], row["arch"], value_text(row, "ours"), row.get("peer") or "-")
        + (value_text(row, "peer_value"), f"{row['ratio']:.3f}" if row.get("ratio") else "-")
        + (f"{row['goal']}: {'yes' if row['met'] else 'no'}" if "goal" in row else "-",)
        for row in rows
    ]
    return reporting.section(heading, reporting.table(cells, header))
