"""Parameterisations: what is optimised in place of the pixels, and how it becomes a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Image(NamedTuple):
    """A family of pictures.

    Attributes:
      init: key -> theta, the start.
      decode: theta -> images01 f32[b h w 3], always within [0, 1].
    """

    init: Callable[[jax.Array], jax.Array]
    decode: Callable[[jax.Array], jax.Array]


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Normal numbers, drawn flat: XLA on a CPU takes seconds to compile a random draw of rank 4."""
    return jax.random.normal(key, (math.prod(shape),), jnp.float32).reshape(shape)


def pixel(count: int, size: int, *, spread: float = 0.1) -> Image:
    """The pixels themselves, kept in [0, 1] by a sigmoid, so that no gradient dies at the border of the box.

    Args:
      count: images, b.
      size: side, in pixels.
      spread: standard deviation of the start in logits; 0.1 is grey noise of 0.025 (chosen, not tuned).
    """
    return Image(lambda key: spread * _normal(key, (count, size, size, 3)), jax.nn.sigmoid)


# Square root of the covariance of RGB in ImageNet photographs, over its largest column norm: independent colours on the
# right become natural ones. Lucid, `lucid/optvis/param/color.py` (Apache-2.0).
COLOUR = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], np.float32)
COLOUR = COLOUR / np.linalg.norm(COLOUR, axis=0).max()


def fourier(count: int, size: int, *, spread: float = 0.01, decay: float = 1.0) -> Image:
    """Coefficients of a real 2-D Fourier series, weighted 1/f^decay, in decorrelated colours, through a sigmoid.

    A step of the same length changes all scales with the energy that photographs have there, so large shapes come first.

    Args:
      count: images, b.
      size: side, in pixels.
      spread: standard deviation of the starting coefficients (lucid's 0.01).
      decay: photographs have about 1 (Field 1987).

    Reference: Olah, Mordvintsev & Schubert 2017, Distill, "Feature visualization", section "Preconditioning and
      parameterization"; lucid's constants.
    """
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    weight = (size / 4.0 / np.maximum(frequency, 1.0 / size) ** decay).astype(np.float32)  # lucid: sqrt(w h) / 4

    def init(key: jax.Array) -> jax.Array:
        return spread * _normal(key, (count, 2, *weight.shape, 3))

    def decode(theta: jax.Array) -> jax.Array:
        weighted = theta * weight[None, None, :, :, None]
        plain = jnp.fft.irfft2(jax.lax.complex(weighted[:, 0], weighted[:, 1]), (size, size), axes=(1, 2))
        return jax.nn.sigmoid(plain @ COLOUR.T)

    return Image(init, decode)


PARAMETERISATIONS: dict[str, Callable[..., Image]] = {"pixel": pixel, "fourier": fourier}
