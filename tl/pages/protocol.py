"""The page of `protocol`: a network on a data set next to published values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import common

# What was chosen or measured in a row.
FACTS = ("shots", "penalty", "lr", "steps")


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of `protocol`.

    Args:
      result: as `tl.evaluation.protocols.evaluate` returns it.
      folder: the run's folder.
    """
    del folder
    rows = [
        [
            ", ".join(f"{key} {row[key]:g}" for key in FACTS if key in row),
            reporting.percent(row["value"]),
            _interval(row),
            row["seeds"],
        ]
        for row in result["rows"]
    ]
    sizes = ", ".join(f"{n} {part}" for part, n in result["sizes"].items())
    text = (
        f"{result['help']} ({result['reference']}). It differs from the paper as follows: "
        f"{result['differs']}. Images: {sizes}."
    )
    header = ["setting", result["measure"], "95 % interval", "seeds"]
    sections = [reporting.section(result["protocol"], reporting.table(rows, header), text=text)]
    published = [
        [network, name, reporting.percent(value)]
        for network, values in result["published_of"].items()
        for name, value in values.items()
    ]
    if published:
        table = reporting.table(published, ["network", "data set", "published"])
        words = "With the weights of the paper, which are not those of this network."
        sections.append(reporting.section("Published values", table, text=words))
    return common.Page("Protocol", " ".join(lines(result)), sections)


def _interval(row: Mapping[str, Any]) -> str:
    """The interval of a row as text; a t interval over seeds may leave [0, 1]."""
    ends = [min(max(end, 0.0), 1.0) for end in row["value_ci95"] or ()]
    return " to ".join(map(reporting.percent, ends))


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The value of each setting, and the published one."""
    for row in result["rows"]:
        shots = f", {row['shots']} images per class" if "shots" in row else ""
        between = f" ({_interval(row)})" if row["value_ci95"] else ""
        yield (
            f"{result['protocol']} on {result['data']} with {result['arch']}{shots}: "
            f"{reporting.percent(row['value'])}{between}, {result['measure']}."
        )
    if result["published"] is not None:
        yield f"Published: {reporting.percent(result['published'])}."
