"""Photographs that come with installed Python packages, found through their metadata; no package is imported.

Importing them would bring in their own requirements and some break on today's libraries; their files do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tl.data.spec import DataSpec, Example, Split
from tl.weights.store import packaged_file

DEFECTIVE_FROM = 0.5  # of the four grades 0, 1/3, 2/3, 1 the upper two: as in Deitsch et al. 2019, arXiv 1807.02894


class Photograph(NamedTuple):
    """A picture with the ImageNet class it was published under, or None where its author named none."""

    path: Path
    index: int | None
    source: str


def elpv() -> DataSpec:
    """Electroluminescence pictures of solar cells, functional or defective: 2,624 of them, grey, 300 x 300.

    The strata are label x cell type (mono- or polycrystalline), as the paper's 75/25 split keeps them. An expert gave each cell
    a probability of being defective, one of four; a label's confidence is what that gives it.

    Raises:
      ValueError: the package `elpv-dataset` is not installed, or its table is not as expected.

    Reference: Deitsch et al., Solar Energy 185 (2019), arXiv 1807.02894; Buerhop-Lutz et al., EU PVSEC 2018.
    """
    table = packaged_file("elpv-dataset", "elpv_dataset/data/labels.csv")
    classes = ("functional", "defective")
    examples = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            name, probability, cell = line.split()
            defective = float(probability)
            label = int(defective >= DEFECTIVE_FROM)
        except ValueError:
            raise ValueError(
                f"line {number} of {table} is {line!r}, wanted 'picture probability cell-type'"
            ) from None
        sure = defective if label else 1.0 - defective
        examples.append(
            Example(table.parent / name, label, f"{classes[label]} {cell}", confidence=sure)
        )
    return DataSpec(
        name="elpv",
        examples=tuple(examples),
        classes=classes,
        source="ELPV, PyPI package elpv-dataset (Deitsch et al. 2019, arXiv 1807.02894)",
        licence="CC BY-NC-SA 4.0",
        split=Split.STRATIFIED,
        whole=False,  # five seeds: cropped 85.6 +- 0.7 %, whole 85.1 +- 1.2 %, no difference beyond the spread
        references=(
            ("SVM (Deitsch et al. 2019)", 0.8244),
            ("fine-tuned VGG-19 (Deitsch et al. 2019)", 0.8842),
        ),
    )


def photographs() -> tuple[Photograph, ...]:
    """Twenty ImageNet photographs from foolbox, with their class index, and scikit-image's photograph of a cat.

    The cat (`chelsea.png`, by S. van der Walt, CC0) has a tabby coat, but nobody labelled it among ImageNet's classes,
    where 281 (tabby), 282 (tiger cat) and 285 (Egyptian cat) all fit: its index is None and it counts in no accuracy.

    Raises:
      ValueError: foolbox or scikit-image is not installed.
    """
    first = packaged_file("foolbox", "foolbox/data/imagenet_00_243.jpg")
    named = sorted(first.parent.glob("imagenet_??_*.jpg"))  # imagenet_<number>_<class index>.jpg
    cat = packaged_file("scikit-image", "skimage/data/chelsea.png")
    return (
        *(
            Photograph(path, int(path.stem.rsplit("_", 1)[1]), "ImageNet, by way of foolbox")
            for path in named
        ),
        Photograph(cat, None, "scikit-image, CC0"),
    )
