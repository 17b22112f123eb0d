"""Linear classifiers of frozen features, with an L2 penalty chosen on held-out examples.

The result is a head for the original features (`params/head` of a `heads.Linear`); standardization
is folded into it. One eigendecomposition of the features serves both methods, all strengths and all
folds. Everything is NumPy on the host, so nothing is compiled; a ridge probe takes less time than a
compilation would. (`launch.sh` gives NumPy one thread.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tl import cpu, metrics
from tl.paths import nearest
from tl.training.folds import folds
from tl.training.logistic import Problem

STRENGTHS = tuple(float(c) for c in 10.0 ** (np.arange(-18, 2) / 3))
"""Candidate values of C, scikit-learn's inverse strength: C * sum of losses + |W|^2 / 2.

From 1e-6 to about 2: on standardized ImageNet features the best C is about 0.01 to 1 for the
logistic probe and 1e-5 to 1e-3 for the ridge.
"""

# `prior` of a probe that becomes a head; chosen on cats and dogs, 37 breeds and solar cells.
PRIOR = 20.0

# Limit on the largest preconditioned gradient, in units of the largest weight (for the bias, of the
# logit).
TOLERANCE = 1e-4

# The same while the strength is chosen; held-out accuracies are then within 0.005 of those at the
# minimum (measured).
PATH_TOLERANCE = 5e-3


class HeldOut(NamedTuple):
    """Predictions for m examples by a fit without them: without their fold, or without all of them.

    Attributes:
      correct: bool[m].
      log_likelihood: f64[m], of the labels, in nats, with the temperature that calibrates these
        predictions.
    """

    correct: np.ndarray
    log_likelihood: np.ndarray


class Probe(NamedTuple):
    """A fitted probe.

    Attributes:
      params: `{"kernel": f32[d k], "bias": f32[k]}`, for features that are not standardized.
      strength: the chosen C.
      scores: C -> held-out accuracy.
      method: a name of `METHODS`.
      temperature: divisor of the logits that calibrates them on the held-out examples. It is 1 for
        "ridge", whose scores are already divided by it, because least-squares scores have no scale
        of their own.
      held_out: the result for each held-out example at the chosen C.
    """

    params: dict[str, np.ndarray]
    strength: float
    scores: dict[float, float]
    method: str
    temperature: float
    held_out: HeldOut


def logistic(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    fold_count: int = 5,
    seed: int = 0,
) -> Probe:
    """Multinomial logistic regression whose strength is chosen by cross-validation; see `fit`."""
    return fit(features, labels, classes, strengths=strengths, fold_count=fold_count, seed=seed)


@cpu.one_blas_thread()
def fit(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    method: str = "logistic",
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    refit: bool = True,
    strengths: Sequence[float] = STRENGTHS,
    fold_count: int = 5,
    seed: int = 0,
    class_weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    prior: float = 0.0,
) -> Probe:
    """Fits a linear classifier with an L2 penalty, and chooses its strength on held-out examples.

    Args:
      features: f32[n d], n at least 2.
      labels: i[n] in [0, classes).
      classes: k, the number of classes.
      method: "logistic" (multinomial), or "ridge": least squares of each class against the rest.
      validation: `(f32[m d], i[m])`, the examples on which the strength is chosen; None uses
        cross-validation.
      refit: whether the final fit includes the validation examples.
      strengths: candidate values of C, strongest penalty first. Of those within half a standard
        error of the best accuracy, the one with the best likelihood is chosen.
      fold_count: number of cross-validation folds; at most one per group.
      seed: seed of the folds.
      class_weights: f64[k], weight of an example of each class in the fit and in the choice;
        default 1.
      groups: i[n], equal for copies of an example, which stay in one fold: a copy in another fold
        would favor a penalty that is too weak. None if there are none. With one group alone they
        are not used.
      prior: number of examples for which the mean variance of all features counts in the variance
        by which a feature is standardized. 0 uses the variance of the feature alone, which is near
        0 by chance for some features of few examples.

    Returns:
      Probe.

    Raises:
      ValueError: fewer than two examples, labels out of range, no validation example, weights that
        are not positive, or an unknown method.

    Reference:
      L2-regularized multinomial logistic regression on fixed features, with the strength chosen on
      held-out images, is the protocol of Kornblith et al. 2019, arXiv:1805.08974; least squares is
      that of big_vision's few-shot evaluator (Kolesnikov et al. 2020, arXiv:1912.11370, section
      3.3). Here features are standardized and the bias is not penalized; mean and deviation are
      computed over all examples, held-out ones included. `prior`: Smyth 2004, Statistical
      applications in genetics and molecular biology 3(1), section 3 (moderated variances), with a
      given weight instead of an estimated one.
    """
    n = len(labels)
    if n < 2 or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"a probe needs at least 2 examples with labels in [0, {classes}): got {n} examples"
        )
    if method not in METHODS:
        raise ValueError(f"unknown `method`: got {method!r}; nearest: {nearest(method, METHODS)}")
    if validation is None:
        different = n if groups is None else len(np.unique(groups))
        if different < 2:
            groups, different = None, n
        fold = folds(labels, min(fold_count, different), seed, groups)
    else:
        others, answers = validation
        if not len(answers) or answers.min() < 0 or answers.max() >= classes:
            raise ValueError(
                f"`validation` needs at least 1 example with a label in [0, {classes}): got "
                f"{len(answers)}"
            )
        fold = np.concatenate([np.full(n, -1), np.zeros(len(answers), np.int64)])
        features, labels = np.concatenate([features, others]), np.concatenate([labels, answers])
    weights = np.ones(classes) if class_weights is None else np.asarray(class_weights, np.float64)
    if weights.shape != (classes,) or not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(
            f"`class_weights` must be {classes} positive numbers: got "
            f"{np.asarray(class_weights).tolist()}"
        )
    weights = weights[labels] / weights[labels].mean()
    bank = factorize(features, weights, prior)

    held_out = np.flatnonzero(fold >= 0)
    truth, worth, rows = labels[held_out], weights[held_out], np.arange(len(held_out))
    accuracy, likelihood, temperatures, results = [], [], [], []
    for scores in METHODS[method].held_out_scores(bank, labels, weights, classes, fold, strengths):
        temperatures.append(metrics.temperature(scores[held_out], truth))
        calibrated = metrics.log_softmax(scores[held_out] / temperatures[-1])[rows, truth]
        correct = metrics.topk_correct(scores[held_out], truth, 1)
        results.append(HeldOut(correct, calibrated))
        accuracy.append(float(np.sum(worth * correct) / np.sum(worth)))
        # The logits of a logistic probe have a scale of their own, which counts in the choice.
        logits = scores[held_out] if method == "logistic" else scores[held_out] / temperatures[-1]
        likelihood.append(float(worth @ metrics.log_softmax(logits)[rows, truth]))
    top = max(accuracy)
    error = np.sqrt(max(top * (1 - top), 1e-12) / len(held_out))
    best = int(np.argmax(np.where(np.array(accuracy) >= top - 0.5 * error, likelihood, -np.inf)))

    inside = weights if validation is None or refit else np.where(fold < 0, weights, 0.0)
    scale = temperatures[best] if method == "ridge" else 1.0
    solution = METHODS[method].solve(bank, labels, inside, classes, strengths[best]) / scale
    kernel = (bank.basis @ solution[:-1]) * bank.scale[:, None]
    bias = solution[-1] - bank.mean @ kernel
    params = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    scores = dict(zip(strengths, accuracy, strict=True))
    temperature = 1.0 if method == "ridge" else temperatures[best]
    return Probe(params, strengths[best], scores, method, temperature, results[best])


# ---- the factorization ---------------------------------------------------------------------------


class Bank(NamedTuple):
    """Features in the coordinates of their principal axes.

    Attributes:
      z: f64[n r] with r <= min(n, d): uncorrelated, with weighted mean 0 and weighted mean square
        `values` on each axis.
      values: f64[r], positive.
      basis: f64[d r], the axes in the space of standardized features.
      mean, scale: f64[d]; a standardized feature is `(feature - mean) * scale`, and 0 if the
        feature is constant.
    """

    z: np.ndarray
    values: np.ndarray
    basis: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


@cpu.one_blas_thread()
def factorize(features: np.ndarray, weights: np.ndarray, prior: float = 0.0) -> Bank:
    """Principal axes of features f32[n d] with weights f64[n] of mean 1 and a `prior` as in `fit`.

    Penalized solutions lie in the span of the examples, so a fit in these coordinates has the same
    minimum. The second moments are diagonal in them, which solves the ridge and preconditions the
    logistic probe at every strength.
    """
    from scipy import linalg  # a dependency of JAX, imported here to keep `import tl` light

    n, d = features.shape
    wide = features.astype(np.float64)  # in float32 a constant feature differs from its mean
    mean = np.average(wide, axis=0, weights=weights)
    wide -= mean[None]
    std = np.sqrt(np.average(np.square(wide), axis=0, weights=weights))
    # A smaller deviation is rounding noise of float32.
    rounding = np.maximum(1e-6 * std.max(), 1e-7 * np.abs(mean))
    varies = std > rounding
    units = std
    if prior:
        common = np.square(std).sum() / max(varies.sum(), 1)  # the mean variance
        units = np.sqrt((prior * common + n * np.square(std)) / (prior + n))
    scale = np.where(varies, 1.0 / np.maximum(units, 1e-30), 0.0)
    root = np.sqrt(weights)[:, None]
    x = wide * scale[None] * root
    moments = x @ x.T / n if n < d else x.T @ x / n
    # NumPy's driver takes 10 times as long when its threads share their cores with other work
    # (measured).
    values, vectors = linalg.eigh(moments, driver="evr", overwrite_a=True, check_finite=False)
    keep = values > 1e-10 * max(values[-1], 1e-30)
    values, vectors = values[keep], vectors[:, keep]
    if n < d:
        return Bank(
            vectors * np.sqrt(n * values)[None] / root,
            values,
            x.T @ vectors / np.sqrt(n * values),
            mean,
            scale,
        )
    return Bank(x @ vectors / root, values, vectors, mean, scale)


# ---- ridge ---------------------------------------------------------------------------------------


def _ridge_held_out(
    bank: Bank,
    labels: np.ndarray,
    weights: np.ndarray,
    classes: int,
    fold: np.ndarray,
    strengths: Sequence[float],
) -> Iterator[np.ndarray]:
    """Scores f64[n k] at each strength; each example is scored by the fit without its fold.

    Exact and without another fit: a penalized least-squares fit is linear in its targets, so the
    residuals without a fold follow from those with it. Rows of fold -1 have no meaning. `weights`
    are those of `factorize`.

    Reference: Hastie, Tibshirani & Friedman 2009, "The elements of statistical learning", equation
    7.64, by blocks.
    """
    n, root, targets = len(labels), np.sqrt(weights)[:, None], np.eye(classes)[labels]
    z, y = root * with_bias(bank.z), root * targets
    right = z.T @ y
    sizes = np.bincount(fold[fold >= 0])
    alone = (fold >= 0) & (sizes[fold] == 1)  # folds of one example
    for strength in strengths:
        # The axes and the bias are uncorrelated.
        curvature = np.append(n * bank.values + 1.0 / strength, n)
        residual = y - z @ (right / curvature[:, None])
        residual[alone] /= 1.0 - np.square(z[alone]) @ (1.0 / curvature)[:, None]
        for f in np.flatnonzero(sizes > 1):
            block, rest = z[fold == f], residual[fold == f]
            if len(block) <= len(curvature):
                residual[fold == f] = np.linalg.solve(
                    np.eye(len(block)) - (block / curvature[None]) @ block.T, rest
                )
            else:  # the same by Woodbury's identity, in the smaller of the two sizes
                residual[fold == f] += block @ np.linalg.solve(
                    np.diag(curvature) - block.T @ block, block.T @ rest
                )
        yield targets - residual / root


def _ridge(
    bank: Bank, labels: np.ndarray, weights: np.ndarray, classes: int, strength: float
) -> np.ndarray:
    """argmin C / 2 * sum of weighted squares + |W|^2 / 2, bias free: f64[r + 1, k], bias last."""
    z = with_bias(bank.z)
    penalty = np.append(np.full(len(bank.values), 1.0 / strength), 0.0)
    weighted = weights[:, None] * z
    return np.linalg.solve(z.T @ weighted + np.diag(penalty), weighted.T @ np.eye(classes)[labels])


def with_bias(z: np.ndarray) -> np.ndarray:
    return np.concatenate([z, np.ones((len(z), 1), z.dtype)], axis=1)


# ---- logistic ------------------------------------------------------------------------------------


def _logistic_held_out(
    bank: Bank,
    labels: np.ndarray,
    weights: np.ndarray,
    classes: int,
    fold: np.ndarray,
    strengths: Sequence[float],
) -> Iterator[np.ndarray]:
    """As `_ridge_held_out`; all folds are fitted together, each from its previous solution."""
    n, count = len(labels), fold.max() + 1
    problem = Problem(
        with_bias(bank.z),
        bank.values,
        labels,
        np.where(fold[:, None] == np.arange(count)[None], 0.0, weights[:, None]),
        classes,
    )
    params = problem.start()
    for strength in strengths:
        params = problem.minimize(strength, params, PATH_TOLERANCE)
        yield problem.scores(params)[np.arange(n), fold]


def _logistic(
    bank: Bank, labels: np.ndarray, weights: np.ndarray, classes: int, strength: float
) -> np.ndarray:
    """argmin C * sum of weighted losses + |W|^2 / 2 with a free bias: f32[r + 1, k], bias last."""
    problem = Problem(with_bias(bank.z), bank.values, labels, weights[:, None], classes)
    return problem.minimize(strength, problem.start(), TOLERANCE)[:, 0]


class _Method(NamedTuple):
    """`held_out_scores` choose the strength; `solve` is the fit at one strength."""

    held_out_scores: Callable[..., Iterator[np.ndarray]]
    solve: Callable[..., np.ndarray]


METHODS = {
    "logistic": _Method(_logistic_held_out, _logistic),
    "ridge": _Method(_ridge_held_out, _ridge),
}
"""Name -> how the probe is fitted."""
