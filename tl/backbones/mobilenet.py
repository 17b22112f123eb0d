"""MobileNetV2, and the chain of inverted residuals that EfficientNet-Lite shares with it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
from flax import linen as nn

from tl import ops
from tl.backbones.layers import ConvNorm, InvertedResidual, Padding, Stage, relu6
from tl.backbones.spec import BackboneSpec
from tl.types import Mode


class Row(NamedTuple):
    """One row of the papers' tables: `depth` blocks, of which the first has the stride."""

    expand: int
    channels: int
    depth: int
    stride: int
    window: int = 3


class InvertedResidualNet(nn.Module):
    """Stem 3x3/2, stages of inverted residuals, a last 1x1: endpoints `stem`, `stageN`, `stageN/blockM`, `top`."""

    stages: tuple[Row, ...]
    stem: int = 32
    top: int = 1280
    eps: float = 1e-5
    padding: Padding = "torch"

    @nn.compact
    def __call__(self, inputs: jax.Array, mode: Mode) -> tuple[jax.Array, dict[str, jax.Array]]:
        common = {"eps": self.eps, "padding": self.padding}
        x = ConvNorm(self.stem, 3, 2, activation=relu6, name="stem", **common)(inputs, mode)
        ends = {"stem": x}
        for s, row in enumerate(self.stages, start=1):
            strides = (row.stride, *(1,) * (row.depth - 1))
            blocks = [partial(InvertedResidual, row.channels, row.expand, row.window, st, **common) for st in strides]
            x, stage_ends = Stage(blocks, name=f"stage{s}")(x, mode)
            ends |= stage_ends
        x = ends["top"] = ConvNorm(self.top, 1, activation=relu6, name="top", **common)(x, mode)
        return ops.global_mean(x), ends


# Sandler et al. 2018, arXiv:1801.04381, table 2: t, c, n, s
MOBILENETV2 = tuple(
    Row(*row)
    for row in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
)
STAGES = ("stem", *(f"stage{s}" for s in range(1, 8)), "top")

VARIANTS = (
    BackboneSpec(
        name="mobilenetv2_100",
        module=InvertedResidualNet(MOBILENETV2),
        features=1280,
        endpoints=STAGES,
        reference="Sandler et al. 2018, MobileNetV2, arXiv:1801.04381",
        aliases=("mobilenet_v2", "mobilenetv2"),
    ),
)
