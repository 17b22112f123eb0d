"""One phase of a run: its inputs, optimizer and compiled step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import devices, losses, optim, paths, pixels, reporting
from tl.data import DataSpec, Skipped, augment, feed, plan
from tl.data.plan import Plan, balanced, class_weights
from tl.inference import features
from tl.models import Classifier, heads
from tl.training import adversarial, inputs, probe, rules, step
from tl.training.inputs import Bank, Pictures, confidence
from tl.training.recipe import Recipe
from tl.training.step import Examples, Step, TrainState, init, make_train_step
from tl.types import Mode, Variables

VALIDATION_STEPS = 5  # of the attack after each epoch; chosen, not tuned


class FitContext(NamedTuple):
    """The arguments of `fit` that all phases share."""

    clf: Classifier
    train_set: DataSpec
    validation: DataSpec
    recipe: Recipe
    seed: int
    folder: Path | None
    log: Callable[[dict[str, Any]], None]
    say: Callable[[str], None]

    @property
    def augment(self) -> augment.Augment:
        """What happens to a training picture."""
        return augment.make_augment(self.recipe.augment, size=self.clf.pixels.size)


class Phase(NamedTuple):
    """One phase, ready to be trained.

    Attributes:
      name: of `optim.Phase`.
      groups: `optim.table` of what trains.
      reads: "pictures" or "bank of STAGE".
      feed: `feeds.Pictures` or `feeds.Bank`, of the pictures to learn from and of those of validation.
      plan: which picture stands in which step.
      state: before the first step; its buffers are donated to it.
      key: of the state, in a buffer of its own.
      step: the compiled training step.
      schedule: step -> learning rate.
      logits: `(params, stats, inputs) -> f32[b k]`, in the evaluation mode.
      attacked: `(params, stats, inputs, labels) -> f32[b k]`, of the inputs moved by the adversary; None without one.
      host: state -> `(params, stats)` on the host, the head in the units of raw features.
    """

    name: str
    groups: list[dict[str, Any]]
    reads: str
    feed: inputs.Pictures | inputs.Bank
    validation: inputs.Pictures | inputs.Bank
    plan: Plan
    state: TrainState
    key: jax.Array
    step: Callable[[TrainState, Examples], tuple[TrainState, dict[str, jax.Array]]]
    schedule: Callable[[int], Any]
    logits: Callable[[Any, Any, Any], jax.Array]
    attacked: Callable[[Any, Any, Any, Any], jax.Array] | None
    host: Callable[[TrainState], tuple[Any, Any]]


def fit_probe(job: FitContext, params: Any, stats: Any) -> tuple[probe.Probe, tuple[Skipped, ...]]:
    """The head's optimum on the frozen features, and the pictures that have none."""
    variables, k = {"params": params, "batch_stats": stats}, len(job.train_set.classes)
    parts, skipped = [], ()
    for spec in (job.train_set, job.validation):
        found = features.extract(
            job.clf, variables, inputs.sources(spec), batch_size=job.recipe.batch_size
        )
        parts.append((found.values[found.valid], inputs.labels(spec)[found.valid]))
        skipped += found.skipped
    (values, known), validation_set = parts
    weights = None
    if job.recipe.balance != "none":
        weights = np.maximum(plan.class_weights(known, k), 1e-6).astype(np.float64)
    return probe.fit(
        values,
        known,
        k,
        method=job.recipe.method,
        validation=validation_set if len(validation_set[1]) else None,
        refit=job.recipe.tune == "probe",  # what follows a probe is compared with it on validation
        seed=job.seed,
        class_weights=weights,
    ), skipped


# ------------------------------------------------------------------------------------------------------- before step 1


def prepare(
    job: FitContext,
    number: int,
    phase: rules.Phase,
    params: Any,
    stats: Any,
    opt_state: Any,
    *,
    schedules: Callable[[float, int], Callable[[Any], Any]] | None = None,
) -> Phase:
    """Everything of a phase but its loop: feeds, optimizer, compiled step; tells the table of what trains.

    `schedules` is taken in place of the recipe's: (peak, steps) -> learning rate by step.
    """
    clf, recipe, stages = job.clf, job.recipe, job.clf.spec.endpoints
    labels = paths.label(params, phase.rules)
    train_norms, frozen_prefix = (
        rules.trainable_norm_layers(labels, stats),
        rules.frozen_prefix(labels, stages),
    )
    if frozen_prefix == "features" and not heads.pooled(clf.head):  # type: ignore[arg-type]
        frozen_prefix = stages[-1]
    if recipe.adversary() and frozen_prefix and recipe.bank_gib:
        raise ValueError(
            f"--adversarial={recipe.adversarial} moves pixels, and {phase.name} learns from a bank of what the frozen "
            f"{frozen_prefix} made of them once; take --tune=all or lp_ft, or --bank_gib=0"
        )
    feed, validation, scale = _feeds(job, frozen_prefix, {"params": params, "batch_stats": stats})
    banked = isinstance(feed, Bank)
    plan = Plan(
        n=len(job.train_set.examples),
        batch_size=recipe.batch_size,
        epochs=max(round(recipe.epochs * phase.share), 1),
        seed=job.seed,
        weights=balanced(inputs.labels(job.train_set)) if recipe.balance == "sampler" else None,
    )
    lr = recipe.lr or (1e-3 if frozen_prefix == "features" else 5e-3)
    adversary = recipe.adversary(len(plan))
    replays = (
        adversary.replays if adversary and adversary.method == "free" else 1
    )  # each is a step of the optimizer
    by_update = (schedules or optim.SCHEDULES[recipe.schedule])(lr, replays * len(plan))
    factors = rules.rate_factors(
        phase.rules, stages, backbone=recipe.backbone_lr, layer_decay=recipe.layer_decay
    )
    rule = optim.OPTIMIZERS[recipe.optimizer](recipe.weight_decay)
    optimizer = optim.partitioned(
        params, phase.rules, rule, by_update, factors=factors, clip=recipe.clip
    )

    def forward(params: Any, stats: Any, inputs: jax.Array, mode: Mode) -> tuple[Any, Any]:
        variables = {"params": params, "batch_stats": stats}
        if banked:
            output = clf.apply_from(variables, inputs, frozen_prefix, mode, train_norms=train_norms)
        else:
            images01 = pixels.to_images01(inputs) if inputs.dtype == jnp.uint8 else inputs
            output = clf.apply(variables, images01, mode, train_norms=train_norms)
        return output.logits, output.stats

    mode = Mode.TRAIN if recipe.bn == "update" and train_norms else Mode.EVAL
    k = len(job.train_set.classes)
    live_forward = lambda params, stats, inputs: forward(params, stats, inputs, mode)
    hooks = adversarial.hooks(adversary, live_forward) if adversary else adversarial.Hooks()
    step = make_train_step(
        live_forward,
        optimizer,
        loss=hooks.loss,
        replay=hooks.replay,
        smoothing=recipe.smoothing,
        augment=None if banked else _augmenting(job.augment, always=adversary is not None),
        class_weights=class_weights(inputs.labels(job.train_set), k)
        if recipe.balance == "weights"
        else None,
        microbatches=recipe.microbatches,
        ema_decay=recipe.ema,
    )
    started = {**params, "head": _to_standard(params["head"], scale)}
    keys = [jax.random.fold_in(jax.random.key(job.seed), number) for _ in range(2)]
    state = init(started, phase.rules, optimizer, stats=stats, key=keys[0], ema=recipe.ema > 0)
    if opt_state is not None:
        state = state._replace(opt_state=optim.carry_state(opt_state, state.opt_state))

    table = rules.table(
        params,
        phase.rules,
        lr=lr,
        factors=factors,
        weight_decay=recipe.weight_decay,
        bn=recipe.bn,
        norms=rules.trainable_norm_layers(dict.fromkeys(labels, "all"), stats),
        moments=2 if recipe.optimizer == "adamw" else 1,
    )
    reads = f"bank of {frozen_prefix}" if banked else "pictures"
    job.say(
        f"{phase.name}: {plan.epochs} epochs of {plan.steps_per_epoch} steps of {plan.batch_size}, from "
        f"{'the ' if banked else ''}{reads}"
    )
    job.say(reporting.columns(list(table[0]), [list(row.values()) for row in table]))
    mesh = devices.mesh()
    state = devices.replicate(state, mesh)
    compiled = compiled_to_fit(job, step, state, feed)

    def host(state: TrainState) -> tuple[Any, Any]:
        params, stats = jax.tree.map(np.asarray, (state.averaged, state.stats))
        return {**params, "head": _from_standard(params["head"], scale)}, stats

    settled = lambda params, stats, inputs: forward(params, stats, inputs, Mode.EVAL)
    logits = jax.jit(lambda params, stats, inputs: settled(params, stats, inputs)[0])
    attacked = _attacked(adversary, settled, k, job.seed) if adversary else None
    schedule = lambda step: by_update(step * replays)
    return Phase(
        phase.name,
        table,
        reads,
        feed,
        validation,
        plan,
        state,
        keys[1],
        compiled,
        schedule,
        logits,
        attacked,
        host,
    )


def compiled_to_fit(job: FitContext, step: Step, state: TrainState, feed: Pictures | Bank) -> Step:
    """The step, compiled for this feed's batches; ValueError with a size that fits where memory is too small for them."""
    mesh, b = devices.mesh(), job.recipe.batch_size
    inputs = feed.blank()

    def compiled(size: int) -> Any:
        sure = None if confidence(job.train_set) is None else np.ones(size, np.float32)
        blank = Examples(
            np.repeat(inputs, size, 0), np.zeros(size, np.int32), np.zeros(size, bool), sure
        )
        return step.lower(state, devices.shard(blank, mesh)).compile()  # type: ignore[attr-defined]

    program, room = compiled(b), devices.limit()
    if room is not None and devices.needs(program) > room:
        fits = (
            devices.largest_batch(lambda size: devices.needs(compiled(size)), b // 2, room=room)
            if b > 1
            else 0
        )
        need, have = devices.needs(program) / 1e9, room / 1e9
        raise ValueError(
            f"a step of --batch_size={b} needs {need:.1f} GB and {have:.1f} GB are free; --batch_size={fits} fits, or "
            f"--microbatches={b // max(fits, 1)}"
        )
    return program


def _feeds(
    job: FitContext, frozen_prefix: str, variables: Variables
) -> tuple[Any, Any, tuple[np.ndarray, np.ndarray] | None]:
    """Feeds of learning and validation, and, for a bank of features, the (mean, std) by which it was standardised.

    A head sees standardised features, so that one learning rate suits every backbone; `Phase.host` undoes it.
    """
    recipe, clf = job.recipe, job.clf
    frozen_prefix = "" if recipe.adversary() else frozen_prefix
    once = augment.make_augment("none", size=clf.pixels.size)
    share = len(job.train_set.examples) / max(
        len(job.train_set.examples) + len(job.validation.examples), 1
    )
    made = {"gib": recipe.bank_gib * share, "batch_size": recipe.batch_size}
    bank = inputs.bank(clf, variables, job.train_set, frozen_prefix, job.augment, **made)
    if bank is None:
        workers = feed.auto_workers() if recipe.workers < 0 else recipe.workers
        read = inputs.Pictures(clf, job.train_set, job.augment, workers)
        return read, read._replace(spec=job.validation), None
    validation_set = inputs.bank(
        clf, variables, job.validation, frozen_prefix, once, **{**made, "gib": float("inf")}
    )
    assert validation_set is not None  # whatever its size
    if frozen_prefix != "features" or heads.kind(clf.head) != "linear":  # type: ignore[arg-type]
        return bank, validation_set, None
    seen = bank.maps[bank.valid].reshape(-1, bank.maps.shape[-1])
    mean, std = seen.mean(axis=0), seen.std(axis=0) + 1e-6
    return bank.standardized(mean, std), validation_set.standardized(mean, std), (mean, std)


def _to_standard(head: Any, scale: tuple[np.ndarray, np.ndarray] | None) -> Any:
    """A linear head for standardised features that says what `head` says of raw ones."""
    if scale is None:
        return head
    mean, std = scale
    return {"kernel": head["kernel"] * std[:, None], "bias": head["bias"] + mean @ head["kernel"]}


def _from_standard(head: Any, scale: tuple[np.ndarray, np.ndarray] | None) -> Any:
    """The inverse of `_to_standard`."""
    if scale is None:
        return head
    mean, std = scale
    kernel = head["kernel"] / std[:, None]
    return {"kernel": kernel, "bias": head["bias"] - mean @ kernel}


def _attacked(
    adversary: adversarial.Adversary, forward: step.Forward, k: int, seed: int
) -> Callable[..., jax.Array]:
    """`Phase.attacked`: projected gradient ascent on the cross-entropy at the full radius, the same start in every epoch."""
    perturb = adversarial.make_perturb(forward, steps=VALIDATION_STEPS)

    @jax.jit
    def attacked(params: Any, stats: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(seed), len(inputs))
        targets, eps = losses.smoothed(labels, k), jnp.float32(adversary.eps)
        moved = perturb(params, stats, keys, pixels.to_images01(inputs), targets, eps)
        return forward(params, stats, moved)[0]

    return attacked


def _augmenting(how: augment.Augment, *, always: bool = False) -> step.Augment | None:
    """`always`: pictures become numbers in [0, 1] even where nothing else is done to them."""
    if not how.words and not always:
        return None
    return lambda key, inputs, targets, valid: how.apply(
        key, pixels.to_images01(inputs), targets, valid
    )
