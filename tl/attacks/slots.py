"""A queue of images before a few slots: whoever is done leaves, and the next takes its place.

An attack's cost is its looks at the network, and images need unlike many of them: most are fooled in a step or two, a few
never. In a batch the first wait for the last. Here each image is a row with a state of its own, a device works on `slots`
rows side by side, and no look is spent on an image that is done: all inside of one compiled program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp

S = TypeVar("S", bound="State")


class State(Protocol):
    """Where a search is: a pytree whose every leaf has a row an image.

    Attributes:
      best: what has been found so far.
      done: bool[b], rows that are not to be stepped any more.
    """

    @property
    def best(self) -> Any: ...

    @property
    def done(self) -> jax.Array: ...


def rows(values: jax.Array, x: jax.Array) -> jax.Array:
    """[b], shaped to go with x [b ...]."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def choose(mask: jax.Array, there: Any, here: Any) -> Any:
    """Two trees of the same shapes: of each row the first where mask bool[b] holds, else the second."""
    return jax.tree.map(lambda a, b: jnp.where(rows(mask, a), a, b), there, here)


def work(
    init: Callable[[Any, Any], S],
    step: Callable[[Any, S], S],
    tasks: Any,
    best: Any,
    todo: jax.Array,
    *,
    slots: int,
) -> tuple[Any, jax.Array]:
    """Steps every image until it is done; call it inside `jit`.

    Args:
      init: `(tasks, best) -> state`, before the first step; without a look at the network.
      step: `(tasks, state) -> state`; rows that are done are put back as they were.
      tasks: pytree [n ...], what a row is about.
      best: pytree [n ...], as in a state: what is known before.
      todo: bool[n], the rows that want a search.
      slots: static; rows that are stepped side by side, all n where there are fewer.

    Returns:
      best [n ...], and i32[n], how many steps each row took.
    """
    n, at = len(todo), min(slots, len(todo))
    order, count = jnp.argsort(~todo, stable=True), jnp.sum(todo, dtype=jnp.int32)
    take = lambda tree, places: jax.tree.map(lambda leaf: leaf[places], tree)

    def one_step(mine: Any, carry: tuple[S, jax.Array]) -> tuple[S, jax.Array]:
        state, taken = carry
        return choose(state.done, state, step(mine, state)), taken + (~state.done).astype(jnp.int32)

    def refill(
        begun: jax.Array, places: jax.Array, state: S, taken: jax.Array, kept: tuple
    ) -> tuple:
        kept = jax.tree.map(lambda all_, own: all_.at[places].set(own), kept, (state.best, taken))
        next_ = begun + jnp.cumsum(state.done, dtype=jnp.int32) - 1
        fresh = state.done & (next_ < count)
        places = jnp.where(fresh, order[jnp.minimum(next_, n - 1)], places)
        mine = take(tasks, places)
        state = choose(fresh, init(mine, take(kept[0], places)), state)
        return (
            begun + jnp.sum(fresh, dtype=jnp.int32),
            places,
            mine,
            state,
            jnp.where(fresh, 0, taken),
            kept,
        )

    def turn(carry: tuple) -> tuple:
        begun, places, mine, state, taken, kept = carry
        waiting = begun < count
        going = lambda now: ~jnp.where(waiting, jnp.any(now[0].done), jnp.all(now[0].done))
        state, taken = jax.lax.while_loop(going, lambda now: one_step(mine, now), (state, taken))
        return refill(begun, places, state, taken, kept)

    open_ = lambda carry: (carry[0] < count) | ~jnp.all(carry[3].done)
    none = jnp.zeros(n, jnp.int32)
    places = order[:at]
    empty = init(take(tasks, places), take(best, places))
    empty = empty._replace(done=jnp.ones_like(empty.done))  # pyright: ignore[reportAttributeAccessIssue]
    carry = refill(jnp.int32(0), places, empty, none[:at], (best, none))
    _, _, _, _, _, (best, taken) = jax.lax.while_loop(open_, turn, carry)
    return best, taken
