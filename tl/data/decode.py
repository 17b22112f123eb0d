"""One written rule that turns any picture file into uint8 RGB, or says in one sentence why it cannot.

The file is read by its content, never by its name. Then, in this order:
1. the first frame of a moving or many-page picture;
2. 16-bit grey: value / 257, rounded (65535 is white); 16-bit colour: Pillow keeps the high byte, within one level;
3. transparency (RGBA, LA, a palette's or a key colour's): composited on white, as on a page;
4. CMYK and YCCK: Pillow's arithmetic conversion. A CMYK JPEG is taken to be inverted, as Adobe writes it and browsers
   read it; the embedded profile is not applied, so colours are near, not exact;
5. grey: repeated three times; palette, 1-bit and the rest: Pillow's conversion to RGB;
6. EXIF orientation (also XMP's, PNG's, TIFF's) is applied; a broken EXIF block says nothing and is ignored.

It does not apply ICC profiles (pixels are taken as sRGB), resize, or normalise: that is `tl.pixels`. Floats and 32-bit
integers are refused, for their white is not defined. Not detectable: a JPEG damaged inside but complete at its end.
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

from tl.data.spec import Record, Source

# EPS is left out on purpose (Pillow starts Ghostscript for it), and so are formats no photograph comes in.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
MIN_SIDE = 2  # pixels; chosen, not tuned: a side of 1 is a tracking pixel or a placeholder
MAX_PIXELS = 89_478_485  # Pillow's MAX_IMAGE_PIXELS: 256 MiB of RGB

_ORIENTATION_TAG = 0x0112  # EXIF 2.3, section 4.6.4 A
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
    """A file that cannot be used as a picture; `why` is the reason without the file's name."""

    def __init__(self, why: str, path: Source | None = None):
        super().__init__(why if path is None else f"{path}: {why}")
        self.why = why


class Header(NamedTuple):
    """What a picture's file says about itself before its pixels are read.

    Attributes:
      format: by content, one of `FORMATS`.
      mode: Pillow's, e.g. "RGB", "L" (grey), "CMYK", "I;16" (16-bit grey); 16-bit colour is "RGB;16".
      clear: it has transparency.
      moving: it has more than one frame or page.
      orientation: EXIF's, 1 to 8; 1 is upright.
    """

    format: str
    mode: str
    clear: bool
    moving: bool
    orientation: int


def decode(source: Source | str | bytes) -> np.ndarray:
    """The picture as a person sees it: upright, RGB, on white.

    Args:
      source: a file, a picture inside a prepared set, or the bytes of one.

    Returns:
      uint8[h w 3], RGB, C-contiguous; h and w are at least `MIN_SIDE`.

    Raises:
      ImageError: the file is missing, empty, truncated, no picture, too small, too large, or of unknown white.

    Example:
      >>> decode(b"P6 2 2 255 " + bytes(range(12)))[0, 1].tolist()
      [3, 4, 5]
    """
    return _named(source, lambda data: _decode(data))


def glance(source: Source | str | bytes, side: int) -> np.ndarray:
    """`decode`, but a JPEG may come at a half, a quarter or an eighth of its size, which is up to ten times as fast.

    Args:
      source: as `decode` takes it.
      side: pixels that its height and width keep at least, where they have as many.

    Returns:
      uint8[h w 3], as `decode`; smaller copies are the JPEG's own (its low frequencies), made for looking, not for models.

    Raises:
      ImageError: as `decode`.
    """
    return _named(source, lambda data: _decode(data, side))


def header(source: Source | str | bytes) -> Header:
    """What a picture's file says about itself.

    Raises:
      ImageError: the file is missing, empty or no picture; its pixels are not looked at.
    """
    return _named(source, _header)


def _named(source: Source | str | bytes, work: Callable[[bytes], Result]) -> Result:
    """`work` on the bytes of `source`, whose name is put before what is wrong with it."""
    if isinstance(source, bytes):
        return work(source)
    path = Path(source) if isinstance(source, str) else source
    try:
        return work(_read(path))
    except ImageError as error:
        raise ImageError(error.why, path) from error.__cause__


def _read(path: Source) -> bytes:
    try:
        if isinstance(path, Record):
            return path.read_bytes()
        if not stat.S_ISREG(
            path.stat().st_mode
        ):  # before opening: reading a pipe would wait for ever
            raise ImageError(
                f"is a {'folder' if path.is_dir() else 'pipe or device'}, wanted a picture file"
            )
        return path.read_bytes()
    except OSError as error:
        raise ImageError(
            f"cannot be read ({error.strerror or error}), wanted a picture file"
        ) from None


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("is empty (0 bytes), wanted a picture file")
    _silence_pillow()
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError(
            f"holds more than twice the {MAX_PIXELS:,} pixels allowed; shrink it first"
        ) from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged headers
        raise ImageError(
            f"is no readable picture (it begins with {data[:8]!r}), wanted one of {', '.join(FORMATS)}"
        ) from error


def _decode(data: bytes, side: int | None = None) -> np.ndarray:
    with _open(data) as image:
        width, height = image.size
        if min(width, height) < MIN_SIDE:
            raise ImageError(
                f"is {width} x {height} pixels, wanted at least {MIN_SIDE} x {MIN_SIDE}"
            )
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"is {width} x {height} pixels, more than the {MAX_PIXELS:,} allowed; shrink it first"
            )
        try:
            if side is not None:
                image.draft(None, (side, side))  # nothing but a JPEG heeds it
            image.load()
            pixels = _rgb(image)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # as above, on damaged pixels
            raise ImageError(
                f"is a damaged or truncated {image.format} file ({error}), wanted a whole one"
            ) from error
        turn = _TURN.get(_orientation(image))
    return np.ascontiguousarray(turn(pixels) if turn else pixels)


def _header(data: bytes) -> Header:
    with _open(data) as image:
        kind = (
            "JPEG" if image.format == "MPO" else str(image.format)
        )  # MPO: a JPEG with a second one behind it
        wide = image.mode == "RGB" and any(
            "RGB;16" in str(tile[3]) for tile in getattr(image, "tile", ())
        )
        moving = kind != "JPEG" and getattr(image, "is_animated", False)
        return Header(
            kind,
            "RGB;16" if wide else image.mode,
            image.has_transparency_data,
            moving,
            _orientation(image),
        )


def _rgb(image: Image.Image) -> np.ndarray:
    """Rules 2 to 5."""
    if image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in ("PNG", "PPM")
    ):  # both hold 0..65535
        wide = np.asarray(image).astype(np.uint32)
        clear = image.info.get("transparency")
        wide = wide if clear is None else np.where(wide == clear, np.uint32(65535), wide)
        return np.repeat(((wide + 128) // 257).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ImageError(
            f"has 32-bit pixels (mode {image.mode}), whose white is undefined; save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, (255, 255, 255, 255)), clear)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """Read after `load`, for Pillow's TIFF reader turns the picture itself and then removes the tag."""
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # rule 6
        return 1


def _silence_pillow() -> None:
    """Keep Pillow's warnings from the user, for each is decided above: an error where it matters, nothing elsewhere.

    One filter for the process, put first again when a test or a caller replaced the filters or put one before it:
    `warnings.catch_warnings` is not safe in threads before Python 3.14.
    """
    action, _, _, module, _ = warnings.filters[0] if warnings.filters else ("", None, None, None, 0)
    if action != "ignore" or getattr(module, "pattern", None) != r"PIL\.":
        warnings.filterwarnings("ignore", module=r"PIL\.")
