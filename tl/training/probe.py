"""Linear probes on a feature bank: how much of the answer the frozen features hold already.

The result is a head in the units of the raw features (`params/head` of a `heads.Linear`); standardisation is folded in.
One eigendecomposition of the bank serves both methods, every strength and every part that is held out. All of it is numpy
on the host: nothing to compile, and the ridge is done before a compiler would be. (`launch.sh` gives NumPy one thread.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tl import metrics
from tl.paths import nearest

STRENGTHS = tuple(float(c) for c in 10.0 ** (np.arange(-18, 2) / 3))
"""Values of C tried, scikit-learn's inverse strength: C * sum of losses + |W|^2 / 2. From 1e-6 to about 2: on standardised
ImageNet features the logistic probe wants about 0.01 to 1, the ridge 1e-5 to 1e-3."""

MAX_STEPS = 300  # of the solver at one strength, reached where classes are separable and the penalty is weak; harmless there
TOLERANCE = 1e-4  # of the largest preconditioned gradient, in units of the largest weight (of the logit, for the bias)
PATH_TOLERANCE = 5e-3  # the same while a strength is sought: held-out accuracies are then the minimum's (measured: +-0.005)
MEMORY = 10  # pairs that L-BFGS keeps (chosen, not tuned)


class Probe(NamedTuple):
    """A fitted probe.

    Attributes:
      params: `{"kernel": f32[d k], "bias": f32[k]}`, on raw features.
      strength: the C that was chosen.
      scores: C -> held-out accuracy.
      method: a name of `METHODS`.
      temperature: what the logits of `params` want to be divided by, fitted to the held-out examples; 1 for "ridge", whose
        least-squares scores have no unit of their own and are scaled by it already.
    """

    params: dict[str, np.ndarray]
    strength: float
    scores: dict[float, float]
    method: str
    temperature: float


def folds(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The fold of each example, i[n] in [0, count), every class spread evenly."""
    rng = np.random.default_rng(seed)
    fold = np.zeros(len(labels), np.int64)
    offset = 0
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        fold[members] = (np.arange(len(members)) + offset) % count
        offset += len(members)  # classes smaller than `count` must not all fill the first folds
    return fold


def logistic(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    fold_count: int = 5,
    seed: int = 0,
) -> Probe:
    """`fit` of a multinomial logistic regression, its strength chosen by cross-validation on these examples."""
    return fit(features, labels, classes, strengths=strengths, fold_count=fold_count, seed=seed)


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
) -> Probe:
    """A linear classifier of features with an L2 penalty, its strength chosen on examples that were held out.

    Args:
      features: f32[n d], n at least 2.
      labels: i[n] in [0, classes).
      classes: k.
      method: "logistic" (multinomial), or "ridge": least squares on each class against the rest.
      validation: `(f32[m d], i[m])` on which the strength is chosen; None chooses it by cross-validation.
      refit: with `validation`, whether the chosen strength is fitted to those examples as well.
      strengths: values of C, stronger penalties first; of those within half a standard error of the best accuracy the one
        with the best likelihood is taken.
      fold_count: parts of the cross-validation, at most n.
      seed: for the folds.
      class_weights: f64[k], how much an example of each class counts, in the fit and in the choice; default all alike.

    Returns:
      Probe.

    Raises:
      ValueError: fewer than two examples, labels out of range, no validation example, weights that are not positive, or an
        unknown method.

    Reference:
      L2-regularised multinomial logistic regression on fixed features, its strength chosen on held-out pictures, is the
      protocol of Kornblith et al. 2019, arXiv:1805.08974; least squares that of big_vision's few-shot evaluator (Kolesnikov
      et al. 2020, arXiv:1912.11370, section 3.3). Here features are standardised and the bias is not penalised; mean and
      deviation are taken over all examples, held out or not.
    """
    n = len(labels)
    if n < 2 or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"a probe wants at least 2 examples with labels in [0, {classes}); got {n} examples"
        )
    if method not in METHODS:
        raise ValueError(f"unknown probe {method!r}; nearest: {nearest(method, METHODS)}")
    if validation is None:
        fold = folds(labels, min(fold_count, n), seed)
    else:
        others, answers = validation
        if not len(answers) or answers.min() < 0 or answers.max() >= classes:
            raise ValueError(
                f"validation wants at least 1 example with a label in [0, {classes}); got {len(answers)}"
            )
        fold = np.concatenate([np.full(n, -1), np.zeros(len(answers), np.int64)])
        features, labels = np.concatenate([features, others]), np.concatenate([labels, answers])
    weights = np.ones(classes) if class_weights is None else np.asarray(class_weights, np.float64)
    if weights.shape != (classes,) or not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(
            f"class_weights are {classes} numbers above 0; got {np.asarray(class_weights).tolist()}"
        )
    weights = weights[labels] / weights[labels].mean()
    bank = _factorize(features, weights)

    held = np.flatnonzero(fold >= 0)
    truth, worth = labels[held], weights[held]
    accuracy, likelihood, temperatures = [], [], []
    for scores in METHODS[method].validation_set(bank, labels, weights, classes, fold, strengths):
        temperatures.append(metrics.temperature(scores[held], truth))
        scale = temperatures[-1] if method == "ridge" else 1.0
        accuracy.append(
            float(np.sum(worth * (scores[held].argmax(axis=1) == truth)) / np.sum(worth))
        )
        likelihood.append(
            float(worth @ metrics.log_softmax(scores[held] / scale)[np.arange(len(held)), truth])
        )
    top = max(accuracy)
    error = np.sqrt(max(top * (1 - top), 1e-12) / len(held))
    best = int(np.argmax(np.where(np.array(accuracy) >= top - 0.5 * error, likelihood, -np.inf)))

    inside = weights if validation is None or refit else np.where(fold < 0, weights, 0.0)
    scale = temperatures[best] if method == "ridge" else 1.0
    solution = METHODS[method].solve(bank, labels, inside, classes, strengths[best]) / scale
    kernel = (bank.basis @ solution[:-1]) * bank.scale[:, None]
    bias = solution[-1] - bank.mean @ kernel
    params = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    scores = dict(zip(strengths, accuracy, strict=True))
    return Probe(
        params, strengths[best], scores, method, 1.0 if method == "ridge" else temperatures[best]
    )


# ------------------------------------------------------------------------------------------------- the factorisation


class _Bank(NamedTuple):
    """Features in their principal axes.

    Attributes:
      z: f64[n r], r <= min(n, d): weighted mean 0, weighted mean square `values` along each axis, no correlation.
      values: f64[r], above 0.
      basis: f64[d r], the axes in standardised features.
      mean, scale: f64[d]; a standardised feature is `(feature - mean) * scale`, and 0 where it is constant.
    """

    z: np.ndarray
    values: np.ndarray
    basis: np.ndarray
    mean: np.ndarray
    scale: np.ndarray


def _factorize(features: np.ndarray, weights: np.ndarray) -> _Bank:
    """The bank of features f32[n d] with example weights f64[n] of mean 1.

    Penalised solutions lie in the span of the examples, so a fit in these coordinates has the same minimum; and in them
    the second moments are diagonal, which solves the ridge and preconditions the logistic probe at every strength.
    """
    from scipy import linalg  # JAX brings it; here, for `import tl` is light

    n, d = features.shape
    wide = features.astype(np.float64)  # in float32 a constant feature differs from its mean
    mean = np.average(wide, axis=0, weights=weights)
    wide -= mean[None]
    std = np.sqrt(np.average(np.square(wide), axis=0, weights=weights))
    rounding = np.maximum(
        1e-6 * std.max(), 1e-7 * np.abs(mean)
    )  # below it nothing is left of a float32 feature
    scale = np.where(std > rounding, 1.0 / np.maximum(std, 1e-30), 0.0)
    root = np.sqrt(weights)[:, None]
    x = wide * scale[None] * root
    moments = x @ x.T / n if n < d else x.T @ x / n
    # Not numpy's driver: where its threads share their cores with other work it takes 10 times as long (measured).
    values, vectors = linalg.eigh(moments, driver="evr", overwrite_a=True, check_finite=False)
    keep = values > 1e-10 * max(values[-1], 1e-30)
    values, vectors = values[keep], vectors[:, keep]
    if n < d:
        return _Bank(
            vectors * np.sqrt(n * values)[None] / root,
            values,
            x.T @ vectors / np.sqrt(n * values),
            mean,
            scale,
        )
    return _Bank(x @ vectors / root, values, vectors, mean, scale)


# ------------------------------------------------------------------------------------------------------------- ridge


def _ridge_held_out(
    bank: _Bank,
    labels: np.ndarray,
    weights: np.ndarray,
    classes: int,
    fold: np.ndarray,
    strengths: Sequence[float],
) -> Iterator[np.ndarray]:
    """Scores f64[n k] at each strength, every example's from the fit without its fold; rows of fold -1 mean nothing.

    Exact, and without another fit: a fold's residuals without it follow from those with it, for a penalised least-squares
    fit is linear in its targets. `weights` are those that the bank was made with.

    Reference: Hastie, Tibshirani & Friedman 2009, "The elements of statistical learning", equation 7.64, by blocks.
    """
    n, root, targets = len(labels), np.sqrt(weights)[:, None], np.eye(classes)[labels]
    z, y = root * _with_bias(bank.z), root * targets
    right = z.T @ y
    for strength in strengths:
        curvature = np.append(
            n * bank.values + 1.0 / strength, n
        )  # the bank's axes and the bias are uncorrelated
        left = y - z @ (right / curvature[:, None])
        for f in range(fold.max() + 1):
            own, rest = z[fold == f], left[fold == f]
            if len(own) <= len(curvature):
                left[fold == f] = np.linalg.solve(
                    np.eye(len(own)) - (own / curvature[None]) @ own.T, rest
                )
            else:  # the same by Woodbury's identity, in the smaller of the two sizes
                left[fold == f] += own @ np.linalg.solve(
                    np.diag(curvature) - own.T @ own, own.T @ rest
                )
        yield targets - left / root


def _ridge(
    bank: _Bank, labels: np.ndarray, weights: np.ndarray, classes: int, strength: float
) -> np.ndarray:
    """argmin C / 2 * sum of weighted squares + |W|^2 / 2, the bias free: f64[r + 1, k], the bias last."""
    z = _with_bias(bank.z)
    penalty = np.append(np.full(len(bank.values), 1.0 / strength), 0.0)
    weighted = weights[:, None] * z
    return np.linalg.solve(z.T @ weighted + np.diag(penalty), weighted.T @ np.eye(classes)[labels])


def _with_bias(z: np.ndarray) -> np.ndarray:
    return np.concatenate([z, np.ones((len(z), 1), z.dtype)], axis=1)


# ---------------------------------------------------------------------------------------------------------- logistic


def _logistic_held_out(
    bank: _Bank,
    labels: np.ndarray,
    weights: np.ndarray,
    classes: int,
    fold: np.ndarray,
    strengths: Sequence[float],
) -> Iterator[np.ndarray]:
    """As `_ridge_held_out`. Each fold's fit starts where the one at the strength before it ended, all folds together."""
    n, count = len(labels), fold.max() + 1
    problem = _Problem(
        bank,
        labels,
        np.where(fold[:, None] == np.arange(count)[None], 0.0, weights[:, None]),
        classes,
    )
    params = problem.start()
    for strength in strengths:
        params = problem.minimise(strength, params, PATH_TOLERANCE)
        yield problem.scores(params)[np.arange(n), fold]


def _logistic(
    bank: _Bank, labels: np.ndarray, weights: np.ndarray, classes: int, strength: float
) -> np.ndarray:
    """argmin C * sum of weighted losses + |W|^2 / 2, the bias free: f32[r + 1, k], the bias last."""
    problem = _Problem(bank, labels, weights[:, None], classes)
    return problem.minimise(strength, problem.start(), TOLERANCE)[:, 0]


class _Problem:
    """Logistic fits of f different weightings of the same n examples, in float32, solved side by side.

    Parameters are f32[r + 1, f, k], the bias last, so that all products are two matrix products.
    """

    def __init__(self, bank: _Bank, labels: np.ndarray, weights: np.ndarray, classes: int):
        self.z = _with_bias(bank.z).astype(np.float32)
        self.values = np.append(bank.values, 1.0)[:, None, None]
        self.labels, self.classes = labels, classes
        self.total = weights.sum(axis=0)
        self.weights = (weights / self.total[None]).astype(np.float32)

    def start(self) -> np.ndarray:
        return np.zeros((self.z.shape[1], len(self.total), self.classes), np.float32)

    def scores(self, params: np.ndarray) -> np.ndarray:
        """Logits f32[n f k]."""
        return (self.z @ params.reshape(len(params), -1)).reshape(-1, *params.shape[1:])

    def loss(
        self, params: np.ndarray, penalty: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The mean losses f64[f], their gradient f32[r + 1, f, k], and the weighted means of p (1 - p), f32[f k]."""
        p = self.scores(params)
        p -= p.max(axis=2, keepdims=True)
        own = np.take_along_axis(p, self.labels[:, None, None], axis=2)[..., 0]
        np.exp(p, out=p)
        total = p.sum(axis=2)
        losses = np.einsum("nf,nf->f", self.weights, np.log(total) - own, dtype=np.float64)
        losses += 0.5 * np.einsum("rfk,rfk->f", penalty, np.square(params), dtype=np.float64)
        p /= total[..., None]
        spread = np.einsum("nf,nfk->fk", self.weights, p * (1 - p))
        p *= self.weights[..., None]
        p[np.arange(len(p)), :, self.labels] -= self.weights
        return (
            losses,
            (self.z.T @ p.reshape(len(p), -1)).reshape(params.shape) + penalty * params,
            spread,
        )

    def minimise(self, strength: float, params: np.ndarray, tolerance: float) -> np.ndarray:
        """The minimum by L-BFGS, every weighting with its own step length.

        The first guess of the Hessian is its diagonal as it would be if how sure the fit is of an example had nothing to
        do with where the example lies: the mean of p (1 - p) times the mean square along the axis.

        Reference: Nocedal & Wright 2006, "Numerical optimization", algorithms 7.4 and 3.1 (c = 1e-4, halving).
        """
        penalty = (1.0 / (strength * self.total))[None, :, None].astype(np.float32) * np.ones_like(
            params
        )
        penalty[-1] = 0.0
        loss, gradient, spread = self.loss(params, penalty)
        # 1e-3 (chosen, not tuned): the bias of a class that is sure everywhere has no curvature and no penalty.
        inverse = (1.0 / (self.values * np.maximum(spread, 1e-3)[None] + penalty)).astype(
            np.float32
        )
        pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for _ in range(MAX_STEPS):
            left = np.abs(inverse * gradient).max(axis=2)
            size = np.abs(params[:-1]).max(axis=(0, 2), initial=0.0)
            far = (left[:-1].max(axis=0, initial=0.0) > tolerance * size) | (left[-1] > tolerance)
            if not far.any():
                break
            move, shares = -gradient, []
            for s, t, rho in reversed(pairs):
                shares.append(rho * _dot(s, move))
                move -= shares[-1][:, None] * t
            move *= inverse
            if pairs:
                _, t, rho = pairs[-1]
                move /= np.maximum(rho * _dot(t, inverse * t), 1e-30)[:, None]
            for (s, t, rho), share in zip(pairs, reversed(shares), strict=True):
                move += (share - rho * _dot(t, move))[:, None] * s
            slope = _dot(gradient, move)
            # Those that have arrived stay; the bias of a class that is everywhere or nowhere may not run off to infinity.
            step = far * (5.0 / np.maximum(np.abs(move[-1]).max(axis=1), 5.0)).astype(np.float32)
            while True:
                new = params + step[:, None] * move
                new_loss, new_gradient, _ = self.loss(new, penalty)
                # 1e-6: below it float32 does not tell two losses apart.
                long = (new_loss > loss + 1e-4 * step * slope + 1e-6 * np.abs(loss)) & (step > 1e-4)
                if not long.any():
                    break
                step = np.where(long, 0.5 * step, step)
            s, t = new - params, new_gradient - gradient
            bend = _dot(s, t)
            rho = np.where(bend > 1e-12, 1.0 / np.maximum(bend, 1e-12), 0.0).astype(
                np.float32
            )  # 0: forget the pair
            pairs = [*pairs, (s, t, rho)][-MEMORY:]
            params, loss, gradient = new, new_loss, new_gradient
        return params


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """f32[r f k] twice -> f32[f]."""
    return np.einsum("rfk,rfk->f", a, b)


class _Method(NamedTuple):
    """`validation_set` gives the scores that choose the strength, `solve` the fit at one strength."""

    validation_set: Callable[..., Iterator[np.ndarray]]
    solve: Callable[..., np.ndarray]


METHODS = {
    "logistic": _Method(_logistic_held_out, _logistic),
    "ridge": _Method(_ridge_held_out, _ridge),
}
