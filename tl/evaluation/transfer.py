"""Transfer learning from a data set to a tested, saved classifier: rounds of split, fit and test.

A round is one division of the data and one seed. `transfer` runs all rounds, saves the classifier
of the first one, and returns a JSON-ready result; `tl.pages.training` draws its page.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import data, hosts, inference, labels, ledger, metrics, models, reporting
from tl.attacks import norms
from tl.data import DataSpec
from tl.data.augment import make_augment
from tl.evaluation import automatic, paired, seen, sets, teachers
from tl.evaluation.before import (
    VALIDATION_FRACTION,
    TransferSettings,
    check_parts,
    check_settings,
    check_sizes,
    drop_repeated,
    remark_augment,
)
from tl.evaluation.robust import robust_rows
from tl.models import Classifier, heads
from tl.training import checkpoints, rate_finder
from tl.training.fit import FitResult, fit, frozen_digest
from tl.training.recipe import Recipe
from tl.types import Variables


class Round(NamedTuple):
    """One division of the data, and the seed of the training."""

    name: str
    seed: int
    parts: data.Parts


class RoundResult(NamedTuple):
    """The result of one round.

    Attributes:
      round: the round.
      variables: the network before training.
      fitted: the training.
      tested: predictions for the test part.
      train: figures of the training part; those of the last epoch's batches if the backbone
        trained.
      tta: predictions for the test part, averaged over the views of the augmentation; None without
        `TransferSettings.tta`.
      rates: result of the learning-rate finder; None if it did not run.
      temperature: divisor that calibrates the logits, fitted to held-out images.
      skipped: images of all parts that could not be read.
      recipe: how it was trained.
      choice: from `automatic.choose`; None without a choice.
    """

    round: Round
    variables: Variables
    fitted: FitResult
    tested: inference.Predictions
    train: dict[str, Any]
    tta: inference.Predictions | None
    rates: rate_finder.Rates | None
    temperature: float
    skipped: tuple[data.Skipped, ...]
    recipe: Recipe = Recipe()
    choice: dict[str, Any] | None = None


def rounds(
    spec: DataSpec, test_spec: DataSpec | None, settings: TransferSettings
) -> Iterator[Round]:
    """The rounds of a run.

    Args:
      spec: the data set.
      test_spec: a separate test set, whose classes are matched by name; None splits `spec`.
      settings: seeds, folds and fractions.

    Raises:
      ValueError: `folds` with a test set, those of `data.divide`, `data.folds` and
        `data.remap_test_labels`.
    """
    if settings.folds and test_spec is not None:
        raise ValueError("`folds` divides `data`, so `test_data` must not be set: got both")
    share = settings.validation_fraction
    if share < 0:
        probe = settings.recipe.tune == "probe" and not settings.recipe.rules
        share = 0.0 if probe else VALIDATION_FRACTION
    for seed in range(settings.first_seed, settings.first_seed + settings.seeds):
        if test_spec is not None:
            train, validation = data.split_validation(spec, share, seed)
            parts = data.Parts(train, validation, data.remap_test_labels(test_spec, spec))
            yield Round(f"seed{seed}", seed, parts)
        elif settings.folds:
            for number, (rest, test) in enumerate(data.folds(spec, settings.folds, seed=seed)):
                parts = data.Parts(*data.split_validation(rest, share, seed), test)
                yield Round(f"seed{seed}-fold{number}", seed, parts)
        else:
            parts = data.divide(
                spec, test_fraction=settings.test_fraction, validation_fraction=share, seed=seed
            )
            yield Round(f"seed{seed}", seed, parts)


def run_round(
    clf: Classifier,
    variables: Variables,
    this: Round,
    settings: TransferSettings,
    *,
    folder: Path | None = None,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    say: Callable[[str], None] = lambda line: None,
    resumed: Callable[[str, int], None] = lambda phase, step: None,
    trained: Callable[[FitResult], None] = lambda fitted: None,
    attempt: reporting.Attempt = reporting.required,
    reference: teachers.Network | None = None,
) -> RoundResult:
    """Trains a network with a fresh head on the data of one round, and tests it.

    Args:
      clf: a network with a head for the classes of the data.
      variables: pretrained; their head is replaced.
      this: the round.
      settings: how to train and test.
      folder: folder of the checkpoints; None saves none.
      log: called with one row per step and one per epoch.
      say: called with lines of text.
      resumed: as for `fit`.
      trained: called after training, before anything that can fail.
      attempt: runs the optional parts: calibration, views, figures of training.
      reference: from `teachers.load`.

    Raises:
      ValueError: those of `check_sizes` and `fit`.
    """
    parts, recipe = this.parts, settings.recipe
    check_sizes(parts)
    start = clf.reset_head(variables, key=jax.random.key(this.seed))
    rates, choice = None, None
    if settings.alternative:
        chosen = automatic.choose_for(clf, start, parts, settings, this.seed, folder, say)
        recipe, choice, parts = chosen
        this = this._replace(parts=parts)
    if settings.find_lr:
        search = lambda: rate_finder.find_rate(clf, start, parts.train, recipe, seed=this.seed)
        rates = rate_finder.saved_rates(folder, search)
        recipe = dataclasses.replace(recipe, lr=rates.rate)
        say(f"learning rate {rates.rate:.3g}: a tenth of the rate with the smallest loss")
        for rate, loss in rates.curve:
            log({"find_lr": rate, "loss": loss})
    fitted = fit(
        clf,
        start,
        parts.train,
        parts.validation,
        recipe,
        seed=this.seed,
        folder=folder,
        log=log,
        say=say,
        resumed=resumed,
        attempt=attempt,
        reference=reference and teachers.taught(reference, recipe, parts, this.seed),
    )
    trained(fitted)
    frozen = all(name.startswith("head/") for name in fitted.trained)
    predict_part = ledger.spent("evaluation")(
        lambda part: sets.predict_set(clf, fitted.variables, part, frozen=frozen)
    )
    tested = predict_part(parts.test)

    def train_summary() -> dict[str, Any]:
        predicted = predict_part(parts.train)
        return metrics.summarize(predicted.logits, predicted.labels)

    def calibrate() -> tuple[float, tuple[data.Skipped, ...]]:
        validated = predict_part(parts.validation)
        if recipe.tune == "probe" and fitted.probe:
            # Its last fit includes the validation images, which therefore cannot calibrate it.
            return fitted.probe.temperature, validated.skipped
        if not len(validated.labels):
            return 1.0, validated.skipped
        return metrics.temperature(validated.logits, validated.labels), validated.skipped

    def predict_views() -> inference.Predictions:
        views = make_augment(recipe.augment, size=clf.pixels.size).views or ()
        return inference.predict(
            clf, fitted.variables, parts.test, views=views, progress=sets.progress
        )

    # As measured during training, because another pass over the images would be expensive.
    row, n = fitted.best or {}, len(parts.train.examples)
    train = {"n": n, "top1": row.get("accuracy"), "nll": row.get("loss")}
    if train["top1"] is not None:
        train["top1_ci95"] = list(metrics.wilson(round(train["top1"] * n), n))
    if frozen:
        train = attempt("train", train_summary, train)
    temperature, validation_skipped = attempt("calibration", calibrate, (1.0, ()))
    tta = attempt("tta", predict_views, None) if settings.tta else None
    skipped = tuple(dict.fromkeys((*fitted.skipped, *tested.skipped, *validation_skipped)))
    return RoundResult(
        this, start, fitted, tested, train, tta, rates, temperature, skipped, recipe, choice
    )


def transfer(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    spec: DataSpec,
    test_spec: DataSpec | None,
    settings: TransferSettings,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains, tests and saves a classifier.

    The classifier of the first round is saved in `run.workdir / "model"`, and checkpoints of every
    round in `run.workdir / "checkpoints"`.

    Args:
      run: receives log rows, figures, checkpoints and the model.
      clf, variables: a pretrained network; its head is replaced.
      spec: the data set.
      test_spec: a separate test set, or None.
      settings: how to train and test.
      say: called with lines of text.

    Returns:
      The content of `result.json`, without its facts.

    Everything that can be checked is checked before the first step. What fails after it leaves the
    model and the result without that part (`Run.attempt`): of the parts, the training is required.

    Raises:
      ValueError: settings that do not fit the network; inputs that differ from those of the run
        that is resumed; those of `rounds` and `run_round`.
    """
    start, recipe, classes = time.monotonic(), settings.recipe, spec.classes
    table = labels.from_names(classes, name=spec.name, groups=labels.known_groups(classes))
    pretrained = clf
    clf = clf.with_head(heads.maker(settings.head, clf.spec)(len(classes)), table)
    check_settings(clf, variables, settings)
    reference = teachers.load(pretrained, variables, recipe)
    phases = (settings.alternative or recipe).phases(clf.spec.endpoints)
    if any(phase.name != "probe" for phase in phases):
        checkpoints.check_name(run.workdir)
    adversary = recipe.adversary()
    radii = {settings.robust_eps, adversary.eps if adversary else 0.0}
    remark_augment(run, settings)
    run.remark(*norms.radius_remarks("linf", sorted(radii)))
    chosen = list(rounds(spec, test_spec, settings))
    check_parts(run, variables, spec, {this.name: this.parts for this in chosen})
    say(data.describe_parts(spec, chosen[0].parts))
    run.remark(*data.part_remarks(spec, chosen[0].parts))
    # A resumed run tests every round again.
    run.drop_rows(lambda row: "round" in row and "phase" not in row)

    def save_model(fitted: FitResult) -> None:
        save = lambda: models.save(model, clf, fitted.variables)
        run.attempt("model", lambda: hosts.on_first(save), None)

    model = run.workdir / "model"
    results: list[RoundResult] = []
    for this in chosen:
        result = run_round(
            clf,
            variables,
            this,
            settings,
            folder=run.workdir / "checkpoints" / this.name,
            log=lambda row, name=this.name: run.log({"round": name, **row}),
            say=say if not results else lambda line: None,
            resumed=functools.partial(drop_repeated, run, this.name),
            trained=save_model if not results else lambda fitted: None,
            attempt=run.attempt,
            reference=reference,
        )
        if results:  # only the first network is needed again
            result = result._replace(variables={}, fitted=result.fitted._replace(variables={}))
        results.append(result)
        top1, n = sets.accuracy(result.tested), len(result.tested.labels)
        run.log({"round": this.name, "top1": top1, "n": n})
        if settings.folds or settings.seeds > 1:
            say(f"{this.name}: {reporting.percent(top1)} of {n}")
    seconds, first = time.monotonic() - start, results[0]
    all_passes = passes(results)
    tested = all_passes[0].tested
    outcome = {
        **_data_result(clf, spec, results),
        **_test_result(results, all_passes, classes),
        **_training_result(first),
        "train": sets.mean_of([r.train for r in results])
        if all("ece" in r.train for r in results)
        else first.train,
        "seconds": seconds,
        "model": str(model),
    }

    def describe_model() -> None:
        metadata = {
            "data": {"name": spec.name, "source": spec.source, "licence": spec.license},
            "split": {n: data.split_digest(p) for n, p in first.round.parts._asdict().items()},
            seen.KEY: seen.describe(first.round.parts),
            "recipe": dataclasses.asdict(first.recipe),
            "rules": [phase._asdict() for phase in first.fitted.phases],
            "test": outcome["test"],
            "temperature": first.temperature,
            "white": spec.white,
        }
        models.replace_metadata(model, metadata)

    def compare_frozen() -> bool:
        _, saved = models.load(outcome["model"])  # the file is what others use
        digests = (frozen_digest(v, first.fitted) for v in (saved, first.variables))
        return len(set(digests)) == 1

    save = lambda: paired.save_predictions(run, clf, {p.seed: p.tested for p in all_passes})
    run.attempt("predictions", save, None)
    run.attempt("model", lambda: hosts.on_first(describe_model), None)
    compare = lambda: hosts.on_first(compare_frozen)
    outcome["frozen_unchanged"] = run.attempt("frozen_unchanged", compare, None)
    if settings.robust_eps:  # can take an hour
        attack = {"eps": settings.robust_eps, "method": settings.robust_attack}
        trained = clf, variables, first.fitted.variables, first.round.parts, first.recipe
        step = lambda: robust_rows(*trained, **attack, seed=first.round.seed)
        rows = run.attempt("robust", step, {})
        outcome |= {"robust": rows} if rows else {}
    hardest = lambda: sets.save_hardest_images(run, clf, tested)
    outcome["mistakes"] = run.attempt("mistakes", hardest, [])
    return outcome


def passes(results: Sequence[RoundResult]) -> list[sets.Pass]:
    """The passes over the test images, one per seed, from the results of all rounds."""
    by_seed: dict[int, list[RoundResult]] = {}
    for result in results:
        by_seed.setdefault(result.round.seed, []).append(result)
    return [
        sets.Pass(
            seed,
            sets.joined([one.tested for one in group]),
            np.repeat(
                [one.temperature for one in group], [len(one.tested.labels) for one in group]
            ),
            sets.joined([one.tta for one in group if one.tta])
            if all(one.tta for one in group)
            else None,
        )
        for seed, group in by_seed.items()
    ]


# ---- parts of the result -------------------------------------------------------------------------


def _data_result(clf: Classifier, spec: DataSpec, results: Sequence[RoundResult]) -> dict[str, Any]:
    """The network, the data, and the files that could not be used."""
    skipped = dict.fromkeys(
        skip for r in results for skip in (*r.round.parts.train.skipped, *r.skipped)
    )
    parts = results[0].round.parts
    return {
        "arch": clf.arch,
        "data": spec.name,
        "classes": list(spec.classes),
        "references": spec.references,
        "sizes": {name: len(part.examples) for name, part in parts._asdict().items()},
        "parts": data.describe_parts(spec, parts),
        "white": spec.white,
        "skipped": [skip._asdict() for skip in skipped],
    }


def _test_result(
    results: Sequence[RoundResult], all_passes: Sequence[sets.Pass], classes: Sequence[str]
) -> dict[str, Any]:
    """The figures of the test, the temperatures of the rounds, and the spread over folds.

    That spread has no interval: the training sets of the folds overlap, and its variance has no
    unbiased estimate (Bengio & Grandvalet 2004, JMLR 5).
    """
    outcome = sets.summarize_passes(all_passes, classes) | {
        "temperature": results[0].temperature,
        "temperatures": [result.temperature for result in results],
    }
    if len(results) > len(all_passes):
        top1 = [sets.accuracy(result.tested) for result in results]
        outcome["folds"] = {"top1": top1, **metrics.spread(top1)}
        del outcome["folds"]["ci95"]
    return outcome


def _training_result(first: RoundResult) -> dict[str, Any]:
    """The figures of the first round's training."""
    fitted = first.fitted
    outcome: dict[str, Any] = {
        "trainable_params": fitted.trainable_params,
        "groups": fitted.groups,
        "feed": fitted.source,
        "history": fitted.history,
        "best_epoch": fitted.best,
        "steps": fitted.steps,
        "waiting_share": fitted.seconds_waiting / fitted.seconds if fitted.seconds else None,
        "images_per_second": fitted.images / fitted.seconds if fitted.seconds else None,
    }
    if fitted.probe:
        outcome["strength"] = fitted.probe.strength
    if first.choice:
        outcome["choice"] = first.choice
    if first.rates:
        outcome["rates"] = first.rates._asdict()
    return outcome
