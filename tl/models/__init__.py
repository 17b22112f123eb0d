"""Classifiers, values of backbone, head, preprocessing and class names: load, save, summarize.

`tl.weights` reads weights files, `tl.backbones` defines architectures, and `tl.training` trains.
"""

from __future__ import annotations

from tl.models.artifact import ARTIFACT, VARIABLES, metadata, replace_metadata, save
from tl.models.channels import adapt_channels
from tl.models.classifier import IMAGENET_CLASSES, Classifier, Provenance
from tl.models.inspection import WeightsReport, examine_weights
from tl.models.loading import load, pretrained_source

__all__ = [
    "ARTIFACT",
    "Classifier",
    "IMAGENET_CLASSES",
    "Provenance",
    "VARIABLES",
    "WeightsReport",
    "adapt_channels",
    "examine_weights",
    "load",
    "metadata",
    "pretrained_source",
    "replace_metadata",
    "save",
]
