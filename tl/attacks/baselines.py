"""Baselines that an attack has to beat.

Changes of the same size that do not use the network's gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tl.attacks.base import (
    Best,
    Search,
    Task,
    check_counts,
    check_one_start,
    fold_in_each,
    update_best,
)
from tl.attacks.norms import Norm
from tl.attacks.slots import expand


class _State(NamedTuple):
    """After `count` candidates."""

    count: jax.Array
    best: Best
    finished: jax.Array


def _try_candidates(candidate: Callable[[Task, jax.Array], jax.Array], n: int) -> Search:
    """Evaluates n (traced) candidates `(task, i) -> x`, and stops at the first success."""

    def init(task: Task, best: Best) -> _State:
        return _State(jnp.zeros_like(best.solved, jnp.int32), best, jnp.zeros_like(best.solved))

    def step(task: Task, state: _State) -> _State:
        x = task.project(candidate(task, state.count))
        best = update_best(state.best, x, *task.judge(task.logits(task.saved(x))))
        return _State(state.count + 1, best, best.solved | (state.count + 1 == task.steps))

    return Search(init, step, n)


def noise(*, steps: int = 40, restarts: int = 1) -> Search:
    """Random noise of length eps; the best of several draws is kept.

    Each draw has length eps along the norm's own direction, where noise has the largest effect:
    plus or minus eps in every value (Linf), a uniform direction (L2), plus or minus the same amount
    in a random 1 % of the values (L1).

    Args:
      steps, restarts: traced; their product is the number of draws. An image stops at its first
        success.

    Raises:
      ValueError: steps or restarts below 1.
    """
    check_counts(steps=steps, restarts=restarts)

    def candidate(task: Task, i: jax.Array) -> jax.Array:
        return draw_noise(task.norm, fold_in_each(task.keys, i), task.center, task.eps)

    return _try_candidates(candidate, steps * restarts)


def draw_noise(norm: Norm, keys: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    """center f32[b ...] and one draw of `noise` of length eps f32[b], before the projection."""
    half = jnp.full_like(center, 0.5)
    draw = norm.start(keys, half, jnp.float32(0.5)) - 0.5
    return center + expand(eps, half) * norm.direction(draw)


def blur(*, steps: int = 40, restarts: int = 1, widest: float = 0.25) -> Search:
    """Gaussian blur of growing width; the first success is kept, otherwise the best score.

    If the blurred image is outside the ball, the nearest point of the ball is used: changes are
    clipped at eps (Linf), or the blurred image is mixed with the original (L2).

    Args:
      steps: traced; number of widths.
      restarts: must be 1, because blur is deterministic.
      widest: standard deviation of the last blur as a share of the longer side (chosen, not tuned).

    Raises:
      ValueError: steps below 1, or more than one restart.
    """
    check_counts(steps=steps, restarts=restarts)
    check_one_start("blur", restarts)

    def candidate(task: Task, i: jax.Array) -> jax.Array:
        sides = task.center.shape[1:3]
        share = (i.astype(jnp.float32) + 1.0) / task.steps.astype(jnp.float32)
        return gaussian_blur(task.center, share * widest * max(sides))

    return _try_candidates(candidate, steps)


def gaussian_blur(images: jax.Array, sigma: jax.Array) -> jax.Array:
    """Images f32[b h w c] blurred with a standard deviation f32[b], in pixels.

    Positions outside the image have no weight, so a uniform image stays as it is.
    """
    rows, columns = (
        jax.vmap(lambda sigma, side=side: _gaussian(side, sigma))(sigma)
        for side in images.shape[1:3]
    )
    return jnp.einsum("bij,bjkc,blk->bilc", rows, images, columns)


def _gaussian(side: int, sigma: jax.Array) -> jax.Array:
    """Weights f32[side side] whose rows sum to one; positions outside the image do not count."""
    position = jnp.arange(side, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * jnp.square((position[:, None] - position[None]) / sigma))
    return weights / jnp.sum(weights, axis=1, keepdims=True)
