"""Command lines as lists of words: the values of their flags, and how to repeat them.

The flags themselves are defined by the command (`tl.cli`); this module does not know them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tl.paths import expanded

ROOT = Path(__file__).resolve().parents[2]
"""The folder of the checkout, which holds `experiments/` and `launch.sh`."""


def flag_value(words: Sequence[str], name: str) -> str:
    """The value of the last `--name=value` or `--name value` in a command line; "" for none.

    Example:
      >>> flag_value(["transfer", "--lr=1", "--lr", "2"], "lr")
      '2'
    """
    value = ""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        flag, equals, rest = word.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            value = rest if equals else after
    return value


def resumed(words: Sequence[str]) -> list[str]:
    """The command line that continues a preempted run.

    `--resume` is added if `--workdir` holds checkpoints; otherwise the command starts again.
    """
    workdir = flag_value(words, "workdir")
    if "--resume" in words or not workdir or not any(expanded(workdir).glob("checkpoints/*/*")):
        return list(words)
    return [*words, "--resume"]


def tied(words: Sequence[str]) -> list[str]:
    """The command line, as a process that receives SIGTERM when this one ends, even if killed.

    Without `setpriv` of util-linux (Linux) it is unchanged.
    """
    tool = shutil.which("setpriv")
    if tool is None or "busybox" in os.path.realpath(tool):
        return list(words)
    return [tool, "--pdeathsig", "TERM", "--", *words]
