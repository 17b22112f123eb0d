"""From a classifier and labelled pictures to trained variables: phases, validation, checkpoints.

A run is a list of phases (`optim.phases`), each with its own set of frozen leaves. A phase reads pictures, augmented on the
device, or, where they fit into memory, the maps that its frozen prefix has made of them once (`inputs`). Everything random
is drawn from the seed and the step, so that a run goes on after any interruption as if there had been none (`checkpoints`
has the rule).

It does not divide data, test, or write reports: `experiments/transfer.py` does. A single step is `train.make_train_step`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import paths, pixels
from tl.backbones.fold import norms
from tl.data import DataSpec, Skipped
from tl.models import Classifier
from tl.paths import FROZEN
from tl.training import inputs, probe, rules
from tl.training.loop import PhaseResult, selection_metric, train_phase
from tl.training.phase import FitContext, fit_probe, prepare
from tl.training.recipe import Recipe, apply_label_confidence, check_adversary
from tl.types import Mode, Variables


class FitResult(NamedTuple):
    """What came of a run.

    Attributes:
      variables: the whole network, on the host: of the best epoch by `selection_metric`, of the last one without validation.
      history: a row an epoch: `phase`, `epoch`, `lr`, `loss`, `accuracy`, `grad_norm`, `val_nll`, `val_top1`; with an
        adversary `val_robust_nll` and `val_robust_top1`.
      best: the row of `variables`; None where there was no gradient step.
      trained: names of the leaves that trained in some phase.
      moved: layers whose statistics were allowed to move.
      groups: `optim.table` of the last phase with gradient steps; empty without.
      feed: what the last phase read: "pictures" or "bank of STAGE".
      steps, pictures, seconds, seconds_waiting: of the training loops, without compiling; the last is time without a batch.
      skipped: pictures that could not be read.
      closed_form: the probe that the head comes from, where there was one.
    """

    variables: Variables
    history: list[dict[str, Any]]
    best: dict[str, Any] | None
    trained: frozenset[str]
    moved: frozenset[str]
    groups: list[dict[str, Any]]
    feed: str
    steps: int
    pictures: int
    seconds: float
    seconds_waiting: float
    skipped: tuple[Skipped, ...]
    closed_form: probe.Probe | None = None


def fit(
    clf: Classifier,
    variables: Variables,
    train_set: DataSpec,
    validation: DataSpec,
    recipe: Recipe,
    *,
    seed: int,
    folder: Path | None = None,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    say: Callable[[str], None] = lambda line: None,
) -> FitResult:
    """Trains a classifier.

    Args:
      clf, variables: the network, its head fresh.
      train_set: the pictures to learn from.
      validation: those on which the best epoch and a probe's strength are chosen; may be empty.
      recipe: how.
      seed: of everything random.
      folder: of the checkpoints; a run that finds its own there goes on from the newest. None keeps none.
      log: takes a row a step and a row an epoch.
      say: takes lines for a reader: the table of what trains, before the first step.

    Returns:
      Fitted.

    Raises:
      ValueError: rules that do not fit; soft labels of a set whose labels are all certain; adversarial training of what is
        computed once, or without gradient steps; a loss that is not finite (names
        step and pictures; the last good state is kept in `folder`); a batch that does not fit into memory (says one that
        does).
    """
    check_adversary(recipe, clf.spec.endpoints)
    job = FitContext(
        clf, apply_label_confidence(train_set, recipe), validation, recipe, seed, folder, log, say
    )
    params: Any = jax.tree.map(np.asarray, variables["params"])
    stats: Any = jax.tree.map(np.asarray, variables.get("batch_stats", {}))
    opt_state, best, closed, done, fed, groups = None, None, None, [], "bank of features", []
    trained: set[str] = set()
    moved: set[str] = set()
    for number, each in enumerate(recipe.phases(clf.spec.endpoints)):
        labels = paths.label(params, each.rules)
        trained |= {name for name, what in labels.items() if what != FROZEN}
        if each.name == "probe":
            closed, skipped = fit_probe(job, params, stats)
            params = {**params, "head": closed.params}
            done.append(PhaseResult(None, [], None, skipped=skipped))  # type: ignore[arg-type]
            continue
        phase = prepare(job, number, each, params, stats, opt_state)
        ended, groups = train_phase(job, number, phase), phase.groups
        done.append(ended)
        opt_state, (params, stats) = ended.state.opt_state, phase.host(ended.state)
        fed = phase.reads
        train_norms = rules.trainable_norm_layers(labels, stats)
        if recipe.bn in ("update", "reestimate"):
            moved |= train_norms
        best = min(
            filter(None, (best, ended.best)),
            key=lambda found: selection_metric(found.row),
            default=None,
        )
    if best is not None:
        params, stats = best.params, best.stats
    if recipe.bn == "reestimate" and moved:
        stats = reestimated(job, params, stats, frozenset(moved))
    history = [row for each in done for row in each.history]
    return FitResult(
        variables={"params": params, "batch_stats": stats},
        history=history,
        best=best.row if best else history[-1] if history else None,
        trained=frozenset(trained),
        moved=frozenset(moved),
        groups=groups,
        feed=fed,
        steps=sum(each.steps for each in done),
        pictures=sum(each.pictures for each in done),
        seconds=sum(each.seconds for each in done),
        seconds_waiting=sum(each.seconds_waiting for each in done),
        skipped=tuple(dict.fromkeys(skip for each in done for skip in each.skipped)),
        closed_form=closed,
    )


def reestimated(job: FitContext, params: Any, stats: Any, train_norms: frozenset[str]) -> Any:
    """Statistics counted anew over the training pictures as they are: the average over batches, without momentum.

    Reference: Izmailov et al. 2018, arXiv:1803.05407, section 3.2 (BatchNorm statistics after averaging weights).
    """
    clf, b = job.clf, min(job.recipe.batch_size, len(job.train_set.examples))
    specs = norms(clf.spec.module, params["backbone"], stats["backbone"], len(clf.pixels.mean))
    old = paths.flatten(stats["backbone"])
    counted = {name for name in old if rules.norm_layer_name(name) in train_norms}
    zero = paths.unflatten(
        {name: np.zeros_like(leaf) if name in counted else leaf for name, leaf in old.items()}
    )

    @jax.jit
    def moved(params: Any, stats: Any, images: jax.Array) -> Any:
        """What a batch adds to statistics of zero: `momentum` times its own."""
        variables = {"params": params, "batch_stats": {"backbone": stats}}
        return clf.apply(
            variables, pixels.to_images01(images), Mode.TRAIN, train_norms=train_norms
        ).stats["backbone"]

    sums, count, on_device = None, 0, jax.device_put((params, zero))
    for examples, _ in inputs.Pictures(clf, job.train_set, job.augment).evaluation(b):
        if examples.valid.all():  # a batch with empty slots has other statistics
            found = paths.flatten(moved(*on_device, examples.inputs))
            sums = (
                found if sums is None else {name: sums[name] + leaf for name, leaf in found.items()}
            )
            count += 1
    if sums is None:
        raise ValueError(
            f"--bn=reestimate found no batch of {b} whole pictures; take a smaller --batch_size"
        )
    new = {
        name: np.asarray(sums[name]) / (count * specs[name.rpartition("/")[0]].momentum)
        for name in counted
    }
    return {**stats, "backbone": paths.unflatten({**old, **new})}


def frozen_digest(variables: Variables, fitted: FitResult) -> str:
    """A hash of all that was frozen: parameters that trained in no phase, and statistics that were not allowed to move."""
    params = {
        name: leaf
        for name, leaf in paths.flatten(variables["params"]).items()
        if name not in fitted.trained
    }
    stats = paths.flatten(variables.get("batch_stats", {}))
    kept = {
        name: leaf
        for name, leaf in stats.items()
        if rules.norm_layer_name(name) not in fitted.moved
    }
    return paths.digest({"params": params, "stats": kept})
