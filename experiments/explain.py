"""Explains predictions: which pixels raise or lower a class, and whether the maps deserve belief.

  ./launch.sh explain --images=FILES
  ./launch.sh explain --images=FILES --method=ig,gradcam,rise --target="tabby vs tiger cat"
  ./launch.sh explain --images=FILES --method=gradcam,layercam --endpoint=stage4 --model=DIR
  ./launch.sh explain --images=FILES --method=ig,gradcam --target=channel:stage3:12
  ./launch.sh explain --images=FILES --beside=attacked

Each target is explained in each image; the default is the predicted class. tl/explain/README.md has
the methods and says how to read a map. Every report tests the maps, with a random order of the
pixels and an edge map as controls that must fail; a method that fails a test says so in its title.
--labels=folder explains only the images that the network classifies correctly.

Expected: on 100 ImageNet images and EfficientNet-Lite0, Grad-CAM has an insertion area of 0.514
(0.471 to 0.558), and the edge map one of 0.459 (`explain_imagenet` in RESULTS.md).

Cost: passes per image as in the table of methods, two forward passes per method, image and step,
100 per image, and nine maps per stage for the tests with random weights (`randomized` images).
"""

from __future__ import annotations

import functools

from absl import flags

from tl import cli, inference, pages, reporting
from tl.explain import METHODS, baselines, report
from tl.explain.checks import CHECKS
from tl.pages import common, explain

FLAGS = flags.FLAGS
DEFAULT = report.ExplainSettings()


def define_flags() -> None:
    cli.define_image_flags(labels="all images are explained")
    text, number = flags.DEFINE_string, functools.partial(flags.DEFINE_integer, lower_bound=0)
    flags.DEFINE_list("method", list(DEFAULT.method), f"Methods: {', '.join(METHODS)}.")
    flags.DEFINE_list(
        "target", [], "Classes, groups, 'A vs B', or objectives of ideal. Default: predicted class."
    )
    text("photograph", "", "The image that an objective such as similarity:features compares with.")
    text("endpoint", "", "Stage of the methods that read one. Default: the last.")
    text("baseline", DEFAULT.baseline, f"Baselines joined by +: {', '.join(baselines.BASELINES)}.")
    number("nodes", DEFAULT.nodes, "Nodes of ig per baseline.")
    number("draws", DEFAULT.draws, "Draws of expected_gradients, smoothgrad(_sq) and vargrad.")
    flags.DEFINE_float("noise", DEFAULT.noise, "Their noise, as a share of the image's range.")
    flags.DEFINE_float("lowpass", 0.0, "Standard deviation of a filter of gradients, in pixels.")
    number("masks", DEFAULT.masks, "Masks of rise (the paper: 4,000 to 8,000) and kernel_shap.")
    number("grid", DEFAULT.grid, "Cells per side of a mask of rise and kernel_shap.")
    number("superpixels", 0, "Superpixels of kernel_shap, about as many; 0: cells of the grid.")
    number("patch", 0, "Side of the patch of occlusion in pixels. Default: an eighth of the image.")
    number("stride", 0, "Step of the patch in pixels. Default: half of the patch.")
    flags.DEFINE_bool("relu", True, "Set negative values of gradcam to 0; --norelu shows the sign.")
    number("slots", 0, "Passes that a device computes together. Default: that of the device.")
    number("steps", DEFAULT.steps, "Steps of insertion and deletion.", lower_bound=1)
    number(
        "randomized",
        DEFAULT.randomized,
        "Images of the tests that compute maps again.",
        lower_bound=1,
    )
    flags.DEFINE_list("tests", [], f"Tests of the maps. Default: all of {', '.join(CHECKS)}.")
    number("mosaics", 0, "Mosaics of the test that explains one of four photographs; 0: no test.")
    number("marks", 0, "Images of the test with a planted mark; 0: no test.")
    text(
        "beside", "", "Explained next to it: attacked (within --eps), or a network, NAME or folder."
    )
    text("eps", "2/255", "Radius of the attack of --beside=attacked in [0, 1] pixel units.")
    text("map_eps", "0", "Radius of an attack on the maps in [0, 1] pixel units; 0: none.")
    number("limit", 0, "Largest number of images to explain; 0 is all.")


def main(run: reporting.Run) -> None:
    values = cli.fields_of_flags(report.ExplainSettings)
    values |= {name: cli.fraction(values[name], name) for name in ("eps", "map_eps")}
    settings = report.ExplainSettings(**values)
    report.methods(settings)  # raises before the weights are read
    clf, variables = cli.load_model(run)
    images = inference.read_images(clf, FLAGS.images, white=cli.white(run))
    named = FLAGS.labels == "folder"
    labels = inference.folder_labels(clf, images.paths, run.remark) if named else None
    result = report.explain_images(run, clf, variables, images, settings, labels)
    page = pages.finish(run, result | {"facts": common.weights_facts(clf)})
    print(*explain.lines(result), page, sep="\n")


if __name__ == "__main__":
    cli.launch("explain", main, cli.define_model_flags, define_flags)
