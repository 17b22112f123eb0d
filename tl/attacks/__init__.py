"""Adversarial pictures: `norms` (where one may go) x `goals` (what for) x the attacks of `ATTACKS` (how).

`gradient` and `apgd` climb the score within a ball; `baselines` are what they have to beat.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from tl.attacks import apgd, baselines, gradient
from tl.attacks.frame import Attack, AttackResult
from tl.paths import nearest

__all__ = ["ATTACKS", "Attack", "AttackResult", "get"]

ATTACKS: dict[str, Callable[..., Attack]] = {
    "fgsm": gradient.make_fgsm,
    "bim": gradient.make_bim,
    "pgd": gradient.make_pgd,
    "mi_fgsm": gradient.make_mi_fgsm,
    "di_fgsm": gradient.make_di_fgsm,
    "apgd_ce": functools.partial(apgd.make_apgd, loss="ce"),
    "apgd_dlr": functools.partial(apgd.make_apgd, loss="dlr"),
    "apgd_t": apgd.make_apgd_t,
    "noise": baselines.make_noise,
    "blur": baselines.make_blur,
}
"""name -> maker `(logits, *, norm, goal, steps, restarts=1, on_grid=True, ...) -> Attack`."""


def get(name: str) -> Callable[..., Attack]:
    """The maker of the attack called `name`; ValueError with the nearest names where there is none."""
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}; nearest: {nearest(name, ATTACKS)}")
    return ATTACKS[name]
