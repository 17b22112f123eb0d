"""Classifiers, values of backbone, head, preprocessing and class names: load, save, summarize.

`tl.weights` reads weights files, `tl.backbones` defines architectures, and `tl.training` trains.
"""

from __future__ import annotations

from tl.models.artifact import ARTIFACT, VARIABLES, metadata, replace_metadata, save
from tl.models.classifier import IMAGENET_CLASSES, Classifier, Provenance
from tl.models.loading import adapt_channels, load, pretrained_source

__all__ = [
    "ARTIFACT",
    "Classifier",
    "IMAGENET_CLASSES",
    "Provenance",
    "VARIABLES",
    "adapt_channels",
    "load",
    "metadata",
    "pretrained_source",
    "replace_metadata",
    "save",
]
