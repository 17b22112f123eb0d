"""Finds image files by a list of files, folders and globs, such as `cat.jpg,holiday/,more/*.png`.

The order of the files is the same on every machine. A file that is listed explicitly is always
included, whereas a file in a folder or matched by a glob is included if it has the suffix of an
image, or a suffix that is not known and the header of an image. `decode.py` checks the whole
content. Files of systems and tools (`LITTER`) are left out and counted.
"""

from __future__ import annotations

import errno
import glob
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tl import storage
from tl.data import formats
from tl.data.decode import is_image
from tl.data.formats import NAMED, SUFFIXES
from tl.data.spec import Skipped, WithWhite
from tl.labels.names import counted, path_end, shown
from tl.paths import expanded, is_url, nearest

_SUFFIX_EXAMPLES = ".jpg, .png, .gif, .webp, .bmp, .tif or .ppm"
# Endings of files that are never images, so that they are not opened.
OTHER_SUFFIXES = frozenset(
    ".txt .csv .tsv .json .jsonl .xml .yaml .yml .md .rst .html .htm .pdf .doc .docx .xls .xlsx "
    ".py .ipynb .sh .m .mat .npy .npz .pkl .pickle .pt .pth .h5 .hdf5 .onnx .safetensors .parquet "
    ".zip .tar .gz .tgz .bz2 .xz .7z .rar .mp4 .avi .mov .mkv .webm .wav .mp3 .log .ini .cfg .toml "
    ".db .sqlite .lock .url .lnk .exe .dll .part .crdownload".split()
)
# Endings of images that `decode` does not read, which a user would miss.
_OTHER_IMAGES = frozenset(NAMED) - OTHER_SUFFIXES | frozenset(".ico .tga .exr .hdr .xcf".split())
# Names of folders and files of systems and tools, in lower case.
LITTER = frozenset(
    "__macosx lost+found @eadir #recycle $recycle.bin recycler .trashes .spotlight-v100 "
    "@recycle @recently-snapshot @sharebin @tmp #snapshot .@__thumb "
    ".fseventsd .ds_store .ipynb_checkpoints .git .svn .hg __pycache__ thumbs.db ehthumbs.db "
    "desktop.ini".split()
) | {"system volume information", "icon\r"}
_LINK, _NEVER_READ = "it is a link", "cannot be"
BROKEN_LINK = f"{_LINK} to a file that does not exist"


class Files(NamedTuple):
    """The files below a folder.

    Attributes:
      images: the images, sorted by path.
      skipped: other files, and files and folders that cannot be read.
      litter: files and folders with names of `LITTER`, of which the content is not listed.
    """

    images: list[Path]
    skipped: list[Skipped]
    litter: list[Path]


def find_images(
    words: str | Sequence[str], *, white: int = 0
) -> tuple[tuple[Path | WithWhite, ...], tuple[Skipped, ...]]:
    """The image files in a list of files, folders (searched recursively) and globs.

    Args:
      words: one string with parts separated by commas, or a sequence of such strings. A string that
        is the path of an existing file or folder is not divided, even with commas or brackets.
      white: value of white in images of 16 bits per channel, in [1, 65535]; 0 for that of the file.

    Returns:
      `(paths, skipped)`. The paths are in the order of the words, sorted within a folder or glob,
      and each file occurs once; they are `WithWhite` if `white` is given. Files in folders or
      matched by globs that are not images are skipped. Hidden files are ignored.

    Raises:
      ValueError: a file or folder does not exist, a folder or glob has no image, `words` is empty,
        or `white` is out of range.
    """
    paths: dict[str, Path] = {}
    skipped: dict[str, Skipped] = {}
    litter: list[Path] = []
    for word in _words(words):
        files = _find_word(word)
        paths |= {_identity(p): p for p in files.images if _identity(p) not in paths}
        skipped |= {s.path: s for s in files.skipped}
        litter += files.litter
    if not paths:
        raise ValueError(
            f"no image is named by {words!r}, expected files, folders or globs separated by commas"
        )
    others = [s for k, s in skipped.items() if _identity(k) not in paths]
    sources = tuple(WithWhite(p, white) if white else p for p in paths.values())
    return sources, (*others, *count_litter(litter))


def images_under(folder: Path) -> Files:
    """The files below `folder`.

    Links to folders are followed, except to a folder above the link. Hidden files are ignored. In a
    bucket, the files with the ending of an image are the images.
    """
    if is_url(folder):
        return _divide_remote(storage.below(folder), folder)
    files: list[Path] = []
    skipped: list[Skipped] = []
    litter: list[Path] = []
    visited: set[str] = set()
    folders = [str(folder)]
    while folders:
        parent = folders.pop()
        real = os.path.realpath(parent)
        if real in visited:
            continue
        visited.add(real)
        try:
            with os.scandir(parent) as entries:
                content = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(
                Skipped(parent, f"the folder {_NEVER_READ} listed ({error.strerror or error})")
            )
            continue
        for entry in content:
            if is_litter(entry.name):
                litter.append(Path(entry.path))
            elif entry.name.startswith("."):
                pass
            elif not _is_folder(entry):
                files.append(Path(entry.path))
            elif entry.is_symlink() and _above(os.path.realpath(entry.path), real):
                skipped.append(Skipped(entry.path, f"{_LINK} to a folder that contains it"))
            else:
                folders.append(entry.path)
    images, others = _divide(sorted(files))
    return Files(images, others + skipped, litter)


def is_litter(name: str) -> bool:
    """Whether a file or folder has the name of one that a system or tool creates.

    Example:
      >>> is_litter("__MACOSX"), is_litter("._cat.jpg"), is_litter("cat.jpg")
      (True, True, False)
    """
    return name.startswith("._") or name.lower() in LITTER


def count_litter(paths: Iterable[Path]) -> list[Skipped]:
    """One row per name of litter: the first path, and the number of files and folders."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        name = "._*" if path.name.startswith("._") else path.name
        groups.setdefault(name, []).append(path)
    why = "it belongs to a system or tool"
    return [
        Skipped(str(group[0]), f"{why} ({len(group)} named {name!r})" if group[1:] else why)
        for name, group in groups.items()
    ]


def describe_content(skipped: Sequence[Skipped], most: int = 3) -> str:
    """The kinds of files that are not images, such as "12 .HEIC files and 1 broken link".

    Args:
      skipped: the files.
      most: number of kinds that are listed.

    Example:
      >>> describe_content([Skipped("a/1.HEIC", ""), Skipped("a/2.heic", ""), Skipped("a/b", "")])
      '2 .HEIC files and 1 extensionless file'
    """
    counts: Counter[str] = Counter()
    nouns: dict[str, str] = {}
    for row in skipped:
        ending = Path(row.path).suffix
        noun = f"{ending[:12]} file" if ending else "extensionless file"
        if row.why.startswith(_LINK):
            noun = "broken link"
        elif _NEVER_READ in row.why:
            noun = "unreadable folder" if row.why.startswith("the folder") else "unreadable file"
        counts[nouns.setdefault(noun.lower(), noun)] += 1
    kinds = counts.most_common(most)
    words = [counted(n, noun) for noun, n in kinds]
    if others := len(skipped) - sum(n for _, n in kinds):
        words.append(counted(others, "other file"))
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:]))) or "no file"


def how_to_read(skipped: Iterable[Skipped]) -> str:
    """The advice for files of which some are images in a format that is not read."""
    heic = any(NAMED.get(Path(s.path).suffix.lower()) == "HEIC" for s in skipped)
    return f"{'install tl[heic] or ' if heic else ''}convert them to .jpg or .png"


def unread_images(skipped: Iterable[Skipped]) -> list[Skipped]:
    """The files that have the ending of an image in a format that is not read."""
    return [s for s in skipped if Path(s.path).suffix.lower() in _OTHER_IMAGES]


def missing(path: Path) -> str:
    """A sentence about a missing path: its last existing folder, and the nearest names in it."""
    parent = path.parent
    while not os.path.isdir(parent) and parent != parent.parent:
        path, parent = parent, parent.parent
    where = path_end(str(parent.absolute()), 200)
    if os.path.islink(path):
        return f"{shown(path.name)} in {where} is a broken link"
    names = (
        [p.name for p in parent.iterdir() if not _hidden(p.name)]
        if os.access(parent, os.R_OK)
        else []
    )
    hint = f"nearest there: {nearest(path.name, names)}" if names else "that folder is empty"
    return f"there is no {shown(path.name)} in {where}; {hint}"


def _words(words: str | Sequence[str]) -> Iterable[str]:
    for word in [words] if isinstance(words, str) else words:
        exists = not is_url(word) and os.path.lexists(expanded(word))
        yield from filter(None, [word] if exists else (part.strip() for part in word.split(",")))


def _identity(path: Path | str) -> str:
    return str(path) if is_url(path) else os.path.abspath(path)


def _find_word(word: str) -> Files:
    path = expanded(word)
    if is_url(word):
        return _find_remote(word)
    if os.path.isdir(path):
        files = images_under(path)
        if not files.images:
            raise ValueError(
                f"the folder {word!r} has no image ({describe_content(files.skipped)}), expected "
                f"files ending in {_SUFFIX_EXAMPLES}; {how_to_read(files.skipped)}"
            )
        return files
    if os.path.lexists(path):
        return Files([path], [], [])
    if not glob.has_magic(word):
        raise ValueError(
            f"{path_end(word, 200)} does not exist, expected an image, a folder or a glob; "
            f"{missing(path)}"
        )
    matches = sorted(Path(m) for m in glob.glob(str(path), recursive=True))
    litter = [m for m in matches if any(map(is_litter, m.parts))]
    matches = [m for m in matches if m not in set(litter)]
    images, skipped = _divide([m for m in matches if not m.is_dir()])
    for folder in (m for m in matches if m.is_dir()):
        files = images_under(folder)
        images, skipped = images + files.images, skipped + files.skipped
        litter += files.litter
    if not images:
        raise ValueError(
            f"the glob {word!r} matches {len(matches)} names and no image, expected files ending "
            f"in {_SUFFIX_EXAMPLES}"
        )
    return Files(sorted(set(images)), skipped, list(dict.fromkeys(litter)))


def _find_remote(word: str) -> Files:
    """The images that a file, a folder or a glob in a bucket names."""
    kind, matches = storage.find(word)
    if kind == "file":
        return Files(matches, [], [])
    root = word if kind == "directory" else word.partition("*")[0].rpartition("/")[0]
    files = _divide_remote(matches, root)
    if not files.images:
        content = describe_content(files.skipped) if kind else "nothing"
        raise ValueError(
            f"{path_end(word, 200)} has no image ({content}), expected files ending in "
            f"{_SUFFIX_EXAMPLES}"
        )
    return files


def _divide_remote(files: Sequence[Path], root: Path | str) -> Files:
    """The images, other files and litter among the files of a bucket, by their names alone."""
    images, skipped, litter = [], [], []
    for file in files:
        parts = PurePosixPath(str(file).removeprefix(str(root))).parts
        if any(map(is_litter, parts)):
            litter.append(file)
        elif any(part.startswith(".") for part in parts):
            continue
        elif file.suffix.lower() in SUFFIXES:
            images.append(file)
        else:
            kind = NAMED.get(file.suffix.lower(), "")
            why = formats.describe(kind) if kind else "does not have the ending of an image"
            skipped.append(Skipped(str(file), f"it {why}"))
    return Files(images, skipped, litter)


def _divide(files: Iterable[Path]) -> tuple[list[Path], list[Skipped]]:
    """The images, and the other files with the reasons."""
    reasons = [(file, _reason(file)) for file in files]
    return (
        [file for file, why in reasons if not why],
        [Skipped(str(file), why) for file, why in reasons if why],
    )


def _reason(path: Path) -> str:
    """The reason why a file is not read as an image; "" for an image. Few files are opened."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if os.path.islink(path):
            loop = error.errno == errno.ELOOP
            return f"{_LINK} to itself" if loop else BROKEN_LINK
        return f"it {_NEVER_READ} read ({error.strerror or error})"
    if not stat.S_ISREG(mode):
        return "it is a pipe, a socket or a device"
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return "" if os.access(path, os.R_OK) else f"it {_NEVER_READ} read (permission denied)"
    name = f"its name ends in {path.suffix!r}" if suffix else "its name has no ending"
    advice = f"expected {_SUFFIX_EXAMPLES}; list the file itself to read it"
    kind = NAMED.get(suffix, "")
    # Raw camera files begin as TIFF, of which Pillow reads a thumbnail.
    if suffix in OTHER_SUFFIXES or kind == formats.RAW:
        return f"it {formats.describe(kind)}" if kind else f"{name}, {advice}"
    try:
        if is_image(path):
            return ""
    except OSError as error:
        return f"it {_NEVER_READ} read ({error.strerror or error})"
    return (
        f"it {formats.describe(kind)}"
        if kind
        else f"{name} and it does not begin as an image, {advice}"
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False


def _above(folder: str, other: str) -> bool:
    """Whether `other` is `folder` or lies below it; both are real paths."""
    return os.path.commonpath([folder, other]) == folder


def _hidden(name: str) -> bool:
    return name.startswith(".") or is_litter(name)
