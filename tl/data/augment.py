"""Augmentations by name, presets, and their composition, applied to batches on the device.

`make_augment("standard", size=224)` returns an `Augment`, whose `apply` composes rows of
`AUGMENTATIONS`. The same key gives the same images. To add an augmentation, write a function in
`augmentations.py` and add a row to `AUGMENTATIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax

from tl.data import augmentations, policies
from tl.data.augmentations import Mix, Transform
from tl.ops.materialize import materialize
from tl.paths import nearest


class Augmentation(NamedTuple):
    """A row of `AUGMENTATIONS`.

    Attributes:
      make: side of the network's input, in pixels -> a transform, or a mix if `mixes` is True.
      mixes: whether the augmentation also changes the targets.
      margin: side of the squares that it takes, as a multiple of the side that it returns.
      views: number of deterministic views among which it draws uniformly, the first ones of
        `augmentations.symmetry`. 0 if the views cannot be counted.
    """

    make: Callable[[int], Transform | Mix]
    mixes: bool = False
    margin: float = 1.0
    views: int = 0


AUGMENTATIONS: Mapping[str, Augmentation] = {
    "flip": Augmentation(lambda _: augmentations.flip(), views=2),
    "dihedral": Augmentation(lambda _: augmentations.dihedral(), views=8),
    # The host prepares 256 pixels for 224.
    "crop": Augmentation(augmentations.random_resized_crop, margin=8 / 7),
    # Chosen, not tuned.
    "shift": Augmentation(lambda size: augmentations.shift(max(size // 16, 1))),
    "color": Augmentation(lambda _: augmentations.color()),
    "erasing": Augmentation(lambda _: augmentations.erasing()),
    "trivialaugment": Augmentation(lambda _: policies.trivialaugment()),
    "randaugment": Augmentation(lambda _: policies.randaugment()),
    "mixup": Augmentation(lambda _: augmentations.mixup(), mixes=True),
    "cutmix": Augmentation(lambda _: augmentations.cutmix(), mixes=True),
}
PRESETS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "light": ("flip",),
    "standard": ("crop", "flip", "color"),
    "strong": ("crop", "flip", "color", "erasing", "mixup"),
}
# Former name -> name; former names are still accepted.
_ALIASES = {"colour": "color"}


@dataclass(frozen=True)
class Augment:
    """A sequence of augmentations; made by `make_augment`. It may be a static argument of `jit`.

    Attributes:
      words: names in `AUGMENTATIONS`, in the order of application.
      size: side of the result, in pixels.
    """

    words: tuple[str, ...]
    size: int

    @property
    def source_size(self) -> int:
        """Side of the squares that the host prepares, in pixels; above `size` for random crops."""
        margins = (AUGMENTATIONS[word].margin for word in self.words)
        return round(self.size * max(margins, default=1.0))

    @property
    def views(self) -> tuple[Callable[[jax.Array], jax.Array], ...] | None:
        """All possible results, as equally likely functions of the images; None if not countable.

        With countable views, the output of a frozen prefix is computed once per view and cached.
        """
        if not self.words:
            count = 1
        else:
            count = AUGMENTATIONS[self.words[0]].views if len(self.words) == 1 else 0
        return tuple(augmentations.symmetry(number) for number in range(count)) or None

    def choose(self, key: jax.Array, n: int) -> jax.Array:
        """The views that `apply` draws with this key.

        Returns:
          i32[n]; `apply` with the same key gives view number `choose(key, n)[i]` of image i.

        Raises:
          ValueError: the views cannot be counted.
        """
        if self.views is None:
            raise ValueError(
                f"the views of the augmentation {','.join(self.words)!r} cannot be counted, "
                "expected flip, dihedral or none"
            )
        return augmentations.choose(jax.random.fold_in(key, 0), n, len(self.views))

    def apply(
        self, key: jax.Array, images01: jax.Array, targets: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """One random view of each image.

        Args:
          key: the only source of randomness.
          images01: f32[b s s c] in [0, 1] with s = `source_size`.
          targets: f32[b k], rows sum to one.
          valid: bool[b], False for slots without an image, which are not mixed into others.

        Returns:
          `(images01, targets)`: f32[b size size c] in [0, 1], and f32[b k] whose rows sum to one.

        Raises:
          ValueError: the images have another size.
        """
        if images01.shape[1:3] != (self.source_size, self.source_size):
            raise ValueError(
                f"`images01` must be squares of {self.source_size} pixels for the augmentation "
                f"{','.join(self.words) or 'none'} to {self.size}: got {images01.shape[1]} x "
                f"{images01.shape[2]}"
            )
        for i, word in enumerate(self.words):
            row, key_word = AUGMENTATIONS[word], jax.random.fold_in(key, i)
            # Without fusing the steps, crop, flip and color together are twice as fast.
            images01 = materialize(images01, key_word) if i else images01
            if row.mixes:
                images01, targets = row.make(self.size)(key_word, images01, targets, valid)  # type: ignore[call-arg]
            else:
                images01 = row.make(self.size)(key_word, images01)  # type: ignore[call-arg]
        return images01, targets


def make_augment(words: str | Sequence[str], *, size: int) -> Augment:
    """The augmentation named by a preset or by words.

    Args:
      words: a preset such as "standard", words separated by commas such as "flip,color", or a
        sequence of words. Words are applied in this order.
      size: side of the network's input, in pixels.

    Raises:
      ValueError: an unknown or repeated word.

    Example:
      >>> make_augment("standard", size=224)
      Augment(words=('crop', 'flip', 'color'), size=224)
      >>> make_augment("flip", size=224).source_size, make_augment("standard", size=224).source_size
      (224, 256)
    """
    names = [word.strip() for word in words.split(",")] if isinstance(words, str) else list(words)
    names = [_ALIASES.get(name, name) for name in names]
    if len(names) == 1 and names[0] in PRESETS:
        return Augment(PRESETS[names[0]], size)
    for name in names:
        if name not in AUGMENTATIONS:
            choices = [*AUGMENTATIONS, *PRESETS]
            hint = "use a preset alone" if name in PRESETS else f"nearest: {nearest(name, choices)}"
            raise ValueError(
                f"unknown augmentation {name!r}, expected one or more of {', '.join(choices)}; "
                f"{hint}"
            )
        if names.count(name) > 1:
            raise ValueError(f"the augmentation {name!r} is repeated, expected each word once")
    return Augment(tuple(names), size)
