"""Classifiers of few labeled images, and the draws of k images per class that they are fitted to.

Each method is a row of `METHODS`. All but one are fitted to frozen features in NumPy, so that many
draws cost one forward pass per image; `lp_ft` fine-tunes the network for every draw. To add a
method, write a function of one of the two forms and add a row. `tl.evaluation.shots` measures them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from tl import cpu, inference, metrics
from tl.data import DataSpec
from tl.models import Classifier
from tl.paths import nearest
from tl.training import probe
from tl.training.fit import fit as fine_tune
from tl.training.recipe import Recipe
from tl.types import Array, Variables

# Strengths where a class has one example, so that none can be held out. That of the ridge is the
# penalty of `lsr`; that of the logistic probe is chosen, not tuned.
SINGLE = {"logistic": 0.01, "ridge": 2.0**-10}

# Largest number of folds in which a strength is chosen; chosen, not tuned.
FOLDS = 5

# The bias feature and the penalty of big_vision's few-shot evaluator (see `_lsr`).
LSR_BIAS, LSR_PENALTY = 100.0, 2.0**10

# Factor of cosine similarities in the softmax: the start of the learned factor of Gidaris &
# Komodakis 2018, arXiv:1804.09458. Chen et al. 2019 use 2 for up to 200 classes in their code.
COSINE_SCALE = 10.0

# Steps of L-BFGS for the cosine head; chosen, not tuned.
COSINE_STEPS = 100

# Recipe of `lp_ft`; chosen, not tuned.
LP_FT = Recipe(tune="lp_ft", epochs=10, lr=1e-3, augment="flip")

Scores = Callable[[np.ndarray], np.ndarray]
"""`features f32[m d] -> scores f[m k]`; the class with the highest score is the prediction."""

FeatureFit = Callable[[np.ndarray, np.ndarray, int, int], Scores]
"""`(features f32[n d], labels i[n], classes, seed) -> Scores`."""

ImageFit = Callable[[Classifier, Variables, DataSpec, int], Callable[[DataSpec], np.ndarray]]
"""`(clf, variables, labeled images, seed) -> (images -> scores f32[m k])`; the head of `clf` is
not used, and images that cannot be read have no scores.
"""


@cpu.one_blas_thread()
def fit(method: str, features: Array, labels: np.ndarray, classes: int, *, seed: int = 0) -> Scores:
    """A classifier that is fitted to frozen features.

    Args:
      method: a name of `METHODS` that needs no images.
      features: f32[n d].
      labels: i[n] in [0, classes), with at least one example of each class.
      classes: k, at least 2.
      seed: seed of the folds in which a strength is chosen.

    Returns:
      The function `features f32[m d] -> scores f[m k]`.

    Raises:
      ValueError: an unknown method, one that needs images, or a class without an example.

    Example:
      >>> scores = fit("nearest_mean", np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([0, 1]), 2)
      >>> scores(np.array([[1.9, 1.0]])).argmax(axis=1)
      array([1])
    """
    row = get(method)
    if row.fit is None:
        names = [name for name, other in METHODS.items() if other.fit]
        raise ValueError(f"`method` {method!r} needs images, expected one of {', '.join(names)}")
    counts = np.bincount(labels, minlength=classes)
    if classes < 2 or len(counts) > classes or not counts.all():
        raise ValueError(
            f"each of at least 2 classes needs an example: got {counts.tolist()} examples of "
            f"{classes} classes"
        )
    return row.fit(np.asarray(features), np.asarray(labels), classes, seed)


def get(name: str) -> Method:
    """The row of `METHODS` with a name.

    Raises:
      ValueError: the name is not in `METHODS`; the message has the nearest names.
    """
    if name not in METHODS:
        raise ValueError(f"unknown `method`: got {name!r}; nearest: {nearest(name, METHODS)}")
    return METHODS[name]


def draw_order(
    groups: Sequence[str], hashes: Sequence[str], labels: np.ndarray, classes: int, seed: int
) -> list[np.ndarray]:
    """The order in which the images of each class are drawn.

    The k images of a draw are the first k of each class, so draws of one seed are nested. The order
    depends on the contents of the images and the seed alone: neither on the names of files nor on
    the other images. Copies count as one image, of which the one with the smallest hash is drawn.

    Args:
      groups: n names, equal for copies of an image (`tl.data.duplicates.clusters`).
      hashes: n content hashes.
      labels: i[n] in [0, classes).
      classes: number of classes.
      seed: seed of the draw.

    Returns:
      One array per class, i[number of different images], of positions.

    Example:
      >>> [rows.tolist() for rows in draw_order("aab", "xyz", np.array([0, 0, 1]), 2, seed=0)]
      [[0], [2]]
    """
    key = {name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest() for name in set(groups)}
    orders: list[dict[str, int]] = [{} for _ in range(classes)]
    for i in sorted(range(len(groups)), key=lambda i: (key[groups[i]], hashes[i])):
        orders[int(labels[i])].setdefault(groups[i], i)
    return [np.array(list(order.values()), np.int64) for order in orders]


# ---- methods -------------------------------------------------------------------------------------


def _probe(method: str) -> FeatureFit:
    """The probe of `transfer`, with its strength chosen by cross-validation; see `SINGLE`.

    A fold has as many examples of one class as of another, up to one. Kornblith et al. 2019,
    arXiv:1805.08974, and the code of DINOv2 do not standardize features at all, and choose the
    strength on validation images.
    """

    def fit_probe(features: np.ndarray, labels: np.ndarray, classes: int, seed: int) -> Scores:
        fold_count = min(FOLDS, int(np.bincount(labels).min()))
        if fold_count > 1:
            options = {"fold_count": fold_count, "seed": seed, "prior": probe.PRIOR}
            params = probe.fit(features, labels, classes, method=method, **options).params
            kernel, bias = params["kernel"], params["bias"]
        else:
            ones = np.ones(len(labels))
            bank = probe.factorize(features, ones, probe.PRIOR)
            strength = SINGLE[method]
            solution = probe.METHODS[method].solve(bank, labels, ones, classes, strength)
            kernel = (bank.basis @ solution[:-1]) * bank.scale[:, None]
            bias = solution[-1] - bank.mean @ kernel
        return lambda rows: np.asarray(rows, np.float64) @ kernel + bias[None]

    return fit_probe


def _class_means(rows: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """f64[k d]."""
    targets = np.eye(classes)[labels]
    return targets.T @ rows / targets.sum(axis=0)[:, None]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows f64[n d] of norm 1; a row of zeros stays 0."""
    wide = np.asarray(rows, np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)


def _nearest_mean(features: np.ndarray, labels: np.ndarray, classes: int, seed: int) -> Scores:
    """The nearest class mean, by squared Euclidean distance of features of norm 1.

    Scores are minus these distances, plus a term that all classes share.

    Reference: Mensink et al. 2013, IEEE TPAMI 35, 2624-2637, and Snell et al. 2017,
      arXiv:1703.05175, section 2.3, who learn the features for this distance. For frozen features
      Wang et al. 2019, arXiv:1911.04623, section 3.2, divide them by their norm (L2N).
    """
    del seed
    means = _class_means(_unit(features), labels, classes)
    return lambda rows: 2.0 * _unit(rows) @ means.T - np.square(means).sum(axis=1)[None]


def _cosine(features: np.ndarray, labels: np.ndarray, classes: int, seed: int) -> Scores:
    """A softmax over scaled cosine similarities to one learned direction per class.

    The directions minimize the cross-entropy by L-BFGS from the class means. They are in the span
    of the examples, where the fit is computed. The bounded similarities regularize it.

    Reference: Chen et al. 2019, arXiv:1904.04232, section 3.2 ("Baseline++"), on frozen features.
      They take 100 epochs of SGD from a random start, and their code also learns the norm of each
      direction; here it is 1 and the scale is `COSINE_SCALE`.
    """
    from scipy import optimize  # a dependency of JAX, imported here to keep `import tl` light

    del seed
    unit = _unit(features)
    basis = np.linalg.qr(unit.T)[0]
    z, targets = unit @ basis, np.eye(classes)[labels]
    start = _unit(_class_means(z, labels, classes))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(start.shape)
        directions = _unit(weights)
        log_p = metrics.log_softmax(COSINE_SCALE * z @ directions.T)
        slope = COSINE_SCALE * (np.exp(log_p) - targets).T @ z / len(z)
        slope -= (slope * directions).sum(axis=1, keepdims=True) * directions
        gradient = slope / np.linalg.norm(weights, axis=1, keepdims=True)
        return float(-(log_p * targets).sum() / len(z)), gradient.ravel()

    options = {"maxiter": COSINE_STEPS}
    solved = optimize.minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    directions = _unit(solved.x.reshape(start.shape)) @ basis.T
    return lambda rows: COSINE_SCALE * _unit(rows) @ directions.T


def _lsr(features: np.ndarray, labels: np.ndarray, classes: int, seed: int) -> Scores:
    """Least squares as in the few-shot evaluator of big_vision.

    Features are standardized by mean and deviation + 1e-5 of the drawn examples, a constant feature
    of 100 is the bias, which is penalized with the weights, targets are -1 and 1, and the penalty
    is 2^10, whatever the number of examples.

    Reference: Kolesnikov et al. 2020, arXiv:1912.11370, section 3.3, and google-research/big_vision
      `evaluators/fewshot_lsr.py`. There everything is float32 and an eigendecomposition serves
      several penalties; here the equations are solved once in float64. The images and their
      preprocessing are those of this project, and a tie counts as a mistake.
    """
    del seed
    wide = features.astype(np.float64)
    mean, std = wide.mean(axis=0), wide.std(axis=0) + 1e-5
    place = lambda rows: np.pad(
        (np.asarray(rows, np.float64) - mean[None]) / std[None],
        ((0, 0), (0, 1)),
        constant_values=LSR_BIAS,
    )
    x, y = place(wide), 2.0 * np.eye(classes)[labels] - 1.0
    n, d = x.shape
    if n >= d:
        weights = np.linalg.solve(x.T @ x + LSR_PENALTY * np.eye(d), x.T @ y)
    else:
        weights = x.T @ np.linalg.solve(x @ x.T + LSR_PENALTY * np.eye(n), y)
    return lambda rows: place(rows) @ weights


def _lp_ft(
    clf: Classifier, variables: Variables, train_set: DataSpec, seed: int
) -> Callable[[DataSpec], np.ndarray]:
    """A probe, then gradient steps on all parameters, by the recipe `LP_FT`.

    Reference: Kumar et al. 2022, arXiv:2202.10054. Without a validation set the last epoch is
      kept.
    """
    tuned, start = clf.replace_head(variables, train_set.classes, key=jax.random.key(seed))
    fitted = fine_tune(tuned, start, train_set, None, LP_FT, seed=seed)
    return lambda images: inference.predict(tuned, fitted.variables, images).logits


class Method(NamedTuple):
    """A row of `METHODS`: `fit` to features, or `fit_images` for a method that needs images."""

    fit: FeatureFit | None
    fit_images: ImageFit | None = None


METHODS: dict[str, Method] = {
    "probe": Method(_probe("logistic")),
    "ridge": Method(_probe("ridge")),
    "nearest_mean": Method(_nearest_mean),
    "cosine": Method(_cosine),
    "lsr": Method(_lsr),
    "lp_ft": Method(None, _lp_ft),
}
"""Name -> how a classifier is fitted to few images."""
