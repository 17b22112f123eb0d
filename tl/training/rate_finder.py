"""The learning-rate finder."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from tl import devices, optim
from tl.data import DataSpec
from tl.models import Classifier
from tl.training.phase import FitContext, prepare
from tl.training.recipe import Recipe, apply_label_confidence
from tl.types import Variables


class Rates(NamedTuple):
    """What a learning-rate finder found: the rate to take, and (rate, smoothed loss) of each step."""

    rate: float
    curve: list[tuple[float, float]]


def find_rate(
    clf: Classifier,
    variables: Variables,
    train_set: DataSpec,
    recipe: Recipe,
    *,
    seed: int,
    steps: int = 100,
) -> Rates:
    """Raises the rate from 1e-6 to 1 over some steps of the last phase, and takes a tenth of where the smoothed loss is least.

    Stops where the loss is four times its least. The variables are left as they are.

    Reference: Smith 2017, arXiv:1506.01186, section 3.3; smoothing (0.9) and the tenth as in fastai's `lr_find`.
    """
    per_epoch = -(-len(train_set.examples) // recipe.batch_size)
    tried = dataclasses.replace(recipe, lr=1.0, epochs=-(-steps // per_epoch), ema=0.0)
    none = dataclasses.replace(train_set, examples=(), skipped=())
    job = FitContext(
        clf,
        apply_label_confidence(train_set, recipe),
        none,
        tried,
        seed,
        None,
        lambda row: None,
        lambda line: None,
    )
    last = tried.phases(clf.spec.endpoints)[-1]._replace(share=1.0)
    stats = variables.get("batch_stats", {})
    phase = prepare(job, 0, last, variables["params"], stats, None, schedules=optim.rate_range)
    mesh, state, curve, average = devices.mesh(), phase.state, [], 0.0
    with phase.feed.training(phase.plan, 0, phase.key) as feed:
        for step in range(len(phase.plan)):
            state, measured = phase.step(state, devices.shard(next(feed).examples, mesh))
            average = 0.9 * average + 0.1 * float(measured["loss"])
            smooth = average / (1 - 0.9 ** (step + 1))
            if not np.isfinite(smooth) or (curve and smooth > 4 * min(loss for _, loss in curve)):
                break
            curve.append((float(phase.schedule(step)), smooth))
    return Rates(min(curve, key=lambda point: point[1])[0] / 10 if curve else 1e-3, curve)
