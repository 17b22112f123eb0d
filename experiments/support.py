"""Training images that support a prediction: exact leave-one-out of a ridge probe, and neighbors.

  ./launch.sh support --images=FILES --data=folder:DIR
  ./launch.sh support --images=FILES --data=folder:DIR --model=DIR --target=CLASS

The probe is fitted on the features of the network for all images of --data. Its score without one
image is known in closed form, and each run compares 20 of them with a fit without the image.
tl/explain/README.md says how to read the values. Cost: one forward pass per image, none for images
in the feature bank.
"""

from __future__ import annotations

from absl import flags

from tl import cli, data, inference, pages, reporting
from tl.explain import support
from tl.pages import common

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_white_flag()
    text = flags.DEFINE_string
    text("images", None, "Image files, folders and globs, separated by commas.", required=True)
    text("data", None, f"Training images: {', '.join(data.names())}.", required=True)
    text("target", "", "Class whose score is explained. Default: the predicted class.")
    flags.DEFINE_integer("top", 5, "Training images of each kind per image.", lower_bound=1)


def main(run: reporting.Run) -> None:
    data_set = cli.load_data(run, FLAGS.data)
    clf, variables = cli.load_model(run)
    images = inference.read_images(clf, FLAGS.images, white=cli.white(run))
    options = {"target": FLAGS.target, "top": FLAGS.top}
    result = support.support(run, clf, variables, images, data_set, **options)
    page = pages.finish(run, result | {"facts": common.weights_facts(clf)})
    print(*pages.support.lines(result), page, sep="\n")


if __name__ == "__main__":
    cli.launch("support", main, cli.define_model_flags, define_flags)
