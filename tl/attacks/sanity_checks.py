"""Sanity checks of an attack: does a low success rate mean a robust network, or a weak attack?

A network can seem robust because its gradient is masked, its outputs are saturated or random, or
the attack has too few steps. Each check is a pure function of numbers; `check_attack` runs the
attacks that the checks need. They are the attack itself, with other values of what is traced in it
(eps, step size, number of steps), so that its compiled program serves all of them.

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
from tl.attacks import baselines, blackbox, norms
from tl.attacks.base import (
    AttackResult,
    Logits,
    Search,
    fold_in_each,
    usable_gradient,
)
from tl.attacks.goals import Goal
from tl.attacks.norms import Norm
from tl.attacks.run import (
    batched_logits,
    make_attack,
    map_in_chunks,
)
from tl.devices import shard_rows
from tl.types import Array, Variables

# Success rate that other steps may add. Chosen, not tuned.
GAIN = 0.02
# Number of images from which one image may make a difference. Chosen, not tuned.
MANY = 8
# Rising multiples of eps for the check that success rises. Chosen, not tuned.
CURVE = (0.5, 1.0, 2.0)
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
    usable = np.asarray(usable_gradient(jnp.asarray(gradient)))
    return Check("share of zero gradients", bool(usable.all()), float((~usable).mean()), "0")


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


def runs_agree(success: Array, run_success: Array) -> Check:
    """Success rate of the checked attack, compared with the run's on the same images bool[n].

    If the outcome of an image differs, the checks say nothing about the run.
    """
    rate, run_rate = (float(np.mean(outcomes)) for outcomes in (success, run_success))
    equal = bool((np.asarray(success) == np.asarray(run_success)).all())
    return Check("success rate agrees with the run's", equal, rate, f"the run's {run_rate:.3g}")


def unbounded_succeeds(success: Array, norm: str = "linf") -> Check:
    """Success rate at the largest eps of the norm (1 in Linf), where any image is reachable.

    Below 1 the attack is at fault, not the network.
    """
    ball = "Linf, eps = 1" if norm == "linf" else f"{norm.upper()}, black to white"
    rate = float(np.mean(success))
    return Check(f"any change at all ({ball}) reaches all", rate == 1, rate, "1")


def curve_rises(rates: Sequence[float], n: int) -> Check:
    """Largest fall of the success rate from one eps to the next larger one.

    It should not fall, because a larger ball contains the smaller one.

    Args:
      rates: success rates at rising eps.
      n: number of images; a fall of one image is allowed.
    """
    falls = -np.diff(np.asarray(rates, np.float64))
    worst = float(falls.max(initial=0.0)) + 0.0
    expected = f"a fall of at most one image, {1 / n:.3g}"
    return Check("success rises with eps", worst <= 1 / n + 1e-9, worst, expected)


def noise_is_weaker(noise: float, attack: float) -> Check:
    """Success rate of random noise of the attack's length, compared with the attack's."""
    expected = f"below the attack's {attack:.3g}"
    return Check("noise of the same norm does less", noise < attack, noise, expected)


def black_box_no_better(black_box: Array, white_box: Array) -> Check:
    """Share of images that are solved without the gradient bool[n] and not with it bool[n].

    Above zero, the success rate is too low; it indicates a masked gradient.
    """
    share = float(np.mean(np.asarray(black_box) & ~np.asarray(white_box)))
    return Check("black-box no better than white-box", share == 0, share, "0")


def steps_suffice(
    rate: float, other: float, n: int, name: str = "doubled steps change little"
) -> Check:
    """Success rate that other steps add, over n images: a converged attack gains little.

    Args:
      rate: the attack's success rate.
      other: success rate with twice the steps, or with the default steps and step size.
      n: number of images; from `MANY` on, a gain of one image is allowed.
      name: the check's name.
    """
    allowed, gain = max(GAIN, 1 / n if n >= MANY else 0.0) + 1e-9, other - rate
    return Check(name, gain <= allowed, gain, f"at most {allowed:.3g}")


@functools.lru_cache(maxsize=8)
def _score_gradients(logits: Logits, goal: Goal, slots: int) -> Callable[..., jax.Array]:
    """Jitted gradient of the score, `(variables, (images01, class_mask)) -> f32[b h w c]`.

    It is computed for `slots` images at a time.
    """

    def run(variables: Variables, rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        images01, class_mask = rows
        return jax.grad(lambda x: jnp.sum(goal.score(logits(variables, x), class_mask)))(images01)

    return shard_rows(map_in_chunks(run, slots))


@functools.partial(jax.jit, static_argnames=("norm", "eight_bit"))
def _add_noise(
    keys: jax.Array, i: jax.Array, center: jax.Array, eps: jax.Array, norm: Norm, eight_bit: bool
) -> jax.Array:
    """Draw i of random noise, as `baselines.noise` returns it."""
    keys = fold_in_each(keys, jnp.broadcast_to(i, len(center)))
    x = norm.project(baselines.draw_noise(norm, keys, center, eps), center, eps)
    return norm.quantize(x, center, eps) if eight_bit else x


def check_attack(
    logits: Logits,
    variables: Variables,
    key: jax.Array,
    images01: Array,
    class_mask: Array,
    *,
    searches: Sequence[Search],
    default_steps: Sequence[int],
    norm: Norm,
    goal: Goal,
    eps: float,
    step_size: float | None = None,
    eight_bit: bool = True,
    success: Array,
    queries: int,
) -> list[Check]:
    """Checks an attack as it was run on a batch: all arguments but the last are those of the run.

    The program that `make_attack` compiled for the run is used again if `images01` has the run's
    shape and as many images per device are attacked at once (`devices.images_at_once`). Another one
    is compiled for the black-box attack on images that the attack missed, and in L1.

    Args:
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      variables: the network's variables.
      key: the key of the attack, or one key per image.
      images01: f32[b h w c] in [0, 1]. Images that meet the goal without an attack are left out.
      class_mask: bool[b k], the classes that `goal` is about.
      searches: the searches of the attack, in order.
      default_steps: the default number of steps of each search.
      norm, goal, eps, step_size, eight_bit: of the attack.
      success: bool[n], n <= b: the outcome of the run for the first n images, which are checked.
      queries: number of queries of the black-box attack.

    Returns:
      One `Check` per property.

    Raises:
      ValueError: every image meets the goal already.
    """
    center, class_mask = jnp.asarray(images01), jnp.asarray(class_mask)
    evaluate = batched_logits(logits, devices.images_at_once())
    clean = np.asarray(evaluate(variables, center))
    checked = ~np.asarray(goal.success(clean, class_mask))
    checked[len(success) :] = False
    n, largest = int(checked.sum()), norms.largest(norm, center.shape[1:])
    if not n:
        raise ValueError(
            f"all {len(success)} images meet the goal without an attack: expected at least one "
            "that does not"
        )
    run_success = np.asarray(success)[checked[: len(success)]]
    make = functools.partial(make_attack, logits=logits, goal=goal, eight_bit=eight_bit)

    def run(
        searches: Sequence[Search],
        eps_: float = eps,
        step_size: float | None = step_size,
        norm: Norm = norm,
    ) -> AttackResult:
        return make(searches, norm=norm)(
            variables, key, center, class_mask, eps=eps_, step_size=step_size, skip=~checked
        )

    def with_steps(steps: Sequence[int]) -> list[Search]:
        """Searches for success only, which need no step after it."""
        return [
            search._replace(steps=count, early_stop=True)
            for search, count in zip(searches, steps, strict=True)
        ]

    def gradients(result: AttackResult) -> np.ndarray:
        """Gradients of the checked images, without a call where the attack had usable ones."""
        has_gradient = np.asarray(result.has_gradient)[checked]
        if has_gradient.all():
            return np.ones((n, 1), np.float32)
        compiled = _score_gradients(logits, goal, devices.images_at_once())
        computed = np.asarray(compiled(variables, (center, class_mask)))[checked]
        return np.where(has_gradient.reshape(-1, 1, 1, 1), np.float32(1), computed)

    own_steps = [search.steps for search in searches]
    outcomes = lambda result: np.asarray(result.success)[checked]

    def at(eps_: float, norm: Norm = norm) -> np.ndarray:
        """Success at another eps; a given step size is the same share of eps."""
        scaled = step_size and step_size * eps_ / eps
        return outcomes(run(with_steps(own_steps), eps_, scaled, norm))

    again = run(searches)
    solved = outcomes(again)
    rate = float(solved.mean())
    # A step in L1 changes few values, so that no number of steps reaches all images.
    widest, widest_eps = (norms.LINF, 1.0) if norms.name(norm) == "l1" else (norm, largest)
    unbounded = at(widest_eps, widest)
    rates = [
        rate if multiple == 1 else float(at(min(multiple * eps, largest)).mean())
        for multiple in CURVE
    ]
    doubled = outcomes(run(with_steps([2 * count for count in own_steps])))
    as_default = step_size is None and own_steps == list(default_steps)
    default = solved if as_default else outcomes(run(with_steps(default_steps), step_size=None))
    square = norms.name(norm) in blackbox.MOVES
    black_box = make((blackbox.square if square else baselines.noise)(steps=queries), norm=norm)
    # Where the attack succeeds, another attack cannot do better.
    missed, beaten = checked & ~np.asarray(again.success), np.zeros(n, bool)
    if missed.any():
        beaten = outcomes(black_box(variables, key, center, class_mask, eps=eps, skip=~missed))
    keys, radii = norms.per_image_keys(key, len(center)), jnp.full(len(center), eps, jnp.float32)
    noise = np.zeros(len(center), bool)
    for i in range(DRAWS):
        noisy = _add_noise(keys, jnp.int32(i), center, radii, norm, eight_bit)
        noise |= np.asarray(goal.success(evaluate(variables, noisy), class_mask))
    # Negatives of the images, so that one image is enough for the check that logits vary.
    negatives = np.asarray(evaluate(variables, 1 - center))
    return [
        runs_agree(solved, run_success),
        gradients_flow(gradients(again)),
        logits_not_probabilities(clean[checked]),
        logits_vary(np.concatenate([clean[checked], negatives[checked]])),
        calls_agree(clean, evaluate(variables, center)),
        unbounded_succeeds(unbounded, norms.name(widest) or "norm"),
        curve_rises([*rates, float(unbounded.mean())], n),
        noise_is_weaker(float(noise[checked].mean()), rate),
        black_box_no_better(beaten, solved),
        steps_suffice(rate, float(doubled.mean()), n),
        steps_suffice(rate, float(default.mean()), n, "default steps and step size add little"),
    ]
