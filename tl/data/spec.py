"""The value that describes a data set: images, labels, classes, origin and license.

This module holds data and no logic: creating a `DataSpec` opens no file. `folder.py`, `table.py`,
`tfds.py` and `packaged.py` create one; `split.py` divides it, `doctor.py` examines it, and
`loader.py` reads its images.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol


class Skipped(NamedTuple):
    """A file that was left out.

    Attributes:
      path: the file, or the position of the image in its container.
      why: the reason, in one sentence without the path.
    """

    path: str
    why: str


class Stored(Protocol):
    """An image file inside a container, such as a tar archive or a prepared TFDS data set.

    A data set may use it wherever it may use the `Path` of an image. An implementation is a small
    frozen dataclass that holds the position and no open file, so that it can be hashed, compared
    and pickled for another process. Equal instances must have equal bytes, also if the container
    has changed (`tl.data.tfds.Record` holds a version of its files), because content hashes are
    cached by instance. Its `str` is unique within a data set and readable, because error messages
    and reports show it. An attribute `sha256`, in hex, spares reading the bytes for their hash.

    Example:
      >>> import dataclasses
      >>> @dataclasses.dataclass(frozen=True)
      ... class Black:
      ...     name: str
      ...     suffix: str = ".ppm"
      ...     def __str__(self) -> str:
      ...         return f"memory/{self.name}"
      ...     def read_bytes(self) -> bytes:
      ...         return b"P6 2 2 255 " + bytes(12)
      >>> source: Stored = Black("1.ppm")
    """

    @property
    def name(self) -> str:
        """The last part of the file name, as `Path.name`."""
        ...

    @property
    def suffix(self) -> str:
        """The ending of the file name, as `Path.suffix`."""
        ...

    def read_bytes(self) -> bytes:
        """The encoded image file, as `Path.read_bytes`.

        Raises:
          OSError: the container is missing or damaged.
        """
        ...

    def __str__(self) -> str: ...

    def __hash__(self) -> int: ...


Source = Path | Stored
"""The location of one image file: a file of its own, or a file inside a container."""


@dataclass(frozen=True, slots=True)
class WithWhite:
    """An image file together with the value of white in its 16-bit pixels, a `Stored`.

    `decode` reads the value. Content hashes are those of `source`, so that splits do not change.

    Attributes:
      source: the image file.
      white: the value of white, in [1, 65535].
    """

    source: Source
    white: int

    def __post_init__(self) -> None:
        if not 1 <= self.white <= 65535:
            raise ValueError(
                "`white` must be in [1, 65535], or 0 for the value that a file states: got "
                f"{self.white}"
            )

    @property
    def name(self) -> str:
        """The last part of the file name."""
        return self.source.name

    @property
    def stem(self) -> str:
        """The last part of the file name without its ending."""
        return self.source.name.removesuffix(self.source.suffix)

    @property
    def suffix(self) -> str:
        """The ending of the file name."""
        return self.source.suffix

    def read_bytes(self) -> bytes:
        """The encoded image file."""
        return self.source.read_bytes()

    def __str__(self) -> str:
        return str(self.source)


def with_white(source: Source, white: int) -> Source:
    """An image file with the value of white in 16-bit pixels; 0 stands for the file's own.

    Raises:
      ValueError: `white` is outside [0, 65535].
    """
    return WithWhite(file_of(source), white) if white else file_of(source)


def file_of(source: Source) -> Source:
    """The image file without the value of white."""
    return source.source if isinstance(source, WithWhite) else source


def white_of(source: Source) -> int:
    """The value of white that was given for the 16-bit pixels of an image file; 0 if none was."""
    return source.white if isinstance(source, WithWhite) else 0


class Split(Enum):
    """The rule that divides a data set without an official test part."""

    CONTENT = "content"
    """By the SHA-256 of each file, which needs no seed and gives the same parts everywhere."""

    STRATIFIED = "stratified"
    """At random with the exact proportion of every stratum, comparable with published splits."""


# Names of official parts in folders, columns and TFDS, in lower case -> `Example.part`.
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True, slots=True)
class Example:
    """One labeled image.

    Attributes:
      path: the image file.
      label: index into `DataSpec.classes`.
      stratum: group whose proportion a stratified split keeps, in addition to the label; "" for the
        label alone.
      part: the official part, "train", "validation" or "test"; "" if the data set has none.
      confidence: probability in (0, 1] that the label is correct, as stated by its annotator.
    """

    path: Source
    label: int
    stratum: str = ""
    part: str = ""
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A labeled data set, with the information that a correct evaluation on it needs.

    Attributes:
      name: the name on the command line, e.g. "elpv" or "folder:pets".
      examples: the images, in a fixed order.
      classes: class names; `Example.label` indexes them.
      source: the origin of the images, as text.
      license: the license of the images, as text; "unknown" if none is stated.
      split: the rule that divides the data set.
      whole: whether to resize the whole image to the network's square instead of using the center
        crop of the weights. The label describes the whole image, and the crop cuts off animals at
        the edge (cats_vs_dogs, 250 test images: MobileNetV2 99.2 % whole and 96.8 % cropped, VGG-16
        98.8 and 96.8 %, EfficientNet-Lite0 99.2 and 99.2 %).
      references: published accuracies to compare with, as (source, accuracy in [0, 1]).
      skipped: files next to the images that were left out.
      remarks: what a user should know about the way the files were read, such as columns that are
        not used; one sentence each. Commands print them and write them to `result.json`.
      white: value of white in images of 16 bits per channel that was given, see `with_white`; 0 if
        none was.
    """

    name: str
    examples: tuple[Example, ...]
    classes: tuple[str, ...]
    source: str
    license: str
    split: Split = Split.CONTENT
    whole: bool = True
    references: tuple[tuple[str, float], ...] = ()
    skipped: tuple[Skipped, ...] = ()
    remarks: tuple[str, ...] = ()
    white: int = 0
