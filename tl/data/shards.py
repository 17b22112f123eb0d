"""A cache on disk: one row of numbers per image, with the SHA-256 of the image file as its key.

The cache is a folder of shards, local or in a bucket, each of which is written completely or not at
all. An interrupted run therefore loses at most one shard, and two processes may write to a folder
at the same time. A shard that cannot be read counts as empty, and its rows are computed again. A
shard that cannot be written is a `CacheWarning`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tl import storage
from tl.paths import is_url, warn_of_cache

_ENDING = ".safetensors"
# Shards that are in memory at the same time. Chosen, not tuned.
_AHEAD = 4
# Bytes of the longest header that safetensors reads.
_LONGEST_HEADER = 100_000_000


def read(
    folder: Path, tensor: str, width: int, keys: Collection[str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Rows in a folder; none if the folder does not exist or cannot be read.

    A few shards are in memory at a time. Of a shard without any of the keys, only the header is
    read.

    Args:
      folder: the cache.
      tensor: name of the tensor in the shards, e.g. "features".
      width: numbers per row; shards of another width, such as another version's, are left out.
      keys: SHA-256 in hex of the rows. Default: all.

    Returns:
      An iterator over (SHA-256 in hex, row).
    """
    try:
        files = storage.files_in(folder) if is_url(folder) else sorted(folder.glob("*"))
    except (OSError, ValueError):
        return
    files = [file for file in files if file.suffix == _ENDING]
    with ThreadPoolExecutor(_AHEAD) as pool:
        for first in range(0, len(files), _AHEAD):
            some = files[first : first + _AHEAD]
            for hashes, rows in pool.map(lambda file: _read(file, tensor, width, keys), some):
                yield from zip(hashes, rows, strict=True)


def _read(
    shard: Path, tensor: str, width: int, keys: Collection[str] | None
) -> tuple[list[str], np.ndarray]:
    """Keys and rows of a shard; none if it is another file, or truncated by a full disk."""
    nothing: tuple[list[str], np.ndarray] = [], np.empty((0, width))
    try:
        with storage.errors(shard), storage.open_file(shard) as file:
            size = file.read(8)
            if (length := int.from_bytes(size, "little")) > _LONGEST_HEADER:
                return nothing
            header = file.read(length)
            hashes = json.loads(json.loads(header)["__metadata__"]["hashes"])
            if not isinstance(hashes, list):
                return nothing
            chosen = [i for i, name in enumerate(hashes) if keys is None or name in keys]
            rows = load(size + header + file.read())[tensor] if chosen else nothing[1]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return nothing
    if not chosen or rows.shape != (len(hashes), width):
        return nothing
    return [hashes[i] for i in chosen], rows if keys is None else rows[chosen]


def write(folder: Path, tensor: str, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds a shard with `rows` and returns them; without rows it writes nothing.

    A folder that cannot be written, or a full disk, is a `CacheWarning`.

    Args:
      folder: the cache; created if necessary.
      tensor: name of the tensor in the shard.
      rows: SHA-256 in hex -> row, all of one shape and dtype.
    """
    if rows:
        array, hashes = np.stack(list(rows.values())), json.dumps(list(rows))
        try:
            storage.make_folder(folder)
            data = save({tensor: array}, {"hashes": hashes})
            storage.write_whole(folder / f"{uuid.uuid4().hex}{_ENDING}", data)
        except OSError as error:
            warn_of_cache(folder, error)
    return rows
