"""A classifier as a value: backbone, head, preprocessing and classes; loaded, saved, exported, summarized."""

from __future__ import annotations

from tl.models.artifact import ARTEFACT, VARIABLES, record, save
from tl.models.classifier import IMAGENET_CLASSES, Classifier, Provenance
from tl.models.loading import adapt_channels, learned_from, load

__all__ = [
    "ARTEFACT",
    "Classifier",
    "IMAGENET_CLASSES",
    "Provenance",
    "VARIABLES",
    "adapt_channels",
    "learned_from",
    "load",
    "record",
    "save",
]
