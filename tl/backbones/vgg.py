"""VGG: 3x3 convolutions with bias and ReLU, a 2x2 max-pool after every stage."""

from __future__ import annotations

from functools import partial

import jax
from flax import linen as nn

from tl import ops
from tl.backbones.layers import Stage, he_normal
from tl.backbones.spec import BackboneSpec
from tl.types import Mode


class Conv(nn.Module):
    """3x3 convolution with bias, ReLU: params `kernel` (HWIO), `bias`."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        del mode  # nothing here depends on the batch
        kernel = self.param("kernel", he_normal, (3, 3, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        return jax.nn.relu(ops.conv2d(x, kernel, padding=((1, 1), (1, 1))) + bias[None, None, None])


class VGG(nn.Module):
    """Stages of 3x3 convolutions: endpoints `stageN/convM` (after ReLU) and `stageN` (after the pool)."""

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)

    @nn.compact
    def __call__(self, inputs: jax.Array, mode: Mode) -> tuple[jax.Array, dict[str, jax.Array]]:
        x, ends = inputs, {}
        for s, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), start=1):
            x, stage_ends = Stage([partial(Conv, width)] * depth, prefix="conv", name=f"stage{s}")(x, mode)
            ends |= stage_ends
            x = ends[f"stage{s}"] = ops.max_pool(x, window=2, stride=2)
        return ops.global_mean(x), ends


VARIANTS = (
    BackboneSpec(
        name="vgg16",
        module=VGG((2, 2, 3, 3, 3)),  # Simonyan & Zisserman 2015, arXiv:1409.1556, table 1, column D
        features=512,
        endpoints=("stage1", "stage2", "stage3", "stage4", "stage5"),
        head="vgg",
        reference="Simonyan & Zisserman 2015, VGG, arXiv:1409.1556",
        aliases=("vgg_16",),
    ),
)
