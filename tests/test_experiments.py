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

from experiments import transfer
from tl import data, inference, models, pages, reporting
from tl.evaluation import sets
from tl.training.recipe import Recipe

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


def finish(run: reporting.Run, result: dict, sections: list) -> dict:
    run.finish(result, reporting.page("title", "lead", sections, facts=run.facts()))
    return json.loads((run.workdir / "result.json").read_text())


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


@pytest.mark.parametrize("tune", ["probe", "head"])
def test_transfer_learns_saves_and_reuses(run: reporting.Run, pets: Path, tune: str) -> None:
    clf, variables = network()
    spec = data.get(f"folder:{pets}")
    settings = transfer.Settings(Recipe(tune=tune, epochs=40, batch_size=8, lr=0.05))
    result = finish(run, *transfer.transfer(run, clf, variables, spec, None, settings))
    assert result["test"]["n"] == 6 and result["test"]["top1"] == 1.0
    assert result["frozen_unchanged"] is True
    assert result["trainable_params"] == 512 * 2 + 2
    assert [skip["path"].rsplit("/", 1)[-1] for skip in result["skipped"]] == ["broken.jpg"]
    assert sum(map(sum, result["confusion"])) == 6

    again = reporting.start("test", run.workdir.parent / "again", {"seed": 0})
    assert (
        transfer.transfer(again, clf, variables, spec, None, settings)[0]["test"] == result["test"]
    )

    saved, saved_variables = models.load(result["model"])
    assert saved.classes is not None and saved.classes.find("any cat") == (0,)
    _, test_side = data.split(spec, seed=0)
    pictures = inference.read_images(saved, [str(example.path) for example in test_side.examples])
    logits = inference.predict_logits(saved, saved_variables, pictures.images)
    by_name = {
        example.path.name: example.label
        for example in test_side.examples
        if example.path in pictures.paths
    }
    assert by_name and [int(i) for i in logits.argmax(axis=1)] == [
        next(e.label for e in test_side.examples if e.path == path) for path in pictures.paths
    ]


def test_transfer_refuses_other_classes(run: reporting.Run, pets: Path, tmp_path: Path) -> None:
    clf, variables = network()
    (tmp_path / "other").mkdir()
    for label in ("bengal", "poodle"):
        (tmp_path / "other" / label).symlink_to(pets / "bengal")
    with pytest.raises(ValueError, match="poodle"):
        other = data.get(f"folder:{tmp_path / 'other'}")
        transfer.transfer(
            run, clf, variables, data.get(f"folder:{pets}"), other, transfer.Settings()
        )


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
