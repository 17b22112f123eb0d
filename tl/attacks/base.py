"""What an attack is and gives back. The attacks themselves are in the modules beside this one; `run` runs them.

An attack is a `Search`: how an image begins, and what one step with one look at the network does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from tl.attacks import slots
from tl.attacks.goals import Goal
from tl.attacks.norms import Norm
from tl.types import Array, Variables

Logits = Callable[[Variables, jax.Array], jax.Array]
"""`(variables, images01 f32[b h w 3]) -> f32[b k]`, in evaluation mode."""


class AttackResult(NamedTuple):
    """What an attack found.

    Attributes:
      images: f32[b h w 3] in the ball and in [0, 1]. With `eight_bit` they lie on the k / 255 grid, so that an 8-bit file
        holds exactly these pictures. Where nothing better was found, and with eps = 0, the clean picture.
      success: bool[b], by the network, on `images`. What counts is the file: read it back.
      score: f32[b], the goal's score on `images`.
      steps: i32[b], how many steps were taken with each image; 0 where the clean picture meets the goal.
      solved_by: i32[b], of several searches the place of the one that met the goal; -1 where none had to, or could.
    """

    images: jax.Array
    success: jax.Array
    score: jax.Array
    steps: jax.Array
    solved_by: jax.Array


class Attack(Protocol):
    """A jitted attack; `eps` and `step_size` are traced, a sweep over them compiles once."""

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
        """Adversarial pictures.

        Args:
          key: `jax.random.key`, from which each row takes its own, whatever the batch; or one an image (`norms.per_image_keys`).
          images01: f32[b h w 3] in [0, 1], read from 8-bit pictures.
          class_mask: bool[b k], the classes that the goal is about.
          eps: radius of the ball, in [0, 1] pixel units: 4/255, not 4; a number, or f32[b].
          step_size: length of one step, in the same units, likewise; None is the attack's own.
          skip: bool[b], images that are not to be searched; they come back as they are.

        Raises:
          ValueError: `images01` or `eps` out of range.
        """
        ...


class NearestResult(NamedTuple):
    """The nearest adversarial pictures that were found.

    Attributes:
      images: f32[b h w c] in [0, 1], anywhere in it (not on the 8-bit grid); the clean picture where nothing was found.
      distance: f32[b] in the norm and [0, 1] pixel units; 0 where the clean picture meets the goal already, infinity where
        nothing was found. Medians over all pictures so count the failures.
      success: bool[b], by the network, on `images`.
    """

    images: jax.Array
    distance: jax.Array
    success: jax.Array


class Find(Protocol):
    """A jitted search for the nearest."""

    def __call__(
        self,
        variables: Variables,
        key: jax.Array,
        images01: Array,
        class_mask: Array,
        *,
        stop_distance: float = 0.0,
    ) -> NearestResult:
        """Nearest adversarial pictures; arguments as in `Attack`.

        Args:
          stop_distance: traced; an image whose distance is no larger is not looked at again.
        """
        ...


class Best(NamedTuple):
    """The best picture so far, of each image: any that succeeds beats any that does not, then the higher score."""

    x: jax.Array
    score: jax.Array
    solved: jax.Array


class Task(NamedTuple):
    """What a search works on, inside of `jit`; axis 0 of each array is the image.

    Attributes:
      logits: `x -> f32[b k]`, the logits of x as it is.
      saved: x -> the picture that would be saved for it: rounded, on the grid; else x. Gradients pass it unchanged (straight
        through), so what is climbed is what will be saved.
      judge: `logits -> (score f32[b], success bool[b])`.
      project: x -> the nearest point in the ball and in the box.
      norm: the geometry.
      goal: as it was made.
      keys, center, class_mask, eps, step_size: as called, a row an image.
      clean: f32[b k], logits of the clean pictures.
      success_mask: bool[b k], the classes that meet the goal where they are on top.
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
    clean: jax.Array
    success_mask: jax.Array


class Search(NamedTuple):
    """An attack's own part; a state is a `queue.State` whose `best` is a `Best`.

    Attributes:
      init: `(task, best) -> state`, without a look at the network; `best` is the clean picture and how it does.
      step: `(task, state) -> state`; it need not care for rows that are done.
      default_step: eps -> the step size that None stands for.
      norms: names of those it works in; empty for all.
      nearest: whether it looks for the NEAREST adversarial picture: a `Best.score` is then minus the distance, infinite where
        there is none, eps the distance that is near enough, and `find` gives what it found, however far.
    """

    init: Callable[[Task, Best], Any]
    step: Callable[[Task, Any], Any]
    default_step: Callable[[jax.Array], jax.Array] = lambda eps: eps
    norms: tuple[str, ...] = ()
    nearest: bool = False


def update_best(best: Best, x: jax.Array, score: jax.Array, solved: jax.Array) -> Best:
    """The better of the two, image by image; the first where they are equal."""
    wins = (solved & ~best.solved) | ((solved == best.solved) & (score > best.score))
    return slots.choose(wins, Best(x, score, solved), best)


def fold_in_each(keys: jax.Array, *places: jax.Array) -> jax.Array:
    """Each image's key, folded in with counts of its own: key[b], i32[b] ... -> key[b]."""
    for place in places:
        keys = jax.vmap(jax.random.fold_in)(keys, place)
    return keys


def check_counts(**counts: int) -> None:
    """ValueError where one of the counts, all of them named, is below one."""
    if any(n < 1 for n in counts.values()):
        raise ValueError(
            f"{' and '.join(counts)} must be at least 1; got {' and '.join(map(str, counts.values()))}"
        )
