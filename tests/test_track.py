"""Trackers: rows and results reach them, failures do not end a run, missing packages are named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tl import reporting
from tl.reporting import track

ROOT = Path(__file__).resolve().parents[1]

# Stand-ins for the packages, which write their calls to files in the current folder.
NOTE = """
def note(*words):
    with open("calls", "a") as file: print(*words, file=file)
"""
PACKAGES = {
    "tensorboardX": NOTE
    + """
class SummaryWriter:
    def __init__(self, folder, **_): self.folder = folder
    def add_scalar(self, *row): note("tensorboard", *row)
    def close(self): note("tensorboard closed")
""",
    "wandb": NOTE
    + """
def login(prompt): raise ConnectionError
class Run:
    summary = {}
    def log(self, row, step): note("wandb", row, step)
    def finish(self): note("wandb finished", self.summary)
def init(**options):
    names = ("id", "mode", "resume", "config")
    note("wandb", *(options[name] for name in names))
    return Run()
""",
    "trackio": NOTE
    + """
class Run:
    def log(self, row, step=None): note("trackio", row, step)
    def finish(self): note("trackio finished")
def init(project, name, config, resume, embed):
    note("trackio", name, resume)
    return Run()
""",
}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, code in PACKAGES.items():
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    yield tmp_path
    for name in PACKAGES:
        sys.modules.pop(name, None)


def start(folder: Path, names: list[str], **options: Any) -> reporting.Run:
    run = reporting.start("transfer", folder / "w", {"lr": 0.1}, **options)
    run.track(names)
    return run


def calls(folder: Path, tracker: str) -> list[str]:
    lines = (folder / "calls").read_text().splitlines()
    return [line.removeprefix(f"{tracker} ") for line in lines if line.startswith(f"{tracker} ")]


@pytest.mark.parametrize("name", track.TRACKERS)
def test_a_tracker_receives_rows_and_the_result(packages: Path, name: str) -> None:
    run = start(packages, [name])
    run.log({"step": 5, "loss": np.float32(0.5), "phase": "head", "seconds": 1})
    run.log({"step": 10, "loss": float("nan"), "seconds": 2})
    run.finish({"test": {"top1": 0.75}}, None)
    lines = calls(packages, name)
    expected = {
        "tensorboard": ["loss 0.5 5", "seconds 1.0 5", "seconds 2.0 10", "result/test/top1 0.75 0"],
        "wandb": ["{'loss': 0.5, 'seconds': 1.0} 5", "{'seconds': 2.0} 10"],
        "trackio": ["{'loss': 0.5, 'seconds': 1.0} 5", "{'seconds': 2.0} 10"],
    }[name]
    assert [line for line in expected if line in lines] == expected
    assert lines[-1].startswith(("closed", "finished"))
    if name == "wandb":
        assert lines[0].endswith(" offline allow {'lr': 0.1}")
        assert lines[-1].startswith("finished {'test/top1': 0.75, 'ledger/seconds'")
    assert len((run.workdir / "metrics.jsonl").read_text().splitlines()) == 2
    assert not run.remarks


def test_a_resumed_run_continues_the_tracked_one(packages: Path) -> None:
    start(packages, ["trackio"]).log({"step": 1})
    start(packages, ["trackio"], resume=True).log({"step": 2})
    start(packages, ["trackio"])
    names = [line.split() for line in calls(packages, "trackio") if line.startswith("transfer-")]
    assert names[0][0] == names[1][0] != names[2][0]
    assert [resume for _, resume in names] == ["never", "allow", "never"]


def test_rows_without_a_step_are_counted() -> None:
    steps: list[int] = []
    tracker = track.Tracker(lambda _, step: steps.append(step), lambda _: None)
    trackers = track.Trackers({"x": tracker}, print)
    for row in ({"loss": 1}, {"loss": 1}, {"loss": 1, "step": 7}, {"loss": 1}):
        trackers.log(row)
    assert steps == [1, 2, 7, 8]


@pytest.mark.parametrize("moment", ["log", "finish"])
def test_a_failing_tracker_does_not_end_the_run(moment: str) -> None:
    good: list[Any] = []

    def fail(*_: Any) -> None:
        raise ConnectionError("no route\nto host")

    ignore = lambda *_: None
    broken = track.Tracker(*((fail, ignore) if moment == "log" else (ignore, fail)))
    working = track.Tracker(lambda numbers, _: good.append(numbers), good.append)
    remarks: list[str] = []
    trackers = track.Trackers({"a": broken, "b": working}, remarks.append)
    trackers.log({"loss": 1.0})
    trackers.log({"loss": 2.0})
    trackers.finish({"top1": 0.5})
    assert good == [{"loss": 1.0}, {"loss": 2.0}, {"top1": 0.5}]
    assert remarks == ["a stopped tracking this run (no route to host); metrics.jsonl has all rows"]


def test_a_tracker_that_cannot_be_opened_is_a_remark(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> track.Tracker:
        raise RuntimeError("the disk is full")

    kind = track.TRACKERS["wandb"]._replace(open=fail)
    monkeypatch.setitem(track.TRACKERS, "wandb", kind)
    run = start(packages, ["wandb", "trackio"])
    run.log({"step": 1, "loss": 0.5})
    assert "wandb stopped tracking this run (the disk is full)" in run.remarks[0]
    assert "{'loss': 0.5" in calls(packages, "trackio")[-1]


def test_without_trackers_nothing_is_written(packages: Path) -> None:
    run = start(packages, [])
    run.log({"step": 1})
    assert sorted(path.name for path in run.workdir.iterdir()) == ["config.json", "metrics.jsonl"]


def test_a_missing_package_and_an_unknown_name_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"`track=wandb` needs .* pip install 'tl\[wandb\]'"):
        track.check(["wandb"])
    with pytest.raises(ValueError, match="got 'tensorbord'; nearest: 'tensorboard'"):
        track.check(["tensorbord"])


def test_every_tracker_has_an_extra() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for name, kind in track.TRACKERS.items():
        assert f'{name} = ["{kind.package}>=' in text


@pytest.mark.full
def test_the_command_checks_trackers_before_the_work(tmp_path: Path) -> None:
    words = ["--track=mlflow", f"--workdir={tmp_path / 'w'}", "--arch=squeezenet1_1"]
    run = subprocess.run(
        [sys.executable, "-m", "experiments.describe", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1 and "unknown tracker of --track" in run.stderr
    assert not (tmp_path / "w").exists()


def test_numbers_of_odd_rows_are_left_out() -> None:
    row: Mapping[str, Any] = {
        "a": np.float32(1.5),
        "b": float("inf"),
        "c": None,
        "d": "1",
        "e": [1],
        "f": {"g": 2, "h": {"i": 3}},
        "j": np.zeros(3),
    }
    assert track.numbers(row) == {"a": 1.5, "f/g": 2.0}
    assert json.dumps(track.numbers(row))
