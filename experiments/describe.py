"""Describes a network: stages, parameters, FLOPs, trained parameters, and its published weights.

  ./launch.sh describe --arch=all
  ./launch.sh describe --arch=vgg16 --head=flat --classes=1 --rules='.*/stage5/.*=trainable' \\
      --rules='head/.*=trainable' --rules='.*=frozen'

Expected: the second command reports 7,104,513 trained parameters of 14,739,777. Cost: seconds,
because the network is only traced on shapes; no weights are needed or downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import flags

from tl import backbones, cli, models, pages, reporting
from tl.models import Classifier, summary
from tl.pages import common, describe
from tl.pixels import PixelSpec
from tl.training import rules

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


def print_network(result: Mapping[str, Any]) -> None:
    print(reporting.columns(describe.STAGE_HEADER, describe.stage_rows(result)))
    trained = f"; the rules train {result['trainable']:,}" if result["rules"] else ""
    print(
        f"\n{result['params']:,} parameters, {result['multiply_adds'] / 1e9:.4g} G multiply-adds "
        f"per image of {result['size']} pixels ({result['flops'] / 1e9:.4g} GFLOP){trained}\n"
    )
    print("\n".join(f"{key:15} {value}" for key, value in describe.facts(result).items()))
    print(f"\npublished weights: {len(result['weights']) or 'none'}")
    for row in result["weights"]:
        top1 = "no top-1 published" if row["top1"] is None else f"top-1 {row['top1']:.2f} %"
        print(f"  {row['name']}: {top1}, {row['licence']}, {row['origin']}")
        print(
            f"    {common.pixels_in_words(PixelSpec.from_dict(row['pixels']))}\n    {row['load']}"
        )


def main(run: reporting.Run) -> None:
    if FLAGS.arch == "all" and not FLAGS.model:
        names = reporting.progress(backbones.names(), label="architectures")
        result = summary.describe_zoo(names, size=FLAGS.image_size)
        print(reporting.columns(describe.ZOO_HEADER, describe.zoo_rows(result)))
    else:
        clf = network()
        result = summary.describe(clf, rules.parse_rules_or_tune(FLAGS.rules, clf.spec.endpoints))
        print_network(result)
    print(f"\n{pages.finish(run, result)}")


if __name__ == "__main__":
    cli.launch("describe", main, define_flags)
