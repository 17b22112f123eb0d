"""Rename tables, one file a family: from an architecture's own numbers to `source name -> Target`.

To add a family: a file with `SOURCES`, and a row here under the class of its Linen module.
"""

from __future__ import annotations

from tl.backbones.mobilenet import InvertedResidualNet
from tl.backbones.resnet import ResNet
from tl.backbones.spec import Module
from tl.backbones.vgg import VGG
from tl.weights.tables import mobilenet, resnet, vgg
from tl.weights.tables.common import Source

_FAMILIES = {VGG: vgg.SOURCES, ResNet: resnet.SOURCES, InvertedResidualNet: mobilenet.SOURCES}


def sources(module: Module) -> dict[str, Source]:
    """Every source form known for this architecture's family, by name."""
    return _FAMILIES[type(module)]
