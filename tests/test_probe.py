"""Probes equal Newton's method, least squares and refits in float64; their invariances."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl.training import probe


def clusters(
    n: int, d: int, classes: int, *, distance: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian classes with centers `distance` deviations from the origin; f32[n d], i[n]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centers = rng.normal(size=(classes, d))
    centers *= distance / np.linalg.norm(centers, axis=1, keepdims=True)
    return (centers[labels] + rng.normal(size=(n, d))).astype(np.float32), labels


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def logits(fitted: probe.Probe, features: np.ndarray) -> np.ndarray:
    """Logits minus their mean over classes, which changes no prediction."""
    raw = features.astype(np.float64) @ fitted.params["kernel"] + fitted.params["bias"]
    return raw - raw.mean(axis=1, keepdims=True)


def newton(x: np.ndarray, labels: np.ndarray, classes: int, c: float) -> np.ndarray:
    """argmin C * sum of losses + |W|^2 / 2 with a free bias, f64[d + 1, k]; x is standardized."""
    ones = np.concatenate([x.astype(np.float64), np.ones((len(x), 1))], axis=1)
    w, free = np.zeros((ones.shape[1], classes)), np.ones(ones.shape[1])
    free[-1] = 0.0
    for _ in range(40):
        p = softmax(ones @ w)
        gradient = c * ones.T @ (p - np.eye(classes)[labels]) + free[:, None] * w
        inner = np.einsum("nk,kl->nkl", p, np.eye(classes)) - np.einsum("nk,nl->nkl", p, p)
        hessian = c * np.einsum("nd,nkl,ne->dkel", ones, inner, ones)
        hessian += np.einsum("de,kl->dkel", np.diag(free), np.eye(classes))
        # A shift of all biases changes nothing, so the matrix is singular.
        flat = hessian.reshape(w.size, w.size) + 1e-12 * np.eye(w.size)
        w = w - np.linalg.lstsq(flat, gradient.ravel(), rcond=1e-10)[0].reshape(w.shape)
    return w


# ---- minimum -------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1e-3, 1e-2, 0.1, 1.0])
@pytest.mark.parametrize(("n", "d", "classes"), [(60, 4, 2), (45, 5, 3), (20, 30, 2), (50, 3, 5)])
def test_the_gradient_of_scikit_learns_objective_is_zero_at_the_fit(
    n: int, d: int, classes: int, c: float
) -> None:
    features, labels = clusters(n, d, classes)
    fitted = probe.logistic(features, labels, classes, strengths=(c,))
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    w = fitted.params["kernel"] * std[:, None]
    x = (features - mean) / std
    rest = (
        softmax(features.astype(np.float64) @ fitted.params["kernel"] + fitted.params["bias"])
        - np.eye(classes)[labels]
    )
    slope = (c * x.T @ rest + w) / (c * n)  # in units of the mean loss
    assert np.abs(slope).max() < 1e-4
    # The bias is not penalized, so that predictions are right on average.
    assert np.abs(rest.mean(axis=0)).max() < 1e-4
    assert fitted.strength == c


@pytest.mark.parametrize(
    ("n", "d", "classes", "c"), [(40, 3, 2, 0.1), (40, 3, 3, 0.01), (30, 2, 5, 1.0)]
)
def test_the_fit_is_that_of_newtons_method(n: int, d: int, classes: int, c: float) -> None:
    features, labels = clusters(n, d, classes)
    features = features * np.float32([3.0, 0.1, 50.0][:d]) + np.float32([100.0, -2.0, 7.0][:d])
    x = (features - features.mean(axis=0, dtype=np.float64)) / features.std(
        axis=0, dtype=np.float64
    )
    expected = np.concatenate([x, np.ones((n, 1))], axis=1) @ newton(x, labels, classes, c)
    actual = logits(probe.logistic(features, labels, classes, strengths=(c,)), features)
    np.testing.assert_allclose(actual, expected - expected.mean(axis=1, keepdims=True), atol=2e-3)


@pytest.mark.parametrize("prior", [0.0, 10.0, 1e9])
def test_a_prior_moves_the_variances_toward_their_mean(prior: float) -> None:
    features, labels = clusters(40, 3, 2)
    features = features * np.float32([3.0, 0.5, 10.0]) + np.float32([100.0, -2.0, 7.0])
    fit = lambda f: probe.fit(f, labels, 2, strengths=(0.1,), prior=prior)
    x = features - features.mean(axis=0, dtype=np.float64)
    variance = np.square(x).mean(axis=0)
    x /= np.sqrt((prior * variance.mean() + 40 * variance) / (prior + 40))
    expected = np.concatenate([x, np.ones((40, 1))], axis=1) @ newton(x, labels, 2, 0.1)
    expected -= expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(logits(fit(features), features), expected, atol=2e-3)
    constant = np.concatenate([features, np.full((40, 2), 0.1, np.float32)], axis=1)
    np.testing.assert_allclose(logits(fit(constant), constant), expected, atol=2e-3)
    assert not fit(constant).params["kernel"][3:].any()


def test_cross_validated_accuracies_are_those_of_newtons_method() -> None:
    """Each fold is fitted to its minimum; the penalty is relative to the sum of the losses."""
    features, labels = clusters(60, 4, 3, distance=1.5)
    actual = probe.logistic(features, labels, 3, strengths=(0.01, 1.0), fold_count=4, seed=7)
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    ones = np.concatenate([x, np.ones((60, 1))], axis=1)
    fold = probe.folds(labels, 4, 7)
    for c, accuracy in actual.scores.items():
        correct = np.zeros(60, bool)
        for f in range(4):
            w = newton(x[fold != f], labels[fold != f], 3, c)
            correct[fold == f] = (ones @ w).argmax(axis=1)[fold == f] == labels[fold == f]
        # One example may lie on the decision boundary.
        assert accuracy == pytest.approx(correct.mean(), abs=1.1 / 60)


# ---- invariances ---------------------------------------------------------------------------------


def fit(features: np.ndarray, labels: np.ndarray, classes: int) -> probe.Probe:
    return probe.logistic(features, labels, classes, strengths=(0.1,))


def test_both_factorizations_give_the_same_fit() -> None:
    """n > d factorizes a d x d matrix, n < d an n x n matrix; columns of zeros change only that."""
    features, labels = clusters(24, 6, 3)
    padded = np.concatenate([features, np.zeros((24, 40), np.float32)], axis=1)
    few, many = fit(features, labels, 3), fit(padded, labels, 3)
    np.testing.assert_allclose(logits(many, padded), logits(few, features), atol=2e-3)
    np.testing.assert_array_equal(many.params["kernel"][6:], 0)


@pytest.mark.parametrize("value", [0.1, 123.456, -3e4])
def test_constant_features_have_no_effect(value: float) -> None:
    """The float32 mean of many equal numbers differs from them; the rest is not a feature."""
    features, labels = clusters(3000, 3, 2)
    more = np.concatenate([features, np.full((3000, 2), value, np.float32)], axis=1)
    plain, padded = fit(features, labels, 2), fit(more, labels, 2)
    np.testing.assert_allclose(logits(padded, more), logits(plain, features), atol=2e-3)
    np.testing.assert_array_equal(padded.params["kernel"][3:], 0)


def test_with_constant_features_the_probabilities_are_the_class_frequencies() -> None:
    labels = np.array([0] * 12 + [1] * 4)
    fitted = fit(np.full((16, 3), 2.5, np.float32), labels, 2)
    np.testing.assert_allclose(
        softmax(logits(fitted, np.full((1, 3), 2.5)))[0], [0.75, 0.25], atol=1e-3
    )


@settings(max_examples=6)
@given(
    st.lists(st.sampled_from([1e-4, 0.02, 1.0, 30.0]), min_size=4, max_size=4), st.floats(-50, 50)
)
def test_scale_and_shift_of_a_feature_have_no_effect(units: list[float], shift: float) -> None:
    features, labels = clusters(40, 4, 3)
    other = ((features.astype(np.float64) + shift) * units).astype(np.float32)
    np.testing.assert_allclose(
        logits(fit(other, labels, 3), other), logits(unchanged_fit(), features), atol=5e-3
    )


@functools.cache
def unchanged_fit() -> probe.Probe:
    return fit(*clusters(40, 4, 3), 3)


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_separable_classes_are_classified_without_error(classes: int) -> None:
    features, labels = clusters(20 * classes, 16, classes, distance=25.0)
    fitted = probe.logistic(features, labels, classes)
    assert (logits(fitted, features).argmax(axis=1) == labels).all()
    assert max(fitted.scores.values()) == 1.0
    assert all(np.isfinite(a).all() for a in fitted.params.values())
    assert {k: (a.shape, a.dtype) for k, a in fitted.params.items()} == {
        "kernel": ((16, classes), np.float32),
        "bias": ((classes,), np.float32),
    }


def test_a_class_without_an_example_is_allowed_and_never_predicted() -> None:
    features, labels = clusters(40, 3, 2)
    fitted = probe.logistic(features, labels * 2, 3)  # no example of class 1
    assert not (logits(fitted, features).argmax(axis=1) == 1).any()
    assert all(np.isfinite(a).all() for a in fitted.params.values())


@pytest.mark.parametrize("n", [2, 4, 6])
def test_few_examples_are_enough(n: int) -> None:
    features, labels = clusters(n, 5, 2, distance=10.0)
    fitted = probe.logistic(features, labels, 2)
    assert (logits(fitted, features).argmax(axis=1) == labels).all()


# ---- folds, strength -----------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(2, 6), st.integers(0, 9))
def test_folds_are_stratified_and_of_equal_size(drawn: list[int], count: int, seed: int) -> None:
    labels = np.array(drawn)
    fold = probe.folds(labels, count, seed)
    assert set(fold) <= set(range(count))
    for members in (np.bincount(fold[labels == k], minlength=count) for k in set(drawn)):
        assert members.max() - members.min() <= 1
    sizes = np.bincount(fold, minlength=count)
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(fold, probe.folds(labels, count, seed))


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2)), min_size=2, max_size=60),
    st.integers(2, 6),
)
def test_a_group_stays_in_one_fold_and_no_fold_is_empty(
    drawn: list[tuple[int, int]], count: int
) -> None:
    groups, labels = np.array(drawn).T
    count = min(count, len(set(groups.tolist())))
    fold = probe.folds(labels, count, 0, groups)
    assert set(fold) == set(range(count))
    assert all(len(set(fold[groups == group])) == 1 for group in groups)
    names = np.random.default_rng(0).permutation(60)[: len(labels)]  # without copies, no change
    np.testing.assert_array_equal(probe.folds(labels, 2, 5, names), probe.folds(labels, 2, 5))


def test_folds_without_groups_are_those_of_earlier_versions() -> None:
    """Numbers in RESULTS.md depend on them."""
    labels = np.random.default_rng(1).integers(0, 3, 20)
    expected = [0, 2, 0, 3, 1, 2, 3, 2, 0, 2, 2, 3, 1, 1, 0, 1, 0, 1, 3, 3]
    assert probe.folds(labels, 4, 0).tolist() == expected


def test_copies_of_one_image_alone_are_folds_of_their_own() -> None:
    features, labels = clusters(20, 3, 2)
    one = probe.fit(features, labels, 2, groups=np.zeros(20, int))
    np.testing.assert_array_equal(
        one.params["kernel"], probe.fit(features, labels, 2).params["kernel"]
    )


def test_folds_are_random_within_a_class() -> None:
    labels = np.zeros(40, int)
    assert (probe.folds(labels, 5, 0) != probe.folds(labels, 5, 1)).any()
    assert (np.diff(np.flatnonzero(probe.folds(labels, 5, 0) == 0)) != 5).any()


def test_the_seed_decides_the_probe() -> None:
    features, labels = clusters(50, 6, 2, distance=0.7)
    one, again, other = (probe.logistic(features, labels, 2, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.params["kernel"], again.params["kernel"])
    assert one.scores == again.scores != other.scores


def test_noise_selects_a_strong_penalty_and_signal_a_weak_one() -> None:
    rng = np.random.default_rng(0)
    noise = probe.logistic(rng.normal(size=(120, 60)).astype(np.float32), np.arange(120) % 2, 2)
    weak = probe.logistic(*clusters(120, 60, 2, distance=1.5), 2)
    clear = probe.logistic(*clusters(120, 60, 2, distance=6.0), 2)
    assert max(noise.scores.values()) < 0.65  # chance, in spite of 60 dimensions
    assert weak.strength <= 0.01 and 0.65 < weak.scores[weak.strength] < 0.85
    # All accuracies are equal; the likelihood decides.
    assert clear.strength >= 0.1 and clear.scores[clear.strength] > 0.97
    assert tuple(noise.scores) == probe.STRENGTHS and weak.strength in probe.STRENGTHS


def test_of_equally_accurate_strengths_the_more_likely_is_chosen() -> None:
    """At C = 1e-9 the order of the logits is correct, but their size is almost zero."""
    actual = probe.logistic(*clusters(80, 10, 2, distance=8.0), 2, strengths=(1e-9, 0.1))
    assert set(actual.scores.values()) == {1.0}
    assert actual.strength == 0.1


# ---- ridge, validation, class weights ------------------------------------------------------------


def least_squares(
    x: np.ndarray, labels: np.ndarray, classes: int, c: float, weights: np.ndarray
) -> np.ndarray:
    """argmin C / 2 * weighted squares + |W|^2 / 2, by the normal equations: f64[d + 1, k]."""
    ones = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    penalty = np.diag([1.0 / c] * x.shape[1] + [0.0])
    right = ones.T @ (weights[:, None] * np.eye(classes)[labels])
    return np.linalg.solve(ones.T @ (weights[:, None] * ones) + penalty, right)


def standard(features: np.ndarray) -> np.ndarray:
    wide = features.astype(np.float64)
    return (wide - wide.mean(axis=0)) / wide.std(axis=0)


def same_up_to_scale(actual: np.ndarray, expected: np.ndarray) -> None:
    """The ridge's scores are divided by a temperature."""
    actual, expected = (a - a.mean(axis=1, keepdims=True) for a in (actual, expected))
    np.testing.assert_allclose(
        actual * (np.vdot(actual, expected) / np.vdot(actual, actual)), expected, atol=2e-5
    )


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize(("n", "d", "classes"), [(60, 5, 2), (45, 6, 3), (25, 30, 4)])
def test_the_ridge_is_least_squares(n: int, d: int, classes: int, c: float) -> None:
    features, labels = clusters(n, d, classes)
    fitted = probe.fit(features, labels, classes, method="ridge", strengths=(c,))
    x = standard(features)
    w = least_squares(x, labels, classes, c, np.ones(n))
    same_up_to_scale(logits(fitted, features), x @ w[:-1] + w[-1])
    assert fitted.temperature == 1.0 and fitted.method == "ridge"


@settings(max_examples=12)
@given(
    st.integers(0, 99),
    st.sampled_from([(24, 3), (24, 40)]),
    st.sampled_from([2, 5]),
    st.floats(0.5, 3.0),
)
def test_the_held_out_scores_of_the_ridge_are_those_of_a_refit(
    seed: int, shape: tuple[int, int], count: int, weight: float
) -> None:
    """Both sizes of block: folds of 12 and 5 against 3 axes, and against 23."""
    (n, d), classes = shape, 3
    features, labels = clusters(n, d, classes, seed=seed)
    fold, weights = probe.folds(labels, count, seed), np.array([weight, 1.0, 1.0])[labels]
    weights = weights / weights.mean()
    bank = probe.factorize(features, weights)
    x = (features - bank.mean) * bank.scale
    strengths = (1e-3, 1.0)
    for c, scores in zip(
        strengths,
        probe._ridge_held_out(bank, labels, weights, classes, fold, strengths),
        strict=True,
    ):
        for f in range(count):
            w = least_squares(x[fold != f], labels[fold != f], classes, c, weights[fold != f])
            np.testing.assert_allclose(scores[fold == f], x[fold == f] @ w[:-1] + w[-1], atol=1e-8)


@pytest.mark.parametrize("method", list(probe.METHODS))
def test_validation_labels_choose_the_strength_and_are_fitted_only_with_refit(
    method: str,
) -> None:
    features, labels = clusters(120, 40, 3, distance=2.0)
    train, held = (features[:80], labels[:80]), (features[80:], labels[80:])
    wrong = (held[0], (held[1] + 1) % 3)
    call = functools.partial(probe.fit, *train, 3, method=method)
    correct, misled = (
        call(validation=held, refit=False),
        call(validation=wrong, refit=False, strengths=(0.01,)),
    )
    assert max(correct.scores.values()) > 0.6 > 0.4 > misled.scores[0.01]
    plain = call(validation=held, refit=False, strengths=(0.01,))
    kernels = [p.params["kernel"] / np.linalg.norm(p.params["kernel"]) for p in (plain, misled)]
    np.testing.assert_allclose(*kernels, atol=1e-4)  # trained without them
    again = call(validation=held, strengths=(0.01,))
    whole = probe.fit(features, labels, 3, method=method, strengths=(0.01,))
    kernels = [p.params["kernel"] / np.linalg.norm(p.params["kernel"]) for p in (again, whole)]
    np.testing.assert_allclose(*kernels, atol=1e-4)  # and with them
    assert (
        np.abs(kernels[0] - plain.params["kernel"] / np.linalg.norm(plain.params["kernel"])).max()
        > 1e-3
    )


def test_without_refit_only_the_training_examples_are_fitted() -> None:
    features, labels = clusters(60, 20, 3)
    fitted = probe.fit(
        features[:40],
        labels[:40],
        3,
        validation=(features[40:], labels[40:]),
        refit=False,
        strengths=(0.02,),
    )
    x = standard(features)
    expected = np.concatenate([x, np.ones((60, 1))], axis=1) @ newton(x[:40], labels[:40], 3, 0.02)
    np.testing.assert_allclose(
        logits(fitted, features), expected - expected.mean(axis=1, keepdims=True), atol=2e-3
    )


@pytest.mark.parametrize("method", list(probe.METHODS))
def test_a_class_weight_of_two_is_equal_to_repeating_its_examples(
    method: str,
) -> None:
    features, labels = clusters(30, 6, 3)
    weighted = probe.fit(
        features,
        labels,
        3,
        method=method,
        strengths=(0.1,),
        class_weights=np.array([2.0, 1.0, 1.0]),
    )
    twice = np.concatenate([np.arange(30), np.flatnonzero(labels == 0)])
    fitted = probe.fit(features[twice], labels[twice], 3, method=method, strengths=(0.1 * 30 / 40,))
    a, b = (p.params["kernel"] / np.linalg.norm(p.params["kernel"]) for p in (weighted, fitted))
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("method", list(probe.METHODS))
def test_probabilities_are_calibrated(method: str) -> None:
    """After division by the temperature, even if the fit is overconfident."""
    features, labels = clusters(1200, 30, 3, distance=1.5)
    fitted = probe.fit(features[:300], labels[:300], 3, method=method, strengths=(10.0,))
    p = softmax(logits(fitted, features[300:]) / fitted.temperature)
    assert abs(p.max(axis=1).mean() - (p.argmax(axis=1) == labels[300:]).mean()) < 0.05


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([0], 2), ([], 2), ([0, 1, 2], 2), ([0, -1, 1], 2)],
    ids=["one", "none", "high", "low"],
)
def test_few_examples_and_labels_out_of_range_are_errors(labels: list[int], classes: int) -> None:
    with pytest.raises(
        ValueError,
        match=rf"at least 2 examples with labels in \[0, {classes}\): got {len(labels)} examples",
    ):
        probe.logistic(np.zeros((len(labels), 3), np.float32), np.array(labels, int), classes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "logistics"}, "unknown `method`: got 'logistics'; nearest: 'logistic'"),
        (
            {"validation": (np.zeros((0, 3)), np.zeros(0, int))},
            "`validation` needs at least 1 example.*got 0",
        ),
        ({"validation": (np.zeros((1, 3)), np.array([2]))}, r"with a label in \[0, 2\): got 1"),
        (
            {"class_weights": np.array([1.0, 0.0])},
            r"`class_weights` must be 2 positive numbers: got \[1.0, 0.0\]",
        ),
        ({"class_weights": np.ones(3)}, "`class_weights` must be 2 positive numbers"),
    ],
)
def test_wrong_arguments_are_errors(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        probe.fit(*clusters(8, 3, 2), 2, **change)
