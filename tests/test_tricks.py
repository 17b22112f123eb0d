"""Training tricks compared with a baseline."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import toys

from tl import losses, optim, pages, reporting
from tl.data.augment import make_augment
from tl.evaluation import transfer, tricks
from tl.evaluation.before import TransferSettings
from tl.evaluation.tricks import Runs
from tl.training import initializers, recipes
from tl.training.fit import check_recipe
from tl.training.recipe import Recipe
from tl.training.tricks import SCRATCH, TRICKS, names

pytestmark = pytest.mark.usefixtures("shared_cache")

BASELINE = Recipe(tune="all", epochs=1, batch_size=8, augment="flip")


@pytest.mark.parametrize("name", TRICKS)
def test_every_trick_is_a_recipe_that_differs_from_the_baseline(name: str) -> None:
    scratch = SCRATCH if TRICKS[name].scratch else {}
    baseline = dataclasses.replace(BASELINE, **scratch)
    recipe = dataclasses.replace(baseline, **TRICKS[name].change(baseline))
    assert recipe != baseline and TRICKS[name].help
    clf, variables = toys.classifier("toy_mobilenet", 2)
    params = clf.reset_head(variables, key=jax.random.key(0))["params"]
    assert check_recipe(clf, params, recipe)
    make_augment(recipe.augment, size=32)


def test_every_row_of_the_tables_of_losses_and_optimizers_is_a_trick() -> None:
    recipes = [dataclasses.replace(BASELINE, **t.change(BASELINE)) for t in TRICKS.values()]
    assert {r.loss for r in recipes} == set(losses.LOSSES)
    assert {r.wrapper for r in recipes} == set(optim.WRAPPERS)
    assert {r.optimizer for r in recipes} == set(optim.OPTIMIZERS)
    assert {r.init for r in recipes} == {"", *initializers.INITIALIZERS}


def test_the_default_tricks_are_those_that_change_the_baseline() -> None:
    scratch = dataclasses.replace(BASELINE, **SCRATCH)
    of_weights, of_scratch = set(names(BASELINE)), set(names(scratch))
    assert of_scratch - of_weights == {name for name, row in TRICKS.items() if row.scratch}
    assert of_weights - of_scratch == {"scratch", "bn_update"}
    assert "smoothing" not in names(dataclasses.replace(BASELINE, smoothing=0.1))


def test_differences_are_paired_by_image_and_seed() -> None:
    key = lambda seed, image: (seed, f"{image}.png")
    baseline = {key(s, i): i < 6 for s in range(2) for i in range(10)}
    better = {**baseline, key(0, 7): True, key(1, 7): True, key(1, 8): True}
    row = tricks.difference(Runs(baseline, [0.6, 0.6], 2.0, 8), Runs(better, [0.7, 0.8], 3.0, 6))
    assert row["difference"] == pytest.approx(0.15) and row["cost"] == 1.5
    assert row["memory"] == 0.75
    assert row["p"] == pytest.approx(0.5)  # two images differ, always in one direction
    assert row["ci95"][0] < 0.15 < row["ci95"][1]
    assert row["seeds"]["values"] == pytest.approx([0.1, 0.2])
    same = tricks.difference(Runs(baseline, [0.6, 0.6], 2.0), Runs(baseline, [0.6, 0.6], 2.0))
    assert same["difference"] == 0 and same["p"] == 1


def test_holm_multiplies_the_smallest_by_the_number_of_tests() -> None:
    np.testing.assert_allclose(tricks.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert tricks.holm([]) == [] and tricks.holm([0.9, 0.8]) == [1.0, 1.0]


def test_tricks_are_trained_and_reported(tmp_path: Path) -> None:
    spec = toys.color_folder(tmp_path / "data", 8, side=16)
    clf, variables = toys.classifier("toy_vgg", spec.classes, size=16)
    run = reporting.start("tricks", str(tmp_path / "run"), {})
    settings = TransferSettings(dataclasses.replace(BASELINE, augment="none"), seeds=2)
    chosen = tricks.variants(settings, ["smoothing", "schedule_free"])
    result = tricks.compare(run, clf, variables, spec, chosen)
    pages.finish(run, result)
    assert {row["trick"] for row in result["rows"]} == {"smoothing", "schedule_free"}
    for row in result["rows"]:
        assert len(row["top1"]) == 2 and row["cost"] > 0 and row["p_holm"] >= row["p"]
        assert row["memory"] == pytest.approx(1, abs=0.2)  # as many moments as AdamW
    assert result["baseline"]["memory"] > 1e4
    saved = json.loads((run.workdir / "result.json").read_text())
    page = pages.PAGES["tricks"](saved, run.workdir)
    assert page.sections and "needs" in page.lead and "GB" in page.lead
    for row in (saved["baseline"], *saved["rows"]):
        del row["memory"]  # of an older version
    assert pages.PAGES["tricks"](saved, run.workdir).sections
    text = (run.workdir / "metrics.jsonl").read_text()
    logged = [json.loads(line) for line in text.splitlines()]
    assert [row["trick"] for row in logged if "trick" in row][:2] == ["baseline"] * 2


def test_a_killed_comparison_continues_with_the_trainings_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toys.color_folder(tmp_path / "data", 8, side=16)
    clf, variables = toys.classifier("toy_vgg", spec.classes, size=16)
    chosen = tricks.variants(TransferSettings(BASELINE, seeds=2), ["probe"], "plain")
    trained: list[int] = []
    run_round = tricks.transfer.run_round

    def counted(clf: Any, variables: Any, this: Any, *args: Any, **kwargs: Any) -> Any:
        trained.append(this.seed)
        return run_round(clf, variables, this, *args, **kwargs)

    monkeypatch.setattr(tricks.transfer, "run_round", counted)

    def compare(resume: bool, shots: int = 3) -> dict[str, Any]:
        trained.clear()
        run = reporting.start("tricks", str(tmp_path / "run"), {}, resume=resume)
        return tricks.compare(run, clf, variables, spec, chosen, shots=shots)

    first = compare(resume=False)
    assert trained == [0, 1, 0, 1]
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "{}", lines[3][:40]]))  # killed while it wrote
    assert compare(resume=True) == first and trained == [1]
    assert compare(resume=True) == first and trained == []
    compare(resume=True, shots=2)  # other images
    assert trained == [0, 1, 0, 1]


def test_one_slow_training_does_not_change_the_time_of_a_recipe() -> None:
    rounds: Any = [SimpleNamespace(seed=seed) for seed in range(3)]
    row = {"top1": 0.5, "memory": 1, "right": [], "wrong": []}
    runs = tricks._runs(rounds, [{**row, "image_seconds": s} for s in (0.1, 9.0, 0.2)])
    assert runs.seconds == pytest.approx(0.2) and runs.top1 == [0.5] * 3


def test_a_recipe_takes_the_place_of_the_baseline_and_a_trick_changes_it() -> None:
    words = ["smoothing", "l2_sp:3", "lp_ft", "auto"]
    chosen = tricks.variants(TransferSettings(BASELINE), words, "plain", given={"epochs": 1})
    plain, alternative = chosen["baseline"].recipe, chosen["auto"].alternative
    assert plain == dataclasses.replace(BASELINE, **recipes.settings("plain"))
    assert chosen["smoothing"].recipe == dataclasses.replace(plain, smoothing=0.1)
    assert chosen["l2_sp:3"].recipe.l2_sp == 3 and chosen["l2_sp:3"].recipe.optimizer == "sgd"
    assert chosen["lp_ft"].recipe.optimizer == "adamw"  # of the settings, not of the baseline
    assert chosen["auto"].recipe.tune == "probe" and alternative is not None
    assert alternative.tune == "lp_ft"
    every = tricks.variants(TransferSettings(BASELINE), recipe="plain")
    assert list(every) == ["baseline", *names(plain)]


def test_recipes_are_compared_with_their_reference_networks(tmp_path: Path) -> None:
    spec = toys.color_folder(tmp_path / "data", 8, side=16)
    clf, variables = toys.classifier("toy_vgg", spec.classes, size=16)
    run = reporting.start("tricks", str(tmp_path / "run"), {})
    settings = TransferSettings(BASELINE, seeds=2)
    chosen = tricks.variants(settings, ["probe", "co_tuning:0"], "plain")
    result = tricks.compare(run, clf, variables, spec, chosen, shots=3)
    pages.finish(run, result)
    assert {row["trick"] for row in result["rows"]} == {"probe", "co_tuning:0"}
    same = next(row for row in result["rows"] if row["trick"] == "co_tuning:0")
    assert same["difference"] == 0 and same["help"] == recipes.RECIPES["co_tuning"].help
    assert result["n"] == 4 and result["recipe"]["tune"] == "all"
    with pytest.raises(ValueError, match="`shots` names 9 images per class, but the training part"):
        tricks.compare(run, clf, variables, spec, chosen, shots=9)


def test_a_recipe_trains_and_tests_on_images_of_its_own_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = toys.color_folder(tmp_path / "data", 8, side=16)
    clf, variables = toys.classifier("toy_vgg_bn", spec.classes, size=16, resize="squash")
    run = reporting.start("tricks", str(tmp_path / "run"), {})
    sizes, run_round = [], transfer.run_round
    monkeypatch.setattr(
        transfer,
        "run_round",
        lambda clf, *args, **more: sizes.append(clf.pixels.size) or run_round(clf, *args, **more),
    )
    facts = recipes.facts_of(spec, 16)._replace(size=37)
    chosen = tricks.variants(TransferSettings(BASELINE), ["fixres"], "", facts, {"epochs": 1})
    result = tricks.compare(run, clf, variables, spec, chosen, shots=3)
    pages.finish(run, result)
    assert sizes == [16, 64] and [row["trick"] for row in result["rows"]] == ["fixres"]
    one_size = tricks.variants(TransferSettings(BASELINE), ["bit"], "", facts, {"image_size": 16})
    assert (one_size["bit"].image_size, one_size["bit"].crop) == (0, "none")


@pytest.mark.parametrize(
    ("recipe", "names", "message"),
    [
        (BASELINE, ["glorot"], "the trick 'glorot' changes a training from scratch: got pretrain"),
        (dataclasses.replace(BASELINE, init="hee"), [], "unknown `init`: got 'hee', .*'he'"),
        (dataclasses.replace(BASELINE, dropout=1.0), [], r"`dropout` must be in \[0, 1\): got 1"),
        (dataclasses.replace(BASELINE, dropout=0.5, penalty="bss"), [], "without dropout: got"),
        (BASELINE, ["sma"], "unknown `tricks`: got 'sma'.*nearest: .*sam"),
        (dataclasses.replace(BASELINE, loss="focl"), [], "unknown `loss`.*nearest: .*focal"),
        (dataclasses.replace(BASELINE, adversarial="pgd", loss="bce"), [], "cross-entropy"),
        (
            dataclasses.replace(BASELINE, small_loss=1.0),
            [],
            r"`small_loss` must be in \[0, 1\): got 1",
        ),
        (
            dataclasses.replace(BASELINE, tune="probe", small_loss=0.1),
            [],
            "`small_loss=0.1` needs gradient steps: got `tune=probe`",
        ),
        (BASELINE, ["lora:x"], "`recipe=lora:x` has no rank"),
        (dataclasses.replace(BASELINE, swa=0.5, ema=0.9), [], "`swa` must be a share .* `ema=0.9`"),
    ],
)
def test_wrong_names_are_refused_before_training(
    recipe: Recipe, names: list[str], message: str, tmp_path: Path
) -> None:
    spec = toys.color_folder(tmp_path / "data", 4, side=16)
    clf, variables = toys.classifier("toy_vgg", spec.classes, size=16)
    run = reporting.start("tricks", str(tmp_path / "run"), {})
    with pytest.raises(ValueError, match=message):
        chosen = tricks.variants(TransferSettings(recipe), names)
        tricks.compare(run, clf, variables, spec, chosen)
