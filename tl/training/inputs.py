"""What a training loop is fed with: pictures from disk, or what a frozen prefix of the network has made of them once.

Both have two methods, `training` (batches in the order of a plan) and `evaluation` (one pass in order), and give the same
examples for the same key, so that one may stand for the other wherever the prefix is frozen and the views that augmentation
makes can be counted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import data, inference, pixels
from tl.data import Batch, DataSpec, Skipped, loader
from tl.data.augment import Augment
from tl.data.feed import BatchIterator
from tl.data.plan import Plan
from tl.inference import features
from tl.models import Classifier
from tl.training.step import Examples
from tl.types import Variables

Progress = Callable[[Iterable[Batch], int], Iterable[Batch]]


class Rows(NamedTuple):
    """A batch and which examples stand in it: `rows` int32[b], -1 for padding."""

    examples: Examples
    rows: np.ndarray


def sources(spec: DataSpec) -> list[data.Source]:
    """Where the pictures of a set are."""
    return [example.path for example in spec.examples]


def labels(spec: DataSpec) -> np.ndarray:
    """i64[n], the labels of a set."""
    return np.array([example.label for example in spec.examples], np.int64)


def confidence(spec: DataSpec) -> np.ndarray | None:
    """f32[n], how sure the labels of a set are; None where all are certain."""
    sure = np.array([example.confidence for example in spec.examples], np.float32)
    return None if (sure == 1.0).all() else sure


class Pictures(NamedTuple):
    """Pictures from disk.

    Attributes:
      clf: whose PixelSpec prepares them.
      spec: the set.
      augment: decides the size of the squares that `training` brings; it is applied in the step, not here.
      workers: processes that decode.
    """

    clf: Classifier
    spec: DataSpec
    augment: Augment
    workers: int = 0

    def training(self, plan: Plan, start: int, key: jax.Array) -> _Labelled:
        """`Rows` with inputs uint8[b s s c], s being the augmentation's `source_size`."""
        del key  # the step augments with it
        prepare = functools.partial(
            pixels.prepare, self.clf.pixels.replace(size=self.augment.source_size)
        )
        stream = loader.stream(sources(self.spec), prepare, plan, start=start, workers=self.workers)
        return _Labelled(stream, labels(self.spec), confidence(self.spec))

    def blank(self) -> np.ndarray:
        """uint8[1 s s c]: one input of `training`."""
        side = self.augment.source_size
        return np.zeros((1, side, side, len(self.clf.pixels.mean)), np.uint8)

    def evaluation(self, batch_size: int) -> Iterator[Rows]:
        """`Rows` with inputs uint8[b s s c], in order."""
        known = labels(self.spec)
        for batch in data.load(sources(self.spec), self.clf.prepare, batch_size=batch_size):
            yield _rows(batch, known)


class Bank(NamedTuple):
    """What a frozen prefix made of pictures.

    Attributes:
      maps: [n v ...], of each picture and each view.
      valid: bool[n].
      labels: i64[n].
      confidence: f32[n], or None.
      augment: whose views they are.
      skipped: the pictures that could not be read.
    """

    maps: np.ndarray
    valid: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray | None
    augment: Augment
    skipped: tuple[Skipped, ...]

    def training(self, plan: Plan, start: int, key: jax.Array) -> _Looked:
        """`Rows` with inputs [b ...]: of each picture the view that `augment.apply` would take in that step."""
        return _Looked(self, plan, start, key)

    def blank(self) -> np.ndarray:
        """[1 ...]: one input of `training`."""
        return np.zeros((1, *self.maps.shape[2:]), self.maps.dtype)

    def evaluation(self, batch_size: int) -> Iterator[Rows]:
        """`Rows` with inputs [b ...], in order, of the first view: the picture as it is."""
        n = len(self.labels)
        for begin in range(0, n, batch_size):
            rows = np.arange(begin, begin + batch_size)
            yield self.look(np.where(rows < n, rows, -1), np.zeros(batch_size, np.int64))

    def look(self, rows: np.ndarray, views: np.ndarray) -> Rows:
        """The maps of some pictures in some views; a row of -1 is empty."""
        there = (rows >= 0) & self.valid[rows]
        sure = None if self.confidence is None else self.confidence[rows]
        return Rows(
            Examples(self.maps[rows, views], self.labels[rows].astype(np.int32), there, sure), rows
        )

    def standardized(self, mean: np.ndarray, std: np.ndarray) -> Bank:
        """The same bank of features f32[n v d] in units of their spread."""
        return self._replace(maps=(self.maps - mean[None, None]) / std[None, None])


def bank(
    clf: Classifier,
    variables: Variables,
    spec: DataSpec,
    endpoint: str,
    augment: Augment,
    *,
    gib: float,
    batch_size: int = 32,
    progress: Progress = lambda batches, total: batches,
) -> Bank | None:
    """What the network makes of a set up to an endpoint, or None where that cannot be kept.

    Args:
      clf, variables: the network; what comes after `endpoint` plays no part.
      endpoint: a stage, "features", or "" (nothing is frozen: None).
      augment: every view that it can make is computed; where they cannot be counted, None.
      gib: memory that the maps may take; None where they would take more.

    Returns:
      A bank, of maps in the network's dtype. Pooled features of pictures as they are come from the feature bank on disk.
    """
    views = augment.views
    if not endpoint or views is None:
        return None
    if endpoint == "features" and len(views) == 1:
        found = features.extract(
            clf, variables, sources(spec), batch_size=batch_size, progress=progress
        )
        return Bank(
            found.values[:, None],
            found.valid,
            labels(spec),
            confidence(spec),
            augment,
            found.skipped,
        )
    folded: Any = clf.fold_batch_norm(variables)

    @jax.jit
    def prefix(variables: Variables, images: jax.Array) -> jax.Array:
        images01 = pixels.to_images01(images)
        made = []
        for view in views:
            output = clf.apply(variables, view(images01))
            made.append(output.features if endpoint == "features" else output.endpoints[endpoint])
        return jnp.stack(made, axis=1)

    side = clf.pixels.size
    blank = jax.ShapeDtypeStruct((batch_size, side, side, len(clf.pixels.mean)), jnp.uint8)
    shape = jax.eval_shape(prefix, folded, blank)
    n = len(spec.examples)
    if n * math.prod(shape.shape[1:]) * shape.dtype.itemsize > gib * 2**30:
        return None
    maps, valid = np.zeros((n, *shape.shape[1:]), shape.dtype), np.zeros(n, bool)
    kept = _kept(f"{features.bank_key(clf, variables, endpoint)} {augment.words}")
    where = sources(spec)
    for row in [row for row, source in enumerate(where) if source in kept]:
        maps[row], valid[row] = kept[where[row]], True
    todo, skipped = np.flatnonzero(~valid), []
    on_device = jax.device_put(folded)
    for batch in inference.map_sources(
        lambda images: prefix(on_device, images),
        [where[row] for row in todo],
        clf.prepare,
        batch_size=batch_size,
        progress=progress,
    ):
        rows = todo[batch.index]
        maps[rows], valid[rows] = batch.values, True
        skipped += batch.skipped
    kept |= {where[row]: maps[row] for row in todo[valid[todo]]}
    return Bank(maps, valid, labels(spec), confidence(spec), augment, tuple(skipped))


_KEPT: dict[str, dict[data.Source, np.ndarray]] = {}


def _kept(key: str) -> dict[data.Source, np.ndarray]:
    """The maps of the last bank of this process by picture: another split of the same set needs few new ones."""
    if key not in _KEPT:
        _KEPT.clear()
    return _KEPT.setdefault(key, {})


# ---------------------------------------------------------------------------------------------------------- positions


def _rows(batch: Batch, known: np.ndarray, sure: np.ndarray | None = None) -> Rows:
    labelled = np.where(batch.index >= 0, known[batch.index], -1).astype(np.int32)
    sure = None if sure is None else sure[batch.index]
    return Rows(Examples(batch.images, labelled, batch.valid, sure), batch.index)  # type: ignore[arg-type]


class _Labelled(BatchIterator):
    """A stream of pictures with their labels; `skipped` are those that could not be read so far."""

    def __init__(self, stream: loader.Stream, known: np.ndarray, sure: np.ndarray | None):
        super().__init__()
        self._stream, self._known, self._sure = stream, known, sure
        self.skipped: dict[Skipped, None] = {}

    def _next(self) -> Rows:
        batch = next(self._stream)
        self.skipped |= dict.fromkeys(batch.skipped)
        return _rows(batch, self._known, self._sure)

    def state(self) -> dict[str, Any]:
        return self._stream.state()

    def close(self) -> None:
        self._stream.close()


class _Looked(BatchIterator):
    """Batches of a bank in the order of a plan."""

    def __init__(self, bank: Bank, plan: Plan, start: int, key: jax.Array):
        super().__init__()
        self._bank, self._plan, self._step, self._key = bank, plan, start, key
        self._choose = jax.jit(
            lambda key, step: bank.augment.choose(jax.random.fold_in(key, step), plan.batch_size)
        )
        self.skipped = dict.fromkeys(bank.skipped)

    def _next(self) -> Rows:
        if self._step >= len(self._plan):
            raise StopIteration
        if self._bank.maps.shape[1] == 1:
            views = np.zeros(self._plan.batch_size, np.int32)
        else:
            views = np.asarray(self._choose(self._key, self._step))
        rows = self._plan.rows(self._step)
        self._step += 1
        return self._bank.look(rows, views)

    def state(self) -> dict[str, Any]:
        return {"step": self._step, **self._plan.identity()}

    def close(self) -> None:
        pass
