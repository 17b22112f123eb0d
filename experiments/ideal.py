"""The image that a network thinks is ideal: of a class, channel, neuron, direction or layer, or of a photograph's activations.

  ./launch.sh ideal --target=tabby,zebra
  ./launch.sh ideal --target=zebra --tv=0,100,400 --count=4                    a grid, one compiled call
  ./launch.sh ideal --objective=channel:stage3:12,neuron:stage4:7 --data=folder:DIR
  ./launch.sh ideal --objective=inversion:stage2,caricature:stage3 --photograph=FILE
  ./launch.sh ideal --model=DIR --target=cat                                   of a classifier that transfer made
  ./launch.sh ideal --target="Siamese cat" --as_in_lesson                      the lesson's way beside it

What the defaults reach, and what other networks say of it: README, "Ideal images".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import _common as common
from experiments import _lesson_ideal as lesson
from experiments import _objectives as wishes_of
from experiments._objectives import CLASSES, KINDS, OF_A_PHOTOGRAPH, Wish
from tl import ascend, classifier, data, heads, pixels, report, runlog, transforms
from tl.classifier import Classifier
from tl.paths import nearest
from tl.report import Html
from tl.types import Variables
from tl.visualize import exemplars, images, judge, objectives, render

FLAGS = flags.FLAGS
STEPS = 320  # chosen by eye
STEP = 0.05  # lucid's Adam step
FRAMES = 32  # of the animation
JUDGES = (
    "efficientnet_lite1",
    "efficientnet_lite2",
    "squeezenet1_1",
    "efficientnet_lite0",
)  # packaged, with a classifier

TRANSFORMS: dict[str, Callable[[int], transforms.Transform]] = {  # size -> transform; lengths are shares of the image
    "roll": lambda size: transforms.roll(size // 14),  # 16 of 224 pixels, the scale of lucid's jitter
    "zoom": lambda size: transforms.zoom(0.4, 1.3),
    "lucid": lambda size: transforms.lucid(),
    "pad": lambda size: transforms.pad(size // 18),  # lucid's 12 of 224 pixels
    "jitter": lambda size: transforms.jitter(size // 28),  # 8
    "scale": lambda size: transforms.scale((0.9, 0.95, 1.0, 1.05, 1.1)),
    "rotate": lambda size: transforms.rotate((-10.0, -5.0, 0.0, 5.0, 10.0)),
    "flip": lambda size: transforms.flip(),
    "crop": lambda size: transforms.crop(0.5, 1.0),
    "noise": lambda size: transforms.noise(0.0, 0.12),
    "resized": lambda size: transforms.resized(0.5, 1.0),
    "jpeg": lambda size: transforms.jpeg(50, 95),
}


def define_flags() -> None:
    forms = ", ".join(kind.form for kind in KINDS.values())
    flags.DEFINE_string("target", "", "Classes, separated by commas: index, WordNet id, name or group.")
    flags.DEFINE_string("objective", "", f"In place of --target, separated by commas, any of {forms}.")
    flags.DEFINE_enum("parameterisation", "fourier", list(images.PARAMETERISATIONS), "What is optimised.")
    flags.DEFINE_list(
        "tv", [], "Weights of the variation, a grid of them, in the objective's units per unit of total variation."
    )
    flags.DEFINE_enum("variation", "anisotropic", list(objectives.VARIATIONS), "Which variation --tv weighs.")
    flags.DEFINE_float("l2", None, "Weight of the distance from grey, in the objective's units.", lower_bound=0.0)
    flags.DEFINE_float("blur", 0.0, "Weight of the distance from the blurred image, likewise.", lower_bound=0.0)
    flags.DEFINE_float("diversity", 0.0, "Weight of being unlike the other images of a target.", lower_bound=0.0)
    flags.DEFINE_integer("steps", STEPS, "Steps of the climb; 0 shows the start.", lower_bound=0)
    flags.DEFINE_float("step_size", STEP, "Of the first step; it falls to a tenth.", lower_bound=0.0)
    flags.DEFINE_enum("optimizer", "adam", list(ascend.OPTIMIZERS), "How a gradient becomes a step.")
    flags.DEFINE_integer("redirect", 0, "First steps in which gradients pass dead units (lucid: 16).", lower_bound=0)
    flags.DEFINE_integer("size", 0, "Side, in pixels. Default: the weights' own.", lower_bound=0)
    flags.DEFINE_integer("count", 1, "Images a target, from different noise.", lower_bound=1)
    flags.DEFINE_list(
        "transforms",
        ["auto"],
        f"Random views, any of {', '.join(TRANSFORMS)}; empty for none; auto: the objective's own.",
    )
    flags.DEFINE_integer("frames", FRAMES, "Pictures in the animation of the climb; 0 for none.", lower_bound=0)
    flags.DEFINE_string("photograph", "", "Where the climb begins, and what inversion and caricature are about.")
    flags.DEFINE_list("also", [], "Networks that a class is climbed under as well.")
    flags.DEFINE_list("judges", ["auto"], "Networks that say what they see; auto: the packaged ones. Empty for none.")
    flags.DEFINE_string("data", "", "A data set whose nine pictures that activate the same unit most are shown beside.")
    flags.DEFINE_bool("as_in_lesson", False, "The lesson's way too: noise, plain gradient descent, 1000 steps, twice.")


class Settings(NamedTuple):
    """How images are climbed; `tv` (), `l2` None and `names` auto are the objective's own defaults."""

    parameterisation: str = "fourier"
    tv: tuple[float, ...] = ()
    variation: str = "anisotropic"
    l2: float | None = None
    blur: float = 0.0
    diversity: float = 0.0
    steps: int = STEPS
    step_size: float = STEP
    optimizer: str = "adam"
    redirect: int = 0
    size: int = 0
    count: int = 1
    names: tuple[str, ...] = ("auto",)
    frames: int = FRAMES
    seed: int = 0


class Network(NamedTuple):
    """A network, its variables with BatchNorm folded away, on the device, and as they were loaded: these name its banks."""

    clf: Classifier
    variables: Variables
    loaded: Variables


class Cell(NamedTuple):
    """One image of the grid: what it shall be, with which weight of the variation, from which noise."""

    wish: Wish
    tv: float
    replicate: int


def network(clf: Classifier, variables: Variables) -> Network:
    return Network(clf, jax.device_put(clf.fold_batch_norm(variables)), variables)


def grid(wishes: Sequence[Wish], how: Settings) -> list[Cell]:
    """Objective x weight of the variation x noise. Images of one objective and weight stand together."""
    weights = lambda wish: how.tv or (KINDS[wish.kind].tv,)  # noqa: E731
    return [Cell(wish, tv, i) for wish in wishes for tv in weights(wish) for i in range(how.count)]


def names_of(how: Settings, wishes: Sequence[Wish]) -> tuple[str, ...]:
    """The transforms that --transforms names, or those of the objectives."""
    return wishes_of.default_views(wishes) if how.names == ("auto",) else how.names


def views(names: Sequence[str], size: int) -> transforms.Transform:
    """The transforms of these names, one after another, and back to the network's size where they change it."""
    for name in names:
        if name not in TRANSFORMS:
            raise ValueError(f"unknown transform {name!r}; nearest: {nearest(name, TRANSFORMS)}")
    chain = transforms.compose(*(TRANSFORMS[name](size) for name in names))
    shown = jax.eval_shape(chain, jax.eval_shape(lambda: jax.random.key(0)), jnp.zeros((size, size, 3)))
    return chain if shown.shape[0] == size else transforms.compose(chain, transforms.resize(size))


def climber(
    networks: Sequence[Network], cells: Sequence[Cell], how: Settings, photograph: np.ndarray | None = None
) -> Callable[[], render.Ideal]:
    """The climb of a whole grid as one compiled call; a second call does not compile again.

    Args:
      networks: the first is the one whose units are meant; a class is climbed under all of them.
      cells: the images.
      photograph: f32[s s 3] to begin with, and what inversions and caricatures are about (these begin with noise).
    """
    first, size = networks[0], how.size or networks[0].clf.pixels.size
    chosen = [cell.wish for cell in cells]
    ends = wishes_of.shapes(first.clf, first.variables, size)
    about = sorted({wish.endpoint for wish in chosen if wish.kind in OF_A_PHOTOGRAPH})
    if about and photograph is None:
        raise ValueError("inversion and caricature are about a photograph; name one with --photograph=FILE")
    wanted = wishes_of.wanted_maps(first.clf, first.variables, photograph, about) if photograph is not None else {}
    objective, targets = wishes_of.program(
        [each.clf for each in networks], chosen, ends, wanted, diversity=how.diversity
    )
    together = how.count if how.diversity else 1 if jax.default_backend() == "cpu" else 0
    climb = render.make(
        lambda variables, images01: tuple(
            each.clf.apply(own, images01) for each, own in zip(networks, variables, strict=True)
        ),
        images.PARAMETERISATIONS[how.parameterisation](size),
        objective,
        transform=views(names_of(how, chosen), size),
        steps=how.steps,
        optimizer=how.optimizer,
        variation=how.variation,
        redirect=how.redirect,
        frames=how.frames,
        together=together,
        progress=lambda groups: runlog.progress(groups, label="images") if len(groups) > 1 else groups,
    )
    noise = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(how.seed), jnp.arange(how.count))
    keys = noise[jnp.array([cell.replicate for cell in cells])]
    tv = np.array([cell.tv for cell in cells], np.float32)
    l2 = np.array([KINDS[wish.kind].l2 if how.l2 is None else how.l2 for wish in chosen], np.float32)
    begins = photograph is not None and not about
    start = np.stack([photograph] * len(cells)) if begins and photograph is not None else None
    variables = tuple(each.variables for each in networks)
    return lambda: climb(variables, keys, targets, tv=tv, l2=l2, blur=how.blur, step_size=how.step_size, start=start)


def values(networks: Sequence[Network], cells: Sequence[Cell], saved: np.ndarray, photograph: Any) -> np.ndarray:
    """f32[b], each objective without costs and views, on pictures uint8[b s s 3] as read back."""
    chosen, ends = [cell.wish for cell in cells], wishes_of.shapes(*networks[0][:2], saved.shape[1])
    about = sorted({wish.endpoint for wish in chosen if wish.kind in OF_A_PHOTOGRAPH})
    wanted = wishes_of.wanted_maps(*networks[0][:2], photograph, about)
    objective, targets = wishes_of.program([each.clf for each in networks], chosen, ends, wanted)

    @jax.jit
    def measure(variables: Any, targets: Any, images01: jax.Array) -> jax.Array:
        def one(row: Any) -> jax.Array:
            target, image = jax.tree.map(lambda leaf: leaf[None], row)
            seen: Any = tuple(each.clf.apply(own, image) for each, own in zip(networks, variables, strict=True))
            return objective(target)(seen, image)[0]

        return jax.lax.map(one, (targets, images01))

    variables = tuple(each.variables for each in networks)
    return np.asarray(measure(variables, targets, pixels.to_images01(saved)))


def judges_of(networks: Sequence[Network], names: Sequence[str]) -> list[Network]:
    """The networks that took no part; with "auto" those of `JUDGES` whose weights are at hand."""
    auto, found = list(names) == ["auto"], []
    part = {each.clf.arch for each in networks}
    for name in JUDGES if auto else names:
        try:
            clf, variables = classifier.load(name)
        except ValueError:
            if auto:
                continue
            raise
        if clf.arch in part:
            if auto:
                continue
            raise ValueError(f"{name} takes part in the climb; a judge is a network that does not")
        found.append(network(clf.with_dtype(networks[0].clf.dtype), variables))
    return found


def verdicts(judges: Sequence[Network], cells: Sequence[Cell], saved: np.ndarray) -> list[dict[str, float]]:
    """Of each picture what each judge gives its class: architecture -> probability; nothing for a class it does not know."""
    rows: list[dict[str, float]] = [{} for _ in cells]
    for each in judges:
        whole = each.clf.with_pixels(crop=1.0)  # a judge sees the picture to its edges, at its own size
        probabilities = None
        for i, cell in enumerate(cells):
            try:
                classes = common.class_table(each.clf).find(cell.wish.word) if cell.wish.classes else ()
            except ValueError:
                continue
            if classes:
                if probabilities is None:
                    shown = np.stack([whole.prepare(image) for image in saved])
                    probabilities = common.softmax(common.all_logits(each.clf, each.variables, shown))
                rows[i][each.clf.arch] = float(probabilities[i, list(classes)].sum())
    return rows


def beside(first: Network, wishes: Sequence[Wish], spec: data.DataSpec) -> dict[Wish, exemplars.Top]:
    """Of each objective that has a unit or class, the nine pictures of a data set that activate it most."""
    paths = [example.path for example in spec.examples]
    found: dict[Wish, exemplars.Top] = {}
    table_size = len(first.clf.classes) if first.clf.classes else 0
    for wish in wishes:
        if wish.classes:
            members = np.isin(np.arange(table_size), wish.classes)[None]
            (found[wish],) = exemplars.top_classes(first.clf, first.loaded, paths, members)
        elif wish.kind in ("channel", "neuron"):
            (found[wish],) = exemplars.top_pictures(first.clf, first.loaded, paths, wish.endpoint, [wish.index])
    return found


# ----------------------------------------------------------------------------------------------------------------- page


def natural(clf: Classifier, size: int) -> dict[str, Any]:
    """What photographs have: total variation and slope of the spectrum, mean and spread over the packaged ones."""
    try:
        paths = [photo.path for photo in data.photographs()]
    except ValueError:
        return {}
    shown = clf.with_pixels(size=size)
    x = pixels.to_images01(np.stack([shown.prepare(data.decode(path)) for path in paths]))
    slopes, tv = judge.spectral_slope(x), np.asarray(objectives.total_variation(jnp.asarray(x)))
    spread = lambda v: {"mean": float(v.mean()), "low": float(v.min()), "high": float(v.max())}  # noqa: E731
    return {"n": len(paths), "spectral_slope": spread(slopes), "tv": spread(tv)}


def ideal(
    run: runlog.Run,
    networks: Sequence[Network],
    wishes: Sequence[Wish],
    how: Settings,
    *,
    judges: Sequence[Network] = (),
    photograph: np.ndarray | None = None,
    spec: data.DataSpec | None = None,
) -> tuple[dict[str, Any], list[Html]]:
    """The result and the page's sections: the whole grid climbed in one call, and judged as saved."""
    clf, variables, _ = networks[0]
    size = how.size or clf.pixels.size
    cells = grid(wishes, how)
    print(f"climbing {len(cells)} images of {size} x {size} for {how.steps} steps under {clf.arch}", flush=True)
    found = jax.tree.map(np.asarray, climber(networks, cells, how, photograph)())
    for i in range(0, how.steps + 1, max(how.steps // 20, 1)):
        run.log({"step": i, "score": found.scores[i].tolist()})

    names = [_name(cell, how) for cell in cells]
    files = [run.figure(name, image) for name, image in zip(names, found.images, strict=True)]
    saved = np.stack([data.decode(file) for file in files])  # judged as saved, not as computed
    worth = values(networks, cells, saved, photograph)
    said = common.softmax(common.all_logits(clf, variables, saved)) if clf.classes else None
    opinions = verdicts(judges, cells, saved)
    restless = np.asarray(jax.jit(objectives.total_variation)(pixels.to_images01(saved)))
    slopes = judge.spectral_slope(pixels.to_images01(saved)) if size >= 32 else np.full(len(cells), np.nan)
    pictures = beside(networks[0], list(dict.fromkeys(wishes)), spec) if spec else {}

    rows: list[dict[str, Any]] = []
    for i, cell in enumerate(cells):
        film = run.film(names[i], [found.start[i], *found.frames[:, i]], seconds=3.0) if len(found.frames) else None
        row = {
            "png": str(files[i]),
            "film": str(film) if film else None,
            "target": cell.wish.word,
            "objective": cell.wish.kind,
            "probability": float(said[i, list(cell.wish.classes)].sum())
            if said is not None and cell.wish.classes
            else None,
            "value": float(worth[i]),
            "loss": -float(found.scores[-1, i]),
            "tv": float(restless[i]),
            "tv_weight": cell.tv,
            "replicate": cell.replicate,
            "spectral_slope": float(slopes[i]),
            "judges": opinions[i],
            "dead": cell.wish.kind in ("channel", "neuron") and how.steps > 0 and float(worth[i]) == 0.0,
            "called": common.topk(clf, said[i], 3) if said is not None else [],
        }
        rows.append(row)
    dead = [row["target"] for row in rows if row["dead"]]
    if dead:
        words = (
            f"{', '.join(dict.fromkeys(dead))} stayed at 0 for all {how.steps} steps: a unit that is dead for this start, "
            "and that has no gradient; pass it with --redirect=16, or take another --seed or --photograph"
        )
        if len(dead) == len(rows):
            raise ValueError(words)
        print(f"ideal: {words}", flush=True)

    result: dict[str, Any] = {"images": rows, "judged_by": judged_by(rows, networks), "photographs": natural(clf, size)}
    if how.count > 1:
        result["diversity"] = diversities(networks[0], judges, cells, saved)
    run.figure("sheet", report.contact_sheet(saved, columns=min(4, len(cells)) if how.count == 1 else how.count))
    return result, page(run, clf, cells, how, found, saved, result, pictures, photograph)


def _name(cell: Cell, how: Settings) -> str:
    parts = [cell.wish.word.replace(":", "-")]
    parts += [f"tv{cell.tv:g}"] if len(how.tv) > 1 else []
    return "-".join([*parts, f"{cell.replicate}"] if how.count > 1 else parts)


def judged_by(rows: Sequence[dict[str, Any]], networks: Sequence[Network]) -> dict[str, Any]:
    """Whose probabilities these are, and the means."""
    archs = list(dict.fromkeys(arch for row in rows for arch in row["judges"]))
    mean = lambda numbers: float(np.mean(numbers)) if len(numbers) else None  # noqa: E731
    by = {arch: mean([row["judges"][arch] for row in rows if arch in row["judges"]]) for arch in archs}
    return {
        "network": networks[0].clf.arch,
        "climbed_under": [each.clf.arch for each in networks],
        "on": "the PNG as read back, without transforms",
        "networks": by,
        "mean": mean([p for row in rows for p in row["judges"].values()]),
        "note": "networks that took no part",
    }


def diversities(
    first: Network, judges: Sequence[Network], cells: Sequence[Cell], saved: np.ndarray
) -> list[dict[str, Any]]:
    """Of each objective and weight, how unlike its images are, by the features of a judge, or of the network itself."""
    each = judges[0] if judges else first
    whole = each.clf.with_pixels(crop=1.0)
    shown = pixels.to_images01(np.stack([whole.prepare(image) for image in saved]))
    features = jax.jit(lambda variables, x: each.clf.apply(variables, x).features)
    seen = np.concatenate([np.asarray(features(each.variables, x[None])) for x in shown])
    groups: dict[tuple[str, float], list[int]] = {}
    for i, cell in enumerate(cells):
        groups.setdefault((cell.wish.word, cell.tv), []).append(i)
    return [
        {"target": word, "tv_weight": tv, "diversity": judge.diversity(seen[rows]), "by": each.clf.arch}
        for (word, tv), rows in groups.items()
    ]


def page(
    run: runlog.Run,
    clf: Classifier,
    cells: Sequence[Cell],
    how: Settings,
    found: render.Ideal,
    saved: np.ndarray,
    result: dict[str, Any],
    pictures: dict[Wish, exemplars.Top],
    photograph: np.ndarray | None,
) -> list[Html]:
    """The sections: each image large, how it came to be, what is said of it, and the way to make it again."""
    strips = []
    for i, (cell, row) in enumerate(zip(cells, result["images"], strict=True)):
        words = [f"total variation {row['tv']:.3f} (weight {cell.tv:g})", f"spectral slope {row['spectral_slope']:.2f}"]
        if row["probability"] is None:
            words.insert(0, f"value {row['value']:.4g}" + (", a dead unit" if row["dead"] else ""))
        classes = cell.wish.classes
        cards = [
            report.card(
                saved[i],
                title="ideal" if how.steps else "where a climb would begin",
                caption="; ".join(words),
                bars=common.bars(row["called"], classes),
                alt=f"the ideal image of {cell.wish.word}",
            )
        ]
        if len(found.frames):
            film = report.film([found.start[i], *found.frames[:, i]], seconds=3.0, alt="the climb, from noise on")
            cards.append(
                report.card(film, title="the climb", caption=f"{how.steps} steps, {len(found.frames)} of them shown")
            )
        if photograph is not None:
            about = "whose activations are wanted" if cell.wish.kind in OF_A_PHOTOGRAPH else "where the climb began"
            cards.append(report.card(photograph, title="the photograph", caption=about))
        if row["judges"]:
            opinion = [report.Bar(arch, p) for arch, p in row["judges"].items()]
            text = report.note(f"How probable {cell.wish.word} is to networks that took no part")
            cards.append(
                report.tag("figure", "card", report.tag("figcaption", "title", "judges"), text, report.bars(opinion))
            )
        if cell.wish in pictures:
            real = report.contact_sheet([_small(clf, path) for path, _ in pictures[cell.wish]], columns=3)
            cards.append(report.card(real, title="nine photographs", caption="that activate the same unit most"))
        title = cell.wish.word + (f", variation {cell.tv:g}" if len(how.tv) > 1 else "")
        strips.append(report.strip(cards, title=title + (f", noise {cell.replicate}" if how.count > 1 else "")))
    names = names_of(how, [cell.wish for cell in cells])
    seen = " and ".join(names) or "no transform"
    lead = (
        f"{clf.arch} climbed its own objective for {how.steps} steps in {how.parameterisation} form with {how.optimizer}, seen "
        f"through {seen}. What it looks like comes from the network alone. Probabilities are of the saved PNG."
    )
    sections = [report.section("Ideal images", *strips, text=lead)]
    mean, photos = result["judged_by"]["mean"], result["photographs"]
    figures: dict[str, object] = {"images": len(cells)}
    own = [row["probability"] for row in result["images"] if row["probability"] is not None]
    figures |= {"own network, mean": report.percent(float(np.mean(own)))} if own else {}
    figures |= {"other networks, mean": report.percent(mean)} if mean is not None else {}
    parts = [report.numbers(figures)]
    if photos:
        tv, slope = photos["tv"], photos["spectral_slope"]
        parts.append(
            report.note(
                f"{photos['n']} photographs at this size have a total variation of {tv['mean']:.3f} ({tv['low']:.3f} to "
                f"{tv['high']:.3f}) and a spectral slope of {slope['mean']:.2f} ({slope['low']:.2f} to {slope['high']:.2f})."
            )
        )
    if "diversity" in result:
        rows = [(each["target"], each["tv_weight"], each["diversity"]) for each in result["diversity"]]
        caption = f"One less the mean cosine of features of {result['diversity'][0]['by']}: 0 where images are alike"
        parts.append(report.table(rows, ["target", "weight of variation", "diversity over noises"], caption=caption))
    sections.append(report.section("In numbers", *parts))
    command = re.sub(r"^.*-m experiments\.", "./launch.sh ", str(run.config["command"]))
    again = report.tag("p", "", report.tag("code", "", command))
    weights = {"tv": sorted({cell.tv for cell in cells}), "size": saved.shape[1], "names": names}
    chosen = [(name, _told(value)) for name, value in {**how._asdict(), **weights}.items()]
    text = "The same seed gives the same image, to the last bit."
    sections.append(report.section("Make it again", again, report.table(chosen, ["setting", "value"]), text=text))
    return sections


def _told(value: Any) -> str:
    """A setting as a reader takes it."""
    if value is None:
        return "the objective's own"
    return ", ".join(map(_told, value)) or "none" if isinstance(value, list | tuple) else f"{value}"


def _small(clf: Classifier, path: data.Source) -> np.ndarray:
    return clf.with_pixels(size=96, crop=1.0).prepare(data.decode(path))


# ----------------------------------------------------------------------------------------------------------------- main


def settings() -> Settings:
    try:
        tv = tuple(float(word) for word in FLAGS.tv)
    except ValueError:
        raise ValueError(f"--tv={','.join(FLAGS.tv)} is not a list of numbers; write it as 0,200") from None
    if any(not weight >= 0 for weight in tv):
        raise ValueError(
            f"--tv={','.join(FLAGS.tv)} has a negative weight; the variation is a cost, its weight at least 0"
        )
    return Settings(
        parameterisation=FLAGS.parameterisation,
        tv=tv,
        variation=FLAGS.variation,
        l2=FLAGS.l2,
        blur=FLAGS.blur,
        diversity=FLAGS.diversity,
        steps=FLAGS.steps,
        step_size=FLAGS.step_size,
        optimizer=FLAGS.optimizer,
        redirect=FLAGS.redirect,
        size=FLAGS.size,
        count=FLAGS.count,
        names=tuple(name for name in FLAGS.transforms if name),
        frames=FLAGS.frames,
        seed=FLAGS.seed,
    )


def check_size(clf: Classifier, size: int) -> None:
    """Raises where the network does not take images of a side."""
    if size and size < clf.spec.min_size:
        raise ValueError(
            f"{clf.arch} halves its maps until images of {clf.spec.min_size} pixels are one; got --size={size}"
        )
    if size and size != clf.pixels.size and isinstance(clf.head, heads.Flat):
        raise ValueError(f"this classifier's head reads maps of {clf.pixels.size} pixels only; leave --size={size} out")


def main(run: runlog.Run) -> None:
    how = settings()
    if bool(FLAGS.target) == bool(FLAGS.objective):
        raise ValueError("say what the image shall be ideal for, with one of --target=CLASS and --objective=KIND:...")
    clf, variables = common.load_model()
    check_size(clf, how.size)
    size = how.size or clf.pixels.size
    if FLAGS.target:
        wishes = wishes_of.classes_of(clf, FLAGS.target)
    else:
        ends = wishes_of.shapes(clf, variables, size)
        wishes = [wishes_of.wish(clf, ends, word.strip()) for word in FLAGS.objective.split(",")]
    networks = [network(clf, variables)]
    for name in FLAGS.also:
        other, theirs = classifier.load(name)
        for wish in wishes:
            if wish.kind not in CLASSES:
                raise ValueError(f"--also is for classes; {wish.word} is a unit of {clf.arch} alone")
            common.class_table(other).find(wish.word)
        networks.append(network(other.with_dtype(clf.dtype), theirs))
    views(names_of(how, wishes), size)
    photograph = None
    if FLAGS.photograph:
        shown = clf.with_pixels(size=size)
        photograph = pixels.to_images01(common.read_pictures(shown, FLAGS.photograph).images)[0]
    spec = data.get(FLAGS.data) if FLAGS.data else None
    wanted = [name for name in FLAGS.judges if name]
    judges = judges_of(networks, wanted) if any(wish.classes for wish in wishes) else []
    result, sections = ideal(run, networks, wishes, how, judges=judges, photograph=photograph, spec=spec)
    if FLAGS.as_in_lesson:
        result["as_in_lesson"], more = lesson.as_written(run, clf, networks[0].variables, wishes, how.seed)
        sections.insert(1, more)
    lead = f"What {clf.arch} thinks is an ideal {' or '.join(dict.fromkeys(wish.word for wish in wishes))}."
    run.finish(result, report.page("Ideal images", lead, sections, facts=run.facts() | common.weights_facts(clf)))
    for row in result["images"]:
        said = f"value {row['value']:.4g}" if row["probability"] is None else f"probability {row['probability']:.3f}"
        others = f", judges {np.mean(list(row['judges'].values())):.3f}" if row["judges"] else ""
        print(f"{row['target']}: {said}{others}, total variation {row['tv']:.4f} at weight {row['tv_weight']:g}")
        if not how.steps and row["called"]:
            print("  " + ", ".join(f"{top['name']} {top['probability']:.4f}" for top in row["called"]))
    mean = result["judged_by"]["mean"]
    if mean is not None:
        print(f"networks that took no part: {mean:.3f} in the mean")
    print(f"{run.workdir / 'report.html'}")


if __name__ == "__main__":
    common.launch("ideal", main, common.define_model_flags, define_flags)
