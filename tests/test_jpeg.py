"""The traced JPEG equals Pillow's files, and gradients pass through its roundings."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from tests import toys
from tl import data, pixels
from tl.ascent import jpeg
from tl.evaluation.postprocessing import compressed


def decoded_file(image: np.ndarray, quality: int) -> np.ndarray:
    return compressed(image[None], quality)[0]


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """A detailed window of a photograph, uint8[97 130 3].

    Neither side is a multiple of two blocks.
    """
    with toys.package_or_skip():
        path = data.photographs()[7].path
    return np.ascontiguousarray(data.decode(path)[60:157, 40:170])


def test_a_photograph_equals_pillows_file(photograph: np.ndarray) -> None:
    decoded, image01 = jax.jit(jpeg.decoded), pixels.to_images01(photograph)
    for quality in (10, 30, 75, 95):
        levels, file = (
            np.asarray(decoded(image01, quality)) * 255,
            decoded_file(photograph, quality),
        )
        assert np.abs(levels - np.rint(levels)).max() < 1e-3
        difference = np.abs(np.rint(levels).astype(int) - file)
        # At most 0.0001 differ with Pillow 13's libjpeg-turbo 3.2.
        assert difference.max() <= 3 and (difference > 0).mean() < 1e-3, quality
        # The file itself differs from the photograph.
        assert np.abs(photograph.astype(int) - file).mean() > 0.5


@pytest.mark.parametrize("shape", [(7, 9), (1, 5)])
def test_small_images_of_noise_and_plain_color_equal_pillows_files(shape: tuple[int, int]) -> None:
    """Every block touches an edge, and libjpeg's clipping and ties decide."""
    noise = toys.noise(*shape, 3)
    plain = np.broadcast_to(np.array([255, 0, 31], np.uint8), noise.shape)
    decoded = jax.jit(jpeg.decoded)
    for image in (noise, plain):
        for quality in (1, 40, 100):
            levels = np.rint(np.asarray(decoded(pixels.to_images01(image), quality)) * 255)
            difference = np.abs(levels.astype(int) - decoded_file(image, quality))
            assert difference.max() <= 1 and (difference > 0).mean() < 0.01, quality


def test_the_quantization_steps_equal_those_in_a_file() -> None:
    tables = (jpeg.LUMA, jpeg.CHROMA)
    steps = jax.jit(lambda quality: [jpeg.steps(table, quality) for table in tables])
    for quality in (1, 24, 49, 50, 51, 75, 95, 100):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
        opened = Image.open(file)
        assert isinstance(opened, JpegImagePlugin.JpegImageFile)
        for i, expected in enumerate(steps(quality)):
            np.testing.assert_array_equal(expected.reshape(-1), opened.quantization[i])


def test_gradients_pass_unchanged_except_for_the_blur_of_the_chroma() -> None:
    rng = np.random.default_rng(0)
    # A part of the image is at the edge of the range.
    image01 = jnp.asarray(rng.random((32, 32, 3)), jnp.float32).at[:8].set(1.0)
    tangent = jax.jit(lambda v: jax.jvp(lambda x: jpeg.decoded(x, 5), (image01,), (v,))[1])
    gray = np.repeat(rng.normal(size=(32, 32, 1)), 3, axis=2).astype(np.float32)
    np.testing.assert_allclose(tangent(gray), gray, atol=2e-3)  # luma only
    tint = np.broadcast_to(np.array([1.0, -0.5, 0.2], np.float32), gray.shape)
    np.testing.assert_allclose(tangent(tint), tint, atol=2e-3)  # a color without detail
    # Red and blue changes that leave the luma unchanged.
    green = -(0.299 + 0.114) / 0.587
    signs = np.indices((32, 32)).sum(axis=0) % 2 * 2.0 - 1.0
    board = signs[:, :, None] * np.array([1.0, green, 1.0])
    assert np.abs(np.asarray(tangent(board.astype(np.float32)))).max() < 2e-3
