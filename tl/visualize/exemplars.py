"""The real pictures that a unit, or a class, answers most: what a channel is for, told by examples.

Activations come from the feature bank (`features`), so a second channel costs no second pass. Which channels one picture
drives is `tl.visualize.maps`; pictures that are made for a unit are `tl.visualize.render`'s.

Reference: Zeiler & Fergus 2014, arXiv:1311.2901, section 4 (the nine strongest pictures of a feature map).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from tl import data, pixels
from tl.data import Batch, Source
from tl.inference import features
from tl.models import Classifier, heads
from tl.paths import nearest
from tl.types import Array, Variables

Top = list[tuple[Source, float]]
"""Pictures and how strongly each is answered, the strongest first."""

Progress = Callable[[Iterable[Batch], int], Iterable[Batch]]


def top_rows(values: np.ndarray, k: int) -> np.ndarray:
    """Where the `k` largest of f32[n] stand, largest first, equals in their order; NaN (a picture not read) is left out.

    Example:
      >>> top_rows(np.array([0.5, np.nan, 2.0, 1.0]), 3).tolist()
      [2, 3, 0]
    """
    order = np.argsort(-values, kind="stable")
    return order[~np.isnan(values[order])][:k]


def top_pictures(
    clf: Classifier,
    variables: Variables,
    paths: Sequence[Source],
    endpoint: str,
    channels: Sequence[int],
    k: int = 9,
    *,
    cache: Path | None = None,
    batch_size: int = 16,
    progress: Progress = lambda batches, total: batches,
) -> list[Top]:
    """The pictures that activate channels of an endpoint most, by the mean over the channel's map.

    Args:
      clf, variables: the network; its head plays no part.
      paths: picture files, or pictures inside a prepared set; those that cannot be read are left out.
      endpoint: an endpoint's name, or "features".
      channels: which of its channels, each in [0, c).
      k: pictures a channel.
      cache, batch_size, progress: as for `tl.inference.features.extract`.

    Returns:
      For each channel at most k pairs (picture, activation), the strongest first.

    Raises:
      ValueError: unknown endpoint (gives the nearest), or a channel that it has not (says how many there are). Both before
        any picture is read.
    """
    width = _width(clf, variables, endpoint)
    if beyond := [int(channel) for channel in channels if not 0 <= channel < width]:
        raise ValueError(
            f"{clf.arch}'s {endpoint} has {width} channels, 0 to {width - 1}; got channel {beyond[0]}"
        )
    bank = features.extract(
        clf,
        variables,
        paths,
        endpoint=endpoint,
        cache=cache,
        batch_size=batch_size,
        progress=progress,
    )
    values = np.where(bank.valid[:, None], bank.values, np.nan)
    return [_top(paths, values[:, channel], k) for channel in channels]


def top_classes(
    clf: Classifier,
    variables: Variables,
    paths: Sequence[Source],
    members: Array,
    k: int = 9,
    *,
    cache: Path | None = None,
    batch_size: int = 16,
    progress: Progress = lambda batches, total: batches,
) -> list[Top]:
    """The pictures that look most like classes to a network, by the mean logit of each row's classes.

    From the bank's features where the head reads nothing else; else (VGG's own classifier) by a forward pass each time.

    Args:
      clf, variables: the network.
      paths: as for `top_pictures`.
      members: bool[m k], the classes of each row, at least one.
      k: pictures a row.
      cache, batch_size, progress: as for `tl.inference.features.extract`.

    Returns:
      For each row at most k pairs (picture, mean logit), the highest first.

    Raises:
      ValueError: a network without a head, or `members` of another shape or dtype, or with an empty row.
    """
    if clf.head is None or clf.classes is None:
        raise ValueError(clf.no_head_message())
    rows, classes = np.asarray(members), len(clf.classes.entries)
    if rows.dtype != bool or rows.ndim != 2 or rows.shape[1] != classes:
        raise ValueError(
            f"members are bool[m {classes}], a row a wish; got {rows.dtype}{list(rows.shape)}"
        )
    if not rows.any(axis=1).all():
        raise ValueError(
            f"row {rows.any(axis=1).argmin()} of the members names no class, wanted one or more in each"
        )
    if heads.pooled(clf.head):
        bank = features.extract(
            clf, variables, paths, cache=cache, batch_size=batch_size, progress=progress
        )
        logits, valid = (
            np.asarray(clf.apply_head(variables, jax.numpy.asarray(bank.values))),
            bank.valid,
        )
    else:
        logits, valid = _logits(clf, variables, paths, classes, batch_size, progress)
    share = rows / rows.sum(axis=1, keepdims=True)
    means = np.where(valid[:, None], logits, np.nan) @ share.T.astype(np.float32)
    return [_top(paths, means[:, row], k) for row in range(len(rows))]


def _top(paths: Sequence[Source], values: np.ndarray, k: int) -> Top:
    return [(paths[row], float(values[row])) for row in top_rows(values, k)]


def _width(clf: Classifier, variables: Variables, endpoint: str) -> int:
    """How many channels an endpoint has."""
    side = max(clf.pixels.size, clf.spec.min_size)
    blank = jax.ShapeDtypeStruct((1, side, side, len(clf.pixels.mean)), np.float32)
    output = jax.eval_shape(clf.apply, variables, blank)
    known = {**output.endpoints, "features": output.features}
    if endpoint not in known:
        raise ValueError(
            f"{clf.arch} has no endpoint {endpoint!r}; nearest: {nearest(endpoint, known)}"
        )
    return known[endpoint].shape[-1]


def _logits(
    clf: Classifier,
    variables: Variables,
    paths: Sequence[Source],
    classes: int,
    batch_size: int,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits f32[n k] of pictures and which could be read, bool[n]."""
    logits, valid = np.zeros((len(paths), classes), np.float32), np.zeros(len(paths), bool)
    on_device, forward = jax.device_put(clf.fold_batch_norm(variables)), _forward(clf)
    for batch in progress(
        data.load(paths, clf.prepare, batch_size=batch_size), -(-len(paths) // batch_size)
    ):
        there = batch.index[batch.valid]
        logits[there] = np.asarray(forward(on_device, pixels.to_images01(batch.images)))[
            batch.valid
        ]
        valid[there] = True
    return logits, valid


@functools.cache
def _forward(clf: Classifier) -> Callable[[Variables, Array], jax.Array]:
    return jax.jit(clf.logits)
