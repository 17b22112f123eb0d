"""ReLUs with redirected and guided gradients: same values, and the gradient of each rule."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl.backbones.gradients import guided_gradients, redirected_gradients, relu, relu6

Rule = Callable[[jax.Array], jax.Array]
X = jnp.asarray([[-1.0, -0.0, 0.0, 2.0, 6.0, 7.0], [-3.0, 5.0, 6.5, 0.5, -0.1, 1.0]])


def gradient_at(rule: Rule, x: jax.Array, g: jax.Array, redirect: bool = True) -> np.ndarray:
    """The gradient at x for the incoming gradient g; each call traces again."""

    def score(x: jax.Array) -> jax.Array:
        return jnp.sum(rule(x) * g)

    if not redirect:
        return np.asarray(jax.jit(jax.grad(score))(x))
    with redirected_gradients():
        return np.asarray(jax.jit(jax.grad(score))(x))


@pytest.mark.parametrize(("rule", "top"), [(relu, np.inf), (relu6, 6.0)])
def test_redirected_gradients_change_no_values(rule: Rule, top: float) -> None:
    expected = np.clip(np.asarray(X), 0.0, top)
    np.testing.assert_array_equal(rule(X), expected)
    with redirected_gradients():
        np.testing.assert_array_equal(rule(X), expected)
        np.testing.assert_array_equal(jax.jit(lambda x: rule(x))(X), expected)
        half = rule(X.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_plain_gradients_are_zero_at_the_corners() -> None:
    g = jnp.ones_like(X)
    np.testing.assert_array_equal(
        gradient_at(relu, X, g, False), [[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 1]]
    )
    np.testing.assert_array_equal(
        gradient_at(relu6, X, g, False), [[0, 0, 0, 1, 0, 0], [0, 1, 0, 1, 0, 1]]
    )


def test_an_image_without_gradient_receives_those_that_would_activate_a_unit() -> None:
    """Below 0 only positive gradients pass, above 6 only negative ones; at 0 and 6 both pass."""
    below = jnp.asarray([[-1.0, -2.0, 0.0, 0.0]])
    g = jnp.asarray([[0.5, -0.7, 0.3, -0.2]])
    assert not gradient_at(relu, below, g, False).any()
    for rule in (relu, relu6):
        np.testing.assert_array_equal(
            gradient_at(rule, below, g), np.float32([[0.5, 0.0, 0.3, -0.2]])
        )
    above = jnp.asarray([[7.0, 8.0, 6.0, 6.0, -1.0, -1.0]])
    g = jnp.asarray([[0.5, -0.7, 0.3, -0.2, 0.1, -0.1]])
    assert not gradient_at(relu6, above, g, False).any()
    np.testing.assert_array_equal(
        gradient_at(relu6, above, g), np.float32([[0.0, -0.7, 0.3, -0.2, 0.1, 0.0]])
    )
    # relu has no upper corner.
    np.testing.assert_array_equal(gradient_at(relu, above, g), gradient_at(relu, above, g, False))


@pytest.mark.parametrize("rule", [relu, relu6])
@pytest.mark.parametrize("shape", [(2, 6), (2, 1, 2, 3)])
def test_each_image_of_a_batch_is_treated_separately(rule: Rule, shape: tuple[int, ...]) -> None:
    """One image has no gradient, one has: the latter keeps its plain gradient in all units."""
    x = jnp.stack([-1.0 - jnp.arange(6.0), X[1]]).reshape(shape)
    g = jnp.asarray([[1.0, -1.0, 2.0, -2.0, 0.0, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]).reshape(
        shape
    )
    redirected, plain = (
        gradient_at(rule, x, g).reshape(2, 6),
        gradient_at(rule, x, g, False).reshape(2, 6),
    )
    np.testing.assert_array_equal(redirected[0], [1, 0, 2, 0, 0, 3])
    np.testing.assert_array_equal(redirected[1], plain[1])
    assert not plain[0].any() and (plain[1] == 0).any()


def test_active_units_without_an_incoming_gradient_count_as_silent() -> None:
    """The outgoing gradient decides, not the activation; here only the inactive unit has one."""
    x, g = jnp.asarray([[2.0, -1.0]]), jnp.asarray([[0.0, 1.0]])
    np.testing.assert_array_equal(gradient_at(relu, x, g), [[0.0, 1.0]])
    np.testing.assert_array_equal(gradient_at(relu, x, jnp.zeros((1, 2))), [[0.0, 0.0]])


def test_the_context_ends_with_its_block_even_after_an_exception() -> None:
    x, g = jnp.asarray([[-1.0]]), jnp.asarray([[1.0]])
    with pytest.raises(KeyError), redirected_gradients():
        raise KeyError
    np.testing.assert_array_equal(gradient_at(relu, x, g, False), [[0.0]])
    with redirected_gradients():
        with redirected_gradients():
            pass
        # Still within the outer block.
        np.testing.assert_array_equal(gradient_at(relu, x, g, False), [[1.0]])


def test_a_jitted_network_is_traced_again_within_the_context_and_after_it() -> None:
    """The cache of `jit` must not mix the plain and the redirected rule."""
    network = jax.jit(lambda x: jnp.sum(relu(x)))
    slope = jax.grad(network)
    x = jnp.asarray([[-1.0]])
    for _ in range(2):
        np.testing.assert_array_equal(slope(x), [[0.0]])
        with redirected_gradients():
            np.testing.assert_array_equal(slope(x), [[1.0]])


def test_guided_gradients_are_positive_ones_of_active_units() -> None:
    g = jnp.asarray([[1.0, 1.0, 1.0, 2.0, -1.0, 1.0], [1.0, -1.0, 1.0, -2.0, 1.0, 3.0]])
    for rule, active in ((relu, X > 0), (relu6, (X > 0) & (X < 6))):
        with guided_gradients():
            np.testing.assert_array_equal(rule(X), np.clip(X, 0.0, np.inf if rule is relu else 6.0))
            slope = np.asarray(jax.jit(jax.grad(lambda x, rule=rule: jnp.sum(rule(x) * g)))(X))
        np.testing.assert_array_equal(slope, np.where(active & (np.asarray(g) > 0), g, 0.0))
