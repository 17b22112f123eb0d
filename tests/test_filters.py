"""Filters as tiles, and their changes: values by hand, and the layer names of SqueezeNet."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from tests import toys
from tl import backbones, models
from tl.visualize.filters import DEAD, changes, kernels, natural_order, tiles, writers


@functools.cache
def squeezenet() -> models.Classifier:
    """SqueezeNet without a head, for images of 64 pixels."""
    toy, _ = toys.classifier("toy_vgg", size=64)
    spec = backbones.get("squeezenet1_1")
    return dataclasses.replace(toy, arch=spec.name, spec=spec, head=None, classes=None)


@functools.cache
def params() -> dict[str, Any]:
    """The parameters of the backbone, drawn by NumPy."""
    shapes = jax.eval_shape(squeezenet().init, jax.random.key(0))["params"]["backbone"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def replace(name: str, change: Any) -> dict[str, Any]:
    """`params` with one leaf replaced by `change` of it."""
    copy = jax.tree.map(np.copy, params())
    *parents, last = name.split("/")
    node = copy
    for parent in parents:
        node = node[parent]
    node[last] = change(node[last])
    return copy


# ---- tiles ----


def test_tiles_are_scaled_around_mid_gray() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 5, 3, 4)).astype(np.float32)
    kernel[0, 0, :, 1] = 0.0
    kernel[..., 3] = 0.0
    images = tiles(kernel)
    assert len(images) == 4
    assert all(image.shape == (3, 5, 3) and image.dtype == np.float32 for image in images)
    for i in range(3):
        low, high = images[i].min(), images[i].max()
        largest = np.abs(kernel[..., i]).max()
        np.testing.assert_allclose(images[i], 0.5 + kernel[..., i] / largest / 2, atol=1e-6)
        assert 0.0 <= low and high <= 1.0 and {0.0, 1.0} & {low, high}
    np.testing.assert_array_equal(images[1][0, 0], 0.5)
    np.testing.assert_array_equal(images[3], np.full((3, 5, 3), 0.5, np.float32))


def test_tiles_do_not_depend_on_scale_and_mirror_a_sign() -> None:
    kernel = np.random.default_rng(1).normal(size=(3, 3, 3, 2)).astype(np.float32)
    for one, two, minus in zip(tiles(kernel), tiles(kernel * 1e-20), tiles(-kernel), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
        np.testing.assert_allclose(one, 1 - minus, atol=1e-6)


def test_gray_tiles_have_three_equal_channels() -> None:
    (tile,) = tiles(jax.numpy.asarray([[-1.0, 0.5]], jax.numpy.float32)[..., None, None])
    np.testing.assert_array_equal(tile, np.float32([[[0.0] * 3, [0.75] * 3]]))


@pytest.mark.parametrize("shape", [(3, 3, 64, 8), (3, 3, 3), (1, 3, 3, 3, 1)])
def test_only_a_first_layer_is_shown_in_color(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"got \[.*\], expected \[h w 3 o\].*; pass the first"):
        tiles(np.zeros(shape, np.float32))


# ---- writers ----


def test_a_change_of_a_writer_changes_its_channel_and_no_other() -> None:
    """The output of a fire module is the concatenation of two convolutions."""
    clf = squeezenet()
    images01 = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    forward = jax.jit(
        lambda p: clf.apply({"params": {"backbone": p}, "batch_stats": {}}, images01).endpoints[
            "stage1"
        ]
    )
    # Positive weights, so that every ReLU is active.
    before = jax.tree.map(lambda leaf: np.abs(leaf) * np.float32(0.05), params())
    rows = writers(before, "stage1", 128)
    assert rows == writers(before, "stage1/block1", 128) and len(rows) == 128
    for channel in (3, 75):
        name, index = rows[channel]
        after = jax.tree.map(np.copy, before)
        after["stage1"]["block1"][name.split("/")[2]]["kernel"][..., index] *= 2.0
        differs = (np.asarray(forward(before)) != np.asarray(forward(after))).any(axis=(0, 1, 2))
        assert np.flatnonzero(differs).tolist() == [channel]


def test_the_last_convolution_of_the_last_block_computes_the_channels() -> None:
    shape = lambda i, o: {"kernel": np.zeros((1, 1, i, o), np.float32)}
    block = {
        "conv1": shape(8, 4),
        "conv2": shape(4, 4),
        "conv3": shape(4, 8),
        "shortcut": shape(8, 8),
    }
    tree = {
        "stem": shape(3, 6),
        "stage1": {f"block{i}": block for i in range(11)},
        "stage2": {"conv0": shape(8, 8)},
    }
    assert writers(tree, "stage1", 8)[5] == ("stage1/block10/conv3/kernel", 5)
    assert writers(tree, "stage1/block1", 8)[0] == ("stage1/block1/conv3/kernel", 0)
    assert writers(tree, "stem", 6)[5] == ("stem/kernel", 5)
    assert writers(tree, "stage2", 8)[0] == ("stage2/conv0/kernel", 0)
    assert writers(tree, "stage1", 9) == writers(tree, "top", 8) == []


def test_natural_order_puts_block_10_after_block_9() -> None:
    assert sorted(["b10/a", "b9/a", "a"], key=natural_order) == ["a", "b9/a", "b10/a"]


# ---- changes ----


def test_kernels_are_the_convolutions() -> None:
    by_name = kernels(params())
    assert by_name["stem/kernel"].shape == (3, 3, 3, 64)
    assert by_name["stage1/block0/expand3x3/kernel"].shape == (3, 3, 16, 64)
    assert len(by_name) == 25  # the stem, and three per fire module
    dense_and_scale = {"a": {"kernel": np.zeros((4, 2))}, "b": {"scale": np.zeros((1, 1, 1, 2))}}
    assert list(kernels(dense_and_scale)) == []


def test_equal_weights_have_no_change() -> None:
    rows = changes(params(), params())
    assert len(rows) == sum(kernel.shape[3] for kernel in kernels(params()).values())
    assert {row.relative for row in rows} == {0.0}
    assert rows == sorted(rows)


def test_the_largest_relative_change_comes_first() -> None:
    name = "stage2/block1/squeeze/kernel"

    def change(kernel: np.ndarray) -> np.ndarray:
        kernel[..., 7] *= 3.0  # changes by twice its norm
        kernel[..., 2] *= 0.5
        return kernel

    rows = changes(params(), replace(name, change))
    assert [(row.name, row.index) for row in rows[:2]] == [(name, 7), (name, 2)]
    assert [row.relative for row in rows[:3]] == pytest.approx([2.0, 0.5, 0.0])


def test_dead_filters_are_left_out() -> None:
    name = "stage1/block0/squeeze/kernel"

    def with_norms(*norms: float) -> Any:
        def change(kernel: np.ndarray) -> np.ndarray:
            kernel /= np.sqrt(np.square(kernel).sum(axis=(0, 1, 2)))
            kernel[..., : len(norms)] *= np.float32(norms)
            return kernel

        return change

    before = replace(name, with_norms(0.0, 0.9 * DEAD, 1.1 * DEAD))
    rows = [row for row in changes(before, params()) if row.name == name]
    assert sorted(row.index for row in rows) == list(range(2, 16))
    dead = replace(name, np.zeros_like)
    assert not [row for row in changes(dead, params()) if row.name == name]


def test_depthwise_filters_have_one_row_per_channel() -> None:
    before = {"conv": {"kernel": np.ones((3, 3, 1, 4), np.float32)}}
    after = {"conv": {"kernel": before["conv"]["kernel"] + np.float32([0.0, 0.1, 0.2, 0.3])}}
    rows = [(row.index, round(row.relative, 5)) for row in changes(before, after)]
    assert rows == [(3, 0.3), (2, 0.2), (1, 0.1), (0, 0.0)]


def test_kernels_of_two_networks_are_an_error() -> None:
    message = r"different networks: stem/kernel is \[3, 3, 3, 64\] before and \[3, 3, 3, 32\]"
    with pytest.raises(ValueError, match=message):
        changes(params(), replace("stem/kernel", lambda kernel: kernel[..., :32]))
    renamed = {("stern" if name == "stem" else name): tree for name, tree in params().items()}
    message = "'stem/kernel' is a kernel of one only; nearest in the other: .*'stern/kernel'"
    with pytest.raises(ValueError, match=message):
        changes(params(), renamed)
