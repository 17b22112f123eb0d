"""Finds the preprocessing that weights expect, and the preprocessing of an array.

  ./launch.sh audit --images=FOLDER --labels=folder
  ./launch.sh audit --images=a.jpg,b.jpg --array=MINE.npy

The images are classified under eight common conventions and the weights' own. Accuracy ranks the
conventions if labels are known, otherwise the mutual information of image and prediction. --array
holds the input that other code feeds to a network. It is compared with the same images in the same
order, or, without --images, judged by its values alone.

Expected: on 500 ImageNet images EfficientNet-Lite0 has 88.0 % (84.9 to 90.6) with its own
preprocessing, and 78.2 % (74.4 to 81.6) with "torch" (`audit_imagenet` in RESULTS.md). Cost: at
most nine forward passes per image.
"""

from __future__ import annotations

from typing import Any

from absl import flags

from tl import cli, data, inference, pages, reporting
from tl.evaluation import conventions
from tl.pages import audit, common
from tl.paths import expanded

FLAGS = flags.FLAGS


def define_flags() -> None:
    cli.define_image_flags(required=False)
    flags.DEFINE_string(
        "array", "", "A .npy file of preprocessed images: [b h w 3], [h w 3], or channels first."
    )


def main(run: reporting.Run) -> None:
    if not (FLAGS.images or FLAGS.array):
        raise ValueError("there is nothing to audit: pass `images`, `array`, or both")
    array = conventions.read_array(expanded(FLAGS.array)) if FLAGS.array else None
    clf, variables = cli.load_model(run)
    result: dict[str, Any] = {
        "arch": clf.arch,
        "weights": clf.weights.name,
        "own": clf.pixels.as_dict(),
        "facts": common.weights_facts(clf),
    }
    photographs = None
    if FLAGS.images:
        inference.class_table(clf)  # raises for a network without classes, before any image
        white = cli.white(run)
        images = {
            resize: inference.read_images(clf.with_pixels(resize=resize), FLAGS.images, white=white)
            for resize in ("shorter", "squash")
        }
        paths, skipped = images["shorter"].paths, images["shorter"].skipped
        named = FLAGS.labels == "folder"
        labels = inference.folder_labels(clf, paths, run.remark) if named else None
        result |= {"n": len(paths), "skipped": skipped}
        result |= conventions.compare_conventions(clf, variables, images, labels)
        photographs = [data.decode(path) for path in paths] if array else None
    if array:
        match = conventions.match_array(*array, clf.pixels, photographs)
        result["array"] = {"path": FLAGS.array, **match}
    page = pages.finish(run, result)
    print(*audit.lines(result), "", page, sep="\n")


if __name__ == "__main__":
    cli.launch("audit", main, cli.define_model_flags, define_flags)
