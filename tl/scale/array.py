"""Arrays of SLURM: many commands in one job of `./launch.sh slurm`."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tl import reporting
from tl.scale.commands import ROOT


def submit(
    lines: Sequence[str], experiment: str, folder: Path, options: Sequence[str]
) -> str | None:
    """Submits commands as one array of SLURM and returns the answer of sbatch.

    None if the array of an earlier call is still queued or runs.

    Args:
      lines: the commands, each an experiment with its flags, the last one `--workdir`.
      experiment: its name.
      folder: the folder of the sweep; `jobs.txt` there holds the answer, and `cells.sh` a command
        per line, which the task of that number runs.
      options: of `./launch.sh slurm`.

    Raises:
      ValueError: SLURM refuses the array, or is not installed.
    """
    jobs = folder / "jobs.txt"
    if jobs.exists():
        number = jobs.read_text(encoding="utf-8").split()[-1]
        queue = _output(["squeue", "--noheader", f"--jobs={number}"], allow_failure=True)
        if queue.strip():  # a job that has ended is not listed, or unknown
            return None
    reporting.write_whole(folder / "cells.sh", "".join(f"{line}\n" for line in lines))
    words = [f"--array=1-{len(lines)}", *options, f"--cells={folder.absolute() / 'cells.sh'}"]
    answer = _output([str(ROOT / "launch.sh"), "slurm", *words, experiment])
    reporting.write_whole(jobs, answer)
    return answer.strip()


def _output(words: Sequence[str], *, allow_failure: bool = False) -> str:
    """The standard output of a command."""
    try:
        process = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ValueError(f"cannot run {words[0]} ({error.strerror}); give `on=here`") from error
    if process.returncode and not allow_failure:
        raise ValueError(f"{words[0]} failed: {reporting.one_line(process.stderr)}")
    return process.stdout
