"""MobileNet V1 to V3 and EfficientNet-Lite: chains of depthwise blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tl.backbones.gradients import relu6
from tl.backbones.mobilenet import InvertedResidualNet, Row, unrolled
from tl.pixels import INCEPTION, LITE, TORCHVISION, PixelSpec
from tl.weights.tables.common import (
    Source,
    Table,
    keras_conv_norm,
    keras_dense,
    torch_conv_norm,
    torch_dense,
)


class _Block(NamedTuple):
    number: int  # from 0, through all stages
    stage: int  # from 1
    block: int  # from 0
    row: Row
    skip: bool

    @property
    def path(self) -> str:
        return f"stage{self.stage}/block{self.block}"


def _blocks(module: InvertedResidualNet) -> Iterator[_Block]:
    n, before = 0, module.stem
    for s, stage in enumerate(module.stages, start=1):
        for b, (row, stride) in enumerate(unrolled(stage)):
            yield _Block(
                n, s, b, row, stride == 1 and before == row.channels and not module.separable
            )
            n, before = n + 1, row.channels


def _is_v3(module: InvertedResidualNet) -> bool:
    """Whether it is MobileNetV3, the only one without ReLU6; its classifier has a hidden layer."""
    return module.activation is not relu6


def _steps(row: Row) -> list[str]:
    """`tl`'s names of the parts of a block, in order."""
    return (
        ["expand_conv"] * (row.expand != 1)
        + ["depthwise_conv"]
        + ["squeeze"] * row.squeeze
        + ["project_conv"]
    )


def _torch_squeeze(reduce: str, expand: str, path: str) -> Table:
    return torch_dense(reduce, f"backbone/{path}/squeeze/reduce", "oi11") | torch_dense(
        expand, f"backbone/{path}/squeeze/expand", "oi11"
    )


def _layers(
    module: InvertedResidualNet, stem: str, top: str, block: Callable[[_Block], str]
) -> dict[str, str]:
    """Endpoint -> layer; the layer of a stage is that of its last block."""
    layers = {"stem": stem}
    for at in _blocks(module):
        layers[at.path] = layers[f"stage{at.stage}"] = block(at)
    return layers | ({"top": top} if module.top else {})


# --- torch ------------------------------------------------------------------------------------


def _numbered(
    module: InvertedResidualNet, head: bool, place: Callable[[int, bool], tuple[str, str]]
) -> Table:
    """`features.N.conv.*`; `place(step, is_last)` names a step's convolution and norm in `conv`."""
    last = _last(module)
    table = torch_conv_norm("features.0.0", "features.0.1", "stem")
    table |= torch_conv_norm(f"features.{last}.0", f"features.{last}.1", "top")
    for at in _blocks(module):
        for i, step in enumerate(_steps(at.row)):
            conv, norm = (
                f"features.{at.number + 1}.conv.{part}" for part in place(i, step == "project_conv")
            )
            table |= torch_conv_norm(conv, norm, f"{at.path}/{step}")
    return table | (torch_dense("classifier.1", "head") if head else {})


def _last(module: InvertedResidualNet) -> int:
    return sum(1 for _ in _blocks(module)) + 1


def torchvision(module: InvertedResidualNet, *, head: bool) -> Table:
    """V2: `features.N.conv.*`, convolution and norm in one group except in the projection.

    V3: `features.N.block.M`.
    """
    if not _is_v3(module):
        return _numbered(
            module, head, lambda i, last: (f"{i}", f"{i + 1}") if last else (f"{i}.0", f"{i}.1")
        )
    last = _last(module)
    table = torch_conv_norm("features.0.0", "features.0.1", "stem")
    table |= torch_conv_norm(f"features.{last}.0", f"features.{last}.1", "top")
    for at in _blocks(module):
        for i, step in enumerate(_steps(at.row)):
            layer = f"features.{at.number + 1}.block.{i}"
            if step == "squeeze":
                table |= _torch_squeeze(f"{layer}.fc1", f"{layer}.fc2", at.path)
            else:
                table |= torch_conv_norm(f"{layer}.0", f"{layer}.1", f"{at.path}/{step}")
    top = torch_dense("classifier.0", "head/hidden") | torch_dense("classifier.3", "head/logits")
    return table | (top if head else {})


def torchvision_layers(module: InvertedResidualNet) -> dict[str, str]:
    last = f"features.{_last(module)}"
    return _layers(module, "features.0", last, lambda at: f"features.{at.number + 1}")


def tonylins(module: InvertedResidualNet, *, head: bool) -> Table:
    """github.com/tonylins/pytorch-mobilenet-v2: convolutions, norms, activations in a flat list."""
    return _numbered(module, head, lambda i, _: (f"{3 * i}", f"{3 * i + 1}"))


def lukemelas(module: InvertedResidualNet, *, head: bool) -> Table:
    """github.com/lukemelas/EfficientNet-PyTorch: `_blocks.N._expand_conv`."""
    table = torch_conv_norm("_conv_stem", "_bn0", "stem") | torch_conv_norm(
        "_conv_head", "_bn1", "top"
    )
    for at in _blocks(module):
        for step in _steps(at.row):
            bn = {"expand_conv": 0, "depthwise_conv": 1, "project_conv": 2}[step]
            layer = f"_blocks.{at.number}"
            table |= torch_conv_norm(f"{layer}._{step}", f"{layer}._bn{bn}", f"{at.path}/{step}")
    return table | (torch_dense("_fc", "head") if head else {})


def timm(module: InvertedResidualNet, *, head: bool) -> Table:
    """`blocks.S.B.conv_pw` in every family; the last convolution of V3 is an additional stage."""
    table = torch_conv_norm("conv_stem", "bn1", "stem")
    if module.top and _is_v3(module):
        after = len(module.stages)
        table |= torch_conv_norm(f"blocks.{after}.0.conv", f"blocks.{after}.0.bn1", "top")
    elif module.top:
        table |= torch_conv_norm("conv_head", "bn2", "top")
    for at in _blocks(module):
        layer = f"blocks.{at.stage - 1}.{at.block}"
        convs = ["conv_pw", "conv_dw", "conv_pwl"] if at.row.expand != 1 else ["conv_dw", "conv_pw"]
        steps = [step for step in _steps(at.row) if step != "squeeze"]
        for i, (conv, step) in enumerate(zip(convs, steps, strict=True), start=1):
            table |= torch_conv_norm(f"{layer}.{conv}", f"{layer}.bn{i}", f"{at.path}/{step}")
        if at.row.squeeze:
            table |= _torch_squeeze(f"{layer}.se.conv_reduce", f"{layer}.se.conv_expand", at.path)
    if not head:
        return table
    if _is_v3(module):
        return (
            table
            | torch_dense("conv_head", "head/hidden", "oi11")
            | torch_dense("classifier", "head/logits")
        )
    return table | torch_dense("classifier", "head")


def timm_layers(module: InvertedResidualNet) -> dict[str, str]:
    top = f"blocks.{len(module.stages)}" if _is_v3(module) else "bn2"
    return _layers(module, "bn1", top, lambda at: f"blocks.{at.stage - 1}.{at.block}")


# --- Keras ------------------------------------------------------------------------------------


def keras(module: InvertedResidualNet, *, head: bool) -> Table:
    """V1: `conv_dw_N`; V2: `block_N_depthwise`; V3: `expanded_conv_N_depthwise`.

    The names of the stem and the classifier differ too.
    """
    if module.separable:
        table = keras_conv_norm("conv1", "conv1_bn", "stem")
        for at in _blocks(module):
            dw, pw = f"conv_dw_{at.number + 1}", f"conv_pw_{at.number + 1}"
            table |= keras_conv_norm(dw, f"{dw}_bn", f"{at.path}/depthwise_conv", layout="hwcm")
            table |= keras_conv_norm(pw, f"{pw}_bn", f"{at.path}/project_conv")
        return table | (keras_dense("conv_preds", "head", "11io") if head else {})
    v3 = _is_v3(module)
    stem, top, bn = (
        (("conv", "conv_bn"), ("conv_1", "conv_1_bn"), "bn") if v3 else (_V2_STEM, _V2_TOP, "BN")
    )
    table = keras_conv_norm(*stem, "stem") | keras_conv_norm(*top, "top")
    for at in _blocks(module):
        prefix = _keras_prefix(at, v3)
        for step in _steps(at.row):
            if step == "squeeze":
                path = f"backbone/{at.path}/squeeze"
                table |= keras_dense(f"{prefix}squeeze_excite_conv", f"{path}/reduce", "11io")
                table |= keras_dense(f"{prefix}squeeze_excite_conv_1", f"{path}/expand", "11io")
                continue
            layer = prefix + step.removesuffix("_conv")
            layout = "hwcm" if step == "depthwise_conv" else "same"
            table |= keras_conv_norm(layer, f"{layer}_{bn}", f"{at.path}/{step}", layout=layout)
    if not head:
        return table
    if v3:
        return (
            table
            | keras_dense("conv_2", "head/hidden", "11io")
            | keras_dense("logits", "head/logits", "11io")
        )
    return table | keras_dense("predictions", "head")


_V2_STEM, _V2_TOP = ("Conv1", "bn_Conv1"), ("Conv_1", "Conv_1_bn")


def _keras_prefix(at: _Block, v3: bool) -> str:
    if at.number == 0:
        return "expanded_conv_"
    return f"expanded_conv_{at.number}_" if v3 else f"block_{at.number}_"


def keras_layers(module: InvertedResidualNet) -> dict[str, str]:
    """As `Source.endpoints`; "NAME>" is the layer after NAME, to which Keras gives no name."""
    if module.separable:
        return _layers(module, "conv1_relu", "", lambda at: f"conv_pw_{at.number + 1}_relu")
    v3 = _is_v3(module)

    def block(at: _Block) -> str:
        return _keras_prefix(at, v3) + ("add" if at.skip else "project_bn" if v3 else "project_BN")

    return _layers(
        module, "conv_bn>" if v3 else "Conv1_relu", "conv_1_bn>" if v3 else "out_relu", block
    )


SOURCES = {
    "torchvision": Source(torchvision, TORCHVISION, torchvision_layers),
    "tonylins": Source(tonylins, TORCHVISION),
    "lukemelas": Source(lukemelas, LITE),
    "timm": Source(timm, PixelSpec(), timm_layers),
    "keras": Source(keras, INCEPTION, keras_layers),
}
