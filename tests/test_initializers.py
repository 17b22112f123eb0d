"""Initializers: the distribution of the parameters, and training from scratch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests import toys
from tl import data
from tl.paths import digest, flatten
from tl.training import fit, initializers
from tl.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("shared_cache")

# Name -> the standard deviation for 3 x 3 kernels of 64 inputs and 128 outputs.
TABLE = {
    "he": (2 / (9 * 64)) ** 0.5,
    "glorot": (2 / (9 * 64 + 9 * 128)) ** 0.5,
    "lecun": (1 / (9 * 64)) ** 0.5,
    "normal": 0.01,
}


def variables() -> dict[str, Any]:
    norm = {"scale": np.full(128, 3.0, np.float32), "bias": np.full(128, 3.0, np.float32)}
    kernel = np.zeros((3, 3, 64, 128), np.float32)
    head = {"kernel": np.ones((128, 2), np.float32), "bias": np.ones(2, np.float32)}
    stats = {"mean": np.full(128, 3.0, np.float32), "var": np.full(128, 3.0, np.float32)}
    params = {"backbone": {"conv": {"kernel": kernel}, "norm": norm}, "head": head}
    return {"params": params, "batch_stats": {"backbone": {"norm": stats}}}


def test_every_initializer_has_a_standard_deviation() -> None:
    assert TABLE.keys() == initializers.INITIALIZERS.keys()


@pytest.mark.parametrize("name", TABLE)
def test_kernels_are_normal_and_all_other_leaves_constant(name: str) -> None:
    before = variables()
    after = flatten(initializers.redraw(before, name, 1))
    kernel = after["params/backbone/conv/kernel"]
    assert kernel.dtype == np.float32 and abs(kernel.mean()) < 0.02 * TABLE[name]
    assert kernel.std() == pytest.approx(TABLE[name], rel=0.02)
    assert (after["params/backbone/norm/scale"] == 1).all()
    assert (after["params/backbone/norm/bias"] == 0).all()
    assert (after["batch_stats/backbone/norm/mean"] == 0).all()
    assert (after["batch_stats/backbone/norm/var"] == 1).all()
    assert (after["params/head/kernel"] == 1).all()
    assert digest(initializers.redraw(before, name, 1)) != digest(
        initializers.redraw(before, name, 2)
    )
    assert digest(before) == digest(variables()) == digest(initializers.redraw(before, "", 1))


def test_a_network_from_scratch_has_nothing_of_its_weights(parts: data.Parts) -> None:
    """Another network of the same shapes gives the same result, and all of it counts as trained."""
    recipe = Recipe(tune="last:1", init="he", bn="update", epochs=1, batch_size=8, workers=0)
    results = []
    for seed in (0, 1):
        clf, start = toys.classifier("toy_vgg_bn", ("red", "blue"), size=16, seed=seed)
        head = {"kernel": np.zeros((8, 2), np.float32), "bias": np.zeros(2, np.float32)}
        start = {**start, "params": {**start["params"], "head": head}}
        results.append(fit.fit(clf, start, parts.train, parts.validation, recipe))
    one, other = results
    assert digest(one.variables) == digest(other.variables)
    assert one.trained == frozenset(flatten(one.variables["params"]))
    drawn = initializers.redraw(start, "he", 0)["params"]["backbone"]["stage1"]
    assert digest(one.variables["params"]["backbone"]["stage1"]) == digest(drawn)  # type: ignore[index]
    assert fit.frozen_digest(one.variables, one) == fit.frozen_digest(start, one)
    again = fit.fit(
        clf, start, parts.train, parts.validation, dataclasses.replace(recipe, init=""), seed=1
    )
    assert digest(again.variables) != digest(one.variables)
