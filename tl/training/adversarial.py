"""Adversarial training: losses on adversarial examples, for `step.make_train_step`.

There are four methods, one row of `METHODS` each. All use gradient ascent (`tl.ascent.ascend`) in
the geometry of `attacks.norms`, from a random start, on images in [0, 1] before normalization, with
the network in its training mode. This module does not measure robustness: an attack of `tl.attacks`
on held-out images does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tl import losses
from tl.ascent import ascend
from tl.attacks.norms import LINF, Norm, level_hint
from tl.paths import nearest
from tl.training.step import Forward, Loss, Replay, plain_loss

Perturb = Callable[..., jax.Array]
"""`(params, stats, keys, images01, targets f32[b k], eps, valid=None) -> images01`, in the ball."""

Score = Callable[[jax.Array, jax.Array], jax.Array]
"""`(logits f32[b k], targets f32[b k]) -> f32[b]`, which the perturbation maximizes.

Targets are probabilities, or logits where a score such as `losses.kl_divergence` expects them.
"""


@dataclasses.dataclass(frozen=True)
class Adversary:
    """The adversary of adversarial training.

    Attributes:
      method: a name of `METHODS`.
      eps: radius in Linf, in [0, 1] pixel units.
      steps: attack steps per training step, each 2.5 eps / steps long; "fast" takes one of 1.25
        eps, and "free" uses its replays.
      beta: weight of the divergence in "trades"; 1 / lambda in the paper, which uses 6 on
        CIFAR-10.
      replays: optimizer steps per batch in "free"; the paper uses 4 on ImageNet.
      warmup: training steps over which the radius grows from 0 to `eps`.

    Raises:
      ValueError: an unknown method, or a field out of range.
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
                f"unknown `adversarial` method: got {self.method!r}; nearest: "
                f"{nearest(self.method, METHODS)}"
            )
        if not 0 <= self.eps <= 1:
            raise ValueError(
                f"`adversarial_eps` must be in [0, 1], such as 2/255: got {self.eps:.4g}"
                f"{level_hint(self.eps)}"
            )
        if min(self.steps, self.replays) < 1 or min(self.beta, self.warmup) < 0:
            raise ValueError(
                "`adversarial_steps` and `adversarial_replays` must be at least 1, "
                "`adversarial_beta` and `adversarial_warmup` at least 0: got "
                f"{self.steps}, {self.replays}, {self.beta:g} and {self.warmup}"
            )

    def radius(self, step: jax.Array) -> jax.Array:
        """The radius f32[] at a training step i32[]."""
        share = jnp.minimum((step.astype(jnp.float32) + 1.0) / max(self.warmup, 1), 1.0)
        return jnp.float32(self.eps) * (share if self.warmup else 1.0)


class Hooks(NamedTuple):
    """The arguments of `step.make_train_step` for adversarial training."""

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
    """Projected gradient ascent from a random start, to be called inside `jit`.

    No gradient passes through the perturbation.

    Args:
      forward: the network on images in [0, 1].
      steps: static, at least 1.
      reach: sum of all step lengths in units of eps; each step has length `reach * eps / steps`.
      score: the quantity to maximize.
      norm: the norm of the ball.

    Reference:
      Madry et al. 2018, arXiv:1706.06083, sections 2.1 and 5 (step length).
    """

    def perturb(
        params: Any,
        stats: Any,
        keys: jax.Array,
        images01: jax.Array,
        targets: jax.Array,
        eps: jax.Array,
        valid: jax.Array | None = None,
    ) -> jax.Array:
        params, stats, images01, targets = jax.lax.stop_gradient((params, stats, images01, targets))
        return ascend.ascend(
            lambda x, _: score(forward(params, stats, x, valid)[0], targets),
            norm.start(keys, images01, eps),
            keys,
            steps=steps,
            optimizer=ascend.direction(norm.direction),
            step_size=reach * eps / steps,
            project=lambda x: norm.project(x, images01, eps),
        ).last

    return perturb


def pgd(adversary: Adversary, forward: Forward) -> Hooks:
    """The loss on adversarial examples of PGD.

    Reference: Madry et al. 2018, arXiv:1706.06083, equation 2.1.
    """
    return Hooks(_perturbed_loss(adversary, forward, make_perturb(forward, steps=adversary.steps)))


def fast(adversary: Adversary, forward: Forward) -> Hooks:
    """The loss on adversarial examples of one step of 1.25 eps from a random start.

    Reference: Wong et al. 2020, arXiv:2001.03994, algorithm 3.
    """
    return Hooks(_perturbed_loss(adversary, forward, make_perturb(forward, steps=1, reach=1.25)))


def _perturbed_loss(adversary: Adversary, forward: Forward, perturb: Perturb) -> Loss:
    plain = plain_loss(forward)

    def loss(
        params: Any,
        stats: Any,
        keys: jax.Array,
        step: jax.Array,
        inputs: jax.Array,
        targets: jax.Array,
        valid: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Any]:
        perturbed = perturb(params, stats, keys, inputs, targets, adversary.radius(step), valid)
        return plain(params, stats, keys, step, perturbed, targets, valid)

    return loss


def trades(adversary: Adversary, forward: Forward) -> Hooks:
    """Clean cross-entropy plus beta times the divergence between clean and adversarial logits.

    The adversarial examples maximize that divergence, from a random point of the ball (0.001 from
    the image in the paper). The logits returned, and the accuracy of the step, are those of the
    adversarial examples.

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
        valid: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, Any]:
        logits, after = forward(params, stats, inputs, valid)
        perturbed = perturb(params, stats, keys, inputs, logits, adversary.radius(step), valid)
        adversarial_logits, after = forward(params, after, perturbed, valid)
        divergence = losses.kl_divergence(adversarial_logits, logits)
        value = losses.soft_cross_entropy(logits, targets) + adversary.beta * divergence
        return value, adversarial_logits, after

    return Hooks(loss)


def free(adversary: Adversary, forward: Forward) -> Hooks:
    """Several optimizer steps per batch; the same backward pass also perturbs the images, by eps.

    Each batch starts at a random point of the ball; in the paper it starts where the previous batch
    ended. A learning-rate schedule counts `replays` steps per batch. Divide the epochs by `replays`
    for the cost of plain training.

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
"""Name -> `(adversary, forward) -> hooks`."""


def hooks(adversary: Adversary, forward: Forward) -> Hooks:
    """The arguments of `step.make_train_step` for an adversary.

    Args:
      adversary: method and strength.
      forward: the network on images in [0, 1].
    """
    return METHODS[adversary.method](adversary, forward)
