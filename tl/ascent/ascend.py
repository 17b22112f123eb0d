"""The one loop that climbs a score on an input: ideal images and attacks alike. Scores are always MAXIMISED.

A climb is one `lax.scan`: no Python per step, and everything that is not a shape (eps, step size, targets, the weights)
is traced, so a sweep compiles once. Only this module turns a gradient into a step uphill.
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
"""`(theta, key) -> f32[b]`: one value an image, larger is better; the key, or a key an image, is for random transforms."""


Optimizer = optax.GradientTransformation
"""Gradient -> direction uphill."""


class Ascent(NamedTuple):
    """Where a climb went.

    Attributes:
      last: theta [b ...] after the last step.
      best: theta [b ...], of each image the one with its highest score on the way; for scores without randomness.
      scores: f32[steps + 1 b], the score before each step and after the last.
      frames: theta [frames b ...], at even distances on the way; the last of them is `last`.
    """

    last: jax.Array
    best: jax.Array
    scores: jax.Array
    frames: jax.Array


def direction(rule: Callable[[jax.Array], jax.Array]) -> Optimizer:
    """A stateless optimizer from a rule gradient -> direction, such as `jnp.sign`."""
    return optax.stateless(lambda updates, params: jax.tree.map(rule, updates))


def gathered(
    scale: Callable[[jax.Array], jax.Array], decay: float, rule: Callable[[jax.Array], jax.Array]
) -> Optimizer:
    """The rule on a decaying sum of gradients, each brought to one size by `scale` before it is added."""
    return optax.chain(direction(scale), optax.trace(decay), direction(rule))


def each(optimizer: Optimizer) -> Optimizer:
    """The optimizer for each image on its own: every leaf of its state has a row an image, a count of steps too."""
    return optax.GradientTransformation(jax.vmap(optimizer.init), jax.vmap(optimizer.update))  # pyright: ignore


def lbfgs() -> Optimizer:
    """L-BFGS with a memory of ten steps, of each image on its own, so that no image's curvature bends another's path.

    Directions only: the step is `step_size` times them, without a line search. Where the curvature that was seen would
    lead downhill, the plain gradient, at most of length one, takes its place. Meant for scores without randomness.

    Reference: Nocedal & Wright 2006, "Numerical Optimization", algorithm 7.4; optax's, turned uphill.
    """
    inner = optax.scale_by_lbfgs(memory_size=10)  # optax's default

    def one(
        uphill: jax.Array, opt_state: optax.OptState, theta: jax.Array
    ) -> tuple[jax.Array, optax.OptState]:
        direction, opt_state = inner.update(-uphill, opt_state, theta)
        down, plain = jnp.asarray(direction), uphill / jnp.maximum(jnp.linalg.norm(uphill), 1.0)
        return jnp.where(jnp.vdot(down, uphill) < 0.0, -down, plain), opt_state

    return optax.GradientTransformation(jax.vmap(inner.init), jax.vmap(one))  # pyright: ignore[reportArgumentType]


OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {
    "sgd": optax.identity,
    "momentum": lambda: optax.trace(decay=0.9),  # chosen, not tuned
    "adam": lambda: optax.scale_by_adam(
        b1=0.9, b2=0.999
    ),  # Kingma & Ba 2015, arXiv:1412.6980, algorithm 1
    "sign": lambda: direction(jnp.sign),
    "lbfgs": lbfgs,
}
"""What `--optimizer` names: gradient -> direction, without a step size and without a sign."""


def step(
    score: Callable[[jax.Array], tuple[jax.Array, Any]],
    theta: jax.Array,
    opt_state: optax.OptState,
    *,
    optimizer: Optimizer,
    step_size: jax.Array,
    project: Callable[[jax.Array], jax.Array] = lambda theta: theta,
) -> tuple[jax.Array, optax.OptState, jax.Array, Any]:
    """One look at the score and one step uphill.

    Args:
      score: `theta -> (f32[b], anything)`.
      theta: f32[b ...].
      opt_state: of `optimizer`.
      step_size: f32, of a shape that goes with theta.
      project: brings theta back to where it may be.

    Returns:
      theta after the step, the optimizer's state, and what the score said before it.
    """

    def total(theta: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        scores, told = score(theta)
        return jnp.sum(scores), (scores, told)

    (_, (scores, told)), gradient = jax.value_and_grad(total, has_aux=True)(theta)
    uphill, opt_state = optim.update(optimizer, gradient, opt_state, theta)
    return project(theta + step_size * uphill), opt_state, scores, told


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
    """Climbs `score` from `theta`; call it inside `jit`.

    Args:
      score: `(theta, key) -> f32[b]`. Gradients are of the sum over images: where an image's score depends on another image
        (diversity), both climb it.
      theta: f32[b ...], the start.
      key: `jax.random.key`, or one for each image; each step's score gets its own.
      steps: static, at least 0.
      optimizer: gradient -> direction, a row of `OPTIMIZERS` or any optax transformation that keeps the sign.
      step_size: traced; a number, or a function of the share of the climb that is done, f32 in [0, 1).
      project: brings theta back to where it may be, after each step.
      first: a number of steps, static, and the score that is climbed in them instead: the same with other gradients.
      frames: static, at most `steps`, how many thetas on the way to keep.

    Returns:
      Ascent.

    Example:
      >>> hill = lambda x, key: -jnp.square(x - 3.0)
      >>> path = ascend(hill, jnp.zeros(1), jax.random.key(0), steps=60, optimizer=OPTIMIZERS["sgd"](), step_size=0.1)
      >>> float(path.last[0].round(2))
      3.0
    """
    own = lambda i: (jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in)(
        key, i
    )
    rate = step_size if callable(step_size) else lambda _: jnp.asarray(step_size, jnp.float32)

    def better(
        best: tuple[jax.Array, jax.Array], scores: jax.Array, theta: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        wins = scores > best[0]
        return jnp.where(wins, scores, best[0]), jnp.where(
            wins.reshape(-1, *(1,) * (theta.ndim - 1)), theta, best[1]
        )

    def turn(score: Score, carry: tuple, i: jax.Array) -> tuple[tuple, jax.Array]:
        theta, best, opt_state, kept = carry
        moved, opt_state, scores, _ = step(
            lambda theta: (score(theta, own(i)), None),
            theta,
            opt_state,
            optimizer=optimizer,
            step_size=rate(i.astype(jnp.float32) / max(steps, 1)),
            project=project,
        )
        if frames:  # each place is written until its time is over
            kept = jax.lax.dynamic_update_index_in_dim(kept, moved, i * frames // max(steps, 1), 0)
        return (moved, better(best, scores, theta), opt_state, kept), scores

    start = (jnp.full(theta.shape[:1], -jnp.inf, theta.dtype), theta)
    carry = (theta, start, optimizer.init(theta), jnp.broadcast_to(theta, (frames, *theta.shape)))
    cut = min(first[0], steps) if first else 0
    parts = []
    for part, begin, end in ((first[1] if first else score, 0, cut), (score, cut, steps)):
        if begin < end:
            carry, scores = jax.lax.scan(
                functools.partial(turn, part), carry, jnp.arange(begin, end)
            )
            parts.append(scores)
    last, best, _, kept = carry
    final = score(last, own(jnp.int32(steps)))
    return Ascent(last, better(best, final, last)[1], jnp.concatenate([*parts, final[None]]), kept)
