"""Attacks that look for the NEAREST adversarial picture: DeepFool and Carlini-Wagner (FAB is in `tl.attacks.fab`).

As an `Attack` each gives what it found, if it lies within eps; `frame.find` gives the distance, whatever it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl import optim
from tl.ascent import ascend
from tl.attacks import norms
from tl.attacks.base import Best, Search, Task, check_counts
from tl.attacks.goals import margin
from tl.attacks.linearized import (
    DUALS,
    gap_to,
    keep_nearer,
    likely,
    near_enough,
    onto_plane,
    restart,
    total,
    unknown,
)
from tl.attacks.slots import choose, rows

OVERSHOOT = 0.02  # Moosavi-Dezfooli et al. 2016, section 2: beyond the boundary, not onto it


# ------------------------------------------------------------------------------------------------------------ DeepFool


class _Stepping(NamedTuple):
    """At x, after k steps; `walked` is their sum, without the overshoot, from `start`."""

    x: jax.Array
    start: jax.Array
    walked: jax.Array
    k: jax.Array
    number: jax.Array
    best: Best
    done: jax.Array


def deepfool(
    *, steps: int = 50, restarts: int = 1, candidates: int = 10, overshoot: float = OVERSHOOT
) -> Search:
    """DeepFool: step after step to the nearest boundary of the linearised network, until it is crossed.

    Differs from the paper: every point is kept in the box [0, 1]; images that half of the steps did not free begin again, and
    step to the boundary's nearest point in the box; `find` bisects the way at the end, which takes the overshoot back;
    restarts after the first begin at a random point; and the goal may be a group of classes, or to be in one.

    Args:
      steps: static, at most so many; an image stops when it has crossed. 50 is the paper's.
      restarts: static; the first from the clean picture.
      candidates: static; boundaries looked at, of the classes that the clean picture is called next. One backward pass
        each in every step.
      overshoot: share added to the way.

    Raises:
      ValueError: a count below 1; another norm than L2 and Linf.

    Reference: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, algorithm 2, and section 2.3 for Linf.
    """
    check_counts(steps=steps, restarts=restarts, candidates=candidates)
    half = (steps + 1) // 2

    def init(task: Task, best: Best) -> _Stepping:
        zero, none = jnp.zeros_like(best.solved, jnp.int32), unknown(best)
        return _Stepping(
            task.center,
            task.center,
            jnp.zeros_like(task.center),
            zero,
            zero,
            none,
            near_enough(task, none),
        )

    def step(task: Task, at: _Stepping) -> _Stepping:
        name = norms.name(task.norm)
        dual = DUALS[name]
        classes, standing = likely(task, candidates)
        logits, pull = jax.vjp(task.logits, at.x)
        _, met = task.judge(logits)
        best = keep_nearer(task, at.best, at.x, met)

        def nearer(j: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            length, way, gap = carry
            w, new_gap = gap_to(task, logits, pull, classes[:, j])
            new = jnp.where(standing[:, j], jnp.abs(new_gap) / dual.size(w), jnp.inf)
            closer = new < length
            return (
                jnp.minimum(new, length),
                jnp.where(rows(closer, w), w, way),
                jnp.where(closer, new_gap, gap),
            )

        flat = jnp.zeros_like(at.best.score)
        count = jnp.max(
            jnp.sum(standing, axis=1, dtype=jnp.int32)
        )  # a targeted goal may have one class only
        _, w, gap = jax.lax.fori_loop(
            0, count, nearer, (flat + jnp.inf, jnp.zeros_like(at.x), flat)
        )
        plain = rows(gap / dual.size(w), at.x) * dual.unit(w)
        late = at.k > half
        boxed = lambda: jnp.where(rows(late, w), onto_plane(name, at.x, w, gap), plain)
        walked = at.walked + jax.lax.cond(jnp.any(late), boxed, lambda: plain)
        moved = jnp.clip(at.start + (1 + overshoot) * walked, 0.0, 1.0)

        anew = at.k == half  # the plain way, whose last point this was, was no way out
        walked = jnp.where(rows(anew, walked), 0.0, walked)
        moved = jnp.where(rows(anew, moved), at.start, moved)
        over = met | (at.k == steps)
        done = near_enough(task, best) | (over & (at.number + 1 == restarts))
        walk = _Stepping(moved, at.start, walked, at.k + 1, at.number, best, done)
        if restarts == 1:
            return walk

        def again(walk: _Stepping) -> _Stepping:
            start = restart(task, best, at.number + 1)
            fresh = _Stepping(
                start, start, jnp.zeros_like(start), jnp.zeros_like(at.k), at.number + 1, best, done
            )
            return choose(over, fresh, walk)

        return jax.lax.cond(jnp.any(over), again, lambda walk: walk, walk)

    return Search(init, step, norms=tuple(DUALS), nearest=True)


# ------------------------------------------------------------------------------------------------------ Carlini-Wagner


class _Weighing(NamedTuple):
    """At theta, after k steps with the weight c of that number; c is known to lie between low and high."""

    theta: jax.Array
    opt_state: Any
    k: jax.Array
    number: jax.Array
    c: jax.Array
    low: jax.Array
    high: jax.Array
    least: jax.Array
    before: jax.Array
    crossed: jax.Array
    best: Best
    done: jax.Array


def cw(
    *,
    steps: int = 1000,
    restarts: int = 1,
    searches: int = 9,
    rate: float = 0.01,
    first: float = 1e-3,
) -> Search:
    """Carlini and Wagner in L2: Adam on distance^2 + c margin in tanh space, bisection over c around it.

    Early abort: from half of `steps` on, every tenth of them, a climb ends whose least loss has not fallen by 1 in 10,000
    since the last look.

    Differs from the paper: the rate falls to zero along a half cosine, without which the steps of Adam are longer than many a
    distance; c counts as large enough if the goal is met in the second half, not by a stray step at the start; kappa, the
    confidence, is zero; and `find` bisects the way at the end.

    Args:
      steps: static, for each c at most so many.
      restarts: static; the first from the clean picture.
      searches: static, how many c are tried; tenfold larger until one succeeds, then halfway.
      rate: of Adam, in tanh space, at the start.
      first: the first c.

    Raises:
      ValueError: a count below 1; another norm than L2.

    Reference: Carlini & Wagner 2017, arXiv:1608.04644, section VI-A, with f6 of section V-A; constants: the authors' code.
    """
    check_counts(steps=steps, restarts=restarts, searches=searches)
    adam = ascend.each(ascend.OPTIMIZERS["adam"]())
    often = max(steps // 10, 1)

    def begin(
        task: Task, best: Best, number: jax.Array, c: jax.Array, low: jax.Array, high: jax.Array
    ) -> _Weighing:
        start = task.center if restarts == 1 else restart(task, best, number // searches)
        theta = jnp.arctanh(
            (2 * start - 1) * (1 - 1e-6)
        )  # the paper's change of variables; 1e-6 keeps it finite
        never, no = jnp.full_like(c, jnp.inf), jnp.zeros_like(best.solved)
        zero = jnp.zeros_like(number)
        return _Weighing(
            theta, adam.init(theta), zero, number, c, low, high, never, never, no, best, no
        )

    def init(task: Task, best: Best) -> _Weighing:
        none, flat = unknown(best), jnp.zeros_like(best.score)
        at = begin(
            task, none, jnp.zeros_like(best.solved, jnp.int32), flat + first, flat, flat + jnp.inf
        )
        return at._replace(done=near_enough(task, none))

    def step(task: Task, at: _Weighing) -> _Weighing:
        def lost(theta: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            x = (jnp.tanh(theta) + 1) / 2
            logits = task.logits(x)
            short = jnp.maximum(-margin(logits, task.success_mask), 0.0)
            losses = total(jnp.square(x - task.center)) + at.c * short
            return jnp.sum(losses), (losses, x, task.judge(logits)[1])

        (_, (losses, x, met)), gradient = jax.value_and_grad(lost, has_aux=True)(at.theta)
        best = keep_nearer(task, at.best, x, met)
        late, look = 2 * at.k >= steps, at.k % often == 0
        least = jnp.minimum(at.least, losses)
        stuck = look & late & (least > 0.9999 * at.before)
        crossed = at.crossed | (met & late)
        uphill, opt_state = optim.update(adam, -gradient, at.opt_state, at.theta)
        slower = rate * (0.5 + 0.5 * jnp.cos(jnp.pi * at.k.astype(jnp.float32) / steps))
        theta = at.theta + rows(slower, x) * uphill

        over = stuck | (at.k + 1 == steps)
        done = near_enough(task, best) | (over & (at.number + 1 == searches * restarts))
        before = jnp.where(look, least, at.before)
        climb = _Weighing(
            theta,
            opt_state,
            at.k + 1,
            at.number,
            at.c,
            at.low,
            at.high,
            least,
            before,
            crossed,
            best,
            done,
        )

        def again(climb: _Weighing) -> _Weighing:
            low, high = jnp.where(crossed, at.low, at.c), jnp.where(crossed, at.c, at.high)
            c = jnp.where(jnp.isfinite(high), (low + high) / 2, 10 * at.c)
            anew = (at.number + 1) % searches == 0  # the next start begins with the first weight
            c, low = jnp.where(anew, first, c), jnp.where(anew, 0.0, low)
            high = jnp.where(anew, jnp.inf, high)
            return choose(over & ~done, begin(task, best, at.number + 1, c, low, high), climb)

        return jax.lax.cond(jnp.any(over), again, lambda climb: climb, climb)

    return Search(init, step, norms=("l2",), nearest=True)
