"""Adversarial pictures: a dog that the network calls a cat, within eps of the photograph, counted on the saved PNG.

  ./launch.sh attack --images=DOGS --target="any cat" --only="any dog" --limit=100 --eps=4/255 --steps=40

Untargeted without --target. A list of eps sweeps, in one compiled program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import _common as common
from experiments.predict import folder_labels
from tl import data, metrics, pixels, report, runlog
from tl.attacks import goals, gradient, norms
from tl.classifier import Classifier
from tl.report import Html
from tl.types import Variables

FLAGS = flags.FLAGS
BATCH = 10  # pictures a compiled call
SHOWN = 12  # on the page; all are in result.json


def define_flags() -> None:
    flags.DEFINE_string("images", None, "Files, folders and globs, separated by commas.", required=True)
    flags.DEFINE_string("target", "", "What they shall be called: a class or group. Default: anything else (untargeted).")
    flags.DEFINE_string("only", "", "Attack only pictures that the network calls this class or group.")
    flags.DEFINE_integer("limit", 0, "At most so many pictures. Default: all.", lower_bound=0)
    flags.DEFINE_enum("attack", "pgd", list(gradient.ATTACKS), "How.")
    flags.DEFINE_enum("norm", "linf", list(norms.NORMS), "How far is measured.")
    flags.DEFINE_string("eps", "8/255", "Radius in [0, 1] pixel units; a list sweeps.")
    flags.DEFINE_integer("steps", 40, "Of the climb.", lower_bound=1)
    flags.DEFINE_string("step_size", "", "In pixel units. Default: 2.5 eps / steps.")
    flags.DEFINE_integer("restarts", 1, "Random starts.", lower_bound=1)
    flags.DEFINE_enum("labels", "none", ["none", "folder"], "folder: a picture's folder is its class. none: what it is called.")


def attack(
    run: runlog.Run,
    clf: Classifier,
    variables: Variables,
    pictures: common.Pictures,
    *,
    target: str,
    truth: np.ndarray | None = None,
    only: str = "",
    limit: int = 0,
    method: str = "pgd",
    norm: str = "linf",
    eps: Sequence[float] = (8 / 255,),
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    seed: int = 0,
) -> tuple[dict[str, Any], list[Html]]:
    """The result and the page's sections."""
    table = common.class_table(clf)
    k = len(table)
    aims = table.find(target) if target else ()
    wanted = goals.members([aims], k)[0] if aims else None
    clean = common.all_logits(clf, variables, pictures.images)
    called = clean.argmax(axis=1)
    truth = called if truth is None else truth
    skips = list(pictures.skipped)

    eligible = np.ones(len(called), bool)
    if only:
        eligible &= np.isin(called, table.find(only))
    if wanted is not None:
        for i in np.flatnonzero(eligible & wanted[called]):
            skips.append({"path": str(pictures.paths[i]), "why": f"it is called {table.display(called[i])} already"})
        eligible &= ~wanted[called]
    rows = np.flatnonzero(eligible)[: limit or None]
    n = len(rows)
    if not n:
        raise ValueError(f"none of the {len(called)} pictures is left to attack (only={only!r}, target={target!r})")
    clean_right = called[rows] == truth[rows]

    goal = goals.TARGETED if wanted is not None else goals.UNTARGETED
    members = goals.members([aims or (int(truth[i]),) for i in rows], k)
    climb = gradient.get(method)(clf.logits, norm=norms.get(norm), goal=goal, steps=steps, restarts=restarts)
    originals = pictures.images[rows]
    key = jax.random.key(seed)
    success_rate, robust, images, checks = {}, {}, [], {}
    strips: list[Html] = []
    for radius in eps:
        word = f"{radius * 255:g}/255"
        length = 2.5 * radius / steps if step_size is None else step_size  # Madry et al. 2018: past the ball's edge and back
        found = np.zeros_like(originals)
        starts = range(0, n, BATCH)
        for start in runlog.progress(starts, len(starts), f"eps {word}, batches of {BATCH}"):
            batch = np.resize(np.arange(start, min(start + BATCH, n)), min(BATCH, n))
            made = climb(
                variables, jax.random.fold_in(key, start), pixels.to_images01(originals[batch]), members[batch],
                eps=radius, step_size=length,
            )  # fmt: skip
            count = min(BATCH, n - start)
            found[start : start + count] = pixels.to_uint8(np.asarray(made.images))[:count]
        files = [run.figure(f"eps{radius * 255:g}-{i:03d}-{pictures.paths[row].stem}", image) for i, (row, image) in enumerate(zip(rows, found, strict=True))]
        # From here on only the files count: read back, named again, measured against the original's pixels.
        saved = np.stack([data.decode(file) for file in files])
        logits = common.all_logits(clf, variables, saved)
        probabilities = common.softmax(logits)
        before = common.softmax(clean[rows])
        success = np.asarray(goal.success(logits, members))
        change = pixels.to_images01(saved) - pixels.to_images01(originals)
        far = np.asarray(norms.linf_distance(change, np.zeros_like(change)))
        length2 = np.asarray(norms.l2_distance(change, np.zeros_like(change)))
        success_rate[word] = float(success.mean())
        robust[word] = float((clean_right & (logits.argmax(axis=1) == truth[rows])).mean())
        again = common.all_logits(clf, variables, saved[:BATCH])
        checks[word] = {
            "largest_linf_levels": float(np.abs(saved.astype(int) - originals.astype(int)).max()),
            "within_eps": bool((far <= radius + 1e-6).all()) if norm == "linf" else None,
            "two_calls_equal": bool((again == logits[: len(again)]).all()),
            "png_equals_computed": bool((saved == found).all()),
        }
        run.log({"eps": word, "success_rate": success_rate[word], **checks[word]})
        for i, row in enumerate(rows):
            now = int(logits[i].argmax())
            images.append(
                {
                    "path": str(pictures.paths[row]),
                    "png": str(files[i]),
                    "eps": word,
                    "from": table.display(called[row]),
                    "to": table.display(now),
                    "linf": float(far[i]),
                    "l2": float(length2[i]),
                    "probability": float(probabilities[i, now]),
                    "survives_png": bool(success[i]),
                }
            )
            if i < SHOWN and radius == max(eps):
                moved = [*dict.fromkeys([int(called[row]), now, *np.argsort(-probabilities[i])[:2].tolist()])]
                changes = [(table.display(j), float(before[i, j]), float(probabilities[i, j])) for j in moved]
                factor = 0.5 / max(radius, 1 / 255)
                cards = [
                    report.card(originals[i], title="photograph", caption=f"{table.display(called[row])}, {report.percent(float(before[i, called[row]]))}"),
                    report.card(saved[i], title="adversarial", caption=f"{table.display(now)}, {report.percent(float(probabilities[i, now]))}", below=report.before_after(changes)),
                    report.card(report.amplify(change[i], factor), title="difference", caption=f"amplified {factor:.0f} times; largest change {far[i] * 255:.0f} of 255 levels"),
                ]  # fmt: skip
                strips.append(report.strip(cards, title=pictures.paths[row].name))
    result = {
        "n": n,
        "clean_correct": int(clean_right.sum()),
        "success_rate": success_rate,
        "robust_accuracy": robust,
        "images": images,
        "checks": checks,
        "skipped": skips,
    }
    aim = f"to be called {target}" if target else "to be called anything else"
    sections = []
    summary = {"pictures": n, "steps": steps, "rightly named before": int(clean_right.sum())}
    for word, rate in success_rate.items():
        low, high = metrics.wilson(round(rate * n), n)
        parts = [report.numbers(summary), report.interval(rate, low, high, label=f"success at eps {word}")]
        sections.append(report.section(f"Success at eps = {word}", *parts, text=f"Counted on the PNG as read back: {round(rate * n)} of {n} pictures succeed {aim}."))
    text = f"At eps = {max(eps) * 255:g}/255, at true pixels. No pixel is further than that from the photograph. The bars go from before to after."
    sections += [report.section("The pictures", *strips, text=text), report.skipped(skips)]
    return result, sections


def main(run: runlog.Run) -> None:
    clf, variables = common.load_model()
    common.class_table(clf).find(FLAGS.target or "0")  # an unknown class is told before any picture is read
    eps = [common.fraction(word, "eps") for word in FLAGS.eps.split(",")]
    for radius, word in zip(eps, FLAGS.eps.split(","), strict=True):
        if not 0 <= radius <= 1:
            raise ValueError(f"--eps={word} is outside [0, 1]; pixel units are shares of the range, such as 4/255")
    step_size = common.fraction(FLAGS.step_size, "step_size") if FLAGS.step_size else None
    pictures = common.read_pictures(clf, FLAGS.images)
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
        method=FLAGS.attack,
        norm=FLAGS.norm,
        eps=eps,
        steps=FLAGS.steps,
        step_size=step_size,
        restarts=FLAGS.restarts,
        seed=FLAGS.seed,
    )
    lead = f"{result['n']} photographs, changed by less than the eye sees until {clf.arch} is wrong."
    run.finish(result, report.page("Adversarial pictures", lead, sections, facts=run.facts() | common.weights_facts(clf)))
    for word, rate in result["success_rate"].items():
        check = result["checks"][word]
        print(f"eps {word}: {report.percent(rate)} of {result['n']} succeed on the PNG read back; largest change {check['largest_linf_levels']:g} levels")
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    common.launch("attack", main, common.define_model_flags, define_flags)
