"""The plan of a command: its step, compiled for a TPU slice, and the time that it takes at least.

`tl.pages.plan` draws its page.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tl.scale import estimate
from tl.scale.compiled import Compiled, OutOfMemory, compile_and_measure
from tl.scale.programs import Program
from tl.scale.topology import Topology


def plan(
    program: Program,
    topology: Topology,
    *,
    compiles: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compiles a step for a slice and reports what it needs.

    A batch that does not fit is halved until one does. The figures are then those of that batch,
    `compiled_batch`.

    Args:
      program: the step.
      topology: the slice.
      compiles: further compilations that look for the largest batch; each takes as long as the
        first. 0 extrapolates.
      say: called with lines of text.

    Returns:
      The content of `result.json`, without the network's name.

    Raises:
      ValueError: the batch is not a multiple of `program.unit`, or not even that many images fit.
    """
    batch, unit, count = program.batch, program.unit, len(topology.devices)
    if batch % unit:
        raise ValueError(
            f"`batch_size` must be a multiple of {unit}, the devices of `topology="
            f"{topology.name}` times the parts of a batch: got {batch}"
        )
    refused: dict[int, float] = {}

    def compiled_for(images: int) -> tuple[Compiled, float]:
        say(f"compiling the {program.description} for {topology.name}, {images} images")
        start = time.monotonic()
        devices = count if program.communicates else 1
        compiled = compile_and_measure(program.lower(images), devices)
        return compiled, time.monotonic() - start

    def need(images: int) -> float:
        try:
            return compiled_for(images)[0].memory.total
        except OutOfMemory as error:
            return refused.setdefault(images, max(error.needed, topology.chip.memory + 1))

    size = batch
    while True:
        try:
            first, seconds = compiled_for(size)
            break
        except OutOfMemory as error:
            refused[size] = max(error.needed, topology.chip.memory + 1)
            if size == unit:
                raise
            size = max(size // 2 // unit * unit, unit)
    work = work_of(first, program, size, count)
    measured = {0: work.fixed, size: float(first.memory.total), **refused}
    largest = estimate.largest_batch(need, measured, topology.chip.memory, unit, compiles)
    counts = estimate.COUNTS if count > 1 or not program.communicates else (1,)
    if topology.chip.target:  # GPUs of one host
        counts = counts[: counts.index(8) + 1] if 8 in counts else counts
    here = estimate.step_time(work, topology.chip, count, batch)
    return {
        "program": program.description,
        "topology": topology.name,
        "chips": topology.chips,
        "hosts": topology.hosts,
        "chip": topology.chip._asdict(),
        "batch": batch,
        "compiled_batch": size,
        "seconds": seconds,
        "memory": {
            **first.memory._asdict(),
            "total": first.memory.total,
            "limit": topology.chip.memory,
            "fits": batch not in refused,
            "refused": refused.get(batch),
        },
        "flops": work.flops,
        "bytes": work.bytes,
        "collectives": [row._asdict() for row in first.collectives],
        "layout": first.layout._asdict(),
        "largest_batch": largest,
        "estimate": {
            "here": here,
            **estimate.estimate(work, topology.chip, batch, counts),
            "assumptions": list(estimate.assumptions(topology.chip)),
        },
    }


def work_of(compiled: Compiled, program: Program, batch: int, count: int) -> estimate.Work:
    """The work of one device, from a program for `batch` images on `count` devices.

    The memory that does not depend on the batch is taken to be that of the arguments, of which the
    images are a small part, and of the code.
    """
    share, memory = batch / count, compiled.memory
    fixed = float(min(memory.arguments + memory.code, memory.total))
    return estimate.Work(
        images=share,
        flops=compiled.flops * program.repeats,
        bytes=compiled.bytes * program.repeats,
        fixed=fixed,
        per_image=(memory.total - fixed) / share,
        collectives=compiled.collectives,
    )
