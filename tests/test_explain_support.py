"""Training images that support a prediction: the closed form against retraining."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import toys

from tl import data, inference, pages, reporting
from tl.explain import support

N, M, D, K = 30, 4, 12, 3
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(N, D)).astype(np.float32) * np.arange(1, D + 1, dtype=np.float32)
LABELS = RNG.integers(0, K, N)
QUERIES = RNG.normal(size=(M, D)).astype(np.float32) * 3
WEIGHTS = np.eye(K)[[0, 1, 2, 0]]
STRENGTH = 0.1


def least_squares(keep: np.ndarray) -> np.ndarray:
    """Scores f64[m k] of a ridge fit in the original coordinates, by lstsq of stacked equations."""
    wide = FEATURES.astype(np.float64)
    standard = lambda x: (x - wide.mean(0)) / wide.std(0)
    x = np.column_stack([standard(wide)[keep], np.ones(keep.sum())])
    penalty = np.eye(D + 1)[:-1] / np.sqrt(STRENGTH)
    rows, targets = np.vstack([x, penalty]), np.vstack([np.eye(K)[LABELS[keep]], np.zeros((D, K))])
    params = np.linalg.lstsq(rows, targets, rcond=None)[0]
    return np.column_stack([standard(QUERIES), np.ones(M)]) @ params


def test_the_influence_of_an_example_is_the_change_of_the_score_without_it():
    ridge = support.fit(FEATURES, LABELS, K, STRENGTH)
    moved = support.influence(ridge, QUERIES, WEIGHTS)
    everything = least_squares(np.ones(N, bool))
    np.testing.assert_allclose(ridge.place(QUERIES) @ ridge.params, everything, atol=1e-9)
    for i in range(N):
        without = least_squares(np.arange(N) != i)
        expected = ((everything - without) * WEIGHTS).sum(axis=1)
        np.testing.assert_allclose(moved[:, i], expected, atol=1e-9)
        again = support.retrained(ridge, QUERIES, WEIGHTS, i)
        np.testing.assert_allclose(again, (without * WEIGHTS).sum(axis=1), atol=1e-9)
    assert np.abs(moved).max() > 0.01


def test_cosine_similarity_is_one_of_a_multiple_and_zero_of_zeros():
    a = np.array([[3.0, 0.0], [0.0, 0.0]])
    expected = [[1.0, -1.0, 0.0], [0.0] * 3]
    np.testing.assert_allclose(
        support.cosine(a, np.array([[0.5, 0], [-2, 0], [0, 1]])), expected, atol=1e-12
    )


@pytest.fixture(scope="module")
def supported(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("support")
    spec = toys.color_folder(folder / "data", 8, side=16)
    clf, variables = toys.classifier("toy_vgg", 2, size=16)
    query = spec.examples[0].path
    run = reporting.start("support", str(folder / "run"), {})
    images = inference.read_images(clf, str(query))
    result = support.support(run, clf, variables, images, spec, top=3)
    return run, result, pages.finish(run, result), str(query)


def test_a_run_lists_support_and_agrees_with_retraining(supported):
    run, result, _, query = supported
    saved = json.loads((run.workdir / "result.json").read_text())
    (row,) = saved["images"]
    assert saved["left_out"]["largest_difference"] < 1e-8 and saved["left_out"]["checked"] > 0
    assert row["nearest"][0]["path"] == query  # the query is a training image
    assert row["nearest"][0]["value"] == pytest.approx(1)
    assert all(shown["value"] > 0 for shown in row["supporting"]) and row["supporting"]
    assert all(shown["value"] < 0 for shown in row["opposing"])
    assert row["supporting"][0]["value"] == max(s["value"] for s in row["supporting"])
    assert all((run.workdir / shown["image"]).is_file() for shown in row["nearest"])
    assert any("from retraining" in line for line in pages.support.lines(result))


def test_the_page_shows_the_query_and_the_training_images(supported):
    _, result, page, _ = supported
    html = Path(page).read_text()
    assert html.count("<img") >= 1 + len(result["images"][0]["nearest"])
    assert "They raise the score most" in html


def test_a_count_below_one_and_an_unknown_class_are_one_sentence(supported):
    clf, variables = toys.classifier("toy_vgg", 2, size=16)
    run, _, _, query = supported
    images = inference.read_images(clf, query)
    spec = data.get(f"folder:{Path(query).parent.parent}")
    with pytest.raises(ValueError, match="`top` must be at least 1: got 0"):
        support.support(run, clf, variables, images, spec, top=0)
    with pytest.raises(ValueError, match="class 'zebra'; nearest"):
        support.support(run, clf, variables, images, spec, target="zebra")
