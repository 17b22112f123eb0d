"""A compiled program as numbers: memory, FLOPs, bytes, and its collectives with their bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from tl import devices

# HLO's names of collectives; an asynchronous one ends in "-start" and "-done".
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
# Communication with the host, in HLO: infeed and outfeed, send and receive, and Python callbacks.
_HOST = re.compile(
    r" (infeed|outfeed|send|recv)\(|is_host_transfer=true"
    r"|custom_call_target=\"[^\"]*(callback|host)[^\"]*\"",
    re.IGNORECASE,
)
_CONVOLUTION = re.compile(
    r"= \(?([a-z]+\d+)\[.*? (?:convolution\(|custom-call\(.*?custom_call_target=\"__cudnn\$conv)"
)
_COPY = re.compile(r"= (\S*?) (copy|transpose)\(")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


class Memory(NamedTuple):
    """Bytes on one device.

    Attributes:
      arguments, outputs: of the program; donated arguments count once, as arguments.
      temporary: activations and other buffers.
      code: the program itself.
    """

    arguments: int
    outputs: int
    temporary: int
    code: int

    @property
    def total(self) -> int:
        """All of them together."""
        return sum(self)


class Collective(NamedTuple):
    """All communication of one kind in a program; that in a loop counts once.

    Attributes:
      name: HLO's name, such as "all-reduce".
      count: number of operations.
      bytes: size of their results on one device.
      largest: the size of the largest one.
    """

    name: str
    count: int
    bytes: int
    largest: int


class Layout(NamedTuple):
    """Properties of a program that cost time without an arithmetic reason.

    Attributes:
      convolutions: number type of the result -> number of convolutions; those of matrices count.
      copies: number of copies and transposes.
      copied: size of their results, bytes.
      host: number of operations that communicate with the host.
    """

    convolutions: dict[str, int]
    copies: int
    copied: int
    host: int


class Compiled(NamedTuple):
    """The figures of a compiled program on one device.

    Attributes:
      memory: its memory.
      flops: floating-point operations; those in a loop of unknown length count once.
      bytes: sum over all operations of the bytes that they read and write, in HBM or in memory on
        the chip. XLA overestimates the traffic to HBM with it.
      collectives: its communication.
      layout: copies, number types and communication with the host.
    """

    memory: Memory
    flops: float
    bytes: float
    collectives: list[Collective]
    layout: Layout


class OutOfMemory(ValueError):
    """The compiler refused a program that does not fit.

    Attributes:
      needed, limit: bytes on one device; 0 if the message does not have them.
    """

    def __init__(self, message: str) -> None:
        self.needed, self.limit = exhausted(message)
        super().__init__(
            f"the program does not fit into the memory of the chip: it needs "
            f"{self.needed / 1e9:.3g} GB of {self.limit / 1e9:.3g} GB; give a smaller batch"
        )


def exhausted(message: str) -> tuple[int, int]:
    """The bytes that a program needs and those that there are, from the compiler's message.

    Example:
      >>> exhausted("Ran out of memory in memory space hbm. Used 18.50G of 15.75G hbm.")
      (19864223744, 16911433728)
      >>> exhausted("total memory required for HLO temporaries (40.25G) exceeds available HBM (1M)")
      (43218108416, 1048576)
    """
    number = r"([\d.]+)([KMGT]?)"
    forms = (rf"Used {number} of {number} hbm", rf"\({number}\) exceeds available HBM \({number}\)")
    match = next(filter(None, (re.search(form, message) for form in forms)), None)
    if not match:
        return 0, 0
    size = lambda number, unit: int(float(number) * 1024 ** " KMGT".index(unit or " "))
    return size(match[1], match[2]), size(match[3], match[4])


def compile_and_measure(lowered: Any, devices: int = 1) -> Compiled:
    """Compiles a lowered program and reads its figures.

    XLA does not count the operations of cuDNN's convolutions; those of a GPU are then the products
    in the program before optimization.

    Args:
      lowered: from `jax.jit(f).lower(...)`.
      devices: number of devices among which the program divides its work.

    Raises:
      OutOfMemory: the program does not fit into the memory of the device.
    """
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(str(error)) from error
    measured = measure(program)
    if measured.flops:
        return measured
    return measured._replace(flops=products(lowered.as_text()) / devices)


def measure(program: Any) -> Compiled:
    """The figures of a compiled program."""
    sizes, costs = program.memory_analysis(), program.cost_analysis() or {}
    total = devices.memory_needed(program)
    arguments, temporary = sizes.argument_size_in_bytes, sizes.temp_size_in_bytes
    memory = Memory(
        arguments, total - arguments - temporary, temporary, sizes.generated_code_size_in_bytes
    )
    text = program.as_text()
    return Compiled(
        memory,
        float(costs.get("flops", 0.0)),
        float(costs.get("bytes accessed", 0.0)),
        collectives(text),
        layout(text),
    )


def collectives(text: str) -> list[Collective]:
    """The communication in a program.

    Args:
      text: optimized HLO, from `as_text()` of a compiled program.

    Example:
      >>> text = "%r = f32[2,3]{1,0:T(8,128)} all-reduce(%x), to_apply=%add"
      >>> collectives(text)
      [Collective(name='all-reduce', count=1, bytes=24, largest=24)]
    """
    sizes: dict[str, list[int]] = {}
    for name, size in _operations(text):
        sizes.setdefault(name, []).append(size)
    rows = [Collective(name, len(all_), sum(all_), max(all_)) for name, all_ in sizes.items()]
    return sorted(rows, key=lambda row: -row.bytes)


def _operations(text: str) -> Iterator[tuple[str, int]]:
    """The name and the bytes of each collective."""
    for line in text.splitlines():
        match = _OPERATION.search(line)
        if not match:
            continue
        arrays = [_nbytes(bits or "8", shape) for _, bits, shape in _ARRAY.findall(match[1])]
        # The start of one that is not a reduction has its operands in its result, too.
        whole = match[3] and match[2] != "all-reduce"
        yield match[2], max(arrays, default=0) if whole else sum(arrays)


def products(text: str) -> float:
    """The floating-point operations of the convolutions and matrix products in a program.

    Args:
      text: StableHLO, from `as_text()` of a lowered program; a loop counts once.

    Example:
      >>> import jax.numpy as jnp
      >>> products(jax.jit(jnp.dot).lower(jnp.ones((2, 3)), jnp.ones((3, 4))).as_text())
      48.0
    """
    total = 0.0
    for line in text.splitlines():
        kind = "convolution" if " stablehlo.convolution(" in line else "dot_general"
        if f" stablehlo.{kind}" not in line:
            continue
        left, right, result = (
            [int(side) for side in shape.split("x")[:-1]]
            for shape in re.findall(r"tensor<([^>]*)>", line.rpartition(" : ")[2])
        )
        if kind == "convolution":
            # The axes of the kernel, of which all but that of the output are summed over.
            axes = re.findall(r"\w+", line.partition("]x[")[2].partition("]")[0])
            summed = math.prod(right) // right[axes.index("o")]
            dilated = re.search(r"lhs_dilate = \[([\d, ]*)\]", line)
            summed /= math.prod(map(int, dilated[1].split(","))) if dilated else 1
        else:
            axes = re.search(r"contracting_dims = \[([\d, ]*)\]", line)
            sides = axes[1].split(",") if axes and axes[1] else []
            summed = math.prod(left[int(side)] for side in sides)
        total += 2.0 * math.prod(result) * summed
    return total


def layout(text: str) -> Layout:
    """The copies, number types and communication with the host in a program.

    Args:
      text: as for `collectives`.

    Example:
      >>> layout("%c = bf16[2,4]{1,0} convolution(%x, %w), dim_labels=bf_io->bf")
      Layout(convolutions={'bf16': 1}, copies=0, copied=0, host=0)
    """
    convolutions: dict[str, int] = {}
    copied, host = [], 0
    for line in text.splitlines():
        if match := _CONVOLUTION.search(line):
            convolutions[match[1]] = convolutions.get(match[1], 0) + 1
        elif match := _COPY.search(line):
            copied += [_nbytes(bits or "8", shape) for _, bits, shape in _ARRAY.findall(match[1])]
        host += bool(_HOST.search(line))
    return Layout(convolutions, len(copied), sum(copied), host)


def _nbytes(bits: str, shape: str) -> int:
    return math.prod(map(int, filter(None, shape.split(",")))) * int(bits) // 8
