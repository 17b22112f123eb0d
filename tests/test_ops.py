"""The CPU forms of `tl.ops` equal lax in values and both gradients; each platform has its form.

Tolerance: both sides sum the same float32 products in another order. The error of a sum of n terms
is about sqrt(n) * 6e-8 of its size; the longest sums here have a few hundred terms, so 1e-5 of the
largest value is ten times the expected error. A wrong tap or a shifted border gives an error of
order one.

Every program is compiled as users compile it. By default one form of each kind is tested, with
--full all forms.
"""

from __future__ import annotations

import re
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from tl import ops

TOLERANCE = 1e-5

pytestmark = pytest.mark.optimized  # the forms were chosen for the programs that XLA compiles

full = pytest.mark.full


def reference(x, kernel, *, stride=1, padding=((0, 0), (0, 0)), groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def normal(seed: int, shape) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def assert_close(actual, expected):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    if expected.size:
        error = float(jnp.max(jnp.abs(actual - expected)))
        assert error <= TOLERANCE * max(float(jnp.max(jnp.abs(expected))), 1e-3), error


def check_conv(x_shape, k_shape, **options):
    # Outputs are of order one, because `sin` would amplify the rounding of large ones.
    x, kernel = normal(0, x_shape), normal(1, k_shape) / max(np.prod(k_shape[:3]), 1) ** 0.5

    @partial(jax.jit, static_argnums=0)
    def all_three(conv, x, kernel):
        y, pull = jax.vjp(partial(conv, **options), x, kernel)
        return y, *pull(jnp.sin(3.0 * y))

    actual, expected = all_three(ops.conv2d, x, kernel), all_three(reference, x, kernel)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b)


# (shape of x, shape of the kernel, options) of each form for a CPU.
SAME3 = ((1, 1), (1, 1))
FORMS = {
    "pointwise": ((2, 6, 5, 4), (1, 1, 4, 7), {}),
    "pointwise stride 2": ((2, 7, 6, 4), (1, 1, 4, 3), {"stride": 2}),
    "pointwise one channel": (
        (1, 5, 5, 1),
        (1, 1, 1, 1),
        {"stride": 2, "padding": ((1, 0), (0, 2))},
    ),
    "depthwise": ((2, 8, 7, 5), (3, 3, 1, 5), {"padding": SAME3, "groups": 5}),
    "depthwise stride 2": (
        (2, 8, 7, 5),
        (3, 3, 1, 5),
        {"padding": SAME3, "groups": 5, "stride": 2},
    ),
    "depthwise TF stride 2": (
        (2, 8, 9, 5),
        (5, 5, 1, 5),
        {"padding": ((1, 2), (2, 2)), "groups": 5, "stride": 2},
    ),
    "depthwise 19 images": ((19, 6, 6, 3), (3, 3, 1, 3), {"padding": SAME3, "groups": 3}),
    "depthwise 20 images": (
        (20, 6, 6, 3),
        (3, 3, 1, 3),
        {"padding": SAME3, "groups": 3, "stride": 2},
    ),
    "depthwise 7x7": ((1, 9, 9, 3), (7, 7, 1, 3), {"padding": ((3, 3), (3, 3)), "groups": 3}),
    "stem 7x7": ((2, 17, 14, 3), (7, 7, 3, 6), {"padding": ((3, 3), (3, 3)), "stride": 2}),
    "stem 3x3": ((2, 8, 9, 3), (3, 3, 3, 6), {"padding": ((0, 1), (0, 1)), "stride": 2}),
    "stem stride 1": ((2, 8, 9, 3), (3, 3, 3, 6), {"padding": SAME3}),
    "dense": ((2, 8, 7, 6), (3, 3, 6, 5), {"padding": SAME3}),
    "dense stride 2": ((2, 8, 7, 6), (3, 3, 6, 5), {"padding": SAME3, "stride": 2}),
    "dense stride 3": ((1, 9, 8, 6), (2, 2, 6, 5), {"stride": 3}),
    "grouped": ((2, 8, 7, 6), (3, 3, 2, 9), {"padding": SAME3, "groups": 3}),
    "grouped stride 2": ((2, 9, 8, 8), (3, 3, 2, 12), {"padding": SAME3, "groups": 4, "stride": 2}),
    "grouped pointwise": ((2, 5, 4, 6), (1, 1, 3, 4), {"groups": 2}),
    "grouped bundles": ((1, 6, 5, 192), (3, 3, 48, 96), {"padding": SAME3, "groups": 4}),
    "winograd 2x2": ((1, 15, 14, 128), (3, 3, 128, 128), {"padding": SAME3}),
    "winograd 2x4": ((2, 14, 19, 130), (3, 3, 130, 129), {"padding": ((1, 2), (0, 3))}),
    "winograd no padding": ((1, 18, 22, 128), (3, 3, 128, 128), {}),
    "winograd kernel gradient": ((3, 16, 17, 6), (3, 3, 6, 5), {"padding": SAME3}),
    "depth multiplier": ((2, 8, 7, 3), (3, 3, 1, 6), {"padding": SAME3, "groups": 3}),
}


QUICK = {
    "pointwise stride 2",
    "depthwise stride 2",
    "stem 3x3",
    "dense",
    "grouped bundles",
    "winograd 2x4",
    "winograd kernel gradient",
}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=full) for name in FORMS]
)
def test_forms_equal_lax(name):
    x_shape, k_shape, options = FORMS[name]
    check_conv(x_shape, k_shape, **options)


@full
@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_any_shape_equals_lax(data):
    draw = data.draw
    kind = draw(st.sampled_from(["depthwise", "dense", "pointwise"]))
    kh, kw = (1, 1) if kind == "pointwise" else (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    pad = st.tuples(st.integers(0, 3), st.integers(0, 3))
    c, out = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    k_shape, groups = ((kh, kw, 1, c), c) if kind == "depthwise" else ((kh, kw, c, out), 1)
    x_shape = (
        draw(st.integers(1, 3)),
        kh + draw(st.integers(0, 6)),
        kw + draw(st.integers(0, 6)),
        c,
    )
    check_conv(
        x_shape,
        k_shape,
        stride=draw(st.integers(1, 3)),
        padding=(draw(pad), draw(pad)),
        groups=groups,
    )


@pytest.mark.parametrize(
    "name",
    [
        "depthwise stride 2",
        *(
            pytest.param(name, marks=full)
            for name in (
                "pointwise stride 2",
                "stem 3x3",
                "dense stride 2",
                "grouped",
                "winograd kernel gradient",
            )
        ),
    ],
)
def test_gradient_of_gradient_vmap_and_checkpoint_equal_lax(name):
    x_shape, k_shape, options = FORMS[name]
    x, kernel = normal(0, x_shape), normal(1, k_shape)

    def loss(conv, x, kernel):
        return jnp.sum(jnp.sin(conv(x, kernel, **options)))

    def penalty(conv, x, kernel):
        return sum(jnp.sum(d**2) for d in jax.grad(partial(loss, conv), (0, 1))(x, kernel))

    def derivatives(conv):
        gradient = jax.grad(jax.checkpoint(lambda x: loss(conv, x[None], kernel)))
        per_example = jax.vmap(gradient)(x)
        return *jax.grad(partial(penalty, conv), (0, 1))(x, kernel), per_example

    run = jax.jit(derivatives, static_argnums=0)
    for actual, expected in zip(run(ops.conv2d), run(reference), strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize(
    "name", ["winograd kernel gradient", pytest.param("winograd 2x4", marks=full)]
)
def test_winograd_in_blocks_of_images_equals_lax(name, monkeypatch):
    monkeypatch.setattr(ops.winograd, "_BLOCK", 1)
    x_shape, k_shape, options = FORMS[name]
    ops.forms.cache_clear()  # the forms with the other block size
    check_conv((4, *x_shape[1:]), k_shape, **options)
    ops.forms.cache_clear()


def test_layers_of_equal_shapes_are_traced_once(monkeypatch):
    traced = []
    correlate = ops.winograd.correlate
    monkeypatch.setattr(
        ops.winograd, "correlate", lambda *args: traced.append(1) or correlate(*args)
    )
    ops.forms.cache_clear()
    kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.float32)
    layer = partial(ops.conv2d, padding=SAME3)
    jax.eval_shape(
        lambda x, *kernels: reduce(layer, kernels, x),
        jax.ShapeDtypeStruct((1, 16, 16, 128), jnp.float32),
        kernel,
        kernel,
        kernel,
    )
    ops.forms.cache_clear()
    assert len(traced) == 1


def test_winograd_has_the_error_of_a_direct_sum():
    x, kernel = (
        np.abs(np.asarray(normal(0, (1, 16, 16, 256)))),
        np.asarray(normal(1, (3, 3, 256, 128))),
    )
    wide = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(
        wide[:, i : i + 16, j : j + 16] @ kernel[i, j].astype(np.float64)
        for i in range(3)
        for j in range(3)
    )
    actual = ops.conv2d(jnp.asarray(x), jnp.asarray(kernel), padding=SAME3)
    assert np.max(np.abs(actual - expected)) <= 3e-6 * np.max(np.abs(expected))


@pytest.mark.parametrize(
    "name",
    [
        "depthwise stride 2",
        "dense",
        *(
            pytest.param(name, marks=full)
            for name in ("pointwise", "stem 3x3", "dense stride 2", "grouped")
        ),
    ],
)
def test_bfloat16_sums_in_float32(name):
    x_shape, k_shape, options = FORMS[name]
    x, kernel = normal(0, x_shape).astype(jnp.bfloat16), normal(1, k_shape).astype(jnp.bfloat16)

    @jax.jit
    def all_three(x, kernel):
        y, pull = jax.vjp(partial(ops.conv2d, **options), x, kernel)
        return y, *pull(jnp.ones_like(y))

    half = all_three(x, kernel)
    single = all_three(x.astype(jnp.float32), kernel.astype(jnp.float32))
    for actual, expected in zip(half, single, strict=True):
        assert actual.dtype == jnp.bfloat16
        # One rounding to 8 bits; sums in bfloat16 would have several.
        np.testing.assert_allclose(np.asarray(actual, np.float32), expected, rtol=2**-8, atol=1e-5)


def test_max_pool_in_bfloat16_equals_lax():
    x = normal(0, (2, 9, 8, 3)).astype(jnp.bfloat16)

    def both(pool):
        y, pull = jax.vjp(partial(pool, window=3, stride=2, padding=SAME3), x)
        return y, pull(jnp.ones_like(y))[0]

    for actual, expected in zip(both(ops.max_pool), both(lax_pool), strict=True):
        assert actual.dtype == jnp.bfloat16
        np.testing.assert_array_equal(actual.astype(jnp.float32), expected.astype(jnp.float32))


def test_two_dtypes_are_an_error():
    with pytest.raises(ValueError, match="expected one dtype"):
        ops.conv2d(jnp.zeros((1, 4, 4, 2), jnp.bfloat16), jnp.zeros((3, 3, 2, 2)))


def hlo(name: str) -> str:
    x_shape, k_shape, options = FORMS[name]

    def both(x, kernel):
        return jax.grad(lambda x, k: jnp.sum(ops.conv2d(x, k, **options) ** 2), (0, 1))(x, kernel)

    return str(jax.jit(both).lower(normal(0, x_shape), normal(1, k_shape)).compile().as_text())


def test_a_cpu_program_contains_only_the_cpu_form():
    text = hlo("depthwise stride 2")
    assert not re.search(r"feature_group_count|conditional|convolution\(", text)
    assert "conditional" not in hlo("dense stride 2")


@pytest.mark.parametrize("platforms", [["tpu"], ["cuda"], ["cpu", "tpu"]])
def test_other_platforms_get_the_plain_convolution(platforms):
    x_shape, k_shape, options = FORMS["depthwise stride 2"]

    def dx(x, kernel):
        return jax.grad(lambda x: jnp.sum(ops.conv2d(x, kernel, **options) ** 2))(x)

    exported = jax.export.export(jax.jit(dx), platforms=platforms)(
        jax.ShapeDtypeStruct(x_shape, jnp.float32), jax.ShapeDtypeStruct(k_shape, jnp.float32)
    )
    text = exported.mlir_module()
    assert "feature_group_count = 5" in text
    # The CPU form interleaves its phases.
    assert ("stablehlo.concatenate" in text) == ("cpu" in platforms)
    if "cpu" in platforms:
        x, kernel = normal(0, x_shape), normal(1, k_shape)
        assert_close(exported.call(x, kernel), dx(x, kernel))


# --- pooling ----------------------------------------------------------------------------------

POOLS = [
    (2, 2, ((0, 0), (0, 0))),
    (3, 2, SAME3),
    (3, 2, ((0, 1), (0, 1))),
    (3, 1, SAME3),
    (2, 3, ((0, 0), (1, 0))),
]


def lax_pool(x, *, window, stride, padding):
    pads = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(
        x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), pads
    )


@pytest.mark.parametrize("levels", [None, 2], ids=["distinct", "ties"])
@pytest.mark.parametrize(
    "window,stride,padding", [*POOLS[:2], *(pytest.param(*pool, marks=full) for pool in POOLS[2:])]
)
def test_max_pool_equals_lax_with_and_without_ties(window, stride, padding, levels):
    x = normal(0, (2, 9, 8, 3))
    x = x if levels is None else jnp.floor(x) % levels

    def both(pool):
        y, pull = jax.vjp(partial(pool, window=window, stride=stride, padding=padding), x)
        return y, pull(normal(1, y.shape))[0]

    (y, dx), (y_lax, dx_lax) = both(ops.max_pool), both(lax_pool)
    np.testing.assert_array_equal(y, y_lax)
    assert_close(dx, dx_lax)


def test_the_gradient_of_a_tie_goes_to_the_first_pixel():
    dx = jax.grad(lambda x: jnp.sum(ops.max_pool(x, window=2, stride=2)))(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1.0, 0.0], [0.0, 0.0]])


def test_max_pool_has_second_derivatives_under_vmap():
    x = normal(0, (2, 7, 7, 3))

    def derivatives(pool):
        def loss(x):
            return jnp.sum(pool(x[None], window=3, stride=2, padding=SAME3) ** 3)

        return jax.jit(jax.vmap(jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))))(x)

    assert_close(derivatives(ops.max_pool), derivatives(lax_pool))


def test_the_max_pool_gradient_on_a_cpu_has_no_select_and_scatter():
    lowered = jax.jit(jax.grad(lambda x: jnp.sum(ops.max_pool(x, window=2, stride=2)))).lower(
        normal(0, (1, 4, 4, 1))
    )
    assert "select-and-scatter" not in str(lowered.compile().as_text())


# --- other functions --------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    h=st.integers(1, 40), w=st.integers(1, 40), window=st.integers(1, 7), stride=st.integers(1, 3)
)
def test_same_padding_follows_the_rule_of_lax(h, w, window, stride):
    expected = lax.padtype_to_pads((h, w), (window, window), (stride, stride), "SAME")
    assert ops.same_padding((h, w), window=window, stride=stride) == tuple(
        tuple(int(n) for n in p) for p in expected
    )


def test_global_mean_is_the_mean_over_height_and_width():
    x = normal(0, (2, 3, 5, 4))
    np.testing.assert_allclose(ops.global_mean(x), np.asarray(x).mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k_shape,groups", [((3, 3, 4, 2), 1), ((3, 3, 3, 3), 2), ((3, 3, 6), 1)])
def test_shapes_that_do_not_fit_are_an_error(k_shape, groups):
    with pytest.raises(ValueError, match="expected"):
        ops.conv2d(jnp.zeros((1, 8, 8, 6)), jnp.zeros(k_shape), groups=groups)
