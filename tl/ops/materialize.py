"""Where XLA on a CPU must finish an array before it goes on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax


def materialize(x: Array, key: Array) -> Array:
    """`x`, computed once, however many read it.

    XLA on a CPU fuses what it thinks cheap, gathers among it, into each reader, and drops `lax.optimization_barrier` before
    it does. It does not look through a loop, so this is one that is never entered, which it cannot know. Elsewhere it is
    `x` itself.

    Args:
      x: f32[...].
      key: any random key; its number is compared with what it never is.
    """

    def loop(x: Array) -> Array:
        turns = (jax.random.uniform(key) > 1.0).astype(jnp.int32)  # 0, for it is below 1
        return lax.while_loop(
            lambda carry: carry[0] < turns,
            lambda carry: (carry[0] + 1, -carry[1]),
            (jnp.int32(0), x),
        )[1]

    return lax.platform_dependent(x, cpu=loop, default=lambda x: x)
