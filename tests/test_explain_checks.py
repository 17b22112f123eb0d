"""Tests of belief: their statistics against references, and controls that must fail."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import toys
from flax import linen as nn

from tl import explain, models, paths
from tl.explain import checks
from tl.types import Mode

SIDE, B, K = 8, 6, 2
KEY = jax.random.key(0)
IMAGES = np.stack([toys.smooth(SIDE, SIDE, seed=i) for i in range(B)]).astype(np.float32) / 255
WEIGHTS = np.eye(K, dtype=np.float32)[[0] * B]


class Pixels(nn.Module):
    """The pixels, scaled, as the last stage."""

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode, start: str = "") -> Any:
        random = lambda key: {"scale": jax.random.uniform(key, (SIDE, SIDE, 1))}
        x = x * self.param("pixels", random)["scale"][None]
        return x.reshape(len(x), -1), {"pixels": x}


@functools.cache
def planted() -> tuple[models.Classifier, Any]:
    """A classifier of the colors of the upper left quarter; all other pixels have no effect."""
    n = SIDE * SIDE * 3
    clf = toys.of_module(Pixels(), n, SIDE, ("bright", "dark"))
    kernel = np.zeros((SIDE, SIDE, 3, K), np.float32)
    kernel[: SIDE // 2, : SIDE // 2, :, 0] = 0.2
    head = {"kernel": kernel.reshape(n, K), "bias": np.array([0.0, 4.0], np.float32)}
    scale = {"pixels": {"scale": np.ones((SIDE, SIDE, 1), np.float32)}}
    return clf, {"params": {"backbone": scale, "head": head}, "batch_stats": {}}


# ----------------------------------------------------------------------------- statistics


def test_the_rank_correlation_is_that_of_scipy_with_ties():
    rng = np.random.default_rng(0)
    a, b = rng.integers(-3, 4, (2, 4, 5, 5)).astype(np.float32)
    expected = [
        scipy.stats.spearmanr(np.abs(x).ravel(), np.abs(y).ravel())[0]
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(checks.spearman(a, b), np.array(expected), atol=1e-12)
    assert checks.spearman(np.zeros_like(a), b).tolist() == [0.0] * 4


def test_sparseness_is_zero_of_a_uniform_map_and_largest_of_one_pixel():
    one = np.zeros((4, 4), np.float32)
    one[1, 2] = -3.0
    maps = np.stack([np.ones((4, 4), np.float32), one, 0 * one])
    np.testing.assert_allclose(checks.gini(maps), [0.0, 15 / 16, 0.0], atol=1e-12)


def test_the_interval_of_a_mean_covers_it():
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    row = checks.bootstrap(values)
    assert row["ci95"][0] < row["value"] < row["ci95"][1]
    error = 1.96 * values.std() / 20
    np.testing.assert_allclose(np.diff(row["ci95"]), 2 * error, rtol=0.2)


def test_ranks_fall_with_the_map_and_ties_are_in_random_order():
    ranks = checks.ranks(np.array([[[0.0, 3.0], [-1.0, 0.0]]], np.float32), seed=0)
    assert ranks[0, 0, 1] == 0 and ranks[0, 1, 0] == 3
    zeros = np.zeros((2, 8, 8), np.float32)
    first, second = checks.ranks(zeros, seed=0)
    assert sorted(first.ravel().tolist()) == list(range(64)) and (first != second).any()


# ------------------------------------------------------------------------- randomization


@pytest.mark.parametrize("name", ["toy_vgg", pytest.param("toy_mobilenet", marks=pytest.mark.full)])
def test_a_cascade_randomizes_from_the_head_to_the_first_stage(name: str):
    clf, variables = toys.classifier(name, K, size=SIDE)
    before = paths.flatten(variables["params"])
    changed, after = [], {}
    for stage, new in checks.cascade(clf, variables, jax.random.key(1)):
        after = paths.flatten(new["params"])
        different = {leaf for leaf in before if (np.asarray(before[leaf]) != after[leaf]).any()}
        changed.append((stage, different))
    assert [stage for stage, _ in changed] == ["head", *clf.spec.endpoints[::-1]]
    assert all(leaf.startswith("head/") for leaf in changed[0][1]) and changed[0][1]
    for (_, fewer), (stage, more) in zip(changed, changed[1:], strict=False):
        assert fewer < more
        assert all(leaf.startswith(f"backbone/{stage}/") for leaf in more - fewer)
    assert all(np.asarray(leaf).any() for name, leaf in after.items() if name.endswith("kernel"))
    kernels = {leaf for leaf in before if leaf.endswith("kernel")}
    assert kernels <= changed[-1][1]


# ------------------------------------------------------------------- insertion and deletion


def test_a_curve_replaces_pixels_in_the_order_of_their_ranks():
    clf, variables = planted()
    maps = np.random.default_rng(1).normal(size=(B, SIDE, SIDE)).astype(np.float32)
    ranks = checks.ranks(maps, seed=0)
    end = np.full_like(IMAGES, 0.5)
    curves = checks.make_curves(clf, steps=4, slots=3)
    values = curves(variables, checks.CurveRows(IMAGES, end, ranks, WEIGHTS))
    for step in range(5):
        images = np.where((ranks < SIDE * SIDE * step // 4)[..., None], end, IMAGES)
        p = jax.nn.softmax(clf.logits(variables, jnp.asarray(images)))[:, 0]
        np.testing.assert_allclose(values[:, step], p, atol=1e-6)


# ------------------------------------------------------------------------ the table of tests


@functools.cache
def evaluated() -> dict[str, dict[str, Any]]:
    clf, variables = planted()
    methods = {
        "occlusion": explain.get("occlusion")(patch=1),
        "ig": explain.get("ig")(nodes=2, baseline="gray"),
        "edges": explain.get("edges")(),
    }
    explanations = {name: explain.make(method, clf, slots=8) for name, method in methods.items()}
    # Bright images, so that hiding a pixel of the quarter behind gray lowers the score.
    images = 0.75 + 0.25 * IMAGES
    maps = {n: np.asarray(e(variables, KEY, images, WEIGHTS)) for n, e in explanations.items()}
    subject = checks.Subject(clf, variables, KEY, images, WEIGHTS)
    return checks.evaluate(subject, explanations, maps, steps=8, slots=8)


def test_every_method_and_both_controls_have_a_row_for_every_check_that_applies():
    rows = evaluated()
    assert list(rows) == ["occlusion", "ig", "edges", "random"]
    every = set(checks.CHECKS)
    assert set(rows["ig"]) == every
    assert set(rows["occlusion"]) == set(rows["edges"]) == every - {"completeness"}
    assert set(rows["random"]) == every - {"completeness", "randomization"}
    assert all("value" in row for checks_of in rows.values() for row in checks_of.values())


def test_maps_of_the_planted_quarter_pass_and_the_controls_fail():
    rows = evaluated()
    for name in ("occlusion", "ig"):
        assert rows[name]["deletion"]["passed"] and rows[name]["insertion"]["passed"]
    assert rows["ig"]["completeness"]["passed"] and rows["ig"]["completeness"]["value"] < 1e-4
    for name in ("edges", "random"):
        assert not (rows[name]["deletion"]["passed"] or rows[name]["insertion"]["passed"])
    assert rows["edges"]["randomization"]["value"] == 1.0
    assert not rows["edges"]["randomization"]["passed"]
    assert rows["edges"]["randomization"]["stages"] == {"head": 1.0, "pixels": 1.0}
    assert checks.failed(rows["edges"]) == ["randomization", "deletion", "insertion"]
    assert checks.failed(rows["ig"]) in ([], ["randomization"])


def test_targets_of_one_image_count_as_one_image():
    clf, variables = planted()
    explanations = {"edges": explain.make(explain.get("edges")(), clf, slots=8)}
    maps = {"edges": np.asarray(explanations["edges"](variables, KEY, IMAGES, WEIGHTS))}
    subject = checks.Subject(clf, variables, KEY, IMAGES, WEIGHTS)
    groups = np.array([0, 0, 0, 1, 1, 1])
    rows = checks.evaluate(subject, explanations, maps, steps=4, slots=8, groups=groups)
    sparse = checks.gini(maps["edges"]).reshape(2, 3).mean(1)
    np.testing.assert_allclose(rows["edges"]["sparseness"]["value"], sparse.mean())
    low, high = rows["edges"]["sparseness"]["ci95"]
    np.testing.assert_allclose([low, high], np.sort(sparse))  # of two images, not of six


def test_a_gradient_changes_with_the_weights_of_a_network():
    clf, variables = toys.classifier("toy_vgg", K, size=SIDE)
    saliency = explain.make(explain.get("gradient")(), clf, slots=8)
    subject = checks.Subject(clf, variables, KEY, IMAGES, WEIGHTS)
    maps = np.asarray(saliency(variables, KEY, IMAGES, WEIGHTS))
    networks = list(checks.cascade(clf, variables, jax.random.fold_in(KEY, 1)))
    row = checks.randomization(subject, saliency, maps, networks)
    assert list(row["stages"]) == ["head", "stage3", "stage2", "stage1"]
    assert row["value"] == row["stages"]["stage1"] < 0.5 and row["passed"]
    assert all(row["stages"].values())  # 0 is the value of a constant map
    zero = explain.get("gradient")()._replace(maps=lambda problem, rows: 0 * rows.images01[..., 0])
    row = checks.randomization(subject, explain.make(zero, clf, slots=8), maps, networks)
    assert row["value"] == 0.0 and row["passed"] is None
