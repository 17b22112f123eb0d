"""Optimizers, and one partitioned optax optimizer for the trainable leaves.

Frozen leaves are not part of the optimizer: the train step differentiates the trainable subtree
only, so gradients, optimizer state, weight decay and clipping do not include them. A
`paths.Partition` decides which leaves train.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tl.paths import FROZEN, Partition

# ---- optimizers ----------------------------------------------------------------------------------


def decay_mask(tree: Any) -> Any:
    """True for the leaves that decay: kernels, not biases or scales.

    Reference: He et al. 2019, arXiv:1812.01187, section 3.1.
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)


class StartState(NamedTuple):
    """The state of `decay_to_start`: the starting parameters, and 0 for each leaf of the head."""

    start: Any


def _of_head(path: Any) -> bool:
    return path[0].key == "head"


def decay_to_start(backbone: float, head: float = 0.0) -> optax.GradientTransformation:
    """L2-SP: weight decay of the backbone toward its starting parameters instead of toward 0.

    Adds `backbone * (p - start)` to the update of each leaf of the backbone, scales and biases
    included, and `head * p` to that of each kernel of the head, the subtree "head". With AdamW it
    is decoupled from the gradient; in the paper, with SGD, it is part of the gradient.

    Args:
      backbone: alpha of the paper, at least 0.
      head: beta of the paper, at least 0.

    Reference:
      Li et al. 2018, arXiv:1802.01483, equation 2.
    """

    def init(params: Any) -> StartState:
        copied = lambda path, leaf: jnp.zeros(()) if _of_head(path) else jnp.array(leaf)
        return StartState(jax.tree_util.tree_map_with_path(copied, params))

    def update(
        updates: Any, state: StartState, params: Any = None, **_: Any
    ) -> tuple[Any, StartState]:
        def decayed(path: Any, change: jax.Array, leaf: jax.Array, start: jax.Array) -> jax.Array:
            rate = backbone if not _of_head(path) else 0.0 if leaf.ndim < 2 else head
            return change + rate * (leaf - start)

        return jax.tree_util.tree_map_with_path(decayed, updates, params, state.start), state

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


Decay = float | optax.GradientTransformation
"""A weight decay toward 0, or a transformation such as `decay_to_start`."""


def _decay(decay: Decay) -> optax.GradientTransformation:
    if isinstance(decay, optax.GradientTransformation):
        return decay
    return optax.add_decayed_weights(decay, mask=decay_mask)


def sgd(
    weight_decay: Decay = 0.0, *, momentum: float = 0.9, nesterov: bool = True
) -> optax.GradientTransformation:
    """SGD with momentum; weight decay is added to the gradient, as in torch.

    Reference: Sutskever et al. 2013, ICML, section 2.
    """
    if not momentum:
        return _decay(weight_decay)
    return optax.chain(_decay(weight_decay), optax.trace(momentum, nesterov=nesterov))


def adamw(weight_decay: Decay = 1e-4) -> optax.GradientTransformation:
    """Adam with decoupled weight decay.

    Reference: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2.
    """
    return optax.chain(optax.scale_by_adam(), _decay(weight_decay))


def rms(weight_decay: Decay = 1e-4) -> optax.GradientTransformation:
    """Adam without its first moment, with decoupled weight decay; "schedule_free" adds a momentum.

    Reference: Defazio et al. 2024, arXiv:2405.15682, algorithm 1.
    """
    scale = optax.scale_by_rms(0.999, eps_in_sqrt=False, bias_correction=True)
    return optax.chain(scale, _decay(weight_decay))


def lion(weight_decay: Decay = 1e-3) -> optax.GradientTransformation:
    """The sign of a momentum, with decoupled weight decay.

    Every parameter moves by the learning rate in each step, so the rate is 3 to 10 times smaller
    than that of AdamW, and the decay as many times larger.

    Reference: Chen et al. 2023, arXiv:2302.06675, algorithm 2 and section 5.
    """
    return optax.chain(optax.scale_by_lion(), _decay(weight_decay))


OPTIMIZERS: dict[str, Callable[[Decay], optax.GradientTransformation]] = {
    "adamw": adamw,
    "sgd": sgd,
    "momentum": functools.partial(sgd, nesterov=False),
    "plain_sgd": functools.partial(sgd, momentum=0.0),
    "lion": lion,
    "rms": rms,
}
"""Name -> function from weight decay to an optimizer with learning rate 1.

"sgd" has Nesterov's momentum, "momentum" the classical one, and "plain_sgd" none.
"""


# ---- wrappers of a whole optimizer ---------------------------------------------------------------

# Radius of SAM for fine-tuning is 0.05 to 0.1 in the paper (section 3.3 and its code).
SAM_RADIUS = 0.05


def sam(optimizer: optax.GradientTransformation, schedule: optax.Schedule) -> Any:
    """SAM: the gradient at the point of largest loss within a ball around the parameters.

    A step costs two gradients. The statistics of BatchNorm are those of the first.

    Reference: Foret et al. 2021, arXiv:2010.01412, algorithm 1 (rho = 0.05).
    """
    del schedule
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(SAM_RADIUS))
    return optax.contrib.sam(optimizer, ascent, opaque_mode=True)


class LookaheadState(NamedTuple):
    """The state of `lookahead`: that of optax, and the slow parameters."""

    opt_state: Any
    slow: Any


def lookahead(optimizer: optax.GradientTransformation, schedule: optax.Schedule) -> Any:
    """Lookahead: after every 5 steps, the parameters go back half of the way.

    It is `optax.lookahead` with the slow parameters in the state instead of in the parameters.

    Reference: Zhang et al. 2019, arXiv:1907.08610, algorithm 1 (k = 5, alpha = 0.5).
    """
    del schedule
    inner = optax.lookahead(optimizer, sync_period=5, slow_step_size=0.5)

    def init(params: Any) -> LookaheadState:
        both = optax.LookaheadParams.init_synced(params)
        return LookaheadState(inner.init(both), jax.tree.map(jnp.array, params))

    def update(updates: Any, state: LookaheadState, params: Any = None, **_: Any) -> Any:
        both = optax.LookaheadParams(params, state.slow)
        change, opt_state = inner.update(updates, state.opt_state, both)  # type: ignore[arg-type]
        slow = optax.apply_updates(state.slow, change.slow)  # type: ignore[attr-defined]
        return change.fast, LookaheadState(opt_state, slow)  # type: ignore[attr-defined]

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def schedule_free(optimizer: optax.GradientTransformation, schedule: optax.Schedule) -> Any:
    """Schedule-free learning: an average of the parameters takes the place of a falling rate.

    It has a momentum of its own: use it with "rms" or without momentum, and with the schedule
    "constant". The classifier is the average, `evaluated`.

    Reference: Defazio et al. 2024, arXiv:2405.15682, section 2 (beta = 0.9).
    """
    return optax.contrib.schedule_free(optimizer, schedule, b1=0.9)


class WeightNormState(NamedTuple):
    """The state of `weight_norm`: that of the optimizer, and each kernel as rows v and a row g."""

    opt_state: Any
    rows: Any


def weight_norm(optimizer: optax.GradientTransformation, schedule: optax.Schedule) -> Any:
    """Weight normalization: the optimizer moves the norm and the direction of each filter.

    A kernel w of the backbone is g v / |v|, with norms over all axes but the last. The network and
    its files have w; v and g are in the state, and start at w and |w|. The head, which starts at 0,
    moves as it is. The first batch does not change g and the biases, unlike in the paper.

    Reference: Salimans & Kingma 2016, arXiv:1602.07868, equations 2 and 3.
    """
    del schedule

    def length(rows: jax.Array) -> jax.Array:  # of a filter of zeros: a small number
        return jnp.sqrt(jnp.sum(jnp.square(rows), axis=0, keepdims=True) + 1e-24)

    def divided(path: Any, kernel: jax.Array) -> jax.Array:
        if _of_head(path) or kernel.ndim < 2:
            return jnp.array(kernel)
        rows = kernel.reshape(-1, kernel.shape[-1])
        return jnp.concatenate([rows, length(rows)])

    def joined(leaf: jax.Array, rows: jax.Array) -> jax.Array:
        if rows.shape == leaf.shape:
            return rows
        return (rows[-1:] * rows[:-1] / length(rows[:-1])).reshape(leaf.shape)

    def init(params: Any) -> WeightNormState:
        rows = jax.tree_util.tree_map_with_path(divided, params)
        return WeightNormState(optimizer.init(rows), rows)

    def update(updates: Any, state: WeightNormState, params: Any = None, **_: Any) -> Any:
        kernels = lambda rows: jax.tree.map(joined, params, rows)
        (gradient,) = jax.vjp(kernels, state.rows)[1](updates)
        change, opt_state = optimizer.update(gradient, state.opt_state, state.rows)
        rows = optax.apply_updates(state.rows, change)
        return jax.tree.map(jnp.subtract, kernels(rows), params), WeightNormState(opt_state, rows)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


WRAPPERS: dict[str, Callable[[optax.GradientTransformation, optax.Schedule], Any]] = {
    "none": lambda optimizer, schedule: optimizer,
    "sam": sam,
    "lookahead": lookahead,
    "schedule_free": schedule_free,
    "weight_norm": weight_norm,
}
"""Name -> `(optimizer, learning rate of each step) -> optimizer`, around `partitioned`."""


def evaluated(opt_state: Any, trainable: Any) -> Any:
    """The trainable parameters to evaluate and save: those of the steps, or their average."""
    if isinstance(opt_state, optax.contrib.ScheduleFreeState):
        return optax.contrib.schedule_free_eval_params(opt_state, trainable)
    return trainable


# ---- the partitioned optimizer -------------------------------------------------------------------


def update(
    optimizer: optax.GradientTransformation,
    gradient: Any,
    opt_state: Any,
    params: Any,
    gradient_at: Callable[[Any], Any] | None = None,
) -> tuple[Any, Any]:
    """`optimizer.update` that also works under strict dtype promotion.

    optax multiplies floats by its int32 step count, which strict promotion forbids.

    Args:
      optimizer: such as `partitioned`.
      gradient, opt_state, params: trees of the trainable leaves, and the state.
      gradient_at: the gradient of the same batch at other parameters, for "sam"; other optimizers
        do not call it.
    """
    of_step = lambda params, step: gradient_at(params) if gradient_at else gradient
    with jax.numpy_dtype_promotion("standard"):
        whole = optax.with_extra_args_support(optimizer)
        return whole.update(gradient, opt_state, params, grad_fn=of_step)


def centralized(gradient: Any) -> Any:
    """A gradient in which that of each kernel has mean 0 for each output channel, the last axis.

    `optax.centralize` takes the means for the first axis, which suits kernels in torch's layout.

    Reference: Yong et al. 2020, arXiv:2004.01461, equation 1.
    """

    def centered(leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2:
            return leaf
        return leaf - jnp.mean(leaf, axis=tuple(range(leaf.ndim - 1)), keepdims=True)

    return jax.tree.map(centered, gradient)


def partitioned(
    partition: Partition,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    factors: Mapping[str, float] | None = None,
    clip: float = 0.0,
    centralize: bool = False,
) -> optax.GradientTransformation:
    """One optimizer for the trainable leaves: each label has its own state and rate factor.

    Args:
      partition: labels of the whole tree, frozen leaves included.
      optimizer: an optimizer with learning rate 1, made by one of `OPTIMIZERS`.
      schedule: step -> learning rate.
      factors: label -> factor on the rate (`training.rules.rate_factors`); default 1.
      clip: largest global norm of the gradient of all trainable leaves; 0 does not clip.
      centralize: whether the gradient is `centralized` before it is clipped.

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
    if centralize:
        clipping = optax.chain(optax.stateless(lambda gradient, _: centralized(gradient)), clipping)
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
      old: state of `partitioned` under the previous partition, or of a wrapper around it. Averages
        of parameters start again.
      new: fresh state under the new partition.
    """
    if isinstance(new, optax.contrib.ScheduleFreeState | LookaheadState):
        return new  # averages of other leaves
    if isinstance(new, optax.contrib.SAMState | WeightNormState):
        return new._replace(opt_state=carry_state(old.opt_state, new.opt_state))
    previous = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(old[:-1])
    }

    def carry(path: Any, leaf: jax.Array) -> jax.Array:
        before = previous.get(jax.tree_util.keystr(path))
        return leaf if before is None or before.shape != leaf.shape else before

    return *jax.tree_util.tree_map_with_path(carry, new[:-1]), new[-1]
