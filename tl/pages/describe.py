"""The page of `describe`: the cost of a network and its published weights, or a table of the zoo.

`lines` has the same numbers for the terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import common
from tl.pixels import PixelSpec
from tl.reporting import Html

Row = tuple[str | int | float, ...]

STAGE_HEADER = (
    "stage",
    "output",
    "parameters",
    "parameters (%)",
    "multiply-adds (G)",
    "parameters (MB)",
    "output (MB)",
    "trained parameters",
)
ZOO_HEADER = (
    "architecture",
    "parameters",
    "multiply-adds (G)",
    "input (pixels)",
    "top-1 (%)",
    "weights",
    "license",
    "source",
)
WEIGHTS_HEADER = ("weights", "ImageNet top-1", "license", "source", "preprocessing", "how to load")


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of one network, or of all of them.

    Args:
      result: from `tl.models.summary.describe` or `describe_zoo`.
      folder: not used; the page has no images.
    """
    del folder
    if "architectures" in result:
        rows = zoo_rows(result)
        line = lambda cell: reporting.tag("span", "", cell, style="white-space:nowrap")
        cells = [(*row[:5], *map(line, row[5:])) for row in rows]
        table = reporting.table(cells, ZOO_HEADER)
        lead = f"{len(rows)} architectures, each with the classifier of its paper."
        return common.Page("The zoo", lead, [reporting.section("Architectures", table)])
    figures = {
        "parameters": result["params"],
        "multiply-adds (G)": f"{result['multiply_adds'] / 1e9:.4g}",
    }
    if result["rules"]:
        figures["trained parameters"] = result["trainable"]
    note = reporting.note(
        "A multiply-add is two FLOPs; torchvision, timm and most papers call it one FLOP. Sizes "
        "in MB are for float32 and one image."
    )
    stages = reporting.table(stage_rows(result), STAGE_HEADER)
    names = reporting.table(list(facts(result).items()), ("", ""))
    sections = [
        reporting.section("Cost per stage", reporting.numbers(figures), stages, note),
        reporting.section("Architecture", names),
    ]
    if result["weights"]:
        sections.append(_weights_section(result))
    return common.Page(result["name"], result["reference"], sections)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The same numbers for the terminal."""
    if "architectures" in result:
        yield reporting.columns(ZOO_HEADER, zoo_rows(result))
        return
    yield reporting.columns(STAGE_HEADER, stage_rows(result))
    trained = f"; the rules train {result['trainable']:,}" if result["rules"] else ""
    yield (
        f"\n{result['params']:,} parameters, {result['multiply_adds'] / 1e9:.4g} G multiply-adds "
        f"per image of {result['size']} pixels ({result['flops'] / 1e9:.4g} GFLOP){trained}\n"
    )
    yield from (f"{key:15} {value}" for key, value in facts(result).items())
    yield f"\npublished weights: {len(result['weights']) or 'none'}"
    for row in result["weights"]:
        top1 = "no top-1 published" if row["top1"] is None else f"top-1 {row['top1']:.2f} %"
        yield f"  {row['name']}: {top1}, {row['licence']}, {row['origin']}"
        yield f"    {common.pixels_in_words(PixelSpec.from_dict(row['pixels']))}"
        yield f"    {row['load']}"


def stage_rows(result: Mapping[str, Any]) -> list[Row]:
    """The cells of every stage and of the whole network, in the order of `STAGE_HEADER`."""
    stages = result["stages"]
    whole = {
        "name": "total",
        "shape": stages[-1]["shape"],
        "activation_bytes": stages[-1]["activation_bytes"],
        **{key: result[key] for key in ("params", "multiply_adds", "bytes", "trainable")},
    }
    return [
        (
            row["name"],
            " x ".join(map(str, row["shape"])),
            row["params"],
            round(100 * row["params"] / max(result["params"], 1), 1),
            round(row["multiply_adds"] / 1e9, 3),
            round(row["bytes"] / 1e6, 3),
            round(row["activation_bytes"] / 1e6, 3),
            row["trainable"],
        )
        for row in (*stages, whole)
    ]


def facts(result: Mapping[str, Any]) -> dict[str, str]:
    """Names, paper and input size of an architecture."""
    return {
        "name": result["name"],
        "aliases": ", ".join(result["aliases"]) or "-",
        "forms": ", ".join(result["forms"]),
        "paper": result["reference"],
        "features": str(result["features"]),
        "smallest input": f"{result['min_size']} pixels",
    }


def zoo_rows(result: Mapping[str, Any]) -> list[Row]:
    """The cells of every architecture, in the order of `ZOO_HEADER`."""
    rows = []
    for arch in result["architectures"]:
        best = next((row for row in arch["weights"] if row["top1"] is not None), None)
        about = ("-", "none", "-", "-")
        if best:
            about = tuple(best[key] for key in ("top1", "name", "licence", "origin"))
        multiply_adds = round(arch["multiply_adds"] / 1e9, 3)
        rows.append((arch["name"], arch["params"], multiply_adds, arch["size"], *about))
    return rows


def _weights_section(result: Mapping[str, Any]) -> Html:
    cells = [
        (
            row["name"],
            "-" if row["top1"] is None else f"{row['top1']:.2f}\N{NO-BREAK SPACE}%",
            row["licence"],
            row["origin"],
            common.pixels_in_words(PixelSpec.from_dict(row["pixels"])),
            reporting.tag("code", "", row["load"]),
        )
        for row in result["weights"]
    ]
    return reporting.section("Published weights", reporting.table(cells, WEIGHTS_HEADER))
