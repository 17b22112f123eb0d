"""The folder of one run: flags and versions, metrics, figures, one page, and the final numbers.

    config.json     at the start: flags, versions, git commit, device, seed
    metrics.jsonl   one line per step or epoch, flushed at once: a run that dies keeps its lines;
                    in a bucket, lines are written together, at most every 30 s
    figures/*.png   true pixels; *.webp are animations
    predictions.csv the predicted class of each test image (transfer, evaluate, predict)
    report.html     one self-contained page
    result.json     last, whole or absent: its presence means that the run finished; "failed" names
                    optional parts that are missing

Numbers that are not finite have no JSON form and are written as `null`; `finish` names them on
stderr. This module does not save weights (`tl.training.checkpoints` does). Importing it starts no
accelerator; `start` asks JAX for its devices. The processes of one run (`tl.hosts`) share a folder,
in which process 0 alone writes. Different runs need one each.

Example:
  run = reporting.start("predict", FLAGS.workdir, FLAGS.flag_values_dict())
  for step, batch in enumerate(reporting.progress(batches, label="predict")):
    run.log({"step": step, "loss": loss})
  run.finish({"top1": top1}, reporting.page(..., facts=run.facts()))
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
import os
import pathlib
import platform
import re
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from tl import hosts, ledger, storage
from tl.paths import expanded, is_url, printable, shortened
from tl.reporting import images, track
from tl.reporting.files import jsonable, write_whole
from tl.reporting.messages import ERROR, MAX_MESSAGE
from tl.reporting.shared import check_shared, check_versions, lost
from tl.reporting.software import git_state, versions

Value = TypeVar("Value")
BEFORE = "result.before.json"  # the older result of a resumed run


class Attempt(Protocol):
    """Runs an optional part of the work; `Run.attempt` and `required` are the two forms."""

    def __call__(self, part: str, step: Callable[[], Value], otherwise: Value) -> Value: ...


def required(part: str, step: Callable[[], Value], otherwise: Value) -> Value:
    """The `Attempt` that raises the errors of the part: the default of library functions."""
    del part, otherwise
    return step()


@dataclasses.dataclass(frozen=True)
class Run:
    """A run and its folder. Made by `start`, or by `read_run` for a finished run.

    Attributes:
      name: the experiment.
      workdir: the folder.
      config: the content of `config.json`.
      failures: part of the result -> why it is missing, as `attempt` records them.
      remarks: what a user should know about the inputs, as `remark` records it.
    """

    name: str
    workdir: pathlib.Path
    config: Mapping[str, Any]
    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    remarks: list[str] = dataclasses.field(default_factory=list)
    _began: float | None = dataclasses.field(default_factory=time.monotonic, repr=False)
    _resumed: bool = dataclasses.field(default=False, repr=False)
    _writes: bool = dataclasses.field(default_factory=hosts.first, repr=False)
    _figures: set[str] = dataclasses.field(default_factory=set, repr=False)
    _trackers: list[track.Trackers] = dataclasses.field(default_factory=list, repr=False)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since `start`; NaN for a finished run."""
        return math.nan if self._began is None else time.monotonic() - self._began

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends `row` to `metrics.jsonl`, with the seconds since the start unless it has them."""
        if not self._writes:
            return
        line = json.dumps(jsonable({"seconds": round(self.seconds, 3), **row}), allow_nan=False)
        storage.append(self.workdir / "metrics.jsonl", line)
        for trackers in self._trackers:
            trackers.log(row)

    def track(self, names: Sequence[str]) -> None:
        """Passes the rows of `log`, and the result, on to trackers (`tl.reporting.track`)."""
        flags = self.config["flags"]
        if names and self._writes:
            opened = track.open_trackers(
                names, self.name, self.workdir, flags, self.remark, resume=self._resumed
            )
            self._trackers.append(opened)

    def drop_rows(self, repeated: Callable[[Mapping[str, Any]], bool]) -> None:
        """Removes the rows of `metrics.jsonl` that a resumed run logs again.

        Args:
          repeated: whether to remove a row; called with all rows in their order. A line that an
            interruption has cut off is always removed.
        """
        if not (self._writes and self._resumed):
            return
        before = list(self._lines())
        lines = [line for line, row in before if row is not None and not repeated(row)]
        if len(lines) < len(before):
            write_whole(self.workdir / "metrics.jsonl", "".join(f"{line}\n" for line in lines))

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, in all processes; in a resumed run, the earlier ones too.

        A line that an interruption has cut off is left out.
        """
        return hosts.on_first(lambda: [row for _, row in self._lines() if row is not None])

    def _lines(self) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """The lines of `metrics.jsonl` with their rows; None for a line that is cut off."""
        path = self.workdir / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                yield line, json.loads(line)
            except ValueError:
                yield line, None

    def check_folder(self, name: str, size: int) -> None:
        """Checks, before hours of work, that files can be written into a folder of the run.

        Args:
          name: name of the folder, such as "model".
          size: bytes that will be written.

        Raises:
          ValueError: the folder cannot be written, or the disk has too little space.
        """
        if not self._writes:
            return
        folder = self.workdir / name
        try:
            storage.make_folder(folder, check=True)
            if is_url(folder):
                return
            write_whole(folder / ".check", "")
            (folder / ".check").unlink()
            if not any(folder.iterdir()):
                folder.rmdir()
            free = shutil.disk_usage(self.workdir).free
        except OSError as error:
            raise ValueError(
                f"cannot write into {str(folder)!r} ({error.strerror}); give another `workdir`"
            ) from error
        if free < size:
            raise ValueError(
                f"{str(folder)!r} needs {size / 1e6:,.1f} MB, but the disk has {free / 1e6:,.1f} "
                "MB free; give another `workdir`"
            )

    def attempt(self, part: str, step: Callable[[], Value], otherwise: Value) -> Value:
        """Runs an optional part of the work, whose failure must not cost the rest of the result.

        A failure is recorded: `finish` writes it to `result.json`, and `tl.cli` ends the process
        with one sentence and status 1.

        Args:
          part: name of the part, such as "robust".
          step: computes it.
          otherwise: the value in its place if it fails.
        """
        try:
            return step()
        except Exception as error:  # any kind: the main result exists already
            if not isinstance(error, ValueError | OSError):  # a bug
                traceback.print_exc()
            reason = " ".join(str(error).split()) or type(error).__name__
            self.failures.setdefault(part, reason)
            return otherwise

    def remark(self, *sentences: str) -> None:
        """Prints sentences about the inputs, each once; `finish` adds them to `result.json`."""
        for sentence in dict.fromkeys(sentences):
            if sentence not in self.remarks:
                self.remarks.append(sentence)
                text = printable(" ".join(sentence.split()))
                print(shortened(text, MAX_MESSAGE, "; see result.json"), flush=True)

    def failure_message(self) -> str:
        """The recorded failures in one sentence; "" without any."""
        if not self.failures:
            return ""
        parts = "; ".join(f"{part} failed ({reason})" for part, reason in self.failures.items())
        return f"{parts}; the rest of the result is in {str(self.workdir)!r}"

    def figure(self, name: str, image: Any) -> pathlib.Path:
        """Writes an image at its true pixels to `workdir/figures/NAME.png` and returns the path.

        Args:
          name: any text, such as a class; characters that file systems reject become `_`. A name
            that this run has used before gets `-2`, `-3`, ..., so that two images called `1.jpg`
            do not overwrite each other.
          image: as for `tl.reporting.images.as_uint8`.
        """
        path = self._free(name, ".png")
        if self._writes:
            images.save_png(path, image)
        self._figures.add(path.name.casefold())
        return path

    def relative(self, path: pathlib.Path) -> str:
        """A path inside the run's folder as `result.json` names it, such as "figures/cat.png"."""
        return path.relative_to(self.workdir).as_posix()

    def animation(self, name: str, frames: Sequence[Any], *, seconds: float) -> pathlib.Path:
        """Writes a looping animation to `workdir/figures/NAME.webp` and returns the path.

        Args:
          name: as for `figure`.
          frames, seconds: as for `tl.reporting.images.save_animation`.
        """
        path = self._free(name, ".webp")
        if self._writes:
            images.save_animation(path, frames, seconds=seconds)
        self._figures.add(path.name.casefold())
        return path

    def _free(self, name: str, suffix: str) -> pathlib.Path:
        """A path in `figures/`, created if missing, that this run has not written yet."""
        stem = re.sub(r"[^\w.-]+", "_", name)[:60].strip("._") or "figure"
        stems = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
        folder = self.workdir / "figures"
        if self._writes:
            storage.make_folder(folder)
        # Some file systems do not distinguish upper and lower case.
        names = (f"{s}{suffix}" for s in stems)
        return folder / next(n for n in names if n.casefold() not in self._figures)

    def facts(self) -> dict[str, str]:
        """Footer of the page: command line, device, versions, commit, date, seconds."""
        config, device = self.config, self.config["device"]
        versions = (f"{name} {v}" for name, v in config["versions"].items() if v)
        changed = " and uncommitted changes" if config["git_changed"] else ""
        commit = config["git_commit"]
        facts = {
            "command": config["command"],
            "device": f"{device['count']} x {device['kind']} ({device['platform']})",
            "versions": ", ".join(versions),
            "commit": f"{commit}{changed}" if commit else "not a git checkout",
            "seed": str(config["seed"]),
            "started": config["started"],
        }
        return facts if self._began is None else facts | {"seconds": f"{self.seconds:.1f}"}

    def finish(self, result: Mapping[str, Any], html: str | None) -> pathlib.Path:
        """Writes `report.html`, then `result.json` as the last file; each is whole or absent.

        Args:
          result: the final numbers, as `jsonable` accepts them. Sentences of `remark` are added
            under "remarks", and failures of `attempt` under "failed".
          html: the page; None if it could not be drawn.

        Returns:
          The path of `report.html`, or of `result.json` if there is no page.

        Raises:
          ValueError: `result` holds a value without a JSON form; neither file is written.
        """
        if not self._writes:
            return self.workdir / "report.html"
        holes: list[str] = []
        numbers = jsonable(result, holes=holes)
        if holes:
            message = f"result.json: not finite, written as null: {', '.join(holes)}"
            print(shortened(message, MAX_MESSAGE), file=sys.stderr)
        path = self.workdir / "result.json"
        page = path if html is None else self.attempt("page", lambda: self.write_report(html), path)
        numbers |= {"remarks": jsonable(self.remarks)} if self.remarks else {}
        numbers |= {"failed": jsonable(self.failures)} if self.failures else {}
        lost_seconds = self.config.get("lost_seconds", 0.0)
        numbers |= {"ledger": jsonable(ledger.summary(self.seconds, lost_seconds))}
        write_whole(path, json.dumps(numbers, indent=2, allow_nan=False) + "\n")
        storage.remove(self.workdir / BEFORE)
        storage.flush()
        for trackers in self._trackers:
            trackers.finish(numbers)
        return page

    def write_report(self, html: str) -> pathlib.Path:
        """Writes `report.html`, whole or not at all, and returns its path."""
        path = self.workdir / "report.html"
        write_whole(path, html)
        return path


def start(
    name: str,
    workdir: str | os.PathLike[str] | None,
    config: Mapping[str, Any],
    *,
    resume: bool = False,
) -> Run:
    """Opens the folder of a run, records its configuration, and removes an older run's results.

    Args:
      name: name of the experiment, such as "predict".
      workdir: the folder, created if missing; None or "" means `runs/NAME/<time>`.
      config: all flags, name -> value; `config["seed"]`, if present, is recorded as the run's seed.
      resume: whether to append to an older `metrics.jsonl` instead of removing it. An older
        `result.json`, `report.html` and `predictions.csv` are always removed, so that a failed run
        does not show the results of an older one; `figures/` is kept. With `resume`,
        `result.before.json` holds the older numbers until `finish`.

    Raises:
      ValueError: the folder cannot be created or written, holds the result of another experiment,
        or JAX finds no device.
    """
    from tl.devices import available  # here: this module needs no JAX otherwise

    began = datetime.datetime.now().astimezone()
    default = pathlib.Path("runs", name, began.strftime("%Y%m%d-%H%M%S"))
    folder = hosts.on_first(lambda: expanded(workdir) if workdir else _unused(default))
    devices = available()
    described = {
        "name": name,
        "command": shlex.join([pathlib.Path(sys.executable).name, *sys.orig_argv[1:]]),
        "flags": config,
        "seed": config.get("seed"),
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": hosts.count(),
        },
        "versions": {
            "python": platform.python_version(),
            **versions(),
        },
        **git_state(pathlib.Path(__file__).resolve().parents[2]),
        "started": began.isoformat(timespec="seconds"),
        "host": {"system": platform.platform(), "cpus": os.cpu_count()},
    }
    described = jsonable(described)
    ledger.begin()
    check_versions(described)
    described = hosts.on_first(lambda: _open(name, folder, described, resume))
    check_shared(folder)
    return Run(name, folder, described, _resumed=resume)


def _open(name: str, folder: pathlib.Path, described: Any, resume: bool) -> dict[str, Any]:
    """Creates the folder, removes results of an older run, and writes and returns `config.json`."""
    try:
        storage.make_folder(folder, check=True)
        results = ("result.json", "report.html", "predictions.csv", ERROR)
        if (folder / "result.json").exists() and (other := experiment(folder)) not in ("", name):
            raise ValueError(
                f"{str(folder)!r} holds the result of {other}, which {name} would remove; give "
                "another `workdir`"
            )
        if resume and (folder / "result.json").exists():
            (folder / "result.json").replace(folder / BEFORE)
        for stale in results + (() if resume else ("metrics.jsonl", BEFORE)):
            storage.remove(folder / stale)
        described = {**described, "lost_seconds": lost(folder) if resume else 0.0}
        write_whole(folder / "config.json", json.dumps(described, indent=2, allow_nan=False) + "\n")
        return described
    except OSError as error:
        raise ValueError(
            f"cannot write into {str(folder)!r} ({error.strerror}); give another `workdir`"
        ) from error


def experiment(folder: pathlib.Path) -> str:
    """The name of the experiment that wrote a folder; "" if `config.json` does not state it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(config.get("name") or "") if isinstance(config, dict) else ""


def read_run(folder: str | os.PathLike[str]) -> tuple[Run, dict[str, Any]]:
    """A finished run and its result, from the files of its folder.

    Args:
      folder: holds `config.json` and `result.json`.

    Raises:
      ValueError: one of the two files is missing or is not a JSON object.
    """
    folder = expanded(folder)
    try:
        config, result = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("config.json", "result.json")
        )
        if not (isinstance(config, dict) and isinstance(result, dict) and config.get("name")):
            raise ValueError("they are not JSON objects of a run")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{str(folder)!r} is not the folder of a finished run ({reason}); expected config.json "
            "and result.json, which a run writes into its `workdir`"
        ) from error
    return Run(str(config["name"]), folder, config, _began=None), result


def _unused(folder: pathlib.Path) -> pathlib.Path:
    """The folder, with `-2`, `-3`, ... appended when two runs start within one second."""
    numbered = (folder.with_name(f"{folder.name}-{i}") for i in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if not path.exists())
