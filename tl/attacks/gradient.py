"""Attacks that follow the gradient. To add one: a function that returns an `Attack`, and a row in `ATTACKS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.core import Tracer

from tl import ascend, pixels
from tl.attacks.goals import Goal
from tl.attacks.norms import Norm
from tl.paths import nearest
from tl.types import Array, Variables

Logits = Callable[[Variables, jax.Array], jax.Array]


class AttackResult(NamedTuple):
    """What an attack found.

    Attributes:
      images: f32[b h w 3] on the k / 255 grid, so that an 8-bit file holds exactly these pictures.
      success: bool[b], by the network, on `images`. What counts is the file: read it back.
      score: f32[b], the goal's score on `images`.
    """

    images: jax.Array
    success: jax.Array
    score: jax.Array


class Attack(Protocol):
    """A jitted attack; `eps` and `step_size` are traced, a sweep over them compiles once."""

    def __call__(
        self,
        variables: Variables,
        key: jax.Array,
        images01: Array,
        members: Array,
        *,
        eps: float,
        step_size: float,
    ) -> AttackResult:
        """Adversarial pictures.

        Args:
          images01: f32[b h w 3] in [0, 1], read from 8-bit pictures.
          members: bool[b k], the classes that the goal is about.
          eps: radius of the ball, in [0, 1] pixel units: 4/255, not 4.
          step_size: length of one step, in the same units.
        """
        ...


def make_pgd(logits: Logits, *, norm: Norm, goal: Goal, steps: int, restarts: int = 1) -> Attack:
    """Projected gradient ascent from a random start, on the lattice of 8-bit pictures.

    Every score is that of the rounded picture, and the gradient passes the rounding unchanged (straight through), so what
    is climbed is what will be saved. The best point on the way is kept, of all restarts.

    Args:
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      steps: static; one step with `step_size` = eps is FGSM from a random start.
      restarts: independent starts, one after another.

    Returns:
      An `Attack`.

    Raises:
      ValueError: steps or restarts below 1; and, when called, `images01` or `eps` out of range.

    Reference: Madry et al. 2018, arXiv:1706.06083, section 2.1; straight-through rounding: Bengio et al. 2013,
      arXiv:1308.3432; why on the lattice: Carlini & Wagner 2017, arXiv:1608.04644, on discretization.
    """
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps and restarts must be at least 1; got {steps} and {restarts}")

    @jax.jit
    def run(variables, key, center, members, eps, step_size):
        def rounded(x: jax.Array) -> jax.Array:
            return jax.lax.stop_gradient(norm.lattice(x, center, eps)) + (x - jax.lax.stop_gradient(x))  # exactly on it

        def score(x: jax.Array, key: jax.Array) -> jax.Array:
            del key  # the network is deterministic
            return goal.score(logits(variables, rounded(x)), members)

        def climb(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            path = ascend.ascend(
                score,
                norm.start(key, center, eps),
                key,
                steps=steps,
                optimizer=ascend.direction(norm.direction),
                step_size=step_size,
                project=lambda x: norm.project(x, center, eps),
            )
            return path.best, jnp.max(path.scores, axis=0)

        tried, scores = jax.lax.map(climb, jax.random.split(key, restarts))
        winner = jnp.argmax(scores, axis=0)
        best = jnp.take_along_axis(tried, winner.reshape(1, -1, *(1,) * (center.ndim - 1)), axis=0)[0]
        images = norm.lattice(best, center, eps)
        found = logits(variables, images)
        return AttackResult(images, goal.success(found, members), goal.score(found, members))

    def attack(variables, key, images01, members, *, eps, step_size):
        pixels.check(images01, ndim=4)
        if not isinstance(eps, Tracer) and not 0 <= float(eps) <= 1:
            raise ValueError(f"eps is a share of the pixel range [0, 1], such as 4/255; got {float(eps):.4g}")
        return run(variables, key, images01, members, jnp.float32(eps), jnp.float32(step_size))

    return attack


ATTACKS: dict[str, Callable[..., Attack]] = {"pgd": make_pgd}


def get(name: str) -> Callable[..., Attack]:
    """The maker of the attack called `name`; ValueError with the nearest names where there is none."""
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}; nearest: {nearest(name, ATTACKS)}")
    return ATTACKS[name]
