"""Sanity checks of an attack: does a low success rate mean a robust network, or a weak attack?

A network can seem robust because its gradient is masked, its outputs are saturated or random, or
the attack has too few steps. Each check is a pure function of numbers; `check_attack` runs the
attacks that the checks need.

Reference: Carlini et al. 2019, arXiv:1902.06705, sections 5 and 6; Athalye et al. 2018,
  arXiv:1802.00420, section 3.1; Croce & Hein 2020, arXiv:2003.01690 (black-box attacks stronger
  than white-box ones).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import devices
from tl.attacks import norms
from tl.attacks.base import Attack, Logits
from tl.attacks.goals import Goal
from tl.attacks.norms import Norm
from tl.attacks.run import batched_logits, map_in_chunks, shard_rows
from tl.types import Array, Variables

# Success rate that twice the steps may add. Chosen, not tuned.
GAIN = 0.02
# Random images per clean image in the noise control, of which the best counts; chosen, not tuned.
DRAWS = 4


class Check(NamedTuple):
    """The outcome of one check.

    Attributes:
      name: the property that should hold.
      passed: whether it holds.
      value: the measured number.
      expected: the condition on `value`, as text.
    """

    name: str
    passed: bool
    value: float
    expected: str

    def json(self) -> dict[str, Any]:
        """The entry of this check in `result["checks"]`."""
        return {"passed": self.passed, "found": self.value, "wanted": self.expected}

    def __str__(self) -> str:
        outcome = "pass" if self.passed else "FAIL"
        return f"{outcome}  {self.name}: got {self.value:.4g}, expected {self.expected}"


def gradients_flow(gradient: Array) -> Check:
    """Share of images whose gradient f32[b h w c] is zero everywhere or not finite.

    An attack cannot use such a gradient.
    """
    flat = np.abs(np.asarray(gradient)).reshape(len(gradient), -1)
    dead = (flat == 0).all(axis=1) | ~np.isfinite(flat).all(axis=1)
    return Check("share of zero gradients", not dead.any(), float(dead.mean()), "0")


def logits_not_probabilities(logits: Array) -> Check:
    """Share of rows f32[b k] in [0, 1] that sum to one.

    A softmax output has vanishing gradients where it saturates.
    """
    rows = np.asarray(logits)
    in_unit = ((rows >= 0) & (rows <= 1)).all(axis=1)
    share = float((in_unit & (np.abs(rows.sum(axis=1) - 1) < 1e-3)).mean())
    return Check("logits, not softmax", share == 0, share, "no row that sums to one")


def logits_vary(logits: Array) -> Check:
    """Largest range of one class's logit over different images.

    If it is zero, the logits do not depend on the input.
    """
    largest = float(np.ptp(np.asarray(logits), axis=0).max())
    return Check("logits depend on the picture", largest > 0, largest, "above 0")


def calls_agree(first: Array, second: Array) -> Check:
    """Largest difference of the logits of the same images in two calls.

    A network with random outputs needs other attacks.
    """
    difference = float(np.abs(np.asarray(first) - np.asarray(second)).max())
    return Check("two calls give equal logits", difference == 0, difference, "0")


def unbounded_succeeds(success: Array) -> Check:
    """Success rate at eps = 1 in Linf, where any image is reachable.

    Below 1 the attack is at fault, not the network.
    """
    rate = float(np.mean(success))
    return Check("any change at all (Linf, eps = 1) reaches all", rate == 1, rate, "1")


def curve_rises(rates: Sequence[float], n: int) -> Check:
    """Largest fall of the success rate from one eps to the next larger one.

    It should not fall, because a larger ball contains the smaller one.

    Args:
      rates: success rates at rising eps.
      n: number of images; a fall of one image is allowed.
    """
    falls = -np.diff(np.asarray(rates, np.float64))
    worst = float(falls.max(initial=0.0)) + 0.0
    expected = f"a fall of at most one picture, {1 / n:.3g}"
    return Check("success rises with eps", worst <= 1 / n + 1e-9, worst, expected)


def noise_is_weaker(noise: float, attack: float) -> Check:
    """Success rate of random noise of the attack's length, compared with the attack's."""
    expected = f"below the attack's {attack:.3g}"
    return Check("noise of the same norm does less", noise < attack, noise, expected)


def black_box_no_better(black_box: float, white_box: float) -> Check:
    """Success rate without the gradient, compared with the rate with it.

    A higher one indicates a masked gradient.
    """
    expected = f"at most the white-box attack's {white_box:.3g}"
    name = "black-box no better than white-box"
    return Check(name, black_box <= white_box, black_box, expected)


def steps_suffice(rate: float, doubled: float, n: int) -> Check:
    """Success rate that twice the steps add, over n images: a converged attack gains little."""
    allowed, gain = max(GAIN, 1 / n) + 1e-9, doubled - rate
    return Check("doubled steps change little", gain <= allowed, gain, f"at most {allowed:.3g}")


@functools.lru_cache(maxsize=8)
def _score_gradients(logits: Logits, goal: Goal, slots: int) -> Callable[..., jax.Array]:
    """Jitted gradient of the score, `(variables, (images01, class_mask)) -> f32[b h w c]`.

    It is computed for `slots` images at a time.
    """

    def run(variables: Variables, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        images01, class_mask = rows
        return jax.grad(lambda x: jnp.sum(goal.score(logits(variables, x), class_mask)))(images01)

    return shard_rows(map_in_chunks(run, slots))


def check_attack(
    logits: Logits,
    variables: Variables,
    key: jax.Array,
    images01: Array,
    class_mask: Array,
    *,
    norm: Norm,
    goal: Goal,
    eps: float,
    attack: Attack,
    doubled: Attack,
    black_box: Attack,
    noise: Attack,
    unbounded: Attack,
    curve: Sequence[float] = (0.25, 0.5, 1.0, 2.0),
) -> list[Check]:
    """Runs all checks: four calls of `attack` and one of each other attack.

    Args:
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      variables: the network's variables.
      key: the key of every attack.
      images01: f32[b h w c] in [0, 1]. Images that meet the goal without an attack are left out.
      class_mask: bool[b k], the classes that `goal` is about.
      norm, goal, eps: those of the attack that is checked.
      attack: the attack that is checked.
      doubled: the same attack with twice its steps.
      black_box: an attack without the gradient, such as Square.
      noise: random images in the same norm, `baselines.noise`.
      unbounded: the attack in Linf; it is called with eps = 1.
      curve: rising multiples of `eps`, among them 1.

    Returns:
      One `Check` per property.

    Raises:
      ValueError: every image meets the goal already, or `curve` does not rise or lacks 1.
    """
    if list(curve) != sorted(set(curve)) or 1.0 not in curve:
        raise ValueError(
            "`curve` must rise and contain 1.0, the multiple for the attack's own eps: got "
            f"{list(curve)}"
        )
    slots = devices.images_at_once()
    logits = batched_logits(logits, slots)
    images01, class_mask = jnp.asarray(images01), jnp.asarray(class_mask)
    clean = np.asarray(logits(variables, images01))
    unsolved = ~np.asarray(goal.success(clean, class_mask))
    n, largest = int(unsolved.sum()), norms.largest(norm, images01.shape[1:])
    if not n:
        raise ValueError(
            f"all {len(images01)} images meet the goal without an attack: expected at least one "
            "that does not"
        )

    def success(attack: Attack, eps: float) -> np.ndarray:
        result = attack(variables, key, images01, class_mask, eps=eps)
        return np.asarray(result.success)[unsolved]

    rates = [float(success(attack, min(multiple * eps, largest)).mean()) for multiple in curve]
    rate = rates[list(curve).index(1.0)]
    gradients = _score_gradients(logits, goal, slots)(variables, (images01, class_mask))
    # Negatives of the images, so that one image is enough for the check that logits vary.
    negatives = logits(variables, 1 - images01)
    return [
        gradients_flow(np.asarray(gradients)[unsolved]),
        logits_not_probabilities(clean),
        logits_vary(np.concatenate([clean, negatives])),
        calls_agree(clean, logits(variables, images01)),
        unbounded_succeeds(success(unbounded, 1.0)),
        curve_rises(rates, n),
        noise_is_weaker(float(success(noise, eps).mean()), rate),
        black_box_no_better(float(success(black_box, eps).mean()), rate),
        steps_suffice(rate, float(success(doubled, eps).mean()), n),
    ]
