"""`transfer`: its accuracy, result and saved model, its rounds, and its page."""

from __future__ import annotations

import dataclasses
import json
import re
import weakref
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests import toys
from tests.toys import toy_zoo  # noqa: F401 (a fixture)
from tl import data, inference, metrics, models, pages, reporting
from tl.evaluation import paired, seen
from tl.evaluation import transfer as evaluation
from tl.evaluation.transfer import TransferSettings, rounds, transfer
from tl.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("toy_zoo")
HEAD = Recipe(tune="head", epochs=40, batch_size=8, lr=0.05, workers=0)


def network() -> tuple[models.Classifier, Any]:
    return toys.classifier("toy_mobilenet", 3)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> data.DataSpec:
    """Two pet breeds that a color separates, 12 images each, and a broken file."""
    folder = tmp_path_factory.mktemp("pets") / "set"
    toys.color_folder(folder)
    (folder / "red").rename(folder / "bengal")
    (folder / "blue").rename(folder / "pug")
    (folder / "pug" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    return data.folder(folder)


@pytest.fixture()
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> reporting.Run:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    return reporting.start("transfer", tmp_path / "run", {"seed": 0})


def finished(run: reporting.Run, result: dict[str, Any]) -> dict[str, Any]:
    """The content of `result.json`."""
    pages.finish(run, result)
    return json.loads((run.workdir / "result.json").read_text())


@pytest.mark.parametrize("similar", [False, True])
def test_a_data_set_in_which_all_images_are_similar_is_remarked_on(
    run: reporting.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, similar: bool
) -> None:
    """The remark is printed before training, and is in `result.json`."""
    for i in range(16):
        (tmp_path / "set" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        image = toys.smooth(60, 80, seed=i + 1) // 4 + (3 * (toys.smooth(60, 80) // 4)) * similar
        reporting.save_png(tmp_path / "set" / "ab"[i % 2] / f"{i}.png", image)

    def stop(*args: Any, **more: Any) -> Any:
        raise InterruptedError

    monkeypatch.setattr(evaluation, "fit", stop)
    settings = TransferSettings(Recipe(tune="probe"))
    with pytest.raises(InterruptedError):
        transfer(run, *network(), data.folder(tmp_path / "set"), None, settings)
    text = "near-duplicates are not recognized, because the images of folder:.*set resemble"
    assert [bool(re.search(text, line)) for line in run.remarks] == [True] * similar


@pytest.mark.parametrize("tune", ["probe", "head"])
def test_transfer_reports_accuracy_frozen_parameters_and_skipped_images(
    run: reporting.Run, pets: data.DataSpec, tune: str
) -> None:
    clf, variables = network()
    settings = TransferSettings(dataclasses.replace(HEAD, tune=tune))
    result = finished(run, transfer(run, clf, variables, pets, None, settings))
    assert result["test"]["n"] == 6 and result["test"]["top1"] == 1.0
    assert result["frozen_unchanged"] is True
    assert result["trainable_params"] == clf.spec.features * 2 + 2
    assert [Path(skip["path"]).name for skip in result["skipped"]] == ["broken.jpg"]
    assert sum(map(sum, result["confusion"])) == 6


def test_only_the_network_of_the_first_round_stays_in_memory(
    run: reporting.Run, pets: data.DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, first, later = evaluation.run_round, [], []

    def run_round(*args: Any, **more: Any) -> evaluation.RoundResult:
        assert all(kernel() is None for kernel in later)
        if not first:
            first.append(real(*args, **more))
            return first[0]
        copy: Any = jax.tree.map(np.copy, first[0].fitted.variables)
        later.append(weakref.ref(copy["params"]["head"]["kernel"]))
        return first[0]._replace(
            round=args[2], fitted=first[0].fitted._replace(variables=copy), variables=copy
        )

    monkeypatch.setattr(evaluation, "run_round", run_round)
    settings = TransferSettings(dataclasses.replace(HEAD, tune="probe"), seeds=3)
    transfer(run, *network(), pets, None, settings)
    assert len(later) == 2


@pytest.mark.full
def test_transfer_is_repeatable(run: reporting.Run, pets: data.DataSpec, tmp_path: Path) -> None:
    again = reporting.start("transfer", tmp_path / "again", {"seed": 0})
    one, two = (
        transfer(
            this, *network(), pets, None, TransferSettings(dataclasses.replace(HEAD, epochs=2))
        )
        for this in (run, again)
    )
    assert one["test"] == two["test"] and one["history"] == two["history"]


def test_the_saved_model_classifies_the_test_images(
    run: reporting.Run, pets: data.DataSpec
) -> None:
    result = transfer(run, *network(), pets, None, TransferSettings())
    clf, variables = models.load(result["model"])
    (only,) = rounds(pets, None, TransferSettings())
    seen_images = seen.Seen(models.metadata(result["model"]))
    for name, part in only.parts._asdict().items():
        expected = {"test": "no"}.get(name, name)
        assert {seen_images.part(data.content_hash(e.path)) for e in part.examples} <= {expected}
    assert clf.classes is not None and clf.classes.find("any cat") == (0,)
    test_set = data.divide(pets, validation_fraction=0.0, seed=0).test
    predicted = inference.predict(clf, variables, test_set)
    assert len(predicted.labels) == 6
    np.testing.assert_array_equal(predicted.logits.argmax(axis=1), predicted.labels)


def test_the_temperature_is_fitted_to_validation_images(
    run: reporting.Run, pets: data.DataSpec
) -> None:
    settings = TransferSettings(dataclasses.replace(HEAD, epochs=2))
    result = transfer(run, *network(), pets, None, settings)
    (only,) = rounds(pets, None, settings)
    predicted = inference.predict(*models.load(result["model"]), only.parts.validation)
    expected = metrics.temperature(predicted.logits, predicted.labels)
    assert result["temperature"] == pytest.approx(expected, rel=1e-3)


def test_the_page_is_drawn_from_the_saved_result(run: reporting.Run, pets: data.DataSpec) -> None:
    # One epoch, so that some test images are misclassified and appear on the page.
    recipe = dataclasses.replace(HEAD, epochs=1, lr=1e-6, smoothing=0.1)
    settings = TransferSettings(recipe)
    result = transfer(run, *network(), pets, None, settings)
    result["rates"] = {"rate": 0.01, "curve": [(1e-3, 0.7), (1e-2, 0.5), (1e-1, 0.9)]}
    html = pages.finish(run, result).read_text()
    for heading in ("Learning-rate search", "Training curves", "Accuracy", "Confusion matrix"):
        assert f">{heading}</h2>" in html, heading
    # Except for the run time in the footer.
    body = lambda text: text.partition("<footer")[0]
    assert body(pages.redraw(run.workdir).read_text()) == body(html)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, ["seed0"]),
        ({"seeds": 2, "first_seed": 5}, ["seed5", "seed6"]),
        ({"folds": 3}, ["seed0-fold0", "seed0-fold1", "seed0-fold2"]),
    ],
)
def test_there_is_a_round_per_seed_and_fold(
    pets: data.DataSpec, change: dict[str, Any], names: list[str]
) -> None:
    chosen = list(rounds(pets, None, TransferSettings(**change)))
    assert [one.name for one in chosen] == names
    if "folds" in change:  # every image is tested once, the broken one too
        tested = [example.path for one in chosen for example in one.parts.test.examples]
        assert len(tested) == len(set(tested)) == 25


def test_the_official_test_part_is_unused_if_there_is_a_separate_test_set(
    run: reporting.Run, pets: data.DataSpec, tmp_path: Path
) -> None:
    """Neither trained on nor validated on, whatever `validation_fraction` is, and reported."""
    parts = ["test" if i % 6 == 0 else "train" for i in range(25)]
    rows = [dataclasses.replace(e, part=p) for e, p in zip(pets.examples, parts, strict=True)]
    spec = dataclasses.replace(pets, examples=tuple(rows))
    other = toys.color_folder(tmp_path / "other", 2, side=30, classes=("bengal", "pug"))
    for fraction in (0.0, 0.3):
        settings = TransferSettings(Recipe(tune="probe"), validation_fraction=fraction)
        (one,) = rounds(spec, other, settings)
        assert {e.part for part in one.parts[:2] for e in part.examples} == {"train"}
        assert bool(one.parts.validation.examples) == bool(fraction)
    lines: list[str] = []
    settings = TransferSettings(Recipe(tune="probe"), validation_fraction=0.0)
    result = finished(run, transfer(run, *network(), spec, other, settings, say=lines.append))
    assert (
        result["parts"]
        == lines[0]
        == (
            f"training: 20 images; validation: 0; test: 4, from folder:{tmp_path}/other; "
            "not used: 5 in the official test part"
        )
    )
    assert result["parts"][1:] in pages.redraw(run.workdir).read_text()


def test_folds_and_a_separate_test_set_exclude_each_other(pets: data.DataSpec) -> None:
    with pytest.raises(ValueError, match="`folds` divides `data`, so `test_data` must not be set"):
        list(rounds(pets, pets, TransferSettings(folds=3)))


def test_the_test_set_is_the_official_test_part_of_separate_data(
    pets: data.DataSpec, tmp_path: Path
) -> None:
    other = toys.color_folder(tmp_path / "other", 2, side=30, classes=("bengal", "pug"))
    rows = [
        dataclasses.replace(e, part=("train", "test")[i % 2]) for i, e in enumerate(other.examples)
    ]
    other = dataclasses.replace(other, examples=tuple(rows))
    (one,) = rounds(pets, other, TransferSettings())
    assert [e.path for e in one.parts.test.examples] == [rows[1].path, rows[3].path]


@pytest.mark.parametrize(("recipe", "holds_out"), [(Recipe(tune="probe"), False), (HEAD, True)])
def test_only_gradient_steps_hold_out_a_validation_part(
    pets: data.DataSpec, recipe: Recipe, holds_out: bool
) -> None:
    (one,) = rounds(pets, None, TransferSettings(recipe))
    assert bool(one.parts.validation.examples) == holds_out


def test_folds_count_every_image_once(run: reporting.Run, pets: data.DataSpec) -> None:
    result = finished(run, transfer(run, *network(), pets, None, TransferSettings(folds=3)))
    assert result["test"]["n"] == 24 and "seeds" not in result
    assert result["folds"]["n"] == len(result["folds"]["top1"]) == 3


def test_folds_with_seeds_count_every_image_once(
    run: reporting.Run, pets: data.DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interval, classes and confusion are of one pass over the images; seeds are a spread."""
    rounds_run = []

    def spy(*args: Any, **keywords: Any) -> Any:
        # Wrong labels, so that accuracies differ; temperatures that differ between the folds.
        one, i = evaluation_round(*args, **keywords), len(rounds_run)
        labels = one.tested.labels.copy()
        labels[:i] = 1 - labels[:i]
        tested = one.tested._replace(labels=labels)
        rounds_run.append(one._replace(tested=tested, temperature=1.0 + i, tta=tested))
        return rounds_run[-1]

    evaluation_round = evaluation.run_round
    monkeypatch.setattr(evaluation, "run_round", spy)
    settings = TransferSettings(folds=3, seeds=2)
    result = finished(run, transfer(run, *network(), pets, None, settings))

    def joined(i: int, temperatures: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Logits, each fold's divided by its temperature, and labels of one seed."""
        folds = [one.tested for one in rounds_run[3 * i : 3 * i + 3]]
        logits = [fold.logits / t for fold, t in zip(folds, temperatures, strict=True)]
        return np.concatenate(logits), np.concatenate([fold.labels for fold in folds])

    top1 = [1 - (0 + 1 + 2) / 24, 1 - (3 + 4 + 5) / 24]
    test = result["test"]
    assert test["n"] == 24 and test["top1"] == pytest.approx(np.mean(top1))
    assert sum(map(sum, result["confusion"])) == 24
    assert sum(row["n"] for row in result["per_class"]) == 24
    bounds = [metrics.wilson(n, 24) for n in (21, 12)]
    np.testing.assert_allclose(test["top1_ci95"], np.mean(bounds, axis=0), rtol=1e-12)
    assert result["seeds"]["top1"] == pytest.approx(top1) and result["seeds"]["n"] == 2
    sizes = [len(one.tested.labels) for one in rounds_run]
    assert result["folds"]["top1"] == pytest.approx([1 - i / n for i, n in enumerate(sizes)])
    assert result["test_tta"]["n"] == 24 and result["test_tta"]["top1_seeds"] == pytest.approx(top1)
    assert result["test_tta"]["seeds"] == metrics.spread(top1)
    # The temperature of each fold, which was not fitted to its test images.
    calibrated = [
        metrics.summarize(*joined(i, temperatures))
        for i, temperatures in enumerate([(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)])
    ]
    for name in ("nll", "ece"):
        expected = np.mean([row[name] for row in calibrated])
        assert test[f"{name}_calibrated"] == pytest.approx(expected, rel=1e-6), name
    assert result["temperature"] == 1.0 and result["temperatures"] == [1, 2, 3, 4, 5, 6]
    saved = paired.read_predictions(run.workdir)
    assert [sum(row.correct for row in rows.values()) for rows in saved.values()] == [21, 12]
    html = (run.workdir / "report.html").read_text()
    assert "1.00 to 6.00" in html and "2 seeds" in html
    first, *rest = pages.training.lines(result)
    assert first.startswith(f"test top-1 {reporting.percent(np.mean(top1))} (95 % interval ")
    assert [line[:14] for line in rest].count("Over 2 seeds 6") == 2  # as tested, and over views


def test_views_that_failed_in_one_fold_are_not_reported(pets: data.DataSpec) -> None:
    """Their accuracy would be over the images of the other folds."""
    tested = inference.Predictions(np.eye(2)[[0, 0, 1]], np.array([0, 1, 1]), (Path("a.png"),) * 3)
    results = [
        evaluation.RoundResult(one, {}, None, tested, {}, tta, None, 1.0, ())  # type: ignore[arg-type]
        for one, tta in zip(
            rounds(pets, None, TransferSettings(folds=2)), (tested, None), strict=True
        )
    ]
    (only,) = evaluation.passes(results)
    assert len(only.tested.labels) == 6 and only.tta is None
    (only,) = evaluation.passes([result._replace(tta=tested) for result in results])
    assert only.tta is not None and len(only.tta.labels) == 6


def test_views_are_averaged(run: reporting.Run, pets: data.DataSpec) -> None:
    settings = TransferSettings(Recipe(tune="probe", augment="flip"), tta=True)
    result = finished(run, transfer(run, *network(), pets, None, settings))
    assert result["test_tta"]["n"] == 6 and len(result["test_tta"]["top1_seeds"]) == 1


@pytest.mark.parametrize(
    ("recipe", "tta", "remarked"),
    [
        (Recipe(tune="probe", augment="crop"), False, True),
        (Recipe(tune="probe", augment="flip"), True, False),
        (Recipe(tune="probe"), False, False),
        (dataclasses.replace(HEAD, augment="flip"), False, False),
    ],
)
def test_an_augmentation_without_effect_is_remarked(
    run: reporting.Run, pets: data.DataSpec, recipe: Recipe, tta: bool, remarked: bool
) -> None:
    transfer(run, *network(), pets, None, TransferSettings(recipe, tta=tta))
    assert any("has no effect: a probe" in remark for remark in run.remarks) == remarked


def test_a_test_set_with_other_classes_is_an_error(
    run: reporting.Run, pets: data.DataSpec, tmp_path: Path
) -> None:
    source = Path(str(pets.examples[0].path)).parent
    (tmp_path / "other").mkdir()
    for name in ("bengal", "poodle"):
        (tmp_path / "other" / name).symlink_to(source)
    other = data.folder(tmp_path / "other")
    with pytest.raises(ValueError, match="poodle"):
        transfer(run, *network(), pets, other, TransferSettings())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TransferSettings(head="mlp"), "`tune=probe` fits a linear head: got `head=mlp`"),
        (
            TransferSettings(Recipe(tune="probe", augment="crop"), tta=True),
            "`tta` needs an augmentation with a finite number of views.*got `augment=crop`",
        ),
    ],
)
def test_settings_that_do_not_fit_are_an_error(
    run: reporting.Run, pets: data.DataSpec, settings: TransferSettings, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        transfer(run, *network(), pets, None, settings)
