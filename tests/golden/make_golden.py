"""Writes tests/golden/<arch>.npz, results of torch or Keras for tests that run without them.

Run it in an environment with the `parity` extra, for some architectures or for all:

    python -m tests.golden.make_golden [ARCH ...]

The network is that of the first library in the architecture's `sources`, with a head of CLASSES
classes. The files do not contain weights: both sides draw them from the name of each source tensor
(`divergence.seeded`). A golden file is a few kilobytes of results, computed in float64 and sampled.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import sources
from tl import backbones
from tl.evaluation import divergence
from tl.pixels import PixelSpec
from tl.weights import tables

HERE = Path(__file__).resolve().parent
# Few classes, so that weights are drawn quickly; also the width of the hidden layers of VGG's head.
CLASSES = 16
# Height and width differ, and halving them gives odd and even sizes. With sides of 2^n + 1, "same"
# and "torch" padding would agree.
SHAPE = (2, 74, 92, 3)
# Number of samples of logits, features and each stage; of each block; of the running statistics.
SAMPLES, FEW, STATS = 48, 16, 600
# One network of each form of block, norm and padding.
REPRESENTATIVES = (
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
      source: the library, which is the name of the rename table.
      shapes: shapes of `logits`, `features` and every endpoint.
      values: samples of these in evaluation mode.
      largest: largest magnitude of each, the unit of errors.
      features: samples of the pooled features in training mode, for REPRESENTATIVES; else empty.
      stats: samples of the running statistics after that pass, in the order of the source's names;
        else empty.
    """

    source: str
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, np.ndarray]
    largest: dict[str, float]
    features: np.ndarray
    stats: np.ndarray


def golden_images() -> np.ndarray:
    """The batch of the golden files, f32[2 74 92 3] in [0, 1], normalized by `PixelSpec()`."""
    return np.random.RandomState(0).uniform(size=SHAPE).astype(np.float32)


def sampled(array: np.ndarray, count: int = SAMPLES) -> np.ndarray:
    """`count` values of an array.

    Their positions are multiples of the golden ratio: evenly spread, and not periodic in the
    channels.
    """
    positions = np.arange(count) * 0.6180339887498949 % 1.0 * np.size(array)
    return np.asarray(array).reshape(-1)[positions.astype(int)]


def samples(end: str) -> int:
    """The number of samples of an endpoint."""
    return FEW if "/" in end else SAMPLES


def joined(stats: dict[str, np.ndarray]) -> np.ndarray:
    """Samples of running statistics in the order of their names."""
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
    inputs, ends = divergence.normalized(golden_images(), PixelSpec()), form.endpoints(spec.module)
    result = sources.run(network, inputs, ends, form.pooled)
    assert result.logits is not None
    results = {"logits": result.logits, "features": result.features, **result.endpoints}
    features, stats = np.zeros(0), np.zeros(0)
    if arch in REPRESENTATIVES:
        trained = sources.run(network, inputs, ends, form.pooled, training=True)
        features, stats = sampled(trained.features), joined(trained.stats)
    out: dict[str, Any] = {
        "source": source,
        "names": " ".join(results),
        "shapes": np.array(
            [array.shape + (0,) * (4 - array.ndim) for array in results.values()], np.int16
        ),
        "values": np.concatenate(
            [sampled(array, samples(name)) for name, array in results.items()]
        ).astype(np.float32),
        "largest": np.array([np.abs(array).max() for array in results.values()], np.float32),
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
