"""Updates of low rank: merging, the share that trains, training, resuming."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests import toys
from tl import data, paths
from tl.paths import flatten
from tl.training import fit, low_rank, rules
from tl.training.program import make_forward
from tl.training.recipe import Recipe
from tl.types import Mode, Variables

pytestmark = pytest.mark.usefixtures("shared_cache")

SIZE = 16
RECIPE = Recipe(tune="lora:2", epochs=2, batch_size=8, lr=1e-2, backbone_lr=1.0, workers=0)


def network(arch: str = "toy_mobilenet") -> tuple[Any, Variables]:
    clf, variables = toys.classifier(arch, ("red", "blue"), size=SIZE, resize="squash")
    return clf, clf.reset_head(variables, key=jax.random.key(0))


def run(parts: data.Parts, recipe: Recipe, **more: Any) -> fit.FitResult:
    return fit.fit(*network(), parts.train, parts.validation, recipe, seed=0, **more)


def extended(rank: int, seed: int = 0) -> dict[str, Any]:
    """Parameters with updates of which no factor is 0."""
    params = low_rank.extend(network()[1]["params"], rank, seed)
    rng = np.random.default_rng(seed)
    draw = lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32)
    return {**params, "lora": jax.tree.map(draw, params["lora"])}


def test_a_merged_network_equals_the_sum_of_both_paths() -> None:
    """A 1x1 convolution of x with W + down up is x W + (x down) up."""
    params = extended(2)
    merged = flatten(low_rank.merge(params))
    names = {low_rank.changed(f"lora/{name}") for name in flatten(params["lora"])}
    assert len(names) > 3
    for name, leaf in flatten(network()[1]["params"]).items():
        if name not in names:
            assert np.array_equal(merged[name], leaf), name
            continue
        assert leaf.shape[:-2] in ((), (1, 1)), name
        down, up = (flatten(params["lora"])[f"{name}/{factor}"] for factor in ("down", "up"))
        x = np.random.default_rng(1).standard_normal((5, leaf.shape[-2])).astype(np.float32)
        kernel = lambda leaf: leaf.reshape(leaf.shape[-2:])
        both = x @ kernel(leaf) + (x @ down) @ up
        np.testing.assert_allclose(x @ kernel(merged[name]), both, rtol=1e-5, atol=1e-5)
    assert set(merged) == set(flatten(network()[1]["params"]))


def test_the_forward_pass_of_a_step_merges_as_the_host_does() -> None:
    clf, variables = network()
    forward = jax.jit(make_forward(clf, "", Mode.EVAL, frozenset()))
    images = np.random.default_rng(0).random((3, SIZE, SIZE, 3)).astype(np.float32)
    params = extended(2)
    params["head"] = {"kernel": np.ones((16, 2), np.float32), "bias": np.zeros(2, np.float32)}
    logits = [
        np.asarray(forward(tree, variables["batch_stats"], images)[0])
        for tree in (
            params,
            low_rank.merge(params),
            {**variables["params"], "head": params["head"]},
        )
    ]
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    assert np.abs(logits[0] - logits[2]).max() > 1e-2


def test_an_update_starts_without_an_effect_and_depends_on_the_seed() -> None:
    params = network()[1]["params"]
    one, other = (low_rank.extend(params, 2, seed) for seed in (0, 1))
    assert paths.digest(low_rank.merge(one)) == paths.digest(params)
    assert paths.digest(one) != paths.digest(other)
    assert low_rank.extend(params, 0) == params


def test_less_than_a_twentieth_of_efficientnet_lite0_trains() -> None:
    clf, variables = toys.classifier("efficientnet_lite0", 37)
    params = low_rank.extend(variables["params"], 4)
    (phase,) = rules.phases("lora:4", clf.spec.endpoints)
    partition = paths.partition(params, phase.rules)
    leaves = flatten(params)
    sizes = {name: leaves[name].size for name in partition.trained}
    total = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert 32 * 2 + 2 == len(sizes)
    assert 0.02 * total < sum(sizes.values()) < 0.05 * total


def test_only_kernels_with_an_update_and_the_head_change(parts: data.Parts) -> None:
    before, result = network()[1], run(parts, RECIPE)
    after = result.variables
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for name, leaf in flatten(before["params"]).items():
        new = flatten(after["params"])[name]
        assert np.array_equal(new, leaf) == (name not in result.trained), name
        if name in result.trained and name.startswith("backbone/"):
            change = (new - leaf).reshape(leaf.shape[-2:])
            values = np.linalg.svd(change, compute_uv=False)
            assert values[1] > 0 and values[2:].max(initial=0) < 1e-5 * values[0], name
    assert paths.digest(after["batch_stats"]) == paths.digest(before["batch_stats"])
    assert fit.frozen_digest(after, result) == fit.frozen_digest(before, result)
    factors = flatten(low_rank.extend(before["params"], 2)["lora"])
    expected = sum(leaf.size for leaf in factors.values()) + 16 * 2 + 2
    assert result.trainable_params == expected == sum(g["params"] for g in result.groups[:-1])
    assert len(result.trained) == len(factors) // 2 + 2


def test_rank_0_is_a_head_on_a_frozen_backbone(parts: data.Parts) -> None:
    results = [run(parts, dataclasses.replace(RECIPE, tune=tune)) for tune in ("lora:0", "head")]
    assert len({paths.digest(result.variables) for result in results}) == 1
    assert results[0].source == "cached features"


def test_an_interrupted_run_ends_in_the_same_bits(parts: data.Parts, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, save_every=1, ema=0.5, augment="flip")
    whole, steps = run(parts, recipe), []

    def interrupt(row: dict[str, Any]) -> None:
        steps.append(row)
        if len(steps) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(parts, recipe, folder=tmp_path / "checkpoints", log=interrupt)
    rows: list[dict[str, Any]] = []
    resumed = run(parts, recipe, folder=tmp_path / "checkpoints", log=rows.append)
    assert rows[0]["step"] > 0
    assert paths.digest(resumed.variables) == paths.digest(whole.variables)


@pytest.mark.parametrize(
    ("arch", "tune", "message"),
    [
        ("toy_vgg", "lora:2", "`tune=lora:2` needs kernels of 1x1 .* the backbone has none"),
        ("toy_mobilenet", "lora:99", "with more than 99 inputs and outputs"),
        ("toy_mobilenet", "lora:-1", "`tune=lora:-1` has no rank: got '-1', expected a number of"),
        ("toy_mobilenet", "lora:two", "got 'two', expected a number of at least 0, such as lora:4"),
        ("toy_mobilenet", "lora", "got '', expected a number"),
    ],
)
def test_a_rank_that_does_not_fit_is_an_error(arch: str, tune: str, message: str) -> None:
    clf, variables = network(arch)
    with pytest.raises(ValueError, match=message):
        fit.check_recipe(clf, variables["params"], Recipe(tune=tune))
