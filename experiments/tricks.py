"""What each training trick or recipe is worth, compared with a baseline over several seeds.

  ./launch.sh tricks --data=folder:DIR --seeds=5
  ./launch.sh tricks --data=folder:DIR --tricks=sam,mixup,ema --tune=last:2 --epochs=10
  ./launch.sh tricks --data=folder:DIR --recipe=plain --tricks=l2_sp,delta,lp_ft --shots=5
  ./launch.sh tricks --data=folder:DIR --workdir=W --resume                  continue a killed run
  ./launch.sh tricks --data=folder:DIR --weights=random --arch=resnet18 --image_size=64 --epochs=30

All recipes see the same splits, images and seeds, so that the differences are paired. With many
tricks some differ by chance: the page has p-values that account for their number. A trick changes
one thing of the baseline; the name of a recipe of transfer takes its place. bit and fixres have an
image size of their own, unless --image_size is given. With random weights the network is trained
from scratch, with other kernels for each seed.

Cost: one training per seed for the baseline and for each trick.
"""

from __future__ import annotations

from typing import Any

from absl import flags

from tl import cli, data, pages, reporting
from tl.evaluation import tricks
from tl.evaluation.transfer import TransferSettings
from tl.pages.tricks import lines
from tl.training import recipes, rules
from tl.training.recipe import Recipe
from tl.training.tricks import SCRATCH, TRICKS

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_white_flag()
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    text("data", None, f"Data set: {', '.join(data.names())}.", required=True)
    help = "Tricks that change the baseline (default: all), and recipes in its place: "
    flags.DEFINE_list("tricks", [], help + f"{', '.join([*TRICKS, *recipes.names()])}.")
    text("recipe", "", "The baseline by the name of a recipe. Flags that are given replace it.")
    number("seeds", 3, "Seeds of split and training.", lower_bound=1)
    help = "Training images per class, others for each seed, without a validation part; 0: all."
    number("shots", 0, help, lower_bound=0)
    help = "Share of --data that is held out for testing, in (0, 1), if it has no test part."
    flags.DEFINE_float("test_fraction", 0.25, help)
    text("tune", "all", f"Which parameters train: {', '.join(rules.TUNE)}.")
    number("epochs", 6, "Passes over the training images.", lower_bound=1)
    number("batch_size", 32, "Images per step.", lower_bound=1)
    number("image_size", 0, "Side of the input in pixels; 0: that of the weights.", lower_bound=0)
    text("lr", "0", "Peak learning rate of the baseline. 0: that of transfer.")
    help = "Largest norm of the gradient; 0: no clipping."
    flags.DEFINE_float("clip", 1.0, help, lower_bound=0.0)
    text("augment", "flip", "Augmentation of the baseline, as in transfer.")
    flags.DEFINE_bool("resume", False, "Continue the run in --workdir.")


def main(run: reporting.Run) -> None:
    clf, variables = cli.load_model(run)
    spec = cli.load_data(run, FLAGS.data)
    fields: dict[str, Any] = cli.fields_of_flags(Recipe)
    fields |= SCRATCH if FLAGS.weights == "random" else {}
    recipe = Recipe(**{**fields, "lr": cli.fraction(FLAGS.lr, "lr")})
    others = {**cli.fields_of_flags(TransferSettings), "recipe": recipe, "first_seed": FLAGS.seed}
    facts = recipes.facts_of(spec, clf.pixels.size)
    if FLAGS.shots:
        facts = facts._replace(n=FLAGS.shots * facts.classes)
    settings, given = TransferSettings(**others), cli.given_flags()
    chosen = tricks.variants(settings, FLAGS.tricks, FLAGS.recipe, facts, given)
    result = tricks.compare(run, clf, variables, spec, chosen, shots=FLAGS.shots)
    print(*lines(result), pages.finish(run, result), sep="\n")


if __name__ == "__main__":
    cli.launch("tricks", main, cli.define_model_flags, define_flags)
