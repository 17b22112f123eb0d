"""One forward pass of a backbone, from the pixels or an endpoint, with a mode per BatchNorm."""

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

    Returns:
      `(features, endpoints, statistics)`; the new statistics are None in `Mode.EVAL` and without
      BatchNorm.
    """

    def choose_mode(
        call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        layer = context.module
        if (
            train_norms is not None
            and isinstance(layer, ConvNorm | Norm)
            and context.method_name == "__call__"
            and "/".join(layer.path) not in train_norms
        ):
            return call(args[0], Mode.EVAL)
        return call(*args, **kwargs)

    from_stage = (start,) if start else ()
    if mode is Mode.EVAL:
        out: Any = module.apply(variables, x, mode, *from_stage)
        return *out, None
    with nn.intercept_methods(choose_mode):
        out = module.apply(variables, x, mode, *from_stage, mutable=["batch_stats"])
    (features, ends), updates = out
    return features, ends, updates.get("batch_stats")
