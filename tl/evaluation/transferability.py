"""Scores of how well a pretrained network suits a data set, computed without training it.

A score is a row of `SCORES`. Most read the pooled features of the labeled images; LEEP and NCE read
the probabilities of the network's own classes instead. Larger is better for every score. The values
of one score can be compared between networks on the same images, and with nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tl import metrics
from tl.explain import statistics
from tl.explain.support import cosine
from tl.training import probe

# LogME alternates its two updates at most this often, and stops at this relative change of their
# ratio; both are those of the authors' code.
STEPS, CHANGE = 11, 1e-3

# Added to the sums of squares that LogME divides by, as in the authors' code.
SMALLEST = 1e-5

# Neighbors that vote, and the temperature of their weights: Wu et al. 2018, arXiv:1805.01978,
# section 3.4, and the number of neighbors of Caron et al. 2021, arXiv:2104.14294, section 4.1.
NEIGHBORS, TEMPERATURE = 20, 0.07

# Images whose pairs PARC compares: Bolya et al. 2021, arXiv:2111.06977, section 4.
PARC_IMAGES = 500

# Rows of similarities in memory at a time; chosen, not tuned.
ROWS = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What the scores of one network are computed from.

    Attributes:
      features: f32[n d], pooled features of n images.
      labels: i[n] in [0, classes); every class has an image.
      classes: k, at least 2.
      source: f64[n z], probabilities of the classes that the network was trained on; None for a
        network without a head.
      groups: i[n], equal for copies of an image, none of which then predicts another.
      seed: seed of the folds and of the images of PARC.
    """

    features: np.ndarray
    labels: np.ndarray
    classes: int
    source: np.ndarray | None = None
    groups: np.ndarray | None = None
    seed: int = 0


class PerImage(NamedTuple):
    """A score that is the mean of one value per image.

    Attributes:
      correct: bool[n], whether the held-out prediction is correct.
      log_likelihood: f64[n], of the labels, in nats; None for a score without probabilities.
    """

    correct: np.ndarray
    log_likelihood: np.ndarray | None = None


# ---- scores of the features ----------------------------------------------------------------------


def _axes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The thin singular value decomposition of f64[n d] through its smaller Gram matrix.

    Returns:
      Squares of the singular values f64[r], left vectors f64[n r] and right vectors f64[d r], with
      r = min(n, d). Where a singular value is 0, the vectors of the other side are 0.
    """
    from scipy import linalg  # a dependency of JAX, imported here to keep `import tl` light

    tall = len(x) > x.shape[1]
    values, vectors = linalg.eigh(x.T @ x if tall else x @ x.T, driver="evr", check_finite=False)
    values = np.maximum(values, 0.0)
    root = np.sqrt(values)
    inverse = np.where(root > 1e-10, 1.0 / np.maximum(root, 1e-10), 0.0)
    others = ((x if tall else x.T) @ vectors) * inverse[None]
    return (values, others, vectors) if tall else (values, vectors, others)


def logme(features: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """LogME: mean log evidence per image of linear models of each class against the rest.

    It equals the authors' `LogME.fit` to rounding. Where there are more features than images, their
    code (since 2021-10, `_fit_fixed_point`) omits the (d - n) / 2 log(alpha) of the directions
    without data from the evidence, and so does this function. LogME has no upper bound, and may be
    larger than 1.

    Args:
      features: f[n d]; they are not centered, and the model has no bias.
      labels: i[n] in [0, classes).
      classes: number of classes.

    Reference: You et al. 2021, arXiv:2102.11005, equation 2 and algorithm 1; the fixed point is
      that of You et al. 2022, arXiv:2110.10545, algorithm 3.
    """
    x = np.asarray(features, np.float64)
    n, d = x.shape
    squares, left, _ = _axes(x)
    if n > d:
        keep = squares > 1e-20
        squares, left = squares[keep], left[:, keep]
    targets = np.eye(classes)[labels]
    along = np.square(left.T @ targets)
    rest = targets.sum(axis=0) - along.sum(axis=0)
    s = squares[:, None]
    alpha, beta, running = np.ones(classes), np.ones(classes), np.ones(classes, bool)
    weights2, errors2 = np.zeros(classes), np.zeros(classes)
    for _ in range(STEPS):
        ratio = alpha / beta
        t = ratio[None]
        gamma = (s / (s + t)).sum(axis=0)
        weights2 = np.where(running, (s * along / np.square(t + s)).sum(axis=0), weights2)
        errors2 = np.where(running, (along / np.square(1 + s / t)).sum(axis=0) + rest, errors2)
        alpha = np.where(running, gamma / (weights2 + SMALLEST), alpha)
        beta = np.where(running, (n - gamma) / (errors2 + SMALLEST), beta)
        running = running & (np.abs(alpha / beta - ratio) > CHANGE * ratio)
    evidence = 0.5 * (
        d * np.log(alpha)
        + n * np.log(beta)
        - np.log(alpha[None] + beta[None] * s).sum(axis=0)
        - beta * errors2
        - alpha * weights2
        - n * np.log(2 * np.pi)
    )
    return float(np.mean(evidence / n))


def h_score(
    features: np.ndarray, labels: np.ndarray, classes: int, *, regularized: bool = True
) -> float:
    """H-score: the part of the features' variance, after whitening, that lies between classes.

    Args:
      features: f[n d].
      labels: i[n] in [0, classes), at least one of each.
      classes: k; the score is at most k - 1.
      regularized: whether the covariance is shrunk toward a multiple of the identity. Without it,
        the score is k - 1 for every network that has at least as many features as images.

    Reference: Bao et al. 2019, ICIP, definition 2; regularized by Ibrahim et al. 2021,
      arXiv:2110.06893, equation 5, with the shrinkage of Ledoit & Wolf 2004, Journal of
      Multivariate Analysis 88, section 3.3. The covariance between classes has divisor n - 1, as in
      the authors' code and in TLLib.
    """
    x = np.asarray(features, np.float64)
    x = x - x.mean(axis=0, keepdims=True)
    n, d = x.shape
    squares, _, axes = _axes(x)
    targets = np.eye(classes)[labels]
    counts = targets.sum(axis=0)
    centers = (targets.T @ x) / np.maximum(counts, 1.0)[:, None] @ axes
    between = counts @ np.square(centers) / (n - 1)
    if not regularized:
        present = squares > 1e-15 * squares.max()
        return float((between[present] * (n - 1) / squares[present]).sum())
    values = squares / n
    mean, second = values.sum() / d, np.square(values).sum()
    lengths = np.square(np.square(x).sum(axis=1)).sum() / n
    distance = second - d * mean**2
    shrinkage = min((lengths - second) / n, distance) / distance if distance > 0 else 0.0
    spectrum = (1 - shrinkage) * values + shrinkage * mean
    return float((1 - shrinkage) * (between / np.where(spectrum > 0, spectrum, np.inf)).sum())


def parc(
    features: np.ndarray, labels: np.ndarray, *, images: int = PARC_IMAGES, seed: int = 0
) -> float:
    """PARC: rank correlation between distances of features and differences of labels, in [-1, 1].

    The distance of two images is 1 minus the correlation of their standardized features. The
    authors multiply the value by 100, and reduce the features to 32 principal components.

    Args:
      features: f[n d].
      labels: i[n].
      images: largest number of images, drawn at random.
      seed: seed of the draw.

    Reference: Bolya et al. 2021, arXiv:2111.06977, section 3.2.
    """
    rows = np.random.default_rng(seed).permutation(len(labels))[:images]
    x = np.asarray(features, np.float64)[rows]
    std = x.std(axis=0)
    x = (x - x.mean(axis=0, keepdims=True)) / np.where(std > 0, std, 1.0)[None]
    x = x - x.mean(axis=1, keepdims=True)
    one, other = np.triu_indices(len(rows), 1)
    different = (labels[rows][one] != labels[rows][other]).astype(np.float64)
    return statistics.rank_correlation(1.0 - cosine(x, x)[one, other], different)


def neighbors(evidence: Evidence, *, k: int = NEIGHBORS) -> PerImage:
    """Whether the k nearest other images predict the class of each image.

    A neighbor with cosine similarity c votes with weight exp(c / 0.07). Copies of an image do not
    vote for it.
    """
    n, groups = len(evidence.labels), evidence.groups
    groups = np.arange(n) if groups is None else groups
    targets = np.eye(evidence.classes)[evidence.labels]
    correct = np.zeros(n, bool)
    for start in range(0, n, ROWS):
        rows = np.arange(start, min(start + ROWS, n))
        similar = cosine(evidence.features[rows], evidence.features)
        similar[groups[rows][:, None] == groups[None]] = -np.inf
        nearest = np.argpartition(-similar, min(k, n) - 1, axis=1)[:, :k]
        votes = np.exp((np.take_along_axis(similar, nearest, axis=1) - 1.0) / TEMPERATURE)
        scores = (votes[..., None] * targets[nearest]).sum(axis=1)
        correct[rows] = metrics.topk_correct(scores, evidence.labels[rows], 1)
    return PerImage(correct)


def _probe(method: str, folds: int | None) -> Callable[[Evidence], PerImage]:
    """A score from the held-out predictions of a probe; `folds` None leaves out one image."""

    def score(evidence: Evidence) -> PerImage:
        fitted = probe.fit(
            evidence.features,
            evidence.labels,
            evidence.classes,
            method=method,
            fold_count=folds or len(evidence.labels),
            seed=evidence.seed,
            groups=evidence.groups,
        )
        return PerImage(*fitted.held_out)

    return score


# ---- scores of the network's own predictions -----------------------------------------------------


def leep(source: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """LEEP: mean log likelihood of the labels, predicted through the network's own classes.

    Args:
      source: f64[n z], probabilities of the network's own classes.
      labels: i[n] in [0, classes).
      classes: number of classes.

    Returns:
      At most 0, in nats.

    Reference: Nguyen et al. 2020, arXiv:2002.12462, equation 2. The numbers that You et al. 2021
      published for LEEP and NCE come from exchanged arguments (corrected in their code, thuml/LogME
      issue 14); this is the corrected form.
    """
    joint = np.eye(classes)[labels].T @ source
    total = joint.sum(axis=0)
    conditional = joint / np.where(total > 0, total, 1.0)[None]
    expected = (source @ conditional.T)[np.arange(len(labels)), labels]
    return float(np.log(np.maximum(expected, 1e-300)).mean())


def nce(source: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """NCE: the negative conditional entropy of the labels, given the predicted source class.

    Args:
      source: f64[n z], probabilities of the network's own classes; the largest is the prediction.
      labels: i[n] in [0, classes).
      classes: number of classes.

    Returns:
      At most 0, in nats.

    Reference: Tran et al. 2019, arXiv:1908.08142, equation 4; arguments as for `leep`.
    """
    counts = np.eye(classes)[labels].T @ np.eye(source.shape[1])[source.argmax(axis=1)]
    counts = counts[:, counts.any(axis=0)]
    share = counts / counts.sum(axis=0, keepdims=True)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=0)
    return -float(entropy @ counts.sum(axis=0)) / len(labels)


# ---- the table -----------------------------------------------------------------------------------


class Score(NamedTuple):
    """A row of `SCORES`.

    Attributes:
      title: name with the kind of evidence.
      function: the score of one network.
      needs_source: whether it needs a network with a head.
      rotations: whether the value does not change if the features are rotated.
    """

    title: str
    function: Callable[[Evidence], float | PerImage]
    needs_source: bool = False
    rotations: bool = False


def _of_features(function: Callable[..., float]) -> Callable[[Evidence], float]:
    return lambda e: function(e.features, e.labels, e.classes)


def _of_source(function: Callable[..., float]) -> Callable[[Evidence], float]:
    return lambda e: function(e.source, e.labels, e.classes)


SCORES = {
    "logistic": Score("logistic probe, 5 folds", _probe("logistic", 5)),
    "ridge": Score("ridge probe, leave-one-out", _probe("ridge", None)),
    "knn": Score(f"{NEIGHBORS} nearest neighbors", neighbors, rotations=True),
    "logme": Score("LogME", _of_features(logme), rotations=True),
    "h_score": Score("H-score, regularized", _of_features(h_score), rotations=True),
    "parc": Score("PARC", lambda e: parc(e.features, e.labels, seed=e.seed)),
    "leep": Score("LEEP", _of_source(leep), needs_source=True, rotations=True),
    "nce": Score("NCE", _of_source(nce), needs_source=True, rotations=True),
}
"""Name -> score. To add one, write a function of `Evidence` and add a row."""
