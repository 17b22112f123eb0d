"""The manifest of published weights: complete, well-formed, equal to the publishers' packages."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest

from experiments.benchmarks.sources import import_torchvision
from tl import backbones
from tl.pixels import PixelSpec, normalize
from tl.weights.manifest import PUBLISHED
from tl.weights.spec import WeightsSpec

# Architectures of timm without weights.
UNTRAINED = """
mobilenetv2_035 mobilenetv2_075 mobilenetv3_large_075
efficientnet_lite1 efficientnet_lite2 efficientnet_lite3 efficientnet_lite4
""".split()


def name(row: WeightsSpec) -> str:
    return f"{row.arch}.{row.tag}"


def rows_of(source: str) -> Any:
    return pytest.mark.parametrize(
        "row", [row for row in PUBLISHED if row.source == source], ids=name
    )


def test_exactly_the_trained_architectures_have_rows():
    assert {row.arch for row in PUBLISHED} == set(backbones.names()) - set(UNTRAINED)


def test_tags_are_unique_within_an_architecture():
    assert not [row for row, count in Counter(map(name, PUBLISHED)).items() if count > 1]


def test_rows_of_an_architecture_are_adjacent():
    order = [row.arch for row in PUBLISHED]
    assert sum(a != b for a, b in zip(order, order[1:], strict=False)) + 1 == len(set(order))


@pytest.mark.parametrize("row", PUBLISHED, ids=name)
def test_a_row_is_well_formed(row: WeightsSpec):
    assert row.source in {"timm", "torchvision", "keras"} and row.classes == "imagenet"
    assert row.origin and row.licence in {"Apache-2.0", "BSD-3-Clause", "CC-BY-4.0", "MIT"}
    assert row.top1 is None or 35 < row.top1 < 90
    assert bool(row.hub) != bool(row.url), "expected one place to fetch it from"
    if row.hub:
        assert row.hub == f"timm/{row.arch}.{row.tag}" and re.fullmatch(
            r"timm/[a-z0-9_]+\.[a-z0-9_]+", row.hub
        )
    else:
        assert re.fullmatch(r"https://[\w./-]+\.(pth|h5)", row.url)
    assert (
        PixelSpec.from_dict(row.pixels.as_dict()) == row.pixels and row.pixels.resize == "shorter"
    )


def test_timms_accuracies_of_torchvision_weights_equal_torchvisions():
    top1 = {(row.arch, row.tag): row.top1 for row in PUBLISHED}
    for tag, theirs in (("tv_in1k", "IMAGENET1K_V1"), ("tv2_in1k", "IMAGENET1K_V2")):
        pairs = {
            row.arch: (row.top1, top1[row.arch, theirs]) for row in PUBLISHED if row.tag == tag
        }
        assert pairs and not {
            arch: pair for arch, pair in pairs.items() if abs(pair[0] - pair[1]) > 0.05
        }


# --- against the publishers' packages ---------------------------------------------------------


@pytest.fixture(scope="module")
def models() -> Any:
    return import_torchvision().models


@pytest.fixture(scope="module")
def timm(models: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm
    return timm


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras
    return keras


@pytest.mark.parity
@rows_of("torchvision")
def test_torchvision_rows_equal_its_weight_enums(row: WeightsSpec, models: Any):
    weights = models.get_model_weights({"mobilenetv2_100": "mobilenet_v2"}.get(row.arch, row.arch))[
        row.tag
    ]
    theirs = weights.transforms()
    assert row.url == weights.url and row.top1 == weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert [row.pixels.size] == theirs.crop_size and [
        int(row.pixels.size / row.pixels.crop)
    ] == theirs.resize_size
    assert row.pixels.interpolation == theirs.interpolation.value
    assert list(row.pixels.mean) == theirs.mean and list(row.pixels.std) == theirs.std


@pytest.mark.parity
def test_no_imagenet_weights_of_torchvision_are_missing(models: Any):
    ours = {(row.arch, row.tag) for row in PUBLISHED if row.source == "torchvision"}
    for arch in {arch for arch, _ in ours}:
        members = models.get_model_weights(
            {"mobilenetv2_100": "mobilenet_v2"}.get(arch, arch)
        ).__members__
        assert {tag for tag in members if tag.startswith("IMAGENET1K_V")} == {
            tag for a, tag in ours if a == arch
        }


@pytest.mark.parity
@rows_of("timm")
def test_timm_rows_equal_its_configs(row: WeightsSpec, timm: Any):
    theirs = timm.get_pretrained_cfg(f"{row.arch}.{row.tag}")
    tested = row.tag == "tv2_in1k"  # at the test size, as torchvision publishes it
    size, crop = (
        (theirs.test_input_size, theirs.test_crop_pct)
        if tested
        else (theirs.input_size, theirs.crop_pct)
    )
    assert (
        row.hub == theirs.hf_hub_id
        and row.licence.lower() == theirs.license
        and theirs.num_classes == 1000
    )
    assert (3, row.pixels.size, row.pixels.size) == tuple(size) and row.pixels.crop == crop
    assert row.pixels.interpolation == theirs.interpolation and theirs.crop_mode == "center"
    assert row.pixels.mean == tuple(theirs.mean) and row.pixels.std == tuple(theirs.std)


@pytest.mark.parity
def test_the_default_tag_of_timm_is_first_and_only_untrained_networks_are_missing(timm: Any):
    first = {row.arch: row.tag for row in reversed(PUBLISHED) if row.source == "timm"}
    assert first == {arch: timm.get_pretrained_cfg(arch).tag for arch in first}
    assert all(
        next(row for row in PUBLISHED if row.arch == arch).source == "timm" for arch in first
    )
    assert not any(timm.get_pretrained_cfg(arch).has_weights for arch in UNTRAINED)


def keras_call(arch: str) -> tuple[str, dict[str, Any]]:
    """The function of `keras.applications` that builds an architecture, and its arguments."""
    if match := re.fullmatch(r"tf_mobilenetv3_(small|large)_(minimal_)?(\d+)", arch):
        return f"MobileNetV3{match[1].title()}", {
            "alpha": int(match[3]) / 100,
            "minimalistic": bool(match[2]),
        }
    if match := re.fullmatch(r"mobilenetv([12])_(\d+)_keras", arch):
        return "MobileNet" + {"1": "", "2": "V2"}[match[1]], {"alpha": int(match[2]) / 100}
    if match := re.fullmatch(r"resnet(v2_)?(\d+)_keras", arch):
        return f"ResNet{match[2]}" + ("V2" if match[1] else ""), {}
    return arch.upper(), {}


@pytest.mark.parity
@rows_of("keras")
def test_keras_fetches_the_file_of_the_row(
    row: WeightsSpec, keras: Any, monkeypatch: pytest.MonkeyPatch
):
    class Fetched(Exception):
        pass

    def get_file(file: str, origin: str, **_: Any):
        raise Fetched(origin)

    def zeros(self: Any, shape: tuple[int, ...], dtype: Any = None, **_: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    # Random initialization would compile for minutes.
    monkeypatch.setattr(keras.initializers.VarianceScaling, "__call__", zeros)
    function, arguments = keras_call(row.arch)
    with warnings.catch_warnings(), pytest.raises(Fetched) as caught:
        warnings.simplefilter("ignore")
        getattr(keras.applications, function)(weights="imagenet", **arguments)
    assert str(caught.value) == row.url


@pytest.mark.parity
@rows_of("keras")
def test_keras_normalization_equals_the_row(row: WeightsSpec, keras: Any):
    images = np.random.RandomState(0).randint(0, 256, (1, 5, 4, 3)).astype(np.float32)
    module = row.url.split("/")[-2].replace("resnet", "resnet_v2" if "v2" in row.arch else "resnet")
    if module == "mobilenet_v3":  # within the network
        theirs = keras.layers.Rescaling(scale=1.0 / 127.5, offset=-1.0)(images)
    else:
        theirs = getattr(keras.applications, module).preprocess_input(images.copy())
    ours = normalize(row.pixels, images / np.float32(255))
    assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() < 1e-6 * np.abs(images).max()
