"""What turns a backbone's features into logits. A head is its own subtree, `params/head`, and is never loaded by default."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn


def dense_params(module: nn.Module, d: int, k: int, init: nn.initializers.Initializer) -> tuple[jax.Array, jax.Array]:
    """`kernel` f32[d k] and `bias` f32[k] of a module."""
    return module.param("kernel", init, (d, k)), module.param("bias", nn.initializers.zeros, (k,))


class Dense(nn.Module):
    """x @ kernel + bias: params `kernel` f32[d k], `bias` f32[k]."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = dense_params(self, x.shape[-1], self.features, nn.initializers.he_normal())
        return x @ kernel + bias[None]


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


class VGGTop(nn.Module):
    """VGG's own classifier: the last 7x7 map, flattened row by row, through 4096, 4096 and k units.

    As in torchvision other map sizes are averaged to 7x7 (adaptive pooling); dropout is left out, as at test time.
    Reference: Simonyan & Zisserman 2015, arXiv:1409.1556, section 2.1.
    """

    classes: int
    width: int = 4096

    @nn.compact
    def __call__(self, features: jax.Array, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        del features
        x = adaptive_mean(endpoints["stage5"], 7)
        x = x.reshape(x.shape[0], -1)
        x = jax.nn.relu(Dense(self.width, name="fc6")(x))
        x = jax.nn.relu(Dense(self.width, name="fc7")(x))
        return Dense(self.classes, name="fc8")(x)


def adaptive_mean(x: jax.Array, size: int) -> jax.Array:
    """torch's `AdaptiveAvgPool2d`: f32[b h w c] -> f32[b size size c], bins from floor(i h / n) to ceil((i + 1) h / n)."""

    def weights(length: int) -> jax.Array:
        rows = []
        for i in range(size):
            first, last = i * length // size, -((i + 1) * length // -size)
            rows.append([1.0 / (last - first) if first <= j < last else 0.0 for j in range(length)])
        return jnp.asarray(rows, jnp.float32)

    if x.shape[1:3] == (size, size):
        return x
    return jnp.einsum("ih,bhwc,jw->bijc", weights(x.shape[1]), x, weights(x.shape[2]))
