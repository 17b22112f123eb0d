"""The messages that end a command, and standard output that cannot fail.

A message is one line of at most `MAX_MESSAGE` characters. What it leaves out is written to a file
that it names.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tl import storage
from tl.paths import ending, printable, shortened

ERROR = "error.txt"
"""The file in the folder of a run that holds a message in full."""
MAX_MESSAGE = 600
"""Largest number of characters of a message on the terminal."""
# Longest path of that file; a longer one would fill the message. Chosen, not tuned.
_MAX_PATH = 300


def error_message(text: str, details: Iterable[str] = (), folder: Path | None = None) -> str:
    """A message for the terminal: one line of at most `MAX_MESSAGE` characters.

    A longer message, and the details that it leaves out, are written to a file that it names.

    Args:
      text: the message.
      details: sentences that the message summarizes, as in `tl.types.DetailedError`.
      folder: folder for the file; None, or a folder that cannot be written: a temporary folder.
    """
    message, lines = one_line(text), [one_line(line) for line in details]
    if len(message) <= MAX_MESSAGE and all(line in message for line in lines):
        return message
    path = _write("\n".join([message, *lines, ""]), folder)
    end = f"; the whole message is in {path!r}" if path else ""
    if len(message) + len(end) <= MAX_MESSAGE:
        return message + end
    # A space too many makes a message of the largest length give way to the name of the file.
    return shortened(message.ljust(MAX_MESSAGE + 1), MAX_MESSAGE, end)


def sentence(error: Exception) -> str:
    """The sentence for an error: its own, or the cause and what to do for one of the system.

    Args:
      error: a `ValueError`, an error of the file system, or one of too little memory.
    """
    if not isinstance(error, OSError | ValueError):  # of Python, NumPy or JAX
        reason = shortened(one_line(str(error)) or "out of memory", 200)
        return f"there is too little memory ({reason}); use smaller images or batches"
    if not isinstance(error, OSError):
        return str(error)
    file = f" {ending(os.fsdecode(error.filename), 200)!r}" if error.filename else " a file"
    reason = error.strerror or str(error) or type(error).__name__
    return (
        f"cannot read or write{file} ({reason}); check this path, its permissions and the free "
        "disk space"
    )


def interrupted(folder: Path | None, *, resumable: bool = False) -> str:
    """The message after Ctrl-C: which parts of a run are on disk.

    Args:
      folder: the folder of the run; None before it is open.
      resumable: whether the command has the flag --resume.
    """
    if not folder:
        return "interrupted before it began"
    if (folder / "result.json").exists():
        return f"interrupted; the result is in {str(folder)!r}"
    rows = resumable and (folder / "metrics.jsonl").exists()
    parts = [part for part in ("model", "checkpoints") if (folder / part).is_dir()]
    parts = parts or ["metrics.jsonl"] * rows
    message = "interrupted before it was done; no result.json was written"
    if parts:
        message += f"; {str(folder)!r} has {' and '.join(parts)}"
    return message + "; add --resume to continue" * (resumable and parts not in ([], ["model"]))


def one_line(text: str) -> str:
    """The text on one line, without control characters, which would change a terminal.

    Example:
      >>> one_line("two\\nlines, \\x1b[31mred")
      'two lines, \\\\x1b[31mred'
    """
    text = " ".join(line.strip() for line in printable(text).splitlines())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _write(text: str, folder: Path | None) -> str:
    """Writes a message in full and returns the path of the file; "" if none can be written."""
    if folder and len(str(folder)) <= _MAX_PATH:
        try:
            storage.write_whole(folder / ERROR, text.encode("utf-8"))
            return str(folder / ERROR)
        except OSError:
            pass
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix="tl-", suffix=".txt", delete=False
        ) as file:
            file.write(text)
    except OSError:  # such as TMPDIR without a folder
        return ""
    return file.name


class _Output(io.FileIO):
    """A file that drops what it cannot write: to a closed pipe, as of `| head`, or a full disk."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def make_output_safe() -> None:
    """Lets a run go on if its output is closed, and escapes what a terminal cannot show.

    It replaces `sys.stdout` and `sys.stderr`, unless something else has replaced them.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed, as by `>&-`: a file of the run must not take its number
            os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, open(os.devnull, "w"))
        elif stream is getattr(sys, f"__{name}__"):
            stream.flush()
            setattr(
                sys,
                name,
                io.TextIOWrapper(
                    io.BufferedWriter(_Output(number, "w", closefd=False)),
                    encoding=stream.encoding,
                    errors="backslashreplace",
                    line_buffering=number == 2 or stream.isatty(),
                ),
            )
