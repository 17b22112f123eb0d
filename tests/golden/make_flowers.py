"""Writes tests/golden/flowers.tfrecord and flowers.json, where TensorFlow is installed.

    python tests/golden/make_flowers.py

The JSON file has what TensorFlow reads from the TFRecord file.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

HERE = Path(__file__).resolve().parent
NUMBERS = [-1, 2**40, -(2**63), 2**63 - 1]


def texts(*values: bytes) -> Any:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def integers(*values: int) -> Any:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def floats(*values: float) -> Any:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def main() -> None:
    path = str(HERE / "flowers.tfrecord")
    rng = np.random.default_rng(0)
    with tf.io.TFRecordWriter(path) as writer:
        for i in range(4):
            pixels = rng.integers(0, 255, (6, 8, 3), np.uint8).repeat(4, 0).repeat(4, 1)
            kind, ending = ("PNG", "png") if i % 2 else ("JPEG", "jpg")
            Image.fromarray(pixels).save(file := io.BytesIO(), kind)
            feature = {
                "image/encoded": texts(file.getvalue()),
                "image/filename": texts(f"flower_{i}.{ending}".encode()),
                "image/class/label": integers(i % 2 + 1),
                "image/class/text": texts((b"daisy", b"tulips")[i % 2]),
                "image/shape": integers(24, 32, 3),
                "numbers": integers(*NUMBERS[: i + 1]),
                "weights": floats(1.5, -2.0, 0.25),
                "none": floats(),
                "unset": tf.train.Feature(),
                "texts": texts("\u00e9".encode(), b"", b"two"),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
    rows = []
    for data in tf.data.TFRecordDataset(path):
        row: dict[str, Any] = {}
        for key, value in tf.train.Example.FromString(data.numpy()).features.feature.items():
            kind = value.WhichOneof("kind")
            content = list(getattr(value, kind).value) if kind else []
            row[key] = [
                v.decode() if isinstance(v, bytes) and "enc" not in key else v for v in content
            ]
        row["sha256"] = hashlib.sha256(row.pop("image/encoded")[0]).hexdigest()
        rows.append(dict(sorted(row.items())))
    content = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    (HERE / "flowers.json").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
