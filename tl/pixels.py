"""From a decoded photograph to what a network sees: the only place in `tl` that resizes, crops or normalises.

Two steps, at the border between host and device:
  `prepare`    on the host:   uint8[h w 3] of any size -> uint8[s s c]      (Pillow: resize, centre crop)
               (`prepare_on_device` does the same inside a program that is exported; `resize_on_device` has a gradient)
  `normalize`  on the device: images01 f32[b s s c] in [0, 1] -> inputs     (range, mean, std, channel order)
Everything a user, an attack or an ideal image touches is `images01`: RGB in [0, 1]; c is 3 unless a network was given another
number of input channels. Reading files is `tl.data.decode`. The specs that many weights share stand below the class.
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

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's ImageNet statistics, RGB in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
_PILLOW = int(PIL.__version__.partition(".")[0])
MAX_ASPECT = 50  # longer strips are cut to this ratio before the resize, which would take gigabytes (chosen, not tuned)
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclasses.dataclass(frozen=True)
class PixelSpec:
    """How a set of weights wants its pictures; it travels with the weights.

    Attributes:
      size: side of the square input, in pixels.
      crop: share of the resized shorter side that the centre crop keeps, in (0, 1]; 0.875 is 224 of 256.
      resize: "shorter" keeps the aspect ratio and crops; "squash" resizes both sides to `size` and crops nothing.
      interpolation: Pillow's filter, antialiased; torchvision and timm resize PIL images with the same code.
      mean, std: a number for each of the c input channels, in [0, 1] units, in the order of `channels`.
      channels: order that the network wants, "rgb" or (Caffe, Keras' VGG and ResNet; c = 3 only) "bgr".
    """

    size: int = 224
    crop: float = 0.875
    resize: Literal["shorter", "squash"] = "shorter"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        for field, found, known in (
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("resize", self.resize, ("shorter", "squash")),
            ("channels", self.channels, ("rgb", "bgr")),
        ):
            if found not in known:
                raise ValueError(f"unknown {field} {found!r}; nearest: {nearest(found, known)}")
        if not (self.size >= 1 and 0 < self.crop <= 1):
            raise ValueError(
                f"size must be at least 1 and crop in (0, 1]; got size={self.size}, crop={self.crop}"
            )
        c = max(len(self.mean), len(self.std))
        finite = np.isfinite([*self.mean, *self.std]).all()
        if not (len(self.mean) == len(self.std) >= 1 and finite and min(self.std) > 0):
            n = "three" if c == 3 else max(c, 1)
            raise ValueError(
                f"mean must be {n} finite numbers and std {n} above 0; got {self.mean} and {self.std}"
            )
        if self.channels == "bgr" and c != 3:
            raise ValueError(
                f"channels='bgr' wants three input channels; mean and std have {c}; take 'rgb', their own order"
            )

    def replace(self, **changes: Any) -> PixelSpec:
        """The same spec with some fields changed."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields; `PixelSpec.from_dict` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PixelSpec:
        """The spec that `as_dict` described."""
        changes: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return cls(**changes)


TORCHVISION = PixelSpec(
    interpolation="bilinear"
)  # torchvision's reference: resize 256, crop 224, bilinear
CAFFE = PixelSpec(  # Keras' VGG and ResNet ("caffe"): 0-255, BGR, minus ImageNet's mean
    mean=(103.939 / 255, 116.779 / 255, 123.68 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    channels="bgr",
)
INCEPTION = PixelSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # -1 to 1 (Keras' "tf")
LITE = PixelSpec(
    mean=(127 / 255,) * 3, std=(128 / 255,) * 3
)  # EfficientNet-Lite: (x - 127) / 128 on 0-255


def prepare(spec: PixelSpec, image: np.ndarray) -> np.ndarray:
    """The square that the network sees of a decoded photograph, still 8 bit.

    Args:
      spec: what the weights want.
      image: uint8[h w 3] RGB, as `tl.data.decode` returns it.

    Returns:
      uint8[size size c]; a single channel is the luma of ITU-R 601 (Pillow's "L"). Resized lengths are truncated and crop
      corners rounded as torchvision does (`transforms.functional.resize`, `center_crop`), so the pixels are torchvision's.

    Raises:
      ValueError: another dtype or shape, or a network whose input channels are neither 3 nor 1: it takes arrays only.

    Example:
      >>> prepare(PixelSpec(size=8), np.zeros((30, 20, 3), np.uint8)).shape
      (8, 8, 3)
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"prepare wants uint8[h w 3]; got {image.dtype}{list(image.shape)}")
    _check_photograph_channels(spec)
    pil, size, how, c = (
        Image.fromarray(image),
        spec.size,
        INTERPOLATIONS[spec.interpolation],
        len(spec.mean),
    )
    pil = pil if c == 3 else pil.convert("L")
    if spec.resize == "squash":
        return np.asarray(pil.resize((size, size), how)).reshape(size, size, c)
    slimmest = MAX_ASPECT * min(pil.size)
    if max(pil.size) > slimmest:  # only its middle is ever seen
        (w, h), (cw, ch) = pil.size, (min(side, slimmest) for side in pil.size)
        pil = pil.crop(((w - cw) // 2, (h - ch) // 2, (w - cw) // 2 + cw, (h - ch) // 2 + ch))
    short = int(size / spec.crop)
    width, height = (
        short if side == min(pil.size) else int(short * side / min(pil.size)) for side in pil.size
    )
    pil = pil.resize((width, height), how)
    left, top = (int(round((side - size) / 2.0)) for side in pil.size)
    return np.asarray(pil.crop((left, top, left + size, top + size))).reshape(size, size, c)


def prepare_on_device(spec: PixelSpec, images: jax.Array) -> jax.Array:
    """`prepare` and `to_images01` as one traceable function, for programs that must carry their preprocessing with them.

    Pillow's two passes, each rounded to 8 bit, are products with matrices made of indices, so height and width may be symbolic
    (`jax.export`). Pillow's weights have 22 bits and these are float32: where a sum lies on the border of two levels it may
    fall to the other one, once a pass. Beside `prepare`'s, a value in 1,000 to 100,000 differs by one level with "bicubic" and
    "lanczos"; with "bilinear", whose weights are small fractions, up to a tenth do, and a few by two. It takes more arithmetic
    than Pillow on large pictures: 2 * s * h * w * c for the first pass.

    Args:
      spec: what the weights want.
      images: uint8[b h w 3] RGB, all of one size of at most 65,535 pixels a side.

    Returns:
      f32[b size size c] in [0, 1], multiples of 1 / 255. With "nearest", a pixel whose centre falls exactly on the border of
      two may take the other.

    Raises:
      ValueError: as `prepare`.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"prepare_on_device wants uint8[b h w 3]; got {images.dtype}{list(images.shape)}"
        )
    _check_photograph_channels(spec)
    sides = [jnp.asarray(side, jnp.int32) for side in images.shape[1:3]]
    levels = images.astype(jnp.int32)
    if len(spec.mean) == 1:  # Pillow's "L", in its 16-bit fixed point
        luma = jnp.asarray([19595, 38470, 7471], jnp.int32)
        levels = (jnp.sum(levels * luma.reshape(1, 1, 1, 3), axis=3, keepdims=True) + 0x8000) >> 16
    short, least = int(spec.size / spec.crop), jnp.minimum(*sides)
    positions, lost = [], []
    for side in sides:
        seen, resized = side, jnp.asarray(spec.size, jnp.int32)
        if spec.resize == "shorter":
            seen = jnp.minimum(side, MAX_ASPECT * least)
            resized = short * seen // least
        corner = jnp.rint((resized - spec.size).astype(jnp.float32) / 2).astype(jnp.int32)
        doubled = (
            2 * (corner + jnp.arange(spec.size, dtype=jnp.int32)) + 1
        ) * seen  # over 2 * resized: exact integers
        whole, rest = doubled // (2 * resized), doubled % (2 * resized)
        part = rest.astype(jnp.float32) / (2 * resized).astype(jnp.float32)
        scale = jnp.maximum(seen.astype(jnp.float32) / resized.astype(jnp.float32), 1.0)
        positions.append(((side - seen) // 2 + whole, part, scale))
        lost.append(seen - resized)
    if spec.interpolation == "nearest":
        (rows, *_), (columns, *_) = positions
        return _levels01(levels[:, rows][:, :, columns])
    matrices = []
    for side, (whole, part, scale) in zip(images.shape[1:3], positions, strict=True):
        index = jax.lax.iota(jnp.int32, side)
        away = (index[None, :] - whole[:, None]).astype(jnp.float32) + (0.5 - part)[:, None]
        weights = KERNELS[spec.interpolation](away / scale)
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
    # Pillow 13 takes the height first where it shrinks by more than twice as many pixels as the width.
    height_first = (lost[0] > 0) & (lost[0] > 2 * lost[1])
    return _levels01(
        jax.lax.cond(height_first, lambda x: across(down(x)), lambda x: down(across(x)), x)
    )


def resize_on_device(spec: PixelSpec, images01: jax.Array) -> jax.Array:
    """What `prepare` makes of pictures that shall be seen to their edges, as a function with a gradient.

    With Pillow's kernels and, as there, cut to [0, 1] and rounded to 8 bit after each of two passes; the gradient passes the
    rounding unchanged (straight through). Values may differ from Pillow's by a level or two, as in `prepare_on_device`.

    Args:
      spec: of which size and interpolation are used: `prepare` with `crop` 1, on squares.
      images01: f32[b h w c] in [0, 1].

    Returns:
      f32[b size size c] in [0, 1], multiples of 1 / 255; `images01` itself where it has that size already.
    """
    b, h, w, c = images01.shape
    if h == w == spec.size:
        return images01
    method = {"bilinear": "linear", "bicubic": "cubic", "lanczos": "lanczos3"}.get(
        spec.interpolation, spec.interpolation
    )

    def one_way(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        x = jnp.clip(
            jax.image.resize(x, shape, method, precision=jax.lax.Precision.HIGHEST), 0.0, 1.0
        )
        return x + jax.lax.stop_gradient(_rounded(x * 255.0) / 255.0 - x)

    return one_way(one_way(images01, (b, h, spec.size, c)), (b, spec.size, spec.size, c))


def _levels01(levels: jax.Array) -> jax.Array:
    """`to_images01` exactly: a compiled division by 255 is a product with its inverse, and a bit off."""
    return jnp.asarray(to_images01(np.arange(256, dtype=np.uint8)))[levels.astype(jnp.int32)]


def _rounded(levels: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(levels + 0.5), 0.0, 255.0)


def _triangle(x: jax.Array) -> jax.Array:
    return jnp.maximum(1.0 - jnp.abs(x), 0.0)


def _cubic(x: jax.Array) -> jax.Array:
    """Keys' cubic with a = -0.5. Reference: Keys 1981, IEEE Trans. ASSP 29, equation 15."""
    x = jnp.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return jnp.where(x < 1.0, near, jnp.where(x < 2.0, far, 0.0))


def _lanczos(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(x) < 3.0, jnp.sinc(x) * jnp.sinc(x / 3.0), 0.0)


KERNELS = {
    "bilinear": _triangle,
    "bicubic": _cubic,
    "lanczos": _lanczos,
}  # Pillow's, of source pixels at scale 1


def _check_photograph_channels(spec: PixelSpec) -> None:
    if (c := len(spec.mean)) not in (1, 3):
        raise ValueError(
            f"a photograph makes 3 or 1 input channels, this network wants {c}; give it arrays f32[b h w {c}]"
        )


@overload
def to_images01(images: np.ndarray) -> np.ndarray: ...
@overload
def to_images01(images: jax.Array) -> jax.Array: ...
def to_images01(images: Array) -> Array:
    """8-bit pictures as `images01`: uint8[...] -> f32[...] in [0, 1], exactly k / 255.

    On the host, that is: under `jit` XLA multiplies by 1 / 255, which may be one unit in the last place beside it.
    """
    if images.dtype != np.uint8:
        raise ValueError(
            f"to_images01 wants uint8 pictures; got {images.dtype}{list(images.shape)}"
        )
    return images.astype(np.float32) / np.float32(255)


def to_uint8(images01: np.ndarray | jax.Array) -> np.ndarray:
    """The nearest 8-bit picture: f32[...] in [0, 1] -> uint8[...], rounded to nearest, never wrapped."""
    check(images01)
    return np.rint(np.asarray(images01) * np.float32(255)).astype(np.uint8)


def check(images01: Any, *, ndim: int | None = None, channels: int = 3) -> None:
    """Refuses what is not `images01`: wrong dtype or shape always, out of [0, 1] or NaN where values are known.

    Values under a `jit` trace are not known: there only dtype and shape are checked.

    Args:
      ndim: how many dimensions it must have, the last of them `channels`; by default any shape will do.
      channels: how many input channels the network has.

    Raises:
      ValueError: names the dtype, shape and range it saw.
    """
    dtype, shape = getattr(images01, "dtype", None), getattr(images01, "shape", None)
    if shape is None or dtype is None:
        raise ValueError(
            f"images01 must be an array f32[b h w c] in [0, 1]; got {type(images01).__name__}"
        )
    seen = f"{dtype}{list(shape)}"
    if dtype != np.float32:
        hint = "; use tl.pixels.to_images01 for 8-bit pictures" if dtype == np.uint8 else ""
        raise ValueError(f"images01 must be float32 in [0, 1]; got {seen}{hint}")
    if ndim is not None and (len(shape) != ndim or shape[-1] != channels):
        raise ValueError(
            f"images01 must be f32[b h w {channels}]{', RGB' if channels == 3 else ''}; got {seen}"
        )
    if isinstance(images01, Tracer) or 0 in shape:
        return
    low, high = float(np.min(images01)), float(np.max(images01))
    if not (low >= 0.0 and high <= 1.0):  # NaN fails both comparisons
        raise ValueError(
            f"images01 must lie in [0, 1] and hold no NaN; got {seen} in [{low:.4g}, {high:.4g}]"
        )


def normalize(spec: PixelSpec, images01: jax.Array) -> jax.Array:
    """What the network's first layer sees: `(images01 - mean) / std`, in its channel order.

    Args:
      images01: f32[b h w c] in [0, 1], RGB where c is 3.

    Returns:
      f32[b h w c].

    Raises:
      ValueError: c is not the number of the spec's means.
    """
    if images01.shape[-1] != len(spec.mean):
        raise ValueError(
            f"images01 must have {len(spec.mean)} channels, one a mean; got {list(images01.shape)}"
        )
    ordered = images01[..., ::-1] if spec.channels == "bgr" else images01
    mean, scale = (
        _by_channel(spec.mean, images01.ndim),
        _by_channel([1.0 / s for s in spec.std], images01.ndim),
    )
    return (ordered - mean) * scale


def denormalize(spec: PixelSpec, inputs: jax.Array) -> jax.Array:
    """The picture of a network's inputs, `inputs * std + mean` in RGB: the inverse of `normalize`, in [0, 1] where `spec` fits.

    Args:
      inputs: f32[b h w c].

    Returns:
      f32[b h w c], not clipped.
    """
    images = inputs * _by_channel(spec.std, inputs.ndim) + _by_channel(spec.mean, inputs.ndim)
    return images[..., ::-1] if spec.channels == "bgr" else images


def _by_channel(values: Sequence[float], ndim: int) -> jax.Array:
    """A number a channel, as f32[1 ... 1 c]."""
    return jnp.asarray(values, jnp.float32).reshape((1,) * (ndim - 1) + (-1,))
