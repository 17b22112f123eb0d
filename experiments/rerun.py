"""Measures a published number again and prints it next to the old one.

  ./launch.sh rerun                                    lists the names of RESULTS.md
  ./launch.sh rerun predict_imagenet --data=FOLDER     FOLDER contains imagenet_samples, ...
  ./launch.sh rerun robust_autoattack --values=DIR=runs/transfer/TIME/model --values=TEST=FOLDER
  ./launch.sh rerun --tables                           writes RESULTS.md and the READMEs' tables

With --write, the new values replace the old ones in results/NAME.json.

Expected: the same accuracies on the same machine and versions. Cost: that of the command, from
seconds (probes) to an hour (solar cells).
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from tl import cli, pages, reporting
from tl.reporting import documents, results
from tl.scale.rerun import measure
from tl.weights import zoo

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("name", "", "The number to measure again. Default: list all names.")
    flags.DEFINE_string("data", "", "Folder of the data sets; replaces DATA in the command.")
    flags.DEFINE_multi_string(
        "values", [], "PLACEHOLDER=VALUE, such as DIR=runs/transfer/TIME/model; may be repeated."
    )
    flags.DEFINE_bool("write", False, "Write the new values into the JSON file.")
    flags.DEFINE_bool("tables", False, "Write RESULTS.md and the generated tables of the READMEs.")
    flags.DEFINE_string(
        "results", str(Path(__file__).parent / "results"), "Folder of the JSON files."
    )


def main(run: reporting.Run) -> None:
    folder = Path(FLAGS.results).absolute()
    claims, root = results.load(folder), folder.parent.parent
    if FLAGS.tables:
        for file, text in documents.generate(root, claims, zoo.blocks()).items():
            file.write_text(text, encoding="utf-8")
            print(file)
    if FLAGS.name:
        claim = results.find(claims, FLAGS.name)
        values = dict(value.partition("=")[::2] for value in FLAGS.values)
        values |= {"DATA": FLAGS.data} if FLAGS.data else {}
        config, measured = measure(claim, values, run.workdir / "run", root)
        result = results.compare(claim, measured, results.origin(config))
        if FLAGS.write:
            file = folder / f"{claim['name']}.json"
            new = results.updated(claim, measured, results.origin(config))
            file.write_text(results.dumps(new), encoding="utf-8")
        for line in results.lines(result):
            print(line)
    else:
        result = {"claims": {name: claim["claim"] for name, claim in claims.items()}}
        if not FLAGS.tables:
            print("\n".join(f"{name:36} {text}" for name, text in result["claims"].items()))
    pages.finish(run, result)


if __name__ == "__main__":
    cli.launch("rerun", main, define_flags, arguments=["name"])
