"""Labels that a cross-validated probe contradicts: their share, and the most suspicious examples.

The probe sees each example only in the folds that hold it out. A contradiction is a wrong label or
a hard image; the estimate is therefore too high where the features do not separate the classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tl import metrics
from tl.training import probe
from tl.training.folds import folds
from tl.types import Array

# Cross-validation folds; chosen, not tuned.
FOLDS = 5


class LabelNoise(NamedTuple):
    """An estimate of label noise.

    Attributes:
      joint: f64[k k], sums to 1: the share of examples with label i (row) whose class is j.
      share: share of examples whose label is not their class, in [0, 1]: `joint` off its diagonal.
      suspicious: i[m], for each pair of a label and another class as many examples as `joint` says:
        those with the largest margin, the probability of the class minus that of the label. Only
        examples whose label is not the most probable class; the largest margin comes first.
      classes: i[m], the most probable class of each of them.
    """

    joint: np.ndarray
    share: float
    suspicious: np.ndarray
    classes: np.ndarray


def confident_joint(probabilities: Array, labels: np.ndarray) -> LabelNoise:
    """The joint distribution of labels and classes by confident learning.

    An example counts as class j if its probability of j is at least the mean of that probability
    over the examples with label j; of several such classes the most probable one counts. The counts
    of each label are then scaled to its number of examples.

    Args:
      probabilities: f[n k], of a classifier that was not fitted to the example.
      labels: i[n] in [0, k).

    Raises:
      ValueError: a class without an example.

    Reference: Northcutt et al. 2021, arXiv:1911.00068, section 3.1 (equations 1 to 3), and section
      3.2 for the examples ("prune by noise rate"). If several classes are confident, the code of
      cleanlab takes the most probable of all classes instead of the most probable confident one.
      Every class counts one correct example at least, as there.

    Example:
      >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.1, 0.9]])
      >>> noise = confident_joint(p, np.array([0, 0, 0, 1, 1]))
      >>> noise.suspicious.tolist(), round(noise.share, 2)
      ([2], 0.2)
    """
    p = np.asarray(probabilities, np.float64)
    n, k = p.shape
    counts = np.bincount(labels, minlength=k)
    if not counts.all():
        raise ValueError(f"each class needs an example: got {counts.tolist()} examples")
    thresholds = np.array([p[labels == j, j].mean() for j in range(k)])
    # The mean of equal probabilities may exceed them by rounding.
    confident = p >= thresholds[None] - 1e-12
    suggested = np.where(confident, p, -1.0).argmax(axis=1)
    counted = confident.any(axis=1)
    joint = metrics.confusion(labels[counted], suggested[counted], k).astype(np.float64)
    np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1.0))
    joint *= (counts / joint.sum(axis=1))[:, None] / n
    margins = p - p[np.arange(n), labels][:, None]
    chosen = np.zeros(n, bool)
    for i, j in zip(*np.nonzero(np.round(n * joint)), strict=True):
        order = np.argsort(-np.where(labels == i, margins[:, j], -1.0), kind="stable")
        chosen[order[: round(n * joint[i, j])]] |= i != j
    order = np.argsort(-margins.max(axis=1), kind="stable")
    suspicious = order[chosen[order] & (margins[order].max(axis=1) > 0)]
    share = max(0.0, 1.0 - float(joint.trace()))
    return LabelNoise(joint, share, suspicious, margins[suspicious].argmax(axis=1))


def held_out_probabilities(
    features: Array,
    labels: np.ndarray,
    classes: int,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Probabilities f64[n k] of a logistic probe for the examples of each fold that it did not see.

    The strength is that of `probe.fit`, and its temperature calibrates the probabilities.

    Args:
      features: f32[n d].
      labels: i[n] in [0, classes).
      classes: k.
      groups: i[n], equal for copies of an example, which stay in one fold.
      seed: seed of the folds.

    Raises:
      ValueError: those of `probe.fit`.
    """
    features = np.asarray(features)
    options = {"fold_count": FOLDS, "groups": groups, "seed": seed}
    fitted = probe.fit(features, labels, classes, **options)
    weights = np.ones(len(labels))
    count = min(FOLDS, len(labels) if groups is None else len(np.unique(groups)))
    fold = folds(labels, count, seed, groups)
    bank = probe.factorize(features, weights)
    strengths = (fitted.strength,)
    (scores,) = probe.METHODS["logistic"].held_out_scores(
        bank, labels, weights, classes, fold, strengths
    )
    return metrics.softmax(scores / fitted.temperature)
