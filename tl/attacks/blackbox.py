"""Attacks that only ask for logits, never for a gradient: Square, a random search with squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl.attacks import norms
from tl.attacks.base import Best, Search, Task, check_counts, fold_in_each, update_best
from tl.attacks.goals import margin
from tl.attacks.linearized import tiny
from tl.attacks.slots import rows

SHARE = 0.8  # p, the part of the picture that the first squares cover; Croce & Hein 2020, arXiv:2003.01690, section 5
HALVED = (
    10,
    50,
    200,
    500,
    1000,
    2000,
    4000,
    6000,
    8000,
)  # queries of 10,000 after which p is halved; the authors' code
TILES = 5  # along the shorter side, of the start in L2; Andriushchenko et al. 2020, section 3.4
SMALLEST = {"linf": 1, "l2": 3}  # side of a square, in pixels; the authors' code


# --------------------------------------------------------------- one picture f32[h w c]; the batch is made of it by vmap


def side_at(
    i: jax.Array, steps: int, share: float, shape: tuple[int, ...], smallest: int
) -> jax.Array:
    """Side of the i-th square, in pixels: the root of what is left of `share` of the picture, whose schedule is scaled.

    Reference: Andriushchenko et al. 2020, arXiv:1912.00049, section 3.2.
    """
    late = jnp.sum(i.astype(jnp.float32) * (10_000 / steps) > jnp.asarray(HALVED, jnp.float32))
    area = share * 0.5 ** late.astype(jnp.float32) * (shape[0] * shape[1])
    side = jnp.rint(jnp.sqrt(area)).astype(jnp.int32)
    return jnp.clip(side, min(smallest, *shape[:2]), min(shape[:2]))


def _signs(key: jax.Array, *shape: int) -> jax.Array:
    return jax.random.rademacher(key, (int(np.prod(shape)),), jnp.float32).reshape(shape)


def _corner(key: jax.Array, side: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """i32[2]: where a square of that side may begin, evenly."""
    headroom = jnp.asarray(shape[:2]) - side + 1
    return jnp.minimum(
        (jax.random.uniform(key, (2,)) * headroom.astype(jnp.float32)).astype(jnp.int32),
        headroom - 1,
    )


def _window(
    corner: jax.Array, side: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """bool[h w 1], inside the square or not; and each pixel's row and column in it, i32[h w]: shapes stay static."""
    i, j = jnp.meshgrid(
        jnp.arange(shape[0]) - corner[0], jnp.arange(shape[1]) - corner[1], indexing="ij"
    )
    return ((i >= 0) & (i < side) & (j >= 0) & (j < side))[..., None], i, j


def bumps(i: jax.Array, j: jax.Array, side: jax.Array) -> jax.Array:
    """The L2 square: two halves, a hill of rings and a hole of rings, each 1/n^2 higher than the next; by row and column.

    Reference: Andriushchenko et al. 2020, arXiv:1912.00049, equation 2.
    """
    heights = jnp.cumsum(
        jnp.concatenate([jnp.zeros(1), 1 / jnp.square(jnp.arange(1.0, 1 + max(i.shape)))])
    )
    cut = side // 2
    low = i < cut
    wide = jnp.where(low, cut, side - cut)
    ring = jnp.maximum(jnp.abs(jnp.where(low, i, i - cut) - wide // 2), jnp.abs(j - side // 2))
    look = lambda n: heights.at[n].get(mode="clip")
    return jnp.where(low, 1.0, -1.0) * (look(side // 2 + 1) - look(ring))


def _norm(v: jax.Array) -> jax.Array:
    """Length of each channel, f32[1 1 c], above zero."""
    return jnp.sqrt(jnp.sum(jnp.square(v), axis=(0, 1), keepdims=True) + tiny)


def _linf_begin(key: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    return jnp.clip(
        center + eps * _signs(key, 1, *center.shape[1:]), 0.0, 1.0
    )  # stripes from top to bottom


def _linf_try(
    key: jax.Array, x: jax.Array, center: jax.Array, eps: jax.Array, side: jax.Array
) -> jax.Array:
    where, which = jax.random.split(key)
    inside, _, _ = _window(_corner(where, side, x.shape), side, x.shape)
    # A step of 2 eps either way from within the ball, brought back to it, ends on its surface (algorithm 2)
    return jnp.where(inside, jnp.clip(center + eps * _signs(which, 1, 1, x.shape[2]), 0.0, 1.0), x)


def _l2_begin(key: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    h, w, c = center.shape
    side = max(min(h, w) // TILES, 1)
    i, j = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    tile = bumps(i % side, j % side, jnp.int32(side))[..., None]
    sign = _signs(key, h // side + 1, w // side + 1, c)
    v = tile * jnp.repeat(jnp.repeat(sign, side, 0)[:h], side, 1)[:, :w]
    return jnp.clip(center + eps * v / jnp.sqrt(jnp.sum(jnp.square(v)) + tiny), 0.0, 1.0)


def _l2_try(
    key: jax.Array, x: jax.Array, center: jax.Array, eps: jax.Array, side: jax.Array
) -> jax.Array:
    """Moves the change in one window to another, as a new square, with all that eps leaves: algorithm 3."""
    first, second, which, turn = jax.random.split(key, 4)
    here, i, j = _window(_corner(first, side, x.shape), side, x.shape)
    there, _, _ = _window(_corner(second, side, x.shape), side, x.shape)
    turned = jax.random.bernoulli(turn)
    i, j = jnp.where(turned, j, i), jnp.where(turned, i, j)
    square = jnp.where(here, bumps(i, j, side)[..., None], 0.0)
    v = x - center
    unused = jnp.maximum(jnp.square(eps) - jnp.sum(jnp.square(v)), 0.0)
    present = jnp.where(here, v, 0.0)
    blend = _signs(which, 1, 1, x.shape[2]) * square / _norm(square) + present / _norm(present)
    freed = jnp.where(here | there, v, 0.0)
    length = jnp.sqrt(jnp.sum(jnp.square(freed), axis=(0, 1), keepdims=True) + unused / x.shape[2])
    return jnp.clip(center + v - freed + blend * (length / _norm(blend)), 0.0, 1.0)


MOVES: dict[str, tuple[Callable[..., jax.Array], Callable[..., jax.Array]]] = {
    "linf": (_linf_begin, _linf_try),
    "l2": (_l2_begin, _l2_try),
}
"""Norm -> `(key, center, eps) -> x`, and `(key, x, center, eps, side) -> x`, both of one picture f32[h w c]."""


# -------------------------------------------------------------------------------------------------------------- attack


class _Asked(NamedTuple):
    """After k queries of the start of that number: at x, by the margin `above`."""

    x: jax.Array
    above: jax.Array
    k: jax.Array
    number: jax.Array
    best: Best
    done: jax.Array


def square(*, steps: int = 5000, restarts: int = 1, share: float = SHARE) -> Search:
    """Square: changes one random square at a time to a corner of the ball, and keeps it where the margin grows.

    The margin is the largest logit of the classes that meet the goal, less the largest of the others. An image stops once
    the goal is met. No gradient is asked for, and a step is a query. Squares of all sizes are drawn as masks of one shape, and
    each image draws by its own key.

    Args:
      steps: static, queries an image, the start included; the schedule of the squares is scaled to it. 5000 is AutoAttack's.
      restarts: static; each with as many queries.
      share: p of the paper, of the first squares, in (0, 1].

    Raises:
      ValueError: a count below 1, a share outside (0, 1]; another norm than L2 and Linf.

    Reference: Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 to 3.
    """
    check_counts(steps=steps, restarts=restarts)
    if not 0 < share <= 1:
        raise ValueError(f"share is a part of the picture, in (0, 1]; got {share}")

    def init(task: Task, best: Best) -> _Asked:
        zero = jnp.zeros_like(best.solved, jnp.int32)
        low = jnp.full_like(best.score, -jnp.inf)
        return _Asked(task.center, low, zero, zero, best, jnp.zeros_like(best.solved))

    def step(task: Task, at: _Asked) -> _Asked:
        name, keys = norms.name(task.norm), fold_in_each(task.keys, at.number, at.k)
        begin, move = MOVES[name]
        shape = task.center.shape[1:]
        side = jax.vmap(lambda k: side_at(k, steps, share, shape, SMALLEST[name]))(at.k)
        moved = jax.vmap(move)(keys, at.x, task.center, task.eps, side)
        first = at.k == 0
        fresh = lambda: jax.vmap(begin)(keys, task.center, task.eps)
        new = jax.lax.cond(
            jnp.any(first), lambda: jnp.where(rows(first, moved), fresh(), moved), lambda: moved
        )
        found = task.logits(task.saved(new))
        score, met = task.judge(found)
        above = margin(found, task.success_mask)
        better = first | (above > at.above)
        last = at.k + 1 == steps
        return _Asked(
            jnp.where(rows(better, new), new, at.x),
            jnp.where(better, above, at.above),
            jnp.where(last, 0, at.k + 1),
            jnp.where(last, at.number + 1, at.number),
            update_best(at.best, new, score, met),
            met | (last & (at.number + 1 == restarts)),
        )

    return Search(init, step, norms=tuple(MOVES))
