"""The feature bank: pooled features of pictures, computed once and kept on disk.

A bank is a folder named by what decides its numbers: the backbone's variables, the preprocessing and the endpoint. Inside,
a picture is known by the SHA-256 of its file, so renamed, moved or shared pictures are found again and a changed one is
not. Features are appended in shards (`tl.data.shards`), so an interrupted run goes on where it was.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import data, pixels
from tl.data import Batch, Skipped, Source, shards
from tl.models import Classifier
from tl.paths import cache_dir, digest, nearest
from tl.types import Array, Variables

BANK_FORMAT = 2  # part of every key: a change of what a bank holds starts new banks
SHARD = 512  # pictures between two writes (chosen, not tuned)


class Features(NamedTuple):
    """The pooled features of a list of pictures.

    Attributes:
      values: f32[n d]; zero where a picture could not be read.
      valid: bool[n].
      skipped: the pictures that could not be read.
      bank: the folder that keeps them.
      reused: how many of the n came from the bank.
    """

    values: np.ndarray
    valid: np.ndarray
    skipped: tuple[Skipped, ...]
    bank: Path
    reused: int


def backbone_digest(variables: Variables) -> str:
    """A hash of the backbone, its parameters and its statistics, bit by bit; the head plays no part."""
    return digest({name: tree.get("backbone", {}) for name, tree in variables.items()})


def bank_key(clf: Classifier, variables: Variables, endpoint: str = "features") -> str:
    """Names the bank: a hash of the backbone's variables bit by bit, its dtype, the preprocessing and the endpoint."""
    facts = [
        BANK_FORMAT,
        clf.arch,
        clf.dtype,
        backbone_digest(variables),
        clf.pixels.as_dict(),
        endpoint,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def extract(
    clf: Classifier,
    variables: Variables,
    paths: Sequence[Source],
    *,
    endpoint: str = "features",
    cache: Path | None = None,
    batch_size: int = 16,
    progress: Callable[[Iterable[Batch], int], Iterable[Batch]] = lambda batches, total: batches,
) -> Features:
    """Features of every picture, from the bank where it has them, computed and kept where it has not.

    Args:
      clf, variables: the network; its head plays no part.
      paths: image files, or images inside a container (`tl.data.Source`).
      endpoint: "features", or an endpoint's name: then the mean over its map.
      cache: folder of all banks; default `cache_dir()`.
      batch_size: pictures a forward pass.
      progress: wraps the batches that have to be computed.

    Returns:
      Features, in the order of `paths`.

    Raises:
      ValueError: unknown endpoint.
    """
    bank = (cache or cache_dir()) / "banks" / f"{clf.arch}-{bank_key(clf, variables, endpoint)}"
    bank.mkdir(parents=True, exist_ok=True)
    hashes = [_identity(path) for path in paths]
    known = dict(shards.read(bank, "features"))
    todo = {h: path for h, path in zip(hashes, paths, strict=True) if h not in known}
    reused = sum(h in known for h in hashes)
    broken: dict[str, str] = {}
    fresh: dict[str, np.ndarray] = {}
    todo_hashes, todo_paths = list(todo), list(todo.values())
    if todo:
        on_device = jax.device_put(clf.fold_batch_norm(variables))
        forward = _forward(clf, endpoint)
        prepare = functools.partial(pixels.prepare, clf.pixels)
        batches = data.load(todo_paths, prepare, batch_size=batch_size)
        for batch in progress(batches, -(-len(todo) // batch_size)):
            rows = np.asarray(forward(on_device, pixels.to_images01(batch.images)))
            for index, valid, row in zip(batch.index, batch.valid, rows, strict=True):
                if valid:
                    fresh[todo_hashes[index]] = row
            why = {skip.path: skip.why for skip in batch.skipped}
            broken |= {
                todo_hashes[i]: why[str(todo_paths[i])]
                for i in batch.index
                if i >= 0 and str(todo_paths[i]) in why
            }
            if len(fresh) >= SHARD:
                known |= shards.write(bank, "features", fresh)
                fresh = {}
        known |= shards.write(bank, "features", fresh)
    width = next(iter(known.values())).shape[0] if known else clf.spec.features
    values = (
        np.stack([known.get(h, np.zeros(width, np.float32)) for h in hashes])
        if hashes
        else np.zeros((0, width), np.float32)
    )
    skipped = tuple(
        Skipped(str(path), broken[h]) for path, h in zip(paths, hashes, strict=True) if h in broken
    )
    return Features(values, np.array([h in known for h in hashes], bool), skipped, bank, reused)


@functools.cache
def _forward(clf: Classifier, endpoint: str) -> Callable[[Variables, Array], jax.Array]:
    @jax.jit
    def forward(variables: Variables, images01: jax.Array) -> jax.Array:
        output = clf.apply(variables, images01)
        if endpoint == "features":
            return output.features
        if endpoint not in output.endpoints:
            raise ValueError(
                f"{clf.arch} has no endpoint {endpoint!r}; nearest: {nearest(endpoint, output.endpoints)}"
            )
        return jnp.mean(output.endpoints[endpoint].astype(jnp.float32), axis=(1, 2))

    return forward


def _identity(path: Source) -> str:
    try:
        return data.content_hash(path)
    except OSError:
        return f"unreadable: {path}"  # the loader says why, as of a picture that is damaged
