"""Postprocessing of saved images: JPEG, resizing, cropping, mirroring.

It measures whether an adversarial example survives ordinary use of its file. It runs on the host,
on 8-bit images, with Pillow's codec and filters. `tl.ascent.transforms` has differentiable versions
for an attack. To add one: a function and a row in `POSTPROCESSING`.

Reference: Kurakin et al. 2017, arXiv:1607.02533, section 4, "Adversarial examples in the physical
  world" (JPEG among others); Dziugaite et al. 2016, arXiv:1608.00853 (JPEG); Xie et al. 2018,
  arXiv:1711.01991 (resizing).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageOps

Postprocess = Callable[[np.ndarray], np.ndarray]
"""`uint8[n h w 3] -> uint8[n h w 3]`: deterministic, keeps the shape, treats each image alone."""


def compressed(images: np.ndarray, quality: int) -> np.ndarray:
    """The images after a JPEG file with chroma at half resolution (4:2:0).

    Args:
      images: uint8[n h w 3] RGB.
      quality: quality of the file, from 1 to 100.

    Returns:
      uint8[n h w 3]; on photographs equal to `tl.ascent.jpeg.decoded`.

    Raises:
      ValueError: `quality`, the dtype or the shape is wrong.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"`quality` is out of range: got {quality}, expected 1 to 100")

    def process(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
        return Image.open(file)

    return _process_each(process, images)


def resized(images: np.ndarray, share: float) -> np.ndarray:
    """The images after resizing to a share of the side, in (0, 1], and back (Pillow's bicubic).

    Raises:
      ValueError: `share`, the dtype or the shape is wrong.
    """
    _check_share(share)

    def process(image: Image.Image) -> Image.Image:
        width, height = (max(1, round(share * side)) for side in image.size)
        small = image.resize((width, height), Image.Resampling.BICUBIC)
        return small.resize(image.size, Image.Resampling.BICUBIC)

    return _process_each(process, images)


def cropped(images: np.ndarray, share: float) -> np.ndarray:
    """The center of each image, a share of the side in (0, 1], enlarged (Pillow's bicubic).

    Raises:
      ValueError: `share`, the dtype or the shape is wrong.
    """
    _check_share(share)

    def process(image: Image.Image) -> Image.Image:
        w, h = image.size
        x, y = 0.5 * (1.0 - share) * w, 0.5 * (1.0 - share) * h
        box = (x, y, w - x, h - y)
        return image.resize(image.size, Image.Resampling.BICUBIC, box=box)

    return _process_each(process, images)


def flipped(images: np.ndarray) -> np.ndarray:
    """The images mirrored left to right."""
    return _process_each(ImageOps.mirror, images)


POSTPROCESSING: dict[str, Postprocess] = {
    "as they are": lambda images: images,
    **{f"JPEG {quality}": partial(compressed, quality=quality) for quality in (95, 90, 75, 50)},
    "3/4 size": partial(resized, share=3 / 4),
    "1/2 size": partial(resized, share=1 / 2),
    "middle 7/8": partial(cropped, share=7 / 8),
    "mirrored": flipped,
}
"""Name in `result["after"]` -> function of the saved files; strengths are chosen, not tuned."""


def _check_share(share: float) -> None:
    if not 0.0 < share <= 1.0:
        raise ValueError(f"`share` is out of range: got {share}, expected a number in (0, 1]")


def _process_each(process: Callable[[Image.Image], Image.Image], images: np.ndarray) -> np.ndarray:
    """Applies `process` to each image."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"`images` have the wrong type: got {images.dtype}{list(images.shape)}, expected "
            "uint8[n h w 3]"
        )
    processed = [np.asarray(process(Image.fromarray(image))) for image in images]
    return np.stack(processed) if processed else images
