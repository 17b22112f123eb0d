"""How good a classifier is, in numpy: accuracies with their interval, confusion, likelihood, calibration; how alike two are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

TEMPERATURES = (0.01, 100.0)  # between which `temperature` looks (chosen, not tuned)


def wilson(correct: int, n: int, *, z: float = 1.959964) -> tuple[float, float]:
    """The interval of a proportion, by default at 95 %.

    Args:
      correct: successes, 0 to n.
      n: trials; 0 gives (0, 1).
      z: normal quantile.

    Reference: Wilson 1927, JASA 22, 209-212; Brown, Cai & DasGupta 2001, Statistical Science 16, section 3.1.1.

    Example:
      >>> tuple(round(p, 3) for p in wilson(90, 100))
      (0.826, 0.945)
    """
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n}: wanted 0 <= correct <= n")
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, z * z
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, min(p, float(center - half))), min(
        1.0, max(p, float(center + half))
    )  # p is inside, rounded or not


def topk_correct(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Is the label among the k highest scores: f[n c], i[n] -> bool[n]. Ties and NaN count against the label."""
    own = scores[np.arange(len(labels)), labels]
    return np.sum(~(scores < own[:, None]), axis=1) <= min(k, scores.shape[1])


def confusion(labels: np.ndarray, predicted: np.ndarray, k: int) -> np.ndarray:
    """How often class i (row) was called j (column): i64[k k]."""
    return np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)


def most_confused(matrix: np.ndarray, classes: Sequence[str], n: int = 10) -> list[dict[str, Any]]:
    """The `n` largest cells off the diagonal, as `{"true", "predicted", "count", "of"}`."""
    off = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-off, axis=None, kind="stable")[:n]
    rows = [divmod(int(i), len(matrix)) for i in order]
    return [
        {
            "true": classes[i],
            "predicted": classes[j],
            "count": int(off[i, j]),
            "of": int(matrix[i].sum()),
        }
        for i, j in rows
        if off[i, j]
    ]


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15
) -> list[dict[str, float]]:
    """How often the network is right when it says so sure: a row for each bin of confidence that holds a picture.

    Args:
      probabilities: f[n k], rows sum to one.
      labels: i[n].
      bins: of equal width over [0, 1].

    Returns:
      `{"low", "high", "confidence", "accuracy", "n"}` by rising confidence: the bin's borders, and the mean confidence and
      the accuracy of its `n` pictures; no row where there is no picture.

    Reference: Guo et al. 2017, arXiv:1706.04599, section 2, with its 15 bins; DeGroot & Fienberg 1983, The Statistician 32.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    sure, hits = (np.bincount(bin_of, weights=w, minlength=bins) for w in (confidence, right))
    return [
        {
            "low": m / bins,
            "high": (m + 1) / bins,
            "confidence": float(sure[m] / count[m]),
            "accuracy": float(hits[m] / count[m]),
            "n": int(count[m]),
        }
        for m in np.flatnonzero(count).tolist()
    ]


def ece(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal-width bins, in [0, 1].

    Reference: Guo et al. 2017, arXiv:1706.04599, equation 3, with its M = 15.
    """
    rows = reliability(probabilities, labels, bins=bins)
    return float(
        sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows)
        / max(len(labels), 1)
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities f64[n k] of logits f[n k]; a logit may be minus infinity, but not all of a row."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The number that logits want to be divided by, so that probabilities are as often right as they say.

    The minimum of the mean NLL over one number, on pictures that nothing was fitted to. One picture that may be of any
    class is counted beside the n, so that a set on which every answer is right does not ask for certainty: about 1 - 1 / n
    is left then. What is never changed is which class is the first.

    Args:
      logits: f[n k]; minus infinity says that a class is impossible.
      labels: i[n].

    Returns:
      T in `TEMPERATURES`; 1 where all logits of a picture are the same, so that none does anything.

    Reference: Guo et al. 2017, arXiv:1706.04599, section 4.2. The picture beside the n is after Platt 1999, "Probabilistic
      outputs for support vector machines", section 2.2.
    """
    if not len(logits):
        raise ValueError("there is no example to fit a temperature to")
    n = len(logits)
    possible = np.isfinite(logits)
    counted = possible[
        np.arange(n), labels
    ]  # an impossible label costs the same at every temperature
    z = np.where(possible, logits.astype(np.float64) - logits.max(axis=1, keepdims=True), 0.0)
    own = z[np.arange(n), labels] * counted + z.sum(axis=1) / possible.sum(axis=1) / n
    weight = counted + 1.0 / n
    low, high = (1.0 / t for t in reversed(TEMPERATURES))
    if not z.any():
        return 1.0

    def slopes(beta: float) -> tuple[float, float]:
        """The first and second derivative of the NLL times n, with respect to 1 / T: it is convex there."""
        p = np.exp(beta * z) * possible
        p /= p.sum(axis=1, keepdims=True)
        mean = (p * z).sum(axis=1)
        return float((weight * mean - own).sum()), float(
            (weight * ((p * z * z).sum(axis=1) - mean * mean)).sum()
        )

    beta = 1.0
    for _ in range(
        60
    ):  # Newton's steps, and the middle of the bracket (on a logarithmic scale) where they leave it
        slope, bend = slopes(beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        newton = beta - slope / bend if bend > 0 else math.inf
        last, beta = beta, newton if low <= newton <= high else math.sqrt(low * high)
        if abs(beta - last) <= 1e-9 * beta:
            break
    return 1.0 / beta


def per_class(
    logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """How well each class is known, one row a class in their order, JSON-ready.

    Args:
      logits: f[n k].
      labels: i[n].
      classes: k names.

    Returns:
      `{"class", "n", "recall", "recall_ci95", "called", "precision", "precision_ci95"}`: of its `n` pictures the share that was
      called so, and of the `called` pictures that were called so the share that is so, each with its Wilson interval; None
      for a share of nothing.
    """
    matrix = confusion(labels, logits.argmax(axis=1), len(classes))
    rows = []
    for i, name in enumerate(classes):
        right, n, called = int(matrix[i, i]), int(matrix[i].sum()), int(matrix[:, i].sum())
        rows.append(
            {
                "class": name,
                "n": n,
                "recall": right / n if n else None,
                "recall_ci95": list(wilson(right, n)),
                "called": called,
                "precision": right / called if called else None,
                "precision_ci95": list(wilson(right, called)),
            }
        )
    return rows


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation over seeds: `{"mean", "std", "n"}`; the deviation of a sample (n - 1), 0 for one value.

    Example:
      >>> spread([0.8, 0.9])
      {'mean': 0.85..., 'std': 0.0707..., 'n': 2}
    """
    if not len(values):
        raise ValueError("there is no value to take the mean of")
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": std, "n": len(values)}


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """How alike two representations of the same n pictures are, by the linear kernel: centred kernel alignment.

    1 where one is the other turned (an orthogonal map), scaled and shifted; a general linear map changes it. It is the plain
    estimate: with few pictures for many features even two unrelated representations look alike, so compare values of one n.

    Args:
      x, y: f[n d1], f[n d2], a row a picture, in the same order; centred here, computed in float64.

    Returns:
      In [0, 1].

    Raises:
      ValueError: not two tables of the same n, fewer than 2 pictures, a number that is not finite, or features that are the
        same for every picture.

    Reference: Kornblith et al. 2019, arXiv:1905.00414, section 3 (HSIC and CKA) with the linear kernel; the equality of its two
      forms is their equation 1.

    Example:
      >>> x = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0]])
      >>> round(cka(x, 3.0 * x[:, ::-1] + 7.0), 6)
      1.0
    """
    if np.ndim(x) != 2 or np.ndim(y) != 2 or len(x) != len(y):
        raise ValueError(
            f"cka compares f[n d1] with f[n d2] of the same n; got {list(np.shape(x))}, {list(np.shape(y))}"
        )
    n = len(x)
    if n < 2:
        raise ValueError(f"cka wants at least 2 pictures; got {n}")
    a, b = (
        _centered(np.asarray(table, np.float64), which)
        for table, which in ((x, "first"), (y, "second"))
    )
    if n < max(
        a.shape[1], b.shape[1]
    ):  # the same three sums over n x n kernels: less work where there are few pictures
        kernel_a, kernel_b = a @ a.T, b @ b.T
        together = float((kernel_a * kernel_b).sum())
    else:
        kernel_a, kernel_b = a.T @ a, b.T @ b
        together = float(np.square(b.T @ a).sum())
    return min(1.0, max(0.0, together / float(np.linalg.norm(kernel_a) * np.linalg.norm(kernel_b))))


def _centered(table: np.ndarray, which: str) -> np.ndarray:
    """Features f64[n d] about their mean, scaled so that their fourth powers stay finite."""
    if not np.isfinite(table).all():
        raise ValueError(f"the {which} features hold a number that is not finite")
    if (table == table[0]).all():
        raise ValueError(
            f"the {which} features are the same for all {len(table)} pictures, so nothing can vary with them"
        )
    centred = table - table.mean(axis=0)
    return centred / np.abs(centred).max()


def summarize(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """All the figures of one evaluation, JSON-ready.

    Args:
      logits: f32[n k], n at least 1.
      labels: i[n].

    Returns:
      `n`, `top1`, `top1_ci95` (Wilson), `top3`, `balanced` (mean recall over the classes present), `nll` (nats), `ece`.
    """
    n, k = logits.shape
    if n == 0:
        raise ValueError("there is no example to evaluate")
    log_p = log_softmax(logits)
    right = topk_correct(logits, labels, 1)
    matrix = confusion(labels, logits.argmax(axis=1), k)
    present = matrix.sum(axis=1) > 0
    return {
        "n": n,
        "top1": float(right.mean()),
        "top1_ci95": list(wilson(int(right.sum()), n)),
        "top3": float(topk_correct(logits, labels, 3).mean()),
        "balanced": float((np.diag(matrix)[present] / matrix.sum(axis=1)[present]).mean()),
        "nll": float(-log_p[np.arange(n), labels].mean()),
        "ece": ece(np.exp(log_p), labels),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities f64[n k] of logits."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
