"""What `transfer` and `evaluate` do alike: ask a classifier about a set, count, and show."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _common as common
from tl import attacks, data, devices, feeds, metrics, pixels, report, runlog
from tl.attacks import goals, norms
from tl.classifier import Classifier
from tl.data import DataSpec, Skipped
from tl.labels import ClassTable
from tl.report import Html
from tl.types import Variables

DETAILS = ("majority", "per_class", "confusion", "most_confused", "reliability", "reliability_calibrated")
"""The parts of a `summary` that are lists, beside its figures."""


View = Callable[[jax.Array], jax.Array]
"""images01 -> images01, such as a mirror."""


class Predictions(NamedTuple):
    """What a classifier said: logits f32[n k], the true labels i[n], and the examples, of those that could be read."""

    logits: np.ndarray
    labels: np.ndarray
    examples: list[data.Example]
    skipped: tuple[Skipped, ...]


def as_the_network(spec: DataSpec, table: ClassTable) -> DataSpec:
    """The set with its labels counted as a classifier's logits are, matched by name; ValueError where one is not among them."""
    indices = []
    for name in spec.classes:
        try:
            found = table.find(name)
        except ValueError as error:
            raise ValueError(f"{spec.name} has a class that was not learned: {error}") from None
        if len(found) != 1:
            raise ValueError(
                f"the class {name!r} of {spec.name} names {len(found)} learned classes; wanted one of them"
            )
        indices.append(found[0])
    examples = tuple(dataclasses.replace(e, label=indices[e.label]) for e in spec.examples)
    return dataclasses.replace(spec, examples=examples, classes=table.display_names)


def predictions(
    clf: Classifier, variables: Variables, spec: DataSpec, *, views: Sequence[View] = (), batch_size: int = 16
) -> Predictions:
    """Asks about every picture by the one path that `predict` takes, a batch at a time.

    With `views` (an augmentation's), what it says is the mean of the log-probabilities of each of them.
    """
    logits, kept, skipped = [np.zeros((0, len(common.class_table(clf).entries)), np.float32)], [], []
    variables = jax.device_put(variables)  # once, not with every batch
    batches = data.load(feeds.sources(spec), clf.prepare, batch_size=batch_size)
    for batch in runlog.progress(batches, -(-len(spec.examples) // batch_size), "asking, batches"):
        images01 = pixels.to_images01(batch.images)
        if views:
            each = [common.forward(clf)(variables, view(jnp.asarray(images01))) for view in views]
            said = np.mean([metrics.log_softmax(np.asarray(one)) for one in each], axis=0).astype(np.float32)
        else:
            said = common.forward(clf)(variables, images01)
        logits.append(np.asarray(said)[batch.valid])
        kept += [spec.examples[i] for i in batch.index[batch.valid]]
        skipped += batch.skipped
    labels = np.array([example.label for example in kept], np.int64)
    return Predictions(np.concatenate(logits), labels, kept, tuple(skipped))


CHECK_STEPS = 20  # of the attack of `robust`; what it finds is a bound from above, AutoAttack's is lower


def check_robust(eps: float, method: str, queries: int = 0) -> None:
    """ValueError where `robust` cannot be asked so: a radius that is no share, or queries of an attack that has none."""
    if not 0 <= eps <= 1:
        raise ValueError(f"--robust_eps is a share of the pixel range [0, 1], such as 2/255; got {eps:.4g}")
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
    attack, k = _checking(clf, method, queries), len(common.class_table(clf).entries)
    variables = jax.device_put(clf.fold_batch_norm(variables))
    batch_size = 8 * devices.side_by_side()  # the last few of a batch wait for no next ones
    n = clean = stood = 0
    batches = data.load(feeds.sources(spec), clf.prepare, batch_size=batch_size)
    for batch in runlog.progress(batches, -(-len(spec.examples) // batch_size), "attacking, batches"):
        labels = np.array([spec.examples[i].label for i in batch.index], np.int64)  # an empty slot has any
        members, images01 = goals.members(labels[:, None].tolist(), k), pixels.to_images01(batch.images)
        right = np.asarray(common.forward(clf)(variables, images01)).argmax(axis=1) == labels
        key = jax.random.fold_in(jax.random.key(seed), n)
        found = attack(variables, key, images01, members, eps=eps, skip=~(right & batch.valid))
        n, clean = n + int(batch.valid.sum()), clean + int((right & batch.valid).sum())
        stood += int((right & ~np.asarray(found.success) & batch.valid).sum())
    return {
        "attack": (f"PGD-{CHECK_STEPS} on the margin, 1 random start, 8-bit pictures" if method == "pgd" else method)
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


WHOSE = {"now": "this classifier", "after": "this classifier", "before": "a probe on the pretrained network"}


def robust_section(found: dict[str, dict[str, Any]]) -> Html:
    """Accuracy under attack: "now", or "before" and "after" training."""
    bars = [
        report.interval(
            row["top1"], *row["top1_ci95"], label=f"{WHOSE[when]}, {report.percent(row['clean'])} unattacked"
        )
        for when, row in found.items()
    ]
    row = next(iter(found.values()))
    text = (
        f"Share of the {row['n']} test pictures named rightly whatever the attack does within {255 * row['eps']:g}/255 of each "
        f"value: {row['attack']}. A stronger attack finds more."
    )
    return report.section("Under attack", *bars, text=text)


def robust_lines(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The same, a line each, as the terminal shows it."""
    for when, row in found.items():
        low, high = (report.percent(p) for p in row["top1_ci95"])
        yield (
            f"{when}: {report.percent(row['top1'])} (95 % interval {low} to {high}) within {255 * row['eps']:g}/255 under "
            f"{row['attack']}; {report.percent(row['clean'])} unattacked"
        )


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Several tests as one list."""
    return Predictions(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.labels for part in parts]),
        [example for part in parts for example in part.examples],
        tuple(skip for part in parts for skip in part.skipped),
    )


def summary(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str], temperature: float = 1.0) -> dict[str, Any]:
    """The figures of `metrics.summarise`, NLL and ECE at the temperature too, and the `DETAILS`; JSON-ready."""
    calm = metrics.summarise(logits / np.float32(temperature), labels)
    matrix = metrics.confusion(labels, logits.argmax(axis=1), len(classes))
    return {
        **metrics.summarise(logits, labels),
        "temperature": float(temperature),
        "nll_calibrated": calm["nll"],
        "ece_calibrated": calm["ece"],
        "majority": float(matrix.sum(axis=1).max() / matrix.sum()),
        "per_class": metrics.per_class(logits, labels, classes),
        "confusion": matrix.tolist(),
        "most_confused": metrics.most_confused(matrix, classes),
        "reliability": metrics.reliability(common.softmax(logits), labels),
        "reliability_calibrated": metrics.reliability(common.softmax(logits / temperature), labels),
    }


def sections(
    run: runlog.Run,
    clf: Classifier,
    said: Predictions,
    result: dict[str, Any],
    references: Sequence[tuple[str, float]] = (),
) -> list[Html]:
    """Accuracy beside what it should be compared to, calibration, classes, confusion, and the worst mistakes as pictures."""
    classes = common.class_table(clf).display_names
    figures = {
        "test pictures": result["n"],
        "top-1": report.percent(result["top1"]),
        "top-3": report.percent(result["top3"]),
        "balanced": report.percent(result["balanced"]),
        "NLL": f"{result['nll']:.3f}",
        "ECE": f"{result['ece']:.3f}",
        f"ECE at temperature {result['temperature']:.2f}": f"{result['ece_calibrated']:.3f}",
    }
    compared = [("always the commonest class", result["majority"]), *references]
    low, high = result["top1_ci95"]
    accuracy = report.interval(result["top1"], low, high, label="test accuracy", references=compared)
    pairs = [(row["true"], row["predicted"], f"{row['count']} of {row['of']}") for row in result["most_confused"]]
    confused = [report.confusion(np.array(result["confusion"]), classes)]
    confused += [report.table(pairs, ("is", "was called", "times"))] if pairs else []
    sure = {"as trained": result["reliability"]}
    if result["temperature"] != 1.0:
        sure[f"at temperature {result['temperature']:.2f}"] = result["reliability_calibrated"]
    asked = [row for row in result["per_class"] if row["n"] or row["called"]]
    weakest = sorted(asked, key=lambda row: 1.0 if row["recall"] is None else row["recall"])
    return [
        report.section("How good it is", report.numbers(figures), accuracy),
        report.section("How far to believe it", report.reliability(sure)),
        report.section("What it confuses", *confused),
        *worst(run, clf, said),
        report.section("Class by class", report.per_class(weakest), text="The least known first, with 95 % intervals."),
    ]


def mistakes(clf: Classifier, said: Predictions, n: int = 12) -> list[dict[str, Any]]:
    """The `n` mistakes with the least probability on the truth: `{"path", "row", "true", "topk"}`, `row` that of `said`."""
    table, probabilities = common.class_table(clf), common.softmax(said.logits)
    own = probabilities[np.arange(len(said.labels)), said.labels]
    wrong = [i for i in np.argsort(own, kind="stable")[:n] if said.logits[i].argmax() != said.labels[i]]
    return [
        {
            "path": str(said.examples[i].path),
            "row": int(i),
            "true": table.display(said.labels[i]),
            "topk": common.topk(clf, probabilities[i], 3),
        }
        for i in wrong
    ]


def worst(run: runlog.Run, clf: Classifier, said: Predictions) -> list[Html]:
    """The `mistakes` as pictures."""
    cards, images = [], []
    for row in mistakes(clf, said):
        source = said.examples[row["row"]].path
        images.append(clf.prepare(data.decode(source)))
        bars = common.bars(row["topk"], [int(said.labels[row["row"]])])
        cards.append(report.card(images[-1], caption=f"{source.name}, in truth {row['true']}", bars=bars))
    if not images:
        return []
    run.figure("worst_mistakes", report.contact_sheet(images, columns=4))
    text = "The test pictures on which the most confidence was put in the wrong place, as the network sees them."
    return [report.section("Its worst mistakes", report.gallery(cards), text=text)]
