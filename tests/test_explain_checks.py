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

from tl import data, explain, models, pages, paths, pixels
from tl.explain import checks, curves, imputation, sensitivity, statistics
from tl.explain.evidence import Evidence
from tl.types import Mode

SIDE, B, K = 8, 6, 3
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
    """A classifier: the upper left quarter raises the first class, the lower right the third."""
    n, half = SIDE * SIDE * 3, SIDE // 2
    clf = toys.of_module(Pixels(), n, SIDE, ("bright", "dark", "other"))
    kernel = np.zeros((SIDE, SIDE, 3, K), np.float32)
    kernel[:half, :half, :, 0] = kernel[half:, half:, :, 2] = 0.2
    head = {"kernel": kernel.reshape(n, K), "bias": np.array([0.0, 4.0, -4.0], np.float32)}
    scale = {"pixels": {"scale": np.ones((SIDE, SIDE, 1), np.float32)}}
    return clf, {"params": {"backbone": scale, "head": head}, "batch_stats": {}}


def gather(
    clf: models.Classifier,
    variables: Any,
    methods: dict[str, explain.Method],
    *,
    targets: np.ndarray = WEIGHTS,
) -> Evidence:
    """The maps of methods of all images, as the tests receive them."""
    explanations = {name: explain.make(method, clf, slots=8) for name, method in methods.items()}
    maps = {n: np.asarray(e(variables, KEY, IMAGES, targets)) for n, e in explanations.items()}
    subject = checks.Subject(clf, variables, KEY, IMAGES, targets)
    maps["random"] = np.zeros((B, SIDE, SIDE), np.float32)
    return Evidence(subject, explanations, maps, 4, 8, B, np.arange(B))


def of_maps(maps: Any) -> explain.Method:
    """A method of a function `(problem, rows) -> maps`."""
    return explain.Method(maps, signed=True)


# ----------------------------------------------------------------------------- statistics


def test_the_rank_correlation_is_that_of_scipy_with_ties():
    rng = np.random.default_rng(0)
    a, b = rng.integers(-3, 4, (2, 4, 5, 5)).astype(np.float32)
    expected = [
        scipy.stats.spearmanr(np.abs(x).ravel(), np.abs(y).ravel())[0]
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(statistics.spearman(a, b), np.array(expected), atol=1e-12)
    assert statistics.spearman(np.zeros_like(a), b).tolist() == [0.0] * 4


def test_correlations_of_methods_are_those_of_each_pair():
    maps = np.random.default_rng(0).normal(size=(3, B, SIDE, SIDE)).astype(np.float32)
    maps[2] += 2 * np.abs(maps[0])
    expected = [[statistics.spearman(a, b).mean() for a in maps] for b in maps]
    np.testing.assert_allclose(statistics.correlations(list(maps)), expected, atol=1e-12)
    zeros = [maps[0], np.zeros_like(maps[0])]
    np.testing.assert_allclose(statistics.correlations(zeros), [[1, 0], [0, 0]], atol=1e-12)


def test_sparseness_is_zero_of_a_uniform_map_and_largest_of_one_pixel():
    one = np.zeros((4, 4), np.float32)
    one[1, 2] = -3.0
    maps = np.stack([np.ones((4, 4), np.float32), one, 0 * one])
    np.testing.assert_allclose(statistics.gini(maps), [0.0, 15 / 16, 0.0], atol=1e-12)


def test_the_interval_of_a_mean_covers_it():
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    row = statistics.bootstrap(values)
    assert row["ci95"][0] < row["value"] < row["ci95"][1]
    error = 1.96 * values.std() / 20
    np.testing.assert_allclose(np.diff(row["ci95"]), 2 * error, rtol=0.2)


def test_one_image_has_no_interval_and_decides_nothing():
    assert statistics.bootstrap(np.array([0.25])) == {"value": 0.25, "ci95": None}
    values = {"ig": np.array([0.25]), "edges": np.array([0.5])}
    row = statistics.against_controls(values, "ig", ("edges",), sign=-1)
    assert row == {"value": 0.25, "ci95": None, "per_image": [0.25], "passed": None}
    assert pages.explain._interval("deletion", row) == "0.250"


def test_ranks_fall_with_the_map_and_ties_are_in_random_order():
    ranks = statistics.ranks(np.array([[[0.0, 3.0], [-1.0, 0.0]]], np.float32), seed=0)
    assert ranks[0, 0, 1] == 0 and ranks[0, 1, 0] == 3
    zeros = np.zeros((2, 8, 8), np.float32)
    first, second = statistics.ranks(zeros, seed=0)
    assert sorted(first.ravel().tolist()) == list(range(64)) and (first != second).any()


# ------------------------------------------------------------------------- randomization


@pytest.mark.parametrize("name", ["toy_vgg", pytest.param("toy_mobilenet", marks=pytest.mark.full)])
def test_a_cascade_randomizes_from_the_head_to_the_first_stage(name: str):
    clf, variables = toys.classifier(name, K, size=SIDE)
    before = paths.flatten(variables["params"])
    changed, after = [], {}
    for stage, new in sensitivity.cascade(clf, variables, jax.random.key(1)):
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


def test_a_gradient_changes_with_the_weights_of_a_network():
    clf, variables = toys.classifier("toy_vgg", K, size=SIDE)
    zero = of_maps(lambda problem, rows: 0.0 * rows.images01[..., 0])
    evidence = gather(clf, variables, {"gradient": explain.get("gradient")(), "zero": zero})
    row = sensitivity.randomization(evidence, "gradient")
    assert list(row["stages"]) == ["head", "stage3", "stage2", "stage1"]
    assert row["value"] == row["stages"]["stage1"] < 0.5 and row["passed"]
    assert all(row["stages"].values())  # 0 is the value of a constant map
    row = sensitivity.randomization(evidence, "zero")
    assert row["value"] == 0.0 and row["passed"] is None


def test_an_average_over_noise_shows_what_the_noise_of_a_map_hides(
    monkeypatch: pytest.MonkeyPatch,
):
    """A pattern without a network, behind noise that changes with any change of the score."""
    pattern = jnp.linspace(2.0, 4.0, SIDE * SIDE).reshape(1, SIDE, SIDE)

    def maps(problem: Any, rows: Any) -> jax.Array:
        score = problem.score(rows.images01, rows.targets)[:, None, None]
        return pattern + 1.5 * jnp.sin(1e3 * (score + rows.images01[..., 0]))

    evidence = gather(*planted(), {"noisy": of_maps(maps)})
    plain = sensitivity.randomization(evidence, "noisy")
    smooth = sensitivity.smooth_randomization(evidence, "noisy")
    assert smooth is not None and list(smooth["stages"]) == list(plain["stages"])
    assert plain["passed"] and smooth["value"] > 0.5 and not smooth["passed"]
    monkeypatch.setattr(sensitivity, "NOISE", 0.0)
    without = sensitivity.smooth_randomization(evidence, "noisy")
    assert without is not None
    np.testing.assert_allclose(
        list(without["stages"].values()), list(plain["stages"].values()), atol=1e-6
    )


def test_methods_with_many_passes_are_compared_with_one_network_only():
    many = of_maps(lambda problem, rows: rows.images01[..., 0])._replace(passes=50)
    more = many._replace(passes=sensitivity.MANY_PASSES + 1)
    evidence = gather(*planted(), {"many": many, "more": more})
    assert len(sensitivity.randomization(evidence, "many")["stages"]) == 2
    smooth = sensitivity.smooth_randomization(evidence, "many")
    assert smooth is not None and list(smooth["stages"]) == ["pixels"]
    assert list(sensitivity.randomization(evidence, "more")["stages"]) == ["pixels"]
    assert sensitivity.smooth_randomization(evidence, "more") is None


def test_permuted_targets_are_a_head_with_permuted_columns():
    clf, variables = toys.classifier("toy_vgg", 4, size=SIDE)
    targets = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]
    evidence = gather(clf, variables, {"g": explain.get("gradient")()}, targets=targets)
    columns = sensitivity.derangement(np.random.default_rng(0), 4)
    assert sorted(columns) == list(range(4)) and (columns != np.arange(4)).all()
    permuted = evidence.again("g", targets=jnp.asarray(targets[:, columns]))
    inverse = np.argsort(columns)
    head = jax.tree.map(lambda leaf: leaf[..., inverse], variables["params"]["head"])
    params = {**variables["params"], "head": head}
    expected = evidence.again("g", {**variables, "params": params})
    np.testing.assert_allclose(permuted, expected, atol=1e-6 * np.abs(expected).max())
    assert np.abs(permuted - evidence.maps["g"]).max() > 0.01 * np.abs(expected).max()


def test_guided_backpropagation_fails_although_it_depends_on_the_weights():
    """The second control of Adebayo et al. passes one test of random weights here, not all."""
    clf, variables = toys.classifier("toy_vgg", K, size=SIDE)
    methods = {name: explain.get(name)() for name in ("guided", "gradient")}
    evidence = gather(clf, variables, methods)
    rows = {name: sensitivity.random_labels(evidence, name) for name in methods}
    assert rows["guided"] is not None and rows["gradient"] is not None
    assert not rows["guided"]["passed"] and rows["gradient"]["passed"]


@pytest.mark.full
def test_guided_backpropagation_shows_photographs_the_same_map_for_every_class():
    with toys.package_or_skip():
        clf, variables = models.load("efficientnet_lite0", weights="package")
        files = [photograph.path for photograph in data.photographs()[:4]]
    images01 = pixels.to_images01(np.stack([clf.prepare(data.decode(file)) for file in files]))
    logits = jax.jit(clf.logits)(variables, jnp.asarray(images01))
    subject = checks.Subject(clf, variables, KEY, images01, explain.targets.predicted(logits))
    values = {}
    for name in ("guided", "gradient"):
        run = explain.make(explain.get(name)(), clf, slots=4)
        maps = {name: np.asarray(run(variables, KEY, images01, subject.targets))}
        evidence = Evidence(subject, {name: run}, maps, 4, 4, 4, np.arange(4))
        row = sensitivity.random_labels(evidence, name)
        assert row is not None
        values[name] = row["value"]
    assert values["guided"] > 0.9 > 0.7 > values["gradient"]


def test_permuted_labels_need_three_classes():
    two = toys.classifier("toy_vgg", 2, size=SIDE)
    targets = np.eye(2, dtype=np.float32)[[0] * B]
    evidence = gather(*two, {"edges": explain.get("edges")()}, targets=targets)
    assert sensitivity.random_labels(evidence, "edges") is None


# --------------------------------------------------------------------- same network, same map


def test_the_map_of_a_constant_image_depends_on_the_position_as_by_hand():
    """A quarter of the map is 3, the rest is the mean color of the image."""

    def maps(problem: Any, rows: Any) -> jax.Array:
        n = SIDE // 2
        return jnp.mean(rows.images01, axis=-1).at[:, :n, :n].set(3.0)

    methods = {"quarter": of_maps(maps), "edges": explain.get("edges")()}
    evidence = gather(*planted(), methods)
    mean = IMAGES.mean(axis=(1, 2, 3))
    expected = np.sqrt(3 / 16) * (3 - mean) / np.sqrt(9 / 4 + 3 / 4 * mean**2)
    value = sensitivity.constant_image(evidence, "quarter")["value"]
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-5)
    assert sensitivity.constant_image(evidence, "edges")["value"] == 0.0


def test_an_input_shift_changes_a_product_with_the_pixels_as_by_hand():
    """The map of the first class is 0.2 times the sum of the colors, in a quarter."""
    evidence = gather(*planted(), {"product": explain.get("gradient_x_input")()})
    row = sensitivity.input_shift(evidence, "product")
    sums = IMAGES[:, : SIDE // 2, : SIDE // 2].sum(axis=-1).max(axis=(1, 2))
    np.testing.assert_allclose(row["value"], np.mean(3 * 0.5 / sums), rtol=1e-4)
    assert not row["passed"]


def test_an_input_shift_changes_maps_with_a_fixed_baseline_only():
    clf, variables = toys.classifier("toy_vgg", K, size=SIDE)
    methods = {
        "gradient": explain.get("gradient")(),
        "blurred": explain.get("ig")(nodes=4, baseline="blurred"),
        "black": explain.get("ig")(nodes=4, baseline="black"),
    }
    evidence = gather(clf, variables, methods)
    rows = {name: sensitivity.input_shift(evidence, name) for name in methods}
    assert [rows[name]["passed"] for name in methods] == [True, True, False]
    assert rows["gradient"]["value"] < 1e-4 and rows["black"]["value"] > 0.1


def test_seeds_change_random_methods_only():
    methods = {
        "edges": explain.get("edges")(),
        "noisy": of_maps(lambda problem, rows: jax.vmap(_normal)(rows.keys)),
    }
    evidence = gather(*planted(), methods)
    assert sensitivity.seeds(evidence, "edges")["value"] == 1.0
    assert abs(sensitivity.seeds(evidence, "noisy")["value"]) < 0.2


def _normal(key: jax.Array) -> jax.Array:
    return jax.random.normal(key, (SIDE * SIDE,)).reshape(SIDE, SIDE)


# ------------------------------------------------------------------- insertion and deletion


def test_a_curve_replaces_pixels_in_the_order_of_their_ranks():
    clf, variables = planted()
    maps = np.random.default_rng(1).normal(size=(B, SIDE, SIDE)).astype(np.float32)
    ranks = statistics.ranks(maps, seed=0)
    end = np.full_like(IMAGES, 0.5)
    run = curves.make_curves(clf, steps=4, slots=3)
    values = run(variables, curves.CurveRows(IMAGES, end, ranks, WEIGHTS))
    for step in range(5):
        images = np.where((ranks < SIDE * SIDE * step // 4)[..., None], end, IMAGES)
        p = jax.nn.softmax(clf.logits(variables, jnp.asarray(images)))[:, 0]
        np.testing.assert_allclose(values[:, step], p, atol=1e-6)


# ------------------------------------------------------------------------------------ ROAD


def impute_densely(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """The linear system of Rong et al., one equation per removed pixel, solved directly."""
    h, w = removed.shape
    places = [(int(i), int(j)) for i, j in np.argwhere(removed)]
    matrix, right = np.zeros((len(places),) * 2), np.zeros((len(places), image.shape[-1]))
    for row, (i, j) in enumerate(places):
        for di, dj in np.ndindex(3, 3):
            other = (i + di - 1, j + dj - 1)
            if other == (i, j) or not (0 <= other[0] < h and 0 <= other[1] < w):
                continue
            weight = 1 / 6 if other[0] == i or other[1] == j else 1 / 12
            matrix[row, row] += weight
            if removed[other]:
                matrix[row, places.index(other)] -= weight
            else:
                right[row] += weight * image[other]
    out = image.astype(np.float64)
    out[removed] = np.linalg.solve(matrix, right)
    return out


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_imputed_pixels_solve_the_linear_system(share: float):
    rng = np.random.default_rng(0)
    image = rng.random((9, 7, 3)).astype(np.float32)
    removed = rng.random((9, 7)) < share
    removed[4:, :3] = True  # a hole at a corner
    removed[0, 0] = False
    filled = jax.jit(imputation.impute)(image, removed)
    np.testing.assert_allclose(filled, impute_densely(image, removed), atol=1e-3)
    np.testing.assert_array_equal(np.asarray(filled)[~removed], image[~removed])


def test_only_the_highest_pixels_are_imputed_with_noise():
    order = statistics.ranks(np.random.default_rng(1).normal(size=(1, SIDE, SIDE)))
    keys = jax.random.split(KEY, 1)
    row = curves.RemovedRows(keys, jnp.asarray(IMAGES[:1]), jnp.asarray(order), WEIGHTS[:1])
    index = jnp.arange(len(curves.SHARES), dtype=jnp.int32)
    versions = np.asarray(jax.jit(curves.removed_versions)(row, index))
    for share, version in zip(curves.SHARES, versions, strict=True):
        removed = order[0] < int(share * SIDE**2)
        np.testing.assert_array_equal(version[~removed], IMAGES[0][~removed])
        noise = version[removed] - impute_densely(IMAGES[0], removed)[removed]
        assert 0.3 < noise.std() / imputation.NOISE < 2 and np.abs(noise).max() < 0.05


# ----------------------------------------------------------------------------- mu-fidelity


def test_mu_fidelity_is_the_correlation_of_sums_and_drops_by_hand():
    clf, variables = planted()
    noise = of_maps(lambda problem, rows: jax.vmap(_normal)(rows.keys))
    gray = explain.get("ig")(nodes=2, baseline="gray")
    evidence = gather(clf, variables, {"noise": noise, "ig": gray, "edges": noise})
    hidden, _ = evidence.shared(curves._hidden)
    assert hidden.shape == (B, curves.SUBSETS, SIDE, SIDE)  # one pixel per cell
    assert (hidden.sum(axis=(2, 3)) == round(0.2 * SIDE**2)).all()
    expected = []
    for image, sets, values in zip(IMAGES, hidden, evidence.maps["noise"], strict=True):
        behind = np.where(sets[..., None], np.float32(0.5), image)
        logits = np.asarray(clf.logits(variables, jnp.asarray(np.stack([image, *behind]))))[:, 0]
        sums = [values[cells].sum() for cells in sets]
        expected.append(scipy.stats.spearmanr(sums, logits[0] - logits[1:])[0])
    row = curves.mu_fidelity(evidence, "noise")
    np.testing.assert_allclose(row["value"], np.mean(expected), atol=1e-3)
    assert abs(row["value"]) < 0.3 and not row["passed"]
    exact = curves.mu_fidelity(evidence, "ig")  # the network is linear
    assert exact["value"] > 0.999 and exact["passed"]


def test_the_sums_of_cells_add_up():
    maps = np.random.default_rng(0).normal(size=(2, 10, 7)).astype(np.float32)
    sums = curves.cell_sums(maps, 3)
    down, across = [0, 4, 7, 10], [0, 3, 5, 7]
    for i in range(3):
        for j in range(3):
            part = maps[:, down[i] : down[i + 1], across[j] : across[j + 1]]
            np.testing.assert_allclose(sums[:, i, j], part.sum(axis=(1, 2)), atol=1e-5)


# ------------------------------------------------------------------------ the table of tests


def _contributions(problem: Any, rows: Any) -> jax.Array:
    """What each pixel adds to the score of a linear network, compared with the darkest pixel."""
    slope = jax.grad(lambda x: jnp.sum(problem.score(x, rows.targets)))(rows.images01)
    above = rows.images01 - jnp.min(rows.images01, axis=(1, 2, 3), keepdims=True)
    return jnp.sum(slope * above, axis=-1)


@functools.cache
def evaluated() -> dict[str, dict[str, Any]]:
    clf, variables = planted()
    methods = {
        "occlusion": explain.get("occlusion")(patch=1),
        "ig": explain.get("ig")(nodes=2, baseline="gray"),
        "contributions": of_maps(_contributions),
        "edges": explain.get("edges")(),
    }
    explanations = {name: explain.make(method, clf, slots=8) for name, method in methods.items()}
    # The quarter is brighter than the rest, and all is brighter than gray.
    images = 0.55 + 0.35 * IMAGES
    images[:, : SIDE // 2, : SIDE // 2] += 0.1
    maps = {n: np.asarray(e(variables, KEY, images, WEIGHTS)) for n, e in explanations.items()}
    subject = checks.Subject(clf, variables, KEY, images, WEIGHTS)
    return checks.evaluate(subject, explanations, maps, steps=8, slots=8)


def test_every_method_and_both_controls_have_a_row_for_every_check_that_applies():
    rows = evaluated()
    assert list(rows) == ["occlusion", "ig", "contributions", "edges", "random"]
    every = set(checks.CHECKS) - {"fragility", "mosaic", "watermark"}  # in their own files
    assert set(rows["ig"]) == every
    assert set(rows["occlusion"]) == set(rows["edges"]) == every - {"completeness"}
    assert set(rows["random"]) == {
        key for key, check in checks.CHECKS.items() if not check.needs_map
    }
    assert all("value" in row for checks_of in rows.values() for row in checks_of.values())
    for key, check in checks.CHECKS.items():
        assert all(
            bool(check.limit) == ("passed" in row[key]) for row in rows.values() if key in row
        )


def test_maps_of_the_planted_quarter_pass_and_the_controls_fail():
    rows = evaluated()
    assert checks.failed(rows["contributions"]) == []
    for name in ("occlusion", "ig"):  # their baseline is gray whatever the encoding of the pixels
        assert rows[name]["deletion"]["passed"] and rows[name]["insertion"]["passed"]
        assert rows[name]["random_labels"]["passed"] and not rows[name]["input_shift"]["passed"]
    assert rows["ig"]["completeness"]["passed"] and rows["ig"]["completeness"]["value"] < 1e-4
    edges = rows["edges"]
    assert edges["randomization"]["stages"] == {"head": 1.0, "pixels": 1.0}
    assert edges["random_labels"]["value"] == edges["seeds"]["value"] == 1.0
    follows = ["randomization", "smooth_randomization", "random_labels"]
    pixels = ["deletion", "insertion", "road", "mu_fidelity"]
    assert checks.failed(edges) == [*follows, *pixels]
    assert checks.failed(rows["random"]) == pixels
    assert rows["random"]["mu_fidelity"]["value"] == 0.0
    others = rows["ig"]["agreement"]["with"]
    assert set(others) == {"occlusion", "contributions", "edges"} and others["occlusion"] > 0.999
    mean = (others["occlusion"] + others["contributions"]) / 2
    np.testing.assert_allclose(rows["ig"]["agreement"]["value"], mean)


def test_the_alignment_with_the_edges_is_a_rank_correlation_with_their_map():
    rows = evaluated()
    assert rows["edges"]["edge_alignment"]["value"] == pytest.approx(1.0)
    assert "edge_alignment" not in rows["random"]
    values = rows["ig"]["edge_alignment"]["per_image"]
    assert len(values) == B and np.mean(values) == rows["ig"]["edge_alignment"]["value"]
    assert np.mean(values) == pytest.approx(rows["ig"]["agreement"]["with"]["edges"])


def test_the_difference_of_two_networks_is_that_of_the_same_images():
    """The images differ more than the networks, so the interval needs the pairs."""
    spread = np.linspace(0.0, 1.0, 6)
    row = lambda values: {"value": 0.0, "per_image": list(values)}
    shared = {"seeds": {"value": 1.0}, "road": {"value": 1.0}}
    first = {"ig": {"insertion": row(spread), "sparseness": row(spread), **shared}, "rise": {}}
    second = {"ig": {"insertion": row(spread + 0.1), **shared}, "edges": {}}
    table = checks.differences(first, second)
    assert list(table) == ["ig"] and list(table["ig"]) == ["insertion"]
    assert table["ig"]["insertion"]["value"] == pytest.approx(0.1)
    np.testing.assert_allclose(table["ig"]["insertion"]["ci95"], 0.1)


def test_targets_of_one_image_count_as_one_image():
    clf, variables = planted()
    explanations = {"edges": explain.make(explain.get("edges")(), clf, slots=8)}
    maps = {"edges": np.asarray(explanations["edges"](variables, KEY, IMAGES, WEIGHTS))}
    subject = checks.Subject(clf, variables, KEY, IMAGES, WEIGHTS)
    groups = np.array([0, 0, 0, 1, 1, 1])
    rows = checks.evaluate(subject, explanations, maps, steps=4, slots=8, groups=groups)
    sparse = statistics.gini(maps["edges"]).reshape(2, 3).mean(1)
    np.testing.assert_allclose(rows["edges"]["sparseness"]["value"], sparse.mean())
    low, high = rows["edges"]["sparseness"]["ci95"]
    np.testing.assert_allclose([low, high], np.sort(sparse))  # of two images, not of six
