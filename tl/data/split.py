"""Divide a data set into a train and a test part in which no file, byte for byte, stands on both sides.

Two files that show the same picture in different bytes (re-saved, resized) are not recognised here.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from tl.data.spec import DataSpec, Record, Source, Split


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


def split(spec: DataSpec, *, test_fraction: float = 0.25, seed: int) -> tuple[DataSpec, DataSpec]:
    """(train, test) as the set asks for: by content, in which `seed` has no part, or stratified."""
    if spec.split is Split.CONTENT:
        return split_by_content(spec, test_fraction=test_fraction)
    return split_stratified(spec, test_fraction=test_fraction, seed=seed)


def split_by_content(spec: DataSpec, *, test_fraction: float = 0.25) -> tuple[DataSpec, DataSpec]:
    """(train, test), the same on every machine and whatever the files are called.

    Within a class, files of equal bytes are one group; groups are ordered by SHA-256 and the first
    `round(test_fraction * groups)` of them, at least one and never all, are the test part. A file that stands in two
    classes has a doubtful label: it stays in train, where it cannot spoil the measurement.

    Args:
      spec: the set; every file must be there.
      test_fraction: share of the test part, in (0, 1).

    Returns:
      Two specs with the classes of `spec` and its examples in their order.

    Raises:
      ValueError: a fraction outside (0, 1), an unreadable file, or classes with fewer than two different pictures.
    """
    _check(test_fraction)
    digests = _digests(spec)
    labels = defaultdict(set)
    for digest, example in zip(digests, spec.examples, strict=True):
        labels[digest].add(example.label)
    groups: list[list[str]] = [[] for _ in spec.classes]
    for digest in sorted(labels):
        if len(labels[digest]) == 1:
            groups[min(labels[digest])].append(digest)
    _at_least_two({name: len(group) for name, group in zip(spec.classes, groups, strict=True)})
    test = {d for group in groups for d in group[: min(max(round(test_fraction * len(group)), 1), len(group) - 1)]}
    return _divide(spec, (i for i, digest in enumerate(digests) if digest in test))


def split_stratified(spec: DataSpec, *, test_fraction: float = 0.25, seed: int) -> tuple[DataSpec, DataSpec]:
    """(train, test) at random, every stratum (label x `Example.stratum`) in its exact share.

    The test part has `round(test_fraction * n)` pictures, shared among the strata by largest remainder. Files of equal
    bytes stay in train, all copies.

    Args:
      spec: the set.
      test_fraction: share of the test part, in (0, 1).
      seed: of the NumPy generator (PCG64) that draws.

    Returns:
      Two specs with the classes of `spec` and its examples in their order.

    Raises:
      ValueError: a fraction outside (0, 1), an unreadable file, or strata with fewer than two different pictures.
    """
    _check(test_fraction)
    digests = _digests(spec)
    copies = defaultdict(int)
    strata = defaultdict(list)
    for digest in digests:
        copies[digest] += 1
    for i, example in enumerate(spec.examples):
        strata[example.label, example.stratum] += [i] if copies[digests[i]] == 1 else []
    keys = sorted(strata)
    _at_least_two({" ".join(filter(None, (spec.classes[k[0]], k[1]))): len(strata[k]) for k in keys})
    sizes = np.array([len(strata[k]) for k in keys])
    counts = np.floor(test_fraction * sizes).astype(int)
    missing = max(round(test_fraction * int(sizes.sum())) - int(counts.sum()), 0)
    counts[np.argsort(counts - test_fraction * sizes, kind="stable")[:missing]] += 1
    counts = np.clip(counts, 1, sizes - 1)
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(strata[k])[:n] for k, n in zip(keys, counts, strict=True)]
    return _divide(spec, np.concatenate(drawn).tolist())


def _digests(spec: DataSpec) -> list[str]:
    try:
        return [content_hash(example.path) for example in spec.examples]
    except OSError as error:
        why = f"{error.filename} cannot be read ({error.strerror}), wanted every file of {spec.name}"
        raise ValueError(why) from None


def _divide(spec: DataSpec, test: Iterable[int]) -> tuple[DataSpec, DataSpec]:
    chosen = set(test)
    parts = [tuple(e for i, e in enumerate(spec.examples) if (i in chosen) is side) for side in (False, True)]
    return replace(spec, examples=parts[0]), replace(spec, examples=parts[1], skipped=())


def _check(test_fraction: float) -> None:
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}, wanted a share between 0 and 1")


def _at_least_two(sizes: dict[str, int]) -> None:
    few = [f"{name!r} has {n}" for name, n in sizes.items() if n < 2]
    if few:
        raise ValueError(
            f"{', '.join(few)} different pictures, wanted at least 2 in each class and stratum to divide it; "
            "add pictures, or give a test set of its own"
        )
