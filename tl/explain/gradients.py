"""Methods that read the gradient with respect to the image, and the edge map as a control.

To add one: a function `(**options) -> Method` and a row in `methods.METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tl import pixels
from tl.attacks.baselines import gaussian_blur
from tl.backbones.gradients import guided_gradients
from tl.explain import baselines
from tl.explain.base import Method, Problem, Rows, check_count, repeat, sum_passes
from tl.types import Array


def image_gradient(
    problem: Problem, images01: jax.Array, targets: Any, lowpass: float = 0.0
) -> jax.Array:
    """The gradient of the scores with respect to their images, f32[b h w c].

    Args:
      problem: the network and its objective.
      images01: f32[b h w c].
      targets: arguments of the objective.
      lowpass: standard deviation of a Gaussian that filters the gradient, in pixels; 0 is none.
    """
    slope = jax.grad(lambda x: jnp.sum(problem.score(x, targets)))(images01)
    if not lowpass:
        return slope
    return gaussian_blur(slope, jnp.full(len(slope), lowpass, jnp.float32))


def _check_lowpass(lowpass: float) -> None:
    if not 0 <= lowpass < np.inf:
        raise ValueError(f"`lowpass` must be at least 0 pixels: got {lowpass}")


def _strongest(gradient: jax.Array) -> jax.Array:
    """The largest absolute value over the channels: f32[b h w c] -> f32[b h w]."""
    return jnp.max(jnp.abs(gradient), axis=-1)


def gradient(*, lowpass: float = 0.0) -> Method:
    """Saliency: the largest absolute gradient over the channels.

    Args:
      lowpass: standard deviation of a Gaussian that filters the gradient before its absolute value,
        in pixels. 0 is no filter. The high frequencies of gradients are mostly artifacts of pooling
        and strides.

    Raises:
      ValueError: `lowpass` is negative.

    Reference: Simonyan et al. 2014, arXiv:1312.6034, section 3.1. Low-pass filter: Muzellec et al.
      2024, arXiv:2307.09591, who set Fourier coefficients to 0 instead.
    """
    _check_lowpass(lowpass)

    def maps(problem: Problem, rows: Rows) -> jax.Array:
        return _strongest(image_gradient(problem, rows.images01, rows.targets, lowpass))

    return Method(maps, signed=False)


def gradient_x_input(*, lowpass: float = 0.0) -> Method:
    """The gradient times the image in [0, 1], summed over the channels.

    It is the contribution of each pixel, compared with black, if the network were linear. Captum
    multiplies by the normalized input instead.

    Args:
      lowpass: as for `gradient`.

    Raises:
      ValueError: `lowpass` is negative.

    Reference: Shrikumar et al. 2017, arXiv:1605.01713, section 2.
    """

    _check_lowpass(lowpass)

    def maps(problem: Problem, rows: Rows) -> jax.Array:
        slope = image_gradient(problem, rows.images01, rows.targets, lowpass)
        return jnp.sum(slope * rows.images01, axis=-1)

    return Method(maps, signed=True)


def guided(*, lowpass: float = 0.0) -> Method:
    """Guided backpropagation: ReLUs pass on positive gradients only. A control.

    It reconstructs edges and hardly depends on the weights of the last layers (Adebayo et al. 2018,
    arXiv:1810.03292). In networks without ReLU it is the gradient.

    Args:
      lowpass: as for `gradient`.

    Raises:
      ValueError: `lowpass` is negative.

    Reference: Springenberg et al. 2015, arXiv:1412.6806, section 3.4.
    """
    _check_lowpass(lowpass)

    def maps(problem: Problem, rows: Rows) -> jax.Array:
        with guided_gradients():
            return _strongest(image_gradient(problem, rows.images01, rows.targets, lowpass))

    return Method(maps, signed=False)


def ig(*, nodes: int = 50, baseline: str = "black") -> Method:
    """Integrated gradients, summed over the channels.

    The gradient is averaged over the line from a baseline to the image, at Gauss-Legendre nodes,
    and multiplied by their difference. The map adds up to the score of the image minus that of the
    baseline, or the mean of several.

    Args:
      nodes: passes per baseline, at least 2.
      baseline: names of `baselines.BASELINES`, joined with "+".

    Raises:
      ValueError: fewer than two nodes, or an unknown baseline.

    Reference: Sundararajan et al. 2017, arXiv:1703.01365, section 3; several baselines: Sturmfels
      et al. 2020, Distill, "Visualizing the impact of feature attribution baselines".
    """
    check_count(2, nodes=nodes)
    draw = baselines.get(baseline)
    n = len(baseline.split("+"))
    points, shares = np.polynomial.legendre.leggauss(nodes)
    points, shares = ((points + 1) / 2).astype(np.float32), (shares / 2 / n).astype(np.float32)

    def maps(problem: Problem, rows: Rows) -> jax.Array:
        images01, starts = rows.images01, draw(rows.keys, rows.images01)[0]

        def value(index: jax.Array) -> jax.Array:
            node, start = index % nodes, starts[index // nodes]
            way = images01 - start
            at = start + jnp.asarray(points)[node][:, None, None, None] * way
            gradients = image_gradient(problem, at, repeat(rows.targets, len(index)))
            return jnp.asarray(shares)[node][:, None, None] * jnp.sum(gradients * way, axis=-1)

        return sum_passes(value, nodes * n, problem.slots)[None]

    return Method(maps, signed=True, passes=nodes * n, baselines=draw)


def expected_gradients(
    *, draws: int = 50, baseline: str = "random", references: Array | None = None
) -> Method:
    """Expected gradients, summed over the channels: integrated gradients over random baselines.

    Each draw takes a random baseline and a random point of the line from it to the image. In
    expectation, the map adds up to the score of the image minus the mean score of the baselines.

    Args:
      draws: passes per image, at least 2.
      baseline: names of `baselines.BASELINES`, joined with "+"; each draw takes one of them, and
        "random" is another image each time.
      references: f32[r h w c] in [0, 1], images of the data set, from which the baselines are drawn
        instead.

    Raises:
      ValueError: fewer than two draws, an unknown baseline, or references of another shape than the
        images or outside [0, 1].

    Reference: Erion et al. 2021, arXiv:1906.10670, equation 4.
    """
    check_count(2, draws=draws)
    draw, n = baselines.get(baseline), len(baseline.split("+"))
    if references is not None:
        pixels.check(references, ndim=4)

    def check(shape: tuple[int, ...]) -> None:
        if references is not None and references.shape[1:] != shape:
            raise ValueError(
                f"`references` must have the shape of the images: got {references.shape[1:]}, "
                f"expected {shape}"
            )

    def maps(problem: Problem, rows: Rows) -> jax.Array:
        images01 = rows.images01

        def start(key: jax.Array, choice: jax.Array) -> jax.Array:
            if references is None:
                return draw(key[None], images01)[0, jnp.floor(choice * n).astype(jnp.int32)]
            return jnp.asarray(references)[jnp.floor(choice * len(references)).astype(jnp.int32)]

        def value(index: jax.Array) -> jax.Array:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(rows.keys[0], index)
            point, choice = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys).T
            starts = jax.vmap(start)(keys, choice)
            way = images01 - starts
            at = starts + point[:, None, None, None] * way
            gradients = image_gradient(problem, at, repeat(rows.targets, len(index)))
            return jnp.sum(gradients * way, axis=-1)

        return sum_passes(value, draws, problem.slots)[None] / draws

    return Method(maps, signed=True, passes=draws, check=check)


def _noisy(reduce: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., Method]:
    """A method of the mean f32[h w c] of noisy gradients and that of their squares."""

    def method(*, draws: int = 25, noise: float = 0.15, lowpass: float = 0.0) -> Method:
        """Gradients of the image with normal noise; see `METHODS` for what is made of them.

        Args:
          draws: passes per image, at least 2.
          noise: standard deviation of the noise, as a share of the image's range.
          lowpass: as for `gradient`; it filters the gradient of each draw.

        Raises:
          ValueError: fewer than two draws, `noise` outside (0, 1], or `lowpass` is negative.

        Reference: Smilkov et al. 2017, arXiv:1706.03825, section 3.
        """
        check_count(2, draws=draws)
        if not 0 < noise <= 1:
            raise ValueError(f"`noise` must be in (0, 1]: got {noise}")
        _check_lowpass(lowpass)

        def maps(problem: Problem, rows: Rows) -> jax.Array:
            image = rows.images01
            sigma = noise * (jnp.max(image) - jnp.min(image))

            def value(index: jax.Array) -> tuple[jax.Array, jax.Array]:
                keys = jax.vmap(jax.random.fold_in, (None, 0))(rows.keys[0], index)
                # Drawn flat: XLA on a CPU takes seconds to compile a random draw of rank 4.
                draw = jax.vmap(lambda key: jax.random.normal(key, (image.size,)))
                noisy = image + sigma * draw(keys).reshape(-1, *image.shape[1:])
                targets = repeat(rows.targets, len(index))
                gradients = image_gradient(problem, noisy, targets, lowpass)
                return gradients, jnp.square(gradients)

            sums = sum_passes(value, draws, problem.slots)
            return reduce(*(total[None] / draws for total in sums))

        return Method(maps, signed=False, passes=draws)

    return method


smoothgrad = _noisy(lambda mean, square: _strongest(mean))
smoothgrad_sq = _noisy(lambda mean, square: jnp.sum(square, axis=-1))
# Rounding may make the variance slightly negative.
vargrad = _noisy(lambda mean, square: jnp.sum(jnp.maximum(square - jnp.square(mean), 0.0), axis=-1))


def edges() -> Method:
    """The magnitude of the Sobel gradient of the gray image. A control: it reads no network.

    Reference: Adebayo et al. 2018, arXiv:1810.03292, section 5, which compares explanations with an
      edge detector.
    """

    def maps(problem: Problem, rows: Rows) -> jax.Array:
        gray = jnp.mean(rows.images01, axis=-1)
        x = jnp.pad(gray, ((0, 0), (1, 1), (1, 1)), mode="edge")
        smooth_rows = x[:, :-2] + 2.0 * x[:, 1:-1] + x[:, 2:]
        smooth_columns = x[:, :, :-2] + 2.0 * x[:, :, 1:-1] + x[:, :, 2:]
        across = smooth_rows[:, :, 2:] - smooth_rows[:, :, :-2]
        down = smooth_columns[:, 2:] - smooth_columns[:, :-2]
        return jnp.sqrt(jnp.square(across) + jnp.square(down))

    return Method(maps, signed=False, passes=0)
