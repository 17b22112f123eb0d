"""Methods that hide parts of the image and read the score: no gradient is needed.

To add one: a function `(**options) -> Method` and a row in `methods.METHODS`.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from tl.explain import baselines
from tl.explain.base import Method, Problem, Rows, check_count, repeat, sum_passes

# Of superpixels: the color distance that counts as much as the side of a cell, and the rounds of
# k-means. Achanta et al. 2012 give 1 to 40 for the first and 10 for the second. With less than 40,
# superpixels of photographs, if there are about 50, fall into many parts where there is texture.
COMPACTNESS, ROUNDS = 40.0, 10


def _masked_score(problem: Problem, rows: Rows, fill: jax.Array, masks: jax.Array) -> jax.Array:
    """The scores f32[s] of one image behind masks f32[s h w]; 0 shows `fill`."""
    images01 = fill + masks[..., None] * (rows.images01 - fill)
    return problem.score(images01, repeat(rows.targets, len(masks)))


def _check_side(name: str, value: int, shape: tuple[int, ...], *, power: int = 1) -> None:
    most = min(shape[:2]) ** power
    if value > most:
        raise ValueError(
            f"`{name}` is larger than the images: got {value}, expected at most {most}"
        )


def occlusion(*, patch: int = 0, stride: int = 0, fill: str = "gray") -> Method:
    """The drop of the score while a square patch is hidden, averaged over the patches of a pixel.

    Args:
      patch: side of the patch, in pixels. Default: an eighth of the shorter side.
      stride: step of the patch, in pixels, at most `patch`. Default: half of `patch`. Patches at
        the lower and the right edge may be cut off, as in Captum.
      fill: one baseline of `baselines.BASELINES`, shown in the patch.

    Raises:
      ValueError: a negative side, a stride that is larger than the patch, or an unknown baseline.

    Reference: Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2.
    """
    check_count(0, patch=patch, stride=stride)
    if patch and stride > patch:
        raise ValueError(
            f"`stride` must be at most `patch`, so that each pixel is hidden: got {stride} and "
            f"{patch}"
        )
    draw = baselines.get(fill)

    def sizes(h: int, w: int) -> tuple[int, int, int, int]:
        side = patch or max(min(h, w) // 8, 1)
        step = stride or max(side // 2, 1)
        count = lambda n: 1 + max(-(-(n - side) // step), 0)
        return side, step, count(h), count(w)

    def maps(problem: Problem, rows: Rows) -> jax.Array:
        h, w = rows.images01.shape[1:3]
        side, step, down, across = sizes(h, w)
        filled = draw(rows.keys, rows.images01)[0, :1]
        clean = problem.score(rows.images01, rows.targets)

        def value(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            def inside(first: jax.Array, n: int) -> jax.Array:
                place = jnp.arange(n, dtype=jnp.int32)[None] - first[:, None]
                return (place >= 0) & (place < side)

            rows_hidden = inside(step * (index // across), h)
            columns_hidden = inside(step * (index % across), w)
            hidden = (rows_hidden[:, :, None] & columns_hidden[:, None]).astype(jnp.float32)
            drop = clean - _masked_score(problem, rows, filled, 1.0 - hidden)
            return drop[:, None, None] * hidden, hidden

        total, count = sum_passes(value, down * across, problem.slots)
        return (total / jnp.maximum(count, 1.0))[None]

    def passes(h: int, w: int) -> int:
        _, _, down, across = sizes(h, w)
        return down * across + 1

    check = functools.partial(_check_side, "patch", patch)
    return Method(maps, signed=True, passes=passes, check=check)


def rise_draw(
    key: jax.Array, index: jax.Array, cell: tuple[int, int], grid: int, probability: float
) -> tuple[jax.Array, jax.Array]:
    """The random numbers of one mask.

    Args:
      key: the image's key.
      index: i32[], the mask's number.
      cell: largest shift plus one, in pixels: the sides of the image, divided by `grid`.
      grid: cells per side of the mask before it is resized.
      probability: share of the cells that are shown.

    Returns:
      The cells f32[grid grid], 0 or 1, and the shift i32[2] in pixels, less than `cell`.
    """
    draws = jax.random.uniform(jax.random.fold_in(key, index), (grid**2 + 2,))
    cells = (draws[2:] < probability).astype(jnp.float32).reshape(grid, grid)
    size = jnp.asarray(cell, jnp.int32)
    shift = jnp.floor(draws[:2] * size.astype(jnp.float32)).astype(jnp.int32)
    return cells, jnp.minimum(shift, size - 1)


def rise_masks(
    key: jax.Array, index: jax.Array, size: tuple[int, int], grid: int, probability: float
) -> jax.Array:
    """Masks f32[s h w] in [0, 1]: random grids, resized bilinearly and shifted at random.

    Args:
      key: the image's key.
      index: i32[s], numbers of the masks.
      size: h and w.
      grid, probability: as for `rise_draw`.

    Reference: Petsiuk et al. 2018, arXiv:1806.07421, section 3.2.
    """
    cell = tuple(-(-n // grid) for n in size)
    full = tuple((grid + 1) * n for n in cell)

    def one(i: jax.Array) -> jax.Array:
        cells, shift = rise_draw(key, i, (cell[0], cell[1]), grid, probability)
        return jax.lax.dynamic_slice(jax.image.resize(cells, full, "linear"), shift, size)

    return jax.vmap(one)(index)


def rise(
    *, masks: int = 4000, grid: int = 7, probability: float = 0.5, fill: str = "gray"
) -> Method:
    """RISE: the mean of random masks, weighted by the probability of the class behind each.

    Args:
      masks: passes per image.
      grid: cells per side of a mask before it is resized.
      probability: share of the cells that are shown, in (0, 1).
      fill: one baseline of `baselines.BASELINES`, shown where the mask is 0; in the paper the
        mean color of the training images.

    Raises:
      ValueError: fewer than one mask or cell, `probability` outside (0, 1), or an unknown baseline.

    Reference: Petsiuk et al. 2018, arXiv:1806.07421, equation 6; their 4,000 masks for VGG-16.
    """
    check_count(1, masks=masks, grid=grid)
    if not 0 < probability < 1:
        raise ValueError(f"`probability` must be in (0, 1): got {probability}")
    draw = baselines.get(fill)

    def maps(problem: Problem, rows: Rows) -> jax.Array:
        _, h, w, _ = rows.images01.shape
        filled = draw(rows.keys, rows.images01)[0, :1]

        def value(index: jax.Array) -> jax.Array:
            drawn = rise_masks(rows.keys[0], index, (h, w), grid, probability)
            return _masked_score(problem, rows, filled, drawn)[:, None, None] * drawn

        return sum_passes(value, masks, problem.slots)[None] / (masks * probability)

    check = functools.partial(_check_side, "grid", grid)
    return Method(maps, signed=False, passes=max(masks, 2), probability=True, check=check)


def cell_of(n: int, grid: int) -> np.ndarray:
    """The cell i[n] of each of n pixels of a side that is divided into `grid` cells."""
    return np.arange(n) * grid // n


def slic(image01: jax.Array, grid: int) -> jax.Array:
    """The superpixel of each pixel of an image, i32[h w] in [0, grid * grid).

    K-means over colors and places, from the cells of a regular grid. A pixel joins one of the
    superpixels that start in its cell and in the eight around it. A superpixel may be empty.

    Args:
      image01: f32[h w c] in [0, 1], which is rounded to 8 bits.
      grid: cells per side.

    Reference: Achanta et al. 2012, "SLIC superpixels compared to state-of-the-art superpixel
      methods", section 3, with the neighbors of Ren et al. 2015, arXiv:1509.04232. Unlike in the
      paper, the channels are those of the image instead of CIELAB, scaled such that black and white
      differ by 100, and parts that are not connected to their superpixel stay.
    """
    h, w, c = image01.shape
    down, across = cell_of(h, grid), cell_of(w, grid)
    around = lambda cell: np.clip(np.add.outer(cell, (-1, 0, 1)), 0, grid - 1)
    near = around(down)[:, None, :, None] * grid + around(across)[None, :, None]
    near = jnp.asarray(near.reshape(h * w, 9), jnp.int32)
    places = jnp.asarray(np.indices((h, w)).reshape(2, h * w).T, jnp.int32)
    # Integers, whose sums do not depend on the order in which a device adds them.
    levels = jnp.rint(255 * image01).astype(jnp.int32).reshape(h * w, c)
    values = jnp.concatenate([levels, places], axis=1)
    color = COMPACTNESS * 255 * math.sqrt(c) / 100
    units = jnp.asarray([color] * c + [h / grid, w / grid], jnp.float32)[None, None]

    def join(cell: jax.Array, _: None) -> tuple[jax.Array, None]:
        totals = jax.ops.segment_sum(values, cell, grid * grid)
        counts = jnp.bincount(cell, length=grid * grid)[:, None]
        centers = jnp.where(counts > 0, totals / jnp.maximum(counts, 1), jnp.inf)
        ways = (values[:, None].astype(jnp.float32) - centers[near]) / units
        best = jnp.argmin(jnp.sum(ways**2, axis=-1), axis=1)
        return jnp.take_along_axis(near, best[:, None], axis=1)[:, 0], None

    start = jnp.asarray(np.add.outer(down * grid, across).ravel(), jnp.int32)
    return jax.lax.scan(join, start, None, length=ROUNDS)[0].reshape(h, w)


def _coalitions(
    key: jax.Array, index: jax.Array, cells: int, enumerated: bool
) -> tuple[jax.Array, jax.Array]:
    """Coalitions, bool[s cells], and their weights f32[s] in the regression.

    All coalitions but the empty and the full one, with the weight of the Shapley kernel; or random
    ones with the kernel as their distribution. Each second of these is the complement of the one
    before it, which lowers the variance (Covert & Lee 2021, arXiv:2012.01536, section 4.2).
    """
    sizes = np.arange(1, cells)
    if enumerated:
        members = (index[:, None] + 1) >> jnp.arange(cells, dtype=jnp.int32)[None] & 1 == 1
        kernel = [(cells - 1) / (math.comb(cells, s) * s * (cells - s)) for s in sizes.tolist()]
        return members, jnp.asarray(kernel, jnp.float32)[jnp.sum(members, axis=1) - 1]
    share = np.cumsum(1.0 / (sizes * (cells - sizes)))

    def one(i: jax.Array) -> jax.Array:
        draws = jax.random.uniform(jax.random.fold_in(key, i // 2), (cells + 1,))
        size = 1 + jnp.searchsorted(jnp.asarray(share[:-1] / share[-1], jnp.float32), draws[0])
        rank = jnp.argsort(jnp.argsort(draws[1:]))
        return (rank < size) ^ (i % 2 == 1)

    return jax.vmap(one)(index), jnp.ones(index.shape)


def kernel_shap(
    *, masks: int = 1000, grid: int = 7, superpixels: int = 0, fill: str = "gray"
) -> Method:
    """KernelSHAP: the Shapley values of parts of the image, each divided among its pixels.

    The players are the cells of a regular grid or superpixels. The value of a coalition is the
    score of the image with the other players hidden. The values are the solution of the weighted
    least squares that adds up to the score of the image minus that of the hidden image, and are
    exact if `masks` is enough for all 2^players - 2 coalitions.

    Args:
      masks: passes per image, at least twice the number of players.
      grid: cells per side, at least 2.
      superpixels: number of superpixels (`slic`) instead of cells, rounded to a square number; at
        least 4, or 0 for the cells of the grid.
      fill: one baseline of `baselines.BASELINES`, which replaces hidden players.

    Raises:
      ValueError: one player, more cells per side than pixels, too few masks, or an unknown
        baseline.

    Reference: Lundberg & Lee 2017, arXiv:1705.07874, theorem 2; the constraint is solved as in
      Covert & Lee 2021, arXiv:2012.01536, equation 7. Captum's KernelShap gives the full and the
      empty coalition a large weight instead.
    """
    check = functools.partial(_check_side, "grid", grid)
    if superpixels:
        check_count(4, superpixels=superpixels)
        check = functools.partial(_check_side, "superpixels", superpixels, power=2)
        grid = round(math.sqrt(superpixels))
    check_count(2, grid=grid)
    cells, draw = grid * grid, baselines.get(fill)
    enumerated = 2**cells - 2 <= masks
    count = 2**cells - 2 if enumerated else masks
    if not enumerated:
        check_count(2 * cells, masks=masks)

    def maps(problem: Problem, rows: Rows) -> jax.Array:
        _, h, w, _ = rows.images01.shape
        filled = draw(rows.keys, rows.images01)[0, :1]
        empty = problem.score(filled, rows.targets)
        total = problem.score(rows.images01, rows.targets) - empty
        regular = np.add.outer(cell_of(h, grid) * grid, cell_of(w, grid))
        cell = slic(rows.images01[0], grid) if superpixels else jnp.asarray(regular, jnp.int32)
        sizes = jnp.bincount(cell.ravel(), length=cells).astype(jnp.float32)
        # An empty superpixel is in no coalition, and its row of the matrix gives it the value 0.
        players = (sizes > 0).astype(jnp.float32)

        def value(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            members, weights = _coalitions(rows.keys[0], index, cells, enumerated)
            z = members.astype(jnp.float32) * players[None]
            gain = _masked_score(problem, rows, filled, z[:, cell]) - empty
            weighted = weights[:, None] * z
            return weighted[:, :, None] * z[:, None], weighted * gain[:, None]

        matrix, right = sum_passes(value, count, problem.slots)
        matrix = matrix + jnp.diag(1.0 - players)
        free, ones = jnp.linalg.solve(matrix, jnp.stack([right, players], axis=1)).T
        values = free - ones * (jnp.sum(free) - total) / jnp.sum(ones)
        return (values / jnp.maximum(sizes, 1.0))[cell][None]

    return Method(maps, signed=True, passes=count + 2, baselines=draw, check=check)
