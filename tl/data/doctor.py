"""What is wrong in a data set: every picture decoded, every finding told, and nothing deleted, moved or written beside it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from tl.data.decode import Header, ImageError, decode, header
from tl.data.duplicates import content_hash, near_duplicate_groups
from tl.data.spec import DataSpec, Example, Source
from tl.data.tfds import known_bad

ENDINGS = {  # of a file's name -> the format it promises
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    ".png": "PNG",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".bmp": "BMP",
}
MODES = {  # Pillow's mode -> what it is, and what `decode` makes of it
    "1": "black and white: becomes RGB",
    "L": "grey: repeated three times",
    "LA": "grey: repeated three times",
    "P": "a palette: becomes RGB",
    "PA": "a palette: becomes RGB",
    "CMYK": "CMYK: converted without its colour profile",
    "I": "16-bit grey: value / 257",
    "RGB;16": "16-bit colour: the high byte is kept",
}


class Remark(NamedTuple):
    """A picture, and what there is to say about it in one sentence."""

    source: Source
    why: str


class Report(NamedTuple):
    """What `examine` found.

    Attributes:
      n: pictures examined.
      classes: class name -> pictures.
      parts: official part -> pictures; empty where the set has none.
      broken: cannot be decoded.
      misnamed: the content's format is not the one that the name promises; they are read all the same.
      odd: not plain 8-bit RGB of one frame, and what the rule of `decode` makes of them.
      turned: EXIF orientation, which is applied.
      known: names that are known to be bad in published sets.
      duplicates: groups of files of equal bytes.
      near_duplicates: groups of pictures that look the same and are not all equal; None where all pictures of the set are
        alike, so that it cannot be told.
      two_labels: groups of either kind whose pictures have different labels.
      leaks: groups of either kind that stand in more than one official part.
    """

    n: int
    classes: dict[str, int]
    parts: dict[str, int]
    broken: tuple[Remark, ...]
    misnamed: tuple[Remark, ...]
    odd: tuple[Remark, ...]
    turned: tuple[Remark, ...]
    known: tuple[Remark, ...]
    duplicates: tuple[tuple[Source, ...], ...]
    near_duplicates: tuple[tuple[Source, ...], ...] | None
    two_labels: tuple[tuple[Source, ...], ...]
    leaks: tuple[tuple[Source, ...], ...]


class _Seen(NamedTuple):
    """What one picture shows of itself: `hash` "" where its file cannot be read, `broken` "" where it can be decoded."""

    hash: str
    broken: str
    header: Header | None


def examine(
    spec: DataSpec,
    *,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> Report:
    """Decodes every picture of a set and compares them all.

    Args:
      spec: the set.
      progress: wraps the pictures while they are decoded.
    """
    sources = [example.path for example in spec.examples]
    with ThreadPoolExecutor() as pool:
        found: list[tuple[Source, _Seen]] = list(
            zip(sources, progress(pool.map(_look, sources), len(sources)), strict=True)
        )
    named = near_duplicate_groups(
        {s.hash: source for source, s in found if s.hash and not s.broken}
    )
    equal = _groups(spec.examples, [s.hash for _, s in found])
    alike = _groups(spec.examples, [(named or {}).get(s.hash, s.hash) for _, s in found])
    hashes = {example: s.hash for example, (_, s) in zip(spec.examples, found, strict=True)}
    near = [group for group in alike if len({hashes[e] for e in group}) > 1]
    counted = Counter(e.label for e in spec.examples)
    return Report(
        n=len(spec.examples),
        classes={name: counted[label] for label, name in enumerate(spec.classes)},
        parts=dict(Counter(e.part for e in spec.examples if e.part)),
        broken=tuple(Remark(source, s.broken) for source, s in found if s.broken),
        misnamed=tuple(_remarks(found, _misnamed)),
        odd=tuple(_remarks(found, lambda _, head: _odd(head))),
        turned=tuple(_remarks(found, lambda _, head: _turned(head))),
        known=tuple(
            Remark(source, _known(why, s)) for source, s in found if (why := known_bad(source))
        ),
        duplicates=_sources(equal),
        near_duplicates=None if named is None else _sources(near),
        two_labels=_sources(group for group in alike if len({e.label for e in group}) > 1),
        leaks=_sources(group for group in alike if len({e.part for e in group}) > 1),
    )


def _look(source: Source) -> _Seen:
    try:
        digest = content_hash(source)
    except OSError:
        digest = ""  # decode says why
    head = None
    try:
        head = header(source)
        decode(source)
    except ImageError as error:
        return _Seen(digest, error.why, head)
    return _Seen(digest, "", head)


def _groups(examples: Sequence[Example], names: Sequence[str]) -> list[list[Example]]:
    """Examples that bear the same name, where there are several; "" is no name."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example, name in zip(examples, names, strict=True):
        groups[name].append(example)
    return [group for name, group in groups.items() if name and len(group) > 1]


def _sources(groups: Iterable[list[Example]]) -> tuple[tuple[Source, ...], ...]:
    return tuple(tuple(example.path for example in group) for group in groups)


def _remarks(
    found: Sequence[tuple[Source, _Seen]], say: Callable[[Source, Header], str]
) -> Iterator[Remark]:
    for source, seen in found:
        if seen.header and (why := say(source, seen.header)):
            yield Remark(source, why)


def _misnamed(source: Source, head: Header) -> str:
    promised = ENDINGS.get(source.suffix.lower(), head.format)
    return (
        ""
        if head.format == promised
        else f"it is a {head.format}, its name ends in {source.suffix}"
    )


def _odd(head: Header) -> str:
    gray = head.mode.startswith("I;16")
    says = (
        MODES["I"]
        if gray
        else MODES.get(
            head.mode, "" if head.mode in ("RGB", "RGBA") else f"{head.mode}: becomes RGB"
        )
    )
    clear = "transparent: laid on white" if head.transparent else ""
    moving = "more than one frame: the first is taken" if head.animated else ""
    return "; ".join(filter(None, (says, clear, moving)))


def _turned(head: Header) -> str:
    return (
        ""
        if head.orientation in (0, 1)
        else f"EXIF orientation {head.orientation}: it is turned upright"
    )


def _known(why: str, seen: _Seen) -> str:
    return f"known in the published set: {why}; this one {'cannot' if seen.broken else 'can'} be decoded"
