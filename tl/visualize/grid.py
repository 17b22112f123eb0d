"""A grid of ideal images: objective x weight of the variation x noise, optimized in one compiled call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import data, inference, metrics, models, pixels, reporting
from tl.ascent import transforms
from tl.models import Classifier, heads
from tl.paths import nearest
from tl.types import Variables
from tl.visualize import exemplars, images, judge, objectives, render, specs
from tl.visualize.specs import KINDS, OF_A_PHOTOGRAPH, ObjectiveSpec

STEPS = 320  # chosen by eye
STEP = 0.05  # lucid's Adam step
FRAMES = 32  # of the animation
JUDGES = (
    "efficientnet_lite1",
    "efficientnet_lite2",
    "squeezenet1_1",
    "efficientnet_lite0",
)  # packaged, with a classifier

TRANSFORMS: dict[
    str, Callable[[int], transforms.Transform]
] = {  # size -> transform; lengths are shares of the image
    "roll": lambda size: transforms.roll(
        size // 14
    ),  # 16 of 224 pixels, the scale of lucid's jitter
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


class Settings(NamedTuple):
    """How images are climbed; `tv` (), `l2` None and `names` auto are the objective's own defaults."""

    parameterization: str = "fourier"
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

    objective_spec: ObjectiveSpec
    tv: float
    replicate: int


def network(clf: Classifier, variables: Variables) -> Network:
    return Network(clf, jax.device_put(clf.fold_batch_norm(variables)), variables)


def grid(objective_specs: Sequence[ObjectiveSpec], how: Settings) -> list[Cell]:
    """Objective x weight of the variation x noise. Images of one objective and weight stand together."""
    weights = lambda objective_spec: how.tv or (KINDS[objective_spec.kind].tv,)
    return [
        Cell(objective_spec, tv, i)
        for objective_spec in objective_specs
        for tv in weights(objective_spec)
        for i in range(how.count)
    ]


def names_of(how: Settings, objective_specs: Sequence[ObjectiveSpec]) -> tuple[str, ...]:
    """The transforms that --transforms names, or those of the objectives."""
    return specs.default_views(objective_specs) if how.names == ("auto",) else how.names


def views(names: Sequence[str], size: int) -> transforms.Transform:
    """The transforms of these names, one after another, and back to the network's size where they change it."""
    for name in names:
        if name not in TRANSFORMS:
            raise ValueError(f"unknown transform {name!r}; nearest: {nearest(name, TRANSFORMS)}")
    chain = transforms.compose(*(TRANSFORMS[name](size) for name in names))
    shown = jax.eval_shape(
        chain, jax.eval_shape(lambda: jax.random.key(0)), jnp.zeros((size, size, 3))
    )
    return chain if shown.shape[0] == size else transforms.compose(chain, transforms.resize(size))


def climber(
    networks: Sequence[Network],
    cells: Sequence[Cell],
    how: Settings,
    photograph: np.ndarray | None = None,
) -> Callable[[], render.Ideal]:
    """The climb of a whole grid as one compiled call; a second call does not compile again.

    Args:
      networks: the first is the one whose units are meant; a class is climbed under all of them.
      cells: the images.
      photograph: f32[s s 3] to begin with, and what inversions and caricatures are about (these begin with noise).
    """
    first, size = networks[0], how.size or networks[0].clf.pixels.size
    chosen = [cell.objective_spec for cell in cells]
    ends = specs.shapes(first.clf, first.variables, size)
    about = sorted(
        {
            objective_spec.endpoint
            for objective_spec in chosen
            if objective_spec.kind in OF_A_PHOTOGRAPH
        }
    )
    if about and photograph is None:
        raise ValueError(
            "inversion and caricature are about a photograph; name one with --photograph=FILE"
        )
    wanted = (
        specs.wanted_maps(first.clf, first.variables, photograph, about)
        if photograph is not None
        else {}
    )
    objective, targets = specs.program(
        [each.clf for each in networks], chosen, ends, wanted, diversity=how.diversity
    )
    together = how.count if how.diversity else 1 if jax.default_backend() == "cpu" else 0
    climb = render.make(
        lambda variables, images01: tuple(
            each.clf.apply(own, images01) for each, own in zip(networks, variables, strict=True)
        ),
        images.PARAMETERIZATIONS[how.parameterization](size),
        objective,
        transform=views(names_of(how, chosen), size),
        steps=how.steps,
        optimizer=how.optimizer,
        variation=how.variation,
        redirect=how.redirect,
        frames=how.frames,
        together=together,
        progress=lambda groups: (
            reporting.progress(groups, label="images") if len(groups) > 1 else groups
        ),
    )
    noise = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(how.seed), jnp.arange(how.count))
    keys = noise[jnp.array([cell.replicate for cell in cells])]
    tv = np.array([cell.tv for cell in cells], np.float32)
    l2 = np.array(
        [KINDS[objective_spec.kind].l2 if how.l2 is None else how.l2 for objective_spec in chosen],
        np.float32,
    )
    begins = photograph is not None and not about
    start = np.stack([photograph] * len(cells)) if begins and photograph is not None else None
    variables = tuple(each.variables for each in networks)
    return lambda: climb(
        variables, keys, targets, tv=tv, l2=l2, blur=how.blur, step_size=how.step_size, start=start
    )


def values(
    networks: Sequence[Network], cells: Sequence[Cell], saved: np.ndarray, photograph: Any
) -> np.ndarray:
    """f32[b], each objective without costs and views, on pictures uint8[b s s 3] as read back."""
    chosen, ends = (
        [cell.objective_spec for cell in cells],
        specs.shapes(*networks[0][:2], saved.shape[1]),
    )
    about = sorted(
        {
            objective_spec.endpoint
            for objective_spec in chosen
            if objective_spec.kind in OF_A_PHOTOGRAPH
        }
    )
    wanted = specs.wanted_maps(*networks[0][:2], photograph, about)
    objective, targets = specs.program([each.clf for each in networks], chosen, ends, wanted)

    @jax.jit
    def measure(variables: Any, targets: Any, images01: jax.Array) -> jax.Array:
        def one(row: Any) -> jax.Array:
            target, image = jax.tree.map(lambda leaf: leaf[None], row)
            seen: Any = tuple(
                each.clf.apply(own, image) for each, own in zip(networks, variables, strict=True)
            )
            return objective(target)(seen, image)[0]

        return jax.lax.map(one, (targets, images01))

    variables = tuple(each.variables for each in networks)
    return np.asarray(measure(variables, targets, pixels.to_images01(saved)))


def held_out_networks(networks: Sequence[Network], names: Sequence[str]) -> list[Network]:
    """The networks that took no part; with "auto" those of `JUDGES` whose weights are at hand."""
    auto, found = list(names) == ["auto"], []
    part = {each.clf.arch for each in networks}
    for name in JUDGES if auto else names:
        try:
            clf, variables = models.load(name)
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


def held_out_probabilities(
    judges: Sequence[Network], cells: Sequence[Cell], saved: np.ndarray
) -> list[dict[str, float]]:
    """Of each picture what each judge gives its class: architecture -> probability; nothing for a class it does not know."""
    rows: list[dict[str, float]] = [{} for _ in cells]
    for each in judges:
        whole = each.clf.with_pixels(
            crop=1.0
        )  # a judge sees the picture to its edges, at its own size
        probabilities = None
        for i, cell in enumerate(cells):
            try:
                classes = (
                    inference.class_table(each.clf).find(cell.objective_spec.word)
                    if cell.objective_spec.classes
                    else ()
                )
            except ValueError:
                continue
            if classes:
                if probabilities is None:
                    shown = np.stack([whole.prepare(image) for image in saved])
                    probabilities = metrics.softmax(
                        inference.predict_logits(each.clf, each.variables, shown)
                    )
                rows[i][each.clf.arch] = float(probabilities[i, list(classes)].sum())
    return rows


def top_activating(
    first: Network, objective_specs: Sequence[ObjectiveSpec], spec: data.DataSpec
) -> dict[ObjectiveSpec, exemplars.Top]:
    """Of each objective that has a unit or class, the nine pictures of a data set that activate it most."""
    paths = [example.path for example in spec.examples]
    found: dict[ObjectiveSpec, exemplars.Top] = {}
    table_size = len(first.clf.classes) if first.clf.classes else 0
    for objective_spec in objective_specs:
        if objective_spec.classes:
            members = np.isin(np.arange(table_size), objective_spec.classes)[None]
            (found[objective_spec],) = exemplars.top_classes(
                first.clf, first.loaded, paths, members
            )
        elif objective_spec.kind in ("channel", "neuron"):
            (found[objective_spec],) = exemplars.top_pictures(
                first.clf, first.loaded, paths, objective_spec.endpoint, [objective_spec.index]
            )
    return found


# ----------------------------------------------------------------------------------------------------------------- page


def photo_statistics(clf: Classifier, size: int) -> dict[str, Any]:
    """What photographs have: total variation and slope of the spectrum, mean and spread over the packaged ones."""
    try:
        paths = [photo.path for photo in data.photographs()]
    except ValueError:
        return {}
    shown = clf.with_pixels(size=size)
    x = pixels.to_images01(np.stack([shown.prepare(data.decode(path)) for path in paths]))
    slopes, tv = judge.spectral_slope(x), np.asarray(objectives.total_variation(jnp.asarray(x)))
    spread = lambda v: {"mean": float(v.mean()), "low": float(v.min()), "high": float(v.max())}
    return {"n": len(paths), "spectral_slope": spread(slopes), "tv": spread(tv)}


def judged_by(rows: Sequence[dict[str, Any]], networks: Sequence[Network]) -> dict[str, Any]:
    """Whose probabilities these are, and the means."""
    archs = list(dict.fromkeys(arch for row in rows for arch in row["judges"]))
    mean = lambda numbers: float(np.mean(numbers)) if len(numbers) else None
    by = {
        arch: mean([row["judges"][arch] for row in rows if arch in row["judges"]]) for arch in archs
    }
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
        groups.setdefault((cell.objective_spec.word, cell.tv), []).append(i)
    return [
        {
            "target": word,
            "tv_weight": tv,
            "diversity": judge.diversity(seen[rows]),
            "by": each.clf.arch,
        }
        for (word, tv), rows in groups.items()
    ]


def check_size(clf: Classifier, size: int) -> None:
    """Raises where the network does not take images of a side."""
    if size and size < clf.spec.min_size:
        raise ValueError(
            f"{clf.arch} halves its maps until images of {clf.spec.min_size} pixels are one; got --size={size}"
        )
    if size and size != clf.pixels.size and isinstance(clf.head, heads.Flat):
        raise ValueError(
            f"this classifier's head reads maps of {clf.pixels.size} pixels only; leave --size={size} out"
        )
