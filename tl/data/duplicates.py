"""Duplicate images: equal bytes, or near-duplicates that were re-saved, resized or brightened.

Two images are near-duplicates if their difference hashes differ in at most `MAX_BITS` of 64 bits
and their thumbnails have a correlation of at least `MIN_CORRELATION`. The limits were chosen on
1,759 photographs (cats_vs_dogs, oxford_pets, imagenet_samples) and on copies of 180 of them. Among
the photographs, unrelated images with so few differing bits reach a correlation of at most 0.51,
and exactly one true pair was found. All copies of these kinds are found (at most 7 bits,
correlation at least 0.984): JPEG at quality 60 and 30, half the size, the shorter side 192,
squashed to 224 x 224, 10 % brighter. Of the copies that lack 2 % at each side, 170 are found.
Mirrored, rotated, gray or more tightly cropped copies are not recognized.

Similarity proves nothing if all images of a data set resemble each other, such as solar cells
photographed by one camera. Near-duplicates are therefore not computed if the median image has
`NEIGHBORS` others with a correlation above `SIMILAR`. (The correlation of the median image with its
eighth neighbor is 0.52 in the photographs above and 0.86 in ELPV, where different cells reach
0.998.)

Fingerprints are cached in `cache_dir()` by content hash, 776 bytes per image. JPEG decoders differ
by at most one level, so another machine may decide differently about a pair at the limit; equal
bytes are always found.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from tl import reporting
from tl.data import shards
from tl.data.decode import ImageError, decode_reduced
from tl.data.spec import DataSpec, Source, Stored, file_of, white_of
from tl.paths import cache_dir
from tl.storage import Remote

# Chosen on the photographs that the module's docstring describes.
MAX_BITS = 8
MIN_CORRELATION = 0.95
SIMILAR = 0.75
# More copies of one image than a data set should contain; chosen, not tuned.
NEIGHBORS = 8
# Standard deviation in levels of 255: a flat image resembles every other; chosen, not tuned.
MIN_CONTRAST = 2.0

# Side of a thumbnail, in pixels.
_SIDE = 16
# Version of the fingerprint; part of the cache folder's name.
_FORMAT = 2
# Bytes of a fingerprint.
_WIDTH = 8 + 3 * _SIDE * _SIDE
# Fingerprints per shard of the cache; chosen, not tuned.
_SHARD = 4096
# Files of a bucket that are read at a time; chosen, not tuned.
_REQUESTS = 32
# Images per block; two blocks are compared at a time, in 50 MB. Chosen, not tuned.
_BLOCK = 1024
# Correlations this close to `MIN_CORRELATION` are computed again, pair by pair, because the result
# of a matrix product depends on its shape; more than the rounding error of either.
_ROUNDING = 1e-5
# Images, or pairs of blocks, that take seconds and therefore show progress; chosen, not tuned.
_LONG = 1000

Item = TypeVar("Item")
_remote_hashes: dict[Remote, str] = {}


def content_hash(source: Source | str) -> str:
    """SHA-256 of an image file, in hex.

    It is cached in the process: of a file by path, size and modification time, of an image in a
    container by its `Stored`. For images in a bucket, call `hash_remote` first.

    Raises:
      OSError: the file cannot be read.
    """
    source = source if isinstance(source, str) else file_of(source)
    if isinstance(source, Remote) and source in _remote_hashes:
        return _remote_hashes[source]
    if not isinstance(source, (Path, str)):
        return _hash_stored(source)
    stat = os.stat(source)
    return _hash(os.path.abspath(source), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1 << 17)
def _hash_stored(source: Stored) -> str:
    """Equal instances have equal bytes; see `Stored`."""
    return getattr(source, "sha256", "") or hashlib.sha256(source.read_bytes()).hexdigest()


@lru_cache(maxsize=1 << 17)
def _hash(path: str, size: int, mtime: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_remote(sources: Iterable[Source], *, cache: Path | None = None) -> None:
    """Computes the hashes of images in buckets for `content_hash`, many at a time.

    They are cached by address, size and version, in addition to the process. Files that cannot be
    read are left out.

    Args:
      sources: images anywhere; those that are not in a bucket are ignored.
      cache: folder of all caches; default `cache_dir()`.
    """
    remote = {file for file in map(file_of, sources) if isinstance(file, Remote)}
    todo = {_remote_key(file): file for file in remote if file not in _remote_hashes}
    if not todo:
        return
    folder = (cache or cache_dir()) / "hashes"
    for key, row in shards.read(folder, "hashes", 32):
        if key in todo:
            _remote_hashes[todo.pop(key)] = row.tobytes().hex()

    def compute(key: str) -> bytes:
        try:
            return hashlib.sha256(todo[key].read_bytes()).digest()
        except OSError:
            return b""

    keys, rows = sorted(todo, key=lambda key: todo[key]), {}
    with ThreadPoolExecutor(_REQUESTS) as pool:
        digests = zip(keys, pool.map(compute, keys), strict=True)
        for key, digest in _progress(digests, len(keys), "reading the bucket, images"):
            if digest:
                _remote_hashes[todo[key]] = digest.hex()
                rows[key] = np.frombuffer(digest, np.uint8)
            if len(rows) == _SHARD:
                shards.write(folder, "hashes", rows)
                rows = {}
    shards.write(folder, "hashes", rows)


def _remote_key(file: Remote) -> str:
    return hashlib.sha256(repr((file.url, file.size, file.version)).encode()).hexdigest()


def content_hashes(spec: DataSpec) -> list[str]:
    """`content_hash` of every image of a data set.

    Raises:
      ValueError: a file cannot be read.
    """
    hashes = []
    hash_remote(example.path for example in spec.examples)
    for example in spec.examples:
        try:
            hashes.append(content_hash(example.path))
        except OSError as error:
            raise ValueError(
                f"{example.path} cannot be read ({error.strerror or error}), expected every file "
                f"of {spec.name} to be readable"
            ) from None
    return hashes


def split_digest(spec: DataSpec) -> str:
    """SHA-256 of the contents and class names of all images; independent of file names.

    It identifies a part of a split.

    Raises:
      ValueError: a file cannot be read.
    """
    rows = sorted(
        f"{h} {spec.classes[e.label]}"
        for h, e in zip(content_hashes(spec), spec.examples, strict=True)
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def fingerprint(source: Source | str | bytes) -> np.ndarray:
    """A difference hash and a thumbnail of an image.

    Returns:
      uint8[776]: 64 bits, one per cell of the gray image in 8 x 8 cells, set if the cell is darker
      than its right neighbor; then 16 x 16 x 3 levels of RGB. Both are means over the cells of an
      image of any shape.

    Raises:
      ImageError: the image cannot be decoded.

    Reference: N. Krawetz, "Kind of Like That", 2013 (dHash).
    """
    image = Image.fromarray(decode_reduced(source, 4 * _SIDE))
    gray = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX))
    thumbnail = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX))
    return np.concatenate([np.packbits(gray[:, 1:] > gray[:, :-1]), thumbnail.ravel()])


def fingerprints(
    sources: Mapping[str, Source], *, cache: Path | None = None
) -> dict[str, np.ndarray]:
    """The fingerprints of images by content hash, read from the cache or computed and cached.

    Args:
      sources: content hash -> an image with that content.
      cache: folder of all caches; default `cache_dir()`.

    Returns:
      content hash -> uint8[776] as `fingerprint` returns it; images that cannot be decoded are
      missing.
    """
    whites = sorted({white_of(source) for source in sources.values()} - {0})
    name = "-".join([f"fingerprints-{_FORMAT}", *(f"white{white}" for white in whites)])
    folder = (cache or cache_dir()) / name
    cached = {h: row for h, row in shards.read(folder, "fingerprints", _WIDTH) if h in sources}

    def compute(h: str) -> np.ndarray | None:
        try:
            return fingerprint(sources[h])
        except ImageError:
            return None

    todo = [h for h in sources if h not in cached]

    def computed() -> Iterator[tuple[str, np.ndarray | None]]:
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(todo), _SHARD):
                part = todo[start : start + _SHARD]
                yield from zip(part, pool.map(compute, part), strict=True)

    rows: dict[str, np.ndarray] = {}
    for h, row in _progress(computed(), len(todo), "searching duplicates, images"):
        rows |= {} if row is None else {h: row}
        if len(rows) == _SHARD:
            cached |= shards.write(folder, "fingerprints", rows)
            rows = {}
    cached |= shards.write(folder, "fingerprints", rows)
    return cached


def near_groups(prints: Mapping[str, np.ndarray]) -> dict[str, str] | None:
    """The groups of near-duplicates, and of their near-duplicates.

    The time grows with the square of the number of images, whatever the size of the groups. The
    memory is 3 kB per image and 50 MB.

    Args:
      prints: content hash -> uint8[776] as `fingerprint` returns it.

    Returns:
      content hash of each image that has near-duplicates -> smallest content hash of its group;
      None if all images resemble each other, because similarity proves nothing then.
    """
    names = sorted(prints)
    if len(names) < 2:
        return {}
    rows = np.stack([prints[name] for name in names])
    if _all_similar(rows[:, 8:]):
        return None
    comparable = np.flatnonzero(_have_contrast(rows[:, 8:]))
    names, rows = [names[i] for i in comparable], rows[comparable]
    first = _first_of_group(rows)
    sizes = np.bincount(first, minlength=len(names))
    return {name: names[i] for name, i in zip(names, first, strict=True) if sizes[i] > 1}


def _first_of_group(rows: np.ndarray) -> np.ndarray:
    """The index of the first image in the group of every image, i[n], by union-find.

    Args:
      rows: uint8[n 776], fingerprints.
    """
    parent = np.arange(len(rows))
    bits = np.ascontiguousarray(rows[:, :8]).view(np.uint64)[:, 0]
    blocks = [np.arange(i, min(i + _BLOCK, len(rows))) for i in range(0, len(rows), _BLOCK)]
    pairs = list(itertools.combinations_with_replacement(blocks, 2))
    for one, other in _progress(pairs, len(pairs), "comparing images, pairs of blocks"):
        candidates = np.bitwise_count(bits[one, None] ^ bits[other]) <= MAX_BITS
        candidates &= _roots(parent, one)[:, None] != _roots(parent, other)
        i, j = (np.flatnonzero(candidates.any(axis=axis)) for axis in (1, 0))
        if not len(i):
            continue
        near = candidates[np.ix_(i, j)]
        near &= _correlated(rows[one[i], 8:], rows[other[j], 8:], near)
        for k in np.flatnonzero(near.any(axis=1)):
            _join(parent, np.append(other[j[near[k]]], one[i[k]]))
    return _roots(parent, np.arange(len(rows)))


def _roots(parent: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """The roots of the trees that hold `nodes`; shortens the paths to them in `parent`."""
    roots = parent[nodes]
    while ((above := parent[roots]) != roots).any():
        roots = above
    parent[nodes] = roots
    return roots


def _join(parent: np.ndarray, nodes: np.ndarray) -> None:
    """Joins the trees that hold `nodes` under the smallest root."""
    roots = _roots(parent, nodes)
    parent[roots] = roots.min()


def _correlated(one: np.ndarray, other: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Which thumbnails have a correlation of at least `MIN_CORRELATION`, bool[n m].

    Args:
      one: uint8[n d].
      other: uint8[m d].
      relevant: bool[n m], the pairs for which the result must be exact.
    """
    a, b = _standardized(one), _standardized(other)
    correlation = a @ b.T
    at_limit = relevant & (np.abs(correlation - MIN_CORRELATION) < _ROUNDING)
    for i, j in zip(*np.nonzero(at_limit), strict=True):
        correlation[i, j] = a[i] @ b[j]
    return correlation >= MIN_CORRELATION


def _progress(items: Iterable[Item], total: int, label: str) -> Iterable[Item]:
    """The items; shows progress if there are many."""
    return reporting.progress(items, total, label) if total >= _LONG else items


def _standardized(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails f32[n d] whose scalar products are correlations.

    The mean of each channel is subtracted, because a common tint is not a similarity.
    """
    levels = thumbnails.reshape(len(thumbnails), _SIDE * _SIDE, 3).astype(np.float32)
    flat = (levels - levels.mean(axis=1, keepdims=True)).reshape(thumbnails.shape)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    # An image without contrast becomes 0 and correlates with no other.
    has_contrast = norms >= MIN_CONTRAST * np.sqrt(flat.shape[1])
    return np.where(has_contrast, flat / np.maximum(norms, 1e-6), np.float32(0))


def _have_contrast(thumbnails: np.ndarray) -> np.ndarray:
    """Which thumbnails, uint8[n d], can correlate with others, bool[n]."""
    starts = range(0, len(thumbnails), _BLOCK)
    return np.concatenate([_standardized(thumbnails[i : i + _BLOCK]).any(axis=1) for i in starts])


def _all_similar(thumbnails: np.ndarray) -> bool:
    """Whether the median image has `NEIGHBORS` similar ones.

    The median is over the first 256 images by content hash, which are the same on all machines.

    Args:
      thumbnails: uint8[n d], in the order of the content hashes.
    """
    count = NEIGHBORS + 1  # the largest correlation is that of an image with itself
    if len(thumbnails) <= count:
        return False
    sample = _standardized(thumbnails[:256])
    largest = np.empty((len(sample), 0), np.float32)
    for start in range(0, len(thumbnails), _BLOCK):
        block = sample @ _standardized(thumbnails[start : start + _BLOCK]).T
        largest = np.concatenate([largest, block], axis=1)
        largest = np.partition(largest, max(largest.shape[1] - count, 0), axis=1)[:, -count:]
    return float(np.median(largest.min(axis=1))) > SIMILAR


def clusters(spec: DataSpec, *, near: bool = True) -> list[str]:
    """The group of duplicates of every image, named by the smallest content hash in the group.

    Args:
      spec: the data set.
      near: whether near-duplicates (and their near-duplicates) form a group; otherwise only images
        of equal bytes do.

    Raises:
      ValueError: a file cannot be read.
    """
    hashes = content_hashes(spec)
    groups = (
        near_duplicate_groups({h: e.path for h, e in zip(hashes, spec.examples, strict=True)})
        if near
        else None
    )
    return [(groups or {}).get(h, h) for h in hashes]


def near_duplicate_groups(sources: Mapping[str, Source]) -> dict[str, str] | None:
    """The groups of near-duplicates.

    Args:
      sources: content hash -> an image with that content.

    Returns:
      content hash of each image that has near-duplicates -> smallest content hash of its group;
      None if all images resemble each other, because near-duplicates cannot be recognized then.
    """
    return near_groups(fingerprints(sources))


def all_similar(spec: DataSpec) -> bool:
    """Whether the images resemble each other so much that near-duplicates are not recognized.

    Raises:
      ValueError: a file cannot be read.
    """
    hashes = content_hashes(spec)
    prints = fingerprints({h: e.path for h, e in zip(hashes, spec.examples, strict=True)})
    rows = [prints[h][8:] for h in sorted(prints)]
    return bool(rows) and _all_similar(np.stack(rows))


def leaks(train: DataSpec, test: DataSpec) -> list[tuple[Source, Source]]:
    """Images of `test` that have a duplicate or near-duplicate in `train`.

    Returns:
      Pairs (image in `train`, image in `test`).

    Raises:
      ValueError: a file cannot be read.
    """
    examples = (*train.examples, *test.examples)
    names = clusters(DataSpec(f"{train.name} and {test.name}", examples, train.classes, "", ""))
    in_train: dict[str, Source] = {}
    for name, example in zip(names, train.examples, strict=False):
        in_train.setdefault(name, example.path)
    return [
        (in_train[name], example.path)
        for name, example in zip(names[len(train.examples) :], test.examples, strict=True)
        if name in in_train
    ]
