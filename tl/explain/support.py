"""Training images that support a prediction, and those that oppose it, without retraining.

The classifier is the ridge probe of `tl.training.probe` on the features of a network. It is linear
in its targets, so its scores without one training image follow from those with all of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tl import reporting
from tl.data import DataSpec, decode
from tl.explain.base import check_count
from tl.inference import LoadedImages, extract
from tl.labels import from_names
from tl.models import Classifier
from tl.training import inputs, probe
from tl.types import Array, Variables

# Left-out images that a run checks against retraining.
CHECKED = 20


class Ridge(NamedTuple):
    """A ridge probe that can be asked about each of its examples.

    Attributes:
      bank: the examples in the coordinates of their principal axes.
      z: f64[n r + 1], the examples with a last coordinate 1 for the bias.
      targets: f64[n k], 1 for the class of an example and 0 otherwise.
      curvature: f64[r + 1], the diagonal matrix of the normal equations.
      params: f64[r + 1 k], the bias last.
    """

    bank: probe.Bank
    z: np.ndarray
    targets: np.ndarray
    curvature: np.ndarray
    params: np.ndarray

    def place(self, features: Array) -> np.ndarray:
        """Features f[m d] in the coordinates of `z`, f64[m r + 1]."""
        centered = np.asarray(features, np.float64) - self.bank.mean[None]
        return probe.with_bias((centered * self.bank.scale[None]) @ self.bank.basis)


def fit(features: Array, labels: np.ndarray, classes: int, strength: float) -> Ridge:
    """The ridge probe at one strength.

    Args:
      features: f32[n d].
      labels: i[n] in [0, classes).
      classes: k.
      strength: C, as for `probe.fit`.
    """
    n = len(labels)
    bank = probe.factorize(np.asarray(features), np.ones(n))
    z, targets = probe.with_bias(bank.z), np.eye(classes)[labels]
    # The axes and the bias are uncorrelated.
    curvature = np.append(n * bank.values + 1.0 / strength, n)
    return Ridge(bank, z, targets, curvature, (z.T @ targets) / curvature[:, None])


def influence(ridge: Ridge, features: Array, weights: Array) -> np.ndarray:
    """What each training example adds to the score of each query.

    Args:
      ridge: from `fit`.
      features: f32[m d], of the queries.
      weights: f32[m k], of the classes whose scores are summed, as from `targets.weights`.

    Returns:
      f64[m n]: the score of query q minus its score after a fit without example i. Mean, deviation
      and strength stay those of all examples. Scores are 1 for a class and 0 for the others in the
      targets of the fit.

    Reference: Cook & Weisberg 1982, "Residuals and influence in regression", section 3.4.
    """
    products = ridge.place(features) / ridge.curvature[None] @ ridge.z.T
    leverage = np.square(ridge.z) @ (1.0 / ridge.curvature)
    residual = (ridge.targets - ridge.z @ ridge.params) / (1.0 - leverage)[:, None]
    return products * (np.asarray(weights, np.float64) @ residual.T)


def retrained(ridge: Ridge, features: Array, weights: Array, without: int) -> np.ndarray:
    """The scores f64[m] of queries after a fit without one example, by solving it again.

    Args:
      ridge, features, weights: as for `influence`.
      without: the example that is left out.
    """
    keep = np.arange(len(ridge.z)) != without
    penalty = ridge.curvature - np.square(ridge.z).sum(axis=0)
    moments = ridge.z[keep].T @ ridge.z[keep] + np.diag(penalty)
    params = np.linalg.solve(moments, ridge.z[keep].T @ ridge.targets[keep])
    return ((ridge.place(features) @ params) * weights).sum(axis=1)


def cosine(a: Array, b: Array) -> np.ndarray:
    """Cosine similarity f64[m n] of the rows of f[m d] and f[n d]; 0 for a row of zeros."""
    unit = [np.asarray(x, np.float64) for x in (a, b)]
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in unit]
    return unit[0] @ unit[1].T


def support(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    images: LoadedImages,
    data_set: DataSpec,
    *,
    target: str = "",
    top: int = 5,
) -> dict[str, Any]:
    """The training images that support the predictions of a ridge probe, as a result and figures.

    Args:
      run: the run.
      clf, variables: the network; its head is not used.
      images: the queries, in the preprocessing of the network.
      data_set: the labeled training images; it gives the classes.
      target: the class whose score is explained; "" is the predicted class.
      top: training images of each kind per query.

    Returns:
      The content of `result.json`: `images`, one row per query with `supporting`, `opposing` and
      `nearest`, `strength` of the probe, `left_out` (`checked` images and the largest difference
      between the closed form and retraining) and `n`, the number of training images.

    Raises:
      ValueError: an unknown class, or `top` is less than 1.
    """
    check_count(1, top=top)
    table, k = from_names(data_set.classes), len(data_set.classes)
    classes = table.find(target) if target else ()
    sources, labels = inputs.sources(data_set), inputs.labels(data_set)
    bank = extract(clf, variables, sources, progress=reporting.progress)
    sources = [source for source, valid in zip(sources, bank.valid, strict=True) if valid]
    values, labels = bank.values[bank.valid], labels[bank.valid]
    strength = probe.fit(values, labels, k, method="ridge").strength
    ridge = fit(values, labels, k, strength)
    queries = extract(clf, variables, images.paths).values
    scores = ridge.place(queries) @ ridge.params
    chosen = [tuple(classes) or (int(row.argmax()),) for row in scores]
    weights = np.stack([np.eye(k)[list(row)].mean(axis=0) for row in chosen])
    influences, similarities = influence(ridge, queries, weights), cosine(queries, values)

    left_out = np.random.default_rng(0).permutation(len(values))[:CHECKED]
    whole = (scores * weights).sum(axis=1)
    differences = [
        np.abs(whole - retrained(ridge, queries, weights, int(i)) - influences[:, i]).max()
        for i in left_out
    ]
    figures: dict[int, str] = {}

    def row_of(i: int, value: float) -> dict[str, Any]:
        if i not in figures:
            image = clf.prepare(decode(sources[i]))
            figures[i] = run.relative(run.figure(f"training {sources[i].name}", image))
        name = data_set.classes[labels[i]]
        return {"path": str(sources[i]), "label": name, "value": float(value), "image": figures[i]}

    rows = []
    for q, path in enumerate(images.paths):
        orders = {
            "supporting": np.argsort(-influences[q], kind="stable"),
            "opposing": np.argsort(influences[q], kind="stable"),
            "nearest": np.argsort(-similarities[q], kind="stable"),
        }
        listed = {
            kind: [
                row_of(int(i), (similarities if kind == "nearest" else influences)[q, i])
                for i in order[:top]
                if kind == "nearest" or (influences[q, i] > 0) == (kind == "supporting")
            ]
            for kind, order in orders.items()
        }
        rows.append(
            {
                "path": str(path),
                "image": run.relative(run.figure(path.name, images.images[q])),
                "target": target or data_set.classes[chosen[q][0]],
                "predicted": data_set.classes[int(scores[q].argmax())],
                "score": float(whole[q]),
                **listed,
            }
        )
    return {
        "arch": clf.arch,
        "data": data_set.name,
        "n": len(values),
        "strength": strength,
        "images": rows,
        "left_out": {"checked": len(left_out), "largest_difference": float(max(differences))},
        "skipped": images.skipped + [skip._asdict() for skip in bank.skipped],
    }
