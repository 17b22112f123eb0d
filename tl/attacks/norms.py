"""Norms of attacks: the ball around an image within [0, 1].

To add a norm: one `Norm` and a row in `NORMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl.paths import nearest
from tl.types import Array

# Largest value of an 8-bit channel.
LEVELS = 255.0
GRID = np.arange(256, dtype=np.float32) / np.float32(LEVELS)
"""k / 255 as `tl.pixels.to_images01` rounds it.

XLA compiles x / 255 as x * (1 / 255), which differs in a bit; `_eight_bit` has the same bits.
"""
# 1 / 255 as a sum: the first 16 bits, whose product with a level is exact, and the rest.
_FIRST = np.float32(np.floor(2**23 / 255) / 2**23)
_REST = np.float32(1 / 255 - np.float64(_FIRST))
# Share of the coordinates that an L1 step changes: 1 - q, where SLIDE has q = 99 %
# (arXiv:1904.13000, algorithm 1).
SHARE = 0.01
# Bisection steps: the number of bits of a float32 significand.
HALVINGS = 24


class Norm(NamedTuple):
    """The geometry of an attack; pure functions, batched on axis 0.

    `eps` is traced, in [0, 1] pixel units, f32[] or f32[b]. Its largest useful value is the
    distance from black to white: 1 in Linf, the root of h w c in L2, h w c in L1.

    Attributes:
      start: `(key, center, eps) -> x`, a random point of the ball within [0, 1]; one key, or one
        per image. Uniform over the ball in Linf and L1; uniform in direction and in length in L2.
      direction: gradient -> step of unit length along which the score rises fastest; zero for a
        zero gradient.
      project: `(x, center, eps) -> x`, the nearest point in the ball and in [0, 1].
      quantize: `(x, center, eps) -> x` rounded to multiples of 1 / 255 within the ball; `center`
        must have such values.
      distance: `(x, center) -> f32[b]`.
    """

    start: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    direction: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    quantize: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    distance: Callable[[jax.Array, jax.Array], jax.Array]


def per_image_keys(key: jax.Array, b: int) -> jax.Array:
    """A key for each of b images that does not depend on b; an array of keys is returned unchanged.

    `attack(variables, per_image_keys(key, b)[i : i + 1], images01[i : i + 1], ...)` attacks image i
    of a batch alone.
    """
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(b))


def _per_image(value: jax.Array, x: jax.Array) -> jax.Array:
    """f32[] or f32[b], reshaped to broadcast with x f32[b ...]."""
    return jnp.reshape(value, (-1, *(1,) * (x.ndim - 1)))


def _total(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def _largest(x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), keepdims=True)


def _draw_each(
    draw: Callable[[jax.Array, int], jax.Array], key: jax.Array, center: jax.Array
) -> jax.Array:
    """One draw `(key, n) -> f32[n]` for each image, in the shape of `center` f32[b ...].

    The draws are flat, because XLA takes seconds to compile draws of rank 4 on a CPU.
    """
    n = center[0].size
    draws = jax.vmap(lambda image_key: draw(image_key, n))(per_image_keys(key, len(center)))
    return draws.reshape(center.shape)


def _headroom(d: jax.Array, center: jax.Array) -> jax.Array:
    """Distance from the center to the bound 0 or 1 in the direction of d."""
    return jnp.where(d > 0, 1.0 - center, center)


def _last_inside(
    inside: Callable[[jax.Array], jax.Array], safe: jax.Array, beyond: jax.Array
) -> jax.Array:
    """Bisects between `safe`, which is inside, and `beyond`: the last value that is inside."""

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        safe, beyond = bracket
        middle = 0.5 * (safe + beyond)
        is_inside = inside(middle)
        return jnp.where(is_inside, middle, safe), jnp.where(is_inside, beyond, middle)

    safe, beyond = jnp.broadcast_arrays(safe, beyond)
    return jax.lax.fori_loop(0, HALVINGS, halve, (safe, beyond))[0]


def _levels(x: jax.Array, center: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The change in units of 1 / 255, rounded to whole units if close, and the center in units."""
    level = x * LEVELS
    whole, middle = jnp.rint(level), jnp.rint(center * LEVELS)
    return jnp.where(jnp.abs(level - whole) < 1e-3, whole, level) - middle, middle


def _eight_bit(levels: jax.Array) -> jax.Array:
    """`GRID[levels]`; a table of 256 values is slow to read for every pixel on a TPU."""
    whole = jnp.clip(levels.astype(jnp.int32), 0, 255).astype(jnp.float32)
    return whole * _FIRST + whole * _REST


def _within(change: jax.Array, middle: jax.Array) -> jax.Array:
    """The change rounded to whole levels, clipped so that the image stays in [0, 255]."""
    return jnp.clip(jnp.rint(change), -middle, LEVELS - middle)


# ---- Linf ----


def _linf_project(x: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    eps = _per_image(eps, x)
    return jnp.clip(jnp.clip(x, center - eps, center + eps), 0.0, 1.0)


def _linf_start(key: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    uniform = lambda key, n: jax.random.uniform(key, (n,), minval=-1.0, maxval=1.0)
    noise = _draw_each(uniform, key, center)
    return _linf_project(center + _per_image(eps, center) * noise, center, eps)


def _linf_quantize(x: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    # Whole levels; 1e-3 allows for the float32 rounding of k / 255.
    radius = _per_image(jnp.floor(eps * LEVELS + 1e-3), x)
    middle = jnp.rint(center * LEVELS)
    levels = jnp.clip(jnp.rint(x * LEVELS), middle - radius, middle + radius)
    return _eight_bit(jnp.clip(levels, 0.0, LEVELS))


def linf_distance(x: Array, center: Array) -> jax.Array:
    """Largest absolute change of any value: f32[b ...] x 2 -> f32[b]."""
    return jnp.max(jnp.abs(x - center), axis=tuple(range(1, x.ndim)))


# ---- L2 ----


def l2_direction(gradient: jax.Array) -> jax.Array:
    """Gradients f32[b ...] of any magnitude scaled to Euclidean length one; zero stays zero."""
    # Scaled first, because squares of small gradients vanish in float32.
    scaled = gradient / jnp.maximum(_largest(gradient), jnp.finfo(jnp.float32).tiny)
    # The length is at least one where the gradient is not zero.
    return scaled / jnp.maximum(jnp.sqrt(_total(jnp.square(scaled))), 0.5)


def _l2_project(x: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    """The nearest point is clip(center + s d), by the KKT conditions; s has to be found.

    Clipped coordinates leave length to the others, so s grows until no further coordinate is
    clipped, in a few iterations.
    """
    d, eps = x - center, _per_image(eps, x)
    size, headroom = jnp.abs(d), _headroom(d, center)

    def grow(
        carry: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        s, _, turn = carry
        clipped = s * size > headroom
        free = _total(jnp.where(clipped, 0.0, jnp.square(size)))
        remaining = jnp.square(eps) - _total(jnp.where(clipped, jnp.square(headroom), 0.0))
        longer = jnp.sqrt(
            jnp.maximum(remaining, 0.0) / jnp.maximum(free, jnp.finfo(jnp.float32).tiny)
        )
        longer = jnp.clip(longer, s, 1.0)
        return longer, longer > s * (1.0 + 1e-6), turn + 1

    s = jnp.zeros_like(_total(size))
    s, _, _ = jax.lax.while_loop(
        lambda c: jnp.any(c[1]) & (c[2] < 64), grow, (s, s == 0.0, jnp.int32(0))
    )
    return jnp.where(s < 1.0, jnp.clip(center + s * d, 0.0, 1.0), jnp.clip(x, 0.0, 1.0))


def _l2_start(key: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    """A random direction with a uniform length.

    A uniform point of a high-dimensional ball lies near its sphere, and an attack spends its steps
    undoing that. On the three of 100 images that are undecided for PGD-100 (EfficientNet-Lite0, L2
    0.25), over seven keys, it succeeded 17 of 21 times from this start and 6 of 21 times from a
    uniform one. torchattacks draws the same start; foolbox's L2 start is uniform.
    """

    def draw(image_key: jax.Array, n: int) -> jax.Array:
        direction_key, length_key = jax.random.split(image_key)
        normal = jax.random.normal(direction_key, (n,))
        return normal / jnp.linalg.norm(normal) * jax.random.uniform(length_key)

    return _l2_project(
        center + _per_image(eps, center) * _draw_each(draw, key, center), center, eps
    )


def _l2_quantize(x: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    """Rounds s times the change, with the largest s that makes it no longer than before or eps.

    Rounding to nearest would leave the ball or, where all changes are below half a level, remove
    them. By Lagrange, a scaled change gives the whole numbers of a given length that are best
    aligned with the change: s below one returns into the ball, s above one restores length lost to
    rounding. Whole changes stay as they are, with s = 1. Equal changes are rounded equally, so a
    constant change may vanish.
    """
    t, middle = _levels(x, center)
    largest = _largest(t)
    squared_eps = _per_image(jnp.square(eps * LEVELS) * (1.0 + 1e-5), x)
    budget = jnp.minimum(squared_eps, _total(jnp.square(t)))
    # At this s a single coordinate is too long.
    beyond = (jnp.sqrt(budget) + 1.0) / jnp.maximum(largest, 1e-3)
    inside = lambda s: _total(jnp.square(_within(s * t, middle))) <= budget * (1.0 + 1e-6)
    s = _last_inside(inside, jnp.zeros_like(largest), beyond)
    return _eight_bit(middle + _within(s * t, middle))


def l2_distance(x: Array, center: Array) -> jax.Array:
    """Euclidean length of the change: f32[b ...] x 2 -> f32[b]."""
    return jnp.sqrt(jnp.sum(jnp.square(x - center), axis=tuple(range(1, x.ndim))))


# ---- L1 ----


def l1_direction(gradient: jax.Array) -> jax.Array:
    """Signs of the largest `SHARE` of the gradient f32[b ...], scaled to L1 norm one.

    Steepest ascent in L1 would change a single coordinate per step.

    Reference: Tramer & Boneh 2019, arXiv:1904.13000, "SLIDE", algorithm 1.
    """
    flat = gradient.reshape(len(gradient), -1)
    size = jnp.abs(flat)
    least = jax.lax.top_k(size, max(1, round(SHARE * flat.shape[1])))[0][:, -1:]
    signs = jnp.where(size >= least, jnp.sign(flat), 0.0)
    count = jnp.sum(jnp.abs(signs), axis=1, keepdims=True)
    return (signs / jnp.maximum(count, 1.0)).reshape(gradient.shape)


def _l1_project(x: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    """The nearest point reduces all changes by one amount, at most to zero, and clips them (KKT).

    The amount is found by bisection to float32 precision, from above, so that the point is in the
    ball.

    Reference: Croce & Hein 2021, arXiv:2103.01208, proposition 2.1 (there by sorting).
    """
    d, eps = x - center, _per_image(eps, x)
    size, headroom = jnp.abs(d), _headroom(d, center)
    reduced = lambda amount: jnp.clip(size - amount, 0.0, headroom)
    inside = lambda amount: _total(reduced(amount)) <= eps
    amount = _last_inside(inside, _largest(d), jnp.zeros_like(_largest(d)))
    projected = center + jnp.sign(d) * reduced(amount)
    return jnp.where(inside(jnp.zeros_like(amount)), jnp.clip(x, 0.0, 1.0), projected)


def _l1_start(key: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    def draw(image_key: jax.Array, n: int) -> jax.Array:
        sign_key, size_key = jax.random.split(image_key)
        # Normalized exponentials are uniform over the simplex; the last one is slack.
        parts = jax.random.exponential(size_key, (n + 1,))
        signs = jnp.where(jax.random.bernoulli(sign_key, 0.5, (n,)), 1.0, -1.0)
        return signs * parts[:n] / jnp.sum(parts)

    return _l1_project(
        center + _per_image(eps, center) * _draw_each(draw, key, center), center, eps
    )


def _l1_quantize(x: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    """Reduces all changes by the smallest amount with which, rounded, they are not too long.

    They are then no longer than before and no longer than eps. The amount may be negative, down to
    minus half a level, to restore length lost to rounding; zero changes stay zero. As in L2, whole
    changes stay as they are, and equal changes are rounded equally.
    """
    t, middle = _levels(x, center)
    size, largest = jnp.abs(t), _largest(t)
    budget = jnp.minimum(_per_image(eps * LEVELS + 1e-3, x), _total(size))
    whole = lambda amount: _within(jnp.sign(t) * jnp.maximum(size - amount, 0.0), middle)
    inside = lambda amount: _total(jnp.abs(whole(amount))) <= budget * (1.0 + 1e-6)
    amount = _last_inside(inside, largest, jnp.full_like(largest, -0.499))
    return _eight_bit(middle + whole(amount))


def l1_distance(x: Array, center: Array) -> jax.Array:
    """Sum of absolute changes: f32[b ...] x 2 -> f32[b]."""
    return jnp.sum(jnp.abs(x - center), axis=tuple(range(1, x.ndim)))


NORMS = {
    "linf": Norm(_linf_start, jnp.sign, _linf_project, _linf_quantize, linf_distance),
    "l2": Norm(_l2_start, l2_direction, _l2_project, _l2_quantize, l2_distance),
    "l1": Norm(_l1_start, l1_direction, _l1_project, _l1_quantize, l1_distance),
}
LINF, L2, L1 = NORMS.values()
"""In attacks: Linf, Goodfellow et al. 2015, arXiv:1412.6572; L2, Szegedy et al. 2014,
arXiv:1312.6199; L1, Tramer & Boneh 2019, arXiv:1904.13000.
"""


def get(name: str) -> Norm:
    """The norm with a name.

    Raises:
      ValueError: the name is not in `NORMS`; the message has the nearest names.
    """
    if name not in NORMS:
        raise ValueError(f"unknown norm {name!r}; nearest: {nearest(name, NORMS)}")
    return NORMS[name]


def name(norm: Norm) -> str:
    """The name of a norm in `NORMS`; "" for any other norm."""
    return next((word for word, row in NORMS.items() if row == norm), "")


# Radii up to these are probably meant for Linf (chosen, not tuned). Common ones are 0.5 (CIFAR-10,
# arXiv:2010.09670) and 3 (ImageNet, arXiv:2007.08489) in L2, 12 (CIFAR-10, arXiv:2103.01208) in L1.
_SMALL = {"l2": 16 / 255, "l1": 1.0}


def radius_remarks(norm: str, radii: Iterable[float]) -> tuple[str, ...]:
    """Sentences on radii that seem to be meant for another norm or unit; usual ones have none.

    Args:
      norm: name in `NORMS`.
      radii: in [0, 1] pixel units.

    Example:
      >>> radius_remarks("l2", [0.5, 3.0]), len(radius_remarks("l2", [8 / 255]))
      ((), 1)
    """
    remarks = []
    for eps in radii:
        if 0 < eps < _SMALL.get(norm, 0.0) + 1e-9:
            usual, name = "0.5 to 3" if norm == "l2" else "10 to 100", norm.title()
            remarks.append(
                f"a radius of {eps * 255:.4g}/255 is usual in Linf; in {name}, which bounds the "
                f"change of the whole image, {usual} is usual"
            )
        elif norm == "linf" and eps >= 1:
            remarks.append(
                f"a radius of {eps:.4g} in Linf allows every image, because 1 is the distance from "
                f"black to white{level_hint(eps)}"
            )
    return tuple(remarks)


def level_hint(eps: float) -> str:
    """The end of a message on a radius of 1 or more: how to write levels of 255.

    Example:
      >>> level_hint(8), level_hint(0.5)
      ('; write 8/255 for 8 of 255 levels', '')
    """
    return f"; write {eps:.4g}/255 for {eps:.4g} of 255 levels" if 1 <= eps <= 255 else ""


def largest(norm: Norm, shape: tuple[int, ...]) -> float:
    """Distance from black to white for images of shape [h w c]: the largest useful eps."""
    with jax.ensure_compile_time_eval():
        white = jnp.ones((1, *shape), jnp.float32)
        return float(norm.distance(white, jnp.zeros_like(white))[0])
