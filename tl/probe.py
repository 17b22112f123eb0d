"""Linear probes on a feature bank: how much of the answer the frozen features hold already.

The result is a head in the units of the raw features (`params/head` of a `heads.Linear`); standardisation is folded in.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

STRENGTHS = tuple(float(c) for c in 10.0 ** np.arange(-4.0, 0.5, 0.5))
"""Values of C tried, scikit-learn's inverse strength: C * sum of losses + |W|^2 / 2. Standardised ImageNet features want
about 0.01 (chosen so that it lies in the middle)."""

MAX_STEPS = 300  # of the solver, reached where classes are separable and the penalty is weak; harmless there
TOLERANCE = 1e-5  # of the largest entry of the preconditioned gradient, in units of standardised weights


class Probe(NamedTuple):
    """A fitted probe.

    Attributes:
      params: `{"kernel": f32[d k], "bias": f32[k]}`, on raw features.
      strength: the C that was chosen.
      scores: C -> cross-validated accuracy.
    """

    params: dict[str, np.ndarray]
    strength: float
    scores: dict[float, float]


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
    strengths: tuple[float, ...] = STRENGTHS,
    fold_count: int = 5,
    seed: int = 0,
) -> Probe:
    """Multinomial logistic regression with an L2 penalty, its strength chosen by cross-validation on these examples.

    Args:
      features: f32[n d], n at least 2.
      labels: i[n] in [0, classes).
      classes: k.
      strengths: values of C; of those within half a standard error of the best accuracy the one with the best
        likelihood is taken.
      fold_count: parts of the cross-validation, at most n.
      seed: for the folds.

    Returns:
      Probe, fitted to all examples with the chosen C.

    Raises:
      ValueError: fewer than two examples or labels out of range.

    Reference:
      L2-regularised multinomial logistic regression on fixed features, its strength chosen on held-out pictures, is the
      protocol of Kornblith et al. 2019, arXiv:1805.08974. Here features are standardised and the bias is not penalised.
    """
    n, d = features.shape
    if n < 2 or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"a probe wants at least 2 examples with labels in [0, {classes}); got {n} examples")
    wide = features.astype(np.float64)  # in float32 a constant feature differs from its mean
    mean, std = wide.mean(axis=0), wide.std(axis=0)
    rounding = np.maximum(1e-6 * std.max(), 1e-7 * np.abs(mean))  # below it nothing is left of a float32 feature
    scale = np.where(std > rounding, 1.0 / np.maximum(std, 1e-30), 0.0)
    x = ((wide - mean[None]) * scale[None]).astype(np.float32)
    basis, curvature = _principal(x)
    z = jnp.asarray(x @ basis)
    y = jnp.asarray(labels, jnp.int32)
    bound = jnp.asarray(0.5 * curvature, jnp.float32)

    fold = folds(labels, min(fold_count, n), seed)
    right = np.zeros((len(strengths), n))
    log_p = np.zeros((len(strengths), n))

    def fit(inside: np.ndarray, tried: tuple[float, ...]) -> dict[str, jax.Array]:
        count = int(inside.sum())
        penalties = jnp.asarray([1.0 / (c * count) for c in tried], jnp.float32)
        return _fit_all(z, y, jnp.asarray(inside / count, jnp.float32), penalties, bound * (n / count), classes)

    for f in range(fold.max() + 1):
        inside = fold != f
        fitted = fit(inside, strengths)
        scores = np.asarray(jax.nn.log_softmax(jnp.einsum("nr,srk->snk", z, fitted["w"]) + fitted["b"][:, None]))
        right[:, ~inside] = scores.argmax(-1)[:, ~inside] == labels[None, ~inside]
        log_p[:, ~inside] = scores[:, np.arange(n), labels][:, ~inside]
    accuracy = right.mean(axis=1)
    error = np.sqrt(max(accuracy.max() * (1 - accuracy.max()), 1e-12) / n)
    close = accuracy >= accuracy.max() - 0.5 * error
    best = int(np.argmax(np.where(close, log_p.mean(axis=1), -np.inf)))
    fitted = fit(np.ones(n, bool), strengths[best : best + 1])
    kernel = (basis @ np.asarray(fitted["w"][0])) * scale[:, None]
    bias = np.asarray(fitted["b"][0]) - mean @ kernel
    params = {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
    return Probe(params, strengths[best], dict(zip(strengths, accuracy.tolist(), strict=True)))


def _principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal axes f32[d r] of centred examples f32[n d], and the mean square along each, f64[r]; r <= min(n, d).

    Penalised solutions lie in the span of the examples, so a fit in these coordinates has the same minimum; and in them
    one factorisation preconditions every strength and every fold.
    """
    n, d = x.shape
    wide = x.astype(np.float64)
    values, vectors = np.linalg.eigh(wide @ wide.T / n if n < d else wide.T @ wide / n)
    keep = values > 1e-10 * max(values[-1], 1e-30)
    values, vectors = values[keep], vectors[:, keep]
    if n < d:
        vectors = wide.T @ vectors / np.sqrt(values * n)[None]
    return vectors.astype(np.float32), values


@functools.partial(jax.jit, static_argnames="classes")
def _fit_all(
    z: jax.Array, y: jax.Array, weights: jax.Array, penalties: jax.Array, bound: jax.Array, classes: int
) -> dict[str, jax.Array]:
    """Every penalty's fit at once: w f32[s r k], b f32[s k]; `weights` f32[n] sum to one.

    Accelerated gradient, preconditioned by the diagonal upper bound of the Hessian and restarted when it turns uphill.

    Reference: the bound (a half of the second moments) is Boehning 1992, Ann. Inst. Stat. Math. 44, 197-200; the restart
      O'Donoghue & Candes 2015, arXiv:1204.3982, section 3.2, the gradient scheme.
    """

    def fit(penalty: jax.Array) -> dict[str, jax.Array]:
        def loss(params: dict[str, jax.Array]) -> jax.Array:
            log_p = jax.nn.log_softmax(z @ params["w"] + params["b"][None])
            own = jnp.take_along_axis(log_p, y[:, None], axis=1)[:, 0]
            return -jnp.sum(weights * own) + 0.5 * penalty * jnp.sum(jnp.square(params["w"]))

        scale = {"w": (1.0 / (bound + penalty))[:, None], "b": jnp.full((1,), 2.0)}

        def unfinished(carry: tuple) -> jax.Array:
            *_, largest, i = carry
            return (i < MAX_STEPS) & (largest > TOLERANCE)

        def step(carry: tuple) -> tuple:
            params, ahead, t, _, i = carry
            move = jax.tree.map(lambda g, s: -g * s, jax.grad(loss)(ahead), scale)
            new = jax.tree.map(jnp.add, ahead, move)
            progress = jax.tree.map(jnp.subtract, new, params)
            uphill = (
                sum(jnp.vdot(m / s, p) for m, s, p in zip(*map(jax.tree.leaves, (move, scale, progress)), strict=True))
                < 0
            )
            t_new = jnp.where(uphill, 1.0, 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * t * t)))
            momentum = jnp.where(uphill, 0.0, (t - 1.0) / t_new)
            ahead = jax.tree.map(lambda n, p: n + momentum * p, new, progress)
            return new, ahead, t_new, jnp.max(jnp.abs(jnp.concatenate([move["w"], move["b"][None]]))), i + 1

        start = {"w": jnp.zeros((z.shape[1], classes)), "b": jnp.zeros(classes)}
        return jax.lax.while_loop(unfinished, step, (start, start, jnp.float32(1.0), jnp.float32(jnp.inf), 0))[0]

    return jax.vmap(fit)(penalties)
