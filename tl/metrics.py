"""How good a classifier is, in numpy: accuracies with their interval, confusion, likelihood, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


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
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, min(p, float(centre - half))), min(1.0, max(p, float(centre + half)))  # p is inside, rounded or not


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
        {"true": classes[i], "predicted": classes[j], "count": int(off[i, j]), "of": int(matrix[i].sum())}
        for i, j in rows
        if off[i, j]
    ]


def ece(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal-width bins, in [0, 1].

    Reference: Guo et al. 2017, arXiv:1706.04599, equation 3, with its M = 15.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, weights=right.astype(float) - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / max(len(labels), 1))


def summarise(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
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
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
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
