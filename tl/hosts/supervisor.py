"""The main thread of a command: signals, signs of life, stacks of a process that is stuck."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import jax

from tl import storage
from tl.hosts.state import BEAT, FAILED, GRACE, PREEMPTED, SILENCE, STATE, STUCK, name, signalled


def supervise(
    work: Callable[[], None],
    folder: Callable[[], Path | None] = lambda: None,
    ended: Callable[[], str] = lambda: "interrupted",
) -> None:
    """Runs `work` in a thread, so that signals are handled while compiled code runs.

    An exception in `work` is raised again here.

    Args:
      work: the work of a command.
      folder: the folder of the run, which gets the file with the stacks; None before it is open.
      ended: the message after SIGTERM.
    """
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # raised again in the main thread
            failures.append(error)

    worker = threading.Thread(target=guarded, daemon=True)
    with _sigterm(), contextlib.ExitStack() as stack:
        watch = _Watch(folder, ended, stack)
        worker.start()
        while worker.is_alive():
            worker.join(0.1)
            watch.look()
    if failures:
        raise failures[0]
    if STATE.client is not None and STATE.count > 1:
        STATE.client.key_value_set(f"tl/done/{STATE.index}", "1", True)


@contextlib.contextmanager
def _sigterm() -> Iterator[None]:
    """Records SIGTERM; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def record(number: int, frame: Any) -> None:
        STATE.signalled = STATE.signalled or time.monotonic()

    before = signal.signal(signal.SIGTERM, record)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Watch:
    """The looks of the main thread at signals, the other processes, and progress."""

    def __init__(
        self,
        folder: Callable[[], Path | None],
        ended: Callable[[], str],
        stack: contextlib.ExitStack,
    ):
        self._folder, self._ended, self._stack = folder, ended, stack
        self._beat = self._armed = -1e9
        self._progress = -1
        self._file: TextIO | None = None

    def look(self) -> None:
        now = time.monotonic()
        if STATE.signalled is not None:
            if not STATE.deferred or now - STATE.signalled > GRACE:
                leave(PREEMPTED, self._ended())
        if now - self._beat > BEAT:
            self._beat = now
            if STATE.client is not None and STATE.count > 1:
                exchange_signs()
        if now - self._armed > STUCK / 60 and STATE.progress != self._progress:
            self._arm()
            self._armed, self._progress = now, STATE.progress

    def _arm(self) -> None:
        """Lets the stacks be written unless there is progress; by a thread that needs no lock."""
        folder = self._folder()
        if self._file is None and folder is not None:
            try:
                path = folder / f"stacks-{STATE.index}.txt"
                self._file = self._stack.enter_context(open(path, "w", encoding="utf-8"))
                self._stack.callback(lambda: path.stat().st_size or path.unlink())
                self._stack.callback(faulthandler.cancel_dump_traceback_later)
            except OSError:  # such as a bucket
                self._file = sys.__stderr__
        if self._file is not None:
            faulthandler.dump_traceback_later(STUCK, file=self._file)


def exchange_signs() -> None:
    """Shows the others that this process lives, and ends it if one of them has stopped."""
    client, now = STATE.client, time.monotonic()
    try:
        client.key_value_set(f"tl/alive/{STATE.index}", f"{now}", True)
        if signalled():
            client.key_value_set(f"tl/signalled/{STATE.index}", "1", True)
        signs = dict(client.key_value_dir_get("tl/"))
    except jax.errors.JaxRuntimeError:
        leave(FAILED, "process 0 stopped: its service does not answer")
        return
    if any(key.startswith("tl/signalled/") for key in signs):
        STATE.signalled = STATE.signalled or now
    for i in range(STATE.count):
        if i == STATE.index:
            continue
        if text := signs.get(f"tl/stopped/{i}"):
            status, _, message = text.partition(" ")
            if int(status) != PREEMPTED:
                leave(FAILED, f"process {i} of {STATE.count} stopped: {message}")
            elif not signalled():
                STATE.signalled = now
        sign = signs.get(f"tl/alive/{i}", "")
        before, since = STATE.seen.get(i, ("", now))
        STATE.seen[i] = (sign, since if sign == before else now)
        if sign and now - STATE.seen[i][1] > SILENCE and f"tl/done/{i}" not in signs:
            leave(FAILED, f"process {i} of {STATE.count} gives no sign of life")


def leave(status: int, message: str) -> None:
    """Ends this process at once; the others receive the message.

    Args:
      status: `PREEMPTED` or `FAILED`.
      message: the sentence for the terminal.
    """
    if STATE.leaving:
        return
    STATE.leaving = True
    announce(status, message)
    if STATE.index == 0:
        _wait_for_others()  # they need the service of this process
    prefix = f"{name()}: " if STATE.count > 1 else ""
    print(f"{prefix}{message}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError, ValueError):
        storage.flush()  # rows of metrics in a bucket
        sys.stdout.flush()
    os._exit(status)


def announce(status: int, message: str) -> None:
    """Announces to the other processes that this one stops."""
    if STATE.client is not None and STATE.count > 1:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            text = f"{status} {message[:400]}"
            STATE.client.key_value_set(f"tl/stopped/{STATE.index}", text, True)


def _wait_for_others() -> None:
    """Waits a few seconds until the others have stopped too."""
    until = time.monotonic() + 10
    while STATE.client is not None and STATE.count > 1 and time.monotonic() < until:
        if len(STATE.client.key_value_dir_get("tl/stopped/")) == STATE.count:
            return
        time.sleep(0.1)


def wait_for_reason() -> None:
    """After a failed exchange: ends this process with the reason, if another one has stopped."""
    until = time.monotonic() + SILENCE + 3 * BEAT
    while STATE.client is not None and time.monotonic() < until:
        exchange_signs()
        time.sleep(BEAT / 4)
