"""Pictures from disk as fixed-shape batches, decoded in threads by Grain; a broken picture never stops the run.

Order is the order of `paths`. Nothing is shuffled or augmented here, and nothing is cached: the caller chooses the
paths of an epoch, and features are kept by `tl.features`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tl.data.decode import ImageError, decode
from tl.data.spec import Skipped

MAX_THREADS = 16  # chosen, not tuned: decoding leaves the interpreter's lock, the rest of Python does not


class Batch(NamedTuple):
    """`b` slots, some of which may hold no picture.

    Attributes:
      images: uint8[b s s 3] as `transform` returns them; a slot without a picture holds the transform of black.
      valid: bool[b], False where the picture was broken or the last batch is padded.
      index: int32[b], position in `paths`; -1 where the last batch is padded.
      skipped: the broken pictures of this batch.
    """

    images: np.ndarray
    valid: np.ndarray
    index: np.ndarray
    skipped: tuple[Skipped, ...]


def load(
    paths: Sequence[Path | str],
    transform: Callable[[np.ndarray], np.ndarray],
    *,
    batch_size: int,
    threads: int | None = None,
) -> Iterator[Batch]:
    """The pictures of `paths`, in their order, as batches of one shape.

    Args:
      paths: picture files.
      transform: uint8[h w 3] of any size -> an array of one fixed shape and dtype, e.g. uint8[s s 3]; runs in threads.
      batch_size: slots in every batch, the last one included.
      threads: decoding threads; default one a core, at most `MAX_THREADS`.

    Returns:
      An iterator of `Batch`, ceil(len(paths) / batch_size) of them.

    Raises:
      ValueError: `batch_size` below 1, or, while iterating, a transform whose results differ in shape or dtype.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, wanted at least 1")
    threads = threads or min(os.cpu_count() or 1, MAX_THREADS)
    return _batches([Path(p) for p in paths], transform, batch_size, threads)


def _batches(
    paths: list[Path], transform: Callable[[np.ndarray], np.ndarray], batch_size: int, threads: int
) -> Iterator[Batch]:
    import grain  # here, for it costs a second and `import tl` should not

    blank = transform(np.zeros((64, 64, 3), np.uint8))  # what an empty slot holds; fixes the shape before any picture

    def read(index: int) -> tuple[int, np.ndarray | Skipped]:
        try:
            image = transform(decode(paths[index]))
        except ImageError as error:
            return index, Skipped(str(paths[index]), error.why)
        if image.shape != blank.shape or image.dtype != blank.dtype:
            raise ValueError(
                f"transform gave {image.dtype}{list(image.shape)} for {paths[index]} and {blank.dtype}"
                f"{list(blank.shape)} for a black picture, wanted one shape for all: let it crop to a fixed size"
            )
        return index, image

    def collate(items: Sequence[tuple[int, np.ndarray | Skipped]]) -> Batch:
        images = np.broadcast_to(blank, (batch_size, *blank.shape)).copy()
        valid, index = np.zeros(batch_size, bool), np.full(batch_size, -1, np.int32)
        for slot, (position, item) in enumerate(items):
            index[slot] = position
            if not isinstance(item, Skipped):
                images[slot], valid[slot] = item, True
        return Batch(images, valid, index, tuple(i for _, i in items if isinstance(i, Skipped)))

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2 * batch_size, threads))
    pictures = grain.MapDataset.source(range(len(paths))).map(read).to_iter_dataset(options)
    yield from pictures.batch(batch_size, drop_remainder=False, batch_fn=collate)
