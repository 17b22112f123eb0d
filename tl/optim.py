"""Which parameters train and how: rules to labels to one partitioned optax optimizer.

Frozen leaves are not in the optimizer at all: `train.py` differentiates the trainable subtree only, so gradients, optimizer
state, weight decay and clipping never see them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from tl.paths import FROZEN, TRAINABLE, Rules, flatten, label, nearest, unflatten

TUNE: dict[str, Rules] = {
    "probe": (("head/.*", TRAINABLE), (".*", FROZEN)),
    "head": (("head/.*", TRAINABLE), (".*", FROZEN)),
}
"""The short forms of `--tune`, as rules; "probe" fits the same leaves to their optimum (`tl.probe`)."""


def rules(tune: str) -> Rules:
    """The rules that a short form stands for; ValueError with the nearest names."""
    if tune not in TUNE:
        raise ValueError(f"unknown --tune {tune!r}; nearest: {nearest(tune, TUNE)}")
    return TUNE[tune]


def sgd(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Momentum 0.9, Nesterov. Reference: Sutskever et al. 2013, ICML, section 2."""
    return optax.sgd(schedule, momentum=0.9, nesterov=True)


def adamw(schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW with weight decay 1e-4 (chosen, not tuned). Reference: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2."""
    return optax.adamw(schedule, weight_decay=1e-4)


OPTIMIZERS: dict[str, Callable[[optax.Schedule], optax.GradientTransformation]] = {"adamw": adamw, "sgd": sgd}


def warmup_cosine(lr: float, steps: int) -> optax.Schedule:
    """Up to `lr` over the first tenth of the steps, then down to 0 along a cosine. Reference: arXiv:1608.03983, section 3."""
    return optax.warmup_cosine_decay_schedule(0.0, lr, warmup_steps=max(steps // 10, 1), decay_steps=max(steps, 2))


def update(optimizer: optax.GradientTransformation, gradient: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
    """`optimizer.update`, also where the user's JAX is strict: optax multiplies floats by its int32 count of steps."""
    with jax.numpy_dtype_promotion("standard"):
        return optimizer.update(gradient, opt_state, params)


def partitioned(
    params: Mapping[str, Any], tune_rules: Rules, groups: Mapping[Any, optax.GradientTransformation]
) -> optax.GradientTransformation:
    """One optimizer for the trainable half of `params`: each leaf is moved by its label's group.

    Args:
      params: the whole tree, frozen leaves included.
      tune_rules: `((regex, label), ...)`; "frozen" needs no group.
      groups: label -> optimizer.

    Returns:
      An optimizer for the kept half of `paths.split(params, labels, ...)`, with state for its leaves only.

    Raises:
      ValueError: rules that do not fit (`paths.label`), or a label without a group.
    """
    labels = label(params, tune_rules)
    unknown = sorted({what for what in labels.values() if what != FROZEN and what not in groups})
    if unknown:
        raise ValueError(f"rules use the labels {unknown} and there are groups for {sorted(groups)} only")
    if set(labels.values()) <= {FROZEN, TRAINABLE}:
        return groups[TRAINABLE]
    return optax.partition(groups, unflatten({name: what if what != FROZEN else None for name, what in labels.items()}))


def table(params: Mapping[str, Any], tune_rules: Rules) -> list[dict[str, Any]]:
    """What a set of rules trains: per label the leaves, parameters and bytes."""
    labels, leaves = label(params, tune_rules), flatten(params)
    rows = []
    for what in sorted(set(labels.values())):
        chosen = [leaf for name, leaf in leaves.items() if labels[name] == what]
        count = sum(leaf.size for leaf in chosen)
        rows.append(
            {"group": what, "leaves": len(chosen), "params": count, "bytes": sum(leaf.nbytes for leaf in chosen)}
        )
    return rows
