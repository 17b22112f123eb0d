"""The train step: a gradient with respect to the trainable subtree only.

A frozen leaf has no gradient, no optimizer state and no decay, and does not count in a gradient
norm, because it is not an argument of the differentiated function. The step does not read data,
loop or log: `tl.training.loop` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from tl import losses, optim
from tl.paths import Partition, merge
from tl.types import Array, Params


class TrainState(NamedTuple):
    """Everything that a step changes, and the frozen parameters that it reads.

    Attributes:
      step: i32[], number of completed steps.
      trainable: params with `None` where a leaf is frozen.
      frozen: params with `None` where a leaf is trainable.
      stats: `batch_stats`, those of frozen layers included.
      opt_state: optimizer state of the trainable leaves only.
      ema: running average of the trainable leaves, or None.
      key: with `step`, the source of all randomness in a step.
      ema_stats: running average of `stats` with the same decay, or None where steps do not change
        them.
    """

    step: jax.Array
    trainable: dict[str, Any]
    frozen: dict[str, Any]
    stats: Any
    opt_state: Any
    ema: Any
    key: jax.Array
    ema_stats: Any = None

    @property
    def params(self) -> dict[str, Any]:
        """All parameters."""
        return merge(self.trainable, self.frozen)

    @property
    def averaged(self) -> dict[str, Any]:
        """All parameters, trainable ones replaced by their averages if there are any."""
        if self.ema is not None:
            return merge(self.ema, self.frozen)
        return merge(optim.evaluated(self.opt_state, self.trainable), self.frozen)

    @property
    def averaged_stats(self) -> Any:
        """The statistics that belong to `averaged`."""
        return self.stats if self.ema_stats is None else self.ema_stats


class Examples(NamedTuple):
    """One batch of fixed shape.

    Attributes:
      inputs: [b ...], images or cached outputs of a frozen prefix.
      labels: i32[b].
      valid: bool[b]; False marks padding, which has no effect on the result of a step.
      confidence: f32[b], the probability of each label, for soft targets; None means 1.
    """

    inputs: Array
    labels: Array
    valid: Array
    confidence: Array | None = None


class Forward(Protocol):
    """`(params, stats, inputs, valid bool[b]) -> (logits f32[b k], stats)`.

    Slots that are not valid must not change the statistics or the logits of other slots. None means
    that all slots are valid.
    """

    def __call__(
        self, params: Any, stats: Any, inputs: jax.Array, valid: jax.Array | None = None, /
    ) -> tuple[jax.Array, Any]: ...


Augment = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""`(key, inputs, targets f32[b k], valid bool[b]) -> (inputs, targets)`."""

Loss = Callable[..., tuple[jax.Array, jax.Array, Any]]
"""`(params, stats, keys, step, inputs, targets, valid) -> (loss f32[b], logits f32[b k], stats)`.

`keys` has one key per example, `step` i32[] is the number of completed steps, `valid` bool[b] is
False for padding (None: there is none). Row i of the results depends on example i only, unless
BatchNorm uses the statistics of the batch or examples are selected.
"""


class StepVariables(NamedTuple):
    """The part of a `TrainState` that one optimizer step changes."""

    trainable: Any
    stats: Any
    opt_state: Any
    ema: Any
    ema_stats: Any


class Replay(NamedTuple):
    """Several optimizer steps on one batch; the same backward pass also changes its inputs.

    Used by "free" adversarial training (`tl.training.adversarial`).

    Attributes:
      times: optimizer steps per batch.
      start: `(keys, step, inputs) -> inputs` of the first step.
      move: `(gradient, step, inputs, center) -> inputs` of the next step; `center` are the original
        inputs.
    """

    times: int
    start: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    move: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
"""`(train_state, examples, padded=True) -> (train_state, metrics)`; see `make_train_step`."""

# Folded into the step's key for the loss. Augmentations fold in 0, 1, 2, ...
LOSS_KEY = 1 << 16


def init(
    params: Params,
    partition: Partition,
    optimizer: optax.GradientTransformation,
    *,
    stats: Any = None,
    key: jax.Array | None = None,
    ema: bool = False,
    ema_stats: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
      params: all parameters; they are copied, because a step donates the buffers of its state.
      partition: which of them train.
      optimizer: optimizer of the trainable tree, such as `optim.partitioned`.
      stats: `batch_stats`; also copied.
      key: default `jax.random.key(0)`.
      ema: whether to keep a running average of the trainable leaves.
      ema_stats: whether to keep one of the statistics too; of use where steps change them.
    """
    copied = lambda tree: jax.tree.map(jnp.array, tree)
    stats = {} if stats is None else stats
    trainable, frozen = partition.split(copied(params))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=trainable,
        frozen=frozen,
        stats=copied(stats),
        opt_state=optimizer.init(trainable),
        ema=copied(trainable) if ema else None,
        key=jax.random.key(0) if key is None else key,
        ema_stats=copied(stats) if ema_stats else None,
    )


def plain_loss(
    forward: Forward,
    value: Callable[[jax.Array, jax.Array], jax.Array] = losses.soft_cross_entropy,
) -> Loss:
    """A loss of the unchanged inputs; `value` is one of `losses.LOSSES`."""

    def loss(
        params: Any,
        stats: Any,
        keys: jax.Array,
        step: jax.Array,
        inputs: jax.Array,
        targets: jax.Array,
        valid: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Any]:
        del keys, step
        logits, new_stats = forward(params, stats, inputs, valid)
        return value(logits, targets), logits, new_stats

    return loss


def select_small_losses(loss: Loss, share: float, ramp: int) -> Loss:
    """A loss that leaves out the examples of a batch with the largest values.

    Wrong labels have large losses before a network has memorized them. Of n valid examples,
    `floor(share * n * min(step / ramp, 1))` are left out; the others are scaled so that the mean
    over the batch is their mean. With microbatches, each part of a batch is selected from.

    Args:
      loss: the loss of which the examples are selected.
      share: in [0, 1), such as the share of labels that are wrong.
      ramp: number of steps over which the share grows from 0.

    Reference:
      Han et al. 2018, arXiv:1804.06872, algorithm 1, where each of two networks selects for the
      other; with one network, Shen & Sanghavi 2019, arXiv:1810.11874, algorithm 1.
    """

    def selected(
        params: Any,
        stats: Any,
        keys: jax.Array,
        step: jax.Array,
        inputs: jax.Array,
        targets: jax.Array,
        valid: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Any]:
        values, logits, new_stats = loss(params, stats, keys, step, inputs, targets, valid)
        mask = jnp.ones(values.shape, bool) if valid is None else valid
        ranked = jnp.where(mask, -jax.lax.stop_gradient(values), jnp.inf)
        rank = jnp.argsort(jnp.argsort(ranked)).astype(jnp.float32)  # 0 for the largest value
        n = jnp.sum(mask.astype(jnp.float32))
        grown = jnp.minimum(step.astype(jnp.float32) / ramp, 1.0) if ramp else 1.0
        left_out = jnp.floor(share * grown * n)
        scale = n / jnp.maximum(n - left_out, 1.0)
        return jnp.where(rank >= left_out, scale * values, 0.0), logits, new_stats

    return selected


def make_train_step(
    forward: Forward,
    optimizer: optax.GradientTransformation,
    *,
    smoothing: float = 0.0,
    augment: Augment | None = None,
    class_weights: Array | None = None,
    microbatches: int = 1,
    ema_decay: float = 0.0,
    average_from: int | None = None,
    loss: Loss | None = None,
    replay: Replay | None = None,
) -> Step:
    """A jitted step `(train_state, examples, padded=True) -> (train_state, metrics)`.

    `padded` is static. False promises that all examples are valid; `forward` then receives no mask,
    and BatchNorm in `Mode.TRAIN` is faster.

    The buffers of the old state are donated. If the loss or the gradient is not finite, or the
    batch is padding alone, a step changes nothing except the step count.

    Args:
      forward: the network; see `Forward`.
      optimizer: optimizer of the trainable tree.
      smoothing: label smoothing, in [0, 1).
      augment: changes inputs and targets; its key is derived from the state's key and step.
      class_weights: f32[k], weight of an example of each class; default 1.
      microbatches: number of equal parts of a batch whose gradients are summed one after the other:
        less memory, the same step. (With batch statistics in BatchNorm, the statistics are those of
        the valid examples of a part.)
      ema_decay: upper limit of the decay of the running averages; at step t it is at most (1 + t) /
        (10 + t), as in TensorFlow's `ExponentialMovingAverage`.
      average_from: number of the step from which on the running averages are means with equal
        weights instead; before it they are the parameters. Default: `ema_decay` decides.
      loss: default `plain_loss(forward)`; `adversarial.hooks` makes others.
      replay: makes several optimizer steps per batch.

    Returns:
      The step. Its metrics are `loss` (nats, weighted mean over valid examples), `accuracy` (of the
      labels, after augmentation, from the logits that the loss returns), `grad_norm` (over
      trainable leaves) and `finite`; with `replay`, means over its steps. `weight` is the sum of
      the weights of `loss`, and `images` the number of valid examples.

    Raises:
      ValueError: while tracing, if `microbatches` does not divide the batch.
    """
    loss_fn = plain_loss(forward) if loss is None else loss

    def total_loss(
        trainable: Any,
        inputs: jax.Array,
        frozen: Any,
        stats: Any,
        step: jax.Array,
        padded: bool,
        *others: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        keys, targets, labels, weights, valid = others
        values, logits, new_stats = loss_fn(
            merge(trainable, frozen), stats, keys, step, inputs, targets, valid if padded else None
        )
        correct = jnp.sum((valid & (jnp.argmax(logits, axis=1) == labels)).astype(jnp.float32))
        return jnp.sum(weights * values), (correct, new_stats)

    value_and_grad = jax.value_and_grad(
        total_loss, argnums=(0, 1) if replay else (0,), has_aux=True
    )

    def step(
        train_state: TrainState, examples: Examples, padded: bool = True
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        inputs, labels, valid, confidence = jax.tree.map(jnp.asarray, examples)
        key, count = jax.random.fold_in(train_state.key, train_state.step), train_state.step
        params, stats = train_state.params, train_state.stats
        k = jax.eval_shape(forward, params, stats, inputs, valid)[0].shape[1]
        targets = losses.smooth_labels(labels, k, smoothing, confidence)
        if augment is not None:
            inputs, targets = augment(key, inputs, targets, valid)
        mask = valid.astype(jnp.float32)
        weights = mask
        if class_weights is not None:
            weights = mask * jnp.asarray(class_weights)[jnp.clip(labels, 0, k - 1)]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(key, LOSS_KEY), jnp.arange(len(labels))
        )
        rest = (keys, targets, labels, weights, valid)
        total, number = jnp.maximum(jnp.sum(weights), 1e-12), jnp.maximum(jnp.sum(mask), 1.0)

        def batch_sums(trainable: Any, stats: Any, inputs: jax.Array) -> tuple[Any, tuple, Any]:
            """New statistics; sums of loss, correct examples, gradient; input gradient."""

            def part_sums(stats: Any, part: tuple) -> tuple[Any, tuple[tuple, Any]]:
                inputs, *others = part
                (value, (correct, new_stats)), (gradient, *input_gradient) = value_and_grad(
                    trainable, inputs, train_state.frozen, stats, count, padded, *others
                )
                return new_stats, ((value, correct, gradient), input_gradient)

            if microbatches == 1:
                new_stats, (sums, input_gradient) = part_sums(stats, (inputs, *rest))
                return new_stats, sums, input_gradient
            if inputs.shape[0] % microbatches:
                raise ValueError(
                    f"`microbatches` must divide the batch: got {microbatches} parts of a batch "
                    f"of {inputs.shape[0]}"
                )

            def add(carry: tuple, part: tuple) -> tuple[tuple, Any]:
                stats, sums = carry
                new_stats, (part_sum, input_gradient) = part_sums(stats, part)
                return (new_stats, jax.tree.map(jnp.add, sums, part_sum)), input_gradient

            parts = jax.tree.map(
                lambda a: a.reshape(microbatches, -1, *a.shape[1:]), (inputs, *rest)
            )
            zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, trainable))
            (new_stats, sums), gradients = jax.lax.scan(add, (stats, zero), parts)
            return new_stats, sums, jax.tree.map(lambda a: a.reshape(inputs.shape), gradients)

        def optimize(
            old: StepVariables, inputs: jax.Array
        ) -> tuple[StepVariables, dict[str, jax.Array], Any]:
            stats, sums, input_gradient = batch_sums(old.trainable, old.stats, inputs)
            value, correct, gradient = sums
            value, gradient = value / total, jax.tree.map(lambda g: g / total, gradient)
            norm = optax.tree.norm(gradient)
            finite = jnp.isfinite(value) & jnp.isfinite(norm)
            accept = finite & jnp.any(valid)  # without examples, decay and momentum would still act

            def gradient_at(trainable: Any) -> Any:
                gradient = batch_sums(trainable, old.stats, inputs)[1][2]
                return jax.tree.map(lambda g: g / total, gradient)

            updates, opt_state = optim.update(
                optimizer, gradient, old.opt_state, old.trainable, gradient_at
            )
            trainable: Any = optax.apply_updates(old.trainable, updates)
            age = count.astype(jnp.float32)
            if average_from is None:
                decay = jnp.minimum(ema_decay, (1.0 + age) / (10.0 + age))
            else:
                before = jnp.maximum(age - average_from, 0.0)  # steps in the mean so far
                decay = before / (before + 1.0)
            ema, ema_stats = old.ema, old.ema_stats
            if ema is not None:
                ema = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, ema, trainable)
            if ema_stats is not None:  # in this form, statistics that stay the same keep every bit
                ema_stats = jax.tree.map(lambda e, s: e + (1.0 - decay) * (s - e), ema_stats, stats)
            new = jax.tree.map(
                lambda n, o: jnp.where(accept, n, o),
                StepVariables(trainable, stats, opt_state, ema, ema_stats),
                old,
            )
            metrics = {"loss": value, "accuracy": correct / number, "grad_norm": norm}
            return new, {**metrics, "finite": finite}, input_gradient

        def optimize_and_move(
            carry: tuple[StepVariables, jax.Array], _: None
        ) -> tuple[tuple[StepVariables, jax.Array], dict[str, jax.Array]]:
            assert replay is not None
            old, current = carry
            new, metrics, (input_gradient,) = optimize(old, current)
            return (new, replay.move(input_gradient, count, current, inputs)), metrics

        new = StepVariables(*(getattr(train_state, name) for name in StepVariables._fields))
        if replay is None:
            new, metrics, _ = optimize(new, inputs)
        else:
            start = (new, replay.start(keys, count, inputs))
            (new, _), rows = jax.lax.scan(optimize_and_move, start, length=replay.times)
            metrics = {
                name: jnp.all(row) if row.dtype == bool else jnp.mean(row)
                for name, row in rows.items()
            }
        metrics |= {"weight": jnp.sum(weights), "images": jnp.sum(mask)}
        return train_state._replace(step=count + 1, **new._asdict()), metrics

    return jax.jit(step, donate_argnums=0, static_argnums=2)
