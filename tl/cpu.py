"""Settings of this process that NumPy and XLA need to be fast on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

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


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within it, or in a function that it decorates, NumPy and SciPy use one thread.

    The threads of OpenBLAS spin while they wait. While XLA or a data loader runs, they take the
    cores away from each other.
    """
    import threadpoolctl  # searches the loaded libraries on import

    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield
