"""Pictures sorted into one folder a class: `DIR/cat/1.jpg`, `DIR/dog/2.jpg`."""

from __future__ import annotations

import os
from pathlib import Path

from tl.data.find import missing, pictures_under
from tl.data.spec import DataSpec, Example, Skipped


def folder(directory: Path | str) -> DataSpec:
    """The sub-folders of `directory` as classes, everything below each as its pictures.

    Args:
      directory: holds one sub-folder a class; hidden ones do not count. Files directly in it are listed as skipped.

    Returns:
      A `DataSpec` whose classes are the sub-folders' names, sorted, and whose licence is unknown.

    Raises:
      ValueError: the folder is not there, has fewer than two sub-folders, or some of them hold no picture.
    """
    root = Path(os.path.expanduser(directory))
    if not root.exists():
        raise ValueError(f"the data folder {str(directory)!r} is not there: {missing(root)}")
    if not root.is_dir():
        raise ValueError(f"{str(directory)!r} is a file, wanted a folder with one sub-folder a class")
    entries = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    classes = [p for p in entries if p.is_dir()]
    if len(classes) < 2:
        found = f"one sub-folder ({classes[0].name!r})" if classes else f"{len(entries)} files and no sub-folder"
        raise ValueError(f"{str(directory)!r} has {found}, wanted a sub-folder for each of at least two classes")
    examples: list[Example] = []
    skipped = [Skipped(str(p), "it lies outside the class folders") for p in entries if not p.is_dir()]
    empty = []
    for label, class_folder in enumerate(classes):
        paths, left_out = pictures_under(class_folder)
        examples += [Example(path, label) for path in paths]
        skipped += left_out
        empty += [] if paths else [class_folder.name]
    if empty:
        listed = ", ".join(map(repr, empty))
        raise ValueError(f"no picture in {listed} of {str(directory)!r}, wanted at least one in each class folder")
    return DataSpec(
        name=f"folder:{directory}",
        examples=tuple(examples),
        classes=tuple(p.name for p in classes),
        source=str(root.absolute()),
        licence="unknown",
        skipped=tuple(skipped),
    )
