"""Max-pooling with a gradient that avoids select-and-scatter, which is slow on a CPU."""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import Array, lax

from tl.ops.windows import Padding, Pair, by_phases, out_size, pad, shifted


def _lax_max_pool(x: Array, *, window: int, stride: int, padding: Padding) -> Array:
    pads = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads
    )


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
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


def _max_pool_fwd(x: Array, window: int, stride: int, padding: Padding):
    return max_pool(x, window, stride, padding), x


def _max_pool_bwd(window: int, stride: int, padding: Padding, x: Array, g: Array):
    def plain(x: Array, g: Array) -> Array:
        return jax.vjp(partial(_lax_max_pool, window=window, stride=stride, padding=padding), x)[1](
            g
        )[0]

    def cpu(x: Array, g: Array) -> Array:
        def gather(pair: tuple[Array, Array], rows: range, cols: range, size: Pair) -> Array:
            n = (len(rows), len(cols))
            numbers = [i * window + j for i in rows for j in cols]
            shifts = zip(shifted(pair[0], n, size), shifted(pair[1], n, size), numbers, strict=True)
            return reduce(
                jnp.add, [jnp.where(tap == i, g, jnp.zeros((), g.dtype)) for g, tap, i in shifts]
            )

        tap = _max_and_tap(x, window, stride, padding)[1]
        return by_phases((g, tap), x.shape, (window, window), stride, padding, gather)

    return (lax.platform_dependent(x, g, cpu=cpu, default=plain),)


max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
