"""Parity with torch's libraries: `pytest -m parity`.

`./launch.sh parity --all` compares every network with every source on seeded weights. The tests
here cover the packaged weights on photographs, torch's files in every number type, and the tool
itself: it detects a damaged port, reports the first layer that differs, and names the damage.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.benchmarks import parity, sources
from tests import toys
from tl import backbones, pixels
from tl.backbones.resnet import Bottleneck
from tl.backbones.vgg import VGGTop
from tl.data.decode import decode
from tl.data.packaged import photographs
from tl.evaluation import divergence
from tl.models import Classifier, Provenance, heads, load
from tl.paths import flatten, unflatten
from tl.types import Variables
from tl.weights import port, readers, store, tables

pytestmark = pytest.mark.parity


@pytest.fixture(scope="session")
def torch() -> Any:
    sources.import_torchvision()
    import torch

    return torch


# ---- the packaged weights, put into torch's networks by their order in the file ----


def packaged(arch: str) -> tuple[Classifier, Variables]:
    with toys.package_or_skip():
        return load(arch, weights="package")


@functools.cache
def some_photographs(count: int = 4) -> tuple:
    with toys.package_or_skip():
        return photographs()[:count]


@pytest.mark.parametrize(
    "arch, source, call",
    [
        ("tf_efficientnet_lite0", "timm", "tf_efficientnet_lite0"),
        ("mobilenetv2_100", "torchvision", "mobilenet_v2"),
        ("vgg16", "torchvision", "vgg16"),
    ],
)
def test_packaged_weights_agree_on_photographs(torch: Any, arch: str, source: str, call: str):
    clf, variables = packaged(arch)
    row = store.packaged_row([arch], "")
    assert row is not None
    arrays = readers.read(store.verified(row))
    if arch == "vgg16":  # HWIO, and the kernel's name after the bias's
        names = [f"VGG16_0/Conv_{n}/{leaf}" for n in range(13) for leaf in ("kernel", "bias")]
        arrays = {
            name: arrays[name].transpose(3, 2, 0, 1) if arrays[name].ndim == 4 else arrays[name]
            for name in names
        }
    network = sources.make(source, call)
    sources.fill_in_order(network, arrays, "" if clf.head else "features.")
    images = pixels.to_images01(
        np.stack([clf.prepare(decode(photo.path)) for photo in some_photographs()])
    )
    case = parity.case(network, clf, images)
    if not clf.head:
        del case.want["logits"]
    errors = divergence.compare(clf, variables, [case])
    assert divergence.first_divergence(errors) is None, errors


# ---- files ----


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_torch_files_are_read_in_every_number_type(torch: Any, tmp_path: Path, form: str):
    base = torch.arange(24).reshape(4, 6)
    state = {
        str(dtype): base.to(dtype)
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    }
    state |= {
        str(dtype): base.to(dtype)
        for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    }
    state |= {
        "bool": base > 5,
        "transposed": base.float().T,
        "row": base[2],
        "column": base[:, 1],
        "tied": base,
    }
    state |= {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base.float()),
    }
    torch.save(
        {"epoch": 3, "state_dict": state},
        tmp_path / "w",
        _use_new_zipfile_serialization=form == "zip",
    )
    arrays = readers.read(tmp_path / "w")
    assert set(arrays) == set(state)
    for name, tensor in state.items():
        tensor = tensor.detach()
        assert arrays[name].shape == tuple(tensor.shape), name
        expected = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
        np.testing.assert_array_equal(arrays[name].astype(expected.dtype), expected, err_msg=name)
        assert str(arrays[name].dtype) == str(tensor.dtype).removeprefix("torch."), name


# ---- the tool ----


@functools.cache
def compared(
    arch: str, source: str, call: str, size: tuple[int, int]
) -> tuple[Classifier, Variables, tuple[divergence.Case, ...]]:
    """A port that agrees with its source, with a head of 16 classes."""
    network, spec = sources.fill(sources.make(source, call, 16, width=16)), backbones.get(arch)
    head = spec.head(16, width=16) if spec.head is VGGTop else heads.own(spec)(16)
    clf = Classifier(arch, spec, head, pixels.TORCHVISION, None, Provenance("seeded", ""))
    table, shapes = (
        tables.sources(spec)[source].table(spec.module, head=True),
        jax.eval_shape(clf.init, jax.random.key(0)),
    )
    arrays = {name: tensor.numpy() for name, tensor in sources.variables(network).items()}
    variables = {"batch_stats": {}, **port.port(arrays, table, shapes)}
    return clf, variables, (parity.case(network, clf, parity.images(size)),)


def on_module(clf: Classifier, **fields: Any) -> Classifier:
    return dataclasses.replace(
        clf, spec=dataclasses.replace(clf.spec, module=clf.spec.module.clone(**fields))
    )


def on_leaf(variables: Variables, pattern: str, change: Callable) -> Variables:
    return {
        "batch_stats": {},
        **unflatten({n: change(a) if pattern in n else a for n, a in flatten(variables).items()}),
    }


LITE = ("efficientnet_lite0", "timm", "efficientnet_lite0", (64, 74))
RESNET = ("resnet50", "torchvision", "resnet50", (64, 74))
VGG = ("vgg11", "torchvision", "vgg11", (32, 48))


@pytest.mark.parametrize("pair", [LITE, RESNET, VGG], ids=lambda pair: pair[0])
def test_a_correct_port_agrees_at_every_endpoint(pair: tuple):
    clf, variables, cases = compared(*pair)
    errors = divergence.compare(clf, variables, cases)
    assert divergence.first_divergence(errors) is None, errors
    stages = [end for end in errors if "/" not in end]
    assert stages == [*clf.spec.endpoints, "features", "logits"], (
        "not in the order of the forward pass"
    )


@pytest.mark.parametrize(
    "pair, damage, first, words",
    [
        (
            LITE,
            lambda c, v: (on_module(c, padding="same"), v),
            "stem",
            ["padding ('torch' there, 'same' here)"],
        ),
        (
            LITE,
            lambda c, v: (on_module(c, norm=c.spec.module.norm._replace(eps=1e-3)), v),
            "stem",
            ["eps of BatchNorm (1e-05 there, 0.001 here)"],
        ),
        (
            LITE,
            lambda c, v: (c, on_leaf(v, "stem/kernel", lambda a: a[:, :, ::-1])),
            "stem",
            ["channel order of the input"],
        ),
        (
            LITE,
            lambda c, v: (c, on_leaf(v, "kernel", divergence._swap_height_and_width)),
            "stem",
            ["transposed (height and width)"],
        ),
        (
            RESNET,
            lambda c, v: (on_module(c, block=functools.partial(Bottleneck, stride_in="1x1")), v),
            "stage2/block0",
            ["place of the stride (in the 3x3 there)"],
        ),
        (
            VGG,
            lambda c, v: (c, on_leaf(v, "fc6/kernel", lambda a: divergence._to_chw(np.asarray(a)))),
            "logits",
            ["flatten order of the first dense layer (channels first there)"],
        ),
        (
            LITE,
            lambda c, v: (c, on_leaf(v, "stage3/block1/project_conv/kernel", np.zeros_like)),
            "stage3/block1",
            ["none of"],
        ),
    ],
    ids=["padding", "eps", "BGR", "transposed", "stride", "flatten", "unknown"],
)
def test_the_damage_of_a_port_is_located_and_named(
    pair: tuple, damage: Callable, first: str, words: list[str]
):
    clf, variables, cases = compared(*pair)
    clf, variables = damage(clf, variables)
    errors = divergence.compare(clf, variables, cases)
    assert divergence.first_divergence(errors) == first, errors
    cause = divergence.diagnose(clf, variables, cases, first)
    assert all(word in cause for word in words), cause


def test_timms_plain_efficientnet_lite0_differs_from_tensorflows():
    """It has torch's padding and eps; TensorFlow's weights belong to the `tf_` form only."""
    pair = parity.Pair("efficientnet_lite0", "timm", "tf_efficientnet_lite0")
    row, errors = parity.check(pair, "safetensors", [(64, 74)])
    assert row["first_divergence"] == "stem" == list(errors)[0] and row["max_rel_error"] > 0.01
    assert (
        "padding ('same' there, 'torch' here)" in row["cause"]
        and "eps of BatchNorm (0.001 there, 1e-05" in row["cause"]
    )


def test_the_command_compares_with_keras_and_writes_a_report(tmp_path: Path):
    """In a separate process, because Keras has one backend per process."""
    command = [
        sys.executable,
        "-m",
        "experiments.benchmarks.parity",
        "--arch=mobilenetv1_025_keras,resnet18",
        "--size=66x50",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    run = subprocess.run(
        [*command, "--source=keras,torchvision", f"--workdir={tmp_path}"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [(row["arch"], row["source"]) for row in rows] == [
        ("mobilenetv1_025_keras", "keras"),
        ("resnet18", "torchvision"),
    ]
    assert all(row["max_rel_error"] <= 1e-5 and row["first_divergence"] is None for row in rows)
    assert "2 pairs, largest error" in run.stdout and (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("form", ["zip", "stream", "safetensors"])
def test_both_sides_read_a_weights_file(tmp_path: Path, form: str):
    network = sources.fill(sources.make("timm", "mobilenetv2_035", 16), seed=3)
    path = sources.save(network, tmp_path / "weights.pth", form)
    row, errors = parity.check_file(
        parity.Pair("mobilenetv2_035", "timm", "mobilenetv2_035"), path, [(64, 50)]
    )
    assert (
        row["max_rel_error"] <= 1e-5
        and list(errors)[-1] == "logits"
        and row["form"] == "weights.pth"
    )
    with pytest.raises(ValueError, match="timm's mobilenetv2_050 does not take .*weights.pth"):
        sources.load(sources.make("timm", "mobilenetv2_050", 16), path)
