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


class Norm(NamedTuple):
    """The geometry of one attack; pure functions, batched on axis 0, `eps` traced and in [0, 1] pixel units.

    Attributes:
      start: `(key, center, eps) -> x`, a random point of the ball.
      direction: gradient -> step of unit size, uphill.
      project: `(x, center, eps) -> x` in the ball and in [0, 1].
      lattice: `(x, center, eps) -> x` on the k / 255 grid of 8-bit pictures, still in the ball; `center` is on the grid.
      distance: `(x, center) -> f32[b]`.
    """

    start: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    direction: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    lattice: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    distance: Callable[[jax.Array, jax.Array], jax.Array]


def _linf_project(x: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    return jnp.clip(jnp.clip(x, center - eps, center + eps), 0.0, 1.0)


def _linf_start(key: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    # Drawn flat: XLA on a CPU takes seconds to compile a random draw of rank 4.
    noise = jax.random.uniform(key, (center.size,), minval=-1.0, maxval=1.0).reshape(center.shape)
    return _linf_project(center + eps * noise, center, eps)


def _linf_lattice(x: jax.Array, center: jax.Array, eps: jax.Array) -> jax.Array:
    reach = jnp.floor(eps * LEVELS + 1e-3)  # whole levels within eps; 1e-3 forgives the rounding of k / 255 in float32
    middle = jnp.rint(center * LEVELS)
    levels = jnp.clip(jnp.clip(jnp.rint(x * LEVELS), middle - reach, middle + reach), 0.0, LEVELS)
    return jnp.asarray(GRID).at[levels.astype(jnp.int32)].get(mode="clip")


def linf_distance(x: Array, center: Array) -> jax.Array:
    """Largest change of any channel of any pixel: f32[b ...] x 2 -> f32[b]."""
    return jnp.max(jnp.abs(x - center), axis=tuple(range(1, x.ndim)))


def l2_distance(x: Array, center: Array) -> jax.Array:
    """Euclidean length of the change: f32[b ...] x 2 -> f32[b]."""
    return jnp.sqrt(jnp.sum(jnp.square(x - center), axis=tuple(range(1, x.ndim))))


LINF = Norm(
    _linf_start, jnp.sign, _linf_project, _linf_lattice, linf_distance
)  # Goodfellow et al. 2015, arXiv:1412.6572

NORMS = {"linf": LINF}


def get(name: str) -> Norm:
    """The norm called `name`; ValueError with the nearest names where there is none."""
    if name not in NORMS:
        raise ValueError(f"unknown norm {name!r}; nearest: {nearest(name, NORMS)}")
    return NORMS[name]
