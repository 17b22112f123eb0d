"""Artifacts of earlier versions: `load` reads them, and the network computes the same logits."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from tl import backbones, models
from tl.backbones.layers import NormSpec
from tl.backbones.mobilenet import InvertedResidualNet, Row
from tl.backbones.spec import BackboneSpec
from tl.backbones.vgg import VGG, VGGTop
from tl.models import heads

ARTIFACTS = Path(__file__).parent / "golden" / "artifacts"

# The networks of `golden/make_artifacts.py`, small enough to keep their weights in the repository.
LITE = BackboneSpec(
    name="tf_efficientnet_lite0",
    module=InvertedResidualNet(
        ((Row(1, 8, 1, 1),), (Row(2, 8, 1, 2),)),
        stem=8,
        top=16,
        norm=NormSpec(eps=1e-3),
        padding="same",
    ),
    features=16,
    endpoints=("stem", "stage1", "stage2", "top"),
    sources={},
    reference="",
)
TINY_VGG = BackboneSpec(
    name="vgg16",
    module=VGG((1, 1, 1, 1, 1), widths=(2, 2, 2, 2, 2)),
    features=2,
    endpoints=("stage5",),
    sources={},
    reference="",
    head=functools.partial(VGGTop, width=4),
)


@pytest.mark.parametrize(
    "folder, arch, head",
    [
        ("format1_efficientnet_lite0", "tf_efficientnet_lite0", heads.Linear(3)),
        ("format1_vgg16", "vgg16", VGGTop(3, width=4)),
        ("format2_tf_efficientnet_lite0", "tf_efficientnet_lite0", heads.Linear(3)),
        ("format2_vgg16", "vgg16", VGGTop(3, width=4)),
    ],
)
def test_artifacts_of_earlier_versions_load(
    folder: str, arch: str, head: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spec in (LITE, TINY_VGG):
        monkeypatch.setitem(backbones._SPECS, spec.name, spec)
    clf, variables = models.load(str(ARTIFACTS / folder))
    assert (clf.arch, clf.head, clf.pixels.size) == (arch, head, 40)
    assert clf.classes is not None and clf.classes.display_names == ("ant", "bee", "cat")
    assert (clf.weights.name.partition(".")[2], clf.weights.origin) == ("toy", "tests")
    images = np.linspace(0, 1, 2 * 40 * 48 * 3, dtype=np.float32).reshape(2, 40, 48, 3) ** 2
    expected = models.metadata(ARTIFACTS / folder)["logits"]
    np.testing.assert_allclose(jax.jit(clf.logits)(variables, images), expected, rtol=1e-4)
