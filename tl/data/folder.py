"""Data sets with one folder per class: `DIR/cat/1.jpg`, or `DIR/train/cat/1.jpg` with parts."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tl import storage
from tl.data.find import (
    BROKEN_LINK,
    SUFFIXES,
    count_litter,
    describe_content,
    how_to_read,
    images_under,
    is_litter,
    missing,
    unread_images,
)
from tl.data.spec import PARTS, DataSpec, Example, Skipped
from tl.labels.names import check_names, counted, listed, normalize, path_end, shown
from tl.paths import absolute, expanded, is_url, nearest, printable

# Names of folders with the images or the labels of detection and segmentation (YOLO, COCO, VOC).
_IMAGES = frozenset("images image img imgs jpegimages".split())
_ANNOTATIONS = re.compile(
    r"labels?|annotations?|masks?|gt|ground_?truths?|imagesets|segmentation(class|object)",
    re.IGNORECASE,
)
# Names like those of parts, such as "seg_train" and "test1".
_PART_LIKE = re.compile(
    r"(.*[ _-])?(train(ing)?|val(id(ation)?)?|dev|test(ing)?|eval(uation)?)"
    r"[ _-]?(set|images?|imgs?|data)?[ _-]?\d*",
    re.IGNORECASE,
)
# Ends of the names of files with the mask of another image.
_MASK = re.compile(
    r"(.+?)[ _-](mask|seg|segmentation|gt|label|annotation)([ _-]?\d+)?", re.IGNORECASE
)
_ARCHIVES = re.compile(r".*\.(zip|tar|tgz|tbz2?|txz|7z|rar|(tar\.)?(gz|bz2|xz|zst))", re.IGNORECASE)
_MAX_DEPTH = 8  # sub-folders that are entered until classes or parts appear; chosen, not tuned


class _Listing(NamedTuple):
    """The content of one folder, sorted; hidden entries are left out.

    Attributes:
      folders: its sub-folders.
      images: its files with the ending of an image.
      files: the other files.
      litter: entries of systems and tools.
    """

    folders: list[Path]
    images: list[Path]
    files: list[Path]
    litter: list[Path]

    def outside(self) -> list[Skipped]:
        """A row per file, where only folders are read."""
        reason = "it is outside the class folders"
        return [
            Skipped(str(p), BROKEN_LINK if p in self.broken else reason)
            for p in sorted((*self.images, *self.files))
        ]

    @property
    def broken(self) -> list[Path]:
        """The links to a file or folder that does not exist."""
        return [p for p in self.files if isinstance(p, Path) and p.is_symlink() and not p.exists()]


def folder(directory: Path | str, *, min_classes: int = 2) -> DataSpec:
    """A data set whose classes are the sub-folders of a folder.

    Args:
      directory: a folder, local or in a bucket, with one sub-folder per class, or with `train/` and
        other parts, which have one sub-folder per class. Names of parts are those of `PARTS` in any
        letter case. The only sub-folder of a folder is entered. Hidden entries and those of systems
        and tools are left out. Files next to the class folders and files that are not images are
        listed as skipped, and so are broken links and files that cannot be read.
      min_classes: smallest number of classes: 2 to train, 1 to test.

    Returns:
      A `DataSpec` with the sorted names of the sub-folders in Unicode's form NFC as classes and an
      unknown license. Its remarks are on a folder that is entered, folders that are not used,
      similar names, and files that are read by content or not read because of their format.

    Raises:
      ValueError: the folder does not exist or is an archive, has fewer than `min_classes`
        classes, a name of a class is not UTF-8 or occurs twice, a class has no image, a class
        folder holds another folder of images, two folders are the same part, or a test or
        validation part has a class that the training part lacks.
    """
    start = expanded(directory)
    _check_folder(start, str(directory))
    root, remarks = _enter(start)
    listing = _list(root)
    parts, unused, part_remarks = _parts(root, listing)
    parts = {part: _enter_part(path) for part, path in parts.items()}
    litter = list(listing.litter)
    skipped = listing.outside() + unused
    listings = {part: _list(path) for part, path in parts.items()} or {"": listing}
    train = listings.get("train", listing)
    _check_classes(parts.get("train", root), train, root, min_classes)
    names = tuple(normalize(p.name) for p in train.folders)
    classes = tuple(sorted(names))
    remarks += [*part_remarks, *_check_names(train.folders, root), *_part_remarks(names)]
    if train.broken:
        broken = counted(len(train.broken), "broken link")
        remarks.append(
            f"{broken} next to the class folders: {listed(p.name for p in train.broken)}"
        )
    examples: list[Example] = []
    inner: dict[str, int] = {}
    for part, listed_part in listings.items():
        if part not in ("", "train"):
            _check_part(listed_part.folders, classes, part, root)
        if part:
            skipped += listed_part.outside()
            litter += listed_part.litter
        empty: list[tuple[str, list[Skipped]]] = []
        for class_folder in listed_part.folders:
            files = images_under(class_folder)
            if name := _inner_folder(class_folder, files.images, listed_part.folders, root):
                inner[name] = inner.get(name, 0) + 1
            label = classes.index(normalize(class_folder.name))
            examples += [Example(path, label, part=part) for path in files.images]
            skipped += files.skipped
            litter += files.litter
            if not files.images:
                relative = class_folder.relative_to(root).as_posix()
                empty.append((relative, files.skipped))
        _check_empty(empty, root)
    remarks += [
        f"the images of {counted(n, 'class folder')} are read from a folder {name!r} inside"
        for name, n in inner.items()
    ]
    return DataSpec(
        name=f"folder:{directory}",
        examples=tuple(examples),
        classes=classes,
        source=str(absolute(root)),
        license="unknown",
        skipped=(*skipped, *count_litter(litter)),
        remarks=(*remarks, *_file_remarks(examples, skipped, root)),
    )


def _check_folder(root: Path, word: str) -> None:
    """Raises ValueError unless `root` is a folder that can be listed."""
    if is_url(root):
        return storage.list_tree(root)
    where, name = path_end(word), shown(root.name)
    if root.is_dir():
        try:
            os.scandir(root).close()
        except OSError as error:
            raise ValueError(
                f"the data folder {where} cannot be listed: {error.strerror or error}"
            ) from None
        return
    if not root.exists():
        clean = word.strip(" '\"").removeprefix("file://")
        advice = f"; write folder:{printable(clean)[-120:]}" if os.path.isdir(clean) else ""
        raise ValueError(f"the data folder {where} does not exist: {missing(root)}{advice}")
    if root.suffix.lower() in (".csv", ".tsv"):
        raise ValueError(
            f"{where} is a table, expected a folder with one sub-folder per class; write "
            f"csv:{printable(word)[-120:]}"
        )
    if _ARCHIVES.fullmatch(root.name) or (root.is_file() and zipfile.is_zipfile(root)):
        command = f"unzip {name}" if root.suffix.lower() == ".zip" else f"tar -xf {name}"
        raise ValueError(
            f"{where} is an archive, expected a folder with one sub-folder per class; unpack it "
            f"first, for example with {command}"
        )
    raise ValueError(f"{where} is a file, expected a folder with one sub-folder per class")


def _list(root: Path) -> _Listing:
    folders, images, files, litter = [], [], [], []
    for path, is_folder in storage.scan(root):
        if is_litter(path.name):
            litter.append(path)
        elif path.name.startswith("."):
            continue
        elif is_folder:
            folders.append(path)
        elif path.suffix.lower() in SUFFIXES:
            images.append(path)
        else:
            files.append(path)
    return _Listing(folders, images, files, litter)


def _enter(start: Path) -> tuple[Path, list[str]]:
    """The folder with the classes or parts, and a remark if it is not `start`.

    Archives often have one folder at the top. The only sub-folder is entered if it has sub-folders
    and no images.
    """
    root = start
    for _ in range(_MAX_DEPTH):
        listing = _list(root)
        if listing.images or len(listing.folders) != 1:
            break
        inside = _list(listing.folders[0])
        if inside.images or not inside.folders:
            break
        root = listing.folders[0]
    if root == start:
        return root, []
    inside = path_end(root.relative_to(start).as_posix(), 50)
    return root, [f"the data set is read from {inside}, the only folder in {path_end(str(start))}"]


def _enter_part(path: Path) -> Path:
    """The folder of a part, or the only folder in it that has the name of the same part again."""
    listing = _list(path)
    name = listing.folders[0].name if len(listing.folders) == 1 and not listing.images else ""
    same = PARTS.get(name.strip().lower()) == PARTS[path.name.strip().lower()]
    return listing.folders[0] if name and same and _list(listing.folders[0]).folders else path


def _parts(root: Path, listing: _Listing) -> tuple[dict[str, Path], list[Skipped], list[str]]:
    """Name -> folder of each official part; folders that are not used; remarks.

    The first is {} if the folders are the classes themselves. Classes may be called train and
    test, so a part must have sub-folders.
    """
    words = {p: p.name.strip().lower() for p in listing.folders}
    named = {p: PARTS[word] for p, word in words.items() if word in PARTS}
    inside = {p: _list(p) for p in named}
    labeled = {p: part for p, part in named.items() if inside[p].folders}
    where = path_end(str(root))
    _check_export(listing.folders, inside, where)
    others = [p for p in listing.folders if p not in named]
    if not labeled or (len(named) == 1 and any(_list(p).images for p in others)):
        remarks = []
        names = [p.name for p in listing.folders]
        if names[1:] and all(map(_PART_LIKE.fullmatch, names)) and not _part_remarks(names):
            remarks.append(
                f"the folders {listed(names)} are read as classes, because they hold images; a "
                "part has one sub-folder per class"
            )
        return {}, [], remarks
    if "train" not in labeled.values():
        raise ValueError(
            f"{where} has {listed(p.name for p in labeled)} and no training part with class "
            "folders, expected train next to it; or name one part, such as "
            f"folder:DIR/{printable(min(labeled).name)[:20]}"
        )
    first: dict[str, Path] = {}
    for path, part in named.items():
        if (other := first.setdefault(part, path)) is not path:
            raise ValueError(
                f"{where} has the folders {shown(other.name)} and {shown(path.name)}, which are "
                f"both the {part} part, expected one; merge them or rename one"
            )
    reason = "it is not a part with class folders"
    unused = [Skipped(str(p), reason) for p in listing.folders if p not in labeled]
    remarks = [
        f"the folder {shown(p.name)} is not used, because it has "
        f"{counted(len(inside[p].images), 'image')} and no class folders"
        for p in named
        if p not in labeled
    ]
    if others:
        remarks.append(
            f"not used: {listed(p.name for p in others)} next to the parts; names of parts are "
            "train, validation and test"
        )
    order = tuple(dict.fromkeys(PARTS.values()))
    parts = {part: path for path, part in labeled.items()}
    return {part: parts[part] for part in order if part in parts}, unused, remarks


def _check_export(folders: Sequence[Path], parts: dict[Path, _Listing], where: str) -> None:
    """Raises ValueError for the folders of detection and segmentation.

    `parts` has the content of those `folders` that have the name of a part.
    """
    levels = [folders, *(part.folders for part in parts.values())]
    for level in levels:
        images = [p for p in level if p.name.lower() in _IMAGES]
        images += [p for p in level if re.fullmatch(r"(train|val|test)20\d\d", p.name)]
        labels = [p for p in level if _ANNOTATIONS.fullmatch(p.name)]
        if images and labels and len(images) + len(labels) == len(level):
            raise ValueError(
                f"{where} has the folders {shown(images[0].name)} and {shown(labels[0].name)}, as "
                "exports for detection or segmentation (YOLO, COCO, VOC) have, expected one "
                "sub-folder per class; list each image with one label in a file for csv:FILE"
            )
    kinds = (".csv", ".json", ".xml")
    tables = [f for part in parts.values() for f in part.files if f.suffix in kinds]
    if tables and not any(part.folders for part in parts.values()):
        raise ValueError(
            f"{where} has parts with the labels in a file, {shown(tables[0].name)}, expected one "
            "sub-folder per class in each part; list path, label and split of each image in a file "
            "for csv:FILE"
        )


def _check_classes(root: Path, listing: _Listing, top: Path, min_classes: int) -> None:
    """Raises ValueError if there are too few class folders, or a name is not UTF-8."""
    for path in listing.folders:
        if printable(path.name) != path.name:
            guess = os.fsencode(path.name).decode("cp1252", "replace")
            raise ValueError(
                f"the name of the folder {shown(path.name)} of {path_end(str(top))} is not UTF-8, "
                f"expected UTF-8; rename it, if it is cp1252 to {shown(guess)}"
            )
    if len(listing.folders) >= min_classes:
        return
    archives = [p for p in listing.files if _ARCHIVES.fullmatch(p.name)]
    content = f"{counted(len(listing.images), 'image')} and no sub-folder"
    if listing.folders:
        content = f"one sub-folder ({shown(listing.folders[0].name)})"
    elif not listing.images:
        kinds = describe_content([Skipped(str(p), "") for p in listing.files])
        content = f"no sub-folder and {counted(len(listing.files), 'file')}"
        content += f" ({kinds})" if listing.files and not archives else ""
    tables = [p for p in listing.files if p.suffix.lower() in (".csv", ".tsv")]
    advice = ""
    if archives:
        advice = f"; unpack {shown(archives[0].name)} first"
    elif tables:
        advice = f"; if {shown(tables[0].name)} lists the labels, write csv:FILE with its path"
    elif listing.images and not listing.folders:
        advice = "; if it is one class, name the folder that holds it and the other classes"
        stems = [re.sub(r"[\W_]*\d+\W*$", "", path.stem) for path in listing.images]
        if 1 < len(set(stems)) <= len(stems) / 2:
            advice = (
                f"; if the names begin with the class, such as {shown(listing.images[0].name)}, "
                "list path and label of each image in a file for csv:FILE"
            )
    raise ValueError(
        f"{path_end(str(root))} has {content}, expected a sub-folder for each of at least "
        f"{'two classes' if min_classes > 1 else 'one class'}{advice}"
    )


def _part_remarks(names: Sequence[str]) -> list[str]:
    """The remark on class folders that are those of several parts: train_cat, test_cat."""
    words = [re.split(r"[ _-]", name.lower()) for name in names]
    if all((match := _PART_LIKE.fullmatch(name)) and not match[1] for name in names):
        return []  # parts of their own
    for at in (0, -1) if all(len(split) > 1 for split in words) else ():
        parts = {PARTS.get(split[at]) for split in words}
        if len(parts) > 1 and None not in parts:
            return [
                f"each class folder has the name of a part, such as {shown(names[0])}, and is read "
                "as a class; to use the parts, make folders such as test/CLASS"
            ]
    return []


def _check_names(folders: Sequence[Path], root: Path) -> tuple[str, ...]:
    """The remarks of `check_names`; its error names the folder."""
    try:
        return check_names([p.name for p in folders])
    except ValueError as error:
        raise ValueError(f"{path_end(str(root))}: {error}") from None


def _check_part(folders: Sequence[Path], classes: tuple[str, ...], part: str, root: Path) -> None:
    """Raises ValueError if the folders of a part are not different classes of the train part."""
    _check_names(folders, root)
    unknown = [printable(p.name) for p in folders if normalize(p.name) not in classes]
    if unknown:
        close = nearest(unknown[0][:60], [name[:60] for name in classes], 1)
        raise ValueError(
            f"the {part} part of {path_end(str(root))} has {listed(unknown)}, which its train part "
            f"lacks, expected the same classes; nearest: {close}"
        )


def _inner_folder(
    class_folder: Path, images: Sequence[Path], folders: Sequence[Path], root: Path
) -> str:
    """The name of the only sub-folder with the images of a class; "" if they are not in one.

    Raises:
      ValueError: images are in sub-folders that are not called images.
    """
    deep = sorted({p.parent for p in images if p.parent != class_folder})
    if not deep:
        return ""
    if len(deep) == 1 and deep[0].parent == class_folder and deep[0].name.lower() in _IMAGES:
        if all(p.parent == deep[0] for p in images):
            return deep[0].name
    inside = path_end(deep[0].relative_to(root).as_posix())
    advice, name = "move them up", printable(class_folder.name)[:40]
    if all(p.name.lower() in PARTS for p in deep):
        part = printable(deep[0].name)[:20]
        advice = f"make a folder for each part with the classes inside, such as {part}/{name}"
    elif parts := [p.name for p in folders if _PART_LIKE.fullmatch(p.name)]:
        advice = f"rename {shown(parts[0])} to train, validation or test if it is a part"
    elif len(deep) > 1:
        advice = f"give folder:DIR/{name} to learn its sub-folders, move the images up"
    raise ValueError(
        f"{inside} of {path_end(str(root))} is a folder with images inside the class folder "
        f"{shown(class_folder.name)}, expected images only; {advice}, or list all images in a file "
        "for csv:FILE"
    )


def _check_empty(empty: Sequence[tuple[str, Sequence[Skipped]]], root: Path) -> None:
    """Raises ValueError if there are class folders without images."""
    if not empty:
        return
    words = "; in ".join(
        f"{path_end(name, 40)}: {describe_content(files)}" for name, files in empty[:2]
    )
    more = f"; and in {len(empty) - 2} more" if len(empty) > 2 else ""
    advice = how_to_read(empty[0][1]) if empty[0][1] else "add images"
    raise ValueError(
        f"no image in {words}{more}, expected at least one in each class folder of "
        f"{path_end(str(root))}; {advice}, or move the folder elsewhere if it is not a class"
    )


def _file_remarks(examples: Sequence[Example], skipped: Sequence[Skipped], root: Path) -> list[str]:
    """Remarks on images that are read by content, and on those in formats that are not read."""
    remarks = []
    unknown = [e.path for e in examples if e.path.suffix.lower() not in SUFFIXES]
    if unknown:
        file = path_end(os.path.relpath(str(unknown[0]), root), 40)
        remarks.append(
            f"read {counted(len(unknown), 'file')} without the ending of an image by content, such "
            f"as {file}"
        )
    stems = {os.path.splitext(str(e.path))[0] for e in examples}
    if masks := [s for s in sorted(stems) if (m := _MASK.fullmatch(s)) and m[1] in stems]:
        first = path_end(os.path.relpath(masks[0], root), 40)
        remarks.append(
            f"{counted(len(masks), 'image')} may be masks of other images, such as {first}, and "
            "are read as images of their class; move them if so"
        )
    if unread := unread_images(skipped):
        verb = "are" if unread[1:] else "is"
        remarks.append(
            f"{describe_content(unread)} {verb} not read; {how_to_read(unread)} to use them"
        )
    return remarks
