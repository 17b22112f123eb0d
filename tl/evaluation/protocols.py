"""Published protocols of transfer learning by name, so that a number can stand next to a paper's.

A row of `PROTOCOLS` decides the division of a data set with official parts, how a classifier is
trained, and the measure. Published values of known networks and data sets are in `PUBLISHED`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import data, metrics, reporting
from tl.data import DataSpec, Parts
from tl.evaluation import sets
from tl.inference import Predictions, features
from tl.models import Classifier
from tl.paths import nearest
from tl.training import fewshot, inputs, probe
from tl.training.fit import fit
from tl.training.recipe import Recipe
from tl.types import Variables

# Data sets whose measure is the mean of the accuracies of the classes (Kornblith et al. 2019,
# arXiv:1805.08974, table 1).
MEAN_PER_CLASS = ("fgvc_aircraft", "oxford_iiit_pet", "caltech101", "oxford_flowers102")

# Penalties of Chen et al. 2020, arXiv:2002.05709, appendix B.8.1.
PENALTIES = tuple(np.logspace(-6, 5, 45).tolist())

# Share of the training part that is held out where a data set has no validation part: google's
# task_adaptation, for the sets that it divides.
HELD_OUT = {"oxford_iiit_pet": 0.2, "dsprites": 0.2}
HELD_OUT_DEFAULT = 0.1

FEWSHOT_SHOTS, FEWSHOT_SEEDS = (1, 5, 10, 25), 3

# ResNet-50 with supervised pretraining, the best of a sweep of four settings:
# google-research/task_adaptation, docs/data/results.csv.
_VTAB = {
    "resnet50": {
        "cifar100": 0.570,
        "caltech101": 0.910,
        "dtd": 0.660,
        "oxford_flowers102": 0.886,
        "oxford_iiit_pet": 0.899,
        "svhn_cropped": 0.873,
        "sun397": 0.344,
        "patch_camelyon": 0.806,
        "eurosat": 0.953,
        "resisc45": 0.808,
    }
}

PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    # ResNet-50 as in table 8 of Chen et al. 2020, arXiv:2002.05709.
    "kornblith": {
        "resnet50": {
            "food101": 0.723,
            "cifar10": 0.936,
            "cifar100": 0.783,
            "birdsnap": 0.537,
            "sun397": 0.619,
            "cars196": 0.667,
            "fgvc_aircraft": 0.610,
            "dtd": 0.749,
            "oxford_iiit_pet": 0.915,
            "caltech101": 0.945,
            "oxford_flowers102": 0.947,
        }
    },
    "vtab1k": _VTAB,
    "vtab1k_sweep": _VTAB,
}
"""Protocol -> network -> data set -> published value of the measure."""


class Outcome(NamedTuple):
    """The test of one classifier.

    Attributes:
      logits: f32[n k].
      labels: i[n].
      facts: what was chosen, for `result.json`.
    """

    logits: np.ndarray
    labels: np.ndarray
    facts: dict[str, Any]


class Protocol(NamedTuple):
    """A row of `PROTOCOLS`.

    Attributes:
      run: `(clf, variables, parts, seed) -> Outcome`, one per seed and setting.
      help: the protocol in a few words.
      reference: author, year, arXiv.
      differs: how this differs from the authors' code.
      seeds: seeds of which the mean is reported.
      limit: `(training images, validation images)` that are used; None for all.
    """

    run: Callable[[Classifier, Variables, Parts, int], Sequence[Outcome]]
    help: str
    reference: str
    differs: str
    seeds: int = 1
    limit: tuple[int, int] | None = None


def divide(spec: DataSpec, limit: tuple[int, int] | None) -> Parts:
    """The official parts of a data set, in its order.

    Args:
      spec: a data set with an official test part, such as `tfds:NAME`. Without a validation part,
        the last 10 % of the training part are held out (20 % of Pets and dSprites).
      limit: the numbers of training and validation images, the first of each part.

    Raises:
      ValueError: there is no official test part, or fewer images than the protocol needs.
    """
    rows: dict[str, list[data.Example]] = {"train": [], "validation": [], "test": []}
    for example in spec.examples:
        rows[example.part or "train"].append(example)
    if not rows["test"] or not rows["train"]:
        raise ValueError(
            f"a protocol needs official training and test parts: got {spec.name} without one; use "
            "a prepared set, `data=tfds:NAME`, or a column `split` of a CSV file"
        )
    if not rows["validation"]:
        share = HELD_OUT.get(name_of(spec), HELD_OUT_DEFAULT)
        first = len(rows["train"]) - round(share * len(rows["train"]))
        rows["train"], rows["validation"] = rows["train"][:first], rows["train"][first:]
    for part, most in zip(("train", "validation"), limit or (), strict=False):
        if len(rows[part]) < most:
            raise ValueError(
                f"the protocol needs {most} {part} images: got {len(rows[part])} in {spec.name}"
            )
        rows[part] = rows[part][:most]
    whole = lambda part: dataclasses.replace(spec, examples=tuple(rows[part]), skipped=())
    return Parts(*map(whole, Parts._fields))


def name_of(spec: DataSpec) -> str:
    """The name of the data set in TFDS: "oxford_iiit_pet" for "tfds:oxford_iiit_pet/4.0.0@DIR"."""
    return spec.name.partition(":")[2].partition("@")[0].partition("/")[0] or spec.name


# ---- protocols -----------------------------------------------------------------------------------


def _read(clf: Classifier, variables: Variables, part: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features f32[n d] and labels i[n] of the readable images of a part."""
    bank = features.extract(clf, variables, inputs.sources(part), progress=reporting.progress)
    return bank.values[bank.valid], inputs.labels(part)[bank.valid]


def _joined(parts: Parts) -> DataSpec:
    """The training and validation images."""
    examples = (*parts.train.examples, *parts.validation.examples)
    return dataclasses.replace(parts.train, examples=examples)


def _kornblith(clf: Classifier, variables: Variables, parts: Parts, seed: int) -> Sequence[Outcome]:
    """A logistic probe; the penalty is chosen on the validation part, then it is fitted to both."""
    train, validation, test = (_read(clf, variables, part) for part in parts)
    n, k = len(train[1]) + len(validation[1]), len(parts.train.classes)
    strengths = [1.0 / (penalty * n) for penalty in reversed(PENALTIES)]
    fitted = probe.fit(*train, k, validation=validation, strengths=strengths, seed=seed)
    logits = test[0] @ fitted.params["kernel"] + fitted.params["bias"][None]
    return [Outcome(logits, test[1], {"penalty": 1.0 / (fitted.strength * n)})]


def _fewshot(clf: Classifier, variables: Variables, parts: Parts, seed: int) -> Sequence[Outcome]:
    """Least squares on k images per class, with other draws for each seed."""
    joined = _joined(parts)
    (values, labels), (queries, answers) = (
        _read(clf, variables, part) for part in (joined, parts.test)
    )
    k, rng = len(joined.classes), np.random.default_rng(seed)
    outcomes = []
    for shots in FEWSHOT_SHOTS:
        rows = [rng.permutation(np.flatnonzero(labels == c))[:shots] for c in range(k)]
        if min(map(len, rows)) < shots:
            continue
        chosen = np.concatenate(rows)
        scores = fewshot.fit("lsr", values[chosen], labels[chosen], k, seed=seed)
        outcomes.append(Outcome(scores(queries), answers, {"shots": shots}))
    return outcomes


# As scripts/run_all_tasks.sh of task_adaptation: batches of 64 images, 1,000 steps.
VTAB = Recipe(
    tune="all",
    steps=1000,
    batch_size=64,
    optimizer="momentum",
    lr=0.01,
    backbone_lr=1.0,
    schedule="vtab",
    weight_decay=0.0,
    clip=0.0,
    bn="update",
)

# The lightweight sweep of the paper: two rates and two numbers of steps, in batches of 512 images.
SWEEP = tuple(
    dataclasses.replace(VTAB, batch_size=512, microbatches=0, lr=lr, steps=steps)
    for lr in (0.1, 0.01)
    for steps in (2500, 10_000)
)


def _fine_tuned(
    clf: Classifier,
    variables: Variables,
    images: DataSpec,
    queries: DataSpec,
    recipe: Recipe,
    seed: int,
) -> tuple[Predictions, int]:
    """The predictions for `queries` after training on `images`, and the number of steps."""
    clf, variables = clf.replace_head(variables, images.classes, key=jax.random.key(seed))
    fitted = fit(clf, variables, images, None, recipe, seed=seed)
    return sets.predict_set(clf, fitted.variables, queries, frozen=False), fitted.steps


def _vtab(clf: Classifier, variables: Variables, parts: Parts, seed: int) -> Sequence[Outcome]:
    """All parameters for 1,000 steps on the 1,000 images of training and validation."""
    tested, steps = _fine_tuned(clf, variables, _joined(parts), parts.test, VTAB, seed)
    return [Outcome(tested.logits, tested.labels, {"steps": steps})]


def _vtab_sweep(
    clf: Classifier, variables: Variables, parts: Parts, seed: int
) -> Sequence[Outcome]:
    """The recipe of `SWEEP` with the best validation accuracy, trained again on both parts."""
    accuracy: dict[Recipe, float] = {}
    errors = []
    for recipe in SWEEP:
        try:
            predicted, _ = _fine_tuned(clf, variables, parts.train, parts.validation, recipe, seed)
            accuracy[recipe] = sets.accuracy(predicted)
        except ValueError as error:  # a rate at which the loss is not finite
            errors.append(error)
    if not accuracy:
        raise errors[0]
    best = max(accuracy, key=lambda recipe: accuracy[recipe])
    tested, steps = _fine_tuned(clf, variables, _joined(parts), parts.test, best, seed)
    facts = {"lr": best.lr, "steps": steps, "validation": accuracy[best]}
    return [Outcome(tested.logits, tested.labels, facts)]


PROTOCOLS: Mapping[str, Protocol] = {
    "kornblith": Protocol(
        _kornblith,
        "logistic probe; one of 45 penalties by the validation part; fitted again to both parts",
        "Kornblith et al. 2019, arXiv:1805.08974, section 3.1",
        "features are standardized, and the bias is not penalized",
    ),
    "fewshot": Protocol(
        _fewshot,
        "least squares on 1, 5, 10 and 25 images per class, three draws",
        "big_vision's few-shot evaluator (Kolesnikov et al. 2020, arXiv:1912.11370, section 3.3)",
        "the draws are not the authors'",
        seeds=FEWSHOT_SEEDS,
    ),
    "vtab1k": Protocol(
        _vtab,
        "fine-tuning of all parameters for 1,000 steps on 1,000 images",
        "Zhai et al. 2019, arXiv:1910.04867, section 3",
        "one learning rate and number of steps instead of the best of a sweep",
        limit=(800, 200),
    ),
    "vtab1k_sweep": Protocol(
        _vtab_sweep,
        "two rates and two numbers of steps on 800 images, the best by 200 others; trained again "
        "on all 1,000",
        "Zhai et al. 2019, arXiv:1910.04867, section 3 (lightweight search)",
        "the rate rises over the first 8 % of the steps; images are prepared as for the weights",
        limit=(800, 200),
    ),
}
"""Name -> protocol."""


# ---- the command ---------------------------------------------------------------------------------


def evaluate(
    run: reporting.Run, clf: Classifier, variables: Variables, spec: DataSpec, name: str, seed: int
) -> dict[str, Any]:
    """A network on a data set by a published protocol.

    Args:
      run: receives a row per seed and setting.
      clf, variables: the pretrained network.
      spec: a data set with official parts.
      name: of `PROTOCOLS`.
      seed: the first seed.

    Returns:
      The content of `result.json`: `value`, the measure, with `value_ci95` over test images, for
      several settings as `rows`; `measure`, `published` and the sizes of the parts.

    Raises:
      ValueError: an unknown protocol, or those of `divide`.
    """
    if name not in PROTOCOLS:
        raise ValueError(
            f"unknown `protocol`: got {name!r}, expected {', '.join(PROTOCOLS)}; nearest: "
            f"{nearest(name, PROTOCOLS)}"
        )
    protocol = PROTOCOLS[name]
    parts = divide(spec, protocol.limit)
    per_class = name == "kornblith" and name_of(spec) in MEAN_PER_CLASS
    measure = "balanced" if per_class else "top1"
    by_setting: dict[str, list[dict[str, Any]]] = {}
    for number in range(seed, seed + protocol.seeds):
        for outcome in protocol.run(clf, variables, parts, number):
            figures = metrics.summarize(outcome.logits, outcome.labels)
            row = {
                "value": figures[measure],
                "value_ci95": figures[f"{measure}_ci95"],
                **outcome.facts,
            }
            run.log({"seed": number, **row})
            by_setting.setdefault(str(outcome.facts.get("shots", "")), []).append(row)
    if not by_setting:
        raise ValueError(
            f"{spec.name} has no class with {min(FEWSHOT_SHOTS)} training images that can be read"
        )
    rows = [
        rows[0] | {"value": float(np.mean([row["value"] for row in rows])), "seeds": len(rows)}
        for rows in by_setting.values()
    ]
    if protocol.seeds > 1:
        for row, rows_of in zip(rows, by_setting.values(), strict=True):
            row |= metrics.spread([one["value"] for one in rows_of])
            row["value_ci95"] = row.pop("ci95")
    published = PUBLISHED.get(name, {}).get(clf.arch, {}).get(name_of(spec))
    return {
        "arch": clf.arch,
        "data": spec.name,
        "protocol": name,
        "help": protocol.help,
        "reference": protocol.reference,
        "differs": protocol.differs,
        "measure": "mean of the accuracies of the classes" if per_class else "accuracy",
        "sizes": {part: len(of.examples) for part, of in parts._asdict().items()},
        "rows": rows,
        "value": rows[-1]["value"],
        "value_ci95": rows[-1]["value_ci95"],
        "published": published,
        "published_of": PUBLISHED.get(name, {}),
    }
