"""ResNet: torchvision and timm use the same names; Keras has others for each of its two forms."""

from __future__ import annotations

from collections.abc import Iterator

from tl.backbones.resnet import BasicBlock, ResNet, ResNetV2
from tl.pixels import CAFFE, INCEPTION, TORCHVISION
from tl.weights.tables.common import (
    Source,
    Table,
    keras_conv,
    keras_conv_norm,
    keras_dense,
    keras_norm,
    torch_conv_norm,
    torch_dense,
)


def _blocks(module: ResNet | ResNetV2) -> Iterator[tuple[int, int]]:
    """`(stage, block)` of every block; stages count from 1, blocks from 0."""
    return ((s, b) for s, depth in enumerate(module.depths, start=1) for b in range(depth))


def torchvision(module: ResNet, *, head: bool) -> Table:
    """`layerS.B.convN` and `layerS.B.bnN`; the shortcut is `downsample`."""
    table = torch_conv_norm("conv1", "bn1", "stem")
    basic = module.block is BasicBlock
    for s, b in _blocks(module):
        at, path = f"layer{s}.{b}", f"stage{s}/block{b}"
        for n in range(1, 3 if basic else 4):
            table |= torch_conv_norm(f"{at}.conv{n}", f"{at}.bn{n}", f"{path}/conv{n}")
        if b == 0 and (s > 1 or not basic):
            table |= torch_conv_norm(f"{at}.downsample.0", f"{at}.downsample.1", f"{path}/shortcut")
    return table | (torch_dense("fc", "head") if head else {})


def _layers(module: ResNet | ResNetV2, stem: str, block: str, stage: str) -> dict[str, str]:
    """Endpoint -> layer, by patterns for blocks (`{s}`, `{b}`) and stages (`{s}`, `{last}`)."""
    layers = {"stem": stem}
    for s, depth in enumerate(module.depths, start=1):
        layers |= {
            f"stage{s}/block{b}": block.format(s=s, b=b, s1=s + 1, b1=b + 1) for b in range(depth)
        }
        layers[f"stage{s}"] = stage.format(s=s, s1=s + 1, last=depth)
    return layers


def torch_layers(module: ResNet) -> dict[str, str]:
    """torchvision's layers; timm's differ in the activation of the stem (`act1`, not `relu`)."""
    return _layers(module, "relu", "layer{s}.{b}", "layer{s}")


def timm_layers(module: ResNet) -> dict[str, str]:
    return torch_layers(module) | {"stem": "act1"}


def keras(module: ResNet, *, head: bool) -> Table:
    """`convS_blockB_N_conv` and `_bn`; the shortcut has N = 0; every convolution has a bias."""
    table = keras_conv_norm("conv1_conv", "conv1_bn", "stem", bias=True)
    for s, b in _blocks(module):
        at, path = f"conv{s + 1}_block{b + 1}", f"stage{s}/block{b}"
        for n in range(0 if b == 0 else 1, 4):
            ours = f"{path}/conv{n}" if n else f"{path}/shortcut"
            table |= keras_conv_norm(f"{at}_{n}_conv", f"{at}_{n}_bn", ours, bias=True)
    return table | (keras_dense("predictions", "head") if head else {})


def keras_layers(module: ResNet) -> dict[str, str]:
    return _layers(module, "conv1_relu", "conv{s1}_block{b1}_out", "conv{s1}_block{last}_out")


def keras_v2(module: ResNetV2, *, head: bool) -> Table:
    """`convS_blockB_preact_bn`; shortcut, stem and `conv3` have a bias and no BatchNorm."""
    table = keras_conv("conv1_conv", "stem") | keras_norm("post_bn", "top")
    for s, b in _blocks(module):
        at, path = f"conv{s + 1}_block{b + 1}", f"stage{s}/block{b}"
        table |= keras_norm(f"{at}_preact_bn", f"{path}/preact") | keras_conv(
            f"{at}_3_conv", f"{path}/conv3"
        )
        for n in (1, 2):
            table |= keras_conv_norm(f"{at}_{n}_conv", f"{at}_{n}_bn", f"{path}/conv{n}")
        if b == 0:
            table |= keras_conv(f"{at}_0_conv", f"{path}/shortcut")
    return table | (keras_dense("predictions", "head") if head else {})


def keras_v2_layers(module: ResNetV2) -> dict[str, str]:
    layers = _layers(module, "conv1_conv", "conv{s1}_block{b1}_out", "conv{s1}_block{last}_out")
    return layers | {"top": "post_relu"}


SOURCES = {
    "torchvision": Source(torchvision, TORCHVISION, torch_layers, "<fc"),
    "timm": Source(torchvision, TORCHVISION, timm_layers, "<fc"),
    "keras": Source(keras, CAFFE, keras_layers, "avg_pool"),
}
SOURCES_V2 = {"keras": Source(keras_v2, INCEPTION, keras_v2_layers, "avg_pool")}
