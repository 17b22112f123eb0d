"""`tl.cli`: flags in error messages, and what a run that fails leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from absl import flags

from tl import cli

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line with the flags --tune and --label_smoothing."""
    values = flags.FlagValues()
    flags.DEFINE_string("tune", "probe", "Short form.", flag_values=values)
    flags.DEFINE_float("label_smoothing", 0.0, "Label smoothing.", flag_values=values)
    monkeypatch.setattr(cli, "FLAGS", values)


@pytest.mark.usefixtures("tune")
@pytest.mark.parametrize(
    "message, expected",
    [
        ("`label_smoothing` must be in [0, 1)", "--label_smoothing must be in [0, 1)"),
        ("take `tune=last:1` or `tune=all`", "take --tune=last:1 or --tune=all"),
        ("give `before` or `tune`", "give `before` or --tune"),
        ("`tl.load(cast=True)` and tune", "`tl.load(cast=True)` and tune"),
        ("`tune", "`tune"),
    ],
)
def test_parameters_in_backticks_become_flags(message: str, expected: str) -> None:
    assert cli.with_dashes(message) == expected


def launch(
    workdir: Path, body: str = "", *, code: str = "", words: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Runs an experiment `toy` whose main function has this body, or other code."""
    code = code or f"from tl import cli\n\ndef main(run):\n    {body}\n\ncli.launch('toy', main)\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", code, f"--workdir={workdir}", "--seed=3", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_an_error_of_the_user_is_one_sentence_with_flags_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")  # of an earlier run
    run = launch(tmp_path, "raise ValueError('`seed` must be 4: got 3')")
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1] == "toy: --seed must be 4: got 3"
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "result.json").exists() and (tmp_path / "config.json").is_file()


def test_a_bug_shows_its_traceback_and_leaves_no_result(tmp_path: Path) -> None:
    run = launch(tmp_path, "raise KeyError('a bug')")
    assert run.returncode != 0 and "Traceback" in run.stderr and "a bug" in run.stderr
    assert not (tmp_path / "result.json").exists()


def test_a_failed_part_leaves_the_rest_of_the_result_and_status_1(tmp_path: Path) -> None:
    run = launch(
        tmp_path,
        "top1 = run.attempt('robust', lambda: 1 / 0, None); run.finish({'top1': 1.0}, '<p></p>')",
    )
    assert run.returncode == 1
    message = (
        f"toy: robust failed (division by zero); the rest of the result is in {str(tmp_path)!r}"
    )
    assert run.stderr.strip().splitlines()[-1] == message
    result = json.loads((tmp_path / "result.json").read_text())
    assert result.pop("ledger")["compiles"] == 0
    assert result == {"top1": 1.0, "failed": {"robust": "division by zero"}}
