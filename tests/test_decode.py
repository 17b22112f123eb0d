"""`tl.data.decode`: the pixel values of each kind of file, and errors for damaged files."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests import toys
from tl.data import ImageError, decode
from tl.data.decode import MAX_PIXELS, Header, decode_reduced, header

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def ramp(height: int = 12, width: int = 16) -> np.ndarray:
    """An image without symmetry: red grows to the right, green downward; blue at the upper left."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    pixels[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    pixels[: height // 3, : width // 3, 2] = 255
    return pixels


@given(
    st.integers(2, 20),
    st.integers(2, 20),
    st.sampled_from(["PNG", "BMP", "TIFF", "PPM"]),
    st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=30)
def test_lossless_rgb_is_restored_exactly(height: int, width: int, kind: str, seed: int) -> None:
    pixels = toys.noise(height, width, 3, seed=seed)
    decoded = decode(toys.encoded(Image.fromarray(pixels), kind))
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_the_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = (
        {"lossless": True}
        if kind == "WEBP"
        else {"quality": 95, "subsampling": 0}
        if kind == "JPEG"
        else {}
    )
    data = toys.encoded(Image.fromarray(ramp()), kind, exif=exif, **options)
    decoded = decode(data)
    assert decoded.shape == ((12, 16, 3) if orientation < 5 else (16, 12, 3))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(decoded, np.asarray(upright))
    # EXIF 2.3 defines the visual corner of the first row and column, which is blue here.
    corners = ((0, 0), (0, -1), (-1, -1), (-1, 0))
    marks = {corner: int(decoded[corner][2]) for corner in corners}
    assert max(marks, key=lambda c: marks[c]) == (*corners, *corners)[orientation - 1]


def test_a_damaged_exif_block_is_ignored() -> None:
    data = toys.encoded(
        Image.fromarray(ramp()), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage"
    )
    np.testing.assert_array_equal(decode(data), ramp())


def test_gray_is_repeated() -> None:
    gray = ramp()[..., 0]
    np.testing.assert_array_equal(
        decode(toys.encoded(Image.fromarray(gray), "PNG")), np.repeat(gray[..., None], 3, -1)
    )
    one_bit = Image.fromarray(gray > 100)
    np.testing.assert_array_equal(
        decode(toys.encoded(one_bit, "PNG"))[..., 2], np.where(gray > 100, 255, 0)
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_gray_is_scaled_and_not_clipped(kind: str) -> None:
    wide = np.array([[0, 128, 129, 257], [1000, 32768, 65406, 65535]], np.uint16)
    decoded = decode(toys.encoded(Image.fromarray(wide), kind))
    # 129 / 257 > 1/2; no value lies at a half, because 257 is odd.
    expected = np.rint(wide / 257.0).astype(np.uint8)
    np.testing.assert_array_equal(decoded, np.repeat(expected[..., None], 3, -1))


def test_transparency_is_composited_on_white() -> None:
    rgba = np.zeros((2, 4, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 255, [255, 0, 128, 51]  # red at four opacities
    decoded = decode(toys.encoded(Image.fromarray(rgba), "PNG"))
    for column, alpha in enumerate((1.0, 0.0, 128 / 255, 0.2)):
        rest = 255 * (1 - alpha)
        np.testing.assert_allclose(decoded[0, column], [255, rest, rest], atol=1)


def test_transparent_gray_is_composited_on_white() -> None:
    alpha = np.array([[255, 0], [0, 255]], np.uint8)
    image = Image.fromarray(np.stack([np.zeros((2, 2), np.uint8), alpha], -1))
    np.testing.assert_array_equal(decode(toys.encoded(image, "PNG"))[..., 1], 255 - alpha)


def palette_image() -> Image.Image:
    """Red and green above blue and green."""
    palette = Image.new("P", (2, 2))
    palette.putdata([0, 1, 2, 1])
    palette.putpalette([*RED, *GREEN, *BLUE])
    return palette


def test_a_palette_becomes_rgb() -> None:
    expected = np.array([[RED, GREEN], [BLUE, GREEN]], np.uint8)
    np.testing.assert_array_equal(decode(toys.encoded(palette_image(), "PNG")), expected)


@pytest.mark.parametrize(
    "kind, transparency", [("PNG", 1), ("PNG", bytes([255, 0, 255])), ("GIF", 1)]
)
def test_a_transparent_palette_entry_becomes_white(kind: str, transparency: int | bytes) -> None:
    expected = np.array([[RED, WHITE], [BLUE, WHITE]], np.uint8)
    data = toys.encoded(palette_image(), kind, transparency=transparency)
    np.testing.assert_array_equal(decode(data), expected)


def test_a_key_color_becomes_white() -> None:
    expected = np.array([[RED, WHITE], [BLUE, WHITE]], np.uint8)
    data = toys.encoded(palette_image().convert("RGB"), "PNG", transparency=GREEN)
    np.testing.assert_array_equal(decode(data), expected)


def test_a_key_value_of_gray_becomes_white() -> None:
    gray = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").copy()
    wide = Image.fromarray(np.array([[0, 25700], [514, 25700]], np.uint16))
    for image, key in ((gray, 1), (wide, 25700)):
        decoded = decode(toys.encoded(image, "PNG", transparency=key))
        np.testing.assert_array_equal(decoded[..., 0], [[0, 255], [2, 255]])


@pytest.mark.parametrize(
    "cmyk, rgb",
    [
        ((0, 0, 0, 0), WHITE),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 0, 255, 0), (255, 255, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
    ],
    ids=["paper", "cyan", "yellow", "black"],
)
def test_a_cmyk_jpeg_is_read_as_inverted(cmyk: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    """Pillow writes the Adobe marker and inverted values."""
    data = toys.encoded(Image.new("CMYK", (16, 16), cmyk), "JPEG", quality=95)
    assert b"Adobe" in data
    assert np.abs(decode(data).astype(int) - rgb).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "BMP"])
def test_a_file_with_another_suffix_is_read_by_content(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(
        toys.encoded(
            Image.new("RGB", (9, 5), BLUE), kind, **({"lossless": True} if kind == "WEBP" else {})
        )
    )
    np.testing.assert_array_equal(
        decode(path), np.broadcast_to(np.array(BLUE, np.uint8), (5, 9, 3))
    )


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in (RED, GREEN, BLUE)]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = toys.encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    np.testing.assert_array_equal(decode(data), np.broadcast_to(np.array(RED, np.uint8), (4, 6, 3)))


NOISE = Image.fromarray(toys.noise(64, 64, 3))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.5, 0.9])
def test_a_truncated_file_is_an_error(kind: str, fraction: float) -> None:
    data = toys.encoded(NOISE, kind)
    with pytest.raises(ImageError, match="truncated|not a readable image|holds"):
        decode(data[: int(len(data) * fraction)])


def bomb_png(side: int) -> bytes:
    """A PNG with `side` x `side` pixels in its header, a valid checksum and little data."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(b"0" * 99))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello, I am a text file", "not a readable image .it begins with b'hello, I'"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG file; convert it to JPEG or PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is an EPS file; convert it to"),
        (toys.encoded(Image.new("RGB", (1, 1)), "PNG"), "is 1 x 1 pixels, expected at least 2 x 2"),
        (toys.encoded(Image.new("L", (9, 1)), "JPEG"), "is 9 x 1 pixels"),
        (bomb_png(10_000), "is 10000 x 10000 pixels, expected at most 89,478,485"),
        (bomb_png(100_000), "has more than 178,956,970 pixels"),
        (
            toys.encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"),
            "whose white is undefined",
        ),
        (
            toys.encoded(Image.fromarray(np.zeros((4, 4), np.int32)), "TIFF"),
            "whose white is undefined",
        ),
    ],
    ids=["empty", "text", "svg", "eps", "1x1", "9x1", "bomb", "big bomb", "float", "int32"],
)
def test_a_file_that_is_not_a_usable_image_is_an_error(
    data: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        decode(data)
    assert str(caught.value) == caught.value.why
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
        decode(path)
    assert str(caught.value) == f"{path}: {caught.value.why}"
    assert "\n" not in str(caught.value)


def test_a_folder_a_pipe_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageError, match=r"folder\.jpg: is a folder"):
        decode(tmp_path / "folder.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match=r"pipe\.jpg: is a pipe or device"):
        decode(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match=r"none\.jpg: cannot be read .No such file"):
        decode(str(tmp_path / "none.jpg"))


def test_warnings_of_pillow_are_hidden() -> None:
    """With filters that would print warnings, and with filters that would raise them."""
    noisy = Image.new("P", (4, 4))
    noisy.putpalette([*RED, *GREEN])
    data = toys.encoded(noisy, "PNG", transparency=b"\x00\xff")
    for action in ("always", "error"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter(action)
            decode(data)
            # Two filters before the one that decoding inserted.
            warnings.simplefilter("default")
            warnings.simplefilter(action)
            with pytest.raises(ImageError, match="expected at most 89,478,485"):
                decode(bomb_png(int(MAX_PIXELS**0.5) + 100))
            assert not caught


@given(st.integers(0, 2**31), st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF"]))
@settings(deadline=None, max_examples=60)
def test_a_damaged_file_gives_an_image_or_an_image_error(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    data = np.frombuffer(toys.encoded(NOISE.resize((24, 24)), kind), np.uint8).copy()
    positions = rng.integers(0, len(data) if rng.random() < 0.5 else min(len(data), 200), 4)
    data[positions] = rng.integers(0, 256, 4, np.uint8)
    try:
        decoded = decode(data.tobytes())
    except ImageError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 3
    assert decoded.shape[2] == 3


# ---- reduced decoding and header ----


@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_decoding_gives_a_smaller_image(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = toys.encoded(Image.fromarray(ramp(480, 640)), "JPEG", exif=exif, quality=95)
    small, whole = decode_reduced(data, 64), decode(data)
    # A reduction to 1/8 would be less than 64 pixels high.
    assert small.shape == ((120, 160, 3) if orientation == 1 else (160, 120, 3))
    means = whole.reshape(small.shape[0], 4, small.shape[1], 4, 3).mean(axis=(1, 3))
    assert np.abs(means - small).mean() < 2
    assert decode_reduced(data, 300).shape == whole.shape
    png = toys.encoded(Image.fromarray(ramp()), "PNG")
    np.testing.assert_array_equal(decode_reduced(png, 4), decode(png))


def test_reduced_decoding_of_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(
        toys.encoded(Image.fromarray(ramp(480, 640)), "JPEG")[:-3000]
    )
    with pytest.raises(ImageError, match="cut.jpg: is a damaged or truncated JPEG"):
        decode_reduced(tmp_path / "cut.jpg", 32)


def test_the_header_has_format_mode_and_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    (tmp_path / "a.png").write_bytes(
        toys.encoded(Image.fromarray(ramp()).convert("L"), "JPEG", exif=exif)
    )
    assert header(tmp_path / "a.png") == Header("JPEG", "L", False, False, 8)
    rgba = toys.encoded(Image.fromarray(ramp()).convert("RGBA"), "PNG")
    assert header(rgba) == Header("PNG", "RGBA", True, False, 1)
    with pytest.raises(ImageError, match="is empty"):
        header(b"")
