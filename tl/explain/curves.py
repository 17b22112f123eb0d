"""Tests that replace pixels of the images in the order of a map and read the probability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl.attacks.run import map_in_chunks
from tl.devices import shard_rows
from tl.explain import baselines
from tl.explain.base import probability, repeat, sum_passes
from tl.explain.evidence import CONTROLS, Evidence
from tl.explain.statistics import against_controls, by_image, ranks
from tl.models import Classifier
from tl.types import Array, Variables


class CurveRows(NamedTuple):
    """Images in which pixels are replaced.

    Attributes:
      start: f32[b h w c], the image before.
      end: f32[b h w c], the image after.
      ranks: i32[b h w], the order of the pixels.
      targets: f32[b k], from `targets.weights`.
    """

    start: Array
    end: Array
    ranks: Array
    targets: Array


def make_curves(
    clf: Classifier, *, steps: int, slots: int
) -> Callable[[Variables, CurveRows], np.ndarray]:
    """`(variables, rows) -> f32[b steps + 1]`, the probability while pixels are replaced.

    Args:
      clf: the network.
      steps: number of replacements of an equal share of the pixels.
      slots: forward passes that a device computes together.
    """

    def run(variables: Variables, rows: CurveRows) -> jax.Array:
        n = rows.ranks.shape[1] * rows.ranks.shape[2]

        def value(index: jax.Array) -> jax.Array:
            replaced = rows.ranks < (n * index // steps)[:, None, None]
            images01 = jnp.where(replaced[..., None], rows.end, rows.start)
            score = probability(repeat(rows.targets, len(index)))
            scores = score(clf.apply(variables, images01), images01)
            return scores[:, None] * jax.nn.one_hot(index, steps + 1, dtype=jnp.float32)

        return sum_passes(value, steps + 1, slots)[None]

    program = shard_rows(map_in_chunks(run, 1))
    return lambda variables, rows: np.asarray(program(variables, jax.tree.map(jnp.asarray, rows)))


def _area(curves: np.ndarray) -> np.ndarray:
    """The mean of curves f[b n] over the share of replaced pixels, by the trapezoidal rule."""
    return (curves[:, 1:] + curves[:, :-1]).mean(axis=1) / 2


def _curves(evidence: Evidence) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Method -> the curves f32[b steps + 1] of deletion and of insertion."""
    images01 = np.asarray(evidence.subject.images01, np.float32)
    clf, variables = evidence.subject.clf.with_dtype("float32"), evidence.subject.variables
    run = make_curves(clf, steps=evidence.steps, slots=evidence.slots)
    targets, gray = evidence.subject.targets, np.full_like(images01, 0.5)
    start = np.asarray(baselines.blurred(evidence.rows().keys, jnp.asarray(images01)))
    curves = {}
    for name, maps in evidence.maps.items():
        order = ranks(maps)
        deleted = run(variables, CurveRows(images01, gray, order, targets))
        curves[name] = deleted, run(variables, CurveRows(start, images01, order, targets))
    return curves


def _area_row(evidence: Evidence, name: str, which: int, sign: int) -> dict[str, Any]:
    curves = {method: both[which] for method, both in evidence.shared(_curves).items()}
    areas = {method: by_image(_area(values), evidence.groups) for method, values in curves.items()}
    curve = [float(x) for x in curves[name].mean(axis=0)]
    return {**against_controls(areas, name, CONTROLS, sign=sign), "curve": curve}


def deletion(evidence: Evidence, name: str) -> dict[str, Any]:
    """Area under the probability while the highest pixels turn gray; smaller is better.

    Returns:
      `{"value", "ci95", "passed", "curve"}`, as from `statistics.against_controls`, and the mean
      probability after each step.

    Reference: Petsiuk et al. 2018, arXiv:1806.07421, section 4.2.
    """
    return _area_row(evidence, name, 0, -1)


def insertion(evidence: Evidence, name: str) -> dict[str, Any]:
    """Area under the probability while the highest pixels appear on the blurred image.

    Returns:
      As `deletion`; larger is better.

    Reference: Petsiuk et al. 2018, arXiv:1806.07421, section 4.2.
    """
    return _area_row(evidence, name, 1, 1)
