"""Makes XLA on a CPU compute an array once instead of once per reader."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax


def materialize(x: Array, key: Array) -> Array:
    """Returns `x`, computed once for any number of readers.

    On a CPU, XLA fuses operations that it considers cheap, such as gathers, into every reader, and
    removes `lax.optimization_barrier` before that. It does not fuse through loops, so `x` passes
    through a loop that never runs, which the compiler cannot know. On other platforms the result is
    `x` itself.

    Args:
      x: f32[...].
      key: any key of `jax.random`. A uniform number in [0, 1) drawn from it is compared with 1.

    Returns:
      `x`.
    """

    def loop(x: Array) -> Array:
        turns = (jax.random.uniform(key) > 1.0).astype(jnp.int32)  # always 0
        return lax.while_loop(
            lambda carry: carry[0] < turns,
            lambda carry: (carry[0] + 1, -carry[1]),
            (jnp.int32(0), x),
        )[1]

    return lax.platform_dependent(x, cpu=loop, default=lambda x: x)
