"""Noisy linear imputation: removed pixels become the weighted mean of their neighbors.

A gray patch on an image is itself a pattern that a network reads; an imputed pixel hardly is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Standard deviation of the noise on imputed pixels, as in the code of Rong et al.
NOISE = 0.01
# Conjugate gradients end at this residual relative to the right side or after these iterations.
TOLERANCE, ITERATIONS = 1e-4, 500


def neighbor_sums(values: jax.Array) -> jax.Array:
    """Sums f32[... h w c] of the eight neighbors: 1/6 at a side, 1/12 at a corner.

    Neighbors outside the image do not count.
    """
    x = jnp.pad(values, [(0, 0)] * (values.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
    x = x[..., :-2, :, :] + 2.0 * x[..., 1:-1, :, :] + x[..., 2:, :, :]
    x = x[..., :-2, :] + 2.0 * x[..., 1:-1, :] + x[..., 2:, :]
    return (x - 4.0 * values) / 12.0


def impute(image: jax.Array, removed: jax.Array) -> jax.Array:
    """An image whose removed pixels solve the linear system of Rong et al., without the noise.

    Each removed pixel is the weighted mean of its neighbors, some of which are removed, too. The
    system is symmetric and positive definite; up to `ITERATIONS` steps of conjugate gradients solve
    it, from the mean color. The authors solve it directly.

    Args:
      image: f32[h w c].
      removed: bool[h w]; at least one pixel is not removed.

    Returns:
      f32[h w c].

    Reference: Rong et al. 2022, arXiv:2202.00449, section 4.
    """
    holes = removed[..., None].astype(jnp.float32)
    kept = image * (1.0 - holes)
    mean = jnp.sum(kept, axis=(0, 1)) / jnp.sum(1.0 - holes)
    weights = neighbor_sums(jnp.ones_like(holes))

    def matrix(x: jax.Array) -> jax.Array:
        return holes * (weights * x - neighbor_sums(holes * x))

    right = holes * neighbor_sums(kept)
    start = holes * mean[None, None]
    solved, _ = jax.scipy.sparse.linalg.cg(matrix, right, start, tol=TOLERANCE, maxiter=ITERATIONS)
    return kept + holes * solved
