"""The page of `plan`: what a step needs on a TPU slice, and the time that it takes at least."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import common
from tl.reporting import Html

# Width of a TPU's vector unit. XLA puts the batch or the channels there.
LANES = 128


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of `plan`.

    Args:
      result: as `tl.scale.plan.plan` returns it, with `arch` and `dtype`.
      folder: the run's folder.
    """
    del folder
    title = f"{result['experiment']} of {result['arch']} on {result['topology']}"
    return common.Page(
        title, " ".join(lines(result)), [_device(result), _collectives(result), *_scaling(result)]
    )


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The plan as sentences."""
    memory, here, largest = result["memory"], result["estimate"]["here"], result["largest_batch"]
    images = result["compiled_batch"] / result["chips"]
    yield (
        f"The {result['program']} compiles for {result['topology']} (chips: {result['chips']}, "
        f"hosts: {result['hosts']}) in {result['seconds']:.0f} s."
    )
    if not memory["fits"]:
        yield (
            f"{result['batch']:,} images do not fit into {_gb(memory['limit'])} per chip; the "
            f"figures are those of {result['compiled_batch']:,}."
        )
    traffic = f" and {_gb(result['bytes'])} of memory traffic" if result["bytes"] else ""
    count, size = (sum(row[key] for row in result["collectives"]) for key in ("count", "bytes"))
    yield (
        f"Each chip needs {_gb(memory['total'])} of {_gb(memory['limit'])} for {images:g} images, "
        f"{result['flops'] / 1e12:.3g} TFLOP{traffic} per step, and {count} collectives of "
        f"{_gb(size)}."
    )
    if images < LANES and not result["chip"]["target"]:
        yield (
            f"{images:g} images per chip do not fill the {LANES} lanes of a TPU in layers with few "
            "channels; a larger batch takes less memory traffic per image."
        )
    method = {"compiled": "compiled", "linear": "extrapolated linearly"}[largest["method"]]
    yield f"The largest batch that fits is {largest['batch']:,} ({method})."
    about = "about" if result["bytes"] else "at least"
    yield (
        f"A step of {result['batch']:,} images takes {about} {_ms(here['step'])} under the "
        f"assumptions of the model ({here['images_per_second']:,.0f} images/s); nothing was "
        "measured."
    )


def _gb(count: float) -> str:
    return f"{count / 1e9:.3g} GB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _device(result: Mapping[str, Any]) -> Html:
    """Memory, arithmetic and number types of one chip."""
    memory, layout = result["memory"], result["layout"]
    rows = [
        ("arguments: parameters, optimizer state, images", _gb(memory["arguments"])),
        ("results that are not arguments", _gb(memory["outputs"])),
        ("activations and other buffers", _gb(memory["temporary"])),
        ("program", _gb(memory["code"])),
        ("total", _gb(memory["total"])),
        ("available", _gb(memory["limit"])),
    ]
    tried = [(f"{batch:,}", _gb(size)) for batch, size in result["largest_batch"]["tried"]]
    types = ", ".join(f"{n} in {kind}" for kind, n in layout["convolutions"].items()) or "none"
    facts = [
        ("convolutions and matrix products", types),
        ("copies and transposes", f"{layout['copies']}, {_gb(layout['copied'])}"),
        ("operations that wait for the host", layout["host"]),
    ]
    text = (
        "XLA computes some activations again when memory is short, so a larger batch can fit than "
        "the line through two smaller ones says. Operations in a loop are counted once."
    )
    return reporting.section(
        "One chip",
        reporting.table(rows, ("memory of a chip", "size")),
        *([reporting.table(tried, ("batch tried", "memory of a chip"))] if tried else []),
        reporting.table(facts, ("program", "")),
        text=text,
    )


def _collectives(result: Mapping[str, Any]) -> Html:
    """The communication of a step."""
    rows = [
        (row["name"], row["count"], _gb(row["bytes"]), _gb(row["largest"]))
        for row in result["collectives"]
    ]
    if not rows:
        return reporting.section("Communication", text="The chips do not communicate.")
    header = ("collective", "number", "size per chip", "largest")
    return reporting.section("Communication", reporting.table(rows, header))


def _scaling(result: Mapping[str, Any]) -> Iterator[Html]:
    """The estimate for each number of chips."""
    estimate = result["estimate"]
    images = result["compiled_batch"] / result["chips"]
    for key, title in (
        ("same_batch", f"{result['batch']:,} images per step on 1 to 256 chips"),
        ("same_share", f"{images:g} images per chip on 1 to 256 chips"),
    ):
        rows = estimate[key]
        series = {
            name: [(math.log2(row["chips"]), 1e3 * row[part]) for row in rows]
            for name, part in (
                ("computing", "compute"),
                ("memory", "memory"),
                ("communication", "communication"),
                ("step", "step"),
            )
        }
        chart = reporting.curves(series, x_label="log2 of the number of chips", y_label="time (ms)")
        parts = [chart, _table(rows)]
        text = " ".join(estimate["assumptions"]) if key == "same_batch" else ""
        yield reporting.section(title, *parts, text=text)


def _table(rows: Sequence[Mapping[str, Any]]) -> Html:
    cells = [
        (
            row["chips"],
            f"{row['batch']:,.0f}",
            *(_ms(row[part]) for part in ("compute", "memory", "communication", "step")),
            f"{row['images_per_second']:,.0f}",
            _gb(row["bytes"]) + ("" if row["fits"] else ", does not fit"),
        )
        for row in rows
    ]
    header = (
        *("chips", "batch", "computing", "memory", "communication", "step", "images/s"),
        "memory of a chip",
    )
    return reporting.table(cells, header)
