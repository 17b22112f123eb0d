"""Learning-rate schedules.

Each is a function of the peak rate and the number of steps, a row of `SCHEDULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def warmup_cosine(lr: float, steps: int) -> optax.Schedule:
    """Linear warm-up to `lr` over the first tenth of the steps, then a cosine down to 0.

    Reference: Loshchilov & Hutter 2017, arXiv:1608.03983, section 3.
    """
    return optax.warmup_cosine_decay_schedule(
        0.0, lr, warmup_steps=max(steps // 10, 1), decay_steps=max(steps, 2)
    )


def one_cycle(lr: float, steps: int) -> optax.Schedule:
    """Rises from lr / 25 to `lr` over 30 % of the steps, then falls to lr / 250,000, along cosines.

    Reference: Smith & Topin 2018, arXiv:1708.07120; the constants are those of `OneCycleLR` in
      torch and fastai.
    """
    peak, last = max(0.3 * steps, 1.0), max(float(steps), 2.0)

    def rate(step: Any) -> jax.Array:
        at = jnp.asarray(step, jnp.float32)
        up, down = jnp.clip(at / peak, 0.0, 1.0), jnp.clip((at - peak) / (last - peak), 0.0, 1.0)
        rising = 1 / 25 + (1 - 1 / 25) * 0.5 * (1.0 - jnp.cos(jnp.pi * up))
        falling = 1 / 25e4 + (1 - 1 / 25e4) * 0.5 * (1.0 + jnp.cos(jnp.pi * down))
        return lr * jnp.where(at < peak, rising, falling)

    return rate


def constant(lr: float, steps: int) -> optax.Schedule:
    """The same rate at every step."""
    del steps
    return optax.constant_schedule(lr)


def exponential(lr: float, steps: int) -> optax.Schedule:
    """Falls from `lr` to lr / 100 by the same factor at each step, and so at each epoch.

    100 is chosen, not tuned.
    """
    return optax.exponential_decay(lr, transition_steps=max(steps, 1), decay_rate=0.01)


# Steps -> end of the warm-up, and the steps after which the rate falls (Kolesnikov et al. 2020,
# arXiv:1912.11370; google-research/big_transfer, bit_hyperrule.py).
_BIT_STEPS = {
    500: (100, 200, 300, 400),
    10_000: (500, 3000, 6000, 9000),
    20_000: (500, 6000, 12_000, 18_000),
}


def bit(lr: float, steps: int) -> optax.Schedule:
    """The schedule of BiT-HyperRule: linear warm-up, then a tenth of the rate after each boundary.

    With 500, 10,000 or 20,000 steps it is the published one. Other numbers of steps stretch the
    schedule of the nearest number, by ratio. The rate is 0 from `steps` on.

    Reference: Kolesnikov et al. 2020, arXiv:1912.11370, section 3.3.
    """
    published = min(_BIT_STEPS, key=lambda total: abs(math.log(max(steps, 1) / total)))
    return _staircase(lr, steps, *(steps * end / published for end in _BIT_STEPS[published]))


def vtab(lr: float, steps: int) -> optax.Schedule:
    """A tenth of the rate after 30, 60 and 90 % of the steps, after a warm-up over 8 %.

    Reference: Zhai et al. 2019, arXiv:1910.04867; google-research/task_adaptation, which warms up
      over 80 of 1,000 steps.
    """
    return _staircase(lr, steps, *(share * steps for share in (0.08, 0.3, 0.6, 0.9)))


def _staircase(lr: float, steps: int, warmup: float, *boundaries: float) -> optax.Schedule:
    def rate(step: Any) -> jax.Array:
        at = jnp.asarray(step, jnp.float32)
        falls = sum(((at > end).astype(jnp.float32) for end in boundaries), jnp.zeros(()))
        value = jnp.where(at < warmup, at / warmup, 10.0**-falls)
        return lr * jnp.where(at < steps, value, 0.0)

    return rate


def rate_range(lr: float, steps: int) -> optax.Schedule:
    """Rises from lr / 1,000,000 to `lr`, by the same factor at each step.

    For the learning-rate finder, `training.rate_finder.find_rate`.
    """
    return lambda step: (
        lr * 10.0 ** (-6.0 * (1.0 - jnp.asarray(step, jnp.float32) / max(steps - 1, 1)))
    )


SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "cosine": warmup_cosine,
    "one_cycle": one_cycle,
    "constant": constant,
    "exponential": exponential,
    "bit": bit,
    "vtab": vtab,
}
"""Name -> `(peak rate, steps) -> schedule`."""
