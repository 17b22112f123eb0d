"""Finds the image files that the cells of a table name, also as other systems write paths."""

from __future__ import annotations

import itertools
import os
import re
import stat
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from tl import storage
from tl.data.find import OTHER_SUFFIXES, SUFFIXES
from tl.labels.names import listed, path_end
from tl.paths import expanded, is_url


class Located(NamedTuple):
    """The file of a cell.

    Attributes:
      path: the file; None if there is none.
      identity: device and number of the file, equal for all paths and links to it; or its address.
      how: the way in which it was found, a key of `REMARKS`; "" for the path as it is written.
      why: the reason without a file, to be followed by the number of the line.
    """

    path: Path | None
    identity: tuple[int, int] | str = ""
    how: str = ""
    why: str = ""


# `Located.how` -> a remark on all such cells: their number with noun, one of them, and its file.
REMARKS = {
    "moved": "read {n} of another machine below the folder of the table: {cell} as {file}",
    "ending": "read {n} without an ending as the image of that name: {cell} as {file}",
    "escaped": "read {n} with escapes of web addresses: {cell} as {file}",
    "spelling": "read {n} as files of another letter case or Unicode form: {cell} as {file}",
}
# Folders in which a missing file is looked for by its name; chosen, not tuned.
_MOST_FOLDERS = 1000


class Locator:
    """The files below the folder of a table.

    Args:
      root: the folder of the table, local or in a bucket.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._buckets: dict[str, dict[str, Path]] = {}
        self._folders: dict[str, tuple[dict[str, list[str]], dict[str, list[str]]]] = {}

    def find(self, cell: str) -> Located:
        """The image that a cell names.

        The path may be relative to the folder of the table or absolute, begin with `file:` and have
        backslashes. An absolute path that does not exist here is looked up below the folder of the
        table, from its longest end to the file name. Escapes such as %20 are read. The letter case
        and Unicode form of names and the ending of an image may differ if only one file fits. The
        address of a file in a bucket, and a path in a bucket, must be exact.
        """
        if not cell:
            return Located(None, why="no path")
        if is_url(direct := expanded(cell) if is_url(cell) else self._root / cell):
            file = self._in_bucket(direct)
            return Located(file, str(file)) if file else Located(None, why=f"no image at {cell!r}")
        if re.match(r"(https?|ftp|s3|gs)://", cell, re.IGNORECASE):
            return Located(None, why=f"the address {path_end(cell)} instead of a file")
        word = unquote(cell[5:]) if cell[:5].lower() == "file:" else cell
        if word is not cell:
            word = re.sub(r"^//(localhost(?=/))?", "", word)
        word = re.sub(r"^/(?=[A-Za-z]:[\\/])", "", word)
        direct = self._root / os.path.expanduser(word)
        if located := _file(direct):
            if direct.suffix.lower() in OTHER_SUFFIXES:
                return Located(None, why=f"{path_end(cell)}, which is not an image,")
            return located
        slashes = word.replace("\\", "/")
        if "%" in word and (escaped := _file(self._root / unquote(word))):
            return escaped._replace(how="escaped")
        windows = bool(re.match(r"[A-Za-z]:", word)) or word.startswith("\\\\")
        parts = [p for p in re.sub(r"^[A-Za-z]:", "", slashes).split("/") if p not in ("", ".")]
        if not windows and not slashes.startswith(("/", "~")):
            return self._relative(parts, cell)
        for start in range(len(parts)):
            located = self._relative(parts[start:], cell)
            if located.path:
                return located._replace(how="moved")
        system = "the path of Windows" if windows else "no image at"
        return Located(None, why=f"{system} {path_end(cell)}")

    def elsewhere(self, cell: str) -> str:
        """The end of a sentence on a path without a file, if such a file is in another folder."""
        if is_url(self._root) or is_url(cell):
            return ""
        parts = [p for p in cell.replace("\\", "/").split("/") if p not in ("", ".", "..")]
        for start in range(1, len(parts)):
            if _file(self._root.joinpath(*parts[start:])):
                return f", where it is {path_end('/'.join(parts[start:]))}"
        for pattern in ("*/", "*/*/") if parts else ():
            folders = sorted(itertools.islice(self._root.glob(pattern), _MOST_FOLDERS))
            if folder := next((f for f in folders if _file(f / parts[-1])), None):
                return (
                    f", where it is {path_end(str((folder / parts[-1]).relative_to(self._root)))}"
                )
        return ""

    def _relative(self, parts: list[str], cell: str) -> Located:
        """The file below the root whose path has these parts, perhaps in another spelling."""
        if located := _file(self._root.joinpath(*parts)):
            return located
        folder, missing = self._root, Located(None, why=f"no image at {path_end(cell)}")
        for i, part in enumerate(parts):
            names, stems = self._list(folder)
            exact = part == ".." or (i < len(parts) - 1 and (folder / part).is_dir())
            matches = [part] if exact else names[_key(part)]
            how = "spelling"
            if not matches and i == len(parts) - 1:
                matches, how = stems[_key(part)], "ending"
            if len(matches) > 1:
                candidates = listed(sorted(matches))
                return Located(None, why=f"the path {path_end(cell)}, which may be {candidates},")
            if not matches:
                return missing
            folder = folder / matches[0]
        located = _file(folder)
        return located._replace(how=how) if located and parts else missing

    def _in_bucket(self, path: Path) -> Path | None:
        """The file at an address, from one listing of each folder."""
        folder = str(path.parent)
        if folder not in self._buckets:
            self._buckets[folder] = {str(file): file for file in storage.files_in(path.parent)}
        return self._buckets[folder].get(str(path))

    def _list(self, folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The names in a folder, and those of images by their name without ending, by `_key`."""
        if str(folder) not in self._folders:
            names: dict[str, list[str]] = defaultdict(list)
            stems: dict[str, list[str]] = defaultdict(list)
            for name in os.listdir(folder) if folder.is_dir() else ():
                names[_key(name)].append(name)
                stem, ending = os.path.splitext(name)
                if ending.lower() in SUFFIXES:
                    stems[_key(stem)].append(name)
            self._folders[str(folder)] = names, stems
        return self._folders[str(folder)]


def _file(path: Path) -> Located | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Located(path, (status.st_dev, status.st_ino))


def _key(name: str) -> str:
    """A name for comparison without letter case and Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
