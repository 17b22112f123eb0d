"""Examines a data set or a weights file, and reports defects; nothing is deleted or changed.

    ./launch.sh doctor --data=folder:DIR
    ./launch.sh doctor --data=tfds:oxford_iiit_pet
    ./launch.sh doctor --weights=FILE

With --data, every image is decoded. With --weights, the file is read as `tl.load` would read it.

Expected: on 1,000 photographs of cats_vs_dogs every image can be decoded, and there is one group of
near-duplicates. The result does not depend on the seed. Cost: no forward passes; about 240 images
per second on two CPU cores.
"""

from __future__ import annotations

from collections import Counter

from absl import flags

from tl import cli, data, models, pages, reporting
from tl.data.doctor import card_image
from tl.pages import common, doctor

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_white_flag()
    flags.DEFINE_string("data", "", "Data set: folder:DIR, csv:FILE, tfds:NAME, tfrecord:GLOB.")
    flags.DEFINE_string("weights", "", "Weights file, or folder with one, to examine instead.")
    cli.define_which_flag()


def examine_weights(run: reporting.Run) -> None:
    report = models.examine_weights(FLAGS.weights, which=FLAGS.which)
    run.remark(*map(cli.with_dashes, report.clf.remarks))
    result = report.as_dict()
    path = pages.finish(run, result | {"facts": common.weights_facts(report.clf)})
    print(*doctor.lines(result), path, sep="\n")


def main(run: reporting.Run) -> None:
    if bool(FLAGS.data) == bool(FLAGS.weights):
        raise ValueError("give either `data` or `weights`: doctor examines one of them")
    if FLAGS.weights:
        return examine_weights(run)
    spec = cli.load_data(run, FLAGS.data, check=False)
    report = data.examine(spec, progress=lambda items, n: reporting.progress(items, n, "images"))
    run.remark(*map(cli.with_dashes, report.remarks))
    result = report.as_dict() | {
        "data": spec.name,
        "skipped": [skip._asdict() for skip in spec.skipped],
        "parts": Counter(example.part for example in spec.examples),
        "facts": {"images": spec.source, "license of the images": spec.license},
    }
    examples = {str(example.path): example for example in spec.examples}
    in_groups = {path: examples[path] for path in doctor.paths_with_thumbnail(result)}
    result["labels"] = {
        path: ", ".join(filter(None, (spec.classes[example.label], example.part)))
        for path, example in in_groups.items()
    }
    result["thumbnails"] = {
        path: run.relative(run.figure(example.path.name, card_image(example.path)))
        for path, example in in_groups.items()
    }
    path = pages.finish(run, result)
    print(*doctor.lines(result), path, sep="\n")


if __name__ == "__main__":
    cli.launch("doctor", main, define_flags)
