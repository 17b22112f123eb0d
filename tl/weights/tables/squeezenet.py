"""SqueezeNet: torchvision numbers a flat list; ndf has Caffe's names and Keras' layouts."""

from __future__ import annotations

from collections.abc import Iterator

from tl.backbones.squeezenet import SqueezeNet
from tl.pixels import CAFFE, TORCHVISION
from tl.weights.port import Target
from tl.weights.tables.common import Source, Table, torch_conv, torch_dense

PARTS = ("squeeze", "expand1x1", "expand3x3")


def _fires(module: SqueezeNet) -> Iterator[tuple[int, int, str]]:
    """`(number from 0, index in torchvision's list, path)` of every fire module."""
    n, index = 0, 3  # after convolution, ReLU, pool
    for s, fires in enumerate(module.stages, start=1):
        for b in range(len(fires)):
            yield n, index, f"stage{s}/block{b}"
            n, index = n + 1, index + 1
        index += 1  # the pool


def torchvision(module: SqueezeNet, *, head: bool) -> Table:
    """`features.N.squeeze`; the classifier is a convolution."""
    table = torch_conv("features.0", "stem")
    for _, index, path in _fires(module):
        for part in PARTS:
            table |= torch_conv(f"features.{index}.{part}", f"{path}/{part}")
    return table | (torch_dense("classifier.1", "head/conv", "oi11") if head else {})


def torchvision_layers(module: SqueezeNet) -> dict[str, str]:
    layers = {"stem": "features.1"}
    for _, index, path in _fires(module):
        layers[path] = layers[path.partition("/")[0]] = f"features.{index}"
    return layers


def ndf(module: SqueezeNet, *, head: bool) -> Table:
    """`fireN/squeeze1x1`, each a list of kernel and bias."""
    layers = {"conv1": "backbone/stem"}
    for n, _, path in _fires(module):
        layers |= {f"fire{n + 2}/{part}": f"backbone/{path}/{part}" for part in PARTS[1:]}
        layers[f"fire{n + 2}/squeeze1x1"] = f"backbone/{path}/squeeze"
    table = {}
    for source, path in layers.items():
        table |= {
            f"{source}/0": Target(f"params/{path}/kernel"),
            f"{source}/1": Target(f"params/{path}/bias"),
        }
    top = {
        "conv10/0": Target("params/head/conv/kernel", "11io"),
        "conv10/1": Target("params/head/conv/bias"),
    }
    return table | (top if head else {})


SOURCES = {
    "torchvision": Source(torchvision, TORCHVISION, torchvision_layers),
    "ndf": Source(ndf, CAFFE),
}
