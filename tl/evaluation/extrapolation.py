"""Power laws of the error over the number of images per class, and where they reach an accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

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
    shots: Sequence[int], correct: np.ndarray, *, accuracy: float = 0.0, seed: int = 0
) -> dict[str, Any]:
    """The number of images per class at which a learning curve reaches an accuracy.

    Args:
      shots: s numbers of images per class, rising, s at least 3.
      correct: bool[s t m], whether each of m test images was classified correctly after the fit to
        each of t draws.
      accuracy: the accuracy to reach, in (0, 1); 0 halves the error at the largest number.
      seed: seed of the bootstrap.

    Returns:
      JSON-ready: "accuracy", "shots" and "ci95" of it, where None is a number above `REACH` times
      the largest measured one; "a", "b", "c" of the fit, "b_ci95"; "check", which predicts the
      error at the largest number from the others: "shots", "predicted" and "measured" accuracy,
      and None with fewer than four points. Intervals are percentiles of `DRAWS` bootstrap samples
      of the draws and of the test images, and None with one draw. They include the choice whether c
      is fitted.

    Raises:
      ValueError: fewer than three points, or `accuracy` is outside [0, 1).
    """
    if len(shots) < 3:
        raise ValueError(f"`shots` needs at least 3 numbers for a power law: got {list(shots)}")
    if not 0 <= accuracy < 1:
        raise ValueError(f"`accuracy` must be in [0, 1): got {accuracy:g}")
    wrong, most = 1.0 - np.asarray(correct, np.float64), max(shots)
    draws, images = wrong.shape[1:]
    means = wrong.mean(axis=(1, 2))
    # The fit describes these test images: only the draws deviate, and half of an image at least.
    # One draw says nothing about the deviation of a point; equal weights leave out the limit.
    deviations = np.ones(len(shots))
    if draws > 1:
        of_draws = wrong.mean(axis=2).std(axis=1, ddof=1) / np.sqrt(draws)
        deviations = np.maximum(of_draws, 0.5 / images)
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
    if draws > 1:
        laws = fit(shots, _resample(wrong, seed), deviations)
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


def _resample(wrong: np.ndarray, seed: int) -> np.ndarray:
    """Mean errors f64[`DRAWS` s] of bootstrap samples of the draws and of the images.

    A sample has the same draws and images at all points, as the measurement has.

    Args:
      wrong: f64[s t m], 1 for a mistake.
      seed: of the samples.
    """
    rng = np.random.default_rng(seed)
    draws, images = wrong.shape[1:]
    samples = []
    for _ in range(DRAWS):
        of_draws = rng.multinomial(draws, np.full(draws, 1 / draws)) / draws
        of_images = rng.multinomial(images, np.full(images, 1 / images)) / images
        samples.append(of_draws @ (wrong @ of_images).T)
    return np.stack(samples)
