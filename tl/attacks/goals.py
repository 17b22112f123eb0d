"""What an attack wants: into a group of classes, or out of one. Scores are maximised; success is the top class's matter.

A `Goal` is a kind (targeted, untargeted) with a loss (`LOSSES`). To add a loss: a function of logits and the group, a row.
In the losses made of single logits (margin, DLR) a group counts once, with the logit of its likeliest class.
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
"""`(logits f32[b k], class_mask bool[b k]) -> f32[b]`, to be maximised."""


class Goal(NamedTuple):
    """An attack's aim, with respect to `class_mask` bool[b k], the classes that it is about.

    Attributes:
      score: `(logits f32[b k], class_mask) -> f32[b]`, to be maximised.
      success: `(logits, class_mask) -> bool[b]`; logits with a NaN are none.
      away: whether `class_mask` are the classes to get away from (untargeted), not those to get to (targeted).
    """

    score: Score
    success: Callable[[Array, Array], jax.Array]
    away: bool


def _inside(logits: Array, class_mask: Array) -> jax.Array:
    numbers = ~jnp.any(jnp.isnan(logits), axis=1)  # argmax takes a NaN for the largest
    return (
        jnp.take_along_axis(class_mask, jnp.argmax(logits, axis=1)[:, None], axis=1)[:, 0] & numbers
    )


def _best(logits: Array, class_mask: Array) -> jax.Array:
    return jnp.max(jnp.where(class_mask, logits, -jnp.inf), axis=1)


def _as_one(logits: Array, class_mask: Array) -> jax.Array:
    """Logits in which only the likeliest of the members is left; the others are minus infinity."""
    first = jnp.argmax(jnp.where(class_mask, logits, -jnp.inf), axis=1)
    return jnp.where(
        class_mask & (jnp.arange(logits.shape[1])[None] != first[:, None]), -jnp.inf, logits
    )


def _ranks(logits: Array, counted: Array, n: int) -> jax.Array:
    """The n largest of the counted logits, f32[b n]; where fewer count, the lowest of all logits stands in."""
    if logits.shape[1] < n:
        raise ValueError(
            f"this DLR loss wants at least {n} classes; the logits have {logits.shape[1]}; take 'margin'"
        )
    top = jax.lax.top_k(counted, n)[0]
    return jnp.where(jnp.isfinite(top), top, jnp.min(logits, axis=1, keepdims=True))


def _ratio(gap: jax.Array, shard_rows: jax.Array) -> jax.Array:
    return gap / jnp.maximum(
        shard_rows, 1e-12
    )  # equal logits, as a broken network has them, score zero


def margin(logits: Array, class_mask: Array) -> jax.Array:
    """By how much the group's best logit is above the best of all others: f32[b k], bool[b k] -> f32[b]."""
    return _best(logits, class_mask) - _best(logits, ~class_mask)


def dlr(logits: Array, class_mask: Array) -> jax.Array:
    """Difference of logits ratio, f32[b]: how far the best other class is above the group, over the first three's spread.

    Neither adding to all logits nor scaling them changes it. Where the network is right it lies in [-1, 0]. The three are
    ranked with the group as one class; were its own second best among them, the spread would grow inside of the group.

    Reference: Croce & Hein 2020, arXiv:2003.01690, equation 6; groups are ours.
    """
    top = _ranks(logits, _as_one(logits, class_mask), 3)
    return _ratio(-margin(logits, class_mask), top[:, 0] - top[:, 2])


def targeted_dlr(logits: Array, class_mask: Array, left: Array | None = None) -> jax.Array:
    """How far the group `class_mask` is above `left`, or above the best of all others: f32[b], of any scale and shift.

    The divisor is the first logit less the mean of the third and the fourth, each group as one class.

    Reference: Croce & Hein 2020, arXiv:2003.01690, equation 7, where both are single classes.
    """
    gap = _best(logits, class_mask) - _best(logits, ~class_mask if left is None else left)
    counted = _as_one(logits, class_mask)
    top = _ranks(logits, counted if left is None else _as_one(counted, left), 4)
    return _ratio(gap, top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]))


class Loss(NamedTuple):
    """One loss in its two directions."""

    targeted: Score
    untargeted: Score


LOSSES = {
    "ce": Loss(
        group_log_probability, lambda logits, class_mask: group_log_probability(logits, ~class_mask)
    ),
    "margin": Loss(margin, lambda logits, class_mask: -margin(logits, class_mask)),
    "dlr": Loss(targeted_dlr, dlr),
}
"""ce: the log of the probability to be in the group, or out of it. Untargeted, it climbs in the direction of the usual
cross-entropy and in the same order, and unlike it is not flat in float32 where the network is sure."""

SUCCESSES = {
    "targeted": _inside,
    "untargeted": lambda logits, class_mask: _inside(logits, ~class_mask),
}


def get(kind: Literal["targeted", "untargeted"] | str, loss: str = "ce") -> Goal:
    """The goal of that kind with that loss; ValueError with the nearest names where there is none.

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
"""To be called one of `class_mask`: the log of their joint probability."""

UNTARGETED = get("untargeted")
"""Not to be called any of `class_mask`, the classes that are right: the log of the probability of all others."""


def success_mask(goal: Goal, class_mask: Array) -> Array:
    """bool[b k], the classes of which any, as the top one, is success."""
    return ~class_mask if goal.away else class_mask


def class_mask(groups: Sequence[Sequence[int]], k: int) -> np.ndarray:
    """bool[b k] from each picture's class indices.

    Example:
      >>> class_mask([[0], [1, 2]], 3).astype(int).tolist()
      [[1, 0, 0], [0, 1, 1]]
    """
    mask = np.zeros((len(groups), k), bool)
    for row, indices in zip(mask, groups, strict=True):
        row[list(indices)] = True
    return mask


def least_likely(logits: Array) -> np.ndarray:
    """Members bool[b k] for a targeted goal: of clean logits f32[b k], the least likely class.

    Reference: Kurakin et al. 2017, arXiv:1607.02533, section 2.3.

    Example:
      >>> least_likely(np.float32([[3.0, 1.0, 2.0]])).astype(int).tolist()
      [[0, 1, 0]]
    """
    return class_mask(np.argmin(np.asarray(logits), axis=1)[:, None].tolist(), logits.shape[1])


def likeliest(logits: Array, among: Array, rank: int | jax.Array) -> jax.Array:
    """bool[b k], of the classes `among` bool[b k] the one of that rank, 0 the likeliest; past the last, from the first."""
    order = jnp.argsort(jnp.where(among, logits, -jnp.inf), axis=1, descending=True)
    place = jnp.mod(rank, jnp.maximum(jnp.sum(among, axis=1, dtype=jnp.int32), 1))
    return jnp.arange(logits.shape[1])[None] == jnp.take_along_axis(order, place[:, None], axis=1)
