"""Postprocessing keeps shape and dtype, is repeatable, and each row does what its name says."""

from __future__ import annotations

import numpy as np
import pytest

from tl.evaluation.postprocessing import POSTPROCESSING, compressed, cropped, flipped, resized


def waves(n: int = 3, h: int = 37, w: int = 50) -> np.ndarray:
    """Different smooth images with a little noise, uint8[n h w 3]."""
    rng = np.random.default_rng(0)
    rows = np.sin(np.arange(h)[:, None, None] / 9 + np.arange(n)[:, None, None, None])
    columns = np.cos(np.arange(w)[:, None] / 7)
    values = 128 + 90 * rows * columns + rng.normal(0, 6, (n, h, w, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", POSTPROCESSING)
def test_every_row_keeps_shape_and_dtype_and_is_repeatable(name: str) -> None:
    process, images = POSTPROCESSING[name], waves()
    before = images.copy()
    processed = process(images)
    assert processed.dtype == np.uint8 and processed.shape == images.shape
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(process(images), processed)
    np.testing.assert_array_equal(process(images[1:2]), processed[1:2])  # independent of the batch
    assert process(images[:0]).shape == (0, 37, 50, 3)


@pytest.mark.parametrize("name", POSTPROCESSING)
def test_every_row_but_the_identity_changes_images_a_little(name: str) -> None:
    images = waves()
    processed = POSTPROCESSING[name](images)
    assert (processed == images).all() == (name == "as they are")
    if name != "mirrored":
        assert np.abs(processed.astype(int) - images).mean() < 16


def test_jpeg_loses_more_at_lower_quality() -> None:
    images = waves()
    change = lambda quality: np.abs(compressed(images, quality).astype(int) - images).mean()
    assert 0 < change(95) < change(75) < change(30) < change(5)


def test_resizing_removes_the_finest_detail() -> None:
    board = np.indices((16, 16)).sum(axis=0) % 2 * np.uint8(255)
    board = np.repeat(board[None, :, :, None], 3, axis=3).astype(np.uint8)
    assert np.abs(resized(board, 0.5)[:, 2:-2, 2:-2].astype(int) - 127.5).max() < 32
    np.testing.assert_array_equal(resized(board, 1.0), board)


def test_cropping_enlarges_the_center() -> None:
    ramp = np.arange(100, dtype=np.uint8)[None, None, :, None] * 2
    columns = np.broadcast_to(ramp, (1, 40, 100, 3))
    # Twice the position that each column shows.
    expected = 2 * ((np.arange(100) + 0.5) * 0.5 + 25 - 0.5)
    np.testing.assert_allclose(cropped(columns, 0.5)[0, 7, 2:-2, 1], expected[2:-2], atol=1)
    np.testing.assert_array_equal(cropped(columns, 1.0), columns)


def test_mirroring_exchanges_left_and_right() -> None:
    images = waves()
    np.testing.assert_array_equal(flipped(images), images[:, :, ::-1])


def test_wrong_arguments_are_refused() -> None:
    images = waves(1)
    for call, message in (
        (lambda: compressed(images, 0), "got 0, expected 1 to 100"),
        (lambda: resized(images, 1.5), r"got 1.5, expected a number in \(0, 1\]"),
        (lambda: cropped(images, 0.0), r"got 0.0, expected a number in \(0, 1\]"),
        (lambda: flipped(images[0]), r"got uint8\[37, 50, 3\], expected uint8\[n h w 3\]"),
        (lambda: compressed(images / 255, 50), r"got float64.*expected uint8\[n h w 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
