"""Which image is in which training step."""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np

# --- which picture stands where ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which of `n` examples stand in which step, for all epochs: a pure function of the seed.

    An epoch is every example once, shuffled anew; with `weights` it is n draws with replacement (a sampler that balances
    classes). Its last batch is padded, so that all batches have one shape and no example is left out.

    Attributes:
      n: examples.
      batch_size: slots in a batch.
      epochs: passes over the examples.
      seed: of the NumPy generator (PCG64), together with the epoch's number.
      weights: f64[n], how often each example is drawn, in any unit; see `balanced`.

    Raises:
      ValueError: a number below 1 (`seed`: below 0), or weights that are not n numbers of which one is above 0.

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

    def __post_init__(self) -> None:
        for field, least in (("n", 1), ("batch_size", 1), ("epochs", 1), ("seed", 0)):
            if getattr(self, field) < least:
                raise ValueError(
                    f"a plan's {field} is {getattr(self, field)}, wanted at least {least}"
                )
        if self.weights is not None:
            found = np.asarray(self.weights)
            if found.shape != (self.n,) or not (
                np.isfinite(found).all() and found.min() >= 0 and found.max() > 0
            ):
                raise ValueError(
                    f"a plan's weights are {found.dtype}{list(found.shape)}, wanted {self.n} finite numbers, one an "
                    "example, none below 0 and one above"
                )

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the padded one included."""
        return -(-self.n // self.batch_size)

    def __len__(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_per_epoch

    def rows(self, step: int) -> np.ndarray:
        """int32[b], the examples of a step in [0, len(self)); -1 is padding."""
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of a plan of {len(self)} steps")
        epoch, batch = divmod(step, self.steps_per_epoch)
        rows = np.full(self.batch_size, -1, np.int32)
        part = _order(self, epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        rows[: len(part)] = part
        return rows

    def identity(self) -> dict[str, int | str]:
        """What decides the order of the batches, JSON-ready; more epochs go on in the same order and do not count."""
        weights = None if self.weights is None else np.asarray(self.weights, np.float64)
        drawn = "" if weights is None else hashlib.sha256(weights.tobytes()).hexdigest()[:16]
        return {"n": self.n, "batch_size": self.batch_size, "seed": self.seed, "weights": drawn}


@functools.lru_cache(maxsize=4)  # threads ahead of an epoch's end ask for two by turns
def _order(plan: Plan, epoch: int) -> np.ndarray:
    rng = np.random.default_rng([plan.seed, epoch])
    if plan.weights is None:
        return rng.permutation(plan.n)
    weights = np.asarray(plan.weights, np.float64)
    return rng.choice(plan.n, plan.n, p=weights / weights.sum())


def class_weights(labels: np.ndarray, k: int) -> np.ndarray:
    """Weights of classes in a loss that make each class that is there count alike.

    Args:
      labels: int[n] in [0, k).
      k: number of classes.

    Returns:
      f32[k], inversely proportional to the class's share; the mean over the n examples is 1, so the loss keeps its
      scale and the learning rate its meaning. A class without an example has 0: nothing asks for its weight.

    Example:
      >>> class_weights(np.array([0, 0, 0, 1]), 3).tolist()
      [0.6666666865348816, 2.0, 0.0]
    """
    counts = np.bincount(labels, minlength=k)
    present = counts > 0
    return np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1)), 0.0).astype(
        np.float32
    )


def balanced(labels: np.ndarray) -> np.ndarray:
    """`Plan.weights` that draw each class equally often: f64[n], in sum 1, of labels int[n] that are at least 0."""
    counts = np.bincount(labels)
    return 1.0 / (np.count_nonzero(counts) * counts[labels])
