"""Helpers for sliding windows: padding, shifted images, and the transpose of a window.

Images are [b h w c]; a `Pair` is (height, width) or (top, bottom) and so on, in pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
NO_PADDING: Padding = ((0, 0), (0, 0))


def same_padding(size: Pair, *, window: int, stride: int) -> Padding:
    """Padding of TensorFlow's `SAME` rule, which gives `ceil(size / stride)` outputs.

    If the padding is odd, the additional pixel is at the bottom and right.

    Args:
      size: height and width of the input, in pixels.
      window: side of the square window.
      stride: step of the window.

    Returns:
      `((top, bottom), (left, right))`, as `conv2d` and `max_pool` take it.

    Example:
      >>> same_padding((224, 224), window=3, stride=2)
      ((0, 1), (0, 1))
    """

    def one(n: int) -> Pair:
        total = max((-(-n // stride) - 1) * stride + window - n, 0)
        return total // 2, total - total // 2

    return one(size[0]), one(size[1])


def lax_conv(
    x: Array, kernel: Array, *, stride: int = 1, padding: Padding = NO_PADDING, groups: int = 1
) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def pad(x: Array, padding: Padding, value: float = 0.0) -> Array:
    """Adds a border of `value` to images; negative widths crop."""
    (top, bottom), (left, right) = padding
    return lax.pad(
        x, jnp.array(value, x.dtype), ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0))
    )


def shifted(x: Array, taps: Pair, size: Pair, stride: int = 1) -> list[Array]:
    """The pixels that each tap of a window reads: `kh * kw` images of `size`, row by row."""
    high = ((size[0] - 1) * stride + 1, (size[1] - 1) * stride + 1)
    return [
        x[:, i : i + high[0] : stride, j : j + high[1] : stride]
        for i in range(taps[0])
        for j in range(taps[1])
    ]


def out_size(x_shape, taps: Pair, stride: int, padding: Padding) -> Pair:
    (top, bottom), (left, right) = padding
    return (x_shape[1] + top + bottom - taps[0]) // stride + 1, (
        x_shape[2] + left + right - taps[1]
    ) // stride + 1


def select(kernel: Array, rows: range, cols: range) -> Array:
    """The taps of a kernel in the given rows and columns, in the given order."""
    return jnp.stack([jnp.stack([kernel[i, j] for j in cols]) for i in rows])


def products(x: Array, g: Array) -> Array:
    """The sum `bhwc,bhwo->co`.

    Height and width are flattened first, because XLA copies operands with three summed dimensions;
    large images are summed one by one.
    """
    b, h, w, c = x.shape
    if h * w >= 2048:
        return jnp.sum(
            jnp.einsum("bpc,bpo->bco", x.reshape(b, h * w, c), g.reshape(b, h * w, -1)), axis=0
        )
    return jnp.einsum("pc,po->co", x.reshape(-1, c), g.reshape(b * h * w, -1))


def by_phases(g, x_shape, taps: Pair, stride: int, padding: Padding, gather: Callable) -> Array:
    """The transpose of a sliding window: for each pixel, the sum over the windows that cover it.

    The pixels (stride * m + r, stride * n + t) of the padded input form its phase (r, t). Only the
    taps [r::stride, t::stride] cover them. Within a phase the transpose is a stride-1 window over
    `g` with these taps in reverse order.

    Args:
      g: cotangent of the outputs, any pytree of images.
      x_shape: shape of the input.
      taps, stride, padding: the window.
      gather: `(padded g, rows of taps, columns of taps, size) -> image` computes one phase.

    Returns:
      An image of shape `x_shape`.
    """
    b, h, w, c = x_shape
    (top, _), (left, _) = padding
    lo, hi = (top // stride, left // stride), (-(-(top + h) // stride), -(-(left + w) // stride))
    size = (hi[0] - lo[0], hi[1] - lo[1])

    def phase(r: int, t: int) -> Array:
        rows, cols = range(r, taps[0], stride)[::-1], range(t, taps[1], stride)[::-1]
        if not rows or not cols:
            return jnp.zeros((b, *size, c), jax.tree.leaves(g)[0].dtype)
        n = (len(rows), len(cols))

        def widen(a: Array) -> Array:
            return pad(
                a, ((n[0] - 1 - lo[0], hi[0] - a.shape[1]), (n[1] - 1 - lo[1], hi[1] - a.shape[2]))
            )

        return gather(jax.tree.map(widen, g), rows, cols, size)

    phases = jnp.stack([phase(r, t) for r in range(stride) for t in range(stride)])
    dx = phases.reshape(stride, stride, b, *size, c).transpose(2, 3, 0, 4, 1, 5)
    dx = dx.reshape(b, size[0] * stride, size[1] * stride, c)
    y0, x0 = top - lo[0] * stride, left - lo[1] * stride
    return dx[:, y0 : y0 + h, x0 : x0 + w]
