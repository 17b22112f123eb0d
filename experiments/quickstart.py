"""The main tasks on packaged weights and photographs: predict, transfer, ideal images, attack.

  ./launch.sh quickstart
  ./launch.sh quickstart --quick      fewer images and steps: a check that everything works

A pretrained network classifies photographs; a probe on its features classifies solar cells, a kind
of image that it was not trained on; its ideal images of a tabby and a zebra are computed; and a
photograph of a dalmatian is perturbed until it is classified as a cat. One page shows all four.

Expected: the accuracy on solar cells is that of `elpv_probe` in RESULTS.md, 85.5 +- 0.6 % over five
splits; the attack succeeds. Cost: about a minute on two CPU cores once everything is installed, and
four minutes the first time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import flags

from tl import cli, data, inference, pages, reporting
from tl.evaluation import sets
from tl.evaluation.attack_settings import AttackSettings
from tl.evaluation.attacked import evaluate_attack
from tl.evaluation.transfer import TransferSettings, transfer
from tl.pages import common, quickstart
from tl.visualize import grid, ideal, specs

FLAGS = flags.FLAGS
# ImageNet's class of one of foolbox's photographs.
DALMATIAN = 251


def define_flags() -> None:
    flags.DEFINE_bool(
        "quick", False, "Fewer images and steps: a check that everything works, not a result."
    )


def main(run: reporting.Run) -> None:
    clf, variables = cli.load_model(run)
    inference.class_table(clf)
    photographs = data.photographs()
    images = inference.read_images(clf, [str(photo.path) for photo in photographs])
    labels = np.array([-1 if photo.index is None else photo.index for photo in photographs])

    def predict() -> dict[str, Any]:
        predicted = inference.predict(clf, variables, images.paths, labels=labels)
        return sets.predictions_result(run, clf, predicted)

    def train() -> dict[str, Any]:
        cells = data.get("elpv")
        facts = {"solar cells": f"{cells.source}; {cells.license}"}
        if FLAGS.quick:
            cells = data.split_stratified(
                cells, test_fraction=0.15, seed=FLAGS.seed, near_duplicates=False
            )[1]
        settings = TransferSettings(first_seed=FLAGS.seed)
        return transfer(run, clf, variables, cells, None, settings) | {"facts": facts}

    def optimize() -> dict[str, Any]:
        chosen = specs.class_objectives(clf, "tabby,zebra")
        steps = 64 if FLAGS.quick else grid.STEPS
        settings = grid.IdealSettings(tv=(300.0, 0.0), steps=steps, seed=FLAGS.seed)
        return ideal.save(run, ideal.ideal([grid.network(clf, variables)], chosen, settings))

    def attack() -> dict[str, Any]:
        rows = np.flatnonzero(labels == DALMATIAN)
        dog = inference.LoadedImages([images.paths[i] for i in rows], images.images[rows], [])
        settings = AttackSettings(eps=(4 / 255,), sanity_checks=not FLAGS.quick, seed=FLAGS.seed)
        return evaluate_attack(
            run, clf, variables, dog, settings, target="any cat", labels=labels[rows]
        ).json()

    parts = {
        "predict": ("classifying the packaged photographs", predict),
        "transfer": ("training a classifier of solar cells", train),
        "ideal": ("optimizing ideal images of a tabby and a zebra", optimize),
        "attack": ("attacking the photograph of a dalmatian", attack),
    }
    result: dict[str, Any] = {"arch": clf.arch, "facts": common.weights_facts(clf)}
    for number, (name, (words, part)) in enumerate(parts.items(), start=1):
        print(f"{number} of 4: {words}", flush=True)
        computed = run.attempt(name, part, {})
        result["facts"] |= computed.pop("facts", {})
        result |= {name: computed} if computed else {}
    page = pages.finish(run, result)
    print(*quickstart.lines(result), f"{run.seconds:.0f} s; open {page}", sep="\n")


if __name__ == "__main__":
    cli.launch("quickstart", main, cli.define_model_flags, define_flags)
