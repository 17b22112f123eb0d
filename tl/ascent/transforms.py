"""Random transforms of an image between steps: features that survive them are visible and robust.

A transform is `(key, image f32[h w 3]) -> f32[h' w' 3]` of one image, with an output shape fixed by
the input's. `render` and the attacks map it over a batch with one key per image, so an image's
views do not depend on the batch. `compose` chains transforms. Resampling is a product with a matrix
of rows and one of columns, which is many times faster than a gather on a CPU.

`noise`, `zoom`, `scale`, `crop`, `rotate`, `resized` and `jpeg` raise ValueError if an argument is
out of range. To add a transform: a function that returns a `Transform`, and a row in
`tl.visualize.grid.TRANSFORMS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tl.ascent.jpeg import decoded
from tl.pixels import KERNELS

Transform = Callable[[jax.Array, jax.Array], jax.Array]
"""`(key, image f32[h w 3]) -> f32[h' w' 3]`."""


def pad(pixels: int, value: float = 0.5) -> Transform:
    """A gray frame around the image.

    Args:
      pixels: width of the frame.
      value: its gray value in [0, 1].

    Reference: lucid, `transform.pad(12, mode="constant", constant_value=.5)`.
    """
    frame = ((pixels, pixels), (pixels, pixels), (0, 0))
    return lambda key, image: jnp.pad(image, frame, constant_values=value)


def jitter(pixels: int) -> Transform:
    """A random crop that is `pixels` smaller, uniform over all positions.

    Reference: lucid, `transform.jitter`.
    """

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        h, w, c = image.shape
        corner = jax.random.randint(key, (2,), 0, pixels + 1)
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (h - pixels, w - pixels, c))

    return apply


def roll(pixels: int) -> Transform:
    """Shifts the image cyclically by up to `pixels` in each direction.

    Reference: Mordvintsev, Olah & Tyka 2015, "Inceptionism".
    """

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        shift = jax.random.randint(key, (2,), -pixels, pixels + 1)
        return jnp.roll(image, shift, axis=(0, 1))

    return apply


def flip() -> Transform:
    """Mirrors the image left to right with probability one half."""
    return lambda key, image: jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def noise(low: float, high: float) -> Transform:
    """Adds Gaussian noise with a random standard deviation, and clips to [0, 1].

    The standard deviation is uniform in [low, high], in [0, 1] pixel units. Detail finer than the
    noise is invisible to the network and does not grow, so images become much cleaner. With `low` =
    0 some views are almost clean, which keeps the network confident on the image itself.
    """
    if not 0.0 <= low <= high:
        raise ValueError(f"noise needs 0 <= `low` <= `high`: got {low} and {high}")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        key_std, key_noise = jax.random.split(key)
        std = jax.random.uniform(key_std, minval=low, maxval=high)
        normal = jax.random.normal(key_noise, (math.prod(image.shape),)).reshape(image.shape)
        return jnp.clip(image + std * normal, 0.0, 1.0)

    return apply


def zoom(low: float, high: float) -> Transform:
    """Scales the image by a random factor in [low, high], log-uniform, at a random position.

    Zooming out places the whole image onto a random background color, which forces the whole animal
    into the frame; with mirrored edges, half an animal at the edge was completed by its mirror
    image. Zooming in crops the image.

    Reference: Olah et al. 2017, Distill, "Feature visualization" (random scaling, there within 10 %
      about the center).
    """
    if not 0.0 < low <= high:
        raise ValueError(f"zoom needs 0 < `low` <= `high`: got {low} and {high}")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        key_scale, key_place, key_color = jax.random.split(key, 3)
        scale = jnp.exp(jax.random.uniform(key_scale, minval=math.log(low), maxval=math.log(high)))
        place = jax.random.uniform(key_place, (2,), minval=-0.5, maxval=0.5) * jnp.abs(
            1.0 - 1.0 / scale
        )
        reach = [_reach(side, low) for side in image.shape[:2]]
        rows, columns = (
            _triangles(side, scale, place[i] * side, reach[i])[:, reach[i] : reach[i] + side]
            for i, side in enumerate(image.shape[:2])
        )
        covered = jnp.sum(rows, axis=1)[:, None] * jnp.sum(columns, axis=1)[None]
        color = jax.random.uniform(key_color, (1, 1, 3))
        return _resampled(image, rows, columns) + (1.0 - covered)[:, :, None] * color

    return apply


def scale(factors: tuple[float, ...]) -> Transform:
    """Scales about the center by one of the factors, at least 0.5.

    Positions outside the image are mirrored.

    Reference: lucid, `transform.random_scale`.
    """
    if not all(factor >= 0.5 for factor in factors):
        raise ValueError(f"`factors` of scale must be at least 0.5: got {factors}")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        factor = jnp.asarray(factors, jnp.float32)[jax.random.randint(key, (), 0, len(factors))]
        rows, columns = (_weights(side, factor, jnp.float32(0.0)) for side in image.shape[:2])
        return _resampled(image, rows, columns)

    return apply


def crop(low: float, high: float) -> Transform:
    """Enlarges a random window to the whole image.

    The side of the window is a uniform share of the image's side in [low, high].

    Reference: Fel et al. 2023, arXiv:2306.06805, section 3 (there 0.2 to 0.25 of ImageNet-sized
      images).
    """
    if not 0.0 < low <= high <= 1.0:
        raise ValueError(f"crop needs 0 < `low` <= `high` <= 1: got {low} and {high}")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        key_share, key_place = jax.random.split(key)
        share = jax.random.uniform(key_share, minval=low, maxval=high)
        place = jax.random.uniform(key_place, (2,), minval=-0.5, maxval=0.5) * (1.0 - share)
        rows, columns = (
            _weights(side, 1.0 / share, place[i] * side) for i, side in enumerate(image.shape[:2])
        )
        return _resampled(image, rows, columns)

    return apply


def rotate(degrees: tuple[float, ...]) -> Transform:
    """Rotates about the center by one of the angles, at most 45 degrees, positive counterclockwise.

    Three shears, of rows, columns and rows, with linear interpolation; positions outside the image
    are mirrored.

    Reference: lucid, `transform.random_rotate`. Shears: Paeth 1986, "A fast algorithm for general
      raster rotation".
    """
    if not all(abs(angle) <= 45 for angle in degrees):
        raise ValueError(f"`degrees` of rotate must be at most 45: got {degrees}")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        angle = jnp.asarray(degrees, jnp.float32)[jax.random.randint(key, (), 0, len(degrees))] * (
            math.pi / 180
        )
        # Rows count downwards.
        across, down = jnp.tan(angle / 2), -jnp.sin(angle)
        image = _sheared(image, across)
        image = _sheared(image.transpose(1, 0, 2), down).transpose(1, 0, 2)
        return _sheared(image, across)

    return apply


def resize(size: int) -> Transform:
    """Resizes to size x size with antialiasing: the last transform of lucid's set, after crops."""
    return lambda key, image: jax.image.resize(image, (size, size, 3), "linear")


def resized(low: float, high: float) -> Transform:
    """Shrinks the image to a random share of the side and enlarges it again: removes fine detail.

    The share is uniform in [low, high].

    Uses Pillow's bicubic filter both times, columns first and clipped to [0, 1] as in Pillow, but
    not rounded to 8 bits.
    """
    if not 0.0 < low <= high <= 1.0:
        raise ValueError(f"resized needs 0 < `low` <= `high` <= 1: got {low} and {high}")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        share = jax.random.uniform(key, minval=low, maxval=high)
        full = [jnp.float32(side) for side in image.shape[:2]]
        small = [jnp.maximum(jnp.rint(share * side), 1.0) for side in full]
        for old, new in ((full, small), (small, full)):
            rows, columns = (
                _cubic(side, *pair) for side, *pair in zip(image.shape[:2], old, new, strict=True)
            )
            image = jnp.clip(jnp.einsum("xw,hwc->hxc", columns, image), 0.0, 1.0)
            image = jnp.clip(jnp.einsum("yh,hxc->yxc", rows, image), 0.0, 1.0)
        return image

    return apply


def jpeg(low: int, high: int) -> Transform:
    """Compresses the image as a JPEG file of a random quality in low, ..., high, as Pillow does.

    The gradient passes the roundings unchanged; see `tl.ascent.jpeg.decoded` and its references.
    """
    if not 1 <= low <= high <= 100:
        raise ValueError(f"jpeg needs qualities 1 <= `low` <= `high` <= 100: got {low} and {high}")
    return lambda key, image: decoded(image, jax.random.randint(key, (), low, high + 1))


def compose(*transforms: Transform) -> Transform:
    """The transforms one after another, each with its own key."""

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        for i, transform in enumerate(transforms):
            image = transform(jax.random.fold_in(key, i), image)
        return image

    return apply


def lucid() -> Transform:
    """Lucid's standard transforms.

    Pad 12, jitter 8, scale by 0.9 to 1.1, rotate by up to 10 degrees, jitter 4. The result is 12
    pixels larger than the image, as in lucid.

    Reference: lucid, `lucid/optvis/transform.py`, `standard_transforms`.
    """
    scales = tuple(1.0 + (i - 5) / 50.0 for i in range(11))
    angles = tuple(float(angle) for angle in (*range(-10, 11), *(0,) * 5))
    return compose(pad(12), jitter(8), scale(scales), rotate(angles), jitter(4))


# ---- resampling ----


def _reach(side: int, low: float) -> int:
    """Distance in pixels beyond an edge that a view scaled by `low` or more may see."""
    return math.ceil(side * max(1.0 / low - 1.0, 0.0)) + 2


def _triangles(side: int, scale: jax.Array, shift: jax.Array, reach: int) -> jax.Array:
    """Linear resampling with antialiasing, f32[side, reach + side + reach].

    One row per output pixel; rows sum to 1.

    Args:
      side: pixels.
      scale: traced; above 1 enlarges.
      shift: traced; center of the window in pixels from the center of the image.
      reach: pixels beyond either edge that the window may see.
    """
    places = np.arange(-reach, side + reach) + 0.5
    centers = (jnp.arange(side, dtype=jnp.float32) + 0.5 - 0.5 * side) / scale + 0.5 * side + shift
    distance = jnp.abs(centers[:, None] - jnp.asarray(places, jnp.float32)[None])
    triangle = jnp.maximum(1.0 - distance / jnp.maximum(1.0 / scale, 1.0), 0.0)
    return triangle / jnp.sum(triangle, axis=1, keepdims=True)


def _weights(side: int, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """`_triangles` f32[side side] for a scale of at least one half, with mirrored edges."""
    reach = side // 2 + 2
    places = np.arange(-reach, side + reach)
    # -1 is the mirror image of 0, -2 of 1.
    mirror = np.minimum(places % (2 * side), (-1 - places) % (2 * side))
    fold = jnp.asarray(np.eye(side, dtype=np.float32)[mirror])
    return _triangles(side, scale, shift, reach) @ fold


def _cubic(side: int, old: jax.Array, new: jax.Array) -> jax.Array:
    """Bicubic resampling from `old` to `new` pixels, f32[side side], padded with zeros.

    Both are traced and at most `side`.
    """
    index = jnp.arange(side, dtype=jnp.float32)
    centers = (index + 0.5) * (old / new)
    distance = (index[None, :] + 0.5 - centers[:, None]) / jnp.maximum(old / new, 1.0)
    used = (index < old)[None, :] & (index < new)[:, None]
    weights = jnp.where(used, KERNELS["bicubic"](distance), 0.0)
    # Only rows of zeros sum to less than 0.5.
    return weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 0.5)


def _resampled(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """rows @ image @ columns.T for each color channel."""
    h, w, c = image.shape
    tall = (rows @ image.reshape(h, w * c)).reshape(-1, w, c)
    return jnp.einsum("xw,hwc->hxc", columns, tall)


def _sheared(image: jax.Array, slope: jax.Array) -> jax.Array:
    """Shifts row y right by `slope` times its distance from the center row.

    Interpolation is linear, and edges are mirrored.
    """
    h, w, _ = image.shape
    reach = min(w - 1, int(math.ceil(0.5 * h)) + 1)
    wide = jnp.pad(image, ((0, 0), (reach, reach), (0, 0)), mode="symmetric")
    moves = slope * (jnp.arange(h, dtype=jnp.float32) + 0.5 - 0.5 * h)
    whole = jnp.floor(moves)
    part = (moves - whole)[:, None, None]
    starts = jnp.clip(reach - whole.astype(jnp.int32) - 1, 0, 2 * reach - 1)
    row = jax.vmap(lambda line, start: jax.lax.dynamic_slice_in_dim(line, start, w + 1, 0))(
        wide, starts
    )
    return (1.0 - part) * row[:, 1:] + part * row[:, :-1]
