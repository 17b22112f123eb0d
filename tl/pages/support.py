"""The page of `support`: queries next to the training images that support or oppose them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import common

TITLES = {
    "supporting": "They raise the score most",
    "opposing": "They lower the score most",
    "nearest": "Nearest by cosine similarity",
}


def page(result: Mapping[str, Any], folder: Path) -> common.Page:
    """The page of `support`.

    Args:
      result: as `tl.explain.support.support` returns it.
      folder: the run's folder.
    """
    sections = [_query(row, folder) for row in result["images"]]
    lead = (
        f"Which of {result['n']} training images support a ridge probe on the features of "
        f"{result['arch']}? The value of a training image is the score with it minus the score "
        "after a fit without it."
    )
    return common.Page("Support", lead, [*sections, reporting.skipped(result["skipped"])])


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """One sentence per query, and one on the check against retraining."""
    for row in result["images"]:
        best = row["supporting"][:1]
        words = f", most by {Path(best[0]['path']).name} ({best[0]['value']:+.3f})" if best else ""
        yield f"{Path(row['path']).name}: {row['target']} {row['score']:.3f}{words}"
    checked = result["left_out"]
    yield (
        f"left out {checked['checked']} images one by one: largest difference from retraining "
        f"{checked['largest_difference']:.1e}"
    )


def _query(row: Mapping[str, Any], folder: Path) -> reporting.Html:
    """A query and three rows of training images."""
    query = reporting.card(
        common.figure(folder, row["image"]),
        title=Path(row["path"]).name,
        caption=f"score {row['score']:.3f} of {row['target']}; predicted: {row['predicted']}",
    )
    strips = [
        reporting.strip(
            [
                reporting.card(
                    common.figure(folder, image["image"]),
                    title=image["label"],
                    caption=f"{image['value']:+.4f} {Path(image['path']).name}",
                )
                for image in row[kind]
            ],
            title=title,
        )
        for kind, title in TITLES.items()
        if row[kind]
    ]
    return reporting.section(f"Why {row['target']}?", reporting.gallery([query]), *strips)
