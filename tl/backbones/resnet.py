"""ResNet, wide ResNet and ResNeXt, and Keras' ResNet and ResNetV2.

In torchvision and timm, the 3x3 convolution of a bottleneck has the stride ("v1.5"). In Keras'
ResNet, the first 1x1 convolution has it, and convolutions have a bias. In Keras' ResNetV2, which
has BatchNorm before the convolutions, the last block of a stage has the stride.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from tl import ops
from tl.backbones.gradients import relu
from tl.backbones.layers import Conv, ConvNorm, Norm, NormSpec, Stage, chain
from tl.backbones.spec import BackboneSpec
from tl.types import Mode

# keras.applications.resnet; the momentum is Keras' default.
KERAS = NormSpec(eps=1.001e-5, momentum=0.01, unbiased=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Reference: He et al. 2016, arXiv:1512.03385, figure 5 left.
    """

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
    """Convolutions 1x1, 3x3 and 1x1, the last four times as wide, and a shortcut.

    Attributes:
      width: channels of the stage; 64 in the first one.
      stride: stride of the block.
      inner: channels per group of the 3x3 convolution if `width` is 64: 64 in ResNet, 128 in wide
        ResNet (Zagoruyko & Komodakis 2016, arXiv:1605.07146), 4 or 8 in ResNeXt.
      groups: groups of the 3x3 convolution (Xie et al. 2017, arXiv:1611.05431, table 1).
      stride_in: the convolution that has the stride.
      norm: constants of BatchNorm.
      bias: whether convolutions have a bias.

    Reference: He et al. 2016, arXiv:1512.03385, figure 5 right.
    """

    width: int
    stride: int = 1
    inner: int = 64
    groups: int = 1
    stride_in: Literal["3x3", "1x1"] = "3x3"
    norm: NormSpec = NormSpec()
    bias: bool = False
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        wide, inner = self.width * self.expansion, self.width * self.inner * self.groups // 64
        conv = partial(ConvNorm, norm=self.norm, bias=self.bias)
        first, second = (1, self.stride) if self.stride_in == "3x3" else (self.stride, 1)
        y = conv(inner, 1, first, activation=relu, name="conv1")(x, mode)
        y = conv(inner, 3, second, self.groups, activation=relu, name="conv2")(y, mode)
        y = conv(wide, 1, name="conv3")(y, mode)
        if x.shape != y.shape:
            x = conv(wide, 1, self.stride, name="shortcut")(x, mode)
        return relu(x + y)


class ResNet(nn.Module):
    """Stem 7x7/2, max-pool, four stages.

    Endpoints: `stem` (before the pool), `stageN`, `stageN/blockM`.
    """

    depths: tuple[int, ...]
    block: Callable[..., nn.Module]
    norm: NormSpec = NormSpec()
    bias: bool = False

    @nn.compact
    def __call__(
        self, inputs: jax.Array, mode: Mode, start: str = ""
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        def stem(x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return ConvNorm(64, 7, 2, norm=self.norm, bias=self.bias, activation=relu, name="stem")(
                x, mode
            ), {}

        def stage(s: int, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            if s == 1:
                x = ops.max_pool(x, window=3, stride=2, padding=((1, 1), (1, 1)))
            width, stride = 64 * 2 ** (s - 1), 1 if s == 1 else 2
            blocks = [
                partial(self.block, width, stride if b == 0 else 1)
                for b in range(self.depths[s - 1])
            ]
            return Stage(blocks, name=f"stage{s}")(x, mode)

        stages = {f"stage{s}": partial(stage, s) for s in range(1, len(self.depths) + 1)}
        return chain({"stem": stem, **stages}, inputs, start)


class PreactBottleneck(nn.Module):
    """Keras' block: BatchNorm and ReLU, convolutions 1x1, 3x3 (strided), 1x1, a sum without ReLU.

    Reference: He et al. 2016, Identity Mappings, arXiv:1603.05027, figure 1b;
    `keras.applications.resnet_v2`.
    """

    width: int
    stride: int = 1
    project: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        before = relu(Norm(x.shape[-1], KERAS, name="preact")(x, mode)).astype(x.dtype)
        if self.project:
            x = Conv(4 * self.width, 1, name="shortcut")(before, mode)
        else:
            x = x[:, :: self.stride, :: self.stride]  # a max-pool of one pixel in Keras
        y = ConvNorm(self.width, 1, norm=KERAS, activation=relu, name="conv1")(before, mode)
        y = ConvNorm(self.width, 3, self.stride, norm=KERAS, activation=relu, name="conv2")(y, mode)
        return x + Conv(4 * self.width, 1, name="conv3")(y, mode)


class ResNetV2(nn.Module):
    """Keras' pre-activation ResNet.

    Endpoints: `stem` (without ReLU), `stageN`, `stageN/blockM`, `top` (after the last BatchNorm).
    """

    depths: tuple[int, ...]

    @nn.compact
    def __call__(
        self, inputs: jax.Array, mode: Mode, start: str = ""
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        def stem(x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return Conv(64, 7, 2, name="stem")(x, mode), {}

        def stage(s: int, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            if s == 1:
                # Keras pads with zeros instead of minus infinity.
                x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
                x = ops.max_pool(x, window=3, stride=2)
            strides = (*(1,) * (self.depths[s - 1] - 1), 1 if s == len(self.depths) else 2)
            blocks = [
                partial(PreactBottleneck, 64 * 2 ** (s - 1), st, b == 0)
                for b, st in enumerate(strides)
            ]
            return Stage(blocks, name=f"stage{s}")(x, mode)

        def top(x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return relu(Norm(x.shape[-1], KERAS, name="top")(x, mode)).astype(x.dtype), {}

        stages = {f"stage{s}": partial(stage, s) for s in range(1, len(self.depths) + 1)}
        return chain({"stem": stem, **stages, "top": top}, inputs, start)


STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")
# Blocks per stage: He et al. 2016, arXiv:1512.03385, table 1.
DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def _variant(name: str, layers: int, reference: str = "", **bottleneck: int) -> BackboneSpec:
    block = (
        BasicBlock
        if layers < 50
        else partial(Bottleneck, **bottleneck)
        if bottleneck
        else Bottleneck
    )
    return BackboneSpec(
        name=name,
        module=ResNet(DEPTHS[layers], block),
        features=512 if layers < 50 else 2048,
        endpoints=STAGES,
        sources={"torchvision": name, "timm": name},
        reference="He et al. 2016, Deep Residual Learning, arXiv:1512.03385, table 1" + reference,
    )


def _keras(layers: int) -> BackboneSpec:
    block = partial(Bottleneck, stride_in="1x1", norm=KERAS, bias=True)
    return BackboneSpec(
        name=f"resnet{layers}_keras",
        module=ResNet(DEPTHS[layers], block, norm=KERAS, bias=True),
        features=2048,
        endpoints=STAGES,
        sources={"keras": f"ResNet{layers}"},
        reference="He et al. 2016, Deep Residual Learning, arXiv:1512.03385, table 1",
        base=f"resnet{layers}",
    )


def _keras_v2(layers: int) -> BackboneSpec:
    return BackboneSpec(
        name=f"resnetv2_{layers}_keras",
        module=ResNetV2(DEPTHS[layers]),
        features=2048,
        endpoints=(*STAGES, "top"),
        sources={"keras": f"ResNet{layers}V2"},
        reference="He et al. 2016, Identity Mappings, arXiv:1603.05027",
        aliases=(f"resnet{layers}v2_keras",),
    )


_WIDE = "; wide: Zagoruyko & Komodakis 2016, arXiv:1605.07146"
_NEXT = "; ResNeXt: Xie et al. 2017, arXiv:1611.05431"
VARIANTS = (
    *(_variant(f"resnet{layers}", layers) for layers in DEPTHS),
    _variant("wide_resnet50_2", 50, _WIDE, inner=128),
    _variant("wide_resnet101_2", 101, _WIDE, inner=128),
    _variant("resnext50_32x4d", 50, _NEXT, inner=4, groups=32),
    _variant("resnext101_32x8d", 101, _NEXT, inner=8, groups=32),
    *(_keras(layers) for layers in (50, 101, 152)),
    *(_keras_v2(layers) for layers in (50, 101, 152)),
)
