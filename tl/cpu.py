"""Settings of this process that NumPy and XLA need to be fast on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Parameters of mallopt(3), from malloc.h of glibc, and their values: never return memory to the
# system, no separate mappings, one heap for all threads.
_MALLOPT = {-1: -1, -4: 0, -8: 1}  # M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX
_MADV_HUGEPAGE = 14  # of madvise(2)
_HUGE_PAGE = 2**21


def keep_memory() -> bool:
    """Keeps freed memory in this process for the next allocation, as `import tl` does.

    XLA on a CPU allocates and frees gigabytes per step. The allocator of glibc returns them to the
    system, which clears each page again, and that can take as long as the arithmetic. The memory of
    the process then stays at its peak. It is also allocated in huge pages, where the system leaves
    that to the process, because the processor finds those faster. `TL_KEEP_MEMORY=0` in the
    environment leaves the allocator alone.

    Returns:
      Whether the allocator has these settings now; it is False for another allocator than glibc's.
    """
    if os.environ.get("TL_KEEP_MEMORY") == "0" or sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # musl
        return False
    statuses = [libc.mallopt(parameter, value) for parameter, value in _MALLOPT.items()]
    if all(statuses):
        _use_huge_pages(libc)
    return all(statuses)


def _use_huge_pages(libc: ctypes.CDLL) -> None:
    """Extends the heap, and advises huge pages there; memory that is not used takes none.

    The tunable of glibc (`glibc.malloc.hugetlb=1`) can only be set before a process starts. The
    heap has half of the memory of the machine. Nothing is extended where addresses are limited
    (`ulimit -v`), or where the system counts memory that is not used.
    """
    import resource

    with contextlib.suppress(OSError):
        if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
            return
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    libc.malloc.restype = ctypes.c_void_p
    address = libc.malloc(ctypes.c_size_t(size))
    if address is None:
        return
    first = -(-address // _HUGE_PAGE) * _HUGE_PAGE
    length = (address + size - first) // _HUGE_PAGE * _HUGE_PAGE
    libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _MADV_HUGEPAGE)
    libc.free(ctypes.c_void_p(address))


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within it, or in a function that it decorates, NumPy and SciPy use one thread.

    The threads of OpenBLAS spin while they wait. While XLA or a data loader runs, they take the
    cores away from each other.
    """
    import threadpoolctl  # searches the loaded libraries on import

    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield
