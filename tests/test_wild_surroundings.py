"""Paths, caches, environments and terminals as people have them; see `tests/wild.py`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests import wild
from tests.test_scripts import ROOT, run_jobs
from tl import reporting

NAMES = [situation.name for situation in wild.SURROUNDINGS]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str, str]]:
    """Name of a situation -> its folder, stdout and stderr, all from one process."""
    root = tmp_path_factory.mktemp("surroundings")
    jobs: list[dict[str, Any]] = []
    for number, situation in enumerate(wild.SURROUNDINGS):
        folder = root / str(number)
        (folder / "describe").mkdir(parents=True)
        made = situation.make(folder)
        argv = [f"{made.script}.py", *made.argv]
        if made.script != "report" and not any("--workdir" in word for word in argv):
            argv.append(f"--workdir={folder / 'run'}")
        jobs.append(
            {
                "folder": str(folder / "describe"),
                "module": f"experiments.{made.script}",
                "argv": argv,
                "output": str(folder / "output"),
                "env": {"TL_CACHE": str(folder / "cache"), **made.env},
                "before": made.before,
            }
        )
    done = run_jobs(jobs, ROOT)
    return {name: (root / str(number), *done[number]) for number, name in enumerate(NAMES)}


@pytest.mark.parametrize("situation", wild.SURROUNDINGS, ids=NAMES)
def test_a_command_goes_on_or_says_one_sentence(
    situation: wild.Situation, outputs: dict[str, tuple[Path, str, str]]
) -> None:
    folder, out, err = outputs[situation.name]
    assert "Traceback" not in out + err, err
    *lines, code = err.strip().splitlines()
    assert code == f"exit code {situation.right.get('code', 1 if situation.refused else 0)}", err
    assert all(len(line) <= reporting.MAX_MESSAGE for line in (out + err).splitlines())
    if situation.refused:
        message = [line for line in lines if line.strip()][-1]
        assert re.search(situation.refused, message), message
        assert message == reporting.one_line(message)
    if whole := situation.right.get("whole"):
        file = re.search(r"the whole message is in '(.*)'", err)
        assert file and whole in Path(file[1]).read_text(encoding="utf-8")
    if situation.remark:
        assert len([x for x in out.splitlines() if re.search(situation.remark, x)]) == 1, out
    if file := situation.right.get("file"):
        assert (folder / file).exists()
