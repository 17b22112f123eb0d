"""Ideal images end to end on a toy network: grid, measurements, files, page, wrong input."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import toys
from tests.test_specs import SIZE, network, parse
from tl import data, inference, labels, metrics, pages, reporting
from tl.explain import report
from tl.models import heads
from tl.visualize import grid, ideal, specs

ROOT = Path(__file__).resolve().parents[1]
QUICK = grid.IdealSettings(steps=3, size=SIZE, frames=2, transforms=("roll",))


@pytest.fixture()
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> reporting.Run:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    return reporting.start("ideal", tmp_path / "run", {"seed": 0})


def finish(run: reporting.Run, images: ideal.IdealResult) -> tuple[dict[str, Any], str]:
    """The content of `result.json`, and the HTML of the page."""
    pages.finish(run, ideal.save(run, images))
    folder = run.workdir
    return json.loads((folder / "result.json").read_text()), (folder / "report.html").read_text()


# ---- a grid of classes, weights and noises ----


@pytest.fixture(scope="module")
def class_grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """Folder, result and page of two classes x two weights x two noises.

    The held-out network is the same network under another name.
    """
    settings = QUICK._replace(tv=(0.0, 1e5), count=2)
    held_out = [network()._replace(clf=dataclasses.replace(network().clf, arch="another"))]
    chosen = specs.class_objectives(network().clf, "tabby,any dog")
    run = reporting.start("ideal", tmp_path_factory.mktemp("run"), {"seed": 0})
    images = ideal.ideal([network()], chosen, settings, held_out=held_out)
    return run.workdir, *finish(run, images)


def test_a_grid_has_one_image_per_class_weight_and_noise(class_grid) -> None:
    _, result, _ = class_grid
    order = [(row["target"], row["tv_weight"], row["replicate"]) for row in result["images"]]
    assert order == [
        (word, tv, i) for word in ("tabby", "any dog") for tv in (0, 1e5) for i in (0, 1)
    ]
    assert len({row["png"] for row in result["images"]}) == 8


def test_every_image_of_a_grid_is_saved_with_its_animation(class_grid) -> None:
    _, result, _ = class_grid
    for row in result["images"]:
        assert data.decode(row["png"]).shape == (SIZE, SIZE, 3)
        assert 0 <= row["probability"] <= 1 and not row["dead"]
        with Image.open(row["film"]) as film:
            # the start and two frames; Pillow joins equal ones
            assert getattr(film, "n_frames", 1) <= 3


def test_a_variation_weight_makes_images_smoother(class_grid) -> None:
    rows = class_grid[1]["images"]
    for i in (0, 1, 4, 5):
        assert rows[i + 2]["tv"] < rows[i]["tv"]


def test_measurements_are_of_the_saved_png(class_grid) -> None:
    row = class_grid[1]["images"][0]
    logits = inference.predict_logits(
        network().clf, network().variables, data.decode(row["png"])[None]
    )
    p = metrics.softmax(logits)[0]
    assert row["probability"] == pytest.approx(p[281], rel=1e-5)
    assert row["value"] == pytest.approx(logits[0, 281], rel=1e-4)
    # the same network, at the same size
    assert row["judges"]["another"] == pytest.approx(p[281], rel=1e-4)


def test_held_out_probabilities_and_diversities_are_summarized(class_grid) -> None:
    _, result, _ = class_grid
    rows = result["images"]
    mean = np.mean([row["judges"]["another"] for row in rows])
    assert result["judged_by"]["mean"] == pytest.approx(mean)
    groups = {(row["target"], row["tv_weight"]) for row in result["diversity"]}
    assert groups == {(row["target"], row["tv_weight"]) for row in rows}


def test_the_page_is_drawn_from_the_result_and_the_figures(class_grid, tmp_path: Path) -> None:
    folder, result, html = class_grid
    assert "image/webp" in html and "Reproduce" in html and "any dog" in html
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    again = pages.PAGES["ideal"](result, elsewhere)
    elsewhere.rename(folder)
    assert all(section in html for section in again.sections)


def test_an_ideal_image_is_explained_as_a_photograph(class_grid, tmp_path: Path) -> None:
    clf, variables = network().clf.with_pixels(size=SIZE, crop=1.0), network().variables
    (row,) = [row for row in class_grid[1]["images"] if row["png"].endswith("tabby-tv0-0.png")]
    settings = report.ExplainSettings(("gradient",), ("tabby",), tests=("sparseness",), slots=1)
    run = reporting.start("explain", tmp_path / "run", {"seed": 0})
    images = inference.read_images(clf, row["png"])
    (explained,) = report.explain_images(run, clf, variables, images, settings)["images"]
    drawn = explained["maps"]["gradient"]
    np.testing.assert_array_equal(images.images[0], data.decode(row["png"]))
    assert explained["target"] == "tabby" and not drawn["zero"]
    assert np.load(run.workdir / drawn["npy"]).shape == (SIZE, SIZE)


@pytest.mark.full  # test_render.py has a test of this by default
@pytest.mark.optimized
def test_an_image_has_the_same_bits_alone_and_in_a_grid() -> None:
    chosen = specs.class_objectives(network().clf, "tabby,zebra")
    many, one = QUICK._replace(count=2, tv=(0.0, 3.0)), QUICK._replace(tv=(3.0,))
    cells = grid.make_cells(chosen, many)
    together = grid.make_ascent([network()], cells, many)()
    alone = grid.make_ascent([network()], grid.make_cells(chosen[1:], one), one)()
    where = cells.index(grid.Cell(chosen[1], 3.0, 0))
    np.testing.assert_array_equal(together.images[where], alone.images[0])
    np.testing.assert_array_equal(together.frames[:, where], alone.frames[:, 0])


def test_zero_steps_return_the_start_and_its_classes(run: reporting.Run) -> None:
    chosen = specs.class_objectives(network().clf, "zebra")
    result, html = finish(run, ideal.ideal([network()], chosen, QUICK._replace(steps=0)))
    (row,) = result["images"]
    assert len(row["called"]) == 3 and row["film"] is None and not row["dead"]
    assert data.decode(row["png"]).std() < 20  # gray noise
    assert "the start of the optimization" in html
    numbers, classes = pages.ideal.lines(result)
    assert numbers.startswith(f"{row['target']}: probability {row['probability']:.3f}, total")
    assert classes.split()[0] in row["called"][0]["name"]


# ---- units and photographs ----


def test_units_are_shown_with_their_top_activating_images(
    run: reporting.Run, tmp_path: Path
) -> None:
    data_set = toys.color_folder(tmp_path / "set", 6)
    photograph = np.full((SIZE, SIZE, 3), 0.25, np.float32)
    chosen = [parse("channel:stage2:1"), parse("layer:stage2")]
    settings = QUICK._replace(steps=1, step_size=0.0)
    images = ideal.ideal([network()], chosen, settings, photograph=photograph, data_set=data_set)
    result, html = finish(run, images)
    for row in result["images"]:
        assert row["probability"] is None and row["value"] > 0
        np.testing.assert_allclose(data.decode(row["png"]), 64, atol=1)  # no step was taken
    assert len(result["images"][0]["top_activating"]["images"]) == 9
    assert "top_activating" not in result["images"][1]
    assert "top-activating images" in html and result["photograph"]["png"].startswith("figures/")
    assert "No photograph" not in html


def test_inversion_recovers_the_activations_of_a_photograph() -> None:
    gradient = np.linspace(0.2, 0.8, SIZE, dtype=np.float32)[:, None, None]
    photograph = np.ascontiguousarray(np.broadcast_to(gradient, (SIZE, SIZE, 3)))
    chosen = [parse("inversion:stage1"), parse("caricature:stage1")]
    settings = QUICK._replace(steps=40, transforms=(), tv=(0.0,))
    rows = ideal.ideal([network()], chosen, settings, photograph=photograph).result["images"]
    assert -0.6 < rows[0]["value"] <= 0  # -1: all activations are 0
    assert rows[1]["value"] > 0.5


def test_inversion_needs_a_photograph() -> None:
    with pytest.raises(ValueError, match="activations of a photograph; name one with `photograph`"):
        ideal.ideal([network()], [parse("inversion:stage1")], QUICK)


# ---- dead units and NaN ----

DEAD = QUICK._replace(steps=4, transforms=(), tv=(0.0,), l2=0.0, frames=0)


@pytest.fixture(scope="module")
def dead_network() -> grid.Network:
    """The network with channel 5 of stage2 pushed far below zero."""
    clf, _, loaded = network()
    changed = jax.tree.map(np.copy, loaded)
    changed["params"]["backbone"]["stage2"]["conv0"]["bias"][5] = -50.0
    return grid.network(clf, changed)


def test_a_grid_of_dead_units_is_an_error(dead_network: grid.Network) -> None:
    with pytest.raises(ValueError, match="stayed at 0 for all 4 steps.*`redirect=16`"):
        ideal.ideal([dead_network], [parse("channel:stage2:5")], DEAD)


def test_a_dead_unit_among_others_is_reported_and_not_an_error(dead_network: grid.Network) -> None:
    chosen = [parse("channel:stage2:5"), parse("channel:stage2:1")]
    rows = ideal.ideal([dead_network], chosen, DEAD).result["images"]
    assert [row["dead"] for row in rows] == [True, False]
    assert ideal.dead_message(rows, DEAD).startswith("channel:stage2:5 stayed at 0")


def test_a_redirect_moves_the_image_of_a_dead_unit(dead_network: grid.Network) -> None:
    settings = DEAD._replace(redirect=4)
    cells = grid.make_cells([parse("channel:stage2:5")], settings)
    path = grid.make_ascent([dead_network], cells, settings)()
    assert np.abs(np.asarray(path.images) - np.asarray(path.start)).max() > 1e-3


def test_nan_is_an_error_that_names_the_step() -> None:
    chosen = specs.class_objectives(network().clf, "zebra")
    settings = QUICK._replace(optimizer="sgd", step_size=float("inf"))
    with pytest.raises(ValueError, match="the objective of image 0 became nan at step 1"):
        ideal.ideal([network()], chosen, settings)


# ---- wrong settings ----


@pytest.mark.parametrize("name", grid.TRANSFORMS)
def test_every_transform_keeps_the_size(name: str) -> None:
    transform, image = grid.make_transform((name,), 64), jnp.zeros((64, 64, 3))
    assert jax.eval_shape(transform, jax.random.key(0), image).shape == (64, 64, 3)


def test_an_unknown_transform_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown transform 'rol'; nearest: 'roll'"):
        grid.make_transform(("rol",), 64)


def test_a_negative_variation_weight_is_an_error() -> None:
    with pytest.raises(ValueError, match="`tv` has a negative weight: got -1"):
        grid.check(network().clf, QUICK._replace(tv=(-1.0,)), [parse("logit:zebra")])


def test_a_size_below_the_smallest_is_an_error() -> None:
    clf = network().clf
    clf = dataclasses.replace(clf, spec=dataclasses.replace(clf.spec, min_size=8))
    grid.check_size(clf, 0)
    grid.check_size(clf, 8)
    with pytest.raises(ValueError, match="`size` is too small.*got 7, expected at least 8"):
        grid.check_size(clf, 7)


def test_a_flat_head_accepts_one_size_only() -> None:
    clf = network().clf.with_head(heads.Flat(2), labels.from_names(["cat", "dog"]))
    grid.check_size(clf, SIZE)
    with pytest.raises(ValueError, match="reads images of 32 pixels only: got `size` 64"):
        grid.check_size(clf, 64)


def test_a_held_out_network_that_takes_part_in_the_optimization_is_an_error() -> None:
    clf = dataclasses.replace(network().clf, arch="squeezenet1_1")
    part = [network()._replace(clf=clf)]
    with pytest.raises(ValueError, match="squeezenet1_1 takes part in the optimization"):
        ideal.held_out_networks(part, ["squeezenet1_1"])
    with pytest.raises(ValueError, match="unknown architecture 'squeezenet9'"):
        ideal.held_out_networks(part, ["squeezenet9"])


def test_an_ensemble_for_another_objective_than_a_class_is_an_error() -> None:
    with pytest.raises(ValueError, match="`ensemble` is for classes: got channel:stage2:7"):
        grid.ensemble(network(), ["squeezenet1_1"], [parse("channel:stage2:7")])


# ---- the command ----


@pytest.fixture()
def ideal_command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m experiments.ideal` with flags."""
    line = [sys.executable, "-m", "experiments.ideal", f"--workdir={tmp_path / 'run'}"]
    line += ["--arch=squeezenet1_1", "--weights=random"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TL_CACHE": str(tmp_path / "cache")}
    options: dict[str, Any] = {
        "cwd": ROOT,
        "env": environment,
        "capture_output": True,
        "text": True,
    }
    return lambda *flags: subprocess.run([*line, *flags], timeout=120, **options)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "exactly one of --target and --objective"),
        pytest.param(("--target=zebra", "--tv=-1"), "negative weight", marks=pytest.mark.full),
        pytest.param(
            ("--as_in_lesson",), "./launch.sh lesson --steps=ideal", marks=pytest.mark.full
        ),
    ],
)
def test_wrong_flags_are_one_sentence(
    flags: tuple[str, ...], message: str, tmp_path: Path, ideal_command
) -> None:
    process = ideal_command(*flags)
    assert process.returncode == 1
    assert message in process.stderr and "Traceback" not in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "result.json").exists()
