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
    return soft_cross_entropy(logits, smoothed(labels, logits.shape[1], smoothing))


def smoothed(
    labels: jax.Array, k: int, smoothing: float = 0.0, confidence: jax.Array | None = None
) -> jax.Array:
    """Targets f32[b k] of labels i32[b]: one, less the share that is spread evenly over all k classes; rows sum to one.

    With `confidence` f32[b] a label has that in place of one, and the other k - 1 classes share the rest evenly.

    Reference: Szegedy et al. 2016, arXiv:1512.00567, section 7 (u = 1/k, the label included). A label outside [0, k), as
    padding has it, gives a row without the one.
    """
    targets = jax.nn.one_hot(labels, k, dtype=jnp.float32)
    if confidence is not None and k > 1:
        sure = confidence[:, None]
        targets = targets * sure + (1.0 - targets) * (1.0 - sure) / (k - 1)
    return (1.0 - smoothing) * targets + smoothing / k


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy f32[b], nats, between targets f32[b k] (rows sum to one) and the logits f32[b k]."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=1)


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


def divergence(logits: jax.Array, reference: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence f32[b], nats, of what `logits` say from what `reference` says, both f32[b k].

    Zero where the two agree; it has a gradient for both.
    """
    said = jax.nn.log_softmax(reference)
    return jnp.sum(jnp.exp(said) * (said - jax.nn.log_softmax(logits)), axis=1)
