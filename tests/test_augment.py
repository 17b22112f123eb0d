"""Augmentation: range, dependence on the key alone, views, and the operation of each row."""

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

from tl.data.augment import AUGMENTATIONS, PRESETS, Augment, make_augment
from tl.data.augmentations import GRAY, color, random_resized_crop, shift

SIZE, B = 14, 6
TARGETS = jnp.eye(B)
apply = functools.partial(jax.jit, static_argnums=0)(Augment.apply)


def images(side: int, *, n: int = B, channels: int = 3, seed: int = 0) -> jax.Array:
    """Noise that contains both ends of the range."""
    return jnp.round(jax.random.uniform(jax.random.key(seed), (n, side, side, channels)) * 4) / 4


def run(
    augment: Augment, seed: int, valid: jax.Array | None = None
) -> tuple[np.ndarray, np.ndarray]:
    valid = jnp.ones(B, bool) if valid is None else valid
    out = apply(augment, jax.random.key(seed), images(augment.source_size), TARGETS, valid)
    return np.asarray(out[0]), np.asarray(out[1])


# ---- all rows ----


@pytest.mark.parametrize("word", ["none", *AUGMENTATIONS, "strong"])
def test_every_row_returns_images_in_range_and_targets_of_sum_one(word: str) -> None:
    for seed in range(4):
        augmented, targets = run(make_augment(word, size=SIZE), seed)
        assert augmented.shape == (B, SIZE, SIZE, 3)
        assert augmented.dtype == targets.dtype == np.float32
        assert augmented.min() >= 0 and augmented.max() <= 1  # NaN fails both
        np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("word", ["none", *AUGMENTATIONS, "strong"])
def test_every_row_is_a_function_of_the_key(word: str) -> None:
    augment = make_augment(word, size=SIZE)
    first, *others = (run(augment, seed)[0] for seed in range(4))
    np.testing.assert_array_equal(run(augment, 0)[0], first)
    assert any(not np.array_equal(first, other) for other in others) == (word != "none")


ONE_IMAGE = ["crop", "dihedral", "shift", "color", "erasing", "trivialaugment", "randaugment"]


@pytest.mark.parametrize("word", ONE_IMAGE)
def test_a_slot_does_not_depend_on_the_size_of_the_batch(word: str) -> None:
    augment = make_augment(word, size=SIZE)
    x, key = images(augment.source_size), jax.random.key(3)
    whole, _ = apply(augment, key, x, TARGETS, jnp.ones(B, bool))
    part, _ = apply(augment, key, x[:2], TARGETS[:2], jnp.ones(2, bool))
    np.testing.assert_allclose(whole[:2], part, atol=1e-6)


@pytest.mark.parametrize("word", ONE_IMAGE)
def test_each_slot_draws_separately(word: str) -> None:
    augment = make_augment(word, size=SIZE)
    equal = jnp.tile(images(augment.source_size)[:1], (B, 1, 1, 1))
    results = [
        np.unique(apply(augment, jax.random.key(k), equal, TARGETS, jnp.ones(B, bool))[0], axis=0)
        for k in range(4)
    ]
    assert max(map(len, results)) > 1


def test_images_may_have_other_channels_than_rgb() -> None:
    augment = make_augment("color,erasing,trivialaugment", size=SIZE)
    x = images(augment.source_size, channels=5)
    augmented, _ = apply(augment, jax.random.key(0), x, TARGETS, jnp.ones(B, bool))
    assert augmented.shape == (B, SIZE, SIZE, 5)
    assert 0 <= float(augmented.min()) <= float(augmented.max()) <= 1


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tl.data.augment import make_augment
assert len(jax.devices()) == 8
augment, n = make_augment("crop,flip,color,randaugment,cutmix", size=14), 16
x = jax.random.uniform(jax.random.key(1), (n, augment.source_size, augment.source_size, 3))
batch = x, jax.nn.one_hot(jnp.arange(n), n), jnp.arange(n) < 13
mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("batch"))
sharded_batch = jax.device_put(batch, sharding)
one = jax.jit(augment.apply)(jax.random.key(0), *batch)
eight = jax.jit(augment.apply, out_shardings=sharding)(jax.random.key(0), *sharded_batch)
for a, b in zip(one, eight, strict=True):
    assert b.sharding.is_equivalent_to(sharding, b.ndim)
    np.testing.assert_allclose(a, b, atol=1e-6)
"""


@pytest.mark.full  # a process that compiles for eight devices
def test_eight_devices_give_the_result_of_one() -> None:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles faster
    }
    process = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.returncode == 0, process.stderr


# ---- views ----


COUNTABLE = pytest.mark.parametrize("word, count", [("none", 1), ("flip", 2), ("dihedral", 8)])


@COUNTABLE
def test_views_are_all_possible_results_bit_for_bit(word: str, count: int) -> None:
    augment, x = make_augment(word, size=SIZE), images(SIZE)
    assert augment.views is not None and len(augment.views) == count
    views = np.stack([view(x) for view in augment.views])
    assert len(np.unique(views[:, 0], axis=0)) == count
    for seed in range(5):
        choice = np.asarray(augment.choose(jax.random.key(seed), B))
        assert choice.dtype == np.int32 and choice.shape == (B,)
        np.testing.assert_array_equal(run(augment, seed)[0], views[choice, np.arange(B)])


@COUNTABLE
def test_views_are_equally_likely(word: str, count: int) -> None:
    choice = make_augment(word, size=SIZE).choose(jax.random.key(0), 4000)
    drawn = np.bincount(np.asarray(choice), minlength=count)
    assert len(drawn) == count and abs(drawn - 4000 / count).max() < 160  # five standard deviations


@pytest.mark.parametrize("word", ["crop", "flip,color", "shift", "strong", "flip,dihedral"])
def test_uncountable_augmentations_have_no_views(word: str) -> None:
    augment = make_augment(word, size=SIZE)
    assert augment.views is None
    with pytest.raises(ValueError, match="cannot be counted"):
        augment.choose(jax.random.key(0), 2)


# ---- single rows ----


def test_a_crop_of_the_whole_image_is_the_resize_of_jax_image() -> None:
    x = images(24)
    for size in (10, 40):
        out = jax.jit(random_resized_crop(size, (1.0, 1.0), (1.0, 1.0)))(jax.random.key(0), x)
        np.testing.assert_allclose(
            out, jax.image.resize(x, (B, size, size, 3), "linear"), atol=1e-5
        )


def test_crops_have_the_distribution_of_area_aspect_ratio_and_position() -> None:
    """The crop of an image whose values are coordinates reveals the box."""
    n, side, size = 400, 64, 32
    coordinates = np.stack(
        np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2, indexing="ij"), axis=-1
    )
    coordinates = jnp.asarray(np.broadcast_to(coordinates, (n, side, side, 2)), jnp.float32)
    out = np.asarray(jax.jit(random_resized_crop(size))(jax.random.key(0), coordinates))
    # The slope, measured away from the border pixels, times the number of pixels is the side.
    height = (out[:, -4, size // 2, 0] - out[:, 3, size // 2, 0]) / (size - 7) * size
    width = (out[:, size // 2, -4, 1] - out[:, size // 2, 3, 1]) / (size - 7) * size
    area, ratio = height * width, width / height
    assert area.min() > 0.24 and area.max() < 1.01
    assert ratio.min() > 0.74 and ratio.max() < 1.35
    assert area.min() < 0.3 and area.max() > 0.9 and 0.55 < np.median(area) < 0.65
    assert abs(np.log(ratio).mean()) < 0.05
    top = out[:, size // 2, size // 2, 0] - height / 2
    assert top.min() > -0.02 and (top + height).max() < 1.02
    # Uniform over all positions that fit.
    assert np.corrcoef(top / (1 - height + 1e-3), height)[0, 1] < 0.3


def test_the_crop_of_a_wide_image_falls_back_on_the_largest_centered_box() -> None:
    """No box of aspect ratio 3/4 to 4/3 with the whole area fits into 1 x 4."""
    x = jnp.broadcast_to(jnp.arange(64.0)[None, None, :, None] / 64, (1, 16, 64, 1))
    out = jax.jit(random_resized_crop(16, (1.0, 1.0)))(jax.random.key(0), x)
    box = x[:, :, 32 - 11 : 32 + 11]
    assert float(abs(out.mean() - box.mean())) < 0.01
    assert float(out.max() - out.min()) == pytest.approx(float(box.max() - box.min()), abs=0.02)


SHIFTS = {pixels: jax.jit(shift(pixels)) for pixels in (1, 3)}


@given(st.sampled_from([1, 3]), st.integers(0, 50))
def test_a_shift_is_a_window_of_the_mirrored_image(pixels: int, seed: int) -> None:
    x = images(5, n=1, seed=seed)
    (out,) = np.asarray(SHIFTS[pixels](jax.random.key(seed), x))
    padded = np.pad(
        np.asarray(x[0]), ((pixels, pixels), (pixels, pixels), (0, 0)), mode="symmetric"
    )
    moves = [
        padded[i : i + 5, j : j + 5] for i in range(2 * pixels + 1) for j in range(2 * pixels + 1)
    ]
    assert any(np.array_equal(out, move) for move in moves)


def test_color_blends_with_the_image_that_torchvision_blends_with() -> None:
    """One factor, computed from the result, lies in its interval and explains every pixel."""
    x = 0.25 + 0.3 * images(SIZE)  # no value is clipped
    gray = np.sum(np.asarray(x) * GRAY, axis=-1, keepdims=True)
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


def test_erasing_replaces_boxes_by_noise() -> None:
    augment = make_augment("erasing", size=40)
    x = jnp.full((400, 40, 40, 3), 2.0)  # outside [0, 1], so that every other value was erased
    out, _ = apply(augment, jax.random.key(0), x, jnp.ones((400, 1)), jnp.ones(400, bool))
    erased = np.asarray(out != 2.0).all(axis=-1)
    assert np.array_equal(erased, np.asarray(out != 2.0).any(axis=-1))
    hit = erased.any(axis=(1, 2))
    assert 0.17 < hit.mean() < 0.33
    for mask in erased[hit]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # a box
        assert 0.005 < mask.mean() < 0.40
    noise = np.asarray(out)[erased]
    assert noise.min() >= 0 and noise.max() < 1 and abs(noise.mean() - 0.5) < 0.01


@pytest.mark.parametrize("word", ["mixup", "cutmix"])
@pytest.mark.parametrize("valid", [0b111111, 0b101101, 0b000100, 0b000000], ids=bin)
def test_a_mix_combines_valid_images_and_their_targets_alike(word: str, valid: int) -> None:
    """Slot i has the value i / 8 everywhere, so the value of a mix is that of its target."""
    is_valid = np.array([valid >> i & 1 == 1 for i in range(B)])
    values = np.arange(B, dtype=np.float32) / 8
    flat = jnp.broadcast_to(values[:, None, None, None], (B, SIZE, SIZE, 3))
    one_hot, partners = np.eye(B, dtype=np.float32), set()
    for seed in range(6):
        mixed, targets = apply(
            make_augment(word, size=SIZE),
            jax.random.key(seed),
            flat,
            TARGETS,
            jnp.asarray(is_valid),
        )
        mixed, targets = np.asarray(mixed), np.asarray(targets)
        np.testing.assert_allclose(targets @ values, mixed.mean(axis=(1, 2, 3)), atol=1e-5)
        np.testing.assert_array_equal(mixed[~is_valid], np.asarray(flat)[~is_valid])
        np.testing.assert_array_equal(targets[~is_valid], one_hot[~is_valid])
        assert not targets[np.ix_(is_valid, ~is_valid)].any()  # no padding in an image
        if word == "cutmix":
            assert np.isin(np.unique(mixed), values).all()
        partners |= {(i, j) for i, j in np.argwhere(targets > 0) if i != j}
    # The partners differ between keys.
    assert len(partners) > (2 * is_valid.sum() if is_valid.sum() > 2 else -1)


# ---- by name ----


def test_words_are_applied_in_their_order() -> None:
    assert make_augment("none", size=8) == Augment((), 8)
    assert make_augment(" flip, color ", size=8).words == ("flip", "color")
    assert make_augment(["color", "flip"], size=8).words == ("color", "flip")


def test_the_former_word_colour_is_accepted() -> None:
    assert make_augment("flip,colour", size=8) == make_augment("flip,color", size=8)


def test_presets_consist_of_rows() -> None:
    assert [make_augment(word, size=224).source_size for word in PRESETS] == [224, 224, 256, 256]
    assert all(word in AUGMENTATIONS for words in PRESETS.values() for word in words)


@pytest.mark.parametrize(
    "words, message",
    [
        ("flop", "unknown augmentation 'flop'.*nearest: 'flip'"),
        ("", "unknown augmentation ''"),
        ("standard,mixup", "use a preset alone"),
        ("flip,color,flip", "'flip' is repeated"),
        ("color,colour", "'color' is repeated"),
    ],
)
def test_unknown_and_repeated_words_are_errors(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_augment(words, size=8)


def test_images_of_another_size_are_an_error() -> None:
    with pytest.raises(
        ValueError, match="squares of 16 pixels .* crop,flip,color to 14: got 14 x 14"
    ):
        make_augment("standard", size=14).apply(
            jax.random.key(0), images(14), TARGETS, jnp.ones(B, bool)
        )
