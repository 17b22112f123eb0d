"""What an image is optimized for: an objective is a function to maximize.

Objectives add, subtract and scale. Where an argument is an array with one row per image, `render`
traces it, so that a grid of targets is one compiled program. To add an objective: a function that
returns an `Objective`, and a row in `KINDS` of `tl/visualize/specs.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from tl.losses import group_log_probability
from tl.paths import nearest
from tl.types import Output


class Objective:
    """`(output, images01) -> f32[b]`, with `+`, `-` and `*` by a number or by f32[b].

    Example:
      >>> values = Objective(lambda output, images01: images01)
      >>> (2.0 * values + values)(None, 1.0)
      3.0
    """

    __array_ufunc__ = None  # lets NumPy's `array * objective` call `__rmul__`

    def __init__(self, function: Callable[[Output, jax.Array], jax.Array]):
        self.function = function

    def __call__(self, output: Output, images01: jax.Array) -> jax.Array:
        return self.function(output, images01)

    def __add__(self, other: Objective) -> Objective:
        return Objective(lambda output, images: self(output, images) + other(output, images))

    def __mul__(self, scale: float | jax.Array) -> Objective:
        return Objective(lambda output, images: self(output, images) * scale)

    __rmul__ = __mul__

    def __sub__(self, other: Objective) -> Objective:
        return self + other * -1.0


# ---- classes ----


def _logits(output: Output) -> jax.Array:
    if output.logits is None:
        raise ValueError(
            "this objective reads class logits, and the network has no classifier; use an "
            "objective of activations, such as channel"
        )
    return output.logits


def class_logit(class_mask: jax.Array) -> Objective:
    """The mean logit of each image's classes. It keeps growing after the probability is 1.

    Args:
      class_mask: bool[b k].

    Reference:
      Simonyan et al. 2014, arXiv:1312.6034, section 2.
    """
    return Objective(lambda output, _: jnp.mean(_logits(output), axis=1, where=class_mask))


def class_log_probability(class_mask: jax.Array) -> Objective:
    """The log of the total probability of each image's classes, in nats: minus the cross-entropy.

    Args:
      class_mask: bool[b k].
    """
    return Objective(lambda output, _: group_log_probability(_logits(output), class_mask))


# ---- activations ----


def activations(output: Output, endpoint: str) -> jax.Array:
    """The map f32[b h w c] of an endpoint.

    Args:
      output: the network's output.
      endpoint: its name; "features" is f32[b 1 1 d] and "logits" is f32[b 1 1 k].

    Raises:
      ValueError: if the network has no such endpoint. Names the nearest.
    """
    if endpoint in ("features", "logits"):
        flat = output.features if endpoint == "features" else _logits(output)
        return flat[:, None, None].astype(jnp.float32)
    if endpoint not in output.endpoints:
        names = ["features", "logits", *output.endpoints]
        raise ValueError(
            f"the network has no endpoint {endpoint!r}; nearest: {nearest(endpoint, names)}"
        )
    return output.endpoints[endpoint].astype(jnp.float32)


def _take(values: jax.Array, index: jax.Array) -> jax.Array:
    """values f32[b n], index i32[b] -> f32[b].

    An index out of range is clipped: it belongs to an image with another objective.
    """
    inside = jnp.clip(index, 0, values.shape[1] - 1)
    return jnp.take_along_axis(values, inside[:, None], axis=1)[:, 0]


def channel(endpoint: str, index: jax.Array) -> Objective:
    """The mean of one channel over its map.

    Args:
      endpoint: its endpoint.
      index: i32[b], its index.
    """
    return Objective(
        lambda output, _: _take(jnp.mean(activations(output, endpoint), axis=(1, 2)), index)
    )


def neuron(endpoint: str, index: jax.Array, place: jax.Array | None = None) -> Objective:
    """One channel at one position of its map.

    Args:
      endpoint: its endpoint.
      index: i32[b], its channel.
      place: i32[b 2], row and column. -1 is the center, h // 2 or w // 2, and so is None.
    """

    def value(output: Output, _: jax.Array) -> jax.Array:
        maps = activations(output, endpoint)
        b, h, w, c = maps.shape
        center = jnp.asarray([[h // 2, w // 2]], jnp.int32)
        where = jnp.full((b, 2), -1, jnp.int32) if place is None else place
        where = jnp.clip(
            jnp.where(where < 0, center, where), 0, jnp.asarray([[h - 1, w - 1]], jnp.int32)
        )
        rows = jnp.take_along_axis(
            maps.reshape(b, h * w, c), (where[:, :1] * w + where[:, 1:])[:, :, None], axis=1
        )
        return _take(rows[:, 0], index)

    return Objective(value)


def direction(endpoint: str, vector: jax.Array) -> Objective:
    """The mean over the map of the dot product with a direction in activation space.

    Args:
      endpoint: its endpoint.
      vector: f32[b c], the direction.
    """
    mean = lambda output: jnp.mean(activations(output, endpoint), axis=(1, 2))
    return Objective(lambda output, _: jnp.sum(mean(output) * vector, axis=1))


def cosine(endpoint: str, vector: jax.Array, power: float = 2.0) -> Objective:
    """`direction`, times a power of its cosine: an image of this mixture of channels alone.

    Args:
      endpoint: its endpoint.
      vector: f32[b c], the direction.
      power: exponent of the cosine, which is at least 0.1, so that a start that points elsewhere
        has a gradient. 0 is `direction`.

    Reference:
      lucid, `objectives.direction_cossim` and `dot_cossim` (cossim_pow), for the mean over the map.
    """

    def value(output: Output, _: jax.Array) -> jax.Array:
        mean = jnp.mean(activations(output, endpoint), axis=(1, 2))
        dot = jnp.sum(mean * vector, axis=1)
        lengths = jnp.sqrt(jnp.sum(mean**2, axis=1) + 1e-12) * jnp.sqrt(
            jnp.sum(vector**2, axis=1) + 1e-12
        )
        return dot * jnp.maximum(dot / lengths, 0.1) ** power

    return Objective(value)


def layer(endpoint: str) -> Objective:
    """The mean square of all activations of an endpoint: deep dream.

    Reference:
      Mordvintsev, Olah & Tyka 2015, "Inceptionism"; lucid, `objectives.deepdream`.
    """
    return Objective(lambda output, _: jnp.mean(activations(output, endpoint) ** 2, axis=(1, 2, 3)))


def diversity(endpoint: str) -> Objective:
    """Minus the mean cosine between an image's Gram matrix of channels and those of the batch.

    In [-1, 0]; a single image has 0. The score of an image depends on the others of its batch, so
    they have to be optimized in one group.

    Reference:
      lucid, `objectives.diversity`, which sums over pairs.
    """

    def value(output: Output, _: jax.Array) -> jax.Array:
        maps = activations(output, endpoint)
        b, h, w, c = maps.shape
        flat = maps.reshape(b, h * w, c)
        grams = jnp.einsum("bpc,bpd->bcd", flat, flat).reshape(b, c * c)
        unit = grams / jnp.sqrt(jnp.sum(grams**2, axis=1, keepdims=True) + 1e-12)
        cosines = (unit @ unit.T) * (1.0 - jnp.eye(b, dtype=jnp.float32))
        return -jnp.sum(cosines, axis=1) / max(b - 1, 1)

    return Objective(value)


def likeness(endpoint: str, target: jax.Array) -> Objective:
    """Feature inversion: minus the squared distance to a photograph's activations.

    In units of their squared norm: 0 at the photograph, -1 where all activations are 0.

    Args:
      endpoint: its endpoint.
      target: f32[b h w c], the endpoint's map of the photograph.

    Reference:
      Mahendran & Vedaldi 2015, arXiv:1412.0035, section 2, equation 2. lucid's
      `activation_difference` does not divide by the norm.
    """

    def value(output: Output, _: jax.Array) -> jax.Array:
        gap = _same_shape(activations(output, endpoint), target, endpoint) - target
        return -jnp.sum(gap**2, axis=(1, 2, 3)) / (jnp.sum(target**2, axis=(1, 2, 3)) + 1e-12)

    return Objective(value)


def caricature(endpoint: str, target: jax.Array, power: float = 1.0) -> Objective:
    """The dot product with a photograph's activations times a power of their cosine.

    It exaggerates the features that the endpoint detects in the photograph. In units of the squared
    norm of the photograph's activations: 1 at the photograph.

    Args:
      endpoint: its endpoint.
      target: f32[b h w c], the endpoint's map of the photograph.
      power: exponent of the cosine, which is at least 0.1.

    Reference:
      lucid, `recipes/caricature.py` (dot product times cosine to a power), over the whole map.
    """

    def value(output: Output, _: jax.Array) -> jax.Array:
        maps = _same_shape(activations(output, endpoint), target, endpoint)
        dot, photo, image = _products(maps, target)
        cosine = dot * jax.lax.rsqrt(photo) * jax.lax.rsqrt(image)
        return dot / photo * jnp.maximum(cosine, 0.1) ** power

    return Objective(value)


def similarity(endpoint: str, target: jax.Array) -> Objective:
    """The cosine between the activations of the image and those of a photograph, in [-1, 1].

    Args:
      endpoint: its endpoint; "features" compares without positions.
      target: f32[b h w c], the endpoint's map of the photograph.
    """

    def value(output: Output, _: jax.Array) -> jax.Array:
        maps = _same_shape(activations(output, endpoint), target, endpoint)
        dot, photo, image = _products(maps, target)
        return dot * jax.lax.rsqrt(photo) * jax.lax.rsqrt(image)

    return Objective(value)


def _products(maps: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The dot products f32[b] of map and target, and their squared norms, the target's first."""
    dot = jnp.sum(maps * target, axis=(1, 2, 3))
    photo, image = (jnp.sum(x**2, axis=(1, 2, 3)) + 1e-12 for x in (target, maps))
    return dot, photo, image


def _same_shape(maps: jax.Array, target: jax.Array, endpoint: str) -> jax.Array:
    """The maps at the target's size: a random transform may show the network a larger image."""
    if maps.shape[-1] != target.shape[-1]:
        raise ValueError(
            f"`target` does not fit {endpoint}: got {target.shape[-1]} channels, expected "
            f"{maps.shape[-1]}"
        )
    return maps if maps.shape == target.shape else jax.image.resize(maps, target.shape, "linear")


def either(objectives: Sequence[Objective], which: jax.Array) -> Objective:
    """One of several objectives for each image of a batch.

    Args:
      objectives: the objectives. All are computed for all images.
      which: i32[b], the index of each image's objective.
    """
    if len(objectives) == 1:
        return objectives[0]
    return Objective(
        lambda out, images: _take(jnp.stack([value(out, images) for value in objectives], 1), which)
    )


# ---- costs of the image itself ----


def total_variation(images01: jax.Array) -> jax.Array:
    """Total variation: the mean absolute difference of horizontal plus of vertical neighbors.

    It is averaged over pixels and channels and so does not depend on the size;
    `tf.image.total_variation` is the sum. White noise in [0, 1] has 2/3, photographs 0.05 to 0.15.

    Args:
      images01: f32[b h w c] in [0, 1].

    Returns:
      f32[b], in units of the pixel range per pixel.

    Reference:
      Rudin, Osher & Fatemi 1992, in the anisotropic form.
    """
    across = jnp.mean(jnp.abs(images01[:, :, 1:] - images01[:, :, :-1]), axis=(1, 2, 3))
    down = jnp.mean(jnp.abs(images01[:, 1:] - images01[:, :-1]), axis=(1, 2, 3))
    return across + down


def isotropic_variation(images01: jax.Array) -> jax.Array:
    """Isotropic total variation, the mean of sqrt(across^2 + down^2): no direction costs less.

    The unit is that of `total_variation`, which is never smaller. Differences across the last row
    and column are 0.

    Args:
      images01: f32[b h w c] in [0, 1].

    Returns:
      f32[b].

    Reference:
      Rudin, Osher & Fatemi 1992, equation 2.1, with 1e-12 under the root for a finite gradient of
      uniform images.
    """
    across = jnp.pad(images01[:, :, 1:] - images01[:, :, :-1], ((0, 0), (0, 0), (0, 1), (0, 0)))
    down = jnp.pad(images01[:, 1:] - images01[:, :-1], ((0, 0), (0, 1), (0, 0), (0, 0)))
    return jnp.mean(jnp.sqrt(across**2 + down**2 + 1e-12), axis=(1, 2, 3))


VARIATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "anisotropic": total_variation,
    "isotropic": isotropic_variation,
}


def energy(images01: jax.Array) -> jax.Array:
    """The mean squared distance from mid-gray: the mean of (2 x - 1)^2.

    Args:
      images01: f32[b h w c] in [0, 1].

    Returns:
      f32[b] in [0, 1], from uniform gray to black and white.

    Reference:
      The L2 regularizer of Simonyan et al. 2014, arXiv:1312.6034, section 2, around gray and
      averaged over pixels.
    """
    return jnp.mean(jnp.square(2.0 * images01 - 1.0), axis=(1, 2, 3))


def roughness(images01: jax.Array) -> jax.Array:
    """The mean squared distance from the blurred image.

    No gradient flows through the blurred image, so a gradient step moves the image toward it.

    Args:
      images01: f32[b h w c] in [0, 1].

    Returns:
      f32[b].

    Reference:
      lucid, `objectives.blur_input_each_step` (3 x 3, weights 1 2 1, there halved and summed).
    """
    wide = jnp.pad(images01, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = 0.25 * wide[:, :-2] + 0.5 * wide[:, 1:-1] + 0.25 * wide[:, 2:]
    blurred = 0.25 * rows[:, :, :-2] + 0.5 * rows[:, :, 1:-1] + 0.25 * rows[:, :, 2:]
    return jnp.mean(jnp.square(images01 - jax.lax.stop_gradient(blurred)), axis=(1, 2, 3))


def costs(cost: Callable[[jax.Array], jax.Array]) -> Objective:
    """Minus a cost of the image itself, to be scaled by its weight.

    Example:
      >>> smooth = costs(total_variation) * 200.0
    """
    return Objective(lambda _, images01: -cost(images01))
