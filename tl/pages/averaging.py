"""The page of `average`: averages of weights next to the classifiers that they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import common


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of `average`.

    Args:
      result: as `tl.evaluation.averaging.compare` returns it.
      folder: the run's folder.
    """
    del folder
    rows = result["rows"]
    points = lambda share: f"{100 * share:+.1f}"
    table = [
        [
            row["name"],
            reporting.percent(row["validation"]),
            common.share_with_interval(row, "top1"),
            f"{points(row['difference'])} ({' to '.join(map(points, row['difference_ci95']))})",
            f"{row['p']:.2g}",
        ]
        for row in rows
    ]
    text = (
        f"Validation: {result['n_validation']} images, which choose. Test: {result['n_test']} "
        f"images. The difference in points is paired with {result['baseline']}, the best single "
        "classifier by the validation images. Every row costs one forward pass per image."
    )
    header = ["classifier", "validation", "test accuracy", "difference", "p"]
    sections = [reporting.section("Averages", reporting.table(table, header), text=text)]
    line = [row for row in rows if row["method"] == "wise_ft"]
    if line:
        series = {
            name: [(row["weights"][1], 100 * row[key]) for row in line]
            for name, key in (("validation", "validation"), ("test", "top1"))
        }
        label = f"share of {result['members'][1]}"
        chart = reporting.curves(series, x_label=label, y_label="accuracy (%)")
        words = f"From {result['members'][0]} (0) to {result['members'][1]} (1)."
        sections.append(reporting.section("Between two classifiers", chart, text=words))
    return common.Page("Averages of weights", " ".join(lines(result)), sections)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The result as sentences."""
    (best,) = [row for row in result["rows"] if row["name"] == result["saved"]][:1]
    low, high = (100 * end for end in best["difference_ci95"])
    yield (
        f"Best of {len(result['rows'])} by {result['n_validation']} validation images: "
        f"{best['name']}, with {common.share_with_interval(best, 'top1')} of {result['n_test']} "
        f"test images correct."
    )
    yield (
        f"Difference from {result['baseline']}: {100 * best['difference']:+.1f} points "
        f"({low:+.1f} to {high:+.1f}, p = {best['p']:.2g})."
    )
