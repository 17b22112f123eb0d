"""Runs a search for many images on a fixed number of slots per device.

Images need different numbers of steps: most attacks succeed after one or two, some never. Each
device steps a fixed number of images at a time. As soon as one is finished, its slot goes to the
next image, so no forward pass is spent on finished images. All of this happens inside one
compiled program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

S = TypeVar("S", bound="State")


class State(Protocol):
    """State of a search: a pytree whose leaves have one row per image.

    Attributes:
      best: the best result so far.
      finished: bool[b], images that take no more steps.
    """

    @property
    def best(self) -> Any: ...

    @property
    def finished(self) -> jax.Array: ...


def expand(values: jax.Array, x: jax.Array) -> jax.Array:
    """[b] reshaped to broadcast with x [b ...]."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def select(mask: jax.Array, a: Any, b: Any) -> Any:
    """Row by row, pytree `a` where mask bool[b] holds and pytree `b` elsewhere."""
    return jax.tree.map(lambda x, y: jnp.where(expand(mask, x), x, y), a, b)


def run_slots(
    init: Callable[[Any, Any], S],
    step: Callable[[Any, S], S],
    tasks: Any,
    best: Any,
    todo: jax.Array,
    *,
    slots: int,
) -> tuple[Any, jax.Array]:
    """Steps every image until it is finished; for use inside `jit`.

    Args:
      init: `(tasks, best) -> state` before the first step, without a forward pass.
      step: `(tasks, state) -> state`; rows that are finished keep their old state.
      tasks: pytree [n ...], the problem of each image.
      best: pytree [n ...], the result before the search.
      todo: bool[n], the images to search.
      slots: static; number of images that are stepped together, at most n.

    Returns:
      The best results [n ...], and i32[n], steps that each image took.
    """
    n, size = len(todo), min(slots, len(todo))
    order, count = jnp.argsort(~todo, stable=True), jnp.sum(todo, dtype=jnp.int32)
    take = lambda tree, places: jax.tree.map(lambda leaf: leaf[places], tree)

    def one_step(in_slots: Any, carry: tuple[S, jax.Array]) -> tuple[S, jax.Array]:
        state, steps = carry
        stepped = select(state.finished, state, step(in_slots, state))
        return stepped, steps + (~state.finished).astype(jnp.int32)

    def refill(
        begun: jax.Array, places: jax.Array, state: S, steps: jax.Array, results: tuple
    ) -> tuple:
        """Stores the results of all slots and gives finished slots to the next images."""
        results = jax.tree.map(
            lambda stored, new: stored.at[places].set(new), results, (state.best, steps)
        )
        next_ = begun + jnp.cumsum(state.finished, dtype=jnp.int32) - 1
        fresh = state.finished & (next_ < count)
        places = jnp.where(fresh, order[jnp.minimum(next_, n - 1)], places)
        in_slots = take(tasks, places)
        state = select(fresh, init(in_slots, take(results[0], places)), state)
        return (
            begun + jnp.sum(fresh, dtype=jnp.int32),
            places,
            in_slots,
            state,
            jnp.where(fresh, 0, steps),
            results,
        )

    def turn(carry: tuple) -> tuple:
        begun, places, in_slots, state, steps, results = carry
        waiting = begun < count
        goes_on = lambda now: (
            ~jnp.where(waiting, jnp.any(now[0].finished), jnp.all(now[0].finished))
        )
        state, steps = jax.lax.while_loop(
            goes_on, lambda now: one_step(in_slots, now), (state, steps)
        )
        return refill(begun, places, state, steps, results)

    unfinished = lambda carry: (carry[0] < count) | ~jnp.all(carry[3].finished)
    zeros = jnp.zeros(n, jnp.int32)
    places = order[:size]
    empty = init(take(tasks, places), take(best, places))
    empty = empty._replace(finished=jnp.ones_like(empty.finished))  # pyright: ignore[reportAttributeAccessIssue]
    carry = refill(jnp.int32(0), places, empty, zeros[:size], (best, zeros))
    *_, (best, steps) = jax.lax.while_loop(unfinished, turn, carry)
    return best, steps
