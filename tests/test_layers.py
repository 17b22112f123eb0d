"""The relus under `redirected_gradients`: the same values, and gradients for images that would have none."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl.backbones.layers import redirected_gradients, relu, relu6

Rule = Callable[[jax.Array], jax.Array]
X = jnp.asarray([[-1.0, -0.0, 0.0, 2.0, 6.0, 7.0], [-3.0, 5.0, 6.5, 0.5, -0.1, 1.0]])


def pulled(rule: Rule, x: jax.Array, g: jax.Array, redirect: bool = True) -> np.ndarray:
    """The gradient at x where the incoming one is g; traced anew each time."""

    def score(x: jax.Array) -> jax.Array:
        return jnp.sum(rule(x) * g)

    if not redirect:
        return np.asarray(jax.jit(jax.grad(score))(x))
    with redirected_gradients():
        return np.asarray(jax.jit(jax.grad(score))(x))


@pytest.mark.parametrize(("rule", "top"), [(relu, np.inf), (relu6, 6.0)])
def test_values_do_not_change(rule: Rule, top: float) -> None:
    wanted = np.clip(np.asarray(X), 0.0, top)
    np.testing.assert_array_equal(rule(X), wanted)
    with redirected_gradients():
        np.testing.assert_array_equal(rule(X), wanted)
        np.testing.assert_array_equal(jax.jit(lambda x: rule(x))(X), wanted)
        half = rule(X.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_plain_gradients_by_hand() -> None:
    g = jnp.ones_like(X)
    np.testing.assert_array_equal(
        pulled(relu, X, g, False), [[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 1]]
    )
    np.testing.assert_array_equal(
        pulled(relu6, X, g, False), [[0, 0, 0, 1, 0, 0], [0, 1, 0, 1, 0, 1]]
    )


def test_a_silent_image_gets_what_would_wake_it() -> None:
    """Below 0 only a push up passes, above 6 only a push down; at the corners both do."""
    below = jnp.asarray([[-1.0, -2.0, 0.0, 0.0]])
    g = jnp.asarray([[0.5, -0.7, 0.3, -0.2]])
    assert not pulled(relu, below, g, False).any()
    for rule in (relu, relu6):
        np.testing.assert_array_equal(pulled(rule, below, g), np.float32([[0.5, 0.0, 0.3, -0.2]]))
    above = jnp.asarray([[7.0, 8.0, 6.0, 6.0, -1.0, -1.0]])
    g = jnp.asarray([[0.5, -0.7, 0.3, -0.2, 0.1, -0.1]])
    assert not pulled(relu6, above, g, False).any()
    np.testing.assert_array_equal(
        pulled(relu6, above, g), np.float32([[0.0, -0.7, 0.3, -0.2, 0.1, 0.0]])
    )
    np.testing.assert_array_equal(
        pulled(relu, above, g), pulled(relu, above, g, False)
    )  # relu knows no 6


@pytest.mark.parametrize("rule", [relu, relu6])
@pytest.mark.parametrize("shape", [(2, 6), (2, 1, 2, 3)])
def test_of_each_image_apart(rule: Rule, shape: tuple[int, ...]) -> None:
    """One image is dead and one alive: the alive one's gradient is the plain one, dead units and all."""
    x = jnp.stack([-1.0 - jnp.arange(6.0), X[1]]).reshape(shape)
    g = jnp.asarray([[1.0, -1.0, 2.0, -2.0, 0.0, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]).reshape(
        shape
    )
    found, plain = pulled(rule, x, g).reshape(2, 6), pulled(rule, x, g, False).reshape(2, 6)
    np.testing.assert_array_equal(found[0], [1, 0, 2, 0, 0, 3])
    np.testing.assert_array_equal(found[1], plain[1])
    assert not plain[0].any() and (plain[1] == 0).any()


def test_active_units_without_incoming_gradient_are_silent_too() -> None:
    """What counts is the gradient that would leave, not the activity: here it comes to the dead unit alone."""
    x, g = jnp.asarray([[2.0, -1.0]]), jnp.asarray([[0.0, 1.0]])
    np.testing.assert_array_equal(pulled(relu, x, g), [[0.0, 1.0]])
    np.testing.assert_array_equal(pulled(relu, x, jnp.zeros((1, 2))), [[0.0, 0.0]])


def test_it_ends_with_its_block_also_when_that_breaks() -> None:
    x, g = jnp.asarray([[-1.0]]), jnp.asarray([[1.0]])
    with pytest.raises(KeyError), redirected_gradients():
        raise KeyError
    np.testing.assert_array_equal(pulled(relu, x, g, False), [[0.0]])
    with redirected_gradients():
        with redirected_gradients():
            pass
        np.testing.assert_array_equal(pulled(relu, x, g, False), [[1.0]])  # still inside


def test_a_jitted_network_is_traced_anew_inside_and_outside() -> None:
    """jit keeps what it traced: neither may the plain rule stay for the first steps nor the redirected one for the rest."""
    network = jax.jit(lambda x: jnp.sum(relu(x)))
    slope = jax.grad(network)
    x = jnp.asarray([[-1.0]])
    for _ in range(2):
        np.testing.assert_array_equal(slope(x), [[0.0]])
        with redirected_gradients():
            np.testing.assert_array_equal(slope(x), [[1.0]])
