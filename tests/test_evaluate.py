"""Evaluation of a saved classifier: figures, page, hardest images, parts, accuracy under attack."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from tests import toys
from tests.toys import toy_zoo  # noqa: F401
from tl import data, inference, labels, metrics, models, pages, pixels, reporting
from tl.evaluation import paired, robust, seen, sets
from tl.pages import evaluation

CLASSES = ("pug", "bengal", "siamese")
TEMPERATURE = 2.5
network = functools.partial(toys.classifier, "toy_mobilenet", CLASSES, resize="squash")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return models.save(folder, *network(), metadata={"temperature": TEMPERATURE})


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> data.DataSpec:
    """11 images of a Bengal and 7 of a pug, and a broken one; the order is not the network's."""
    folder = tmp_path_factory.mktemp("pets")
    for name, n in (("Bengal", 11), ("pug", 7)):
        (folder / name).mkdir()
        for i in range(n):
            image = toys.noise(40, 50, 3, seed=100 * n + i)
            reporting.save_png(folder / name / f"{i}.png", image)
    (folder / "pug" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    return data.get(f"folder:{folder}")


# ---- the result and its page ----

TRUTH = np.array([1] * 11 + [0] * 7)


@pytest.fixture(scope="module")
def logits(pets: data.DataSpec) -> np.ndarray:
    clf, variables = network()
    readable = [example.path for example in pets.examples if "broken" not in str(example.path)]
    images = np.stack([clf.prepare(data.decode(path)) for path in readable])
    return inference.predict_logits(clf, variables, images)


@pytest.fixture(scope="module")
def folder(pets: data.DataSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    run = reporting.start("evaluate", tmp_path_factory.mktemp("run"), {"seed": 0})
    pages.finish(run, sets.evaluation_result(run, *network(), pets, TEMPERATURE))
    return run.workdir


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_images_that_the_model_was_trained_on_are_counted(
    pets: data.DataSpec, tmp_path: Path
) -> None:
    """By content: a training image under another name counts, and so does each of its copies."""
    part = lambda rows: dataclasses.replace(pets, examples=tuple(pets.examples[i] for i in rows))
    parts = data.Parts(part(range(4)), part((5, 6)), part((7, 8)))
    models.save(tmp_path / "model", *network(), metadata={seen.KEY: seen.describe(parts)})
    seen_images = seen.Seen(models.metadata(tmp_path / "model"))
    shutil.copytree(Path(str(pets.examples[0].path)).parents[1], tmp_path / "set")
    shutil.copy(str(pets.examples[0].path), tmp_path / "set" / "pug" / "other.png")
    run = reporting.start("evaluate", tmp_path / "run", {"seed": 0})
    spec = data.folder(tmp_path / "set")
    pages.finish(run, sets.evaluation_result(run, *network(), spec, TEMPERATURE, seen_images))
    result = json.loads((run.workdir / "result.json").read_text())
    assert result["trained_on"] == {"train": 5, "validation": 2} and result["n"] == 19
    remark = result["remarks"][-1]
    assert remark.startswith(
        "5 training images and 2 validation images of this classifier are among the 19 tested"
    )
    assert remark in (run.workdir / "report.html").read_text()
    rows = csv.DictReader((run.workdir / paired.FILE).read_text(encoding="utf-8").splitlines())
    assert Counter(row["seen"] for row in rows) == {"train": 5, "validation": 2, "no": 12}


def test_of_other_images_and_other_models_no_remark_is_made(
    pets: data.DataSpec, tmp_path: Path, result: dict[str, Any]
) -> None:
    others = dataclasses.replace(pets, examples=pets.examples[:2])
    rest = dataclasses.replace(pets, examples=pets.examples[2:])
    seen_images = seen.Seen({seen.KEY: seen.describe(data.Parts(others, others, rest))})
    run = reporting.start("evaluate", tmp_path / "run", {"seed": 0})
    made = sets.evaluation_result(run, *network(), rest, TEMPERATURE, seen_images)
    assert made["trained_on"] == {"train": 0, "validation": 0}
    assert not any("training images" in remark for remark in run.remarks)
    assert result["trained_on"] is None  # an older model does not name its training images


def test_a_class_in_another_letter_case_is_remarked(result: dict) -> None:
    assert result["remarks"] == [
        "1 of 2 classes match in another spelling: 'Bengal' is read as 'bengal'"
    ]


def test_the_figures_are_those_of_the_logits(result: dict, logits: np.ndarray) -> None:
    for name, value in metrics.summarize(logits, TRUTH).items():
        assert result[name] == value, name
    assert result["majority"] == 11 / 18
    assert result["classes"] == list(CLASSES)


def test_calibrated_figures_are_at_the_temperature(result: dict, logits: np.ndarray) -> None:
    calibrated = metrics.summarize(logits.astype(np.float64) / TEMPERATURE, TRUTH)
    assert result["temperature"] == TEMPERATURE and result["top1"] == calibrated["top1"]
    assert result["nll_calibrated"] == calibrated["nll"] != result["nll"]
    assert result["ece_calibrated"] == calibrated["ece"]


def test_every_image_is_counted_once(result: dict) -> None:
    matrix = np.array(result["confusion"])
    assert matrix.sum(axis=1).tolist() == [7, 11, 0]
    assert sum(row["count"] for row in result["most_confused"]) == 18 - np.trace(matrix)
    assert [row["n"] for row in result["per_class"]] == [7, 11, 0]
    assert sum(row["n"] for row in result["reliability"]) == 18
    (skip,) = result["skipped"]
    assert skip["path"].endswith("broken.jpg")


def test_the_hardest_images_are_mistakes_by_rising_probability_of_the_truth(
    result: dict, logits: np.ndarray, folder: Path
) -> None:
    rows, wrong = result["mistakes"], logits.argmax(axis=1) != TRUTH
    assert len(rows) == min(12, wrong.sum()) > 0
    of_truth = metrics.softmax(logits)[np.arange(18), TRUTH]
    assert [row["row"] for row in rows] == [
        i for i in np.argsort(of_truth, kind="stable")[:12] if wrong[i]
    ]
    for row in rows:
        assert Path(row["path"]).parent.name.lower() == row["true"] != row["topk"][0]["name"]
        assert CLASSES[row["label"]] == row["true"]
        image = network()[0].prepare(data.decode(Path(row["path"])))
        np.testing.assert_array_equal(data.decode(folder / row["figure"]), image)
    assert (folder / "figures" / "worst_mistakes.png").exists()


def test_the_page_has_the_standard_sections(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    for heading in (
        "Accuracy",
        "Calibration",
        "Confusion matrix",
        "Hardest test images",
        "Per-class accuracy",
        "at temperature 2.50",
        "broken.jpg",
    ):
        assert heading in page, heading


def test_the_predictions_of_all_images_are_saved(result: dict, folder: Path) -> None:
    (rows,) = paired.read_predictions(folder).values()
    assert len(rows) == 18
    assert sum(row.correct for row in rows.values()) == pytest.approx(18 * result["top1"])
    for image, row in rows.items():
        assert data.content_hash(row.path) == image
        assert Path(row.path).parent.name.lower() == row.label
        assert row.correct == (row.predicted == row.label)


def test_top3_is_shown_for_more_than_three_classes_only(result: dict) -> None:
    text = "\n".join(evaluation.lines(result))
    assert "top-3" not in text + evaluation.accuracy_section(result)
    more = result | {"classes": [*CLASSES, "sphynx"]}
    assert "top-3" in evaluation.accuracy_section(more)
    assert "top-3" in "\n".join(evaluation.lines(more))


def test_two_accuracies_under_attack_share_one_axis() -> None:
    row = {"attack": "pgd", "eps": 2 / 255, "n": 9, "clean": 0.9, "top1_ci95": [0.2, 0.7]}
    section = evaluation.robust_section(
        {"before": row | {"top1": 0.3}, "after": row | {"top1": 0.6}}
    )
    assert section.count('class="axis"') == 1
    assert "30.0 %" in section and "60.0 %" in section


@pytest.mark.optimized
def test_logits_of_a_saved_classifier_are_the_same_bits_everywhere(
    saved: Path,
    pets: data.DataSpec,
    toy_zoo: None,  # noqa: F811
) -> None:
    """In `evaluate`, in `predict`, and in a jitted function of the user at the same batch size."""
    clf, variables = models.load(str(saved))
    predicted = inference.predict(clf, jax.device_put(variables), pets)
    images = inference.read_images(clf, [str(example.path) for example in pets.examples])
    assert list(predicted.paths) == images.paths
    logits = inference.predict_logits(clf, variables, images.images)
    np.testing.assert_array_equal(predicted.logits, logits)
    images01 = pixels.to_images01(images.images[:16])
    by_hand = jax.jit(lambda v, x: clf.apply(v, x).logits)(variables, images01)
    np.testing.assert_array_equal(predicted.logits[:16], by_hand)
    before_saving, variables = network()
    original = jax.jit(before_saving.logits)(variables, images01)
    np.testing.assert_array_equal(predicted.logits[:16], original)


# ---- errors ----


def test_an_unknown_class_is_reported_with_the_nearest(pets: data.DataSpec) -> None:
    clf, variables = network()
    spec = dataclasses.replace(pets, classes=("bengal", "pugg"))
    message = "a class of folder:.* was not learned: unknown toy class 'pugg'; nearest: 'pug'"
    with pytest.raises(ValueError, match=message):
        data.remap_labels(spec, inference.class_table(clf))
    with pytest.raises(ValueError, match=message):
        inference.predict(clf, variables, spec)


def test_a_class_that_matches_several_is_refused(pets: data.DataSpec) -> None:
    spec = dataclasses.replace(pets, classes=("tabby", "any cat"))
    message = "a class of folder:.* was not learned: 'any cat' matches 5 classes, expected one"
    with pytest.raises(ValueError, match=message):
        data.remap_labels(spec, labels.imagenet())


def test_the_official_part_is_selected(pets: data.DataSpec) -> None:
    assert sets.select_part(pets, "") is sets.select_part(pets, "all") is pets
    examples = tuple(
        dataclasses.replace(e, part="train" if i else "test") for i, e in enumerate(pets.examples)
    )
    official = dataclasses.replace(pets, examples=examples)
    assert sets.select_part(official, "").examples == examples[:1]
    assert sets.select_part(official, "train").examples == examples[1:]
    message = "has no part 'validation': it has test, train; use `part=all`"
    with pytest.raises(ValueError, match=message):
        sets.select_part(official, "validation")


def test_a_data_set_of_broken_images_is_refused(tmp_path: Path) -> None:
    for name in ("pug", "bengal"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    run = reporting.start("evaluate", tmp_path / "run", {"seed": 0})
    spec = data.get(f"folder:{tmp_path / 'set'}")
    message = "none of the 2 images of folder:.* can be read; run doctor on it"
    with pytest.raises(ValueError, match=message):
        sets.evaluation_result(run, *network(), spec, 1.0)


# ---- accuracy under attack ----


@pytest.mark.full
def test_accuracy_under_attack_is_below_clean_accuracy(
    pets: data.DataSpec, logits: np.ndarray
) -> None:
    clf, variables = network()
    readable = [e for e in pets.examples if "broken" not in str(e.path)]
    labels = logits.argmax(axis=1)
    labels[:2] = (labels[:2] + 1) % 3  # 16 of 18 images are classified correctly
    examples = tuple(
        dataclasses.replace(e, label=int(label)) for e, label in zip(readable, labels, strict=True)
    )
    spec = dataclasses.replace(pets, examples=examples, classes=CLASSES)
    row = robust.robust(clf, variables, spec, eps=8 / 255, method="fgsm")
    assert row["n"] == 18 and row["clean"] == 16 / 18
    assert row["clean"] == sets.accuracy(inference.predict(clf, variables, spec))
    assert 0 <= row["top1"] < row["clean"]
    assert row["top1_ci95"] == list(metrics.wilson(round(18 * row["top1"]), 18))
    (line,) = evaluation.robust_lines({"now": row})
    assert line.startswith(f"now: {reporting.percent(row['top1'])} ")
    assert "within 8/255 under fgsm" in line


def test_robust_accuracy_is_of_all_images_and_of_those_classified_correctly(
    pets: data.DataSpec, logits: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an attack that succeeds on every third of the images that it may attack."""

    def attack(
        variables: Any, key: Any, images01: np.ndarray, *_: Any, skip: np.ndarray, **__: Any
    ):
        attacked = np.cumsum(~skip) * ~skip
        return SimpleNamespace(success=(attacked % 3 == 1) & ~skip)

    monkeypatch.setattr(robust, "_attack", lambda *_: attack)
    labels = logits.argmax(axis=1)
    labels[:2] = (labels[:2] + 1) % 3  # 16 of 18 images are classified correctly
    readable = [e for e in pets.examples if "broken" not in str(e.path)]
    examples = tuple(
        dataclasses.replace(e, label=int(label)) for e, label in zip(readable, labels, strict=True)
    )
    spec = dataclasses.replace(pets, examples=examples, classes=CLASSES)
    row = robust.robust(*network(), spec, eps=8 / 255)
    assert (row["n"], row["clean"], row["top1"]) == (18, 16 / 18, 10 / 18)
    assert row["clean_ci95"] == list(metrics.wilson(16, 18))
    assert row["top1_of_correct"] == 10 / 16
    assert row["top1_of_correct_ci95"] == list(metrics.wilson(10, 16))
    (line,) = evaluation.robust_lines({"now": row})
    assert "62.5 % (38.6 % to 81.5 %) of those classified correctly without attack" in line
    assert "62.5 %" in evaluation.robust_section({"now": row})
    older = {k: v for k, v in row.items() if "of_correct" not in k and k != "clean_ci95"}
    assert "62.5 %" not in evaluation.robust_section({"now": older})
    wrong = tuple(dataclasses.replace(e, label=(e.label + 1) % 3) for e in examples[2:])
    nothing = robust.robust(*network(), dataclasses.replace(spec, examples=wrong), eps=8 / 255)
    assert nothing["clean"] == 0 and nothing["top1_of_correct"] is None
    assert list(evaluation.robust_lines({"now": nothing}))


def test_the_accuracy_of_a_seed_counts_ties_as_mistakes() -> None:
    logits = np.array([[1.0, 1.0], [0.0, 0.0], [2.0, 0.0], [0.0, 3.0]], np.float32)
    tied = inference.Predictions(logits, np.zeros(4, int), tuple(map(Path, "abcd")))
    assert sets.accuracy(tied) == metrics.summarize(logits, tied.labels)["top1"] == 0.25


def test_arguments_of_an_attack_are_checked(pets: data.DataSpec) -> None:
    clf, variables = network()
    with pytest.raises(ValueError, match=r"`robust_eps` .*: got 2, expected .* such as 2/255"):
        robust.robust(clf, variables, pets, eps=2.0)
    with pytest.raises(ValueError, match="no effect on `robust_attack=fgsm`"):
        robust.robust(clf, variables, pets, eps=0.01, method="fgsm", queries=9)
