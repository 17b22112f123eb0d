"""The inputs of a training loop: images from disk, or cached outputs of a frozen prefix.

`ImageInputs` and `CachedInputs` have the same methods, `training` (batches in the order of a plan)
and `evaluation` (one pass in order), and give the same examples for the same key. One can therefore
replace the other wherever the prefix is frozen and the augmentation has a finite number of views.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import data, devices, hosts, inference, pixels
from tl.data import Batch, DataSpec, Skipped, loader
from tl.data.augment import Augment
from tl.data.feed import BatchIterator
from tl.data.plan import Plan
from tl.inference import outputs
from tl.models import Classifier
from tl.training.step import Examples
from tl.types import Variables


class IndexedBatch(NamedTuple):
    """A batch, and `rows` int32[b], the position of each example in its set; -1 for padding."""

    examples: Examples
    rows: np.ndarray


def sources(spec: DataSpec) -> list[data.Source]:
    """Where the images of a set are stored."""
    return [example.path for example in spec.examples]


def labels(spec: DataSpec) -> np.ndarray:
    """The labels of a set, i64[n]."""
    return np.array([example.label for example in spec.examples], np.int64)


def own_slots(batch_size: int) -> np.ndarray:
    """The slots of a batch that this process reads, i[m]: all, unless there are several."""
    if hosts.count() == 1:
        return np.arange(batch_size)
    return devices.own_rows(batch_size, devices.mesh())


def confidence(spec: DataSpec) -> np.ndarray | None:
    """The label confidences of a set, f32[n]; None if all are 1."""
    values = np.array([example.confidence for example in spec.examples], np.float32)
    return None if (values == 1.0).all() else values


class ImageInputs(NamedTuple):
    """Images from disk.

    Attributes:
      clf: the network; its PixelSpec prepares the images.
      spec: the set.
      augment: decides the size of the images of `training`; the step applies it, not this class.
      workers: processes that decode.
    """

    clf: Classifier
    spec: DataSpec
    augment: Augment
    workers: int = 0

    def training(self, plan: Plan, start: int, key: jax.Array) -> _ImageBatches:
        """Batches with inputs uint8[b s s c], where s is the `source_size` of the augmentation."""
        del key  # the step augments with it
        prepare = functools.partial(
            pixels.prepare, self.clf.pixels.replace(size=self.augment.source_size)
        )
        stream = loader.stream(sources(self.spec), prepare, plan, start=start, workers=self.workers)
        return _ImageBatches(stream, labels(self.spec), confidence(self.spec))

    def example_input(self) -> np.ndarray:
        """One input of `training`, all zeros: uint8[1 s s c]."""
        side = self.augment.source_size
        return np.zeros((1, side, side, len(self.clf.pixels.mean)), np.uint8)

    def evaluation(self, batch_size: int) -> Iterator[IndexedBatch]:
        """Batches with inputs uint8[b s s c], in order; with several processes, their own slots."""
        targets, paths = labels(self.spec), sources(self.spec)
        slots = own_slots(batch_size)
        count = -(-len(paths) // batch_size)
        rows = (np.arange(count)[:, None] * batch_size + slots).ravel()
        own = rows[rows < len(paths)]
        batches = data.load([paths[i] for i in own], self.clf.prepare, batch_size=len(slots))
        for batch in batches:
            index = np.where(batch.index >= 0, own[batch.index], -1).astype(np.int32)
            yield _indexed(batch._replace(index=index), targets)
        if len(own) <= (count - 1) * len(slots):  # the last batch has no image of this process
            blank = self.clf.prepare(np.zeros((64, 64, 3), np.uint8))
            images, m = np.stack([blank] * len(slots)), len(slots)
            index = np.full(m, -1, np.int32)
            yield _indexed(Batch(images, np.zeros(m, bool), index, ()), targets)


class CachedInputs(NamedTuple):
    """The outputs of a frozen prefix.

    Attributes:
      outputs: for each of n images a sequence of v arrays, its outputs in each view of the
        augmentation. Zeros for an image that could not be read.
      valid: bool[n]; False for an image that could not be read.
      labels: i64[n].
      confidence: f32[n], or None if all are 1.
      augment: the augmentation.
      skipped: the images that could not be read.
      scale: `(mean, std)` f32[d] by which the batches are standardized, or None.
    """

    outputs: Sequence[Sequence[np.ndarray]] | np.ndarray
    valid: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray | None
    augment: Augment
    skipped: tuple[Skipped, ...]
    scale: tuple[np.ndarray, np.ndarray] | None = None

    def training(self, plan: Plan, start: int, key: jax.Array) -> _CachedBatches:
        """Batches with inputs [b ...]: the views that `augment.apply` would take in that step."""
        return _CachedBatches(self, plan, start, key)

    def example_input(self) -> np.ndarray:
        """One input of `training`, all zeros: [1 ...]."""
        return np.zeros_like(self.outputs[0][0])[None]

    def evaluation(self, batch_size: int) -> Iterator[IndexedBatch]:
        """Batches with inputs [b ...], in order, of the first view: the unchanged image."""
        n = len(self.labels)
        for begin in range(0, n, batch_size):
            rows = begin + own_slots(batch_size)
            yield self.select(np.where(rows < n, rows, -1), np.zeros(len(rows), np.int64))

    def select(self, rows: np.ndarray, views: np.ndarray) -> IndexedBatch:
        """The batch of some images in some views; a row of -1 is padding."""
        valid = (rows >= 0) & self.valid[rows]
        confidence = None if self.confidence is None else self.confidence[rows]
        targets = self.labels[rows].astype(np.int32)
        maps = np.stack([self.outputs[row][view] for row, view in zip(rows, views, strict=True)])
        if self.scale is not None:
            maps = (maps - self.scale[0]) / self.scale[1]
        return IndexedBatch(Examples(maps, targets, valid, confidence), rows)

    def standardized(self, mean: np.ndarray, std: np.ndarray) -> CachedInputs:
        """These inputs with features f32[d] minus `mean`, divided by `std`."""
        return self._replace(scale=(mean, std))

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation f32[d] of features over all readable images and views."""
        readable = np.flatnonzero(self.valid).tolist()
        views = lambda: (view for row in readable for view in self.outputs[row])
        zero = np.zeros(self.outputs[0][0].shape, np.float64)
        n = max(sum(len(self.outputs[row]) for row in readable), 1)
        mean = sum(views(), zero) / n
        variance = sum(((view - mean) ** 2 for view in views()), zero) / n
        return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)


def compute_caches(
    clf: Classifier,
    variables: Variables,
    sets: Sequence[tuple[DataSpec, Augment]],
    endpoint: str,
    *,
    gib: float,
    batch_size: int = 32,
    progress: inference.Progress = inference.silent,
) -> list[CachedInputs] | None:
    """The outputs of an endpoint for all images and views of several data sets.

    They stay in memory for later calls, at most `gib` GiB in all (`tl.inference.outputs`).

    Args:
      clf, variables: the network; layers after `endpoint` are not used.
      sets: pairs of a set and its augmentation, all of whose views are computed.
      endpoint: a stage, "features", or "" if nothing is frozen.
      gib: memory limit in GiB, for these outputs and those of earlier calls together.
      batch_size: images per forward pass.
      progress: wraps the batches, to show progress.

    Returns:
      One `CachedInputs` per set, with outputs in the dtype of the network. None if nothing is
      frozen, an augmentation does not have a finite number of views, or `sets` need more than
      `gib`.
    """
    counts = [len(augment.views or ()) for _, augment in sets]
    if not endpoint or not all(counts):
        return None
    computed = outputs.compute(
        clf,
        variables,
        [outputs.ViewSet(sources(spec), n) for (spec, _), n in zip(sets, counts, strict=True)],
        endpoint,
        limit=gib * 2**30,
        batch_size=batch_size,
        progress=progress,
    )
    if computed is None:
        return None
    return [
        CachedInputs(rows, valid, labels(spec), confidence(spec), augment, skipped)
        for (spec, augment), (rows, valid, skipped) in zip(sets, computed, strict=True)
    ]


# ---- batches -------------------------------------------------------------------------------------


def _indexed(
    batch: Batch, labels: np.ndarray, confidence: np.ndarray | None = None
) -> IndexedBatch:
    targets = np.where(batch.index >= 0, labels[batch.index], -1).astype(np.int32)
    confidence = None if confidence is None else confidence[batch.index]
    return IndexedBatch(Examples(batch.images, targets, batch.valid, confidence), batch.index)


class _ImageBatches(BatchIterator):
    """A stream of images with labels; `skipped` are the images that could not be read so far."""

    def __init__(self, stream: loader.Stream, labels: np.ndarray, confidence: np.ndarray | None):
        super().__init__()
        self._stream, self._labels, self._confidence = stream, labels, confidence
        self.skipped: dict[Skipped, None] = {}

    def _next(self) -> IndexedBatch:
        batch = next(self._stream)
        self.skipped |= dict.fromkeys(batch.skipped)
        return _indexed(batch, self._labels, self._confidence)

    def state(self) -> dict[str, Any]:
        return self._stream.state()

    def close(self) -> None:
        self._stream.close()


class _CachedBatches(BatchIterator):
    """Batches of `CachedInputs` in the order of a plan."""

    def __init__(self, cache: CachedInputs, plan: Plan, start: int, key: jax.Array):
        super().__init__()
        self._cache, self._plan, self._step, self._key = cache, plan, start, key
        self._choose = jax.jit(
            lambda key, step: cache.augment.choose(jax.random.fold_in(key, step), plan.batch_size)
        )
        self.skipped = dict.fromkeys(cache.skipped)

    def _next(self) -> IndexedBatch:
        if self._step >= len(self._plan):
            raise StopIteration
        if len(self._cache.augment.views or ()) == 1:
            views = np.zeros(self._plan.batch_size, np.int32)
        else:
            views = np.asarray(self._choose(self._key, self._step))
        rows = self._plan.rows(self._step)
        views = views if self._plan.slots is None else views[self._plan.slots]
        self._step += 1
        return self._cache.select(rows, views)

    def state(self) -> dict[str, Any]:
        return {"step": self._step, **self._plan.identity()}

    def close(self) -> None:
        pass
