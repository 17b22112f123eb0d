"""What this process knows of itself, the other processes, and SIGTERM."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any

import jax

PREEMPTED = 75
"""Exit status after SIGTERM, on which a launcher starts the command again (EX_TEMPFAIL)."""
FAILED = 1
"""Exit status after an error, also of another process."""

# Seconds to wait for the other processes at the start, between two signs of life, without a sign of
# life of another process, and from SIGTERM to the end of a process that still works. Chosen, not
# tuned: a spot machine has 30 s after SIGTERM.
# A variable such as TL_JOIN_SECONDS sets another number.
_seconds = lambda name, default: float(os.environ.get(f"TL_{name}_SECONDS") or default)
JOIN, BEAT = _seconds("JOIN", 50), 2.0
SILENCE, GRACE = _seconds("SILENCE", 30), _seconds("GRACE", 25)
# Seconds without progress after which the stacks are written.
STUCK = 600.0


class Preempted(BaseException):
    """The work ends because of SIGTERM; what there was to save is saved."""


@dataclasses.dataclass
class State:
    """What this process knows of itself and the others."""

    index: int = 0
    count: int = 1
    client: Any = None
    deferred: int = 0
    signalled: float | None = None  # time of SIGTERM, here or in another process
    progress: int = 0
    seen: dict[int, tuple[str, float]] = dataclasses.field(default_factory=dict)
    leaving: bool = False


STATE = State()


def count() -> int:
    """The number of processes."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """The number of this process, from 0."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def first() -> bool:
    """Whether this is process 0, which writes the files of a run."""
    return index() == 0


def name() -> str:
    """This process in a message, such as "process 1 of 4"."""
    return f"process {STATE.index} of {STATE.count}"


def signalled() -> bool:
    """Whether this process, or another one as far as it is known, has received SIGTERM."""
    return STATE.signalled is not None


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A block of work that ends by itself after SIGTERM, because it has something to save."""
    STATE.deferred += 1
    try:
        yield
    finally:
        STATE.deferred -= 1


def stop_together() -> None:
    """Raises `Preempted` in a `deferred` block; for a place where all processes know of SIGTERM."""
    STATE.signalled = STATE.signalled or time.monotonic()
    if STATE.deferred:
        raise Preempted


def advance() -> None:
    """Counts a step of progress, without which the stacks are written after `STUCK` seconds."""
    STATE.progress += 1
