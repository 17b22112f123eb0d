"""Data sets with one folder per class: `DIR/cat/1.jpg`, or `DIR/train/cat/1.jpg` with parts."""

from __future__ import annotations

import os
from pathlib import Path

from tl.data.find import images_under, missing
from tl.data.spec import PARTS, DataSpec, Example, Skipped
from tl.labels.names import check_names, normalize
from tl.paths import nearest


def folder(directory: Path | str) -> DataSpec:
    """A data set whose classes are the sub-folders of a folder.

    Args:
      directory: a folder with one sub-folder per class, or with `train/` and one or more of
        `test/`, `val/` and `validation/`, which have one sub-folder per class. Hidden folders are
        ignored. Files next to the class folders and files that are not images are listed as
        skipped.

    Returns:
      A `DataSpec` with the sorted names of the sub-folders as classes and an unknown license.

    Raises:
      ValueError: the folder does not exist, has fewer than two classes, a class has no image, a
        class folder holds another folder of images, or a test or validation part has a class that
        the training part lacks.
    """
    root = Path(os.path.expanduser(directory))
    if not root.exists():
        raise ValueError(f"the data folder {str(directory)!r} does not exist: {missing(root)}")
    if not root.is_dir():
        raise ValueError(
            f"{str(directory)!r} is a file, expected a folder with one sub-folder per class"
        )
    parts = _parts(root)
    train, skipped = _classes(parts["train"]) if parts else _classes(root)
    if len(train) < 2:
        content = (
            f"one sub-folder ({train[0].name!r})"
            if train
            else f"{len(skipped)} files and no sub-folder"
        )
        raise ValueError(
            f"{str(directory)!r} has {content}, expected a sub-folder for each of at least two "
            "classes"
        )
    try:
        remarks = check_names([p.name for p in train])
    except ValueError as error:
        raise ValueError(f"{str(directory)!r}: {error}") from None
    classes = tuple(normalize(p.name) for p in train)
    examples, others = _examples(train, classes, "train" if parts else "", root)
    skipped += others
    for name, part in parts.items():
        if name != "train":
            folders, outside = _classes(part)
            more, others = _examples(folders, classes, PARTS[name], root)
            examples += more
            skipped += outside + others
    if parts:
        skipped += _classes(root)[1]
    return DataSpec(
        name=f"folder:{directory}",
        examples=tuple(examples),
        classes=classes,
        source=str(root.absolute()),
        license="unknown",
        skipped=tuple(skipped),
        remarks=remarks,
    )


def _parts(root: Path) -> dict[str, Path]:
    """Folder name -> folder of each official part; {} if `root` holds the classes themselves.

    Classes may be called train and test, so a part must have sub-folders.
    """
    folders = {p.name: p for p in _classes(root)[0]}
    if (
        "train" in folders
        and len(folders) > 1
        and set(folders) <= set(PARTS)
        and all(_classes(p)[0] for p in folders.values())
    ):
        return folders
    return {}


def _classes(root: Path) -> tuple[list[Path], list[Skipped]]:
    """The sub-folders of a folder, sorted, and the files next to them."""
    entries = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    files = [Skipped(str(p), "it is outside the class folders") for p in entries if not p.is_dir()]
    return [p for p in entries if p.is_dir()], files


def _examples(
    folders: list[Path], classes: tuple[str, ...], part: str, root: Path
) -> tuple[list[Example], list[Skipped]]:
    """The labeled images of class folders, and the files that are not images."""
    unknown = [p.name for p in folders if normalize(p.name) not in classes]
    if unknown:
        raise ValueError(
            f"the {part} part of {str(root)!r} has {', '.join(map(repr, unknown))}, which its "
            f"train part lacks, expected the same classes; nearest: {nearest(unknown[0], classes)}"
        )
    examples: list[Example] = []
    skipped: list[Skipped] = []
    empty = []
    for class_folder in folders:
        paths, others = images_under(class_folder)
        deep = [p for p in paths if p.parent != class_folder]
        if deep:
            inside = deep[0].parent.relative_to(root).as_posix()
            raise ValueError(
                f"{inside!r} of {str(root)!r} is a folder with images inside the class folder "
                f"{class_folder.name!r}, expected images only; move them up, make the folder a "
                "class, or list all images in a file for csv:FILE"
            )
        examples += [
            Example(path, classes.index(normalize(class_folder.name)), part=part) for path in paths
        ]
        skipped += others
        empty += [] if paths else [class_folder.relative_to(root).as_posix()]
    if empty:
        listed = ", ".join(map(repr, empty))
        raise ValueError(
            f"no image in {listed} of {str(root)!r}, expected at least one in each class folder"
        )
    return examples, skipped
