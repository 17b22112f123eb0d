"""Sections of a page about a classifier's accuracy on a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tl import data, inference, reporting
from tl.evaluation.sets import Predictions, mistakes
from tl.models import Classifier
from tl.pages import common
from tl.reporting import Html

WHOSE = {
    "now": "this classifier",
    "after": "this classifier",
    "before": "a probe on the pretrained network",
}


def robust_section(found: dict[str, dict[str, Any]]) -> Html:
    """Accuracy under attack: "now", or "before" and "after" training."""
    bars = [
        reporting.interval(
            row["top1"],
            *row["top1_ci95"],
            label=f"{WHOSE[when]}, {reporting.percent(row['clean'])} unattacked",
        )
        for when, row in found.items()
    ]
    row = next(iter(found.values()))
    text = (
        f"Share of the {row['n']} test pictures named rightly whatever the attack does within {255 * row['eps']:g}/255 of each "
        f"value: {row['attack']}. A stronger attack finds more."
    )
    return reporting.section("Under attack", *bars, text=text)


def robust_lines(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The same, a line each, as the terminal shows it."""
    for when, row in found.items():
        low, high = (reporting.percent(p) for p in row["top1_ci95"])
        yield (
            f"{when}: {reporting.percent(row['top1'])} (95 % interval {low} to {high}) within {255 * row['eps']:g}/255 under "
            f"{row['attack']}; {reporting.percent(row['clean'])} unattacked"
        )


def sections(
    run: reporting.Run,
    clf: Classifier,
    said: Predictions,
    result: dict[str, Any],
    references: Sequence[tuple[str, float]] = (),
) -> list[Html]:
    """Accuracy beside what it should be compared to, calibration, classes, confusion, and the worst mistakes as pictures."""
    classes = inference.class_table(clf).display_names
    figures = {
        "test pictures": result["n"],
        "top-1": reporting.percent(result["top1"]),
        "top-3": reporting.percent(result["top3"]),
        "balanced": reporting.percent(result["balanced"]),
        "NLL": f"{result['nll']:.3f}",
        "ECE": f"{result['ece']:.3f}",
        f"ECE at temperature {result['temperature']:.2f}": f"{result['ece_calibrated']:.3f}",
    }
    compared = [("always the commonest class", result["majority"]), *references]
    low, high = result["top1_ci95"]
    accuracy = reporting.interval(
        result["top1"], low, high, label="test accuracy", references=compared
    )
    pairs = [
        (row["true"], row["predicted"], f"{row['count']} of {row['of']}")
        for row in result["most_confused"]
    ]
    confused = [reporting.confusion(np.array(result["confusion"]), classes)]
    confused += [reporting.table(pairs, ("is", "was called", "times"))] if pairs else []
    sure = {"as trained": result["reliability"]}
    if result["temperature"] != 1.0:
        sure[f"at temperature {result['temperature']:.2f}"] = result["reliability_calibrated"]
    asked = [row for row in result["per_class"] if row["n"] or row["called"]]
    weakest = sorted(asked, key=lambda row: 1.0 if row["recall"] is None else row["recall"])
    return [
        reporting.section("How good it is", reporting.numbers(figures), accuracy),
        reporting.section("How far to believe it", reporting.reliability(sure)),
        reporting.section("What it confuses", *confused),
        *worst(run, clf, said),
        reporting.section(
            "Class by class",
            reporting.per_class(weakest),
            text="The least known first, with 95 % intervals.",
        ),
    ]


def worst(run: reporting.Run, clf: Classifier, said: Predictions) -> list[Html]:
    """The `mistakes` as pictures."""
    cards, images = [], []
    for row in mistakes(clf, said):
        source = said.examples[row["row"]].path
        images.append(clf.prepare(data.decode(source)))
        bars = common.bars(row["topk"], [int(said.labels[row["row"]])])
        cards.append(
            reporting.card(images[-1], caption=f"{source.name}, in truth {row['true']}", bars=bars)
        )
    if not images:
        return []
    run.figure("worst_mistakes", reporting.contact_sheet(images, columns=4))
    text = "The test pictures on which the most confidence was put in the wrong place, as the network sees them."
    return [reporting.section("Its worst mistakes", reporting.gallery(cards), text=text)]
