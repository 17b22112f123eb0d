"""Class tables: the names of the classes of a classifier, and the words that select them.

A class is selected by index (`281`), WordNet id (`n02123045`), name (`"tabby"`) or group
(`"any cat"`). The names and groups of ImageNet are data files next to this module; `from_names`
creates a table of other classes. This module reads no images and does not map the classes of one
data set to those of another; `tl.data.remap_labels` does that. `names.py` compares names.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import operator
import re
import unicodedata
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple, SupportsIndex

from tl.labels.names import normalize, number, shown
from tl.paths import ending, nearest

Groups = Mapping[str, tuple[int, ...]]
"""Name of a group, which begins with "any " -> indices of its classes."""


@dataclasses.dataclass(frozen=True)
class ClassEntry:
    """One class.

    Attributes:
      index: position in the logits.
      wnid: WordNet 3.0 id, `n` and eight digits; None for a class that is not in WordNet.
      names: all names of the class; the first is the displayed one.
      note: distinguishes the class from another with the same first name, e.g. "bird" for the crane
        that is not a machine; "" if that is not necessary.
    """

    index: int
    wnid: str | None
    names: tuple[str, ...]
    note: str = ""


class Target(NamedTuple):
    """The meaning of one word in a list of classes.

    Attributes:
      word: the word as typed.
      indices: the classes that it selects.
    """

    word: str
    indices: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """The classes of a classifier in the order of its logits.

    Attributes:
      name: name of the table for messages, e.g. "ImageNet".
      entries: the classes; entry i has index i.
      groups: name of a group -> indices of its classes.

    Raises:
      ValueError: the table is empty, the indices are not 0, 1, ..., or a group has an index outside
        the table.

    Example:
      >>> table = imagenet()
      >>> table.display(281), table.find("Tabby_cat"), table.find("n02123045"), table.find("281")
      ('tabby', (281,), (281,), (281,))
    """

    name: str
    entries: tuple[ClassEntry, ...]
    groups: Groups = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.entries:
            raise ValueError(f"the class table {self.name!r} is empty, expected at least one class")
        if [entry.index for entry in self.entries] != list(range(len(self.entries))):
            raise ValueError(
                f"the class table {self.name!r} must have the indices 0 to "
                f"{len(self.entries) - 1} in order"
            )
        for group, indices in self.groups.items():
            if not indices or not all(0 <= index < len(self.entries) for index in indices):
                raise ValueError(
                    f"the group {group!r} has {indices}, expected indices from 0 to "
                    f"{len(self.entries) - 1}"
                )

    def __len__(self) -> int:
        return len(self.entries)

    @functools.cached_property
    def display_names(self) -> tuple[str, ...]:
        """A unique short name per class: the first name, with note or index if classes share it."""
        firsts = [_fold(entry.names[0]) for entry in self.entries]
        times = collections.Counter(firsts)
        return tuple(
            f"{entry.names[0]} ({entry.note or entry.index})"
            if times[first] > 1
            else entry.names[0]
            for entry, first in zip(self.entries, firsts, strict=True)
        )

    def display(self, index: SupportsIndex) -> str:
        """The short name of a class, unique in this table.

        Raises:
          ValueError: `index` is not a class of this table.

        Example:
          >>> imagenet().display(134), imagenet().display(517)
          ('crane (bird)', 'crane (machine)')
        """
        return self.display_names[self._checked(operator.index(index))]

    def find(self, word: str | SupportsIndex) -> tuple[int, ...]:
        """The classes that a word selects: one class, or those of a group.

        Letter case is ignored, and punctuation counts as space. The first name of a class has
        precedence over a synonym of another class ("harp" does not select the harmonica). If
        several classes remain, the exact spelling decides. A number selects the class with exactly
        this name. Other strings of digits are an index, unless the name of any class is a number;
        an int is always an index. The prefix "any " of a group is optional if no class has the rest
        as its name.

        Args:
          word: an index, a WordNet id, a name, or the name of a group.

        Returns:
          Indices in ascending order.

        Raises:
          ValueError: the word is unknown (the message lists the nearest), ambiguous (the message
            lists the classes), or an index out of range.

        Example:
          >>> imagenet().find("any cat"), imagenet().find("cat") == imagenet().find("any cat")
          ((281, 282, 283, 284, 285), True)
          >>> imagenet().find("tabyb")
          Traceback (most recent call last):
          ValueError: unknown ImageNet class 'tabyb'; nearest: 'tabby', 'tray', 'abaya'
        """
        if not isinstance(word, str):
            return (self._checked(operator.index(word)),)
        stripped, folded = normalize(word), _fold(word)
        if number(stripped) is not None:
            return self._find_number(stripped)
        for level in self._named:
            matches = level.get(folded, ())
            if len(matches) > 1:
                exact = tuple(i for i in matches if stripped in self._exact[i])
                matches = exact if len(exact) == 1 else matches
            if len(matches) > 1:
                classes = ", ".join(f"{index} {self.display(index)!r}" for index in matches)
                raise ValueError(
                    f"{word!r} matches {len(matches)} {self._title} classes: {classes}; select one "
                    "by index, or by its name as written here"
                )
            if matches:
                return matches
        if stripped.lower() in self._by_wnid:
            return (self._by_wnid[stripped.lower()],)
        groups = {_fold(group): indices for group, indices in self.groups.items()}
        for group in (folded, f"any {folded}"):
            if group in groups:
                return tuple(sorted(groups[group]))
        is_wnid = re.fullmatch(r"n[0-9]{8}", stripped.lower()) and self._by_wnid
        names = [*(n for entry in self.entries for n in entry.names), *self.groups]
        choices = self._by_wnid if is_wnid else names
        hint = f"nearest: {nearest(stripped, choices)}"
        raise ValueError(f"unknown {self._title} class {shown(word)}; {hint}")

    def targets(self, words: str) -> list[Target]:
        """The classes that each word of a comma-separated list selects, in the order of the list.

        Args:
          words: words as in `find`, separated by commas. A class whose name has a comma is selected
            by index.

        Raises:
          ValueError: the list or one of its words is empty, or as `find`.

        Example:
          >>> imagenet().targets("tabby, any shark")
          [Target(word='tabby', indices=(281,)), Target(word='any shark', indices=(2, 3, 4))]
        """
        listed = [word.strip() for word in words.split(",")]
        if not all(listed):
            raise ValueError(
                f"empty word in the list {words!r}, expected {self._title} classes separated by "
                "commas"
            )
        return [Target(word, self.find(word)) for word in listed]

    def as_dict(self) -> dict[str, Any]:
        """The table as JSON-ready values to store with a classifier; `from_dict` is the inverse."""
        entries = [{"wnid": e.wnid, "names": list(e.names), "note": e.note} for e in self.entries]
        return {
            "name": self.name,
            "classes": entries,
            "groups": {g: list(i) for g, i in self.groups.items()},
        }

    @property
    def _title(self) -> str:
        """The name for messages: its end if it is long, such as the path of a data set."""
        return ending(self.name, 40)

    @functools.cached_property
    def has_numbers(self) -> bool:
        """Whether the name of any class is a number, so that digits in a data set are a name."""
        return any(number(name) is not None for entry in self.entries for name in entry.names)

    def _find_number(self, word: str) -> tuple[int, ...]:
        """The class whose name is this number in this spelling, else the index."""
        matches = tuple(i for i, names in enumerate(self._exact) if word in names)
        if matches:
            return matches
        if re.fullmatch(r"[+-]?\d+", word) and not self.has_numbers:
            return (self._checked(int(word)),)
        names = [name for entry in self.entries for name in entry.names]
        reason = "names of classes are numbers, so that no number is an index; "
        hint = f"{reason if self.has_numbers else ''}nearest: {nearest(word, names)}"
        raise ValueError(f"unknown {self._title} class {shown(word)}; {hint}")

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self.entries):
            raise ValueError(
                f"{self._title} has no class {index}; indices go from 0 to {len(self.entries) - 1}"
            )
        return index

    @functools.cached_property
    def _exact(self) -> tuple[frozenset[str], ...]:
        """The names of each class in NFC."""
        return tuple(frozenset(map(normalize, entry.names)) for entry in self.entries)

    @functools.cached_property
    def _named(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """Folded name -> indices: for display and first names, and then for all names."""
        firsts: dict[str, tuple[int, ...]] = {}
        for entry, displayed in zip(self.entries, self.display_names, strict=True):
            for name in {_fold(entry.names[0]), _fold(displayed)}:
                firsts[name] = (*firsts.get(name, ()), entry.index)
        every: dict[str, tuple[int, ...]] = {}
        for entry in self.entries:
            for name in {_fold(name) for name in entry.names}:
                every[name] = (*every.get(name, ()), entry.index)
        return firsts, every

    @functools.cached_property
    def _by_wnid(self) -> dict[str, int]:
        return {entry.wnid: entry.index for entry in self.entries if entry.wnid is not None}


def from_names(
    names: Sequence[str], *, name: str = "own", groups: Groups | None = None
) -> ClassTable:
    """A class table from names.

    Args:
      names: one name per class, all different in NFC, in the order of the logits.
      name: name of the table for messages.
      groups: name of a group, which begins with "any " -> indices of its classes.

    Raises:
      ValueError: `names` is empty, or a name in it is empty or repeated.

    Example:
      >>> from_names(["cracked", "whole"]).find("Whole")
      (1,)
    """
    names = [normalize(n) for n in names]
    wrong = [n for n, times in collections.Counter(names).items() if times > 1 or not n]
    if wrong:
        raise ValueError(
            f"class names must be distinct and not empty: got {wrong[0]!r} among {len(names)} names"
        )
    return ClassTable(
        name, tuple(ClassEntry(i, None, (n,)) for i, n in enumerate(names)), dict(groups or {})
    )


def from_dict(stored: Mapping[str, Any]) -> ClassTable:
    """The inverse of `ClassTable.as_dict`.

    Raises:
      ValueError: `stored` is not a class table.

    Example:
      >>> from_dict(pets().as_dict()) == pets()
      True
    """
    try:
        entries = tuple(
            ClassEntry(i, entry["wnid"], tuple(entry["names"]), entry.get("note", ""))
            for i, entry in enumerate(stored["classes"])
        )
        return ClassTable(
            stored["name"], entries, {g: tuple(i) for g, i in stored["groups"].items()}
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"not a stored class table ({error!r}), expected a result of ClassTable.as_dict"
        ) from error


@functools.cache
def imagenet() -> ClassTable:
    """The 1000 classes of ImageNet (ILSVRC2012).

    The order is by WordNet id, as in Keras, timm and torchvision.

    Reference: Russakovsky et al. 2015, arXiv:1409.0575. Names, ids and groups: WordNet 3.0
      (Fellbaum 1998).
    """
    entries = tuple(
        ClassEntry(int(index), wnid, tuple(names.split(", ")), *note)
        for index, wnid, names, *note in _rows("imagenet.tsv")
    )
    groups = {name: _spans(indices) for name, _, indices in _rows("imagenet_groups.tsv")}
    return ClassTable("ImageNet", entries, groups)


@functools.cache
def pets() -> ClassTable:
    """The 37 breeds of the Oxford-IIIT Pet data set, 12 of cats and 25 of dogs.

    They are in the order of the authors, who capitalize the names of cat breeds but not those of
    dog breeds.

    Reference: Parkhi et al. 2012, "Cats and Dogs".
    """
    species = {"any cat": str.isupper, "any dog": str.islower}
    groups = {
        g: tuple(i for i, n in enumerate(_BREEDS) if test(n[0])) for g, test in species.items()
    }
    return from_names(
        [breed.replace("_", " ") for breed in _BREEDS], name="Oxford-IIIT Pet", groups=groups
    )


@functools.cache
def cats_vs_dogs() -> ClassTable:
    """The two classes of Kaggle's Dogs vs. Cats, in the order of TFDS: cat 0, dog 1."""
    return from_names(["cat", "dog"], name="cats vs. dogs")


def known_groups(names: Sequence[str]) -> Groups:
    """The groups "any cat" and "any dog", if all class names are breeds of `pets`; otherwise {}.

    Example:
      >>> known_groups(["Bengal", "pug", "Siamese"])
      {'any cat': (0, 2), 'any dog': (1,)}
    """
    member = {_fold(breed): "any cat" if breed[0].isupper() else "any dog" for breed in _BREEDS}
    if not all(_fold(name) in member for name in names):
        return {}
    groups = {
        group: tuple(i for i, name in enumerate(names) if member[_fold(name)] == group)
        for group in ("any cat", "any dog")
    }
    return {group: indices for group, indices in groups.items() if indices}


_BREEDS = """
    Abyssinian american_bulldog american_pit_bull_terrier basset_hound beagle Bengal Birman Bombay
    boxer British_Shorthair chihuahua Egyptian_Mau english_cocker_spaniel english_setter
    german_shorthaired great_pyrenees havanese japanese_chin keeshond leonberger Maine_Coon
    miniature_pinscher newfoundland Persian pomeranian pug Ragdoll Russian_Blue saint_bernard
    samoyed scottish_terrier shiba_inu Siamese Sphynx staffordshire_bull_terrier wheaten_terrier
    yorkshire_terrier
""".split()


def _fold(name: str) -> str:
    """The name in lower case, with single spaces instead of punctuation.

    Combining marks, symbols, "#", "%" and a sign at either end ("-1", "A-", "C++") are kept.
    """
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()
    keep = lambda i, c: (
        c.isalnum()
        or unicodedata.category(c)[0] in "MS"
        or c in "#%"
        or (c == "-" and i in (0, len(text) - 1))
    )
    return " ".join("".join(c if keep(i, c) else " " for i, c in enumerate(text)).split()) or text


def _rows(file: str) -> list[list[str]]:
    text = resources.files("tl.labels").joinpath(file).read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines() if not line.startswith("#")]


def _spans(text: str) -> tuple[int, ...]:
    """`"7-9,20"` -> `(7, 8, 9, 20)`."""
    ends = [[int(end) for end in span.split("-")] for span in text.split(",")]
    return tuple(index for end in ends for index in range(end[0], end[-1] + 1))
