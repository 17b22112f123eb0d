"""Labels of a data set in the classes of another data set or of a classifier, matched by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tl.data.duplicates import leaks
from tl.data.spec import DataSpec
from tl.labels import ClassTable
from tl.labels.names import listed, lookalikes, normalize, shown
from tl.paths import nearest


def remap_labels(spec: DataSpec, classes: Sequence[str] | ClassTable) -> DataSpec:
    """The data set with labels that index other classes, matched by name.

    Args:
      spec: the data set.
      classes: class names, which must be equal in Unicode's form NFC, or the class table of a
        classifier, which also accepts synonyms and other spellings (`match_classes`).

    Returns:
      The data set with the classes of `classes`, and the remarks of `match_classes`.

    Raises:
      ValueError: a class of `spec` is missing from `classes`, or matches several of them, or two
        classes of `spec` match one.

    Example:
      >>> pets = DataSpec("pets", (), ("dog", "cat"), "", "")
      >>> remap_labels(pets, ["cat", "dog", "bird"]).classes
      ('cat', 'dog', 'bird')
    """
    remarks: tuple[str, ...] = ()
    if isinstance(classes, ClassTable):
        names = classes.display_names
        try:
            indices, remarks = match_classes(spec.classes, classes)
        except ValueError as error:
            raise ValueError(f"a class of {spec.name} was not learned: {error}") from None
    else:
        names = tuple(classes)
        index = {normalize(name): i for i, name in enumerate(names)}
        if unknown := sorted(name for name in spec.classes if normalize(name) not in index):
            raise ValueError(
                f"{spec.name} has classes that were not learned: {listed(unknown)}; nearest to "
                f"{shown(unknown[0])}: {nearest(unknown[0], names)}"
            )
        indices = tuple(index[normalize(name)] for name in spec.classes)
        _check_distinct(spec.classes, indices, names)
    examples = tuple(replace(e, label=indices[e.label]) for e in spec.examples)
    return replace(spec, examples=examples, classes=names, remarks=(*spec.remarks, *remarks))


def match_classes(
    names: Sequence[str], table: ClassTable
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The classes of a classifier that the class names of a data set stand for.

    A name selects a class as in `ClassTable.find`. Digits are an index only if all names are digits
    and no class of `table` is named by a number.

    Args:
      names: names of folders, or labels.
      table: the classes of the classifier.

    Returns:
      `(indices, remarks)`: one index per name, and sentences on names that are read as indices or
      match in another spelling.

    Raises:
      ValueError: a name selects no class or several, or two names select one class.

    Example:
      >>> from tl import labels
      >>> match_classes(["281", "340"], labels.imagenet())
      ((281, 340), ("the classes '281' and '340' are read as indices: 281 is 'tabby'",))
    """
    digits = [] if table.has_numbers else [n for n in names if re.fullmatch(r"\d+", n.strip())]
    if digits and len(digits) < len(names):
        other = next(name for name in names if name not in digits)
        raise ValueError(
            f"{shown(digits[0])} is not the name of a class, and it is not read as an index "
            f"because {shown(other)} is a name, expected only names or only indices"
        )
    indices = []
    for name in names:
        matches = table.find(name)
        if len(matches) != 1:
            raise ValueError(
                f"{shown(name)} matches {len(matches)} classes, expected one; rename the class"
            )
        indices.append(matches[0])
    _check_distinct(names, indices, table.display_names)
    displayed = [table.display(index) for index in indices]
    remarks = []
    if digits:
        remarks.append(
            f"the classes {listed(digits)} are read as indices: {int(digits[0])} is "
            f"{shown(displayed[0])}"
        )
    spelled = [
        (name, display)
        for name, display in zip(names, displayed, strict=True)
        if normalize(name) != display and lookalikes([name, display])
    ]
    if spelled:
        remarks.append(
            f"{len(spelled)} of {len(names)} classes match in another spelling: "
            f"{shown(spelled[0][0])} is read as {shown(spelled[0][1])}"
        )
    return tuple(indices), tuple(remarks)


def _check_distinct(names: Sequence[str], indices: Sequence[int], classes: Sequence[str]) -> None:
    """Raises ValueError if two names have the same index in `classes`."""
    first: dict[int, str] = {}
    for name, index in zip(names, indices, strict=True):
        if index in first:
            raise ValueError(
                f"the classes {shown(first[index])} and {shown(name)} both match the class "
                f"{shown(classes[index])}, expected one; rename or merge them"
            )
        first[index] = name


def remap_test_labels(test_spec: DataSpec, spec: DataSpec) -> DataSpec:
    """A separate test set for `spec`, with labels that index the classes of `spec`.

    It is the official test part of `test_spec`, or all its images if there is none.

    Raises:
      ValueError: a class is missing from `spec`, or the test set shares images with `spec` outside
        of the official test part of `spec`, which `split_validation` leaves unused.
    """
    if official := tuple(e for e in test_spec.examples if e.part == "test"):
        test_spec = replace(test_spec, examples=official)
    test_spec = remap_labels(test_spec, spec.classes)
    # Unused images last, because `leaks` names the first image of a group.
    ordered = replace(spec, examples=tuple(sorted(spec.examples, key=lambda e: e.part == "test")))
    unused = {e.path for e in spec.examples if e.part == "test"}
    if shared := [pair for pair in leaks(ordered, test_spec) if pair[0] not in unused]:
        (in_train, in_test), more = shared[0], f", and {len(shared) - 1} more"
        raise ValueError(
            f"{in_test} of the test set is also in `data`, as {in_train}"
            f"{more if len(shared) > 1 else ''}; remove it from one of them, because a test image "
            "must not be used for training"
        )
    return test_spec
