"""Tests of belief: does a map describe the network, and do its pixels matter?

`CHECKS` has one row per test. Two controls take part, a random order of the pixels and the edge
map; both must fail. To add a test: a function `(evidence, name) -> row` and a row in `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import reporting
from tl.attacks.run import map_in_chunks
from tl.devices import shard_rows
from tl.explain import curves, fragility, pointing, sensitivity
from tl.explain.base import Explanation, Rows, logit
from tl.explain.evidence import CONTROLS, Evidence, Subject
from tl.explain.sensitivity import RANDOMIZED, SHIFTED
from tl.explain.statistics import (
    FEWEST,
    bootstrap,
    by_image,
    correlations,
    gini,
    per_image,
    spearman,
)
from tl.paths import nearest
from tl.types import Array, Variables

__all__ = ["CHECKS", "CONTROLS", "FEWEST", "Check", "Subject", "evaluate", "failed"]

# Largest share of the score difference that a complete map may miss.
COMPLETE = 0.01


def completeness(evidence: Evidence, name: str) -> dict[str, Any] | None:
    """How far the sums of maps are from the score differences between image and baseline.

    Returns:
      `{"value", "passed"}`: the sum of the absolute errors over that of the absolute differences.
      None for a method without baselines.
    """
    draw = evidence.explanations[name].method.baselines
    if draw is None:
        return None
    rows, variables, run = evidence.rows(), evidence.subject.variables, evidence.shared(_scores)
    starts = draw(rows.keys, rows.images01)
    of = lambda images01: np.asarray(run(variables, rows._replace(images01=images01)))
    before = np.stack([of(starts[:, i]) for i in range(starts.shape[1])])
    difference = of(rows.images01) - before.mean(axis=0)
    sums = np.asarray(evidence.maps[name], np.float64).sum(axis=(1, 2))
    value = float(np.abs(sums - difference).sum() / max(np.abs(difference).sum(), 1e-12))
    return {"value": value, "passed": value <= COMPLETE}


def _scores(evidence: Evidence) -> Callable[[Variables, Rows], jax.Array]:
    """`(variables, rows) -> f32[b]`, the score that is explained."""
    clf, objective = evidence.subject.clf.with_dtype("float32"), evidence.objective or logit

    def run(variables: Variables, rows: Rows) -> jax.Array:
        return objective(rows.targets)(clf.apply(variables, rows.images01), rows.images01)

    return shard_rows(map_in_chunks(run, evidence.slots))


def sparseness(evidence: Evidence, name: str) -> dict[str, Any]:
    """The Gini index of the absolute values, as from `statistics.gini` and `per_image`."""
    return per_image(by_image(gini(evidence.maps[name]), evidence.groups))


def edge_alignment(evidence: Evidence, name: str) -> dict[str, Any]:
    """Rank correlation of the absolute values with the edge map, as from `statistics.per_image`.

    Gradients of adversarially trained networks follow the edges of the object more than those of
    other networks (Tsipras et al. 2018, arXiv:1805.12152, section 3).
    """
    values = spearman(evidence.maps[name], evidence.maps["edges"])
    return per_image(by_image(values, evidence.groups))


def _correlations(evidence: Evidence) -> dict[str, dict[str, float]]:
    """Method -> other method -> mean rank correlation of their absolute values."""
    names = list(evidence.explanations)
    matrix = correlations([evidence.maps[name] for name in names])
    rows = {
        n: dict(zip(names, map(float, row), strict=True))
        for n, row in zip(names, matrix, strict=True)
    }
    return {name: {n: value for n, value in row.items() if n != name} for name, row in rows.items()}


def agreement(evidence: Evidence, name: str) -> dict[str, Any] | None:
    """Rank correlation of the absolute values of a map with those of other methods.

    Returns:
      `{"value", "with"}`: the mean over the other methods except controls, and the correlation
      with each other map; None without another method.
    """
    others = evidence.shared(_correlations)[name]
    values = [value for other, value in others.items() if other not in CONTROLS]
    return {"value": float(np.mean(values)), "with": others} if values else None


# ------------------------------------------------------------------------------- the tests


class Check(NamedTuple):
    """A test of belief.

    Attributes:
      run: `(evidence, name) -> {"value", ...}` of a method, or None where the test does not apply;
        "passed" if the test has a limit, None if nothing is decided.
      title: its name on the page.
      limit: when a method passes; "" for a number that is reported only.
      question: what the test is about; the page has one table per question.
      needs_map: whether the method must have a map, which the random order has not.
      percent: whether the value is shown in percent.
    """

    run: Callable[[Evidence, str], dict[str, Any] | None]
    title: str
    limit: str = ""
    question: str = ""
    needs_map: bool = True
    percent: bool = False


NETWORK, SAME = "Does the map follow the network?", "Does the map change without a reason?"
PIXELS, FORM = "Do the pixels of the map matter?", "What are its values?"
KNOWN = "Does the map point at a known object?"
_CORRELATION = f"at most {RANDOMIZED}"
_LOWER, _HIGHER = (f"{word} than random order and edges" for word in ("lower", "higher"))

CHECKS: dict[str, Check] = {
    "randomization": Check(
        sensitivity.randomization, "Correlation with random weights", _CORRELATION, NETWORK
    ),
    "smooth_randomization": Check(
        sensitivity.smooth_randomization, "Correlation, averaged over noise", _CORRELATION, NETWORK
    ),
    "random_labels": Check(
        sensitivity.random_labels, "Correlation with permuted labels", _CORRELATION, NETWORK
    ),
    "constant_image": Check(
        sensitivity.constant_image, "Position in a constant image", question=SAME
    ),
    "input_shift": Check(
        sensitivity.input_shift,
        "Change after an input shift",
        f"at most {SHIFTED:.0%}",
        SAME,
        percent=True,
    ),
    "seeds": Check(sensitivity.seeds, "Correlation with another seed", question=SAME),
    "fragility": Check(
        fragility.fragility, "Correlation after an attack on the map", question=SAME
    ),
    "deletion": Check(curves.deletion, "Deletion area", _LOWER, PIXELS, needs_map=False),
    "insertion": Check(curves.insertion, "Insertion area", _HIGHER, PIXELS, needs_map=False),
    "road": Check(curves.road, "ROAD", _LOWER, PIXELS, needs_map=False),
    "mu_fidelity": Check(curves.mu_fidelity, "Mu-fidelity", _HIGHER, PIXELS, needs_map=False),
    "mosaic": Check(
        pointing.mosaic, "Energy in the right quarter", "more than 0.25", KNOWN, percent=True
    ),
    "watermark": Check(pointing.watermark, "Mark found", question=KNOWN, percent=True),
    "completeness": Check(
        completeness,
        "Completeness error",
        f"at most {COMPLETE:.0%} of the score difference",
        FORM,
        percent=True,
    ),
    "sparseness": Check(sparseness, "Sparseness (Gini)", question=FORM, needs_map=False),
    "edge_alignment": Check(edge_alignment, "Correlation with the edges", question=FORM),
    "agreement": Check(agreement, "Correlation with other methods", question=FORM),
}
"""Key of `result.json` -> test."""


def evaluate(
    subject: Subject,
    explanations: Mapping[str, Explanation],
    maps: Mapping[str, Array],
    *,
    steps: int,
    slots: int,
    randomized: int | None = None,
    groups: Array | None = None,
    mosaics: int = 0,
    marks: int = 0,
    eps: float = 0.0,
    keys: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """All tests of belief of all methods and of the controls.

    Args:
      subject: the network and b images.
      explanations: name -> method; "edges" is one of them.
      maps: name -> f32[b h w].
      steps: number of steps of insertion and deletion.
      slots: passes that a device computes together.
      randomized: number of rows of the tests that compute maps again, the first ones; None is all.
      groups: i[b], the image of each row, where several targets of an image are explained: rows of
        one image are not independent, and their mean counts. None: each row is an image.
      mosaics, marks: numbers of mosaics and of marked images of the tests with a known answer; 0
        omits a test.
      eps: radius of the attack on the maps in Linf, in [0, 1] pixel units; 0 omits it.
      keys: the tests that are computed, keys of `CHECKS`; () is all.

    Returns:
      Name -> key of `CHECKS` -> `{"value", ...}`, without the tests that do not apply; "passed" if
      the test has a limit, None if nothing is decided. Intervals are bootstrapped over images.
      "random" is the random order of the pixels, without a map.

    Raises:
      ValueError: an unknown key; the message has the nearest.
    """
    check_keys(keys)
    n = len(subject.images01)
    zeros = np.zeros(np.shape(subject.images01)[:3], np.float32)
    evidence = Evidence(
        subject,
        explanations,
        {name: np.asarray(values) for name, values in maps.items()} | {"random": zeros},
        steps,
        slots,
        n if randomized is None else min(randomized, n),
        np.arange(n) if groups is None else np.asarray(groups),
        mosaics,
        marks,
        eps,
    )
    tests: dict[str, dict[str, Any]] = {}
    for name in reporting.progress(list(evidence.maps), label="tests"):
        rows = {
            key: check.run(evidence, name)
            for key, check in CHECKS.items()
            if key in (keys or CHECKS) and (name in explanations or not check.needs_map)
        }
        tests[name] = {key: row for key, row in rows.items() if row is not None}
    return tests


def differences(
    first: Mapping[str, Mapping[str, Any]], second: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The tests of a second network minus those of a first one, on the same images.

    Args:
      first, second: as from `evaluate`.

    Returns:
      Name -> key of `CHECKS` -> `{"value", "ci95"}`, for tests with a value per image: the mean
      difference and its 95 % bootstrap interval over images.
    """
    table: dict[str, dict[str, Any]] = {name: {} for name in first if name in second}
    for name, row in table.items():
        for key in CHECKS:
            pair = [tests[name].get(key, {}).get("per_image") for tests in (second, first)]
            if None not in pair:
                row[key] = bootstrap(np.subtract(*pair))
    return table


def check_keys(keys: Sequence[str]) -> None:
    """Raises ValueError if one of the keys is not in `CHECKS`."""
    for key in keys:
        if key not in CHECKS:
            raise ValueError(
                f"`tests` names an unknown test {key!r}; nearest: {nearest(key, CHECKS)}"
            )


def failed(row: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The keys of the tests that a method fails, in the order of `CHECKS`."""
    return [key for key in CHECKS if key in row and row[key].get("passed") is False]
