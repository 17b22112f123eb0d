"""Feature maps and banks: maps equal the forward pass, and the page is drawn from files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests import toys
from tl import data, inference, pages, pixels, reporting
from tl.models import Classifier
from tl.types import Variables
from tl.visualize import activations, filters

ROOT = Path(__file__).resolve().parents[1]
SIZE = 64
Net = tuple[Classifier, Variables]


@pytest.fixture(scope="module")
def net() -> Net:
    return toys.classifier("toy_mobilenet", size=SIZE)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return toys.noise(SIZE, SIZE, 3)


@pytest.fixture()
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> reporting.Run:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    return reporting.start("features", tmp_path / "run", {"seed": 0})


@pytest.fixture(scope="module")
def top_map(net: Net, image: np.ndarray) -> np.ndarray:
    """The map of "top", f32[h w c]."""
    clf, variables = net
    forward = activations.forward(clf, ("top",))
    return np.asarray(forward(variables, pixels.to_images01(image[None]))["top"])


# ---- endpoints and their maps ----


def test_named_maps_are_those_of_the_full_forward_pass(net: Net, image: np.ndarray) -> None:
    clf, variables = net
    names = ("stem", "stage2/block1", "top", "features")
    images01 = pixels.to_images01(image[None])
    whole = jax.jit(clf.apply)(variables, images01)
    maps = activations.forward(clf, names)(variables, images01)
    for name in names:
        expected = np.asarray(whole.endpoints["top" if name == "features" else name][0])
        atol = 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(np.asarray(maps[name]), expected, rtol=0, atol=atol)
    pooled = np.asarray(maps["features"]).mean(axis=(0, 1))
    np.testing.assert_allclose(pooled, whole.features[0], rtol=1e-5, atol=1e-6)


def test_every_stage_is_the_default(net: Net) -> None:
    assert activations.endpoints(*net, []) == ["stem", "stage1", "stage2", "top"]


def test_named_endpoints_are_listed_once(net: Net) -> None:
    names = ["stage2", "stage1/block0", "stage2"]
    assert activations.endpoints(*net, names) == ["stage2", "stage1/block0"]


def test_an_unknown_endpoint_names_the_nearest(net: Net) -> None:
    with pytest.raises(ValueError, match="toy_mobilenet has no endpoint 'stage22'; nearest: 'stag"):
        activations.endpoints(*net, ["stem", "stage22"])


# ---- the files of a run ----


def test_a_row_of_the_result_has_the_values_of_the_map(
    run: reporting.Run, net: Net, top_map: np.ndarray
) -> None:
    row = activations.save_maps(run, net[0], "top", top_map, image="noise", topk=5)
    h, w, c = top_map.shape
    means = [entry["mean"] for entry in row["strongest"]]
    assert row["shape"] == [h, w, c] and means == sorted(means, reverse=True)
    for entry in row["strongest"]:
        mean = top_map[..., entry["channel"]].mean()
        np.testing.assert_allclose(entry["mean"], mean, rtol=1e-5)
    assert data.decode(run.workdir / row["flat"]).shape[:2] == (h * w, c)
    assert len(data.decode(run.workdir / row["png"])) >= activations.TILE


def test_missing_exemplar_files_are_left_out(
    run: reporting.Run, net: Net, image: np.ndarray, tmp_path: Path
) -> None:
    values = np.zeros((2, 2, 3), np.float32)
    values[..., 1] = [[1, 2], [3, 4]]
    reporting.save_png(tmp_path / "a.png", image)
    missing: Any = (tmp_path / "missing.png", 1.0)
    top = [[(tmp_path / "a.png", 2.0), missing], [missing]]
    rows = activations.save_exemplars(run, net[0], "stage1", values, top, image="noise")
    assert [row["channel"] for row in rows] == [1, 0]
    assert [len(row["pictures"]) for row in rows] == [2, 1]
    thumb = data.decode(run.workdir / rows[0]["png"])
    assert thumb.shape == (activations.THUMB, activations.THUMB, 3) and "png" not in rows[1]


def test_filters_of_the_first_layer_are_shown_as_rgb(run: reporting.Run, net: Net) -> None:
    clf, variables = net
    rgb = activations.save_first_layer(run, clf, variables)["filters"]
    assert rgb["kernel"] == "stem/kernel" and rgb["shape"] == [3, 3, 3, 8]
    bgr = activations.save_first_layer(run, clf.with_pixels(channels="bgr"), variables)["filters"]
    first = filters.tiles(variables["params"]["backbone"]["stem"]["kernel"])[0][0, 0]
    for about, value in ((rgb, first[0]), (bgr, first[2])):
        red = data.decode(run.workdir / about["png"])[:3, :3, 0]
        assert (red == round(255 * float(value))).all()


# ---- the page ----


def test_the_page_is_drawn_from_the_result_and_the_figures(
    run: reporting.Run, net: Net, image: np.ndarray, tmp_path: Path
) -> None:
    clf, variables = net
    data_set = toys.color_folder(tmp_path / "set", 3)
    files = inference.LoadedImages([tmp_path / "noise.png"], image[None], [])
    result: dict[str, Any] = {"arch": clf.arch, "endpoints": ["stem", "top"], "data": "set"}
    result |= activations.fill_banks(clf, variables, data_set, ["stem", "top"])
    assert (result["n"], result["dim"], result["reused"]) == (6, 16, 0)
    result |= activations.show(
        run, clf, variables, files, ["stem", "top"], topk=5, data_set=data_set
    )
    page = pages.PAGES["features"](reporting.jsonable(result), run.workdir)
    assert "Features of 6 images of set from toy_mobilenet, 0 of them cached" in page.lead
    banks, image_section, stem, top, first, _ = page.sections
    h, w, c = result["shown"][1]["shape"]
    assert "Feature banks" in banks and image_section.count("<img") == 1
    assert f"({h}, {w}, {c})" in top
    # Five channels, a map and an exemplar of each searched channel, and the whole map, which is
    # drawn because it has no more than `activations.TALL` positions.
    assert top.count("<img") == 5 + 2 * activations.SEARCHED + 1
    assert "Top-activating images" in stem and "First convolution" in first
    assert first.count("<img") == 8
    for entry in result["shown"][1]["strongest"]:
        assert f"{entry['channel']}: {entry['mean']:.3g}" in top


def test_a_call_without_images_and_data_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.features", f"--workdir={tmp_path}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert process.returncode == 1
    assert "nothing to compute; give --show=IMAGE" in process.stderr.strip().splitlines()[-1]
