"""Convolution and pooling that are fast on every platform: the only module of `tl` that knows where it runs.

On TPU and GPU each operation is the plain `lax` one. On a CPU XLA's lowering of some convolutions is far from what the
machine can do, so those get another form of the same sum. The choice is made while lowering
(`jax.lax.platform_dependent`), so one traced program, or one exported module, serves all platforms.

What this module does NOT do: no parameters, no layers, no normalisation, no activation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
NO_PADDING: Padding = ((0, 0), (0, 0))


def same_padding(size: Pair, *, window: int, stride: int) -> Padding:
    """Padding of TensorFlow's `SAME` rule: `ceil(size / stride)` outputs, the odd pixel at the bottom and right.

    Args:
        size: height and width of the input, in pixels.
        window: side of the square window.
        stride: step of the window.

    Returns:
        `((top, bottom), (left, right))`, what `conv2d` and `max_pool` take.

    Example:
        >>> same_padding((224, 224), window=3, stride=2)
        ((0, 1), (0, 1))
    """

    def one(n: int) -> Pair:
        total = max((-(-n // stride) - 1) * stride + window - n, 0)
        return total // 2, total - total // 2

    return one(size[0]), one(size[1])


def global_mean(x: Array) -> Array:
    """Mean over the picture: `f32[b h w c] -> f32[b c]`."""
    return jnp.mean(x, axis=(1, 2))


def conv2d(x: Array, kernel: Array, *, stride: int = 1, padding: Padding = NO_PADDING, groups: int = 1) -> Array:
    """Cross-correlation of pictures with a kernel, what networks call a convolution.

    The same numbers as `lax.conv_general_dilated` with NHWC pictures and HWIO kernels, up to the order of the sums.
    Differentiable any number of times in reverse mode; forward mode (`jax.jvp`) is not supported.

    Args:
        x: f32[b h w c].
        kernel: f32[kh kw c/groups o].
        stride: step of the window, the same in both directions.
        padding: zeros around the picture, `((top, bottom), (left, right))`.
        groups: number of channel groups; `c` for a depthwise convolution.

    Returns:
        f32[b h' w' o] with `h' = (h + top + bottom - kh) // stride + 1`.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(f"got x of shape {x.shape} and kernel {kernel.shape}; expected x [b h w c], kernel [kh kw c/groups o]")
    if x.shape[3] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(
            f"got {x.shape[3]} channels, {groups} groups and a kernel of shape {kernel.shape}; "
            "expected kernel [kh kw c/groups o] with o a multiple of groups"
        )
    pads = ((int(padding[0][0]), int(padding[0][1])), (int(padding[1][0]), int(padding[1][1])))
    return _conv(x, kernel, int(stride), pads, int(groups))


def max_pool(x: Array, *, window: int, stride: int, padding: Padding = NO_PADDING) -> Array:
    """Largest value of each channel in a sliding window; the border counts as minus infinity.

    Where several pixels of a window share the largest value, the gradient goes to the first of them in row-major
    order, as in lax and torch.

    Args:
        x: f32[b h w c].
        window: side of the square window.
        stride: step of the window.
        padding: `((top, bottom), (left, right))`.

    Returns:
        f32[b h' w' c].
    """
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), ((0, 0), *padding, (0, 0))
    )


# --- the switch ------------------------------------------------------------------------------------------------------
# The rule for gradients sits outside the choice of platform, so that a first derivative never differentiates a `cond`.


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: Array, kernel: Array, stride: int, padding: Padding, groups: int) -> Array:
    plain, cpu = _forms(x.shape, kernel.shape, stride, padding, groups)
    return lax.platform_dependent(x, kernel, cpu=cpu.forward, default=plain.forward)


def _conv_fwd(x: Array, kernel: Array, stride: int, padding: Padding, groups: int):
    return _conv(x, kernel, stride, padding, groups), (x, kernel)


def _conv_bwd(stride: int, padding: Padding, groups: int, residuals: tuple[Array, Array], g: Array):
    x, kernel = residuals
    plain, cpu = _forms(x.shape, kernel.shape, stride, padding, groups)
    dx = lax.platform_dependent(g, kernel, cpu=cpu.input_grad, default=plain.input_grad)
    dk = lax.platform_dependent(x, g, cpu=cpu.kernel_grad, default=plain.kernel_grad)
    return dx, dk


_conv.defvjp(_conv_fwd, _conv_bwd)


class _Form(NamedTuple):
    """One way to compute a convolution of fixed shapes: three bilinear maps."""

    forward: Callable[[Array, Array], Array]  # x, kernel -> y
    input_grad: Callable[[Array, Array], Array]  # g, kernel -> dx
    kernel_grad: Callable[[Array, Array], Array]  # x, g -> dkernel


def _forms(x_shape, k_shape, stride: int, padding: Padding, groups: int) -> tuple[_Form, _Form]:
    """The plain form (all platforms) and the one for CPUs."""
    args = (x_shape, k_shape, stride, padding)
    plain = _by_autodiff(partial(_lax_conv, stride=stride, padding=padding, groups=groups), x_shape, k_shape)
    kh, kw, per_group, out = k_shape
    if groups == 1 and kh == kw == 1:
        return plain, _pointwise(*args)
    if groups == x_shape[3] == out and per_group == 1:
        return plain, _depthwise(*args)
    if groups == 1 and stride == 2 and x_shape[3] <= 4:
        return plain, _by_autodiff(partial(_space_to_depth_conv, padding=padding), x_shape, k_shape)
    return plain, plain


def _lax_conv(x: Array, kernel: Array, *, stride: int = 1, padding: Padding = NO_PADDING, groups: int = 1) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def _by_autodiff(forward: Callable[[Array, Array], Array], x_shape, k_shape) -> _Form:
    """The form whose gradients JAX derives."""

    def input_grad(g: Array, kernel: Array) -> Array:
        return jax.vjp(lambda x: forward(x, kernel), jnp.zeros(x_shape, g.dtype))[1](g)[0]

    def kernel_grad(x: Array, g: Array) -> Array:
        return jax.vjp(lambda k: forward(x, k), jnp.zeros(k_shape, g.dtype))[1](g)[0]

    return _Form(forward, input_grad, kernel_grad)


def _pad(x: Array, padding: Padding) -> Array:
    """Zeros around a picture; negative amounts crop."""
    (top, bottom), (left, right) = padding
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))


# --- 1x1: a matmul ---------------------------------------------------------------------------------------------------


def _pointwise(x_shape, k_shape, stride: int, padding: Padding) -> _Form:
    b, h, w, c = x_shape
    (top, bottom), (left, right) = padding

    def sample(x: Array) -> Array:
        return _pad(x, padding)[:, ::stride, ::stride]

    def forward(x: Array, kernel: Array) -> Array:
        return jnp.einsum("bhwc,co->bhwo", sample(x), kernel[0, 0])

    def input_grad(g: Array, kernel: Array) -> Array:
        dx = jnp.einsum("bhwo,co->bhwc", g, kernel[0, 0])
        high = [h + top - 1 - (dx.shape[1] - 1) * stride, w + left - 1 - (dx.shape[2] - 1) * stride]
        config = ((0, 0, 0), (-top, high[0], stride - 1), (-left, high[1], stride - 1), (0, 0, 0))
        return lax.pad(dx, jnp.zeros((), g.dtype), config)

    def kernel_grad(x: Array, g: Array) -> Array:
        return jnp.einsum("bhwc,bhwo->co", sample(x), g)[None, None]

    return _Form(forward, input_grad, kernel_grad)


# --- depthwise: k*k shifted multiply-adds ----------------------------------------------------------------------------


def _depthwise(x_shape, k_shape, stride: int, padding: Padding) -> _Form:
    b, h, w, c = x_shape
    kh, kw = k_shape[:2]
    (top, bottom), (left, right) = padding

    def forward(x: Array, kernel: Array) -> Array:
        x = _pad(x, padding)
        oh, ow = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
        return sum(
            x[:, i : i + (oh - 1) * stride + 1 : stride, j : j + (ow - 1) * stride + 1 : stride] * kernel[None, None, i, j]
            for i in range(kh)
            for j in range(kw)
        )

    def input_grad(g: Array, kernel: Array) -> Array:
        # Phase (r, t) of the padded input, pixels (stride*m + r, stride*n + t), meets only taps kernel[r::stride,
        # t::stride]; on it the gradient is the stride-1 operation with those taps flipped.
        rows, cols = -(-(h + top + bottom) // stride), -(-(w + left + right) // stride)
        phases = []
        for r in range(stride):
            for t in range(stride):
                taps = kernel[r::stride, t::stride][::-1, ::-1]
                nh, nw = taps.shape[:2]
                if nh == 0 or nw == 0:
                    phases.append(jnp.zeros((b, rows, cols, c), g.dtype))
                    continue
                wide = _pad(g, ((nh - 1, rows - g.shape[1]), (nw - 1, cols - g.shape[2])))
                phases.append(
                    sum(wide[:, i : i + rows, j : j + cols] * taps[None, None, i, j] for i in range(nh) for j in range(nw))
                )
        dx = jnp.stack(phases).reshape(stride, stride, b, rows, cols, c).transpose(2, 3, 0, 4, 1, 5)
        return dx.reshape(b, rows * stride, cols * stride, c)[:, top : top + h, left : left + w]

    def kernel_grad(x: Array, g: Array) -> Array:
        x = _pad(x, padding)
        oh, ow = g.shape[1:3]
        sums = [
            jnp.sum(g * x[:, i : i + (oh - 1) * stride + 1 : stride, j : j + (ow - 1) * stride + 1 : stride], (0, 1, 2))
            for i in range(kh)
            for j in range(kw)
        ]
        return jnp.stack(sums).reshape(k_shape)

    return _Form(forward, input_grad, kernel_grad)


# --- few input channels at stride 2: space to depth ------------------------------------------------------------------


def _space_to_depth_conv(x: Array, kernel: Array, *, padding: Padding) -> Array:
    """A stride-2 convolution as a stride-1 convolution on 2x2 blocks of pixels laid into the channels."""
    kh, kw, c, out = kernel.shape
    b, h, w, _ = x.shape
    (top, bottom), (left, right) = padding
    oh, ow = (h + top + bottom - kh) // 2 + 1, (w + left + right - kw) // 2 + 1
    bh, bw = -(-kh // 2), -(-kw // 2)  # the kernel, in blocks
    rows, cols = oh + bh - 1, ow + bw - 1  # the part of the picture it meets, in blocks
    x = _pad(x, ((top, 2 * rows - h - top), (left, 2 * cols - w - left)))
    x = x.reshape(b, rows, 2, cols, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, rows, cols, 4 * c)
    kernel = jnp.pad(kernel, ((0, 2 * bh - kh), (0, 2 * bw - kw), (0, 0), (0, 0)))
    kernel = kernel.reshape(bh, 2, bw, 2, c, out).transpose(0, 2, 1, 3, 4, 5).reshape(bh, bw, 4 * c, out)
    return _lax_conv(x, kernel)
