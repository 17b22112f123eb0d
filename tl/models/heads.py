"""What turns a backbone's features into logits. A head is its own subtree, `params/head`, and is never loaded by default.

An architecture's own classifier, where it is more than one linear layer, stands in its file in `tl.backbones`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from tl.backbones.layers import Dense, dense_params, relu
from tl.backbones.spec import BackboneSpec
from tl.paths import nearest


class Linear(nn.Module):
    """One dense layer on the pooled features, zero at first so that training starts from even odds.

    Reference: the zero-initialised head is BiT's (Kolesnikov et al. 2020, arXiv:1912.11370).
    """

    classes: int

    @nn.compact
    def __call__(self, features: jax.Array, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        del endpoints
        kernel, bias = dense_params(self, features.shape[-1], self.classes, nn.initializers.zeros)
        return features @ kernel + bias[None]


class Flat(nn.Module):
    """One dense layer on the whole last map, row by row: Keras' `Flatten` and `Dense`. It fits one size of input."""

    classes: int

    @nn.compact
    def __call__(self, features: jax.Array, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        last = list(endpoints.values())[-1].astype(features.dtype)
        x = last.reshape(last.shape[0], -1)
        kernel, bias = dense_params(self, x.shape[-1], self.classes, nn.initializers.zeros)
        return x @ kernel + bias[None]


class MLP(nn.Module):
    """Two dense layers with a ReLU between, the last zero at first; `width` is chosen, not tuned."""

    classes: int
    width: int = 512

    @nn.compact
    def __call__(self, features: jax.Array, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        hidden = relu(Dense(self.width, name="hidden")(features))
        return Linear(self.classes, name="logits")(hidden, endpoints)


class ConcatPool(nn.Module):
    """One dense layer on mean and maximum over the last map, zero at first. Reference: fastai's `AdaptiveConcatPool2d`."""

    classes: int

    @nn.compact
    def __call__(self, features: jax.Array, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        highest = list(endpoints.values())[-1].astype(features.dtype).max(axis=(1, 2))
        return Linear(self.classes, name="logits")(
            jnp.concatenate([features, highest], axis=1), endpoints
        )


class Cosine(nn.Module):
    """Cosines between features and a direction for each class, times a learned scale that starts at 10 (chosen, not tuned).

    Reference: Gidaris & Komodakis 2018, arXiv:1804.09458, section 3.2.
    """

    classes: int

    @nn.compact
    def __call__(self, features: jax.Array, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        del endpoints
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (features.shape[-1], self.classes)
        )
        scale = self.param("scale", nn.initializers.constant(10.0), (1,))
        return scale[None] * (_unit(features, 1) @ _unit(kernel, 0))


def _unit(x: jax.Array, axis: int) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True) + 1e-12)


def own(spec: BackboneSpec) -> Callable[[int], nn.Module]:
    """The architecture's own classifier, as its paper has it: `classes -> module`."""
    return spec.head or Linear


def maker(kind: str, spec: BackboneSpec) -> Callable[[int], nn.Module]:
    """A head by a name of `KINDS`.

    Raises:
      ValueError: no such head; gives the nearest.
    """
    if kind not in KINDS and kind != "own":
        raise ValueError(f"unknown head {kind!r}; nearest: {nearest(kind, [*KINDS, 'own'])}")
    return KINDS.get(kind) or own(spec)


def kind(head: nn.Module) -> str:
    """The name of a head, as `maker` takes it."""
    return next((name for name, made in KINDS.items() if type(head) is made), "own")


def pooled(head: nn.Module) -> bool:
    """Whether a head reads the pooled features alone, and no endpoint."""
    return kind(head) in ("linear", "mlp", "cosine")


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "linear": Linear,
    "mlp": MLP,
    "concat": ConcatPool,
    "cosine": Cosine,
    "flat": Flat,
}
"""Heads for new classes; "own" is the architecture's classifier, as its paper has it."""
