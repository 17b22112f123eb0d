"""Logits and features of many images, computed in batches of one shape."""

from __future__ import annotations

from tl.inference.predict import (
    Pictures,
    class_table,
    folder_labels,
    forward,
    predict_logits,
    read_images,
    topk,
)

__all__ = [
    "Pictures",
    "predict_logits",
    "class_table",
    "folder_labels",
    "forward",
    "read_images",
    "topk",
]
