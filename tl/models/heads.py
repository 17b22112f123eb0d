"""Heads: modules that map the features of a backbone to logits.

Their parameters are the subtree `params/head`. A paper's classifier of more than one linear layer
is defined next to its architecture, in `tl.backbones`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from tl.backbones.gradients import relu
from tl.backbones.layers import Dense, dense, dense_params
from tl.backbones.spec import BackboneSpec
from tl.paths import nearest


class Linear(nn.Module):
    """One dense layer on the pooled features, initialized to zero (equal probabilities).

    Reference: Kolesnikov et al. 2020, arXiv:1912.11370 (BiT).
    """

    classes: int

    @nn.compact
    def __call__(self, features: jax.Array, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        del endpoints
        kernel, bias = dense_params(self, features.shape[-1], self.classes, nn.initializers.zeros)
        return dense(features, kernel, bias)


class Flat(nn.Module):
    """One dense layer on the flattened last feature map, initialized to zero.

    Like Keras' `Flatten` and `Dense`, it accepts only one image size.
    """

    classes: int

    @nn.compact
    def __call__(self, features: jax.Array, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        last = list(endpoints.values())[-1].astype(features.dtype)
        x = last.reshape(last.shape[0], -1)
        kernel, bias = dense_params(self, x.shape[-1], self.classes, nn.initializers.zeros)
        return dense(x, kernel, bias)


class MLP(nn.Module):
    """Two dense layers with a ReLU between them, the last initialized to zero.

    The default `width` is chosen, not tuned.
    """

    classes: int
    width: int = 512

    @nn.compact
    def __call__(self, features: jax.Array, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        hidden = relu(Dense(self.width, name="hidden")(features))
        return Linear(self.classes, name="logits")(hidden, endpoints)


class ConcatPool(nn.Module):
    """One dense layer on the mean and maximum of the last feature map, initialized to zero.

    Reference: fastai's `AdaptiveConcatPool2d`.
    """

    classes: int

    @nn.compact
    def __call__(self, features: jax.Array, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        highest = list(endpoints.values())[-1].astype(features.dtype).max(axis=(1, 2))
        return Linear(self.classes, name="logits")(
            jnp.concatenate([features, highest], axis=1), endpoints
        )


class Cosine(nn.Module):
    """Cosine similarity between the features and a direction per class, times a learned scale.

    The scale starts at 10 (chosen, not tuned).

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
    """The classifier of the architecture's paper, as a function `classes -> module`."""
    return spec.head or Linear


def maker(kind: str, spec: BackboneSpec) -> Callable[[int], nn.Module]:
    """The constructor `classes -> module` of a kind of head.

    Args:
      kind: a name of `KINDS`, or "own" for the classifier of the architecture's paper.
      spec: the architecture, read for "own".

    Raises:
      ValueError: unknown kind; the message lists the nearest names.
    """
    if kind not in KINDS and kind != "own":
        raise ValueError(f"unknown head {kind!r}; nearest: {nearest(kind, [*KINDS, 'own'])}")
    return KINDS.get(kind) or own(spec)


def kind(head: nn.Module) -> str:
    """The kind of a head, as `maker` takes it."""
    return next((name for name, cls in KINDS.items() if type(head) is cls), "own")


def pooled(head: nn.Module) -> bool:
    """Whether a head reads only the pooled features, and no endpoint."""
    return kind(head) in ("linear", "mlp", "cosine")


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "linear": Linear,
    "mlp": MLP,
    "concat": ConcatPool,
    "cosine": Cosine,
    "flat": Flat,
}
"""Kind -> constructor. The additional kind "own" is the classifier of the architecture's paper."""
