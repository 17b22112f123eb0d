"""FAB, the fast adaptive boundary attack, targeted: it looks for the nearest adversarial picture of each likely class."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tl.attacks import norms
from tl.attacks.base import Best, Search, Task, check_counts
from tl.attacks.linearized import (
    gap_to,
    keep_nearer,
    likely,
    near_enough,
    onto_plane,
    restart,
    tiny,
    total,
    unknown,
)
from tl.attacks.slots import choose, rows

TARGETS = 9  # classes; Croce & Hein 2020, arXiv:2003.01690, section 5 (FAB-T)
ALPHA_MAX, BETA, ETA = (
    0.1,
    0.9,
    1.05,
)  # Croce & Hein 2020, arXiv:1907.02044, section 4 (experiments)


class _Along(NamedTuple):
    """At x, after k steps along the boundary to the class of that number, over all restarts."""

    x: jax.Array
    k: jax.Array
    number: jax.Array
    best: Best
    done: jax.Array


def fab(*, steps: int = 100, restarts: int = 1, targets: int = TARGETS) -> Search:
    """FAB-T: along the boundary to each likely class, drawn back towards the clean picture after every crossing.

    Every step projects the present point and the clean one onto the linearised boundary met with the box, goes a little
    beyond both, and takes a mean of the two that leans to the nearer. The projection is exact (`onto_plane`).

    Differs from the paper: its final search, three steps of the secant method, is a bisection of the way to the clean
    picture (`find`); and the goal may be a group of classes, or to be in one.

    Args:
      steps: static, for each class.
      restarts: static; the first from the clean picture, the others from a random point within half of the distance that
        has been found.
      targets: static, how many classes, of those that the clean picture is called next; 9 is AutoAttack's.

    Raises:
      ValueError: a count below 1; another norm than L2 and Linf.

    Reference: Croce & Hein 2020, arXiv:1907.02044, algorithm 1; targeted: arXiv:2003.01690, section 5.
    """
    check_counts(steps=steps, restarts=restarts, targets=targets)

    def init(task: Task, best: Best) -> _Along:
        zero, none = jnp.zeros_like(best.solved, jnp.int32), unknown(best)
        return _Along(task.center, zero, zero, none, near_enough(task, none))

    def step(task: Task, at: _Along) -> _Along:
        classes, standing = likely(task, targets)
        count = classes.shape[1]
        turn = jnp.mod(at.number, count)[:, None]
        aim, real = (
            jnp.take_along_axis(table, turn, axis=1)[:, 0] for table in (classes, standing)
        )

        logits, pull = jax.vjp(task.logits, at.x)
        w, gap = gap_to(task, logits, pull, aim)
        there = gap + total(w * (at.x - task.center))  # <w, center + d - x> = gap
        both = (jnp.concatenate(pair) for pair in ((at.x, task.center), (w, w), (gap, there)))
        here, there = jnp.split(onto_plane(norms.name(task.norm), *both), 2)
        zeros = jnp.zeros_like(at.x)
        near, far = task.norm.distance(here, zeros), task.norm.distance(there, zeros)
        alpha = rows(jnp.minimum(near / jnp.maximum(near + far, tiny), ALPHA_MAX), at.x)
        x = jnp.clip(
            (1 - alpha) * (at.x + ETA * here) + alpha * (task.center + ETA * there), 0.0, 1.0
        )
        _, met = task.judge(task.logits(x))
        best = keep_nearer(task, at.best, x, met & real)
        x = jnp.where(rows(met, x), (1 - BETA) * task.center + BETA * x, x)

        over = (at.k + 1 == steps) | ~real
        done = near_enough(task, best) | (over & (at.number + 1 == restarts * count))
        walk = _Along(x, at.k + 1, at.number, best, done)

        def again(walk: _Along) -> _Along:
            start = restart(task, best, (at.number + 1) // count) if restarts > 1 else task.center
            return choose(
                over, _Along(start, jnp.zeros_like(at.k), at.number + 1, best, done), walk
            )

        return jax.lax.cond(jnp.any(over), again, lambda walk: walk, walk)

    return Search(init, step, norms=("linf", "l2"), nearest=True)
