"""Published protocols: the division of a data set, the measure, and the published values."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import toys

from tl import data, pages, reporting
from tl.data import Parts
from tl.evaluation import protocols
from tl.evaluation.protocols import PROTOCOLS, PUBLISHED, divide
from tl.inference import Predictions
from tl.training import schedules

pytestmark = pytest.mark.usefixtures("shared_cache")


def with_parts(spec: data.DataSpec, test: int, validation: int = 0) -> data.DataSpec:
    """A data set whose last images of each class are official test and validation images."""
    seen: dict[int, int] = {}
    examples = []
    for example in spec.examples:
        number = seen[example.label] = seen.get(example.label, 0) + 1
        part = "test" if number <= test else "validation" if number <= test + validation else ""
        examples.append(dataclasses.replace(example, part=part or "train"))
    return dataclasses.replace(spec, examples=tuple(examples), name="tfds:oxford_iiit_pet/4.0.0@x")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> data.DataSpec:
    return toys.color_folder(tmp_path_factory.mktemp("protocols"), 20, side=16)


def test_official_parts_are_used_in_their_order(spec: data.DataSpec) -> None:
    official = with_parts(spec, 5, 3)
    parts = divide(official, None)
    assert [len(part.examples) for part in parts] == [24, 6, 10]
    few = divide(official, (8, 4))
    assert few.train.examples == parts.train.examples[:8]
    assert few.validation.examples == parts.validation.examples[:4]
    assert few.test.examples == parts.test.examples  # the whole test part
    held_out = divide(with_parts(spec, 5), None)  # Pets has no validation part
    assert [len(part.examples) for part in held_out] == [24, 6, 10]
    assert protocols.name_of(official) == "oxford_iiit_pet"


@pytest.mark.parametrize(
    ("parts", "limit", "message"),
    [(None, None, "official training and test parts"), (5, (800, 200), "needs 800 train images")],
)
def test_sets_that_do_not_fit_are_refused(
    spec: data.DataSpec, parts: int | None, limit: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        divide(with_parts(spec, parts) if parts else spec, limit)


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if "vtab" not in name])
def test_a_protocol_is_a_result_with_a_page(name: str, spec: data.DataSpec, tmp_path: Path) -> None:
    clf, variables = toys.classifier("toy_vgg", 3, size=16)
    run = reporting.start("protocol", str(tmp_path / "run"), {})
    result = protocols.evaluate(run, clf, variables, with_parts(spec, 5), name, 0)
    pages.finish(run, result)
    saved = json.loads((run.workdir / "result.json").read_text())
    assert pages.PAGES["protocol"](saved, run.workdir).sections
    assert result["sizes"] == {"train": 24, "validation": 6, "test": 10}
    for row in result["rows"]:
        assert 0 <= row["value"] <= 1 and row["seeds"] == PROTOCOLS[name].seeds
    if name == "fewshot":
        assert [row["shots"] for row in result["rows"]] == [1, 5, 10]
    else:
        assert result["measure"] == "mean of the accuracies of the classes"
        assert any(np.isclose(result["rows"][0]["penalty"], protocols.PENALTIES))


def test_vtab_trains_for_its_steps(spec: data.DataSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(protocols.VTAB, steps=4, batch_size=8)
    monkeypatch.setattr(protocols, "VTAB", recipe)
    clf, variables = toys.classifier("toy_vgg", 2, size=16)
    parts: Parts = divide(with_parts(spec, 5), (16, 4))
    (outcome,) = PROTOCOLS["vtab1k"].run(clf, variables, parts, 0)
    assert outcome.facts["steps"] >= 4 and outcome.logits.shape == (10, 2)


def test_the_sweep_of_vtab_trains_the_best_recipe_again_on_both_parts(
    spec: data.DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf, variables = toys.classifier("toy_vgg", 2, size=16)
    parts, calls = divide(with_parts(spec, 5), (16, 4)), []
    assert {(r.lr, r.steps, r.batch_size) for r in protocols.SWEEP} == {
        (lr, steps, 512) for lr in (0.1, 0.01) for steps in (2500, 10_000)
    }

    def fine_tuned(clf, variables, images, queries, recipe, seed):
        calls.append((recipe, len(images.examples), len(queries.examples)))
        if recipe.lr == 0.1:
            raise ValueError("step 3: got loss nan")
        labels = np.array([example.label for example in queries.examples])
        correct = np.arange(len(labels)) < (4 if recipe.steps == 2500 else 3)
        logits = np.eye(2)[np.where(correct, labels, 1 - labels)]
        return Predictions(logits, labels, (), ()), recipe.steps

    monkeypatch.setattr(protocols, "_fine_tuned", fine_tuned)
    (outcome,) = PROTOCOLS["vtab1k_sweep"].run(clf, variables, parts, 0)
    assert outcome.facts == {"lr": 0.01, "steps": 2500, "validation": 1.0}
    assert [sizes for _, *sizes in calls] == [[16, 4]] * 4 + [[20, 10]]
    assert len(outcome.labels) == 10
    monkeypatch.setattr(protocols, "SWEEP", protocols.SWEEP[:1])
    with pytest.raises(ValueError, match="got loss nan"):
        PROTOCOLS["vtab1k_sweep"].run(clf, variables, parts, 0)


def test_the_schedule_of_vtab() -> None:
    rate = schedules.SCHEDULES["vtab"](0.01, 1000)
    at = [float(rate(step)) for step in (0, 40, 80, 300, 301, 601, 901, 1000)]
    assert at == pytest.approx([0, 0.005, 0.01, 0.01, 1e-3, 1e-4, 1e-5, 0])


def test_published_values_are_shares_of_known_protocols() -> None:
    assert set(PUBLISHED) <= set(PROTOCOLS)
    values = [v for of in PUBLISHED.values() for sets in of.values() for v in sets.values()]
    assert values and all(0.3 < value < 1 for value in values)
    assert len(protocols.PENALTIES) == 45


def test_an_unknown_protocol_is_refused(spec: data.DataSpec, tmp_path: Path) -> None:
    clf, variables = toys.classifier("toy_vgg", 2, size=16)
    run = reporting.start("protocol", str(tmp_path / "run"), {})
    with pytest.raises(ValueError, match="unknown `protocol`: got 'kornblit'.*nearest: .*kornb"):
        protocols.evaluate(run, clf, variables, spec, "kornblit", 0)
