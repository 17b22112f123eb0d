"""A damaged port diverges at the damaged layer, and `diagnose` names the damage.

The undamaged network, evaluated in advance, takes the place of another library. `test_parity.py`
has the same for real libraries.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toys
from tl import pixels
from tl.evaluation import divergence
from tl.models import Classifier
from tl.paths import flatten, unflatten
from tl.types import Variables


@functools.cache
def original() -> tuple[Classifier, Variables, tuple[divergence.Case, ...]]:
    """A network, and its endpoints, features and logits for one batch with rectangular images."""
    clf, variables = toys.classifier("toy_mobilenet", 3)
    rng = np.random.default_rng(0)
    leaves = {
        name: leaf + 0.1 * rng.random(leaf.shape, np.float32)
        for name, leaf in flatten(variables).items()
    }
    variables = unflatten(leaves)
    images01 = jnp.asarray(rng.random((2, 33, 40, 3), np.float32))
    output: Any = jax.jit(clf.apply)(variables, images01)
    ends = divergence.in_forward_order(clf.spec, output.endpoints)
    want = {name: output.endpoints[name] for name in ends}
    want |= {"features": output.features, "logits": output.logits}
    want = {name: np.asarray(value, np.float64) for name, value in want.items()}
    inputs = np.asarray(pixels.normalize(clf.pixels, images01))
    return clf, variables, (divergence.Case(inputs, want),)


def on_module(clf: Classifier, **fields: Any) -> Classifier:
    module = clf.spec.module.clone(**fields)
    return dataclasses.replace(clf, spec=dataclasses.replace(clf.spec, module=module))


def on_leaves(variables: Variables, pattern: str, change: Callable) -> Variables:
    leaves = {n: change(a) if pattern in n else a for n, a in flatten(variables).items()}
    return unflatten(leaves)


def test_an_undamaged_port_has_no_divergence() -> None:
    clf, variables, cases = original()
    errors = divergence.compare(clf, variables, cases)
    assert list(errors) == list(cases[0].want)
    assert divergence.first_divergence(errors) is None and max(errors.values()) < 1e-6


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda c, v: (on_module(c, padding="same"), v), "padding ('torch' there, 'same' here)"),
        (lambda c, v: (c, on_leaves(v, "stem/kernel", lambda a: a[:, :, ::-1])), "channel order"),
        (
            lambda c, v: (on_module(c, norm=c.spec.module.norm._replace(eps=1e-3)), v),
            "eps of BatchNorm (1e-05 there, 0.001 here)",
        ),
        pytest.param(  # tries every pair of causes
            lambda c, v: (c, on_leaves(v, "stage2/block0/expand", np.zeros_like)),
            "none of the common causes",
            marks=pytest.mark.full,
        ),
        (
            lambda c, v: (
                on_module(c, padding="same"),
                on_leaves(v, "stem/kernel", lambda a: a[:, :, ::-1]),
            ),
            "channel order of the input (RGB, BGR) and padding",
        ),
    ],
    ids=["padding", "channels", "eps", "unknown", "two causes"],
)
def test_the_damage_of_a_port_is_named(damage: Callable, words: str) -> None:
    clf, variables, cases = original()
    clf, variables = damage(clf, variables)
    errors = divergence.compare(clf, variables, cases)
    first = divergence.first_divergence(errors)
    assert first is not None and errors[first] > 10 * divergence.TOLERANCE
    assert words in divergence.diagnose(clf, variables, cases, first)


def test_nan_and_another_shape_count_as_divergence() -> None:
    expected = np.array([1.0, -4.0])
    assert divergence.error(np.array([1.0, -3.0]), expected) == 0.25
    for wrong in (np.array([np.nan, -4.0]), np.array([np.inf, -4.0]), np.array([1.0])):
        assert (
            divergence.first_divergence({"stem": 0.0, "top": divergence.error(wrong, expected)})
            == "top"
        )
