"""One forward pass of a backbone: from the pixels or from the map of an endpoint, each BatchNorm in a mode of its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
from flax import linen as nn

from tl.backbones.layers import ConvNorm, Norm
from tl.types import Mode, Params


def run(
    module: nn.Module,
    variables: Any,
    x: jax.Array,
    mode: Mode,
    *,
    start: str = "",
    train_norms: Collection[str] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array], Params | None]:
    """`(features, endpoints, moved statistics)` of a backbone; no statistics where none can move.

    Args:
      module: of the zoo.
      variables: `{"params": ..., "batch_stats": ...}` of the backbone alone.
      x: the network's inputs [b h w c], or the map of the endpoint `start`.
      mode: of the BatchNorms.
      start: a stage's endpoint; it and what comes before it are left out.
      train_norms: paths of the layers (`stage4/block0/conv1`) whose BatchNorm follows `mode`, the others being in `Mode.EVAL`;
        default: all.
    """

    def as_allowed(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        if (
            isinstance(layer, ConvNorm | Norm)
            and context.method_name == "__call__"
            and train_norms is not None
        ):
            if "/".join(layer.path) not in train_norms:
                return call(args[0], Mode.EVAL)
        return call(*args, **kwargs)

    where = (start,) if start else ()
    if mode is Mode.EVAL:
        out: Any = module.apply(variables, x, mode, *where)
        return *out, None
    with nn.intercept_methods(as_allowed):
        out = module.apply(variables, x, mode, *where, mutable=["batch_stats"])
    (features, ends), moved = out
    return features, ends, moved.get("batch_stats")
