"""Layers that several families share: convolution, BatchNorm, dense, activations, stages.

The compute type is that of the input. Parameters and statistics are float32; kernels are cast when
they are used; BatchNorm and bias are applied to the output of a convolution in float32.

In `Mode.EVAL` a BatchNorm is an affine map with constant coefficients and is folded into the
kernel. The large activation is then written once, and the gradients with respect to image, kernel,
scale and bias equal those of the unfolded form. After `fold_batch_norm` the variables hold no
BatchNorm, and the layers adapt to that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from tl import ops
from tl.backbones.gradients import affine, relu6
from tl.types import Mode

Padding = Literal["torch", "same", "after", "valid"]
"""Padding of a window of side k.

- "torch": k // 2 on every side.
- "same": TensorFlow's rule, with an odd pixel at the bottom and right.
- "after": the rule of Keras' MobileNet: "same" at stride 1, otherwise one pixel at the bottom and
  right, whatever the size.
- "valid": no padding.
"""

Activation = Callable[[jax.Array], jax.Array]


class NormSpec(NamedTuple):
    """The constants of a BatchNorm.

    Attributes:
      eps: added to the variance.
      momentum: weight of a new batch in the running statistics, as in torch; in Keras and Flax the
        momentum is one minus this.
      unbiased: whether the running variance is the unbiased estimate; it is in torch, but not in
        Keras.
    """

    eps: float = 1e-5
    momentum: float = 0.1
    unbiased: bool = True


def divisible(width: float, by: int = 8) -> int:
    """The multiple of `by` nearest to a width; at least `by`, and at least 90 % of the width.

    Reference: `_make_divisible` of the MobileNet authors (TensorFlow models, slim/nets/mobilenet),
    as in torchvision, timm and Keras.
    """
    rounded = max(by, int(width + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * width else rounded


def pads(
    size: tuple[int, int], window: int, stride: int, padding: Padding
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The explicit padding of a window over `size` = (h, w): `((top, bottom), (left, right))`."""
    if padding == "valid":
        return ops.NO_PADDING
    if padding == "after" and stride > 1:
        return (0, 1), (0, 1)
    if padding != "torch":
        return ops.same_padding(size, window=window, stride=stride)
    return (window // 2, window // 2), (window // 2, window // 2)


def he_normal(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Kernels f32[kh kw i o] from a normal distribution with variance 2 / (kh kw o).

    The kernel is drawn flat and then reshaped, which gives the same numbers. With four dimensions,
    XLA takes seconds to compile each kernel on a CPU.

    Reference: He et al. 2015, arXiv:1502.01852, section 2.2, equation 14.
    """
    h, w, _, o = shape
    return (jax.random.normal(key, (math.prod(shape),)) * math.sqrt(2.0 / (h * w * o))).reshape(
        shape
    )


def scaled(kernel: jax.Array, gain: jax.Array) -> jax.Array:
    """`kernel` f32[kh kw i o] times `gain` f32[o].

    A custom gradient rule computes the sum over the kernel as a matrix product, because XLA on a
    CPU fuses a plain sum with the gradient of the convolution before it and computes that gradient
    twice.
    """
    return ops.bilinear(_SCALED, kernel, gain)


def _scale(kernel: jax.Array, gain: jax.Array) -> jax.Array:
    return kernel * gain[None, None, None]


def _gain_grad(kernel: jax.Array, g: jax.Array) -> jax.Array:
    flat = (-1, g.shape[-1])
    return jnp.einsum("ko,ko->o", g.reshape(flat), kernel.reshape(flat))


_SCALED = ops.Form(_scale, _scale, _gain_grad)


def hard_sigmoid(x: jax.Array) -> jax.Array:
    """relu6(x + 3) / 6.

    Reference: Howard et al. 2019, arXiv:1905.02244, section 5.2.
    """
    return relu6(x + 3.0) / 6.0


def hard_swish(x: jax.Array) -> jax.Array:
    """x relu6(x + 3) / 6.

    Reference: Howard et al. 2019, arXiv:1905.02244, section 5.2.
    """
    return x * hard_sigmoid(x)


def dense_params(
    module: nn.Module, d: int, k: int, init: nn.initializers.Initializer
) -> tuple[jax.Array, jax.Array]:
    """Defines the parameters `kernel` f32[d k] and `bias` f32[k] of a module."""
    return module.param("kernel", init, (d, k)), module.param("bias", nn.initializers.zeros, (k,))


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x @ kernel + bias over the last axis: f32[... d] -> f32[... k]."""
    return affine(jnp.matmul, x, kernel, bias)


class Dense(nn.Module):
    """x @ kernel + bias over the last axis, in float32.

    Parameters: `kernel` f32[d k], `bias` f32[k].
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = dense_params(self, x.shape[-1], self.features, nn.initializers.he_normal())
        return dense(x.astype(jnp.float32), kernel, bias)


class Norm(nn.Module):
    """BatchNorm. Parameters: `scale`, `bias`; statistics: `mean`, `var`; all f32[c].

    Without statistics, after `fold_batch_norm`, it is the affine map `scale * x + bias`.

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2.
    """

    channels: int
    spec: NormSpec = NormSpec()

    def setup(self) -> None:
        shape = (self.channels,)
        self.folded = not self.is_initializing() and not self.has_variable("batch_stats", "mean")
        self.scale = self.param("scale", nn.initializers.ones, shape)
        self.bias = self.param("bias", nn.initializers.zeros, shape)
        if not self.folded:
            self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
            self.var = self.variable("batch_stats", "var", jnp.ones, shape)

    def __call__(self, x: jax.Array, mode: Mode, valid: jax.Array | None = None) -> jax.Array:
        """A BatchNorm without a convolution before it: f32 or bf16[b h w c] -> f32[b h w c]."""
        if mode is Mode.EVAL or self.folded:
            gain, offset = self.affine()
            return x.astype(jnp.float32) * gain[None, None, None] + offset[None, None, None]
        return self.batch(x, valid)

    def affine(self) -> tuple[jax.Array, jax.Array]:
        """`(gain, offset)`, f32[c] each, of `Mode.EVAL`: y = gain * x + offset."""
        if self.folded:
            return self.scale, self.bias
        gain = self.scale * jax.lax.rsqrt(self.var.value + self.spec.eps)
        return gain, self.bias - self.mean.value * gain

    def batch(self, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """`Mode.TRAIN`: normalizes with batch statistics; updates the running ones if mutable.

        Padded slots, where `valid` bool[b] is False, do not count in the statistics. Their output
        is the bias, so it does not depend on the other images and cannot overflow. A batch of
        padding alone does not change the running statistics.
        """
        axes, positions = (0, 1, 2), x.shape[1] * x.shape[2]
        x = x.astype(jnp.float32)
        if valid is None:
            count = jnp.float32(x.shape[0] * positions)
            mean = jnp.mean(x, axes)
            centered = x - mean[None, None, None]
            var = jnp.mean(jnp.square(centered), axes)
        else:
            count = jnp.sum(valid.astype(jnp.float32)) * positions
            keep, divisor = valid[:, None, None, None], jnp.maximum(count, 1.0)
            mean = jnp.sum(jnp.where(keep, x, 0.0), axes) / divisor
            centered = jnp.where(keep, x - mean[None, None, None], 0.0)
            var = jnp.sum(jnp.square(centered), axes) / divisor
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            new, old = self.spec.momentum, 1 - self.spec.momentum
            running = var * (count / jnp.maximum(count - 1.0, 1.0)) if self.spec.unbiased else var
            for variable, value in ((self.mean, mean), (self.var, running)):
                moved = old * variable.value + new * value
                is_empty = False if valid is None else count == 0.0
                variable.value = jnp.where(is_empty, variable.value, moved)
        gain = self.scale * jax.lax.rsqrt(var + self.spec.eps)
        return centered * gain[None, None, None] + self.bias[None, None, None]


class Conv(nn.Module):
    """Convolution with bias, then the activation; the output has the dtype of the input.

    Parameters: `kernel` (HWIO), `bias`.
    """

    channels: int
    window: int = 3
    stride: int = 1
    padding: Padding = "torch"
    activation: Activation | None = None

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        del mode  # only BatchNorm depends on it
        kernel = self.param(
            "kernel", he_normal, (self.window, self.window, x.shape[-1], self.channels)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        padding = pads((x.shape[1], x.shape[2]), self.window, self.stride, self.padding)
        conv = functools.partial(ops.conv2d, stride=self.stride, padding=padding)
        return _finish(conv, x, kernel, bias, self.activation)


class ConvNorm(nn.Module):
    """Convolution, BatchNorm, activation.

    Parameters: `kernel` (HWIO), `norm/scale`, `norm/bias`, and `bias` if the field `bias` is set.
    After `fold_batch_norm` they are `kernel` and `bias`, and the mode has no effect.
    """

    channels: int
    window: int = 3
    stride: int = 1
    groups: int = 1
    norm: NormSpec = NormSpec()
    padding: Padding = "torch"
    activation: Activation | None = None
    bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode, valid: jax.Array | None = None) -> jax.Array:
        k, c = self.window, x.shape[-1]
        folded = not self.is_initializing() and not self.has_variable("params", "norm")
        kernel = self.param("kernel", he_normal, (k, k, c // self.groups, self.channels))
        bias = (
            self.param("bias", nn.initializers.zeros, (self.channels,))
            if folded or self.bias
            else None
        )

        padding = pads((x.shape[1], x.shape[2]), k, self.stride, self.padding)
        conv = functools.partial(
            ops.conv2d, stride=self.stride, padding=padding, groups=self.groups
        )
        if folded:
            return _finish(conv, x, kernel, bias, self.activation)
        norm = Norm(self.channels, self.norm, name="norm")
        if mode is Mode.EVAL:
            gain, offset = norm.affine()
            offset = offset if bias is None else offset + gain * bias
            return _finish(conv, x, scaled(kernel, gain), offset, self.activation)
        y = conv(x, kernel.astype(x.dtype)).astype(jnp.float32)
        y = norm.batch(y if bias is None else y + bias[None, None, None], valid)
        return (y if self.activation is None else self.activation(y)).astype(x.dtype)


def _finish(
    conv: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    offset: jax.Array | None,
    activation: Activation | None,
) -> jax.Array:
    """Convolution, offset and activation, the last two in float32; the result has x's dtype."""
    z = affine(conv, x, kernel.astype(x.dtype), offset)
    return (z if activation is None else activation(z)).astype(x.dtype)


class Stage(nn.Module):
    """A sequence of blocks, named `block0`, `block1`, ...

    Returns the output of the last block, and the endpoints: the output of every block under its
    path, and the last under the name of the stage.

    Attributes:
      blocks: constructors of Linen modules, called with `name=`; the modules take `(x, mode)`.
      prefix: prefix of the names of the blocks.
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


Part = Callable[[jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def chain(
    parts: Mapping[str, Part], x: jax.Array, start: str
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs the parts of a backbone in order.

    Args:
      parts: name -> function from a feature map to `(feature map, inner endpoints)`.
      x: the network's inputs, or the endpoint `start`.
      start: the part that returned `x`; the parts up to it are skipped. "" runs all.

    Returns:
      `(features, endpoints)`; the endpoints include `start`.
    """
    names = list(parts)
    ends = {start: x} if start else {}
    for name in names[names.index(start) + 1 :] if start else names:
        x, inner = parts[name](x)
        ends |= {**inner, name: x}
    return pooled(x), ends


def pooled(x: jax.Array) -> jax.Array:
    """Mean over height and width in float32: [b h w c] -> f32[b c]."""
    return ops.global_mean(x.astype(jnp.float32))
