"""`features --show`: the maps that are shown are the forward pass's, and the page and result.json tell the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tl import models, pixels, reporting
from tl.pages import activations
from tl.visualize import filters

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def net():
    clf, variables = models.load("squeezenet1_1", weights="random")
    return clf.with_pixels(size=64), variables


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file)


def test_named_maps_are_those_of_the_full_forward_pass(net, image):
    clf, variables = net
    names = ("stem", "stage2/block1", "stage3", "features")
    images01 = pixels.to_images01(image[None])
    whole = jax.jit(clf.apply)(variables, images01)
    found = activations.forward(clf, names)(variables, images01)
    for name in names:
        wanted = np.asarray(whole.endpoints["stage3" if name == "features" else name][0])
        np.testing.assert_allclose(
            np.asarray(found[name]), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max()
        )
    np.testing.assert_allclose(
        np.asarray(found["features"]).mean(axis=(0, 1)), whole.features[0], rtol=1e-5, atol=1e-6
    )


def test_every_stage_is_the_default_and_a_wrong_name_is_told(net):
    assert activations.endpoints(*net, []) == ["stem", "stage1", "stage2", "stage3"]
    assert activations.endpoints(*net, ["stage3", "stage1/block0", "stage3"]) == [
        "stage3",
        "stage1/block0",
    ]
    with pytest.raises(
        ValueError, match="squeezenet1_1 has no endpoint 'stage33'; nearest: 'stage3"
    ):
        activations.endpoints(*net, ["stem", "stage33"])


def test_a_section_and_its_row_tell_the_same(net, image, tmp_path):
    clf, variables = net
    run = reporting.start("test", tmp_path, {})
    found = np.asarray(
        activations.forward(clf, ("stage3",))(variables, pixels.to_images01(image[None]))["stage3"]
    )
    section, row = activations.shown(run, clf, "stage3", found, name="noise", topk=5)
    h, w, c = found.shape
    assert (
        row["shape"] == [h, w, c]
        and f"({h}, {w}, {c})" in section
        and section.count("<img") == 5 + 1
    )
    assert [s["mean"] for s in row["strongest"]] == sorted(
        (s["mean"] for s in row["strongest"]), reverse=True
    )
    for s in row["strongest"]:
        np.testing.assert_allclose(s["mean"], found[..., s["channel"]].mean(), rtol=1e-5)
        assert f"{s['channel']}: {s['mean']:.3g}" in section
    assert pixels_of(tmp_path / row["flat"]).shape[:2] == (h * w, c)
    assert len(pixels_of(tmp_path / row["png"])) >= activations.TILE


def test_real_pictures_stand_beside_the_channel_and_a_lost_one_is_left_out(net, image, tmp_path):
    clf, _ = net
    run = reporting.start("test", tmp_path, {})
    found = np.zeros((2, 2, 3), np.float32)
    found[..., 1] = [[1, 2], [3, 4]]
    reporting.save_png(tmp_path / "a.png", image)
    tops = [
        [(tmp_path / "a.png", 2.0), (tmp_path / "lost.png", 1.0)],
        [(tmp_path / "lost.png", 1.0)],
    ]
    parts, rows = activations.driven(run, clf, "stage1", found, tops, name="noise")
    assert [row["channel"] for row in rows] == [1, 0] and [
        len(row["pictures"]) for row in rows
    ] == [2, 1]
    assert "channel 1" in parts[0] and parts[0].count("<img") == 2 and "png" not in rows[1]
    assert pixels_of(tmp_path / rows[0]["png"]).shape == (activations.THUMB, activations.THUMB, 3)


def test_first_layer_shows_its_filters_in_the_pictures_channel_order(net, tmp_path):
    clf, variables = net
    run = reporting.start("test", tmp_path, {})
    (section,), about = activations.first_layer(run, clf, variables)
    assert about["filters"]["kernel"] == "stem/kernel" and about["filters"]["shape"] == [
        3,
        3,
        3,
        64,
    ]
    assert section.count("<img") == 64
    kernel = variables["params"]["backbone"]["stem"]["kernel"]
    activations.first_layer(run, clf.with_pixels(channels="bgr"), variables)
    rgb, bgr = (
        pixels_of(tmp_path / "figures" / name)[:3, :3, 0]
        for name in ("filters.png", "filters-2.png")
    )
    first = filters.tiles(kernel)[0][0, 0]
    assert (rgb == round(255 * float(first[0]))).all() and (
        bgr == round(255 * float(first[2]))
    ).all()


def test_neither_a_set_nor_a_picture_is_one_sentence(tmp_path):
    command = [sys.executable, "-m", "experiments.features", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith(
        "features: give --show=IMAGE"
    )
