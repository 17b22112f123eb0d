"""ResNet: torchvision and timm share their names."""

from __future__ import annotations

from tl.backbones.resnet import Bottleneck, ResNet
from tl.weights.tables.common import TORCHVISION_PIXELS, Source, Table, torch_conv_norm, torch_dense


def torchvision(module: ResNet, *, head: bool) -> Table:
    """`layerS.B.convN`, `layerS.B.bnN`, the shortcut as `downsample`."""
    table = torch_conv_norm("conv1", "bn1", "stem")
    bottleneck = module.block is Bottleneck
    for s, depth in enumerate(module.depths, start=1):
        for b in range(depth):
            at, path = f"layer{s}.{b}", f"stage{s}/block{b}"
            for n in range(1, 4 if bottleneck else 3):
                table |= torch_conv_norm(f"{at}.conv{n}", f"{at}.bn{n}", f"{path}/conv{n}")
            if b == 0 and (s > 1 or bottleneck):
                table |= torch_conv_norm(f"{at}.downsample.0", f"{at}.downsample.1", f"{path}/shortcut")
    return table | (torch_dense("fc", "head") if head else {})


SOURCES = {"torchvision": Source(torchvision, TORCHVISION_PIXELS)}
