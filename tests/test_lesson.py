"""The lesson's steps, small and on random weights: both ways, honest figures, and wrong input in one sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from experiments import lesson
from tests.test_fit import colours
from tl import pixels, report, runlog


@pytest.fixture()
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> lesson.Lesson:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    run = runlog.start("lesson", tmp_path / "run", {"seed": 0})
    spec = colours(tmp_path / "colours")
    names = {"arch": "vgg11", "small": "vgg11", "classifiers": "vgg11"}
    return lesson.Lesson(run, spec, spec, **names, weights="random", size=32, epochs=1)


def test_both_ways_stand_beside_each_other(small: lesson.Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = ("clean", "division", "frozen", "save", "tests_on_train")
    result, sections = lesson.lesson_of(small, steps)
    assert [row["step"] for row in result["rows"]] == [step for step in steps for _ in range(2)]
    assert {row["way"] for row in result["rows"]} == {lesson.LESSON, lesson.RIGHT}
    rows = {(row["step"], row["way"]): row for row in result["rows"]}
    for step in ("frozen", "tests_on_train"):
        for way in (lesson.LESSON, lesson.RIGHT):
            row = rows[step, way]
            low, high = row["top1_ci95"]
            assert 0 <= low <= row["top1"] <= high <= 1 and row["nll"] >= 0 and row["seconds"] > 0
    assert rows["tests_on_train", lesson.LESSON]["n"] == 18 and rows["tests_on_train", lesson.RIGHT]["n"] == 6
    assert "bit by bit" in rows["save", lesson.RIGHT]["found"]
    assert "0 of 6" in rows["division", lesson.RIGHT]["found"]
    assert "points" in rows["frozen", lesson.RIGHT]["right_minus_lesson"]
    page = report.page("t", "l", [*lesson.pictures(small), *sections], facts={})
    assert "as in the lesson" in page and (small.run.workdir / "figures" / "features.png").is_file()
    alone, _ = lesson.lesson_of(small, ("division",), as_in_lesson=True)
    assert [row["way"] for row in alone["rows"]] == [lesson.LESSON]


def test_the_lessons_pixels_are_raw(small: lesson.Lesson) -> None:
    clf, _ = small.network("vgg11", **lesson.RAW)
    images01 = np.array([0.0, 0.5, 1.0], np.float32).reshape(1, 1, 1, 3)

    np.testing.assert_allclose(pixels.normalise(clf.pixels, images01)[0, 0, 0], [0.0, 127.5, 255.0], rtol=1e-6)  # type: ignore[arg-type]


def test_costs_say_when_a_difference_may_be_chance() -> None:
    row = lambda way, top1, low, high: lesson.Row("s", way, "", 10, top1, (low, high))  # noqa: E731
    assert lesson.costs([row(lesson.LESSON, 0.5, 0.4, 0.6), row(lesson.RIGHT, 0.9, 0.8, 0.95)]) == "+40.0 points"
    assert "noise" in lesson.costs([row(lesson.LESSON, 0.5, 0.4, 0.6), row(lesson.RIGHT, 0.55, 0.45, 0.65)])


def test_wrong_input_is_one_sentence(small: lesson.Lesson) -> None:
    with pytest.raises(ValueError, match="unknown step 'frozn' of --steps; nearest: 'frozen'"):
        lesson.lesson_of(small, ("frozn",))

    with pytest.raises(ValueError, match="give --cats_vs_dogs=folder:DIR"):
        lesson.lesson_of(dataclasses.replace(small, cats=None), ("clean",))
