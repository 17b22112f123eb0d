"""Class activation maps: the activations of an endpoint, weighted by their gradients.

To add one: a function `(**options) -> Method` and a row in `methods.METHODS`. The maps have the
resolution of the endpoint and are resized bilinearly to the image.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tl.explain.base import Method, Problem, Rows, repeat, sum_passes


def _method(
    combine: Callable[[jax.Array, jax.Array], jax.Array], endpoint: str, relu: bool = True
) -> Method:
    """A method of activations and gradients, f32[b h w c] each, of an endpoint."""

    def maps(problem: Problem, rows: Rows) -> jax.Array:
        images01 = rows.images01
        activations = problem.activations(images01)
        score = lambda maps: jnp.sum(problem.score_from(maps, images01, rows.targets))
        raw = combine(activations, jax.grad(score)(activations))
        raw = jnp.maximum(raw, 0.0) if relu else raw
        return jax.image.resize(raw, images01.shape[:3], "linear")

    return Method(maps, signed=not relu, endpoint=endpoint)


def gradcam(*, endpoint: str = "", relu: bool = True) -> Method:
    """Grad-CAM: activations, each channel weighted by the mean of its gradient.

    Args:
      endpoint: a stage of the network. Default: the last one.
      relu: set negative values to 0, as in the paper. Without it the map is signed; Captum's
        default is the map without ReLU.

    Reference: Selvaraju et al. 2017, arXiv:1610.02391, section 3, equations 1 and 2.
    """
    return _method(
        lambda maps, slope: jnp.sum(maps * jnp.mean(slope, axis=(1, 2), keepdims=True), axis=-1),
        endpoint,
        relu,
    )


def gradcam_plus_plus(*, endpoint: str = "") -> Method:
    """Grad-CAM++: positive gradients are averaged with weights that favor all of several objects.

    Reference: Chattopadhay et al. 2018, arXiv:1710.11063, equations 5, 10 and 19, with
      the exponential of the score.
    """

    def combine(maps: jax.Array, slope: jax.Array) -> jax.Array:
        total = jnp.sum(maps, axis=(1, 2), keepdims=True)
        below = 2.0 * slope**2 + total * slope**3
        alpha = jnp.where(below == 0, 0.0, slope**2 / jnp.where(below == 0, 1.0, below))
        weights = jnp.sum(alpha * jnp.maximum(slope, 0.0), axis=(1, 2), keepdims=True)
        return jnp.sum(maps * weights, axis=-1)

    return _method(combine, endpoint)


def layercam(*, endpoint: str = "") -> Method:
    """Layer-CAM: each activation is weighted by its own positive gradient, at any depth.

    Reference: Jiang et al. 2021, "LayerCAM: Exploring Hierarchical Class Activation Maps for
      Localization", IEEE TIP 30, equations 5 to 7.
    """
    return _method(lambda maps, slope: jnp.sum(maps * jnp.maximum(slope, 0.0), axis=-1), endpoint)


def scorecam(*, endpoint: str = "") -> Method:
    """Score-CAM: channels are weighted by the score of the image behind them, without gradients.

    Each channel, resized to the image and scaled to [0, 1], is a mask in front of the image, with
    black behind it. The weights are the softmax of the scores over the channels.

    Reference: Wang et al. 2020, arXiv:1910.01279, algorithm 1.
    """

    def maps(problem: Problem, rows: Rows) -> jax.Array:
        images01 = rows.images01
        activations = problem.activations(images01)
        c = activations.shape[-1]

        def value(index: jax.Array) -> jax.Array:
            channels = jnp.moveaxis(activations[0][:, :, index], -1, 0)
            channels = jax.image.resize(channels, (len(index), *images01.shape[1:3]), "linear")
            low, high = (rule(channels, (1, 2), keepdims=True) for rule in (jnp.min, jnp.max))
            masks = (channels - low) / jnp.maximum(high - low, 1e-12)
            scores = problem.score(masks[..., None] * images01, repeat(rows.targets, len(index)))
            return scores[:, None] * jax.nn.one_hot(index, c, dtype=jnp.float32)

        weights = jax.nn.softmax(sum_passes(value, c, problem.slots))
        raw = jnp.maximum(activations @ weights, 0.0)
        return jax.image.resize(raw, images01.shape[:3], "linear")

    # One pass per channel; stages have hundreds of them.
    return Method(maps, signed=False, passes=1000, endpoint=endpoint)
