"""The public names of `tl` as a first session uses them: load, replace_head, fit, predict, save."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

import tl
from tests import toys
from tests.toys import toy_zoo  # noqa: F401 (a fixture)
from tl import models
from tl.models import heads
from tl.paths import digest


def test_every_public_name_exists() -> None:
    assert sorted(tl.__all__) == sorted(set(tl.__all__))
    assert all(hasattr(tl, name) for name in tl.__all__)


@pytest.mark.usefixtures("toy_zoo")
def test_a_first_session_trains_evaluates_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    parts = tl.data.divide(toys.color_folder(tmp_path / "images"), seed=0)
    clf, variables = tl.load("toy_vgg_bn", weights="random")
    clf = clf.with_pixels(size=32, resize="squash")
    clf, variables = clf.replace_head(variables, parts.train.classes, key=jax.random.key(0))
    result = tl.fit(clf, variables, parts.train, parts.validation, tl.Recipe(tune="probe"))
    predicted = tl.predict(clf, result.variables, parts.test)
    summary = tl.metrics.summarize(predicted.logits, predicted.labels)
    folder = tl.save(tmp_path / "model", clf, result.variables)
    assert summary["top1"] == 1.0
    again = tl.predict(*tl.load(str(folder)), parts.test)
    np.testing.assert_array_equal(again.logits, predicted.logits)


@pytest.mark.usefixtures("toy_zoo")
def test_fit_needs_no_validation_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last epoch is returned then, by default of the head alone."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    clf, variables = toys.classifier("toy_vgg_bn", ("red", "blue"), resize="squash")
    train_set = toys.color_folder(tmp_path / "images", n=4)
    result = tl.fit(clf, variables, train_set, recipe=tl.Recipe(epochs=2, batch_size=8, workers=0))
    assert result.best == result.history[-1] and "val_nll" not in result.history[-1]
    assert result.trained == {"head/kernel", "head/bias"}


# ---- replace_head --------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "mlp", "concat", "cosine", "flat"])
def test_replace_head_keeps_the_backbone_and_fits_the_classes(head: str) -> None:
    old, variables = toys.classifier("toy_vgg", 5)
    names = ["a", "b", "c"]
    clf, changed = old.replace_head(variables, names, key=jax.random.key(0), head=head)
    assert clf.classes is not None and clf.classes.display_names == tuple(names)
    assert heads.kind(clf.head) == head  # type: ignore[arg-type]
    backbone = lambda tree: {"backbone": tree["params"]["backbone"]}
    assert digest(backbone(changed)) == digest(backbone(variables))
    logits = jax.jit(clf.logits)(changed, jax.numpy.full((2, 32, 32, 3), 0.5))
    assert logits.shape == (2, 3) and np.isfinite(logits).all()


def test_replace_head_works_on_a_network_without_a_head() -> None:
    clf, variables = toys.classifier("toy_vgg", 5)
    bare = models.Classifier(clf.arch, clf.spec, None, clf.pixels, None, clf.weights)
    params = {"backbone": variables["params"]["backbone"]}
    new, changed = bare.replace_head({**variables, "params": params}, "ab", key=jax.random.key(0))
    assert set(changed["params"]) == {"backbone", "head"}
    assert len(new.classes or ()) == 2


def test_replace_head_takes_a_class_table_and_finds_known_groups() -> None:
    clf, variables = toys.classifier("toy_vgg", 5)
    pets, _ = clf.replace_head(variables, ["bengal", "pug"], key=jax.random.key(0))
    assert pets.classes is not None and pets.classes.find("any cat") == (0,)
    same, _ = clf.replace_head(variables, pets.classes, key=jax.random.key(0))
    assert same.classes is pets.classes


def test_the_key_decides_the_new_parameters() -> None:
    clf, variables = toys.classifier("toy_vgg", 5)
    replace = lambda seed: clf.replace_head(variables, "ab", key=jax.random.key(seed), head="mlp")
    one, again, other = (digest(replace(seed)[1]["params"]) for seed in (0, 0, 1))
    assert one == again != other


def test_an_unknown_head_is_an_error_with_the_nearest() -> None:
    clf, variables = toys.classifier("toy_vgg", 5)
    with pytest.raises(ValueError, match="unknown head 'liner'; nearest: 'linear'"):
        clf.replace_head(variables, "ab", key=jax.random.key(0), head="liner")
