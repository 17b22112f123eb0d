"""Images and animations as files: PNG, WebP, contact sheets."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import IO, Any

import numpy as np
from PIL import Image

WEBP_QUALITY = 80  # of 100 (chosen, not tuned)
LAST_FRAME = (
    1.5  # seconds that a film rests on its last frame, the one that matters (chosen, not tuned)
)
SHORTEST_FRAME = 0.02  # seconds; browsers slow a film down whose frames are shorter


# ---------------------------------------------------------------------------------------------------------- pictures


def as_uint8(image: Any) -> np.ndarray:
    """The pixels that a PNG of this picture holds.

    Args:
      image: uint8 or float[h w 3] (or [h w], [h w 1]: grey); floats in [0, 1]; a NumPy or JAX array, or a PIL image
        (converted to RGB, dropping transparency).

    Returns:
      uint8[h w 3], floats rounded to the nearest of the 256 levels.

    Raises:
      ValueError: another shape or dtype, a float outside [0, 1], or NaN. Nothing is clipped silently.

    Example:
      >>> as_uint8(np.array([[0.0, 0.5, 1.0]], np.float32))[0, :, 0].tolist()
      [0, 128, 255]
    """
    if isinstance(image, Image.Image):
        if image.mode[0] in "IF":
            raise ValueError(
                f"a PIL image of mode {image.mode!r} has no fixed range; pass a float array in [0, 1]"
            )
        image = image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(
            f"a picture is [h w 3], [h w 1] or [h w]; got {list(np.shape(image))}; index the batch first"
        )
    if pixels.dtype.kind == "f":
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"float pixels are in [0, 1]; got {pixels.min():g} to {pixels.max():g}; rescale it"
            )
        pixels = np.rint(pixels * np.asarray(255, pixels.dtype)).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(
            f"a picture is uint8, or float in [0, 1]; got {pixels.dtype}; convert it first"
        )
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def save_png(path: str | os.PathLike[str] | IO[bytes], image: Any) -> None:
    """Writes a picture at its true pixels, to a path or an open file: read back, it is exactly `as_uint8(image)`."""
    Image.fromarray(as_uint8(image)).save(path, format="PNG")


def save_film(
    path: str | os.PathLike[str] | IO[bytes], frames: Iterable[Any], *, seconds: float
) -> None:
    """Writes pictures as one animated WebP that loops for ever, to a path or an open file.

    Lossy, unlike `save_png`: it shows how something came about, and the pixels that count are saved as PNG. Equal frames
    that follow each other are stored as one that is held longer.

    Args:
      frames: pictures as `as_uint8` takes them, all of one size.
      seconds: from the first frame to the last, spread evenly; the last is held `LAST_FRAME` longer.

    Raises:
      ValueError: no frame, frames of several sizes, or less than `SHORTEST_FRAME` for each.
    """
    images = [as_uint8(frame) for frame in frames]
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) != 1:
        found = "none" if not sizes else "frames of (h w) " + ", ".join(map(str, sizes))
        raise ValueError(f"a film wants frames, all of one size; got {found}")
    if not SHORTEST_FRAME * len(images) <= seconds < math.inf:
        raise ValueError(
            f"a film of {len(images)} frames wants {SHORTEST_FRAME * len(images):g} seconds or more, {SHORTEST_FRAME:g} a "
            f"frame; got {seconds:g}: take fewer frames"
        )
    starts = np.rint(np.linspace(0, 1000 * seconds, len(images) + 1)).astype(int)
    held = np.diff(starts).tolist()  # milliseconds
    held[-1] += round(1000 * LAST_FRAME)
    first, *rest = map(Image.fromarray, images)
    how = {"quality": WEBP_QUALITY, "method": 4, "loop": 0}
    first.save(path, format="WEBP", save_all=True, append_images=rest, duration=held, **how)


def contact_sheet(
    images: Iterable[Any], *, columns: int, gap: int = 4, background: int = 255
) -> np.ndarray:
    """Many pictures as one, row by row from the top left, none of them resized.

    Args:
      images: pictures as `as_uint8` takes them; smaller ones are centred in a cell of the largest height and width.
      columns: pictures in a row.
      gap: pixels between two cells.
      background: grey level in [0, 255] of gaps and empty cells.

    Returns:
      uint8[h w 3].

    Example:
      >>> contact_sheet(np.zeros([5, 8, 8, 3], np.uint8), columns=3, gap=2).shape
      (18, 28, 3)
    """
    pictures = [as_uint8(image) for image in images]
    if not pictures or columns < 1 or gap < 0:
        raise ValueError(
            f"a sheet needs pictures, columns >= 1, gap >= 0; got {len(pictures)}, {columns}, {gap}"
        )
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    sheet = np.full(
        [rows * (height + gap) - gap, columns * (width + gap) - gap, 3], background, np.uint8
    )
    for i, p in enumerate(pictures):
        top = i // columns * (height + gap) + (height - p.shape[0]) // 2
        left = i % columns * (width + gap) + (width - p.shape[1]) // 2
        sheet[top : top + p.shape[0], left : left + p.shape[1]] = p
    return sheet


def amplify(difference: Any, factor: float) -> np.ndarray:
    """A signed difference as a picture: mid-grey where nothing changed.

    Args:
      difference: f32[h w c] in [-1, 1], adversarial minus original.
      factor: how much to enlarge it; `0.5 / eps` spends the whole range on an L-infinity radius. Say it in the caption.

    Returns:
      f32[h w c] in [0, 1]: `0.5 + factor * difference`; what goes past black or white saturates.

    Example:
      >>> amplify(np.array([[[-0.125, 0.0, 0.5]]]), 2).tolist()
      [[[0.25, 0.5, 1.0]]]
    """
    change = np.asarray(difference)
    if change.dtype.kind != "f" or not np.abs(change).max() <= 1:
        raise ValueError(
            f"a difference of pictures is float in [-1, 1]; got {change.dtype}; subtract as float32 first"
        )
    return np.clip(np.float32(0.5) + np.float32(factor) * change.astype(np.float32), 0, 1)
