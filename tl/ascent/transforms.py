"""Random views of an image between the steps: what stays good under them is seen, not only computed.

A transform is `(key, image f32[h w 3]) -> f32[h' w' 3]` of one image, its output shape fixed by the input's; `render` maps it
over a batch with a key for each, so that an image's views do not depend on its neighbours. `compose` puts them in a row.
Resampling is a product with two matrices, of rows and of columns: on a CPU many times faster than a gather.

To add one: a function that returns a `Transform`, and a row in `TRANSFORMS` of `tl/visualize/grid.py`.
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


def pad(pixels: int, value: float = 0.5) -> Transform:
    """A frame of grey around the image. Reference: lucid, `transform.pad(12, mode="constant", constant_value=.5)`."""
    frame = ((pixels, pixels), (pixels, pixels), (0, 0))
    return lambda key, image: jnp.pad(image, frame, constant_values=value)


def jitter(pixels: int) -> Transform:
    """Cuts a window `pixels` smaller, at a place that is even over all there are. Reference: lucid, `transform.jitter`."""

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        h, w, c = image.shape
        corner = jax.random.randint(key, (2,), 0, pixels + 1)
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (h - pixels, w - pixels, c))

    return apply


def roll(pixels: int) -> Transform:
    """Moves the image by up to `pixels` down and across, either way; what leaves comes back opposite.

    Reference: Mordvintsev, Olah & Tyka 2015, "Inceptionism".
    """

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        shift = jax.random.randint(key, (2,), -pixels, pixels + 1)
        return jnp.roll(image, shift, axis=(0, 1))

    return apply


def flip() -> Transform:
    """Left and right exchanged, every other time."""
    return lambda key, image: jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def noise(low: float, high: float) -> Transform:
    """Normal noise, its standard deviation drawn in [low, high] [0, 1] pixel units each time; cut off at 0 and 1.

    What is finer than the noise is not seen, so it does not grow: images become far cleaner. A clean view in between keeps
    the network sure of the image itself.
    """
    if not 0.0 <= low <= high:
        raise ValueError(f"noise wants 0 <= low <= high; got {low} and {high}")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        key_spread, key_grain = jax.random.split(key)
        spread = jax.random.uniform(key_spread, minval=low, maxval=high)
        grain = jax.random.normal(key_grain, (math.prod(image.shape),)).reshape(image.shape)
        return jnp.clip(image + spread * grain, 0.0, 1.0)

    return apply


def zoom(low: float, high: float) -> Transform:
    """Scales the image by a random factor in [low, high], at a random place, in front of a plain colour, another each time.

    Made smaller it lies whole within the frame, made larger it fills it. The factor is even on a log scale.

    Reference: random scaling is Olah et al. 2017, Distill, "Feature visualization"; there within a tenth, about the middle.
      Factors of a half show the network a whole animal, and the unknown colour beside it keeps the animal within the image:
      where the image was mirrored at its edges instead, half animals stood there and were whole beside their mirror image.
    """
    if not 0.0 < low <= high:
        raise ValueError(f"zoom wants 0 < low <= high; got {low} and {high}")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        key_scale, key_place, key_colour = jax.random.split(key, 3)
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
        color = jax.random.uniform(key_colour, (1, 1, 3))
        return _resampled(image, rows, columns) + (1.0 - covered)[:, :, None] * color

    return apply


def scale(factors: tuple[float, ...]) -> Transform:
    """Scales about the middle by one of the factors; what is beyond the edge is its mirror image.

    Reference: lucid, `transform.random_scale`, whose output changes its size; here it keeps it, as `jit` wants.
    """
    if not all(factor >= 0.5 for factor in factors):
        raise ValueError(f"scale wants factors of at least 0.5; got {factors}")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        factor = jnp.asarray(factors, jnp.float32)[jax.random.randint(key, (), 0, len(factors))]
        rows, columns = (_weights(side, factor, jnp.float32(0.0)) for side in image.shape[:2])
        return _resampled(image, rows, columns)

    return apply


def crop(low: float, high: float) -> Transform:
    """A random window of a share of the side in [low, high], enlarged to the whole image.

    Reference: Fel et al. 2023, arXiv:2306.06805, section 3 (there 0.2 to 0.25 of ImageNet-sized images).
    """
    if not 0.0 < low <= high <= 1.0:
        raise ValueError(f"crop wants 0 < low <= high <= 1; got {low} and {high}")

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
    """Turns about the middle by one of the angles, at most 45 degrees, positive counter-clockwise; mirrored beyond the edge.

    Three shears, of rows, columns and rows, each a shift that is linear between pixels.

    Reference: lucid, `transform.random_rotate`. Shears: Paeth 1986, "A fast algorithm for general raster rotation".
    """
    if not all(abs(angle) <= 45 for angle in degrees):
        raise ValueError(f"rotate wants angles of at most 45 degrees; got {degrees}")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        angle = jnp.asarray(degrees, jnp.float32)[jax.random.randint(key, (), 0, len(degrees))] * (
            math.pi / 180
        )
        across, down = jnp.tan(angle / 2), -jnp.sin(angle)  # rows count downwards
        image = _sheared(image, across)
        image = _sheared(image.transpose(1, 0, 2), down).transpose(1, 0, 2)
        return _sheared(image, across)

    return apply


def resize(size: int) -> Transform:
    """To size x size, smoothed where it shrinks: the last of lucid's set, where windows have made the image smaller."""
    return lambda key, image: jax.image.resize(image, (size, size, 3), "linear")


def resized(low: float, high: float) -> Transform:
    """Made smaller by a random share of the side in [low, high], and as large as before again: what is finest is lost.

    Both times with Pillow's bicubic filter, columns first and cut off at 0 and 1 as there, but not rounded to 8 bit in between.
    The share is even.
    """
    if not 0.0 < low <= high <= 1.0:
        raise ValueError(f"resized wants 0 < low <= high <= 1; got {low} and {high}")

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        share = jax.random.uniform(key, minval=low, maxval=high)
        full = [jnp.float32(side) for side in image.shape[:2]]
        few = [jnp.maximum(jnp.rint(share * side), 1.0) for side in full]
        for of, to in ((full, few), (few, full)):
            rows, columns = (
                _cubic(side, *pair) for side, *pair in zip(image.shape[:2], of, to, strict=True)
            )
            image = jnp.clip(jnp.einsum("xw,hwc->hxc", columns, image), 0.0, 1.0)
            image = jnp.clip(jnp.einsum("yh,hxc->yxc", rows, image), 0.0, 1.0)
        return image

    return apply


def jpeg(low: int, high: int) -> Transform:
    """Saved as a JPEG file of a random quality in low, ..., high, and read back, to the level as Pillow does.

    The gradient passes the roundings unchanged; see `tl.ascent.jpeg.decoded`, whose references hold here.
    """
    if not 1 <= low <= high <= 100:
        raise ValueError(f"jpeg wants qualities with 1 <= low <= high <= 100; got {low} and {high}")
    return lambda key, image: decoded(image, jax.random.randint(key, (), low, high + 1))


def compose(*transforms: Transform) -> Transform:
    """The transforms one after another, each with a key of its own."""

    def apply(key: jax.Array, image: jax.Array) -> jax.Array:
        for i, transform in enumerate(transforms):
            image = transform(jax.random.fold_in(key, i), image)
        return image

    return apply


def lucid() -> Transform:
    """Lucid's standard set: pad 12, jitter 8, scale by 0.9 to 1.1, turn by up to 10 degrees, jitter 4.

    The result has the size of the image and 12 pixels more, as there.

    Reference: lucid, `lucid/optvis/transform.py`, `standard_transforms`.
    """
    scales = tuple(1.0 + (i - 5) / 50.0 for i in range(11))
    angles = tuple(float(angle) for angle in (*range(-10, 11), *(0,) * 5))
    return compose(pad(12), jitter(8), scale(scales), rotate(angles), jitter(4))


# ----------------------------------------------------------------------------------------------------------- resampling


def _reach(side: int, low: float) -> int:
    """How far beyond an edge a view may look that is scaled by `low` or more, in pixels."""
    return math.ceil(side * max(1.0 / low - 1.0, 0.0)) + 2


def _triangles(side: int, scale: jax.Array, shift: jax.Array, reach: int) -> jax.Array:
    """f32[side, reach + side + reach], a row an output pixel: linear resampling, smoothed where it shrinks; rows sum to 1.

    Args:
      side: pixels.
      scale: traced, above 1 enlarges.
      shift: traced; where the middle of the window lies, in pixels from the middle of the image.
      reach: pixels beyond either edge that the window may see.
    """
    places = np.arange(-reach, side + reach) + 0.5
    centres = (jnp.arange(side, dtype=jnp.float32) + 0.5 - 0.5 * side) / scale + 0.5 * side + shift
    distance = jnp.abs(centres[:, None] - jnp.asarray(places, jnp.float32)[None])
    triangle = jnp.maximum(1.0 - distance / jnp.maximum(1.0 / scale, 1.0), 0.0)
    return triangle / jnp.sum(triangle, axis=1, keepdims=True)


def _weights(side: int, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """f32[side side], `_triangles` of a scale of at least a half about the middle, with the mirror image beyond the edges."""
    reach = side // 2 + 2
    places = np.arange(-reach, side + reach)
    mirror = np.minimum(
        places % (2 * side), (-1 - places) % (2 * side)
    )  # -1 is the mirror image of 0, -2 of 1
    return _triangles(side, scale, shift, reach) @ jnp.asarray(
        np.eye(side, dtype=np.float32)[mirror]
    )


def _cubic(side: int, of: jax.Array, to: jax.Array) -> jax.Array:
    """f32[side side], a row an output pixel: `of` pixels as `to`, both traced and at most `side`; the rest is zero."""
    index = jnp.arange(side, dtype=jnp.float32)
    centres = (index + 0.5) * (of / to)
    away = (index[None, :] + 0.5 - centres[:, None]) / jnp.maximum(of / to, 1.0)
    weights = jnp.where(
        (index < of)[None, :] & (index < to)[:, None], KERNELS["bicubic"](away), 0.0
    )
    return weights / jnp.maximum(
        jnp.sum(weights, axis=1, keepdims=True), 0.5
    )  # 0.5 is below every row's but the empty ones'


def _resampled(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """rows @ image @ columns.T for each colour."""
    h, w, c = image.shape
    tall = (rows @ image.reshape(h, w * c)).reshape(-1, w, c)
    return jnp.einsum("xw,hwc->hxc", columns, tall)


def _sheared(image: jax.Array, slope: jax.Array) -> jax.Array:
    """Row y moved right by slope times its distance from the middle row; linear between pixels, mirrored beyond the edge."""
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
