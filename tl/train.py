"""The training step: a gradient on the trainable subtree, and nothing of the frozen one.

A frozen leaf has no gradient, no optimizer state, no decay and no place in a norm, because it is not an argument of the
differentiated function. Loops, data and logs are the caller's (`tl.fit` is one).
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

Step = Callable[[TrainState, Examples], tuple[TrainState, dict[str, jax.Array]]]


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


def make_train_step(
    forward: Forward,
    optimizer: optax.GradientTransformation,
    *,
    smoothing: float = 0.0,
    augment: Augment | None = None,
    class_weights: Array | None = None,
    microbatches: int = 1,
    ema_decay: float = 0.0,
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

    Returns:
      The step; its metrics are `loss` (nats, weighted mean over valid examples), `accuracy` (of the labels, after
      augmentation), `grad_norm` (trainable leaves) and `finite`.

    Raises:
      ValueError: while tracing, a batch that `microbatches` does not divide.
    """

    def total_loss(trainable: Any, frozen: Any, stats: Any, part: tuple) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        inputs, targets, labels, weights, valid = part
        logits, moved = forward(merge(trainable, frozen), stats, inputs)
        right = jnp.sum(valid * (jnp.argmax(logits, axis=1) == labels).astype(jnp.float32))
        return jnp.sum(weights * losses.soft_cross_entropy(logits, targets)), (right, moved)

    def step(train_state: TrainState, examples: Examples) -> tuple[TrainState, dict[str, jax.Array]]:
        inputs, labels, valid, confidence = jax.tree.map(jnp.asarray, examples)
        key = jax.random.fold_in(train_state.key, train_state.step)
        k = jax.eval_shape(forward, train_state.params, train_state.stats, inputs)[0].shape[1]
        targets = losses.smoothed(labels, k, smoothing, confidence)
        if augment is not None:
            inputs, targets = augment(key, inputs, targets, valid)
        counted = valid.astype(jnp.float32)
        weights = counted if class_weights is None else counted * jnp.asarray(class_weights)[jnp.clip(labels, 0, k - 1)]
        value_and_grad = jax.value_and_grad(total_loss, has_aux=True)

        def one(stats: Any, part: tuple) -> tuple[Any, tuple]:
            (value, (right, moved)), gradient = value_and_grad(train_state.trainable, train_state.frozen, stats, part)
            return moved, (value, right, gradient)

        whole = (inputs, targets, labels, weights, counted)
        if microbatches == 1:
            stats, (value, right, gradient) = one(train_state.stats, whole)
        else:
            if inputs.shape[0] % microbatches:
                raise ValueError(f"a batch of {inputs.shape[0]} does not divide into {microbatches} equal parts")

            def add(carry: tuple, part: tuple) -> tuple[tuple, None]:
                stats, sums = carry
                moved, found = one(stats, part)
                return (moved, jax.tree.map(jnp.add, sums, found)), None

            parts = jax.tree.map(lambda a: a.reshape(microbatches, -1, *a.shape[1:]), whole)
            zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, train_state.trainable))
            (stats, (value, right, gradient)), _ = jax.lax.scan(add, (train_state.stats, zero), parts)
        total, count = jnp.maximum(jnp.sum(weights), 1e-12), jnp.maximum(jnp.sum(counted), 1.0)
        value, gradient = value / total, jax.tree.map(lambda g: g / total, gradient)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)

        updates, opt_state = optim.update(optimizer, gradient, train_state.opt_state, train_state.trainable)
        trainable: Any = optax.apply_updates(train_state.trainable, updates)
        ema = train_state.ema
        if ema is not None:
            age = train_state.step.astype(jnp.float32)
            decay = jnp.minimum(ema_decay, (1.0 + age) / (10.0 + age))
            ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, trainable)
        old = (train_state.trainable, train_state.stats, train_state.opt_state, train_state.ema)
        new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), (trainable, stats, opt_state, ema), old)
        metrics = {"loss": value, "accuracy": right / count, "grad_norm": norm, "finite": finite}
        trainable, stats, opt_state, ema = new
        step_count = train_state.step + 1
        return TrainState(step_count, trainable, train_state.frozen, stats, opt_state, ema, train_state.key), metrics

    return jax.jit(step, donate_argnums=0)
