"""Pictures sorted into one folder a class: `DIR/cat/1.jpg`, `DIR/dog/2.jpg`; or that once more in each official part."""

from __future__ import annotations

import os
from pathlib import Path

from tl.data.find import missing, pictures_under
from tl.data.spec import PARTS, DataSpec, Example, Skipped
from tl.paths import nearest


def folder(directory: Path | str) -> DataSpec:
    """The sub-folders of `directory` as classes, the pictures in each as its pictures.

    Args:
      directory: holds one sub-folder a class, or `train/` and `test/` (and `val/` or `validation/`) that do; hidden ones
        do not count. Files beside the class folders are listed as skipped, and so are files that are no pictures.

    Returns:
      A `DataSpec` whose classes are the sub-folders' names, sorted, and whose licence is unknown.

    Raises:
      ValueError: the folder is not there, has fewer than two classes, some of them hold no picture, a class folder holds
        another folder of pictures, or a test or validation part has a class that the train part lacks.
    """
    root = Path(os.path.expanduser(directory))
    if not root.exists():
        raise ValueError(f"the data folder {str(directory)!r} is not there: {missing(root)}")
    if not root.is_dir():
        raise ValueError(
            f"{str(directory)!r} is a file, wanted a folder with one sub-folder a class"
        )
    parts = _parts(root)
    train, skipped = _classes(parts["train"]) if parts else _classes(root)
    if len(train) < 2:
        found = (
            f"one sub-folder ({train[0].name!r})"
            if train
            else f"{len(skipped)} files and no sub-folder"
        )
        raise ValueError(
            f"{str(directory)!r} has {found}, wanted a sub-folder for each of at least two classes"
        )
    classes = tuple(p.name for p in train)
    examples, left_out = _pictures(train, classes, "train" if parts else "", root)
    skipped += left_out
    for name, part in parts.items():
        if name != "train":
            found, outside = _classes(part)
            more, left_out = _pictures(found, classes, PARTS[name], root)
            examples += more
            skipped += outside + left_out
    if parts:
        skipped += _classes(root)[1]
    return DataSpec(
        name=f"folder:{directory}",
        examples=tuple(examples),
        classes=classes,
        source=str(root.absolute()),
        licence="unknown",
        skipped=tuple(skipped),
    )


def _parts(root: Path) -> dict[str, Path]:
    """The official parts by folder name; none where `root` holds the classes themselves, be they called train and test."""
    found = {p.name: p for p in _classes(root)[0]}
    if (
        "train" in found
        and len(found) > 1
        and set(found) <= set(PARTS)
        and all(_classes(p)[0] for p in found.values())
    ):
        return found
    return {}


def _classes(root: Path) -> tuple[list[Path], list[Skipped]]:
    """The sub-folders of a folder, sorted, and the files beside them."""
    entries = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    files = [
        Skipped(str(p), "it lies outside the class folders") for p in entries if not p.is_dir()
    ]
    return [p for p in entries if p.is_dir()], files


def _pictures(
    folders: list[Path], classes: tuple[str, ...], part: str, root: Path
) -> tuple[list[Example], list[Skipped]]:
    """The pictures of class folders, each with its label, and the files that are none."""
    unknown = [p.name for p in folders if p.name not in classes]
    if unknown:
        raise ValueError(
            f"the {part} part of {str(root)!r} has {', '.join(map(repr, unknown))}, which its train part lacks, wanted the "
            f"same classes; nearest: {nearest(unknown[0], classes)}"
        )
    examples: list[Example] = []
    skipped: list[Skipped] = []
    empty = []
    for class_folder in folders:
        paths, left_out = pictures_under(class_folder)
        deep = [p for p in paths if p.parent != class_folder]
        if deep:
            inside = deep[0].parent.relative_to(root).as_posix()
            raise ValueError(
                f"{inside!r} of {str(root)!r} is a folder with pictures inside the class folder {class_folder.name!r}, wanted "
                "pictures only: move them up, make a class of it, or list all pictures in a file for csv:FILE"
            )
        examples += [Example(path, classes.index(class_folder.name), part=part) for path in paths]
        skipped += left_out
        empty += [] if paths else [class_folder.relative_to(root).as_posix()]
    if empty:
        listed = ", ".join(map(repr, empty))
        raise ValueError(
            f"no picture in {listed} of {str(root)!r}, wanted at least one in each class folder"
        )
    return examples, skipped
