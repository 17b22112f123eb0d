"""Convolutions of oneDNN equal lax in values and derivatives; its failures are errors.

The library is used by the tests of this file only: `conftest.py` sets TL_ONEDNN=0.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_ops
from toys import classifier

from tl import cpu, ops
from tl.models import export
from tl.ops import onednn

LIBRARY = cpu._onednn_of_extra()
SAME3 = test_ops.SAME3

pytestmark = pytest.mark.skipif(
    not (sys.platform == "linux" and os.uname().machine == "x86_64"), reason="no wheel"
)


@pytest.fixture
def library(monkeypatch):
    """Every convolution without Winograd's form is computed by oneDNN."""
    monkeypatch.setenv("TL_ONEDNN", LIBRARY)
    module = sys.modules["tl.ops.forms"]  # `tl.ops.forms` is the function
    monkeypatch.setattr(module, "LEAST_OF_ONEDNN", 0)
    test_ops.forget_forms()
    yield
    test_ops.forget_forms()


def calls(function, *args) -> int:
    text = jax.jit(function).lower(*args).compile().as_text() or ""
    return text.count('"tl_onednn"')


@pytest.mark.parametrize("name", [name for name in test_ops.FORMS if "winograd" not in name])
def test_values_and_gradients_equal_lax(name, library):
    x_shape, k_shape, options = test_ops.FORMS[name]
    test_ops.check_conv(x_shape, k_shape, **options)
    x, kernel = test_ops.normal(0, x_shape), test_ops.normal(1, k_shape)
    assert calls(partial(ops.conv2d, **options), x, kernel) == 1


def test_a_kernel_over_the_border_has_an_output_of_one_pixel(library):
    test_ops.check_conv((1, 1, 1, 8), (5, 5, 8, 3), padding=((2, 2), (2, 2)))


def test_shapes_without_values_need_no_library(library):
    for x_shape in ((0, 5, 5, 8), (2, 2, 2, 8)):  # no image, and no place for the kernel
        x, kernel = jnp.ones(x_shape), jnp.ones((3, 3, 8, 3))
        assert calls(ops.conv2d, x, kernel) == 0
        assert ops.conv2d(x, kernel).size == 0


def test_all_modes_of_derivatives(library):
    x, kernel = test_ops.normal(0, (2, 5, 6, 8)), test_ops.normal(1, (3, 3, 8, 4)) / 9

    def energy(conv, kernel):
        return jnp.sum(jnp.sin(conv(x, kernel, padding=SAME3)))

    for conv in (ops.conv2d, test_ops.reference):
        _, second = jax.jvp(jax.grad(partial(energy, conv)), (kernel,), (jnp.ones_like(kernel),))
        batched = jax.vmap(
            lambda row, conv=conv: jax.grad(
                lambda k: jnp.sum(conv(row[None], k, padding=SAME3) ** 2)
            )(kernel)
        )(x)
        if conv is ops.conv2d:
            actual = second, batched
    for a, b in zip(actual, (second, batched), strict=True):
        test_ops.assert_close(a, b, 1e-4)


@pytest.mark.parametrize("supported", [True, False])
@pytest.mark.parametrize("name", ["pointwise", "dense stride 2", "grouped", "stem 3x3", "dense"])
def test_bfloat16_sums_in_float32(name, supported, library, monkeypatch):
    """On a processor without such products, or with slow ones, the sums are those of float32."""
    if not supported:
        monkeypatch.setattr(onednn, "multiplies_bfloat16", lambda: False)
    test_ops.test_bfloat16_sums_in_float32(name)


def test_float64_needs_no_library(library):
    x, kernel = test_ops.normal(0, (2, 5, 6, 8)), test_ops.normal(1, (3, 3, 8, 4))
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in (x, kernel)]
        assert calls(ops.conv2d, *wide) == 0
        actual = ops.conv2d(*wide)
        assert actual.dtype == jnp.float64
        np.testing.assert_allclose(actual, test_ops.reference(*wide), rtol=1e-12, atol=1e-12)


def test_calls_from_several_threads(library):
    conv = jax.jit(partial(ops.conv2d, padding=SAME3))
    inputs = [
        (test_ops.normal(i, (2, 9, 8, 16)), test_ops.normal(i + 9, (3, 3, 16, 8))) for i in range(8)
    ]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda pair: [conv(*pair) for _ in range(20)], inputs))
    for pair, several in zip(inputs, results, strict=True):
        for actual in several:
            test_ops.assert_close(actual, test_ops.reference(*pair, padding=SAME3))


def test_small_convolutions_and_winograd_in_float32_are_our_own(library, monkeypatch):
    image = jax.ShapeDtypeStruct((1, 14, 14, 64), jnp.float32)
    wide = jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32)
    assert calls(partial(ops.conv2d, padding=SAME3), image, wide) == 0
    assert calls(partial(ops.conv2d, padding=SAME3, stride=2), image, wide) == 1
    monkeypatch.setattr(onednn, "multiplies_bfloat16", lambda: True)
    test_ops.forget_forms()
    half = [jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for a in (image, wide)]
    assert calls(partial(ops.conv2d, padding=SAME3), *half) == 1
    monkeypatch.undo()
    monkeypatch.setenv("TL_ONEDNN", LIBRARY)
    test_ops.forget_forms()
    assert calls(partial(ops.conv2d, padding=SAME3, stride=2), image, wide) == 0


def test_an_exported_program_needs_no_library(library):
    clf, variables = classifier()
    assert "tl_onednn" not in export.program(clf, variables, platforms=["cpu"]).mlir_module()


# Two devices, and a computation that has not ended when the process ends.
PROGRAM = """
import numpy as np
import jax
from jax import numpy as jnp, lax
import tl
from tl import devices, ops

conv = lambda x, k: ops.conv2d(x, k, padding=((1, 1), (1, 1)))
loss = lambda k, x: jnp.sum(conv(x, k) ** 2)
rng = np.random.default_rng(0)
x, k = (rng.normal(size=s).astype(np.float32) for s in ((4, 64, 64, 32), (3, 3, 32, 33)))
expected = jax.grad(lambda k: jnp.sum(lax.conv_general_dilated(
    x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) ** 2))(k)
mesh = devices.mesh()
with ops.batch_sharded(mesh):
    gradient = jax.jit(jax.grad(loss))
    arguments = devices.replicate(k, mesh), devices.shard(x, mesh)
    text = gradient.lower(*arguments).compile().as_text()
    actual = gradient(*arguments)
error = float(jnp.max(jnp.abs(actual - expected)) / jnp.max(expected))
print(mesh.size, "tl_onednn" in text, error)
y = jax.jit(lambda x: lax.fori_loop(0, 40, lambda i, y: y + conv(x + y.mean(), k).mean(), x))(x)
print("end")
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "TL_ONEDNN": LIBRARY, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_devices_and_the_end_of_a_process():
    process = run(PROGRAM, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert process.returncode == 0, process.stderr
    devices, used, error, end = process.stdout.split()
    assert (devices, used, end) == ("2", "True", "end") and float(error) < 1e-5


CONVOLUTION = """
import jax.numpy as jnp
from tl import ops
ops.conv2d(jnp.ones((16, 16, 16, 32)), jnp.ones((5, 5, 32, 32)))
"""


def test_a_wrong_file_is_an_error(tmp_path):
    for path, message in (
        (str(tmp_path / "none.so"), "`TL_ONEDNN` is not a file: got "),
        (__file__, "oneDNN cannot be loaded: "),
    ):
        process = run(CONVOLUTION, TL_ONEDNN=path)
        assert process.returncode == 1 and message in process.stderr.splitlines()[-1]


def test_a_failure_within_a_program_is_an_error(library, monkeypatch):
    def call(name, *args):
        raise OSError("full")

    monkeypatch.setattr(onednn._library(LIBRARY), "call", call)
    with pytest.raises(jax.errors.JaxRuntimeError, match="full"):
        jax.block_until_ready(ops.conv2d(jnp.ones((1, 4, 4, 11)), jnp.ones((2, 2, 11, 3))))
