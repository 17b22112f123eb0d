"""Labels of a data set in the classes of another data set or of a classifier, matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tl.data.duplicates import leaks
from tl.data.spec import DataSpec
from tl.labels import ClassTable
from tl.paths import nearest


def remap_labels(spec: DataSpec, classes: Sequence[str] | ClassTable) -> DataSpec:
    """The data set with labels that index other classes, matched by name.

    Args:
      spec: the data set.
      classes: class names, which must match exactly, or the class table of a classifier, which also
        accepts synonyms and other spellings (`ClassTable.find`).

    Returns:
      The data set with the classes of `classes`.

    Raises:
      ValueError: a class of `spec` is missing from `classes`, or matches several of them.

    Example:
      >>> pets = DataSpec("pets", (), ("dog", "cat"), "", "")
      >>> remap_labels(pets, ["cat", "dog", "bird"]).classes
      ('cat', 'dog', 'bird')
    """
    if isinstance(classes, ClassTable):
        names, indices = classes.display_names, _indices(spec, classes)
    else:
        names = tuple(classes)
        if unknown := sorted(set(spec.classes) - set(names)):
            raise ValueError(
                f"{spec.name} has classes that were not learned: {unknown[:5]}; nearest to "
                f"{unknown[0]!r}: {nearest(unknown[0], names)}"
            )
        indices = [names.index(name) for name in spec.classes]
    examples = tuple(replace(e, label=indices[e.label]) for e in spec.examples)
    return replace(spec, examples=examples, classes=names)


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


def _indices(spec: DataSpec, table: ClassTable) -> list[int]:
    """The index in `table` of each class of `spec`."""
    indices = []
    for name in spec.classes:
        try:
            matches = table.find(name)
        except ValueError as error:
            raise ValueError(f"{spec.name} has a class that was not learned: {error}") from None
        if len(matches) != 1:
            raise ValueError(
                f"the class {name!r} of {spec.name} matches {len(matches)} learned classes, "
                "expected one; rename the class"
            )
        indices.append(matches[0])
    return indices
