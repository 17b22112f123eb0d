"""Cached inputs: their values, reuse by the next seed, the memory limit, identity of images."""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
import tracemalloc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tl import data, models, pixels, reporting
from tl.data import DataSpec
from tl.data.augment import make_augment
from tl.inference import outputs
from tl.training import fit, inputs
from tl.training.loop import PhaseResult
from tl.training.phase import _inputs
from tl.training.program import FitContext
from tl.training.recipe import Recipe

SIZE, BATCH = 16, 4
STAGE1 = 8 * 8 * 4 * 4  # bytes of one output of stage1, the largest
LAST = Recipe(tune="last:1", augment="flip", epochs=1, batch_size=BATCH, workers=0)


@functools.cache
def network() -> tuple[models.Classifier, Any]:
    clf, variables = toys.classifier("toy_vgg_bn", ("red", "blue"), size=SIZE, resize="squash")
    return clf, clf.reset_head(variables, key=jax.random.key(0))


@pytest.fixture
def colors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataSpec:
    """24 images that no other test has seen, and an empty feature bank."""
    monkeypatch.setenv("TL_CACHE", str(tmp_path / "cache"))
    spec = toys.color_folder(tmp_path / "colors", side=24)
    for i, example in enumerate(spec.examples):
        image = toys.smooth(24, 24, seed=hash((tmp_path.name, i)) % 2**32)
        reporting.save_png(Path(str(example.path)), image)
    return spec


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The images of each batch that was computed."""
    computed: list[list[str]] = []
    whole = data.load

    def load(paths: Sequence[Any], *args: Any, **more: Any) -> Iterator[data.Batch]:
        for batch in whole(paths, *args, **more):
            computed.append([str(paths[i]) for i in batch.index if i >= 0])
            yield batch

    monkeypatch.setattr(data, "load", load)
    return computed


def split(spec: DataSpec, seed: int) -> data.Parts:
    return data.divide(spec, validation_fraction=0.25, seed=seed)


def context(parts: data.Parts, recipe: Recipe = LAST) -> FitContext:
    silent = lambda line: None
    return FitContext(network()[0], parts.train, parts.validation, recipe, 0, None, silent, silent)


def cached(
    spec: DataSpec, seed: int, endpoint: str = "stage2", recipe: Recipe = LAST
) -> tuple[Any, Any]:
    """The inputs of training and validation for one seed."""
    train, validation, _ = _inputs(context(split(spec, seed), recipe), endpoint, network()[1])
    return train, validation


def names(*sets: DataSpec) -> set[str]:
    return {str(example.path) for spec in sets for example in spec.examples}


def held() -> int:
    """Bytes of all arrays that the cache has allocated and that are still in use."""
    gc.collect()
    domain = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    traces = tracemalloc.take_snapshot().filter_traces([domain]).traces
    files = ("training/inputs.py", "inference/outputs.py", "inference/features.py")
    return sum(trace.size for trace in traces if trace.traceback[-1].filename.endswith(files))


# ---- reuse ----


def test_the_next_seed_computes_only_views_that_are_new(
    colors: DataSpec, batches: list[list[str]]
) -> None:
    for number in range(5):
        batches.clear()
        assert isinstance(cached(colors, number)[0], inputs.CachedInputs)
        earlier = [split(colors, seed) for seed in range(number)]
        both = names(*(parts.train for parts in earlier))
        first = both | names(*(parts.validation for parts in earlier))
        train, validation = (names(part) for part in split(colors, number)[:2])
        groups = [train - first, train & first - both, validation - first]
        assert sum(len(batch) for batch in batches) == sum(len(group) for group in groups)
        assert {name for batch in batches for name in batch} == set().union(*groups)
        assert len(batches) <= sum(math.ceil(len(group) / BATCH) for group in groups)
    assert len(batches) < 3


def test_phases_of_the_next_seed_reuse_those_of_the_first(
    colors: DataSpec, batches: list[list[str]]
) -> None:
    """The stages before an endpoint identify its outputs; those that trained after it do not."""
    _, variables = network()
    trained = {**variables["params"]["backbone"]}
    trained["stage3"] = jax.tree.map(lambda leaf: leaf + 1, trained["stage3"])
    params = {**variables["params"], "backbone": trained}
    parts = context(split(colors, 0))
    for number in range(2):
        batches.clear()
        _inputs(parts, "features", variables)
        _inputs(parts, "stage2", variables)
        # After the phase in which stage3 trained.
        _inputs(parts, "stage1", {**variables, "params": params} if number else variables)
        assert bool(batches) == (number == 0)


def test_reused_outputs_have_the_same_bits(colors: DataSpec) -> None:
    outputs._MEMORY.reduce_to(0)
    alone = cached(colors, 1)
    outputs._MEMORY.reduce_to(0)
    cached(colors, 0)
    after = cached(colors, 1)
    for one, other in zip(alone, after, strict=True):
        for a, b in zip(one.evaluation(BATCH), other.evaluation(BATCH), strict=True):
            np.testing.assert_array_equal(a.examples.inputs, b.examples.inputs)


def test_outputs_are_those_of_each_view(colors: DataSpec) -> None:
    clf, variables = network()
    train, _ = cached(colors, 0)
    # Part of an array would keep all of it in memory, which `held` does not see in JAX's arrays.
    assert all(array.base is None for views in train.outputs for array in views)
    rows = np.arange(len(split(colors, 0).train.examples))
    images = np.stack(
        [clf.prepare(data.decode(example.path)) for example in split(colors, 0).train.examples]
    )
    forward = jax.jit(lambda variables, x: clf.apply(variables, x).endpoints["stage2"])
    for number, view in enumerate(make_augment("flip", size=SIZE).views or ()):
        expected = np.asarray(forward(variables, view(jnp.asarray(pixels.to_images01(images)))))
        batch = train.select(rows, np.full(len(rows), number))
        np.testing.assert_allclose(batch.examples.inputs, expected, atol=1e-5 * expected.max())
        assert batch.examples.valid.all()


def test_an_image_that_changes_under_its_name_is_computed_again(colors: DataSpec) -> None:
    parts, recipe = split(colors, 0), dataclasses.replace(LAST, augment="none")
    before, _, _ = _inputs(context(parts, recipe), "stage2", network()[1])
    path = Path(str(parts.train.examples[2].path))
    reporting.save_png(path, toys.smooth(24, 24, seed=99))
    after, _, _ = _inputs(context(parts, recipe), "stage2", network()[1])
    rows, views = np.arange(4), np.zeros(4, np.int64)
    old, new = (inputs.select(rows, views).examples.inputs for inputs in (before, after))
    assert [np.array_equal(*pair) for pair in zip(old, new, strict=True)] == [1, 1, 0, 1]


def test_an_unreadable_image_is_skipped_in_every_seed(colors: DataSpec) -> None:
    parts = split(colors, 0)
    broken = Path(str(parts.train.examples[3].path))
    broken.write_bytes(b"no image")
    for _ in range(2):
        train, _, _ = _inputs(context(parts), "stage2", network()[1])
        assert np.flatnonzero(~train.valid).tolist() == [3]
        assert [skip.path for skip in train.skipped] == [str(broken)]


# ---- memory ----


@pytest.mark.parametrize(
    ("augment", "endpoints"), [("none", ["stage1"]), ("flip", ["stage2", "stage1"])]
)
def test_all_seeds_and_phases_together_stay_within_the_limit(
    colors: DataSpec, augment: str, endpoints: list[str]
) -> None:
    views = 1 if augment == "none" else 2
    train, validation, _ = split(colors, 0)
    limit = views * (len(train.examples) + len(validation.examples)) * STAGE1
    recipe = dataclasses.replace(LAST, augment=augment, bank_gib=limit / 2**30)
    for endpoint in endpoints:  # compiles, which tracing makes slow
        cached(colors, 0, endpoint, recipe)
    outputs._MEMORY.reduce_to(0)
    tracemalloc.start()
    try:
        for seed in range(2):
            for endpoint in endpoints:
                inputs_of_phase = cached(colors, seed, endpoint, recipe)
                assert all(isinstance(part, inputs.CachedInputs) for part in inputs_of_phase)
                assert 0 < held() <= limit + 1024  # labels and indices
                del inputs_of_phase
    finally:
        tracemalloc.stop()


def test_a_phase_releases_its_inputs_before_the_next(
    colors: DataSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[weakref.ref[Any]] = []

    class Prepared:
        groups, source, train_norms, standardized = [], "", frozenset(), False
        step = SimpleNamespace(memory=0)

        def host(self, state: Any) -> tuple[Any, Any]:
            return network()[1]["params"], network()[1]["batch_stats"]

    def prepare(*_: Any) -> Prepared:
        assert all(phase() is None for phase in prepared)
        prepared.append(weakref.ref(phase := Prepared()))
        return phase

    state = SimpleNamespace(opt_state=None)
    monkeypatch.setattr(fit, "prepare", prepare)
    monkeypatch.setattr(fit, "train_phase", lambda *_: PhaseResult(state, [], None))  # type: ignore[arg-type]
    fit.fit(*network(), colors, recipe=dataclasses.replace(LAST, tune="gradual"))
    assert len(prepared) == 4


def test_outputs_above_the_limit_are_not_cached(colors: DataSpec) -> None:
    for endpoint in ("features", "stage2"):
        for recipe in (LAST, dataclasses.replace(LAST, augment="none")):
            none = dataclasses.replace(recipe, bank_gib=0.0)
            train, validation = cached(colors, 0, endpoint, none)
            assert isinstance(train, inputs.ImageInputs)
            assert isinstance(validation, inputs.ImageInputs)
