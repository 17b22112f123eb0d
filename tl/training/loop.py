"""The training loop of one phase: steps, validation, the best epoch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import devices, metrics
from tl.data import Skipped
from tl.data.feed import prefetch
from tl.training import checkpoints, step
from tl.training.phase import FitContext, Phase


class Best(NamedTuple):
    """The best epoch so far: its row of the history, and the variables."""

    row: dict[str, Any]
    params: Any
    stats: Any


class PhaseResult(NamedTuple):
    """A phase that is done."""

    state: step.TrainState
    history: list[dict[str, Any]]
    best: Best | None
    seconds: float = 0.0
    seconds_waiting: float = 0.0
    pictures: int = 0
    steps: int = 0
    skipped: tuple[Skipped, ...] = ()


# ------------------------------------------------------------------------------------------------------------ the loop


def train_phase(job: FitContext, number: int, phase: Phase) -> PhaseResult:
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
                if best is None or selection_metric(position["history"][-1]) < selection_metric(
                    best.row
                ):
                    best = Best(
                        position["history"][-1], *phase.host(found._replace(frozen=state.frozen))
                    )
            if newest is not None:
                found, position, _ = kept.restore(newest, like=_moving(state))
                state = found._replace(frozen=state.frozen)
                history, stale, first, epoch = (
                    position[name] for name in ("history", "stale", "step", "epoch")
                )
                if position["done"]:
                    return PhaseResult(state, history, best)
        saved = first

        def save(step: int, *, done: bool, scored: Mapping[str, float] | None = None) -> None:
            nonlocal saved
            if kept is not None and step > saved:
                position = {
                    "step": step,
                    "loader": feed.state(),
                    "epoch": epoch,
                    "history": history,
                }
                kept.save(
                    step,
                    _moving(state),
                    position={**position, "stale": stale, "done": done},
                    metrics=scored,
                )
                saved = step

        source = phase.feed.training(plan, first, phase.key)
        feed = prefetch(source, lambda batch: (devices.shard(batch.examples, mesh), batch.rows))
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
            if scored and (best is None or selection_metric(scored) < selection_metric(best.row)):
                best, stale = Best(history[-1], *phase.host(state)), 0
            job.log(history[-1])
            stop = bool(job.recipe.patience and scored and stale >= job.recipe.patience)
            decides = (
                {"chosen_by": selection_metric(scored), **scored} if scored else None
            )  # the first is `checkpoints`' best
            save(done_steps, done=stop or done_steps == len(plan), scored=decides)
            if stop:
                job.say(
                    f"{phase.name}: no better validation loss for {stale} epochs; stopped after {row['epoch']}"
                )
                break
        skipped = tuple(source.skipped)
        seconds, waiting = time.monotonic() - began, feed.seconds_waiting
    return PhaseResult(
        state, history, best, seconds, waiting, pictures, done_steps - first, skipped
    )


def _moving(state: step.TrainState) -> step.TrainState:
    """The state without its frozen leaves, which every run has anew from the pretrained weights."""
    return state._replace(frozen={})


def selection_metric(row: Mapping[str, float]) -> float:
    """The figure by which epochs are compared, smaller is better: the loss, or the error under attack where one is trained on.

    Between equal errors the loss under attack decides, at a millionth: alone it would prefer a network that is sure of nothing.

    Reference: Rice et al. 2020, arXiv:2002.11569, section 3 (robust error has its minimum early in training).
    """
    if "val_robust_top1" in row:
        return 1.0 - row["val_robust_top1"] + 1e-6 * row["val_robust_nll"]
    return row["val_nll"]


def validated(phase: Phase, state: step.TrainState) -> dict[str, float]:
    """`val_nll` and `val_top1` of the pictures of validation that can be read; {} where there are none.

    Where there is an adversary, `val_robust_nll` and `val_robust_top1` too.
    """
    found: dict[str, float] = {}
    ways = {"val_": lambda params, stats, examples: phase.logits(params, stats, examples.inputs)}
    if attacked := phase.attacked:
        ways = {
            **ways,
            "val_robust_": lambda p, s, examples: attacked(p, s, examples.inputs, examples.labels),
        }
    for prefix, ask in ways.items():
        logits, known = logits_of(phase, state, ask)
        if not len(known):
            return {}
        if not np.isfinite(logits).all():
            raise ValueError(
                f"{phase.name}: logits of validation pictures are not finite; lower --lr, or the rate of a group"
            )
        whole = metrics.summarize(logits, known)
        found |= {f"{prefix}nll": whole["nll"], f"{prefix}top1": whole["top1"]}
    return found


def logits_of(
    phase: Phase, state: step.TrainState, ask: Callable[[Any, Any, step.Examples], jax.Array]
) -> tuple[np.ndarray, np.ndarray]:
    """Logits f32[n k], as `ask` gives them, and labels i32[n] of the validation pictures."""
    mesh, rows, known = devices.mesh(), [np.zeros((0, 1), np.float32)], [np.zeros(0, np.int32)]
    for examples, _ in phase.validation.evaluation(phase.plan.batch_size):
        logits = np.asarray(ask(state.averaged, state.stats, devices.shard(examples, mesh)))
        rows.append(logits[examples.valid])
        known.append(np.asarray(examples.labels)[examples.valid])
    return np.concatenate(rows[1:] or rows), np.concatenate(known)


def not_finite(
    job: FitContext, phase: Phase, step: int, row: Mapping[str, float], rows: np.ndarray
) -> str:
    """The sentence for a step whose loss or gradient is not finite."""
    names = [str(job.train_set.examples[i].path) for i in rows if i >= 0]
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    kept = f"; the last good state is kept in {job.folder}" if job.folder is not None else ""
    return (
        f"step {step} of {phase.name}: loss {row['loss']:.4g} and gradient norm {row['grad_norm']:.4g}, wanted finite "
        f"numbers: lower --lr, or look at its pictures with doctor ({listed}){kept}"
    )
