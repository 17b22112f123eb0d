"""Every view of one image: its shape, its range, its gradient; and each by what it does to a picture that shows it."""

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
FIXED = {"pad", "resize"}  # these have no use for a key


def pictures(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).random(shape), jnp.float32)


def views(transform: Transform, image: jax.Array, count: int) -> np.ndarray:
    """So many random views of one image."""
    return np.asarray(
        jax.jit(lambda keys: jax.lax.map(lambda key: transform(key, image), keys))(
            jax.random.split(KEY, count)
        )
    )


def ramp(h: int, w: int = 4) -> jax.Array:
    """Rows of 0.5 / h, 1.5 / h, ...: each pixel says how far down it is, as a share of the height."""
    return jnp.broadcast_to((jnp.arange(h, dtype=jnp.float32)[:, None, None] + 0.5) / h, (h, w, 3))


def test_the_table_is_all_there_is() -> None:
    made = {
        name
        for name, f in vars(transforms).items()
        if callable(f) and f.__module__ == transforms.__name__
    }
    assert {name for name in made if not name.startswith("_")} == set(VIEWS)


@pytest.mark.parametrize(
    ("name", "shape"), [*((name, (9, 6)) for name in VIEWS), ("zoom", (8, 8)), ("rotate", (6, 11))]
)
def test_every_view_is_a_picture_of_fixed_shape_with_a_gradient(name: str, shape: Shape) -> None:
    transform, size = VIEWS[name]

    def look(key: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen, pull = jax.vjp(lambda image: transform(key, image), image)
        return seen, pull(jnp.ones_like(seen))[0]

    image, keys = pictures(*shape, 3), jax.random.split(KEY, 50)
    wanted = (*size(shape), 3)
    assert jax.eval_shape(transform, KEY, image) == jax.ShapeDtypeStruct(wanted, jnp.float32)
    many = jax.jit(jax.vmap(look, (0, None)))
    seen, slope = (np.asarray(x) for x in many(keys, image))
    assert seen.shape == (50, *wanted)
    assert -1e-5 <= seen.min() and seen.max() <= 1 + 1e-5
    assert np.isfinite(slope).all() and (np.abs(slope).max(axis=(1, 2, 3)) > 0.1).all()
    np.testing.assert_array_equal(seen, many(keys, image)[0])
    assert (len({view.tobytes() for view in seen}) == 1) == (name in FIXED)
    if name not in (
        "pad",
        "compose",
        "lucid",
        "noise",
        "zoom",
        "jpeg",
    ):  # invents no colour: beyond the edge is a mirror, never black
        np.testing.assert_allclose(many(keys, jnp.ones_like(image))[0], 1.0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ frames and moves


def test_pad_is_a_frame_of_grey() -> None:
    image = pictures(3, 4, 3)
    padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)), constant_values=0.5)
    np.testing.assert_array_equal(transforms.pad(2)(KEY, image), padded)
    assert transforms.pad(1, 0.25)(KEY, image)[0, 0, 0] == 0.25


def test_jitter_cuts_every_window_equally_often() -> None:
    image = jnp.arange(5 * 6 * 3, dtype=jnp.float32).reshape(5, 6, 3)
    seen = views(transforms.jitter(2), image, 900)
    corners, counts = np.unique(seen[:, 0, 0, 0], return_counts=True)
    assert corners.tolist() == [float(image[i, j, 0]) for i in range(3) for j in range(3)]
    assert (np.abs(counts - 100) < 40).all()  # four standard deviations
    for view in seen[:20]:
        i, j = divmod(int(view[0, 0, 0]) // 3, 6)
        np.testing.assert_array_equal(view, image[i : i + 3, j : j + 4])


def test_roll_loses_no_pixel_and_reaches_both_ends() -> None:
    image = pictures(7, 9, 3)
    rolls = {
        (i, j): np.roll(image, (i, j), (0, 1)).tobytes() for i in range(-2, 3) for j in range(-2, 3)
    }
    assert {view.tobytes() for view in views(transforms.roll(2), image, 300)} == set(rolls.values())


def test_flip_is_every_other_time() -> None:
    image = pictures(4, 5, 3)
    seen = views(transforms.flip(), image, 400)
    turned = np.array([(view == np.asarray(image)[:, ::-1]).all() for view in seen])
    assert ((seen == np.asarray(image)).all(axis=(1, 2, 3)) != turned).all()
    assert turned.mean() == pytest.approx(0.5, abs=0.1)


def test_noise_has_its_spread_and_is_cut_off() -> None:
    grain = views(transforms.noise(0.05, 0.05), jnp.full((16, 16, 3), 0.5), 8) - 0.5
    assert grain.mean() == pytest.approx(0.0, abs=0.003)
    assert grain.std() == pytest.approx(0.05, rel=0.05)
    cut = views(transforms.noise(0.05, 0.05), jnp.ones((16, 16, 3)), 1)
    assert cut.max() == 1.0 and (cut == 1.0).mean() == pytest.approx(0.5, abs=0.1)
    spreads = views(transforms.noise(0.02, 0.1), jnp.full((16, 16, 3), 0.5), 200).std(
        axis=(1, 2, 3)
    )
    assert spreads.min() < 0.025 and spreads.max() > 0.095
    assert spreads.mean() == pytest.approx(0.06, abs=0.006)  # even from end to end
    for low, high in ((-0.1, 0.1), (0.2, 0.1), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="noise wants 0 <= low <= high; got"):
            transforms.noise(low, high)


def test_resize() -> None:
    image = pictures(6, 6, 3)
    np.testing.assert_allclose(transforms.resize(6)(KEY, image), image, atol=1e-6)
    down = np.asarray(transforms.resize(8)(KEY, ramp(16, 16)))
    np.testing.assert_allclose(
        down[1:-1], ramp(8, 8)[1:-1], atol=1e-5
    )  # smoothed, a ramp stays one
    checks = jnp.broadcast_to(
        (jnp.indices((16, 16)).sum(0) % 2).astype(jnp.float32)[..., None], (16, 16, 3)
    )
    np.testing.assert_allclose(transforms.resize(4)(KEY, checks)[1:-1, 1:-1], 0.5, atol=0.02)


# -------------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("shape", [(7, 7), (6, 9)])
def test_by_one_changes_nothing(shape: Shape) -> None:
    unmoved = (
        transforms.zoom(1.0, 1.0),
        transforms.scale((1.0,)),
        transforms.crop(1.0, 1.0),
        transforms.rotate((0.0,)),
    )
    image = pictures(*shape, 3)
    for seen in jax.jit(lambda image: [transform(KEY, image) for transform in unmoved])(image):
        np.testing.assert_allclose(seen, image, atol=1e-5)


@pytest.mark.parametrize(
    ("side", "ahead", "kernel"),
    [(8, 5, np.array([1, 3, 3, 1]) / 8), (7, 4, np.array([1, 2, 1]) / 4)],
)
def test_out_by_two_shows_everything_and_its_mirror_image(
    side: int, ahead: int, kernel: np.ndarray
) -> None:
    """At scale 1/2 the whole picture lies in the middle of its mirror images, smoothed by a triangle twice as wide."""
    image = pictures(side, side, 3)
    frame = np.pad(np.asarray(image), ((ahead, ahead), (ahead, ahead), (0, 0)), mode="symmetric")
    wanted = np.zeros((side, side, 3))
    for i, a in enumerate(kernel):
        for j, b in enumerate(kernel):
            wanted += a * b * frame[i : i + 2 * side : 2, j : j + 2 * side : 2][:side, :side]
    np.testing.assert_allclose(views(transforms.scale((0.5,)), image, 1)[0], wanted, atol=1e-5)


@pytest.mark.parametrize(("side", "factor"), [(8, 0.5), (16, 0.3)])
def test_zoom_out_shows_the_whole_image_before_a_plain_colour(side: int, factor: float) -> None:
    """What the image covers is the difference between a white and a black one, of the same keys."""
    zoom = transforms.zoom(factor, factor)
    black, white = (views(zoom, jnp.full((side, side, 3), level), 200) for level in (0.0, 1.0))
    covered = (white - black)[..., 0]
    assert covered.min() >= -1e-5 and covered.max() <= 1 + 1e-5
    area = (
        covered.sum(axis=(1, 2)) ** 0.5
    )  # nothing is cut off, but for the blur of half a pixel at the frame's edge
    assert area.max() <= factor * side * 1.01 and area.min() > factor * side - 0.25
    rows = [np.flatnonzero(each.sum(axis=1) > 1e-3) for each in covered]
    assert {each[0] for each in rows} >= {0, 1} and {each[-1] for each in rows} >= {
        side - 1,
        side - 2,
    }  # all places
    for view, each in zip(black, covered, strict=True):
        beside = view[each < 1e-6]
        np.testing.assert_allclose(beside, np.broadcast_to(beside[0], beside.shape), atol=1e-6)
    first = np.stack([view[each < 1e-6][0] for view, each in zip(black, covered, strict=True)])
    assert (
        first.min() < 0.05
        and first.max() > 0.95
        and np.abs(np.corrcoef(first.T) - np.eye(3)).max() < 0.3
    )
    image = pictures(side, side, 3)
    seen = views(zoom, image, 200) - black
    np.testing.assert_allclose(
        seen.sum(axis=(1, 2)).mean(axis=0), factor**2 * image.sum(axis=(0, 1)), rtol=0.04
    )


def test_zoom_in_by_two_shows_a_part_at_random() -> None:
    rows = views(transforms.zoom(2.0, 2.0), ramp(32), 100)[:, :, 2, 0]
    np.testing.assert_allclose(
        np.diff(rows[:, 2:-2]), 1 / 64, atol=1e-4
    )  # twice as large: half the slope
    middle = rows[:, 15:17].mean(axis=1)
    assert 0.25 - 1e-3 <= middle.min() < 0.28 and 0.72 < middle.max() <= 0.75 + 1e-3


def test_zoom_is_even_in_octaves() -> None:
    rows = views(transforms.zoom(1.0, 4.0), ramp(64), 400)[:, :, 2, 0]
    scales = 1 / (64 * np.diff(rows[:, 30:34]).mean(axis=1))
    assert scales.min() == pytest.approx(1, abs=0.02) and scales.max() == pytest.approx(4, abs=0.1)
    assert np.mean(scales < 2) == pytest.approx(0.5, abs=0.08)


def test_scale_takes_each_factor_about_the_middle() -> None:
    rows = views(transforms.scale((0.8, 1.0, 2.0)), ramp(32), 100)[:, :, 2, 0]
    np.testing.assert_allclose(rows[:, 15:17].mean(axis=1), 0.5, atol=1e-5)
    factors = 19 / (32 * (rows[:, 25] - rows[:, 6]))
    np.testing.assert_allclose(np.unique(factors.round(2)), [0.8, 1.0, 2.0], atol=1e-5)


def test_crop_shows_a_window_that_lies_inside() -> None:
    """A quarter of the side, enlarged: the ramp has a quarter of its slope, and no part of it is a mirror image."""
    rows = views(transforms.crop(0.25, 0.25), ramp(32), 200)[:, :, 2, 0]
    inside = (rows > 0.5 / 32 + 1e-4) & (rows < 31.5 / 32 - 1e-4)  # the outer half pixels are flat
    steps = np.diff(rows)
    np.testing.assert_allclose(steps[inside[:, 1:] & inside[:, :-1]], 1 / 128, atol=1e-4)
    assert steps.min() > -1e-5
    middle = rows[:, 15:17].mean(axis=1)
    assert 0.125 - 1e-3 <= middle.min() < 0.14 and 0.86 < middle.max() <= 0.875 + 1e-3


def test_crop_is_even_over_its_shares() -> None:
    rows = views(transforms.crop(0.2, 1.0), ramp(64), 300)[:, :, 2, 0]
    shares = 64 * np.diff(rows[:, 30:34]).mean(axis=1)
    assert shares.min() == pytest.approx(0.2, abs=0.02) and shares.max() == pytest.approx(
        1.0, abs=0.02
    )
    assert np.mean(shares < 0.6) == pytest.approx(0.5, abs=0.1)


# ---------------------------------------------------------------------------------------------------------------- turns


def blob(h: int, w: int, right: float, up: float) -> np.ndarray:
    """A round bright spot, so many pixels right of and above the middle."""
    y, x = np.mgrid[:h, :w].astype(np.float64)
    square = (x - (w - 1) / 2 - right) ** 2 + (y - (h - 1) / 2 + up) ** 2
    return np.repeat(np.exp(-square / (2 * 2.5**2))[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("angle", "shape"), [(10.0, (33, 33)), (-10.0, (30, 37)), (45.0, (31, 38))]
)
def test_rotate_is_counter_clockwise_about_the_middle(angle: float, shape: Shape) -> None:
    """A round spot comes round again where the rotation, x right and y up, takes its centre."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    rotate = jax.jit(transforms.rotate((angle,)))
    for right, up in ((8.0, 0.0), (-3.0, 6.0)):
        seen = rotate(KEY, jnp.asarray(blob(*shape, right, up), jnp.float32))
        wanted = blob(*shape, cos * right - sin * up, sin * right + cos * up)
        middle = (slice(8, -8), slice(8, -8))  # in the corners lies what is mirrored in
        np.testing.assert_allclose(
            seen[middle], wanted[middle], atol=0.06
        )  # resampling lowers the peak


def test_rotate_takes_each_angle() -> None:
    image = pictures(8, 8, 3)
    each = jax.jit(lambda x: [transforms.rotate((angle,))(KEY, x) for angle in (-10.0, 0.0, 30.0)])(
        image
    )
    seen = views(transforms.rotate((-10.0, 0.0, 30.0)), image, 60)
    near = np.array(
        [[np.abs(view - one).max() < 1e-5 for one in map(np.asarray, each)] for view in seen]
    )
    assert (near.sum(axis=1) == 1).all() and near.any(axis=0).all()


# --------------------------------------------------------------------------------------------- what files do to pictures


def test_resized_is_pillows_bicubic_down_and_up() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 31, 3)).astype(np.uint8)
    levels = jnp.asarray(image, jnp.float32) / 255.0
    *found, same = jax.jit(
        lambda x: [transforms.resized(share, share)(KEY, x) for share in (0.5, 0.8, 1.0)]
    )(levels)
    for share, view in zip((0.5, 0.8), found, strict=True):
        wanted = resized(image[None], share)[0].astype(int)
        assert (
            np.abs(np.asarray(view) * 255 - wanted).max() < 2.5
        )  # Pillow rounds four times, this not once
        assert np.abs(image.astype(int) - wanted).mean() > 10
    np.testing.assert_allclose(same, levels, atol=1e-6)


def test_resized_takes_each_size() -> None:
    image = pictures(4, 4, 3)
    each = jax.jit(lambda x: [transforms.resized(n / 4, n / 4)(KEY, x) for n in (1, 2, 3, 4)])(
        image
    )
    seen = views(transforms.resized(0.25, 1.0), image, 60)
    near = np.array(
        [[np.abs(view - one).max() < 1e-5 for one in map(np.asarray, each)] for view in seen]
    )
    assert (near.sum(axis=1) == 1).all() and near.any(axis=0).all()


def test_jpeg_takes_each_quality() -> None:
    image = pictures(16, 16, 3)
    each = np.asarray(jax.jit(jax.vmap(decoded, (None, 0)))(image, jnp.arange(70, 73)))
    seen = views(transforms.jpeg(70, 72), image, 40)
    near = np.array([[np.abs(view - one).max() < 1e-5 for one in each] for view in seen])
    assert (near.sum(axis=1) == 1).all() and near.any(axis=0).all()


# -------------------------------------------------------------------------------------------------------- what is refused


def test_resized_and_jpeg_refuse() -> None:
    for low, high in ((0.0, 1.0), (0.6, 0.5), (0.5, 1.1), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="resized wants 0 < low <= high <= 1; got"):
            transforms.resized(low, high)
    for low, high in ((0, 50), (60, 50), (50, 101)):
        with pytest.raises(
            ValueError, match="jpeg wants qualities with 1 <= low <= high <= 100; got"
        ):
            transforms.jpeg(low, high)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.2, 1.1), (float("nan"), 1.0)])
def test_zoom_refuses(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="zoom wants 0 < low <= high; got"):
        transforms.zoom(low, high)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.6, 0.5), (0.5, 1.1), (float("nan"), 1.0)])
def test_crop_refuses(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="crop wants 0 < low <= high <= 1; got"):
        transforms.crop(low, high)


def test_rotate_and_scale_refuse() -> None:
    for angle in (46.0, -46.0, float("nan")):
        with pytest.raises(ValueError, match="rotate wants angles of at most 45 degrees; got"):
            transforms.rotate((0.0, angle))
    with pytest.raises(ValueError, match=r"scale wants factors of at least 0.5; got \(1.0, 0.4\)"):
        transforms.scale((1.0, 0.4))


# ------------------------------------------------------------------------------------------------------------- together


def test_compose_is_one_after_another_with_keys_of_their_own() -> None:
    image = pictures(6, 6, 3)
    np.testing.assert_array_equal(transforms.compose()(KEY, image), image)
    seen: list[jax.Array] = []

    def spy(key: jax.Array, image: jax.Array) -> jax.Array:
        seen.append(jax.random.key_data(key))
        return 2.0 * image + len(seen)

    np.testing.assert_allclose(
        transforms.compose(spy, spy)(KEY, image), 4.0 * image + 4.0, rtol=1e-6
    )
    assert (seen[0] != seen[1]).any()
    transforms.compose(spy, spy)(KEY, image)
    np.testing.assert_array_equal(seen[:2], seen[2:])


def test_lucids_set_shows_the_image_in_grey() -> None:
    """Pad 12, less jitter 8 and 4; the image stays within 4 + 2 pixels of the middle, whatever the view."""
    black = jnp.zeros((10, 14, 3))
    seen = views(transforms.lucid(), black, 20)
    assert seen.shape == (20, 10 + 24 - 8 - 4, 14 + 24 - 8 - 4, 3)
    assert seen.max() == pytest.approx(0.5, abs=1e-5) and seen.min() == pytest.approx(0.0, abs=1e-5)
    dark = 1.0 - 2.0 * seen[..., 0]
    for axis, side in ((1, 22), (2, 26)):
        place = (
            np.moveaxis(dark, axis, -1).sum(axis=1)
            @ (np.arange(side) - (side - 1) / 2)
            / dark.sum(axis=(1, 2))
        )
        assert np.abs(place).max() < 8 and place.std() > 1
    assert dark.sum(axis=(1, 2)) == pytest.approx(140, rel=0.25)  # scaled by 0.9 to 1.1 each way
