"""Pictures of maps: each channel on its own scale, all on one, and the strongest first."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tl import reporting
from tl.visualize import maps


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """A ReLU's map f32[3 5 7], channel 4 flat and channel 6 the strongest."""
    found = np.maximum(np.random.default_rng(0).standard_normal((3, 5, 7)), 0).astype(np.float32)
    found[..., 4], found[..., 6] = 0.25, found[..., 6] + 9
    return found


def test_strongest_are_by_mean_and_equals_by_index(drawn):
    order = maps.strongest(drawn, 4)
    assert order[0] == 6 and (np.diff(drawn.mean(axis=(0, 1))[order]) <= 0).all()
    assert sorted(maps.strongest(drawn, 99)) == list(range(7))
    assert maps.strongest(np.ones((2, 2, 5), np.float32), 3).tolist() == [0, 1, 2]


def test_each_channel_is_stretched_to_its_own_range(drawn):
    tiles = maps.tiles(drawn, [6, 0, 4])
    assert tiles.shape == (3, 3, 5) and tiles.dtype == np.float32
    assert [(t.min(), t.max()) for t in tiles[:2]] == [(0, 1), (0, 1)] and not tiles[2].any()
    low, high = drawn[..., 0].min(), drawn[..., 0].max()
    np.testing.assert_allclose(tiles[1], (drawn[..., 0] - low) / (high - low), rtol=1e-6)
    reporting.contact_sheet(tiles, columns=2)


def test_flat_has_positions_down_channels_across_and_one_scale(drawn):
    flat = maps.flat(drawn)
    assert flat.shape == (15, 7) and flat.dtype == np.float32
    np.testing.assert_allclose(
        flat[1 * 5 + 2, 3], drawn[1, 2, 3] / drawn.max(), rtol=1e-6
    )  # 0 is black
    signed = maps.flat(drawn - 1)
    assert (signed.min(), signed.max()) == (0, 1) and not maps.flat(
        np.zeros((2, 2, 3), np.float32)
    ).any()


def test_what_is_no_map_is_refused(drawn):
    broken = drawn.copy()
    broken[0, 0, 0] = np.nan
    uses = (maps.flat, lambda m: maps.tiles(m, [0]), lambda m: maps.strongest(m, 1))
    for use in uses:
        with pytest.raises(ValueError, match=r"\[1, 3, 5, 7\]: index the batch"):
            use(drawn[None])
        with pytest.raises(ValueError, match="finite"):
            use(broken)
        use(jnp.asarray(drawn, jnp.bfloat16))
