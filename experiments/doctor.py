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

import numpy as np
from absl import flags

from tl import cli, data, models, pages, paths, reporting
from tl.pages import common, doctor

FLAGS = flags.FLAGS
# Side of a thumbnail, in pixels; chosen, not tuned.
SIDE = 160
# Images that cannot be decoded and are listed in the terminal; chosen, not tuned.
MAX_LINES = 12


def define_flags() -> None:
    cli.define_white_flag()
    flags.DEFINE_string("data", "", "Data set: folder:DIR, csv:FILE, tfds:NAME, tfrecord:GLOB.")
    flags.DEFINE_string("weights", "", "Weights file, or folder with one, to examine instead.")
    cli.define_which_flag()


def thumbnail(source: data.Source) -> np.ndarray:
    """A small copy for the page, uint8[h w 3]; gray if the image cannot be decoded."""
    try:
        return data.thumbnail(source, SIDE)
    except data.ImageError:
        return np.full((SIDE, SIDE, 3), 128, np.uint8)


def examine_weights(run: reporting.Run) -> None:
    report = models.examine_weights(FLAGS.weights, which=FLAGS.which)
    run.remark(*map(cli.with_dashes, report.clf.remarks))
    result = report.as_dict()
    path = pages.finish(run, result | {"facts": common.weights_facts(report.clf)})
    print(reporting.columns(("finding", "value"), list(doctor.weights_findings(result).items())))
    print(path)


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
        path: run.relative(run.figure(example.path.name, thumbnail(example.path)))
        for path, example in in_groups.items()
    }
    path = pages.finish(run, result)
    print(reporting.columns(("finding", "count"), list(doctor.counts(result).items())))
    print(*map(paths.printable, doctor.set_lines(result)), sep="\n")
    for row in result["bad"][:MAX_LINES]:
        print(f"cannot be decoded: {row['path']}: {row['why']}")
    print(path)


if __name__ == "__main__":
    cli.launch("doctor", main, define_flags)
