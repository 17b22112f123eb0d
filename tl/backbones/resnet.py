"""ResNet with basic and bottleneck blocks; the stride sits in the 3x3 ("v1.5"), as in torchvision and timm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
from flax import linen as nn

from tl import ops
from tl.backbones.layers import ConvNorm, Stage
from tl.backbones.spec import BackboneSpec
from tl.types import Mode

relu = jax.nn.relu


class BasicBlock(nn.Module):
    """Two 3x3 and a shortcut. Reference: He et al. 2016, arXiv:1512.03385, figure 5 left."""

    width: int
    stride: int = 1
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        y = ConvNorm(self.width, 3, self.stride, activation=relu, name="conv1")(x, mode)
        y = ConvNorm(self.width, 3, name="conv2")(y, mode)
        if x.shape != y.shape:
            x = ConvNorm(self.width, 1, self.stride, name="shortcut")(x, mode)
        return relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 four times as wide. Reference: He et al. 2016, arXiv:1512.03385, figure 5 right."""

    width: int
    stride: int = 1
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        wide = self.width * self.expansion
        y = ConvNorm(self.width, 1, activation=relu, name="conv1")(x, mode)
        y = ConvNorm(self.width, 3, self.stride, activation=relu, name="conv2")(y, mode)
        y = ConvNorm(wide, 1, name="conv3")(y, mode)
        if x.shape != y.shape:
            x = ConvNorm(wide, 1, self.stride, name="shortcut")(x, mode)
        return relu(x + y)


class ResNet(nn.Module):
    """Stem 7x7/2, max-pool, four stages: endpoints `stem` (before the pool), `stageN`, `stageN/blockM`."""

    depths: tuple[int, ...]
    block: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, inputs: jax.Array, mode: Mode) -> tuple[jax.Array, dict[str, jax.Array]]:
        x = ConvNorm(64, 7, 2, activation=relu, name="stem")(inputs, mode)
        ends = {"stem": x}
        x = ops.max_pool(x, window=3, stride=2, padding=((1, 1), (1, 1)))
        for s, depth in enumerate(self.depths, start=1):
            width, stride = 64 * 2 ** (s - 1), 1 if s == 1 else 2
            blocks = [partial(self.block, width, stride if b == 0 else 1) for b in range(depth)]
            x, stage_ends = Stage(blocks, name=f"stage{s}")(x, mode)
            ends |= stage_ends
        return ops.global_mean(x), ends


def _variant(name: str, block: type[BasicBlock] | type[Bottleneck], *depths: int) -> BackboneSpec:
    return BackboneSpec(
        name=name,
        module=ResNet(depths, block),
        features=512 * block.expansion,
        endpoints=("stem", "stage1", "stage2", "stage3", "stage4"),
        reference="He et al. 2016, Deep Residual Learning, arXiv:1512.03385, table 1",
    )


VARIANTS = (
    _variant("resnet18", BasicBlock, 2, 2, 2, 2),
    _variant("resnet50", Bottleneck, 3, 4, 6, 3),
)
