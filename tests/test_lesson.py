"""The lesson's steps, small and on random weights: both ways, honest figures, and wrong input in one sentence."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lesson import lesson
from tests import toys
from tl import models, pixels, reporting

loaded = functools.cache(models.load)  # random weights take seconds


@pytest.fixture()
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> lesson.Lesson:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "load", loaded)
    run = reporting.start("lesson", tmp_path / "run", {"seed": 0})
    spec, arch = toys.color_folder(tmp_path / "colors"), "squeezenet1_1"
    return lesson.Lesson(
        run, spec, spec, arch, arch, classifiers=arch, weights="random", size=32, epochs=1
    )


def test_both_ways_stand_beside_each_other(small: lesson.Lesson) -> None:
    steps = ("clean", "division", "precomputed", "frozen", "save", "tests_on_train")
    made = lesson.taken(small, steps)["rows"]
    assert list(dict.fromkeys(row["step"] for row in made)) == list(steps)
    assert [row["way"] for row in made if row["step"] == "frozen"] == [
        lesson.LESSON,
        lesson.RIGHT,
        lesson.RIGHT,
    ]
    before, mended, _ = (row for row in made if row["step"] == "frozen")
    assert mended["points"] == pytest.approx(100 * (mended["top1"] - before["top1"]))
    assert "delete 24;" in made[0]["found"]  # PNG, all of them
    rows = {(row["step"], row["way"]): row for row in made}
    for step in ("frozen", "tests_on_train"):
        for way in (lesson.LESSON, lesson.RIGHT):
            row = rows[step, way]
            low, high = row["top1_ci95"]
            assert 0 <= low <= row["top1"] <= high <= 1 and row["nll"] >= 0 and row["seconds"] > 0
            assert row["learned"] == 18 and row["top3"] is None
        points = 100 * (rows[step, lesson.RIGHT]["top1"] - rows[step, lesson.LESSON]["top1"])
        assert rows[step, lesson.RIGHT]["points"] == pytest.approx(points)
    assert (
        rows["tests_on_train", lesson.LESSON]["n"] == 18
        and rows["tests_on_train", lesson.RIGHT]["n"] == 6
    )
    assert rows["precomputed", lesson.RIGHT]["found"] == "the same, bit by bit"
    assert "bit by bit" in rows["save", lesson.RIGHT]["found"]
    assert "0 of 6" in rows["division", lesson.RIGHT]["found"]
    assert all(len(lesson.cells(row)) == len(lesson.HEADER) for row in made)
    page = reporting.page("t", "l", lesson.pictures(small), facts={})
    assert (
        "squeezenet1_1: shape" in page
        and (small.run.workdir / "figures" / "features.png").is_file()
    )


def test_the_lessons_way_alone_does_not_pay_for_the_right_one(
    small: lesson.Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        lesson.doctor, "examine", lambda spec: pytest.fail("the right way was taken")
    )
    rows = lesson.taken(small, ("clean",), as_in_lesson=True)["rows"]
    assert [row["way"] for row in rows] == [lesson.LESSON]


def test_the_lessons_pixels_are_raw(small: lesson.Lesson) -> None:
    clf, _ = small.network("squeezenet1_1", **lesson.RAW)
    images01 = jnp.array([0.0, 0.5, 1.0], jnp.float32).reshape(1, 1, 1, 3)

    np.testing.assert_allclose(
        pixels.normalize(clf.pixels, images01)[0, 0, 0], [0.0, 127.5, 255.0], rtol=1e-6
    )


def test_the_shift_is_what_raw_pixels_are_to_keras_weights(
    small: lesson.Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf, variables = small.network("squeezenet1_1")
    monkeypatch.setattr(models, "load", lambda *_, **__: (clf.with_pixels(**keras), variables))
    keras = dataclasses.asdict(pixels.CAFFE)
    shifted, _ = small.network("vgg16", **small.shifted("vgg16"))
    raw, _ = small.network("vgg16", **lesson.RAW, channels="rgb")
    images01 = jnp.asarray(np.random.default_rng(0).random((1, 2, 2, 3), np.float32))

    np.testing.assert_allclose(
        *(pixels.normalize(c.pixels, images01) for c in (shifted, raw)),
        rtol=1e-6,
    )


def test_costs_say_when_a_difference_may_be_chance() -> None:
    row = lambda way, top1, low, high: lesson.Row("s", way, "", None, 10, top1, (low, high))
    before = row(lesson.LESSON, 0.5, 0.4, 0.6)
    assert lesson.costs([before, row(lesson.RIGHT, 0.9, 0.8, 0.95)]) == (pytest.approx(40.0), False)
    assert lesson.costs([before, row(lesson.RIGHT, 0.55, 0.45, 0.65)]) == (pytest.approx(5.0), True)
    assert lesson.costs([before]) is None
    assert (
        lesson.costs([lesson.Row("s", lesson.LESSON, ""), lesson.Row("s", lesson.RIGHT, "")])
        is None
    )


def test_wrong_input_is_one_sentence(
    small: lesson.Lesson, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="unknown step 'frozn' of --steps; nearest: 'frozen'"):
        lesson.steps_of(small, ("clean", "frozn"))

    bare = dataclasses.replace(small, cats=None)
    with pytest.raises(ValueError, match="give --cats_vs_dogs=folder:DIR"):
        lesson.steps_of(bare, ("clean",))

    assert lesson.steps_of(bare, ()) == ["classify", "pets", "challenge"]
    assert (
        "without --cats_vs_dogs=folder:DIR these steps are left out: clean,"
        in capsys.readouterr().out
    )
