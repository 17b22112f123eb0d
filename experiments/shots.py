"""How many labels: accuracy over the number of training images per class, and its extrapolation.

  ./launch.sh shots --data=folder:DIR
  ./launch.sh shots --data=folder:DIR --shots=1,2,5,10,25 --seeds=10 --method=probe,ridge,lsr
  ./launch.sh shots --data=folder:DIR --accuracy=0.95          how many images per class for 95 %
  ./launch.sh shots --data=folder:DIR --method=probe,lp_ft --shots=5,20 --seeds=3

All draws are tested on the images that transfer would test with the same --seed, and the images of
a small draw are part of the larger ones of its seed. A power law is fitted to each curve; the
report says where it cannot tell. The labels that a cross-validated probe contradicts are listed.
tl/training/README.md has the methods.

Cost: one forward pass per image, none for images in the feature bank; then, per draw, fits that
take milliseconds, or seconds for a probe with many classes. lp_ft fine-tunes the network for every
draw.
"""

from __future__ import annotations

from typing import Any

from absl import flags

from tl import cli, data, pages, reporting
from tl.evaluation.shots import SHOTS, ShotsSettings, parse_shots, shots
from tl.pages import common
from tl.training.fewshot import METHODS
from tl.training.recipe import pixels_for

FLAGS = flags.FLAGS
DEFAULT = ShotsSettings()


def define_flags() -> None:
    cli.define_white_flag()
    flags.DEFINE_string("data", None, f"Data set: {', '.join(data.names())}.", required=True)
    flags.DEFINE_list(
        "shots",
        [],
        "Numbers of training images per class. Default: those of "
        f"{', '.join(map(str, SHOTS))} that every class has.",
    )
    flags.DEFINE_integer("seeds", DEFAULT.seeds, "Number of draws of each size.", lower_bound=1)
    flags.DEFINE_list(
        "method",
        [],
        f"Methods: {', '.join(METHODS)}. Default: those that need no images.",
    )
    flags.DEFINE_float(
        "accuracy",
        DEFAULT.accuracy,
        "Accuracy to which the curves are extrapolated, in [0, 1). 0: half of the error at the "
        "largest number of images.",
    )
    flags.DEFINE_integer(
        "image_size", 0, "Side of the input in pixels; 0: that of the weights.", lower_bound=0
    )
    flags.DEFINE_enum(
        "crop",
        "",
        ["", "weights", "none"],
        "Preprocessing, as in transfer. Default: the data set's.",
    )
    flags.DEFINE_float(
        "test_fraction",
        DEFAULT.test_fraction,
        "Share of --data that is held out for testing, in (0, 1), if it has no test part.",
    )


def main(run: reporting.Run) -> None:
    numbers: dict[str, Any] = {"shots": parse_shots(FLAGS.shots), "first_seed": FLAGS.seed}
    settings = ShotsSettings(**cli.fields_of_flags(ShotsSettings) | numbers)
    clf, variables = cli.load_model(run)
    data_set = cli.load_data(run, FLAGS.data)
    clf = pixels_for(clf, data_set, FLAGS.crop, FLAGS.image_size)
    result = shots(run, clf, variables, data_set, settings)
    page = pages.finish(run, result | {"facts": common.weights_facts(clf)})
    print(*pages.shots.lines(result), page, sep="\n")


if __name__ == "__main__":
    cli.launch("shots", main, cli.define_model_flags, define_flags)
