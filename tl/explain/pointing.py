"""Tests with a known answer: mosaics of four photographs, and a mark that decides the class.

Both need no annotation. In a mosaic the class of one photograph is explained, and its map should
lie in that quarter. A classifier learns to separate photographs with a planted mark from
those without, and the map of a marked photograph should point at the mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import inference, metrics, pixels
from tl.explain import drawing
from tl.explain.base import make
from tl.explain.evidence import CONTROLS, Evidence
from tl.explain.statistics import FEWEST, bootstrap
from tl.inference.features import pooled
from tl.models import Classifier
from tl.training import probe
from tl.types import Array, Variables

# Share of the image's side: a probe on pooled features misses many smaller marks.
MARK = 1 / 4
CLASSES = ("plain", "marked")


def check(classes: Array, *, mosaics: int, marks: int) -> None:
    """Checks that images suffice for the tests, before anything is computed.

    Args:
      classes: i[n], the class of each image.
      mosaics, marks: as for `Evidence`.

    Raises:
      ValueError: mosaics of fewer than four classes, or marks on fewer than 8 images.
    """
    if mosaics and (k := len(np.unique(classes))) < 4:
        raise ValueError(f"a mosaic needs photographs of four classes: got {k}; give more `images`")
    if marks and len(classes) < 8:
        raise ValueError(f"the test with a mark needs at least 8 images: got {len(classes)}")


class Mosaics(NamedTuple):
    """Mosaics of four photographs of different classes.

    Attributes:
      images01: f32[n s s c] in [0, 1].
      labels: i[n], the class of the photograph that is explained.
      quarters: i[n], where it is: 0 to 3, row by row.
    """

    images01: np.ndarray
    labels: np.ndarray
    quarters: np.ndarray


def mosaics(images01: Array, labels: Array, n: int, *, seed: int) -> Mosaics:
    """Draws n mosaics; each photograph is reduced to half its side by means of 2 x 2 pixels.

    Args:
      images01: f32[b s s c] in [0, 1].
      labels: i[b], their classes.
      n: number of mosaics.
      seed: of the drawing.

    Raises:
      ValueError: the photographs have fewer than four classes.

    Reference: Arias-Duart et al. 2022, "Focus! Rating XAI methods and finding biases",
      arXiv:2109.15035, section 3. Their mosaics have two photographs of the explained class.
    """
    images01, labels = np.asarray(images01), np.asarray(labels)
    check(labels, mosaics=n, marks=0)
    classes = np.unique(labels)
    rng, (b, s, _, c) = np.random.default_rng(seed), images01.shape
    half = s // 2
    small = images01[:, : 2 * half, : 2 * half].reshape(b, half, 2, half, 2, c).mean((2, 4))
    out = np.zeros((n, s, s, c), np.float32)
    quarters = np.arange(n) % 4
    explained = np.zeros(n, np.int64)
    for i in range(n):
        chosen = rng.choice(classes, 4, replace=False)
        explained[i] = chosen[quarters[i]]
        rows = [rng.choice(np.flatnonzero(labels == label)) for label in chosen]
        tiles = small[rows].reshape(2, 2, half, half, c)
        mosaic = tiles.transpose(0, 2, 1, 3, 4).reshape(2 * half, 2 * half, c)
        out[i] = np.pad(mosaic, ((0, s - 2 * half), (0, s - 2 * half), (0, 0)), mode="edge")
    return Mosaics(out, explained, quarters)


def energy(maps: Array, quarters: Array) -> np.ndarray:
    """Share of the positive values of a map that lies in a quarter, f64[n]; 0 without any.

    Args:
      maps: f32[n h w].
      quarters: i[n], 0 to 3, row by row.
    """
    positive = np.maximum(np.asarray(maps, np.float64), 0.0)
    h, w = (side // 2 for side in positive.shape[1:])
    halves = [slice(0, h), slice(h, 2 * h)], [slice(0, w), slice(w, 2 * w)]
    inside = [
        values[halves[0][quarter // 2], halves[1][quarter % 2]].sum()
        for values, quarter in zip(positive, quarters, strict=True)
    ]
    return np.array(inside) / np.maximum(positive.sum(axis=(1, 2)), 1e-30)


def mark(images: np.ndarray, corners: np.ndarray, side: int) -> np.ndarray:
    """Blends a magenta disk into images, opaque in its center and without an edge at its rim.

    An edge map finds a mark with a sharp edge, without any network.

    Args:
      images: uint8[n s s c].
      corners: i[n 2], row and column of the upper left corner.
      side: diameter of the disk, in pixels.

    Returns:
      uint8[n s s c].
    """
    place = 2 * (np.arange(side) + 0.5) / side - 1
    opacity = np.maximum(1 - place[:, None] ** 2 - place[None] ** 2, 0)[..., None]
    color = np.resize([255, 0, 255], (1, 1, images.shape[-1]))
    out = images.copy()
    for image, (top, left) in zip(out, corners, strict=True):
        part = image[top : top + side, left : left + side]
        part[...] = np.rint((1 - opacity) * part + opacity * color)
    return out


class Marked(NamedTuple):
    """A classifier of marked photographs, and photographs that it classifies as marked.

    Attributes:
      clf, variables: the network with a probe for `CLASSES`.
      accuracy: of photographs outside the training set, with and without a mark.
      images: uint8[n s s c], with the mark, outside the training set.
      corners: i[n 2], row and column of the upper left corner of the mark.
      side: of the mark, in pixels.
    """

    clf: Classifier
    variables: Variables
    accuracy: float
    images: np.ndarray
    corners: np.ndarray
    side: int


def marked(clf: Classifier, variables: Variables, images: np.ndarray, n: int, seed: int) -> Marked:
    """Marks photographs at random places and fits a probe that separates them from those without.

    Half of the photographs are for training. Each is in both classes, once with a mark, so the
    classes differ in the mark only.

    Args:
      clf, variables: the network; its head is not used.
      images: uint8[b s s c], at least 8.
      n: largest number of marked photographs in the result.
      seed: of the division and the places.

    Raises:
      ValueError: fewer than 8 photographs, or the probe finds no mark.

    Reference: Adebayo et al. 2020, arXiv:2011.05429, section 3, plant a background that decides the
      class; Kim et al. 2018, arXiv:1711.11279, section 4.2, a caption.
    """
    check(np.zeros(len(images)), mosaics=0, marks=n)
    rng = np.random.default_rng(seed)
    order, side = rng.permutation(len(images)), max(round(images.shape[1] * MARK), 4)
    corners = rng.integers(0, images.shape[1] - side + 1, (len(images), 2))
    train, test = np.split(order, [len(images) // 2])
    program, on_device = pooled(clf, "features"), jax.device_put(variables)
    features = lambda images: inference.in_batches(
        lambda rows: program(on_device, pixels.to_images01(rows)), images
    )
    both = np.concatenate([images[train], mark(images[train], corners[train], side)])
    labels, pairs = np.repeat([0, 1], len(train)), np.tile(np.arange(len(train)), 2)
    fitted = probe.fit(features(both), labels, 2, groups=pairs, seed=seed)
    clf, variables = clf.replace_head(variables, CLASSES, key=jax.random.key(seed))
    variables = {**variables, "params": {**variables["params"], "head": fitted.params}}
    with_mark = mark(images[test], corners[test], side)
    scores = [
        features(part) @ fitted.params["kernel"] + fitted.params["bias"][None]
        for part in (images[test], with_mark)
    ]
    plain, found = (part.argmax(axis=1) == label for label, part in enumerate(scores))
    if not found.any():
        raise ValueError("the probe finds no mark; give more `images` or another network")
    keep = np.flatnonzero(found)[:n]
    accuracy = float(np.concatenate([plain, found]).mean())
    return Marked(clf, variables, accuracy, with_mark[keep], corners[test][keep], side)


def points_at(maps: Array, corners: np.ndarray, side: int) -> np.ndarray:
    """Whether the center of the strongest window of a map lies in the mark, bool[n].

    Args:
      maps: f32[n h w].
      corners: i[n 2], row and column of the upper left corner of the mark.
      side: of the mark and of the window, in pixels.

    Reference: the pointing game of Zhang et al. 2018, arXiv:1608.00507, section 4.1, which takes
      the strongest pixel.
    """
    strongest = [drawing.top_patches(values, 1, side) for values in np.asarray(maps)]
    hits = [
        bool(found) and bool((np.abs(np.array(found[0]) - corner) <= side / 2).all())
        for found, corner in zip(strongest, corners, strict=True)
    ]
    return np.array(hits)


def mosaic(evidence: Evidence, name: str) -> dict[str, Any] | None:
    """The share of positive values in the quarter of the explained class, in `evidence.mosaics`.

    Returns:
      `{"value", "ci95", "passed"}`: the mean over mosaics of the images, whose classes are the
      predicted ones, and whether its interval is above a quarter; None without mosaics.
    """
    if not evidence.mosaics:
        return None
    _, variables, key, _, targets = evidence.subject
    images01, labels, quarters = evidence.shared(_mosaics)
    targets = np.eye(np.shape(targets)[1], dtype=np.float32)[labels]
    maps = evidence.explanations[name](variables, key, images01, targets)
    row = bootstrap(energy(maps, quarters))
    return row | {"passed": None if len(labels) < FEWEST else row["ci95"][0] > 0.25}


def _mosaics(evidence: Evidence) -> Mosaics:
    images01 = np.asarray(evidence.subject.images01)[evidence.firsts()]
    classes = evidence.logits(images01).argmax(axis=1)
    return mosaics(images01, classes, evidence.mosaics, seed=0)


def watermark(evidence: Evidence, name: str) -> dict[str, Any] | None:
    """The share of marked photographs whose map points at the mark, of at most `evidence.marks`.

    Returns:
      `{"value", "ci95", "n", "hits", "accuracy"}`: the share, its Wilson interval, the number of
      marked photographs, whether each map points at the mark, and the accuracy of the probe that
      separates them from plain ones; None without marks.
    """
    if not evidence.marks:
        return None
    found = evidence.shared(_marked)
    images01 = np.asarray(pixels.to_images01(found.images))
    targets = np.tile(np.array([[-1.0, 1.0]], np.float32), (len(images01), 1))
    explanation = make(evidence.explanations[name].method, found.clf, slots=evidence.slots)
    maps = explanation(found.variables, evidence.subject.key, images01, targets)
    hits = points_at(maps, found.corners, found.side)
    return {**_share(hits), "hits": hits.tolist(), "accuracy": found.accuracy}


def _share(hits: np.ndarray) -> dict[str, Any]:
    bounds = list(metrics.wilson(int(hits.sum()), len(hits)))
    return {"value": float(hits.mean()), "ci95": bounds, "n": len(hits)}


def found_by_any(tests: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The share of marked photographs in which at least one method points at the mark.

    Args:
      tests: method or control -> test -> row, as `checks.evaluate` returns them.

    Returns:
      `{"value", "ci95", "n", "methods"}`, without the controls; None without marks or methods.
    """
    hits = {
        name: row["watermark"]["hits"]
        for name, row in tests.items()
        if "watermark" in row and name not in CONTROLS
    }
    if not hits:
        return None
    return {**_share(np.any(list(hits.values()), axis=0)), "methods": list(hits)}


def _marked(evidence: Evidence) -> Marked:
    clf, variables, _, images01, _ = evidence.subject
    images = pixels.to_uint8(np.asarray(images01)[evidence.firsts()])
    return marked(clf, variables, images, evidence.marks, 0)
