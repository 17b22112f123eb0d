"""Which parameters train and how: rules to labels to one partitioned optax optimizer.

Frozen leaves are not in the optimizer at all: `train.py` differentiates the trainable subtree only, so gradients, optimizer
state, weight decay and clipping never see them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tl.paths import FROZEN, Rules, label, unflatten

# ------------------------------------------------------------------------------------------------ optimizers, schedules


def matrices(tree: Any) -> Any:
    """Which leaves decay: kernels, not biases or scales. Reference: He et al. 2019, arXiv:1812.01187, section 3.1."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)


def sgd(weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Momentum 0.9, Nesterov, the decay inside the momentum as in torch. Reference: Sutskever et al. 2013, ICML, section 2."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=matrices), optax.trace(0.9, nesterov=True)
    )


def adamw(weight_decay: float = 1e-4) -> optax.GradientTransformation:
    """Adam, and the decay beside it. Reference: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2."""
    return optax.chain(
        optax.scale_by_adam(), optax.add_decayed_weights(weight_decay, mask=matrices)
    )


OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adamw": adamw,
    "sgd": sgd,
}
"""Weight decay -> an optimizer for a learning rate of 1; `partitioned` brings the rate."""


def warmup_cosine(lr: float, steps: int) -> optax.Schedule:
    """Up to `lr` over the first tenth of the steps, then down to 0 along a cosine. Reference: arXiv:1608.03983, section 3."""
    return optax.warmup_cosine_decay_schedule(
        0.0, lr, warmup_steps=max(steps // 10, 1), decay_steps=max(steps, 2)
    )


def one_cycle(lr: float, steps: int) -> optax.Schedule:
    """From lr / 25 up to `lr` over 30 % of the steps, then down to lr / 250,000, both along cosines.

    Reference: Smith & Topin 2018, arXiv:1708.07120; the numbers are those of torch's and fastai's `OneCycleLR`.
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


def rate_range(lr: float, steps: int) -> optax.Schedule:
    """From lr / 1,000,000 up to `lr` by the same factor at each step: for finding a rate (`fit.find_rate`)."""
    return lambda step: (
        lr * 10.0 ** (-6.0 * (1.0 - jnp.asarray(step, jnp.float32) / max(steps - 1, 1)))
    )


SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "cosine": warmup_cosine,
    "one_cycle": one_cycle,
    "constant": constant,
}


def update(
    optimizer: optax.GradientTransformation, gradient: Any, opt_state: Any, params: Any
) -> tuple[Any, Any]:
    """`optimizer.update`, also where the user's JAX is strict: optax multiplies floats by its int32 count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        return optimizer.update(gradient, opt_state, params)


def partitioned(
    params: Mapping[str, Any],
    tune_rules: Rules,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    factors: Mapping[str, float] | None = None,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """One optimizer for the trainable half of `params`: each label has its own state and its own factor on the rate.

    Args:
      params: the whole tree, frozen leaves included.
      tune_rules: `((regex, label), ...)`.
      optimizer: for a learning rate of 1, of `OPTIMIZERS`.
      schedule: step -> learning rate.
      factors: label -> factor on it (`rate_factors`); default 1.
      clip: largest norm of the whole gradient over the trainable leaves; 0 leaves it as it is (Pascanu et al. 2013,
        arXiv:1211.5063, algorithm 1).

    Returns:
      An optimizer for the kept half of `paths.split(params, labels, ...)`, with state for its leaves only.

    Raises:
      ValueError: rules that do not fit (`paths.label`).
    """
    labels = label(params, tune_rules)
    factors = factors or {}
    groups: dict[Any, optax.GradientTransformation] = {
        what: optax.chain(optimizer, optax.scale(factors.get(what, 1.0)))
        for what in set(labels.values()) - {FROZEN}
    }
    tree = unflatten({name: what if what != FROZEN else None for name, what in labels.items()})
    clipped = optax.clip_by_global_norm(clip) if clip else optax.identity()
    return optax.chain(
        clipped, optax.partition(groups, tree), optax.scale_by_learning_rate(schedule)
    )


def carry_state(old: Any, new: Any) -> Any:
    """The optimizer's state for another set of trainable leaves: moments of those that were there before, zeros for the rest.

    Args:
      old: state of `partitioned` under the rules before.
      new: its fresh state under the rules now. Labels that stay keep their count of steps too; the schedule starts anew.
    """
    known = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(old[:-1])
    }

    def carried(path: Any, leaf: jax.Array) -> jax.Array:
        before = known.get(jax.tree_util.keystr(path))
        return leaf if before is None or before.shape != leaf.shape else before

    return *jax.tree_util.tree_map_with_path(carried, new[:-1]), new[-1]
