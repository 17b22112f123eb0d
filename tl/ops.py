"""Convolution and pooling that are fast on every platform: the only module of `tl` that knows where it runs.

On TPU and GPU each operation is the plain `lax` one. On a CPU XLA's lowering of some convolutions is far from what the
machine can do, so those get another form of the same sum. The choice is made while lowering
(`jax.lax.platform_dependent`), so one traced program, or one exported module, serves all platforms.

What this module does NOT do: no parameters, no layers, no normalisation, no activation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
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
        raise ValueError(
            f"got x of shape {x.shape} and kernel {kernel.shape}; expected x [b h w c], kernel [kh kw c/groups o]"
        )
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
    pads = ((int(padding[0][0]), int(padding[0][1])), (int(padding[1][0]), int(padding[1][1])))
    return _max_pool(x, int(window), int(stride), pads)


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
    if groups == 1 and stride <= 2 and x_shape[3] <= 4:
        return plain, _by_autodiff(partial(_stem, stride=stride, padding=padding), x_shape, k_shape)
    if groups == 1:
        return plain, _dense(*args, plain)
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


def _pad(x: Array, padding: Padding, value: float = 0.0) -> Array:
    """A border of `value` around a picture; negative amounts crop."""
    (top, bottom), (left, right) = padding
    return lax.pad(x, jnp.array(value, x.dtype), ((0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)))


def _shifts(x: Array, taps: Pair, size: Pair, stride: int = 1) -> list[Array]:
    """What each tap of a window meets, in row-major order: `kh * kw` pictures of `size` pixels."""
    high = ((size[0] - 1) * stride + 1, (size[1] - 1) * stride + 1)
    return [x[:, i : i + high[0] : stride, j : j + high[1] : stride] for i in range(taps[0]) for j in range(taps[1])]


def _out_size(x_shape, taps: Pair, stride: int, padding: Padding) -> Pair:
    (top, bottom), (left, right) = padding
    return (x_shape[1] + top + bottom - taps[0]) // stride + 1, (x_shape[2] + left + right - taps[1]) // stride + 1


def _select(kernel: Array, rows: range, cols: range) -> Array:
    """The taps of a kernel in these rows and columns, in their order."""
    return jnp.stack([jnp.stack([kernel[i, j] for j in cols]) for i in rows])


def _by_phases(g, x_shape, taps: Pair, stride: int, padding: Padding, gather: Callable) -> Array:
    """The transpose of a sliding window: what each pixel of the input receives from the windows that cover it.

    Pixels (stride * m + r, stride * n + t) of the padded input, its phase (r, t), meet only the taps [r::stride,
    t::stride]. Inside a phase the transpose is a stride-1 window over `g` with those taps in reverse order:
    `gather(padded g, rows of taps, columns of taps, size)` does it; `g` may be any pytree of pictures.
    """
    b, h, w, c = x_shape
    (top, _), (left, _) = padding
    lo, hi = (top // stride, left // stride), (-(-(top + h) // stride), -(-(left + w) // stride))
    size = (hi[0] - lo[0], hi[1] - lo[1])

    def phase(r: int, t: int) -> Array:
        rows, cols = range(r, taps[0], stride)[::-1], range(t, taps[1], stride)[::-1]
        if not rows or not cols:
            return jnp.zeros((b, *size, c))
        n = (len(rows), len(cols))

        def widen(a: Array) -> Array:
            return _pad(a, ((n[0] - 1 - lo[0], hi[0] - a.shape[1]), (n[1] - 1 - lo[1], hi[1] - a.shape[2])))

        return gather(jax.tree.map(widen, g), rows, cols, size)

    phases = jnp.stack([phase(r, t) for r in range(stride) for t in range(stride)])
    dx = phases.reshape(stride, stride, b, *size, c).transpose(2, 3, 0, 4, 1, 5)
    dx = dx.reshape(b, size[0] * stride, size[1] * stride, c)
    y0, x0 = top - lo[0] * stride, left - lo[1] * stride
    return dx[:, y0 : y0 + h, x0 : x0 + w]


# --- 1x1: a matmul ---------------------------------------------------------------------------------------------------


def _pointwise(x_shape, k_shape, stride: int, padding: Padding) -> _Form:
    _, h, w, _ = x_shape
    (top, _), (left, _) = padding

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
    b, taps = x_shape[0], k_shape[:2]
    size = _out_size(x_shape, taps, stride, padding)

    def weigh(shifts: list[Array], kernel: Array) -> Array:
        weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[3])
        return reduce(jnp.add, [x * w for x, w in zip(shifts, weights, strict=True)])

    def forward(x: Array, kernel: Array) -> Array:
        return weigh(_shifts(_pad(x, padding), taps, size, stride), kernel)

    def input_grad(g: Array, kernel: Array) -> Array:
        def gather(g: Array, rows: range, cols: range, size: Pair) -> Array:
            return weigh(_shifts(g, (len(rows), len(cols)), size), _select(kernel, rows, cols))

        return _by_phases(g, x_shape, taps, stride, padding, gather)

    def kernel_grad(x: Array, g: Array) -> Array:
        # One row of outputs at a time, so that all k*k sums read it from the cache. Partial sums keep the width: adding
        # vectors is what XLA vectorises, a reduction to [c] is not. A few pictures a step pay for the step.
        x = _pad(x, padding)
        some = next(n for n in range(16, 0, -1) if b % n == 0)

        def add_row(step: Array, sums: Array) -> Array:
            row, first = step // (b // some), step % (b // some) * some
            gs = lax.dynamic_slice(g, (first, row, 0, 0), (some, 1, *g.shape[2:]))
            xs = lax.dynamic_slice(x, (first, row * stride, 0, 0), (some, taps[0], *x.shape[2:]))
            products = [
                reduce(jnp.add, [gs[n] * s[n] for n in range(some)]) for s in _shifts(xs, taps, (1, size[1]), stride)
            ]
            return sums + jnp.concatenate(products)

        sums = jnp.zeros((taps[0] * taps[1], *g.shape[2:]), g.dtype)
        return jnp.sum(lax.fori_loop(0, size[0] * (b // some), add_row, sums), axis=1).reshape(k_shape)

    return _Form(forward, input_grad, kernel_grad)


# --- few input channels, stride 1 or 2: patches, then a matmul -------------------------------------------------------


def _stem(x: Array, kernel: Array, *, stride: int, padding: Padding) -> Array:
    """Blocks of stride x stride pixels laid into the channels, then a matmul for each row of taps."""
    s = stride
    kh, kw, c, out = kernel.shape
    b, h, w, _ = x.shape
    (top, _), (left, _) = padding
    oh, ow = _out_size(x.shape, (kh, kw), s, padding)
    bh, bw = -(-kh // s), -(-kw // s)  # the kernel, in blocks
    rows, cols = oh + bh - 1, ow + bw - 1  # the part of the picture it meets, in blocks
    x = _pad(x, ((top, s * rows - h - top), (left, s * cols - w - left)))
    x = x.reshape(b, rows, s, cols, s, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, rows, cols, s * s * c)
    kernel = jnp.pad(kernel, ((0, s * bh - kh), (0, s * bw - kw), (0, 0), (0, 0)))
    kernel = kernel.reshape(bh, s, bw, s, c, out).transpose(0, 2, 1, 3, 4, 5).reshape(bh, bw * s * s * c, out)
    patches = [jnp.concatenate(_shifts(x[:, i:], (1, bw), (oh, ow)), axis=3) for i in range(bh)]
    return reduce(jnp.add, [jnp.einsum("bhwc,co->bhwo", p, k) for p, k in zip(patches, kernel, strict=True)])


# --- dense k x k: lax forward, gradients as small stride-1 convolutions and k*k matmuls ------------------------------


def _dense(x_shape, k_shape, stride: int, padding: Padding, plain: _Form) -> _Form:
    taps = k_shape[:2]

    def input_grad(g: Array, kernel: Array) -> Array:
        def gather(g: Array, rows: range, cols: range, size: Pair) -> Array:
            return _lax_conv(g, jnp.swapaxes(_select(kernel, rows, cols), 2, 3))

        return _by_phases(g, x_shape, taps, stride, padding, gather)

    def kernel_grad(x: Array, g: Array) -> Array:
        shifts = _shifts(_pad(x, padding), taps, (g.shape[1], g.shape[2]), stride)
        return jnp.stack([jnp.einsum("bhwc,bhwo->co", s, g) for s in shifts]).reshape(k_shape)

    return _Form(plain.forward, input_grad if stride > 1 else plain.input_grad, kernel_grad)


# --- max-pooling -----------------------------------------------------------------------------------------------------


def _lax_max_pool(x: Array, *, window: int, stride: int, padding: Padding) -> Array:
    pads = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Array, window: int, stride: int, padding: Padding) -> Array:
    plain = partial(_lax_max_pool, window=window, stride=stride, padding=padding)
    return lax.platform_dependent(x, cpu=lambda x: _max_and_tap(x, window, stride, padding)[0], default=plain)


def _max_and_tap(x: Array, window: int, stride: int, padding: Padding) -> tuple[Array, Array]:
    """The maximum, and the first tap of the window that holds it."""
    taps = (window, window)
    shifts = _shifts(_pad(x, padding, -jnp.inf), taps, _out_size(x.shape, taps, stride, padding), stride)
    largest = reduce(jnp.maximum, shifts)
    tap = jnp.zeros(largest.shape, jnp.int8)
    for i in reversed(range(len(shifts))):
        tap = jnp.where(shifts[i] == largest, jnp.int8(i), tap)
    return largest, tap


def _max_pool_fwd(x: Array, window: int, stride: int, padding: Padding):
    return _max_pool(x, window, stride, padding), x


def _max_pool_bwd(window: int, stride: int, padding: Padding, x: Array, g: Array):
    def plain(x: Array, g: Array) -> Array:
        return jax.vjp(partial(_lax_max_pool, window=window, stride=stride, padding=padding), x)[1](g)[0]

    def cpu(x: Array, g: Array) -> Array:
        def gather(pair: tuple[Array, Array], rows: range, cols: range, size: Pair) -> Array:
            n = (len(rows), len(cols))
            numbers = [i * window + j for i in rows for j in cols]
            shifts = zip(_shifts(pair[0], n, size), _shifts(pair[1], n, size), numbers, strict=True)
            return reduce(jnp.add, [jnp.where(tap == i, g, jnp.zeros((), g.dtype)) for g, tap, i in shifts])

        tap = _max_and_tap(x, window, stride, padding)[1]
        return _by_phases((g, tap), x.shape, (window, window), stride, padding, gather)

    return (lax.platform_dependent(x, g, cpu=cpu, default=plain),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
