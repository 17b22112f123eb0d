"""Tests of belief with a known answer: mosaics and a planted mark."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from flax import linen as nn

from tl import explain
from tl.explain import checks, pointing
from tl.explain.evidence import Evidence
from tl.types import Mode

SIDE, B = 16, 8
IMAGES = np.stack([toys.smooth(SIDE, SIDE, seed=i) for i in range(B)])
IMAGES01 = IMAGES.astype(np.float32) / 255


def test_a_mosaic_has_four_classes_and_the_explained_one_in_its_quarter():
    labels = np.array([0, 1, 2, 3, 4, 0, 1, 2])
    gray = np.broadcast_to(labels[:, None, None, None] / 10, (B, 5, 5, 3)).astype(np.float32)
    made = pointing.mosaics(gray, labels, 9, seed=1)
    assert made.images01.shape == (9, 5, 5, 3) and made.images01.dtype == np.float32
    assert made.quarters.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    for image, label, quarter in zip(*made, strict=True):
        classes = np.rint(10 * image[[0, 0, 3, 3], [0, 3, 0, 3], 0]).astype(int)
        assert len(set(classes)) == 4 and classes[quarter] == label
    again = pointing.mosaics(gray, labels, 9, seed=1)
    np.testing.assert_array_equal(made.images01, again.images01)
    assert (pointing.mosaics(gray, labels, 9, seed=2).labels != made.labels).any()


def test_a_photograph_in_a_mosaic_is_the_mean_of_2_x_2_pixels():
    made = pointing.mosaics(IMAGES01[:4], np.arange(4), 4, seed=0)
    for image, label, quarter in zip(*made, strict=True):
        top, left = 8 * (quarter // 2), 8 * (quarter % 2)
        expected = IMAGES01[label].reshape(8, 2, 8, 2, 3).mean((1, 3))
        np.testing.assert_allclose(image[top : top + 8, left : left + 8], expected, atol=1e-6)


def test_energy_is_one_inside_a_quarter_a_quarter_of_a_uniform_map_and_zero_without_any():
    inside = np.zeros((4, 6, 6), np.float32)
    for i in range(4):
        inside[i, 3 * (i // 2) + 1, 3 * (i % 2) + 2] = 2.0
    np.testing.assert_allclose(pointing.energy(inside, np.arange(4)), 1.0)
    np.testing.assert_allclose(pointing.energy(inside, np.array([1, 2, 3, 0])), 0.0)
    np.testing.assert_allclose(pointing.energy(np.ones((1, 6, 6)), np.array([2])), 0.25)
    np.testing.assert_allclose(pointing.energy(-inside[:1], np.array([0])), 0.0)


def test_a_mark_covers_its_square_only():
    out = pointing.mark(IMAGES[:2], np.array([[0, 3], [10, 12]]), 4)
    changed = (out != IMAGES[:2]).any(axis=-1)
    assert changed[0, 1:3, 4:6].all() and not np.delete(changed[0], range(4), axis=0).any()
    assert changed[1, 11:13, 13:15].all() and changed[1].sum() <= 16
    assert out.dtype == np.uint8
    red, green, blue = pointing.mark(IMAGES[:1], np.array([[0, 0]]), 15)[0, 7, 7]
    assert red == blue == 255 and green == 0


def test_a_map_points_at_a_mark_if_its_strongest_window_is_there():
    maps, corners = np.zeros((3, SIDE, SIDE), np.float32), np.array([[2, 8], [2, 8], [2, 8]])
    maps[0, 3:5, 9:11] = 1.0
    maps[1, 10:12, 2:4] = 1.0
    assert pointing.points_at(maps, corners, 4).tolist() == [True, False, False]


class Colors(nn.Module):
    """Magenta, and two other colors, at each pixel."""

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode, start: str = "") -> Any:
        scale = self.param("colors", lambda key: {"scale": jnp.ones((1, 1, 1, 3))})["scale"]
        magenta = jax.nn.relu(jnp.minimum(x[..., 0], x[..., 2]) - x[..., 1] - 0.5)
        colors = scale * jnp.stack([magenta, x[..., 0], x[..., 1]], axis=-1)
        return jnp.mean(colors, axis=(1, 2)), {"colors": colors}


@functools.cache
def known(mosaics: int = 0, marks: int = 0) -> Any:
    """The rows of `checks.evaluate` of gray images that differ in brightness."""
    clf = toys.of_module(Colors(), 3, 32, ("a", "b", "c", "d"))
    variables = jax.jit(clf.init)(jax.random.key(0))
    methods = {"occlusion": explain.get("occlusion")(patch=8), "edges": explain.get("edges")()}
    explanations = {name: explain.make(method, clf, slots=8) for name, method in methods.items()}
    images = np.stack([toys.smooth(32, 32, seed=i) for i in range(12)])
    images = (0.2 * images + 60).astype(np.uint8).astype(np.float32) / 255
    targets = np.eye(4, dtype=np.float32)[[0] * 12]
    subject = checks.Subject(clf, variables, jax.random.key(0), images, targets)
    maps = {n: np.asarray(e(*subject[1:])) for n, e in explanations.items()}
    evidence = Evidence(
        subject, explanations, maps, 4, 8, 1, np.arange(12), mosaics=mosaics, marks=marks
    )
    return {name: pointing.watermark(evidence, name) for name in methods}, evidence


def test_occlusion_points_at_the_mark_that_decides_the_class():
    rows, _ = known(marks=3)
    assert rows["occlusion"]["value"] == 1.0 and rows["occlusion"]["n"] == 3
    assert rows["occlusion"]["accuracy"] > 0.8
    low, high = rows["edges"]["ci95"]
    assert low <= rows["edges"]["value"] <= high
    assert known()[0] == {"occlusion": None, "edges": None}


def test_a_mark_is_found_if_one_method_points_at_it():
    row = lambda *hits: {"watermark": {"hits": list(hits)}}
    tests = {
        "a": row(True, False, False),
        "b": row(False, False, True),
        "edges": row(True, True, True),
    }
    found = pointing.found_by_any(tests)
    assert found is not None and found["methods"] == ["a", "b"]
    assert found["n"] == 3 and found["value"] == pytest.approx(2 / 3)
    assert found["ci95"][0] < found["value"] < found["ci95"][1]
    assert pointing.found_by_any({"a": {}, "edges": row(True)}) is None


def test_too_few_photographs_are_one_sentence():
    clf, variables = toys.classifier("toy_vgg", 3, size=32)
    with pytest.raises(ValueError, match="photographs of four classes: got 2"):
        pointing.mosaics(IMAGES01, np.arange(B) % 2, 3, seed=0)
    with pytest.raises(ValueError, match="at least 8 images: got 7"):
        pointing.marked(clf, variables, IMAGES[:7], 3, seed=0)
