"""TFRecord files of tf.train.Example, read without TensorFlow, against an independent writer.

`tests/golden/flowers.tfrecord` was written by TensorFlow 2.21 (`golden/make_flowers.py`).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import gzip
import hashlib
import json
import multiprocessing
import pickle
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tl.data
from tests import toys
from tests.test_sources import prepare
from tl import hosts
from tl.data import ImageError, content_hash, decode, get, packed, tfds, tfrecord
from tl.data.records import crc32c, features, read_record, records, values
from tl.types import CacheWarning

Value = bytes | str | int | float
Row = Mapping[str, Value | Sequence[Value]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))


# ---- an independent writer: bit by bit, as the formats are specified ----


def bitwise_crc32c(data: bytes) -> int:
    """CRC-32C of RFC 3720, one bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def checksum(data: bytes) -> bytes:
    crc = bitwise_crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def framed(data: bytes) -> bytes:
    """One record of a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def varint(value: int) -> bytes:
    value %= 1 << 64
    digits = []
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


def field(number: int, data: bytes) -> bytes:
    """A field of wire type 2."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(content: Value | Sequence[Value], packed: bool = True) -> bytes:
    several = [content] if isinstance(content, Value) else list(content)
    if isinstance(several[0], bytes | str):
        return field(
            1, b"".join(field(1, w.encode() if isinstance(w, str) else w) for w in several)
        )
    if isinstance(several[0], float):
        floats = [struct.pack("<f", x) for x in several]
        whole = field(1, b"".join(floats)) if packed else b"".join(b"\x0d" + x for x in floats)
        return field(2, whole)
    numbers = [varint(x) for x in several]
    whole = field(1, b"".join(numbers)) if packed else b"".join(b"\x08" + x for x in numbers)
    return field(3, whole)


def example(row: Row, packed: bool = True) -> bytes:
    """A serialized tf.train.Example."""
    entries = (field(1, k.encode()) + field(2, feature(v, packed)) for k, v in row.items())
    return field(1, b"".join(field(1, entry) for entry in entries))


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(framed(example(row)) for row in rows))
    return path


def image(value: int, kind: str = "PNG") -> bytes:
    return toys.encoded(Image.new("RGB", (8, 6), (value, value, value)), kind)


def rows(n: int, first: int = 0) -> list[dict[str, Value]]:
    """Rows as TF-Slim writes them."""
    return [
        {
            "image/encoded": image(i),
            "image/filename": f"pets/{i}.png",
            "image/class/label": i % 2,
            "image/class/text": ("cat", "dog")[i % 2],
        }
        for i in range(first, first + n)
    ]


# ---- checksums, records, messages ----


def test_the_checksum_is_crc_32c() -> None:
    """Vectors of RFC 3720, B.4; then lengths around the blocks of the vectorized form."""
    ascending = bytes(range(32))
    vectors = {
        b"": 0,
        b"123456789": 0xE3069283,
        bytes(32): 0x8A9136AA,
        b"\xff" * 32: 0x62A8AB43,
        ascending: 0x46DD794E,
        ascending[::-1]: 0x113FDB5C,
    }
    assert [crc32c(data) for data in vectors] == list(vectors.values())
    data = np.random.default_rng(0).bytes(10_000)
    for n in (1, 3, 4, 63, 64, 65, 127, 128, 129, 4095, 4096, 4097, 10_000):
        assert crc32c(data[:n]) == bitwise_crc32c(data[:n]), n
        assert crc32c(memoryview(data)[5 : 5 + n]) == bitwise_crc32c(data[5 : 5 + n]), n


def test_the_checksum_of_long_data_is_that_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(1).bytes(9_000)
    monkeypatch.setattr("tl.data.records._CHUNK", 4096)
    assert crc32c(data) == bitwise_crc32c(data)


def test_records_have_offsets_by_which_they_are_read_again(tmp_path: Path) -> None:
    contents = [b"", b"a", b"bc" * 5000]
    path = tmp_path / "x.tfrecord"
    path.write_bytes(b"".join(map(framed, contents)))
    listed = list(records(path))
    assert [bytes(data) for _, data in listed] == contents
    assert [offset for offset, _ in listed] == [0, 16, 33]
    assert [read_record(path, offset, len(data)) for offset, data in listed] == contents
    path.write_bytes(b"")
    assert list(records(path)) == []


@pytest.mark.parametrize("packed", [True, False])
def test_messages_hold_lists_of_bytes_floats_and_integers(packed: bool) -> None:
    row = {
        "b": [b"x", b""],
        "f": [1.5, -2.0],
        "i": [0, 1, 300, -1, 2**63 - 1, -(2**63)],
        "name with / and \u00e9": "\u00e9",
    }
    parsed = {key: values(feature) for key, feature in features(example(row, packed)).items()}
    assert parsed == {**row, "name with / and \u00e9": ["\u00e9".encode()]}


def test_messages_follow_the_rules_of_the_wire_format() -> None:
    """Unknown fields, repeated keys, messages in parts, and lists without values."""
    entry = lambda key, value: field(1, field(1, key) + field(2, value))
    unknown = b"\x78\x05" + b"\x79" + bytes(8) + field(15, b"abc") + b"\x7d" + bytes(4)
    first = entry(b"a", feature(1)) + unknown + entry(b"b", b"")
    second = entry(b"a", feature(2)) + entry(b"c", feature(3)[:0] + field(3, b""))
    # The value before the key, a key alone, and an int64 list in two parts.
    second += field(1, field(2, feature([4, 5]) + feature(6)) + field(1, b"d")) + field(
        1, field(1, b"e")
    )
    parsed = features(unknown + field(1, first) + field(1, second) + unknown)
    expected = {"a": [2], "b": [], "c": [], "d": [4, 5, 6], "e": []}
    assert {key: values(feature) for key, feature in parsed.items()} == expected
    # A later kind replaces an earlier one, because the three lists are a `oneof`.
    assert values(feature(1) + feature(b"x")) == [b"x"]


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a\x05abc",  # longer than the data
        b"\x0a",
        b"\xff" * 11,  # an endless number
        b"\x0b\x0c",  # a group
        b"\x02\x00",  # the field 0
        field(1, field(1, field(1, b"\xff\xfe"))),  # a key that is not UTF-8
        b"\x09abc",
        b"no message at all",
    ],
)
def test_data_that_is_not_an_example_is_an_error(message: bytes) -> None:
    with pytest.raises(ValueError, match="not a tf.train.Example"):
        features(message)


def test_any_cut_of_a_message_is_an_error_or_a_shorter_message() -> None:
    message = example({"image": b"x" * 20, "f": [1.0, 2.0], "i": [1, 2**40]})
    for n in range(len(message)):
        with pytest.raises(ValueError, match="not a tf.train.Example"):
            for value in features(message[:n] if n else b"\x0a").values():
                values(value)


def test_damaged_files_are_one_sentence_with_the_offset(tmp_path: Path) -> None:
    whole = framed(b"abc") + framed(b"defg")
    path = tmp_path / "x.tfrecord"

    def refused(data: bytes, message: str) -> None:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{re.escape(str(path))} {message}") as error:
            list(records(path))
        assert "\n" not in str(error.value)

    refused(whole[:-1], "is truncated: the record at byte 19 .* 20 bytes, got 19; .*copy it again")
    refused(whole[:25], "is truncated: the record at byte 19 has a header of 12 bytes, got 6")
    refused(
        whole[:19] + b"\x09" + whole[20:],
        "is damaged at byte 19: the length of a record does not match its checksum.*copy",
    )
    refused(b"\x01" + whole, "is not a TFRecord file")
    refused(b"path,label\n1.png,cat\n", "is not a TFRecord file")
    refused(gzip.compress(whole), "is compressed with gzip, expected an uncompressed.*gunzip")
    refused(zlib.compress(whole), "is compressed with zlib, expected an uncompressed")
    path.write_bytes(whole[:13] + b"x" + whole[14:])
    assert [bytes(data) for _, data in records(path)] == [b"axc", b"defg"]
    with pytest.raises(OSError, match="the data of the record at byte 0 do not match"):
        read_record(path, 0, 3)
    assert read_record(path, 19, 4) == b"defg"
    for offset, length in ((3, 4), (0, 4)):
        with pytest.raises(OSError, match=f"at byte {offset} does not match its checksum"):
            read_record(path, offset, length)
    with pytest.raises(OSError, match="truncated"):
        read_record(path, 19, 5)


# ---- data sets ----


def test_a_folder_of_files_is_a_data_set(tmp_path: Path) -> None:
    write(tmp_path / "pets-00000-of-00002", rows(3))
    write(tmp_path / "pets-00001-of-00002", rows(2, 3))
    (tmp_path / "notes.txt").write_text("no records")
    spec = get(f"tfrecord:{tmp_path}")
    assert spec.name == f"tfrecord:{tmp_path}" and spec.classes == ("cat", "dog")
    assert [(e.label, e.part) for e in spec.examples] == [(i % 2, "") for i in range(5)]
    assert not spec.skipped and spec.license == "unknown" and spec.source == str(tmp_path)
    for i, one in enumerate(spec.examples):
        assert (one.path.name, one.path.suffix) == (f"{i}.png", ".png")
        assert one.path.read_bytes() == image(i)
        assert content_hash(one.path) == hashlib.sha256(image(i)).hexdigest()
        np.testing.assert_array_equal(decode(one.path), decode(image(i)))
    names = [str(e.path) for e in spec.examples]
    assert len(set(names)) == 5
    assert re.fullmatch(rf"{tmp_path}/pets-00000-of-00002/\d+/pets/1.png", names[1])
    assert "tfrecord:GLOB" in tl.data.names()


def test_the_same_set_is_named_by_a_glob_or_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "with @ and, comma"
    path = write(folder / "a.tfrecord", rows(4))
    write(folder / "deep/b.tfrec", rows(4, 4))
    assert len(get(f"tfrecord:{folder}").examples) == 8
    assert len(get(f"tfrecord:{folder}/*.tfrecord").examples) == 4
    assert len(get(f"tfrecord:{folder}/**/*.tfrec*").examples) == 8
    assert get(f"tfrecord:{path}").examples == get(f"tfrecord:{folder}/a*").examples


def test_keys_are_found_by_common_names_or_stated(tmp_path: Path) -> None:
    renamed = [
        {"photo": r["image/encoded"], "species": r["image/class/text"], "label": 7} for r in rows(4)
    ]
    write(tmp_path / "a.tfrecord", renamed)
    with pytest.raises(
        ValueError,
        match="has the features 'label', 'photo' and 'species', expected an encoded image "
        "under .*'image/encoded'.*; state the names as tfrecord:.*@IMAGE,LABEL",
    ):
        get(f"tfrecord:{tmp_path}")
    spec = get(f"tfrecord:{tmp_path}@photo,species")
    assert spec.classes == ("cat", "dog") and [e.label for e in spec.examples] == [0, 1, 0, 1]
    assert spec.name == f"tfrecord:{tmp_path}@photo,species"
    with pytest.raises(ValueError, match="no feature 'sort'; nearest: "):
        get(f"tfrecord:{tmp_path}@photo,sort")
    with pytest.raises(ValueError, match="has one label .*expected at least two"):
        get(f"tfrecord:{tmp_path}@photo,label")
    assert get(f"tfrecord:{tmp_path}@photo,label", min_classes=1).classes == ("7",)


def test_keys_may_be_missing_in_the_first_file(tmp_path: Path) -> None:
    """Test files without labels come first by name."""
    unlabeled = [{"image": image(i)} for i in range(90, 92)]
    labeled = [{"image": image(i), "class": i % 2} for i in range(4)]
    write(tmp_path / "a_test.tfrec", unlabeled)
    write(tmp_path / "b_train.tfrec", labeled)
    spec = get(f"tfrecord:{tmp_path}")
    assert len(spec.examples) == 4 and {e.part for e in spec.examples} == {"train"}
    assert [skip.why for skip in spec.skipped] == ["it has no label"] * 2


def test_several_common_names_are_a_remark(tmp_path: Path) -> None:
    write(tmp_path / "a.tfrecord", [{**row, "label": 3} for row in rows(4)])
    spec = get(f"tfrecord:{tmp_path}")
    assert spec.classes == ("cat", "dog")
    assert any("'image/class/label' as labels, not 'label'" in r for r in spec.remarks)


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00001", "validation-00000-of-00001", "test-00000-of-00001"],
        ["pets_train.tfrecord", "pets_val.tfrecord", "pets_test.tfrecord"],
        ["pets-train.tfrecord-00000-of-00001", "pets-dev.tfrecord", "pets-testing.tfrecord"],
        ["train/0.tfrecord", "valid/0.tfrecord", "test/0.tfrecord"],
        ["train.record", "val.record", "test.record"],
    ],
)
def test_names_of_files_state_the_parts(tmp_path: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        write(tmp_path / name, rows(2, 2 * i))
    spec = get(f"tfrecord:{tmp_path}")
    by_part = {e.part: e.path.name for e in spec.examples}
    assert by_part == {"train": "1.png", "validation": "3.png", "test": "5.png"}


def test_files_of_no_part_are_skipped_if_others_state_theirs(tmp_path: Path) -> None:
    write(tmp_path / "train.tfrecord", rows(4))
    write(tmp_path / "extra.tfrecord", rows(4, 4))
    spec = get(f"tfrecord:{tmp_path}")
    ((path, why),) = spec.skipped
    assert path == str(tmp_path / "extra.tfrecord") and "its name states no part" in why
    assert len(spec.examples) == 4 and any("extra.tfrecord" in r for r in spec.remarks)


@pytest.mark.parametrize(
    "name, text",
    [
        ("labels.txt", "cat\ndog\n"),
        ("labels.txt", "0:cat\n1:dog\n"),
        ("label.labels.txt", "cat\ndog"),
        ("image_class_label.labels.txt", "cat\r\ndog\r\n"),
    ],
)
def test_class_names_come_from_a_file(tmp_path: Path, name: str, text: str) -> None:
    bare = [{k: row[k] for k in ("image/encoded", "image/class/label")} for row in rows(4)]
    write(tmp_path / "data/a.tfrecord", bare)
    (tmp_path / "data" / name).write_text(text)
    assert get(f"tfrecord:{tmp_path}/data").classes == ("cat", "dog")
    assert get(f"tfrecord:{tmp_path}/data/*.tfrecord").classes == ("cat", "dog")


def test_class_names_are_texts_or_numbers_without_a_file(tmp_path: Path) -> None:
    def classes(rows: Sequence[Row]) -> tuple[str, ...]:
        write(tmp_path / "a.tfrecord", rows)
        return get(f"tfrecord:{tmp_path}").classes

    bare = [{"image": image(i), "label": 2 + 8 * (i % 2)} for i in range(4)]
    assert classes(bare) == ("2", "10")
    texts = [{**row, "image/class/text": ("cat", "dog")[i % 2]} for i, row in enumerate(bare)]
    assert classes(texts) == ("cat", "dog")
    # Texts that do not belong to one number each are not names.
    assert classes([{**row, "image/class/text": "cat"} for row in bare]) == ("2", "10")
    assert classes([{**row, "label": str(row["label"])} for row in bare]) == ("2", "10")
    assert classes([{**row, "label": f" caf\u00e9{i % 2}"} for i, row in enumerate(bare)]) == (
        "caf\u00e90",
        "caf\u00e91",
    )
    assert classes([{**row, "label": float(i % 2)} for i, row in enumerate(bare)]) == ("0", "1")


def test_labels_that_are_not_classes_are_errors(tmp_path: Path) -> None:
    def refused(labels: Sequence[object], message: str) -> None:
        write(
            tmp_path / "a.tfrecord", [{"image": image(i), "label": x} for i, x in enumerate(labels)]
        )
        with pytest.raises(ValueError, match=message) as error:
            get(f"tfrecord:{tmp_path}")
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)

    refused([0, [1, 0]], "record at byte .* 2 values under 'label', expected one label per image")
    refused([0.5, 1.0], "the label 0.5 .*expected a whole number or text")
    refused([0, "cat"], "labels that are numbers and labels that are text")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    refused([0, 2], "the label 2 .*expected 0 to 1, the 2 names of .*labels.txt")
    refused([1, 2], "the label 2 .*write its lines as 1:cat")
    (tmp_path / "labels.txt").write_text("cat\ncat\n")
    refused([0, 1], "labels.txt has a number or the name 'cat' twice")


def test_rows_without_image_or_label_are_skipped(tmp_path: Path) -> None:
    bare = [{"image": image(i), "label": i % 2} for i in range(4)]
    odd = [
        {"label": 1},
        {"image": image(9), "label": -1},
        {"image": image(9)},
        {"image": b"", "label": 0},
    ]
    path = write(tmp_path / "a.tfrecord", [*bare, *odd])
    spec = get(f"tfrecord:{path}")
    assert len(spec.examples) == 4
    assert [skip.why for skip in spec.skipped] == [
        "it has no image",
        "it has no label",
        "it has no label",
        "it has no image",
    ]
    assert all(re.fullmatch(rf"{path}/\d+(/record_\d+)?", skip.path) for skip in spec.skipped)


def test_a_damaged_record_is_left_out_and_not_the_set(tmp_path: Path) -> None:
    """Its checksum is checked when the image is read."""
    path = write(tmp_path / "a.tfrecord", rows(6))
    data = bytearray(path.read_bytes())
    at = data.index(image(2)) + 30
    data[at] ^= 4
    path.write_bytes(data)
    spec = get(f"tfrecord:{path}")
    assert len(tl.data.divide(spec, seed=0).train.examples) >= 1
    (batch,) = tl.data.load([e.path for e in spec.examples], lambda x: x[:4, :4], batch_size=8)
    assert batch.valid.sum() == 5
    ((where, why),) = batch.skipped
    assert where == str(spec.examples[2].path) and "do not match" in why and "checksum" in why


def test_a_record_that_is_no_example_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tfrecord", rows(4))
    path.write_bytes(path.read_bytes() + framed(b"\xff\xff"))
    spec = get(f"tfrecord:{path}")
    assert [skip.why for skip in spec.skipped] == ["its data are not a tf.train.Example"]
    path.write_bytes(framed(b"\xff\xff") * 2)
    with pytest.raises(ValueError, match="holds no tf.train.Example"):
        get(f"tfrecord:{path}")


def test_an_image_that_changed_after_the_index_cannot_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tfrecord", rows(4))
    before = get(f"tfrecord:{path}").examples
    write(path, [*reversed(rows(4))])
    with pytest.raises(ImageError, match="has changed"):
        decode(before[1].path)
    after = get(f"tfrecord:{path}").examples
    assert [e.path.read_bytes() for e in after] == [image(i) for i in range(4)][::-1]
    path.unlink()
    with pytest.raises(ImageError, match="a.tfrecord/.*: cannot be read"):
        decode(after[1].path)


def test_the_index_is_cached_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tfrecord", [*rows(4), {"image/class/label": 1}])
    first = get(f"tfrecord:{path}")
    passes = []
    monkeypatch.setattr("tl.data.packed.records", lambda file: passes.append(file) or records(file))
    again = get(f"tfrecord:{path}")
    assert (again.examples, again.skipped) == (first.examples, first.skipped) and not passes
    write(path, rows(5))
    assert len(get(f"tfrecord:{path}").examples) == 5 and passes == [path]
    for damage in (b"", b"[[1, 2]]", b"{}", b"\xff"):
        for file in (tmp_path / "cache/tfrecord").iterdir():
            file.write_bytes(damage)
        assert len(get(f"tfrecord:{path}").examples) == 5
    monkeypatch.setenv("TL_CACHE", str(path / "no folder"))
    with pytest.warns(CacheWarning, match="cannot be written"):
        assert len(get(f"tfrecord:{path}").examples) == 5


def test_several_processes_divide_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write(tmp_path / f"a-{i}.tfrecord", rows(2, first=2 * i)) for i in range(5)]
    keys = packed.Keys("image/encoded", "image/class/label")
    whole, of_all = packed.index(files, keys), []
    monkeypatch.setattr(hosts, "count", lambda: 2)
    for process in (0, 1):
        monkeypatch.setattr(hosts, "index", lambda process=process: process)
        with monkeypatch.context() as patch, pytest.raises(StopIteration):
            patch.setattr(hosts, "gather", lambda share: of_all.append(share) or next(iter(())))
            packed.index(files, keys)
    assert [len(lists) for lists, *_ in of_all] == [3, 2]
    monkeypatch.setattr(hosts, "gather", lambda share: pickle.loads(pickle.dumps(of_all)))
    assert packed.index(files, keys) == whole
    names = of_all[0][2]
    of_all[1] = ([], "a-1.tfrecord cannot be read: it is gone", names)
    with pytest.raises(ValueError, match="a-1.tfrecord cannot be read"):
        packed.index(files, keys)
    of_all[1] = ([], "", names[:3])
    with pytest.raises(ValueError, match="process 1 lists 3 TFRecord files and process 0 5"):
        packed.index(files, keys)


@pytest.mark.full
def test_images_are_read_in_other_processes(tmp_path: Path) -> None:
    spec = get(f"tfrecord:{write(tmp_path / 'a.tfrecord', rows(4))}")
    sources = [e.path for e in spec.examples]
    assert pickle.loads(pickle.dumps(sources)) == sources and len(set(sources)) == 4
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(decode, sources[3]).result(), decode(image(3)))


def test_names_without_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        get(f"tfrecord:{tmp_path}/missing")
    (tmp_path / "a.png").write_bytes(image(1))
    with pytest.raises(ValueError, match="no TFRecord file .*1 .png file"):
        get(f"tfrecord:{tmp_path}")
    with pytest.raises(ValueError, match="matches no file"):
        get(f"tfrecord:{tmp_path}/*.tfrecord")
    with pytest.raises(ValueError, match="expected tfrecord:GLOB"):
        get("tfrecord:")
    write(tmp_path / "a.tfrecord", [])
    with pytest.raises(ValueError, match="holds no tf.train.Example in 1 file"):
        get(f"tfrecord:{tmp_path}")


# ---- sets that TensorFlow Datasets prepared as TFRecord, its default ----


def prepare_tfrecord(folder: Path, splits: Mapping[str, Sequence[Sequence[int]]]) -> Path:
    """A data set in the format of TFDS 4.9: split -> shards -> values of the images."""
    prepare(folder, {split: [] for split in splits})
    for file in folder.glob("*.array_record*"):
        file.unlink()
    about = json.loads((folder / "dataset_info.json").read_text())
    about["fileFormat"] = "tfrecord"
    for split in about["splits"]:
        shards = splits[split["name"]]
        split["shardLengths"] = [str(len(shard)) for shard in shards]
        for k, shard in enumerate(shards):
            name = f"pets-{split['name']}.tfrecord-{k:05}-of-{len(shards):05}"
            write(
                folder / name,
                [
                    {"image": image(i), "image/filename": f"PetImages/Cat/{i}.png", "label": i % 2}
                    for i in shard
                ],
            )
    (folder / "dataset_info.json").write_text(json.dumps(about))
    return folder


def test_a_prepared_set_is_read_by_the_same_name(tmp_path: Path) -> None:
    prepare_tfrecord(tmp_path / "pets/1.0.0", {"train": [[0, 1], [2, 3, 4]], "test": [[5, 6]]})
    spec = get(f"tfds:pets@{tmp_path}")
    assert spec.classes == ("cat", "dog") and spec.name == f"tfds:pets@{tmp_path}"
    assert spec.source.startswith("pets/1.0.0, TensorFlow Datasets")
    assert [e.path.name for e in spec.examples] == [f"{i}.png" for i in range(7)]
    assert [e.label for e in spec.examples] == [i % 2 for i in range(7)]
    assert [e.part for e in spec.examples] == ["train"] * 5 + ["test"] * 2
    for i, one in enumerate(spec.examples):
        np.testing.assert_array_equal(decode(one.path), decode(image(i)))
    assert tfrecord(f"{tmp_path}/pets/1.0.0").classes == ("cat", "dog")


def test_a_prepared_set_with_missing_records_is_an_error(tmp_path: Path) -> None:
    folder = prepare_tfrecord(tmp_path / "pets/1.0.0", {"train": [[0, 1], [2, 3, 4]]})
    last = folder / "pets-train.tfrecord-00001-of-00002"
    write(last, rows(2))
    with pytest.raises(
        ValueError, match="00001-of-00002 has 2 records, expected 3 .*copy it again"
    ):
        tfds(f"pets@{tmp_path}")
    last.unlink()
    with pytest.raises(ValueError, match="00001-of-00002 cannot be read"):
        tfds(f"pets@{tmp_path}")


# ---- a file of TensorFlow ----


def test_a_file_of_tensorflow_is_read() -> None:
    """`golden/flowers.tfrecord` and its expected values were written by TensorFlow."""
    golden = Path(__file__).parent / "golden"
    expected = json.loads((golden / "flowers.json").read_text())
    path = golden / "flowers.tfrecord"
    assert path.stat().st_size < 20_000
    parsed = [
        {
            key: values(feature)
            for key, feature in features(read_record(path, offset, len(data))).items()
        }
        for offset, data in records(path)
    ]
    assert len(parsed) == len(expected) == 4
    for row, described in zip(parsed, expected, strict=True):
        (content,) = row.pop("image/encoded")
        assert hashlib.sha256(content).hexdigest() == described.pop("sha256")
        texts = {k: [x.decode() if isinstance(x, bytes) else x for x in v] for k, v in row.items()}
        assert texts == described
    spec = get(f"tfrecord:{path}")
    assert spec.classes == ("daisy", "tulips") and [e.label for e in spec.examples] == [0, 1, 0, 1]
    assert dataclasses.is_dataclass(spec.examples[0].path)
    assert [decode(e.path).shape for e in spec.examples] == [(24, 32, 3)] * 4
