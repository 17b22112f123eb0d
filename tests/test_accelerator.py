"""`accelerator`: the products of a step, and the whole script with a small network on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_experiments import start

from experiments.benchmarks import accelerator
from tl import models
from tl.models import summary
from tl.pages import bench


def test_products_of_a_step_follow_what_is_trained() -> None:
    clf, _ = models.load("mobilenetv1_025_keras", weights="random")
    clf = clf.with_pixels(size=64)
    forward = summary.total(summary.stages(clf)).flops
    head, last, every = (accelerator.products(clf, tune) for tune in accelerator.TUNES)
    assert forward < head < last < every == 3 * forward


@pytest.mark.full
def test_all_rows_on_a_cpu(tmp_path: Path) -> None:
    small = ("--arch=mobilenetv1_025_keras", "--size=32", "--batch_size=4", "--files=4")
    words = (*small, "--rounds=2", "--peers=", "--dtype=float32", f"--workdir={tmp_path / 'run'}")
    process = start("experiments.benchmarks.accelerator", *words, TL_CACHE=str(tmp_path / "cache"))
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    rows = {row["what"]: row for row in result["rows"]}
    trained = [rows[f"train, {tune}"] for tune in accelerator.TUNES]
    assert all(0 < row["peak_share"] < 1 and row["memory_gb"] > 0 for row in trained)
    assert rows.keys() > {"attack, PGD steps", "ideal, 16 images", "bank, JPEG to features"}
    assert all(bench.line(row) in stdout for row in result["rows"])


def test_unknown_words_are_an_error(tmp_path: Path) -> None:
    process = start("experiments.benchmarks.accelerator", "--tune=stem", f"--workdir={tmp_path}")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1 and "unknown --tune: got 'stem'" in stderr
