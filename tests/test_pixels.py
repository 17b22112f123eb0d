"""`tl.pixels`: the square a network sees, the border between 8 bit and `images01`, and what is refused there."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tl.pixels import INTERPOLATIONS, MAX_ASPECT, PixelSpec, check, normalise, prepare, to_images01, to_uint8

ALL_BYTES = np.arange(256, dtype=np.uint8)
SIDES = st.integers(1, 90)


def photograph(h: int, w: int) -> np.ndarray:
    """uint8[h w 3] noise, the same for the same size."""
    return np.random.RandomState(h * 1000 + w).randint(0, 256, (h, w, 3), dtype=np.uint8)


@given(h=SIDES, w=SIDES, size=st.integers(1, 40), crop=st.sampled_from([0.05, 0.5, 0.875, 0.9, 1.0]))
@example(h=1, w=1, size=1, crop=1.0)
@example(h=1, w=90, size=33, crop=0.875)
def test_every_size_becomes_the_square(h: int, w: int, size: int, crop: float):
    for resize in ("shorter", "squash"):
        square = prepare(PixelSpec(size=size, crop=crop, resize=resize), photograph(h, w))
        assert square.shape == (size, size, 3) and square.dtype == np.uint8


@given(h=SIDES, w=SIDES, size=st.integers(1, 40))
def test_one_colour_stays_one_colour_up_to_the_border(h: int, w: int, size: int):
    grey = np.full((h, w, 3), (10, 128, 251), np.uint8)
    np.testing.assert_array_equal(
        prepare(PixelSpec(size=size), grey), np.full((size, size, 3), (10, 128, 251), np.uint8)
    )


def test_an_image_of_the_right_size_is_only_cropped_and_the_crop_is_central():
    image = photograph(256, 256)
    np.testing.assert_array_equal(prepare(PixelSpec(), image), image[16:240, 16:240])
    np.testing.assert_array_equal(prepare(PixelSpec(size=256, crop=1.0), image), image)


@pytest.mark.parametrize("h, w, corner", [(8, 11, (0, 2)), (8, 13, (0, 2)), (11, 8, (2, 0)), (9, 8, (0, 0))])
def test_half_pixels_round_to_even_as_torchvisions_do(h: int, w: int, corner: tuple[int, int]):
    image, (top, left) = photograph(h, w), corner  # 1.5 -> 2, 2.5 -> 2, 0.5 -> 0
    np.testing.assert_array_equal(prepare(PixelSpec(size=8, crop=1.0), image), image[top : top + 8, left : left + 8])


def test_squash_is_pillows_resize_of_both_sides_and_crops_nothing():
    image = photograph(30, 70)
    for name, how in INTERPOLATIONS.items():
        want = np.asarray(Image.fromarray(image).resize((20, 20), how))
        np.testing.assert_array_equal(prepare(PixelSpec(size=20, resize="squash", interpolation=name), image), want)


def test_interpolations_differ():
    squares = [prepare(PixelSpec(size=20, interpolation=name), photograph(50, 60)).tobytes() for name in INTERPOLATIONS]
    assert len(set(squares)) == len(INTERPOLATIONS)


@pytest.mark.parametrize("h, w", [(2, 30_000), (30_000, 2), (1, 30_000), (1, 65_000)])
def test_a_sliver_keeps_its_middle_and_takes_no_gigabytes(h: int, w: int, monkeypatch: pytest.MonkeyPatch):
    sides: list[int] = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, how: sides.extend(size) or resize(self, size, how))
    image = np.zeros((h, w, 3), np.uint8)
    image[max(h // 2 - 20, 0) : h // 2 + 20, max(w // 2 - 20, 0) : w // 2 + 20] = 255  # white in the middle only
    square = prepare(PixelSpec(size=224), image)
    assert square.shape == (224, 224, 3) and max(sides) <= 256 * MAX_ASPECT
    assert square.min() == 255, "the crop is not the middle"


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_prepare_refuses_what_is_no_rgb_photograph(image: np.ndarray):
    with pytest.raises(ValueError, match=r"prepare wants uint8\[h w 3\]; got (float32|uint8)\["):
        prepare(PixelSpec(size=4), image)


def test_every_byte_survives_the_way_to_01_and_back():
    images01 = to_images01(ALL_BYTES)
    assert images01.dtype == np.float32 and images01[0] == 0.0 and images01[255] == 1.0
    np.testing.assert_array_equal(images01, (np.arange(256) / 255).astype(np.float32))
    np.testing.assert_array_equal(to_uint8(images01), ALL_BYTES)


@given(st.integers(0, 255), st.floats(-0.49, 0.49))
def test_to_uint8_takes_the_nearest(level: int, off: float):
    value = np.float32(min(max((level + off) / 255, 0.0), 1.0))
    assert to_uint8(np.full((1,), value, np.float32)) == [level]


@pytest.mark.parametrize("value", [-0.001, 1.001, np.nan, np.inf, 255.0])
def test_to_uint8_never_wraps(value: float):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        to_uint8(np.full((2, 2, 3), value, np.float32))


def test_to_images01_wants_bytes():
    with pytest.raises(ValueError, match=r"wants uint8 pictures; got float32\[2\]"):
        to_images01(np.zeros(2, np.float32))


def images(fill: float = 0.5, dtype: type = np.float32, shape: tuple[int, ...] = (1, 8, 8, 3)) -> np.ndarray:
    return np.full(shape, fill, dtype)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (images(2, np.uint8), r"must be float32 in \[0, 1\]; got uint8\[1, 8, 8, 3\]; use tl.pixels.to_images01"),
        (images(dtype=np.float64), r"must be float32 in \[0, 1\]; got float64\[1, 8, 8, 3\]"),
        (images(1, np.int32), r"must be float32 in \[0, 1\]; got int32"),
        (images(shape=(8, 8, 3)), r"f32\[b h w 3\], RGB; got float32\[8, 8, 3\]"),
        (images(shape=(1, 8, 8, 1)), r"f32\[b h w 3\], RGB; got float32\[1, 8, 8, 1\]"),
        (images(shape=(1, 3, 8, 8)), r"f32\[b h w 3\], RGB; got float32\[1, 3, 8, 8\]"),
        (images(1.5), r"lie in \[0, 1\].*in \[1.5, 1.5\]"),
        (images(-0.25), r"lie in \[0, 1\].*in \[-0.25, -0.25\]"),
        (images(np.nan), r"hold no NaN.*in \[nan, nan\]"),
        (images(np.inf), r"in \[inf, inf\]"),
        ([[0.5]], r"must be an array f32\[b h w c\] in \[0, 1\]; got list"),
        (None, r"got NoneType"),
    ],
)
def test_check_says_what_it_saw(wrong: object, message: str):
    with pytest.raises(ValueError, match=message):
        check(wrong, ndim=4)


def test_one_bad_pixel_among_many_is_found():
    for bad in (np.nan, -1e-6, 1 + 1e-6):
        some = images()
        some[0, 3, 5, 1] = bad
        with pytest.raises(ValueError, match="images01 must lie in"):
            check(some, ndim=4)


def test_check_lets_good_ones_pass_from_numpy_and_jax_and_the_empty_batch():
    for good in (images(0.0), images(1.0), jnp.asarray(images()), images(shape=(0, 8, 8, 3))):
        check(good, ndim=4)


def test_check_under_jit_knows_dtype_and_rank_only():
    @jax.jit
    def halve(images01: jax.Array) -> jax.Array:
        check(images01, ndim=4)
        return images01 * 0.5

    assert float(halve(images(3.0))[0, 0, 0, 0]) == 1.5  # values are unknown to a trace
    for wrong in (images(2, np.uint8), images(shape=(8, 8, 3))):
        with pytest.raises(ValueError, match="images01 must be"):
            halve(wrong)


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_normalise_subtracts_the_mean_and_divides_in_the_networks_order(channels: str):
    spec = PixelSpec(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0), channels=channels)
    pixel = np.array([[[[0.9, 0.4, 0.7]]]], np.float32)  # r, g, b
    ordered = [0.9, 0.4, 0.7] if channels == "rgb" else [0.7, 0.4, 0.9]
    want = [(value - m) / s for value, m, s in zip(ordered, spec.mean, spec.std, strict=True)]
    got = normalise(spec, jnp.asarray(pixel))
    assert got.shape == pixel.shape and got.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(got)[0, 0, 0], want, rtol=2e-6)


def test_caffes_means_and_scale_fit_the_spec():
    """Keras' VGG and ResNet: BGR, 0 to 255, minus (103.939, 116.779, 123.68): a mean and std of PixelSpec."""
    caffe = PixelSpec(mean=(103.939 / 255, 116.779 / 255, 123.68 / 255), std=(1 / 255,) * 3, channels="bgr")
    rgb = photograph(5, 4)
    want = rgb[None, ..., ::-1].astype(np.float64) - [103.939, 116.779, 123.68]
    np.testing.assert_allclose(normalise(caffe, jnp.asarray(to_images01(rgb[None]))), want, atol=2e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"interpolation": "bicubik"}, "unknown interpolation 'bicubik'; nearest: 'bicubic'"),
        ({"resize": "short"}, "unknown resize 'short'; nearest: 'shorter'"),
        ({"channels": "bgrr"}, "unknown channels 'bgrr'; nearest: 'bgr'"),
        ({"size": 0}, "size must be at least 1.*size=0"),
        ({"crop": 0.0}, r"crop in \(0, 1\].*crop=0.0"),
        ({"crop": 1.01}, "crop=1.01"),
        ({"crop": float("nan")}, "crop=nan"),
        ({"mean": (0.5,)}, r"mean must be three finite numbers.*got \(0.5,\)"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean must be three finite numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "std three above 0"),
        ({"std": (0.5, 0.5, -1.0)}, "std three above 0"),
    ],
)
def test_a_spec_that_means_nothing_is_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        PixelSpec(**fields)
    with pytest.raises(ValueError, match=message):
        PixelSpec().replace(**fields)


@given(
    size=st.integers(1, 999),
    crop=st.floats(0.01, 1.0),
    interpolation=st.sampled_from(sorted(INTERPOLATIONS)),
    channels=st.sampled_from(["rgb", "bgr"]),
)
def test_a_spec_survives_json(size: int, crop: float, interpolation: str, channels: str):
    spec = PixelSpec(size=size, crop=crop, interpolation=interpolation, channels=channels)
    assert PixelSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec
