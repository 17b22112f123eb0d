"""Describes a network: stages, parameters, FLOPs, trained parameters, and its published weights.

  ./launch.sh describe --arch=all
  ./launch.sh describe --arch=vgg16 --head=flat --classes=1 --rules='.*/stage5/.*=trainable' \\
      --rules='head/.*=trainable' --rules='.*=frozen'

Expected: the second command reports 7,104,513 trained parameters of 14,739,777. Cost: seconds,
because the network is only traced on shapes; no weights are needed or downloaded.
"""

from __future__ import annotations

import functools

from absl import flags

from tl import backbones, cli, models, pages, reporting
from tl.models import Classifier, summary
from tl.training import low_rank, rules

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string(
        "arch", "efficientnet_lite0", "Architecture: timm's NAME or NAME.TAG, or all."
    )
    flags.DEFINE_string(
        "model", "", "Folder of a classifier saved by transfer. Default: describe --arch."
    )
    flags.DEFINE_multi_string(
        "rules",
        [],
        "REGEX=trainable or REGEX=frozen, once per rule; the first rule that matches a parameter's "
        "name decides. Or one short form of transfer's --tune, such as last:1. Default: no rules.",
    )
    flags.DEFINE_integer(
        "image_size", 0, "Side of the input in pixels. Default: that of the weights.", lower_bound=0
    )
    flags.DEFINE_enum(
        "head",
        "own",
        ["own", "linear", "flat", "none"],
        "Classifier of --arch. own: the one of the paper. linear: one dense layer on the pooled "
        "features. flat: one dense layer on the whole last feature map. none: features only.",
    )
    flags.DEFINE_integer("classes", 1000, "Number of classes of the head.", lower_bound=1)


def network() -> Classifier:
    """The network that the flags name, without variables."""
    if FLAGS.model:
        clf, _ = models.load(FLAGS.model)
    else:
        clf = summary.by_name(FLAGS.arch, FLAGS.head, FLAGS.classes)
    if FLAGS.image_size:
        clf = clf.with_pixels(size=FLAGS.image_size)
    if clf.pixels.size < clf.spec.min_size:
        raise ValueError(
            f"`image_size` is too small for {clf.arch}: got {clf.pixels.size}, "
            f"expected at least {clf.spec.min_size}"
        )
    return clf


def main(run: reporting.Run) -> None:
    if FLAGS.arch == "all" and not FLAGS.model:
        names = reporting.progress(backbones.names(), label="architectures")
        result = summary.describe_zoo(names, size=FLAGS.image_size)
    else:
        clf = network()
        phase = rules.parse_phase(FLAGS.rules, clf.spec.endpoints) or rules.Phase("none", ())
        extend = functools.partial(low_rank.extend, rank=phase.rank)
        result = summary.describe(clf, phase.rules, extend)
    print(*pages.describe.lines(result), f"\n{pages.finish(run, result)}", sep="\n")


if __name__ == "__main__":
    cli.launch("describe", main, define_flags)
