"""JPEG's arithmetic against Pillow's files, and what its gradient lets through."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from tl import data, pixels
from tl.ascent import jpeg
from tl.evaluation.postprocessing import compressed


def by_file(image: np.ndarray, quality: int) -> np.ndarray:
    return compressed(image[None], quality)[0]


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """A window of one that is as large as it is, with much detail: uint8[97 130 3], neither side a multiple of two blocks."""
    try:
        path = data.photographs()[7].path
    except ValueError as error:
        pytest.skip(str(error))
    return np.ascontiguousarray(data.decode(path)[60:157, 40:170])


def test_a_photograph_is_what_pillows_file_shows(photograph: np.ndarray) -> None:
    decoded, image01 = jax.jit(jpeg.decoded), pixels.to_images01(photograph)
    for quality in (10, 30, 75, 95):
        found = np.asarray(decoded(image01, quality)) * 255
        assert np.abs(found - np.rint(found)).max() < 1e-3  # 8-bit levels
        away = np.abs(np.rint(found).astype(int) - by_file(photograph, quality))
        assert away.max() <= 3 and (away > 0).mean() < 1e-3, (
            quality
        )  # 0.0001 at most with Pillow 13's libjpeg-turbo 3.2
        assert (
            np.abs(photograph.astype(int) - by_file(photograph, quality)).mean() > 0.5
        )  # and there was something to do


@pytest.mark.parametrize("shape", [(7, 9), (1, 5)])
def test_small_pictures_of_noise_and_plain_colours(shape: tuple[int, int]) -> None:
    """Every block touches an edge; libjpeg's cut-offs and ties decide."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    plain = np.broadcast_to(np.array([255, 0, 31], np.uint8), noise.shape)
    decoded = jax.jit(jpeg.decoded)
    for image in (noise, plain):
        for quality in (1, 40, 100):
            found = np.rint(np.asarray(decoded(pixels.to_images01(image), quality)) * 255).astype(
                int
            )
            away = np.abs(found - by_file(image, quality))
            assert away.max() <= 1 and (away > 0).mean() < 0.01, quality


def test_the_steps_are_those_that_a_file_names() -> None:
    file = io.BytesIO()
    steps = jax.jit(
        lambda quality: [jpeg.steps(table, quality) for table in (jpeg.LUMA, jpeg.CHROMA)]
    )
    for quality in (1, 24, 49, 50, 51, 75, 95, 100):
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
        opened = Image.open(file)
        assert isinstance(opened, JpegImagePlugin.JpegImageFile)
        for i, found in enumerate(steps(quality)):
            np.testing.assert_array_equal(found.reshape(-1), opened.quantization[i])


def test_gradients_pass_straight_through_but_for_the_blur_of_the_chroma() -> None:
    rng = np.random.default_rng(0)
    image01 = (
        jnp.asarray(rng.random((32, 32, 3)), jnp.float32).at[:8].set(1.0)
    )  # a part of it at the edge of the range
    moved = jax.jit(lambda v: jax.jvp(lambda x: jpeg.decoded(x, 5), (image01,), (v,))[1])
    grain = np.repeat(rng.normal(size=(32, 32, 1)), 3, axis=2).astype(np.float32)
    np.testing.assert_allclose(moved(grain), grain, atol=2e-3)  # grey: the luma alone
    tint = np.broadcast_to(np.array([1.0, -0.5, 0.2], np.float32), grain.shape)
    np.testing.assert_allclose(moved(tint), tint, atol=2e-3)  # a colour without detail
    green = -(0.299 + 0.114) / 0.587  # red and blue that leave the luma as it is
    board = (np.indices((32, 32)).sum(axis=0) % 2 * 2.0 - 1.0)[:, :, None] * np.array(
        [1.0, green, 1.0]
    )
    assert np.abs(np.asarray(moved(board.astype(np.float32)))).max() < 2e-3
