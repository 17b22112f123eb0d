"""Metrics against brute force, definitions and values computed by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.metrics import (
    TEMPERATURES,
    cka,
    confusion,
    ece,
    log_softmax,
    mean_interval,
    most_confused,
    per_class,
    predicted_classes,
    reliability,
    softmax,
    spread,
    summarize,
    temperature,
    topk_correct,
    wilson,
)

predictions = st.integers(2, 5).flatmap(
    lambda k: st.tuples(
        st.just(k),
        st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=40),
    )
)


# ---- wilson ----


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_the_score_equation(counts: tuple[int, int]) -> None:
    correct, n = counts
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    for bound in (low, high):  # Wilson's definition: (p - bound)^2 = z^2 bound (1 - bound) / n
        if 0 < bound < 1:
            expected = 1.959964**2 * bound * (1 - bound) / n
            assert (correct / n - bound) ** 2 == pytest.approx(expected, rel=1e-5, abs=1e-12)
    mirrored = wilson(n - correct, n)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]), abs=1e-12)


@pytest.mark.parametrize("n", [1, 10, 104, 656, 100_000])
def test_wilson_of_0_and_of_all_correct_has_its_closed_form(n: int) -> None:
    z2 = 1.959964**2
    assert wilson(0, n) == (0, pytest.approx(z2 / (n + z2)))
    assert wilson(n, n) == (pytest.approx(n / (n + z2)), 1)


def test_wilson_accepts_0_trials_and_another_level() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(7, 9, z=0.0) == pytest.approx((7 / 9, 7 / 9))
    assert all(isinstance(bound, float) for bound in wilson(3, 4))


@pytest.mark.parametrize(("correct", "n"), [(-1, 3), (4, 3), (1, 0)])
def test_wilson_refuses_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"between 0 and n: got {correct} of {n}"):
        wilson(correct, n)


# ---- top-k ----


def test_topk_counts_ties_against_the_label() -> None:
    scores = np.array([[3, 2, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], np.float32)
    labels = np.array([1, 0, 3])
    assert topk_correct(scores, labels, 1).tolist() == [False, False, False]
    assert topk_correct(scores, labels, 2).tolist() == [True, True, False]
    assert topk_correct(scores, labels, 3).tolist() == [True, True, False]
    assert topk_correct(scores, labels, 4).tolist() == [True, True, True]
    assert topk_correct(scores, labels, 9).tolist() == [True, True, True]


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
def test_topk_is_membership_among_the_k_highest(seed: int, classes: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = (
        rng.permuted(np.tile(np.arange(classes), (9, 1)), axis=1),
        rng.integers(0, classes, 9),
    )
    best = np.argsort(-scores, axis=1)[:, :k]
    assert topk_correct(scores, labels, k).tolist() == [
        label in row for label, row in zip(labels, best, strict=True)
    ]


def test_nan_scores_are_never_correct() -> None:
    scores = np.full((2, 3), np.nan, np.float32)
    assert not topk_correct(scores, np.array([0, 2]), 1).any()
    one = np.array([[np.nan, 0.0, 1.0]], np.float32)
    assert not topk_correct(one, np.array([0]), 1).any()


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_every_figure_counts_a_tie_as_a_mistake(seed: int, k: int) -> None:
    """Few different values, so that most rows have a tie; some scores are NaN or infinite."""
    rng = np.random.default_rng(seed)
    values = np.array([0.0, 1.0, 2.0, -np.inf, np.nan], np.float32)
    logits = rng.choice(values, (40, k), p=[0.3, 0.3, 0.2, 0.1, 0.1])
    logits[0], labels = 0.0, rng.integers(0, k, 40)
    correct = topk_correct(logits, labels, 1)
    predicted = predicted_classes(logits, labels)
    np.testing.assert_array_equal(predicted == labels, correct)
    assert ((0 <= predicted) & (predicted < k)).all()
    others = np.where(np.isnan(logits), np.inf, logits)
    others[np.arange(40), labels] = -np.inf
    wrong = ~correct
    assert (others[wrong, predicted[wrong]] == others.max(axis=1)[wrong]).all()


def test_figures_of_tied_logits_agree() -> None:
    """A collapsed network, whose logits are equal, is not correct on the first class."""
    logits, labels = np.zeros((4, 4), np.float32), np.array([0, 0, 1, 2])
    logits[3, 2] = 1.0
    summary, rows = summarize(logits, labels), per_class(logits, labels, list("abcd"))
    assert summary["top1"] == 0.25 and summary["balanced"] == pytest.approx(1 / 3)
    assert [row["recall"] for row in rows] == [0.0, 0.0, 1.0, None]
    assert sum(row["called"] for row in rows) == 4
    bins = reliability(softmax(logits), labels)
    assert sum(row["accuracy"] * row["n"] for row in bins) == 1


# ---- confusion ----


@given(predictions)
def test_confusion_counts_every_prediction_once(drawn: tuple[int, list[tuple[int, int]]]) -> None:
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


# ---- ece ----


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(2, 4), st.sampled_from([1, 5, 15])
)
def test_ece_equals_brute_force(seed: int, n: int, k: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities, labels = rng.dirichlet(np.full(k, 0.5), n), rng.integers(0, k, n)
    expected = 0.0
    for m in range(bins):
        inside = [i for i in range(n) if m / bins <= probabilities[i].max() < (m + 1) / bins]
        inside += [i for i in range(n) if m == bins - 1 and probabilities[i].max() == 1]
        if inside:
            accuracy = np.mean([probabilities[i].argmax() == labels[i] for i in inside])
            confidence = np.mean([probabilities[i].max() for i in inside])
            expected += len(inside) / n * abs(accuracy - confidence)
    assert ece(probabilities, labels, bins=bins) == pytest.approx(expected, abs=1e-12)


def test_ece_equals_values_by_hand() -> None:
    certain = np.tile([1.0, 0.0], (4, 1))
    assert ece(certain, np.zeros(4, int)) == 0.0
    assert ece(certain, np.ones(4, int)) == 1.0
    half = np.tile([0.75, 0.25], (4, 1))
    assert ece(half, np.array([0, 0, 0, 1])) == pytest.approx(0.0)  # three of four correct at 75 %
    assert ece(half, np.array([0, 0, 1, 1])) == pytest.approx(0.25)
    mixed = np.array([[0.95, 0.05], [0.55, 0.45]])  # correct, wrong: nothing cancels across bins
    assert ece(mixed, np.array([0, 1])) == pytest.approx((0.05 + 0.55) / 2)


def test_reliability_equals_values_by_hand() -> None:
    p = np.array([[0.95, 0.05], [0.91, 0.09], [0.45, 0.55], [1.0, 0.0]])
    rows = reliability(p, np.array([0, 1, 1, 0]), bins=10)
    assert [(row["low"], row["high"], row["n"], row["accuracy"]) for row in rows] == [
        (0.5, 0.6, 1, 1.0),
        (0.9, 1.0, 3, pytest.approx(2 / 3)),
    ]
    assert [row["confidence"] for row in rows] == pytest.approx([0.55, (0.95 + 0.91 + 1.0) / 3])
    assert reliability(np.zeros((0, 3)), np.zeros(0, int)) == []
    json.dumps(rows)


# ---- temperature ----


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


@given(st.integers(0, 999), st.integers(2, 6), st.floats(0.2, 5.0))
def test_the_temperature_recovers_the_factor_of_overconfident_logits(
    seed: int, k: int, factor: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(4000, k)) * 2.0
    labels = np.array([rng.choice(k, p=p) for p in np.exp(log_softmax(logits))])
    assert temperature(logits * factor, labels) == pytest.approx(factor, rel=0.12)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(2, 5),
    st.sampled_from([1e-2, 1.0, 30.0]),
)
def test_the_temperature_minimizes_the_nll_with_the_further_image(
    seed: int, n: int, k: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = scale * rng.normal(size=(n, k)), rng.integers(0, k, n)

    def cost(t: float) -> float:
        log_p = log_softmax(logits / t)
        return float(-log_p[np.arange(n), labels].sum() - log_p.mean())

    best = temperature(logits, labels)
    assert TEMPERATURES[0] * 0.999 <= best <= TEMPERATURES[1] * 1.001
    others = np.geomspace(*TEMPERATURES, 400)
    assert cost(best) <= min(cost(t) for t in others) + 1e-6


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_without_mistakes_the_error_probability_is_half_an_image_in_n_plus_1(n: int) -> None:
    logits, labels = np.tile([3.0, 0.0], (n, 1)), np.zeros(n, int)
    p = np.exp(log_softmax(logits / temperature(logits, labels)))[0]
    assert p[1] == pytest.approx(0.5 / (n + 1))


def test_the_temperature_of_equal_logits_is_1() -> None:
    assert temperature(np.zeros((5, 3)), np.zeros(5, int)) == 1.0


def test_the_temperature_of_wrong_predictions_is_the_largest() -> None:
    wrong = np.tile([3.0, 0.0], (9, 1))
    assert temperature(wrong, np.ones(9, int)) == pytest.approx(TEMPERATURES[1])


def test_an_impossible_class_does_not_change_the_temperature() -> None:
    possible = np.array([[2.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    labels = np.array([0, 1, 0, 1])
    third = np.concatenate([possible, np.full((4, 1), -np.inf)], axis=1)
    assert temperature(third, labels) == pytest.approx(temperature(possible, labels))
    labels[3] = 2  # an impossible label costs the same at every temperature
    assert np.isfinite(temperature(third, labels))


def test_the_temperature_of_large_logits_is_finite() -> None:
    assert np.isfinite(temperature(np.array([[1e30, -1e30], [500.0, -500.0]]), np.array([0, 1])))


def test_the_temperature_of_0_images_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows: expected at least one image"):
        temperature(np.zeros((0, 2)), np.zeros(0, int))


# ---- per class ----


def test_per_class_equals_values_by_hand() -> None:
    logits = np.eye(4)[[0, 0, 1, 1, 3]]
    rows = per_class(logits, np.array([0, 0, 0, 1, 2]), ["ape", "bee", "cow", "dog"])
    assert [(r["class"], r["n"], r["recall"], r["called"], r["precision"]) for r in rows] == [
        ("ape", 3, 2 / 3, 2, 1.0),
        ("bee", 1, 1.0, 2, 0.5),
        ("cow", 1, 0.0, 0, None),
        ("dog", 0, None, 1, 0.0),
    ]
    assert rows[0]["recall_ci95"] == list(wilson(2, 3))
    assert rows[1]["precision_ci95"] == list(wilson(1, 2))
    assert rows[3]["recall_ci95"] == [0.0, 1.0]
    json.dumps(rows)


@given(predictions)
def test_counts_of_per_class_add_up(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    k, pairs = drawn
    labels, predicted = np.array(pairs).T
    rows = per_class(np.eye(k)[predicted], labels, [str(i) for i in range(k)])
    assert sum(r["n"] for r in rows) == sum(r["called"] for r in rows) == len(pairs)
    assert sum(r["n"] * (r["recall"] or 0.0) for r in rows) == pytest.approx(
        (labels == predicted).sum()
    )


def test_spread_is_mean_and_sample_deviation() -> None:
    assert spread([0.5]) == {"mean": 0.5, "std": 0.0, "n": 1, "ci95": None}
    three = spread([1.0, 2.0, 3.0])
    assert (three["mean"], three["std"], three["n"]) == (2.0, 1.0, 3)
    with pytest.raises(ValueError, match="at least one value"):
        spread([])


@pytest.mark.parametrize("values", [[0.8, 0.9], [0.896, 0.898, 0.877, 0.907, 0.909], [0.5] * 3])
def test_the_interval_of_a_spread_is_students_t(values: list[float]) -> None:
    n, mean = len(values), sum(values) / len(values)
    error = np.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    from scipy import stats  # here, because every worker of pytest imports this file

    half = stats.t.ppf(0.975, n - 1) * error
    assert spread(values)["ci95"] == pytest.approx([mean - half, mean + half], abs=1e-12)
    # From the table of quantiles: 12.706 with one degree of freedom, 2.776 with four.
    half = {2: 12.7062047, 3: 4.3026527, 5: 2.7764451}[n] * error
    assert spread(values)["ci95"] == pytest.approx([mean - half, mean + half], abs=1e-8)


def test_the_interval_of_a_mean_is_that_of_newcombe_for_a_difference() -> None:
    """Newcombe 1998, Statistics in Medicine 17, 873-890, table II, method 10.

    A difference p - q is 2 m - 1, where m is the mean of p and 1 - q.
    """
    for (a, m), (b, n), expected in [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((10, 10), (0, 20), (0.6791, 1.0)),
    ]:
        rows = [(a / m, *wilson(a, m)), (1 - b / n, *wilson(n - b, n))]
        low, high = mean_interval(rows)
        assert (2 * low - 1, 2 * high - 1) == pytest.approx(expected, abs=6e-5)
    assert mean_interval([(0.9, *wilson(90, 100))]) == pytest.approx(wilson(90, 100))


# ---- summarize ----


def test_summarize_equals_values_by_hand() -> None:
    p = np.array(
        [[0.7, 0.2, 0.06, 0.04], [0.6, 0.3, 0.06, 0.04], [0.1, 0.5, 0.3, 0.1], [0.4, 0.3, 0.2, 0.1]]
    )
    labels = np.array([0, 1, 1, 3])
    summary = summarize(np.log(p).astype(np.float32) + 5.0, labels)  # logits have no zero point
    assert summary["n"] == 4
    assert summary["top1"] == 0.5
    assert summary["top1_ci95"] == pytest.approx(wilson(2, 4))
    assert summary["top3"] == 0.75
    assert summary["top3_ci95"] == pytest.approx(wilson(3, 4))
    recalls = [(1.0, *wilson(1, 1)), (0.5, *wilson(1, 2)), (0.0, *wilson(0, 1))]
    assert summary["balanced_ci95"] == pytest.approx(mean_interval(recalls))
    # class 2 is absent and does not count
    assert summary["balanced"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert summary["nll"] == pytest.approx(-np.log([0.7, 0.3, 0.5, 0.1]).mean(), rel=1e-6)
    gaps = abs(1 - 0.7) + abs(0 - 0.6) + abs(1 - 0.5) + abs(0 - 0.4)
    assert summary["ece"] == pytest.approx(gaps / 4, rel=1e-5)
    json.dumps(summary)


@pytest.mark.parametrize("n", [1, 7])
def test_summarize_has_the_values_of_perfect_and_impossible_predictions(n: int) -> None:
    logits = np.tile(np.array([40.0, -np.inf, -np.inf, 0.0], np.float32), (n, 1))
    perfect = summarize(logits, np.zeros(n, int))
    assert perfect["top1"] == perfect["balanced"] == 1.0
    assert perfect["ece"] == pytest.approx(0.0, abs=1e-9)
    assert perfect["nll"] == pytest.approx(0.0, abs=1e-9)
    assert summarize(logits, np.ones(n, int))["nll"] == np.inf


def test_summarize_accepts_large_logits() -> None:
    summary = summarize(np.array([[1e30, -1e30], [500.0, -500.0]], np.float32), np.array([0, 1]))
    assert summary["top1"] == 0.5
    assert summary["nll"] == pytest.approx(500.0)
    assert summary["ece"] == pytest.approx(0.5)


def test_summarize_refuses_0_images() -> None:
    with pytest.raises(ValueError, match="no rows: expected at least one image"):
        summarize(np.zeros((0, 3), np.float32), np.zeros(0, int))


# ---- cka ----


def by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with H = I - 1/n, as the paper writes it."""
    n = len(x)
    h = np.eye(n) - 1 / n
    hsic = lambda k, m: np.trace(k @ h @ m @ h) / (n - 1) ** 2
    k, m = x @ x.T, y @ y.T
    return float(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))


@pytest.mark.parametrize("n, d1, d2", [(40, 5, 7), (6, 30, 4), (6, 4, 30), (9, 9, 9), (2, 3, 1)])
def test_cka_is_the_definition_in_both_forms(n: int, d1: int, d2: int) -> None:
    rng = np.random.default_rng(n)
    x, noise = rng.normal(size=(n, d1)) + 3.0, rng.normal(size=(n, d2))
    y = np.tanh(x @ rng.normal(size=(d1, d2))) + noise
    assert cka(x, y) == pytest.approx(by_definition(x, y), abs=1e-12) == cka(y, x)
    assert 0.0 <= cka(x.astype(np.float32), noise) <= 1.0


@pytest.mark.parametrize("n, d", [(50, 8), (8, 50)])
@pytest.mark.parametrize("scale", [1e-30, -2.0, 1e30])
def test_cka_is_invariant_to_rotation_scale_and_shift(n: int, d: int, scale: float) -> None:
    rng = np.random.default_rng(d)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, d)) ** 3
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    assert [cka(x, x), cka(x, scale * x @ rotation)] == pytest.approx([1.0, 1.0], abs=1e-12)
    assert cka(x @ rotation * scale + 0.1 * scale, y) == pytest.approx(cka(x, y), abs=1e-12)
    stretched = x * np.linspace(0.1, 10.0, d)  # another linear map changes it
    assert cka(x, stretched) < 0.98


def test_cka_of_unrelated_features_is_small_only_with_many_images() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5000, 4)), rng.normal(size=(5000, 4))
    assert cka(x, y) < 0.01
    assert cka(rng.normal(size=(10, 500)), rng.normal(size=(10, 500))) > 0.9
    orthogonal = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert cka(orthogonal[:, :1], orthogonal[:, 1:]) == 0.0


@pytest.mark.parametrize(
    "x, y, words",
    [
        (np.ones((3, 2)), np.eye(3), "`x` is constant: got the same features for all 3 images"),
        (
            np.eye(3),
            np.full((3, 1), 0.1, np.float32),
            "`y` is constant: got the same features for all 3 images",
        ),
        (np.eye(1), np.eye(1), "too few rows: got 1, expected at least 2"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "too few rows: got 0, expected at least 2"),
        (np.eye(3), np.eye(4), r"got \[3, 3\] and \[4, 4\], expected .* of the same n"),
        (np.arange(3.0), np.eye(3), r"got \[3\] and \[3, 3\], expected \[n d1\] and \[n d2\]"),
        (
            np.eye(3),
            np.array([[0.0], [np.nan], [1.0]]),
            "`y` has a value that is not finite",
        ),
    ],
)
def test_cka_refuses_features_that_cannot_be_compared(
    x: np.ndarray, y: np.ndarray, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        cka(x, y)
