"""The folder of one run: flags and versions, metrics, figures, one page, and the final numbers.

    config.json     at the start: flags, versions, git commit, device, seed
    metrics.jsonl   one line per step or epoch, flushed at once: a run that dies keeps its lines
    figures/*.png   true pixels; *.webp are animations
    report.html     one self-contained page
    result.json     last, whole or absent: its presence means that the run finished

Numbers that are not finite have no JSON form and are written as `null`; `finish` names them on
stderr. This module does not save weights (`tl.training.checkpoints` does). Importing it starts no
accelerator; `start` asks JAX for its devices. Processes that share a disk need one workdir each.

Example:
  run = reporting.start("predict", FLAGS.workdir, FLAGS.flag_values_dict())
  for step, batch in enumerate(reporting.progress(batches, label="predict")):
    run.log({"step": step, "loss": loss})
  run.finish({"top1": top1}, reporting.page(..., facts=run.facts()))
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
# The packages whose versions a run records.
PACKAGES = ("tl", "jax", "jaxlib", "flax", "optax", "numpy", "Pillow")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run and its folder. Made by `start`, or by `read_run` for a finished run.

    Attributes:
      name: the experiment.
      workdir: the folder.
      config: the content of `config.json`.
    """

    name: str
    workdir: pathlib.Path
    config: Mapping[str, Any]
    _began: float | None = dataclasses.field(default_factory=time.monotonic, repr=False)
    _figures: set[str] = dataclasses.field(default_factory=set, repr=False)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since `start`; NaN for a finished run."""
        return math.nan if self._began is None else time.monotonic() - self._began

    def log(self, row: Mapping[str, Any]) -> None:
        """Appends `row` to `metrics.jsonl`, with the seconds since the start unless it has them."""
        line = json.dumps(jsonable({"seconds": round(self.seconds, 3), **row}), allow_nan=False)
        with open(self.workdir / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def figure(self, name: str, image: Any) -> pathlib.Path:
        """Writes an image at its true pixels to `workdir/figures/NAME.png` and returns the path.

        Args:
          name: any text, such as a class; characters that file systems reject become `_`. A name
            that this run has used before gets `-2`, `-3`, ..., so that two images called `1.jpg`
            do not overwrite each other.
          image: as for `tl.reporting.images.as_uint8`.
        """
        path = self._free(name, ".png")
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
        images.save_animation(path, frames, seconds=seconds)
        self._figures.add(path.name.casefold())
        return path

    def _free(self, name: str, suffix: str) -> pathlib.Path:
        """A path in `figures/`, created if missing, that this run has not written yet."""
        stem = re.sub(r"[^\w.-]+", "_", name)[:60].strip("._") or "figure"
        stems = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
        folder = self.workdir / "figures"
        folder.mkdir(exist_ok=True)
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

    def finish(self, result: Mapping[str, Any], html: str) -> pathlib.Path:
        """Writes `report.html`, then `result.json` as the last file; each is whole or absent.

        Args:
          result: the final numbers, as `jsonable` accepts them.
          html: the page.

        Returns:
          The path of `report.html`.

        Raises:
          ValueError: `result` holds a value without a JSON form; neither file is written.
        """
        holes: list[str] = []
        numbers = json.dumps(jsonable(result, holes=holes), indent=2, allow_nan=False) + "\n"
        if holes:
            print(f"result.json: not finite, written as null: {', '.join(holes)}", file=sys.stderr)
        path = self.write_report(html)
        _write(self.workdir / "result.json", numbers)
        return path

    def write_report(self, html: str) -> pathlib.Path:
        """Writes `report.html`, whole or not at all, and returns its path."""
        path = self.workdir / "report.html"
        _write(path, html)
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
        `result.json` and `report.html` are always removed, so that a failed run does not show the
        results of an older one; `figures/` is kept.

    Raises:
      ValueError: the folder cannot be created or written.
    """
    import jax  # here, not above: importing this module must not start an accelerator

    began = datetime.datetime.now().astimezone()
    default = pathlib.Path("runs", name, began.strftime("%Y%m%d-%H%M%S"))
    folder = pathlib.Path(workdir).expanduser() if workdir else _unused(default)
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
            f"cannot write into {str(folder)!r} ({error.strerror}); give another `workdir`"
        ) from error
    return Run(name, folder, described)


def read_run(folder: str | os.PathLike[str]) -> tuple[Run, dict[str, Any]]:
    """A finished run and its result, from the files of its folder.

    Args:
      folder: holds `config.json` and `result.json`.

    Raises:
      ValueError: one of the two files is missing or is not JSON.
    """
    folder = pathlib.Path(folder)
    try:
        config, result = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("config.json", "result.json")
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(folder)!r} is not the folder of a finished run ({error}); expected config.json "
            "and result.json, which a run writes into its `workdir`"
        ) from error
    return Run(config["name"], folder, config, _began=None), result


def jsonable(value: Any, *, where: str = "", holes: list[str] | None = None) -> Any:
    """The same value in JSON's types.

    NumPy and JAX scalars and arrays become numbers and lists; NaN and infinity become None.

    Args:
      value: mappings (keys become text), sequences, arrays, numbers, text, paths, enums,
        dataclasses, None.
      where: name of the value, for the error.
      holes: collects the names of entries that were not finite.

    Raises:
      ValueError: a value has another type; the error names the value.

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
        is_bfloat16 = value.dtype.kind == "V"
        value = (value.astype(np.float32) if is_bfloat16 else value).tolist()
    if isinstance(value, float):
        if not math.isfinite(value) and holes is not None:
            holes.append(where)
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    inside = lambda key: f"{where}/{key}".lstrip("/")
    if isinstance(value, Mapping):
        items = value.items()
        return {_key(k): jsonable(v, where=inside(k), holes=holes) for k, v in items}
    if isinstance(value, list | tuple):
        return [jsonable(v, where=inside(i), holes=holes) for i, v in enumerate(value)]
    raise ValueError(
        f"{where or 'value'}: JSON cannot hold a value of type {type(value).__name__}; pass "
        "numbers, text, lists or dicts"
    )


def _key(key: Any) -> str:
    return str(key.value if isinstance(key, enum.Enum) else key)


def columns(header: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> str:
    """A table for the terminal; columns of numbers are aligned right."""
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]

    def words(cell: str | int | float) -> str:
        if isinstance(cell, int):
            return f"{cell:,}"
        return f"{cell:.4g}" if isinstance(cell, float) else cell

    lines = [list(header), *([words(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        for row in lines
    )
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def progress(
    iterable: Iterable[Item],
    total: int | None = None,
    label: str = "",
    *,
    stream: TextIO | None = None,
) -> Iterator[Item]:
    """Yields the items and shows progress: a bar on a terminal, about ten lines in a log.

    Args:
      iterable: the items.
      total: number of items, shown and not enforced; by default `len(iterable)` if it has one.
      label: name of the work, shown at the start of the line.
      stream: the output; by default stderr.
    """
    out: TextIO = sys.stderr if stream is None else stream
    total = len(iterable) if total is None and isinstance(iterable, Sized) else total
    terminal, began, drawn_at, done, due = out.isatty(), time.monotonic(), -1.0, 0, 1

    def line() -> str:
        spent = max(time.monotonic() - began, 1e-9)
        rate = f"{done / spent:.3g}/s" if done else ""
        if not total:
            return f"{label}  {done}  {rate}"
        left = _clock(spent) if done >= total else ""
        if 0 < done < total:
            left = f"{_clock(spent * (total - done) / done)} left"
        full = round(20 * min(1.0, done / total))
        bar = "\u2588" * full + "\u2591" * (20 - full) + "  " if terminal else ""
        return f"{label}  {bar}{done}/{total}  {rate}  {left}"

    def show() -> None:
        text = line().strip()
        if terminal:
            text = "\r" + text[: shutil.get_terminal_size().columns - 1] + "\x1b[K"
        out.write(text if terminal else text + "\n")
        out.flush()

    try:
        if terminal:
            show()
        for item in iterable:
            yield item
            done += 1
            if terminal and time.monotonic() - drawn_at > 0.1:  # ten times per second
                drawn_at = time.monotonic()
                show()
            elif not terminal and done >= due:
                show()
                due = 4 * done
                if total and done < total:
                    due = math.ceil((done * 10 // total + 1) * total / 10)
    finally:
        if terminal:
            show()
            out.write("\n")


def _clock(seconds: float) -> str:
    hours, minutes = int(seconds) // 3600, int(seconds) // 60
    if hours:
        return f"{hours}:{minutes % 60:02}:{int(seconds) % 60:02}"
    return f"{minutes}:{int(seconds) % 60:02}"


def _write(path: pathlib.Path, content: str) -> None:
    """Writes a file that is whole or absent after any interruption: a temporary file is renamed."""
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
    """The folder, with `-2`, `-3`, ... appended when two runs start within one second."""
    numbered = (folder.with_name(f"{folder.name}-{i}") for i in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if not path.exists())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(root: pathlib.Path) -> dict[str, Any]:
    """Commit of the checkout at `root` and whether files differ from it; None outside git."""
    # A git hook sets GIT_DIR to its own repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}

    def git(*words: str) -> str | None:
        try:
            process = subprocess.run(
                ["git", "-C", str(root), *words],
                check=False,
                capture_output=True,
                text=True,
                timeout=10,
                env=environment,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return process.stdout.strip() if process.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    # An installed copy may lie inside the repository of another project.
    if top is None or pathlib.Path(top).resolve() != root:
        return {"git_commit": None, "git_changed": None}
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed": bool(git("status", "--porcelain")),
    }
