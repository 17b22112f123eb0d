"""Minimum-norm attacks: DeepFool and Carlini-Wagner.

They search for the NEAREST adversarial image; FAB, which does too, is in `tl.attacks.fab`. As an
`Attack`, each returns its result if it lies within eps; `attacks.find` returns it at any
distance.
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
    initial_best,
    is_near_enough,
    likeliest_classes,
    linearize,
    project_onto_plane,
    restart_point,
    sum_per_image,
    update_nearest,
)
from tl.attacks.slots import expand, select

# Moosavi-Dezfooli et al. 2016, section 2: the step ends beyond the boundary, not on it.
OVERSHOOT = 0.02


# ---- DeepFool ----


class _DeepFoolState(NamedTuple):
    """Each image at x, after k steps from `origin`; `walked` is their sum without the overshoot."""

    x: jax.Array
    origin: jax.Array
    walked: jax.Array
    k: jax.Array
    start: jax.Array
    best: Best
    finished: jax.Array


def deepfool(
    *, steps: int = 50, restarts: int = 1, candidates: int = 10, overshoot: float = OVERSHOOT
) -> Search:
    """DeepFool: steps to the nearest boundary of the linearized network until it is crossed.

    Differs from the paper: every point stays in [0, 1]; an image that is not solved after half of
    the steps starts again and then moves to the boundary's nearest point in [0, 1]; `attacks.find`
    bisects at the end, which removes the overshoot; restarts after the first begin at a random
    point; and the goal may be to leave or to enter a group of classes.

    Args:
      steps: traced, at most; an image stops after crossing. 50 is the paper's.
      restarts: static; the first start is the clean image.
      candidates: static; number of boundaries, by clean logits. One backward pass each per step.
      overshoot: share by which the sum of all steps is lengthened.

    Raises:
      ValueError: a count below 1, or a norm other than L2 and Linf.

    Reference: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, algorithm 2, and section 2.3 for
      Linf.
    """
    check_counts(steps=steps, restarts=restarts, candidates=candidates)

    def begin(
        origin: jax.Array, start: jax.Array, best: Best, finished: jax.Array
    ) -> _DeepFoolState:
        zeros = jnp.zeros_like(origin)
        return _DeepFoolState(origin, origin, zeros, jnp.zeros_like(start), start, best, finished)

    def init(task: Task, best: Best) -> _DeepFoolState:
        best = initial_best(best)
        start = jnp.zeros_like(best.solved, jnp.int32)
        return begin(task.center, start, best, is_near_enough(task, best))

    def step(task: Task, state: _DeepFoolState) -> _DeepFoolState:
        name = norms.name(task.norm)
        dual, half = DUALS[name], (task.steps + 1) // 2
        classes, valid = likeliest_classes(task, candidates)
        logits, pullback = jax.vjp(task.logits, state.x)
        _, met = task.judge(logits)
        best = update_nearest(task, state.best, state.x, met)

        def nearer(j: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            length, w, gap = carry
            new_w, new_gap = linearize(task, logits, pullback, classes[:, j])
            new_length = jnp.where(valid[:, j], jnp.abs(new_gap) / dual.size(new_w), jnp.inf)
            closer = new_length < length
            return (
                jnp.minimum(new_length, length),
                jnp.where(expand(closer, w), new_w, w),
                jnp.where(closer, new_gap, gap),
            )

        zero = jnp.zeros_like(state.best.score)
        # A targeted goal may have one class only.
        count = jnp.max(jnp.sum(valid, axis=1, dtype=jnp.int32))
        nearest = (zero + jnp.inf, jnp.zeros_like(state.x), zero)
        _, w, gap = jax.lax.fori_loop(0, count, nearer, nearest)
        plain = expand(gap / dual.size(w), state.x) * dual.unit(w)
        late = state.k > half

        def within_box() -> jax.Array:
            return jnp.where(expand(late, w), project_onto_plane(name, state.x, w, gap), plain)

        walked = state.walked + jax.lax.cond(jnp.any(late), within_box, lambda: plain)
        next_x = jnp.clip(state.origin + (1 + overshoot) * walked, 0.0, 1.0)

        # After half of the steps without a success, the way within [0, 1] begins at the origin.
        turn = state.k == half
        walked = jnp.where(expand(turn, walked), 0.0, walked)
        next_x = jnp.where(expand(turn, next_x), state.origin, next_x)
        over = met | (state.k == task.steps)
        finished = is_near_enough(task, best) | (over & (state.start + 1 == restarts))
        next_ = _DeepFoolState(
            next_x, state.origin, walked, state.k + 1, state.start, best, finished
        )
        if restarts == 1:
            return next_

        def restart(next_: _DeepFoolState) -> _DeepFoolState:
            start = state.start + 1
            fresh = begin(restart_point(task, best, start), start, best, finished)
            return select(over, fresh, next_)

        return jax.lax.cond(jnp.any(over), restart, lambda next_: next_, next_)

    return Search(init, step, steps, norms=tuple(DUALS), nearest=True)


# ---- Carlini-Wagner ----


class _CarliniWagnerState(NamedTuple):
    """Each image at theta, after k steps with the weight c, which has this index over all restarts.

    Attributes:
      low, high: bounds of the bisection over c.
      least: the least loss so far with this c.
      previous_least: `least` at the last check of progress.
      crossed: whether the goal was met in the second half of the steps.
    """

    theta: jax.Array
    opt_state: Any
    k: jax.Array
    index: jax.Array
    c: jax.Array
    low: jax.Array
    high: jax.Array
    least: jax.Array
    previous_least: jax.Array
    crossed: jax.Array
    best: Best
    finished: jax.Array


def cw(
    *,
    steps: int = 1000,
    restarts: int = 1,
    searches: int = 9,
    rate: float = 0.01,
    first: float = 1e-3,
) -> Search:
    """Carlini-Wagner in L2: Adam on distance^2 + c * margin in tanh space, bisected over c.

    Early abort: from half of `steps` on, progress is checked every tenth of them. The steps with
    this c end if the least loss has not fallen by 1 in 10,000 since the last check.

    Differs from the paper: the learning rate falls to zero along a half cosine, because constant
    steps of Adam are longer than many distances; c counts as large enough if the goal is met in the
    second half, not by a step near the start; kappa, the confidence, is zero; and `attacks.find`
    bisects at the end.

    Args:
      steps: traced, at most, per c.
      restarts: static; the first start is the clean image.
      searches: static, number of values of c: c grows tenfold until one succeeds, and is bisected
        after that.
      rate: initial learning rate of Adam, in tanh space.
      first: the first c.

    Raises:
      ValueError: a count below 1, or a norm other than L2.

    Reference: Carlini & Wagner 2017, arXiv:1608.04644, section VI-A, with f6 of section V-A;
      constants: the authors' code.
    """
    check_counts(steps=steps, restarts=restarts, searches=searches)
    adam = ascend.per_image(ascend.OPTIMIZERS["adam"]())

    def begin(
        task: Task, best: Best, index: jax.Array, c: jax.Array, low: jax.Array, high: jax.Array
    ) -> _CarliniWagnerState:
        x = task.center if restarts == 1 else restart_point(task, best, index // searches)
        # The paper's change of variables; the factor keeps it finite at black and white.
        theta = jnp.arctanh((2 * x - 1) * (1 - 1e-6))
        infinite, no = jnp.full_like(c, jnp.inf), jnp.zeros_like(best.solved)
        return _CarliniWagnerState(
            theta=theta,
            opt_state=adam.init(theta),
            k=jnp.zeros_like(index),
            index=index,
            c=c,
            low=low,
            high=high,
            least=infinite,
            previous_least=infinite,
            crossed=no,
            best=best,
            finished=no,
        )

    def init(task: Task, best: Best) -> _CarliniWagnerState:
        best, zero = initial_best(best), jnp.zeros_like(best.score)
        index = jnp.zeros_like(best.solved, jnp.int32)
        state = begin(task, best, index, zero + first, zero, zero + jnp.inf)
        return state._replace(finished=is_near_enough(task, best))

    def step(task: Task, state: _CarliniWagnerState) -> _CarliniWagnerState:
        def loss(theta: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            x = (jnp.tanh(theta) + 1) / 2
            logits = task.logits(x)
            unmet = jnp.maximum(-margin(logits, task.success_mask), 0.0)
            losses = sum_per_image(jnp.square(x - task.center)) + state.c * unmet
            return jnp.sum(losses), (losses, x, task.judge(logits)[1])

        (_, (losses, x, met)), gradient = jax.value_and_grad(loss, has_aux=True)(state.theta)
        best = update_nearest(task, state.best, x, met)
        steps, check_every = task.steps, jnp.maximum(task.steps // 10, 1)
        late, check = 2 * state.k >= steps, state.k % check_every == 0
        least = jnp.minimum(state.least, losses)
        stuck = check & late & (least > 0.9999 * state.previous_least)
        crossed = state.crossed | (met & late)
        uphill, opt_state = optim.update(adam, -gradient, state.opt_state, state.theta)
        progress = state.k.astype(jnp.float32) / steps.astype(jnp.float32)
        decayed = rate * (0.5 + 0.5 * jnp.cos(jnp.pi * progress))

        over = stuck | (state.k + 1 == steps)
        last = state.index + 1 == searches * restarts
        finished = is_near_enough(task, best) | (over & last)
        next_ = state._replace(
            theta=state.theta + expand(decayed, x) * uphill,
            opt_state=opt_state,
            k=state.k + 1,
            least=least,
            previous_least=jnp.where(check, least, state.previous_least),
            crossed=crossed,
            best=best,
            finished=finished,
        )

        def next_weight(next_: _CarliniWagnerState) -> _CarliniWagnerState:
            low = jnp.where(crossed, state.low, state.c)
            high = jnp.where(crossed, state.c, state.high)
            c = jnp.where(jnp.isfinite(high), (low + high) / 2, 10 * state.c)
            # A restart begins with the first weight.
            restarted = (state.index + 1) % searches == 0
            c, low = jnp.where(restarted, first, c), jnp.where(restarted, 0.0, low)
            high = jnp.where(restarted, jnp.inf, high)
            fresh = begin(task, best, state.index + 1, c, low, high)
            return select(over & ~finished, fresh, next_)

        return jax.lax.cond(jnp.any(over), next_weight, lambda next_: next_, next_)

    return Search(init, step, steps, norms=("l2",), nearest=True)
