"""TPU slices that are not there: their chips, and JAX devices to compile for.

The PyPI package `libtpu` (the extra `tpu`) holds the TPU compiler, which runs on any Linux machine
with an x86-64 processor. This module compiles nothing; `tl.scale.compiled` does.
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
    """Figures of a TPU chip, which is one JAX device.

    Attributes:
      memory: bytes of HBM that a program may use, from the compiler's message about a program that
        does not fit (libtpu 0.0.42.1); 0.25 to 0.75 GiB less than there are.
      flops: peak rate in bfloat16, FLOP/s.
      bandwidth: of HBM, bytes/s.
      interconnect: of all links between chips together, in both directions, bytes/s.
      axes: axes of a slice's grid of chips; a chip has two links per axis.
      source: the page with the other figures.
    """

    memory: float
    flops: float
    bandwidth: float
    interconnect: float
    axes: int
    source: str


GIB = 2**30
_DOCS = "docs.cloud.google.com/tpu/docs/"

CHIPS: dict[str, Chip] = {
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 400e9, 2, _DOCS + "v5e"),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, 1200e9, 3, _DOCS + "v5p"),
    "v6e": Chip(31.25 * GIB, 918e12, 1638e9, 800e9, 2, _DOCS + "v6e"),
}
"""Name in a topology -> the chip. libtpu shows those of v4 and older as two devices each."""

# Shapes of slices that Google Cloud lists on the pages above, up to 256 chips.
SHAPES: dict[int, tuple[str, ...]] = {
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
    """The topologies that Google Cloud offers, up to 256 chips."""
    return [f"{name}:{shape}" for name, chip in CHIPS.items() for shape in SHAPES[chip.axes]]


def chip_of(name: str) -> tuple[Chip, int]:
    """The chip of a topology, and the number of chips.

    Args:
      name: chip and shape, such as "v5e:4x4"; a shape of two axes of v5p has depth 1.

    Raises:
      ValueError: an unknown name; the message has the nearest ones.

    Example:
      >>> chip_of("v5p:2x2x2")[1]
      8
    """
    match = re.fullmatch(r"(\w+):(\d+)x(\d+)(?:x(\d+))?", name)
    if match and match[1] in CHIPS:
        shape = [int(side or 1) for side in match.groups()[1:]]
        # A host has 2x2 chips, or a single one.
        whole = all(shape) and (not (shape[0] % 2 or shape[1] % 2) or math.prod(shape) == 1)
        if whole and not (match[4] and CHIPS[match[1]].axes == 2):
            return CHIPS[match[1]], math.prod(shape)
    raise ValueError(
        f"unknown `topology`: got {name!r}, expected a chip of {', '.join(CHIPS)} and the shape of "
        f"the slice; nearest: {nearest(name, names())}"
    )


def stay_on_cpu() -> None:
    """Keeps this process off accelerators; call it before JAX's devices are used."""
    jax.config.update("jax_platforms", "cpu")


def describe(name: str) -> Topology:
    """A slice to compile for.

    Args:
      name: as for `chip_of`.

    Raises:
      ValueError: an unknown name, `libtpu` is not installed, or it does not know the slice.
    """
    chip, chips = chip_of(name)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"`topology={name}` needs the TPU compiler, which is not installed; install it with: "
            'pip install "tl[tpu]"'
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

    # A single chip is a host of its own.
    bounds: dict[str, Any] = {} if chips > 1 else {"chips_per_host_bounds": (1, 1, 1)}
    try:
        described = topologies.get_topology_desc(topology_name=name, platform="tpu", **bounds)
    except (RuntimeError, NotImplementedError) as error:
        reason = shortened(" ".join(str(error).split()), 200)
        raise ValueError(
            f"the TPU compiler of this version does not know `topology={name}`: {reason}; try "
            f"{nearest(name, names())}"
        ) from error
    # JAX can write programs for other devices into its cache, but not read them.
    jax.config.update("jax_enable_compilation_cache", False)
    return Topology(name, chip, chips, tuple(described.devices))
