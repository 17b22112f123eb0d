"""Downloads a public data set and unpacks it, without TensorFlow.

  ./launch.sh prepare beans --out=DIR
  ./launch.sh transfer --data=csv:DIR/images.csv

The files are checked against the hashes of TFDS, and the official parts become the column `split`.
A command that was interrupted continues. Cost: beans 180 MB, tf_flowers 230 MB, horses_or_humans
160 MB, food101 5 GB, and the same again for the images; the archives may be deleted afterwards.
"""

from __future__ import annotations

from absl import flags

from tl import cli, pages, reporting
from tl.data import downloads
from tl.pages.prepare import lines
from tl.paths import expanded

FLAGS = flags.FLAGS


def define_flags() -> None:
    text = flags.DEFINE_string
    text("name", "", f"Data set: {', '.join(downloads.SETS)}; also the first argument.")
    text("out", None, "Folder that receives the images and images.csv.", required=True)
    text("mirror", "", "Address of a folder with the same archives. Default: the published ones.")


def main(run: reporting.Run) -> None:
    say = lambda line: print(line, flush=True)
    result = downloads.prepare(FLAGS.name, expanded(FLAGS.out), mirror=FLAGS.mirror, say=say)
    print(*lines(result), pages.finish(run, result), sep="\n")


if __name__ == "__main__":
    cli.launch("prepare", main, define_flags, arguments=("name",))
