"""Timing of functions that take turns, and rows of a comparison with others.

`bench` and `peers` compare with other libraries; this module imports none.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from tl import devices, metrics, reporting

Row = dict[str, Any]
"""A row of `result.json`: `what`, `arch` and `ours`; optionally `unit` (images/s by default),
`spread` or `interval`, `rounds`, `peer`, `peer_value`, `ratio`, `ratio_ci95`, `goal` and `met`."""


def spent(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and its result."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def take_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, *, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each call in each round; calls take turns, so that other load affects all of them.

    Args:
      calls: name -> call, which returns when its work is done.
      rounds: number of timed rounds.
      warm_up: untimed calls of each, before the first round.

    Returns:
      Name -> seconds of each round.
    """
    for _ in range(warm_up):  # in turns too, because the first turn after another call is slow
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(spent(call)[0])
    return times


def rates(
    calls: Mapping[str, Callable[[], Any]], rounds: int, n: int, *, warm_up: int = 2
) -> dict[str, np.ndarray]:
    """Name -> rates f64[rounds]: `n` per second of a call; other arguments as `take_turns`."""
    times = take_turns(calls, rounds, warm_up=warm_up)
    return {name: n / np.array(seconds) for name, seconds in times.items()}


def rate_row(name: str, arch: str, rates: Iterable[float], **more: Any) -> Row:
    """A row with the median of rates, or of seconds if `unit` is "s", and all rounds."""
    values = np.array(list(rates), float)
    spread = [float(values.min()), float(values.max())][:: -1 if more.get("unit") == "s" else 1]
    row = {"what": name, "arch": arch, "ours": float(np.median(values)), "spread": spread}
    return {**row, "rounds": values.tolist(), **more}


def compared(row: Row, peer: str | None, values: Sequence[float] | np.ndarray) -> Row:
    """The row with the median of a peer's values and the ratio; None for both without values.

    With two or more rounds of both, `ratio_ci95` is the 95 % t interval of the geometric mean of
    the ratios within each round: load of the machine that slows both does not widen it.
    """
    value = float(np.median(values)) if len(values) else None
    ratio = row["ours"] / value if value else None
    row = {**row, "peer": peer, "peer_value": value, "ratio": ratio}
    if len(values) > 1 and len(values) == len(row.get("rounds", ())):
        logs = np.log(np.array(row["rounds"]) / np.array(values, float))
        row["ratio_ci95"] = np.exp(metrics.spread(logs.tolist())["ci95"]).tolist()
    return row


def goal(words: str, met: bool) -> Row:
    """The entries of a row that state a goal, and whether it is met."""
    return {"goal": words, "met": bool(met)}


_FIRST_LOGITS = """
import json, sys, time
began = time.perf_counter()
import jax, numpy as np
jax.config.update("jax_compilation_cache_dir", sys.argv[2])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
import tl
clf, variables = tl.load(sys.argv[1])
variables = jax.device_put(clf.fold_batch_norm(variables))
x = np.zeros((int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[4]), 3), np.float32)
loaded = time.perf_counter()
forward = jax.jit(clf.logits)
lowered = forward.lower(variables, x)
traced = time.perf_counter()
compiled = lowered.compile()
ready = time.perf_counter()
jax.block_until_ready(compiled(variables, x))
parts = {"import and load": loaded - began, "trace": traced - loaded, "compile": ready - traced}
print(json.dumps(parts))
"""


def first_logits(
    saved: Path, cache: Path, batch_size: int, size: int
) -> tuple[float, dict[str, float]]:
    """Seconds from the start of a new process to its first logits.

    Args:
      saved: a classifier that `models.save` wrote.
      cache: folder of compiled programs.
      batch_size: images per call.
      size: side of the images, in pixels.

    Returns:
      Seconds until the process ends, and the seconds of "import and load", "trace" and "compile".

    Raises:
      ValueError: the process failed.
    """
    return spent(lambda: run_child(_FIRST_LOGITS, saved, cache, batch_size, size))


def run_child(code: str, *words: object, folder: Path | None = None) -> Any:
    """Runs Python code in a new process and returns the JSON value of its last line.

    Args:
      code: the code; it prints the value.
      words: `sys.argv[1:]`.
      folder: the working folder, from which modules are imported. Default: that of this process.

    Raises:
      ValueError: the process failed; the message ends with its last words.
    """
    command = [sys.executable, "-c", code, *map(str, words)]
    child = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if child.returncode:
        raise ValueError(f"the measured process failed: {child.stderr.strip()[-300:]}")
    return json.loads(child.stdout.strip().splitlines()[-1])


def peak_mb() -> float:
    """Peak resident memory of this process since its start, in MB."""
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def private_mb() -> float:
    """Private resident memory of this process now, in MB: without mapped files and shared pages.

    Raises:
      ValueError: the system does not report it; Linux does.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        (line,) = (line for line in lines if line.startswith("RssAnon:"))
    except (OSError, ValueError):
        raise ValueError(
            "private memory cannot be measured: got no RssAnon in /proc/self/status, expected Linux"
        ) from None
    return int(line.split()[1]) * 1024 / 1e6


@contextlib.contextmanager
def empty_caches(folder: Path) -> Iterator[None]:
    """Runs the block with an empty folder of caches: no feature bank and no compiled program."""
    cache = os.environ.get("TL_CACHE")
    os.environ["TL_CACHE"] = str(folder)
    devices.use_compile_cache()
    compilation_cache.reset_cache()
    jax.clear_caches()
    try:
        yield
    finally:
        del os.environ["TL_CACHE"]
        if cache is not None:
            os.environ["TL_CACHE"] = cache
        devices.use_compile_cache()
        compilation_cache.reset_cache()


def collect(
    run: reporting.Run, rows: Iterable[Row], line: Callable[[Mapping[str, Any]], str]
) -> list[Row]:
    """The rows, logged and printed one by one; `line` formats a row."""
    collected = []
    for row in rows:
        run.log(row)
        print(line(row), flush=True)
        collected.append(row)
    return collected
