"""Sources of labeled images: folders with parts, tables, archives, and sets prepared by TFDS."""

from __future__ import annotations

import concurrent.futures
import csv
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tl.data
from tests import toys
from tl.data import (
    DataSpec,
    Example,
    ImageError,
    Record,
    content_hash,
    decode,
    divide,
    doctor,
    folder,
    get,
    table,
    tfds,
)
from tl.data.loader import stream
from tl.data.plan import Plan
from tl.data.tfds import KNOWN_BAD, known_bad


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))


def encoded(value: int, kind: str = "PNG") -> bytes:
    """An image file of one gray value."""
    return toys.encoded(Image.new("RGB", (8, 6), (value, value, value)), kind)


# ---- folder ----


def class_and_part(spec: DataSpec) -> list[tuple[str, str, str]]:
    """(last two parts of the path, class, part) of every image."""
    return [("/".join(e.path.parts[-2:]), spec.classes[e.label], e.part) for e in spec.examples]


@pytest.mark.parametrize("val", ["", "val", "validation"])
def test_train_and_test_folders_are_official_parts(tmp_path: Path, val: str) -> None:
    for i, part in enumerate(filter(None, ("train", "test", val))):
        toys.gray_png(tmp_path / part / "dog/1.png", 2 * i)
        toys.gray_png(tmp_path / part / "cat/1.png", 2 * i + 1)
    toys.gray_png(tmp_path / "train/README.png")
    (tmp_path / "notes.txt").write_text("x")
    spec = folder(tmp_path)
    assert spec.classes == ("cat", "dog")
    parts = ["train", *(["validation"] if val else []), "test"]
    assert sorted(class_and_part(spec)) == sorted(
        (f"{c}/1.png", c, part) for part in parts for c in ("cat", "dog")
    )
    assert sorted(Path(s.path).name for s in spec.skipped) == ["README.png", "notes.txt"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    toys.gray_png(tmp_path / "train/1.png")
    toys.gray_png(tmp_path / "test/1.png", 1)
    assert class_and_part(folder(tmp_path)) == [
        ("test/1.png", "test", ""),
        ("train/1.png", "train", ""),
    ]


def test_parts_with_unknown_or_empty_classes_are_errors(tmp_path: Path) -> None:
    for i, name in enumerate(("train/cat", "train/dog", "test/cat", "test/dgo")):
        toys.gray_png(tmp_path / name / "1.png", i)
    with pytest.raises(
        ValueError,
        match="the test part of .* has 'dgo', which its train part lacks.*nearest: 'dog'",
    ):
        folder(tmp_path)
    (tmp_path / "test/dgo").rename(tmp_path / "test/dog")
    (tmp_path / "test/dog/1.png").unlink()
    with pytest.raises(ValueError, match="no image in 'test/dog': no file, expected"):
        folder(tmp_path)


def test_a_folder_of_images_inside_a_class_folder_is_an_error(tmp_path: Path) -> None:
    for i, name in enumerate(("cat", "dog", "dog/puppies")):
        toys.gray_png(tmp_path / name / "1.png", i)
    with pytest.raises(
        ValueError,
        match="'dog/puppies' of .* is a folder with images inside the class folder 'dog', expect",
    ):
        folder(tmp_path)
    (tmp_path / "dog/puppies/1.png").rename(tmp_path / "dog/puppies/1.txt")
    assert len(folder(tmp_path).examples) == 2  # it has no image


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("1", "01"), "the classes '01' and '1' are the same number, expected one spelling"),
        (("cat", "cat "), "the classes 'cat' and 'cat ' differ only in surrounding space"),
        (
            ("caf\u00e9", "cafe\u0301"),
            r"the classes 'cafe\u0301' and 'caf\xe9' differ only in their Unicode form",
        ),
    ],
)
def test_folders_that_are_one_class_in_two_spellings_are_refused(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    for name in (*names, "dog"):
        toys.gray_png(tmp_path / name / "1.png", 1)
    with pytest.raises(ValueError, match=re.escape(message)):
        folder(tmp_path)


def test_class_folders_are_named_in_one_unicode_form(tmp_path: Path) -> None:
    for name in ("train/caf\u00e9", "train/b", "test/cafe\u0301", "test/b"):
        toys.gray_png(tmp_path / name / "1.png", 1)
    spec = folder(tmp_path)
    assert spec.classes == ("b", "caf\u00e9") and spec.remarks == ()
    assert [(e.label, e.part) for e in spec.examples] == [
        (0, "train"),
        (1, "train"),
        (0, "test"),
        (1, "test"),
    ]


def test_class_folders_that_look_alike_are_remarked(tmp_path: Path) -> None:
    for name in ("cat", "Cat", "dog"):
        toys.gray_png(tmp_path / name / "1.png", 1)
    assert folder(tmp_path).remarks == (
        "the classes 'Cat' and 'cat' differ only in letter case, space, punctuation or width and "
        "stay different classes; rename one to merge them",
    )


# ---- table ----


def written(
    path: Path,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    delimiter: str = ",",
    **options: str,
) -> Path:
    for row in rows:
        if row and row[0].endswith(".png"):
            toys.gray_png(path.parent / row[0], len(list(path.parent.rglob("*.png"))))
    with open(path, "w", newline="", **{"encoding": "utf-8", **options}) as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_may_use_three_delimiters(tmp_path: Path, delimiter: str) -> None:
    rows = [["a,b/1.png", " dog ", "x"], ["2.png", "cat", "y"], [], ["3 é.png", "cat", "y"]]
    file = written(
        tmp_path / "pets.csv", [" Path", "LABEL", "stratum"], rows, delimiter, encoding="utf-8-sig"
    )
    spec = get(f"csv:{file}")
    assert spec == table(file) and spec.name == f"csv:{file}" and spec.classes == ("cat", "dog")
    assert [(e.path, e.label, e.stratum, e.part) for e in spec.examples] == [
        (tmp_path / "a,b/1.png", 1, "x", ""),
        (tmp_path / "2.png", 0, "y", ""),
        (tmp_path / "3 é.png", 0, "y", ""),
    ]


def test_a_table_may_have_the_confidence_of_its_labels(tmp_path: Path) -> None:
    rows = [["1.png", "a", "0.75"], ["2.png", "b", "1"]]
    spec = table(written(tmp_path / "t.csv", ["path", "label", "confidence"], rows))
    assert [example.confidence for example in spec.examples] == [0.75, 1.0]
    assert {
        e.confidence
        for e in table(
            written(tmp_path / "u.csv", ["path", "label"], [r[:2] for r in rows])
        ).examples
    } == {1.0}


def test_a_table_may_have_parts_and_sorts_integers_as_numbers(tmp_path: Path) -> None:
    rows = [
        ["Train", "10", "1.png"],
        ["val", "9", "2.png"],
        ["validation", "10", "3.png"],
        ["test", "9", "4.png"],
    ]
    for row in rows:
        toys.gray_png(tmp_path / row[2], int(row[2][0]))
    spec = table(written(tmp_path / "t.csv", ["split", "label", "path"], rows))
    assert spec.classes == ("9", "10")
    assert [(e.label, e.part) for e in spec.examples] == [
        (1, "train"),
        (0, "validation"),
        (1, "validation"),
        (0, "test"),
    ]
    with pytest.raises(ValueError, match="no image of '9' is in the training part"):
        divide(spec, seed=0)


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (
            ["photo", "label"],
            [],
            "has no column 'path', expected path .* 'photo', 'label'; rename one to path$",
        ),
        (["x", "y"], [], "has no column 'path' and no column 'label'"),
        ([], [], "has no column 'path' and no column 'label'.* its columns: none"),
        (
            ["path", "label"],
            [["1.png", "a"], ["2.png", ""], ["3.png"]],
            "has no label in line 3, 4, expected a label",
        ),
        (
            ["path", "label"],
            [["1.png", ""]] * 9,
            "has no label in line 2, 3, 4 and 6 more, expected",
        ),
        (
            ["path", "label"],
            [["1.png", "a"], ["gone.jpg", "b"]],
            "no image at 'gone.jpg' in line 3, expected",
        ),
        (["path", "label"], [["1.png", "a"], ["", "b"]], "no path in line 3, expected"),
        (
            ["path", "label", "split"],
            [["1.png", "a", "train"], ["2.png", "b", "tset"]],
            "the split 'tset' in line 3, expected train, validation or test in each line; nearest: "
            "'test'",
        ),
        (["path", "label", "split"], [["1.png", "a", ""]], "the split '' in line 2"),
        (
            ["path", "label"],
            [["1.png", "a"], ["2.png", "a"]],
            "has 1 label in 2 lines .'a'., expected at least two",
        ),
        (["path", "label"], [], "has 0 labels in 0 lines"),
        (
            ["path", "label", "confidence"],
            [["1.png", "a", "1"], ["2.png", "b", "0"], ["3.png", "b", "1.1"], ["4.png", "b", ""]],
            "the confidence '0' in line 3, 4, 5, expected a number in .0, 1. in each",
        ),
    ],
)
def test_an_invalid_table_is_an_error_of_one_sentence(
    tmp_path: Path, header: list[str], rows: list[list[str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        table(written(tmp_path / "x.csv", header, rows))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_a_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="the table .* does not exist: there is no 'x.csv' .* expected a CSV file"
    ):
        table(tmp_path / "x.csv")
    with pytest.raises(ValueError, match="is a folder, expected a CSV file"):
        table(tmp_path)
    (tmp_path / "latin.csv").write_bytes("path,label\né.png,a\n".encode("latin-1"))
    with pytest.raises(ValueError, match="byte 0xE9 in line 2, in a cell that reads 'é.png' in"):
        table(tmp_path / "latin.csv")
    (tmp_path / "quote.csv").write_text('path,label\n"1.png,a\n')
    with pytest.raises(ValueError, match="is not valid CSV: unexpected end of data in line 2"):
        table(tmp_path / "quote.csv")


# ---- an archive ----

# A container that `tl` does not support takes one class, one function and one row in `SETS`.


@dataclasses.dataclass(frozen=True)
class Member:
    """An image inside a tar file; a `Stored`."""

    archive: str
    member: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"

    @property
    def name(self) -> str:
        return Path(self.member).name

    @property
    def suffix(self) -> str:
        return Path(self.member).suffix

    def read_bytes(self) -> bytes:
        try:
            with tarfile.open(self.archive) as archive:
                return archive.extractfile(self.member).read()
        except (tarfile.TarError, KeyError) as error:
            raise OSError(str(error)) from error


def tar(file: str) -> DataSpec:
    """The images of a tar file, with a folder for each class."""
    with tarfile.open(file) as archive:
        members = sorted(member.name for member in archive if member.isfile())
    classes = tuple(sorted({Path(member).parent.name for member in members}))
    label = lambda member: classes.index(Path(member).parent.name)
    examples = tuple(Example(Member(file, member), label(member)) for member in members)
    return DataSpec(f"tar:{file}", examples, classes, file, "unknown")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSpec:
    """Eight images in a tar file, one broken, two of equal bytes."""
    monkeypatch.setitem(tl.data.SETS, "tar", (tar, "FILE"))
    with tarfile.open(tmp_path / "pets.tar", "w") as file:
        for i in range(8):
            content = b"no image" if i == 7 else encoded(min(i, 5) * 40)
            info = tarfile.TarInfo(f"{'cat' if i < 4 else 'dog'}/{i}.png")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return get(f"tar:{tmp_path / 'pets.tar'}")


def test_an_archive_is_one_function_and_one_row(archive: DataSpec) -> None:
    assert "tar:FILE" in tl.data.names()
    assert archive.classes == ("cat", "dog")
    assert [example.label for example in archive.examples] == [0] * 4 + [1] * 4


def test_images_in_an_archive_are_decoded_and_hashed_like_files(
    archive: DataSpec, tmp_path: Path
) -> None:
    source = archive.examples[2].path
    np.testing.assert_array_equal(decode(source), decode(encoded(80)))
    assert content_hash(source) == content_hash_of(tmp_path, encoded(80))
    with pytest.raises(ImageError, match="pets.tar/dog/7.png: is not a readable image"):
        decode(archive.examples[7].path)
    with pytest.raises(ImageError, match="pets.tar/dog/9.png: cannot be read"):
        decode(Member(str(tmp_path / "pets.tar"), "dog/9.png"))


def test_duplicates_in_an_archive_stay_in_one_part_of_a_split(archive: DataSpec) -> None:
    for pair in (tl.data.split(archive, seed=0), *tl.data.folds(archive, 2, seed=0)):
        names = [{example.path.name for example in part.examples} for part in pair]
        assert sum(map(len, names)) == 8
        assert any({"5.png", "6.png"} <= part for part in names)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_archive_is_loaded_in_threads_and_in_processes(archive: DataSpec, workers: int) -> None:
    sources = [example.path for example in archive.examples]
    plan = Plan(n=8, batch_size=8, epochs=1, seed=0)
    with stream(sources, thumbnail, plan, workers=workers) as batches:
        (batch,) = batches
    assert sorted(batch.index) == list(range(8))
    assert [skip.path for skip in batch.skipped] == [str(sources[7])]
    for index, image, valid in zip(batch.index, batch.images, batch.valid, strict=True):
        assert valid == (index != 7)
        assert not valid or (image == min(index, 5) * 40).all()


def thumbnail(image: np.ndarray) -> np.ndarray:
    return image[:4, :4]


def test_an_archive_is_examined(archive: DataSpec) -> None:
    report = doctor.examine(archive)
    assert [remark.source for remark in report.broken] == [archive.examples[7].path]
    assert [[source.name for source in group] for group in report.duplicates] == [
        ["5.png", "6.png"]
    ]


# ---- tfds ----

IMAGE = {
    "pythonClassName": "tensorflow_datasets.core.features.image_feature.Image",
    "image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8"},
}
LABEL = {
    "pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel",
    "classLabel": {"numClasses": "2"},
}
TEXT = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}}
FEATURES = {"image": IMAGE, "image/filename": TEXT, "label": LABEL}
# File name, encoded file, label.
Row = tuple[str, bytes, int]


def prepare(
    folder: Path,
    splits: Mapping[str, Sequence[Row]],
    *,
    features: Mapping[str, object] = FEATURES,
    **info: str,
) -> Path:
    """Writes a data set in the format of TFDS 4.9 to NAME/VERSION, without TensorFlow."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    name = folder.parent.name
    folder.mkdir(parents=True)
    described = []
    for split, rows in splits.items():
        writer = ArrayRecordWriter(
            str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1"
        )
        for file, content, label in rows:
            example = tf_example_pb2.Example()
            feature = example.features.feature
            feature["image"].bytes_list.value.append(content)
            feature["label"].int64_list.value.append(label)
            if "image/filename" in features:
                feature["image/filename"].bytes_list.value.append(file.encode())
            writer.write(example.SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        described.append(
            {
                "name": split,
                "shardLengths": [str(len(rows))],
                "numBytes": "1",
                "filepathTemplate": template,
            }
        )
    about = {
        "name": name,
        "version": folder.name,
        "fileFormat": "array_record",
        "splits": described,
        **info,
    }
    (folder / "dataset_info.json").write_text(json.dumps(about))
    kind = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    tree = {"pythonClassName": kind, "featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(tree))
    (folder / "label.labels.txt").write_text("cat\ndog\n")
    return folder


def rows(n: int, first: int = 0) -> list[Row]:
    return [(f"PetImages/Cat/{i}.jpg", encoded(i, "JPEG"), i % 2) for i in range(first, first + n)]


def test_tfds_returns_the_encoded_files(tmp_path: Path) -> None:
    written = rows(5)
    prepare(tmp_path / "pets/1.0.0", {"train": written})
    spec = get(f"tfds:pets@{tmp_path}")
    assert (
        spec.classes == ("cat", "dog")
        and spec.name == f"tfds:pets@{tmp_path}"
        and spec.license == "unknown"
    )
    assert [(e.label, e.part) for e in spec.examples] == [(i % 2, "") for i in range(5)]
    for (file, content, _), example in zip(written, spec.examples, strict=True):
        record = example.path
        assert isinstance(record, Record) and record.filename == file
        assert (record.name, record.suffix) == (Path(file).name, ".jpg")
        assert record.read_bytes() == content
        assert content_hash(record) == content_hash_of(tmp_path, content)
        np.testing.assert_array_equal(decode(record), decode(content))
    names = [str(e.path) for e in spec.examples]
    assert len(set(names)) == 5 and names[3] == f"{tmp_path}/pets/1.0.0/train/3/PetImages/Cat/3.jpg"


@pytest.mark.parametrize("in_place", [False, True])
def test_a_data_set_that_was_prepared_again_is_read_again(tmp_path: Path, in_place: bool) -> None:
    """In the same process, with other images at the same positions under the same names."""
    written = rows(4)
    folder = prepare(tmp_path / "pets/1.0.0", {"train": written})
    before = get(f"tfds:pets@{tmp_path}")
    hashes = [content_hash(example.path) for example in before.examples]
    names = [name for name, _, _ in written]
    changed = [(n, *row[1:]) for n, row in zip(names, reversed(written), strict=True)]
    other = prepare(tmp_path / "other/pets/1.0.0", {"train": changed})
    (file,) = folder.glob("*.array_record*")
    os.utime(other / file.name, ns=(0, file.stat().st_mtime_ns + 10**9))
    if in_place:
        file.write_bytes((other / file.name).read_bytes())
    else:
        os.replace(other / file.name, file)
    spec = get(f"tfds:pets@{tmp_path}")
    assert [example.label for example in spec.examples] == [label for _, _, label in changed]
    for (_, content, _), example in zip(changed, spec.examples, strict=True):
        assert example.path.read_bytes() == content
        assert content_hash(example.path) == hashlib.sha256(content).hexdigest()
    assert [content_hash(example.path) for example in spec.examples] == hashes[::-1]
    assert [str(e.path) for e in spec.examples] == [str(e.path) for e in before.examples]


def test_tfds_searches_its_data_dir_and_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path / "pets/1.0.0", {"train": rows(5)})
    spec = get(f"tfds:pets@{tmp_path}")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert tfds("pets").examples == spec.examples
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        ValueError,
        match="tfds:pets is not prepared in '.*/tensorflow_datasets' .it holds no data set.",
    ):
        tfds("pets")


def content_hash_of(folder: Path, content: bytes) -> str:
    (folder / "file").write_bytes(content)
    return content_hash(folder / "file")


def test_records_are_decoded_in_other_threads_and_processes(tmp_path: Path) -> None:
    spec = tfds(f"pets@{prepare(tmp_path / 'pets/1.0.0', {'train': rows(4)}).parents[1]}")
    records = [e.path for e in spec.examples]
    assert pickle.loads(pickle.dumps(records)) == records and len(set(records)) == 4
    images = [decode(record) for record in records]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for decoded, image in zip(pool.map(decode, records * 8), images * 8, strict=True):
            np.testing.assert_array_equal(decoded, image)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(decode, records[3]).result(), images[3])


def test_records_are_loaded_and_skipped_like_files(tmp_path: Path) -> None:
    broken = ("beagle_1.jpg", b"no image", 0)
    spec = tfds(
        f"pets@{prepare(tmp_path / 'pets/1.0.0', {'train': [*rows(2), broken]}).parents[1]}"
    )
    (batch,) = tl.data.load(
        [e.path for e in spec.examples], lambda image: image[:4, :4], batch_size=4
    )
    assert batch.valid.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(batch.images[1], decode(spec.examples[1].path)[:4, :4])
    assert [skip.path for skip in batch.skipped] == [str(spec.examples[2].path)]


def test_official_splits_become_parts(tmp_path: Path) -> None:
    splits = {
        "test": rows(2, 10),
        "train": rows(8),
        "unsupervised": rows(1, 20),
        "validation": rows(2, 30),
    }
    prepare(tmp_path / "pets/1.0.0", splits)
    spec = tfds(f"pets@{tmp_path}")
    assert [e.part for e in spec.examples] == ["train"] * 8 + ["validation"] * 2 + ["test"] * 2
    ((path, reason),) = spec.skipped
    assert path.endswith("/unsupervised") and "not one of train, validation and test" in reason
    assert [len(part.examples) for part in divide(spec, seed=0)] == [8, 2, 2]


def test_splits_with_other_names_are_not_parts(tmp_path: Path) -> None:
    prepare(tmp_path / "pets/1.0.0", {"fold1": rows(2), "fold2": rows(2, 2)})
    assert [e.part for e in tfds(f"pets@{tmp_path}").examples] == [""] * 4


def test_the_newest_version_of_one_configuration_is_read(tmp_path: Path) -> None:
    for version in ("1.0.0", "10.0.0", "9.1.0"):
        prepare(tmp_path / "pets" / version, {"train": rows(2)})
    assert tfds(f"pets@{tmp_path}").source.startswith("pets/10.0.0, ")
    for word in ("pets/9.1.0", "pets:9.1.0"):
        assert tfds(f"{word}@{tmp_path}").source.startswith("pets/9.1.0, ")
    for config in ("small", "large"):
        prepare(
            tmp_path / "apes" / config / "1.0.0", {"train": rows(2)}, name="apes", configName=config
        )
    with pytest.raises(
        ValueError, match="has 2 configurations, expected one of: 'apes/large', 'apes/small'"
    ):
        tfds(f"apes@{tmp_path}")


def test_images_without_label_are_skipped_and_without_name_numbered(tmp_path: Path) -> None:
    features = {"image": IMAGE, "label": LABEL}
    prepare(
        tmp_path / "pets/1.0.0",
        {"train": [("", encoded(1), 0), ("", encoded(2), -1)]},
        features=features,
    )
    spec = tfds(f"pets@{tmp_path}")
    assert [e.path.name for e in spec.examples] == ["train_0"]
    assert [s.why for s in spec.skipped] == ["it has no label"]


def test_known_bad_files_are_skipped_if_they_cannot_be_decoded(tmp_path: Path) -> None:
    written = [
        ("beagle_116.jpg", b"\xff\xd8\xff no image", 0),
        ("chihuahua_121.jpg", encoded(1, "JPEG"), 0),  # repaired
        ("Abyssinian_34.jpg", encoded(2, "GIF"), 1),
        ("beagle_1.jpg", b"broken, but not listed", 0),
    ]
    prepare(tmp_path / "pets/1.0.0", {"train": written})
    spec = tfds(f"pets@{tmp_path}")
    assert [e.path.name for e in spec.examples] == [
        "chihuahua_121.jpg",
        "Abyssinian_34.jpg",
        "beagle_1.jpg",
    ]
    ((path, reason),) = spec.skipped
    assert path.endswith("beagle_116.jpg") and "not a readable image" in reason
    assert known_bad(spec.examples[1].path) == "it is a GIF"
    assert known_bad(Path("x/PetImages/Cat/666.jpg")) == "it is empty"
    assert known_bad(Path("x/Cat/666.jpg")) == known_bad(spec.examples[2].path) == ""
    assert len(KNOWN_BAD) == 14


def test_a_set_that_tfds_cannot_read_is_an_error(tmp_path: Path) -> None:
    at = f"@{tmp_path}"
    folder = prepare(tmp_path / "pets/1.0.0", {"train": rows(2)})
    with pytest.raises(
        ValueError,
        match="tfds:pest is not prepared in .*it holds 'pets'.*"
        "tfds:pest@DIR for another folder, or prepare it",
    ):
        tfds("pest" + at)
    about = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**about, "fileFormat": "riegeli"}))
    with pytest.raises(
        ValueError,
        match="is stored as riegeli, expected array_record or tfrecord.*'array_record'",
    ):
        tfds("pets" + at)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="is not a data set that TFDS can read"):
        tfds("pets" + at)
    prepare(tmp_path / "texts/1.0.0", {"train": []}, features={"image": IMAGE, "label": TEXT})
    with pytest.raises(
        ValueError,
        match="has the features 'image', 'label', expected an Image named 'image' and a ClassLabel",
    ):
        tfds("texts" + at)


def test_an_image_of_a_deleted_set_cannot_be_read(tmp_path: Path) -> None:
    record = Record(str(tmp_path / "gone/1.0.0"), "train", 0, "1.jpg")
    with pytest.raises(ImageError, match="gone/1.0.0/train/0/1.jpg: cannot be read"):
        decode(record)
    with pytest.raises(OSError):
        content_hash(record)
    spec = DataSpec("x", (tl.data.Example(record, 0),), ("a", "b"), "", "")
    with pytest.raises(ValueError, match="1.jpg cannot be read .*, expected every file of x"):
        tl.data.split_digest(spec)


def test_tfds_is_read_without_tensorflow_and_imported_late(tmp_path: Path) -> None:
    prepare(tmp_path / "pets/1.0.0", {"train": rows(2)})
    program = (
        "import sys, tl.data\n"
        "assert not {'tensorflow_datasets', 'grain', 'array_record'} & set(sys.modules)\n"
        f"spec = tl.data.get('tfds:pets@{tmp_path}')\n"
        "print(tl.data.decode(spec.examples[1].path).shape, 'tensorflow' in sys.modules)\n"
    )
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[1],
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "(6, 8, 3) False"


def test_photographs_that_tfds_prepared_are_read(shared_data: Path) -> None:
    cats = get(f"tfds:cats_vs_dogs@{shared_data / 'tfds'}")
    assert (cats.classes, len(cats.examples)) == (("cat", "dog"), 200)
    assert all(
        e.path.filename.startswith(("PetImages/Cat", "PetImages/Dog")[e.label])
        for e in cats.examples
    )
    assert {e.part for e in cats.examples} == {""} and decode(cats.examples[0].path).ndim == 3
    pets = get(f"tfds:oxford_iiit_pet@{shared_data / 'tfds'}")
    assert len(pets.classes) == 37
    assert all(e.path.name.startswith(pets.classes[e.label]) for e in pets.examples)
    parts = divide(pets, validation_fraction=0.25, seed=0)
    assert [len(part.examples) for part in parts] == [111, 37, 111]
    assert parts.test.examples == tuple(e for e in pets.examples if e.part == "test")
