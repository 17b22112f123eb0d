"""Rules by which a network is differentiated: the gradient, or another rule for some layers.

A rule changes the gradient with respect to the input, and no value. It applies to the networks that
are traced within a context; without one, every function below is the plain operation, which
supports forward and reverse mode. A rule is defined in reverse mode only, so `jax.jvp` of a network
that is traced under it is an error.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

Linear = Callable[[jax.Array, jax.Array], jax.Array]
"""`(x, kernel) -> y`, linear in both."""


class Part(NamedTuple):
    """A share of the relevance, and the contributions that it is divided by.

    Attributes:
      share: of the relevance of an output; the shares of a layer add up to 1.
      positive, negative: weights of the contributions x w > 0 and x w < 0 of an output.
    """

    share: float
    positive: float
    negative: float


class Rule(NamedTuple):
    """How a network is differentiated.

    Attributes:
      relu: "redirected", "guided" or "smooth"; "" for the gradient.
      conv, dense: the parts of layer-wise relevance propagation through a convolution and through a
        dense layer; () for the gradient.
      epsilon: added to the absolute value of the sum of the contributions of an output.
    """

    relu: str = ""
    conv: tuple[Part, ...] = ()
    dense: tuple[Part, ...] = ()
    epsilon: float = 0.0


PLAIN = Rule()
# Slope of the sigmoid that replaces the step in the gradient of a smooth ReLU (chosen, not tuned).
SHARPNESS = 10.0
_rule = contextvars.ContextVar("rule", default=PLAIN)


@contextlib.contextmanager
def gradient_rule(rule: Rule) -> Iterator[None]:
    """Networks that are traced within it are differentiated by a rule.

    The rule is part of the key of `jit`, so a jitted network is traced again.
    """
    token = _rule.set(rule)
    try:
        # The metadata is part of the key of `jit`.
        with set_xla_metadata(tl_gradients=repr(rule)):
            yield
    finally:
        _rule.reset(token)


def redirected_gradients() -> contextlib.AbstractContextManager[None]:
    """Makes ReLUs pass on the incoming gradient of images for which their own gradient is zero.

    A unit that is inactive at every position gives the image no gradient, and its feature
    visualization stays gray. Within this context, an image whose gradient through a ReLU would be
    zero everywhere receives the incoming gradient, except where that would push an inactive unit
    further down (or, at 6, further up). Gradient ascent can then activate the unit. Values do not
    change. Intended for the first steps of an ascent.

    The context applies to networks that are traced within it; it is part of the key of `jit`, so a
    jitted network is traced again.

    Reference: lucid, `lucid/misc/redirected_relu_grad.py` (Apache-2.0), with the opposite sign,
    because lucid minimizes.
    """
    return gradient_rule(Rule(relu="redirected"))


def guided_gradients() -> contextlib.AbstractContextManager[None]:
    """Makes ReLUs pass on positive gradients only: guided backpropagation.

    Values do not change, and other activations (swish, hard swish) keep their gradient. The context
    applies as that of `redirected_gradients`.

    Reference: Springenberg et al. 2015, arXiv:1412.6806, section 3.4.
    """
    return gradient_rule(Rule(relu="guided"))


def smooth_gradients() -> contextlib.AbstractContextManager[None]:
    """Makes the gradient of ReLUs that of a softplus, so that it can be differentiated itself.

    The gradient of a network of ReLUs is constant almost everywhere. Values do not change. The
    context applies as that of `redirected_gradients`.

    Reference: Ghorbani et al. 2019, arXiv:1710.10547, section 4, who replace the values, too.
    """
    return gradient_rule(Rule(relu="smooth"))


def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), with gradient 0 at 0."""
    return _ruled(x, math.inf, name) if (name := _rule.get().relu) else jax.nn.relu(x)


def relu6(x: jax.Array) -> jax.Array:
    """min(max(x, 0), 6), with gradient 0 at 0 and at 6, as in torch.

    `jnp.clip` has the gradient 1/2 there, and is slower.

    Reference: Sandler et al. 2018, arXiv:1801.04381, section 3.
    """
    return _ruled(x, 6.0, name) if (name := _rule.get().relu) else _relu6(x)


@jax.custom_jvp
def _relu6(x: jax.Array) -> jax.Array:
    return jnp.minimum(jnp.maximum(x, 0.0), 6.0)


@_relu6.defjvp
def _relu6_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (t,) = primals, tangents
    return _relu6(x), jnp.where((x > 0.0) & (x < 6.0), t, jnp.zeros_like(t))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _ruled(x: jax.Array, top: float, rule: str) -> jax.Array:
    return jnp.minimum(jnp.maximum(x, 0.0), top)


def _ruled_fwd(x: jax.Array, top: float, rule: str) -> tuple[jax.Array, jax.Array]:
    return _ruled(x, top, rule), x


def _ruled_bwd(top: float, rule: str, x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    if rule == "smooth":
        return (g * (jax.nn.sigmoid(SHARPNESS * x) - jax.nn.sigmoid(SHARPNESS * (x - top))),)
    zero = jnp.zeros_like(g)
    plain = jnp.where((x > 0.0) & (x < top), g, zero)
    if rule == "guided":
        return (jnp.maximum(plain, zero),)
    useful = jnp.where(((x < 0.0) & (g < 0.0)) | ((x > top) & (g > 0.0)), zero, g)
    per_image = tuple(range(1, x.ndim))
    silent = jnp.all(plain == 0.0, axis=per_image, keepdims=True)
    return (jnp.where(silent, useful, plain),)


_ruled.defvjp(_ruled_fwd, _ruled_bwd)


def affine(linear: Linear, x: jax.Array, kernel: jax.Array, offset: jax.Array | None) -> jax.Array:
    """`linear(x, kernel) + offset` in float32; `offset` f32[o] belongs to the last axis.

    Under a rule with parts, the cotangent of a value is its relevance divided by the value. The
    relevance of an input is then the input times its cotangent, and every other piecewise linear
    operation (ReLU, pooling, concatenation) keeps its gradient. Parameters have no gradient.
    """
    rule = _rule.get()
    parts = rule.conv if kernel.ndim == 4 else rule.dense
    if parts:
        offset = jnp.zeros(kernel.shape[-1]) if offset is None else offset
        return _relevance(x, kernel, offset, linear, parts, rule.epsilon)
    y = linear(x, kernel).astype(jnp.float32)
    return y if offset is None else y + offset[(None,) * (y.ndim - 1)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _relevance(
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    linear: Linear,
    parts: tuple[Part, ...],
    epsilon: float,
) -> jax.Array:
    y = linear(x, kernel).astype(jnp.float32)
    return y + offset[(None,) * (y.ndim - 1)]


_Inputs = tuple[jax.Array, jax.Array, jax.Array]


def _relevance_fwd(
    x: jax.Array, kernel: jax.Array, offset: jax.Array, linear: Linear, *options: object
) -> tuple[jax.Array, tuple[_Inputs, jax.Array]]:
    y: Any = _relevance(x, kernel, offset, linear, *options)
    return y, ((x, kernel, offset), y)


def _relevance_bwd(
    linear: Linear,
    parts: tuple[Part, ...],
    epsilon: float,
    residuals: tuple[_Inputs, jax.Array],
    g: jax.Array,
) -> _Inputs:
    (x, kernel, offset), y = residuals
    relevance = g * y
    shares = [_share(linear, part, epsilon, x, kernel, offset, relevance) for part in parts]
    return functools.reduce(jnp.add, shares), jnp.zeros_like(kernel), jnp.zeros_like(offset)


def _share(
    linear: Linear,
    part: Part,
    epsilon: float,
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array,
    relevance: jax.Array,
) -> jax.Array:
    """The relevance of x that a part propagates, divided by x."""

    def weigh(w: jax.Array, up: float, down: float) -> jax.Array:
        return up * jnp.maximum(w, 0.0) + down * jnp.minimum(w, 0.0)

    def contributions(x: jax.Array) -> jax.Array:
        # The sign of a contribution is that of x times that of the weight.
        above = weigh(kernel, part.positive, part.negative)
        if part.positive == part.negative:
            return linear(x, above)
        below = weigh(kernel, part.negative, part.positive)
        return linear(jnp.maximum(x, 0.0), above) + linear(jnp.minimum(x, 0.0), below)

    sums, back = jax.vjp(contributions, x)
    sums = sums + weigh(offset, part.positive, part.negative)[(None,) * (sums.ndim - 1)]
    stable = sums + jnp.where(sums < 0, -epsilon, epsilon)
    return back(part.share * relevance / stable)[0]


_relevance.defvjp(_relevance_fwd, _relevance_bwd)
