"""Pictures from disk as fixed-shape batches, decoded in threads (Grain) or processes; a broken picture never stops the run.

Two ways through a set: `load` reads a list once, in its order; `stream` reads it for training, epoch after epoch, in the
order of a `Plan`. A plan is a pure function of (seed, epoch), so the position of a stream is one number, the step: the
same batches come whatever the number of threads or processes that decode them, and a run that goes on from step k sees
what the uninterrupted one saw. `prefetch` keeps batches on the device ahead of the training loop.

Nothing is augmented here (`tl.data.augment` does that on the device) and nothing is cached: features are kept by
`tl.inference.features`.
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
from tl.data.feed import Feed, cores
from tl.data.plan import Plan
from tl.data.spec import Skipped, Source

MAX_THREADS = (
    16  # chosen, not tuned: decoding leaves the interpreter's lock, the rest of Python does not
)

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


def _batches(
    sources: list[Source], transform: Transform, batch_size: int, threads: int
) -> Iterator[Batch]:
    import grain  # here, for it costs a second and `import tl` should not

    reader = _Reader(sources, transform)
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(2 * batch_size, threads)
    )
    pictures = (
        grain.MapDataset.source(range(len(sources))).map(reader.read).to_iter_dataset(options)
    )
    collate = functools.partial(reader.collate, batch_size=batch_size)
    yield from pictures.batch(batch_size, drop_remainder=False, batch_fn=collate)


class _Reader:
    """Decodes and collates; picklable, for decoding in other processes."""

    def __init__(self, sources: list[Source], transform: Transform):
        self.sources, self.transform = sources, transform
        self.blank = transform(
            np.zeros((64, 64, 3), np.uint8)
        )  # of an empty slot; fixes the shape before any picture

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


class Stream(Feed):
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
                f"the stream is to start at step {step}, wanted at most {len(self._plan)}, its plan's end"
            )
        self.close()
        self._step, self._batches = (
            step,
            _decoded(self._reader, self._plan, step, self._workers, self._threads),
        )

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
        if wrong := [
            f"{k} was {state.get(k)!r}, is {v!r}" for k, v in ours.items() if state.get(k) != v
        ]:
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
        raise ValueError(
            f"the plan is for {plan.n} pictures and there are {len(sources)}, wanted as many"
        )
    return Stream(sources, transform, plan, start, workers, threads or min(cores(), MAX_THREADS))


def _decoded(reader: _Reader, plan: Plan, start: int, workers: int, threads: int) -> Any:
    """An iterator over the steps from `start` on, to be closed; nothing is started before its first `next`."""
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
            process = spawn.Process(
                target=_send_steps, args=(theirs, reader, plan, steps), daemon=True
            )
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
            error.add_note(
                f"in a process that decodes pictures, at step {step}: {traceback.format_exc()}"
            )
            item = error
        try:
            pipe.send(item)
        except ConnectionError:
            return
