"""Preprocessing conventions: of a network that is right under one of them, and of arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tl import inference, labels, pages, pixels, reporting
from tl.backbones.spec import BackboneSpec
from tl.evaluation import conventions
from tl.models import Classifier, Provenance, heads
from tl.pages import audit, common
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
COLORS = {  # distant, and none of them gray
    "crimson": (0.8, 0.1, 0.2),
    "leaf": (0.2, 0.7, 0.1),
    "navy": (0.1, 0.1, 0.5),
    "sand": (0.9, 0.8, 0.6),
    "sky": (0.5, 0.7, 0.95),
    "wine": (0.35, 0.05, 0.15),
}
EXPECTED = {
    "torch": TORCHVISION,
    "caffe": CAFFE,
    "torch, BGR": TORCHVISION.replace(channels="bgr"),
}


class Mean(nn.Module):
    """The mean over the normalized image."""

    @nn.compact
    def __call__(self, inputs, mode):
        return inputs.mean((1, 2)), {"stem": inputs}


SPEC = BackboneSpec("mean", Mean(), 3, ("stem",), {}, "of this test", min_size=1)


def network(expected: PixelSpec):
    """A classifier that predicts the nearest color, and is correct under its own convention."""
    expected = expected.replace(size=SIZE)
    colors = jnp.asarray(list(COLORS.values()), jnp.float32)
    normalized = np.asarray(pixels.normalize(expected, colors[:, None, None])[:, 0, 0])
    head = {"kernel": 2 * normalized.T, "bias": -np.sum(normalized**2, axis=1)}
    table, weights = labels.from_names(list(COLORS)), Provenance("m", "")
    clf = Classifier("mean", SPEC, heads.Linear(len(COLORS)), expected, table, weights)
    return clf, {"params": {"backbone": {}, "head": head}, "batch_stats": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three noisy images of each color, 20 x 24, in a folder of its name."""
    folder, rng = tmp_path_factory.mktemp("colors"), np.random.default_rng(0)
    for name, color in COLORS.items():
        (folder / name).mkdir()
        for i in range(3):
            noisy = np.array(color) + 0.03 * rng.standard_normal((20, 24, 3))
            reporting.save_png(folder / name / f"{i}.png", np.clip(noisy, 0, 1).astype(np.float32))
    return folder


def compare(clf: Classifier, variables: Any, folder: Path, labeled: bool = True) -> dict[str, Any]:
    images = {
        resize: inference.read_images(clf.with_pixels(resize=resize), str(folder))
        for resize in ("shorter", "squash")
    }
    truth = inference.folder_labels(clf, images["shorter"].paths) if labeled else None
    return conventions.compare_conventions(clf, variables, images, truth)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_convention_that_the_weights_expect_is_the_best(name: str, folder: Path):
    result = compare(*network(EXPECTED[name]), folder)
    rows = {row["name"]: row for row in result["conventions"]}
    assert len(rows) == 8 and result["best"] == name and result["ranked_by"] == "top1"
    assert [row["name"] for row in result["conventions"] if row["own"]] == [name]
    assert rows[name]["top1"] == 1.0 and rows[name]["n"] == 18
    assert rows["0 to 255"]["top1"] < 0.5
    low, high = rows["0 to 255"]["top1_ci95"]
    assert low <= rows["0 to 255"]["top1"] <= high
    undecided = [n for n, row in rows.items() if n != name and row["p"] >= 0.05]
    assert sorted(result["cannot_be_told_apart"]) == sorted(undecided)
    assert f"expect {name} (their own)" in conventions.verdict(result)


def test_a_convention_outside_the_eight_is_added_as_the_ninth(folder: Path):
    result = compare(*network(LITE), folder)
    assert len(result["conventions"]) == 9 and result["best"] == conventions.PUBLISHED
    assert "-1 to 1" in result["cannot_be_told_apart"]
    verdict = conventions.verdict(result)
    assert "expect the convention they came with" in verdict and "cannot tell" in verdict


def test_conventions_are_compared_on_the_same_images(monkeypatch: pytest.MonkeyPatch):
    """18 and 12 of 18 correct: the intervals overlap, but six images against none decide."""
    labels, wrong = np.zeros(18, int), iter([0, 6, 5, 5, 5, 5, 5, 5])

    def logits(*_: object) -> np.ndarray:
        return np.eye(2)[(np.arange(18) < next(wrong)).astype(int)]

    monkeypatch.setattr(conventions, "_normalized_logits", logits)
    loaded = inference.LoadedImages([], np.zeros((18, 8, 8, 3), np.uint8), [])
    clf, variables = network(next(iter(EXPECTED.values())))
    result = conventions.compare_conventions(
        clf, variables, dict.fromkeys(("shorter", "squash"), loaded), labels
    )
    best, *others = result["conventions"]
    assert best["top1"] == 1.0 and "p" not in best
    assert [row["p"] for row in others] == pytest.approx([2 / 2**5] * 6 + [2 / 2**6])
    assert others[-1]["top1_ci95"][1] > best["top1_ci95"][0]
    assert result["cannot_be_told_apart"] == [row["name"] for row in others[:-1]]


def test_weights_with_the_specification_of_other_weights_are_reported(folder: Path):
    clf, variables = network(CAFFE)
    clf = clf.with_pixels(**conventions.values(TORCHVISION))
    result = compare(clf, variables, folder)
    assert result["best"] == "caffe"
    assert "not the convention they came with" in conventions.verdict(result)


def test_without_labels_the_information_ranks_the_conventions(folder: Path):
    result = compare(*network(CAFFE), folder, labeled=False)
    assert result["ranked_by"] == "information"
    assert "without labels" in conventions.verdict(result)
    assert "top1" not in result["conventions"][0] and result["cannot_be_told_apart"] == []


# ---- arrays ----


def photograph(seed: int) -> np.ndarray:
    """uint8[30 37 3] with structure, and redder than blue as photographs are."""
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
    "torch, normalized twice": ((X - M) / S - M) / S,
    "torch on 0 to 255 (not divided by 255)": (LEVELS - M) / S,
    "torch after -1 to 1": ((X * 2 - 1) - M) / S,
    "-1 to 1, normalized twice": (X * 2 - 1) * 2 - 1,
    "divided by 255 twice": X / 255,
}
EVIDENCE = pytest.mark.parametrize("images", [PHOTOGRAPHS, None], ids=["images", "values"])


def match(
    array: np.ndarray,
    tmp_path: Path,
    images: Sequence[np.ndarray] | None = None,
    expected: PixelSpec = TORCHVISION,
) -> dict[str, Any]:
    array = array.astype(np.float32) if array.dtype == np.float64 else array
    np.save(tmp_path / "array.npy", array)
    loaded = conventions.read_array(tmp_path / "array.npy")
    return json.loads(json.dumps(conventions.match_array(*loaded, expected, images)))


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_recognized_with_its_images(name: str, tmp_path: Path):
    result = match(ARRAYS[name], tmp_path, PHOTOGRAPHS)
    assert result["follows"] == name and result["exact"] and result["evidence"] == "pictures"
    first, second, *_ = result["candidates"]
    assert first["largest_difference"] < 0.02
    assert (first["resize"], first["interpolation"]) == ("shorter", "bicubic")
    assert second["largest_difference"] > 0.1


@pytest.mark.parametrize("name", [name for name in ARRAYS if "swapped" not in name])
def test_an_array_is_recognized_by_its_values_alone(name: str, tmp_path: Path):
    result = match(ARRAYS[name], tmp_path)
    assert result["follows"] == name and not result["exact"] and result["evidence"] == "numbers"
    assert not any("bluer" in note for note in result["notes"])


def test_swapped_channels_are_suspected_without_images(tmp_path: Path):
    result = match(ARRAYS["torch, channels swapped"], tmp_path, expected=TORCHVISION)
    assert result["follows"] == "torch" and not result["as_the_weights_want"]
    assert any("bluer" in note for note in result["notes"])


@EVIDENCE
def test_channels_first_and_nan_are_noted(images: list | None, tmp_path: Path):
    array = ARRAYS["torch"].transpose(0, 3, 1, 2).copy()
    array[2, 0, 1, 1] = np.nan
    result = match(array, tmp_path, images)
    assert result["follows"] == "torch" and result["layout"] == "channels first"
    assert result["not_finite"] == 1
    assert any("NaN" in note for note in result["notes"])
    assert any("channels come first" in note for note in result["notes"])


@EVIDENCE
def test_integers_are_noted(images: list | None, tmp_path: Path):
    notes = match(LEVELS, tmp_path, images)["notes"]
    assert any("integers (uint8)" in note for note in notes)


@EVIDENCE
def test_one_image_and_half_precision_are_recognized(images: list | None, tmp_path: Path):
    one = match(ARRAYS["torch"][0], tmp_path, images and images[:1])
    assert one["follows"] == "torch" and one["shape"] == [SIZE, SIZE, 3]
    assert match(ARRAYS["torch"].astype(np.float16), tmp_path, images)["follows"] == "torch"


def test_an_array_must_have_the_values_and_the_geometry_that_the_weights_expect(tmp_path: Path):
    bicubic = TORCHVISION.replace(interpolation="bicubic")
    assert match(ARRAYS["torch"], tmp_path, PHOTOGRAPHS, bicubic)["as_the_weights_want"]
    result = match(ARRAYS["torch"], tmp_path, PHOTOGRAPHS, TORCHVISION)
    assert not result["as_the_weights_want"]
    assert "the weights expect shorter bilinear" in result["notes"]
    assert not match(ARRAYS["torch"], tmp_path, PHOTOGRAPHS, CAFFE)["as_the_weights_want"]


def test_a_difference_of_one_level_is_as_the_weights_expect(tmp_path: Path):
    assert match(ARRAYS["EfficientNet-Lite"], tmp_path, None, INCEPTION)["as_the_weights_want"]


@EVIDENCE
def test_the_resize_of_another_library_is_recognized_but_not_exact(
    images: list | None, tmp_path: Path
):
    smooth = np.stack([float_resize(p) for p in PHOTOGRAPHS])
    result = match((smooth - M) / S, tmp_path, images)
    assert result["follows"] == "torch" and not result["exact"]


def float_resize(photograph: np.ndarray) -> np.ndarray:
    """f64[16 16 3] in [0, 1]: squashed in floating point, without antialiasing."""
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


@EVIDENCE
def test_noise_follows_no_convention(images: list | None, tmp_path: Path):
    noise = 40 * np.random.RandomState(0).standard_normal((4, SIZE, SIZE, 3)) ** 3
    assert match(noise, tmp_path, images)["follows"] is None


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((2, 8, 8, 4), np.float32), "no axis of 3 channels"),
        (np.zeros((8, 8), np.float32), r"float32\[8, 8\], expected numbers \[b h w 3\]"),
        (np.zeros((2, 8, 8, 3), bool), r"bool\[2, 8, 8, 3\]"),
        (np.full((2, 8, 8, 3), np.nan), "no finite value"),
        (np.array([{}]), "must be a .npy file of numbers"),
    ],
)
def test_arrays_of_other_types_are_refused(array: np.ndarray, message: str, tmp_path: Path):
    np.save(tmp_path / "array.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        conventions.read_array(tmp_path / "array.npy")


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="must be a .npy file of numbers"):
        conventions.read_array(tmp_path / "nowhere.npy")


def test_another_number_of_images_is_refused(tmp_path: Path):
    message = "got 4 and 3 images, expected the same images in the same order"
    with pytest.raises(ValueError, match=message):
        match(LEVELS, tmp_path, PHOTOGRAPHS[:3])


# ---- the page ----


def test_the_page_and_the_terminal_show_the_same(folder: Path, tmp_path: Path):
    result = compare(*network(LITE), folder)
    result["array"] = match(ARRAYS["torch"], tmp_path, PHOTOGRAPHS)
    result |= {"arch": "mean", "weights": "m"}
    text = "\n".join(audit.lines(result))
    outcome = conventions.verdict(result)
    for words in (outcome, "The array follows torch", "caffe", "normalized twice"):
        assert words in text, words
    page = pages.PAGES["audit"](reporting.jsonable(result), tmp_path)
    html = "".join(page.sections)
    assert "mean with the weights m" in page.lead
    assert "The array follows torch" in html and reporting.text(outcome) in html


@pytest.mark.parametrize(
    "spec, words",
    [
        (TORCHVISION, "224 of 256, bilinear, RGB, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"),
        (CAFFE, "224 of 256, bicubic, BGR, 0 to 255 minus 103.939 116.779 123.68"),
        (INCEPTION.replace(resize="squash"), "224 squashed, bicubic, RGB, mean 0.5, std 0.5"),
        (conventions.EIGHT_BIT, "224 of 256, bicubic, RGB, 0 to 255"),
    ],
)
def test_a_spec_is_written_in_words(spec: PixelSpec, words: str):
    assert common.pixels_in_words(spec) == words
