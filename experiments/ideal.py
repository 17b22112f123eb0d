"""Ideal images of a class, channel, neuron, direction or layer, or of a photograph's activations.

  ./launch.sh ideal --target=tabby,zebra
  ./launch.sh ideal --target=zebra --tv=0,100,400 --count=4       a grid, one compiled program
  ./launch.sh ideal --objective=channel:stage3:12,neuron:stage4:7 --data=folder:DIR
  ./launch.sh ideal --objective=inversion:stage2,caricature:stage3 --photograph=FILE
  ./launch.sh ideal --model=DIR --target=cat                      a classifier that transfer saved

Expected: sixteen images of EfficientNet-Lite0 with default settings have a probability of at least
0.999 under the network, and a mean probability of 0.688 under three held-out networks
(`ideal_sixteen` in RESULTS.md). Cost: 320 forward and backward passes per image.
tl/visualize/README.md explains how to read the numbers and what fools them.
"""

from __future__ import annotations

import functools

from absl import flags

from tl import cli, inference, pages, pixels, reporting
from tl.ascent import ascend
from tl.pages import common
from tl.pages.ideal import lines
from tl.visualize import grid, ideal, images, objectives, specs

FLAGS = flags.FLAGS
FORMS = ", ".join(map(specs.form, specs.KINDS))
TRANSFORMS = ", ".join(grid.TRANSFORMS)
UNIT = "in units of the objective"
AUTO = "the defaults of the objective"
DEFAULT = "Default: that of the objective."


def define_flags() -> None:
    cli.define_white_flag()
    flags.DEFINE_string(
        "target", "", "Classes, separated by commas: index, WordNet id, name or group."
    )
    flags.DEFINE_string(
        "objective", "", f"Objectives instead of --target, separated by commas: {FORMS}."
    )
    flags.DEFINE_enum(
        "parameterization",
        "fourier",
        list(images.PARAMETERIZATIONS),
        "Parameterization of the image.",
    )
    flags.DEFINE_alias("parameterisation", "parameterization")
    flags.DEFINE_list(
        "tv", [], f"Weights of the total variation, {UNIT}; a list is a grid. {DEFAULT}"
    )
    flags.DEFINE_enum(
        "variation", "anisotropic", list(objectives.VARIATIONS), "Form of the total variation."
    )
    number = functools.partial(flags.DEFINE_float, lower_bound=0.0)
    number("l2", None, f"Weight of the squared distance from gray, {UNIT}. {DEFAULT}")
    number("blur", 0.0, f"Weight of the squared distance from the blurred image, {UNIT}.")
    number("diversity", 0.0, "Weight of the dissimilarity among the images of one target.")
    number("step_size", grid.STEP_SIZE, "Size of the first step; it falls linearly to a tenth.")
    count = functools.partial(flags.DEFINE_integer, lower_bound=0)
    count("steps", grid.STEPS, "Optimization steps; 0 shows the start.")
    count("redirect", 0, "Number of first steps in which gradients pass dead units (lucid: 16).")
    count("size", 0, "Side in pixels. Default: the side of the weights' preprocessing.")
    count("frames", grid.FRAMES, "Frames of the animation; 0 for none.")
    flags.DEFINE_integer("count", 1, "Images per target, from different noise.", lower_bound=1)
    flags.DEFINE_enum("optimizer", "adam", list(ascend.OPTIMIZERS), "Optimizer of the image.")
    flags.DEFINE_list(
        "transforms", ["auto"], f"Random transforms: {TRANSFORMS}; empty for none. auto: {AUTO}."
    )
    flags.DEFINE_string(
        "photograph", "", "The start, or the photograph that inversion and caricature read."
    )
    flags.DEFINE_list("ensemble", [], "Further networks; a class is maximized under the mean.")
    flags.DEFINE_alias("also", "ensemble")
    flags.DEFINE_list(
        "judges", ["auto"], "Held-out networks that evaluate the images. auto: the packaged ones."
    )
    flags.DEFINE_string(
        "data", "", "Data set whose nine top-activating images are shown for each objective."
    )
    flags.DEFINE_bool(
        "as_in_lesson", False, "Moved: the lesson's images are ./launch.sh lesson --steps=ideal."
    )


def settings_of_flags() -> grid.IdealSettings:
    """The flags as settings."""
    try:
        tv = tuple(float(word) for word in FLAGS.tv)
    except ValueError:
        words = ",".join(FLAGS.tv)
        raise ValueError(f"--tv={words} is not a list of numbers; write it as 0,200") from None
    lists = {"tv": tv, "transforms": tuple(name for name in FLAGS.transforms if name)}
    return grid.IdealSettings(**cli.fields_of_flags(grid.IdealSettings) | lists)


def main(run: reporting.Run) -> None:
    if FLAGS.as_in_lesson:
        raise ValueError("`as_in_lesson` has moved: run ./launch.sh lesson --steps=ideal instead")
    if bool(FLAGS.target) == bool(FLAGS.objective):
        raise ValueError(
            "expected exactly one of `target` and `objective`; give --target=CLASS or "
            "--objective=KIND:..."
        )
    settings = settings_of_flags()
    clf, variables = cli.load_model(run)
    grid.check_size(clf, settings.size)
    if FLAGS.target:
        chosen = specs.class_objectives(clf, FLAGS.target)
    else:
        shapes = specs.endpoint_shapes(clf, variables, settings.size or clf.pixels.size)
        words = FLAGS.objective.split(",")
        chosen = [specs.parse_objective(clf, shapes, word.strip()) for word in words]
    size = grid.check(clf, settings, chosen)
    networks = grid.ensemble(grid.network(clf, variables), FLAGS.ensemble, chosen)
    photograph = None
    if FLAGS.photograph:
        resized = clf.with_pixels(size=size)
        read = inference.read_images(resized, FLAGS.photograph, white=cli.white(run))
        photograph = pixels.to_images01(read.images)[0]
    data_set = cli.load_data(run, FLAGS.data, min_classes=1) if FLAGS.data else None
    held_out = []
    if any(spec.classes for spec in chosen):
        held_out = ideal.held_out_networks(networks, [name for name in FLAGS.judges if name])

    n = len(grid.make_cells(chosen, settings))
    print(f"optimizing {n} images of {size} x {size} pixels: {settings.steps} steps", flush=True)
    images = ideal.ideal(
        networks,
        chosen,
        settings,
        held_out=held_out,
        photograph=photograph,
        data_set=data_set,
        attempt=run.attempt,
    )
    result = ideal.save(run, images)
    result["facts"] = common.weights_facts(clf)
    report = pages.finish(run, result)
    if dead := ideal.dead_message(result["images"], settings):
        print(f"ideal: {cli.with_dashes(dead)}")
    print(*lines(result), report, sep="\n")


if __name__ == "__main__":
    cli.launch("ideal", main, cli.define_model_flags, define_flags)
