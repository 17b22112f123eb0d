"""The columns of a table: which of them are read, under which names, and which are not used.

A column is read if its meaning is certain. A column that looks like parts, weights, groups or
further labels but is not read is the subject of a remark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tl.data.spec import PARTS
from tl.labels.names import listed, normalize, shown

# The first two are required.
COLUMNS = ("path", "label", "split", "stratum", "confidence")

# Column -> names with the same meaning, used if the column itself is absent. Names in a later group
# are used only if there is none of an earlier group. Compared without case, spaces and punctuation.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "path": (
        "filename file filepath image imagepath imagefile imagefilename imagename img imgpath "
        "imgname imgfile fname paths files filenames filepaths images imagepaths imagenames",
        "name id imageid imgid",
    ),
    "label": (
        "class category target labels classname categoryname labelname targetname classlabel",
        "classid categoryid labelid targetid classindex labelindex classidx labelidx",
    ),
}
# Names of columns that may hold parts, used if every value is in `PARTS`.
_PART_NAMES = (
    "set subset partition phase part usage fold folds datasplit dataset datasetsplit splits "
    "splitname setname"
).split()
# Boolean column -> the part of its true images; the others are training images.
_PART_FLAGS = {
    "isvalid": "validation",
    "isval": "validation",
    "isvalidation": "validation",
    "istest": "test",
}
_BOOLEANS = {
    **dict.fromkeys(("true", "1", "1.0", "1,0", "yes", "t", "y"), True),
    **dict.fromkeys(("false", "0", "0.0", "0,0", "no", "f", "n"), False),
}

_ZERO_ONE = frozenset(("0", "1", "0.0", "1.0", "0,0", "1,0"))
# Names of columns that are not used -> the end of the remark.
_UNUSED = {
    f"{' '.join(_PART_NAMES)} {' '.join(_PART_FLAGS)} valid validation val train test training "
    "istrain istraining istrainingimage kfold cvfold": (
        "parts are read from a column split with train, validation or test"
    ),
    "weight weights sampleweight instanceweight importance score probability prob certainty": (
        "the probability that a label is correct is read from a column confidence"
    ),
    "group groups groupid patient patientid subject subjectid person personid video videoid scene "
    "sceneid site session sessionid sequence sequenceid": (
        "images of one group may be in different parts; write parts to a column split"
    ),
    f"{' '.join(SYNONYMS['label'])} superclass supercategory subclass tags multilabel "
    "secondarylabel coarselabel finelabel": "each image has one label",
    "bbox box xmin ymin xmax ymax x1 y1 x2 y2 roi": (
        "whole images are read; crop them if the label is of a box"
    ),
}


def recognized(name: str) -> bool:
    """Whether the name of a column is that of `path` or `label`, or one of their synonyms."""
    key = _key(name)
    return any(key == column or key in _words(groups) for column, groups in SYNONYMS.items())


def select_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], path: Path
) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """The columns that are read.

    Args:
      header: the names of the columns; "" for a column without a name, which is not used.
      rows: the cells of each line, as many as there are columns.
      path: the file, for messages.

    Returns:
      `(cells, remarks)`: name in `COLUMNS` -> the cell of each line, without surrounding space
      except in `label`; and sentences on columns that are read under another name or not used. The
      column `split` has a part of `DataSpec` in each line if it was read from another column.

    Raises:
      ValueError: a required column is missing or not unique, or a name occurs twice.
    """
    _check_repeated(header, path)
    keys = [_key(name) for name in header]
    chosen = {column: keys.index(column) for column in COLUMNS if column in keys}
    remarks = []
    renamed = {
        column: i for column in SYNONYMS if (i := _synonym(column, header, path)) is not None
    }
    chosen |= renamed
    if missing := [column for column in SYNONYMS if column not in chosen]:
        present = ", ".join(shown(name, 20) for name in header[:6] if name) or "none"
        advice = ""
        if "path" in chosen and (flags := _flags(rows, header, set(chosen.values()))):
            advice = (
                f"; {listed(flags, length=24)} are 0 or 1, as with one column per class: write the "
                "name of the class of each image to a column label"
            )
        elif any(header):
            count = "one" if len(missing) == 1 else "two"
            advice = f"; rename {count} to {' and '.join(missing)}"
        raise ValueError(
            f"{path} has no column {' and no column '.join(map(repr, missing))}, expected path and "
            f"label in its first line; its columns: {present}{advice}"
        )
    if renamed:
        words = " and ".join(f"{shown(header[i])} as {column}" for column, i in renamed.items())
        remarks.append(f"the table has no column {' and no column '.join(renamed)}; read {words}")
    stripped = lambda i: [cell.strip() for cell in _column(rows, i)]
    cells = {name: stripped(i) for name, i in chosen.items()}
    cells["label"] = _column(rows, chosen["label"])
    used = set(chosen.values())
    if "split" not in chosen:
        candidates = {
            i: stripped(i)
            for i, key in enumerate(keys)
            if i not in used and (key in _PART_NAMES or key in _PART_FLAGS)
        }
        parts, sources = _parts(candidates, keys)
        if sources:
            if len(sources) > 1 and sources[0] in _named(keys):
                raise ValueError(
                    f"{path} has the columns {listed([header[i] for i in sources])} with parts, "
                    "expected one; name it split"
                )
            counts = ", ".join(f"{parts.count(p)} {p}" for p in dict.fromkeys(PARTS.values()))
            words = listed([header[i] for i in sources])
            remarks.append(f"the parts are read from {words}: {counts}")
            cells["split"] = parts
            used |= set(sources)
    like_parts = {
        i
        for i in range(len(keys))
        if i not in used and len({PARTS.get(cell.lower()) for cell in stripped(i)} - {None}) > 1
    }
    return cells, (*remarks, *_unused_remarks(header, keys, used, like_parts))


def _parts(
    candidates: Mapping[int, Sequence[str]], keys: Sequence[str]
) -> tuple[list[str], list[int]]:
    """The part of each line and the columns that state it; ([], []) if none certainly does."""
    named = [
        i
        for i in _named(keys)
        if i in candidates and candidates[i] and all(c.lower() in PARTS for c in candidates[i])
    ]
    if named:
        return [PARTS[cell.lower()] for cell in candidates[named[0]]], named
    flags = {
        i: [_BOOLEANS.get(cell.lower()) for cell in candidates[i]]
        for i, key in enumerate(keys)
        if key in _PART_FLAGS and i in candidates
    }
    flags = {i: values for i, values in flags.items() if values and None not in values}
    rows = list(zip(*flags.values(), strict=True))
    if not flags or any(sum(map(bool, row)) > 1 for row in rows):
        return [], []
    names = [_PART_FLAGS[keys[i]] for i in flags]
    parts = [next((n for n, v in zip(names, row, strict=True) if v), "train") for row in rows]
    return parts, list(flags)


def _flags(rows: Sequence[Sequence[str]], header: Sequence[str], used: set[int]) -> list[str]:
    """The names of several columns with nothing but 0 and 1, as with one column per class."""
    flags = [
        name
        for i, name in enumerate(header)
        if i not in used and rows and all(cell.strip() in _ZERO_ONE for cell in _column(rows, i))
    ]
    return flags if len(flags) > 1 else []


def _column(rows: Sequence[Sequence[str]], i: int) -> list[str]:
    return [row[i] for row in rows]


def _named(keys: Sequence[str]) -> list[int]:
    """The columns that have a name of `_PART_NAMES`."""
    return [i for i, key in enumerate(keys) if key in _PART_NAMES]


def _synonym(column: str, header: Sequence[str], path: Path) -> int | None:
    """The position of the column under another name; None if it is present or missing."""
    keys = [_key(name) for name in header]
    for group in () if column in keys else SYNONYMS[column]:
        matches = [i for i, key in enumerate(keys) if key in group.split()]
        if len(matches) > 1:
            raise ValueError(
                f"{path} has no column {column!r}, and {listed([header[i] for i in matches])} may "
                f"both be it, expected one; name it {column}"
            )
        if matches:
            return matches[0]
    return None


def _unused_remarks(
    header: Sequence[str], keys: Sequence[str], used: set[int], like_parts: set[int]
) -> tuple[str, ...]:
    """One sentence per kind of suspicious column; `like_parts` have names of parts as values."""
    remarks, mentioned = [], set(used)
    for words, end in _UNUSED.items():
        unused = [
            i
            for i, key in enumerate(keys)
            if i not in mentioned
            and (
                key in words.split()
                or ("label" in words and re.fullmatch(r"label\w*\d", key))
                or ("isvalid" in words and i in like_parts)
            )
        ]
        mentioned |= set(unused)
        if unused:
            names = listed([header[i] for i in unused])
            one = len(unused) == 1
            verb = ("column", "is") if one else ("columns", "are")
            remarks.append(f"the {verb[0]} {names} {verb[1]} not used: {end}")
    return tuple(remarks)


def _check_repeated(header: Sequence[str], path: Path) -> None:
    names = [normalize(name).lower() for name in header]
    for i, name in enumerate(names):
        if name and name in names[:i]:
            raise ValueError(
                f"{path} has the column {shown(header[i])} twice (columns {names.index(name) + 1} "
                f"and {i + 1}), expected each name once; remove or rename one"
            )


def _key(name: str) -> str:
    """The name of a column in lower case, letters and digits only: "Image Path" -> "imagepath"."""
    return re.sub(r"[\W_]+", "", normalize(name).lower())


def _words(groups: Sequence[str]) -> list[str]:
    return " ".join(groups).split()
