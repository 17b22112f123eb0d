"""Optimizers, schedules, and one partitioned optax optimizer for the trainable leaves.

Frozen leaves are not part of the optimizer: the train step differentiates the trainable subtree
only, so gradients, optimizer state, weight decay and clipping do not include them. A
`paths.Partition` decides which leaves train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tl.paths import FROZEN, Partition

# ---- optimizers and schedules --------------------------------------------------------------------


def decay_mask(tree: Any) -> Any:
    """True for the leaves that decay: kernels, not biases or scales.

    Reference: He et al. 2019, arXiv:1812.01187, section 3.1.
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)


def sgd(weight_decay: float = 0.0) -> optax.GradientTransformation:
    """SGD with Nesterov momentum 0.9; weight decay is added to the gradient, as in torch.

    Reference: Sutskever et al. 2013, ICML, section 2.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decay_mask), optax.trace(0.9, nesterov=True)
    )


def adamw(weight_decay: float = 1e-4) -> optax.GradientTransformation:
    """Adam with decoupled weight decay.

    Reference: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.
    """
    return optax.chain(
        optax.scale_by_adam(), optax.add_decayed_weights(weight_decay, mask=decay_mask)
    )


OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adamw": adamw,
    "sgd": sgd,
}
"""Name -> function from weight decay to an optimizer with learning rate 1."""


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
}
"""Name -> `(peak rate, steps) -> schedule`."""


# ---- the partitioned optimizer -------------------------------------------------------------------


def update(
    optimizer: optax.GradientTransformation, gradient: Any, opt_state: Any, params: Any
) -> tuple[Any, Any]:
    """`optimizer.update` that also works under strict dtype promotion.

    optax multiplies floats by its int32 step count, which strict promotion forbids.
    """
    with jax.numpy_dtype_promotion("standard"):
        return optimizer.update(gradient, opt_state, params)


def partitioned(
    partition: Partition,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    factors: Mapping[str, float] | None = None,
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """One optimizer for the trainable leaves: each label has its own state and rate factor.

    Args:
      partition: labels of the whole tree, frozen leaves included.
      optimizer: an optimizer with learning rate 1, made by one of `OPTIMIZERS`.
      schedule: step -> learning rate.
      factors: label -> factor on the rate (`training.rules.rate_factors`); default 1.
      clip: largest global norm of the gradient of all trainable leaves; 0 does not clip.

    Returns:
      An optimizer for the trainable tree of `partition.split`, with state for its leaves only.

    Reference:
      Clipping: Pascanu et al. 2013, arXiv:1211.5063, algorithm 1.
    """
    factors = factors or {}
    groups: dict[Any, optax.GradientTransformation] = {
        group: optax.chain(optimizer, optax.scale(factors.get(group, 1.0)))
        for group in partition.groups
        if group != FROZEN
    }
    clipping = optax.clip_by_global_norm(clip) if clip else optax.identity()
    return optax.chain(
        clipping,
        optax.partition(groups, partition.label_tree),
        optax.scale_by_learning_rate(schedule),
    )


def carry_state(old: Any, new: Any) -> Any:
    """The optimizer state after a change of the trainable leaves.

    Leaves that trained before keep their moments, and labels that remain keep their step count. All
    other moments are zero, and the schedule starts again at step 0.

    Args:
      old: state of `partitioned` under the previous partition.
      new: fresh state under the new partition.
    """
    previous = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(old[:-1])
    }

    def carry(path: Any, leaf: jax.Array) -> jax.Array:
        before = previous.get(jax.tree_util.keystr(path))
        return leaf if before is None or before.shape != leaf.shape else before

    return *jax.tree_util.tree_map_with_path(carry, new[:-1]), new[-1]
