"""The choice of a recipe by cross-validation: the cheapest one, unless another is clearly better.

Candidates come in the order of their cost. Each is trained on the folds of the training images of a
round and compared with the best one so far on the same held-out images. It replaces that one only
if its accuracy is larger and an exact paired test says so. Test images are not read.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tl import data, metrics, reporting
from tl.data import DataSpec
from tl.evaluation import paired, sets
from tl.evaluation.before import VALIDATION_FRACTION, TransferSettings
from tl.models import Classifier
from tl.training import probe
from tl.training.fit import fit
from tl.training.recipe import Recipe
from tl.training.resume import saved_value
from tl.types import Variables

# Folds, and the largest p-value of a better candidate; chosen, not tuned.
FOLDS, LEVEL = 3, 0.05


def candidates(recipe: Recipe, alternative: Recipe) -> dict[str, Recipe]:
    """Name -> recipe: the probe, the probes of all other methods, then the alternative."""
    methods = [recipe.method, *(name for name in probe.METHODS if name != recipe.method)]
    probes = {f"probe, {name}": dataclasses.replace(recipe, method=name) for name in methods}
    return probes | {alternative.tune: alternative}


def choose(
    clf: Classifier,
    variables: Variables,
    train_set: DataSpec,
    recipes: Mapping[str, Recipe],
    *,
    seed: int,
    validation_fraction: float,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Chooses among recipes.

    Args:
      clf, variables: the network with a new head.
      train_set: the training images of a round.
      recipes: name -> recipe, in the order of their cost; see `candidates`.
      seed: of folds and training.
      validation_fraction: share of a fold's training images on which the best epoch is chosen, for
        recipes with gradient steps.
      say: called with a line per candidate.

    Returns:
      JSON-ready: `chosen` (a name), `why` (one sentence), `n`, and `rows` with `name`, `top1`,
      `seconds`, and, compared with the best candidate before, `against`, `difference`,
      `difference_ci95` and `p`. Without folds, because a class has one image, the first is chosen
      and `rows` is empty.
    """
    names = list(recipes)
    try:
        folds = data.folds(train_set, FOLDS, seed=seed)
    except ValueError as error:
        reason = f"{names[0]}: no cross-validation, because {error}"
        say(reason)
        return {"chosen": names[0], "why": reason, "n": 0, "rows": []}
    best, best_correct, rows, n = names[0], np.zeros(0, bool), [], 0
    for name, recipe in recipes.items():
        start = time.monotonic()
        correct = _held_out(clf, variables, folds, recipe, seed, validation_fraction)
        row: dict[str, Any] = {"name": name, "top1": float(correct.mean()), "n": len(correct)}
        if rows:
            differences = correct.astype(int) - best_correct.astype(int)
            row |= {"against": best, **paired.difference(differences)}
        rows.append(row | {"seconds": time.monotonic() - start})
        if not n or (row["difference"] > 0 and row["p"] < LEVEL):
            best, best_correct, n = name, correct, len(correct)
        compared = f", p = {row['p']:.2g} against {row['against']}" if "p" in row else ""
        say(f"cross-validation: {name} {reporting.percent(row['top1'])}{compared}")
    return {"chosen": best, "why": _reason(best, rows), "n": n, "rows": rows}


def _held_out(
    clf: Classifier,
    variables: Variables,
    folds: Sequence[tuple[DataSpec, DataSpec]],
    recipe: Recipe,
    seed: int,
    validation_fraction: float,
) -> np.ndarray:
    """Whether each readable held-out image is classified correctly, bool[n], in the same order."""
    parts = []
    for rest, test in folds:
        train, validation = divided(rest, recipe, validation_fraction, seed)
        fitted = fit(clf, variables, train, validation, recipe, seed=seed)
        frozen = all(name.startswith("head/") for name in fitted.trained)
        predicted = sets.predict_set(clf, fitted.variables, test, frozen=frozen)
        parts.append(metrics.topk_correct(predicted.logits, predicted.labels, 1))
    return np.concatenate(parts)


def divided(
    train_set: DataSpec, recipe: Recipe, validation_fraction: float, seed: int
) -> tuple[DataSpec, DataSpec]:
    """Training and validation images for a recipe; a probe needs no validation images."""
    share = 0.0 if recipe.tune == "probe" else validation_fraction
    return data.split_validation(train_set, share, seed)


def choose_for(
    clf: Classifier,
    variables: Variables,
    parts: data.Parts,
    settings: TransferSettings,
    seed: int,
    folder: Path | None,
    say: Callable[[str], None],
) -> tuple[Recipe, dict[str, Any], data.Parts]:
    """The recipe of a round.

    Args:
      clf, variables: the network with a new head.
      parts: the parts of the round; the test images are not read.
      settings: `recipe` and `alternative` are compared.
      seed: of the round.
      folder: folder of the checkpoints; a resumed run reads the choice from it.
      say: called with lines of text.

    Returns:
      The recipe, the result of `choose`, and the parts: with a validation part, if the recipe
      takes gradient steps and there was none.
    """
    assert settings.alternative is not None
    recipes = candidates(settings.recipe, settings.alternative)
    share = settings.validation_fraction
    share = VALIDATION_FRACTION if share < 0 else share
    compute = lambda: choose(
        clf, variables, parts.train, recipes, seed=seed, validation_fraction=share, say=say
    )
    choice = saved_value(folder, "choice.json", compute, what="the choice of the recipe")
    say(f"recipe: {choice['why']}")
    recipe = recipes[choice["chosen"]]
    if not parts.validation.examples:
        train, validation = divided(parts.train, recipe, share, seed)
        parts = parts._replace(train=train, validation=validation)
    return recipe, choice, parts


def _reason(best: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Why the chosen candidate is the chosen one, in one sentence."""
    won = next((row for row in rows if row["name"] == best and "p" in row), None)
    if won:
        low, high = (100 * bound for bound in won["difference_ci95"])
        return (
            f"{best}, because it is {100 * won['difference']:+.1f} points better than "
            f"{won['against']} on {won['n']} held-out images (95 % interval {low:+.1f} to "
            f"{high:+.1f}, p = {won['p']:.2g})"
        )
    last = rows[-1]
    return (
        f"{best}, because no other candidate is significantly better on {last['n']} held-out "
        f"images; {last['name']}: {100 * last['difference']:+.1f} points, p = {last['p']:.2g}"
    )
