"""Whether the images of a data set are nearly black or white, of one color, or pages of files.

`check_readable` and `check_pixels` examine a sample before training, `doctor.py` all images.
Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from tl.data.decode import Header, ImageError, decode_reduced, header
from tl.data.spec import DataSpec, Source, white_of
from tl.labels.names import listed, path_end

# Images of a sample, and fewer, to the smallest number, if they have more pixels together; chosen,
# not tuned. 200 photographs take 0.2 s of two cores, 200 JPEG of 12 megapixels 9 s.
SAMPLE = 200
SMALLEST_SAMPLE = 20
SAMPLE_PIXELS = 200_000_000
# Levels from black or white within which all pixels of a nearly black or white image lie. 14 bits
# that are read as 16 reach level 64, 12 bits 16.
NEAR_16_BIT = 64
# The darkest of 1,759 photographs reaches level 132 (cats_vs_dogs, oxford_pets, imagenet_samples),
# the darkest of ELPV 55.
NEAR_8_BIT = 32
# An image has one color if no channel has a larger range: JPEG moves a flat color by one level.
FLAT = 2
# Smallest share of images that is reported; chosen, not tuned, so that a few empty images of a
# large set are left to `doctor`.
SHARE = 0.1


class Pixels(NamedTuple):
    """What is measured on one image.

    Attributes:
      header: format and mode.
      low: the smallest level of a channel, in [0, 255].
      high: the largest level of a channel, in [0, 255].
      flat: whether the image has one color.
      white: the value of white that was given; 0 if none was.
      size: the number of pixels that were decoded.
    """

    header: Header
    low: int
    high: int
    flat: bool
    white: int
    size: int

    @property
    def finding(self) -> str:
        """ "one color", "transparent everywhere", "nearly black" or "nearly white"; "" if none."""
        near = NEAR_16_BIT if self.header.full_range else NEAR_8_BIT
        if self.flat and not (self.header.full_range and 0 < self.reach <= near):
            clear = self.header.transparent and self.low == 255
            return "transparent everywhere" if clear else "one color"
        if self.high <= near:
            return "nearly black"
        return "nearly white" if self.low >= 255 - near else ""

    @property
    def reach(self) -> int:
        """The number of levels between the value 0 and the largest value, in [0, 255]."""
        return 255 - self.low if self.header.negative else self.high

    @property
    def correctable(self) -> bool:
        """Whether another value of white spreads the levels."""
        extreme = "nearly white" if self.header.negative else "nearly black"
        return self.header.full_range and self.finding == extreme


def measure(source: Source, image: np.ndarray, image_header: Header) -> Pixels:
    """The properties of an image, uint8[h w 3] as `decode` returns it."""
    low, high = image.min(axis=(0, 1)).astype(int), image.max(axis=(0, 1)).astype(int)
    flat = bool((high - low <= FLAT).all())
    size = image.shape[0] * image.shape[1]
    return Pixels(image_header, int(low.min()), int(high.max()), flat, white_of(source), size)


def white_of_level(level: int) -> int:
    """The smallest white of n bits that no value exceeds, if 65535 was read as level 255.

    Example:
      >>> white_of_level(16), white_of_level(4), white_of_level(7)
      (4095, 1023, 2047)
    """
    return (256 << max(level - 1, 0).bit_length()) - 1


def describe(pixels: Pixels) -> str:
    """The finding on one image and the value of white that corrects it; "" if there is none."""
    advice = _advice([pixels], "; try").replace("`", "")
    return pixels.finding + advice if pixels.finding else ""


def _advice(rows: Sequence[Pixels], words: str) -> str:
    """The value of white that spreads the levels of images, after `words`; "" if there is none."""
    if not all(row.correctable for row in rows):
        return ""
    level = max(row.reach * (row.white or 65535) // 65535 for row in rows)
    return f"{words} `white={white_of_level(level)}`"


def remarks(rows: Sequence[Pixels], *, sample: bool = False) -> tuple[str, ...]:
    """Sentences on the images of a data set, each of at most 200 characters.

    Args:
      rows: the images that can be read.
      sample: whether the data set has more images.
    """
    of = f"of {len(rows)} images{' of a sample' if sample else ''}"
    sentences = []
    if pages := sum(row.header.animated for row in rows):
        have = "has" if pages == 1 else "have"
        sentences.append(f"{pages} {of} {have} more pages or frames than the one that is read")
    for finding in dict.fromkeys(row.finding for row in rows):
        group = [row for row in rows if row.finding == finding]
        if not finding or len(group) < SHARE * len(rows):
            continue
        low, high = min(row.low for row in group), max(row.high for row in group)
        have, are = ("has", "is") if len(group) == 1 else ("have", "are")
        clause = {
            "one color": f"{have} one color; check the export",
            "transparent everywhere": f"{are} transparent everywhere, read as white",
            "nearly black": f"{are} nearly black: no level exceeds {high} of 255",
            "nearly white": f"{are} nearly white: no level is below {low} of 255",
        }[finding]
        advice = _advice(group, "; if they hold fewer than 16 bits, state the value of white:")
        sentences.append(f"{len(group)} {of} {clause}{advice}")
    return tuple(sentences)


def check_pixels(sources: Sequence[Source]) -> tuple[str, ...]:
    """Remarks on images, by a sample that is spread evenly over their order.

    It has `SAMPLE` images, or fewer if the first one is large. Images that cannot be read are left
    to the loader.
    """
    first = _examine(sources[0]) if sources else None
    largest = SAMPLE_PIXELS // first.size if first else SAMPLE
    n = min(len(sources), SAMPLE, max(SMALLEST_SAMPLE, largest))
    with ThreadPoolExecutor() as pool:
        rest = pool.map(_examine, (sources[i * len(sources) // n] for i in range(1, n)))
        rows = [row for row in (first, *rest) if row]
    return remarks(rows, sample=n < len(sources))


def check_readable(spec: DataSpec) -> None:
    """Reads headers until each class has a readable image: one per class, if that can be read.

    Raises:
      ValueError: no image of a class can be read.
    """
    unread: dict[int, str] = {}
    readable: set[int] = set()
    for example in spec.examples:
        if example.label not in readable:
            try:
                header(example.path)
                readable.add(example.label)
            except ImageError as error:
                unread.setdefault(example.label, f"{path_end(example.path.name, 40)} {error.why}")
    for label in unread.keys() - readable:
        raise ValueError(
            f"no image of {listed([spec.classes[label]])} can be read, expected at least one of "
            f"each class: {unread[label]}"
        )


def _examine(source: Source) -> Pixels | None:
    try:
        return measure(source, decode_reduced(source, 64), header(source))
    except ImageError:
        return None
