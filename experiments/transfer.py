"""Learns a classifier for your pictures on a frozen pretrained backbone, tests it and saves it.

  ./launch.sh transfer --data=folder:DIR --tune=probe
  ./launch.sh transfer --data=elpv --seeds=5

The features are computed once and kept in a bank; a second run starts from there. Numbers with their intervals: README.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _common as common
from tl import classifier, data, features, heads, labels, metrics, optim, paths, probe, report, runlog, train
from tl.classifier import Classifier
from tl.data import DataSpec, Skipped
from tl.report import Html
from tl.types import Variables

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("data", None, "folder:DIR or elpv.", required=True)
    flags.DEFINE_string("test_data", "", "Another set to test on. Default: a held-out part of --data.")
    flags.DEFINE_float("test_fraction", 0.25, "Share of --data that is held out.")
    flags.DEFINE_enum(
        "tune", "probe", list(optim.TUNE), "probe: logistic, strength by cross-validation. head: by gradient steps."
    )
    flags.DEFINE_integer(
        "seeds", 1, "Runs with other splits (elpv) and starts; mean and spread are reported.", lower_bound=1
    )
    flags.DEFINE_integer("image_size", 0, "Side of the input, in pixels. Default: the weights' own.", lower_bound=0)
    flags.DEFINE_enum(
        "crop",
        "",
        ["", "weights", "none"],
        "weights: their own rule. none: the whole picture, squashed. Default: the data set's.",
    )
    flags.DEFINE_integer("epochs", 30, "Of --tune=head.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 64, "Of --tune=head.", lower_bound=1)
    flags.DEFINE_float("lr", 1e-3, "Peak learning rate of --tune=head.", lower_bound=0.0)
    flags.DEFINE_enum("optimizer", "adamw", list(optim.OPTIMIZERS), "Of --tune=head.")


class Part(NamedTuple):
    """The readable pictures of one side of a split: features f32[n d], labels i[n], and their examples."""

    values: np.ndarray
    labels: np.ndarray
    examples: list[data.Example]


class Settings(NamedTuple):
    """What decides a run beside its data and its network."""

    tune: str = "probe"
    seeds: int = 1
    first_seed: int = 0
    test_fraction: float = 0.25
    epochs: int = 30
    batch_size: int = 64
    lr: float = 1e-3
    optimizer: str = "adamw"


def bank_of(clf: Classifier, variables: Variables, spec: DataSpec) -> tuple[features.Features, dict[str, int]]:
    """Every picture's features, and where each path's row is."""
    where = {str(example.path): row for row, example in enumerate(spec.examples)}
    progress = lambda batches, total: runlog.progress(batches, total, f"{spec.name} batches")  # noqa: E731
    return features.extract(clf, variables, [e.path for e in spec.examples], progress=progress), where


def part(bank: features.Features, where: dict[str, int], spec: DataSpec) -> Part:
    """The pictures of `spec` that could be read."""
    kept = [e for e in spec.examples if bank.valid[where[str(e.path)]]]
    rows = [where[str(e.path)] for e in kept]
    return Part(bank.values[rows], np.array([e.label for e in kept], np.int64), kept)


def fit_head(
    run: runlog.Run, clf: Classifier, params: dict[str, Any], fitted: Part, settings: Settings, seed: int
) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """The head by gradient steps on the bank: the whole parameters after training, and the loss by epoch."""
    rules, rng = optim.rules("head"), np.random.default_rng(seed)
    n, b = len(fitted.labels), settings.batch_size
    steps = settings.epochs * -(-n // b)
    groups = {paths.TRAINABLE: optim.OPTIMIZERS[settings.optimizer](optim.warmup_cosine(settings.lr, steps))}
    # The head sees standardised features, so that one learning rate suits every backbone; folded in at the end.
    mean, std = fitted.values.mean(axis=0), fitted.values.std(axis=0) + 1e-6
    standard = (fitted.values - mean[None]) / std[None]
    optimizer = optim.partitioned(params, rules, groups)
    train_state = train.init(params, rules, optimizer)
    step = train.make_train_step(lambda p, x: clf.apply_head({"params": p}, x), optimizer)
    curve = []
    for epoch in range(1, settings.epochs + 1):
        order, losses = rng.permutation(n), []
        for start in range(0, n, b):
            rows = np.resize(order[start : start + b], b)
            valid = np.arange(b) < len(order[start : start + b])
            batch = train.Examples(
                jnp.asarray(standard[rows]), jnp.asarray(fitted.labels[rows], jnp.int32), jnp.asarray(valid)
            )
            train_state, measured = step(train_state, batch)
            losses.append(measured)
        means = {k: float(np.mean([m[k] for m in losses])) for k in losses[0]}
        run.log({"epoch": epoch, "seed": seed, **means})
        curve.append((float(epoch), means["loss"]))
    trained = jax.tree.map(np.asarray, train_state.params)
    kernel = trained["head"]["kernel"] / std[:, None]
    trained["head"] = {"kernel": kernel, "bias": trained["head"]["bias"] - mean @ kernel}
    return trained, curve


def evaluate(head: dict[str, np.ndarray], tested: Part) -> np.ndarray:
    """Logits f32[n k] of a linear head."""
    return tested.values @ head["kernel"] + head["bias"][None]


def mean_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures averaged over seeds; the interval is Wilson's at the mean, for one test set."""
    mean = {k: float(np.mean([row[k] for row in rows])) for k in rows[0] if k not in ("n", "top1_ci95")}
    n = rows[0]["n"]
    return {"n": n, "top1": mean["top1"], "top1_ci95": list(metrics.wilson(round(mean["top1"] * n), n)), **mean}


def transfer(
    run: runlog.Run,
    clf: Classifier,
    variables: Variables,
    spec: DataSpec,
    test_spec: DataSpec | None,
    settings: Settings,
) -> tuple[dict[str, Any], list[Html]]:
    """Fits, tests and saves; the result and the page's sections. The model of the first seed is the one that is kept."""
    began = time.monotonic()
    bank, where = bank_of(clf, variables, spec)
    banks = [bank]
    skips: list[Skipped] = [*spec.skipped, *bank.skipped]
    if test_spec is not None:
        if unknown := sorted(set(test_spec.classes) - set(spec.classes)):
            raise ValueError(
                f"the test set has classes that --data has not: {unknown[:5]}; "
                f"nearest: {paths.nearest(unknown[0], spec.classes)}"
            )
        test_bank, test_where = bank_of(clf, variables, test_spec)
        banks.append(test_bank)
        skips += [*test_spec.skipped, *test_bank.skipped]
    seconds_bank = time.monotonic() - began
    computed = sum(len(b.valid) - b.reused for b in banks)

    classes = spec.classes
    table = labels.from_names(classes, name=spec.name, groups=labels.known_groups(classes))
    clf = clf.with_head(heads.Linear(len(classes)), table)
    backbone, before = variables["params"]["backbone"], features.backbone_digest(variables)
    width = bank.values.shape[1]
    blank = {"kernel": np.zeros((width, len(classes)), np.float32), "bias": np.zeros(len(classes), np.float32)}

    tests, trains, curves, chosen = [], [], {}, []
    kept: tuple[dict[str, Any], Part, np.ndarray] | None = None
    for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
        if test_spec is None:
            train_side, test_side = data.split(spec, test_fraction=settings.test_fraction, seed=seed)
            fitted, tested = part(bank, where, train_side), part(bank, where, test_side)
        else:
            fitted, tested = part(bank, where, spec), part(test_bank, test_where, test_spec)
            to_ours = np.array([classes.index(name) for name in test_spec.classes])
            tested = tested._replace(labels=to_ours[tested.labels])
        if len(fitted.labels) < 2 or not len(tested.labels):
            raise ValueError(
                f"too few readable pictures: {len(fitted.labels)} to learn from and {len(tested.labels)} to test on"
            )
        params = {"backbone": backbone, "head": blank}
        if settings.tune == "probe":
            found = probe.logistic(fitted.values, fitted.labels, len(classes), seed=seed)
            params = {"backbone": backbone, "head": found.params}
            chosen.append(found.strength)
        else:
            params, curves[f"seed {seed}"] = fit_head(run, clf, params, fitted, settings, seed)
        logits = evaluate(params["head"], tested)
        tests.append(metrics.summarise(logits, tested.labels))
        trains.append(metrics.summarise(evaluate(params["head"], fitted), fitted.labels))
        run.log({"seed": seed, "test": tests[-1], "train": trains[-1]})
        kept = kept or (params, tested, logits)
    assert kept is not None  # seeds is at least 1
    params, tested, logits = kept
    seconds = time.monotonic() - began

    matrix = metrics.confusion(tested.labels, logits.argmax(axis=1), len(classes))
    majority = float(matrix.sum(axis=1).max() / matrix.sum())
    result: dict[str, Any] = {
        "test": mean_of(tests),
        "train": mean_of(trains),
        "majority": majority,
        "classes": list(classes),
        "confusion": matrix.tolist(),
        "most_confused": metrics.most_confused(matrix, classes),
        "trainable_params": sum(
            row["params"] for row in optim.table(params, optim.rules(settings.tune)) if row["group"] != paths.FROZEN
        ),
        "bank": {"folder": str(bank.bank), "reused": sum(b.reused for b in banks), "computed": computed},
        "skipped": [skip._asdict() for skip in skips],
        "images_per_second": computed / seconds_bank if computed else None,
        "seconds": seconds,
        "model": str(run.workdir / "model"),
    }
    if chosen:
        result["strength"] = chosen[0]
    if settings.seeds > 1:
        tops = [row["top1"] for row in tests]
        result["seeds"] = {
            "n": len(tops),
            "top1": tops,
            "mean": float(np.mean(tops)),
            "std": float(np.std(tops, ddof=1)),
        }
    record = {"data": spec.name, "licence": spec.licence, "test": result["test"], "tune": settings.tune}
    classifier.save(
        run.workdir / "model", clf, {"params": params, "batch_stats": variables.get("batch_stats", {})}, record=record
    )
    _, saved = classifier.load(result["model"])  # what counts is the file
    result["frozen_unchanged"] = features.backbone_digest(saved) == before
    return result, page_sections(run, clf, spec, tested, logits, result, curves)


def page_sections(
    run: runlog.Run,
    clf: Classifier,
    spec: DataSpec,
    tested: Part,
    logits: np.ndarray,
    result: dict[str, Any],
    curves: dict[str, list[tuple[float, float]]],
) -> list[Html]:
    """Accuracy beside what it should be compared to, confusion, and the pictures that it is most wrong about."""
    test, classes = result["test"], spec.classes
    references = [("always the commonest class", result["majority"]), *spec.references]
    figures = {
        "test pictures": test["n"],
        "top-1": report.percent(test["top1"]),
        "balanced": report.percent(test["balanced"]),
        "NLL": f"{test['nll']:.3f}",
        "ECE": f"{test['ece']:.3f}",
        "trained parameters": f"{result['trainable_params']:,}",
    }
    if "seeds" in result:
        figures["over seeds"] = f"{100 * result['seeds']['mean']:.1f} \u00b1 {100 * result['seeds']['std']:.1f} %"
    low, high = test["top1_ci95"]
    accuracy = report.interval(test["top1"], low, high, label="test accuracy", references=references)
    sections = [report.section("How good it is", report.numbers(figures), accuracy)]
    if curves:
        sections.append(report.section("Training", report.curves(curves, x_label="epoch", y_label="training loss")))
    matrix = np.array(result["confusion"])
    pairs = [(row["true"], row["predicted"], f"{row['count']} of {row['of']}") for row in result["most_confused"]]
    parts = [report.confusion(matrix, classes)] + (
        [report.table(pairs, ("is", "was called", "times"))] if pairs else []
    )
    sections.append(report.section("What it confuses", *parts))
    probabilities = common.softmax(logits)
    own = probabilities[np.arange(len(tested.labels)), tested.labels]
    worst = [i for i in np.argsort(own, kind="stable")[:12] if logits[i].argmax() != tested.labels[i]]
    cards, images = [], []
    for i in worst:
        images.append(clf.prepare(data.decode(tested.examples[i].path)))
        label = int(tested.labels[i])
        tops = common.topk(clf, probabilities[i], 3)
        caption = f"{tested.examples[i].path.name}, in truth {classes[label]}"
        cards.append(report.card(images[-1], caption=caption, bars=common.bars(tops, [label])))
    if images:
        run.figure("worst_mistakes", report.contact_sheet(images, columns=4))
        text = "The test pictures on which the most confidence was put in the wrong place, as the network sees them."
        sections.append(report.section("Its worst mistakes", report.gallery(cards), text=text))
    return [*sections, report.skipped(result["skipped"])]


def pixels_for(clf: Classifier, spec: DataSpec, crop: str, image_size: int) -> Classifier:
    """The network's preprocessing for this data set: its own rule, unless the set or the user wants whole pictures."""
    changes: dict[str, Any] = {"size": image_size} if image_size else {}
    if crop == "none" or (not crop and spec.whole):
        changes["resize"] = "squash"
    return clf.with_pixels(**changes)


def main(run: runlog.Run) -> None:
    clf, variables = common.load_model()
    spec = data.get(FLAGS.data)
    test_spec = data.get(FLAGS.test_data) if FLAGS.test_data else None
    clf = pixels_for(clf, spec, FLAGS.crop, FLAGS.image_size)
    settings = Settings(
        FLAGS.tune,
        FLAGS.seeds,
        FLAGS.seed,
        FLAGS.test_fraction,
        FLAGS.epochs,
        FLAGS.batch_size,
        FLAGS.lr,
        FLAGS.optimizer,
    )
    result, sections = transfer(run, clf, variables, spec, test_spec, settings)
    test = result["test"]
    lead = (
        f"{len(spec.classes)} classes of {spec.name}, learned on {clf.arch}'s frozen features: "
        f"{report.percent(test['top1'])} of {test['n']} test pictures."
    )
    facts = run.facts() | common.weights_facts(clf) | {"pictures": spec.source, "licence of the pictures": spec.licence}
    run.finish(result, report.page("A classifier for these pictures", lead, sections, facts=facts))
    low, high = (report.percent(p) for p in test["top1_ci95"])
    print(
        f"test top-1 {report.percent(test['top1'])} (95 % interval {low} to {high}, n = {test['n']}), "
        f"always the commonest class {report.percent(result['majority'])}"
    )
    if "seeds" in result:
        print(
            f"over {result['seeds']['n']} seeds {100 * result['seeds']['mean']:.1f} +- {100 * result['seeds']['std']:.1f} %"
        )
    print(
        f"bank: {result['bank']['reused']} reused, {result['bank']['computed']} computed; "
        f"skipped {len(result['skipped'])}; model in {result['model']}"
    )
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    common.launch("transfer", main, common.define_model_flags, define_flags)
