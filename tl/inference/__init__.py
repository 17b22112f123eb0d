"""Logits and features of many images, computed in batches of one shape."""

from __future__ import annotations

from tl.inference.predict import Pictures, all_logits, class_table, folder_labels, forward, read_pictures, topk

__all__ = ["Pictures", "all_logits", "class_table", "folder_labels", "forward", "read_pictures", "topk"]
