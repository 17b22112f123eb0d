"""Finds image files by a list of files, folders and globs, such as `cat.jpg,holiday/,more/*.png`.

The order of the files is the same on every machine. Only names are examined: a file that is listed
explicitly is always included, whereas a file in a folder or matched by a glob is included if it has
the suffix of an image. `decode.py` checks the content.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tl.data.spec import Skipped
from tl.paths import nearest

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .webp .bmp .tif .tiff .ppm .pgm .pbm .pnm".split()
)
_SUFFIX_EXAMPLES = ".jpg, .png, .gif, .webp, .bmp, .tif or .ppm"
# Files created by file managers, ignored like hidden files.
_IGNORED = frozenset({"thumbs.db", "desktop.ini"})


def find_images(words: str | Sequence[str]) -> tuple[tuple[Path, ...], tuple[Skipped, ...]]:
    """The image files in a list of files, folders (searched recursively) and globs.

    Args:
      words: one string with parts separated by commas, or a sequence of such strings. A string that
        is the path of an existing file or folder is not divided, even with commas or brackets.

    Returns:
      `(paths, skipped)`. The paths are in the order of the words, sorted within a folder or glob,
      and each file occurs once. Files in folders or matched by globs that lack the suffix of an
      image are skipped. Hidden files are ignored.

    Raises:
      ValueError: a file or folder does not exist, a folder or glob has no image, or `words` is
        empty.
    """
    paths: dict[str, Path] = {}
    skipped: dict[str, Skipped] = {}
    for word in _words(words):
        more_paths, more_skipped = _find_word(word)
        paths |= {os.path.abspath(p): p for p in more_paths if os.path.abspath(p) not in paths}
        skipped |= {s.path: s for s in more_skipped}
    if not paths:
        raise ValueError(
            f"no image is named by {words!r}, expected files, folders or globs separated by commas"
        )
    return tuple(paths.values()), tuple(
        s for k, s in skipped.items() if os.path.abspath(k) not in paths
    )


def images_under(folder: Path) -> tuple[list[Path], list[Skipped]]:
    """The files below `folder`, sorted by path: those with the suffix of an image, and the others.

    Links to folders are followed.
    """
    files, visited, errors = [], set(), []
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=errors.append):
        real = os.path.realpath(parent)
        folders[:] = [] if real in visited else [f for f in folders if not _hidden(f)]
        files += [] if real in visited else [Path(parent, n) for n in names if not _hidden(n)]
        visited.add(real)
    paths, skipped = _by_suffix(sorted(files))
    return paths, skipped + [
        Skipped(str(e.filename), f"the folder cannot be listed ({e.strerror})") for e in errors
    ]


def missing(path: Path) -> str:
    """A sentence about a missing path: its last existing folder, and the nearest names in it."""
    parent = path.parent
    while not os.path.isdir(parent) and parent != parent.parent:
        path, parent = parent, parent.parent
    names = (
        [p.name for p in parent.iterdir() if not _hidden(p.name)]
        if os.access(parent, os.R_OK)
        else []
    )
    hint = f"nearest there: {nearest(path.name, names)}" if names else "that folder is empty"
    return f"there is no {path.name!r} in {str(parent.absolute())!r}; {hint}"


def _words(words: str | Sequence[str]) -> Iterable[str]:
    for word in [words] if isinstance(words, str) else words:
        exists = os.path.lexists(Path(os.path.expanduser(word)))
        yield from filter(None, [word] if exists else (part.strip() for part in word.split(",")))


def _find_word(word: str) -> tuple[list[Path], list[Skipped]]:
    path = Path(os.path.expanduser(word))
    if os.path.isdir(path):
        paths, skipped = images_under(path)
        if not paths:
            others = "no other file"
            if skipped:
                others = f"{len(skipped)} other files, e.g. {Path(skipped[0].path).name!r}"
            raise ValueError(
                f"the folder {word!r} has no image ({others}), expected files ending in "
                f"{_SUFFIX_EXAMPLES}"
            )
        return paths, skipped
    if os.path.lexists(path):
        return [path], []
    if not glob.has_magic(word):
        raise ValueError(
            f"{word!r} does not exist, expected an image, a folder or a glob; {missing(path)}"
        )
    matches = sorted(Path(m) for m in glob.glob(str(path), recursive=True))
    paths, skipped = _by_suffix([m for m in matches if not m.is_dir()])
    for folder in (m for m in matches if m.is_dir()):
        more_paths, more_skipped = images_under(folder)
        paths, skipped = paths + more_paths, skipped + more_skipped
    if not paths:
        raise ValueError(
            f"the glob {word!r} matches {len(matches)} names and no image, expected files ending "
            f"in {_SUFFIX_EXAMPLES}"
        )
    return sorted(set(paths)), skipped


def _by_suffix(files: Iterable[Path]) -> tuple[list[Path], list[Skipped]]:
    paths: list[Path] = []
    skipped: list[Skipped] = []
    for file in files:
        if file.suffix.lower() in SUFFIXES:
            paths.append(file)
        else:
            reason = (
                f"its name ends in {file.suffix!r}, expected {_SUFFIX_EXAMPLES}; list the file "
                "itself to read it"
            )
            skipped.append(Skipped(str(file), reason))
    return paths, skipped


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _IGNORED
