"""Ideal images end to end on a small random network: what is written, what is told to wrong input."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import ideal
from tl import data, inference, labels, metrics, models, reporting
from tl.models import heads
from tl.visualize import grid, objectives, specs
from tl.visualize.grid import Cell, climber

ROOT = Path(__file__).resolve().parents[1]
SIZE = 32
QUICK = grid.Settings(steps=3, size=SIZE, frames=2, names=("roll",))


@functools.cache
def network() -> grid.Network:
    clf, variables = models.load("squeezenet1_1", weights="random")
    return grid.network(clf.with_pixels(size=SIZE), variables)


@functools.cache
def ends() -> dict[str, tuple[int, ...]]:
    return specs.shapes(network().clf, network().variables, SIZE)


def objective_spec(word: str) -> specs.ObjectiveSpec:
    return specs.parse_objective(network().clf, ends(), word)


@pytest.fixture()
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> reporting.Run:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    return reporting.start("test", tmp_path / "run", {"seed": 0})


def finish(run: reporting.Run, result: dict, sections: list) -> dict[str, Any]:
    run.finish(result, reporting.page("title", "lead", sections, facts=run.facts()))
    return json.loads((run.workdir / "result.json").read_text())


# ---------------------------------------------------------------------------------------------------------- the words


def test_every_kind_is_read_as_it_is_told_to_be_written() -> None:
    words = {
        "logit": "logit:any cat",
        "probability": "probability:zebra",
        "channel": "channel:stage1:7",
        "neuron": "neuron:stage1:7:0:1",
        "direction": "direction:stage1:7=1;2=-0.5",
        "cosine": "cosine:stage1:3=2",
        "layer": "layer:stage2",
        "inversion": "inversion:stage1",
        "caricature": "caricature:stage1",
    }
    assert set(words) == set(specs.KINDS)
    found = {kind: objective_spec(word) for kind, word in words.items()}
    assert found["logit"].classes == (281, 282, 283, 284, 285) and found["logit"].word == "any cat"
    assert (found["channel"].endpoint, found["channel"].index) == ("stage1", 7)
    assert found["neuron"].place == (0, 1)
    h, w, _ = ends()["stage1"]
    assert objective_spec("neuron:stage1:7").place == (h // 2, w // 2)
    assert found["direction"].mixture == ((7, 1.0), (2, -0.5))
    assert (
        objective_spec("channel:features:511").index == 511
        and objective_spec("channel:logits:999").index == 999
    )


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("chanel:stage1:7", "unknown objective 'chanel'.*nearest: 'channel'"),
        ("channel:stage9:7", "no endpoint 'stage9'; nearest: 'stage"),
        ("channel:stage1:128", "no channel of stage1 number 128: there are 128, from 0 to 127"),
        ("channel:stage1:-1", "there are 128"),
        ("neuron:stage1:7:99:0", "no row of stage1 number 99: there are"),
        ("neuron:stage1:7:0:99", "no column of stage1"),
        ("direction:stage1:128=1", "there are 128"),
        ("direction:stage1:1", "is no objective; write it as direction:ENDPOINT:INDEX=WEIGHT"),
        ("channel:stage1", "write it as channel:ENDPOINT:INDEX"),
        ("channel:stage1:x", "write it as channel:ENDPOINT:INDEX"),
        ("layer:", "write it as layer:ENDPOINT"),
        ("logit:", "write it as logit:CLASS"),
        ("logit:zebrra", "unknown ImageNet class 'zebrra'; nearest: 'zebra'"),
        ("probability:1000", "no class 1000; indices go from 0 to 999"),
    ],
)
def test_a_word_that_means_nothing(word: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        objective_spec(word)


def test_a_program_gives_each_image_its_own_objective() -> None:
    """All kinds in one batch are what each is alone, on the network's own output."""
    clf, variables, _ = network()
    image = np.random.default_rng(0).random((1, SIZE, SIZE, 3)).astype(np.float32)
    output = clf.apply(variables, image)
    other = clf.apply(variables, 1 - image).endpoints["stage1"]
    wanted = {"stage1": np.asarray(other[0])}
    words = [
        "logit:zebra",
        "channel:stage1:7",
        "neuron:stage1:7",
        "direction:stage1:7=1;2=-0.5",
        "cosine:stage1:3=2",
    ]
    objective_specs = [
        objective_spec(word)
        for word in [*words, "layer:stage2", "inversion:stage1", "caricature:stage1"]
    ]
    make, targets = specs.program([clf], objective_specs, ends(), wanted)
    many = output._replace(
        logits=jnp.repeat(output.logits, len(objective_specs), 0),
        endpoints={
            name: jnp.repeat(end, len(objective_specs), 0) for name, end in output.endpoints.items()
        },
    )
    found = make(targets)((many,), jnp.repeat(image, len(objective_specs), 0))  # pyright: ignore[reportArgumentType]
    maps = np.asarray(output.endpoints["stage1"][0])
    h, w, _ = maps.shape
    mean = maps.mean(axis=(0, 1))
    assert output.logits is not None
    expected = [
        output.logits[0, 340],
        mean[7],
        maps[h // 2, w // 2, 7],
        mean[7] - 0.5 * mean[2],
        2 * mean[3] * max(mean[3] / np.linalg.norm(mean), 0.1) ** 2,
        np.mean(np.asarray(output.endpoints["stage2"]) ** 2),
        -np.sum((maps - wanted["stage1"]) ** 2) / np.sum(wanted["stage1"] ** 2),
        objectives.caricature("stage1", other)(output, image)[0],
    ]
    np.testing.assert_allclose(found, np.asarray(expected, np.float32), rtol=1e-4, atol=1e-6)


def test_views_are_the_objectives_own_unless_named() -> None:
    zebra, unit, again = (
        objective_spec("logit:zebra"),
        objective_spec("channel:stage1:7"),
        objective_spec("inversion:stage1"),
    )
    assert grid.names_of(grid.Settings(), [zebra, unit]) == ("zoom", "noise")
    assert grid.names_of(grid.Settings(), [again, objective_spec("caricature:stage2")]) == ()
    assert grid.names_of(QUICK, [zebra, again]) == ("roll",)
    with pytest.raises(
        ValueError, match="want no transforms, the other objectives do; say --transforms="
    ):
        grid.names_of(grid.Settings(), [zebra, again])


def test_several_networks_at_once_are_the_mean_of_their_logits() -> None:
    clf, variables, _ = network()
    image = np.random.default_rng(0).random((1, SIZE, SIZE, 3)).astype(np.float32)
    one = clf.apply(variables, image)
    two = one._replace(logits=None if one.logits is None else 3.0 * one.logits)
    make, targets = specs.program([clf, clf], [objective_spec("logit:zebra")], ends(), {})
    found = make(targets)((one, two), image)  # pyright: ignore[reportArgumentType]
    assert one.logits is not None
    np.testing.assert_allclose(found, 2.0 * one.logits[:, 340], rtol=1e-5)


# ----------------------------------------------------------------------------------------------------------- end to end


def test_a_grid_of_classes_weights_and_noises(run: reporting.Run) -> None:
    how = QUICK._replace(tv=(0.0, 1e5), count=2)
    judges = [grid.Network(dataclasses.replace(network().clf, arch="another"), *network()[1:])]
    objective_specs = specs.class_objectives(network().clf, "tabby,any dog")
    result = finish(run, *ideal.ideal(run, [network()], objective_specs, how, judges=judges))
    rows = result["images"]
    order = [(row["target"], row["tv_weight"], row["replicate"]) for row in rows]
    assert order == [
        (word, tv, i) for word in ("tabby", "any dog") for tv in (0, 1e5) for i in (0, 1)
    ]
    assert len({row["png"] for row in rows}) == 8
    for row in rows:
        picture = data.decode(row["png"])
        assert picture.shape == (SIZE, SIZE, 3)
        assert 0 <= row["probability"] <= 1 and not row["dead"]
        with Image.open(row["film"]) as film:
            assert (
                getattr(film, "n_frames", 1) <= 3
            )  # the start and two frames; Pillow joins equal ones
    for i in (0, 1, 4, 5):
        assert rows[i + 2]["tv"] < rows[i]["tv"]
    logits = inference.predict_logits(
        network().clf, network().variables, data.decode(rows[0]["png"])[None]
    )
    p = metrics.softmax(logits)[0]
    assert rows[0]["probability"] == pytest.approx(p[281], rel=1e-5)
    assert rows[0]["value"] == pytest.approx(logits[0, 281], rel=1e-4)
    assert rows[0]["judges"]["another"] == pytest.approx(
        p[281], rel=1e-4
    )  # the same network, at the same size
    assert result["judged_by"]["mean"] == pytest.approx(
        np.mean([row["judges"]["another"] for row in rows])
    )
    assert {(each["target"], each["tv_weight"]) for each in result["diversity"]} == {
        (a, b) for a, b, _ in order
    }
    html = (run.workdir / "report.html").read_text()
    assert "image/webp" in html and "Make it again" in html and "any dog" in html


@pytest.mark.optimized
def test_alone_or_in_a_grid_it_is_the_same_image_to_the_bit() -> None:
    objective_specs = specs.class_objectives(network().clf, "tabby,zebra")
    how, lone = QUICK._replace(count=2, tv=(0.0, 3.0)), QUICK._replace(tv=(3.0,))
    cells = grid.grid(objective_specs, how)
    together, alone = (
        climber([network()], cells, how)(),
        climber([network()], grid.grid(objective_specs[1:], lone), lone)(),
    )
    where = cells.index(Cell(objective_specs[1], 3.0, 0))
    np.testing.assert_array_equal(together.images[where], alone.images[0])
    np.testing.assert_array_equal(grid.frames[:, where], alone.frames[:, 0])


def test_no_step_shows_the_start_and_what_it_is_called(run: reporting.Run) -> None:
    objective_specs = specs.class_objectives(network().clf, "zebra")
    result, sections = ideal.ideal(run, [network()], objective_specs, QUICK._replace(steps=0))
    (row,) = result["images"]
    assert len(row["called"]) == 3 and row["film"] is None and not row["dead"]
    assert data.decode(row["png"]).std() < 20  # grey noise
    assert "where a climb would begin" in "".join(sections)


def test_units_with_their_photographs_and_a_photograph_as_the_start(
    run: reporting.Run, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    for label, level in (("dark", 40), ("light", 215)):
        (folder / label).mkdir(parents=True)
        for i in range(6):
            grain = np.random.default_rng(i).integers(-30, 30, (40, 40, 3))
            reporting.save_png(folder / label / f"{i}.png", (level + grain).astype(np.uint8))
    photograph = np.full((SIZE, SIZE, 3), 0.25, np.float32)
    objective_specs = [objective_spec("channel:stage1:7"), objective_spec("layer:stage1")]
    spec = data.get(f"folder:{folder}")
    how = QUICK._replace(steps=1, step_size=0.0)
    result, sections = ideal.ideal(
        run, [network()], objective_specs, how, photograph=photograph, spec=spec
    )
    for row in result["images"]:
        assert row["probability"] is None and row["value"] > 0
        np.testing.assert_allclose(data.decode(row["png"]), 64, atol=1)  # no step was taken
    assert "nine photographs" in "".join(sections)


def test_a_photograph_is_found_again_from_its_activations(run: reporting.Run) -> None:
    photograph = np.broadcast_to(
        np.linspace(0.2, 0.8, SIZE, dtype=np.float32)[:, None, None], (SIZE, SIZE, 3)
    )
    objective_specs = [objective_spec("inversion:stem"), objective_spec("caricature:stem")]
    how = QUICK._replace(steps=40, names=(), tv=(0.0,))
    result, _ = ideal.ideal(
        run, [network()], objective_specs, how, photograph=np.ascontiguousarray(photograph)
    )
    assert -0.6 < result["images"][0]["value"] <= 0  # -1 is no activation at all
    assert result["images"][1]["value"] > 0.5
    with pytest.raises(ValueError, match="about a photograph; name one with --photograph"):
        ideal.ideal(run, [network()], objective_specs, how)


def dead() -> grid.Network:
    """The network with one unit of stage1's last expansion pushed far below zero."""
    clf, loaded = models.load("squeezenet1_1", weights="random")
    last = loaded["params"]["backbone"]["stage1"]["block1"]["expand3x3"]
    last["bias"] = np.where(np.arange(last["bias"].size) == 5, np.float32(-50.0), last["bias"])
    return grid.network(clf.with_pixels(size=SIZE), loaded)


def test_a_dead_unit_is_told_and_woken(run: reporting.Run) -> None:
    index = ends()["stage1"][-1] // 2 + 5  # expand3x3 comes after expand1x1
    objective_specs = [objective_spec(f"channel:stage1:{index}")]
    how = QUICK._replace(steps=4, names=(), tv=(0.0,), l2=0.0, frames=0)
    with pytest.raises(ValueError, match="stayed at 0 for all 4 steps.*--redirect=16"):
        ideal.ideal(run, [dead()], objective_specs, how)
    mixed, _ = ideal.ideal(
        run, [dead()], [*objective_specs, objective_spec("channel:stage1:1")], how
    )
    assert [row["dead"] for row in mixed["images"]] == [True, False]  # the others are not lost
    moved = grid.climber([dead()], grid.grid(objective_specs, how), how._replace(redirect=4))()
    assert np.abs(np.asarray(moved.images) - np.asarray(moved.start)).max() > 1e-3


def test_nan_stops_and_names_the_step(run: reporting.Run) -> None:
    objective_specs = specs.class_objectives(network().clf, "zebra")
    how = QUICK._replace(optimizer="sgd", step_size=float("inf"))
    with pytest.raises(
        ValueError, match="the objective of image 0 became nan at step 1; take a smaller step size"
    ):
        ideal.ideal(run, [network()], objective_specs, how)


def test_views_come_back_to_the_networks_size_and_unknown_ones_are_told() -> None:
    key = jax.random.key(0)
    for name in grid.TRANSFORMS:
        assert jax.eval_shape(grid.views((name,), 64), key, jnp.zeros((64, 64, 3))).shape == (
            64,
            64,
            3,
        )
    with pytest.raises(ValueError, match="unknown transform 'rol'; nearest: 'roll'"):
        grid.views(("rol",), 64)


def test_sizes_that_a_network_does_not_take() -> None:
    clf = network().clf
    grid.check_size(clf, 0)
    grid.check_size(clf, clf.spec.min_size)
    with pytest.raises(ValueError, match=f"got --size={clf.spec.min_size - 1}"):
        grid.check_size(clf, clf.spec.min_size - 1)
    flat = clf.with_head(heads.Flat(2), labels.from_names(["cat", "dog"]))
    grid.check_size(flat, SIZE)
    with pytest.raises(ValueError, match="reads maps of 32 pixels only; leave --size=64 out"):
        grid.check_size(flat, 64)


def test_judges_take_no_part() -> None:
    with pytest.raises(ValueError, match="squeezenet1_1 takes part in the climb"):
        grid.held_out_networks([network()], ["squeezenet1_1"])
    with pytest.raises(ValueError, match="unknown architecture 'squeezenet9'"):
        grid.held_out_networks([network()], ["squeezenet9"])


def test_the_lessons_way(run: reporting.Run) -> None:
    clf, variables, _ = network()
    objective_specs = specs.class_objectives(clf, "Siamese cat")
    rows, section = ideal.as_written(run, clf, variables, objective_specs, 0, steps=2)
    assert [(row["way"], row["lesson"]) for row in rows] == [
        (ideal.FIRST, 0.645),
        (ideal.SECOND, 0.920),
    ]
    assert all(0 <= row["probability"] <= 1 for row in rows)
    assert "As in the lesson" in section
    with pytest.raises(ValueError, match="--as_in_lesson is for classes"):
        ideal.as_written(run, clf, variables, [objective_spec("layer:stage1")], 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--target=zebra", "--tv=-1"), "negative weight"),
        ((), "one of --target=CLASS and --objective="),
    ],
)
def test_wrong_flags_are_one_sentence(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    line = [
        sys.executable,
        "-m",
        "experiments.ideal",
        "--arch=squeezenet1_1",
        "--weights=random",
        *words,
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TL_CACHE": str(tmp_path / "cache")}
    found = subprocess.run(
        [*line, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 1
    assert (
        said in found.stderr
        and "Traceback" not in found.stderr
        and len(found.stderr.strip().splitlines()) == 1
    )
    assert not (tmp_path / "run" / "result.json").exists()
