"""Which files a user means by `cat.jpg,holiday/,more/*.png`, in an order that is the same on every machine.

It looks at names only: a file named outright is always taken, a file met in a folder or by a glob is taken when its
name ends like a picture's. Whether it *is* a picture is for `decode.py` to say.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tl.data.spec import Skipped
from tl.paths import nearest

SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".gif",
        ".webp",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
    )
)
_LITTER = frozenset(
    {"thumbs.db", "desktop.ini"}
)  # left by a file manager: ignored like hidden files, without a word


def find_images(words: str | Sequence[str]) -> tuple[tuple[Path, ...], tuple[Skipped, ...]]:
    """The pictures meant by files, folders (searched to the bottom) and globs.

    Args:
      words: one string, its parts separated by commas, or a sequence of such strings. A string that exists as it
        stands, commas or brackets included, is that file or folder.

    Returns:
      The paths (in the order of the words, sorted within a folder or glob, each file once), and the files met in a
      folder or by a glob whose names are not a picture's. Hidden files are passed over without a word.

    Raises:
      ValueError: a file, folder or glob that is not there, a folder without a picture, or no word at all.
    """
    paths: dict[str, Path] = {}
    skipped: dict[str, Skipped] = {}
    for word in _words(words):
        found, left_out = _one(word)
        paths |= {os.path.abspath(p): p for p in found if os.path.abspath(p) not in paths}
        skipped |= {s.path: s for s in left_out}
    if not paths:
        raise ValueError(
            f"no picture is named by {words!r}, wanted files, folders or globs separated by commas"
        )
    return tuple(paths.values()), tuple(
        s for k, s in skipped.items() if os.path.abspath(k) not in paths
    )


def pictures_under(folder: Path) -> tuple[list[Path], list[Skipped]]:
    """Every file below `folder`, links followed, sorted by path: those named like pictures, and the rest."""
    files, seen, closed = [], set(), []
    for here, folders, names in os.walk(folder, followlinks=True, onerror=closed.append):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else [f for f in folders if not _hidden(f)]
        files += [] if real in seen else [Path(here, n) for n in names if not _hidden(n)]
        seen.add(real)
    paths, skipped = _by_suffix(sorted(files))
    return paths, skipped + [
        Skipped(str(e.filename), f"the folder cannot be listed ({e.strerror})") for e in closed
    ]


def missing(path: Path) -> str:
    """The sentence for a path that is not there: how far it exists, and what lies beside it."""
    parent = path.parent
    while not os.path.isdir(parent) and parent != parent.parent:
        path, parent = parent, parent.parent
    names = (
        [p.name for p in parent.iterdir() if not _hidden(p.name)]
        if os.access(parent, os.R_OK)
        else []
    )
    beside = f"nearest there: {nearest(path.name, names)}" if names else "that folder is empty"
    return f"there is no {path.name!r} in {str(parent.absolute())!r}; {beside}"


def _words(words: str | Sequence[str]) -> Iterable[str]:
    for word in [words] if isinstance(words, str) else words:
        whole = os.path.lexists(Path(os.path.expanduser(word)))
        yield from filter(None, [word] if whole else (part.strip() for part in word.split(",")))


def _one(word: str) -> tuple[list[Path], list[Skipped]]:
    path = Path(os.path.expanduser(word))
    if os.path.isdir(path):
        paths, skipped = pictures_under(path)
        if not paths:
            other = (
                f"{len(skipped)} other files, e.g. {Path(skipped[0].path).name!r}"
                if skipped
                else "nothing else"
            )
            raise ValueError(
                f"no picture in the folder {word!r} ({other}), wanted files ending in {_endings()}"
            )
        return paths, skipped
    if os.path.lexists(path):
        return [path], []
    if not glob.has_magic(word):
        raise ValueError(
            f"{word!r} is not there, wanted a picture, a folder or a glob: {missing(path)}"
        )
    matches = sorted(Path(m) for m in glob.glob(str(path), recursive=True))
    paths, skipped = _by_suffix([m for m in matches if not m.is_dir()])
    for folder in (m for m in matches if m.is_dir()):
        more, left_out = pictures_under(folder)
        paths, skipped = paths + more, skipped + left_out
    if not paths:
        raise ValueError(
            f"the glob {word!r} matches {len(matches)} names and no picture, wanted one ({_endings()})"
        )
    return sorted(set(paths)), skipped


def _by_suffix(files: Iterable[Path]) -> tuple[list[Path], list[Skipped]]:
    paths: list[Path] = []
    skipped: list[Skipped] = []
    for file in files:
        if file.suffix.lower() in SUFFIXES:
            paths.append(file)
        else:
            why = (
                f"its name ends in {file.suffix!r}, wanted {_endings()}; name it outright to try it"
            )
            skipped.append(Skipped(str(file), why))
    return paths, skipped


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


def _endings() -> str:
    return ".jpg, .png, .gif, .webp, .bmp, .tif or .ppm"
