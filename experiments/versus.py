"""Compares two finished runs on the images that both tested: paired test, difference, images.

  ./launch.sh versus RUN_A RUN_B

Each run is the folder of a run of transfer, evaluate or predict (with --labels=folder). Images are
matched by content. The test is McNemar's, exact; with several seeds all results for an image count
as one, and a t interval over the seeds is reported too. The difference is A minus B.

Expected: for the runs of `pets_folds` and `pets_folds_whole_images` in RESULTS.md, a difference of
1.9 points (-2.3 to 6.1, `versus_pets_crop`). Cost: seconds; no network is loaded.
"""

from __future__ import annotations

from absl import flags

from tl import cli, pages, reporting
from tl.evaluation import paired
from tl.pages import versus

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("run_a", "", "Folder of the first run; the first argument.")
    flags.DEFINE_string("run_b", "", "Folder of the second run; the second argument.")


def main(run: reporting.Run) -> None:
    result = paired.compare(run, FLAGS.run_a, FLAGS.run_b)
    page = pages.finish(run, result)
    print(*versus.lines(result), page, sep="\n")


if __name__ == "__main__":
    cli.launch("versus", main, define_flags, arguments=["run_a", "run_b"])
