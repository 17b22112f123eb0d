"""Rows of numbers about pictures, kept on disk by the SHA-256 of each picture's file.

A folder of shards, each written whole or not at all: an interrupted run loses at most one shard, and two processes may
fill a folder at once. A shard that cannot be read holds nothing, and its pictures are computed again.
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
    """Every (SHA-256, row) of the shards in `folder` that hold `tensor`; a folder that is not there has none."""
    for shard in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(shard, "np") as file:
                hashes = json.loads(file.metadata()["hashes"])
                yield from zip(hashes, file.get_tensor(tensor), strict=True)
        except (SafetensorError, KeyError, TypeError, ValueError):
            continue  # not a shard, or cut short by a full disk


def write(folder: Path, tensor: str, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds a shard with these rows, one shape and dtype for all, and returns them; no rows, no shard."""
    if rows:
        folder.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        partial = folder / f"{name}.partial"
        save_file(
            {tensor: np.stack(list(rows.values()))}, partial, {"hashes": json.dumps(list(rows))}
        )
        os.replace(partial, folder / f"{name}.safetensors")
    return rows
