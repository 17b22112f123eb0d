"""Pictures from disk as fixed-shape batches, decoded in threads (Grain) or processes; a broken picture never stops the run.

Two ways through a set: `load` reads a list once, in its order; `stream` reads it for training, epoch after epoch, in the
order of a `Plan`. A plan is a pure function of (seed, epoch), so the position of a stream is one number, the step: the
same batches come whatever the number of threads or processes that decode them, and a run that goes on from step k sees
what the uninterrupted one saw. `prefetch` keeps batches on the device ahead of the training loop.

Nothing is augmented here (`tl.data.augment` does that on the device) and nothing is cached: features are kept by
`tl.features`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl.data.decode import ImageError, decode
from tl.data.spec import Skipped, Source

MAX_THREADS = 16  # chosen, not tuned: decoding leaves the interpreter's lock, the rest of Python does not
MAX_WORKERS = 8  # chosen, not tuned: each holds its own interpreter and jax, some 300 MB

Transform = Callable[[np.ndarray], np.ndarray]
"""uint8[h w 3] of any size -> an array of one fixed shape and dtype, e.g. uint8[s s 3]."""


class Batch(NamedTuple):
    """`b` slots, some of which may hold no picture.

    Attributes:
      images: uint8[b s s 3] as `transform` returns them; a slot without a picture holds the transform of black.
      valid: bool[b], False where the picture was broken or the batch is padded.
      index: int32[b], position in the list of sources; -1 where the batch is padded.
      skipped: the broken pictures of this batch.
    """

    images: np.ndarray
    valid: np.ndarray
    index: np.ndarray
    skipped: tuple[Skipped, ...]


# --- one ordered pass --------------------------------------------------------------------------------------------------


def load(
    paths: Sequence[Source | str],
    transform: Transform,
    *,
    batch_size: int,
    threads: int | None = None,
) -> Iterator[Batch]:
    """The pictures of `paths`, in their order, as batches of one shape.

    Args:
      paths: picture files, or other sources that `decode` takes.
      transform: runs in threads.
      batch_size: slots in every batch, the last one included.
      threads: decoding threads; default one a core, at most `MAX_THREADS`.

    Returns:
      An iterator of `Batch`, ceil(len(paths) / batch_size) of them.

    Raises:
      ValueError: `batch_size` below 1, or, while iterating, a transform whose results differ in shape or dtype.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, wanted at least 1")
    return _batches(_sources(paths), transform, batch_size, threads or min(cores(), MAX_THREADS))


def _batches(sources: list[Source], transform: Transform, batch_size: int, threads: int) -> Iterator[Batch]:
    import grain  # here, for it costs a second and `import tl` should not

    reader = _Reader(sources, transform)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * batch_size, threads))
    pictures = grain.MapDataset.source(range(len(sources))).map(reader.read).to_iter_dataset(options)
    collate = functools.partial(reader.collate, batch_size=batch_size)
    yield from pictures.batch(batch_size, drop_remainder=False, batch_fn=collate)


class _Reader:
    """Decodes and collates; picklable, for decoding in other processes."""

    def __init__(self, sources: list[Source], transform: Transform):
        self.sources, self.transform = sources, transform
        self.blank = transform(np.zeros((64, 64, 3), np.uint8))  # of an empty slot; fixes the shape before any picture

    def read(self, index: int) -> tuple[int, np.ndarray | Skipped]:
        source, blank = self.sources[index], self.blank
        try:
            image = self.transform(decode(source))
        except ImageError as error:
            return index, Skipped(str(source), error.why)
        if image.shape != blank.shape or image.dtype != blank.dtype:
            raise ValueError(
                f"transform gave {image.dtype}{list(image.shape)} for {source} and {blank.dtype}"
                f"{list(blank.shape)} for a black picture, wanted one shape for all: let it crop to a fixed size"
            )
        return index, image

    def collate(self, items: Iterable[tuple[int, np.ndarray | Skipped]], batch_size: int) -> Batch:
        images = np.broadcast_to(self.blank, (batch_size, *self.blank.shape)).copy()
        valid, index, skipped = np.zeros(batch_size, bool), np.full(batch_size, -1, np.int32), []
        for slot, (position, item) in enumerate(items):
            index[slot] = position
            if isinstance(item, Skipped):
                skipped.append(item)
            else:
                images[slot], valid[slot] = item, True
        return Batch(images, valid, index, tuple(skipped))


def _sources(paths: Sequence[Source | str]) -> list[Source]:
    return [Path(path) if isinstance(path, str) else path for path in paths]


# --- which picture stands where ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which of `n` examples stand in which step, for all epochs: a pure function of the seed.

    An epoch is every example once, shuffled anew; with `weights` it is n draws with replacement (a sampler that balances
    classes). Its last batch is padded, so that all batches have one shape and no example is left out.

    Attributes:
      n: examples.
      batch_size: slots in a batch.
      epochs: passes over the examples.
      seed: of the NumPy generator (PCG64), together with the epoch's number.
      weights: f64[n], how often each example is drawn, in any unit; see `balanced`.

    Raises:
      ValueError: a number below 1 (`seed`: below 0), or weights that are not n numbers of which one is above 0.

    Example:
      >>> plan = Plan(n=3, batch_size=2, epochs=2, seed=1)
      >>> [plan.rows(step).tolist() for step in range(len(plan))]
      [[0, 1], [2, -1], [2, 0], [1, -1]]
    """

    n: int
    batch_size: int
    epochs: int
    seed: int
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        for field, least in (("n", 1), ("batch_size", 1), ("epochs", 1), ("seed", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"a plan's {field} is {getattr(self, field)}, wanted at least {least}")
        if self.weights is not None:
            found = np.asarray(self.weights)
            if found.shape != (self.n,) or not (np.isfinite(found).all() and found.min() >= 0 and found.max() > 0):
                raise ValueError(
                    f"a plan's weights are {found.dtype}{list(found.shape)}, wanted {self.n} finite numbers, one an "
                    "example, none below 0 and one above"
                )

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the padded one included."""
        return -(-self.n // self.batch_size)

    def __len__(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_per_epoch

    def rows(self, step: int) -> np.ndarray:
        """int32[b], the examples of a step in [0, len(self)); -1 is padding."""
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of a plan of {len(self)} steps")
        epoch, batch = divmod(step, self.steps_per_epoch)
        rows = np.full(self.batch_size, -1, np.int32)
        part = _order(self, epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        rows[: len(part)] = part
        return rows

    def identity(self) -> dict[str, int | str]:
        """What decides the order of the batches, JSON-ready; more epochs go on in the same order and do not count."""
        weights = None if self.weights is None else np.asarray(self.weights, np.float64)
        drawn = "" if weights is None else hashlib.sha256(weights.tobytes()).hexdigest()[:16]
        return {"n": self.n, "batch_size": self.batch_size, "seed": self.seed, "weights": drawn}


@functools.lru_cache(maxsize=4)  # threads ahead of an epoch's end ask for two by turns
def _order(plan: Plan, epoch: int) -> np.ndarray:
    rng = np.random.default_rng([plan.seed, epoch])
    if plan.weights is None:
        return rng.permutation(plan.n)
    weights = np.asarray(plan.weights, np.float64)
    return rng.choice(plan.n, plan.n, p=weights / weights.sum())


def class_weights(labels: np.ndarray, k: int) -> np.ndarray:
    """Weights of classes in a loss that make each class that is there count alike.

    Args:
      labels: int[n] in [0, k).
      k: number of classes.

    Returns:
      f32[k], inversely proportional to the class's share; the mean over the n examples is 1, so the loss keeps its
      scale and the learning rate its meaning. A class without an example has 0: nothing asks for its weight.

    Example:
      >>> class_weights(np.array([0, 0, 0, 1]), 3).tolist()
      [0.6666666865348816, 2.0, 0.0]
    """
    counts = np.bincount(labels, minlength=k)
    present = counts > 0
    return np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1)), 0.0).astype(np.float32)


def balanced(labels: np.ndarray) -> np.ndarray:
    """`Plan.weights` that draw each class equally often: f64[n], in sum 1, of labels int[n] that are at least 0."""
    counts = np.bincount(labels)
    return 1.0 / (np.count_nonzero(counts) * counts[labels])


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


class Stream(Feed):
    """The batches of a plan; made by `stream`."""

    def __init__(
        self, sources: Sequence[Source | str], transform: Transform, plan: Plan, start: int, workers: int, threads: int
    ):
        super().__init__()
        self._reader, self._plan = _Reader(_sources(sources), transform), plan
        self._workers, self._threads = workers, threads
        self._batches: Any = None
        self._go_to(start)

    def _go_to(self, step: int) -> None:
        if not 0 <= step <= len(self._plan):
            raise ValueError(f"the stream is to start at step {step}, wanted at most {len(self._plan)}, its plan's end")
        self.close()
        self._step, self._batches = step, _decoded(self._reader, self._plan, step, self._workers, self._threads)

    def _next(self) -> Batch:
        if self._batches is None:
            raise ValueError("the stream of pictures is closed, wanted an open one")
        try:
            batch = next(self._batches)
        except Exception as error:
            if not isinstance(error, StopIteration):
                self.close()  # or a second `next` would find the end
            raise
        self._step += 1
        return batch

    def state(self) -> dict[str, Any]:
        """The position, JSON-ready: the step of the next batch, and what decides its content."""
        return {"step": self._step, **self._plan.identity()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes to a position that `state` told, perhaps in another process with another number of workers.

        Raises:
          ValueError: it is the position of another plan; what differs is named.
        """
        ours = self._plan.identity()
        if wrong := [f"{k} was {state.get(k)!r}, is {v!r}" for k, v in ours.items() if state.get(k) != v]:
            raise ValueError(
                f"the position saved belongs to other batches: {'; '.join(wrong)}; wanted the same as then"
            )
        self._go_to(state["step"])

    def close(self) -> None:
        """Ends threads and processes; a second call does nothing."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None


def stream(
    sources: Sequence[Source | str],
    transform: Transform,
    plan: Plan,
    *,
    start: int = 0,
    workers: int = 0,
    threads: int | None = None,
) -> Stream:
    """The pictures of `sources` in the order of `plan`, one `Batch` a step.

    Batches are the same, bit by bit, whatever `workers` and `threads`. Processes are spawned, not forked (a fork beside
    XLA's threads can hang), so a script that uses them keeps its work under `if __name__ == "__main__"`; they end with
    the process that started them, however it ends.

    Args:
      sources: picture files, or other sources that `decode` takes; `plan.n` of them.
      transform: with `workers`, picklable: `functools.partial(pixels.prepare, spec)` is.
      plan: which pictures stand in which step.
      start: the step to begin with.
      workers: decoding processes; 0 decodes in threads of this one, see `auto_workers`.
      threads: decoding threads where `workers` is 0; default one a core, at most `MAX_THREADS`.

    Returns:
      A `Stream` of len(plan) - start batches; a picture that cannot be read leaves its slot empty and is in `skipped` of
      each batch that it was to stand in. Close it, or use it in a `with`.

    Raises:
      ValueError: a plan for another number of pictures, or `start` beyond its end; while iterating, a transform whose
        results differ in shape or dtype, or a worker that was killed.
    """
    if len(sources) != plan.n:
        raise ValueError(f"the plan is for {plan.n} pictures and there are {len(sources)}, wanted as many")
    return Stream(sources, transform, plan, start, workers, threads or min(cores(), MAX_THREADS))


def _decoded(reader: _Reader, plan: Plan, start: int, workers: int, threads: int) -> Any:
    """An iterator over the steps from `start` on, to be closed; nothing is started before its first `next`."""
    if workers:
        return _in_processes(reader, plan, start, workers)
    import grain

    steps = grain.MapDataset.source(range(start, len(plan))).map(functools.partial(_read_step, reader, plan))
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)))


def _read_step(reader: _Reader, plan: Plan, step: int) -> Batch:
    rows = plan.rows(step)
    return reader.collate((reader.read(int(row)) for row in rows if row >= 0), plan.batch_size)


def _in_processes(reader: _Reader, plan: Plan, start: int, workers: int) -> Iterator[Batch]:
    """Worker k reads the steps start + k, start + k + workers, ...; each has a pipe of its own, and they share no lock.

    So a process that is killed, in the middle of a batch too, is the end of its pipe and nothing else: Grain's workers share
    queues and events with their parent, and one that dies with a lock or half a batch leaves the parent waiting for ever.
    """
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for k in range(min(workers, len(plan) - start)):
            ours, theirs = spawn.Pipe(duplex=False)
            steps = range(start + k, len(plan), workers)
            process = spawn.Process(target=_send_steps, args=(theirs, reader, plan, steps), daemon=True)
            process.start()
            theirs.close()  # the only writer left is the process, so its death ends the pipe
            pipes.append(ours)
            processes.append(process)
        for step in range(start, len(plan)):
            try:
                batch = pipes[(step - start) % workers].recv()
            except (EOFError, OSError) as error:  # the latter in the middle of a batch
                raise ValueError(
                    f"a process that decodes pictures was killed at step {step}, often because memory ran out; "
                    f"take fewer than {workers} workers, or none"
                ) from error
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _send_steps(pipe: Any, reader: _Reader, plan: Plan, steps: range) -> None:
    """In a new process. It ends with its parent, however that ends: a pipe that nobody reads breaks. Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for step in steps:
        try:
            item = _read_step(reader, plan, step)
        except Exception as error:
            error.add_note(f"in a process that decodes pictures, at step {step}: {traceback.format_exc()}")
            item = error
        try:
            pipe.send(item)
        except ConnectionError:
            return


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
        self._ready: queue.Queue[tuple[Any, dict[str, Any], BaseException | None]] = queue.Queue(depth)
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        failure: BaseException | None = None
        while failure is None and not self._closed:
            item, position = None, {}
            try:
                item = self._put(next(self._feed))
                position = self._feed.state() if isinstance(self._feed, Feed) else {}
            except BaseException as error:  # StopIteration among them: handed to the consumer, after what came before
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
