"""A cache on disk: one row of numbers per image, with the SHA-256 of the image file as its key.

The cache is a folder of shards, each of which is written completely or not at all. An interrupted
run therefore loses at most one shard, and two processes may write to a folder at the same time. A
shard that cannot be read counts as empty, and its rows are computed again.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file


def read(folder: Path, tensor: str) -> Iterator[tuple[str, np.ndarray]]:
    """All rows in a folder; none if the folder does not exist.

    Args:
      folder: the cache.
      tensor: name of the tensor in the shards, e.g. "features".

    Returns:
      An iterator over (SHA-256 in hex, row).
    """
    for shard in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(shard, "np") as file:
                hashes = json.loads(file.metadata()["hashes"])
                yield from zip(hashes, file.get_tensor(tensor), strict=True)
        except (SafetensorError, KeyError, TypeError, ValueError):
            continue  # not a shard, or truncated by a full disk


def write(folder: Path, tensor: str, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds a shard with `rows` and returns them; without rows it writes nothing.

    Args:
      folder: the cache; created if necessary.
      tensor: name of the tensor in the shard.
      rows: SHA-256 in hex -> row, all of one shape and dtype.
    """
    if rows:
        folder.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        partial = folder / f"{name}.partial"
        save_file(
            {tensor: np.stack(list(rows.values()))}, partial, {"hashes": json.dumps(list(rows))}
        )
        os.replace(partial, folder / f"{name}.safetensors")
    return rows
