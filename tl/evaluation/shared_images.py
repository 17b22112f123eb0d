"""Networks with the same classes, and images that all of them classify correctly.

All networks see the same square image; each resizes it to its own input size by its own rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import data, devices, inference, models, pixels
from tl.attacks import norms
from tl.attacks.base import Logits
from tl.models import Classifier
from tl.types import Variables

# Images read per batch, until enough are correct for all networks; chosen, not tuned.
READ_BATCH = 16


class Network(NamedTuple):
    """A network that sees the whole image, with BatchNorm folded and variables on the device."""

    name: str
    clf: Classifier
    variables: Variables


class SharedImages(NamedTuple):
    """Images that all networks classify correctly.

    Attributes:
      paths: the n files.
      images: uint8[n s s 3].
      labels: i[n], ground truth.
      n_read: images that were read to find them.
      n_wrong: i[m], of the images that were read, how many each of m networks misclassifies.
      skipped: rows `{"path", "why"}` of files that could not be read.
    """

    paths: list[Path | data.WithWhite]
    images: np.ndarray
    labels: np.ndarray
    n_read: int
    n_wrong: np.ndarray
    skipped: list[dict[str, str]]


def load_networks(networks: Sequence[str]) -> tuple[list[Network], pixels.PixelSpec]:
    """The networks, and the preprocessing of the first one.

    Args:
      networks: at least two names or folders, as `models.load` takes them, with the same classes.

    Raises:
      ValueError: fewer than two networks, a name twice, or different classes.
    """
    if len(networks) < 2 or len(set(networks)) < len(networks):
        raise ValueError(
            f"`networks` must be at least two different networks: got {','.join(networks)!r}"
        )
    loaded = [models.load(name) for name in networks]
    first = loaded[0][0]
    for name, (clf, _) in zip(networks, loaded, strict=True):
        names, expected = (inference.class_table(c).display_names for c in (clf, first))
        if names != expected:
            raise ValueError(
                f"`networks` must share their classes: {name} has other classes than {networks[0]}"
            )
    return [
        as_network(name, *pair) for name, pair in zip(networks, loaded, strict=True)
    ], first.pixels


def as_network(name: str, clf: Classifier, variables: Variables) -> Network:
    """A classifier that sees the whole image instead of its center, in the device's number type."""
    clf = clf.with_dtype(devices.default_dtype())
    return Network(name, clf.with_pixels(crop=1.0), jax.device_put(clf.fold_batch_norm(variables)))


def check_eps(eps: float, norm: str, size: int) -> None:
    """Checks the radius of an attack on images of a side.

    Raises:
      ValueError: `eps` is not in (0, distance from black to white].
    """
    largest = norms.largest(norms.get(norm), (size, size, 3))
    if not 0 < eps <= largest:
        raise ValueError(
            f"`eps` is out of range: got {eps:.4g}, expected a number in (0, {largest:.4g}], the "
            f"distance from black to white in {norm}"
            f"{norms.level_hint(eps) if norm == 'linf' else ''}"
        )


def resizing_logits(network: Network) -> Logits:
    """Differentiable `(variables, images01 f32[b s s 3]) -> f32[b k]` for images of any size."""
    spec, logits = network.clf.pixels, network.clf.logits
    return lambda variables, images01: logits(variables, pixels.resize_on_device(spec, images01))


def predict_all(networks: Sequence[Network], images: np.ndarray) -> np.ndarray:
    """Logits f32[m n k] of each network for images uint8[n s s 3], resized by its own `prepare`."""
    return np.stack(
        [
            inference.predict_logits(
                clf, variables, np.stack([clf.prepare(image) for image in images])
            )
            for _, clf, variables in networks
        ]
    )


def select_images(
    networks: Sequence[Network],
    spec: pixels.PixelSpec,
    images: Any,
    *,
    labeled: bool,
    limit: int,
    seed: int,
    remark: Callable[..., object] = lambda *sentences: None,
    white: int = 0,
) -> SharedImages:
    """Images that all networks classify correctly, drawn at random.

    Args:
      networks: at least one network.
      spec: turns a file into the square image that all networks see.
      images: files, folders and globs, as `data.find_images` takes them.
      labeled: the folder of an image is its class; otherwise its class is what all networks
        predict.
      limit: stop at this number of images; 0 is all.
      seed: seed of the order in which images are drawn.
      remark: called with sentences on the names of folders, as in `inference.folder_labels`.
      white: as for `data.find_images`.

    Raises:
      ValueError: there is no such image, or those of `inference.folder_labels`.
    """
    paths, left_out = data.find_images(images, white=white)
    paths = [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))]
    named = inference.folder_labels(networks[0].clf, paths, remark) if labeled else None
    skipped = [skip._asdict() for skip in left_out]
    selected: list[Path | data.WithWhite] = []
    squares, labels, n_read, n_wrong = [], [], 0, np.zeros(len(networks), np.int64)
    for batch in data.load(paths, lambda image: pixels.prepare(spec, image), batch_size=READ_BATCH):
        skipped += [skip._asdict() for skip in batch.skipped]
        if not batch.valid.any():
            continue
        index, square = batch.index[batch.valid], batch.images[batch.valid]
        files = [paths[i] for i in index]
        predicted = predict_all(networks, square).argmax(axis=2)
        truth = predicted[0] if named is None else named[index]
        correct = (predicted == truth).all(axis=0)
        n_read, n_wrong = n_read + len(files), n_wrong + (predicted != truth).sum(axis=1)
        selected += [path for path, good in zip(files, correct, strict=True) if good]
        squares, labels = [*squares, square[correct]], [*labels, truth[correct]]
        print(
            f"{len(selected)} of {n_read} images are classified correctly by all {len(networks)} "
            "networks",
            flush=True,
        )
        if limit and len(selected) >= limit:
            break
    if not selected:
        raise ValueError(
            f"none of {n_read} images is classified correctly by all {len(networks)} networks; "
            "pass other images or fewer `networks`"
        )
    n = limit or len(selected)
    return SharedImages(
        selected[:n],
        np.concatenate(squares)[:n],
        np.concatenate(labels)[:n],
        n_read,
        n_wrong,
        skipped,
    )
