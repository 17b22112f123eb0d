"""The operations of TrivialAugment and RandAugment against Pillow, and what each policy draws."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tests import toys
from tl.data import policies
from tl.data.policies import OPERATIONS, Ranges

RANGES = Ranges(0.99, 32.0, 135.0, 0.99, 6)
STRENGTHS = (-0.97, -0.53, 0.3, 0.9)
operate = jax.jit(functools.partial(policies.operate, ranges=RANGES))

Reference = Callable[[Image.Image, float], Image.Image]


def affine(matrix: Callable[[float], tuple[float, ...]]) -> Reference:
    return lambda image, s: image.transform(image.size, Image.Transform.AFFINE, matrix(s))


def enhanced(enhancer: type) -> Reference:
    return lambda image, s: enhancer(image).enhance(1 + RANGES.enhance * s)


# Name -> the operation of Pillow.
TABLE: dict[str, Reference] = {
    "identity": lambda image, s: image,
    "shear_x": affine(lambda s: (1, RANGES.shear * s, 0, 0, 1, 0)),
    "shear_y": affine(lambda s: (1, 0, 0, RANGES.shear * s, 1, 0)),
    "translate_x": affine(lambda s: (1, 0, RANGES.translate * s, 0, 1, 0)),
    "translate_y": affine(lambda s: (1, 0, 0, 0, 1, RANGES.translate * s)),
    "rotate": lambda image, s: image.rotate(RANGES.rotate * s),
    "brightness": enhanced(ImageEnhance.Brightness),
    "color": enhanced(ImageEnhance.Color),
    "contrast": enhanced(ImageEnhance.Contrast),
    "sharpness": enhanced(ImageEnhance.Sharpness),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(RANGES.bits * abs(s))),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 - int(256 * abs(s))),
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
}


def test_every_operation_has_a_reference() -> None:
    assert tuple(TABLE) == OPERATIONS


def run(name: str, levels: np.ndarray, strength: float) -> np.ndarray:
    """The result in gray levels, which Pillow would cut to whole ones."""
    image = levels.astype(np.float32) / np.float32(255)
    operation = jnp.int32(OPERATIONS.index(name))
    result = operate(jax.random.key(0), image, operation, jnp.float32(strength))
    assert result.dtype == jnp.float32 and 0 <= float(result.min()) <= float(result.max()) <= 1
    return np.floor(255 * np.asarray(result) + 1e-3).astype(int)


@pytest.mark.parametrize("name", TABLE)
def test_an_operation_equals_that_of_pillow_within_one_gray_level(name: str) -> None:
    """In a rotation, Pillow's fixed-point places differ for pixels between two others."""
    levels = (30 + 0.75 * toys.smooth(50, 70, seed=3)).astype(np.uint8)
    for strength in STRENGTHS:
        expected = np.asarray(TABLE[name](Image.fromarray(levels), strength)).astype(int)
        different = (abs(run(name, levels, strength) - expected) > 1).any(axis=-1)
        assert different.mean() <= (0.002 if name == "rotate" else 0), strength
        assert name == "identity" or np.any(expected != levels)


def test_levels_of_a_flat_image_stay() -> None:
    flat = np.full((50, 70, 3), 77, np.uint8)
    for name in ("autocontrast", "equalize", "contrast", "sharpness", "color", "identity"):
        assert (run(name, flat, 0.5) == 77).all(), name


@pytest.mark.parametrize(
    ("policy", "count", "ranges", "strengths"),
    [
        (policies.trivialaugment(), 1, RANGES, np.linspace(0, 1, 31)),
        (policies.randaugment(), 2, Ranges(0.3, 8 * 150 / 331, 30.0, 0.9, 4), [0.9]),
        (policies.randaugment(3, 0.5), 3, Ranges(0.3, 8 * 150 / 331, 30.0, 0.9, 4), [0.5]),
    ],
)
def test_a_policy_draws_operations_strengths_and_signs_equally_often(
    policy: Callable[[jax.Array, jax.Array], jax.Array],
    count: int,
    ranges: Ranges,
    strengths: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each operation writes its number and its strength into a new last row of the image."""
    given = set()

    def record(
        key: jax.Array, image: jax.Array, operation: jax.Array, strength: jax.Array, ranges: Ranges
    ) -> jax.Array:
        given.add(ranges)
        drawn = jnp.stack([operation.astype(jnp.float32), strength])
        row = jnp.zeros((1, *image.shape[1:])).at[0, :2, 0].set(drawn)
        return jnp.concatenate([image[1:], row])

    monkeypatch.setattr(policies, "operate", record)
    n = 2800
    rows = np.asarray(policy(jax.random.key(0), jnp.zeros((n, count, 8, 1))))
    operations, signed = rows[:, :, 0, 0].ravel(), rows[:, :, 1, 0].ravel()
    assert given == {ranges}
    np.testing.assert_allclose(np.unique(abs(signed)), strengths, atol=1e-6)
    total, kinds = n * count, len(OPERATIONS)
    drawn = np.bincount(operations.astype(int), minlength=kinds)
    assert len(drawn) == kinds and abs(drawn - total / kinds).max() < 5 * (total / kinds) ** 0.5
    assert abs((signed[signed != 0] > 0).mean() - 0.5) < 2.5 / total**0.5
    if count > 1:  # the operations of an image are independent
        assert abs((rows[:, 0, 0, 0] == rows[:, 1, 0, 0]).mean() - 1 / kinds) < 0.03
