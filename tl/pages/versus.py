"""The page of `versus`: two runs compared on the images that both tested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import common
from tl.reporting import Html, percent


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of `versus`.

    Args:
      result: as `tl.evaluation.paired.compare` returns it.
      folder: the run's folder.
    """
    sections = [
        _accuracy(result),
        *_images(result, folder, "a", "b"),
        *_images(result, folder, "b", "a"),
    ]
    return common.Page("Paired comparison of two runs", " ".join(lines(result)), sections)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The comparison as sentences."""
    for key in "ab":
        run = result[key]
        yield (
            f"{key.upper()} ({run['experiment']}, {run['arch']}, {run['run']}) classifies "
            f"{common.share_with_interval(run, 'top1')} of {result['n']} images correctly."
        )
    low, high = (100 * bound for bound in result["difference_ci95"])
    p = f"= {result['p']:.3g}" if result["p"] >= 1e-4 else "< 0.0001"
    yield (
        f"A minus B: {100 * result['difference']:+.1f} points (95 % paired interval {low:+.1f} to "
        f"{high:+.1f}), exact p {p}."
    )
    if "seeds" in result:
        seeds = result["seeds"]
        low, high = (100 * bound for bound in seeds["ci95"])
        yield (
            f"Over {seeds['n']} seeds: {100 * seeds['mean']:+.1f} +- {100 * seeds['std']:.1f} "
            f"points, 95 % t interval of the mean {low:+.1f} to {high:+.1f}."
        )


def _accuracy(result: Mapping[str, Any]) -> Html:
    """Both accuracies on one axis, and how often only one of the two is correct."""
    rows = [
        reporting.Interval(f"{key.upper()}: {result[key]['run']}", run["top1"], *run["top1_ci95"])
        for key in "ab"
        for run in [result[key]]
    ]
    counts = result["counts"]
    table = reporting.table(
        [
            ("A correct", counts["both"], counts["only_a"]),
            ("A wrong", counts["only_b"], counts["neither"]),
        ],
        ("", "B correct", "B wrong"),
        caption="Images" if result["tests"] == result["n"] else "Tests: images times seeds",
    )
    text = (
        f"Both runs tested these {result['n']} images. {result['a']['unpaired']} images of A and "
        f"{result['b']['unpaired']} of B are not in the other run. The test and the interval of "
        "the difference are paired: only images count on which one of the two is correct. They "
        "describe these trained classifiers on other images of this kind."
    )
    if "seeds" in result:
        text += " The interval over seeds describes other seeds."
    return reporting.section("Accuracy", reporting.intervals(rows), table, text=text)


def _images(result: Mapping[str, Any], folder: Path, better: str, other: str) -> list[Html]:
    """The images that one run classifies correctly more often than the other."""
    rows = [row for row in result["differ"] if row["better"] == better]
    if not rows:
        return []
    words = lambda row, key: (
        f"{key.upper()}: {row[key]['predicted']}, {percent(row[key]['probability'])}"
        + (f", {row[key]['correct']} of {row['tests']} correct" if row["tests"] > 1 else "")
    )
    cards = [
        reporting.card(
            common.figure(folder, row["figure"]),
            title=f"{Path(row['path']).name}, true class {row['label']}",
            caption=f"{words(row, 'a')}; {words(row, 'b')}",
        )
        for row in rows
        if "figure" in row
    ]
    table = reporting.table(
        [
            (row["path"], row["label"], row["a"]["predicted"], row["b"]["predicted"])
            for row in rows
            if "figure" not in row
        ],
        ("image without a figure", "true class", "A", "B"),
    )
    images = "1 image" if len(rows) == 1 else f"{len(rows)} images"
    title = f"{images} that {better.upper()} classifies better than {other.upper()}"
    parts = [reporting.gallery(cards)] + ([table] if len(cards) < len(rows) else [])
    return [reporting.section(title, *parts)]
