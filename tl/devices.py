"""Where the work runs: a batch over all devices, several hosts as one, and whether a batch fits into memory.

One axis, "batch": pictures are divided, parameters are everywhere whole. Under `jit` a program then means what it means
on one device: sums and means go over the whole batch, so BatchNorm's statistics are global, and XLA adds what has to be
exchanged. The mesh is in JAX's automatic mode, in which no function has to say how its results lie.

It does not divide parameters, and has no loops.

Example:
  devices.init_distributed()
  mesh = devices.mesh()
  train_state = devices.replicate(train_state, mesh)
  train_state, metrics = step(train_state, devices.shard(batch, mesh))
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def mesh(among: Sequence[Any] | None = None) -> Mesh:
    """These devices, or all, those of other hosts included, along one axis, "batch"."""
    among = jax.devices() if among is None else among
    return jax.make_mesh((len(among),), (AXIS,), axis_types=(AxisType.Auto,), devices=among)


def shard(batch: Any, mesh: Mesh) -> Any:
    """A batch with its axis 0 divided over the mesh.

    Args:
      batch: a pytree of arrays [b ...], all of one b. With several hosts, this host's part of the batch.
      mesh: of `mesh()`.

    Returns:
      The same tree of `jax.Array`; with several hosts, of the whole batch: b times their number.

    Raises:
      ValueError: a b that does not divide over this host's devices, or leaves that do not agree in it.
    """
    sizes = sorted({leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(batch)})
    if len(sizes) > 1 or 0 in sizes:
        raise ValueError(
            f"a batch has one size along axis 0 of all its arrays; found {sizes} (0: no axis, or empty)"
        )
    ours = len(mesh.local_devices)
    if sizes and sizes[0] % ours:
        below, above = sizes[0] // ours * ours, -(-sizes[0] // ours) * ours
        near = f"{below} or {above}" if below else str(above)
        raise ValueError(
            f"a batch of {sizes[0]} cannot be divided over {ours} devices; give a batch size of {near}"
        )
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The tree whole on every device of the mesh. On one device that may be the same buffers: copy before you donate."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def side_by_side(n: int | None = None) -> int:
    """How many images a device computes gradients of at once with no loss of speed: of n that wait in a queue, or of many.

    More than there are, or than divide well into n, leave places idle, and those cost as much as the others. Measured with
    EfficientNet-Lite0 at 224 pixels on two cores: 38 images/s one by one, 45 four by four, no more at 32. ResNet-50 gains
    another quarter at 16 (12.8 against 10.3), which pays only where no image is done before the others. A GPU's or TPU's
    numbers are chosen, not measured.
    """
    if jax.default_backend() != "cpu":
        return 8 if n is not None and n <= 8 else 64
    dearer = 45 / 38  # an image, one by one
    return 1 if n is not None and dearer * n <= 4 * math.ceil(n / 4) else 4


def default_dtype() -> str:
    """In which networks compute unless asked otherwise: "bfloat16" on a GPU or TPU, "float32" on a CPU."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def banner() -> str:
    """One line: `8 x NVIDIA H100 80GB HBM3 (gpu), 79.6 GB each, bfloat16 by default`; hosts where there are several."""
    first = jax.local_devices()[0]
    room = limit()
    words = [
        f"{jax.device_count()} x {first.device_kind} ({first.platform})",
        *([f"{jax.process_count()} hosts"] if jax.process_count() > 1 else []),
        *([f"{_gb(room)} {'free' if first.platform == 'cpu' else 'each'}"] if room else []),
        f"{default_dtype()} by default",
    ]
    return ", ".join(words)


# --- several hosts -----------------------------------------------------------------------------------------------------


def several_hosts(environment: Mapping[str, str]) -> bool:
    """Whether the environment says that this process is one of several.

    Example:
      >>> several_hosts({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}), several_hosts({"SLURM_JOB_ID": "3"})
      (True, False)
    """
    listed = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")  # TPU pods
    counted = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # srun, mpirun
    named = ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS")
    return (
        any("," in environment.get(name, "") for name in listed)
        or any(environment.get(name, "1") not in ("", "0", "1") for name in counted)
        or any(environment.get(name) for name in named)
    )


def init_distributed() -> bool:
    """Joins the other hosts where the environment tells of any; call it before anything asks JAX for its devices.

    JAX finds the hosts of TPU pods, Slurm and Open MPI by itself. Elsewhere give each process `JAX_COORDINATOR_ADDRESS`
    (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. A TPU pod whose machines do not carry
    `TPU_WORKER_HOSTNAMES` is told from a single machine by nothing but a question to the network, so there set
    `TL_DISTRIBUTED=1`; `TL_DISTRIBUTED=0` keeps a process alone in any case.

    Returns:
      Whether there are other hosts; a second call changes nothing.

    Raises:
      ValueError: one of the three variables without the others, or no number.
    """
    asked = os.environ.get("TL_DISTRIBUTED", "")
    if asked == "0" or not (asked or several_hosts(os.environ)):
        return False
    if not jax.distributed.is_initialized():
        given = {
            name: os.environ.get(f"JAX_{name.upper()}") for name in ("num_processes", "process_id")
        }
        wrong = [
            f"JAX_{name.upper()}={value!r}"
            for name, value in given.items()
            if value and not value.isdigit()
        ]
        if wrong or len({value is None for value in given.values()}) > 1:
            wanted = "wanted JAX_NUM_PROCESSES and JAX_PROCESS_ID, both as numbers, or neither"
            raise ValueError(f"got {', '.join(wrong) or given}; {wanted}")
        count, rank = (int(value) if value else None for value in given.values())
        jax.distributed.initialize(num_processes=count, process_id=rank)
    return jax.process_count() > 1


# --- memory ------------------------------------------------------------------------------------------------------------


def needs(program: Any) -> int:
    """Bytes that a compiled program holds on one device while it runs: arguments, results and what lies between.

    Args:
      program: of `jax.jit(f).lower(...)`, or its `.compile()`.

    Example:
      >>> import jax.numpy as jnp
      >>> needs(jax.jit(lambda x: x + 1).lower(jnp.zeros(1000)))
      8000
    """
    compiled = program.compile() if hasattr(program, "compile") else program
    sizes = compiled.memory_analysis()
    both = sizes.alias_size_in_bytes  # donated: argument and result in one place
    return (
        sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes - both
    )


def limit() -> int | None:
    """Bytes that a program may hold on one of this host's devices; None where nobody says.

    On a GPU or TPU what its allocator may take; on a CPU the free memory of the machine or, where less, of its container,
    in equal parts to what JAX takes for devices.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        free = _free_ram(Path("/"))
        return None if free is None else free // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


def largest_batch(
    bytes_of: Callable[[int], int], batch_size: int, *, room: int | None = None
) -> int:
    """The largest of `batch_size`, half of it, a quarter, ... for which there is room.

    Args:
      bytes_of: batch size -> bytes, `lambda b: needs(step.lower(train_state, examples(b)))`; asked from above, and no
        more than needed.
      batch_size: where to begin, at least 1.
      room: bytes; by default `limit()`.

    Returns:
      `batch_size` itself where it fits, or where nobody says how much room there is.

    Raises:
      ValueError: not even one picture fits.

    Example:
      >>> largest_batch(lambda b: b * 10, 64, room=200)
      16
    """
    room = limit() if room is None else room
    size, need = batch_size, 0
    while room is not None and (need := bytes_of(size)) > room:
        if size == 1:
            raise ValueError(
                f"one picture alone needs {_gb(need)} and there are {_gb(room)}; give a smaller --size"
            )
        size //= 2
    return size


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"


def _free_ram(root: Path) -> int | None:
    """Bytes of RAM that can be had without swapping, on Linux; `root` is / except in tests."""

    def number(name: str, word: str = "") -> int | None:
        """The number in a file, or the one after `word` in it."""
        try:
            words = (root / name).read_text().split()
            return int(words[words.index(word) + 1 if word else 0])
        except (OSError, ValueError, IndexError):
            return None  # no such file here, or "max"

    available = number("proc/meminfo", "MemAvailable:")
    free = [] if available is None else [available * 1024]
    v1, v2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"
    for folder, most, used, cached in (
        (v2, "memory.max", "memory.current", "inactive_file"),
        (v1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        bound, taken = number(f"{folder}/{most}"), number(f"{folder}/{used}")
        if bound is not None and taken is not None:
            free.append(max(bound - taken + (number(f"{folder}/memory.stat", cached) or 0), 0))
    return min(free, default=None)
