"""Examines a data set: decodes every image and searches for duplicates.

Nothing is deleted, moved or written next to the images. `tl.pages.doctor` shows the report.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from tl.data import pixel_checks
from tl.data.decode import Header, ImageError, decode, header, thumbnail
from tl.data.duplicates import content_hash, near_duplicate_groups
from tl.data.formats import SUFFIXES
from tl.data.pixel_checks import Pixels
from tl.data.spec import DataSpec, Example, Source, white_of
from tl.data.tfds import known_bad

# Side of an image on a page, in pixels; chosen, not tuned.
CARD = 160
# Pillow's mode -> its meaning and the conversion by `decode`.
MODES = {
    "1": "black and white: becomes RGB",
    "L": "gray: repeated three times",
    "LA": "gray: repeated three times",
    "P": "a palette: becomes RGB",
    "PA": "a palette: becomes RGB",
    "CMYK": "CMYK: converted without its color profile",
    "I": "16-bit gray: value / 257",
    **dict.fromkeys(("RGB;16", "RGBA;16"), "16-bit color: the high byte is kept"),
}


class Finding(NamedTuple):
    """A property of one image that a user should know about.

    Attributes:
      source: the image.
      reason: the property, in one sentence.
    """

    source: Source
    reason: str


class Report(NamedTuple):
    """The result of `examine`.

    Attributes:
      n: number of images.
      classes: class name -> number of images.
      parts: official part -> number of images; {} if the data set has none.
      broken: images that cannot be decoded.
      misnamed: images whose format differs from the suffix of the name; `decode` reads them.
      odd: images other than 8-bit RGB with one frame, with the conversion by `decode`.
      extreme: images of one color, nearly black or nearly white.
      turned: images with an EXIF orientation, which `decode` applies.
      known: images with the name of a published file that is known to be defective.
      duplicates: groups of files with equal bytes.
      near_duplicates: groups of near-duplicates that are not all equal; None if all images resemble
        each other, because near-duplicates cannot be recognized then.
      two_labels: groups of either kind with different labels.
      leaks: groups of either kind in more than one official part.
      remarks: sentences on the pixels of the whole data set, see `pixel_checks.remarks`.
    """

    n: int
    classes: dict[str, int]
    parts: dict[str, int]
    broken: tuple[Finding, ...]
    misnamed: tuple[Finding, ...]
    odd: tuple[Finding, ...]
    extreme: tuple[Finding, ...]
    turned: tuple[Finding, ...]
    known: tuple[Finding, ...]
    duplicates: tuple[tuple[Source, ...], ...]
    near_duplicates: tuple[tuple[Source, ...], ...] | None
    two_labels: tuple[tuple[Source, ...], ...]
    leaks: tuple[tuple[Source, ...], ...]
    remarks: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values; `broken` has the key "bad"."""
        fields = {}
        for name, value in self._asdict().items():
            if name == "remarks":  # `Run.remark` writes them
                continue
            if name in ("broken", "misnamed", "odd", "extreme", "turned", "known"):
                value = [{"path": str(source), "why": reason} for source, reason in value]
            elif name in ("duplicates", "near_duplicates", "two_labels", "leaks"):
                value = None if value is None else [[str(s) for s in group] for group in value]
            fields["bad" if name == "broken" else name] = value
        return fields


class _Image(NamedTuple):
    """An examined image.

    Attributes:
      hash: SHA-256 of the file in hex; "" if it cannot be read.
      error: the reason why it cannot be decoded; "" if it can.
      header: format and mode; None if they cannot be read.
      pixels: what is measured on it; None if it cannot be decoded.
    """

    hash: str
    error: str
    header: Header | None
    pixels: Pixels | None = None


def examine(
    spec: DataSpec,
    *,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> Report:
    """Decodes every image of a data set and searches for duplicates.

    Args:
      spec: the data set.
      progress: wraps the iterator over the images; called with it and the number of images.

    Returns:
      `Report`. Images that cannot be read or decoded are listed in it and raise no error.
    """
    sources = [example.path for example in spec.examples]
    with ThreadPoolExecutor() as pool:
        images: list[_Image] = list(progress(pool.map(_examine_image, sources), len(sources)))
    examined = list(zip(sources, images, strict=True))
    valid = {image.hash: source for source, image in examined if image.hash and not image.error}
    near_groups = near_duplicate_groups(valid)
    equal = _groups(spec.examples, [image.hash for image in images])
    group_of = near_groups or {}
    similar = _groups(spec.examples, [group_of.get(i.hash, i.hash) for i in images])
    hashes = {e: image.hash for e, image in zip(spec.examples, images, strict=True)}
    near = [group for group in similar if len({hashes[e] for e in group}) > 1]
    counts = Counter(e.label for e in spec.examples)
    return Report(
        n=len(spec.examples),
        classes={name: counts[label] for label, name in enumerate(spec.classes)},
        parts=dict(Counter(e.part for e in spec.examples if e.part)),
        broken=tuple(Finding(source, image.error) for source, image in examined if image.error),
        misnamed=tuple(_findings(examined, _misnamed)),
        odd=tuple(_findings(examined, _odd)),
        extreme=tuple(
            Finding(source, reason)
            for source, image in examined
            if image.pixels and (reason := pixel_checks.describe(image.pixels))
        ),
        turned=tuple(_findings(examined, lambda _, image_header: _turned(image_header))),
        known=tuple(
            Finding(source, _known_defect(defect, image))
            for source, image in examined
            if (defect := known_bad(source))
        ),
        duplicates=_sources(equal),
        near_duplicates=None if near_groups is None else _sources(near),
        two_labels=_sources(group for group in similar if len({e.label for e in group}) > 1),
        leaks=_sources(group for group in similar if len({e.part for e in group}) > 1),
        remarks=pixel_checks.remarks([image.pixels for image in images if image.pixels]),
    )


def _examine_image(source: Source) -> _Image:
    try:
        digest = content_hash(source)
    except OSError:
        digest = ""  # `header` raises the reason
    image_header = None
    try:
        image_header = header(source)
        pixels = pixel_checks.measure(source, decode(source), image_header)
    except ImageError as error:
        return _Image(digest, error.why, image_header)
    return _Image(digest, "", image_header, pixels)


def _groups(examples: Sequence[Example], names: Sequence[str]) -> list[list[Example]]:
    """Groups of two or more examples with the same name; those with the name "" are left out."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example, name in zip(examples, names, strict=True):
        groups[name].append(example)
    return [group for name, group in groups.items() if name and len(group) > 1]


def _sources(groups: Iterable[list[Example]]) -> tuple[tuple[Source, ...], ...]:
    return tuple(tuple(example.path for example in group) for group in groups)


def _findings(
    examined: Sequence[tuple[Source, _Image]], describe: Callable[[Source, Header], str]
) -> Iterator[Finding]:
    for source, image in examined:
        if image.header and (reason := describe(source, image.header)):
            yield Finding(source, reason)


def _misnamed(source: Source, image_header: Header) -> str:
    if image_header.format == SUFFIXES.get(source.suffix.lower(), image_header.format):
        return ""
    return f"it is a {image_header.format}, its name ends in {source.suffix}"


def _odd(source: Source, image_header: Header) -> str:
    mode = "I" if image_header.mode.startswith("I;16") else image_header.mode
    plain = "" if mode in ("RGB", "RGBA") else f"{mode}: becomes RGB"
    conversion = MODES.get(mode, plain)
    if (white := white_of(source)) and (mode == "I" or mode.endswith(";16")):
        conversion = f"16 bits: {white} is white"
    transparent = "transparent: composited on white" if image_header.transparent else ""
    animated = "more than one frame: the first is used" if image_header.animated else ""
    return "; ".join(filter(None, (conversion, transparent, animated)))


def _turned(image_header: Header) -> str:
    if image_header.orientation in (0, 1):
        return ""
    return f"EXIF orientation {image_header.orientation}: it is turned upright"


def _known_defect(defect: str, image: _Image) -> str:
    verb = "cannot" if image.error else "can"
    return f"known in the published data set: {defect}; this file {verb} be decoded"


def card_image(source: Source) -> np.ndarray:
    """A small copy for a page, uint8[h w 3]; gray if the image cannot be decoded."""
    try:
        return thumbnail(source, CARD)
    except ImageError:
        return np.full((CARD, CARD, 3), 128, np.uint8)
