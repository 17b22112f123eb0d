"""Divides a data set into parts that share no image, neither equal bytes nor near-duplicates.

`duplicates.py` defines when two images are duplicates; a group of duplicates stays in one part.
Official parts (`Example.part`) are kept as they are, even if they share images, which `leaks` and
`doctor` report. An image with a duplicate in an official part is never drawn into another one: it
stays in the training part if that is its official part, and is left out otherwise. A second data
set can serve as the test set; `remap.py` translates its labels.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tl.data.duplicates import clusters
from tl.data.spec import DataSpec, Skipped, Split
from tl.labels.names import counted, listed, path_end, shown

_ADVICE = "for a test part; add images, or provide a separate test set"
_VALIDATION_ADVICE = (
    "for a validation part in addition to the test part; add images, or set `validation_fraction=0`"
)


class Parts(NamedTuple):
    """Three parts of a data set, each with all its classes and in the order of its examples.

    Attributes:
      train: examples for training.
      validation: examples for the choice of regularization, checkpoint and temperature; may be
        empty.
      test: examples for one final evaluation.
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
    """The training, validation and test parts of a data set.

    Official test and validation parts are used if they exist. Otherwise the test part is that of
    `split`, and the validation part is taken from the remaining examples by the same rule.

    Args:
      spec: the data set.
      test_fraction: fraction of the test part, in (0, 1); unused if there is an official one.
      validation_fraction: fraction of the remaining examples, in [0, 1); 0 gives an empty
        validation part unless there is an official one.
      seed: as in `split`.
      near_duplicates: whether to keep near-duplicates in one part, in addition to equal files.

    Raises:
      ValueError: a fraction is outside its range, a file cannot be read, a class or stratum has too
        few different images to divide, or a class has no image in the training part.
    """
    groups = clusters(spec, near=near_duplicates)
    test = _test_rows(spec, groups, test_fraction, seed)
    train, validation = _train_and_validation(spec, groups, test, validation_fraction, seed)
    return Parts(train, validation, replace(subset(spec, test), skipped=()))


def split(
    spec: DataSpec, *, test_fraction: float = 0.25, seed: int, near_duplicates: bool = True
) -> tuple[DataSpec, DataSpec]:
    """(train, test): the official test part, or one by the rule `DataSpec.split`.

    The training part includes an official validation part.

    Args:
      spec: the data set.
      test_fraction: fraction of the test part, in (0, 1); unused if there is an official one.
      seed: seed of a stratified split; a split by content does not use it.
      near_duplicates: whether to keep near-duplicates in one part, in addition to equal files.

    Raises:
      ValueError: as `divide`.
    """
    groups = clusters(spec, near=near_duplicates)
    test = _test_rows(spec, groups, test_fraction, seed)
    train = _train_part(spec, groups, _without(range(len(spec.examples)), test), test)
    return train, replace(subset(spec, test), skipped=())


def split_by_content(
    spec: DataSpec, *, test_fraction: float = 0.25, near_duplicates: bool = True
) -> tuple[DataSpec, DataSpec]:
    """(train, test) by file content: the same parts on every machine and for all file names.

    Within a class, duplicates form one group. Groups are sorted by their smallest SHA-256, and the
    first `round(test_fraction * groups)` of them, at least one but never all, are the test part. A
    group with two labels stays in the training part, because its label is doubtful.

    Args:
      spec: the data set; every file must be readable. Official parts are ignored.
      test_fraction: fraction of the test part, in (0, 1).
      near_duplicates: whether near-duplicates count as duplicates, in addition to equal files.

    Returns:
      Two data sets with the classes of `spec`, in the order of its examples.

    Raises:
      ValueError: the fraction is outside (0, 1), a file cannot be read, or a class has fewer than
        two different images.
    """
    _check("test_fraction", test_fraction)
    rows = range(len(spec.examples))
    groups = clusters(spec, near=near_duplicates)
    return _train_and_test(spec, _by_content(spec, groups, rows, test_fraction))


def split_stratified(
    spec: DataSpec, *, test_fraction: float = 0.25, seed: int, near_duplicates: bool = True
) -> tuple[DataSpec, DataSpec]:
    """(train, test) at random, with the exact proportion of every stratum.

    A stratum is a pair of label and `Example.stratum`. The test part has `round(test_fraction * n)`
    images, distributed over the strata by largest remainder. All copies of duplicates stay in the
    training part.

    Args:
      spec: the data set; official parts are ignored.
      test_fraction: fraction of the test part, in (0, 1).
      seed: seed of the NumPy generator (PCG64).
      near_duplicates: whether near-duplicates count as duplicates, in addition to equal files.

    Returns:
      Two data sets with the classes of `spec`, in the order of its examples.

    Raises:
      ValueError: the fraction is outside (0, 1), a file cannot be read, or a stratum has fewer than
        two different images.
    """
    _check("test_fraction", test_fraction)
    rows = range(len(spec.examples))
    groups = clusters(spec, near=near_duplicates)
    return _train_and_test(spec, _stratified(spec, groups, rows, test_fraction, seed))


def folds(
    spec: DataSpec, k: int, *, seed: int, near_duplicates: bool = True
) -> list[tuple[DataSpec, DataSpec]]:
    """`k` pairs (train, test) with disjoint test parts, over which each stratum is spread evenly.

    Duplicates stay in one fold. A group of duplicates with two labels is in every training part and
    in no test part.

    Args:
      spec: the data set; official parts are ignored, and removed from the result.
      k: number of folds, at least 2.
      seed: seed of the NumPy generator (PCG64) that shuffles each stratum.
      near_duplicates: whether near-duplicates count as duplicates, in addition to equal files.

    Raises:
      ValueError: `k` is below 2 or above the number of different images, a file cannot be read, or
        a class has fewer than two different images.
    """
    spec = replace(spec, examples=tuple(replace(e, part="") for e in spec.examples))
    groups = _groups(spec, clusters(spec, near=near_duplicates), range(len(spec.examples)))
    if not 2 <= k <= len(groups):
        raise ValueError(
            f"`folds` must be in [2, number of different images]: got {k} folds of {len(groups)} "
            "different images"
        )
    strata = defaultdict(list)
    for name, rows in groups.items():
        example = spec.examples[rows[0]]
        strata[example.label, example.stratum].append(name)
    sizes = Counter(dict.fromkeys(spec.classes, 0))
    for (label, _), names in strata.items():
        sizes[spec.classes[label]] += len(names)
    _check_sizes(sizes, f"for {k} folds; add images")
    rng, dealt = np.random.default_rng(seed), 0
    tests: list[list[int]] = [[] for _ in range(k)]
    for key in sorted(strata):
        for name in rng.permutation(sorted(strata[key])):
            tests[dealt % k] += groups[str(name)]
            dealt += 1  # continues after the last stratum, so that all folds have the same size
    return [_train_and_test(spec, test) for test in tests]


def split_validation(
    spec: DataSpec, validation_fraction: float, seed: int
) -> tuple[DataSpec, DataSpec]:
    """(train, validation) of a data set whose test images are in another one.

    The validation part is the official one if it exists, otherwise one by the rule of `split`. An
    official test part is in neither: it stays unseen, so that the classifier can be tested on it.

    Args:
      spec: the data set.
      validation_fraction: fraction of the validation part, in [0, 1); 0 gives an empty validation
        part unless there is an official one.
      seed: as in `split`.

    Raises:
      ValueError: as `divide`.
    """
    if not validation_fraction and not any(example.part for example in spec.examples):
        return spec, replace(spec, examples=(), skipped=())
    test = _official(spec, "test")
    return _train_and_validation(spec, clusters(spec), test, validation_fraction, seed)


def describe_parts(spec: DataSpec, parts: Parts) -> str:
    """One sentence on the size and origin of three parts, and on the images that are not used.

    Args:
      spec: the data set that was divided.
      parts: its parts; the test part may be that of another data set.

    Example:
      >>> from pathlib import Path
      >>> from tl.data import Example
      >>> rows = [Example(Path(f"{i}.png"), 0, part="test" * (i == 4)) for i in range(5)]
      >>> spec = DataSpec("pets", tuple(rows), ("cat",), "", "")
      >>> parts = Parts(*(subset(spec, rows) for rows in ([0, 1, 2], [3], [4])))
      >>> describe_parts(spec, parts)
      'training: 3 images; validation: 1, held out of the rest; test: 1, the official part'
    """
    sources = {example.path for example in spec.examples}
    used = {example.path for part in parts for example in part.examples}
    words = [f"training: {len(parts.train.examples)} images"]
    for name, part in (("validation", parts.validation), ("test", parts.test)):
        origin = ", held out of the rest" if part.examples else ""
        if any(example.path not in sources for example in part.examples):
            origin = f", from {part.name}"
        elif any(example.part == name for example in part.examples):
            origin = ", the official part"
        words.append(f"{name}: {len(part.examples)}{origin}")
    unused = Counter(example.part for example in spec.examples if example.path not in used)
    for name, n in sorted(unused.items()):
        reason = f"in the official {name} part" if name else "with a copy in an official part"
        words.append(f"not used: {n} {reason}")
    if not any(e.part for part in parts for e in part.examples if e.path in sources) and any(
        example.part for example in spec.examples
    ):
        words.append("official parts are ignored")
    return "; ".join(words)


def part_remarks(spec: DataSpec, parts: Parts) -> tuple[str, ...]:
    """Sentences on parts that a data set with official parts lacks, and on classes they lack.

    Args:
      spec: the data set that was divided.
      parts: its parts; the test part may be that of another data set.
    """
    sources = {example.path for example in spec.examples}
    official = {example.part for example in spec.examples} - {""}
    remarks = []
    for name, part in (("validation", parts.validation), ("test", parts.test)):
        drawn = [example for example in part.examples if example.path in sources]
        if official and drawn and name not in official:
            origin = "train" if {e.part for e in drawn} == {"train"} else "the rest"
            remarks.append(
                f"the {name} part is {counted(len(drawn), 'image')} held out of {origin}: the data "
                f"set has no {name} part"
            )
        present = {example.label for example in part.examples}
        if present and len(present) < len(spec.classes):
            absent = [c for label, c in enumerate(spec.classes) if label not in present]
            remarks.append(
                f"the {name} part has images of {len(present)} of {len(spec.classes)} classes, "
                f"none of {listed(absent, length=24)}"
            )
    return tuple(remarks)


def _official(spec: DataSpec, part: str) -> list[int]:
    return [i for i, example in enumerate(spec.examples) if example.part == part]


def _test_rows(spec: DataSpec, groups: Sequence[str], fraction: float, seed: int) -> list[int]:
    """The official test part, or one taken from the examples outside the validation part."""
    _check("test_fraction", fraction)
    validation = _official(spec, "validation")
    rows = _without(range(len(spec.examples)), validation)
    return _official(spec, "test") or _take(spec, groups, rows, validation, fraction, seed, _ADVICE)


def _train_and_validation(
    spec: DataSpec, groups: Sequence[str], test: Sequence[int], fraction: float, seed: int
) -> tuple[DataSpec, DataSpec]:
    """The training part, and the official validation part or one taken from the training part."""
    validation = _official(spec, "validation")
    train = _without(range(len(spec.examples)), (*test, *validation))
    if fraction and not validation:
        _check_train_classes(spec, train)
        _check("validation_fraction", fraction)
        validation = _take(spec, groups, train, test, fraction, seed, _VALIDATION_ADVICE)
        train = _without(train, validation)
    others = (*test, *validation)
    return _train_part(spec, groups, train, others), replace(subset(spec, validation), skipped=())


def _train_part(
    spec: DataSpec, groups: Sequence[str], rows: Sequence[int], others: Iterable[int]
) -> DataSpec:
    """The training part `rows` without duplicates of `others`, except for its official images."""
    other_groups = {groups[i] for i in others}
    copies = [i for i in rows if not spec.examples[i].part and groups[i] in other_groups]
    rows = _without(rows, copies)
    _check_train_classes(spec, rows)
    reason = "it is a copy of an image in an official part"
    left_out = tuple(Skipped(str(spec.examples[i].path), reason) for i in copies)
    return replace(subset(spec, rows), skipped=(*spec.skipped, *left_out))


def _take(
    spec: DataSpec,
    groups: Sequence[str],
    rows: Sequence[int],
    others: Iterable[int],
    fraction: float,
    seed: int,
    advice: str,
) -> list[int]:
    """The `fraction` of `rows` that the rule of the data set selects.

    Rows with a duplicate in `others` are not selected, and do not count.
    """
    other_groups = {groups[i] for i in others}
    apart = [i for i in rows if groups[i] not in other_groups]
    if len(apart) < len(rows):
        advice += "; images with a copy in an official part do not count"
    if spec.split is Split.CONTENT:
        return _by_content(spec, groups, apart, fraction, advice)
    return _stratified(spec, groups, apart, fraction, seed, advice)


def _groups(spec: DataSpec, groups: Sequence[str], rows: Sequence[int]) -> dict[str, list[int]]:
    """Rows by group, sorted by the name of the group, without groups that have two labels."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for i in rows:
        rows_of[groups[i]].append(i)
    return {
        name: rows_of[name]
        for name in sorted(rows_of)
        if len({spec.examples[i].label for i in rows_of[name]}) == 1
    }


def _by_content(
    spec: DataSpec,
    groups: Sequence[str],
    rows: Sequence[int],
    fraction: float,
    advice: str = _ADVICE,
) -> list[int]:
    classes: list[list[list[int]]] = [[] for _ in spec.classes]
    for group in _groups(spec, groups, rows).values():
        classes[spec.examples[group[0]].label].append(group)
    _check_sizes(
        {n: len(in_class) for n, in_class in zip(spec.classes, classes, strict=True)}, advice
    )
    return [
        i
        for in_class in classes
        for group in in_class[: _count(fraction, len(in_class))]
        for i in group
    ]


def _count(fraction: float, n: int) -> int:
    """`fraction` of `n`, rounded; at least one and never all."""
    return min(max(round(fraction * n), 1), n - 1)


def _stratified(
    spec: DataSpec,
    groups: Sequence[str],
    rows: Sequence[int],
    fraction: float,
    seed: int,
    advice: str = _ADVICE,
) -> list[int]:
    copies = Counter(groups[i] for i in rows)
    strata: dict[tuple[int, str], list[int]] = defaultdict(list)
    for i in rows:
        example = spec.examples[i]
        strata[example.label, example.stratum] += [i] if copies[groups[i]] == 1 else []
    keys = sorted(strata)
    names = [" ".join(filter(None, (spec.classes[label], stratum))) for label, stratum in keys]
    _check_sizes({n: len(strata[k]) for n, k in zip(names, keys, strict=True)}, advice)
    sizes = np.array([len(strata[k]) for k in keys])
    counts = np.floor(fraction * sizes).astype(int)
    missing = max(round(fraction * int(sizes.sum())) - int(counts.sum()), 0)
    counts[np.argsort(counts - fraction * sizes, kind="stable")[:missing]] += 1
    counts = np.clip(counts, 1, sizes - 1)
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(strata[k])[:n] for k, n in zip(keys, counts, strict=True)]
    return np.concatenate(drawn).tolist()


def _without(rows: Iterable[int], removed: Iterable[int]) -> list[int]:
    removed = set(removed)
    return [i for i in rows if i not in removed]


def subset(spec: DataSpec, rows: Iterable[int]) -> DataSpec:
    """Some images of a data set, in its order."""
    return replace(spec, examples=tuple(spec.examples[i] for i in sorted(rows)))


def _train_and_test(spec: DataSpec, test: list[int]) -> tuple[DataSpec, DataSpec]:
    train = _without(range(len(spec.examples)), test)
    return subset(spec, train), replace(subset(spec, test), skipped=())


def _check(name: str, fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"`{name}` must be in (0, 1): got {fraction}")


def _check_train_classes(spec: DataSpec, rows: Iterable[int]) -> None:
    present = {spec.examples[i].label for i in rows}
    absent = [name for label, name in enumerate(spec.classes) if label not in present]
    if absent:
        more = f" and {len(absent) - 5} more" if absent[5:] else ""
        names = ", ".join(shown(name, 24) for name in absent[:5])
        raise ValueError(
            f"no image of {names}{more} is in the training part of {path_end(spec.name)}, expected "
            "at least one of each class; move images there, or remove the class"
        )


def _check_sizes(sizes: Mapping[str, int], advice: str) -> None:
    small = [f"{shown(name, 24)} has {n}" for name, n in sizes.items() if n < 2]
    if small:
        more = f" and {len(small) - 5} more have too few" if small[5:] else ""
        raise ValueError(
            f"{', '.join(small[:5])} different images{more}, expected at least 2 in each class and "
            f"stratum {advice}"
        )
