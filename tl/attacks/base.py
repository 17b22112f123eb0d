"""Types that all attacks share: the attack as a function, its result, and the search behind it.

A `Search` defines how an image starts and what one step does. `tl.attacks.run` makes an `Attack` or
a `Find` of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from tl.attacks import slots
from tl.attacks.goals import Goal
from tl.attacks.norms import Norm
from tl.types import Array, Variables

Logits = Callable[[Variables, jax.Array], jax.Array]
"""`(variables, images01 f32[b h w 3]) -> f32[b k]`, in evaluation mode."""


class AttackResult(NamedTuple):
    """Adversarial images.

    Attributes:
      images: f32[b h w 3] in the ball and in [0, 1]. With `eight_bit`, all values are multiples of
        1/255, so that an 8-bit file holds exactly these images. The clean image where no better one
        was found, and at eps = 0.
      success: bool[b], whether the network's prediction for `images` meets the goal.
      score: f32[b], the goal's score of `images`.
      steps: i32[b], steps that each image took; 0 where the clean image meets the goal.
      solved_by: i32[b], index of the search that met the goal; -1 where the clean image meets it or
        no search did.
      has_gradient: bool[b], whether a step had a `usable_gradient`. First-order attacks and APGD
        report it; for other attacks it is False.
    """

    images: jax.Array
    success: jax.Array
    score: jax.Array
    steps: jax.Array
    solved_by: jax.Array
    has_gradient: jax.Array


class Attack(Protocol):
    """A jitted attack; `eps` and `step_size` are traced, so a sweep over them compiles once."""

    def __call__(
        self,
        variables: Variables,
        key: jax.Array,
        images01: Array,
        class_mask: Array,
        *,
        eps: Array | float,
        step_size: Array | float | None = None,
        skip: Array | None = None,
    ) -> AttackResult:
        """Attacks a batch of images.

        Args:
          variables: the network's variables.
          key: `jax.random.key`, from which each image derives its own key, or one key per image
            (`norms.per_image_keys`). An image's random numbers do not depend on the rest of the
            batch.
          images01: f32[b h w 3] in [0, 1], read from 8-bit images.
          class_mask: bool[b k], the classes that the goal is about.
          eps: radius of the ball in [0, 1] pixel units (4/255, not 4): a number, or f32[b].
          step_size: in the units of `eps`: a number, or f32[b]; None is the attack's default.
          skip: bool[b], images that are returned without an attack.

        Raises:
          ValueError: `images01` or `eps` is out of range.
        """
        ...


class NearestResult(NamedTuple):
    """The nearest adversarial images that a search found.

    Attributes:
      images: f32[b h w c] in [0, 1], not restricted to 8-bit values; the clean image where none was
        found.
      distance: f32[b] in the norm and [0, 1] pixel units; 0 where the clean image meets the goal,
        infinity where no adversarial image was found. A median over all images therefore counts
        failures as infinitely far.
      success: bool[b], whether the network's prediction for `images` meets the goal.
    """

    images: jax.Array
    distance: jax.Array
    success: jax.Array


class Find(Protocol):
    """A jitted search for the nearest adversarial image."""

    def __call__(
        self,
        variables: Variables,
        key: jax.Array,
        images01: Array,
        class_mask: Array,
        *,
        stop_distance: float = 0.0,
    ) -> NearestResult:
        """Nearest adversarial images; other arguments as in `Attack`.

        Args:
          stop_distance: traced; the search of an image ends at this distance or below.
        """
        ...


class Best(NamedTuple):
    """The best version so far of each image: success beats failure, then the higher score wins.

    `has_gradient` is that of `AttackResult`; it belongs to the search, not to the version.
    """

    x: jax.Array
    score: jax.Array
    solved: jax.Array
    has_gradient: jax.Array


class Task(NamedTuple):
    """The problem of a search, inside `jit`; axis 0 of each array is the image.

    Attributes:
      logits: `x -> f32[b k]`.
      saved: x -> the image that would be saved for x, rounded with `eight_bit`. The gradient passes
        the rounding unchanged (straight-through), so the score is that of the saved image.
      judge: `logits -> (score f32[b], success bool[b])`.
      project: x -> the nearest point in the ball and in [0, 1].
      norm: the geometry of the ball.
      goal: defines score and success.
      keys, center, class_mask, eps, step_size: arguments of the call, one row per image.
      steps, early_stop: i32[b] and bool[b], those of the search.
      clean: f32[b k], logits of the clean images.
      success_mask: bool[b k], the classes that meet the goal when predicted.
    """

    logits: Callable[[jax.Array], jax.Array]
    saved: Callable[[jax.Array], jax.Array]
    judge: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    project: Callable[[jax.Array], jax.Array]
    norm: Norm
    goal: Goal
    keys: jax.Array
    center: jax.Array
    class_mask: jax.Array
    eps: jax.Array
    step_size: jax.Array
    steps: jax.Array
    early_stop: jax.Array
    clean: jax.Array
    success_mask: jax.Array


class Search(NamedTuple):
    """The definition of an attack; its state is a `slots.State` whose `best` is a `Best`.

    Attributes:
      init: `(task, best) -> state`, without a forward pass; `best` is the clean image.
      step: `(task, state) -> state`; changes to images that are finished are discarded.
      steps: number of steps, per start. It is traced: searches with equal `init` and `step` share a
        compiled program, such as `search` and `search._replace(steps=80)`.
      default_step: `(eps, steps) -> step size`, which a step size of None stands for.
      early_stop: traced; stop each image at its first success. Attacks outside `gradient` always
        do.
      norms: names of the supported norms; empty for all.
      nearest: whether it searches for the nearest adversarial image. `Best.score` is then minus the
        distance, infinite where there is none; eps is the distance that ends the search; and
        `make_find` returns the result at any distance.
    """

    init: Callable[[Task, Best], Any]
    step: Callable[[Task, Any], Any]
    steps: int = 1
    default_step: Callable[[jax.Array, int], jax.Array] = lambda eps, steps: eps
    early_stop: bool = True
    norms: tuple[str, ...] = ()
    nearest: bool = False


def update_best(best: Best, x: jax.Array, score: jax.Array, solved: jax.Array) -> Best:
    """The better of `best` and x for each image; `best` if they are equal."""
    wins = (solved & ~best.solved) | ((solved == best.solved) & (score > best.score))
    return slots.select(wins, Best(x, score, solved, best.has_gradient), best)


def usable_gradient(gradient: jax.Array) -> jax.Array:
    """bool[b], where a gradient f32[b ...] is finite and not zero everywhere."""
    flat = gradient.reshape(len(gradient), -1)
    return jnp.all(jnp.isfinite(flat), axis=1) & jnp.any(flat != 0, axis=1)


def fold_in_each(keys: jax.Array, *counts: jax.Array) -> jax.Array:
    """Folds counts of each image into its key: key[b], i32[b] ... -> key[b]."""
    for count in counts:
        keys = jax.vmap(jax.random.fold_in)(keys, count)
    return keys


def check_counts(**counts: int) -> None:
    """Raises ValueError if a count is below one; the message names all counts."""
    if any(n < 1 for n in counts.values()):
        names, values = (
            " and ".join(words) for words in (map("`{}`".format, counts), map(str, counts.values()))
        )
        raise ValueError(f"{names} must be at least 1: got {values}")


def check_one_start(attack: str, restarts: int) -> None:
    """Raises ValueError if a deterministic attack is asked for restarts."""
    if restarts > 1:
        raise ValueError(
            f"{attack} is deterministic, so all restarts are equal: got `restarts={restarts}`, "
            "expected 1"
        )
