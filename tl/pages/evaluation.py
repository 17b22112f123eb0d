"""Sections of a page about a classifier's accuracy on a data set, and the page of `evaluate`.

Every function takes JSON-ready values. `summary` is a mapping with the keys of
`tl.evaluation.sets.summary`, and "classes", the class names. Images are read from the run's folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl import reporting
from tl.pages import common
from tl.reporting import Html, percent

CLASSIFIERS = {
    "now": "this classifier",
    "after": "this classifier",
    "before": "a probe on the pretrained network",
}


def sections(summary: Mapping[str, Any], folder: Path) -> list[Html]:
    """All sections about one test: accuracy, calibration, confusion, hardest images, classes.

    Args:
      summary: the keys of `tl.evaluation.sets.summary` and "classes". Optional keys: "references"
        (published accuracies, `[name, share]` each), "mistakes" (rows of
        `tl.evaluation.sets.save_hardest_images`) and "skipped".
      folder: the run's folder.
    """
    return [
        accuracy_section(summary, summary.get("references", ())),
        calibration_section(summary),
        confusion_section(summary),
        *hardest_section(summary.get("mistakes", ()), folder),
        per_class_section(summary),
        reporting.skipped(summary.get("skipped", [])),
    ]


def accuracy_section(summary: Mapping[str, Any], references: Sequence[Sequence[Any]] = ()) -> Html:
    """The main figures, and top-1 accuracy on one axis with the majority class and references."""
    figures = {"test images": summary["n"], "top-1": percent(summary["top1"])}
    if common.shows_top3(summary["classes"]):
        figures |= common.share_figure(summary, "top3", "top-3")
    calibrated = f"ECE, T =\n{_temperature(summary)}"
    if summary["balanced"] is not None:
        figures |= common.share_figure(summary, "balanced", "balanced accuracy")
    figures |= {
        "NLL": f"{summary['nll']:.3f}",
        "ECE": f"{summary['ece']:.3f}",
        calibrated: f"{summary['ece_calibrated']:.3f}",
    }
    majority = [("majority class", summary["majority"])] if summary["majority"] else []
    accuracy = reporting.interval(
        summary["top1"],
        *summary["top1_ci95"],
        label="test accuracy",
        references=[*majority, *((n, s) for n, s in references)],
    )
    notes = map(reporting.note, spread_lines(summary))
    return reporting.section("Accuracy", reporting.numbers(figures), accuracy, *notes)


def spread_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Mean and standard deviation over seeds and over folds, and the interval of the mean."""
    for name in ("seeds", "folds"):
        if name not in result:
            continue
        spread = result[name]
        mean, std, bounds = 100 * spread["mean"], 100 * spread["std"], spread.get("ci95")
        words = f"Over {spread['n']} {name} {mean:.1f} +- {std:.1f} % (mean, standard deviation)"
        if bounds:
            low, high = (100 * min(1.0, max(0.0, bound)) for bound in bounds)
            words += f", 95 % t interval of the mean {low:.1f} to {high:.1f} %"
        yield words


def calibration_section(summary: Mapping[str, Any]) -> Html:
    """The reliability diagram, at the fitted temperature too where it is not 1."""
    series = {"as trained": summary["reliability"]}
    if summary["temperature"] != 1.0:
        series[f"at temperature {_temperature(summary)}"] = summary["reliability_calibrated"]
    return reporting.section("Calibration", reporting.reliability(series))


def _temperature(summary: Mapping[str, Any]) -> str:
    """The temperature, or the range of those of several rounds."""
    several = summary.get("temperatures", [summary["temperature"]])
    return " to ".join(dict.fromkeys(f"{t:.2f}" for t in (min(several), max(several))))


def confusion_section(summary: Mapping[str, Any]) -> Html:
    """The confusion matrix and its largest cells off the diagonal."""
    parts = [reporting.confusion(np.array(summary["confusion"]), summary["classes"])]
    rows = [
        (row["true"], row["predicted"], f"{row['count']} of {row['of']}")
        for row in summary["most_confused"]
    ]
    if rows:
        parts.append(reporting.table(rows, ("true class", "predicted class", "images")))
    return reporting.section("Confusion matrix", *parts)


def per_class_section(summary: Mapping[str, Any]) -> Html:
    """Recall and precision per class, lowest recall first; absent classes are left out."""
    rows = [row for row in summary["per_class"] if row["n"] or row["called"]]
    rows.sort(key=lambda row: 1.0 if row["recall"] is None else row["recall"])
    text = "Sorted by recall, lowest first, with 95 % intervals."
    return reporting.section("Per-class accuracy", reporting.per_class(rows), text=text)


def hardest_section(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Html]:
    """The misclassified images with the lowest probability of the true class; none for no rows.

    Args:
      rows: as `tl.evaluation.sets.save_hardest_images` returns them.
      folder: the run's folder.
    """
    cards = [
        reporting.card(
            common.figure(folder, row["figure"]),
            caption=f"{Path(row['path']).name}, true class {row['true']}",
            bars=common.bars(row["topk"], [row["label"]]),
        )
        for row in rows
        if "figure" in row
    ]
    if not cards:
        return []
    text = (
        "The misclassified test images with the lowest probability of the true class, as the "
        "network receives them."
    )
    return [reporting.section("Hardest test images", reporting.gallery(cards), text=text)]


def robust_section(robust: Mapping[str, Mapping[str, Any]]) -> Html:
    """Accuracy under attack of one or two classifiers, on one axis.

    Args:
      robust: rows of `tl.evaluation.robust.robust` under "now", or "before" and "after" training.
    """
    bars = [
        reporting.Interval(
            f"{CLASSIFIERS[when]}, {percent(row['clean'])} without attack",
            row["top1"],
            *row["top1_ci95"],
        )
        for when, row in robust.items()
    ]
    row = next(iter(robust.values()))
    text = (
        f"Share of all {row['n']} test images that stay correctly classified when the attack may "
        f"change each value by up to {255 * row['eps']:g}/255: {row['attack']}. A stronger attack "
        "can only lower this share."
    )
    table = reporting.table(
        [(CLASSIFIERS[when], *_robust_shares(row)) for when, row in robust.items()],
        ("classifier", "without attack", "under attack", "of those classified correctly"),
        caption="With 95 % intervals",
    )
    return reporting.section("Accuracy under attack", reporting.intervals(bars), table, text=text)


def robust_lines(robust: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The same figures as text, one line per classifier."""
    for when, row in robust.items():
        clean, _, of_correct = _robust_shares(row)
        low, high = map(percent, row["top1_ci95"])
        yield (
            f"{when}: {percent(row['top1'])} (95 % interval {low} to {high}) within "
            f"{255 * row['eps']:g}/255 under {row['attack']}; {clean} without attack"
            + (f"; {of_correct} of those classified correctly without attack" * bool(of_correct))
        )


def _robust_shares(row: Mapping[str, Any]) -> list[str]:
    """Accuracy without attack, under attack, and under attack of those correct without it.

    Results of older versions lack the last one; it is also empty if no image is correct.
    """
    names = ("clean", "top1", "top1_of_correct")
    return [
        "" if row.get(name) is None else common.share_with_interval(row, name) for name in names
    ]


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The figures of `evaluate` as text for the terminal."""
    low, high = map(percent, result["top1_ci95"])
    share = lambda name: common.share_with_interval(result, name)
    top3 = f"top-3 {share('top3')}, " if common.shows_top3(result["classes"]) else ""
    compared = "one class"
    if result["majority"]:
        compared = f"balanced {share('balanced')}, majority class {percent(result['majority'])}"
    yield (
        f"top-1 {percent(result['top1'])} (95 % interval {low} to {high}, n = {result['n']}), "
        f"{top3}{compared}; skipped {len(result['skipped'])}"
    )
    yield (
        f"NLL {result['nll']:.3f}, ECE {result['ece']:.3f}; at temperature "
        f"{result['temperature']:.2f} NLL {result['nll_calibrated']:.3f}, "
        f"ECE {result['ece_calibrated']:.3f}"
    )
    yield from robust_lines(result.get("robust", {}))


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of `evaluate`.

    Args:
      result: the keys of `sections`, "arch" and "data" (names), and optionally "robust".
      folder: the run's folder.
    """
    lead = (
        f"{result['arch']} classifies {percent(result['top1'])} of {result['n']} images of "
        f"{result['data']} correctly."
    )
    attacked = [robust_section(result["robust"])] if "robust" in result else []
    return common.Page("Evaluation", lead, [*attacked, *sections(result, folder)])
