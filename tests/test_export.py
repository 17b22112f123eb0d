"""`tl.models.export`: the program computes the network's logits, and runs without `tl`."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.export
import numpy as np
import pytest

from tests import toys
from tl import ops, pixels
from tl.models import export


def network():
    """A small network with random statistics and two classes."""
    clf, variables = toys.classifier("toy_mobilenet", ("cat", "dog"), size=48)
    clf = clf.with_pixels(interpolation="bilinear")
    rng = np.random.default_rng(0)
    stats = jax.tree.map(
        lambda a: np.float32(rng.uniform(0.5, 1.5, a.shape)), variables["batch_stats"]
    )
    return clf, {**variables, "batch_stats": stats}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "exported"
    assert export.write(out, *network()) == (out / "model.stablehlo").stat().st_size
    return out


def test_the_program_computes_the_logits_of_the_network(folder: Path) -> None:
    clf, variables = network()
    program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert program.platforms == export.PLATFORMS
    images = toys.noise(3, 48, 49, 3)  # the script below has another number and size
    outputs = program.call(images)
    expected = np.asarray(
        jax.jit(clf.logits)(variables, pixels.prepare_on_device(clf.pixels, images))
    )
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(
        outputs["logits"], expected, rtol=0, atol=2e-5 * np.abs(expected).max()
    )
    np.testing.assert_allclose(
        outputs["probabilities"], jax.nn.softmax(outputs["logits"]), atol=1e-6
    )


def test_winograd_convolution_exports_with_a_symbolic_batch() -> None:
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


@pytest.mark.full
def test_the_script_runs_without_tl(folder: Path, tmp_path: Path) -> None:
    image = toys.noise(1, 70, 90, 3)
    np.save(tmp_path / "image.npy", image[0])
    code = f"""
import runpy, sys
for name in ("tl", "experiments", "flax", "optax", "orbax", "absl", "grain", "safetensors", "PIL"):
    sys.modules[name] = None  # importing it is an error
sys.argv = ["run.py", "image.npy"]
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
    probabilities = {
        name: float(share) for name, share in (word.split() for word in (first, second))
    }
    assert path == "image.npy" and probabilities == pytest.approx(
        {"cat": p[0], "dog": p[1]}, abs=2e-4
    )
    assert json.loads((folder / "classes.json").read_text()) == ["cat", "dog"]


def test_the_script_names_the_missing_flatbuffers(folder: Path, tmp_path: Path) -> None:
    code = f"""
import runpy, sys
sys.modules["flatbuffers"] = None
sys.argv = ["run.py", "image.npy"]
runpy.run_path({str(folder / "run.py")!r}, run_name="__main__")
"""
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert ran.stderr.strip().endswith("pip install flatbuffers")


def test_a_network_without_a_head_cannot_be_exported() -> None:
    clf, variables = network()
    with pytest.raises(ValueError, match="hold toy_mobilenet's features and no classifier"):
        export.program(dataclasses.replace(clf, head=None, classes=None), variables)
