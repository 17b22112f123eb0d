"""Ideal images: objective x parameterisation x transforms, a whole grid of them climbed by one compiled program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tl.ascent import ascend
from tl.ascent.transforms import Transform
from tl.backbones.layers import redirected_gradients
from tl.paths import nearest
from tl.types import Array, Variables
from tl.visualize import objectives
from tl.visualize.images import Image


class Ideal(NamedTuple):
    """What a climb found.

    Attributes:
      images: images01 f32[b h w 3].
      start: images01 f32[b h w 3], where it began.
      scores: f32[steps + 1 b], the objective less the costs, under random transforms.
      frames: images01 f32[frames b h w 3], the way from the start to the image.
    """

    images: jax.Array
    start: jax.Array
    scores: jax.Array
    frames: jax.Array


class Render(Protocol):
    """A jitted climb."""

    def __call__(
        self,
        variables: Any,
        keys: jax.Array,
        targets: Any,
        *,
        tv: Array | float = 0.0,
        l2: Array | float = 0.0,
        blur: Array | float = 0.0,
        step_size: float,
        start: Array | None = None,
    ) -> Ideal:
        """Ideal images, one for each key.

        Args:
          variables: the network's, or those of several, as `apply` takes them.
          keys: `jax.random.key`s [b]. An image depends on its own key and target alone, unless its objective looks at others.
          targets: what `objective` is made from; every leaf has a row an image.
          tv: weight of the variation, in the objective's units per unit of `objectives.total_variation`; a number, or f32[b].
          l2: weight of `objectives.energy`, likewise.
          blur: weight of `objectives.roughness`, likewise.
          step_size: of the first step.
          start: images01 f32[b h w 3] to begin with, in place of noise.

        Raises:
          ValueError: a score is NaN (names the step), a weight is negative or has another length, or there are not whole
            groups of images.
        """
        ...


def make(
    apply: Callable[[Any, jax.Array], Any],
    image: Image,
    objective: Callable[[Any], objectives.Objective],
    *,
    transform: Transform,
    steps: int,
    optimizer: str = "adam",
    variation: str = "anisotropic",
    last_step_size: float = 0.1,
    redirect: int = 0,
    frames: int = 0,
    together: int = 0,
    progress: Callable[[Sequence[int]], Iterable[int]] = lambda groups: groups,
) -> Render:
    """A jitted function from targets to their ideal images; all but the arguments below is traced, so a sweep compiles once.

    The objective is judged on the transformed image, the costs on the image itself.

    Args:
      apply: `(variables, images01) -> Output`, in evaluation mode; or a tuple of Outputs, for an objective that takes one.
      image: parameterisation.
      objective: targets -> objective, such as `lambda t: channel("stage3", t)`.
      transform: random views, of one image; see `tl.ascent.transforms`.
      steps: static.
      optimizer: a row of `ascend.OPTIMIZERS`.
      variation: a row of `objectives.VARIATIONS`.
      last_step_size: the step's size falls along a straight line to this share of the first.
      redirect: in so many first steps gradients pass dead units; see `redirected_gradients`.
      frames: how many pictures of the way to keep.
      together: how many images climb side by side, 0 for all. Groups climb one after another, by the same program. At 1 a grid
        of any size compiles once, and an image is the same to the last bit alone and in any grid; on a CPU it is also the
        fastest.
      progress: wraps the groups, to show how far the climb is.

    Raises:
      ValueError: unknown optimizer or variation; gives the nearest.

    Reference: Simonyan et al. 2014, arXiv:1312.6034, section 2; Olah et al. 2017, Distill, "Feature visualization"; variation
      as a cost: Mahendran & Vedaldi 2015, arXiv:1412.0035, section 3.
    """
    if optimizer not in ascend.OPTIMIZERS:
        raise ValueError(
            f"unknown optimizer {optimizer!r}; nearest: {nearest(optimizer, ascend.OPTIMIZERS)}"
        )
    if variation not in objectives.VARIATIONS:
        raise ValueError(
            f"unknown variation {variation!r}; nearest: {nearest(variation, objectives.VARIATIONS)}"
        )
    costs = objectives.VARIATIONS[variation], objectives.energy, objectives.roughness

    @jax.jit
    def group(variables: Variables, step_size: jax.Array, mine: tuple) -> Ideal:
        """One group's climb; every leaf of `mine` has a row an image."""
        keys, targets, weights, start = mine
        pairs = jax.vmap(jax.random.split)(keys)
        wanted = objective(targets)
        for cost, weight in zip(costs, weights, strict=True):
            wanted = wanted + objectives.costs(cost) * weight

        def score(theta: jax.Array, keys: jax.Array) -> jax.Array:
            images01 = image.decode(theta)
            return wanted(apply(variables, jax.vmap(transform)(keys, images01)), images01)

        def redirected(theta: jax.Array, keys: jax.Array) -> jax.Array:
            with redirected_gradients():
                return score(theta, keys)

        theta = image.init(pairs[:, 0]) if start is None else image.encode(start)
        path = ascend.ascend(
            score,
            theta,
            pairs[:, 1],
            steps=steps,
            optimizer=ascend.OPTIMIZERS[optimizer](),
            step_size=lambda done: step_size * (1.0 - (1.0 - last_step_size) * done),
            project=image.project,
            first=(redirect, redirected),
            frames=min(frames, steps),
        )
        film = jax.lax.map(image.decode, path.frames)
        return Ideal(image.decode(path.last), image.decode(theta), path.scores, film)

    def ideal(
        variables: Any,
        keys: jax.Array,
        targets: Any,
        *,
        tv: Array | float = 0.0,
        l2: Array | float = 0.0,
        blur: Array | float = 0.0,
        step_size: float,
        start: Array | None = None,
    ) -> Ideal:
        b = keys.shape[0]
        weights = tuple(
            _weight(name, value, b) for name, value in (("tv", tv), ("l2", l2), ("blur", blur))
        )
        size = together or b
        if b % size:
            raise ValueError(
                f"images climb in groups of {size}; got {b} images, which is no whole number of groups"
            )
        begin = None if start is None else jnp.asarray(start)
        mine = (keys, jax.tree.map(jnp.asarray, targets), weights, begin)
        cut = lambda i: jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, i, size), mine)
        found = []
        for i in progress(range(0, b, size)):
            found.append(jax.block_until_ready(group(variables, jnp.float32(step_size), cut(i))))
            if not isinstance(found[-1].scores, Tracer):
                _finite(np.asarray(found[-1].scores), i, step_size)
        images, begun, scores, film = zip(*found, strict=True)
        return Ideal(
            *map(jnp.concatenate, (images, begun)),
            *(jnp.concatenate(x, axis=1) for x in (scores, film)),
        )

    return ideal


def _weight(name: str, value: Any, b: int) -> jax.Array:
    if not isinstance(value, Tracer):
        numbers = np.asarray(value, np.float32)
        if numbers.shape not in ((), (b,)) or not (numbers >= 0).all():
            raise ValueError(
                f"{name} is a weight of at least 0, or one for each of {b} images; got {value}"
            )
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (b,))


def _finite(scores: np.ndarray, before: int, step_size: float) -> None:
    """Raises where a climb broke: the first step whose score is not a finite number; `before` images came before these."""
    broken = ~np.isfinite(scores)
    if broken.any():
        step, image = np.argwhere(broken)[0].tolist()
        raise ValueError(
            f"the objective of image {before + image} became {scores[step, image]} at step {step}; take a smaller step size "
            f"than {step_size:g}, or another objective"
        )
