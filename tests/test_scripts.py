"""Each script of `experiments/` runs when copied alone into an empty folder, with only `tl`."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
# A room is a folder of scripts that share helpers; it is copied as a whole.
ROOMS = {"benchmarks": ("bench", "parity", "peers"), "lesson": ("__main__",)}
COMMANDS = [*SCRIPTS, *(f"{room}.{script}" for room in ROOMS for script in ROOMS[room])]


def imports(path: Path) -> Iterator[str]:
    """The modules of `experiments` that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{'.' * node.level}{node.module or ''}.{a.name}" for a in node.names]
        else:
            continue
        yield from (name for name in modules if name.startswith(("experiments", ".")))


def run_copy(command: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a copy of one script, or of its room, where `tl` is the only module of the checkout."""
    # This package hides the checkout's, which an editable installation puts on the path.
    package = folder / "site" / "experiments"
    package.mkdir(parents=True)
    (folder / "site" / "tl").symlink_to(ROOT / "tl")
    room, _, script = command.rpartition(".")
    if room:
        (package / "__init__.py").touch()
        shutil.copytree(FOLDER / room, package / room)
        words = ["-m", f"experiments.{room}" if script == "__main__" else f"experiments.{command}"]
    else:
        (package / "__init__.py").write_text('raise ImportError("experiments is not installed")')
        shutil.copy(FOLDER / f"{script}.py", folder)
        words = [f"{script}.py"]
    environment = {**os.environ, "PYTHONPATH": str(folder / "site"), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-P", *words, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_copied_script_prints_its_help(command: str, tmp_path: Path) -> None:
    run = run_copy(command, tmp_path, "--help")

    assert "./launch.sh" in run.stdout and "--help" in run.stdout, run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_copied_script_reports_an_error_in_one_sentence(command: str, tmp_path: Path) -> None:
    run = run_copy(command, tmp_path, "not_a_flag")

    assert run.returncode == 1 and "Traceback" not in run.stderr
    errors = ("unexpected argument 'not_a_flag'", "must have a value", "'not_a_flag' is not the")
    assert any(error in run.stderr for error in errors), run.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_no_other_script(script: str) -> None:
    assert not list(imports(FOLDER / f"{script}.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_its_own_modules(room: str) -> None:
    for path in (FOLDER / room).glob("*.py"):
        assert all(name.startswith(f"experiments.{room}") for name in imports(path)), path


def test_no_file_name_begins_with_an_underscore() -> None:
    hidden = {path.name for path in FOLDER.rglob("_*.py")} - {"__init__.py", "__main__.py"}
    assert not hidden
