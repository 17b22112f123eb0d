"""SqueezeNet 1.1: fire modules, no padding in stem and pools, a convolution as the classifier."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from tl import ops
from tl.backbones.gradients import relu
from tl.backbones.layers import Conv, Dense, Stage, chain, pooled
from tl.backbones.spec import BackboneSpec
from tl.types import Mode

# (squeeze, expand) channels: Iandola et al. 2016, arXiv:1602.07360, table 1, with the changes of
# version 1.1 (github.com/forresti/SqueezeNet).
FIRES = (((16, 64), (16, 64)), ((32, 128), (32, 128)), ((48, 192), (48, 192), (64, 256), (64, 256)))


class Fire(nn.Module):
    """A 1x1 convolution, then a 1x1 and a 3x3 convolution in parallel.

    Reference: Iandola et al. 2016, arXiv:1602.07360, figure 1.
    """

    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        x = Conv(self.squeeze, 1, activation=relu, name="squeeze")(x, mode)
        sides = [
            Conv(self.expand, k, activation=relu, name=f"expand{k}x{k}")(x, mode) for k in (1, 3)
        ]
        return jnp.concatenate(sides, axis=3)


class SqueezeNet(nn.Module):
    """Stem 3x3/2, then three stages of a max-pool and fire modules.

    Endpoints: `stem`, `stageN`, `stageN/blockM`.
    """

    stages: tuple[tuple[tuple[int, int], ...], ...]

    @nn.compact
    def __call__(
        self, inputs: jax.Array, mode: Mode, start: str = ""
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        def stem(x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return Conv(64, 3, 2, padding="valid", activation=relu, name="stem")(x, mode), {}

        def stage(s: int, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            # The last window may extend past the border, as with `ceil_mode` in torch.
            over = [(0, (side - 3) % 2) for side in x.shape[1:3]]
            x = ops.max_pool(x, window=3, stride=2, padding=(over[0], over[1]))
            return Stage([partial(Fire, *fire) for fire in self.stages[s - 1]], name=f"stage{s}")(
                x, mode
            )

        stages = {f"stage{s}": partial(stage, s) for s in range(1, len(self.stages) + 1)}
        return chain({"stem": stem, **stages}, inputs, start)


class SqueezeNetTop(nn.Module):
    """SqueezeNet's classifier: a 1x1 convolution and ReLU, then the mean.

    Dropout is omitted, as at test time.
    """

    classes: int

    @nn.compact
    def __call__(self, features: jax.Array, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        del features
        return pooled(relu(Dense(self.classes, name="conv")(endpoints["stage3"])))


VARIANTS = (
    BackboneSpec(
        name="squeezenet1_1",
        module=SqueezeNet(FIRES),
        features=512,
        endpoints=("stem", "stage1", "stage2", "stage3"),
        sources={"torchvision": "squeezenet1_1", "ndf": ""},
        head=SqueezeNetTop,
        reference="Iandola et al. 2016, SqueezeNet, arXiv:1602.07360",
        aliases=("squeezenet",),
    ),
)
