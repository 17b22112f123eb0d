"""A grid of runs of one experiment: every combination of the values of some flags.

  grid, experiment, flags = parse(["lr=1e-4,1e-3", "tune=probe,lp_ft", "transfer", "--data=elpv"])

Each cell of the grid runs in a process of its own, in a folder that is named by the hash of its
flags: the same call continues unfinished cells and skips finished ones. Nothing here draws a page
(`tl.pages.sweep` does) or loads a network.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import IO, Any, NamedTuple

from tl import hosts, metrics, reporting
from tl.evaluation import paired
from tl.hosts import PREEMPTED
from tl.pages import sweep as pages
from tl.paths import first_few, is_url, nearest
from tl.scale import array
from tl.scale.commands import ROOT, resumed, tied

HERE = "here"
METRICS = ("seeds.top1", "folds.top1", "test.top1", "top1")
"""The paths of the default metric in `result.json`; the first one that a result has is used."""
# Output of a cell that `run_cells` reads for the error message. Chosen, not tuned.
_TAIL = 4096


class Cell(NamedTuple):
    """One run of the grid.

    Attributes:
      values: flag -> value, of the flags of the grid.
      words: the command line after the name of the experiment, with `--workdir`.
      folder: the folder of the run.
    """

    values: Mapping[str, str]
    words: tuple[str, ...]
    folder: Path

    @property
    def label(self) -> str:
        """The flags of the grid, such as "lr=1e-4 tune=probe"."""
        return " ".join(f"{flag}={value}" for flag, value in self.values.items()) or "(one cell)"

    @property
    def finished(self) -> bool:
        return (self.folder / "result.json").exists()


# ---- the grid ----


def parse(words: Sequence[str]) -> tuple[dict[str, list[str]], str, list[str]]:
    """The grid, the experiment and its other flags.

    Args:
      words: `flag=value,value` once or more, the name of the experiment or a file `*.py`, and its
        flags. A value with a comma is quoted: `augment="flip,color",none`; or the comma is written
        as `\\,`.

    Returns:
      Flag -> values, the experiment, and its command line.

    Raises:
      ValueError: a part is missing, a flag occurs twice, or a value occurs twice.

    Example:
      >>> parse(["lr=1e-4,1e-3", 'augment="flip,color",none', "transfer", "--data=elpv"])
      ({'lr': ['1e-4', '1e-3'], 'augment': ['flip,color', 'none']}, 'transfer', ['--data=elpv'])
    """
    axes = list(itertools.takewhile(lambda word: "=" in word and not word[0] == "-", words))
    rest = list(words[len(axes) :])
    if not axes or not rest or rest[0].startswith("-"):
        missing = "experiment" if axes else "grid"
        raise ValueError(
            f"the sweep has no {missing}: got {shlex.join(words)!r}, expected "
            "'flag=value,value' ... -- EXPERIMENT flags"
        )
    grid: dict[str, list[str]] = {}
    fixed = {word.lstrip("-").partition("=")[0] for word in rest[1:] if word.startswith("-")}
    for axis in axes:
        flag, _, text = axis.partition("=")
        values = next(csv.reader([text], escapechar="\\")) or [""]
        if flag in grid or flag in fixed:
            raise ValueError(f"the flag {flag} is given twice; write all its values in one place")
        if flag == "workdir":
            raise ValueError("the sweep chooses the workdir of each run; give its own as --workdir")
        if len(set(values)) < len(values):
            raise ValueError(f"a value of {flag} is given twice: got {text!r}")
        grid[flag] = values
    if "workdir" in fixed:
        raise ValueError("the sweep chooses the workdir of each run; give its own before --")
    return grid, rest[0], rest[1:]


def cells(
    grid: Mapping[str, Sequence[str]], experiment: str, flags: Sequence[str], folder: Path
) -> list[Cell]:
    """The cells of a grid; the first flag varies slowest.

    The folder of a cell is named by a hash that does not depend on the order of flags.

    Args:
      grid, experiment, flags: as `parse` returns them.
      folder: the folder of the sweep.
    """
    rows = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        words = [*flags, *(f"--{flag}={value}" for flag, value in chosen.items())]
        in_order = sorted(words) if all(word.startswith("-") for word in words) else words
        text = json.dumps([experiment, in_order])
        cell = folder / hashlib.sha256(text.encode()).hexdigest()[:10]
        rows.append(Cell(chosen, (*words, f"--workdir={cell}"), cell))
    return rows


def command(experiment: str) -> list[str]:
    """The command of an experiment: a module of `experiments/`, or a script if it ends in `.py`.

    Raises:
      ValueError: there is no such experiment or script.
    """
    if experiment.endswith(".py"):
        if not Path(experiment).is_file():
            raise ValueError(f"there is no script {experiment!r}; check the path")
        return [sys.executable, experiment]
    folder = ROOT / "experiments"
    files = [path for path in (*folder.glob("*.py"), *folder.glob("*/*.py")) if path.stem[0] != "_"]
    modules = {path.stem: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    if experiment not in modules:
        close = nearest(experiment, modules) or "none; give the path of a script"
        raise ValueError(f"there is no experiment {experiment!r}; nearest: {close}")
    return [sys.executable, "-P", "-m", modules[experiment]]


def check(grid: Mapping[str, Sequence[str]], experiment: str, flags: Sequence[str]) -> None:
    """Checks the flags of all cells, in one process of the experiment that does nothing else.

    Raises:
      ValueError: the experiment does not have a flag, or a flag does not allow a value.
    """
    words = [f"--{flag}={value}" for flag, values in grid.items() for value in values]
    words = [*command(experiment), *flags, *words, "--workdir=unused", "--only_check_args"]
    checked = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if checked.returncode:
        # absl's message, or the last line of a traceback
        reason = re.search(r"FATAL [^:]*: (.*?)(?:\nPass --help|$)", checked.stderr, re.DOTALL)
        text = reason[1] if reason else checked.stderr.strip().rpartition("\n")[2]
        raise ValueError(f"{experiment} refuses its flags: {reporting.one_line(text)}")


def sweep(
    run: reporting.Run,
    words: Sequence[str],
    *,
    on: str = HERE,
    options: str = "",
    metric: str = "",
    lowest: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs the cells that are not finished, and returns the results of all cells.

    Args:
      run: its folder receives the folders of the cells and the tables of `tl.pages.sweep`. Cells
        that fail are recorded as a failure of the run.
      words: as for `parse`.
      on: "here", names of hosts separated by commas (`run_cells`), or "slurm" to submit the cells
        and return at once.
      options: options of `./launch.sh slurm`, as a shell reads them.
      metric, lowest: as for `collect`.
      say: receives one line per event.

    Returns:
      As `collect`.

    Raises:
      ValueError: the folder of the run is in a bucket, and those of `parse`, `check`,
        `array.submit` and `collect`.
    """
    if is_url(run.workdir):
        raise ValueError(f"the `workdir` of a sweep is a local folder: got {str(run.workdir)!r}")
    grid, experiment, flags = parse(words)
    check(grid, experiment, flags)
    every = cells(grid, experiment, flags, run.workdir)
    todo = [cell for cell in every if not cell.finished]
    say(f"{len(every)} runs of {experiment}, of which {len(every) - len(todo)} are finished")
    failed: dict[Path, str] = {}
    if todo and on == "slurm":
        lines = [shlex.join([experiment, *cell.words]) for cell in todo]
        answer = array.submit(lines, experiment, run.workdir, shlex.split(options))
        say(f"{answer or 'the array is still in the queue'}; repeat the command for the results")
    elif todo:
        failed = run_cells(todo, experiment, on.split(","), say)
        if failed:
            run.failures["cells"] = f"{len(failed)} of {len(every)}; repeat the command to run them"
    result = collect(run, grid, experiment, every, metric=metric, lowest=lowest, failed=failed)
    for name, text in pages.tables(result).items():
        reporting.write_whole(run.workdir / name, text)
    return result


# ---- running ----


def run_cells(
    todo: Sequence[Cell],
    experiment: str,
    machines: Sequence[str] = (HERE,),
    say: Callable[[str], None] = print,
) -> dict[Path, str]:
    """Runs the unfinished cells, one at a time on each host.

    The output of a cell is in `output.txt` in its folder. A cell that fails does not stop the
    others.

    Args:
      todo: the cells.
      experiment: its name.
      machines: "here", or names of hosts for ssh, which share the disk and the folder of the
        checkout. A name that occurs twice runs two cells at a time.
      say: receives one line per event.

    Returns:
      Folder -> the last line of output, of the cells that failed.
    """
    failed: dict[Path, str] = {}
    numbered = list(enumerate(todo, 1))

    def work(host: str) -> None:
        while numbered:
            number, cell = numbered.pop(0)
            name = f"cell {number} of {len(todo)}, {cell.label}"
            say(f"{name}: runs in {cell.folder}" + ("" if host == HERE else f" on {host}"))
            cell.folder.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            with open(cell.folder / "output.txt", "ab") as output:
                status = _call(_words(cell, experiment, host), output)
            if status:
                failed[cell.folder] = last_line(cell.folder) or f"exit status {status}"
                event = "was preempted" if status == PREEMPTED else "failed"
                say(f"{name} {event}: {failed[cell.folder]}")
            else:
                say(f"{name}: finished in {time.monotonic() - began:.1f} s")

    with futures.ThreadPoolExecutor(len(machines)) as pool:
        for task in [pool.submit(work, host) for host in machines]:
            task.result()
    return failed


def _words(cell: Cell, experiment: str, host: str) -> list[str]:
    """The command that runs a cell on a host."""
    words = resumed(cell.words)
    if host == HERE:
        return [*command(experiment), *words]
    start = [str(ROOT / "launch.sh"), experiment]
    if experiment.endswith(".py"):
        start = command(experiment)
    there = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join([*start, *words])}"
    # -tt: the command ends with the connection
    return ["ssh", "-tt", "-o", "BatchMode=yes", host, there]


def _call(words: Sequence[str], output: IO[bytes]) -> int:
    """The exit status of a command, which ends with this process; SIGTERM is passed on to it."""
    process = subprocess.Popen(
        tied(words), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    )
    with hosts.deferred():
        while process.poll() is None:
            hosts.advance()  # a run may take hours
            if hosts.signalled():
                process.terminate()  # saves its checkpoint
                process.wait()
                hosts.stop_together()
            time.sleep(0.05)
    return process.returncode


def last_line(folder: Path) -> str:
    """The last line that a cell wrote; "" for none."""
    try:
        with open(folder / "output.txt", "rb") as file:
            file.seek(-min(_TAIL, os.path.getsize(file.name)), os.SEEK_END)
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


# ---- results ----


def collect(
    run: reporting.Run,
    grid: Mapping[str, Sequence[str]],
    experiment: str,
    todo: Sequence[Cell],
    *,
    metric: str = "",
    lowest: bool = False,
    failed: Mapping[Path, str] | None = None,
) -> dict[str, Any]:
    """The results of all cells; cells that differ only in `--seed` form one row.

    Args:
      run: receives a remark if cells are of different commits.
      grid, experiment: as `parse` returns them.
      todo: all cells.
      metric: path of a number, or of a list with one per seed, in `result.json`, such as
        "test.nll"; default: the first of `METRICS`.
      lowest: whether the best row has the lowest mean.
      failed: as `run_cells` returns it.

    Returns:
      The content of `result.json`: "experiment", "grid", "metric", and "rows", the best first, each
      with "flags", "folders", "values" (one per seed), "mean", "std", "n", "ci95", "seconds", and
      "error" if a cell has no result. If the runs saved predictions, all rows but the best have the
      "difference" of their accuracy from that of the best on the same images, with its
      "difference_ci95" and "p".

    Raises:
      ValueError: a result has no number at `metric`.
    """
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in todo:
        key = tuple(value for flag, value in cell.values.items() if flag != "seed")
        groups.setdefault(key, []).append(cell)
    results = {c.folder: reporting.read_run(c.folder) for c in todo if c.finished}
    if not metric and results:
        metric = _default_metric(next(iter(results.values()))[1])
    rows = []
    for group in groups.values():
        row: dict[str, Any] = {
            "flags": {flag: v for flag, v in group[0].values.items() if flag != "seed"},
            "folders": [cell.folder.name for cell in group],
        }
        finished = [results[cell.folder][1] for cell in group if cell.finished]
        values = [v for result in finished for v in numbers(result, metric)]
        row["values"] = values
        row |= metrics.spread(values) if values else {"mean": None, "std": None, "n": 0}
        if len(values) == 1:
            row["ci95"] = _value(finished[0], f"{metric}_ci95")
        seconds = [s for result in finished if isinstance(s := result.get("seconds"), int | float)]
        row["seconds"] = sum(seconds) if seconds else None
        if len(finished) < len(group):
            reasons = [
                (failed or {}).get(c.folder) or last_line(c.folder) for c in group if not c.finished
            ]
            count = f"{len(group) - len(finished)} of {len(group)} cells are not finished"
            row["error"] = next(filter(None, reasons), count)
        rows.append(row)
    sign = 1 if lowest else -1
    rows.sort(key=lambda row: (not row["n"], sign * (row["mean"] or 0.0)))
    _compare_with_best(rows, run.workdir)
    commits = {results[folder][0].config.get("git_commit") or "" for folder in results}
    if len(commits) > 1:
        run.remark(f"the cells are of {len(commits)} commits; remove the folders of older ones")
    return {"experiment": experiment, "grid": dict(grid), "metric": metric, "rows": rows}


def _default_metric(result: Mapping[str, Any]) -> str:
    present = [path for path in METRICS if _value(result, path) is not None]
    if not present:
        raise ValueError(
            f"the results have none of {', '.join(METRICS)}; give the path of a number in "
            f"result.json as `metric`, from the keys {', '.join(result)}"
        )
    return present[0]


def _value(result: Any, path: str) -> Any:
    """The value at a path of keys that are joined by dots; None if there is none."""
    for key in path.split("."):
        result = result.get(key) if isinstance(result, Mapping) else None
    return result


def numbers(result: Mapping[str, Any], metric: str) -> list[float]:
    """The numbers at a path of `result.json`.

    Raises:
      ValueError: there are none.

    Example:
      >>> numbers({"seeds": {"top1": [0.5, 0.75]}}, "seeds.top1")
      [0.5, 0.75]
    """
    value = _value(result, metric)
    values = value if isinstance(value, list) else [value]
    if not values or any(not isinstance(v, int | float) or isinstance(v, bool) for v in values):
        keys = value if isinstance(value, Mapping) else result
        raise ValueError(
            f"`metric={metric}` is not a number of result.json; expected keys joined by dots, "
            f"from {first_few(list(keys), 12)}"
        )
    return [float(v) for v in values]


def _compare_with_best(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Adds the paired difference from the first row to the others."""

    def predictions(row: Mapping[str, Any]) -> dict[int, dict[str, paired.Row]]:
        merged: dict[int, dict[str, paired.Row]] = {}
        for name in row["folders"]:
            merged |= paired.read_predictions(folder / name)
        return merged

    try:
        best = predictions(rows[0])
    except (ValueError, IndexError):  # no predictions
        return
    for row in rows[1:]:
        try:
            row |= paired.accuracy_difference(predictions(row), best)
        except ValueError:  # no predictions, or other images
            continue
