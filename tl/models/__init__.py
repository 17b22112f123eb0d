"""Classifiers as values of backbone, head, preprocessing and class names: load, save, summarize.

Weights files are read by `tl.weights`, architectures are defined in `tl.backbones`, and training is
in `tl.training`.
"""

from __future__ import annotations

from tl.models.artifact import ARTIFACT, VARIABLES, metadata, save
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
    "save",
]
