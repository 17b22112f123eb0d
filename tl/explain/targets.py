"""Targets: the weights of the logits whose sum is explained, or another objective.

A class has weight 1. The classes of a group share weight 1. In "tabby vs tiger cat" the classes
after "vs" have negative weights, so the map shows what speaks for the first and against the second.
`objective` reads the words of ideal images, such as `channel:stage3:12` or `similarity:features`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from tl import inference
from tl.attacks import goals
from tl.labels import ClassTable
from tl.models import Classifier
from tl.types import Array, Output, Variables
from tl.visualize import specs
from tl.visualize.objectives import Objective

VERSUS = " vs "


def weights(table: ClassTable, words: Sequence[str]) -> np.ndarray:
    """The weights of the logits, one row per word.

    Args:
      table: the classes of the network.
      words: each a class or group as in `ClassTable.find`, or two of them joined with " vs ".

    Returns:
      f32[n k], for `logit` and `probability` of `tl.explain.base`.

    Raises:
      ValueError: an unknown class (names the nearest), or the same class on both sides.

    Example:
      >>> from tl import labels
      >>> table = labels.from_names(["cat", "dog", "owl"])
      >>> weights(table, ["owl", "cat vs dog"]).tolist()
      [[0.0, 0.0, 1.0], [1.0, -1.0, 0.0]]
    """
    return np.stack([_weights(table, word) for word in words])


def _weights(table: ClassTable, word: str) -> np.ndarray:
    parts = [part.strip() for part in word.split(VERSUS)]
    if len(parts) > 2:
        raise ValueError(f"`target` compares more than two classes: got {word!r}; write A vs B")
    mask = goals.class_mask([table.find(part) for part in parts], len(table))
    if len(parts) == 2 and (mask[0] & mask[1]).any():
        raise ValueError(
            f"`target` compares a class with itself: got {word!r}, expected two different classes "
            "or groups"
        )
    shares = mask / mask.sum(axis=1, keepdims=True)
    signs = np.array([1.0, -1.0])[: len(parts)]
    return (signs @ shares).astype(np.float32)


def parse(
    clf: Classifier, variables: Variables, words: Sequence[str], photograph: Array | None = None
) -> tuple[Callable[[Any], Objective] | None, Any]:
    """What the words of a user name: classes, or objectives, which have a colon.

    Args:
      clf, variables, photograph: as for `objective`.
      words: the words; () for the predicted class.

    Returns:
      For classes None, and `weights` or None without words. Otherwise as `objective`.

    Raises:
      ValueError: as `weights` and `objective`, classes and objectives together, or a photograph
        without an objective.
    """
    table = inference.class_table(clf)
    named = [":" in word and word not in table.display_names for word in words]
    if any(named) and not all(named):
        raise ValueError(
            f"`target` has classes and objectives: got {', '.join(words)!r}, expected one of the "
            "two; write a class as logit:CLASS"
        )
    if any(named):
        return objective(clf, variables, words, photograph)
    if photograph is not None:
        raise ValueError(
            "`photograph` is not read: got classes as `target`, expected an objective such as "
            "similarity:features"
        )
    return None, weights(table, words) if words else None


def predicted(logits: Array) -> np.ndarray:
    """The weights f32[n k] of the class with the largest logit of f32[n k]."""
    logits = np.asarray(logits)
    return np.eye(logits.shape[1], dtype=np.float32)[logits.argmax(axis=1)]


def objective(
    clf: Classifier, variables: Variables, words: Sequence[str], photograph: Array | None = None
) -> tuple[Callable[[Any], Objective], dict[str, Any]]:
    """The objective that words such as `channel:stage3:12` name, for `tl.explain.make`.

    Args:
      clf, variables: the network; endpoints are checked for images of the size of `clf.pixels`.
      words: one per image, in the forms of `tl.visualize.specs.KINDS`.
      photograph: f32[h w c] in [0, 1], which `similarity`, `inversion` and `caricature` read.

    Returns:
      A function from targets to the objective, and the targets; each leaf has one row per word.

    Raises:
      ValueError: an unknown objective, class or endpoint (names the nearest), a malformed word, or
        no `photograph` for an objective that reads one.

    Example:
      >>> import tl
      >>> clf, variables = tl.load("squeezenet1_1", weights="random")
      >>> clf = clf.with_pixels(size=32)
      >>> made, rows = objective(clf, variables, ["channel:stage1:3", "neuron:stage2:7"])
      >>> rows["which"].tolist()
      [0, 1]
    """
    shapes = specs.endpoint_shapes(clf, variables, clf.pixels.size)
    chosen = [specs.parse_objective(clf, shapes, word) for word in words]
    endpoints = specs.photograph_endpoints(chosen)
    maps = {}
    if endpoints:
        if photograph is None:
            raise ValueError(
                f"`target` compares with another image: got {words[0]!r}, expected `photograph`; "
                "give one"
            )
        maps = specs.photograph_maps(clf, variables, np.asarray(photograph), endpoints)
    of_networks, targets = specs.program([clf], chosen, shapes, maps)

    def made(targets: Any) -> Objective:
        def value(output: Output, images01: jax.Array) -> jax.Array:
            return of_networks(targets)((output,), images01)  # pyright: ignore[reportArgumentType]

        return Objective(value)

    return made, targets
