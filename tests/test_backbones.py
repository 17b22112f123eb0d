"""Every architecture of the zoo against the results of its source library, in golden files.

The weights are drawn from the name of each source tensor and pass through the rename table, so
these tests cover tables, layouts, padding, eps and BatchNorm together. golden/make_golden.py writes
the golden files; torch and Keras are not needed here. By default one network of each form is
tested, with --full the whole zoo.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden.make_golden import (
    CLASSES,
    HERE,
    REPRESENTATIVES,
    golden_images,
    joined,
    read,
    sampled,
    samples,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tests import toys
from tl import backbones
from tl.backbones.layers import ConvNorm, NormSpec, he_normal, pads, scaled
from tl.backbones.mobilenet import InvertedResidualNet, Row
from tl.backbones.resnet import BasicBlock, Bottleneck, ResNet
from tl.backbones.vgg import VGGTop
from tl.evaluation.divergence import STATISTICS, seeded
from tl.models import Classifier, Provenance, heads, load
from tl.paths import digest, flatten
from tl.pixels import PixelSpec
from tl.types import Mode, Variables
from tl.weights import port, tables

NAMES = backbones.names()

# The networks of several tests. They come last in `ALL`, so that they are still cached when the
# tests after those of `ALL` use them.
SHARED = (
    "vgg11_bn",
    "resnet18",
    "resnetv2_50_keras",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "mobilenetv1_025_keras",
)
CHEAP = ("resnet18", "mobilenetv2_035", "mobilenetv3_small_050", "mobilenetv1_025_keras")

# One network of each structural feature.
QUICK = {
    *SHARED,
    "resnext50_32x4d",  # bottleneck, grouped
    "resnet50_keras",  # stride in the first 1x1, bias and BatchNorm
    "mobilenetv2_035_keras",  # "same" padding
    "tf_mobilenetv3_small_minimal_100",  # ReLU only
    "tf_efficientnet_lite0",
    "squeezenet1_1",  # convolutions with bias, a convolution as classifier
}


def quick_first(names: Iterable[str], quick: Collection[str] = QUICK) -> list[Any]:
    """Parameters for all names; those outside of `quick` run with --full."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.full) for name in names]


ALL = quick_first([*(name for name in NAMES if name not in SHARED), *SHARED])
PARAMETERS = {
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnet50_keras": 25_583_592,
    "resnet101_keras": 44_601_832,
    "resnet152_keras": 60_268_520,
    "resnetv2_50_keras": 25_568_360,
    "resnetv2_101_keras": 44_577_896,
    "resnetv2_152_keras": 60_236_904,
    "mobilenetv1_100": 4_231_976,
    "mobilenetv1_125": 6_270_840,
    "mobilenetv1_025_keras": 470_072,
    "mobilenetv1_050_keras": 1_331_592,
    "mobilenetv1_075_keras": 2_585_560,
    "mobilenetv1_100_keras": 4_231_976,
    "mobilenetv2_035": 1_677_128,
    "mobilenetv2_050": 1_968_680,
    "mobilenetv2_075": 2_636_424,
    "mobilenetv2_140": 6_108_776,
    "mobilenetv2_100": 3_504_872,
    "mobilenetv2_110d": 4_516_520,
    "mobilenetv2_120d": 5_831_144,
    "mobilenetv2_035_keras": 1_677_128,
    "mobilenetv2_050_keras": 1_968_680,
    "mobilenetv2_075_keras": 2_636_424,
    "mobilenetv2_100_keras": 3_504_872,
    "mobilenetv2_130_keras": 5_386_792,
    "mobilenetv2_140_keras": 6_108_776,
    "mobilenetv3_small_050": 1_593_224,
    "mobilenetv3_small_075": 2_041_872,
    "mobilenetv3_small_100": 2_542_856,
    "mobilenetv3_large_075": 3_993_528,
    "mobilenetv3_large_100": 5_483_032,
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v3_large": 5_483_032,
    "tf_mobilenetv3_small_075": 2_041_872,
    "tf_mobilenetv3_small_100": 2_542_856,
    "tf_mobilenetv3_large_075": 3_993_528,
    "tf_mobilenetv3_large_100": 5_483_032,
    "tf_mobilenetv3_small_minimal_100": 2_044_736,
    "tf_mobilenetv3_large_minimal_100": 3_924_288,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "efficientnet_lite3": 8_197_096,
    "efficientnet_lite4": 13_006_568,
    "tf_efficientnet_lite0": 4_652_008,
    "tf_efficientnet_lite1": 5_416_680,
    "tf_efficientnet_lite2": 6_092_072,
    "tf_efficientnet_lite3": 8_197_096,
    "tf_efficientnet_lite4": 13_006_568,
    "squeezenet1_1": 1_235_496,
}
"""Parameters with 1000 classes: torchvision's `num_params`, else counted in the source."""


class Network(NamedTuple):
    clf: Classifier
    variables: Variables
    table: port.Table
    arrays: dict[str, np.ndarray]  # by the names of the source


def classifier(name: str) -> Classifier:
    spec = backbones.get(name)
    head = spec.head(CLASSES, width=CLASSES) if spec.head is VGGTop else heads.own(spec)(CLASSES)
    return Classifier(name, spec, head, PixelSpec(), None, Provenance("seeded", ""))


@functools.lru_cache(maxsize=6)
def network(name: str) -> Network:
    """An architecture with seeded weights and a head of 16 classes, as in its golden file."""
    if not (HERE / f"{name}.npz").is_file():
        pytest.fail(f"no golden file of {name}: run python -m tests.golden.make_golden {name}")
    clf = classifier(name)
    shapes = jax.eval_shape(clf.init, jax.random.key(0))
    leaves, form = flatten(shapes), tables.sources(clf.spec)[read(name).source]
    table = form.table(clf.spec.module, head=True)
    arrays = {
        source: seeded(source, port.LAYOUTS[target.layout].theirs(leaves[target.path].shape))
        for source, target in table.items()
    }
    return Network(clf, {"batch_stats": {}, **port.port(arrays, table, shapes)}, table, arrays)


def compiled(clf: Classifier, mode: Mode = Mode.EVAL) -> Callable:
    return jax.jit(lambda variables, images: clf.apply(variables, images, mode))


@functools.lru_cache(maxsize=6)
def evaluated(name: str) -> Any:
    net = network(name)
    return jax.tree.map(np.asarray, compiled(net.clf)(net.variables, golden_images()))


def error(actual: Any, expected: np.ndarray) -> float:
    """Largest difference, in units of the largest value."""
    assert actual.shape == expected.shape
    return float(np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module", params=ALL)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every architecture; the scope lets pytest run the tests of one network after another.

    The shared ones come last and stay in memory; the others would add up to gigabytes.
    """
    yield request.param
    if request.param not in SHARED:
        network.cache_clear()
        evaluated.cache_clear()


def test_every_endpoint_equals_the_source(name: str):
    out, golden = evaluated(name), read(name)
    results = {"logits": out.logits, "features": out.features, **out.endpoints}
    assert {end: array.shape for end, array in results.items()} == golden.shapes
    errors = {
        end: float(np.abs(sampled(array, samples(end)) - golden.values[end]).max())
        / golden.largest[end]
        for end, array in results.items()
    }
    assert all(value <= 1e-5 for value in errors.values()), {
        k: v for k, v in errors.items() if not v <= 1e-5
    }


def test_a_spec_has_the_endpoints_features_and_parameters_of_its_network(name: str):
    spec, out = backbones.get(name), evaluated(name)
    assert set(spec.endpoints) == {end for end in out.endpoints if "/" not in end}
    sides = [out.endpoints[end].shape[1] for end in spec.endpoints]
    assert sides == sorted(sides, reverse=True), (
        "endpoints are not in the order of the forward pass"
    )
    assert out.features.shape == (2, spec.features) and out.features.dtype == np.float32
    leaves = flatten(network(name).variables)
    assert all(leaf.dtype == np.float32 for leaf in leaves.values())
    published = heads.own(spec)(1000)
    head = jax.eval_shape(published.init, jax.random.key(0), out.features, out.endpoints)
    backbone = sum(
        leaf.size for path, leaf in leaves.items() if path.startswith("params/backbone/")
    )
    assert backbone + sum(leaf.size for leaf in flatten(head).values()) == PARAMETERS[name]
    if name == "vgg16":  # the published size of VGG-16 without its classifier
        assert backbone == 14_714_688


QUICK_TRAINING = ("mobilenetv3_small_050", "mobilenetv1_025_keras")
QUICK_FOLDING = ("vgg11_bn", "mobilenetv1_025_keras")
QUICK_SIZES = ("resnet18", "mobilenetv1_025_keras", "mobilenetv2_035_keras")  # every padding


@pytest.mark.parametrize("name", quick_first(REPRESENTATIVES, QUICK_TRAINING))
def test_training_mode_equals_the_source_in_features_and_new_statistics(name: str):
    clf, variables, table, _ = network(name)
    out, golden = compiled(clf, Mode.TRAIN)(variables, golden_images()), read(name)
    # The last statistics are computed from 18 numbers per channel.
    assert error(sampled(out.features), golden.features) < 1e-4
    statistics = flatten({"batch_stats": out.stats})
    assert set(statistics) == {
        path for path in flatten(variables) if path.startswith("batch_stats/")
    }
    stats = {
        source: statistics[target.path]
        for source, target in table.items()
        if source.endswith(STATISTICS)
    }
    np.testing.assert_allclose(joined(stats), golden.stats, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", quick_first(REPRESENTATIVES, QUICK_FOLDING))
def test_folding_gives_the_same_network_without_batchnorm(name: str):
    clf, variables, _, _ = network(name)
    folded = clf.fold_batch_norm(variables)
    assert not flatten(folded["batch_stats"]) and len(flatten(folded)) < len(flatten(variables))
    assert digest(clf.fold_batch_norm(folded)) == digest(folded)
    out, expected = compiled(clf)(folded, golden_images()), evaluated(name)
    assert error(out.logits, expected.logits) <= 1e-5
    assert error(out.features, expected.features) <= 1e-5


@pytest.mark.parametrize("name", quick_first(CHEAP, ["mobilenetv1_025_keras"]))
def test_a_folded_network_has_no_training_mode(name: str):
    clf, variables, _, _ = network(name)
    folded = clf.fold_batch_norm(variables)
    out = compiled(clf, Mode.TRAIN)(folded, golden_images())
    assert error(out.logits, evaluated(name).logits) <= 1e-5 and not flatten(out.stats)


@pytest.mark.parametrize("name", quick_first(SHARED, ["mobilenetv1_025_keras"]))
def test_bfloat16_is_close_and_its_outputs_are_float32(name: str):
    clf, variables, _, _ = network(name)
    out, expected = (
        compiled(clf.with_dtype("bfloat16"))(variables, golden_images()),
        evaluated(name),
    )
    assert out.logits.dtype == out.features.dtype == jnp.float32
    assert out.endpoints[clf.spec.endpoints[0]].dtype == jnp.bfloat16
    distance = [
        float(np.abs(a - b).max() / np.abs(b).max())
        for a, b in ((out.logits, expected.logits), (out.features, expected.features))
    ]
    assert 1e-6 < max(distance) < 0.03


@pytest.mark.parametrize(
    "name", quick_first(["resnet18", "mobilenetv1_025_keras"], ["mobilenetv1_025_keras"])
)
def test_a_network_for_gray_images_equals_that_for_three_equal_channels(name: str, tmp_path: Path):
    net = network(name)
    save_file(
        {source: np.ascontiguousarray(array) for source, array in net.arrays.items()},
        tmp_path / "w",
    )
    gray, variables = load(name, weights=tmp_path / "w", in_channels=1)
    images = golden_images()[..., :1]
    same = dataclasses.replace(
        net.clf, pixels=PixelSpec(mean=gray.pixels.mean * 3, std=gray.pixels.std * 3)
    )
    expected = compiled(same)(net.variables, np.repeat(images, 3, axis=3))
    assert error(compiled(gray)(variables, images).logits, np.asarray(expected.logits)) <= 1e-5


def test_a_fourth_input_channel_repeats_the_first_and_keeps_the_scale(tmp_path: Path):
    name = "mobilenetv1_025_keras"
    net = network(name)
    save_file(
        {source: np.ascontiguousarray(array) for source, array in net.arrays.items()},
        tmp_path / "w",
    )
    _, variables = load(name, weights=tmp_path / "w", in_channels=4)
    kernel, three = (
        np.asarray(v["params"]["backbone"]["stem"]["kernel"]) for v in (variables, net.variables)
    )
    np.testing.assert_allclose(kernel[:, :, 3], kernel[:, :, 0])
    np.testing.assert_allclose(kernel[:, :, :3], three * 0.75, rtol=1e-6)


@pytest.mark.parametrize("name", quick_first(CHEAP, ["mobilenetv1_025_keras"]))
def test_eval_mode_changes_no_bit_of_the_statistics(name: str):
    assert digest(evaluated(name).stats) == digest(network(name).variables["batch_stats"])


@pytest.mark.parametrize("name", quick_first(CHEAP, ["mobilenetv1_025_keras"]))
def test_eval_mode_computes_each_image_of_a_batch_alone(name: str):
    clf, variables, _, _ = network(name)
    first = evaluated(name)
    images = golden_images()
    other = compiled(clf)(variables, np.stack([np.zeros_like(images[0]), images[0]]))
    for end in ("stem", "stage1"):
        assert error(other.endpoints[end][1], first.endpoints[end][0]) <= 1e-5
        assert error(other.endpoints[end][0], first.endpoints[end][0]) > 1e-2
    assert error(other.logits[1], first.logits[0]) <= 1e-5


@pytest.mark.parametrize("name", quick_first(REPRESENTATIVES, QUICK_SIZES))
@pytest.mark.parametrize("more_height, more_width", [(0, 0), (1, 130)])
def test_every_size_from_the_smallest_up_is_accepted(name: str, more_height: int, more_width: int):
    clf = classifier(name)
    small, variables = clf.spec.min_size, jax.eval_shape(clf.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((3, small + more_height, small + more_width, 3), jnp.float32)
    out = jax.eval_shape(clf.apply, variables, images)
    assert out.logits.shape == (3, CLASSES) and out.features.shape == (3, clf.spec.features)
    assert all(0 not in end.shape for end in out.endpoints.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("less_height, less_width", [(1, 0), (0, 1)])
def test_a_smaller_image_is_an_error(name: str, less_height: int, less_width: int):
    clf = classifier(name)
    h, w = clf.spec.min_size - less_height, clf.spec.min_size - less_width
    message = (
        rf"too small for {name}: got .*{h}, {w}.*, expected at least {clf.spec.min_size} pixel"
    )
    with pytest.raises(ValueError, match=message):
        clf.apply({}, np.zeros((1, h, w, 3), np.float32))


def test_names_aliases_and_forms_are_consistent():
    assert len(set(NAMES)) == len(NAMES)
    for name in NAMES:
        assert backbones.get(name).name == name
        assert all(backbones.get(alias).name == name for alias in backbones.get(name).aliases)
        assert backbones.forms(name)[0].name == name
    aliases = [alias for name in NAMES for alias in backbones.get(name).aliases]
    assert len(set(aliases) | set(NAMES)) == len(aliases) + len(NAMES), (
        "an alias belongs to two architectures"
    )


def test_an_unknown_architecture_names_the_nearest():
    with pytest.raises(ValueError, match="unknown architecture 'resnet5o'; nearest: 'resnet50'"):
        backbones.get("resnet5o")


@pytest.mark.parametrize("name", NAMES)
def test_every_source_names_every_endpoint_and_every_variable_once(name: str):
    spec = backbones.get(name)
    for source, form in tables.sources(spec).items():
        table, bare = (form.table(spec.module, head=head) for head in (True, False))
        assert len({target.path for target in table.values()}) == len(table), source
        assert {path for path in bare if path in table} == set(bare), source
        if spec.sources[source]:
            assert {end.partition("/")[0] for end in form.endpoints(spec.module)} == set(
                spec.endpoints
            ), source


def test_there_is_one_small_golden_file_per_architecture():
    assert sum(file.stat().st_size for file in Path(HERE).glob("*.npz")) < 1_000_000
    assert {file.stem for file in Path(HERE).glob("*.npz")} == set(NAMES), (
        "a golden file without an architecture, or an architecture without a golden file"
    )


# --- BatchNorm of one layer, against the formula ----------------------------------------------


@pytest.mark.parametrize(
    "eps, momentum, unbiased", [(1e-5, 0.1, True), (1e-3, 0.1, True), (1.001e-5, 0.01, False)]
)
def test_batchnorm_equals_its_formula(eps: float, momentum: float, unbiased: bool):
    rng = np.random.RandomState(1)
    x = rng.standard_normal((3, 5, 4, 2)).astype(np.float32)
    layer = ConvNorm(2, 1, norm=NormSpec(eps, momentum, unbiased))
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
    np.testing.assert_allclose(
        out, (wide - old_mean) / np.sqrt(old_var + eps) * scale + bias, rtol=1e-5, atol=1e-5
    )

    out, updates = layer.apply(variables, x, Mode.TRAIN, mutable=["batch_stats"])
    mean, var, n = wide.mean((0, 1, 2)), wide.var((0, 1, 2)), 3 * 5 * 4
    np.testing.assert_allclose(
        out, (wide - mean) / np.sqrt(var + eps) * scale + bias, rtol=1e-5, atol=1e-5
    )
    stats = updates["batch_stats"]["norm"]
    np.testing.assert_allclose(
        stats["mean"], (1 - momentum) * old_mean + momentum * mean, rtol=1e-5
    )
    running = var * n / (n - 1) if unbiased else var
    np.testing.assert_allclose(
        stats["var"], (1 - momentum) * old_var + momentum * running, rtol=1e-5
    )


def test_batchnorm_with_a_large_mean_is_accurate():
    """E[x^2] - E[x]^2 in float32 would lose all digits of the variance here."""
    x = (1000.0 + np.random.RandomState(2).standard_normal((2, 8, 8, 1))).astype(np.float32)
    layer = ConvNorm(1, 1)
    variables = layer.init(jax.random.key(0), x, Mode.EVAL)
    variables = {
        **variables,
        "params": {**variables["params"], "kernel": np.ones((1, 1, 1, 1), np.float32)},
    }
    out, _ = layer.apply(variables, x, Mode.TRAIN, mutable=["batch_stats"])
    wide = x.astype(np.float64)
    np.testing.assert_allclose(out, (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5), atol=2e-3)


def test_gradients_of_the_folded_form_equal_those_of_the_unfolded_form():
    """In `Mode.EVAL` the norm is folded into the kernel, which must not change gradients."""
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
        y = jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), ((1, 1), (1, 1)), dimension_numbers=dims
        )
        y = (y - stats["norm"]["mean"][None, None, None]) / jnp.sqrt(stats["norm"]["var"] + 1e-5)[
            None, None, None
        ]
        return jnp.sum(
            jnp.sin(
                y * params["norm"]["scale"][None, None, None]
                + params["norm"]["bias"][None, None, None]
            )
        )

    both = jax.jit(
        lambda params, x: [jax.grad(f, argnums=(0, 1))(params, x) for f in (folded, unfolded)]
    )
    actual, expected = both(variables["params"], x)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, actual, expected)


# --- modules with other numbers than the zoo's, as a new variant would have --------------------

TWO_STAGES = ((Row(1, 4, 1, 1),), (Row(2, 8, 2, 2, 5, squeeze=True),))


@pytest.mark.parametrize(
    "module, side, last",
    [
        (ResNet((1, 1, 1, 1), BasicBlock), 33, 512),
        (ResNet((1, 1, 1, 1), Bottleneck), 32, 2048),
        (InvertedResidualNet(TWO_STAGES, stem=4, top=8), 17, 8),
        (InvertedResidualNet(TWO_STAGES, stem=4, top=8, padding="same"), 17, 8),
        (InvertedResidualNet(TWO_STAGES, stem=4, top=0, padding="after", separable=True), 17, 8),
    ],
)
def test_modules_accept_other_depths_and_widths(module: Any, side: int, last: int):
    def forward(key: jax.Array, x: jax.Array) -> Any:
        return module.apply(module.init(key, x, Mode.EVAL), x, Mode.EVAL)

    features, ends = jax.eval_shape(
        forward, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    )
    assert features.shape == (1, last)
    assert ends["stem"].shape[1] == -(-side // 2)  # both paddings give ceil(side / 2)


def test_fresh_kernels_equal_jaxs_he_normal():
    key, shape = jax.random.key(5), (3, 3, 8, 20)
    init = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    np.testing.assert_allclose(he_normal(key, shape), init(key, shape, jnp.float32), rtol=1e-6)


@settings(max_examples=50)
@given(
    st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 2])
)
def test_torch_and_same_padding_differ_only_in_the_side_of_the_odd_pixel(
    h: int, w: int, window: int, stride: int
):
    for padding in ("torch", "same"):  # "after" gives odd sizes one output less, as in Keras
        for size, (before, after) in zip(
            (h, w), pads((h, w), window, stride, padding), strict=True
        ):
            assert (size + before + after - window) // stride + 1 == -(-size // stride)
            assert padding == "torch" or 0 <= after - before <= 1
            assert padding == "same" or before == after == window // 2


def test_a_scaled_kernel_has_the_gradients_of_the_product():
    rng = np.random.RandomState(0)
    kernel, gain, g = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((3, 3, 4, 5), (5,), (3, 3, 4, 5))
    )
    value, back = jax.vjp(scaled, kernel, gain)
    np.testing.assert_array_equal(value, kernel * gain)
    tangent = jax.jvp(scaled, (kernel, gain), (g, 2 * gain))[1]
    np.testing.assert_allclose(tangent, (g + 2 * kernel) * gain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(back(g)[0], g * gain, rtol=1e-6)
    np.testing.assert_allclose(
        back(g)[1], (g.astype(np.float64) * kernel).sum((0, 1, 2)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("mode", [Mode.EVAL, pytest.param(Mode.TRAIN, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "name", quick_first(toys.TOYS, toys.TOYS.keys() - {"toy_mobilenet", "toy_vgg_bn"})
)
def test_forward_mode_is_the_transpose_of_reverse_mode_at_every_order(name: str, mode: Mode):
    clf, variables = toys.classifier(name, 3)
    images01 = toys.noise(2, 32, 32, 3).astype(np.float32) / 255
    point = (variables["params"], images01)
    rng = np.random.default_rng(1)
    draw = lambda tree: jax.tree.map(
        lambda leaf: 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), tree
    )
    u, v = draw(point), draw(point)

    def logits(params: Variables, images01: jax.Array) -> jax.Array:
        return clf.apply({**variables, "params": params}, images01, mode=mode).logits

    @jax.jit
    def products(point: Any, u: Any, v: Any) -> Any:
        y, tangent = jax.jvp(logits, point, u)
        pulled = jax.vjp(logits, *point)[1](y)
        gradient = jax.grad(lambda *point: jnp.sum(jnp.sin(logits(*point))), (0, 1))
        stack = functools.partial(jax.tree.map, lambda a, b: jnp.stack([a, b]))
        hessian = lambda pair: dot(jax.jvp(gradient, point, pair[0])[1], pair[1])
        # A loop, because its body is compiled once.
        return (
            jnp.vdot(y, tangent),
            dot(pulled, u),
            *jax.lax.map(hessian, (stack(u, v), stack(v, u))),
        )

    pushed, pulled, first, second = products(point, u, v)

    # Sums of about 1e5 products of float32 numbers with random signs: 1e-4 of their size.
    assert abs(pushed) > 1e-2 and abs(first) > 1e-2
    np.testing.assert_allclose(pushed, pulled, rtol=1e-3)
    np.testing.assert_allclose(first, second, rtol=1e-3)


def dot(a: Any, b: Any) -> jax.Array:
    return sum(map(jnp.vdot, jax.tree.leaves(a), jax.tree.leaves(b)), jnp.zeros(()))
