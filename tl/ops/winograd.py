"""3x3 convolutions of stride 1 by Winograd's minimal filtering: fewer products, more additions.

A tile of m outputs needs m + 2 products per channel and direction instead of 3 m:

  y = A' ((G k) * (B' x))

Four outputs use the points 0, 1, -1, 1/2, -2 instead of 0, 1, -1, 2, -2, which halves the error
(Barabasz et al. 2020, arXiv:1803.10986). The error of a tile of 2 x 4 is 1e-6 to 2e-6 of the
largest value, compared with 5e-7 for a direct sum. A tile of 4 x 4 has an error of 4e-6 at the same
speed.

Reference: Lavin & Gray 2016, arXiv:1509.09308, section 4.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from tl.ops.windows import Padding, Pair, out_size, pad, products


class _Tile(NamedTuple):
    """The transforms of one direction: A' [m n], G [n 3], B' [n n], with n = m + 2."""

    output: np.ndarray
    kernel: np.ndarray
    input: np.ndarray


def _tile(points: tuple[float, ...]) -> _Tile:
    """The Toom-Cook transforms for interpolation at the given points and infinity."""
    n = len(points) + 1
    powers = np.array([[p**i for p in points] for i in range(n)])
    at_infinity = np.eye(n)[:, -1:]
    weights = np.array([math.prod(p - q for q in points if q != p) for p in points] + [1.0])
    vandermonde = np.concatenate([powers, at_infinity], axis=1)
    output = np.concatenate([powers[: n - 2], at_infinity[2:]], axis=1)
    kernel = np.concatenate([powers[:3], at_infinity[-3:]], axis=1).T / weights[:, None]
    return _Tile(output, kernel, np.linalg.inv(vandermonde) * weights[:, None])


_TILES = {2: _tile((0.0, 1.0, -1.0)), 4: _tile((0.0, 1.0, -1.0, 0.5, -2.0))}
# Bytes of transformed tiles at a time (chosen, not tuned); larger buffers are slow to allocate.
_BLOCK = 1 << 26


def _mix(coefficients: np.ndarray, arrays: list[Array]) -> Array:
    """A weighted sum; weights of 0 and 1 need no multiplication."""
    terms = [
        x if a == 1 else x * x.dtype.type(a)
        for a, x in zip(coefficients, arrays, strict=True)
        if abs(a) > 1e-12
    ]
    return reduce(jnp.add, terms)


def _tiling(x_shape, out: int, padding: Padding) -> tuple[Pair, Pair, Padding, int]:
    """Size of a tile, number of tiles, padding to whole tiles, and number of images at a time."""
    b, _, _, c = x_shape
    h, w = out_size(x_shape, (3, 3), 1, padding)
    tile = (2, 4 if w % 4 in (0, 3) else 2)
    tiles = (-(-h // tile[0]), -(-w // tile[1]))
    (top, bottom), (left, right) = padding
    whole = ((top, bottom + tiles[0] * tile[0] - h), (left, right + tiles[1] * tile[1] - w))
    size = 4 * math.prod(tiles) * (tile[0] + 2) * (tile[1] + 2) * max(c, out)
    if not isinstance(b, int):  # symbolic, in an exported program
        return tile, tiles, whole, 1
    at_once = next(n for n in range(b, 0, -1) if b % n == 0 and (n == 1 or n * size <= _BLOCK))
    return tile, tiles, whole, at_once


def _transform_2d(rows: np.ndarray, cols: np.ndarray, pixels: list[list[Array]]) -> list[Array]:
    """A transform of the rows and columns of a patch; the results are in row-major order."""
    mixed = [[_mix(r, [row[j] for row in pixels]) for j in range(len(pixels[0]))] for r in rows]
    return [_mix(c, row) for row in mixed for c in cols]


def _patches(x: Array, taps: Pair, tiles: Pair, tile: Pair) -> list[list[Array]]:
    """For each pixel (i, j) of a patch, that pixel of all tiles."""
    high = ((tiles[0] - 1) * tile[0] + 1, (tiles[1] - 1) * tile[1] + 1)
    return [
        [x[:, i : i + high[0] : tile[0], j : j + high[1] : tile[1]] for j in range(taps[1])]
        for i in range(taps[0])
    ]


def correlate(x: Array, kernel: Array, padding: Padding) -> Array:
    """Cross-correlation of [b h w c] with a kernel [3 3 c o] and stride 1."""
    c, out = kernel.shape[2:]
    h, w = out_size(x.shape, (3, 3), 1, padding)
    tile, tiles, whole, at_once = _tiling(x.shape, out, padding)
    rows, cols = _TILES[tile[0]], _TILES[tile[1]]
    taps = (tile[0] + 2, tile[1] + 2)
    grid = np.kron(rows.kernel, cols.kernel).astype(kernel.dtype)
    kernels = jnp.einsum("pt,tn->pn", grid, kernel.reshape(9, c * out)).reshape(-1, c, out)

    def transform(x: Array) -> Array:
        patches = _transform_2d(rows.input, cols.input, _patches(pad(x, whole), taps, tiles, tile))
        products = [jnp.einsum("bhwc,co->bhwo", p, kernels[i]) for i, p in enumerate(patches)]
        y = _transform_2d(
            rows.output,
            cols.output,
            [products[i : i + taps[1]] for i in range(0, len(products), taps[1])],
        )
        y = [jnp.stack(y[i : i + tile[1]], axis=3) for i in range(0, len(y), tile[1])]
        return jnp.stack(y, axis=2).reshape(-1, tiles[0] * tile[0], tiles[1] * tile[1], out)

    if at_once == x.shape[0]:
        return transform(x)[:, :h, :w]
    y = lax.map(transform, x.reshape(-1, at_once, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])[:, :h, :w]


def kernel_grad(x: Array, g: Array, padding: Padding) -> Array:
    """The kernel's gradient, dk = G' ((A g) * (B' x)), with the products summed over tiles."""
    c, out = x.shape[3], g.shape[3]
    h, w = g.shape[1:3]
    tile, tiles, whole, at_once = _tiling(x.shape, out, padding)
    rows, cols = _TILES[tile[0]], _TILES[tile[1]]
    fill = ((0, tiles[0] * tile[0] - h), (0, tiles[1] * tile[1] - w))
    grid = np.kron(rows.kernel, cols.kernel).astype(x.dtype)

    def add(sums: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        x, g = pair
        xs = _transform_2d(
            rows.input, cols.input, _patches(pad(x, whole), (tile[0] + 2, tile[1] + 2), tiles, tile)
        )
        gs = _transform_2d(rows.output.T, cols.output.T, _patches(pad(g, fill), tile, tiles, tile))
        return sums + jnp.stack([products(*p) for p in zip(xs, gs, strict=True)]), None

    blocks = (x.reshape(-1, at_once, *x.shape[1:]), g.reshape(-1, at_once, *g.shape[1:]))
    sums = lax.scan(add, jnp.zeros((len(grid), c, out), x.dtype), blocks)[0]
    return jnp.einsum("pt,pn->tn", grid, sums.reshape(-1, c * out)).reshape(3, 3, c, out)
