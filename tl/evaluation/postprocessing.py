"""What happens to a picture on its way: saved as JPEG, resized, cropped, mirrored. Does it still fool the network then?

On the host, by the codec and the filters that would do it, on 8-bit pictures; `transforms` has such views for the attack
itself. To add one: a row in `POSTPROCESSING`.

Reference: Kurakin et al. 2017, arXiv:1607.02533, section 4, "Adversarial examples in the physical world" (JPEG among others);
  Dziugaite et al. 2016, arXiv:1608.00853 (JPEG); Xie et al. 2018, arXiv:1711.01991 (resizing).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageOps

Treatment = Callable[[np.ndarray], np.ndarray]
"""`uint8[n h w 3] -> uint8[n h w 3]`, of the same shape, each picture alone; the same pictures give the same."""


def compressed(images: np.ndarray, quality: int) -> np.ndarray:
    """Through JPEG files of a quality from 1 to 100, chroma at half size (4:2:0).

    Args:
      images: uint8[n h w 3] RGB.

    Returns:
      uint8[n h w 3]; on photographs what `tl.ascent.jpeg.decoded` computes.

    Raises:
      ValueError: another quality, dtype or shape.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"a JPEG's quality is from 1 to 100; got {quality}")

    def treat(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
        return Image.open(file)

    return _each(treat, images)


def resized(images: np.ndarray, share: float) -> np.ndarray:
    """Made smaller to a share of the side in (0, 1], and as large as before, with Pillow's bicubic filter both times.

    Raises:
      ValueError: another share, dtype or shape.
    """
    _check_share(share)

    def treat(image: Image.Image) -> Image.Image:
        w, h = (max(1, round(share * side)) for side in image.size)
        return image.resize((w, h), Image.Resampling.BICUBIC).resize(
            image.size, Image.Resampling.BICUBIC
        )

    return _each(treat, images)


def cropped(images: np.ndarray, share: float) -> np.ndarray:
    """The middle of each picture, a share of the side in (0, 1], enlarged to the whole with Pillow's bicubic filter.

    Raises:
      ValueError: another share, dtype or shape.
    """
    _check_share(share)

    def treat(image: Image.Image) -> Image.Image:
        (w, h), (cut_w, cut_h) = image.size, (0.5 * (1.0 - share) * side for side in image.size)
        return image.resize(
            image.size, Image.Resampling.BICUBIC, box=(cut_w, cut_h, w - cut_w, h - cut_h)
        )

    return _each(treat, images)


def flipped(images: np.ndarray) -> np.ndarray:
    """Left and right exchanged."""
    return _each(ImageOps.mirror, images)


POSTPROCESSING: dict[str, Treatment] = {
    "as they are": lambda images: images,
    **{f"JPEG {quality}": partial(compressed, quality=quality) for quality in (95, 90, 75, 50)},
    "3/4 size": partial(resized, share=3 / 4),
    "1/2 size": partial(resized, share=1 / 2),
    "middle 7/8": partial(cropped, share=7 / 8),
    "mirrored": flipped,
}
"""name -> what is done to the pictures; all chosen, not tuned."""


def _check_share(share: float) -> None:
    if not 0.0 < share <= 1.0:
        raise ValueError(f"a share of the side is in (0, 1]; got {share}")


def _each(treat: Callable[[Image.Image], Image.Image], images: np.ndarray) -> np.ndarray:
    """`treat` of each picture."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"treatments want pictures uint8[n h w 3]; got {images.dtype}{list(images.shape)}"
        )
    treated = [np.asarray(treat(Image.fromarray(image))) for image in images]
    return np.stack(treated) if treated else images
