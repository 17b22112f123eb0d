"""Black-box attacks, which use logits and no gradients: Square, a random search with squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl.attacks import norms
from tl.attacks.base import Best, Search, Task, check_counts, fold_in_each, update_best
from tl.attacks.goals import margin
from tl.attacks.linearized import TINY
from tl.attacks.slots import expand

# p, the share of the image that the first squares cover; Croce & Hein 2020, arXiv:2003.01690,
# section 5.
SHARE = 0.8
# Queries of 10,000 after which p is halved; the authors' code.
HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Tiles along the shorter side of the L2 start; Andriushchenko et al. 2020, section 3.4.
TILES = 5
# Smallest side of a square in pixels; the authors' code.
SMALLEST = {"linf": 1, "l2": 3}


# ---- moves of one image f32[h w c]; `vmap` maps them over the batch ----


def side_at(
    i: jax.Array, steps: jax.Array | int, share: float, shape: tuple[int, ...], smallest: int
) -> jax.Array:
    """Side in pixels of the square of query i, i32[].

    The area is a share of the image that is halved on the paper's schedule, scaled to `steps`.

    Reference: Andriushchenko et al. 2020, arXiv:1912.00049, section 3.2.
    """
    halvings = jnp.sum(i.astype(jnp.float32) * (10_000 / steps) > jnp.asarray(HALVED, jnp.float32))
    area = share * 0.5 ** halvings.astype(jnp.float32) * (shape[0] * shape[1])
    side = jnp.rint(jnp.sqrt(area)).astype(jnp.int32)
    return jnp.clip(side, min(smallest, *shape[:2]), min(shape[:2]))


def _signs(key: jax.Array, *shape: int) -> jax.Array:
    return jax.random.rademacher(key, (int(np.prod(shape)),), jnp.float32).reshape(shape)


def _corner(key: jax.Array, side: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Corner i32[2] of a square, uniform over all positions inside the image."""
    headroom = jnp.asarray(shape[:2]) - side + 1
    return jnp.minimum(
        (jax.random.uniform(key, (2,)) * headroom.astype(jnp.float32)).astype(jnp.int32),
        headroom - 1,
    )


def _window(
    corner: jax.Array, side: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mask bool[h w 1] of the square, and each pixel's row and column in it, i32[h w]."""
    i, j = jnp.meshgrid(
        jnp.arange(shape[0]) - corner[0], jnp.arange(shape[1]) - corner[1], indexing="ij"
    )
    return ((i >= 0) & (i < side) & (j >= 0) & (j < side))[..., None], i, j


def bumps(i: jax.Array, j: jax.Array, side: jax.Array) -> jax.Array:
    """Heights of the L2 square by row and column.

    The upper half is positive and the lower half negative. Each is a set of nested rings; ring n,
    counted from outside, adds 1/n^2.

    Reference: Andriushchenko et al. 2020, arXiv:1912.00049, equation 2.
    """
    heights = jnp.cumsum(
        jnp.concatenate([jnp.zeros(1), 1 / jnp.square(jnp.arange(1.0, 1 + max(i.shape)))])
    )
    half = side // 2
    upper = i < half
    rows = jnp.where(upper, half, side - half)
    row = jnp.where(upper, i, i - half)
    ring = jnp.maximum(jnp.abs(row - rows // 2), jnp.abs(j - side // 2))
    height = lambda n: heights.at[n].get(mode="clip")
    return jnp.where(upper, 1.0, -1.0) * (height(side // 2 + 1) - height(ring))


def _norm(v: jax.Array) -> jax.Array:
    """L2 norm of each channel, f32[1 1 c], above zero."""
    return jnp.sqrt(jnp.sum(jnp.square(v), axis=(0, 1), keepdims=True) + TINY)


def _linf_begin(key: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    """Vertical stripes."""
    return jnp.clip(center + eps * _signs(key, 1, *center.shape[1:]), 0.0, 1.0)


def _linf_try(
    key: jax.Array, x: jax.Array, center: jax.Array, eps: jax.Array, side: jax.Array
) -> jax.Array:
    where, which = jax.random.split(key)
    inside, _, _ = _window(_corner(where, side, x.shape), side, x.shape)
    # A step of plus or minus 2 eps, projected into the ball, ends on its surface (algorithm 2).
    return jnp.where(inside, jnp.clip(center + eps * _signs(which, 1, 1, x.shape[2]), 0.0, 1.0), x)


def _l2_begin(key: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    h, w, c = center.shape
    side = max(min(h, w) // TILES, 1)
    i, j = jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")
    tile = bumps(i % side, j % side, jnp.int32(side))[..., None]
    sign = _signs(key, h // side + 1, w // side + 1, c)
    v = tile * jnp.repeat(jnp.repeat(sign, side, 0)[:h], side, 1)[:, :w]
    return jnp.clip(center + eps * v / jnp.sqrt(jnp.sum(jnp.square(v)) + TINY), 0.0, 1.0)


def _l2_try(
    key: jax.Array, x: jax.Array, center: jax.Array, eps: jax.Array, side: jax.Array
) -> jax.Array:
    """Removes the change in two windows, and spends its L2 budget on a new square (algorithm 3)."""
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
"""Norm -> the start `(key, center, eps) -> x` and the move `(key, x, center, eps, side) -> x` of
one image f32[h w c].
"""


# ---- the attack ----


class _State(NamedTuple):
    """Each image at x with this margin, after k queries of the start with index `start`."""

    x: jax.Array
    margin: jax.Array
    k: jax.Array
    start: jax.Array
    best: Best
    finished: jax.Array


def square(*, steps: int = 5000, restarts: int = 1, share: float = SHARE) -> Search:
    """Square: random search that changes one square of the image at a time, to the limit of eps.

    Changes that raise the margin are kept. The margin is the largest logit of the classes that meet
    the goal minus the largest of the others. An image stops at its first success. No gradient is
    used, and one step is one query. Squares of all sizes are drawn as masks of one shape, with each
    image's own key.

    Args:
      steps: traced, queries per image including the start; the schedule of square sizes is scaled
        to it. 5000 is AutoAttack's.
      restarts: static; each with as many queries.
      share: p of the paper, the share of the image that the first squares cover, in (0, 1].

    Raises:
      ValueError: a count below 1, a share outside (0, 1], or a norm other than L2 and Linf.

    Reference: Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 to 3.
    """
    check_counts(steps=steps, restarts=restarts)
    if not 0 < share <= 1:
        raise ValueError(f"`share` of the image must be in (0, 1]: got {share}")

    def init(task: Task, best: Best) -> _State:
        zero = jnp.zeros_like(best.solved, jnp.int32)
        low = jnp.full_like(best.score, -jnp.inf)
        return _State(task.center, low, zero, zero, best, jnp.zeros_like(best.solved))

    def step(task: Task, state: _State) -> _State:
        name, keys = norms.name(task.norm), fold_in_each(task.keys, state.start, state.k)
        begin, move = MOVES[name]
        shape = task.center.shape[1:]
        side = jax.vmap(lambda k, steps: side_at(k, steps, share, shape, SMALLEST[name]))(
            state.k, task.steps
        )
        next_x = jax.vmap(move)(keys, state.x, task.center, task.eps, side)
        first = state.k == 0

        def with_starts() -> jax.Array:
            starts = jax.vmap(begin)(keys, task.center, task.eps)
            return jnp.where(expand(first, next_x), starts, next_x)

        x = jax.lax.cond(jnp.any(first), with_starts, lambda: next_x)
        logits = task.logits(task.saved(x))
        score, met = task.judge(logits)
        new_margin = margin(logits, task.success_mask)
        better = first | (new_margin > state.margin)
        last = state.k + 1 == task.steps
        return _State(
            jnp.where(expand(better, x), x, state.x),
            jnp.where(better, new_margin, state.margin),
            jnp.where(last, 0, state.k + 1),
            jnp.where(last, state.start + 1, state.start),
            update_best(state.best, x, score, met),
            met | (last & (state.start + 1 == restarts)),
        )

    return Search(init, step, steps, norms=tuple(MOVES))
