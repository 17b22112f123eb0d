"""From a classifier and labelled pictures to trained variables: phases, validation, checkpoints.

A run is a list of phases (`optim.phases`), each with its own set of frozen leaves. A phase reads pictures, augmented on the
device, or, where they fit into memory, the maps that its frozen prefix has made of them once (`tl.feeds`). Everything random
is drawn from the seed and the step, so that a run goes on after any interruption as if there had been none (`checkpoints`
has the rule).

It does not divide data, test, or write reports: `experiments/transfer.py` does. A single step is `train.make_train_step`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import (
    checkpoints,
    devices,
    features,
    feeds,
    heads,
    losses,
    metrics,
    optim,
    paths,
    pixels,
    probe,
    robust,
    runlog,
    train,
)
from tl.backbones.fold import norms
from tl.classifier import Classifier
from tl.data import DataSpec, Skipped, augment, loader
from tl.paths import FROZEN, Rules
from tl.types import Mode, Variables


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that decides how a classifier is trained, beside its data, its network and the seed.

    Attributes:
      tune: a short form of `optim.TUNE`.
      rules: in place of `tune`: `((regex, label), ...)`.
      bn: a word of `optim.BN`.
      method: of a probe, a name of `probe.METHODS`.
      epochs, batch_size: of all phases together, and of every step.
      lr: peak learning rate of the head; 0 takes 1e-3 where the head alone trains and 5e-3 elsewhere (chosen on ELPV).
      backbone_lr: factor on it for everything else.
      layer_decay: further factor for each stage away from the head.
      optimizer, schedule: words of `optim.OPTIMIZERS` and `optim.SCHEDULES`.
      weight_decay, clip, smoothing, ema: as in `optim` and `train`; 0 leaves each out.
      soft_labels: a label of a set that tells how sure it is (`Example.confidence`) counts as that much; probes take it whole.
      microbatches: parts of a batch whose gradients are summed.
      patience: epochs without a better validation loss after which a phase ends; 0 never ends it.
      augment: words for `augment.make_augment`.
      balance: "none", "weights" (in the loss) or "sampler" (classes drawn equally often).
      workers: processes that decode; -1 lets `loader.auto_workers` decide.
      bank_gib: memory that the maps of a frozen prefix may take, in GiB; 0 always reads pictures.
      save_every: steps between two checkpoints, beside those at each epoch's end; 0 for those alone.
      adversarial: "none", or a row of `robust.METHODS`; the best epoch is then that of the least error under attack.
      adversarial_eps, adversarial_steps, adversarial_beta, adversarial_replays: as in `robust.Adversary`.
      adversarial_warmup: share of a phase over which the radius grows from 0, in [0, 1].
    """

    tune: str = "head"
    rules: Rules = ()
    bn: str = "eval"
    method: str = "logistic"
    epochs: int = 30
    batch_size: int = 32
    lr: float = 0.0
    backbone_lr: float = 0.1
    layer_decay: float = 1.0
    optimizer: str = "adamw"
    schedule: str = "cosine"
    weight_decay: float = 1e-2
    clip: float = 1.0
    smoothing: float = 0.0
    soft_labels: bool = False
    ema: float = 0.0
    microbatches: int = 1
    patience: int = 0
    augment: str = "none"
    balance: str = "none"
    workers: int = -1
    bank_gib: float = 3.0
    save_every: int = 0
    adversarial: str = "none"
    adversarial_eps: float = 2 / 255
    adversarial_steps: int = 3
    adversarial_beta: float = 6.0
    adversarial_replays: int = 4
    adversarial_warmup: float = 0.0

    def phases(self, stages: Sequence[str]) -> tuple[optim.Phase, ...]:
        """The phases of this recipe on a network with these stages."""
        return (optim.Phase("rules", self.rules),) if self.rules else optim.phases(self.tune, stages, bn=self.bn)

    def adversary(self, steps: int = 0) -> robust.Adversary | None:
        """Against whom a phase of so many batches trains; None where that is nobody. Raises the errors of its fields."""
        if self.adversarial == "none":
            return None
        return robust.Adversary(
            self.adversarial,
            self.adversarial_eps,
            self.adversarial_steps,
            self.adversarial_beta,
            self.adversarial_replays,
            round(self.adversarial_warmup * steps),
        )


VALIDATION_STEPS = 5  # of the attack after each epoch; chosen, not tuned


class Fitted(NamedTuple):
    """What came of a run.

    Attributes:
      variables: the whole network, on the host: of the best epoch by `chosen_by`, of the last one without validation.
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


class Job(NamedTuple):
    """The arguments of `fit` that all phases share."""

    clf: Classifier
    learn: DataSpec
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
    feed: feeds.Pictures | feeds.Bank
    validation: feeds.Pictures | feeds.Bank
    plan: loader.Plan
    state: train.TrainState
    key: jax.Array
    step: Callable[[train.TrainState, train.Examples], tuple[train.TrainState, dict[str, jax.Array]]]
    schedule: Callable[[int], Any]
    logits: Callable[[Any, Any, Any], jax.Array]
    attacked: Callable[[Any, Any, Any, Any], jax.Array] | None
    host: Callable[[train.TrainState], tuple[Any, Any]]


class Best(NamedTuple):
    """The best epoch so far: its row of the history, and the variables."""

    row: dict[str, Any]
    params: Any
    stats: Any


class Trained(NamedTuple):
    """A phase that is done."""

    state: train.TrainState
    history: list[dict[str, Any]]
    best: Best | None
    seconds: float = 0.0
    seconds_waiting: float = 0.0
    pictures: int = 0
    steps: int = 0
    skipped: tuple[Skipped, ...] = ()


def fit(
    clf: Classifier,
    variables: Variables,
    learn: DataSpec,
    validation: DataSpec,
    recipe: Recipe,
    *,
    seed: int,
    folder: Path | None = None,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    say: Callable[[str], None] = lambda line: None,
) -> Fitted:
    """Trains a classifier.

    Args:
      clf, variables: the network, its head fresh.
      learn: the pictures to learn from.
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
    job = Job(clf, as_sure(learn, recipe), validation, recipe, seed, folder, log, say)
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
            done.append(Trained(None, [], None, skipped=skipped))  # type: ignore[arg-type]
            continue
        phase = prepare(job, number, each, params, stats, opt_state)
        ended, groups = train_phase(job, number, phase), phase.groups
        done.append(ended)
        opt_state, (params, stats) = ended.state.opt_state, phase.host(ended.state)
        fed = phase.reads
        live = optim.live_norms(labels, stats)
        if recipe.bn in ("update", "reestimate"):
            moved |= live
        best = min(filter(None, (best, ended.best)), key=lambda found: chosen_by(found.row), default=None)
    if best is not None:
        params, stats = best.params, best.stats
    if recipe.bn == "reestimate" and moved:
        stats = reestimated(job, params, stats, frozenset(moved))
    history = [row for each in done for row in each.history]
    return Fitted(
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


def as_sure(learn: DataSpec, recipe: Recipe) -> DataSpec:
    """The set with its labels as sure as the recipe takes them."""
    certain = feeds.confidence(learn) is None
    if recipe.soft_labels and certain:
        raise ValueError(
            f"--soft_labels wants labels that say how sure they are; those of {learn.name} are all certain: take elpv, or a "
            "CSV with a column confidence"
        )
    if recipe.soft_labels or certain:
        return learn
    examples = tuple(dataclasses.replace(example, confidence=1.0) for example in learn.examples)
    return dataclasses.replace(learn, examples=examples)


def check_adversary(recipe: Recipe, stages: Sequence[str]) -> None:
    """ValueError where the adversary of a recipe is none that can be trained against."""
    if recipe.adversary() is None:
        return
    what = f"--adversarial={recipe.adversarial}"
    if not 0 <= recipe.adversarial_warmup <= 1:
        raise ValueError(f"--adversarial_warmup is a share of the steps in [0, 1]; got {recipe.adversarial_warmup:g}")
    if all(phase.name == "probe" for phase in recipe.phases(stages)):
        raise ValueError(f"{what} wants gradient steps, and --tune={recipe.tune} has none; take --tune=lp_ft or all")


def fit_probe(job: Job, params: Any, stats: Any) -> tuple[probe.Probe, tuple[Skipped, ...]]:
    """The head's optimum on the frozen features, and the pictures that have none."""
    variables, k = {"params": params, "batch_stats": stats}, len(job.learn.classes)
    parts, skipped = [], ()
    for spec in (job.learn, job.validation):
        found = features.extract(job.clf, variables, feeds.sources(spec), batch_size=job.recipe.batch_size)
        parts.append((found.values[found.valid], feeds.labels(spec)[found.valid]))
        skipped += found.skipped
    (values, known), held_out = parts
    weights = None
    if job.recipe.balance != "none":
        weights = np.maximum(loader.class_weights(known, k), 1e-6).astype(np.float64)
    return probe.fit(
        values,
        known,
        k,
        method=job.recipe.method,
        validation=held_out if len(held_out[1]) else None,
        refit=job.recipe.tune == "probe",  # what follows a probe is compared with it on validation
        seed=job.seed,
        class_weights=weights,
    ), skipped


# ------------------------------------------------------------------------------------------------------- before step 1


def prepare(
    job: Job,
    number: int,
    phase: optim.Phase,
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
    live, cut = optim.live_norms(labels, stats), optim.cut(labels, stages)
    if cut == "features" and not heads.pooled(clf.head):  # type: ignore[arg-type]
        cut = stages[-1]
    if recipe.adversary() and cut and recipe.bank_gib:
        raise ValueError(
            f"--adversarial={recipe.adversarial} moves pixels, and {phase.name} learns from a bank of what the frozen {cut} "
            "made of them once; take --tune=all or lp_ft, or --bank_gib=0"
        )
    feed, validation, scale = _feeds(job, cut, {"params": params, "batch_stats": stats})
    banked = isinstance(feed, feeds.Bank)
    plan = loader.Plan(
        n=len(job.learn.examples),
        batch_size=recipe.batch_size,
        epochs=max(round(recipe.epochs * phase.share), 1),
        seed=job.seed,
        weights=loader.balanced(feeds.labels(job.learn)) if recipe.balance == "sampler" else None,
    )
    lr = recipe.lr or (1e-3 if cut == "features" else 5e-3)
    adversary = recipe.adversary(len(plan))
    replays = adversary.replays if adversary and adversary.method == "free" else 1  # each is a step of the optimizer
    by_update = (schedules or optim.SCHEDULES[recipe.schedule])(lr, replays * len(plan))
    factors = optim.rate_factors(phase.rules, stages, backbone=recipe.backbone_lr, layer_decay=recipe.layer_decay)
    rule = optim.OPTIMIZERS[recipe.optimizer](recipe.weight_decay)
    optimizer = optim.partitioned(params, phase.rules, rule, by_update, factors=factors, clip=recipe.clip)

    def forward(params: Any, stats: Any, inputs: jax.Array, mode: Mode) -> tuple[Any, Any]:
        variables = {"params": params, "batch_stats": stats}
        if banked:
            output = clf.apply_from(variables, inputs, cut, mode, live=live)
        else:
            images01 = pixels.to_images01(inputs) if inputs.dtype == jnp.uint8 else inputs
            output = clf.apply(variables, images01, mode, live=live)
        return output.logits, output.stats

    mode = Mode.TRAIN if recipe.bn == "update" and live else Mode.EVAL
    k = len(job.learn.classes)
    live_forward = lambda params, stats, inputs: forward(params, stats, inputs, mode)  # noqa: E731
    hooks = robust.hooks(adversary, live_forward) if adversary else robust.Hooks()
    step = train.make_train_step(
        live_forward,
        optimizer,
        loss=hooks.loss,
        replay=hooks.replay,
        smoothing=recipe.smoothing,
        augment=None if banked else _augmenting(job.augment, always=adversary is not None),
        class_weights=loader.class_weights(feeds.labels(job.learn), k) if recipe.balance == "weights" else None,
        microbatches=recipe.microbatches,
        ema_decay=recipe.ema,
    )
    started = {**params, "head": _to_standard(params["head"], scale)}
    keys = [jax.random.fold_in(jax.random.key(job.seed), number) for _ in range(2)]
    state = train.init(started, phase.rules, optimizer, stats=stats, key=keys[0], ema=recipe.ema > 0)
    if opt_state is not None:
        state = state._replace(opt_state=optim.carry_state(opt_state, state.opt_state))

    table = optim.table(
        params,
        phase.rules,
        lr=lr,
        factors=factors,
        weight_decay=recipe.weight_decay,
        bn=recipe.bn,
        norms=optim.live_norms(dict.fromkeys(labels, "all"), stats),
        moments=2 if recipe.optimizer == "adamw" else 1,
    )
    reads = f"bank of {cut}" if banked else "pictures"
    job.say(
        f"{phase.name}: {plan.epochs} epochs of {plan.steps_per_epoch} steps of {plan.batch_size}, from "
        f"{'the ' if banked else ''}{reads}"
    )
    job.say(runlog.columns(list(table[0]), [list(row.values()) for row in table]))
    mesh = devices.mesh()
    state = devices.replicate(state, mesh)
    compiled = compiled_to_fit(job, step, state, feed)

    def host(state: train.TrainState) -> tuple[Any, Any]:
        params, stats = jax.tree.map(np.asarray, (state.averaged, state.stats))
        return {**params, "head": _from_standard(params["head"], scale)}, stats

    settled = lambda params, stats, inputs: forward(params, stats, inputs, Mode.EVAL)  # noqa: E731
    logits = jax.jit(lambda params, stats, inputs: settled(params, stats, inputs)[0])
    attacked = _attacked(adversary, settled, k, job.seed) if adversary else None
    schedule = lambda step: by_update(step * replays)  # noqa: E731
    return Phase(
        phase.name, table, reads, feed, validation, plan, state, keys[1], compiled, schedule, logits, attacked, host
    )


def compiled_to_fit(
    job: Job, step: train.Step, state: train.TrainState, feed: feeds.Pictures | feeds.Bank
) -> train.Step:
    """The step, compiled for this feed's batches; ValueError with a size that fits where memory is too small for them."""
    mesh, b = devices.mesh(), job.recipe.batch_size
    inputs = feed.blank()

    def compiled(size: int) -> Any:
        sure = None if feeds.confidence(job.learn) is None else np.ones(size, np.float32)
        blank = train.Examples(np.repeat(inputs, size, 0), np.zeros(size, np.int32), np.zeros(size, bool), sure)
        return step.lower(state, devices.shard(blank, mesh)).compile()  # type: ignore[attr-defined]

    program, room = compiled(b), devices.limit()
    if room is not None and devices.needs(program) > room:
        fits = devices.largest_batch(lambda size: devices.needs(compiled(size)), b // 2, room=room) if b > 1 else 0
        need, have = devices.needs(program) / 1e9, room / 1e9
        raise ValueError(
            f"a step of --batch_size={b} needs {need:.1f} GB and {have:.1f} GB are free; --batch_size={fits} fits, or "
            f"--microbatches={b // max(fits, 1)}"
        )
    return program


def _feeds(job: Job, cut: str, variables: Variables) -> tuple[Any, Any, tuple[np.ndarray, np.ndarray] | None]:
    """Feeds of learning and validation, and, for a bank of features, the (mean, std) by which it was standardised.

    A head sees standardised features, so that one learning rate suits every backbone; `Phase.host` undoes it.
    """
    recipe, clf = job.recipe, job.clf
    cut = "" if recipe.adversary() else cut
    once = augment.make_augment("none", size=clf.pixels.size)
    share = len(job.learn.examples) / max(len(job.learn.examples) + len(job.validation.examples), 1)
    made = {"gib": recipe.bank_gib * share, "batch_size": recipe.batch_size}
    bank = feeds.bank(clf, variables, job.learn, cut, job.augment, **made)
    if bank is None:
        workers = loader.auto_workers() if recipe.workers < 0 else recipe.workers
        read = feeds.Pictures(clf, job.learn, job.augment, workers)
        return read, read._replace(spec=job.validation), None
    held_out = feeds.bank(clf, variables, job.validation, cut, once, **{**made, "gib": float("inf")})
    assert held_out is not None  # whatever its size
    if cut != "features" or heads.kind(clf.head) != "linear":  # type: ignore[arg-type]
        return bank, held_out, None
    seen = bank.maps[bank.valid].reshape(-1, bank.maps.shape[-1])
    mean, std = seen.mean(axis=0), seen.std(axis=0) + 1e-6
    return bank.standardised(mean, std), held_out.standardised(mean, std), (mean, std)


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


def _attacked(adversary: robust.Adversary, forward: train.Forward, k: int, seed: int) -> Callable[..., jax.Array]:
    """`Phase.attacked`: projected gradient ascent on the cross-entropy at the full radius, the same start in every epoch."""
    perturb = robust.make_perturb(forward, steps=VALIDATION_STEPS)

    @jax.jit
    def attacked(params: Any, stats: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(seed), len(inputs))
        targets, eps = losses.smoothed(labels, k), jnp.float32(adversary.eps)
        moved = perturb(params, stats, keys, pixels.to_images01(inputs), targets, eps)
        return forward(params, stats, moved)[0]

    return attacked


def _augmenting(how: augment.Augment, *, always: bool = False) -> train.Augment | None:
    """`always`: pictures become numbers in [0, 1] even where nothing else is done to them."""
    if not how.words and not always:
        return None
    return lambda key, inputs, targets, valid: how.apply(key, pixels.to_images01(inputs), targets, valid)


# ------------------------------------------------------------------------------------------------------------ the loop


def train_phase(job: Job, number: int, phase: Phase) -> Trained:
    """The steps of a phase, from its newest checkpoint where there is one."""
    plan, state, best, history, stale, first = phase.plan, phase.state, None, [], 0, 0
    epoch: dict[str, float] = {}  # sums over the steps of this epoch
    mesh = devices.mesh()
    if number and (scored := validated(phase, state)):  # the phase before may not be bettered
        best = Best({"phase": phase.name, "epoch": 0, **scored}, *phase.host(state))
    with contextlib.ExitStack() as stack:
        kept = None
        if job.folder is not None:
            kept = checkpoints.open(job.folder / f"phase{number}")
            stack.callback(kept.close)
            newest, best_step = kept.latest(), kept.best()
            if best_step is not None:
                found, position, _ = kept.restore(best_step, like=_moving(state))
                if best is None or chosen_by(position["history"][-1]) < chosen_by(best.row):
                    best = Best(position["history"][-1], *phase.host(found._replace(frozen=state.frozen)))
            if newest is not None:
                found, position, _ = kept.restore(newest, like=_moving(state))
                state = found._replace(frozen=state.frozen)
                history, stale, first, epoch = (position[name] for name in ("history", "stale", "step", "epoch"))
                if position["done"]:
                    return Trained(state, history, best)
        saved = first

        def save(step: int, *, done: bool, scored: Mapping[str, float] | None = None) -> None:
            nonlocal saved
            if kept is not None and step > saved:
                position = {"step": step, "loader": feed.state(), "epoch": epoch, "history": history}
                kept.save(step, _moving(state), position={**position, "stale": stale, "done": done}, metrics=scored)
                saved = step

        source = phase.feed.training(plan, first, phase.key)
        feed = loader.prefetch(source, lambda batch: (devices.shard(batch.examples, mesh), batch.rows))
        stack.callback(feed.close)
        began, pictures, done_steps = time.monotonic(), 0, first
        pending: tuple[int, dict[str, jax.Array], np.ndarray] | None = None

        def settle() -> None:
            """Looks at the step before, while the device works on the next."""
            nonlocal pending, pictures
            if pending is None:
                return
            (step, measured, rows), pending = pending, None
            row = {name: float(value) for name, value in measured.items()}
            if not row.pop("finite"):
                # A step may have followed; the one that was not finite changed nothing.
                save(int(state.step), done=False)
                raise ValueError(not_finite(job, phase, step, row, rows))
            job.log({"phase": phase.name, "step": step, "lr": float(phase.schedule(step)), **row})
            epoch.update({name: epoch.get(name, 0.0) + value for name, value in row.items()})
            pictures += int((rows >= 0).sum())

        for step in range(first, len(plan)):
            examples, rows = next(feed)
            state, measured = phase.step(state, examples)
            settle()
            pending = (step, measured, rows)
            done_steps = step + 1
            if done_steps % plan.steps_per_epoch:
                if job.recipe.save_every and done_steps % job.recipe.save_every == 0:
                    settle()
                    save(done_steps, done=False)
                continue
            settle()
            row: dict[str, Any] = {
                "phase": phase.name,
                "epoch": done_steps // plan.steps_per_epoch,
                "lr": float(phase.schedule(step)),
                **{name: value / plan.steps_per_epoch for name, value in epoch.items()},
            }
            epoch.clear()
            scored = validated(phase, state)
            history = [*history, {**row, **scored}]
            stale += 1
            if scored and (best is None or chosen_by(scored) < chosen_by(best.row)):
                best, stale = Best(history[-1], *phase.host(state)), 0
            job.log(history[-1])
            stop = bool(job.recipe.patience and scored and stale >= job.recipe.patience)
            decides = {"chosen_by": chosen_by(scored), **scored} if scored else None  # the first is `checkpoints`' best
            save(done_steps, done=stop or done_steps == len(plan), scored=decides)
            if stop:
                job.say(f"{phase.name}: no better validation loss for {stale} epochs; stopped after {row['epoch']}")
                break
        skipped = tuple(source.skipped)
        seconds, waiting = time.monotonic() - began, feed.seconds_waiting
    return Trained(state, history, best, seconds, waiting, pictures, done_steps - first, skipped)


class Rates(NamedTuple):
    """What a learning-rate finder found: the rate to take, and (rate, smoothed loss) of each step."""

    rate: float
    curve: list[tuple[float, float]]


def find_rate(
    clf: Classifier, variables: Variables, learn: DataSpec, recipe: Recipe, *, seed: int, steps: int = 100
) -> Rates:
    """Raises the rate from 1e-6 to 1 over some steps of the last phase, and takes a tenth of where the smoothed loss is least.

    Stops where the loss is four times its least. The variables are left as they are.

    Reference: Smith 2017, arXiv:1506.01186, section 3.3; smoothing (0.9) and the tenth as in fastai's `lr_find`.
    """
    per_epoch = -(-len(learn.examples) // recipe.batch_size)
    tried = dataclasses.replace(recipe, lr=1.0, epochs=-(-steps // per_epoch), ema=0.0)
    none = dataclasses.replace(learn, examples=(), skipped=())
    job = Job(clf, as_sure(learn, recipe), none, tried, seed, None, lambda row: None, lambda line: None)
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


def _moving(state: train.TrainState) -> train.TrainState:
    """The state without its frozen leaves, which every run has anew from the pretrained weights."""
    return state._replace(frozen={})


def chosen_by(row: Mapping[str, float]) -> float:
    """The figure by which epochs are compared, smaller is better: the loss, or the error under attack where one is trained on.

    Between equal errors the loss under attack decides, at a millionth: alone it would prefer a network that is sure of nothing.

    Reference: Rice et al. 2020, arXiv:2002.11569, section 3 (robust error has its minimum early in training).
    """
    if "val_robust_top1" in row:
        return 1.0 - row["val_robust_top1"] + 1e-6 * row["val_robust_nll"]
    return row["val_nll"]


def validated(phase: Phase, state: train.TrainState) -> dict[str, float]:
    """`val_nll` and `val_top1` of the pictures of validation that can be read; {} where there are none.

    Where there is an adversary, `val_robust_nll` and `val_robust_top1` too.
    """
    found: dict[str, float] = {}
    ways = {"val_": lambda params, stats, examples: phase.logits(params, stats, examples.inputs)}
    if attacked := phase.attacked:
        ways = {**ways, "val_robust_": lambda p, s, examples: attacked(p, s, examples.inputs, examples.labels)}
    for prefix, ask in ways.items():
        logits, known = logits_of(phase, state, ask)
        if not len(known):
            return {}
        if not np.isfinite(logits).all():
            raise ValueError(
                f"{phase.name}: logits of validation pictures are not finite; lower --lr, or the rate of a group"
            )
        whole = metrics.summarise(logits, known)
        found |= {f"{prefix}nll": whole["nll"], f"{prefix}top1": whole["top1"]}
    return found


def logits_of(
    phase: Phase, state: train.TrainState, ask: Callable[[Any, Any, train.Examples], jax.Array]
) -> tuple[np.ndarray, np.ndarray]:
    """Logits f32[n k], as `ask` gives them, and labels i32[n] of the validation pictures."""
    mesh, rows, known = devices.mesh(), [np.zeros((0, 1), np.float32)], [np.zeros(0, np.int32)]
    for examples, _ in phase.validation.evaluation(phase.plan.batch_size):
        logits = np.asarray(ask(state.averaged, state.stats, devices.shard(examples, mesh)))
        rows.append(logits[examples.valid])
        known.append(np.asarray(examples.labels)[examples.valid])
    return np.concatenate(rows[1:] or rows), np.concatenate(known)


def not_finite(job: Job, phase: Phase, step: int, row: Mapping[str, float], rows: np.ndarray) -> str:
    """The sentence for a step whose loss or gradient is not finite."""
    names = [str(job.learn.examples[i].path) for i in rows if i >= 0]
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    kept = f"; the last good state is kept in {job.folder}" if job.folder is not None else ""
    return (
        f"step {step} of {phase.name}: loss {row['loss']:.4g} and gradient norm {row['grad_norm']:.4g}, wanted finite "
        f"numbers: lower --lr, or look at its pictures with doctor ({listed}){kept}"
    )


def reestimated(job: Job, params: Any, stats: Any, live: frozenset[str]) -> Any:
    """Statistics counted anew over the training pictures as they are: the average over batches, without momentum.

    Reference: Izmailov et al. 2018, arXiv:1803.05407, section 3.2 (BatchNorm statistics after averaging weights).
    """
    clf, b = job.clf, min(job.recipe.batch_size, len(job.learn.examples))
    specs = norms(clf.spec.module, params["backbone"], stats["backbone"], len(clf.pixels.mean))
    old = paths.flatten(stats["backbone"])
    counted = {name for name in old if optim.layer_of(name) in live}
    zero = paths.unflatten({name: np.zeros_like(leaf) if name in counted else leaf for name, leaf in old.items()})

    @jax.jit
    def moved(params: Any, stats: Any, images: jax.Array) -> Any:
        """What a batch adds to statistics of zero: `momentum` times its own."""
        variables = {"params": params, "batch_stats": {"backbone": stats}}
        return clf.apply(variables, pixels.to_images01(images), Mode.TRAIN, live=live).stats["backbone"]

    sums, count, on_device = None, 0, jax.device_put((params, zero))
    for examples, _ in feeds.Pictures(clf, job.learn, job.augment).evaluation(b):
        if examples.valid.all():  # a batch with empty slots has other statistics
            found = paths.flatten(moved(*on_device, examples.inputs))
            sums = found if sums is None else {name: sums[name] + leaf for name, leaf in found.items()}
            count += 1
    if sums is None:
        raise ValueError(f"--bn=reestimate found no batch of {b} whole pictures; take a smaller --batch_size")
    new = {name: np.asarray(sums[name]) / (count * specs[name.rpartition("/")[0]].momentum) for name in counted}
    return {**stats, "backbone": paths.unflatten({**old, **new})}
