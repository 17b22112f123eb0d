"""Files as people have them: generators of the situations that users report.

A situation makes small files in a folder and states what is right: what is read from them, or the
sentence that refuses them. The tests in `test_wild_*.py` go through the tables at the end of each
section. To add a situation, write a function `make(folder) -> word` and add a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Situation(NamedTuple):
    """Files, and what is right.

    Attributes:
      name: the situation, unique within its section.
      make: writes the files into an empty folder and returns what a user would type: a path, or a
        word such as "folder:DIR".
      refused: regular expression that the one-sentence error matches; "" if the files are read.
      remark: regular expression that one remark matches; "" if there must be no remark.
      right: section-specific values, such as the classes and the number of images in each part.
    """

    name: str
    make: Callable[[Path], Any]
    refused: str = ""
    remark: str = ""
    right: Mapping[str, Any] = {}


# ---- weights files -------------------------------------------------------------------------------

WEIGHTS: tuple[Situation, ...] = ()


# ---- folders and names of classes ----------------------------------------------------------------

FOLDERS: tuple[Situation, ...] = ()


# ---- tables (CSV) --------------------------------------------------------------------------------

TABLES: tuple[Situation, ...] = ()


# ---- pixels and formats --------------------------------------------------------------------------

PIXELS: tuple[Situation, ...] = ()


# ---- terminal, disk and other surroundings -------------------------------------------------------

SURROUNDINGS: tuple[Situation, ...] = ()
