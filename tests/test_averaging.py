"""Averages of the weights of classifiers: soups and the line between two of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import toys

from tl import data, models, pages, reporting
from tl.evaluation import averaging, seen
from tl.evaluation.averaging import METHODS, average


def tree(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {"params": {"w": draw(3, 4)}, "batch_stats": {"mean": draw(4)}}


def same(a: Any, b: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_an_average_of_one_has_its_bits_and_shares_of_zero_do_not_count() -> None:
    a, b, c = tree(0), tree(1), tree(2)
    assert same(average([a], [1.0]), a)
    assert same(average([a, b], [0.0, 1.0]), b)
    assert same(average([a, a], [0.5, 0.5]), a)
    mean = average([a, b, c], [0.25, 0.25, 0.5])
    expected = (a["params"]["w"] + b["params"]["w"] + 2 * c["params"]["w"]) / 4
    np.testing.assert_allclose(mean["params"]["w"], expected, atol=1e-6)
    assert mean["batch_stats"]["mean"].dtype == np.float32


def scripted(values: dict[tuple[float, ...], float]) -> Callable[[Sequence[float]], np.ndarray]:
    """A test whose accuracies are given, of 100 images."""
    return lambda weights: np.arange(100) < 100 * values[tuple(np.round(weights, 2))]


@pytest.mark.parametrize("method", METHODS)
def test_the_shares_of_every_method_sum_to_one(method: str) -> None:
    always = lambda weights: np.ones(4, bool)
    for weights in METHODS[method](always, [1, 0], 5):
        assert sum(weights) == pytest.approx(1.0) and min(weights) >= 0


def test_the_greedy_soup_leaves_out_what_lowers_the_accuracy() -> None:
    values = {(0, 0, 1): 0.8, (0.5, 0, 0.5): 0.8, (0.33, 0.33, 0.33): 0.7}
    (weights,) = METHODS["greedy"](scripted(values), [2, 0, 1], 0)
    assert tuple(weights) == (0.5, 0.0, 0.5)  # an equal accuracy is not worse
    values[0.5, 0, 0.5] = 0.79
    values[0, 0.5, 0.5] = 0.9
    (weights,) = METHODS["greedy"](scripted(values), [2, 0, 1], 0)
    assert tuple(weights) == (0.0, 0.5, 0.5)


def test_the_line_starts_at_the_first_and_ends_at_the_second() -> None:
    line = METHODS["wise_ft"](lambda weights: np.ones(1, bool), [1, 0], 3)
    assert [tuple(weights) for weights in line] == [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, data.DataSpec]:
    """Three saved toys with different heads, trained on some of the images of a folder."""
    folder = tmp_path_factory.mktemp("averages")
    spec = toys.color_folder(folder / "data", 16, side=16)
    parts = data.divide(spec, seed=0)
    for seed in range(3):
        clf, variables = toys.classifier("toy_vgg", spec.classes, size=16)
        head = variables["params"]["head"]
        noise = np.random.default_rng(seed).normal(size=head["kernel"].shape).astype(np.float32)
        params = {**variables["params"], "head": {**head, "kernel": head["kernel"] + noise}}
        metadata = {seen.KEY: seen.describe(parts)}
        models.save(
            folder / f"run{seed}" / "model", clf, {**variables, "params": params}, metadata=metadata
        )
    return folder, spec


@pytest.fixture()
def toy_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    from tl import backbones

    for name, spec in toys.TOYS.items():
        monkeypatch.setitem(backbones._SPECS, name, spec)


@pytest.mark.usefixtures("toy_networks")
def test_averages_are_chosen_on_validation_images_and_tested_on_others(
    trained: tuple[Path, data.DataSpec], tmp_path: Path
) -> None:
    folder, spec = trained
    members = averaging.load_members([str(folder / "run*")])
    assert [member.name for member in members] == ["run0", "run1", "run2"]
    divided = averaging.divide(members, spec)
    parts = data.divide(spec, seed=0)
    paths = lambda part: {str(example.path) for example in part.examples}
    assert paths(divided.validation) == paths(parts.validation)
    assert paths(divided.test) == paths(parts.test)

    run = reporting.start("average", str(tmp_path / "run"), {})
    result = averaging.compare(run, members, spec, methods=["uniform", "greedy"])
    pages.finish(run, result)
    assert [row["method"] for row in result["rows"]] == ["single"] * 3 + ["uniform", "greedy"]
    for row in result["rows"]:
        assert sum(row["weights"]) == pytest.approx(1.0)
        assert row["difference_ci95"][0] <= row["difference"] <= row["difference_ci95"][1]
    saved = json.loads((run.workdir / "result.json").read_text())
    page = pages.PAGES["average"](saved, run.workdir)
    assert result["saved"] in page.lead and len(page.sections) == 1
    best = next(row for row in result["rows"][::-1] if row["name"] == result["saved"])
    _, variables = models.load(str(run.workdir / "model"))
    assert same(variables, average([m.variables for m in members], best["weights"]))


@pytest.mark.usefixtures("toy_networks")
def test_the_ends_of_the_line_are_the_classifiers(
    trained: tuple[Path, data.DataSpec], tmp_path: Path
) -> None:
    folder, spec = trained
    members = averaging.load_members([str(folder / "run0"), str(folder / "run2" / "model")])
    run = reporting.start("average", str(tmp_path / "run"), {})
    result = averaging.compare(run, members, spec, methods=["wise_ft"], steps=3)
    first, second, *line = result["rows"]
    assert len(line) == 3
    for end, single in ((line[0], first), (line[-1], second)):
        assert (end["top1"], end["validation"]) == (single["top1"], single["validation"])
    assert len(pages.PAGES["average"](reporting.jsonable(result), run.workdir).sections) == 2


@pytest.mark.usefixtures("toy_networks")
def test_classifiers_without_an_average_are_refused(
    trained: tuple[Path, data.DataSpec], tmp_path: Path
) -> None:
    folder, spec = trained
    load = averaging.load_members
    with pytest.raises(ValueError, match="at least two classifiers: got 1"):
        load([str(folder / "run0"), str(folder / "run0" / "model")])
    with pytest.raises(ValueError, match="there is no folder"):
        load([str(folder / "nowhere*")])
    for name, network in (("arch", ("toy_mobilenet", spec.classes)), ("class", ("toy_vgg", 2))):
        models.save(tmp_path / name, *toys.classifier(*network, size=16))
    with pytest.raises(ValueError, match="different networks"):
        load([str(folder / "run0"), str(tmp_path / "arch")])
    with pytest.raises(ValueError, match="different classes"):
        load([str(folder / "run0"), str(tmp_path / "class")])
    members = load([str(folder / "run*")])
    run = reporting.start("average", str(tmp_path / "run"), {})
    with pytest.raises(ValueError, match="unknown `method`: .*nearest: .*greedy"):
        averaging.compare(run, members, spec, methods=["gredy"])
    with pytest.raises(ValueError, match="needs two classifiers"):
        averaging.compare(run, members, spec, methods=["wise_ft"])
    train = data.divide(spec, seed=0).train
    with pytest.raises(ValueError, match="no validation image"):
        averaging.divide(members, train)
    with pytest.raises(ValueError, match="does not name the images"):
        averaging.divide([members[0]._replace(seen=seen.Seen())], spec)
