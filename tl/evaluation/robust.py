"""Accuracy of a classifier under attack, on a data set."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from tl import attacks, data, devices, inference, metrics, pixels, reporting
from tl.attacks import goals, norms
from tl.data import DataSpec
from tl.models import Classifier
from tl.training import inputs
from tl.types import Variables

# Steps of the PGD attack. Its accuracy is an upper bound; AutoAttack's is lower. Chosen, not tuned.
CHECK_STEPS = 20


def check_robust(robust_eps: float, robust_attack: str, robust_queries: int = 0) -> None:
    """Checks the arguments of `robust` before hours of training.

    Raises:
      ValueError: `robust_eps` is outside [0, 1], or `robust_queries` is set for an attack that does
        not use it.
    """
    if not 0 <= robust_eps <= 1:
        raise ValueError(
            f"`robust_eps` is a share of the pixel range: got {robust_eps:.4g}, expected a "
            "number in [0, 1], such as 2/255"
        )
    if robust_queries and robust_attack != "autoattack":
        raise ValueError(
            f"`robust_queries` has no effect on `robust_attack={robust_attack}`: expected "
            "`robust_attack=autoattack`"
        )


def robust(
    clf: Classifier,
    variables: Variables,
    spec: DataSpec,
    *,
    eps: float,
    method: str = "pgd",
    queries: int = 0,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy under attack: the share of images that are correct and stay so under the attack.

    The attack works in Linf on 8-bit images. It may miss adversarial examples, so the accuracy is
    an upper bound.

    Args:
      clf, variables: the network.
      spec: the data set.
      eps: radius in [0, 1] pixel units.
      method: "pgd" takes `CHECK_STEPS` steps on the margin; every other row of `attacks.ATTACKS`
        has its defaults, such as 100 steps and 5,000 queries for "autoattack".
      queries: queries of "autoattack"; 0 is its default.
      seed: seed of the attack's random numbers.

    Returns:
      JSON-ready numbers: `attack`, `norm`, `eps`, `n`, accuracy without (`clean`) and under attack
      (`top1`, `top1_ci95`).

    Raises:
      ValueError: as `check_robust`.
    """
    check_robust(eps, method, queries)
    attack, k = _attack(clf, method, queries), len(inference.class_table(clf).entries)
    variables = jax.device_put(clf.fold_batch_norm(variables))
    # Several rounds of images per batch, because slots stay empty while the last images of a batch
    # finish.
    batch_size = 8 * devices.images_at_once()
    n = clean = robust = 0
    batches = data.load(inputs.sources(spec), clf.prepare, batch_size=batch_size)
    for batch in reporting.progress(
        batches, -(-len(spec.examples) // batch_size), "attacking, batches"
    ):
        # Padded slots have arbitrary labels; `valid` leaves them out.
        labels = np.array([spec.examples[i].label for i in batch.index], np.int64)
        class_mask = goals.class_mask(labels[:, None].tolist(), k)
        images01 = pixels.to_images01(batch.images)
        logits = np.asarray(inference.forward(clf)(variables, images01))
        correct = (logits.argmax(axis=1) == labels) & batch.valid
        key = jax.random.fold_in(jax.random.key(seed), n)
        result = attack(variables, key, images01, class_mask, eps=eps, skip=~correct)
        n, clean = n + int(batch.valid.sum()), clean + int(correct.sum())
        robust += int((correct & ~np.asarray(result.success)).sum())
    name = method
    if method == "pgd":
        name = f"PGD-{CHECK_STEPS} on the margin, 1 random start, 8-bit images"
    return {
        "attack": name + (f" with {queries:,} queries" if queries else ""),
        "norm": "linf",
        "eps": eps,
        "n": n,
        "clean": clean / n,
        "top1": robust / n,
        "top1_ci95": list(metrics.wilson(robust, n)),
    }


@functools.cache
def _attack(clf: Classifier, method: str, queries: int) -> attacks.Attack:
    """The attack of `robust`; cached, so that it compiles once per run."""
    arguments = (
        {"steps": CHECK_STEPS} if method == "pgd" else {"queries": queries} if queries else {}
    )
    search = attacks.get(method)(**arguments)
    return attacks.make(search, clf.logits, norm=norms.LINF, goal=goals.get("untargeted", "margin"))
