"""Bounds on the time of a step on other numbers of chips, and the largest batch that fits.

Everything here is arithmetic on the figures of one compiled program (`tl.scale.compiled`); no time
was measured on a TPU. `ASSUMPTIONS` states the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tl.scale.compiled import Collective
from tl.scale.topology import Chip

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Numbers of chips in an estimate."""

# Seconds that a message takes to the next chip: "around 1 us", Austin et al. 2025, "How to Scale
# Your Model", chapter on sharded matrices.
HOP = 1e-6

# Largest step of the search for a batch, because small batches stay on the chip and seem to need
# no memory. Chosen, not tuned.
GROWTH = 8

ASSUMPTIONS = (
    "Computing takes FLOPs / peak rate in bfloat16, and memory takes bytes / bandwidth of HBM, at "
    "the same time. XLA's bytes count operands that stay on the chip too, so the time of memory is "
    "an upper bound.",
    "FLOPs and bytes are proportional to the images per chip, except that every chip reads or "
    "writes its parameters and optimizer state once per step.",
    "A collective of B bytes on n chips takes 2 (n - 1) / n B / W, where W is half of the links in "
    "one direction (no wraparound), plus 1 us per hop along each axis and back. Nothing overlaps "
    "with communication.",
    "Reading and decoding images, and the host, are not included.",
)
"""The assumptions of `step_time`, one sentence or two each."""

OF_GPUS = (
    "XLA reports no memory traffic of a GPU, and computing counts convolutions and matrix products "
    "only, so the time is a lower bound.",
    "The workspaces of cuDNN, which are chosen on the GPU, are not included in the memory.",
)
"""Further assumptions for GPUs."""


def assumptions(chip: Chip) -> tuple[str, ...]:
    """The assumptions of `step_time` on a chip."""
    return (*OF_GPUS, *ASSUMPTIONS) if chip.target else ASSUMPTIONS


class Work(NamedTuple):
    """What one device does in one step, as compiled.

    Attributes:
      images: images per device.
      flops, bytes: per device.
      fixed: bytes that a device holds whatever the batch: parameters, optimizer state, code.
      per_image: bytes that a device holds for each image.
      collectives: communication of a device.
    """

    images: float
    flops: float
    bytes: float
    fixed: float
    per_image: float
    collectives: Sequence[Collective]


def slice_shape(chips: int, axes: int) -> list[int]:
    """The sides of a slice, powers of two as equal as possible.

    Example:
      >>> slice_shape(32, 2), slice_shape(32, 3)
      ([4, 8], [2, 4, 4])
    """
    shape = [1] * axes
    while chips > 1:
        shape[shape.index(min(shape))] *= 2
        chips //= 2
    return sorted(shape)


def step_time(work: Work, chip: Chip, chips: int, batch: float) -> dict[str, Any]:
    """The bound on the time of a step under `ASSUMPTIONS`.

    Args:
      work: the step as compiled, for any batch and number of devices.
      chip: the chip.
      chips: number of chips, a power of two.
      batch: images per step, over all chips.

    Returns:
      `chips`, `batch`, `compute`, `memory`, `communication` and `step` in seconds,
      `images_per_second`, `bytes` of memory per device, and whether it `fits`.
    """
    images = batch / chips
    share = images / work.images
    fixed = min(work.fixed, work.bytes)
    compute = work.flops * share / chip.flops
    memory = (fixed + (work.bytes - fixed) * share) / chip.bandwidth
    link = chip.interconnect / 4  # one direction, half of the links
    hops = 2 * sum(side - 1 for side in slice_shape(chips, chip.axes))
    sent = 2 * (chips - 1) / chips * sum(row.bytes for row in work.collectives)
    count = sum(row.count for row in work.collectives)
    communication = (sent / link + count * hops * HOP) if chips > 1 else 0.0
    step = max(compute, memory) + communication
    held = work.fixed + work.per_image * images
    return {
        "chips": chips,
        "batch": batch,
        "compute": compute,
        "memory": memory,
        "communication": communication,
        "step": step,
        "images_per_second": batch / step if step else 0.0,
        "bytes": held,
        "fits": held <= chip.memory,
    }


def estimate(
    work: Work, chip: Chip, batch: int, counts: Sequence[int] = COUNTS
) -> dict[str, list[dict[str, Any]]]:
    """`step_time` for several numbers of chips.

    Returns:
      `same_batch`: rows with `batch` images per step on all chips together. `same_share`: rows with
      the images per chip that were compiled.
    """
    same = [step_time(work, chip, n, batch) for n in counts if n <= batch]
    return {
        "same_batch": same,
        "same_share": [step_time(work, chip, n, work.images * n) for n in counts],
    }


def largest_batch(
    need: Callable[[int], float], measured: dict[int, float], limit: float, unit: int, compiles: int
) -> dict[str, Any]:
    """The largest batch that fits, by a line through two batches, checked by compilations.

    Memory is nearly linear in the batch, because activations are. Each compilation tries the batch
    at which the line through the two nearest ones reaches the limit, at most `GROWTH` times
    the largest that fits.

    Args:
      need: batch -> bytes that a device needs, by a compilation.
      measured: batch -> bytes, two or more; 0 stands for what is needed without images.
      limit: bytes of a device.
      unit: the batch is a multiple of it.
      compiles: number of compilations, 0 or more.

    Returns:
      `batch`, 0 if not even `unit` fits; `bytes` per device; `method`, "compiled" or "linear"
      (bounded by `GROWTH`); and `tried`, pairs of batch and bytes that were compiled.

    Example:
      >>> largest_batch(lambda b: 10 + 3 * b, {0: 10, 8: 34}, 100, unit=4, compiles=1)
      {'batch': 28, 'bytes': 94, 'method': 'compiled', 'tried': [(28, 94)]}
    """
    measured, tried = dict(measured), []

    def reach() -> int:
        """The batch at which the line through the two batches nearest to the limit reaches it."""
        a, b = sorted(sorted(measured, key=lambda batch: abs(measured[batch] - limit))[:2])
        slope = max((measured[b] - measured[a]) / (b - a), 1e-9)
        guess = int(b + (limit - measured[b]) / slope) // unit * unit
        fitting = [batch for batch in measured if batch and measured[batch] <= limit]
        failing = [batch for batch in measured if measured[batch] > limit]
        low, high = max(fitting, default=0), min(failing, default=guess + unit)
        return max(min(guess, high - unit, GROWTH * max(low, unit)), low)

    for _ in range(compiles):
        guess = reach()
        if guess in measured or guess < unit:
            break
        measured[guess] = need(guess)
        tried.append((guess, measured[guess]))
    best = reach()
    if compiles:  # only what was compiled
        best = max((batch for batch in measured if batch and measured[batch] <= limit), default=0)
    held = measured.get(best)
    if held is None:
        a, b = min(measured), max(measured)
        held = measured[a] + (measured[b] - measured[a]) / (b - a) * (best - a)
    method = "compiled" if best in measured and best else "linear"
    return {"batch": best, "bytes": held, "method": method, "tried": tried}
