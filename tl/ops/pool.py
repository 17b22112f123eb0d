"""Max-pooling with derivatives that avoid select-and-scatter, which is slow on a CPU."""

from __future__ import annotations

from functools import lru_cache, partial, reduce

import jax
import jax.numpy as jnp
from jax import Array, lax

from tl.ops.derivatives import Form, bilinear
from tl.ops.windows import Padding, Pair, by_phases, out_size, pad, shifted


def _lax_max_pool(x: Array, *, window: int, stride: int, padding: Padding) -> Array:
    pads = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads
    )


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def max_pool(x: Array, window: int, stride: int, padding: Padding) -> Array:
    """See `tl.ops.max_pool`."""
    plain = partial(_lax_max_pool, window=window, stride=stride, padding=padding)
    return lax.platform_dependent(
        x, cpu=lambda x: _max_and_tap(x, window, stride, padding)[0], default=plain
    )


def _max_and_tap(x: Array, window: int, stride: int, padding: Padding) -> tuple[Array, Array]:
    """The maximum of each window, and the index i8 of the first tap that has it."""
    taps = (window, window)
    shifts = shifted(
        pad(x, padding, -jnp.inf), taps, out_size(x.shape, taps, stride, padding), stride
    )
    largest = reduce(jnp.maximum, shifts)
    tap = jnp.zeros(largest.shape, jnp.int8)
    for i in reversed(range(len(shifts))):
        tap = jnp.where(shifts[i] == largest, jnp.int8(i), tap)
    return largest, tap


@max_pool.defjvp
def _max_pool_jvp(window: int, stride: int, padding: Padding, primals, tangents):
    (x,), (t,) = primals, tangents
    # The tangent is linear in t, and piecewise constant in x.
    form = _tangent(x.shape, window, stride, padding)
    return max_pool(x, window, stride, padding), bilinear(form, t, lax.stop_gradient(x))


@lru_cache(maxsize=1024)
def _tangent(x_shape, window: int, stride: int, padding: Padding) -> Form:
    """The tangent of each window's first maximum as a function of `(t, x)`, and its transpose."""
    taps = (window, window)
    size = out_size(x_shape, taps, stride, padding)

    def select(shifts: list[Array], at: list[Array], numbers: list[int]) -> Array:
        pairs = zip(shifts, at, numbers, strict=True)
        return reduce(
            jnp.add, [jnp.where(tap == i, t, jnp.zeros((), t.dtype)) for t, tap, i in pairs]
        )

    def forward(t: Array, x: Array) -> Array:
        tap = _max_and_tap(x, window, stride, padding)[1]
        shifts = shifted(pad(t, padding), taps, size, stride)
        return select(shifts, [tap] * len(shifts), list(range(len(shifts))))

    def plain(g: Array, x: Array) -> Array:
        pool = partial(_lax_max_pool, window=window, stride=stride, padding=padding)
        return jax.vjp(pool, x)[1](g)[0]

    def cpu(g: Array, x: Array) -> Array:
        def gather(pair: tuple[Array, Array], rows: range, cols: range, size: Pair) -> Array:
            n = (len(rows), len(cols))
            numbers = [i * window + j for i in rows for j in cols]
            return select(shifted(pair[0], n, size), shifted(pair[1], n, size), numbers)

        tap = _max_and_tap(x, window, stride, padding)[1]
        return by_phases((g, tap), x_shape, taps, stride, padding, gather)

    def input_grad(g: Array, x: Array) -> Array:
        return lax.platform_dependent(g, x, cpu=cpu, default=plain)

    return Form(forward, input_grad, kernel_grad=input_grad)  # the last is not called
