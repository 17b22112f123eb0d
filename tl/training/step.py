"""The training step: a gradient on the trainable subtree, and nothing of the frozen one.

A frozen leaf has no gradient, no optimizer state, no decay and no place in a norm, because it is not an argument of the
differentiated function. Loops, data and logs are the caller's (`tl.training.fit` is one).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tl import losses, optim
from tl.paths import FROZEN, Rules, label, merge, split
from tl.types import Array


class TrainState(NamedTuple):
    """All that a step changes, and the frozen rest that it reads.

    Attributes:
      step: i32[], steps done.
      trainable: params with `None` where a leaf is frozen.
      frozen: params with `None` where a leaf is trainable.
      stats: `batch_stats`, of frozen layers too.
      opt_state: of the trainable leaves only.
      ema: running average of the trainable leaves, or None.
      key: from which, and from the step, all that is random in a step is drawn.
    """

    step: jax.Array
    trainable: dict[str, Any]
    frozen: dict[str, Any]
    stats: Any
    opt_state: Any
    ema: Any
    key: jax.Array

    @property
    def params(self) -> dict[str, Any]:
        """The whole tree."""
        return merge(self.trainable, self.frozen)

    @property
    def averaged(self) -> dict[str, Any]:
        """The whole tree with the running averages in place, where they are kept."""
        return self.params if self.ema is None else merge(self.ema, self.frozen)


class Examples(NamedTuple):
    """One batch of fixed shape: `inputs` [b ...], `labels` i32[b], `valid` bool[b] (False: padding, no weight).

    `confidence` f32[b] is how sure each label is, for soft targets; None takes labels for certain.
    """

    inputs: Array
    labels: Array
    valid: Array
    confidence: Array | None = None


Forward = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
"""`(params, stats, inputs) -> (logits f32[b k], stats)`."""

Augment = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""`(key, inputs, targets f32[b k], valid bool[b]) -> (inputs, targets)`."""

Loss = Callable[..., tuple[jax.Array, jax.Array, Any]]
"""`(params, stats, keys, step, inputs, targets) -> (loss f32[b], logits f32[b k], stats)`: `keys` are one an example, `step`
i32[] those done. Example i is a matter of row i alone, unless BatchNorm follows the batch."""


class Moving(NamedTuple):
    """The part of a `TrainState` that the gradient of one batch changes."""

    trainable: Any
    stats: Any
    opt_state: Any
    ema: Any


class Replay(NamedTuple):
    """A batch taken several times, its inputs moving by the backward pass that trains (`tl.training.adversarial`, "free").

    Attributes:
      times: steps of the optimizer that a batch makes.
      start: `(keys, step, inputs) -> inputs`, of the first time.
      move: `(gradient, step, inputs, center) -> inputs`, of the next time; `center` are the inputs as they came.
    """

    times: int
    start: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    move: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


Step = Callable[[TrainState, Examples], tuple[TrainState, dict[str, jax.Array]]]

LOSS_KEY = (
    1 << 16
)  # beyond the words of an augmentation, which fold 0, 1, 2 ... into the step's key


def init(
    params: Any,
    rules: Rules,
    optimizer: optax.GradientTransformation,
    *,
    stats: Any = None,
    key: jax.Array | None = None,
    ema: bool = False,
) -> TrainState:
    """The state before the first step, a copy of its arguments; rules as for `paths.label`, which also raises their errors."""
    copied = jax.tree.map(jnp.array, params)
    frozen, trainable = split(copied, label(params, rules), FROZEN)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        frozen=frozen,
        stats=jax.tree.map(jnp.array, {} if stats is None else stats),
        opt_state=optimizer.init(trainable),
        ema=jax.tree.map(jnp.array, trainable) if ema else None,
        key=jax.random.key(0) if key is None else key,
    )


def plain_loss(forward: Forward) -> Loss:
    """Cross-entropy of the inputs as they are."""

    def loss(
        params: Any,
        stats: Any,
        keys: jax.Array,
        step: jax.Array,
        inputs: jax.Array,
        targets: jax.Array,
    ) -> tuple[jax.Array, jax.Array, Any]:
        del keys, step
        logits, moved = forward(params, stats, inputs)
        return losses.soft_cross_entropy(logits, targets), logits, moved

    return loss


def make_train_step(
    forward: Forward,
    optimizer: optax.GradientTransformation,
    *,
    smoothing: float = 0.0,
    augment: Augment | None = None,
    class_weights: Array | None = None,
    microbatches: int = 1,
    ema_decay: float = 0.0,
    loss: Loss | None = None,
    replay: Replay | None = None,
) -> Step:
    """A jitted step `(train_state, examples) -> (train_state, metrics)`; the old state's buffers are donated to the new.

    A step whose loss or gradient is not finite changes nothing but the count of steps, so that the last good state is kept.

    Args:
      forward: params, statistics and inputs to logits and moved statistics.
      optimizer: for the trainable half.
      smoothing: label smoothing, in [0, 1).
      augment: changes inputs and targets, keyed by the state's key and its step.
      class_weights: f32[k], weight of an example of each class.
      microbatches: parts, of equal size, whose gradients are summed one after the other: less memory, the same step (where
        BatchNorm follows the batch, a part is the batch).
      ema_decay: of the running average, at most; while young it follows faster, (1 + t) / (10 + t), as in TensorFlow's
        `ExponentialMovingAverage`.
      loss: in place of `plain_loss(forward)`, such as a row of `robust.METHODS` makes.
      replay: takes each batch several times, as many steps of the optimizer.

    Returns:
      The step; its metrics are `loss` (nats, weighted mean over valid examples), `accuracy` (of the labels, after
      augmentation, by the logits that the loss gives), `grad_norm` (trainable leaves) and `finite`; means over replays.

    Raises:
      ValueError: while tracing, a batch that `microbatches` does not divide.
    """
    each_loss = plain_loss(forward) if loss is None else loss

    def total_loss(
        trainable: Any,
        inputs: jax.Array,
        frozen: Any,
        stats: Any,
        step: jax.Array,
        *others: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        keys, targets, labels, weights, valid = others
        values, logits, moved = each_loss(
            merge(trainable, frozen), stats, keys, step, inputs, targets
        )
        right = jnp.sum(valid * (jnp.argmax(logits, axis=1) == labels).astype(jnp.float32))
        return jnp.sum(weights * values), (right, moved)

    value_and_grad = jax.value_and_grad(
        total_loss, argnums=(0, 1) if replay else (0,), has_aux=True
    )

    def step(
        train_state: TrainState, examples: Examples
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        inputs, labels, valid, confidence = jax.tree.map(jnp.asarray, examples)
        key, count = jax.random.fold_in(train_state.key, train_state.step), train_state.step
        k = jax.eval_shape(forward, train_state.params, train_state.stats, inputs)[0].shape[1]
        targets = losses.smoothed(labels, k, smoothing, confidence)
        if augment is not None:
            inputs, targets = augment(key, inputs, targets, valid)
        counted = valid.astype(jnp.float32)
        weights = (
            counted
            if class_weights is None
            else counted * jnp.asarray(class_weights)[jnp.clip(labels, 0, k - 1)]
        )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(key, LOSS_KEY), jnp.arange(len(labels))
        )
        rest = (keys, targets, labels, weights, counted)
        total, number = jnp.maximum(jnp.sum(weights), 1e-12), jnp.maximum(jnp.sum(counted), 1.0)

        def summed(trainable: Any, stats: Any, inputs: jax.Array) -> tuple[Any, tuple, Any]:
            """Of the whole batch: statistics, sums of loss, right ones and gradient, and the inputs' gradient for a replay."""

            def one(stats: Any, part: tuple) -> tuple[Any, tuple[tuple, Any]]:
                inputs, *others = part
                (value, (right, moved)), (gradient, *climb) = value_and_grad(
                    trainable, inputs, train_state.frozen, stats, count, *others
                )
                return moved, ((value, right, gradient), climb)

            if microbatches == 1:
                moved, (sums, climb) = one(stats, (inputs, *rest))
                return moved, sums, climb
            if inputs.shape[0] % microbatches:
                raise ValueError(
                    f"a batch of {inputs.shape[0]} does not divide into {microbatches} equal parts"
                )

            def add(carry: tuple, part: tuple) -> tuple[tuple, Any]:
                stats, sums = carry
                moved, (found, climb) = one(stats, part)
                return (moved, jax.tree.map(jnp.add, sums, found)), climb

            parts = jax.tree.map(
                lambda a: a.reshape(microbatches, -1, *a.shape[1:]), (inputs, *rest)
            )
            zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, trainable))
            (moved, sums), climb = jax.lax.scan(add, (stats, zero), parts)
            return moved, sums, jax.tree.map(lambda a: a.reshape(inputs.shape), climb)

        def once(old: Moving, inputs: jax.Array) -> tuple[Moving, dict[str, jax.Array], Any]:
            stats, (value, right, gradient), climb = summed(old.trainable, old.stats, inputs)
            value, gradient = value / total, jax.tree.map(lambda g: g / total, gradient)
            norm = optax.tree.norm(gradient)
            finite = jnp.isfinite(value) & jnp.isfinite(norm)
            updates, opt_state = optim.update(optimizer, gradient, old.opt_state, old.trainable)
            trainable: Any = optax.apply_updates(old.trainable, updates)
            ema = old.ema
            if ema is not None:
                age = count.astype(jnp.float32)
                decay = jnp.minimum(ema_decay, (1.0 + age) / (10.0 + age))
                ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, trainable)
            new = jax.tree.map(
                lambda n, o: jnp.where(finite, n, o), Moving(trainable, stats, opt_state, ema), old
            )
            return (
                new,
                {"loss": value, "accuracy": right / number, "grad_norm": norm, "finite": finite},
                climb,
            )

        def again(
            carry: tuple[Moving, jax.Array], _: None
        ) -> tuple[tuple[Moving, jax.Array], dict[str, jax.Array]]:
            assert replay is not None
            old, seen = carry
            new, metrics, (climb,) = once(old, seen)
            return (new, replay.move(climb, count, seen, inputs)), metrics

        new = Moving(
            train_state.trainable, train_state.stats, train_state.opt_state, train_state.ema
        )
        if replay is None:
            new, metrics, _ = once(new, inputs)
        else:
            begun = (new, replay.start(keys, count, inputs))
            (new, _), rows = jax.lax.scan(again, begun, length=replay.times)
            metrics = {
                name: jnp.all(row) if row.dtype == bool else jnp.mean(row)
                for name, row in rows.items()
            }
        return train_state._replace(step=count + 1, **new._asdict()), metrics

    return jax.jit(step, donate_argnums=0)
