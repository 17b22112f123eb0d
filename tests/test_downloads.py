"""Public data sets, downloaded from a server of this machine."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tl import data, pages
from tl.data import downloads
from tl.data.downloads import SETS, Archive, DataSet, fetch, prepare


def image(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG")
        return file.getvalue()


def packed(name: str, files: dict[str, bytes]) -> bytes:
    with io.BytesIO() as file:
        if name.endswith(".zip"):
            with zipfile.ZipFile(file, "w") as archive:
                for member, content in files.items():
                    archive.writestr(member, content)
        else:
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for member, content in files.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return file.getvalue()


# Archives of each set with the member names of the published ones, and the expected parts.
FOOD = {
    **{
        f"food-101/images/{c}/{i}.jpg": image(10 * k + i)
        for k, c in enumerate(("apple_pie", "waffles"))
        for i in range(4)
    },
    "food-101/images/waffles/99.jpg": image(99),  # in no list
    "food-101/meta/train.json": json.dumps(
        {c: [f"{c}/{i}" for i in range(3)] for c in ("apple_pie", "waffles")}
    ).encode(),
    "food-101/meta/test.json": json.dumps(
        {c: [f"{c}/3"] for c in ("apple_pie", "waffles")}
    ).encode(),
}
CONTENT = {
    "food101": {"food-101.tar.gz": FOOD},
    "beans": {
        f"{part}.zip": {
            f"{part}/{c}/{part}_{i}.jpg": image(100 * k + 10 * j + i)
            for k, c in enumerate(("healthy", "bean_rust"))
            for i in range(2)
        }
        for j, part in enumerate(("train", "validation", "test"))
    },
    "horses_or_humans": {
        name: {
            f"{c}/{name[:3]}-{i}.png": image(200 + 10 * k + 5 * j + i)
            for k, c in enumerate(("horses", "humans"))
            for i in range(2)
        }
        for j, name in enumerate(("horse-or-human.zip", "validation-horse-or-human.zip"))
    },
    "tf_flowers": {
        "flower_photos.tgz": {
            **{
                f"flower_photos/{c}/{i}.jpg": image(300 + 10 * k + i)
                for k, c in enumerate(("roses", "tulips"))
                for i in range(3)
            },
            "flower_photos/LICENSE.txt": b"CC BY 2.0",
        }
    },
}
PARTS = {
    "food101": {"train": 6, "test": 2},
    "beans": {"train": 4, "validation": 4, "test": 4},
    "horses_or_humans": {"train": 4, "test": 4},
    "tf_flowers": {"all": 6},
}


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and parts of files, without a log."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, wanted = path.read_bytes(), self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
        self.send_response(206 if start else 200)
        self.end_headers()
        self.wfile.write(content[start:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address and folder of a server that has the archives of all sets."""
    folder = tmp_path_factory.mktemp("mirror")
    for archives in CONTENT.values():
        for name, files in archives.items():
            (folder / name).write_bytes(packed(name, files))
    handler = lambda *args: Server(*args, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture()
def small(mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the mirror; the table has the hashes of its small archives."""
    address, folder = mirror

    def served(archive: Archive) -> Archive:
        content = (folder / archive.name).read_bytes()
        return archive._replace(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    rows = {
        name: row._replace(archives=tuple(map(served, row.archives))) for name, row in SETS.items()
    }
    monkeypatch.setattr(downloads, "SETS", rows)
    return address


@pytest.mark.parametrize("name", SETS)
def test_a_set_becomes_a_table_with_the_official_parts(
    name: str, small: str, tmp_path: Path
) -> None:
    result = prepare(name, tmp_path / "set", mirror=small)
    assert result["parts"] == PARTS[name] and result["n"] == sum(PARTS[name].values())
    spec = data.get(f"csv:{result['table']}")
    assert list(spec.classes) == result["classes"]
    assert len(spec.examples) == result["n"]
    parts = [example.part or "all" for example in spec.examples]
    assert {part: parts.count(part) for part in parts} == PARTS[name]
    assert pages.PAGES["prepare"](result, tmp_path).sections
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*.jpg")}
    assert prepare(name, tmp_path / "set", mirror="http://127.0.0.1:1") == result  # no download
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_interrupted_download_continues(small: str, mirror: tuple[str, Path], tmp_path: Path):
    archive = downloads.SETS["tf_flowers"].archives[0]
    whole = (mirror[1] / archive.name).read_bytes()
    (tmp_path / f"{archive.name}.unfinished").write_bytes(whole[:100])
    path = fetch(archive, tmp_path, mirror=small, say=lambda line: None)
    assert path.read_bytes() == whole and not list(tmp_path.glob("*.unfinished"))


def test_other_content_and_unknown_names_are_refused(
    mirror: tuple[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="differs from the published file: got .* expected 228"):
        prepare("tf_flowers", tmp_path / "set", mirror=mirror[0])
    assert not list((tmp_path / "set").glob("*"))
    with pytest.raises(ValueError, match="unknown data set: got 'bean'.*nearest: .*beans"):
        prepare("bean", tmp_path)
    with pytest.raises(OSError):
        prepare("beans", tmp_path / "none", mirror=f"{mirror[0]}/nowhere")


def test_every_row_has_published_hashes() -> None:
    for row in SETS.values():
        assert isinstance(row, DataSet) and row.license
        for archive in row.archives:
            assert len(archive.sha256) == 64 and archive.size > 1e7 and archive.url.count("/") >= 3
