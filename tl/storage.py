"""Files and folders in buckets: listing them, and reading images and ranges of bytes.

`tl.paths.expanded` gives the paths, whose methods read and write whole files. This module adds what
those do with one request per file: it lists a folder with all sizes and versions at once, and keeps
the bytes of images, so that decoding an image does not read it again after its hash. All errors of
a bucket, such as missing credentials, become one sentence.
"""

from __future__ import annotations

import atexit
import bisect
import contextlib
import io
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from glob import escape, has_magic, iglob
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

from tl.paths import SCHEMES, expanded, is_url, shortened

# Bytes of images that a process keeps; chosen, not tuned.
_MOST_BYTES = 512 << 20
# Bytes per request where a file is read from the beginning to the end; chosen, not tuned.
_BUFFER = 8 << 20
# Seconds between two writes of a file to which lines are added; chosen, not tuned.
_SECONDS = 30
# What file systems call the version of a file, the best first.
_VERSIONS = ("etag", "ETag", "generation", "md5Hash", "mtime", "updated", "LastModified", "created")


@dataclass(frozen=True, slots=True, order=True)
class Remote:
    """A file in a bucket; a `tl.data.Stored`.

    Attributes:
      url: its address.
      size: its length in bytes.
      version: changes with its content, as far as the bucket states one.
    """

    url: str
    size: int = 0
    version: str = ""

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the address, as `Path.name`."""
        return PurePosixPath(self.url).name

    @property
    def stem(self) -> str:
        """The last part without its ending, as `Path.stem`."""
        return PurePosixPath(self.url).stem

    @property
    def suffix(self) -> str:
        """The ending, as `Path.suffix`."""
        return PurePosixPath(self.url).suffix

    @property
    def parent(self) -> Path:
        """The folder, as `Path.parent`."""
        return expanded(self.url).parent

    def read_bytes(self) -> bytes:
        """The content; the first images that a process reads stay in memory, up to 512 MB.

        Raises:
          OSError: the file cannot be read.
        """
        return _CACHE.read(self)


class _Cache:
    """The bytes of the first files. They are never removed, because epochs read in cycles."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._content: dict[Remote, bytes] = {}
        self._size = 0

    def read(self, file: Remote) -> bytes:
        if (content := self._content.get(file)) is not None:
            return content
        content = read_range(expanded(file.url))
        with self._lock:
            if file not in self._content and self._size + len(content) <= _MOST_BYTES:
                self._content[file] = content
                self._size += len(content)
        return content


_CACHE = _Cache()
_tree: list[Remote] = []  # of the last `list_tree`


def read_range(path: Path, start: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file, or `size` of them from position `start`; fewer at the end of the file.

    Args:
      path: a local file, or a file in a bucket, which one request reads.

    Raises:
      OSError: the file cannot be read.
    """
    if not is_url(path):
        with path.open("rb") as file:
            file.seek(start)
            return file.read(-1 if size is None else size)
    with errors(path):
        system, name = _system(path)
        return system.cat_file(name, start=start, end=None if size is None else start + size)


def open_file(path: Path) -> BinaryIO:
    """A file, to be read from the beginning to the end; from a bucket, 8 MB per request.

    Raises:
      OSError: the file cannot be read. Calls of `read` need `errors` for one sentence.
    """
    if not is_url(path):
        return path.open("rb")
    with errors(path):
        system, name = _system(path)
        return io.BufferedReader(system.open(name, "rb", cache_type="none"), _BUFFER)


def version(path: Path) -> str:
    """A text that changes with the content of a file: its size, and its version or time.

    Raises:
      OSError: the file does not exist or cannot be read.
    """
    if not is_url(path):
        status = path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    with errors(path):
        system, name = _system(path)
        row = system.info(name)
    return f"{row['size']} {_version(row)}"


def make_folder(folder: Path, *, check: bool = False) -> None:
    """Creates a local folder and those above it; folders of buckets need not exist.

    Args:
      check: whether to write and remove an object if the folder is in a bucket.

    Raises:
      OSError: the folder cannot be created, or the bucket cannot be written.
    """
    if not is_url(folder):
        folder.mkdir(parents=True, exist_ok=True)
    elif check:
        with errors(folder):
            write_whole(folder / ".check", b"")
            (folder / ".check").unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is whole or absent after any interruption.

    In a local folder, a temporary file is renamed; the folder must exist. Objects in a bucket are
    always whole.

    Raises:
      OSError: the file cannot be written; it has the name of the file.
    """
    if is_url(path):
        _texts.pop(str(path), None)
        with errors(path):
            path.write_bytes(content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # of a full disk, Python names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Removes a file if it is there.

    Raises:
      OSError: the file cannot be removed.
    """
    _texts.pop(str(path), None)
    with errors(path):
        path.unlink(missing_ok=True)


def append(path: Path, line: str) -> None:
    """Adds a line to a text file.

    Objects in a bucket cannot grow. Their lines are kept in memory and written together, at most
    every `_SECONDS`; `flush` and the end of the process write the rest.

    Raises:
      OSError: the file cannot be written.
    """
    if not is_url(path):
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        return
    if str(path) not in _texts:
        before = read_range(path).decode() if find(str(path))[0] else ""
        _texts[str(path)] = _Text([before])
        if len(_texts) == 1:
            atexit.register(flush)
    text = _texts[str(path)]
    text.parts.append(line + "\n")
    text.changed = True
    if time.monotonic() - text.written >= _SECONDS:
        flush(path)


def flush(path: Path | None = None) -> None:
    """Writes the lines that `append` keeps, of one file or of all.

    Raises:
      OSError: a file cannot be written.
    """
    for url, text in list(_texts.items()):
        if text.changed and url == str(path or url):
            text.changed, text.written = False, time.monotonic()
            with errors(url):
                expanded(url).write_bytes("".join(text.parts).encode())


@dataclass
class _Text:
    parts: list[str]
    changed: bool = False
    written: float = field(default_factory=time.monotonic)


_texts: dict[str, _Text] = {}


@contextlib.contextmanager
def created(path: str | os.PathLike[str] | IO[bytes]) -> Iterator[Any]:
    """What a library can write a file to: a local path or open file itself, or an object's bytes.

    Raises:
      OSError: the object cannot be written.
    """
    if not is_url(path):
        yield path
        return
    content = io.BytesIO()
    yield content
    write_whole(expanded(str(path)), content.getvalue())


@contextlib.contextmanager
def local(path: Path) -> Iterator[Path]:
    """A local file with the content of a file: itself, or a temporary copy from a bucket.

    Raises:
      OSError: the file cannot be read.
    """
    if not is_url(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        copy.write_bytes(read_range(path))
        yield copy


def list_tree(folder: Path) -> None:
    """Lists all files below a folder of a bucket, for `scan` and `below` of it and its folders.

    The listing is kept until the next call. It takes one request per thousand files or so.

    Raises:
      ValueError: the folder does not exist, is empty, or cannot be listed.
    """
    kind, files = find(str(folder))
    if kind != "directory":
        problem = "is a file" if kind else "does not exist or is empty"
        raise ValueError(f"{str(folder)!r} {problem}, expected a folder in a bucket")
    _tree[:] = cast(list[Remote], files)


def below(folder: Path) -> list[Path]:
    """All files below a folder of the bucket that `list_tree` has listed, sorted by address."""
    first = bisect.bisect_left(_tree, f"{folder}/", key=str)
    last = bisect.bisect_left(_tree, f"{folder}0", key=str)  # "0" comes after "/"
    return cast(list[Path], _tree[first:last])


def scan(folder: Path) -> list[tuple[Path, bool]]:
    """The paths directly in a folder, and whether each is a folder; sorted within both kinds.

    Args:
      folder: a local folder, of which the result is empty if it cannot be listed, or a folder of
        the bucket that `list_tree` has listed.
    """
    if not is_url(folder):
        readable = os.access(folder, os.R_OK | os.X_OK)
        return [(path, path.is_dir()) for path in sorted(folder.iterdir())] if readable else []
    files, folders = [], {}
    for file in below(folder):
        name, slash, _ = str(file).removeprefix(f"{folder}/").partition("/")
        if slash:
            folders[name] = None
        else:
            files.append((file, False))
    return [*((folder / name, True) for name in folders), *files]


def find(word: str) -> tuple[str, list[Path]]:
    """The files that a file, a folder (recursively) or a glob names, sorted by path.

    A folder in a bucket is one listing of all objects below it. Hidden local files are left out.

    Returns:
      `(kind, files)`: "file", "directory", "glob" or, if there is nothing, "". Files in a bucket
      are `Remote`.

    Raises:
      ValueError: the bucket does not exist or cannot be listed.
    """
    if not is_url(word):
        path = expanded(word)
        kind = "directory" if path.is_dir() else "glob" if has_magic(word) else ""
        if path.is_file():
            return "file", [path]
        pattern = f"{escape(str(path))}/**/*" if path.is_dir() else str(path)
        matches = map(Path, iglob(pattern, recursive=True)) if kind else ()
        return kind, sorted(match for match in matches if match.is_file())
    with listing(word):
        system, name = _system(word)
        if has_magic(word):
            return "glob", _files(word, system.glob(name, detail=True).values())
        try:
            row = system.info(name)
        except FileNotFoundError:
            return "", []
        if row["type"] == "file":
            return "file", _files(word, [row])
        return "directory", _files(word, system.find(name, detail=True).values())


def files_in(folder: Path) -> list[Path]:
    """The `Remote` files directly in a folder of a bucket, sorted by name; [] without the folder.

    Raises:
      ValueError: the bucket does not exist or cannot be listed.
    """
    with listing(folder):
        system, name = _system(folder)
        try:
            return _files(folder, system.ls(name, detail=True))
        except FileNotFoundError:
            return []


def is_file(path: Path) -> bool:
    """Whether a path, local or in a bucket, is a file.

    Raises:
      ValueError: the bucket cannot be read.
    """
    return find(str(path))[0] == "file" if is_url(path) else path.is_file()


@contextlib.contextmanager
def listing(path: object) -> Iterator[None]:
    """Turns all errors of a bucket into a `ValueError` of one sentence."""
    try:
        with errors(path):
            yield
    except FileNotFoundError:
        raise ValueError(
            f"{str(path)!r} does not exist, expected a bucket and a file or folder in it"
        ) from None
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({error.strerror}), expected a bucket that exists and "
            "that this machine's account may read"
        ) from error


@contextlib.contextmanager
def errors(path: object) -> Iterator[None]:
    """Turns all errors of a bucket into an `OSError` with a reason of one line."""
    if not is_url(path):
        yield
        return
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(2, "no such file or folder in the bucket", str(path)) from None
    except ValueError:
        raise
    except Exception as error:  # each package has its own types, many of which are not `OSError`
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        reason = shortened(reason or type(error).__name__, 200)
        raise OSError(5, f"{type(error).__name__}: {reason}", str(path)) from error


def _system(path: object) -> tuple[Any, str]:
    """The file system of an address, and the name of the file or folder in it."""
    expanded(str(path))  # a missing package is an error with advice
    import fsspec

    scheme, _, name = str(path).partition("://")
    # It logs a traceback before each error that becomes a sentence here.
    logging.getLogger(SCHEMES[scheme]).setLevel(logging.CRITICAL)
    return fsspec.filesystem(scheme), name.strip("/")


def _version(row: dict[str, Any]) -> str:
    return next((str(row[key]) for key in _VERSIONS if row.get(key)), "")


def _name(row: dict[str, Any]) -> str:
    return row["name"].strip("/")


def _files(where: object, rows: Iterable[dict[str, Any]]) -> list[Path]:
    """The files among the rows of a listing."""
    scheme, files = str(where).partition("://")[0], []
    for row in rows:
        # Consoles write an empty object "pets/" for an empty folder.
        if row["type"] == "file" and not row["name"].endswith("/"):
            url = f"{scheme}://{_name(row)}"
            files.append(Remote(url, int(row["size"] or 0), _version(row)))
    return cast(list[Path], sorted(files))
