"""Attacks that follow the gradient: FGSM, BIM, PGD, MI-FGSM and DI-FGSM are one climb with other starts and directions.

APGD, whose steps depend on how the climb goes, is in `tl.attacks.apgd`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl.ascent import ascend
from tl.attacks.base import Best, Search, Task, check_counts, fold_in_each, update_best
from tl.attacks.norms import Norm
from tl.attacks.slots import choose, rows

View = Callable[[jax.Array, jax.Array], jax.Array]
"""`(key, image f32[h w 3]) -> f32[h w 3]`, a random view of one image; rows of `tl.ascent.transforms` are."""


class _Walk(NamedTuple):
    """Where each image's climb is: at x, after k steps from the start of that number."""

    x: jax.Array
    k: jax.Array
    start: jax.Array
    opt_state: Any
    best: Best
    done: jax.Array


def _climb(
    *,
    steps: int,
    restarts: int,
    early_stop: bool,
    random_start: bool,
    optimizer: Callable[[Norm], ascend.Optimizer],
    default_step: Callable[[jax.Array], jax.Array],
    judge: Callable[[Task, jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
) -> Search:
    """`judge`: `(task, keys, x) -> (score, solved)`."""
    check_counts(steps=steps, restarts=restarts)

    def begin(task: Task, start: jax.Array) -> jax.Array:
        return (
            task.norm.start(fold_in_each(task.keys, start), task.center, task.eps)
            if random_start
            else task.center
        )

    def init(task: Task, best: Best) -> _Walk:
        zero = jnp.zeros_like(best.solved, jnp.int32)
        x = begin(task, zero)
        return _Walk(x, zero, zero, optimizer(task.norm).init(x), best, jnp.zeros_like(best.solved))

    def step(task: Task, at: _Walk) -> _Walk:
        keys = fold_in_each(task.keys, at.start, at.k)
        moved, opt_state, score, solved = ascend.step(
            lambda x: judge(task, keys, x),
            at.x,
            at.opt_state,
            optimizer=optimizer(task.norm),
            step_size=rows(task.step_size, at.x),
            project=task.project,
        )
        best = update_best(at.best, at.x, score, solved)
        last = at.k == steps  # this was the look at where the last step led
        done = last & (at.start + 1 == restarts)
        walk = _Walk(
            moved, at.k + 1, at.start, opt_state, best, done | solved if early_stop else done
        )
        if restarts == 1:
            return walk

        def again(walk: _Walk) -> _Walk:
            x = begin(task, at.start + 1)
            fresh = walk._replace(
                x=x,
                k=jnp.zeros_like(at.k),
                start=at.start + 1,
                opt_state=optimizer(task.norm).init(x),
            )
            return choose(last, fresh, walk)

        return jax.lax.cond(jnp.any(last), again, lambda walk: walk, walk)

    return Search(init, step, default_step)


def _seen_as_saved(task: Task, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    del keys
    return task.judge(task.logits(task.saved(x)))


def _expected(
    view: View, draws: int
) -> Callable[[Task, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The mean score over random views of the saved picture, and whether all of them succeed."""

    def judge(task: Task, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        saved = task.saved(x)

        def one(i: jax.Array) -> tuple[jax.Array, jax.Array]:
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
            return task.judge(task.logits(jax.vmap(view)(own, saved)))

        scores, solved = jax.lax.map(one, jnp.arange(draws))
        return jnp.mean(scores, axis=0), jnp.all(solved, axis=0)

    return judge


def _check_alone(name: str, restarts: int) -> None:
    if restarts > 1:
        raise ValueError(
            f"{name} has no random start: restarts must be 1, not {restarts}, which would all be the same"
        )


def pgd(
    *,
    steps: int = 40,
    restarts: int = 1,
    early_stop: bool = True,
    view: View | None = None,
    draws: int = 4,
) -> Search:
    """Projected gradient ascent from a random start, on the lattice of 8-bit pictures.

    Every score is that of the rounded picture, and the gradient passes the rounding unchanged (straight through), so what
    is climbed is what will be saved. The best point on the way is kept, of all restarts.

    Args:
      steps: static. Their size, where it is not given, is 2.5 eps / steps: past the ball's edge and back.
      restarts: static; independent starts, one after another, of the images that are not solved yet.
      early_stop: an image that is solved is left as it is. False climbs on, towards pictures that other networks, or this one
        after JPEG, are wrong about too.
      view: expectation over transformation (EOT): what is climbed is the mean score over random views of the picture, and
        solved is one whose views all are; `draws` of them a step, each as dear as a step without.

    Raises:
      ValueError: steps, restarts or draws below 1.

    Reference: Madry et al. 2018, arXiv:1706.06083, section 2.1 and, for the step, 5; straight-through rounding:
      Bengio et al. 2013, arXiv:1308.3432; why on the lattice: Carlini & Wagner 2017, arXiv:1608.04644, on discretization;
      EOT: Athalye et al. 2018, arXiv:1707.07397, section 2.1.
    """
    check_counts(draws=draws)
    return _climb(
        steps=steps,
        restarts=restarts,
        early_stop=early_stop,
        random_start=True,
        optimizer=lambda norm: ascend.direction(norm.direction),
        default_step=lambda eps: 2.5 * eps / steps,
        judge=_seen_as_saved if view is None else _expected(view, draws),
    )


def bim(*, steps: int = 40, restarts: int = 1, early_stop: bool = True) -> Search:
    """Iterative FGSM (basic iterative method): PGD from the picture itself, with steps of eps / steps.

    Differs from the paper, which steps by one level, 1 / 255. Arguments as in `pgd`; `restarts` other than 1 is an error.

    Reference: Kurakin et al. 2017, arXiv:1607.02533, section 2.2.
    """
    _check_alone("bim", restarts)
    return _climb(
        steps=steps,
        restarts=restarts,
        early_stop=early_stop,
        random_start=False,
        optimizer=lambda norm: ascend.direction(norm.direction),
        default_step=lambda eps: eps / steps,
        judge=_seen_as_saved,
    )


def fgsm(*, steps: int = 1, restarts: int = 1) -> Search:
    """One step of eps from the picture itself, along the gradient's sign (Linf) or the gradient (L2), or SLIDE's (L1).

    `steps` or `restarts` other than 1 is an error.

    Reference: Goodfellow et al. 2015, arXiv:1412.6572, section 4.
    """
    if steps != 1:
        raise ValueError(f"fgsm is one step; got steps={steps}; take 'bim' for more")
    return bim(steps=1, restarts=restarts)


def mi_fgsm(
    *, steps: int = 10, restarts: int = 1, early_stop: bool = True, decay: float = 1.0
) -> Search:
    """BIM along a sum of the gradients so far, each at L1 length one: pictures that fool other networks more often.

    Arguments as in `bim`; for transfer take `early_stop=False`.

    Args:
      decay: of the sum, from step to step; 1 is the paper's.

    Reference: Dong et al. 2018, arXiv:1710.06081, algorithm 1.
    """
    _check_alone("mi_fgsm", restarts)
    return _climb(
        steps=steps,
        restarts=restarts,
        early_stop=early_stop,
        random_start=False,
        optimizer=lambda norm: _gathered(decay, norm),
        default_step=lambda eps: eps / steps,
        judge=_seen_as_saved,
    )


def di_fgsm(
    *,
    steps: int = 10,
    restarts: int = 1,
    early_stop: bool = True,
    decay: float = 1.0,
    probability: float = 0.5,
    smallest: float = 0.9,
) -> Search:
    """MI-FGSM whose gradients are, with some probability, those of the picture made smaller, on black, at a random place.

    What is kept is judged by the picture itself. Differs from the paper, where pictures of 299 grow to at most 330 pixels,
    zeros around them: here the network's size is fixed, so they shrink (299 of 330 is 0.9). Arguments as in `mi_fgsm`;
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
        raise ValueError(
            f"probability lies in [0, 1], smallest in (0, 1]; got {probability} and {smallest}"
        )
    view = jax.vmap(_smaller_views(probability, smallest))

    def judge(task: Task, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        score, solved = jax.lax.stop_gradient(task.judge(task.logits(task.saved(x))))
        seen, _ = task.judge(task.logits(view(keys, task.saved(x))))
        return score + (
            seen - jax.lax.stop_gradient(seen)
        ), solved  # the picture's own value, the view's gradient

    return _climb(
        steps=steps,
        restarts=restarts,
        early_stop=early_stop,
        random_start=False,
        optimizer=lambda norm: _gathered(decay, norm),
        default_step=lambda eps: eps / steps,
        judge=judge,
    )


def _gathered(decay: float, norm: Norm) -> ascend.Optimizer:
    """The norm's direction of a decaying sum of gradients, each brought to L1 length one before it is added."""
    return ascend.gathered(_at_l1_length_one, decay, norm.direction)


def _at_l1_length_one(gradient: jax.Array) -> jax.Array:
    """f32[b ...] of any size, however small, unless zero."""
    axes = tuple(range(1, gradient.ndim))
    scaled = gradient / jnp.maximum(
        jnp.max(jnp.abs(gradient), axis=axes, keepdims=True), jnp.finfo(jnp.float32).tiny
    )
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
        rows, columns = (
            shrink(side, share, draws[1 + i]) for i, side in enumerate(image.shape[:2])
        )
        changed = jnp.einsum("ij,jkc,lk->ilc", rows, image, columns)
        return jnp.where(draws[3] < probability, changed, image)

    return view
