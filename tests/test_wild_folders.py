"""Folders of images as tools export them, names that are not UTF-8, and the parts of a data set."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests import toys, wild
from tl import data, inference, paths, reporting
from tl.data import formats
from tl.data.tfds import _parts
from tl.evaluation import paired, sets
from tl.evaluation.before import TransferSettings
from tl.evaluation.transfer import transfer
from tl.pages import doctor as pages_doctor
from tl.training.recipe import Recipe


@pytest.mark.parametrize("situation", wild.FOLDERS, ids=lambda situation: situation.name)
def test_a_folder_is_read_or_refused_in_one_sentence(
    situation: wild.Situation, tmp_path: Path
) -> None:
    if formats.HEIF and "HEIC" in situation.refused + situation.remark:
        pytest.skip("pillow-heif is installed")
    spec, right = wild.data_set(situation, tmp_path), situation.right
    if spec is None:
        return
    parts = right.get("parts", {"": right.get("n", 4)})
    assert spec.classes == right.get("classes", ("cat", "dog"))
    assert Counter(e.part for e in spec.examples) == parts
    assert len(spec.examples) == len({e.path for e in spec.examples}) == sum(parts.values())
    assert all(data.decode(e.path).shape == (8, 8, 3) for e in spec.examples)
    matches = [re.search(situation.remark, remark) for remark in spec.remarks]
    assert any(matches) if situation.remark else not spec.remarks, spec.remarks
    assert all(len(remark) <= 200 for remark in spec.remarks)
    if "skipped" in right:
        assert len(spec.skipped) == right["skipped"], spec.skipped


def test_there_are_many_situations_with_different_names() -> None:
    assert max(Counter(situation.name for situation in wild.FOLDERS).values()) == 1
    assert len(wild.FOLDERS) > 60


@pytest.mark.parametrize(
    ("name", "classes", "parts", "skipped"),
    [
        ("valid_split_folder", ("cat", "dog"), {"train": 8, "validation": 8}, 0),
        ("train_val_only", ("cat", "dog"), {"train": 16, "validation": 8}, 0),
        ("litter", ("cat", "dog"), {"": 12}, 2),
        ("nfd_test", ("caf\u00e9", "th\u00e9"), {"train": 8, "test": 8}, 0),
        ("lonely_class", ("bird", "cat", "dog"), {"": 13}, 0),
    ],
)
def test_shared_folders_are_read(
    shared_data: Path, name: str, classes: tuple[str, ...], parts: dict[str, int], skipped: int
) -> None:
    spec = data.get(shared_case(shared_data, name))
    assert spec.classes == classes and Counter(e.part for e in spec.examples) == parts
    assert len(spec.skipped) == skipped and spec.remarks == ()


def test_a_shared_folder_of_heic_files_is_refused_or_read(shared_data: Path) -> None:
    with pytest.raises(ValueError, match="'dog'.*HEIC"):
        data.check_readable(data.get(shared_case(shared_data, "heic_all")))


def test_a_class_of_one_image_is_refused_where_a_part_is_drawn(
    shared_data: Path, tmp_path: Path
) -> None:
    spec = data.get(shared_case(shared_data, "lonely_class"))
    with pytest.raises(ValueError, match="^'bird' has 1 different images, expected at least 2"):
        data.divide(spec, seed=0)
    for name in wild.two(*(f"class{i:03}" + "x" * 200 for i in range(40)), n=1):
        toys.gray_png(tmp_path / name, len(list(tmp_path.glob("*/*"))))
    with pytest.raises(ValueError, match="and 35 more have too few, expected") as caught:
        data.divide(data.folder(tmp_path), seed=0)
    assert len(str(caught.value)) < 400


# ---- parts ----

PARTS = [
    # parts, remarks
    ((), ()),
    (
        ("train", "val"),
        ("the test part is 2 images held out of train: the data set has no test part",),
    ),
    (
        ("training", "test"),
        ("the validation part is 2 images held out of train: the data set has no validation part",),
    ),
    (("train", "val", "test"), ()),
    (
        ("train", "val/cat", "test"),
        ("the validation part has images of 1 of 2 classes, none of 'dog'",),
    ),
    (
        ("train", "val", "test/dog"),
        ("the test part has images of 1 of 2 classes, none of 'cat'",),
    ),
    (
        ("train", "val/dog"),
        (
            "the validation part has images of 1 of 2 classes, none of 'cat'",
            "the test part is 2 images held out of train: the data set has no test part",
        ),
    ),
]


def with_parts(folder: Path, parts: tuple[str, ...]) -> data.DataSpec:
    """Classes of different images in these parts, or parts of one class such as `val/cat`."""
    images = iter(range(256))
    for part in parts or ("",):
        for name in ("cat", "dog") if "/" not in part else ("",):
            for i in range(6):
                toys.gray_png(folder / part / name / f"{i}.png", 4 * next(images))
    return data.folder(folder)


@pytest.mark.parametrize(("parts", "remarks"), PARTS, ids=["+".join(p) for p, _ in PARTS])
def test_parts_that_are_drawn_or_incomplete_are_remarked(
    tmp_path: Path, parts: tuple[str, ...], remarks: tuple[str, ...]
) -> None:
    spec = with_parts(tmp_path, parts)
    divided = data.divide(spec, test_fraction=0.15, seed=0)
    assert data.part_remarks(spec, divided) == remarks
    # A separate test set is not a part of this data set.
    other = divided._replace(test=with_parts(tmp_path / "other", ()))
    assert not [r for r in data.part_remarks(spec, other) if "test part is" in r]


@pytest.mark.parametrize(
    ("parts", "part", "n", "remark"),
    [
        ((), "", 12, ""),
        (("train", "val", "test"), "", 12, "the test part is tested: 12 of 36 images"),
        (("train", "test"), "test", 12, ""),
        (("train", "val"), "all", 24, ""),
        (
            ("train", "val"),
            "",
            24,
            "all 24 images are tested, because the data set has parts (train, validation) but no "
            "test part; choose one with part=validation",
        ),
    ],
)
def test_the_images_that_evaluate_tests_are_remarked(
    tmp_path: Path, parts: tuple[str, ...], part: str, n: int, remark: str
) -> None:
    chosen = sets.select_part(with_parts(tmp_path, parts), part)
    assert len(chosen.examples) == n and chosen.remarks == ((remark,) if remark else ())


def test_transfer_reports_the_drawn_test_part_before_training(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = data.get(shared_case(shared_data, "train_val_only"))
    clf, variables = toys.classifier()
    run = reporting.start("transfer", tmp_path, {"seed": 0})
    lines: list[str] = []
    settings = TransferSettings(Recipe(tune="probe"))
    result = transfer(run, clf, variables, spec, None, settings, say=lines.append)
    remark = "the test part is 4 images held out of train: the data set has no test part"
    assert run.remarks == [remark] and remark in capsys.readouterr().out
    assert result["sizes"] == {"train": 12, "validation": 8, "test": 4}
    run.finish(result, None)
    assert json.loads((tmp_path / "result.json").read_text())["remarks"] == [remark]


def test_splits_of_tfds_have_the_names_of_parts() -> None:
    of = _parts
    assert of(["test", "train"]) == {"train": "train", "test": "test"}
    assert of(["Train", "VALID"]) == {"Train": "train", "VALID": "validation"}
    assert of(["training", "testing"]) == {"training": "train", "testing": "test"}
    assert of(["dev", "train", "validation"]) == {"train": "train", "validation": "validation"}
    assert of(["train"]) == {"train": ""} and of(["a", "b"]) == {"a": "", "b": ""}


# ---- files that cannot be read ----


def test_files_and_folders_that_cannot_be_read_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild.tree(*wild.two(), "cat/locked.png", "cat/sealed.dat", "dog/closed/")(tmp_path)
    os.mkfifo(tmp_path / "dog/pipe.png")
    access, scandir, opened = os.access, os.scandir, open

    def refuse(name: str, work):
        def call(path, *args, **kwargs):
            if str(path).endswith(name):
                raise PermissionError(13, "Permission denied", str(path))
            return work(path, *args, **kwargs)

        return call

    monkeypatch.setattr(
        os, "access", lambda path, mode: "locked" not in str(path) and access(path, mode)
    )
    monkeypatch.setattr(os, "scandir", refuse("closed", scandir))
    monkeypatch.setattr("builtins.open", refuse("sealed.dat", opened))
    spec = data.folder(tmp_path)
    assert len(spec.examples) == 4
    assert {Path(s.path).name: s.why for s in spec.skipped} == {
        "locked.png": "it cannot be read (permission denied)",
        "sealed.dat": "it cannot be read (Permission denied)",
        "pipe.png": "it is a pipe, a socket or a device",
        "closed": "the folder cannot be listed (Permission denied)",
    }
    monkeypatch.setattr(os, "scandir", refuse("dog", scandir))
    with pytest.raises(ValueError, match="^no image in 'dog': 1 unreadable folder, expected"):
        data.folder(tmp_path)
    monkeypatch.setattr(os, "scandir", refuse(tmp_path.name, scandir))
    with pytest.raises(ValueError, match="cannot be listed: Permission denied"):
        data.folder(tmp_path)


def test_only_files_with_an_unknown_ending_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild.tree(*wild.two(), "cat/a.txt", "cat/b.csv", "cat/c.mp4", "cat/d.HEIC", "dog/e")(tmp_path)
    names, opened = [], open

    def record(path, *args, **kwargs):
        names.append(Path(path).name)
        return opened(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", record)
    data.folder(tmp_path)
    assert names == ([] if formats.HEIF else ["d.HEIC"]) + ["e"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_every_format_is_recognized_by_content(tmp_path: Path, kind: str) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "x", kind)
    (tmp_path / "text").write_text("BM is not enough, and P5 is not either")
    assert data.find_images(str(tmp_path))[0] == (tmp_path / "x",)


# ---- names that are not UTF-8 ----

NAMES = [b"caf\xe9", b"\xfcber", b"na\xefve", b"\xdf", b"10\xb0"]


@pytest.mark.parametrize("name", NAMES, ids=[paths.printable(os.fsdecode(n)) for n in NAMES])
def test_file_names_that_are_not_utf8_are_read_and_reported(tmp_path: Path, name: bytes) -> None:
    folder, text = tmp_path / "set", os.fsdecode(name)
    wild.tree(*wild.two(), b"cat/" + name + b".png", b"cat/" + name + b".txt")(folder)
    (folder / f"cat/{text}.txt").write_bytes(b"x")
    spec = data.folder(folder)
    run = reporting.start("evaluate", tmp_path / text, {"seed": 0, "data": text})
    logits = np.zeros((len(spec.examples), 2), np.float32)
    files = [e.path for e in spec.examples]
    known = np.array([e.label for e in spec.examples])
    clf, _ = toys.classifier(classes=spec.classes)
    paired.save_predictions(run, clf, {0: inference.Predictions(logits, known, tuple(files))})
    run.figure(text, np.zeros((2, 2, 3), np.uint8))
    run.remark(f"a remark on {text}")
    run.log({"path": text})
    skipped = [skip._asdict() for skip in spec.skipped]
    page = reporting.page(text, "", [reporting.skipped(skipped)], facts=run.facts())
    run.finish({"skipped": skipped, "paths": files, text: text}, page)
    escaped = paths.printable(text)
    result = json.loads((run.workdir / "result.json").read_bytes().decode("ascii"))
    assert result["skipped"][0]["path"].endswith(f"cat/{escaped}.txt")
    assert result[escaped] == escaped and any(escaped in path for path in result["paths"])
    assert escaped in (run.workdir / "report.html").read_text(encoding="utf-8")
    with open(run.workdir / "predictions.csv", encoding="utf-8", newline="") as file:
        assert any(row["path"].endswith(f"{escaped}.png") for row in csv.DictReader(file))
    assert json.loads((run.workdir / "config.json").read_text())["flags"]["data"] == escaped


def test_a_console_shows_names_that_are_not_utf8_escaped(tmp_path: Path) -> None:
    wild.tree(*wild.two(), b"cat/caf\xe9")(tmp_path / "set")
    command = [sys.executable, "-m", "experiments.doctor", f"--data=folder:{tmp_path / 'set'}"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"], capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert rb"such as 'cat/caf\xe9'" in done.stdout


def shared_case(shared_data: Path, name: str) -> str:
    folder = shared_data / "cases" / name
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return f"folder:{folder}"


def test_the_doctor_says_which_parts_a_data_set_has() -> None:
    result = {
        "classes": {"cat": 3, "dog": 5},
        "parts": {"train": 6, "validation": 2},
        "skipped": [{"path": "x/a.txt", "why": "it is a text"}],
    }
    assert pages_doctor.set_lines(result) == [
        "2 classes: dog 5, cat 3",
        "parts: train 6, validation 2; transfer draws test from train",
        "left out: 1, such as x/a.txt: it is a text",
    ]
    assert pages_doctor.set_lines(result | {"parts": {"": 8}, "skipped": []}) == [
        "2 classes: dog 5, cat 3"
    ]
