"""What an attack wants: into a group of classes, or out of one. Scores are maximised; success is the top class's matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl.losses import group_log_probability
from tl.types import Array


class Goal(NamedTuple):
    """An attack's aim, with respect to `members` bool[b k], the classes that it is about.

    Attributes:
      score: `(logits f32[b k], members) -> f32[b]`, to be maximised.
      success: `(logits, members) -> bool[b]`.
    """

    score: Callable[[Array, Array], jax.Array]
    success: Callable[[Array, Array], jax.Array]


def _inside(logits: Array, members: Array) -> jax.Array:
    return jnp.take_along_axis(members, jnp.argmax(logits, axis=1)[:, None], axis=1)[:, 0]


TARGETED = Goal(group_log_probability, _inside)
"""To be called one of `members`: the log of their joint probability."""

UNTARGETED = Goal(
    lambda logits, members: group_log_probability(logits, ~members), lambda logits, members: ~_inside(logits, members)
)
"""Not to be called any of `members`, the classes that are right: the log of the probability of all others, which climbs
with the usual loss, minus the log of the right ones', and unlike it is not flat in float32 where the network is sure."""


def members(groups: Sequence[Sequence[int]], k: int) -> np.ndarray:
    """bool[b k] from each picture's class indices.

    Example:
      >>> members([[0], [1, 2]], 3).astype(int).tolist()
      [[1, 0, 0], [0, 1, 1]]
    """
    mask = np.zeros((len(groups), k), bool)
    for row, indices in zip(mask, groups, strict=True):
        row[list(indices)] = True
    return mask
