"""What a training trick or a recipe is worth: paired comparisons with a baseline, over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import metrics, reporting
from tl.data import DataSpec
from tl.evaluation import paired, sets, teachers, transfer
from tl.evaluation import shots as few
from tl.evaluation.before import TransferSettings, check_settings
from tl.models import Classifier
from tl.paths import nearest
from tl.training import recipes, tricks
from tl.training.recipe import empty_set, pixels_for
from tl.training.resume import describe_part
from tl.training.tricks import TRICKS
from tl.types import Variables

BASELINE = "baseline"


class Runs(NamedTuple):
    """The trainings of one recipe.

    Attributes:
      correct: (seed, image) -> whether the prediction is correct.
      top1: accuracy of each seed.
      seconds: seconds per training image, the median of all seeds.
      memory: bytes that the train step needs, the largest of all seeds.
    """

    correct: dict[tuple[int, str], bool]
    top1: list[float]
    seconds: float
    memory: int = 0


def variants(
    settings: TransferSettings,
    names: Sequence[str] = (),
    recipe: str = "",
    facts: recipes.Facts = recipes.ANY,
    given: Mapping[str, Any] | None = None,
) -> dict[str, TransferSettings]:
    """The baseline, and one training per trick or recipe.

    Args:
      settings: without a recipe by name.
      names: names of `TRICKS`, which change the baseline, and of `recipes.RECIPES`, which take its
        place, some of them with images of another size. Default: the tricks that change the
        baseline.
      recipe: the baseline, as for `recipes.settings`; "" for `settings`.
      facts, given: as for `recipes.settings`.

    Returns:
      Name -> settings, `BASELINE` first.

    Raises:
      ValueError: an unknown name, a trick that needs a training from scratch, or those of
        `recipes.settings`.
    """

    def of_recipe(word: str) -> TransferSettings:
        fields = recipes.settings(word, facts, given)
        sizes = {field: fields.pop(field) for field in recipes.OF_PIXELS if field in fields}
        changed = dataclasses.replace(settings.recipe, **fields)
        other = recipes.alternative(word, facts, given)
        alternative = dataclasses.replace(changed, **other) if other else None
        return dataclasses.replace(settings, recipe=changed, alternative=alternative, **sizes)

    chosen = {BASELINE: of_recipe(recipe)}
    baseline = chosen[BASELINE].recipe
    for name in names or tricks.names(baseline):
        if name.partition(":")[0] in recipes.RECIPES:
            chosen[name] = of_recipe(name)
            continue
        if name not in TRICKS:
            known = [*TRICKS, *recipes.RECIPES]
            raise ValueError(
                f"unknown `tricks`: got {name!r}; nearest: {nearest(name, known)}; expected some "
                f"of {', '.join(known)}"
            )
        if TRICKS[name].scratch and not baseline.init:
            raise ValueError(
                f"the trick {name!r} changes a training from scratch: got pretrained weights, "
                "expected a recipe with `init`; use `weights=random`"
            )
        changed = dataclasses.replace(baseline, **TRICKS[name].change(baseline))
        chosen[name] = dataclasses.replace(chosen[BASELINE], recipe=changed)
    return chosen


def compare(
    run: reporting.Run,
    clf: Classifier,
    variables: Variables,
    spec: DataSpec,
    chosen: Mapping[str, TransferSettings],
    *,
    shots: int = 0,
) -> dict[str, Any]:
    """Trains with and without each trick, on the same splits and seeds.

    Args:
      run: receives a row per training. A trick that fails leaves the others. A resumed run reads
        the rows of the run before, if its images are the same.
      clf, variables: a pretrained network with the preprocessing of its weights; its head is
        replaced.
      spec: the data set.
      chosen: as `variants` returns it; each has its crop and its image size, and all have the
        splits and seeds of the baseline.
      shots: training images per class, drawn again for each seed, without a validation part; 0 for
        all.

    Returns:
      The content of `result.json`: `rows`, the largest difference first, and `baseline`.

    Raises:
      ValueError: a recipe that does not fit the network or the data, or those of `few.drawn`;
        nothing was trained.
    """
    settings, pretrained = chosen[BASELINE], (clf, variables)
    key = jax.random.key(settings.first_seed)
    clf, variables = clf.replace_head(variables, spec.classes, key=key, head=settings.head)
    sized = lambda clf, one: pixels_for(clf, spec, one.crop, one.image_size)
    networks = {name: sized(clf, one) for name, one in chosen.items()}
    for name, one in chosen.items():
        check_settings(networks[name], variables, one)
    references = {
        name: teachers.load(sized(pretrained[0], one), pretrained[1], one.recipe)
        for name, one in chosen.items()
    }
    whole = dataclasses.replace(settings, validation_fraction=0.0) if shots else settings
    rounds = list(transfer.rounds(spec, None, whole))
    if shots:
        rounds = [_drawn(this, shots) for this in rounds]

    images = {this.name: _described(this) for this in rounds}
    same = lambda row: "images" in row and images.get(row["round"]) == row["images"]
    run.drop_rows(lambda row: not same(row))
    before = {(row["trick"], row["round"]): row for row in run.rows() if same(row)}

    def trained(name: str) -> Runs:
        rows = []
        for this in rounds:
            if (row := before.get((name, this.name))) is None:
                row = _train(networks[name], variables, this, chosen[name], references[name])
                row |= {"trick": name, "round": this.name, "images": images[this.name]}
                run.log(row)
            rows.append(row)
        return _runs(rounds, rows)

    baseline = trained(BASELINE)
    rows = []
    for name in list(chosen)[1:]:
        row = TRICKS.get(name) or recipes.RECIPES[name.partition(":")[0]]
        runs = run.attempt(name, lambda name=name: trained(name), None)
        if runs is not None:
            rows.append({"trick": name, "help": row.help, **difference(baseline, runs)})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return {
        "arch": clf.arch,
        "data": spec.name,
        "recipe": dataclasses.asdict(settings.recipe),
        "baseline": {
            "top1": baseline.top1,
            **metrics.spread(baseline.top1),
            "seconds": baseline.seconds,
            "memory": baseline.memory,
        },
        "n": len({image for _, image in baseline.correct}),
        "seeds": settings.seeds,
        "rows": sorted(rows, key=lambda row: -row["difference"]),
    }


def _train(
    clf: Classifier,
    variables: Variables,
    this: transfer.Round,
    settings: TransferSettings,
    reference: teachers.Network | None,
) -> dict[str, Any]:
    """Trains and tests once: a row of `metrics.jsonl`, from which a run continues.

    Returns:
      `top1`; `right` and `wrong`, the positions of the test images, without unreadable ones;
      `image_seconds`, per training image; and `memory`, as in `Runs`.
    """
    result = transfer.run_round(clf, variables, this, settings, reference=reference)
    tested, fitted = result.tested, result.fitted
    hits = metrics.topk_correct(tested.logits, tested.labels, 1)
    position = {str(example.path): i for i, example in enumerate(this.parts.test.examples)}
    places = np.array([position[str(path)] for path in tested.paths])
    return {
        "top1": sets.accuracy(tested),
        "right": places[hits],
        "wrong": places[~hits],
        "image_seconds": fitted.seconds / max(fitted.images, 1),
        "memory": fitted.memory,
    }


def _runs(rounds: Sequence[transfer.Round], rows: Sequence[Mapping[str, Any]]) -> Runs:
    """The trainings of one recipe, one row of `_train` per round."""
    correct = {
        (this.seed, str(this.parts.test.examples[place].path)): hit
        for this, row in zip(rounds, rows, strict=True)
        for hit in (True, False)
        for place in row["right" if hit else "wrong"]
    }
    seconds = float(np.median([row["image_seconds"] for row in rows]))
    return Runs(correct, [row["top1"] for row in rows], seconds, max(r["memory"] for r in rows))


def _described(this: transfer.Round) -> str:
    """The images of a round in words, and their digests."""
    parts = this.parts._asdict().items()
    return "; ".join(f"{name}: {describe_part(part)}" for name, part in parts)


def _drawn(this: transfer.Round, shots: int) -> transfer.Round:
    """A round that trains on a few images of each class, without a validation part."""
    train = few.drawn(this.parts.train, shots, this.seed)
    return this._replace(parts=this.parts._replace(train=train, validation=empty_set(train)))


def difference(baseline: Runs, other: Runs) -> dict[str, Any]:
    """The difference of two recipes on the same images and seeds.

    Returns:
      `difference` of the accuracies with `ci95` and exact `p` over images, `seeds` with the
      difference of each seed and their t interval, `top1`, and relative to the baseline `cost`,
      time per training image, and `memory`, bytes that the train step needs.
    """
    images = sorted({image for _, image in baseline.correct})
    position = {image: i for i, image in enumerate(images)}
    differences, tests = np.zeros(len(images), int), np.zeros(len(images), int)
    for key in baseline.correct.keys() & other.correct.keys():
        differences[position[key[1]]] += int(other.correct[key]) - int(baseline.correct[key])
        tests[position[key[1]]] += 1
    differences, tests = differences[tests > 0], tests[tests > 0]
    between = paired.difference(differences, tests)
    by_seed = [b - a for a, b in zip(baseline.top1, other.top1, strict=True)]
    return {
        "top1": other.top1,
        "mean": float(np.mean(other.top1)),
        "difference": between["difference"],
        "ci95": between["difference_ci95"],
        "p": between["p"],
        "seeds": {"values": by_seed, **metrics.spread(by_seed)},
        "cost": other.seconds / baseline.seconds if baseline.seconds else None,
        "memory": other.memory / baseline.memory if baseline.memory else None,
    }


def holm(values: Sequence[float]) -> list[float]:
    """P-values that account for the number of tests.

    Reference: Holm 1979, Scandinavian Journal of Statistics 6, 65-70.

    Example:
      >>> holm([0.01, 0.04, 0.03])
      [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        adjusted[i] = largest
    return adjusted
