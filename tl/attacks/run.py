"""How a search runs: the checks before it, the queue and the devices, and the test of what comes out.

Images that meet the goal are left alone, the rest are searched through `queue.work` on all local devices, and what comes
out is put into the ball and on the grid, and shown to the network once more.
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
from tl.attacks.slots import rows, work
from tl.types import Array, Variables

HALVINGS = 8  # of the way between the clean picture and the nearest one found; chosen, not tuned: to 1/256 of it
BEYOND = (
    0.0,
    1 / 32,
    1 / 8,
    1 / 2,
    1.0,
)  # how far past such a picture rounding may look, of what eps leaves; chosen


def check_call(norm: Norm, images01: Array, eps: Any) -> None:
    """ValueError where `images01` are not float32 in [0, 1], or a known `eps` is not between 0 and white's from black."""
    pixels.check(images01, ndim=4)
    largest = norms.largest(norm, images01.shape[1:])
    if not isinstance(eps, Tracer):
        given = np.asarray(eps, np.float32)
        if given.shape not in ((), images01.shape[:1]):
            raise ValueError(
                f"eps is one number, or one for each of {len(images01)} images; got {list(given.shape)}"
            )
        fits = (given >= 0) & (given <= largest * (1 + 1e-6))
        if not fits.all():
            units = (
                "share of the pixel range [0, 1]"
                if largest == 1
                else f"distance in [0, {largest:.4g}], black to white"
            )
            raise ValueError(f"eps is a {units}, such as 4/255; got {given[~fits].ravel()[0]:.4g}")


def shard_rows(run: Callable[..., Any]) -> Callable[..., Any]:
    """`(variables, rows [b ...]) -> rows [b ...]`, jitted, each local device with its part of the rows.

    Rows that are missing to a whole number for each device are repeats of the first, and taken off again. Several hosts
    work on their own rows each.
    """
    whole = jax.jit(run)

    @functools.cache
    def parts(count: int) -> Callable[..., Any]:
        mesh = devices.mesh(jax.local_devices()[:count])
        each = jax.sharding.PartitionSpec(devices.AXIS)
        here = jax.sharding.PartitionSpec()
        return jax.jit(
            jax.shard_map(run, mesh=mesh, in_specs=(here, each), out_specs=each, check_vma=False)
        )

    def call(variables: Variables, tasks: Any) -> Any:
        count, n = jax.local_device_count(), len(jax.tree.leaves(tasks)[0])
        if (
            count == 1
            or n == 1
            or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((variables, tasks)))
        ):
            return whole(variables, tasks)
        missing = -n % count
        padded = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[:1], missing, axis=0)]), tasks
        )
        return jax.tree.map(lambda leaf: leaf[:n], parts(count)(variables, padded))

    return call


def map_in_chunks(run: Callable[..., Any], slots: int) -> Callable[..., Any]:
    """`(variables, rows [n ...]) -> rows [n ...]`, `slots` rows at a time: no more than that many in memory."""

    def call(variables: Variables, tasks: Any) -> Any:
        n = len(jax.tree.leaves(tasks)[0])
        if n <= slots:
            return run(variables, tasks)
        padded = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[:1], -n % slots, axis=0)]), tasks
        )
        groups = jax.tree.map(lambda leaf: leaf.reshape(-1, slots, *leaf.shape[1:]), padded)
        found = jax.lax.map(lambda group: run(variables, group), groups)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], found)

    return call


@functools.lru_cache(maxsize=64)
def batched_logits(logits: Logits, slots: int) -> Callable[[Variables, Array], jax.Array]:
    """`(variables, images01 [n h w c]) -> f32[n k]`, jitted, `slots` images at a time; one for all attacks on a network."""
    return shard_rows(map_in_chunks(logits, slots))


def check_norm(search: Search, norm: Norm) -> None:
    """ValueError where the search does not work in that norm."""
    if search.norms and norms.name(norm) not in search.norms:
        raise ValueError(
            f"this attack works in the norms {', '.join(search.norms)}; got {norms.name(norm) or 'another'!r}"
        )


def make_attack(
    search: Search | Sequence[Search],
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    eight_bit: bool = True,
    slots: int | None = None,
) -> Attack:
    """An `Attack` of one search, or of several, one after another, each on what those before it left unsolved.

    Args:
      search: how.
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      norm: where it may go.
      goal: what for. Its success is what is looked for, its score ranks what failed.
      eight_bit: whether pictures are seen, and given back, on the k / 255 grid, as an 8-bit file holds them; else anywhere in
        the ball, for eps below a level.
      slots: images that a device steps side by side; None leaves it to `devices.images_at_once` and how many are left, fewer
        of which may mean another program. With 1 an image's bits are its own on any network; with more they may differ in
        the last from those of the image alone, as XLA's sums do.

    Raises:
      ValueError: no search, or a norm that one of them does not work in.

    Example:
      >>> from tl.attacks import gradient, goals, norms
      >>> mean = lambda variables, x: jnp.stack([jnp.mean(x, (1, 2, 3)), jnp.full(len(x), 0.5)], axis=1)
      >>> run = make_attack(gradient.pgd(steps=5), mean, norm=norms.LINF, goal=goals.UNTARGETED)
      >>> gray = jnp.full((1, 8, 8, 3), norms.GRID[125])
      >>> bool(run(None, jax.random.key(0), gray, jnp.array([[False, True]]), eps=4 / 255).success[0])
      True
    """
    chain = (search,) if isinstance(search, Search) else tuple(search)
    if not chain:
        raise ValueError("an attack wants at least one search; got none")
    for one in chain:
        check_norm(one, norm)
    look = batched_logits(logits, slots or devices.images_at_once())

    def searched(
        one: Search, variables: Variables, all_rows: tuple[Rows, Best, jax.Array]
    ) -> tuple[Best, jax.Array]:
        _, before, todo = all_rows
        left = None if isinstance(todo, Tracer) else -(-int(todo.sum()) // jax.local_device_count())
        if left == 0:  # and nothing is compiled
            return before, jnp.zeros(len(todo), jnp.int32)
        return _searched(one, logits, norm, goal, eight_bit, slots or devices.images_at_once(left))(
            variables, all_rows
        )

    def attack(variables, key, images01, class_mask, *, eps, step_size=None, skip=None):
        check_call(norm, images01, eps)
        center, class_mask, b = jnp.asarray(images01), jnp.asarray(class_mask), len(images01)
        eps = jnp.broadcast_to(jnp.asarray(eps, jnp.float32), (b,))
        clean = look(variables, center)
        best = before = Best(center, *_judged(clean, class_mask, goal))
        apart = jnp.zeros(b, bool) if skip is None else jnp.asarray(skip)
        keys = per_image_keys(key, b)  # first the row's, then the place's: a row alone has the same
        steps, solved_by = jnp.zeros(b, jnp.int32), jnp.full(b, -1, jnp.int32)
        for place, one in enumerate(chain):
            size = (
                one.default_step(eps) if step_size is None else jnp.asarray(step_size, jnp.float32)
            )
            own = keys if len(chain) == 1 else fold_in_each(keys, jnp.full(b, place, jnp.int32))
            tasks = Rows(own, center, class_mask, eps, jnp.broadcast_to(size, (b,)), clean)
            found, taken = searched(one, variables, (tasks, before, ~(best.solved | apart)))
            solved, steps = best.solved, steps + taken
            for share in BEYOND if eight_bit and one.nearest else (0.0,):
                images = _finalize(found.x, center, eps, jnp.float32(share), norm, eight_bit)
                best = _kept(best, images, *_judged(look(variables, images), class_mask, goal))
            solved_by = jnp.where(best.solved & ~solved, place, solved_by)
        return AttackResult(best.x, best.solved, best.score, steps, solved_by)

    return attack


def make_find(
    search: Search, logits: Logits, *, norm: Norm, goal: Goal, slots: int | None = None
) -> Find:
    """A search for the nearest adversarial picture as a function that gives it, however far it is, anywhere in the box.

    Arguments as in `make_attack`; at the end the way from the clean picture to the found one is halved `HALVINGS` times.

    Raises:
      ValueError: the search is not for the nearest, or does not work in that norm.
    """
    if not search.nearest:
        raise ValueError(
            "this attack does not look for the nearest picture; take deepfool, cw or fab"
        )
    check_norm(search, norm)
    side_by_side = slots or devices.images_at_once()
    look = batched_logits(logits, side_by_side)
    run = _searched(search, logits, norm, goal, False, side_by_side)

    def find(variables, key, images01, class_mask, *, stop_distance=0.0):
        check_call(norm, images01, stop_distance)
        center, class_mask, b = jnp.asarray(images01), jnp.asarray(class_mask), len(images01)
        near = jnp.full(b, stop_distance, jnp.float32)
        clean = look(variables, center)
        before = Best(center, *_judged(clean, class_mask, goal))
        tasks = Rows(per_image_keys(key, b), center, class_mask, near, near, clean)
        found, _ = run(variables, (tasks, before, ~before.solved))
        low, high = jnp.zeros(b), jnp.ones(b)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            _, met = _judged(look(variables, _between(center, found.x, middle)), class_mask, goal)
            low, high = jnp.where(met, low, middle), jnp.where(met, middle, high)
        images = _between(center, found.x, high)
        _, success = _judged(look(variables, images), class_mask, goal)
        images = jnp.where(rows(success, center), images, center)
        return NearestResult(
            images, jnp.where(success, norm.distance(images, center), jnp.inf), success
        )

    return find


@jax.jit
def _between(here: jax.Array, there: jax.Array, share: jax.Array) -> jax.Array:
    """`there` itself, bit for bit, at a share of 1."""
    return jnp.where(rows(share < 1, here), here + rows(share, here) * (there - here), there)


@functools.partial(jax.jit, static_argnames=("norm", "eight_bit"))
def _finalize(
    x: jax.Array, center: jax.Array, eps: jax.Array, share: jax.Array, norm: Norm, eight_bit: bool
) -> jax.Array:
    """x, moved outwards by a share of what eps leaves, in the ball and in the box; and on the grid."""
    length = norm.distance(x, center)
    longer = 1.0 + share * jnp.maximum(eps - length, 0.0) / jnp.maximum(length, 1e-12)
    x = norm.project(jnp.where(share > 0, center + rows(longer, x) * (x - center), x), center, eps)
    return norm.quantize(x, center, eps) if eight_bit else x


@functools.partial(jax.jit, static_argnames=("goal",))
def _judged(found: jax.Array, class_mask: jax.Array, goal: Goal) -> tuple[jax.Array, jax.Array]:
    return goal.score(found, class_mask), goal.success(found, class_mask)


_kept = jax.jit(update_best)


class Rows(NamedTuple):
    """The arrays of a `Task`."""

    keys: jax.Array
    center: jax.Array
    class_mask: jax.Array
    eps: jax.Array
    step_size: jax.Array
    clean: jax.Array


@functools.lru_cache(maxsize=64)
def _searched(
    search: Search, logits: Logits, norm: Norm, goal: Goal, eight_bit: bool, slots: int
) -> Callable[[Variables, tuple[Rows, Best, jax.Array]], tuple[Best, jax.Array]]:
    """`(variables, (tasks, best, todo)) -> (best, steps)`, jitted and over all local devices; one for the same search."""

    def run(variables: Variables, all_rows: tuple[Rows, Best, jax.Array]) -> tuple[Best, jax.Array]:
        def task(own: Rows) -> Task:
            def saved(x: jax.Array) -> jax.Array:
                if not eight_bit:
                    return x
                fixed = jax.lax.stop_gradient(x)
                return norm.quantize(fixed, own.center, own.eps) + (x - fixed)  # exactly on it

            return Task(
                logits=lambda x: logits(variables, x),
                saved=saved,
                judge=lambda found: (
                    goal.score(found, own.class_mask),
                    goal.success(found, own.class_mask),
                ),
                project=lambda x: norm.project(x, own.center, own.eps),
                norm=norm,
                goal=goal,
                success_mask=jnp.asarray(success_mask(goal, own.class_mask)),
                **own._asdict(),
            )

        tasks, best, todo = all_rows
        return work(
            lambda own, best: search.init(task(own), best),
            lambda own, state: search.step(task(own), state),
            tasks,
            best,
            todo,
            slots=slots,
        )

    return shard_rows(run)
