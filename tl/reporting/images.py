"""Images and animations as files: PNG, WebP, contact sheets."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import IO, Any

import numpy as np
from PIL import Image

from tl import storage

# Quality of the encoder, in [0, 100]. Chosen, not tuned.
WEBP_QUALITY = 80
# Seconds for which an animation holds its last frame, the final result. Chosen, not tuned.
LAST_FRAME = 1.5
# Shortest duration of a frame, in seconds. Browsers slow down an animation with shorter frames.
SHORTEST_FRAME = 0.02


def as_uint8(image: Any) -> np.ndarray:
    """The pixels that a PNG of this image holds.

    Args:
      image: uint8 or float[h w 3] (or [h w], [h w 1]: gray), floats in [0, 1]; a NumPy or JAX
        array, or a PIL image (converted to RGB, without transparency).

    Returns:
      uint8[h w 3], floats rounded to the nearest of the 256 levels.

    Raises:
      ValueError: another shape or dtype, a float outside [0, 1], or NaN. Values are not clipped.

    Example:
      >>> as_uint8(np.array([[0.0, 0.5, 1.0]], np.float32))[0, :, 0].tolist()
      [0, 128, 255]
    """
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise ValueError(
                f"`image` is a PIL image of mode {image.mode!r}, which has no fixed range; pass an "
                "array of floats in [0, 1]"
            )
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(
            f"`image` has a wrong shape: got {list(np.shape(image))}, expected [h w 3], [h w 1] or "
            "[h w]; index the batch first"
        )
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"pixels are out of range: got {pixels.min():g} to {pixels.max():g}, "
                "expected [0, 1] for floats; rescale the image"
            )
        pixels = np.rint(pixels * np.asarray(255, pixels.dtype)).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(
            f"`image` has a wrong dtype: got {pixels.dtype}, expected uint8 or float; convert it"
        )
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def save_png(path: str | os.PathLike[str] | IO[bytes], image: Any) -> None:
    """Writes an image as PNG at its true pixels: the file decodes to exactly `as_uint8(image)`.

    Args:
      path: a path, local or in a bucket, or an open file.
      image: as for `as_uint8`.
    """
    with storage.created(path) as file:
        Image.fromarray(as_uint8(image)).save(file, format="PNG")


def save_animation(
    path: str | os.PathLike[str] | IO[bytes], frames: Iterable[Any], *, seconds: float
) -> None:
    """Writes images as one animated WebP that loops forever.

    Lossy, unlike `save_png`: it shows a process, and the pixels of the result are saved as PNG.
    Consecutive equal frames are stored as one frame with a longer duration.

    Args:
      path: a path, local or in a bucket, or an open file.
      frames: images as for `as_uint8`, all of one size.
      seconds: duration from the first frame to the last, spread evenly; the last frame is held
        `LAST_FRAME` seconds longer.

    Raises:
      ValueError: no frames, frames of several sizes, or less than `SHORTEST_FRAME` per frame.
    """
    images = [as_uint8(frame) for frame in frames]
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) != 1:
        received = "frames of (h w) " + ", ".join(map(str, sizes)) if sizes else "none"
        raise ValueError(f"`frames` must be images of one size: got {received}")
    if not SHORTEST_FRAME * len(images) <= seconds < math.inf:
        raise ValueError(
            f"`seconds` is too short for {len(images)} frames: got {seconds:g}, expected at least "
            f"{SHORTEST_FRAME * len(images):g} ({SHORTEST_FRAME:g} per frame); pass fewer frames"
        )
    starts = np.rint(np.linspace(0, 1000 * seconds, len(images) + 1)).astype(int)
    milliseconds = np.diff(starts).tolist()
    milliseconds[-1] += round(1000 * LAST_FRAME)
    first, *rest = map(Image.fromarray, images)
    options = {"quality": WEBP_QUALITY, "method": 4, "loop": 0, "duration": milliseconds}
    with storage.created(path) as file:
        first.save(file, format="WEBP", save_all=True, append_images=rest, **options)


def contact_sheet(
    images: Iterable[Any], *, columns: int, gap: int = 4, background: int = 255
) -> np.ndarray:
    """Several images as one, row by row from the top left, without resizing.

    Args:
      images: as for `as_uint8`; smaller ones are centered in a cell of the largest height and
        width.
      columns: images per row.
      gap: pixels between two cells.
      background: gray level in [0, 255] of gaps and empty cells.

    Returns:
      uint8[h w 3].

    Raises:
      ValueError: no images, `columns` < 1, or `gap` < 0.

    Example:
      >>> contact_sheet(np.zeros([5, 8, 8, 3], np.uint8), columns=3, gap=2).shape
      (18, 28, 3)
    """
    tiles = [as_uint8(image) for image in images]
    if not tiles or columns < 1 or gap < 0:
        raise ValueError(
            f"a contact sheet needs images, `columns` >= 1, `gap` >= 0: got {len(tiles)} images, "
            f"{columns}, {gap}"
        )
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    shape = [rows * (height + gap) - gap, columns * (width + gap) - gap, 3]
    sheet = np.full(shape, background, np.uint8)
    for i, tile in enumerate(tiles):
        top = i // columns * (height + gap) + (height - tile.shape[0]) // 2
        left = i % columns * (width + gap) + (width - tile.shape[1]) // 2
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def amplify(difference: Any, factor: float) -> np.ndarray:
    """A signed difference as an image: mid-gray where nothing changed.

    Args:
      difference: f32[h w c] in [-1, 1], such as adversarial minus original.
      factor: enlargement; `0.5 / eps` uses the whole range for an Linf radius. State it in the
        caption.

    Returns:
      f32[h w c] in [0, 1]: `0.5 + factor * difference`, clipped.

    Raises:
      ValueError: `difference` is not float, or a value is outside [-1, 1] or NaN.

    Example:
      >>> amplify(np.array([[[-0.125, 0.0, 0.5]]]), 2).tolist()
      [[[0.25, 0.5, 1.0]]]
    """
    change = np.asarray(difference)
    if change.dtype.kind != "f" or not np.abs(change).max() <= 1:
        raise ValueError(
            f"`difference` is out of range: got {change.dtype} from {change.min():g} to "
            f"{change.max():g}, expected float in [-1, 1]; subtract images in [0, 1] as float32"
        )
    return np.clip(np.float32(0.5) + np.float32(factor) * change.astype(np.float32), 0, 1)
