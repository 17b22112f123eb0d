"""Few-shot classifiers equal their closed forms, and draws are nested and follow the contents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import toys
from tl.training import fewshot, probe

K, D = 3, 6
RNG = np.random.default_rng(0)
CENTERS = 2.0 + RNG.normal(size=(K, D))
ROTATION = np.linalg.qr(RNG.normal(size=(D, D)))[0]


def sample(per_class: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes, f32[n d] and i[n]."""
    labels = np.arange(per_class * K) % K
    noise = np.random.default_rng(seed).normal(size=(len(labels), D))
    return (CENTERS[labels] + 0.5 * noise).astype(np.float32), labels


QUERIES = sample(20, seed=1)[0].astype(np.float64)


# ---- references: written out, in the original coordinates ----


def nearest_mean(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    unit, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, QUERIES))
    means = np.stack([unit[labels == j].mean(axis=0) for j in range(K)])
    return -np.square(queries[:, None] - means[None]).sum(axis=2)


def lsr(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The eigendecomposition of big_vision's evaluator, for both shapes of the equations."""
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
    place = lambda rows: np.column_stack([(rows - mean) / std, np.full(len(rows), 100.0)])
    z, y = place(x), 2.0 * np.eye(K)[labels] - 1.0
    values, vectors = np.linalg.eigh(z @ z.T)
    weights = z.T @ vectors @ np.diag(1 / (values + 1024.0)) @ vectors.T @ y
    return place(QUERIES) @ weights


def cosine(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Plain gradient descent on the directions, in all coordinates."""
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
    z, w = unit(x), np.stack([unit(x)[labels == j].mean(axis=0) for j in range(K)])
    for _ in range(6000):
        directions = unit(w)
        logits = fewshot.COSINE_SCALE * z @ directions.T
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        slope = fewshot.COSINE_SCALE * (p - np.eye(K)[labels]).T @ z / len(z)
        slope -= (slope * directions).sum(axis=1, keepdims=True) * directions
        w = directions - 0.5 * slope
    return fewshot.COSINE_SCALE * unit(QUERIES) @ unit(w).T


def of_probe(method: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def scores(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        single = np.bincount(labels).min() == 1
        strengths = (fewshot.SINGLE[method],) if single else probe.STRENGTHS
        features, folds = x.astype(np.float32), max(2, min(5, np.bincount(labels).min()))
        options = {"strengths": strengths, "fold_count": folds, "prior": probe.PRIOR}
        fitted = probe.fit(features, labels, K, method=method, **options)
        # The scores of a ridge are divided by a temperature, which needs held-out examples.
        scale = 1.0
        if single and method == "ridge":
            with_bias = np.column_stack([features, np.ones(len(features))]).astype(np.float64)
            raw = with_bias @ np.vstack([fitted.params["kernel"], fitted.params["bias"]])
            scale = raw.sum() / len(features)  # targets sum to 1
        return (QUERIES @ fitted.params["kernel"] + fitted.params["bias"]) / scale

    return scores


ANY_SCALE = lambda x: 7.0 * x
TURNED = lambda x: x @ ROTATION
MOVED = lambda x: x - np.arange(D)
SHIFTED = lambda x: np.arange(1, D + 1) * x - 5.0
# Method -> its reference, its tolerance, and maps of the features that do not change its scores.
CASES = {
    "probe": (of_probe("logistic"), 1e-6, (ANY_SCALE, MOVED)),
    "ridge": (of_probe("ridge"), 1e-6, (ANY_SCALE, MOVED)),
    "nearest_mean": (nearest_mean, 1e-12, (ANY_SCALE, TURNED)),
    "cosine": (cosine, 5e-2, (ANY_SCALE, TURNED)),
    "lsr": (lsr, 1e-9, (SHIFTED,)),
}


def test_each_method_has_a_case_or_needs_images():
    assert set(CASES) == {name for name, row in fewshot.METHODS.items() if row.fit}
    assert all(bool(row.fit) != bool(row.fit_images) for row in fewshot.METHODS.values())


@pytest.mark.parametrize("per_class", [1, 2, 12])
@pytest.mark.parametrize("method", CASES)
def test_scores_are_those_of_the_written_out_method(method: str, per_class: int):
    reference, tolerance, _ = CASES[method]
    x, labels = sample(per_class)
    scores = fewshot.fit(method, x, labels, K)(QUERIES)
    expected = reference(x.astype(np.float64), labels)
    assert scores.shape == (len(QUERIES), K)
    if method in ("cosine", "nearest_mean"):  # a term that all classes share
        scores, expected = (s - s.mean(axis=1, keepdims=True) for s in (scores, expected))
    np.testing.assert_allclose(scores, expected, atol=tolerance)


@pytest.mark.parametrize("method", CASES)
def test_scores_depend_on_no_order_of_classes_and_on_no_units(method: str):
    x, labels = sample(4)
    expected = fewshot.fit(method, x, labels, K)(QUERIES)
    largest = np.abs(expected - expected.mean(axis=1, keepdims=True)).max()
    renamed = np.array([2, 0, 1])
    again = fewshot.fit(method, x, renamed[labels], K)(QUERIES)[:, renamed]
    # Another order of the classes changes the folds, and by them the strength.
    assert (again.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.95
    if method not in ("probe", "ridge"):
        np.testing.assert_allclose(again, expected, atol=1e-3 * largest)
    for change in CASES[method][2]:
        scores = fewshot.fit(method, change(x.astype(np.float64)), labels, K)(change(QUERIES))
        np.testing.assert_allclose(scores, expected, atol=5e-3 * largest)


@pytest.mark.parametrize("method", CASES)
def test_classes_far_apart_are_told_apart_from_one_image_each(method: str):
    x, labels = 10.0 * np.eye(K, D, dtype=np.float32), np.arange(K)
    assert (fewshot.fit(method, x, labels, K)(x).argmax(axis=1) == labels).all()


@pytest.mark.parametrize("method", ["probe", "ridge"])
def test_a_probe_of_few_images_is_as_good_as_the_nearest_mean(method: str):
    """Most features have little variance and no information, as after pooling of ReLU outputs."""
    rng = np.random.default_rng(0)
    centers = np.concatenate([rng.normal(size=(2, 8)), np.zeros((2, 392))], axis=1)
    spread = np.concatenate([np.ones(8), np.full(392, 0.1)])

    def draw(per_class: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat([0, 1], per_class)
        noise = rng.normal(size=(len(labels), 400)) * spread
        return (3.0 + 2.0 * centers[labels] + noise).astype(np.float32), labels

    queries, answers = draw(200)
    for per_class in (1, 2, 5):
        draws = [draw(per_class) for _ in range(10)]
        accuracy = lambda name, draws=draws: np.mean(
            [fewshot.fit(name, *one, 2)(queries).argmax(axis=1) == answers for one in draws]
        )
        assert accuracy(method) > accuracy("nearest_mean") - 0.02


def test_few_images_fine_tune_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    changes = {"epochs": 1, "batch_size": 4, "workers": 0, "augment": "none"}
    monkeypatch.setattr(fewshot, "LP_FT", dataclasses.replace(fewshot.LP_FT, **changes))
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    spec = toys.color_folder(tmp_path / "data", 2, side=16)
    clf, variables = toys.classifier("toy_vgg", 5, size=16)
    scores = fewshot.METHODS["lp_ft"].fit_images(clf, variables, spec, 0)(spec)
    assert scores.shape == (4, 2)
    assert scores.argmax(axis=1).tolist() == [example.label for example in spec.examples]


@pytest.mark.parametrize(
    ("method", "labels", "message"),
    [
        ("prob", [0, 1, 2], "unknown `method`: got 'prob'; nearest: 'probe'"),
        ("lp_ft", [0, 1, 2], "'lp_ft' needs images, expected one of probe"),
        ("ridge", [0, 0, 1], r"needs an example: got \[2, 1, 0\] examples of 3 classes"),
        ("ridge", [0, 1, 3], "needs an example"),
    ],
)
def test_wrong_input_is_one_sentence(method: str, labels: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        fewshot.fit(method, np.zeros((3, D)), np.array(labels), K)


# ---- draws ----


def test_draws_depend_on_contents_and_seed_alone():
    hashes = [f"{i:02}" for i in range(12)]
    groups = [*hashes[:10], hashes[0], hashes[1]]  # the last two are copies
    labels = np.array([0] * 6 + [1] * 4 + [0, 0])
    named = lambda order, names: [[names[i] for i in rows] for rows in order]
    drawn = named(fewshot.draw_order(groups, hashes, labels, 2, seed=3), hashes)
    assert sorted(drawn[0]) == hashes[:6] and sorted(drawn[1]) == hashes[6:10]
    order = np.random.default_rng(0).permutation(12)
    shuffled = [[values[i] for i in order] for values in (groups, hashes)]
    assert named(fewshot.draw_order(*shuffled, labels[order], 2, seed=3), shuffled[1]) == drawn
    keep = [i for i in range(12) if i not in (2, 7)]  # other images do not matter
    fewer = [[values[i] for i in keep] for values in (groups, hashes)]
    assert named(fewshot.draw_order(*fewer, labels[keep], 2, seed=3), fewer[1]) == [
        [name for name in rows if name not in ("02", "07")] for rows in drawn
    ]
    firsts = {fewshot.draw_order(groups, hashes, labels, 2, seed)[0][0] for seed in range(50)}
    assert len(firsts) == 6
