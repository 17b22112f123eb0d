"""The one loop that climbs a score on an input: ideal images and attacks alike. Scores are always MAXIMISED.

A climb is one `lax.scan`: no Python per step, and everything that is not a shape (eps, step size, targets, the weights)
is traced, so a sweep compiles once. Only this module turns a gradient into a step uphill.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tl import optim

Score = Callable[[jax.Array, jax.Array], jax.Array]
"""`(theta, key) -> f32[b]`: one value an image, larger is better; the key is for random transforms."""


class Ascent(NamedTuple):
    """Where a climb went.

    Attributes:
      last: theta [b ...] after the last step.
      best: theta [b ...], of each image the one with its highest score on the way; for scores without randomness.
      scores: f32[steps + 1 b], the score before each step and after the last.
    """

    last: jax.Array
    best: jax.Array
    scores: jax.Array


def direction(rule: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformation:
    """A stateless optimizer from a rule gradient -> direction, such as `jnp.sign`."""
    return optax.stateless(lambda updates, params: jax.tree.map(rule, updates))


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": optax.identity,
    "momentum": lambda: optax.trace(decay=0.9),  # chosen, not tuned
    "adam": lambda: optax.scale_by_adam(b1=0.9, b2=0.999),  # Kingma & Ba 2015, arXiv:1412.6980, algorithm 1
    "sign": lambda: direction(jnp.sign),
}
"""What `--optimizer` names: gradient -> direction, without a step size and without a sign."""


def ascend(
    score: Score,
    theta: jax.Array,
    key: jax.Array,
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    step_size: jax.Array | float | Callable[[jax.Array], jax.Array],
    project: Callable[[jax.Array], jax.Array] = lambda theta: theta,
) -> Ascent:
    """Climbs `score` from `theta`; call it inside `jit`.

    Args:
      score: `(theta, key) -> f32[b]`. Images must not influence each other's scores: their gradients are taken together.
      theta: f32[b ...], the start.
      key: `jax.random.key`; each step's score gets its own.
      steps: static, at least 0.
      optimizer: gradient -> direction, a row of `OPTIMIZERS` or any optax transformation that keeps the sign.
      step_size: traced; a number, or a function of the share of the climb that is done, f32 in [0, 1).
      project: brings theta back to where it may be, after each step.

    Returns:
      Ascent.

    Example:
      >>> hill = lambda x, key: -jnp.square(x - 3.0)
      >>> path = ascend(hill, jnp.zeros(1), jax.random.key(0), steps=60, optimizer=OPTIMIZERS["sgd"](), step_size=0.1)
      >>> float(path.last[0].round(2))
      3.0
    """
    rate = step_size if callable(step_size) else lambda _: jnp.asarray(step_size, jnp.float32)

    def total(theta: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = score(theta, key)
        return jnp.sum(scores), scores

    def better(best: tuple[jax.Array, jax.Array], scores: jax.Array, theta: jax.Array) -> tuple[jax.Array, jax.Array]:
        wins = scores > best[0]
        return jnp.where(wins, scores, best[0]), jnp.where(wins.reshape(-1, *(1,) * (theta.ndim - 1)), theta, best[1])

    def step(carry: tuple, i: jax.Array) -> tuple[tuple, jax.Array]:
        theta, best, opt_state = carry
        (_, scores), gradient = jax.value_and_grad(total, has_aux=True)(theta, jax.random.fold_in(key, i))
        best = better(best, scores, theta)
        uphill, opt_state = optim.update(optimizer, gradient, opt_state, theta)
        theta = project(theta + rate(i.astype(jnp.float32) / max(steps, 1)) * uphill)
        return (theta, best, opt_state), scores

    start = (jnp.full(theta.shape[:1], -jnp.inf, theta.dtype), theta)
    (last, best, _), scores = jax.lax.scan(step, (theta, start, optimizer.init(theta)), jnp.arange(steps))
    final = score(last, jax.random.fold_in(key, steps))
    return Ascent(last, better(best, final, last)[1], jnp.concatenate([scores, final[None]]))
