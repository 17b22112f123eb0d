"""The outputs of an endpoint for images and their views, kept in the memory of the process.

Training reads them instead of images if everything before the endpoint is frozen. A later call,
such as the one for the next seed, computes only what is new. Unlike the feature bank
(`tl.inference.features`), this cache holds whole feature maps, and nothing of it is on disk.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import devices, pixels
from tl.data import Skipped, Source, augmentations
from tl.inference import features
from tl.inference.batches import Progress, map_sources
from tl.models import Classifier
from tl.types import Array, Variables

# The views that an augmentation can have, in the order of its `views`.
_VIEWS = tuple(augmentations.symmetry(number) for number in range(8))

Key = tuple[str, str, int]
"""Network and endpoint, content of the image, number of the view."""


class ViewSet(NamedTuple):
    """Images, and the number of their views: the first ones of `augmentations.symmetry`."""

    paths: Sequence[Source]
    views: int


class Outputs(NamedTuple):
    """The outputs for one `ViewSet` of n images and v views.

    Attributes:
      rows: n sequences of v arrays, or one array [n v d]; zeros where an image could not be read.
      valid: bool[n], whether the image could be read.
      skipped: the images that could not be read.
    """

    rows: Sequence[Sequence[np.ndarray]] | np.ndarray
    valid: np.ndarray
    skipped: tuple[Skipped, ...]


class _Memory:
    """The arrays that were used last, up to a number of bytes."""

    def __init__(self) -> None:
        self._arrays: OrderedDict[Key, np.ndarray] = OrderedDict()
        self.nbytes = 0

    def get(self, key: Key) -> np.ndarray | None:
        if key in self._arrays:
            self._arrays.move_to_end(key)
        return self._arrays.get(key)

    def add(self, key: Key, array: np.ndarray) -> np.ndarray:
        self._arrays[key] = array
        self.nbytes += array.nbytes
        return array

    def reduce_to(self, nbytes: float) -> None:
        """Drops the arrays that were not used for the longest time."""
        while self._arrays and self.nbytes > nbytes:
            self.nbytes -= self._arrays.popitem(last=False)[1].nbytes


_MEMORY = _Memory()


def compute(
    clf: Classifier,
    variables: Variables,
    sets: Sequence[ViewSet],
    endpoint: str,
    *,
    limit: float,
    batch_size: int,
    progress: Progress,
) -> list[Outputs] | None:
    """The outputs of an endpoint for sets of images.

    An image is identified by the content of its file, and the network by `features.bank_key` and
    the batch size, so a later call finds only what it would compute itself. Pooled features of
    images without augmentation come from the feature bank on disk instead.

    Args:
      clf, variables: the network; layers after `endpoint` are not used.
      sets: the images that are needed at the same time.
      endpoint: a stage, or "features".
      limit: bytes for the outputs of `sets` and of earlier calls together.
      batch_size: images per forward pass.
      progress: wraps the batches that have to be computed.

    Returns:
      One `Outputs` per set, in the dtype of the network; None if `sets` need more than `limit`.
    """
    folded: Any = clf.fold_batch_norm(variables)
    function, side = _of_view(clf, endpoint), clf.pixels.size
    images = jax.ShapeDtypeStruct((1, side, side, len(clf.pixels.mean)), jnp.uint8)
    shape = jax.eval_shape(function, (folded, np.int32(0)), images)
    blank = np.zeros(shape.shape[1:], shape.dtype)
    needed = sum(len(paths) * views for paths, views in sets) * blank.nbytes
    if needed > limit:
        return None
    if endpoint == "features" and all(views == 1 for _, views in sets):
        _MEMORY.reduce_to(limit - needed)
        banks = [
            features.extract(clf, variables, paths, batch_size=batch_size, progress=progress)
            for paths, _ in sets
        ]
        return [Outputs(b.values[:, None], b.valid, b.skipped) for b in banks]
    network = f"{features.bank_key(clf, variables, endpoint)} {batch_size}"
    names = [[features.identity(path) for path in paths] for paths, _ in sets]
    path_of: dict[str, Source] = {}
    views_of: dict[str, int] = {}
    for (paths, views), set_names in zip(sets, names, strict=True):
        path_of |= dict(zip(set_names, paths, strict=True))
        views_of |= {name: max(views, views_of.get(name, 0)) for name in set_names}
    keys = [(network, name, view) for name, views in views_of.items() for view in range(views)]
    rows = {key: row for key in keys if (row := _MEMORY.get(key)) is not None}
    missing: dict[tuple[int, ...], list[str]] = {}  # views -> images without exactly these
    for name, views in views_of.items():
        if absent := tuple(v for v in range(views) if (network, name, v) not in rows):
            missing.setdefault(absent, []).append(name)
    _MEMORY.reduce_to(limit - (len(keys) - len(rows)) * blank.nbytes)
    on_device, reasons = devices.put_local(folded), {}
    for numbers, images_of in missing.items():
        for batch in map_sources(
            lambda images: [function((on_device, np.int32(v)), images) for v in numbers],  # noqa: B023
            [path_of[name] for name in images_of],
            clf.prepare,
            batch_size=batch_size,
            progress=progress,
        ):
            for view, values in zip(numbers, batch.values, strict=True):
                for i, value in zip(batch.index, values, strict=True):
                    key = (network, images_of[i], view)
                    rows[key] = _MEMORY.add(key, value.copy())  # a view would keep its batch
            failed = zip(batch.failed, batch.skipped, strict=True)
            reasons |= {images_of[i]: skip.why for i, skip in failed}
    return [
        Outputs(
            [[rows.get((network, n, v), blank) for v in range(views)] for n in set_names],
            np.array([n not in reasons for n in set_names], bool),
            tuple(
                Skipped(str(path), reasons[n])
                for path, n in zip(paths, set_names, strict=True)
                if n in reasons
            ),
        )
        for (paths, views), set_names in zip(sets, names, strict=True)
    ]


@functools.lru_cache(maxsize=4)
def _of_view(clf: Classifier, endpoint: str) -> Callable[[Any, Array], jax.Array]:
    """`((variables, number of a view), uint8[b s s c]) -> [b ...]`, one program for all views."""

    def outputs(variables_and_view: Any, images: jax.Array) -> jax.Array:
        variables, view = variables_and_view
        images01 = jax.lax.switch(view, _VIEWS, pixels.to_images01(images))
        output = clf.apply(variables, images01)
        return output.features if endpoint == "features" else output.endpoints[endpoint]

    return devices.shard_rows(outputs)
