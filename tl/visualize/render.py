"""The ideal image of a class: objective x parameterisation x transforms, climbed in one compiled scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from tl import ascend
from tl.types import Output, Variables
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
        self, variables: Variables, key: jax.Array, members: jax.Array, *, tv: jax.Array | float, step_size: float
    ) -> Ideal:
        """Ideal images of classes.

        Args:
          members: bool[b k], the classes each image should show.
          tv: weight of the variation loss, in logits per unit of `objectives.total_variation`; one number or f32[b], traced.
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
    """A jitted function from classes to their ideal images; weights, key, classes, `tv` and step size are traced.

    The class is judged on the transformed image, the variation on the image itself.

    Args:
      apply: `(variables, images01) -> Output`, in evaluation mode.
      image: parameterisation, with as many images as `members` will have rows.
      transform: random views between the steps.
      steps: static.
      optimizer: a row of `ascend.OPTIMIZERS`.
      objective: members -> objective.

    Reference: Simonyan et al. 2014, arXiv:1312.6034, section 2 (the logit, not the probability); variation loss: Mahendran &
      Vedaldi 2015, arXiv:1412.0035, section 3.
    """

    @jax.jit
    def run(variables: Variables, key: jax.Array, members: jax.Array, tv: jax.Array, step_size: jax.Array) -> Ideal:
        key_start, key_climb = jax.random.split(key)
        wanted, smooth = objective(members), objectives.smoothness()

        def score(theta: jax.Array, key: jax.Array) -> jax.Array:
            images01 = image.decode(theta)
            output = apply(variables, transform(key, images01))
            return wanted(output, images01) + tv * smooth(output, images01)

        theta = image.init(key_start)
        rate = lambda done: step_size * (1.0 - 0.9 * done)  # noqa: E731
        path = ascend.ascend(
            score, theta, key_climb, steps=steps, optimizer=ascend.OPTIMIZERS[optimizer](), step_size=rate
        )
        return Ideal(image.decode(path.last), image.decode(theta), path.scores)

    def ideal(variables, key, members, *, tv, step_size):
        weights = jnp.broadcast_to(jnp.asarray(tv, jnp.float32), (members.shape[0],))
        return run(variables, key, jnp.asarray(members), weights, jnp.float32(step_size))

    return ideal
