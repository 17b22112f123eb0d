"""Parameterizations: the variables that are optimized, and the images that they decode to.

To add one: a function `size -> Image` and a row in `PARAMETERIZATIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Image(NamedTuple):
    """A parameterization of images.

    Attributes:
      init: keys [b] -> theta f32[b ...], the start; each image depends on its own key only.
      decode: theta -> images01 f32[b h w 3], always in [0, 1].
      encode: images01 f32[b h w 3] -> theta of the nearest image that the parameterization has.
      project: theta -> theta, applied after each step.
    """

    init: Callable[[jax.Array], jax.Array]
    decode: Callable[[jax.Array], jax.Array]
    encode: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array], jax.Array] = lambda theta: theta


def _normal(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Normal samples, drawn flat: XLA on a CPU takes seconds to compile a random draw of rank 4."""
    return jax.random.normal(key, (math.prod(shape),), jnp.float32).reshape(shape)


def _logit(images01: jax.Array) -> jax.Array:
    """The inverse of the sigmoid. 0 and 1 are moved by 1/512, because their logits are infinite."""
    inside = jnp.clip(images01, 1 / 512, 511 / 512)
    return jnp.log(inside) - jnp.log1p(-inside)


# Square root of the covariance of RGB in ImageNet photographs, over its largest column norm: it
# maps decorrelated colors to RGB. lucid, `lucid/optvis/param/color.py` (Apache-2.0).
COLOR = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], np.float32)
COLOR = COLOR / np.linalg.norm(COLOR, axis=0).max()
# Maps RGB to decorrelated colors.
PLAIN = np.linalg.inv(COLOR)


def _mixed(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    """x @ matrix.T over the colors, by plane: a matrix product is ten times slower on a CPU."""
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    return jnp.stack(
        [float(row[0]) * r + float(row[1]) * g + float(row[2]) * b for row in matrix], axis=-1
    )


def pixel(size: int, *, spread: float = 0.1) -> Image:
    """Pixels through a sigmoid, whose gradient does not vanish at the bounds of [0, 1].

    Args:
      size: side in pixels.
      spread: standard deviation of the start in logits; 0.1 is gray noise of 0.025 (chosen, not
        tuned).
    """
    return Image(
        jax.vmap(lambda key: spread * _normal(key, (size, size, 3))), jax.nn.sigmoid, _logit
    )


def box(size: int, *, spread: float = 0.025) -> Image:
    """Pixels clipped to [0, 1] after each step; the start is gray noise, as for `pixel`."""
    clip = lambda theta: jnp.clip(theta, 0.0, 1.0)
    return Image(
        jax.vmap(lambda key: 0.5 + spread * _normal(key, (size, size, 3))), clip, clip, clip
    )


def _frequencies(size: int) -> np.ndarray:
    """Cycles per pixel f32[size, size // 2 + 1] of a real 2-D transform; 1/size instead of 0."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    return np.maximum(f, 1.0 / size).astype(np.float32)


def fourier(size: int, *, spread: float = 0.01, decay: float = 1.0) -> Image:
    """Coefficients of a real 2-D Fourier series, weighted 1/f^decay, in decorrelated colors.

    The weights give each scale the energy that it has in photographs, so large shapes form first.
    A sigmoid bounds the image.

    Args:
      size: side in pixels.
      spread: standard deviation of the starting coefficients (lucid's 0.01).
      decay: photographs have about 1 (Field 1987).

    Reference:
      Olah, Mordvintsev & Schubert 2017, Distill, "Feature visualization", section "Preconditioning
      and parameterization"; lucid's constants.
    """
    weight = (size / 4.0 / _frequencies(size) ** decay)[:, :, None]  # lucid: sqrt(w h) / 4

    def decode(theta: jax.Array) -> jax.Array:
        weighted = theta * weight[None, None]
        plain = jnp.fft.irfft2(
            jax.lax.complex(weighted[:, 0], weighted[:, 1]), (size, size), axes=(1, 2)
        )
        return jax.nn.sigmoid(_mixed(plain, COLOR))

    def encode(images01: jax.Array) -> jax.Array:
        waves = jnp.fft.rfft2(_mixed(_logit(images01), PLAIN), axes=(1, 2))
        return jnp.stack([waves.real, waves.imag], axis=1) / weight[None, None]

    return Image(
        jax.vmap(lambda key: spread * _normal(key, (2, *weight.shape[:2], 3))), decode, encode
    )


def pyramid(size: int, *, spread: float = 0.1, levels: int = 5) -> Image:
    """A Laplacian pyramid: a sum of images of halved sides, each resized bilinearly.

    A step at a coarse level moves large shapes.

    Args:
      size: side in pixels.
      spread: standard deviation of each level's start (chosen, not tuned).
      levels: largest number of levels; the coarsest has at least two pixels per side.

    Reference:
      lucid, `lucid/optvis/param/lowres.py`, in decorrelated colors.
    """
    sides = [side for side in (-(-size // 2**i) for i in range(levels)) if side >= min(2, size)]
    ends = np.cumsum([0, *(3 * side * side for side in sides)]).tolist()

    def decode(theta: jax.Array) -> jax.Array:
        total = jnp.zeros((theta.shape[0], size, size, 3), jnp.float32)
        for side, begin, end in zip(sides, ends, ends[1:], strict=False):
            level = theta[:, begin:end].reshape(-1, side, side, 3)
            total += jax.image.resize(level, total.shape, "linear")
        return jax.nn.sigmoid(_mixed(total, COLOR))

    def encode(images01: jax.Array) -> jax.Array:
        full = _mixed(_logit(images01), PLAIN).reshape(images01.shape[0], -1)
        return jnp.pad(full, ((0, 0), (0, ends[-1] - ends[1])))

    return Image(jax.vmap(lambda key: spread * _normal(key, (ends[-1],))), decode, encode)


def maco(size: int, *, decay: float = 1.0, contrast: float = 1.0) -> Image:
    """MACO: phases at fixed magnitudes, those of photographs, so that fine noise cannot grow.

    Args:
      size: side in pixels.
      decay: the magnitude is 1/f^decay in each decorrelated color (Field 1987), which needs no data
        set. The paper uses the mean magnitude over ImageNet instead.
      contrast: standard deviation of the colors before the sigmoid (the paper's 1).

    Reference:
      Fel et al. 2023, arXiv:2306.06805, section 3 (MAgnitude Constrained Optimization).
    """
    magnitude = (1.0 / _frequencies(size) ** decay)[:, :, None]
    rows, columns = np.arange(size)[:, None, None], np.arange(size // 2 + 1)[:, None]
    # Two columns hold each wave twice; the second is the conjugate of the first.
    twin = (rows > size - rows) & (2 * columns % size == 0)

    def decode(theta: jax.Array) -> jax.Array:
        theta = jnp.where(twin[None], -jnp.roll(theta[:, ::-1], 1, axis=1), theta)
        waves = jax.lax.complex(magnitude[None] * jnp.cos(theta), magnitude[None] * jnp.sin(theta))
        plain = jnp.fft.irfft2(waves, (size, size), axes=(1, 2))
        plain = plain - jnp.mean(plain, axis=(1, 2, 3), keepdims=True)
        scale = contrast * jax.lax.rsqrt(
            jnp.mean(jnp.square(plain), axis=(1, 2, 3), keepdims=True) + 1e-12
        )
        return jax.nn.sigmoid(_mixed(plain * scale, COLOR))

    def encode(images01: jax.Array) -> jax.Array:
        return jnp.angle(jnp.fft.rfft2(_mixed(_logit(images01), PLAIN), axes=(1, 2)))

    def draw(key: jax.Array) -> jax.Array:
        shape = (*magnitude.shape[:2], 3)
        return jax.random.uniform(key, (math.prod(shape),), jnp.float32, -math.pi, math.pi).reshape(
            shape
        )

    return Image(jax.vmap(draw), decode, encode)


PARAMETERIZATIONS: dict[str, Callable[..., Image]] = {
    "pixel": pixel,
    "box": box,
    "fourier": fourier,
    "pyramid": pyramid,
    "maco": maco,
}
"""Name -> function from the side in pixels to a parameterization."""
