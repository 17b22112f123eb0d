"""Short forms of `tune`, rules, rate factors, frozen prefixes and the table of groups."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tl import backbones, models
from tl.models import heads
from tl.paths import FROZEN, flatten, partition
from tl.pixels import PixelSpec
from tl.training import rules

STAGES = ("stem", "stage1", "stage2", "top")
FAMILIES = ["vgg11_bn", "resnet18", "mobilenetv2_035", "resnetv2_50_keras", "squeezenet1_1"]


@functools.cache
def shapes(arch: str) -> dict[str, Any]:
    """The variables of an architecture with its own head, as shapes: nothing is compiled."""
    spec = backbones.get(arch)
    nothing = models.Provenance("none", "")
    clf = models.Classifier(spec.name, spec, heads.own(spec)(10), PixelSpec(), None, nothing)
    return jax.eval_shape(lambda: clf.init(jax.random.key(0)))


def trained(arch: str, tune: str, bn: str = "eval") -> frozenset[str]:
    """Names of the parameters that the last phase of a short form trains."""
    phase = rules.phases(tune, backbones.get(arch).endpoints, bn=bn)[-1]
    return partition(shapes(arch)["params"], phase.rules).trained


def stages_of(names: frozenset[str]) -> set[str]:
    return {"/".join(name.split("/")[:2]) for name in names}


# ---- short forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", FAMILIES)
def test_short_forms_train_the_stages_that_they_name(arch: str) -> None:
    stages = backbones.get(arch).endpoints
    count = len([stage for stage in stages if stage != "top"])
    last = stages[-1] if stages[-1] != "top" else stages[-2]
    top = {f"backbone/{stage}" for stage in ("top", last) if stage in stages}
    head = {f"head/{name.split('/')[0]}" for name in flatten(shapes(arch)["params"]["head"])}
    of = lambda tune: stages_of(trained(arch, tune))
    assert of("head") == of("probe") == head
    assert of("last:1") == of("lp_ft:1") == head | top
    assert of(f"last:{count}") == of("all") == of("lp_ft") == of("gradual")
    assert len(of("all")) == len(head) + len(stages)


@pytest.mark.parametrize("arch", FAMILIES)
def test_gradual_trains_more_in_each_phase(arch: str) -> None:
    stages = backbones.get(arch).endpoints
    phases = rules.phases("gradual", stages)
    params = shapes(arch)["params"]
    sizes = [len(partition(params, phase.rules).trained) for phase in phases]
    assert sizes == sorted(set(sizes))
    assert len(phases) == len([stage for stage in stages if stage != "top"]) + 1
    assert sum(phase.share for phase in phases) == pytest.approx(1)


@pytest.mark.parametrize("arch", FAMILIES[:-1])
@pytest.mark.parametrize("tune", ["last:1", "all"])
def test_affine_trains_only_scales_and_biases_of_batch_norm(arch: str, tune: str) -> None:
    names = {name for name in trained(arch, tune, "affine") if name.startswith("backbone/")}
    layers = {name.rpartition("/")[0] for name in flatten(shapes(arch)["batch_stats"])}
    assert all(name.rpartition("/")[2] in ("scale", "bias") for name in names)
    chosen = {name.rpartition("/")[0] for name in names}
    assert chosen <= layers
    if tune == "all":
        assert chosen == layers
    else:
        assert 0 < len(names) < 2 * len(layers)


@pytest.mark.parametrize("arch", FAMILIES[:-1])
def test_bn_only_trains_what_affine_trains(arch: str) -> None:
    assert trained(arch, "bn_only") == trained(arch, "all", "affine")
    assert trained(arch, "bn_only:2", "update") == trained(arch, "last:2", "affine")


@pytest.mark.parametrize("arch", FAMILIES)
def test_bias_only_trains_biases_and_the_head(arch: str) -> None:
    names = trained(arch, "bias_only")
    leaves = flatten(shapes(arch)["params"])
    assert names == {n for n in leaves if n.endswith("/bias") or n.startswith("head/")}


def test_affine_needs_batch_norm() -> None:
    phase = rules.phases("all", backbones.get("vgg11").endpoints, bn="affine")[0]
    with pytest.raises(ValueError, match="decides no leaf"):
        partition(shapes("vgg11")["params"], phase.rules)


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        (
            "haed",
            "unknown `tune`: got 'haed', expected probe, head, last:N, all, gradual, lp_ft, "
            "lp_ft:N, bn_only, bn_only:N, bias_only, lora:R, surgical, "
            "surgical:snr, surgical:STAGE; nearest: 'head'",
        ),
        ("last:0", "`tune=last:0`: this network has 3 stages; use last:1 to last:3"),
        ("last:9", "use last:1 to last:3"),
        ("last:x", "unknown `tune`"),
    ],
)
def test_an_unknown_short_form_is_an_error_with_the_known_ones(tune: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rules.phases(tune, STAGES)


# ---- rules and rates -----------------------------------------------------------------------------


def test_written_rules_have_the_rate_factors_of_their_labels() -> None:
    parsed = rules.parse_rules(
        ["head/.*=head", "backbone/stage2/.*=slow*0.1", "backbone/stem/.*=stem", ".*=frozen"]
    )
    groups = [label for _, label in parsed]
    assert rules.rate_factors(groups, STAGES, backbone=0.5, layer_decay=0.5) == {
        "head": 1.0,
        "slow*0.1": 0.1,
        "stem": 0.5 * 0.5**4,
    }


def test_rules_are_regexes_with_labels_or_a_short_form() -> None:
    stages = ("stage1", "stage2")
    parse = lambda *words: rules.parse_phase(words, stages).rules  # type: ignore[union-attr]
    assert rules.parse_phase([], stages) is None
    assert parse("head") == (("head/.*", "head"), (".*", "frozen"))
    assert parse("last:1")[1] == ("backbone/stage2/.*", "stage2")
    assert parse("a=b=trainable") == (("a=b", "trainable"),)
    two_lines = parse("backbone/.*=frozen\nhead/.*=trainable")
    assert two_lines == (("backbone/.*", "frozen"), ("head/.*", "trainable"))


@pytest.mark.parametrize("word", ["head", "head/.*", "=frozen", "a=", "a=b*", "a=b*fast"])
def test_a_word_that_is_not_a_rule_is_an_error(word: str) -> None:
    with pytest.raises(ValueError, match="`rules` must have the form REGEX=LABEL: got "):
        rules.parse_rules([word])


# ---- functions of a partition --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tune", "prefix"),
    [("head", "features"), ("last:1", "stage1"), ("last:2", "stem"), ("all", "")],
)
def test_the_frozen_prefix_ends_before_the_first_stage_that_trains(tune: str, prefix: str) -> None:
    backbone = {name: {"a": 0} for name in STAGES}
    params = {"backbone": backbone, "head": {"kernel": 0}}
    parts = partition(params, rules.phases(tune, STAGES)[0].rules)
    assert rules.frozen_prefix(parts.trained, STAGES) == prefix


def test_trainable_norm_layers_are_those_with_a_trainable_parameter() -> None:
    stats = {
        "backbone": {
            "stem": {"norm": {"mean": 0}},
            "stage1": {"pre": {"mean": 0}, "conv": {"norm": {"mean": 0}}},
        }
    }
    assert rules.norm_layers(stats) == {"stem", "stage1/pre", "stage1/conv"}
    names = {"backbone/stage1/pre/scale"}
    assert rules.trainable_norm_layers(names, stats) == {"stage1/pre"}
    names.add("backbone/stage1/conv/kernel")
    assert rules.trainable_norm_layers(names, stats) == {"stage1/pre", "stage1/conv"}
    assert rules.trainable_norm_layers(names, {}) == frozenset()


def test_the_table_counts_parameters_rates_and_bytes() -> None:
    params = {
        "body": {"low": {"w": jnp.zeros((7, 5))}, "high": {"w": jnp.zeros((5, 3))}},
        "head": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)},
    }
    parts = partition(params, (("head/.*", "fast"), ("body/high/.*", "slow"), (".*", FROZEN)))
    rows = rules.table(
        params, parts, lr=0.1, factors={"slow": 0.5}, weight_decay=0.01, bn="update", moments=2
    )
    assert [tuple(row.values()) for row in rows] == [
        ("fast", 2, 8, 0.1, 0.01, "-", 4 * 32),
        ("slow", 1, 15, 0.05, 0.01, "-", 4 * 60),
        (FROZEN, 1, 35, 0.0, 0.0, "-", 140),
    ]


def test_a_factor_that_cannot_be_read_is_an_error() -> None:
    """Without it the group would train at the learning rate of the backbone."""
    for label in ("slow*.1", "slow*", "slow*1e-1x"):
        with pytest.raises(ValueError, match="has no factor that can be read: expected a name and"):
            rules.rate_factors(("head", label), ("stage1",), backbone=0.1)
    assert rules.rate_factors(("slow*1e-2",), ("stage1",)) == {"slow*1e-2": 0.01}
