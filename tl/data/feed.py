"""What a training loop reads: batches of one shape, prefetched."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

MAX_WORKERS = 8  # chosen, not tuned: each holds its own interpreter and jax, some 300 MB


# --- the batches of a plan ---------------------------------------------------------------------------------------------


class Feed(Iterator[Any]):
    """An iterator of batches that knows its position, and how long its consumer had to wait.

    Attributes:
      seconds_waiting: spent inside `next()` so far. The last feed before the training loop tells what the loop lost.
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
        """The position, JSON-ready: the batch after the last that `next()` returned."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends threads and processes; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def auto_workers() -> int:
    """Decoding processes that suit this machine.

    None below 4 cores: XLA computes on all of them, a process would only add an interpreter and 300 MB to what threads
    do at the same speed. Else one core less than there are, at most `MAX_WORKERS`: beyond a few threads the
    interpreter's lock, which Pillow leaves and the rest of Python does not, would hold them up.
    """
    return 0 if cores() < 4 else min(cores() - 1, MAX_WORKERS)


# --- ahead of the training loop ----------------------------------------------------------------------------------------


class Prefetched(Feed):
    """Batches that a thread takes from a feed and puts on the device; made by `prefetch`."""

    def __init__(self, feed: Iterator[Any], put: Callable[[Any], Any], depth: int):
        super().__init__()
        self._feed, self._put, self._closed = feed, put, False
        self._position = feed.state() if isinstance(feed, Feed) else {}
        self._ready: queue.Queue[tuple[Any, dict[str, Any], BaseException | None]] = queue.Queue(
            depth
        )
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        failure: BaseException | None = None
        while failure is None and not self._closed:
            item, position = None, {}
            try:
                item = self._put(next(self._feed))
                position = self._feed.state() if isinstance(self._feed, Feed) else {}
            except (
                BaseException
            ) as error:  # StopIteration among them: handed to the consumer, after what came before
                failure = error
            self._ready.put((item, position, failure))

    def _next(self) -> Any:
        if self._closed:
            raise ValueError("the prefetched batches are closed, wanted open ones")
        item, position, failure = self._ready.get()
        if failure is not None:
            self._ready.put((None, position, failure))  # for whoever asks again
            raise failure
        self._position = position
        return item

    def state(self) -> dict[str, Any]:
        """The feed's position after the last batch that was handed out, however far ahead the feed is; {} without one."""
        return self._position

    def close(self) -> None:
        """Ends the thread, then closes what it read from."""
        self._closed = True
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get(timeout=0.05)  # it may wait for room
        if isinstance(self._feed, Feed):
            self._feed.close()


def prefetch(feed: Iterator[Any], put: Callable[[Any], Any], depth: int = 2) -> Prefetched:
    """Keeps `depth` batches ahead of the consumer, in order, in a thread that starts at once.

    Args:
      feed: a `Stream`, or any iterator.
      put: batch -> what the consumer gets; `lambda batch: jax.device_put(batch.images, sharding)`.
      depth: batches waiting on the device, at least 1.

    Returns:
      A `Prefetched`: its `seconds_waiting` is what the training loop lost, its `state()` the position to save. What `feed`
      or `put` raises is raised after the batches before it.
    """
    if depth < 1:
        raise ValueError(f"prefetch's depth is {depth}, wanted at least 1")
    return Prefetched(feed, put, depth)
