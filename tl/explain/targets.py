"""Targets: the weights of the logits whose sum is explained.

A class has weight 1. The classes of a group share weight 1. In "tabby vs tiger cat" the classes
after "vs" have negative weights, so the map shows what speaks for the first and against the second.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tl.attacks import goals
from tl.labels import ClassTable
from tl.types import Array

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


def predicted(logits: Array) -> np.ndarray:
    """The weights f32[n k] of the class with the largest logit of f32[n k]."""
    logits = np.asarray(logits)
    return np.eye(logits.shape[1], dtype=np.float32)[logits.argmax(axis=1)]
