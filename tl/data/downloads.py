"""Public data sets downloaded and unpacked, without TensorFlow.

Each is a row of `SETS`, with the addresses and hashes that TFDS has for it. The result is a folder
of images and the table `images.csv`, which `tl.data.get("csv:FILE")` reads. The sets are those
whose TFDS builders make no TensorFlow call; TFDS itself needs TensorFlow to write any set.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tl import storage
from tl.paths import nearest

TABLE = "images.csv"

# Bytes that are read at a time; chosen, not tuned.
BLOCK = 1 << 20

IMAGES = (".jpg", ".jpeg", ".png")

Parts = Callable[[str, Mapping[str, str]], str]
"""`(name of a member without its ending, texts of the other members) -> part or ""`."""


class Archive(NamedTuple):
    """A file of a data set.

    Attributes:
      url: its address.
      size: in bytes.
      sha256: of its content.
      part: official part of its images; "" if they have none, or `DataSet.parts` decides.
    """

    url: str
    size: int
    sha256: str
    part: str = ""

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]


class DataSet(NamedTuple):
    """A row of `SETS`; the class of an image is its folder.

    Attributes:
      archives: its files.
      license: as published.
      parts: decides the part of an image by a list in the archive; None for `Archive.part`.
    """

    archives: tuple[Archive, ...]
    license: str
    parts: Callable[[Mapping[str, str]], Mapping[str, str]] | None = None


def _food101(texts: Mapping[str, str]) -> dict[str, str]:
    """ "class/number" -> part; TFDS calls the test part "validation"."""
    lists = {part: json.loads(texts[f"food-101/meta/{part}.json"]) for part in ("train", "test")}
    return {
        image: part
        for part, of_class in lists.items()
        for images in of_class.values()
        for image in images
    }


_IBEANS = "https://storage.googleapis.com/ibeans/"
_HORSES = "https://storage.googleapis.com/download.tensorflow.org/data/"

# Addresses, sizes and hashes are those of tensorflow-datasets 4.9.10.
SETS: Mapping[str, DataSet] = {
    "beans": DataSet(
        (
            Archive(
                f"{_IBEANS}train.zip",
                143_812_152,
                "284fe8456ce20687f4367ae7ad94a64577e7f9fde2c2c6b1c74340ab5dc82715",
                "train",
            ),
            Archive(
                f"{_IBEANS}validation.zip",
                18_504_213,
                "90b7aa1c26d91d9afff07a30bbc67a5ea34f1f1397f068d8675be09d7d0c602d",
                "validation",
            ),
            Archive(
                f"{_IBEANS}test.zip",
                17_708_541,
                "ca67b15d960d1e2fd9d23fd8498ce86818ead90755c630a43baf19ec4af09312",
                "test",
            ),
        ),
        "MIT",
    ),
    "food101": DataSet(
        (
            Archive(
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                4_996_278_331,
                "d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
            ),
        ),
        "research (photographs of Foodspotting)",
        _food101,
    ),
    "horses_or_humans": DataSet(
        (
            Archive(
                f"{_HORSES}horse-or-human.zip",
                149_574_867,
                "e2e6f70d3d549c5dd10a57165e55af253ee66ad750403f95c0fb76bb943633a9",
                "train",
            ),
            Archive(
                f"{_HORSES}validation-horse-or-human.zip",
                11_480_187,
                "ae5fff2f4f5554791f05358108e2e05d9801b191f1896ea101402f0e7f6c32c0",
                "test",
            ),
        ),
        "CC BY 2.0",
    ),
    "tf_flowers": DataSet(
        (
            Archive(
                "http://download.tensorflow.org/example_images/flower_photos.tgz",
                228_813_984,
                "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
            ),
        ),
        "CC BY 2.0",
    ),
}
"""Name, as in TFDS -> data set. To add one, add a row."""


def fetch(archive: Archive, folder: Path, *, mirror: str = "", say: Callable[[str], Any]) -> Path:
    """Downloads a file, or what is missing of it, and checks its hash.

    Args:
      archive: the file.
      folder: receives it. A download that was interrupted continues.
      mirror: address of a folder with the same files; "" for the published address.
      say: called with a line of text before a download.

    Raises:
      ValueError: the content differs from the published one; the file is deleted.
      OSError: the address cannot be reached.
    """
    path = folder / archive.name
    if path.exists():
        return path
    url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
    unfinished = path.with_name(f"{path.name}.unfinished")
    start = unfinished.stat().st_size if unfinished.exists() else 0
    say(f"downloading {url}, {archive.size / 1e6:.0f} MB")
    headers = {"Range": f"bytes={start}-"} if start else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        continued = start and answer.status == 206
        with open(unfinished, "ab" if continued else "wb") as file:
            while block := answer.read(BLOCK):
                file.write(block)
    sha = hashlib.sha256()
    with open(unfinished, "rb") as file:
        while block := file.read(BLOCK):
            sha.update(block)
    if sha.hexdigest() != archive.sha256:
        size = unfinished.stat().st_size
        unfinished.unlink()
        raise ValueError(
            f"{url} differs from the published file: got {size} bytes with sha256 "
            f"{sha.hexdigest()[:12]}..., expected {archive.size} with {archive.sha256[:12]}...; "
            "download it again, or use another mirror"
        )
    unfinished.rename(path)
    return path


def members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The name and the content of each regular file in a tar or zip archive."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename, lambda info=info: archive.read(info)
        return
    with tarfile.open(path) as archive:
        for entry in archive:
            if entry.isfile():
                file = archive.extractfile(entry)
                assert file is not None
                yield entry.name, file.read


def prepare(
    name: str, folder: Path, *, mirror: str = "", say: Callable[[str], Any] = lambda line: None
) -> dict[str, Any]:
    """Downloads a data set and unpacks its images.

    Args:
      name: of `SETS`.
      folder: receives the archives, the images as `images/PART/CLASS/FILE`, and `images.csv`, which
        is written last. A call that was interrupted can be repeated.
      mirror: as for `fetch`.
      say: called with lines of text.

    Returns:
      `n`, `classes`, `parts` (part -> number of images), `table` (the path of the CSV file) and
      `license`.

    Raises:
      ValueError: an unknown name, or those of `fetch`.
    """
    if name not in SETS:
        raise ValueError(
            f"unknown data set: got {name!r}, expected {', '.join(SETS)}; nearest: "
            f"{nearest(name, SETS)}"
        )
    row = SETS[name]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [fetch(archive, folder, mirror=mirror, say=say) for archive in row.archives]
    part_of: Mapping[str, str] = {}
    if row.parts:
        texts = {
            member: read().decode("utf-8")
            for path in paths
            for member, read in members(path)
            if member.endswith(".json")
        }
        part_of = row.parts(texts)
    rows = []
    for archive, path in zip(row.archives, paths, strict=True):
        say(f"unpacking {path.name}")
        for member, read in members(path):
            inside = PurePosixPath(member)
            if inside.suffix.lower() not in IMAGES or inside.name.startswith("."):
                continue
            label = inside.parent.name
            part = part_of.get(f"{label}/{inside.stem}", "") if row.parts else archive.part
            if row.parts and not part:
                continue  # in no list
            place = Path("images", part or "all", label, inside.name)
            target = folder / place
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                storage.write_whole(target, read())
            rows.append((place.as_posix(), label, part))
    with io.StringIO(newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        width = 3 if any(part for *_, part in rows) else 2
        writer.writerow(("path", "label", "split")[:width])
        writer.writerows(one[:width] for one in sorted(rows))
        storage.write_whole(folder / TABLE, file.getvalue().encode())
    parts = [part for *_, part in rows]
    return {
        "data": name,
        "n": len(rows),
        "classes": sorted({label for _, label, _ in rows}),
        "parts": {part or "all": parts.count(part) for part in dict.fromkeys(parts)},
        "table": str(folder / TABLE),
        "license": row.license,
    }
