"""`tl.pixels`: preprocessing on host and device, 8 bit to `images01` and back, and the checks."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests import toys
from tl import data
from tl.pixels import (
    CAFFE,
    INCEPTION,
    INTERPOLATIONS,
    LITE,
    MAX_ASPECT,
    TORCHVISION,
    PixelSpec,
    check,
    normalize,
    prepare,
    prepare_on_device,
    resize_on_device,
    to_images01,
    to_uint8,
)

ALL_BYTES = np.arange(256, dtype=np.uint8)
SIDES = st.integers(1, 90)


@given(
    h=SIDES, w=SIDES, size=st.integers(1, 40), crop=st.sampled_from([0.05, 0.5, 0.875, 0.9, 1.0])
)
@example(h=1, w=1, size=1, crop=1.0)
@example(h=1, w=90, size=33, crop=0.875)
def test_every_image_becomes_a_square_of_the_size_of_the_spec(
    h: int, w: int, size: int, crop: float
):
    for resize in ("shorter", "squash"):
        square = prepare(PixelSpec(size=size, crop=crop, resize=resize), toys.noise(h, w, 3))
        assert square.shape == (size, size, 3) and square.dtype == np.uint8


RESIZES = pytest.mark.parametrize(
    "interpolation, size", [("bicubic", 30), ("bilinear", 30), ("bicubic", 17)]
)


def resize_and_gradient(spec: PixelSpec, images01: np.ndarray, weights: np.ndarray):
    """The resized images and the gradient of their weighted sum."""

    def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        resized = resize_on_device(spec, x)
        return jnp.sum(resized * weights[None]), resized

    (_, resized), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(images01)
    return np.asarray(resized), np.asarray(gradient)


@RESIZES
def test_the_resize_with_a_gradient_equals_pillow_within_two_levels(interpolation: str, size: int):
    spec = PixelSpec(size=size, crop=1.0, interpolation=interpolation)
    image, weights = toys.noise(24, 24, 3), np.ones((size, size, 3), np.float32)
    resized, _ = resize_and_gradient(spec, to_images01(image)[None], weights)
    levels = resized[0] * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    difference = np.abs(levels - prepare(spec, image).astype(np.float32))
    assert difference.max() < 2.5
    assert np.mean(difference > 1.5) < 0.01 and np.mean(difference > 0.5) < 0.2


@RESIZES
def test_the_gradient_of_the_resize_predicts_the_change_of_pillow(interpolation: str, size: int):
    """Compared on an image of low contrast, where nothing is clipped and the resize is linear."""
    spec = PixelSpec(size=size, crop=1.0, interpolation=interpolation)
    images01 = to_images01(toys.noise(24, 24, 3))[None]
    weights = np.random.default_rng(0).normal(size=(size, size, 3)).astype(np.float32)
    _, gradient = resize_and_gradient(spec, images01, weights)
    low_contrast = np.float32(0.5) + np.float32(0.2) * (images01 - np.float32(0.5))
    changed = low_contrast + np.float32(0.1) * np.sign(gradient)
    before, after = (
        float(np.sum(prepare(spec, to_uint8(x[0])).astype(np.float32) / 255 * weights))
        for x in (low_contrast, changed)
    )
    assert after - before > 0.05 * float(np.abs(gradient).sum())


def test_the_resize_to_the_same_size_is_the_identity():
    images01 = to_images01(toys.noise(24, 24, 3))[None]
    assert resize_on_device(PixelSpec(size=24), images01) is images01


@given(h=SIDES, w=SIDES, size=st.integers(1, 40))
def test_a_uniform_color_stays_uniform_up_to_the_border(h: int, w: int, size: int):
    gray = np.full((h, w, 3), (10, 128, 251), np.uint8)
    np.testing.assert_array_equal(
        prepare(PixelSpec(size=size), gray), np.full((size, size, 3), (10, 128, 251), np.uint8)
    )


def test_an_image_of_the_right_size_is_only_cropped_at_the_center():
    image = toys.noise(256, 256, 3)
    np.testing.assert_array_equal(prepare(PixelSpec(), image), image[16:240, 16:240])
    np.testing.assert_array_equal(prepare(PixelSpec(size=256, crop=1.0), image), image)


@pytest.mark.parametrize(
    "h, w, corner", [(8, 11, (0, 2)), (8, 13, (0, 2)), (11, 8, (2, 0)), (9, 8, (0, 0))]
)
def test_half_pixels_round_to_even_as_in_torchvision(h: int, w: int, corner: tuple[int, int]):
    image, (y, x) = toys.noise(h, w, 3), corner  # 1.5 -> 2, 2.5 -> 2, 0.5 -> 0
    np.testing.assert_array_equal(
        prepare(PixelSpec(size=8, crop=1.0), image), image[y : y + 8, x : x + 8]
    )


def test_squash_is_the_resize_of_pillow_without_a_crop():
    image = toys.noise(30, 70, 3)
    for name, resample in INTERPOLATIONS.items():
        expected = np.asarray(Image.fromarray(image).resize((20, 20), resample))
        np.testing.assert_array_equal(
            prepare(PixelSpec(size=20, resize="squash", interpolation=name), image), expected
        )


def test_interpolations_differ():
    squares = [
        prepare(PixelSpec(size=20, interpolation=name), toys.noise(50, 60, 3)).tobytes()
        for name in INTERPOLATIONS
    ]
    assert len(set(squares)) == len(INTERPOLATIONS)


@pytest.mark.parametrize("h, w", [(2, 30_000), (30_000, 2), (1, 30_000), (1, 65_000)])
def test_a_narrow_strip_keeps_its_middle_and_needs_little_memory(
    h: int, w: int, monkeypatch: pytest.MonkeyPatch
):
    sides: list[int] = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda self, size, resample: sides.extend(size) or resize(self, size, resample),
    )
    image = np.zeros((h, w, 3), np.uint8)
    # White in the middle only.
    image[max(h // 2 - 20, 0) : h // 2 + 20, max(w // 2 - 20, 0) : w // 2 + 20] = 255
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
def test_prepare_of_other_arrays_than_rgb_images_is_an_error(image: np.ndarray):
    with pytest.raises(ValueError, match=r"`image` must be uint8\[h w 3\]: got (float32|uint8)\["):
        prepare(PixelSpec(size=4), image)


def test_every_byte_is_restored_from_images01():
    images01 = to_images01(ALL_BYTES)
    assert images01.dtype == np.float32 and images01[0] == 0.0 and images01[255] == 1.0
    np.testing.assert_array_equal(images01, (np.arange(256) / 255).astype(np.float32))
    np.testing.assert_array_equal(to_uint8(images01), ALL_BYTES)


@given(st.integers(0, 255), st.floats(-0.49, 0.49))
def test_to_uint8_rounds_to_the_nearest_level(level: int, offset: float):
    value = np.float32(min(max((level + offset) / 255, 0.0), 1.0))
    assert to_uint8(np.full((1,), value, np.float32)) == [level]


@pytest.mark.parametrize("value", [-0.001, 1.001, np.nan, np.inf, 255.0])
def test_to_uint8_never_wraps(value: float):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        to_uint8(np.full((2, 2, 3), value, np.float32))


def test_to_images01_of_floats_is_an_error():
    with pytest.raises(ValueError, match=r"`images` must be uint8: got float32\[2\]"):
        to_images01(np.zeros(2, np.float32))


def images(
    fill: float = 0.5, dtype: type = np.float32, shape: tuple[int, ...] = (1, 8, 8, 3)
) -> np.ndarray:
    return np.full(shape, fill, dtype)


@pytest.mark.parametrize(
    "invalid, message",
    [
        (
            images(2, np.uint8),
            r"must be float32 in \[0, 1\]: got uint8\[1, 8, 8, 3\]; use tl.pixels.to_images01",
        ),
        (images(dtype=np.float64), r"must be float32 in \[0, 1\]: got float64\[1, 8, 8, 3\]"),
        (images(1, np.int32), r"must be float32 in \[0, 1\]: got int32"),
        (images(shape=(8, 8, 3)), r"f32\[b h w 3\], RGB: got float32\[8, 8, 3\]"),
        (images(shape=(1, 8, 8, 1)), r"f32\[b h w 3\], RGB: got float32\[1, 8, 8, 1\]"),
        (images(shape=(1, 3, 8, 8)), r"f32\[b h w 3\], RGB: got float32\[1, 3, 8, 8\]"),
        (images(1.5), r"lie in \[0, 1\].*in \[1.5, 1.5\]"),
        (images(-0.25), r"lie in \[0, 1\].*in \[-0.25, -0.25\]"),
        (images(np.nan), r"hold no NaN.*in \[nan, nan\]"),
        (images(np.inf), r"in \[inf, inf\]"),
        ([[0.5]], r"must be an array f32\[b h w c\] in \[0, 1\]: got list"),
        (None, r"got NoneType"),
    ],
)
def test_check_reports_dtype_shape_and_range(invalid: object, message: str):
    with pytest.raises(ValueError, match=message):
        check(invalid, ndim=4)


def test_one_invalid_value_is_found():
    for bad in (np.nan, -1e-6, 1 + 1e-6):
        invalid = images()
        invalid[0, 3, 5, 1] = bad
        with pytest.raises(ValueError, match="`images01` must lie in"):
            check(invalid, ndim=4)


def test_check_accepts_numpy_and_jax_arrays_and_an_empty_batch():
    for valid in (images(0.0), images(1.0), jnp.asarray(images()), images(shape=(0, 8, 8, 3))):
        check(valid, ndim=4)


def test_check_under_jit_tests_dtype_and_rank_only():
    @jax.jit
    def halve(images01: jax.Array) -> jax.Array:
        check(images01, ndim=4)
        return images01 * 0.5

    assert float(halve(images(3.0))[0, 0, 0, 0]) == 1.5  # values are unknown to a trace
    for invalid in (images(2, np.uint8), images(shape=(8, 8, 3))):
        with pytest.raises(ValueError, match="`images01` must be"):
            halve(invalid)


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_normalize_subtracts_the_mean_and_divides_in_the_channel_order(channels: str):
    spec = PixelSpec(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0), channels=channels)
    pixel = np.array([[[[0.9, 0.4, 0.7]]]], np.float32)  # r, g, b
    ordered = [0.9, 0.4, 0.7] if channels == "rgb" else [0.7, 0.4, 0.9]
    expected = [(value - m) / s for value, m, s in zip(ordered, spec.mean, spec.std, strict=True)]
    got = normalize(spec, jnp.asarray(pixel))
    assert got.shape == pixel.shape and got.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(got)[0, 0, 0], expected, rtol=2e-6)


def test_a_spec_expresses_the_preprocessing_of_caffe():
    """BGR, 0 to 255, minus (103.939, 116.779, 123.68), as VGG and ResNet of Keras."""
    rgb = toys.noise(5, 4, 3)
    expected = rgb[None, ..., ::-1].astype(np.float64) - [103.939, 116.779, 123.68]
    np.testing.assert_allclose(
        normalize(CAFFE, jnp.asarray(to_images01(rgb[None]))), expected, atol=2e-5
    )


def test_a_spec_expresses_the_preprocessing_of_efficientnet_lite():
    """`(x - 127) / 128` on 0 to 255."""
    levels = np.broadcast_to(ALL_BYTES[None, None, :, None], (1, 1, 256, 3))
    expected = (levels.astype(np.float64) - 127) / 128
    np.testing.assert_allclose(
        normalize(LITE, jnp.asarray(to_images01(levels))), expected, atol=2e-7
    )


GRAY = PixelSpec(size=8, mean=(0.45,), std=(0.25,))
FOUR = PixelSpec(size=8, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5, 0.5, 0.5, 0.25))


@pytest.mark.parametrize("resize", ["shorter", "squash"])
def test_a_single_input_channel_is_the_luma(resize: str):
    image = toys.noise(9, 12, 3)
    luma = np.asarray(Image.fromarray(image).convert("L"))
    expected = prepare(PixelSpec(size=8, resize=resize), np.repeat(luma[..., None], 3, axis=2))
    got = prepare(GRAY.replace(resize=resize), image)
    assert got.shape == (8, 8, 1) and got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected[..., :1])
    pure = np.zeros((8, 8, 3), np.uint8)
    pure[..., 1] = 255  # ITU-R BT.601: 0.587 of green
    assert set(prepare(GRAY.replace(resize=resize), pure).flat) == {150}


def test_other_numbers_of_channels_accept_arrays_only():
    with pytest.raises(
        ValueError,
        match=r"the network has 4 input channels; pass arrays f32\[b h w 4\]",
    ):
        prepare(FOUR, toys.noise(9, 9, 3))


@pytest.mark.parametrize("spec", [GRAY, FOUR], ids=["gray", "four"])
def test_any_number_of_channels_is_checked_and_normalized(spec: PixelSpec):
    c = len(spec.mean)
    images01 = images(0.7, shape=(2, 8, 8, c))
    check(images01, ndim=4, channels=c)
    expected = (0.7 - np.array(spec.mean)) / np.array(spec.std)
    np.testing.assert_allclose(
        np.asarray(normalize(spec, jnp.asarray(images01)))[1, 3, 5], expected, rtol=2e-6
    )
    with pytest.raises(ValueError, match=rf"must be f32\[b h w {c}\]: got float32\[1, 8, 8, 3\]"):
        check(images(), ndim=4, channels=c)
    with pytest.raises(
        ValueError, match=rf"must have {c} channels, one per mean: got \[1, 8, 8, 3\]"
    ):
        normalize(spec, jnp.asarray(images()))  # which would broadcast silently
    assert PixelSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"interpolation": "bicubik"}, "unknown interpolation 'bicubik'; nearest: 'bicubic'"),
        ({"resize": "short"}, "unknown resize 'short'; nearest: 'shorter'"),
        ({"channels": "bgrr"}, "unknown channels 'bgrr'; nearest: 'bgr'"),
        ({"size": 0}, "`size` must be at least 1.*size=0"),
        ({"crop": 0.0}, r"`crop` in \(0, 1\].*crop=0.0"),
        ({"crop": 1.01}, "crop=1.01"),
        ({"crop": float("nan")}, "crop=nan"),
        ({"mean": (0.5,)}, r"`mean` must be three finite numbers.*got \(0.5,\)"),
        ({"mean": (), "std": ()}, "`mean` must be 1 finite numbers"),
        ({"mean": (0.5,), "std": (0.0,)}, r"`std` 1 above 0: got \(0.5,\) and \(0.0,\)"),
        (
            {"mean": (0.5,) * 4, "std": (0.5,) * 4, "channels": "bgr"},
            "is for three input channels: got 4 numbers in `mean`",
        ),
        ({"mean": (0.5, 0.5, float("nan"))}, "`mean` must be three finite numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "`std` three above 0"),
        ({"std": (0.5, 0.5, -1.0)}, "`std` three above 0"),
    ],
)
def test_a_spec_with_invalid_fields_is_an_error(fields: dict, message: str):
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
def test_a_spec_is_restored_from_json(size: int, crop: float, interpolation: str, channels: str):
    spec = PixelSpec(size=size, crop=crop, interpolation=interpolation, channels=channels)
    assert PixelSpec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


# ---- on the device ----

# Largest difference from `prepare`, in levels; see the docstring of `prepare_on_device`.
LEVELS = {"bilinear": 2, "bicubic": 1, "lanczos": 1}


def on_device(spec: PixelSpec, image: np.ndarray) -> np.ndarray:
    """uint8[s s c] of `prepare_on_device`, whose values are exactly those of `to_images01`."""
    images01 = np.asarray(jax.jit(prepare_on_device, static_argnums=0)(spec, image[None]))
    assert images01.dtype == np.float32
    np.testing.assert_array_equal(images01, to_images01(to_uint8(images01)))
    return to_uint8(images01)[0]


@settings(max_examples=8)  # each compiles a program
@given(
    h=SIDES,
    w=SIDES,
    size=st.integers(1, 40),
    crop=st.sampled_from([0.3, 0.875, 1.0]),
    resize=st.sampled_from(["shorter", "squash"]),
    interpolation=st.sampled_from(sorted(LEVELS)),
)
# Pillow 13 resizes the height first.
@example(h=80, w=40, size=33, crop=1.0, resize="squash", interpolation="lanczos")
@example(h=90, w=1, size=33, crop=0.875, resize="shorter", interpolation="bicubic")
def test_the_device_resizes_as_pillow_within_its_levels(
    h: int, w: int, size: int, crop: float, resize: str, interpolation: str
):
    spec = PixelSpec(size=size, crop=crop, resize=resize, interpolation=interpolation)
    expected, got = (f(spec, toys.noise(h, w, 3)).astype(int) for f in (prepare, on_device))
    assert np.abs(expected - got).max() <= LEVELS[interpolation]


@pytest.mark.parametrize("resize", ["shorter", "squash"])
@pytest.mark.parametrize("h, w", [(37, 53), (40, 31)])
@pytest.mark.optimized
def test_nearest_on_the_device_equals_pillow(h: int, w: int, resize: str):
    """With sizes for which no pixel center is between two source pixels."""
    spec = PixelSpec(size=16, crop=1.0, resize=resize, interpolation="nearest")
    np.testing.assert_array_equal(
        on_device(spec, toys.noise(h, w, 3)), prepare(spec, toys.noise(h, w, 3))
    )


@pytest.mark.parametrize(
    "spec, shape",
    [(PixelSpec(size=8), (2, 400)), (PixelSpec(size=8, mean=(0.5,), std=(0.5,)), (20, 30))],
    ids=["narrow strip", "gray"],
)
def test_narrow_strips_and_gray_images_equal_the_host_within_one_level(
    spec: PixelSpec, shape: tuple[int, int]
):
    image = toys.noise(*shape, 3)
    difference = on_device(spec, image).astype(int) - prepare(spec, image)
    assert np.abs(difference).max() <= 1


def test_one_exported_program_accepts_every_size():
    b, h, w = jax.export.symbolic_shape("b, h, w")
    spec = PixelSpec(size=16)
    fn = jax.jit(lambda images: prepare_on_device(spec, images))
    program = jax.export.export(fn)(jax.ShapeDtypeStruct((b, h, w, 3), np.uint8))
    for n, height, width in ((1, 30, 20), (3, 17, 41)):
        batch = np.stack([toys.noise(height, width, 3)] * n)
        got = to_uint8(np.asarray(program.call(batch))).astype(int)
        assert np.abs(got - prepare(spec, batch[0])[None].astype(int)).max() <= 1


def test_real_photographs_on_the_device_differ_in_few_values(photographs: list[Path]):
    spec = PixelSpec()
    for path in photographs[:2]:
        image = data.decode(path)
        difference = np.abs(prepare(spec, image).astype(int) - on_device(spec, image))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.001


@pytest.mark.parametrize(
    "invalid",
    [
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 8, 8, 1), np.uint8),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_prepare_on_device_of_other_arrays_is_an_error(invalid: np.ndarray):
    with pytest.raises(ValueError, match=r"`images` must be uint8\[b h w 3\]: got"):
        prepare_on_device(PixelSpec(), invalid)


def test_prepare_on_device_for_four_channels_is_an_error():
    with pytest.raises(ValueError, match="the network has 4 input channels"):
        prepare_on_device(FOUR, np.zeros((1, 8, 8, 3), np.uint8))


# ---- the preprocessing of the publishers of weights, on real photographs ----

# They have many sizes and both orientations.
PHOTOGRAPHS = 24


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> list[Path]:
    folders = (shared_data / "cats_vs_dogs" / "cat", shared_data / "imagenet_samples")
    return [
        path
        for folder in folders
        for path in sorted(folder.rglob("*.[jJ][pP]*"))[: PHOTOGRAPHS // 2]
    ]


def network_input(spec: PixelSpec, path: Path) -> np.ndarray:
    """f32[h w c], the input of the network for an image file."""
    return np.asarray(
        normalize(spec, jnp.asarray(to_images01(prepare(spec, data.decode(path))[None])))
    )[0]


@pytest.mark.parity
@pytest.mark.parametrize(
    "preset, spec",
    [
        ({"crop_size": 224}, TORCHVISION),
        ({"crop_size": 224, "resize_size": 232}, TORCHVISION.replace(crop=0.965)),
        ({"crop_size": 299, "resize_size": 342, "mean": (0.5,) * 3, "std": (0.5,) * 3}, None),
    ],
    ids=["IMAGENET1K_V1", "IMAGENET1K_V2", "inception"],
)
def test_pixels_equal_those_of_the_presets_of_torchvision(
    preset: dict, spec: PixelSpec | None, photographs: list[Path]
):
    """Pixels are equal; only the float32 rounding of the normalization differs."""
    from experiments.benchmarks.sources import import_torchvision

    import_torchvision()
    from torchvision.transforms._presets import ImageClassification

    spec = spec or INCEPTION.replace(size=299, crop=299 / 342, interpolation="bilinear")
    transform = ImageClassification(**preset)
    for path in photographs:
        expected = transform(Image.open(path).convert("RGB")).numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(network_input(spec, path), expected, atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(
    "module, spec",
    [
        ("vgg16", CAFFE),
        ("resnet", CAFFE),
        ("resnet_v2", INCEPTION),
        ("mobilenet", INCEPTION),
        ("mobilenet_v2", INCEPTION),
    ],
)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_pixels_equal_those_of_keras_load_img_and_preprocess_input(
    module: str,
    spec: PixelSpec,
    interpolation: str,
    photographs: list[Path],
    monkeypatch: pytest.MonkeyPatch,
):
    """`load_img(target_size=...)` squashes; the function of the application then normalizes."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    preprocess = importlib.import_module(f"keras.applications.{module}").preprocess_input
    utils = importlib.import_module("keras.utils")
    spec = spec.replace(resize="squash", interpolation=interpolation)
    for path in photographs:
        image = utils.load_img(path, target_size=(224, 224), interpolation=interpolation)
        expected = preprocess(utils.img_to_array(image)[None])[0]
        np.testing.assert_allclose(network_input(spec, path), expected, atol=2e-7 / min(spec.std))
