"""Per-example losses against numpy in float64 and optax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl import losses
from tl.losses import cross_entropy, group_log_probability, smooth_labels

LOGITS = np.array(
    [[2.0, -1.0, 0.5], [0.0, 0.0, 0.0], [30.0, -40.0, 5.0], [-3.0, 4.0, 4.0]], np.float32
)
LABELS = np.array([0, 2, 1, 2], np.int32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_cross_entropy_equals_float64_and_optax(smoothing: float) -> None:
    targets = (1 - smoothing) * np.eye(3)[LABELS] + smoothing / 3
    actual = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), smoothing=smoothing)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, -(targets * log_softmax(LOGITS)).sum(axis=1), rtol=1e-6)
    theirs = optax.softmax_cross_entropy(jnp.asarray(LOGITS), jnp.asarray(targets, jnp.float32))
    np.testing.assert_allclose(actual, theirs, rtol=1e-6)


def test_an_uncertain_label_shares_the_rest_among_the_other_classes() -> None:
    actual = smooth_labels(jnp.asarray([1, 0]), 3, confidence=jnp.asarray([0.6, 1.0]))
    np.testing.assert_allclose(actual, [[0.2, 0.6, 0.2], [1, 0, 0]], rtol=1e-6)
    both = smooth_labels(jnp.asarray([1]), 2, 0.1, jnp.asarray([2 / 3]))
    np.testing.assert_allclose(both, [[0.9 / 3 + 0.05, 0.9 * 2 / 3 + 0.05]], rtol=1e-6)


def test_cross_entropy_equals_values_by_hand() -> None:
    actual = cross_entropy(jnp.asarray([[0.0, np.log(3.0)]] * 2, jnp.float32), jnp.asarray([0, 1]))
    np.testing.assert_allclose(actual, [np.log(4.0), np.log(4.0 / 3.0)], rtol=1e-6)


def test_cross_entropy_stays_finite_at_the_end_of_float32() -> None:
    logits = jnp.asarray([[1e30, -1e30, 0.0]], jnp.float32)
    value, gradient = jax.value_and_grad(lambda x: cross_entropy(x, jnp.asarray([1]))[0])(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3).filter(any), min_size=4, max_size=4)
)
def test_group_log_probability_equals_float64(rows: list[list[bool]]) -> None:
    members = np.array(rows)
    actual = group_log_probability(jnp.asarray(LOGITS), jnp.asarray(members))
    expected = np.log((np.exp(log_softmax(LOGITS)) * members).sum(axis=1))
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)
    assert (np.asarray(actual) <= 0).all()


def test_a_group_of_one_class_has_the_cross_entropy_and_that_of_all_is_certain() -> None:
    one = group_log_probability(jnp.asarray(LOGITS), jnp.asarray(np.eye(3, dtype=bool)[LABELS]))
    np.testing.assert_allclose(
        one, -cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS)), rtol=1e-6, atol=1e-6
    )
    everyone = group_log_probability(jnp.asarray(LOGITS), jnp.ones((4, 3), bool))
    np.testing.assert_array_equal(everyone, np.zeros(4))


def test_a_very_improbable_group_has_a_finite_value_and_gradient() -> None:
    logits = jnp.asarray([[400.0, -300.0, -301.0]], jnp.float32)  # exp(-700) is 0 in float32
    members = jnp.asarray([[False, True, True]])
    value, gradient = jax.value_and_grad(lambda x: group_log_probability(x, members)[0])(logits)
    np.testing.assert_allclose(value, -700 + np.log1p(np.exp(-1.0)), rtol=1e-6)
    share = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(gradient, [[-1.0, share, 1 - share]], rtol=1e-5)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_falls_with_the_logit_of_the_label_and_is_per_example(name: str) -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    targets = losses.smooth_labels(jnp.arange(5) % 4, 4)
    loss = losses.LOSSES[name]
    values = loss(logits, targets)
    assert values.shape == (5,) and values.dtype == jnp.float32 and (values > 0).all()
    assert (loss(logits + 2.0 * targets, targets) < values).all()
    np.testing.assert_allclose(loss(logits[2:3], targets[2:3]), values[2:3], rtol=1e-6)
    gradient = jax.grad(lambda logits: loss(1e4 * logits, targets).sum())(logits)
    assert np.isfinite(gradient).all()


def test_losses_equal_their_formulas() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(6, 3)).astype(np.float32)
    targets = np.asarray(losses.smooth_labels(jnp.arange(6) % 3, 3, 0.1))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    on = 1 / (1 + np.exp(-logits))
    expected = {
        "cross_entropy": -(targets * np.log(p)).sum(axis=1),
        "focal": -(targets * (1 - p) ** 2 * np.log(p)).sum(axis=1),
        "bce": -(targets * np.log(on) + (1 - targets) * np.log(1 - on)).sum(axis=1),
        "bootstrapped": -((0.95 * targets + 0.05 * p) * np.log(p)).sum(axis=1),
    }
    assert set(expected) == set(losses.LOSSES)
    for name, values in expected.items():
        actual = losses.LOSSES[name](jnp.asarray(logits), jnp.asarray(targets))
        np.testing.assert_allclose(actual, values, rtol=1e-5, err_msg=name)
    plain = losses.soft_cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(losses.focal(logits, targets, gamma=0.0), plain, rtol=1e-6)
    np.testing.assert_allclose(losses.bootstrapped(logits, targets, share=1.0), plain, rtol=1e-6)
