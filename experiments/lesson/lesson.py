"""The course lesson that `tl` grew from, step by step: as it was written, as it should be, and what each mistake costs.

  ./launch.sh lesson                                                  the steps that need no pictures of yours
  ./launch.sh lesson --cats_vs_dogs=folder:DIR --pets=folder:DIR      all of them
  ./launch.sh lesson --cats_vs_dogs=folder:DIR --steps=frozen,unfreeze --as_in_lesson

The lesson (Microsoft's AI for Beginners, 8: transfer learning) teaches VGG-16 to tell cats from dogs in Keras and in torch, and
has a lab on the 37 breeds of Oxford Pets (it says 35). Its figures stand beside ours; they come from 20,000 pictures, ours from
as many as `--limit` says, seen more often where that costs little. To add a step: a function that yields rows, the lesson's
first, and a line in `STEPS`.
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

from experiments import transfer
from tl import cli, data, inference, labels, metrics, models, paths, pixels, reporting
from tl.data import DataSpec, doctor
from tl.data.decode import header
from tl.evaluation import sets
from tl.inference import features
from tl.models import Classifier, heads
from tl.reporting import Html
from tl.training import fit, inputs
from tl.training.recipe import Recipe
from tl.types import Variables

FLAGS = flags.FLAGS
LESSON, RIGHT = "as in the lesson", "as it should be"
# The lesson feeds 0-255 RGB, squashed, to weights that were trained on something else: 0-255 BGR less its mean.
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


def define_flags() -> None:
    flags.DEFINE_string("cats_vs_dogs", "", "Cats and dogs: folder:DIR or tfds:cats_vs_dogs@DIR.")
    flags.DEFINE_string("pets", "", "Oxford Pets: folder:DIR or tfds:oxford_iiit_pet@DIR.")
    flags.DEFINE_list(
        "steps", [], f"Of {', '.join(STEPS)}. Default: those whose pictures are given."
    )
    flags.DEFINE_bool("as_in_lesson", False, "The lesson's way alone. Default: both.")
    flags.DEFINE_integer(
        "limit", 400, "Pictures of cats and dogs that are used; 0 for all.", lower_bound=0
    )
    flags.DEFINE_string("arch", "vgg16", "The lesson's network.")
    flags.DEFINE_string(
        "small", "mobilenetv2_100", "Another network, for the step that trains all of it."
    )
    flags.DEFINE_integer("epochs", 0, "Of every training; 0: each step's own.", lower_bound=0)


class Row(NamedTuple):
    """One way of one step: what was done, its figures where it has any, and the lesson's own.

    `learned` and `n` count the pictures that it learned from and was tested on.
    """

    step: str
    way: str
    setting: str
    learned: int | None = None
    n: int | None = None
    top1: float | None = None
    top1_ci95: tuple[float, float] | None = None
    top3: float | None = None
    nll: float | None = None
    seconds: float | None = None
    lesson: str = ""
    found: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Lesson:
    """What the steps share; equal to itself only, so that what two steps begin with is computed once."""

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

    def need(self, which: str) -> DataSpec:
        """A set that the user names; ValueError says how."""
        spec = self.cats if which == "cats_vs_dogs" else self.pets
        if spec is None:
            raise ValueError(
                f"this step needs pictures: give --{which}=folder:DIR, or leave it out of --steps"
            )
        return spec

    def network(self, arch: str, **changes: Any) -> tuple[Classifier, Variables]:
        """A pretrained network with its own preprocessing on whole pictures, or with changes to it."""
        clf, variables = models.load(arch, weights=self.weights or None)
        size = {"size": self.size} if self.size else {}
        return clf.with_pixels(**{"resize": "squash", **changes, **size}), variables

    def shifted(self, arch: str) -> dict[str, Any]:
        """The lesson's mistake in the units of these weights: no mean taken off, red and blue exchanged, the scale right.

        Raw 0-255 is that much to Keras' weights, and far more to weights that want numbers between -2 and 2.
        """
        own = self.network(arch)[0].pixels
        other = "bgr" if own.channels == "rgb" else "rgb"
        return {**RAW, "mean": (0.0,) * 3, "std": own.std[::-1], "channels": other}


def row_of(
    step: str,
    way: str,
    setting: str,
    said: inference.Predictions,
    seconds: float,
    lesson: str = "",
    learned: int = 0,
) -> Row:
    """The figures of one test."""
    found = metrics.summarize(said.logits, said.labels)
    top3 = found["top3"] if said.logits.shape[1] > 3 else None
    low, high = found["top1_ci95"]
    return Row(
        step,
        way,
        setting,
        learned or None,
        found["n"],
        found["top1"],
        (low, high),
        top3,
        found["nll"],
        seconds,
        lesson,
    )


@functools.cache
def divided(lesson: Lesson, which: str = "cats_vs_dogs", validation: float = 0.0) -> data.Parts:
    """The parts of a set; those to test on are the same whatever is kept for validation."""
    return data.divide(lesson.need(which), validation_fraction=validation, seed=lesson.seed)


def as_long(parts: data.Parts, pictures: int = 20_000) -> int:
    """Epochs that show a network as many pictures, repeated, as the lesson's training did."""
    return max(1, round(pictures / len(parts.train.examples)))


def taught(
    lesson: Lesson,
    name: str,
    network: tuple[Classifier, Variables],
    parts: data.Parts,
    recipe: Recipe,
    head: str = "linear",
) -> tuple[Classifier, transfer.RoundResult, float]:
    """A classifier learned as `transfer` learns it, and the seconds it took to learn and to be tested."""
    (clf, variables), classes = network, parts.train.classes
    clf = clf.with_head(
        heads.maker(head, clf.spec)(len(classes)), labels.from_names(classes, name=name)
    )
    began = time.monotonic()
    recipe = dataclasses.replace(recipe, epochs=lesson.epochs or recipe.epochs)
    run = dataclasses.replace(lesson.run, workdir=lesson.run.workdir / name)
    run.workdir.mkdir(exist_ok=True)
    each = transfer.Round(name, lesson.seed, parts)
    done = transfer.run_round(
        run, clf, variables, each, transfer.Settings(recipe, head=head), told=False
    )
    return clf, done, time.monotonic() - began


# --- cats and dogs: the Keras notebook ---------------------------------------------------------------------------------


def clean(lesson: Lesson) -> Iterator[Row]:
    def goes(source: data.Source) -> bool:
        try:
            return header(source).format != "JPEG"
        except data.ImageError:
            return True

    sources = inputs.sources(lesson.need("cats_vs_dogs"))
    words, lost = "verify() and JPEG, else os.remove", "~230 files deleted for good"
    gone = f"it would delete {sum(map(goes, sources))}; not done here"
    yield Row("clean", LESSON, words, n=len(sources), lesson=lost, found=gone)
    found = doctor.examine(lesson.need("cats_vs_dogs"))
    twins = len(found.near_duplicates or ())
    said = f"{len(found.broken)} broken, {len(found.misnamed)} misnamed, {twins} near-duplicates, {len(found.turned)} turned"
    yield Row("clean", RIGHT, "every pixel decoded, nothing deleted", n=found.n, found=said)


def division(lesson: Lesson) -> Iterator[Row]:
    spec = lesson.need("cats_vs_dogs")
    order = np.random.default_rng(13).permutation(len(spec.examples))
    held = set(order[: len(order) // 5].tolist())
    sides = [
        dataclasses.replace(
            spec, examples=tuple(e for i, e in enumerate(spec.examples) if (i in held) is side)
        )
        for side in (False, True)
    ]
    tell = lambda a, b: (
        f"{len(data.leaks(a, b))} of {len(b.examples)} test pictures also in training"
    )
    words, again = "20 % at random, seed 13 (torch: no seed)", "torch: another split each run"
    yield Row("division", LESSON, words, lesson=again, found=tell(*sides))
    ours = divided(lesson)
    yield Row(
        "division", RIGHT, "by content, near-duplicates together", found=tell(ours.train, ours.test)
    )


SHIFTED = "no mean, red and blue exchanged"


def classify(lesson: Lesson) -> Iterator[Row]:
    photographs = [photo for photo in data.photographs() if photo.index is not None]
    examples = tuple(data.Example(photo.path, photo.index or 0) for photo in photographs)
    spec = DataSpec("photographs", examples, tuple(str(i) for i in range(1000)), "foolbox", "MIT")
    for way, changes, words in (
        (LESSON, RAW, "0-255 into the network, squashed"),
        (LESSON, lesson.shifted(lesson.classifiers), SHIFTED),
        (RIGHT, {"resize": "shorter"}, "the weights' own preprocessing"),
    ):
        began = time.monotonic()
        said = inference.predict(*lesson.network(lesson.classifiers, **changes), spec)
        yield row_of(
            "classify", way, f"{lesson.classifiers}, {words}", said, time.monotonic() - began
        )


def precomputed(lesson: Lesson) -> Iterator[Row]:
    """Keras' `map` keeps nothing: every epoch runs the network over every picture."""
    network, sources = lesson.network(lesson.arch), inputs.sources(lesson.need("cats_vs_dogs"))[:97]
    with tempfile.TemporaryDirectory() as folder:
        passes = []
        for some in (sources[:1], sources[1:], sources[1:]):  # the first one compiles
            began = time.monotonic()
            found = features.extract(*network, some, cache=Path(folder)).values
            passes.append((found, time.monotonic() - began))
    _, (computed, slow), (kept, quick) = passes
    n, reported = len(computed), "1896 s, val .9516"
    yield Row(
        "precomputed", LESSON, f"{lesson.arch} over all again", n=n, seconds=slow, lesson=reported
    )
    same = "the same, bit by bit" if np.array_equal(computed, kept) else "OTHER FEATURES"
    yield Row(
        "precomputed", RIGHT, "features kept on disk, by content", n=n, seconds=quick, found=same
    )


KERAS_HEAD = Recipe(tune="head", batch_size=64, lr=1e-3, **ADAM)


@functools.cache
def keras_frozen(
    lesson: Lesson, *, mended: bool = False
) -> tuple[Classifier, transfer.RoundResult, float]:
    """The Keras notebook's frozen network, on which its next step goes on; `mended`: with the right preprocessing."""
    parts = divided(lesson)
    recipe = dataclasses.replace(KERAS_HEAD, epochs=as_long(parts))
    network = lesson.network(lesson.arch, **({} if mended else lesson.shifted(lesson.arch)))
    return taught(
        lesson, "frozen-mended" if mended else "frozen-lesson", network, parts, recipe, "flat"
    )


def frozen(lesson: Lesson) -> Iterator[Row]:
    n = len(divided(lesson).train.examples)
    _, done, seconds = keras_frozen(lesson)
    words = f"{SHIFTED}, Flatten and Dense, Adam 1e-3, the lesson's 310 steps"
    yield row_of("frozen", LESSON, words, done.tested, seconds, "val .9671", n)
    _, done, seconds = keras_frozen(lesson, mended=True)  # what the preprocessing alone costs
    yield row_of(
        "frozen", RIGHT, "own preprocessing, else the same", done.tested, seconds, learned=n
    )
    _, done, seconds = taught(
        lesson, "frozen", lesson.network(lesson.arch), divided(lesson), Recipe(tune="probe")
    )
    yield row_of(
        "frozen", RIGHT, "own preprocessing, features kept, probe", done.tested, seconds, learned=n
    )


def save(lesson: Lesson) -> Iterator[Row]:
    pickle = "SavedModel; torch.save of the whole module"
    yield Row("save", LESSON, pickle, lesson="works", found="torch's is a pickle, which runs code")
    parts = divided(lesson)
    clf, done, _ = taught(lesson, "save", lesson.network(lesson.arch), parts, Recipe(tune="probe"))
    again = models.load(
        str(models.save(lesson.run.workdir / "save" / "model", clf, done.fitted.variables))
    )
    few = dataclasses.replace(parts.test, examples=parts.test.examples[:16])
    one, other = (
        inference.predict(*pair, few).logits for pair in ((clf, done.fitted.variables), again)
    )
    same = "the same logits, bit by bit" if np.array_equal(one, other) else "OTHER LOGITS"
    yield Row(
        "save",
        RIGHT,
        "safetensors and JSON, with preprocessing and classes",
        n=len(one),
        found=same,
    )


def unfreeze(lesson: Lesson) -> Iterator[Row]:
    """The last four layers of Keras' VGG-16 are its last stage."""
    parts = divided(lesson)
    clf, start, _ = keras_frozen(lesson)
    began = time.monotonic()
    wrong = dataclasses.replace(KERAS_HEAD, tune="last:1", batch_size=32, epochs=lesson.epochs or 1)
    fitted = fit.fit(
        clf, start.fitted.variables, parts.train, parts.validation, wrong, seed=lesson.seed
    )
    said = inference.predict(clf, fitted.variables, parts.test)
    words, fell = (
        f"then the last block too, same rate, {fitted.steps} steps of 32",
        "310 of 64, val .9653: it fell from .9671",
    )
    row = row_of(
        "unfreeze", LESSON, words, said, time.monotonic() - began, fell, len(parts.train.examples)
    )
    yield row._replace(found=f"{reporting.percent(sets.accuracy(start.tested))} before")
    parts = divided(lesson, validation=0.15)
    right = Recipe(tune="lp_ft:1", epochs=3, lr=1e-4, augment="flip")
    _, done, seconds = taught(lesson, "unfreeze", lesson.network(lesson.arch), parts, right)
    words = "from a probe on, the block at 1e-5, flips, the best of 3 epochs"
    yield row_of("unfreeze", RIGHT, words, done.tested, seconds, learned=len(parts.train.examples))


# --- cats and dogs: the torch notebook ---------------------------------------------------------------------------------


def tests_on_train(lesson: Lesson) -> Iterator[Row]:
    """`pytorchcv.load_cats_dogs_dataset` builds its test loader from the training set."""
    parts = divided(lesson)
    recipe = Recipe(tune="head", epochs=as_long(parts), batch_size=16, lr=1e-2, **ADAM)
    _, done, seconds = taught(
        lesson, "tests_on_train", lesson.network(lesson.arch), parts, recipe, "flat"
    )
    words, n = (
        "Linear(25088), Adam .01, the lesson's 1,250 steps; tested on ",
        len(parts.train.examples),
    )
    truth = row_of("tests_on_train", RIGHT, words + "others", done.tested, seconds, learned=n)
    claimed = {name: done.learned[name] for name in ("n", "top1", "top1_ci95", "nll")}
    yield truth._replace(
        way=LESSON, setting=words + "what it learned from", lesson="val .9672", **claimed
    )
    yield truth


def full_finetune(lesson: Lesson) -> Iterator[Row]:
    parts, network = divided(lesson), lesson.network(lesson.small)
    wrong = Recipe(tune="all", epochs=1, batch_size=16, lr=1e-4, bn="update", **ADAM)
    _, done, seconds = taught(lesson, "full-lesson", network, parts, wrong)
    words, reported = (
        f"{lesson.small}, all at 1e-4, a fresh head, 1 epoch",
        "VGG-16: fell to .899, then .9744",
    )
    yield row_of(
        "full_finetune", LESSON, words, done.tested, seconds, reported, len(parts.train.examples)
    )
    parts = divided(lesson, validation=0.15)
    right = Recipe(tune="lp_ft", epochs=1, lr=1e-4, augment="flip")
    _, done, seconds = taught(lesson, "full", network, parts, right)
    words = f"{lesson.small}, from a probe on, backbone at 1e-5, flips, 1 epoch"
    yield row_of(
        "full_finetune", RIGHT, words, done.tested, seconds, learned=len(parts.train.examples)
    )


# --- the lab, and the challenge ----------------------------------------------------------------------------------------


def pets(lesson: Lesson) -> Iterator[Row]:
    parts = divided(lesson, "pets")
    n = len(parts.train.examples)
    clf, variables = models.load("resnet18", weights="random", key=jax.random.key(lesson.seed))
    scratch = Recipe(tune="all", epochs=10, lr=1e-3, backbone_lr=1.0, bn="update", augment="flip")
    small = clf.with_pixels(size=lesson.size or 64, resize="squash")
    _, done, seconds = taught(lesson, "pets-scratch", (small, variables), parts, scratch)
    reported = "a student: 36.1 % from 3,680"
    yield row_of(
        "pets", LESSON, "resnet18 from scratch at 64 pixels", done.tested, seconds, reported, n
    )
    head = Recipe(tune="head", epochs=as_long(parts, 3 * 3680), lr=1e-3, **ADAM)
    _, done, seconds = taught(lesson, "pets-frozen", lesson.network(lesson.arch), parts, head)
    words, reported = (
        f"{lesson.arch} frozen, head, Adam 1e-3, the lab's 345 steps",
        "83.6 %, top-3 97.1 % from 3,680",
    )
    yield row_of("pets", LESSON, words, done.tested, seconds, reported, n)
    for arch in dict.fromkeys((lesson.arch, lesson.classifiers)):
        _, done, seconds = taught(
            lesson, f"pets-{arch}", lesson.network(arch), parts, Recipe(tune="probe")
        )
        yield row_of("pets", RIGHT, f"{arch}, probe", done.tested, seconds, learned=n)


def challenge(lesson: Lesson) -> Iterator[Row]:
    """ "Completely new types of images": electroluminescence of solar cells."""
    like = None
    cells = data.divide(data.get("elpv"), validation_fraction=0.0, seed=lesson.seed)
    for name, parts in (
        ("cats and dogs", divided(lesson) if lesson.cats else None),
        ("solar cells", cells),
    ):
        if parts is None:
            continue
        network, short = lesson.network(lesson.classifiers), name.partition(" ")[0]
        _, done, seconds = taught(
            lesson, f"challenge-{short}", network, parts, Recipe(tune="probe")
        )
        counts = np.bincount(done.tested.labels)
        words = f"{name}: {lesson.classifiers}, probe ({100 * counts.max() / counts.sum():.1f} % are of one class)"
        row = row_of(
            "challenge",
            RIGHT,
            words,
            done.tested,
            seconds,
            "never tested",
            len(parts.train.examples),
        )
        drop = (
            f"{100 * (sets.accuracy(like) - sets.accuracy(done.tested)):.1f} points below"
            if like
            else ""
        )
        like = done.tested
        yield row._replace(found=drop)


class Step(NamedTuple):
    """A step: its rows, the set that it cannot do without, and how many rows, the first ones, are the lesson's way."""

    rows: Callable[[Lesson], Iterator[Row]]
    needs: str = "cats_vs_dogs"
    lessons: int = 1


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
}


def steps_of(lesson: Lesson, words: Sequence[str]) -> list[str]:
    """The steps that are asked for, or those that can be done; ValueError before the first where one cannot."""
    for name in words:
        if name not in STEPS:
            raise ValueError(
                f"unknown step {name!r} of --steps; nearest: {paths.nearest(name, STEPS)}"
            )
        if STEPS[name].needs:
            lesson.need(STEPS[name].needs)
    given = {"": True, "cats_vs_dogs": lesson.cats, "pets": lesson.pets}
    for flag in [flag for flag, there in given.items() if there is None and not words]:
        left = [name for name, step in STEPS.items() if step.needs == flag]
        print(
            f"without --{flag}=folder:DIR these steps are left out: {', '.join(left)}", flush=True
        )
    return list(words) or [name for name, step in STEPS.items() if given[step.needs] is not None]


# --- the table ---------------------------------------------------------------------------------------------------------


def costs(rows: Sequence[Row]) -> tuple[float, bool] | None:
    """(points of accuracy that the right way brings, whether the intervals overlap) of a step's last two ways."""
    last = {
        row.way: (row.top1, row.top1_ci95)
        for row in rows
        if row.top1 is not None and row.top1_ci95 is not None
    }
    if len(last) < 2:
        return None
    (a, (low_a, high_a)), (b, (low_b, high_b)) = last[LESSON], last[RIGHT]
    return 100 * (b - a), high_a >= low_b and high_b >= low_a


def taken(
    lesson: Lesson, words: Sequence[str] = (), *, as_in_lesson: bool = False
) -> dict[str, Any]:
    """Takes the steps one by one: `rows` of `Row`'s fields, with each `costs`: its own, or of the step's last right way."""
    shown = []
    for name in steps_of(lesson, words):
        print(f"{name} ...", flush=True)
        step = STEPS[name]
        rows = list(itertools.islice(step.rows(lesson), step.lessons if as_in_lesson else None))
        for row in rows:
            points, overlap = costs([*rows, row] if row.way == RIGHT else rows) or (None, None)
            shown.append({**row._asdict(), "points": points, "overlap": overlap})
            lesson.run.log(shown[-1])
    return {"rows": shown}


HEADER = (
    *(
        "step",
        "way",
        "what",
        "learned from",
        "tested on",
        "top-1 (95 %)",
        "top-3",
        "NLL",
        "seconds",
    ),
    *("the lesson's own", "found"),
)


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table; the step's cost stands beside the right way."""
    share = lambda value: "" if value is None else f"{100 * value:.1f}"
    number = lambda value, how: "" if value is None else format(value, how)
    top1 = (
        ""
        if row["top1"] is None
        else "{} ({} to {})".format(*map(share, (row["top1"], *row["top1_ci95"])))
    )
    cost = ""
    if row["points"] is not None and row["way"] == RIGHT:
        cost = f"{row['points']:+.1f} points" + (", intervals overlap" if row["overlap"] else "")
    counts = (number(row[name], "d") for name in ("learned", "n"))
    figures = (top1, share(row["top3"]), number(row["nll"], ".3f"), number(row["seconds"], ".1f"))
    return (
        row["step"],
        row["way"],
        row["setting"],
        *counts,
        *figures,
        row["lesson"],
        row["found"] or cost,
    )


def pictures(lesson: Lesson) -> list[Html]:
    """A sample of the set, and the lesson's picture of VGG-16's features: 7 x 7 positions by 512 channels."""
    if lesson.cats is None:
        return []
    few = [
        lesson.cats.examples[i]
        for i in np.linspace(0, len(lesson.cats.examples) - 1, 8).astype(int)
    ]
    clf, variables = lesson.network(lesson.arch)
    images = np.stack([clf.prepare(data.decode(example.path)) for example in few])
    last = clf.spec.endpoints[-1]
    maps = np.asarray(jax.jit(clf.apply)(variables, pixels.to_images01(images)).endpoints[last])
    flat = np.clip(
        maps[0].reshape(-1, maps.shape[-1]) / max(maps[0].max(), 1e-6), 0, 1
    )  # not every net ends in a ReLU
    lesson.run.figure("features", flat)
    strongest = np.argsort(-maps[0].max(axis=(0, 1)))[:16]
    tiles = [
        np.clip(maps[0, :, :, i] / max(maps[0, :, :, i].max(), 1e-6), 0, 1).astype(np.float32)
        for i in strongest
    ]
    sheet = reporting.contact_sheet(
        [np.kron(tile, np.ones((12, 12), np.float32)) for tile in tiles], columns=8
    )
    words = f"{last} of {lesson.arch}: shape {tuple(maps.shape[1:])}; every position by every channel, and the 16 strongest"
    cards = [
        reporting.card(image, caption=lesson.cats.classes[e.label])
        for image, e in zip(images, few, strict=True)
    ]
    shown = reporting.img(flat, scale=max(1024 // flat.shape[1], 1)), reporting.img(sheet)
    return [
        reporting.section("The pictures", reporting.gallery(cards)),
        reporting.section("What the network makes of the first", *shown, text=words + "."),
    ]


def main(run: reporting.Run) -> None:
    def named(word: str) -> DataSpec | None:
        return data.get(word) if word else None

    cats = named(FLAGS.cats_vs_dogs)
    if cats is not None and FLAGS.limit and len(cats.examples) > FLAGS.limit:
        chosen = np.sort(
            np.random.default_rng(FLAGS.seed).permutation(len(cats.examples))[: FLAGS.limit]
        )
        cats = dataclasses.replace(cats, examples=tuple(cats.examples[i] for i in chosen))
    lesson = Lesson(
        run, cats, named(FLAGS.pets), FLAGS.arch, FLAGS.small, FLAGS.seed, epochs=FLAGS.epochs
    )
    result = taken(lesson, FLAGS.steps, as_in_lesson=FLAGS.as_in_lesson)
    rows = [cells(row) for row in result["rows"]]
    print(reporting.columns(HEADER, rows))
    lead = "Each step of the lesson as it was written and as it should be, on the same pictures, and what the difference is."
    table = [
        reporting.chapter("The steps"),
        reporting.note(NOTE),
        reporting.table(rows, HEADER),
    ]  # too wide for a section
    run.finish(
        result,
        reporting.page("The lesson, twice", lead, [*table, *pictures(lesson)], facts=run.facts()),
    )
    print(f"{run.workdir / 'report.html'}")


NOTE = (
    "Accuracies in percent, with Wilson's interval; points are the right way's accuracy less the lesson's; where the two "
    "intervals overlap they may be chance. Seconds are of learning and testing, without features that the bank on disk held "
    "before."
)


if __name__ == "__main__":
    cli.launch("lesson", main, define_flags)
