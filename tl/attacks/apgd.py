"""Auto-PGD: gradient ascent whose steps shrink by themselves where an image's climb stalls. No step size to choose."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl.attacks import goals
from tl.attacks.frame import Attack, Best, Logits, Task, check_counts, keep, make_attack, rows, try_until_solved
from tl.attacks.goals import Goal
from tl.attacks.norms import Norm

MOMENTUM = 0.75  # alpha, Croce & Hein 2020, section 3.1: the share of the new step; the rest goes on as before
RISES = 0.75  # rho, section 3.2: the share of steps uphill below which a step size is too large
TARGETS = 9  # section 5, of APGD-T

Judge = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""`x -> (loss f32[b] to be maximised, solved bool[b])`"""


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
    return sorted({min(math.ceil(round(share * steps, 6)), steps) for share in shares if share <= 1})


class _Climb(NamedTuple):
    """Where each image's climb is: `best` is algorithm 1's x_max until it is solved, and then what solved it."""

    k: jax.Array
    x: jax.Array
    previous: jax.Array
    loss: jax.Array
    gradient: jax.Array
    best: Best
    best_gradient: jax.Array
    size: jax.Array
    rises: jax.Array
    halved: jax.Array
    top: jax.Array


def _climb(judge: Judge, start: jax.Array, solved: jax.Array, task: Task, norm: Norm, steps: int) -> Best:
    """Algorithm 1 from `start`, of the images that are not solved; the others stay there."""
    places = checkpoints(steps)
    width = np.zeros(steps + 1, np.float32)  # of the interval that ends here, 0 where none does
    width[places[1:]] = np.diff(places)

    def uphill(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def total(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            loss, now = judge(x)
            return jnp.sum(loss), (loss, now)

        (_, (loss, now)), gradient = jax.value_and_grad(total, has_aux=True)(x)
        return loss, now, gradient

    def turn(c: _Climb) -> _Climb:
        ahead = task.project(c.x + rows(c.size, c.x) * norm.direction(c.gradient))
        share = jnp.where(c.k == 0, 1.0, MOMENTUM)
        moved = task.project(c.x + share * (ahead - c.x) + (1.0 - share) * (c.x - c.previous))
        x = jnp.where(rows(c.best.solved, c.x), c.x, moved)
        loss, now, gradient = uphill(x)
        rises = c.rises + jnp.where(loss > c.loss, 1.0, 0.0)
        wins = ~c.best.solved & (now | (loss > c.best.score))
        best = Best(
            jnp.where(rows(wins, x), x, c.best.x), jnp.where(wins, loss, c.best.score), c.best.solved | (wins & now)
        )
        best_gradient = jnp.where(rows(wins, x), gradient, c.best_gradient)

        due = jnp.asarray(width)[c.k + 1]
        slow = rises < RISES * due  # condition 1
        stuck = ~c.halved & (best.score == c.top)  # condition 2
        halve = (due > 0) & (slow | stuck)
        return _Climb(
            c.k + 1,
            jnp.where(rows(halve, x), best.x, x),
            c.x,
            jnp.where(halve, best.score, loss),
            jnp.where(rows(halve, x), best_gradient, gradient),
            best,
            best_gradient,
            jnp.where(halve, 0.5 * c.size, c.size),
            jnp.where(due > 0, 0.0, rises),
            jnp.where(due > 0, halve, c.halved),
            jnp.where(due > 0, best.score, c.top),
        )

    loss, now, gradient = uphill(start)
    flat = jnp.zeros_like(loss)
    best = Best(start, loss, solved | now)
    size = jnp.broadcast_to(task.step_size, loss.shape)
    first = _Climb(jnp.int32(0), start, start, loss, gradient, best, gradient, size, flat, jnp.zeros_like(solved), loss)
    going = lambda c: (c.k < steps) & ~jnp.all(c.best.solved)  # noqa: E731
    return jax.lax.while_loop(going, turn, first).best


def _make_tries(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int,
    tries: int,
    on_grid: bool,
    loss: Callable[[jax.Array, Task, jax.Array], Callable[[jax.Array], jax.Array]],
) -> Attack:
    """`loss`: `(i, task, clean logits) -> (logits -> f32[b])`, what the i-th try climbs."""

    def search(task: Task, clean: Best) -> jax.Array:
        before = task.logits(task.center)

        def attempt(i: jax.Array, best: Best) -> Best:
            score = loss(i, task, before)

            def judge(x: jax.Array) -> tuple[jax.Array, jax.Array]:
                answer = task.logits(x)
                return score(answer), goal.success(answer, task.members)

            start = norm.start(jax.vmap(jax.random.fold_in, (0, None))(task.keys, i), task.center, task.eps)
            found = _climb(judge, start, best.solved, task, norm, steps)
            return keep(best, found.x, *task.judge(found.x))

        return try_until_solved(attempt, clean, tries).x

    return make_attack(search, logits, norm=norm, goal=goal, on_grid=on_grid, default_step=lambda eps: 2.0 * eps)


def make_apgd(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int,
    restarts: int = 1,
    on_grid: bool = True,
    loss: str = "ce",
) -> Attack:
    """Auto-PGD: momentum, and a step that starts at 2 eps and is halved, back at the best point, where the climb stalls.

    An image stops where it is solved, before the steps are over; later starts are for those that are not.

    Args:
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      norm: in L1 the step is SLIDE's, not that of Croce & Hein 2021 (arXiv:2103.01208), whose share of coordinates adapts.
      goal: its success is what is looked for; its score ranks what failed, and is given back.
      steps: static; 100 is the paper's.
      restarts: static; random starts, one after another.
      on_grid: whether pictures lie on the k / 255 grid, or anywhere in the ball.
      loss: what is climbed, a row of `goals.LOSSES`: "ce" is APGD-CE, "dlr" APGD-DLR.

    Returns:
      An `Attack`; a `step_size` takes the place of 2 eps.

    Raises:
      ValueError: steps or restarts below 1, an unknown loss; and, when called, `images01` or `eps` out of range, or too
        few classes for the loss.

    Reference: Croce & Hein 2020, arXiv:2003.01690, algorithm 1.
    """
    check_counts(steps=steps, restarts=restarts)
    climbed = goals.get("untargeted" if goal.away else "targeted", loss).score
    losses = lambda i, task, before: lambda answer: climbed(answer, task.members)  # noqa: E731
    return _make_tries(logits, norm=norm, goal=goal, steps=steps, tries=restarts, on_grid=on_grid, loss=losses)


def make_apgd_t(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int,
    restarts: int = 1,
    on_grid: bool = True,
    targets: int = TARGETS,
) -> Attack:
    """Targeted Auto-PGD: towards the likeliest class that is a success, then the next, with the targeted DLR loss.

    Arguments as in `make_apgd`. Any class that fulfils the goal ends an image's search, whichever was aimed at. With a
    targeted goal the classes are those of its group, over again where the group is smaller.

    Args:
      restarts: random starts for each class.
      targets: static; classes, one after another, by the clean picture's logits.

    Reference: Croce & Hein 2020, arXiv:2003.01690, section 4.2 and equation 7.
    """
    check_counts(steps=steps, restarts=restarts, targets=targets)

    def losses(i: jax.Array, task: Task, before: jax.Array) -> Callable[[jax.Array], jax.Array]:
        target = goals.likeliest(before, goals.wanted(goal, task.members), jnp.mod(i, targets))
        return lambda answer: goals.targeted_dlr(answer, target, task.members if goal.away else None)

    return _make_tries(
        logits, norm=norm, goal=goal, steps=steps, tries=restarts * targets, on_grid=on_grid, loss=losses
    )
