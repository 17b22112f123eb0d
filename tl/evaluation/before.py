"""What `transfer` checks before the first step, so that hours of training are not lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from tl import data, reporting
from tl.data import DataSpec, duplicates
from tl.training import resume
from tl.types import Variables


def check_parts(
    run: reporting.Run, variables: Variables, spec: DataSpec, rounds: Mapping[str, data.Parts]
) -> None:
    """Checks the data of all rounds, and the disk.

    Args:
      run: receives the model, the figures and the checkpoints; and a remark if near-duplicates of
        images in one part may be in another.
      variables: the network.
      spec: the data set that was divided.
      rounds: name of a round -> its parts.

    Raises:
      ValueError: those of `check_sizes`; the model cannot be written; or a resumed run has other
        classes or images than at its start.
    """
    for parts in rounds.values():
        check_sizes(parts)
    run.check_folder("model", sum(leaf.nbytes for leaf in jax.tree.leaves(variables)))
    run.check_folder("figures", 0)
    if duplicates.all_similar(spec):
        run.remark(
            f"near-duplicates are not recognized, because the images of {spec.name} resemble each "
            "other; copies that are not equal files may be in several parts"
        )
    inputs: dict[str, Any] = {
        f"the {part} images of {name}": resume.describe_part(spec)
        for name, parts in rounds.items()
        for part, spec in parts._asdict().items()
    }
    inputs["the classes"] = next(iter(rounds.values())).train.classes
    resume.same_inputs(run.workdir / "checkpoints" / "parts.json", inputs, folder=run.workdir)


def check_sizes(parts: data.Parts) -> None:
    """Checks that a round can be trained and tested.

    Raises:
      ValueError: too few images to train or test, or no readable test image.
    """
    train, test = parts.train.examples, parts.test.examples
    if len(train) < 2 or not test:
        raise ValueError(
            f"too few images: got {len(train)} to train on and {len(test)} to test on, expected at "
            "least 2 and 1"
        )
    if not any(map(_readable, test)):
        raise ValueError(
            f"none of the {len(test)} test images can be read; run doctor on {parts.test.name}"
        )


def _readable(example: data.Example) -> bool:
    try:
        data.decode(example.path)
    except data.ImageError:
        return False
    return True


def drop_repeated(run: reporting.Run, name: str, phase: str, first: int) -> None:
    """Removes the rows of a phase that a resumed run logs again.

    Args:
      run: the run.
      name: name of the round.
      phase: name of the phase.
      first: the first step that is computed; rows of the steps before are kept.
    """
    reached = first == 0

    def repeated(row: Mapping[str, Any]) -> bool:
        nonlocal reached
        if (row.get("round"), row.get("phase")) != (name, phase):
            return False
        reached = reached or row.get("step", -1) >= first
        return reached

    run.drop_rows(repeated)
