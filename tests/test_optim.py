"""Rules, phases, schedules, partitioned optimizers: groups move as optax alone would move them, and moments are carried."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tl import backbones, models, optim
from tl.paths import FROZEN, TRAINABLE, flatten, label, split
from tl.training import rules
from tl.training.rules import frozen_prefix, parse_rules, phases, rate_factors

Tree = dict[str, Any]
HEAD = (("head/.*", TRAINABLE), (".*", FROZEN))
RULES = (("head/.*", "fast"), ("body/high/.*", "slow"), (".*", FROZEN))
STAGES = ("stem", "stage1", "stage2", "top")


def tree(seed: int) -> Tree:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {
        "body": {"low": {"w": draw(7, 5)}, "high": {"w": draw(5, 3)}},
        "head": {"kernel": draw(3, 2), "bias": draw(2)},
    }


def climb(optimizer: optax.GradientTransformation, params: Any, gradients: list[Any]) -> Any:
    opt_state = optimizer.init(params)
    for gradient in gradients:
        updates, opt_state = optim.update(optimizer, gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params


def at_rate(maker: str, rate: float, decay: float = 1e-4) -> optax.GradientTransformation:
    return optax.chain(optim.OPTIMIZERS[maker](decay), optax.scale(-rate))


# ------------------------------------------------------------------------------------------------------ rules and phases


@pytest.mark.parametrize(
    "arch", ["vgg11_bn", "resnet18", "mobilenetv2_035", "resnetv2_50_keras", "squeezenet1_1"]
)
def test_short_forms_train_what_they_say(arch: str) -> None:
    """In every family the stages from the top, what comes after the last stage with it, and nothing else."""
    clf, variables = models.load(arch, weights="random")
    params, stages = variables["params"], clf.spec.endpoints
    count = len([s for s in stages if s != "top"])

    def trained(tune: str) -> set[str]:
        labels = label(params, rules.phases(tune, stages)[-1].rules)
        return {"/".join(name.split("/")[:2]) for name, what in labels.items() if what != FROZEN}

    top = {
        f"backbone/{s}"
        for s in ("top", stages[-1] if stages[-1] != "top" else stages[-2])
        if s in stages
    }
    heads = {"/".join(f"head/{name}".split("/")[:2]) for name in flatten(params["head"])}
    assert trained("head") == trained("probe") == heads
    assert trained("last:1") == trained("lp_ft:1") == heads | top
    assert trained(f"last:{count}") == trained("all") == trained("lp_ft") == trained("gradual")
    assert len(trained("all")) == len(heads) + len(stages)
    phases = rules.phases("gradual", stages)
    sizes = [
        sum(what != FROZEN for what in label(params, phase.rules).values()) for phase in phases
    ]
    assert (
        sizes == sorted(set(sizes))
        and len(phases) == count + 1
        and sum(p.share for p in phases) == pytest.approx(1)
    )


@pytest.mark.parametrize("arch", ["vgg11_bn", "resnet18", "mobilenetv2_035", "resnetv2_50_keras"])
def test_affine_trains_scales_and_biases_of_batch_norm_alone(arch: str) -> None:
    clf, variables = models.load(arch, weights="random")
    params, stats = variables["params"], variables["batch_stats"]
    for tune, low in (("last:1", False), ("all", True)):
        (phase,) = rules.phases(tune, clf.spec.endpoints, bn="affine")
        labels = label(params, phase.rules)
        chosen = {name for name, what in labels.items() if what == "norms"}
        norms = {name.rpartition("/")[0] for name in flatten(stats)}
        assert {name.rpartition("/")[0] for name in chosen} <= norms
        assert all(name.rpartition("/")[2] in ("scale", "bias") for name in chosen)
        if low:
            assert {name.rpartition("/")[0] for name in chosen} == norms
        else:
            assert 0 < len(chosen) < 2 * len(norms)
    with pytest.raises(ValueError, match="decides no leaf"):
        vgg = models.load("vgg11", weights="random")[1]["params"]
        label(vgg, rules.phases("all", backbones.get("vgg11").endpoints, bn="affine")[0].rules)


@pytest.mark.parametrize(
    ("tune", "says"),
    [
        (
            "haed",
            "unknown --tune 'haed'; wanted probe, head, last:N, all, gradual, lp_ft, lp_ft:N; nearest: 'head'",
        ),
        ("last:0", "--tune=last:0: this network has 3 stages; take last:1 to last:3"),
        ("last:9", "take last:1 to last:3"),
        ("last:x", "unknown --tune"),
    ],
)
def test_an_unknown_short_form_says_what_there_is(tune: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rules.phases(tune, STAGES)


def test_rules_as_users_write_them_and_their_rates() -> None:
    rules = parse_rules(
        ["head/.*=head", "backbone/stage2/.*=slow*0.1", "backbone/stem/.*=stem", ".*=frozen"]
    )
    assert rate_factors(rules, STAGES, backbone=0.5, layer_decay=0.5) == {
        "head": 1.0,
        "slow*0.1": 0.1,
        "stem": 0.5 * 0.5**4,
    }
    for wrong in ("head", "=frozen", "a=", "a=b*", "a=b*fast"):
        with pytest.raises(ValueError, match="is no rule; write REGEX=LABEL"):
            parse_rules([wrong])


def test_the_cut_is_the_last_stage_before_anything_trains() -> None:
    names = [
        "backbone/stem/kernel",
        "backbone/stage1/a",
        "backbone/stage2/a",
        "backbone/top/a",
        "head/kernel",
    ]
    found = {}
    for tune in ("head", "last:1", "last:2", "all"):
        rules = phases(tune, STAGES)[0].rules
        found[tune] = frozen_prefix(label(dict.fromkeys(names, 0), rules), STAGES)
    assert found == {"head": "features", "last:1": "stage1", "last:2": "stem", "all": ""}


def test_live_norms_are_those_of_layers_that_train() -> None:
    stats = {
        "backbone": {
            "stem": {"norm": {"mean": 0}},
            "stage1": {"pre": {"mean": 0}, "conv": {"norm": {"mean": 0}}},
        }
    }
    labels = {
        "backbone/stem/kernel": FROZEN,
        "backbone/stage1/pre/scale": "a",
        "backbone/stage1/conv/kernel": FROZEN,
    }
    assert rules.trainable_norm_layers(labels, stats) == {"stage1/pre"}
    assert rules.trainable_norm_layers({**labels, "backbone/stage1/conv/kernel": "a"}, stats) == {
        "stage1/pre",
        "stage1/conv",
    }
    assert rules.trainable_norm_layers(labels, {}) == frozenset()


def test_table_counts_parameters_rates_and_bytes() -> None:
    rows = rules.table(
        tree(0), RULES, lr=0.1, factors={"slow": 0.5}, weight_decay=0.01, bn="update", moments=2
    )
    assert [tuple(row.values()) for row in rows] == [
        ("fast", 2, 8, 0.1, 0.01, "-", 4 * 32),
        ("slow", 1, 15, 0.05, 0.01, "-", 4 * 60),
        (FROZEN, 1, 35, 0.0, 0.0, "-", 140),
    ]


# ----------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize(("steps", "warm"), [(100, 10), (20, 2), (19, 1), (2, 1), (1, 1)])
def test_warmup_cosine_goes_up_in_a_tenth_and_down_to_nothing(steps: int, warm: int) -> None:
    schedule = optim.warmup_cosine(0.3, steps)
    rates = np.array([schedule(i) for i in range(max(steps, 2) + 3)])
    assert rates[0] == 0
    assert rates[warm] == pytest.approx(0.3) == rates.max()
    assert rates[max(steps, 2) :] == pytest.approx(0, abs=1e-8)
    assert (np.diff(rates[: warm + 1]) > 0).all()
    assert (np.diff(rates[warm : max(steps, 2) + 1]) < 0).all()
    if steps == 100:
        assert rates[5] == pytest.approx(0.15)
        assert rates[55] == pytest.approx(0.15)  # the middle of the cosine


@pytest.mark.parametrize("steps", [1, 4, 10, 200])
def test_one_cycle_peaks_at_three_tenths(steps: int) -> None:
    rates = np.array([optim.one_cycle(0.3, steps)(i) for i in range(max(steps, 2) + 1)])
    assert rates[0] == pytest.approx(0.3 / 25, rel=1e-5) and rates[-1] == pytest.approx(
        0.3 / 25e4, rel=1e-2
    )
    assert rates.max() == pytest.approx(0.3, rel=0.1)
    assert rates.argmax() == pytest.approx(0.3 * steps, abs=1)


# --------------------------------------------------------------------------------------------------------- partitioned


@pytest.mark.parametrize("maker", sorted(optim.OPTIMIZERS))
def test_two_groups_move_as_optax_alone_would_move_each(maker: str) -> None:
    params, gradients = tree(0), [tree(i) for i in (1, 2, 3)]
    rates = {"fast": 0.1, "slow": 1e-3}
    labels = label(params, RULES)
    halves = [split(t, labels, FROZEN)[1] for t in (params, *gradients)]
    whole = optim.partitioned(
        params,
        RULES,
        optim.OPTIMIZERS[maker](1e-4),
        lambda _: 0.1,
        factors={"fast": 1.0, "slow": 0.01},
    )
    moved = flatten(climb(whole, halves[0], halves[1:]))
    assert moved.pop("body/low/w") is None
    for name, leaf in moved.items():
        alone = climb(
            at_rate(maker, rates[labels[name]]),
            flatten(params)[name],
            [flatten(g)[name] for g in gradients],
        )
        np.testing.assert_allclose(leaf, alone, rtol=1e-5, err_msg=name)
        assert np.abs(leaf - flatten(params)[name]).max() > 1e-4
    # the two rates differ by a hundred, and so do the ways of leaves under one gradient scale
    way = {
        name: np.abs(np.asarray(leaf - flatten(params)[name])).mean()
        for name, leaf in moved.items()
    }
    assert way["head/kernel"] > 20 * way["body/high/w"]


@pytest.mark.parametrize("rules", [RULES, HEAD, (("body/low/.*", FROZEN), (".*", "fast"))])
def test_optimizer_state_holds_two_floats_a_trainable_parameter_and_none_a_frozen(
    rules: Any,
) -> None:
    params = tree(0)
    kept = split(params, label(params, rules), FROZEN)[1]
    opt_state = optim.partitioned(params, rules, optim.adamw(), lambda _: 0.1).init(kept)
    arrays = [leaf for leaf in jax.tree.leaves(opt_state) if leaf.ndim]  # the rest counts steps
    assert sum(a.nbytes for a in arrays) == 2 * sum(a.nbytes for a in jax.tree.leaves(kept))
    assert (7, 5) not in {a.shape for a in arrays}  # the frozen leaf's


def test_clipping_measures_the_trainable_leaves_alone() -> None:
    params = tree(0)
    kept = split(params, label(params, HEAD), FROZEN)[1]
    gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3.0), kept)  # norm 3 sqrt(8)
    optimizer = optim.partitioned(params, HEAD, optax.identity(), lambda _: 1.0, clip=1.0)
    updates, _ = optim.update(optimizer, gradient, optimizer.init(kept), kept)
    assert float(optax.tree.norm(updates)) == pytest.approx(1.0, rel=1e-6)
    small = jax.tree.map(lambda g: g / 30, gradient)
    updates, _ = optim.update(optimizer, small, optimizer.init(kept), kept)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -g, rtol=1e-6), updates, small)


def test_rules_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match="rule 'haed/"):
        optim.partitioned(
            tree(0), (("haed/.*", TRAINABLE), (".*", FROZEN)), optim.sgd(), lambda _: 0.1
        )


# ------------------------------------------------------------------------------------------------------------ unfreezing


def test_unfreezing_carries_the_moments_of_what_trained_before_and_starts_the_rest_at_zero() -> (
    None
):
    params = tree(0)
    wider = (("head/.*", "fast"), ("body/high/.*", "slow"), ("body/low/.*", "new"))

    def optimizer(rules: Any) -> optax.GradientTransformation:
        return optim.partitioned(
            params, rules, optim.adamw(), optim.warmup_cosine(0.1, 50), clip=1.0
        )

    kept = split(params, label(params, RULES), FROZEN)[1]
    before = optimizer(RULES).init(kept)
    for seed in (1, 2, 3):
        gradient = split(tree(seed), label(params, RULES), FROZEN)[1]
        _, before = optim.update(optimizer(RULES), gradient, before, kept)
    after = optim.carry_state(before, optimizer(wider).init(params))

    def adam(state: Any, what: str) -> Any:
        return state[1].inner_states[what].inner_state[0][0]

    for what in ("fast", "slow"):
        assert adam(after, what).count == 3
        old, new = (jax.tree.leaves((adam(s, what).mu, adam(s, what).nu)) for s in (before, after))
        assert all((a == b).all() and (a != 0).any() for a, b in zip(old, new, strict=True))
    assert adam(after, "new").count == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(adam(after, "new").mu))
    assert after[-1].count == 0 and before[-1].count == 3  # the schedule starts anew
    back = optim.carry_state(after, optimizer(RULES).init(kept))
    assert adam(back, "slow").count == 3


# ---------------------------------------------------------------------------------------------------------- optimizers


def test_sgd_is_nesterov_momentum() -> None:
    """Sutskever et al. 2013 with mu = 0.9: two steps by hand under gradients 1 and 2, rate 0.1."""
    moved = climb(at_rate("sgd", 0.1, 0.0), jnp.zeros(1), [jnp.ones(1), jnp.full(1, 2.0)])
    first, second = 1.0, 0.9 * 1.0 + 2.0
    wanted = -0.1 * (1.0 + 0.9 * first) - 0.1 * (2.0 + 0.9 * second)
    np.testing.assert_allclose(moved, [wanted], rtol=1e-6)


def test_adamw_decays_kernels_apart_from_the_gradient_and_biases_not_at_all() -> None:
    """Loshchilov & Hutter 2019, algorithm 2: p <- p (1 - 1e-4 rate) - rate m / sqrt(v), at first a sign."""
    start = {"kernel": jnp.asarray([[5.0, -3.0]]), "bias": jnp.asarray([5.0])}
    zero = jax.tree.map(jnp.zeros_like, start)
    still = climb(at_rate("adamw", 0.5), start, [zero] * 3)
    np.testing.assert_allclose(
        still["kernel"], np.array([[5.0, -3.0]]) * (1 - 0.5e-4) ** 3, rtol=1e-6
    )
    assert still["bias"] == 5.0
    once = climb(
        at_rate("adamw", 0.5),
        start,
        [{"kernel": jnp.asarray([[1e-3, -7.0]]), "bias": zero["bias"]}],
    )
    wanted = np.array([[5.0, -3.0]]) * (1 - 0.5e-4) - 0.5 * np.array([[1, -1]])
    np.testing.assert_allclose(once["kernel"], wanted, rtol=1e-5)
