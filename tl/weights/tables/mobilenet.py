"""MobileNetV2 and EfficientNet-Lite: chains of inverted residuals, numbered through by every source."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tl.backbones.mobilenet import InvertedResidualNet
from tl.pixels import PixelSpec
from tl.weights.tables.common import TORCHVISION_PIXELS, Source, Table, torch_conv_norm, torch_dense


def _blocks(module: InvertedResidualNet) -> Iterator[tuple[int, str, bool]]:
    """(running number, our path, does it expand) of every block."""
    n = 0
    for s, row in enumerate(module.stages, start=1):
        for b in range(row.depth):
            yield n, f"stage{s}/block{b}", row.expand != 1
            n += 1


def _numbered(module: InvertedResidualNet, head: bool, place: Callable[[int, bool], tuple[str, str]]) -> Table:
    """`features.N.conv.*`, where `place(step, is_last)` names a step's convolution and norm within `conv`."""
    last = sum(row.depth for row in module.stages) + 1
    table = torch_conv_norm("features.0.0", "features.0.1", "stem")
    table |= torch_conv_norm(f"features.{last}.0", f"features.{last}.1", "top")
    for n, path, expands in _blocks(module):
        steps = ["expand_conv"] * expands + ["depthwise_conv", "project_conv"]
        for i, step in enumerate(steps):
            conv, norm = (f"features.{n + 1}.conv.{part}" for part in place(i, step == "project_conv"))
            table |= torch_conv_norm(conv, norm, f"{path}/{step}")
    return table | (torch_dense("classifier.1", "head") if head else {})


def torchvision(module: InvertedResidualNet, *, head: bool) -> Table:
    """torchvision's `mobilenet_v2`: convolution and norm in a group of their own, the projection's bare."""
    return _numbered(module, head, lambda i, last: (f"{i}", f"{i + 1}") if last else (f"{i}.0", f"{i}.1"))


def tonylins(module: InvertedResidualNet, *, head: bool) -> Table:
    """The older names of github.com/tonylins/pytorch-mobilenet-v2: convolution, norm, activation in one flat list."""
    return _numbered(module, head, lambda i, _: (f"{3 * i}", f"{3 * i + 1}"))


def lukemelas(module: InvertedResidualNet, *, head: bool) -> Table:
    """EfficientNet-PyTorch's names (github.com/lukemelas/EfficientNet-PyTorch): `_blocks.N._expand_conv`."""
    table = torch_conv_norm("_conv_stem", "_bn0", "stem") | torch_conv_norm("_conv_head", "_bn1", "top")
    for n, path, expands in _blocks(module):
        steps = [("expand", 0)] * expands + [("depthwise", 1), ("project", 2)]
        for step, bn in steps:
            table |= torch_conv_norm(f"_blocks.{n}._{step}_conv", f"_blocks.{n}._bn{bn}", f"{path}/{step}_conv")
    return table | (torch_dense("_fc", "head") if head else {})


def timm(module: InvertedResidualNet, *, head: bool) -> Table:
    """timm's names, the same for `mobilenetv2_*` and `efficientnet_lite*`: `blocks.S.B.conv_pw`."""
    table = torch_conv_norm("conv_stem", "bn1", "stem") | torch_conv_norm("conv_head", "bn2", "top")
    for _, path, expands in _blocks(module):
        stage, block = path.removeprefix("stage").split("/block")
        at = f"blocks.{int(stage) - 1}.{block}"
        convs = ["conv_pw", "conv_dw", "conv_pwl"] if expands else ["conv_dw", "conv_pw"]
        steps = ["expand_conv", "depthwise_conv", "project_conv"][-len(convs) :]
        for i, (conv, step) in enumerate(zip(convs, steps, strict=True), start=1):
            table |= torch_conv_norm(f"{at}.{conv}", f"{at}.bn{i}", f"{path}/{step}")
    return table | (torch_dense("classifier", "head") if head else {})


LITE_PIXELS = PixelSpec(
    mean=(127 / 255, 127 / 255, 127 / 255), std=(128 / 255, 128 / 255, 128 / 255)
)  # EfficientNet-Lite: (x - 127) / 128 on 0-255

SOURCES = {
    "torchvision": Source(torchvision, TORCHVISION_PIXELS),
    "tonylins": Source(tonylins, TORCHVISION_PIXELS),
    "lukemelas": Source(lukemelas, LITE_PIXELS),
    "timm": Source(timm, PixelSpec()),
}
