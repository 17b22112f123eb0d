"""The image that a network thinks is ideal: of a class, channel, neuron, direction or layer, or of a photograph's activations.

  ./launch.sh ideal --target=tabby,zebra
  ./launch.sh ideal --target=zebra --tv=0,100,400 --count=4                    a grid, one compiled call
  ./launch.sh ideal --objective=channel:stage3:12,neuron:stage4:7 --data=folder:DIR
  ./launch.sh ideal --objective=inversion:stage2,caricature:stage3 --photograph=FILE
  ./launch.sh ideal --model=DIR --target=cat                                   of a classifier that transfer made
  ./launch.sh ideal --target="Siamese cat" --as_in_lesson                      the lesson's way beside it

What the defaults reach, and what other networks say of it: README, "Ideal images".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.lesson.ideal import as_written
from tl import cli, data, inference, metrics, models, pixels, reporting
from tl.ascent import ascend
from tl.pages import common
from tl.pages.ideal import page
from tl.reporting import Html
from tl.visualize import images, judge, objectives, specs
from tl.visualize.grid import (
    FRAMES,
    STEP,
    STEPS,
    TRANSFORMS,
    Cell,
    Network,
    Settings,
    check_size,
    climber,
    diversities,
    grid,
    held_out_networks,
    held_out_probabilities,
    judged_by,
    names_of,
    network,
    photo_statistics,
    top_activating,
    values,
    views,
)
from tl.visualize.specs import CLASSES, KINDS, ObjectiveSpec

FLAGS = flags.FLAGS


def define_flags() -> None:
    forms = ", ".join(kind.form for kind in KINDS.values())
    flags.DEFINE_string(
        "target", "", "Classes, separated by commas: index, WordNet id, name or group."
    )
    flags.DEFINE_string(
        "objective", "", f"In place of --target, separated by commas, any of {forms}."
    )
    flags.DEFINE_enum(
        "parameterization", "fourier", list(images.PARAMETERIZATIONS), "What is optimized."
    )
    flags.DEFINE_alias("parameterisation", "parameterization")
    flags.DEFINE_list(
        "tv",
        [],
        "Weights of the variation, a grid of them, in the objective's units per unit of total variation.",
    )
    flags.DEFINE_enum(
        "variation", "anisotropic", list(objectives.VARIATIONS), "Which variation --tv weighs."
    )
    flags.DEFINE_float(
        "l2", None, "Weight of the distance from grey, in the objective's units.", lower_bound=0.0
    )
    flags.DEFINE_float(
        "blur", 0.0, "Weight of the distance from the blurred image, likewise.", lower_bound=0.0
    )
    flags.DEFINE_float(
        "diversity", 0.0, "Weight of being unlike the other images of a target.", lower_bound=0.0
    )
    flags.DEFINE_integer("steps", STEPS, "Steps of the climb; 0 shows the start.", lower_bound=0)
    flags.DEFINE_float(
        "step_size", STEP, "Of the first step; it falls to a tenth.", lower_bound=0.0
    )
    flags.DEFINE_enum(
        "optimizer", "adam", list(ascend.OPTIMIZERS), "How a gradient becomes a step."
    )
    flags.DEFINE_integer(
        "redirect", 0, "First steps in which gradients pass dead units (lucid: 16).", lower_bound=0
    )
    flags.DEFINE_integer("size", 0, "Side, in pixels. Default: the weights' own.", lower_bound=0)
    flags.DEFINE_integer("count", 1, "Images a target, from different noise.", lower_bound=1)
    flags.DEFINE_list(
        "transforms",
        ["auto"],
        f"Random views, any of {', '.join(TRANSFORMS)}; empty for none; auto: the objective's own.",
    )
    flags.DEFINE_integer(
        "frames", FRAMES, "Pictures in the animation of the climb; 0 for none.", lower_bound=0
    )
    flags.DEFINE_string(
        "photograph", "", "Where the climb begins, and what inversion and caricature are about."
    )
    flags.DEFINE_list("also", [], "Networks that a class is climbed under as well.")
    flags.DEFINE_list(
        "judges",
        ["auto"],
        "Networks that say what they see; auto: the packaged ones. Empty for none.",
    )
    flags.DEFINE_string(
        "data",
        "",
        "A data set whose nine pictures that activate the same unit most are shown beside.",
    )
    flags.DEFINE_bool(
        "as_in_lesson",
        False,
        "The lesson's way too: noise, plain gradient descent, 1000 steps, twice.",
    )


def ideal(
    run: reporting.Run,
    networks: Sequence[Network],
    objective_specs: Sequence[ObjectiveSpec],
    how: Settings,
    *,
    judges: Sequence[Network] = (),
    photograph: np.ndarray | None = None,
    spec: data.DataSpec | None = None,
) -> tuple[dict[str, Any], list[Html]]:
    """The result and the page's sections: the whole grid climbed in one call, and judged as saved."""
    clf, variables, _ = networks[0]
    size = how.size or clf.pixels.size
    cells = grid(objective_specs, how)
    print(
        f"climbing {len(cells)} images of {size} x {size} for {how.steps} steps under {clf.arch}",
        flush=True,
    )
    found = jax.tree.map(np.asarray, climber(networks, cells, how, photograph)())
    for i in range(0, how.steps + 1, max(how.steps // 20, 1)):
        run.log({"step": i, "score": found.scores[i].tolist()})

    names = [_name(cell, how) for cell in cells]
    files = [run.figure(name, image) for name, image in zip(names, found.images, strict=True)]
    saved = np.stack([data.decode(file) for file in files])  # judged as saved, not as computed
    worth = values(networks, cells, saved, photograph)
    said = metrics.softmax(inference.predict_logits(clf, variables, saved)) if clf.classes else None
    opinions = held_out_probabilities(judges, cells, saved)
    restless = np.asarray(jax.jit(objectives.total_variation)(pixels.to_images01(saved)))
    slopes = (
        judge.spectral_slope(pixels.to_images01(saved))
        if size >= 32
        else np.full(len(cells), np.nan)
    )
    pictures = (
        top_activating(networks[0], list(dict.fromkeys(objective_specs)), spec) if spec else {}
    )

    rows: list[dict[str, Any]] = []
    for i, cell in enumerate(cells):
        film = (
            run.animation(names[i], [found.start[i], *found.frames[:, i]], seconds=3.0)
            if len(found.frames)
            else None
        )
        row = {
            "png": str(files[i]),
            "film": str(film) if film else None,
            "target": cell.objective_spec.word,
            "objective": cell.objective_spec.kind,
            "probability": float(said[i, list(cell.objective_spec.classes)].sum())
            if said is not None and cell.objective_spec.classes
            else None,
            "value": float(worth[i]),
            "loss": -float(found.scores[-1, i]),
            "tv": float(restless[i]),
            "tv_weight": cell.tv,
            "replicate": cell.replicate,
            "spectral_slope": float(slopes[i]),
            "judges": opinions[i],
            "dead": cell.objective_spec.kind in ("channel", "neuron")
            and how.steps > 0
            and float(worth[i]) == 0.0,
            "called": inference.topk(clf, said[i], 3) if said is not None else [],
        }
        rows.append(row)
    dead = [row["target"] for row in rows if row["dead"]]
    if dead:
        words = (
            f"{', '.join(dict.fromkeys(dead))} stayed at 0 for all {how.steps} steps: a unit that is dead for this start, "
            "and that has no gradient; pass it with --redirect=16, or take another --seed or --photograph"
        )
        if len(dead) == len(rows):
            raise ValueError(words)
        print(f"ideal: {words}", flush=True)

    result: dict[str, Any] = {
        "images": rows,
        "judged_by": judged_by(rows, networks),
        "photographs": photo_statistics(clf, size),
    }
    if how.count > 1:
        result["diversity"] = diversities(networks[0], judges, cells, saved)
    run.figure(
        "sheet",
        reporting.contact_sheet(saved, columns=min(4, len(cells)) if how.count == 1 else how.count),
    )
    return result, page(run, clf, cells, how, found, saved, result, pictures, photograph)


def _name(cell: Cell, how: Settings) -> str:
    parts = [cell.objective_spec.word.replace(":", "-")]
    parts += [f"tv{cell.tv:g}"] if len(how.tv) > 1 else []
    return "-".join([*parts, f"{cell.replicate}"] if how.count > 1 else parts)


# ----------------------------------------------------------------------------------------------------------------- main


def settings() -> Settings:
    try:
        tv = tuple(float(word) for word in FLAGS.tv)
    except ValueError:
        raise ValueError(
            f"--tv={','.join(FLAGS.tv)} is not a list of numbers; write it as 0,200"
        ) from None
    if any(not weight >= 0 for weight in tv):
        raise ValueError(
            f"--tv={','.join(FLAGS.tv)} has a negative weight; the variation is a cost, its weight at least 0"
        )
    return Settings(
        parameterization=FLAGS.parameterization,
        tv=tv,
        variation=FLAGS.variation,
        l2=FLAGS.l2,
        blur=FLAGS.blur,
        diversity=FLAGS.diversity,
        steps=FLAGS.steps,
        step_size=FLAGS.step_size,
        optimizer=FLAGS.optimizer,
        redirect=FLAGS.redirect,
        size=FLAGS.size,
        count=FLAGS.count,
        names=tuple(name for name in FLAGS.transforms if name),
        frames=FLAGS.frames,
        seed=FLAGS.seed,
    )


def main(run: reporting.Run) -> None:
    how = settings()
    if bool(FLAGS.target) == bool(FLAGS.objective):
        raise ValueError(
            "say what the image shall be ideal for, with one of --target=CLASS and --objective=KIND:..."
        )
    clf, variables = cli.load_model()
    check_size(clf, how.size)
    size = how.size or clf.pixels.size
    if FLAGS.target:
        objective_specs = specs.class_objectives(clf, FLAGS.target)
    else:
        ends = specs.shapes(clf, variables, size)
        objective_specs = [
            specs.parse_objective(clf, ends, word.strip()) for word in FLAGS.objective.split(",")
        ]
    networks = [network(clf, variables)]
    for name in FLAGS.also:
        other, theirs = models.load(name)
        for objective_spec in objective_specs:
            if objective_spec.kind not in CLASSES:
                raise ValueError(
                    f"--also is for classes; {objective_spec.word} is a unit of {clf.arch} alone"
                )
            inference.class_table(other).find(objective_spec.word)
        networks.append(network(other.with_dtype(clf.dtype), theirs))
    views(names_of(how, objective_specs), size)
    photograph = None
    if FLAGS.photograph:
        shown = clf.with_pixels(size=size)
        photograph = pixels.to_images01(inference.read_images(shown, FLAGS.photograph).images)[0]
    spec = data.get(FLAGS.data) if FLAGS.data else None
    wanted = [name for name in FLAGS.judges if name]
    judges = (
        held_out_networks(networks, wanted)
        if any(objective_spec.classes for objective_spec in objective_specs)
        else []
    )
    result, sections = ideal(
        run, networks, objective_specs, how, judges=judges, photograph=photograph, spec=spec
    )
    if FLAGS.as_in_lesson:
        result["as_in_lesson"], more = as_written(
            run, clf, networks[0].variables, objective_specs, how.seed
        )
        sections.insert(1, more)
    lead = f"What {clf.arch} thinks is an ideal {' or '.join(dict.fromkeys(each.word for each in objective_specs))}."
    run.finish(
        result,
        reporting.page(
            "Ideal images", lead, sections, facts=run.facts() | common.weights_facts(clf)
        ),
    )
    for row in result["images"]:
        said = (
            f"value {row['value']:.4g}"
            if row["probability"] is None
            else f"probability {row['probability']:.3f}"
        )
        others = f", judges {np.mean(list(row['judges'].values())):.3f}" if row["judges"] else ""
        print(
            f"{row['target']}: {said}{others}, total variation {row['tv']:.4f} at weight {row['tv_weight']:g}"
        )
        if not how.steps and row["called"]:
            print(
                "  " + ", ".join(f"{top['name']} {top['probability']:.4f}" for top in row["called"])
            )
    mean = result["judged_by"]["mean"]
    if mean is not None:
        print(f"networks that took no part: {mean:.3f} in the mean")
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    cli.launch("ideal", main, cli.define_model_flags, define_flags)
