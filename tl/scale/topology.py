"""Accelerators that are not there: their chips, and JAX devices to compile for.

The PyPI package `libtpu` (the extra `tpu`) holds the TPU compiler, which runs on any Linux machine
with an x86-64 processor. JAX's CUDA plugin (the extra `cuda`) compiles without a GPU for a GPU that
is described to it. This module compiles nothing; `tl.scale.compiled` does.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax

from tl.paths import nearest, shortened


class Chip(NamedTuple):
    """Figures of a TPU chip or a GPU, which is one JAX device.

    Attributes:
      memory: bytes that a program may use. TPU: from the compiler's message about a program that
        does not fit (libtpu 0.0.42.1), 0.25 to 0.75 GiB less than there are. GPU: 75 %, the part
        that JAX reserves by default.
      flops: peak rate in bfloat16, without sparsity, FLOP/s.
      bandwidth: of the memory, bytes/s.
      interconnect: of all links between chips together, in both directions, bytes/s.
      axes: axes of a slice's grid of chips; GPUs of a host are on one.
      source: document with the other figures.
      target: description of a GPU for XLA; "" for a TPU.
    """

    memory: float
    flops: float
    bandwidth: float
    interconnect: float
    axes: int
    source: str
    target: str = ""

    @property
    def platform(self) -> str:
        """JAX's name of the platform, as `devices.platform` returns it."""
        return "gpu" if self.target else "tpu"


GIB = 2**30
_DOCS = "docs.cloud.google.com/tpu/docs/"


def _gpu(
    memory: float,
    flops: float,
    bandwidth: float,
    interconnect: float,
    source: str,
    *,
    capability: tuple[int, int],
    cores: int,
    units: int,
    clock: float,
    shared: int,
    cache: int,
) -> Chip:
    """A GPU, with its description as text of XLA's protocol buffer `GpuTargetConfigProto`.

    Args:
      memory: all bytes that there are.
      flops, bandwidth, interconnect, source: as in `Chip`.
      capability: CUDA compute capability.
      cores: multiprocessors.
      units: float32 units per multiprocessor.
      clock: GHz.
      shared: shared memory of a multiprocessor, KiB; 1 less for a block.
      cache: L2 cache, MiB.
    """
    target = f"""gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
      shared_memory_per_block: 49152 shared_memory_per_block_optin: {(shared - 1) * 1024}
      shared_memory_per_core: {shared * 1024} core_count: {cores} fpus_per_core: {units}
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      registers_per_core_limit: 65536 registers_per_block_limit: 65536 clock_rate_ghz: {clock}
      l2_cache_size: {cache * 2**20} memory_bandwidth: {bandwidth:.0f}
      device_memory_size: {memory:.0f}
      cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 }}"""
    return Chip(0.75 * memory, flops, bandwidth, interconnect, 1, source, target)


_A100: dict[str, Any] = {
    "capability": (8, 0),
    "cores": 108,
    "units": 64,
    "clock": 1.41,
    "shared": 164,
    "cache": 40,
}
_H100: dict[str, Any] = {
    "capability": (9, 0),
    "cores": 132,
    "units": 128,
    "clock": 1.98,
    "shared": 228,
    "cache": 50,
}
_SHEET = "NVIDIA's data sheet of the {}, SXM, {} GB"

CHIPS: dict[str, Chip] = {
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 400e9, 2, _DOCS + "v5e"),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, 1200e9, 3, _DOCS + "v5p"),
    "v6e": Chip(31.25 * GIB, 918e12, 1638e9, 800e9, 2, _DOCS + "v6e"),
    "a100": _gpu(80e9, 312e12, 2039e9, 600e9, _SHEET.format("A100", 80), **_A100),
    "h100": _gpu(80e9, 989e12, 3350e9, 900e9, _SHEET.format("H100", 80), **_H100),
    "h200": _gpu(141e9, 989e12, 4800e9, 900e9, _SHEET.format("H200", 141), **_H100),
}
"""Name in a topology -> the chip. libtpu shows those of TPU v4 and older as two devices each."""

# Shapes of slices that Google Cloud lists on the pages above, up to 256 chips, and numbers of GPUs
# on a host.
SHAPES: dict[int, tuple[str, ...]] = {
    1: ("1", "2", "4", "8"),
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
}


class Topology(NamedTuple):
    """A slice to compile for.

    Attributes:
      name: such as "v5e:4x4".
      chip: its chip.
      chips: number of chips.
      devices: JAX devices, which can be compiled for but hold no arrays.
    """

    name: str
    chip: Chip
    chips: int
    devices: tuple[Any, ...]

    @property
    def hosts(self) -> int:
        """Number of machines."""
        return len({device.process_index for device in self.devices})


def names() -> list[str]:
    """Topologies that exist, up to 256 chips."""
    return [f"{name}:{shape}" for name, chip in CHIPS.items() for shape in SHAPES[chip.axes]]


def chip_of(name: str) -> tuple[Chip, int]:
    """The chip of a topology, and the number of chips.

    Args:
      name: chip and shape, such as "v5e:4x4" or "h100:8"; a shape of two axes of v5p has depth 1.

    Raises:
      ValueError: an unknown name; the message has the nearest ones.

    Example:
      >>> chip_of("v5p:2x2x2")[1]
      8
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){0,2})", name)
    if match and match[1] in CHIPS:
        chip, shape = CHIPS[match[1]], [int(side) for side in match[2].split("x")]
        if chip.axes == 1:
            exists = len(shape) == 1 and 1 <= shape[0] <= 8
        else:  # a host has 2x2 chips, or a single one
            exists = 2 <= len(shape) <= chip.axes and all(shape)
            exists &= math.prod(shape) == 1 or not any(side % 2 for side in shape[:2])
        if exists:
            return chip, math.prod(shape)
    raise ValueError(
        f"unknown `topology`: got {name!r}, expected a chip of {', '.join(CHIPS)} and the shape of "
        f"the slice; nearest: {nearest(name, names())}"
    )


def stay_on_cpu() -> None:
    """Keeps this process off accelerators; call it before JAX's devices are used."""
    jax.config.update("jax_platforms", "cpu")


def describe(name: str) -> Topology:
    """A slice, or GPUs of a host, to compile for.

    Args:
      name: as for `chip_of`.

    Raises:
      ValueError: an unknown name, the compiler is not installed, or it does not know the chips.
    """
    chip, chips = chip_of(name)
    options: dict[str, Any] = {}
    if chip.target:
        extra, packages = "cuda", ("jax_cuda13_plugin", "jax_cuda12_plugin")
        options = {"target_config": chip.target, "topology": f"1x1x{chips}"}
    else:
        extra, packages = "tpu", ("libtpu",)
        if chips == 1:  # a host of its own
            options = {"chips_per_host_bounds": (1, 1, 1)}
    if not any(importlib.util.find_spec(package) for package in packages):
        raise ValueError(
            f"`topology={name}` needs the compiler of {extra.upper()}, which is not installed; "
            f'install it with: pip install "tl[{extra}]"'
        )
    # Otherwise libtpu asks the network which TPU this machine has.
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # a lock on a TPU that is not used here
    }
    for variable, value in settings.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    platform = "cuda" if chip.target else "tpu"
    try:
        described = topologies.get_topology_desc(topology_name=name, platform=platform, **options)
    except (RuntimeError, NotImplementedError) as error:
        reason = shortened(" ".join(str(error).split()), 200)
        raise ValueError(
            f"the compiler of this version does not know `topology={name}`: {reason}; try "
            f"{nearest(name, names())}"
        ) from error
    # JAX can write programs for other devices into its cache, but not read them.
    jax.config.update("jax_enable_compilation_cache", False)
    return Topology(name, chip, chips, tuple(described.devices))
