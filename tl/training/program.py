"""The train step of one phase, made from the recipe without reading an image.

`phase.prepare` compiles it for the devices of this process; `tl.scale` compiles it for devices that
are not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl import hosts, losses, optim, pixels
from tl.data import DataSpec, augment
from tl.data.plan import Plan, balanced, class_weights
from tl.models import Classifier, heads
from tl.paths import Partition
from tl.training import adversarial, inputs, low_rank, regularizers, rules, step
from tl.training.recipe import Recipe
from tl.training.schedules import SCHEDULES
from tl.training.step import TrainState, init, make_train_step
from tl.types import Array, Mode, Output, Params

# Peak learning rate where `Recipe.lr` is 0: for a head on pooled features alone, and for everything
# else (chosen on ELPV).
HEAD_LR, LR = 1e-3, 5e-3
# Share of the steps over which `Recipe.small_loss` grows; chosen, not tuned.
RAMP = 0.5


class FitContext(NamedTuple):
    """The arguments of `fit` that all phases share."""

    clf: Classifier
    train_set: DataSpec
    validation_set: DataSpec
    recipe: Recipe
    seed: int
    folder: Path | None
    log: Callable[[dict[str, Any]], None]
    say: Callable[[str], None]
    resumed: Callable[[str, int], None] = lambda phase, step: None
    penalty: regularizers.Prepared | None = None

    @property
    def augment(self) -> augment.Augment:
        """The augmentation of training images."""
        return augment.make_augment(self.recipe.augment, size=self.clf.pixels.size)


def frozen_prefix(clf: Classifier, recipe: Recipe, phase: rules.Phase, partition: Partition) -> str:
    """The endpoint whose outputs do not change in a phase, as `rules.frozen_prefix`.

    Raises:
      ValueError: an adversary, which changes pixels, in a phase that reads cached outputs.
    """
    stages = clf.spec.endpoints
    prefix = rules.frozen_prefix(partition.trained, stages)
    if prefix == "features" and not heads.pooled(clf.head):  # type: ignore[arg-type]
        prefix = stages[-1]
    if recipe.adversary() and prefix and recipe.bank_gib and phase.name != "probe":
        raise ValueError(
            f"`adversarial={recipe.adversarial}` changes pixels, but {phase.name} trains on the "
            f"output of the frozen {prefix}, computed once; use `tune=all`, `tune=lp_ft` or "
            "`bank_gib=0`"
        )
    return prefix


class PhaseProgram(NamedTuple):
    """The train step of a phase before it is compiled; no image is read for it.

    Attributes:
      step: number of microbatches -> step, from `make_train_step`.
      init: `(params, stats) -> state` before the first step; `jax.eval_shape` gives its shapes.
      key: returns the key of the state, in a buffer of its own.
      masked: whether BatchNorm needs to know the padded slots; see `compile_step`.
      evaluate: the network in evaluation mode.
      plan: the order of the examples over all steps.
      lr: peak learning rate.
      factors: learning-rate factors of the groups.
      schedule: step -> learning rate.
      train_norms: layers whose BatchNorm trains.
      adversary: that of the recipe.
    """

    step: Callable[[int], step.Step]
    init: Callable[[Params, Params], TrainState]
    key: Callable[[], jax.Array]
    masked: bool
    evaluate: step.Forward
    plan: Plan
    lr: float
    factors: Mapping[str, float]
    schedule: Callable[[int], Any]
    train_norms: frozenset[str]
    adversary: adversarial.Adversary | None


def make_program(
    context: FitContext,
    number: int,
    phase: rules.Phase,
    partition: Partition,
    stats: Params,
    prefix: str,
    *,
    cached: bool,
    schedules: Callable[[float, int], Callable[[Any], Any]] | None = None,
) -> PhaseProgram:
    """The train step of a phase.

    Args:
      context, number, phase, partition, stats, schedules: as for `prepare`; of `stats` only the
        names are read.
      prefix: as `frozen_prefix` returns it.
      cached: whether the step reads the cached outputs of `prefix` instead of images.
    """
    clf, recipe, stages = context.clf, context.recipe, context.clf.spec.endpoints
    train_norms = rules.trainable_norm_layers(partition.trained, stats)
    train_labels = inputs.labels(context.train_set)
    steps = math.ceil(recipe.steps * phase.share)
    per_epoch = -(-len(train_labels) // recipe.batch_size)
    order = Plan(
        n=len(train_labels),
        batch_size=recipe.batch_size,
        epochs=max(-(-steps // per_epoch) if steps else round(recipe.epochs * phase.share), 1),
        seed=context.seed,
        weights=balanced(train_labels) if recipe.balance == "sampler" else None,
        slots=inputs.own_slots(recipe.batch_size) if hosts.count() > 1 else None,
    )
    lr = recipe.lr or (HEAD_LR if prefix == "features" else LR)
    adversary = recipe.adversary(len(order))
    # Each replay of "free" is a step of the optimizer.
    replays = adversary.replays if adversary and adversary.method == "free" else 1
    rate_of_update = (schedules or SCHEDULES[recipe.schedule])(lr, replays * (steps or len(order)))
    factors = rules.rate_factors(
        partition.groups, stages, backbone=recipe.backbone_lr, layer_decay=recipe.layer_decay
    )
    optimizer = optim.partitioned(
        partition,
        optim.OPTIMIZERS[recipe.optimizer](
            optim.decay_to_start(recipe.l2_sp, recipe.weight_decay)
            if recipe.l2_sp
            else recipe.weight_decay
        ),
        rate_of_update,
        factors=factors,
        clip=recipe.clip,
        centralize=recipe.centralize,
    )
    optimizer = optim.WRAPPERS[recipe.wrapper](optimizer, rate_of_update)
    start = prefix if cached else ""
    masked = recipe.bn == "update" and bool(train_norms)
    forward = make_forward(clf, start, Mode.TRAIN if masked else Mode.EVAL, train_norms)
    k = len(context.train_set.classes)
    hooks = adversarial.hooks(adversary, forward) if adversary else adversarial.Hooks()
    if context.penalty and prefix != "features":
        network = make_network(clf, start, Mode.TRAIN if masked else Mode.EVAL, train_norms)
        hooks = adversarial.Hooks(regularizers.make_loss(context.penalty, network, start))
    value = losses.LOSSES[recipe.loss]
    loss = hooks.loss or step.plain_loss(forward, value)
    if recipe.dropout:
        network = make_network(clf, start, Mode.TRAIN if masked else Mode.EVAL, train_norms)
        loss = dropout_loss(clf, network, recipe.dropout, value)
    if recipe.small_loss:
        loss = step.select_small_losses(loss, recipe.small_loss, round(RAMP * len(order)))
    train_step = lambda microbatches: make_train_step(
        forward,
        optimizer,
        loss=loss,
        replay=hooks.replay,
        smoothing=recipe.smoothing,
        augment=None if cached else _make_augment(context.augment, always=adversary is not None),
        class_weights=class_weights(train_labels, k) if recipe.balance == "weights" else None,
        microbatches=microbatches,
        ema_decay=recipe.ema,
        average_from=round((1.0 - recipe.swa) * len(order)) if recipe.swa else None,
    )
    key = lambda: jax.random.fold_in(jax.random.key(context.seed), number)
    averages = recipe.ema > 0 or recipe.swa > 0

    def init_state(params: Params, stats: Params) -> TrainState:
        return init(
            params,
            partition,
            optimizer,
            stats=stats,
            key=key(),
            ema=averages,
            ema_stats=averages and masked,
        )

    return PhaseProgram(
        step=train_step,
        init=init_state,
        key=key,
        masked=masked,
        evaluate=make_forward(clf, start, Mode.EVAL, train_norms),
        plan=order,
        lr=lr,
        factors=factors,
        schedule=lambda step: rate_of_update(step * replays),
        train_norms=train_norms,
        adversary=adversary,
    )


def make_network(
    clf: Classifier, start: str, mode: Mode, train_norms: frozenset[str]
) -> regularizers.Network:
    """The network as a function of images, or of the outputs of the stage `start`.

    Updates of low rank among the parameters are merged into the kernels first.
    """

    def network(params: Any, stats: Any, inputs: jax.Array, valid: Array | None = None) -> Output:
        variables = {"params": low_rank.merge(params), "batch_stats": stats}
        norms: dict[str, Any] = {"train_norms": train_norms, "valid": valid}
        if start:
            return clf.apply_from(variables, inputs, start, mode, **norms)
        images01 = pixels.to_images01(inputs) if inputs.dtype == jnp.uint8 else inputs
        return clf.apply(variables, images01, mode, **norms)

    return network


def dropout_loss(
    clf: Classifier,
    network: regularizers.Network,
    rate: float,
    value: Callable[[jax.Array, jax.Array], jax.Array],
) -> step.Loss:
    """A loss of the logits without some of the features, others for each image and step.

    Args:
      clf: its head reads the features.
      network: from `make_network`.
      rate: the probability that a feature is 0; the others are divided by 1 - `rate`, as in Keras
        and torch.
      value: one of `losses.LOSSES`.

    Reference: Srivastava et al. 2014, JMLR 15, section 4.
    """

    def loss(
        params: Any,
        stats: Any,
        keys: jax.Array,
        step: jax.Array,
        inputs: jax.Array,
        targets: jax.Array,
        valid: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Any]:
        del step
        output = network(params, stats, inputs, valid)
        shape = output.features.shape[1:]
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, shape))(keys)
        features = jnp.where(kept, output.features / (1.0 - rate), 0.0)
        logits = clf.apply_head({"params": params}, features, output.endpoints)
        assert logits is not None
        return value(logits, targets), logits, output.stats

    return loss


def make_forward(
    clf: Classifier, start: str, mode: Mode, train_norms: frozenset[str]
) -> step.Forward:
    """The logits and statistics of `make_network`."""
    network = make_network(clf, start, mode, train_norms)

    def forward(
        params: Any, stats: Any, inputs: jax.Array, valid: jax.Array | None = None
    ) -> tuple[Any, Any]:
        output = network(params, stats, inputs, valid)
        return output.logits, output.stats

    return forward


def _make_augment(augmentation: augment.Augment, *, always: bool = False) -> step.Augment | None:
    """The augmentation as a function of the step; None for "none".

    With `always`, images are converted to [0, 1] even without an augmentation.
    """
    if not augmentation.words and not always:
        return None
    return lambda key, inputs, targets, valid: augmentation.apply(
        key, pixels.to_images01(inputs), targets, valid
    )
