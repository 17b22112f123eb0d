"""Every architecture of the zoo against what torch computed (golden files, no torch needed), and its promises.

The weights are drawn from the name of each source tensor and go through the rename table, so these tests hold tables,
layouts, padding, eps and BatchNorm at once. How the golden files are made: golden/make_golden.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.make_golden import CLASSES, HERE, golden_images, sampled, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from tl import backbones, heads
from tl.backbones.layers import ConvNorm, he_normal, pads
from tl.backbones.mobilenet import InvertedResidualNet, Row
from tl.backbones.resnet import BasicBlock, Bottleneck, ResNet
from tl.classifier import Classifier, Provenance
from tl.paths import digest, flatten
from tl.pixels import PixelSpec
from tl.types import Mode, Variables
from tl.weights import port, tables

NAMES = backbones.names()
# Of the published networks with 1000 classes (torchvision's and timm's model tables).
PARAMETERS = {
    "vgg16": 138_357_544,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenetv2_100": 3_504_872,
    "efficientnet_lite0": 4_652_008,
}
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # the same program, translated with less care


class Network(NamedTuple):
    clf: Classifier
    variables: Variables
    apply: Callable
    golden: dict[str, np.ndarray]


def source_shape(leaf: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The shape in the source's file of a tensor that has the shape `leaf` in tl."""
    if layout == "oihw":
        return leaf[3], leaf[2], leaf[0], leaf[1]
    return leaf if layout == "same" else leaf[::-1]


@functools.cache
def network(name: str) -> Network:
    """An architecture with seeded weights under a head of 16 classes, as its golden file has it."""
    file = HERE / f"{name}.npz"
    if not file.is_file():
        pytest.fail(
            f"no golden file of {name}: add its row to REFERENCES and run python tests/golden/make_golden.py {name}"
        )
    golden = dict(np.load(file))
    spec = backbones.get(name)
    head = heads.VGGTop(CLASSES, width=CLASSES) if spec.head == "vgg" else heads.Linear(CLASSES)
    clf = Classifier(name, spec, head, PixelSpec(), None, Provenance("seeded", ""))
    shapes = jax.eval_shape(clf.init, jax.random.key(0))
    leaves = flatten(shapes)
    table = tables.sources(spec.module)[str(golden["source"])].table(spec.module, head=True)
    arrays = {source: seeded(source, source_shape(leaves[t.path].shape, t.layout)) for source, t in table.items()}
    variables = port.port(arrays, table, shapes)
    return Network(clf, {"batch_stats": {}, **variables}, jax.jit(clf.apply, static_argnames="mode"), golden)


@functools.cache
def evaluated(name: str) -> Any:
    net = network(name)
    return jax.tree.map(np.asarray, net.apply(net.variables, golden_images()))


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference, in units of the largest value."""
    assert got.shape == want.shape
    return float(np.abs(got.astype(np.float64) - want).max() / np.abs(want).max())


@pytest.mark.parametrize("name", NAMES)
def test_eval_agrees_with_torch(name: str):
    out, golden = evaluated(name), network(name).golden
    assert error(out.logits, golden["eval/logits"]) < 1e-5
    assert error(out.features, golden["eval/features"]) < 1e-5
    compared = [key.removeprefix("shape/") for key in golden if key.startswith("shape/")]
    assert set(compared) == set(out.endpoints)
    for end in compared:
        assert out.endpoints[end].shape == tuple(golden[f"shape/{end}"]), end
        assert error(sampled(out.endpoints[end]), golden[f"eval/{end}"]) < 1e-5, end


@pytest.mark.parametrize("name", NAMES)
def test_train_agrees_with_torch_in_logits_and_moved_statistics(name: str):
    clf, variables, _, golden = network(name)
    train = jax.jit(lambda v, x: clf.apply(v, x, Mode.TRAIN), compiler_options=FAST_COMPILE)
    out = train(variables, golden_images())
    assert (
        error(np.asarray(out.logits), golden["train/logits"]) < 1e-4
    )  # statistics of 18 numbers a channel, 20 to 50 deep
    table = tables.sources(clf.spec.module)[str(golden["source"])].table(clf.spec.module, head=True)
    moved = flatten({"batch_stats": out.stats})
    assert set(moved) == {name for name in flatten(variables) if name.startswith("batch_stats/")}
    if moved:
        rows = [moved[table[source].path] for source in sorted(table) if "running_" in source]
        stats = np.concatenate([np.asarray(row) for row in rows])
        np.testing.assert_allclose(sampled(stats, 1000), golden["train/stats"], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_eval_leaves_statistics_bit_identical_and_rows_do_not_see_their_neighbours(name: str):
    clf, variables, apply, _ = network(name)
    first = evaluated(name)
    assert digest(first.stats) == digest(variables["batch_stats"])
    images = golden_images()
    other = apply(variables, np.stack([np.zeros_like(images[0]), images[0]]))
    np.testing.assert_allclose(other.logits[1], first.logits[0], rtol=1e-5, atol=1e-5 * np.abs(first.logits).max())
    assert np.abs(other.logits[0] - first.logits[0]).max() > 1e-2 * np.abs(first.logits).max()


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_of_the_zoo_are_true(name: str):
    spec, out = backbones.get(name), evaluated(name)
    assert set(spec.endpoints) <= set(out.endpoints)
    assert out.features.shape == (2, spec.features) and out.features.dtype == np.float32
    sides = [out.endpoints[end].shape[1] for end in spec.endpoints]
    assert sides == sorted(sides, reverse=True), "endpoints are not in the order of the forward pass"
    assert (
        sum(leaf.size for leaf in flatten(network(name).variables["params"]).values())
        == network(name).golden["parameters"]
    )
    assert all(leaf.dtype == np.float32 for leaf in flatten(network(name).variables).values())


@pytest.mark.parametrize("name", PARAMETERS)
def test_as_many_parameters_as_published(name: str):
    spec = backbones.get(name)
    head = heads.VGGTop(1000) if spec.head == "vgg" else heads.Linear(1000)
    clf = Classifier(name, spec, head, PixelSpec(), None, Provenance("none", ""))
    params = flatten(jax.eval_shape(clf.init, jax.random.key(0))["params"])
    assert sum(leaf.size for leaf in params.values()) == PARAMETERS[name]
    if name == "vgg16":
        assert sum(leaf.size for path, leaf in params.items() if path.startswith("backbone/")) == 14_714_688


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side, across", [(0, 0), (1, 130)])
def test_every_size_from_the_smallest_up(name: str, side: int, across: int):
    clf, variables, _, _ = network(name)
    small = clf.spec.min_size
    images = jax.ShapeDtypeStruct((3, small + side, small + across, 3), jnp.float32)
    out = jax.eval_shape(clf.apply, variables, images)
    assert out.logits.shape == (3, CLASSES) and out.features.shape == (3, clf.spec.features)
    assert all(0 not in end.shape for end in out.endpoints.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [(1, 0), (0, 1)])
def test_smaller_is_refused_with_the_size_it_wants(name: str, cut: tuple[int, int]):
    clf, variables, _, _ = network(name)
    h, w = (clf.spec.min_size - c for c in cut)
    with pytest.raises(ValueError, match=rf"{name} wants images of at least {clf.spec.min_size} pixels.*{h}, {w}"):
        clf.apply(variables, np.zeros((1, h, w, 3), np.float32))


def test_names_and_aliases():
    assert len(set(NAMES)) == len(NAMES)
    for name in NAMES:
        assert backbones.get(name).name == name
        assert all(backbones.get(alias).name == name for alias in backbones.get(name).aliases)
    aliases = [alias for name in NAMES for alias in backbones.get(name).aliases]
    assert len(set(aliases) | set(NAMES)) == len(aliases) + len(NAMES), "an alias names two architectures"
    with pytest.raises(ValueError, match="unknown architecture 'resnet5o'; nearest: 'resnet50'"):
        backbones.get("resnet5o")


# --- BatchNorm, on one layer, against the formula --------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_batchnorm_by_hand(eps: float):
    rng = np.random.RandomState(1)
    x = rng.standard_normal((3, 5, 4, 2)).astype(np.float32)
    layer = ConvNorm(2, 1, eps=eps)
    variables = {
        "params": {
            "kernel": np.eye(2, dtype=np.float32)[None, None],
            "norm": {"scale": np.float32([2, -1]), "bias": np.float32([0.5, 3])},
        },
        "batch_stats": {"norm": {"mean": np.float32([0.3, -0.2]), "var": np.float32([0.01, 4])}},
    }
    scale, bias = np.array([2.0, -1.0]), np.array([0.5, 3.0])
    old_mean, old_var = np.array([0.3, -0.2]), np.array([0.01, 4.0])
    wide = x.astype(np.float64)

    out = layer.apply(variables, x, Mode.EVAL)
    np.testing.assert_allclose(out, (wide - old_mean) / np.sqrt(old_var + eps) * scale + bias, rtol=1e-5, atol=1e-5)

    out, moved = layer.apply(variables, x, Mode.TRAIN, mutable=["batch_stats"])
    mean, var, n = wide.mean((0, 1, 2)), wide.var((0, 1, 2)), 3 * 5 * 4
    np.testing.assert_allclose(out, (wide - mean) / np.sqrt(var + eps) * scale + bias, rtol=1e-5, atol=1e-5)
    stats = moved["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], 0.9 * old_mean + 0.1 * mean, rtol=1e-5)  # torch: momentum 0.1,
    np.testing.assert_allclose(stats["var"], 0.9 * old_var + 0.1 * var * n / (n - 1), rtol=1e-5)  # unbiased variance


def test_batchnorm_with_a_large_mean_keeps_its_digits():
    """E[x^2] - E[x]^2 in float32 would leave none of the variance here."""
    x = (1000.0 + np.random.RandomState(2).standard_normal((2, 8, 8, 1))).astype(np.float32)
    layer = ConvNorm(1, 1)
    variables = layer.init(jax.random.key(0), x, Mode.EVAL)
    variables = {**variables, "params": {**variables["params"], "kernel": np.ones((1, 1, 1, 1), np.float32)}}
    out, _ = layer.apply(variables, x, Mode.TRAIN, mutable=["batch_stats"])
    wide = x.astype(np.float64)
    np.testing.assert_allclose(out, (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5), atol=2e-3)


def test_gradients_of_the_folded_form_are_those_of_the_unfolded():
    """In EVAL the norm is folded into the kernel: image and parameters get the gradients of the plain formula."""
    rng = np.random.RandomState(3)
    x = rng.standard_normal((2, 6, 6, 3)).astype(np.float32)
    layer = ConvNorm(4, 3)
    variables = layer.init(jax.random.key(0), x, Mode.EVAL)
    stats = {
        "norm": {
            "mean": jnp.asarray(rng.standard_normal(4), jnp.float32),
            "var": jnp.asarray(rng.uniform(0.5, 2, 4), jnp.float32),
        }
    }

    def folded(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(layer.apply({"params": params, "batch_stats": stats}, x, Mode.EVAL)))

    def unfolded(params: Any, x: jax.Array) -> jax.Array:
        dims = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), ((1, 1), (1, 1)), dimension_numbers=dims)
        y = (y - stats["norm"]["mean"][None, None, None]) / jnp.sqrt(stats["norm"]["var"] + 1e-5)[None, None, None]
        return jnp.sum(
            jnp.sin(y * params["norm"]["scale"][None, None, None] + params["norm"]["bias"][None, None, None])
        )

    both = jax.jit(lambda params, x: [jax.grad(f, argnums=(0, 1))(params, x) for f in (folded, unfolded)])
    got, want = both(variables["params"], x)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4), got, want)


# --- Modules made with other numbers than the zoo's: what a new variant relies on ------------------------------------


@pytest.mark.parametrize(
    "module, side, last",
    [
        (ResNet((1, 1, 1, 1), BasicBlock), 33, 512),
        (ResNet((1, 1, 1, 1), Bottleneck), 32, 2048),
        (InvertedResidualNet((Row(1, 4, 1, 1), Row(2, 8, 2, 2, 5)), stem=4, top=8), 17, 8),
        (InvertedResidualNet((Row(1, 4, 1, 1), Row(2, 8, 2, 2, 5)), stem=4, top=8, padding="same"), 17, 8),
    ],
)
def test_other_variants_run(module: Any, side: int, last: int):
    def forward(key: jax.Array, x: jax.Array) -> Any:
        return module.apply(module.init(key, x, Mode.EVAL), x, Mode.EVAL)

    features, ends = jax.eval_shape(forward, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
    assert features.shape == (1, last)
    assert ends["stem"].shape[1] == -(-side // 2)  # both paddings give ceil(side / 2)


def test_fresh_kernels_are_jaxs_own_he_normal():
    key, shape = jax.random.key(5), (3, 3, 8, 20)
    want = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")(key, shape, jnp.float32)
    np.testing.assert_allclose(he_normal(key, shape), want, rtol=1e-6)


@settings(max_examples=50)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 2]))
def test_both_paddings_give_as_many_outputs_but_lay_the_odd_pixel_elsewhere(h: int, w: int, window: int, stride: int):
    for padding in ("torch", "same"):
        for size, (before, after) in zip((h, w), pads((h, w), window, stride, padding), strict=True):
            assert (size + before + after - window) // stride + 1 == -(-size // stride)
            assert padding == "torch" or 0 <= after - before <= 1
            assert padding == "same" or before == after == window // 2


def test_the_golden_files_stay_small():
    assert sum(file.stat().st_size for file in Path(HERE).glob("*.npz")) < 1_000_000
    assert {file.stem for file in Path(HERE).glob("*.npz")} == set(NAMES), "a golden file of no architecture"
