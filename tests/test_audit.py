"""`audit` on a network that knows colours under one convention only, arrays of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments import audit
from tl import inference, labels, pixels, reporting
from tl.backbones.spec import BackboneSpec
from tl.models import Classifier, Provenance, heads
from tl.pages import common
from tl.pixels import (
    CAFFE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INCEPTION,
    LITE,
    TORCHVISION,
    PixelSpec,
    prepare,
)

SIZE = 16
COLOURS = {  # far apart, and none of them grey
    "crimson": (0.8, 0.1, 0.2),
    "leaf": (0.2, 0.7, 0.1),
    "navy": (0.1, 0.1, 0.5),
    "sand": (0.9, 0.8, 0.6),
    "sky": (0.5, 0.7, 0.95),
    "wine": (0.35, 0.05, 0.15),
}
OWN = {"torch": TORCHVISION, "caffe": CAFFE, "torch, BGR": TORCHVISION.replace(channels="bgr")}


class Mean(nn.Module):
    """The mean of what a network sees."""

    @nn.compact
    def __call__(self, inputs, mode):
        return inputs.mean((1, 2)), {"stem": inputs}


SPEC = BackboneSpec("mean", Mean(), 3, ("stem",), {}, "of this test", min_size=1)


def network(own: PixelSpec):
    """A classifier that names the nearest colour, and is right under its own convention."""
    own = own.replace(size=SIZE)
    colors = jnp.asarray(list(COLOURS.values()), jnp.float32)
    seen = np.asarray(pixels.normalize(own, colors[:, None, None])[:, 0, 0])
    head = {"kernel": 2 * seen.T, "bias": -np.sum(seen**2, axis=1)}
    clf = Classifier(
        "mean",
        SPEC,
        heads.Linear(len(COLOURS)),
        own,
        labels.from_names(COLOURS),
        Provenance("m", ""),
    )
    return clf, {"params": {"backbone": {}, "head": head}, "batch_stats": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three noisy pictures of each colour, 20 x 24, under its name."""
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for name, color in COLOURS.items():
        (folder / name).mkdir()
        for i in range(3):
            noisy = np.array(color) + 0.03 * rng.standard_normal((20, 24, 3))
            reporting.save_png(folder / name / f"{i}.png", np.clip(noisy, 0, 1).astype(np.float32))
    return folder


def compared(own: PixelSpec, folder: Path, labelled: bool = True):
    clf, variables = network(own)
    pictures = {
        r: inference.read_images(clf.with_pixels(resize=r), str(folder))
        for r in ("shorter", "squash")
    }
    truth = inference.folder_labels(clf, pictures["shorter"].paths) if labelled else None
    return audit.compare(clf, variables, pictures, truth)


@pytest.mark.parametrize("name", OWN)
def test_the_convention_that_the_weights_want_is_named(name: str, folder: Path):
    result = compared(OWN[name], folder)
    rows = {row["name"]: row for row in result["conventions"]}
    assert len(rows) == 8 and result["best"] == name and result["ranked_by"] == "top1"
    assert [row["name"] for row in result["conventions"] if row["own"]] == [name]
    assert rows[name]["top1"] == 1.0 and rows[name]["n"] == 18
    assert rows["0 to 255"]["top1"] < 0.5
    low, high = rows["0 to 255"]["top1_ci95"]
    assert low <= rows["0 to 255"]["top1"] <= high
    overlapping = [
        n
        for n, row in rows.items()
        if n != name and row["top1_ci95"][1] >= rows[name]["top1_ci95"][0]
    ]
    assert sorted(result["cannot_be_told_apart"]) == sorted(overlapping)
    assert f"want {name} (their own)" in audit.verdict(result)


def test_what_is_none_of_the_eight_is_a_ninth(folder: Path):
    result = compared(LITE, folder)
    assert len(result["conventions"]) == 9 and result["best"] == audit.OWN
    assert "-1 to 1" in result["cannot_be_told_apart"] and "not to be told apart" in audit.verdict(
        result
    )


def test_wrong_weights_files_are_told(folder: Path):
    """The specification that came with these weights is not the one they were trained with."""
    clf, variables = network(CAFFE)
    clf = clf.with_pixels(**audit.values(TORCHVISION))
    pictures = {
        r: inference.read_images(clf.with_pixels(resize=r), str(folder))
        for r in ("shorter", "squash")
    }
    result = audit.compare(
        clf, variables, pictures, inference.folder_labels(clf, pictures["shorter"].paths)
    )
    assert result["best"] == "caffe" and "not what they came with" in audit.verdict(result)


def test_without_labels_it_says_so(folder: Path):
    result = compared(CAFFE, folder, labelled=False)
    assert result["ranked_by"] == "information" and "without labels" in audit.verdict(result)
    assert "top1" not in result["conventions"][0] and result["cannot_be_told_apart"] == []


# --- arrays -----------------------------------------------------------------------------------------------------------


def photograph(seed: int) -> np.ndarray:
    """uint8[30 37 3] with structure, reddish as photographs are."""
    rng = np.random.RandomState(seed)
    coarse = rng.uniform(0, 1, (5, 6, 3)) * np.array([1.0, 0.9, 0.75])
    fine = np.kron(coarse, np.ones((6, 7, 1)))[:30, :37] + 0.05 * rng.standard_normal((30, 37, 3))
    return np.rint(np.clip(fine, 0, 1) * 255).astype(np.uint8)


PHOTOGRAPHS = [photograph(seed) for seed in range(4)]
LEVELS = np.stack([prepare(PixelSpec(size=SIZE), p) for p in PHOTOGRAPHS])
X, M, S = LEVELS / 255.0, np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
CAFFE_MEAN = [103.939, 116.779, 123.68]
ARRAYS = {
    "0 to 255": LEVELS,
    "0 to 1": X,
    "-1 to 1": X * 2 - 1,
    "torch": (X - M) / S,
    "caffe": LEVELS[..., ::-1] - CAFFE_MEAN,
    "caffe's means on RGB": LEVELS - CAFFE_MEAN[::-1],
    "EfficientNet-Lite": (LEVELS - 127.0) / 128,
    "torch, channels swapped": (X[..., ::-1] - M) / S,
    "torch, normalised twice": ((X - M) / S - M) / S,
    "torch on 0 to 255 (not divided by 255)": (LEVELS - M) / S,
    "torch after -1 to 1": ((X * 2 - 1) - M) / S,
    "-1 to 1, normalised twice": (X * 2 - 1) * 2 - 1,
    "divided by 255 twice": X / 255,
}


def followed(
    array: np.ndarray, tmp_path: Path, photographs: list | None = None, own: PixelSpec = TORCHVISION
):
    np.save(
        tmp_path / "array.npy", array.astype(np.float32) if array.dtype == np.float64 else array
    )
    result = audit.follows(*audit.read_array(tmp_path / "array.npy"), own, photographs)
    return json.loads(json.dumps(result))


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_recognised_by_its_pictures(name: str, tmp_path: Path):
    result = followed(ARRAYS[name], tmp_path, PHOTOGRAPHS)
    assert result["follows"] == name and result["exact"] and result["evidence"] == "pictures"
    first, second, *_ = result["candidates"]
    assert first["largest_difference"] < 0.02 and (first["resize"], first["interpolation"]) == (
        "shorter",
        "bicubic",
    )
    assert second["largest_difference"] > 0.1


@pytest.mark.parametrize("name", [name for name in ARRAYS if "swapped" not in name])
def test_an_array_is_recognised_by_its_numbers_alone(name: str, tmp_path: Path):
    result = followed(ARRAYS[name], tmp_path)
    assert result["follows"] == name and not result["exact"] and result["evidence"] == "numbers"
    assert not any("bluer" in note for note in result["notes"])


def test_swapped_channels_are_suspected_without_pictures(tmp_path: Path):
    result = followed(ARRAYS["torch, channels swapped"], tmp_path, own=TORCHVISION)
    assert result["follows"] == "torch" and not result["as_the_weights_want"]
    assert any("bluer" in note for note in result["notes"])


@pytest.mark.parametrize("pictures", [PHOTOGRAPHS, None], ids=["pictures", "numbers"])
def test_layout_and_dtype_and_nan_are_noticed(pictures: list | None, tmp_path: Path):
    first = ARRAYS["torch"].transpose(0, 3, 1, 2).copy()
    first[2, 0, 1, 1] = np.nan
    result = followed(first, tmp_path, pictures)
    assert (
        result["follows"] == "torch"
        and result["layout"] == "channels first"
        and result["not_finite"] == 1
    )
    assert any("NaN" in note for note in result["notes"]) and any(
        "channels come first" in n for n in result["notes"]
    )
    assert any(
        "whole numbers (uint8)" in note for note in followed(LEVELS, tmp_path, pictures)["notes"]
    )
    one = followed(ARRAYS["torch"][0], tmp_path, pictures and pictures[:1])
    assert one["follows"] == "torch" and one["shape"] == [SIZE, SIZE, 3]
    assert followed(ARRAYS["torch"].astype(np.float16), tmp_path, pictures)["follows"] == "torch"


def test_what_the_weights_want_is_values_and_geometry(tmp_path: Path):
    bicubic = TORCHVISION.replace(interpolation="bicubic")
    assert followed(ARRAYS["torch"], tmp_path, PHOTOGRAPHS, bicubic)["as_the_weights_want"]
    result = followed(ARRAYS["torch"], tmp_path, PHOTOGRAPHS, TORCHVISION)
    assert (
        not result["as_the_weights_want"] and "the weights want shorter bilinear" in result["notes"]
    )
    assert not followed(ARRAYS["torch"], tmp_path, PHOTOGRAPHS, CAFFE)["as_the_weights_want"]
    assert followed(ARRAYS["EfficientNet-Lite"], tmp_path, None, INCEPTION)[
        "as_the_weights_want"
    ], "within a level"


@pytest.mark.parametrize("pictures", [PHOTOGRAPHS, None], ids=["pictures", "numbers"])
def test_another_librarys_resize_is_recognised_but_not_exact(pictures: list | None, tmp_path: Path):
    smooth = np.stack([float_resize(p) for p in PHOTOGRAPHS])
    result = followed((smooth - M) / S, tmp_path, pictures)
    assert result["follows"] == "torch" and not result["exact"]


def float_resize(photograph: np.ndarray) -> np.ndarray:
    """f64[16 16 3] in [0, 1]: the squashed picture in floating point, without antialiasing."""
    rows, columns = (np.linspace(0, n - 1, SIZE) for n in photograph.shape[:2])
    i, j = np.floor(rows).astype(int), np.floor(columns).astype(int)
    wide = (
        photograph[:, j] * (1 - columns + j)[:, None]
        + photograph[:, np.minimum(j + 1, 36)] * (columns - j)[:, None]
    )
    return (
        wide[i] * (1 - rows + i)[:, None, None]
        + wide[np.minimum(i + 1, 29)] * (rows - i)[:, None, None]
    ) / 255


def test_noise_follows_nothing(tmp_path: Path):
    noise = 40 * np.random.RandomState(0).standard_normal((4, SIZE, SIZE, 3)) ** 3
    for pictures in (PHOTOGRAPHS, None):
        assert followed(noise, tmp_path, pictures)["follows"] is None


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((2, 8, 8, 4), np.float32), "no axis of 3 channels"),
        (np.zeros((8, 8), np.float32), r"float32\[8, 8\]; wanted numbers \[b h w 3\]"),
        (np.zeros((2, 8, 8, 3), bool), r"bool\[2, 8, 8, 3\]"),
        (np.full((2, 8, 8, 3), np.nan), "no finite number"),
        (np.array([{}]), "no .npy file of numbers"),
    ],
)
def test_arrays_that_are_none_are_refused(array: np.ndarray, message: str, tmp_path: Path):
    np.save(tmp_path / "array.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        audit.read_array(tmp_path / "array.npy")


def test_no_file_and_other_counts_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no .npy file of numbers"):
        audit.read_array(tmp_path / "nowhere.npy")
    with pytest.raises(
        ValueError, match="holds 4 pictures and --images 3; give the same, in the same order"
    ):
        followed(LEVELS, tmp_path, PHOTOGRAPHS[:3])


def test_the_page_and_the_terminal_tell_the_same(folder: Path, tmp_path: Path):
    result = {**compared(LITE, folder), "array": followed(ARRAYS["torch"], tmp_path, PHOTOGRAPHS)}
    sections, lines = audit.tables(result)
    text = "\n".join(lines)
    for words in (audit.verdict(result), "The array follows torch", "caffe", "normalised twice"):
        assert words in text, words
    assert len(sections) == 2 and "The array follows torch" in sections[1]


@pytest.mark.parametrize(
    "spec, words",
    [
        (TORCHVISION, "224 of 256, bilinear, RGB, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"),
        (CAFFE, "224 of 256, bicubic, BGR, 0 to 255 minus 103.939 116.779 123.68"),
        (INCEPTION.replace(resize="squash"), "224 squashed, bicubic, RGB, mean 0.5, std 0.5"),
        (audit.EIGHT_BIT, "224 of 256, bicubic, RGB, 0 to 255"),
    ],
)
def test_a_spec_in_words(spec: PixelSpec, words: str):
    assert common.in_words(spec) == words
