"""Several attacks as one (AutoAttack), and several networks as one."""

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
"""Names of what `autoattack` consists of, in order."""


def autoattack(*, steps: int = 100, restarts: int = 1, queries: int = 5000) -> tuple[Search, ...]:
    """AutoAttack's standard four, in its order: APGD-CE, APGD-T with the targeted DLR, FAB-T and Square.

    Args:
      steps: of the first three; 100 is AutoAttack's.
      restarts: of each; 1 is AutoAttack's.
      queries: of Square; 5000 is AutoAttack's.

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
"""What is averaged over networks. Logits: the surest network speaks loudest; log-probabilities: each by the same measure."""


def ensemble(
    networks: Sequence[Logits], *, mean: Literal["logits", "log_probability"] | str = "logits"
) -> Logits:
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
            raise ValueError(
                f"{len(networks)} networks want as many variables, in a tuple; got {len(variables)}"
            )
        each = [network(own, images01) for network, own in zip(networks, variables, strict=True)]
        if len({found.shape for found in each}) > 1:
            raise ValueError(
                f"the networks of an ensemble must share their classes; got {[f.shape[1] for f in each]}"
            )
        return jnp.mean(jnp.stack([MEANS[mean](found) for found in each]), axis=0)

    return logits
