"""Feature maps of images, stage by stage, and feature banks of a data set.

  ./launch.sh features --show=IMAGE --arch=vgg16
  ./launch.sh features --data=folder:DIR
  ./launch.sh features --data=folder:DIR --endpoint=stage3,stage4 --show=IMAGE

With `--show` alone no data set is read. The page then shows, for each endpoint, the strongest
channels of the image's map and the whole map. With `--data` as well it shows the top-activating
images of the data set next to each channel. `result.json` has n, dim, bank and reused of the last
endpoint, and of each endpoint under "banks".

Expected: the map of VGG-16's last stage has the shape (7, 7, 512). Cost: one forward pass per image
and endpoint that is not yet in the bank; nothing is computed twice.
"""

from __future__ import annotations

import functools
from typing import Any

from absl import flags

from tl import cli, data, inference, pages, reporting
from tl.pages import common
from tl.visualize import activations

FLAGS = flags.FLAGS
# Images per page; each adds 2 to 3 MB with every stage of VGG-16. Chosen, not tuned.
MOST = 16


def define_flags() -> None:
    cli.define_white_flag()
    names = ", ".join(data.names())
    flags.DEFINE_string("data", "", f"Data set whose feature bank is filled: {names}.")
    words = (
        "Endpoints, averaged over their maps in a bank, or features (the input of a head). "
        "Default: features; with --show every stage."
    )
    flags.DEFINE_list("endpoint", [], words)
    flags.DEFINE_string("show", "", "Images whose feature maps are shown, separated by commas.")
    flags.DEFINE_integer(
        "topk",
        48,
        "Channels shown of each map, those with the highest mean activation.",
        lower_bound=1,
    )
    flags.DEFINE_integer("batch_size", 16, "Images per forward pass.", lower_bound=1)


def main(run: reporting.Run) -> None:
    if not (FLAGS.data or FLAGS.show):
        raise ValueError(
            "there is nothing to compute; give --show=IMAGE for feature maps, --data=folder:DIR "
            "for a bank, or both"
        )
    clf, variables = cli.load_model(run)
    names = FLAGS.endpoint or ([] if FLAGS.show else ["features"])
    names = activations.endpoints(clf, variables, names)
    if FLAGS.show and (n := len(data.find_images(FLAGS.show)[0])) > MOST:
        raise ValueError(f"--show names {n} images, expected at most {MOST} so that the page loads")
    images = inference.read_images(clf, FLAGS.show, white=cli.white(run)) if FLAGS.show else None
    data_set = cli.load_data(run, FLAGS.data, min_classes=1) if FLAGS.data else None
    facts = common.weights_facts(clf)
    result: dict[str, Any] = {"arch": clf.arch, "endpoints": names, "skipped": [], "facts": facts}
    if data_set:
        size = FLAGS.batch_size
        result |= activations.fill_banks(clf, variables, data_set, names, batch_size=size)
        result["data"] = data_set.name
    if images:
        options = {"topk": FLAGS.topk, "data_set": data_set, "batch_size": FLAGS.batch_size}
        show = functools.partial(activations.show, run, clf, variables, images, names, **options)
        result |= run.attempt("shown", show, {}) if data_set else show()
        result["skipped"] = result["skipped"] + images.skipped
    print(*pages.activations.lines(result), pages.finish(run, result), sep="\n")


if __name__ == "__main__":
    cli.launch("features", main, cli.define_model_flags, define_flags)
