"""SIGTERM at any moment of a run: a checkpoint where there is something to save, and the same bits.

The moments are chosen exactly, in this process; `torture` and `test_hosts` send real signals.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import toys
from tests.test_fit import network, run
from tl import data, hosts, paths
from tl.hosts.state import STATE
from tl.inference import features
from tl.training import checkpoints, loop
from tl.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("shared_cache")

RECIPE = Recipe(tune="head", epochs=3, batch_size=4, workers=0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> data.Parts:
    spec = toys.color_folder(tmp_path_factory.mktemp("colors") / "set", 8, side=24)
    return data.divide(spec, validation_fraction=0.25, seed=0)


@pytest.fixture
def sigterm() -> Iterator[Callable[[], None]]:
    """A function with the effect of SIGTERM; it is undone afterwards."""
    yield lambda: setattr(STATE, "signalled", time.monotonic())
    STATE.signalled = None


def after_rows(count: int, effect: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    """A `log` that has an effect after some rows."""
    rows = itertools.count(1)
    return lambda row: effect() if next(rows) == count else None


def same(a: Any, b: Any) -> bool:
    return paths.digest(a.variables) == paths.digest(b.variables) and a.history == b.history


@pytest.mark.parametrize("row", [pytest.param(2, marks=pytest.mark.full), 4])
def test_between_two_steps_the_steps_are_saved(
    row: int, parts: data.Parts, tmp_path: Path, sigterm: Callable[[], None]
) -> None:
    whole = run(parts, RECIPE)
    with pytest.raises(hosts.Preempted):
        run(parts, RECIPE, folder=tmp_path, log=after_rows(row, sigterm))
    saved = max(int(path.name[5:]) for path in (tmp_path / "phase0").glob("step_*"))
    assert saved >= row * 2 // 3  # of three rows one is of an epoch
    STATE.signalled = None
    assert same(run(parts, RECIPE, folder=tmp_path), whole)


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_validation_is_repeated(
    epoch: int,
    parts: data.Parts,
    tmp_path: Path,
    sigterm: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, validate, calls = run(parts, RECIPE), loop.validate, itertools.count(1)

    def interrupted(*arguments: Any) -> dict[str, float]:
        if next(calls) == epoch:
            sigterm()
        return validate(*arguments)

    monkeypatch.setattr(loop, "validate", interrupted)
    with pytest.raises(hosts.Preempted):
        run(parts, RECIPE, folder=tmp_path)
    STATE.signalled = None
    assert same(run(parts, RECIPE, folder=tmp_path), whole)
    # The checkpoint after the validation has its metrics, in place of the one before it.
    with_metrics = checkpoints.open(tmp_path / "phase0")
    assert with_metrics.best() is not None
    with_metrics.close()
    assert same(run(parts, RECIPE, folder=tmp_path), whole)


def test_a_feature_bank_keeps_what_was_computed(
    parts: data.Parts, tmp_path: Path, sigterm: Callable[[], None]
) -> None:
    sources = [example.path for example in parts.train.examples]

    def progress(batches: Any, total: int) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if number == 1:
                sigterm()
            yield batch

    with pytest.raises(hosts.Preempted):
        features.extract(*network(), sources, cache=tmp_path, batch_size=2, progress=progress)
    STATE.signalled = None
    again = features.extract(*network(), sources, cache=tmp_path, batch_size=2)
    assert 2 <= again.reused < len(sources) and again.valid.all()
    fresh = features.extract(*network(), sources, cache=tmp_path / "fresh", batch_size=2)
    np.testing.assert_array_equal(again.values, fresh.values)


def test_a_checkpoint_is_saved_when_its_minutes_are_over(
    parts: data.Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    save = checkpoints.Checkpoints.save
    monkeypatch.setattr(
        checkpoints.Checkpoints,
        "save",
        lambda self, step, *rest, **more: steps.append(step) or save(self, step, *rest, **more),
    )
    recipe = dataclasses.replace(RECIPE, batch_size=2)
    run(parts, dataclasses.replace(recipe, save_minutes=0), folder=tmp_path / "a")
    epochs = set(steps)
    steps.clear()
    run(parts, dataclasses.replace(recipe, save_minutes=1e-9), folder=tmp_path / "b")
    assert len(epochs) == 3 and set(steps) > epochs


def test_nothing_is_deferred_after_the_work(parts: data.Parts) -> None:
    run(parts, dataclasses.replace(RECIPE, epochs=1))
    assert STATE.deferred == 0
