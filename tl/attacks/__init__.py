"""Adversarial attacks.

An attack combines a norm (how far the image may move), a goal (which prediction to reach) and a
search, a row of `ATTACKS` (how to reach it):

  pgd = attacks.get("pgd")(steps=40)
  attack = attacks.make(pgd, clf.logits, norm=norms.LINF, goal=goals.UNTARGETED)
  class_mask = goals.class_mask([[label] for label in labels], k)
  result = attack(variables, jax.random.key(0), images01, class_mask, eps=4 / 255)

To add an attack: a function that returns a `base.Search`, which defines how an image starts and
what one step does, and a row in `ATTACKS`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from tl.attacks import apgd, baselines, blackbox, ensemble, fab, gradient, minimum_norm
from tl.attacks.base import Attack, AttackResult, Find, NearestResult, Search
from tl.attacks.run import check_attack as check
from tl.attacks.run import make_attack as make
from tl.attacks.run import make_find as find
from tl.paths import nearest

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackResult",
    "Find",
    "NearestResult",
    "Search",
    "check",
    "find",
    "get",
    "make",
]

ATTACKS: dict[str, Callable[..., Search | Sequence[Search]]] = {
    "fgsm": gradient.fgsm,
    "bim": gradient.bim,
    "pgd": gradient.pgd,
    "mi_fgsm": gradient.mi_fgsm,
    "di_fgsm": gradient.di_fgsm,
    "apgd_ce": functools.partial(apgd.apgd, loss="ce"),
    "apgd_dlr": functools.partial(apgd.apgd, loss="dlr"),
    "apgd_t": apgd.apgd_t,
    "deepfool": minimum_norm.deepfool,
    "cw": minimum_norm.cw,
    "fab": fab.fab,
    "square": blackbox.square,
    "autoattack": ensemble.autoattack,
    "noise": baselines.noise,
    "blur": baselines.blur,
}
"""Name -> `(*, steps, restarts=1, ...) -> Search`, or a sequence of searches, run one by one."""


def get(name: str) -> Callable[..., Search | Sequence[Search]]:
    """The function that makes the search with a name.

    Raises:
      ValueError: the name is not in `ATTACKS`; the message has the nearest names.
    """
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}; nearest: {nearest(name, ATTACKS)}")
    return ATTACKS[name]
