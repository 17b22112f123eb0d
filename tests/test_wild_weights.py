"""Weights files as people have them (`wild.WEIGHTS`): what is read, remarked and refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from experiments import doctor
from tests import wild
from tests.wild import Situation
from tl import backbones, labels, models, pages, reporting
from tl.models import fitting
from tl.pages import doctor as pages_doctor
from tl.pixels import PixelSpec
from tl.types import DetailedError
from tl.weights import hub, metadata, port, readers
from tl.weights.readers import Contents


def best(contents: Contents, arrays: dict[str, Any]) -> Contents:
    """The reading that has most of the names, as `tl.models.fitting` chooses it for a network."""
    table = {name: port.Target(name) for name in arrays}
    fit = fitting._fit(
        backbones.get("resnet18"), None, table, {}, fitting._Names(contents.arrays), ""
    )
    return contents._replace(
        arrays={name: array for name, array in fit.arrays.items() if name in table},
        prefix=contents.prefix + fit.prefix,
        left_out=(*contents.left_out, *fit.unused(table)),
        remarks=(*contents.remarks, *fit.remarks(True)),
    )


def assert_arrays(actual: Any, expected: Any) -> None:
    assert sorted(actual) == sorted(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.parametrize("row", wild.READ, ids=lambda row: row.name)
def test_the_network_of_a_file_is_read(tmp_path: Path, row: Situation):
    path = row.make(tmp_path)
    contents = best(readers.open_weights(path), row.right["arrays"])
    assert_arrays(contents.arrays, row.right["arrays"])
    json.dumps(contents.metadata, allow_nan=False)
    assert contents.chosen == row.right.get("chosen", contents.chosen)
    assert contents.prefix == row.right.get("prefix", contents.prefix)
    assert set(row.right.get("left_out", ())) <= set(contents.left_out)
    for key, value in row.right.get("metadata", {}).items():
        assert contents.metadata[key] == value
    assert all(len(remark) <= 200 for remark in contents.remarks)
    if row.remark:
        assert [r for r in contents.remarks if re.search(row.remark, r)], contents.remarks
    else:
        assert contents.remarks == ()
    if raw := row.right.get("raw"):
        for which in ("raw", raw):
            other = best(readers.open_weights(path, which), wild.NETWORK)
            assert_arrays(other.arrays, wild.NETWORK)
            assert other.chosen == raw and not any("EMA" in r for r in other.remarks)
        assert_arrays(readers.open_weights(path, "ema").arrays, row.right["arrays"])


def test_prefixes_are_few_for_any_names():
    arrays = {separator.join("ab" * 10_000): np.zeros(1) for separator in "./"}
    assert len(fitting._Names(arrays).rests) <= 33


@pytest.mark.parametrize("row", wild.REFUSED, ids=lambda row: row.name)
def test_a_file_that_is_not_read_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Situation
):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    path = row.make(tmp_path / "folder")
    with pytest.raises(ValueError, match=row.refused) as caught:
        readers.open_weights(path)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    assert not Path("canary").exists() and os.listdir(tmp_path) == ["folder"]


# --- loading: files next to the weights, metadata, heads, channels ---------------------------


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones._SPECS, "wild_net", wild.NET)


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("row", wild.LOADED, ids=lambda row: row.name)
def test_a_weights_file_is_loaded_as_its_publisher_means_it(tmp_path: Path, row: Situation):
    word = row.make(tmp_path)
    arch = row.right.get("arch", "wild_net")
    if row.refused:
        with pytest.raises(ValueError, match=row.refused) as caught:
            models.load(arch, weights=word)
        message = str(caught.value)
        assert len(message) <= 600 and "\n" not in message
        return
    clf, variables = models.load(arch, weights=word)
    assert clf.arch == arch
    assert any(re.search(row.remark, remark) for remark in clf.remarks) or not row.remark
    assert bool(row.remark) == bool(clf.remarks), clf.remarks
    assert all(len(remark) <= 200 for remark in clf.remarks), clf.remarks
    if "pixels" in row.right:
        assert clf.pixels == row.right["pixels"]
    if "classes" in row.right:
        classes = row.right["classes"]
        assert classes == (clf.classes.display_names if clf.classes is not None else None)
        assert ("head" in variables["params"]) == bool(classes)
    if "license" in row.right:
        assert clf.weights.licence == row.right["license"]
    if "first" in row.right:
        scale = variables["params"]["backbone"]["stem"]["norm"]["scale"]
        np.testing.assert_array_equal(scale, row.right["first"])
    assert len(clf.head_left_out) == row.right.get("head", 0)


KERAS = {"class_name": "Rescaling", "scale": 1 / 127.5, "offset": -1.0}
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
TIMM_ARGS = {"model": "resnet18", "img_size": 240, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    "stated, arch, pixels, remark",
    [
        ({"format": "pt"}, None, {}, ""),
        ({"epoch": 3, "args": {"lr": 0.1, "mean": None, "img_size": None}}, None, {}, ""),
        (
            {"arch": "resnet18", "args": TIMM_ARGS | {"crop_pct": 0.95, "interpolation": "random"}},
            "resnet18",
            HALF | {"size": 240, "crop": 0.95, "interpolation": "bilinear"},
            "mean, std, img_size, crop_pct, interpolation: from 'args' of the weights file",
        ),
        ({"args": {"model": "vit_b_16", "input_size": [3, 96, 96]}}, None, {"size": 96}, "input_"),
        (
            {"args": {"model": "resnet50", "val_crop_size": 224, "val_resize_size": 232}},
            "resnet50",
            {"size": 224, "crop": 224 / 232},
            "val_crop_size: from 'args'",
        ),
        ({"hyper_parameters": {"backbone": "mobilenet_v2"}}, "mobilenetv2_100", {}, ""),
        ({"mean": [127.5] * 3, "std": [127.5] * 3}, None, HALF, "mean, std: from the metadata"),
        ({"mean": [0.5] * 3}, None, {}, "mean in the metadata of the file: not used"),
        ({"args": {"img_size": [3, 224, 192]}}, None, {}, "img_size in 'args' .*: not used"),
        ({"preprocessing": [KERAS]}, None, HALF | {"channels": "rgb"}, "layers of the Keras model"),
        (
            {"preprocessing": [{"class_name": "Rescaling", "scale": 1 / 255}]},
            None,
            {"mean": (0.0,) * 3, "std": (1.0,) * 3, "channels": "rgb"},
            "mean and std are those of the layers",
        ),
        (
            {
                "input_shape": [None, 160, 160, 3],
                "preprocessing": [
                    {"class_name": "Rescaling", "scale": 1 / 255},
                    {"class_name": "Normalization", "mean": [0.4] * 3, "variance": [0.04] * 3},
                ],
            },
            None,
            {"size": 160, "mean": (0.4,) * 3, "std": (0.2,) * 3, "channels": "rgb"},
            "mean and std are those of the layers",
        ),
        ({"preprocessing": [{"class_name": "Resizing"}]}, None, {}, "not used: Resizing"),
    ],
)
def test_metadata_in_a_file_decide_the_preprocessing_or_are_reported(
    stated: dict, arch: str | None, pixels: dict, remark: str
):
    read = metadata.of_metadata(stated)
    assert read.arch == arch and read.pixels.keys() == pixels.keys()
    for name, value in pixels.items():
        assert read.pixels[name] == (value if isinstance(value, str) else pytest.approx(value))
    assert bool(read.remarks) == bool(remark)
    assert not remark or re.search(remark, read.remarks[0]), read.remarks


@pytest.mark.parametrize(
    "stated",
    [
        {"classes": ["ant", "bee"]},
        {"class_names": ["ant", "bee"]},
        {"class_to_idx": {"bee": 1, "ant": 0}},
        {"idx_to_class": {"1": "bee", "0": "ant"}},
        {"hyper_parameters": {"class_names": ["ant", "bee"]}},
    ],
)
def test_class_names_in_a_file_are_used(stated: dict):
    classes = metadata.of_metadata(stated).classes
    assert classes is not None and classes.display_names == ("ant", "bee")


def test_names_of_imagenet_are_its_class_table():
    table = labels.imagenet()
    for names in ([e.wnid for e in table.entries], [e.names[0] for e in table.entries]):
        assert metadata.of_metadata({"classes": names}).classes is table
    other = metadata.of_metadata({"classes": [f"kind {i}" for i in range(1000)]}).classes
    assert other is not None and other.display(3) == "kind 3"


def test_a_normalizer_inside_the_network_overrides_the_config(tmp_path: Path):
    path = wild._robust(tmp_path)
    wild.weights(tmp_path, wild.tensors(), name="other", config=wild.CONFIG)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    backbones._SPECS["wild_net"] = wild.NET
    try:
        clf, _ = models.load("wild_net", weights=path)
    finally:
        del backbones._SPECS["wild_net"]
    assert clf.pixels == wild.PIXELS_OF_CONFIG


# --- without an architecture, a head or a choice -----------------------------------------------


@pytest.mark.usefixtures("zoo")
def test_the_architecture_is_that_of_the_config_or_of_the_tensors(tmp_path: Path):
    for folder, config in (("a", wild.CONFIG), ("b", None)):
        (tmp_path / folder).mkdir()
        path = wild.weights(tmp_path / folder, config=config)
        clf, _ = models.load("", weights=path)
        assert clf.arch == "wild_net"
        assert any("the tensors are those of wild_net" in r for r in clf.remarks) == (not config)
    assert models.load(str(tmp_path / "a"))[0].arch == "wild_net"
    assert models.load(f"local-dir:{tmp_path / 'a'}")[0].pixels == wild.PIXELS_OF_CONFIG
    with pytest.raises(ValueError, match="no saved classifier in .*/b: it has no classifier.json"):
        models.load(str(tmp_path / "b"))
    with pytest.raises(ValueError, match="`weights` cannot be combined with a folder"):
        models.load(str(tmp_path / "a"), weights="hub")
    with pytest.raises(ValueError, match="no network: give an architecture"):
        models.load("")


@pytest.mark.usefixtures("zoo")
def test_a_head_is_left_out_on_request_and_its_absence_is_explained(tmp_path: Path):
    path = wild.weights(tmp_path, config=wild.CONFIG)
    clf, variables = models.load("wild_net", weights=path, headless=True)
    assert clf.head is None and clf.classes is None and set(variables["params"]) == {"backbone"}
    assert clf.head_left_out == ("classifier.weight", "classifier.bias")
    mlp = wild.weights(tmp_path, wild.other_head(**wild.MLP), name="mlp.safetensors")
    (tmp_path / "config.json").unlink()
    clf, variables = models.load("wild_net", weights=mlp)
    expected = (
        "was left out, by `headless` or because it is not wild_net's own: classifier.1.0.bias, "
        "classifier.1.0.weight, classifier.1.3.bias, classifier.1.3.weight; transfer, features "
    )
    assert expected in clf.no_head_message() and len(clf.no_head_message()) <= 600
    new, _ = clf.replace_head(variables, ["a", "b"], key=jax.random.key(0))
    assert new.head is not None and new.head_left_out == ()


@pytest.mark.usefixtures("zoo")
def test_which_selects_a_copy_of_the_network_by_its_prefix(tmp_path: Path):
    path = wild._contrastive(tmp_path)
    scales = []
    for which in ("", "encoder_q", "encoder_k"):
        _, variables = models.load("wild_net", weights=path, which=which)
        scales.append(variables["params"]["backbone"]["stem"]["norm"]["scale"])
    np.testing.assert_array_equal(scales[0], scales[1])
    np.testing.assert_array_equal(scales[0], scales[2] * 2)
    with pytest.raises(ValueError, match="no weights named `which=teacher`"):
        models.load("wild_net", weights=path, which="teacher")


@pytest.mark.usefixtures("zoo")
def test_channels_of_a_file_can_be_requested_but_not_changed(tmp_path: Path):
    path = wild.weights(tmp_path, wild.tensors(channels=1))
    _, variables = models.load("wild_net", weights=path, in_channels=1)
    assert variables["params"]["backbone"]["stem"]["kernel"].shape == (3, 3, 1, 8)
    with pytest.raises(ValueError, match="`in_channels` must be 1, as in these weights: got 3"):
        models.load("wild_net", weights=path, in_channels=3)


@pytest.mark.usefixtures("zoo")
def test_details_of_a_refusal_list_every_tensor(tmp_path: Path):
    arrays = wild.tensors()
    for name in [n for n in arrays if n.startswith("blocks.1")]:
        del arrays[name]
    path = wild.weights(tmp_path, arrays)
    with pytest.raises(DetailedError) as caught:
        models.load("wild_net", weights=path)
    assert len(str(caught.value)) <= 600 and len(caught.value.details) == 30
    assert "expected the tensors of wild_net under the names of timm" in str(caught.value)


# --- doctor --weights ---------------------------------------------------------------------------


@pytest.mark.usefixtures("zoo")
def test_a_report_on_a_file_says_what_would_be_used_and_left_out(tmp_path: Path):
    half = {n: a.astype(np.float16) for n, a in wild.other_head(**wild.MLP).items()}
    path = wild.weights(tmp_path, wild.prefixed("net.", half), header={"author": "me"})
    report = models.examine_weights(path).as_dict()
    json.dumps(report, allow_nan=False)
    assert {key: report[key] for key in ("format", "arch", "classes", "prefix", "source")} == {
        "format": "safetensors",
        "arch": "wild_net",
        "classes": None,
        "prefix": "net.",
        "source": "timm",
    }
    assert report["metadata"]["author"] == "me" and report["dtypes"] == {"float16": 50}
    assert len(report["used"]) == 50 and "conv_stem.weight" in report["used"]
    assert report["left_out"] == [
        f"net.classifier.1.{n}" for n in ("0.bias", "0.weight", "3.bias", "3.weight")
    ]
    assert report["pixels"] == PixelSpec().as_dict() and report["pixels_stated"] == []
    findings = pages_doctor.weights_findings(report)
    assert findings["Preprocessing"] == "not stated, that of the network is used"
    assert findings["Left out"] == "4, " + ", ".join(report["left_out"][:3]) + ", ..."


@pytest.mark.usefixtures("zoo")
def test_a_saved_classifier_and_a_repository_of_the_hub_are_examined_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = wild.weights(tmp_path, config=wild.CONFIG)
    saved = models.save(tmp_path / "saved", *models.load("wild_net", weights=path))
    for word in (saved, saved / "variables.safetensors"):
        report = models.examine_weights(word).as_dict()
        assert (report["arch"], report["classes"], report["source"]) == ("wild_net", 3, "tl")
    bare = (saved / "variables.safetensors").rename(tmp_path / "bare.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="has the names of tl, which do not state the network"):
        models.load("", weights=bare)
    requested = []
    fetched = lambda *names: requested.append(names) or hub.HubFiles(path, {})
    monkeypatch.setattr(hub, "fetch", fetched)
    report = models.examine_weights("hub:madrylab/robust-imagenet-models/resnet18_l2_eps3.ckpt")
    assert requested == [("madrylab/robust-imagenet-models", "resnet18_l2_eps3.ckpt")]
    assert report.clf.arch == "wild_net"
    assert report.clf.weights.name == "madrylab/robust-imagenet-models/resnet18_l2_eps3.ckpt"


@pytest.mark.usefixtures("zoo")
def test_the_command_examines_a_weights_file_and_draws_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = wild.weights(tmp_path, config=wild.CONFIG)
    flags = {"data": "", "weights": str(path), "which": ""}
    monkeypatch.setattr(doctor, "FLAGS", SimpleNamespace(**flags))
    run = reporting.start("doctor", tmp_path / "run", {"seed": 0})
    doctor.main(run)
    result = json.loads((run.workdir / "result.json").read_text())
    assert result["arch"] == "wild_net" and result["classes"] == 3
    assert result["pixels"]["mean"] == list(wild.MEAN) and result["remarks"] == [wild.FROM_CONFIG]
    findings = pages_doctor.weights_findings(result)
    assert findings["Classes"] == "3, ant, bee, cat" and "stated: size, crop" in str(findings)
    page = (run.workdir / "report.html").read_text()
    assert "Weights check" in page and "ant, bee, cat" in page
    before = page.partition("<footer")[0]
    assert pages.redraw(run.workdir).read_text().partition("<footer")[0] == before
    for data in ("", "folder:x"):
        flags = {"data": data, "weights": "x" * bool(data), "which": ""}
        monkeypatch.setattr(doctor, "FLAGS", SimpleNamespace(**flags))
        with pytest.raises(ValueError, match="give either `data` or `weights`"):
            doctor.main(run)
    flags = {"data": "", "weights": str(wild._long_names(tmp_path / "run")), "which": ""}
    monkeypatch.setattr(doctor, "FLAGS", SimpleNamespace(**flags))
    with pytest.raises(ValueError, match="holds 300 tensors with names of another network"):
        doctor.main(run)
