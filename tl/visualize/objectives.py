"""What an image should be ideal for. An objective is a function to be MAXIMISED; objectives add and scale.

To add one: a function that returns an `Objective`, and a row where experiments name it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from tl.losses import group_log_probability
from tl.types import Output


class Objective:
    """`(output, images01) -> f32[b]`, with `+` and scalar `*`.

    Example:
      >>> (2.0 * Objective(lambda output, images: images) + Objective(lambda output, images: images))(None, 1.0)
      3.0
    """

    def __init__(self, function: Callable[[Output, jax.Array], jax.Array]):
        self.function = function

    def __call__(self, output: Output, images01: jax.Array) -> jax.Array:
        return self.function(output, images01)

    def __add__(self, other: Objective) -> Objective:
        return Objective(lambda output, images: self(output, images) + other(output, images))

    def __mul__(self, scale: float | jax.Array) -> Objective:
        return Objective(lambda output, images: self(output, images) * scale)

    __rmul__ = __mul__

    def __sub__(self, other: Objective) -> Objective:
        return self + other * -1.0


def _logits(output: Output) -> jax.Array:
    if output.logits is None:
        raise ValueError("this objective wants class logits, and the network has no classifier")
    return output.logits


def class_logit(members: jax.Array) -> Objective:
    """The mean logit of each image's classes; `members` bool[b k]. It keeps growing after the probability is 1."""
    return Objective(lambda output, _: jnp.mean(_logits(output), axis=1, where=members))


def class_log_probability(members: jax.Array) -> Objective:
    """Log of the joint probability of each image's classes; `members` bool[b k]."""
    return Objective(lambda output, _: group_log_probability(_logits(output), members))


def channel(endpoint: str, indices: Sequence[int]) -> Objective:
    """The mean activation of one channel an image at an endpoint."""
    picks = jnp.asarray(indices, jnp.int32)

    def mean(output: Output, _: jax.Array) -> jax.Array:
        maps = jnp.mean(output.endpoints[endpoint], axis=(1, 2))
        return jnp.take_along_axis(maps, picks[:, None], axis=1)[:, 0]

    return Objective(mean)


def total_variation(images01: jax.Array) -> jax.Array:
    """How restless each image is: mean |difference| of horizontal plus of vertical neighbours, f32[b h w c] -> f32[b].

    Unit: pixel range [0, 1] a step, averaged over pixels and channels, so that it does not depend on the size;
    `tf.image.total_variation` is the same sum not divided by h w c. White noise in [0, 1] has 2/3, photographs 0.05-0.15.

    Reference: Rudin, Osher & Fatemi 1992, in the anisotropic form.
    """
    across = jnp.mean(jnp.abs(images01[:, :, 1:] - images01[:, :, :-1]), axis=(1, 2, 3))
    down = jnp.mean(jnp.abs(images01[:, 1:] - images01[:, :-1]), axis=(1, 2, 3))
    return across + down


def smoothness() -> Objective:
    """Minus the total variation: what a variation loss adds, to be scaled by its weight."""
    return Objective(lambda _, images01: -total_variation(images01))


def energy(images01: jax.Array) -> jax.Array:
    """How far each image is from mid-grey: mean square of 2 x - 1, f32[b h w c] -> f32[b], from 0 (grey) to 1 (black or white).

    Reference: the L2 regulariser of Simonyan et al. 2014, arXiv:1312.6034, section 2, about grey and averaged over pixels.
    """
    return jnp.mean(jnp.square(2.0 * images01 - 1.0), axis=(1, 2, 3))


def calmness() -> Objective:
    """Minus the energy: keeps an image from burning out into black and white, to be scaled by its weight."""
    return Objective(lambda _, images01: -energy(images01))
