"""Training a classifier on labeled images: phases, validation, checkpoints.

A run is a sequence of phases (`rules.phases`), each with its own set of frozen parameters. A phase
reads images, which are augmented on the device, or, where they fit into memory, the outputs of its
frozen prefix, computed once (`inputs`). All randomness is derived from the seed and the step, so an
interrupted run continues as if it had not been interrupted (`checkpoints` states the rule).

This module does not divide data sets, test or write reports: `tl.evaluation.transfer` does.
`training.step` has the single step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import paths, pixels, reporting
from tl.backbones.fold import norms
from tl.data import DataSpec, Skipped
from tl.models import Classifier, heads
from tl.training import initializers, inputs, low_rank, probe, regularizers, resume, rules, surgical
from tl.training.loop import PhaseResult, selection_metric, train_phase
from tl.training.phase import fit_probe, prepare
from tl.training.program import FitContext, frozen_prefix
from tl.training.recipe import (
    Recipe,
    apply_label_confidence,
    check_names,
    check_steps,
    empty_set,
)
from tl.types import Mode, Params, Variables


class FitResult(NamedTuple):
    """The result of `fit`.

    Attributes:
      variables: the whole network, on the host: of the best epoch by `selection_metric`, or of the
        last epoch without a validation set.
      history: one row per epoch: `phase`, `epoch`, `lr`, `loss`, `accuracy`, `grad_norm`,
        `val_nll`, `val_top1`; with an adversary also `val_robust_nll` and `val_robust_top1`.
        `loss` and `accuracy` are means over the images of the epoch, `loss` with the weights of
        `balance=weights`; `grad_norm` is a mean over its steps.
      best: the row of `variables`; None if no phase took gradient steps.
      trained: names of the parameters that training changed in any phase, such as the kernels with
        an update of low rank; all of them with `init`.
      updated_norms: layers whose BatchNorm statistics were updated; all of them with `init`.
      groups: `rules.table` of the last phase with gradient steps; otherwise empty.
      source: the inputs of the last phase: "images" or "cached STAGE".
      steps: number of steps, with those before a resume.
      images: number of images, without padding, in the steps of this process.
      seconds, seconds_waiting: time of these steps without compilation, and the part without a
        batch.
      skipped: images that could not be read.
      probe: the probe that the head started from or consists of; None without one.
      trainable_params: number of parameters that trained in any phase. An update of low rank has
        fewer than the kernel that it changes.
      phases: the phases, with the stage that `tune=surgical` chose.
      memory: bytes that the largest train step needs on one device (`devices.memory_needed`); 0
        without gradient steps. Cached outputs are on the host and do not count.
    """

    variables: Variables
    history: list[dict[str, Any]]
    best: dict[str, Any] | None
    trained: frozenset[str]
    updated_norms: frozenset[str]
    groups: list[dict[str, Any]]
    source: str
    steps: int
    images: int
    seconds: float
    seconds_waiting: float
    skipped: tuple[Skipped, ...]
    probe: probe.Probe | None = None
    trainable_params: int = 0
    phases: tuple[rules.Phase, ...] = ()
    memory: int = 0


def fit(
    clf: Classifier,
    variables: Variables,
    train_set: DataSpec,
    validation_set: DataSpec | None = None,
    recipe: Recipe = Recipe(),  # noqa: B008 (frozen)
    *,
    seed: int = 0,
    folder: Path | None = None,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    say: Callable[[str], None] = lambda line: None,
    resumed: Callable[[str, int], None] = lambda phase, step: None,
    attempt: reporting.Attempt = reporting.required,
    reference: tuple[Classifier, Variables] | None = None,
) -> FitResult:
    """Trains a classifier.

    Args:
      clf, variables: the network; `Classifier.replace_head` gives it a head for the classes of
        `train_set`.
      train_set: labeled images.
      validation_set: labeled images on which the best epoch and the strength of a probe are chosen.
        Without them the last epoch is kept, and a probe is cross-validated.
      recipe: how to train; the default trains the head by gradient steps.
      seed: seed of all randomness.
      folder: folder of the checkpoints; a run that finds its own checkpoints there continues from
        the newest. None saves none.
      log: called with one row per step and one per epoch.
      say: called with lines of text, such as the table of trainable groups.
      resumed: called before the first step of a phase with its name and the number of steps that a
        checkpoint holds; the rows of later steps are logged again.
      attempt: runs what follows the last step, the new statistics of `bn=reestimate`.
      reference: the network that the penalty of the recipe compares with: the pretrained one with
        its own head for "co_tuning", a teacher for "distill". The start is `clf` itself.

    Returns:
      FitResult.

    Raises:
      ValueError: rules that do not fit the network; a single batch for "surgical:snr"; checkpoints
        in `folder` of a run with other images, classes, weights or settings; soft labels for a set
        whose labels are all certain;
        `patience` without validation images; adversarial training of a phase that reads cached
        outputs or takes no gradient steps; a loss that is not finite (names step and images; the
        last finite state is in `folder`); a batch that does not fit into memory (names a size that
        does).
    """
    partitions = check_recipe(clf, variables["params"], recipe)
    variables = initializers.redraw(variables, recipe.init, seed)
    context = FitContext(
        clf,
        apply_label_confidence(train_set, recipe),
        validation_set or empty_set(train_set),
        recipe,
        seed,
        folder,
        log,
        say,
        resumed,
    )
    if recipe.patience and not context.validation_set.examples:
        raise ValueError(
            f"`patience={recipe.patience}` needs validation images, but there are none; set "
            "`validation_fraction` above 0, or `patience=0`"
        )
    if recipe.tune == "surgical:snr" and len(train_set.examples) <= recipe.batch_size:
        raise ValueError(
            "`tune=surgical:snr` compares the gradients of batches: got one batch of "
            f"{len(train_set.examples)} images, expected at least two; use a smaller `batch_size`, "
            "or `tune=surgical`"
        )
    context = context._replace(penalty=_penalty(context, variables, reference))
    if folder is not None:
        resume.same_inputs(folder / "inputs.json", _inputs(context, variables))
    params: Any = jax.tree.map(np.asarray, variables["params"])
    stats: Any = jax.tree.map(np.asarray, variables.get("batch_stats", {}))
    opt_state, best, head_probe, results, groups = None, None, None, [], []
    source, memory = "cached features", 0
    sizes: dict[str, int] = {}
    phases: list[rules.Phase] = []
    updated_norms: frozenset[str] = frozenset()
    for number, (rule_phase, partition) in enumerate(partitions):
        if rule_phase.name in rules.SURGICAL:
            rule_phase, partition = surgical.choose(context, params, stats)
        phases.append(rule_phase)
        extended = low_rank.extend(params, rule_phase.rank, seed)
        if context.penalty and frozen_prefix(clf, recipe, rule_phase, partition) != "features":
            extended |= context.penalty.extras
            partition = regularizers.add_labels(partition, context.penalty.extras)
        leaves = paths.flatten(extended)
        sizes |= {name: leaves[name].size for name in partition.trained}
        if rule_phase.name == "probe":
            head_probe, skipped = fit_probe(context, params, stats)
            params = {**params, "head": head_probe.params}
            results.append(PhaseResult(None, [], None, skipped=skipped))
            continue
        phase = prepare(context, number, rule_phase, partition, extended, stats, opt_state)
        result, groups, source = train_phase(context, number, phase), phase.groups, phase.source
        results.append(result)
        memory = max(memory, phase.step.memory)
        assert result.state is not None
        opt_state = None if phase.standardized else result.state.opt_state
        params, stats = phase.host(result.state)
        if recipe.bn in ("update", "reestimate"):
            updated_norms |= phase.train_norms
        candidates = [candidate for candidate in (best, result.best) if candidate]
        best = min(candidates, key=lambda epoch: selection_metric(epoch.row), default=None)
        del phase  # its inputs count in `bank_gib` of the next phase
    if best is not None:
        params, stats = best.params, best.stats
    if recipe.bn == "reestimate" and updated_norms:
        network = params, stats
        stats = attempt("reestimate", lambda: reestimate(context, *network, updated_norms), stats)
    history = [row for result in results for row in result.history]
    # A backbone with new parameters has none of the pretrained parameters and statistics.
    drawn = [name for name in paths.flatten(params) if recipe.init]
    drawn_norms = rules.norm_layers(stats) if recipe.init else frozenset()
    return FitResult(
        variables={"params": params, "batch_stats": stats},
        history=history,
        best=best.row if best else history[-1] if history else None,
        trained=frozenset((*map(low_rank.changed, sizes), *drawn))
        - regularizers.names(context.penalty),
        updated_norms=updated_norms | drawn_norms,
        groups=groups,
        source=source,
        steps=sum(result.steps for result in results),
        images=sum(result.images for result in results),
        seconds=sum(result.seconds for result in results),
        seconds_waiting=sum(result.seconds_waiting for result in results),
        skipped=tuple(dict.fromkeys(skip for result in results for skip in result.skipped)),
        probe=head_probe,
        trainable_params=sum(sizes.values()),
        phases=tuple(phases),
        memory=memory,
    )


def check_recipe(
    clf: Classifier, params: Params, recipe: Recipe
) -> list[tuple[rules.Phase, paths.Partition]]:
    """The phases of a recipe with their partitions; checks all of them before the first step.

    Args:
      clf, params: the network, with its head.
      recipe: how to train.

    Raises:
      ValueError: rules or a rank that do not fit the network; an adversary in a phase that takes no
        gradient steps or reads cached outputs; `microbatches` that do not divide the batch; those
        of `recipe.check_names` and `recipe.check_steps`.
    """
    check_names(recipe)
    check_steps(recipe, clf.spec.endpoints)
    if recipe.batch_size % (recipe.microbatches or 1):
        raise ValueError(
            f"`microbatches` must divide `batch_size`: got {recipe.microbatches} parts of a batch "
            f"of {recipe.batch_size}"
        )
    partitions = []
    for phase in recipe.phases(clf.spec.endpoints):
        partition = paths.partition(low_rank.extend(params, phase.rank), phase.rules)
        rules.rate_factors(partition.groups, clf.spec.endpoints)
        frozen_prefix(clf, recipe, phase, partition)
        partitions.append((phase, partition))
    trained = (name for _, partition in partitions for name in partition.trained)
    if recipe.dropout and not heads.pooled(clf.head):  # type: ignore[arg-type]
        raise ValueError(
            f"`dropout={recipe.dropout:g}` acts on pooled features: got a head that reads feature "
            "maps; use `head=linear`, `head=mlp` or `head=cosine`"
        )
    if recipe.penalty and all(name.startswith("head/") for name in trained):
        raise ValueError(
            f"`penalty={recipe.penalty}` acts on the backbone: got `tune={recipe.tune}`, which "
            "trains the head alone; use `tune=lp_ft` or `tune=all`"
        )
    return partitions


def _penalty(
    context: FitContext, variables: Variables, reference: tuple[Classifier, Variables] | None
) -> regularizers.Prepared | None:
    """The penalty of the recipe with its reference network."""
    penalty = regularizers.parse(context.recipe.penalty)
    if penalty is None:
        return None
    if penalty.row.reference in ("", "start"):
        reference = context.clf, variables
    if reference is None:
        raise ValueError(
            f"`penalty={context.recipe.penalty}` compares with another network: expected "
            "`reference`, the pretrained network with its own head or a teacher"
        )
    return regularizers.prepare(penalty, reference, context.train_set, context.seed)


# Fields of a recipe that a resumed run may change, because they decide no number.
_NOT_COMPARED = ("workers", "save_every", "save_minutes", "fsdp")


def _inputs(context: FitContext, variables: Variables) -> dict[str, Any]:
    """What a resumed run must share with its start, for `resume.same_inputs`."""
    clf, recipe = context.clf, dataclasses.asdict(context.recipe)
    return {
        "the training images": resume.describe_part(context.train_set),
        "the validation images": resume.describe_part(context.validation_set),
        "the classes": list(context.train_set.classes),
        "the weights": f"{clf.arch}, sha256 {paths.digest(variables)[:16]}",
        "the preprocessing": clf.pixels.as_dict(),
        "`dtype`": str(clf.dtype),
        "the reference network": paths.digest(context.penalty.extras) if context.penalty else "",
        "`seed`": context.seed,
        **{f"`{name}`": value for name, value in recipe.items() if name not in _NOT_COMPARED},
    }


def reestimate(
    context: FitContext, params: Params, stats: Params, layers: frozenset[str]
) -> Params:
    """BatchNorm statistics of some layers, computed again from the training images.

    They are means over the statistics of all batches, without augmentation and momentum. A batch
    has the weight of its readable images; other slots do not count. The images are shuffled,
    because a data set is often sorted by class, and the variance in a batch of one class is too
    small.

    Args:
      context: the arguments of `fit`; its seed decides the order of the images.
      params, stats: the trained network.
      layers: names as in `rules.norm_layer_name`.

    Returns:
      `batch_stats` in which all other layers are unchanged.

    Raises:
      ValueError: no image is readable.

    Reference:
      Izmailov et al. 2018, arXiv:1803.05407, section 3.2 (BatchNorm statistics after averaging
      weights).
    """
    clf, b = context.clf, min(context.recipe.batch_size, len(context.train_set.examples))
    specs = norms(clf.spec.module, params["backbone"], stats["backbone"], len(clf.pixels.mean))
    old = paths.flatten(stats["backbone"])
    names = {name for name in old if rules.norm_layer_name(name) in layers}
    zero = paths.unflatten(
        {name: np.zeros_like(leaf) if name in names else leaf for name, leaf in old.items()}
    )

    @jax.jit
    def update(params: Any, stats: Any, images: jax.Array, valid: jax.Array | None) -> Any:
        """The update from statistics of zero: `momentum` times the statistics of the batch."""
        variables = {"params": params, "batch_stats": {"backbone": stats}}
        images01, norms = pixels.to_images01(images), {"train_norms": layers, "valid": valid}
        return clf.apply(variables, images01, Mode.TRAIN, **norms).stats["backbone"]

    sums, shares, on_device = None, 0.0, jax.device_put((params, zero))
    examples = context.train_set.examples
    order = np.random.default_rng(context.seed).permutation(len(examples))
    shuffled = dataclasses.replace(context.train_set, examples=tuple(examples[i] for i in order))
    images = inputs.ImageInputs(clf, shuffled, context.augment)
    for batch, _ in images.evaluation(b):
        share = float(np.mean(batch.valid))
        new = update(*on_device, batch.inputs, None if share == 1.0 else batch.valid)
        weighted = {name: share * leaf for name, leaf in paths.flatten(new).items()}
        sums = weighted if sums is None else {n: sums[n] + leaf for n, leaf in weighted.items()}
        shares += share
    if sums is None or not shares:
        raise ValueError(
            f"`bn=reestimate` needs readable images: got none in {context.train_set.name}"
        )
    new = {
        name: np.asarray(sums[name]) / (shares * specs[name.rpartition("/")[0]].momentum)
        for name in names
    }
    return {**stats, "backbone": paths.unflatten({**old, **new})}


def frozen_digest(variables: Variables, result: FitResult) -> str:
    """A hash of everything that was frozen during `fit`.

    These are the parameters that training did not change in any phase, and the statistics that were
    not updated. A kernel with an update of low rank is not among them; its bias and BatchNorm are.
    """
    params = paths.flatten(variables["params"])
    stats = paths.flatten(variables.get("batch_stats", {}))
    return paths.digest(
        {
            "params": {n: leaf for n, leaf in params.items() if n not in result.trained},
            "stats": {
                name: leaf
                for name, leaf in stats.items()
                if rules.norm_layer_name(name) not in result.updated_norms
            },
        }
    )
