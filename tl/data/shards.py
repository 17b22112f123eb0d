"""A cache on disk: one row of numbers per image, with the SHA-256 of the image file as its key.

The cache is a folder of shards, local or in a bucket, each of which is written completely or not at
all. An interrupted run therefore loses at most one shard, and two processes may write to a folder
at the same time. A shard that cannot be read counts as empty, and its rows are computed again. A
shard that cannot be written is a `CacheWarning`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tl import storage
from tl.paths import is_url, warn_of_cache

_ENDING = ".safetensors"


def read(folder: Path, tensor: str, width: int) -> Iterator[tuple[str, np.ndarray]]:
    """All rows in a folder; none if the folder does not exist or cannot be read.

    Args:
      folder: the cache.
      tensor: name of the tensor in the shards, e.g. "features".
      width: numbers per row; shards of another width, such as another version's, are left out.

    Returns:
      An iterator over (SHA-256 in hex, row).
    """
    try:
        files = storage.files_in(folder) if is_url(folder) else sorted(folder.glob("*"))
    except (OSError, ValueError):
        return
    with ThreadPoolExecutor() as pool:
        shards = pool.map(
            lambda file: _read(file, tensor), (f for f in files if f.suffix == _ENDING)
        )
        for hashes, rows in shards:
            if isinstance(hashes, list) and rows.shape == (len(hashes), width):
                yield from zip(hashes, rows, strict=True)


def _read(shard: Path, tensor: str) -> tuple[list[str], np.ndarray]:
    """The keys and rows of a shard; none if it is another file, or truncated by a full disk."""
    try:
        data = shard.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return json.loads(header["__metadata__"]["hashes"]), load(data)[tensor]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return [], np.empty(0)


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
