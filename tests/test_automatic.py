"""The choice of a recipe by cross-validation: the rule, its reason, and `transfer` with it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import toys
from tests.toys import toy_zoo  # noqa: F401 (a fixture)
from tl import data, models, reporting
from tl.evaluation import automatic
from tl.evaluation.before import TransferSettings, check_settings
from tl.evaluation.transfer import transfer
from tl.pages import training
from tl.training.recipe import Recipe

RECIPES = automatic.candidates(Recipe(tune="probe"), Recipe(tune="lp_ft"))
N = 40


def network() -> tuple[models.Classifier, Any]:
    return toys.classifier("toy_mobilenet", ("blue", "red"), size=16, resize="squash")


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> data.DataSpec:
    return toys.color_folder(tmp_path_factory.mktemp("colors") / "set", side=24)


def outcome(first: int, second: int) -> np.ndarray:
    """Correct on the first images but `first`, and on the last `second` images."""
    return (np.arange(N) >= first) & (np.arange(N) < N - second)


@pytest.mark.parametrize(
    ("results", "chosen", "why"),
    [
        # 10 images decide for the last, none against it: p = 2 / 2^10.
        (
            {"logistic": (0, 10), "ridge": (0, 10), "lp_ft": (0, 0)},
            "lp_ft",
            r"lp_ft, because it is \+25.0 points better than probe, logistic on 40 held-out "
            r"images \(95 % interval \+\d+.\d to \+\d+.\d, p = 0.002\)",
        ),
        # 5 images: p = 2 / 2^5 is not enough.
        (
            {"logistic": (0, 5), "ridge": (0, 5), "lp_ft": (0, 0)},
            "probe, logistic",
            r"probe, logistic, because no other candidate is significantly better on 40 held-out "
            r"images; lp_ft: \+12.5 points, p = 0.062",
        ),
        # Significantly worse is not better.
        ({"logistic": (0, 0), "ridge": (0, 20), "lp_ft": (9, 9)}, "probe, logistic", ".* no other"),
        # The last is compared with the best before it, and not with the first.
        (
            {"logistic": (0, 20), "ridge": (0, 3), "lp_ft": (0, 0)},
            "probe, ridge",
            r"probe, ridge, because it is \+42.5 points better than probe, logistic",
        ),
    ],
)
def test_a_candidate_must_be_significantly_better_than_the_best_before_it(
    colors: data.DataSpec,
    monkeypatch: pytest.MonkeyPatch,
    results: dict[str, tuple[int, int]],
    chosen: str,
    why: str,
) -> None:
    def held_out(clf: Any, variables: Any, folds: Any, recipe: Recipe, *_: Any) -> np.ndarray:
        assert len(folds) == 3
        return outcome(*results[recipe.method if recipe.tune == "probe" else recipe.tune])

    monkeypatch.setattr(automatic, "_held_out", held_out)
    lines: list[str] = []
    clf, variables = network()
    choice = automatic.choose(
        clf, variables, colors, RECIPES, seed=0, validation_fraction=0.15, say=lines.append
    )
    assert choice["chosen"] == chosen
    assert re.match(why, choice["why"]), choice["why"]
    assert [row["name"] for row in choice["rows"]] == list(RECIPES) and len(lines) == 3
    assert choice["rows"][0].keys() == {"name", "top1", "n", "seconds"}


def test_without_folds_the_first_candidate_stays(colors: data.DataSpec) -> None:
    single = dataclasses.replace(colors, examples=(colors.examples[0], colors.examples[-1]))
    choice = automatic.choose(*network(), single, RECIPES, seed=0, validation_fraction=0.15)
    assert choice["chosen"] == "probe, logistic" and choice["rows"] == []
    assert "no cross-validation, because" in choice["why"]


@pytest.mark.usefixtures("toy_zoo")
@pytest.mark.parametrize("better", [False, True])
def test_transfer_follows_the_choice(
    colors: data.DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    """The probe is right everywhere; for the other case the test of significance is replaced."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(automatic, "FOLDS", 2)
    if better:
        won = {"chosen": "last:1", "why": "last:1, because", "n": 0, "rows": []}
        monkeypatch.setattr(automatic, "choose", lambda *args, **more: won)
    run = reporting.start("transfer", tmp_path / "run", {"seed": 0})
    other = Recipe(tune="last:1", epochs=1, batch_size=8, workers=0, bank_gib=1.0)
    settings = TransferSettings(Recipe(tune="probe"), alternative=other)
    lines: list[str] = []
    result = transfer(run, *network(), colors, None, settings, say=lines.append)
    assert (result["choice"]["chosen"] == "last:1") == better
    assert result["sizes"]["test"] == 6
    assert (result["sizes"]["validation"] > 0) == better
    recipe = models.metadata(result["model"])["recipe"]
    assert recipe["tune"] == ("last:1" if better else "probe")
    assert f"recipe: {result['choice']['why']}" in lines
    assert f"recipe: {result['choice']['why']}" in list(training.lines(result))
    assert bool(training.choice_section(result)) != better  # rows are in the page


def test_a_choice_that_cannot_be_made_is_an_error() -> None:
    clf, variables = network()
    check = lambda **more: check_settings(
        clf, variables, TransferSettings(Recipe(tune="probe"), **more)
    )
    check(alternative=Recipe(tune="lp_ft"))
    with pytest.raises(ValueError, match="has no learning rate: got `lr=find`"):
        check(alternative=Recipe(tune="lp_ft"), find_lr=True)
    with pytest.raises(ValueError, match="compares recipes without a penalty: got `penalty=delta`"):
        check(alternative=Recipe(tune="all", penalty="delta"))
    with pytest.raises(ValueError, match="this network has 3 stages"):
        check(alternative=Recipe(tune="lp_ft:9"))
