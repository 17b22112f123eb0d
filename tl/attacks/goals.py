"""Goals of attacks: reach a group of classes (targeted), or leave it (untargeted).

A `Goal` has a kind and a loss (a row of `LOSSES`); its score is maximized, and success depends on
the top class only. To add a loss: a function of logits and the class mask, and a row. Losses of
single logits (margin, DLR) count a group once, with its largest logit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl.losses import group_log_probability
from tl.paths import nearest
from tl.types import Array

Score = Callable[[Array, Array], jax.Array]
"""`(logits f32[b k], class_mask bool[b k]) -> f32[b]`, to be maximized."""


class Goal(NamedTuple):
    """The goal of an attack; `class_mask` bool[b k] are the classes that it is about.

    Attributes:
      score: `(logits f32[b k], class_mask) -> f32[b]`, to be maximized.
      success: `(logits, class_mask) -> bool[b]`; False where the logits contain NaN.
      away: True if the prediction should leave `class_mask` (untargeted), False if it should enter
        it (targeted).
    """

    score: Score
    success: Callable[[Array, Array], jax.Array]
    away: bool


def _predicts(logits: Array, class_mask: Array) -> jax.Array:
    """Whether the top class is in the mask. `argmax` would return a NaN as the largest value."""
    finite = ~jnp.any(jnp.isnan(logits), axis=1)
    top = jnp.argmax(logits, axis=1)[:, None]
    return jnp.take_along_axis(class_mask, top, axis=1)[:, 0] & finite


def _largest(logits: Array, class_mask: Array) -> jax.Array:
    return jnp.max(jnp.where(class_mask, logits, -jnp.inf), axis=1)


def _merge_group(logits: Array, class_mask: Array) -> jax.Array:
    """Logits in which only the largest of the group is kept; its others are minus infinity."""
    first = jnp.argmax(jnp.where(class_mask, logits, -jnp.inf), axis=1)
    others = class_mask & (jnp.arange(logits.shape[1])[None] != first[:, None])
    return jnp.where(others, -jnp.inf, logits)


def _top_logits(logits: Array, counted: Array, n: int) -> jax.Array:
    """The n largest finite values of `counted`, f32[b n]; missing ones are the smallest logit."""
    if logits.shape[1] < n:
        raise ValueError(
            f"this DLR loss needs at least {n} classes: got logits of {logits.shape[1]}; use "
            "'margin'"
        )
    top = jax.lax.top_k(counted, n)[0]
    return jnp.where(jnp.isfinite(top), top, jnp.min(logits, axis=1, keepdims=True))


def _ratio(gap: jax.Array, scale: jax.Array) -> jax.Array:
    """Zero where all logits are equal, instead of NaN."""
    return gap / jnp.maximum(scale, 1e-12)


def margin(logits: Array, class_mask: Array) -> jax.Array:
    """Largest logit of the group minus the largest of all other classes, f32[b]."""
    return _largest(logits, class_mask) - _largest(logits, ~class_mask)


def dlr(logits: Array, class_mask: Array) -> jax.Array:
    """Untargeted difference of logits ratio, f32[b].

    It is minus the margin, divided by the difference between the largest and the third-largest
    logit. It does not depend on the scale and shift of the logits, and lies in [-1, 0] where the
    prediction is in the group. The group is ranked as one class; otherwise its second-largest logit
    would change the ratio.

    Reference: Croce & Hein 2020, arXiv:2003.01690, equation 6; there for single classes.
    """
    top = _top_logits(logits, _merge_group(logits, class_mask), 3)
    return _ratio(-margin(logits, class_mask), top[:, 0] - top[:, 2])


def targeted_dlr(logits: Array, class_mask: Array, leave: Array | None = None) -> jax.Array:
    """Targeted difference of logits ratio, f32[b].

    The numerator is the largest logit of the group minus the largest of `leave`, or of all others.
    The denominator is the first logit minus the mean of the third and fourth, where each group
    counts as one class. The ratio does not depend on the scale and shift of the logits.

    Args:
      logits: f32[b k].
      class_mask: bool[b k], the target group.
      leave: bool[b k], the group to leave; None is all other classes.

    Reference: Croce & Hein 2020, arXiv:2003.01690, equation 7; there for single classes.
    """
    gap = _largest(logits, class_mask) - _largest(logits, ~class_mask if leave is None else leave)
    counted = _merge_group(logits, class_mask)
    top = _top_logits(logits, counted if leave is None else _merge_group(counted, leave), 4)
    return _ratio(gap, top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]))


class Loss(NamedTuple):
    """A loss for both kinds of goal."""

    targeted: Score
    untargeted: Score


LOSSES = {
    "ce": Loss(
        group_log_probability, lambda logits, class_mask: group_log_probability(logits, ~class_mask)
    ),
    "margin": Loss(margin, lambda logits, class_mask: -margin(logits, class_mask)),
    "dlr": Loss(targeted_dlr, dlr),
}
"""ce: log probability of the group (targeted) or of all other classes (untargeted). The latter has
the gradient direction and the order of the usual cross-entropy, but is not flat in float32 where
the network is confident.
"""

SUCCESSES = {
    "targeted": _predicts,
    "untargeted": lambda logits, class_mask: _predicts(logits, ~class_mask),
}


def get(kind: Literal["targeted", "untargeted"] | str, loss: str = "ce") -> Goal:
    """The goal of a kind with a loss of `LOSSES`.

    Raises:
      ValueError: an unknown kind or loss; the message has the nearest names.

    Example:
      >>> get("untargeted", "dlr").away
      True
    """
    if kind not in SUCCESSES:
        raise ValueError(f"unknown goal {kind!r}; nearest: {nearest(kind, SUCCESSES)}")
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; nearest: {nearest(loss, LOSSES)}")
    return Goal(getattr(LOSSES[loss], kind), SUCCESSES[kind], kind == "untargeted")


TARGETED = get("targeted")
"""The prediction enters `class_mask`; the score is the log of the group's probability."""

UNTARGETED = get("untargeted")
"""The prediction leaves `class_mask`, the true classes.

The score is the log probability of all other classes.
"""


def success_mask(goal: Goal, class_mask: Array) -> Array:
    """bool[b k], the classes that meet the goal when predicted."""
    return ~class_mask if goal.away else class_mask


def class_mask(groups: Sequence[Sequence[int]], k: int) -> np.ndarray:
    """bool[b k] from the class indices of each image.

    Example:
      >>> class_mask([[0], [1, 2]], 3).astype(int).tolist()
      [[1, 0, 0], [0, 1, 1]]
    """
    mask = np.zeros((len(groups), k), bool)
    for row, indices in zip(mask, groups, strict=True):
        row[list(indices)] = True
    return mask


def least_likely(logits: Array) -> np.ndarray:
    """Class mask bool[b k] of a targeted goal: the least likely class of clean logits f32[b k].

    Reference: Kurakin et al. 2017, arXiv:1607.02533, section 2.3.

    Example:
      >>> least_likely(np.float32([[3.0, 1.0, 2.0]])).astype(int).tolist()
      [[0, 1, 0]]
    """
    return class_mask(np.argmin(np.asarray(logits), axis=1)[:, None].tolist(), logits.shape[1])


def likeliest(logits: Array, among: Array, rank: int | jax.Array) -> jax.Array:
    """Class mask bool[b k] of the class at a rank by logit.

    Args:
      logits: f32[b k].
      among: bool[b k], the classes that are ranked.
      rank: an integer, or i32[b]; 0 is the largest logit. Ranks beyond the last class start again
        at the first.
    """
    order = jnp.argsort(jnp.where(among, logits, -jnp.inf), axis=1, descending=True)
    position = jnp.mod(rank, jnp.maximum(jnp.sum(among, axis=1, dtype=jnp.int32), 1))
    chosen = jnp.take_along_axis(order, position[:, None], axis=1)
    return jnp.arange(logits.shape[1])[None] == chosen
