"""A saved classifier examined.

The same bits as `predict`, classes by name, mistakes, and what is said of wrong input.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tl import data, inference, labels, metrics, models, pages, pixels, reporting
from tl.evaluation import robust, sets
from tl.models import heads
from tl.pages import evaluation

SIZE = 32
TEMPERATURE = 2.5


@functools.cache
def network():
    clf, _ = models.load("mobilenetv1_025_keras", weights="random")
    clf = clf.with_pixels(size=SIZE, resize="squash")
    clf = clf.with_head(
        heads.Linear(3), labels.from_names(["pug", "bengal", "siamese"], name="pets")
    )
    variables = jax.tree.map(np.asarray, jax.jit(clf.init)(jax.random.key(0)))
    variables["params"]["head"]["kernel"] = (
        np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
    )
    return clf, variables


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(
        tmp_path_factory.mktemp("model"), *network(), metadata={"temperature": TEMPERATURE}
    )


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the three classes, in another order than the network's.

    Eleven and seven pictures, one of them broken.
    """
    folder = tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(1)
    for name, n in (("Bengal", 11), ("pug", 7)):
        (folder / name).mkdir()
        for i in range(n):
            reporting.save_png(
                folder / name / f"{i}.png", rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            )
    (folder / "pug" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    return folder


def test_evaluate_counts_shows_and_keeps(saved: Path, pets: Path, tmp_path: Path) -> None:
    clf, variables = models.load(str(saved))
    spec = data.get(f"folder:{pets}")
    run = reporting.start("evaluate", tmp_path, {"seed": 0})
    temperature = models.metadata(saved)["temperature"]
    pages.finish(run, sets.evaluation_result(run, clf, variables, spec, temperature))
    result = json.loads((tmp_path / "result.json").read_text())

    pictures = [
        clf.prepare(data.decode(e.path)) for e in spec.examples if "broken" not in str(e.path)
    ]
    logits = inference.predict_logits(clf, variables, np.stack(pictures))
    truth = np.array([1] * 11 + [0] * 7)
    for name, value in metrics.summarize(logits, truth).items():
        assert result[name] == value, name
    calm = metrics.summarize(logits / np.float32(TEMPERATURE), truth)
    assert (
        (result["nll_calibrated"], result["ece_calibrated"])
        == (calm["nll"], calm["ece"])
        != (result["nll"],)
    )
    assert result["temperature"] == TEMPERATURE and result["top1"] == calm["top1"]
    assert result["classes"] == ["pug", "bengal", "siamese"]
    matrix = np.array(result["confusion"])
    assert matrix.sum(axis=1).tolist() == [7, 11, 0]
    assert sum(row["count"] for row in result["most_confused"]) == 18 - np.trace(matrix)
    assert [row["n"] for row in result["per_class"]] == [7, 11, 0]
    assert sum(row["n"] for row in result["reliability"]) == 18
    assert result["majority"] == 11 / 18
    (skip,) = result["skipped"]
    assert skip["path"].endswith("broken.jpg")
    mistakes = result["mistakes"]
    assert len(mistakes) == min(12, 18 - np.trace(matrix)) > 0
    assert all(
        Path(row["path"]).parent.name.lower() == row["true"] != row["topk"][0]["name"]
        for row in mistakes
    )
    page = (tmp_path / "report.html").read_text()
    assert (tmp_path / "figures" / "worst_mistakes.png").exists()
    assert all(
        word in page
        for word in ("Per-class accuracy", "at temperature 2.50", "Hardest test images")
    )


@pytest.mark.optimized
def test_logits_are_the_same_bits_wherever_the_artefact_is_asked(saved: Path, pets: Path) -> None:
    """In `evaluate`, in `predict`, and by a user who calls what `load` returned on a batch of the
    same size.
    """
    clf, variables = models.load(str(saved))
    spec = data.remap_labels(data.get(f"folder:{pets}"), inference.class_table(clf))
    said = inference.predict(clf, jax.device_put(variables), spec)
    pictures = inference.read_images(clf, str(pets))
    assert [str(path) for path in pictures.paths] == [str(path) for path in said.paths]
    np.testing.assert_array_equal(
        said.logits, inference.predict_logits(clf, variables, pictures.images)
    )
    by_hand = jax.jit(lambda v, x: clf.apply(v, x).logits)(
        variables, pixels.to_images01(pictures.images[:16])
    )
    np.testing.assert_array_equal(said.logits[:16], by_hand)
    original = jax.jit(network()[0].logits)(network()[1], pixels.to_images01(pictures.images[:16]))
    np.testing.assert_array_equal(said.logits[:16], original)


def test_a_class_that_nobody_learned_is_told(pets: Path) -> None:
    clf, _ = network()
    spec = dataclasses.replace(data.get(f"folder:{pets}"), classes=("bengal", "pugg"))
    with pytest.raises(
        ValueError,
        match="a class that was not learned: unknown pets class 'pugg'; nearest: 'pug'",
    ):
        data.remap_labels(spec, inference.class_table(clf))
    imagenet = labels.imagenet()
    spec = dataclasses.replace(spec, classes=("tabby", "any cat"))
    with pytest.raises(
        ValueError,
        match="the class 'any cat' of folder:.* matches 5 learned classes, expected one",
    ):
        data.remap_labels(spec, imagenet)


def test_the_part_of_a_set_that_is_asked(pets: Path) -> None:
    spec = data.get(f"folder:{pets}")
    assert sets.select_part(spec, "") is sets.select_part(spec, "all") is spec
    parts = tuple(
        dataclasses.replace(e, part="train" if i else "test") for i, e in enumerate(spec.examples)
    )
    official = dataclasses.replace(spec, examples=parts)
    assert (
        sets.select_part(official, "").examples == parts[:1]
        and sets.select_part(official, "train").examples == parts[1:]
    )
    with pytest.raises(
        ValueError, match="has no part 'validation': it has test, train; use `part=all`"
    ):
        sets.select_part(official, "validation")


def test_a_set_of_broken_pictures_is_told(saved: Path, tmp_path: Path) -> None:
    clf, variables = models.load(str(saved))
    for name in ("pug", "bengal"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    run = reporting.start("evaluate", tmp_path / "run", {"seed": 0})
    with pytest.raises(
        ValueError, match="none of the 2 images of folder:.* can be read; run doctor on it"
    ):
        sets.evaluation_result(run, clf, variables, data.get(f"folder:{tmp_path / 'set'}"), 1.0)


def test_accuracy_under_attack(pets: Path) -> None:
    """Fewer stand an attack than are named rightly, and more queries are asked only of who has any."""
    clf, variables = network()
    spec = data.remap_labels(data.get(f"folder:{pets}"), inference.class_table(clf))
    row = robust.robust(clf, variables, spec, eps=8 / 255, method="fgsm")
    said = inference.predict(clf, variables, spec)
    assert row["n"] == 18 and row["clean"] == (said.logits.argmax(axis=1) == said.labels).mean()
    assert 0 <= row["top1"] < row["clean"] and row["top1_ci95"] == list(
        metrics.wilson(round(18 * row["top1"]), 18)
    )
    (line,) = evaluation.robust_lines({"now": row})
    assert (
        line.startswith(f"now: {reporting.percent(row['top1'])} ")
        and "within 8/255 under fgsm" in line
    )
    with pytest.raises(
        ValueError,
        match=r"`robust_eps` is a share of the pixel range: got 2, expected a number in \[0, 1\]",
    ):
        robust.robust(clf, variables, spec, eps=2.0)
    with pytest.raises(ValueError, match="`robust_queries` has no effect on `robust_attack=fgsm`"):
        robust.robust(clf, variables, spec, eps=0.01, method="fgsm", queries=9)
