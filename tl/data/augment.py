"""Random views of training pictures, on the device: keyed, jitted by the caller, the same for the same key.

A transform is `(key, images01) -> images01`, a mix `(key, images01, targets, valid) -> (images01, targets)`; both take
f32[b h w c] in [0, 1] and give the same, of a static shape. `make_augment` puts rows of `AUGMENTATIONS` in a row.

What happens to slot i of a batch is drawn from the key and i alone, so a larger batch changes nothing for the slots that
both have, nor does sharding it; a mix also depends on the other pictures, from which it takes partners. To add one: a
function, and a row in `AUGMENTATIONS`.

Nothing here reads files or resizes from the original: the host prepares squares of `Augment.source_size`, from which a
crop is cut, so a crop of a quarter of the area is enlarged where torchvision would still have pixels of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl.ops.materialize import materialize
from tl.paths import nearest

Transform = Callable[[jax.Array, jax.Array], jax.Array]
Mix = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

GREY = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision and Pillow have it
TRIES = 10  # torchvision's RandomResizedCrop


# --- moving pixels -----------------------------------------------------------------------------------------------------

# On f32[b h w c]; every symmetry of the square is some of these, one after another: bit i of its number is the i-th.
_TURNS: Sequence[Callable[[jax.Array], jax.Array]] = (
    lambda images01: images01[:, :, ::-1],
    lambda images01: images01[:, ::-1],
    lambda images01: images01.swapaxes(1, 2),
)


def flip() -> Transform:
    """Left becomes right for half of the images."""
    return _symmetry(1)


def dihedral() -> Transform:
    """One of the eight symmetries of the square, for pictures without an up: turned by quarters, and mirrored."""
    return _symmetry(3)


def _symmetry(bits: int) -> Transform:
    def apply(key: jax.Array, images01: jax.Array) -> jax.Array:
        choice = _choose(key, len(images01), 2**bits)
        for bit, turn in enumerate(_TURNS[:bits]):
            turned = ((choice >> bit) & 1 == 1)[:, None, None, None]
            images01 = jnp.where(turned, turn(images01), images01)
        return images01

    return apply


def _view(number: int) -> Callable[[jax.Array], jax.Array]:
    """The symmetry of a number, of all images."""

    def apply(images01: jax.Array) -> jax.Array:
        for bit, turn in enumerate(_TURNS):
            images01 = turn(images01) if number >> bit & 1 else images01
        return images01

    return apply


def random_resized_crop(
    size: int, scale: tuple[float, float] = (0.25, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Transform:
    """A box of random area, shape and place, resized to `size` x `size`.

    The box is drawn as torchvision's RandomResizedCrop draws it (`TRIES` attempts, then the largest centred box), but its
    corners are not rounded to whole pixels; resizing is bilinear and antialiased, as torchvision does it with PIL images
    (without antialiasing a box larger than `size` would alias, and it costs the same here).

    Args:
      size: of the result, in pixels.
      scale: least and greatest share of the area.
      ratio: least and greatest width / height, even on a log scale.

    Reference: Szegedy et al. 2015, arXiv 1409.4842, section 6.
    """

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        height, width, c = image.shape
        drawn = jax.random.uniform(
            key, (2 * TRIES + 2,)
        )  # at once: every draw is a cipher to compile and to run
        areas = height * width * _between(drawn[:TRIES], *scale)
        ratios = jnp.exp(_between(drawn[TRIES : 2 * TRIES], *np.log(ratio)))
        sides = jnp.stack([jnp.sqrt(areas / ratios), jnp.sqrt(areas * ratios)], axis=1)
        fits = (sides[:, 0] <= height) & (sides[:, 1] <= width)
        largest = jnp.asarray(
            [min(height, width / ratio[0]), min(width, height * ratio[1])], jnp.float32
        )
        found = jnp.any(fits)
        box = jnp.where(found, sides[jnp.argmax(fits)], largest)
        place = jnp.where(found, drawn[2 * TRIES :], 0.5)
        corner = place * (jnp.asarray([height, width], jnp.float32) - box)
        rows = _resized(image, corner[0], box[0], size)
        return _resized(rows.swapaxes(0, 1), corner[1], box[1], size).swapaxes(0, 1)

    return _clipped(_each(one))


def _resized(image: jax.Array, start: jax.Array, length: jax.Array, size: int) -> jax.Array:
    """Rows [start, start + length) of an image [h w c] as `size` rows: bilinear, antialiased.

    `jax.image.scale_and_translate` does the same by a matrix product, which takes 8 times as long on a CPU: all but two or
    three of a row's weights are 0.
    """
    height, *rest = image.shape
    step = length / size
    reach = jnp.maximum(step, 1.0)  # of the triangle filter, in rows
    taps = int(2 * max(height / size, 1.0)) + 1
    middle = start + (jnp.arange(size, dtype=jnp.float32) + 0.5) * step - 0.5
    rows = (
        jnp.ceil(middle - reach).astype(jnp.int32)[:, None]
        + jnp.arange(taps, dtype=jnp.int32)[None]
    )
    weights = jnp.maximum(1.0 - jnp.abs(middle[:, None] - rows.astype(jnp.float32)) / reach, 0.0)
    weights = jnp.where((rows >= 0) & (rows < height), weights, 0.0)
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    flat, rows = image.reshape(height, -1), jnp.clip(rows, 0, height - 1)
    return sum(weights[:, i, None] * flat[rows[:, i]] for i in range(taps)).reshape(size, *rest)  # type: ignore[union-attr]


def shift(pixels: int) -> Transform:
    """Moves each image by a whole number of pixels in [-pixels, pixels], down and across; the gap is its mirror image."""

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        start = (jax.random.uniform(key, (2,)) * (2 * pixels + 1)).astype(jnp.int32)
        padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="symmetric")
        return jax.lax.dynamic_slice(padded, (start[0], start[1], jnp.int32(0)), image.shape)

    return _each(one)


# --- changing values ---------------------------------------------------------------------------------------------------


def color(brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4) -> Transform:
    """Brightness, contrast and saturation, each by a factor in [1 - x, 1 + x], in this order.

    torchvision's ColorJitter is the same but for the order, which it draws, and the clipping to [0, 1], which it does after
    each of the three and not at the end. Images that are not RGB keep their saturation.

    Reference: Howard 2013, arXiv 1312.5402, section 2.1.
    """

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        wide = jnp.asarray([brightness, contrast, saturation], jnp.float32)
        bright, hard, rich = 1.0 + wide * _between(jax.random.uniform(key, (3,)), -1.0, 1.0)
        height, width, c = image.shape
        seen = jnp.asarray(
            GREY if c == 3 else (1.0 / c,) * c, jnp.float32
        )  # how bright the eye sees a channel
        # By whole rows: a sum over the short last axis takes ten times as long on a CPU.
        rows = image.reshape(height, width * c) * jnp.tile(seen, width)[None]
        image = bright * (hard * image + (1.0 - hard) * (jnp.sum(rows) / (height * width)))
        if c != 3:
            return image
        gray = GREY[0] * image[..., :1] + GREY[1] * image[..., 1:2] + GREY[2] * image[..., 2:]
        return rich * image + (1.0 - rich) * gray

    return _clipped(_each(one))


def erasing(
    probability: float = 0.25,
    scale: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Transform:
    """A box over some of the images, each showing its part of one square of noise, even in [0, 1].

    Args:
      probability: of an image to get one.
      scale: least and greatest share of the area; a box that would not fit is cut to the image.
      ratio: least and greatest width / height, even on a log scale (as in timm; the paper's is even).

    Reference: Zhong et al. 2017, arXiv 1708.04896, algorithm 1 (noise: "RE-R", their best).
    """

    def hit(key: jax.Array, image: jax.Array) -> jax.Array:
        height, width, _ = image.shape
        drawn = jax.random.uniform(key, (5,))
        area = height * width * _between(drawn[0], *scale)
        shape = jnp.exp(_between(drawn[1], *np.log(ratio)))
        full = jnp.asarray([height, width], jnp.float32)
        sides = jnp.minimum(jnp.stack([jnp.sqrt(area / shape), jnp.sqrt(area * shape)]), full)
        corner = drawn[2:4] * (full - sides)
        return _box(image, corner, corner + sides) & (drawn[4] < probability)

    def apply(key: jax.Array, images01: jax.Array) -> jax.Array:
        key_boxes, key_noise = jax.random.split(key)
        noise = jax.random.uniform(key_noise, images01.shape[1:])[
            None
        ]  # one for all: drawing it costs more than the rest
        return jnp.where(_each(hit)(key_boxes, images01), noise, images01)

    return apply


# --- mixing pictures ---------------------------------------------------------------------------------------------------


def mixup(alpha: float = 0.2) -> Mix:
    """Blends each picture and its target with another's, by a share drawn from Beta(alpha, alpha) for each picture.

    Reference: Zhang et al. 2018, arXiv 1710.09412, equation 1; alpha for ImageNet in section 3.1.
    """

    def blend(
        share: jax.Array, _: jax.Array, image: jax.Array, other: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return share * image + (1.0 - share) * other, share

    return _mix(alpha, blend)


def cutmix(alpha: float = 1.0) -> Mix:
    """Pastes a box of another picture over each; the target is shared by area, of which Beta(alpha, alpha) is drawn.

    Reference: Yun et al. 2019, arXiv 1905.04899, equations 1 and 2; a box cut off at the edge counts with what is seen.
    """

    def paste(
        share: jax.Array, place: jax.Array, image: jax.Array, other: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        full = jnp.asarray(image.shape[:2], jnp.float32)
        center = place * full
        half = 0.5 * jnp.sqrt(1.0 - share) * full
        box = _box(image, center - half, center + half)
        return jnp.where(box, other, image), 1.0 - jnp.mean(box.astype(jnp.float32))

    return _mix(alpha, paste)


def _mix(alpha: float, combine: Callable[..., tuple[jax.Array, jax.Array]]) -> Mix:
    """`combine(share, place, image, other) -> (image, share kept)` of each valid picture and a partner."""

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        drawn = jax.random.uniform(key, (4,))
        # Beta(1, 1) is even; the general one is slow to compile.
        share = (
            drawn[1] if alpha == 1 else jax.random.beta(jax.random.fold_in(key, 1), alpha, alpha)
        )
        return drawn[0], share, drawn[2:]

    def apply(
        key: jax.Array, images01: jax.Array, targets: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        ranks, shares, places = jax.vmap(draw)(_keys(key, len(images01)))
        other = _partners(ranks, valid)
        mixed, kept = jax.vmap(combine)(shares, places, images01, images01[other])
        kept = kept[:, None]
        pictures = jnp.where(valid[:, None, None, None], jnp.clip(mixed, 0.0, 1.0), images01)
        return pictures, jnp.where(
            valid[:, None], kept * targets + (1.0 - kept) * targets[other], targets
        )

    return apply


def _partners(ranks: jax.Array, valid: jax.Array) -> jax.Array:
    """i32[b]: one ring of all valid slots in the order of their ranks, each taking the next; an empty slot is its own."""
    order = jnp.argsort(jnp.where(valid, ranks, 2.0)).astype(
        jnp.int32
    )  # ranks are below 1: the valid ones first
    place = jnp.arange(len(valid), dtype=jnp.int32)
    count = jnp.maximum(jnp.sum(valid.astype(jnp.int32)), 1)
    following = jnp.where(place < count, (place + 1) % count, place)
    return jnp.zeros_like(order).at[order].set(order[following])


# --- what they share ---------------------------------------------------------------------------------------------------


def _keys(key: jax.Array, n: int) -> jax.Array:
    """A key for each slot, which knows nothing of `n`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(n))


def _choose(key: jax.Array, n: int, views: int) -> jax.Array:
    return (jax.vmap(jax.random.uniform)(_keys(key, n)) * views).astype(jnp.int32)


def _each(one: Transform) -> Transform:
    """A transform of one image, on each with a key of its own."""
    return lambda key, images01: jax.vmap(one)(_keys(key, len(images01)), images01)


def _clipped(transform: Transform) -> Transform:
    return lambda key, images01: jnp.clip(transform(key, images01), 0.0, 1.0)


def _between(drawn: jax.Array, low: float, high: float) -> jax.Array:
    """Numbers even in [0, 1) as numbers even in [low, high)."""
    return low + (high - low) * drawn


def _box(image: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """bool[h w 1], where the middle of a pixel lies in [low, high)."""
    middles = [jnp.arange(side, dtype=jnp.float32) + 0.5 for side in image.shape[:2]]
    inside = [(low[axis] <= middle) & (middle < high[axis]) for axis, middle in enumerate(middles)]
    return inside[0][:, None, None] & inside[1][None, :, None]


# --- by name -----------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """An augmentation by name.

    Attributes:
      make: side of the network's input, in pixels -> a transform, or with `mixes` a mix.
      mixes: it takes targets too.
      margin: side of the squares that it wants, in units of what it gives.
      views: how many deterministic views it chooses from evenly, the first so many of the symmetries; 0: they cannot be
        counted.
    """

    make: Callable[[int], Transform | Mix]
    mixes: bool = False
    margin: float = 1.0
    views: int = 0


AUGMENTATIONS: Mapping[str, Row] = {
    "flip": Row(lambda _: flip(), views=2),
    "dihedral": Row(lambda _: dihedral(), views=8),
    "crop": Row(random_resized_crop, margin=8 / 7),  # 256 for 224
    "shift": Row(lambda size: shift(max(size // 16, 1))),  # chosen, not tuned
    "colour": Row(lambda _: color()),
    "erasing": Row(lambda _: erasing()),
    "mixup": Row(lambda _: mixup(), mixes=True),
    "cutmix": Row(lambda _: cutmix(), mixes=True),
}
PRESETS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "light": ("flip",),
    "standard": ("crop", "flip", "colour"),
    "strong": ("crop", "flip", "colour", "erasing", "mixup"),
}


@dataclass(frozen=True)
class Augment:
    """Augmentations one after another; made by `make_augment`. Equal ones are equal, so it may be static under `jit`.

    Attributes:
      words: rows of `AUGMENTATIONS`, in their order.
      size: side of the result, in pixels.
    """

    words: tuple[str, ...]
    size: int

    @property
    def source_size(self) -> int:
        """Side of the squares that the host must prepare; larger than `size` where a crop is cut from them."""
        return round(
            self.size * max((AUGMENTATIONS[word].margin for word in self.words), default=1.0)
        )

    @property
    def views(self) -> tuple[Callable[[jax.Array], jax.Array], ...] | None:
        """All that can become of the images, as functions of them, each as likely; None where that cannot be counted.

        What a frozen part of the network makes of each view may then be computed once and kept.
        """
        count = (
            1
            if not self.words
            else AUGMENTATIONS[self.words[0]].views
            if len(self.words) == 1
            else 0
        )
        return tuple(_view(number) for number in range(count)) or None

    def choose(self, key: jax.Array, n: int) -> jax.Array:
        """i32[n], the views that `apply` takes with this key: it gives image i as `views[choose(key, n)[i]]` does.

        Raises:
          ValueError: the views cannot be counted.
        """
        if self.views is None:
            raise ValueError(
                f"the views of {','.join(self.words)} cannot be counted; wanted flip, dihedral or none"
            )
        return _choose(jax.random.fold_in(key, 0), n, len(self.views))

    def apply(
        self, key: jax.Array, images01: jax.Array, targets: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """One random view of each picture.

        Args:
          key: decides everything.
          images01: f32[b s s c] in [0, 1], s being `source_size`.
          targets: f32[b k], rows of sum 1.
          valid: bool[b]; slots without a picture are not mixed into others.

        Returns:
          images01: f32[b size size c] in [0, 1], and targets f32[b k], rows of sum 1.

        Raises:
          ValueError: images of another size.
        """
        if images01.shape[1:3] != (self.source_size, self.source_size):
            raise ValueError(
                f"images01 are {images01.shape[1]} x {images01.shape[2]} pixels, wanted squares of {self.source_size} "
                f"for {','.join(self.words) or 'no augmentation'} to {self.size}"
            )
        for i, word in enumerate(self.words):
            row, key_word = AUGMENTATIONS[word], jax.random.fold_in(key, i)
            images01 = (
                materialize(images01, key_word) if i else images01
            )  # twice as fast for a crop, a flip and colours
            if row.mixes:
                images01, targets = row.make(self.size)(key_word, images01, targets, valid)  # type: ignore[call-arg]
            else:
                images01 = row.make(self.size)(key_word, images01)  # type: ignore[call-arg]
        return images01, targets


def make_augment(words: str | Sequence[str], *, size: int) -> Augment:
    """The augmentation that a preset, or names separated by commas, mean.

    Args:
      words: "standard", "flip,colour", or a sequence of names; they happen in this order.
      size: side of the network's input, in pixels.

    Raises:
      ValueError: an unknown name, or one that is there twice.

    Example:
      >>> make_augment("standard", size=224)
      Augment(words=('crop', 'flip', 'colour'), size=224)
      >>> make_augment("flip", size=224).source_size, make_augment("standard", size=224).source_size
      (224, 256)
    """
    names = [word.strip() for word in words.split(",")] if isinstance(words, str) else list(words)
    if len(names) == 1 and names[0] in PRESETS:
        return Augment(PRESETS[names[0]], size)
    for name in names:
        if name not in AUGMENTATIONS:
            known = [*AUGMENTATIONS, *PRESETS]
            why = "a preset stands alone" if name in PRESETS else f"nearest: {nearest(name, known)}"
            raise ValueError(
                f"unknown augmentation {name!r}, wanted some of {', '.join(known)}; {why}"
            )
        if names.count(name) > 1:
            raise ValueError(f"the augmentation {name!r} is named twice, wanted each once")
    return Augment(tuple(names), size)
