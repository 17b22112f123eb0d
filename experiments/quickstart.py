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
from tl.pages import common
from tl.reporting import percent
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

    print("1 of 4: classifying the packaged photographs", flush=True)
    photographs = data.photographs()
    images = inference.read_images(clf, [str(photo.path) for photo in photographs])
    labels = np.array([-1 if photo.index is None else photo.index for photo in photographs])
    predicted = inference.predict(clf, variables, images.paths, labels=labels)
    predictions = sets.predictions_result(run, clf, predicted)

    print("2 of 4: training a classifier of solar cells", flush=True)
    cells = data.get("elpv")
    if FLAGS.quick:
        cells = data.split_stratified(
            cells, test_fraction=0.15, seed=FLAGS.seed, near_duplicates=False
        )[1]
    settings = TransferSettings(first_seed=FLAGS.seed)
    trained = transfer(run, clf, variables, cells, None, settings)

    print("3 of 4: optimizing ideal images of a tabby and a zebra", flush=True)
    chosen = specs.class_objectives(clf, "tabby,zebra")
    steps = 64 if FLAGS.quick else grid.STEPS
    ideal_settings = grid.IdealSettings(tv=(300.0, 0.0), steps=steps, seed=FLAGS.seed)
    ideals = ideal.save(run, ideal.ideal([grid.network(clf, variables)], chosen, ideal_settings))

    print("4 of 4: attacking the photograph of a dalmatian", flush=True)
    rows = np.flatnonzero(labels == DALMATIAN)
    dog = inference.LoadedImages([images.paths[i] for i in rows], images.images[rows], [])
    attack_settings = AttackSettings(eps=(4 / 255,), sanity_checks=not FLAGS.quick, seed=FLAGS.seed)
    attacked = evaluate_attack(
        run, clf, variables, dog, attack_settings, target="any cat", labels=labels[rows]
    ).json()

    result: dict[str, Any] = {
        "predict": predictions,
        "transfer": trained,
        "ideal": ideals,
        "attack": attacked,
        "facts": common.weights_facts(clf) | {"solar cells": f"{cells.source}; {cells.license}"},
    }
    page = pages.finish(run, result)
    low, high = trained["test"]["top1_ci95"]
    tabby, zebra = (row["probability"] for row in ideals["images"] if row["tv_weight"])
    example = attacked["images"][0]
    print(
        f"predict:  {percent(predictions['top1'])} of {predictions['labelled']} photographs "
        f"classified correctly\ntransfer: solar cells {percent(trained['test']['top1'])} "
        f"({percent(low)} to {percent(high)}), majority class {percent(trained['majority'])}\n"
        f"ideal:    tabby {tabby:.3f}, zebra {zebra:.3f}\n"
        f"attack:   {example['from']} -> {example['to']} ({example['probability']:.3f}) at eps "
        f"{example['eps']}\n{run.seconds:.0f} s; open {page}"
    )


if __name__ == "__main__":
    cli.launch("quickstart", main, cli.define_model_flags, define_flags)
