"""Metrics against brute force and figures worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.metrics import confusion, ece, most_confused, summarise, topk_correct, wilson

answers = st.integers(2, 5).flatmap(
    lambda k: st.tuples(
        st.just(k), st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=40)
    )
)


# -------------------------------------------------------------------------------------------------------------- wilson


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_where_the_score_test_turns(counts: tuple[int, int]) -> None:
    correct, n = counts
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    for bound in (low, high):  # Wilson's definition: (p - bound)^2 = z^2 bound (1 - bound) / n
        if 0 < bound < 1:
            wanted = 1.959964**2 * bound * (1 - bound) / n
            assert (correct / n - bound) ** 2 == pytest.approx(wanted, rel=1e-5, abs=1e-12)
    mirrored = wilson(n - correct, n)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]), abs=1e-12)


@pytest.mark.parametrize("n", [1, 10, 104, 656, 100_000])
def test_wilson_at_none_and_all(n: int) -> None:
    z2 = 1.959964**2
    assert wilson(0, n) == (0, pytest.approx(z2 / (n + z2)))
    assert wilson(n, n) == (pytest.approx(n / (n + z2)), 1)


def test_wilson_without_trials_and_with_another_z() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(7, 9, z=0.0) == pytest.approx((7 / 9, 7 / 9))
    assert all(isinstance(bound, float) for bound in wilson(3, 4))


@pytest.mark.parametrize(("correct", "n"), [(-1, 3), (4, 3), (1, 0)])
def test_wilson_refuses(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{correct} correct of {n}: wanted 0 <= correct <= n"):
        wilson(correct, n)


# --------------------------------------------------------------------------------------------------------------- top-k


def test_topk_counts_ties_against_the_label() -> None:
    scores = np.array([[3, 2, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], np.float32)
    labels = np.array([1, 0, 3])
    assert topk_correct(scores, labels, 1).tolist() == [False, False, False]
    assert topk_correct(scores, labels, 2).tolist() == [True, True, False]
    assert topk_correct(scores, labels, 3).tolist() == [True, True, False]
    assert topk_correct(scores, labels, 4).tolist() == [True, True, True]
    assert topk_correct(scores, labels, 9).tolist() == [True, True, True]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
def test_topk_is_membership_of_the_k_best(seed: int, classes: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.permuted(np.tile(np.arange(classes), (9, 1)), axis=1), rng.integers(0, classes, 9)
    best = np.argsort(-scores, axis=1)[:, :k]
    assert topk_correct(scores, labels, k).tolist() == [label in row for label, row in zip(labels, best, strict=True)]


def test_a_network_that_answers_nan_is_not_right() -> None:
    scores = np.full((2, 3), np.nan, np.float32)
    assert not topk_correct(scores, np.array([0, 2]), 1).any()
    one = np.array([[np.nan, 0.0, 1.0]], np.float32)
    assert not topk_correct(one, np.array([0]), 1).any()


# ----------------------------------------------------------------------------------------------------------- confusion


@given(answers)
def test_confusion_counts_every_answer_once(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    k, pairs = drawn
    labels, predicted = np.array(pairs).T
    matrix = confusion(labels, predicted, k)
    assert matrix.shape == (k, k)
    assert matrix.sum() == len(pairs)
    assert np.trace(matrix) == (labels == predicted).sum()
    np.testing.assert_array_equal(matrix.sum(axis=1), np.bincount(labels, minlength=k))
    np.testing.assert_array_equal(matrix.sum(axis=0), np.bincount(predicted, minlength=k))
    assert all(matrix[i, j] == pairs.count((i, j)) for i in range(k) for j in range(k))


def test_most_confused_lists_the_largest_cells_off_the_diagonal() -> None:
    matrix = np.array([[9, 3, 0], [5, 7, 0], [0, 1, 0]])
    rows = most_confused(matrix, ("ape", "bee", "cow"))
    assert rows == [
        {"true": "bee", "predicted": "ape", "count": 5, "of": 12},
        {"true": "ape", "predicted": "bee", "count": 3, "of": 12},
        {"true": "cow", "predicted": "bee", "count": 1, "of": 1},
    ]
    assert most_confused(matrix, ("ape", "bee", "cow"), n=1) == rows[:1]
    assert most_confused(np.diag([3, 4]), ("a", "b")) == []
    json.dumps(rows)


# ----------------------------------------------------------------------------------------------------------------- ece


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 4), st.sampled_from([1, 5, 15]))
def test_ece_by_brute_force(seed: int, n: int, k: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities, labels = rng.dirichlet(np.full(k, 0.5), n), rng.integers(0, k, n)
    wanted = 0.0
    for m in range(bins):
        inside = [i for i in range(n) if m / bins <= probabilities[i].max() < (m + 1) / bins]
        inside += [i for i in range(n) if m == bins - 1 and probabilities[i].max() == 1]
        if inside:
            accuracy = np.mean([probabilities[i].argmax() == labels[i] for i in inside])
            wanted += len(inside) / n * abs(accuracy - np.mean([probabilities[i].max() for i in inside]))
    assert ece(probabilities, labels, bins=bins) == pytest.approx(wanted, abs=1e-12)


def test_ece_by_hand() -> None:
    sure = np.tile([1.0, 0.0], (4, 1))
    assert ece(sure, np.zeros(4, int)) == 0.0
    assert ece(sure, np.ones(4, int)) == 1.0
    half = np.tile([0.75, 0.25], (4, 1))
    assert ece(half, np.array([0, 0, 0, 1])) == pytest.approx(0.0)  # three of four right at 75 %
    assert ece(half, np.array([0, 0, 1, 1])) == pytest.approx(0.25)
    mixed = np.array([[0.95, 0.05], [0.55, 0.45]])  # right, wrong: nothing cancels across bins
    assert ece(mixed, np.array([0, 1])) == pytest.approx((0.05 + 0.55) / 2)


# ----------------------------------------------------------------------------------------------------------- summarise


def test_summarise_by_hand() -> None:
    p = np.array([[0.7, 0.2, 0.06, 0.04], [0.6, 0.3, 0.06, 0.04], [0.1, 0.5, 0.3, 0.1], [0.4, 0.3, 0.2, 0.1]])
    labels = np.array([0, 1, 1, 3])
    found = summarise(np.log(p).astype(np.float32) + 5.0, labels)  # logits have no zero point
    assert found["n"] == 4
    assert found["top1"] == 0.5
    assert found["top1_ci95"] == pytest.approx(wilson(2, 4))
    assert found["top3"] == 0.75
    assert found["balanced"] == pytest.approx((1 + 0.5 + 0) / 3)  # class 2 is absent and does not count
    assert found["nll"] == pytest.approx(-np.log([0.7, 0.3, 0.5, 0.1]).mean(), rel=1e-6)
    assert found["ece"] == pytest.approx((abs(1 - 0.7) + abs(0 - 0.6) + abs(1 - 0.5) + abs(0 - 0.4)) / 4, rel=1e-5)
    json.dumps(found)


def test_summarise_large_logits_and_no_example() -> None:
    found = summarise(np.array([[1e30, -1e30], [500.0, -500.0]], np.float32), np.array([0, 1]))
    assert found["top1"] == 0.5
    assert found["nll"] == pytest.approx(500.0)
    assert found["ece"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no example"):
        summarise(np.zeros((0, 3), np.float32), np.zeros(0, int))
