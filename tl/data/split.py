"""Divide a data set into parts in which no picture stands twice: neither byte for byte nor re-saved or resized.

What "the same picture" is, `duplicates.py` says; a group of such pictures stays together. Parts that the makers of a set
named (`Example.part`) are kept as they are, even where they leak; `leaks` and `doctor` tell.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tl import paths
from tl.data.duplicates import clusters, leaks
from tl.data.spec import DataSpec, Split

TO_DIVIDE = "to divide it; add pictures, or give a test set of its own"


class Parts(NamedTuple):
    """A set in three, each with the classes of the whole and its examples in their order.

    Attributes:
      train: to learn from.
      validation: to choose on (strengths, checkpoints, temperature); empty where none was asked for.
      test: to measure on, once.
    """

    train: DataSpec
    validation: DataSpec
    test: DataSpec


def divide(
    spec: DataSpec,
    *,
    test_fraction: float = 0.25,
    validation_fraction: float = 0.15,
    seed: int,
    near_duplicates: bool = True,
) -> Parts:
    """Train, validation and test part.

    The set's own test and validation parts are taken where it has them. Otherwise the test part is that of `split`, and
    validation comes from what is left by the same rule: never from the test part.

    Args:
      spec: the set.
      test_fraction: share of the test part, in (0, 1); plays no part where the set has its own.
      validation_fraction: share of what is left, in [0, 1); 0 leaves validation empty unless the set has its own.
      seed: as in `split`.
      near_duplicates: keep them on one side, beside equal files.

    Raises:
      ValueError: a fraction outside its range, an unreadable file, classes or strata with too few different pictures to
        divide, or a class with none to learn from.
    """
    names = clusters(spec, near=near_duplicates)
    test = _test_rows(spec, names, test_fraction, seed)
    validation = _official(spec, "validation")
    left = _without(range(len(spec.examples)), test + validation)
    _teaches(spec, left)
    if validation_fraction and not validation:
        _check("validation_fraction", validation_fraction)
        purpose = "beside the test part, to take a validation part from them; or ask for none with validation_fraction 0"
        validation = _chosen(spec, names, left, validation_fraction, seed, purpose)
        left = _without(left, validation)
    train, *others = (_part(spec, rows) for rows in (left, validation, test))
    return Parts(train, *(replace(part, skipped=()) for part in others))


def split(
    spec: DataSpec, *, test_fraction: float = 0.25, seed: int, near_duplicates: bool = True
) -> tuple[DataSpec, DataSpec]:
    """(train, test): the set's own test part, or as it asks for: by content, in which `seed` has no part, or stratified.

    Raises:
      ValueError: as `divide`.
    """
    test = _test_rows(spec, clusters(spec, near=near_duplicates), test_fraction, seed)
    _teaches(spec, _without(range(len(spec.examples)), test))
    return _divided(spec, test)


def split_by_content(
    spec: DataSpec, *, test_fraction: float = 0.25, near_duplicates: bool = True
) -> tuple[DataSpec, DataSpec]:
    """(train, test), the same on every machine and whatever the files are called.

    Within a class, pictures that are the same are one group; groups are ordered by their smallest SHA-256 and the first
    `round(test_fraction * groups)` of them, at least one and never all, are the test part. A group that stands in two
    classes has a doubtful label: it stays in train, where it cannot spoil the measurement.

    Args:
      spec: the set; every file must be there. Its own parts play no part.
      test_fraction: share of the test part, in (0, 1).
      near_duplicates: count as the same, beside equal files.

    Returns:
      Two specs with the classes of `spec` and its examples in their order.

    Raises:
      ValueError: a fraction outside (0, 1), an unreadable file, or classes with fewer than two different pictures.
    """
    _check("test_fraction", test_fraction)
    everything = range(len(spec.examples))
    return _divided(
        spec, _by_content(spec, clusters(spec, near=near_duplicates), everything, test_fraction)
    )


def split_stratified(
    spec: DataSpec, *, test_fraction: float = 0.25, seed: int, near_duplicates: bool = True
) -> tuple[DataSpec, DataSpec]:
    """(train, test) at random, every stratum (label x `Example.stratum`) in its exact share.

    The test part has `round(test_fraction * n)` pictures, shared among the strata by largest remainder. Pictures that are
    the same stay in train, all copies.

    Args:
      spec: the set; its own parts play no part.
      test_fraction: share of the test part, in (0, 1).
      seed: of the NumPy generator (PCG64) that draws.
      near_duplicates: count as the same, beside equal files.

    Returns:
      Two specs with the classes of `spec` and its examples in their order.

    Raises:
      ValueError: a fraction outside (0, 1), an unreadable file, or strata with fewer than two different pictures.
    """
    _check("test_fraction", test_fraction)
    everything = range(len(spec.examples))
    return _divided(
        spec,
        _stratified(spec, clusters(spec, near=near_duplicates), everything, test_fraction, seed),
    )


def folds(
    spec: DataSpec, k: int, *, seed: int, near_duplicates: bool = True
) -> list[tuple[DataSpec, DataSpec]]:
    """`k` pairs (train, test) whose test parts are disjoint, every stratum spread over them as evenly as it goes.

    Pictures that are the same are dealt out together. A group that stands in two classes is in every train part and in
    no test part.

    Args:
      spec: the set; its own parts play no part.
      k: number of folds, at least 2.
      seed: of the NumPy generator (PCG64) that shuffles each stratum.
      near_duplicates: count as the same, beside equal files.

    Raises:
      ValueError: `k` below 2, an unreadable file, or classes with fewer than two different pictures or a set with fewer
        than `k`.
    """
    names = clusters(spec, near=near_duplicates)
    groups = _groups(spec, names, range(len(spec.examples)))
    if not 2 <= k <= len(groups):
        raise ValueError(
            f"{k} folds of {len(groups)} different pictures, wanted at least 2 and no more than there are"
        )
    strata = defaultdict(list)
    for name, rows in groups.items():
        example = spec.examples[rows[0]]
        strata[example.label, example.stratum].append(name)
    sizes = Counter(dict.fromkeys(spec.classes, 0))
    for (label, _), members in strata.items():
        sizes[spec.classes[label]] += len(members)
    _enough(sizes, f"to make {k} folds")
    rng, dealt = np.random.default_rng(seed), 0
    tests: list[list[int]] = [[] for _ in range(k)]
    for key in sorted(strata):
        for name in rng.permutation(sorted(strata[key])):
            tests[dealt % k] += groups[str(name)]
            dealt += 1  # goes on where the last stratum ended, so that the folds are of one size
    return [_divided(spec, test) for test in tests]


def _official(spec: DataSpec, part: str) -> list[int]:
    return [i for i, example in enumerate(spec.examples) if example.part == part]


def _test_rows(spec: DataSpec, names: Sequence[str], fraction: float, seed: int) -> list[int]:
    """The set's own test part, or one taken from what is not its validation part."""
    _check("test_fraction", fraction)
    left = _without(range(len(spec.examples)), _official(spec, "validation"))
    return _official(spec, "test") or _chosen(spec, names, left, fraction, seed)


def _chosen(
    spec: DataSpec,
    names: Sequence[str],
    rows: Sequence[int],
    fraction: float,
    seed: int,
    purpose: str = TO_DIVIDE,
) -> list[int]:
    """The share of `rows` that the set's own rule takes away."""
    if spec.split is Split.CONTENT:
        return _by_content(spec, names, rows, fraction, purpose)
    return _stratified(spec, names, rows, fraction, seed, purpose)


def _groups(spec: DataSpec, names: Sequence[str], rows: Sequence[int]) -> dict[str, list[int]]:
    """Rows by the name of what they show, sorted by name, without those that stand in two classes."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i in rows:
        groups[names[i]].append(i)
    return {
        name: groups[name]
        for name in sorted(groups)
        if len({spec.examples[i].label for i in groups[name]}) == 1
    }


def _by_content(
    spec: DataSpec,
    names: Sequence[str],
    rows: Sequence[int],
    fraction: float,
    purpose: str = TO_DIVIDE,
) -> list[int]:
    classes: list[list[list[int]]] = [[] for _ in spec.classes]
    for group in _groups(spec, names, rows).values():
        classes[spec.examples[group[0]].label].append(group)
    _enough(
        {name: len(groups) for name, groups in zip(spec.classes, classes, strict=True)}, purpose
    )
    return [
        i for groups in classes for group in groups[: _share(fraction, len(groups))] for i in group
    ]


def _share(fraction: float, n: int) -> int:
    """At least one, and never all."""
    return min(max(round(fraction * n), 1), n - 1)


def _stratified(
    spec: DataSpec,
    names: Sequence[str],
    rows: Sequence[int],
    fraction: float,
    seed: int,
    purpose: str = TO_DIVIDE,
) -> list[int]:
    copies = Counter(names[i] for i in rows)
    strata: dict[tuple[int, str], list[int]] = defaultdict(list)
    for i in rows:
        example = spec.examples[i]
        strata[example.label, example.stratum] += [i] if copies[names[i]] == 1 else []
    keys = sorted(strata)
    _enough(
        {" ".join(filter(None, (spec.classes[k[0]], k[1]))): len(strata[k]) for k in keys}, purpose
    )
    sizes = np.array([len(strata[k]) for k in keys])
    counts = np.floor(fraction * sizes).astype(int)
    missing = max(round(fraction * int(sizes.sum())) - int(counts.sum()), 0)
    counts[np.argsort(counts - fraction * sizes, kind="stable")[:missing]] += 1
    counts = np.clip(counts, 1, sizes - 1)
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(strata[k])[:n] for k, n in zip(keys, counts, strict=True)]
    return np.concatenate(drawn).tolist()


def _without(rows: Iterable[int], taken: Iterable[int]) -> list[int]:
    gone = set(taken)
    return [i for i in rows if i not in gone]


def _part(spec: DataSpec, rows: Iterable[int]) -> DataSpec:
    return replace(spec, examples=tuple(spec.examples[i] for i in sorted(rows)))


def _divided(spec: DataSpec, test: list[int]) -> tuple[DataSpec, DataSpec]:
    train = _without(range(len(spec.examples)), test)
    return _part(spec, train), replace(_part(spec, test), skipped=())


def _check(name: str, fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"{name} is {fraction}, wanted a share between 0 and 1")


def _teaches(spec: DataSpec, rows: Iterable[int]) -> None:
    taught = {spec.examples[i].label for i in rows}
    unknown = [name for label, name in enumerate(spec.classes) if label not in taught]
    if unknown:
        raise ValueError(
            f"no picture of {', '.join(map(repr, unknown[:5]))}{f' and {len(unknown) - 5} more' if unknown[5:] else ''} is "
            f"in the training part of {spec.name}, wanted some of each class to learn from; move some there, or leave the "
            "class out"
        )


def _enough(sizes: Mapping[str, int], purpose: str) -> None:
    few = [f"{name!r} has {n}" for name, n in sizes.items() if n < 2]
    if few:
        raise ValueError(
            f"{', '.join(few)} different pictures, wanted at least 2 in each class and stratum {purpose}"
        )


def split_validation(spec: DataSpec, share: float, seed: int) -> tuple[DataSpec, DataSpec]:
    """(train, validation) of a set that is all for learning."""
    if not share:
        return spec, dataclasses.replace(spec, examples=(), skipped=())
    return split(spec, test_fraction=share, seed=seed)


def remap_test_labels(test_spec: DataSpec, spec: DataSpec) -> DataSpec:
    """The test set with its labels counted as `spec` counts them; what it shares with `spec` is an error."""
    if unknown := sorted(set(test_spec.classes) - set(spec.classes)):
        raise ValueError(
            f"{test_spec.name} has classes that were not learned: {unknown[:5]}; nearest to {unknown[0]!r}: "
            f"{paths.nearest(unknown[0], spec.classes)}"
        )
    if shared := leaks(spec, test_spec):
        (ours, theirs), more = shared[0], f", and {len(shared) - 1} more" if len(shared) > 1 else ""
        raise ValueError(
            f"{theirs} of the test set is also in --data, as {ours}{more}; take it out of one of them, for it would be "
            "tested on what was learned"
        )
    to_ours = [spec.classes.index(name) for name in test_spec.classes]
    examples = tuple(dataclasses.replace(e, label=to_ours[e.label]) for e in test_spec.examples)
    return dataclasses.replace(test_spec, examples=examples, classes=spec.classes)
