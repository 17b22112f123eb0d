"""The blocks that several families share: convolution + BatchNorm, and the inverted residual.

In `Mode.EVAL` a BatchNorm is an affine map with constant coefficients, so it is folded into the kernel: the big
activation is written once, and gradients with respect to image, kernel, scale and bias stay those of the unfolded form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from tl import ops
from tl.types import Mode

Padding = Literal["torch", "same"]
"""Where a window's padding goes: "torch" pads k // 2 on every side; "same" is TensorFlow's, more after than before."""


def pads(size: tuple[int, int], window: int, stride: int, padding: Padding) -> tuple[tuple[int, int], tuple[int, int]]:
    """Explicit ((top, bottom), (left, right)) pads of a window over `size` = (h, w)."""
    if padding == "same":
        return ops.same_padding(size, window=window, stride=stride)
    return (window // 2, window // 2), (window // 2, window // 2)


def he_normal(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Kernels f32[kh kw i o] from a normal distribution of variance 2 / (kh kw o).

    Drawn flat, which gives the same numbers: for four dimensions XLA compiles seconds on a CPU, for each kernel.
    Reference: He et al. 2015, arXiv:1502.01852, section 2.2, equation 14.
    """
    h, w, _, o = shape
    return (jax.random.normal(key, (math.prod(shape),)) * math.sqrt(2.0 / (h * w * o))).reshape(shape)


@jax.custom_jvp
def relu6(x: jax.Array) -> jax.Array:
    """min(max(x, 0), 6), with gradient 0 at both corners, as torch has it (`jnp.clip` gives a half there, and is slower).

    Reference: Sandler et al. 2018, arXiv:1801.04381, section 3.
    """
    return jnp.minimum(jnp.maximum(x, 0.0), 6.0)


@relu6.defjvp
def _relu6_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (t,) = primals, tangents
    return relu6(x), jnp.where((x > 0.0) & (x < 6.0), t, jnp.zeros_like(t))


class Norm(nn.Module):
    """BatchNorm: params `scale`, `bias`; batch_stats `mean`, `var` (f32[c]).

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2. As in torch, the running variance is the
    unbiased one; `momentum` is the share that the new batch brings (torch's 0.1), where Flax states the share that stays.
    """

    channels: int
    eps: float = 1e-5
    momentum: float = 0.1

    def setup(self) -> None:
        shape = (self.channels,)
        self.scale = self.param("scale", nn.initializers.ones, shape)
        self.bias = self.param("bias", nn.initializers.zeros, shape)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        self.var = self.variable("batch_stats", "var", jnp.ones, shape)

    def affine(self) -> tuple[jax.Array, jax.Array]:
        """`(gain, offset)` f32[c] of the evaluation mode: y = gain * x + offset."""
        gain = self.scale * jax.lax.rsqrt(self.var.value + self.eps)
        return gain, self.bias - self.mean.value * gain

    def batch(self, x: jax.Array) -> jax.Array:
        """The training mode: the batch's own mean and variance normalise; the running ones are updated if mutable."""
        axes, count = (0, 1, 2), x.shape[0] * x.shape[1] * x.shape[2]
        mean = jnp.mean(x, axes)
        centred = x - mean[None, None, None]
        var = jnp.mean(jnp.square(centred), axes)
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            unbiased = var * (count / max(count - 1, 1))
            self.mean.value = (1 - self.momentum) * self.mean.value + self.momentum * mean
            self.var.value = (1 - self.momentum) * self.var.value + self.momentum * unbiased
        gain = self.scale * jax.lax.rsqrt(var + self.eps)
        return centred * gain[None, None, None] + self.bias[None, None, None]


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, activation: params `kernel` (HWIO), `norm/scale`, `norm/bias`."""

    channels: int
    window: int = 3
    stride: int = 1
    groups: int = 1
    eps: float = 1e-5
    padding: Padding = "torch"
    activation: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        k, c = self.window, x.shape[-1]
        kernel = self.param("kernel", he_normal, (k, k, c // self.groups, self.channels))
        norm = Norm(self.channels, self.eps, name="norm")
        padding = pads((x.shape[1], x.shape[2]), k, self.stride, self.padding)
        if mode is Mode.EVAL:
            gain, offset = norm.affine()
            folded = kernel * gain[None, None, None]
            y = (
                ops.conv2d(x, folded, stride=self.stride, padding=padding, groups=self.groups)
                + offset[None, None, None]
            )
        else:
            y = norm.batch(ops.conv2d(x, kernel, stride=self.stride, padding=padding, groups=self.groups))
        return y if self.activation is None else self.activation(y)


class Stage(nn.Module):
    """Blocks in a row, children `block0`, `block1`, ...; adds each output to `ends` by its path, and the last as its own.

    Attributes:
      blocks: makers of Linen modules, each called with `name=`; the modules are called with `(x, mode)`.
    """

    blocks: Sequence[Callable[..., nn.Module]]
    prefix: str = "block"

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> tuple[jax.Array, dict[str, jax.Array]]:
        ends = {}
        for i, make in enumerate(self.blocks):
            name = f"{self.prefix}{i}"
            x = ends[f"{self.name}/{name}"] = make(name=name)(x, mode)
        return x, {**ends, str(self.name): x}


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise k x k, project 1x1, with a shortcut where shapes agree.

    Reference: Sandler et al. 2018, arXiv:1801.04381, figure 4 and table 1. With `expand` = 1 there is no first 1x1.
    """

    channels: int
    expand: int
    window: int = 3
    stride: int = 1
    eps: float = 1e-5
    padding: Padding = "torch"

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        width = x.shape[-1] * self.expand
        y = x
        if self.expand != 1:
            y = ConvNorm(width, 1, eps=self.eps, activation=relu6, name="expand_conv")(y, mode)
        y = ConvNorm(
            width, self.window, self.stride, width, self.eps, self.padding, activation=relu6, name="depthwise_conv"
        )(y, mode)
        y = ConvNorm(self.channels, 1, eps=self.eps, name="project_conv")(y, mode)
        return x + y if x.shape == y.shape else y
