"""What a data set is: its pictures, labels, classes, origin and licence.

Data and no logic: making one opens no file. The functions that make a `DataSpec` are in `folder.py`, `table.py`,
`tfds.py` and `packaged.py`; `split.py` divides one; `doctor.py` examines one; `loader.py` reads the pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Skipped(NamedTuple):
    """A file that was left out, and the one sentence that says why."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Record:
    """A picture inside a set that TensorFlow Datasets prepared; it stands wherever a picture's `Path` may.

    It holds no open file, so it can be hashed, compared and sent to another process; `str` of it is unique and readable.

    Attributes:
      directory: the prepared set, e.g. "/data/cats_vs_dogs/4.0.1".
      split: its split there, e.g. "train".
      index: position in that split.
      filename: the name the picture was published under, e.g. "PetImages/Cat/133.jpg".
    """

    directory: str
    split: str
    index: int
    filename: str

    def __str__(self) -> str:
        return f"{self.directory}/{self.split}/{self.index}/{self.filename}"

    @property
    def name(self) -> str:
        """The last part of the file's name, as `Path.name`."""
        return PurePosixPath(self.filename).name

    @property
    def suffix(self) -> str:
        """The ending of the file's name, as `Path.suffix`."""
        return PurePosixPath(self.filename).suffix

    def read_bytes(self) -> bytes:
        """The picture's file as it was published, still encoded; as `Path.read_bytes`.

        Raises:
          OSError: the prepared set is not there any more, or damaged.
        """
        from tl.data.tfds import read_bytes  # here, for it builds on this module

        return read_bytes(self)


Source = Path | Record
"""Where one picture's file is."""


class Split(Enum):
    """How the set asks to be divided where it has no test part of its own."""

    CONTENT = "content"  # by SHA-256 of each file: needs no seed, the same everywhere
    STRATIFIED = "stratified"  # at random, every stratum in its exact share: for comparison with published splits


# what folders, columns and TFDS call an official part -> `Example.part`
PARTS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled picture.

    Attributes:
      path: the picture's file.
      label: index into `DataSpec.classes`.
      stratum: what a stratified split keeps in proportion beside the label; "" is the label alone.
      part: "train", "validation" or "test" where the set's makers put it there; "" where they left that to its user.
      confidence: how sure its labeller was, a probability in (0, 1].
    """

    path: Source
    label: int
    stratum: str = ""
    part: str = ""
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class DataSpec:
    """A labelled set of pictures, and what a user must know to use it honestly.

    Attributes:
      name: the word that names it on the command line, e.g. "elpv" or "folder:pets".
      examples: its pictures, in a fixed order.
      classes: class names; `Example.label` indexes them.
      source: where the pictures come from, in words.
      licence: the terms they are under, in words; "unknown" when nobody said.
      split: how to divide it.
      whole: show the network the whole picture, squashed to its square, and not the centre crop of its weights: a label
        speaks of the whole picture, and the crop cuts off animals at the edge (on cats_vs_dogs, 250 test pictures:
        MobileNetV2 99.2 % whole and 96.8 % cropped, VGG-16 98.8 and 96.8 %, EfficientNet-Lite0 99.2 and 99.2 %).
      references: published accuracies to stand beside ours, (whose, share in [0, 1]).
      skipped: files found beside the pictures and left out.
    """

    name: str
    examples: tuple[Example, ...]
    classes: tuple[str, ...]
    source: str
    licence: str
    split: Split = Split.CONTENT
    whole: bool = True
    references: tuple[tuple[str, float], ...] = ()
    skipped: tuple[Skipped, ...] = ()
