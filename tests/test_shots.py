"""Learning curves: exact power laws, wrong settings, and a run with its page."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import toys
from tl import data, pages, reporting
from tl.evaluation import extrapolation
from tl.evaluation.shots import ShotsSettings, check_settings, parse_shots, shots
from tl.training import fewshot

SHOTS = [1, 2, 5, 10, 25]


# ---- extrapolation ----

IMAGES = 4000


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extrapolation, "DRAWS", 100)


def errors(a: float, b: float, c: float = 0.0) -> np.ndarray:
    """Errors f64[s] of a power law over `SHOTS`."""
    return c + a * np.array(SHOTS, np.float64) ** -b


def results(errors: np.ndarray, images: int = IMAGES, *, draws: int = 4, seed: int = 0):
    """Results bool[s t m] with these errors; images are wrong in the order of their difficulty.

    Args:
      errors: f64[s].
      images: number of test images, whose difficulties are equally spaced with seed 0, or random.
      draws: number of draws, which all have the same results.
      seed: of the difficulties.
    """
    difficulty = np.random.default_rng(seed).uniform(size=images)
    difficulty = difficulty if seed else (np.arange(images) + 0.5) / images
    return np.broadcast_to(difficulty >= errors[:, None, None], (len(errors), draws, images))


def extrapolate(errors: np.ndarray, **options: Any) -> dict[str, Any]:
    return {"method": "x", **extrapolation.extrapolate(SHOTS, results(errors), **options)}


@pytest.mark.parametrize(
    ("a", "b", "c"), [(0.4, 0.5, 0.0), (0.6, 1.3, 0.0), (0.5, 0.7, 0.02), (0.3, 1.0, 0.1)]
)
def test_an_exact_power_law_is_recovered(a: float, b: float, c: float):
    curves = np.stack([errors(a, b, c), errors(0.2, 0.3)])
    laws = extrapolation.fit(SHOTS, curves, np.full(len(SHOTS), 1e-5))
    assert [law[0] for law in laws] == pytest.approx([a, b, c], abs=1e-5)
    assert [law[1] for law in laws] == pytest.approx([0.2, 0.3, 0.0], abs=1e-5)
    np.testing.assert_allclose(laws.error(60.0), [c + a * 60**-b, 0.2 * 60**-0.3], atol=1e-5)
    np.testing.assert_allclose(laws.shots(laws.error(60.0)[0])[0], 60.0, rtol=1e-3)


def test_the_limit_is_left_out_where_the_points_do_not_determine_it():
    curve = errors(0.3, 1.0, 0.1)[None]
    assert extrapolation.fit(SHOTS, curve, np.full(len(SHOTS), 0.1)).c == 0.0
    assert extrapolation.fit(SHOTS[:3], curve[:, :3], np.full(3, 1e-5)).c == 0.0


@pytest.mark.parametrize("accuracy", [0.0, 0.96])
def test_the_default_halves_the_last_error(accuracy: float):
    row = extrapolate(errors(0.4, 0.5), accuracy=accuracy)
    assert row["accuracy"] == pytest.approx(1 - 0.4 * 25**-0.5 / 2, abs=1e-3)
    assert row["shots"] == pytest.approx(100, rel=0.03)  # 25 * 2^(1 / b)
    assert row["ci95"][0] < 100 < row["ci95"][1] and row["b_ci95"][0] < 0.5 < row["b_ci95"][1]
    assert row["check"]["predicted"] == pytest.approx(row["check"]["measured"], abs=1e-3)


@pytest.mark.parametrize(
    ("law", "accuracy", "words"),
    [
        ((0.4, 0.5), 0.95, "x: about 64 images per class for 95.0 % (95 % interval 5"),
        ((0.3, 0.0), 0.95, "hardly falls with more images (exponent 0.00)."),
        ((0.3, 1.0, 0.1), 0.95, "its error levels off at 10.0 %."),
        ((0.4, 0.2), 0.99, "curve reaches it only far outside the measured range"),
        ((0.0, 0.0), 0.0, "x: no test error is left to halve."),
        ((0.04, 0.5), 0.9, "x: about 1 image per class for 90.0 %"),
    ],
)
def test_a_sentence_says_what_the_fit_can_and_cannot_tell(
    law: tuple[float, ...], accuracy: float, words: str
):
    row = extrapolate(errors(*law), accuracy=accuracy)
    assert words in pages.shots.extrapolation_sentence(row)


def test_an_interval_that_is_open_above_is_said_to_be():
    few = results(errors(0.3, 0.3), images=40)
    row = extrapolation.extrapolate(SHOTS, few, accuracy=0.9)
    assert row["shots"] is not None and row["ci95"][1] is None
    assert "gives no upper bound" in pages.shots.extrapolation_sentence({"method": "x", **row})


def test_intervals_contain_the_number_that_they_estimate():
    """All draws have the same results: only the choice of the images makes the fits differ."""
    inside = 0
    for seed in range(1, 31):
        few = results(errors(0.4, 0.5), images=300, seed=seed)
        low, high = extrapolation.extrapolate(SHOTS, few, accuracy=0.95)["ci95"]
        inside += (low or np.inf) <= 64 <= (high or np.inf)
    assert inside >= 25


def test_one_draw_has_a_fit_without_interval_and_two_points_are_too_few():
    row = {
        "method": "x",
        **extrapolation.extrapolate(SHOTS, results(errors(0.4, 0.5), draws=1), accuracy=0.96),
    }
    assert row["ci95"] is None and row["b_ci95"] is None
    assert row["b"] == pytest.approx(0.5, abs=1e-3)
    assert "images per class for 96.0 %." in pages.shots.extrapolation_sentence(row)
    with pytest.raises(ValueError, match=r"at least 3 numbers for a power law: got \[1, 2\]"):
        extrapolation.extrapolate([1, 2], np.ones((2, 3, 4), bool))
    with pytest.raises(ValueError, match=r"`accuracy` must be in \[0, 1\): got 1"):
        extrapolate(errors(0.4, 0.5), accuracy=1.0)


# ---- settings ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": (1, 0)}, "`shots` must be numbers of images of at least 1: got 0"),
        ({"seeds": 0}, "`seeds` must be at least 1: got 0"),
        ({"accuracy": 1.0}, r"`accuracy` must be a share in \[0, 1\), such as 0.95: got 1"),
        ({"accuracy": -0.5}, "`accuracy` must be"),
        ({"method": ("prob",)}, "unknown `method`: got 'prob'; nearest: 'probe'"),
    ],
)
def test_wrong_settings_are_one_sentence(changes: dict[str, Any], message: str):
    spec = data.DataSpec("toy", (), ("a", "b"), "", "")
    with pytest.raises(ValueError, match=message):
        check_settings(spec, ShotsSettings(**changes))
    with pytest.raises(ValueError, match="toy has 1 class, expected at least 2"):
        check_settings(dataclasses.replace(spec, classes=("a",)), ShotsSettings())


@pytest.mark.parametrize("word", ["five", "-1", "2.5", ""])
def test_a_word_that_is_no_number_is_one_sentence(word: str):
    assert parse_shots(["1", " 25"]) == (1, 25)
    with pytest.raises(ValueError, match=f"whole numbers of at least 1: got '{word}'"):
        parse_shots(["1", word])


def test_the_default_measures_all_methods_that_need_no_images():
    assert ShotsSettings().methods == [n for n, row in fewshot.METHODS.items() if row.fit]
    assert ShotsSettings(method=("lsr", "lsr")).methods == ["lsr"]


# ---- a run ----


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory):
    """A run on two colors, 8 images each: one wrong label, a copy, and a file that is not read."""
    folder = tmp_path_factory.mktemp("shots")
    toys.color_folder(folder / "data", 8, side=16)
    (folder / "data" / "red" / "0.png").rename(folder / "data" / "blue" / "wrong.png")
    (folder / "data" / "red" / "copy.png").write_bytes(
        (folder / "data" / "red" / "1.png").read_bytes()
    )
    (folder / "data" / "blue" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TL_CACHE", str(folder / "cache"))
        spec, clf = data.folder(folder / "data"), toys.classifier("toy_vgg", 2, size=16)
        run = reporting.start("shots", str(folder / "run"), {})
        settings = ShotsSettings(seeds=3, method=("probe", "nearest_mean"), shots=(4, 1, 2))
        result = shots(run, *clf, spec, settings)
        again = reporting.start("shots", str(folder / "again"), {})
        repeated = shots(again, *clf, spec, settings)
        yield run, result, repeated, pages.finish(run, result), spec, clf


def test_a_run_has_a_row_per_method_and_number(measured):
    run, result, repeated, _, spec, _ = measured
    saved = json.loads((run.workdir / "result.json").read_text())
    assert [(row["method"], row["shots"]) for row in saved["rows"]] == [
        (method, k) for method in ("probe", "nearest_mean") for k in (1, 2, 4)
    ]
    for row, again in zip(result["rows"], repeated["rows"], strict=True):
        assert row["top1"] == again["top1"] and len(row["top1"]) == 3  # draws are repeatable
        assert row["mean"] == pytest.approx(np.mean(row["top1"])) and row["ci95"]
    probe, other = ([r for r in result["rows"] if r["shots"] == 4][i] for i in (0, 1))
    assert probe["difference"] is None
    assert other["difference"]["mean"] == pytest.approx(other["mean"] - probe["mean"])
    assert [row["method"] for row in saved["extrapolation"]] == ["probe", "nearest_mean"]
    parts = data.divide(spec, test_fraction=0.25, validation_fraction=0.0, seed=0)
    assert saved["n"] + saved["train"] == len(spec.examples) - len(saved["skipped"])
    assert saved["n"] <= len(parts.test.examples)
    assert [Path(skip["path"]).name for skip in saved["skipped"]] == ["broken.jpg"]
    assert [line for line in saved["remarks"] if "share most images" in line] == [
        "draws of 4 images per class share most images, because 'red' has 5; their spread is too "
        "small"
    ]


def test_the_wrong_label_is_suspicious_and_shown(measured):
    run, result, _, page, _, _ = measured
    first = result["label_noise"]["images"][0]
    assert Path(first["path"]).name == "wrong.png"
    assert (first["label"], first["other"]) == ("blue", "red")
    assert (run.workdir / first["image"]).is_file()
    html = Path(page).read_text()
    assert "blue, or red?" in html and html.count("<img") >= 1
    assert "band c0" in html and "Compared with the probe" in html and "Power laws" in html
    words = "\n".join(pages.shots.lines(result))
    assert "probe: 1: " in words and "1 per class" not in html and "Label noise: about " in words


def test_one_draw_has_no_intervals_and_two_numbers_no_extrapolation(measured, tmp_path: Path):
    *_, spec, clf = measured
    run = reporting.start("shots", str(tmp_path / "run"), {})
    settings = ShotsSettings(seeds=1, method=("lsr",), shots=(1, 2), first_seed=4)
    result = shots(run, *clf, spec, settings)
    assert result["seeds"] == [4] and result["extrapolation"] == []
    assert all(row["ci95"] is None and row["difference"] is None for row in result["rows"])
    assert any("at least 3 numbers of images per class" in line for line in run.remarks)
    html = Path(pages.finish(run, result)).read_text()
    assert "Compared with the probe" not in html and "Power laws" not in html


def test_a_class_that_is_too_small_is_named_with_its_count(measured, tmp_path: Path):
    *_, spec, clf = measured
    run = reporting.start("shots", str(tmp_path / "run"), {})
    with pytest.raises(ValueError) as error:
        shots(run, *clf, spec, ShotsSettings(shots=(1, 30)))
    assert re.search(
        r"`shots` names 30 images per class, but the training part of folder.* has 5 different "
        r"images of 'red'; name at most 5",
        str(error.value),
    )
