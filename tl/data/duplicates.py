"""Which pictures are the same: byte for byte, or nearly, re-saved, resized or squashed, brightened a little.

Two pictures are near-duplicates when their difference hashes differ in at most `MAX_BITS` of 64 bits and their
thumbnails correlate by at least `MIN_CORRELATION`. Chosen on 1,759 photographs (cats_vs_dogs, oxford_pets,
imagenet_samples), where unrelated ones with so few bits correlate by at most 0.51 and exactly one true pair was found,
and on copies of 180 of them: JPEG at quality 60 and 30, half the size, the shorter side 192, squashed to 224 x 224,
10 % brighter (all found; at most 7 bits, at least 0.984), 2 % cut off each side (170 found). Mirrored, turned, grey or
more tightly cropped copies are not recognised.

Likeness proves nothing where all pictures are alike, as solar cells photographed from one place are: where the typical
picture has `NEIGHBOURS` others that correlate above `ALIKE` with it, near-duplicates are not looked for. (The typical
picture's eighth neighbour correlates by 0.52 among those photographs, by 0.86 in ELPV, where different cells reach 0.998.)

Fingerprints are kept in `cache_dir()` by content hash: 776 bytes a picture. JPEG decoders differ by a level at most, so a
pair at the very edge of the rule could be judged otherwise on another machine; equal bytes never are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from tl.data import shards
from tl.data.decode import ImageError, glance
from tl.data.spec import DataSpec, Record, Source
from tl.paths import cache_dir

MAX_BITS = 8
MIN_CORRELATION = 0.95
NEIGHBOURS = 8  # more copies of one picture than a set should hold
ALIKE = 0.75
MIN_CONTRAST = 2.0  # levels of 255, standard deviation: a flat picture resembles every other (chosen, not tuned)

_SIDE = 16  # of a thumbnail
_FORMAT = 1  # a change of what a fingerprint is starts a new folder
_SHARD = 4096
_BLOCK = 256  # pictures compared with all others at a time: 50 MB of bits for 25,000


def content_hash(source: Source | str) -> str:
    """SHA-256 of a picture's file, in hex; kept within the process until its size or time of change differs.

    Raises:
      OSError: the file cannot be read.
    """
    if isinstance(source, Record):
        return _hash_of_record(source)
    stat = os.stat(source)
    return _hash(os.path.abspath(source), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1 << 17)
def _hash_of_record(record: Record) -> str:
    return hashlib.sha256(record.read_bytes()).hexdigest()


@lru_cache(maxsize=1 << 17)
def _hash(path: str, size: int, mtime: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hashes(spec: DataSpec) -> list[str]:
    """`content_hash` of every picture of a set.

    Raises:
      ValueError: a file that cannot be read.
    """
    hashes = []
    for example in spec.examples:
        try:
            hashes.append(content_hash(example.path))
        except OSError as error:
            why = f"{example.path} cannot be read ({error.strerror or error}), wanted every file of {spec.name}"
            raise ValueError(why) from None
    return hashes


def split_digest(spec: DataSpec) -> str:
    """SHA-256 over the content and the class name of every picture: names a side of a split, whatever the files' names."""
    rows = sorted(
        f"{h} {spec.classes[e.label]}"
        for h, e in zip(content_hashes(spec), spec.examples, strict=True)
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def fingerprint(source: Source | str | bytes) -> np.ndarray:
    """A difference hash and a thumbnail of a picture.

    Returns:
      uint8[776]: 64 bits, whether each of 8 x 8 cells of the grey picture is darker than its right neighbour, and
      16 x 16 x 3 levels of RGB; both are means over their cells, whatever the picture's shape.

    Raises:
      ImageError: the picture cannot be decoded.

    Reference: N. Krawetz, "Kind of Like That", 2013 (dHash).
    """
    image = Image.fromarray(glance(source, 4 * _SIDE))
    gray = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX))
    thumbnail = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX))
    return np.concatenate([np.packbits(gray[:, 1:] > gray[:, :-1]), thumbnail.ravel()])


def fingerprints(
    sources: Mapping[str, Source], *, cache: Path | None = None
) -> dict[str, np.ndarray]:
    """The fingerprints of pictures by content hash, from disk where they are known; pictures that are broken have none.

    Args:
      sources: content hash -> a picture of that content.
      cache: folder of all caches; default `cache_dir()`.
    """
    folder = (cache or cache_dir()) / f"fingerprints-{_FORMAT}"
    known = {h: row for h, row in shards.read(folder, "fingerprints") if h in sources}

    def compute(h: str) -> np.ndarray | None:
        try:
            return fingerprint(sources[h])
        except ImageError:
            return None

    todo = [h for h in sources if h not in known]
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(todo), _SHARD):
            part = todo[start : start + _SHARD]
            rows = {
                h: row
                for h, row in zip(part, pool.map(compute, part), strict=True)
                if row is not None
            }
            known |= shards.write(folder, "fingerprints", rows)
    return known


def near_pairs(prints: Mapping[str, np.ndarray]) -> list[tuple[str, str]] | None:
    """Pairs of near-duplicates among fingerprints by content hash, each pair and the list sorted.

    Returns:
      None where all pictures are alike, so that likeness proves nothing.
    """
    names = sorted(prints)
    if len(names) < 2:
        return []
    rows = np.stack([prints[name] for name in names])
    bits = np.ascontiguousarray(rows[:, :8]).view(np.uint64)[:, 0]
    thumbnails = _standardised(rows[:, 8:])
    if _all_alike(thumbnails):
        return None
    pairs: list[tuple[str, str]] = []
    for start in range(0, len(names), _BLOCK):
        differing = np.bitwise_count(bits[start : start + _BLOCK, None] ^ bits[None, start:])
        left, right = np.nonzero(np.triu(differing <= MAX_BITS, 1))
        for i, j in zip(left + start, right + start, strict=True):
            if thumbnails[i] @ thumbnails[j] >= MIN_CORRELATION:
                pairs.append((names[i], names[j]))
    return pairs


def _standardised(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails f32[n d] whose products are correlations: each channel's mean is taken away, for a tint is no likeness."""
    levels = thumbnails.reshape(len(thumbnails), _SIDE * _SIDE, 3).astype(np.float32)
    flat = (levels - levels.mean(axis=1, keepdims=True)).reshape(thumbnails.shape)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    enough = norms >= MIN_CONTRAST * np.sqrt(flat.shape[1])
    return np.where(
        enough, flat / np.maximum(norms, 1e-6), np.float32(0)
    )  # without contrast: like nothing


def _all_alike(thumbnails: np.ndarray) -> bool:
    """Judged on the first 256 pictures by content hash: a sample, and the same one everywhere."""
    sample = thumbnails[:256] @ thumbnails.T
    if sample.shape[1] <= NEIGHBOURS + 1:
        return False
    return (
        float(np.median(np.partition(sample, -NEIGHBOURS - 1, axis=1)[:, -NEIGHBOURS - 1])) > ALIKE
    )  # itself is first


def clusters(spec: DataSpec, *, near: bool = True) -> list[str]:
    """For every picture a name of the group that shows the same: the smallest content hash in it.

    Args:
      spec: the set.
      near: near-duplicates count as the same, and theirs too; otherwise equal bytes alone.

    Raises:
      ValueError: a file that cannot be read.
    """
    hashes = content_hashes(spec)
    named = (
        same_looks({h: e.path for h, e in zip(hashes, spec.examples, strict=True)})
        if near
        else None
    )
    return [(named or {}).get(h, h) for h in hashes]


def same_looks(sources: Mapping[str, Source]) -> dict[str, str] | None:
    """The content hash of each picture that has near-duplicates -> the smallest hash of its group.

    Args:
      sources: content hash -> a picture of that content.

    Returns:
      None where all pictures are alike, so that near-duplicates cannot be told.
    """
    pairs = near_pairs(fingerprints(sources))
    if pairs is None:
        return None
    groups: dict[str, set[str]] = {}
    for one, other in pairs:
        joined = groups.get(one, {one}) | groups.get(other, {other})
        groups |= dict.fromkeys(joined, joined)
    return {h: min(group) for h, group in groups.items()}


def leaks(train: DataSpec, test: DataSpec) -> list[tuple[Source, Source]]:
    """Pictures of `test` that `train` shows too, byte for byte or nearly: (the one in train, the one in test).

    Raises:
      ValueError: a file that cannot be read.
    """
    examples = (*train.examples, *test.examples)
    names = clusters(DataSpec(f"{train.name} and {test.name}", examples, train.classes, "", ""))
    seen: dict[str, Source] = {}
    for name, example in zip(names, train.examples, strict=False):
        seen.setdefault(name, example.path)
    tested: Sequence[str] = names[len(train.examples) :]
    return [
        (seen[name], e.path) for name, e in zip(tested, test.examples, strict=True) if name in seen
    ]
