"""Auto-PGD: gradient ascent whose steps shrink by themselves where an image's climb stalls. No step size to choose."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl.attacks import goals
from tl.attacks.base import Best, Search, Task, check_counts, fold_in_each, update_best
from tl.attacks.slots import choose, rows

MOMENTUM = 0.75  # alpha, Croce & Hein 2020, section 3.1: the share of the new step; the rest goes on as before
RISES = 0.75  # rho, section 3.2: the share of steps uphill below which a step size is too large
TARGETS = 9  # section 5, of APGD-T

Loss = Callable[[jax.Array], jax.Array]
"""`logits f32[b k] -> f32[b]`, to be maximised."""


def checkpoints(steps: int) -> list[int]:
    """Steps after which the step size is looked at, from 0, at shrinking distances.

    Reference: Croce & Hein 2020, arXiv:2003.01690, section 3.3, equation 5.

    Example:
      >>> checkpoints(100)
      [0, 22, 41, 57, 70, 80, 87, 93, 99]
    """
    shares, gap = [0.0, 0.22], 0.22
    while shares[-1] <= 1:
        gap = max(gap - 0.03, 0.06)
        shares.append(shares[-1] + gap)
    return sorted(
        {min(math.ceil(round(share * steps, 6)), steps) for share in shares if share <= 1}
    )


class _Peak(NamedTuple):
    """Algorithm 1's x_max: the highest point of this climb."""

    x: jax.Array
    loss: jax.Array
    gradient: jax.Array


class _Climb(NamedTuple):
    """Where each image's climb is: x is to be looked at after k steps of the climb of that number.

    `before` is the point that the last step left, `loss` was there; `rises` counts steps uphill since the last checkpoint, at
    which `halved` the step was halved or not, and the peak's loss was `top`.
    """

    x: jax.Array
    k: jax.Array
    number: jax.Array
    before: jax.Array
    loss: jax.Array
    peak: _Peak
    size: jax.Array
    rises: jax.Array
    halved: jax.Array
    top: jax.Array
    best: Best
    done: jax.Array


def _climbs(
    loss: Callable[[Task, jax.Array], Loss], *, steps: int, tries: Callable[[int], int] | int
) -> Search:
    """Algorithm 1, `tries` times, or as often as it says for k classes, on `loss(task, number i32[b])`.

    An image stops where it is solved.
    """
    places = checkpoints(steps)
    width = np.zeros(steps + 1, np.float32)  # of the interval that ends here, 0 where none does
    width[places[1:]] = np.diff(places)

    def begin(task: Task, number: jax.Array, best: Best) -> _Climb:
        x = task.norm.start(fold_in_each(task.keys, number), task.center, task.eps)
        low = jnp.full_like(task.eps, -jnp.inf)
        flat, no = jnp.zeros_like(task.eps), jnp.zeros_like(best.solved)
        peak = _Peak(x, low, jnp.zeros_like(x))
        return _Climb(
            x, jnp.zeros_like(number), number, x, low, peak, task.step_size, flat, no, low, best, no
        )

    def init(task: Task, best: Best) -> _Climb:
        return begin(task, jnp.zeros_like(best.solved, jnp.int32), best)

    def step(task: Task, at: _Climb) -> _Climb:
        climbed = loss(task, at.number)
        often = tries if isinstance(tries, int) else tries(task.clean.shape[1])

        def total(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            answer = task.logits(task.saved(x))
            value = climbed(answer)
            return jnp.sum(value), (value, answer)

        (_, (value, answer)), gradient = jax.value_and_grad(total, has_aux=True)(at.x)
        best = update_best(at.best, at.x, *task.judge(answer))
        peak = choose(value > at.peak.loss, _Peak(at.x, value, gradient), at.peak)
        first = at.k == 0
        top = jnp.where(first, value, at.top)

        due = jnp.asarray(width)[at.k]
        rises = at.rises + (~first & (value > at.loss)).astype(jnp.float32)
        slow = rises < RISES * due  # condition 1
        stuck = ~at.halved & (peak.loss == top)  # condition 2
        halve = (due > 0) & (slow | stuck)
        here = choose(halve, peak, _Peak(at.x, value, gradient))
        size = jnp.where(halve, 0.5 * at.size, at.size)

        ahead = task.project(here.x + rows(size, at.x) * task.norm.direction(here.gradient))
        share = rows(jnp.where(first, 1.0, MOMENTUM), at.x)
        moved = task.project(
            here.x + share * (ahead - here.x) + (1.0 - share) * (here.x - at.before)
        )
        last = at.k == steps
        climb = _Climb(
            moved,
            at.k + 1,
            at.number,
            here.x,
            here.loss,
            peak,
            size,
            jnp.where(due > 0, 0.0, rises),
            jnp.where(due > 0, halve, at.halved),
            jnp.where(due > 0, peak.loss, top),
            best,
            best.solved | (last & (at.number + 1 == often)),
        )
        if often == 1:
            return climb
        again = lambda climb: choose(
            last & ~climb.done, begin(task, at.number + 1, climb.best), climb
        )
        return jax.lax.cond(jnp.any(last), again, lambda climb: climb, climb)

    return Search(init, step, lambda eps: 2.0 * eps)


def apgd(*, steps: int = 100, restarts: int = 1, loss: str = "ce") -> Search:
    """Auto-PGD: momentum, and a step that starts at 2 eps and is halved, back at the best point, where the climb stalls.

    An image stops where it is solved, before the steps are over; later starts are for those that are not. In L1 the step is
    SLIDE's, not that of Croce & Hein 2021 (arXiv:2103.01208), whose share of coordinates adapts.

    Args:
      steps: static; 100 is the paper's.
      restarts: static; random starts, one after another.
      loss: what is climbed, a row of `goals.LOSSES`: "ce" is APGD-CE, "dlr" APGD-DLR. What failed is ranked, and given back,
        by the goal's own score.

    Raises:
      ValueError: steps or restarts below 1, an unknown loss; and, when called, too few classes for the loss.

    Reference: Croce & Hein 2020, arXiv:2003.01690, algorithm 1.
    """
    check_counts(steps=steps, restarts=restarts)
    goals.get("untargeted", loss)

    def climbed(task: Task, number: jax.Array) -> Loss:
        score = goals.get("untargeted" if task.goal.away else "targeted", loss).score
        return lambda answer: score(answer, task.class_mask)

    return _climbs(climbed, steps=steps, tries=restarts)


def apgd_t(*, steps: int = 100, restarts: int = 1, targets: int = TARGETS) -> Search:
    """Targeted Auto-PGD: towards the likeliest class that is a success, then the next, with the targeted DLR loss.

    Arguments as in `apgd`. Any class that fulfils the goal ends an image's search, whichever was aimed at. With a targeted
    goal the classes are those of its group, over again where the group is smaller. With fewer than four classes, for which
    that loss is not defined, it is the margin that is climbed.

    Args:
      restarts: random starts for each class.
      targets: static; classes, one after another, by the clean picture's logits; all but one where there are fewer.

    Reference: Croce & Hein 2020, arXiv:2003.01690, section 4.2 and equation 7.
    """
    check_counts(steps=steps, restarts=restarts, targets=targets)
    aims = lambda k: min(targets, max(k - 1, 1))

    def climbed(task: Task, number: jax.Array) -> Loss:
        if task.clean.shape[1] < 4:
            return lambda answer: goals.margin(answer, task.success_mask)
        target = goals.likeliest(
            task.clean, task.success_mask, jnp.mod(number, aims(task.clean.shape[1]))
        )
        return lambda answer: goals.targeted_dlr(
            answer, target, task.class_mask if task.goal.away else None
        )

    return _climbs(climbed, steps=steps, tries=lambda k: restarts * aims(k))
