"""Writes tests/golden/<arch>.npz: what torch or Keras computes, for tests that run without them.

By hand, in an environment with the `parity` extra, for some architectures or for all:

    python -m tests.golden.make_golden [ARCH ...]

The network is the first library's among the architecture's `sources`, under a head of CLASSES. The weights are not in the
files: both sides draw them from the name of each source tensor (`sources.seeded`), so a golden file is a few
kilobytes of results, computed in float64 and sampled.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import sources
from tl import backbones
from tl.pixels import PixelSpec
from tl.weights import tables

HERE = Path(__file__).resolve().parent
CLASSES = (
    16  # narrow enough to draw quickly; the hidden layers of torch's VGG have the same width here
)
SHAPE = (
    2,
    74,
    92,
    3,
)  # oblong; odd and even in turn as it is halved: 2^n + 1 would not tell "same" from "torch" padding
SAMPLES, FEW, STATS = (
    48,
    16,
    600,
)  # values kept of logits, features and a stage; of a block; of the running statistics
REPRESENTATIVES = (  # one network of each form of block, norm and padding
    "vgg11_bn",
    "resnet18",
    "resnext50_32x4d",
    "resnet50_keras",
    "resnetv2_50_keras",
    "mobilenetv1_025_keras",
    "mobilenetv2_035",
    "mobilenetv2_035_keras",
    "mobilenetv3_small_050",
    "mobilenet_v3_small",
    "tf_mobilenetv3_small_075",
    "tf_efficientnet_lite0",
)


class Golden(NamedTuple):
    """A golden file.

    Attributes:
      source: the library, and so the rename table.
      shapes: of `logits`, `features` and every endpoint.
      values: the same, sampled, in evaluation mode.
      largest: the largest magnitude in each, which errors are measured by.
      features, stats: of REPRESENTATIVES in training mode, sampled: pooled features, and the running statistics afterwards
        in the order of the source's names; empty for the others.
    """

    source: str
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, np.ndarray]
    largest: dict[str, float]
    features: np.ndarray
    stats: np.ndarray


def golden_images() -> np.ndarray:
    """The f32[2 74 92 3] batch in [0, 1] that the golden files were computed on, normalised by `PixelSpec()`."""
    return np.random.RandomState(0).uniform(size=SHAPE).astype(np.float32)


def sampled(array: np.ndarray, count: int = SAMPLES) -> np.ndarray:
    """`count` values of an array, spread over it by the golden ratio: evenly, and never in step with its channels."""
    places = np.arange(count) * 0.6180339887498949 % 1.0 * np.size(array)
    return np.asarray(array).reshape(-1)[places.astype(int)]


def samples(end: str) -> int:
    """How many values of an endpoint are kept."""
    return FEW if "/" in end else SAMPLES


def joined(stats: dict[str, np.ndarray]) -> np.ndarray:
    """Running statistics in the order of their names, sampled."""
    return sampled(
        np.concatenate([np.asarray(stats[name]).reshape(-1) for name in sorted(stats)]), STATS
    )


def read(arch: str) -> Golden:
    """The golden file of an architecture."""
    file = np.load(HERE / f"{arch}.npz")
    names = str(file["names"]).split()
    values = np.split(file["values"], np.cumsum([samples(name) for name in names])[:-1])
    shapes = {
        name: tuple(n for n in shape if n)
        for name, shape in zip(names, file["shapes"].tolist(), strict=True)
    }
    values = dict(zip(names, values, strict=True))
    largest = dict(zip(names, file["largest"].tolist(), strict=True))
    return Golden(
        str(file["source"]), shapes, values, largest, file["train_features"], file["train_stats"]
    )


def make(arch: str) -> Path:
    """Writes the golden file of one architecture."""
    spec = backbones.get(arch)
    source, call = next((source, call) for source, call in spec.sources.items() if call)
    form = tables.sources(spec)[source]
    network = sources.fill(sources.make(source, call, CLASSES, width=CLASSES))
    inputs, ends = sources.normalized(golden_images(), PixelSpec()), form.endpoints(spec.module)
    result = sources.run(network, inputs, ends, form.pooled)
    assert result.logits is not None
    found = {"logits": result.logits, "features": result.features, **result.endpoints}
    features, stats = np.zeros(0), np.zeros(0)
    if arch in REPRESENTATIVES:
        moved = sources.run(network, inputs, ends, form.pooled, training=True)
        features, stats = sampled(moved.features), joined(moved.stats)
    out: dict[str, Any] = {
        "source": source,
        "names": " ".join(found),
        "shapes": np.array(
            [array.shape + (0,) * (4 - array.ndim) for array in found.values()], np.int16
        ),
        "values": np.concatenate(
            [sampled(array, samples(name)) for name, array in found.items()]
        ).astype(np.float32),
        "largest": np.array([np.abs(array).max() for array in found.values()], np.float32),
        "train_features": features.astype(np.float32),
        "train_stats": stats.astype(np.float32),
    }
    path = HERE / f"{arch}.npz"
    np.savez_compressed(path, **out)
    return path


if __name__ == "__main__":
    for arch in sys.argv[1:] or backbones.names():
        written = make(arch)
        print(f"{written.name}: {written.stat().st_size} bytes", flush=True)
