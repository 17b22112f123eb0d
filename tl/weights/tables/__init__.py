"""Rename tables, one file per family: functions from an architecture to `source name -> Target`.

To add a family, write a file with `SOURCES` and add a row here for the class of its Linen module.
The row of an architecture in the zoo lists the sources that hold it (`BackboneSpec.sources`).
"""

from __future__ import annotations

from tl.backbones.mobilenet import InvertedResidualNet
from tl.backbones.resnet import ResNet, ResNetV2
from tl.backbones.spec import BackboneSpec
from tl.backbones.squeezenet import SqueezeNet
from tl.backbones.vgg import VGG
from tl.weights.tables import mobilenet, resnet, squeezenet, vgg
from tl.weights.tables.common import Source

_FAMILIES = {
    VGG: vgg.SOURCES,
    ResNet: resnet.SOURCES,
    ResNetV2: resnet.SOURCES_V2,
    InvertedResidualNet: mobilenet.SOURCES,
    SqueezeNet: squeezenet.SOURCES,
}


def sources(spec: BackboneSpec) -> dict[str, Source]:
    """Name -> source, for every source that holds weights of an architecture."""
    family = _FAMILIES[type(spec.module)]
    return {name: family[name] for name in spec.sources}
