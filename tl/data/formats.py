"""Formats of image files: those that are read, and others that are recognized and named.

This module decodes nothing; see `decode.py`.
"""

from __future__ import annotations

import importlib.util
import re
from typing import NamedTuple

from PIL import features

# pillow-heif, the extra `heic`, is imported where it is used.
HEIF = importlib.util.find_spec("pillow_heif") is not None
# Pillow's name -> endings. No EPS, for which Pillow starts Ghostscript, and no formats that
# photographs do not use.
_READ = {
    "JPEG": ".jpg .jpeg .jpe .jfif",
    "PNG": ".png .apng",
    "GIF": ".gif",
    "WEBP": ".webp",
    "BMP": ".bmp",
    "TIFF": ".tif .tiff",
    "PPM": ".ppm .pgm .pbm .pnm",
    # These depend on how Pillow was built.
    **({"AVIF": ".avif"} if features.check("avif") else {}),
    **({"JPEG2000": ".jp2 .j2k .jpf .jpx .j2c .jpc"} if features.check("jpg_2000") else {}),
    **({"HEIF": ".heic .heif .hif"} if HEIF else {}),
}

FORMATS = tuple(_READ)
"""Names of the formats that are read, as in Pillow."""

SUFFIXES: dict[str, str] = {
    ending: name for name, endings in _READ.items() for ending in endings.split()
}
"""Ending of a file name in lower case -> the format that is read and that it indicates."""

# Position of the bit depth in a PNG.
PNG_BIT_DEPTH = 24
RAW = "raw camera"
_CONVERT = "convert it to JPEG or PNG"
_UPGRADE = "upgrade Pillow or convert it to PNG"
_HEIC_ADVICE = "`pip install 'tl[heic]'` or convert it to JPEG"


class _Format(NamedTuple):
    """A format that is recognized.

    Attributes:
      name: as in messages.
      start: regular expression of the first bytes; those of RAW that begin as TIFF are in `tiff`.
      endings: of file names.
      advice: how to make it readable.
      pillow: Pillow's name; "" if it is never read.
    """

    name: str
    start: bytes
    endings: str
    advice: str = _CONVERT
    pillow: str = ""


# Brands of ISO base media files: ISO/IEC 14496-12, 23008-12 (HEIF), and AV1 Image File Format 1.1.
_FTYP = rb"\0\0.{2}ftyp"
_OTHERS = (
    _Format("AVIF", _FTYP + rb"(?:....){0,12}?avi[fs]", ".avif", _UPGRADE, "AVIF"),
    _Format(
        "HEIC",
        _FTYP + rb"(?:....){0,12}?(?:hei[cxms]|hev[cxms]|mif1|msf1)",
        ".heic .heif .hif",
        _HEIC_ADVICE,
        "HEIF",
    ),
    _Format(
        "JPEG 2000",
        rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
        ".jp2 .j2k .jpf .jpx .j2c .jpc",
        _UPGRADE,
        "JPEG2000",
    ),
    _Format("JPEG XL", rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a", ".jxl"),
    _Format("JPEG XR", rb"II\xbc", ".jxr .wdp"),
    _Format(
        RAW,
        _FTYP + rb"crx |(?:II|MM).{6}CR|FUJIFILMCCD-RAW|II(?:R[OS]|U\0)|MMOR|FOVb",
        ".cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .dng .orf .rw2 .raf .pef .srw .x3f .3fr .raw",
        "develop it to JPEG, or to TIFF of 8 or 16 bits",
    ),
    _Format("PSD", rb"8BPS", ".psd .psb"),
    _Format(
        "SVG", rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>|<!--.*?-->|<!DOCTYPE[^>]*>|\s)*<svg", ".svg"
    ),
    _Format("PDF", rb"%PDF", ".pdf"),
    _Format("EPS", rb"%!PS|\xc5\xd0\xd3\xc6", ".eps .ps .ai"),
    _Format("DICOM", rb".{128}DICM", ".dcm .dicom", "export its pixels to PNG"),
    _Format("NIfTI", rb".{344}n(?:\+1|i1)\0", ".nii", "export its slices to PNG"),
    _Format("video", _FTYP + rb"|.{4}(?:moov|mdat)|RIFF....AVI |\x1a\x45\xdf\xa3", ".mp4 .mov"),
    _Format("HTML", rb"\s*(?i:<!doctype html|<html)", ".html .htm", "download the image again"),
    _Format("Git LFS", rb"version https://git-lfs", "", "`git lfs pull` downloads the image"),
)

NAMED: dict[str, str] = {
    ending: row.name for row in _OTHERS for ending in row.endings.split() if ending not in SUFFIXES
}
"""Ending in lower case -> the format that it indicates, of formats that are not read."""


def identify(start: bytes) -> str:
    """The format of a file by its first 4 KiB, of those that Pillow alone may not read; or "".

    Example:
      >>> identify(b"%PDF-1.7 ")
      'PDF'
    """
    start = start[:4096]
    return next((row.name for row in _OTHERS if re.match(row.start, start, re.DOTALL)), "")


def describe(name: str) -> str:
    """A clause about a file of a format of `identify` or `NAMED`: its format and what to do.

    Example:
      >>> describe("PDF")
      'is a PDF file; convert it to JPEG or PNG'
    """
    row = next(row for row in _OTHERS if row.name == name)
    if row.pillow in FORMATS:
        return f"is a damaged {name} file, expected a complete one"
    article = "an" if re.match("[AEIO]|SVG|HT", name) else "a"
    return f"is {article} {name} file; {row.advice}"


def pillow_formats(start: bytes) -> tuple[str, ...]:
    """The formats for `PIL.Image.open`; the first HEIC file registers pillow-heif with Pillow."""
    if not (HEIF and identify(start) == "HEIC"):
        return tuple(name for name in FORMATS if name != "HEIF")
    import pillow_heif  # pyright: ignore  # the extra `heic`

    pillow_heif.register_heif_opener()
    return ("HEIF",)


def png_bits(data: bytes) -> int:
    """The largest number of significant bits that the chunk sBIT of a PNG states; 0 without it."""
    start = 8
    while start + 8 <= len(data) and data[start + 4 : start + 8] != b"IDAT":
        size = int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] == b"sBIT":  # PNG specification, section 11.3.2.4
            return max(data[start + 8 : start + 8 + size], default=0)
        start += size + 12
    return 0


def jpeg2000_bits(data: bytes) -> int:
    """The number of bits per channel of a JPEG 2000: Ssiz of ISO/IEC 15444-1, A.5.1."""
    return (data[data.find(b"\xff\x4f\xff\x51") + 42] & 0x7F) + 1
