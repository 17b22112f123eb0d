"""Every kind of finding on a set made to have it, one of each; and the command, which changes nothing."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import doctor as command
from tl import reporting
from tl.data import DataSpec, Example, Source, folder
from tl.data.doctor import examine


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))


def photograph(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def wide_colour() -> bytes:
    """A PNG of 2 x 2 pixels with 16 bits a channel, which Pillow cannot write."""
    chunk = lambda kind, body: (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    )
    pixels = zlib.compress(b"".join(b"\0" + bytes(range(12)) for _ in range(2)))
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def two_frames() -> bytes:
    return encoded(photograph(20), "GIF", save_all=True, append_images=[photograph(21)])


FILES: dict[str, bytes] = {
    "cat/fine.jpg": encoded(photograph(0), "JPEG"),
    "cat/fine.png": encoded(photograph(1), "PNG"),
    "cat/cut.jpg": encoded(photograph(2), "JPEG")[:-400],
    "cat/empty.jpg": b"",
    "cat/page.jpg": b"<html>not found</html>",
    "cat/gif.jpg": encoded(photograph(3), "GIF"),
    "cat/png.JPEG": encoded(photograph(4), "PNG"),
    "cat/grey.png": encoded(photograph(5).convert("L"), "PNG"),
    "cat/cmyk.jpg": encoded(photograph(6).convert("CMYK"), "JPEG"),
    "cat/deep.png": encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)), "PNG"),
    "cat/wide.png": wide_colour(),
    "cat/clear.png": encoded(photograph(7).convert("RGBA"), "PNG"),
    "cat/moving.gif": two_frames(),
    "cat/turned.jpg": encoded(photograph(8), "JPEG", exif=turned()),
    "cat/Abyssinian_34.jpg": encoded(photograph(9), "GIF"),
    "dog/one.png": encoded(photograph(10), "PNG"),
    "dog/same.png": encoded(photograph(10), "PNG"),
    "dog/saved again.jpg": encoded(photograph(10), "JPEG", quality=70),
    "dog/also a cat.png": encoded(photograph(1), "PNG"),
    "dog/fine.png": encoded(photograph(11), "PNG"),
}


@pytest.fixture
def sick(tmp_path: Path) -> DataSpec:
    for name, content in FILES.items():
        (tmp_path / "sick" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sick" / name).write_bytes(content)
    return folder(tmp_path / "sick")


def said(remarks: tuple) -> dict[str, str]:
    return {source.name: why for source, why in remarks}


def names(groups: tuple[tuple[Source, ...], ...] | None) -> list[set[str]]:
    return [{source.name for source in group} for group in groups or ()]


def test_every_finding(sick: DataSpec) -> None:
    found = examine(sick)
    assert (found.n, found.classes, found.parts) == (20, {"cat": 15, "dog": 5}, {})
    broken = said(found.broken)
    assert set(broken) == {"cut.jpg", "empty.jpg", "page.jpg"}
    assert (
        "truncated" in broken["cut.jpg"]
        and "0 bytes" in broken["empty.jpg"]
        and "<html>" in broken["page.jpg"]
    )
    assert said(found.misnamed) == {
        "gif.jpg": "it is a GIF, its name ends in .jpg",
        "png.JPEG": "it is a PNG, its name ends in .JPEG",
        "Abyssinian_34.jpg": "it is a GIF, its name ends in .jpg",
    }
    assert said(found.odd) == {
        "gif.jpg": "a palette: becomes RGB",
        "Abyssinian_34.jpg": "a palette: becomes RGB",
        "grey.png": "grey: repeated three times",
        "cmyk.jpg": "CMYK: converted without its colour profile",
        "deep.png": "16-bit grey: value / 257",
        "wide.png": "16-bit colour: the high byte is kept",
        "clear.png": "transparent: laid on white",
        "moving.gif": "a palette: becomes RGB; more than one frame: the first is taken",
    }
    assert said(found.turned) == {"turned.jpg": "EXIF orientation 6: it is turned upright"}
    assert said(found.known) == {
        "Abyssinian_34.jpg": "known in the published set: it is a GIF; this one can be decoded"
    }
    assert names(found.duplicates) == [{"fine.png", "also a cat.png"}, {"one.png", "same.png"}]
    assert names(found.near_duplicates) == [{"one.png", "same.png", "saved again.jpg"}]
    assert names(found.two_labels) == [{"fine.png", "also a cat.png"}]
    assert found.leaks == ()


def test_leaks_between_official_parts(sick: DataSpec) -> None:
    part = {"saved again.jpg": "test", "also a cat.png": "test"}
    examples = tuple(
        dataclasses.replace(e, part=part.get(e.path.name, "train")) for e in sick.examples
    )
    found = examine(dataclasses.replace(sick, examples=examples))
    assert found.parts == {"train": 18, "test": 2}
    assert names(found.leaks) == [
        {"fine.png", "also a cat.png"},
        {"one.png", "same.png", "saved again.jpg"},
    ]


def test_a_file_that_is_gone(sick: DataSpec) -> None:
    sick.examples[0].path.unlink()
    (gone,) = [r for r in examine(sick).broken if "No such file" in r.why]
    assert gone.source == sick.examples[0].path


def test_where_all_are_alike(tmp_path: Path) -> None:
    examples = []
    for i in range(12):
        cell = photograph(0)
        cell.putpixel((i, 5), (255, 0, 0))
        cell.save(tmp_path / f"{i}.png")
        examples.append(Example(tmp_path / f"{i}.png", i % 2))
    found = examine(DataSpec("cells", tuple(examples), ("a", "b"), "", ""))
    assert found.near_duplicates is None and found.two_labels == ()


def state(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(root.rglob("*"))}


def test_the_command_tells_all_and_changes_nothing(
    sick: DataSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = state(tmp_path / "sick")
    monkeypatch.setattr(
        command, "FLAGS", type("Flags", (), {"data": f"folder:{tmp_path / 'sick'}"})
    )
    run = reporting.start("doctor", tmp_path / "run", {"seed": 0})
    command.main(run)
    assert state(tmp_path / "sick") == before
    result = json.loads((run.workdir / "result.json").read_text())
    assert result["n"] == 20 and result["classes"] == {"cat": 15, "dog": 5}
    assert {os.path.basename(row["path"]) for row in result["bad"]} == {
        "cut.jpg",
        "empty.jpg",
        "page.jpg",
    }
    assert all(row["why"] for row in result["bad"])
    assert [len(group) for group in result["duplicates"]] == [2, 2]
    assert [len(group) for group in result["near_duplicates"]] == [3]
    html = (run.workdir / "report.html").read_text()
    for title in (
        "Cannot be decoded",
        "Equal files",
        "The same picture under two labels",
        "also a cat.png",
        "cut.jpg",
    ):
        assert title in html
    assert len(re.findall(r"<img ", html)) == 2 + 2 + 2 + 3
    assert "broken: " in capsys.readouterr().out
