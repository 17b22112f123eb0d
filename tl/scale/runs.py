"""The runs below a folder: what each one is, whether it finished, its numbers and its images.

A run is a folder with `config.json`. Nothing is computed again, and damaged files of one run do not
hide the others. `tl.pages.runs` draws the page.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import runs as page
from tl.paths import is_url
from tl.reporting.messages import ERROR

INDEX = "index.html"
# Folders of a run that hold no runs.
_PARTS = {"figures", "checkpoints", "model", "bank"}
# Seconds without a change after which a run without a result has died. Chosen, not tuned: a first
# compilation may take minutes.
SILENCE = 900.0
# Bytes of metrics.jsonl that are read, and points of a curve. Chosen, not tuned.
_READ, _POINTS = 1 << 20, 60
# Images of a run on the page.
_IMAGES = 2


def write_index(folder: Path) -> Path:
    """Writes `index.html`, one self-contained page over all runs below a folder; returns its path.

    Raises:
      ValueError: the folder is missing or holds no run, or it is in a bucket.
    """
    if is_url(folder):
        raise ValueError(f"runs reads local folders: got {str(folder)!r}; copy the runs first")
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}; give one that holds runs")
    rows = sorted(read(folder), key=lambda row: row["started"], reverse=True)
    if not rows:
        raise ValueError(
            f"there is no run below {str(folder)!r}; expected folders with a config.json, which a "
            "run writes into its workdir"
        )
    reporting.write_whole(folder / INDEX, page.draw(rows, folder))
    return folder / INDEX


def read(folder: Path, *, now: float | None = None) -> Iterator[dict[str, Any]]:
    """One row per run below a folder.

    Args:
      folder: the folder; links to other folders are not followed.
      now: time in seconds since 1970, which decides whether a run without a result still runs.

    Yields:
      "path" (below `folder`), "name" (of the experiment), "started", "status" ("finished",
      "incomplete", "running", "failed" or "died"), "reason" (the last message), "flags", "numbers"
      (name -> number, the main one first), "curve" (the loss, at most 60 values), "images" (paths
      of files), "page" (whether there is a report).
    """
    now = time.time() if now is None else now
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - _PARTS)
        if "config.json" in files:
            yield _row(Path(root), folder, set(files), now)


def _row(run: Path, folder: Path, files: set[str], now: float) -> dict[str, Any]:
    config, result = _json(run / "config.json"), _json(run / "result.json")
    flags = config.get("flags")
    status, reason = _status(run, result, files, now)
    started = str(config.get("started") or "")
    if not started:
        changed = datetime.datetime.fromtimestamp((run / "config.json").stat().st_mtime)
        started = changed.astimezone().isoformat(timespec="seconds")
    return {
        "path": run.relative_to(folder).as_posix(),
        "name": str(config.get("name") or "?"),
        "started": started,
        "status": status,
        "reason": reason,
        "flags": flags if isinstance(flags, Mapping) else {},
        "numbers": headline(result),
        "curve": _curve(run / "metrics.jsonl"),
        "images": _images(run / "figures"),
        "page": "report.html" in files,
    }


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; `{}` if it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _status(run: Path, result: Mapping[str, Any], files: set[str], now: float) -> tuple[str, str]:
    """The status and its reason; see `read`."""
    if result:
        failed = result.get("failed")
        if isinstance(failed, Mapping) and failed:
            return "incomplete", "; ".join(f"{part}: {text}" for part, text in failed.items())
        return "finished", ""
    if ERROR in files:
        try:
            text = (run / ERROR).read_text(encoding="utf-8", errors="replace")
        except OSError:
            text = ""
        return "failed", text.partition("\n")[0]
    changed = max((run / name).lstat().st_mtime for name in files)
    if now - changed < SILENCE:
        return "running", ""
    when = datetime.datetime.fromtimestamp(changed).isoformat(" ", timespec="minutes")
    return "died", f"no result; last change {when}"


def headline(result: Mapping[str, Any]) -> dict[str, float]:
    """The main numbers of a result, the most important first; at most eight.

    Example:
      >>> headline({"n": 5, "test": {"top1": 0.9, "nll": 0.3}, "success_rate": {"0.1": 1.0}})
      {'test.top1': 0.9, 'success_rate.0.1': 1.0, 'test.nll': 0.3, 'n': 5}
    """
    numbers: dict[str, float] = {}
    for path in page.MAIN:
        value: Any = result
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        entries = value if isinstance(value, Mapping) else {"": value}
        for key, number in entries.items():
            if isinstance(number, int | float) and not isinstance(number, bool):
                numbers[f"{path}.{key}".rstrip(".")] = number
    return dict(list(numbers.items())[:8])


def _curve(path: Path) -> list[float]:
    """The loss in `metrics.jsonl`, thinned out; [] without one."""
    try:
        with open(path, "rb") as file:
            lines = file.read(_READ).split(b"\n")
    except OSError:
        return []
    values: dict[str, list[float]] = {}
    for line in lines[:: max(1, len(lines) // (4 * _POINTS))]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        for key, value in row.items() if isinstance(row, dict) else ():
            if "loss" in key and isinstance(value, int | float):
                values.setdefault(key, []).append(value)
    longest = max(values.values(), key=len, default=[])
    return longest[:: max(1, len(longest) // _POINTS)]


def _images(folder: Path) -> list[Path]:
    """The first figures of a run, by name."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".webp"))
    except OSError:
        return []
    return files[:_IMAGES]
