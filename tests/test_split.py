"""Division of data sets by content, stratified, in folds and by official parts; duplicates."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tl.data
from tests import toys
from tl import labels
from tl.data import (
    DataSpec,
    Example,
    Split,
    describe_parts,
    divide,
    duplicates,
    folder,
    folds,
    leaks,
    match_classes,
    remap_labels,
    remap_test_labels,
    split_by_content,
    split_digest,
    split_stratified,
    split_validation,
)
from tl.data.duplicates import clusters, content_hashes, fingerprint, near_groups


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Nine cats and eight dogs, all different."""
    for k, name in enumerate(("dog", "cat")):
        for i in range(8 + k):
            toys.gray_png(tmp_path / "pets" / name / f"{i}.png", 16 * i + k)
    return tmp_path / "pets"


def data_set(root: Path, contents: Sequence[tuple[int, bytes]], **changes: object) -> DataSpec:
    """A data set of files with these labels and bytes."""
    examples = []
    for i, (label, content) in enumerate(contents):
        (root / f"{i}.png").write_bytes(content)
        examples.append(Example(root / f"{i}.png", label))
    spec = DataSpec("test", tuple(examples), ("a", "b"), "here", "none")
    return dataclasses.replace(spec, **changes)


def contents_of(spec: DataSpec) -> list[bytes]:
    return [e.path.read_bytes() for e in spec.examples]


def test_a_split_by_content_ignores_file_names_and_folders(pets: Path, tmp_path: Path) -> None:
    train, test = tl.data.split(folder(pets), seed=0)
    assert Counter(e.label for e in test.examples) == {0: 2, 1: 2}
    assert Counter(e.label for e in train.examples) == {0: 7, 1: 6}
    renamed = tmp_path / "elsewhere"
    for i, e in enumerate(folder(pets).examples):
        target = renamed / ("cat", "dog")[e.label] / f"{100 - i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(e.path.read_bytes())
    again = split_by_content(folder(renamed))
    assert [Counter(contents_of(s)) for s in again] == [
        Counter(contents_of(s)) for s in (train, test)
    ]
    assert not set(contents_of(train)) & set(contents_of(test))


@given(st.data())
def test_equal_files_are_never_in_both_parts(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any number of copies, within a class and across classes, for both rules."""
    root = tmp_path_factory.mktemp("copies")
    contents = data.draw(
        st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9)), min_size=1, max_size=30)
    )
    contents += [(k, 100 + 10 * k + i) for k in (0, 1) for i in range(3)]  # enough to divide
    spec = data_set(root, [(label, bytes([content])) for label, content in contents])
    fraction = data.draw(st.floats(0.05, 0.95))
    for train, test in (
        split_by_content(spec, test_fraction=fraction),
        split_stratified(spec, test_fraction=fraction, seed=0),
    ):
        assert not set(contents_of(train)) & set(contents_of(test))
        assert sorted(e.path for e in train.examples + test.examples) == sorted(
            e.path for e in spec.examples
        )
        assert {e.label for e in train.examples} == {e.label for e in test.examples} == {0, 1}
        # The order stays.
        assert [e for e in spec.examples if e in test.examples] == list(test.examples)


def test_a_file_in_two_classes_stays_in_train(pets: Path) -> None:
    for i in range(8):
        toys.gray_png(pets / "cat" / f"dog{i}.png", 16 * i)  # every dog is also a cat
    toys.gray_png(pets / "dog" / "a.png", 201)
    toys.gray_png(pets / "dog" / "b.png", 202)
    for train, test in (
        split_by_content(folder(pets), test_fraction=0.9),
        split_stratified(folder(pets), test_fraction=0.9, seed=0),
    ):
        assert sum(e.label == 1 for e in test.examples) == 1
        assert not any(e.path.name.startswith("dog") for e in test.examples)
        assert {e.path.name for e in train.examples} >= {f"dog{i}.png" for i in range(8)}


def test_a_stratified_split_depends_on_the_seed_only(pets: Path) -> None:
    spec = folder(pets)
    tests = [split_stratified(spec, test_fraction=0.5, seed=s)[1].examples for s in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]
    assert Counter(e.label for e in tests[0]) in ({0: 4, 1: 4}, {0: 5, 1: 4})


def test_a_class_with_too_few_images_is_an_error(pets: Path, tmp_path: Path) -> None:
    toys.gray_png(tmp_path / "pets/ape/1.png", 200)
    toys.gray_png(tmp_path / "pets/ape/2.png", 200)  # the same bytes
    toys.gray_png(tmp_path / "pets/yak/1.png", 201)
    with pytest.raises(
        ValueError, match="'ape' has 1, 'yak' has 1 different images, expected at least 2"
    ):
        split_by_content(folder(pets))
    with pytest.raises(ValueError, match="'yak' has 1 different"):
        split_stratified(folder(pets), seed=0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_a_fraction_outside_its_range_is_an_error(pets: Path, fraction: float) -> None:
    with pytest.raises(ValueError, match=r"`test_fraction` must be in \(0, 1\): got"):
        split_by_content(folder(pets), test_fraction=fraction)


def test_the_content_hash_changes_with_the_content(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert tl.data.content_hash(path).startswith("ba7816bf8f01cfea")  # FIPS 180-2, appendix B.1
    path.write_bytes(b"abcd")
    assert tl.data.content_hash(path).startswith("88d4266f")


# ---- near-duplicates ----


def copies(image: Image.Image) -> dict[str, bytes]:
    """The same image, changed as images are that are copied on the web."""
    return {
        "jpeg": toys.encoded(image, "JPEG", quality=60),
        "half": toys.encoded(image.resize((80, 60), Image.Resampling.BICUBIC)),
        "squashed": toys.encoded(
            image.resize((112, 112), Image.Resampling.BILINEAR), "JPEG", quality=90
        ),
        "brighter": toys.encoded(image.point(lambda v: min(255, round(1.1 * v)))),
    }


@pytest.mark.parametrize("kind", ["jpeg", "half", "squashed", "brighter"])
def test_copies_are_recognized_and_other_images_are_not(kind: str) -> None:
    prints = {str(i): fingerprint(toys.encoded(toys.photograph(i))) for i in range(20)}
    assert near_groups(prints) == {}
    prints |= {f"{i} copy": fingerprint(copies(toys.photograph(i))[kind]) for i in range(20)}
    assert near_groups(prints) == {
        name: str(i) for i in range(20) for name in (str(i), f"{i} copy")
    }


def test_a_copy_turned_by_exif_is_a_duplicate() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = toys.encoded(
        toys.photograph(0).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95
    )
    prints = {
        "upright": fingerprint(toys.encoded(toys.photograph(0))),
        "turned": fingerprint(turned),
    }
    assert near_groups(prints) == {"turned": "turned", "upright": "turned"}


def test_uniform_images_have_no_near_duplicates() -> None:
    flat = [Image.new("RGB", (40, 40), (v, v, v)) for v in (100, 101, 102)]
    assert (
        near_groups({str(i): fingerprint(toys.encoded(image)) for i, image in enumerate(flat)})
        == {}
    )


def test_similarity_is_ignored_if_all_images_are_similar(tmp_path: Path) -> None:
    """Images of one object from one place, each with a small mark."""
    contents = []
    for i in range(24):
        cell = toys.photograph(0)
        cell.putpixel((i, 5), (255, 0, 0))
        contents.append((i % 2, toys.encoded(cell)))
    spec = data_set(tmp_path, contents)
    assert (
        near_groups({str(i): fingerprint(content) for i, (_, content) in enumerate(contents)})
        is None
    )
    assert len(set(clusters(spec))) == 24
    assert len(divide(spec, seed=0).test.examples) == 6


def test_near_duplicates_stay_in_one_part(tmp_path: Path) -> None:
    contents = [(i % 2, toys.encoded(toys.photograph(i))) for i in range(16)]
    contents += [
        (i % 2, copy)
        for i in range(16)
        for copy in list(copies(toys.photograph(i)).values())[: i % 3]
    ]
    spec = data_set(tmp_path, contents)
    names = clusters(spec)
    assert len(set(names)) == 16
    hashes = clusters(spec, near=False)
    assert names == [
        min(h for h, other in zip(hashes, names, strict=True) if other == name) for name in names
    ]
    group_of = dict(zip((e.path for e in spec.examples), names, strict=True))
    for kind in Split:
        parts = divide(
            dataclasses.replace(spec, split=kind),
            test_fraction=0.3,
            validation_fraction=0.3,
            seed=0,
        )
        groups = [{group_of[e.path] for e in part.examples} for part in parts]
        assert all(groups) and sum(map(len, groups)) == len(set.union(*groups))
        assert not leaks(parts.train, parts.test) and not leaks(parts.train, parts.validation)
    for train, test in folds(spec, 4, seed=0):
        assert not leaks(train, test)
    blind = divide(spec, seed=0, near_duplicates=False)
    assert leaks(blind.train, blind.test)  # otherwise the assertions above could not fail


def grouped_by_pairs(prints: Mapping[str, np.ndarray]) -> dict[str, str] | None:
    """`near_groups` one pair at a time: a slow reference."""
    names = sorted(prints)
    rows = np.stack([prints[name] for name in names])
    thumbnails = duplicates._standardized(rows[:, 8:])
    if len(names) > duplicates.NEIGHBORS + 1:
        nearest = np.sort(thumbnails[:256] @ thumbnails.T)[:, -duplicates.NEIGHBORS - 1]
        if np.median(nearest) > duplicates.SIMILAR:
            return None
    differing = np.bitwise_count(rows[:, None, :8] ^ rows[:, :8]).sum(axis=2)
    groups = {name: {name} for name in names}
    for i, j in np.argwhere(np.triu(differing <= duplicates.MAX_BITS, 1)):
        if thumbnails[i] @ thumbnails[j] >= duplicates.MIN_CORRELATION:
            joined = groups[names[i]] | groups[names[j]]
            groups |= dict.fromkeys(joined, joined)
    return {name: min(group) for name, group in groups.items() if len(group) > 1}


def noisy_prints(seed: int, n: int, kinds: int) -> dict[str, np.ndarray]:
    """Fingerprints of noisy copies of unrelated images: some pairs are near-duplicates."""
    rng = np.random.default_rng(seed)
    kind, noise = rng.integers(0, kinds, n), rng.uniform(0, 30, (n, 1))
    levels = toys.noise(kinds, 768, seed=seed)[kind] + noise * rng.standard_normal((n, 768))
    flips = np.packbits(rng.random((n, 64)) < 0.08, axis=1)
    bits = toys.noise(kinds, 8, seed=seed + 1)[kind] ^ flips
    rows = np.concatenate([bits, np.clip(levels, 0, 255).astype(np.uint8)], axis=1)
    return {f"{key:032x}": row for key, row in zip(rng.permutation(n), rows, strict=True)}


@given(
    st.integers(0, 10**6),
    st.integers(2, 80),
    st.integers(1, 12),
    st.sampled_from([5, 32, 128]),
    st.sampled_from([8, 1000]),
)
def test_groups_are_those_of_all_pairs(
    seed: int, n: int, kinds: int, block: int, neighbors: int
) -> None:
    """Whatever the size of the blocks; the limits of bits and correlation both decide."""
    prints = noisy_prints(seed, n, kinds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_BLOCK", block)
        patch.setattr(duplicates, "NEIGHBORS", neighbors)
        assert near_groups(prints) == grouped_by_pairs(prints)


def test_the_work_grows_linearly_with_the_size_of_a_group(monkeypatch) -> None:
    """Names are looked up a few times per image, and not once per pair of similar images."""
    count = 0

    class Name(str):
        def __hash__(self) -> int:
            nonlocal count
            count += 1
            return super().__hash__()

    rows = toys.noise(600, 776)
    rows[::3] = rows[0]
    prints = {Name(f"{i:03}"): row for i, row in enumerate(rows)}
    monkeypatch.setattr(duplicates, "fingerprints", lambda sources: prints)
    count = 0
    groups = duplicates.near_duplicate_groups(dict.fromkeys(prints, Path()))
    assert groups == {f"{i:03}": "000" for i in range(0, 600, 3)}
    assert count < 10 * len(prints)


def test_leaks_are_pairs_of_images(tmp_path: Path) -> None:
    spec = data_set(tmp_path, [(i % 2, toys.encoded(toys.photograph(i))) for i in range(6)])
    other = tmp_path / "other"
    other.mkdir()
    test = data_set(
        other,
        [
            (0, copies(toys.photograph(2))["jpeg"]),
            (1, toys.encoded(toys.photograph(5))),
            (1, toys.encoded(toys.photograph(9))),
        ],
    )
    assert leaks(spec, test) == [
        (spec.examples[2].path, test.examples[0].path),
        (spec.examples[5].path, test.examples[1].path),
    ]


def test_fingerprints_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    spec = data_set(
        tmp_path, [(i % 2, toys.encoded(toys.photograph(i))) for i in range(6)] + [(0, b"broken")]
    )
    first = clusters(spec)
    computed = []
    monkeypatch.setattr(
        "tl.data.duplicates.fingerprint",
        lambda source: computed.append(source) or np.zeros(776, np.uint8),
    )
    assert clusters(spec) == first
    assert computed == [spec.examples[-1].path]  # a broken image is tried again


# ---- parts ----


def test_three_parts_are_taken_by_content(pets: Path) -> None:
    spec = folder(pets)
    parts = divide(spec, test_fraction=0.25, validation_fraction=0.3, seed=0)
    assert [len(part.examples) for part in parts] == [9, 4, 4]
    assert sorted(e.path for part in parts for e in part.examples) == sorted(
        e.path for e in spec.examples
    )
    assert parts == divide(spec, test_fraction=0.25, validation_fraction=0.3, seed=1)
    assert parts.test == tl.data.split(spec, seed=5)[1] == split_by_content(spec)[1]
    hashes = [
        sorted(tl.data.content_hash(e.path) for e in part.examples if e.label == 0)
        for part in parts
    ]
    assert max(hashes[2]) < min(hashes[1]) <= max(hashes[1]) < min(hashes[0])
    whole = divide(spec, validation_fraction=0, seed=0)
    assert whole.validation.examples == () and whole.test == parts.test


def test_three_parts_are_taken_from_strata(pets: Path) -> None:
    spec = dataclasses.replace(folder(pets), split=Split.STRATIFIED)
    parts = divide(spec, validation_fraction=0.3, seed=3)
    assert parts.test == split_stratified(spec, seed=3)[1]
    assert sorted(e.path for part in parts for e in part.examples) == sorted(
        e.path for e in spec.examples
    )
    assert parts.validation != divide(spec, validation_fraction=0.3, seed=4).validation


def with_parts(spec: DataSpec, parts: Sequence[str]) -> DataSpec:
    return dataclasses.replace(
        spec,
        examples=tuple(
            dataclasses.replace(e, part=p) for e, p in zip(spec.examples, parts, strict=True)
        ),
    )


def test_an_official_test_part_is_kept(pets: Path) -> None:
    spec = with_parts(folder(pets), ["test" if i % 4 == 0 else "train" for i in range(17)])
    parts = divide(spec, test_fraction=0.9, seed=0)
    assert [e.part for e in parts.test.examples] == ["test"] * 5
    assert [e.part for e in parts.validation.examples] == ["train"] * 2
    assert tl.data.split(spec, seed=0)[1] == parts.test


def test_an_official_validation_part_is_kept(pets: Path) -> None:
    spec = with_parts(folder(pets), ["validation" if i % 4 == 0 else "train" for i in range(17)])
    parts = divide(spec, seed=0)
    assert [e.part for e in parts.validation.examples] == ["validation"] * 5
    assert {e.part for e in parts.test.examples} == {"train"}
    assert tl.data.split(spec, seed=0)[1] == parts.test


def test_three_official_parts_are_kept(pets: Path) -> None:
    spec = with_parts(folder(pets), [("train", "validation", "test")[i % 3] for i in range(17)])
    parts = [{e.part for e in part.examples} for part in divide(spec, seed=0)]
    assert parts == [{"train"}, {"validation"}, {"test"}]


def test_a_validation_part_without_a_test_part_is_the_official_one(pets: Path) -> None:
    spec = with_parts(folder(pets), ["validation" if i % 4 == 0 else "train" for i in range(17)])
    for fraction in (0.0, 0.2):
        train, validation = split_validation(spec, fraction, seed=0)
        assert [e.part for e in validation.examples] == ["validation"] * 5
        assert {e.part for e in train.examples} == {"train"}


def test_a_class_without_training_images_is_an_error(pets: Path) -> None:
    spec = folder(pets)
    dogs_in_test = ["test" if e.label == 1 else "train" for e in spec.examples]
    with pytest.raises(
        ValueError,
        match="no image of 'dog' is in the training part of .*, expected at least one of",
    ):
        divide(with_parts(spec, dogs_in_test), seed=0)
    with pytest.raises(ValueError, match="no image of 'cat', 'dog' is in the training part"):
        divide(with_parts(spec, ["test"] * 17), seed=0)


def test_an_empty_data_set_is_an_error(pets: Path) -> None:
    with pytest.raises(ValueError, match="'cat' has 0, 'dog' has 0 different images"):
        divide(dataclasses.replace(folder(pets), examples=()), seed=0)


def test_too_few_images_for_a_validation_part_are_an_error(pets: Path, tmp_path: Path) -> None:
    for i in range(2):
        toys.gray_png(tmp_path / "pets/ape" / f"{i}.png", 200 + i)
    with pytest.raises(
        ValueError,
        match="'ape' has 1 different .* in addition to the test part; .*`validation_fraction=0`",
    ):
        divide(folder(pets), seed=0)
    assert len(divide(folder(pets), validation_fraction=0, seed=0).test.examples) == 5


def test_a_validation_fraction_of_one_is_an_error(pets: Path) -> None:
    with pytest.raises(ValueError, match=r"`validation_fraction` must be in \(0, 1\): got 1.0"):
        divide(folder(pets), validation_fraction=1.0, seed=0)


# ---- duplicates across parts ----

# Official parts of the images of a data set; "" leaves the part to `tl`.
PART_SETS = [
    [""],
    ["train", "validation"],
    ["train", "test"],
    ["train", "validation", "test"],
    ["", "test"],
    ["", "validation", "test"],
    ["", "train", "validation"],
]


def group_name(example: Example) -> str:
    return Path(str(example.path)).name.partition(" ")[0]


@st.composite
def grouped_sets(draw: st.DrawFn) -> DataSpec:
    """A data set of files "GROUP NUMBER" that do not exist: random labels, parts and groups."""
    names, kind = draw(st.sampled_from(PART_SETS)), draw(st.sampled_from(list(Split)))
    row = st.tuples(st.integers(0, 1), st.sampled_from(names), st.integers(0, 12))
    rows = draw(st.lists(row, max_size=40))
    # Enough different images of each class and part to divide.
    rows += [(k, name, f"own{k}{name}{i}") for k in (0, 1) for name in names for i in range(8)]
    examples = tuple(
        Example(Path(f"{group} {i}"), label, "", part)
        for i, (label, part, group) in enumerate(rows)
    )
    return DataSpec("test", examples, ("a", "b"), "here", "none", split=kind)


def check_apart(parts: Mapping[str, DataSpec]) -> None:
    """Duplicates in two parts are in these parts officially."""
    rows = [(name, e) for name, part in parts.items() for e in part.examples]
    assert len({e.path for _, e in rows}) == len(rows)
    for (one, e), (other, f) in itertools.combinations(rows, 2):
        if one != other and group_name(e) == group_name(f):
            assert (e.part, f.part) == (one, other)


def official_part(spec: DataSpec, name: str) -> list[Example]:
    return [e for e in spec.examples if e.part == name]


def check_complete(spec: DataSpec, parts: Sequence[DataSpec]) -> None:
    """Every image is in a part, or listed with a reason and a copy of an official image."""
    present = [e for part in parts for e in part.examples]
    absent = [e for e in spec.examples if e not in present]
    assert {e.part for e in absent} <= {""}
    held_out = {group_name(e) for e in spec.examples if e.part in ("validation", "test")}
    assert {group_name(e) for e in absent} <= held_out
    assert {skip.path for skip in parts[0].skipped} == {str(e.path) for e in absent}


@contextlib.contextmanager
def groups_by_name() -> Iterator[None]:
    """Groups of duplicates as the file names say, each named by its smallest number."""
    with pytest.MonkeyPatch.context() as patch:

        def names(spec: DataSpec, near: bool = True) -> list[str]:
            first: dict[str, str] = {}
            for e in sorted(spec.examples, key=lambda e: str(e.path).split()[1]):
                first.setdefault(group_name(e), str(e.path).split()[1])
            return [first[group_name(e)] for e in spec.examples]

        # `tl.data.split` is the function, which hides the module of the same name.
        patch.setattr(importlib.import_module("tl.data.split"), "clusters", names)
        yield


@given(grouped_sets(), st.floats(0.05, 0.5), st.sampled_from([0.0, 0.1, 0.5]), st.integers(0, 3))
@hypothesis.settings(max_examples=60)
def test_duplicates_of_official_images_are_not_in_drawn_parts(
    spec: DataSpec, test_fraction: float, validation_fraction: float, seed: int
) -> None:
    fractions = {"test_fraction": test_fraction, "validation_fraction": validation_fraction}
    with groups_by_name():
        parts = divide(spec, **fractions, seed=seed)
        pair = tl.data.split(spec, test_fraction=test_fraction, seed=seed)
        triples = [
            (*split_validation(rest, validation_fraction, seed), test)
            for rest, test in folds(spec, 2, seed=seed)
        ]
    check_apart(parts._asdict())
    check_complete(spec, parts)
    for name in ("test", "validation"):
        if official := official_part(spec, name):
            assert list(getattr(parts, name).examples) == official

    check_complete(spec, pair)
    train, test = pair
    validation = dataclasses.replace(train, examples=tuple(official_part(train, "validation")))
    others = tuple(e for e in train.examples if e not in validation.examples)
    check_apart({"test": test, "validation": validation})
    check_apart({"test": test, "train": dataclasses.replace(train, examples=others)})

    for parts in triples:
        check_apart(dict(zip(("train", "validation", "test"), parts, strict=True)))


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 15)), max_size=30),
    st.randoms(use_true_random=False),
    st.floats(0.05, 0.5),
    st.floats(0.0, 0.5),
)
def test_without_one_image_few_others_change_their_part(
    rows: list[tuple[int, int]], random: Random, test_fraction: float, validation_fraction: float
) -> None:
    """By content: at most one group per class crosses each border, besides the one of the image."""
    rows += [(k, 100 + 10 * k + i) for k in (0, 1) for i in range(8)]
    random.shuffle(rows)  # the numbers in the names are their order by content
    examples = tuple(
        Example(Path(f"{group} {i:03}"), label) for i, (label, group) in enumerate(rows)
    )
    spec = DataSpec("test", examples, ("a", "b"), "here", "none")
    fractions = {"test_fraction": test_fraction, "validation_fraction": validation_fraction}

    def membership(spec: DataSpec) -> dict[Example, str]:
        parts = divide(spec, **fractions, seed=0)._asdict()
        return {e: name for name, part in parts.items() for e in part.examples}

    with groups_by_name():
        before = membership(spec)
        for removed in spec.examples:
            after = membership(with_examples(spec, [e for e in spec.examples if e != removed]))
            moved = {
                (group_name(e), e.label, before[e], after[e])
                for e in after
                if before[e] != after[e] and group_name(e) != group_name(removed)
            }
            group = [e for e in spec.examples if group_name(e) == group_name(removed)]
            assert {label for _, label, _, _ in moved} <= {e.label for e in group}
            borders = Counter((label, *sorted(names)) for _, label, *names in moved)
            assert max(borders.values(), default=0) <= 1
            if validation_fraction:
                assert not [names for _, *names in borders if names == ["test", "train"]]


@given(grouped_sets(), st.sampled_from([0.0, 0.1, 0.5]), st.integers(0, 3))
def test_a_separate_test_set_leaves_the_official_test_part_unused(
    spec: DataSpec, validation_fraction: float, seed: int
) -> None:
    with groups_by_name():
        train, validation = split_validation(spec, validation_fraction, seed)
    unused = official_part(spec, "test")
    assert not {e.part for e in train.examples + validation.examples} & {"test"}
    check_apart({"train": train, "validation": validation, "test": with_examples(spec, unused)})
    check_complete(spec, [train, validation, with_examples(spec, unused)])
    if official := official_part(spec, "validation"):
        assert list(validation.examples) == official
    else:
        assert bool(validation.examples) == bool(validation_fraction)


def with_examples(spec: DataSpec, examples: Sequence[Example]) -> DataSpec:
    return dataclasses.replace(spec, examples=tuple(examples))


def test_a_drawn_test_part_has_no_copy_of_an_official_validation_image(tmp_path: Path) -> None:
    """A folder with train/ and val/ only, as many downloads have it."""
    for i in range(24):
        path = tmp_path / "set" / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(toys.encoded(toys.photograph(i)))
    for i in range(14):
        path = tmp_path / "set" / "val" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(copies(toys.photograph(i))["jpeg"])
    spec = folder(tmp_path / "set")
    parts = divide(spec, seed=0)
    assert len(parts.validation.examples) == 14 and parts.test.examples
    assert not leaks(parts.validation, parts.test) and not leaks(parts.train, parts.test)
    assert {e.path.parent.parent.name for e in parts.test.examples} == {"train"}
    few = with_examples(spec, [e for e in spec.examples if e.path.stem not in ("14", "16", "18")])
    few = with_examples(few, [e for e in few.examples if e.path.stem not in ("20", "22")])
    with pytest.raises(
        ValueError, match="'a' has 0 .*; images with a copy in an official part do not count"
    ):
        divide(few, seed=0)


# ---- folds ----


@given(st.lists(st.integers(4, 9), min_size=2, max_size=4), st.integers(2, 6), st.integers(0, 9))
def test_folds_test_every_image_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], k: int, seed: int
):
    root = tmp_path_factory.mktemp("folds")
    contents = [(label, bytes([label, i])) for label, n in enumerate(sizes) for i in range(n)]
    spec = data_set(root, contents, classes=tuple("abcd"[: len(sizes)]))
    pairs = folds(spec, k, seed=seed)
    assert len(pairs) == k and pairs == folds(spec, k, seed=seed)
    assert sorted(e.path for _, test in pairs for e in test.examples) == sorted(
        e.path for e in spec.examples
    )
    for train, test in pairs:
        assert sorted(e.path for e in train.examples + test.examples) == sorted(
            e.path for e in spec.examples
        )
        per_class = Counter(e.label for e in test.examples)
        assert all(n // k <= per_class[label] <= -(-n // k) for label, n in enumerate(sizes))
    lengths = [len(test.examples) for _, test in pairs]
    assert max(lengths) - min(lengths) <= 1


def test_folds_ignore_official_parts(pets: Path) -> None:
    spec = with_parts(folder(pets), ["test" if i % 4 == 0 else "train" for i in range(17)])
    pairs = folds(spec, 2, seed=0)
    assert pairs == folds(folder(pets), 2, seed=0)
    train, _ = pairs[0]
    validation = split_validation(train, 0.5, seed=0)[1]
    assert len(validation.examples) == len(train.examples) // 2


@pytest.mark.parametrize("k", [1, 18])
def test_too_few_and_too_many_folds_are_errors(pets: Path, k: int) -> None:
    with pytest.raises(
        ValueError, match=f"`folds` must be in .2, .* got {k} folds of 17 different"
    ):
        folds(folder(pets), k, seed=0)


def test_folds_of_a_class_with_one_image_are_an_error(pets: Path, tmp_path: Path) -> None:
    toys.gray_png(tmp_path / "pets/ape/1.png", 200)
    with pytest.raises(ValueError, match="'ape' has 1 different images, .* for 3 folds"):
        folds(folder(pets), 3, seed=0)


# ---- digest ----


def test_the_digest_is_a_hash_of_contents_and_class_names(tmp_path: Path) -> None:
    spec = data_set(tmp_path, [(0, b"x"), (1, b"y")])
    rows = sorted(f"{hashlib.sha256(c).hexdigest()} {n}" for c, n in ((b"x", "a"), (b"y", "b")))
    assert split_digest(spec) == hashlib.sha256("\n".join(rows).encode()).hexdigest()


def test_the_digest_depends_on_contents_and_labels_only(tmp_path: Path) -> None:
    spec = data_set(tmp_path, [(0, b"x"), (1, b"y")])
    shuffled = dataclasses.replace(spec, examples=spec.examples[::-1], name="another")
    assert split_digest(shuffled) == split_digest(spec)
    first, second = spec.examples
    relabeled = dataclasses.replace(spec, examples=(dataclasses.replace(first, label=1), second))
    assert split_digest(relabeled) != split_digest(spec)
    assert split_digest(dataclasses.replace(spec, examples=(first,))) != split_digest(spec)


def test_near_duplicates_among_real_photographs_are_recognized(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = folder(shared_data / "cats_vs_dogs")
    groups = Counter(clusters(spec))
    same = [
        e.path.name
        for e, name in zip(spec.examples, clusters(spec), strict=True)
        if groups[name] > 1
    ]
    assert same == ["dog.180.jpg", "dog.74.jpg"]
    train, test = tl.data.split(spec, seed=0)
    assert not leaks(train, test)
    prints = duplicates.fingerprints(
        dict(zip(content_hashes(spec), (e.path for e in spec.examples), strict=True))
    )
    assert near_groups(prints) == grouped_by_pairs(prints)
    monkeypatch.setattr(duplicates, "MAX_BITS", 16)  # joins a quarter of the images
    monkeypatch.setattr(duplicates, "MIN_CORRELATION", 0.5)
    assert near_groups(prints) == grouped_by_pairs(prints)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([""] * 17, "training: 11 images; validation: 2, held out of the rest; test: 4, held out"),
        (["test", *["train"] * 16], "held out of the rest; test: 1, the official part"),
        (
            ["validation", "train"] * 8 + ["train"],
            "training: 7 images; validation: 8, the official part; test: 2, held out of the rest",
        ),
    ],
)
def test_the_origin_of_the_parts_is_described(pets: Path, names: list[str], expected: str) -> None:
    spec = with_parts(folder(pets), names)
    assert expected in describe_parts(spec, divide(spec, seed=0))


def test_unused_and_mixed_parts_are_described(pets: Path) -> None:
    spec = with_parts(folder(pets), ["test", *["train"] * 16])
    train, validation = split_validation(spec, 0, seed=0)
    parts = tl.data.Parts(train, validation, validation)
    assert describe_parts(spec, parts).endswith("not used: 1 in the official test part")
    train, test = folds(spec, 3, seed=0)[0]
    assert describe_parts(spec, tl.data.Parts(train, validation, test)).endswith(
        "held out of the rest; official parts are ignored"
    )
    toys.gray_png(pets / "dog" / "8.png", 0)  # equal to the first dog, which is a test image
    spec = with_parts(folder(pets), ["test" if i == 9 else "" for i in range(18)])
    assert describe_parts(spec, divide(spec, seed=0)).endswith("copy in an official part")


# ---- labels by name ----


def test_labels_are_remapped_by_the_exact_name(tmp_path: Path) -> None:
    spec = data_set(tmp_path, [(0, b"x"), (1, b"y")])
    remapped = remap_labels(spec, ["b", "c", "a"])
    assert remapped.classes == ("b", "c", "a")
    assert [example.label for example in remapped.examples] == [2, 0]
    with pytest.raises(ValueError, match="classes that were not learned: 'b'; nearest to 'b': 'B'"):
        remap_labels(spec, ["a", "B"])


def test_labels_are_remapped_by_the_synonyms_of_a_class_table(tmp_path: Path) -> None:
    table = labels.from_names(["Russian Blue", "pug"])
    spec = data_set(tmp_path, [(0, b"x"), (1, b"y")], classes=("pug", "russian_blue"))
    remapped = remap_labels(spec, table)
    assert remapped.classes == ("Russian Blue", "pug")
    assert [example.label for example in remapped.examples] == [1, 0]


@pytest.mark.parametrize(
    ("names", "learned", "message"),
    [
        (("0", "1", "2"), ("1", "2", "3"), "'0'; names of classes are numbers, so that no number"),
        (("1", "2", "3"), ("0", "1", "2"), "'3'; names of classes are numbers, so that no number"),
        (("1.0", "2.0"), ("1", "2"), "'1.0'; names of classes are numbers"),
        (("01", "02"), ("1", "2"), "'01'; names of classes are numbers"),
        (("cat", "0"), ("cat", "0x", "7"), "'0'; names of classes are numbers"),
        (("cat", "0"), ("cat", "dog"), "'0' is not the name of a class, and it is not read as an "),
        (
            ("cat", "Cat"),
            ("cat", "dog"),
            "'cat' and 'Cat' both match the class 'cat', expected one",
        ),
        (("cat", "cat "), ("cat", "dog"), "'cat' and 'cat ' both match the class 'cat'"),
        (("caf\u00e9", "cafe\u0301"), ("caf\u00e9", "t"), "both match the class 'caf\u00e9'"),
        (("big cat", "big_cat"), ("big cat", "dog"), "'big cat' and 'big_cat' both match"),
        (("1", "01"), ("cat", "dog"), "'1' and '01' both match the class 'dog'"),
        (("2", "1"), ("cat", "dog"), "has no class 2; indices go from 0 to 1"),
    ],
)
def test_two_classes_never_become_one(
    tmp_path: Path, names: tuple[str, ...], learned: tuple[str, ...], message: str
) -> None:
    spec = data_set(tmp_path, [(0, b"x"), (1, b"y")], classes=names)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        remap_labels(spec, labels.from_names(learned))
    assert len(str(caught.value)) < 400


def test_matches_by_index_and_in_another_spelling_are_remarked(tmp_path: Path) -> None:
    match = lambda names, learned: match_classes(names, labels.from_names(learned))
    assert match(["1", "0"], ["cat", "dog"]) == (
        (1, 0),
        ("the classes '1' and '0' are read as indices: 1 is 'dog'",),
    )
    assert match(["Dog", "cat"], ["cat", "dog"]) == (
        (1, 0),
        ("1 of 2 classes match in another spelling: 'Dog' is read as 'dog'",),
    )
    for name in ("big_cat", "Big  Cat", "big-cat"):
        ((label, _), (remark,)) = match([name, "dog"], ["dog", "big cat"])
        assert label == 1
        assert remark == f"1 of 2 classes match in another spelling: {name!r} is read as 'big cat'"
    with pytest.raises(
        ValueError, match="0 'Cat .0.', 1 'cat .1.'; select one by index, or by its"
    ):
        match(["CAT"], ["Cat", "cat"])
    assert match(["Cat (0)", "cat (1)"], ["Cat", "cat"])[0] == (0, 1)
    assert match(["cafe\u0301"], ["caf\u00e9", "the"]) == ((0,), ())
    assert match(["3", "1"], ["1", "2", "3"]) == ((2, 0), ())
    spec = data_set(tmp_path, [(0, b"x"), (1, b"y")], classes=("0", "1"))
    (remark,) = remap_labels(spec, labels.from_names(["cat", "dog"])).remarks
    assert remark == "the classes '0' and '1' are read as indices: 0 is 'cat'"
    decomposed = data_set(tmp_path, [(0, b"x"), (1, b"y")], classes=("cafe\u0301", "the"))
    assert remap_labels(decomposed, ["the", "caf\u00e9"]).examples[0].label == 1
    both = data_set(tmp_path, [(0, b"x"), (1, b"y")], classes=("cafe\u0301", "caf\u00e9"))
    with pytest.raises(ValueError, match="both match the class 'caf\u00e9'"):
        remap_labels(both, ["the", "caf\u00e9"])


def test_a_separate_test_set_shares_no_image_with_the_training_set(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    spec = data_set(tmp_path, [(i % 2, toys.encoded(toys.photograph(i))) for i in range(4)])
    test = data_set(tmp_path / "test", [(1, toys.encoded(toys.photograph(i))) for i in (4, 5)])
    assert [e.label for e in remap_test_labels(test, spec).examples] == [1, 1]
    test = data_set(tmp_path / "test", [(1, toys.encoded(toys.photograph(i))) for i in (4, 1)])
    with pytest.raises(
        ValueError, match="test/1.png of the test set is also in `data`, as .*1.png"
    ):
        remap_test_labels(test, spec)
    # The official test part of the training data is unused, so it may hold the test images.
    unused = with_parts(spec, ["train", "test", "train", "train"])
    assert len(remap_test_labels(test, unused).examples) == 2
