"""What `transfer` and `evaluate` do alike: ask a classifier about a set, count, and show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import data, inference, metrics, pixels, reporting
from tl.data import DataSpec, Skipped
from tl.inference import features
from tl.models import Classifier, heads
from tl.training import inputs
from tl.types import Variables

DETAILS = (
    "majority",
    "per_class",
    "confusion",
    "most_confused",
    "reliability",
    "reliability_calibrated",
)
"""The parts of a `summary` that are lists, beside its figures."""


View = Callable[[jax.Array], jax.Array]
"""images01 -> images01, such as a mirror."""


class Predictions(NamedTuple):
    """What a classifier said: logits f32[n k], the true labels i[n], and the examples, of those that could be read."""

    logits: np.ndarray
    labels: np.ndarray
    examples: list[data.Example]
    skipped: tuple[Skipped, ...]


def predictions(
    clf: Classifier,
    variables: Variables,
    spec: DataSpec,
    *,
    views: Sequence[View] = (),
    batch_size: int = 16,
) -> Predictions:
    """Asks about every picture by the one path that `predict` takes, a batch at a time.

    With `views` (an augmentation's), what it says is the mean of the log-probabilities of each of them.
    """
    logits, kept, skipped = (
        [np.zeros((0, len(inference.class_table(clf).entries)), np.float32)],
        [],
        [],
    )
    variables = jax.device_put(variables)  # once, not with every batch
    batches = data.load(inputs.sources(spec), clf.prepare, batch_size=batch_size)
    for batch in reporting.progress(
        batches, -(-len(spec.examples) // batch_size), "asking, batches"
    ):
        images01 = pixels.to_images01(batch.images)
        if views:
            each = [
                inference.forward(clf)(variables, view(jnp.asarray(images01))) for view in views
            ]
            said = np.mean([metrics.log_softmax(np.asarray(one)) for one in each], axis=0).astype(
                np.float32
            )
        else:
            said = inference.forward(clf)(variables, images01)
        logits.append(np.asarray(said)[batch.valid])
        kept += [spec.examples[i] for i in batch.index[batch.valid]]
        skipped += batch.skipped
    labels = np.array([example.label for example in kept], np.int64)
    return Predictions(np.concatenate(logits), labels, kept, tuple(skipped))


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Several tests as one list."""
    return Predictions(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.labels for part in parts]),
        [example for part in parts for example in part.examples],
        tuple(skip for part in parts for skip in part.skipped),
    )


def summary(
    logits: np.ndarray, labels: np.ndarray, classes: Sequence[str], temperature: float = 1.0
) -> dict[str, Any]:
    """The figures of `metrics.summarize`, NLL and ECE at the temperature too, and the `DETAILS`; JSON-ready."""
    calm = metrics.summarize(logits / np.float32(temperature), labels)
    matrix = metrics.confusion(labels, logits.argmax(axis=1), len(classes))
    return {
        **metrics.summarize(logits, labels),
        "temperature": float(temperature),
        "nll_calibrated": calm["nll"],
        "ece_calibrated": calm["ece"],
        "majority": float(matrix.sum(axis=1).max() / matrix.sum()),
        "per_class": metrics.per_class(logits, labels, classes),
        "confusion": matrix.tolist(),
        "most_confused": metrics.most_confused(matrix, classes),
        "reliability": metrics.reliability(metrics.softmax(logits), labels),
        "reliability_calibrated": metrics.reliability(
            metrics.softmax(logits / temperature), labels
        ),
    }


def hardest_images(clf: Classifier, predicted: Predictions, n: int = 12) -> list[dict[str, Any]]:
    """The `n` misclassified images with the lowest probability of the true class.

    Returns:
      JSON-ready rows `{"path", "row", "true", "label", "topk"}`: `row` is a position in `predicted`,
      `true` and `label` are name and index of the true class, and `topk` is as `tl.inference.topk`
      returns it for 3 classes. Lowest probability first.
    """
    table, probabilities = inference.class_table(clf), metrics.softmax(predicted.logits)
    of_truth = probabilities[np.arange(len(predicted.labels)), predicted.labels]
    correct = predicted.logits.argmax(axis=1) == predicted.labels
    return [
        {
            "path": str(predicted.examples[i].path),
            "row": int(i),
            "true": table.display(predicted.labels[i]),
            "label": int(predicted.labels[i]),
            "topk": inference.topk(clf, probabilities[i], 3),
        }
        for i in np.argsort(of_truth, kind="stable")[:n]
        if not correct[i]
    ]


def save_hardest_images(
    run: reporting.Run, clf: Classifier, predicted: Predictions, n: int = 12
) -> list[dict[str, Any]]:
    """Saves the `hardest_images` as figures, as the network receives them, and one contact sheet.

    Returns:
      Rows of `hardest_images` with "figure", the path of the image relative to the run's folder.
    """
    rows = hardest_images(clf, predicted, n)
    images = [clf.prepare(data.decode(predicted.examples[row["row"]].path)) for row in rows]
    if images:
        run.figure("worst_mistakes", reporting.contact_sheet(images, columns=4))
    for row, image in zip(rows, images, strict=True):
        row["figure"] = run.relative(run.figure("hardest", image))
    return rows


# --- learning and testing ----------------------------------------------------------------------------------------------


def predict_set(
    clf: Classifier, variables: Variables, spec: DataSpec, *, frozen: bool
) -> Predictions:
    """What a classifier says of a set; a frozen backbone's features come from their bank."""
    if not (frozen and heads.pooled(clf.head)):  # type: ignore[arg-type]
        return predictions(clf, variables, spec)
    found = features.extract(clf, variables, inputs.sources(spec))
    logits = np.asarray(clf.apply_head(variables, jnp.asarray(found.values[found.valid])))
    kept = [example for example, there in zip(spec.examples, found.valid, strict=True) if there]
    return Predictions(logits, inputs.labels(spec)[found.valid], kept, found.skipped)


def accuracy(said: Predictions) -> float:
    """Share of pictures named rightly."""
    return float((said.logits.argmax(axis=1) == said.labels).mean())


def mean_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures averaged over rounds; the interval is Wilson's at the mean, for one test set."""
    mean = {
        k: float(np.mean([row[k] for row in rows]))
        for k in rows[0]
        if isinstance(rows[0][k], float)
    }
    n = rows[0]["n"]
    return {
        "n": n,
        "top1": mean["top1"],
        "top1_ci95": list(metrics.wilson(round(mean["top1"] * n), n)),
        **mean,
    }
