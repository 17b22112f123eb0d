"""Comparison of class names: Unicode forms, numbers, and similar names.

Class names are compared in Unicode's form NFC and without surrounding space. Names that differ in
letter case, inner space or invisible characters remain different classes, and `lookalikes` lists
them. This module knows no data set and no class table.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from decimal import Decimal

from tl.paths import printable

# Characters of a name in an error or remark; chosen, not tuned.
_LENGTH = 40
# A name that was copied or downloaded again: "cat (1)", "cat - Copy".
_COPY = re.compile(r"(.+?) ?(\(\d+\)|- copy( \(\d+\))?)", re.IGNORECASE)


def normalize(name: str) -> str:
    """The name in Unicode's form NFC, without surrounding space.

    A composed letter (NFC, as most keyboards write it) and a letter with a combining mark (NFD, as
    in file names of macOS) become equal.

    Example:
      >>> normalize("cafe\\u0301 ") == "caf\\u00e9"
      True
    """
    return unicodedata.normalize("NFC", name).strip().strip("\ufeff\u200b").strip()


def number(name: str) -> Decimal | None:
    """The value of a name that is a decimal number, or None.

    The separator is a point or a comma. A number with an exponent is not accepted, because "12e5"
    is more often an identifier.

    Example:
      >>> number("01") == number("1,0") == 1, number("1e3"), number("7a")
      (True, None, None)
    """
    word = name.strip()
    if not re.fullmatch(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)", word):
        return None
    return Decimal(word.replace(",", "."))


def equal_numbers(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of different names that are the same number, such as "1", "1.0" and "01".

    Example:
      >>> equal_numbers(["1", "2", "cat", "01", "1.0"])
      [('1', '01', '1.0')]
    """
    return _groups((name, number(name)) for name in names)


def lookalikes(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of different names that a reader takes for one name.

    They differ in letter case, spaces, underscores, hyphens and points between letters, invisible
    characters or the width of letters.

    Example:
      >>> lookalikes(["cat", "dog", "Cat", "big dog", "big  dog", "-1", "1"])
      [('cat', 'Cat'), ('big dog', 'big  dog')]
    """
    return _groups((name, _skeleton(name)) for name in names)


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Checks the class names of a data set.

    Args:
      names: names as they are written, such as those of folders, without repetition.

    Returns:
      One sentence if some names are `lookalikes`, and one if some look like copies.

    Raises:
      ValueError: two names are equal after `normalize`, or are the same number.

    Example:
      >>> check_names(["cat", "Cat"])  # doctest: +ELLIPSIS
      ("the classes 'cat' and 'Cat' differ only in letter case, space, punctuation or ...",)
    """
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(normalize(name), name)
        if other != name:
            nfc = unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", name)
            form = "their Unicode form" if nfc else "surrounding space"
            raise ValueError(
                f"the classes {other!a} and {name!a} differ only in {form}, expected different "
                "names; merge them or rename one"
            )
    if groups := equal_numbers(names):
        raise ValueError(
            f"the classes {listed(groups[0])} are the same number, expected one spelling; merge "
            "them or rename one"
        )
    copies = [name for name in first if (match := _COPY.fullmatch(name)) and match[1] in first]
    remarks = []
    if copies:
        remarks.append(
            f"possible copies of other classes, which stay classes: {listed(copies)}; merge them "
            "if they are"
        )
    if not (groups := lookalikes(first)):
        return tuple(remarks)
    more = f" ({len(groups) - 1} more groups)" if len(groups) > 1 else ""
    return (
        *remarks,
        f"the classes {listed(groups[0], length=24)}{more} differ only in letter case, space, "
        "punctuation or width and stay different classes; rename one to merge them",
    )


def shown(text: str, length: int = _LENGTH) -> str:
    """The text in quotes, cut to `length` characters, for a message. Backslashes are not doubled.

    Example:
      >>> shown("cat"), shown("x" * 50, 5)
      ("'cat'", "'xxxxx...'")
    """
    text = printable(text)
    return repr(text if len(text) <= length else f"{text[:length]}...").replace("\\\\", "\\")


def counted(n: int, noun: str) -> str:
    """A number and a noun, for a message.

    Example:
      >>> counted(1, "image"), counted(2, "image")
      ('1 image', '2 images')
    """
    return f"{n} {noun}{'' if n == 1 else 's'}"


def path_end(path: str, length: int = 60) -> str:
    """The end of a path in quotes, at most `length` characters, for a message.

    Example:
      >>> path_end("/data/pets/cat", 8)
      "'...pets/cat'"
    """
    return shown(path if len(path) <= length else f"...{path[-length:]}", length + 3)


def listed(names: Iterable[str], most: int = 2, length: int = _LENGTH) -> str:
    """The first names in quotes, joined by "and" or commas, with the number of the others.

    Args:
      names: at least one.
      most: number of names that are listed.
      length: number of characters after which a name is cut.

    Example:
      >>> listed(["1"]), listed(["1", "2"]), listed(["1", "2", "3"])
      ("'1'", "'1' and '2'", "'1', '2' and 1 more")
    """
    words = [shown(name, length) for name in names]
    if len(words) <= most:
        return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
    return f"{', '.join(words[:most])} and {len(words) - most} more"


def _skeleton(name: str) -> str:
    """The name in lower case and normal width, with single spaces, without invisible characters."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return " ".join(re.sub(r"_|(?<=\w)[-.]+(?=[^\W\d])|(?<=\w)\.+$", " ", text).split())


def _groups(keyed: Iterable[tuple[str, Hashable]]) -> list[tuple[str, ...]]:
    """Groups of two or more different names with equal keys other than None."""
    groups: dict[Hashable, dict[str, None]] = defaultdict(dict)
    for name, key in keyed:
        groups[key][name] = None
    return [tuple(group) for key, group in groups.items() if key is not None and len(group) > 1]
