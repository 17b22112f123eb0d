"""Accuracy of a classifier under attack, on a data set."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from tl import attacks, data, devices, inference, metrics, pixels, reporting
from tl.attacks import goals, norms
from tl.data import DataSpec
from tl.models import Classifier, heads
from tl.training import inputs
from tl.training.fit import fit
from tl.training.recipe import Recipe
from tl.types import Variables

# Steps of the PGD attack. Its accuracy is an upper bound; AutoAttack's is lower. Chosen, not tuned.
CHECK_STEPS = 20
GOAL = goals.get("untargeted", "margin")


def check_robust(
    robust_eps: float, robust_attack: str, robust_queries: int = 0, *, classes: int | None = None
) -> None:
    """Checks the arguments of `robust` before hours of training.

    Args:
      robust_eps, robust_attack, robust_queries: as `eps`, `method` and `queries` of `robust`.
      classes: number of classes of the network; None if it is not known yet.

    Raises:
      ValueError: `robust_eps` is outside [0, 1]; `robust_attack` is set without `robust_eps`;
        `robust_queries` is set for an attack that does not use it; or the attack does not work in
        Linf or for so few classes.
    """
    if not 0 <= robust_eps <= 1:
        raise ValueError(
            f"`robust_eps` is a share of the pixel range: got {robust_eps:.4g}, expected a "
            f"number in [0, 1], such as 2/255{norms.level_hint(robust_eps)}"
        )
    if robust_queries and robust_attack != "autoattack":
        raise ValueError(
            f"`robust_queries` has no effect on `robust_attack={robust_attack}`: expected "
            "`robust_attack=autoattack`"
        )
    if not robust_eps:
        if robust_attack != "pgd":
            raise ValueError(
                f"`robust_attack={robust_attack}` has no effect without `robust_eps`; give a "
                "radius, such as 2/255"
            )
        return
    search, network = _search(robust_attack, robust_queries), "a network"
    if classes is not None:
        network = f"a network with {classes} classes"
    try:  # 10 classes are enough for every attack
        attacks.check(search, norm=norms.LINF, goal=GOAL, classes=classes or 10)
    except ValueError as error:
        raise ValueError(
            f"`robust_attack={robust_attack}` cannot test {network} in Linf ({error}); use pgd or "
            "autoattack"
        ) from None


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
      JSON-ready numbers: `attack`, `norm`, `eps`, `n`, and three shares with Wilson's intervals
      (`clean_ci95`, ...): `clean`, the accuracy without attack; `top1`, the accuracy under attack,
      a share of all images; and `top1_of_correct`, the same as a share of the images that are
      correct without attack, None if there are none.

    Raises:
      ValueError: as `check_robust`.
    """
    k = len(inference.class_table(clf).entries)
    if eps:
        check_robust(eps, method, queries, classes=k)
    attack = _attack(clf, method, queries)
    variables = devices.put_local(clf.fold_batch_norm(variables))
    # Several rounds of images per batch, because slots stay empty while the last images of a batch
    # finish.
    batch_size = 8 * devices.images_at_once()
    examples, n, clean, robust = spec.examples, 0, 0, 0

    def test(images: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which images are correct without and under attack."""
        # Slots without an image have arbitrary labels; they are left out afterwards.
        labels = np.array([examples[i].label for i in index], np.int64)
        class_mask = goals.class_mask(labels[:, None].tolist(), k)
        images01 = pixels.to_images01(images)
        logits = np.asarray(inference.forward(clf)(variables, images01))
        correct = metrics.topk_correct(logits, labels, 1) & (index >= 0)
        key = jax.random.fold_in(jax.random.key(seed), index[0])
        result = attack(variables, key, images01, class_mask, eps=eps, skip=~correct)
        return correct, correct & ~np.asarray(result.success)

    progress = functools.partial(reporting.progress, label="attacking, batches")
    for batch in inference.map_sources(
        test, inputs.sources(spec), clf.prepare, batch_size=batch_size, progress=progress, at=True
    ):
        correct, withstood = batch.values
        n, clean = n + len(correct), clean + int(correct.sum())
        robust += int(withstood.sum())
    name = method
    if method == "pgd":
        name = f"PGD-{CHECK_STEPS} on the margin, 1 random start, 8-bit images"
    return {
        "attack": name + (f" with {queries:,} queries" if queries else ""),
        "norm": "linf",
        "eps": eps,
        "n": n,
        "clean": clean / n,
        "clean_ci95": list(metrics.wilson(clean, n)),
        "top1": robust / n,
        "top1_ci95": list(metrics.wilson(robust, n)),
        "top1_of_correct": robust / clean if clean else None,
        "top1_of_correct_ci95": list(metrics.wilson(robust, clean)),
    }


def robust_rows(
    clf: Classifier,
    variables: Variables,
    trained: Variables,
    parts: data.Parts,
    recipe: Recipe,
    *,
    eps: float,
    method: str,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Accuracy under attack of a trained classifier, and of a probe on the pretrained features.

    The rows are "after" and "before". If the classifier is a probe itself, the only row is "now". A
    head that is not linear has no "before".

    Args:
      clf: the network.
      variables, trained: the pretrained ones, and those that are tested.
      parts: the images of the training.
      recipe: how the classifier was trained.
      eps, method, seed: as for `robust`.
    """
    attack: dict[str, Any] = {"eps": eps, "method": method, "seed": seed}
    row = robust(clf, trained, parts.test, **attack)
    if recipe.tune == "probe" and not recipe.rules:
        return {"now": row}
    rows = {"after": row}
    if heads.kind(clf.head) == "linear":  # type: ignore[arg-type]
        start = clf.reset_head(variables, key=jax.random.key(seed))
        probe = fit(clf, start, parts.train, parts.validation, Recipe(tune="probe"), seed=seed)
        rows["before"] = robust(clf, probe.variables, parts.test, **attack)
    return rows


def _search(method: str, queries: int) -> attacks.Search | Sequence[attacks.Search]:
    arguments = (
        {"steps": CHECK_STEPS} if method == "pgd" else {"queries": queries} if queries else {}
    )
    return attacks.get(method)(**arguments)


def of_correct(robust_accuracy: Mapping[str, float], n: int, m: int) -> dict[str, Any]:
    """Accuracy under attack as a share of the images that are correct without attack.

    Args:
      robust_accuracy: eps -> accuracy under attack, a share of all n images.
      n: number of images.
      m: number of images that are correct without attack, at least 1.

    Returns:
      "robust_accuracy_of_correct" and "robust_accuracy_of_correct_ci95" (Wilson), each by eps.
    """
    counts = {eps: round(share * n) for eps, share in robust_accuracy.items()}
    return {
        "robust_accuracy_of_correct": {eps: count / m for eps, count in counts.items()},
        "robust_accuracy_of_correct_ci95": {
            eps: list(metrics.wilson(count, m)) for eps, count in counts.items()
        },
    }


@functools.cache
def _attack(clf: Classifier, method: str, queries: int) -> attacks.Attack:
    """The attack of `robust`; cached, so that it compiles once per run."""
    return attacks.make(_search(method, queries), clf.logits, norm=norms.LINF, goal=GOAL)
