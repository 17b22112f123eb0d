"""One phase of a training run before its first step: inputs, optimizer and compiled step."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import devices, losses, optim, pixels, reporting
from tl.data import Skipped, augment, feed, plan
from tl.data.duplicates import clusters
from tl.data.plan import Plan
from tl.inference import features
from tl.models import heads
from tl.paths import Partition
from tl.training import adversarial, inputs, low_rank, probe, regularizers, rules, step
from tl.training.compiled import CompiledStep, compile_step
from tl.training.inputs import CachedInputs, ImageInputs
from tl.training.program import FitContext, frozen_prefix, make_program
from tl.training.step import TrainState
from tl.types import Params, Variables

# Steps of the attack on the validation set after each epoch; chosen, not tuned.
VALIDATION_STEPS = 5


class Phase(NamedTuple):
    """One phase, ready to be trained.

    Attributes:
      name: name of the `rules.Phase`.
      groups: rows of `rules.table`.
      source: "images" or "cached STAGE".
      train_inputs, validation_inputs: inputs of the two sets.
      plan: the order of the examples over all steps.
      state: the state before the first step, which donates its buffers.
      key: the key of the state, in a buffer of its own.
      step: the compiled train step, `(state, examples) -> (state, metrics)`.
      schedule: step -> learning rate.
      train_norms: layers whose BatchNorm trains.
      logits: `(params, stats, inputs) -> f32[b k]`, in evaluation mode.
      attacked_logits: `(params, stats, inputs, labels) -> f32[b k]` of adversarial examples; None
        without an adversary.
      host: state -> `(params, stats)` on the host, with updates of low rank merged into the
        kernels, and with the head in the units of unstandardized features.
      standardized: whether only a head on standardized features trains. Its optimizer state is in
        their units and does not suit another phase.
    """

    name: str
    groups: list[dict[str, Any]]
    source: str
    train_inputs: ImageInputs | CachedInputs
    validation_inputs: ImageInputs | CachedInputs
    plan: Plan
    state: TrainState
    key: jax.Array
    step: CompiledStep
    schedule: Callable[[int], Any]
    train_norms: frozenset[str]
    logits: Callable[[Any, Any, Any], jax.Array]
    attacked_logits: Callable[[Any, Any, Any, Any], jax.Array] | None
    host: Callable[[TrainState], tuple[Any, Any]]
    standardized: bool


def fit_probe(
    context: FitContext, params: Params, stats: Params
) -> tuple[probe.Probe, tuple[Skipped, ...]]:
    """Fits the head to its optimum on the frozen features.

    Without a validation set it is cross-validated, with all duplicates of an image in one fold.

    Returns:
      The probe, and the images that could not be read.
    """
    variables, k = {"params": params, "batch_stats": stats}, len(context.train_set.classes)
    parts, readable, skipped = [], [], ()
    for spec in (context.train_set, context.validation_set):
        extracted = features.extract(
            context.clf, variables, inputs.sources(spec), batch_size=context.recipe.batch_size
        )
        valid = extracted.valid
        parts.append((extracted.values[valid], inputs.labels(spec)[valid]))
        examples = tuple(itertools.compress(spec.examples, valid))
        readable.append(dataclasses.replace(spec, examples=examples))
        skipped += extracted.skipped
    (values, labels), validation = parts
    held_out = bool(readable[1].examples)
    weights = None
    if context.recipe.balance != "none":
        weights = np.maximum(plan.class_weights(labels, k), 1e-6).astype(np.float64)
    fitted = probe.fit(
        values,
        labels,
        k,
        method=context.recipe.method,
        validation=validation if held_out else None,
        # A later phase is compared with the probe on the validation set, which must then stay held
        # out.
        refit=context.recipe.tune == "probe",
        seed=context.seed,
        class_weights=weights,
        groups=None if held_out else np.unique(clusters(readable[0]), return_inverse=True)[1],
        prior=probe.PRIOR,
    )
    return fitted, skipped


# ---- before the first step -----------------------------------------------------------------------


def prepare(
    context: FitContext,
    number: int,
    phase: rules.Phase,
    partition: Partition,
    params: Params,
    stats: Params,
    opt_state: Any = None,
    *,
    schedules: Callable[[float, int], Callable[[Any], Any]] | None = None,
) -> Phase:
    """Everything of a phase except its loop; reports the table of trainable groups.

    Args:
      context: the arguments of `fit`.
      number: position of the phase; part of its random key.
      phase: name, rules and share of the epochs.
      partition: the rules applied to `params`.
      params, stats: the variables at the start of the phase; `params` with the updates of
        `low_rank.extend`, and with the subtrees of the penalty.
      opt_state: optimizer state of the previous phase, of parameters in the same units; None
        starts from zero moments.
      schedules: `(peak, steps) -> schedule` instead of the one of the recipe.
    """
    clf, recipe = context.clf, context.recipe
    prefix = frozen_prefix(clf, recipe, phase, partition)
    network = regularizers.without_extras(params)
    train_inputs, validation_inputs, scale = _inputs(
        context, prefix, {"params": network, "batch_stats": stats}
    )
    cached = isinstance(train_inputs, CachedInputs)
    made = make_program(
        context, number, phase, partition, stats, prefix, cached=cached, schedules=schedules
    )
    order, adversary = made.plan, made.adversary
    state = made.init({**params, "head": _standardize(params["head"], scale)}, stats)
    if opt_state is not None:
        state = state._replace(opt_state=optim.carry_state(opt_state, state.opt_state))

    table = rules.table(
        {name: tree for name, tree in params.items() if name != regularizers.REFERENCE},
        partition,
        lr=made.lr,
        factors=made.factors,
        weight_decay=recipe.weight_decay,
        bn=recipe.bn,
        norms=rules.norm_layers(stats),
        moments={"adamw": 2, "plain_sgd": 0}.get(recipe.optimizer, 1) + bool(recipe.l2_sp),
    )
    source = f"cached {prefix}" if cached else "images"
    context.say(
        f"{phase.name}: {order.epochs} epochs of {order.steps_per_epoch} steps of "
        f"{order.batch_size}, from {source}"
    )
    context.say(reporting.columns(list(table[0]), [list(row.values()) for row in table]))
    mesh = devices.mesh()
    state = devices.place(
        state, devices.shardings(state, mesh, devices.FSDP if recipe.fsdp else ())
    )

    def host(state: TrainState) -> tuple[Any, Any]:
        params, stats = devices.fetch((state.averaged, state.averaged_stats))
        params = low_rank.merge(regularizers.without_extras(params))
        return {**params, "head": _unstandardize(params["head"], scale)}, stats

    compiled = compile_step(
        made.step, state, train_inputs, context.train_set, recipe, masked=made.masked
    )
    if not recipe.microbatches and compiled.microbatches > 1:
        context.say(
            f"{phase.name}: the gradients of {compiled.microbatches} microbatches are summed"
        )

    return Phase(
        name=phase.name,
        groups=table,
        source=source,
        train_inputs=train_inputs,
        validation_inputs=validation_inputs,
        plan=order,
        state=state,
        key=made.key(),
        step=compiled,
        schedule=made.schedule,
        train_norms=made.train_norms,
        logits=jax.jit(lambda params, stats, inputs: made.evaluate(params, stats, inputs)[0]),
        attacked_logits=_attacked(
            adversary, made.evaluate, len(context.train_set.classes), context.seed
        )
        if adversary
        else None,
        host=host,
        standardized=scale is not None,
    )


Scale = tuple[np.ndarray, np.ndarray] | None
"""`(mean, std)` f32[d] by which cached features were standardized; None where they were not."""


def _inputs(context: FitContext, prefix: str, variables: Variables) -> tuple[Any, Any, Scale]:
    """Inputs of training and validation, and the scale of cached features.

    A linear head is trained on standardized features, so that one learning rate suits every
    backbone; `Phase.host` converts it back.
    """
    recipe, clf = context.recipe, context.clf
    plain = augment.make_augment("none", size=clf.pixels.size)
    caches = inputs.compute_caches(
        clf,
        variables,
        [(context.train_set, context.augment), (context.validation_set, plain)],
        prefix if recipe.reads_outputs else "",
        gib=recipe.bank_gib,
        batch_size=recipe.batch_size,
    )
    if caches is None:
        workers = feed.auto_workers() if recipe.workers < 0 else recipe.workers
        images = ImageInputs(clf, context.train_set, context.augment, workers)
        return images, images._replace(spec=context.validation_set), None
    train, validation = caches
    if prefix != "features" or heads.kind(clf.head) != "linear":  # type: ignore[arg-type]
        return train, validation, None
    mean, std = train.moments()
    scale = mean, std + np.float32(1e-6)
    return train.standardized(*scale), validation.standardized(*scale), scale


def _standardize(head: Any, scale: Scale) -> Any:
    """The linear head on standardized features that is equal to `head` on the original ones."""
    if scale is None:
        return head
    mean, std = scale
    return {"kernel": head["kernel"] * std[:, None], "bias": head["bias"] + mean @ head["kernel"]}


def _unstandardize(head: Any, scale: Scale) -> Any:
    """The inverse of `_standardize`."""
    if scale is None:
        return head
    mean, std = scale
    kernel = head["kernel"] / std[:, None]
    return {"kernel": kernel, "bias": head["bias"] - mean @ kernel}


def _attacked(
    adversary: adversarial.Adversary, forward: step.Forward, k: int, seed: int
) -> Callable[..., jax.Array]:
    """`Phase.attacked_logits`: PGD on the cross-entropy, from the same start in every epoch."""
    perturb = adversarial.make_perturb(forward, steps=VALIDATION_STEPS)

    @jax.jit
    def attacked(params: Any, stats: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(seed), len(inputs))
        targets, eps = losses.smooth_labels(labels, k), jnp.float32(adversary.eps)
        perturbed = perturb(params, stats, keys, pixels.to_images01(inputs), targets, eps)
        return forward(params, stats, perturbed)[0]

    return attacked
