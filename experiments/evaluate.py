"""Asks a saved classifier about other pictures: how good it is, class by class, and where it is wrong.

  ./launch.sh evaluate --model=DIR --data=folder:PICTURES
  ./launch.sh evaluate --model=DIR --data=folder:PICTURES --robust_eps=2/255 --robust_attack=autoattack     under attack too

Classes are matched by name. Logits are `predict`'s, bit by bit; NLL and ECE stand there as trained and at the temperature
that `transfer` fitted on pictures it had held out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags

from tl import attacks, cli, data, inference, models, pages, reporting
from tl.data import DataSpec
from tl.evaluation import robust, sets
from tl.models import Classifier
from tl.pages import common, evaluation
from tl.reporting import percent
from tl.types import Variables

FLAGS = flags.FLAGS
PARTS = ("train", "validation", "test")


def define_flags() -> None:
    flags.DEFINE_string("data", None, f"{', '.join(data.names())}.", required=True)
    flags.DEFINE_enum(
        "part",
        "",
        ["", "all", *PARTS],
        "Of --data. Default: its own test part, or all where it has none.",
    )
    flags.DEFINE_string(
        "robust_eps",
        "0",
        "Tests under attack at this radius too, in Linf in [0, 1] pixel units; 0: not.",
    )
    flags.DEFINE_enum(
        "robust_attack",
        "pgd",
        list(attacks.ATTACKS),
        "The attack of that test; pgd is a quick one of 20 steps.",
    )
    flags.DEFINE_integer(
        "robust_queries", 0, "Of Square within AutoAttack; 0: its own 5,000.", lower_bound=0
    )


def chosen(spec: DataSpec, part: str) -> DataSpec:
    """The official part of a set that `part` names; "" is its test part where it has one, else all."""
    wanted = part or "test"
    kept = tuple(example for example in spec.examples if example.part == wanted)
    if part == "all" or (not part and not kept):
        return spec
    if not kept:
        has = sorted({example.part for example in spec.examples} - {""})
        raise ValueError(
            f"{spec.name} has no part {part!r}; it has {', '.join(has) or 'none'}: take --part=all"
        )
    return dataclasses.replace(spec, examples=kept)


def evaluate(
    run: reporting.Run, clf: Classifier, variables: Variables, spec: DataSpec, temperature: float
) -> dict[str, Any]:
    """The result."""
    spec = data.remap_labels(spec, inference.class_table(clf))
    predicted = inference.predict(clf, variables, spec, progress=sets.progress)
    if not len(predicted.labels):
        raise ValueError(
            f"none of the {len(spec.examples)} images of {spec.name} can be read; run doctor on it"
        )
    return {
        "arch": clf.arch,
        "data": spec.name,
        **sets.summary(predicted.logits, predicted.labels, spec.classes, temperature),
        "classes": list(spec.classes),
        "references": spec.references,
        "mistakes": sets.save_hardest_images(run, clf, predicted),
        "skipped": [skip._asdict() for skip in (*spec.skipped, *predicted.skipped)],
        "facts": common.weights_facts(clf)
        | {"images": spec.source, "license of the images": spec.licence},
    }


def main(run: reporting.Run) -> None:
    eps = cli.fraction(FLAGS.robust_eps, "robust_eps")
    robust.check_robust(eps, FLAGS.robust_attack, FLAGS.robust_queries)
    clf, variables = cli.load_model()
    inference.class_table(clf)  # raises for a network without classes, before any image is read
    spec = chosen(data.get(FLAGS.data), FLAGS.part)
    temperature = models.metadata(FLAGS.model).get("temperature", 1.0) if FLAGS.model else 1.0
    result = evaluate(run, clf, variables, spec, temperature)
    if eps:
        how = {"method": FLAGS.robust_attack, "queries": FLAGS.robust_queries, "seed": FLAGS.seed}
        same = data.remap_labels(spec, inference.class_table(clf))
        result["robust"] = {"now": robust.robust(clf, variables, same, eps=eps, **how)}
    page = pages.finish(run, result)
    low, high = (percent(p) for p in result["top1_ci95"])
    top3 = f"top-3 {percent(result['top3'])}, " if len(spec.classes) > 3 else ""
    print(
        f"top-1 {percent(result['top1'])} (95 % interval {low} to {high}, n = {result['n']}), {top3}"
        f"balanced {percent(result['balanced'])}, majority class {percent(result['majority'])}; "
        f"skipped {len(result['skipped'])}"
    )
    print(
        f"NLL {result['nll']:.3f}, ECE {result['ece']:.3f}; at temperature {temperature:.2f} NLL "
        f"{result['nll_calibrated']:.3f}, ECE {result['ece_calibrated']:.3f}"
    )
    for line in evaluation.robust_lines(result.get("robust", {})):
        print(line)
    print(page)


if __name__ == "__main__":
    cli.launch("evaluate", main, cli.define_model_flags, define_flags)
