"""Per-example losses, f32[b]. Weights, masks and means are left to the caller."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tl.types import Array


def cross_entropy(logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0) -> jax.Array:
    """Negative log-probability of the label.

    Args:
      logits: f32[b k].
      labels: i32[b] in [0, k).
      smoothing: share of the target that is spread evenly over all k classes, in [0, 1).

    Returns:
      f32[b], nats.

    Reference:
      Szegedy et al. 2016, arXiv:1512.00567, section 7 (smoothing with u = 1/k, the label included).
    """
    return soft_cross_entropy(logits, smooth_labels(labels, logits.shape[1], smoothing))


def smooth_labels(
    labels: jax.Array, k: int, smoothing: float = 0.0, confidence: jax.Array | None = None
) -> jax.Array:
    """Soft targets of integer labels; the row of each label in [0, k) sums to one.

    A label outside [0, k), as in padded slots, matches no class; its row does not sum to one.

    Args:
      labels: i32[b].
      k: number of classes.
      smoothing: share of the target that is spread evenly over all k classes, in [0, 1).
      confidence: f32[b] in [0, 1], the probability of each label; the other k - 1 classes share the
        rest evenly. Default: 1.

    Returns:
      f32[b k].

    Reference:
      Szegedy et al. 2016, arXiv:1512.00567, section 7 (u = 1/k, the label included).
    """
    targets = jax.nn.one_hot(labels, k, dtype=jnp.float32)
    if confidence is not None and k > 1:
        p = confidence[:, None]
        targets = targets * p + (1.0 - targets) * (1.0 - p) / (k - 1)
    return (1.0 - smoothing) * targets + smoothing / k


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy f32[b], nats, of logits f32[b k] and targets f32[b k] (rows sum to one)."""
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=1)


def focal(logits: jax.Array, targets: jax.Array, *, gamma: float = 2.0) -> jax.Array:
    """Cross-entropy with less weight on examples that are already classified well.

    Args:
      logits: f32[b k].
      targets: f32[b k], rows sum to one.
      gamma: exponent of 1 - p; 0 gives `soft_cross_entropy`.

    Returns:
      f32[b], nats.

    Reference: Lin et al. 2017, arXiv:1708.02002, equation 4, here for a softmax.
    """
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(targets * (1.0 - jnp.exp(log_p)) ** gamma * log_p, axis=1)


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The sum over the classes of one binary cross-entropy each.

    Args:
      logits: f32[b k]; their sigmoid is the probability of a class.
      targets: f32[b k] in [0, 1].

    Returns:
      f32[b], nats.

    Reference: Beyer et al. 2020, arXiv:2006.07159, section 4; Wightman et al. 2021,
      arXiv:2110.00476, section 3, take the mean over the classes.
    """
    on, off = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -jnp.sum(targets * on + (1.0 - targets) * off, axis=1)


def bootstrapped(logits: jax.Array, targets: jax.Array, *, share: float = 0.95) -> jax.Array:
    """Cross-entropy with targets that are mixed with the network's own probabilities.

    Args:
      logits: f32[b k].
      targets: f32[b k], rows sum to one; some may be wrong.
      share: weight of the targets, in [0, 1]; 1 gives `soft_cross_entropy`.

    Returns:
      f32[b], nats.

    Reference: Reed et al. 2015, arXiv:1412.6596, equation 6 ("soft", beta = 0.95).
    """
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum((share * targets + (1.0 - share) * jnp.exp(log_p)) * log_p, axis=1)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "cross_entropy": soft_cross_entropy,
    "focal": focal,
    "bce": binary_cross_entropy,
    "bootstrapped": bootstrapped,
}
"""Name -> `(logits f32[b k], targets f32[b k]) -> f32[b]`."""


def group_log_probability(logits: Array, members: Array) -> jax.Array:
    """Log-probability that the class belongs to a group.

    Args:
      logits: f32[b k].
      members: bool[b k], True for the classes of the group; at least one per row.

    Returns:
      f32[b], nats, at most 0. It is computed from logits and stays finite where the probability
      underflows.
    """
    inside = jnp.where(members, logits, -jnp.inf)
    return jax.nn.logsumexp(inside, axis=1) - jax.nn.logsumexp(logits, axis=1)


def kl_divergence(logits: jax.Array, reference: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence KL(softmax(reference) || softmax(logits)).

    Args:
      logits, reference: f32[b k]; both receive a gradient.

    Returns:
      f32[b], nats; zero where the two distributions are equal.
    """
    log_p = jax.nn.log_softmax(reference)
    return jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(logits)), axis=1)
