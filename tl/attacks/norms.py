"""Where an attack may go: the ball around a picture, met with the box [0, 1]. To add a norm: one `Norm`, one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl.paths import nearest
from tl.types import Array

LEVELS = 255.0  # steps of an 8-bit channel
GRID = np.arange(256, dtype=np.float32) / np.float32(LEVELS)
"""k / 255 as `tl.pixels.to_images01` rounds it; looked up, for XLA compiles x / 255 as x * (1 / 255), one bit beside it."""
SHARE = 0.01  # of the coordinates, that an L1 step moves: q = 99 % in SLIDE (arXiv:1904.13000, algorithm 1)
HALVINGS = 24  # of a bracket: as many as float32 has bits


class Norm(NamedTuple):
    """The geometry of one attack; pure functions, batched on axis 0.

    `eps` is traced, in [0, 1] pixel units, one number or one an image, f32[] or f32[b]. Its largest useful value is the
    distance from black to white: 1 in Linf, the root of h w c in L2, h w c in L1.

    Attributes:
      start: `(key, center, eps) -> x`, a random point of the ball, then projected; `key` is one, or one an image. Even over
        the ball in Linf and L1; in L2 of an even direction and an even length.
      direction: gradient -> step of unit size, uphill; zero where the gradient is.
      project: `(x, center, eps) -> x`, the nearest point that is in the ball and in [0, 1].
      quantize: `(x, center, eps) -> x` on the k / 255 grid of 8-bit pictures, still in the ball; `center` is on the grid.
      distance: `(x, center) -> f32[b]`.
    """

    start: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    direction: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    quantize: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    distance: Callable[[jax.Array, jax.Array], jax.Array]


def per_image_keys(key: jax.Array, b: int) -> jax.Array:
    """A key for each of b images: that row's own, whatever the batch; keys that are one an image already stay.

    `attack(variables, per_image_keys(key, b)[i : i + 1], images01[i : i + 1], ...)` is row i of the batch, alone.
    """
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(b))


def _per_image(value: jax.Array, x: jax.Array) -> jax.Array:
    """f32[] or f32[b], shaped to go with x f32[b ...]."""
    return jnp.reshape(value, (-1, *(1,) * (x.ndim - 1)))


def _total(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def _most(x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), keepdims=True)


def _drawn(
    draw: Callable[[jax.Array, int], jax.Array], key: jax.Array, center: jax.Array
) -> jax.Array:
    """A draw `(key, n) -> f32[n]` for each image. Drawn flat: XLA on a CPU takes seconds to compile one of rank 4."""
    n = center[0].size
    return jax.vmap(lambda own: draw(own, n))(per_image_keys(key, len(center))).reshape(
        center.shape
    )


def _headroom(d: jax.Array, center: jax.Array) -> jax.Array:
    """How far from the center the box reaches, on the side that d points to."""
    return jnp.where(d > 0, 1.0 - center, center)


def _last_inside(
    inside: Callable[[jax.Array], jax.Array], safe: jax.Array, beyond: jax.Array
) -> jax.Array:
    """The value between `safe`, which is inside, and `beyond` that is nearest to it and inside still; by halving."""

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        safe, beyond = bracket
        middle = 0.5 * (safe + beyond)
        good = inside(middle)
        return jnp.where(good, middle, safe), jnp.where(good, beyond, middle)

    safe, beyond = jnp.broadcast_arrays(safe, beyond)
    return jax.lax.fori_loop(0, HALVINGS, halve, (safe, beyond))[0]


def _levels(x: jax.Array, center: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The change in levels, whole where x is on the grid, and the center's levels."""
    level = x * LEVELS
    whole, middle = jnp.rint(level), jnp.rint(center * LEVELS)
    return jnp.where(jnp.abs(level - whole) < 1e-3, whole, level) - middle, middle


def _eight_bit(levels: jax.Array) -> jax.Array:
    return jnp.asarray(GRID).at[levels.astype(jnp.int32)].get(mode="clip")


def _within(change: jax.Array, middle: jax.Array) -> jax.Array:
    """Whole levels of change, cut where the picture would leave [0, 255]."""
    return jnp.clip(jnp.rint(change), -middle, LEVELS - middle)


# ---------------------------------------------------------------------------------------------------------------- Linf


def _linf_project(x: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    eps = _per_image(eps, x)
    return jnp.clip(jnp.clip(x, center - eps, center + eps), 0.0, 1.0)


def _linf_start(key: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    noise = _drawn(
        lambda own, n: jax.random.uniform(own, (n,), minval=-1.0, maxval=1.0), key, center
    )
    return _linf_project(center + _per_image(eps, center) * noise, center, eps)


def _linf_quantize(x: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    reach = _per_image(
        jnp.floor(eps * LEVELS + 1e-3), x
    )  # whole levels; 1e-3 forgives k / 255's rounding in float32
    middle = jnp.rint(center * LEVELS)
    return _eight_bit(
        jnp.clip(jnp.clip(jnp.rint(x * LEVELS), middle - reach, middle + reach), 0.0, LEVELS)
    )


def linf_distance(x: Array, center: Array) -> jax.Array:
    """Largest change of any channel of any pixel: f32[b ...] x 2 -> f32[b]."""
    return jnp.max(jnp.abs(x - center), axis=tuple(range(1, x.ndim)))


# ------------------------------------------------------------------------------------------------------------------ L2


def l2_direction(gradient: jax.Array) -> jax.Array:
    """The gradient at Euclidean length one, f32[b ...]; however small it is, unless zero."""
    scaled = gradient / jnp.maximum(
        _most(gradient), jnp.finfo(jnp.float32).tiny
    )  # its squares do not vanish
    return scaled / jnp.maximum(
        jnp.sqrt(_total(jnp.square(scaled))), 0.5
    )  # where it is not zero, at least one


def _l2_project(x: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    """The nearest point is clip(center + s d): the way to x shortened, then cut by the box (KKT), with s to be found.

    What the box cuts off leaves length to the others: s grows until no more coordinates are cut, in a few turns.
    """
    d, eps = x - center, _per_image(eps, x)
    size, headroom = jnp.abs(d), _headroom(d, center)

    def grow(
        carry: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        s, _, turn = carry
        cut = s * size > headroom
        free = _total(jnp.where(cut, 0.0, jnp.square(size)))
        left = jnp.square(eps) - _total(jnp.where(cut, jnp.square(headroom), 0.0))
        longer = jnp.sqrt(jnp.maximum(left, 0.0) / jnp.maximum(free, jnp.finfo(jnp.float32).tiny))
        longer = jnp.clip(longer, s, 1.0)
        return longer, longer > s * (1.0 + 1e-6), turn + 1

    s = jnp.zeros_like(_total(size))
    s, _, _ = jax.lax.while_loop(
        lambda c: jnp.any(c[1]) & (c[2] < 64), grow, (s, s == 0.0, jnp.int32(0))
    )
    return jnp.where(s < 1.0, jnp.clip(center + s * d, 0.0, 1.0), jnp.clip(x, 0.0, 1.0))


def _l2_start(key: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    """Of any length alike. A point even over a ball of many dimensions lies on its sphere, and a climb spends eps undoing it.

    Of 100 photographs (EfficientNet-Lite0, L2 0.25) three are on the brink for PGD-100: over seven keys it fooled them 17 times
    of 21 from here, 6 times from there. torchattacks draws so too; foolbox's L2 start is even over the ball.
    """

    def draw(own: jax.Array, n: int) -> jax.Array:
        way, length = jax.random.split(own)
        normal = jax.random.normal(way, (n,))
        return normal / jnp.linalg.norm(normal) * jax.random.uniform(length)

    return _l2_project(center + _per_image(eps, center) * _drawn(draw, key, center), center, eps)


def _l2_quantize(x: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    """Rounds the change times the largest s that leaves the result no longer than the change was, nor than eps.

    Rounding to nearest would leave the ball, or, where less than half a level is what each pixel gets, erase everything. A
    scaled change is what Lagrange gives for the whole numbers of a given length that point most along the change; s below
    one is repair towards the center, above one the length that rounding lost. What is on the grid stays (s = 1 is exact,
    and any more would be longer). Changes of equal size round alike: a change that is the same everywhere may vanish.
    """
    t, middle = _levels(x, center)
    most = _most(t)
    budget = jnp.minimum(
        _per_image(jnp.square(eps * LEVELS) * (1.0 + 1e-5), x), _total(jnp.square(t))
    )
    beyond = (jnp.sqrt(budget) + 1.0) / jnp.maximum(
        most, 1e-3
    )  # there, one coordinate alone is too long
    inside = lambda s: _total(jnp.square(_within(s * t, middle))) <= budget * (1.0 + 1e-6)
    return _eight_bit(
        middle + _within(_last_inside(inside, jnp.zeros_like(most), beyond) * t, middle)
    )


def l2_distance(x: Array, center: Array) -> jax.Array:
    """Euclidean length of the change: f32[b ...] x 2 -> f32[b]."""
    return jnp.sqrt(jnp.sum(jnp.square(x - center), axis=tuple(range(1, x.ndim))))


# ------------------------------------------------------------------------------------------------------------------ L1


def l1_direction(gradient: jax.Array) -> jax.Array:
    """Signs of the largest `SHARE` of the gradient, f32[b ...], sum of sizes one.

    Steepest ascent in L1 moves one coordinate; this moves as many as take a step of the same length at once.

    Reference: Tramer & Boneh 2019, arXiv:1904.13000, "SLIDE", algorithm 1.
    """
    flat = gradient.reshape(len(gradient), -1)
    size = jnp.abs(flat)
    least = jax.lax.top_k(size, max(1, round(SHARE * flat.shape[1])))[0][:, -1:]
    signs = jnp.where(size >= least, jnp.sign(flat), 0.0)
    return (signs / jnp.maximum(jnp.sum(jnp.abs(signs), axis=1, keepdims=True), 1.0)).reshape(
        gradient.shape
    )


def _l1_project(x: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    """The nearest point takes the same amount off every change, down to zero at most, then cuts by the box (KKT).

    The amount is found by halving, to the bits of float32, in place of sorting; from above, so the point is in the ball.

    Reference: Croce & Hein 2021, arXiv:2103.01208, proposition 2.1 (there by sorting).
    """
    d, eps = x - center, _per_image(eps, x)
    size, headroom = jnp.abs(d), _headroom(d, center)
    short = lambda amount: jnp.clip(size - amount, 0.0, headroom)
    inside = lambda amount: _total(short(amount)) <= eps
    amount = _last_inside(inside, _most(d), jnp.zeros_like(_most(d)))
    return jnp.where(
        inside(jnp.zeros_like(amount)), jnp.clip(x, 0.0, 1.0), center + jnp.sign(d) * short(amount)
    )


def _l1_start(key: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    def even(own: jax.Array, n: int) -> jax.Array:
        ways, lengths = jax.random.split(own)
        parts = jax.random.exponential(
            lengths, (n + 1,)
        )  # shares of a sum are even over the simplex; the last is slack
        return (
            jnp.where(jax.random.bernoulli(ways, 0.5, (n,)), 1.0, -1.0) * parts[:n] / jnp.sum(parts)
        )

    return _l1_project(center + _per_image(eps, center) * _drawn(even, key, center), center, eps)


def _l1_quantize(x: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    """Takes the same amount off every change, then rounds: the least that leaves it no longer than it was, nor than eps.

    Up to half a level may be added instead, where rounding to nearest would lose length; what was not changed never is.
    As in L2, what is on the grid stays, and changes of equal size round alike.
    """
    t, middle = _levels(x, center)
    size, most = jnp.abs(t), _most(t)
    budget = jnp.minimum(_per_image(eps * LEVELS + 1e-3, x), _total(size))
    whole = lambda amount: _within(jnp.sign(t) * jnp.maximum(size - amount, 0.0), middle)
    inside = lambda amount: _total(jnp.abs(whole(amount))) <= budget * (1.0 + 1e-6)
    return _eight_bit(middle + whole(_last_inside(inside, most, jnp.full_like(most, -0.499))))


def l1_distance(x: Array, center: Array) -> jax.Array:
    """Sum of all changes: f32[b ...] x 2 -> f32[b]."""
    return jnp.sum(jnp.abs(x - center), axis=tuple(range(1, x.ndim)))


NORMS = {
    "linf": Norm(_linf_start, jnp.sign, _linf_project, _linf_quantize, linf_distance),
    "l2": Norm(_l2_start, l2_direction, _l2_project, _l2_quantize, l2_distance),
    "l1": Norm(_l1_start, l1_direction, _l1_project, _l1_quantize, l1_distance),
}
LINF, L2, L1 = NORMS.values()
"""Goodfellow et al. 2015, arXiv:1412.6572; Szegedy et al. 2014, arXiv:1312.6199; Tramer & Boneh 2019, arXiv:1904.13000."""


def get(name: str) -> Norm:
    """The norm called `name`; ValueError with the nearest names where there is none."""
    if name not in NORMS:
        raise ValueError(f"unknown norm {name!r}; nearest: {nearest(name, NORMS)}")
    return NORMS[name]


def name(norm: Norm) -> str:
    """Under which name the norm stands in `NORMS`; "" for one that does not."""
    return next((word for word, row in NORMS.items() if row == norm), "")


def largest(norm: Norm, shape: tuple[int, ...]) -> float:
    """How far white is from black, in pictures of that shape [h w c]: the eps beyond which nothing is left to reach."""
    with jax.ensure_compile_time_eval():
        white = jnp.ones((1, *shape), jnp.float32)
        return float(norm.distance(white, jnp.zeros_like(white))[0])
