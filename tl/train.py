"""The training step: a gradient on the trainable subtree, and nothing of the frozen one.

A frozen leaf has no gradient, no optimizer state, no decay and no place in a norm, because it is not an argument of the
differentiated function. Loops, data and logs are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tl import losses, optim
from tl.paths import FROZEN, Rules, label, merge, split


class TrainState(NamedTuple):
    """All that a step changes, and the frozen rest that it reads.

    Attributes:
      step: i32[], steps done.
      trainable: params with `None` where a leaf is frozen.
      frozen: params with `None` where a leaf is trainable.
      opt_state: of the trainable leaves only.
    """

    step: jax.Array
    trainable: dict[str, Any]
    frozen: dict[str, Any]
    opt_state: Any

    @property
    def params(self) -> dict[str, Any]:
        """The whole tree."""
        return merge(self.trainable, self.frozen)


class Examples(NamedTuple):
    """One batch of fixed shape: `inputs` [b ...], `labels` i32[b], `valid` bool[b] (False: padding, no weight)."""

    inputs: jax.Array
    labels: jax.Array
    valid: jax.Array


Forward = Callable[[Any, jax.Array], Any]
"""`(params, inputs) -> logits f32[b k]`."""


def init(params: Any, rules: Rules, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, a copy of `params`; rules as for `paths.label`, which also raises their errors."""
    frozen, trainable = split(jax.tree.map(jnp.array, params), label(params, rules), FROZEN)
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, optimizer.init(trainable))


def make_train_step(
    forward: Forward, optimizer: optax.GradientTransformation, *, smoothing: float = 0.0
) -> Callable[[TrainState, Examples], tuple[TrainState, dict[str, jax.Array]]]:
    """A jitted step `(train_state, examples) -> (train_state, metrics)`; the old state's buffers are donated to the new.

    Args:
      forward: params and inputs to logits.
      optimizer: for the trainable half.
      smoothing: label smoothing, in [0, 1).

    Returns:
      The step; its metrics are `loss` (nats, mean over valid examples), `accuracy` and `grad_norm` (trainable leaves).
    """

    def loss(trainable: Any, frozen: Any, examples: Examples) -> tuple[jax.Array, jax.Array]:
        logits = forward(merge(trainable, frozen), examples.inputs)
        weight = examples.valid.astype(jnp.float32)
        total = jnp.maximum(jnp.sum(weight), 1.0)
        right = (jnp.argmax(logits, axis=1) == examples.labels).astype(jnp.float32)
        each = losses.cross_entropy(logits, examples.labels, smoothing=smoothing)
        return jnp.sum(weight * each) / total, jnp.sum(weight * right) / total

    def step(train_state: TrainState, examples: Examples) -> tuple[TrainState, dict[str, jax.Array]]:
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        (value, accuracy), gradient = value_and_grad(train_state.trainable, train_state.frozen, examples)
        updates, opt_state = optim.update(optimizer, gradient, train_state.opt_state, train_state.trainable)
        trainable: Any = optax.apply_updates(train_state.trainable, updates)
        metrics = {"loss": value, "accuracy": accuracy, "grad_norm": optax.tree.norm(gradient)}
        return TrainState(train_state.step + 1, trainable, train_state.frozen, opt_state), metrics

    return jax.jit(step, donate_argnums=0)
