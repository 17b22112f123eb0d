"""Iterators over batches for a training loop: position, waiting time, prefetch to the device.

`BatchIterator` is the interface between a source of batches (`loader.Stream`, or cached features)
and the training loop; it has a position that can be saved, and it can be closed. `prefetch` runs
such an iterator in a thread and keeps batches on the device ahead of the loop. This module does not
depend on images; `loader.py` decodes them, and `plan.py` decides their order.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

# Chosen, not tuned: each process holds an interpreter and JAX, about 300 MB.
MAX_WORKERS = 8


class BatchIterator(Iterator[Any]):
    """An iterator over batches with a position, which measures how long its consumer waits.

    A subclass implements `_next`, `state` and `close`.

    Attributes:
      seconds_waiting: time spent in `next()` so far. For the last iterator before the training
        loop, it is the time that the loop waited for data.
    """

    def __init__(self) -> None:
        self.seconds_waiting = 0.0

    def __next__(self) -> Any:
        began = time.perf_counter()
        try:
            return self._next()
        finally:
            self.seconds_waiting += time.perf_counter() - began

    def _next(self) -> Any:
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """The position after the last batch that `next()` returned, JSON-ready."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends threads and processes; a second call has no effect."""
        raise NotImplementedError

    def __enter__(self) -> BatchIterator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cores() -> int:
    """Number of processor cores for this process; with `PJRT_NPROC`, that many, as XLA has."""
    if (chosen := os.environ.get("PJRT_NPROC", "")).isdecimal():
        return max(int(chosen), 1)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def auto_workers() -> int:
    """Number of decoding processes suited to this machine.

    Below 4 cores it is 0, because XLA computes on all of them, and a process would add an
    interpreter and 300 MB at the same speed as threads. Otherwise it is one less than the number of
    cores, at most `MAX_WORKERS`: beyond a few threads the interpreter lock becomes the bottleneck,
    which Pillow releases and other Python code does not.
    """
    return 0 if cores() < 4 else min(cores() - 1, MAX_WORKERS)


class Prefetched(BatchIterator):
    """Batches that a thread reads from an iterator and puts on the device; made by `prefetch`."""

    def __init__(self, batches: Iterator[Any], put: Callable[[Any], Any], depth: int):
        super().__init__()
        self._batches, self._put, self._closed = batches, put, False
        self._position = self._source_state()
        self._ready: queue.Queue[tuple[Any, dict[str, Any], BaseException | None]] = queue.Queue(
            depth
        )
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def _source_state(self) -> dict[str, Any]:
        return self._batches.state() if isinstance(self._batches, BatchIterator) else {}

    def _run(self) -> None:
        failure: BaseException | None = None
        while failure is None and not self._closed:
            item, position = None, {}
            try:
                item = self._put(next(self._batches))
                position = self._source_state()
            # StopIteration too: it reaches the consumer after the batches before it.
            except BaseException as error:
                failure = error
            self._ready.put((item, position, failure))

    def _next(self) -> Any:
        if self._closed:
            raise ValueError("the prefetched batches are closed; create new ones")
        item, position, failure = self._ready.get()
        if failure is not None:
            self._ready.put((None, position, failure))  # for later calls
            raise failure
        self._position = position
        return item

    def state(self) -> dict[str, Any]:
        """The position after the last batch that was returned, independent of the prefetch depth.

        It is {} if the source is not a `BatchIterator`.
        """
        return self._position

    def close(self) -> None:
        """Ends the thread, then closes the source."""
        self._closed = True
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get(timeout=0.05)  # frees a place if the thread waits for one
        if isinstance(self._batches, BatchIterator):
            self._batches.close()


def prefetch(batches: Iterator[Any], put: Callable[[Any], Any], depth: int = 2) -> Prefetched:
    """Reads up to `depth` batches ahead of the consumer, in a thread that starts at once.

    Args:
      batches: a `loader.Stream`, or any iterator.
      put: maps a batch to the item that the consumer gets, for example
        `lambda batch: jax.device_put(batch.images, sharding)`.
      depth: largest number of batches that wait on the device, at least 1.

    Returns:
      A `Prefetched`, in the order of `batches`. Its `seconds_waiting` is the time that the training
      loop waited for data, and its `state()` is the position to save. Errors of `batches` and `put`
      are raised after the batches before them.

    Raises:
      ValueError: `depth` is below 1.
    """
    if depth < 1:
        raise ValueError(f"`depth` must be at least 1: got {depth}")
    return Prefetched(batches, put, depth)
