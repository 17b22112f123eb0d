"""Kills commands at random moments and checks what is left: `./launch.sh torture`.

Each case is a small command on images that this module makes. It runs once without interruption;
then SIGTERM or SIGKILL ends one of its processes after a random time, and the command starts again,
with `--resume` where it has checkpoints, until it is done. The result must have the same bits.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl import hosts, reporting
from tl.paths import nearest
from tl.scale.commands import resumed
from tl.scale.local import environment, free_port

# Seconds after a kill in which all processes must end.
LIMIT = 60.0
# Largest number of kills of one run, and shares of the two signals. Chosen, not tuned.
KILLS_OF_RUN = 3

_NETWORK = ("--arch=mobilenetv1_025_keras", "--weights=random")
_TRAIN = (*_NETWORK, "--image_size=32", "--batch_size=16", "--data=folder:{data}")
CASES: dict[str, tuple[str, ...]] = {
    "probe": ("transfer", *_TRAIN, "--tune=probe", "--seeds=3"),
    "cached": ("transfer", *_TRAIN, "--tune=last:1", "--epochs=30", "--augment=flip"),
    "images": ("transfer", *_TRAIN, "--tune=last:2", "--bn=update", "--epochs=16", "--bank_gib=0"),
    "two phases": ("transfer", *_TRAIN, "--tune=lp_ft", "--epochs=16", "--ema=0.9"),
    "attack": ("attack", *_NETWORK, "--images={data}", "--steps=8", "--nopanel", "--nolpips"),
    "ideal": ("ideal", *_NETWORK, "--target=1,2,3,4", "--size=64", "--steps=64", "--judges="),
}
"""Name -> experiment and flags; {data} is a folder with two classes of images."""


class Kill(NamedTuple):
    """One kill.

    Attributes:
      case, processes: the command.
      signal: "SIGTERM" or "SIGKILL".
      after: seconds from the start of the command.
      statuses: exit status of each process; negative numbers are signals.
      seconds: from the kill to the end of the last process.
      hang: whether a process did not end within `LIMIT`.
      repeated: steps that were logged and are not in a checkpoint.
      interval: steps between checkpoints.
    """

    case: str
    processes: int
    signal: str
    after: float
    statuses: list[int]
    seconds: float
    hang: bool
    repeated: int
    interval: int


def torture(
    folder: Path,
    *,
    kills: int,
    seed: int,
    processes: Sequence[int] = (1, 2),
    cases: Sequence[str],
    log: Callable[[Mapping[str, Any]], object] = lambda row: None,
) -> dict[str, Any]:
    """Kills the commands of `CASES` `kills` times in all.

    Args:
      folder: a new folder for data and runs.
      kills: number of kills, of SIGTERM and SIGKILL in turn.
      seed: seed of the moments and of the processes that are killed.
      processes: numbers of processes of a command.
      cases: names of `CASES`.
      log: receives each kill and each problem as a row.

    Returns:
      JSON-ready: `kills` (rows), and the counts `runs`, `resumes`, `hangs`, `lost` (runs that did
      not finish), `equal` and `different` (runs with the bits of a run without a kill, and with
      others), `repeated_intervals` (the largest number of steps that were repeated, in intervals
      of checkpoints).

    Raises:
      ValueError: an unknown case, or one that fails without a kill.
    """
    for name in cases:
        if name not in CASES:
            raise ValueError(f"unknown case {name!r}; nearest: {nearest(name, CASES)}")
    draw, rows, failures, runs = random.Random(seed), [], [], 0
    data = _images(folder / "data")
    for name, n in itertools.cycle(itertools.product(cases, processes)):
        if len(rows) >= kills:
            break
        runs += 1
        key = f"{name.replace(' ', '_')}-{n}"
        command = [word.format(data=data) for word in CASES[name]]
        reference, first, seconds = _reference(folder / "whole" / key, command, n)
        workdir = folder / "killed" / f"{key}-{runs}"
        left = min(KILLS_OF_RUN, kills - len(rows))
        while True:
            number = signal.SIGTERM if len(rows) % 2 else signal.SIGKILL
            # Half of the kills are after the first step, for which a run waits most of its time.
            after = draw.uniform(draw.choice((0, first)), seconds) if left else None
            ended = _run(workdir, command, n, number, after, draw.randrange(n))
            hosts.advance()
            if not ended.killed:
                break
            left -= 1
            row = (name, n, number.name, after or 0.0, ended.statuses, ended.seconds, ended.hang)
            rows.append(Kill(*row, *_repeated(workdir)))
            log(rows[-1]._asdict())
        problem = ""
        if any(ended.statuses):
            problem = "lost"
        elif _digest(workdir) != reference:
            problem = "different"
        if problem:
            output = ended.output
            failures.append({"case": name, "processes": n, "problem": problem, "output": output})
            log(failures[-1])
        shutil.rmtree(workdir, ignore_errors=True)
    shares = [row.repeated / row.interval for row in rows if row.interval]
    return {
        "kills": [row._asdict() for row in rows],
        "n": len(rows),
        "runs": runs,
        "resumes": len(rows),
        "equal": runs - len(failures),
        "hangs": sum(row.hang for row in rows),
        "lost": sum(row["problem"] == "lost" for row in failures),
        "different": sum(row["problem"] == "different" for row in failures),
        "repeated_intervals": max(shares, default=0.0),
        "seconds_to_end": max((row.seconds for row in rows), default=0.0),
        "failures": failures,
    }


class _Ended(NamedTuple):
    """How a command ended; `first` is the time of the first row of its log, 0 without any."""

    statuses: list[int]
    seconds: float
    hang: bool
    killed: bool
    output: str
    first: float


def _run(
    workdir: Path,
    command: Sequence[str],
    n: int,
    number: signal.Signals = signal.SIGTERM,
    after: float | None = None,
    who: int = 0,
) -> _Ended:
    """Runs a command in n processes; after `after` seconds, process `who` gets a signal."""
    experiment, *flags = command
    words = [sys.executable, "-m", f"experiments.{experiment}", *flags, f"--workdir={workdir}"]
    words, port = resumed(words) if experiment == "transfer" else words, free_port()
    with tempfile.TemporaryFile("w+") as output:
        children = [
            subprocess.Popen(
                words,
                env=os.environ
                | {"JAX_PLATFORMS": "cpu", "TL_CACHE": str(workdir / "cache")}
                # Programs compile several times faster; the bits are compared among themselves.
                | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
                | {"JAX_COMPILATION_CACHE_DIR": str(workdir.parents[1] / "compiled")}
                | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
                | {"TL_SILENCE_SECONDS": "6", "TL_JOIN_SECONDS": "15"}
                | (environment(i, n, port) if n > 1 else {}),
                stdout=output,
                stderr=output,
            )
            for i in range(n)
        ]
        began, killed, first = time.monotonic(), False, 0.0
        while any(child.poll() is None for child in children):
            now = time.monotonic() - began
            if not first and (workdir / "metrics.jsonl").exists():
                first = now
            if after is not None and not killed and now >= after:
                children[who].send_signal(number)
                killed, began = True, time.monotonic()
            elif killed and now > LIMIT:
                break
            time.sleep(0.02)
        seconds = time.monotonic() - began
        hang = any(child.poll() is None for child in children)
        for child in children:
            child.kill()
        statuses = [child.wait() for child in children]
        killed = killed and any(statuses)
        output.seek(0)
        return _Ended(statuses, seconds, hang, killed, output.read()[-2000:], first)


def _reference(workdir: Path, command: Sequence[str], n: int) -> tuple[str, float, float]:
    """The digest without a kill, the seconds to the first row of the log, and those to the end.

    The times are those with compiled code.
    """
    path = workdir / "reference.json"
    if not path.exists():
        for part in ("first", "second"):  # the first one compiles
            ended = _run(workdir / part, command, n)
            if any(ended.statuses):
                raise ValueError(f"{' '.join(command)} fails without a kill: {ended.output}")
        path.write_text(json.dumps([_digest(workdir / part), ended.first, ended.seconds]))
    return tuple(json.loads(path.read_text()))


def _digest(workdir: Path) -> str:
    """A hash of the parameters and images that a run wrote, and of its main numbers."""
    sha = hashlib.sha256()
    for file in sorted([*workdir.glob("model/*.safetensors"), *workdir.glob("figures/*.png")]):
        sha.update(file.name.encode() + file.read_bytes())
    result = json.loads((workdir / "result.json").read_text())
    for key in ("n", "success_rate", "robust_accuracy", "test"):
        sha.update(json.dumps(result.get(key)).encode())
    return sha.hexdigest()


def _repeated(workdir: Path) -> tuple[int, int]:
    """Steps of the current phase that are logged and in no checkpoint, and steps per checkpoint."""
    rows = []
    if (workdir / "metrics.jsonl").exists():
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    steps = [row for row in rows if "step" in row and "phase" in row]
    if not steps:
        return 0, 0
    last = steps[-1]
    saved = [0]
    phases = sorted((workdir / "checkpoints" / last["round"]).glob("phase*"))
    for folder in phases[-1:]:
        saved += [int(m[1]) for f in folder.iterdir() if (m := re.fullmatch(r"step_(\d+)", f.name))]
    interval = last["step"] + 1
    for step, epoch in itertools.pairwise(rows):
        if "epoch" in epoch and "step" in step and epoch["phase"] == last["phase"]:
            interval = (step["step"] + 1) // epoch["epoch"]
    return max(last["step"] + 1 - max(saved), 0), max(interval, 1)


def _images(folder: Path) -> Path:
    """A folder with two classes of 20 images."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 180)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(20):
            noise = np.clip(rng.normal(level, 40, (40, 40, 3)), 0, 255).astype(np.uint8)
            reporting.save_png(folder / name / f"{i}.png", noise)
    return folder
