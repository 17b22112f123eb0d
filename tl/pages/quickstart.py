"""The page of `quickstart`: the pages of its four parts as chapters of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import attack, ideal, predict, training
from tl.pages.common import Page
from tl.reporting import percent

CHAPTERS = (
    ("predict", "Classification of photographs", predict.page),
    ("transfer", "Transfer learning: defects of solar cells", training.page),
    ("ideal", "Ideal images of two classes", ideal.page),
    ("attack", "Adversarial example: a dalmatian classified as a cat", attack.page),
)


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of `quickstart`.

    Args:
      result: the results of `predict`, `transfer`, `ideal` and `attack` under these keys; those of
        parts that failed are missing. "arch", the network, is missing in results of older versions.
      folder: the run's folder.
    """
    sections = []
    for key, heading, part in CHAPTERS:
        if key in result:
            sections += [reporting.chapter(heading), *part(result[key], folder).sections]
    lead = (
        f"One pretrained network, {result.get('arch') or result['transfer']['arch']}, classifies "
        "photographs and is transferred to defects of solar cells; its ideal images of a tabby and "
        "a zebra are computed; and it is attacked until it classifies a dalmatian as a cat."
    )
    return Page("Four uses of a pretrained network", lead, sections)


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The main figures of each part as text for the terminal."""
    if predicted := result.get("predict"):
        share, n = percent(predicted["top1"]), predicted["labelled"]
        yield f"predict:  {share} of {n} photographs classified correctly"
    if trained := result.get("transfer"):
        low, high = map(percent, trained["test"]["top1_ci95"])
        yield (
            f"transfer: solar cells {percent(trained['test']['top1'])} ({low} to {high}), majority "
            f"class {percent(trained['majority'])}"
        )
        if parts := trained.get("parts"):  # not in results of older versions
            yield f"          {parts}"
    if ideals := result.get("ideal"):
        tabby, zebra = (row["probability"] for row in ideals["images"] if row["tv_weight"])
        yield f"ideal:    tabby {tabby:.3f}, zebra {zebra:.3f}"
    if attacked := result.get("attack"):
        row = attacked["images"][0]
        yield (
            f"attack:   {row['from']} -> {row['to']} ({row['probability']:.3f}) at eps {row['eps']}"
        )
