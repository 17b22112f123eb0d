"""launch.sh with stand-ins for Python: its messages, and the commands that it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="launch.sh needs bash")

TOOLS = "bash dirname basename cksum sed head awk grep tr cat rm mv tee df env"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project without .venv, in a folder with a space in its name; bin/ has no Python."""
    root = tmp_path / "my project"
    (root / "experiments").mkdir(parents=True)
    for file in ("launch.sh", "pyproject.toml"):
        shutil.copy(ROOT / file, root / file)
    for name in ("quickstart", "attack", "ideal"):
        (root / f"experiments/{name}.py").write_text(
            f'"""What {name} does.\n\nMore of it.\n"""\n"""Not this."""\n'
            'if __name__ == "__main__":\n    pass\n'
        )
    (root / "experiments/_shared.py").write_text('"""Not an experiment."""\n')
    (root / "bin").mkdir()
    for tool in TOOLS.split():
        path = shutil.which(tool)
        assert path, f"this test needs {tool}"
        (root / "bin" / tool).symlink_to(path)
    return root


def tool(project: Path, name: str, script: str) -> None:
    """Writes a tool into bin/, in front of any other of that name."""
    path = project / "bin" / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!{BASH}\n{script}\n")
    path.chmod(0o755)


def launch(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    assert BASH
    env = {"PATH": str(project / "bin"), "HOME": os.environ.get("HOME", "/"), **environment}
    command = [BASH, str(project / "launch.sh"), *arguments]
    return subprocess.run(
        command, cwd=project.parent, env=env, capture_output=True, text=True, timeout=60
    )


def stops(run: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Asserts that the run failed with one line that has all `parts`, and created no .venv."""
    assert run.returncode != 0
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr
    for part in parts:
        assert part in run.stderr
    assert not (Path(run.args[1]).parent / ".venv").exists()


SHELL = [
    "launch.sh",
    *(f"launch.d/{name}.sh" for name in ("slurm", "tpu")),
    ".ci/run",
    ".ci/newest",
]


@pytest.mark.parametrize("script", SHELL)
def test_the_scripts_parse(script: str):
    assert BASH
    subprocess.run([BASH, "-n", str(ROOT / script)], check=True)
    assert os.access(ROOT / script, os.X_OK) or script.startswith("launch.d/")  # sourced


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_has_no_remark():
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("launch.d/*")} < set(SHELL)
    run = subprocess.run(
        ["shellcheck", "-x", *SHELL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_experiments_with_their_first_line(project: Path, arguments: list[str]):
    run = launch(project, *arguments)
    assert run.returncode == 0
    for name in ("quickstart", "attack", "ideal"):
        assert any(
            line.split() == [name, "What", name, "does."] for line in run.stdout.splitlines()
        ), run.stdout
    assert "_shared" not in run.stdout and "Not this" not in run.stdout


def test_an_unknown_experiment_is_answered_with_the_nearest(project: Path):
    (project / "bin/python3").symlink_to(os.path.realpath(sys.executable))
    run = launch(project, "quickstrat")
    stops(run, "'quickstrat'", "quickstart")
    assert "attack" not in run.stderr


@pytest.mark.parametrize("name", ["quickstrat", "_shared", "../launch", "--flag=1", "att"])
def test_an_unknown_experiment_without_python_is_answered_with_all(project: Path, name: str):
    stops(launch(project, name), f"'{name}'", "quickstart", "attack", "ideal")


def test_an_old_python_is_refused(project: Path):
    tool(project, "python3", "case $* in *sys.exit*) exit 1 ;; *) echo 3.8 ;; esac")
    stops(launch(project, "quickstart"), "Python 3.11 or newer", "python3 is 3.8", "PYTHON=")
    stops(launch(project, "test"), "Python 3.11 or newer")


def test_no_python_at_all_is_refused(project: Path):
    stops(launch(project, "quickstart"), "Python 3.11 or newer", "python3 is not installed")
    stops(
        launch(project, "quickstart", PYTHON="/no/such/python"), "/no/such/python is not installed"
    )


def test_a_full_disk_is_refused(project: Path):
    tool(project, "python3.12", "case $* in *sys.exit*) exit 0 ;; *) echo 3.12 ;; esac")
    tool(
        project,
        "df",
        "printf 'Filesystem 1024-blocks Used Available Capacity Mounted\\n"
        "/dev/x 9 9 2097152 9%% /\\n'",
    )
    stops(launch(project, "quickstart"), "disk is too full", "3 GB", "2 GB free")


def test_a_python_without_venv_is_refused(project: Path):
    tool(
        project,
        "python3",
        'case $* in *sys.exit*) exit 0 ;; *"-m venv"*) exit 1 ;; *) echo 3.12 ;; esac',
    )
    run = launch(project, "quickstart")
    assert run.returncode != 0 and "python3-venv" in run.stderr
    assert not (project / ".venv").exists()


# A stand-in for Python that creates a folder for `-m venv` and logs every other command.
FAKE = """
case $* in
  *sys.exit*) exit 0 ;;
  *version_info*) echo 3.12 ;;
  *"-m venv"*) env mkdir -p "$3/bin"; env cp "$0" "$3/bin/python" ;;
  *"pip --version"*) ;;
  *"pip install"*) echo "pip $*" >>"$LOG"; exit "${PIP_RESULT:-0}" ;;
  *) echo "run $PWD $*" >>"$LOG" ;;
esac
"""


@pytest.fixture
def commands(project: Path) -> Callable[..., list[str]]:
    """Runs launch.sh with the stand-in and returns the commands that it ran."""
    tool(project, "python3", FAKE)
    for name in ("mkdir", "cp"):
        (project / "bin" / name).symlink_to(shutil.which(name) or name)
    log = project / "log"

    def run(*arguments: str, **environment: str) -> list[str]:
        log.write_text("")
        launch(project, *arguments, LOG=str(log), JAX_PLATFORMS="cpu", **environment)
        return log.read_text().splitlines()

    return run


def test_the_first_call_installs_and_runs_in_the_current_folder(project: Path, commands: Any):
    install, run = commands("ideal", "--target=any cat")
    assert install.endswith("[offline,hub,keras]")
    assert run == f"run {project.parent} -P -m experiments.ideal --target=any cat"


def test_scripts_in_a_subfolder_are_found_by_their_name(project: Path, commands: Any):
    (project / "experiments/benchmarks").mkdir()
    script = '"""Speed."""\nif __name__ == "__main__":\n    pass\n'
    (project / "experiments/benchmarks/bench.py").write_text(script)
    assert commands("bench")[1] == f"run {project.parent} -P -m experiments.benchmarks.bench"


def test_the_second_call_installs_nothing(project: Path, commands: Any):
    commands("ideal")
    assert commands("attack") == [f"run {project.parent} -P -m experiments.attack"]


def test_a_failed_installation_runs_nothing_and_is_repeated(commands: Any):
    assert [line.split()[0] for line in commands("ideal", PIP_RESULT="1")] == ["pip"]
    assert [line.split()[0] for line in commands("ideal")] == ["pip", "run"]


def test_the_tests_add_their_extra_and_run_in_the_project(project: Path, commands: Any):
    commands("ideal")
    install, run = commands("test", "-q")
    assert install.endswith("[offline,hub,keras,test]")
    assert run == f"run {project} -m pytest -n 2 --dist=worksteal -q"
    assert len(commands("test")) == 1 and len(commands("attack")) == 1


def test_a_changed_pyproject_installs_again_with_the_same_extras(project: Path, commands: Any):
    commands("test")
    with (project / "pyproject.toml").open("a") as file:
        file.write("\n")
    assert commands("attack")[0].endswith("[offline,test,hub,keras]")


def test_an_interpreter_of_the_same_version_installs_nothing(project: Path, commands: Any):
    commands("attack")
    assert len(commands("attack", PYTHON=str(project / "bin/python3"))) == 1


def test_local_runs_the_experiment_in_several_processes(project: Path, commands: Any):
    commands("ideal")
    (run,) = commands("local", "--processes=2", "--restart=3", "attack", "--steps=4", "--eps=1/255")
    python = f"{project}/.venv/bin/python"
    assert run == (
        f"run {project.parent} -P -m tl.scale.local --processes=2 --restart=3 "
        f"{python} -P -m experiments.attack --steps=4 --eps=1/255"
    )


def test_local_checks_the_experiment_first(project: Path):
    stops(launch(project, "local", "--processes=2", "atack"), "'atack'", "attack")
    stops(launch(project, "local"), "no experiment ''")


def test_install_only_installs(project: Path, commands: Any):
    (install,) = commands("install", "gcs")
    assert install.endswith("[offline,hub,keras,gcs]")
