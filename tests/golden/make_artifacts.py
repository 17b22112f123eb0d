"""Writes `artifacts/`: tiny classifiers in the formats of earlier versions of `tl`.

`tl.load` must keep reading them. Run this script with the earlier version:

  git worktree add /tmp/old COMMIT
  PYTHONPATH=/tmp/old python tests/golden/make_artifacts.py tests/golden/artifacts

Commit d835f5d wrote format 1, commit 946ce34 format 2. The networks are those of
`tests/test_artifact.py`, under the names of architectures of the zoo. The metadata contain the
logits that the commit computed for `images()`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

from tl import backbones, classifier, heads, labels
from tl.backbones.mobilenet import InvertedResidualNet, Row
from tl.backbones.spec import BackboneSpec
from tl.backbones.vgg import VGG
from tl.pixels import PixelSpec

try:  # 946ce34
    from tl.backbones.layers import NormSpec
    from tl.backbones.vgg import VGGTop

    FORMAT, VGG_TOP, SOURCES = 2, VGGTop, {"sources": {}}
    NET = InvertedResidualNet(
        ((Row(1, 8, 1, 1),), (Row(2, 8, 1, 2),)),
        stem=8,
        top=16,
        norm=NormSpec(eps=1e-3),
        padding="same",
    )
except ImportError:  # d835f5d
    FORMAT, VGG_TOP, SOURCES = 1, "vgg", {}
    NET = InvertedResidualNet(
        (Row(1, 8, 1, 1), Row(2, 8, 1, 2)), stem=8, top=16, eps=1e-3, padding="same"
    )
    from tl.heads import VGGTop


def images() -> np.ndarray:
    """f32[2 40 48 3] in [0, 1]."""
    return np.linspace(0, 1, 2 * 40 * 48 * 3, dtype=np.float32).reshape(2, 40, 48, 3) ** 2


def write(folder: Path, spec: BackboneSpec, head: object) -> None:
    """Saves a classifier with random variables."""
    classes = labels.from_names(["ant", "bee", "cat"], name="three")
    clf = classifier.Classifier(
        spec.name,
        spec,
        head,
        PixelSpec(size=40),
        classes,
        classifier.Provenance(f"{spec.name}.toy", "0" * 64, "tests", "none"),
    )
    rng = np.random.default_rng(FORMAT)
    draw = lambda a: (
        rng.normal(size=a.shape) / np.sqrt(np.prod(a.shape[:-1]))
        if len(a.shape) > 1
        else rng.uniform(0.5, 1, a.shape)
    ).astype(np.float32)
    variables = jax.tree.map(draw, jax.eval_shape(clf.init, jax.random.key(0)))
    logits = np.asarray(jax.jit(clf.apply)(variables, images()).logits)
    classifier.save(folder, clf, variables, record={"logits": logits.tolist()})


if __name__ == "__main__":
    out = Path(sys.argv[1])
    name = "efficientnet_lite0" if FORMAT == 1 else "tf_efficientnet_lite0"
    stages = ("stem", "stage1", "stage2", "top")
    lite = BackboneSpec(
        name=name, module=NET, features=16, endpoints=stages, reference="", **SOURCES
    )
    write(out / f"format{FORMAT}_{name}", lite, heads.Linear(3))
    vgg = BackboneSpec(
        name="vgg16",
        module=VGG((1, 1, 1, 1, 1), widths=(2, 2, 2, 2, 2)),
        features=2,
        endpoints=("stage5",),
        reference="",
        head=VGG_TOP,
        **SOURCES,
    )
    backbones._SPECS["vgg16"] = vgg
    write(out / f"format{FORMAT}_vgg16", vgg, VGGTop(3, width=4))
