"""Images in installed Python packages, located through the package metadata.

The packages are not imported, because that would import their requirements, some of which fail with
current libraries.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tl.data.spec import DataSpec, Example, Split
from tl.weights.store import packaged_file

# The two upper grades of 0, 1/3, 2/3 and 1, as in Deitsch et al. 2019, arXiv:1807.02894.
DEFECTIVE_FROM = 0.5


class Photograph(NamedTuple):
    """A photograph with its published ImageNet class.

    Attributes:
      path: the image file.
      index: index of the ImageNet class; None if no class was published.
      source: the origin, as text.
    """

    path: Path
    index: int | None
    source: str


def elpv() -> DataSpec:
    """ELPV: 2,624 electroluminescence images of solar cells, functional or defective.

    The images are gray, 300 x 300 pixels. A stratum is a pair of label and cell type (mono- or
    polycrystalline), as in the 75/25 split of the paper. An expert assigned each cell one of four
    probabilities of being defective; `Example.confidence` is the probability of the label.

    Raises:
      ValueError: the package `elpv-dataset` is not installed, or its table has another format.

    Reference: Deitsch et al. 2019, Solar Energy 185, arXiv:1807.02894; Buerhop-Lutz et al. 2018, EU
      PVSEC.
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
                f"line {number} of {table} is {line!r}, expected 'image probability cell-type'"
            ) from None
        confidence = defective if label else 1.0 - defective
        stratum = f"{classes[label]} {cell}"
        examples.append(Example(table.parent / name, label, stratum, confidence=confidence))
    return DataSpec(
        name="elpv",
        examples=tuple(examples),
        classes=classes,
        source="ELPV, PyPI package elpv-dataset (Deitsch et al. 2019, arXiv 1807.02894)",
        license="CC BY-NC-SA 4.0",
        split=Split.STRATIFIED,
        # Five seeds: cropped 85.6 +- 0.7 %, whole 85.1 +- 1.2 %, no difference beyond the spread.
        whole=False,
        references=(
            ("SVM (Deitsch et al. 2019)", 0.8244),
            ("fine-tuned VGG-19 (Deitsch et al. 2019)", 0.8842),
        ),
    )


def photographs() -> tuple[Photograph, ...]:
    """Twenty ImageNet photographs from foolbox, and the photograph of a cat from scikit-image.

    The cat (`chelsea.png`, by S. van der Walt, CC0) has a tabby coat, but no published ImageNet
    label: 281 (tabby), 282 (tiger cat) and 285 (Egyptian cat) all fit. Its index is None, and no
    accuracy includes it.

    Raises:
      ValueError: foolbox or scikit-image is not installed.
    """
    first = packaged_file("foolbox", "foolbox/data/imagenet_00_243.jpg")
    paths = sorted(first.parent.glob("imagenet_??_*.jpg"))  # imagenet_<number>_<class index>.jpg
    cat = packaged_file("scikit-image", "skimage/data/chelsea.png")
    return (
        *(
            Photograph(path, int(path.stem.rsplit("_", 1)[1]), "ImageNet, by way of foolbox")
            for path in paths
        ),
        Photograph(cat, None, "scikit-image, CC0"),
    )


def labeled_photographs() -> DataSpec:
    """The twenty photographs with a published class, as a data set with the classes of ImageNet.

    Raises:
      ValueError: foolbox or scikit-image is not installed.
    """
    labeled = [photo for photo in photographs() if photo.index is not None]
    return DataSpec(
        name="photographs",
        examples=tuple(Example(photo.path, photo.index or 0) for photo in labeled),
        classes=tuple(str(i) for i in range(1000)),
        source=labeled[0].source,
        license="unknown",
    )
