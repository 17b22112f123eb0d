"""The feature bank: pooled features of images, computed once and kept on disk.

A bank is a folder whose name is a hash of everything that determines the features (`bank_key`). In
a bank, an image is identified by the SHA-256 of its file, so a renamed or moved image is found
again and a changed one is not. Features are appended in shards (`tl.data.shards`), so an
interrupted run continues where it stopped.

Banks of an earlier version stay on disk, are not read any more, and can be deleted.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL

from tl import data, devices, hosts, pixels
from tl.data import Skipped, Source, shards
from tl.data.spec import white_of
from tl.inference.batches import BATCH_SIZE, Progress, map_sources, silent
from tl.models import Classifier
from tl.paths import cache_dir, digest, is_url, nearest
from tl.types import Array, Variables

# Part of every key: a new format starts new banks.
BANK_FORMAT = 4
# Images per shard of a bank (chosen, not tuned).
SHARD = 512
# Bytes from which on the features of a call are in a file (chosen, not tuned).
MAPPED = 16 << 20


class Features(NamedTuple):
    """The pooled features of a list of images.

    Attributes:
      values: f32[n d]; zero where an image could not be read. On Linux, many rows are mapped from a
        file, whose pages the system can write to the disk when memory is short.
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


def prefix_digest(clf: Classifier, variables: Variables, endpoint: str) -> str:
    """A hash of all bits of the backbone's parameters and statistics up to an endpoint."""
    stages = clf.spec.endpoints
    stage = endpoint.partition("/")[0]
    after = set(stages[stages.index(stage) + 1 :]) if stage in stages else set()
    backbone = {name: tree.get("backbone", {}) for name, tree in variables.items()}
    return digest(
        {
            name: {layer: leaves for layer, leaves in tree.items() if layer not in after}
            for name, tree in backbone.items()
        }
    )


def bank_key(clf: Classifier, variables: Variables, endpoint: str = "features") -> str:
    """The name of a bank: a hash of everything that determines the outputs of an endpoint.

    It covers the backbone up to the endpoint, its dtype, the preprocessing, the kind of device, the
    precision of products (JAX's default on a GPU is TF32), and the versions of JAX and Pillow. The
    batch size is not part of it: another one may change the last bits.
    """
    facts = [
        BANK_FORMAT,
        clf.arch,
        clf.dtype,
        prefix_digest(clf, variables, endpoint),
        clf.pixels.as_dict(),
        endpoint,
        _hardware(variables),
        str(jax.config.jax_default_matmul_precision),  # type: ignore[attr-defined]
        jax.__version__,
        PIL.__version__,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _hardware(variables: Variables) -> list[str]:
    """The platforms and kinds of the devices that compute with these variables."""
    used = jax.device_put(jax.tree.leaves(variables)[0]).devices()
    return sorted({f"{device.platform} {device.device_kind}" for device in used})


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
      cache: folder that contains `banks`; default: `cache_dir()`. If it cannot be written, a
        `CacheWarning` says so and the features are computed without a bank.
      batch_size: images per forward pass.
      progress: wraps the iterator over the batches that have to be computed.

    Returns:
      `Features`, in the order of `paths`.

    Raises:
      ValueError: the network has no such endpoint; nothing was read.
    """
    width = widths(clf, variables, endpoint)[endpoint]
    bank = (cache or cache_dir()) / "banks" / f"{clf.arch}-{bank_key(clf, variables, endpoint)}"
    data.hash_remote(paths)
    hashes = [identity(path) for path in paths]
    path_of = dict(zip(hashes, paths, strict=True))
    positions: dict[str, list[int]] = {}
    for i, name in enumerate(hashes):
        positions.setdefault(name, []).append(i)
    values, valid = _zeros((len(hashes), width), bank), np.zeros(len(hashes), bool)
    for name, row in shards.read(bank, "features", width, positions):
        values[positions[name]], valid[positions[name]] = row, True
    _share_rows(values, valid)
    reused = int(valid.sum())
    names = [name for name, rows in positions.items() if not valid[rows[0]]]
    reasons: dict[str, str] = {}
    unwritten: dict[str, np.ndarray] = {}
    if names:
        variables = devices.put_local(clf.fold_batch_norm(variables))
        program = pooled(clf, endpoint)
        function = lambda images: program(variables, pixels.to_images01(images))
        prepare = functools.partial(pixels.prepare, clf.pixels)
        with hosts.deferred(), contextlib.ExitStack() as stack:  # SIGTERM loses no feature
            stack.callback(lambda: shards.write(bank, "features", unwritten))
            for batch in map_sources(
                function,
                [path_of[name] for name in names],
                prepare,
                batch_size=batch_size,
                progress=progress,
            ):
                for i, row in zip(batch.index, batch.values, strict=True):
                    if batch.own:
                        unwritten[names[i]] = row
                    values[positions[names[i]]], valid[positions[names[i]]] = row, True
                failed = zip(batch.failed, batch.skipped, strict=True)
                reasons |= {names[i]: skip.why for i, skip in failed}
                if len(unwritten) >= SHARD:
                    shards.write(bank, "features", unwritten)
                    unwritten = {}
    skipped = tuple(
        Skipped(str(path), reasons[name])
        for path, name in zip(paths, hashes, strict=True)
        if name in reasons
    )
    return Features(values, valid, skipped, bank, reused)


def _zeros(shape: tuple[int, int], folder: Path) -> np.ndarray:
    """Zeros f32 of a shape; of `MAPPED` bytes or more in a file in `folder`, if that can hold it.

    The file has no name and ends with the array.
    """
    nbytes = 4 * shape[0] * shape[1]
    if nbytes >= MAPPED and not is_url(folder) and hasattr(os, "posix_fallocate"):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                # On a full disk, a write to blocks that are not reserved would end the process.
                os.posix_fallocate(file.fileno(), 0, nbytes)
                return np.asarray(np.memmap(file, np.float32, "r+", shape=shape))
    return np.zeros(shape, np.float32)


def _share_rows(values: np.ndarray, valid: np.ndarray) -> None:
    """Adds the rows that are in the banks of other processes, which may not share a disk.

    Args:
      values: f32[n d], those of this process; changed.
      valid: bool[n], the rows that this process has; changed.
    """
    known = np.stack(hosts.gather(valid))
    if known.any(axis=0).sum() == known.all(axis=0).sum():
        return
    owner = np.where(known.any(axis=0), known.argmax(axis=0), -1)
    rows = hosts.gather(values[owner == hosts.index()])
    for i, part in enumerate(rows):
        values[owner == i], valid[owner == i] = part, True


def widths(clf: Classifier, variables: Variables, *endpoints: str) -> dict[str, int]:
    """The number of channels of endpoints; without names, of every one, and of "features".

    Raises:
      ValueError: the network has no such endpoint.
    """
    if endpoints == ("features",):
        return {"features": clf.spec.features}
    side = max(clf.pixels.size, clf.spec.min_size)
    blank = jax.ShapeDtypeStruct((1, side, side, len(clf.pixels.mean)), jnp.float32)
    output = jax.eval_shape(clf.apply, variables, blank)
    every = {**output.endpoints, "features": output.features}
    for name in endpoints:
        if name not in every:
            raise ValueError(
                f"{clf.arch} has no endpoint {name!r}; nearest: {nearest(name, every)}"
            )
    return {name: every[name].shape[-1] for name in endpoints or every}


@functools.cache
def pooled(clf: Classifier, endpoint: str) -> Callable[[Variables, Array], jax.Array]:
    """The jitted `(variables, images01 f32[b s s c]) -> f32[b d]`, the pooled maps of an endpoint.

    Args:
      clf: the network.
      endpoint: "features" or an endpoint, whose map is averaged over its positions.
    """

    def run(variables: Variables, images01: jax.Array) -> jax.Array:
        output = clf.apply(variables, images01)
        if endpoint == "features":
            return output.features
        return jnp.mean(output.endpoints[endpoint].astype(jnp.float32), axis=(1, 2))

    return devices.shard_rows(run)


def identity(path: Source) -> str:
    """The name of an image in a cache: the hash of its content, and the value of white if given."""
    white = white_of(path)
    try:
        return data.content_hash(path) + (f"-white{white}" if white else "")
    except OSError:
        return f"unreadable: {path}"  # the loader reports the reason, as for a damaged image
