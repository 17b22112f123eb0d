"""The only conversion of image files to uint8 RGB; a file that fails gives a one-sentence error.

The format is detected by the content of the file, never by its name. JPEG, PNG, GIF, WebP, BMP,
TIFF and PPM are read, AVIF and JPEG 2000 if Pillow was built with them, and HEIC if pillow-heif is
installed (`pip install 'tl[heic]'`). Errors name other formats (`formats.py`). The rules, in this
order:

1. The first frame of an image with several frames or pages is used.
2. 16-bit gray: 65535 is white, value / 257, rounded. 16-bit color: Pillow keeps the high byte,
   within one level. Another value is white if the caller says so (`spec.WithWhite`, `--white`), or
   the file: BitsPerSample 9 to 15, SMaxSampleValue or MaxSampleValue of 2^n - 1 in a TIFF, or sBIT
   in a PNG whose values were not scaled to 16 bits. A file is believed if no value is larger. Then
   all channels are value * 255 / white, rounded, and larger values are white. PPM and JPEG 2000
   scale by their own largest value. In a TIFF where 0 is white (MinIsWhite), so it is here.
3. Transparency (RGBA, LA, of a palette or a key color) is composited on white, so an image that is
   transparent everywhere becomes white.
4. CMYK and YCCK: Pillow's arithmetic conversion. A CMYK JPEG is assumed to be inverted, as Adobe
   writes it and browsers read it. The embedded profile is not applied, so colors are approximate.
5. Gray is repeated three times. Palette, 1-bit and other modes: Pillow's conversion to RGB.
6. EXIF orientation (also from XMP, PNG or TIFF) is applied. A damaged EXIF block is ignored.

This module does not apply ICC profiles (pixels are taken as sRGB), resize or normalize; see
`tl.pixels`. Floats, signed and 32-bit integers are errors, because their white is not defined, and
so are TIFF files of several bands that are not gray, RGB or CMYK. A JPEG that is damaged inside but
complete at its end cannot be detected. `pixel_checks.py` reports data sets that are nearly black,
of one color, or of several pages.
"""

from __future__ import annotations

import io
import stat
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from tl.data import formats, tiff
from tl.data.formats import FORMATS, describe, identify, pillow_formats
from tl.data.spec import Source, file_of, white_of

# In pixels; chosen, not tuned. An image with a side of 1 is a tracking pixel or a placeholder.
MIN_SIDE = 2
# Pillow's MAX_IMAGE_PIXELS: 256 MiB of RGB.
MAX_PIXELS = 89_478_485

# Pages that are examined for one that is not a smaller copy of the first; chosen, not tuned.
_MOST_COPIES = 16

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


class _File(NamedTuple):
    """An opened image file.

    Attributes:
      image: the image, whose pixels are not read yet.
      data: the file.
      tiles: how Pillow will read the pixels; its own list is empty afterwards.
      tags: those of a TIFF.
      negative: whether 0 is white in pixels of more than 8 bits.
    """

    image: Image.Image
    data: bytes
    tiles: list[Any]
    tags: tiff.Tags
    negative: bool


class Header(NamedTuple):
    """The properties of an image file that are known before its pixels are read.

    Attributes:
      format: the format by content, one of `FORMATS`.
      mode: Pillow's mode, e.g. "RGB", "L" (gray), "CMYK", "I;16" (16-bit gray); "RGB;16" and
        "RGBA;16" have 16 bits per channel.
      transparent: whether the image has transparency.
      animated: whether it has more than one frame or page; smaller copies of a page do not count.
      orientation: EXIF orientation, 1 to 8; 1 is upright.
      full_range: whether pixels have 16 bits and 65535 is white, unless the caller states another.
      negative: whether 0 is white in pixels of more than 8 bits (MinIsWhite).
    """

    format: str
    mode: str
    transparent: bool
    animated: bool
    orientation: int
    full_range: bool = False
    negative: bool = False


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
    return _with_name(source, lambda data: _decode(data, _white(source)))


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
    return _with_name(source, lambda data: _decode(data, _white(source), side))


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
            names = pillow_formats(file.read(64))
            Image.open(file, formats=names)
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
        return work(_read(file_of(path)))
    except ImageError as error:
        raise ImageError(error.why, path) from error.__cause__


def _white(source: Source | str | bytes) -> int:
    return 0 if isinstance(source, bytes | str) else white_of(source)


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


def _open(data: bytes) -> _File:
    if not data:
        raise ImageError("is empty (0 bytes), expected an image file")
    _hide_warnings()
    tags = tiff.read_tags(data)
    if reason := tiff.refusal(tags):
        raise ImageError(reason)
    negative = tiff.is_wide_negative(tags)
    try:
        readable = tiff.as_min_is_black(data) if negative else data
        image = Image.open(io.BytesIO(readable), formats=pillow_formats(data))
    except Image.DecompressionBombError:
        raise ImageError(
            f"has more than {2 * MAX_PIXELS:,} pixels, expected at most {MAX_PIXELS:,}; "
            "shrink it first"
        ) from None
    except Exception as error:  # Pillow raises many types of error on damaged headers
        name = identify(data)
        raise ImageError(
            (describe(name) if name else tiff.describe_unreadable(tags))
            or f"is not a readable image (it begins with {data[:8]!r}), expected one of "
            f"{', '.join(FORMATS)}"
        ) from error
    _repair_separate_planes(image, tags)
    return _File(image, data, list(getattr(image, "tile", ())), tags, negative)


def _repair_separate_planes(image: Image.Image, tags: tiff.Tags) -> None:
    """Lets Pillow read 16 bits where the channels of a TIFF are stored one after the other.

    Pillow 13 reads such uncompressed planes as if they had 8 bits.
    """
    if image.format == "TIFF" and max(tags.get(tiff.BITS, (1,))) == 16:
        order = image.tag_v2.prefix[:1].replace(b"I", b"L").replace(b"M", b"B").decode()  # pyright: ignore
        image.tile = [  # pyright: ignore
            tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
            if tile.codec_name == "raw" and tile.args[0] in ("R", "G", "B", "A")
            else tile
            for tile in image.tile  # pyright: ignore
        ]


def _decode(data: bytes, white: int, side: int | None = None) -> np.ndarray:
    file = _open(data)
    with file.image as image:
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
            pixels = _rgb(file, white)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # as in `_open`, on damaged pixels
            raise ImageError(
                f"is a damaged or truncated {image.format} file ({error}), expected a complete one"
            ) from error
        turn = _TURN.get(_orientation(image))
    return np.ascontiguousarray(turn(pixels) if turn else pixels)


def _header(data: bytes) -> Header:
    file = _open(data)
    with file.image as image:
        orientation = _orientation(image)
        return Header(
            "JPEG" if image.format == "MPO" else str(image.format),
            f"{image.mode};16" if _is_wide_color(file) else image.mode,
            image.has_transparency_data,
            _has_pages(image),
            orientation,
            (image.mode[0] == "I" or _is_wide_color(file))
            and not (_scaled(file) or _stated_white(file)),
            file.negative,
        )


def _has_pages(image: Image.Image) -> bool:
    """Whether there is a frame or page after the first; thumbnails and gain maps do not count."""
    if image.format not in ("TIFF", "MPO") or not getattr(image, "is_animated", False):
        return getattr(image, "is_animated", False)
    size = image.size
    try:
        for page in range(1, _MOST_COPIES):
            image.seek(page)
            tags = getattr(image, "tag_v2", {})
            if not tags.get(tiff.SUBFILE_TYPE, 0) & 1 if tags else image.size == size:
                return True
    except Exception:  # Pillow raises many types of error on the last or a damaged page
        pass
    return False


def _is_wide_color(file: _File) -> bool:
    """Whether color or gray with alpha has 16 bits per channel; Pillow keeps the high byte."""
    return not file.image.mode.startswith("I") and any(";16" in str(t[3]) for t in file.tiles)


def _rgb(file: _File, white: int) -> np.ndarray:
    """The pixels uint8[h w 3] by rules 2 to 5."""
    image = file.image
    # "I" of PNG and PPM holds 0 to 65535, as "I;16" does.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        wide = np.asarray(image).astype(np.uint32)
        levels = _levels(file, wide, 0 if _scaled(file) else white)
        if (key := image.info.get("transparency")) is not None:
            levels = np.where(wide == key, np.uint8(255), levels)
        return np.repeat(levels[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ImageError(
            f"has 32-bit pixels (mode {image.mode}), whose white is undefined, expected 8 or "
            "16 bits; convert it first"
        )
    key = image.info.get("transparency")
    if _is_wide_color(file) and (white or _stated_white(file) or isinstance(key, tuple)):
        image = _scaled_color(file, white)
    elif image.format == "PNG" and image.mode == "L" and isinstance(key, int):
        # Pillow scales gray of 2 and 4 bits to 8, but not its key.
        image.info["transparency"] = key * 255 // (2 ** file.data[formats.PNG_BIT_DEPTH] - 1)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


# ---- 16 bits per channel ----


def _scaled(file: _File) -> bool:
    """Whether the format states its largest value, to which Pillow has scaled the pixels."""
    if file.image.format == "PPM":
        return any(tile[0] != "raw" and tile[3][-1] != 65535 for tile in file.tiles)
    return file.image.format == "JPEG2000" and formats.jpeg2000_bits(file.data) != 16


def _stated_white(file: _File) -> int:
    """The value of white that the file states; 0 if it states none."""
    if file.image.format == "PNG" and 8 <= (bits := formats.png_bits(file.data)) < 16:
        return 2**bits - 1
    return tiff.stated_white(file.tags)


def _levels(file: _File, values: np.ndarray, white: int) -> np.ndarray:
    """Levels uint8 of values u32 of any shape; `white` as given, 0 for the file's own."""
    if not white and (stated := _stated_white(file)):
        # A PNG with sBIT should hold values that were scaled to 16 bits, which are multiples of
        # `step` up to rounding. Then 65535 is white.
        step = 65536 // (stated + 1)
        scaled = file.image.format == "PNG" and (values % step <= 1).all()
        white = 0 if scaled or values.max() > stated else stated
    white = white or 65535
    values = np.minimum(values, white)
    values = white - values if file.negative else values
    return ((values * np.uint32(255) + np.uint32(white // 2)) // np.uint32(white)).astype(np.uint8)


def _scaled_color(file: _File, white: int) -> Image.Image:
    """Color, or gray with alpha, of 16 bits per channel, as 8 bits by `_levels`."""
    values, key = _wide_values(file), file.image.info.get("transparency")
    if isinstance(key, tuple):
        opacity = 255 * (values != np.array(key, np.uint32)).any(axis=-1, keepdims=True)
    elif file.image.mode.endswith("A"):
        values, alpha = values[..., :-1], values[..., -1:]
        # Opacity uses 16 bits or, like the colors, fewer.
        opacity = _levels(file, alpha, 0 if not white or alpha.max() > white else white)
    else:
        return Image.fromarray(_levels(file, values, white))
    levels = [_levels(file, values, white), opacity.astype(np.uint8)]
    return Image.fromarray(np.concatenate(levels, axis=-1))


def _wide_values(file: _File) -> np.ndarray:
    """The values u32[h w c] of color with 16 bits per channel, of which Pillow keeps one byte.

    Pillow reads the file again as if its bytes were in the other order, which gives the low bytes.
    """
    other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}

    def swapped(args: Any) -> Any:
        if isinstance(args, tuple):
            return (swapped(args[0]), *args[1:])
        return args[:-1] + other[args[-1]]

    high = np.asarray(file.image).astype(np.uint32)
    with _open(file.data).image as again:
        if file.tiles[0].args == "LA;16B":  # the four bytes of a pixel are read as RGBA
            again.tile = [tile._replace(args="RGBA") for tile in file.tiles]  # pyright: ignore
            return np.asarray(again).astype(np.uint32) @ np.array(
                [[256, 0], [1, 0], [0, 256], [0, 1]], np.uint32
            )
        separate = file.tags.get(tiff.PLANAR) == (2,) and file.tiles[0].codec_name == "libtiff"
        if separate or any("RGBa" in str(tile[3]) for tile in file.tiles):
            layout = "compressed separate planes" if separate else "premultiplied alpha"
            raise ImageError(
                f"has 16 bits per channel and {layout}, for which another white than 65535 is not "
                "supported; save it as plain 16-bit RGB first"
            )
        again.tile = [tile._replace(args=swapped(tile.args)) for tile in file.tiles]  # pyright: ignore
        return 256 * high + np.asarray(again)


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
