"""Per-example losses, f32[b], never averaged here: weights, masks and means are the caller's."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tl.types import Array


def cross_entropy(logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0) -> jax.Array:
    """Negative log-probability of the label.

    Args:
      logits: f32[b k].
      labels: i32[b] in [0, k).
      smoothing: share of the target spread evenly over all k classes, in [0, 1).

    Returns:
      f32[b], nats.

    Reference: Szegedy et al. 2016, arXiv:1512.00567, section 7 (smoothing, with u = 1/k, the label included).
    """
    log_p = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    return -(1.0 - smoothing) * own - smoothing * jnp.mean(log_p, axis=1)


def group_log_probability(logits: Array, members: Array) -> jax.Array:
    """Log of the probability that the class is one of a group's.

    Args:
      logits: f32[b k].
      members: bool[b k], True for the classes of the group; at least one a row.

    Returns:
      f32[b], nats, at most 0; computed from logits, so that it does not vanish where the probability does.
    """
    inside = jnp.where(members, logits, -jnp.inf)
    return jax.nn.logsumexp(inside, axis=1) - jax.nn.logsumexp(logits, axis=1)
