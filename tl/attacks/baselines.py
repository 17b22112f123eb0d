"""What an attack has to beat: changes of the same size that do not look at the gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tl.attacks.frame import Attack, Best, Logits, Task, check_counts, keep, make_attack, try_until_solved
from tl.attacks.goals import Goal
from tl.attacks.norms import Norm


def make_noise(
    logits: Logits, *, norm: Norm, goal: Goal, steps: int, restarts: int = 1, on_grid: bool = True
) -> Attack:
    """Random noise as large as the ball allows, drawn again and again; the best draw is kept.

    Each draw is a point of the ball pushed out to length eps by the norm's own direction, where noise does most: plus or minus
    eps everywhere (Linf), an even direction (L2), plus or minus on a random hundredth of the channels (L1).

    Args:
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      steps, restarts: static; as many draws as their product, until an image is solved.
      on_grid: whether pictures lie on the k / 255 grid, or anywhere in the ball.

    Returns:
      An `Attack`; `step_size` means nothing to it.

    Raises:
      ValueError: steps or restarts below 1; and, when called, `images01` or `eps` out of range.
    """
    check_counts(steps=steps, restarts=restarts)

    def search(task: Task, clean: Best) -> jax.Array:
        def attempt(i: jax.Array, best: Best) -> Best:
            keys = jax.vmap(jax.random.fold_in, (0, None))(task.keys, i)
            way = norm.direction(norm.start(keys, jnp.full_like(task.center, 0.5), jnp.float32(0.5)) - 0.5)
            x = task.project(task.center + task.eps * way)
            return keep(best, x, *task.judge(x))

        return try_until_solved(attempt, clean, steps * restarts).x

    return make_attack(search, logits, norm=norm, goal=goal, on_grid=on_grid)


def make_blur(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int,
    restarts: int = 1,
    on_grid: bool = True,
    widest: float = 0.25,
) -> Attack:
    """Gaussian blur, wider from step to step; the first that solves an image is kept, else the best.

    In a ball that does not reach as far as the blurred picture, what is tried is the ball's point that is nearest to it: a
    picture whose changes are cut off at eps (Linf), or that is mixed with the photograph (L2).

    Args:
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      steps: static; widths.
      restarts: other than 1 is an error: nothing is random.
      on_grid: whether pictures lie on the k / 255 grid, or anywhere in the ball.
      widest: standard deviation of the last, as a share of the longer side (chosen, not tuned).

    Returns:
      An `Attack`; `step_size` means nothing to it.

    Raises:
      ValueError: steps below 1, or more restarts; and, when called, `images01` or `eps` out of range.
    """
    check_counts(steps=steps, restarts=restarts)
    if restarts > 1:
        raise ValueError(f"blur has nothing random: restarts must be 1, not {restarts}, which would all be the same")

    def search(task: Task, clean: Best) -> jax.Array:
        def attempt(i: jax.Array, best: Best) -> Best:
            width = (i.astype(jnp.float32) + 1.0) / steps * widest * max(task.center.shape[1:3])
            rows, columns = (_gaussian(side, width) for side in task.center.shape[1:3])
            x = task.project(jnp.einsum("ij,bjkc,lk->bilc", rows, task.center, columns))
            return keep(best, x, *task.judge(x))

        return try_until_solved(attempt, clean, steps).x

    return make_attack(search, logits, norm=norm, goal=goal, on_grid=on_grid)


def _gaussian(side: int, width: jax.Array) -> jax.Array:
    """f32[side side], rows of weights that sum to one: at the edges only what is in the picture counts."""
    at = jnp.arange(side, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * jnp.square((at[:, None] - at[None]) / width))
    return weights / jnp.sum(weights, axis=1, keepdims=True)
