"""The real images that activate a channel or class most: a direct pass, the bank, wrong input."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import toys
from tl import data, pixels, reporting
from tl.models import Classifier, heads
from tl.types import Variables
from tl.visualize import exemplars

COLORS = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "gray": (0.5, 0.5, 0.5),
    "white": (1, 1, 1),
}


CLASSES = tuple(f"class {i}" for i in range(12))


@pytest.fixture(scope="module")
def net() -> tuple[Classifier, Variables]:
    """A toy with a head that reads pooled features."""
    return toys.classifier("toy_mobilenet", CLASSES)


@pytest.fixture(scope="module")
def flat_net(net) -> tuple[Classifier, Variables]:
    """The same backbone with a head that reads the last map."""
    clf, variables = net
    clf = clf.with_head(heads.Flat(len(CLASSES)), clf.classes)
    shapes = jax.eval_shape(clf.init, jax.random.key(0))["params"]["head"]
    rng = np.random.default_rng(0)
    head = {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
    return clf, {**variables, "params": {**variables["params"], "head": head}}


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One noisy image per color, and an unreadable file."""
    folder, rng = tmp_path_factory.mktemp("album"), np.random.default_rng(0)
    for name, color in COLORS.items():
        noisy = np.array(color) + 0.1 * rng.standard_normal((70, 80, 3))
        reporting.save_png(folder / f"{name}.png", np.clip(noisy, 0, 1).astype(np.float32))
    (folder / "broken.png").write_bytes(b"not an image")
    return [folder / "broken.png", *(folder / f"{name}.png" for name in COLORS)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def direct(net, flat_net, album) -> dict[str, np.ndarray]:
    """Channel means, features and logits of the five readable images, by one pass."""
    clf, variables = net
    images = pixels.to_images01(np.stack([clf.prepare(data.decode(path)) for path in album[1:]]))
    output = jax.jit(clf.apply)(variables, images)
    means = {
        name: np.asarray(output.endpoints[name]).mean(axis=(1, 2)) for name in ("stem", "stage2")
    }
    flat = jax.jit(flat_net[0].logits)(flat_net[1], images)
    return {
        **means,
        "features": np.asarray(output.features),
        "logits": np.asarray(output.logits),
        "flat logits": np.asarray(flat),
    }


def test_top_rows_skip_nan_and_keep_the_order_of_ties():
    assert exemplars.top_rows(np.array([1.0, 2.0, np.nan, 2.0, -np.inf]), 9).tolist() == [
        1,
        3,
        0,
        4,
    ]
    assert (
        exemplars.top_rows(np.full(3, np.nan), 2).tolist()
        == []
        == exemplars.top_rows(np.zeros(3), 0).tolist()
    )


@pytest.mark.parametrize("endpoint", ["stem", "stage2", "features"])
def test_top_images_of_channels_are_those_of_a_direct_pass(net, album, cache, direct, endpoint):
    tops = exemplars.top_channels(*net, album, endpoint, [5, 0], 3, cache=cache)
    for channel, top in zip([5, 0], tops, strict=True):
        expected = direct[endpoint][:, channel]
        assert len(top) == 3 and album[0] not in [path for path, _ in top]
        np.testing.assert_allclose(
            [value for _, value in top], np.sort(expected)[::-1][:3], rtol=1e-4, atol=1e-6
        )
        for path, value in top:
            np.testing.assert_allclose(value, expected[album.index(path) - 1], rtol=1e-4, atol=1e-6)


def test_a_second_channel_needs_no_second_pass(net, album, cache):
    exemplars.top_channels(*net, album[1:], "stem", [0], cache=cache)

    def refuse(batches, total):
        raise AssertionError("computed again")

    (top,) = exemplars.top_channels(*net, album[1:], "stem", [7], cache=cache, progress=refuse)
    assert len(top) == 5


@pytest.mark.parametrize("channel", [8, -1])
def test_an_unknown_channel_is_an_error_before_an_image_is_read(net, channel):
    message = f"has 8 channels: got channel {channel}, expected 0 to 7"
    with pytest.raises(ValueError, match=message):
        exemplars.top_channels(*net, [Path("/nowhere.png")], "stem", [0, channel])


def test_an_unknown_endpoint_is_an_error_before_an_image_is_read(net):
    with pytest.raises(ValueError, match="no endpoint 'stage9'; nearest: 'stage"):
        exemplars.top_channels(*net, [Path("/nowhere.png")], "stage9", [0])


def test_top_classes_of_a_head_that_reads_endpoints(flat_net, album, direct):
    clf, variables = flat_net
    class_mask = np.zeros((2, len(CLASSES)), bool)
    class_mask[0, 7], class_mask[1, [3, 11]] = True, True
    tops = exemplars.top_classes(clf, variables, album, class_mask, 4, batch_size=4)
    for row, top in zip(class_mask, tops, strict=True):
        expected = direct["flat logits"][:, row].mean(axis=1)
        assert len(top) == 4
        np.testing.assert_allclose(
            [value for _, value in top], np.sort(expected)[::-1][:4], rtol=1e-4, atol=1e-5
        )
        assert expected[album.index(top[0][0]) - 1] == expected.max()


def test_top_classes_of_a_pooled_head_come_from_the_bank(net, album, cache, direct):
    exemplars.top_channels(*net, album, "features", [0], cache=cache)

    def refuse(batches, total):
        raise AssertionError("computed again")

    class_mask = np.eye(3, len(CLASSES), dtype=bool)
    tops = exemplars.top_classes(*net, album[1:], class_mask, 5, cache=cache, progress=refuse)
    for k, top in enumerate(tops):
        logits = direct["logits"][:, k]
        np.testing.assert_allclose(
            [value for _, value in top], np.sort(logits)[::-1], rtol=1e-4, atol=1e-5
        )
        assert [path for path, _ in top] == [album[1 + i] for i in np.argsort(-logits)]


@pytest.mark.parametrize(
    ("class_mask", "message"),
    [
        (np.zeros((1, 12), np.float32), r"got float32.*bool\[m 12\]"),
        (np.zeros(12, bool), r"bool\[12\]"),
        (np.ones((1, 5), bool), r"bool\[1, 5\]"),
        (np.zeros((2, 12), bool), "row 0 .*no class"),
    ],
)
def test_a_wrong_class_mask_is_an_error(net, album, class_mask, message):
    with pytest.raises(ValueError, match=message):
        exemplars.top_classes(*net, album, class_mask)


def test_a_network_without_a_head_has_no_top_classes(net, album):
    clf, variables = net
    bare = dataclasses.replace(clf, head=None, classes=None)
    with pytest.raises(ValueError, match="no classifier"):
        exemplars.top_classes(bare, variables, album, np.ones((1, 12), bool))
