"""Feature maps as images: each channel on its own scale, all on one, and the strongest first."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tl import reporting
from tl.visualize import maps


@pytest.fixture(scope="module")
def feature_map() -> np.ndarray:
    """A map after a ReLU, f32[3 5 7]; channel 4 is constant, and channel 6 is the strongest."""
    values = np.maximum(np.random.default_rng(0).standard_normal((3, 5, 7)), 0).astype(np.float32)
    values[..., 4], values[..., 6] = 0.25, values[..., 6] + 9
    return values


def test_strongest_channels_are_sorted_by_mean_and_ties_by_index(feature_map):
    order = maps.strongest(feature_map, 4)
    assert order[0] == 6 and (np.diff(feature_map.mean(axis=(0, 1))[order]) <= 0).all()
    assert sorted(maps.strongest(feature_map, 99)) == list(range(7))
    assert maps.strongest(np.ones((2, 2, 5), np.float32), 3).tolist() == [0, 1, 2]


def test_each_channel_is_scaled_to_its_own_range(feature_map):
    tiles = maps.tiles(feature_map, [6, 0, 4])
    assert tiles.shape == (3, 3, 5) and tiles.dtype == np.float32
    assert [(t.min(), t.max()) for t in tiles[:2]] == [(0, 1), (0, 1)] and not tiles[2].any()
    low, high = feature_map[..., 0].min(), feature_map[..., 0].max()
    np.testing.assert_allclose(tiles[1], (feature_map[..., 0] - low) / (high - low), rtol=1e-6)
    reporting.contact_sheet(tiles, columns=2)


def test_a_flat_map_has_one_scale_rows_of_positions_and_columns_of_channels(feature_map):
    flat = maps.flat(feature_map)
    assert flat.shape == (15, 7) and flat.dtype == np.float32
    # 0 is black.
    np.testing.assert_allclose(
        flat[1 * 5 + 2, 3], feature_map[1, 2, 3] / feature_map.max(), rtol=1e-6
    )
    signed = maps.flat(feature_map - 1)
    assert (signed.min(), signed.max()) == (0, 1) and not maps.flat(
        np.zeros((2, 2, 3), np.float32)
    ).any()


def test_batches_and_nan_are_errors(feature_map):
    broken = feature_map.copy()
    broken[0, 0, 0] = np.nan
    uses = (maps.flat, lambda m: maps.tiles(m, [0]), lambda m: maps.strongest(m, 1))
    for use in uses:
        with pytest.raises(
            ValueError, match=r"got \[1, 3, 5, 7\], expected \[h w c\]; index the batch"
        ):
            use(feature_map[None])
        with pytest.raises(ValueError, match="finite"):
            use(broken)
        use(jnp.asarray(feature_map, jnp.bfloat16))
