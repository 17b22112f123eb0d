"""The tags of TIFF files: layouts that are refused by name, and those that Pillow misreads.

`decode.py` reads the pixels with Pillow.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from tl.data.formats import RAW, describe
from tl.labels.names import counted

# Tags of TIFF 6.0, and DNGVersion of DNG 1.4.
SUBFILE_TYPE, BITS, COMPRESSION, PHOTOMETRIC, MAKE = 254, 258, 259, 262, 271
SAMPLES, MAX_SAMPLE_VALUE, PLANAR, EXTRA_SAMPLES, SAMPLE_FORMAT = 277, 281, 284, 338, 339
S_MAX_SAMPLE_VALUE = 341
_DNG_VERSION = 50706
# Values of PhotometricInterpretation.
_MIN_IS_WHITE, _MIN_IS_BLACK = 0, 1
_OF_SENSORS = (32803, 34892)  # color filter array, linear raw
_LAB = (8, 9, 10)  # CIELAB, ICCLAB, ITULAB
_CMYK = 5

Tags = Mapping[int, tuple[Any, ...]]
"""Tag -> its values."""


def read_tags(data: bytes) -> Tags:
    """The tags of the first page; {} if the file is not a TIFF or its first page is damaged."""
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return {}
    try:
        directory = ImageFileDirectory_v2(data[: 16 if data[2:4] in (b"+\0", b"\0+") else 8])
        file = io.BytesIO(data)
        file.seek(directory.next)
        directory.load(file)
        return {
            tag: value if isinstance(value, tuple) else (value,) for tag, value in directory.items()
        }
    except Exception:  # Pillow raises many types of error on damaged tags
        return {}


def refusal(tags: Tags) -> str:
    """The reason why the pixels of a TIFF cannot be converted to RGB; "" if they can."""
    bits, kinds = max(tags.get(BITS, (1,))), set(tags.get(SAMPLE_FORMAT, (1,)))
    bands, photometric = tags.get(SAMPLES, (1,))[0], tags.get(PHOTOMETRIC, (None,))[0]
    reduced = tags.get(SUBFILE_TYPE, (0,))[0] & 1
    if _DNG_VERSION in tags or photometric in _OF_SENSORS or (MAKE in tags and reduced):
        return describe(RAW)
    numbers = f"{bits}-bit integers" if bits > 16 else ""
    for kind, words in ((2, "signed {}-bit integers"), (3, "{}-bit floats"), (6, "complex floats")):
        numbers = words.format(bits) if kind in kinds else numbers
    gray = photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK)
    alpha = bands == 2 and tags.get(EXTRA_SAMPLES) in ((1,), (2,))
    if bands > (6 if photometric == _CMYK else 4) or (gray and bands > 1 and not alpha):
        numbers = f" of {numbers}" if numbers else ""
        return (
            f"is a TIFF of {bands} bands{numbers}, expected gray, RGB or CMYK; save one band as "
            "gray or three as RGB, of 8 or 16 bits"
        )
    if numbers:
        return (
            f"is a TIFF of {numbers}, whose white is undefined, expected 8 or 16 bits; scale it to "
            "those first"
        )
    if photometric in _LAB:
        return "is a TIFF in the color space LAB, expected RGB or gray; convert it to RGB first"
    return ""


def describe_unreadable(tags: Tags) -> str:
    """The reason why Pillow cannot open a TIFF that `refusal` admits; "" without tags."""
    if not tags:
        return ""
    bits, compression = max(tags.get(BITS, (1,))), tags.get(COMPRESSION, (1,))[0]
    return (
        f"is a TIFF that Pillow cannot read ({counted(tags.get(SAMPLES, (1,))[0], 'band')} of "
        f"{bits} bits, compression {compression}), expected 8 or 16 bits; convert it first"
    )


def is_wide_negative(tags: Tags) -> bool:
    """Whether 0 is white in pixels of more than 8 bits, which Pillow does not invert."""
    return tags.get(PHOTOMETRIC) == (_MIN_IS_WHITE,) and max(tags.get(BITS, (1,))) > 8


def as_min_is_black(data: bytes) -> bytes:
    """The file with the tag that 0 is black, because Pillow opens more layouts of that kind."""
    order = "<" if data[:2] == b"II" else ">"
    if struct.unpack(f"{order}H", data[2:4]) != (42,):
        return data  # BigTIFF
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from(f"{order}H", data, entry) == (PHOTOMETRIC,):
            value = struct.pack(f"{order}H", _MIN_IS_BLACK)
            return data[: entry + 8] + value + data[entry + 10 :]
    return data


def stated_white(tags: Tags) -> int:
    """The value of white that the tags of a gray or RGB TIFF state; 0 if they state none.

    9 to 15 bits per channel state it, and so does a largest value of 2^n - 1. Other largest values
    are those of one image, which TIFF 6.0 forbids to use for display ("MaxSampleValue").
    """
    bits = max(tags.get(BITS, (1,)))
    if 8 < bits < 16:
        return 2**bits - 1
    for tag in (S_MAX_SAMPLE_VALUE, MAX_SAMPLE_VALUE):
        if tag in tags and (white := max(tags[tag])) in {2**n - 1 for n in range(8, 16)}:
            return int(white)
    return 0
