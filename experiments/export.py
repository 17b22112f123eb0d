"""A saved classifier as one StableHLO program with its preprocessing and weights inside, and a script that runs it.

  ./launch.sh export --model=DIR --out=FOLDER
  python FOLDER/run.py photograph.jpg

The folder holds `model.stablehlo` (uint8[b h w 3] of any size -> logits and probabilities, for a CPU, CUDA and TPU),
`classes.json` (the class of each logit) and `run.py`, which imports jax and numpy only (jax wants flatbuffers for it).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from absl import flags

from tl import cli, inference, reporting
from tl.models import Classifier, export, run_exported
from tl.pages import common
from tl.types import Variables

FLAGS = flags.FLAGS
PROGRAM, CLASSES, SCRIPT = "model.stablehlo", "classes.json", "run.py"


def define_flags() -> None:
    flags.DEFINE_string("out", "", "Folder that is written. Default: exported, in --workdir.")


def write(folder: Path, clf: Classifier, variables: Variables) -> int:
    """Writes the three files; the program's size in bytes."""
    table = inference.class_table(clf)
    program = export.program(clf, variables).serialize()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROGRAM).write_bytes(program)
        names = [table.display(i) for i in range(len(table.entries))]
        (folder / CLASSES).write_text(
            json.dumps(names, indent=1, ensure_ascii=False), encoding="utf-8"
        )
        shutil.copyfile(run_exported.__file__, folder / SCRIPT)
    except OSError as error:
        raise ValueError(
            f"cannot write into {str(folder)!r} ({error.strerror}); give another --out"
        ) from error
    return len(program)


def main(run: reporting.Run) -> None:
    clf, variables = cli.load_model()
    folder = Path(FLAGS.out).expanduser() if FLAGS.out else run.workdir / "exported"
    size = write(folder, clf, variables)
    result: dict[str, Any] = {
        "out": str(folder),
        "bytes": size,
        "platforms": list(export.PLATFORMS),
    }
    figures = {"megabytes": f"{size / 1e6:.1f}", "classes": len(inference.class_table(clf).entries)}
    how = f"python {folder / SCRIPT} PICTURE"
    sections = [
        reporting.section("The program", reporting.numbers(figures), text=f"To run it: {how}")
    ]
    lead = f"{clf.arch} with its preprocessing, for {', '.join(export.PLATFORMS)}."
    run.finish(
        result,
        reporting.page(
            "An exported classifier", lead, sections, facts=run.facts() | common.weights_facts(clf)
        ),
    )
    print(
        f"{size / 1e6:.1f} MB in {folder}; to run it where there are jax, numpy and flatbuffers: {how}"
    )


if __name__ == "__main__":
    cli.launch("export", main, cli.define_model_flags, define_flags)
