"""The image that a network thinks is an ideal tabby: gradient ascent on the input, with and without variation loss.

  ./launch.sh ideal --target=tabby,zebra
  ./launch.sh ideal --target=zebra --parameterisation=pixel --tv=400

Both ideals are called their class with more than 0.95; what the variation loss does to them: README, "Numbers".
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import _common as common
from tl import ascend, data, pixels, report, runlog
from tl.attacks import goals
from tl.classifier import Classifier
from tl.labels import Target
from tl.paths import nearest
from tl.report import Html
from tl.types import Variables
from tl.visualize import images, objectives, render, transforms

FLAGS = flags.FLAGS
TV = 200.0  # logits per unit of total variation: chosen by eye on EfficientNet-Lite0, between grain and fog
L2 = 30.0  # logits between grey and black-and-white: chosen by eye, keeps colours from burning out
STEPS = 320  # chosen by eye
STEP = 0.05  # lucid's Adam step

TRANSFORMS = {
    "jitter": lambda size: transforms.jitter(size // 14),  # 16 of 224 pixels, the scale of lucid's jitter
    "zoom": lambda size: transforms.zoom(0.5, 1.1),
}


def define_flags() -> None:
    flags.DEFINE_string(
        "target", None, "Classes, separated by commas: index, WordNet id, name or group.", required=True
    )
    flags.DEFINE_enum("parameterisation", "fourier", list(images.PARAMETERISATIONS), "What is optimised.")
    flags.DEFINE_float(
        "tv", TV, "Weight of the variation loss, in logits per unit of total variation.", lower_bound=0.0
    )
    flags.DEFINE_float("l2", L2, "Weight of the distance from grey, in logits.", lower_bound=0.0)
    flags.DEFINE_integer("steps", STEPS, "Steps of the climb; 0 shows the noise.", lower_bound=0)
    flags.DEFINE_float("step_size", STEP, "Of the first step; it falls to a tenth.", lower_bound=0.0)
    flags.DEFINE_enum("optimizer", "adam", list(ascend.OPTIMIZERS), "How a gradient becomes a step.")
    flags.DEFINE_integer("size", 0, "Side, in pixels. Default: the weights' own.", lower_bound=0)
    flags.DEFINE_integer("count", 1, "Images a class, from different noise.", lower_bound=1)
    flags.DEFINE_list(
        "transforms", "jitter,zoom", "Random views between the steps: any of jitter, zoom; empty for none."
    )


def views(names: list[str], size: int) -> transforms.Transform:
    """The transforms that --transforms names, one after another."""
    for name in names:
        if name not in TRANSFORMS:
            raise ValueError(f"unknown transform {name!r}; nearest: {nearest(name, TRANSFORMS)}")
    return transforms.compose(*(TRANSFORMS[name](size) for name in names))


def ideal(
    run: runlog.Run,
    clf: Classifier,
    variables: Variables,
    targets: list[Target],
    *,
    seed: int,
    steps: int = STEPS,
    tv: float = TV,
    l2: float = L2,
    step_size: float = STEP,
    count: int = 1,
    parameterisation: str = "fourier",
    optimizer: str = "adam",
    names: tuple[str, ...] = ("jitter", "zoom"),
    size: int = 0,
) -> tuple[dict[str, Any], list[Html]]:
    """The result and the page's sections; every image twice from the same noise, with and without variation loss."""
    variables = jax.device_put(clf.fold_batch_norm(variables))
    size = size or clf.pixels.size
    wanted = [target for target in targets for _ in range(count)]
    table = common.class_table(clf)
    members = goals.members([target.indices for target in wanted], len(table))
    climb = render.make_ideal(
        clf.apply,
        images.PARAMETERISATIONS[parameterisation](len(wanted), size),
        transform=views(list(names), size),
        steps=steps,
        optimizer=optimizer,
    )
    key = jax.random.key(seed)
    runs = {}
    for how, weight in (("with", tv), ("without", 0.0)):  # one compiled function, the same key and noise
        if how == "without" and tv == 0.0:
            runs[how] = runs["with"]
            continue
        print(f"climbing {len(wanted)} images for {steps} steps {how} variation loss", flush=True)
        runs[how] = jax.tree.map(np.asarray, climb(variables, key, members, tv=weight, l2=l2, step_size=step_size))
        for i in range(0, steps + 1, max(steps // 20, 1)):
            run.log({"step": i, "variation_loss": weight, "score": float(runs[how].scores[i].mean())})

    rows, strips = [], []
    variation = jax.jit(objectives.total_variation)
    for i, target in enumerate(wanted):
        name = f"{target.word}-{i % count}" if count > 1 else target.word
        files = {
            "noise": run.figure(f"{name}-noise", runs["with"].start[i]),
            "without": run.figure(f"{name}-without-variation-loss", runs["without"].images[i]),
            "with": run.figure(name, runs["with"].images[i]),
        }
        saved = np.stack([data.decode(file) for file in files.values()])  # judged as saved, not as computed
        probabilities = common.softmax(common.all_logits(clf, variables, saved))
        share = {how: float(p[members[i]].sum()) for how, p in zip(files, probabilities, strict=True)}
        restless = dict(zip(files, np.asarray(variation(pixels.to_images01(saved))).tolist(), strict=True))
        rows.append(
            {
                "png": str(files["with"]),
                "target": target.word,
                "probability": share["with"],
                "tv": restless["with"],
                "loss": -float(runs["with"].scores[-1, i]),
                "without_tv": {
                    "png": str(files["without"]),
                    "probability": share["without"],
                    "tv": restless["without"],
                },
                "noise": {"png": str(files["noise"]), "probability": share["noise"], "tv": restless["noise"]},
            }
        )
        captions = {"noise": "the noise it began with", "without": "without variation loss", "with": "ideal"}
        cards = []
        for how, p, pixels8 in zip(files, probabilities, saved, strict=True):
            caption, shown = f"total variation {restless[how]:.3f}", pixels8
            if how == "noise":  # as it is, the eye sees a grey plate
                faint = pixels.to_images01(pixels8) - np.float32(0.5)
                factor = max(1, int(0.5 / max(float(np.abs(faint).max()), 1e-6)))
                shown, caption = report.amplify(faint, factor), f"{caption}; shown amplified {factor} times"
            tops = common.bars(common.topk(clf, p, 3), np.flatnonzero(members[i]).tolist())
            cards.append(report.card(shown, title=captions[how], caption=caption, bars=tops))
        strips.append(report.strip(reversed(cards), title=f"{target.word}"))
    sheet = [runs[how].images[i] for i in range(len(wanted)) for how in ("with", "without")]
    run.figure("sheet", report.contact_sheet(sheet, columns=2))
    text = (
        f"{clf.arch} climbed its own logit from noise for {steps} steps, seen through {' and '.join(names) or 'no transform'}. "
        "Nothing but the network knows what the animal looks like. Below each image: what the network calls the saved PNG."
    )
    judged = {
        "network": clf.arch,
        "on": "the PNG as read back, without transforms",
        "note": "the network that was climbed",
    }
    return {"images": rows, "judged_by": judged}, [report.section("Ideal images", *strips, text=text)]


def main(run: runlog.Run) -> None:
    clf, variables = common.load_model()
    targets = common.class_table(clf).targets(FLAGS.target)
    result, sections = ideal(
        run,
        clf,
        variables,
        targets,
        seed=FLAGS.seed,
        steps=FLAGS.steps,
        tv=FLAGS.tv,
        l2=FLAGS.l2,
        step_size=FLAGS.step_size,
        count=FLAGS.count,
        parameterisation=FLAGS.parameterisation,
        optimizer=FLAGS.optimizer,
        names=tuple(FLAGS.transforms),
        size=FLAGS.size,
    )
    lead = f"What {clf.arch} thinks is an ideal {' or '.join(target.word for target in targets)}."
    run.finish(result, report.page("Ideal images", lead, sections, facts=run.facts() | common.weights_facts(clf)))
    for row in result["images"]:
        bare = row["without_tv"]
        print(
            f"{row['target']}: probability {row['probability']:.3f}, total variation {row['tv']:.4f}; "
            f"without variation loss {bare['probability']:.3f}, {bare['tv']:.4f}"
        )
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    common.launch("ideal", main, common.define_model_flags, define_flags)
