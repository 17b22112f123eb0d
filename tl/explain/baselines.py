"""Baselines: images without the object, from which integrated gradients and occlusion count.

To add one: a function `(keys, images01) -> f32[b h w c]` and a row in `BASELINES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from tl.attacks.baselines import gaussian_blur
from tl.paths import nearest

# Standard deviation of the blurred baseline as a share of the longer side: 11 pixels of 224, which
# leaves no texture. Chosen, not tuned.
BLUR = 0.05


def _uniform(level: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda keys, images01: jnp.full_like(images01, level)


def blurred(keys: jax.Array, images01: jax.Array) -> jax.Array:
    """The image blurred with `BLUR`."""
    sigma = BLUR * max(images01.shape[1:3])
    return gaussian_blur(images01, jnp.full(len(images01), sigma, jnp.float32))


def random(keys: jax.Array, images01: jax.Array) -> jax.Array:
    """Independent uniform values in [0, 1], other ones for each image."""
    shape = images01.shape[1:]
    draw = lambda key: jax.random.uniform(key, (math.prod(shape),)).reshape(shape)
    return jax.vmap(draw)(keys)


BASELINES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "black": _uniform(0.0),
    "gray": _uniform(0.5),
    "blurred": blurred,
    "random": random,
}
"""Name -> `(keys, images01) -> f32[b h w c]` in [0, 1]."""


def get(names: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The baselines of each image, `(keys, images01) -> f32[b n h w c]`.

    Args:
      names: one name of `BASELINES`, or n names joined with "+". "random" uses a new draw each time
        it is named.

    Raises:
      ValueError: an unknown name; the message has the nearest.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> get("black+gray")(keys, jnp.ones((1, 2, 2, 3)))[0, :, 0, 0, 0].tolist()
      [0.0, 0.5]
    """
    words = names.split("+")
    for word in words:
        if word not in BASELINES:
            raise ValueError(f"unknown baseline {word!r}; nearest: {nearest(word, BASELINES)}")

    def draw(keys: jax.Array, images01: jax.Array) -> jax.Array:
        one = lambda i: jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        images = [BASELINES[word](one(i), images01) for i, word in enumerate(words)]
        return jnp.stack(images, axis=1)

    return draw
