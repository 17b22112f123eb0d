"""Classifies images: the top classes of each, and the accuracy if folders are named by class.

  ./launch.sh predict --images=FOLDER --labels=folder

Expected: on 500 ImageNet images EfficientNet-Lite0 has a top-1 accuracy of 88.0 % (84.9 to 90.6,
`predict_imagenet` in RESULTS.md). Cost: one forward pass per image.
"""

from __future__ import annotations

from absl import flags

from tl import cli, inference, pages, reporting
from tl.evaluation import seen, sets
from tl.pages import common

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_image_flags()
    flags.DEFINE_integer("topk", 5, "Classes reported per image.", lower_bound=1)


def main(run: reporting.Run) -> None:
    clf, variables = cli.load_model(run)
    labels = "folder" if FLAGS.labels == "folder" else None
    predicted = inference.predict(
        clf,
        variables,
        FLAGS.images,
        labels=labels,
        progress=sets.progress,
        remark=run.remark,
        white=cli.white(run),
    )
    result = sets.predictions_result(run, clf, predicted, FLAGS.topk, seen.Seen(cli.metadata()))
    page = pages.finish(run, result | {"facts": common.weights_facts(clf)})
    print(*pages.predict.lines(result), page, sep="\n")


if __name__ == "__main__":
    cli.launch("predict", main, cli.define_model_flags, define_flags)
