"""Adversarial pictures: a dog that the network calls a cat, within eps of the photograph, counted on the saved PNG.

  ./launch.sh attack --images=DOGS --target="any cat" --only="any dog" --limit=100 --eps=2/255 --steps=40
  ./launch.sh attack --images=DIR --labels=folder --attack=autoattack --eps=1/255        accuracy under attack
  ./launch.sh attack --images=DIR --labels=folder --eps=0.25/255,0.5/255,1/255,2/255 --nogrid     a curve, one compiled program
  ./launch.sh attack --images=DOGS --target="any cat" --eps=4/255 --views=jpeg,resized,crop       still so after JPEG

Untargeted without --target. A picture that the network names wrongly from the start is no success: it is told apart.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.lesson.attack import TARGET, as_written
from tl import attacks, cli, inference, reporting
from tl.attacks import goals, norms, sanity_checks
from tl.cli import radii
from tl.evaluation import attacked
from tl.evaluation.attacked import (
    PANEL,
    VIEWS,
    Settings,
    attack_batches,
    format_eps,
    run_sanity_checks,
    search,
)
from tl.inference import folder_labels
from tl.models import Classifier
from tl.pages import attack as attack_page
from tl.pages import common
from tl.reporting import Html
from tl.types import Variables

FLAGS = flags.FLAGS
LEAST = "least likely"


def define_flags() -> None:
    flags.DEFINE_string(
        "images", None, "Files, folders and globs, separated by commas.", required=True
    )
    flags.DEFINE_string(
        "target",
        "",
        f"What they shall be called: a class, a group, or {LEAST!r}. Default: anything but what is right (untargeted).",
    )
    flags.DEFINE_string(
        "only", "", "Attack only pictures that the network calls this class or group."
    )
    flags.DEFINE_integer("limit", 0, "At most so many pictures. Default: all.", lower_bound=0)
    flags.DEFINE_string("attack", "pgd", f"How: {', '.join(attacks.ATTACKS)}.")
    flags.DEFINE_string("norm", "linf", f"How far is measured: {', '.join(norms.NORMS)}.")
    flags.DEFINE_string("eps", "8/255", "Radius in [0, 1] pixel units; a list sweeps.")
    flags.DEFINE_integer(
        "steps", None, "Of the search. Default: the attack's own (40 for pgd).", lower_bound=1
    )
    flags.DEFINE_string(
        "step_size", "", "In pixel units. Default: the attack's own (2.5 eps / steps for pgd)."
    )
    flags.DEFINE_integer("restarts", 1, "Random starts.", lower_bound=1)
    flags.DEFINE_bool(
        "grid", True, "Only pictures that an 8-bit file can hold. --nogrid for eps below a level."
    )
    flags.DEFINE_bool(
        "early_stop",
        None,
        "Leave a picture as soon as the goal is met. Default: yes, but with a target, or with views, climb on, as it can.",
    )
    flags.DEFINE_list(
        "views",
        [],
        f"Climb the mean over random views (EOT, with pgd), all of: {', '.join(VIEWS)}.",
    )
    flags.DEFINE_integer("draws", 4, "Views for each gradient.", lower_bound=1)
    flags.DEFINE_bool("panel", True, f"Look whether the attack is honest, on {PANEL} pictures.")
    flags.DEFINE_bool("lpips", True, "Perceptual distance too, where its weights are installed.")
    flags.DEFINE_bool(
        "as_in_lesson", False, "The lesson's attack beside this one, on the first pictures."
    )
    flags.DEFINE_enum(
        "labels",
        "none",
        ["none", "folder"],
        "folder: a picture's folder is its class. none: what it is called.",
    )


def attack(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    pictures: inference.Pictures,
    *,
    target: str,
    truth: np.ndarray | None = None,
    only: str = "",
    limit: int = 0,
    how: Settings,
) -> tuple[dict[str, Any], list[Html]]:
    """The result and the page's sections; `truth` i[n] are the right classes, or None for what the network calls them."""
    variables = jax.device_put(clf.fold_batch_norm(variables))
    table = inference.class_table(clf)
    aims = table.find(target) if target and target != LEAST else ()
    clean = inference.predict_logits(clf, variables, pictures.images)
    called = clean.argmax(axis=1)
    answers = called if truth is None else truth
    skips = list(pictures.skipped)
    asked = np.flatnonzero(
        np.isin(called, table.find(only)) if only else np.ones(len(called), bool)
    )
    for i in asked:
        if answers[i] in aims or called[i] in aims:
            which = answers[i] if answers[i] in aims else called[i]
            skips.append(
                {
                    "path": str(pictures.paths[i]),
                    "why": f"it is called {table.display(which)} already",
                }
            )
    asked = np.array([i for i in asked if answers[i] not in aims and called[i] not in aims], int)[
        : limit or None
    ]
    n = len(asked)
    if not n:
        raise ValueError(
            f"none of the {len(called)} pictures is left to attack (only={only!r}, target={target!r})"
        )
    rows = asked[
        called[asked] == answers[asked]
    ]  # the others are wrong already: no attack's success
    wrong = [str(pictures.paths[i]) for i in asked if called[i] != answers[i]]
    if not len(rows):
        raise ValueError(
            f"the network names none of the {n} pictures rightly: there is nothing to attack"
        )
    paths, originals, right = (
        [pictures.paths[i] for i in rows],
        pictures.images[rows],
        answers[rows],
    )

    goal = goals.TARGETED if target else goals.UNTARGETED
    if target == LEAST:
        class_mask = goals.least_likely(clean[rows])
    else:
        class_mask = goals.class_mask([aims or (int(label),) for label in right], len(table))
    climb = attacks.make(
        search(how, target), clf.logits, norm=norms.get(how.norm), goal=goal, eight_bit=how.grid
    )
    job = attacked.AttackContext(
        run, clf, variables, goal, class_mask, paths, originals, clean[rows], right, n
    )
    lines, curve, sections = {}, [], []
    lpips = attacked.lpips() if how.lpips else None
    for radius in how.eps:
        found, steps = attack_batches(climb, variables, originals, class_mask, radius, how)
        judged = attacked.judge(
            job, format_eps(radius, how.norm), found, steps, grid=how.grid, lpips=lpips
        )
        lines[radius] = judged
        curve.append((radius, judged))
        run.log(
            {
                "eps": judged.word,
                "success_rate": judged.success_rate,
                "robust_accuracy": judged.robust_accuracy,
            }
        )
    largest = lines[max(how.eps)]
    panel = []
    if how.panel and max(how.eps) > 0:
        panel = run_sanity_checks(clf, variables, originals, class_mask, goal, how, target)
    panel += attacked.own_checks(
        job, [lines[radius] for radius in how.eps], norms.get(how.norm), how.eps, grid=how.grid
    )

    sections += attack_page.sections(job, curve, how.norm, target or "something else")
    sections += [attack_page.panel_section(panel), attack_page.treatments_section(curve)]
    reach = f"No picture is further than eps = {largest.word} ({how.norm}) from its photograph. At true pixels."
    sections += [reporting.section("The pictures", *attack_page.strips(job, largest), text=reach)]
    sections += [
        reporting.skipped(
            [
                *skips,
                *({"path": path, "why": "the network names it wrongly as it is"} for path in wrong),
            ]
        )
    ]
    result = {
        "n": n,
        "clean_correct": len(rows),
        "wrong_before": wrong,
        "attack": how.method,
        "norm": how.norm,
        "success_rate": {j.word: j.success_rate for j in lines.values()},
        "success_ci95": {j.word: j.success_ci95 for j in lines.values()},
        "robust_accuracy": {j.word: j.robust_accuracy for j in lines.values()},
        "robust_ci95": {j.word: j.robust_ci95 for j in lines.values()},
        "after": {j.word: j.after for j in lines.values()},
        "steps": {j.word: int(j.steps.sum()) for j in lines.values()},
        "images": [row for j in lines.values() for row in attacked.image_rows(job, j)],
        "checks": {
            line.name: {"passed": line.passed, "found": line.found, "wanted": line.wanted}
            for line in panel
        },
        "skipped": skips,
    }
    return result, sections


def main(run: reporting.Run) -> None:
    clf, variables = cli.load_model()
    table = inference.class_table(clf)
    table.find(
        FLAGS.target if FLAGS.target not in ("", LEAST) else "0"
    )  # told before any picture is read
    norms.get(FLAGS.norm)
    how = Settings(
        method=FLAGS.attack,
        norm=FLAGS.norm,
        eps=radii(FLAGS.eps, FLAGS.norm),
        steps=FLAGS.steps,
        step_size=cli.fraction(FLAGS.step_size, "step_size") if FLAGS.step_size else None,
        restarts=FLAGS.restarts,
        grid=FLAGS.grid,
        early_stop=FLAGS.early_stop,
        views=FLAGS.views,
        draws=FLAGS.draws,
        panel=FLAGS.panel,
        lpips=FLAGS.lpips,
        seed=FLAGS.seed,
    )
    search(how, FLAGS.target)
    pictures = inference.read_images(clf, FLAGS.images)
    truth = folder_labels(clf, pictures.paths) if FLAGS.labels == "folder" else None
    result, sections = attack(
        run,
        clf,
        variables,
        pictures,
        target=FLAGS.target,
        truth=truth,
        only=FLAGS.only,
        limit=FLAGS.limit,
        how=how,
    )
    if FLAGS.as_in_lesson:
        aim = table.find(FLAGS.target) if FLAGS.target not in ("", LEAST) else (TARGET,)
        only = table.find(FLAGS.only) if FLAGS.only else ()
        kept = pictures
        if only:  # the lesson's photograph is a dog
            rows = np.isin(
                inference.predict_logits(clf, variables, pictures.images).argmax(axis=1), only
            )
            kept = inference.Pictures(
                [p for p, row in zip(pictures.paths, rows, strict=True) if row],
                pictures.images[rows],
                [],
            )
        result["as_in_lesson"], section = as_written(
            run, clf, variables, kept, aim, only=only, seed=FLAGS.seed
        )
        sections.append(section)
    lead = f"{result['clean_correct']} photographs, changed by less than the eye sees until {clf.arch} is wrong."
    run.finish(
        result,
        reporting.page(
            "Adversarial pictures", lead, sections, facts=run.facts() | common.weights_facts(clf)
        ),
    )
    for word, rate in result["success_rate"].items():
        low, high = result["success_ci95"][word]
        robust = reporting.percent(result["robust_accuracy"][word])
        print(
            f"eps {word}: {reporting.percent(rate)} of {result['clean_correct']} succeed ({reporting.percent(low)} to "
            f"{reporting.percent(high)}), robust accuracy {robust}"
        )
    for name, line in result["checks"].items():
        print(sanity_checks.Check(name, **line))
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    cli.launch("attack", main, cli.define_model_flags, define_flags)
