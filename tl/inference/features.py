"""The feature bank: pooled features of images, computed once and kept on disk.

A bank is a folder whose name is a hash of everything that determines the features: the variables of
the backbone, the preprocessing and the endpoint. In a bank, an image is identified by the SHA-256
of its file, so a renamed or moved image is found again and a changed one is not. Features are
appended in shards (`tl.data.shards`), so an interrupted run continues where it stopped.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import data, pixels
from tl.data import Skipped, Source, shards
from tl.inference.batches import BATCH_SIZE, Progress, map_sources, silent
from tl.models import Classifier
from tl.paths import cache_dir, digest, nearest
from tl.types import Array, Variables

# Part of every key: a new format starts new banks.
BANK_FORMAT = 2
# Images per shard of a bank (chosen, not tuned).
SHARD = 512


class Features(NamedTuple):
    """The pooled features of a list of images.

    Attributes:
      values: f32[n d]; zero where an image could not be read.
      valid: bool[n], whether the image could be read.
      skipped: the images that could not be read.
      bank: the folder of the bank.
      reused: number of images, out of n, that were in the bank already.
    """

    values: np.ndarray
    valid: np.ndarray
    skipped: tuple[Skipped, ...]
    bank: Path
    reused: int


def backbone_digest(variables: Variables) -> str:
    """A hash of all bits of the backbone's parameters and statistics; the head is left out."""
    return digest({name: tree.get("backbone", {}) for name, tree in variables.items()})


def bank_key(clf: Classifier, variables: Variables, endpoint: str = "features") -> str:
    """The name of a bank: a hash of the backbone, its dtype, the preprocessing and the endpoint."""
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
    batch_size: int = BATCH_SIZE,
    progress: Progress = silent,
) -> Features:
    """The features of images, read from the bank or computed and added to it.

    Args:
      clf, variables: the network; its head is not used.
      paths: image files, or images inside a container.
      endpoint: "features", or the name of an endpoint, whose feature map is averaged over its
        positions.
      cache: folder that contains `banks`; default: `cache_dir()`.
      batch_size: images per forward pass.
      progress: wraps the iterator over the batches that have to be computed.

    Returns:
      `Features`, in the order of `paths`.

    Raises:
      ValueError: the network has no such endpoint.
    """
    bank = (cache or cache_dir()) / "banks" / f"{clf.arch}-{bank_key(clf, variables, endpoint)}"
    bank.mkdir(parents=True, exist_ok=True)
    hashes = [_identity(path) for path in paths]
    stored = dict(shards.read(bank, "features"))
    missing = {h: path for h, path in zip(hashes, paths, strict=True) if h not in stored}
    reused = sum(h in stored for h in hashes)
    reasons: dict[str, str] = {}
    if missing:
        variables = jax.device_put(clf.fold_batch_norm(variables))
        pooled = _pooled(clf, endpoint)
        function = lambda images: pooled(variables, pixels.to_images01(images))
        prepare = functools.partial(pixels.prepare, clf.pixels)
        names, unwritten = list(missing), {}
        for batch in map_sources(
            function, list(missing.values()), prepare, batch_size=batch_size, progress=progress
        ):
            unwritten |= {names[i]: row for i, row in zip(batch.index, batch.values, strict=True)}
            reasons |= {
                names[i]: skip.why for i, skip in zip(batch.failed, batch.skipped, strict=True)
            }
            if len(unwritten) >= SHARD:
                stored |= shards.write(bank, "features", unwritten)
                unwritten = {}
        stored |= shards.write(bank, "features", unwritten)
    width = next(iter(stored.values())).shape[0] if stored else clf.spec.features
    blank = np.zeros(width, np.float32)
    values = np.stack([stored.get(h, blank) for h in hashes]) if hashes else np.zeros((0, width))
    skipped = tuple(
        Skipped(str(path), reasons[h])
        for path, h in zip(paths, hashes, strict=True)
        if h in reasons
    )
    valid = np.array([h in stored for h in hashes], bool)
    return Features(values.astype(np.float32, copy=False), valid, skipped, bank, reused)


@functools.cache
def _pooled(clf: Classifier, endpoint: str) -> Callable[[Variables, Array], jax.Array]:
    @jax.jit
    def pooled(variables: Variables, images01: jax.Array) -> jax.Array:
        output = clf.apply(variables, images01)
        if endpoint == "features":
            return output.features
        if endpoint not in output.endpoints:
            raise ValueError(
                f"{clf.arch} has no endpoint {endpoint!r}; "
                f"nearest: {nearest(endpoint, output.endpoints)}"
            )
        return jnp.mean(output.endpoints[endpoint].astype(jnp.float32), axis=(1, 2))

    return pooled


def _identity(path: Source) -> str:
    try:
        return data.content_hash(path)
    except OSError:
        return f"unreadable: {path}"  # the loader reports the reason, as for a damaged image
