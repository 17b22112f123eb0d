"""The lesson's steps on small networks: both versions, their metrics, and their errors."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lesson import attack, ideal, lesson
from tests import toys
from tl import backbones, data, inference, labels, models, pages, pixels, reporting
from tl.pages import lesson as page
from tl.visualize import specs

pytestmark = pytest.mark.full

ARCH = "toy_mobilenet"
STEPS = ("clean", "division", "precomputed", "frozen", "save", "tests_on_train")


def load(name: str, **_: Any) -> tuple[models.Classifier, Any]:
    return toys.classifier(name, 4)


def make_lesson(folder: Path) -> lesson.Lesson:
    run = reporting.start("lesson", folder / "run", {"seed": 0})
    spec = toys.color_folder(folder / "colors")
    return lesson.Lesson(run, spec, spec, ARCH, ARCH, classifiers=ARCH, size=32, epochs=1)


@pytest.fixture()
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> lesson.Lesson:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "load", load)
    return make_lesson(tmp_path)


def draw(result: dict[str, Any], run: reporting.Run) -> str:
    """The page, from the result as `result.json` holds it."""
    return pages.draw(run, json.loads(json.dumps(reporting.jsonable(result))))


class Report:
    """A lesson whose steps on cats and dogs have run."""

    def __init__(self, folder: Path) -> None:
        self.lesson = make_lesson(folder)
        self.result = lesson.run_steps(self.lesson, STEPS)
        self.rows = self.result["rows"]

    def row(self, step: str, way: str, index: int = -1) -> dict[str, Any]:
        return [row for row in self.rows if (row["step"], row["way"]) == (step, way)][index]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    folder, real = tmp_path_factory.mktemp("lesson"), models.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TL_CACHE", str(folder / "cache"))
        patch.setitem(backbones._SPECS, ARCH, toys.TOYS[ARCH])
        patch.setattr(models, "load", lambda name, **k: (load if name == ARCH else real)(name, **k))
        yield Report(folder)


# ---- steps on cats and dogs ----


def test_the_steps_run_in_order(report: Report) -> None:
    assert list(dict.fromkeys(row["step"] for row in report.rows)) == list(STEPS)
    ways = [row["way"] for row in report.rows if row["step"] == "frozen"]
    assert ways == [lesson.LESSON, lesson.RIGHT, lesson.RIGHT]


@pytest.mark.parametrize("step", ["frozen", "tests_on_train"])
@pytest.mark.parametrize("way", [lesson.LESSON, lesson.RIGHT])
def test_a_training_has_metrics_with_intervals(report: Report, step: str, way: str) -> None:
    row = report.row(step, way)
    low, high = row["top1_ci95"]
    assert 0 <= low <= row["top1"] <= high <= 1 and row["nll"] >= 0 and row["seconds"] > 0
    assert row["learned"] == 18 and row["top3"] is None


@pytest.mark.parametrize("step, index", [("frozen", 0), ("frozen", 1), ("tests_on_train", 0)])
def test_points_are_the_difference_to_the_lesson(report: Report, step: str, index: int) -> None:
    before, after = report.row(step, lesson.LESSON), report.row(step, lesson.RIGHT, index)
    assert after["points"] == pytest.approx(100 * (after["top1"] - before["top1"]))


def test_the_lesson_tests_on_training_images(report: Report) -> None:
    assert report.row("tests_on_train", lesson.LESSON)["n"] == 18
    assert report.row("tests_on_train", lesson.RIGHT)["n"] == 6


def test_cached_features_and_saved_models_are_equal_bit_by_bit(report: Report) -> None:
    assert report.row("precomputed", lesson.RIGHT)["found"] == "the same, bit by bit"
    assert "bit by bit" in report.row("save", lesson.RIGHT)["found"]


def test_the_lesson_would_delete_files_and_the_right_division_leaks_none(report: Report) -> None:
    assert "delete 24;" in report.row("clean", lesson.LESSON)["found"]  # all are PNG
    assert "0 of 6" in report.row("division", lesson.RIGHT)["found"]


def test_the_page_has_a_row_per_version_and_the_features(report: Report) -> None:
    assert all(len(page.cells(row)) == len(page.HEADER) for row in report.rows)
    html = draw(report.result, report.lesson.run)
    assert f"{ARCH}: shape" in html and "tests_on_train" in html
    assert (report.lesson.run.workdir / report.result["sample"]["features"]).is_file()


def test_the_lessons_version_alone_does_not_run_the_other(
    small: lesson.Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        lesson.doctor, "examine", lambda spec: pytest.fail("the corrected version ran")
    )
    rows = lesson.run_steps(small, ("clean",), as_in_lesson=True)["rows"]
    assert [row["way"] for row in rows] == [lesson.LESSON]


def test_costs_report_whether_a_difference_may_be_chance() -> None:
    row = lambda way, top1, low, high: lesson.Row("s", way, "", None, 10, top1, (low, high))
    before = row(lesson.LESSON, 0.5, 0.4, 0.6)
    assert lesson.costs([before, row(lesson.RIGHT, 0.9, 0.8, 0.95)]) == (pytest.approx(40.0), False)
    assert lesson.costs([before, row(lesson.RIGHT, 0.55, 0.45, 0.65)]) == (pytest.approx(5.0), True)
    assert lesson.costs([before]) is None
    without = [lesson.Row("s", way, "") for way in (lesson.LESSON, lesson.RIGHT)]
    assert lesson.costs(without) is None


def test_wrong_input_is_one_sentence(small: lesson.Lesson) -> None:
    with pytest.raises(ValueError, match="unknown step of `steps`: got 'frozn'; nearest: 'frozen'"):
        lesson.steps_of(small, ("clean", "frozn"))
    bare = dataclasses.replace(small, cats=None)
    with pytest.raises(ValueError, match="give --cats_vs_dogs=folder:DIR"):
        lesson.steps_of(bare, ("clean",))


def test_default_steps_are_those_with_images(
    small: lesson.Lesson, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = dataclasses.replace(small, cats=None)
    assert lesson.steps_of(bare, ()) == ["classify", "pets", "challenge"]
    message = "without --cats_vs_dogs=folder:DIR these steps are left out: clean,"
    assert message in capsys.readouterr().out


# ---- the lesson's preprocessing ----


def test_the_lessons_pixels_are_raw(small: lesson.Lesson) -> None:
    clf, _ = small.network(ARCH, **lesson.RAW)
    images01 = jnp.array([0.0, 0.5, 1.0], jnp.float32).reshape(1, 1, 1, 3)
    values = pixels.normalize(clf.pixels, images01)[0, 0, 0]
    np.testing.assert_allclose(values, [0.0, 127.5, 255.0], rtol=1e-6)


def test_for_keras_weights_the_shifted_preprocessing_is_raw_pixels(
    small: lesson.Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf, variables = small.network(ARCH)
    keras = dataclasses.asdict(pixels.CAFFE)
    monkeypatch.setattr(models, "load", lambda *_, **__: (clf.with_pixels(**keras), variables))
    shifted, _ = small.network("vgg16", **small.shifted("vgg16"))
    raw, _ = small.network("vgg16", **lesson.RAW, channels="rgb")
    images01 = jnp.asarray(np.random.default_rng(0).random((1, 2, 2, 3), np.float32))
    values = [pixels.normalize(c.pixels, images01) for c in (shifted, raw)]
    np.testing.assert_allclose(*values, rtol=1e-6)


@pytest.mark.parametrize(
    "spec, expected",
    [(pixels.CAFFE, lambda x: 255 * x), (pixels.LITE, lambda x: 255 / 128 * x[..., ::-1])],
    ids=["Keras: raw RGB pixels", "Lite: the scale of the weights"],
)
def test_the_shifted_preprocessing_keeps_the_scale_of_the_weights(spec: Any, expected: Any) -> None:
    x = jnp.asarray(np.random.default_rng(0).random((1, 2, 2, 3), np.float32))
    values = pixels.normalize(attack.shifted(spec), x)
    np.testing.assert_allclose(values, expected(x), rtol=1e-6)


# ---- gradient descent on an image ----

SIDE = 8
WEIGHTS = np.float32([0.5, 0.0, 0.25])
# With the preprocessing of the weights the logit is 0.5 * -4 + 0.25 * 2 = -1.5, "dark"; with the
# preprocessing of the lesson it is positive.
COLOR = (124, 7, 130)


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """Two classes: the weighted mean color of the first layer's input is above zero or not."""

    pixels: pixels.PixelSpec = pixels.PixelSpec(
        size=SIDE, crop=1.0, mean=(128 / 255,) * 3, std=(1 / 255,) * 3
    )
    arch: str = "linear"
    classes: labels.ClassTable = labels.from_names(["dark", "bright"], name="brightness")

    def logits(self, variables: Any, images01: jax.Array) -> jax.Array:
        inputs = pixels.normalize(self.pixels, images01)
        logit = jnp.mean(inputs, axis=(1, 2)) @ variables
        return jnp.stack([jnp.zeros_like(logit), logit], axis=1)


def sigmoid(z: float) -> float:
    return float(1 / (1 + np.exp(-z)))


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The row of one step on one photograph, as in result.json, and the folder of the run."""
    run = reporting.start("lesson", tmp_path_factory.mktemp("attack"), {"seed": 0})
    photograph = np.full((1, SIDE, SIDE, 3), COLOR, np.uint8)
    clf: Any = Linear()
    one = attack.Attack(run, clf, jnp.asarray(WEIGHTS), [Path("a.png")], photograph, (1,), steps=1)
    rows = attack.within_bounds(one, attack.without_bounds(one), eps=4 / 255)
    (row,) = json.loads(json.dumps(reporting.jsonable(rows)))
    return row, run.workdir


# The logit at the start: red and blue are swapped, no mean is subtracted, and the scale is 1/255.
START = (0.5 * 130 + 0.25 * 124) / 255
# The change of each pixel by one step, in the unit of the first layer: levels.
STEP = (1 - sigmoid(START)) * WEIGHTS / SIDE**2


def test_the_lessons_start_has_another_class_than_the_photograph(attacked: Any) -> None:
    row, _ = attacked
    assert (row["photograph"]["called"], row["classified"]["called"]) == ("dark", "bright")
    assert row["photograph"]["target"] == pytest.approx(sigmoid(-1.5), abs=1e-5)
    assert row["start"]["target"] == pytest.approx(sigmoid(START), abs=1e-5)
    assert row["start_is_called_the_same"] is False and row["start"]["called"] == "bright"


def test_the_lessons_step_is_gradient_descent_at_1_255_of_the_contrast(attacked: Any) -> None:
    row, _ = attacked
    logit = START + float(STEP @ WEIGHTS)
    assert row["tensor"]["target"] == pytest.approx(sigmoid(logit), abs=1e-5)
    # 255 levels of the first layer are 1 of the lesson.
    assert row["change"]["linf"] == pytest.approx(STEP.max(), rel=1e-3)
    assert row["change"]["l2"] == pytest.approx(SIDE * np.linalg.norm(STEP), rel=1e-3)
    assert row["change"]["outside"] == 0.0
    assert row["change_clipped"]["linf"] == pytest.approx(1 / 255, abs=1e-6)


def test_pgd_stays_within_its_radius_on_the_file(attacked: Any) -> None:
    row, folder = attacked
    assert row["right"]["called"] == "bright"
    assert row["change_right"]["linf"] == pytest.approx(4 / 255, abs=1e-6)
    saved = data.decode(folder / row["png"]["right"]).astype(int)
    assert np.abs(saved - np.array(COLOR)).max() == 4


def test_the_attacks_section_is_drawn_from_rows_and_files(attacked: Any) -> None:
    row, folder = attacked
    html = "".join(page.page({"arch": "linear", "rows": [], "attack": [row]}, folder).sections)
    assert "Adversarial example as in the lesson" in html and "PGD within 4/255" in html


@functools.cache
def network() -> tuple[models.Classifier, Any]:
    """A toy with the classes of ImageNet."""
    clf, variables = toys.classifier(ARCH, 1000)
    return dataclasses.replace(clf, classes=labels.imagenet()), variables


def test_the_lessons_ideal_image_reports_both_losses(tmp_path: Path) -> None:
    run = reporting.start("lesson", tmp_path, {"seed": 0})
    clf, variables = network()
    objectives = specs.class_objectives(clf, "Siamese cat")
    rows = ideal.without_bounds(run, clf, variables, objectives, steps=2)
    reported = [(row["way"], row["lesson"]) for row in rows]
    assert reported == [(ideal.FIRST, 0.645), (ideal.SECOND, 0.920)]
    assert all(0 <= row["probability"] <= 1 for row in rows)
    html = draw({"arch": clf.arch, "rows": [], "ideal": rows}, run)
    assert "Ideal images as in the lesson" in html


def test_the_lessons_ideal_image_is_of_a_class(tmp_path: Path) -> None:
    run = reporting.start("lesson", tmp_path, {"seed": 0})
    clf, variables = network()
    with pytest.raises(ValueError, match="ideal images are of classes"):
        ideal.without_bounds(run, clf, variables, [specs.ObjectiveSpec("layer", "stage1")])


@pytest.mark.parametrize("step, count", [("ideal", 2), ("attack", 1)])
def test_the_steps_ideal_and_attack_report_rows_and_details(
    step: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: network())
    monkeypatch.setattr(inference, "predict_logits", dog_logits)
    run = reporting.start("lesson", tmp_path, {"seed": 0})
    small = lesson.Lesson(run, None, None, ARCH, "", size=32, ideal_steps=1, attack_steps=1)
    result = lesson.run_steps(small, [step], as_in_lesson=True)
    assert [row["way"] for row in result["rows"]] == [lesson.LESSON] * count
    assert len(result[step]) == 4 and all(row["found"] for row in result["rows"])
    assert "as in the lesson</h2>" in draw(result, run)


def dog_logits(clf: Any, variables: Any, images: np.ndarray, **_: Any) -> np.ndarray:
    """Logits of a network that calls every image a Labrador retriever."""
    return np.tile(np.eye(1000, dtype=np.float32)[208], (len(images), 1))
