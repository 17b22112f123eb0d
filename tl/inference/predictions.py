"""Predictions of a classifier for arrays, files, folders and data sets.

`predict` is the entry point; metrics of its result are in `tl.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import data, devices, metrics, pixels
from tl.data import DataSpec, Skipped, Source, WithWhite, with_white
from tl.inference.batches import BATCH_SIZE, Progress, forward, in_batches, map_sources, silent
from tl.labels import ClassTable
from tl.models import Classifier
from tl.types import Variables

View = Callable[[jax.Array], jax.Array]
"""images01 f32[b s s c] -> images01 of the same shape, such as a horizontal flip."""


class Predictions(NamedTuple):
    """The logits of a classifier for the images that could be read.

    Attributes:
      logits: f32[n k].
      labels: i64[n], the class of each image as an index of a logit; -1 where unknown.
      paths: the n image files; () for images that were given as an array.
      skipped: the images that could not be read.
    """

    logits: np.ndarray
    labels: np.ndarray
    paths: tuple[Source, ...] = ()
    skipped: tuple[Skipped, ...] = ()

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, f64[n k]."""
        return metrics.softmax(self.logits)


class LoadedImages(NamedTuple):
    """Images as the network receives them.

    Attributes:
      paths: the n files that could be read.
      images: uint8[n s s c].
      skipped: `{"path", "why"}` of each image that could not be read.
    """

    paths: list[Path | WithWhite]
    images: np.ndarray
    skipped: list[dict[str, str]]


def predict(
    clf: Classifier,
    variables: Variables,
    images: np.ndarray | DataSpec | Source | str | Sequence[Source | str],
    *,
    labels: Sequence[int] | np.ndarray | Literal["folder"] | None = None,
    views: Sequence[View] = (),
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
    remark: Callable[..., object] = lambda *sentences: None,
    white: int = 0,
) -> Predictions:
    """The logits of a classifier for images, computed in batches of one shape.

    On a CPU an image has the same bits in every call of `predict`, `predict_logits` and
    `evaluate`, and of a user's `jax.jit(clf.logits)`, with the same batch size, in any position and
    next to any other images. All other ways agree up to float32 rounding, within 2e-6 of the
    largest logit: a call without `jit`, `jax.jit(clf.apply)`, another batch size, a jitted function
    that also converts from uint8, folded BatchNorm, and features from the bank. "Which logits
    agree" in `tl/README.md` has the measured differences.

    Args:
      clf, variables: the network.
      images: one of
        - uint8[n s s c], images as the network receives them (`clf.prepare`),
        - a data set, whose labels are matched with the network's classes by name
          (`tl.data.remap_labels`),
        - one or several paths: image files, folders (searched recursively) or globs. A string may
          contain several, separated by commas.
      labels: i[n] class indices of the images, -1 where unknown, or "folder" if the folder of an
        image names its class (`folder_labels`). Default: those of the data set, else unknown.
      views: functions of the input for test-time augmentation, over which the log-probabilities are
        averaged. Default: none, which gives the logits of the image itself.
      batch_size: images per forward pass.
      progress: wraps the iterator over the batches of files, such as `tl.reporting.progress`.
      remark: called with sentences on the classes, such as names that are read as indices, before
        the first forward pass; such as `tl.reporting.Run.remark`. Default: they are not reported.
      white: as for `tl.data.find_images`, of paths.

    Returns:
      `Predictions`, in the order of `images`.

    Raises:
      ValueError: the network has no head; an array is not uint8[n s s c]; a path does not exist;
        the number of labels differs from the number of images; or the network lacks a class of the
        data set.

    Example:
      >>> import tl
      >>> clf, variables = tl.load("mobilenetv1_025_keras", weights="random")
      >>> clf = clf.with_pixels(size=32)
      >>> tl.predict(clf, variables, np.zeros((3, 32, 32, 3), np.uint8)).logits.shape
      (3, 1000)
    """
    k = len(class_table(clf))
    variables = devices.put_local(variables)  # once, instead of with each batch
    function = _logits(clf, variables, views)
    if isinstance(images, np.ndarray | jax.Array):
        return _predict_array(clf, function, np.asarray(images), labels, batch_size)
    sources, indices, skipped = _sources(clf, images, labels, remark, white)
    rows = [np.zeros((0, k), np.float32)]
    readable: list[int] = []
    for batch in map_sources(
        function, sources, clf.prepare, batch_size=batch_size, progress=progress
    ):
        rows.append(batch.values)
        readable += batch.index.tolist()
        skipped += batch.skipped
    paths = tuple(sources[i] for i in readable)
    return Predictions(np.concatenate(rows), indices[readable], paths, tuple(skipped))


def _logits(
    clf: Classifier, variables: Variables, views: Sequence[View]
) -> Callable[[np.ndarray], Any]:
    """uint8[b s s c] -> logits f32[b k]."""
    if not views:
        return lambda images: forward(clf)(variables, pixels.to_images01(images))

    def mean_over_views(images: np.ndarray) -> np.ndarray:
        images01 = jnp.asarray(pixels.to_images01(images))
        logits = [np.asarray(forward(clf)(variables, view(images01))) for view in views]
        return np.mean([metrics.log_softmax(rows) for rows in logits], axis=0).astype(np.float32)

    return mean_over_views


def _predict_array(
    clf: Classifier, function: Callable[[np.ndarray], Any], images: np.ndarray, labels: Any, b: int
) -> Predictions:
    shape = (clf.pixels.size, clf.pixels.size, len(clf.pixels.mean))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != shape[2]:
        raise ValueError(
            f"`images` has the wrong type: got {images.dtype}{list(images.shape)}, expected "
            f"uint8[n {' '.join(map(str, shape))}]; make each with clf.prepare, or pass paths"
        )
    indices = _checked_labels(labels, len(images))
    if not len(images):
        return Predictions(np.zeros((0, len(class_table(clf))), np.float32), indices)
    return Predictions(in_batches(function, images, batch_size=b), indices)


def _sources(
    clf: Classifier, images: Any, labels: Any, remark: Callable[..., object], white: int
) -> tuple[list[Source], np.ndarray, list[Skipped]]:
    """The image files, their labels i64[n], and the files that were left out."""
    sources: list[Source]
    skipped: list[Skipped] = []
    if isinstance(images, DataSpec):
        sources = [example.path for example in images.examples]
        labels = _set_labels(clf, images, remark) if labels is None else labels
    else:
        words = [images] if isinstance(images, str) or not isinstance(images, Sequence) else images
        if all(isinstance(word, str | Path) for word in words):
            paths, left_out = data.find_images([str(word) for word in words], white=white)
            sources, skipped = list(paths), list(left_out)
        else:  # at least one image is inside a container
            sources = [Path(word) if isinstance(word, str) else word for word in words]
            sources = [with_white(source, white) if white else source for source in sources]
    if isinstance(labels, str):
        if labels != "folder":
            raise ValueError(f"`labels` must be indices or 'folder': got {labels!r}")
        return sources, folder_labels(clf, sources, remark), skipped
    return sources, _checked_labels(labels, len(sources)), skipped


def _set_labels(clf: Classifier, spec: DataSpec, remark: Callable[..., object]) -> np.ndarray:
    """The labels i64[n] of a data set as indices of the network's logits."""
    table = class_table(clf)
    names = tuple(name.strip() for name in spec.classes)
    if names not in (table.display_names, tuple(entry.names[0] for entry in table.entries)):
        spec = data.remap_labels(spec, table)
        remark(*spec.remarks)
    return np.array([example.label for example in spec.examples], np.int64)


def _checked_labels(labels: Any, n: int) -> np.ndarray:
    indices = np.full(n, -1, np.int64) if labels is None else np.asarray(labels)
    if indices.dtype.kind not in "iu" or indices.shape != (n,):
        raise ValueError(
            f"`labels` must hold one class index per image: got {indices.dtype}"
            f"{list(indices.shape)} for {n} images"
        )
    return indices.astype(np.int64)


def read_images(clf: Classifier, paths: str | Sequence[str], *, white: int = 0) -> LoadedImages:
    """The images in files, folders and globs, each resized and cropped for the network.

    Args:
      clf: the network, which decides the preprocessing.
      paths: as for `tl.data.find_images`.
      white: as for `tl.data.find_images`.

    Raises:
      ValueError: a path does not exist, or no image can be read.
    """
    sources, skipped = data.find_images(paths, white=white)
    batches = list(map_sources(lambda images: images, sources, clf.prepare))
    skipped = [*skipped, *(skip for batch in batches for skip in batch.skipped)]
    readable = [sources[i] for batch in batches for i in batch.index]
    if not readable:
        reasons = "; ".join(f"{skip.path}: {skip.why}" for skip in skipped[:3])
        raise ValueError(
            f"none of the {len(skipped)} files in {paths!r} is a readable image ({reasons})"
        )
    images = np.concatenate([batch.values for batch in batches])
    return LoadedImages(readable, images, [skip._asdict() for skip in skipped])


def predict_logits(
    clf: Classifier, variables: Variables, images: np.ndarray, *, batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """Logits f32[n k] of images uint8[n s s c], or images01 f32[n s s c] in [0, 1].

    They are bit-equal to those of `predict` with the same batch size.
    """
    function = lambda rows: forward(clf)(
        variables, pixels.to_images01(rows) if rows.dtype == np.uint8 else rows
    )
    return in_batches(function, images, batch_size=batch_size)


def topk(clf: Classifier, probabilities: np.ndarray, k: int) -> list[dict[str, Any]]:
    """The `k` most probable classes of one image.

    Args:
      clf: the network, whose class names are used.
      probabilities: f[classes].
      k: at most this many rows.

    Returns:
      JSON-ready rows `{"index", "wnid", "name", "probability"}`, most probable first.
    """
    table = class_table(clf)
    order = np.argsort(-probabilities, kind="stable")[:k]
    entry = lambda i: {"index": int(i), "wnid": table.entries[i].wnid, "name": table.display(i)}
    return [{**entry(i), "probability": float(probabilities[i])} for i in order]


def class_table(clf: Classifier) -> ClassTable:
    """The classes of a network.

    Raises:
      ValueError: the network has no head.
    """
    if clf.classes is None:
        raise ValueError(clf.no_head_message())
    return clf.classes


def folder_labels(
    clf: Classifier,
    paths: Sequence[Source],
    remark: Callable[..., object] = lambda *sentences: None,
) -> np.ndarray:
    """The class that the folder of each image names, i64[n].

    Args:
      clf: the network.
      paths: image files. The name of a folder is a class name or a WordNet id; or the names of all
        folders are indices, if no class of the network is named by a number.
      remark: called with sentences on names that are read as indices or in another spelling.

    Raises:
      ValueError: the name of a folder matches no class, or several; or folders of different names
        match one class.
    """
    folders = [Path(str(path)).parent.name for path in paths]
    names = list(dict.fromkeys(folders))
    try:
        indices, remarks = data.match_classes(names, class_table(clf))
    except ValueError as error:
        raise ValueError(f"a folder of `labels=folder` does not name a class: {error}") from None
    remark(*remarks)
    of_folder = dict(zip(names, indices, strict=True))
    return np.array([of_folder[folder] for folder in folders], np.int64)
