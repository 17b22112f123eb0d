"""`launch.sh local`: several processes of one machine, their variables, failures and signals."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tl.data import feed
from tl.paths import expanded
from tl.scale import commands, local

# Commands of a shell, which start in milliseconds. `$I` is the index of the process.
SHELL = ["bash", "-c"]


def script(text: str) -> list[str]:
    return [*SHELL, f"I=$JAX_PROCESS_ID; {text}"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def test_the_variables_join_the_processes(tmp_path: Path) -> None:
    line = "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"
    assert local.run(script(f"echo {line} >{tmp_path}/$I"), 3) == (0, False)
    rows = [(tmp_path / str(i)).read_text().split() for i in range(3)]
    assert [row[1:] for row in rows] == [["3", str(i)] for i in range(3)]
    assert len({row[0] for row in rows}) == 1
    host, port = rows[0][0].split(":")
    assert host == "127.0.0.1" and 1024 <= int(port) < 65536


def test_gpus_are_divided_and_too_few_are_refused() -> None:
    devices = [local.environment(i, 2, 9, gpus=4)["JAX_LOCAL_DEVICE_IDS"] for i in range(2)]
    assert devices == ["0,1", "2,3"]
    assert "JAX_LOCAL_DEVICE_IDS" not in local.environment(0, 2, 9)
    with pytest.raises(ValueError, match="processes=3 is more than the 2 GPUs"):
        local.environment(0, 3, 9, gpus=2)


@pytest.mark.parametrize("platforms, gpus", [("cpu", 0), ("", 2)])
def test_gpus_are_counted_unless_jax_uses_the_cpu(
    platforms: str, gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "GPU 0: A"\necho "GPU 1: A"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert local.gpu_count() == gpus


def test_each_process_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(5)), raising=False)
    share = lambda n: local.environment(0, n, 9)["PJRT_NPROC"]
    assert [share(n) for n in (1, 2, 8)] == ["5", "2", "1"]
    monkeypatch.setenv("PJRT_NPROC", share(2))
    assert feed.cores() == 2


def test_process_0_writes_to_the_terminal_and_failures_show_the_others(capfd) -> None:
    status, _ = local.run(script('echo "line of $I"; [ $I != 2 ] || exit 3'), 3)
    out, err = capfd.readouterr()
    assert status == 3
    assert out == "line of 0\n"
    assert "process 2 ended with status 3\n  line of 2\n" in err
    assert "line of 1" not in err
    logs = Path(err.split(" is in ")[1].split()[0])
    assert (logs / "process1.txt").read_text() == "line of 1\n"


def test_equal_last_lines_are_shown_once(capfd) -> None:
    assert local.run(script("echo no such data >&2; exit 1"), 4)[0] == 1
    assert capfd.readouterr().err.count("  no such data") == 1


def test_the_first_failure_shows_more_lines_than_its_consequences(capfd) -> None:
    code = "echo a$I; echo b$I; [ $I = 1 ] && exit 4; sleep 0.2; exit 5"
    assert local.run(script(code), 3)[0] == 4
    err = capfd.readouterr().err
    assert "  a1\n  b1\n" in err and "  b2\n" in err and "a2" not in err


def test_files_of_a_run_without_failure_are_removed(capfd) -> None:
    assert local.run(script(":"), 2)[0] == 0
    assert not Path(capfd.readouterr().err.split(" is in ")[1].split()[0]).exists()


@pytest.mark.parametrize(
    "statuses, expected",
    [("0 0", 0), ("0 3", 3), ("3 0", 3), ("1 75", 75), ("75 0", 75), ("kill 0", 137)],
)
def test_the_exit_status_is_that_of_the_first_failure_or_75(statuses: str, expected: int) -> None:
    ends = statuses.replace("kill", "0").split()
    text = f"s=({' '.join(ends)}); " + ("[ $I = 1 ] || kill -9 $$; " if "kill" in statuses else "")
    assert local.run(script(f"{text} exit ${{s[$I]}}"), 2)[0] == expected


def test_the_first_failure_in_time_gives_the_status() -> None:
    assert local.run(script("[ $I = 1 ] && exit 4; sleep 0.2; exit 5"), 2)[0] == 4


def test_the_others_are_killed_after_the_grace_period(capfd) -> None:
    status, _ = local.run(script("[ $I = 1 ] && exit 4; exec sleep 60"), 3, grace=0.1)
    assert status == 4
    assert "process 1 ended 0.1 s ago; killing 0, 2" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process(number: signal.Signals, tmp_path: Path) -> None:
    """Process 0 asks the launcher to stop as soon as all processes are ready."""
    handler = f"trap 'touch {tmp_path}/stopped$I; exit 75' {number.name[3:]}; touch {tmp_path}/$I"
    wait = f"until [ -e {tmp_path}/0 ] && [ -e {tmp_path}/1 ]; do sleep 0.01; done"
    loop = "for i in $(seq 500); do sleep 0.02; done"
    code = f"{handler}; {wait}; [ $I = 1 ] || kill -{number.name[3:]} $PPID; {loop}"
    assert local.run(script(code), 2) == (75, True)
    assert {f.name for f in tmp_path.iterdir()} == {"0", "1", "stopped0", "stopped1"}
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_preempted_command_is_restarted_with_resume_if_asked(tmp_path: Path, capfd) -> None:
    # The first time it saves a checkpoint; with --resume it succeeds.
    code = 'case "$*" in *--resume*) exit 0;; esac; mkdir -p $W/checkpoints/0/phase0; exit 75'
    command = ["env", f"W={tmp_path}", *SHELL, code, "train", f"--workdir={tmp_path}"]
    assert local.main(["--processes=1", *command]) == 75
    assert local.main(["--processes=1", "--restart=2", *command]) == 0
    assert "restart 1 of 2" in capfd.readouterr().err


def test_restarts_end(tmp_path: Path) -> None:
    command = [*SHELL, f"echo >>{tmp_path}/runs; exit 75", "x", f"--workdir={tmp_path}"]
    assert local.main(["--processes=1", "--restart=2", *command]) == 75
    assert (tmp_path / "runs").read_text().count("\n") == 3


def test_an_error_is_not_restarted(tmp_path: Path) -> None:
    command = [*SHELL, f"echo >>{tmp_path}/runs; exit 1", "x", f"--workdir={tmp_path}"]
    assert local.main(["--processes=2", "--restart=2", *command]) == 1
    assert (tmp_path / "runs").read_text().count("\n") == 2


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "no command"),
        (["--processes=2"], "no command"),
        (["true"], "--processes must be at least 1"),
        (["--processes=0", "true"], "--processes must be at least 1: got 0"),
        (["--processes=two", "true"], "got --processes=two"),
        (["--process=2", "true"], "got --process=2"),
        (["--processes=2", "--restart=1", "true"], "--restart needs --workdir"),
        (["--processes=2", "no-such-program"], "cannot start 'no-such-program'"),
    ],
)
def test_a_wrong_call_is_one_sentence(words: list[str], message: str, capfd) -> None:
    assert local.main(words) == 1
    err = capfd.readouterr().err
    assert message in err and err.count("\n") == 1


def test_resume_needs_checkpoints(tmp_path: Path) -> None:
    words = ["transfer", f"--workdir={tmp_path}"]
    assert commands.resumed(words) == words
    (tmp_path / "checkpoints/0/phase0").mkdir(parents=True)
    assert commands.resumed(words) == [*words, "--resume"]
    assert commands.resumed([*words, "--resume"]) == [*words, "--resume"]
    assert commands.resumed(["transfer"]) == ["transfer"]


def test_checkpoints_may_be_in_a_bucket(bucket: str) -> None:
    words = ["transfer", "--workdir", f"{bucket}/w"]
    assert commands.resumed(words) == words
    state = expanded(f"{bucket}/w/checkpoints/0/phase0/state")
    state.parent.mkdir(parents=True)
    state.write_text("")
    assert commands.resumed(words) == [*words, "--resume"]


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv")
def test_a_process_ends_with_the_launcher(tmp_path: Path) -> None:
    """Also if the launcher is killed."""
    child = [
        "bash",
        "-c",
        f"trap 'echo saved >{tmp_path}/end; exit' TERM; echo $$; sleep 60 & wait",
    ]
    code = (
        "import os, subprocess; from tl.scale.commands import tied; "
        f"process = subprocess.Popen(tied({child}), stdout=subprocess.PIPE, text=True); "
        "process.stdout.readline(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    for _ in range(1000):
        if (tmp_path / "end").exists():
            break
        time.sleep(0.02)
    assert (tmp_path / "end").exists()
