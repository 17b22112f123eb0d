"""Finding image files, data sets by name, and the loader: generated images and photographs."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tl.data
from tests import toys
from tl.data import (
    DataSpec,
    Skipped,
    Split,
    find_images,
    folder,
    get,
    load,
)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes of 8 different images, and the other files that a real folder has."""
    for k, name in enumerate(("dog", "cat")):
        for i in range(8):
            toys.gray_png(tmp_path / "pets" / name / f"{i}.png", 16 * i + k)
    for other in ("README.md", "cat/notes.txt", "cat/.hidden.jpg", "cat/Thumbs.db", ".git/x.jpg"):
        (tmp_path / "pets" / other).parent.mkdir(exist_ok=True)
        (tmp_path / "pets" / other).write_text("x")
    return tmp_path / "pets"


# ---- find_images ----


def add_nested_image(pets: Path) -> None:
    """Adds an image in a folder one level deeper."""
    toys.gray_png(pets / "cat" / "more" / "deep.JPG", 255)


def test_folders_are_searched_recursively_and_in_order(pets: Path) -> None:
    add_nested_image(pets)
    paths, skipped = find_images(str(pets))
    names = [str(p.relative_to(pets)) for p in paths]
    assert names == [
        *(f"cat/{i}.png" for i in range(8)),
        "cat/more/deep.JPG",
        *(f"dog/{i}.png" for i in range(8)),
    ]
    names = [Path(s.path).name for s in skipped]
    assert names == ["README.md", "notes.txt", ".git", "Thumbs.db"]
    assert all("expected .jpg" in s.why for s in skipped[:2])
    assert all("belongs to a system or tool" in s.why for s in skipped[2:])


def test_words_keep_their_order_and_each_file_is_returned_once(pets: Path) -> None:
    add_nested_image(pets)
    first = pets / "dog/3.png"
    paths, _ = find_images(f"{first}, {pets}/cat/*.png ,{pets / 'dog'}")
    assert [p.parent.name for p in paths] == ["dog", *["cat"] * 8, *["dog"] * 7]
    assert paths[0] == first
    assert find_images([str(first), f"{pets}/cat/*.png", str(pets / "dog")])[0] == paths
    assert find_images(f"{pets}/**/deep.*")[0] == (pets / "cat/more/deep.JPG",)


def test_a_file_that_is_listed_explicitly_is_always_included(pets: Path) -> None:
    readme = pets / "README.md"
    assert find_images(f"{readme},{pets}")[0][0] == readme
    assert readme.name not in [Path(s.path).name for s in find_images(f"{readme},{pets}")[1]]


def test_an_existing_name_may_contain_commas_and_brackets(tmp_path: Path) -> None:
    for name in ("a, b.png", "c[1].png", "d,e/f.png"):
        path = toys.gray_png(tmp_path / name)
        assert find_images(str(path))[0] == (path,)
    assert find_images(str(tmp_path / "d,e"))[0] == (tmp_path / "d,e/f.png",)


def test_a_cycle_of_links_ends(pets: Path) -> None:
    add_nested_image(pets)
    (pets / "cat" / "loop").symlink_to(pets, target_is_directory=True)
    paths, skipped = find_images(str(pets / "cat"))
    assert len(paths) == 9
    assert Skipped(str(pets / "cat/loop"), "it is a link to a folder that contains it") in skipped
    (pets / "cat" / "loop").unlink()
    (pets / "dog" / "cats").symlink_to(pets / "cat", target_is_directory=True)
    (pets / "cat" / "dogs").symlink_to(pets / "dog", target_is_directory=True)
    assert len(find_images(str(pets / "cat"))[0]) == 17


def test_a_folder_that_cannot_be_listed_is_reported(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_nested_image(pets)
    listing = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)
    paths, skipped = find_images(str(pets / "cat"))
    assert len(paths) == 8
    reason = "the folder cannot be listed (Permission denied)"
    assert Skipped(str(pets / "cat/more"), reason) in skipped


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("{pets}/cta", "there is no 'cta' in .*; nearest there: 'cat'"),
        ("{pets}/cat/0.jpg", "there is no '0.jpg' in .*nearest there: '0.png'"),
        ("{pets}/cta/deep/1.png", "there is no 'cta' in .*/pets'"),
        ("{pets}/*.webp", r"the glob .* matches 0 names"),
        (
            "{pets}/../empty",
            "the folder .* has no image .no file., expected files ending in .jpg",
        ),
        ("{pets}/../texts", "the folder .* has no image .1 .txt file.,"),
        ("x" * 300, "does not exist"),
        ("~nobody/x.jpg", "does not exist"),
        ("", "no image is named by ''"),
        (",", "no image is named"),
    ],
)
def test_a_word_that_names_no_image_is_an_error_of_one_sentence(
    pets: Path, word: str, message: str
) -> None:
    (pets.parent / "empty").mkdir()
    (pets.parent / "texts").mkdir()
    (pets.parent / "texts/a.txt").write_text("x")
    with pytest.raises(ValueError, match=message) as caught:
        find_images(word.format(pets=pets))
    assert "\n" not in str(caught.value)


# ---- folder, get, elpv ----


def test_a_folder_has_a_class_per_sub_folder(pets: Path) -> None:
    spec = folder(pets)
    assert spec.classes == ("cat", "dog")
    assert Counter(e.label for e in spec.examples) == {0: 8, 1: 8}
    assert all(spec.classes[e.label] in e.path.parts for e in spec.examples)
    names = [Path(s.path).name for s in spec.skipped]
    assert names == ["README.md", "notes.txt", ".git", "Thumbs.db"]
    assert spec.license == "unknown"
    assert get(f"folder:{pets}") == dataclasses.replace(spec, name=f"folder:{pets}")


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path, pets: Path) -> None:
    with pytest.raises(
        ValueError, match="does not exist: there is no 'pest' in .*nearest there: 'pets'"
    ):
        folder(tmp_path / "pest")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        folder(pets / "README.md")


def test_a_folder_with_fewer_than_two_classes_is_an_error(tmp_path: Path, pets: Path) -> None:
    add_nested_image(tmp_path)
    with pytest.raises(
        ValueError, match=r"has one sub-folder .'more'., expected .* at least two classes"
    ):
        folder(tmp_path / "cat")
    with pytest.raises(ValueError, match="has 8 images and no sub-folder"):
        folder(pets / "dog")


def test_all_classes_without_images_are_listed_in_one_error(pets: Path) -> None:
    (pets / "ape").mkdir()
    (pets / "yak").mkdir()
    (pets / "yak" / "x.txt").write_text("x")
    with pytest.raises(ValueError, match="no image in 'ape': no file; in 'yak': 1 .txt file, exp"):
        folder(pets)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("elvp", "unknown data set 'elvp', expected folder:DIR or .* or elpv; nearest: 'elpv'"),
        ("csv", "expected csv:FILE"),
        ("tfds:", "expected tfds:NAME"),
        ("folder", "expected folder:DIR"),
        ("folder:", "expected folder:DIR"),
        ("elpv:x", "expected elpv"),
        ("", "unknown data set ''"),
    ],
)
def test_an_unknown_or_incomplete_name_is_an_error(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get(word)


def test_the_error_for_a_bare_folder_has_the_right_name(pets: Path) -> None:
    with pytest.raises(ValueError, match=f"write 'folder:{pets}'"):
        get(str(pets))


@pytest.fixture(scope="module")
def elpv() -> DataSpec:
    with toys.package_or_skip():
        return get("elpv")


def test_elpv_has_the_published_numbers_of_cells(elpv: DataSpec) -> None:
    # Deitsch et al. 2019, table 1: 2,624 cells; grades 0, 1/3, 2/3, 1 by mono and poly.
    assert Counter(e.stratum for e in elpv.examples) == {
        "functional mono": 588 + 117,
        "functional poly": 920 + 178,
        "defective mono": 56 + 313,
        "defective poly": 50 + 402,
    }
    assert all(elpv.classes[e.label] == e.stratum.split()[0] for e in elpv.examples)
    # Of the four grades.
    assert {round(e.confidence, 2) for e in elpv.examples} == {0.67, 1.0}


def test_elpv_is_split_like_the_paper(elpv: DataSpec) -> None:
    assert elpv.split is Split.STRATIFIED
    train, test = tl.data.split(elpv, seed=3)
    assert (len(train.examples), len(test.examples)) == (1968, 656)
    # Shares 176.25, 274.5, 92.25 and 113: the remainder of 1 goes to the largest fraction.
    assert sorted(Counter(e.stratum for e in test.examples).values()) == [92, 113, 176, 275]


def test_elpv_images_are_gray_squares(elpv: DataSpec) -> None:
    image = tl.data.decode(elpv.examples[0].path)
    assert image.shape == (300, 300, 3)
    assert (image[..., 0] == image[..., 2]).all()


def test_the_packaged_photographs_have_their_imagenet_class() -> None:
    with toys.package_or_skip():
        photographs = tl.data.photographs()
    assert len(photographs) == 21
    # Class 251 is the dalmatian.
    assert next(p for p in photographs if "imagenet_16" in p.path.name).index == 251
    assert photographs[-1].index is None
    assert all(tl.data.decode(p.path).ndim == 3 for p in photographs)


def test_the_error_for_a_missing_package_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(ValueError, match="install it with: pip install elpv-dataset$"):
        tl.data.elpv()
    with pytest.raises(ValueError, match="install it with: pip install foolbox$"):
        tl.data.photographs()


# ---- loader ----


def square(image: np.ndarray) -> np.ndarray:
    """A thumbnail of 4 x 4 pixels, plus 1, so that black is 1."""
    return np.asarray(Image.fromarray(image).resize((4, 4), Image.Resampling.NEAREST)) + 1


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_have_one_shape_and_keep_the_order_of_the_paths(
    tmp_path: Path, threads: int
) -> None:
    paths = [toys.gray_png(tmp_path / f"{i}.png", i, (4 + i, 9)) for i in range(11)]
    paths[1].write_bytes(b"no image")
    paths[6].unlink()
    batches = list(load(paths, square, batch_size=4, threads=threads))
    assert len(batches) == 3
    for batch in batches:
        assert batch.images.shape == (4, 4, 4, 3)
        assert (batch.images.dtype, batch.valid.dtype, batch.index.dtype) == (
            np.uint8,
            np.bool_,
            np.int32,
        )
    index = np.concatenate([b.index for b in batches])
    valid = np.concatenate([b.valid for b in batches])
    images = np.concatenate([b.images for b in batches])
    assert index.tolist() == [*range(11), -1]
    assert np.flatnonzero(~valid).tolist() == [1, 6, 11]
    # i + 1, and 0 + 1 in an empty slot.
    assert images[:, 0, 0, 0].tolist() == [1, 1, 3, 4, 5, 6, 1, 8, 9, 10, 11, 1]
    assert [[Path(s.path).name for s in b.skipped] for b in batches] == [["1.png"], ["6.png"], []]
    assert "not a readable image" in batches[0].skipped[0].why
    assert str(tmp_path) not in batches[0].skipped[0].why


def test_a_batch_without_a_valid_image_keeps_its_shape(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (batch,) = load([tmp_path / "a.jpg"], square, batch_size=2)
    assert batch.images.shape == (2, 4, 4, 3)
    assert not batch.valid.any()
    assert batch.skipped == (
        Skipped(str(tmp_path / "a.jpg"), "is empty (0 bytes), expected an image file"),
    )
    assert list(load([], square, batch_size=2)) == []


def test_a_batch_size_of_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match="`batch_size` must be at least 1: got 0"):
        load([], square, batch_size=0)


def test_a_transform_to_several_shapes_is_an_error(tmp_path: Path) -> None:
    paths = [toys.gray_png(tmp_path / f"{i}.png", 0, (4 + i, 9)) for i in range(3)]
    with pytest.raises(ValueError, match="expected one shape and dtype"):
        list(load(paths, lambda image: image, batch_size=2))


def test_an_error_of_the_transform_is_raised(tmp_path: Path) -> None:
    paths = [toys.gray_png(tmp_path / f"{i}.png", 0, (4 + i, 9)) for i in range(3)]

    def transform(image: np.ndarray) -> np.ndarray:
        if image.shape[1] == 5:
            raise KeyError("a mistake in the transform, not in an image")
        return square(image)

    with pytest.raises(KeyError, match="a mistake in the transform"):
        list(load(paths, transform, batch_size=2))


def test_a_process_ends_even_if_its_loader_is_not_exhausted() -> None:
    """A consumer that stops after one batch leaves no running thread; Grain is imported late."""
    program = (
        "import sys, tl.data\n"
        "assert 'grain' not in sys.modules\n"
        "import numpy as np, pathlib, tempfile\n"
        "from PIL import Image\n"
        "d = pathlib.Path(tempfile.mkdtemp())\n"
        "for i in range(40): Image.new('RGB', (8, 8)).save(d / f'{i}.png')\n"
        "square = lambda image: np.zeros((4, 4, 3), np.uint8)\n"
        "batch = next(tl.data.load(sorted(d.glob('*.png')), square, batch_size=2))\n"
        "print(batch.valid.sum())\n"
    )
    process = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[1],
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "2"


def test_a_thousand_real_photographs_are_split_and_loaded(shared_data: Path) -> None:
    """No image is skipped, and a text file does not stop the loader."""
    spec = folder(shared_data / "cats_vs_dogs")
    assert (spec.classes, len(spec.examples), spec.skipped) == (("cat", "dog"), 1000, ())
    train, test = tl.data.split(spec, seed=0)
    # Two images of the test part show the same puppies.
    assert (len(train.examples), len(test.examples)) == (749, 251)
    paths = [e.path for e in test.examples][:60]
    batches = list(load([*paths, shared_data / "README.md"], square, batch_size=32))
    assert sum(int(b.valid.sum()) for b in batches) == 60
    assert [Path(s.path).name for b in batches for s in b.skipped] == ["README.md"]
    for batch in batches:
        for image, index in zip(batch.images[batch.valid], batch.index[batch.valid], strict=True):
            with Image.open(paths[index]) as expected:
                np.testing.assert_array_equal(image, square(np.asarray(expected.convert("RGB"))))
