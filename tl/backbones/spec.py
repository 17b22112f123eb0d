"""`BackboneSpec`, the row of an architecture in the zoo: data, no logic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from flax import linen as nn

Module = nn.Module
"""A Linen module, for annotations where flax itself is not imported."""


# Compared by identity (`eq=False`), so that a row of the zoo can be the key of a cache.
@dataclasses.dataclass(frozen=True, eq=False)
class BackboneSpec:
    """One architecture.

    Attributes:
      name: timm's name; forms that only Keras has end in `_keras`.
      module: Linen module, `(inputs [b h w c], mode) -> (features f32[b d], endpoints)`.
      features: d, the width of the pooled features.
      endpoints: names of the stages, in the order of the forward pass.
      sources: name of a rename table (`tl.weights.tables`), one per library with weights for this
        network -> the call that builds the network there (`"MobileNetV2(alpha=0.35)"`), or "" if
        the source is a file instead of a library.
      reference: the paper.
      head: `classes -> Linen module`, the classifier of the paper; None if that is one linear layer
        on the features.
      min_size: smallest side of an input, in pixels.
      aliases: torchvision's name and other common names.
      base: the network of which this is one form. Forms of a network differ in padding, eps or the
        position of the stride.
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
