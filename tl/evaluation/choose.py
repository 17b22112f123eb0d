"""Which pretrained network suits a data set: scores of several networks on the same images.

Nothing is trained for the scores. With `truth`, each network is also trained and tested, and the
scores are compared with the accuracies of the tests.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import backbones, cpu, data, devices, inference, metrics, models, reporting
from tl.data import DataSpec
from tl.data.duplicates import clusters
from tl.evaluation import sets, timing, transfer
from tl.evaluation.before import TransferSettings, check_settings
from tl.evaluation.transferability import SCORES, Evidence, PerImage
from tl.inference import features
from tl.inference.batches import BATCH_SIZE
from tl.models import Classifier, heads
from tl.training import inputs
from tl.training.recipe import pixels_for
from tl.types import Variables
from tl.weights import store

# Resamples of the images, for the intervals of ranks and of correlations; chosen, not tuned.
RESAMPLES = 1000

# Timed calls of a network's forward pass; chosen, not tuned.
TIMED = 3


class Candidate(NamedTuple):
    """A pretrained network, and the endpoint whose pooled outputs are its features."""

    name: str
    endpoint: str
    clf: Classifier
    variables: Variables

    @property
    def label(self) -> str:
        """The name in tables, with the endpoint unless that is the usual one."""
        return self.name if self.endpoint == "features" else f"{self.name} at {self.endpoint}"


def installed() -> list[str]:
    """The names of the networks whose weights are in an installed package."""
    archs = [row.arch for row in store.MANIFEST if row.package and store.installed(row)]
    common = lambda arch: min((form.name for form in backbones.forms(arch)), key=len)
    return list(dict.fromkeys(map(common, archs)))


def candidates(names: Sequence[str], endpoints: Sequence[str], spec: DataSpec) -> list[Candidate]:
    """The candidates, with the preprocessing for a data set.

    Args:
      names: names or folders of networks, as `models.load` takes them.
      endpoints: "features", or endpoints that every network has.
      spec: the data set.

    Raises:
      ValueError: fewer than two candidates, one twice, or a network without one of the endpoints.
    """
    if len(set(names)) * len(set(endpoints)) < max(2, len(names) * len(endpoints)):
        raise ValueError(
            "`arch` and `endpoint` must give at least two candidates, each once: got "
            f"{','.join(names)!r} and {','.join(endpoints)!r}"
        )
    chosen = []
    for name in names:
        clf, variables = models.load(name)
        clf = pixels_for(clf, spec, "", 0).with_dtype(devices.default_dtype())
        features.widths(clf, variables, *endpoints)
        chosen += [Candidate(name, endpoint, clf, variables) for endpoint in endpoints]
    return chosen


def choose(
    run: reporting.Run,
    chosen: Sequence[Candidate],
    spec: DataSpec,
    *,
    settings: TransferSettings,
    truth: bool = False,
) -> dict[str, Any]:
    """Scores of candidates on the training part of a data set, and a recommendation.

    Args:
      run: the run.
      chosen: from `candidates`.
      spec: the data set. The scores do not use the test part that `transfer` has with the same
        settings, so the choice does not favor a later test.
      settings: seed and fractions of the split; with `truth`, also how each network is trained.
      truth: whether to train and test each network.

    Returns:
      The content of `result.json`: `rows`, best first, `recommended`, `n`, and with `truth` also
      `tau`, the agreement of each score with the accuracies.

    Raises:
      ValueError: those of `data.divide`, or too few readable images.
    """
    if truth:
        for clf, variables in (_with_head(candidate, spec) for candidate in chosen):
            check_settings(clf, variables, settings)
    parts = data.divide(
        spec,
        test_fraction=settings.test_fraction,
        validation_fraction=0.0,
        seed=settings.first_seed,
    )
    groups = np.unique(clusters(parts.train), return_inverse=True)[1]
    rows, values, skipped, source_of = [], [], (), {}
    for candidate in chosen:
        row, result, skipped = _score(
            candidate, parts.train, groups, source_of, seed=settings.first_seed
        )
        run.log(row)
        rows.append(row)
        values.append(result)
    likelihood = np.stack([result["logistic"].log_likelihood for result in values])
    for row, ranked in zip(rows, ranks(likelihood), strict=True):
        row |= ranked
    outcome: dict[str, Any] = {
        "data": spec.name,
        "n": len(likelihood[0]),
        "classes": len(spec.classes),
        "scores": {name: score.title for name, score in SCORES.items()},
        "skipped": [skip._asdict() for skip in skipped],
    }
    if truth:
        compare = lambda: _truth(run, chosen, rows, spec, settings)
        outcome |= run.attempt("truth", compare, {})
    order = sorted(range(len(rows)), key=lambda i: rows[i]["rank"])
    outcome["rows"] = [rows[i] for i in order]
    return outcome | recommend(outcome["rows"])


def _score(
    candidate: Candidate,
    part: DataSpec,
    groups: np.ndarray,
    source_of: dict[str, np.ndarray | None],
    *,
    seed: int,
) -> tuple[dict[str, Any], dict[str, float | PerImage], tuple[data.Skipped, ...]]:
    """The row of one candidate, its scores, and the images that could not be read.

    `source_of` has the source probabilities of the networks so far; those of this one are added.
    """
    clf, variables, endpoint = candidate.clf, candidate.variables, candidate.endpoint
    began = time.monotonic()
    bank = features.extract(
        clf, variables, inputs.sources(part), endpoint=endpoint, progress=reporting.progress
    )
    labels, k = inputs.labels(part)[bank.valid], len(part.classes)
    counts = np.bincount(labels, minlength=k)
    if not counts.all():
        raise ValueError(
            f"class {part.classes[int(counts.argmin())]!r} of {part.name} has no readable image "
            "for the scores; run doctor on the data set"
        )
    if candidate.name not in source_of:  # the same for each endpoint
        source_of[candidate.name] = _source_probabilities(candidate, bank, part)
    source = source_of[candidate.name]
    values = bank.values[bank.valid]
    evidence = Evidence(values, labels, k, source, groups[bank.valid], seed)
    results, seconds = {}, {}
    with cpu.one_blas_thread():
        for name, score in SCORES.items():
            if source is not None or not score.needs_source:
                seconds[name], results[name] = timing.spent(lambda s=score: s.function(evidence))
    row: dict[str, Any] = {
        "arch": candidate.name,
        "endpoint": endpoint,
        "name": candidate.label,
        "dim": evidence.features.shape[1],
    }
    for name in SCORES:
        result = results.get(name)
        if isinstance(result, PerImage):
            row |= metrics.share(name, result.correct)
        else:
            row[name] = result
    row["log_likelihood"] = float(np.mean(results["logistic"].log_likelihood))
    row |= {"reused": bank.reused, "seconds": time.monotonic() - began, "score_seconds": seconds}
    return row | {"images_per_second": _speed(candidate)}, results, bank.skipped


def _source_probabilities(
    candidate: Candidate, bank: features.Features, part: DataSpec
) -> np.ndarray | None:
    """Probabilities f64[n z] of the classes that a network was trained on; None without a head."""
    clf, variables = candidate.clf, candidate.variables
    if clf.classes is None:
        return None
    if candidate.endpoint == "features" and heads.pooled(clf.head):  # type: ignore[arg-type]
        logits = clf.apply_head(variables, jnp.asarray(bank.values[bank.valid]))
    else:
        sources = list(itertools.compress(inputs.sources(part), bank.valid))
        logits = inference.predict(clf, variables, sources, progress=sets.progress).logits
    return metrics.softmax(np.asarray(logits))


def _speed(candidate: Candidate) -> float:
    """Images per second of the forward pass, without reading files: the median of `TIMED` calls."""
    clf = candidate.clf
    program = features.pooled(clf, candidate.endpoint)
    side = clf.pixels.size
    images01 = np.zeros((BATCH_SIZE, side, side, len(clf.pixels.mean)), np.float32)
    variables = devices.put_local(clf.fold_batch_norm(candidate.variables))
    call = lambda: np.asarray(program(variables, images01))
    rates = timing.rates({candidate.label: call}, TIMED, BATCH_SIZE, warm_up=1)
    return float(np.median(rates[candidate.label]))


# ---- the ranking ---------------------------------------------------------------------------------


def ranks(values: np.ndarray) -> list[dict[str, Any]]:
    """The ranks of m candidates, with bootstrap intervals over the images.

    Args:
      values: f64[m n], one value per candidate and image; larger is better.

    Returns:
      One row per candidate: `rank` from 1, `rank_ci95`, and `behind`, the mean over the images of
      the best candidate's value minus its own, with its standard error `behind_se` and interval
      `behind_ci95`; all three are 0 for the best.
    """
    m, n = values.shape
    rows = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    means = np.stack([values[:, row].mean(axis=1) for row in rows])  # [resamples, m]
    places = 1 + (means[:, None, :] > means[:, :, None]).sum(axis=2)
    mean = values.mean(axis=1)
    best = int(mean.argmax())
    result = []
    for i in range(m):
        low, high = np.percentile(places[:, i], [2.5, 97.5])
        behind = means[:, best] - means[:, i]
        result.append(
            {
                "rank": 1 + int((mean > mean[i]).sum()),
                "rank_ci95": [int(low), int(np.ceil(high))],
                "behind": float(mean[best] - mean[i]),
                "behind_se": float(behind.std()),
                "behind_ci95": [float(end) for end in np.percentile(behind, [2.5, 97.5])],
            }
        )
    return result


def recommend(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fastest candidate within one standard error of the best.

    Args:
      rows: best first, with `name`, `images_per_second` and the fields of `ranks`.

    Returns:
      `recommended`, `best`, and `indistinguishable`, the candidates whose interval of the
      difference from the best contains 0.

    Reference: Breiman et al. 1984, "Classification and regression trees", section 3.4.3 (the
      simplest model within one standard error), here with the error of the paired difference.
    """
    near = [row for row in rows if row["behind"] <= row["behind_se"]]
    return {
        "recommended": max(near, key=lambda row: row["images_per_second"])["name"],
        "best": rows[0]["name"],
        "indistinguishable": [row["name"] for row in rows[1:] if row["behind_ci95"][0] <= 0],
    }


# ---- the truth -----------------------------------------------------------------------------------


def _with_head(candidate: Candidate, spec: DataSpec) -> tuple[Classifier, Variables]:
    """The network with a new head for the classes of a data set."""
    key = jax.random.key(0)
    return candidate.clf.replace_head(candidate.variables, spec.classes, key=key)


def _truth(
    run: reporting.Run,
    chosen: Sequence[Candidate],
    rows: Sequence[dict[str, Any]],
    spec: DataSpec,
    settings: TransferSettings,
) -> dict[str, Any]:
    """Trains and tests each network; adds the accuracies to `rows`, and returns the agreement."""
    this = next(transfer.rounds(spec, None, settings))
    correct: dict[str, np.ndarray] = {}
    for candidate in chosen:
        if candidate.name in correct:  # the training is the same for each endpoint
            continue
        tested = transfer.run_round(*_with_head(candidate, spec), this, settings).tested
        correct[candidate.name] = metrics.topk_correct(tested.logits, tested.labels, 1)
        run.log({"arch": candidate.name, "truth": float(correct[candidate.name].mean())})
    for row in rows:
        row |= metrics.share("truth", correct[row["arch"]])
    usual = [row for row in rows if row["endpoint"] == chosen[0].endpoint]
    table = np.stack([correct[row["arch"]] for row in usual])
    tau = {
        name: agreement(np.array([row[name] for row in usual], np.float64), table)
        for name in SCORES
        if len(usual) > 1 and all(row[name] is not None for row in usual)
    }
    return {"tau": tau, "n_test": table.shape[1], "tune": settings.recipe.tune}


def agreement(score: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """Weighted rank correlation of a score with the accuracies of m networks.

    Args:
      score: f64[m].
      correct: bool[m n], whether each trained network classifies each test image correctly.

    Returns:
      `{"value", "ci95"}`, in [-1, 1]. The interval describes other test images, for the same
      networks and training images.

    Reference: Vigna 2015, WWW, section 4 (additive hyperbolic weights), as used by You et al. 2021,
      arXiv:2102.11005, section 5.1.
    """
    from scipy import stats  # a dependency of JAX, imported here to keep `import tl` light

    def tau(accuracy: np.ndarray) -> float:
        value = float(np.asarray(stats.weightedtau(score, accuracy))[0])
        return 0.0 if np.isnan(value) else value  # one of the two is constant

    rng = np.random.default_rng(0)
    n = correct.shape[1]
    draws = [tau(correct[:, rng.integers(0, n, n)].mean(axis=1)) for _ in range(RESAMPLES)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"value": tau(correct.mean(axis=1)), "ci95": [float(low), float(high)]}
