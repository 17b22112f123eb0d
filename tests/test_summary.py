"""`tl.models.summary` against what torchvision publishes, the lesson's counts, and a network counted by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tl import backbones
from tl.models import Classifier, Provenance, heads
from tl.models.summary import stages, total
from tl.pixels import PixelSpec

# `num_params` and `_ops` (multiply-adds in units of 1e9, at 224 pixels) of torchvision 0.28's weight enums
PUBLISHED = {
    "vgg11": (132863336, 7.609),
    "vgg13": (133047848, 11.308),
    "vgg16": (138357544, 15.47),
    "vgg19": (143667240, 19.632),
    "vgg11_bn": (132868840, 7.609),
    "vgg13_bn": (133053736, 11.308),
    "vgg16_bn": (138365992, 15.47),
    "vgg19_bn": (143678248, 19.632),
    "resnet18": (11689512, 1.814),
    "resnet34": (21797672, 3.664),
    "resnet50": (25557032, 4.089),
    "resnet101": (44549160, 7.801),
    "resnet152": (60192808, 11.514),
    "wide_resnet50_2": (68883240, 11.398),
    "wide_resnet101_2": (126886696, 22.753),
    "resnext50_32x4d": (25028904, 4.23),
    "resnext101_32x8d": (88791336, 16.414),
    "mobilenetv2_100": (3504872, 0.301),
    "mobilenet_v3_small": (2542856, 0.057),
    "mobilenet_v3_large": (5483032, 0.217),
    "squeezenet1_1": (1235496, 0.349),
}
LAST_BLOCK = (("backbone/stage5/.*", "trainable"), ("head/.*", "trainable"), (".*", "frozen"))


def network(name: str, head: str = "", classes: int = 1000, **pixels) -> Classifier:
    """A network without weights."""
    spec = backbones.get(name)
    module = heads.maker(head, spec)(classes) if head else None
    return Classifier(spec.name, spec, module, PixelSpec(**pixels), None, Provenance("none", ""))


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name in backbones.names()])
def test_torchvisions_published_figures(name: str):
    params, gflops = PUBLISHED[name]
    whole = total(stages(network(name, "own")))
    assert whole.params == params
    assert whole.multiply_adds / 1e9 == pytest.approx(gflops, rel=0.01)
    assert whole.flops == 2 * whole.multiply_adds and whole.bytes == 4 * params


def test_the_lessons_counts():
    assert total(stages(network("vgg16"))).params == 14_714_688
    rows = stages(network("vgg16", "flat", classes=1), rules=LAST_BLOCK)
    assert rows[-1].name == "head" and rows[-1].params == 7 * 7 * 512 + 1
    assert total(rows).trainable == 7_104_513
    assert {row.name for row in rows if row.trainable} == {"stage5", "head"}
    assert total(stages(network("vgg16", "flat", classes=1))).trainable == 0


def test_rules_that_do_not_fit_say_so():
    with pytest.raises(ValueError, match="decides no leaf; nearest names: 'backbone/stage5/"):
        stages(network("vgg16"), rules=(("backbone/stage9/.*", "trainable"), (".*", "frozen")))


def test_stages_of_a_depthwise_network_by_hand():
    """MobileNetV2's stem and first block: 3x3 of 3 to 32 at stride 2; 3x3 depthwise of 32, 1x1 of 32 to 16."""
    stem, first, *_ = stages(network("mobilenetv2_100"))
    assert stem == ("stem", (112, 112, 32), 27 * 32 + 2 * 32, 112 * 112 * 32 * 27, 0)
    weights = 9 * 32 + 32 * 16
    assert first == ("stage1", (112, 112, 16), weights + 2 * 32 + 2 * 16, 112 * 112 * weights, 0)
    assert stem.activation_bytes == 4 * 112 * 112 * 32


def test_a_larger_picture_costs_more_in_the_convolutions_only():
    clf = network("resnet18", "linear", classes=10)
    small, large = stages(clf, size=64), stages(clf, size=128)
    assert [row.multiply_adds for row in large[:-1]] == [
        4 * row.multiply_adds for row in small[:-1]
    ]
    assert large[-1] == small[-1] == ("head", (10,), 5130, 5120, 0)
    assert stages(clf.with_pixels(size=64)) == small


def test_other_input_channels():
    gray = network("resnet18", mean=(0.5,), std=(0.5,))
    assert stages(gray)[0].params == 49 * 64 + 2 * 64


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "resnetv2_50_keras"])
def test_every_parameter_and_endpoint_is_in_a_row(name: str):
    clf = network(name, "own", size=64)
    variables = jax.eval_shape(lambda: clf.init(jax.random.key(0)))
    rows = stages(clf)
    assert total(rows).params == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    ends = jax.eval_shape(
        clf.apply, variables, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    ).endpoints
    assert [(row.name, row.shape) for row in rows[:-1]] == [
        (e, ends[e].shape[1:]) for e in clf.spec.endpoints
    ]
