"""The batched forward pass: a function of many images, called with batches of one shape.

Each shape compiles once per process, because `forward` returns the same jitted function for the
same classifier and every batch is padded to the same size. `in_batches` takes arrays and
`map_sources` reads files. The batches are divided between the processes, and those of a process
between its devices, so each batch has the same bits on any number of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import data, devices, hosts
from tl.data import Skipped, Source
from tl.models import Classifier
from tl.types import Variables

BATCH_SIZE = 16
"""Images per forward pass (chosen, not tuned). Another size may change the last bits of logits."""

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""`(batches, number of batches) -> batches`, such as `tl.reporting.progress`."""


def silent(batches: Iterable[Any], total: int) -> Iterable[Any]:
    """A `Progress` that reports nothing."""
    del total
    return batches


@functools.cache
def forward(clf: Classifier) -> Callable[[Variables, Any], jax.Array]:
    """The jitted `clf.logits`: `(variables, images01 f32[b s s c]) -> f32[b k]`."""
    return devices.shard_rows(clf.logits)


def _rows_per_call(n: int, batch_size: int) -> int:
    """Rows of a call, a batch for each device of this process, or fewer if there are fewer rows."""
    return batch_size * max(min(jax.local_device_count(), -(-n // batch_size)), 1)


def in_batches(
    function: Callable[..., Any],
    *arrays: Any,
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
) -> Any:
    """Applies a function to many rows, in batches of one shape.

    Args:
      function: takes as many arrays [b ...] as `arrays` has and returns an array [b ...], or a
        pytree of them. Row i of the result must depend only on row i of the arguments.
      arrays: [n ...] each, n at least 1; NumPy or JAX arrays.
      batch_size: rows per call and device, b; the last batch is padded with copies of its own rows.
      progress: wraps the iterator over the batches.

    Returns:
      NumPy arrays [n ...], in the order of the rows.

    Raises:
      ValueError: `batch_size` or the number of rows is less than 1.

    Example:
      >>> in_batches(lambda x, y: x + y, np.arange(5), np.ones(5, int), batch_size=2)
      array([1, 2, 3, 4, 5])
    """
    n = len(arrays[0])
    if batch_size < 1 or n == 0:
        raise ValueError(
            f"`batch_size` and the number of rows must be at least 1: got {batch_size} and {n}"
        )
    size = _rows_per_call(n, batch_size)
    starts = range(0, n, size)

    def compute(i: int) -> Any:
        rows = np.resize(np.arange(starts[i], min(starts[i] + size, n)), size)
        outputs = function(*(array[rows] for array in arrays))
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: n - starts[i]], outputs)

    parts = [part for part, _ in progress(hosts.shares(len(starts), compute), len(starts))]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


class SourceBatch(NamedTuple):
    """The results for one batch of sources.

    Attributes:
      index: i[m], positions in the list of sources of the images that could be read.
      values: their results, [m ...] each.
      failed: i[f], positions of the images that could not be read.
      skipped: the path and the reason for each position in `failed`.
      own: whether this process computed it.
    """

    index: np.ndarray
    values: Any
    failed: np.ndarray
    skipped: tuple[Skipped, ...]
    own: bool = True


def map_sources(
    function: Callable[..., Any],
    sources: Sequence[Source],
    prepare: Callable[[np.ndarray], np.ndarray],
    *,
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
    at: bool = False,
) -> Iterator[SourceBatch]:
    """Applies a function to the images in files, which are read batch by batch.

    Args:
      function: uint8[b s s c] -> array [b ...], or a pytree of them; row i depends only on image i.
      sources: image files, or images inside a container.
      prepare: maps a decoded image to the input of the network, such as `Classifier.prepare`; runs
        in threads.
      batch_size: images per call and device, b.
      progress: wraps the batches.
      at: whether `function` also takes the positions of the images in `sources`, i[b]; -1 for a
        slot without an image.

    Yields:
      One `SourceBatch` per batch, in the order of `sources`, in every process.
    """
    n = len(sources)
    size = _rows_per_call(n, batch_size)
    total = -(-n // size)
    positions = np.arange(n)[np.arange(n) // size % hosts.count() == hosts.index()]
    batches = data.load([sources[i] for i in positions], prepare, batch_size=size)

    def compute(i: int) -> SourceBatch:
        batch = next(batches)
        index = np.where(batch.valid, positions[batch.index], -1)
        outputs = function(batch.images, index) if at else function(batch.images)
        return SourceBatch(
            index=index[batch.valid],
            values=jax.tree.map(lambda leaf: np.asarray(leaf)[batch.valid], outputs),
            failed=positions[batch.index[~batch.valid & (batch.index >= 0)]],
            skipped=batch.skipped,
        )

    computed = (batch._replace(own=own) for batch, own in hosts.shares(total, compute))
    yield from progress(computed, total)
