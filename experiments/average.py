"""Averages the weights of several classifiers: soups of runs, and the line between two classifiers.

  ./launch.sh average --models='runs/sweep/*' --data=folder:DIR
  ./launch.sh average --models=runs/probe,runs/tuned --data=folder:DIR --method=wise_ft

The classifiers come from `transfer` with one network, one data set and one seed of the split, with
--validation_fraction above 0. The validation images choose, the test images of the training test.
The best is saved in the workdir, and --model=WORKDIR/model takes it. Averages cost no time at
inference. Statistics of BatchNorm are averaged too; train with --bn=eval, or they no longer fit.

Cost: one forward pass per validation image and average tried, and per test image and row.
"""

from __future__ import annotations

from absl import flags

from tl import cli, data, pages, reporting
from tl.evaluation import averaging
from tl.pages.averaging import lines

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_white_flag()
    help = "Folders of runs of transfer or of saved classifiers, or globs of them."
    flags.DEFINE_list("models", None, help, required=True)
    text = f"Data set of the training: {', '.join(data.names())}."
    flags.DEFINE_string("data", None, text, required=True)
    help = f"Averages: {', '.join(averaging.METHODS)}."
    flags.DEFINE_list("method", ["uniform", "greedy"], help)
    help = "Points of the line of wise_ft, its ends included."
    flags.DEFINE_integer("steps", 11, help, lower_bound=2)


def main(run: reporting.Run) -> None:
    members = averaging.load_members(FLAGS.models)
    spec = cli.load_data(run, FLAGS.data)
    result = averaging.compare(run, members, spec, methods=FLAGS.method, steps=FLAGS.steps)
    print(*lines(result), pages.finish(run, result), sep="\n")


if __name__ == "__main__":
    cli.launch("average", main, define_flags)
