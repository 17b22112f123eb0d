"""Exports a saved classifier as one StableHLO program, with a script that runs it without `tl`.

  ./launch.sh export --model=DIR --out=FOLDER
  python FOLDER/run.py photograph.jpg

The folder holds `model.stablehlo`, a program for CPU, CUDA and TPU that maps uint8[b h w 3] of any
size to logits and probabilities and contains preprocessing and weights; `classes.json`, which names
the class of each logit; and `run.py`, which needs jax, numpy and flatbuffers.

Expected: the logits differ from those of `tl` by at most 2e-5 of the largest logit, as
tests/test_export.py checks. Cost: a few seconds; the program is about as large as the weights.
"""

from __future__ import annotations

from typing import Any

from absl import flags

from tl import cli, pages, paths, reporting
from tl.models import export
from tl.pages import common

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("out", "", "Folder to write to. Default: the folder exported in --workdir.")


def main(run: reporting.Run) -> None:
    clf, variables = cli.load_model(run)
    folder = paths.expanded(FLAGS.out) if FLAGS.out else run.workdir / "exported"
    size = export.write(folder, clf, variables)
    result: dict[str, Any] = {
        "out": str(folder),
        "bytes": size,
        "platforms": list(export.PLATFORMS),
        "arch": clf.arch,
        "classes": len(clf.classes.entries) if clf.classes else 0,
        "command": f"python {folder / export.SCRIPT} IMAGE",
        "facts": common.weights_facts(clf),
    }
    pages.finish(run, result)
    print(f"{size / 1e6:.1f} MB in {folder}; run it with jax, numpy and flatbuffers installed:")
    print(result["command"])


if __name__ == "__main__":
    cli.launch("export", main, cli.define_model_flags, define_flags)
