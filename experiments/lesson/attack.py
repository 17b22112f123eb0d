"""The step `attack`: the lesson's adversarial dog, without bounds and at a wrong scale.

The lesson (Microsoft's AI for Beginners, 8: transfer learning, "Adversarial Cat") feeds Keras'
VGG-16 the pixels 0-255 of a photograph, and the network predicts Italian greyhound. Those weights
were trained on BGR minus the mean: the contrast is right, the mean remains, red and blue are
swapped. Then the lesson takes `x = img / 255.0` and follows the gradient for 100 steps. For the
same weights that is the photograph at 1/255 of its contrast, less than one level, and so almost a
constant image. The lesson does not check whether it is still classified as a dog.

In `tl` a network's input is defined by its `PixelSpec`, so the mistakes are translated (`shifted`)
instead of copied: for weights that expect values from -1 to 1, a division by 255 would be nearly
right. x starts at 1/255 of the lesson's input and enters the first layer as it is; the learning
rate is 1 in the units of that layer. To display x, the lesson's preprocessing is inverted at 255 x,
which gives exactly the photograph at the start. With Keras' weights the image is x itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl import attacks, data, inference, metrics, pixels, reporting
from tl.ascent import ascend
from tl.attacks import goals, norms
from tl.losses import group_log_probability
from tl.models import Classifier
from tl.types import Array, Variables
from tl.visualize import objectives

# The lesson's steps, learning rate and scale.
STEPS, ETA, SCALE = 100, 1.0, 255.0
# The lesson's target, a Siamese cat.
TARGET = 284
# The lesson's probabilities: of Italian greyhound before, and of Siamese cat after the attack.
REPORTED = {"classified": 0.928, "tensor": 0.865}
# Linf radius of the attack with bounds. Chosen, not tuned.
EPS = 2 / 255


def shifted(spec: pixels.PixelSpec) -> pixels.PixelSpec:
    """The lesson's mistake in the units of these weights: no mean subtracted, red and blue swapped.

    The scale stays that of the weights: raw pixels are in the range of Keras' weights, but far
    outside of the range of weights that expect values between -2 and 2.

    Args:
      spec: the preprocessing that the weights were trained with.

    Returns:
      The lesson's preprocessing; for Keras' VGG-16 the pixels from 0 to 255 as they are.

    Example:
      >>> shifted(pixels.CAFFE).channels, [round(1 / s) for s in shifted(pixels.CAFFE).std]
      ('rgb', [255, 255, 255])
    """
    channels = "bgr" if spec.channels == "rgb" else "rgb"
    return spec.replace(mean=(0.0,) * len(spec.mean), std=spec.std[::-1], channels=channels)


@dataclasses.dataclass(frozen=True)
class Attack:
    """Photographs, the network that is attacked, and the classes to reach.

    Attributes:
      run: stores the figures.
      clf, variables: the network.
      paths: files of the photographs.
      images: uint8[n s s 3], the photographs as the network reads them.
      target: the classes to reach, as one group.
      only: the classes that a start should still belong to ("any dog"); by default the class that
        is predicted for the photograph.
      steps: number of steps of gradient descent.
    """

    run: reporting.Run
    clf: Classifier
    variables: Variables
    paths: Sequence[Path]
    images: np.ndarray
    target: Sequence[int] = (TARGET,)
    only: Collection[int] = ()
    steps: int = STEPS

    @property
    def class_mask(self) -> np.ndarray:
        """bool[n k], the classes to reach."""
        classes = len(inference.class_table(self.clf))
        return goals.class_mask([self.target] * len(self.paths), classes)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities f32[n k] of uint8[n s s 3]."""
        return metrics.softmax(inference.predict_logits(self.clf, self.variables, images))

    @functools.cached_property
    def _predicted(self) -> np.ndarray:
        """i[n], the classes that are predicted for the photographs."""
        return self.probabilities(self.images).argmax(axis=1)

    def save(self, way: str, images01: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Saves f32[n s s 3] as figures; returns the file names and the images as read back."""
        pairs = zip(self.paths, images01, strict=True)
        files = [self.run.figure(f"lesson-{path.stem}-{way}", image) for path, image in pairs]
        return list(map(self.run.relative, files)), np.stack([data.decode(file) for file in files])

    def answers(self, probabilities: np.ndarray) -> list[dict[str, Any]]:
        """Per image: the prediction, its probability, the target's, and whether it is in `only`."""
        table, best = inference.class_table(self.clf), probabilities.argmax(axis=1)
        return [
            {
                "called": table.display(int(j)),
                "probability": float(row[j]),
                "target": float(row[list(self.target)].sum()),
                "still": j in (tuple(self.only) or (i,)),
            }
            for row, j, i in zip(probabilities, best, self._predicted, strict=True)
        ]


def without_bounds(attack: Attack) -> list[dict[str, Any]]:
    """The lesson's attack on each photograph: one row per photograph, with files in `figures/`."""
    clf, variables, steps = attack.clf, attack.variables, attack.steps
    table, spec = inference.class_table(clf), shifted(clf.pixels)
    photographs = pixels.to_images01(attack.images)
    inputs = pixels.normalize(spec, jnp.asarray(photographs))
    x = descend(clf, variables, jnp.asarray(attack.class_mask), inputs / SCALE, steps).last
    after = np.asarray(pixels.denormalize(spec, x * SCALE))
    low, high = (op(after, axis=(1, 2, 3), keepdims=True) for op in (np.min, np.max))
    rescaled, clipped = (after - low) / np.maximum(high - low, 1e-6), np.clip(after, 0, 1)
    files = {"prepared": attack.save("prepared", photographs)[0]}
    answers = {"photograph": attack.answers(attack.probabilities(attack.images))}
    for way, tensor in (("classified", inputs), ("start", inputs / SCALE), ("tensor", x)):
        logits = np.asarray(logits_of_inputs(clf, variables, tensor))
        answers[way] = attack.answers(metrics.softmax(logits))
    for way, arrays in (("shown", rescaled), ("clipped", clipped)):
        files[way], saved = attack.save(way, arrays)
        answers[way] = attack.answers(attack.probabilities(saved))
    return [
        {
            "path": str(path),
            "target": ", ".join(table.display(j) for j in attack.target),
            "steps": steps,
            "learning_rate": ETA,
            "lesson": REPORTED,
            **{way: rows[i] for way, rows in answers.items()},
            "start_is_called_the_same": answers["start"][i]["still"],
            "change": _distances(after[i], photographs[i]),
            "change_clipped": _distances(pixels.to_images01(saved[i]), photographs[i]),
            "png": {way: names[i] for way, names in files.items()},
        }
        for i, path in enumerate(attack.paths)
    ]


def within_bounds(
    attack: Attack, rows: Sequence[Mapping[str, Any]], *, eps: float = EPS, seed: int = 0
) -> list[dict[str, Any]]:
    """PGD on the same photographs, within `eps` and restricted to 8-bit values.

    Args:
      attack: the photographs and the network.
      rows: the rows that `without_bounds` returned.
      eps: Linf radius, in [0, 1] pixel units.
      seed: seed of the random start.

    Returns:
      The rows with the results of PGD.
    """
    photographs = pixels.to_images01(attack.images)
    search = attacks.get("pgd")(steps=attack.steps, early_stop=False)
    options: dict[str, Any] = {"norm": norms.LINF, "goal": goals.TARGETED, "eight_bit": True}
    pgd = attacks.make(search, attack.clf.logits, **options)
    result = pgd(attack.variables, jax.random.key(seed), photographs, attack.class_mask, eps=eps)
    files, saved = attack.save("right", np.asarray(result.images))
    answers = attack.answers(attack.probabilities(saved))
    return [
        {
            **row,
            "right": answers[i],
            "right_eps": eps,
            "change_right": _distances(pixels.to_images01(saved[i]), photographs[i]),
            "png": {**row["png"], "right": files[i]},
        }
        for i, row in enumerate(rows)
    ]


@functools.partial(jax.jit, static_argnums=0)
def logits_of_inputs(clf: Classifier, variables: Variables, inputs: jax.Array) -> jax.Array:
    """Logits of f32[b s s 3] in the units of the first layer."""
    return clf.logits(variables, pixels.denormalize(clf.pixels, inputs))


@functools.partial(jax.jit, static_argnums=(0, 4))
def descend(
    clf: Classifier,
    variables: Variables,
    class_mask: jax.Array,
    x: jax.Array,
    steps: int,
    *,
    weight: float = 1.0,
    variation: float = 0.0,
) -> ascend.Ascent:
    """Plain gradient descent with the lesson's learning rate.

    Args:
      clf, variables: the network.
      class_mask: bool[b k], the classes to reach.
      x: f32[b s s 3], the start, in the units of the first layer.
      steps: number of steps.
      weight, variation: factors of the two losses, the cross-entropy and the total variation.
    """

    def score(x: jax.Array, _: jax.Array) -> jax.Array:
        value = group_log_probability(logits_of_inputs(clf, variables, x), class_mask)
        return weight * value - variation * objectives.total_variation(x)

    sgd, key = ascend.OPTIMIZERS["sgd"](), jax.random.key(0)
    return ascend.ascend(score, x, key, steps=steps, optimizer=sgd, step_size=ETA)


def _distances(image01: Array, photograph: Array) -> dict[str, float]:
    """Linf and L2 distance in [0, 1] units of f32[s s 3], and the share of values outside."""
    a, b = jnp.asarray(image01)[None], jnp.asarray(photograph)[None]
    return {
        "linf": float(norms.linf_distance(a, b)[0]),
        "l2": float(norms.l2_distance(a, b)[0]),
        "outside": float(np.mean((np.asarray(image01) < 0) | (np.asarray(image01) > 1))),
    }
