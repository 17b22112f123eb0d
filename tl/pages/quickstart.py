"""The page of `quickstart`: the pages of its four parts as chapters of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tl import reporting
from tl.pages import attack, ideal, predict, training
from tl.pages.common import Page

CHAPTERS = (
    ("predict", "Classification of photographs", predict.page),
    ("transfer", "Transfer learning: defects of solar cells", training.page),
    ("ideal", "Ideal images of two classes", ideal.page),
    ("attack", "Adversarial example: a dalmatian classified as a cat", attack.page),
)


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """The page of `quickstart`.

    Args:
      result: the results of `predict`, `transfer`, `ideal` and `attack` under these keys.
      folder: the run's folder.
    """
    sections = []
    for key, heading, part in CHAPTERS:
        sections += [reporting.chapter(heading), *part(result[key], folder).sections]
    lead = (
        f"One pretrained network, {result['transfer']['arch']}, classifies photographs and is "
        "transferred to defects of solar cells; its ideal images of a tabby and a zebra are "
        "computed; and it is attacked until it classifies a dalmatian as a cat."
    )
    return Page("Four uses of a pretrained network", lead, sections)
