"""The only conversion of image files to uint8 RGB; a file that fails gives a one-sentence error.

The format is detected by the content of the file, never by its name. The rules, in this order:

1. The first frame of an image with several frames or pages is used.
2. 16-bit gray: value / 257, rounded (65535 is white). 16-bit color: Pillow keeps the high byte,
   within one level.
3. Transparency (RGBA, LA, of a palette or a key color) is composited on white.
4. CMYK and YCCK: Pillow's arithmetic conversion. A CMYK JPEG is assumed to be inverted, as Adobe
   writes it and browsers read it. The embedded profile is not applied, so colors are approximate.
5. Gray is repeated three times. Palette, 1-bit and other modes: Pillow's conversion to RGB.
6. EXIF orientation (also from XMP, PNG or TIFF) is applied. A damaged EXIF block is ignored.

This module does not apply ICC profiles (pixels are taken as sRGB), resize or normalize; see
`tl.pixels`. Floats and 32-bit integers are errors, because their white is not defined. A JPEG that
is damaged inside but complete at its end cannot be detected.
"""

from __future__ import annotations

import io
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from tl.data.spec import Source

# No EPS, for which Pillow starts Ghostscript, and no formats that photographs do not use.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
# In pixels; chosen, not tuned. An image with a side of 1 is a tracking pixel or a placeholder.
MIN_SIDE = 2
# Pillow's MAX_IMAGE_PIXELS: 256 MiB of RGB.
MAX_PIXELS = 89_478_485

# EXIF 2.3, section 4.6.4 A.
_ORIENTATION_TAG = 0x0112
_TURN: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # stored -> upright, on [h w c]
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


Result = TypeVar("Result")


class ImageError(ValueError):
    """An error about a file that is not a usable image; `why` is the reason without the path."""

    def __init__(self, why: str, path: Source | None = None):
        super().__init__(why if path is None else f"{path}: {why}")
        self.why = why


class Header(NamedTuple):
    """The properties of an image file that are known before its pixels are read.

    Attributes:
      format: the format by content, one of `FORMATS`.
      mode: Pillow's mode, e.g. "RGB", "L" (gray), "CMYK", "I;16" (16-bit gray); "RGB;16" is 16-bit
        color.
      transparent: whether the image has transparency.
      animated: whether it has more than one frame or page.
      orientation: EXIF orientation, 1 to 8; 1 is upright.
    """

    format: str
    mode: str
    transparent: bool
    animated: bool
    orientation: int


def decode(source: Source | str | bytes) -> np.ndarray:
    """The image as a person sees it: upright, RGB, on white.

    Args:
      source: an image file, an image inside a container, or the bytes of an image file.

    Returns:
      uint8[h w 3], RGB, C-contiguous; h and w are at least `MIN_SIDE`.

    Raises:
      ImageError: the file is missing, empty, truncated, not an image, too small, too large, or its
        white is undefined.

    Example:
      >>> decode(b"P6 2 2 255 " + bytes(range(12)))[0, 1].tolist()
      [3, 4, 5]
    """
    return _with_name(source, lambda data: _decode(data))


def decode_reduced(source: Source | str | bytes, side: int) -> np.ndarray:
    """`decode` with JPEG reduced to 1/2, 1/4 or 1/8 of its size, up to ten times as fast.

    Args:
      source: as in `decode`.
      side: lower bound of height and width after the reduction, in pixels.

    Returns:
      uint8[h w 3], as `decode`. The reduction uses the low frequencies of the JPEG, so the result
      is suitable for comparison and display, but not as the input of a model.

    Raises:
      ImageError: as `decode`.
    """
    return _with_name(source, lambda data: _decode(data, side))


def thumbnail(source: Source | str | bytes, side: int) -> np.ndarray:
    """A small copy for a page: `decode`, reduced to at most `side` pixels in width and height.

    Raises:
      ImageError: as `decode`.
    """
    image = Image.fromarray(decode(source))
    image.thumbnail((side, side))
    return np.asarray(image)


def is_image(path: Path) -> bool:
    """Whether a file begins as an image of one of `FORMATS`; only its header is read.

    Raises:
      OSError: the file cannot be read.
    """
    _hide_warnings()
    with open(path, "rb") as file:
        try:
            Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError:
            return True  # for which `decode` has a better sentence
        except Exception:  # as in `_open`
            return False
    return True


def header(source: Source | str | bytes) -> Header:
    """The format and mode of an image file, read without decoding the pixels.

    Raises:
      ImageError: the file is missing, empty or not an image.
    """
    return _with_name(source, _header)


def _with_name(source: Source | str | bytes, work: Callable[[bytes], Result]) -> Result:
    """Applies `work` to the bytes of `source`, and adds the path to an `ImageError`."""
    if isinstance(source, bytes):
        return work(source)
    path = Path(source) if isinstance(source, str) else source
    try:
        return work(_read(path))
    except ImageError as error:
        raise ImageError(error.why, path) from error.__cause__


def _read(path: Source) -> bytes:
    try:
        # Checked before opening, because reading a pipe would wait forever.
        if isinstance(path, Path) and not stat.S_ISREG(path.stat().st_mode):
            kind = "folder" if path.is_dir() else "pipe or device"
            raise ImageError(f"is a {kind}, expected an image file")
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise ImageError(f"cannot be read ({reason}), expected an image file") from None


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("is empty (0 bytes), expected an image file")
    _hide_warnings()
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError(
            f"has more than {2 * MAX_PIXELS:,} pixels, expected at most {MAX_PIXELS:,}; "
            "shrink it first"
        ) from None
    except Exception as error:  # Pillow raises many types of error on damaged headers
        raise ImageError(
            f"is not a readable image (it begins with {data[:8]!r}), expected one of "
            f"{', '.join(FORMATS)}"
        ) from error


def _decode(data: bytes, side: int | None = None) -> np.ndarray:
    with _open(data) as image:
        width, height = image.size
        if min(width, height) < MIN_SIDE:
            raise ImageError(
                f"is {width} x {height} pixels, expected at least {MIN_SIDE} x {MIN_SIDE}"
            )
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"is {width} x {height} pixels, expected at most {MAX_PIXELS:,}; shrink it first"
            )
        try:
            if side is not None:
                image.draft(None, (side, side))  # has an effect on JPEG only
            image.load()
            pixels = _rgb(image)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # as in `_open`, on damaged pixels
            raise ImageError(
                f"is a damaged or truncated {image.format} file ({error}), expected a complete one"
            ) from error
        turn = _TURN.get(_orientation(image))
    return np.ascontiguousarray(turn(pixels) if turn else pixels)


def _header(data: bytes) -> Header:
    with _open(data) as image:
        # MPO is a JPEG followed by a second one.
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        wide = image.mode == "RGB" and any(
            "RGB;16" in str(tile[3]) for tile in getattr(image, "tile", ())
        )
        animated = kind != "JPEG" and getattr(image, "is_animated", False)
        return Header(
            kind,
            "RGB;16" if wide else image.mode,
            image.has_transparency_data,
            animated,
            _orientation(image),
        )


def _rgb(image: Image.Image) -> np.ndarray:
    """The pixels uint8[h w 3] by rules 2 to 5."""
    # "I" of PNG and PPM holds 0 to 65535, as "I;16" does.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        wide = np.asarray(image).astype(np.uint32)
        key = image.info.get("transparency")
        wide = wide if key is None else np.where(wide == key, np.uint32(65535), wide)
        return np.repeat(((wide + 128) // 257).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ImageError(
            f"has 32-bit pixels (mode {image.mode}), whose white is undefined, expected 8 or "
            "16 bits; convert it first"
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 if there is none.

    After `load` it is 1 for a TIFF, because Pillow's reader turns the image and removes the tag.
    """
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # rule 6
        return 1


def _hide_warnings() -> None:
    """Hides Pillow's warnings: each case is an error above or has no effect on the pixels.

    The process has one filter, which is inserted again if a caller replaced the filters or put
    another one first, because `warnings.catch_warnings` is not thread-safe before Python 3.14.
    """
    action, _, _, module, _ = warnings.filters[0] if warnings.filters else ("", None, None, None, 0)
    if action != "ignore" or getattr(module, "pattern", None) != r"PIL\.":
        warnings.filterwarnings("ignore", module=r"PIL\.")
