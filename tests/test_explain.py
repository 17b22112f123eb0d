"""Every explanation method on one table, and reference implementations in NumPy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import linen as nn

from tl import devices, explain, labels, models, paths, pixels
from tl.attacks.norms import per_image_keys
from tl.explain import masks, targets
from tl.explain.base import Rows
from tl.models import heads
from tl.types import Mode
from tl.visualize import objectives

SIDE, B, K = 16, 3, 3
KEY = jax.random.key(3)
SLIC = jax.jit(masks.slic, static_argnums=1)
TABLE = labels.from_names([f"class {i}" for i in range(K)], name="toy")
IMAGES = np.stack([toys.smooth(SIDE, SIDE, seed=i) for i in range(B)]).astype(np.float32) / 255
FIRST, SECOND = (np.eye(K, dtype=np.float32)[[i] * B] for i in (0, 1))


class Row(NamedTuple):
    """Options that make a method cheap, and what is true of its map.

    Attributes:
      options: arguments of the method.
      signed: whether the map has both signs.
      complete: whether the map adds up to the difference between the scores of image and baseline.
      reads_class: whether the map depends on the target.
    """

    options: Mapping[str, Any]
    signed: bool = False
    complete: bool = False
    reads_class: bool = True


ROWS: dict[str, Row] = {
    "gradient": Row({}),
    "gradient_x_input": Row({}, signed=True),
    "ig": Row({"nodes": 6}, signed=True, complete=True),
    "expected_gradients": Row({"draws": 6}, signed=True),
    "smoothgrad": Row({"draws": 5}),
    "smoothgrad_sq": Row({"draws": 5}),
    "vargrad": Row({"draws": 5}),
    "guided": Row({}),
    "lrp_epsilon": Row({}, signed=True),
    "lrp_gamma": Row({}, signed=True),
    "lrp_alpha_beta": Row({"alpha": 2.0}, signed=True),
    "edges": Row({}, reads_class=False),
    "gradcam": Row({}),
    "gradcam_plus_plus": Row({}),
    "layercam": Row({"endpoint": "stage2"}),
    "scorecam": Row({"endpoint": "stage2"}),
    "occlusion": Row({"patch": 6, "stride": 4}, signed=True),
    "rise": Row({"masks": 12, "grid": 3}),
    "kernel_shap": Row({"masks": 18, "grid": 3}, signed=True, complete=True),
}


@functools.cache
def toy() -> tuple[models.Classifier, Any]:
    return toys.classifier("toy_vgg", K, size=SIDE)


@functools.cache
def traced(name: str) -> tuple[explain.Explanation, list[int]]:
    """The explanation of a row, and a list that grows by one with each trace of the network."""
    clf, _ = toy()
    traces: list[int] = []

    class Counted(models.Classifier):
        def apply(self, *args: Any, **options: Any) -> Any:
            traces.append(1)
            return super().apply(*args, **options)

    fields = {f: getattr(clf, f) for f in clf.__dataclass_fields__}
    method = explain.get(name)(**ROWS[name].options)
    return explain.make(method, Counted(**fields), slots=4), traces


@functools.cache
def maps(name: str, second: bool = False) -> np.ndarray:
    weights = SECOND if second else FIRST
    return np.asarray(traced(name)[0](toy()[1], KEY, IMAGES, weights))


def test_the_table_has_a_row_for_every_method():
    assert list(ROWS) == list(explain.METHODS)


@pytest.mark.parametrize("name", ROWS)
def test_a_map_is_finite_has_the_shape_of_the_image_and_its_sign(name: str):
    values = maps(name)
    assert (values.shape, values.dtype) == ((B, SIDE, SIDE), np.float32)
    assert np.isfinite(values).all() and (values.max((1, 2)) > 0).any()
    assert traced(name)[0].method.signed == ROWS[name].signed
    assert (values < 0).any() == ROWS[name].signed


@pytest.mark.parametrize("name", ROWS)
def test_a_map_depends_on_the_target_and_a_second_call_traces_nothing(name: str):
    first = maps(name)
    before = len(traced(name)[1])
    second = maps(name, second=True)
    assert len(traced(name)[1]) == before
    assert (np.abs(first - second).max() > 0.01 * np.abs(first).max()) == ROWS[name].reads_class


@pytest.mark.parametrize("name", ROWS)
def test_an_image_has_the_same_map_alone_and_in_a_batch(name: str):
    """The last two images change places with others, so the image keeps its key and loses them."""
    explanation, _ = traced(name)
    keys = per_image_keys(KEY, B)
    order = np.array([1, 1, 1])
    alone = explanation(toy()[1], keys[order], IMAGES[order], FIRST)
    scale = np.abs(maps(name)).max()
    np.testing.assert_allclose(alone[2], maps(name)[1], atol=1e-5 * scale)


# ----------------------------------------------------------------------- references in NumPy


class Powers(nn.Module):
    """The pixels and their squares as features: its logits are quadratic in the image."""

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode, start: str = "") -> Any:
        maps = x if start else jnp.concatenate([x, x**2], axis=-1)
        return maps.reshape(len(x), -1), {"powers": maps}


@functools.cache
def quadratic() -> tuple[models.Classifier, Any, np.ndarray, np.ndarray]:
    """A classifier with logits `sum(a * x + b * x**2)`; a and b are f32[h w 3 k]."""
    n = SIDE * SIDE * 6
    clf = toys.of_module(Powers(), n, SIDE, ("zero", "one", "two"))
    kernel = np.random.default_rng(1).normal(size=(n, K)).astype(np.float32)
    head = {"kernel": kernel, "bias": np.array([0.3, -0.2, 0.1], np.float32)}
    split = kernel.reshape(SIDE, SIDE, 6, K)
    variables = {"params": {"backbone": {}, "head": head}, "batch_stats": {}}
    return clf, variables, split[..., :3, :], split[..., 3:, :]


def explained(
    method: explain.Method,
    weights: np.ndarray = FIRST,
    images: np.ndarray = IMAGES,
    slots: int = 4,
) -> np.ndarray:
    clf, variables, _, _ = quadratic()
    explanation = explain.make(method, clf, slots=slots)
    return np.asarray(explanation(variables, KEY, images, weights))


def quadratic_score(images: np.ndarray, weights: np.ndarray = FIRST) -> np.ndarray:
    _, variables, a, b = quadratic()
    logits = np.einsum("nhwc,hwck->nk", images, a) + np.einsum("nhwc,hwck->nk", images**2, b)
    return np.sum((logits + variables["params"]["head"]["bias"]) * weights, axis=1)


@pytest.mark.parametrize("level, baseline", [(0.0, "black"), (0.5, "gray")])
def test_integrated_gradients_of_a_quadratic_function_are_exact(level: float, baseline: str):
    """Two Gauss-Legendre nodes integrate a polynomial of degree 3, and its gradient has degree 1.

    Per pixel: a (x - x0) + b (x^2 - x0^2).
    """
    _, _, a, b = quadratic()
    difference = FIRST - SECOND
    expected = np.einsum("nhwc,hwck,nk->nhw", IMAGES - level, a, difference)
    expected += np.einsum("nhwc,hwck,nk->nhw", IMAGES**2 - level**2, b, difference)
    values = explained(explain.get("ig")(nodes=2, baseline=baseline), difference)
    np.testing.assert_allclose(values, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.complete])
def test_a_complete_map_adds_up_to_the_difference_of_the_scores(name: str):
    method = explain.get(name)(**ROWS[name].options)
    assert method.baselines
    starts = np.asarray(method.baselines(per_image_keys(KEY, B), jnp.asarray(IMAGES)))
    expected = quadratic_score(IMAGES)
    expected = expected - np.mean([quadratic_score(x) for x in starts.swapaxes(0, 1)], axis=0)
    np.testing.assert_allclose(explained(method).sum((1, 2)), expected, rtol=1e-4)


def test_several_baselines_are_averaged():
    ig = explain.get("ig")
    both = explained(ig(nodes=3, baseline="black+blurred"))
    each = [explained(ig(nodes=3, baseline=name)) for name in ("black", "blurred")]
    np.testing.assert_allclose(both, np.mean(each, axis=0), atol=1e-5 * np.abs(both).max())
    random = explained(ig(nodes=3, baseline="random"))
    assert np.abs(random - each[0]).max() > 0.1


def test_gradients_match_their_closed_form():
    _, _, a, b = quadratic()
    gradient = a[None, ..., 0] + 2 * IMAGES * b[None, ..., 0]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(explained(explain.get("gradient")()), np.abs(gradient).max(-1))
    close(explained(explain.get("gradient_x_input")()), (gradient * IMAGES).sum(-1))
    # The variance of 2 b (x + noise) is 4 b^2 noise^2, and the mean square adds the mean's square.
    faint = 0.25 + 0.5 * IMAGES
    spread = 0.1 * np.ptp(faint, axis=(1, 2, 3))[:, None, None, None]
    variance = (4 * b[None, ..., 0] ** 2 * spread**2).sum(-1)
    square = variance + ((a[None, ..., 0] + 2 * faint * b[None, ..., 0]) ** 2).sum(-1)
    for name, expected in (("vargrad", variance), ("smoothgrad_sq", square)):
        values = explained(explain.get(name)(draws=1000, noise=0.1), images=faint, slots=500)
        np.testing.assert_allclose(values, expected, rtol=0.3, atol=0.02)


def test_a_low_pass_filter_blurs_the_gradient_before_its_absolute_value():
    _, _, a, b = quadratic()
    distance = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    gauss = np.exp(-(distance**2) / (2 * 1.5**2))
    gauss /= gauss.sum(axis=1, keepdims=True)
    blur = lambda x: np.einsum("ij,njkc,lk->nilc", gauss, x, gauss)
    blurred = blur(a[None, ..., 0] + 2 * IMAGES * b[None, ..., 0])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(explained(explain.get("gradient")(lowpass=1.5)), np.abs(blurred).max(-1))
    close(explained(explain.get("gradient_x_input")(lowpass=1.5)), (blurred * IMAGES).sum(-1))
    # The noise of the draws is blurred, too, so the variance shrinks by the squared weights.
    spread = 0.1 * np.ptp(IMAGES, axis=(1, 2, 3))[:, None, None, None]
    variance = np.einsum(
        "ij,njkc,lk->nilc", gauss**2, 4 * b[None, ..., 0] ** 2 * spread**2, gauss**2
    ).sum(-1)
    values = explained(explain.get("vargrad")(draws=1000, noise=0.1, lowpass=1.5), slots=500)
    np.testing.assert_allclose(values, variance, rtol=0.3, atol=0.02)


def test_occlusion_matches_a_loop_in_numpy():
    """The map is the mean drop of the score over the patches that cover a pixel."""
    patch, stride = 5, 4
    total, count = np.zeros((B, SIDE, SIDE)), np.zeros((SIDE, SIDE))
    for top in range(0, SIDE - patch + stride, stride):
        for left in range(0, SIDE - patch + stride, stride):
            window = np.s_[top : top + patch, left : left + patch]
            images = IMAGES.copy()
            images[:, *window] = 0.5
            total[:, *window] += (quadratic_score(IMAGES) - quadratic_score(images))[:, None, None]
            count[window] += 1
    values = explained(explain.get("occlusion")(patch=patch, stride=stride))
    np.testing.assert_allclose(values, total / count, atol=2e-4)


def bilinear(grid: np.ndarray, side: int) -> np.ndarray:
    """A square grid resized with pixel centers aligned and edges repeated."""
    cells = len(grid)
    position = np.clip((np.arange(side) + 0.5) * cells / side - 0.5, 0, cells - 1)
    low = np.minimum(position.astype(int), cells - 2)
    matrix = np.zeros((side, cells))
    matrix[np.arange(side), low] = 1 - (position - low)
    matrix[np.arange(side), low + 1] = position - low
    return matrix @ grid @ matrix.T


@functools.cache
def rise_of(count: int, grid: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks f32[b n h w] of each image, their grids and their shifts."""
    cell = -(-SIDE // grid), -(-SIDE // grid)

    @jax.vmap
    def draw(key: jax.Array) -> Any:
        index = jnp.arange(count)
        one = lambda i: masks.rise_draw(key, i, cell, grid, 0.5)
        return masks.rise_masks(key, index, (SIDE, SIDE), grid, 0.5), *jax.vmap(one)(index)

    drawn, grids, shifts = map(np.asarray, jax.jit(draw)(per_image_keys(KEY, B)))
    return drawn, grids, shifts


def test_rise_masks_are_random_grids_resized_and_cropped_at_random():
    drawn, grids, shifts = rise_of(10, 3)
    cell = -(-SIDE // 3)
    assert shifts.min() >= 0 and shifts.max() < cell and len(np.unique(shifts)) > 3
    for mask, grid, (row, column) in zip(drawn[0], grids[0], shifts[0], strict=True):
        expected = bilinear(grid.astype(np.float64), 4 * cell)
        expected = expected[row : row + SIDE, column : column + SIDE]
        np.testing.assert_allclose(mask, expected, atol=1e-5)
    assert drawn.min() >= 0 and drawn.max() <= 1 and 0.35 < drawn.mean() < 0.65


def test_rise_is_the_mean_of_masks_weighted_by_probability():
    values = explained(explain.get("rise")(masks=10, grid=3, probability=0.5, fill="black"))
    drawn = rise_of(10, 3)[0]
    clf, variables, _, _ = quadratic()
    images = (IMAGES[:, None] * drawn[..., None]).reshape(-1, SIDE, SIDE, 3)
    p = np.asarray(jax.nn.softmax(clf.logits(variables, jnp.asarray(images))))[:, 0]
    expected = np.einsum("bm,bmhw->bhw", p.reshape(B, 10), drawn) / (10 * 0.5)
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_class_activation_maps_match_their_closed_form():
    """Of a linear head on maps A with weights w: the gradient of the logit is w everywhere."""
    _, variables, _, _ = quadratic()
    w = variables["params"]["head"]["kernel"][:, 0].reshape(SIDE, SIDE, 6)
    a = np.concatenate([IMAGES, IMAGES**2], axis=-1)
    raw = (a * w.mean((0, 1))).sum(-1)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(explained(explain.get("gradcam")(relu=False)), raw)
    close(explained(explain.get("gradcam")()), np.maximum(raw, 0))
    close(explained(explain.get("layercam")()), np.maximum((np.maximum(w, 0) * a).sum(-1), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = w**2 / (2 * w**2 + a.sum((1, 2), keepdims=True) * w**3)
    weights = (np.where(np.isfinite(alpha), alpha, 0) * np.maximum(w, 0)).sum((1, 2))
    expected = np.maximum(np.einsum("nhwc,nc->nhw", a, weights), 0)
    values = explained(explain.get("gradcam_plus_plus")())
    np.testing.assert_allclose(values, expected, atol=1e-3 * expected.max())


def test_score_cam_matches_a_loop_over_channels_in_numpy():
    maps = np.concatenate([IMAGES, IMAGES**2], axis=-1)
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    shown = (maps - low) / (high - low)
    scores = np.stack([quadratic_score(IMAGES * shown[..., [c]]) for c in range(6)])
    weights = np.exp(scores - scores.max(axis=0))
    expected = np.einsum("nhwc,cn->nhw", maps, weights / weights.sum(0))
    values = explained(explain.get("scorecam")())
    np.testing.assert_allclose(values, expected, atol=1e-3)


def test_expected_gradients_are_the_mean_of_integrated_gradients():
    """In units of the standard error of a draw, whose distribution NumPy samples."""
    _, _, a, b = quadratic()
    a, b = a[..., 0], b[..., 0]
    references = np.stack([toys.smooth(SIDE, SIDE, seed=i) for i in (7, 8)]) / np.float32(255)
    draws = 1000
    values = explained(
        explain.get("expected_gradients")(draws=draws, references=references), slots=100
    )
    x, r = IMAGES[:, None], references[None]
    expected = (a * (x - r) + b * (x**2 - r**2)).mean(axis=1).sum(-1)
    points = np.random.default_rng(0).uniform(size=(200, 1, 1, 1, 1, 1))
    samples = ((x - r) * (a + 2 * b * (r + points * (x - r)))).sum(-1)
    error = samples.std(axis=(0, 2)) / np.sqrt(draws)
    assert 0.2 < np.mean(((values - expected) / error) ** 2) < 2


def test_expected_gradients_draw_other_baselines_than_integrated_gradients():
    """Noise averages to gray: from many random baselines, the map is that of their mean."""
    _, _, a, b = quadratic()
    values = explained(explain.get("expected_gradients")(draws=1000), slots=100)
    mean = IMAGES - 0.5, IMAGES**2 - 1 / 3
    expected = (a[..., 0] * mean[0] + b[..., 0] * mean[1]).sum(-1)
    error = np.abs(values - expected).mean() / np.abs(expected).mean()
    assert error < 0.05


@functools.cache
def players(superpixels: int) -> np.ndarray:
    """The cell of a grid of 3 x 3 or the superpixel i[b h w] of each pixel."""
    edge = np.arange(SIDE) * 3 // SIDE
    if not superpixels:
        return np.stack([edge[:, None] * 3 + edge] * B)
    return np.stack([SLIC(image, 3) for image in IMAGES])


@functools.cache
def coalition_scores(superpixels: int) -> np.ndarray:
    """The scores f32[2 ** cells b] of the toy VGG; bit i of a row shows cell i of black images."""
    clf, variables = toy()
    shown = np.arange(2**9)[:, None, None, None] >> players(superpixels) & 1
    images = (IMAGES[None] * shown[..., None]).astype(np.float32)
    logits = jax.jit(clf.logits)(variables, jnp.asarray(images.reshape(-1, SIDE, SIDE, 3)))
    return np.asarray(logits)[:, 0].reshape(-1, B)


def player_sums(values: np.ndarray, superpixels: int) -> np.ndarray:
    """The sums f64[b cells] of maps f32[b h w] over the players."""
    pairs = zip(players(superpixels), values, strict=True)
    return np.stack([np.bincount(cell.ravel(), x.ravel(), minlength=9) for cell, x in pairs])


@pytest.mark.parametrize("superpixels", [0, 9])
def test_kernel_shap_of_all_coalitions_has_the_shapley_values(superpixels: int):
    """By definition: the mean gain of a cell over the orders of the cells."""
    scores, cells = coalition_scores(superpixels).astype(np.float64), 9
    sizes = np.array([bin(i).count("1") for i in range(2**cells)])
    weights = np.array([1 / (cells * math.comb(cells - 1, s)) for s in range(cells)])
    expected = np.zeros((B, cells))
    for i in range(cells):
        without = np.flatnonzero(~np.arange(2**cells) >> i & 1)
        gains = scores[without + 2**i] - scores[without]
        expected[:, i] = weights[sizes[without]] @ gains
    method = explain.get("kernel_shap")(masks=510, grid=3, superpixels=superpixels, fill="black")
    clf, variables = toy()
    values = np.asarray(explain.make(method, clf, slots=64)(variables, KEY, IMAGES, FIRST))
    actual = player_sums(values, superpixels)
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("superpixels", [0, 9])
def test_kernel_shap_of_an_additive_score_is_exact_from_any_coalitions(superpixels: int):
    """Each cell contributes the same to every coalition."""
    _, _, a, b = quadratic()
    parts = (IMAGES * a[..., 0] + IMAGES**2 * b[..., 0]).sum(-1)
    method = explain.get("kernel_shap")(masks=40, grid=3, superpixels=superpixels, fill="black")
    expected = player_sums(parts, superpixels)
    actual = player_sums(explained(method), superpixels)
    np.testing.assert_allclose(actual, expected, atol=1e-3 * np.abs(expected).max())


def test_superpixels_follow_the_colors_and_cells_do_not():
    """Two colors with a diagonal border and a little noise: no superpixel has both."""
    side = 24
    second = np.add.outer(np.arange(side), 2 * np.arange(side)) > 1.4 * side
    image = np.where(second[..., None], [0.8, 0.3, 0.2], [0.2, 0.4, 0.7])
    image += np.random.default_rng(0).normal(0, 0.02, image.shape)
    cell = np.asarray(SLIC(image.astype(np.float32), 4))
    mixed = lambda cell: sum(0 < second[cell == i].mean() < 1 for i in np.unique(cell))
    edge = np.arange(side) * 4 // side
    assert mixed(cell) == 0 and mixed(edge[:, None] * 4 + edge) > 3
    assert (cell.dtype, cell.shape) == (np.int32, (side, side)) and cell.max() < 16
    sizes = np.bincount(cell.ravel(), minlength=16)
    assert np.count_nonzero(sizes) > 12 and sizes.max() < 4 * side**2 / 16


def test_superpixels_match_k_means_in_numpy():
    """A loop over pixels; each pixel compares the superpixels that start around its cell."""
    grid = 3
    edge = np.arange(SIDE) * grid // SIDE
    cell = edge[:, None] * grid + edge
    colors = np.rint(255 * IMAGES[0]) / 255 * 100 / math.sqrt(3) / masks.COMPACTNESS
    places = np.moveaxis(np.indices((SIDE, SIDE)), 0, -1) * grid / SIDE
    points = np.concatenate([colors, places], axis=-1)
    for _ in range(masks.ROUNDS):
        centers = {i: points[cell == i].mean(axis=0) for i in np.unique(cell).tolist()}
        new = np.zeros_like(cell)
        for y, x in np.ndindex(SIDE, SIDE):
            near = lambda i, down=edge[y], across=edge[x]: (
                abs(i // grid - down) < 2 and abs(i % grid - across) < 2
            )
            distance = lambda i, point=points[y, x], c=centers: np.sum((point - c[i]) ** 2)
            new[y, x] = min(filter(near, centers), key=distance)
        cell = new
    np.testing.assert_array_equal(players(9)[0], cell)


def test_an_empty_superpixel_contributes_nothing():
    """Noise empties superpixels; the others still add up to the difference of the scores."""
    images = np.random.default_rng(1).integers(0, 2, (B, SIDE, SIDE, 3)).astype(np.float32)
    sizes = np.bincount(np.asarray(SLIC(images[0], 12)).ravel(), minlength=144)
    method = explain.get("kernel_shap")(masks=300, superpixels=144, fill="black")
    clf, variables = toy()
    values = np.asarray(explain.make(method, clf, slots=4)(variables, KEY, images, FIRST))
    logits = np.asarray(jax.jit(clf.logits)(variables, np.concatenate([images, 0 * images])))
    expected = logits[:B, 0] - logits[B:, 0]
    assert (sizes == 0).any()
    np.testing.assert_allclose(values.sum((1, 2)), expected, atol=1e-4 * np.abs(expected).max())


def test_coalitions_are_drawn_from_the_shapley_kernel_in_complementary_pairs():
    draw = jax.jit(lambda index: masks._coalitions(KEY, index, 5, enumerated=False)[0])
    drawn = np.asarray(draw(jnp.arange(4000)))
    np.testing.assert_array_equal(drawn[::2], ~drawn[1::2])
    share = 1 / np.array([1 * 4, 2 * 3, 3 * 2, 4 * 1])
    counts = np.bincount(drawn[::2].sum(1), minlength=5)[1:]
    np.testing.assert_allclose(counts / 2000, share / share.sum(), atol=0.05)
    np.testing.assert_allclose(drawn[::2].mean(0), 0.5, atol=0.05)


# ------------------------------------------------- layer-wise relevance propagation in NumPy

LRP = {
    "lrp_epsilon": ({"epsilon": 0.1}, [(1.0, 1.0, 1.0)]),
    "lrp_gamma": ({"gamma": 0.5, "epsilon": 0.01}, [(1.0, 1.5, 1.0)]),
    "lrp_alpha_beta": ({"alpha": 2.0, "epsilon": 0.01}, [(2.0, 1.0, 0.0), (-1.0, 0.0, 1.0)]),
}
"""Method -> options, and (share, weight of positive contributions, weight of negative ones)."""


def relevance_of_inputs(x: np.ndarray, layer: Any, relevance: np.ndarray, parts: Any, eps: float):
    """Through a 3x3 convolution with one pixel of padding: f64[n h w i], from f64[n h w o]."""
    h, w = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = np.zeros(padded.shape)
    taps = [(i, j) for i in range(3) for j in range(3)]
    for share, positive, negative in parts:
        weigh = lambda z, up=positive, down=negative: np.where(z > 0, up * z, down * z)
        z = {
            (i, j): weigh(padded[:, i : i + h, j : j + w, :, None] * layer["kernel"][i, j])
            for i, j in taps
        }
        sums = sum(part.sum(axis=3) for part in z.values()) + weigh(layer["bias"])
        ratio = share * relevance / (sums + np.where(sums < 0, -eps, eps))
        for i, j in taps:
            total[:, i : i + h, j : j + w] += (z[i, j] * ratio[..., None, :]).sum(-1)
    return total[:, 1:-1, 1:-1]


def propagated(variables: Any, inputs: np.ndarray, weights: np.ndarray, parts: Any, eps: float):
    """The relevance f64[n h w] of the inputs of a toy VGG without BatchNorm."""
    layers = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    convolutions = [layers["backbone"][f"stage{s}"]["conv0"] for s in (1, 2, 3)]
    x, steps = inputs.astype(np.float64), []
    for layer in convolutions:
        n, h, w, _ = x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = [(padded[:, i : i + h, j : j + w], i, j) for i in range(3) for j in range(3)]
        y = sum(window @ layer["kernel"][i, j] for window, i, j in windows) + layer["bias"]
        squares = np.maximum(y, 0).reshape(n, h // 2, 2, w // 2, 2, -1).swapaxes(2, 3)
        squares = squares.reshape(n, h // 2, w // 2, 4, -1)
        steps.append((x, layer, squares))
        x = squares.max(axis=3)
    features, head = x.mean((1, 2)), layers["head"]
    logits = features @ head["kernel"] + head["bias"]
    z = features[..., None] * head["kernel"]
    relevance = (z * (weights * logits / (logits + eps * np.sign(logits)))[:, None]).sum(-1)
    relevance = relevance / np.where(features == 0, 1.0, features)  # per unit of the mean
    relevance = x * relevance[:, None, None] / (x.shape[1] * x.shape[2])
    for x, layer, squares in reversed(steps):
        n, h, w, _, c = squares.shape
        first = np.arange(4)[:, None] == squares.argmax(axis=3)[..., None, :]
        routed = np.where(first, relevance[..., None, :], 0.0).reshape(n, h, w, 2, 2, c)
        routed = routed.swapaxes(2, 3).reshape(n, 2 * h, 2 * w, c)
        relevance = relevance_of_inputs(x, layer, routed, parts, eps)
    return relevance.sum(-1)


@functools.cache
def with_biases(arch: str, scale: float) -> tuple[models.Classifier, Any]:
    """A toy with random numbers up to `scale` added to its biases and statistics."""
    clf, variables = toys.classifier(arch, K, size=SIDE if "vgg" in arch else 32)
    rng = np.random.default_rng(2)
    leaves = {
        name: leaf + scale * rng.uniform(-1, 1, leaf.shape).astype(np.float32)
        if name.rpartition("/")[2] in ("bias", "mean", "var", "scale")
        else leaf
        for name, leaf in paths.flatten(variables).items()
    }
    return clf, {"batch_stats": {}, **paths.unflatten(leaves)}


@pytest.mark.parametrize(
    "name, arch",
    [("lrp_epsilon", "toy_vgg_bn"), ("lrp_gamma", "toy_vgg"), ("lrp_alpha_beta", "toy_vgg_bn")],
)
def test_relevance_matches_a_propagation_in_numpy(name: str, arch: str):
    """BatchNorm counts as a part of its convolution; inputs of the first layer have both signs."""
    options, parts = LRP[name]
    clf, variables = with_biases(arch, 0.3)
    weights = FIRST - np.float32(0.5) * SECOND
    values = explain.make(explain.get(name)(**options), clf)(variables, KEY, IMAGES, weights)
    inputs = np.asarray(pixels.normalize(clf.pixels, jnp.asarray(IMAGES)))
    folded = clf.fold_batch_norm(variables)
    expected = propagated(folded, inputs, weights, parts, options["epsilon"])
    np.testing.assert_allclose(values, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "name, arch",
    [("lrp_epsilon", "toy_vgg"), ("lrp_gamma", "toy_squeezenet"), ("lrp_alpha_beta", "toy_vgg")],
)
def test_without_biases_the_relevance_adds_up_to_the_score(name: str, arch: str):
    """SqueezeNet has concatenations and max-pools that overlap.

    With alpha = 2 the sum is larger, because some outputs have no negative contributions.
    """
    options = {**LRP[name][0], "epsilon": 1e-9} | ({"alpha": 1.0} if "alpha" in name else {})
    clf, variables = with_biases(arch, 0.0)
    images = np.stack([toys.smooth(32, 32, seed=i) for i in range(B)]).astype(np.float32) / 255
    weights = FIRST - SECOND
    values = explain.make(explain.get(name)(**options), clf)(variables, KEY, images, weights)
    scores = np.sum(np.asarray(clf.logits(variables, jnp.asarray(images))) * weights, axis=1)
    np.testing.assert_allclose(np.asarray(values).sum((1, 2)), scores, rtol=1e-3)


def test_a_map_of_any_objective():
    """The channel's mean over the map: its gradient is uniform, and in one color only."""
    clf, variables, _, _ = quadratic()
    explanation = explain.make(
        explain.get("gradient_x_input")(),
        clf,
        objective=lambda index: objectives.channel("powers", index),
    )
    values = np.asarray(explanation(variables, KEY, IMAGES, jnp.asarray([0, 1, 2])))
    expected = np.stack([IMAGES[i, :, :, i] for i in range(B)]) / SIDE**2
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_a_target_is_a_word_of_an_objective():
    """Row i is explained by word i; the photograph's own features are as similar as can be."""
    clf, variables = toy()
    words = ["channel:stage2:5", "similarity:features", "channel:stage2:5"]
    made, rows = targets.objective(clf, variables, words, photograph=IMAGES[0])
    values = explain.make(explain.get("gradient")(), clf, objective=made)(
        variables, KEY, IMAGES, rows
    )

    def score(image: jax.Array, i: int) -> jax.Array:
        output = clf.apply(variables, jnp.stack([image, jnp.asarray(IMAGES[0])]))
        a, b = output.features
        if i == 1:
            return jnp.sum(a * b) / jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2))
        return jnp.mean(output.endpoints["stage2"][0, :, :, 5])

    slope = jax.jit(jax.grad(score), static_argnums=1)
    for i, image in enumerate(IMAGES):
        expected = np.abs(slope(jnp.asarray(image), i % 2)).max(-1)
        np.testing.assert_allclose(values[i], expected, atol=1e-4 * expected.max())


@pytest.mark.parametrize("name", [name for name in ROWS if name != "rise"])
def test_a_method_explains_an_objective_as_it_does_a_class(name: str):
    """The logit of a class is an objective, too; the first image has another one."""
    clf, variables = toy()
    words = ["channel:stage3:1", "logit:class 0", "logit:class 0"]
    made, rows = targets.parse(clf, variables, words)
    method = explain.get(name)(**ROWS[name].options)
    values = np.asarray(explain.make(method, clf, objective=made)(variables, KEY, IMAGES, rows))
    scale = np.abs(maps(name)).max()
    np.testing.assert_allclose(values[1:], maps(name)[1:], atol=1e-4 * scale)
    change = np.abs(values[0] - maps(name)[0]).max()
    assert (change > 0.01 * scale) == ROWS[name].reads_class


def test_the_memory_does_not_grow_with_the_passes():
    clf, variables = toy()
    needed = []
    for nodes in (8, 64):
        explanation = explain.make(explain.get("ig")(nodes=nodes), clf, slots=4)
        rows = Rows(per_image_keys(KEY, B), jnp.asarray(IMAGES), jnp.asarray(FIRST))
        needed.append(devices.memory_needed(explanation.program.lower(variables, rows)))
    assert needed[1] < 1.02 * needed[0]


# --------------------------------------------------------------------------------- targets


def test_a_target_is_a_class_a_group_or_a_difference():
    table = labels.from_names(["Bengal", "pug", "Siamese"], groups={"any cat": (0, 2)})
    values = targets.weights(table, ["pug", "any cat", "pug vs any cat"])
    np.testing.assert_allclose(values, [[0, 1, 0], [0.5, 0, 0.5], [-0.5, 1, -0.5]])


def test_the_predicted_class_is_the_default_target():
    logits = np.array([[0, 3, 1], [2, 1, 0]], np.float32)
    np.testing.assert_array_equal(targets.predicted(logits), [[0, 1, 0], [1, 0, 0]])


# -------------------------------------------------------------------------------- bad input


def call(method: explain.Method, images: Any = IMAGES, weights: Any = FIRST, **options: Any) -> Any:
    clf, variables = toy()
    clf = options.pop("clf", clf)
    variables = options.pop("variables", variables)
    return explain.make(method, clf, **options)(variables, KEY, images, weights)


def broken_variables() -> Any:
    _, variables = toy()
    head = {**variables["params"]["head"], "kernel": np.full((8, K), np.nan, np.float32)}
    return {**variables, "params": {**variables["params"], "head": head}}


def headless() -> models.Classifier:
    clf, _ = toy()
    return clf.with_head(None, None)  # pyright: ignore[reportArgumentType]


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "method": (lambda: explain.get("grad_cam"), "unknown method 'grad_cam'; nearest: 'gradcam'"),
    "endpoint": (
        lambda: call(explain.get("gradcam")(endpoint="stage9")),
        "toy_vgg has no endpoint 'stage9'; nearest: 'stage",
    ),
    "endpoint without extent": (
        lambda: call(explain.get("gradcam")(), IMAGES[:, :8, :8]),
        r"endpoint 'stage3' has no spatial extent: got a map of 1 x 1.*earlier.*'stage2'",
    ),
    "target": (
        lambda: targets.weights(TABLE, ["class 7"]),
        "unknown toy class 'class 7'; nearest: 'class",
    ),
    "difference to itself": (
        lambda: targets.weights(TABLE, ["0 vs class 0"]),
        "compares a class with itself",
    ),
    "shape of the targets": (
        lambda: call(explain.get("gradient")(), weights=FIRST[:2]),
        r"`targets` has the wrong length: got 2 rows, expected one per image \(3\)",
    ),
    "classes of the targets": (
        lambda: call(explain.get("gradient")(), weights=np.ones((B, 7), np.float32)),
        r"`targets` must be f32\[3 3\]",
    ),
    "headless": (lambda: call(explain.get("ig")(), clf=headless()), "no classifier"),
    "one node": (lambda: explain.get("ig")(nodes=1), "`nodes` must be at least 2: got 1"),
    "baseline": (
        lambda: explain.get("ig")(baseline="black+grey"),
        "unknown baseline 'grey'; nearest: 'gray'",
    ),
    "no draw": (lambda: explain.get("vargrad")(draws=1), "`draws` must be at least 2: got 1"),
    "noise": (lambda: explain.get("smoothgrad")(noise=-1.0), r"`noise` must be in \(0, 1\]"),
    "lowpass": (
        lambda: explain.get("guided")(lowpass=-1.0),
        "`lowpass` must be at least 0 pixels: got -1.0",
    ),
    "patch": (
        lambda: call(explain.get("occlusion")(patch=32)),
        "`patch` is larger than the images: got 32, expected at most 16",
    ),
    "stride": (lambda: explain.get("occlusion")(patch=4, stride=5), "`stride` must be at most"),
    "grid": (
        lambda: call(explain.get("rise")(grid=17)),
        "`grid` is larger than the images: got 17, expected at most 16",
    ),
    "probability": (lambda: explain.get("rise")(probability=1.0), r"`probability` must be in"),
    "family": (
        lambda: call(explain.get("lrp_gamma")(), clf=toys.classifier("toy_resnet", K)[0]),
        "explains networks of the families VGG and SqueezeNet only: got toy_resnet; choose",
    ),
    "head of the family": (
        lambda: call(
            explain.get("lrp_gamma")(), clf=toy()[0].with_head(heads.Cosine(K), toy()[0].classes)
        ),
        "explains heads of dense layers: got a cosine head",
    ),
    "references": (
        lambda: call(
            explain.get("expected_gradients")(references=np.zeros((2, 8, 8, 3), np.float32))
        ),
        r"`references` must have the shape of the images: got \(8, 8, 3\)",
    ),
    "few coalitions": (
        lambda: explain.get("kernel_shap")(masks=97),
        "`masks` must be at least 98: got 97",
    ),
    "one cell": (lambda: explain.get("kernel_shap")(grid=1), "`grid` must be at least 2: got 1"),
    "superpixels": (
        lambda: explain.get("kernel_shap")(superpixels=3),
        "`superpixels` must be at least 4: got 3",
    ),
    "more superpixels than pixels": (
        lambda: call(explain.get("kernel_shap")(superpixels=289, masks=1000)),
        "`superpixels` is larger than the images: got 289, expected at most 256",
    ),
    "epsilon": (lambda: explain.get("lrp_epsilon")(epsilon=0.0), "`epsilon` must be above 0"),
    "gamma": (lambda: explain.get("lrp_gamma")(gamma=-1.0), "`gamma` must be at least 0"),
    "alpha": (lambda: explain.get("lrp_alpha_beta")(alpha=0.5), "`alpha` must be at least 1"),
    "objective": (
        lambda: targets.objective(*toy(), ["chanel:stage2:1"]),
        "unknown objective 'chanel' in 'chanel:stage2:1'; nearest: 'channel'",
    ),
    "photograph": (
        lambda: targets.objective(*toy(), ["similarity:features"]),
        "`target` compares with another image: got 'similarity:features', expected `photograph`",
    ),
    "classes and objectives": (
        lambda: targets.parse(*toy(), ["class 0", "channel:stage2:1"]),
        "`target` has classes and objectives: got 'class 0, channel:stage2:1', expected one of the",
    ),
    "photograph without an objective": (
        lambda: targets.parse(*toy(), ["class 0"], IMAGES[0]),
        "`photograph` is not read: got classes as `target`, expected an objective",
    ),
    "probability of an objective": (
        lambda: call(explain.get("rise")(), objective=objectives.layer),
        "reads the probability of a class: got another objective; choose another method",
    ),
    "objective before the endpoint": (
        lambda: call(
            explain.get("gradcam")(),
            weights=np.zeros(B, np.int32),
            objective=lambda index: objectives.channel("stage1", index),
        ),
        "endpoint 'stage3', after which the objective cannot be computed.*`endpoint` to an earlier",
    ),
    "slots": (lambda: call(explain.get("ig")(), slots=0), "`slots` must be at least 1: got 0"),
    "NaN in an image": (lambda: call(explain.get("ig")(), IMAGES * np.nan), "hold no NaN"),
    "NaN in the weights": (
        lambda: call(explain.get("gradient")(), variables=broken_variables()),
        "the map of image 0 is not finite; check the weights",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str):
    run, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        run()
    assert "\n" not in str(error.value)
