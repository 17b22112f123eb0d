"""What is done to pictures on their way: shape, type, repeatability, and each by a picture that shows it."""

from __future__ import annotations

import numpy as np
import pytest

from tl.evaluation.postprocessing import POSTPROCESSING, compressed, cropped, flipped, resized


def pictures(n: int = 3, h: int = 37, w: int = 50) -> np.ndarray:
    """Smooth pictures with a little grain, each another."""
    rng = np.random.default_rng(0)
    waves = np.sin(np.arange(h)[:, None, None] / 9 + np.arange(n)[:, None, None, None]) * np.cos(
        np.arange(w)[:, None] / 7
    )
    return np.clip(128 + 90 * waves + rng.normal(0, 6, (n, h, w, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", POSTPROCESSING)
def test_every_treatment_gives_such_pictures_as_it_takes(name: str) -> None:
    treat, images = POSTPROCESSING[name], pictures()
    kept = images.copy()
    treated = treat(images)
    assert treated.dtype == np.uint8 and treated.shape == images.shape
    np.testing.assert_array_equal(images, kept)
    np.testing.assert_array_equal(treat(images), treated)
    np.testing.assert_array_equal(treat(images[1:2]), treated[1:2])  # whatever the batch
    assert treat(images[:0]).shape == (0, 37, 50, 3)
    assert (treated == images).all() == (name == "as they are")
    if name != "mirrored":  # each is a faint one
        assert np.abs(treated.astype(int) - images).mean() < 16


def test_compressed_loses_more_at_lower_quality() -> None:
    images = pictures()
    lost = [
        np.abs(compressed(images, quality).astype(int) - images).mean()
        for quality in (95, 75, 30, 5)
    ]
    assert 0 < lost[0] < lost[1] < lost[2] < lost[3]


def test_resized_loses_what_is_finest() -> None:
    board = np.indices((16, 16)).sum(axis=0) % 2 * np.uint8(255)
    board = np.repeat(board[None, :, :, None], 3, axis=3).astype(np.uint8)
    assert np.abs(resized(board, 0.5)[:, 2:-2, 2:-2].astype(int) - 127.5).max() < 32
    np.testing.assert_array_equal(resized(board, 1.0), board)


def test_cropped_enlarges_the_middle() -> None:
    columns = np.broadcast_to(
        np.arange(100, dtype=np.uint8)[None, None, :, None] * 2, (1, 40, 100, 3)
    )
    wanted = 2 * ((np.arange(100) + 0.5) * 0.5 + 25 - 0.5)  # twice the place that each column shows
    np.testing.assert_allclose(cropped(columns, 0.5)[0, 7, 2:-2, 1], wanted[2:-2], atol=1)
    np.testing.assert_array_equal(cropped(columns, 1.0), columns)


def test_flipped_exchanges_left_and_right() -> None:
    images = pictures()
    np.testing.assert_array_equal(flipped(images), images[:, :, ::-1])


def test_what_cannot_be_treated_is_refused() -> None:
    images = pictures(1)
    for call, words in (
        (lambda: compressed(images, 0), "from 1 to 100; got 0"),
        (lambda: resized(images, 1.5), r"in \(0, 1\]; got 1.5"),
        (lambda: cropped(images, 0.0), r"in \(0, 1\]; got 0.0"),
        (lambda: flipped(images[0]), r"uint8\[n h w 3\]; got uint8\[37, 50, 3\]"),
        (lambda: compressed(images / 255, 50), r"uint8\[n h w 3\]; got float64"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
