"""Geometry of a linearized network, for attacks that search for the nearest adversarial image.

The attacks are in `minimum_norm` and `fab`. In their states `Best.score` is minus the distance from
the clean image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl.attacks import norms
from tl.attacks.base import Best, Task, fold_in_each, update_best
from tl.attacks.slots import expand

# Limit of Newton steps in a projection. Each step passes at least one kink of the piecewise linear
# function, and the solution is behind few of them. Chosen, not tuned.
NEWTON_STEPS = 50
# Share of the distance from black to white that a restart takes as the best distance while none is
# known. Chosen, not tuned.
UNKNOWN_DISTANCE = 0.1
# Keeps divisors above zero.
TINY = 1e-20


def initial_best(best: Best) -> Best:
    """`best` before the search.

    Distance 0 where the clean image meets the goal, otherwise infinite.
    """
    return best._replace(score=jnp.where(best.solved, 0.0, -jnp.inf))


def update_nearest(task: Task, best: Best, x: jax.Array, met: jax.Array) -> Best:
    """`best`, replaced by x where x meets the goal at a smaller distance."""
    distance = task.norm.distance(x, task.center)
    return update_best(best, x, jnp.where(met, -distance, -jnp.inf), met)


def is_near_enough(task: Task, best: Best) -> jax.Array:
    """bool[b]: the distance is at most eps, which ends the search."""
    return best.solved & (-best.score <= task.eps)


def restart_point(task: Task, best: Best, start: jax.Array) -> jax.Array:
    """The first point of each start i32[b].

    It is the clean image at start 0, and a random point within half of the best distance later, as
    in FAB.
    """
    white = task.norm.distance(jnp.ones_like(task.center), jnp.zeros_like(task.center))
    distance = jnp.where(jnp.isfinite(best.score), -best.score, UNKNOWN_DISTANCE * white)
    x = task.norm.start(fold_in_each(task.keys, start), task.center, distance / 2)
    return jnp.where(expand(start == 0, x), task.center, x)


class Dual(NamedTuple):
    """The shortest step to a hyperplane <w, d> = gap in a norm; pure functions, batched on axis 0.

    Attributes:
      size: w -> f32[b], the dual norm; the step has length `gap / size(w)`.
      unit: w -> direction of the step, of unit length.
    """

    size: Callable[[jax.Array], jax.Array]
    unit: Callable[[jax.Array], jax.Array]


def sum_per_image(x: jax.Array) -> jax.Array:
    """f32[b ...] -> f32[b]."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def _l2_size(w: jax.Array) -> jax.Array:
    """Euclidean norm; scaled first, because squares of small gradients vanish in float32."""
    largest = jnp.max(jnp.abs(w), axis=tuple(range(1, w.ndim))) + TINY
    return largest * jnp.sqrt(sum_per_image(jnp.square(w / expand(largest, w)))) + TINY


DUALS = {
    "linf": Dual(lambda w: sum_per_image(jnp.abs(w)) + TINY, jnp.sign),
    "l2": Dual(_l2_size, norms.l2_direction),
}


def project_onto_plane(norm: str, x: jax.Array, w: jax.Array, gap: jax.Array) -> jax.Array:
    """The shortest d in the norm with <w, d> = gap and x + d in [0, 1], exactly.

    Each value moves outwards at its own speed, |w| in L2 and 1 in Linf, until it reaches its bound.
    <w, d> is a concave, piecewise linear function of time, so Newton's method from zero never
    overshoots and is exact on the right piece. The paper sorts the kinks instead.

    Args:
      norm: "linf" or "l2".
      x: f32[b h w c] in [0, 1].
      w: f32[b h w c], normal of the plane, of any length.
      gap: f32[b], the value of <w, d>, of either sign.

    Returns:
      d: f32[b h w c]. If the plane is out of reach, x + d is the corner of the box nearest to it.

    Reference: Croce & Hein 2020, arXiv:1907.02044, box-constrained projections.
    """
    w = w * expand(jnp.where(gap < 0, -1.0, 1.0), w)
    gap, size = jnp.abs(gap), jnp.abs(w)
    headroom = jnp.where(w > 0, 1.0 - x, jnp.where(w < 0, x, 0.0))
    scale = jnp.max(size, axis=tuple(range(1, w.ndim))) + TINY
    size, gap = size / expand(scale, w), gap / scale
    speed = size if norm == "l2" else jnp.sign(size)

    def value_and_slope(time: jax.Array) -> tuple[jax.Array, jax.Array]:
        distance = expand(time, w) * speed
        slopes = jnp.where(distance < headroom, size * speed, 0.0)
        return sum_per_image(size * jnp.minimum(distance, headroom)), sum_per_image(slopes)

    def unfinished(carry: tuple[jax.Array, ...]) -> jax.Array:
        return (carry[0] < NEWTON_STEPS) & jnp.any(carry[3])

    def newton(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        i, time, previous_slope, moving = carry
        value, slope = value_and_slope(time)
        # On the same piece as before, the last step was exact.
        moving = moving & (slope > 0) & (slope < previous_slope)
        ahead = time + (gap - value) / jnp.where(slope > 0, slope, 1.0)
        return i + 1, jnp.where(moving, ahead, time), slope, moving

    start = (jnp.int32(0), jnp.zeros_like(gap), jnp.full_like(gap, jnp.inf), gap > 0)
    _, time, _, _ = jax.lax.while_loop(unfinished, newton, start)
    out_of_reach = sum_per_image(size * headroom) <= gap
    within = jnp.minimum(expand(time, w) * speed, headroom)
    return jnp.sign(w) * jnp.where(expand(out_of_reach, w), headroom, within)


def strongest_failing_class(task: Task, logits: jax.Array) -> jax.Array:
    """i32[b], the largest logit of the classes that do not meet the goal."""
    return jnp.argmax(jnp.where(task.success_mask, -jnp.inf, logits), axis=1)


def likeliest_classes(task: Task, count: int) -> tuple[jax.Array, jax.Array]:
    """Classes i32[b count] that meet the goal, by clean logits, and bool[b count].

    `count` is limited to the number of classes k. The mask is False where an image has fewer
    classes that meet the goal.
    """
    logits = jnp.where(task.success_mask, task.clean, -jnp.inf)
    _, classes = jax.lax.top_k(logits, min(count, task.clean.shape[1]))
    return classes, jnp.take_along_axis(task.success_mask, classes, axis=1)


def linearize(
    task: Task, logits: jax.Array, pullback: Callable[[jax.Array], Any], classes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The linearized boundary between the top class that does not meet the goal and `classes`.

    Args:
      task: the problem.
      logits: f32[b k] at the current point.
      pullback: vector-Jacobian product of the logits.
      classes: i32[b].

    Returns:
      `(w, gap)`, f32[b h w c] and f32[b]: a step d ends on the boundary where <w, d> = gap.
    """
    failing = strongest_failing_class(task, logits)
    one_hot = lambda c: jax.nn.one_hot(c, logits.shape[1], dtype=logits.dtype)
    logit = lambda c: jnp.take_along_axis(logits, c[:, None], axis=1)[:, 0]
    return pullback(one_hot(classes) - one_hot(failing))[0], logit(failing) - logit(classes)
