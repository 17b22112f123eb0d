"""Updates of low rank (LoRA): the kernels stay frozen, and a product of two thin matrices is added.

The two factors of an update are parameters like all others, in the subtree "lora", so rules,
optimizer, checkpoints and running averages treat them as such. `merge` adds the products to the
kernels, for the forward pass of a step and at the end of a phase: a saved network has no factors.
Only kernels that are matrices take part, those of 1x1 convolutions and dense layers; in a VGG there
are none.

Reference:
  Hu et al. 2021, arXiv:2106.09685, section 4.1. The factor alpha / R of the paper is 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tl.paths import flatten, unflatten

LORA = "lora"


def is_matrix(name: str, kernel: Any) -> bool:
    """Whether a leaf is the kernel of a 1x1 convolution [1 1 i o] or a dense layer [i o]."""
    return name.endswith("/kernel") and (kernel.ndim == 2 or kernel.shape[:-2] == (1, 1))


def extend(params: Mapping[str, Any], rank: int, seed: int = 0) -> dict[str, Any]:
    """The parameters with an update for each kernel of the backbone of a larger rank.

    Args:
      params: the subtrees "backbone" and "head".
      rank: rank of the updates; 0 adds none.
      seed: of the factors `down`; the factors `up` are 0, so that the network is unchanged.

    Returns:
      `params`, with `lora/NAME/down` f32[i r] and `lora/NAME/up` f32[r o] for the kernel NAME.

    Raises:
      ValueError: no kernel is a matrix of more than `rank` rows and columns.
    """
    if not rank:
        return dict(params)
    rng, updates = np.random.default_rng(seed), {}
    for name, kernel in flatten({"backbone": params["backbone"]}).items():
        if is_matrix(name, kernel) and rank < min(kernel.shape[-2:]):
            i, o = kernel.shape[-2:]
            down = rng.standard_normal((i, rank)) / math.sqrt(i)
            updates[f"{name}/down"] = down.astype(np.float32)
            updates[f"{name}/up"] = np.zeros((rank, o), np.float32)
    if not updates:
        raise ValueError(
            f"`tune=lora:{rank}` needs kernels of 1x1 convolutions or dense layers with more than "
            f"{rank} inputs and outputs: the backbone has none; use a smaller rank, or "
            "`tune=bias_only`"
        )
    return {**params, LORA: unflatten(updates)}


def merge(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of an equal network without updates: their products are added to the kernels.

    Kernels without an update, and all other leaves, are the same arrays. Parameters on the host,
    numpy arrays, stay there.
    """
    if LORA not in params:
        return params
    numpy = all(isinstance(leaf, np.ndarray) for leaf in flatten(params).values())
    leaves = flatten({name: tree for name, tree in params.items() if name != LORA})
    factors = flatten(params[LORA])
    for name in dict.fromkeys(changed(f"{LORA}/{factor}") for factor in factors):
        down, up = factors[f"{name}/down"], factors[f"{name}/up"]
        # A GPU or TPU would round the factors otherwise.
        product = down @ up if numpy else jnp.matmul(down, up, precision="highest")
        leaves[name] = leaves[name] + product.reshape(leaves[name].shape)
    return unflatten(leaves)


def changed(name: str) -> str:
    """The parameter that training a leaf changes: the kernel of a factor, otherwise the leaf.

    Example:
      >>> changed("lora/backbone/top/kernel/up"), changed("head/bias")
      ('backbone/top/kernel', 'head/bias')
    """
    return name.removeprefix(f"{LORA}/").rpartition("/")[0] if name.startswith(LORA) else name
