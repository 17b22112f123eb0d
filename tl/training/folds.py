"""The folds in which the strength of a probe is chosen; `tl.data.folds` divides a data set."""

from __future__ import annotations

import numpy as np


def folds(
    labels: np.ndarray, count: int, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Stratified folds: the fold of each example, i[n] in [0, count).

    Args:
      labels: i[n], at least 0.
      count: number of folds, at most the number of groups.
      seed: seed of the order in which each class is dealt.
      groups: i[n] in [0, n), equal for examples that must be in one fold, such as copies of an
        image; None if every example is a group of its own. A group has the class of its first
        example; large groups are dealt first.
    """
    rng = np.random.default_rng(seed)
    _, first, group = np.unique(
        np.arange(len(labels)) if groups is None else groups,
        return_index=True,
        return_inverse=True,
    )
    if count == len(first):
        return group
    sizes = np.bincount(group)
    fold_of_group = np.zeros(len(first), np.int64)
    in_fold = np.zeros(count, np.int64)
    for label in np.unique(labels):
        of_class = rng.permutation(np.sort(first[labels[first] == label]))
        of_class = group[of_class]
        of_class = of_class[np.argsort(-sizes[of_class], kind="stable")]
        of_label = np.zeros(count, np.int64)
        for g in of_class:
            # Fewest examples of the class, then fewest of all, so that small classes do not all
            # fill the first folds.
            smallest = np.lexsort((in_fold, of_label))[0]
            fold_of_group[g] = smallest
            of_label[smallest] += sizes[g]
            in_fold[smallest] += sizes[g]
    return fold_of_group[group]
