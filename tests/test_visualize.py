"""Objectives, pictures, views and the climb that joins them, on a toy network whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl.types import Output, Variables
from tl.visualize import images, objectives, render, transforms

SIZE, COUNT = 16, 2
KEY = jax.random.key(7)


def noise(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


# ---------------------------------------------------------------------------------------------------------- objectives


def test_total_variation_by_hand() -> None:
    image = np.zeros((1, 2, 3, 1), np.float32)
    image[0, :, :, 0] = [[0.0, 0.5, 0.25], [1.0, 0.5, 0.75]]
    across = (0.5 + 0.25 + 0.5 + 0.25) / 4
    down = (1.0 + 0.0 + 0.5) / 3
    np.testing.assert_allclose(objectives.total_variation(jnp.asarray(image)), [across + down], rtol=1e-6)


def test_total_variation_has_its_unit() -> None:
    """White noise in [0, 1] has 1/3 each way, whatever its size; stripes of one pixel have 1, a flat picture 0."""
    stripes = jnp.broadcast_to(jnp.arange(8, dtype=jnp.float32)[None, :, None, None] % 2, (1, 8, 8, 3))
    for size in (16, 64):
        assert objectives.total_variation(noise(8, size, size, 3)).mean() == pytest.approx(2 / 3, abs=0.01)
    np.testing.assert_allclose(objectives.total_variation(stripes), [1.0])
    np.testing.assert_array_equal(objectives.total_variation(jnp.full((2, 4, 4, 3), 0.3)), [0, 0])
    np.testing.assert_array_equal(objectives.smoothness()(None, stripes), [-1.0])  # pyright: ignore


def test_energy_is_the_distance_from_grey() -> None:
    levels = jnp.asarray([0.0, 0.25, 0.5, 1.0])[:, None, None, None] * jnp.ones((4, 2, 2, 3))
    np.testing.assert_allclose(objectives.energy(levels), [1, 0.25, 0, 1])
    np.testing.assert_allclose(objectives.calmness()(None, levels), [-1, -0.25, 0, -1])  # pyright: ignore


@given(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32))
def test_objectives_add_scale_and_subtract(a: float, b: float) -> None:
    one = objectives.Objective(lambda output, x: x)
    two = objectives.Objective(lambda output, x: x * x)
    x = np.array([0.5, -2.0])
    both = a * one + two * b - one
    np.testing.assert_allclose(both(None, x), a * x + b * x * x - x, rtol=1e-6, atol=1e-9)  # pyright: ignore


def answer(logits: list[list[float]], **endpoints: jax.Array) -> Output:
    return Output(jnp.asarray(logits, jnp.float32), jnp.zeros((len(logits), 1)), endpoints, {})


def test_class_objectives_of_one_class_and_of_a_group() -> None:
    output = answer([[1.0, 2.0, 4.0], [0.0, np.log(2.0), 5.0]])
    members = jnp.asarray([[False, True, False], [True, True, False]])
    images01 = jnp.zeros((2, 1, 1, 3))
    np.testing.assert_allclose(objectives.class_logit(members)(output, images01), [2.0, np.log(2.0) / 2], rtol=1e-6)
    p = np.exp([2.0, np.log(3.0)]) / [np.exp([1.0, 2.0, 4.0]).sum(), 3 + np.exp(5.0)]
    np.testing.assert_allclose(objectives.class_log_probability(members)(output, images01), np.log(p), rtol=1e-6)


def test_channel_is_the_mean_of_one_map_an_image() -> None:
    maps = noise(2, 3, 5, 4)
    found = objectives.channel("stage1", [3, 0])(answer([[0.0], [0.0]], stage1=maps), jnp.zeros((2, 1, 1, 3)))
    np.testing.assert_allclose(found, [maps[0, :, :, 3].mean(), maps[1, :, :, 0].mean()], rtol=1e-6)


# ------------------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("size", [1, 7, 16])
@pytest.mark.parametrize("name", sorted(images.PARAMETERISATIONS))
def test_every_parameterisation_is_a_picture_and_repeats_by_its_key(name: str, size: int) -> None:
    image = images.PARAMETERISATIONS[name](3, size)
    theta = image.init(KEY)
    picture = np.asarray(image.decode(theta))
    assert picture.shape == (3, size, size, 3)
    assert picture.dtype == np.float32
    assert (0 <= picture).all() and (picture <= 1).all()
    np.testing.assert_array_equal(picture, image.decode(image.init(KEY)))
    assert (picture != np.asarray(image.decode(image.init(jax.random.key(8))))).any()
    assert len({row.tobytes() for row in picture}) == 3  # the images start from different noise
    wild = np.asarray(image.decode(1e4 * theta))
    assert (0 <= wild).all() and (wild <= 1).all()


@pytest.mark.parametrize("name", sorted(images.PARAMETERISATIONS))
def test_the_images_of_a_batch_are_apart(name: str) -> None:
    image = images.PARAMETERISATIONS[name](2, 8)
    theta = image.init(KEY)
    moved = image.decode(theta.at[1].add(1.0))
    np.testing.assert_allclose(moved[0], image.decode(theta)[0], atol=1e-6)
    assert np.abs(moved[1] - image.decode(theta)[1]).max() > 0.01


def test_pixel_starts_as_grey_noise() -> None:
    picture = images.pixel(4, 32).decode(images.pixel(4, 32).init(KEY))
    assert picture.mean() == pytest.approx(0.5, abs=2e-3)
    assert picture.std() == pytest.approx(0.025, rel=0.05)


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_fourier_has_the_spectrum_it_promises(decay: float) -> None:
    """The amplitude of white coefficients falls as 1/f^decay: the slope on log axes, measured on the picture."""
    size = 64
    image = images.fourier(8, size, decay=decay)
    picture = np.asarray(image.decode(image.init(KEY)), np.float64)
    logit = np.log(picture / (1 - picture))
    plain = logit @ np.linalg.inv(images.COLOUR.T.astype(np.float64))
    power = np.abs(np.fft.fft2(plain, axes=(1, 2))).mean(axis=(0, 3))
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    ring = (f > 2 / size) & (f < 0.45) & (np.abs(np.fft.fftfreq(size)) > 0.5 / size)[None]
    slope = np.polyfit(np.log(f[ring]), np.log(power[ring]), 1)[0]
    assert slope == pytest.approx(-decay, abs=0.05)


def test_fourier_decodes_one_coefficient_to_one_wave() -> None:
    """lucid's scale: a real coefficient t at frequency (0, 1) of size s is t weight 2/s^2 cos(2 pi x / s)."""
    size = 8
    image = images.fourier(1, size)
    theta = jnp.zeros_like(image.init(KEY)).at[0, 0, 0, 1, 0].set(3.0)
    picture = np.asarray(image.decode(theta), np.float64)
    weight = size / 4 * size  # decay 1 at f = 1/size
    wave = 3.0 * weight * 2 / size**2 * np.cos(2 * np.pi * np.arange(size) / size)
    wanted = wave[None, :, None] * images.COLOUR[:, 0][None, None]
    np.testing.assert_allclose(np.log(picture / (1 - picture))[0], np.broadcast_to(wanted, (size, size, 3)), atol=1e-5)


def test_colours_are_lucids_largest_column_of_length_one() -> None:
    assert np.linalg.norm(images.COLOUR, axis=0).max() == pytest.approx(1.0)
    np.testing.assert_allclose(images.COLOUR[0] / images.COLOUR[0, 0], np.array([0.26, 0.09, 0.02]) / 0.26, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------- views


@given(st.integers(0, 20), st.integers(0, 1000))
def test_jitter_rolls_and_loses_no_pixel(pixels: int, seed: int) -> None:
    batch = noise(4, 5, 7, 3)
    moved = np.asarray(transforms.jitter(pixels)(jax.random.key(seed), batch))
    for before, after in zip(np.asarray(batch), moved, strict=True):
        rolls = [(i, j) for i in range(5) for j in range(7) if (np.roll(before, (i, j), (0, 1)) == after).all()]
        assert len(rolls) == 1
        if pixels < 3:
            assert all(min(r, n - r) <= pixels for r, n in zip(rolls[0], (5, 7), strict=True))


def test_jitter_moves_each_image_its_own_way_and_reaches_both_ends() -> None:
    ramp = jnp.broadcast_to(jnp.arange(9, dtype=jnp.float32)[None, :, None, None], (200, 9, 9, 3))
    moved = np.asarray(transforms.jitter(2)(KEY, ramp))[:, 0, 0, 0]
    assert set((-moved % 9).tolist()) == {0, 1, 2, 7, 8}


@pytest.mark.parametrize("shape", [(8, 8), (7, 7), (6, 9)])
def test_zoom_by_one_changes_nothing(shape: tuple[int, int]) -> None:
    batch = noise(3, *shape, 3)
    np.testing.assert_allclose(jax.jit(transforms.zoom(1.0, 1.0))(KEY, batch), batch, atol=1e-5)


@pytest.mark.parametrize(("low", "high", "side"), [(0.5, 0.5, 8), (0.5, 0.5, 7), (0.5, 2.0, 8), (0.5, 2.0, 7)])
def test_zoom_invents_no_colour(low: float, high: float, side: int) -> None:
    """A white picture stays white, up to the last corner: what is beyond the edge is its mirror image, never black."""
    zoom = jax.jit(transforms.zoom(low, high))
    np.testing.assert_allclose(zoom(KEY, jnp.ones((200, side, side, 3))), 1.0, atol=1e-5)
    mixed = zoom(KEY, noise(200, side, side, 3))
    assert mixed.shape == (200, side, side, 3)
    assert -1e-5 <= mixed.min() and mixed.max() <= 1 + 1e-5


def test_zoom_out_by_two_shows_everything_and_its_mirror_image() -> None:
    """At scale 1/2 the whole picture lies in the middle of its mirror images, smoothed for the smaller grid."""
    picture = np.asarray(noise(1, 8, 8, 3))
    out = np.asarray(jax.jit(transforms.zoom(0.5, 0.5))(KEY, jnp.asarray(picture)))[0]
    frame = np.pad(picture[0], ((4, 4), (4, 4), (0, 0)), mode="symmetric")
    kernel = np.array([1, 3, 3, 1]) / 8  # a triangle twice as wide, at half a pixel's offset
    ahead = np.pad(frame, ((1, 1), (1, 1), (0, 0)))
    taps = [[ahead[i : i + 16 : 2, j : j + 16 : 2] * kernel[i] * kernel[j] for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(out[1:-1, 1:-1], np.sum(taps, axis=(0, 1))[1:-1, 1:-1], atol=1e-5)


def test_zoom_in_by_two_shows_a_part_at_random() -> None:
    ramp = jnp.broadcast_to(jnp.arange(32, dtype=jnp.float32)[None, :, None, None] / 32, (100, 32, 32, 3))
    rows = np.asarray(jax.jit(transforms.zoom(2.0, 2.0))(KEY, ramp))[:, :, 5, 0]
    np.testing.assert_allclose(np.diff(rows[:, 2:-2]), 1 / 64, atol=1e-4)  # twice as large: half the slope
    middle = rows[:, 15:17].mean(axis=1) * 32 + 0.5  # in source pixels: a window of 16 somewhere in 32
    assert 8 - 0.1 <= middle.min() < 9 and 23 < middle.max() <= 24 + 0.1


def test_zoom_is_even_in_octaves() -> None:
    ramp = jnp.broadcast_to(jnp.arange(64, dtype=jnp.float32)[None, :, None, None] / 64, (400, 64, 4, 3))
    rows = np.asarray(jax.jit(transforms.zoom(1.0, 4.0))(KEY, ramp))[:, :, 2, 0]
    scales = 1 / (64 * np.diff(rows[:, 30:34]).mean(axis=1))
    assert scales.min() == pytest.approx(1, abs=0.02) and scales.max() == pytest.approx(4, abs=0.1)
    assert np.mean(scales < 2) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(("low", "high"), [(0.4, 1.0), (1.2, 1.1), (float("nan"), 1.0)])
def test_zoom_refuses(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="zoom wants 0.5 <= low <= high; got"):
        transforms.zoom(low, high)


def test_compose_is_one_after_another_with_keys_of_their_own() -> None:
    batch = noise(2, 6, 6, 3)
    np.testing.assert_array_equal(transforms.compose()(KEY, batch), batch)
    seen: list[jax.Array] = []

    def spy(key: jax.Array, images01: jax.Array) -> jax.Array:
        seen.append(jax.random.key_data(key))
        return images01 + len(seen)

    np.testing.assert_allclose(transforms.compose(spy, spy)(KEY, batch), batch + 3, rtol=1e-6)
    assert (seen[0] != seen[1]).any()
    twice = transforms.compose(transforms.jitter(2), transforms.jitter(2))
    np.testing.assert_array_equal(twice(KEY, batch), twice(KEY, batch))


# -------------------------------------------------------------------------------------------------------------- render


def colours(variables: Variables, images01: jax.Array) -> Output:
    """Three classes, red, green and blue: how much of the channel stands beside the mean of all."""
    maps = images01 - jnp.mean(images01, axis=3, keepdims=True)
    features = jnp.mean(maps, axis=(1, 2))
    return Output(variables["params"]["gain"] * features, features, {"maps": maps}, {})


TOY: Variables = {"params": {"gain": jnp.full((1, 3), 30.0)}}
RED_BLUE = np.array([[True, False, False], [False, False, True]])


def make(steps: int = 12, name: str = "fourier", optimizer: str = "sgd", **kwargs: Any) -> Callable[..., render.Ideal]:
    """A climb on the toy network, from red and blue, by default with no loss but the class's."""
    image = images.PARAMETERISATIONS[name](COUNT, SIZE)
    apply = lambda variables, images01: colours(variables, images01)  # noqa: E731  (found anew at each trace)
    climb = render.make_ideal(apply, image, transform=transforms.jitter(2), steps=steps, optimizer=optimizer, **kwargs)

    def ideal(key: jax.Array = KEY, members: np.ndarray = RED_BLUE, **weights: Any) -> render.Ideal:
        return climb(TOY, key, jnp.asarray(members), **{"tv": 0.0, "l2": 0.0, "step_size": 1.0, **weights})

    return ideal


@pytest.mark.parametrize(
    ("name", "optimizer", "step_size"), [("fourier", "adam", 0.05), ("fourier", "sgd", 1.0), ("pixel", "sign", 0.05)]
)
def test_the_wanted_class_rises(name: str, optimizer: str, step_size: float) -> None:
    found = make(12, name, optimizer)(step_size=step_size)
    before, after = (np.asarray(colours(TOY, x).logits)[RED_BLUE] for x in (found.start, found.images))
    assert (after > before + 0.1).all()
    assert found.scores.shape == (13, COUNT)
    np.testing.assert_allclose(found.scores[0], before, atol=1e-4)  # a roll changes no mean
    np.testing.assert_allclose(found.scores[-1], after, atol=1e-4)
    assert found.images.shape == (COUNT, SIZE, SIZE, 3)
    assert found.images.min() >= 0 and found.images.max() <= 1


def test_losses_do_what_they_say_and_one_compile_serves_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, plain = [], colours

    def spy(variables: Variables, images01: jax.Array) -> Output:
        traced.append(images01.shape)
        return plain(variables, images01)

    monkeypatch.setitem(globals(), "colours", spy)
    ideal = make(12, "pixel")
    free = ideal().images
    once = len(traced)
    smooth, smoother, mixed = (ideal(tv=tv).images for tv in (30.0, 300.0, np.array([0.0, 300.0])))
    calm = ideal(l2=30.0).images
    ideal(jax.random.key(8), RED_BLUE[::-1], tv=3.0, step_size=0.3)
    assert len(traced) == once > 0

    rest, more, most = (np.asarray(objectives.total_variation(x)) for x in (free, smooth, smoother))
    assert (more < rest).all() and (most < 0.9 * rest).all()
    assert (objectives.energy(calm) < 0.9 * objectives.energy(free)).all()
    np.testing.assert_allclose(mixed[0], free[0], atol=1e-6)  # each image has its own weight
    np.testing.assert_allclose(mixed[1], smoother[1], atol=1e-6)


def test_scores_are_the_class_less_the_weighted_losses() -> None:
    found = make(0, "pixel")(tv=np.array([2.0, 5.0]), l2=3.0)
    wanted = np.asarray(colours(TOY, found.start).logits)[RED_BLUE] - 3.0 * objectives.energy(found.start)
    wanted -= np.array([2.0, 5.0]) * objectives.total_variation(found.start)
    np.testing.assert_allclose(found.scores[0], wanted, rtol=1e-4)


def test_the_same_key_is_the_same_image_to_the_bit() -> None:
    ideal = make()
    for a, b, c in zip(ideal(tv=1.0), ideal(tv=1.0), ideal(jax.random.key(8), tv=1.0), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.asarray(a) != np.asarray(c)).any()


def test_no_step_shows_the_start() -> None:
    found = make(0)()
    np.testing.assert_array_equal(found.images, found.start)
    assert found.scores.shape == (1, COUNT)


def test_another_objective_and_an_unknown_optimizer() -> None:
    probability = make(6, "pixel", objective=objectives.class_log_probability)()
    assert (probability.scores <= 0).all()
    assert (probability.scores[-1] > probability.scores[0]).all()
    with pytest.raises(ValueError, match="unknown optimizer 'adma'; nearest: 'adam'"):
        make(optimizer="adma")
