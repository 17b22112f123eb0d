"""Schedules, optimizers, and the partitioned optimizer: groups, clipping, carried moments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tl import optim
from tl.paths import FROZEN, TRAINABLE, flatten, partition
from tl.training import schedules

Tree = dict[str, Any]
HEAD = (("head/.*", TRAINABLE), (".*", FROZEN))
RULES = (("head/.*", "fast"), ("body/high/.*", "slow"), (".*", FROZEN))


def tree(seed: int) -> Tree:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {
        "body": {"low": {"w": draw(7, 5)}, "high": {"w": draw(5, 3)}},
        "head": {"kernel": draw(3, 2), "bias": draw(2)},
    }


def descend(optimizer: optax.GradientTransformation, params: Any, gradients: list[Any]) -> Any:
    opt_state = optimizer.init(params)
    for gradient in gradients:
        updates, opt_state = optim.update(optimizer, gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params


def at_rate(maker: str, rate: float, decay: float = 1e-4) -> optax.GradientTransformation:
    return optax.chain(optim.OPTIMIZERS[maker](decay), optax.scale(-rate))


# ---- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "warm"), [(100, 10), (20, 2), (19, 1), (2, 1), (1, 1)])
def test_warmup_cosine_rises_over_a_tenth_and_falls_to_zero(steps: int, warm: int) -> None:
    schedule = schedules.warmup_cosine(0.3, steps)
    rates = np.array([schedule(i) for i in range(max(steps, 2) + 3)])
    assert rates[0] == 0
    assert rates[warm] == pytest.approx(0.3) == rates.max()
    assert rates[max(steps, 2) :] == pytest.approx(0, abs=1e-8)
    assert (np.diff(rates[: warm + 1]) > 0).all()
    assert (np.diff(rates[warm : max(steps, 2) + 1]) < 0).all()
    if steps == 100:
        assert rates[5] == pytest.approx(0.15)
        assert rates[55] == pytest.approx(0.15)  # the middle of the cosine


@pytest.mark.parametrize(
    "supports",
    [
        (100, 200, 300, 400, 500),
        (500, 3000, 6000, 9000, 10_000),
        (500, 6000, 12_000, 18_000, 20_000),
    ],
)
def test_bit_is_the_published_staircase(supports: tuple[int, ...]) -> None:
    """Rates at and around each boundary; a rate falls after its boundary, not at it."""
    warm, *falls, end = supports
    schedule = schedules.bit(0.003, end)
    expected = {0: 0.0, warm // 2: 0.0015, warm: 0.003, end: 0.0, end + 9: 0.0, end - 1: 3e-6}
    for number, boundary in enumerate(falls):
        expected |= {boundary: 0.003 / 10**number, boundary + 1: 0.0003 / 10**number}
    rates = [float(schedule(step)) for step in expected]
    np.testing.assert_allclose(rates, list(expected.values()), rtol=1e-5)


def test_bit_stretches_the_schedule_of_the_nearest_number_of_steps() -> None:
    short, long = schedules.bit(1.0, 50), schedules.bit(1.0, 5000)
    assert [float(short(step)) for step in (5, 10, 20, 21)] == pytest.approx([0.5, 1, 1, 0.1])
    assert [float(long(step)) for step in (125, 250, 1500, 1501)] == pytest.approx([0.5, 1, 1, 0.1])


@pytest.mark.parametrize("steps", [1, 8, 100])
def test_the_exponential_schedule_falls_by_one_factor(steps: int) -> None:
    rates = np.array([schedules.exponential(0.3, steps)(i) for i in range(steps + 1)])
    assert rates[[0, -1]] == pytest.approx([0.3, 0.003])
    np.testing.assert_allclose(rates[1:] / rates[:-1], 0.01 ** (1 / steps), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 10, 200])
def test_one_cycle_peaks_at_three_tenths(steps: int) -> None:
    rates = np.array([schedules.one_cycle(0.3, steps)(i) for i in range(max(steps, 2) + 1)])
    assert rates[0] == pytest.approx(0.3 / 25, rel=1e-5) and rates[-1] == pytest.approx(
        0.3 / 25e4, rel=1e-2
    )
    assert rates.max() == pytest.approx(0.3, rel=0.1)
    assert rates.argmax() == pytest.approx(0.3 * steps, abs=1)


# ---- partitioned ---------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", sorted(optim.OPTIMIZERS))
def test_two_groups_move_as_optax_alone_would_move_each(maker: str) -> None:
    params, gradients = tree(0), [tree(i) for i in (1, 2, 3)]
    rates = {"fast": 0.1, "slow": 1e-3}
    parts = partition(params, RULES)
    trainable = [parts.split(t)[0] for t in (params, *gradients)]
    whole = optim.partitioned(
        parts,
        optim.OPTIMIZERS[maker](1e-4),
        lambda _: 0.1,
        factors={"fast": 1.0, "slow": 0.01},
    )
    after = flatten(descend(whole, trainable[0], trainable[1:]))
    assert after.pop("body/low/w") is None
    for name, leaf in after.items():
        alone = descend(
            at_rate(maker, rates[parts.labels[name]]),
            flatten(params)[name],
            [flatten(g)[name] for g in gradients],
        )
        np.testing.assert_allclose(leaf, alone, rtol=1e-5, err_msg=name)
        assert np.abs(leaf - flatten(params)[name]).max() > 1e-4
    # The two rates differ by a factor of 100, and so do the updates under gradients of one scale.
    change = {
        name: np.abs(np.asarray(leaf - flatten(params)[name])).mean()
        for name, leaf in after.items()
    }
    assert change["head/kernel"] > 20 * change["body/high/w"]


@pytest.mark.parametrize("rules", [RULES, HEAD, (("body/low/.*", FROZEN), (".*", "fast"))])
def test_adam_keeps_two_floats_per_trainable_parameter_and_none_per_frozen_one(
    rules: Any,
) -> None:
    parts = partition(tree(0), rules)
    trainable, _ = parts.split(tree(0))
    opt_state = optim.partitioned(parts, optim.adamw(), lambda _: 0.1).init(trainable)
    arrays = [leaf for leaf in jax.tree.leaves(opt_state) if leaf.ndim]  # the rest counts steps
    assert sum(a.nbytes for a in arrays) == 2 * sum(a.nbytes for a in jax.tree.leaves(trainable))
    assert (7, 5) not in {a.shape for a in arrays}  # the frozen leaf's


def test_clipping_measures_only_the_trainable_leaves() -> None:
    parts = partition(tree(0), HEAD)
    trainable, _ = parts.split(tree(0))
    gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3.0), trainable)  # norm 3 sqrt(8)
    optimizer = optim.partitioned(parts, optax.identity(), lambda _: 1.0, clip=1.0)
    updates, _ = optim.update(optimizer, gradient, optimizer.init(trainable), trainable)
    assert float(optax.tree.norm(updates)) == pytest.approx(1.0, rel=1e-6)
    small = jax.tree.map(lambda g: g / 30, gradient)
    updates, _ = optim.update(optimizer, small, optimizer.init(trainable), trainable)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -g, rtol=1e-6), updates, small)


# ---- unfreezing ----------------------------------------------------------------------------------


def test_unfreezing_carries_the_moments_and_starts_new_ones_at_zero() -> None:
    params = tree(0)
    wider = (("head/.*", "fast"), ("body/high/.*", "slow"), ("body/low/.*", "new"))

    def optimizer(rules: Any) -> optax.GradientTransformation:
        schedule = schedules.warmup_cosine(0.1, 50)
        return optim.partitioned(partition(params, rules), optim.adamw(), schedule, clip=1.0)

    parts = partition(params, RULES)
    trainable, _ = parts.split(params)
    before = optimizer(RULES).init(trainable)
    for seed in (1, 2, 3):
        gradient, _ = parts.split(tree(seed))
        _, before = optim.update(optimizer(RULES), gradient, before, trainable)
    after = optim.carry_state(before, optimizer(wider).init(params))

    def adam(state: Any, group: str) -> Any:
        return state[1].inner_states[group].inner_state[0][0]

    for group in ("fast", "slow"):
        assert adam(after, group).count == 3
        old, new = (
            jax.tree.leaves((adam(s, group).mu, adam(s, group).nu)) for s in (before, after)
        )
        assert all((a == b).all() and (a != 0).any() for a, b in zip(old, new, strict=True))
    assert adam(after, "new").count == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(adam(after, "new").mu))
    assert after[-1].count == 0 and before[-1].count == 3  # the schedule starts again
    back = optim.carry_state(after, optimizer(RULES).init(trainable))
    assert adam(back, "slow").count == 3


# ---- optimizers ----------------------------------------------------------------------------------


def test_sgd_is_nesterov_momentum() -> None:
    """Sutskever et al. 2013 with mu = 0.9: two steps by hand under gradients 1 and 2, rate 0.1."""
    after = descend(at_rate("sgd", 0.1, 0.0), jnp.zeros(1), [jnp.ones(1), jnp.full(1, 2.0)])
    first, second = 1.0, 0.9 * 1.0 + 2.0
    expected = -0.1 * (1.0 + 0.9 * first) - 0.1 * (2.0 + 0.9 * second)
    np.testing.assert_allclose(after, [expected], rtol=1e-6)


@pytest.mark.parametrize("maker", sorted(optim.OPTIMIZERS))
def test_decay_to_start_pulls_the_backbone_to_its_start_and_head_kernels_to_zero(
    maker: str,
) -> None:
    """Without a gradient: the distance shrinks by 1 - rate * strength in the first step."""
    start, moved = tree(0), tree(1)
    decay = optim.decay_to_start(0.5, 0.2)
    whole = optax.chain(optim.OPTIMIZERS[maker](decay), optax.scale(-0.1))
    opt_state = whole.init(start)
    zero = jax.tree.map(jnp.zeros_like, start)
    updates, _ = optim.update(whole, zero, opt_state, moved)
    pull = 1.9 if maker == "sgd" else 1.0  # the first step of Nesterov's momentum
    expected = {
        "body": jax.tree.map(
            lambda p, s: -0.1 * pull * 0.5 * (p - s), moved["body"], start["body"]
        ),
        "head": {"kernel": -0.1 * pull * 0.2 * moved["head"]["kernel"], "bias": jnp.zeros(2)},
    }
    jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-5), updates, expected)
    arrays = [leaf for leaf in jax.tree.leaves(decay.init(start)) if leaf.ndim]
    assert sum(a.nbytes for a in arrays) == sum(a.nbytes for a in jax.tree.leaves(start["body"]))


def test_adamw_decays_kernels_independently_of_the_gradient_and_does_not_decay_biases() -> None:
    """Loshchilov & Hutter 2019, algorithm 2: p <- p (1 - 1e-4 rate) - rate m / sqrt(v).

    In the first step m / sqrt(v) is a sign.
    """
    start = {"kernel": jnp.asarray([[5.0, -3.0]]), "bias": jnp.asarray([5.0])}
    zero = jax.tree.map(jnp.zeros_like, start)
    decayed = descend(at_rate("adamw", 0.5), start, [zero] * 3)
    np.testing.assert_allclose(
        decayed["kernel"], np.array([[5.0, -3.0]]) * (1 - 0.5e-4) ** 3, rtol=1e-6
    )
    assert decayed["bias"] == 5.0
    stepped = descend(
        at_rate("adamw", 0.5),
        start,
        [{"kernel": jnp.asarray([[1e-3, -7.0]]), "bias": zero["bias"]}],
    )
    expected = np.array([[5.0, -3.0]]) * (1 - 0.5e-4) - 0.5 * np.array([[1, -1]])
    np.testing.assert_allclose(stepped["kernel"], expected, rtol=1e-5)


# ---- wrappers ------------------------------------------------------------------------------------


def quadratic(params: Any) -> jax.Array:
    return sum(
        jnp.sum(jnp.square(leaf) * (i + 1)) for i, leaf in enumerate(jax.tree.leaves(params))
    )


def minimized(
    wrapper: str, steps: int, optimizer: str = "momentum", loss: Any = quadratic
) -> tuple[Any, Any]:
    """Parameters and optimizer state after steps on a loss, from `tree(0)`."""
    params, schedule = tree(0), schedules.SCHEDULES["constant"](1e-3, steps)
    parts = partition(params, ((".*", "all"),))
    whole = optim.partitioned(parts, optim.OPTIMIZERS[optimizer](0.0), schedule)
    whole = optim.WRAPPERS[wrapper](whole, schedule)
    opt_state, gradient = whole.init(params), jax.grad(loss)
    for _ in range(steps):
        args = (gradient(params), opt_state, params, gradient)
        updates, opt_state = optim.update(whole, *args)
        params = optax.apply_updates(params, updates)
    return params, opt_state


@pytest.mark.parametrize("wrapper", optim.WRAPPERS)
def test_every_wrapper_goes_downhill(wrapper: str) -> None:
    params, opt_state = minimized(wrapper, 20)
    evaluated = optim.evaluated(opt_state, params)
    assert quadratic(evaluated) < 0.95 * quadratic(tree(0))
    assert jax.tree.structure(evaluated) == jax.tree.structure(tree(0))


def test_sam_steps_with_the_gradient_of_the_point_uphill() -> None:
    params = tree(0)
    gradient = jax.grad(quadratic)
    scale = optim.SAM_RADIUS / optax.tree.norm(gradient(params))
    uphill = jax.tree.map(lambda p, g: p + scale * g, params, gradient(params))
    expected = jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient(uphill))
    for name, leaf in flatten(minimized("sam", 1)[0]).items():
        np.testing.assert_allclose(leaf, flatten(expected)[name], rtol=1e-5, atol=1e-6)


def test_lookahead_is_optax_lookahead() -> None:
    params = tree(0)
    chain = optax.chain(optim.OPTIMIZERS["momentum"](0.0), optax.scale(-1e-3))
    whole = optax.lookahead(chain, sync_period=5, slow_step_size=0.5)
    both = optax.LookaheadParams.init_synced(params)
    opt_state = whole.init(both)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(7):
            updates, opt_state = whole.update(jax.grad(quadratic)(both.fast), opt_state, both)
            both = optax.apply_updates(both, updates)
    after, plain = flatten(minimized("lookahead", 7)[0]), flatten(minimized("none", 7)[0])
    for name, leaf in flatten(both.fast).items():
        np.testing.assert_allclose(after[name], leaf, rtol=1e-5, atol=1e-6)
        assert np.abs(after[name] - plain[name]).max() > 1e-4


def test_weight_norm_descends_on_norms_and_directions() -> None:
    params = tree(0)
    norms = lambda v: jnp.linalg.norm(v, axis=0, keepdims=True)
    kernel = lambda v, g: g * v / norms(v)
    whole = lambda m: {"body": jax.tree.map(kernel, m["v"], m["g"]), "head": m["head"]}
    moved = {"v": params["body"], "g": jax.tree.map(norms, params["body"]), "head": params["head"]}
    loss = lambda p: quadratic(jax.tree.map(jnp.subtract, p, tree(1)))
    optimizer = at_rate("momentum", 1e-3, 0.0)
    opt_state = optimizer.init(moved)
    for _ in range(3):
        gradient = jax.grad(lambda m: loss(whole(m)))(moved)
        updates, opt_state = optim.update(optimizer, gradient, opt_state, moved)
        moved = optax.apply_updates(moved, updates)
    after, plain = (
        flatten(minimized(wrapper, 3, loss=loss)[0]) for wrapper in ("weight_norm", "none")
    )
    for name, leaf in flatten(whole(moved)).items():
        np.testing.assert_allclose(after[name], leaf, rtol=1e-5, atol=1e-6)
        same = np.abs(after[name] - plain[name]).max() < 1e-6
        assert same == name.startswith("head")


def test_weight_norm_moves_filters_of_convolutions_and_of_zeros() -> None:
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 2, 4)), jnp.float32)
    params = {"body": {"kernel": kernel.at[..., 0].set(0.0)}}
    optimizer = optim.weight_norm(optax.scale(-0.1), lambda _: 1.0)  # type: ignore[arg-type]
    opt_state = optimizer.init(params)
    for _ in range(2):
        updates, opt_state = optimizer.update(params, opt_state, params)
        params = optax.apply_updates(params, updates)
    # Gradients along a filter change its norm alone.
    np.testing.assert_allclose(params["body"]["kernel"][..., 1:], 0.81 * kernel[..., 1:], rtol=1e-5)
    np.testing.assert_allclose(params["body"]["kernel"][..., 0], 0, atol=1e-6)


def test_the_classifier_of_schedule_free_is_the_average_of_its_base_steps() -> None:
    params, opt_state = minimized("schedule_free", 3, "rms")
    averaged = optim.evaluated(opt_state, params)
    # y = 0.9 x + 0.1 z, with x the average and z the base sequence (equation 2.1).
    mixed = jax.tree.map(lambda x, z: 0.9 * x + 0.1 * z, averaged, opt_state.z)
    for name, leaf in flatten(params).items():
        np.testing.assert_allclose(flatten(mixed)[name], leaf, rtol=1e-4, atol=1e-6)
    assert optim.evaluated(minimized("none", 1)[1], params) is params


def test_centralized_gradients_of_kernels_have_mean_zero_per_output() -> None:
    params, gradient = tree(0), tree(1)
    parts = partition(params, ((".*", "all"),))
    make = lambda on: optim.partitioned(
        parts,
        optax.identity(),
        lambda _: 1.0,
        centralize=on,  # type: ignore[arg-type]
    )
    moved = flatten(make(True).update(gradient, make(True).init(params), params)[0])
    np.testing.assert_allclose(moved["head/kernel"].mean(axis=0), 0, atol=1e-6)
    kernel = gradient["head"]["kernel"]
    np.testing.assert_allclose(
        moved["head/kernel"], -(kernel - kernel.mean(axis=0, keepdims=True)), atol=1e-6
    )
    np.testing.assert_allclose(moved["head/bias"], -gradient["head"]["bias"])


@pytest.mark.parametrize("wrapper", optim.WRAPPERS)
def test_every_wrapper_carries_its_state_into_another_phase(wrapper: str) -> None:
    params, schedule = tree(0), schedules.SCHEDULES["constant"](1e-3, 2)
    states = []
    for rules in (HEAD, ((".*", TRAINABLE),)):
        parts = partition(params, rules)
        whole = optim.partitioned(parts, optim.OPTIMIZERS["momentum"](0.0), schedule)
        whole = optim.WRAPPERS[wrapper](whole, schedule)
        trainable = parts.split(params)[0]
        opt_state = whole.init(trainable)
        gradient = lambda params: jax.tree.map(jnp.ones_like, params)
        _, after = optim.update(whole, gradient(trainable), opt_state, trainable, gradient)
        states.append((opt_state, after))
    carried = optim.carry_state(states[0][1], states[1][0])
    assert jax.tree.structure(carried) == jax.tree.structure(states[1][0])
    if wrapper in ("none", "sam", "weight_norm"):
        total = lambda state: sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(state))
        assert total(carried) > total(states[1][0])
