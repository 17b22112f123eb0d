"""The batched forward pass, and `tl.predict` of arrays, files, folders and data sets."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tl
from tests import toys
from tl import data, inference, metrics, pages, pixels, reporting
from tl.evaluation import paired, sets
from tl.models import Classifier, Provenance

CLASSES = ("red", "blue", "gray")
network = functools.partial(toys.classifier, "toy_mobilenet", CLASSES)


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> data.DataSpec:
    """Five red and five blue images, and a broken one."""
    folder = tmp_path_factory.mktemp("colors")
    toys.color_folder(folder, 5)
    (folder / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    return data.folder(folder)


@pytest.fixture(scope="module")
def predicted(colors: data.DataSpec) -> inference.Predictions:
    return tl.predict(*network(), colors)


def folders(predicted: inference.Predictions) -> list[str]:
    """The names of the folders of the images."""
    return [Path(str(path)).parent.name for path in predicted.paths]


def test_a_data_set_without_images_has_no_predictions(colors: data.DataSpec) -> None:
    """Such as the validation part with `validation_fraction=0`."""
    empty = tl.predict(*network(), dataclasses.replace(colors, examples=()))
    assert empty.logits.shape == (0, 3) and empty.labels.dtype == np.int64
    assert len(empty.labels) == 0


# ---- batches ----


def test_in_batches_keeps_order_and_calls_with_one_shape() -> None:
    shapes = []

    def double(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
        shapes.append((x.shape, y.shape))
        return {"sum": x + y, "x": jnp.asarray(x)}

    x, y = np.arange(7), np.ones((7, 2), int)
    values = inference.in_batches(double, x[:, None] * y, y, batch_size=3)
    np.testing.assert_array_equal(values["sum"], x[:, None] * y + 1)
    np.testing.assert_array_equal(values["x"], x[:, None] * y)
    assert shapes == [((3, 2), (3, 2))] * 3 and isinstance(values["x"], np.ndarray)


@pytest.mark.parametrize(("n", "batch_size"), [(0, 4), (3, 0)])
def test_in_batches_refuses_no_rows(n: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1: got {batch_size} and {n}"):
        inference.in_batches(lambda x: x, np.zeros(n), batch_size=batch_size)


def test_map_sources_returns_the_rows_of_readable_images(colors: data.DataSpec) -> None:
    sources = [example.path for example in colors.examples]
    broken = [i for i, path in enumerate(sources) if path.name == "broken.jpg"]
    totals = []

    def progress(batches: Iterable[Any], total: int) -> Iterator[Any]:
        totals.append(total)
        yield from batches

    prepare = functools.partial(pixels.prepare, pixels.PixelSpec(size=8))
    mean = lambda images: images.mean(axis=(1, 2, 3))
    batches = list(inference.map_sources(mean, sources, prepare, batch_size=4, progress=progress))
    assert totals == [3]
    index = np.concatenate([batch.index for batch in batches])
    assert index.tolist() == [i for i in range(11) if i not in broken]
    failed = [int(i) for batch in batches for i in batch.failed]
    skipped = [skip.path for batch in batches for skip in batch.skipped]
    assert failed == broken and skipped == [str(sources[i]) for i in broken]
    for i, value in zip(index, np.concatenate([b.values for b in batches]), strict=True):
        assert value == prepare(data.decode(sources[i])).mean()


# ---- predict ----


def test_a_data_set_has_its_labels_by_name(
    colors: data.DataSpec, predicted: inference.Predictions
) -> None:
    assert predicted.logits.shape == (10, 3) and predicted.logits.dtype == np.float32
    assert [CLASSES[label] for label in predicted.labels] == folders(predicted)
    (skip,) = predicted.skipped
    assert skip.path.endswith("broken.jpg")
    np.testing.assert_array_equal(predicted.probabilities, metrics.softmax(predicted.logits))


def test_the_logits_are_those_of_the_network(predicted: inference.Predictions) -> None:
    clf, variables = network()
    images = np.stack([clf.prepare(data.decode(path)) for path in predicted.paths])
    expected = np.asarray(jax.jit(clf.logits)(variables, pixels.to_images01(images)))
    np.testing.assert_allclose(predicted.logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "arch",
    ["toy_vgg_bn", "toy_mobilenet", "efficientnet_lite0", "resnet18"],
)
@pytest.mark.full
@pytest.mark.optimized
def test_logits_agree_as_the_documentation_says(
    arch: str, colors: data.DataSpec, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """`predict` states which calls have the same bits, and which agree within 2e-6."""
    if arch.startswith("toy_"):
        clf, variables = toys.classifier(arch, CLASSES)
        paths = [example.path for example in colors.examples]
    else:
        folder = request.getfixturevalue("shared_data") / "imagenet_samples"
        paths = sorted(folder.glob("*/*"))[:20]
        with toys.package_or_skip():
            clf, variables = tl.load(arch, weights="random" if arch == "resnet18" else None)
        head = variables["params"]["head"]
        if not head["kernel"].any():
            head["kernel"] = np.random.default_rng(0).normal(size=head["kernel"].shape)
            head["kernel"] = head["kernel"].astype(np.float32) / 20
    predicted = tl.predict(clf, variables, paths, batch_size=8)
    n = len(predicted.paths) // 8 * 8
    images = np.stack([clf.prepare(data.decode(path)) for path in predicted.paths])
    images01 = jnp.asarray(pixels.to_images01(images))
    by_hand = lambda function, variables, x, b=8: np.concatenate(
        [np.asarray(function(variables, x[i : i + b])) for i in range(0, min(n, len(x)), b)]
    )

    order = np.random.default_rng(0).permutation(len(images))
    shuffled = tl.predict(clf, variables, images[order], batch_size=8).logits
    apply = jax.jit(clf.apply)  # once, because every call of `jit` compiles again
    same = {
        "another order": shuffled[np.argsort(order)],
        "an array": inference.predict_logits(clf, variables, images, batch_size=8),
        "jit(logits)": by_hand(jax.jit(clf.logits), variables, images01),
    }
    applied = by_hand(lambda v, x: apply(v, x).logits, variables, images01)
    if not arch.startswith("toy_"):  # the networks of the table in `tl/README.md`
        same["jit(apply)"] = applied
    for name, logits in same.items():
        np.testing.assert_array_equal(logits, predicted.logits[: len(logits)], err_msg=name)

    converts = jax.jit(lambda v, x: clf.logits(v, pixels.to_images01(x)))
    bank = inference.extract(clf, variables, list(predicted.paths), cache=tmp_path)
    rounded = {
        "jit(apply)": applied,
        "no jit": by_hand(clf.logits, variables, images01[:8]),
        "batch size 1": by_hand(jax.jit(clf.logits), variables, images01[:8], 1),
        "uint8": by_hand(converts, variables, images),
        "folded": by_hand(jax.jit(clf.logits), clf.fold_batch_norm(variables), images01),
        "bank": np.asarray(clf.apply_head(variables, jnp.asarray(bank.values))),
    }
    largest = np.abs(predicted.logits).max()
    for name, logits in rounded.items():
        error = np.abs(logits - predicted.logits[: len(logits)]).max()
        assert error <= 2e-6 * largest, (name, error / largest)


def test_folders_paths_arrays_and_data_sets_have_the_same_logits(
    colors: data.DataSpec, predicted: inference.Predictions
) -> None:
    clf, variables = network()
    folder = Path(str(predicted.paths[0])).parent.parent
    images = np.stack([clf.prepare(data.decode(path)) for path in predicted.paths])
    for argument in (str(folder), folder, [str(folder)], list(predicted.paths), images):
        again = tl.predict(clf, variables, argument)
        np.testing.assert_array_equal(again.logits, predicted.logits)
        assert (again.labels == -1).all()
        assert again.paths == (() if argument is images else predicted.paths)


def test_labels_are_given_or_named_by_the_folder(predicted: inference.Predictions) -> None:
    clf, variables = network()
    paths = list(predicted.paths)
    by_folder = tl.predict(clf, variables, paths, labels="folder")
    np.testing.assert_array_equal(by_folder.labels, predicted.labels)
    explicit = tl.predict(clf, variables, paths[:3], labels=[2, -1, 0])
    assert explicit.labels.tolist() == [2, -1, 0] and explicit.labels.dtype == np.int64


def test_views_average_log_probabilities(predicted: inference.Predictions) -> None:
    clf, variables = network()
    images = np.stack([clf.prepare(data.decode(path)) for path in predicted.paths])
    flip = lambda images01: images01[:, :, ::-1]
    both = tl.predict(clf, variables, images, views=[lambda images01: images01, flip])
    flipped = tl.predict(clf, variables, images[:, :, ::-1])
    parts = [metrics.log_softmax(p.logits) for p in (predicted, flipped)]
    np.testing.assert_allclose(both.logits, np.mean(parts, axis=0), atol=1e-4)


def test_an_empty_array_has_no_predictions() -> None:
    assert tl.predict(*network(), np.zeros((0, 32, 32, 3), np.uint8)).logits.shape == (0, 3)


@pytest.mark.parametrize(
    ("images", "arguments", "message"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), {}, r"got float32\[2, 32, 32, 3\], expected uint8"),
        (
            np.zeros((32, 32, 3), np.uint8),
            {},
            r"got uint8\[32, 32, 3\], expected uint8\[n 32 32 3\]",
        ),
        (np.zeros((2, 32, 32, 3), np.uint8), {"labels": [1]}, r"got int64\[1\] for 2 images"),
        ("nowhere", {}, "'nowhere'"),
    ],
)
def test_wrong_arguments_are_refused(images: Any, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tl.predict(*network(), images, **arguments)


def test_a_folder_that_names_no_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "green").mkdir()
    reporting.save_png(tmp_path / "green" / "0.png", toys.noise(8, 8, 3))
    with pytest.raises(ValueError, match="'green'"):
        tl.predict(*network(), tmp_path, labels="folder")


NUMBERS = ("1", "2", "3")


@pytest.mark.parametrize(
    ("learned", "folders", "message"),
    [
        (NUMBERS, ("0", "1", "2"), "unknown toy class '0'; names of classes are numbers"),
        (("0", "1", "2"), NUMBERS, "unknown toy class '3'; names of classes are numbers"),
        (NUMBERS, ("01", "2"), "unknown toy class '01'; names of classes are numbers"),
        (CLASSES, ("red", "1"), "'1' is not the name of a class, and it is not read as an index"),
        (CLASSES, ("red", "RED"), "'RED' and 'red' both match the class 'red'"),
        (CLASSES, ("0", "3"), "toy has no class 3; indices go from 0 to 2"),
    ],
)
def test_folders_that_do_not_name_the_classes_are_refused(
    tmp_path: Path, learned: tuple[str, ...], folders: tuple[str, ...], message: str
) -> None:
    for name in folders:
        toys.gray_png(tmp_path / name / "1.png", 1)
    clf, _ = toys.classifier("toy_mobilenet", learned)
    with pytest.raises(ValueError, match=message) as caught:
        inference.folder_labels(clf, data.find_images(str(tmp_path))[0])
    assert str(caught.value).startswith("a folder of `labels=folder` does not name a class: ")


def test_folders_that_are_indices_are_remarked(tmp_path: Path) -> None:
    for name in ("0", "2"):
        toys.gray_png(tmp_path / name / "1.png", 1)
    clf, _ = network()
    remarks: list[str] = []
    add = lambda *sentences: remarks.extend(sentences)
    paths = data.find_images(str(tmp_path))[0]
    assert inference.folder_labels(clf, paths, add).tolist() == [0, 2]
    assert remarks == ["the classes '0' and '2' are read as indices: 0 is 'red'"]
    by_name, _ = toys.classifier("toy_mobilenet", ("2", "0"))
    assert inference.folder_labels(by_name, paths, add).tolist() == [1, 0]
    assert len(remarks) == 1


def test_labels_of_another_kind_are_refused(predicted: inference.Predictions) -> None:
    with pytest.raises(ValueError, match="indices or 'folder': got 'name'"):
        tl.predict(*network(), predicted.paths[0], labels="name")  # type: ignore[arg-type]


def test_a_network_without_a_head_is_refused() -> None:
    clf, variables = network()
    spec, weights = clf.spec, Provenance("random", "random")
    bare = Classifier(clf.arch, spec, None, clf.pixels, None, weights)
    with pytest.raises(ValueError, match="head"):
        tl.predict(bare, variables, "nowhere")


# ---- the result and the page of `predict` ----


@pytest.fixture(scope="module")
def folder(predicted: inference.Predictions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; the label of one image is unknown."""
    run = reporting.start("predict", tmp_path_factory.mktemp("predict"), {"seed": 0})
    labels = predicted.labels.copy()
    labels[0] = -1
    result = sets.predictions_result(run, network()[0], predicted._replace(labels=labels), k=2)
    pages.finish(run, result)
    return run.workdir


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_the_accuracy_is_over_labeled_images(
    result: dict, predicted: inference.Predictions
) -> None:
    correct = predicted.logits[1:].argmax(axis=1) == predicted.labels[1:]
    assert (result["n"], result["labelled"]) == (10, 9)
    assert result["top1"] == correct.mean() and result["top5"] == 1.0
    assert result["top1_ci95"] == list(metrics.wilson(int(correct.sum()), 9))
    assert result["top5_ci95"] == list(metrics.wilson(9, 9))


def test_the_predictions_of_labeled_images_can_be_compared(result: dict, folder: Path) -> None:
    (rows,) = paired.read_predictions(folder).values()
    assert len(rows) == 9
    assert sum(row.correct for row in rows.values()) == pytest.approx(9 * result["top1"])


def test_the_top_classes_are_sorted_by_probability(
    result: dict, predicted: inference.Predictions
) -> None:
    for row, p in zip(result["predictions"], predicted.probabilities, strict=True):
        shares = [entry["probability"] for entry in row["topk"]]
        assert len(shares) == 2 and shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1
        assert shares[0] == p.max() and row["topk"][0]["index"] == p.argmax()
    assert "label" not in result["predictions"][0]
    assert result["predictions"][1]["label"]["name"] == folders(predicted)[1]


def test_the_page_shows_the_lowest_probabilities_of_a_label_first(
    result: dict, predicted: inference.Predictions, folder: Path
) -> None:
    of_label = predicted.probabilities[np.arange(10), predicted.labels]
    of_label[0] = 1.0
    assert [row["row"] for row in result["shown"]] == np.argsort(of_label, kind="stable").tolist()
    page = (folder / "report.html").read_text()
    for words in ("Accuracy", "lowest probability of the label first", "label: blue", "broken.jpg"):
        assert words in page, words
    assert "top-5" not in page  # 100 % with five classes or fewer


def test_files_that_cannot_be_read_are_all_reported(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not an image")
    clf, variables = network()
    run = reporting.start("predict", tmp_path / "run", {"seed": 0})
    unreadable = tl.predict(clf, variables, tmp_path / "a.png")
    with pytest.raises(ValueError, match="none of the 1 images can be read .*a.png"):
        sets.predictions_result(run, clf, unreadable)
    with pytest.raises(ValueError, match="none of the 1 files"):
        inference.read_images(clf, str(tmp_path / "a.png"))
