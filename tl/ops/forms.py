"""Forms of convolution for a CPU: the fastest one for each kind of convolution.

Each function returns the `Form` of one kind for fixed shapes. `forms` chooses among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tl import cpu
from tl.ops import onednn, winograd
from tl.ops.derivatives import Form, Map
from tl.ops.windows import (
    NO_PADDING,
    Padding,
    Pair,
    by_phases,
    lax_conv,
    out_size,
    pad,
    products,
    select,
    shifted,
)

LEAST_OF_ONEDNN = 2**24
"""Multiply-adds from which oneDNN computes a convolution: a call has a fixed cost."""


# Equal shapes get the same functions, so that JAX traces a branch once instead of once per layer.
@lru_cache(maxsize=1024)
def forms(x_shape, k_shape, stride: int, padding: Padding, groups: int) -> tuple[Form, Form]:
    """The plain form, which suits all platforms, and the form for CPUs."""
    args = (x_shape, k_shape, stride, padding)
    plain = by_autodiff(
        partial(lax_conv, stride=stride, padding=padding, groups=groups), x_shape, k_shape
    )
    kh, kw, per_group, out = k_shape
    if groups == x_shape[3] == out and per_group == 1:
        cpu = depthwise(*args)
    elif groups > 1:
        cpu = grouped(*args, groups)
    elif kh == kw == 1:
        cpu = pointwise(*args)
    elif stride <= 2 and x_shape[3] <= 4:
        cpu = first_layer(*args)
    else:
        cpu = dense(*args)
    return plain, with_onednn(cpu, *args, groups)


def with_onednn(pure: Form, x_shape, k_shape, stride: int, padding: Padding, groups: int) -> Form:
    """`pure` in float32 or float64, or the form of oneDNN if it is installed and faster."""
    kh, kw, per_group, out = k_shape
    size = out_size(x_shape, (kh, kw), stride, padding)
    shape = (x_shape[0], *size, kh, kw, per_group, out)
    # An exported program has a symbolic batch, and no library.
    fixed = all(isinstance(n, int) and n > 0 for n in shape) and cpu.onednn_path()
    if not fixed or math.prod(shape) < LEAST_OF_ONEDNN:
        return Form(*map(in_float32, pure))
    theirs = onednn.form(x_shape, k_shape, stride, padding, groups)
    fastest = theirs
    if groups == 1 and stride == 1 and has_winograd((kh, kw), (per_group, out), size):
        fastest = pure
    elif groups == 1 and x_shape[3] <= 4:
        fastest = theirs._replace(input_grad=pure.input_grad)

    def choose(pure: Map, fastest: Map, theirs: Map) -> Map:
        wide = in_float32(lambda a, b: (pure if a.dtype == jnp.float64 else fastest)(a, b))
        half = theirs if onednn.multiplies_bfloat16() else wide
        return lambda a, b: (half if a.dtype == jnp.bfloat16 else wide)(a, b)

    return Form(*map(choose, pure, fastest, theirs))


def has_winograd(taps: Pair, channels: Pair, size: Pair) -> bool:
    """Whether Winograd's form is faster than the others, for stride 1."""
    return taps == (3, 3) and min(channels) >= 64 and min(size) >= 7


def in_float32(f: Map) -> Map:
    """`f` computed in float32, or float64; the result has the dtype of the first argument."""

    def widened(a: Array, b: Array) -> Array:
        wide = a.dtype if a.dtype == jnp.float64 else jnp.float32
        return f(a.astype(wide), b.astype(wide)).astype(a.dtype)

    return widened


def by_autodiff(forward: Map, x_shape, k_shape) -> Form:
    """The form with gradients by automatic differentiation."""

    def transpose(f: Callable[[Array], Array], shape, g: Array) -> Array:
        return jax.linear_transpose(f, jax.ShapeDtypeStruct(shape, g.dtype))(g)[0]

    def input_grad(g: Array, kernel: Array) -> Array:
        return transpose(lambda x: forward(x, kernel), x_shape, g)

    def kernel_grad(x: Array, g: Array) -> Array:
        return transpose(lambda k: forward(x, k), k_shape, g)

    return Form(forward, input_grad, kernel_grad)


# --- 1x1: a matrix product --------------------------------------------------------------------


def pointwise(x_shape, k_shape, stride: int, padding: Padding) -> Form:
    _, h, w, _ = x_shape
    (top, _), (left, _) = padding

    def sample(x: Array) -> Array:
        return pad(x, padding)[:, ::stride, ::stride]

    def forward(x: Array, kernel: Array) -> Array:
        return jnp.einsum("bhwc,co->bhwo", sample(x), kernel[0, 0])

    def input_grad(g: Array, kernel: Array) -> Array:
        dx = jnp.einsum("bhwo,co->bhwc", g, kernel[0, 0])
        high = [h + top - 1 - (dx.shape[1] - 1) * stride, w + left - 1 - (dx.shape[2] - 1) * stride]
        config = ((0, 0, 0), (-top, high[0], stride - 1), (-left, high[1], stride - 1), (0, 0, 0))
        return lax.pad(dx, jnp.zeros((), g.dtype), config)

    def kernel_grad(x: Array, g: Array) -> Array:
        return products(sample(x), g)[None, None]

    return Form(forward, input_grad, kernel_grad)


# --- depthwise: k * k shifted multiply-adds ---------------------------------------------------


def depthwise(x_shape, k_shape, stride: int, padding: Padding) -> Form:
    b, taps = x_shape[0], k_shape[:2]
    size = out_size(x_shape, taps, stride, padding)

    def weigh(shifts: list[Array], kernel: Array) -> Array:
        weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[3])
        return reduce(jnp.add, [x * w for x, w in zip(shifts, weights, strict=True)])

    def forward(x: Array, kernel: Array) -> Array:
        return weigh(shifted(pad(x, padding), taps, size, stride), kernel)

    def input_grad(g: Array, kernel: Array) -> Array:
        def gather(g: Array, rows: range, cols: range, size: Pair) -> Array:
            return weigh(shifted(g, (len(rows), len(cols)), size), select(kernel, rows, cols))

        return by_phases(g, x_shape, taps, stride, padding, gather)

    def kernel_grad(x: Array, g: Array) -> Array:
        # One row of outputs at a time, so that all k * k sums read it from the cache. Partial sums
        # keep the width, because XLA vectorizes additions of vectors but not a reduction to [c].
        # Several images per step amortize the cost of a step.
        x = pad(x, padding)
        per_step = next(n for n in range(16, 0, -1) if b % n == 0)

        def add_row(step: Array, sums: Array) -> Array:
            row, first = step // (b // per_step), step % (b // per_step) * per_step
            gs = lax.dynamic_slice(g, (first, row, 0, 0), (per_step, 1, *g.shape[2:]))
            xs = lax.dynamic_slice(
                x, (first, row * stride, 0, 0), (per_step, taps[0], *x.shape[2:])
            )
            products = [
                reduce(jnp.add, [gs[n] * s[n] for n in range(per_step)])
                for s in shifted(xs, taps, (1, size[1]), stride)
            ]
            return sums + jnp.concatenate(products)

        sums = jnp.zeros((taps[0] * taps[1], *g.shape[2:]), g.dtype)
        return jnp.sum(lax.fori_loop(0, size[0] * (b // per_step), add_row, sums), axis=1).reshape(
            k_shape
        )

    return Form(forward, input_grad, kernel_grad)


# --- few input channels, stride 1 or 2: patches, then a matrix product ------------------------


def first_layer(x_shape, k_shape, stride: int, padding: Padding) -> Form:
    """Patches for the input gradient and a narrow output, else blocks or windows."""
    kh, kw, c, out = k_shape
    size = out_size(x_shape, (kh, kw), stride, padding)
    patches = by_autodiff(partial(stem, stride=stride, padding=padding), x_shape, k_shape)

    def kernel_grad(x: Array, g: Array) -> Array:
        # One image at a time, because its windows fit the cache.
        def add(sums: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            windows = jnp.concatenate(shifted(pair[0][None], (kh, kw), size, stride), axis=3)
            return sums + products(windows, pair[1][None]), None

        sums = lax.scan(add, jnp.zeros((kh * kw * c, out), x.dtype), (pad(x, padding), g))[0]
        return sums.reshape(k_shape)

    def forward(x: Array, kernel: Array) -> Array:
        if out < 64:
            return patches.forward(x, kernel)
        if kh * kw > 9:
            return correlate(*in_blocks(x, kernel, stride, padding), NO_PADDING)[:, : size[0]]
        return by_windows(x, kernel, stride, padding)

    return Form(forward, patches.input_grad, kernel_grad)


def stem(x: Array, kernel: Array, *, stride: int, padding: Padding) -> Array:
    """Blocks of stride x stride pixels as channels, then one matrix product per row of taps."""
    kh, kw, _, _ = kernel.shape
    oh, ow = out_size(x.shape, (kh, kw), stride, padding)
    x, kernel = in_blocks(x, kernel, stride, padding)
    bh, bw, c, out = kernel.shape
    patches = [jnp.concatenate(shifted(x[:, i:], (1, bw), (oh, ow)), axis=3) for i in range(bh)]
    rows = zip(patches, kernel.reshape(bh, bw * c, out), strict=True)
    y = reduce(jnp.add, [p.reshape(-1, bw * c) @ k for p, k in rows])
    return y.reshape(-1, oh, ow, out)


def in_blocks(x: Array, kernel: Array, stride: int, padding: Padding) -> tuple[Array, Array]:
    """The image and the kernel of the same convolution with stride 1.

    Blocks of stride x stride pixels become channels, and the kernel is padded to whole blocks.
    """
    s = stride
    kh, kw, c, out = kernel.shape
    b, h, w, _ = x.shape
    (top, _), (left, _) = padding
    oh, ow = out_size(x.shape, (kh, kw), s, padding)
    bh, bw = -(-kh // s), -(-kw // s)  # the kernel, in blocks
    rows, cols = oh + bh - 1, ow + bw - 1  # the part of the image that it covers, in blocks
    x = pad(x, ((top, s * rows - h - top), (left, s * cols - w - left)))
    x = (
        x.reshape(b, rows, s, cols, s, c)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(b, rows, cols, s * s * c)
    )
    kernel = jnp.pad(kernel, ((0, s * bh - kh), (0, s * bw - kw), (0, 0), (0, 0)))
    kernel = kernel.reshape(bh, s, bw, s, c, out).transpose(0, 2, 1, 3, 4, 5)
    return x, kernel.reshape(bh, bw, s * s * c, out)


# --- dense k x k ------------------------------------------------------------------------------


def dense(x_shape, k_shape, stride: int, padding: Padding) -> Form:
    taps = k_shape[:2]
    size = out_size(x_shape, taps, stride, padding)
    fast = taps == (3, 3) and stride == 1 and min(size) >= 7

    def forward(x: Array, kernel: Array) -> Array:
        return correlate(x, kernel, padding) if stride == 1 else direct(x, kernel, stride, padding)

    def input_grad(g: Array, kernel: Array) -> Array:
        def gather(g: Array, rows: range, cols: range, size: Pair) -> Array:
            return correlate(g, jnp.swapaxes(select(kernel, rows, cols), 2, 3), NO_PADDING)

        if stride > 1:
            return by_phases(g, x_shape, taps, stride, padding, gather)
        return correlate(g, jnp.swapaxes(kernel[::-1, ::-1], 2, 3), turned_padding(taps, padding))

    def kernel_grad(x: Array, g: Array) -> Array:
        if fast:
            return winograd.kernel_grad(x, g, padding)
        shifts = shifted(pad(x, padding), taps, size, stride)
        return jnp.stack([products(s, g) for s in shifts]).reshape(k_shape)

    return Form(forward, input_grad, kernel_grad)


def turned_padding(taps: Pair, padding: Padding) -> Padding:
    """Padding of the input gradient with stride 1, a correlation with the kernel turned around."""
    rows, cols = ((n - 1 - low, n - 1 - high) for n, (low, high) in zip(taps, padding, strict=True))
    return rows, cols


def correlate(x: Array, kernel: Array, padding: Padding) -> Array:
    """Cross-correlation with stride 1: Winograd's form where it is faster, else the direct form."""
    kh, kw, c, out = kernel.shape
    size = out_size(x.shape, (kh, kw), 1, padding)
    if (kh, kw) == (1, 1):
        return jnp.einsum("bhwc,co->bhwo", pad(x, padding), kernel[0, 0])
    if has_winograd((kh, kw), (c, out), size):
        return winograd.correlate(x, kernel, padding)
    return direct(x, kernel, 1, padding)


def by_windows(x: Array, kernel: Array, stride: int, padding: Padding) -> Array:
    """One matrix product with the windows, which have kh kw c values each."""
    kh, kw, _, out = kernel.shape
    size = out_size(x.shape, (kh, kw), stride, padding)
    windows = jnp.concatenate(shifted(pad(x, padding), (kh, kw), size, stride), axis=3)
    return windows @ kernel.reshape(-1, out)


def direct(x: Array, kernel: Array, stride: int, padding: Padding, groups: int = 1) -> Array:
    """The plain cross-correlation, with stride 1 computed by Eigen where that is possible."""
    kh, kw, _, _ = kernel.shape
    if groups == 1 and x.shape[1] * x.shape[2] < kh * kw:
        # XLA would exchange image and kernel, which is slow.
        return by_windows(x, kernel, stride, padding)
    # XLA passes a convolution to YNNPACK unless the output has more rows than the input. Eigen's
    # convolution is 1.1 to 1.8 times as fast, so rows are added, and cropped by the next operation.
    size = out_size(x.shape, (kh, kw), stride, padding)
    (top, bottom), sides = padding
    extra = max(x.shape[1] - size[0] + 1, 0)
    if stride > 1 or extra > max(size[0] // 6, 1) or min(size) < 1:
        return lax_conv(x, kernel, stride=stride, padding=padding, groups=groups)
    more = ((top, bottom + extra), sides)
    return lax_conv(x, kernel, padding=more, groups=groups)[:, : size[0]]


def grouped(x_shape, k_shape, stride: int, padding: Padding, groups: int) -> Form:
    """Several groups at a time as a dense convolution with a block-diagonal kernel.

    This needs more multiply-adds, but its larger shapes run faster.
    """
    b, h, w, c = x_shape
    kh, kw, i, out = k_shape
    o = out // groups
    # Channels of a dense convolution: few for speed, more for sums over all positions, whose parts
    # take long to compile.
    divisors = [n for n in range(1, groups + 1) if groups % n == 0]
    m, wide = (max(n for n in divisors if n == 1 or n * max(i, o) <= most) for most in (32, 128))
    part, wide_part = (
        dense((b, h, w, n * i), (kh, kw, n * i, n * o), stride, padding) for n in (m, wide)
    )

    def block_diagonal(kernel: Array) -> Array:
        """[groups/m kh kw m*i m*o]."""
        blocks = kernel.reshape(kh, kw, i, groups // m, m, o)
        eye = np.eye(m, dtype=kernel.dtype)
        return jnp.einsum("hwigmo,nm->ghwnimo", blocks, eye).reshape(-1, kh, kw, m * i, m * o)

    def side_by_side(parts: Array | list[Array]) -> Array:
        return jnp.concatenate(list(parts), axis=3)

    def forward(x: Array, kernel: Array) -> Array:
        blocks = block_diagonal(kernel)
        if stride == 1:  # one convolution compiles faster than its parts
            return direct(x, side_by_side(blocks), 1, padding, groups // m)
        pairs = zip(jnp.split(x, groups // m, axis=3), blocks, strict=True)
        return side_by_side([part.forward(*pair) for pair in pairs])

    def input_grad(g: Array, kernel: Array) -> Array:
        blocks = block_diagonal(kernel)
        if stride == 1:
            turned = jnp.swapaxes(blocks[:, ::-1, ::-1], 3, 4)
            full = turned_padding((kh, kw), padding)
            return direct(g, side_by_side(turned), 1, full, groups // m)
        pairs = zip(jnp.split(g, groups // m, axis=3), blocks, strict=True)
        return side_by_side([part.input_grad(*pair) for pair in pairs])

    def kernel_grad(x: Array, g: Array) -> Array:
        def diagonal(x: Array, g: Array) -> Array:
            dk = wide_part.kernel_grad(x, g).reshape(kh, kw, wide, i, wide, o)
            eye = np.eye(wide, dtype=dk.dtype)
            return jnp.einsum("hwnimo,nm->hwimo", dk, eye).reshape(kh, kw, i, wide * o)

        pairs = zip(*(jnp.split(a, groups // wide, axis=3) for a in (x, g)), strict=True)
        return side_by_side([diagonal(*pair) for pair in pairs])

    return Form(forward, input_grad, kernel_grad)
