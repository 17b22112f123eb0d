"""The train step: freezing (bytes and XLA's operation counts), metrics, padding, donation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tl import models, optim
from tl.paths import FROZEN, TRAINABLE, digest, flatten, partition
from tl.training import step
from tl.training.step import Examples, make_train_step

HEAD = (("head/.*", TRAINABLE), (".*", FROZEN))
ALL = ((".*", TRAINABLE),)
WIDTH, DEPTH, CLASSES = 32, 6, 3


def network(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)
    body = {f"layer{i}": {"kernel": draw(WIDTH, WIDTH), "bias": draw(WIDTH)} for i in range(DEPTH)}
    return {"body": body, "head": {"kernel": draw(WIDTH, CLASSES), "bias": jnp.zeros(CLASSES)}}


def begin(params: Any, rules: Any, optimizer: Any, **more: Any) -> step.TrainState:
    return step.init(params, partition(params, rules), optimizer, **more)


def forward(params: Any, inputs: jax.Array) -> jax.Array:
    return step_forward(params, {}, inputs)[0]


def step_forward(
    params: Any, stats: Any, inputs: jax.Array, valid: jax.Array | None = None
) -> tuple[jax.Array, Any]:
    del valid
    x = inputs
    for i in range(DEPTH):
        layer = params["body"][f"layer{i}"]
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
    return x @ params["head"]["kernel"] + params["head"]["bias"][None], stats


def examples(seed: int, n: int = 16, padded: int = 0) -> step.Examples:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    inputs = rng.normal(size=(n, WIDTH)) + 2 * np.eye(CLASSES, WIDTH)[labels]
    valid = np.arange(n) < n - padded
    return step.Examples(
        jnp.asarray(inputs, jnp.float32), jnp.asarray(labels, jnp.int32), jnp.asarray(valid)
    )


ADAMW = optax.chain(optim.adamw(), optax.scale(-1e-2))
STEP = step.make_train_step(step_forward, ADAMW)


# ---- frozen --------------------------------------------------------------------------------------


def test_frozen_leaves_keep_every_bit_and_all_others_change() -> None:
    params = network()
    state = begin(params, HEAD, ADAMW)
    before = digest(state.frozen)
    losses = []
    for _ in range(30):
        state, metrics = STEP(state, examples(0))
        losses.append(float(metrics["loss"]))
    assert digest(state.frozen) == before == digest({"body": params["body"]})
    assert digest({"body": state.params["body"]}) == before
    for name, leaf in flatten(params["head"]).items():
        assert np.abs(flatten(state.params["head"])[name] - leaf).min() > 0, name
    assert state.step == 30
    assert losses[-1] < 0.9 * losses[0]
    assert jax.tree.structure(state.params) == jax.tree.structure(params)


def test_training_everything_changes_every_leaf() -> None:
    params = network()
    state, _ = STEP(begin(params, ALL, ADAMW), examples(0))
    assert jax.tree.leaves(state.frozen) == []
    after = flatten(state.params)
    assert all((after[name] != leaf).any() for name, leaf in flatten(params).items())


def test_the_optimizer_state_has_no_leaf_for_frozen_parameters() -> None:
    params = network()

    def size(tree: Any) -> int:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    state = begin(params, HEAD, ADAMW)
    counter = 4 * sum(leaf.ndim == 0 for leaf in jax.tree.leaves(state.opt_state))
    assert size(state.opt_state) - counter == 2 * size(params["head"]) == 2 * size(state.trainable)
    assert size(begin(params, ALL, ADAMW).opt_state) - counter == 2 * size(params)


def test_weight_decay_changes_only_trainable_leaves() -> None:
    params = network()
    heavy = optax.chain(optax.add_decayed_weights(10.0), optax.scale(-0.01))
    # The loss has no gradient.
    step = make_train_step(lambda p, s, x, valid=None: (0.0 * forward(p, x), s), heavy)
    state, metrics = step(begin(params, HEAD, heavy), examples(0))
    assert metrics["grad_norm"] == 0
    np.testing.assert_allclose(
        state.params["head"]["kernel"], 0.9 * params["head"]["kernel"], rtol=1e-6
    )
    assert digest({"body": state.params["body"]}) == digest({"body": params["body"]})


def flops(function: Any, *args: Any) -> float:
    lower = function.lower if hasattr(function, "lower") else jax.jit(function).lower
    return lower(*args).compile().cost_analysis()["flops"]


def test_a_frozen_body_costs_only_its_forward_pass() -> None:
    """Operations counted by XLA: a forward pass for the head, three for all (as `optax.freeze`)."""
    params, batch = network(), examples(0, n=256)
    head = flops(STEP, begin(params, HEAD, ADAMW), batch)
    everything = flops(STEP, begin(params, ALL, ADAMW), batch)
    alone = flops(forward, params, batch.inputs)
    assert head < 1.25 * alone
    assert everything > 2.4 * alone


@pytest.mark.full
def test_resnet18_with_a_frozen_backbone_learns_and_costs_a_forward_pass() -> None:
    clf, variables = models.load("resnet18", weights="random")
    images = jnp.asarray(np.random.default_rng(0).random((4, 32, 32, 3)), jnp.float32)
    batch = Examples(images, jnp.arange(4, dtype=jnp.int32), jnp.ones(4, bool))
    stats = variables["batch_stats"]

    def net(
        params: Any, stats: Any, images01: jax.Array, valid: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        del valid
        output = clf.apply({"params": params, "batch_stats": stats}, images01)
        return output.logits, output.stats

    sgd = optax.chain(optim.sgd(), optax.scale(-1e-3))
    step = make_train_step(net, sgd)
    state = begin(variables["params"], HEAD, sgd, stats=stats)
    compiled = step.lower(state, batch).compile()
    forward_alone = 4 * 2 * 1.814e9 / 7**2  # timm's 1.814 GMAC at 224 x 224, on 4 images of 32 x 32
    # XLA does not count products with padding.
    assert 0.5 * forward_alone < compiled.cost_analysis()["flops"] < forward_alone
    losses = []
    for _ in range(3):
        state, metrics = compiled(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(1000), rel=1e-5)  # the head is zero at the start
    assert losses[2] < losses[1] < losses[0]
    assert digest({"b": state.params["backbone"]}) == digest({"b": variables["params"]["backbone"]})
    assert digest(state.trainable) != digest(
        partition(variables["params"], HEAD).split(variables["params"])[0]
    )
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.opt_state)}
    assert shapes <= {(), (512, 1000), (1000,)}


# ---- loss and padding ----------------------------------------------------------------------------


def test_metrics_and_the_gradient_are_those_of_the_mean_loss() -> None:
    params, batch = network(), examples(0)
    plain = optax.sgd(1.0)
    state, metrics = step.make_train_step(step_forward, plain)(begin(params, ALL, plain), batch)

    def mean(params: Any) -> jax.Array:
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(
                forward(params, batch.inputs), batch.labels
            )
        )

    value, gradient = jax.value_and_grad(mean)(params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)
    right = np.argmax(forward(params, batch.inputs), axis=1) == np.asarray(batch.labels)
    np.testing.assert_allclose(metrics["accuracy"], right.mean(), rtol=1e-6)
    # At a learning rate of 1 the update is the gradient.
    update = jax.tree.map(lambda new, old: old - new, state.params, params)
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, g, atol=1e-6), update, gradient)


def test_label_smoothing_is_part_of_the_loss() -> None:
    plain = optax.sgd(0.0)
    step = make_train_step(step_forward, plain, smoothing=0.3)
    _, metrics = step(begin(network(), HEAD, plain), examples(0))
    logits = forward(network(), examples(0).inputs)
    targets = 0.7 * jax.nn.one_hot(examples(0).labels, CLASSES) + 0.1
    np.testing.assert_allclose(
        metrics["loss"], jnp.mean(optax.softmax_cross_entropy(logits, targets)), rtol=1e-6
    )


def test_the_averaged_parameters_follow_their_formula() -> None:
    plain = optax.sgd(1.0)
    step = make_train_step(step_forward, plain, ema_decay=0.15)
    state = begin(network(), HEAD, plain, ema=True)
    expected = np.asarray(state.params["head"]["kernel"])
    for age in range(3):
        state, _ = step(state, examples(age))
        decay = min(0.15, (1 + age) / (10 + age))  # 0.1 at the first step, then the limit
        expected = decay * expected + (1 - decay) * np.asarray(state.params["head"]["kernel"])
        np.testing.assert_allclose(state.averaged["head"]["kernel"], expected, rtol=1e-6, atol=1e-7)
    assert digest({"body": state.averaged["body"]}) == digest({"body": network()["body"]})


def test_the_mean_of_the_last_steps_has_equal_weights() -> None:
    params, trained = network(), []
    make = step.make_train_step(step_forward, ADAMW, average_from=2)
    state = begin(params, ALL, ADAMW, ema=True)
    for i in range(5):
        state, _ = make(state, examples(i))
        trained.append(np.asarray(state.params["head"]["kernel"]))
        expected = trained[-1] if i < 2 else np.mean(trained[2:], axis=0)
        np.testing.assert_allclose(state.averaged["head"]["kernel"], expected, atol=1e-6)


def test_padding_has_no_effect() -> None:
    batch, plain = examples(0, padded=6), optax.sgd(1.0)
    step = make_train_step(step_forward, plain)
    nonsense = Examples(batch.inputs.at[10:].set(77.0), batch.labels.at[10:].set(-1), batch.valid)
    only = Examples(batch.inputs[:10], batch.labels[:10], batch.valid[:10])
    (one, m1), (other, m2), (short, m3) = (
        step(begin(network(), ALL, plain), b) for b in (batch, nonsense, only)
    )
    assert digest(one.params) == digest(other.params)
    assert all(m1[name] == m2[name] for name in m1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, short.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), m1, m3)


def test_a_batch_of_padding_alone_changes_nothing_but_the_step_count() -> None:
    """Weight decay, moments and running averages included."""
    make = step.make_train_step(step_forward, ADAMW, ema_decay=0.9)
    state, _ = make(begin(network(), ALL, ADAMW, ema=True), examples(0))
    leaves = lambda state: jax.tree.map(np.array, state._replace(step=0, key=0))
    before = leaves(state)
    state, metrics = make(state, examples(1, padded=16))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, leaves(state), before)))
    assert state.step == 2 and metrics["loss"] == 0 and metrics["finite"]


# ---- donation ------------------------------------------------------------------------------------


def test_the_old_state_is_donated_and_the_callers_parameters_survive() -> None:
    params = network()
    before = digest(params)
    state = begin(params, HEAD, ADAMW)
    new, _ = STEP(state, examples(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.trainable, state.opt_state)))
    assert digest(params) == before  # reading a donated buffer would raise
    assert digest({"body": new.params["body"]}) == digest({"body": params["body"]})


def test_rules_that_do_not_fit_are_an_error_before_the_first_step() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        begin(network(), ((".*", FROZEN),), ADAMW)
    with pytest.raises(
        ValueError, match="rule 'haed/.*' decides no leaf; nearest names: 'head/bias'"
    ):
        begin(network(), (("haed/.*", TRAINABLE), (".*", FROZEN)), ADAMW)


# ---- selection of small losses -------------------------------------------------------------------


def selected(share: float, step_number: int, values: Any, valid: Any = None) -> np.ndarray:
    """The values of a loss after selection, with a ramp of 10 steps."""

    def loss(params: Any, *others: Any) -> tuple[Any, Any, Any]:
        return params, None, None

    chosen = step.select_small_losses(loss, share, 10)
    values = jnp.asarray(values, jnp.float32)
    key, count = jax.random.split(jax.random.key(0), len(values)), jnp.int32(step_number)
    return np.asarray(chosen(values, {}, key, count, None, None, valid)[0])


def test_the_largest_losses_of_a_batch_are_left_out() -> None:
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.5, 5.0, 3.5, 8.0, 7.0]
    np.testing.assert_array_equal(selected(0.4, 0, values), values)
    for number, left_out in ((5, 2), (10, 4), (99, 4)):
        kept = np.sort(values)[: 10 - left_out]
        result = selected(0.4, number, values)
        np.testing.assert_allclose(result.mean(), kept.mean(), rtol=1e-6)
        assert set(np.array(values)[result > 0]) == set(kept)
    np.testing.assert_allclose(selected(0.5, 10, [2.0, 2.0, 2.0, 2.0]).sum(), 8.0)  # equal losses


def test_padded_slots_are_not_selected_from() -> None:
    valid = jnp.asarray([True, True, False, True, True, False])
    result = selected(0.5, 10, [1.0, 8.0, 99.0, 2.0, 7.0, 0.1], valid)
    np.testing.assert_allclose(result[np.asarray(valid)], [2.0, 0.0, 4.0, 0.0])
    assert np.isfinite(selected(0.9, 10, [5.0, 1.0], jnp.zeros(2, bool))).all()


def test_examples_that_are_left_out_have_no_gradient() -> None:
    """A step is that of the same weights on the examples that remain, padded to the same size."""
    batch = examples(0)
    losses = -jax.nn.log_softmax(forward(network(), batch.inputs))[jnp.arange(16), batch.labels]
    kept = jnp.argsort(jnp.argsort(losses)) < 12
    chosen = step.select_small_losses(step.plain_loss(step_forward), 0.25, 0)
    one = make_train_step(step_forward, ADAMW, loss=chosen)
    after, metrics = one(begin(network(), ALL, ADAMW), batch)
    alone, expected = STEP(begin(network(), ALL, ADAMW), batch._replace(valid=kept))
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
    for name, leaf in flatten(alone.params).items():
        np.testing.assert_allclose(flatten(after.params)[name], leaf, atol=1e-5, err_msg=name)
    assert metrics["images"] == 16
