"""Classifies images with the exported classifier in this folder: `python run.py IMAGE...`

It needs jax, numpy and flatbuffers. An image is an .npy file with uint8[h w 3] RGB of any size, or,
if Pillow is installed, a JPEG, PNG or similar file. The program contains resize, crop and
normalization. In your own code:

    program = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
    outputs = program.call(images)  # images: uint8[b h w 3]
    outputs["logits"], outputs["probabilities"]  # f32[b k] each
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax.export
import numpy as np

HERE = Path(__file__).resolve().parent


def read(path: str) -> np.ndarray:
    """The image in a file, uint8[h w 3] RGB."""
    if path.endswith(".npy"):
        return np.load(path)
    try:
        from PIL import Image, ImageOps
    except ImportError:
        sys.exit(
            f"{path}: without Pillow only .npy files can be read; "
            "pip install Pillow, or save the image as uint8[h w 3] in an .npy file"
        )
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def main(paths: list[str]) -> None:
    """Prints one line per image: its path and the five most probable classes, separated by tabs."""
    if not paths:
        sys.exit("usage: python run.py IMAGE...")
    try:
        program = jax.export.deserialize(bytearray((HERE / "model.stablehlo").read_bytes()))
    except ImportError as error:  # jax.export needs flatbuffers, which jax does not install
        sys.exit(f"{error}: pip install flatbuffers")
    classes = json.loads((HERE / "classes.json").read_text(encoding="utf-8"))
    for path in paths:
        probabilities = np.asarray(program.call(read(path)[None])["probabilities"])[0]
        top = np.argsort(-probabilities, kind="stable")[:5]
        print(path, *(f"{classes[i]} {probabilities[i]:.4f}" for i in top), sep="\t", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
