"""A classifier as a value: backbone, head, preprocessing and classes; loaded, saved, exported, summarized."""

from __future__ import annotations

from tl.models.artifact import ARTIFACT, VARIABLES, record, save
from tl.models.classifier import IMAGENET_CLASSES, Classifier, Provenance
from tl.models.loading import adapt_channels, load, pretrained_source

__all__ = [
    "ARTIFACT",
    "Classifier",
    "IMAGENET_CLASSES",
    "Provenance",
    "VARIABLES",
    "adapt_channels",
    "pretrained_source",
    "load",
    "record",
    "save",
]
