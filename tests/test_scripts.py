"""Each script of `experiments/` runs as a copy in an empty folder, with only `tl` installed."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")
# Folders of scripts that share helpers; such a folder is copied as a whole.
FOLDERS = {"benchmarks": ("accelerator", "bench", "parity", "peers"), "lesson": ("__main__",)}
COMMANDS = [*SCRIPTS, *(f"{name}.{script}" for name in FOLDERS for script in FOLDERS[name])]


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


# Runs each job in a fork of a process that has imported `tl`, which takes most of the time. It can
# have environment variables (None removes one) and code to run before the script.
DRIVER = """
import json, os, runpy, sys, traceback
import tl
from tl import cli, pages

for job in json.load(sys.stdin):
    pid = os.fork()
    if pid:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with open(f"{job['output']}.2", "a") as file:
            file.write(f"exit code {code}\\n")
        continue
    os.chdir(job["folder"])
    for stream in (1, 2):
        os.dup2(os.open(f"{job['output']}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
    sys.path.insert(0, "site")
    sys.argv = job["argv"]
    for name, value in job.get("env", {}).items():
        os.environ.pop(name, None)
        os.environ |= {} if value is None else {name: value}
    code = 0
    try:
        exec(job.get("before", ""), {})
        if job["module"]:
            runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        code = {None: 0}.get(error.code, error.code if isinstance(error.code, int) else 1)
        print(error.code if isinstance(error.code, str) else "", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)
"""


def run_jobs(jobs: Sequence[Mapping[str, Any]], root: Path) -> list[tuple[str, str]]:
    """The stdout and stderr of each job of `DRIVER`; the last line is its exit code.

    Args:
      jobs: `{"folder", "module", "argv", "output"}`, and optionally "env" and "before".
      root: the folder from which `tl` is imported.
    """
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-P", "-c", DRIVER],
        cwd=root,
        env=environment,
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    read = lambda file: Path(file).read_text(encoding="utf-8", errors="backslashreplace")
    return [(read(f"{job['output']}.1"), read(f"{job['output']}.2")) for job in jobs]


def copy_alone(command: str, folder: Path) -> str:
    """Copies a script, or the folder of its helpers; returns the module to run, "" for a file."""
    # This package hides the checkout's, which an editable installation puts on the path.
    package = folder / "site" / "experiments"
    package.mkdir(parents=True)
    name, _, script = command.rpartition(".")
    if not name:
        (package / "__init__.py").write_text('raise ImportError("experiments is not installed")')
        shutil.copy(FOLDER / f"{script}.py", folder)
        return ""
    (package / "__init__.py").touch()
    shutil.copytree(FOLDER / name, package / name)
    return f"experiments.{name}" if script == "__main__" else f"experiments.{command}"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[str, str]]:
    """(command, argument) -> stdout and stderr of the copy."""
    root = tmp_path_factory.mktemp("copies")
    (root / "tl").symlink_to(ROOT / "tl")
    jobs, files = [], {}
    for command in COMMANDS:
        folder = root / "copies" / command
        module = copy_alone(command, folder)
        for argument in ("--help", "not_a_flag"):
            output = str(folder / argument.strip("-"))
            argv = [f"{command}.py", argument]
            jobs.append({"folder": str(folder), "module": module, "argv": argv, "output": output})
            files[command, argument] = output
    return dict(zip(files, run_jobs(jobs, root), strict=True))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_copied_script_prints_its_help(command: str, outputs: dict) -> None:
    out, err = outputs[command, "--help"]
    assert "launch.sh" in out and "--help" in out, err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_copied_script_reports_an_error_in_one_sentence(command: str, outputs: dict) -> None:
    _, err = outputs[command, "not_a_flag"]
    assert "exit code 1" in err and "Traceback" not in err
    errors = ("unexpected argument 'not_a_flag'", "must have a value", "'not_a_flag' is not the")
    errors += ("the sweep has no grid", "there is no folder 'not_a_flag'")
    assert any(error in err for error in errors), err


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_no_other_script(script: str) -> None:
    assert not list(imports(FOLDER / f"{script}.py"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_of_scripts_imports_only_its_own_modules(folder: str) -> None:
    for path in (FOLDER / folder).glob("*.py"):
        assert all(name.startswith(f"experiments.{folder}") for name in imports(path)), path


def test_no_file_name_begins_with_an_underscore() -> None:
    hidden = {path.name for path in FOLDER.rglob("_*.py")} - {"__init__.py", "__main__.py"}
    assert not hidden
