"""Attacks on maps: images near the original whose class stays and whose map changes.

A map that a small change of the image moves far says little about the image. The attack is
projected gradient ascent, and its result is rounded to 8 bits. A random change of the same size is
the control.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import devices, pixels
from tl.ascent import ascend
from tl.attacks import norms
from tl.attacks.run import map_in_chunks
from tl.backbones.gradients import smooth_gradients
from tl.explain.base import Rows
from tl.explain.evidence import MANY_PASSES, Evidence
from tl.explain.statistics import bootstrap, ranks, spearman
from tl.types import Array, Variables

# Steps of the attack, chosen, not tuned.
STEPS = 20
# Share of the pixels whose part of the map is lowered: 1,000 of 224 x 224 in the paper.
TOP = 0.02
# Margin of the logits below which the class is defended, and the penalty of another class. Chosen,
# not tuned.
MARGIN, LOST = 1.0, 10.0


class _Task(NamedTuple):
    """Images whose maps are attacked.

    Attributes:
      rows: keys, images and targets of the explanation.
      top: f32[b h w], 1 for the pixels with the largest absolute values of the map.
      labels: i32[b], the classes that must stay.
      eps: f32[b], radius of the change in [0, 1] pixel units.
    """

    rows: Rows
    top: jax.Array
    labels: jax.Array
    eps: jax.Array


def highest(maps: Array, share: float = TOP) -> np.ndarray:
    """1 for the pixels with the largest absolute values of a map f32[b h w], else 0; at least one.

    Ties are in random order.
    """
    count = max(round(share * np.shape(maps)[1] * np.shape(maps)[2]), 1)
    return (ranks(np.abs(np.asarray(maps))) < count).astype(np.float32)


def attack(evidence: Evidence, name: str, *, steps: int = STEPS) -> np.ndarray:
    """Moves the maps of the first images away from their highest pixels and keeps their classes.

    Args:
      evidence: the method, the images, which are multiples of 1 / 255, and `eps`, the radius in
        Linf.
      name: of the method.
      steps: of the ascent; the step size is 2.5 eps / steps.

    Returns:
      f32[few h w c], multiples of 1 / 255 within the radius. The class of an image may differ after
      rounding.

    Reference: Ghorbani et al. 2019, arXiv:1710.10547, algorithm 1 with the top-k attack. They
      replace ReLU by softplus in the attack; here ReLU has a smooth gradient and its own value
      (`smooth_gradients`).
    """
    clf, norm = evidence.subject.clf.with_dtype("float32"), norms.LINF
    explanation = evidence.explanations[name]
    rows, few = evidence.rows(evidence.few), evidence.few

    def score(variables: Variables, task: _Task, images01: jax.Array) -> jax.Array:
        maps = jnp.abs(explanation.maps(variables, task.rows._replace(images01=images01)))
        total = jnp.maximum(jnp.sum(maps, axis=(1, 2)), 1e-30)
        share = jnp.sum(maps * task.top, axis=(1, 2)) / total
        logits = clf.logits(variables, images01)
        own = jax.nn.one_hot(task.labels, logits.shape[1], dtype=bool)
        margin = jnp.sum(jnp.where(own, logits, 0.0), axis=1) - jnp.max(
            jnp.where(own, -jnp.inf, logits), axis=1
        )
        return jnp.minimum(margin - MARGIN, 0.0) - LOST * (margin <= 0).astype(jnp.float32) - share

    def run(variables: Variables, task: _Task) -> jax.Array:
        center, eps = task.rows.images01, task.eps
        result = ascend.ascend(
            lambda x, _: score(variables, task, x),
            center,
            task.rows.keys,
            steps=steps,
            optimizer=ascend.direction(norm.direction),
            step_size=2.5 * eps[0] / steps,
            project=lambda x: norm.project(x, center, eps),
        )
        return norm.quantize(result.best, center, eps)

    task = _Task(
        rows,
        jnp.asarray(highest(evidence.few_maps(name))),
        jnp.asarray(evidence.shared(_classes)),
        jnp.full(few, evidence.eps, jnp.float32),
    )
    program = devices.shard_rows(map_in_chunks(run, explanation.together))
    with smooth_gradients():
        return np.asarray(program(evidence.subject.variables, task))


def fragility(evidence: Evidence, name: str) -> dict[str, Any] | None:
    """Rank correlation of absolute values with the map after an attack within `evidence.eps`.

    Returns:
      `{"value", "ci95", "top", "noise", "kept"}`: the mean over images whose class stays after
      rounding, the share of the highest 2 % of their pixels that are the highest after the attack,
      their correlation after a random change of the same size, and the share of images whose class
      stays. None without an attack, for methods that read no network or have more than
      `MANY_PASSES` passes, and if no class stays.
    """
    if not evidence.eps or not 0 < evidence.passes(name) <= MANY_PASSES:
        return None
    images01, before = attack(evidence, name), evidence.few_maps(name)
    kept = evidence.logits(images01).argmax(axis=1) == evidence.shared(_classes)
    if not kept.any():
        return None
    after = evidence.again(name, images01=jnp.asarray(images01))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], images01.shape)
    clean = np.asarray(evidence.rows(evidence.few).images01)
    levels = np.rint(255 * np.clip(clean + evidence.eps * signs, 0, 1)).astype(np.uint8)
    noise = evidence.again(name, images01=jnp.asarray(pixels.to_images01(levels)))
    top = highest(before)
    overlap = (top * highest(after)).sum((1, 2)) / top.sum((1, 2))
    return {
        **bootstrap(spearman(before, after)[kept]),
        "top": float(overlap[kept].mean()),
        "noise": float(spearman(before, noise)[kept].mean()),
        "kept": float(kept.mean()),
    }


def _classes(evidence: Evidence) -> np.ndarray:
    """The predicted classes i32[few] of the first images."""
    images01 = evidence.subject.images01[: evidence.few]
    return evidence.logits(images01).argmax(axis=1).astype(np.int32)
