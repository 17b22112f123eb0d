"""First-order attacks: FGSM, BIM, PGD, MI-FGSM and DI-FGSM.

They are one gradient ascent with different starts and directions. APGD, whose step size adapts, is
in `tl.attacks.apgd`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl.ascent import ascend
from tl.attacks.base import (
    Best,
    Search,
    Task,
    check_counts,
    check_one_start,
    fold_in_each,
    update_best,
    usable_gradient,
)
from tl.attacks.norms import Norm
from tl.attacks.slots import expand, select

View = Callable[[jax.Array, jax.Array], jax.Array]
"""`(key, image f32[h w 3]) -> f32[h w 3]`, such as a transform of `tl.ascent.transforms` that
keeps the size.
"""

Judge = Callable[[Task, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""`(task, keys, x) -> (score f32[b], solved bool[b])`."""


class _State(NamedTuple):
    """Each image at x, after k steps from the start with index `start`."""

    x: jax.Array
    k: jax.Array
    start: jax.Array
    opt_state: Any
    best: Best
    finished: jax.Array


def _gradient_search(
    *,
    steps: int,
    restarts: int,
    early_stop: bool,
    random_start: bool,
    optimizer: Callable[[Norm], ascend.Optimizer],
    default_step: Callable[[jax.Array, int], jax.Array],
    judge: Judge,
) -> Search:
    """Gradient ascent on the score of `judge`; each step also judges the point that it leaves."""
    check_counts(steps=steps, restarts=restarts)
    watched = lambda task: _watch(optimizer(task.norm))

    def begin(task: Task, start: jax.Array) -> jax.Array:
        if not random_start:
            return task.center
        return task.norm.start(fold_in_each(task.keys, start), task.center, task.eps)

    def init(task: Task, best: Best) -> _State:
        zero = jnp.zeros_like(best.solved, jnp.int32)
        x = begin(task, zero)
        no = jnp.zeros_like(best.solved)
        return _State(x, zero, zero, watched(task).init(x), best, no)

    def step(task: Task, state: _State) -> _State:
        keys = fold_in_each(task.keys, state.start, state.k)
        next_x, opt_state, score, solved = ascend.step(
            lambda x: judge(task, keys, x),
            state.x,
            state.opt_state,
            optimizer=watched(task),
            step_size=expand(task.step_size, state.x),
            project=task.project,
        )
        best = update_best(state.best, state.x, score, solved)
        seen: Any = opt_state
        best = best._replace(has_gradient=best.has_gradient | seen.has_gradient)
        # At k = steps only the last point is judged; the move is discarded.
        last = state.k == task.steps
        finished = last & (state.start + 1 == restarts)
        finished = finished | (solved & task.early_stop)
        next_ = _State(next_x, state.k + 1, state.start, opt_state, best, finished)
        if restarts == 1:
            return next_

        def restart(next_: _State) -> _State:
            x = begin(task, state.start + 1)
            fresh = next_._replace(
                x=x,
                k=jnp.zeros_like(state.k),
                start=state.start + 1,
                opt_state=watched(task).init(x),
            )
            return select(last, fresh, next_)

        return jax.lax.cond(jnp.any(last), restart, lambda next_: next_, next_)

    return Search(init, step, steps, default_step, early_stop)


class _WatchedState(NamedTuple):
    """The state of an optimizer, and whether an image had a usable gradient so far."""

    inner: Any
    has_gradient: jax.Array


def _watch(optimizer: ascend.Optimizer) -> ascend.Optimizer:
    """The same optimizer, whose state is a `_WatchedState`."""

    def init(x: jax.Array) -> _WatchedState:
        return _WatchedState(optimizer.init(x), jnp.zeros(len(x), bool))

    def update(gradient: Any, state: Any, x: Any) -> tuple[Any, _WatchedState]:
        uphill, inner = optimizer.update(gradient, state.inner, x)
        return uphill, _WatchedState(inner, state.has_gradient | usable_gradient(gradient))

    return ascend.Optimizer(init, update)  # pyright: ignore[reportArgumentType]


def _judge_saved(task: Task, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    del keys
    return task.judge(task.logits(task.saved(x)))


def _judge_views(view: View, draws: int) -> Judge:
    """Mean score over random views of the saved image, and whether all of them succeed."""

    def judge(task: Task, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        saved = task.saved(x)

        def one(i: jax.Array) -> tuple[jax.Array, jax.Array]:
            view_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
            return task.judge(task.logits(jax.vmap(view)(view_keys, saved)))

        scores, solved = jax.lax.map(one, jnp.arange(draws))
        return jnp.mean(scores, axis=0), jnp.all(solved, axis=0)

    return judge


def pgd(
    *,
    steps: int = 40,
    restarts: int = 1,
    early_stop: bool = True,
    view: View | None = None,
    draws: int = 4,
) -> Search:
    """Projected gradient descent: gradient ascent on the score, projected into the ball.

    It begins at a random point of the ball. Each score is that of the rounded image, and the
    gradient passes the rounding unchanged (straight-through), so the score that is maximized is
    that of the saved image. The best point of all steps and restarts is kept.

    Args:
      steps: traced. The default step size is 2.5 eps / steps.
      restarts: static; random starts, one after another, for images that are not solved yet.
      early_stop: traced; stop each image at its first success. False continues, which makes success
        more likely on other networks and after JPEG.
      view: expectation over transformation (EOT): maximizes the mean score over random views of the
        image; success means that all views of a step succeed.
      draws: views per step; each costs as much as a step without views.

    Raises:
      ValueError: steps, restarts or draws below 1.

    Reference: Madry et al. 2018, arXiv:1706.06083, section 2.1 and, for the step size, 5.
      Straight-through rounding: Bengio et al. 2013, arXiv:1308.3432; the reason to round: Carlini &
      Wagner 2017, arXiv:1608.04644, on discretization. EOT: Athalye et al. 2018, arXiv:1707.07397,
      section 2.1.
    """
    check_counts(draws=draws)
    return _gradient_search(
        steps=steps,
        restarts=restarts,
        early_stop=early_stop,
        random_start=True,
        optimizer=lambda norm: ascend.direction(norm.direction),
        default_step=lambda eps, steps: 2.5 * eps / steps,
        judge=_judge_saved if view is None else _judge_views(view, draws),
    )


def bim(*, steps: int = 40, restarts: int = 1, early_stop: bool = True) -> Search:
    """Basic iterative method (iterative FGSM): PGD from the image itself with steps of eps / steps.

    Differs from the paper, whose step is 1 / 255. Arguments as in `pgd`; `restarts` must be 1.

    Reference: Kurakin et al. 2017, arXiv:1607.02533, section 2.2.
    """
    check_one_start("bim", restarts)
    return _gradient_search(
        steps=steps,
        restarts=restarts,
        early_stop=early_stop,
        random_start=False,
        optimizer=lambda norm: ascend.direction(norm.direction),
        default_step=lambda eps, steps: eps / steps,
        judge=_judge_saved,
    )


def fgsm(*, steps: int = 1, restarts: int = 1) -> Search:
    """Fast gradient sign method: one step of length eps from the image itself.

    The direction is the gradient's sign (Linf), the gradient (L2), or SLIDE's (L1). `steps` and
    `restarts` must be 1.

    Reference: Goodfellow et al. 2015, arXiv:1412.6572, section 4.
    """
    check_one_start("fgsm", restarts)
    if steps != 1:
        raise ValueError(
            f"fgsm takes one step: got `steps={steps}`, expected 1; use 'bim' for more"
        )
    return bim(steps=1, restarts=restarts)


def mi_fgsm(
    *, steps: int = 10, restarts: int = 1, early_stop: bool = True, decay: float = 1.0
) -> Search:
    """Momentum iterative FGSM: BIM along a decaying sum of gradients of L1 norm one.

    Its images transfer to other networks more often; for transfer, use `early_stop=False`. Other
    arguments as in `bim`.

    Args:
      decay: factor on the sum in each step; 1 is the paper's.

    Reference: Dong et al. 2018, arXiv:1710.06081, algorithm 1.
    """
    check_one_start("mi_fgsm", restarts)
    return _gradient_search(
        steps=steps,
        restarts=restarts,
        early_stop=early_stop,
        random_start=False,
        optimizer=lambda norm: _momentum(decay, norm),
        default_step=lambda eps, steps: eps / steps,
        judge=_judge_saved,
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
    """Diverse inputs: MI-FGSM with gradients of randomly shrunk images on black.

    The score of the image itself decides which point is kept. Differs from the paper, where images
    of 299 pixels grow to at most 330 with zeros around them: here the network's input size is
    fixed, so images shrink (299 / 330 is 0.9). Other arguments as in `bim`; restarts differ in
    their random views.

    Args:
      decay: as in `mi_fgsm`; 0 is DI-FGSM without momentum, 1 the paper's M-DI-FGSM.
      probability: probability of a transformed view, in [0, 1]; 0.5 is the paper's.
      smallest: side of the smallest view as a share of the image's, in (0, 1].

    Raises:
      ValueError: `probability` or `smallest` is out of range.

    Reference: Xie et al. 2019, arXiv:1803.06978, sections 3 and 4.
    """
    if not (0 <= probability <= 1 and 0 < smallest <= 1):
        raise ValueError(
            f"`probability` must be in [0, 1] and `smallest` in (0, 1]: got {probability} and "
            f"{smallest}"
        )
    view = jax.vmap(_random_shrink(probability, smallest))

    def judge(task: Task, keys: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        score, solved = jax.lax.stop_gradient(task.judge(task.logits(task.saved(x))))
        view_score, _ = task.judge(task.logits(view(keys, task.saved(x))))
        # The value is that of the image, the gradient that of the view.
        return score + (view_score - jax.lax.stop_gradient(view_score)), solved

    return _gradient_search(
        steps=steps,
        restarts=restarts,
        early_stop=early_stop,
        random_start=False,
        optimizer=lambda norm: _momentum(decay, norm),
        default_step=lambda eps, steps: eps / steps,
        judge=judge,
    )


def _momentum(decay: float, norm: Norm) -> ascend.Optimizer:
    """The norm's direction of a decaying sum of gradients of L1 norm one."""
    return ascend.normalized_momentum(_l1_normalize, decay, norm.direction)


def _l1_normalize(gradient: jax.Array) -> jax.Array:
    """Gradients f32[b ...] of any magnitude scaled to L1 norm one; zero stays zero."""
    axes = tuple(range(1, gradient.ndim))
    largest = jnp.max(jnp.abs(gradient), axis=axes, keepdims=True)
    scaled = gradient / jnp.maximum(largest, jnp.finfo(jnp.float32).tiny)
    return scaled / jnp.maximum(jnp.sum(jnp.abs(scaled), axis=axes, keepdims=True), 0.5)


def _random_shrink(probability: float, smallest: float) -> View:
    """Shrinks an image onto black with the given probability.

    The resampling is bilinear, as two matrix products.
    """

    def shrink(side: int, share: jax.Array, position: jax.Array) -> jax.Array:
        """f32[side side], weights of the old pixels in each new pixel.

        Zero rows are the black frame.
        """
        size = jnp.round(side * share)
        old = jnp.arange(side, dtype=jnp.float32)
        new = old - jnp.floor(position * (side - size + 1.0))
        source = jnp.clip((new + 0.5) * (side / size) - 0.5, 0.0, side - 1.0)
        weights = jnp.maximum(0.0, 1.0 - jnp.abs(source[:, None] - old[None]))
        return jnp.where(((new >= 0.0) & (new < size))[:, None], weights, 0.0)

    def view(key: jax.Array, image: jax.Array) -> jax.Array:
        draws = jax.random.uniform(key, (4,))
        share = smallest + (1.0 - smallest) * draws[0]
        sides = enumerate(image.shape[:2])
        rows, columns = (shrink(side, share, draws[1 + i]) for i, side in sides)
        shrunk = jnp.einsum("ij,jkc,lk->ilc", rows, image, columns)
        return jnp.where(draws[3] < probability, shrunk, image)

    return view
