"""Commands in separate processes: wrong input is one sentence, and Ctrl-C leaves no result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import toys

from tl import models

ROOT = Path(__file__).resolve().parents[1]


def start(*words: str, **environment: str) -> subprocess.Popen[str]:
    """Starts `python -m WORDS` on the CPU."""
    line = [sys.executable, "-m", *words]
    return subprocess.Popen(
        line,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [  # the weights of the default network are packaged and load faster than random ones are drawn
        (("experiments.predict", "--images=nowhere"), "nowhere"),
        *(
            pytest.param(words, message, marks=pytest.mark.full)  # a process each
            for words, message in (
                (("experiments.predict", "--images=.", "--arch=resnet5"), "'resnet50'"),
                (("experiments.ideal", "--target=zebrra"), "'zebra'"),
                (("experiments.transfer", "--data=foder:x"), "'folder'"),
                (("experiments.choose", "--data=elpv", "--arch=vgg16"), "at least two"),
            )
        ),
    ],
)
def test_wrong_input_is_one_sentence(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    process = start(*words, f"--workdir={tmp_path / 'run'}", TL_CACHE=str(tmp_path / "cache"))
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert message in stderr and "Traceback" not in stderr and len(stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.fixture()
def default_sigint() -> Iterator[None]:
    """Restores SIGINT for child processes: background jobs of a shell ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_sigint")
def test_ctrl_c_ends_a_run_at_once_and_leaves_no_result(tmp_path: Path) -> None:
    words = (
        "experiments.ideal",
        "--target=tabby",
        "--judges=",
        "--arch=squeezenet1_1",
        "--weights=random",
        "--size=32",
        "--steps=100000000",
    )
    process = start(
        *words,
        f"--workdir={tmp_path}",
        "--transforms=",
        TL_CACHE=str(tmp_path / "cache"),
        PYTHONUNBUFFERED="1",
    )
    try:
        assert process.stdout is not None
        assert "optimizing" in process.stdout.readline()
        time.sleep(1.0)  # compiles on most machines; an earlier interrupt has the same effect
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()  # a run that ignored the signal would take days
    assert process.returncode == 130
    assert "interrupted" in stderr and "Traceback" not in stderr
    assert not list(tmp_path.glob("result.json*")) and not list(tmp_path.glob("*.tmp"))


@pytest.mark.full
@pytest.mark.parametrize("name", ["explain", "support"])
def test_a_fine_tuned_classifier_is_explained(name: str, tmp_path: Path) -> None:
    spec = toys.color_folder(tmp_path / "data", 5, side=40)
    clf, variables = models.load("mobilenetv1_025_keras", weights="random")
    clf, variables = clf.with_pixels(size=32).replace_head(
        variables, spec.classes, key=jax.random.key(0)
    )
    words = [
        f"--model={models.save(tmp_path / 'model', clf, variables)}",
        f"--images={tmp_path / 'data' / 'red'}",
        f"--workdir={tmp_path / 'run'}",
    ]
    words += {
        "explain": ["--method=gradcam", "--endpoint=stage2", "--target=red vs blue", "--steps=2"],
        "support": [f"--data=folder:{tmp_path / 'data'}", "--top=2"],
    }[name]
    process = start(f"experiments.{name}", *words, TL_CACHE=str(tmp_path / "cache"))
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["images"]) == 5 and stdout.strip().endswith("report.html")
    for row in result["images"]:
        shown = row["maps"].values() if name == "explain" else row["nearest"]
        assert all((tmp_path / "run" / one.get("png", one.get("image"))).is_file() for one in shown)


# ---- compilations ----


@pytest.fixture(scope="module")
def two_colors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A saved classifier of red and blue images of 32 pixels, and a folder of them."""
    folder = tmp_path_factory.mktemp("two_colors")
    spec = toys.color_folder(folder / "data", 8, side=40)
    clf, variables = models.load("mobilenetv1_025_keras", weights="random")
    clf, variables = clf.with_pixels(size=32).replace_head(
        variables, spec.classes, key=jax.random.key(0)
    )
    return models.save(folder / "model", clf, variables), folder / "data"


COMMANDS = {
    "predict": "predict --images=DATA --labels=folder",
    "transfer, bank": "transfer --data=folder:DATA --tune=lp_ft --epochs=2 --batch_size=4",
    "transfer, images": "transfer --data=folder:DATA --tune=all --bn=update --augment=standard "
    "--epochs=1 --batch_size=4",
    "attack": "attack --images=DATA --labels=folder --steps=2",
    "ideal": "ideal --target=red --steps=2 --judges=",
    "explain": "explain --images=DATA --method=gradient,gradcam --endpoint=stage2 --limit=2 "
    "--steps=2",
    "features": "features --data=folder:DATA --endpoint=stage2 --show=DATA/red/0.png",
    "evaluate": "evaluate --data=folder:DATA --robust_eps=1/255",
}


@pytest.mark.full
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_compiles_a_program_twice(
    command: str, two_colors: tuple[Path, Path], tmp_path: Path
) -> None:
    model, folder = two_colors
    name, *words = COMMANDS[command].replace("DATA", str(folder)).split()
    process = start(
        f"experiments.{name}",
        *words,
        f"--model={model}",
        f"--workdir={tmp_path / 'run'}",
        TL_CACHE=str(tmp_path / "cache"),
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "programs"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    ledger = json.loads((tmp_path / "run" / "result.json").read_text())["ledger"]
    assert ledger["compiles"] > 0 and ledger["cached"] == 0
