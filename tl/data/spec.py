"""What a data set is: its pictures, labels, classes, origin and licence.

Data and no logic: nothing here opens a file. The functions that make a `DataSpec` are `folder.py` and `packaged.py`;
`split.py` divides one; `loader.py` reads the pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple


class Skipped(NamedTuple):
    """A file that was left out, and the one sentence that says why."""

    path: str
    why: str


class Split(Enum):
    """How the set asks to be divided where it has no test part of its own."""

    CONTENT = "content"  # by SHA-256 of each file: needs no seed, the same everywhere
    STRATIFIED = "stratified"  # at random, every stratum in its exact share: for comparison with published splits


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled picture.

    Attributes:
      path: the picture's file.
      label: index into `DataSpec.classes`.
      stratum: what a stratified split keeps in proportion beside the label; "" is the label alone.
    """

    path: Path
    label: int
    stratum: str = ""


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
