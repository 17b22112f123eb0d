"""Tests of belief: does a map describe the network, and do its pixels matter?

`CHECKS` has one row per test. Two controls take part, a random order of the pixels and the edge
map: a method passes insertion or deletion only if it is better than both. To add a test: a
function `(subject, name) -> row` and a row in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import paths
from tl.attacks.norms import per_image_keys
from tl.attacks.run import map_in_chunks
from tl.devices import shard_rows
from tl.explain import baselines
from tl.explain.base import Explanation, Rows, logit, probability, repeat, sum_passes
from tl.models import Classifier
from tl.types import Array, Variables

# Largest share of the score difference that a complete map may miss.
COMPLETE = 0.01
# Largest rank correlation with the map of a randomized network. Chosen, not tuned: Adebayo et al.
# 2018, figure 3, have gradients below and guided backpropagation above.
RANDOMIZED = 0.5
# Methods with more passes per image are computed with the fully randomized network only.
MANY_PASSES = 100
RESAMPLES = 2000
# Fewer images decide nothing: the two-sided sign test needs six for p < 0.05.
FEWEST = 6


class Subject(NamedTuple):
    """What is explained.

    Attributes:
      clf: the network.
      variables: its variables.
      key: from `jax.random.key`, as for the explanation.
      images01: f32[b h w c] in [0, 1].
      targets: f32[b k], from `targets.weights`.
    """

    clf: Classifier
    variables: Variables
    key: jax.Array
    images01: Array
    targets: Array


# ------------------------------------------------------------------------------- statistics


def spearman(a: Array, b: Array) -> np.ndarray:
    """Rank correlation of the absolute values of two maps f32[b h w] of each image, f64[b].

    Ties have their mean rank. The correlation with a constant map is 0.
    """
    pairs = zip(np.abs(np.asarray(a)), np.abs(np.asarray(b)), strict=True)
    return np.array([_correlation(_mean_ranks(x), _mean_ranks(y)) for x, y in pairs])


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places.ravel()]


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else 0.0


def gini(maps: Array) -> np.ndarray:
    """Sparseness of maps f32[b h w], f64[b]: the Gini index of their absolute values.

    0 for a uniform map or a map of zeros, 1 - 1 / (h w) for one pixel.

    Reference: Hurley & Rickard 2009, arXiv:0811.4706; for explanations Chalasani et al. 2020,
      arXiv:1810.06583.
    """
    values = np.sort(np.abs(np.asarray(maps, np.float64)).reshape(len(maps), -1), axis=1)
    n = values.shape[1]
    total = values.sum(axis=1)
    weighted = values @ (2 * np.arange(1, n + 1) - n - 1)
    return np.where(total > 0, weighted / np.where(total > 0, n * total, 1), 0.0)


def bootstrap(values: np.ndarray) -> dict[str, Any]:
    """`{"value", "ci95"}`: the mean of f[b] and its 95 % percentile interval over images."""
    rows = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(values[rows].mean(axis=1), [2.5, 97.5])
    return {"value": float(values.mean()), "ci95": [float(low), float(high)]}


def ranks(maps: Array, *, seed: int = 0) -> np.ndarray:
    """Rank of each pixel of maps f32[b h w], i32[b h w]: 0 is the largest value.

    Signed values are compared with their sign. Ties are in random order.
    """
    flat = np.asarray(maps).reshape(len(maps), -1)
    rng, out = np.random.default_rng(seed), np.empty(flat.shape, np.int32)
    for row, values in zip(out, flat, strict=True):
        row[np.lexsort((rng.random(len(values)), -values))] = np.arange(len(values))
    return out.reshape(np.shape(maps))


# ----------------------------------------------------------------------------- randomization


def cascade(
    clf: Classifier, variables: Variables, key: jax.Array
) -> Iterator[tuple[str, Variables]]:
    """Variables with more and more newly initialized parts, from the head to the first stage.

    Kernels that are initialized with zeros, such as those of a linear head, receive normal values
    with the standard deviation of the trained kernel: zeros would explain nothing.

    Args:
      clf: the network.
      variables: as for `clf.apply`.
      key: random key of the new parameters.

    Yields:
      The name of the last part that was initialized, "head" or a stage, and the variables.

    Reference: Adebayo et al. 2018, arXiv:1810.03292, section 3.1.
    """
    flat, new = paths.flatten(variables), paths.flatten(jax.jit(clf.init)(key))
    new = {name: np.asarray(leaf) for name, leaf in new.items()}
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    for name, leaf in new.items():
        if leaf.ndim > 1 and not leaf.any():
            spread = np.std(np.asarray(flat[name]))
            new[name] = (spread * rng.standard_normal(leaf.shape)).astype(np.float32)
    for stage in ("head", *reversed(clf.spec.endpoints)):
        part = "head/" if stage == "head" else f"backbone/{stage}/"
        is_in = lambda name, part=part: name.partition("/")[2].startswith(part)
        flat = {n: new[n] if is_in(n) else leaf for n, leaf in flat.items()}
        yield stage, {"batch_stats": {}, **paths.unflatten(flat)}


def randomization(
    subject: Subject,
    explanation: Explanation,
    maps: Array,
    networks: Sequence[tuple[str, Variables]],
) -> dict[str, Any]:
    """Rank correlation of the absolute values of a map with those of randomized networks.

    Args:
      subject: the network and the images.
      explanation: the method.
      maps: f32[b h w], its maps of the network.
      networks: from `cascade`.

    Returns:
      `{"value", "stages", "passed"}`: the mean over images with all weights randomized, that after
      each stage of the cascade, and whether the first is at most `RANDOMIZED`. Methods with more
      than `MANY_PASSES` passes have the last stage only. If all maps with random weights are
      constant, such as those of a saturated probability, nothing is tested and "passed" is None.
    """
    if explanation.passes(*subject.images01.shape[1:3]) > MANY_PASSES:
        networks = networks[-1:]
    means, constant = {}, False
    for stage, randomized in networks:
        randomized_maps = np.asarray(explanation.program(randomized, _rows(subject)))
        constant = not np.ptp(randomized_maps, axis=(1, 2)).any()
        means[stage] = float(spearman(maps, randomized_maps).mean())
    value = list(means.values())[-1]
    return {"value": value, "stages": means, "passed": None if constant else value <= RANDOMIZED}


def _rows(subject: Subject) -> Rows:
    keys = per_image_keys(subject.key, len(subject.images01))
    return Rows(keys, jnp.asarray(subject.images01), jnp.asarray(subject.targets))


# ---------------------------------------------------------------------- insertion and deletion


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


def _by_image(values: np.ndarray, groups: Array) -> np.ndarray:
    """The mean f[n] of the rows f[b] of each image; `groups` i[b] is the image of each row."""
    return np.bincount(groups, values) / np.bincount(groups)


def _curve_rows(
    curves: Mapping[str, np.ndarray], better: int, controls: tuple[str, ...], groups: Array
) -> dict[str, dict[str, Any]]:
    """The area of each method, its curve, and whether it is better than all controls.

    A method is better if the interval of the mean difference from the control excludes 0. With
    fewer than `FEWEST` images this is None, except for a control: it is never better than itself.
    """
    areas = {name: _by_image(_area(values), groups) for name, values in curves.items()}
    rows = {}
    for name, area in areas.items():
        ends = [bootstrap(better * (area - areas[control]))["ci95"] for control in controls]
        passed = None if len(area) < FEWEST else all(low > 0 for low, _ in ends)
        passed = False if name in controls else passed
        curve = [float(x) for x in curves[name].mean(axis=0)]
        rows[name] = {**bootstrap(area), "curve": curve, "passed": passed}
    return rows


# ------------------------------------------------------------------------------- the tests


class Check(NamedTuple):
    """A test of belief.

    Attributes:
      title: its name on the page.
      limit: when a method passes; "" for a number that is reported only.
    """

    title: str
    limit: str = ""


CHECKS: dict[str, Check] = {
    "completeness": Check("Completeness error", f"at most {COMPLETE:.0%} of the score difference"),
    "randomization": Check(
        "Correlation after randomization", f"at most {RANDOMIZED} with random weights"
    ),
    "deletion": Check("Deletion area", "lower than random order and edges"),
    "insertion": Check("Insertion area", "higher than random order and edges"),
    "sparseness": Check("Sparseness (Gini)"),
}
"""Key of `result.json` -> test."""

CONTROLS = ("edges", "random")


def evaluate(
    subject: Subject,
    explanations: Mapping[str, Explanation],
    maps: Mapping[str, Array],
    *,
    steps: int,
    slots: int,
    randomized: int | None = None,
    groups: Array | None = None,
) -> dict[str, dict[str, Any]]:
    """All tests of belief of all methods and of the controls.

    Args:
      subject: the network and b images.
      explanations: name -> method; "edges" is one of them.
      maps: name -> f32[b h w].
      steps: number of steps of insertion and deletion.
      slots: passes that a device computes together.
      randomized: number of rows for the randomization of weights, the first ones; None is all.
      groups: i[b], the image of each row, where several targets of an image are explained: rows of
        one image are not independent, and their mean counts. None: each row is an image.

    Returns:
      Name -> key of `CHECKS` -> `{"value", ...}`; "passed" if the test has a limit, None with too
      few images. Intervals are bootstrapped over images. "random" is the random order of the
      pixels, without a map.

    Reference: insertion and deletion: Petsiuk et al. 2018, arXiv:1806.07421, section 4.2. Deleted
      pixels are gray, and insertion starts from the blurred image.
    """
    clf, variables, key, images01, targets = subject
    groups = np.arange(len(images01)) if groups is None else groups
    orders = {name: np.asarray(values) for name, values in maps.items()}
    orders["random"] = np.zeros(np.shape(images01)[:3], np.float32)
    images01 = np.asarray(images01, np.float32)
    curves = make_curves(clf.with_dtype("float32"), steps=steps, slots=slots)
    start = np.asarray(baselines.blurred(_rows(subject).keys, jnp.asarray(images01)))
    gray = np.full_like(images01, 0.5)
    deleted, inserted = {}, {}
    for name, values in orders.items():
        order = ranks(values)
        deleted[name] = curves(variables, CurveRows(images01, gray, order, targets))
        inserted[name] = curves(variables, CurveRows(start, images01, order, targets))
    deletion = _curve_rows(deleted, -1, CONTROLS, groups)
    insertion = _curve_rows(inserted, 1, CONTROLS, groups)
    few = len(images01) if randomized is None else min(randomized, len(images01))
    part = subject._replace(images01=images01[:few], targets=targets[:few])  # with the same keys
    networks = list(cascade(clf, variables, jax.random.fold_in(key, 1)))
    rows: dict[str, dict[str, Any]] = {}
    for name, values in orders.items():
        row = {}
        if name in explanations:
            explanation = explanations[name]
            if explanation.method.baselines is not None:
                row["completeness"] = completeness(subject, explanation, values, slots=slots)
            row["randomization"] = randomization(part, explanation, values[:few], networks)
        row |= {"deletion": deletion[name], "insertion": insertion[name]}
        rows[name] = row | {"sparseness": bootstrap(_by_image(gini(values), groups))}
    return rows


def completeness(
    subject: Subject, explanation: Explanation, maps: Array, *, slots: int
) -> dict[str, Any]:
    """How far the sums of maps are from the score differences between image and baseline.

    Returns:
      `{"value", "passed"}`: the sum of the absolute errors over that of the absolute differences.
    """
    rows = _rows(subject)
    clf = subject.clf.with_dtype("float32")

    def run(variables: Variables, rows: Rows) -> jax.Array:
        return logit(rows.targets)(clf.apply(variables, rows.images01), rows.images01)

    scores = shard_rows(map_in_chunks(run, slots))
    assert explanation.method.baselines is not None
    starts = explanation.method.baselines(rows.keys, rows.images01)
    of = lambda images: np.asarray(scores(subject.variables, rows._replace(images01=images)))
    before = np.stack([of(starts[:, i]) for i in range(starts.shape[1])])
    difference = of(rows.images01) - before.mean(axis=0)
    error = np.abs(np.asarray(maps, np.float64).sum(axis=(1, 2)) - difference).sum()
    value = float(error / max(np.abs(difference).sum(), 1e-12))
    return {"value": value, "passed": value <= COMPLETE}


def failed(row: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The keys of the tests that a method fails, in the order of `CHECKS`."""
    return [key for key in CHECKS if key in row and row[key].get("passed") is False]
