"""The main job on packaged weights and photographs: predict, transfer, ideal image, attack; one report.

  ./launch.sh quickstart           (--quick: a look in about a minute)

Photographs named by a pretrained network; a classifier for solar cells, which it never saw; its ideal tabby and zebra; and
a dalmatian that it calls a cat.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from absl import flags

from tl import cli, data, inference, pages, reporting
from tl.evaluation import sets
from tl.evaluation.attack_settings import AttackSettings
from tl.evaluation.attacked import evaluate_attack
from tl.evaluation.transfer import TransferSettings, transfer
from tl.pages import common
from tl.visualize import grid, ideal, specs

FLAGS = flags.FLAGS
DALMATIAN = 251  # its ImageNet class; one of foolbox's photographs


def define_flags() -> None:
    flags.DEFINE_bool(
        "quick", False, "Fewer pictures and steps: shows that everything works, not how well."
    )


def main(run: reporting.Run) -> None:
    clf, variables = cli.load_model()
    inference.class_table(clf)
    began = time.monotonic()

    print("1 of 4: naming the packaged photographs", flush=True)
    photographs = data.photographs()
    pictures = inference.read_images(clf, [str(photo.path) for photo in photographs])
    labels = np.array([-1 if photo.index is None else photo.index for photo in photographs])
    predicted = inference.predict(clf, variables, pictures.paths, labels=labels)
    named = sets.predictions_result(run, clf, predicted)
    named_sections = pages.predict.page(reporting.jsonable(named), run.workdir).sections

    print("2 of 4: learning a classifier for solar cells", flush=True)
    cells = data.get("elpv")
    if FLAGS.quick:
        cells = data.split_stratified(
            cells, test_fraction=0.15, seed=FLAGS.seed, near_duplicates=False
        )[1]
    settings = TransferSettings(first_seed=FLAGS.seed)
    learned = transfer(run, clf, variables, cells, None, settings)
    learned_sections = pages.training.page(reporting.jsonable(learned), run.workdir).sections

    print("3 of 4: climbing to the ideal tabby and the ideal zebra", flush=True)
    chosen = specs.class_objectives(clf, "tabby,zebra")
    how = grid.IdealSettings(
        tv=(300.0, 0.0), steps=64 if FLAGS.quick else grid.STEPS, seed=FLAGS.seed
    )
    climbed = ideal.save(run, ideal.ideal([grid.network(clf, variables)], chosen, how))
    climbed_sections = pages.ideal.page(reporting.jsonable(climbed), run.workdir).sections

    print("4 of 4: turning the dalmatian into a cat", flush=True)
    dogs = np.flatnonzero(labels == DALMATIAN)
    dog = inference.LoadedImages([pictures.paths[i] for i in dogs], pictures.images[dogs], [])
    settings = AttackSettings(eps=(4 / 255,), panel=not FLAGS.quick, seed=FLAGS.seed)
    truth = np.full(len(dogs), DALMATIAN)
    attacked = evaluate_attack(
        run, clf, variables, dog, settings, target="any cat", labels=truth
    ).json()
    attacked_sections = pages.attack.page(reporting.jsonable(attacked), run.workdir).sections

    result: dict[str, Any] = {
        "predict": named,
        "transfer": learned,
        "ideal": climbed,
        "attack": attacked,
    }
    low, high = learned["test"]["top1_ci95"]
    shares = [row["probability"] for row in climbed["images"] if row["tv_weight"]]
    percent, fooled = reporting.percent, attacked["images"][0]
    lines = [
        f"predict:  {percent(named['top1'])} of {named['labelled']} photographs classified correctly",
        f"transfer: solar cells {percent(learned['test']['top1'])} ({percent(low)} to {percent(high)}),"
        f" majority class {percent(learned['majority'])}",
        f"ideal:    tabby {shares[0]:.3f}, zebra {shares[1]:.3f}",
        f"attack:   {fooled['from']} -> {fooled['to']} ({fooled['probability']:.3f}) at eps {fooled['eps']}",
    ]
    headings = (
        ("What the network sees in photographs", named_sections),
        ("A classifier for pictures that it never saw: solar cells", learned_sections),
        ("What it thinks is ideal", climbed_sections),
        ("A dog that it calls a cat", attacked_sections),
    )
    sections = [
        part for heading, parts in headings for part in (reporting.chapter(heading), *parts)
    ]
    lead = (
        f"One pretrained network, {clf.arch}: it names photographs, learns to find broken solar cells, "
        "shows what it thinks a tabby and a zebra are, and is talked into calling a dalmatian a cat."
    )
    facts = (
        run.facts()
        | common.weights_facts(clf)
        | {"solar cells": f"{cells.source}; {cells.licence}"}
    )
    run.finish(
        result,
        reporting.page("Four things a pretrained network can do", lead, sections, facts=facts),
    )
    print("\n".join(lines))
    print(f"{time.monotonic() - began:.0f} s; open {run.workdir / 'report.html'}")


if __name__ == "__main__":
    cli.launch("quickstart", main, cli.define_model_flags, define_flags)
