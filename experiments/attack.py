"""Adversarial pictures: a dog that the network calls a cat, within eps of the photograph, counted on the saved PNG.

  ./launch.sh attack --images=DOGS --target="any cat" --only="any dog" --limit=100 --eps=4/255 --steps=40

Untargeted without --target. A list of eps sweeps, in one compiled program.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments import _common as common
from experiments.predict import folder_labels
from tl import attacks, data, metrics, pixels, report, runlog
from tl.attacks import goals, norms
from tl.classifier import Classifier
from tl.report import Html
from tl.types import Variables

FLAGS = flags.FLAGS
BATCH = 10  # pictures a compiled call
SHOWN = 12  # on the page; all are in result.json


def define_flags() -> None:
    flags.DEFINE_string("images", None, "Files, folders and globs, separated by commas.", required=True)
    flags.DEFINE_string(
        "target", "", "What they shall be called: a class or group. Default: anything else (untargeted)."
    )
    flags.DEFINE_string("only", "", "Attack only pictures that the network calls this class or group.")
    flags.DEFINE_integer("limit", 0, "At most so many pictures. Default: all.", lower_bound=0)
    flags.DEFINE_enum("attack", "pgd", list(attacks.ATTACKS), "How.")
    flags.DEFINE_enum("norm", "linf", list(norms.NORMS), "How far is measured.")
    flags.DEFINE_string("eps", "8/255", "Radius in [0, 1] pixel units; a list sweeps.")
    flags.DEFINE_integer("steps", 40, "Of the climb.", lower_bound=1)
    flags.DEFINE_string("step_size", "", "In pixel units. Default: 2.5 eps / steps.")
    flags.DEFINE_integer("restarts", 1, "Random starts.", lower_bound=1)
    flags.DEFINE_enum(
        "labels", "none", ["none", "folder"], "folder: a picture's folder is its class. none: what it is called."
    )


class Settings(NamedTuple):
    """How an attack goes; `step_size` None is 2.5 eps / steps, past the ball's edge and back (Madry et al. 2018)."""

    method: str = "pgd"
    norm: str = "linf"
    eps: Sequence[float] = (8 / 255,)
    steps: int = 40
    step_size: float | None = None
    restarts: int = 1
    seed: int = 0


class Judged(NamedTuple):
    """Pictures as read back from their files: uint8[n s s 3], logits f32[n k], and what the goal says of them, bool[n]."""

    files: list[Path]
    images: np.ndarray
    logits: np.ndarray
    success: np.ndarray


def climb_all(
    climb: attacks.Attack,
    variables: Variables,
    originals: np.ndarray,
    members: np.ndarray,
    radius: float,
    how: Settings,
) -> np.ndarray:
    """Adversarial pictures uint8[n s s 3], in batches of one shape."""
    n, found = len(originals), np.zeros_like(originals)
    size, starts = min(BATCH, n), range(0, n, BATCH)
    step_size = 2.5 * radius / how.steps if how.step_size is None else how.step_size
    for start in runlog.progress(starts, len(starts), f"eps {radius * 255:g}/255, batches of {size}"):
        rows = np.resize(np.arange(start, min(start + size, n)), size)
        key = jax.random.fold_in(jax.random.key(how.seed), start)
        images01 = pixels.to_images01(originals[rows])
        made = climb(variables, key, images01, members[rows], eps=radius, step_size=step_size)
        found[rows] = pixels.to_uint8(np.asarray(made.images))
    return found


def judge(
    run: runlog.Run,
    clf: Classifier,
    variables: Variables,
    goal: goals.Goal,
    members: np.ndarray,
    names: list[str],
    found: np.ndarray,
) -> Judged:
    """Saves the pictures and reads them back; from here on only the files count."""
    files = [run.figure(name, image) for name, image in zip(names, found, strict=True)]
    saved = np.stack([data.decode(file) for file in files])
    logits = common.all_logits(clf, variables, saved)
    return Judged(files, saved, logits, np.asarray(goal.success(logits, members)))


def strip(
    clf: Classifier, path: Path, original: np.ndarray, saved: np.ndarray, before: np.ndarray, after: np.ndarray
) -> Html:
    """Photograph, adversarial picture and amplified difference side by side; probabilities f64[k] before and after."""
    table = common.class_table(clf)
    was, now = int(before.argmax()), int(after.argmax())
    change = pixels.to_images01(saved) - pixels.to_images01(original)
    levels = float(np.abs(change).max()) * 255
    factor = max(1, int(127 / max(levels, 1.0)))
    shown = dict.fromkeys([was, now, *np.argsort(-after)[:2].tolist()])
    moves = report.before_after([(table.display(j), float(before[j]), float(after[j])) for j in shown])
    named = lambda j, p: f"{table.display(j)}, {report.percent(float(p[j]))}"  # noqa: E731
    difference = f"amplified {factor} times; largest change {levels:.0f} of 255 levels"
    cards = [
        report.card(original, title="photograph", caption=named(was, before)),
        report.card(saved, title="adversarial", caption=named(now, after), below=moves),
        report.card(report.amplify(change, factor), title="difference", caption=difference),
    ]
    return report.strip(cards, title=path.name)


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
    how: Settings,
) -> tuple[dict[str, Any], list[Html]]:
    """The result and the page's sections; `truth` i[n] are the right classes, or None for what the network calls them."""
    variables = jax.device_put(clf.fold_batch_norm(variables))
    table = common.class_table(clf)
    aims = table.find(target) if target else ()
    clean = common.all_logits(clf, variables, pictures.images)
    called = clean.argmax(axis=1)
    answers = called if truth is None else truth
    skips = list(pictures.skipped)
    eligible = np.isin(called, table.find(only)) if only else np.ones(len(called), bool)
    for i in np.flatnonzero(eligible & np.isin(called, aims)):
        skips.append({"path": str(pictures.paths[i]), "why": f"it is called {table.display(called[i])} already"})
    rows = np.flatnonzero(eligible & ~np.isin(called, aims))[: limit or None]
    n = len(rows)
    if not n:
        raise ValueError(f"none of the {len(called)} pictures is left to attack (only={only!r}, target={target!r})")
    paths, originals, right = [pictures.paths[i] for i in rows], pictures.images[rows], answers[rows]
    before, clean_right = common.softmax(clean[rows]), called[rows] == right

    goal = goals.TARGETED if aims else goals.UNTARGETED
    members = goals.members([aims or (int(label),) for label in right], len(table))
    climb = attacks.get(how.method)(
        clf.logits, norm=norms.get(how.norm), goal=goal, steps=how.steps, restarts=how.restarts
    )
    success_rate, robust, images, checks, sections = {}, {}, [], {}, []
    strips: list[Html] = []
    for radius in how.eps:
        word = f"{radius * 255:g}/255"
        found = climb_all(climb, variables, originals, members, radius, how)
        names = [f"eps{radius * 255:g}-{i:03d}-{path.stem}" for i, path in enumerate(paths)]
        judged = judge(run, clf, variables, goal, members, names, found)
        after = common.softmax(judged.logits)
        change = pixels.to_images01(judged.images) - pixels.to_images01(originals)
        linf = np.asarray(norms.linf_distance(change, np.zeros_like(change)))
        l2 = np.asarray(norms.l2_distance(change, np.zeros_like(change)))
        success_rate[word] = float(judged.success.mean())
        robust[word] = float((clean_right & (judged.logits.argmax(axis=1) == right)).mean())
        again = common.all_logits(clf, variables, judged.images[:BATCH])
        checks[word] = {
            "largest_linf_levels": float(np.rint(linf.max() * 255)),
            "within_eps": bool((linf <= radius + 1e-6).all()) if how.norm == "linf" else None,
            "png_equals_computed": bool((judged.images == found).all()),
            "two_calls_equal": bool((again == judged.logits[: len(again)]).all()),
        }
        run.log({"eps": word, "success_rate": success_rate[word], **checks[word]})
        for i, path in enumerate(paths):
            now = int(after[i].argmax())
            images.append(
                {
                    "path": str(path),
                    "png": str(judged.files[i]),
                    "eps": word,
                    "from": table.display(called[rows[i]]),
                    "to": table.display(now),
                    "linf": float(linf[i]),
                    "l2": float(l2[i]),
                    "probability": float(after[i, now]),
                    "survives_png": bool(judged.success[i]),
                }
            )
        if radius == max(how.eps):
            shown = zip(paths[:SHOWN], originals, judged.images, before, after, strict=False)
            strips = [strip(clf, *row) for row in shown]
        wins = int(judged.success.sum())
        low, high = metrics.wilson(wins, n)
        summary = {"pictures": n, "steps": how.steps, "rightly named before": int(clean_right.sum())}
        bar = report.interval(success_rate[word], low, high, label=f"success at eps {word}")
        text = f"{wins} of {n} pictures are called {target or 'something else'}, counted on the PNG as read back."
        sections.append(report.section(f"Success at eps = {word}", report.numbers(summary), bar, text=text))
    text = f"At true pixels; no channel of any pixel is further than {max(how.eps) * 255:g}/255 from the photograph."
    sections += [report.section("The pictures", *strips, text=text), report.skipped(skips)]
    result = {
        "n": n,
        "clean_correct": int(clean_right.sum()),
        "success_rate": success_rate,
        "robust_accuracy": robust,
        "images": images,
        "checks": checks,
        "skipped": skips,
    }
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
    how = Settings(FLAGS.attack, FLAGS.norm, eps, FLAGS.steps, step_size, FLAGS.restarts, FLAGS.seed)
    result, sections = attack(
        run, clf, variables, pictures, target=FLAGS.target, truth=truth, only=FLAGS.only, limit=FLAGS.limit, how=how
    )
    lead = f"{result['n']} photographs, changed by less than the eye sees until {clf.arch} is wrong."
    run.finish(
        result, report.page("Adversarial pictures", lead, sections, facts=run.facts() | common.weights_facts(clf))
    )
    for word, rate in result["success_rate"].items():
        check = result["checks"][word]
        levels = f"largest change {check['largest_linf_levels']:g} levels"
        print(f"eps {word}: {report.percent(rate)} of {result['n']} succeed on the PNG read back; {levels}")
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    common.launch("attack", main, common.define_model_flags, define_flags)
