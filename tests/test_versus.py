"""Paired comparison of two runs: exact test, interval, matching of images, page, command."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import toys
from tl import data, inference, pages, reporting
from tl.evaluation import attack_transfer, paired, seen

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("cat", "dog", "owl")

# ---- statistics ----


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 9))
def test_the_test_of_single_results_is_mcnemars(only_a: int, only_b: int, equal: int) -> None:
    differences = np.array([1] * only_a + [-1] * only_b + [0] * equal, int)
    p, n = paired.exact_p(differences), only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    expected = min(1.0, 2 * tail)
    assert p == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_the_test_of_several_seeds_exchanges_all_results_of_an_image(seed: int) -> None:
    """By enumeration of all 2^10 exchanges."""
    d = np.random.default_rng(seed).integers(-3, 5, 10)
    sums = [abs(np.dot(signs, d)) for signs in itertools.product((-1, 1), repeat=10)]
    assert paired.exact_p(d) == pytest.approx(np.mean(np.array(sums) >= abs(d.sum())), rel=1e-9)


def test_published_values_of_the_test_and_the_interval() -> None:
    """Fagerland et al. 2014, table VI: airway hyper-responsiveness before and after a transplant.

    Of 21 children, 1 was positive both times, 1 only before, 7 only after, and 12 never.
    """
    d = np.array([0] * 13 + [1] + [-1] * 7)
    assert paired.exact_p(d) == pytest.approx(2 * (1 + 8) / 2**8, rel=1e-12)
    bounds = paired.difference_interval(d, np.ones(21, int))
    assert bounds == pytest.approx((-0.508, -0.013), abs=5e-4)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 500), st.integers(1, 4))
def test_the_interval_is_that_of_bonett_and_price(
    only_a: int, only_b: int, equal: int, seeds: int
) -> None:
    n = only_a + only_b + equal
    p, q = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = statistics.NormalDist().inv_cdf(0.975) * np.sqrt((p + q - (p - q) ** 2) / (n + 2))
    d, tests = np.array([1] * only_a + [-1] * only_b + [0] * equal), np.ones(n, int)
    low, high = paired.difference_interval(d, tests)
    observed = (only_a - only_b) / n
    expected = max(-1, min(p - q - half, observed)), min(1, max(p - q + half, observed))
    assert (low, high) == pytest.approx(expected, abs=1e-6)
    # Seeds with equal results add no image, so they change nothing.
    assert paired.difference_interval(seeds * d, seeds * tests) == pytest.approx((low, high))
    assert paired.exact_p(seeds * d) == pytest.approx(paired.exact_p(d), rel=1e-9)


def test_accuracies_on_the_same_images_are_compared_by_a_paired_test() -> None:
    """10 and 4 errors of 30: the intervals overlap, but six images against none decide."""
    wrong = lambda n: np.arange(30) < n
    assert attack_transfer.is_higher(wrong(4), wrong(10))
    assert not attack_transfer.is_higher(wrong(10), wrong(4))
    assert not attack_transfer.is_higher(wrong(5), wrong(10))  # p = 0.0625
    low, high = (attack_transfer.accuracy(wrong(n))["ci95"] for n in (10, 4))
    assert low[1] > high[0]


# ---- runs ----


def finished_run(
    workdir: Path,
    images: Sequence[Path],
    labels: Sequence[int],
    predicted: Mapping[int, Sequence[int]],
    classes: Sequence[str] = CLASSES,
    seen_images: seen.Seen = seen.Seen(),  # noqa: B008 (constant)
) -> Path:
    """The folder of a run with these predicted classes, by seed."""
    run = reporting.start("evaluate", workdir, {"seed": 0})
    logits = {seed: 3 * np.eye(3, dtype=np.float32)[list(rows)] for seed, rows in predicted.items()}
    paired.save_predictions(
        run,
        toys.classifier("toy_vgg", tuple(classes))[0],
        {
            seed: inference.Predictions(rows, np.array(labels)[: len(rows)], tuple(images))
            for seed, rows in logits.items()
        },
        seen_images,
    )
    run.finish({"arch": "toy", "data": "pets"}, "")
    return workdir


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for i in range(10):
        reporting.save_png(folder / f"{i}.png", toys.noise(300, 40, 3, seed=i))
    return sorted(folder.iterdir())


LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
# Both wrong on the first image; A alone is correct on the last six.
A, B = [1, *LABELS[1:]], [1, *LABELS[1:4], *((i + 1) % 3 for i in LABELS[4:])]


def compare(tmp_path: Path, a: Path, b: Path) -> dict[str, Any]:
    run = reporting.start("versus", tmp_path / "versus", {"seed": 0})
    pages.finish(run, paired.compare(run, str(a), str(b)))
    return json.loads((run.workdir / "result.json").read_text())


def test_images_are_matched_by_content(tmp_path: Path, images: list[Path]) -> None:
    """The second run read copies with other names, in another order, without two of them."""
    copies = [shutil.copy(path, tmp_path / f"copy{9 - i}.png") for i, path in enumerate(images)]
    order = list(range(9, 1, -1))
    a = finished_run(tmp_path / "a", images, LABELS, {0: A})
    b = finished_run(
        tmp_path / "b",
        [Path(copies[i]) for i in order],
        [LABELS[i] for i in order],
        {0: [B[i] for i in order]},
    )
    result = compare(tmp_path, a, b)
    assert result["n"] == result["tests"] == 8
    assert (result["a"]["top1"], result["b"]["top1"]) == (1.0, 2 / 8)
    assert (result["a"]["unpaired"], result["b"]["unpaired"]) == (2, 0)
    assert result["counts"] == {"both": 2, "only_a": 6, "only_b": 0, "neither": 0}
    assert result["difference"] == 6 / 8 and result["p"] == pytest.approx(2 / 2**6)
    expected = paired.difference_interval(np.array([1] * 6 + [0] * 2), np.ones(8, int))
    assert result["difference_ci95"] == pytest.approx(expected)
    assert [row["path"] for row in result["differ"]] == [str(path) for path in images[4:]]
    html = (tmp_path / "versus" / "report.html").read_text()
    assert "6 images that A classifies better than B" in html and html.count("<img") == 6
    body = lambda text: text.partition("<footer")[0]
    assert body(pages.redraw(tmp_path / "versus").read_text()) == body(html)


def test_training_images_among_the_compared_images_are_remarked_on(
    tmp_path: Path, images: list[Path]
) -> None:
    spec = lambda rows: data.DataSpec(
        "some", tuple(data.Example(images[i], 0) for i in rows), ("cat",), "", ""
    )
    seen_images = seen.Seen(
        {seen.KEY: seen.describe(data.Parts(spec([0, 1]), spec([9]), spec([5])))}
    )
    a = finished_run(tmp_path / "a", images, LABELS, {0: A, 1: A}, seen_images=seen_images)
    b = finished_run(tmp_path / "b", images[1:], LABELS[1:], {0: B[1:], 1: B[1:]})
    result = compare(tmp_path, a, b)
    assert result["a"]["trained_on"] == {"train": 1, "validation": 1}
    assert result["b"]["trained_on"] is None
    (remark,) = result["remarks"]
    assert remark.startswith(
        "1 training images and 1 validation images of A are among the 9 tested"
    )


def test_a_comparison_with_itself_is_undecided(tmp_path: Path, images: list[Path]) -> None:
    a = finished_run(tmp_path / "a", images, LABELS, {0: A})
    result = compare(tmp_path, a, a)
    assert result["difference"] == 0 and result["p"] == 1 and result["differ"] == []
    low, high = result["difference_ci95"]
    assert low < 0 < high


def test_every_image_counts_once_with_several_seeds(tmp_path: Path, images: list[Path]) -> None:
    """Equal results of four seeds say no more about the images than those of one."""
    run = lambda name, seeds, rows: finished_run(
        tmp_path / f"{name}{seeds}", images, LABELS, dict.fromkeys(range(seeds), rows)
    )
    one, four = ([run("a", seeds, A), run("b", seeds, B)] for seeds in (1, 4))
    single, several = compare(tmp_path, *one), compare(tmp_path, *four)
    assert several["n"] == 10 and several["tests"] == 40
    for key in ("difference", "difference_ci95", "p"):
        assert several[key] == pytest.approx(single[key]), key
    assert several["a"]["top1_ci95"] == single["a"]["top1_ci95"]
    assert several["seeds"]["difference"] == [0.6] * 4 and several["seeds"]["ci95"] is not None
    mixed = compare(tmp_path, one[0], four[1])  # the only seed of A with every seed of B
    assert mixed["tests"] == 40 and mixed["p"] == pytest.approx(single["p"])


def test_the_predictions_on_the_page_are_of_a_seed_that_agrees_with_the_row(
    tmp_path: Path, images: list[Path]
) -> None:
    """A is correct on the image for two of three seeds, B for the first seed only."""
    a = finished_run(tmp_path / "a", images[:1], [0], {0: [1], 1: [0], 2: [0]})
    b = finished_run(tmp_path / "b", images[:1], [0], {0: [0], 1: [1], 2: [1]})
    (row,) = compare(tmp_path, a, b)["differ"]
    assert row["better"] == "a" and (row["a"]["correct"], row["b"]["correct"]) == (2, 1)
    assert (row["a"]["predicted"], row["b"]["predicted"]) == ("cat", "dog")


def test_equal_seeds_are_paired(tmp_path: Path, images: list[Path]) -> None:
    a = finished_run(tmp_path / "a", images, LABELS, {0: A, 1: LABELS, 2: B})
    b = finished_run(tmp_path / "b", images, LABELS, {2: A, 1: B, 5: A})
    result = compare(tmp_path, a, b)
    assert result["tests"] == 20 and result["n"] == 10
    assert sorted(result["seeds"]["difference"]) == pytest.approx([-0.6, 0.7])
    assert result["counts"] == {"both": 6, "only_a": 7, "only_b": 6, "neither": 1}
    assert result["difference"] == pytest.approx(0.05)


# ---- errors ----


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, images: list[Path]) -> None:
    a = finished_run(tmp_path / "a", images[:5], LABELS, {0: A[:5]})
    other = finished_run(tmp_path / "other", images[5:], LABELS[5:], {0: A[5:]})
    unlabeled = finished_run(tmp_path / "unlabeled", images, [-1] * 10, {0: A})
    names = finished_run(tmp_path / "names", images[:5], LABELS, {0: A[:5]}, ("a", "b", "c"))
    older = finished_run(tmp_path / "older", images, LABELS, {0: A})
    (older / paired.FILE).unlink()
    run = reporting.start("versus", tmp_path / "versus", {"seed": 0})
    for folder, message in (
        (other, r"no test image in common: got 5 images of seeds \[0\] and 5 of seeds \[0\]"),
        (unlabeled, "the 10 images of .*unlabeled' have no labels, expected ground truth"),
        (names, "has the label 'cat' in one run and 'a' in the other"),
        (older, "has no predictions.csv .* a run of an older version must be repeated"),
        (tmp_path / "nothing", "is not the folder of a finished run"),
        ("", "`run_b` must have a value: the folder of a finished run"),
    ):
        with pytest.raises(ValueError, match=message):
            paired.compare(run, str(a), str(folder))


def test_the_command_takes_two_folders(tmp_path: Path, images: list[Path]) -> None:
    a = finished_run(tmp_path / "a", images, LABELS, {0: A})
    b = finished_run(tmp_path / "b", images, LABELS, {0: B})
    run = subprocess.run(
        [sys.executable, "-m", "experiments.versus", a, b, f"--workdir={tmp_path / 'versus'}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert "A minus B: +60.0 points" in run.stdout and "exact p = 0.0313" in run.stdout
    assert json.loads((tmp_path / "versus" / "result.json").read_text())["n"] == 10
