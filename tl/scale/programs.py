"""The step of each command as a program that can be lowered for devices that are not there.

The functions that make a step are those of the commands. No image is read: a step needs the number
of classes and of images, and their size. `PROGRAMS` has one row per command.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from tl import devices, labels
from tl.attacks import goals, norms, run
from tl.attacks.base import Best
from tl.data import DataSpec
from tl.data.spec import Example
from tl.evaluation.attack_settings import BATCH, AttackSettings, check_settings, make_searches
from tl.evaluation.before import TransferSettings
from tl.evaluation.before import check_settings as check_transfer
from tl.inference import batches, features
from tl.models import Classifier, heads
from tl.paths import nearest
from tl.training import fit, inputs, low_rank
from tl.training.program import FitContext, frozen_prefix, make_program
from tl.training.recipe import apply_label_confidence, empty_set, pixels_for
from tl.training.step import Examples
from tl.types import Array, Variables
from tl.visualize import grid, specs


class Program(NamedTuple):
    """One compiled program of a command.

    Attributes:
      description: the program in a few words.
      lower: number of images, of all devices together -> the lowered program.
      batch: that number for the settings of the command.
      unit: the number is a multiple of it.
      communicates: whether it is one program of all devices. If not, each device runs it for its
        share of the images.
      repeats: number of parts of a batch, computed by a loop that XLA counts once.
    """

    description: str
    lower: Callable[[int], Any]
    batch: int
    unit: int
    communicates: bool = False
    repeats: int = 1


Devices = Sequence[Any]


def synthetic_set(classes: int, images: int) -> DataSpec:
    """A data set of files that do not exist, with the classes in turn.

    Raises:
      ValueError: fewer than one class, or fewer images than classes.
    """
    if classes < 1 or images < classes:
        raise ValueError(
            "`classes` must be at least 1 and `examples` at least as many: got "
            f"{classes} and {images}"
        )
    names = tuple(f"class {i}" for i in range(classes))
    examples = tuple(Example(Path(f"{i}.png"), i % classes) for i in range(images))
    return DataSpec("no data", examples, names, "none", "none", whole=False)


def transfer(
    clf: Classifier,
    variables: Variables,
    settings: TransferSettings,
    among: Devices,
    spec: DataSpec,
) -> Program:
    """The train step of the last phase with gradient steps; without one, the forward pass.

    Args:
      clf, variables: a pretrained network; its head is replaced.
      settings: how to train.
      among: the devices.
      spec: the data set; its images are not read.

    Raises:
      ValueError: settings that do not fit the network, as in `transfer`.
    """
    recipe, names = settings.recipe, spec.classes
    if recipe.penalty:
        raise ValueError(
            "a plan does not include the network or the parameters of a penalty: got "
            f"`penalty={recipe.penalty}`, expected none; use `recipe=plain`, which is the same "
            "training without it"
        )
    clf = pixels_for(clf, spec, settings.crop, settings.image_size)
    table = labels.from_names(names, name=spec.name, groups=labels.known_groups(names))
    clf = clf.with_head(heads.maker(settings.head, clf.spec)(len(names)), table)
    check_transfer(clf, variables, settings)
    start = clf.reset_head(variables, key=jax.random.key(settings.first_seed))
    phases = list(enumerate(fit.check_recipe(clf, start["params"], recipe)))
    training = [(i, phase, part) for i, (phase, part) in phases if phase.name != "probe"]
    if not training:
        return _forward(clf, start, among, recipe.batch_size, "features")
    number, phase, partition = training[-1]
    parts = recipe.microbatches or 1
    train_set = apply_label_confidence(spec, recipe)
    quiet = lambda line: None
    context = FitContext(
        clf, train_set, empty_set(spec), recipe, settings.first_seed, None, quiet, quiet
    )
    prefix = frozen_prefix(clf, recipe, phase, partition)
    example = inputs.ImageInputs(clf, train_set, context.augment).example_input()
    cached = _cached_input(context, start, prefix)
    step = make_program(
        context, number, phase, partition, start["batch_stats"], prefix, cached=cached is not None
    )
    params = low_rank.extend(start["params"], phase.rank)
    state = jax.eval_shape(step.init, params, start["batch_stats"])
    mesh = devices.mesh(among)
    rows = NamedSharding(mesh, PartitionSpec(devices.AXIS))
    divided = devices.shardings(state, mesh, devices.FSDP if recipe.fsdp else ())
    placed_state = jax.tree.map(_placed, state, divided)
    certain = inputs.confidence(train_set) is None

    def lower(batch: int) -> Any:
        one = example if cached is None else cached
        examples = Examples(
            _array(batch, *one.shape[1:], dtype=one.dtype),
            _array(batch, dtype=jnp.int32),
            _array(batch, dtype=jnp.bool_),
            None if certain else _array(batch),
        )
        arguments = placed_state, _placed(examples, rows), not step.masked
        return step.step(parts).lower(*arguments)  # type: ignore[attr-defined]

    source = "images" if cached is None else f"the cached output of {prefix}"
    return Program(
        f"train step of the phase {phase.name} (from {source})",
        lower,
        recipe.batch_size,
        len(among) * parts,
        communicates=True,
        repeats=parts,
    )


def _cached_input(context: FitContext, variables: Variables, prefix: str) -> Any:
    """The shape of a cached output [1 ...]; None if the phase reads images."""
    recipe, clf, side = context.recipe, context.clf, context.clf.pixels.size
    views = len(context.augment.views or ())
    if not prefix or not views or recipe.adversary():
        return None
    image = _array(1, side, side, len(clf.pixels.mean))
    output = jax.eval_shape(clf.apply, variables, image)
    shape = output.features if prefix == "features" else output.endpoints[prefix]
    needed = len(context.train_set.examples) * views * shape.size * shape.dtype.itemsize
    return shape if needed <= recipe.bank_gib * 2**30 else None


def attack(
    clf: Classifier,
    variables: Variables,
    settings: AttackSettings,
    among: Devices,
    target: str = "",
) -> Program:
    """The first search of an attack: one step of the images that a device attacks at a time.

    Raises:
      ValueError: settings that do not fit the network, as in `attack`.
    """
    check_settings(clf, settings, target)
    search = make_searches(settings, target)[0]
    norm, k = norms.get(settings.norm), len(clf.classes or ())
    goal = goals.TARGETED if target else goals.UNTARGETED
    folded, side = clf.fold_batch_norm(variables), clf.pixels.size

    def lower(batch: int) -> Any:
        n = _share(batch, among)
        slots = min(devices.images_at_once(n), n)
        program = run._compile_search(
            search.init, search.step, clf.logits, norm, goal, settings.eight_bit, slots
        )
        images, yes = _array(n, side, side, len(clf.pixels.mean)), _array(n, dtype=jnp.bool_)
        values, logits = _array(n), _array(n, k)
        tasks = run.TaskRows(
            keys=jax.eval_shape(lambda: jax.random.split(jax.random.key(0), n)),
            center=images,
            class_mask=_array(n, k, dtype=jnp.bool_),
            eps=values,
            step_size=values,
            steps=_array(n, dtype=jnp.int32),
            early_stop=yes,
            clean=logits,
        )
        arguments = folded, (tasks, Best(images, values, yes, yes), yes)
        return jax.jit(program).lower(*_placed(arguments, SingleDeviceSharding(among[0])))

    return Program(f"search {settings.attack}", lower, _whole(BATCH, among), len(among))


def ideal(
    clf: Classifier, variables: Variables, settings: grid.IdealSettings, among: Devices, words: str
) -> Program:
    """The optimization of ideal images of classes, with all images of a device at once.

    Args:
      clf, variables: the network.
      settings: how the images are optimized.
      among: the devices.
      words: classes, separated by commas; "" is the first one.
    """
    chosen = specs.class_objectives(clf, words or "0")
    grid.check(clf, settings, chosen)
    network = grid.network(clf, variables)
    cells = grid.make_cells(chosen, settings)

    def lower(batch: int) -> Any:
        n = _share(batch, among)
        several = (cells * n)[:n]
        if settings.diversity:  # images of one objective are optimized together
            several = cells[: settings.count]
        optimize = grid.make_ascent([network], several, settings)
        (networks,) = _placed(((network.variables,),), SingleDeviceSharding(among[0]))
        return jax.jit(optimize).lower(networks)

    steps = f"{settings.steps} steps of optimization"
    return Program(steps, lower, _whole(len(cells), among), len(among))


def predict(clf: Classifier, variables: Variables, among: Devices) -> Program:
    """The forward pass of `predict` and `evaluate`."""
    return _forward(clf, variables, among, batches.BATCH_SIZE, "")


def extract(
    clf: Classifier, variables: Variables, among: Devices, batch_size: int, endpoint: str
) -> Program:
    """The forward pass of `features`."""
    features.widths(clf, variables, endpoint)
    return _forward(clf, variables, among, batch_size, endpoint)


def _forward(
    clf: Classifier, variables: Variables, among: Devices, size: int, endpoint: str
) -> Program:
    """A forward pass to the logits, or to an endpoint; `size` images on each device."""
    side = clf.pixels.size
    function = features.pooled(clf, endpoint) if endpoint else batches.forward(clf)
    variables = clf.fold_batch_norm(variables) if endpoint else variables

    def lower(batch: int) -> Any:
        images = _array(_share(batch, among), side, side, len(clf.pixels.mean))
        place = SingleDeviceSharding(among[0])
        return function.lower(*_placed((variables, images), place))  # type: ignore[attr-defined]

    description = f"forward pass to {endpoint or 'the logits'}"
    return Program(description, lower, size * len(among), len(among))


PROGRAMS: dict[str, Callable[..., Program]] = {
    "attack": attack,
    "evaluate": predict,
    "features": extract,
    "ideal": ideal,
    "predict": predict,
    "transfer": transfer,
}
"""Command -> the function that makes its program from a network, settings and devices."""


def check_command(name: str) -> None:
    """Checks that a command has a step.

    Raises:
      ValueError: it has none; the message has the commands that do.
    """
    if name not in PROGRAMS:
        raise ValueError(
            f"unexpected argument {name!r}: plan needs a command with a step, expected one of "
            f"{', '.join(PROGRAMS)}; nearest: {nearest(name, PROGRAMS)}"
        )


def _array(*shape: int, dtype: Any = jnp.float32) -> Any:
    """The shape and the number type of an array."""
    return jax.ShapeDtypeStruct(shape, dtype)


def _placed(tree: Any, sharding: Any) -> Any:
    """The shapes of arrays, placed on devices."""

    def place(leaf: Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, tree)


def _whole(batch: int, among: Devices) -> int:
    """At least `batch` images, the same number on each device."""
    return _share(batch, among) * len(among)


def _share(batch: int, among: Devices) -> int:
    """The images of the device with the most."""
    return -(-batch // len(among))
