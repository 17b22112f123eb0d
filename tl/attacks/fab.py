"""FAB-T, the targeted fast adaptive boundary attack.

It searches for the nearest adversarial image of each likely class.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tl.attacks import norms
from tl.attacks.base import Best, Search, Task, check_counts
from tl.attacks.linearized import (
    TINY,
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

# Number of target classes; Croce & Hein 2020, arXiv:2003.01690, section 5 (FAB-T).
TARGETS = 9
# Croce & Hein 2020, arXiv:1907.02044, section 4 (experiments).
ALPHA_MAX, BETA, ETA = 0.1, 0.9, 1.05


class _State(NamedTuple):
    """Each image at x, after k steps towards one class.

    `index` counts classes over all restarts.
    """

    x: jax.Array
    k: jax.Array
    index: jax.Array
    best: Best
    finished: jax.Array


def fab(*, steps: int = 100, restarts: int = 1, targets: int = TARGETS) -> Search:
    """FAB-T: moves along the boundary to each likely class, and back after every crossing.

    Each step projects the current and the clean image onto the linearized boundary within [0, 1],
    moves slightly beyond both projections, and averages them with more weight on the nearer one.
    The projection is exact (`project_onto_plane`).

    Differs from the paper: the final search, three steps of the secant method, is a bisection
    towards the clean image (`make_find`); and the goal may be to leave or to enter a group of
    classes.

    Args:
      steps: traced, per class.
      restarts: static; the first start is the clean image, the others are random points within half
        of the best distance so far.
      targets: static; number of classes, by clean logits; 9 is AutoAttack's.

    Raises:
      ValueError: a count below 1, or a norm other than L2 and Linf.

    Reference: Croce & Hein 2020, arXiv:1907.02044, algorithm 1; targeted: arXiv:2003.01690, section
      5.
    """
    check_counts(steps=steps, restarts=restarts, targets=targets)

    def init(task: Task, best: Best) -> _State:
        zero, best = jnp.zeros_like(best.solved, jnp.int32), initial_best(best)
        return _State(task.center, zero, zero, best, is_near_enough(task, best))

    def step(task: Task, state: _State) -> _State:
        classes, valid = likeliest_classes(task, targets)
        count = classes.shape[1]
        place = jnp.mod(state.index, count)[:, None]
        target, is_valid = (
            jnp.take_along_axis(values, place, axis=1)[:, 0] for values in (classes, valid)
        )

        logits, pullback = jax.vjp(task.logits, state.x)
        w, gap = linearize(task, logits, pullback, target)
        # The plane seen from the clean image: <w, center + d - x> = gap.
        clean_gap = gap + sum_per_image(w * (state.x - task.center))
        pairs = ((state.x, task.center), (w, w), (gap, clean_gap))
        both = (jnp.concatenate(pair) for pair in pairs)
        d, clean_d = jnp.split(project_onto_plane(norms.name(task.norm), *both), 2)
        zeros = jnp.zeros_like(state.x)
        length, clean_length = task.norm.distance(d, zeros), task.norm.distance(clean_d, zeros)
        share = length / jnp.maximum(length + clean_length, TINY)
        alpha = expand(jnp.minimum(share, ALPHA_MAX), state.x)
        x = (1 - alpha) * (state.x + ETA * d) + alpha * (task.center + ETA * clean_d)
        x = jnp.clip(x, 0.0, 1.0)
        _, met = task.judge(task.logits(x))
        best = update_nearest(task, state.best, x, met & is_valid)
        x = jnp.where(expand(met, x), (1 - BETA) * task.center + BETA * x, x)

        over = (state.k + 1 == task.steps) | ~is_valid
        last = state.index + 1 == restarts * count
        finished = is_near_enough(task, best) | (over & last)
        next_ = _State(x, state.k + 1, state.index, best, finished)

        def next_class(next_: _State) -> _State:
            start = task.center
            if restarts > 1:
                start = restart_point(task, best, (state.index + 1) // count)
            fresh = _State(start, jnp.zeros_like(state.k), state.index + 1, best, finished)
            return select(over, fresh, next_)

        return jax.lax.cond(jnp.any(over), next_class, lambda next_: next_, next_)

    return Search(init, step, steps, norms=("linf", "l2"), nearest=True)
