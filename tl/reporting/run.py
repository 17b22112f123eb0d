"""The folder a run leaves behind: flags and versions, a line a step, true-pixel pictures, a page, the final numbers.

    config.json     at the start: flags, versions, git commit, device, seed
    metrics.jsonl   one line a step or epoch, flushed at once, so that a run that dies still tells how far it came
    figures/*.png   true pixels; *.webp are films
    report.html     one self-contained page
    result.json     last, in one piece, or not at all: its presence says that the run finished

Numbers that are not finite have no JSON form and are written as `null`: a loss that diverged stays visible in
`metrics.jsonl` as a hole, and an hour's run is not lost to one undefined figure; `finish` names such entries on stderr.
It does not decide what is worth writing (experiments do) and does not save weights (`tl.training.checkpoints` does).
Importing it starts no accelerator; `start` asks JAX for its devices. Processes that share a disk need a workdir each.

Example:
  run = runlog.start("predict", FLAGS.workdir, FLAGS.flag_values_dict())
  for step, batch in enumerate(runlog.progress(batches, label="predict")):
    run.log({"step": step, "loss": loss})
  run.finish({"top1": top1}, report.page(..., facts=run.facts()))
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, TextIO, TypeVar

import numpy as np

from tl.reporting import images

Item = TypeVar("Item")
PACKAGES = (
    "tl",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "Pillow",
)  # whose versions a run records


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that has started and writes into its folder. Made by `start`.

    Attributes:
      name: the experiment.
      workdir: the folder.
      config: what `config.json` holds.
    """

    name: str
    workdir: pathlib.Path
    config: Mapping[str, Any]
    _began: float = dataclasses.field(default_factory=time.monotonic, repr=False)
    _figures: set[str] = dataclasses.field(default_factory=set, repr=False)

    @property
    def seconds(self) -> float:
        """Wall-clock time since `start`."""
        return time.monotonic() - self._began

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`: `row`, and the seconds since the start unless it brings its own."""
        line = json.dumps(jsonable({"seconds": round(self.seconds, 3), **row}), allow_nan=False)
        with open(self.workdir / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def figure(self, name: str, image: Any) -> pathlib.Path:
        """Writes a picture at its true pixels and returns where: `workdir/figures/NAME.png`.

        Args:
          name: may be any text, such as a class; what file systems dislike becomes `_`. A name that this run has
            used before gets `-2`, `-3`, ...: two photographs called `1.jpg` do not overwrite each other.
          image: as `tl.reporting.images.as_uint8` takes it.
        """
        path = self._free(name, ".png")
        images.save_png(path, image)
        self._figures.add(path.name.casefold())
        return path

    def relative(self, path: pathlib.Path) -> str:
        """A path inside the run's folder as `result.json` names it, such as "figures/cat.png"."""
        return path.relative_to(self.workdir).as_posix()

    def film(self, name: str, frames: Sequence[Any], *, seconds: float) -> pathlib.Path:
        """Writes pictures as a film that loops for ever and returns where: `workdir/figures/NAME.webp`.

        Args:
          name: as for `figure`.
          frames, seconds: as for `tl.reporting.images.save_film`.
        """
        path = self._free(name, ".webp")
        images.save_film(path, frames, seconds=seconds)
        self._figures.add(path.name.casefold())
        return path

    def _free(self, name: str, suffix: str) -> pathlib.Path:
        """A path in `figures/`, which is made where missing, that this run has not written yet."""
        stem = re.sub(r"[^\w.-]+", "_", name)[:60].strip("._") or "figure"
        names = (
            f"{s}{suffix}"
            for s in itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
        )
        folder = self.workdir / "figures"
        folder.mkdir(exist_ok=True)
        return folder / next(
            n for n in names if n.casefold() not in self._figures
        )  # some disks do not tell A from a

    def facts(self) -> dict[str, str]:
        """The small print of the report: command line, device, versions, commit, date, seconds."""
        config, device = self.config, self.config["device"]
        versions = ", ".join(
            f"{name} {version}" for name, version in config["versions"].items() if version
        )
        changed = " and uncommitted changes" if config["git_changed"] else ""
        return {
            "command": config["command"],
            "device": f"{device['count']} x {device['kind']} ({device['platform']})",
            "versions": versions,
            "commit": f"{config['git_commit']}{changed}"
            if config["git_commit"]
            else "not a git checkout",
            "seed": str(config["seed"]),
            "started": config["started"],
            "seconds": f"{self.seconds:.1f}",
        }

    def finish(self, result: Mapping[str, Any], html: str) -> pathlib.Path:
        """Writes `report.html` and then, as the last act of the run, `result.json`; each appears whole or not at all.

        Returns:
          the path of `report.html`.

        Raises:
          ValueError: `result` holds something that has no JSON form; neither file is written then.
        """
        holes: list[str] = []
        numbers = json.dumps(jsonable(result, holes=holes), indent=2, allow_nan=False) + "\n"
        if holes:
            print(f"result.json: not finite, written as null: {', '.join(holes)}", file=sys.stderr)
        _write(self.workdir / "report.html", html)
        _write(self.workdir / "result.json", numbers)
        return self.workdir / "report.html"


def start(
    name: str,
    workdir: str | os.PathLike[str] | None,
    config: Mapping[str, Any],
    *,
    resume: bool = False,
) -> Run:
    """Opens the folder of a run, records what is being run, and clears what an older run left there.

    Args:
      name: the experiment, `predict`.
      workdir: the folder, made where it is missing; None or "" means `runs/NAME/<time>`.
      config: all flags, name -> value; `config["seed"]`, where it is there, is repeated as the run's seed.
      resume: keep the lines of an older `metrics.jsonl` and append to them. An older `result.json` and `report.html`
        go in any case, so that a run that fails cannot pass off its predecessor's as its own; `figures/` stays.

    Raises:
      ValueError: the folder cannot be made or written.
    """
    import jax  # here, not above: importing this module must not start an accelerator

    began = datetime.datetime.now().astimezone()
    folder = (
        pathlib.Path(workdir).expanduser()
        if workdir
        else _unused(pathlib.Path("runs", name, began.strftime("%Y%m%d-%H%M%S")))
    )
    devices = jax.devices()
    described = {
        "name": name,
        "command": shlex.join([pathlib.Path(sys.executable).name, *sys.orig_argv[1:]]),
        "flags": config,
        "seed": config.get("seed"),
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
        },
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
        },
        **_git(pathlib.Path(__file__).resolve().parents[2]),
        "started": began.isoformat(timespec="seconds"),
        "host": {"system": platform.platform(), "cpus": os.cpu_count()},
    }
    described = jsonable(described)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in ("result.json", "report.html") + (() if resume else ("metrics.jsonl",)):
            (folder / stale).unlink(missing_ok=True)
        _write(folder / "config.json", json.dumps(described, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise ValueError(
            f"cannot write into {str(folder)!r} ({error.strerror}); give another --workdir"
        ) from error
    return Run(name, folder, described)


def jsonable(value: Any, *, where: str = "", holes: list[str] | None = None) -> Any:
    """The same value in JSON's types: NumPy and JAX scalars and arrays become numbers and lists, NaN and infinity None.

    Args:
      value: mappings (keys become text), sequences, arrays, numbers, text, paths, enums, dataclasses, None.
      where: the value's name, for the error.
      holes: collects the names of entries that were not finite.

    Raises:
      ValueError: a value of another type, by its name.

    Example:
      >>> jsonable({"top1": np.float32(0.5), "sizes": np.arange(3), 1: float("nan")})
      {'top1': 0.5, 'sizes': [0, 1, 2], '1': None}
    """
    if isinstance(value, enum.Enum):
        value = value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()  # type: ignore[attr-defined]  # a NamedTuple
    elif hasattr(value, "__array__") and not isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray | np.generic):
        value = (
            value.astype(np.float32) if value.dtype.kind == "V" else value
        ).tolist()  # V: bfloat16
    if isinstance(value, float):
        if not math.isfinite(value) and holes is not None:
            holes.append(where)
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {
            _key(k): jsonable(v, where=f"{where}/{k}".lstrip("/"), holes=holes)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            jsonable(v, where=f"{where}/{i}".lstrip("/"), holes=holes) for i, v in enumerate(value)
        ]
    raise ValueError(
        f"{where or 'value'}: JSON cannot hold a {type(value).__name__}; pass numbers, text, lists, dicts"
    )


def _key(key: Any) -> str:
    return str(key.value if isinstance(key, enum.Enum) else key)


def columns(header: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> str:
    """A table for the terminal; columns of numbers are set right."""
    number = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    say = lambda cell: (
        f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}" if isinstance(cell, float) else cell
    )
    words = [list(header), *([say(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*words, strict=True)]
    lines = [
        [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, number, strict=True)]
        for row in words
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def progress(
    iterable: Iterable[Item],
    total: int | None = None,
    label: str = "",
    *,
    stream: TextIO | None = None,
) -> Iterator[Item]:
    """Passes items on while showing how far it is: a bar on a terminal, about ten plain lines in a log.

    Args:
      iterable: what is worked through.
      total: how many items; by default `len(iterable)` where it has one. Only shown, never enforced.
      label: what is counted.
      stream: where to; by default stderr.
    """
    out: TextIO = sys.stderr if stream is None else stream
    total = len(iterable) if total is None and isinstance(iterable, Sized) else total
    train_norms, began, shown, done, due = out.isatty(), time.monotonic(), -1.0, 0, 1

    def line() -> str:
        spent = max(time.monotonic() - began, 1e-9)
        rate = f"{done / spent:.3g}/s" if done else ""
        if not total:
            return f"{label}  {done}  {rate}"
        left = (
            f"{_clock(spent)}"
            if done >= total
            else f"{_clock(spent * (total - done) / done)} left"
            if done
            else ""
        )
        full = round(20 * min(1.0, done / total))
        bar = "\u2588" * full + "\u2591" * (20 - full) + "  " if train_norms else ""
        return f"{label}  {bar}{done}/{total}  {rate}  {left}"

    def show() -> None:
        text = line().strip()
        if train_norms:
            text = "\r" + text[: shutil.get_terminal_size().columns - 1] + "\x1b[K"
        out.write(text if train_norms else text + "\n")
        out.flush()

    try:
        if train_norms:
            show()
        for item in iterable:
            yield item
            done += 1
            if train_norms and time.monotonic() - shown > 0.1:  # ten times a second
                shown = time.monotonic()
                show()
            elif not train_norms and done >= due:
                show()
                due = (
                    math.ceil((done * 10 // total + 1) * total / 10)
                    if total and done < total
                    else done * 4
                )
    finally:
        if train_norms:
            show()
            out.write("\n")


def _clock(seconds: float) -> str:
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    return (
        f"{hours}:{minutes % 60:02}:{int(seconds) % 60:02}"
        if hours
        else f"{minutes}:{int(seconds) % 60:02}"
    )


def _write(path: pathlib.Path, content: str) -> None:
    """The file appears whole or not at all, whatever interrupts: written beside its place, then moved into it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _unused(folder: pathlib.Path) -> pathlib.Path:
    """The folder, or with `-2`, `-3`, ... where two runs start within a second."""
    names = itertools.chain(
        [folder], (folder.with_name(f"{folder.name}-{i}") for i in itertools.count(2))
    )
    return next(path for path in names if not path.exists())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(root: pathlib.Path) -> dict[str, Any]:
    """Commit of the checkout whose top is `root`, and whether files differ from it; None outside git or without it."""
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("GIT_")
    }  # a hook's GIT_DIR is not ours

    def ask(*words: str) -> str | None:
        try:
            command = ["git", "-C", str(root), *words]
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=10, env=environment
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = ask("rev-parse", "--show-toplevel")
    if (
        top is None or pathlib.Path(top).resolve() != root
    ):  # an installed copy inside somebody else's repository
        return {"git_commit": None, "git_changed": None}
    return {
        "git_commit": ask("rev-parse", "HEAD"),
        "git_changed": bool(ask("status", "--porcelain")),
    }
