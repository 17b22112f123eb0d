"""Images from disk as batches of one shape, decoded in threads (Grain) or in processes.

There are two ways to read a data set. `load` reads a list of images once, in its order. `stream`
reads it for training, epoch after epoch, in the order of a `plan.Plan`. Because a plan is a pure
function of seed and epoch, the position of a stream is one number, the step. The batches do not
depend on the number of threads or processes, and a run that is resumed at step k gets the batches
of the uninterrupted run.

An image that cannot be decoded never stops a run: its slot stays empty and the batch reports it.
This module does not augment (`augment.py` does, on the device) and does not cache;
`tl.inference.features` caches features.
"""

from __future__ import annotations

import functools
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl.data.decode import ImageError, decode
from tl.data.feed import BatchIterator, cores
from tl.data.plan import Plan
from tl.data.spec import Skipped, Source

# Chosen, not tuned: decoding releases the interpreter lock, but other Python code does not.
MAX_THREADS = 16

Transform = Callable[[np.ndarray], np.ndarray]
"""uint8[h w 3] of any size -> an array of one fixed shape and dtype, e.g. uint8[s s 3]."""


class Batch(NamedTuple):
    """A batch of `b` slots, some of which may be empty.

    Attributes:
      images: [b ...] with the shape and dtype of `transform`, such as uint8[b s s 3]. An empty slot
        holds the transform of a black image.
      valid: bool[b], False if the image cannot be decoded or the slot is padding.
      index: i32[b], position in the list of sources; -1 for padding.
      skipped: the images of this batch that cannot be decoded.
    """

    images: np.ndarray
    valid: np.ndarray
    index: np.ndarray
    skipped: tuple[Skipped, ...]


# ---- one ordered pass ----


def load(
    paths: Sequence[Source | str],
    transform: Transform,
    *,
    batch_size: int,
    threads: int | None = None,
) -> Iterator[Batch]:
    """The images in files, in the order of `paths`, as batches of one shape.

    Args:
      paths: image files, or images inside a container (`Source`).
      transform: maps a decoded image to an array of fixed shape and dtype; called in threads.
      batch_size: slots in every batch, including the last.
      threads: number of decoding threads; default: one per core, at most `MAX_THREADS`.

    Returns:
      An iterator over ceil(len(paths) / batch_size) values of type `Batch`.

    Raises:
      ValueError: `batch_size` is below 1; or, during iteration, the results of `transform` differ
        in shape or dtype.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1: got {batch_size}")
    return _batches(_sources(paths), transform, batch_size, threads or min(cores(), MAX_THREADS))


def _batches(
    sources: list[Source], transform: Transform, batch_size: int, threads: int
) -> Iterator[Batch]:
    import grain  # a slow import, which `import tl` must not pay for

    reader = _Reader(sources, transform)
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(2 * batch_size, threads)
    )
    images = grain.MapDataset.source(range(len(sources))).map(reader.read).to_iter_dataset(options)
    collate = functools.partial(reader.collate, batch_size=batch_size)
    yield from images.batch(batch_size, drop_remainder=False, batch_fn=collate)


class _Reader:
    """Decodes and collates; picklable for other processes if its transform is."""

    def __init__(self, sources: list[Source], transform: Transform):
        self.sources, self.transform = sources, transform
        # The content of an empty slot; it gives shape and dtype before any image is read.
        self.blank = transform(np.zeros((64, 64, 3), np.uint8))

    def read(self, index: int) -> tuple[int, np.ndarray | Skipped]:
        source, blank = self.sources[index], self.blank
        try:
            image = self.transform(decode(source))
        except ImageError as error:
            return index, Skipped(str(source), error.why)
        if image.shape != blank.shape or image.dtype != blank.dtype:
            raise ValueError(
                f"`transform` returned {image.dtype}{list(image.shape)} for {source} and "
                f"{blank.dtype}{list(blank.shape)} for a black image, expected one shape and dtype "
                "for all images; crop or resize to a fixed size"
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


# ---- training ----


class Stream(BatchIterator):
    """The batches of a plan; made by `stream`."""

    def __init__(
        self,
        sources: Sequence[Source | str],
        transform: Transform,
        plan: Plan,
        start: int,
        workers: int,
        threads: int,
    ):
        super().__init__()
        self._reader, self._plan = _Reader(_sources(sources), transform), plan
        self._workers, self._threads = workers, threads
        self._batches: Any = None
        self._go_to(start)

    def _go_to(self, step: int) -> None:
        if not 0 <= step <= len(self._plan):
            raise ValueError(
                f"`start` must be in [0, {len(self._plan)}], the steps of the plan: got {step}"
            )
        self.close()
        self._step = step
        self._batches = _decoded(self._reader, self._plan, step, self._workers, self._threads)

    def _next(self) -> Batch:
        if self._batches is None:
            raise ValueError("the stream of images is closed; create a new one")
        try:
            batch = next(self._batches)
        except Exception as error:
            if not isinstance(error, StopIteration):
                self.close()  # so that a second `next` does not look like the end
            raise
        self._step += 1
        return batch

    def state(self) -> dict[str, Any]:
        """The position, JSON-ready: the step of the next batch and the identity of the plan."""
        return {"step": self._step, **self._plan.identity()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Moves to a position that `state` returned, possibly in a process with other `workers`.

        Raises:
          ValueError: the position belongs to another plan; the message lists the differences.
        """
        identity = self._plan.identity()
        if changes := [
            f"{name} was {state.get(name)!r}, is {value!r}"
            for name, value in identity.items()
            if state.get(name) != value
        ]:
            raise ValueError(
                f"the saved position belongs to other batches: {'; '.join(changes)}, expected the "
                "values of the saved run"
            )
        self._go_to(state["step"])

    def close(self) -> None:
        """Ends threads and processes; a second call has no effect."""
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
    """The images of `sources` in the order of `plan`, one `Batch` per step.

    The batches are bit-equal for all values of `workers` and `threads`. Processes are spawned, not
    forked, because a fork next to XLA's threads can hang; a script that uses them must keep its
    work under `if __name__ == "__main__"`. They end with the process that started them, even if
    that is killed.

    Args:
      sources: `plan.n` image files, or images inside a container (`Source`).
      transform: maps a decoded image to an array of fixed shape and dtype; picklable if `workers`
        is above 0, such as `functools.partial(pixels.prepare, spec)`.
      plan: the examples of each step.
      start: the first step.
      workers: number of decoding processes; 0 decodes in threads of this process. See
        `feed.auto_workers`.
      threads: number of decoding threads if `workers` is 0; default: one per core, at most
        `MAX_THREADS`.

    Returns:
      A `Stream` of len(plan) - start batches. Close it, or use it in a `with` statement. An image
      that cannot be decoded leaves its slot empty and is listed in `skipped` of its batches.

    Raises:
      ValueError: `plan` is for another number of images, or `start` is outside the plan; or, during
        iteration, the results of `transform` differ in shape or dtype, or a worker was killed.
    """
    if len(sources) != plan.n:
        raise ValueError(
            f"`plan` is for {plan.n} images, expected {len(sources)}, the number of `sources`"
        )
    return Stream(sources, transform, plan, start, workers, threads or min(cores(), MAX_THREADS))


def _decoded(reader: _Reader, plan: Plan, start: int, workers: int, threads: int) -> Any:
    """A closable iterator over the steps from `start`; it starts to work at the first `next`."""
    if workers:
        return _in_processes(reader, plan, start, workers)
    import grain

    steps = grain.MapDataset.source(range(start, len(plan))).map(
        functools.partial(_read_step, reader, plan)
    )
    return iter(
        steps.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        )
    )


def _read_step(reader: _Reader, plan: Plan, step: int) -> Batch:
    rows = plan.rows(step)
    return reader.collate((reader.read(int(row)) for row in rows if row >= 0), len(rows))


def _in_processes(reader: _Reader, plan: Plan, start: int, workers: int) -> Iterator[Batch]:
    """Batches from spawned processes: worker k reads steps start + k, start + k + workers, ...

    Each worker has its own pipe, and workers share no lock. A process that is killed, even in the
    middle of a batch, therefore ends only its own pipe. Grain's workers share queues and events
    with their parent; if one dies with a lock or half a batch, the parent waits forever.
    """
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for k in range(min(workers, len(plan) - start)):
            receiver, sender = spawn.Pipe(duplex=False)
            steps = range(start + k, len(plan), workers)
            process = spawn.Process(
                target=_send_steps, args=(sender, reader, plan, steps), daemon=True
            )
            process.start()
            sender.close()  # leaves the process as the only writer, so that its death ends the pipe
            pipes.append(receiver)
            processes.append(process)
        for step in range(start, len(plan)):
            try:
                batch = pipes[(step - start) % workers].recv()
            except (EOFError, OSError) as error:  # OSError in the middle of a batch
                raise ValueError(
                    f"a process that decodes images was killed at step {step}, often because "
                    f"memory ran out; set `workers` below {workers}, or to 0"
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
    """The main function of a worker; the parent alone handles Ctrl-C.

    The worker ends with its parent, even if that is killed, because the pipe then breaks.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for step in steps:
        try:
            item = _read_step(reader, plan, step)
        except Exception as error:
            error.add_note(
                f"in a process that decodes images, at step {step}: {traceback.format_exc()}"
            )
            item = error
        try:
            pipe.send(item)
        except ConnectionError:
            return
