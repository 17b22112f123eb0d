"""A network on a data set by a published protocol, next to published values.

  ./launch.sh protocol --data=tfds:oxford_iiit_pet --protocol=kornblith --arch=resnet50
  ./launch.sh protocol --data=tfds:dtd --protocol=vtab1k

The data set needs official training and test parts: a prepared set of TFDS, or a CSV file with a
column `split`. tl/training/README.md describes the protocols and how they differ from the papers.

Cost: `kornblith` and `fewshot` one forward pass per image, none for images in the feature bank;
`vtab1k` 1,000 steps of 64 images, hours on a CPU; `vtab1k_sweep` 27,500 or more of 512, on a GPU.
"""

from __future__ import annotations

from absl import flags

from tl import cli, data, pages, reporting
from tl.evaluation import protocols
from tl.pages import common
from tl.pages.protocol import lines
from tl.training.recipe import pixels_for

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_white_flag()
    text = flags.DEFINE_string
    text("data", None, f"Data set: {', '.join(data.names())}.", required=True)
    text("protocol", "kornblith", f"Protocol: {', '.join(protocols.PROTOCOLS)}.")


def main(run: reporting.Run) -> None:
    clf, variables = cli.load_model(run)
    spec = cli.load_data(run, FLAGS.data)
    clf = pixels_for(clf, spec, "weights", 0)
    result = protocols.evaluate(run, clf, variables, spec, FLAGS.protocol, FLAGS.seed)
    page = pages.finish(run, result | {"facts": common.weights_facts(clf)})
    print(*lines(result), page, sep="\n")


if __name__ == "__main__":
    cli.launch("protocol", main, cli.define_model_flags, define_flags)
