"""Evaluates a saved classifier on a data set: accuracy, calibration, confusion, hardest images.

  ./launch.sh evaluate --model=DIR --data=folder:IMAGES
  ./launch.sh evaluate --model=DIR --data=elpv --robust_eps=2/255 --robust_attack=autoattack

Classes are matched by name. The logits are those of `predict`, bit by bit, and those of `transfer`
up to rounding. NLL and ECE are reported as trained and at the temperature that `transfer` fitted on
held-out images.

Expected: a classifier of cats and dogs trained with PGD-AT (`robust_pgd_at`) has an accuracy of
79.3 % (73.8 to 83.8) under AutoAttack within Linf 2/255 (`robust_autoattack` in RESULTS.md). Cost:
one forward pass per image; --robust_attack=pgd adds 20 forward and backward passes.
"""

from __future__ import annotations

import functools

from absl import flags

from tl import attacks, cli, data, inference, pages, reporting
from tl.attacks import norms
from tl.evaluation import robust, seen, sets
from tl.pages import common, evaluation

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_white_flag()
    flags.DEFINE_string("data", None, f"Test set: {', '.join(data.names())}.", required=True)
    flags.DEFINE_enum(
        "part",
        "",
        ["", "all", "train", "validation", "test"],
        "Official part of --data. Default: its test part, or all images if it has none.",
    )
    flags.DEFINE_string(
        "robust_eps",
        "0",
        "Radius of an attack in Linf, in [0, 1] pixel units, such as 2/255; 0: no attack.",
    )
    flags.DEFINE_enum(
        "robust_attack", "pgd", list(attacks.ATTACKS), "Attack at --robust_eps; pgd: 20 steps."
    )
    flags.DEFINE_integer(
        "robust_queries",
        0,
        "Queries per image of Square within AutoAttack; 0: its default, 5,000.",
        lower_bound=0,
    )


def main(run: reporting.Run) -> None:
    eps = cli.fraction(FLAGS.robust_eps, "robust_eps")
    robust.check_robust(eps, FLAGS.robust_attack, FLAGS.robust_queries)
    run.remark(*norms.radius_remarks("linf", [eps]))
    clf, variables = cli.load_model(run)
    table = inference.class_table(clf)  # raises for a network without classes, before any image
    robust.check_robust(eps, FLAGS.robust_attack, FLAGS.robust_queries, classes=len(table))
    spec = sets.select_part(cli.load_data(run, FLAGS.data, min_classes=1), FLAGS.part)
    saved = cli.metadata()
    temperature = saved.get("temperature", 1.0)
    result = sets.evaluation_result(run, clf, variables, spec, temperature, seen.Seen(saved))
    result["facts"] |= common.weights_facts(clf)
    if eps:
        test = functools.partial(
            robust.robust,
            clf,
            variables,
            data.remap_labels(spec, table),
            eps=eps,
            method=FLAGS.robust_attack,
            queries=FLAGS.robust_queries,
            seed=FLAGS.seed,
        )
        row = run.attempt("robust", test, {})
        result |= {"robust": {"now": row}} if row else {}
    page = pages.finish(run, result)
    print(*evaluation.lines(result), page, sep="\n")


if __name__ == "__main__":
    cli.launch("evaluate", main, cli.define_model_flags, define_flags)
