"""Where the time of a run went: the key "ledger" of `result.json`.

`spent` measures parts of the work, and JAX reports the time of each compilation. The time of an
inner part is not counted in the outer one, so the parts add up. Work outside of the other parts is
productive: steps of training, forward passes, attacks and ideal images.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

PARTS = ("start", "compile", "data", "checkpoint", "evaluation", "work")
"""Start of the process up to the run, compilation, waiting for data, checkpoints, evaluation, and
the productive rest of loops; imports, tracing, files and pages are in none of them."""

_SECONDS: dict[str, float] = dict.fromkeys(PARTS, 0.0)
_INNER: list[float] = []  # for each part that is open: seconds of the parts inside
_COUNTS = {"compiles": 0, "cached": 0}


@contextlib.contextmanager
def spent(part: str) -> Iterator[None]:
    """Adds the time of a block to a part; "work" inside of another part belongs to that one.

    Args:
      part: one of `PARTS`.
    """
    if part == "work" and _INNER:
        yield
        return
    began = time.monotonic()
    _INNER.append(0.0)
    try:
        yield
    finally:
        seconds = time.monotonic() - began
        _SECONDS[part] += seconds - _INNER.pop()
        if _INNER:
            _INNER[-1] += seconds


def begin() -> None:
    """Starts to count the parts of a run."""
    _SECONDS.update(dict.fromkeys(PARTS, 0.0), start=_age_of_process())
    _COUNTS.update(dict.fromkeys(_COUNTS, 0))
    _listen()


@functools.cache
def _listen() -> None:
    def add(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            _COUNTS["compiles"] += 1
            _SECONDS["compile"] += duration_secs
            if _INNER:
                _INNER[-1] += duration_secs

    def count(event: str, **kwargs: str | int) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            _COUNTS["cached"] += 1

    jax.monitoring.register_event_duration_secs_listener(add)
    jax.monitoring.register_event_listener(count)


def summary(seconds: float, lost: float) -> dict[str, Any]:
    """The ledger of a run, JSON-ready.

    Args:
      seconds: since the start of the run in this process.
      lost: seconds of earlier processes of the run whose work was not in a checkpoint.

    Returns:
      `seconds`, with the start and what was lost; `productive`, the share of work; the
      seconds of each of `PARTS`; `lost`; `compiles`, the number of compilations;
      `cached`, how many of them were read from the cache of compiled programs: in a run that began
      with an empty cache, those that it compiled twice; `peak_bytes`, the largest memory of the
      process; and `peak_device_bytes`, None on a CPU.
    """
    total = seconds + _SECONDS["start"] + lost
    stats = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": total,
        "productive": _SECONDS["work"] / total if total else None,
        **_SECONDS,
        "lost": lost,
        **_COUNTS,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_device_bytes": stats.get("peak_bytes_in_use"),
    }


def _age_of_process() -> float:
    """Seconds since this process started, on Linux; elsewhere the processor time that it used."""
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            began = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        with open("/proc/uptime", encoding="utf-8") as file:
            return max(float(file.read().split()[0]) - began, 0.0)
    except (OSError, ValueError, IndexError):
        return time.process_time()
