"""Attacks that follow the gradient: FGSM, BIM, PGD, MI-FGSM and DI-FGSM are one climb with other starts and directions.

To add one: a function that returns an `Attack`, and a row in `tl.attacks.ATTACKS`. APGD, whose steps depend on how the
climb goes, is in `tl.attacks.apgd`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tl import ascend
from tl.attacks.frame import Attack, AttackResult, Best, Logits, Task, check_counts, keep, make_attack, try_until_solved
from tl.attacks.goals import Goal
from tl.attacks.norms import Norm

__all__ = ["Attack", "AttackResult", "Logits", "make_bim", "make_di_fgsm", "make_fgsm", "make_mi_fgsm", "make_pgd"]

View = Callable[[jax.Array, jax.Array], jax.Array]
"""`(keys[b], images01) -> images01`, what the network sees while gradients are taken."""


def _make_climb(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int,
    restarts: int,
    on_grid: bool,
    early_stop: bool,
    random_start: bool,
    optimizer: ascend.Optimizer,
    default_step: Callable[[jax.Array], jax.Array],
    view: View | None = None,
) -> Attack:
    check_counts(steps=steps, restarts=restarts)

    def search(task: Task, clean: Best) -> jax.Array:
        def judge(x: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
            score, solved = task.judge(x)
            if view is not None:  # its value is the picture's own, its gradient that of the view
                seen = task.judge(view(keys, x))[0]
                score = jax.lax.stop_gradient(score) + (seen - jax.lax.stop_gradient(seen))
            return score, solved

        def attempt(i: jax.Array, best: Best) -> Best:
            keys = jax.vmap(jax.random.fold_in, (0, None))(task.keys, i)
            path = ascend.ascend(
                judge if early_stop else lambda x, keys: judge(x, keys)[0],
                norm.start(keys, task.center, task.eps) if random_start else task.center,
                keys,
                steps=steps,
                optimizer=optimizer,
                step_size=task.step_size,
                project=task.project,
                solved=best.solved if early_stop else None,
            )
            return keep(best, path.best, path.top, path.solved if early_stop else task.judge(path.best)[1])

        return try_until_solved(attempt, clean, restarts, early_stop=early_stop).x

    return make_attack(search, logits, norm=norm, goal=goal, on_grid=on_grid, default_step=default_step)


def _check_alone(name: str, restarts: int) -> None:
    if restarts > 1:
        raise ValueError(f"{name} has no random start: restarts must be 1, not {restarts}, which would all be the same")


def make_pgd(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int,
    restarts: int = 1,
    on_grid: bool = True,
    early_stop: bool = True,
) -> Attack:
    """Projected gradient ascent from a random start, on the lattice of 8-bit pictures.

    Every score is that of the rounded picture, and the gradient passes the rounding unchanged (straight through), so what
    is climbed is what will be saved. The best point on the way is kept, of all restarts.

    Args:
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      steps: static. Their size, where it is not given, is 2.5 eps / steps: past the ball's edge and back.
      restarts: static; independent starts, one after another, of the images that are not solved yet.
      on_grid: whether pictures lie on the k / 255 grid, or anywhere in the ball: for eps below a level.
      early_stop: an image that is solved is left as it is, and the climb ends when all are. False climbs on, towards pictures
        that other networks, or this one after JPEG, are wrong about too.

    Returns:
      An `Attack`.

    Raises:
      ValueError: steps or restarts below 1; and, when called, `images01` or `eps` out of range.

    Reference: Madry et al. 2018, arXiv:1706.06083, section 2.1 and, for the step, 5; straight-through rounding:
      Bengio et al. 2013, arXiv:1308.3432; why on the lattice: Carlini & Wagner 2017, arXiv:1608.04644, on discretization.
    """
    return _make_climb(
        logits,
        norm=norm,
        goal=goal,
        steps=steps,
        restarts=restarts,
        on_grid=on_grid,
        early_stop=early_stop,
        random_start=True,
        optimizer=ascend.direction(norm.direction),
        default_step=lambda eps: 2.5 * eps / steps,
    )


def make_bim(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int,
    restarts: int = 1,
    on_grid: bool = True,
    early_stop: bool = True,
) -> Attack:
    """Iterative FGSM (basic iterative method): PGD from the picture itself, with steps of eps / steps.

    Differs from the paper, which steps by one level, 1 / 255. Arguments as in `make_pgd`; `restarts` other than 1 is an error.

    Reference: Kurakin et al. 2017, arXiv:1607.02533, section 2.2.
    """
    _check_alone("bim", restarts)
    return _make_climb(
        logits,
        norm=norm,
        goal=goal,
        steps=steps,
        restarts=restarts,
        on_grid=on_grid,
        early_stop=early_stop,
        random_start=False,
        optimizer=ascend.direction(norm.direction),
        default_step=lambda eps: eps / steps,
    )


def make_fgsm(
    logits: Logits, *, norm: Norm, goal: Goal, steps: int = 1, restarts: int = 1, on_grid: bool = True
) -> Attack:
    """One step of eps from the picture itself, along the gradient's sign (Linf) or the gradient (L2), or SLIDE's (L1).

    Arguments as in `make_pgd`; `steps` or `restarts` other than 1 is an error.

    Reference: Goodfellow et al. 2015, arXiv:1412.6572, section 4.
    """
    if steps != 1:
        raise ValueError(f"fgsm is one step; got steps={steps}; take 'bim' for more")
    return make_bim(logits, norm=norm, goal=goal, steps=1, restarts=restarts, on_grid=on_grid)


def make_mi_fgsm(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int,
    restarts: int = 1,
    on_grid: bool = True,
    early_stop: bool = True,
    decay: float = 1.0,
) -> Attack:
    """BIM along a sum of the gradients so far, each at L1 length one: pictures that fool other networks more often.

    Arguments as in `make_bim`; for transfer take `early_stop=False`.

    Args:
      decay: of the sum, from step to step; 1 is the paper's.

    Reference: Dong et al. 2018, arXiv:1710.06081, algorithm 1.
    """
    _check_alone("mi_fgsm", restarts)
    return _make_climb(
        logits,
        norm=norm,
        goal=goal,
        steps=steps,
        restarts=restarts,
        on_grid=on_grid,
        early_stop=early_stop,
        random_start=False,
        optimizer=ascend.gathered(_at_l1_length_one, decay, norm.direction),
        default_step=lambda eps: eps / steps,
    )


def make_di_fgsm(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int,
    restarts: int = 1,
    on_grid: bool = True,
    early_stop: bool = True,
    decay: float = 1.0,
    probability: float = 0.5,
    smallest: float = 0.9,
) -> Attack:
    """MI-FGSM whose gradients are, with some probability, those of the picture made smaller, on black, at a random place.

    What is kept is judged by the picture itself. Differs from the paper, where pictures of 299 grow to at most 330 pixels,
    zeros around them: here the network's size is fixed, so they shrink (299 of 330 is 0.9). Arguments as in `make_mi_fgsm`;
    restarts differ in their views.

    Args:
      decay: of MI-FGSM; 0 is DI-FGSM without momentum, 1 the paper's M-DI-FGSM.
      probability: of a changed view, in [0, 1]; 0.5 is the paper's.
      smallest: size of the smallest view, as a share of the side, in (0, 1].

    Raises:
      ValueError: `probability` or `smallest` out of range.

    Reference: Xie et al. 2019, arXiv:1803.06978, sections 3 and 4.
    """
    if not (0 <= probability <= 1 and 0 < smallest <= 1):
        raise ValueError(f"probability lies in [0, 1], smallest in (0, 1]; got {probability} and {smallest}")
    return _make_climb(
        logits,
        norm=norm,
        goal=goal,
        steps=steps,
        restarts=restarts,
        on_grid=on_grid,
        early_stop=early_stop,
        random_start=False,
        optimizer=ascend.gathered(_at_l1_length_one, decay, norm.direction),
        default_step=lambda eps: eps / steps,
        view=jax.vmap(_smaller_views(probability, smallest)),
    )


def _at_l1_length_one(gradient: jax.Array) -> jax.Array:
    """f32[b ...] of any size, however small, unless zero."""
    axes = tuple(range(1, gradient.ndim))
    scaled = gradient / jnp.maximum(jnp.max(jnp.abs(gradient), axis=axes, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return scaled / jnp.maximum(jnp.sum(jnp.abs(scaled), axis=axes, keepdims=True), 0.5)


def _smaller_views(probability: float, smallest: float) -> View:
    """`(key, image f32[h w 3]) -> f32[h w 3]`; resampling is bilinear, two matrix products."""

    def shrink(side: int, share: jax.Array, place: jax.Array) -> jax.Array:
        """f32[side side]: each new pixel's weights of the old; rows of zeros where the frame is."""
        size = jnp.round(side * share)
        old = jnp.arange(side, dtype=jnp.float32)
        new = old - jnp.floor(place * (side - size + 1.0))
        source = jnp.clip((new + 0.5) * (side / size) - 0.5, 0.0, side - 1.0)
        weights = jnp.maximum(0.0, 1.0 - jnp.abs(source[:, None] - old[None]))
        return jnp.where(((new >= 0.0) & (new < size))[:, None], weights, 0.0)

    def view(key: jax.Array, image: jax.Array) -> jax.Array:
        draws = jax.random.uniform(key, (4,))
        share = smallest + (1.0 - smallest) * draws[0]
        rows, columns = (shrink(side, share, draws[1 + i]) for i, side in enumerate(image.shape[:2]))
        changed = jnp.einsum("ij,jkc,lk->ilc", rows, image, columns)
        return jnp.where(draws[3] < probability, changed, image)

    return view
