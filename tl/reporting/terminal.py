"""Text on the terminal or in a log: tables, and the progress of long work."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TextIO, TypeVar

from tl import hosts

Item = TypeVar("Item")


def columns(header: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> str:
    """A table for the terminal; columns of numbers are aligned right."""
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]

    def words(cell: str | int | float) -> str:
        if isinstance(cell, int):
            return f"{cell:,}"
        return f"{cell:.4g}" if isinstance(cell, float) else cell

    lines = [list(header), *([words(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        for row in lines
    )
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def progress(
    iterable: Iterable[Item],
    total: int | None = None,
    label: str = "",
    *,
    stream: TextIO | None = None,
) -> Iterator[Item]:
    """Yields the items and shows progress: a bar on a terminal, about ten lines in a log.

    Args:
      iterable: the items.
      total: number of items, shown and not enforced; by default `len(iterable)` if it has one.
      label: name of the work, shown at the start of the line.
      stream: the output; by default stderr.
    """
    if not hosts.first():
        yield from iterable
        return
    out: TextIO = sys.stderr if stream is None else stream
    total = len(iterable) if total is None and isinstance(iterable, Sized) else total
    terminal, began, drawn_at, done, due = out.isatty(), time.monotonic(), -1.0, 0, 1

    def line() -> str:
        spent = max(time.monotonic() - began, 1e-9)
        rate = f"{done / spent:.3g}/s" if done else ""
        if not total:
            return f"{label}  {done}  {rate}"
        left = _clock(spent) if done >= total else ""
        if 0 < done < total:
            left = f"{_clock(spent * (total - done) / done)} left"
        full = round(20 * min(1.0, done / total))
        bar = "\u2588" * full + "\u2591" * (20 - full) + "  " if terminal else ""
        return f"{label}  {bar}{done}/{total}  {rate}  {left}"

    def show() -> None:
        text = line().strip()
        if terminal:
            text = "\r" + text[: shutil.get_terminal_size().columns - 1] + "\x1b[K"
        out.write(text if terminal else text + "\n")
        out.flush()

    try:
        if terminal:
            show()
        for item in iterable:
            yield item
            done += 1
            if terminal and time.monotonic() - drawn_at > 0.1:  # ten times per second
                drawn_at = time.monotonic()
                show()
            elif not terminal and done >= due:
                show()
                due = 4 * done
                if total and done < total:
                    due = math.ceil((done * 10 // total + 1) * total / 10)
    finally:
        if terminal:
            show()
            out.write("\n")


def _clock(seconds: float) -> str:
    hours, minutes = int(seconds) // 3600, int(seconds) // 60
    if hours:
        return f"{hours}:{minutes % 60:02}:{int(seconds) % 60:02}"
    return f"{minutes}:{int(seconds) % 60:02}"
