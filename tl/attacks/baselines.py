"""What an attack has to beat: changes of the same size that do not look at the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tl.attacks.base import Best, Search, Task, check_counts, fold_in_each, update_best
from tl.attacks.slots import rows


class _Try(NamedTuple):
    """After i tries."""

    i: jax.Array
    best: Best
    done: jax.Array


def _tries(propose: Callable[[Task, jax.Array], jax.Array], n: int) -> Search:
    """`propose`: `(task, i) -> x`, the i-th try of each image; until an image is solved."""

    def init(task: Task, best: Best) -> _Try:
        return _Try(jnp.zeros_like(best.solved, jnp.int32), best, jnp.zeros_like(best.solved))

    def step(task: Task, at: _Try) -> _Try:
        x = task.project(propose(task, at.i))
        best = update_best(at.best, x, *task.judge(task.logits(task.saved(x))))
        return _Try(at.i + 1, best, best.solved | (at.i + 1 == n))

    return Search(init, step)


def noise(*, steps: int = 40, restarts: int = 1) -> Search:
    """Random noise as large as the ball allows, drawn again and again; the best draw is kept.

    Each draw is a point of the ball pushed out to length eps by the norm's own direction, where noise does most: plus or minus
    eps everywhere (Linf), an even direction (L2), plus or minus on a random hundredth of the channels (L1).

    Args:
      steps, restarts: static; as many draws as their product, until an image is solved.

    Raises:
      ValueError: steps or restarts below 1.
    """
    check_counts(steps=steps, restarts=restarts)

    def propose(task: Task, i: jax.Array) -> jax.Array:
        half = jnp.full_like(task.center, 0.5)
        draw = task.norm.start(fold_in_each(task.keys, i), half, jnp.float32(0.5)) - 0.5
        return task.center + rows(task.eps, half) * task.norm.direction(draw)

    return _tries(propose, steps * restarts)


def blur(*, steps: int = 40, restarts: int = 1, widest: float = 0.25) -> Search:
    """Gaussian blur, wider from step to step; the first that solves an image is kept, else the best.

    In a ball that does not reach as far as the blurred picture, what is tried is the ball's point that is nearest to it: a
    picture whose changes are cut off at eps (Linf), or that is mixed with the photograph (L2).

    Args:
      steps: static; widths.
      restarts: other than 1 is an error: nothing is random.
      widest: standard deviation of the last, as a share of the longer side (chosen, not tuned).

    Raises:
      ValueError: steps below 1, or more restarts.
    """
    check_counts(steps=steps, restarts=restarts)
    if restarts > 1:
        raise ValueError(
            f"blur has nothing random: restarts must be 1, not {restarts}, which would all be the same"
        )

    def propose(task: Task, i: jax.Array) -> jax.Array:
        width = (i.astype(jnp.float32) + 1.0) / steps * widest * max(task.center.shape[1:3])
        high, wide = (
            jax.vmap(lambda own, side=side: _gaussian(side, own))(width)
            for side in task.center.shape[1:3]
        )
        return jnp.einsum("bij,bjkc,blk->bilc", high, task.center, wide)

    return _tries(propose, steps)


def _gaussian(side: int, width: jax.Array) -> jax.Array:
    """f32[side side], rows of weights that sum to one: at the edges only what is in the picture counts."""
    at = jnp.arange(side, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * jnp.square((at[:, None] - at[None]) / width))
    return weights / jnp.sum(weights, axis=1, keepdims=True)
