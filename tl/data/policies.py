"""Augmentation policies: random operations of AutoAugment's set, TrivialAugment and RandAugment.

An operation is `(image, strength) -> image` of one image, as in `OPERATIONS`. They are those of
Pillow on 8-bit images, within one gray level. All images of a batch share one program, which is one
motion of pixels, one blend and one table of gray levels: an operation is a choice of their numbers.

Values between two gray levels, as a crop leaves them, are rounded by the operations that read a
table of gray levels (posterize, solarize, autocontrast, equalize) and kept by the others. An
operation acts on the squares that the host prepares or that a crop leaves, at the size of the
network's input, and the published code on images of any size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tl.data.augmentations import GRAY, Transform, for_each_image
from tl.ops.materialize import materialize

OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)
"""The operations of both policies (Cubuk et al. 2020, section 3)."""

# Strengths of TrivialAugment are 0, 1/30, ..., 1, as in the authors' code and torchvision.
BINS = 31


class Ranges(NamedTuple):
    """The largest effect of the operations with a strength.

    Attributes:
      shear: pixels per pixel.
      translate: pixels.
      rotate: degrees.
      enhance: change of the factor of brightness, color, contrast and sharpness, which is 1 for an
        unchanged image.
      bits: number of bits that posterize removes of 8.
    """

    shear: float
    translate: float
    rotate: float
    enhance: float
    bits: int


def trivialaugment() -> Transform:
    """One random operation of random strength per image.

    Reference:
      Mueller & Hutter 2021, arXiv:2103.10158, algorithm 1 with the "wide" ranges. As in
      torchvision, the factors of the four enhancements are 1 - 0.99 to 1 + 0.99 (0.01 to 2 in the
      authors' code).
    """
    return _policy(1, None, lambda side: Ranges(0.99, 32.0, 135.0, 0.99, 6))


def randaugment(count: int = 2, strength: float = 0.9) -> Transform:
    """Several random operations of one strength per image.

    Args:
      count: number of operations, one after the other, drawn with replacement.
      strength: in [0, 1]; the default is magnitude 9 of 10.

    Reference:
      Cubuk et al. 2020, arXiv:1909.13719, section 3 (N = 2 and M = 9, as for ResNet-50 on
      ImageNet), with the ranges of Cubuk et al. 2019, arXiv:1805.09501, appendix. As in
      torchvision, the sign of an enhancement is random (the authors' code has only factors above 1
      at this magnitude), and edges are black (gray there). torchvision has magnitude 9 of 30, a
      third of this strength.
    """
    return _policy(count, strength, lambda side: Ranges(0.3, 150 / 331 * side, 30.0, 0.9, 4))


def _policy(count: int, strength: float | None, ranges: Callable[[int], Ranges]) -> Transform:
    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        drawn = jax.random.uniform(key, (count, 3))
        chosen = (drawn[:, 0] * len(OPERATIONS)).astype(jnp.int32)
        strengths = jnp.floor(drawn[:, 1] * BINS) / (BINS - 1) if strength is None else strength
        signed = jnp.where(drawn[:, 2] < 0.5, -1.0, 1.0) * strengths
        at_most = ranges(image.shape[1])
        step = lambda image, drawn: (operate(key, image, drawn[0], drawn[1], at_most), None)
        return jax.lax.scan(step, image, (chosen, signed))[0]

    return for_each_image(apply)


def operate(
    key: jax.Array, image: jax.Array, operation: jax.Array, strength: jax.Array, ranges: Ranges
) -> jax.Array:
    """The result of one operation.

    Args:
      key: any key; see `materialize`.
      image: f32[h w c] in [0, 1].
      operation: i32[], position in `OPERATIONS`.
      strength: f32[] in [-1, 1]. The sign is the direction of a motion or of an enhancement; the
        other operations ignore it.
      ranges: the effect at strength 1.

    Returns:
      f32[h w c] in [0, 1]; the identity returns the bits of `image`.
    """
    chosen = {name: operation == i for i, name in enumerate(OPERATIONS)}
    image = materialize(_move(image, chosen, strength, ranges), key)
    image = materialize(_enhance(image, chosen, 1.0 + strength * ranges.enhance), key)
    by_table = operation >= OPERATIONS.index("posterize")
    mapped = _map_levels(key, image, chosen, jnp.abs(strength), ranges)
    return jnp.where(by_table, mapped, image)


Chosen = dict[str, jax.Array]
"""Name of an operation -> bool[], whether it is the one that was drawn."""


def _move(image: jax.Array, chosen: Chosen, strength: jax.Array, ranges: Ranges) -> jax.Array:
    """Shears about the corner, translates or rotates about the center: nearest pixel, black edges.

    A pixel at (x, y) of the result is that at `matrix @ (x, y) + offset` of the image, both
    measured at the centers of the pixels.
    """
    height, width, c = image.shape
    pick = lambda name, value: jnp.where(chosen[name], value, 0.0)
    angle = pick("rotate", strength * (ranges.rotate * jnp.pi / 180.0))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x_by_y = pick("shear_x", strength * ranges.shear) - sin
    y_by_x = pick("shear_y", strength * ranges.shear) + sin
    x0, y0 = pick("rotate", width / 2), pick("rotate", height / 2)
    x = jnp.arange(width, dtype=jnp.float32)[None] + 0.5 - x0
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5 - y0
    columns = cos * x + x_by_y * y + x0 + pick("translate_x", strength * ranges.translate)
    rows = y_by_x * x + cos * y + y0 + pick("translate_y", strength * ranges.translate)
    column, row = (jnp.floor(places).astype(jnp.int32) for places in (columns, rows))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = jnp.where(inside, row * width + column, 0)
    moved = image.reshape(height * width, c)[place.ravel()].reshape(image.shape)
    return jnp.where(inside[:, :, None], moved, 0.0)


def _enhance(image: jax.Array, chosen: Chosen, factor: jax.Array) -> jax.Array:
    """A step from the image without the property (factor 0) through the image (factor 1).

    Without brightness an image is black, without color gray, without contrast of its mean gray, and
    without sharpness smoothed by a 3x3 kernel, except at the border.
    """
    c = image.shape[2]
    luma = GRAY if c == 3 else (1.0 / c,) * c
    gray = sum(weight * image[:, :, i] for i, weight in enumerate(luma))[:, :, None]  # type: ignore[index]
    mean = jnp.floor(255.0 * jnp.mean(gray) + 0.5) / 255.0
    rows = image[:-2] + image[1:-1] + image[2:]
    inner = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4.0 * image[1:-1, 1:-1]
    smooth = image.at[1:-1, 1:-1].set(inner / 13.0)
    without = jnp.where(chosen["color"], gray, jnp.where(chosen["contrast"], mean, 0.0))
    without = jnp.where(chosen["sharpness"], smooth, without)
    any_ = chosen["brightness"] | chosen["color"] | chosen["contrast"] | chosen["sharpness"]
    enhanced = jnp.clip(without + factor * (image - without), 0.0, 1.0)
    return jnp.where(any_, enhanced, image)


def _map_levels(
    key: jax.Array, image: jax.Array, chosen: Chosen, strength: jax.Array, ranges: Ranges
) -> jax.Array:
    """Replaces the gray levels of each channel by those of a table."""
    c = image.shape[2]
    # Positions in the flattened tables of all channels, which XLA counts faster than pairs.
    levels = (
        jnp.round(255.0 * image).astype(jnp.int32)
        + 256 * jnp.arange(c, dtype=jnp.int32)[None, None]
    )
    counts = jnp.zeros(c * 256, jnp.int32).at[levels.ravel()].add(1).reshape(c, 256)
    level = jnp.broadcast_to(jnp.arange(256, dtype=jnp.int32)[None], (c, 256))
    removed = jnp.round(strength * ranges.bits).astype(jnp.int32)
    posterized = (level >> removed) << removed
    solarized = jnp.where(level.astype(jnp.float32) < 256.0 * (1.0 - strength), level, 255 - level)
    table = jnp.where(chosen["posterize"], posterized, solarized)
    table = jnp.where(chosen["autocontrast"], _stretched(level, counts), table)
    table = jnp.where(chosen["equalize"], _equalized(level, counts), table)
    # Fused into the gather, the table would be computed again for each pixel.
    return materialize((table.astype(jnp.float32) / 255.0).ravel(), key)[levels]


def _stretched(level: jax.Array, counts: jax.Array) -> jax.Array:
    """The table i32[c 256] that moves the darkest level to 0 and the lightest to 255."""
    low = jnp.argmax(counts > 0, axis=1, keepdims=True).astype(jnp.int32)
    high = 255 - jnp.argmax(counts[:, ::-1] > 0, axis=1, keepdims=True).astype(jnp.int32)
    stretched = jnp.clip((level - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, level)


def _equalized(level: jax.Array, counts: jax.Array) -> jax.Array:
    """The table i32[c 256] after which all gray levels are about equally frequent."""
    total = jnp.sum(counts, axis=1, keepdims=True)
    below = jnp.cumsum(counts, axis=1) - counts
    lightest = 255 - jnp.argmax(counts[:, ::-1] > 0, axis=1, keepdims=True)
    step = (total - jnp.take_along_axis(counts, lightest, axis=1)) // 255
    equal = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, equal, level)
