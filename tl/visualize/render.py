"""The ideal image of a class: objective x parameterisation x transforms, climbed in one compiled scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from tl import ascend
from tl.paths import nearest
from tl.types import Array, Output, Variables
from tl.visualize import objectives
from tl.visualize.images import Image
from tl.visualize.transforms import Transform


class Ideal(NamedTuple):
    """What a climb found.

    Attributes:
      images: images01 f32[b h w 3].
      start: images01 f32[b h w 3], where it began.
      scores: f32[steps + 1 b], the objective under random transforms.
    """

    images: jax.Array
    start: jax.Array
    scores: jax.Array


class Render(Protocol):
    """A jitted climb."""

    def __call__(
        self,
        variables: Variables,
        key: jax.Array,
        members: Array,
        *,
        tv: jax.Array | float,
        l2: float,
        step_size: float,
    ) -> Ideal:
        """Ideal images of classes.

        Args:
          members: bool[b k], the classes each image should show.
          tv: weight of the variation loss, in logits per unit of `objectives.total_variation`; one number or f32[b], traced.
          l2: weight of `objectives.energy`, in logits, traced.
          step_size: of the first step; it falls to a tenth along a straight line.
        """
        ...


def make_ideal(
    apply: Callable[[Variables, jax.Array], Output],
    image: Image,
    *,
    transform: Transform,
    steps: int,
    optimizer: str = "adam",
    objective: Callable[[jax.Array], objectives.Objective] = objectives.class_logit,
) -> Render:
    """A jitted function from classes to their ideal images; weights, key, classes, `tv`, `l2` and step size are traced.

    The class is judged on the transformed image, the variation on the image itself.

    Args:
      apply: `(variables, images01) -> Output`, in evaluation mode.
      image: parameterisation, with as many images as `members` will have rows.
      transform: random views between the steps.
      steps: static.
      optimizer: a row of `ascend.OPTIMIZERS`.
      objective: members -> objective.

    Raises:
      ValueError: unknown optimizer.

    Reference: Simonyan et al. 2014, arXiv:1312.6034, section 2 (the logit, not the probability); variation loss: Mahendran &
      Vedaldi 2015, arXiv:1412.0035, section 3.
    """
    if optimizer not in ascend.OPTIMIZERS:
        raise ValueError(f"unknown optimizer {optimizer!r}; nearest: {nearest(optimizer, ascend.OPTIMIZERS)}")

    @jax.jit
    def run(
        variables: Variables, key: jax.Array, members: jax.Array, tv: jax.Array, l2: jax.Array, step_size: jax.Array
    ) -> Ideal:
        key_start, key_climb = jax.random.split(key)
        wanted = objective(members) + objectives.smoothness() * tv + objectives.calmness() * l2

        def score(theta: jax.Array, key: jax.Array) -> jax.Array:
            images01 = image.decode(theta)
            return wanted(apply(variables, transform(key, images01)), images01)

        theta = image.init(key_start)
        rate = lambda done: step_size * (1.0 - 0.9 * done)  # noqa: E731
        path = ascend.ascend(
            score, theta, key_climb, steps=steps, optimizer=ascend.OPTIMIZERS[optimizer](), step_size=rate
        )
        return Ideal(image.decode(path.last), image.decode(theta), path.scores)

    def ideal(variables, key, members, *, tv, l2, step_size):
        weights = jnp.broadcast_to(jnp.asarray(tv, jnp.float32), (members.shape[0],))
        return run(variables, key, jnp.asarray(members), weights, jnp.float32(l2), jnp.float32(step_size))

    return ideal
