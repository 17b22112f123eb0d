"""Random views of an image between the steps: what stays good under them is seen, not only computed.

A transform is `(key, images01) -> images01` of the same static shape; `compose` puts them in a row.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Transform = Callable[[jax.Array, jax.Array], jax.Array]


def jitter(pixels: int) -> Transform:
    """Rolls each image by a whole number of pixels in [-pixels, pixels], down and across; what leaves comes back opposite.

    Reference: Mordvintsev, Olah & Tyka 2015, "Inceptionism"; Olah et al. 2017, Distill, "Feature visualization".
    """

    def apply(key: jax.Array, images01: jax.Array) -> jax.Array:
        shifts = jax.random.randint(key, (images01.shape[0], 2), -pixels, pixels + 1)
        return jax.vmap(lambda image, shift: jnp.roll(image, (shift[0], shift[1]), axis=(0, 1)))(images01, shifts)

    return apply


def zoom(low: float, high: float) -> Transform:
    """Scales each image by a random factor in [low, high] about a random point; what is beyond the edge is its mirror image.

    The factor is even on a log scale; at most half the image is mirrored in, so `low` is at least 0.5.

    Reference: random scaling is Olah et al. 2017, Distill, "Feature visualization"; there within a tenth. Factors far below 1
      show the network the whole animal and a close-up by turns (chosen by eye on EfficientNet-Lite0).
    """
    if not 0.5 <= low <= high:
        raise ValueError(f"zoom wants 0.5 <= low <= high; got {low} and {high}")

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        side = jnp.asarray(image.shape[:2], jnp.float32)
        key_scale, key_place = jax.random.split(key)
        scale = jnp.exp(jax.random.uniform(key_scale, minval=jnp.log(low), maxval=jnp.log(high)))
        rows, columns = ((length + 1) // 2 for length in image.shape[:2])
        mirrored = jnp.pad(image, ((rows, rows), (columns, columns), (0, 0)), mode="symmetric")
        slack = jnp.minimum(0.5 * jnp.abs(1.0 - 1.0 / scale), 1.0 - 0.5 / scale) * side  # keeps the window in the frame
        centre = jnp.asarray([rows, columns], jnp.float32) + 0.5 * side
        centre += jax.random.uniform(key_place, (2,), minval=-1.0, maxval=1.0) * slack
        shift = 0.5 * side - centre * scale
        return jax.image.scale_and_translate(
            mirrored, image.shape, (0, 1), jnp.stack([scale, scale]), shift, "linear", antialias=True
        )

    def apply(key: jax.Array, images01: jax.Array) -> jax.Array:
        return jax.vmap(one)(jax.random.split(key, images01.shape[0]), images01)

    return apply


def compose(*transforms: Transform) -> Transform:
    """The transforms one after another, each with a key of its own."""

    def apply(key: jax.Array, images01: jax.Array) -> jax.Array:
        for i, transform in enumerate(transforms):
            images01 = transform(jax.random.fold_in(key, i), images01)
        return images01

    return apply
