"""Settings of all tests: strict JAX, cheap compilation, repeatable hypothesis, photographs."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# The workers of pytest-xdist share one GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TL_ONEDNN", "0")  # the forms that need no extra

import hypothesis
import jax
import pytest

# Run with earlier versions of `tl`, and with TensorFlow.
collect_ignore = ["golden/make_artifacts.py", "golden/make_flowers.py"]

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "tl", deadline=None, derandomize=True, max_examples=20, database=None
)
hypothesis.settings.load_profile("tl")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="Run the tests marked `full` too, and compile numerical programs as users do.",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects `full` tests without --full, and `parity` tests without torch."""
    left_out = [] if config.getoption("--full") else ["full"]
    left_out += [] if importlib.util.find_spec("torch") else ["parity"]
    excluded = [any(item.get_closest_marker(name) for name in left_out) for item in items]
    config.hook.pytest_deselected(items=[i for i, out in zip(items, excluded, strict=True) if out])
    items[:] = [item for item, out in zip(items, excluded, strict=True) if not out]


# ------------------------------------------------------------------------------ cheap programs

# Compiling takes longer than running in most tests. With JAX's own switch the graph and XLA's
# passes over it stay as they are, and LLVM optimizes less. Tests that compare the bits of two
# programs, or a rounding, are marked `optimized`; with --full these tests, and the files below, are
# compiled as users compile them.
CHEAP = "jax_disable_most_optimizations"
# JAX 0.10 also has a compiler of fusions that takes a quarter of the time of these programs.
# A flag that a release does not know ends the process, so another process tries it first.
FUSIONS = "xla_cpu_use_fusion_emitters"
PLAIN_FUSIONS = f"--{FUSIONS}=false"
OVERRIDES: dict[str, bool] = {}  # options of XLA, with --full
NUMERICAL = {
    *("test_ascend", "test_goals", "test_images", "test_jpeg", "test_losses"),
    *("test_metrics", "test_norms", "test_objectives", "test_perceptual", "test_pixels"),
    *("test_probe", "test_robust", "test_train", "test_transforms"),
}
_cheap = False


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Sets the flag in the first process, before the workers of pytest-xdist inherit it."""
    if not hasattr(config, "workerinput"):
        use_plain_fusions()
    if config.getoption("--full"):
        override_fusions()


def use_plain_fusions() -> None:
    """Adds the flag to the environment unless it is there, or this release does not know it."""
    flags = os.environ.get("XLA_FLAGS", "")
    if PLAIN_FUSIONS in flags:
        return
    environment = os.environ | {"XLA_FLAGS": f"{flags} {PLAIN_FUSIONS}"}
    command = [sys.executable, "-c", "import jax; jax.numpy.zeros(1)"]
    if not subprocess.run(command, env=environment, capture_output=True).returncode:
        os.environ["XLA_FLAGS"] = environment["XLA_FLAGS"]


def override_fusions() -> None:
    """Adds `OVERRIDES` to the options of every program for a CPU.

    XLA reads its flags once per process, and JAX has no public option for all programs.
    """
    from jax._src import compiler

    original = compiler.get_compile_options

    def options(*args: Any, **more: Any) -> Any:
        if OVERRIDES and getattr(more.get("backend"), "platform", "") == "cpu":
            more["env_options_overrides"] = OVERRIDES | (more.get("env_options_overrides") or {})
        return original(*args, **more)

    compiler.get_compile_options = options


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Sets the switch before the fixtures of a test run; a change drops the compiled programs."""
    global _cheap
    full, optimized = item.config.getoption("--full"), item.get_closest_marker("optimized")
    cheap = not (optimized or full and item.path.stem in NUMERICAL)
    if cheap != _cheap:
        jax.clear_caches()
        with contextlib.suppress(AttributeError):  # a JAX without the switch compiles as users do
            jax.config.update(CHEAP, cheap)
        _cheap = cheap
        OVERRIDES.clear()
        if full and not cheap and PLAIN_FUSIONS in os.environ.get("XLA_FLAGS", ""):
            OVERRIDES[FUSIONS] = True


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Drops the compiled programs after each file; otherwise a worker would grow to gigabytes."""
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty bucket in memory, read and written as those of clouds are.

    epath knows no scheme for it, so it is added to the tables of the scheme of Google Cloud.
    """
    from etils.epath import backend, gpath, register
    from fsspec.implementations.memory import MemoryFileSystem

    from tl import paths

    class Backend(backend._FileSystemSpecBackend):
        def fs(self, path: object) -> object:
            return self._get_filesystem("memory")

    monkeypatch.setitem(paths.SCHEMES, "memory", "fsspec")
    monkeypatch.setattr(gpath, "_URI_PREFIXES", (*gpath._URI_PREFIXES, "memory://"))
    monkeypatch.setattr(gpath, "_URI_SCHEMES", gpath._URI_SCHEMES | {"memory"})
    monkeypatch.setitem(gpath._URI_MAP_ROOT, "memory://", "/memory/")
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "memory", Backend())
    monkeypatch.setitem(register._URI_PREFIXES_TO_CLS, "memory://", gpath.PosixGPath)
    yield "memory://bucket"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of photographs: `TL_SHARED_DATA`, or shared/data next to the project.

    A test that needs it is skipped without it.
    """
    variable = os.environ.get("TL_SHARED_DATA")
    folder = Path(variable) if variable else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            f"no photographs at {folder}: set TL_SHARED_DATA to the folder of imagenet_samples/"
        )
    return folder


# ------------------------------------------------------------------------------------- training


@pytest.fixture()
def shared_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feature banks of one test run are kept outside the user's cache, and serve all its tests."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Training, validation and test images of two colors, `data.Parts`."""
    from tests import toys
    from tl import data

    spec = toys.color_folder(tmp_path_factory.mktemp("colors") / "set", side=24)
    return data.divide(spec, validation_fraction=0.25, seed=0)
