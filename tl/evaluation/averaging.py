"""Averages of the weights of several classifiers: soups, and the line between two of them.

An average is one classifier, so it costs one forward pass per image. The best average is chosen on
images that no training used and compared with the best single classifier on others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import hosts, inference, metrics, models, reporting
from tl.data import DataSpec, remap_labels
from tl.data.duplicates import content_hashes
from tl.evaluation import paired, seen, sets
from tl.models import Classifier
from tl.paths import nearest
from tl.types import Variables


class Member(NamedTuple):
    """A trained classifier that can be part of an average."""

    name: str
    clf: Classifier
    variables: Variables
    seen: seen.Seen
    folder: str


class Divided(NamedTuple):
    """The images that no member was trained on: those that choose, and those that test."""

    validation: DataSpec
    test: DataSpec


class Average(NamedTuple):
    """An average before it is tested.

    Attributes:
      method: a name of `METHODS`, or "single" for a member alone.
      weights: share of each member, f64[m] with sum 1.
      correct: bool[n], on the validation images.
    """

    method: str
    weights: tuple[float, ...]
    correct: np.ndarray


def average(members: Sequence[Variables], weights: Sequence[float]) -> Variables:
    """The weighted mean of variables of one structure, statistics of BatchNorm included.

    Args:
      members: at least one.
      weights: their shares. A member of share 0 does not count, so the mean with shares 1 and 0 has
        the bits of the first member.

    Returns:
      float32 arrays on the host, as in the members.
    """
    used = [(v, w) for v, w in zip(members, weights, strict=True) if w]
    if len(used) == 1 and used[0][1] == 1.0:
        return used[0][0]

    def mean(*leaves: Any) -> np.ndarray:
        wide = sum(
            w * np.asarray(leaf, np.float64) for leaf, (_, w) in zip(leaves, used, strict=True)
        )
        return np.asarray(wide).astype(np.asarray(leaves[0]).dtype)

    return jax.tree.map(mean, *(variables for variables, _ in used))


# ---- methods -------------------------------------------------------------------------------------

Test = Callable[[Sequence[float]], np.ndarray]
"""Shares of the members -> bool[n], whether each validation image is correct."""


def _uniform(test: Test, order: Sequence[int], steps: int) -> list[Sequence[float]]:
    """All members with equal shares.

    Reference: Wortsman et al. 2022, arXiv:2203.05482, section 2.
    """
    del test, steps
    return [tuple(np.full(len(order), 1 / len(order)))]


def _greedy(test: Test, order: Sequence[int], steps: int) -> list[Sequence[float]]:
    """Adds members from the best to the worst, each if the average does not become worse.

    Reference: Wortsman et al. 2022, arXiv:2203.05482, algorithm 1.
    """
    del steps
    chosen = [order[0]]
    best = float(test(_equal(chosen, len(order))).mean())
    for member in order[1:]:
        accuracy = float(test(_equal([*chosen, member], len(order))).mean())
        if accuracy >= best:
            chosen, best = [*chosen, member], accuracy
    return [_equal(chosen, len(order))]


def _equal(chosen: Sequence[int], m: int) -> tuple[float, ...]:
    return tuple(float(i in chosen) / len(chosen) for i in range(m))


def _line(test: Test, order: Sequence[int], steps: int) -> list[Sequence[float]]:
    """Points on the line from the first member to the second, as between a probe and fine-tuning.

    Reference: Wortsman et al. 2022, arXiv:2109.01903, equation 2.
    """
    del test
    assert len(order) == 2
    return [(1.0 - alpha, alpha) for alpha in np.linspace(0.0, 1.0, steps).tolist()]


METHODS: dict[str, Callable[[Test, Sequence[int], int], list[Sequence[float]]]] = {
    "uniform": _uniform,
    "greedy": _greedy,
    "wise_ft": _line,
}
"""Name -> `(test, members from best to worst, points of a line) -> shares of each average`."""


# ---- the command ---------------------------------------------------------------------------------


def load_members(folders: Sequence[str]) -> list[Member]:
    """The classifiers in folders of models or of runs of `transfer`.

    Args:
      folders: paths; the last path of a glob pattern may match several.

    Raises:
      ValueError: fewer than two classifiers, or classifiers of different networks, image sizes or
        classes, which have no average.
    """
    paths = list(dict.fromkeys(path for word in folders for path in _folders(word)))
    if len(paths) < 2:
        raise ValueError(
            f"`models` must name at least two classifiers: got {len(paths)} in "
            f"{','.join(folders)!r}; expected folders of runs of transfer, or a glob of them"
        )
    members = []
    for path in paths:
        clf, variables = models.load(path)
        saved = models.metadata(path)
        name = Path(path).parent.name if Path(path).name == "model" else Path(path).name
        members.append(Member(name, clf, variables, seen.Seen(saved), path))
    first = members[0]
    for member in members[1:]:
        same = {
            "networks": (member.clf.arch, first.clf.arch),
            "heads": (str(member.clf.head), str(first.clf.head)),
            "preprocessing": (member.clf.pixels, first.clf.pixels),
            "classes": tuple(inference.class_table(m.clf).display_names for m in (member, first)),
        }
        for what, (one, other) in same.items():
            if one != other:
                raise ValueError(
                    f"{member.folder} and {first.folder} have different {what}, so their weights "
                    "have no average; give classifiers of one network and data set"
                )
    return members


def _folders(word: str) -> list[str]:
    """The folders of classifiers that a path or glob names."""
    path = Path(word)
    matches = sorted(path.parent.glob(path.name)) if not path.exists() else [path]
    if not matches:
        raise ValueError(f"there is no folder {word!r}; give folders of runs of transfer")
    models_of = (run / "model" if (run / "model").is_dir() else run for run in matches)
    return [str(folder) for folder in models_of if folder.is_dir()]


def divide(members: Sequence[Member], spec: DataSpec) -> Divided:
    """The images that no member was trained on, divided as in their training.

    Args:
      members: from `load_members`.
      spec: the data set.

    Returns:
      An image that any member used for validation is a validation image, every other is a test
      image. Images that a member was trained on are left out.

    Raises:
      ValueError: there are no validation images or no test images, or a classifier does not name
        the images of its training.
    """
    for member in members:
        if not member.seen.known:
            raise ValueError(
                f"{member.folder} does not name the images of its training; train it with "
                "transfer of this version"
            )
    rows: dict[str, list[Any]] = {"validation": [], "no": []}
    for sha256, example in zip(content_hashes(spec), spec.examples, strict=True):
        parts = {member.seen.part(sha256) for member in members}
        if "train" not in parts:
            rows["validation" if "validation" in parts else "no"].append(example)
    for name, word, advice in (
        ("validation", "validation", "train with `validation_fraction` above 0"),
        ("no", "test", "train with one seed, so that all have the same test images"),
    ):
        if not rows[name]:
            raise ValueError(
                f"{spec.name} has no {word} image that none of the {len(members)} classifiers was "
                f"trained on; {advice}"
            )
    validation, test = (
        dataclasses.replace(spec, examples=tuple(rows[name]), skipped=())
        for name in ("validation", "no")
    )
    return Divided(validation, test)


def compare(
    run: reporting.Run,
    members: Sequence[Member],
    spec: DataSpec,
    *,
    methods: Sequence[str],
    steps: int = 11,
) -> dict[str, Any]:
    """Averages of classifiers, each compared with the best single one on the test images.

    The best by the validation images is saved in `run.workdir / "model"`.

    Args:
      run: the run.
      members: from `load_members`.
      spec: the data set on which they were trained.
      methods: names of `METHODS`.
      steps: points of the line of "wise_ft", its ends included.

    Returns:
      The content of `result.json`: `rows`, `members`, `saved`, `n_validation` and `n_test`.

    Raises:
      ValueError: an unknown method; those of `divide` and of the methods.
    """
    for method in methods:
        if method not in METHODS:
            raise ValueError(
                f"unknown `method`: got {method!r}, expected {', '.join(METHODS)}; nearest: "
                f"{nearest(method, METHODS)}"
            )
    if "wise_ft" in methods and (len(members) != 2 or steps < 2):
        raise ValueError(
            "`method=wise_ft` needs two classifiers, the start and the fine-tuned one, and at "
            f"least 2 `steps`: got {len(members)} and {steps}"
        )
    clf, variables = members[0].clf, [member.variables for member in members]
    parts = divide(members, remap_labels(spec, inference.class_table(clf)))

    @functools.cache
    def correct(weights: tuple[float, ...], part: str) -> np.ndarray:
        mean, images = average(variables, weights), getattr(parts, part)
        predicted = inference.predict(clf, mean, images, progress=sets.progress)
        return metrics.topk_correct(predicted.logits, predicted.labels, 1)

    test = lambda weights: correct(tuple(weights), "validation")

    m = len(members)
    singles = [Average("single", _equal([i], m), test(_equal([i], m))) for i in range(m)]
    accuracy = [float(single.correct.mean()) for single in singles]
    order = sorted(range(m), key=lambda i: -accuracy[i])
    chosen = list(singles)
    for method in methods:
        points = METHODS[method](test, order, steps)
        chosen += [Average(method, tuple(weights), test(weights)) for weights in points]
    base = correct(singles[order[0]].weights, "test").astype(int)
    rows = []
    for one in chosen:
        tested = correct(one.weights, "test")
        row = {
            "method": one.method,
            "weights": list(one.weights),
            "name": _title(one, members),
            "validation": float(one.correct.mean()),
            **metrics.share("top1", tested),
            **paired.difference(tested.astype(int) - base),
        }
        run.log(row)
        rows.append(row)
    # Of equal accuracies the average of most classifiers is taken, because it varies least.
    size = lambda i: sum(weight > 0 for weight in chosen[i].weights)
    best = max(range(len(rows)), key=lambda i: (rows[i]["validation"], size(i)))
    save = lambda: models.save(run.workdir / "model", clf, average(variables, chosen[best].weights))
    run.attempt("model", lambda: hosts.on_first(save), None)
    return {
        "arch": clf.arch,
        "data": spec.name,
        "members": [member.name for member in members],
        "baseline": members[order[0]].name,
        "rows": rows,
        "saved": rows[best]["name"],
        "n_validation": len(parts.validation.examples),
        "n_test": len(base),
    }


def _title(one: Average, members: Sequence[Member]) -> str:
    used = [member.name for member, w in zip(members, one.weights, strict=True) if w]
    if one.method == "wise_ft":
        return f"wise_ft at {one.weights[1]:.2f}"
    return used[0] if one.method == "single" else f"{one.method} of {len(used)}"
