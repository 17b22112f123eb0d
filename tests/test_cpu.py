"""The allocator keeps freed memory, and solvers use one thread of BLAS."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import threadpoolctl
from scipy import linalg

from tl import cpu
from tl.training import probe

LINUX = pytest.mark.skipif(
    not sys.platform.startswith("linux") or "glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")),
    reason="settings of the allocator of glibc",
)

# Page faults of the second of two equal allocations of 64 MB (16,384 pages of 4 KiB).
PROGRAM = """
import resource
import tl

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"1" * 64_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def faults(**environment: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "GLIBC_TUNABLES": "", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(run.stdout)


@LINUX
def test_memory_that_is_freed_is_not_cleared_again() -> None:
    assert faults() < 100


@LINUX
@pytest.mark.parametrize("environment", [{"TL_KEEP_MEMORY": "0"}])
def test_the_allocator_can_be_left_alone(environment: dict[str, str]) -> None:
    # Huge pages, if the system uses them for all memory, need fewer faults.
    assert faults(**environment) > 25


def blas_threads() -> set[int]:
    return {x["num_threads"] for x in threadpoolctl.threadpool_info() if x["user_api"] == "blas"}


def test_blas_has_one_thread_within_and_as_many_as_before_after() -> None:
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with cpu.one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == before


def test_a_probe_uses_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, solve = [], linalg.eigh

    def eigh(*arguments, **options):
        seen.append(blas_threads())
        return solve(*arguments, **options)

    monkeypatch.setattr(linalg, "eigh", eigh)
    features = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        probe.fit(features, np.arange(12) % 2, 2)
    assert seen and set.union(*seen) == {1}
