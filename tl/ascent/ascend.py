"""Gradient ascent on an input, for both ideal images and attacks. Scores are always MAXIMIZED.

The ascent is one `lax.scan`, so no Python runs between steps. Everything except shapes is traced
(eps, step size, targets, weights), so a sweep compiles once. Only this module turns a gradient into
a step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tl import optim

Score = Callable[[jax.Array, jax.Array], jax.Array]
"""`(theta, key) -> f32[b]`, one value per image, larger is better.

The key is one for the batch or one per image; random transforms use it.
"""

Optimizer = optax.GradientTransformation
"""An optax transformation from the gradient of the score to the ascent direction."""


class Ascent(NamedTuple):
    """Result of an ascent.

    Attributes:
      last: theta [b ...] after the last step.
      best: theta [b ...] with the highest score of each image; only meaningful if the score is
        deterministic.
      scores: f32[steps + 1 b], the score before each step and after the last.
      frames: theta [frames b ...] at equal intervals; the last frame is `last`.
    """

    last: jax.Array
    best: jax.Array
    scores: jax.Array
    frames: jax.Array


def direction(rule: Callable[[jax.Array], jax.Array]) -> Optimizer:
    """A stateless optimizer from a function gradient -> direction, such as `jnp.sign`."""
    return optax.stateless(lambda updates, params: jax.tree.map(rule, updates))


def normalized_momentum(
    normalize: Callable[[jax.Array], jax.Array],
    decay: float,
    rule: Callable[[jax.Array], jax.Array],
) -> Optimizer:
    """The direction `rule` of a decaying sum of gradients, each normalized before it is added."""
    return optax.chain(direction(normalize), optax.trace(decay), direction(rule))


def per_image(optimizer: Optimizer) -> Optimizer:
    """The optimizer with separate state for each image.

    Every leaf of the state, step counts included, has one row per image.
    """
    return optax.GradientTransformation(jax.vmap(optimizer.init), jax.vmap(optimizer.update))  # pyright: ignore


def lbfgs() -> Optimizer:
    """L-BFGS with a memory of ten steps, for each image separately.

    It gives directions only: the step is `step_size` times the direction, without a line search. If
    the estimated curvature points downhill, the gradient is used instead, scaled to at most length
    one. Meant for deterministic scores.

    Reference: Nocedal & Wright 2006, "Numerical Optimization", algorithm 7.4; optax's
      implementation with flipped sign.
    """
    # optax's default memory.
    inner = optax.scale_by_lbfgs(memory_size=10)

    def update(
        gradient: jax.Array, opt_state: optax.OptState, theta: jax.Array
    ) -> tuple[jax.Array, optax.OptState]:
        downhill, opt_state = inner.update(-gradient, opt_state, theta)
        downhill = jnp.asarray(downhill)
        plain = gradient / jnp.maximum(jnp.linalg.norm(gradient), 1.0)
        return jnp.where(jnp.vdot(downhill, gradient) < 0.0, -downhill, plain), opt_state

    return optax.GradientTransformation(jax.vmap(inner.init), jax.vmap(update))  # pyright: ignore[reportArgumentType]


OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "sgd": optax.identity,
    # Chosen, not tuned.
    "momentum": lambda: optax.trace(decay=0.9),
    # Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.
    "adam": lambda: optax.scale_by_adam(b1=0.9, b2=0.999),
    "sign": lambda: direction(jnp.sign),
    "lbfgs": lbfgs,
}
"""name -> gradient to ascent direction, without the step size."""


def step(
    score: Callable[[jax.Array], tuple[jax.Array, Any]],
    theta: jax.Array,
    opt_state: optax.OptState,
    *,
    optimizer: Optimizer,
    step_size: jax.Array,
    project: Callable[[jax.Array], jax.Array] = lambda theta: theta,
) -> tuple[jax.Array, optax.OptState, jax.Array, Any]:
    """One step of gradient ascent.

    Args:
      score: `theta -> (f32[b], auxiliary output)`.
      theta: f32[b ...].
      opt_state: the state of `optimizer`.
      optimizer: gradient -> ascent direction.
      step_size: f32, broadcasts with theta.
      project: maps theta back into its domain.

    Returns:
      theta after the step, the optimizer's state, and the scores and the auxiliary output before
      the step.
    """

    def total(theta: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        scores, aux = score(theta)
        return jnp.sum(scores), (scores, aux)

    (_, (scores, aux)), gradient = jax.value_and_grad(total, has_aux=True)(theta)
    uphill, opt_state = optim.update(optimizer, gradient, opt_state, theta)
    return project(theta + step_size * uphill), opt_state, scores, aux


def ascend(
    score: Score,
    theta: jax.Array,
    key: jax.Array,
    *,
    steps: int,
    optimizer: Optimizer,
    step_size: jax.Array | float | Callable[[jax.Array], jax.Array],
    project: Callable[[jax.Array], jax.Array] = lambda theta: theta,
    first: tuple[int, Score] | None = None,
    frames: int = 0,
) -> Ascent:
    """Maximizes `score` from `theta`; for use inside `jit`.

    Args:
      score: `(theta, key) -> f32[b]`. The gradient is that of the sum over images: if an image's
        score depends on another image (diversity), both are changed.
      theta: f32[b ...], the start.
      key: `jax.random.key`, or one per image; each step derives its own.
      steps: static, at least 0.
      optimizer: gradient -> ascent direction: a row of `OPTIMIZERS`, or any optax transformation
        that keeps the sign.
      step_size: traced; a number, or a function of the completed share of the steps, f32 in [0, 1).
      project: maps theta back into its domain, after each step.
      first: a static number of steps and the score that they maximize instead.
      frames: static, at most `steps`; number of intermediate thetas to keep.

    Returns:
      Ascent.

    Example:
      >>> hill = lambda x, key: -jnp.square(x - 3.0)
      >>> sgd = OPTIMIZERS["sgd"]()
      >>> start, key = jnp.zeros(1), jax.random.key(0)
      >>> path = ascend(hill, start, key, steps=60, optimizer=sgd, step_size=0.1)
      >>> float(path.last[0].round(2))
      3.0
    """
    fold_in = jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in
    rate = step_size if callable(step_size) else lambda _: jnp.asarray(step_size, jnp.float32)

    def update_best(
        best: tuple[jax.Array, jax.Array], scores: jax.Array, theta: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        wins = scores > best[0]
        wins_theta = wins.reshape(-1, *(1,) * (theta.ndim - 1))
        return jnp.where(wins, scores, best[0]), jnp.where(wins_theta, theta, best[1])

    def body(score: Score, carry: tuple, i: jax.Array) -> tuple[tuple, jax.Array]:
        theta, best, opt_state, kept_frames = carry
        next_theta, opt_state, scores, _ = step(
            lambda theta: (score(theta, fold_in(key, i)), None),
            theta,
            opt_state,
            optimizer=optimizer,
            step_size=rate(i.astype(jnp.float32) / max(steps, 1)),
            project=project,
        )
        # Each frame is overwritten until its interval ends.
        if frames:
            kept_frames = jax.lax.dynamic_update_index_in_dim(
                kept_frames, next_theta, i * frames // max(steps, 1), 0
            )
        return (next_theta, update_best(best, scores, theta), opt_state, kept_frames), scores

    best = (jnp.full(theta.shape[:1], -jnp.inf, theta.dtype), theta)
    carry = (theta, best, optimizer.init(theta), jnp.broadcast_to(theta, (frames, *theta.shape)))
    change = min(first[0], steps) if first else 0
    parts = []
    for part, begin, end in (
        (first[1] if first else score, 0, change),
        (score, change, steps),
    ):
        if begin < end:
            rows = jnp.arange(begin, end)
            carry, scores = jax.lax.scan(functools.partial(body, part), carry, rows)
            parts.append(scores)
    last, best, _, kept_frames = carry
    final = score(last, fold_in(key, jnp.int32(steps)))
    scores = jnp.concatenate([*parts, final[None]])
    return Ascent(last, update_best(best, final, last)[1], scores, kept_frames)
