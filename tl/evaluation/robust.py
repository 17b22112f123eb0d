"""Accuracy of a classifier under attack."""

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

CHECK_STEPS = (
    20  # of the attack of `robust`; what it finds is a bound from above, AutoAttack's is lower
)


def check_robust(eps: float, method: str, queries: int = 0) -> None:
    """ValueError where `robust` cannot be asked so: a radius that is no share, or queries of an attack that has none."""
    if not 0 <= eps <= 1:
        raise ValueError(
            f"--robust_eps is a share of the pixel range [0, 1], such as 2/255; got {eps:.4g}"
        )
    if queries and method != "autoattack":
        raise ValueError(f"--robust_queries are of --robust_attack=autoattack; {method} has none")


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
    """How many pictures are named rightly whatever an attack does within eps of them in Linf: JSON-ready figures.

    Pictures are of 8 bits; what the attack does not find may be there still. "pgd" is a quick one, of `CHECK_STEPS`, on the
    margin; every other row of `attacks.ATTACKS` is as it comes, "autoattack" with 100 steps and 5,000 queries, or `queries`.

    Raises:
      ValueError: as `check_robust`.
    """
    check_robust(eps, method, queries)
    attack, k = _checking(clf, method, queries), len(inference.class_table(clf).entries)
    variables = jax.device_put(clf.fold_batch_norm(variables))
    batch_size = 8 * devices.side_by_side()  # the last few of a batch wait for no next ones
    n = clean = stood = 0
    batches = data.load(inputs.sources(spec), clf.prepare, batch_size=batch_size)
    for batch in reporting.progress(
        batches, -(-len(spec.examples) // batch_size), "attacking, batches"
    ):
        labels = np.array(
            [spec.examples[i].label for i in batch.index], np.int64
        )  # an empty slot has any
        class_mask, images01 = (
            goals.class_mask(labels[:, None].tolist(), k),
            pixels.to_images01(batch.images),
        )
        right = np.asarray(inference.forward(clf)(variables, images01)).argmax(axis=1) == labels
        key = jax.random.fold_in(jax.random.key(seed), n)
        found = attack(variables, key, images01, class_mask, eps=eps, skip=~(right & batch.valid))
        n, clean = n + int(batch.valid.sum()), clean + int((right & batch.valid).sum())
        stood += int((right & ~np.asarray(found.success) & batch.valid).sum())
    return {
        "attack": (
            f"PGD-{CHECK_STEPS} on the margin, 1 random start, 8-bit pictures"
            if method == "pgd"
            else method
        )
        + (f" with {queries:,} queries" if queries else ""),
        "norm": "linf",
        "eps": eps,
        "n": n,
        "clean": clean / n,
        "top1": stood / n,
        "top1_ci95": list(metrics.wilson(stood, n)),
    }


@functools.cache
def _checking(clf: Classifier, method: str, queries: int) -> attacks.Attack:
    """The attack of `robust`, the same function each time, so that it compiles once a run."""
    search = attacks.get(method)(
        **({"steps": CHECK_STEPS} if method == "pgd" else {"queries": queries} if queries else {})
    )
    return attacks.make(search, clf.logits, norm=norms.LINF, goal=goals.get("untargeted", "margin"))
