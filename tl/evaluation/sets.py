"""The evaluation of a classifier on a data set: figures, hardest images, predictions from the bank.

Nothing here draws a page: `tl.pages.evaluation` does, from the values returned here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tl import data, inference, metrics, reporting
from tl.data import DataSpec
from tl.evaluation import paired, seen
from tl.inference import Predictions, features
from tl.labels.names import shown
from tl.models import Classifier, heads
from tl.training import inputs
from tl.types import Variables

DETAILS = (
    "majority",
    "per_class",
    "confusion",
    "most_confused",
    "reliability",
    "reliability_calibrated",
)
"""The keys of a `summary` that `transfer` keeps outside of `result["test"]`."""

# Images on the page of `predict` (chosen, not tuned); `result.json` holds all predictions.
PAGE_IMAGES = 48

progress = functools.partial(reporting.progress, label="predicting, batches")
"""The progress of a pass over a data set, on stderr."""


class Pass(NamedTuple):
    """One pass over the test images: the round of a seed, or all its folds, which share no image.

    Attributes:
      seed: the seed.
      tested: predictions for the test images.
      temperature: f[n], the temperature of the round that tested each image. Another fold's was
        fitted to images that include this one.
      tta: as `tested`, averaged over the views of the augmentation; None without them.
    """

    seed: int
    tested: Predictions
    temperature: np.ndarray
    tta: Predictions | None


def summary(
    logits: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    temperature: float | np.ndarray = 1.0,
) -> dict[str, Any]:
    """The figures of an evaluation, JSON-ready.

    Args:
      logits: f32[n k], n at least 1.
      labels: i[n].
      classes: k names.
      temperature: divides the logits for the calibrated figures; f[n] for images that were tested
        by several networks, such as folds.

    Returns:
      The keys of `metrics.summarize`; "temperature", the mean over the images; "nll_calibrated" and
      "ece_calibrated", at that temperature; and `DETAILS`: the share of the most frequent class,
      `metrics.per_class`, the confusion matrix, `metrics.most_confused`, and `metrics.reliability`
      before and after division by the temperature. If all images are of one class, what compares
      classes is None ("balanced", "majority", every "precision"), and "undefined" has the reason.
    """
    # In float64, so that the division makes no ties.
    scaled = logits.astype(np.float64) / np.reshape(temperature, (-1, 1))
    calibrated = metrics.summarize(scaled, labels)
    predicted = metrics.predicted_classes(logits, labels)
    matrix = metrics.confusion(labels, predicted, len(classes))
    figures = {
        **metrics.summarize(logits, labels),
        "temperature": float(np.mean(temperature)),
        "nll_calibrated": calibrated["nll"],
        "ece_calibrated": calibrated["ece"],
        "majority": float(matrix.sum(axis=1).max() / matrix.sum()),
        "per_class": metrics.per_class(logits, labels, classes),
        "confusion": matrix.tolist(),
        "most_confused": metrics.most_confused(matrix, classes),
        "reliability": metrics.reliability(metrics.softmax(logits), labels),
        "reliability_calibrated": metrics.reliability(metrics.softmax(scaled), labels),
    }
    present = np.unique(labels)
    if len(present) > 1 or len(classes) < 2:
        return figures
    figures |= dict.fromkeys(("balanced", "balanced_ci95", "majority"))
    for row in figures["per_class"]:
        row["precision"] = row["precision_ci95"] = None
    reason = f"all {len(labels)} images are of the class {shown(classes[int(present[0])])}"
    figures["undefined"] = dict.fromkeys(("balanced", "majority", "precision"), reason)
    return figures


def select_part(spec: DataSpec, part: str) -> DataSpec:
    """The examples of an official part of a data set.

    Args:
      spec: the data set.
      part: "train", "validation", "test", "all", or "": the test part if there is one, else all.

    Returns:
      The data set with these examples. Without `part`, a remark says which images are tested if the
      data set has official parts.

    Raises:
      ValueError: the data set has no such part.
    """
    examples = tuple(example for example in spec.examples if example.part == (part or "test"))
    if part == "all" or (not part and not examples):
        parts = sorted({example.part for example in spec.examples} - {""})
        if part or not parts:
            return spec
        remark = (
            f"all {len(spec.examples)} images are tested, because the data set has parts "
            f"({', '.join(parts)}) but no test part; choose one with part={parts[-1]}"
        )
        return dataclasses.replace(spec, remarks=(*spec.remarks, remark))
    if not examples:
        parts = sorted({example.part for example in spec.examples} - {""})
        raise ValueError(
            f"{spec.name} has no part {part!r}: it has {', '.join(parts) or 'none'}; use `part=all`"
        )
    remarks = spec.remarks
    if not part and len(examples) < len(spec.examples):
        remarks += (f"the test part is tested: {len(examples)} of {len(spec.examples)} images",)
    return dataclasses.replace(spec, examples=examples, remarks=remarks)


def evaluation_result(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    spec: DataSpec,
    temperature: float,
    seen_images: seen.Seen = seen.Seen(),  # noqa: B008 (constant)
) -> dict[str, Any]:
    """The result of `evaluate`: a classifier on a data set, its classes matched by name.

    Args:
      run: receives the predictions, the hardest images as figures, and a remark if the network was
        trained on some of the images.
      clf, variables: the network.
      spec: the test set.
      temperature: the network's, fitted on held-out images; 1 if unknown.
      seen_images: the images that the network was trained on.

    Returns:
      The keys of `summary`; "trained_on", as `seen.report` returns it; "classes", "references",
      "mistakes", "skipped", "arch", "data", "facts".

    Raises:
      ValueError: a class is not among the network's, or no image can be read.
    """
    spec = data.remap_labels(spec, inference.class_table(clf))
    run.remark(*spec.remarks)
    predicted = inference.predict(clf, variables, spec, progress=progress)
    if not len(predicted.labels):
        raise ValueError(
            f"none of the {len(spec.examples)} images of {spec.name} can be read; run doctor on it"
        )
    trained_on = _report_predictions(run, clf, predicted, seen_images)
    figures = summary(predicted.logits, predicted.labels, spec.classes, temperature)
    for reason in figures.get("undefined", {}).values():
        run.remark(f"{reason}, so there is no balanced accuracy, majority class or precision")
    return {
        "arch": clf.arch,
        "data": spec.name,
        "trained_on": trained_on,
        **figures,
        "classes": list(spec.classes),
        "references": spec.references,
        "mistakes": run.attempt("mistakes", lambda: save_hardest_images(run, clf, predicted), []),
        "skipped": [skip._asdict() for skip in (*spec.skipped, *predicted.skipped)],
        "facts": {"images": spec.source, "license of the images": spec.license},
    }


def _report_predictions(
    run: reporting.Run, clf: Classifier, predicted: Predictions, seen_images: seen.Seen
) -> dict[str, int] | None:
    """Saves the predictions of a run of one pass; `seen.report` of its images."""
    passes = {int(run.config.get("seed") or 0): predicted}
    save = lambda: paired.save_predictions(run, clf, passes, seen_images)
    run.attempt("predictions", save, None)
    return seen.report(
        run, (seen_images.part(paired.content_hash(path)) for path in predicted.paths)
    )


def predictions_result(
    run: reporting.Run,
    clf: Classifier,
    predicted: Predictions,
    k: int = 5,
    seen_images: seen.Seen = seen.Seen(),  # noqa: B008 (constant)
) -> dict[str, Any]:
    """The result of `predict`.

    Args:
      run: receives the predictions, and images as figures: at most `PAGE_IMAGES`, the lowest
        probabilities of a label first.
      clf: the network.
      predicted: its predictions for files.
      k: classes per image.
      seen_images: the images that the network was trained on.

    Returns:
      "n", "trained_on" (as `seen.report` returns it), "skipped", "arch", "size" (pixels), "classes"
      (their number); "predictions", one row `{"path", "topk", "label"}` per image; "shown", rows
      `{"row", "figure"}`. Where labels are
      known, "labelled" (their number), "top1" and "top5" with their intervals "top1_ci95" and
      "top5_ci95".

    Raises:
      ValueError: no image could be read.
    """
    probabilities, labels = predicted.probabilities, predicted.labels
    n = len(labels)
    if not n:
        reasons = "; ".join(f"{skip.path}: {skip.why}" for skip in predicted.skipped[:3])
        raise ValueError(f"none of the {len(predicted.skipped)} images can be read ({reasons})")
    trained_on = _report_predictions(run, clf, predicted, seen_images)
    labeled = np.flatnonzero(labels >= 0)
    result: dict[str, Any] = {
        "n": n,
        "trained_on": trained_on,
        "skipped": [skip._asdict() for skip in predicted.skipped],
        "arch": clf.arch,
        "size": clf.pixels.size,
        "classes": len(inference.class_table(clf)),
    }
    order = np.arange(n)
    if len(labeled):
        result["labelled"] = len(labeled)
        for rank in (1, 5):
            correct = metrics.topk_correct(predicted.logits[labeled], labels[labeled], rank)
            result |= metrics.share(f"top{rank}", correct)
        of_label = np.where(labels >= 0, probabilities[np.arange(n), labels], 1.0)
        order = np.argsort(of_label, kind="stable")
    name = inference.class_table(clf).display
    result["predictions"] = [
        {"path": str(path), "topk": inference.topk(clf, p, k)}
        | ({"label": {"index": int(label), "name": name(label)}} if label >= 0 else {})
        for path, p, label in zip(predicted.paths, probabilities, labels, strict=True)
    ]
    rows = order[:PAGE_IMAGES].tolist()
    result["shown"] = run.attempt("shown", lambda: _save_images(run, clf, predicted, rows), [])
    return result


def _save_images(
    run: reporting.Run, clf: Classifier, predicted: Predictions, rows: Sequence[int]
) -> list[dict[str, Any]]:
    """Saves images as figures and on one contact sheet; rows `{"row", "figure"}`."""
    images = {i: clf.prepare(data.decode(predicted.paths[i])) for i in rows}
    sheet = reporting.contact_sheet(list(images.values())[:24], columns=6)
    run.figure("photographs", sheet)
    return [
        {"row": i, "figure": run.relative(run.figure(Path(str(predicted.paths[i])).stem, image))}
        for i, image in images.items()
    ]


def hardest_images(clf: Classifier, predicted: Predictions, n: int = 12) -> list[dict[str, Any]]:
    """The `n` misclassified images with the lowest probability of the true class.

    Returns:
      JSON-ready rows `{"path", "row", "true", "label", "topk"}`: `row` is a position in
      `predicted`, `true` and `label` are name and index of the true class, and `topk` is as
      `tl.inference.topk` returns it for 3 classes. Lowest probability first.
    """
    table, probabilities = inference.class_table(clf), predicted.probabilities
    of_truth = probabilities[np.arange(len(predicted.labels)), predicted.labels]
    correct = metrics.topk_correct(predicted.logits, predicted.labels, 1)
    return [
        {
            "path": str(predicted.paths[i]),
            "row": int(i),
            "true": table.display(predicted.labels[i]),
            "label": int(predicted.labels[i]),
            "topk": inference.topk(clf, probabilities[i], 3),
        }
        for i in np.argsort(of_truth, kind="stable")[:n]
        if not correct[i]
    ]


def save_hardest_images(
    run: reporting.Run, clf: Classifier, predicted: Predictions, n: int = 12
) -> list[dict[str, Any]]:
    """Saves the `hardest_images` as figures, as the network receives them, and one contact sheet.

    Returns:
      Rows of `hardest_images` with "figure", the path of the image relative to the run's folder.
    """
    rows = hardest_images(clf, predicted, n)
    images = [clf.prepare(data.decode(predicted.paths[row["row"]])) for row in rows]
    if images:
        run.figure("worst_mistakes", reporting.contact_sheet(images, columns=4))
    for row, image in zip(rows, images, strict=True):
        row["figure"] = run.relative(run.figure("hardest", image))
    return rows


def predict_set(
    clf: Classifier, variables: Variables, spec: DataSpec, *, frozen: bool
) -> Predictions:
    """The predictions for a data set, from the feature bank where the backbone is pretrained.

    Logits from the bank agree with `predict` up to float32 rounding, within 2e-6 of the largest.

    Args:
      clf, variables: the network.
      spec: a data set with the classes of the network.
      frozen: whether the backbone's variables are shared by many heads, so that a bank is worth it.
    """
    if not (frozen and heads.pooled(clf.head)):  # type: ignore[arg-type]
        return inference.predict(clf, variables, spec, progress=progress)
    bank = features.extract(clf, variables, inputs.sources(spec))
    logits = np.asarray(clf.apply_head(variables, jnp.asarray(bank.values[bank.valid])))
    paths = tuple(e.path for e, valid in zip(spec.examples, bank.valid, strict=True) if valid)
    return Predictions(logits, inputs.labels(spec)[bank.valid], paths, bank.skipped)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions for several test sets as one."""
    return Predictions(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.labels for part in parts]),
        tuple(path for part in parts for path in part.paths),
        tuple(skip for part in parts for skip in part.skipped),
    )


def accuracy(predicted: Predictions) -> float:
    """Top-1 accuracy, a share in [0, 1]."""
    return float(metrics.topk_correct(predicted.logits, predicted.labels, 1).mean())


def summarize_passes(passes: Sequence[Pass], classes: Sequence[str]) -> dict[str, Any]:
    """The figures of a test over all seeds: means, and the details of the first seed.

    Every image counts once in an interval, because the passes of several seeds share test images.
    The spread over seeds is reported separately.

    Args:
      passes: one per seed.
      classes: their names.

    Returns:
      "test", the keys of `summary` without `DETAILS`; `DETAILS`. With views, "test_tta": the keys
      of `metrics.summarize` and "top1_seeds", the accuracy of each seed, whose `metrics.spread`
      is "seeds" if there are several. With several seeds, "seeds": the accuracies "top1" and
      their `metrics.spread`.
    """
    rows = [summary(p.tested.logits, p.tested.labels, classes, p.temperature) for p in passes]
    outcome: dict[str, Any] = {"test": mean_of(rows), **{key: rows[0][key] for key in DETAILS}}
    outcome["majority"] = outcome["test"].pop("majority")
    outcome |= {"undefined": rows[0]["undefined"]} if "undefined" in rows[0] else {}
    averaged = [p.tta for p in passes if p.tta]
    if averaged and len(averaged) == len(passes):
        outcome["test_tta"] = mean_of([metrics.summarize(t.logits, t.labels) for t in averaged])
        outcome["test_tta"]["top1_seeds"] = top1 = [accuracy(tta) for tta in averaged]
        if len(passes) > 1:
            outcome["test_tta"]["seeds"] = metrics.spread(top1)
    if len(passes) > 1:
        top1 = [accuracy(one.tested) for one in passes]
        outcome["seeds"] = {"top1": top1, **metrics.spread(top1)}
    return outcome


def mean_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The means of figures over seeds. Intervals are of one test set: means of their bounds.

    Args:
      rows: figures of each seed, as `metrics.summarize` returns them.

    Returns:
      "n" of the first seed, and the mean of each float and of each interval; None where a seed has
      none.
    """
    first = rows[0]
    averaged = [k for k, v in first.items() if isinstance(v, float | None) or k.endswith("_ci95")]
    columns = {k: [row[k] for row in rows] for k in averaged}
    return {"n": first["n"]} | {
        k: None if None in column else np.mean(column, axis=0).tolist()
        for k, column in columns.items()
    }
