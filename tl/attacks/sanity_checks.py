"""The honesty panel: is an attack's failure the network's strength, or the attack's weakness? One line each, pass or fail.

A network that looks robust may hide its gradient, saturate, draw at random, or be attacked with too few steps. Every check
here is a pure function of numbers; `panel` runs the attacks that they ask for.

Reference: Carlini et al. 2019, arXiv:1902.06705, sections 5 and 6; Athalye et al. 2018, arXiv:1802.00420, section 3.1;
  Croce & Hein 2020, arXiv:2003.01690 (black-box better than white-box).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

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

GAIN = 0.02  # of success, that doubled steps may bring: the two points of spread that a hundred pictures have; chosen
DRAWS = 4  # noisy pictures of each, for the control, of which the best counts; chosen, not tuned


class Check(NamedTuple):
    """One line of the panel.

    Attributes:
      name: what should hold, in words.
      passed: whether it does.
      found: the number that was measured.
      wanted: what it should have been, in words.
    """

    name: str
    passed: bool
    found: float
    wanted: str

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}: {self.found:.4g}, wanted {self.wanted}"


def gradients_flow(gradient: Array) -> Check:
    """Share of pictures, f32[b h w c], whose gradient is zero everywhere or not finite: nothing to follow there."""
    flat = np.abs(np.asarray(gradient)).reshape(len(gradient), -1)
    dead = (flat == 0).all(axis=1) | ~np.isfinite(flat).all(axis=1)
    return Check("share of zero gradients", not dead.any(), float(dead.mean()), "0")


def logits_not_probabilities(logits: Array) -> Check:
    """Share of rows, f32[b k], that lie in [0, 1] and sum to one: after a softmax, gradients vanish where it is sure."""
    rows = np.asarray(logits)
    share = float(
        (((rows >= 0) & (rows <= 1)).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) < 1e-3)).mean()
    )
    return Check("logits, not softmax", share == 0, share, "no row that sums to one")


def logits_vary(logits: Array) -> Check:
    """Largest spread of a class's logit over different pictures: a network with constant logits sees nothing."""
    shard_rows = float(np.ptp(np.asarray(logits), axis=0).max())
    return Check("logits depend on the picture", shard_rows > 0, shard_rows, "above 0")


def calls_agree(first: Array, second: Array) -> Check:
    """Largest difference of the logits of the same pictures in two calls: a network that draws needs other attacks."""
    apart = float(np.abs(np.asarray(first) - np.asarray(second)).max())
    return Check("two calls give equal logits", apart == 0, apart, "0")


def whole_box_breaks(success: Array) -> Check:
    """Share of success where every picture may be made of every other: whoever fails there is not looking well."""
    rate = float(np.mean(success))
    return Check("any change at all (Linf, eps = 1) reaches all", rate == 1, rate, "1")


def curve_rises(rates: Sequence[float], n: int) -> Check:
    """Largest fall of the success rate from one eps to the next larger, of n pictures: a larger ball holds the smaller."""
    falls = -np.diff(np.asarray(rates, np.float64))
    worst = float(falls.max(initial=0.0)) + 0.0
    return Check(
        "success rises with eps",
        worst <= 1 / n + 1e-9,
        worst,
        f"a fall of at most one picture, {1 / n:.3g}",
    )


def noise_is_weaker(noise: float, attack: float) -> Check:
    """Success rate of random noise of the attack's length, beside the attack's: no attack is needed where noise will do."""
    return Check(
        "noise of the same norm does less",
        noise < attack,
        noise,
        f"below the attack's {attack:.3g}",
    )


def black_box_no_better(black: float, white: float) -> Check:
    """Success rate without the gradient, beside the one with it: where asking finds more, the gradient is masked."""
    return Check(
        "black-box no better than white-box",
        black <= white,
        black,
        f"at most the white-box attack's {white:.3g}",
    )


def steps_suffice(rate: float, doubled: float, n: int) -> Check:
    """What doubling the steps adds to the success rate, of n pictures: the attack should have converged."""
    allowed = max(GAIN, 1 / n) + 1e-9
    return Check(
        "doubled steps change little",
        doubled - rate <= allowed,
        doubled - rate,
        f"at most {allowed:.3g}",
    )


@functools.lru_cache(maxsize=8)
def _slopes(logits: Logits, goal: Goal, slots: int) -> Callable[..., jax.Array]:
    """`(variables, (images01, class_mask)) -> f32[b h w c]`, the score's gradient, `slots` pictures at a time."""

    def run(variables: Variables, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        images01, class_mask = rows
        return jax.grad(lambda x: jnp.sum(goal.score(logits(variables, x), class_mask)))(images01)

    return shard_rows(map_in_chunks(run, slots))


def panel(
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
    black: Attack,
    noise: Attack,
    whole: Attack,
    curve: Sequence[float] = (0.25, 0.5, 1.0, 2.0),
) -> list[Check]:
    """All checks, on pictures that do not meet the goal yet: four calls of `attack`, one of each other.

    Args:
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      images01: f32[b h w c] in [0, 1]. Those that meet the goal already count for no attack.
      norm, goal, eps: of the attack whose result is to be believed.
      attack: that one. doubled: with twice its steps. whole: in Linf, to be called with eps = 1.
      black: without the gradient, such as Square. noise: random pictures of the same norm, `baselines.noise`.
      curve: shares of `eps`, rising, with 1 among them.

    Returns:
      A `Check` for each line.

    Raises:
      ValueError: every picture meets the goal already, or `curve` does not rise or lacks 1.
    """
    if list(curve) != sorted(set(curve)) or 1.0 not in curve:
        raise ValueError(f"curve must rise and hold 1.0, the attack's own eps; got {list(curve)}")
    slots = devices.side_by_side()
    logits = batched_logits(logits, slots)
    images01, class_mask = jnp.asarray(images01), jnp.asarray(class_mask)
    clean = np.asarray(logits(variables, images01))
    open_ = ~np.asarray(goal.success(clean, class_mask))
    n, largest = int(open_.sum()), norms.largest(norm, images01.shape[1:])
    if not n:
        raise ValueError(
            f"all {len(images01)} pictures meet the goal as they are: there is nothing to attack"
        )

    def rate(attack: Attack, eps: float) -> float:
        return float(
            np.asarray(attack(variables, key, images01, class_mask, eps=eps).success)[open_].mean()
        )

    rates = {share: rate(attack, min(share * eps, largest)) for share in curve}
    slopes = _slopes(logits, goal, slots)(variables, (images01, class_mask))
    return [
        gradients_flow(np.asarray(slopes)[open_]),
        logits_not_probabilities(clean),
        logits_vary(
            np.concatenate([clean, logits(variables, 1 - images01)])
        ),  # so that one picture is enough
        calls_agree(clean, logits(variables, images01)),
        whole_box_breaks(
            np.asarray(whole(variables, key, images01, class_mask, eps=1.0).success)[open_]
        ),
        curve_rises(list(rates.values()), n),
        noise_is_weaker(rate(noise, eps), rates[1.0]),
        black_box_no_better(rate(black, eps), rates[1.0]),
        steps_suffice(rates[1.0], rate(doubled, eps), n),
    ]
