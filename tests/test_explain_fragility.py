"""Attacks on maps: changes of the maps, and the smooth gradient that the attacks need."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from tl import explain
from tl.backbones import gradients
from tl.explain import checks, fragility
from tl.explain.evidence import Evidence

SIDE, B, K, EPS = 16, 3, 3, 8 / 255
IMAGES = np.stack([toys.smooth(SIDE, SIDE, seed=i) for i in range(B)]).astype(np.float32) / 255


@functools.cache
def evidence(eps: float = EPS) -> Evidence:
    clf, variables = toys.classifier("toy_vgg", K, size=SIDE)
    key = jax.random.key(0)
    logits = np.asarray(jax.jit(clf.logits)(variables, IMAGES))
    targets = np.eye(K, dtype=np.float32)[logits.argmax(axis=1)]
    methods = {"gradient": explain.get("gradient")(), "edges": explain.get("edges")()}
    methods["rise"] = explain.get("rise")(masks=200, grid=3)
    explanations = {name: explain.make(method, clf, slots=4) for name, method in methods.items()}
    maps = {n: np.zeros((B, SIDE, SIDE), np.float32) for n in methods}
    for name in ("gradient", "edges"):
        maps[name] = np.asarray(explanations[name](variables, key, IMAGES, targets))
    subject = checks.Subject(clf, variables, key, IMAGES, targets)
    return Evidence(subject, explanations, maps, 4, 4, B, np.arange(B), eps=eps)


@functools.cache
def row(name: str) -> dict[str, Any]:
    result = fragility.fragility(evidence(), name)
    assert result is not None
    return result


def test_an_attack_stays_in_its_ball_and_on_8_bit_values():
    images01 = fragility.attack(evidence(), "gradient")
    assert np.abs(images01 - IMAGES).max() <= EPS + 1e-6
    np.testing.assert_allclose(255 * images01, np.rint(255 * images01), atol=1e-4)
    assert (images01 != IMAGES).any(axis=(1, 2, 3)).all()


def test_an_attack_moves_a_gradient_further_than_noise_does():
    moved = row("gradient")
    assert moved["value"] < moved["noise"] and moved["kept"] > 0
    assert moved["top"] < 1 and moved["ci95"][0] <= moved["value"] <= moved["ci95"][1]


def test_noise_is_measured_on_the_images_whose_class_stays(monkeypatch: pytest.MonkeyPatch):
    labels = fragility._classes(evidence())
    monkeypatch.setattr(fragility, "attack", lambda *_: IMAGES)

    def noise(*stay: int) -> float:
        after = np.where(np.isin(np.arange(B), stay), labels, labels + 1)
        monkeypatch.setattr(fragility, "_classes", lambda _: after)
        result = fragility.fragility(evidence(), "gradient")
        assert result is not None
        assert result["value"] == pytest.approx(1.0) and result["kept"] == len(stay) / B
        return result["noise"]

    first, second = noise(0), noise(1)
    assert first != second
    assert noise(0, 1) == pytest.approx((first + second) / 2)


def test_methods_with_no_or_many_passes_and_a_radius_of_zero_are_left_out():
    assert fragility.fragility(evidence(), "edges") is None
    assert fragility.fragility(evidence(), "rise") is None
    assert fragility.fragility(evidence(0.0), "gradient") is None


def test_the_highest_pixels_are_a_share_and_at_least_one():
    maps = np.zeros((1, 10, 10), np.float32)
    maps[0, 3, 4], maps[0, 7, 1] = -5.0, 2.0
    assert np.argwhere(fragility.highest(maps, 0.02)[0]).tolist() == [[3, 4], [7, 1]]
    assert fragility.highest(maps, 0.001).sum() == 1


@pytest.mark.parametrize("function, top", [(gradients.relu, np.inf), (gradients.relu6, 6.0)])
def test_a_smooth_relu_has_its_value_and_a_gradient_with_a_slope(function: Any, top: float):
    x = jnp.linspace(-1.0, 7.0, 33)
    with gradients.smooth_gradients():
        value = jax.vmap(function)(x)
        slope = jax.vmap(jax.grad(function))(x)
        curvature = jax.vmap(jax.grad(jax.grad(function)))(x)
    np.testing.assert_allclose(value, np.clip(x, 0, top), atol=1e-6)
    sigmoid = lambda z: 1 / (1 + np.exp(-gradients.SHARPNESS * np.asarray(z, np.float64)))
    expected = sigmoid(x) - (sigmoid(x - top) if np.isfinite(top) else 0)
    np.testing.assert_allclose(slope, expected, atol=1e-5)
    assert curvature[4] > 1  # at 0
    assert abs(curvature[16]) < 1e-3  # at 3
