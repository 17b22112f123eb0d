"""Auto-PGD: projected gradient ascent whose step size halves where progress stalls."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tl.attacks import goals
from tl.attacks.base import (
    Best,
    Search,
    Task,
    check_counts,
    fold_in_each,
    update_best,
    usable_gradient,
)
from tl.attacks.slots import expand, select

# alpha of Croce & Hein 2020, section 3.1: weight of the new step; the rest repeats the last move.
MOMENTUM = 0.75
# rho of section 3.2: share of improving steps below which the step size is too large.
IMPROVING_SHARE = 0.75
# Checkpoints in percent of the steps, section 3.3: 22 % first; each next interval is 3 % shorter
# than the one before, but at least 6 %.
CHECKPOINTS = (0, 22, 41, 57, 70, 80, 87, 93, 99)
# Number of target classes of APGD-T, section 5.
TARGETS = 9

Loss = Callable[[jax.Array], jax.Array]
"""`logits f32[b k] -> f32[b]`, to be maximized."""


def interval_length(k: jax.Array, steps: jax.Array) -> jax.Array:
    """Steps since the last checkpoint if step k is one, else 0; i32[b] all.

    The step size may be halved at checkpoints.

    Reference: Croce & Hein 2020, arXiv:2003.01690, section 3.3, equation 5.

    Example:
      >>> interval_length(jnp.array([22, 23, 41]), jnp.full(3, 100)).tolist()
      [22, 0, 19]
    """
    places = -(-jnp.asarray(CHECKPOINTS)[None] * steps[:, None] // 100)
    at_checkpoint = jnp.any(places == k[:, None], axis=1) & (k > 0)
    previous = jnp.max(jnp.where(places < k[:, None], places, 0), axis=1)
    return jnp.where(at_checkpoint, k - previous, 0)


class _Peak(NamedTuple):
    """The best point of one start, x_max in algorithm 1."""

    x: jax.Array
    loss: jax.Array
    gradient: jax.Array


class _State(NamedTuple):
    """Each image at x, after k steps from the start with index `start`.

    Attributes:
      previous, loss: the point that the last step left, and its loss.
      peak: the best point of this start.
      size: step size.
      improved: number of improving steps since the last checkpoint.
      halved: whether the step size was halved at the last checkpoint.
      checkpoint_loss: the peak's loss at the last checkpoint.
    """

    x: jax.Array
    k: jax.Array
    start: jax.Array
    previous: jax.Array
    loss: jax.Array
    peak: _Peak
    size: jax.Array
    improved: jax.Array
    halved: jax.Array
    checkpoint_loss: jax.Array
    best: Best
    finished: jax.Array


def _apgd_search(
    make_loss: Callable[[Task, jax.Array], Loss],
    *,
    steps: int,
    starts: Callable[[int], int] | int,
) -> Search:
    """Algorithm 1 from several starts; an image stops at its first success.

    Args:
      make_loss: `(task, start i32[b]) -> loss`.
      steps: per start.
      starts: number of starts, or a function of the number of classes.
    """

    def begin(task: Task, start: jax.Array, best: Best) -> _State:
        x = task.norm.start(fold_in_each(task.keys, start), task.center, task.eps)
        zero, no = jnp.zeros_like(task.eps), jnp.zeros_like(best.solved)
        low = jnp.full_like(task.eps, -jnp.inf)
        return _State(
            x=x,
            k=jnp.zeros_like(start),
            start=start,
            previous=x,
            loss=low,
            peak=_Peak(x, low, jnp.zeros_like(x)),
            size=task.step_size,
            improved=zero,
            halved=no,
            checkpoint_loss=low,
            best=best,
            finished=no,
        )

    def init(task: Task, best: Best) -> _State:
        return begin(task, jnp.zeros_like(best.solved, jnp.int32), best)

    def step(task: Task, state: _State) -> _State:
        loss = make_loss(task, state.start)
        count = starts if isinstance(starts, int) else starts(task.clean.shape[1])

        def total(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            logits = task.logits(task.saved(x))
            values = loss(logits)
            return jnp.sum(values), (values, logits)

        (_, (values, logits)), gradient = jax.value_and_grad(total, has_aux=True)(state.x)
        best = update_best(state.best, state.x, *task.judge(logits))
        best = best._replace(has_gradient=best.has_gradient | usable_gradient(gradient))
        current = _Peak(state.x, values, gradient)
        peak = select(values > state.peak.loss, current, state.peak)
        first = state.k == 0
        checkpoint_loss = jnp.where(first, values, state.checkpoint_loss)

        length = interval_length(state.k, task.steps).astype(jnp.float32)
        at_checkpoint = length > 0
        improved = state.improved + (~first & (values > state.loss)).astype(jnp.float32)
        condition_1 = improved < IMPROVING_SHARE * length
        condition_2 = ~state.halved & (peak.loss == checkpoint_loss)
        halve = at_checkpoint & (condition_1 | condition_2)
        here = select(halve, peak, current)
        size = jnp.where(halve, 0.5 * state.size, state.size)

        direction = task.norm.direction(here.gradient)
        ahead = task.project(here.x + expand(size, state.x) * direction)
        share = expand(jnp.where(first, 1.0, MOMENTUM), state.x)
        next_x = here.x + share * (ahead - here.x) + (1.0 - share) * (here.x - state.previous)
        last = state.k == task.steps
        next_ = _State(
            x=task.project(next_x),
            k=state.k + 1,
            start=state.start,
            previous=here.x,
            loss=here.loss,
            peak=peak,
            size=size,
            improved=jnp.where(at_checkpoint, 0.0, improved),
            halved=jnp.where(at_checkpoint, halve, state.halved),
            checkpoint_loss=jnp.where(at_checkpoint, peak.loss, checkpoint_loss),
            best=best,
            finished=best.solved | (last & (state.start + 1 == count)),
        )
        if count == 1:
            return next_

        def restart(next_: _State) -> _State:
            fresh = begin(task, state.start + 1, next_.best)
            return select(last & ~next_.finished, fresh, next_)

        return jax.lax.cond(jnp.any(last), restart, lambda next_: next_, next_)

    return Search(init, step, steps, lambda eps, steps: 2.0 * eps)


def apgd(*, steps: int = 100, restarts: int = 1, loss: str = "ce") -> Search:
    """Auto-PGD: ascent with momentum, whose step size of 2 eps halves where progress stalls.

    After halving, it continues at the best point. An image stops at its first success; later starts
    are for the other images. In L1 the step is that of SLIDE, not that of Croce & Hein 2021
    (arXiv:2103.01208), whose share of coordinates adapts.

    Args:
      steps: traced; 100 is the paper's.
      restarts: static; random starts, one after another.
      loss: the loss that is maximized, a row of `goals.LOSSES`: "ce" is APGD-CE, "dlr" APGD-DLR.
        Images that failed are ranked by the goal's own score.

    Raises:
      ValueError: steps or restarts below 1, or an unknown loss; when called, too few classes for
        the loss.

    Reference: Croce & Hein 2020, arXiv:2003.01690, algorithm 1.
    """
    check_counts(steps=steps, restarts=restarts)
    goals.get("untargeted", loss)

    def make_loss(task: Task, start: jax.Array) -> Loss:
        score = goals.get("untargeted" if task.goal.away else "targeted", loss).score
        return lambda logits: score(logits, task.class_mask)

    return _apgd_search(make_loss, steps=steps, starts=restarts)


def apgd_t(*, steps: int = 100, restarts: int = 1, targets: int = TARGETS) -> Search:
    """Targeted Auto-PGD: APGD with the targeted DLR loss towards one class after another.

    The targets are the classes that meet the goal, by falling clean logit. Any class that meets the
    goal ends an image's search, whichever was the target. With a targeted goal the targets are the
    classes of its group, repeated where the group is smaller. With fewer than four classes, for
    which the loss is not defined, the margin is maximized. Other arguments as in `apgd`.

    Args:
      restarts: random starts per target.
      targets: static; number of targets, at most the number of classes minus one.

    Reference: Croce & Hein 2020, arXiv:2003.01690, section 4.2 and equation 7.
    """
    check_counts(steps=steps, restarts=restarts, targets=targets)
    count = lambda k: min(targets, max(k - 1, 1))

    def make_loss(task: Task, start: jax.Array) -> Loss:
        k = task.clean.shape[1]
        if k < 4:
            return lambda logits: goals.margin(logits, task.success_mask)
        target = goals.likeliest(task.clean, task.success_mask, jnp.mod(start, count(k)))
        leave = task.class_mask if task.goal.away else None
        return lambda logits: goals.targeted_dlr(logits, target, leave)

    return _apgd_search(make_loss, steps=steps, starts=lambda k: restarts * count(k))
