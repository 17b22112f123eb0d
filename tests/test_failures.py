"""Failures: checks before the first step, and the result of a run whose last part fails."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from experiments import quickstart
from tests import toys
from tests.test_attacked import images, network  # noqa: F401 (a fixture)
from tests.toys import toy_zoo  # noqa: F401 (a fixture)
from tl import cli, data, inference, models, pages, reporting
from tl.data import packaged
from tl.evaluation import attack_settings, attacked, sets
from tl.evaluation.attack_settings import AttackSettings
from tl.evaluation.transfer import TransferSettings, transfer
from tl.training import fit, rate_finder
from tl.training.recipe import Recipe
from tl.visualize import grid, ideal, specs

RECIPE = Recipe(tune="head", epochs=1, batch_size=8, workers=0, augment="flip")
SETTINGS = TransferSettings(RECIPE, tta=True, robust_eps=1 / 255, robust_attack="fgsm")
transfer_module = importlib.import_module("tl.evaluation.transfer")
fit_module = importlib.import_module("tl.training.fit")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> data.DataSpec:
    return toys.color_folder(tmp_path_factory.mktemp("colors") / "set", 8, side=24)


@pytest.fixture()
def open_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    return functools.partial(reporting.start, workdir=tmp_path / "run", config={"seed": 0})


def fail(*args: Any, **more: Any) -> Any:
    raise RuntimeError("an injected failure")


def no_training(*args: Any, **more: Any) -> Any:
    pytest.fail("the training has started")


def finish(run: reporting.Run, result: dict[str, Any]) -> dict[str, Any]:
    """The content of `result.json`."""
    pages.finish(run, result)
    return json.loads((run.workdir / "result.json").read_text())


# ---- before the first step -----------------------------------------------------------------------


@pytest.mark.usefixtures("toy_zoo")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"robust_attack": "cw"},
            "`robust_attack=cw` cannot test a network with 2 classes in Linf .*expected one of l2",
        ),
        (
            {"robust_attack": "apgd_dlr"},
            "`robust_attack=apgd_dlr` cannot test a network with 2 classes .*at least 3 classes",
        ),
        ({"recipe": dataclasses.replace(RECIPE, augment="crop")}, "`tta` needs an augmentation"),
        ({"recipe": dataclasses.replace(RECIPE, augment="none")}, "`tta` needs an augmentation"),
        (
            {"recipe": dataclasses.replace(RECIPE, microbatches=3)},
            "`microbatches` must divide `batch_size`: got 3 parts of a batch of 8",
        ),
        ({"robust_eps": 0.0}, "`robust_attack=fgsm` has no effect without `robust_eps`"),
        (
            {"recipe": dataclasses.replace(RECIPE, rules=(("head/.*", "head"), (".*", "freeze")))},
            "label 'freeze' of rule .* would train; write 'frozen' to freeze",
        ),
        ({"folds": 3, "test_fraction": 0.5, "broken": True}, "none of the .* test images can be"),
        ({"file": "model"}, "cannot write into .*model"),
    ],
)
def test_what_can_be_checked_is_checked_before_the_first_step(
    open_run: Any,
    spec: data.DataSpec,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    message: str,
) -> None:
    run = open_run("transfer")
    if name := change.pop("file", ""):
        (run.workdir / name).write_text("not a folder")
    if change.pop("broken", False):
        monkeypatch.setattr(data, "decode", broken)
    monkeypatch.setattr(transfer_module, "fit", no_training)
    settings = dataclasses.replace(SETTINGS, **change)
    with pytest.raises(ValueError, match=message):
        transfer(run, *toys.classifier("toy_vgg", 2, size=16), spec, None, settings)


def broken(path: Any) -> Any:
    raise data.ImageError("it is broken", path)


def test_options_that_would_have_no_effect_are_refused(spec: data.DataSpec) -> None:
    clf, variables = toys.classifier("toy_vgg", 2, size=16)
    with pytest.raises(ValueError, match="no effect on `tune=probe`, which takes no gradient"):
        rate_finder.find_rate(clf, variables, spec, Recipe(tune="probe"), seed=0)
    with pytest.raises(ValueError, match="`patience=2` needs validation images"):
        fit.fit(clf, variables, spec, None, dataclasses.replace(RECIPE, patience=2))


def test_all_phases_are_checked_before_the_first(
    spec: data.DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second phase of `lp_ft` trains scales of BatchNorm, of which this network has none."""
    monkeypatch.setattr(fit_module, "fit_probe", no_training)
    clf, variables = toys.classifier("toy_vgg", 2, size=16)
    for recipe, message in (
        (Recipe(tune="lp_ft:1", bn="affine"), "decides no leaf"),
        (Recipe(tune="lp_ft:1", adversarial="pgd"), "changes pixels, but last:1 trains on the"),
    ):
        with pytest.raises(ValueError, match=message):
            fit.fit(clf, variables, spec, None, recipe)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (AttackSettings("cw"), "does not support the `norm`: got 'linf', expected one of l2"),
        (AttackSettings(norm="l2", eps=(0.5, 1e4)), "`eps` is out of range: got 1e"),
        (AttackSettings("apgd_dlr"), "needs at least 3 classes: got logits of 2"),
    ],
)
def test_an_attack_is_checked_before_any_image_is_read(
    settings: AttackSettings, message: str
) -> None:
    clf, _ = toys.classifier("toy_vgg", 2, size=16)
    with pytest.raises(ValueError, match=message):
        attack_settings.check_settings(clf, settings, "")


# ---- after training ------------------------------------------------------------------------------

# Part -> the function that computes it.
PARTS = {
    "model": "tl.models.save",
    "frozen_unchanged": "tl.models.load",
    "tta": "tl.evaluation.transfer.make_augment",
    "calibration": "tl.metrics.temperature",
    "robust": "tl.evaluation.transfer.robust_rows",
    "mistakes": "tl.evaluation.sets.save_hardest_images",
    "page": "",
}


@pytest.fixture(scope="module")
def trained(spec: data.DataSpec, tmp_path_factory: pytest.TempPathFactory) -> fit.FitResult:
    clf, variables = toys.classifier("toy_vgg", 2, size=16)
    clf, variables = clf.replace_head(variables, spec.classes, key=jax.random.key(0))
    parts = data.divide(spec, validation_fraction=0.25, seed=0)
    return fit.fit(clf, variables, parts.train, parts.validation, RECIPE)


@pytest.mark.usefixtures("toy_zoo")
@pytest.mark.parametrize(
    "parts",
    [*(pytest.param((part,), marks=pytest.mark.full) for part in PARTS), tuple(PARTS)],
    ids=", ".join,
)
def test_a_part_of_transfer_that_fails_leaves_the_rest(
    open_run: Any,
    spec: data.DataSpec,
    trained: fit.FitResult,
    monkeypatch: pytest.MonkeyPatch,
    parts: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(transfer_module, "fit", lambda *args, **more: trained)
    rows = {"after": {"clean": 1.0, "top1": 0.5, "top1_ci95": [0.2, 0.8], "n": 4, "eps": 0.1}}
    rows["after"]["attack"] = "FGSM"
    monkeypatch.setattr(transfer_module, "robust_rows", lambda *args, **more: rows)
    for part in parts:
        if part == "page":
            monkeypatch.setitem(pages.PAGES, "transfer", fail)
        else:
            monkeypatch.setattr(PARTS[part], fail)
    run = open_run("transfer")
    clf, variables = toys.classifier("toy_vgg", 2, size=16)
    result = finish(run, transfer(run, clf, variables, spec, None, SETTINGS))
    failed = set(parts) | ({"frozen_unchanged"} if "model" in parts else set())
    assert set(result["failed"]) == failed and run.failure_message()
    assert result["test"]["n"] == 4 and 0 <= result["test"]["top1"] <= 1 and result["history"]
    assert ("test_tta" in result) == ("tta" not in failed)
    assert ("robust" in result) == ("robust" not in failed)
    assert (result["frozen_unchanged"] is True) == ("frozen_unchanged" not in failed)
    assert (run.workdir / "model" / models.ARTIFACT).exists() == ("model" not in failed)
    if "page" in failed:
        assert not (run.workdir / "report.html").exists()
    else:
        assert "Missing parts" in (run.workdir / "report.html").read_text()
    assert "an injected failure" in capsys.readouterr().err  # the traceback of a bug is not lost


@pytest.mark.usefixtures("toy_zoo")
def test_a_test_that_fails_leaves_the_model(
    open_run: Any, spec: data.DataSpec, trained: fit.FitResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_module, "fit", lambda *args, **more: trained)
    monkeypatch.setattr(sets, "predict_set", fail)
    run = open_run("transfer")
    with pytest.raises(RuntimeError):
        transfer(run, *toys.classifier("toy_vgg", 2, size=16), spec, None, SETTINGS)
    clf, _ = models.load(str(run.workdir / "model"))
    assert clf.classes is not None and len(clf.classes) == 2


@pytest.mark.full
def test_a_reestimate_that_fails_leaves_the_trained_weights(
    open_run: Any, spec: data.DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "reestimate", fail)
    clf, variables = toys.classifier("toy_vgg_bn", 2, size=16)
    recipe = dataclasses.replace(RECIPE, tune="last:1", bn="reestimate")
    run = open_run("transfer")
    result = fit.fit(clf, variables, spec, None, recipe, attempt=run.attempt)
    assert set(run.failures) == {"reestimate"} and len(result.history) == 1


def test_a_part_of_evaluate_that_fails_leaves_the_rest(
    open_run: Any, spec: data.DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sets, "save_hardest_images", fail)
    run, (clf, variables) = open_run("evaluate"), toys.classifier("toy_vgg", 2, size=16)
    clf, variables = clf.replace_head(variables, spec.classes, key=jax.random.key(0))
    result = finish(run, sets.evaluation_result(run, clf, variables, spec, 1.0))
    assert set(result.get("failed", ())) == {"mistakes"} and result["n"] == 16


@pytest.mark.full
def test_parts_of_an_attack_that_fail_leave_the_rest(
    open_run: Any,
    images: inference.LoadedImages,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lpips(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return fail()

    monkeypatch.setattr("tl.evaluation.perceptual.jitted_lpips", lambda: lpips)
    monkeypatch.setattr(attacked, "run_sanity_checks", fail)
    monkeypatch.setattr(attacked, "_save_figures", fail)
    monkeypatch.setitem(pages.PAGES, "attack", fail)
    run, settings = open_run("attack"), AttackSettings("fgsm", lpips=True, sanity_checks=True)
    evaluation = attacked.evaluate_attack(run, *network(), images, settings)
    result = finish(run, evaluation.json())
    assert set(result["failed"]) == {"lpips", "panel", "figures", "page"}
    assert result["success_rate"].keys() == {"8/255"} and "l2" in result["images"][0]


@pytest.mark.full
def test_parts_of_ideal_images_that_fail_leave_the_rest(
    open_run: Any, spec: data.DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {
        "judges": "held_out_probabilities",
        "photographs": "photo_statistics",
        "diversity": "_diversities",
        "top_activating": "top_activating",
    }
    for function in parts.values():
        monkeypatch.setattr(ideal, function, fail)
    monkeypatch.setattr(reporting, "contact_sheet", fail)
    monkeypatch.setattr(reporting.Run, "animation", fail)
    run, net = open_run("ideal"), grid.network(*network())
    settings = grid.IdealSettings(steps=2, size=16, frames=2, count=2, transforms=("roll",))
    made = ideal.ideal(
        [net],
        specs.class_objectives(net.clf, "0"),
        settings,
        held_out=[net],
        data_set=spec,
        attempt=run.attempt,
    )
    result = finish(run, ideal.save(run, made))
    assert set(result["failed"]) == {*parts, "sheet", "film"}
    assert all(Path(row["png"]).is_file() and row["judges"] == {} for row in result["images"])


def test_a_part_of_quickstart_that_fails_leaves_the_others(
    open_run: Any, spec: data.DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, paths = open_run("quickstart"), [Path(str(e.path)) for e in spec.examples]
    photographs = [packaged.Photograph(path, i % 2, "") for i, path in enumerate(paths)]
    monkeypatch.setattr(quickstart, "FLAGS", SimpleNamespace(quick=True, seed=0))
    monkeypatch.setattr(cli, "load_model", lambda run: toys.classifier("toy_vgg", 2, size=16))
    monkeypatch.setattr(data, "photographs", lambda: photographs)
    monkeypatch.setattr(data, "get", lambda name: spec)
    for function in ("transfer", "evaluate_attack"):
        monkeypatch.setattr(quickstart, function, fail)
    monkeypatch.setattr(ideal, "ideal", fail)
    quickstart.main(run)
    result = json.loads((run.workdir / "result.json").read_text())
    assert set(result["failed"]) == {"transfer", "ideal", "attack"}
    assert result["predict"]["n"] == len(photographs) and "transfer" not in result
    html = (run.workdir / "report.html").read_text()
    assert "Missing parts" in html and "Classification of photographs" in html
    assert "Ideal images of two classes" not in html
