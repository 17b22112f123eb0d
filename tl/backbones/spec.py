"""What the zoo knows of an architecture: data, no logic."""

from __future__ import annotations

import dataclasses
from typing import Literal

from flax import linen as nn

Module = nn.Module
"""A Linen module, for annotations where flax itself is not imported."""


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
    """One architecture.

    Attributes:
      name: timm's name.
      module: Linen module, `(inputs f32[b h w 3], mode) -> (features f32[b d], endpoints)`.
      features: d, the width of the pooled features.
      endpoints: names of the stages, in the order of the forward pass.
      head: "linear" on the pooled features, or "vgg", three dense layers on the last 7x7 map.
      min_size: smallest side of an input, in pixels.
      reference: the paper.
      aliases: torchvision's and everyday names.
    """

    name: str
    module: nn.Module
    features: int
    endpoints: tuple[str, ...]
    reference: str
    head: Literal["linear", "vgg"] = "linear"
    min_size: int = 32
    aliases: tuple[str, ...] = ()
