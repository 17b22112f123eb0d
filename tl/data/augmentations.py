"""The augmentation functions: symmetries, crops, shifts, color, erasing, mixup and CutMix.

A transform is `(key, images01) -> images01`. A mix is `(key, images01, targets, valid) ->
(images01, targets)`. Both take and return f32[b h w c] in [0, 1], have a static output shape, and
are jitted by the caller. `augment.py` gives them names and composes them.

The random numbers of slot i of a batch depend only on the key and i, so they do not change with the
size or the sharding of the batch. A mix also depends on the other images of the batch, among which
it finds partners.

This module reads no files and does not resize from the original image. The host prepares squares
of `Augment.source_size` from which crops are cut. A crop of a quarter of the area is therefore
enlarged, whereas torchvision would cut it from the full resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Transform = Callable[[jax.Array, jax.Array], jax.Array]
"""`(key, images01) -> images01`."""

Mix = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""`(key, images01, targets, valid) -> (images01, targets)`."""

# Luma of ITU-R BT.601, as in torchvision and Pillow.
GRAY = (0.2989, 0.587, 0.114)
# Attempts to draw a box, as in torchvision's RandomResizedCrop.
TRIES = 10


# ---- geometry ----

# On f32[b h w c]. Each of the eight symmetries of the square is a product of some of these
# generators. Bit i of the number of a symmetry selects generator i.
_GENERATORS: Sequence[Callable[[jax.Array], jax.Array]] = (
    lambda images01: images01[:, :, ::-1],
    lambda images01: images01[:, ::-1],
    lambda images01: images01.swapaxes(1, 2),
)


def flip() -> Transform:
    """Horizontal flip with probability 1/2."""
    return _random_symmetry(1)


def dihedral() -> Transform:
    """One of the eight symmetries of the square, for images without an upright orientation."""
    return _random_symmetry(3)


def _random_symmetry(bits: int) -> Transform:
    def apply(key: jax.Array, images01: jax.Array) -> jax.Array:
        choice = choose(key, len(images01), 2**bits)
        for bit, generator in enumerate(_GENERATORS[:bits]):
            selected = ((choice >> bit) & 1 == 1)[:, None, None, None]
            images01 = jnp.where(selected, generator(images01), images01)
        return images01

    return apply


def symmetry(number: int) -> Callable[[jax.Array], jax.Array]:
    """A symmetry of the square by its number in [0, 8), applied to all images of a batch."""

    def apply(images01: jax.Array) -> jax.Array:
        for bit, generator in enumerate(_GENERATORS):
            images01 = generator(images01) if number >> bit & 1 else images01
        return images01

    return apply


def random_resized_crop(
    size: int, scale: tuple[float, float] = (0.25, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Transform:
    """A box of random area, aspect ratio and position, resized to `size` x `size`.

    The box has the distribution of torchvision's RandomResizedCrop (`TRIES` attempts, then the
    largest centered box), but its corners are not rounded to whole pixels. Resizing is bilinear and
    antialiased, as in torchvision for PIL images; without antialiasing, a box larger than `size`
    would alias at the same cost.

    Args:
      size: side of the result, in pixels.
      scale: smallest and largest fraction of the area.
      ratio: smallest and largest width / height, log-uniform.

    Reference: Szegedy et al. 2015, arXiv:1409.4842, section 6.
    """

    def crop(key: jax.Array, image: jax.Array) -> jax.Array:
        height, width, c = image.shape
        # All numbers come from one draw, because each draw compiles and runs the generator again.
        drawn = jax.random.uniform(key, (2 * TRIES + 2,))
        areas = height * width * _scale(drawn[:TRIES], *scale)
        ratios = jnp.exp(_scale(drawn[TRIES : 2 * TRIES], *np.log(ratio)))
        sides = jnp.stack([jnp.sqrt(areas / ratios), jnp.sqrt(areas * ratios)], axis=1)
        fits = (sides[:, 0] <= height) & (sides[:, 1] <= width)
        largest = jnp.asarray(
            [min(height, width / ratio[0]), min(width, height * ratio[1])], jnp.float32
        )
        any_fits = jnp.any(fits)
        box = jnp.where(any_fits, sides[jnp.argmax(fits)], largest)
        place = jnp.where(any_fits, drawn[2 * TRIES :], 0.5)
        corner = place * (jnp.asarray([height, width], jnp.float32) - box)
        rows = _resize_rows(image, corner[0], box[0], size)
        return _resize_rows(rows.swapaxes(0, 1), corner[1], box[1], size).swapaxes(0, 1)

    return _clip(for_each_image(crop))


def _resize_rows(image: jax.Array, start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """Rows [start, start + length) of an image [h w c] as `size` rows: bilinear, antialiased.

    `jax.image.scale_and_translate` computes the same by a matrix product, which takes 8 times as
    long on a CPU, because all but two or three weights of a row are 0.
    """
    height, *rest = image.shape
    step = length / size
    radius = jnp.maximum(step, 1.0)  # of the triangle filter, in rows
    taps = int(2 * max(height / size, 1.0)) + 1
    center = start + (jnp.arange(size, dtype=jnp.float32) + 0.5) * step - 0.5
    first = jnp.ceil(center - radius).astype(jnp.int32)
    rows = first[:, None] + jnp.arange(taps, dtype=jnp.int32)[None]
    weights = jnp.maximum(1.0 - jnp.abs(center[:, None] - rows.astype(jnp.float32)) / radius, 0.0)
    weights = jnp.where((rows >= 0) & (rows < height), weights, 0.0)
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    flat, rows = image.reshape(height, -1), jnp.clip(rows, 0, height - 1)
    return sum(weights[:, i, None] * flat[rows[:, i]] for i in range(taps)).reshape(size, *rest)  # type: ignore[union-attr]


def shift(pixels: int) -> Transform:
    """A translation by whole pixels in [-pixels, pixels] on both axes, with mirrored borders."""

    def translate(key: jax.Array, image: jax.Array) -> jax.Array:
        start = (jax.random.uniform(key, (2,)) * (2 * pixels + 1)).astype(jnp.int32)
        padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="symmetric")
        return jax.lax.dynamic_slice(padded, (start[0], start[1], jnp.int32(0)), image.shape)

    return for_each_image(translate)


# ---- values ----


def color(brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4) -> Transform:
    """Brightness, contrast and saturation, in this order, each by a factor in [1 - x, 1 + x].

    torchvision's ColorJitter differs in two points: its order is random, and it clips to [0, 1]
    after each of the three steps instead of at the end. Saturation applies to RGB images only.

    Args:
      brightness, contrast, saturation: half the width of the interval of the factor.

    Reference: Howard 2013, arXiv:1312.5402, section 2.1.
    """

    def jitter(key: jax.Array, image: jax.Array) -> jax.Array:
        strengths = jnp.asarray([brightness, contrast, saturation], jnp.float32)
        factors = 1.0 + strengths * _scale(jax.random.uniform(key, (3,)), -1.0, 1.0)
        by_brightness, by_contrast, by_saturation = factors
        height, width, c = image.shape
        luma = jnp.asarray(GRAY if c == 3 else (1.0 / c,) * c, jnp.float32)
        # Whole rows are summed, because a sum over the short last axis takes ten times as long on a
        # CPU.
        rows = image.reshape(height, width * c) * jnp.tile(luma, width)[None]
        mean = jnp.sum(rows) / (height * width)
        image = by_brightness * (by_contrast * image + (1.0 - by_contrast) * mean)
        if c != 3:
            return image
        gray = GRAY[0] * image[..., :1] + GRAY[1] * image[..., 1:2] + GRAY[2] * image[..., 2:]
        return by_saturation * image + (1.0 - by_saturation) * gray

    return _clip(for_each_image(jitter))


def erasing(
    probability: float = 0.25,
    scale: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Transform:
    """Replaces a random box in some of the images by noise, uniform in [0, 1].

    All boxes of a batch are cut from one image of noise.

    Args:
      probability: probability that an image gets a box.
      scale: smallest and largest fraction of the area; a box that does not fit is clipped.
      ratio: smallest and largest width / height, log-uniform as in timm (uniform in the paper).

    Reference: Zhong et al. 2017, arXiv:1708.04896, algorithm 1, with noise (their best, "RE-R").
    """

    def mask(key: jax.Array, image: jax.Array) -> jax.Array:
        height, width, _ = image.shape
        drawn = jax.random.uniform(key, (5,))
        area = height * width * _scale(drawn[0], *scale)
        aspect = jnp.exp(_scale(drawn[1], *np.log(ratio)))
        full = jnp.asarray([height, width], jnp.float32)
        sides = jnp.minimum(jnp.stack([jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)]), full)
        corner = drawn[2:4] * (full - sides)
        return _box(image, corner, corner + sides) & (drawn[4] < probability)

    def apply(key: jax.Array, images01: jax.Array) -> jax.Array:
        key_boxes, key_noise = jax.random.split(key)
        # One image of noise, because drawing it costs more than all other steps.
        noise = jax.random.uniform(key_noise, images01.shape[1:])[None]
        return jnp.where(for_each_image(mask)(key_boxes, images01), noise, images01)

    return apply


# ---- mixes ----


def mixup(alpha: float = 0.2) -> Mix:
    """Convex combination of two images and of their targets, weighted by Beta(alpha, alpha).

    Reference: Zhang et al. 2018, arXiv:1710.09412, equation 1; alpha for ImageNet in section 3.1.
    """

    def blend(
        weight: jax.Array, _: jax.Array, image: jax.Array, partner: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return weight * image + (1.0 - weight) * partner, weight

    return _mix(alpha, blend)


def cutmix(alpha: float = 1.0) -> Mix:
    """Pastes a box of a second image; the targets are weighted by area.

    The fraction of the area that remains is drawn from Beta(alpha, alpha). A box that is clipped at
    the border is weighted by its visible area.

    Reference: Yun et al. 2019, arXiv:1905.04899, equations 1 and 2.
    """

    def paste(
        weight: jax.Array, place: jax.Array, image: jax.Array, partner: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        full = jnp.asarray(image.shape[:2], jnp.float32)
        center = place * full
        half = 0.5 * jnp.sqrt(1.0 - weight) * full
        box = _box(image, center - half, center + half)
        return jnp.where(box, partner, image), 1.0 - jnp.mean(box.astype(jnp.float32))

    return _mix(alpha, paste)


def _mix(alpha: float, combine: Callable[..., tuple[jax.Array, jax.Array]]) -> Mix:
    """A mix that applies `combine(weight, place, image, partner) -> (image, weight)` per image."""

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        drawn = jax.random.uniform(key, (4,))
        # Beta(1, 1) is uniform; the general distribution is slow to compile.
        weight = (
            drawn[1] if alpha == 1 else jax.random.beta(jax.random.fold_in(key, 1), alpha, alpha)
        )
        return drawn[0], weight, drawn[2:]

    def apply(
        key: jax.Array, images01: jax.Array, targets: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        ranks, weights, places = jax.vmap(draw)(fold_in_each(key, len(images01)))
        partner = _partners(ranks, valid)
        mixed, weights = jax.vmap(combine)(weights, places, images01, images01[partner])
        weights = weights[:, None]
        images01 = jnp.where(valid[:, None, None, None], jnp.clip(mixed, 0.0, 1.0), images01)
        mixed_targets = weights * targets + (1.0 - weights) * targets[partner]
        return images01, jnp.where(valid[:, None], mixed_targets, targets)

    return apply


def _partners(ranks: jax.Array, valid: jax.Array) -> jax.Array:
    """The partner of each slot: the next valid slot in the order of `ranks`, cyclically.

    Args:
      ranks: f32[b] in [0, 1).
      valid: bool[b].

    Returns:
      i32[b]; the partner of an empty slot is the slot itself.
    """
    order = jnp.argsort(jnp.where(valid, ranks, 2.0)).astype(jnp.int32)  # the valid slots first
    place = jnp.arange(len(valid), dtype=jnp.int32)
    count = jnp.maximum(jnp.sum(valid.astype(jnp.int32)), 1)
    following = jnp.where(place < count, (place + 1) % count, place)
    return jnp.zeros_like(order).at[order].set(order[following])


# ---- helpers ----


def fold_in_each(key: jax.Array, n: int) -> jax.Array:
    """A key for each of `n` slots; the key of a slot does not depend on `n`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))


def choose(key: jax.Array, n: int, views: int) -> jax.Array:
    """Random view numbers i32[n], uniform in [0, views)."""
    return (jax.vmap(jax.random.uniform)(fold_in_each(key, n)) * views).astype(jnp.int32)


def for_each_image(transform: Transform) -> Transform:
    """A transform of one image, applied to each image of a batch with a separate key."""
    return lambda key, images01: jax.vmap(transform)(fold_in_each(key, len(images01)), images01)


def _clip(transform: Transform) -> Transform:
    return lambda key, images01: jnp.clip(transform(key, images01), 0.0, 1.0)


def _scale(drawn: jax.Array, low: float, high: float) -> jax.Array:
    """Numbers in [0, 1) scaled to [low, high)."""
    return low + (high - low) * drawn


def _box(image: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The mask bool[h w 1] of the pixels whose center is in [low, high), each (row, column)."""
    centers = [jnp.arange(side, dtype=jnp.float32) + 0.5 for side in image.shape[:2]]
    inside = [(low[axis] <= center) & (center < high[axis]) for axis, center in enumerate(centers)]
    return inside[0][:, None, None] & inside[1][None, :, None]
