"""The step `ideal`: the lesson's ideal cat from noise by plain gradient descent, without bounds.

The lesson (Microsoft's AI for Beginners, 8: transfer learning, "Adversarial Cat") feeds the network
a tensor x of N(0, 1) noise, without normalization and without bounds. It displays x rescaled from
its minimum to its maximum, which is a different image from the one whose probability it reports. A
second descent adds a variation loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lesson.attack import ETA, descend, logits_of_inputs
from tl import data, inference, metrics, pixels, reporting
from tl.attacks import goals
from tl.losses import group_log_probability
from tl.models import Classifier
from tl.types import Variables
from tl.visualize import objectives
from tl.visualize.specs import ObjectiveSpec

# The lesson's number of steps of each descent.
STEPS = 1000
FIRST, SECOND = "cross-entropy", "10 x cross-entropy + 0.005 x variation, from there on"
# The lesson's probabilities of a Siamese cat under Keras' VGG-16.
REPORTED = {FIRST: 0.645, SECOND: 0.920}


def without_bounds(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    objective_specs: Sequence[ObjectiveSpec],
    *,
    seed: int = 0,
    steps: int = STEPS,
) -> list[dict[str, Any]]:
    """The lesson's two descents for each class: one row per class and descent.

    Args:
      run: stores the figures.
      clf, variables: the network.
      objective_specs: objectives, all of classes.
      seed: seed of the noise.
      steps: number of steps of each descent.

    Raises:
      ValueError: an objective is not a class.
    """
    if not all(spec.classes for spec in objective_specs):
        raise ValueError("the lesson's ideal images are of classes; name one, such as 'zebra'")
    side, table = clf.pixels.size, inference.class_table(clf)
    members = goals.class_mask([spec.classes for spec in objective_specs], len(table))
    # The lesson's variation is a sum, as in TensorFlow; `total_variation` is a mean.
    sum_of_mean = float(side * (side - 1) * 3)
    losses = {FIRST: {}, SECOND: {"weight": 10.0, "variation": 0.005 * sum_of_mean}}
    rows = []
    for spec, mask in zip(objective_specs, members, strict=True):
        x = jax.random.normal(jax.random.key(seed), (side * side * 3,)).reshape(1, side, side, 3)
        for way in (FIRST, SECOND):
            path = descend(clf, variables, mask[None], x, steps, **losses[way])
            x = path.last  # the input of the first layer
            image = np.asarray(pixels.denormalize(clf.pixels, x))[0]
            log_p = group_log_probability(logits_of_inputs(clf, variables, x), mask[None])
            rescaled = (image - image.min()) / max(float(image.max() - image.min()), 1e-6)
            views = {"shown": rescaled, "as-it-is": np.clip(image, 0, 1)}
            files = [run.figure(f"lesson-{spec.word}-{name}", view) for name, view in views.items()]
            saved = np.stack([data.decode(file) for file in files])
            probabilities = metrics.softmax(inference.predict_logits(clf, variables, saved))
            tv = np.asarray(objectives.total_variation(jnp.asarray(pixels.to_images01(saved))))
            rows.append(
                {
                    "target": spec.word,
                    "way": way,
                    "steps": steps,
                    "learning_rate": ETA,
                    "loss": -float(path.scores[-1, 0]),
                    "probability": float(np.exp(log_p[0])),
                    "probability_of_png_as_shown": float(probabilities[0][mask].sum()),
                    "probability_of_png_as_it_is": float(probabilities[1][mask].sum()),
                    "outside": float(np.mean((image < 0) | (image > 1))),
                    "tv_as_shown": float(tv[0]),
                    "lesson": REPORTED[way],
                    "png": run.relative(files[0]),
                    "png_as_it_is": run.relative(files[1]),
                }
            )
    return rows
