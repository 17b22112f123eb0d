"""An exported classifier: the program's numbers, and that it runs where nothing of `tl` can be imported."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.export
import numpy as np
import pytest

from experiments import export as experiment
from tl import labels, models, ops, pixels
from tl.models import export, heads


@functools.cache
def network():
    """A small network with random statistics and two classes."""
    clf, variables = models.load("mobilenetv1_025_keras", weights="random")
    clf = clf.with_pixels(size=48, interpolation="bilinear")
    clf = clf.with_head(heads.Linear(2), labels.from_names(["cat", "dog"], name="pets"))
    rng = np.random.default_rng(0)
    spread = lambda a: np.float32(rng.uniform(0.5, 1.5, a.shape)) * (a + np.float32(0.01))
    variables = jax.tree.map(spread, jax.tree.map(np.asarray, jax.jit(clf.init)(jax.random.key(0))))
    variables["params"]["head"]["kernel"] = rng.normal(size=(256, 2)).astype(np.float32)
    return clf, variables


def photographs(n: int, h: int, w: int) -> np.ndarray:
    return np.random.default_rng(h * w).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "exported"
    assert experiment.write(out, *network()) == (out / "model.stablehlo").stat().st_size
    return out


def test_the_program_says_what_the_network_says(folder: Path) -> None:
    clf, variables = network()
    program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert program.platforms == export.PLATFORMS
    images = photographs(3, 48, 49)  # the script below asks about another number and size
    said = program.call(images)
    want = np.asarray(jax.jit(clf.logits)(variables, pixels.prepare_on_device(clf.pixels, images)))
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(said["logits"], want, rtol=0, atol=2e-5 * np.abs(want).max())
    np.testing.assert_allclose(said["probabilities"], jax.nn.softmax(said["logits"]), atol=1e-6)


def test_winograds_form_takes_an_unknown_number_of_pictures() -> None:
    x, kernel = (
        np.random.default_rng(0).normal(size=s).astype(np.float32)
        for s in ((3, 14, 15, 128), (3, 3, 128, 128))
    )
    conv = jax.jit(lambda x: ops.conv2d(x, kernel, padding=((1, 1), (1, 1))))
    (b,) = jax.export.symbolic_shape("b")
    program = jax.export.export(conv, platforms=export.PLATFORMS)(
        jax.ShapeDtypeStruct((b, *x.shape[1:]), np.float32)
    )
    np.testing.assert_allclose(program.call(x), conv(x), atol=1e-3)


def test_the_script_runs_without_tl(folder: Path, tmp_path: Path) -> None:
    image = photographs(1, 70, 90)
    np.save(tmp_path / "picture.npy", image[0])
    code = f"""
import runpy, sys
for name in ("tl", "experiments", "flax", "optax", "orbax", "absl", "grain", "safetensors", "PIL"):
    sys.modules[name] = None  # importing it is an error
sys.argv = ["run.py", "picture.npy"]
runpy.run_path({str(folder / "run.py")!r}, run_name="__main__")
"""
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    path, first, second = ran.stdout.strip().split("\t")
    clf, variables = network()
    p = np.asarray(
        jax.nn.softmax(jax.jit(clf.logits)(variables, pixels.prepare_on_device(clf.pixels, image)))
    )[0]
    found = {name: float(share) for name, share in (word.split() for word in (first, second))}
    assert path == "picture.npy" and found == pytest.approx({"cat": p[0], "dog": p[1]}, abs=2e-4)
    assert json.loads((folder / "classes.json").read_text()) == ["cat", "dog"]


def test_the_script_says_what_jax_lacks(folder: Path, tmp_path: Path) -> None:
    code = f"""
import runpy, sys
sys.modules["flatbuffers"] = None
sys.argv = ["run.py", "picture.npy"]
runpy.run_path({str(folder / "run.py")!r}, run_name="__main__")
"""
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert ran.stderr.strip().endswith("pip install flatbuffers")


def test_a_network_without_a_head_has_nothing_to_export() -> None:
    clf, variables = network()
    with pytest.raises(ValueError, match="hold mobilenetv1_025_keras's features and no classifier"):
        export.program(dataclasses.replace(clf, head=None, classes=None), variables)
