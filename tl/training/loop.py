"""The training loop of one phase: steps, validation, checkpoints, the best epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import devices, hosts, ledger, metrics, ops
from tl.data import Skipped
from tl.data.feed import prefetch
from tl.data.plan import Plan
from tl.training import checkpoints, step
from tl.training.phase import Phase
from tl.training.program import FitContext


@contextlib.contextmanager
def _closing(store: checkpoints.Checkpoints) -> Iterator[None]:
    try:
        yield
    finally:
        with ledger.spent("checkpoint"):
            store.close()


# What a process can ask of all after a step.
SAVE, STOP = 1, 2


class Best(NamedTuple):
    """The best epoch so far: its row of the history, and its variables."""

    row: dict[str, Any]
    params: Any
    stats: Any


class PhaseResult(NamedTuple):
    """A completed phase, with the fields of `fit.FitResult`; `state` is None for a probe.

    After a resume, `seconds` and `images` are of this process; all others are of the whole phase.
    """

    state: step.TrainState | None
    history: list[dict[str, Any]]
    best: Best | None
    seconds: float = 0.0
    seconds_waiting: float = 0.0
    images: int = 0
    steps: int = 0
    skipped: tuple[Skipped, ...] = ()


def train_phase(context: FitContext, number: int, phase: Phase) -> PhaseResult:
    """Runs the steps of a phase, starting from its newest checkpoint if there is one.

    Raises:
      ValueError: a loss or gradient that is not finite, after the last finite state is saved.
    """
    plan, state, best, history, stale, first = phase.plan, phase.state, None, [], 0, 0
    skipped: tuple[Skipped, ...] = ()  # before this process
    epoch: dict[str, float] = {}  # sums over the steps of this epoch, as `_add`
    mesh = devices.mesh()
    agreement, agreed = hosts.Agreement(mesh), 0
    if number and (scores := validate(phase, state)):  # the phase before may remain the best
        best = Best({"phase": phase.name, "epoch": 0, **scores}, *phase.host(state))
    with hosts.deferred(), contextlib.ExitStack() as stack:
        store = None
        if context.folder is not None:
            store = checkpoints.open(context.folder / f"phase{number}")
            stack.enter_context(_closing(store))
            newest, best_step = store.latest(), store.best()
            if best_step is not None:
                restored, position, _ = store.restore(best_step, like=_without_frozen(state))
                row = position["history"][-1]
                if best is None or selection_metric(row) < selection_metric(best.row):
                    best = Best(row, *phase.host(restored._replace(frozen=state.frozen)))
            if newest is not None:
                restored, position, _ = store.restore(newest, like=_without_frozen(state))
                _same_plan(plan, position["loader"])
                state = restored._replace(frozen=state.frozen)
                history, stale, first, epoch = (
                    position[name] for name in ("history", "stale", "step", "epoch")
                )
                if epoch and "weight" not in epoch:
                    epoch = _from_older(epoch, first % plan.steps_per_epoch, plan.batch_size)
                skipped = tuple(Skipped(*row) for row in position.get("skipped", ()))
                if position["done"]:
                    return PhaseResult(state, history, best, steps=first, skipped=skipped)
        context.resumed(phase.name, first)
        last_saved, saved_at = first, time.monotonic()

        def save(step: int, *, final: bool, scores: Mapping[str, float] | None = None) -> None:
            nonlocal last_saved, saved_at, agreed
            agreed = STOP if agreed == STOP else 0
            saved_at = time.monotonic()
            # After an interrupted validation, the checkpoint of this step is written again.
            again = step == first and not epoch
            if store is not None and (step > last_saved or again):
                position = {
                    "step": step,
                    "loader": batches.state(),
                    "epoch": epoch,
                    "history": history,
                    "stale": stale,
                    "done": final,
                    "skipped": [list(skip) for skip in all_skipped()],
                }
                tree = _without_frozen(state)
                with ledger.spent("checkpoint"):
                    store.save(step, tree, position=position, metrics=scores, replace=again)
                last_saved = step

        def all_skipped() -> tuple[Skipped, ...]:
            of_all = hosts.gather(tuple(source.skipped))
            return tuple(dict.fromkeys((*skipped, *(skip for some in of_all for skip in some))))

        def request() -> int:
            """What this process asks of all: to stop, to save, or nothing."""
            if hosts.signalled():
                return STOP
            minutes = context.recipe.save_minutes
            due = bool(minutes) and time.monotonic() - saved_at > 60 * minutes
            return SAVE if due and hosts.first() else 0

        def stop_if_agreed() -> None:
            if agreed == STOP:
                save(steps_done, final=False)
                hosts.stop_together()

        source = phase.train_inputs.training(plan, first, phase.key)
        batches = prefetch(source, lambda batch: (devices.shard(batch.examples, mesh), batch.rows))
        stack.callback(batches.close)
        start, images, steps_done = time.monotonic(), 0, first
        pending: tuple[int, dict[str, jax.Array], np.ndarray, Any] | None = None

        def settle() -> str:
            """Reads the metrics of the previous step while the device computes the next one.

            Returns an error if they are not finite; such a step has changed nothing.
            """
            nonlocal pending, images, agreed
            if pending is None:
                return ""
            (step, values, rows, asked), pending = pending, None
            agreed = max(agreed, int(asked))
            row = {name: float(value) for name, value in values.items()}
            weight, count = row.pop("weight"), row.pop("images")
            if not row.pop("finite"):
                return not_finite_message(context, phase, step, row, rows)
            rate = float(phase.schedule(step))
            context.log({"phase": phase.name, "step": step, "lr": rate, **row})
            _add(epoch, row, weight=weight, images=count)
            images += int(count)
            return ""

        def finish_epoch(error: str) -> bool:
            """Validates and saves; returns whether the phase ends."""
            nonlocal best, stale, history
            row: dict[str, Any] = {
                "phase": phase.name,
                "epoch": steps_done // plan.steps_per_epoch,
                "lr": float(phase.schedule(steps_done - 1)),
                **_means(epoch),
            }
            try:
                with ledger.spent("evaluation"):
                    scores = validate(phase, state, lambda: check(agreement))
            except hosts.Preempted:
                save(steps_done, final=False)
                raise
            except ValueError:
                if not error:
                    raise
                scores = {}
            epoch.clear()
            history = [*history, {**row, **scores}]
            stale += 1
            if scores and (best is None or selection_metric(scores) < selection_metric(best.row)):
                best, stale = Best(history[-1], *phase.host(state)), 0
            context.log(history[-1])
            stop = bool(context.recipe.patience and scores and stale >= context.recipe.patience)
            # `Checkpoints.best` compares the first metric.
            compared = {"selection_metric": selection_metric(scores), **scores} if scores else None
            save(steps_done, final=stop or steps_done == len(plan), scores=compared)
            if error:
                raise ValueError(error)
            if stop:
                context.say(
                    f"{phase.name}: stopped after epoch {row['epoch']}, because the last {stale} "
                    "epochs were not better on the validation set"
                )
            return stop

        stack.enter_context(ledger.spent("work"))
        # Of an epoch whose validation was interrupted.
        stop = finish_epoch("") if epoch and first % plan.steps_per_epoch == 0 else False
        for step in range(first, first if stop else len(plan)):
            with ledger.spent("data"):
                examples, rows = next(batches)
            state, values = phase.step(state, examples)
            asked = agreement.ask(request())
            hosts.advance()
            error = settle()
            pending = (step, values, rows, asked)
            steps_done = step + 1
            ends = steps_done % plan.steps_per_epoch == 0
            due = context.recipe.save_every and steps_done % context.recipe.save_every == 0
            if ends or due or error or agreed:
                error = error or settle()
                settle()
            if not error:
                stop_if_agreed()
            if ends:
                if finish_epoch(error):
                    break
            elif due or error or agreed:
                save(steps_done, final=False)
                if error:
                    raise ValueError(error)
        skipped = all_skipped()
        seconds, waiting = time.monotonic() - start, batches.seconds_waiting
    return PhaseResult(state, history, best, seconds, waiting, images, steps_done, skipped)


# The figures of a step whose mean over an epoch is weighted: name -> name of the weight. All
# others, such as the norm of the gradient, are means over steps.
_WEIGHTS = {"loss": "weight", "accuracy": "images"}


def _add(
    epoch: dict[str, float], row: Mapping[str, float], *, weight: float, images: float
) -> None:
    """Adds the figures of a step to the sums of an epoch.

    Args:
      epoch: name -> sum of the figure times its weight, and the sums of the weights.
      row: the figures.
      weight, images: as in the metrics of `step.make_train_step`.
    """
    weights = {"weight": weight, "images": images, "steps": 1.0}
    terms = {name: value * weights[_WEIGHTS.get(name, "steps")] for name, value in row.items()}
    for name, value in (terms | weights).items():
        epoch[name] = epoch.get(name, 0.0) + value


def _from_older(sums: Mapping[str, float], steps: int, batch_size: int) -> dict[str, float]:
    """The sums of an epoch from a checkpoint of an older version, which weighted steps equally.

    Its number of "steps" may be missing; all but the last of an epoch have full batches.
    """
    steps = int(sums.get("steps", steps))
    weighted = {
        name: value * (batch_size if name in _WEIGHTS else 1) for name, value in sums.items()
    }
    return weighted | {"weight": steps * batch_size, "images": steps * batch_size, "steps": steps}


def _means(epoch: Mapping[str, float]) -> dict[str, float]:
    """The means of the figures of an epoch: over its images for loss and accuracy."""
    names = [name for name in epoch if name not in ("weight", "images", "steps")]
    return {n: epoch[n] / max(epoch[_WEIGHTS.get(n, "steps")], 1e-12) for n in names}


def _same_plan(plan: Plan, saved: Mapping[str, Any]) -> None:
    """Raises ValueError if the saved position is one of another plan, with each difference."""
    changes = [
        f"`{name}` was {saved[name]!r}, is {value!r}"
        for name, value in plan.identity().items()
        if name in saved and saved[name] != value
    ]
    if changes:
        raise ValueError(
            f"the checkpoint was written in another order of images: {'; '.join(changes)}; use the "
            "images and settings of its start"
        )


def _without_frozen(state: step.TrainState) -> step.TrainState:
    """The state without frozen parameters, which every run loads from the pretrained weights."""
    return state._replace(frozen={})


def selection_metric(row: Mapping[str, float]) -> float:
    """The quantity that selects the best epoch; smaller is better.

    The validation loss or, with adversarial training, the validation error under attack. Ties in
    that error are broken by the loss under attack (weight 1e-6); that loss alone would favor
    underconfident networks.

    Reference:
      Rice et al. 2020, arXiv:2002.11569, section 3 (the robust error has its minimum early in
      training).
    """
    if "val_robust_top1" in row:
        return 1.0 - row["val_robust_top1"] + 1e-6 * row["val_robust_nll"]
    return row["val_nll"]


def check(agreement: hosts.Agreement) -> None:
    """Raises `Preempted` in all processes after SIGTERM to one of them."""
    if int(agreement.ask(STOP if hosts.signalled() else 0)) == STOP:
        hosts.stop_together()


def validate(
    phase: Phase, state: step.TrainState, between: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """`val_nll` and `val_top1` on the readable validation images; {} without any.

    With an adversary also `val_robust_nll` and `val_robust_top1`. `between` is called before each
    batch.

    Raises:
      ValueError: logits that are not finite.
    """
    scores: dict[str, float] = {}
    functions: dict[str, Callable[..., jax.Array]] = {
        "val_": lambda params, stats, batch: phase.logits(params, stats, batch.inputs)
    }
    if attacked := phase.attacked_logits:
        functions["val_robust_"] = lambda p, s, batch: attacked(p, s, batch.inputs, batch.labels)
    for prefix, function in functions.items():
        logits, labels = validation_logits(phase, state, function, between)
        if not len(labels):
            return {}
        if not np.isfinite(logits).all():
            raise ValueError(
                f"{phase.name}: logits of validation images are not finite; lower `lr`, or the "
                "rate of a group"
            )
        summary = metrics.summarize(logits, labels)
        scores |= {f"{prefix}nll": summary["nll"], f"{prefix}top1": summary["top1"]}
    return scores


def validation_logits(
    phase: Phase,
    state: step.TrainState,
    function: Callable[[Any, Any, step.Examples], jax.Array],
    between: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Logits f32[n k] and labels i32[n] of the validation images.

    Args:
      phase: the phase, which holds the images.
      state: its averaged parameters and statistics are used.
      function: `(params, stats, batch) -> logits`.
      between: called before each batch.
    """
    mesh, rows, labels = devices.mesh(), [np.zeros((0, 1), np.float32)], [np.zeros(0, np.int32)]
    for batch, _ in phase.validation_inputs.evaluation(phase.plan.batch_size):
        between()
        hosts.advance()
        sharded = devices.shard(batch, mesh)
        with ops.batch_sharded(mesh):
            logits = function(state.averaged, state.averaged_stats, sharded)
        logits, targets, valid = devices.fetch((logits, sharded.labels, sharded.valid))
        rows.append(logits[valid])
        labels.append(targets[valid])
    return np.concatenate(rows[1:] or rows), np.concatenate(labels)


def not_finite_message(
    context: FitContext, phase: Phase, step: int, row: Mapping[str, float], rows: np.ndarray
) -> str:
    """The error for a step whose loss or gradient is not finite."""
    names = [str(context.train_set.examples[i].path) for i in rows if i >= 0]
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    saved = "" if context.folder is None else f"; the last finite state is in {context.folder}"
    return (
        f"step {step} of {phase.name}: got loss {row['loss']:.4g} and gradient norm "
        f"{row['grad_norm']:.4g}, expected finite numbers; lower `lr`, or examine the images of "
        f"this step with doctor ({listed}){saved}"
    )
