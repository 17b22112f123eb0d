"""Settings of this process that NumPy and XLA need to be fast on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata

import jax

# Parameters of mallopt(3), from malloc.h of glibc, and their values: never return memory to the
# system, no separate mappings, one heap for all threads.
_MALLOPT = {-1: -1, -4: 0, -8: 1}  # M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX


def keep_memory() -> bool:
    """Keeps freed memory in this process for the next allocation, as `import tl` does.

    XLA on a CPU allocates and frees gigabytes per step. The allocator of glibc returns them to the
    system, which clears each page again, and that can take as long as the arithmetic. The memory of
    the process then stays at its peak. `TL_KEEP_MEMORY=0` in the environment leaves the allocator
    alone. Huge pages (`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`) make long runs slightly faster, but
    on a virtual machine their first use can take seconds, so they are not set.

    Returns:
      Whether the allocator has these settings now; it is False for another allocator than glibc's.
    """
    if os.environ.get("TL_KEEP_MEMORY") == "0" or sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    statuses = [mallopt(parameter, value) for parameter, value in _MALLOPT.items()]
    return all(statuses)


ONEDNN = "onednn-cpu-gomp"
"""The package of the extra `onednn`."""


def onednn_path() -> str:
    """The file of oneDNN: `TL_ONEDNN`, or that of the extra `onednn`; "" without it, or for 0.

    Raises:
      ValueError: `TL_ONEDNN` is not a file.
    """
    chosen = os.environ.get("TL_ONEDNN", "")
    if chosen == "":
        return _onednn_of_extra()
    if chosen != "0" and not os.path.isfile(chosen):
        raise ValueError(
            f"`TL_ONEDNN` is not a file: got {chosen!r}, expected the path of libdnnl.so.3, or 0 "
            "to compute convolutions without oneDNN"
        )
    return "" if chosen == "0" else chosen


@cache
def _onednn_of_extra() -> str:
    try:
        files = metadata.files(ONEDNN) or ()
    except metadata.PackageNotFoundError:
        return ""
    return next((str(file.locate()) for file in files if file.name == "libdnnl.so.3"), "")


def wait_for_results() -> None:
    """Makes computations on CPUs return when they end, if oneDNN is used, as `import tl` does.

    XLA calls oneDNN through Python. A computation in the background that has not ended when Python
    ends would wait for Python forever. It has no effect after the first computation of JAX.
    """
    with contextlib.suppress(ValueError):  # raised when a convolution is traced
        if onednn_path():
            jax.config.update("jax_cpu_enable_async_dispatch", False)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within it, or in a function that it decorates, NumPy and SciPy use one thread.

    The threads of OpenBLAS spin while they wait. While XLA or a data loader runs, they take the
    cores away from each other.
    """
    import threadpoolctl  # searches the loaded libraries on import

    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield
