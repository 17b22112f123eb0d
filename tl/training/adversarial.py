"""Adversarial training: losses of pictures moved, within a ball, to where the network does worst. For `train.make_train_step`.

Four ways, a row of `METHODS` each. All climb with `ascend` in the geometry of `attacks.norms`, from a random start, on
pictures in [0, 1] that are not normalised. The network is in the mode in which it trains. It does not measure robustness:
an attack of `tl.attacks` on held-out pictures does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl import losses
from tl.ascent import ascend
from tl.attacks.norms import LINF, Norm
from tl.paths import nearest
from tl.training.step import Forward, Loss, Replay, plain_loss

Perturb = Callable[[Any, Any, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""`(params, stats, keys, images01, targets f32[b k], eps) -> images01`, in the ball around them and in [0, 1]."""

Score = Callable[[jax.Array, jax.Array], jax.Array]
"""`(logits f32[b k], targets f32[b k]) -> f32[b]`, what is climbed; targets may be logits too, where the score knows it."""


@dataclasses.dataclass(frozen=True)
class Adversary:
    """How a network is trained against changes of its pictures.

    Attributes:
      method: a row of `METHODS`.
      eps: radius in [0, 1] pixel units, 2/255.
      steps: of the inner climb, each 2.5 eps / steps long; "fast" makes one of 1.25 eps, "free" its replays.
      beta: of "trades": weight of the divergence; 1 / lambda in the paper, which takes 6 on CIFAR-10.
      replays: of "free": steps that each batch makes; 4 is the paper's on ImageNet.
      warmup: steps of training over which the radius grows from 0 to `eps`.
    """

    method: str = "pgd"
    eps: float = 2 / 255
    steps: int = 3
    beta: float = 6.0
    replays: int = 4
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(
                f"unknown adversarial training {self.method!r}; nearest: {nearest(self.method, METHODS)}"
            )
        if not 0 <= self.eps <= 1:
            raise ValueError(
                f"eps is a share of the pixel range [0, 1], such as 2/255; got {self.eps:.4g}"
            )
        if min(self.steps, self.replays) < 1 or min(self.beta, self.warmup) < 0:
            raise ValueError(
                "steps and replays must be at least 1, beta and warmup at least 0; got "
                f"{self.steps}, {self.replays}, {self.beta:g} and {self.warmup}"
            )

    def radius(self, step: jax.Array) -> jax.Array:
        """f32[], the radius at a step of training, i32[]."""
        share = jnp.minimum((step.astype(jnp.float32) + 1.0) / max(self.warmup, 1), 1.0)
        return jnp.float32(self.eps) * (share if self.warmup else 1.0)


class Hooks(NamedTuple):
    """What adversarial training gives to `train.make_train_step`."""

    loss: Loss | None = None
    replay: Replay | None = None


def make_perturb(
    forward: Forward,
    *,
    steps: int,
    reach: float = 2.5,
    score: Score = losses.soft_cross_entropy,
    norm: Norm = LINF,
) -> Perturb:
    """Projected gradient ascent from a random start; call it inside `jit`. No gradient passes through what it finds.

    Args:
      forward: the network, of pictures in [0, 1].
      steps: static, at least 1.
      reach: length of the whole way, in eps; each step is `reach / steps` of it.
      score: what is climbed.
      norm: the ball.

    Reference: Madry et al. 2018, arXiv:1706.06083, section 2.1 and, for the step, 5.
    """

    def perturb(
        params: Any,
        stats: Any,
        keys: jax.Array,
        images01: jax.Array,
        targets: jax.Array,
        eps: jax.Array,
    ) -> jax.Array:
        params, stats, images01, targets = jax.lax.stop_gradient((params, stats, images01, targets))
        return ascend.ascend(
            lambda x, _: score(forward(params, stats, x)[0], targets),
            norm.start(keys, images01, eps),
            keys,
            steps=steps,
            optimizer=ascend.direction(norm.direction),
            step_size=reach * eps / steps,
            project=lambda x: norm.project(x, images01, eps),
        ).last

    return perturb


def pgd(adversary: Adversary, forward: Forward) -> Hooks:
    """The loss is that of the moved pictures alone. Reference: Madry et al. 2018, arXiv:1706.06083, equation 2.1."""
    return Hooks(_at_the_worst(adversary, forward, make_perturb(forward, steps=adversary.steps)))


def fast(adversary: Adversary, forward: Forward) -> Hooks:
    """One step of 1.25 eps from a random start. Reference: Wong et al. 2020, arXiv:2001.03994, algorithm 3."""
    return Hooks(_at_the_worst(adversary, forward, make_perturb(forward, steps=1, reach=1.25)))


def _at_the_worst(adversary: Adversary, forward: Forward, perturb: Perturb) -> Loss:
    plain = plain_loss(forward)

    def loss(
        params: Any,
        stats: Any,
        keys: jax.Array,
        step: jax.Array,
        inputs: jax.Array,
        targets: jax.Array,
    ) -> tuple[jax.Array, jax.Array, Any]:
        moved = perturb(params, stats, keys, inputs, targets, adversary.radius(step))
        return plain(params, stats, keys, step, moved, targets)

    return loss


def trades(adversary: Adversary, forward: Forward) -> Hooks:
    """Clean cross-entropy, and beta times the divergence of what is said of moved pictures from what is said of clean ones.

    The climb is on that divergence. It starts anywhere in the ball; the paper's starts a thousandth from the picture. The
    logits given back are those of the moved pictures.

    Reference: Zhang et al. 2019, arXiv:1901.08573, equation 5 and algorithm 1.
    """
    perturb = make_perturb(forward, steps=adversary.steps, score=losses.kl_divergence)

    def loss(
        params: Any,
        stats: Any,
        keys: jax.Array,
        step: jax.Array,
        inputs: jax.Array,
        targets: jax.Array,
    ) -> tuple[jax.Array, jax.Array, Any]:
        logits, after = forward(params, stats, inputs)
        moved = perturb(params, stats, keys, inputs, logits, adversary.radius(step))
        found, after = forward(params, after, moved)
        away = losses.kl_divergence(found, logits)
        return losses.soft_cross_entropy(logits, targets) + adversary.beta * away, found, after

    return Hooks(loss)


def free(adversary: Adversary, forward: Forward) -> Hooks:
    """Each batch makes several steps, and the backward pass of each moves the pictures too, by eps. One replay is a step.

    Each batch starts anywhere in the ball; the paper's starts where the batch before ended. A schedule of the learning rate
    counts `replays` steps a batch; to spend what plain training does, divide the epochs by them.

    Reference: Shafahi et al. 2019, arXiv:1904.12843, algorithm 1.
    """
    norm = LINF

    def move(
        gradient: jax.Array, step: jax.Array, inputs: jax.Array, center: jax.Array
    ) -> jax.Array:
        eps = adversary.radius(step)
        return norm.project(inputs + eps * norm.direction(gradient), center, eps)

    def start(keys: jax.Array, step: jax.Array, inputs: jax.Array) -> jax.Array:
        return norm.start(keys, inputs, adversary.radius(step))

    return Hooks(plain_loss(forward), Replay(adversary.replays, start, move))


METHODS: Mapping[str, Callable[[Adversary, Forward], Hooks]] = {
    "pgd": pgd,
    "trades": trades,
    "fast": fast,
    "free": free,
}


def hooks(adversary: Adversary, forward: Forward) -> Hooks:
    """The arguments of `train.make_train_step` that make it train against this adversary; inputs are pictures in [0, 1]."""
    return METHODS[adversary.method](adversary, forward)
