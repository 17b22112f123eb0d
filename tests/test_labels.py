"""Class tables: indices, names and groups, the selection of classes by words, and errors."""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl import labels

# Index, WordNet id, name: samples of the published list, with its ambiguous names.
CLASSES = [
    (0, "n01440764", "tench"),
    (1, "n01443537", "goldfish"),
    (134, "n02012849", "crane (bird)"),
    (151, "n02085620", "Chihuahua"),
    (207, "n02099601", "golden retriever"),
    (251, "n02110341", "dalmatian"),
    (264, "n02113186", "Cardigan Welsh corgi"),
    (268, "n02113978", "Mexican hairless"),
    (281, "n02123045", "tabby"),
    (285, "n02124075", "Egyptian cat"),
    (340, "n02391049", "zebra"),
    (388, "n02510455", "giant panda"),
    (517, "n03126707", "crane (machine)"),
    (638, "n03710637", "maillot (tights)"),
    (639, "n03710721", "maillot tank suit"),
    (836, "n04355933", "sunglass"),
    (837, "n04356056", "sunglasses"),
    (954, "n07753592", "banana"),
    (999, "n15075141", "toilet tissue"),
]

# Name, size, some members, some classes outside of the group.
GROUPS = [
    (
        "any cat",
        5,
        ["tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"],
        ["lynx", "lion", "cougar"],
    ),
    (
        "any big cat",
        6,
        ["leopard", "snow leopard", "jaguar", "lion", "tiger", "cheetah"],
        ["tabby", "lynx"],
    ),
    (
        "any dog",
        118,
        ["Chihuahua", "Mexican hairless", "dalmatian"],
        ["timber wolf", "dingo", "African hunting dog"],
    ),
    (
        "any bird",
        59,
        ["cock", "great grey owl", "toucan", "crane (bird)", "king penguin"],
        ["platypus", "grey whale"],
    ),
    ("any spider", 6, ["tarantula", "black widow"], ["harvestman", "scorpion", "tick"]),
    ("any fish", 16, ["tench", "stingray", "lionfish", "puffer"], ["killer whale", "starfish"]),
    ("any shark", 3, ["hammerhead"], ["stingray"]),
    (
        "any mammal",
        218,
        ["platypus", "koala", "killer whale", "tabby"],
        ["hammerhead", "king penguin"],
    ),
]


@pytest.mark.parametrize("index, wnid, name", CLASSES)
def test_a_class_is_found_by_index_wordnet_id_and_name(index: int, wnid: str, name: str):
    table = labels.imagenet()
    assert table.entries[index].wnid == wnid
    for word in (
        index,
        str(index),
        f" {index:04d} ",
        wnid,
        wnid.upper(),
        name,
        name.upper(),
        name.replace(" ", "_"),
    ):
        assert table.find(word) == (index,), word


def test_imagenet_is_in_wordnet_order_with_unique_display_names():
    table = labels.imagenet()
    wnids = [entry.wnid or "" for entry in table.entries]
    assert len(table) == 1000 and wnids == sorted(set(wnids))
    assert len({name.casefold() for name in table.display_names}) == 1000
    for index, name in enumerate(table.display_names):
        assert table.find(name) == (index,)


def test_every_name_selects_its_class_or_raises_an_error_that_lists_it():
    table = labels.imagenet()
    ambiguous = set()
    for entry in table.entries:
        for name in entry.names:
            try:
                (index,) = table.find(name)
            except ValueError as error:
                assert f"{entry.index} {table.display(entry.index)!r}" in str(error)
                ambiguous.add(name.lower())
            else:
                assert name.casefold() in {n.casefold() for n in table.entries[index].names}
    assert "crane" in ambiguous and len(ambiguous) < 20


@pytest.mark.parametrize("group, size, members, others", GROUPS)
def test_groups_contain_their_members_only(
    group: str, size: int, members: list[str], others: list[str]
):
    table = labels.imagenet()
    indices = table.find(group)
    assert len(indices) == size and indices == tuple(sorted(set(indices)))
    assert {table.find(name)[0] for name in members} <= set(indices)
    assert not {table.find(name)[0] for name in others} & set(indices)
    assert (
        table.find(group.removeprefix("any "))
        == indices
        == table.find(group.replace(" ", "-").upper())
    )


def test_a_first_name_has_precedence_over_a_synonym():
    table = labels.imagenet()
    assert table.display(table.find("harp")[0]) == "harp"  # also a name of the harmonica
    assert table.find("partridge") == (86,)  # also a name of the ruffed grouse


def test_the_exact_spelling_decides_between_equal_names():
    table = labels.imagenet()
    assert table.find("Cardigan") == (264,)  # the corgi
    assert table.find("cardigan") == (474,)  # the jacket


@pytest.mark.parametrize(
    "word, message",
    [
        ("crane", "134 'crane (bird)', 517 'crane (machine)'"),
        ("maillot", "638 'maillot (tights)', 639 'maillot (tank suit)'"),
        ("panther", "286 'cougar', 290 'jaguar'"),
        ("tabyb", "unknown ImageNet class 'tabyb'; nearest: 'tabby'"),
        ("any cats", "nearest: 'any cat'"),
        ("n02123046", "nearest: 'n02123045'"),
        ("1000", "indices go from 0 to 999"),
        (1000, "indices go from 0 to 999"),
        (-1, "indices go from 0 to 999"),
        ("-1", "indices go from 0 to 999"),
    ],
)
def test_unknown_and_ambiguous_words_are_errors_with_suggestions(word: str | int, message: str):
    with pytest.raises(ValueError) as error:
        labels.imagenet().find(word)
    assert message in str(error.value)


def test_targets_keep_the_order_of_the_words():
    targets = labels.imagenet().targets("zebra, any cat,281")
    assert targets == [("zebra", (340,)), ("any cat", (281, 282, 283, 284, 285)), ("281", (281,))]


@pytest.mark.parametrize("words", ["", "tabby,,zebra", "tabby,"])
def test_targets_with_an_empty_word_are_an_error(words: str):
    with pytest.raises(ValueError, match="empty word"):
        labels.imagenet().targets(words)


def test_imagenet_agrees_with_the_shared_photographs(shared_data: Path):
    photographs = sorted((shared_data / "imagenet_samples").glob("*/*"))
    assert photographs
    for path in photographs:
        wnid, _, name = path.stem.partition("_")
        entry = labels.imagenet().entries[int(path.parent.name)]
        assert entry.wnid == wnid
        assert name.replace("_", " ").casefold() in {n.casefold() for n in entry.names}


def test_pets_are_37_breeds_of_two_species():
    table = labels.pets()
    assert len(table) == 37
    assert len(table.find("any cat")) == 12 and len(table.find("any dog")) == 25
    assert set(table.find("cat")) | set(table.find("dog")) == set(range(37))
    assert table.find("american_pit_bull_terrier") == (2,)
    assert table.find("sphynx")[0] in table.find("any cat")


def test_pets_agree_with_the_shared_photographs(shared_data: Path):
    breeds = {path.name for path in (shared_data / "oxford_pets").iterdir() if path.is_dir()}
    assert (
        {labels.pets().find(breed)[0] for breed in breeds}
        == set(range(len(breeds)))
        == set(range(37))
    )
    info = shared_data / "tfds/oxford_iiit_pet/4.0.0/label.labels.txt"
    if info.exists():
        assert [labels.pets().find(n)[0] for n in info.read_text().split()] == list(range(37))


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (("3", "7", "1"), "0"),
        (("1", "2", "3"), "0"),
        (("0", "1", "2"), "3"),
        (("0", "1", "rest"), "2"),
        (("1.0", "2.0"), "1"),
        (("01", "02"), "1"),
        (("-1", "1"), "0"),
        (("1", "2"), "-1"),
        (("1", "2"), "1.0"),
        (("1", "2"), "01"),
        (("1,5", "2,5"), "1.5"),
    ],
)
def test_an_index_never_stands_in_for_a_name_of_a_table_of_numbers(
    names: tuple[str, ...], word: str
):
    table = labels.from_names(names)
    assert [table.find(name) for name in names] == [(i,) for i in range(len(names))]
    assert table.find(1) == (1,)  # an int is always an index
    with pytest.raises(
        ValueError, match=re.escape(f"unknown own class '{word}'; names of classes are numbers")
    ):
        table.find(word)


def test_numbers_are_indices_of_a_table_without_numbers():
    table = labels.from_names(["cat", "dog"])
    assert table.find("1") == table.find(" 01 ") == (1,)
    with pytest.raises(ValueError, match="indices go from 0 to 1"):
        table.find("2")
    with pytest.raises(ValueError, match="unknown own class '1.0'; nearest: 'cat'"):
        table.find("1.0")


def test_a_long_name_of_a_table_is_cut_in_messages():
    table = labels.from_names(["1", "2"], name="csv:/" + "folder/" * 30 + "t.csv")
    with pytest.raises(ValueError, match=r"^unknown \.\.\..{37} class '3'; names of classes are"):
        table.find("3")


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (("A", "B"), "A-"),
        (("A", "B"), "A+"),
        (("C", "Java"), "C#"),
        (("cafe", "the"), "caf\u00e9"),
        (("cafe", "the"), "cafe\u0301"),
        (("\u0915\u093e", "b"), "\u0915\u0940"),
        (("10", "20"), "10%"),
    ],
)
def test_symbols_and_marks_distinguish_names(names: tuple[str, ...], word: str):
    with pytest.raises(ValueError, match="unknown own class"):
        labels.from_names(names).find(word)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("cafe\u0301", "caf\u00e9"),
        ("\u00c5ngstr\u00f6m", "A\u030angstro\u0308m"),
        ("\ud55c\uae00", "\u1112\u1161\u11ab\u1100\u1173\u11af"),
        ("\u304c", "\u304b\u3099"),
        ("na\u00efve cat", "NAI\u0308VE_CAT"),
    ],
)
def test_names_are_compared_in_one_unicode_form(name: str, word: str):
    table = labels.from_names([name, "dog"])
    assert table.find(word) == (0,)
    assert table.display(0) == unicodedata.normalize("NFC", name)
    old = dataclasses.replace(table, entries=(labels.ClassEntry(0, None, (word,)),))
    assert old.find(name) == (0,)  # saved by an earlier version
    with pytest.raises(ValueError, match="distinct"):
        labels.from_names([name, unicodedata.normalize("NFD", name)])


@pytest.mark.parametrize(
    ("names", "numbers", "alike"),
    [
        (["1", "1.0", "01"], [("1", "1.0", "01")], []),
        (["0", "-0", "00"], [("0", "-0", "00")], []),
        (["1,0", "1"], [("1,0", "1")], []),
        (["-1", "1", "+1"], [("1", "+1")], []),
        (["1e3", "1000", "nan", "inf"], [], []),
        (["12345678901234567890", "12345678901234567891"], [], []),
        (["\uff11", "1"], [("\uff11", "1")], [("\uff11", "1")]),
        (["cat", "Cat", "CAT"], [], [("cat", "Cat", "CAT")]),
        (["big cat", "big  cat", "big\u00a0cat"], [], [("big cat", "big  cat", "big\u00a0cat")]),
        (["big_cat", "big cat"], [], [("big_cat", "big cat")]),
        (["cat", "c\u200bat", "c\u00adat"], [], [("cat", "c\u200bat", "c\u00adat")]),
        (["stra\u00dfe", "strasse"], [], [("stra\u00dfe", "strasse")]),
        (["cat", "cats", "c-at", "A", "A+", "A-"], [], []),
    ],
)
def test_suspicious_names_are_grouped(names: list[str], numbers: list, alike: list):
    assert labels.names.equal_numbers(names) == numbers
    assert labels.names.lookalikes(names) == alike


def test_classes_may_differ_in_spelling_only():
    table = labels.from_names(["C", "C++", "c"])
    assert [table.find(name)[0] for name in ("C", "C++", "c")] == [0, 1, 2]
    assert len(set(table.display_names)) == 3


@pytest.mark.parametrize("names", [[], ["cat", "cat"], ["cat", " "]])
def test_missing_empty_and_repeated_names_are_errors(names: list[str]):
    with pytest.raises(ValueError):
        labels.from_names(names)


def test_tables_with_wrong_indices_are_errors():
    with pytest.raises(ValueError, match="in order"):
        labels.ClassTable("t", (labels.ClassEntry(1, None, ("a",)),))
    with pytest.raises(ValueError, match="'any a' has"):
        labels.from_names(["a"], groups={"any a": (1,)})


def test_a_dict_without_classes_is_an_error():
    with pytest.raises(ValueError, match="not a stored class table"):
        labels.from_dict({"name": "t"})


@pytest.mark.parametrize(
    "table", [labels.imagenet(), labels.pets(), labels.cats_vs_dogs()], ids=lambda t: t.name
)
def test_tables_are_restored_from_json(table: labels.ClassTable):
    assert labels.from_dict(json.loads(json.dumps(table.as_dict()))) == table


NAMES = (
    (st.text(min_size=1) | st.text("aA1 _-", min_size=1, max_size=3)).map(str.strip).filter(bool)
)


@given(st.lists(NAMES, min_size=1, max_size=8, unique=True))
def test_any_names_are_found_or_reported_as_ambiguous(names: list[str]):
    table = labels.from_names(names)
    assert [table.find(i) for i in range(len(names))] == [(i,) for i in range(len(names))]
    assert labels.from_dict(json.loads(json.dumps(table.as_dict()))) == table
    for index, name in enumerate(names):
        try:
            assert table.find(name) == (index,)
        except ValueError as error:
            assert "select one by index" in str(error)
