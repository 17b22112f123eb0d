"""Names photographs: the top classes of each, and the accuracy where folders carry the labels.

  ./launch.sh predict --images=FOLDER --labels=folder

On 500 ImageNet photographs EfficientNet-Lite0 names 88.0 % rightly (README, "Numbers").
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from absl import flags

from tl import cli, inference, metrics, reporting
from tl.inference import folder_labels
from tl.models import Classifier
from tl.pages import common
from tl.reporting import Html
from tl.types import Variables

FLAGS = flags.FLAGS
SHOWN = 48  # pictures on the page; all are in result.json


def define_flags() -> None:
    flags.DEFINE_string(
        "images", None, "Files, folders and globs, separated by commas.", required=True
    )
    flags.DEFINE_integer("topk", 5, "Classes a picture.", lower_bound=1)
    flags.DEFINE_enum(
        "labels",
        "none",
        ["none", "folder"],
        "folder: a picture's folder is its class (index, id or name).",
    )


def predict(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    pictures: inference.LoadedImages,
    labels: np.ndarray | None,
    k: int,
) -> tuple[dict[str, Any], list[Html]]:
    """The result and the page's sections; `labels` i[n] are -1 where unknown, or None where all are."""
    # Not folded: a saved classifier's logits are the same bits here, in `evaluate` and of what `load` returns.
    variables = jax.device_put(variables)
    logits = inference.predict_logits(clf, variables, pictures.images)
    probabilities = metrics.softmax(logits)
    tops = [inference.topk(clf, p, k) for p in probabilities]
    result: dict[str, Any] = {"n": len(tops), "skipped": pictures.skipped}
    sections = []
    labels = np.full(len(tops), -1) if labels is None else labels
    known = np.flatnonzero(labels >= 0)
    order, title = np.arange(len(tops)), "Photographs"
    if len(known):
        right = metrics.topk_correct(logits[known], labels[known], 1)
        low, high = metrics.wilson(int(right.sum()), len(right))
        result |= {"labelled": len(known), "top1": float(right.mean()), "top1_ci95": [low, high]}
        result["top5"] = float(metrics.topk_correct(logits[known], labels[known], 5).mean())
        own = np.where(labels >= 0, probabilities[np.arange(len(labels)), labels], 1.0)
        order, title = np.argsort(own, kind="stable"), "Photographs, the least expected first"
        summary = {
            "labelled": len(known),
            "top-1": reporting.percent(result["top1"]),
            "top-5": reporting.percent(result["top5"]),
        }
        accuracy = reporting.interval(result["top1"], low, high, label="top-1 accuracy")
        sections.append(reporting.section("Accuracy", reporting.numbers(summary), accuracy))
    result["predictions"] = [
        {"path": str(p), "topk": top} for p, top in zip(pictures.paths, tops, strict=True)
    ]
    cards = []
    for i in order[:SHOWN]:
        truth = [int(labels[i])] if labels[i] >= 0 else []
        caption = f"labelled {inference.class_table(clf).display(truth[0])}" if truth else ""
        cards.append(
            reporting.card(
                pictures.images[i],
                title=pictures.paths[i].name,
                caption=caption,
                bars=common.bars(tops[i], truth),
            )
        )
    rest = f"The first {SHOWN} of {len(tops)}." if len(tops) > SHOWN else ""
    text = f"As the network sees them: {clf.pixels.size} pixels square, cropped by the rule of its weights. {rest}"
    sections += [
        reporting.section(title, reporting.gallery(cards), text=text),
        reporting.skipped(pictures.skipped),
    ]
    run.figure("photographs", reporting.contact_sheet(pictures.images[order[:24]], columns=6))
    return result, sections


def main(run: reporting.Run) -> None:
    clf, variables = cli.load_model()
    inference.class_table(clf)  # a network without classes is told before any picture is read
    pictures = inference.read_images(clf, FLAGS.images)
    labels = folder_labels(clf, pictures.paths) if FLAGS.labels == "folder" else None
    result, sections = predict(run, clf, variables, pictures, labels, FLAGS.topk)
    lead = f"{result['n']} photographs, named by {clf.arch}."
    run.finish(
        result,
        reporting.page(
            "What is in these photographs",
            lead,
            sections,
            facts=run.facts() | common.weights_facts(clf),
        ),
    )
    accuracy = (
        f"; top-1 {reporting.percent(result['top1'])}, top-5 {reporting.percent(result['top5'])}"
        if "top1" in result
        else ""
    )
    print(f"named {result['n']} pictures, skipped {len(result['skipped'])}{accuracy}")
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    cli.launch("predict", main, cli.define_model_flags, define_flags)
