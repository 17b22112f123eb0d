"""A cache on disk: one row of numbers per image, with the SHA-256 of the image file as its key.

The cache is a folder of shards, each of which is written completely or not at all. An interrupted
run therefore loses at most one shard, and two processes may write to a folder at the same time. A
shard that cannot be read counts as empty, and its rows are computed again. A shard that cannot be
written is a `CacheWarning`.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tl.paths import warn_of_cache


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
        files = sorted(folder.glob("*.safetensors"))
    except OSError:
        return
    for shard in files:
        try:
            with safe_open(shard, "np") as file:
                hashes, rows = json.loads(file.metadata()["hashes"]), file.get_tensor(tensor)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            continue  # not a shard, or truncated by a full disk
        if isinstance(hashes, list) and rows.shape == (len(hashes), width):
            yield from zip(hashes, rows, strict=True)


def write(folder: Path, tensor: str, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds a shard with `rows` and returns them; without rows it writes nothing.

    A folder that cannot be written, or a full disk, is a `CacheWarning`.

    Args:
      folder: the cache; created if necessary.
      tensor: name of the tensor in the shard.
      rows: SHA-256 in hex -> row, all of one shape and dtype.
    """
    if rows:
        name = uuid.uuid4().hex
        partial = folder / f"{name}.partial"
        array, hashes = np.stack(list(rows.values())), json.dumps(list(rows))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file({tensor: array}, partial, {"hashes": hashes})
            os.replace(partial, folder / f"{name}.safetensors")
        except (OSError, SafetensorError) as error:
            warn_of_cache(folder, error)
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    return rows
