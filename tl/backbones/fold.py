"""BatchNorm folded away for good: an equivalent tree of parameters without statistics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from tl.backbones.layers import Norm, NormSpec
from tl.paths import flatten, unflatten
from tl.types import Mode, Params

SIDE = 64  # of the picture on which the network is traced; shapes of parameters do not depend on it


def norms(
    module: nn.Module, params: Params, stats: Params, channels: int = 3
) -> dict[str, NormSpec]:
    """Path of every BatchNorm in a network -> its numbers, by tracing one forward pass (nothing is computed)."""
    found: dict[str, NormSpec] = {}

    def note(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, Norm) and context.method_name == "affine":
            found["/".join(context.module.path)] = context.module.spec
        return call(*args, **kwargs)

    inputs = jax.ShapeDtypeStruct((1, SIDE, SIDE, channels), jnp.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda p, s, x: module.apply({"params": p, "batch_stats": s}, x, Mode.EVAL),
            params,
            stats,
            inputs,
        )
    return found


def fold(module: nn.Module, params: Params, stats: Params, channels: int = 3) -> dict[str, Any]:
    """A backbone's parameters with every BatchNorm in the kernel before it, or left as an affine map where there is none.

    On the host for numpy arrays, on the device for its arrays.

    Reference: y = gain (W x + b - mean) + bias with gain = scale / sqrt(var + eps); Jacob et al. 2018, arXiv:1712.05877,
    section 3.2, equation 14.
    """
    leaves, moments = flatten(params), flatten(stats)
    for path, spec in norms(module, params, stats, channels).items():
        if f"{path}/mean" not in moments:
            continue  # folded already
        gain = leaves[f"{path}/scale"] / (moments[f"{path}/var"] + spec.eps) ** 0.5
        offset = leaves[f"{path}/bias"] - moments[f"{path}/mean"] * gain
        at, _, last = path.rpartition("/")
        if last != "norm":
            leaves |= {f"{path}/scale": gain, f"{path}/bias": offset}
            continue
        del leaves[f"{path}/scale"], leaves[f"{path}/bias"]
        bias = leaves.get(f"{at}/bias")
        leaves[f"{at}/kernel"] = leaves[f"{at}/kernel"] * gain[None, None, None]
        leaves[f"{at}/bias"] = offset if bias is None else offset + gain * bias
    return unflatten(leaves)
