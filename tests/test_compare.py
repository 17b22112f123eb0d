"""Before and after: the stages, filters and channels that a change of one stage shows, and what is said of wrong input."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import compare
from tl import data, models, reporting
from tl.models import Provenance
from tl.visualize.specs import ObjectiveSpec

SIZE = 64


@functools.cache
def network() -> tuple[models.Classifier, Any]:
    clf, _ = models.load("squeezenet1_1", weights="random")
    clf = clf.with_pixels(size=SIZE)
    return clf, jax.tree.map(np.asarray, jax.jit(clf.init)(jax.random.key(0)))


def perturbed() -> Any:
    """The same but for two fire modules of the last stage, where one filter moved by its own length, and a bias."""
    variables = jax.tree.map(np.copy, network()[1])
    block2, block3 = (
        variables["params"]["backbone"]["stage3"][name] for name in ("block2", "block3")
    )
    block2["expand1x1"]["kernel"] *= np.float32(1.25)
    block3["expand3x3"]["kernel"][..., 44] *= np.float32(2.0)
    block3["squeeze"]["bias"] += np.float32(0.5)
    return variables


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The two classifiers as they were saved: before, after."""
    clf, variables = network()
    return tuple(
        models.save(tmp_path_factory.mktemp(name), clf, v)
        for name, v in (("before", variables), ("after", perturbed()))
    )  # type: ignore[return-value]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> data.DataSpec:
    """Seven pictures of two classes, one of them broken."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for name, n in (("cat", 4), ("dog", 2)):
        (folder / name).mkdir()
        for i in range(n):
            coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            reporting.save_png(
                folder / name / f"{i}.png", np.kron(coarse, np.ones((18, 18, 1), np.uint8))
            )
    (folder / "dog" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    return data.get(f"folder:{folder}")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def run_of(folder: Path) -> reporting.Run:
    return reporting.start("compare", folder, {"seed": 0})


def test_what_moved_is_found_and_shown(
    folders: tuple[Path, Path], pictures: data.DataSpec, tmp_path: Path
) -> None:
    _, _, before, after = compare.load_pair(str(folders[1]), str(folders[0]))
    assert before.clf is after.clf  # so that it compiles once
    run = run_of(tmp_path)
    result, sections = compare.compare(run, before, after, pictures, channels=2, steps=2)
    run.finish(result, reporting.page("title", "lead", sections, facts={}))
    result = json.loads((tmp_path / "result.json").read_text())

    assert list(result["cka"]) == ["stem", "stage1", "stage2", "stage3"] and result["n"] == 6
    assert [result["cka"][stage] for stage in ("stem", "stage1", "stage2")] == pytest.approx(
        [1.0] * 3, abs=1e-12
    )
    assert 0.0 <= result["cka"]["stage3"] < 1.0 - 1e-6
    (skip,) = result["skipped"]
    assert skip["path"].endswith("broken.jpg")

    assert result["moved"][0] == {
        "layer": "stage3/block3/expand3x3",
        "filter": 44,
        "relative": pytest.approx(1.0, rel=1e-5),
    }
    assert {row["layer"] for row in result["moved"][1:]} == {"stage3/block2/expand1x1"} and len(
        result["moved"]
    ) == 257
    assert {name: mean for name, mean in result["layers"].items() if mean} == {
        "stage3/block2/expand1x1": pytest.approx(0.25, rel=1e-5),
        "stage3/block3/expand3x3": pytest.approx(1.0 / 256, rel=1e-5),
    }
    assert next(iter(result["layers"])) == "stem" and len(result["layers"]) == 25
    moved = {
        "stage3/block2/expand1x1",
        "stage3/block3/expand3x3",
        "stage3/block3/squeeze",
    }  # its bias alone
    assert set(result["layers"]) - set(result["unmoved_layers"]) == moved

    (shown,) = result[
        "channels"
    ]  # the one filter of the endpoint that moved; of 512 channels the right-hand 256 are its
    assert (shown["endpoint"], shown["channel"]) == ("stage3", 256 + 44)
    objective_spec = ObjectiveSpec("channel", "", "stage3", index=300)
    images = [data.decode(shown[f"{when}_png"]) for when in ("before", "after")]
    assert images[0].shape == (SIZE, SIZE, 3)
    for at, (when, own, other) in enumerate([("before", before, after), ("after", after, before)]):
        answers = [
            compare.activations(weights, [objective_spec], images[at][None])[0]
            for weights in (own, other)
        ]
        assert [
            shown[f"activation_{when}"],
            shown[f"{when}_png_{'before' if at else 'after'}"],
        ] == pytest.approx(answers)
    page = (tmp_path / "report.html").read_text()
    assert all(
        word in page
        for word in ("stage3, channel 300", "22 layers are unmoved, every bit", "CKA is too high")
    )
    assert "first layer" not in page


def test_the_same_weights_have_the_same_ideal_and_nothing_moved(
    pictures: data.DataSpec, tmp_path: Path
) -> None:
    clf, variables = network()
    before, after = compare.pair(clf, variables, clf, variables)
    asked = ["stage1/block0:5", " stem:3", "stage1/block0:0"]
    result, sections = compare.compare(
        run_of(tmp_path),
        before,
        after,
        pictures,
        endpoints=["stage1/block0"],
        channel=asked,
        steps=2,
        limit=3,
    )
    assert list(result["cka"]) == ["stage1/block0"] and result["cka"][
        "stage1/block0"
    ] == pytest.approx(1.0, abs=1e-12)
    assert result["n"] <= 3 and result["moved"] == [] and set(result["layers"].values()) == {0.0}
    assert set(result["unmoved_layers"]) == set(result["layers"])
    assert [(row["endpoint"], row["channel"]) for row in result["channels"]] == [
        ("stage1/block0", 5),
        ("stem", 3),
        ("stage1/block0", 0),
    ]
    for row in result["channels"]:
        np.testing.assert_array_equal(data.decode(row["before_png"]), data.decode(row["after_png"]))
        assert row["activation_before"] == row["activation_after"] and row["relative"] is None
    assert "No filter moved." in "".join(sections)


def test_a_first_layer_that_moved_is_shown(tmp_path: Path) -> None:
    clf, variables = network()
    other = jax.tree.map(np.copy, variables)
    other["params"]["backbone"]["stem"]["kernel"][..., 0] *= np.float32(2.0)
    (strip,) = compare.first_layer(run_of(tmp_path), *compare.pair(clf, other, clf, variables))
    assert "first layer" in strip and data.decode(
        tmp_path / "figures" / "first-layer-after.png"
    ).shape == (31, 31, 3)


def test_what_is_wrong_is_told_before_anything_is_computed(
    folders: tuple[Path, Path], pictures: data.DataSpec, tmp_path: Path
) -> None:
    clf, variables = network()
    both = compare.pair(clf, variables, clf, variables)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"endpoints": ["stage33"]}, "squeezenet1_1 has no endpoint 'stage33'; nearest: 'stage3'"),
        ({"channel": ["stage33:1"]}, "squeezenet1_1 has no endpoint 'stage33'; nearest: 'stage3'"),
        (
            {"channel": ["stage3:512"]},
            "no channel of stage3 number 512: there are 512, from 0 to 511",
        ),
        (
            {"channel": ["stage3"]},
            "'channel:stage3' is no objective; write it as channel:ENDPOINT:INDEX",
        ),
        (
            {"channel": ["stage3:-1"]},
            "no channel of stage3 number -1: there are 512, from 0 to 511",
        ),
    ]
    for flags, words in wrong:
        with pytest.raises(ValueError, match=words):
            compare.compare(run_of(tmp_path), *both, pictures, **flags)
    one = dataclasses.replace(pictures, examples=pictures.examples[:1])
    with pytest.raises(ValueError, match="holds 1 pictures; wanted at least 2"):
        compare.compare(run_of(tmp_path), *both, one)
    unreadable = [e for e in pictures.examples if "broken" in str(e.path) or e.label == 0][-2:]
    with pytest.raises(
        ValueError, match="1 of 2 pictures can be read; wanted at least 2: look with doctor"
    ):
        compare.compare(
            run_of(tmp_path), *both, dataclasses.replace(pictures, examples=tuple(unreadable))
        )
    with pytest.raises(ValueError, match="--model=squeezenet1_1: no saved classifier there"):
        compare.load_pair("squeezenet1_1", "")
    with pytest.raises(ValueError, match="these weights|cannot be found again"):
        compare.load_pair(str(folders[1]), "")


def test_another_architecture_is_told(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, (clf, variables) = models.load, network()
    other = dataclasses.replace(clf, arch="resnet18")
    monkeypatch.setattr(
        models, "load", lambda name, **how: (other, variables) if "/" not in name else real(name)
    )
    with pytest.raises(
        ValueError,
        match=f"--model={folders[1]} is squeezenet1_1, and --before=resnet18 is resnet18",
    ):
        compare.load_pair(str(folders[1]), "resnet18")


def test_a_file_of_weights_may_be_before(folders: tuple[Path, Path]) -> None:
    _, _, before, after = compare.load_pair(str(folders[1]), str(folders[0] / models.VARIABLES))
    assert (
        compare.unmoved(before, after) != []
        and before.clf.pixels.size == after.clf.pixels.size == SIZE
    )


@pytest.mark.parametrize(
    "name, origin, found",
    [
        (
            "tf_efficientnet_lite0.lukemelas_in1k",
            "whoever",
            ("tf_efficientnet_lite0.lukemelas_in1k", "package"),
        ),
        (
            "resnet50.a1_in1k",
            "hub repository timm/resnet50.a1_in1k",
            ("squeezenet1_1", "hub:timm/resnet50.a1_in1k"),
        ),
        ("me/mine", "hub repository me/mine", ("squeezenet1_1", "hub:me/mine")),
        (
            "squeezenet1_1:w.pth",
            "unknown",
            "a file that is known by its name alone, 'squeezenet1_1:w.pth'; say where",
        ),
        (
            "squeezenet1_1.random",
            "random numbers",
            "this squeezenet1_1 began from cannot be .* were random numbers; say",
        ),
        ("tf_efficientnet_lite0.other", "unknown", "known by its name alone"),
    ],
)
def test_what_a_classifier_was_learned_from(name: str, origin: str, found: Any) -> None:
    clf = dataclasses.replace(network()[0], weights=Provenance(name, "0" * 64, origin))
    if isinstance(found, tuple):
        assert models.pretrained_source(clf) == found
        return
    with pytest.raises(ValueError, match=found):
        models.pretrained_source(clf)
