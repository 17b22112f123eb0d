"""The learning-rate finder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tl import devices, paths
from tl.data import DataSpec
from tl.models import Classifier
from tl.training import initializers, low_rank, resume
from tl.training.phase import prepare
from tl.training.program import FitContext
from tl.training.recipe import Recipe, apply_label_confidence, empty_set
from tl.training.schedules import rate_range
from tl.types import Variables


class Rates(NamedTuple):
    """The result of `find_rate`.

    Attributes:
      rate: the suggested learning rate.
      curve: `(rate, smoothed loss)` of each step.
    """

    rate: float
    curve: list[tuple[float, float]]


def saved_rates(folder: Path | None, find: Callable[[], Rates]) -> Rates:
    """The rates that were found at the start of a run; a resumed run must not search again.

    Args:
      folder: folder of the checkpoints; None saves nothing.
      find: the search.
    """
    read = lambda value: Rates(**value)
    return resume.saved_value(folder, "rates.json", find, what="the learning rates", read=read)


def find_rate(
    clf: Classifier,
    variables: Variables,
    train_set: DataSpec,
    recipe: Recipe,
    *,
    seed: int,
    steps: int = 100,
) -> Rates:
    """Suggests a learning rate: a tenth of the rate with the smallest smoothed loss.

    The last phase of the recipe is trained while the rate rises from 1e-6 to 1. The search stops
    when the loss exceeds four times its minimum. Batches without a readable image are left out.
    `variables` do not change. A penalty of the recipe is left out.

    Args:
      clf, variables: the network.
      train_set: labeled images.
      recipe: how to train.
      seed: seed of all randomness.
      steps: number of steps, rounded up to whole epochs.

    Returns:
      Rates; the rate is 1e-3 if the first loss is not finite.

    Raises:
      ValueError: the recipe takes no gradient steps.

    Reference:
      Smith 2017, arXiv:1506.01186, section 3.3; smoothing (0.9) and the tenth as in fastai's
      `lr_find`.
    """
    per_epoch = -(-len(train_set.examples) // recipe.batch_size)
    trial = dataclasses.replace(
        recipe, lr=1.0, epochs=-(-steps // per_epoch), steps=0, ema=0.0, swa=0.0, penalty=""
    )
    context = FitContext(
        clf,
        apply_label_confidence(train_set, recipe),
        empty_set(train_set),
        trial,
        seed,
        None,
        lambda row: None,
        lambda line: None,
    )
    last = trial.phases(clf.spec.endpoints)[-1]._replace(share=1.0)
    if last.name == "probe":
        raise ValueError(
            f"a learning rate has no effect on `tune={recipe.tune}`, which takes no gradient "
            "steps: expected another `tune`, such as head, or no search"
        )
    variables = initializers.redraw(variables, recipe.init, seed)
    params, stats = variables["params"], variables.get("batch_stats", {})
    params = low_rank.extend(params, last.rank, seed)
    partition = paths.partition(params, last.rules)
    phase = prepare(context, 0, last, partition, params, stats, schedules=rate_range)
    mesh, state, curve, average = devices.mesh(), phase.state, [], 0.0
    with phase.train_inputs.training(phase.plan, 0, phase.key) as batches:
        for examples, _ in batches:
            if not np.any(examples.valid):
                continue
            state, metrics = phase.step(state, devices.shard(examples, mesh))
            average = 0.9 * average + 0.1 * float(metrics["loss"])
            smooth = average / (1 - 0.9 ** (len(curve) + 1))
            if not np.isfinite(smooth) or (curve and smooth > 4 * min(loss for _, loss in curve)):
                break
            curve.append((float(phase.schedule(len(curve))), smooth))
    return Rates(min(curve, key=lambda point: point[1])[0] / 10 if curve else 1e-3, curve)
