"""What an image should be ideal for. An objective is a function to be MAXIMISED; objectives add, subtract and scale.

To add one: a function that returns an `Objective`, and a row in `KINDS` of `tl/visualize/specs.py`. Where an argument is
an array with a row an image, `render` traces it: a grid of targets is one compile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from tl.losses import group_log_probability
from tl.paths import nearest
from tl.types import Output


class Objective:
    """`(output, images01) -> f32[b]`, with `+`, `-` and scalar `*` (or f32[b]: a weight an image).

    Example:
      >>> (2.0 * Objective(lambda output, images: images) + Objective(lambda output, images: images))(None, 1.0)
      3.0
    """

    __array_ufunc__ = None  # NumPy's array * objective is left to the objective

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


# -------------------------------------------------------------------------------------------------------------- classes


def _logits(output: Output) -> jax.Array:
    if output.logits is None:
        raise ValueError("this objective wants class logits, and the network has no classifier")
    return output.logits


def class_logit(members: jax.Array) -> Objective:
    """The mean logit of each image's classes; `members` bool[b k]. It keeps growing after the probability is 1.

    Reference: Simonyan et al. 2014, arXiv:1312.6034, section 2.
    """
    return Objective(lambda output, _: jnp.mean(_logits(output), axis=1, where=members))


def class_log_probability(members: jax.Array) -> Objective:
    """Log of the joint probability of each image's classes, nats; `members` bool[b k]. Minus the lesson's cross-entropy."""
    return Objective(lambda output, _: group_log_probability(_logits(output), members))


# ---------------------------------------------------------------------------------------------------------- activations


def activations(output: Output, endpoint: str) -> jax.Array:
    """The map f32[b h w c] of an endpoint; that of "features" f32[b 1 1 d], of "logits" f32[b 1 1 k].

    Raises:
      ValueError: no such endpoint; gives the nearest.
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


def _picked(values: jax.Array, index: jax.Array) -> jax.Array:
    """values f32[b n], index i32[b] -> f32[b]. Clipped: where another objective is meant, the index may be out of range."""
    inside = jnp.clip(index, 0, values.shape[1] - 1)
    return jnp.take_along_axis(values, inside[:, None], axis=1)[:, 0]


def channel(endpoint: str, index: jax.Array) -> Objective:
    """The mean of one channel over its map; `index` i32[b]."""
    return Objective(
        lambda output, _: _picked(jnp.mean(activations(output, endpoint), axis=(1, 2)), index)
    )


def neuron(endpoint: str, index: jax.Array, place: jax.Array | None = None) -> Objective:
    """One channel at one place of its map.

    Args:
      index: i32[b].
      place: i32[b 2], row and column; -1 is the middle, h // 2 or w // 2, and so is None.
    """

    def at(output: Output, _: jax.Array) -> jax.Array:
        maps = activations(output, endpoint)
        b, h, w, c = maps.shape
        middle = jnp.asarray([[h // 2, w // 2]], jnp.int32)
        where = jnp.full((b, 2), -1, jnp.int32) if place is None else place
        where = jnp.clip(
            jnp.where(where < 0, middle, where), 0, jnp.asarray([[h - 1, w - 1]], jnp.int32)
        )
        rows = jnp.take_along_axis(
            maps.reshape(b, h * w, c), (where[:, :1] * w + where[:, 1:])[:, :, None], axis=1
        )
        return _picked(rows[:, 0], index)

    return Objective(at)


def direction(endpoint: str, vector: jax.Array) -> Objective:
    """The mean over the map of the scalar product with a vector f32[b c]: how much of a mixture of channels there is."""
    mean = lambda output: jnp.mean(activations(output, endpoint), axis=(1, 2))
    return Objective(lambda output, _: jnp.sum(mean(output) * vector, axis=1))


def cosine(endpoint: str, vector: jax.Array, power: float = 2.0) -> Objective:
    """The direction, times its cosine with the activations to a power: a picture of this mixture and of nothing else.

    Args:
      vector: f32[b c].
      power: of the cosine, which is cut off at 0.1 from below, so that a wrong start has a gradient; 0 is `direction`.

    Reference: lucid, `objectives.direction_cossim` and `dot_cossim` (cossim_pow), for the mean over the map.
    """

    def score(output: Output, _: jax.Array) -> jax.Array:
        mean = jnp.mean(activations(output, endpoint), axis=(1, 2))
        dot = jnp.sum(mean * vector, axis=1)
        lengths = jnp.sqrt(jnp.sum(mean**2, axis=1) + 1e-12) * jnp.sqrt(
            jnp.sum(vector**2, axis=1) + 1e-12
        )
        return dot * jnp.maximum(dot / lengths, 0.1) ** power

    return Objective(score)


def layer(endpoint: str) -> Objective:
    """The mean square of all activations: more of whatever the layer sees (deep dream).

    Reference: Mordvintsev, Olah & Tyka 2015, "Inceptionism"; lucid, `objectives.deepdream`.
    """
    return Objective(lambda output, _: jnp.mean(activations(output, endpoint) ** 2, axis=(1, 2, 3)))


def diversity(endpoint: str) -> Objective:
    """Minus the mean cosine between the Gram matrix of an image's channels and those of its neighbours in the batch.

    In [-1, 0]; an image alone has 0. Each image's score depends on the others: they have to climb together.

    Reference: lucid, `objectives.diversity`, there the sum over pairs.
    """

    def score(output: Output, _: jax.Array) -> jax.Array:
        maps = activations(output, endpoint)
        b, h, w, c = maps.shape
        flat = maps.reshape(b, h * w, c)
        grams = jnp.einsum("bpc,bpd->bcd", flat, flat).reshape(b, c * c)
        unit = grams / jnp.sqrt(jnp.sum(grams**2, axis=1, keepdims=True) + 1e-12)
        cosines = (unit @ unit.T) * (1.0 - jnp.eye(b, dtype=jnp.float32))
        return -jnp.sum(cosines, axis=1) / max(b - 1, 1)

    return Objective(score)


def likeness(endpoint: str, wanted: jax.Array) -> Objective:
    """Minus the squared difference from a photograph's activations, in units of their own square: feature inversion.

    0 at the photograph itself, -1 for no activation at all.

    Args:
      wanted: f32[b h w c], the endpoint's map of the photograph.

    Reference: Mahendran & Vedaldi 2015, arXiv:1412.0035, section 2, equation 2. (lucid's `activation_difference` without the
      unit.)
    """

    def score(output: Output, _: jax.Array) -> jax.Array:
        gap = _same_shape(activations(output, endpoint), wanted, endpoint) - wanted
        return -jnp.sum(gap**2, axis=(1, 2, 3)) / (jnp.sum(wanted**2, axis=(1, 2, 3)) + 1e-12)

    return Objective(score)


def caricature(endpoint: str, wanted: jax.Array, power: float = 1.0) -> Objective:
    """The scalar product with a photograph's activations, times their cosine: what the layer saw, more of it.

    In units of the photograph's own square: 1 at the photograph.

    Args:
      wanted: f32[b h w c], the endpoint's map of the photograph.
      power: of the cosine, cut off at 0.1 from below.

    Reference: lucid, `recipes/caricature.py` (dot product times cosine to a power), over the whole map.
    """

    def score(output: Output, _: jax.Array) -> jax.Array:
        maps = _same_shape(activations(output, endpoint), wanted, endpoint)
        dot = jnp.sum(maps * wanted, axis=(1, 2, 3))
        own, other = (jnp.sum(x**2, axis=(1, 2, 3)) + 1e-12 for x in (wanted, maps))
        return (
            dot / own * jnp.maximum(dot * jax.lax.rsqrt(own) * jax.lax.rsqrt(other), 0.1) ** power
        )

    return Objective(score)


def _same_shape(maps: jax.Array, wanted: jax.Array, endpoint: str) -> jax.Array:
    """The views that a network sees may be larger than the photograph was: their map is resized to the wanted one."""
    if maps.shape[-1] != wanted.shape[-1]:
        raise ValueError(
            f"{endpoint} has {maps.shape[-1]} channels, the wanted map {wanted.shape[-1]}"
        )
    return maps if maps.shape == wanted.shape else jax.image.resize(maps, wanted.shape, "linear")


def either(objectives: Sequence[Objective], which: jax.Array) -> Objective:
    """Of each image the objective with its number, `which` i32[b]: images of one batch may want different things."""
    if len(objectives) == 1:
        return objectives[0]
    return Objective(
        lambda out, images: _picked(jnp.stack([each(out, images) for each in objectives], 1), which)
    )


# ----------------------------------------------------------------------------------------------- what pictures cost


def total_variation(images01: jax.Array) -> jax.Array:
    """How restless each image is: mean |difference| of horizontal plus of vertical neighbours, f32[b h w c] -> f32[b].

    Unit: pixel range [0, 1] a step, averaged over pixels and channels, so that it does not depend on the size;
    `tf.image.total_variation` is the same sum not divided by h w c. White noise in [0, 1] has 2/3, photographs 0.05-0.15.

    Reference: Rudin, Osher & Fatemi 1992, in the anisotropic form.
    """
    across = jnp.mean(jnp.abs(images01[:, :, 1:] - images01[:, :, :-1]), axis=(1, 2, 3))
    down = jnp.mean(jnp.abs(images01[:, 1:] - images01[:, :-1]), axis=(1, 2, 3))
    return across + down


def isotropic_variation(images01: jax.Array) -> jax.Array:
    """The same with the length of both differences together, sqrt(across^2 + down^2): no direction is cheaper.

    Unit as that of `total_variation`, at most as large; differences beyond the last row and column are 0.

    Reference: Rudin, Osher & Fatemi 1992, equation 2.1. 1e-12 under the root keeps a flat picture's gradient finite.
    """
    across = jnp.pad(images01[:, :, 1:] - images01[:, :, :-1], ((0, 0), (0, 0), (0, 1), (0, 0)))
    down = jnp.pad(images01[:, 1:] - images01[:, :-1], ((0, 0), (0, 1), (0, 0), (0, 0)))
    return jnp.mean(jnp.sqrt(across**2 + down**2 + 1e-12), axis=(1, 2, 3))


VARIATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "anisotropic": total_variation,
    "isotropic": isotropic_variation,
}


def energy(images01: jax.Array) -> jax.Array:
    """How far each image is from mid-grey: mean square of 2 x - 1, f32[b h w c] -> f32[b], from 0 (grey) to 1 (black or white).

    Reference: the L2 regulariser of Simonyan et al. 2014, arXiv:1312.6034, section 2, about grey and averaged over pixels.
    """
    return jnp.mean(jnp.square(2.0 * images01 - 1.0), axis=(1, 2, 3))


def roughness(images01: jax.Array) -> jax.Array:
    """How far each image is from its blurred self: mean square difference, f32[b h w c] -> f32[b].

    The blurred image is held fixed, so a step down this slope is a step towards the blur.

    Reference: lucid, `objectives.blur_input_each_step` (3 x 3, weights 1 2 1, there halved and summed).
    """
    wide = jnp.pad(images01, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = 0.25 * wide[:, :-2] + 0.5 * wide[:, 1:-1] + 0.25 * wide[:, 2:]
    blurred = 0.25 * rows[:, :, :-2] + 0.5 * rows[:, :, 1:-1] + 0.25 * rows[:, :, 2:]
    return jnp.mean(jnp.square(images01 - jax.lax.stop_gradient(blurred)), axis=(1, 2, 3))


def costs(cost: Callable[[jax.Array], jax.Array]) -> Objective:
    """Minus a property of the picture itself, to be scaled by its weight: `costs(total_variation) * 200.0`."""
    return Objective(lambda _, images01: -cost(images01))
