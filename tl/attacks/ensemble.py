"""Ensembles: several attacks in sequence (AutoAttack), and several networks as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from tl.attacks.apgd import apgd, apgd_t
from tl.attacks.base import Logits, Search
from tl.attacks.blackbox import square
from tl.attacks.fab import fab
from tl.paths import nearest

STANDARD = ("APGD-CE", "APGD-T", "FAB-T", "Square")
"""Names of the attacks of `autoattack`, in order."""


def autoattack(*, steps: int = 100, restarts: int = 1, queries: int = 5000) -> tuple[Search, ...]:
    """The four attacks of standard AutoAttack: APGD-CE, APGD-T with DLR loss, FAB-T and Square.

    Args:
      steps: traced; steps of the first three. 100 is AutoAttack's.
      restarts: static; restarts of each. 1 is AutoAttack's.
      queries: traced; queries of Square. 5000 is AutoAttack's.

    Reference: Croce & Hein 2020, arXiv:2003.01690, section 6.
    """
    return (
        apgd(steps=steps, restarts=restarts, loss="ce"),
        apgd_t(steps=steps, restarts=restarts),
        fab(steps=steps, restarts=restarts),
        square(steps=queries, restarts=restarts),
    )


MEANS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "logits": lambda logits: logits,
    "log_probability": lambda logits: jax.nn.log_softmax(logits, axis=1),
}
"""The quantity whose mean over networks is taken.

Logits give confident networks more weight; log-probabilities do not.
"""


def ensemble(
    networks: Sequence[Logits], *, mean: Literal["logits", "log_probability"] | str = "logits"
) -> Logits:
    """Several networks with the same classes as one network.

    Args:
      networks: at least one; each `(variables, images01) -> f32[b k]`, in evaluation mode.
      mean: the quantity that is averaged, a row of `MEANS`.

    Returns:
      `(variables, images01) -> f32[b k]`, where `variables` is a tuple of the networks' variables,
      in order.

    Raises:
      ValueError: no network, or an unknown mean; when called, a wrong number of variables, or
        different classes.

    Reference: Liu et al. 2017, arXiv:1611.02770, section 5 (mean of probabilities); Dong et al.
      2018, arXiv:1710.06081, section 3.3 (mean of logits).
    """
    if not networks:
        raise ValueError("an ensemble needs at least one network: got none")
    if mean not in MEANS:
        raise ValueError(f"unknown mean {mean!r}; nearest: {nearest(mean, MEANS)}")

    def logits(variables: Any, images01: jax.Array) -> jax.Array:
        if len(variables) != len(networks):
            raise ValueError(
                f"an ensemble of {len(networks)} networks needs a tuple of as many variables: "
                f"got {len(variables)}"
            )
        outputs = [f(v, images01) for f, v in zip(networks, variables, strict=True)]
        if len({output.shape for output in outputs}) > 1:
            raise ValueError(
                "the networks of an ensemble must share their classes: got "
                f"{[x.shape[1] for x in outputs]} classes"
            )
        return jnp.mean(jnp.stack([MEANS[mean](output) for output in outputs]), axis=0)

    return logits
