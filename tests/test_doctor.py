"""Every kind of finding, on a data set that has one of each; the page, and the command."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import doctor as command
from tests import toys
from tl import pages, reporting
from tl.data import DataSpec, Example, Source, folder
from tl.data.doctor import examine


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def wide_color() -> bytes:
    """A PNG of 2 x 2 pixels with 16 bits per channel, which Pillow cannot write."""
    chunk = lambda kind, body: (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    )
    pixels = zlib.compress(b"".join(b"\0" + bytes(range(12)) for _ in range(2)))
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def two_frames() -> bytes:
    return toys.encoded(
        toys.photograph(20), "GIF", save_all=True, append_images=[toys.photograph(21)]
    )


FILES: dict[str, bytes] = {
    "cat/fine.jpg": toys.encoded(toys.photograph(0), "JPEG"),
    "cat/fine.png": toys.encoded(toys.photograph(1), "PNG"),
    "cat/cut.jpg": toys.encoded(toys.photograph(2), "JPEG")[:-400],
    "cat/empty.jpg": b"",
    "cat/page.jpg": b"<html>not found</html>",
    "cat/gif.jpg": toys.encoded(toys.photograph(3), "GIF"),
    "cat/png.JPEG": toys.encoded(toys.photograph(4), "PNG"),
    "cat/gray.png": toys.encoded(toys.photograph(5).convert("L"), "PNG"),
    "cat/cmyk.jpg": toys.encoded(toys.photograph(6).convert("CMYK"), "JPEG"),
    "cat/deep.png": toys.encoded(
        Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)), "PNG"
    ),
    "cat/wide.png": wide_color(),
    "cat/clear.png": toys.encoded(toys.photograph(7).convert("RGBA"), "PNG"),
    "cat/moving.gif": two_frames(),
    "cat/turned.jpg": toys.encoded(toys.photograph(8), "JPEG", exif=turned()),
    "cat/Abyssinian_34.jpg": toys.encoded(toys.photograph(9), "GIF"),
    "dog/one.png": toys.encoded(toys.photograph(10), "PNG"),
    "dog/same.png": toys.encoded(toys.photograph(10), "PNG"),
    "dog/saved again.jpg": toys.encoded(toys.photograph(10), "JPEG", quality=70),
    "dog/also a cat.png": toys.encoded(toys.photograph(1), "PNG"),
    "dog/fine.png": toys.encoded(toys.photograph(11), "PNG"),
}


@pytest.fixture
def defective(tmp_path: Path) -> DataSpec:
    for name, content in FILES.items():
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pets" / name).write_bytes(content)
    return folder(tmp_path / "pets")


def reasons(findings: tuple) -> dict[str, str]:
    return {source.name: reason for source, reason in findings}


def names(groups: tuple[tuple[Source, ...], ...] | None) -> list[set[str]]:
    return [{source.name for source in group} for group in groups or ()]


def test_images_are_counted(defective: DataSpec) -> None:
    report = examine(defective)
    assert (report.n, report.classes, report.parts) == (20, {"cat": 15, "dog": 5}, {})


def test_images_that_cannot_be_decoded_are_reported(defective: DataSpec) -> None:
    broken = reasons(examine(defective).broken)
    assert set(broken) == {"cut.jpg", "empty.jpg", "page.jpg"}
    assert "truncated" in broken["cut.jpg"]
    assert "0 bytes" in broken["empty.jpg"]
    assert broken["page.jpg"] == "is an HTML file; download the image again"


def test_formats_and_modes_are_reported(defective: DataSpec) -> None:
    report = examine(defective)
    assert reasons(report.misnamed) == {
        "gif.jpg": "it is a GIF, its name ends in .jpg",
        "png.JPEG": "it is a PNG, its name ends in .JPEG",
        "Abyssinian_34.jpg": "it is a GIF, its name ends in .jpg",
    }
    assert reasons(report.odd) == {
        "gif.jpg": "a palette: becomes RGB",
        "Abyssinian_34.jpg": "a palette: becomes RGB",
        "gray.png": "gray: repeated three times",
        "cmyk.jpg": "CMYK: converted without its color profile",
        "deep.png": "16-bit gray: value / 257",
        "wide.png": "16-bit color: the high byte is kept",
        "clear.png": "transparent: composited on white",
        "moving.gif": "a palette: becomes RGB; more than one frame: the first is used",
    }
    assert reasons(report.turned) == {"turned.jpg": "EXIF orientation 6: it is turned upright"}


def test_known_defects_of_published_sets_are_reported(defective: DataSpec) -> None:
    assert reasons(examine(defective).known) == {
        "Abyssinian_34.jpg": "known in the published data set: it is a GIF; "
        "this file can be decoded"
    }


def test_duplicates_and_contradicting_labels_are_reported(defective: DataSpec) -> None:
    report = examine(defective)
    assert names(report.duplicates) == [{"fine.png", "also a cat.png"}, {"one.png", "same.png"}]
    assert names(report.near_duplicates) == [{"one.png", "same.png", "saved again.jpg"}]
    assert names(report.two_labels) == [{"fine.png", "also a cat.png"}]
    assert report.leaks == ()


def test_leaks_between_official_parts_are_reported(defective: DataSpec) -> None:
    part = {"saved again.jpg": "test", "also a cat.png": "test"}
    examples = tuple(
        dataclasses.replace(e, part=part.get(e.path.name, "train")) for e in defective.examples
    )
    report = examine(dataclasses.replace(defective, examples=examples))
    assert report.parts == {"train": 18, "test": 2}
    assert names(report.leaks) == [
        {"fine.png", "also a cat.png"},
        {"one.png", "same.png", "saved again.jpg"},
    ]


def test_a_deleted_file_is_reported(defective: DataSpec) -> None:
    defective.examples[0].path.unlink()
    (finding,) = [f for f in examine(defective).broken if "No such file" in f.reason]
    assert finding.source == defective.examples[0].path


def test_near_duplicates_are_unknown_if_all_images_are_similar(tmp_path: Path) -> None:
    examples = []
    for i in range(12):
        cell = toys.photograph(0)
        cell.putpixel((i, 5), (255, 0, 0))
        cell.save(tmp_path / f"{i}.png")
        examples.append(Example(tmp_path / f"{i}.png", i % 2))
    report = examine(DataSpec("cells", tuple(examples), ("a", "b"), "", ""))
    assert report.near_duplicates is None and report.two_labels == ()
    assert report.as_dict()["near_duplicates"] is None


# ---- the command ----


def state(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(root.rglob("*"))}


@pytest.fixture
def run(defective: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> reporting.Run:
    """A finished run of the command, which must not change the data set."""
    before = state(tmp_path / "pets")
    monkeypatch.setattr(
        command, "FLAGS", type("Flags", (), {"data": f"folder:{tmp_path / 'pets'}", "weights": ""})
    )
    run = reporting.start("doctor", tmp_path / "run", {"seed": 0})
    command.main(run)
    assert state(tmp_path / "pets") == before
    return run


def test_the_result_of_the_command_has_all_findings(run: reporting.Run) -> None:
    result = json.loads((run.workdir / "result.json").read_text())
    assert result["n"] == 20 and result["classes"] == {"cat": 15, "dog": 5}
    names = {os.path.basename(row["path"]) for row in result["bad"]}
    assert names == {"cut.jpg", "empty.jpg", "page.jpg"}
    assert all(row["why"] for row in result["bad"])
    assert [len(group) for group in result["duplicates"]] == [2, 2]
    assert [len(group) for group in result["near_duplicates"]] == [3]


def test_the_page_shows_findings_and_groups(run: reporting.Run) -> None:
    html = (run.workdir / "report.html").read_text()
    for text in (
        "Images that cannot be decoded",
        "Identical files",
        "Duplicates with different labels",
        "also a cat.png",
        "cut.jpg",
    ):
        assert text in html
    assert len(re.findall(r"<img ", html)) == 2 + 2 + 2 + 3


def test_the_page_is_drawn_again_without_the_images(run: reporting.Run, tmp_path: Path) -> None:
    html = (run.workdir / "report.html").read_text()
    shutil.rmtree(tmp_path / "pets")
    assert pages.redraw(run.workdir).read_text().split("<footer")[0] == html.split("<footer")[0]


def test_the_command_prints_the_images_that_cannot_be_decoded(
    capsys: pytest.CaptureFixture[str], run: reporting.Run
) -> None:
    assert capsys.readouterr().out.count("cannot be decoded: ") == 3
