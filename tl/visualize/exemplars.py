"""The real images that activate a channel or a class most.

Activations come from the feature bank (`tl.inference.features`), so a second channel needs no
second pass. Which channels an image activates is in `tl.visualize.maps`; images that are optimized
for a unit are in `tl.visualize.render`.

Reference:
  Zeiler & Fergus 2014, arXiv:1311.2901, section 4 (the nine strongest activations of a feature
  map).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from tl import inference, pixels
from tl.data import Batch, Source
from tl.inference import features
from tl.models import Classifier, heads
from tl.paths import nearest
from tl.types import Array, Variables

Top = list[tuple[Source, float]]
"""Images and their activations, the highest first."""

Progress = Callable[[Iterable[Batch], int], Iterable[Batch]]


def top_rows(values: np.ndarray, k: int) -> np.ndarray:
    """The indices of the `k` largest of f32[n], largest first; ties keep their order.

    NaN, the value of an unreadable image, is left out.

    Example:
      >>> top_rows(np.array([0.5, np.nan, 2.0, 1.0]), 3).tolist()
      [2, 3, 0]
    """
    order = np.argsort(-values, kind="stable")
    return order[~np.isnan(values[order])][:k]


def top_channels(
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
    """The images that activate channels of an endpoint most, by the mean over the channel's map.

    Args:
      clf, variables: the network; its head is not used.
      paths: image files, or images inside a prepared data set; unreadable ones are left out.
      endpoint: an endpoint's name, or "features".
      channels: channels of the endpoint, each in [0, c).
      k: images per channel.
      cache, batch_size, progress: as for `tl.inference.features.extract`.

    Returns:
      For each channel at most k pairs (image, activation), the highest first.

    Raises:
      ValueError: if the endpoint is unknown (names the nearest) or a channel is out of range,
        before any image is read.
    """
    width = _width(clf, variables, endpoint)
    if outside := [int(channel) for channel in channels if not 0 <= channel < width]:
        raise ValueError(
            f"{endpoint} of {clf.arch} has {width} channels: got channel {outside[0]}, expected 0 "
            f"to {width - 1}"
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
    class_mask: Array,
    k: int = 9,
    *,
    cache: Path | None = None,
    batch_size: int = 16,
    progress: Progress = lambda batches, total: batches,
) -> list[Top]:
    """The images with the highest mean logit of each row's classes.

    Logits come from the feature bank if the head reads pooled features only. Otherwise (VGG's own
    classifier) each call runs a forward pass.

    Args:
      clf, variables: the network.
      paths: as for `top_channels`.
      class_mask: bool[m classes], the classes of each row, at least one.
      k: images per row.
      cache, batch_size, progress: as for `tl.inference.features.extract`.

    Returns:
      For each row at most k pairs (image, mean logit), the highest first.

    Raises:
      ValueError: if the network has no head, or if `class_mask` has another shape or dtype or an
        empty row.
    """
    if clf.head is None or clf.classes is None:
        raise ValueError(clf.no_head_message())
    mask, classes = np.asarray(class_mask), len(clf.classes.entries)
    if mask.dtype != bool or mask.ndim != 2 or mask.shape[1] != classes:
        raise ValueError(
            f"`class_mask` has the wrong type: got {mask.dtype}{list(mask.shape)}, expected bool[m "
            f"{classes}], one row per objective"
        )
    if not mask.any(axis=1).all():
        raise ValueError(
            f"row {mask.any(axis=1).argmin()} of `class_mask` names no class: expected at least "
            "one per row"
        )
    if heads.pooled(clf.head):
        bank = features.extract(
            clf, variables, paths, cache=cache, batch_size=batch_size, progress=progress
        )
        logits = np.asarray(clf.apply_head(variables, jax.numpy.asarray(bank.values)))
        valid = bank.valid
    else:
        logits, valid = np.zeros((len(paths), classes), np.float32), np.zeros(len(paths), bool)
        on_device = jax.device_put(clf.fold_batch_norm(variables))
        forward = lambda images: inference.forward(clf)(on_device, pixels.to_images01(images))
        for batch in inference.map_sources(
            forward, paths, clf.prepare, batch_size=batch_size, progress=progress
        ):
            logits[batch.index], valid[batch.index] = batch.values, True
    weights = mask / mask.sum(axis=1, keepdims=True)
    means = np.where(valid[:, None], logits, np.nan) @ weights.T.astype(np.float32)
    return [_top(paths, means[:, row], k) for row in range(len(mask))]


def _top(paths: Sequence[Source], values: np.ndarray, k: int) -> Top:
    return [(paths[row], float(values[row])) for row in top_rows(values, k)]


def _width(clf: Classifier, variables: Variables, endpoint: str) -> int:
    """The number of channels of an endpoint."""
    side = max(clf.pixels.size, clf.spec.min_size)
    blank = jax.ShapeDtypeStruct((1, side, side, len(clf.pixels.mean)), np.float32)
    output = jax.eval_shape(clf.apply, variables, blank)
    maps = {**output.endpoints, "features": output.features}
    if endpoint not in maps:
        raise ValueError(
            f"{clf.arch} has no endpoint {endpoint!r}; nearest: {nearest(endpoint, maps)}"
        )
    return maps[endpoint].shape[-1]
