"""The experiments end to end, small: what they write, what they say to wrong input, and what Ctrl-C leaves behind."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tl import inference, models, pages, reporting
from tl.evaluation import sets

ROOT = Path(__file__).resolve().parents[1]
SIZE = 32


@functools.cache
def network():
    clf, variables = models.load("resnet18", weights="random")
    return clf.with_pixels(size=SIZE), variables


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that colour tells apart, twelve pictures each, one of them broken."""
    folder = tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(0)
    for label, color in (("bengal", (0.9, 0.5, 0.1)), ("pug", (0.1, 0.4, 0.9))):
        (folder / label).mkdir()
        for i in range(12):
            noise = 0.1 * rng.standard_normal((40, 40, 3))
            reporting.save_png(
                folder / label / f"{i}.png",
                np.clip(np.array(color) + noise, 0, 1).astype(np.float32),
            )
    (folder / "pug" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    return folder


@pytest.fixture()
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> reporting.Run:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    return reporting.start("predict", tmp_path / "run", {"seed": 0})


def test_predict(run: reporting.Run, pets: Path) -> None:
    clf, variables = network()
    labels = np.full(25, -1)
    labels[0] = 7
    predicted = inference.predict(clf, variables, str(pets), labels=labels)
    pages.finish(run, sets.predictions_result(run, clf, predicted, 5))
    result = json.loads((run.workdir / "result.json").read_text())
    assert (result["n"], result["labelled"]) == (24, 1)
    (skip,) = result["skipped"]
    assert skip["path"].endswith("broken.jpg") and skip["why"]
    top = result["predictions"][0]["topk"]
    shares = [row["probability"] for row in top]
    assert len(top) == 5 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
    assert result["top1"] == float(top[0]["index"] == 7)


def command(*words: str, **env: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", *words]
    return subprocess.Popen(
        line,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **env},
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("experiments.predict", "--images=nowhere", "--arch=resnet18", "--weights=random"),
            "nowhere",
        ),
        (("experiments.predict", "--images=.", "--arch=resnet5"), "'resnet50'"),
        (
            ("experiments.ideal", "--target=zebrra", "--arch=squeezenet1_1", "--weights=random"),
            "'zebra'",
        ),
        (
            ("experiments.transfer", "--data=foder:x", "--arch=resnet18", "--weights=random"),
            "'folder'",
        ),
    ],
)
def test_wrong_input_is_one_sentence(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    process = command(*words, f"--workdir={tmp_path / 'run'}", TL_CACHE=str(tmp_path / "cache"))
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said in stderr and "Traceback" not in stderr and len(stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.fixture()
def hears_ctrl_c() -> Iterator[None]:
    """Children hear SIGINT: a shell starts what runs in its background without it, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_is_heard_in_compiled_code_and_leaves_no_result(tmp_path: Path) -> None:
    words = (
        "experiments.ideal",
        "--target=tabby",
        "--judges=",
        "--arch=squeezenet1_1",
        "--weights=random",
        "--size=32",
        "--steps=100000000",
    )
    process = command(
        *words,
        f"--workdir={tmp_path}",
        "--transforms=",
        TL_CACHE=str(tmp_path / "cache"),
        PYTHONUNBUFFERED="1",
    )
    try:
        assert process.stdout is not None
        assert "optimizing" in process.stdout.readline()
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()  # a climb that heard nothing would go on for days
    assert process.returncode == 130
    assert "interrupted" in stderr and "Traceback" not in stderr
    assert not list(tmp_path.glob("result.json*")) and not list(tmp_path.glob("*.tmp"))
