"""The course lesson that `tl` grew from, step by step: as it was written, as it should be, and what each mistake costs.

  ./launch.sh lesson --cats_vs_dogs=folder:DIR --pets=folder:DIR
  ./launch.sh lesson --cats_vs_dogs=folder:DIR --steps=frozen,unfreeze --as_in_lesson

The lesson (Microsoft's AI for Beginners, 8: transfer learning) teaches VGG-16 to tell cats from dogs in Keras and in torch, and
has a lab on the 37 breeds of Oxford Pets (it says 35). Its figures stand beside ours; they come from 20,000 pictures, ours from
as many as `--limit` says. To add a step: a function that returns rows, and a line in `STEPS`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments import _common as common
from experiments import _evaluation as evaluation
from experiments import transfer
from tl import classifier, data, fit, heads, labels, metrics, paths, pixels, report, runlog
from tl.classifier import Classifier
from tl.data import DataSpec, doctor
from tl.fit import Recipe
from tl.report import Html
from tl.types import Variables

FLAGS = flags.FLAGS
LESSON, RIGHT = "as in the lesson", "as it should be"
# The lesson feeds 0-255 RGB, squashed, to weights that were trained on something else.
RAW: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "resize": "squash", "interpolation": "bilinear"}
KERAS_ADAM: dict[str, Any] = {"schedule": "constant", "weight_decay": 0.0, "clip": 0.0, "backbone_lr": 1.0}


def define_flags() -> None:
    flags.DEFINE_string("cats_vs_dogs", "", "Cats and dogs: folder:DIR or tfds:cats_vs_dogs@DIR.")
    flags.DEFINE_string("pets", "", "Oxford Pets: folder:DIR or tfds:oxford_iiit_pet@DIR.")
    flags.DEFINE_list("steps", list(STEPS), f"Of {', '.join(STEPS)}.")
    flags.DEFINE_bool("as_in_lesson", False, "The lesson's way alone. Default: both.")
    flags.DEFINE_integer("limit", 400, "Pictures of cats and dogs that are used; 0 for all.", lower_bound=0)
    flags.DEFINE_string("arch", "vgg16", "The lesson's network.")
    flags.DEFINE_string("small", "mobilenetv2_100", "Another network, for steps that train all of it.")


class Row(NamedTuple):
    """One way of one step: what was done, its figures where it has any, and the lesson's own."""

    step: str
    way: str
    setting: str
    n: int | None = None
    top1: float | None = None
    top1_ci95: tuple[float, float] | None = None
    top3: float | None = None
    nll: float | None = None
    seconds: float | None = None
    lesson: str = ""
    found: str = ""


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What the steps share."""

    run: runlog.Run
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
            raise ValueError(f"this step needs pictures: give --{which}=folder:DIR, or leave it out of --steps")
        return spec

    def network(self, arch: str, **changes: Any) -> tuple[Classifier, Variables]:
        """A pretrained network with its own preprocessing on whole pictures, or with changes to it."""
        clf, variables = classifier.load(arch, weights=self.weights or None)
        size = {"size": self.size} if self.size else {}
        return clf.with_pixels(**{"resize": "squash", **changes, **size}), variables


def row_of(step: str, way: str, setting: str, said: evaluation.Predictions, seconds: float, lesson: str) -> Row:
    """The figures of one test."""
    found = metrics.summarise(said.logits, said.labels)
    top3 = found["top3"] if said.logits.shape[1] > 3 else None
    low, high = found["top1_ci95"]
    return Row(step, way, setting, found["n"], found["top1"], (low, high), top3, found["nll"], seconds, lesson)


def taught(
    lesson: Lesson,
    name: str,
    network: tuple[Classifier, Variables],
    parts: data.Parts,
    recipe: Recipe,
    head: str = "linear",
) -> tuple[Classifier, transfer.Learned, float]:
    """A classifier learned as `transfer` learns it, and the seconds it took."""
    (clf, variables), classes = network, parts.train.classes
    clf = clf.with_head(heads.maker(head, clf.spec)(len(classes)), labels.from_names(classes, name=name))
    began = time.monotonic()
    recipe = dataclasses.replace(recipe, epochs=lesson.epochs or recipe.epochs)
    run = dataclasses.replace(lesson.run, workdir=lesson.run.workdir / name)
    run.workdir.mkdir(exist_ok=True)
    each = transfer.Round(name, lesson.seed, parts)
    done = transfer.learn(run, clf, variables, each, transfer.Settings(recipe, head=head), told=False)
    return clf, done, time.monotonic() - began


# --- cats and dogs: the Keras notebook ---------------------------------------------------------------------------------


def clean(lesson: Lesson) -> list[Row]:
    found = doctor.examine(lesson.need("cats_vs_dogs"))
    twins = len(found.near_duplicates or ())
    said = f"{len(found.broken)} broken, {len(found.misnamed)} misnamed, {twins} near-duplicates, {len(found.turned)} turned"
    return [
        Row(
            "clean",
            LESSON,
            "verify() and JPEG, else os.remove",
            lesson="~230 files deleted for good",
            found="not done: it deletes",
        ),
        Row("clean", RIGHT, "every pixel decoded, nothing deleted", n=found.n, found=said),
    ]


def division(lesson: Lesson) -> list[Row]:
    spec = lesson.need("cats_vs_dogs")
    order = np.random.default_rng(13).permutation(len(spec.examples))
    held = set(order[: len(order) // 5].tolist())
    sides = [
        dataclasses.replace(spec, examples=tuple(e for i, e in enumerate(spec.examples) if (i in held) is side))
        for side in (False, True)
    ]
    ours = data.split(spec, seed=lesson.seed)
    tell = lambda a, b: f"{len(data.leaks(a, b))} of {len(b.examples)} test pictures also in training"  # noqa: E731
    return [
        Row(
            "division",
            LESSON,
            "20 % at random, seed 13 (torch: no seed)",
            lesson="another split each run",
            found=tell(*sides),
        ),
        Row("division", RIGHT, "by content, near-duplicates together", found=tell(*ours)),
    ]


def classify(lesson: Lesson) -> list[Row]:
    photographs = [photo for photo in data.photographs() if photo.index is not None]
    rows = []
    for way, changes, words in (
        (LESSON, RAW, "0-255 into the network, squashed"),
        (RIGHT, {"resize": "shorter"}, "the weights' own preprocessing"),
    ):
        began = time.monotonic()
        clf, variables = lesson.network(lesson.classifiers, **changes)
        names = tuple(str(i) for i in range(1000))
        examples = tuple(data.Example(photo.path, photo.index or 0) for photo in photographs)
        spec = DataSpec("photographs", examples, names, "foolbox", "MIT")
        said = evaluation.predictions(clf, variables, spec)
        rows.append(row_of("classify", way, f"{lesson.classifiers}, {words}", said, time.monotonic() - began, ""))
    return rows


def frozen(lesson: Lesson) -> list[Row]:
    parts = data.divide(lesson.need("cats_vs_dogs"), validation_fraction=0.0, seed=lesson.seed)
    wrong = Recipe(tune="head", epochs=1, batch_size=64, lr=1e-3, **KERAS_ADAM)
    _, before, slow = taught(lesson, "frozen-lesson", lesson.network(lesson.arch, **RAW), parts, wrong, "flat")
    _, after, quick = taught(lesson, "frozen", lesson.network(lesson.arch), parts, Recipe(tune="probe"))
    reported = "val .9671 (.9516 from features computed before)"
    return [
        row_of("frozen", LESSON, "0-255, Flatten and Dense, Adam 1e-3, 1 epoch", before.tested, slow, reported),
        row_of("frozen", RIGHT, "own preprocessing, features kept, probe", after.tested, quick, ""),
    ]


def save(lesson: Lesson) -> list[Row]:
    parts = data.divide(lesson.need("cats_vs_dogs"), validation_fraction=0.0, seed=lesson.seed)
    clf, done, _ = taught(lesson, "save", lesson.network(lesson.arch), parts, Recipe(tune="probe"))
    folder = classifier.save(lesson.run.workdir / "save" / "model", clf, done.fitted.variables)
    again, variables = classifier.load(str(folder))
    few = dataclasses.replace(parts.test, examples=parts.test.examples[:16])
    one, other = (
        evaluation.predictions(c, v, few).logits for c, v in ((clf, done.fitted.variables), (again, variables))
    )
    same = "the same logits, bit by bit" if np.array_equal(one, other) else "OTHER LOGITS"
    return [
        Row(
            "save",
            LESSON,
            "SavedModel; torch.save of the whole module",
            found="a pickle that runs code",
            lesson="works",
        ),
        Row("save", RIGHT, "safetensors and JSON, with preprocessing and classes", n=len(one), found=same),
    ]


def unfreeze(lesson: Lesson) -> list[Row]:
    """The last four layers of Keras' VGG-16 are its last stage."""
    parts = data.divide(lesson.need("cats_vs_dogs"), validation_fraction=0.0, seed=lesson.seed)
    head = Recipe(tune="head", epochs=1, batch_size=64, lr=1e-3, **KERAS_ADAM)
    clf, start, _ = taught(lesson, "unfreeze-head", lesson.network(lesson.arch, **RAW), parts, head, "flat")
    began = time.monotonic()
    wrong = dataclasses.replace(head, tune="last:1", batch_size=32, epochs=lesson.epochs or 1)
    fitted = fit.fit(clf, start.fitted.variables, parts.train, parts.validation, wrong, seed=lesson.seed)
    before = evaluation.predictions(clf, fitted.variables, parts.test)
    slow = time.monotonic() - began
    right = Recipe(tune="lp_ft:1", epochs=3, lr=1e-4, augment="flip")
    _, after, quick = taught(lesson, "unfreeze", lesson.network(lesson.arch), parts, right)
    return [
        row_of(
            "unfreeze",
            LESSON,
            "then the last block too, the same rate, 1 epoch",
            before,
            slow,
            "val .9653: it fell from .9671",
        ),
        row_of("unfreeze", RIGHT, "from the probe on, a tenth of 1e-4 for the block, flips", after.tested, quick, ""),
    ]


# --- cats and dogs: the torch notebook ---------------------------------------------------------------------------------


def tests_on_train(lesson: Lesson) -> list[Row]:
    """`pytorchcv.load_cats_dogs_dataset` builds its test loader from the training set."""
    parts = data.divide(lesson.need("cats_vs_dogs"), validation_fraction=0.0, seed=lesson.seed)
    recipe = Recipe(tune="head", epochs=1, batch_size=16, lr=1e-2, **KERAS_ADAM)
    claimed = parts._replace(test=parts.train)
    network = lesson.network(lesson.arch)
    _, wrong, slow = taught(lesson, "claimed", network, claimed, recipe, "flat")
    _, right, quick = taught(lesson, "true", network, parts, recipe, "flat")
    words = "Linear(25088), Adam .01, 1 epoch, "
    return [
        row_of("tests_on_train", LESSON, words + "tested on the training set", wrong.tested, slow, "val .9672"),
        row_of("tests_on_train", RIGHT, words + "tested on pictures never seen", right.tested, quick, ""),
    ]


def full_finetune(lesson: Lesson) -> list[Row]:
    parts = data.divide(lesson.need("cats_vs_dogs"), validation_fraction=0.0, seed=lesson.seed)
    network = lesson.network(lesson.small)
    wrong = Recipe(tune="all", epochs=1, batch_size=16, lr=1e-4, bn="update", **KERAS_ADAM)
    right = Recipe(tune="lp_ft", epochs=1, batch_size=32, lr=1e-4, augment="flip")
    _, before, slow = taught(lesson, "full-lesson", network, parts, wrong)
    _, after, quick = taught(lesson, "full", network, parts, right)
    return [
        row_of(
            "full_finetune",
            LESSON,
            f"{lesson.small}, all at 1e-4, head untrained, 1 epoch",
            before.tested,
            slow,
            "VGG-16: .899, then .9744",
        ),
        row_of(
            "full_finetune",
            RIGHT,
            f"{lesson.small}, from a probe on, backbone at 1e-5, 1 epoch",
            after.tested,
            quick,
            "",
        ),
    ]


# --- the lab, and the challenge ----------------------------------------------------------------------------------------


def pets(lesson: Lesson) -> list[Row]:
    spec = lesson.need("pets")
    parts = data.divide(spec, validation_fraction=0.0, seed=lesson.seed)
    clf, variables = classifier.load("resnet18", weights="random", key=jax.random.key(lesson.seed))
    scratch = Recipe(tune="all", epochs=10, lr=1e-3, backbone_lr=1.0, bn="update", augment="flip")
    small = clf.with_pixels(size=lesson.size or 64, resize="squash")
    _, low, slow = taught(lesson, "pets-scratch", (small, variables), parts, scratch)
    head = Recipe(tune="head", epochs=3, batch_size=32, lr=1e-3, **KERAS_ADAM)
    _, middle, mid = taught(lesson, "pets-frozen", lesson.network(lesson.arch), parts, head)
    best = lesson.network(lesson.classifiers)
    _, high, quick = taught(lesson, "pets-probe", best, parts, Recipe(tune="probe"))
    share = f"{len(parts.train.examples)} pictures of {len(spec.classes)} breeds"
    return [
        row_of("pets", LESSON, f"from scratch at 64 pixels, {share}", low.tested, slow, "36.1 % with 3,680 pictures"),
        row_of(
            "pets",
            LESSON,
            f"{lesson.arch} frozen, head for 3 epochs",
            middle.tested,
            mid,
            "83.6 %, top-3 97.1 % with 3,680",
        ),
        row_of("pets", RIGHT, f"{lesson.classifiers}, probe", high.tested, quick, ""),
    ]


def challenge(lesson: Lesson) -> list[Row]:
    """ "Completely new types of images": electroluminescence of solar cells."""
    rows = []
    for name, spec in (("cats and dogs", lesson.need("cats_vs_dogs")), ("solar cells", data.get("elpv"))):
        parts = data.divide(spec, validation_fraction=0.0, seed=lesson.seed)
        _, done, seconds = taught(
            lesson, f"challenge-{name[:5].strip()}", lesson.network(lesson.classifiers), parts, Recipe(tune="probe")
        )
        counts = np.bincount(done.tested.labels)
        words = f"{name}: probe on {lesson.classifiers} (always the commonest class {100 * counts.max() / counts.sum():.1f} %)"
        rows.append(row_of("challenge", RIGHT, words, done.tested, seconds, "never tested"))
    return rows


STEPS: dict[str, Callable[[Lesson], list[Row]]] = {
    "clean": clean,
    "division": division,
    "classify": classify,
    "frozen": frozen,
    "save": save,
    "unfreeze": unfreeze,
    "tests_on_train": tests_on_train,
    "full_finetune": full_finetune,
    "pets": pets,
    "challenge": challenge,
}


# --- the table ---------------------------------------------------------------------------------------------------------


def costs(rows: Sequence[Row]) -> str:
    """What the lesson's way costs against the right one, in points of accuracy; whether it may be chance."""
    before = [row for row in rows if row.way == LESSON and row.top1 is not None]
    after = [row for row in rows if row.way == RIGHT and row.top1 is not None]
    if not before or not after:
        return ""
    a, b = before[-1], after[-1]
    assert a.top1 is not None and b.top1 is not None and a.top1_ci95 and b.top1_ci95
    chance = a.top1_ci95[1] >= b.top1_ci95[0] and b.top1_ci95[1] >= a.top1_ci95[0]
    return f"{100 * (b.top1 - a.top1):+.1f} points" + (", inside the noise" if chance else "")


def lesson_of(lesson: Lesson, steps: Sequence[str], *, as_in_lesson: bool = False) -> tuple[dict[str, Any], list[Html]]:
    """The result and the page's sections."""
    for name in steps:
        if name not in STEPS:
            raise ValueError(f"unknown step {name!r} of --steps; nearest: {paths.nearest(name, STEPS)}")
    shown, sections = [], []
    for name in steps:
        print(f"{name} ...", flush=True)
        rows = STEPS[name](lesson)
        cost = costs(rows)
        rows = [row for row in rows if row.way == LESSON] if as_in_lesson else rows
        for row in rows:
            shown.append({**row._asdict(), "right_minus_lesson": cost})
            lesson.run.log(shown[-1])
        cells = [cell(row) for row in rows]
        text = f"The right way brings {cost}." if cost and not as_in_lesson else ""
        sections.append(report.section(name.replace("_", " "), report.table(cells, HEADER), text=text))
    print(
        runlog.columns(
            ("step", *HEADER), [(row["step"], *cell(Row(**{k: row[k] for k in Row._fields}))) for row in shown]
        )
    )
    return {"rows": shown}, sections


HEADER = ("way", "what", "test", "top-1", "95 %", "top-3", "NLL", "seconds", "the lesson's own", "found")


def cell(row: Row) -> tuple[str, ...]:
    """A row of the table."""
    share = lambda value: "" if value is None else f"{100 * value:.1f} %"  # noqa: E731
    number = lambda value, how: "" if value is None else format(value, how)  # noqa: E731
    interval = "" if row.top1_ci95 is None else f"{100 * row.top1_ci95[0]:.1f} to {100 * row.top1_ci95[1]:.1f}"
    return (
        row.way,
        row.setting,
        number(row.n, "d"),
        share(row.top1),
        interval,
        share(row.top3),
        number(row.nll, ".3f"),
        number(row.seconds, ".0f"),
        row.lesson,
        row.found,
    )


def pictures(lesson: Lesson) -> list[Html]:
    """A sample of the set, and the lesson's picture of VGG-16's features: 7 x 7 positions by 512 channels."""
    if lesson.cats is None:
        return []
    few = [lesson.cats.examples[i] for i in np.linspace(0, len(lesson.cats.examples) - 1, 8).astype(int)]
    clf, variables = lesson.network(lesson.arch)
    images = np.stack([clf.prepare(data.decode(example.path)) for example in few])
    last = clf.spec.endpoints[-1]
    maps = np.asarray(jax.jit(clf.apply)(variables, pixels.to_images01(images)).endpoints[last])
    flat = maps[0].reshape(-1, maps.shape[-1])
    lesson.run.figure("features", flat / max(flat.max(), 1e-6))
    strongest = np.argsort(-maps[0].max(axis=(0, 1)))[:16]
    tiles = [np.clip(maps[0, :, :, i] / max(maps[0, :, :, i].max(), 1e-6), 0, 1).astype(np.float32) for i in strongest]
    sheet = report.contact_sheet([np.kron(tile, np.ones((12, 12), np.float32)) for tile in tiles], columns=8)
    words = (
        f"{last} of {lesson.arch}: shape {tuple(maps.shape[1:])}; every position by every channel, and the 16 strongest"
    )
    cards = [report.card(image, caption=lesson.cats.classes[e.label]) for image, e in zip(images, few, strict=True)]
    shown = report.picture(flat / max(flat.max(), 1e-6), scale=2), report.picture(sheet)
    return [
        report.section("The pictures", report.gallery(cards)),
        report.section("What the network makes of the first", *shown, text=words + "."),
    ]


def main(run: runlog.Run) -> None:
    def named(word: str) -> DataSpec | None:
        return data.get(word) if word else None

    cats = named(FLAGS.cats_vs_dogs)
    if cats is not None and FLAGS.limit and len(cats.examples) > FLAGS.limit:
        chosen = np.sort(np.random.default_rng(FLAGS.seed).permutation(len(cats.examples))[: FLAGS.limit])
        cats = dataclasses.replace(cats, examples=tuple(cats.examples[i] for i in chosen))
    lesson = Lesson(run, cats, named(FLAGS.pets), FLAGS.arch, FLAGS.small, FLAGS.seed)
    result, sections = lesson_of(lesson, FLAGS.steps, as_in_lesson=FLAGS.as_in_lesson)
    lead = "Each step of the lesson as it was written and as it should be, on the same pictures, and what the difference is."
    run.finish(result, report.page("The lesson, twice", lead, [*pictures(lesson), *sections], facts=run.facts()))
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    common.launch("lesson", main, define_flags)
