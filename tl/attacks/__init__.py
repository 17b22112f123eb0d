"""Adversarial pictures: `norms` (where one may go) x `goals` (what for) x the searches of `ATTACKS` (how).

  run = attacks.make(attacks.get("pgd")(steps=40), clf.logits, norm=norms.LINF, goal=goals.UNTARGETED)
  found = run(variables, jax.random.key(0), images01, goals.members(labels, k), eps=4 / 255)

To add one: a function that returns a `frame.Search`, how an image begins and what one step does, and a row in `ATTACKS`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence

from tl.attacks import apgd, baselines, blackbox, ensemble, fab, gradient, minimum_norm
from tl.attacks.base import Attack, AttackResult, Find, NearestResult, Search
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
    "find",
    "get",
    "make",
    "steps",
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
"""name -> `(*, steps, restarts=1, ...) -> Search`, or several of them in a row."""


def get(name: str) -> Callable[..., Search | Sequence[Search]]:
    """What makes the search called `name`; ValueError with the nearest names where there is none."""
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}; nearest: {nearest(name, ATTACKS)}")
    return ATTACKS[name]


def steps(name: str) -> int:
    """How many steps that attack takes unless told otherwise."""
    return inspect.signature(get(name)).parameters["steps"].default
