"""Transfer learning with pretrained CNNs in JAX: backbones, freezing, ideal images, attacks.

Importing `tl` touches no network, starts no accelerator and draws no plot.
"""

from tl import (
    ascend,
    attacks,
    backbones,
    data,
    labels,
    metrics,
    optim,
    paths,
    perceptual,
    pixels,
    summary,
    train,
    transforms,
    visualize,
    weights,
)
from tl.backbones import names
from tl.classifier import Classifier, load, save
from tl.features import extract
from tl.pixels import PixelSpec
from tl.probe import logistic
from tl.types import Mode, Output, Variables

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "Mode",
    "Output",
    "PixelSpec",
    "Variables",
    "ascend",
    "attacks",
    "backbones",
    "data",
    "extract",
    "labels",
    "load",
    "logistic",
    "metrics",
    "names",
    "optim",
    "paths",
    "perceptual",
    "pixels",
    "save",
    "summary",
    "train",
    "transforms",
    "visualize",
    "weights",
]
