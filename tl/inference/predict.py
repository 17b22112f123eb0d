"""Reads images as a network sees them and computes their logits in batches of one shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import data, pixels
from tl.labels import ClassTable
from tl.models import Classifier
from tl.types import Variables


class Pictures(NamedTuple):
    """Pictures as the network sees them: `images` uint8[n s s 3] of the `paths` that could be read, and the rest."""

    paths: list[Path]
    images: np.ndarray
    skipped: list[dict[str, str]]


def read_images(clf: Classifier, words: str | Sequence[str]) -> Pictures:
    """The pictures that files, folders and globs name, each cropped for the network."""
    paths, skips = data.find_images(words)
    batches = list(data.load(paths, clf.prepare, batch_size=16))
    skips = [*skips, *(skip for batch in batches for skip in batch.skipped)]
    kept = [paths[i] for batch in batches for i in batch.index[batch.valid]]
    if not kept:
        why = "; ".join(f"{skip.path}: {skip.why}" for skip in skips[:3])
        raise ValueError(
            f"none of the {len(skips)} files that {words!r} names is a picture that can be read ({why})"
        )
    images = np.concatenate([batch.images[batch.valid] for batch in batches])
    return Pictures(kept, images, [skip._asdict() for skip in skips])


@functools.cache
def forward(clf: Classifier) -> Callable[[Variables, Any], jax.Array]:
    """The network's jitted logits, the same function each time, so that a shape compiles once a run."""
    return jax.jit(clf.logits)


def predict_logits(
    clf: Classifier, variables: Variables, images: np.ndarray, *, batch_size: int = 16
) -> np.ndarray:
    """Logits f32[n k] of pictures uint8[n s s 3], in batches of one shape."""
    rows = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        padded = np.concatenate(
            [batch, np.zeros((batch_size - len(batch), *batch.shape[1:]), np.uint8)]
        )
        rows.append(np.asarray(forward(clf)(variables, pixels.to_images01(padded)))[: len(batch)])
    return np.concatenate(rows)


def topk(clf: Classifier, probabilities: np.ndarray, k: int) -> list[dict[str, Any]]:
    """The `k` most probable classes of one picture, as result.json has them."""
    table = class_table(clf)
    order = np.argsort(-probabilities, kind="stable")[:k]
    entry = lambda i: {"index": int(i), "wnid": table.entries[i].wnid, "name": table.display(i)}
    return [{**entry(i), "probability": float(probabilities[i])} for i in order]


def class_table(clf: Classifier) -> ClassTable:
    """The names of a network's logits; a network without a classifier is told as `Classifier.logits` tells it."""
    if clf.classes is None:
        raise ValueError(clf.no_head_message())
    return clf.classes


def folder_labels(clf: Classifier, paths: list[Path]) -> np.ndarray:
    """The class that each picture's folder names, i[n]."""
    found = {}
    for folder in {path.parent.name for path in paths}:
        indices = class_table(clf).find(folder)
        if len(indices) != 1:
            raise ValueError(
                f"the folder {folder!r} names {len(indices)} classes; --labels=folder wants one class a folder"
            )
        found[folder] = indices[0]
    return np.array([found[path.parent.name] for path in paths])
