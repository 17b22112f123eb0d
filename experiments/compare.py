"""Before and after fine-tuning: similarity of stages, change of filters, ideal images of channels.

  ./launch.sh compare --model=DIR --data=folder:IMAGES
  ./launch.sh compare --model=DIR --data=folder:IMAGES --before=NAME --channel=stage7:12,top:881

`--before` is by default the pretrained weights that `transfer` began with. Frozen layers are
compared bit by bit.

Expected: on 500 cats and dogs, EfficientNet-Lite0 before and after one epoch of `--tune=last:1` has
a CKA of 0.959 at `stage7` and of 0.861 at `top`; the 45 layers below are bitwise identical
(`compare_fine_tuned` in RESULTS.md). Cost: two forward passes per image, and --steps gradients for
each of the two ideal images of a channel.
"""

from __future__ import annotations

from absl import flags

from tl import cli, data, pages, reporting
from tl.pages import common
from tl.visualize import compare, grid

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_white_flag()
    flags.DEFINE_string("model", None, "Folder of a classifier that transfer saved.", required=True)
    names = ", ".join(data.names())
    flags.DEFINE_string("data", None, f"Data set of the comparison: {names}.", required=True)
    flags.DEFINE_string(
        "before",
        "",
        "Weights before: NAME, NAME.TAG, folder or file. Default: those that --model began with.",
    )
    flags.DEFINE_list(
        "endpoints", [], "Endpoints whose pooled activations are compared. Default: every stage."
    )
    flags.DEFINE_integer(
        "channels", 4, "Number of channels shown under both weights; 0 for none.", lower_bound=0
    )
    flags.DEFINE_list(
        "channel",
        [],
        "Channels to show, ENDPOINT:INDEX. Default: those whose filters changed most.",
    )
    flags.DEFINE_integer(
        "steps", grid.STEPS, "Optimization steps of a channel's ideal image.", lower_bound=0
    )
    flags.DEFINE_integer(
        "limit", 500, "Largest number of images of --data, drawn at random.", lower_bound=2
    )


def main(run: reporting.Run) -> None:
    clf, old, before, after = compare.load_pair(FLAGS.model, FLAGS.before)
    data_set = cli.load_data(run, FLAGS.data, min_classes=1)
    names = ("endpoints", "channel", "channels", "steps", "limit", "seed")
    settings = {name: getattr(FLAGS, name) for name in names}
    result = compare.save(
        run, compare.compare(before, after, data_set, **settings, attempt=run.attempt)
    )
    result["facts"] = common.weights_facts(clf) | {
        "weights before": f"{old.weights.name} (sha256 {old.weights.sha256[:12]})",
        "images": data_set.source,
        "license of the images": data_set.license,
    }
    print(*pages.compare.lines(result), pages.finish(run, result), sep="\n")


if __name__ == "__main__":
    cli.launch("compare", main, define_flags)
