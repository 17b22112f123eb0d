"""Planted wrong labels are found, and the confident joint is that of its definition."""

from __future__ import annotations

import numpy as np
import pytest

from tl.training import label_noise

K = 3


def planted(n: int, flips: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features f32[n d] of separable classes, labels of which some are wrong, and these."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % K
    centers = 4.0 * np.eye(K, 8)
    features = (centers[truth] + rng.normal(size=(n, 8))).astype(np.float32)
    wrong = np.sort(rng.choice(n, flips, replace=False))
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + rng.integers(1, K, flips)) % K
    return features, labels, wrong


def estimate(features: np.ndarray, labels: np.ndarray) -> label_noise.LabelNoise:
    probabilities = label_noise.held_out_probabilities(features, labels, K)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-9)
    return label_noise.confident_joint(probabilities, labels)


@pytest.mark.parametrize("flips", [0, 15, 45])
def test_planted_flips_are_listed_first_and_their_share_is_estimated(flips: int):
    features, labels, wrong = planted(300, flips)
    noise = estimate(features, labels)
    assert abs(noise.share - flips / 300) < 0.03
    listed = noise.suspicious.tolist()
    found = set(listed) & set(wrong.tolist())
    assert len(found) >= 0.85 * flips and len(listed) - len(found) <= 0.1 * flips + 2
    suggested = dict(zip(listed, noise.classes.tolist(), strict=True))
    assert np.mean([suggested[i] == i % K for i in found] or [True]) > 0.9


def test_the_joint_is_that_of_its_definition():
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(K), 40)
    labels = np.concatenate([np.arange(K), rng.integers(0, K, 37)])
    thresholds = [np.mean([p[i, j] for i in range(40) if labels[i] == j]) for j in range(K)]
    counts = np.zeros((K, K))
    for i in range(40):
        confident = [j for j in range(K) if p[i, j] >= thresholds[j]]
        if confident:
            j = max(confident, key=lambda j: p[i, j])
            counts[labels[i], j] += 1
    joint = np.stack([counts[i] / counts[i].sum() * (labels == i).mean() for i in range(K)])
    noise = label_noise.confident_joint(p, labels)
    np.testing.assert_allclose(noise.joint, joint, atol=1e-12)
    assert noise.share == pytest.approx(joint.sum() - joint.trace())
    listed: dict[int, float] = {}
    for i, j in ((i, j) for i in range(K) for j in range(K) if i != j):
        margins = {x: p[x, j] - p[x, i] for x in range(40) if labels[x] == i}
        first = sorted(margins, key=lambda x: -margins[x])[: round(40 * joint[i, j])]
        for x in first:
            if p[x].argmax() != i:
                listed[x] = p[x].max() - p[x, i]
    assert noise.suspicious.tolist() == sorted(listed, key=lambda x: -listed[x])
    assert len(listed) > 3 and (noise.classes == p[noise.suspicious].argmax(axis=1)).all()


def test_equal_probabilities_contradict_no_label():
    noise = label_noise.confident_joint(np.full((6, 3), 1 / 3), np.array([0, 1, 2] * 2))
    assert noise.joint.sum() == pytest.approx(1.0)
    assert label_noise.confident_joint(np.eye(3), np.arange(3)).share == 0.0


def test_copies_stay_in_one_fold():
    """A wrong label whose image has a copy with the same label is still found."""
    features, labels, wrong = planted(120, 6)
    twice, groups = np.concatenate([np.arange(120), wrong]), np.concatenate([np.arange(120), wrong])
    apart, together = (
        label_noise.held_out_probabilities(features[twice], labels[twice], K, groups=g)
        for g in (None, groups)
    )
    of_label = lambda p: p[wrong, labels[wrong]].mean()
    assert of_label(together) < of_label(apart)
    np.testing.assert_allclose(together[wrong], together[120:], atol=1e-6)  # by the same fit
    assert np.abs(apart[wrong] - apart[120:]).max() > 0.01


def test_a_class_without_an_example_is_one_sentence():
    with pytest.raises(ValueError, match=r"each class needs an example: got \[2, 0\]"):
        label_noise.confident_joint(np.full((2, 2), 0.5), np.zeros(2, np.int64))
