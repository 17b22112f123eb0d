"""Strict JAX, programs that compile cheaply, repeatable hypothesis, and the shared photographs, for every test."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # pytest-xdist's workers share one GPU

import hypothesis
import jax
import pytest
from jax._src import compiler

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("tl", deadline=None, derandomize=True, max_examples=20, database=None)
hypothesis.settings.load_profile("tl")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--optimised", action="store_true", help="compile every test's programs as users' are: slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without torch (the `parity` extra), tests marked `parity` are left out rather than skipped one by one."""
    if importlib.util.find_spec("torch") is None:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("parity")])
        items[:] = [item for item in items if not item.get_closest_marker("parity")]


# --- cheap programs ----------------------------------------------------------------------------------------------------

# XLA compiles for longer than most tests run. The graph that it is given and its own passes stay as they are; only the
# translation to machine code is done with less care, in a quarter of the time or less. Where a promise is about equal
# bits of different programs, or of a rounding, the translation may decide it: such tests are marked `optimised`.
CHEAP = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
_compile_options = compiler.get_compile_options  # private: JAX has options for one `jit`, and none for all of them
_cheap = False


def _cheap_options(*args: Any, env_options_overrides: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    cheap = CHEAP if _cheap and jax.default_backend() == "cpu" else {}
    return _compile_options(*args, env_options_overrides={**cheap, **(env_options_overrides or {})}, **kwargs)


compiler.get_compile_options = _cheap_options


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Chooses the translation before the test's fixtures run; programs of the other kind are forgotten."""
    global _cheap
    cheap = not (item.config.getoption("--optimised") or item.get_closest_marker("optimised"))
    if cheap != _cheap:
        jax.clear_caches()
        _cheap = cheap


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs, from `TL_SHARED_DATA` or beside the project; the test is skipped without it."""
    given = os.environ.get("TL_SHARED_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no photographs at {folder}: set TL_SHARED_DATA to the folder that holds imagenet_samples/")
    return folder
