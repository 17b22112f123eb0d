"""The ideal cat as the course lesson made it: noise, plain gradient descent, no bounds; then with its variation loss.

The lesson (Microsoft's AI for Beginners, 8: transfer learning, "Adversarial Cat") feeds the network a tensor x of N(0, 1) as it
is: nothing normalises it, and nothing keeps it among pictures. It shows x stretched from its minimum to its maximum, which is
another picture than the one that was judged.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl import data, inference, metrics, pixels, reporting
from tl.ascent import ascend
from tl.attacks import goals
from tl.losses import group_log_probability
from tl.models import Classifier
from tl.reporting import Html
from tl.types import Variables
from tl.visualize import objectives
from tl.visualize.specs import ObjectiveSpec

STEPS, ETA = 1000, 1.0  # the lesson's
FIRST, SECOND = "cross-entropy", "10 x cross-entropy + 0.005 x variation, from there on"
REPORTED = {FIRST: 0.645, SECOND: 0.920}  # the lesson's, a Siamese cat under Keras' VGG-16
RESNET_ZEBRA = 0.888  # the lesson's ResNet-50, 500 steps


def as_written(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    objective_specs: Sequence[ObjectiveSpec],
    seed: int,
    steps: int = STEPS,
) -> tuple[list[dict[str, Any]], Html]:
    """The result's rows, and the page's section.

    Raises:
      ValueError: an objective that is no class.
    """
    if not all(objective_spec.classes for objective_spec in objective_specs):
        raise ValueError("--as_in_lesson is for classes, with --target")
    print(f"the lesson's way: {2 * steps} steps of plain gradient descent", flush=True)
    side = clf.pixels.size
    members = goals.class_mask(
        [objective_spec.classes for objective_spec in objective_specs],
        len(inference.class_table(clf)),
    )
    images01 = lambda x: pixels.denormalize(clf.pixels, x)  # so that x is what the network takes

    def log_probability(variables: Variables, x: jax.Array, members: jax.Array) -> jax.Array:
        logits = clf.apply(variables, images01(x)).logits
        assert logits is not None
        return group_log_probability(logits, members)

    def first(variables: Variables, members: jax.Array, x: jax.Array, _: jax.Array) -> jax.Array:
        return log_probability(variables, x, members)

    def second(variables: Variables, members: jax.Array, x: jax.Array, _: jax.Array) -> jax.Array:
        summed = objectives.total_variation(x) * float(side * (side - 1) * 3)  # TensorFlow's sum
        return 10.0 * log_probability(variables, x, members) - 0.005 * summed

    @functools.partial(jax.jit, static_argnums=0)
    def climb(score: Any, variables: Variables, members: jax.Array, x: jax.Array) -> ascend.Ascent:
        return ascend.ascend(
            functools.partial(score, variables, members),
            x,
            jax.random.key(0),  # no score here is random
            steps=steps,
            optimizer=ascend.OPTIMIZERS["sgd"](),
            step_size=ETA,
        )

    judged = jax.jit(log_probability)
    rows, strips = [], []
    for objective_spec, mine in zip(objective_specs, members, strict=True):
        flat = jax.random.normal(jax.random.key(seed), (side * side * 3,))
        x, cards = flat.reshape(1, side, side, 3), []
        for way, score in ((FIRST, first), (SECOND, second)):
            path = climb(score, variables, mine[None], x)
            x = path.last
            p = float(np.exp(judged(variables, x, mine[None])[0]))
            real = np.asarray(images01(x))[0]
            shown = (real - real.min()) / max(float(real.max() - real.min()), 1e-6)
            files = [
                run.figure(f"lesson-{objective_spec.word}-{name}", image)
                for name, image in (("shown", shown), ("as-it-is", np.clip(real, 0, 1)))
            ]
            saved = np.stack([data.decode(file) for file in files])
            probabilities = metrics.softmax(inference.predict_logits(clf, variables, saved))
            tv = np.asarray(objectives.total_variation(jnp.asarray(pixels.to_images01(saved))))
            as_shown, as_is = (float(q[mine].sum()) for q in probabilities)
            rows.append(
                {
                    "target": objective_spec.word,
                    "way": way,
                    "steps": steps,
                    "loss": -float(path.scores[-1, 0]),
                    "probability": p,
                    "probability_of_png_as_shown": as_shown,
                    "probability_of_png_as_it_is": as_is,
                    "outside": float(np.mean((real < 0) | (real > 1))),
                    "tv_as_shown": float(tv[0]),
                    "lesson": REPORTED[way],
                    "png": str(files[0]),
                }
            )
            told = f"tensor {reporting.percent(p)}, this file {reporting.percent(as_shown)}; the lesson: {REPORTED[way]}"
            cards.append(
                reporting.card(saved[0], title=way, caption=f"stretched to be seen: {told}")
            )
            cards.append(
                reporting.card(
                    saved[1],
                    title="the same, as it is",
                    caption=f"saved: {reporting.percent(as_is)}",
                )
            )
        strips.append(reporting.strip(cards, title=objective_spec.word))
    text = (
        f"The lesson's way, under {clf.arch}: x of N(0, 1) goes in as it is, plain gradient descent with a rate of 1, "
        f"{steps} steps; then {steps} more with its variation loss. It shows x stretched between its extremes."
    )
    return rows, reporting.section("As in the lesson", *strips, text=text)
