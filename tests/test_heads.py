"""`heads` and the classifiers of the architectures: zero at first, shapes by name, torch's adaptive pooling by its rule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tl import backbones, labels, models
from tl.backbones.layers import Dense
from tl.backbones.mobilenet import MobileNetV3Top
from tl.backbones.vgg import VGGTop, adaptive_mean
from tl.models import heads
from tl.models.heads import Flat, Linear, maker, own
from tl.paths import flatten


def test_linear_starts_from_even_odds_and_is_a_matrix_and_a_bias():
    features = np.random.RandomState(0).standard_normal((3, 5)).astype(np.float32)
    head = Linear(4)
    params = head.init(jax.random.key(0), features, {})["params"]
    assert {name: leaf.shape for name, leaf in flatten(params).items()} == {
        "kernel": (5, 4),
        "bias": (4,),
    }
    assert (head.apply({"params": params}, features, {}) == 0).all()
    kernel, bias = np.arange(20, dtype=np.float32).reshape(5, 4), np.float32([1, 2, 3, 4])
    got = head.apply({"params": {"kernel": kernel, "bias": bias}}, features, {})
    np.testing.assert_allclose(
        got, features.astype(np.float64) @ kernel + bias, rtol=1e-5, atol=1e-5
    )


def test_dense_starts_with_the_variance_he_et_al_give():
    kernel = Dense(300).init(jax.random.key(0), np.zeros((1, 400), np.float32))["params"]["kernel"]
    assert kernel.dtype == jnp.float32 and abs(float(jnp.std(kernel)) / np.sqrt(2 / 400) - 1) < 0.01


@pytest.mark.parametrize("side", [7, 1, 9])
def test_vggs_top_reads_the_last_map_row_by_row(side: int):
    rng = np.random.RandomState(1)
    stage5 = rng.standard_normal((2, side, side, 3)).astype(np.float32)
    head = VGGTop(4, width=6)
    variables = head.init(jax.random.key(0), np.zeros((2, 3), np.float32), {"stage5": stage5})
    shapes = {name: leaf.shape for name, leaf in flatten(variables["params"]).items()}
    assert shapes == {
        "fc6/bias": (6,), "fc6/kernel": (147, 6), "fc7/bias": (6,), "fc7/kernel": (6, 6), "fc8/bias": (4,), "fc8/kernel": (6, 4)
    }  # fmt: skip
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), variables["params"]
    )
    x = by_hand(stage5, 7).reshape(2, -1)
    for name in ("fc6", "fc7"):
        x = np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
    want = x @ params["fc8"]["kernel"] + params["fc8"]["bias"]
    got = head.apply(
        {"params": params}, np.full((2, 3), np.nan, np.float32), {"stage5": stage5}
    )  # features are not used
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def by_hand(x: np.ndarray, size: int) -> np.ndarray:
    """torch's rule: bin i runs from floor(i n / size) to ceil((i + 1) n / size)."""
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
def test_adaptive_mean_is_torchs(h: int, w: int, size: int):
    x = np.random.RandomState(h * 100 + w).standard_normal((2, h, w, 2)).astype(np.float32)
    np.testing.assert_allclose(
        adaptive_mean(jnp.asarray(x), size), by_hand(x, size), rtol=1e-5, atol=1e-6
    )


def test_flat_reads_the_last_map_row_by_row():
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
    got = head.apply({"params": {"kernel": kernel, "bias": np.ones(1, np.float32)}}, features, ends)
    np.testing.assert_allclose(
        got, last.reshape(2, -1).astype(np.float64) @ kernel + 1, rtol=1e-5, atol=1e-4
    )


def test_mobilenet_v3s_top_is_dense_hard_swish_dense():
    features = np.random.RandomState(4).standard_normal((3, 5)).astype(np.float32) * 4
    head = MobileNetV3Top(2, width=6)
    params = head.init(jax.random.key(0), features, {})["params"]
    params = jax.tree.map(
        lambda a: np.random.RandomState(a.size).standard_normal(a.shape).astype(np.float32), params
    )
    hidden = features.astype(np.float64) @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    hidden = hidden * np.clip(hidden + 3, 0, 6) / 6
    want = hidden @ params["logits"]["kernel"] + params["logits"]["bias"]
    np.testing.assert_allclose(
        head.apply({"params": params}, features, {}), want, rtol=1e-5, atol=1e-4
    )


def test_heads_by_name():
    resnet, vgg = backbones.get("resnet18"), backbones.get("vgg16")
    assert (own(resnet), maker("own", vgg), maker("linear", vgg), maker("flat", vgg)) == (
        Linear,
        VGGTop,
        Linear,
        Flat,
    )


@pytest.mark.parametrize("kind", ["linear", "mlp", "concat", "cosine", "flat"])
def test_a_fresh_head_fits_what_the_network_gives_it(kind: str) -> None:
    """Endpoints keep the order of the forward pass, on which `Flat` and `ConcatPool` count."""
    clf, variables = models.load("vgg11", weights="random")
    clf = clf.with_pixels(size=64).with_head(
        heads.maker(kind, clf.spec)(3), labels.from_names("abc", name="letters")
    )
    params = {**variables["params"], "head": clf.init_head(jax.random.key(0))}
    output = clf.apply({**variables, "params": params}, jnp.full((2, 64, 64, 3), 0.5))
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
