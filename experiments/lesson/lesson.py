"""The course lesson that `tl` grew from, step by step: as written, corrected, and the difference.

  ./launch.sh lesson                               the steps that need none of your images
  ./launch.sh lesson --cats_vs_dogs=folder:DIR --pets=folder:DIR      all steps but the last two
  ./launch.sh lesson --cats_vs_dogs=folder:DIR --steps=frozen,unfreeze --as_in_lesson
  ./launch.sh lesson --steps=ideal,attack          gradient descent on an image, as in the lesson

The lesson (Microsoft's AI for Beginners, 8: transfer learning) trains VGG-16 on cats and dogs in
Keras and in torch, and has a lab on the 37 breeds of Oxford Pets (it says 35). The page shows its
numbers next to ours. Its numbers come from 20,000 images, ours from `--limit` images, repeated for
as many steps where that is cheap. To add a step, write a function that yields rows, the lesson's
first, and add a row to `STEPS`.

Expected: the step `frozen` has a test accuracy of 99 % (94.6 to 99.8) with the correct
preprocessing, and of 96 % (90.2 to 98.4) with the lesson's, on 100 images (`lesson_frozen` in
RESULTS.md). Cost: 14 minutes on two CPU cores for the second command.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments.lesson import attack as lesson_attack
from experiments.lesson import ideal as lesson_ideal
from tl import cli, data, inference, labels, metrics, models, pages, paths, pixels, reporting
from tl.data import DataSpec, doctor
from tl.data.decode import header
from tl.evaluation import sets
from tl.evaluation.timing import spent
from tl.inference import features
from tl.models import Classifier
from tl.pages import lesson as page
from tl.pages.lesson import LESSON, RIGHT, Row, costs
from tl.training import fit, inputs
from tl.training.recipe import Recipe
from tl.types import Variables
from tl.visualize import activations, grid, specs
from tl.visualize import ideal as ideal_images

FLAGS = flags.FLAGS
# The lesson's preprocessing: squashed RGB images from 0 to 255. Its weights were trained on BGR
# images from 0 to 255 minus the mean.
RAW: dict[str, Any] = {
    "mean": (0.0,) * 3,
    "std": (1 / 255,) * 3,
    "resize": "squash",
    "interpolation": "bilinear",
}
ADAM: dict[str, Any] = {
    "schedule": "constant",
    "weight_decay": 0.0,
    "clip": 0.0,
    "backbone_lr": 1.0,
}
# Number of photographs in the step `attack`; the lesson has one.
SHOWN = 4
SHIFTED = "no mean subtracted, red and blue swapped"


def define_flags() -> None:
    flags.DEFINE_string("cats_vs_dogs", "", "Cats and dogs: folder:DIR or tfds:cats_vs_dogs@DIR.")
    flags.DEFINE_string("pets", "", "Oxford Pets: folder:DIR or tfds:oxford_iiit_pet@DIR.")
    flags.DEFINE_list(
        "steps",
        [],
        f"Some of {', '.join(STEPS)}. Default: all steps but ideal and attack for which there are "
        "images.",
    )
    flags.DEFINE_bool("as_in_lesson", False, "Only the lesson's version. Default: both versions.")
    flags.DEFINE_integer(
        "limit", 400, "Number of images of cats and dogs; 0 for all.", lower_bound=0
    )
    flags.DEFINE_string("arch", "vgg16", "Network of the steps. Default: the lesson's.")
    flags.DEFINE_string(
        "small", "mobilenetv2_100", "Network of the step that trains all parameters."
    )
    flags.DEFINE_integer(
        "epochs", 0, "Epochs of every training run; 0: the step's own number.", lower_bound=0
    )
    flags.DEFINE_list("images", [], "Photographs of dogs for `attack`. Default: packaged ones.")
    flags.DEFINE_string(
        "target",
        "",
        "Classes of `ideal` and `attack`. Default: Siamese cat, and zebra for `ideal`.",
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Lesson:
    """Settings that the steps share. Compared by identity, so that each lesson has its own caches.

    Attributes:
      run: the run.
      cats, pets: data sets, None if not given.
      arch, small, classifiers: architectures: the lesson's, one of which all parameters train, and
        one with a head for ImageNet.
      seed: of splits, heads and noise.
      weights: as for `models.load`.
      size: side of the images; 0: the weights' own.
      epochs: epochs of every training run; 0: the step's own number.
      ideal_steps, attack_steps: steps of gradient descent on an image.
      images: photographs of dogs; () for packaged ones.
      target: classes of gradient descent on an image; "" for the lesson's.
      details: further entries of the result, written by the steps.
    """

    run: reporting.Run
    cats: DataSpec | None
    pets: DataSpec | None
    arch: str
    small: str
    seed: int = 0
    classifiers: str = "efficientnet_lite0"
    weights: str = ""
    size: int = 0
    epochs: int = 0
    ideal_steps: int = lesson_ideal.STEPS
    attack_steps: int = lesson_attack.STEPS
    images: tuple[str, ...] = ()
    target: str = ""
    details: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)

    def need(self, which: str) -> DataSpec:
        """The data set "cats_vs_dogs" or "pets"; raises ValueError if the user did not name it."""
        spec = self.cats if which == "cats_vs_dogs" else self.pets
        if spec is None:
            raise ValueError(
                f"a step needs images: give --{which}=folder:DIR, or remove the step from --steps"
            )
        return spec

    def pretrained(self, arch: str) -> tuple[Classifier, Variables]:
        """A pretrained network with its own preprocessing."""
        clf, variables = models.load(arch, weights=self.weights or None)
        return clf.with_pixels(size=self.size) if self.size else clf, variables

    def network(self, arch: str, **changes: Any) -> tuple[Classifier, Variables]:
        """A pretrained network on squashed images; `changes` are fields of its `PixelSpec`."""
        clf, variables = self.pretrained(arch)
        return clf.with_pixels(**{"resize": "squash", **changes}), variables

    def shifted(self, arch: str) -> dict[str, Any]:
        """The lesson's preprocessing in the units of these weights, as changes for `network`."""
        spec = lesson_attack.shifted(self.network(arch)[0].pixels)
        return {**RAW, "mean": spec.mean, "std": spec.std, "channels": spec.channels}


def row_of(
    step: str,
    way: str,
    setting: str,
    predictions: inference.Predictions,
    seconds: float,
    lesson: str = "",
    learned: int = 0,
) -> Row:
    """A row with the metrics of one test."""
    values = metrics.summarize(predictions.logits, predictions.labels)
    top3 = values["top3"] if predictions.logits.shape[1] > 3 else None
    tested = values["n"], values["top1"], tuple(values["top1_ci95"]), top3, values["nll"]
    return Row(step, way, setting, learned or None, *tested, seconds, lesson)


@functools.cache
def divided(lesson: Lesson, which: str = "cats_vs_dogs", validation: float = 0.0) -> data.Parts:
    """The parts of a data set; the test part does not depend on `validation`."""
    return data.divide(lesson.need(which), validation_fraction=validation, seed=lesson.seed)


def epochs_for(parts: data.Parts, images: int = 20_000) -> int:
    """Epochs in which a network reads as many images, repeated, as in the lesson's training."""
    return max(1, round(images / len(parts.train.examples)))


class Training(NamedTuple):
    """A trained classifier and its test.

    Attributes:
      clf, fitted: the classifier and the result of `fit`.
      tested: predictions for the test part.
      n: number of training images.
      seconds: duration of training and testing.
    """

    clf: Classifier
    fitted: fit.FitResult
    tested: inference.Predictions
    n: int
    seconds: float

    def row(self, step: str, way: str, setting: str, lesson: str = "") -> Row:
        return row_of(step, way, setting, self.tested, self.seconds, lesson, self.n)


def train(
    lesson: Lesson,
    name: str,
    network: tuple[Classifier, Variables],
    parts: data.Parts,
    recipe: Recipe,
    head: str = "linear",
) -> Training:
    """Trains a network with a fresh head and tests it."""
    (clf, variables), classes, began = network, parts.train.classes, time.monotonic()
    table = labels.from_names(classes, name=name)
    clf, variables = clf.replace_head(variables, table, key=jax.random.key(lesson.seed), head=head)
    recipe = dataclasses.replace(recipe, epochs=lesson.epochs or recipe.epochs)
    log = lambda row: lesson.run.log({"training": name, **row})
    sides = parts.train, parts.validation
    fitted = fit.fit(clf, variables, *sides, recipe, seed=lesson.seed, log=log)
    tested = predict_part(clf, fitted, parts.test)
    return Training(clf, fitted, tested, len(parts.train.examples), time.monotonic() - began)


def predict_part(clf: Classifier, fitted: fit.FitResult, spec: DataSpec) -> inference.Predictions:
    """Predictions for a data set, from cached features if only the head was trained."""
    frozen = all(name.startswith("head/") for name in fitted.trained)
    return sets.predict_set(clf, fitted.variables, spec, frozen=frozen)


# ---- cats and dogs: the Keras notebook ----


def clean(lesson: Lesson) -> Iterator[Row]:
    """The lesson deletes files that PIL rejects or that are not JPEG; `doctor` deletes nothing."""

    def is_removed(source: data.Source) -> bool:
        try:
            return header(source).format != "JPEG"
        except data.ImageError:
            return True

    sources = inputs.sources(lesson.need("cats_vs_dogs"))
    words, lost = "verify() and JPEG, else os.remove", "~230 files deleted"
    removed = f"it would delete {sum(map(is_removed, sources))}; not done here"
    yield Row("clean", LESSON, words, n=len(sources), lesson=lost, found=removed)
    report = doctor.examine(lesson.need("cats_vs_dogs"))
    counts = f"{len(report.broken)} broken, {len(report.misnamed)} misnamed, "
    counts += f"{len(report.near_duplicates or ())} near-duplicates, {len(report.turned)} turned"
    yield Row("clean", RIGHT, "every pixel decoded, nothing deleted", n=report.n, found=counts)


def division(lesson: Lesson) -> Iterator[Row]:
    """A random split puts duplicates into both parts; a split by content does not."""
    spec = lesson.need("cats_vs_dogs")
    n = len(spec.examples)
    test, train = np.split(np.random.default_rng(13).permutation(n), [n // 5])
    count = lambda a, b: f"{len(data.leaks(a, b))} of {len(b.examples)}"
    leaks = lambda a, b: f"{count(a, b)} test images also in training"
    words, again = "20 % at random, seed 13 (torch: no seed)", "torch: a different split each run"
    yield Row(
        "division",
        LESSON,
        words,
        lesson=again,
        found=leaks(data.subset(spec, train), data.subset(spec, test)),
    )
    parts = divided(lesson)
    words = "by content, near-duplicates together"
    yield Row("division", RIGHT, words, found=leaks(parts.train, parts.test))


def classify(lesson: Lesson) -> Iterator[Row]:
    """Accuracy of a pretrained network under three kinds of preprocessing."""
    spec, arch = data.labeled_photographs(), lesson.classifiers
    for way, changes, words in (
        (LESSON, RAW, "0-255 into the network, squashed"),
        (LESSON, lesson.shifted(arch), SHIFTED),
        (RIGHT, {"resize": "shorter"}, "the preprocessing of the weights"),
    ):
        network = lesson.network(arch, **changes)
        seconds, predictions = spent(functools.partial(inference.predict, *network, spec))
        yield row_of("classify", way, f"{arch}, {words}", predictions, seconds)


def precomputed(lesson: Lesson) -> Iterator[Row]:
    """Keras' `map` keeps nothing: every epoch runs the network on every image."""
    network, sources = lesson.network(lesson.arch), inputs.sources(lesson.need("cats_vs_dogs"))[:97]
    with tempfile.TemporaryDirectory() as folder:
        extract = lambda part: features.extract(*network, part, cache=Path(folder)).values
        extract(sources[:1])  # compiles
        (slow, computed), (quick, cached) = (spent(lambda: extract(sources[1:])) for _ in "ab")
    n, reported = len(computed), "1896 s, val .9516"
    words = f"{lesson.arch}, computed in every epoch"
    yield Row("precomputed", LESSON, words, n=n, seconds=slow, lesson=reported)
    same = "the same, bit by bit" if np.array_equal(computed, cached) else "OTHER FEATURES"
    words = "features cached on disk, by content"
    yield Row("precomputed", RIGHT, words, n=n, seconds=quick, found=same)


KERAS_HEAD = Recipe(tune="head", batch_size=64, lr=1e-3, **ADAM)


@functools.cache
def keras_frozen(lesson: Lesson, *, corrected: bool = False) -> Training:
    """The Keras notebook's frozen network; `corrected`: with the preprocessing of the weights."""
    parts = divided(lesson)
    recipe = dataclasses.replace(KERAS_HEAD, epochs=epochs_for(parts))
    network = lesson.network(lesson.arch, **({} if corrected else lesson.shifted(lesson.arch)))
    name = "frozen-corrected" if corrected else "frozen-lesson"
    return train(lesson, name, network, parts, recipe, "flat")


def frozen(lesson: Lesson) -> Iterator[Row]:
    """A new head on the frozen network, with the lesson's preprocessing and that of the weights."""
    result = keras_frozen(lesson)
    words = f"{SHIFTED}, Flatten and Dense, Adam 1e-3, the lesson's 310 steps"
    yield result.row("frozen", LESSON, words, "val .9671")
    result = keras_frozen(lesson, corrected=True)  # the cost of the preprocessing alone
    words = "preprocessing of the weights, otherwise the same"
    yield result.row("frozen", RIGHT, words)
    network = lesson.network(lesson.arch)
    result = train(lesson, "frozen", network, divided(lesson), Recipe(tune="probe"))
    words = "preprocessing of the weights, features cached, probe"
    yield result.row("frozen", RIGHT, words)


def save(lesson: Lesson) -> Iterator[Row]:
    """A saved classifier gives the same logits after loading."""
    words = "SavedModel; torch.save of the whole module"
    risk = "torch's file is a pickle, which executes code"
    yield Row("save", LESSON, words, lesson="works", found=risk)
    parts = divided(lesson)
    network = lesson.network(lesson.arch)
    clf, fitted, *_ = train(lesson, "save", network, parts, Recipe(tune="probe"))
    folder = models.save(lesson.run.workdir / "save" / "model", clf, fitted.variables)
    few = data.subset(parts.test, range(len(parts.test.examples))[:16])
    before, after = (
        inference.predict(*pair, few).logits
        for pair in ((clf, fitted.variables), models.load(str(folder)))
    )
    same = "the same logits, bit by bit" if np.array_equal(before, after) else "OTHER LOGITS"
    words = "safetensors and JSON, with preprocessing and classes"
    yield Row("save", RIGHT, words, n=len(before), found=same)


def unfreeze(lesson: Lesson) -> Iterator[Row]:
    """Trains the last four layers of Keras' VGG-16, which are its last stage, too."""
    parts = divided(lesson)
    start, n = keras_frozen(lesson), len(parts.train.examples)
    began = time.monotonic()
    wrong = dataclasses.replace(KERAS_HEAD, tune="last:1", batch_size=32, epochs=lesson.epochs or 1)
    variables = start.fitted.variables
    fitted = fit.fit(start.clf, variables, parts.train, parts.validation, wrong, seed=lesson.seed)
    predictions = inference.predict(start.clf, fitted.variables, parts.test)
    words = f"then the last block too, same rate, {fitted.steps} steps of 32"
    reported, seconds = "310 of 64, val .9653: down from .9671", time.monotonic() - began
    row = row_of("unfreeze", LESSON, words, predictions, seconds, reported, n)
    yield row._replace(found=f"{reporting.percent(sets.accuracy(start.tested))} before")
    parts = divided(lesson, validation=0.15)
    right = Recipe(tune="lp_ft:1", epochs=3, lr=1e-4, augment="flip")
    result = train(lesson, "unfreeze", lesson.network(lesson.arch), parts, right)
    words = "from a probe, the block at 1e-5, flips, best of 3 epochs"
    yield result.row("unfreeze", RIGHT, words)


# ---- cats and dogs: the torch notebook ----


def tests_on_train(lesson: Lesson) -> Iterator[Row]:
    """`pytorchcv.load_cats_dogs_dataset` builds its test loader from the training set."""
    parts, network = divided(lesson), lesson.network(lesson.arch)
    recipe = Recipe(tune="head", epochs=epochs_for(parts), batch_size=16, lr=1e-2, **ADAM)
    result = train(lesson, "tests_on_train", network, parts, recipe, "flat")
    claim = result._replace(tested=predict_part(result.clf, result.fitted, parts.train))
    words = "Linear(25088), Adam .01, 1,250 steps; tested on "
    yield claim.row("tests_on_train", LESSON, words + "the training images", "val .9672")
    yield result.row("tests_on_train", RIGHT, words + "other images")


def full_finetune(lesson: Lesson) -> Iterator[Row]:
    """Trains all parameters with a fresh head at one rate, and from a probe at a smaller rate."""
    parts, network = divided(lesson), lesson.network(lesson.small)
    wrong = Recipe(tune="all", epochs=1, batch_size=16, lr=1e-4, bn="update", **ADAM)
    result = train(lesson, "full-lesson", network, parts, wrong)
    words = f"{lesson.small}, all at 1e-4, fresh head, 1 epoch"
    reported = "VGG-16: down to .899, then .9744"
    yield result.row("full_finetune", LESSON, words, reported)
    parts = divided(lesson, validation=0.15)
    right = Recipe(tune="lp_ft", epochs=1, lr=1e-4, augment="flip")
    result = train(lesson, "full", network, parts, right)
    words = f"{lesson.small}, from a probe, backbone at 1e-5, flips, 1 epoch"
    yield result.row("full_finetune", RIGHT, words)


# ---- the lab, and the challenge ----


def pets(lesson: Lesson) -> Iterator[Row]:
    """Breeds of pets: from scratch, with a frozen network as in the lab, and with probes."""
    parts = divided(lesson, "pets")
    clf, variables = models.load("resnet18", weights="random", key=jax.random.key(lesson.seed))
    small = clf.with_pixels(size=lesson.size or 64, resize="squash"), variables
    scratch = Recipe(tune="all", epochs=10, lr=1e-3, backbone_lr=1.0, bn="update", augment="flip")
    result = train(lesson, "pets-scratch", small, parts, scratch)
    words, reported = "resnet18 from scratch at 64 pixels", "a student: 36.1 % from 3,680"
    yield result.row("pets", LESSON, words, reported)
    head = Recipe(tune="head", epochs=epochs_for(parts, 3 * 3680), lr=1e-3, **ADAM)
    result = train(lesson, "pets-frozen", lesson.network(lesson.arch), parts, head)
    words = f"{lesson.arch} frozen, head, Adam 1e-3, the lab's 345 steps"
    reported = "83.6 %, top-3 97.1 % from 3,680"
    yield result.row("pets", LESSON, words, reported)
    for arch in dict.fromkeys((lesson.arch, lesson.classifiers)):
        network = lesson.network(arch)
        result = train(lesson, f"pets-{arch}", network, parts, Recipe(tune="probe"))
        yield result.row("pets", RIGHT, f"{arch}, probe")


def challenge(lesson: Lesson) -> Iterator[Row]:
    """The lesson's "completely new types of images": electroluminescence of solar cells."""
    similar = None
    cells = data.divide(data.get("elpv"), validation_fraction=0.0, seed=lesson.seed)
    for name, parts in (
        ("cats and dogs", divided(lesson) if lesson.cats else None),
        ("solar cells", cells),
    ):
        if parts is None:
            continue
        network, short = lesson.network(lesson.classifiers), name.partition(" ")[0]
        result = train(lesson, f"challenge-{short}", network, parts, Recipe(tune="probe"))
        tested = result.tested
        counts = np.bincount(tested.labels)
        majority = 100 * counts.max() / counts.sum()
        words = f"{name}: {lesson.classifiers}, probe (majority class {majority:.1f} %)"
        row = result.row("challenge", RIGHT, words, "never tested")
        drop = 100 * (sets.accuracy(similar) - sets.accuracy(tested)) if similar else None
        similar = tested
        yield row._replace(found="" if drop is None else f"{drop:.1f} points below")


# ---- gradient descent on an image ----


def ideal(lesson: Lesson) -> Iterator[Row]:
    """A Siamese cat and a zebra by the lesson's two descents from noise, then within [0, 1]."""
    clf, variables = lesson.pretrained(lesson.arch)
    objectives = specs.class_objectives(clf, lesson.target or "Siamese cat,zebra")
    options = {"seed": lesson.seed, "steps": lesson.ideal_steps}
    descend = functools.partial(lesson_ideal.without_bounds, lesson.run, **options)
    seconds, rows = spent(lambda: descend(clf, variables, objectives))
    lesson.details["ideal"], percent = rows, reporting.percent
    for way in (lesson_ideal.FIRST, lesson_ideal.SECOND):
        chosen = [row for row in rows if row["way"] == way]
        results = "; ".join(
            f"{row['target']}: {percent(row['probability'])} as a tensor, "
            f"{percent(row['probability_of_png_as_shown'])} as displayed"
            for row in chosen
        )
        words = f"{lesson.arch}, {way}, {lesson.ideal_steps} steps"
        row = Row("ideal", LESSON, words, n=len(chosen), seconds=seconds / 2, found=results)
        yield row._replace(lesson=f"Siamese cat {lesson_ideal.REPORTED[way]:.3f}")
    steps = min(grid.STEPS, lesson.ideal_steps)
    settings = grid.IdealSettings(steps=steps, frames=0, seed=lesson.seed)
    optimize = functools.partial(ideal_images.ideal, [grid.network(clf, variables)], objectives)
    seconds, ideals = spent(lambda: optimize(settings))
    saved = ideal_images.save(lesson.run, ideals)["images"]
    results = "; ".join(
        f"{row['target']}: {percent(row['probability'])} as displayed" for row in saved
    )
    words = f"in [0, 1], Fourier, transforms, {steps} steps"
    yield Row("ideal", RIGHT, words, n=len(saved), seconds=seconds, found=results)


def attack(lesson: Lesson) -> Iterator[Row]:
    """Photographs of dogs, perturbed until they are classified as a Siamese cat."""
    clf, variables = lesson.pretrained(lesson.arch)
    table = inference.class_table(clf)
    files = list(lesson.images) or [str(photo.path) for photo in data.photographs()]
    photographs = inference.read_images(clf, files)
    dogs = table.find("any dog") if len(table) == models.IMAGENET_CLASSES else ()
    calls = inference.predict_logits(clf, variables, photographs.images).argmax(axis=1)
    indices = np.flatnonzero(np.isin(calls, dogs) if len(dogs) else np.ones(len(calls), bool))
    indices = indices[:SHOWN]
    if not len(indices):
        raise ValueError(
            f"none of {len(calls)} images is classified as a dog by {clf.arch}; give --images"
        )
    target = table.find(lesson.target) if lesson.target else (lesson_attack.TARGET,)
    chosen = [photographs.paths[i] for i in indices], photographs.images[indices]
    options = *chosen, target, dogs, lesson.attack_steps
    attack = lesson_attack.Attack(lesson.run, clf, variables, *options)
    seconds, rows = spent(lambda: lesson_attack.without_bounds(attack))
    count = lambda answers: f"{sum(answers)} of {len(rows)}"
    results = (
        f"{count(row['start']['still'] for row in rows)} starts are classified as a dog; target as "
        f"a tensor {_mean(rows, 'tensor')}, as displayed {_mean(rows, 'shown')}"
    )
    words = f"{lesson.arch}, gradient descent from img / 255, "
    words += f"{lesson.attack_steps} steps, no bounds"
    reported, lesson.details["attack"] = "dog .928, then Siamese cat .865", rows
    yield Row("attack", LESSON, words, n=len(rows), seconds=seconds, lesson=reported, found=results)
    seconds, rows = spent(lambda: lesson_attack.within_bounds(attack, rows, seed=lesson.seed))
    lesson.details["attack"] = rows
    words = f"PGD, Linf {255 * lesson_attack.EPS:g}/255, 8-bit, {lesson.attack_steps} steps"
    results = f"target as a file {_mean(rows, 'right')}"
    yield Row("attack", RIGHT, words, n=len(rows), seconds=seconds, found=results)


def _mean(rows: Sequence[dict[str, Any]], way: str) -> str:
    """The mean probability of the target."""
    return reporting.percent(float(np.mean([row[way]["target"] for row in rows])))


class Step(NamedTuple):
    """One step of the lesson.

    Attributes:
      rows: yields the rows.
      needs: the data set that it needs; "" for none.
      lessons: number of its first rows that are the lesson's version.
      by_name: runs only if `--steps` names it, because it takes minutes.
    """

    rows: Callable[[Lesson], Iterator[Row]]
    needs: str = "cats_vs_dogs"
    lessons: int = 1
    by_name: bool = False


STEPS: dict[str, Step] = {
    "clean": Step(clean),
    "division": Step(division),
    "classify": Step(classify, "", lessons=2),
    "precomputed": Step(precomputed),
    "frozen": Step(frozen),
    "save": Step(save),
    "unfreeze": Step(unfreeze),
    "tests_on_train": Step(tests_on_train),
    "full_finetune": Step(full_finetune),
    "pets": Step(pets, "pets", lessons=2),
    "challenge": Step(challenge, "", lessons=0),
    "ideal": Step(ideal, "", lessons=2, by_name=True),
    "attack": Step(attack, "", by_name=True),
}


def steps_of(lesson: Lesson, words: Sequence[str]) -> list[str]:
    """The named steps; by default those for which there are images, without `ideal` and `attack`.

    Raises:
      ValueError: an unknown step, or a step whose images are missing.
    """
    for name in words:
        if name not in STEPS:
            raise ValueError(
                f"unknown step of `steps`: got {name!r}; nearest: {paths.nearest(name, STEPS)}"
            )
        if STEPS[name].needs:
            lesson.need(STEPS[name].needs)
    if words:
        return list(words)
    available = {"": True, "cats_vs_dogs": lesson.cats, "pets": lesson.pets}
    for flag in [flag for flag, value in available.items() if value is None]:
        names = ", ".join(name for name, step in STEPS.items() if step.needs == flag)
        print(f"without --{flag}=folder:DIR these steps are left out: {names}", flush=True)
    usable = lambda step: available[step.needs] is not None and not step.by_name
    return [name for name, step in STEPS.items() if usable(step)]


# ---- the run ----


def run_steps(
    lesson: Lesson, words: Sequence[str] = (), *, as_in_lesson: bool = False
) -> dict[str, Any]:
    """Runs the steps one by one.

    Returns:
      `arch`; `rows`, each with the fields of `Row`, and with `points` and `overlap` as in `costs`
      (of this row if it is a corrected version, otherwise of the step's last corrected version);
      and the further entries of `sample` and of the steps.
    """
    lines = []
    for name in steps_of(lesson, words):
        print(f"{name} ...", flush=True)
        step = STEPS[name]
        rows = list(itertools.islice(step.rows(lesson), step.lessons if as_in_lesson else None))
        for row in rows:
            points, overlap = costs([*rows, row] if row.way == RIGHT else rows) or (None, None)
            lines.append({**row._asdict(), "points": points, "overlap": overlap})
            lesson.run.log(lines[-1])
    return {"arch": lesson.arch, "rows": lines, **sample(lesson), **lesson.details}


def sample(lesson: Lesson) -> dict[str, Any]:
    """Saves eight images and the features of the first as figures, as the lesson shows them."""
    if lesson.cats is None:
        return {}
    indices = np.linspace(0, len(lesson.cats.examples) - 1, 8).astype(int)
    few = [lesson.cats.examples[i] for i in indices]
    clf, variables = lesson.network(lesson.arch)
    images = np.stack([clf.prepare(data.decode(example.path)) for example in few])
    last, images01 = clf.spec.endpoints[-1], pixels.to_images01(images[:1])
    values = np.asarray(activations.forward(clf, (last,))(variables, images01)[last])
    row = activations.save_maps(lesson.run, clf, last, values, image="sample", topk=16)
    rows = [
        {"png": lesson.run.relative(lesson.run.figure("sample", image)), "class": name}
        for image, name in zip(images, (lesson.cats.classes[e.label] for e in few), strict=True)
    ]
    features = {"features": row["flat"], "channels": row["png"], "shape": row["shape"]}
    return {"sample": {"images": rows, "layer": last, **features}}


def main(run: reporting.Run) -> None:
    cats, pets = (data.get(word) if word else None for word in (FLAGS.cats_vs_dogs, FLAGS.pets))
    if cats is not None and FLAGS.limit and len(cats.examples) > FLAGS.limit:
        order = np.random.default_rng(FLAGS.seed).permutation(len(cats.examples))
        cats = data.subset(cats, order[: FLAGS.limit])
    further = {"epochs": FLAGS.epochs, "images": tuple(FLAGS.images), "target": FLAGS.target}
    lesson = Lesson(run, cats, pets, FLAGS.arch, FLAGS.small, FLAGS.seed, **further)
    result = run_steps(lesson, FLAGS.steps, as_in_lesson=FLAGS.as_in_lesson)
    print(reporting.columns(page.HEADER, [page.cells(row) for row in result["rows"]]))
    print(pages.finish(run, result))


if __name__ == "__main__":
    cli.launch("lesson", main, define_flags)
