"""Trackers: services that show the numbers of runs while they are computed (`--track`).

`metrics.jsonl` is always written; a tracker receives the same rows. Each is one row of `TRACKERS`
and needs an optional package. All of them work without a network: wandb writes to the run's folder
unless this machine is logged in. A tracker that fails is left out for the rest of the run, with a
remark, and never ends the run.

Example:
  trackers = open_trackers(["tensorboard"], name, workdir, config, warn)
  trackers.log({"step": 1, "loss": 0.5})
  trackers.finish({"test": {"top1": 0.9}})
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tl.paths import is_url, nearest

# File in the run's folder with the name of the tracked run, so that a resumed run continues it.
_ID = "track.txt"


class Tracker(NamedTuple):
    """One tracker of one run.

    Attributes:
      log: `(numbers, step)`, called for each row.
      finish: called with the final numbers.
    """

    log: Callable[[Mapping[str, float], int], None]
    finish: Callable[[Mapping[str, float]], None]


class Tracked(NamedTuple):
    """A run as trackers see it.

    Attributes:
      name: of the tracked run, unique.
      workdir: the run's folder.
      flags: the flags of the run.
      resumed: whether the name was tracked before.
    """

    name: str
    workdir: Path
    flags: Mapping[str, Any]
    resumed: bool


def _tensorboard(run: Tracked) -> Tracker:
    import tensorboardX

    writer = tensorboardX.SummaryWriter(str(run.workdir / "tensorboard"), flush_secs=10)

    def log(numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    def finish(numbers: Mapping[str, float]) -> None:
        log({f"result/{name}": value for name, value in numbers.items()}, 0)
        writer.close()

    return Tracker(log, finish)


def _wandb(run: Tracked) -> Tracker:
    import wandb

    try:
        online = wandb.login(prompt=False)  # asks the server whether the key is valid
    except Exception:  # without a network, or with a wrong key
        online = False
    tracked = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "tl"),
        id=run.name,
        name=run.name,
        dir=None if is_url(run.workdir) else str(run.workdir),
        config=dict(run.flags),
        mode=os.environ.get("WANDB_MODE") or ("online" if online else "offline"),  # type: ignore
        resume="allow",
    )

    def finish(numbers: Mapping[str, float]) -> None:
        tracked.summary.update(dict(numbers))
        tracked.finish()

    return Tracker(lambda numbers, step: tracked.log(dict(numbers), step=step), finish)


def _trackio(run: Tracked) -> Tracker:
    import trackio

    tracked = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", "tl"),
        name=run.name,
        config=dict(run.flags),
        resume="allow" if run.resumed else "never",
        embed=False,
    )

    def finish(numbers: Mapping[str, float]) -> None:
        tracked.log({f"result/{name}": value for name, value in numbers.items()})
        tracked.finish()

    return Tracker(lambda numbers, step: tracked.log(dict(numbers), step=step), finish)


class Kind(NamedTuple):
    """A row of `TRACKERS`: the module and the package that it needs, and how to open it."""

    module: str
    package: str
    open: Callable[[Tracked], Tracker]


TRACKERS: dict[str, Kind] = {
    "tensorboard": Kind("tensorboardX", "tensorboardX", _tensorboard),
    "wandb": Kind("wandb", "wandb", _wandb),
    "trackio": Kind("trackio", "trackio", _trackio),
}


def check(names: Sequence[str]) -> None:
    """Checks, before any work, that trackers exist and that their packages are installed.

    Raises:
      ValueError: an unknown name, or a package is missing.
    """
    for name in names:
        if name not in TRACKERS:
            close = nearest(name, TRACKERS)
            raise ValueError(f"unknown tracker of `track`: got {name!r}; nearest: {close}")
        kind = TRACKERS[name]
        if importlib.util.find_spec(kind.module) is None:
            raise ValueError(
                f"`track={name}` needs the package {kind.package}; run pip install 'tl[{name}]' "
                f"or pip install {kind.package}"
            )


class Trackers:
    """The trackers of one run. None of its methods raises an error.

    Args:
      open: name -> tracker.
      warn: receives a sentence when a tracker fails.
    """

    def __init__(self, open: Mapping[str, Tracker], warn: Callable[[str], None]) -> None:
        self._open, self._warn, self._step = dict(open), warn, 0

    def log(self, row: Mapping[str, Any]) -> None:
        """Passes the numbers of a row on.

        Args:
          row: as `Run.log` takes it. "step" is the step; without it, rows are counted.
        """
        step = row.get("step")
        self._step = step if isinstance(step, int) else self._step + 1
        passed = {name: value for name, value in numbers(row).items() if name != "step"}
        self._each(lambda tracker: tracker.log(passed, self._step))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Passes the final numbers on and closes all trackers."""
        self._each(lambda tracker: tracker.finish(numbers(result)))
        self._open.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                call(tracker)
            except Exception as error:  # of any package
                del self._open[name]
                self._warn(_failure(name, error))


def _failure(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{name} stopped tracking this run ({reason}); metrics.jsonl has all rows"


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, one level deep, by names that are joined by "/".

    Example:
      >>> numbers({"loss": 1.5, "arch": "vgg16", "test": {"top1": 0.5, "rows": []}, "ok": True})
      {'loss': 1.5, 'test/top1': 0.5}
    """
    flat = dict(row)
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{key}": inner for key, inner in value.items()}
    return {
        str(name): float(value)
        for name, value in flat.items()
        if _is_number(value) and abs(float(value)) != float("inf") and float(value) == float(value)
    }


def _is_number(value: Any) -> bool:
    """Whether a value is a number of Python, or a scalar of NumPy or JAX."""
    if isinstance(value, bool | str | bytes | Mapping | list | tuple) or value is None:
        return False
    return isinstance(value, int | float) or getattr(value, "shape", None) == ()


def open_trackers(
    names: Sequence[str],
    name: str,
    workdir: Path,
    flags: Mapping[str, Any],
    warn: Callable[[str], None],
    *,
    resume: bool = False,
) -> Trackers:
    """Opens trackers for a run.

    Args:
      names: rows of `TRACKERS`, as `check` accepts them.
      name: of the experiment.
      workdir: the run's folder, which exists.
      flags: the flags of the run, which the trackers store.
      warn: receives a sentence when a tracker fails.
      resume: whether to continue what an earlier run in this folder tracked.
    """
    file = workdir / _ID
    earlier = file.read_text(encoding="utf-8").strip() if names and resume and file.exists() else ""
    run = Tracked(earlier or f"{name}-{uuid.uuid4().hex[:8]}", workdir, flags, bool(earlier))
    opened = {}
    if names:
        file.write_text(f"{run.name}\n", encoding="utf-8")
    for tracker in names:
        try:
            opened[tracker] = TRACKERS[tracker].open(run)
        except Exception as error:  # of any package
            warn(_failure(tracker, error))
    return Trackers(opened, warn)
