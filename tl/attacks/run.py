"""Runs a search as an attack: argument checks, slots and devices, and the final evaluation.

Images that meet the goal already are not attacked. The results are projected into the ball, rounded
to 8-bit values and classified once more, so `success` and `score` are those of the returned images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from tl import devices, pixels
from tl.attacks import norms
from tl.attacks.base import (
    Attack,
    AttackResult,
    Best,
    Find,
    Logits,
    NearestResult,
    Search,
    Task,
    fold_in_each,
    update_best,
)
from tl.attacks.goals import Goal, success_mask
from tl.attacks.norms import Norm, per_image_keys
from tl.attacks.slots import expand, run_slots
from tl.devices import pad_rows, shard_rows
from tl.types import Array, Variables

# Bisection steps between the clean image and the nearest one found, to 1/256 of the way. Chosen,
# not tuned.
HALVINGS = 8
# Rounding may undo the success of a nearest image, so images further out are tried too: shares of
# the distance that is left to eps. Chosen, not tuned.
BEYOND = (0.0, 1 / 32, 1 / 8, 1 / 2, 1.0)


def check_call(norm: Norm, images01: Array, eps: Any) -> None:
    """Checks the arguments of an attack.

    Raises:
      ValueError: `images01` is not float32 in [0, 1], or a concrete `eps` is not between 0 and the
        distance from black to white.
    """
    pixels.check(images01, ndim=4)
    largest = norms.largest(norm, images01.shape[1:])
    if isinstance(eps, Tracer):
        return
    radii = np.asarray(eps, np.float32)
    if radii.shape not in ((), images01.shape[:1]):
        raise ValueError(
            f"`eps` has the wrong shape: got {list(radii.shape)}, expected a number or one per "
            f"image ({len(images01)})"
        )
    valid = (radii >= 0) & (radii <= largest * (1 + 1e-6))
    if not valid.all():
        first = float(radii[~valid].ravel()[0])
        expected = (
            "a share of the pixel range [0, 1], such as 4/255"
            if largest == 1
            else f"a distance in [0, {largest:.4g}], black to white"
        )
        raise ValueError(
            f"`eps` is out of range: got {first:.4g}, expected {expected}"
            f"{norms.level_hint(first) if largest == 1 else ''}"
        )


def map_in_chunks(run: Callable[..., Any], slots: int) -> Callable[..., Any]:
    """Bounds the memory of `(variables, rows [n ...]) -> rows [n ...]`: `slots` rows at a time."""

    def call(variables: Variables, rows: Any) -> Any:
        n = len(jax.tree.leaves(rows)[0])
        if n <= slots:
            return run(variables, rows)
        chunks = jax.tree.map(
            lambda leaf: leaf.reshape(-1, slots, *leaf.shape[1:]), pad_rows(rows, -n % slots)
        )
        outputs = jax.lax.map(lambda chunk: run(variables, chunk), chunks)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], outputs)

    return call


@functools.lru_cache(maxsize=64)
def batched_logits(logits: Logits, slots: int) -> Callable[[Variables, Array], jax.Array]:
    """Jitted `(variables, images01 [n h w c]) -> f32[n k]`, `slots` images at a time.

    The function is cached, so that a network compiles once.
    """
    return shard_rows(map_in_chunks(logits, slots))


def check_norm(search: Search, norm: Norm) -> None:
    """Raises ValueError if the search does not support the norm."""
    if search.norms and norms.name(norm) not in search.norms:
        raise ValueError(
            f"this attack does not support the `norm`: got {norms.name(norm) or 'another'!r}, "
            f"expected one of {', '.join(search.norms)}"
        )


def check_attack(
    search: Search | Sequence[Search],
    *,
    norm: Norm,
    goal: Goal,
    classes: int,
    eps: float = 0.0,
    size: int = 16,
) -> None:
    """Checks that an attack can run, without a network: it is traced on constant logits.

    Args:
      search, norm, goal: as for `make_attack`.
      classes: number of classes of the network.
      eps: the largest radius.
      size: side of the images, in pixels.

    Raises:
      ValueError: the search does not support the norm or needs more classes, or `eps` exceeds the
        distance from black to white.
    """

    def logits(variables: Variables, images01: Array) -> jax.Array:
        del variables
        return jnp.broadcast_to(jnp.mean(images01, (1, 2, 3))[:, None], (len(images01), classes))

    attack = make_attack(search, logits, norm=norm, goal=goal)
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    class_mask = jax.ShapeDtypeStruct((2, classes), jnp.bool_)
    jax.eval_shape(functools.partial(attack, eps=eps), None, jax.random.key(0), images, class_mask)


def make_attack(
    search: Search | Sequence[Search],
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    eight_bit: bool = True,
    slots: int | None = None,
) -> Attack:
    """An `Attack` of one search, or of several in sequence, each on the unsolved images.

    Args:
      search: one or more definitions of attacks.
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      norm: bounds the change.
      goal: defines success; its score ranks images that failed.
      eight_bit: restrict the search and the result to multiples of 1 / 255, which an 8-bit file
        holds. False allows any value in the ball, for eps below 1 / 255.
      slots: images that a device steps together. None: `devices.images_at_once` of the images that
        are left, which may compile a second program. With 1, an image's result is equal to the bit
        whatever the batch; with more, the last bits may differ, because XLA's sums depend on the
        batch.

    Raises:
      ValueError: no search, or one that does not support the norm.

    Example:
      >>> from tl.attacks import gradient, goals, norms
      >>> def brightness(variables, x):
      ...   return jnp.stack([jnp.mean(x, (1, 2, 3)), jnp.full(len(x), 0.5)], axis=1)
      >>> pgd = gradient.pgd(steps=5)
      >>> attack = make_attack(pgd, brightness, norm=norms.LINF, goal=goals.UNTARGETED)
      >>> gray = jnp.full((1, 8, 8, 3), norms.GRID[125])
      >>> bright = jnp.array([[False, True]])
      >>> bool(attack(None, jax.random.key(0), gray, bright, eps=4 / 255).success[0])
      True
    """
    searches = (search,) if isinstance(search, Search) else tuple(search)
    if not searches:
        raise ValueError("an attack needs at least one search: got none")
    for one in searches:
        check_norm(one, norm)
    evaluate = batched_logits(logits, slots or devices.images_at_once())

    def run(
        search: Search, variables: Variables, rows: tuple[TaskRows, Best, jax.Array]
    ) -> tuple[Best, jax.Array]:
        _, before, todo = rows
        remaining = (
            None if isinstance(todo, Tracer) else -(-int(todo.sum()) // jax.local_device_count())
        )
        # Without images to attack, nothing is compiled.
        if remaining == 0:
            return before, jnp.zeros(len(todo), jnp.int32)
        size = slots or devices.images_at_once(remaining)
        compiled = _compile_search(search.init, search.step, logits, norm, goal, eight_bit, size)
        return compiled(variables, rows)

    def attack(variables, key, images01, class_mask, *, eps, step_size=None, skip=None):
        check_call(norm, images01, eps)
        center, class_mask, b = jnp.asarray(images01), jnp.asarray(class_mask), len(images01)
        eps = _repeated(eps, b)
        clean = evaluate(variables, center)
        no = jnp.zeros(b, bool)
        best = before = Best(center, *_judge(clean, class_mask, goal), has_gradient=no)
        skipped = no if skip is None else jnp.asarray(skip)
        # The image's key comes before the search's index, so that an image alone has the same keys.
        keys = per_image_keys(key, b)
        steps, solved_by = jnp.zeros(b, jnp.int32), jnp.full(b, -1, jnp.int32)
        for index, search in enumerate(searches):
            size = search.default_step(eps, search.steps) if step_size is None else step_size
            size = _repeated(size, b)
            index_keys = fold_in_each(keys, jnp.full(b, index, jnp.int32))
            search_keys = keys if len(searches) == 1 else index_keys
            tasks = TaskRows(
                search_keys, center, class_mask, eps, size, *_options(search, b), clean
            )
            result, new_steps = run(search, variables, (tasks, before, ~(best.solved | skipped)))
            solved, steps = best.solved, steps + new_steps
            best = best._replace(has_gradient=best.has_gradient | result.has_gradient)
            for share in BEYOND if eight_bit and search.nearest else (0.0,):
                images = _finalize(result.x, center, eps, np.float32(share), norm, eight_bit)
                score, success = _judge(evaluate(variables, images), class_mask, goal)
                best = _update_best(best, images, score, success)
            solved_by = jnp.where(best.solved & ~solved, index, solved_by)
        return AttackResult(best.x, best.solved, best.score, steps, solved_by, best.has_gradient)

    return attack


def make_find(
    search: Search, logits: Logits, *, norm: Norm, goal: Goal, slots: int | None = None
) -> Find:
    """A search for the nearest adversarial image as a function that returns it at any distance.

    Arguments as in `make_attack`. At the end, the line from the clean image to the result is
    bisected `HALVINGS` times.

    Raises:
      ValueError: the search does not minimize the distance, or does not support the norm.
    """
    if not search.nearest:
        raise ValueError(
            "this attack does not search for the nearest image; use deepfool, cw or fab"
        )
    check_norm(search, norm)
    size = slots or devices.images_at_once()
    evaluate = batched_logits(logits, size)
    run = _compile_search(search.init, search.step, logits, norm, goal, False, size)

    def find(variables, key, images01, class_mask, *, stop_distance=0.0):
        check_call(norm, images01, stop_distance)
        center, class_mask, b = jnp.asarray(images01), jnp.asarray(class_mask), len(images01)
        eps = jnp.full(b, stop_distance, jnp.float32)
        clean = evaluate(variables, center)
        before = Best(center, *_judge(clean, class_mask, goal), has_gradient=jnp.zeros(b, bool))
        keys = per_image_keys(key, b)
        tasks = TaskRows(keys, center, class_mask, eps, eps, *_options(search, b), clean)
        result, _ = run(variables, (tasks, before, ~before.solved))
        low, high = jnp.zeros(b), jnp.ones(b)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            images = _interpolate(center, result.x, middle)
            _, met = _judge(evaluate(variables, images), class_mask, goal)
            low, high = jnp.where(met, low, middle), jnp.where(met, middle, high)
        images = _interpolate(center, result.x, high)
        _, success = _judge(evaluate(variables, images), class_mask, goal)
        images = jnp.where(expand(success, center), images, center)
        distance = jnp.where(success, norm.distance(images, center), jnp.inf)
        return NearestResult(images, distance, success)

    return find


@jax.jit
def _interpolate(a: jax.Array, b: jax.Array, share: jax.Array) -> jax.Array:
    """The point at a share of the way from a to b; at 1, exactly b."""
    return jnp.where(expand(share < 1, a), a + expand(share, a) * (b - a), b)


@functools.partial(jax.jit, static_argnames=("norm", "eight_bit"))
def _finalize(
    x: jax.Array, center: jax.Array, eps: jax.Array, share: jax.Array, norm: Norm, eight_bit: bool
) -> jax.Array:
    """x, projected into the ball and [0, 1], and rounded with `eight_bit`.

    Before that, x moves outwards by a share of the distance that is left to eps.
    """
    length = norm.distance(x, center)
    factor = 1.0 + share * jnp.maximum(eps - length, 0.0) / jnp.maximum(length, 1e-12)
    outer = jnp.where(share > 0, center + expand(factor, x) * (x - center), x)
    x = norm.project(outer, center, eps)
    return norm.quantize(x, center, eps) if eight_bit else x


@functools.partial(jax.jit, static_argnames=("goal",))
def _judge(logits: jax.Array, class_mask: jax.Array, goal: Goal) -> tuple[jax.Array, jax.Array]:
    return goal.score(logits, class_mask), goal.success(logits, class_mask)


_update_best = jax.jit(update_best)


class TaskRows(NamedTuple):
    """The arrays of a `Task`."""

    keys: jax.Array
    center: jax.Array
    class_mask: jax.Array
    eps: jax.Array
    step_size: jax.Array
    steps: jax.Array
    early_stop: jax.Array
    clean: jax.Array


def _repeated(value: Any, b: int) -> jax.Array:
    """f32[b] of a number, or of one per image."""
    if not isinstance(value, jax.Array):
        value = np.asarray(value, np.float32)  # JAX would compile a conversion
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (b,))


def _options(search: Search, b: int) -> tuple[jax.Array, jax.Array]:
    """The traced options of a search, `steps` and `early_stop`, for each image."""
    return jnp.full(b, search.steps, jnp.int32), jnp.full(b, search.early_stop, bool)


@functools.lru_cache(maxsize=64)
def _compile_search(
    init: Callable[[Task, Best], Any],
    step: Callable[[Task, Any], Any],
    logits: Logits,
    norm: Norm,
    goal: Goal,
    eight_bit: bool,
    slots: int,
) -> Callable[[Variables, tuple[TaskRows, Best, jax.Array]], tuple[Best, jax.Array]]:
    """Jitted `(variables, (tasks, best, todo)) -> (best, steps)` over all local devices.

    The function is cached, so that a search compiles once, whatever its number of steps
    and early stop.
    """

    def make_task(variables: Variables, rows: TaskRows) -> Task:
        def saved(x: jax.Array) -> jax.Array:
            if not eight_bit:
                return x
            constant = jax.lax.stop_gradient(x)
            # The difference is exactly zero, so the value is the rounded one.
            return norm.quantize(constant, rows.center, rows.eps) + (x - constant)

        return Task(
            logits=lambda x: logits(variables, x),
            saved=saved,
            judge=lambda outputs: (
                goal.score(outputs, rows.class_mask),
                goal.success(outputs, rows.class_mask),
            ),
            project=lambda x: norm.project(x, rows.center, rows.eps),
            norm=norm,
            goal=goal,
            success_mask=jnp.asarray(success_mask(goal, rows.class_mask)),
            **rows._asdict(),
        )

    def run(variables: Variables, rows: tuple[TaskRows, Best, jax.Array]) -> tuple[Best, jax.Array]:
        return run_slots(
            lambda rows, best: init(make_task(variables, rows), best),
            lambda rows, state: step(make_task(variables, rows), state),
            *rows,
            slots=slots,
        )

    return shard_rows(run)
