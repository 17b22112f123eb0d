"""Two sets of weights compared: a change of one stage, equal weights, and wrong input."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests import toys
from tests.toys import toy_zoo  # noqa: F401  # a fixture
from tl import data, models, pages, reporting
from tl.models import Provenance
from tl.visualize import compare, filters
from tl.visualize.specs import ObjectiveSpec

pytestmark = pytest.mark.full

SIZE = 32
NETWORK = toys.classifier


def perturbed() -> Any:
    """The toy's variables with a changed stage: a scaled layer, a doubled filter, and a bias."""
    variables = jax.tree.map(np.copy, NETWORK()[1])
    stage2 = variables["params"]["backbone"]["stage2"]
    stage2["block0"]["expand_conv"]["kernel"] *= np.float32(1.25)
    stage2["block1"]["project_conv"]["kernel"][..., 3] *= np.float32(2.0)
    stage2["block1"]["depthwise_conv"]["norm"]["bias"] += np.float32(0.5)
    return variables


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The two classifiers as saved: before, after."""
    clf, variables = NETWORK()
    before, after = (tmp_path_factory.mktemp(name) for name in ("before", "after"))
    return models.save(before, clf, variables), models.save(after, clf, perturbed())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> data.DataSpec:
    """Seven images of two classes, one of them unreadable."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(1)
    for name, n in (("cat", 4), ("dog", 2)):
        (folder / name).mkdir()
        for i in range(n):
            coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            enlarged = np.kron(coarse, np.ones((18, 18, 1), np.uint8))
            reporting.save_png(folder / name / f"{i}.png", enlarged)
    (folder / "dog" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    return data.get(f"folder:{folder}")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory):
    """A cache of its own for the module's banks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _isolated(environment: None) -> None:
    """Every test has the module's cache."""


@dataclasses.dataclass
class Finished:
    """A finished run."""

    before: compare.Weights
    after: compare.Weights
    result: dict[str, Any]
    html: str
    folder: Path


def finish(
    folder: Path, before: Any, after: Any, data_set: data.DataSpec, **options: Any
) -> Finished:
    """Compares, writes the run, and reads it again."""
    run = reporting.start("compare", folder, {"seed": 0})
    pages.finish(run, compare.save(run, compare.compare(before, after, data_set, **options)))
    result = json.loads((folder / "result.json").read_text())
    return Finished(before, after, result, (folder / "report.html").read_text(), folder)


# ---- one changed stage ----


@pytest.fixture(scope="module")
def changed(images, environment, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    clf, variables = NETWORK()
    before, after = compare.pair(clf, perturbed(), clf, variables)
    folder = tmp_path_factory.mktemp("run")
    return finish(folder, before, after, images, channels=2, steps=2)


def test_equal_geometry_and_normalization_share_one_network(changed: Finished) -> None:
    assert changed.before.clf is changed.after.clf  # so that it compiles once


def test_stages_below_the_change_have_a_cka_of_one(changed: Finished) -> None:
    cka = changed.result["cka"]
    assert list(cka) == ["stem", "stage1", "stage2", "top"]
    assert [cka["stem"], cka["stage1"]] == [1.0, 1.0]
    assert changed.result["same_bits"] == ["stem", "stage1"]
    assert 0.0 <= cka["stage2"] < 1.0 - 1e-6 and 0.0 <= cka["top"] < 1.0 - 1e-6


def test_unreadable_images_are_reported(changed: Finished) -> None:
    assert changed.result["n"] == 6
    (skip,) = changed.result["skipped"]
    assert skip["path"].endswith("broken.jpg")


def test_changed_filters_are_listed_by_their_relative_change(changed: Finished) -> None:
    first, *others = changed.result["moved"]
    one = pytest.approx(1.0, rel=1e-5)
    assert first == {"layer": "stage2/block1/project_conv", "filter": 3, "relative": one}
    assert {row["layer"] for row in others} == {"stage2/block0/expand_conv"} and len(others) == 16


def test_layers_have_their_mean_change_in_the_order_of_the_forward_pass(changed: Finished) -> None:
    layers = changed.result["layers"]
    assert next(iter(layers)) == "stem" and len(layers) == 10
    assert {name: mean for name, mean in layers.items() if mean} == {
        "stage2/block0/expand_conv": pytest.approx(0.25, rel=1e-5),
        "stage2/block1/project_conv": pytest.approx(1.0 / 8, rel=1e-5),
    }


def test_a_layer_is_unchanged_if_every_leaf_is(changed: Finished) -> None:
    """The depthwise layer changed in a bias of its BatchNorm alone."""
    assert set(changed.result["layers"]) - set(changed.result["unmoved_layers"]) == {
        "stage2/block0/expand_conv",
        "stage2/block1/depthwise_conv",
        "stage2/block1/project_conv",
    }


def test_the_channel_of_the_changed_filter_is_shown_under_both_weights(changed: Finished) -> None:
    (row,) = changed.result["channels"]  # the one filter that changed and computes a channel
    assert (row["endpoint"], row["channel"]) == ("stage2", 3)
    spec = ObjectiveSpec("channel", "", "stage2", index=3)
    for drawn, other in (compare.WHEN, compare.WHEN[::-1]):
        image = data.decode(row[f"{drawn}_png"])
        assert image.shape == (SIZE, SIZE, 3)
        values = {
            when: compare.activations(getattr(changed, when), [spec], image[None])[0]
            for when in compare.WHEN
        }
        assert row[f"activation_{drawn}"] == pytest.approx(values[drawn])
        assert row[f"{drawn}_png_{other}"] == pytest.approx(values[other])


def test_the_page_is_drawn_from_the_result_and_the_figures(
    changed: Finished, tmp_path: Path
) -> None:
    page = changed.html
    words = ("stage2, channel 3", "7 layers are bitwise identical", "CKA is biased upward")
    assert all(word in page for word in words) and "first layer" not in page
    changed.folder.rename(tmp_path / "elsewhere")
    again = pages.PAGES["compare"](changed.result, tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(changed.folder)
    assert all(section in page for section in again.sections)


# ---- equal weights ----


@pytest.fixture(scope="module")
def equal(images, environment, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    clf, variables = NETWORK()
    before, after = compare.pair(clf, variables, clf, variables)
    channels = ["stage2/block0:5", " stem:3", "stage2/block0:0"]
    options = {"endpoints": ["stage2/block0"], "channel": channels, "steps": 2, "limit": 3}
    return finish(tmp_path_factory.mktemp("run"), before, after, images, **options)


def test_equal_weights_have_no_change(equal: Finished) -> None:
    result = equal.result
    assert result["cka"] == {"stage2/block0": 1.0} and result["n"] <= 3
    assert result["moved"] == [] and set(result["layers"].values()) == {0.0}
    assert set(result["unmoved_layers"]) == set(result["layers"])
    assert "No filter changed." in equal.html


def test_named_channels_are_shown_in_their_order(equal: Finished) -> None:
    rows = [(row["endpoint"], row["channel"]) for row in equal.result["channels"]]
    assert rows == [("stage2/block0", 5), ("stem", 3), ("stage2/block0", 0)]


def test_equal_weights_have_equal_ideal_images(equal: Finished) -> None:
    for row in equal.result["channels"]:
        before, after = (data.decode(row[f"{when}_png"]) for when in compare.WHEN)
        np.testing.assert_array_equal(before, after)
        assert row["activation_before"] == row["activation_after"] and row["relative"] is None


def test_a_changed_first_layer_is_shown() -> None:
    clf, variables = NETWORK()
    other = jax.tree.map(np.copy, variables)
    other["params"]["backbone"]["stem"]["kernel"][..., 0] *= np.float32(2.0)
    first, sheets = compare.first_layer(*compare.pair(clf, other, clf, variables))
    assert first == {"kernel": "stem/kernel", "side": 3}
    # eight tiles of 3 pixels in one row, with gaps of 1
    assert list(sheets) == ["before", "after"] and sheets["after"].shape == (3, 31, 3)


# ---- wrong input, before anything is computed ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"endpoints": ["stage22"]}, "toy_mobilenet has no endpoint 'stage22'; nearest: 'stage2'"),
        ({"channel": ["stage22:1"]}, "toy_mobilenet has no endpoint 'stage22'; nearest: 'stage2'"),
        ({"channel": ["stage2:8"]}, "no channel of stage2 number 8: there are 8, from 0 to 7"),
        ({"channel": ["stage2"]}, "'channel:stage2'; write it as channel:ENDPOINT:INDEX"),
        ({"channel": ["stage2:-1"]}, "no channel of stage2 number -1: there are 8, from 0 to 7"),
    ],
)
def test_unknown_endpoints_and_channels_are_errors(
    arguments: dict[str, Any], message: str, images: data.DataSpec
) -> None:
    clf, variables = NETWORK()
    with pytest.raises(ValueError, match=message):
        compare.compare(*compare.pair(clf, variables, clf, variables), images, **arguments)


def test_fewer_than_two_images_are_an_error(images: data.DataSpec) -> None:
    clf, variables = NETWORK()
    both = compare.pair(clf, variables, clf, variables)
    one = dataclasses.replace(images, examples=images.examples[:1])
    with pytest.raises(ValueError, match="holds 1 images; expected at least 2"):
        compare.compare(*both, one)
    rows = [e for e in images.examples if "broken" in str(e.path) or e.label == 0][-2:]
    unreadable = dataclasses.replace(images, examples=tuple(rows))
    message = "1 of 2 images can be read; expected at least 2: run doctor"
    with pytest.raises(ValueError, match=message):
        compare.compare(*both, unreadable)


# ---- which weights are compared ----


@pytest.mark.usefixtures("toy_zoo")
def test_a_saved_classifier_is_compared_with_another(folders) -> None:
    _, _, before, after = compare.load_pair(str(folders[1]), str(folders[0]))
    rows = filters.changes(before.params, after.params)
    assert (rows[0].name, rows[0].index) == ("stage2/block1/project_conv/kernel", 3)


@pytest.mark.usefixtures("toy_zoo")
def test_before_may_be_a_file_of_weights(folders) -> None:
    _, _, before, after = compare.load_pair(str(folders[1]), str(folders[0] / models.VARIABLES))
    assert compare.unchanged_layers(before, after) != []
    assert before.clf.pixels.size == after.clf.pixels.size == SIZE


def test_a_folder_without_a_classifier_is_an_error() -> None:
    with pytest.raises(ValueError, match="`model=squeezenet1_1` holds no saved classifier"):
        compare.load_pair("squeezenet1_1")


@pytest.mark.usefixtures("toy_zoo")
def test_unknown_pretrained_weights_are_an_error(folders) -> None:
    with pytest.raises(ValueError, match="cannot find the weights.*random numbers"):
        compare.load_pair(str(folders[1]))


@pytest.mark.usefixtures("toy_zoo")
def test_another_architecture_is_an_error(
    folders: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, (clf, variables) = models.load, NETWORK()
    other = dataclasses.replace(clf, arch="resnet18")
    load = lambda name, **options: (other, variables) if "/" not in name else real(name)
    monkeypatch.setattr(models, "load", load)
    message = f"`before=resnet18` is resnet18 and `model={folders[1]}` is toy_mobilenet"
    with pytest.raises(ValueError, match=message):
        compare.load_pair(str(folders[1]), "resnet18")


@pytest.mark.parametrize(
    ("name", "origin", "expected"),
    [
        (
            "tf_efficientnet_lite0.lukemelas_in1k",
            "unknown",
            ("tf_efficientnet_lite0.lukemelas_in1k", "package"),
        ),
        (
            "resnet50.a1_in1k",
            "hub repository timm/resnet50.a1_in1k",
            ("squeezenet1_1", "hub:timm/resnet50.a1_in1k"),
        ),
        ("me/mine", "hub repository me/mine", ("squeezenet1_1", "hub:me/mine")),
    ],
)
def test_the_pretrained_source_is_in_the_metadata(
    name: str, origin: str, expected: tuple[str, str]
) -> None:
    clf = dataclasses.replace(
        NETWORK()[0], arch="squeezenet1_1", weights=Provenance(name, "0" * 64, origin)
    )
    assert models.pretrained_source(clf) == expected


@pytest.mark.parametrize(
    ("name", "origin", "message"),
    [
        (
            "squeezenet1_1:w.pth",
            "unknown",
            "a file of which only the name is stored, 'squeezenet1_1:w.pth'; give them as",
        ),
        (
            "squeezenet1_1.random",
            "random numbers",
            "that this squeezenet1_1 was trained from: they were random numbers; give them",
        ),
        ("tf_efficientnet_lite0.other", "unknown", "only the name is stored"),
    ],
)
def test_a_source_that_cannot_be_found_again_is_an_error(
    name: str, origin: str, message: str
) -> None:
    clf = dataclasses.replace(
        NETWORK()[0], arch="squeezenet1_1", weights=Provenance(name, "0" * 64, origin)
    )
    with pytest.raises(ValueError, match=message):
        models.pretrained_source(clf)


@pytest.mark.usefixtures("toy_zoo")
def test_ideal_images_that_fail_leave_the_comparison(
    folders: tuple[Path, Path],
    images: data.DataSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any, **more: Any) -> Any:
        raise RuntimeError("an injected failure")

    monkeypatch.setattr(compare, "ideal_images", fail)
    run = reporting.start("compare", tmp_path, {"seed": 0})
    _, _, before, after = compare.load_pair(str(folders[1]), str(folders[0]))
    made = compare.compare(before, after, images, channels=1, attempt=run.attempt)
    pages.finish(run, compare.save(run, made))
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["failed"]) == {"channels"} and result["channels"] == []
    assert set(result["cka"]) == {"stem", "stage1", "stage2", "top"}
