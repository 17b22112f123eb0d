"""`tl.models.summary` against published counts and hand counts; `describe` and its page."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tl import backbones, pages, reporting
from tl.models import Classifier, summary
from tl.models.summary import stages, total
from tl.pages import describe
from tl.pixels import PixelSpec
from tl.training import low_rank
from tl.training.rules import phases
from tl.weights import store

# `num_params` and `_ops` (multiply-adds in units of 1e9, at 224 pixels) of torchvision 0.28's
# weight enums.
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


def network(name: str, head: str = "none", classes: int = 1000, **pixels) -> Classifier:
    return summary.without_weights(backbones.get(name), PixelSpec(**pixels), head, classes)


# One network per family and form of block; the others run with --full.
QUICK = (
    "vgg16 vgg11_bn resnet18 wide_resnet50_2 resnext50_32x4d mobilenetv2_100 mobilenet_v3_small "
    "squeezenet1_1"
).split()


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in PUBLISHED],
)
def test_counts_are_torchvisions_published_ones(name: str):
    params, gflops = PUBLISHED[name]
    whole = total(stages(network(name, "own")))
    assert whole.params == params
    assert whole.multiply_adds / 1e9 == pytest.approx(gflops, rel=0.01)
    assert whole.flops == 2 * whole.multiply_adds and whole.bytes == 4 * params


def test_rules_give_the_trainable_counts_of_the_lesson():
    assert total(stages(network("vgg16"))).params == 14_714_688
    rows = stages(network("vgg16", "flat", classes=1), rules=LAST_BLOCK)
    assert rows[-1].name == "head" and rows[-1].params == 7 * 7 * 512 + 1
    assert total(rows).trainable == 7_104_513
    assert {row.name for row in rows if row.trainable} == {"stage5", "head"}
    assert total(stages(network("vgg16", "flat", classes=1))).trainable == 0


def test_updates_of_low_rank_train_and_are_not_parameters_of_the_network():
    """A rank of 2 adds 2 (inputs + outputs) to each 1x1 kernel with more of both."""
    clf = network("mobilenetv2_100", "own")
    plain, (phase,) = stages(clf), phases("lora:2", clf.spec.endpoints)
    extend = functools.partial(low_rank.extend, rank=phase.rank)
    rows = {row.name: row for row in stages(clf, rules=phase.rules, extend=extend)}
    assert [row._replace(trainable=0) for row in rows.values()] == plain
    assert rows["stage1"].trainable == 2 * (32 + 16) and rows["stem"].trainable == 0


def test_rules_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match="decides no leaf; nearest names: 'backbone/stage5/"):
        stages(network("vgg16"), rules=(("backbone/stage9/.*", "trainable"), (".*", "frozen")))


def test_stages_of_a_depthwise_network_equal_hand_counts():
    """MobileNetV2: stem 3x3 of 3 to 32 channels at stride 2; 3x3 depthwise, 1x1 to 16 channels."""
    stem, first, *_ = stages(network("mobilenetv2_100"))
    assert stem == ("stem", (112, 112, 32), 27 * 32 + 2 * 32, 112 * 112 * 32 * 27, 0)
    weights = 9 * 32 + 32 * 16
    assert first == ("stage1", (112, 112, 16), weights + 2 * 32 + 2 * 16, 112 * 112 * weights, 0)
    assert stem.activation_bytes == 4 * 112 * 112 * 32


def test_convolutions_have_the_shapes_and_settings_of_the_network():
    clf = network("mobilenetv2_100", "linear")
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(clf.init, jax.random.key(0))
    stem, depthwise, *others = summary.convolutions(
        jax.make_jaxpr(clf.logits)(variables, images).jaxpr
    )
    around = ((1, 1), (1, 1))
    assert stem == ((2, 224, 224, 3), (3, 3, 3, 32), (2, 112, 112, 32), 2, around, 1)
    assert depthwise == ((2, 112, 112, 32), (3, 3, 1, 32), (2, 112, 112, 32), 1, around, 32)
    assert depthwise.label == "3x3, 32 to 32 in 32 groups, 112x112 px"
    assert stem.label == "3x3 stride 2, 3 to 32, 224x224 px"
    counted = sum(conv.multiply_adds for conv in (stem, depthwise, *others))
    assert counted == 2 * total(stages(clf)[:-1]).multiply_adds


def test_image_size_changes_the_cost_of_convolutions_only():
    clf = network("resnet18", "linear", classes=10)
    small, large = stages(clf, size=64), stages(clf, size=128)
    assert [row.multiply_adds for row in large[:-1]] == [
        4 * row.multiply_adds for row in small[:-1]
    ]
    assert large[-1] == small[-1] == ("head", (10,), 5130, 5120, 0)
    assert stages(clf.with_pixels(size=64)) == small


def test_a_gray_network_has_a_smaller_stem():
    gray = network("resnet18", mean=(0.5,), std=(0.5,))
    assert stages(gray)[0].params == 49 * 64 + 2 * 64


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "resnetv2_50_keras"])
def test_every_parameter_and_endpoint_is_in_one_row(name: str):
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


# --- describe ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vgg16() -> dict:
    return summary.describe(network("vgg16", "flat", classes=1), LAST_BLOCK)


def test_describe_reports_stages_that_sum_to_the_whole(vgg16: dict):
    json.dumps(vgg16)
    assert (vgg16["params"], vgg16["trainable"]) == (14_739_777, 7_104_513)
    assert vgg16["flops"] == 2 * vgg16["multiply_adds"]
    for key in ("params", "trainable", "multiply_adds", "flops", "bytes"):
        assert vgg16[key] == sum(row[key] for row in vgg16["stages"]), key
    assert [row["name"] for row in vgg16["stages"]][-2:] == ["stage5", "head"]


def test_page_and_terminal_of_describe_show_costs_names_and_weights(vgg16: dict):
    printed = "\n".join(describe.lines(vgg16))
    page = pages.PAGES["describe"](reporting.jsonable(vgg16), Path())
    html = "".join(page.sections).replace("\N{NARROW NO-BREAK SPACE}", ",")
    assert page.title == "vgg16" and "arXiv:1409.1556" in page.lead
    for words in ("7,104,513", "14,739,777", "7 x 7 x 512", "arXiv:1409.1556", "vgg_16"):
        assert words in printed and words in html, words
    rows = [row for row in store.MANIFEST if row.arch == "vgg16"]
    assert len(vgg16["weights"]) == len(rows)
    for row in rows:
        for words in (f"{row.arch}.{row.tag}", row.licence, summary.load_call(row)):
            assert words in printed, words


def test_describe_zoo_has_one_row_per_architecture():
    result = summary.describe_zoo(["resnet18", "mobilenetv2_035"], size=64)
    first, second = describe.zoo_rows(result)
    assert first[:2] == ("resnet18", 11_689_512) and first[3] == 64
    assert second[5] == "mobilenetv2_035_keras.keras_in1k", "the weights of another form of it"
    (section,) = describe.page(reporting.jsonable(result), Path()).sections
    assert "mobilenetv2_035_keras.keras_in1k" in section


def test_every_architecture_has_weights_with_license_source_and_top1():
    for name in backbones.names():
        rows = summary.published(name)
        assert any(row.top1 for row in rows), name
        assert all(row.licence and row.origin and summary.load_call(row) for row in rows), name
