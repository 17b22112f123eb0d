"""Tables as spreadsheets, Windows and other programs write them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import wild
from tl import data, labels

ROUND = ("round", "square")


@pytest.mark.parametrize("situation", wild.TABLES, ids=lambda situation: situation.name)
def test_a_table_is_read_or_refused_in_one_sentence(
    situation: wild.Situation, tmp_path: Path
) -> None:
    spec, right = wild.data_set(situation, tmp_path), situation.right
    if spec is None:
        return
    assert spec.classes == right.get("classes", ROUND)
    assert len(spec.examples) == right.get("n", 6)
    assert Counter(e.part for e in spec.examples) == right.get("parts", {"": len(spec.examples)})
    assert tuple(e.confidence for e in spec.examples) == right.get(
        "confidence", (1.0,) * len(spec.examples)
    )
    for example in spec.examples:
        assert isinstance(example.path, Path) and example.path.is_file()
    if right.get("classes", ROUND) == ROUND:
        folders = [Path(str(e.path)).parent.name for e in spec.examples]
        assert [spec.classes[e.label] for e in spec.examples] == folders
    matches = [re.search(situation.remark, remark) for remark in spec.remarks]
    assert any(matches) if situation.remark else not spec.remarks, spec.remarks
    assert all(len(remark) <= 200 for remark in spec.remarks)


def test_names_of_situations_are_unique() -> None:
    assert max(Counter(situation.name for situation in wild.TABLES).values()) == 1


CASES = [
    # table of `cases/csv`, classes, parts, remark
    ("plain", ROUND, {"": 24}, ""),
    ("oldmac", ROUND, {"": 24}, ""),
    ("index_column", ROUND, {"": 24}, ""),
    ("trailing_commas", ROUND, {"": 24}, ""),
    ("bom_quotes", ("round, big", "square, big"), {"": 24}, ""),
    ("from_one", ("1", "10"), {"": 24}, ""),
    ("backslash", ROUND, {"": 24}, ""),
    ("sep_line", ROUND, {"": 24}, ""),
    (
        "is_valid",
        ROUND,
        {"train": 18, "validation": 6},
        "the parts are read from 'is_valid': 18 train, 6 validation, 0 test",
    ),
    (
        "nfc_labels",
        ("caf\u00e9", "square"),
        {"": 24},
        "read 12 lines with the label 'caf\u00e9' in several Unicode forms as one class for each "
        "name",
    ),
]


@pytest.mark.parametrize(("name", "classes", "parts", "remark"), CASES, ids=[c[0] for c in CASES])
def test_shared_tables_are_read(
    shared_data: Path, name: str, classes: tuple[str, ...], parts: dict[str, int], remark: str
) -> None:
    spec = data.get(f"csv:{shared_csv(shared_data, name)}")
    assert spec.classes == classes and Counter(e.part for e in spec.examples) == parts
    assert Counter(e.label for e in spec.examples) == {0: 12, 1: 12}
    assert spec.remarks == ((remark,) if remark else ())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "has no label in line 7, expected a label in each"),
        ("dup_column", "has the column 'label' twice .columns 2 and 3."),
        ("multi_two_lines", "has 3 images under two labels, such as"),
    ],
)
def test_shared_tables_are_refused(shared_data: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        data.get(f"csv:{shared_csv(shared_data, name)}")
    assert len(str(caught.value)) < 400


CELLS = st.sampled_from(
    [
        *("path", "label", "split", "is_valid", "set", "confidence", "filename", "class", "", " "),
        *(
            "1.png",
            "2.png",
            ".\\1.png",
            "C:\\x\\2.png",
            "file:1.png",
            "1",
            "2",
            "..",
            "/",
            "~x/1",
            "\0",
        ),
        *("a", "b", "1.0", "01", "caf\u00e9", "cafe\u0301", "train", "valid", "True", "0,5", "nan"),
        *('"', '"a"', "sep=;", "\ufeff", "\u2028", "\ud7ff", "x" * 300, "https://x/1.png", "#N/A"),
    ]
)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(CELLS, max_size=5), max_size=6),
    st.booleans(),
    st.sampled_from(",;\t| "),
    st.sampled_from(["\n", "\r", "\r\n"]),
    ENCODINGS,
)
def test_any_table_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[str]],
    header: bool,
    delimiter: str,
    newline: str,
    encoding: str,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for name in ("1.png", "2.png"):
        (folder / name).touch()
    lines = [delimiter.join(row) for row in ([["path", "label"]] if header else []) + rows]
    (folder / "any.csv").write_bytes(newline.join(lines).encode(encoding, "replace"))
    try:
        spec = data.table(folder / "any.csv")
    except ValueError as error:
        assert len(str(error)) < 400 and "\n" not in str(error) and str(folder) in str(error)
    else:
        assert len(spec.classes) > 1 and len(spec.examples) > 1
        assert all(len(remark) <= 200 and "\n" not in remark for remark in spec.remarks)
        assert all(Path(str(example.path)).is_file() for example in spec.examples)


@pytest.mark.parametrize(("learned", "asked", "missing"), [(1, 0, "0"), (0, 1, "3")])
def test_shared_classes_of_numbers_are_never_indices(
    shared_data: Path, learned: int, asked: int, missing: str
) -> None:
    folders = [shared_data / "cases" / f"numbers_from_{n}" for n in (learned, asked)]
    if not all(folder.is_dir() for folder in folders):
        pytest.skip(f"no folders {folders}")
    spec, other = (data.get(f"folder:{folder}") for folder in folders)
    table = labels.from_names(spec.classes, name="own")
    message = f"unknown own class '{missing}'; names of classes are numbers, so that no number is "
    with pytest.raises(ValueError, match=message) as evaluated:
        data.remap_labels(other, table)
    with pytest.raises(ValueError, match=message) as matched:
        data.match_classes(other.classes, table)
    with pytest.raises(ValueError, match=f"not learned: '{missing}'; nearest"):
        data.remap_labels(other, spec.classes)
    assert max(len(str(error.value)) for error in (evaluated, matched)) < 400
    assert data.remap_labels(spec, table).examples == spec.examples


def shared_csv(shared_data: Path, name: str) -> Path:
    file = shared_data / "cases" / "csv" / f"{name}.csv"
    if not file.is_file():
        pytest.skip(f"no file {file}")
    return file
