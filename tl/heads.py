"""What turns a backbone's features into logits. A head is its own subtree, `params/head`, and is never loaded by default.

An architecture's own classifier, where it is more than one linear layer, stands in its file in `tl.backbones`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
from flax import linen as nn

from tl.backbones.layers import dense_params
from tl.backbones.spec import BackboneSpec


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


def own(spec: BackboneSpec) -> Callable[[int], nn.Module]:
    """The architecture's own classifier, as its paper has it: `classes -> module`."""
    return spec.head or Linear


def maker(kind: str, spec: BackboneSpec) -> Callable[[int], nn.Module]:
    """A head by name: "linear", "flat", or "own", the architecture's."""
    return {"linear": Linear, "flat": Flat, "own": own(spec)}[kind]
