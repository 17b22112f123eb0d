"""Metrics of a classifier in NumPy: accuracy with intervals, confusion, likelihood, calibration.

`cka` compares two representations. The losses that training minimizes are in `tl.losses`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

# Range of `temperature` (chosen, not tuned).
TEMPERATURES = (0.01, 100.0)


def wilson(correct: int, n: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a proportion, at 95 % by default.

    Args:
      correct: number of successes, 0 to n.
      n: number of trials; 0 gives (0, 1).
      z: quantile of the standard normal distribution.

    Returns:
      `(low, high)`, proportions in [0, 1].

    Raises:
      ValueError: `correct` is not between 0 and n.

    Reference: Wilson 1927, JASA 22, 209-212; Brown, Cai & DasGupta 2001, Statistical Science 16,
      section 3.1.1.

    Example:
      >>> tuple(round(p, 3) for p in wilson(90, 100))
      (0.826, 0.945)
    """
    if not 0 <= correct <= n:
        raise ValueError(f"`correct` must be between 0 and n: got {correct} of {n}")
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, z * z
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # Rounding must not move a bound past p.
    return max(0.0, min(p, float(center - half))), min(1.0, max(p, float(center + half)))


def share(name: str, true: np.ndarray) -> dict[str, Any]:
    """The share of true values in bool[n], n at least 1: `{name, name_ci95}` (`wilson`).

    Example:
      >>> share("top1", np.array([True, True]))
      {'top1': 1.0, 'top1_ci95': [0.34..., 1.0]}
    """
    bounds = wilson(int(true.sum()), len(true))
    return {name: float(true.mean()), f"{name}_ci95": list(bounds)}


def topk_correct(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """Whether the label is among the k highest scores; ties and NaN count against the label.

    Args:
      scores: f[n c].
      labels: i[n].
      k: number of scores to consider, at least 1; with k >= c every label is among them.

    Returns:
      bool[n].
    """
    of_label = scores[np.arange(len(labels)), labels]
    return np.sum(~(scores < of_label[:, None]), axis=1) <= min(k, scores.shape[1])


def predicted_classes(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The predicted classes, where a tie counts as a mistake, as in `topk_correct`.

    The prediction is the class with the highest score. If the label shares it with another class,
    or if a score is NaN, the other class is the prediction. A network whose logits are equal is
    therefore not correct on the images of its first class, as it would be with `argmax`.

    Args:
      scores: f[n c].
      labels: i[n].

    Returns:
      i[n]; equal to `labels` exactly where `topk_correct(scores, labels, 1)`.

    Example:
      >>> predicted_classes(np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), np.array([0, 2]))
      array([1, 2])
    """
    lowest = np.finfo(scores.dtype).min
    others = np.nan_to_num(scores, nan=np.inf, posinf=np.inf, neginf=lowest)
    others[np.arange(len(labels)), labels] = -np.inf
    return np.where(topk_correct(scores, labels, 1), labels, others.argmax(axis=1))


def confusion(labels: np.ndarray, predicted: np.ndarray, k: int) -> np.ndarray:
    """The confusion matrix, i64[k k]: counts of images of class i (row) predicted as j.

    Args:
      labels, predicted: i[n], such as `predicted_classes`.
      k: number of classes.
    """
    return np.bincount(labels * k + predicted, minlength=k * k).reshape(k, k)


def most_confused(matrix: np.ndarray, classes: Sequence[str], n: int = 10) -> list[dict[str, Any]]:
    """The `n` largest off-diagonal cells of a confusion matrix.

    Args:
      matrix: i[k k], as `confusion` returns it.
      classes: k names.
      n: largest number of cells.

    Returns:
      Rows `{"true", "predicted", "count", "of"}`, largest count first; "of" is the number of images
      of the true class. Cells of 0 are left out.
    """
    off = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-off, axis=None, kind="stable")[:n]
    cells = [divmod(int(i), len(matrix)) for i in order]
    return [
        {
            "true": classes[i],
            "predicted": classes[j],
            "count": int(off[i, j]),
            "of": int(matrix[i].sum()),
        }
        for i, j in cells
        if off[i, j]
    ]


def reliability(
    probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15
) -> list[dict[str, float]]:
    """Accuracy as a function of confidence: the rows of a reliability diagram.

    Args:
      probabilities: f[n k], rows sum to one.
      labels: i[n].
      bins: number of bins of equal width over [0, 1].

    Returns:
      Rows `{"low", "high", "confidence", "accuracy", "n"}` by rising confidence: the bounds of the
      bin, and the mean confidence and the accuracy of its `n` images. Empty bins are left out.

    Reference: Guo et al. 2017, arXiv:1706.04599, section 2, with its 15 bins; DeGroot & Fienberg
      1983, The Statistician 32.
    """
    confidence, correct = probabilities.max(axis=1), topk_correct(probabilities, labels, 1)
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    total, hits = (np.bincount(bin_of, weights=w, minlength=bins) for w in (confidence, correct))
    return [
        {
            "low": m / bins,
            "high": (m + 1) / bins,
            "confidence": float(total[m] / count[m]),
            "accuracy": float(hits[m] / count[m]),
            "n": int(count[m]),
        }
        for m in np.flatnonzero(count).tolist()
    ]


def ece(probabilities: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: mean gap between confidence and accuracy over the bins.

    Args:
      probabilities, labels, bins: as for `reliability`.

    Reference: Guo et al. 2017, arXiv:1706.04599, equation 3, with its M = 15.
    """
    rows = reliability(probabilities, labels, bins=bins)
    gaps = sum(row["n"] * abs(row["accuracy"] - row["confidence"]) for row in rows)
    return float(gaps / max(len(labels), 1))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities f64[n k] of logits f[n k]; at least one logit per row must be finite."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that calibrates logits: division by it minimizes the mean NLL.

    Only this one number is fitted; the images must not have been used for training. One virtual
    image with uniform class probabilities is added to the n images. It keeps the temperature away
    from 0 if every prediction is correct (the confidence stays at about 1 - 1 / n). The predicted
    class never changes.

    Args:
      logits: f[n k]; minus infinity marks an impossible class.
      labels: i[n].

    Returns:
      T in `TEMPERATURES`; 1 if all logits of each image are equal, because then no T has an effect.

    Raises:
      ValueError: the number of images is 0.

    Reference: Guo et al. 2017, arXiv:1706.04599, section 4.2. The virtual image follows Platt 1999,
      "Probabilistic outputs for support vector machines", section 2.2.
    """
    if not len(logits):
        raise ValueError(
            "`logits` has no rows: expected at least one image to fit a temperature to"
        )
    n = len(logits)
    possible = np.isfinite(logits)
    # An impossible label costs the same at every temperature.
    counted = possible[np.arange(n), labels]
    z = np.where(possible, logits.astype(np.float64) - logits.max(axis=1, keepdims=True), 0.0)
    of_label = z[np.arange(n), labels] * counted + z.sum(axis=1) / possible.sum(axis=1) / n
    weight = counted + 1.0 / n
    low, high = (1.0 / t for t in reversed(TEMPERATURES))
    if not z.any():
        return 1.0

    def derivatives(beta: float) -> tuple[float, float]:
        """First and second derivative of n times the NLL with respect to 1 / T; it is convex."""
        p = np.exp(beta * z) * possible
        p /= p.sum(axis=1, keepdims=True)
        mean = (p * z).sum(axis=1)
        variance = (p * z * z).sum(axis=1) - mean * mean
        return float((weight * mean - of_label).sum()), float((weight * variance).sum())

    beta = 1.0
    # Newton's method; a step that leaves the bracket is replaced by the bracket's geometric mean.
    for _ in range(60):
        slope, curvature = derivatives(beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        newton = beta - slope / curvature if curvature > 0 else math.inf
        last, beta = beta, newton if low <= newton <= high else math.sqrt(low * high)
        if abs(beta - last) <= 1e-9 * beta:
            break
    return 1.0 / beta


def per_class(
    logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Recall and precision per class, JSON-ready.

    Args:
      logits: f[n k].
      labels: i[n].
      classes: k names.

    Returns:
      One row per class, in their order: `{"class", "n", "recall", "recall_ci95", "called",
      "precision", "precision_ci95"}`. `n` images have the class and `called` images were predicted
      as it; intervals are Wilson's. A recall or precision over zero images is None.
    """
    matrix = confusion(labels, predicted_classes(logits, labels), len(classes))
    rows = []
    for i, name in enumerate(classes):
        correct, n, called = int(matrix[i, i]), int(matrix[i].sum()), int(matrix[:, i].sum())
        rows.append(
            {
                "class": name,
                "n": n,
                "recall": correct / n if n else None,
                "recall_ci95": list(wilson(correct, n)),
                "called": called,
                "precision": correct / called if called else None,
                "precision_ci95": list(wilson(correct, called)),
            }
        )
    return rows


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and 95 % interval of the mean over seeds.

    The interval is Student's t: it covers the variation between seeds, and not the choice of the
    test images if these are the same for all seeds. It is not clipped, so the interval of an
    accuracy may leave [0, 1].

    Args:
      values: one per seed.

    Returns:
      `{"mean", "std", "n", "ci95"}`. "std" is the sample's (n - 1), and 0 for one value; "ci95" is
      `[low, high]`, and None for one value.

    Raises:
      ValueError: `values` is empty.

    Example:
      >>> spread([0.8, 0.9])
      {'mean': 0.85..., 'std': 0.0707..., 'n': 2, 'ci95': [0.214..., 1.485...]}
    """
    from scipy import special  # a dependency of JAX, imported here to keep `import tl` light

    n = len(values)
    if not n:
        raise ValueError("`values` is empty: expected at least one value")
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1)) if n > 1 else 0.0
    half = float(special.stdtrit(n - 1, 0.975)) * std / math.sqrt(n) if n > 1 else None
    interval = None if half is None else [mean - half, mean + half]
    return {"mean": mean, "std": std, "n": n, "ci95": interval}


def mean_interval(rows: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The interval of the mean of independent proportions, such as the recalls of all classes.

    Args:
      rows: `(proportion, low, high)` each, with intervals of one level, such as `wilson`.

    Returns:
      `(low, high)`. The distances of the bounds from their proportions are added as variances are.

    Reference: Zou & Donner 2008, Statistics in Medicine 27, 1693-1702 (MOVER). For two proportions
      it is method 10 of Newcombe 1998, Statistics in Medicine 17, 873-890.
    """
    p, low, high = np.array(rows, np.float64).T
    below, above = (float(np.sqrt(np.square(p - bound).sum())) / len(p) for bound in (low, high))
    return max(0.0, float(p.mean()) - below), min(1.0, float(p.mean()) + above)


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centered kernel alignment: the similarity of two representations of the same n images.

    It is 1 if one representation is a rotation, scaling and shift of the other; other linear maps
    change it. This is the biased estimator: with few images and many features even unrelated
    representations appear similar, so compare values at equal n only.

    Args:
      x, y: f[n d1], f[n d2], one row per image in the same order; centered here.

    Returns:
      A number in [0, 1].

    Raises:
      ValueError: the arrays do not have two axes and the same n, n is less than 2, a value is not
        finite, or the features are equal for all images.

    Reference: Kornblith et al. 2019, arXiv:1905.00414, section 3 (HSIC and CKA) with the linear
      kernel; the equality of its two forms is their equation 1.

    Example:
      >>> x = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0]])
      >>> round(cka(x, 3.0 * x[:, ::-1] + 7.0), 6)
      1.0
    """
    if np.ndim(x) != 2 or np.ndim(y) != 2 or len(x) != len(y):
        raise ValueError(
            "`x` and `y` have the wrong shapes: got "
            f"{list(np.shape(x))} and {list(np.shape(y))}, expected [n d1] and [n d2] of the same n"
        )
    n = len(x)
    if n < 2:
        raise ValueError(f"`x` has too few rows: got {n}, expected at least 2 images")
    a, b = (_centered(np.asarray(table, np.float64), name) for table, name in ((x, "x"), (y, "y")))
    if n < max(a.shape[1], b.shape[1]):  # the same sums over n x n kernels: fewer operations
        kernel_a, kernel_b = a @ a.T, b @ b.T
        cross = float((kernel_a * kernel_b).sum())
    else:
        kernel_a, kernel_b = a.T @ a, b.T @ b
        cross = float(np.square(b.T @ a).sum())
    norms = float(np.linalg.norm(kernel_a) * np.linalg.norm(kernel_b))
    return min(1.0, max(0.0, cross / norms))


def _centered(table: np.ndarray, name: str) -> np.ndarray:
    """Features f64[n d] minus their mean, scaled so that their fourth powers stay finite."""
    if not np.isfinite(table).all():
        raise ValueError(f"`{name}` has a value that is not finite: expected finite features")
    if (table == table[0]).all():
        raise ValueError(
            f"`{name}` is constant: got the same features for all {len(table)} images, expected "
            "features that vary"
        )
    centered = table - table.mean(axis=0)
    return centered / np.abs(centered).max()


def summarize(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The metrics of an evaluation, JSON-ready.

    Args:
      logits: f32[n k], n at least 1.
      labels: i[n].

    Returns:
      "n", "top1", "top1_ci95" (Wilson), "top3", "top3_ci95", "balanced" (mean recall over the
      classes present), "balanced_ci95" (`mean_interval`), "nll" (mean, nats) and "ece". A tie
      counts as a mistake in all of them.

    Raises:
      ValueError: the number of images is 0.
    """
    n, k = logits.shape
    if n == 0:
        raise ValueError("`logits` has no rows: expected at least one image to evaluate")
    log_p = log_softmax(logits)
    in_top1, in_top3 = (topk_correct(logits, labels, rank) for rank in (1, 3))
    hits, of_class = (np.bincount(x, minlength=k) for x in (labels[in_top1], labels))
    recalls = [
        (c / m, *wilson(c, m)) for c, m in zip(hits.tolist(), of_class.tolist(), strict=True) if m
    ]
    return {
        "n": n,
        **share("top1", in_top1),
        **share("top3", in_top3),
        "balanced": float(np.mean([recall for recall, *_ in recalls])),
        "balanced_ci95": list(mean_interval(recalls)),
        "nll": float(-log_p[np.arange(n), labels].mean()),
        "ece": ece(np.exp(log_p), labels),
    }


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities f64[n k] of logits f[n k]."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
