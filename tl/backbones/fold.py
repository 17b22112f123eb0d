"""Folds BatchNorm into kernels, which gives equivalent parameters without statistics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tl.backbones.layers import Norm, NormSpec
from tl.paths import flatten, unflatten
from tl.types import Mode, Params

# Side of the traced input in pixels; the shapes of parameters do not depend on it.
SIDE = 64


def norms(
    module: nn.Module, params: Params, stats: Params, channels: int = 3
) -> dict[str, NormSpec]:
    """The constants of every BatchNorm of a network, by its path.

    One forward pass is traced; nothing is computed.
    """
    specs: dict[str, NormSpec] = {}

    def collect(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, Norm) and context.method_name == "affine":
            specs["/".join(context.module.path)] = context.module.spec
        return call(*args, **kwargs)

    inputs = jax.ShapeDtypeStruct((1, SIDE, SIDE, channels), jnp.float32)
    with nn.intercept_methods(collect):
        jax.eval_shape(
            lambda p, s, x: module.apply({"params": p, "batch_stats": s}, x, Mode.EVAL),
            params,
            stats,
            inputs,
        )
    return specs


def fold(module: nn.Module, params: Params, stats: Params, channels: int = 3) -> dict[str, Any]:
    """Parameters of a backbone with every BatchNorm merged into the kernel before it.

    A BatchNorm without a convolution before it becomes an affine map. NumPy arrays are folded on
    the host, device arrays on their device.

    Args:
      module: Linen module of the zoo.
      params: the subtree `params/backbone`.
      stats: the subtree `batch_stats/backbone`.
      channels: number of input channels.

    Returns:
      Nested parameters, without statistics: y = gain (W x + b - mean) + bias with gain = scale /
      sqrt(var + eps).

    Reference: Jacob et al. 2018, arXiv:1712.05877, section 3.2, equation 14.
    """
    leaves, moments = flatten(params), flatten(stats)
    for path, spec in norms(module, params, stats, channels).items():
        if f"{path}/mean" not in moments:
            continue  # already folded
        gain = leaves[f"{path}/scale"] / (moments[f"{path}/var"] + spec.eps) ** 0.5
        offset = leaves[f"{path}/bias"] - moments[f"{path}/mean"] * gain
        layer, _, last = path.rpartition("/")
        if last != "norm":
            leaves |= {f"{path}/scale": gain, f"{path}/bias": offset}
            continue
        del leaves[f"{path}/scale"], leaves[f"{path}/bias"]
        bias = leaves.get(f"{layer}/bias")
        leaves[f"{layer}/kernel"] = leaves[f"{layer}/kernel"] * gain[None, None, None]
        leaves[f"{layer}/bias"] = offset if bias is None else offset + gain * bias
    return unflatten(leaves)
