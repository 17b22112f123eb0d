"""MobileNet V1, V2 and V3: a chain of depthwise blocks, also used by EfficientNet-Lite.

Each has up to three forms: torch's padding and eps (timm, torchvision), TensorFlow's (timm's `tf_`
and Keras), and one that only Keras has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from tl.backbones.gradients import relu, relu6
from tl.backbones.layers import (
    Activation,
    ConvNorm,
    Dense,
    NormSpec,
    Padding,
    Stage,
    chain,
    divisible,
    hard_sigmoid,
    hard_swish,
    pooled,
)
from tl.backbones.spec import BackboneSpec
from tl.types import Mode

# timm's `tf_` networks: TensorFlow's eps, torch's momentum.
TF = NormSpec(eps=1e-3)
# keras.applications.mobilenet_v2 and mobilenet_v3: momentum 0.999 in Keras' convention.
KERAS = NormSpec(eps=1e-3, momentum=0.001, unbiased=False)
# keras.applications.mobilenet: Keras' defaults.
KERAS_V1 = NormSpec(eps=1e-3, momentum=0.01, unbiased=False)
# torchvision.models.mobilenetv3.
TORCHVISION_V3 = NormSpec(eps=1e-3, momentum=0.01)


class Row(NamedTuple):
    """One row of a paper's table: `depth` blocks, the first of which has the stride.

    Attributes:
      expand: ratio of hidden channels to input channels; 1 omits the expansion convolution.
      channels: output channels.
      depth: number of blocks.
      stride: stride of the first block.
      window: side of the depthwise kernel.
      squeeze: whether squeeze-and-excitation follows the depthwise convolution.
      activation: activation after the expansion and the depthwise convolution.
    """

    expand: float
    channels: int
    depth: int
    stride: int
    window: int = 3
    squeeze: bool = False
    activation: Activation = relu6


class SqueezeExcite(nn.Module):
    """Channel weights from channel means: dense to a quarter, ReLU, dense, hard sigmoid.

    Reference: Hu et al. 2018, arXiv:1709.01507, figure 2; Howard et al. 2019, arXiv:1905.02244,
    section 5.3.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        weights = Dense(divisible(c / 4), name="reduce")(pooled(x))
        weights = hard_sigmoid(Dense(c, name="expand")(relu(weights)))
        return (x.astype(jnp.float32) * weights[:, None, None]).astype(x.dtype)


class InvertedResidual(nn.Module):
    """Expansion 1x1, depthwise k x k, projection 1x1, and a shortcut if the shapes agree.

    With `separable` it has no shortcut and an activation after the projection: the block of
    MobileNet V1.

    Reference: Sandler et al. 2018, arXiv:1801.04381, figure 4 and table 1; `separable`: Howard et
    al. 2017, arXiv:1704.04861, figure 3.
    """

    row: Row
    stride: int
    norm: NormSpec = NormSpec()
    padding: Padding = "torch"
    separable: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        row = self.row
        width = divisible(x.shape[-1] * row.expand) if row.expand != 1 else x.shape[-1]
        conv = partial(ConvNorm, norm=self.norm)
        y = x
        if row.expand != 1:
            y = conv(width, 1, activation=row.activation, name="expand_conv")(y, mode)
        depthwise = partial(
            conv, padding=self.padding, activation=row.activation, name="depthwise_conv"
        )
        y = depthwise(width, row.window, self.stride, width)(y, mode)
        if row.squeeze:
            y = SqueezeExcite(name="squeeze")(y)
        last = row.activation if self.separable else None
        y = conv(row.channels, 1, activation=last, name="project_conv")(y, mode)
        return (
            x + y if self.stride == 1 and x.shape[-1] == row.channels and not self.separable else y
        )


class InvertedResidualNet(nn.Module):
    """Stem 3x3/2, stages of blocks, and a last 1x1 convolution.

    Endpoints: `stem`, `stageN`, `stageN/blockM`, and `top` if there is a last convolution.

    Attributes:
      stages: rows of each stage.
      stem: channels of the first convolution.
      top: channels of the last convolution; 0 for none.
      norm: constants of BatchNorm.
      padding: padding of the depthwise convolutions; the stem has "torch" if this is "torch", else
        "same".
      activation: activation of the first and the last convolution.
      separable: whether blocks are those of MobileNet V1.
    """

    stages: tuple[tuple[Row, ...], ...]
    stem: int = 32
    top: int = 1280
    norm: NormSpec = NormSpec()
    padding: Padding = "torch"
    activation: Activation = relu6
    separable: bool = False

    @nn.compact
    def __call__(
        self, inputs: jax.Array, mode: Mode, start: str = ""
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        conv = partial(ConvNorm, norm=self.norm, activation=self.activation)
        stem_padding: Padding = "torch" if self.padding == "torch" else "same"

        def stem(x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return conv(self.stem, 3, 2, padding=stem_padding, name="stem")(x, mode), {}

        def stage(s: int, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            common = {"norm": self.norm, "padding": self.padding, "separable": self.separable}
            rows = unrolled(self.stages[s - 1])
            return Stage(
                [partial(InvertedResidual, *row, **common) for row in rows], name=f"stage{s}"
            )(x, mode)

        def top(x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            return conv(self.top, 1, name="top")(x, mode), {}

        stages = {f"stage{s}": partial(stage, s) for s in range(1, len(self.stages) + 1)}
        return chain({"stem": stem, **stages} | ({"top": top} if self.top else {}), inputs, start)


class MobileNetV3Top(nn.Module):
    """MobileNetV3's classifier: dense, hard swish, dense. Dropout is omitted, as at test time.

    Reference: Howard et al. 2019, arXiv:1905.02244, section 5.1, figure 5.
    """

    classes: int
    width: int = 1280
    activation: Activation = hard_swish

    @nn.compact
    def __call__(self, features: jax.Array, endpoints: Mapping[str, jax.Array]) -> jax.Array:
        del endpoints
        hidden = self.activation(Dense(self.width, name="hidden")(features))
        return Dense(self.classes, name="logits")(hidden)


def unrolled(stage: tuple[Row, ...]) -> list[tuple[Row, int]]:
    """`(row, stride)` of every block of a stage."""
    return [(row, row.stride if b == 0 else 1) for row in stage for b in range(row.depth)]


def scaled(
    stages: tuple[tuple[Row, ...], ...],
    width: float = 1.0,
    depth: float = 1.0,
    *,
    fix_ends: bool = False,
) -> tuple[tuple[Row, ...], ...]:
    """Scales a network: channels times `width`, depths times `depth`.

    Args:
      stages: rows of each stage.
      width: factor on channels, which are rounded to multiples of 8.
      depth: factor on depths, which are rounded up.
      fix_ends: whether the first and the last stage keep their depth, as in timm's
        EfficientNet-Lite and `mobilenetv2_110d`.
    """
    return tuple(
        tuple(
            row._replace(
                channels=divisible(row.channels * width),
                depth=row.depth
                if fix_ends and s in (0, len(stages) - 1)
                else math.ceil(row.depth * depth),
            )
            for row in stage
        )
        for s, stage in enumerate(stages)
    )


# Channels, depth and stride of the separable blocks: Howard et al. 2017, arXiv:1704.04861, table 1.
V1 = tuple(
    (Row(1, *row),) for row in ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))
)

# t, c, n, s: Sandler et al. 2018, arXiv:1801.04381, table 2.
V2 = tuple(
    (Row(*row),)
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

# Howard et al. 2019, arXiv:1905.02244, tables 1 and 2. Expansions are hidden channels over input
# channels of the tables.
V3_LARGE = (
    (Row(1, 16, 1, 1, 3, False, relu),),
    (Row(4, 24, 1, 2, 3, False, relu), Row(3, 24, 1, 1, 3, False, relu)),
    (Row(3, 40, 3, 2, 5, True, relu),),
    (
        Row(6, 80, 1, 2, 3, False, hard_swish),
        Row(200 / 80, 80, 1, 1, 3, False, hard_swish),
        Row(184 / 80, 80, 2, 1, 3, False, hard_swish),
    ),
    (Row(6, 112, 2, 1, 3, True, hard_swish),),
    (Row(6, 160, 3, 2, 5, True, hard_swish),),
)
V3_SMALL = (
    (Row(1, 16, 1, 2, 3, True, relu),),
    (Row(72 / 16, 24, 1, 2, 3, False, relu), Row(88 / 24, 24, 1, 1, 3, False, relu)),
    (Row(4, 40, 1, 2, 5, True, hard_swish), Row(6, 40, 2, 1, 5, True, hard_swish)),
    (Row(3, 48, 2, 1, 5, True, hard_swish),),
    (Row(6, 96, 3, 2, 5, True, hard_swish),),
)


def stage_names(count: int, *, top: bool = True) -> tuple[str, ...]:
    """`stem`, `stage1`, ... and `top`."""
    return ("stem", *(f"stage{s}" for s in range(1, count + 1)), *(("top",) if top else ()))


def _v1(
    name: str, width: float, sources: Mapping[str, str], *, keras: bool = False, **more: str
) -> BackboneSpec:
    form = {"norm": KERAS_V1, "padding": "after"} if keras else {}
    stages = scaled(V1, width)
    return BackboneSpec(
        name=name,
        module=InvertedResidualNet(stages, divisible(32 * width), top=0, separable=True, **form),
        features=stages[-1][-1].channels,
        endpoints=stage_names(5, top=False),
        sources=sources,
        reference="Howard et al. 2017, MobileNets, arXiv:1704.04861",
        **more,  # type: ignore[arg-type]
    )


def _v2(
    name: str,
    width: float,
    sources: Mapping[str, str],
    *,
    depth: float = 1.0,
    fix_ends: bool = False,
    **more,
) -> BackboneSpec:
    form = {"norm": KERAS, "padding": "same"} if "keras" in sources else {}
    top = 1280 if fix_ends else max(1280, divisible(1280 * width))
    stages = scaled(V2, width, depth, fix_ends=fix_ends)
    return BackboneSpec(
        name=name,
        module=InvertedResidualNet(stages, 32 if fix_ends else divisible(32 * width), top, **form),
        features=top,
        endpoints=stage_names(7),
        sources=sources,
        reference="Sandler et al. 2018, MobileNetV2, arXiv:1801.04381",
        **more,
    )


def _minimal(stages: tuple[tuple[Row, ...], ...]) -> tuple[tuple[Row, ...], ...]:
    """Keras' `minimalistic` form: no large windows, squeeze-and-excitation or hard swish."""
    return tuple(
        tuple(row._replace(window=3, squeeze=False, activation=relu) for row in stage)
        for stage in stages
    )


def _v3(
    name: str, size: str, width: float, sources: Mapping[str, str], norm: NormSpec, **more
) -> BackboneSpec:
    minimal = "minimal" in name
    stages = scaled(V3_SMALL if size == "small" else V3_LARGE, width)
    activation = relu if minimal else hard_swish
    top = divisible((576 if size == "small" else 960) * width)
    return BackboneSpec(
        name=name,
        module=InvertedResidualNet(
            _minimal(stages) if minimal else stages,
            16 if width < 0.75 else divisible(16 * width),  # timm does not narrow the stem further
            top,
            norm,
            "same" if name.startswith("tf_") else "torch",
            activation,
        ),
        features=top,
        endpoints=stage_names(len(stages)),
        sources=sources,
        head=partial(
            MobileNetV3Top, width=1024 if size == "small" else 1280, activation=activation
        ),
        reference="Howard et al. 2019, Searching for MobileNetV3, arXiv:1905.02244",
        **more,
    )


def _v3_tf(size: str, width: float, minimal: bool = False) -> BackboneSpec:
    tail = f"{size}_minimal_100" if minimal else f"{size}_{_percent(width)}"
    keras = f"MobileNetV3{size.title()}(alpha={width}, minimalistic={minimal})"
    return _v3(
        f"tf_mobilenetv3_{tail}",
        size,
        width,
        {"timm": f"tf_mobilenetv3_{tail}", "keras": keras},
        TF,
        base=f"mobilenetv3_{tail}",
        aliases=(f"mobilenetv3_{tail}_keras",),
    )


def _percent(width: float) -> str:
    return f"{round(100 * width):03d}"


VARIANTS = (
    *(
        _v1(f"mobilenetv1_{_percent(w)}", w, {"timm": f"mobilenetv1_{_percent(w)}"})
        for w in (1.0, 1.25)
    ),
    *(
        _v1(f"mobilenetv1_{_percent(w)}_keras", w, {"keras": f"MobileNet(alpha={w})"}, keras=True)
        for w in (0.25, 0.5, 0.75, 1.0)
    ),
    *(
        _v2(f"mobilenetv2_{_percent(w)}", w, {"timm": f"mobilenetv2_{_percent(w)}"})
        for w in (0.35, 0.5, 0.75, 1.4)
    ),
    _v2(
        "mobilenetv2_100",
        1.0,
        {"torchvision": "mobilenet_v2", "timm": "mobilenetv2_100", "tonylins": ""},
        aliases=("mobilenet_v2", "mobilenetv2"),
    ),
    _v2("mobilenetv2_110d", 1.1, {"timm": "mobilenetv2_110d"}, depth=1.2, fix_ends=True),
    _v2("mobilenetv2_120d", 1.2, {"timm": "mobilenetv2_120d"}, depth=1.4, fix_ends=True),
    *(
        _v2(
            f"mobilenetv2_{_percent(w)}_keras",
            w,
            {"keras": f"MobileNetV2(alpha={w})"},
            base=f"mobilenetv2_{_percent(w)}",
        )
        for w in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
    ),
    *(
        _v3(
            f"mobilenetv3_{size}_{_percent(w)}",
            size,
            w,
            {"timm": f"mobilenetv3_{size}_{_percent(w)}"},
            NormSpec(),
        )
        for size, w in (
            ("small", 0.5),
            ("small", 0.75),
            ("small", 1.0),
            ("large", 0.75),
            ("large", 1.0),
        )
    ),
    *(
        _v3(
            f"mobilenet_v3_{size}",
            size,
            1.0,
            {"torchvision": f"mobilenet_v3_{size}"},
            TORCHVISION_V3,
            base=f"mobilenetv3_{size}_100",
        )
        for size in ("small", "large")
    ),
    *(_v3_tf(size, w) for size in ("small", "large") for w in (0.75, 1.0)),
    *(_v3_tf(size, 1.0, minimal=True) for size in ("small", "large")),
)
