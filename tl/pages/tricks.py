"""The page of `tricks`: each training trick compared with the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import common


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of `tricks`.

    Args:
      result: as `tl.evaluation.tricks.compare` returns it.
      folder: the run's folder.
    """
    del folder
    points = lambda share: f"{100 * share:+.1f}"
    interval = lambda ends: "\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}".join(map(points, ends))
    probability = lambda p: f"{p:.3f}" if p >= 0.001 else "<\N{NO-BREAK SPACE}0.001"
    rows = [
        [
            row["trick"],
            reporting.percent(row["mean"]),
            points(row["difference"]),
            interval(row["ci95"]),
            interval(row["seeds"]["ci95"] or []),
            *map(probability, (row["p"], row["p_holm"])),
            *(f"{row[name]:.2f}" if row.get(name) else "" for name in ("cost", "memory")),
        ]
        for row in result["rows"]
    ]
    text = (
        "Differences in points of accuracy are paired: the same "
        f"{result['n']} test images, splits and {result['seeds']} seeds. The first interval and "
        "the exact p-value describe other images of this kind; the interval over seeds (t) "
        "describes other seeds and splits. p (Holm) accounts for the number of rows: below 0.05 "
        "the difference is not chance. time, memory: seconds per training image (median over "
        "seeds), and bytes of a training step (parameters, optimizer state, activations), "
        "relative to the baseline."
    )
    header = ["trick", "accuracy", "difference", "95 % interval", "over seeds"]
    header += ["p", "p (Holm)", "time", "memory"]
    meaning = "Each row changes one thing of the baseline, or is a recipe in its place."
    changes = reporting.table(
        [(row["trick"], row["help"]) for row in result["rows"]], ["trick", "change"]
    )
    sections = [
        reporting.section("Tricks", reporting.table(rows, header), text=text),
        reporting.section("Changes", changes, text=meaning),
    ]
    return common.Page("Training tricks", " ".join(lines(result)), sections)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The result as sentences."""
    baseline, scratch = result["baseline"], ", from scratch" * bool(result["recipe"].get("init"))
    yield (
        f"Baseline on {result['data']} with {result['arch']}{scratch}: "
        f"{reporting.percent(baseline['mean'])} of {result['n']} test images, "
        f"{result['seeds']} seeds."
    )
    if baseline.get("memory"):
        yield (
            f"Its training step needs {baseline['memory'] / 1e9:.2g} GB on each device, and "
            f"{1000 * baseline['seconds']:.3g} ms per image."
        )
    significant = [row for row in result["rows"] if row["p_holm"] < 0.05]
    for row in significant:
        low, high = (100 * end for end in row["ci95"])
        yield (
            f"{row['trick']}: {100 * row['difference']:+.1f} points ({low:+.1f} to {high:+.1f})."
        )
    rest = len(result["rows"]) - len(significant)
    if rest:
        words = "tricks do not differ from the baseline beyond chance."
        yield f"{rest} of {len(result['rows'])} {words}"
