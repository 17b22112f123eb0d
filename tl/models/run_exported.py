"""Names pictures with the classifier beside this file: `python run.py PICTURE...` needs jax, numpy and flatbuffers.

A picture is an .npy file, uint8[h w 3] RGB of any size; where Pillow is installed, also a JPEG, PNG or the like. Resize,
crop and normalisation are in the program. In your own code:

    program = jax.export.deserialize(open("model.stablehlo", "rb").read())
    outputs = program.call(images)  # uint8[b h w 3] -> {"logits": f32[b k], "probabilities": f32[b k]}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax.export
import numpy as np

HERE = Path(__file__).resolve().parent


def read(path: str) -> np.ndarray:
    """A picture uint8[h w 3]."""
    if path.endswith(".npy"):
        return np.load(path)
    try:
        from PIL import Image, ImageOps
    except ImportError:
        sys.exit(
            f"{path}: only .npy files can be read without Pillow; pip install Pillow, or save uint8[h w 3] as .npy"
        )
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def main(paths: list[str]) -> None:
    if not paths:
        sys.exit("usage: python run.py PICTURE...")
    try:
        program = jax.export.deserialize(bytearray((HERE / "model.stablehlo").read_bytes()))
    except ImportError as error:  # jax reads its own files with a package that it does not bring
        sys.exit(f"{error}: pip install flatbuffers")
    classes = json.loads((HERE / "classes.json").read_text(encoding="utf-8"))
    for path in paths:
        probabilities = np.asarray(program.call(read(path)[None])["probabilities"])[0]
        top = np.argsort(-probabilities, kind="stable")[:5]
        print(path, *(f"{classes[i]} {probabilities[i]:.4f}" for i in top), sep="\t", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
