"""Power laws of the error over the number of images per class, and where they reach an accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tl import metrics

# Limits of the exponent b. Measured exponents are between 0.07 and 0.5 (Hestness et al. 2017, table
# 1); larger ones occur where few images suffice.
EXPONENTS = (0.0, 4.0)

# Points of the exponent per round of the search, and rounds, each around the best point of the
# previous one: b is exact to about 1e-8.
GRID, ROUNDS = 81, 6

# Decrease of chi-square above which the limit c is part of the fit: the 95 % quantile for one
# parameter.
LIMIT_TEST = 3.84

# Numbers of images per class above this multiple of the largest measured one are not reported;
# chosen, not tuned.
REACH = 100

# Draws of the bootstrap; chosen, not tuned.
DRAWS = 1000


class PowerLaw(NamedTuple):
    """Fits `error(k) = c + a * k^-b` to r curves.

    Attributes:
      a, b, c: f64[r]; all at least 0. `c` is 0 where the fit has no limit.
    """

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray

    def error(self, shots: float) -> np.ndarray:
        """The error f64[r] at a number of images per class."""
        return self.c + self.a * shots**-self.b

    def shots(self, error: float) -> np.ndarray:
        """The number of images per class f64[r] at which an error is reached; infinite if never."""
        above = np.maximum(error - self.c, 0.0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.where(above > 0, (self.a / above) ** (1.0 / self.b), np.inf)


def fit(shots: Sequence[float], errors: np.ndarray, deviations: np.ndarray) -> PowerLaw:
    """Fits power laws by weighted least squares.

    The limit c is part of the fit of a curve if there are at least four points and it decreases
    chi-square by more than `LIMIT_TEST`. Otherwise the points do not determine it, and it is 0.

    Args:
      shots: s numbers of images per class, at least 1 and all different, s at least 2.
      errors: f64[r s], the curves, each in [0, 1].
      deviations: f64[s], standard errors of the points, positive.

    Reference: Hestness et al. 2017, arXiv:1712.00409, section 2 and figure 6: a region of few
      examples in which the error is near that of a guess, a power law, and a limit. They fit in
      logarithms; here the weights are those of the errors, so that an error of 0 is a valid point.
    """
    x = np.asarray(shots, np.float64) / min(shots)
    y, w = np.asarray(errors, np.float64), np.asarray(deviations, np.float64) ** -2.0
    plain, plain_loss = _search(x, y, w, limit=False)
    if len(x) < 4:
        best = plain
    else:
        limited, limited_loss = _search(x, y, w, limit=True)
        keep = plain_loss - limited_loss > LIMIT_TEST
        best = PowerLaw(*(np.where(keep, *pair) for pair in zip(limited, plain, strict=True)))
    return best._replace(a=best.a * min(shots) ** best.b)


def _search(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, *, limit: bool
) -> tuple[PowerLaw, np.ndarray]:
    """The best fits and their chi-squares f64[r]: a grid over b, refined around its best point."""
    low, high = (np.full(len(y), bound) for bound in EXPONENTS)
    for _ in range(ROUNDS):
        b = low[:, None] + (high - low)[:, None] * np.linspace(0.0, 1.0, GRID)[None]  # [r g]
        a, c = _solve(x[None, None] ** -b[..., None], y[:, None], w[None, None], limit)
        fitted = c[..., None] + a[..., None] * x[None, None] ** -b[..., None]
        losses = (w[None, None] * np.square(y[:, None] - fitted)).sum(axis=2)
        rows, best = np.arange(len(y)), losses.argmin(axis=1)
        law = PowerLaw(a[rows, best], b[rows, best], c[rows, best])
        step = (high - low) / (GRID - 1)
        low = np.maximum(law.b - step, EXPONENTS[0])
        high = np.minimum(law.b + step, EXPONENTS[1])
    return law, losses[rows, best]


def _solve(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, limit: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The a and c of at least 0 that minimize `sum w (y - c - a x)^2` over the last axis."""
    without = (w * x * y).sum(axis=-1) / (w * x * x).sum(axis=-1)
    if not limit:
        return without, np.zeros_like(without)
    total = w.sum(axis=-1)
    mean_x, mean_y = (w * x).sum(axis=-1) / total, (w * y).sum(axis=-1) / total
    apart = x - mean_x[..., None]
    spread = (w * apart * apart).sum(axis=-1)
    slope = (w * apart * y).sum(axis=-1) / np.maximum(spread, 1e-30)
    a = np.where(spread > 1e-12 * total, np.maximum(slope, 0.0), 0.0)
    c = mean_y - a * mean_x
    return np.where(c < 0, without, a), np.maximum(c, 0.0)


def extrapolate(
    shots: Sequence[int],
    accuracies: np.ndarray,
    *,
    accuracy: float = 0.0,
    resolution: float,
    seed: int = 0,
) -> dict[str, Any]:
    """The number of images per class at which a learning curve reaches an accuracy.

    Args:
      shots: s numbers of images per class, rising, s at least 3.
      accuracies: f64[s t] in [0, 1], of t seeds.
      accuracy: the accuracy to reach, in (0, 1); 0 halves the error at the largest number.
      resolution: smallest standard error of a point, such as half of a test image; positive.
      seed: seed of the bootstrap over seeds.

    Returns:
      JSON-ready: "accuracy", "shots" and "ci95" of it, where None is a number above `REACH` times
      the largest measured one; "a", "b", "c" of the fit, "b_ci95"; "check", which predicts the
      error at the largest number from the others: "shots", "predicted" and "measured" accuracy,
      and None with fewer than four points. Intervals are percentiles of `DRAWS` bootstrap samples
      of the seeds, and None with one seed. They include the choice whether c is fitted, and not
      the choice of the test images.

    Raises:
      ValueError: fewer than three points, or `accuracy` is outside [0, 1).
    """
    if len(shots) < 3:
        raise ValueError(f"`shots` needs at least 3 numbers for a power law: got {list(shots)}")
    if not 0 <= accuracy < 1:
        raise ValueError(f"`accuracy` must be in [0, 1): got {accuracy:g}")
    errors = 1.0 - np.asarray(accuracies, np.float64)
    count, most = errors.shape[1], max(shots)
    means = errors.mean(axis=1)
    spread = [metrics.spread(row)["std"] for row in errors]
    # One seed says nothing about the deviation of a point; equal weights leave out the limit.
    deviations = np.maximum(np.array(spread) / np.sqrt(count), resolution if count > 1 else 1.0)
    target = 1.0 - accuracy if accuracy else float(means[-1]) / 2
    law = fit(shots, means[None], deviations)
    reached = lambda values: [float(v) if v <= REACH * most else None for v in values]
    result: dict[str, Any] = {
        "accuracy": 1.0 - target,
        "shots": reached(law.shots(target))[0],
        "ci95": None,
        **{name: float(value[0]) for name, value in law._asdict().items()},
        "b_ci95": None,
        "check": None,
    }
    if count > 1:
        drawn = np.random.default_rng(seed).integers(0, count, (DRAWS, count))
        laws = fit(shots, errors.T[drawn].mean(axis=1), deviations)
        bounds = lambda values: np.quantile(values, (0.025, 0.975), method="inverted_cdf")
        result["ci95"] = reached(bounds(laws.shots(target)))
        result["b_ci95"] = bounds(laws.b).tolist()
    if len(shots) > 3:
        predicted = fit(shots[:-1], means[None, :-1], deviations[:-1]).error(most)
        result["check"] = {
            "shots": most,
            "predicted": 1.0 - float(predicted[0]),
            "measured": 1.0 - float(means[-1]),
        }
    return result
