"""Augmentation: pictures in [0, 1], the same for the same key whatever the batch or the devices; and what each one is."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.data.augment import (
    AUGMENTATIONS,
    GREY,
    PRESETS,
    Augment,
    color,
    make_augment,
    random_resized_crop,
    shift,
)

SIZE, B, K = 14, 6, 3
TARGETS = jax.nn.one_hot(jnp.arange(B) % K, K)
apply = functools.partial(jax.jit, static_argnums=0)(Augment.apply)


def images(side: int, *, n: int = B, channels: int = 3, seed: int = 0) -> jax.Array:
    """Noise, with both ends of the range in it."""
    return jnp.round(jax.random.uniform(jax.random.key(seed), (n, side, side, channels)) * 4) / 4


def run(
    augment: Augment, seed: int, valid: jax.Array | None = None
) -> tuple[np.ndarray, np.ndarray]:
    valid = jnp.ones(B, bool) if valid is None else valid
    out = apply(augment, jax.random.key(seed), images(augment.source_size), TARGETS, valid)
    return np.asarray(out[0]), np.asarray(out[1])


# --------------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("word", ["none", *AUGMENTATIONS, "strong"])
def test_every_row_gives_pictures_and_targets_and_is_a_function_of_the_key(word: str) -> None:
    augment, seen = make_augment(word, size=SIZE), []
    for seed in range(4):
        pictures, targets = run(augment, seed)
        assert (
            pictures.shape == (B, SIZE, SIZE, 3) and pictures.dtype == targets.dtype == np.float32
        )
        assert pictures.min() >= 0 and pictures.max() <= 1  # NaN fails both
        np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
        seen.append(pictures)
    again, _ = run(augment, 0)
    np.testing.assert_array_equal(again, seen[0])
    differ = [not np.array_equal(seen[0], other) for other in seen[1:]]
    assert any(differ) == (word != "none")


@pytest.mark.parametrize("word", ["crop", "dihedral", "shift", "colour", "erasing"])
def test_a_slot_knows_nothing_of_the_batch(word: str) -> None:
    augment = make_augment(word, size=SIZE)
    x, key = images(augment.source_size), jax.random.key(3)
    whole, _ = apply(augment, key, x, TARGETS, jnp.ones(B, bool))
    part, _ = apply(augment, key, x[:2], TARGETS[:2], jnp.ones(2, bool))
    np.testing.assert_allclose(whole[:2], part, atol=1e-6)
    alike = jnp.tile(x[:1], (B, 1, 1, 1))
    kinds = [
        np.unique(apply(augment, jax.random.key(k), alike, TARGETS, jnp.ones(B, bool))[0], axis=0)
        for k in range(4)
    ]
    assert max(map(len, kinds)) > 1  # each slot draws for itself


def test_other_channels_than_rgb() -> None:
    augment = make_augment("colour,erasing", size=SIZE)
    x = images(augment.source_size, channels=5)
    pictures, _ = apply(augment, jax.random.key(0), x, TARGETS, jnp.ones(B, bool))
    assert pictures.shape == (B, SIZE, SIZE, 5)
    assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tl.data.augment import make_augment
assert len(jax.devices()) == 8
augment, n = make_augment("crop,flip,colour,cutmix", size=14), 16
x = jax.random.uniform(jax.random.key(1), (n, augment.source_size, augment.source_size, 3))
batch = x, jax.nn.one_hot(jnp.arange(n), n), jnp.arange(n) < 13
there = NamedSharding(jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,)), PartitionSpec("batch"))
one = jax.jit(augment.apply)(jax.random.key(0), *batch)
eight = jax.jit(augment.apply, out_shardings=there)(jax.random.key(0), *jax.device_put(batch, there))
for a, b in zip(one, eight, strict=True):
    assert b.sharding.is_equivalent_to(there, b.ndim)
    np.testing.assert_allclose(a, b, atol=1e-6)
"""


def test_eight_devices_do_what_one_does() -> None:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("word, count", [("none", 1), ("flip", 2), ("dihedral", 8)])
def test_views_are_all_that_can_come_bit_for_bit(word: str, count: int) -> None:
    augment = make_augment(word, size=SIZE)
    views, x = augment.views, images(SIZE)
    assert views is not None and len(views) == count
    each = np.stack([view(x) for view in views])
    assert len(np.unique(each[:, 0], axis=0)) == count  # all of them different
    for seed in range(5):
        choice = np.asarray(augment.choose(jax.random.key(seed), B))
        assert choice.dtype == np.int32 and choice.shape == (B,)
        np.testing.assert_array_equal(run(augment, seed)[0], each[choice, np.arange(B)])
    drawn = np.bincount(np.asarray(augment.choose(jax.random.key(0), 4000)), minlength=count)
    assert len(drawn) == count and abs(drawn - 4000 / count).max() < 160  # five standard deviations


@pytest.mark.parametrize("word", ["crop", "flip,colour", "shift", "strong", "flip,dihedral"])
def test_what_cannot_be_counted_has_no_views(word: str) -> None:
    augment = make_augment(word, size=SIZE)
    assert augment.views is None
    with pytest.raises(ValueError, match="cannot be counted"):
        augment.choose(jax.random.key(0), 2)


# ------------------------------------------------------------------------------------------------------- each of them


def test_a_crop_of_everything_is_a_resize() -> None:
    """The same, smaller and larger, against jax.image."""
    x = images(24)
    for size in (10, 40):
        out = jax.jit(random_resized_crop(size, (1.0, 1.0), (1.0, 1.0)))(jax.random.key(0), x)
        np.testing.assert_allclose(
            out, jax.image.resize(x, (B, size, size, 3), "linear"), atol=1e-5
        )


def test_boxes_have_the_area_and_shape_asked_for() -> None:
    """On a picture of coordinates a crop shows which box it took."""
    n, side, size = 400, 64, 32
    coordinates = np.stack(
        np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2, indexing="ij"), axis=-1
    )
    coordinates = jnp.asarray(np.broadcast_to(coordinates, (n, side, side, 2)), jnp.float32)
    out = np.asarray(jax.jit(random_resized_crop(size))(jax.random.key(0), coordinates))
    # The slope inside, away from the edges' half pixels, times the number of pixels is the side of the box.
    height = (out[:, -4, size // 2, 0] - out[:, 3, size // 2, 0]) / (size - 7) * size
    width = (out[:, size // 2, -4, 1] - out[:, size // 2, 3, 1]) / (size - 7) * size
    area, ratio = height * width, width / height
    assert area.min() > 0.24 and area.max() < 1.01
    assert ratio.min() > 0.74 and ratio.max() < 1.35
    assert area.min() < 0.3 and area.max() > 0.9 and 0.55 < np.median(area) < 0.65
    assert abs(np.log(ratio).mean()) < 0.05
    top = out[:, size // 2, size // 2, 0] - height / 2
    assert top.min() > -0.02 and (top + height).max() < 1.02
    assert np.corrcoef(top / (1 - height + 1e-3), height)[0, 1] < 0.3  # anywhere that it fits


def test_a_wide_image_falls_back_on_its_middle() -> None:
    """No box of 3/4 to 4/3 with all of the area fits into 1 x 4: the largest that does, centred."""
    x = jnp.broadcast_to(jnp.arange(64.0)[None, None, :, None] / 64, (1, 16, 64, 1))
    out = jax.jit(random_resized_crop(16, (1.0, 1.0)))(jax.random.key(0), x)
    box = x[:, :, 32 - 11 : 32 + 11]
    assert float(abs(out.mean() - box.mean())) < 0.01
    assert float(out.max() - out.min()) == pytest.approx(float(box.max() - box.min()), abs=0.02)


moved = {pixels: jax.jit(shift(pixels)) for pixels in (1, 3)}


@given(st.sampled_from([1, 3]), st.integers(0, 50))
def test_a_shift_moves_whole_pixels_over_the_mirrored_image(pixels: int, seed: int) -> None:
    x = images(5, n=1, seed=seed)
    (out,) = np.asarray(moved[pixels](jax.random.key(seed), x))
    padded = np.pad(
        np.asarray(x[0]), ((pixels, pixels), (pixels, pixels), (0, 0)), mode="symmetric"
    )
    moves = [
        padded[i : i + 5, j : j + 5] for i in range(2 * pixels + 1) for j in range(2 * pixels + 1)
    ]
    assert any(np.array_equal(out, move) for move in moves)


def test_colour_does_what_torchvision_does() -> None:
    """One factor at a time, solved for from the result, is in its range and explains every pixel."""
    x = 0.25 + 0.3 * images(SIZE)  # far enough from 0 and 1 that nothing is clipped
    gray = np.sum(np.asarray(x) * GREY, axis=-1, keepdims=True)
    anchors = {
        "brightness": 0.0 * gray,
        "contrast": gray.mean(axis=(1, 2), keepdims=True),
        "saturation": gray,
    }
    for name, anchor in anchors.items():
        strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, name: 0.3}
        out = np.asarray(jax.jit(color(**strengths))(jax.random.key(0), x))
        factor = ((out - anchor) * (x - anchor)).sum(axis=(1, 2, 3)) / ((x - anchor) ** 2).sum(
            axis=(1, 2, 3)
        )
        np.testing.assert_allclose(
            out, anchor + factor[:, None, None, None] * (x - anchor), atol=2e-4
        )
        assert factor.min() >= 0.699 and factor.max() <= 1.301 and factor.std() > 0.02


def test_erasing_puts_boxes_of_noise() -> None:
    augment = make_augment("erasing", size=40)
    x = jnp.full((400, 40, 40, 3), 2.0)  # no picture: whatever is not 2 was erased
    out, _ = apply(augment, jax.random.key(0), x, jnp.ones((400, 1)), jnp.ones(400, bool))
    gone = np.asarray(out != 2.0).all(axis=-1)
    assert np.array_equal(gone, np.asarray(out != 2.0).any(axis=-1))
    hit = gone.any(axis=(1, 2))
    assert 0.17 < hit.mean() < 0.33
    for mask in gone[hit]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # a box
        assert 0.005 < mask.mean() < 0.40
    noise = np.asarray(out)[gone]
    assert noise.min() >= 0 and noise.max() < 1 and abs(noise.mean() - 0.5) < 0.01


@pytest.mark.parametrize("word", ["mixup", "cutmix"])
@pytest.mark.parametrize("valid", [0b111111, 0b101101, 0b000100, 0b000000], ids=bin)
def test_a_mix_takes_only_pictures_and_tells_the_targets(word: str, valid: int) -> None:
    """Slot i is all of level i / 8; the level of a mix is that of its target."""
    there = np.array([valid >> i & 1 == 1 for i in range(B)])
    flat = jnp.broadcast_to(
        jnp.arange(B, dtype=jnp.float32)[:, None, None, None] / 8, (B, SIZE, SIZE, 1)
    )
    own = jnp.eye(B)
    partners = set()
    for seed in range(6):
        pictures, targets = apply(
            make_augment(word, size=SIZE), jax.random.key(seed), flat, own, jnp.asarray(there)
        )
        targets = np.asarray(targets)
        np.testing.assert_allclose(
            targets @ (np.arange(B) / 8), np.mean(pictures, axis=(1, 2, 3)), atol=1e-5
        )
        np.testing.assert_array_equal(np.asarray(pictures)[~there], np.asarray(flat)[~there])
        np.testing.assert_array_equal(targets[~there], np.asarray(own)[~there])
        assert not targets[np.ix_(there, ~there)].any()  # no padding in a picture
        if word == "cutmix":
            assert np.isin(np.unique(pictures), np.arange(B) / 8).all()
        partners |= {(i, j) for i, j in np.argwhere(targets > 0) if i != j}
    assert len(partners) > (2 * there.sum() if there.sum() > 2 else -1)  # others each time


# ------------------------------------------------------------------------------------------------------------- by name


def test_names_and_presets() -> None:
    assert make_augment("none", size=8) == Augment((), 8)
    assert make_augment(" flip, colour ", size=8).words == ("flip", "colour")
    assert make_augment(["colour", "flip"], size=8).words == ("colour", "flip")
    assert [make_augment(word, size=224).source_size for word in PRESETS] == [224, 224, 256, 256]
    assert all(word in AUGMENTATIONS for words in PRESETS.values() for word in words)


@pytest.mark.parametrize(
    "words, message",
    [
        ("flop", "unknown augmentation 'flop'.*nearest: 'flip'"),
        ("", "unknown augmentation ''"),
        ("standard,mixup", "a preset stands alone"),
        ("flip,colour,flip", "'flip' is named twice"),
    ],
)
def test_unknown_words_are_told(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_augment(words, size=8)


def test_images_of_another_size_are_told() -> None:
    with pytest.raises(
        ValueError, match="are 14 x 14 pixels, wanted squares of 16 for crop,flip,colour to 14"
    ):
        run_on = make_augment("standard", size=14)
        run_on.apply(jax.random.key(0), images(14), TARGETS, jnp.ones(B, bool))
