"""Several attacks one after another on what is still unsolved (AutoAttack), and several networks as one.

The chain is a loop on the host over compiled attacks: what is solved leaves, the rest closes up into batches of one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl.attacks import goals, norms
from tl.attacks.apgd import make_apgd, make_apgd_t
from tl.attacks.blackbox import make_square
from tl.attacks.boundary import check_call
from tl.attacks.fab import make_fab
from tl.attacks.frame import Attack, AttackResult, Logits
from tl.attacks.goals import Goal
from tl.attacks.norms import Norm
from tl.paths import nearest

BATCH = 32  # pictures a compiled call; chosen, not tuned


class Chained(NamedTuple):
    """What a chain of attacks found, on the host.

    Attributes:
      images: f32[n h w c]; the solved picture, or the one with the highest score, or the clean one.
      success: bool[n], by the network, on `images`, in a program of its own.
      score: f32[n], the goal's score on `images`.
      solved_by: i32[n], the place in the chain of the attack that solved it; -1 where the clean picture meets the goal,
        the chain's length where none did.
      tried: i32[stages], how many pictures each attack was given.
    """

    images: np.ndarray
    success: np.ndarray
    score: np.ndarray
    solved_by: np.ndarray
    tried: np.ndarray


def make_chain(
    attacks: Sequence[Attack],
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    batch: int = BATCH,
    put: Callable[[Any], Any] = lambda tree: tree,
) -> Callable[..., Chained]:
    """Attacks in order, each on the pictures that those before it left unsolved.

    Between attacks the unsolved ones close up into batches of one shape, the last filled up with repeats, so that each
    attack compiles once however many are left. Each picture keeps its own key: what is found does not depend on its
    company. Every result is judged again outside of the attack, by `goal`, and the worst case is kept.

    Args:
      attacks: at least one; their own goals may have other losses.
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      norm: of all of them.
      goal: what counts as solved, and whose score tells the worst case.
      batch: pictures a compiled call, at least 1; all of them where there are fewer.
      put: brings a chunk `(keys, images01, members)` to its devices, such as `lambda c: devices.shard(c, mesh)`.

    Returns:
      `(variables, key, images01, members, *, eps) -> Chained`, for any number of pictures.

    Raises:
      ValueError: no attack, or batch below 1; when called, `images01` or `eps` out of range.
    """
    if not attacks or batch < 1:
        raise ValueError(f"a chain wants at least one attack and a batch of at least 1; got {len(attacks)} and {batch}")

    @jax.jit
    def judge(variables, images01, members):
        found = logits(variables, images01)
        return goal.success(found, members), goal.score(found, members)

    def chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
        return [np.resize(rows[i : i + size], size) for i in range(0, len(rows), size)]

    def run(variables, key, images01, members, *, eps) -> Chained:
        check_call(norm, images01, eps)
        images, clean, members = np.array(images01), np.asarray(images01), np.asarray(members)
        n, size = len(images), max(min(batch, len(images)), 1)
        success, score = np.zeros(n, bool), np.full(n, -np.inf, np.float32)
        solved_by, tried = np.full(n, len(attacks), np.int32), np.zeros(len(attacks), np.int32)
        for rows in chunks(np.arange(n), size):
            success[rows], score[rows] = map(np.asarray, judge(variables, *put((images[rows], members[rows]))))
        solved_by[success] = -1
        for place, attack in enumerate(attacks):
            left = np.flatnonzero(~success)
            tried[place] = len(left)
            keys = norms.own_keys(jax.random.fold_in(key, place), n)
            for rows in chunks(left, size):
                own, centers, aims = put((keys[rows], clean[rows], members[rows]))
                found = attack(variables, own, centers, aims, eps=eps).images
                met, reached = map(np.asarray, judge(variables, found, aims))
                better = (met | (reached > score[rows])).nonzero()[0]
                images[rows[better]] = np.asarray(found)[better]
                score[rows[better]], success[rows[better]] = reached[better], met[better]
            solved_by[left[success[left]]] = place
        return Chained(images, success, score, solved_by, tried)

    return run


# ---------------------------------------------------------------------------------------------------------- AutoAttack


def _by_classes(many: Attack, few: Attack) -> Attack:
    """`few` where there are fewer than the four classes that the targeted DLR wants, as with cats and dogs."""

    def attack(variables, key, images01, members, **kwargs):
        return (many if members.shape[1] >= 4 else few)(variables, key, images01, members, **kwargs)

    return attack


def standard(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int = 100,
    restarts: int = 1,
    on_grid: bool = True,
    queries: int = 5000,
) -> dict[str, Attack]:
    """AutoAttack's four, by name and in its order: APGD-CE, APGD-T with the targeted DLR, FAB-T and Square.

    With fewer than four classes, for which that loss is not defined, APGD on the margin takes the second place.

    Args:
      logits: `(variables, images01) -> f32[b k]`, in evaluation mode.
      norm: L2 or Linf.
      goal: targeted or untargeted; each attack brings its own loss.
      steps: of the first three; 100 is AutoAttack's.
      restarts: of each; 1 is AutoAttack's.
      queries: of Square; 5000 is AutoAttack's.

    Reference: Croce & Hein 2020, arXiv:2003.01690, section 6.
    """
    kind = "untargeted" if goal.away else "targeted"
    ce = goals.get(kind)
    shared = {"norm": norm, "restarts": restarts, "on_grid": on_grid}
    return {
        "apgd-ce": make_apgd(logits, goal=ce, steps=steps, **shared),
        "apgd-t": _by_classes(
            make_apgd_t(logits, goal=ce, steps=steps, **shared),
            make_apgd(logits, goal=ce, steps=steps, loss="margin", **shared),
        ),
        "fab-t": make_fab(logits, goal=ce, steps=steps, **shared),
        "square": make_square(logits, goal=ce, steps=queries, **shared),
    }


def make_autoattack(
    logits: Logits,
    *,
    norm: Norm,
    goal: Goal,
    steps: int = 100,
    restarts: int = 1,
    on_grid: bool = True,
    queries: int = 5000,
    batch: int = BATCH,
) -> Attack:
    """`standard` as a chain as an `Attack`; on the host, so `eps` cannot be traced. `step_size` is not used."""
    four = standard(logits, norm=norm, goal=goal, steps=steps, restarts=restarts, on_grid=on_grid, queries=queries)
    chain = make_chain(list(four.values()), logits, norm=norm, goal=goal, batch=batch)

    def attack(variables, key, images01, members, *, eps, step_size=None):
        del step_size  # each of the four has its own
        found = chain(variables, key, images01, members, eps=eps)
        return AttackResult(*map(jnp.asarray, found[:3]))

    return attack


# ------------------------------------------------------------------------------------------------ several networks as one

MEANS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "logits": lambda logits: logits,
    "log_probability": lambda logits: jax.nn.log_softmax(logits, axis=1),
}
"""What is averaged over networks. Logits: the surest network speaks loudest; log-probabilities: each by the same measure."""


def ensemble(networks: Sequence[Logits], *, mean: Literal["logits", "log_probability"] | str = "logits") -> Logits:
    """Networks with the same classes as one, to be attacked as any other.

    Args:
      networks: at least one; each `(variables, images01) -> f32[b k]`, in evaluation mode.
      mean: of `MEANS`.

    Returns:
      `(variables, images01) -> f32[b k]`, where `variables` is a tuple with those of each network, in order.

    Raises:
      ValueError: no network, or an unknown mean; when called, another number of variables, or of classes.

    Reference: Liu et al. 2017, arXiv:1611.02770, section 5 (mean of probabilities); Dong et al. 2018, arXiv:1710.06081,
      section 3.3 (mean of logits).
    """
    if not networks:
        raise ValueError("an ensemble wants at least one network; got none")
    if mean not in MEANS:
        raise ValueError(f"unknown mean {mean!r}; nearest: {nearest(mean, MEANS)}")

    def logits(variables: Any, images01: jax.Array) -> jax.Array:
        if len(variables) != len(networks):
            raise ValueError(f"{len(networks)} networks want as many variables, in a tuple; got {len(variables)}")
        each = [network(own, images01) for network, own in zip(networks, variables, strict=True)]
        if len({found.shape for found in each}) > 1:
            raise ValueError(f"the networks of an ensemble must share their classes; got {[f.shape[1] for f in each]}")
        return jnp.mean(jnp.stack([MEANS[mean](found) for found in each]), axis=0)

    return logits
