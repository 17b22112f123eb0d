"""Tests that replace pixels of the images in the order of a map and read the probability.

Where another objective than classes is explained, they read its value instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl.attacks.run import map_in_chunks
from tl.devices import shard_rows
from tl.explain import baselines, imputation
from tl.explain.base import logit, probability, repeat, sum_passes
from tl.explain.evidence import CONTROLS, Evidence
from tl.explain.masks import cell_of
from tl.explain.statistics import against_controls, by_image, rank_correlation, ranks
from tl.models import Classifier
from tl.types import Array, Variables
from tl.visualize.objectives import Objective

# Shares of removed pixels of ROAD. Chosen, not tuned: the paper has 10 % to 90 %.
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
# Cells per side and share of hidden cells of mu-fidelity, as in Xplique, and the number of subsets,
# of which it has 200.
GRID, HIDDEN, SUBSETS = 9, 0.2, 100


def _make_scores(
    clf: Classifier,
    versions: Callable[[Any, jax.Array], jax.Array],
    count: int,
    *,
    slots: int,
    objective: Callable[[Any], Objective],
) -> Callable[[Variables, Any], np.ndarray]:
    """`(variables, rows) -> f32[b count]`, the scores of several versions of each image.

    Args:
      clf: the network; it computes in float32.
      versions: `(row, i32[s]) -> f32[s h w c]`, the versions with these numbers of the only row.
      count: number of versions.
      slots: forward passes that a device computes together.
      objective: targets -> objective; rows have the field `targets`.
    """
    clf = clf.with_dtype("float32")

    def run(variables: Variables, row: Any) -> jax.Array:
        def value(index: jax.Array) -> jax.Array:
            images01 = versions(row, index)
            score = objective(repeat(row.targets, len(index)))
            scores = score(clf.apply(variables, images01), images01)
            return scores[:, None] * jax.nn.one_hot(index, count, dtype=jnp.float32)

        return sum_passes(value, count, slots)[None]

    program = shard_rows(map_in_chunks(run, 1))
    return lambda variables, rows: np.asarray(program(variables, jax.tree.map(jnp.asarray, rows)))


# ---------------------------------------------------------------------- insertion and deletion


class CurveRows(NamedTuple):
    """Images in which pixels are replaced.

    Attributes:
      start: f32[b h w c], the image before.
      end: f32[b h w c], the image after.
      ranks: i32[b h w], the order of the pixels.
      targets: as for `Subject`.
    """

    start: Array
    end: Array
    ranks: Array
    targets: Any


def make_curves(
    clf: Classifier,
    *,
    steps: int,
    slots: int,
    objective: Callable[[Any], Objective] = probability,
) -> Callable[[Variables, CurveRows], np.ndarray]:
    """`(variables, rows) -> f32[b steps + 1]`, the probability while pixels are replaced.

    Args:
      clf: the network.
      steps: number of replacements of an equal share of the pixels.
      slots: forward passes that a device computes together.
      objective: targets -> objective whose value is computed.
    """

    def replaced(row: CurveRows, index: jax.Array) -> jax.Array:
        n = row.ranks.shape[1] * row.ranks.shape[2]
        after = row.ranks < (n * index // steps)[:, None, None]
        return jnp.where(after[..., None], row.end, row.start)

    return _make_scores(clf, replaced, steps + 1, slots=slots, objective=objective)


def _area(curves: np.ndarray) -> np.ndarray:
    """The mean of curves f[b n] over the share of replaced pixels, by the trapezoidal rule."""
    return (curves[:, 1:] + curves[:, :-1]).mean(axis=1) / 2


def _orders(evidence: Evidence) -> dict[str, np.ndarray]:
    """Method -> the order i32[b h w] of the pixels."""
    return {name: ranks(maps) for name, maps in evidence.maps.items()}


def _replacement(evidence: Evidence) -> Callable[[Variables, CurveRows], np.ndarray]:
    """The program of deletion and insertion, which differ in the images only."""
    clf, objective = evidence.subject.clf, evidence.objective or probability
    return make_curves(clf, steps=evidence.steps, slots=evidence.slots, objective=objective)


def _curves(evidence: Evidence, start: Array, end: Array) -> dict[str, np.ndarray]:
    """Method -> the curves f32[b steps + 1] from one image to another."""
    _, variables, _, _, targets = evidence.subject
    run, orders = evidence.shared(_replacement), evidence.shared(_orders)
    return {name: run(variables, CurveRows(start, end, o, targets)) for name, o in orders.items()}


def _deleted(evidence: Evidence) -> dict[str, np.ndarray]:
    images01 = evidence.rows().images01
    return _curves(evidence, images01, jnp.full_like(images01, 0.5))


def _inserted(evidence: Evidence) -> dict[str, np.ndarray]:
    rows = evidence.rows()
    return _curves(evidence, baselines.blurred(rows.keys, rows.images01), rows.images01)


def _area_row(
    evidence: Evidence, name: str, compute: Callable[[Evidence], dict[str, np.ndarray]], sign: int
) -> dict[str, Any]:
    curves = evidence.shared(compute)
    areas = {method: by_image(_area(values), evidence.groups) for method, values in curves.items()}
    curve = [float(x) for x in curves[name].mean(axis=0)]
    return {**against_controls(areas, name, CONTROLS, sign=sign), "curve": curve}


def deletion(evidence: Evidence, name: str) -> dict[str, Any]:
    """Area under the probability while the highest pixels turn gray; smaller is better.

    Returns:
      As `statistics.against_controls`, and "curve", the mean probability after each step.

    Reference: Petsiuk et al. 2018, arXiv:1806.07421, section 4.2.
    """
    return _area_row(evidence, name, _deleted, -1)


def insertion(evidence: Evidence, name: str) -> dict[str, Any]:
    """Area under the probability while the highest pixels appear on the blurred image.

    Returns:
      As `deletion`; larger is better.

    Reference: Petsiuk et al. 2018, arXiv:1806.07421, section 4.2.
    """
    return _area_row(evidence, name, _inserted, 1)


# ------------------------------------------------------------------------------------ ROAD


class RemovedRows(NamedTuple):
    """Images of which pixels are removed.

    Attributes:
      keys: key[b], of the noise.
      images01: f32[b h w c].
      ranks: i32[b h w], the order of the pixels.
      targets: as for `Subject`.
    """

    keys: Array
    images01: Array
    ranks: Array
    targets: Any


def removed_versions(row: RemovedRows, index: jax.Array) -> jax.Array:
    """Versions f32[s h w c] of one image without `SHARES[index]` of its pixels, imputed."""
    (image,), (order,) = row.images01, row.ranks
    counts = jnp.asarray([int(share * order.size) for share in SHARES])[index]
    removed = order[None] < counts[:, None, None]
    filled = jax.vmap(imputation.impute, (None, 0))(image, removed)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(row.keys[0], index)
    noise = jax.vmap(lambda key: jax.random.normal(key, (image.size,)))(keys)
    noisy = filled + imputation.NOISE * noise.reshape(filled.shape)
    return jnp.where(removed[..., None], jnp.clip(noisy, 0.0, 1.0), image[None])


def _removed(evidence: Evidence) -> dict[str, np.ndarray]:
    """Method -> the probability f32[b shares] without the highest pixels."""
    clf, variables, *_ = evidence.subject
    objective = evidence.objective or probability
    run = _make_scores(
        clf, removed_versions, len(SHARES), slots=evidence.slots, objective=objective
    )
    rows = evidence.rows()
    return {
        name: run(variables, RemovedRows(rows.keys, rows.images01, order, rows.targets))
        for name, order in evidence.shared(_orders).items()
    }


def road(evidence: Evidence, name: str) -> dict[str, Any]:
    """ROAD: the probability while the highest pixels are removed and imputed from their neighbors.

    Unlike `deletion`, the removed pixels show no new pattern to the network. The authors report the
    accuracy instead, which is too coarse for a few images.

    Returns:
      As `deletion`; the value is the mean over `SHARES`.

    Reference: Rong et al. 2022, arXiv:2202.00449, most relevant first.
    """
    scores = evidence.shared(_removed)
    means = {method: by_image(p.mean(axis=1), evidence.groups) for method, p in scores.items()}
    curve = [float(p) for p in scores[name].mean(axis=0)]
    return {**against_controls(means, name, CONTROLS, sign=-1), "curve": curve}


# ----------------------------------------------------------------------------- mu-fidelity


class HiddenRows(NamedTuple):
    """Images of which cells of a grid are hidden.

    Attributes:
      images01: f32[b h w c].
      hidden: bool[b n g g], n sets of cells per image.
      targets: as for `Subject`.
    """

    images01: Array
    hidden: Array
    targets: Any


def hidden_versions(row: HiddenRows, index: jax.Array) -> jax.Array:
    """Versions f32[s h w c] of one image whose hidden cells are gray."""
    h, w, grid = *row.images01.shape[1:3], row.hidden.shape[-1]
    hidden = row.hidden[0][index][:, cell_of(h, grid)][:, :, cell_of(w, grid)]
    return jnp.where(hidden[..., None], 0.5, row.images01)


def cell_sums(maps: np.ndarray, grid: int) -> np.ndarray:
    """The sums f64[b g g] of maps f32[b h w] over the cells of a grid."""
    down, across = (np.eye(grid)[cell_of(n, grid)] for n in maps.shape[1:])
    return np.einsum("bhw,hr,wc->brc", maps.astype(np.float64), down, across, optimize=True)


def _hidden(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """The same random sets of cells bool[b n g g] for all methods, and the scores f32[b n]."""
    clf, variables, key, images01, targets = evidence.subject
    grid = min(GRID, *images01.shape[1:3])
    seed = np.asarray(jax.random.key_data(jax.random.fold_in(key, 5))).ravel()
    draws = np.random.default_rng(seed).random((len(images01), SUBSETS, grid**2))
    # The cells with the smallest draws: a random set of a fixed size.
    hidden = draws.argsort(axis=-1).argsort(axis=-1) < max(round(HIDDEN * grid**2), 1)
    hidden = hidden.reshape(*draws.shape[:2], grid, grid)
    objective = evidence.objective or logit
    run = _make_scores(clf, hidden_versions, SUBSETS, slots=evidence.slots, objective=objective)
    rows = HiddenRows(np.asarray(images01, np.float32), hidden, targets)
    return hidden, run(variables, rows)


def _fidelities(evidence: Evidence) -> dict[str, np.ndarray]:
    """Method -> the correlation f64[n] of each image."""
    hidden, scores = evidence.shared(_hidden)
    values = {}
    for name, maps in evidence.maps.items():
        sums = np.einsum("bnrc,brc->bn", hidden, cell_sums(maps, hidden.shape[-1]))
        rows = np.array([rank_correlation(s, -y) for s, y in zip(sums, scores, strict=True)])
        values[name] = by_image(rows, evidence.groups)
    return values


def mu_fidelity(evidence: Evidence, name: str) -> dict[str, Any]:
    """Rank correlation of the sum of a map over hidden cells with the drop of the score.

    `SUBSETS` random sets of a fifth of the cells of a 9 x 9 grid turn gray, the same ones for all
    methods. The score is the sum of logits that is explained. Xplique computes Spearman's
    correlation, too, and hides behind black; the paper has Pearson's.

    Returns:
      As `statistics.against_controls`; larger is better. A random order, whose map is constant, has
      the value 0.

    Reference: Bhatt et al. 2020, arXiv:2005.00631, definition 3.
    """
    return against_controls(evidence.shared(_fidelities), name, CONTROLS, sign=1)
