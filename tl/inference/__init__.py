"""Predictions and features of many images, computed in batches of one shape."""

from __future__ import annotations

from tl.inference.batches import (
    BATCH_SIZE,
    Progress,
    SourceBatch,
    forward,
    in_batches,
    map_sources,
    silent,
)
from tl.inference.features import extract
from tl.inference.predictions import (
    LoadedImages,
    Predictions,
    View,
    class_table,
    folder_labels,
    predict,
    predict_logits,
    read_images,
    topk,
)

__all__ = [
    "BATCH_SIZE",
    "LoadedImages",
    "Predictions",
    "Progress",
    "SourceBatch",
    "View",
    "class_table",
    "extract",
    "folder_labels",
    "forward",
    "in_batches",
    "map_sources",
    "predict",
    "predict_logits",
    "read_images",
    "silent",
    "topk",
]
