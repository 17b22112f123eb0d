"""Whether a run that continues from a checkpoint is the run that wrote it.

`same_flags` compares the flags, before `tl.reporting.start` writes the new ones; `same_inputs`
compares images, classes, weights and recipe, before the first step.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tl import hosts, reporting, storage
from tl.data import DataSpec
from tl.data.duplicates import content_hashes
from tl.data.spec import white_of
from tl.paths import expanded
from tl.types import DetailedError


def same_flags(
    workdir: str | os.PathLike[str],
    flags: Mapping[str, Any],
    *,
    ignore: Iterable[str] = (),
    name: str = "",
) -> None:
    """Checks that a run is resumed with the flags that it was started with.

    A workdir without `config.json` is new and passes.

    Args:
      workdir: where `reporting.start` wrote `config.json`.
      flags: name -> value, as they will be passed to `reporting.start`.
      ignore: names that may differ, in addition to `resume` and `workdir`.
      name: the experiment; "" is not compared.

    Raises:
      ValueError: flags that differ, each with both values (the `DetailedError` names all);
        `config.json` cannot be read, or is of another experiment.
    """
    path = expanded(workdir) / "config.json"
    if not path.exists():
        return
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        before = dict(config["flags"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"cannot read the flags of the earlier run from {str(path)!r} ({error}); use a new "
            "`workdir`"
        ) from error
    if name and config.get("name", name) != name:
        raise ValueError(
            f"cannot resume in {str(workdir)!r}: it is a run of {config['name']}, expected a run "
            f"of {name}; use another `workdir`"
        )
    now = reporting.jsonable(flags)
    passed = {"resume", "workdir", *ignore}
    differ = [
        f"`{name}` was {before.get(name, 'not set')!r}, is {now.get(name, 'not set')!r}"
        for name in sorted(before.keys() | now.keys())
        if name not in passed and (name in before, before.get(name)) != (name in now, now.get(name))
    ]
    if differ:
        more = f"; and {len(differ) - 6} more" if len(differ) > 6 else ""
        raise DetailedError(
            f"cannot resume in {str(workdir)!r}: {'; '.join(differ[:6])}{more}; use the flags of "
            "its start",
            differ,
        )


def same_inputs(path: Path, inputs: Mapping[str, Any], *, folder: Path | None = None) -> None:
    """Checks that a run continues with the inputs that it was started with, and records them.

    Args:
      path: the file of the record. It is written if it is missing or no phase has started.
      inputs: name -> JSON-ready value, such as a digest; the names appear in the error.
      folder: the folder of the run in the error; by default the parent of `path`.

    Raises:
      ValueError: inputs that differ, each with both values; or the record cannot be read or
        written.
    """
    now = reporting.jsonable(inputs)
    hosts.on_first(lambda: _compare(path, now, folder or path.parent))


def _compare(path: Path, now: Mapping[str, Any], folder: Path) -> None:
    try:
        phases = (phase for depth in ("", "*/") for phase in path.parent.glob(f"{depth}phase*"))
        if not path.exists() or not any(phases):
            storage.make_folder(path.parent)
            reporting.write_whole(path, json.dumps(now, indent=1))
            return
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"cannot read or write the inputs of the run in {str(path)!r} ({error}); use a new "
            "`workdir`"
        ) from error
    differ = [
        f"{name} was {before[name]!r}, is {value!r}"
        for name, value in now.items()
        if name in before and before[name] != value
    ]
    differ += [f"{name} was {before[name]!r}, is absent" for name in before if name not in now]
    if differ:
        raise ValueError(
            f"cannot resume in {str(folder)!r}, because the inputs differ from "
            f"those of its start: {'; '.join(differ)}; restore them, or use a new `workdir`"
        )


def saved_value(
    folder: Path | None,
    name: str,
    find: Callable[[], Any],
    *,
    what: str,
    read: Callable[[Any], Any] = lambda value: value,
) -> Any:
    """A value that was found at the start of a run; a resumed run must not find another one.

    Args:
      folder: folder of the checkpoints; None saves nothing.
      name: name of the file.
      find: computes the value of a new run, which can be written as JSON.
      what: the value in words, for the error.
      read: makes the value from what was written.

    Raises:
      ValueError: the file of a run that is resumed cannot be read.
    """
    path = folder / name if folder else None

    def saved() -> Any:
        if not (path and folder and path.exists() and any(folder.glob("phase*"))):
            return None
        try:
            return read(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{str(path)!r} does not hold {what} of the run ({error}); use a new `workdir`"
            ) from error

    value = hosts.on_first(saved)
    value = find() if value is None else value
    if path and hosts.first():
        storage.make_folder(path.parent)
        reporting.write_whole(path, json.dumps(reporting.jsonable(value)))
    return value


def describe_part(spec: DataSpec) -> str:
    """The images, labels and confidences of a part of a data set, in their order.

    Example: "749 images, sha256 0123456789ab". Training depends on the order, because a step reads
    the images at some positions.

    Raises:
      ValueError: a file cannot be read.
    """
    sha = hashlib.sha256()
    for content, example in zip(content_hashes(spec), spec.examples, strict=True):
        white = f" white {white}" if (white := white_of(example.path)) else ""
        row = f"{content} {spec.classes[example.label]} {example.confidence}{white}\n"
        sha.update(row.encode())
    return f"{len(spec.examples)} images, sha256 {sha.hexdigest()[:16]}"
