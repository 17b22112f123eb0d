"""Devices: batches sharded over all of them, and the memory that a program needs.

The mesh has one axis, "batch": images are sharded, and parameters are replicated or, by the rules
`FSDP`, sharded too. A program under `jit`
then computes the same values as on one device: sums and means are over the whole batch, so
BatchNorm's statistics are global, and XLA inserts the communication. The axis has JAX's type
`Auto`, with which XLA chooses the sharding of intermediate values.

Training loops are in `tl.training`; `tl.hosts` joins the processes of several hosts.

Example:
  hosts.join()
  mesh = devices.mesh()
  train_state = devices.replicate(train_state, mesh)
  train_state, metrics = step(train_state, devices.shard(batch, mesh))
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import functools
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tl import paths
from tl.paths import shortened

AXIS = "batch"


def available() -> list[Any]:
    """All devices of JAX.

    Raises:
      ValueError: JAX finds none, such as for an unknown platform in `JAX_PLATFORMS`.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # an assertion for a platform without a plugin
        reason = shortened(" ".join(str(error).split()) or "it has no plugin for it", 300)
        raise ValueError(
            f"JAX cannot start with JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}, "
            f"expected cpu, cuda, tpu or no value: {reason}"
        ) from error


def use_compile_cache() -> None:
    """Caches programs that take 0.02 seconds or more to compile on disk, for later runs.

    `JAX_COMPILATION_CACHE_DIR` names another folder than that of `tl.paths.cache_dir`. A folder
    that cannot be written is a `CacheWarning`; nothing is cached then.
    """
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if "://" in chosen:  # a bucket
        return
    folder = Path(chosen) if chosen else paths.cache_dir() / "xla"
    if paths.is_url(folder):  # JAX makes it, and a program that it cannot write is a remark
        jax.config.update("jax_compilation_cache_dir", str(folder))
        return
    try:
        if paths.printable(str(folder)) != str(folder):  # every compilation would fail
            raise OSError(errno.EILSEQ, "its name is not UTF-8")
        folder.mkdir(parents=True, exist_ok=True)
        check = folder / f".check.{os.getpid()}"
        check.touch()
        check.unlink()
    except OSError as error:
        paths.warn_of_cache(folder, error, "JAX_COMPILATION_CACHE_DIR" if chosen else "")
        jax.config.update("jax_compilation_cache_dir", None)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if not chosen:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)


def compile_cache_remark(reading: bool) -> str:
    """The remark on the cache of compiled programs, of which JAX cannot read or write an entry."""
    folder = paths.ending(jax.config.jax_compilation_cache_dir, 60)  # type: ignore[attr-defined]
    action = "read" if reading else "written"
    return (
        f"a program in the cache {folder!r} cannot be {action}, so it is compiled in each run; "
        "delete the folder, or set TL_CACHE to another one"
    )


def mesh(among: Sequence[Any] | None = None) -> Mesh:
    """A mesh with one axis, "batch".

    Args:
      among: the devices; default: all, including those of other hosts.
    """
    among = jax.devices() if among is None else among
    return jax.make_mesh((len(among),), (AXIS,), axis_types=(AxisType.Auto,), devices=among)


def own_rows(b: int, mesh: Mesh) -> np.ndarray:
    """The rows of a sharded batch that the devices of this process hold, i[m], ascending.

    Args:
      b: rows of the whole batch.
      mesh: from `mesh()`.

    Raises:
      ValueError: b is not a multiple of the number of devices.
    """
    check_batch(b, mesh.size)
    held = NamedSharding(mesh, PartitionSpec(AXIS)).addressable_devices_indices_map((b,))
    return np.sort(np.concatenate([np.arange(b)[rows] for rows in held.values()]))


def check_batch(b: int, count: int, what: str = "a batch") -> None:
    """Checks that a batch can be sharded.

    Args:
      b: rows of the whole batch.
      count: number of devices.
      what: the batch in the error.

    Raises:
      ValueError: b is not a multiple of the number of devices.
    """
    if b % count:
        below, above = b // count * count, -(-b // count) * count
        near = f"{below} or {above}" if below else str(above)
        raise ValueError(
            f"{what} cannot be sharded: got {b} rows, expected a multiple of {count}, the "
            f"number of devices; give a batch size of {near}"
        )


def shard(batch: Any, mesh: Mesh) -> Any:
    """Shards axis 0 of a batch over a mesh.

    Args:
      batch: pytree of arrays [b ...] with one b. With several processes, the rows of this process
        (`own_rows`).
      mesh: from `mesh()`.

    Returns:
      The same tree of `jax.Array`. With several processes it holds the whole batch.

    Raises:
      ValueError: b is not a multiple of the number of this process's devices, or the leaves differ
        in b.
    """
    sizes = sorted({leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(batch)})
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(
            f"the arrays of a batch differ along axis 0: got sizes {sizes} (0 is a scalar or empty "
            "array), expected one size"
        )
    if not sizes:
        return batch
    local = len(mesh.local_devices)
    check_batch(sizes[0], local)
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    whole = sizes[0] // local * mesh.size
    rows = own_rows(whole, mesh)

    def put(leaf: Any) -> jax.Array:
        own = np.asarray(leaf)
        part = lambda index: own[np.searchsorted(rows, np.arange(whole)[index[0]])]
        return jax.make_array_from_callback((whole, *own.shape[1:]), sharding, part)

    return jax.tree.map(put, batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies a tree, which all processes have, to every device of a mesh.

    On one device the result can share buffers with `tree`; copy it before they are donated.
    """
    return place(tree, shardings(tree, mesh))


FSDP: tuple[tuple[str, int | None], ...] = ((r".*\bkernel\b.*", -1), (r".*", None))
"""Rules of fully sharded data parallelism: the first regular expression that matches the name of a
leaf gives the axis that is divided, here the output channels of a kernel; None: a copy everywhere.
"""


def shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, int | None]] = ()) -> Any:
    """A sharding for each leaf of a tree.

    Args:
      tree: pytree of arrays, such as a train state with parameters and optimizer state.
      mesh: from `mesh()`.
      rules: such as `FSDP`; without any, every device has a copy. A leaf whose axis the number of
        devices does not divide is copied too.

    Returns:
      The same tree of `NamedSharding`.
    """

    def of_leaf(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axis = next((axis for rule, axis in rules if re.fullmatch(rule, name)), None)
        if axis is None or leaf.ndim == 0 or leaf.shape[axis] % mesh.size:
            return NamedSharding(mesh, PartitionSpec())
        dims = [None] * leaf.ndim
        dims[axis] = AXIS  # type: ignore[call-overload]
        return NamedSharding(mesh, PartitionSpec(*dims))

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def place(tree: Any, shardings: Any) -> Any:
    """Puts the leaves of a tree, which all processes have, on devices, with a sharding for each."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, tree, shardings)


def put_local(tree: Any) -> Any:
    """Copies a tree to the devices of this process, on which `shard_rows` works."""
    if jax.local_device_count() == 1:
        return jax.device_put(tree)
    return jax.device_put(tree, NamedSharding(mesh(jax.local_devices()), PartitionSpec()))


def fetch(tree: Any) -> Any:
    """The arrays of a tree on the host, whole, in every process; every process must call it."""

    def whole(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(whole, tree)


def shard_rows(run: Callable[..., Any]) -> Callable[..., Any]:
    """Jits `(variables, rows [b ...]) -> rows [b ...]` and splits the rows over the local devices.

    Rows are padded with copies of the first one to a multiple of the number of devices. With
    several processes, each works on its own rows.
    """
    unsharded = jax.jit(run)

    @functools.cache
    def sharded(count: int) -> Callable[..., Any]:
        among = mesh(jax.local_devices()[:count])
        rows, replicated = PartitionSpec(AXIS), PartitionSpec()
        return jax.jit(
            jax.shard_map(
                run, mesh=among, in_specs=(replicated, rows), out_specs=rows, check_vma=False
            )
        )

    def call(variables: Any, rows: Any) -> Any:
        count, n = jax.local_device_count(), len(jax.tree.leaves(rows)[0])
        traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((variables, rows)))
        if count == 1 or n == 1 or traced:
            return unsharded(variables, rows)
        outputs = sharded(count)(variables, pad_rows(rows, -n % count))
        return jax.tree.map(lambda leaf: leaf[:n], outputs)

    call.lower = unsharded.lower  # type: ignore[attr-defined]  # of one device
    return call


def pad_rows(rows: Any, count: int) -> Any:
    """Appends `count` copies of the first row to every leaf."""
    return jax.tree.map(
        lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[:1], count, axis=0)]), rows
    )


_PLATFORM: contextvars.ContextVar[str] = contextvars.ContextVar("platform", default="")


def platform() -> str:
    """The platform that programs are made for: JAX's own, or that of `compile_for`."""
    return _PLATFORM.get() or jax.default_backend()


@contextlib.contextmanager
def compile_for(platform: str) -> Iterator[None]:
    """Within it, defaults such as the number type are those of another platform.

    Example:
      >>> with compile_for("tpu"):
      ...   default_dtype()
      'bfloat16'
    """
    token = _PLATFORM.set(platform)
    try:
        yield
    finally:
        _PLATFORM.reset(token)


def images_at_once(n: int | None = None) -> int:
    """The number of images for which a device should compute gradients at once.

    Slots without an image cost as much as the others, so the number depends on `n`. Measured with
    EfficientNet-Lite0 at 224 pixels on two cores: 38 images/s one at a time, 45 with 4 and with 32.
    ResNet-50 is another quarter faster with 16 (12.8 instead of 10.3 images/s), which helps only if
    no image finishes before the others. The numbers for a GPU or TPU are chosen, not measured.

    Args:
      n: number of images to process; default: many.
    """
    if platform() != "cpu":
        return 8 if n is not None and n <= 8 else 64
    single_cost = 45 / 38  # cost of an image one at a time, relative to four
    return 1 if n is not None and single_cost * n <= 4 * math.ceil(n / 4) else 4


def default_dtype() -> str:
    """The default compute type of networks: "bfloat16" on a GPU or TPU, "float32" on a CPU."""
    return "float32" if platform() == "cpu" else "bfloat16"


# --- memory -----------------------------------------------------------------------------------


def memory_needed(program: Any) -> int:
    """Bytes that a program needs on one device: arguments, results and temporary buffers.

    Args:
      program: from `jax.jit(f).lower(...)`, or its `.compile()`.

    Example:
      >>> import jax.numpy as jnp
      >>> memory_needed(jax.jit(lambda x: x + 1).lower(jnp.zeros(1000)))
      8000
    """
    compiled = program.compile() if hasattr(program, "compile") else program
    sizes = compiled.memory_analysis()
    # Donated arguments share memory with results.
    shared = sizes.alias_size_in_bytes
    total = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return total - shared


def memory_limit() -> int | None:
    """Bytes that a program can use on one of this host's devices; None if unknown.

    On a GPU or TPU this is the limit of the allocator. On a CPU it is the free memory of the
    machine or of its container, whichever is less, divided by the number of simulated devices.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        free = _free_ram(Path("/"))
        return None if free is None else free // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


def largest_batch(
    bytes_of: Callable[[int], int], batch_size: int, *, room: int | None = None
) -> int:
    """The largest of `batch_size`, `batch_size // 2`, `batch_size // 4`, ... that fits into memory.

    Args:
      bytes_of: batch size -> bytes, such as `lambda b: memory_needed(step.lower(train_state,
        examples(b)))`. Called with decreasing sizes until one fits.
      batch_size: the first size to try, at least 1.
      room: available bytes; default: `memory_limit()`.

    Returns:
      The batch size; `batch_size` itself if the limit is unknown.

    Raises:
      ValueError: one image does not fit.

    Example:
      >>> largest_batch(lambda b: b * 10, 64, room=200)
      16
    """
    room = memory_limit() if room is None else room
    size, need = batch_size, 0
    while room is not None and (need := bytes_of(size)) > room:
        if size == 1:
            raise ValueError(
                f"one image does not fit into memory: it needs {_gb(need)}, got {_gb(room)}; "
                "give a smaller `size`"
            )
        size //= 2
    return size


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"


def _free_ram(root: Path) -> int | None:
    """Bytes of RAM that are available without swapping, on Linux; `root` is / except in tests."""

    def number(name: str, word: str = "") -> int | None:
        """The number in a file, or the number after `word` in it."""
        try:
            words = (root / name).read_text().split()
            return int(words[words.index(word) + 1 if word else 0])
        except (OSError, ValueError, IndexError):
            return None  # no such file, or "max"

    available = number("proc/meminfo", "MemAvailable:")
    free = [] if available is None else [available * 1024]
    v1, v2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"
    for folder, maximum, current, cached in (
        (v2, "memory.max", "memory.current", "inactive_file"),
        (v1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        bound, used = number(f"{folder}/{maximum}"), number(f"{folder}/{current}")
        if bound is not None and used is not None:
            free.append(max(bound - used + (number(f"{folder}/memory.stat", cached) or 0), 0))
    return min(free, default=None)
