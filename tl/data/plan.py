"""The order of examples in training: a pure function of the seed and the epoch.

A `Plan` maps a step to the examples of its batch, so the position in a training run is one number,
the step. `class_weights` and `balanced` compute weights against class imbalance. This module reads
no images; `loader.stream` does.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The assignment of `n` examples to the steps of all epochs.

    An epoch contains every example once, in a new random order. With `weights`, it contains n draws
    with replacement, for example to balance classes. The last batch of an epoch is padded, so all
    batches have one shape and no example is left out.

    Attributes:
      n: number of examples.
      batch_size: slots per batch.
      epochs: passes over the examples.
      seed: seed of the NumPy generator (PCG64), used together with the number of the epoch.
      weights: f64[n], the relative frequency of each example; see `balanced`.
      slots: i[m], the slots of each batch that this process reads; None: all.

    Raises:
      ValueError: `n`, `batch_size` or `epochs` is below 1, `seed` is below 0, or `weights` are not
        n finite numbers of at least 0, of which one is above 0.

    Example:
      >>> plan = Plan(n=3, batch_size=2, epochs=2, seed=1)
      >>> [plan.rows(step).tolist() for step in range(len(plan))]
      [[0, 1], [2, -1], [2, 0], [1, -1]]
    """

    n: int
    batch_size: int
    epochs: int
    seed: int
    weights: np.ndarray | None = None
    slots: np.ndarray | None = None

    def __post_init__(self) -> None:
        for field, least in (("n", 1), ("batch_size", 1), ("epochs", 1), ("seed", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"`{field}` must be at least {least}: got {getattr(self, field)}")
        if self.weights is not None:
            weights = np.asarray(self.weights)
            if weights.shape != (self.n,) or not (
                np.isfinite(weights).all() and weights.min() >= 0 and weights.max() > 0
            ):
                raise ValueError(
                    f"`weights` must be {self.n} finite numbers of at least 0, one per example and "
                    f"not all 0: got {weights.dtype}{list(weights.shape)}"
                )

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch, including the padded one."""
        return -(-self.n // self.batch_size)

    def __len__(self) -> int:
        """Number of steps in all epochs."""
        return self.epochs * self.steps_per_epoch

    def rows(self, step: int) -> np.ndarray:
        """The examples of a step in [0, len(self)), i32[b], or of its `slots`; -1 is padding."""
        if not 0 <= step < len(self):
            raise IndexError(f"`step` must be in [0, {len(self)}): got {step}")
        epoch, batch = divmod(step, self.steps_per_epoch)
        rows = np.full(self.batch_size, -1, np.int32)
        part = _order(self, epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        rows[: len(part)] = part
        return rows if self.slots is None else rows[self.slots]

    def identity(self) -> dict[str, int | str]:
        """The values that decide the order of the batches, JSON-ready.

        `epochs` is not part of it, because additional epochs continue in the same order.
        """
        weights = None if self.weights is None else np.asarray(self.weights, np.float64)
        digest = "" if weights is None else hashlib.sha256(weights.tobytes()).hexdigest()[:16]
        return {"n": self.n, "batch_size": self.batch_size, "seed": self.seed, "weights": digest}


@functools.lru_cache(maxsize=4)  # at the end of an epoch, threads alternate between two of them
def _order(plan: Plan, epoch: int) -> np.ndarray:
    rng = np.random.default_rng([plan.seed, epoch])
    if plan.weights is None:
        return rng.permutation(plan.n)
    weights = np.asarray(plan.weights, np.float64)
    return rng.choice(plan.n, plan.n, p=weights / weights.sum())


def class_weights(labels: np.ndarray, k: int) -> np.ndarray:
    """Loss weights that give every class with examples the same total weight.

    Args:
      labels: i[n] in [0, k).
      k: number of classes.

    Returns:
      f32[k], inversely proportional to the frequency of the class. The mean over the n examples is
      1, so the scale of the loss does not change. A class without examples
      has weight 0.

    Example:
      >>> class_weights(np.array([0, 0, 0, 1]), 3).tolist()
      [0.6666666865348816, 2.0, 0.0]
    """
    counts = np.bincount(labels, minlength=k)
    present = counts > 0
    weights = len(labels) / (present.sum() * np.maximum(counts, 1))
    return np.where(present, weights, 0.0).astype(np.float32)


def balanced(labels: np.ndarray) -> np.ndarray:
    """`Plan.weights` that draw all classes with the same frequency.

    Args:
      labels: i[n], at least 0.

    Returns:
      f64[n], sums to one.
    """
    counts = np.bincount(labels)
    return 1.0 / (np.count_nonzero(counts) * counts[labels])
