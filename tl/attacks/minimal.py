"""Attacks that look for the NEAREST adversarial picture: DeepFool and Carlini-Wagner (FAB is in `tl.attacks.fab`).

Each comes twice: `find_NAME` returns the distance, whatever it is, and `make_NAME` is the same search as an `Attack`: what
was found, if it lies within eps, else the clean picture.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tl import ascend, optim
from tl.attacks.boundary import (
    DUALS,
    Find,
    Minimal,
    Nearest,
    Problem,
    Search,
    gap_to,
    keep_nearer,
    likely,
    make_attack,
    make_find,
    name_of,
    onto_plane,
    total,
)
from tl.attacks.frame import Attack, Logits, check_counts, rows
from tl.attacks.goals import Goal, margin
from tl.attacks.norms import Norm

__all__ = ["Minimal", "find_cw", "find_deepfool", "make_cw", "make_deepfool"]

OVERSHOOT = 0.02  # Moosavi-Dezfooli et al. 2016, section 2: beyond the boundary, not onto it


# ------------------------------------------------------------------------------------------------------------ DeepFool


def _deepfool(norm: Norm, steps: int, candidates: int, overshoot: float) -> Search:
    name = name_of(norm, list(DUALS))
    dual = DUALS[name]
    check_counts(steps=steps, candidates=candidates)
    half = (steps + 1) // 2

    def search(problem: Problem, start: jax.Array, best: Nearest) -> Nearest:
        classes, standing = likely(problem, problem.logits(problem.center), candidates)

        def open_(carry: tuple) -> jax.Array:
            return (carry[0] < steps) & jnp.any(carry[3])

        def step(carry: tuple) -> tuple:
            i, x, walked, going, best = carry
            x = jnp.where(rows(going & (i == half), x), start, x)
            walked = jnp.where(i == half, 0.0, walked)
            logits, pull = jax.vjp(problem.logits, x)
            met = problem.met(logits)
            best = keep_nearer(best, x, norm.distance(x, problem.center), met)
            going = going & ~met

            def nearer(j: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
                length, way, gap = carry
                w, new_gap = gap_to(problem, logits, pull, classes[:, j])
                new = jnp.where(standing[:, j], jnp.abs(new_gap) / dual.size(w), jnp.inf)
                closer = new < length
                return jnp.minimum(new, length), jnp.where(rows(closer, w), w, way), jnp.where(closer, new_gap, gap)

            flat = jnp.zeros_like(best.distance)
            _, w, gap = jax.lax.fori_loop(0, classes.shape[1], nearer, (flat + jnp.inf, jnp.zeros_like(x), flat))
            plain = lambda: rows(gap / dual.size(w), x) * dual.unit(w)  # noqa: E731
            walked = walked + jax.lax.cond(i < half, plain, lambda: onto_plane(name, x, w, gap))
            moved = jnp.clip(start + (1 + overshoot) * walked, 0.0, 1.0)
            return i + 1, jnp.where(rows(going, x), moved, x), walked, going, best

        going = best.distance > problem.enough
        begun = (0, start, jnp.zeros_like(start), going, best)
        _, x, _, going, best = jax.lax.while_loop(open_, step, begun)
        return keep_nearer(best, x, norm.distance(x, problem.center), going & problem.met(problem.logits(x)))

    return search


def find_deepfool(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int = 50,
    restarts: int = 1,
    candidates: int = 10,
    overshoot: float = OVERSHOOT,
) -> Find:
    """DeepFool's search: step after step to the nearest boundary of the linearised network, until it is crossed.

    Differs from the paper: every point is kept in the box [0, 1]; images that half of the steps did not free begin again, and
    step to the boundary's nearest point in the box; the way is bisected at the end, which takes the overshoot back; restarts
    after the first begin at a random point; and the goal may be a group of classes, or to be in one.

    Args:
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      norm: L2 or Linf.
      steps: static, at most so many; an image stops when it has crossed. 50 is the paper's.
      restarts: static; the first from the clean picture.
      candidates: static; boundaries looked at, of the classes that the clean picture is called next. One backward pass
        each in every step.
      overshoot: share added to the way.

    Returns:
      A `Find`.

    Raises:
      ValueError: another norm, or a count below 1.

    Reference: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, algorithm 2, and section 2.3 for Linf.
    """
    search = _deepfool(norm, steps, candidates, overshoot)
    return make_find(search, logits, norm=norm, goal=goal, restarts=restarts)


def make_deepfool(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int = 50,
    restarts: int = 1,
    on_grid: bool = True,
    candidates: int = 10,
    overshoot: float = OVERSHOOT,
) -> Attack:
    """`find_deepfool` as an `Attack`: what it found, if that lies within eps. `step_size` is not used."""
    search = _deepfool(norm, steps, candidates, overshoot)
    return make_attack(search, logits, norm=norm, goal=goal, restarts=restarts, on_grid=on_grid)


# ------------------------------------------------------------------------------------------------------ Carlini-Wagner


def _cw(norm: Norm, steps: int, searches: int, rate: float, first: float) -> Search:
    name_of(norm, ["l2"])
    check_counts(steps=steps, searches=searches)
    adam = ascend.OPTIMIZERS["adam"]()
    often = max(steps // 10, 1)

    def search(problem: Problem, start: jax.Array, best: Nearest) -> Nearest:
        theta0 = jnp.arctanh((2 * start - 1) * (1 - 1e-6))  # the paper's change of variables; 1e-6 keeps it finite

        def lost(theta: jax.Array, c: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            x = (jnp.tanh(theta) + 1) / 2
            logits = problem.logits(x)
            short = jnp.maximum(-margin(logits, problem.wanted), 0.0)
            losses = total(jnp.square(x - problem.center)) + c * short
            return jnp.sum(losses), (losses, x, problem.met(logits))

        def climb(_: int, carry: tuple) -> tuple:
            low, high, c, best = carry
            going = best.distance > problem.enough

            def open_(carry: tuple) -> jax.Array:
                return (carry[0] < steps) & jnp.any(carry[5])

            def step(carry: tuple) -> tuple:
                i, theta, opt_state, least, before, going, crossed, best = carry
                (_, (losses, x, met)), gradient = jax.value_and_grad(lost, has_aux=True)(theta, c)
                best = keep_nearer(best, x, norm.distance(x, problem.center), met & going)
                late, look = 2 * i >= steps, i % often == 0
                least = jnp.minimum(least, losses)
                stuck = look & late & (least > 0.9999 * before)
                uphill, opt_state = optim.update(adam, -gradient, opt_state, theta)
                slower = rate * (0.5 + 0.5 * jnp.cos(jnp.pi * i / steps))
                moved = jnp.where(rows(going, theta), theta + slower * uphill, theta)
                crossed = crossed | (met & going & late)
                return i + 1, moved, opt_state, least, jnp.where(look, least, before), going & ~stuck, crossed, best

            flat = jnp.full_like(c, jnp.inf)
            begun = (0, theta0, adam.init(theta0), flat, flat, going, jnp.zeros_like(going), best)
            crossed, best = jax.lax.while_loop(open_, step, begun)[-2:]
            low, high = jnp.where(crossed, low, c), jnp.where(crossed, c, high)
            return low, high, jnp.where(jnp.isfinite(high), (low + high) / 2, 10 * c), best

        c = jnp.full_like(best.distance, first)
        return jax.lax.fori_loop(0, searches, climb, (jnp.zeros_like(c), jnp.full_like(c, jnp.inf), c, best))[3]

    return search


def find_cw(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int = 1000,
    restarts: int = 1,
    searches: int = 9,
    rate: float = 0.01,
    first: float = 1e-3,
) -> Find:
    """Carlini and Wagner's search in L2: Adam on distance^2 + c margin in tanh space, bisection over c around it.

    All in one program: the bisection is a loop around a loop. Early abort: from half of `steps` on, every tenth of them, an
    image stops whose least loss has not fallen by 1 in 10,000 since the last look, and the loop ends when all have; the
    others do not notice.

    Differs from the paper: the rate falls to zero along a half cosine, without which the steps of Adam are longer than many a
    distance; c counts as large enough if the goal is met in the second half, not by a stray step at the start; kappa, the
    confidence, is zero; and the way is bisected at the end.

    Args:
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      norm: L2.
      steps: static, for each c at most so many.
      restarts: static; the first from the clean picture.
      searches: static, how many c are tried; tenfold larger until one succeeds, then halfway.
      rate: of Adam, in tanh space, at the start.
      first: the first c.

    Returns:
      A `Find`.

    Raises:
      ValueError: another norm, or a count below 1.

    Reference: Carlini & Wagner 2017, arXiv:1608.04644, section VI-A, with f6 of section V-A; constants: the authors' code.
    """
    search = _cw(norm, steps, searches, rate, first)
    return make_find(search, logits, norm=norm, goal=goal, restarts=restarts)


def make_cw(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int = 1000,
    restarts: int = 1,
    on_grid: bool = True,
    searches: int = 9,
    rate: float = 0.01,
    first: float = 1e-3,
) -> Attack:
    """`find_cw` as an `Attack`: what it found, if that lies within eps. `step_size` is not used."""
    search = _cw(norm, steps, searches, rate, first)
    return make_attack(search, logits, norm=norm, goal=goal, restarts=restarts, on_grid=on_grid)
