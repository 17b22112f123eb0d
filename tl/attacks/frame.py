"""What every attack is, gives back and checks. The attacks themselves are in the modules beside this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tl import pixels
from tl.attacks.goals import Goal
from tl.attacks.norms import Norm, own_keys
from tl.types import Array, Variables

Logits = Callable[[Variables, jax.Array], jax.Array]
"""`(variables, images01 f32[b h w 3]) -> f32[b k]`, in evaluation mode."""


class AttackResult(NamedTuple):
    """What an attack found.

    Attributes:
      images: f32[b h w 3] in the ball and in [0, 1]. With `on_grid` they lie on the k / 255 grid, so that an 8-bit file
        holds exactly these pictures. Where nothing better was found, and with eps = 0, the clean picture.
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
        step_size: float | None = None,
    ) -> AttackResult:
        """Adversarial pictures.

        Args:
          key: `jax.random.key`, from which each row takes its own, whatever the batch; or one an image (`norms.own_keys`).
          images01: f32[b h w 3] in [0, 1], read from 8-bit pictures.
          members: bool[b k], the classes that the goal is about.
          eps: radius of the ball, in [0, 1] pixel units: 4/255, not 4.
          step_size: length of one step, in the same units; None is the attack's own.

        Raises:
          ValueError: `images01` or `eps` out of range.
        """
        ...


class Task(NamedTuple):
    """One call, inside of `jit`: what an attack works on.

    Attributes:
      judge: `x -> (score f32[b], success bool[b])` of the pictures that would be saved for x: rounded first, on the grid.
        Gradients pass the rounding unchanged (straight through), so what is climbed is what will be saved.
      logits: `x -> f32[b k]`, of the same pictures.
      project: x -> the nearest point in the ball and in the box.
      keys: one an image. center: the clean pictures. members, eps, step_size: as called.
    """

    judge: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    logits: Callable[[jax.Array], jax.Array]
    project: Callable[[jax.Array], jax.Array]
    keys: jax.Array
    center: jax.Array
    members: jax.Array
    eps: jax.Array
    step_size: jax.Array


class Best(NamedTuple):
    """The best picture so far, of each image: any that succeeds beats any that does not, then the higher score."""

    x: jax.Array
    score: jax.Array
    solved: jax.Array


def rows(mask: jax.Array, x: jax.Array) -> jax.Array:
    """[b], shaped to go with x [b ...]."""
    return mask.reshape(-1, *(1,) * (x.ndim - 1))


def keep(best: Best, x: jax.Array, score: jax.Array, solved: jax.Array) -> Best:
    """The better of the two, image by image; the first where they are equal."""
    wins = (solved & ~best.solved) | ((solved == best.solved) & (score > best.score))
    return Best(
        jnp.where(rows(wins, x), x, best.x), jnp.where(wins, score, best.score), jnp.where(wins, solved, best.solved)
    )


def try_until_solved(
    attempt: Callable[[jax.Array, Best], Best], best: Best, n: int, *, early_stop: bool = True
) -> Best:
    """`(i, best) -> best` for i = 0 .. n - 1, the rest left out as soon as all images are solved."""

    def turn(carry: tuple[jax.Array, Best]) -> tuple[jax.Array, Best]:
        i, best = carry
        return i + 1, attempt(i, best)

    going = lambda carry: (carry[0] < n) & ~(early_stop & jnp.all(carry[1].solved))  # noqa: E731
    return jax.lax.while_loop(going, turn, (jnp.int32(0), best))[1]


def check_counts(**counts: int) -> None:
    """ValueError where one of the counts, all of them named, is below one."""
    if any(n < 1 for n in counts.values()):
        raise ValueError(f"{' and '.join(counts)} must be at least 1; got {' and '.join(map(str, counts.values()))}")


def make_attack(
    search: Callable[[Task, Best], jax.Array],
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    on_grid: bool,
    default_step: Callable[[jax.Array], jax.Array] = lambda eps: eps,
) -> Attack:
    """An `Attack` around a search: checks, keys, jit, and the test of what comes out.

    Args:
      search: `(task, clean) -> x`, traced; `clean` is where to begin, the clean pictures and how they do.
      on_grid: whether pictures are scored, and given back, on the k / 255 grid; else anywhere in the ball.
      default_step: eps -> the step that None stands for.
    """
    settle = norm.lattice if on_grid else norm.project

    @jax.jit
    def run(variables, key, center, members, eps, step_size):
        def found(x: jax.Array) -> jax.Array:
            if on_grid:
                fixed = jax.lax.stop_gradient(x)
                x = settle(fixed, center, eps) + (x - fixed)  # exactly on it
            return logits(variables, x)

        def judge(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            answer = found(x)
            return goal.score(answer, members), goal.success(answer, members)

        project = lambda x: norm.project(x, center, eps)  # noqa: E731
        keys = own_keys(key, len(center))
        clean = Best(center, *judge(center))
        x = search(Task(judge, found, project, keys, center, members, eps, step_size), clean)
        images = settle(project(x), center, eps)
        best = keep(clean, images, *judge(images))
        return AttackResult(best.x, best.solved, best.score)

    def attack(variables, key, images01, members, *, eps, step_size=None):
        pixels.check(images01, ndim=4)
        with jax.ensure_compile_time_eval():
            largest = float(norm.distance(np.ones((1, *images01.shape[1:]), np.float32), np.float32(0))[0])
        if not isinstance(eps, Tracer) and not 0 <= float(eps) <= largest * (1 + 1e-6):
            units = (
                "share of the pixel range [0, 1]" if largest == 1 else f"distance in [0, {largest:.4g}], black to white"
            )
            raise ValueError(f"eps is a {units}, such as 4/255; got {float(eps):.4g}")
        step = default_step(jnp.float32(eps)) if step_size is None else jnp.float32(step_size)
        return run(variables, key, images01, members, jnp.float32(eps), step)

    return attack
