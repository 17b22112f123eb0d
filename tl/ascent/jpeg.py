"""JPEG as a traced function.

The pixels of an image after it was saved as a JPEG file and read back.

Computes everything that a codec does to pixels and nothing that it does to bytes: color conversion,
chroma at half resolution, the cosine transform of 8 x 8 blocks, quantization with the standard's
tables, and all roundings. It follows libjpeg, as called by Pillow's `save(quality=q)`, including
the direction of ties, so at most one value in ten thousand differs from Pillow's
(`tests/test_jpeg.py`).

This module does NOT write files (`tl.evaluation.postprocessing.compressed` does) and supports
neither chroma sampling other than 4:2:0 nor optimized tables.

Reference: ITU-T T.81 and T.871; libjpeg's jccolor.c, jcsample.c, jfdctint.c, jcparam.c, jidctint.c,
  jdsample.c, jdcolor.c.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

# Side of a block in pixels.
SIDE = 8
# ITU-T T.81, annex K, tables K.1 and K.2: steps of luma and chroma at libjpeg's quality 50.
LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.int32,
)
CHROMA = np.array(
    [
        [17, 18, 24, 47, 99, 99, 99, 99],
        [18, 21, 26, 66, 99, 99, 99, 99],
        [24, 26, 56, 99, 99, 99, 99, 99],
        [47, 66, 99, 99, 99, 99, 99, 99],
        [99, 99, 99, 99, 99, 99, 99, 99],
        [99, 99, 99, 99, 99, 99, 99, 99],
        [99, 99, 99, 99, 99, 99, 99, 99],
        [99, 99, 99, 99, 99, 99, 99, 99],
    ],
    np.int32,
)
# T.871, section 7, rounded to 16 bits as in jccolor.c and jdcolor.c; their sums are exact in
# float32.
YCC = np.array([[19595, 38470, 7471], [-11059, -21709, 32768], [32768, -27439, -5329]]) / 2**16
# Contribution of the two chroma planes, which is added to the luma.
RGB = np.array([[0, 91881], [-22554, -46802], [116130, 0]]) / 2**16
# sqrt(8) x the cosines of T.81, A.3.3, as in jfdctint.c and jidctint.c: sums of constants rounded
# to 13 bits.
COSINES = np.array(
    [
        [8192, 8192, 8192, 8192, 8192, 8192, 8192, 8192],
        [11363, 9633, 6437, 2260, -2260, -6437, -9633, -11363],
        [10703, 4433, -4433, -10703, -10703, -4433, 4433, 10703],
        [9633, -2259, -11362, -6436, 6436, 11362, 2259, -9633],
        [8192, -8192, -8192, 8192, 8192, -8192, -8192, 8192],
        [6437, -11362, 2261, 9633, -9633, -2261, 11362, -6437],
        [4433, -10704, 10704, -4433, -4433, 10704, -10704, 4433],
        [2260, -6436, 9633, -11363, 11363, -9633, 6436, -2260],
    ],
    np.float32,
) / np.float32(2**13)
# [64 64], cosine transforms of the rows and of the columns of flattened blocks.
ROWS = np.kron(np.eye(SIDE, dtype=np.float32), COSINES).T
COLUMNS = np.kron(COSINES, np.eye(SIDE, dtype=np.float32)).T


def steps(table: np.ndarray, quality: jax.Array) -> jax.Array:
    """Quantization steps f32[8 8] at a quality from 1 to 100, at most 255 (jcparam.c)."""
    percent = jnp.where(quality < 50, 5000 // jnp.maximum(quality, 1), 200 - 2 * quality)
    return jnp.clip((table * percent + 50) // 100, 1, 255).astype(jnp.float32)


def decoded(image01: jax.Array, quality: jax.Array | int) -> jax.Array:
    """The image after a JPEG file with 4:2:0 chroma, as Pillow writes and reads it.

    Sides that are not a multiple of 16 are padded with their last pixels, as in libjpeg; images of
    up to four columns differ, because libjpeg enlarges them in another way. Gradients pass
    roundings and clipping unchanged (straight-through): values are exact, and the gradient contains
    only the blur of the chroma.

    Args:
      image01: f32[h w 3] RGB in [0, 1]; rounded to 8 bits first, as in a file.
      quality: i32[], traced, 1 to 100.

    Returns:
      f32[h w 3] in [0, 1], multiples of 1 / 255.

    Reference: straight-through, Bengio et al. 2013, arXiv:1308.3432, section 4; JPEG within an
      attack, Shin & Song 2017 ("JPEG-resistant adversarial images", with a cubic instead of the
      rounding), Athalye et al. 2018, arXiv:1802.00420.
    """
    h, w, _ = image01.shape
    quality = jnp.asarray(quality, jnp.int32)
    ycc = _ycc(_through(jnp.rint, _through(_clip, image01.transpose(2, 0, 1) * 255.0)))
    luma = _quantized(_padded(ycc[:1], SIDE, SIDE), steps(LUMA, quality))[0, :h, :w]
    chroma = _quantized(_halved(ycc[1:]), steps(CHROMA, quality))[:, : -(-h // 2), : -(-w // 2)]
    colors = _through(_half_up, _mix(RGB, _doubled(chroma, h, w) - 128.0))
    return _through(_clip, luma[:, :, None] + colors.transpose(1, 2, 0)) / 255.0


def _through(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """The value f(x) with the gradient of x."""
    fixed = jax.lax.stop_gradient(x)
    return f(fixed) + (x - fixed)


def _half_up(x: jax.Array) -> jax.Array:
    return jnp.floor(x + 0.5)


def _half_away(x: jax.Array) -> jax.Array:
    return jnp.sign(x) * jnp.floor(jnp.abs(x) + 0.5)


def _clip(levels: jax.Array) -> jax.Array:
    return jnp.clip(levels, 0.0, 255.0)


def _ycc(rgb: jax.Array) -> jax.Array:
    """Luma and the blue and red differences of levels f32[3 h w], rounded.

    Ties of chroma go down (jccolor.c).
    """
    luma, chroma = _mix(YCC[:1], rgb), _mix(YCC[1:], rgb) + 128.0
    return jnp.concatenate(
        [_through(_half_up, luma), _through(lambda x: jnp.ceil(x - 0.5), chroma)]
    )


def _mix(weights: np.ndarray, planes: jax.Array) -> jax.Array:
    """Weighted sums of planes, `[q p] x f32[p h w] -> f32[q h w]`."""
    sums = (
        sum((float(v) * plane for v, plane in zip(row, planes, strict=True)), np.float32(0.0))
        for row in weights
    )
    return jnp.stack(list(sums))


def _padded(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """f32[p h w], padded with its last row and column to multiples of `rows` and `columns`."""
    _, h, w = x.shape
    return jnp.pad(x, ((0, 0), (0, -h % rows), (0, -w % columns)), mode="edge")


def _halved(x: jax.Array) -> jax.Array:
    """Rounded means of 2 x 2, in whole blocks.

    Ties alternate down and up, as in `h2v2_downsample` of jcsample.c.
    """
    x = _padded(x, 2, 2 * SIDE)
    p, h, w = x.shape
    mean = jnp.sum(x.reshape(p, h // 2, 2, w // 2, 2), axis=(2, 4)) / 4.0
    bias = jnp.asarray(0.25 + np.arange(w // 2) % 2 / 4, jnp.float32).reshape(1, 1, -1)
    return _padded(_through(lambda mean: jnp.floor(mean + bias), mean), SIDE, SIDE)


def _doubled(x: jax.Array, h: int, w: int) -> jax.Array:
    """Upsampling to h x w with weights 3/4 and 1/4 (`h2v2_fancy_upsample` in jdsample.c)."""

    def double_rows(x: jax.Array) -> jax.Array:
        """Twice as many rows, transposed."""
        p, n, m = x.shape
        around = jnp.pad(x, ((0, 0), (1, 1), (0, 0)), mode="edge")
        rows = jnp.stack(
            [0.75 * x + 0.25 * around[:, :-2], 0.75 * x + 0.25 * around[:, 2:]], axis=2
        )
        return rows.reshape(p, 2 * n, m).transpose(0, 2, 1)

    wide = double_rows(double_rows(x)[:, :, :h])[:, :, :w]
    bias = jnp.asarray((8.0 - np.arange(w) % 2) / 16.0, jnp.float32).reshape(1, 1, -1)
    return _through(lambda wide: jnp.floor(wide + bias), wide)


def _quantized(x: jax.Array, step: jax.Array) -> jax.Array:
    """Levels f32[p h w], whole blocks, after rounding coefficients to multiples of f32[8 8]."""
    p, h, w = x.shape
    # Lower precision would change ties.
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    blocks = (
        x.reshape(p, h // SIDE, SIDE, w // SIDE, SIDE)
        .transpose(0, 1, 3, 2, 4)
        .reshape(-1, SIDE * SIDE)
        - 128.0
    )
    parts = _through(_half_up, product(blocks, ROWS) * 4.0)
    # Eight times the orthonormal coefficients.
    parts = _through(_half_up, product(parts, COLUMNS) / 4.0)
    step = step.reshape(1, -1) * 8.0
    parts = _through(_half_away, parts / step) * step
    lines = _through(_half_up, product(parts, COLUMNS.T) / 2.0)
    levels = _through(lambda x: _clip(_half_up(x)), product(lines, ROWS.T) / 32.0 + 128.0)
    return (
        levels.reshape(p, h // SIDE, w // SIDE, SIDE, SIDE)
        .transpose(0, 1, 3, 2, 4)
        .reshape(p, h, w)
    )
