"""FAB, the fast adaptive boundary attack, targeted: it looks for the nearest adversarial picture of each likely class.

`find_fab` returns the distance, `make_fab` is the same search as an `Attack`, as in `tl.attacks.minimal`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tl.attacks.boundary import (
    Find,
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
    tiny,
    total,
)
from tl.attacks.frame import Attack, Logits, check_counts, rows
from tl.attacks.goals import Goal
from tl.attacks.norms import Norm

TARGETS = 9  # classes; Croce & Hein 2020, arXiv:2003.01690, section 5 (FAB-T)
ALPHA_MAX, BETA, ETA = 0.1, 0.9, 1.05  # Croce & Hein 2020, arXiv:1907.02044, section 4 (experiments)


def _fab(norm: Norm, steps: int, targets: int) -> Search:
    name = name_of(norm, ["linf", "l2"])
    check_counts(steps=steps, targets=targets)

    def search(problem: Problem, start: jax.Array, best: Nearest) -> Nearest:
        classes, standing = likely(problem, problem.logits(problem.center), targets)

        def toward(j: jax.Array, best: Nearest) -> Nearest:
            going = standing[:, j] & (best.distance > problem.enough)

            def open_(carry: tuple) -> jax.Array:
                return (carry[0] < steps) & jnp.any(carry[2])

            def step(carry: tuple) -> tuple:
                i, x, going, best = carry
                logits, pull = jax.vjp(problem.logits, x)
                w, gap = gap_to(problem, logits, pull, classes[:, j])
                there = gap + total(w * (x - problem.center))  # <w, center + d - x> = gap
                both = (jnp.concatenate(pair) for pair in ((x, problem.center), (w, w), (gap, there)))
                here, there = jnp.split(onto_plane(name, *both), 2)
                zeros = jnp.zeros_like(x)
                near, far = norm.distance(here, zeros), norm.distance(there, zeros)
                alpha = rows(jnp.minimum(near / jnp.maximum(near + far, tiny), ALPHA_MAX), x)
                x = jnp.clip((1 - alpha) * (x + ETA * here) + alpha * (problem.center + ETA * there), 0.0, 1.0)
                met = problem.met(problem.logits(x)) & going
                best = keep_nearer(best, x, norm.distance(x, problem.center), met)
                x = jnp.where(rows(met, x), (1 - BETA) * problem.center + BETA * x, x)
                return i + 1, x, going & (best.distance > problem.enough), best

            return jax.lax.while_loop(open_, step, (0, start, going, best))[3]

        return jax.lax.fori_loop(0, classes.shape[1], toward, best)

    return search


def find_fab(
    logits: Logits, *, norm: Norm, goal: Goal, steps: int = 100, restarts: int = 1, targets: int = TARGETS
) -> Find:
    """FAB-T's search: along the boundary to each likely class, drawn back towards the clean picture after every crossing.

    Every step projects the present point and the clean one onto the linearised boundary met with the box, goes a little
    beyond both, and takes a mean of the two that leans to the nearer. The projection is exact (`onto_plane`).

    Differs from the paper: its final search, three steps of the secant method, is a bisection of the way to the clean
    picture; and the goal may be a group of classes, or to be in one.

    Args:
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      norm: L2 or Linf.
      steps: static, for each class.
      restarts: static; the first from the clean picture, the others from a random point within half of the distance that
        has been found.
      targets: static, how many classes, of those that the clean picture is called next; 9 is AutoAttack's.

    Returns:
      A `Find`.

    Raises:
      ValueError: another norm, or a count below 1.

    Reference: Croce & Hein 2020, arXiv:1907.02044, algorithm 1; targeted: arXiv:2003.01690, section 5.
    """
    return make_find(_fab(norm, steps, targets), logits, norm=norm, goal=goal, restarts=restarts)


def make_fab(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int = 100,
    restarts: int = 1,
    on_grid: bool = True,
    targets: int = TARGETS,
) -> Attack:
    """`find_fab` as an `Attack`: what it found, if that lies within eps, where it also stops. `step_size` is not used."""
    search = _fab(norm, steps, targets)
    return make_attack(search, logits, norm=norm, goal=goal, restarts=restarts, on_grid=on_grid)
