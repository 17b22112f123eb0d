"""The evaluation of the attack command: saved files, the result, the page, and errors."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests import toys
from tl import cli, data, inference, metrics, pages, reporting
from tl.evaluation import attack_settings, attacked
from tl.evaluation.attack_settings import AttackSettings

SIZE, COUNT = 32, 5
CLASSES = 10
SHORT = functools.partial(AttackSettings, steps=6)
network = functools.partial(toys.classifier, "toy_vgg", CLASSES, size=SIZE)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> inference.LoadedImages:
    folder = tmp_path_factory.mktemp("images")
    for i in range(COUNT):
        reporting.save_png(folder / f"{i}.png", toys.noise(40, 40, 3, seed=i))
    return inference.read_images(network()[0], str(folder))


@pytest.fixture()
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> reporting.Run:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    return reporting.start("attack", tmp_path / "run", {"seed": 0})


def predicted(images: np.ndarray) -> np.ndarray:
    return inference.predict_logits(*network(), images).argmax(axis=1)


def evaluate(
    run: reporting.Run,
    images: inference.LoadedImages,
    settings: AttackSettings,
    variables: Any = None,
    **arguments: Any,
) -> dict[str, Any]:
    """`result.json` of an evaluation, with its page written."""
    clf, toy_variables = network()
    variables = toy_variables if variables is None else variables
    evaluation = attacked.evaluate_attack(run, clf, variables, images, settings, **arguments)
    pages.finish(run, evaluation.json())
    return json.loads((run.workdir / "result.json").read_text())


@pytest.fixture(scope="module")
def sweep(
    images: inference.LoadedImages, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A sweep over eps on three images: the run's folder and its result."""
    run = reporting.start("attack", tmp_path_factory.mktemp("sweep") / "run", {"seed": 0})
    return run.workdir, evaluate(run, images, SHORT(eps=(0.0, 16 / 255, 1.0)), limit=3)


def test_no_attack_succeeds_at_eps_0_and_every_attack_at_eps_1(sweep: tuple) -> None:
    _, result = sweep
    assert result["n"] == 3 and list(result["success_rate"]) == ["0/255", "16/255", "255/255"]
    assert result["success_rate"]["0/255"] == 0 and result["success_rate"]["255/255"] == 1
    assert result["wrong_before"] == [] and result["success_ci95"]["0/255"][0] == 0.0
    assert result["after"]["16/255"]["as they are"]["success"] == result["success_rate"]["16/255"]
    assert len(result["checks"]) == 3
    assert all(check["passed"] for check in result["checks"].values())


def test_every_number_of_an_image_holds_for_the_saved_file(
    sweep: tuple, images: inference.LoadedImages
) -> None:
    _, result = sweep
    assert len(result["images"]) == 9
    for row in result["images"]:
        levels = {"0/255": 0, "16/255": 16, "255/255": 255}[row["eps"]]
        saved = data.decode(row["png"])
        original = images.images[[str(p) for p in images.paths].index(row["path"])]
        change = np.abs(saved.astype(int) - original).max()
        assert change <= levels and row["linf"] * 255 == pytest.approx(change, abs=1e-3)
        name = inference.class_table(network()[0]).display(int(predicted(saved[None])[0]))
        assert row["to"] == name and row["survives_png"] == (name != row["from"])
        assert row["of"] == "file" and row["file"].items() <= row.items()
        assert row["ssim"] == pytest.approx(1.0) if levels == 0 else row["ssim"] < 1


def test_the_page_is_a_function_of_the_result_and_the_figures(sweep: tuple) -> None:
    folder, result = sweep
    page = pages.PAGES["attack"](result, folder)
    html = (folder / "report.html").read_text()
    assert page.title == "Adversarial examples" and page.lead in html
    assert all(section in html for section in page.sections)
    assert html.count("difference</figcaption>") == 3 and "Accuracy over eps" in html


def test_the_page_of_a_result_without_the_newer_keys(sweep: tuple) -> None:
    """Results of older versions lack `arch`, `eps` and the files of originals."""
    folder, result = sweep
    old = {k: v for k, v in result.items() if k not in ("arch", "eps", "target", "of", "files")}
    new_keys = ("original", "difference", "amplified", "classes", "of", "file", "success")
    old["images"] = [
        {k: v for k, v in row.items() if k not in new_keys} for row in result["images"]
    ]
    assert pages.PAGES["attack"](old, folder).sections


def test_images_that_are_misclassified_without_an_attack_are_not_successes(
    run: reporting.Run, images: inference.LoadedImages
) -> None:
    labels = predicted(images.images)
    labels[[1, 3]] = (labels[[1, 3]] + 1) % CLASSES
    result = evaluate(run, images, SHORT(eps=(0.0,)), labels=labels)
    assert (result["n"], result["clean_correct"]) == (COUNT, COUNT - 2)
    # Both conventions: a share of all images, and of those classified correctly.
    assert result["clean_ci95"] == list(metrics.wilson(COUNT - 2, COUNT))
    assert result["robust_accuracy"]["0/255"] == (COUNT - 2) / COUNT
    assert result["robust_accuracy_of_correct"]["0/255"] == 1.0
    of_correct = list(metrics.wilson(COUNT - 2, COUNT - 2))
    assert result["robust_accuracy_of_correct_ci95"]["0/255"] == of_correct
    assert result["after"]["0/255"]["as they are"]["accuracy_ci95"] == of_correct
    page = (run.workdir / "report.html").read_text()
    assert "100 % (43.9 % to 100 %)" in page
    assert result["wrong_before"] == [str(images.paths[i]) for i in (1, 3)]
    assert result["success_rate"]["0/255"] == 0
    assert result["robust_accuracy"]["0/255"] == (COUNT - 2) / COUNT
    assert result["robust_ci95"]["0/255"] == list(metrics.wilson(COUNT - 2, COUNT))
    with pytest.raises(ValueError, match="classifies none of the 5 images correctly"):
        evaluate(run, images, SHORT(), labels=(predicted(images.images) + 1) % CLASSES)


@pytest.mark.full
def test_results_do_not_depend_on_the_batch_size(
    run: reporting.Run, images: inference.LoadedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three images in batches of two: the last batch is padded, and its padding is removed."""
    settings = SHORT(eps=(2 / 255,), early_stop=False)
    read = lambda result: [data.decode(row["png"]) for row in result["images"]]
    three = inference.LoadedImages(images.paths[:3], images.images[:3], [])
    one_batch = np.asarray(read(evaluate(run, three, settings)), int)
    monkeypatch.setattr(attack_settings, "BATCH", 2)
    again = reporting.start("attack", run.workdir.parent / "again", {"seed": 0})
    padded = np.asarray(read(evaluate(again, three, settings)), int)
    assert len(padded) == 3 and np.abs(padded - one_batch).max() <= 4
    # Sums over another batch may round differently.
    assert np.mean(padded == one_batch) > 0.9


@pytest.mark.parametrize(("steps", "step_size"), [(6, 1e-7), (1, 4 / 255 / 100)])
def test_the_sanity_checks_are_of_the_attack_that_ran(
    run: reporting.Run, images: inference.LoadedImages, steps: int, step_size: float
) -> None:
    """An attack with steps too small or too few succeeds nowhere, and the checks say why."""
    settings = AttackSettings(steps=steps, eps=(4 / 255,), step_size=step_size, sanity_checks=True)
    result = evaluate(run, images, settings)
    assert result["success_rate"]["4/255"] == 0
    failed = {name for name, check in result["checks"].items() if not check["passed"]}
    assert {"noise of the same norm does less", "default steps and step size add little"} <= failed
    assert result["checks"]["success rate agrees with the run's"]["passed"]


@pytest.mark.full
def test_one_step_fails_a_sanity_check_in_other_norms(
    run: reporting.Run, images: inference.LoadedImages
) -> None:
    for norm, eps in (("l2", 0.5), ("l1", 10.0)):
        again = reporting.start("attack", run.workdir.parent / norm, {"seed": 0})
        one = AttackSettings(
            norm=norm, eps=(eps,), steps=1, step_size=eps / 100, sanity_checks=True
        )
        checks = evaluate(again, images, one)["checks"]
        assert not checks["default steps and step size add little"]["passed"]
        assert checks["success rate agrees with the run's"]["passed"]


def test_float_images_and_files_are_judged_separately(
    run: reporting.Run, images: inference.LoadedImages
) -> None:
    """Changes below half a level: every file equals the photograph, so none survives."""
    result = evaluate(run, images, SHORT(eps=(0.45 / 255,), eight_bit=False))
    (eps,) = result["success_rate"]
    assert result["success_rate"][eps] > 0 == result["after"][eps]["as they are"]["success"]
    assert not any(row["survives_png"] for row in result["images"])
    assert result["of"] == "float image"
    assert result["files"]["success_rate"][eps] == result["after"][eps]["as they are"]["success"]
    for row in result["images"]:
        saved = data.decode(row["png"])
        original = images.images[[str(p) for p in images.paths].index(row["path"])]
        np.testing.assert_array_equal(saved, original)
        assert not row["file"]["success"]
        assert row["of"] == "float image" and row["success"] == (row["to"] != row["from"])
        assert 0 < row["linf"] <= 0.45 / 255 * (1 + 1e-5) and row["file"]["linf"] == 0
        probabilities = metrics.softmax(inference.predict_logits(*network(), saved[None]))[0]
        assert row["file"]["to"] == row["from"]
        assert row["file"]["probability"] == pytest.approx(probabilities.max(), abs=1e-6)
    html = (run.workdir / "report.html").read_text()
    row = result["images"][0]
    file, image = (
        f"{part['to']}, {reporting.percent(part['probability'])}" for part in (row["file"], row)
    )
    assert f"file: {file}; float image: {image}" in html
    saved = reporting.percent(result["files"]["success_rate"][eps])
    assert f"These are float images; of the saved PNG files it is {saved}." in html
    images_line, files_line = pages.attack.lines(result)
    assert images_line.startswith(f"eps {eps}, float images: ")
    assert files_line.startswith(f"eps {eps}, files: 0 % of {COUNT} succeed (0 % to ")
    assert files_line.endswith(f"100 % of all {COUNT}, 100 % of those classified correctly")


@pytest.mark.full
def test_the_sanity_checks_of_a_network_with_constant_logits_fail(
    run: reporting.Run, images: inference.LoadedImages
) -> None:
    variables = jax.tree.map(np.zeros_like, network()[1])
    settings = SHORT(steps=2, eps=(8 / 255,), sanity_checks=True)
    checks = evaluate(run, images, settings, variables, limit=2)["checks"]
    failed = {name for name, check in checks.items() if not check["passed"]}
    assert len(checks) == 14
    assert {
        "logits depend on the picture",
        "share of zero gradients",
        "any change at all (Linf, eps = 1) reaches all",
    } <= failed


def test_an_image_that_is_assigned_to_the_target_already_is_left_out(
    run: reporting.Run, images: inference.LoadedImages
) -> None:
    name = inference.class_table(network()[0]).display(int(predicted(images.images[:1])[0]))
    one = inference.LoadedImages(images.paths[:1], images.images[:1], [])
    with pytest.raises(ValueError, match="no image is left to attack: got 1 images"):
        evaluate(run, one, SHORT(), target=name)


def test_the_least_likely_target_is_the_smallest_clean_logit(
    images: inference.LoadedImages,
) -> None:
    selection = attack_settings.select_images(
        *network(), images, target=attack_settings.LEAST_LIKELY, limit=2
    )
    clean = inference.predict_logits(*network(), images.images[:2])
    assert selection.class_mask.argmax(axis=1).tolist() == clean.argmin(axis=1).tolist()
    assert selection.class_mask.sum() == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": "pdg"}, "unknown attack 'pdg'; nearest: 'pgd'"),
        ({"norm": "l3"}, "unknown norm 'l3'; nearest: 'l"),
        ({"attack": "cw"}, "got 'linf', expected one of l2"),
        ({"steps": 0}, "must be at least 1: got 0"),
        ({"views": ("jpg",)}, "unknown view 'jpg'; nearest: 'jpeg'"),
        ({"views": ("jpeg",), "attack": "apgd_ce"}, "`views` needs .* expected `attack=pgd`"),
        (
            {"early_stop": False, "attack": "square"},
            "`early_stop` can be switched off for bim, pgd, mi_fgsm, di_fgsm only",
        ),
        ({"attack": "fgsm", "steps": 40}, "fgsm takes one step: got `steps=40`"),
        ({"step_size": -1 / 255}, "`step_size` must be positive: got -0.0039"),
        ({"attack": "square", "step_size": 1e-7}, "`step_size` has no effect on `attack=square`"),
    ],
)
def test_wrong_settings_are_one_sentence(
    run: reporting.Run, images: inference.LoadedImages, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(run, images, AttackSettings(**changes))


@pytest.mark.parametrize(
    "text", ["300/255", "-1/255", "8/255,2", "eight", "1/0", "nan", "8/", "0.25/255/2"]
)
def test_radii_out_of_range_are_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="a radius in .0, 1.|is not a number; write it as 4/255"):
        cli.radii(text, "linf")


def test_radii_in_l2_have_no_upper_bound() -> None:
    assert cli.radii("2,0.5", "l2") == [2.0, 0.5]
    with pytest.raises(ValueError, match="--eps=-1 .* of at least 0"):
        cli.radii("-1", "l2")


def test_radii_are_fractions_or_decimals() -> None:
    assert cli.radii("0.25/255, 4/255,0.5", "linf") == [0.25 / 255, 4 / 255, 0.5]
