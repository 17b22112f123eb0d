"""Learning curves: the accuracy of few-shot classifiers over the number of images per class.

One feature bank serves all draws. `shots` returns a JSON-ready result; `tl.pages.shots` draws its
page.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl import data, inference, metrics, reporting
from tl.data import DataSpec, duplicates
from tl.evaluation import extrapolation
from tl.evaluation.before import check_sizes, remark_similar
from tl.labels.names import counted, shown
from tl.models import Classifier
from tl.training import fewshot, inputs, label_noise
from tl.types import Variables

SHOTS = (1, 2, 5, 10, 25)
"""The default numbers of images per class, those of big_vision's few-shot evaluator and 2."""

Copies = Mapping[data.Source, tuple[str, str]]
"""Image -> the name of its group of duplicates, and its content hash."""

# The method with which the others are compared.
REFERENCE = "probe"
# Suspicious images on the page; chosen, not tuned.
PAGE_IMAGES = 24


@dataclasses.dataclass(frozen=True)
class ShotsSettings:
    """Everything that decides a run of `shots`, except its data and its network.

    Attributes:
      shots: numbers of images per class; empty for those of `SHOTS` that every class has.
      seeds: number of draws of each size.
      first_seed: seed of the split, and of the first draw.
      method: names of `fewshot.METHODS`; empty for those that need no images.
      test_fraction: share of the test part of a data set without its own, in (0, 1).
      accuracy: the accuracy to which the curves are extrapolated, in (0, 1); 0 halves the error of
        each method at the largest number of images.
    """

    shots: Sequence[int] = ()
    seeds: int = 10
    first_seed: int = 0
    method: Sequence[str] = ()
    test_fraction: float = 0.25
    accuracy: float = 0.0

    @property
    def methods(self) -> list[str]:
        """The names of the methods, each once."""
        default = (name for name, row in fewshot.METHODS.items() if row.fit)
        return list(dict.fromkeys(self.method or default))


def parse_shots(words: Sequence[str]) -> tuple[int, ...]:
    """The numbers of a flag.

    Raises:
      ValueError: a word is not a whole number.
    """
    for word in words:
        if not word.strip().isdecimal():
            raise ValueError(
                f"`shots` must be whole numbers of at least 1: got {word!r}; write 1,5,25"
            )
    return tuple(int(word) for word in words)


def check_settings(spec: DataSpec, settings: ShotsSettings) -> None:
    """Checks what can be checked before any image is read.

    Raises:
      ValueError: no method or an unknown one, no number of images or one below 1, no seed, an
        accuracy outside [0, 1), or a data set with one class.
    """
    for name in settings.methods:
        fewshot.get(name)
    for k in settings.shots:
        if k < 1:
            raise ValueError(f"`shots` must be numbers of images of at least 1: got {k}")
    if settings.seeds < 1:
        raise ValueError(f"`seeds` must be at least 1: got {settings.seeds}")
    if not 0 <= settings.accuracy < 1:
        raise ValueError(
            f"`accuracy` must be a share in [0, 1), such as 0.95: got {settings.accuracy:g}"
        )
    if len(spec.classes) < 2:
        raise ValueError(
            f"{spec.name} has {counted(len(spec.classes), 'class')}, expected at least 2"
        )


def usable_shots(spec: DataSpec, orders: Sequence[np.ndarray], shots: Sequence[int]) -> list[int]:
    """The numbers of images per class that are measured, rising.

    Args:
      spec: the training part.
      orders: the different images of each class, as `fewshot.draw_order` returns them.
      shots: as in `ShotsSettings`.

    Raises:
      ValueError: a class has fewer images than the largest number.
    """
    least, smallest = min((len(order), i) for i, order in enumerate(orders))
    name = shown(spec.classes[smallest])
    usable = sorted({k for k in shots or SHOTS if k <= least})
    largest = max(shots, default=1)
    if largest > least:
        raise ValueError(
            f"`shots` names {largest} images per class, but the training part of {spec.name} has "
            f"{counted(least, 'different image')} of {name}; name at most {least}, or add images"
        )
    return usable


def remark_overlap(
    run: reporting.Run, spec: DataSpec, orders: Sequence[np.ndarray], sizes: Sequence[int]
) -> None:
    """A remark if the draws share more than half of the images of a class, on average.

    Args:
      run: receives the remark.
      spec, orders: as for `usable_shots`.
      sizes: the numbers of images per class that are measured.
    """
    least, smallest = min((len(order), i) for i, order in enumerate(orders))
    if close := [k for k in sizes if 2 * k > least]:
        run.remark(
            f"draws of {', '.join(map(str, close))} images per class share most images, because "
            f"{shown(spec.classes[smallest])} has {least}; their spread is too small"
        )


class PartFeatures(NamedTuple):
    """The readable images of a part of a data set, `values` f32[n d] and `labels` i[n]."""

    spec: DataSpec
    values: np.ndarray
    labels: np.ndarray

    def rows(self, index: np.ndarray) -> DataSpec:
        """The images at some positions, in their order."""
        examples = tuple(self.spec.examples[i] for i in index)
        return dataclasses.replace(self.spec, examples=examples)


def readable(spec: DataSpec, values: np.ndarray, valid: np.ndarray) -> PartFeatures:
    """The images of a part that could be read.

    Args:
      spec: n images.
      values: f32[n d], their features.
      valid: bool[n].
    """
    examples = tuple(itertools.compress(spec.examples, valid))
    part = dataclasses.replace(spec, examples=examples)
    return PartFeatures(part, values[valid], inputs.labels(part))


def shots(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    spec: DataSpec,
    settings: ShotsSettings,
) -> dict[str, Any]:
    """Measures learning curves, extrapolates them, and estimates the label noise.

    The division is that of `transfer` with the same seed, so all draws are tested on its test part.
    A validation part is not used. Draws are those of `fewshot.draw_order`.

    Args:
      run: receives a log row per draw and method, and suspicious images as figures.
      clf, variables: the network; its head is not used.
      spec: the data set.
      settings: what is measured.

    Returns:
      The content of `result.json`: "rows", per method and number of images "method", "shots",
      `metrics.spread` of the test accuracy over seeds, "top1" (of each seed), "difference"
      (`metrics.spread` of the accuracy minus that of `REFERENCE` on the same draws, and None
      without it) and "seconds" (median time of a fit); "extrapolation", per method the row of
      `extrapolation.extrapolate`; "label_noise" (`noise_result`); "n" (test images), "train",
      "classes", "seeds", "skipped".

    Raises:
      ValueError: those of `check_settings`, `usable_shots` and `data.divide`.
    """
    check_settings(spec, settings)
    parts = data.divide(
        spec,
        test_fraction=settings.test_fraction,
        validation_fraction=0.0,
        seed=settings.first_seed,
    )
    check_sizes(parts)
    copies = find_copies(spec)
    usable_shots(parts.train, _draw_order(parts.train, copies, 0), settings.shots)
    remark_similar(run, spec)
    run.remark(*data.part_remarks(spec, parts))
    sources = [*inputs.sources(parts.train), *inputs.sources(parts.test)]
    bank = inference.extract(clf, variables, sources, progress=reporting.progress)
    n = len(parts.train.examples)
    train = readable(parts.train, bank.values[:n], bank.valid[:n])
    test = readable(parts.test, bank.values[n:], bank.valid[n:])
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    orders = {seed: _draw_order(train.spec, copies, seed) for seed in seeds}
    # Images that cannot be read may leave too few.
    sizes = usable_shots(train.spec, orders[settings.first_seed], settings.shots)
    remark_overlap(run, train.spec, orders[settings.first_seed], sizes)

    correct: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    draws = [(seed, k) for seed in seeds for k in sizes]
    for seed, k in reporting.progress(draws, len(draws), "fitting, draws"):
        rows = np.concatenate([order[:k] for order in orders[seed]])
        for method in settings.methods:
            start = time.monotonic()
            scores = _scores(method, clf, variables, train, test, rows, seed)
            seconds[method, k].append(time.monotonic() - start)
            correct[method, k].append(metrics.topk_correct(scores, test.labels, 1))
            top1 = float(correct[method, k][-1].mean())
            run.log({"method": method, "shots": k, "seed": seed, "top1": top1})

    accuracies = {key: [float(one.mean()) for one in of] for key, of in correct.items()}
    rows = [
        {
            "method": method,
            "shots": k,
            **metrics.spread(top1),
            "top1": top1,
            "difference": _difference(top1, accuracies.get((REFERENCE, k)))
            if method != REFERENCE
            else None,
            "seconds": float(np.median(seconds[method, k])),
        }
        for method in settings.methods
        for k in sizes
        for top1 in [accuracies[method, k]]
    ]
    extrapolate = lambda: _extrapolate(run, settings, sizes, correct)
    noise = lambda: noise_result(run, clf, [train, test], copies, seed=settings.first_seed)
    return {
        "arch": clf.arch,
        "data": spec.name,
        "rows": rows,
        "extrapolation": run.attempt("extrapolation", extrapolate, []),
        "label_noise": run.attempt("label_noise", noise, None),
        "n": len(test.labels),
        "train": len(train.labels),
        "classes": list(spec.classes),
        "seeds": list(seeds),
        "skipped": [skip._asdict() for skip in (*parts.train.skipped, *bank.skipped)],
    }


def find_copies(spec: DataSpec) -> Copies:
    """The group of duplicates and the content hash of each image.

    Raises:
      ValueError: a file cannot be read.
    """
    names = zip(duplicates.clusters(spec), duplicates.content_hashes(spec), strict=True)
    return dict(zip(inputs.sources(spec), names, strict=True))


def _draw_order(spec: DataSpec, copies: Copies, seed: int) -> list[np.ndarray]:
    groups, hashes = zip(*(copies[source] for source in inputs.sources(spec)), strict=True)
    return fewshot.draw_order(groups, hashes, inputs.labels(spec), len(spec.classes), seed)


def drawn(spec: DataSpec, shots: int, seed: int) -> DataSpec:
    """The images of one draw of a training part, as `shots` draws them.

    Args:
      spec: the training part.
      shots: images per class, at least 1.
      seed: of the draw.

    Raises:
      ValueError: a class has fewer different images, or a file cannot be read.
    """
    orders = _draw_order(spec, find_copies(spec), seed)
    usable_shots(spec, orders, [shots])
    examples = tuple(spec.examples[i] for order in orders for i in order[:shots])
    return dataclasses.replace(spec, examples=examples)


def _scores(
    method: str,
    clf: Classifier,
    variables: Variables,
    train: PartFeatures,
    test: PartFeatures,
    rows: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Scores f[m k] of the test images, after a fit to some rows of the training part."""
    row = fewshot.get(method)
    if row.fit_images:
        return row.fit_images(clf, variables, train.rows(rows), seed)(test.spec)
    drawn = train.values[rows], train.labels[rows]
    return fewshot.fit(method, *drawn, len(train.spec.classes), seed=seed)(test.values)


def _difference(top1: Sequence[float], reference: Sequence[float] | None) -> dict[str, Any] | None:
    if reference is None:
        return None
    return metrics.spread([a - b for a, b in zip(top1, reference, strict=True)])


def _extrapolate(
    run: reporting.Run,
    settings: ShotsSettings,
    sizes: Sequence[int],
    correct: Mapping[tuple[str, int], Sequence[np.ndarray]],
) -> list[dict[str, Any]]:
    """One row per method; a remark instead if there are too few numbers of images."""
    if len(sizes) < 3:
        run.remark(
            f"no curve is extrapolated: a power law needs at least 3 numbers of images per class, "
            f"but {', '.join(map(str, sizes))} were measured"
        )
        return []
    return [
        {
            "method": method,
            **extrapolation.extrapolate(
                sizes,
                np.array([correct[method, k] for k in sizes]),
                accuracy=settings.accuracy,
                seed=settings.first_seed,
            ),
        }
        for method in settings.methods
    ]


def noise_result(
    run: reporting.Run,
    clf: Classifier,
    parts: Sequence[PartFeatures],
    copies: Copies,
    *,
    seed: int,
) -> dict[str, Any]:
    """The label noise of all images, by `label_noise`.

    Args:
      run: receives the figures.
      clf: prepares them.
      parts: the images, in parts of one data set.
      copies: as `find_copies` returns it; copies stay in one fold.
      seed: seed of the folds.

    Returns:
      "n"; "share" and "share_ci95", Wilson's interval of that share of n images; "images", the most
      suspicious ones: "path", "label", "other" (the class that the probe suggests), "probability"
      (of it), "of_label", and "image" (the figure) for the first ones.
    """
    spec = dataclasses.replace(
        parts[0].spec, examples=tuple(e for part in parts for e in part.spec.examples)
    )
    values, labels = np.concatenate([part.values for part in parts]), inputs.labels(spec)
    names = [copies[source][0] for source in inputs.sources(spec)]
    groups = np.unique(names, return_inverse=True)[1]
    probabilities = label_noise.held_out_probabilities(
        values, labels, len(spec.classes), groups=groups, seed=seed
    )
    noise = label_noise.confident_joint(probabilities, labels)
    images = []
    for i, other in zip(noise.suspicious.tolist(), noise.classes.tolist(), strict=True):
        path = spec.examples[i].path
        row = {
            "path": str(path),
            "label": spec.classes[labels[i]],
            "other": spec.classes[other],
            "probability": float(probabilities[i, other]),
            "of_label": float(probabilities[i, labels[i]]),
        }
        if len(images) < PAGE_IMAGES:
            image = clf.prepare(data.decode(path))
            row["image"] = run.relative(run.figure(f"suspicious {Path(str(path)).stem}", image))
        images.append(row)
    bounds = metrics.wilson(round(noise.share * len(labels)), len(labels))
    return {
        "n": len(labels),
        "share": noise.share,
        "share_ci95": list(bounds),
        "images": images,
    }
