"""`./launch.sh local`: one command in several processes of this machine, joined by JAX.

  python -m tl.scale.local --processes=2 python -m experiments.transfer --data=elpv

Process 0 writes to the terminal. The output of the others goes to files, whose last lines are shown
if their process fails. The cores are divided among the processes; so are NVIDIA GPUs. This module
does not join the processes: JAX does, with the three variables that `environment` sets.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl.data.feed import cores
from tl.hosts import PREEMPTED
from tl.reporting import one_line
from tl.scale.commands import flag_value, resumed, tied

# Seconds between the first failure and the end of the other processes. The default of run.
GRACE = 60.0
# Lines of output of the first failed process that are shown. Chosen, not tuned.
_LINES = 12
_USAGE = "write local --processes=N [--restart=TIMES] EXPERIMENT flags"


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `local`.

    Attributes:
      processes: number of processes, at least 1.
      restart: largest number of restarts after exit status 75.
    """

    processes: int = 1
    restart: int = 0


def parse(words: Sequence[str]) -> tuple[Options, list[str]]:
    """The flags in front of a command line, and the command line.

    Raises:
      ValueError: a flag is unknown or has a wrong value, the command is missing, or `--restart` is
        set for a command without `--workdir`, which would start in a new folder.
    """
    values: dict[str, int] = {}
    rest = list(words)
    while rest and rest[0].startswith("-"):
        name, _, value = rest.pop(0).lstrip("-").partition("=")
        if name not in ("processes", "restart") or not value.isdecimal():
            raise ValueError(f"unknown flag of local: got --{name}={value}, expected {_USAGE}")
        values[name] = int(value)
    if not rest:
        raise ValueError(f"local has no command to run; {_USAGE}")
    options = Options(**values)
    if "processes" not in values or options.processes < 1:
        raise ValueError(f"--processes must be at least 1: got {values.get('processes')}; {_USAGE}")
    if options.restart and not flag_value(rest, "workdir"):
        raise ValueError("--restart needs --workdir=DIR, the folder of the run that continues")
    return options, rest


def gpu_count() -> int:
    """The number of NVIDIA GPUs that JAX would use; 0 with `JAX_PLATFORMS=cpu`."""
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return 0 if listed.returncode else sum(map(bool, listed.stdout.splitlines()))


def environment(i: int, n: int, port: int, gpus: int = 0) -> dict[str, str]:
    """The variables with which JAX joins process `i` of `n`.

    `PJRT_NPROC` is the number of threads of XLA. Processes are not bound to cores, because a thread
    that computes would then delay each all-reduce by a time slice of some milliseconds.

    Args:
      i, n: index and number of processes.
      port: a free port, on which process 0 coordinates.
      gpus: number of GPUs; each process gets an equal share, and the first ones of the rest none.

    Raises:
      ValueError: there are GPUs, but fewer than processes.

    Example:
      >>> environment(1, 2, 9000, gpus=4)["JAX_LOCAL_DEVICE_IDS"]
      '2,3'
    """
    if 0 < gpus < n:
        raise ValueError(
            f"--processes={n} is more than the {gpus} GPUs of this machine, expected at most one "
            "process per GPU; set JAX_PLATFORMS=cpu to use the cores instead"
        )
    share = gpus // n
    devices = ",".join(map(str, range(i * share, (i + 1) * share)))
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(n),
        "JAX_PROCESS_ID": str(i),
        "PJRT_NPROC": str(max(cores() // n, 1)),
        **({"JAX_LOCAL_DEVICE_IDS": devices} if devices else {}),
    }


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class _Signals:
    """Passes Ctrl-C and SIGTERM on to all processes while it is active."""

    def __init__(self, processes: Sequence[subprocess.Popen[Any]]) -> None:
        self.processes, self.received, self.before = processes, 0, dict[int, Any]()

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, _: object) -> None:
        self.received = number
        self.send(number)

    def send(self, number: int) -> None:
        """Sends a signal to the processes that are running."""
        for process in self.processes:
            process.send_signal(number)  # ignored by Popen after the process has ended


def run(words: Sequence[str], n: int, *, grace: float = GRACE) -> tuple[int, bool]:
    """Runs a command in `n` processes and waits for all of them.

    Args:
      words: the command line.
      n: number of processes.
      grace: seconds that the other processes have after one has failed; then they are killed.

    Returns:
      The exit status, and whether this process was asked to stop. The status is 0 if all processes
      succeed, 75 if one of them has 75, and otherwise that of the first failure; a process that a
      signal ended has 128 plus its number, as in a shell.

    Raises:
      ValueError: the command cannot be started, or there are too few GPUs.
    """
    port, gpus, folder = free_port(), gpu_count(), Path(tempfile.mkdtemp(prefix="tl-local-"))
    logs = [folder / f"process{i}.txt" for i in range(n)]
    processes: list[subprocess.Popen[Any]] = []
    failed: list[int] = []  # in the order in which they ended
    deadline = float("inf")
    with _Signals(processes) as signals:
        try:
            processes += _start(words, [environment(i, n, port, gpus) for i in range(n)], logs)
        except ValueError:
            signals.send(signal.SIGKILL)
            raise
        if signals.received:  # while they started
            signals.send(signals.received)
        if n > 1:
            text = f"{n} processes; the output of the others is in {folder}"
            print(f"local: {text}", file=sys.stderr, flush=True)
        running = set(range(n))
        while running:
            for i in sorted(running):
                if (code := processes[i].poll()) is not None:
                    running.discard(i)
                    if code:
                        failed.append(i)
            if failed and deadline == float("inf"):
                deadline = time.monotonic() + grace
            if running and time.monotonic() > deadline:
                names = ", ".join(map(str, sorted(running)))
                text = f"process {failed[0]} ended {grace:g} s ago; killing {names}"
                print(f"local: {text}", file=sys.stderr, flush=True)
                for i in running:
                    processes[i].kill()
                deadline = time.monotonic() + grace
            time.sleep(0.02)
    statuses = [code if code >= 0 else 128 - code for code in (p.wait() for p in processes)]
    if not failed:
        shutil.rmtree(folder, ignore_errors=True)
        return 0, bool(signals.received)
    print(*_last_lines(failed, statuses, logs), sep="\n", file=sys.stderr, flush=True)
    return PREEMPTED if PREEMPTED in statuses else statuses[failed[0]], bool(signals.received)


def _start(
    words: Sequence[str], variables: Sequence[Mapping[str, str]], logs: Sequence[Path]
) -> Iterator[subprocess.Popen[Any]]:
    """Starts one process per entry of `variables`.

    Each has a process group of its own, so that a terminal sends Ctrl-C to this process alone.
    """
    if shutil.which(words[0]) is None:
        raise ValueError(f"cannot start {words[0]!r}; check that it is a program")
    try:
        for i, added in enumerate(variables):
            file = open(logs[i], "wb") if i else None
            yield subprocess.Popen(
                tied(words),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file and subprocess.STDOUT,
                env={**os.environ, **added},
                process_group=0,
            )
            if file:
                file.close()
    except OSError as error:
        raise ValueError(f"cannot start {words[0]!r} ({error.strerror})") from error


def _last_lines(
    failed: Sequence[int], statuses: Sequence[int], logs: Sequence[Path]
) -> Iterator[str]:
    """The last lines of the process that failed first, and the last line of the others, once."""
    shown = set[str]()
    for i in failed:
        yield f"local: process {i} ended with status {statuses[i]}"
        if i and logs[i].exists():
            lines = logs[i].read_text(encoding="utf-8", errors="replace").splitlines()
            lines = lines[-_LINES if i == failed[0] else -1 :]
            text = "\n".join(f"  {line}" for line in lines)
            if text and text not in shown:
                yield text
            shown.add(text)


def main(words: Sequence[str]) -> int:
    """Runs `local` with its command line and returns the exit status."""
    try:
        options, command = parse(words)
        for times in range(options.restart + 1):
            status, stopped = run(command, options.processes)
            if status != PREEMPTED or stopped or times == options.restart:
                return status
            command = resumed(command)
            text = f"preempted; restart {times + 1} of {options.restart}: {shlex.join(command)}"
            print(f"local: {text}", file=sys.stderr, flush=True)
        return status
    except ValueError as error:
        print(f"local: {one_line(str(error))}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
