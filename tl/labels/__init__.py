"""Class tables: what the numbers a classifier answers with are called, and how a user names them.

A class is named by index (`281`), WordNet id (`n02123045`), name (`"tabby"`) or group (`"any cat"`). The names of
ImageNet and its groups are data beside this file; `from_names` makes the table of a user's own classes. This module
does not map one data set's classes onto another's, and reads no pictures.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import operator
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple, SupportsIndex

from tl.paths import nearest

Groups = Mapping[str, tuple[int, ...]]
"""Name of a group -> indices of its classes; the name begins with "any "."""


@dataclasses.dataclass(frozen=True)
class ClassEntry:
    """One class.

    Attributes:
      index: its place in the logits.
      wnid: WordNet 3.0 id, `n` and eight digits, or None for a class that WordNet does not know.
      names: every name it answers to, the one to show first.
      note: tells it from a class of the same first name: "bird" for the crane that flies; else "".
    """

    index: int
    wnid: str | None
    names: tuple[str, ...]
    note: str = ""


class Target(NamedTuple):
    """What one word of a user's list means: the word as typed, and the class or classes it names."""

    word: str
    indices: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """The classes of a classifier in the order of its logits.

    Attributes:
      name: of the table, for messages: "ImageNet".
      entries: entry i has index i.
      groups: name, beginning with "any ", -> indices.

    Raises:
      ValueError: no class at all, indices that are not 0, 1, ..., or a group of an index that is not there.

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
            raise ValueError(f"the class table {self.name!r} is empty; expected at least one class")
        if [entry.index for entry in self.entries] != list(range(len(self.entries))):
            raise ValueError(
                f"the class table {self.name!r} needs indices 0 to {len(self.entries) - 1} in order"
            )
        for group, indices in self.groups.items():
            if not indices or not all(0 <= index < len(self.entries) for index in indices):
                raise ValueError(
                    f"group {group!r} has {indices}; expected indices from 0 to {len(self.entries) - 1}"
                )

    def __len__(self) -> int:
        return len(self.entries)

    @functools.cached_property
    def display_names(self) -> tuple[str, ...]:
        """One short name a class, all different: the first name, with its note where two classes share it."""
        firsts = [_fold(entry.names[0]) for entry in self.entries]
        times = collections.Counter(firsts)
        return tuple(
            f"{entry.names[0]} ({entry.note or entry.index})"
            if times[first] > 1
            else entry.names[0]
            for entry, first in zip(self.entries, firsts, strict=True)
        )

    def display(self, index: SupportsIndex) -> str:
        """The short name of one class, unique in this table.

        Raises:
          ValueError: `index` is not a class of this table.

        Example:
          >>> imagenet().display(134), imagenet().display(517)
          ('crane (bird)', 'crane (machine)')
        """
        return self.display_names[self._checked(operator.index(index))]

    def find(self, word: str | SupportsIndex) -> tuple[int, ...]:
        """The classes that a word names, one unless the word is a group.

        Letter case, and whether words are joined by " ", "_" or "-", does not matter. The first name of a class beats
        another class's synonym ("harp" is no harmonica); where two classes remain, the exact spelling decides. A
        string of digits is an index unless a class is so called; an int is always an index. The "any " of a group may
        be left out where no class has that name.

        Args:
          word: an index, a WordNet id, a name, or a group.

        Returns:
          Indices in ascending order.

        Raises:
          ValueError: an unknown word (the message lists the nearest), an ambiguous one (it lists the classes), or an
            index out of range.

        Example:
          >>> imagenet().find("any cat"), imagenet().find("cat") == imagenet().find("any cat")
          ((281, 282, 283, 284, 285), True)
          >>> imagenet().find("tabyb")
          Traceback (most recent call last):
          ValueError: unknown ImageNet class 'tabyb'; nearest: 'tabby', 'tray', 'abaya'
        """
        if not isinstance(word, str):
            return (self._checked(operator.index(word)),)
        asked, folded = word.strip(), _fold(word)
        for level in self._named:
            matches = level.get(folded, ())
            if len(matches) > 1:
                exact = tuple(index for index in matches if asked in self.entries[index].names)
                matches = exact if len(exact) == 1 else matches
            if len(matches) > 1:
                classes = ", ".join(f"{index} {self.display(index)!r}" for index in matches)
                raise ValueError(
                    f"{word!r} names {len(matches)} {self.name} classes: {classes}; say which by index"
                )
            if matches:
                return matches
        if re.fullmatch(r"[+-]?[0-9]+", asked):
            return (self._checked(int(asked)),)
        if asked.lower() in self._by_wnid:
            return (self._by_wnid[asked.lower()],)
        groups = {_fold(group): indices for group, indices in self.groups.items()}
        for group in (folded, f"any {folded}"):
            if group in groups:
                return tuple(sorted(groups[group]))
        is_wnid = re.fullmatch(r"n[0-9]{8}", asked.lower()) and self._by_wnid
        known = (
            self._by_wnid
            if is_wnid
            else [*(n for entry in self.entries for n in entry.names), *self.groups]
        )
        raise ValueError(f"unknown {self.name} class {word!r}; nearest: {nearest(asked, known)}")

    def targets(self, words: str) -> list[Target]:
        """What a comma-separated list names, in the order given.

        Args:
          words: words as `find` takes them, separated by commas; a name that itself has a comma goes by index.

        Raises:
          ValueError: an empty list, an empty word in it, or a word that `find` rejects.

        Example:
          >>> imagenet().targets("tabby, any shark")
          [Target(word='tabby', indices=(281,)), Target(word='any shark', indices=(2, 3, 4))]
        """
        listed = [word.strip() for word in words.split(",")]
        if not all(listed):
            raise ValueError(
                f"empty word in the list {words!r}; expected {self.name} classes, comma-separated"
            )
        return [Target(word, self.find(word)) for word in listed]

    def as_dict(self) -> dict[str, Any]:
        """This table as plain JSON values, to be stored with a classifier; `from_dict` is the inverse."""
        entries = [{"wnid": e.wnid, "names": list(e.names), "note": e.note} for e in self.entries]
        return {
            "name": self.name,
            "classes": entries,
            "groups": {g: list(i) for g, i in self.groups.items()},
        }

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self.entries):
            raise ValueError(
                f"{self.name} has no class {index}; indices go from 0 to {len(self.entries) - 1}"
            )
        return index

    @functools.cached_property
    def _named(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """Folded name -> indices: display names and first names, then all names."""
        firsts: dict[str, tuple[int, ...]] = {}
        for entry, shown in zip(self.entries, self.display_names, strict=True):
            for name in {_fold(entry.names[0]), _fold(shown)}:
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
    """The table of a user's own classes, in the order of the logits.

    Args:
      names: one name a class, all different.
      name: of the table, for messages.
      groups: "any ..." -> indices, if there are any.

    Raises:
      ValueError: no name, an empty one, or the same name twice.

    Example:
      >>> from_names(["cracked", "whole"]).find("Whole")
      (1,)
    """
    names = [n.strip() for n in names]
    wrong = [n for n, times in collections.Counter(names).items() if times > 1 or not n]
    if wrong:
        raise ValueError(
            f"class names must differ and not be empty; got {wrong[0]!r} among {len(names)} names"
        )
    return ClassTable(
        name, tuple(ClassEntry(i, None, (n,)) for i, n in enumerate(names)), dict(groups or {})
    )


def from_dict(stored: Mapping[str, Any]) -> ClassTable:
    """The table that `ClassTable.as_dict` stored.

    Raises:
      ValueError: `stored` lacks a key or holds no table.

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
            f"no stored class table ({error!r}); expected what ClassTable.as_dict wrote"
        ) from error


@functools.cache
def imagenet() -> ClassTable:
    """ImageNet's 1000 classes (ILSVRC2012), by ascending WordNet id as in Keras, timm and torchvision.

    Reference:
      Russakovsky et al., 2015, arXiv 1409.0575; names, ids and groups from WordNet 3.0 (Fellbaum, 1998).
    """
    entries = tuple(
        ClassEntry(int(index), wnid, tuple(names.split(", ")), *note)
        for index, wnid, names, *note in _rows("imagenet.tsv")
    )
    groups = {name: _spans(indices) for name, _, indices in _rows("imagenet_groups.tsv")}
    return ClassTable("ImageNet", entries, groups)


@functools.cache
def pets() -> ClassTable:
    """The 37 breeds of the Oxford-IIIT Pet data set, 12 of cats and 25 of dogs, in its authors' order.

    Reference:
      Parkhi et al., 2012, "Cats and Dogs". A capital letter starts a cat breed's name there, a small one a dog breed's.
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
    """The two classes of Kaggle's Dogs vs. Cats, numbered as TensorFlow Datasets numbers them: cat 0, dog 1."""
    return from_names(["cat", "dog"], name="cats vs. dogs")


def known_groups(names: Sequence[str]) -> Groups:
    """The groups of a user's own classes, where every class is a pet breed that `pets` knows: "any cat", "any dog".

    Example:
      >>> known_groups(["Bengal", "pug", "Siamese"])
      {'any cat': (0, 2), 'any dog': (1,)}
    """
    member = {_fold(breed): "any cat" if breed[0].isupper() else "any dog" for breed in _BREEDS}
    if not all(_fold(name) in member for name in names):
        return {}
    found = {
        group: tuple(i for i, name in enumerate(names) if member[_fold(name)] == group)
        for group in ("any cat", "any dog")
    }
    return {group: indices for group, indices in found.items() if indices}


_BREEDS = (
    "Abyssinian american_bulldog american_pit_bull_terrier basset_hound beagle Bengal Birman Bombay boxer "
    "British_Shorthair chihuahua Egyptian_Mau english_cocker_spaniel english_setter german_shorthaired great_pyrenees "
    "havanese japanese_chin keeshond leonberger Maine_Coon miniature_pinscher newfoundland Persian pomeranian pug "
    "Ragdoll Russian_Blue saint_bernard samoyed scottish_terrier shiba_inu Siamese Sphynx staffordshire_bull_terrier "
    "wheaten_terrier yorkshire_terrier"
).split()


def _fold(name: str) -> str:
    """The name without what does not distinguish names: letter case, and all but letters and digits."""
    return re.sub(r"[\W_]+", " ", name.casefold()).strip() or name.strip()


def _rows(file: str) -> list[list[str]]:
    text = resources.files("tl.labels").joinpath(file).read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines() if not line.startswith("#")]


def _spans(text: str) -> tuple[int, ...]:
    """`"7-9,20"` -> `(7, 8, 9, 20)`."""
    ends = [[int(end) for end in span.split("-")] for span in text.split(",")]
    return tuple(index for end in ends for index in range(end[0], end[-1] + 1))
