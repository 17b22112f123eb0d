"""Random transforms: shape, range and gradient of all, and the effect of each."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tl.ascent import transforms
from tl.ascent.jpeg import decoded
from tl.ascent.transforms import Transform
from tl.evaluation.postprocessing import resized

Shape = tuple[int, int]
KEY = jax.random.key(7)
SAME: Callable[[Shape], Shape] = lambda shape: shape
WIDER: Callable[[int], Callable[[Shape], Shape]] = lambda by: (
    lambda shape: (shape[0] + by, shape[1] + by)
)
VIEWS: dict[str, tuple[Transform, Callable[[Shape], Shape]]] = {
    "pad": (transforms.pad(3), WIDER(6)),
    "jitter": (transforms.jitter(2), WIDER(-2)),
    "roll": (transforms.roll(2), SAME),
    "flip": (transforms.flip(), SAME),
    "noise": (transforms.noise(0.0, 0.3), SAME),
    "zoom": (transforms.zoom(0.5, 2.0), SAME),
    "scale": (transforms.scale((0.5, 0.9, 1.3)), SAME),
    "crop": (transforms.crop(0.2, 0.6), SAME),
    "rotate": (transforms.rotate((-45.0, 10.0, 45.0)), SAME),
    "resize": (transforms.resize(5), lambda _: (5, 5)),
    "resized": (transforms.resized(0.4, 0.9), SAME),
    "jpeg": (transforms.jpeg(30, 95), SAME),
    "compose": (transforms.compose(transforms.roll(1), transforms.pad(1)), WIDER(2)),
    "lucid": (transforms.lucid(), WIDER(12)),
}
# These do not use the key.
FIXED = {"pad", "resize"}
# These may add black or another color.
ADD_COLOR = {"pad", "compose", "lucid", "noise", "zoom", "jpeg"}


def random_image(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).random(shape), jnp.float32)


def views(transform: Transform, image: jax.Array, count: int) -> np.ndarray:
    """`count` random views of one image."""
    draw = jax.jit(lambda keys: jax.lax.map(lambda key: transform(key, image), keys))
    return np.asarray(draw(jax.random.split(KEY, count)))


def ramp(h: int, w: int = 4) -> jax.Array:
    """f32[h w 3]: row i has the value (i + 0.5) / h, its position as a share of the height."""
    return jnp.broadcast_to((jnp.arange(h, dtype=jnp.float32)[:, None, None] + 0.5) / h, (h, w, 3))


def test_the_tests_cover_every_transform() -> None:
    public = {
        name
        for name, f in vars(transforms).items()
        if callable(f) and f.__module__ == transforms.__name__
    }
    assert {name for name in public if not name.startswith("_")} == set(VIEWS)


@pytest.mark.parametrize(
    ("name", "shape"), [*((name, (9, 6)) for name in VIEWS), ("zoom", (8, 8)), ("rotate", (6, 11))]
)
def test_every_view_has_a_fixed_shape_a_range_and_a_gradient(name: str, shape: Shape) -> None:
    transform, size = VIEWS[name]

    def view_and_gradient(key: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        view, pullback = jax.vjp(lambda image: transform(key, image), image)
        return view, pullback(jnp.ones_like(view))[0]

    image, keys = random_image(*shape, 3), jax.random.split(KEY, 50)
    expected = (*size(shape), 3)
    assert jax.eval_shape(transform, KEY, image) == jax.ShapeDtypeStruct(expected, jnp.float32)
    many = jax.jit(jax.vmap(view_and_gradient, (0, None)))
    samples, gradient = (np.asarray(x) for x in many(keys, image))
    assert samples.shape == (50, *expected)
    assert -1e-5 <= samples.min() and samples.max() <= 1 + 1e-5
    assert np.isfinite(gradient).all() and (np.abs(gradient).max(axis=(1, 2, 3)) > 0.1).all()
    np.testing.assert_array_equal(samples, many(keys, image)[0])
    assert (len({view.tobytes() for view in samples}) == 1) == (name in FIXED)
    # All others mirror the image at its edges.
    if name not in ADD_COLOR:
        np.testing.assert_allclose(many(keys, jnp.ones_like(image))[0], 1.0, atol=1e-5)


# ---- frames and moves ----


def test_pad_is_a_gray_frame() -> None:
    image = random_image(3, 4, 3)
    padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)), constant_values=0.5)
    np.testing.assert_array_equal(transforms.pad(2)(KEY, image), padded)
    assert transforms.pad(1, 0.25)(KEY, image)[0, 0, 0] == 0.25


def test_jitter_draws_every_window_equally_often() -> None:
    image = jnp.arange(5 * 6 * 3, dtype=jnp.float32).reshape(5, 6, 3)
    samples = views(transforms.jitter(2), image, 900)
    corners, counts = np.unique(samples[:, 0, 0, 0], return_counts=True)
    assert corners.tolist() == [float(image[i, j, 0]) for i in range(3) for j in range(3)]
    assert (np.abs(counts - 100) < 40).all()  # four standard deviations
    for view in samples[:20]:
        i, j = divmod(int(view[0, 0, 0]) // 3, 6)
        np.testing.assert_array_equal(view, image[i : i + 3, j : j + 4])


def test_roll_draws_every_cyclic_shift() -> None:
    image = random_image(7, 9, 3)
    rolls = {
        (i, j): np.roll(image, (i, j), (0, 1)).tobytes() for i in range(-2, 3) for j in range(-2, 3)
    }
    assert {view.tobytes() for view in views(transforms.roll(2), image, 300)} == set(rolls.values())


def test_flip_mirrors_half_of_the_time() -> None:
    image = random_image(4, 5, 3)
    samples = views(transforms.flip(), image, 400)
    turned = np.array([(view == np.asarray(image)[:, ::-1]).all() for view in samples])
    assert ((samples == np.asarray(image)).all(axis=(1, 2, 3)) != turned).all()
    assert turned.mean() == pytest.approx(0.5, abs=0.1)


def test_noise_has_its_standard_deviation_and_is_clipped() -> None:
    normal = views(transforms.noise(0.05, 0.05), jnp.full((16, 16, 3), 0.5), 8) - 0.5
    assert normal.mean() == pytest.approx(0.0, abs=0.003)
    assert normal.std() == pytest.approx(0.05, rel=0.05)
    clipped = views(transforms.noise(0.05, 0.05), jnp.ones((16, 16, 3)), 1)
    assert clipped.max() == 1.0 and (clipped == 1.0).mean() == pytest.approx(0.5, abs=0.1)
    stds = views(transforms.noise(0.02, 0.1), jnp.full((16, 16, 3), 0.5), 200).std(axis=(1, 2, 3))
    assert stds.min() < 0.025 and stds.max() > 0.095
    assert stds.mean() == pytest.approx(0.06, abs=0.006)  # uniform


def test_noise_refuses_a_wrong_range() -> None:
    for low, high in ((-0.1, 0.1), (0.2, 0.1), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="noise needs 0 <= `low` <= `high`: got"):
            transforms.noise(low, high)


def test_resize_is_smooth_and_the_identity_at_equal_size() -> None:
    image = random_image(6, 6, 3)
    np.testing.assert_allclose(transforms.resize(6)(KEY, image), image, atol=1e-6)
    down = np.asarray(transforms.resize(8)(KEY, ramp(16, 16)))
    np.testing.assert_allclose(down[1:-1], ramp(8, 8)[1:-1], atol=1e-5)
    checks = jnp.broadcast_to(
        (jnp.indices((16, 16)).sum(0) % 2).astype(jnp.float32)[..., None], (16, 16, 3)
    )
    np.testing.assert_allclose(transforms.resize(4)(KEY, checks)[1:-1, 1:-1], 0.5, atol=0.02)


# ---- windows ----


@pytest.mark.parametrize("shape", [(7, 7), (6, 9)])
def test_scale_one_and_angle_zero_are_the_identity(shape: Shape) -> None:
    identities = (
        transforms.zoom(1.0, 1.0),
        transforms.scale((1.0,)),
        transforms.crop(1.0, 1.0),
        transforms.rotate((0.0,)),
    )
    image = random_image(*shape, 3)
    for samples in jax.jit(lambda image: [transform(KEY, image) for transform in identities])(
        image
    ):
        np.testing.assert_allclose(samples, image, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "ahead", "kernel"),
    [(8, 5, np.array([1, 3, 3, 1]) / 8), (7, 4, np.array([1, 2, 1]) / 4)],
)
def test_scaling_by_one_half_shows_the_image_and_its_mirror_images(
    side: int, ahead: int, kernel: np.ndarray
) -> None:
    """The image is in the center of its mirror images, smoothed by a triangle twice as wide."""
    image = random_image(side, side, 3)
    frame = np.pad(np.asarray(image), ((ahead, ahead), (ahead, ahead), (0, 0)), mode="symmetric")
    expected = np.zeros((side, side, 3))
    for i, a in enumerate(kernel):
        for j, b in enumerate(kernel):
            expected += a * b * frame[i : i + 2 * side : 2, j : j + 2 * side : 2][:side, :side]
    np.testing.assert_allclose(views(transforms.scale((0.5,)), image, 1)[0], expected, atol=1e-5)


@pytest.mark.parametrize(("side", "factor"), [(8, 0.5), (16, 0.3)])
def test_zooming_out_shows_the_whole_image_on_a_random_color(side: int, factor: float) -> None:
    """The image covers the difference between a white and a black image with equal keys."""
    zoom = transforms.zoom(factor, factor)
    black, white = (views(zoom, jnp.full((side, side, 3), level), 200) for level in (0.0, 1.0))
    covered = (white - black)[..., 0]
    assert covered.min() >= -1e-5 and covered.max() <= 1 + 1e-5
    # Nothing is cut off except for the blur of half a pixel at the edge of the frame.
    length = covered.sum(axis=(1, 2)) ** 0.5
    assert length.max() <= factor * side * 1.01 and length.min() > factor * side - 0.25
    # All positions are drawn.
    rows = [np.flatnonzero(mask.sum(axis=1) > 1e-3) for mask in covered]
    assert {row[0] for row in rows} >= {0, 1}
    assert {row[-1] for row in rows} >= {side - 1, side - 2}
    backgrounds = [view[mask < 1e-6] for view, mask in zip(black, covered, strict=True)]
    for background in backgrounds:
        plain = np.broadcast_to(background[0], background.shape)
        np.testing.assert_allclose(background, plain, atol=1e-6)
    colors = np.stack([background[0] for background in backgrounds])
    assert colors.min() < 0.05 and colors.max() > 0.95
    assert np.abs(np.corrcoef(colors.T) - np.eye(3)).max() < 0.3
    image = random_image(side, side, 3)
    samples = views(zoom, image, 200) - black
    np.testing.assert_allclose(
        samples.sum(axis=(1, 2)).mean(axis=0), factor**2 * image.sum(axis=(0, 1)), rtol=0.04
    )


def test_zooming_in_shows_a_random_part() -> None:
    rows = views(transforms.zoom(2.0, 2.0), ramp(32), 100)[:, :, 2, 0]
    # Twice as large means half the slope.
    np.testing.assert_allclose(np.diff(rows[:, 2:-2]), 1 / 64, atol=1e-4)
    middle = rows[:, 15:17].mean(axis=1)
    assert 0.25 - 1e-3 <= middle.min() < 0.28 and 0.72 < middle.max() <= 0.75 + 1e-3


def test_zoom_is_log_uniform() -> None:
    rows = views(transforms.zoom(1.0, 4.0), ramp(64), 400)[:, :, 2, 0]
    scales = 1 / (64 * np.diff(rows[:, 30:34]).mean(axis=1))
    assert scales.min() == pytest.approx(1, abs=0.02) and scales.max() == pytest.approx(4, abs=0.1)
    assert np.mean(scales < 2) == pytest.approx(0.5, abs=0.08)


def test_scale_draws_each_factor_about_the_center() -> None:
    rows = views(transforms.scale((0.8, 1.0, 2.0)), ramp(32), 100)[:, :, 2, 0]
    np.testing.assert_allclose(rows[:, 15:17].mean(axis=1), 0.5, atol=1e-5)
    factors = 19 / (32 * (rows[:, 25] - rows[:, 6]))
    np.testing.assert_allclose(np.unique(factors.round(2)), [0.8, 1.0, 2.0], atol=1e-5)


def test_crop_shows_a_window_inside_the_image() -> None:
    """A quarter of the side: the ramp has a quarter of its slope, and nothing is mirrored."""
    rows = views(transforms.crop(0.25, 0.25), ramp(32), 200)[:, :, 2, 0]
    # The outer half pixels are constant.
    inside = (rows > 0.5 / 32 + 1e-4) & (rows < 31.5 / 32 - 1e-4)
    steps = np.diff(rows)
    np.testing.assert_allclose(steps[inside[:, 1:] & inside[:, :-1]], 1 / 128, atol=1e-4)
    assert steps.min() > -1e-5
    middle = rows[:, 15:17].mean(axis=1)
    assert 0.125 - 1e-3 <= middle.min() < 0.14 and 0.86 < middle.max() <= 0.875 + 1e-3


def test_crop_is_uniform_over_its_shares() -> None:
    rows = views(transforms.crop(0.2, 1.0), ramp(64), 300)[:, :, 2, 0]
    shares = 64 * np.diff(rows[:, 30:34]).mean(axis=1)
    assert shares.min() == pytest.approx(0.2, abs=0.02) and shares.max() == pytest.approx(
        1.0, abs=0.02
    )
    assert np.mean(shares < 0.6) == pytest.approx(0.5, abs=0.1)


# ---- turns ----


def blob(h: int, w: int, right: float, up: float) -> np.ndarray:
    """A round bright spot at a position in pixels right of and above the center."""
    y, x = np.mgrid[:h, :w].astype(np.float64)
    square = (x - (w - 1) / 2 - right) ** 2 + (y - (h - 1) / 2 + up) ** 2
    return np.repeat(np.exp(-square / (2 * 2.5**2))[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("angle", "shape"), [(10.0, (33, 33)), (-10.0, (30, 37)), (45.0, (31, 38))]
)
def test_rotate_is_counterclockwise_about_the_center(angle: float, shape: Shape) -> None:
    """A round spot stays round and moves as its center does, with x right and y up."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    rotate = jax.jit(transforms.rotate((angle,)))
    for right, up in ((8.0, 0.0), (-3.0, 6.0)):
        samples = rotate(KEY, jnp.asarray(blob(*shape, right, up), jnp.float32))
        expected = blob(*shape, cos * right - sin * up, sin * right + cos * up)
        # Corners show mirrored parts, and resampling lowers the peak.
        center = (slice(8, -8), slice(8, -8))
        np.testing.assert_allclose(samples[center], expected[center], atol=0.06)


def test_rotate_draws_each_angle() -> None:
    image = random_image(8, 8, 3)
    single = jax.jit(
        lambda x: [transforms.rotate((angle,))(KEY, x) for angle in (-10.0, 0.0, 30.0)]
    )(image)
    samples = views(transforms.rotate((-10.0, 0.0, 30.0)), image, 60)
    near = np.array(
        [[np.abs(view - one).max() < 1e-5 for one in map(np.asarray, single)] for view in samples]
    )
    assert (near.sum(axis=1) == 1).all() and near.any(axis=0).all()


# ---- effects of files ----


def test_resized_equals_pillows_bicubic_down_and_up() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 31, 3)).astype(np.uint8)
    levels = jnp.asarray(image, jnp.float32) / 255.0
    *resized_views, same = jax.jit(
        lambda x: [transforms.resized(share, share)(KEY, x) for share in (0.5, 0.8, 1.0)]
    )(levels)
    for share, view in zip((0.5, 0.8), resized_views, strict=True):
        expected = resized(image[None], share)[0].astype(int)
        # Pillow rounds four times, the transform never.
        assert np.abs(np.asarray(view) * 255 - expected).max() < 2.5
        assert np.abs(image.astype(int) - expected).mean() > 10
    np.testing.assert_allclose(same, levels, atol=1e-6)


def test_resized_draws_each_size() -> None:
    image = random_image(4, 4, 3)
    single = jax.jit(lambda x: [transforms.resized(n / 4, n / 4)(KEY, x) for n in (1, 2, 3, 4)])(
        image
    )
    samples = views(transforms.resized(0.25, 1.0), image, 60)
    near = np.array(
        [[np.abs(view - one).max() < 1e-5 for one in map(np.asarray, single)] for view in samples]
    )
    assert (near.sum(axis=1) == 1).all() and near.any(axis=0).all()


def test_jpeg_draws_each_quality() -> None:
    image = random_image(16, 16, 3)
    single = np.asarray(jax.jit(jax.vmap(decoded, (None, 0)))(image, jnp.arange(70, 73)))
    samples = views(transforms.jpeg(70, 72), image, 40)
    near = np.array([[np.abs(view - one).max() < 1e-5 for one in single] for view in samples])
    assert (near.sum(axis=1) == 1).all() and near.any(axis=0).all()


# ---- errors ----


def test_resized_and_jpeg_refuse_wrong_ranges() -> None:
    for low, high in ((0.0, 1.0), (0.6, 0.5), (0.5, 1.1), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="resized needs 0 < `low` <= `high` <= 1: got"):
            transforms.resized(low, high)
    for low, high in ((0, 50), (60, 50), (50, 101)):
        with pytest.raises(
            ValueError, match="jpeg needs qualities 1 <= `low` <= `high` <= 100: got"
        ):
            transforms.jpeg(low, high)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.2, 1.1), (float("nan"), 1.0)])
def test_zoom_refuses_a_wrong_range(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="zoom needs 0 < `low` <= `high`: got"):
        transforms.zoom(low, high)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.6, 0.5), (0.5, 1.1), (float("nan"), 1.0)])
def test_crop_refuses_a_wrong_range(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="crop needs 0 < `low` <= `high` <= 1: got"):
        transforms.crop(low, high)


def test_rotate_and_scale_refuse_large_changes() -> None:
    for angle in (46.0, -46.0, float("nan")):
        with pytest.raises(ValueError, match="`degrees` of rotate must be at most 45: got"):
            transforms.rotate((0.0, angle))
    with pytest.raises(
        ValueError, match=r"`factors` of scale must be at least 0.5: got \(1.0, 0.4\)"
    ):
        transforms.scale((1.0, 0.4))


# ---- together ----


def test_compose_chains_transforms_with_separate_keys() -> None:
    image = random_image(6, 6, 3)
    np.testing.assert_array_equal(transforms.compose()(KEY, image), image)
    keys: list[jax.Array] = []

    def recorded(key: jax.Array, image: jax.Array) -> jax.Array:
        keys.append(jax.random.key_data(key))
        return 2.0 * image + len(keys)

    np.testing.assert_allclose(
        transforms.compose(recorded, recorded)(KEY, image), 4.0 * image + 4.0, rtol=1e-6
    )
    assert (keys[0] != keys[1]).any()
    transforms.compose(recorded, recorded)(KEY, image)
    np.testing.assert_array_equal(keys[:2], keys[2:])


def test_lucids_transforms_keep_the_image_within_a_gray_frame() -> None:
    """The jitters of 8 and 4 move the image by at most 4 + 2 pixels, less than the frame of 12."""
    black = jnp.zeros((10, 14, 3))
    samples = views(transforms.lucid(), black, 20)
    assert samples.shape == (20, 10 + 24 - 8 - 4, 14 + 24 - 8 - 4, 3)
    assert samples.max() == pytest.approx(0.5, abs=1e-5) and samples.min() == pytest.approx(
        0.0, abs=1e-5
    )
    dark = 1.0 - 2.0 * samples[..., 0]
    for axis, side in ((1, 22), (2, 26)):
        place = (
            np.moveaxis(dark, axis, -1).sum(axis=1)
            @ (np.arange(side) - (side - 1) / 2)
            / dark.sum(axis=(1, 2))
        )
        assert np.abs(place).max() < 8 and place.std() > 1
    assert dark.sum(axis=(1, 2)) == pytest.approx(140, rel=0.25)  # scaled by 0.9 to 1.1 per side
