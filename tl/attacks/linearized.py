"""What the attacks that look for the NEAREST adversarial picture share: the geometry of a linearised network.

The attacks are in `minimal` and `fab`. In their states a `Best.score` is minus the distance from the clean picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl.attacks import norms
from tl.attacks.base import Best, Task, fold_in_each, update_best
from tl.attacks.slots import rows

PIECES = 50  # at most so many Newton steps; each passes a kink for good, and few are ever passed: chosen, not tuned
tiny = 1e-20


def unknown(best: Best) -> Best:
    """Before the search, of pictures that do not meet the goal: no picture is known, at any distance."""
    return best._replace(score=jnp.where(best.solved, 0.0, -jnp.inf))


def keep_nearer(task: Task, best: Best, x: jax.Array, met: jax.Array) -> Best:
    """`best`, replaced where x meets the goal from less far."""
    return update_best(best, x, jnp.where(met, -task.norm.distance(x, task.center), -jnp.inf), met)


def near_enough(task: Task, best: Best) -> jax.Array:
    """bool[b]: no more than eps away, the distance that ends a search."""
    return best.solved & (-best.score <= task.eps)


def restart(task: Task, best: Best, number: jax.Array) -> jax.Array:
    """Where the search of that number i32[b] begins: at the clean picture, then at random, within half of the best distance."""
    far = 0.1 * task.norm.distance(
        jnp.ones_like(task.center), jnp.zeros_like(task.center)
    )  # chosen, not tuned
    radius = jnp.where(jnp.isfinite(best.score), -best.score, far) / 2  # FAB's, of the best so far
    near = task.norm.start(fold_in_each(task.keys, number), task.center, radius)
    return jnp.where(rows(number == 0, near), task.center, near)


class Dual(NamedTuple):
    """Shortest way to a hyperplane in one norm: along `unit(w)`, of length `gap / size(w)`; batched on axis 0."""

    size: Callable[[jax.Array], jax.Array]
    unit: Callable[[jax.Array], jax.Array]


def total(x: jax.Array) -> jax.Array:
    """f32[b ...] -> f32[b]."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def _l2(w: jax.Array) -> jax.Array:
    most = jnp.max(jnp.abs(w), axis=tuple(range(1, w.ndim))) + tiny
    return (
        most * jnp.sqrt(total(jnp.square(w / rows(most, w)))) + tiny
    )  # the squares of small gradients do not vanish


DUALS = {
    "linf": Dual(lambda w: total(jnp.abs(w)) + tiny, jnp.sign),
    "l2": Dual(_l2, norms.l2_direction),
}


def onto_plane(norm: str, x: jax.Array, w: jax.Array, gap: jax.Array) -> jax.Array:
    """The shortest d, in the norm, with <w, d> = gap and x + d in the box [0, 1]: the exact projection.

    Along the way outwards every pixel moves at its own speed, |w| in L2 and 1 in Linf, until it meets its side of the box. What
    <w, d> has reached is concave in time and made of straight pieces, so Newton's method from zero never overshoots, and is
    exact as soon as it stands on the right piece: what the paper does by sorting, without the sort.

    Args:
      norm: "linf" or "l2".
      x: f32[b h w c] in [0, 1].
      w: f32[b h w c], the plane's normal; any length.
      gap: f32[b], what <w, d> has to be, of either sign.

    Returns:
      d: f32[b h w c]. Where the box does not reach the plane: to the corner nearest to it.

    Reference: Croce & Hein 2020, arXiv:1907.02044, the box-constrained projections; there by sorting.
    """
    w = w * rows(jnp.where(gap < 0, -1.0, 1.0), w)
    gap, size = jnp.abs(gap), jnp.abs(w)
    headroom = jnp.where(w > 0, 1.0 - x, jnp.where(w < 0, x, 0.0))
    scale = jnp.max(size, axis=tuple(range(1, w.ndim))) + tiny
    size, gap = size / rows(scale, w), gap / scale
    speed = size if norm == "l2" else jnp.sign(size)

    def reached(time: jax.Array) -> tuple[jax.Array, jax.Array]:
        far = rows(time, w) * speed
        return total(size * jnp.minimum(far, headroom)), total(
            jnp.where(far < headroom, size * speed, 0.0)
        )

    def open_(carry: tuple[jax.Array, ...]) -> jax.Array:
        return (carry[0] < PIECES) & jnp.any(carry[3])

    def newton(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        i, time, before, going = carry
        value, slope = reached(time)
        going = (
            going & (slope > 0) & (slope < before)
        )  # on the same piece as before, the last step was exact
        return (
            i + 1,
            jnp.where(going, time + (gap - value) / jnp.where(slope > 0, slope, 1.0), time),
            slope,
            going,
        )

    begun = (jnp.int32(0), jnp.zeros_like(gap), jnp.full_like(gap, jnp.inf), gap > 0)
    _, time, _, _ = jax.lax.while_loop(open_, newton, begun)
    corner = total(size * headroom) <= gap
    return jnp.sign(w) * jnp.where(
        rows(corner, w), headroom, jnp.minimum(rows(time, w) * speed, headroom)
    )


def rival(task: Task, logits: jax.Array) -> jax.Array:
    """The class i32[b] that stands in the way: the largest of those that do not meet the goal."""
    return jnp.argmax(jnp.where(task.success_mask, -jnp.inf, logits), axis=1)


def likely(task: Task, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` likeliest of the wanted classes, by the clean picture: i32[b count], and bool[b count], which there are."""
    _, classes = jax.lax.top_k(
        jnp.where(task.success_mask, task.clean, -jnp.inf), min(count, task.clean.shape[1])
    )
    return classes, jnp.take_along_axis(task.success_mask, classes, axis=1)


def gap_to(
    task: Task, logits: jax.Array, pull: Callable[[jax.Array], Any], classes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The boundary to `classes` i32[b], linearised where `logits` and their `pull` (vjp) are: w f32[b h w c] and g f32[b],
    such that a step d ends on it where <w, d> = g."""
    against = rival(task, logits)
    mine, other = (
        jax.nn.one_hot(c, logits.shape[1], dtype=logits.dtype) for c in (classes, against)
    )
    pick = lambda c: jnp.take_along_axis(logits, c[:, None], axis=1)[:, 0]
    return pull(mine - other)[0], pick(against) - pick(classes)
