"""What the zoo knows of an architecture: data, no logic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from flax import linen as nn

Module = nn.Module
"""A Linen module, for annotations where flax itself is not imported."""


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
    """One architecture.

    Attributes:
      name: timm's name; forms that only Keras has end in `_keras`.
      module: Linen module, `(inputs [b h w c], mode) -> (features f32[b d], endpoints)`.
      features: d, the width of the pooled features.
      endpoints: names of the stages, in the order of the forward pass.
      sources: whose files hold this very network: name of the rename table (`tl.weights.tables`) -> the call that makes the
        network there (`"MobileNetV2(alpha=0.35)"`), or "" where the source is a file and no library.
      reference: the paper.
      head: `classes -> Linen module`, the paper's own classifier; None where that is one linear layer on the features.
      min_size: smallest side of an input, in pixels.
      aliases: torchvision's and everyday names.
      base: the network of which this is one form; forms differ in padding, eps or the place of the stride, and share a base.
    """

    name: str
    module: nn.Module
    features: int
    endpoints: tuple[str, ...]
    sources: Mapping[str, str]
    reference: str
    head: Callable[[int], nn.Module] | None = None
    min_size: int = 32
    aliases: tuple[str, ...] = ()
    base: str = ""
