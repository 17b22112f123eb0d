"""Preprocessing: from a decoded image to the input of a network.

This is the only module of `tl` that resizes, crops or normalizes. There are two steps:
  `prepare`, on the host:     uint8[h w 3] of any size -> uint8[s s c] (resize, center crop)
  `normalize`, on the device: images01 f32[b s s c] in [0, 1] -> inputs (mean, std, channel order)
`prepare_on_device` is the first step inside an exported program; `resize_on_device` is a resize
with a gradient. Users, attacks and ideal images handle `images01` only: RGB in [0, 1], with c = 3
unless a network has another number of input channels. `tl.data.decode` reads files. `PixelSpec`
values that many weights share are defined below the class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
import PIL
from jax.core import Tracer
from PIL import Image

from tl.paths import nearest
from tl.types import Array

# torchvision's ImageNet statistics, RGB in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_PILLOW = int(PIL.__version__.partition(".")[0])
# A longer strip is cropped to this aspect ratio before the resize, which would otherwise need
# gigabytes of memory; chosen, not tuned.
MAX_ASPECT = 50
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclasses.dataclass(frozen=True)
class PixelSpec:
    """The preprocessing that a set of weights expects; it is stored with the weights.

    Attributes:
      size: side of the square input, in pixels.
      crop: fraction of the resized shorter side that the center crop keeps, in (0, 1]; 0.875 is 224
        of 256.
      resize: "shorter" keeps the aspect ratio and crops; "squash" resizes both sides to `size` and
        crops nothing.
      interpolation: a name in `INTERPOLATIONS`, a filter of Pillow; all but "nearest" antialias.
        torchvision and timm use the same code for PIL images.
      mean, std: one number per input channel, for values in [0, 1], in the order of `channels`.
      channels: channel order of the network: "rgb", or "bgr" (Caffe; VGG and ResNet of Keras),
        which needs three channels.

    Raises:
      ValueError: a field has an unknown name or a value outside its range.
    """

    size: int = 224
    crop: float = 0.875
    resize: Literal["shorter", "squash"] = "shorter"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        for field, value, choices in (
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("resize", self.resize, ("shorter", "squash")),
            ("channels", self.channels, ("rgb", "bgr")),
        ):
            if value not in choices:
                raise ValueError(f"unknown {field} {value!r}; nearest: {nearest(value, choices)}")
        if not (self.size >= 1 and 0 < self.crop <= 1):
            raise ValueError(
                f"`size` must be at least 1 and `crop` in (0, 1]: got size={self.size}, "
                f"crop={self.crop}"
            )
        c = max(len(self.mean), len(self.std))
        finite = np.isfinite([*self.mean, *self.std]).all()
        if not (len(self.mean) == len(self.std) >= 1 and finite and min(self.std) > 0):
            n = "three" if c == 3 else max(c, 1)
            raise ValueError(
                f"`mean` must be {n} finite numbers and `std` {n} above 0: got {self.mean} and "
                f"{self.std}"
            )
        if self.channels == "bgr" and c != 3:
            raise ValueError(
                f"channels='bgr' is for three input channels: got {c} numbers in `mean`; use "
                "'rgb', the order of the input"
            )

    def replace(self, **changes: Any) -> PixelSpec:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields; `PixelSpec.from_dict` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PixelSpec:
        """The inverse of `as_dict`."""
        changes: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return cls(**changes)


# torchvision's reference: resize 256, crop 224, bilinear.
TORCHVISION = PixelSpec(interpolation="bilinear")
# VGG and ResNet of Keras ("caffe"): 0 to 255, BGR, minus the ImageNet mean.
CAFFE = PixelSpec(
    mean=(103.939 / 255, 116.779 / 255, 123.68 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    channels="bgr",
)
# -1 to 1 ("tf" in Keras).
INCEPTION = PixelSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
# EfficientNet-Lite: (x - 127) / 128 on 0 to 255.
LITE = PixelSpec(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


def prepare(spec: PixelSpec, image: np.ndarray) -> np.ndarray:
    """The square 8-bit input of a network from a decoded image.

    Args:
      spec: preprocessing of the weights.
      image: uint8[h w 3] RGB, as returned by `tl.data.decode`.

    Returns:
      uint8[size size c]; a single channel is the luma of ITU-R 601 (Pillow's "L"). Resized lengths
      are truncated and crop corners rounded as in `transforms.functional.resize` and `center_crop`
      of torchvision, so the pixels equal those of torchvision.

    Raises:
      ValueError: `image` has another dtype or shape, or the network has neither 3 nor 1 input
        channels and therefore accepts arrays only.

    Example:
      >>> prepare(PixelSpec(size=8), np.zeros((30, 20, 3), np.uint8)).shape
      (8, 8, 3)
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"`image` must be uint8[h w 3]: got {image.dtype}{list(image.shape)}")
    _check_channels_of_images(spec)
    pil, size, c = Image.fromarray(image), spec.size, len(spec.mean)
    resample = INTERPOLATIONS[spec.interpolation]
    pil = pil if c == 3 else pil.convert("L")
    if spec.resize == "squash":
        return np.asarray(pil.resize((size, size), resample)).reshape(size, size, c)
    longest = MAX_ASPECT * min(pil.size)
    if max(pil.size) > longest:  # the center crop uses the middle only
        (w, h), (cw, ch) = pil.size, (min(side, longest) for side in pil.size)
        pil = pil.crop(((w - cw) // 2, (h - ch) // 2, (w - cw) // 2 + cw, (h - ch) // 2 + ch))
    short = int(size / spec.crop)
    width, height = (
        short if side == min(pil.size) else int(short * side / min(pil.size)) for side in pil.size
    )
    pil = pil.resize((width, height), resample)
    x, y = (int(round((side - size) / 2.0)) for side in pil.size)
    return np.asarray(pil.crop((x, y, x + size, y + size))).reshape(size, size, c)


def prepare_on_device(spec: PixelSpec, images: jax.Array) -> jax.Array:
    """`prepare` and `to_images01` as one traceable function, for exported programs.

    The two passes of Pillow, each rounded to 8 bit, are products with matrices that are computed
    from indices, so height and width may be symbolic (`jax.export`). The weights are float32,
    whereas Pillow's have 22 bits, so a sum halfway between two levels may be rounded to the other
    level, once per pass. Compared with `prepare`, one value in 1,000 to 100,000 differs by one
    level with "bicubic" and "lanczos"; with "bilinear", whose weights are small fractions, up to a
    tenth differ, a few of them by two levels. Large images need more arithmetic than in Pillow:
    2 * size * h * w * c operations for the first pass.

    Args:
      spec: preprocessing of the weights.
      images: uint8[b h w 3] RGB with sides of at most 65,535 pixels.

    Returns:
      f32[b size size c] in [0, 1], multiples of 1 / 255. With "nearest", a pixel whose center is
      exactly between two source pixels may take the other one.

    Raises:
      ValueError: as `prepare`.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"`images` must be uint8[b h w 3]: got {images.dtype}{list(images.shape)}")
    _check_channels_of_images(spec)
    sides = [jnp.asarray(side, jnp.int32) for side in images.shape[1:3]]
    levels = images.astype(jnp.int32)
    if len(spec.mean) == 1:  # Pillow's "L", in 16-bit fixed point
        luma = jnp.asarray([19595, 38470, 7471], jnp.int32)
        levels = (jnp.sum(levels * luma.reshape(1, 1, 1, 3), axis=3, keepdims=True) + 0x8000) >> 16
    short, least = int(spec.size / spec.crop), jnp.minimum(*sides)
    positions, removed = [], []
    for side in sides:
        cropped, resized = side, jnp.asarray(spec.size, jnp.int32)
        if spec.resize == "shorter":
            cropped = jnp.minimum(side, MAX_ASPECT * least)
            resized = short * cropped // least
        corner = jnp.rint((resized - spec.size).astype(jnp.float32) / 2).astype(jnp.int32)
        # Source coordinates of pixel centers, as exact integers over 2 * resized.
        doubled = (2 * (corner + jnp.arange(spec.size, dtype=jnp.int32)) + 1) * cropped
        whole, rest = doubled // (2 * resized), doubled % (2 * resized)
        part = rest.astype(jnp.float32) / (2 * resized).astype(jnp.float32)
        scale = jnp.maximum(cropped.astype(jnp.float32) / resized.astype(jnp.float32), 1.0)
        positions.append(((side - cropped) // 2 + whole, part, scale))
        removed.append(cropped - resized)
    if spec.interpolation == "nearest":
        (rows, *_), (columns, *_) = positions
        return _levels01(levels[:, rows][:, :, columns])
    matrices = []
    for side, (whole, part, scale) in zip(images.shape[1:3], positions, strict=True):
        index = jax.lax.iota(jnp.int32, side)
        distance = (index[None, :] - whole[:, None]).astype(jnp.float32) + (0.5 - part)[:, None]
        weights = KERNELS[spec.interpolation](distance / scale)
        matrices.append(weights / jnp.sum(weights, axis=1, keepdims=True))

    def down(x: jax.Array) -> jax.Array:
        return _rounded(
            jnp.einsum("bhwc,sh->bswc", x, matrices[0], precision=jax.lax.Precision.HIGHEST)
        )

    def across(x: jax.Array) -> jax.Array:
        return _rounded(
            jnp.einsum("bhwc,sw->bhsc", x, matrices[1], precision=jax.lax.Precision.HIGHEST)
        )

    x = levels.astype(jnp.float32)
    if _PILLOW < 13:
        return _levels01(down(across(x)))
    # Pillow 13 resizes the height first if it loses more than twice as many pixels as the width.
    height_first = (removed[0] > 0) & (removed[0] > 2 * removed[1])
    return _levels01(
        jax.lax.cond(height_first, lambda x: across(down(x)), lambda x: down(across(x)), x)
    )


def resize_on_device(spec: PixelSpec, images01: jax.Array) -> jax.Array:
    """A differentiable version of `prepare` with `crop=1`, for square images.

    It uses Pillow's kernels and, like Pillow, clips to [0, 1] and rounds to 8 bit after each of the
    two passes; the gradient ignores the rounding (straight-through estimator). Values may differ
    from Pillow's by one or two levels, as in `prepare_on_device`.

    Args:
      spec: preprocessing of the weights; only `size` and `interpolation` are used.
      images01: f32[b h w c] in [0, 1].

    Returns:
      f32[b size size c] in [0, 1], multiples of 1 / 255; `images01` itself if it has that size.
    """
    b, h, w, c = images01.shape
    if h == w == spec.size:
        return images01
    method = {"bilinear": "linear", "bicubic": "cubic", "lanczos": "lanczos3"}.get(
        spec.interpolation, spec.interpolation
    )

    def resize_axis(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        x = jnp.clip(
            jax.image.resize(x, shape, method, precision=jax.lax.Precision.HIGHEST), 0.0, 1.0
        )
        return x + jax.lax.stop_gradient(_rounded(x * 255.0) / 255.0 - x)

    return resize_axis(resize_axis(images01, (b, h, spec.size, c)), (b, spec.size, spec.size, c))


def _levels01(levels: jax.Array) -> jax.Array:
    """`to_images01` of levels, exactly: XLA compiles a division by 255 to an inexact product."""
    return jnp.asarray(to_images01(np.arange(256, dtype=np.uint8)))[levels.astype(jnp.int32)]


def _rounded(levels: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(levels + 0.5), 0.0, 255.0)


def _triangle(x: jax.Array) -> jax.Array:
    return jnp.maximum(1.0 - jnp.abs(x), 0.0)


def _cubic(x: jax.Array) -> jax.Array:
    """The cubic kernel of Keys with a = -0.5.

    Reference: Keys 1981, IEEE Trans. ASSP 29, equation 15.
    """
    x = jnp.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return jnp.where(x < 1.0, near, jnp.where(x < 2.0, far, 0.0))


def _lanczos(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) < 3.0, jnp.sinc(x) * jnp.sinc(x / 3.0), 0.0)


# Pillow's kernels, as functions of the distance in source pixels at scale 1.
KERNELS = {"bilinear": _triangle, "bicubic": _cubic, "lanczos": _lanczos}


def _check_channels_of_images(spec: PixelSpec) -> None:
    if (c := len(spec.mean)) not in (1, 3):
        raise ValueError(
            f"an image file has 3 or 1 channels, but the network has {c} input channels; pass "
            f"arrays f32[b h w {c}] instead"
        )


@overload
def to_images01(images: np.ndarray) -> np.ndarray: ...
@overload
def to_images01(images: jax.Array) -> jax.Array: ...
def to_images01(images: Array) -> Array:
    """8-bit images as `images01`: uint8[...] -> f32[...] in [0, 1], exactly k / 255.

    This is exact on the host only. Under `jit`, XLA multiplies by 1 / 255, which may differ by one
    unit in the last place.

    Raises:
      ValueError: `images` is not uint8.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"`images` must be uint8: got {images.dtype}{list(images.shape)}")
    return images.astype(np.float32) / np.float32(255)


def to_uint8(images01: np.ndarray | jax.Array) -> np.ndarray:
    """The nearest 8-bit image: f32[...] in [0, 1] -> uint8[...], rounded to nearest.

    Raises:
      ValueError: a value is outside [0, 1].
    """
    check(images01)
    return np.rint(np.asarray(images01) * np.float32(255)).astype(np.uint8)


def check(images01: Any, *, ndim: int | None = None, channels: int = 3) -> None:
    """Checks that an array is `images01`: dtype, shape, range, and no NaN.

    Under a `jit` trace only dtype and shape are known and checked.

    Args:
      images01: the array.
      ndim: required number of dimensions, the last of which has size `channels`; by default, any
        shape is valid.
      channels: number of input channels of the network.

    Raises:
      ValueError: the array is not `images01`; the message has its dtype, shape and range.
    """
    dtype, shape = getattr(images01, "dtype", None), getattr(images01, "shape", None)
    if shape is None or dtype is None:
        raise ValueError(
            f"`images01` must be an array f32[b h w c] in [0, 1]: got {type(images01).__name__}"
        )
    actual = f"{dtype}{list(shape)}"
    if dtype != np.float32:
        hint = "; use tl.pixels.to_images01 for 8-bit images" if dtype == np.uint8 else ""
        raise ValueError(f"`images01` must be float32 in [0, 1]: got {actual}{hint}")
    if ndim is not None and (len(shape) != ndim or shape[-1] != channels):
        raise ValueError(
            f"`images01` must be f32[b h w {channels}]{', RGB' if channels == 3 else ''}: "
            f"got {actual}"
        )
    if isinstance(images01, Tracer) or 0 in shape:
        return
    low, high = float(np.min(images01)), float(np.max(images01))
    if not (low >= 0.0 and high <= 1.0):  # NaN fails both comparisons
        raise ValueError(
            f"`images01` must lie in [0, 1] and hold no NaN: got {actual} in "
            f"[{low:.4g}, {high:.4g}]"
        )


def normalize(spec: PixelSpec, images01: jax.Array) -> jax.Array:
    """The input of the first layer: `(images01 - mean) / std` in the channel order of the network.

    Args:
      spec: preprocessing of the weights.
      images01: f32[b h w c] in [0, 1], RGB where c is 3.

    Returns:
      f32[b h w c].

    Raises:
      ValueError: c is not the number of means of `spec`.
    """
    if images01.shape[-1] != len(spec.mean):
        raise ValueError(
            f"`images01` must have {len(spec.mean)} channels, one per mean: got "
            f"{list(images01.shape)}"
        )
    ordered = images01[..., ::-1] if spec.channels == "bgr" else images01
    mean = _by_channel(spec.mean, images01.ndim)
    scale = _by_channel([1.0 / s for s in spec.std], images01.ndim)
    return (ordered - mean) * scale


def denormalize(spec: PixelSpec, inputs: jax.Array) -> jax.Array:
    """The inverse of `normalize`: `inputs * std + mean` in RGB.

    Args:
      spec: preprocessing of the weights.
      inputs: f32[b h w c].

    Returns:
      f32[b h w c], not clipped.
    """
    images = inputs * _by_channel(spec.std, inputs.ndim) + _by_channel(spec.mean, inputs.ndim)
    return images[..., ::-1] if spec.channels == "bgr" else images


def _by_channel(values: Sequence[float], ndim: int) -> jax.Array:
    """One number per channel, as f32[1 ... 1 c]."""
    return jnp.asarray(values, jnp.float32).reshape((1,) * (ndim - 1) + (-1,))
