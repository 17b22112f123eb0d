"""Rules, schedules and partitioned optimizers: each group moves as optax alone would move it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tl import optim
from tl.paths import FROZEN, TRAINABLE, flatten, label, split

Tree = dict[str, Any]
HEAD = (("head/.*", TRAINABLE), (".*", FROZEN))
RULES = (("head/.*", "fast"), ("body/high/.*", "slow"), (".*", FROZEN))


def tree(seed: int) -> Tree:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
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


# --------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize("tune", sorted(optim.TUNE))
def test_short_forms_train_the_head_alone(tune: str) -> None:
    labels = label(tree(0), optim.rules(tune))
    assert {name for name, what in labels.items() if what == TRAINABLE} == {"head/kernel", "head/bias"}


def test_an_unknown_short_form_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown --tune 'haed'; nearest: 'head'"):
        optim.rules("haed")


def test_table_counts_parameters_and_bytes() -> None:
    assert optim.table(tree(0), RULES) == [
        {"group": "fast", "leaves": 2, "params": 8, "bytes": 32},
        {"group": FROZEN, "leaves": 1, "params": 35, "bytes": 140},
        {"group": "slow", "leaves": 1, "params": 15, "bytes": 60},
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


# --------------------------------------------------------------------------------------------------------- partitioned


@pytest.mark.parametrize("maker", sorted(optim.OPTIMIZERS))
def test_two_groups_move_as_optax_alone_would_move_each(maker: str) -> None:
    params, gradients = tree(0), [tree(i) for i in (1, 2, 3)]
    make = optim.OPTIMIZERS[maker]
    groups = {"fast": make(lambda _: 0.1), "slow": make(lambda _: 1e-3)}
    labels = label(params, RULES)
    halves = [split(t, labels, FROZEN)[1] for t in (params, *gradients)]
    moved = flatten(climb(optim.partitioned(params, RULES, groups), halves[0], halves[1:]))
    assert moved.pop("body/low/w") is None
    for name, leaf in moved.items():
        alone = climb(groups[labels[name]], flatten(params)[name], [flatten(g)[name] for g in gradients])
        np.testing.assert_allclose(leaf, alone, rtol=1e-6, err_msg=name)
        assert np.abs(leaf - flatten(params)[name]).max() > 1e-4
    # the two rates differ by a hundred, and so do the ways of leaves under one gradient scale
    way = {name: np.abs(np.asarray(leaf - flatten(params)[name])).mean() for name, leaf in moved.items()}
    assert way["head/kernel"] > 20 * way["body/high/w"]


def test_one_group_is_the_plain_optimizer() -> None:
    plain = optim.sgd(lambda _: 0.1)
    assert optim.partitioned(tree(0), HEAD, {TRAINABLE: plain}) is plain


@pytest.mark.parametrize("rules", [RULES, HEAD, (("body/low/.*", FROZEN), (".*", "fast"))])
def test_optimizer_state_holds_two_floats_a_trainable_parameter_and_none_a_frozen(rules: Any) -> None:
    params = tree(0)
    labels = label(params, rules)
    groups = {what: optim.adamw(lambda _: 0.1) for what in set(labels.values()) - {FROZEN}}
    kept = split(params, labels, FROZEN)[1]
    opt_state = optim.partitioned(params, rules, groups).init(kept)
    arrays = [leaf for leaf in jax.tree.leaves(opt_state) if leaf.ndim]  # the rest counts steps
    assert sum(a.nbytes for a in arrays) == 2 * sum(a.nbytes for a in jax.tree.leaves(kept))
    assert (7, 5) not in {a.shape for a in arrays}  # the frozen leaf's


def test_a_label_without_a_group_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"labels \['slow'\] and there are groups for \['fast'\] only"):
        optim.partitioned(tree(0), RULES, {"fast": optim.sgd(lambda _: 0.1)})
    with pytest.raises(ValueError, match="rule 'haed/"):
        optim.partitioned(tree(0), (("haed/.*", TRAINABLE), (".*", FROZEN)), {TRAINABLE: optim.sgd(lambda _: 0.1)})


# ---------------------------------------------------------------------------------------------------------- optimizers


def test_sgd_is_nesterov_momentum() -> None:
    """Sutskever et al. 2013 with mu = 0.9: two steps by hand under gradients 1 and 2, rate 0.1."""
    moved = climb(optim.sgd(lambda _: 0.1), jnp.zeros(1), [jnp.ones(1), jnp.full(1, 2.0)])
    first, second = 1.0, 0.9 * 1.0 + 2.0
    wanted = -0.1 * (1.0 + 0.9 * first) - 0.1 * (2.0 + 0.9 * second)
    np.testing.assert_allclose(moved, [wanted], rtol=1e-6)


def test_adamw_decays_weights_apart_from_the_gradient() -> None:
    """Loshchilov & Hutter 2019, algorithm 2: p <- p (1 - 1e-4 rate) - rate m / sqrt(v), at first a sign."""
    start = jnp.asarray([5.0, -3.0])
    still = climb(optim.adamw(lambda _: 0.5), start, [jnp.zeros(2)] * 3)
    np.testing.assert_allclose(still, np.array([5.0, -3.0]) * (1 - 0.5e-4) ** 3, rtol=1e-6)
    once = climb(optim.adamw(lambda _: 0.5), start, [jnp.asarray([1e-3, -7.0])])
    np.testing.assert_allclose(once, np.array([5.0, -3.0]) * (1 - 0.5e-4) - 0.5 * np.array([1, -1]), rtol=1e-5)
