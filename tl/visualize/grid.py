"""A grid of ideal images, optimized by one compiled program: objective x variation weight x noise.

It returns images and scores. `tl.visualize.ideal` evaluates the images and writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tl import devices, inference, models, reporting
from tl.ascent import transforms
from tl.models import Classifier, heads
from tl.paths import nearest
from tl.types import Variables
from tl.visualize import images, render, specs
from tl.visualize.specs import KINDS, ObjectiveSpec

# Default number of steps (chosen by eye).
STEPS = 320
# lucid's step size for Adam.
STEP_SIZE = 0.05
# Frames of the animation (chosen, not tuned).
FRAMES = 32

TRANSFORMS: dict[str, Callable[[int], transforms.Transform]] = {
    # 16 of 224 pixels, the scale of lucid's jitter
    "roll": lambda size: transforms.roll(size // 14),
    "zoom": lambda size: transforms.zoom(0.4, 1.3),
    "lucid": lambda size: transforms.lucid(),
    # lucid's 12 of 224 pixels
    "pad": lambda size: transforms.pad(size // 18),
    # 8 of 224 pixels
    "jitter": lambda size: transforms.jitter(size // 28),
    "scale": lambda size: transforms.scale((0.9, 0.95, 1.0, 1.05, 1.1)),
    "rotate": lambda size: transforms.rotate((-10.0, -5.0, 0.0, 5.0, 10.0)),
    "flip": lambda size: transforms.flip(),
    "crop": lambda size: transforms.crop(0.5, 1.0),
    "noise": lambda size: transforms.noise(0.0, 0.12),
    "resized": lambda size: transforms.resized(0.5, 1.0),
    "jpeg": lambda size: transforms.jpeg(50, 95),
}
"""Name -> function from the side in pixels to the transform, so that lengths are shares of it."""


class IdealSettings(NamedTuple):
    """How ideal images are optimized.

    Attributes:
      parameterization: a row of `images.PARAMETERIZATIONS`.
      tv: weights of the variation, one grid axis; () is the objective's default.
      variation: a row of `objectives.VARIATIONS`.
      l2: weight of `objectives.energy`; None is the objective's default.
      blur: weight of `objectives.roughness`.
      diversity: weight of `objectives.diversity` among the images of one objective.
      steps: steps of the optimizer; 0 returns the start.
      step_size: size of the first step; it falls linearly to a tenth.
      optimizer: a row of `ascend.OPTIMIZERS`.
      redirect: number of first steps in which gradients pass dead units.
      size: side in pixels; 0 is the side of the network's own preprocessing.
      count: images per objective, from different noise.
      transforms: rows of `TRANSFORMS`; ("auto",) is the objective's default.
      frames: images of the optimization path to keep; 0 keeps none.
      seed: seed of the noise and the transforms.
    """

    parameterization: str = "fourier"
    tv: tuple[float, ...] = ()
    variation: str = "anisotropic"
    l2: float | None = None
    blur: float = 0.0
    diversity: float = 0.0
    steps: int = STEPS
    step_size: float = STEP_SIZE
    optimizer: str = "adam"
    redirect: int = 0
    size: int = 0
    count: int = 1
    transforms: tuple[str, ...] = ("auto",)
    frames: int = FRAMES
    seed: int = 0


class Network(NamedTuple):
    """A network on the device.

    Attributes:
      clf: the classifier.
      variables: its variables with BatchNorm folded into the convolutions, on the device.
      loaded: its variables as loaded, which identify its feature banks.
    """

    clf: Classifier
    variables: Variables
    loaded: Variables


class Cell(NamedTuple):
    """One image of the grid: its objective, its variation weight, and the number of its noise."""

    spec: ObjectiveSpec
    tv: float
    replicate: int


def network(clf: Classifier, variables: Variables) -> Network:
    """Moves a network to the device with BatchNorm folded."""
    return Network(clf, jax.device_put(clf.fold_batch_norm(variables)), variables)


def ensemble(first: Network, names: Sequence[str], specs: Sequence[ObjectiveSpec]) -> list[Network]:
    """The first network and further ones, under all of which a class is maximized.

    Args:
      first: the network whose units and preprocessing are used.
      names: further networks, as `tl.load` takes them.
      specs: the objectives.

    Raises:
      ValueError: if an objective is not of a class, or if a further network does not have the
        class.
    """
    networks = [first]
    for name in names:
        clf, variables = models.load(name)
        for spec in specs:
            if not KINDS[spec.kind].target.ensemble:
                raise ValueError(
                    f"`ensemble` is for classes: got {spec.word}, a unit of {first.clf.arch} alone"
                )
            inference.class_table(clf).find(spec.word)
        networks.append(network(clf.with_dtype(first.clf.dtype), variables))
    return networks


def make_cells(specs: Sequence[ObjectiveSpec], settings: IdealSettings) -> list[Cell]:
    """Objective x variation weight x noise; images of one objective and weight are neighbors."""
    return [
        Cell(spec, tv, i)
        for spec in specs
        for tv in settings.tv or (KINDS[spec.kind].tv,)
        for i in range(settings.count)
    ]


def transform_names(settings: IdealSettings, chosen: Sequence[ObjectiveSpec]) -> tuple[str, ...]:
    """The transforms of the settings, or the defaults of the objectives."""
    if settings.transforms == ("auto",):
        return specs.default_transforms(chosen)
    return settings.transforms


def make_transform(names: Sequence[str], size: int) -> transforms.Transform:
    """The composition of named transforms, resized to `size` where they change it.

    Raises:
      ValueError: if a name is unknown. Names the nearest.
    """
    for name in names:
        if name not in TRANSFORMS:
            raise ValueError(f"unknown transform {name!r}; nearest: {nearest(name, TRANSFORMS)}")
    chain = transforms.compose(*(TRANSFORMS[name](size) for name in names))
    key = jax.eval_shape(lambda: jax.random.key(0))
    view = jax.eval_shape(chain, key, jnp.zeros((size, size, 3)))
    return chain if view.shape[0] == size else transforms.compose(chain, transforms.resize(size))


def check(clf: Classifier, settings: IdealSettings, chosen: Sequence[ObjectiveSpec]) -> int:
    """Checks the settings before any image is computed, and returns the side in pixels.

    Raises:
      ValueError: if the network does not accept images of this size, a weight of the variation is
        negative, or the transforms are unknown or differ between the objectives.
    """
    check_size(clf, settings.size)
    size = settings.size or clf.pixels.size
    if any(not weight >= 0 for weight in settings.tv):
        raise ValueError(
            f"`tv` has a negative weight: got {', '.join(f'{tv:g}' for tv in settings.tv)}, "
            "expected weights of at least 0, because the variation is a cost"
        )
    make_transform(transform_names(settings, chosen), size)
    return size


def check_size(clf: Classifier, size: int) -> None:
    """Raises ValueError if the network does not accept images of this side; 0 is its own side."""
    if size and size < clf.spec.min_size:
        raise ValueError(
            f"`size` is too small for {clf.arch}: got {size}, expected at least "
            f"{clf.spec.min_size} pixels per side"
        )
    if size and size != clf.pixels.size and isinstance(clf.head, heads.Flat):
        raise ValueError(
            f"this classifier's head reads images of {clf.pixels.size} pixels only: got `size` "
            f"{size}; leave `size` out"
        )


def make_ascent(
    networks: Sequence[Network],
    cells: Sequence[Cell],
    settings: IdealSettings,
    photograph: np.ndarray | None = None,
) -> Callable[..., render.Ideal]:
    """A function that optimizes a whole grid by one compiled program; it compiles once.

    The function takes the networks' variables, by default their own, so that other weights reuse
    the compiled program.

    Args:
      networks: an ensemble. Objectives of classes are the mean over all of them, others read the
        first.
      cells: the images.
      settings: how they are optimized.
      photograph: f32[s s 3] in [0, 1], the start. Objectives that read a photograph's activations
        read this one, and the whole grid then starts from noise.

    Raises:
      ValueError: if an objective reads a photograph and none is given.
    """
    first, size = networks[0], settings.size or networks[0].clf.pixels.size
    chosen = [cell.spec for cell in cells]
    shapes = specs.endpoint_shapes(first.clf, first.variables, size)
    endpoints = specs.photograph_endpoints(chosen)
    if endpoints and photograph is None:
        raise ValueError(
            "inversion, caricature and similarity read the activations of a photograph; name one "
            "with `photograph`"
        )
    photo_maps = (
        {}
        if photograph is None
        else specs.photograph_maps(first.clf, first.variables, photograph, endpoints)
    )
    objective, targets = specs.program(
        [net.clf for net in networks], chosen, shapes, photo_maps, diversity=settings.diversity
    )
    one_by_one = 1 if devices.platform() == "cpu" else 0
    ascend = render.make(
        lambda variables, images01: tuple(
            net.clf.apply(own_variables, images01)
            for net, own_variables in zip(networks, variables, strict=True)
        ),
        images.PARAMETERIZATIONS[settings.parameterization](size),
        objective,
        transform=make_transform(transform_names(settings, chosen), size),
        steps=settings.steps,
        optimizer=settings.optimizer,
        variation=settings.variation,
        redirect=settings.redirect,
        frames=settings.frames,
        together=settings.count if settings.diversity else one_by_one,
        progress=lambda groups: (
            reporting.progress(groups, label="images") if len(groups) > 1 else groups
        ),
    )
    key = jax.random.key(settings.seed)
    noise = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(settings.count))
    keys = noise[jnp.array([cell.replicate for cell in cells])]
    tv = np.array([cell.tv for cell in cells], np.float32)
    default_l2 = [KINDS[spec.kind].l2 for spec in chosen]
    l2 = np.array(default_l2 if settings.l2 is None else [settings.l2] * len(cells), np.float32)
    starts = photograph is not None and not endpoints
    start = np.stack([photograph] * len(cells)) if starts and photograph is not None else None
    variables = tuple(net.variables for net in networks)
    return lambda variables=variables: ascend(
        variables,
        keys,
        targets,
        tv=tv,
        l2=l2,
        blur=settings.blur,
        step_size=settings.step_size,
        start=start,
    )
