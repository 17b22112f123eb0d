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


class Ascent(NamedTuple):
    """Where a climb went.

    Attributes:
      last: theta [b ...] after the last step.
      best: theta [b ...], of each image the one with its highest score on the way; for scores without randomness.
      scores: f32[steps + 1 b], the score before each step and after the last.
      frames: theta [frames b ...], at even distances on the way; the last of them is `last`.
      top: f32[b], the score of `best`.
      solved: bool[b], whether `best` solves the image; all False for a climb that was not asked to stop.
    """

    last: jax.Array
    best: jax.Array
    scores: jax.Array
    frames: jax.Array
    top: jax.Array
    solved: jax.Array


def direction(rule: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformation:
    """A stateless optimizer from a rule gradient -> direction, such as `jnp.sign`."""
    return optax.stateless(lambda updates, params: jax.tree.map(rule, updates))


def gathered(
    scale: Callable[[jax.Array], jax.Array], decay: float, rule: Callable[[jax.Array], jax.Array]
) -> Optimizer:
    """The rule on a decaying sum of gradients, each brought to one size by `scale` before it is added."""
    return optax.chain(direction(scale), optax.trace(decay), direction(rule))


def lbfgs() -> optax.GradientTransformation:
    """L-BFGS with a memory of ten steps, of each image on its own, so that no image's curvature bends another's path.

    Directions only: the step is `step_size` times them, without a line search. Where the curvature that was seen would
    lead downhill, the plain gradient, at most of length one, takes its place. Meant for scores without randomness.

    Reference: Nocedal & Wright 2006, "Numerical Optimization", algorithm 7.4; optax's, turned uphill.
    """
    inner = optax.scale_by_lbfgs(memory_size=10)  # optax's default

    def one(uphill: jax.Array, opt_state: optax.OptState, theta: jax.Array) -> tuple[jax.Array, optax.OptState]:
        direction, opt_state = inner.update(-uphill, opt_state, theta)
        down, plain = jnp.asarray(direction), uphill / jnp.maximum(jnp.linalg.norm(uphill), 1.0)
        return jnp.where(jnp.vdot(down, uphill) < 0.0, -down, plain), opt_state

    return optax.GradientTransformation(jax.vmap(inner.init), jax.vmap(one))  # pyright: ignore[reportArgumentType]


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": optax.identity,
    "momentum": lambda: optax.trace(decay=0.9),  # chosen, not tuned
    "adam": lambda: optax.scale_by_adam(b1=0.9, b2=0.999),  # Kingma & Ba 2015, arXiv:1412.6980, algorithm 1
    "sign": lambda: direction(jnp.sign),
    "lbfgs": lbfgs,
}
"""What `--optimizer` names: gradient -> direction, without a step size and without a sign."""


def ascend(
    score: Callable[[jax.Array, jax.Array], Any],
    theta: jax.Array,
    key: jax.Array,
    *,
    steps: int,
    optimizer: optax.GradientTransformation,
    step_size: jax.Array | float | Callable[[jax.Array], jax.Array],
    project: Callable[[jax.Array], jax.Array] = lambda theta: theta,
    first: tuple[int, Score] | None = None,
    frames: int = 0,
    solved: jax.Array | None = None,
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
      solved: bool[b], which images need no climb. With it a score is `(theta, key) -> (f32[b], bool[b])`, scores and whether
        that solves the image: the first theta that does is its best, there it stays, and once all are solved the steps
        that are left cost nothing.

    Returns:
      Ascent.

    Example:
      >>> hill = lambda x, key: -jnp.square(x - 3.0)
      >>> path = ascend(hill, jnp.zeros(1), jax.random.key(0), steps=60, optimizer=OPTIMIZERS["sgd"](), step_size=0.1)
      >>> float(path.last[0].round(2))
      3.0
    """
    own = lambda i: (jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in)(key, i)  # noqa: E731
    rate = step_size if callable(step_size) else lambda _: jnp.asarray(step_size, jnp.float32)
    begin = jnp.zeros(theta.shape[:1], bool) if solved is None else solved

    def judged(score: Callable[[jax.Array, jax.Array], Any], theta: jax.Array, i: jax.Array) -> tuple:
        return (score(theta, own(i)), begin) if solved is None else score(theta, own(i))

    def rows(mask: jax.Array) -> jax.Array:
        return mask.reshape(-1, *(1,) * (theta.ndim - 1))

    def better(best: tuple, scores: jax.Array, theta: jax.Array, now: jax.Array) -> tuple:
        top, x, done = best
        wins = ~done & (now | (scores > top))
        return jnp.where(wins, scores, top), jnp.where(rows(wins), theta, x), done | now

    def step(score: Score, carry: tuple, i: jax.Array) -> tuple[tuple, jax.Array]:
        theta, best, opt_state = carry

        def total(theta: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            scores, now = judged(score, theta, i)
            return jnp.sum(scores), (scores, now)

        (_, (scores, now)), gradient = jax.value_and_grad(total, has_aux=True)(theta)
        best = better(best, scores, theta, now)
        uphill, opt_state = optim.update(optimizer, gradient, opt_state, theta)
        moved = project(theta + rate(i.astype(jnp.float32) / max(steps, 1)) * uphill)
        theta = moved if solved is None else jnp.where(rows(best[2]), theta, moved)
        return (theta, best, opt_state), scores

    def unless_all_solved(move: Callable[[tuple], tuple[tuple, jax.Array]], carry: tuple) -> tuple[tuple, jax.Array]:
        if solved is None:
            return move(carry)
        return jax.lax.cond(jnp.all(carry[1][2]), lambda carry: (carry, carry[1][0]), move, carry)

    def turn(score: Score, carry: tuple, i: jax.Array) -> tuple[tuple, jax.Array]:
        kept, carry = carry
        carry, scores = unless_all_solved(lambda carry: step(score, carry, i), carry)
        if frames:  # each place is written until its time is over
            kept = jax.lax.dynamic_update_index_in_dim(kept, carry[0], i * frames // max(steps, 1), 0)
        return (kept, carry), scores

    def finish(carry: tuple) -> tuple[tuple, jax.Array]:
        theta, best, opt_state = carry
        scores, now = judged(score, theta, jnp.int32(steps))
        return (theta, better(best, scores, theta, now), opt_state), scores

    start = (jnp.full(theta.shape[:1], -jnp.inf, theta.dtype), theta, begin)
    carry = (jnp.broadcast_to(theta, (frames, *theta.shape)), (theta, start, optimizer.init(theta)))
    cut = min(first[0], steps) if first else 0
    parts = []
    for part, low, high in ((first[1] if first else score, 0, cut), (score, cut, steps)):
        if low < high:
            carry, scores = jax.lax.scan(functools.partial(turn, part), carry, jnp.arange(low, high))
            parts.append(scores)
    kept, carry = carry
    (last, best, _), final = unless_all_solved(finish, carry)
    top, x, done = best
    return Ascent(last, x, jnp.concatenate([*parts, final[None]]), kept, top, done)
