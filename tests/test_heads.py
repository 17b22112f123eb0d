"""`tl.models.heads` and the classifiers of the architectures, against their formulas."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import toys
from tl import backbones, labels
from tl.backbones.layers import Dense
from tl.backbones.mobilenet import MobileNetV3Top
from tl.backbones.vgg import VGGTop, adaptive_mean
from tl.models import classifier, heads
from tl.models.heads import Flat, Linear, maker, own
from tl.paths import flatten


def test_linear_starts_at_zero_and_is_an_affine_map():
    features = np.random.RandomState(0).standard_normal((3, 5)).astype(np.float32)
    head = Linear(4)
    params = head.init(jax.random.key(0), features, {})["params"]
    assert {name: leaf.shape for name, leaf in flatten(params).items()} == {
        "kernel": (5, 4),
        "bias": (4,),
    }
    assert (head.apply({"params": params}, features, {}) == 0).all()
    kernel, bias = np.arange(20, dtype=np.float32).reshape(5, 4), np.float32([1, 2, 3, 4])
    logits = head.apply({"params": {"kernel": kernel, "bias": bias}}, features, {})
    np.testing.assert_allclose(
        logits, features.astype(np.float64) @ kernel + bias, rtol=1e-5, atol=1e-5
    )


def test_dense_starts_with_the_variance_of_he_et_al():
    kernel = Dense(300).init(jax.random.key(0), np.zeros((1, 400), np.float32))["params"]["kernel"]
    assert kernel.dtype == jnp.float32 and abs(float(jnp.std(kernel)) / np.sqrt(2 / 400) - 1) < 0.01


@pytest.mark.parametrize("side", [7, 9, pytest.param(1, marks=pytest.mark.full)])
def test_vgg_top_equals_dense_layers_on_the_map_flattened_by_rows(side: int):
    rng = np.random.RandomState(1)
    stage5 = rng.standard_normal((2, side, side, 3)).astype(np.float32)
    head = VGGTop(4, width=6)
    variables = head.init(jax.random.key(0), np.zeros((2, 3), np.float32), {"stage5": stage5})
    shapes = {name: leaf.shape for name, leaf in flatten(variables["params"]).items()}
    assert shapes == {
        "fc6/kernel": (147, 6),
        "fc6/bias": (6,),
        "fc7/kernel": (6, 6),
        "fc7/bias": (6,),
        "fc8/kernel": (6, 4),
        "fc8/bias": (4,),
    }
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), variables["params"]
    )
    x = adaptive_mean_by_loops(stage5, 7).reshape(2, -1)
    for name in ("fc6", "fc7"):
        x = np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
    expected = x @ params["fc8"]["kernel"] + params["fc8"]["bias"]
    unused = np.full((2, 3), np.nan, np.float32)
    logits = head.apply({"params": params}, unused, {"stage5": stage5})
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def adaptive_mean_by_loops(x: np.ndarray, size: int) -> np.ndarray:
    """torch's rule: bin i covers floor(i n / size) to ceil((i + 1) n / size)."""
    out = np.zeros((len(x), size, size, x.shape[3]))
    for i in range(size):
        for j in range(size):
            rows = slice(
                int(np.floor(i * x.shape[1] / size)), int(np.ceil((i + 1) * x.shape[1] / size))
            )
            cols = slice(
                int(np.floor(j * x.shape[2] / size)), int(np.ceil((j + 1) * x.shape[2] / size))
            )
            out[:, i, j] = x[:, rows, cols].astype(np.float64).mean((1, 2))
    return out


@settings(max_examples=8)  # each size compiles
@given(h=st.integers(1, 20), w=st.integers(1, 20), size=st.sampled_from([1, 3, 7]))
def test_adaptive_mean_follows_the_rule_of_torch(h: int, w: int, size: int):
    x = np.random.RandomState(h * 100 + w).standard_normal((2, h, w, 2)).astype(np.float32)
    expected = adaptive_mean_by_loops(x, size)
    np.testing.assert_allclose(adaptive_mean(jnp.asarray(x), size), expected, rtol=1e-5, atol=1e-6)


def test_flat_is_a_dense_layer_on_the_last_map_flattened_by_rows():
    last = np.random.RandomState(3).standard_normal((2, 2, 3, 4)).astype(np.float32)
    features = np.zeros((2, 4), np.float32)
    head = Flat(1)
    ends = {"stem": np.full((2, 5, 5, 1), np.nan, np.float32), "stage5": last}
    params = head.init(jax.random.key(0), features, ends)["params"]
    assert (
        params["kernel"].shape == (24, 1)
        and (head.apply({"params": params}, features, ends) == 0).all()
    )
    kernel = np.arange(24, dtype=np.float32)[:, None]
    params = {"kernel": kernel, "bias": np.ones(1, np.float32)}
    np.testing.assert_allclose(
        head.apply({"params": params}, features, ends),
        last.reshape(2, -1).astype(np.float64) @ kernel + 1,
        rtol=1e-5,
        atol=1e-4,
    )


def test_mobilenet_v3_top_is_dense_hard_swish_dense():
    features = np.random.RandomState(4).standard_normal((3, 5)).astype(np.float32) * 4
    head = MobileNetV3Top(2, width=6)
    params = head.init(jax.random.key(0), features, {})["params"]
    params = jax.tree.map(
        lambda a: np.random.RandomState(a.size).standard_normal(a.shape).astype(np.float32), params
    )
    hidden = features.astype(np.float64) @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    hidden = hidden * np.clip(hidden + 3, 0, 6) / 6
    expected = hidden @ params["logits"]["kernel"] + params["logits"]["bias"]
    logits = head.apply({"params": params}, features, {})
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4)


def test_maker_returns_the_constructor_of_a_kind():
    resnet, vgg = backbones.get("resnet18"), backbones.get("vgg16")
    assert (own(resnet), maker("own", vgg), maker("linear", vgg), maker("flat", vgg)) == (
        Linear,
        VGGTop,
        Linear,
        Flat,
    )


@pytest.mark.parametrize("kind", ["linear", "mlp", "concat", "cosine", "flat"])
def test_fresh_head_parameters_fit_the_outputs_of_the_network(kind: str) -> None:
    """Endpoints keep the forward order, because `Flat` and `ConcatPool` read the last one."""
    clf, variables = toys.classifier("toy_vgg")
    clf = clf.with_head(heads.maker(kind, clf.spec)(3), labels.from_names("abc", name="letters"))
    params = {**variables["params"], "head": clf.init_head(jax.random.key(0))}
    images = jnp.full((2, 32, 32, 3), 0.5)
    output = jax.jit(clf.apply)({**variables, "params": params}, images)
    assert (
        output.logits is not None
        and output.logits.shape == (2, 3)
        and jnp.isfinite(output.logits).all()
    )
    assert heads.kind(clf.head) == kind
    if heads.pooled(clf.head):
        np.testing.assert_allclose(
            clf.apply_head({"params": params}, output.features), output.logits, rtol=1e-5, atol=1e-6
        )


def test_an_unknown_head_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown head 'liner'; nearest: 'linear'"):
        heads.maker("liner", backbones.get("vgg11"))


@pytest.mark.parametrize("kind", ["", "linear", "concat", "flat"])
def test_shapes_and_new_heads_come_from_one_trace_of_the_backbone(monkeypatch, kind: str) -> None:
    clf, variables = toys.classifier("toy_vgg_bn")
    head = heads.maker(kind, clf.spec)(3) if kind else None
    table = labels.from_names("abc", name="letters") if kind else None
    clf = dataclasses.replace(clf, head=head, classes=table)
    expected = jax.eval_shape(clf.init, jax.random.key(0))
    traces, trace = [], type(clf.spec.module).init_with_output
    counted = lambda *args: (traces.append(args), trace(*args))[1]
    monkeypatch.setattr(type(clf.spec.module), "init_with_output", counted)
    classifier._traced.cache_clear()
    shapes = clf.shapes()
    leaves = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(t)] for t in (shapes, expected)]
    assert leaves[0] == leaves[1] and jax.tree.structure(shapes) == jax.tree.structure(expected)
    if kind:
        clf.reset_head(variables, key=jax.random.key(1))
    clf.with_pixels(mean=(0.1, 0.2, 0.3)).shapes()
    assert len(traces) == 1
