"""One forward pass of a backbone, from the pixels or an endpoint, with a mode per BatchNorm.

The mode of a layer and the mask of padded slots reach a BatchNorm here, so that blocks pass on `x`
and `mode` only.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
from flax import linen as nn

from tl.backbones.layers import ConvNorm, Norm
from tl.types import Mode, Params, Variables


def run(
    module: nn.Module,
    variables: Variables,
    x: jax.Array,
    mode: Mode,
    *,
    start: str = "",
    train_norms: Collection[str] | None = None,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array], Params | None]:
    """Runs a backbone.

    Args:
      module: Linen module of the zoo.
      variables: `{"params": ..., "batch_stats": ...}` of the backbone.
      x: the network's inputs [b h w c], or the endpoint `start`.
      mode: mode of the BatchNorms.
      start: name of a stage; this stage and those before it are skipped. "" runs all.
      train_norms: paths of the layers (`stage4/block0/conv1`) whose BatchNorm follows `mode`; the
        others are in `Mode.EVAL`. Default: all follow `mode`.
      valid: bool[b]; False for padded slots, which do not count in batch statistics. Default: no
        slot is padded.

    Returns:
      `(features, endpoints, statistics)`; the new statistics are None in `Mode.EVAL` and without
      BatchNorm.
    """

    def call_norm(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        if not isinstance(layer, ConvNorm | Norm) or context.method_name != "__call__":
            return call(*args, **kwargs)
        trains = train_norms is None or "/".join(layer.path) in train_norms
        return call(args[0], mode if trains else Mode.EVAL, valid)

    from_stage = (start,) if start else ()
    if mode is Mode.EVAL:
        out: Any = module.apply(variables, x, mode, *from_stage)
        return *out, None
    with nn.intercept_methods(call_norm):
        out = module.apply(variables, x, mode, *from_stage, mutable=["batch_stats"])
    (features, ends), updates = out
    return features, ends, updates.get("batch_stats")
