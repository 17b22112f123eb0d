"""The compiled optimization of images: objective x parameterization x transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tl import devices, hosts
from tl.ascent import ascend
from tl.ascent.transforms import Transform
from tl.backbones.gradients import redirected_gradients
from tl.paths import nearest
from tl.types import Array, Variables
from tl.visualize import objectives
from tl.visualize.images import Image


class Ideal(NamedTuple):
    """Optimized images.

    Attributes:
      images: images01 f32[b h w 3].
      start: images01 f32[b h w 3], the images before the first step.
      scores: f32[steps + 1 b], the objective minus the costs, under random transforms.
      frames: images01 f32[frames b h w 3], the path from the start to the image.
    """

    images: jax.Array
    start: jax.Array
    scores: jax.Array
    frames: jax.Array


class Render(Protocol):
    """A jitted optimization of images."""

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
        """Ideal images, one per key.

        Args:
          variables: the variables of one network or several, as `apply` takes them.
          keys: `jax.random.key`s [b]. An image depends on its own key and target only, unless its
            objective reads other images.
          targets: argument of `objective`; each leaf has one row per image.
          tv: weight of the variation, in units of the objective per unit of
            `objectives.total_variation`; a number, or f32[b].
          l2: weight of `objectives.energy`; a number, or f32[b].
          blur: weight of `objectives.roughness`; a number, or f32[b].
          step_size: size of the first step.
          start: images01 f32[b h w 3], the start instead of noise.

        Raises:
          ValueError: if a score is NaN (names the step), a weight is negative or has another
            length, or the images do not fill whole groups.
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
    """A jitted function from targets to their ideal images.

    The arguments of that function are traced, so a sweep over them compiles once. The objective is
    computed on the transformed image, the costs on the image itself.

    Args:
      apply: `(variables, images01) -> Output` in evaluation mode, or a tuple of Outputs for an
        objective that takes one.
      image: the parameterization.
      objective: targets -> objective, such as `lambda t: channel("stage3", t)`.
      transform: random transform of one image; see `tl.ascent.transforms`.
      steps: number of steps, static.
      optimizer: a row of `ascend.OPTIMIZERS`.
      variation: a row of `objectives.VARIATIONS`.
      last_step_size: size of the last step as a share of the first; it falls linearly.
      redirect: number of first steps in which gradients pass dead units; see
        `redirected_gradients`.
      frames: number of images of the path to keep.
      together: images per group, 0 for all. Groups are optimized one after another by one program.
        At 1 a grid of any size compiles once, and an image has the same bits alone and in any
        grid; on a CPU it is also the fastest.
      progress: wraps the groups, to report progress.

    Raises:
      ValueError: if the optimizer or variation is unknown. Names the nearest.

    Reference:
      Simonyan et al. 2014, arXiv:1312.6034, section 2; Olah et al. 2017, Distill, "Feature
      visualization"; variation as a cost: Mahendran & Vedaldi 2015, arXiv:1412.0035, section 3.
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

    def optimize(shared: tuple[Variables, jax.Array], group: tuple) -> Ideal:
        """Optimizes one group; each leaf of `group` and of the result has one row per image."""
        variables, step_size = shared
        keys, targets, weights, start = group
        pairs = jax.vmap(jax.random.split)(keys)
        total = objective(targets)
        for cost, weight in zip(costs, weights, strict=True):
            total = total + objectives.costs(cost) * weight

        def score(theta: jax.Array, keys: jax.Array) -> jax.Array:
            images01 = image.decode(theta)
            return total(apply(variables, jax.vmap(transform)(keys, images01)), images01)

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
            step_size=lambda share: step_size * (1.0 - (1.0 - last_step_size) * share),
            project=image.project,
            first=(redirect, redirected),
            frames=min(frames, steps),
        )
        decoded = jax.lax.map(image.decode, path.frames)
        scores, frames_of = path.scores.T, jnp.swapaxes(decoded, 0, 1)
        return Ideal(image.decode(path.last), image.decode(theta), scores, frames_of)

    optimize_rows = devices.shard_rows(optimize)

    def render(
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
                f"`together` does not divide the images into whole groups: got {b} images, "
                f"expected a multiple of {size}"
            )
        first = None if start is None else jnp.asarray(start)
        rows = (keys, jax.tree.map(jnp.asarray, targets), weights, first)
        groups = b // size
        # A device optimizes one group at a time, so an image has the same bits on any number.
        together_now = min(jax.local_device_count(), groups)
        calls = -(-groups // together_now)
        shared = (variables, jnp.float32(step_size))

        def compute(i: int) -> Ideal:
            begin, end = i * together_now, min((i + 1) * together_now, groups)
            numbers = np.resize(np.arange(begin, end), together_now)
            index = (numbers[:, None] * size + np.arange(size)).ravel()
            part = optimize_rows(shared, jax.tree.map(lambda leaf: leaf[index], rows))
            part = jax.tree.map(lambda leaf: leaf[: (end - begin) * size], part)
            if isinstance(part.scores, Tracer):
                return part
            part = jax.tree.map(np.asarray, part)
            _check_finite(part.scores.T, begin * size, step_size)
            return part

        computed = hosts.shares(calls, compute)
        parts = [part for _, (part, _) in zip(progress(range(calls)), computed, strict=True)]
        images, starts, scores, paths = (jnp.concatenate(x) for x in zip(*parts, strict=True))
        return Ideal(images, starts, scores.T, jnp.swapaxes(paths, 0, 1))

    return render


def _weight(name: str, value: Any, b: int) -> jax.Array:
    if not isinstance(value, Tracer):
        numbers = np.asarray(value, np.float32)
        if numbers.shape not in ((), (b,)) or not (numbers >= 0).all():
            raise ValueError(
                f"`{name}` must be a weight of at least 0, or one per image ({b}): got {value}"
            )
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (b,))


def _check_finite(scores: np.ndarray, before: int, step_size: float) -> None:
    """Raises ValueError for the first step with a score that is not finite.

    Args:
      scores: f32[steps + 1 b].
      before: number of images in earlier groups.
      step_size: step size that the message names.
    """
    broken = ~np.isfinite(scores)
    if broken.any():
        step, image = np.argwhere(broken)[0].tolist()
        raise ValueError(
            f"the objective of image {before + image} became {scores[step, image]} at step {step}; "
            f"set `step_size` below {step_size:g}, or another objective"
        )
