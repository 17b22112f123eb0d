"""Which pretrained network suits a data set: scores of several networks from their features.

  ./launch.sh choose --data=folder:DIR
  ./launch.sh choose --data=folder:DIR --arch=vgg16,efficientnet_lite0 --endpoint=features,stage4
  ./launch.sh choose --data=folder:DIR --truth --tune=lp_ft --epochs=6

The order is that of the held-out likelihood of a logistic probe; LogME, H-score, PARC, LEEP, NCE,
nearest neighbors and a ridge probe stand next to it. The test part that `transfer` has with the
same --seed is not used. --truth also trains and tests each network, and reports how well each score
predicts the accuracies.

Cost: one forward pass per image and network, none for images in the feature bank, and a few seconds
per network; with --truth one training per network.
"""

from __future__ import annotations

from typing import Any

from absl import flags

from tl import cli, data, pages, reporting
from tl.evaluation import choose
from tl.evaluation.transfer import TransferSettings
from tl.pages.choose import lines
from tl.training import recipes, rules
from tl.training.recipe import Recipe

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_white_flag()
    text, real = flags.DEFINE_string, flags.DEFINE_float
    text("data", None, f"Data set: {', '.join(data.names())}.", required=True)
    help = "Networks: names, or folders saved by transfer. Default: all in installed packages."
    flags.DEFINE_list("arch", [], help)
    flags.DEFINE_list("endpoint", ["features"], "Endpoints whose pooled outputs are scored.")
    real("test_fraction", 0.25, "Share of the test part, which is not used for scores, in (0, 1).")
    flags.DEFINE_bool("truth", False, "Also train and test each network.")
    help = f"How --truth trains, with the rates of the recipe lp_ft: {', '.join(rules.TUNE)}."
    text("tune", "lp_ft", help)
    flags.DEFINE_integer("epochs", 6, "Passes over the training images of --truth.", lower_bound=1)


def main(run: reporting.Run) -> None:
    spec = cli.load_data(run, FLAGS.data)
    rates: dict[str, Any] = recipes.settings("lp_ft")
    recipe = Recipe(epochs=FLAGS.epochs, **rates | {"tune": FLAGS.tune})
    fraction = FLAGS.test_fraction
    settings = TransferSettings(recipe, first_seed=FLAGS.seed, test_fraction=fraction)
    chosen = choose.candidates(FLAGS.arch or choose.installed(), FLAGS.endpoint, spec)
    result = choose.choose(run, chosen, spec, settings=settings, truth=FLAGS.truth)
    print(*lines(result), pages.finish(run, result), sep="\n")


if __name__ == "__main__":
    cli.launch("choose", main, define_flags)
