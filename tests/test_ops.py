"""The CPU forms of `tl.ops` equal lax in values and derivatives; each platform has its form.

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

import conftest
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


def assert_close(actual, expected, tolerance=TOLERANCE):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    if expected.size:
        error = float(jnp.max(jnp.abs(actual - expected)))
        assert error <= tolerance * max(float(jnp.max(jnp.abs(expected))), 1e-3), error


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
    "stem 3x3 wide": ((2, 8, 9, 3), (3, 3, 3, 70), {"padding": SAME3, "stride": 2}),
    "tiny": ((2, 2, 2, 6), (3, 3, 6, 5), {"padding": SAME3}),
    "tiny stride 2": ((2, 2, 3, 6), (3, 3, 6, 5), {"padding": SAME3, "stride": 2}),
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
    "winograd small": ((2, 7, 7, 64), (3, 3, 64, 65), {"padding": SAME3}),
    "winograd no padding": ((1, 18, 22, 128), (3, 3, 128, 128), {}),
    "winograd kernel gradient": ((3, 16, 17, 6), (3, 3, 6, 5), {"padding": SAME3}),
    "depth multiplier": ((2, 8, 7, 3), (3, 3, 1, 6), {"padding": SAME3, "groups": 3}),
}


QUICK = {
    "tiny",
    "stem 7x7",
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
@pytest.mark.parametrize("size", [1, 2])
def test_xla_does_not_exchange_image_and_kernel_of_a_tiny_map(size):
    """XLA's convolution with the image as its kernel takes a hundred times as long on a CPU."""
    x, kernel = jnp.zeros((2, size, size, 128)), jnp.zeros((3, 3, 128, 128))
    conv = jax.jit(partial(ops.conv2d, padding=SAME3))
    assert "rhs_reversal" not in conv.lower(x, kernel).compile().as_text()


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


# float64 has 53 bits: as above, 1e-14 is the error of the longest sums, and ten times that of a sum
# of sums is allowed. A central difference with step h has an error of h^2 = 1e-8 and a rounding
# error of 1e-16 / h = 1e-12, in units of the third derivative and of the value.
TOLERANCE64, STEP, DIFFERENCE = 1e-12, 1e-4, 1e-6


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in QUICK - {"winograd 2x4", "grouped bundles"}
        else pytest.param(name, marks=full)
        for name in FORMS
    ],
)
def test_forward_mode_equals_lax_and_finite_differences_in_float64(name):
    x_shape, k_shape, options = FORMS[name]
    scale = max(np.prod(k_shape[:3]), 1) ** 0.5
    draw = np.random.default_rng(0).standard_normal
    point, direction = [(draw(x_shape), draw(k_shape) / scale) for _ in range(2)]

    @partial(jax.jit, static_argnums=0)
    def derivatives(conv, point, direction):
        conv = partial(conv, **options)
        gradient = jax.grad(lambda *point: jnp.sum(jnp.sin(conv(*point))), (0, 1))
        y, tangent = jax.jvp(conv, point, direction)
        pulled = jax.vjp(conv, *point)[1](y)
        product = jax.jvp(gradient, point, direction)[1]  # forward over reverse
        directional = lambda *point: jax.jvp(
            lambda *point: jnp.sum(jnp.sin(conv(*point))), point, direction
        )[1]
        reverse_over_forward = jax.grad(directional, (0, 1))(*point)
        return y, tangent, pulled, gradient(*point), product, reverse_over_forward

    with jax.enable_x64(True):
        point, direction = jax.tree.map(jnp.asarray, (point, direction))
        actual = derivatives(ops.conv2d, point, direction)
        expected = derivatives(reference, point, direction)
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            assert a.dtype == jnp.float64
            assert_close(a, b, TOLERANCE64)
        y, tangent, pulled, _, product, swapped = actual
        for a, b in zip(product, swapped, strict=True):  # the Hessian is symmetric
            assert_close(a, b, TOLERANCE64)
        along = sum(jnp.vdot(g, t) for g, t in zip(pulled, direction, strict=True))
        assert_close(jnp.vdot(y, tangent), along, TOLERANCE64)  # <y, J t> = <J' y, t>
        moved = [
            derivatives(
                ops.conv2d, jax.tree.map(lambda p, t, h=h: p + h * t, point, direction), direction
            )
            for h in (STEP, -STEP)
        ]
        slope = lambda i: jax.tree.map(lambda a, b: (a - b) / (2 * STEP), moved[0][i], moved[1][i])
        assert_close(tangent, slope(0), DIFFERENCE)
        for a, b in zip(product, slope(3), strict=True):
            assert_close(a, b, DIFFERENCE)


@pytest.mark.parametrize("name", ["depthwise stride 2", pytest.param("dense", marks=full)])
def test_jacobians_and_mapped_kernels_equal_lax(name):
    x_shape, k_shape, options = FORMS[name]
    x, kernel = normal(0, (1, *x_shape[1:])), normal(1, k_shape)
    images, kernels = normal(2, (2, *x.shape)), normal(3, (*k_shape, 2))

    def derivatives(conv):
        conv = partial(conv, **options)
        loss = lambda kernel: jnp.mean(jnp.sin(conv(x, kernel)))
        per_pair = lambda images, kernels: jnp.sum(
            jnp.sin(jax.vmap(jax.vmap(conv, (None, 4)), (0, None))(images, kernels))
        )
        repeated = lambda kernel: jnp.sum(
            jax.lax.scan(
                jax.checkpoint(lambda total, x: (total + loss(kernel * x), None)),
                jnp.zeros(()),
                jnp.arange(1.0, 3.0),
            )[0]
        )
        push, back = jax.linearize(conv, x, kernel)[1], jax.vjp(conv, x, kernel)[1]
        y = push(x, kernel)
        return (
            jax.hessian(loss)(kernel),
            jax.jacfwd(conv, 1)(x, kernel),
            jax.grad(per_pair, (0, 1))(images, kernels),
            jax.jvp(per_pair, (images, kernels), (images, kernels)),
            jax.jvp(jax.grad(repeated), (kernel,), (kernel,)),
            jax.vmap(lambda g: push(*back(g)))(jnp.stack([y, y**2])),  # a tangent kernel
        )

    run = jax.jit(derivatives, static_argnums=0)
    actual, expected = run(ops.conv2d), run(reference)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(a, b)


def test_reverse_mode_keeps_only_the_arguments_that_it_needs():
    x_shape, k_shape, options = FORMS["dense"]
    x, kernel = normal(0, x_shape), normal(1, k_shape)
    conv = partial(ops.conv2d, **options)
    kept = lambda f, *args: sorted(a.shape for a in jax.tree.leaves(jax.vjp(f, *args)[1]))
    assert kept(conv, x, kernel) == sorted([x_shape, k_shape])
    assert kept(lambda x: conv(x, kernel), x) == [k_shape]
    assert kept(partial(ops.max_pool, window=2, stride=2), x) == [x_shape]


@pytest.mark.parametrize("precision", [None, "highest"])
def test_the_precision_is_that_of_the_place_where_the_operation_is_called(precision):
    x_shape, k_shape, options = FORMS["dense"]

    def convolve(x, kernel):
        with jax.default_matmul_precision(precision):
            return ops.conv2d(x, kernel, **options)

    lowered = jax.jit(convolve).lower(normal(0, x_shape), normal(1, k_shape))
    assert ("precision HIGHEST" in lowered.as_text()) == (precision == "highest")


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


@full
def test_programs_are_compiled_with_the_options_of_the_tests(monkeypatch):
    """With --full, conftest.py gives the programs of these tests the fusions that users have."""
    monkeypatch.setitem(conftest.OVERRIDES, "xla_no_such_option", True)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        jax.jit(lambda x: x + 1).lower(1.0).compile()


def forget_forms():
    ops.forms.cache_clear()
    ops.platform_form.cache_clear()


@pytest.mark.parametrize(
    "name", ["winograd kernel gradient", pytest.param("winograd 2x4", marks=full)]
)
def test_winograd_in_blocks_of_images_equals_lax(name, monkeypatch):
    monkeypatch.setattr(ops.winograd, "_BLOCK", 1)
    x_shape, k_shape, options = FORMS[name]
    forget_forms()  # those with the other block size
    check_conv((4, *x_shape[1:]), k_shape, **options)
    forget_forms()


def test_layers_of_equal_shapes_are_traced_once(monkeypatch):
    traced = []
    correlate = ops.winograd.correlate
    monkeypatch.setattr(
        ops.winograd, "correlate", lambda *args: traced.append(1) or correlate(*args)
    )
    forget_forms()
    kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), jnp.float32)
    layer = partial(ops.conv2d, padding=SAME3)
    jax.eval_shape(
        lambda x, *kernels: reduce(layer, kernels, x),
        jax.ShapeDtypeStruct((1, 16, 16, 128), jnp.float32),
        kernel,
        kernel,
        kernel,
    )
    forget_forms()
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
        pooled = lambda x: ops.max_pool(ops.conv2d(x, kernel, **options), window=1, stride=1)
        gradient = jax.grad(lambda x: jnp.sum(pooled(x) ** 2))
        return sum(jax.jvp(gradient, (x,), (x,)))

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


@pytest.mark.parametrize("name", ["dense stride 2", "stem 3x3"])
def test_a_program_of_another_platform_has_one_convolution_per_map(name):
    x_shape, k_shape, options = FORMS[name]
    loss = lambda x, kernel: jnp.sum(jnp.sin(ops.conv2d(x, kernel, **options)))
    traced = jax.jit(jax.grad(loss, (0, 1))).trace(normal(0, x_shape), normal(1, k_shape))
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("stablehlo.convolution") == 3


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

    t = normal(2, x.shape)

    def all_three(pool):
        pool = partial(pool, window=window, stride=stride, padding=padding)
        y, pull = jax.vjp(pool, x)
        return y, pull(normal(1, y.shape))[0], jax.jvp(pool, (x,), (t,))[1]

    (y, dx, dy), (y_lax, dx_lax, dy_lax) = all_three(ops.max_pool), all_three(lax_pool)
    np.testing.assert_array_equal(y, y_lax)
    assert_close(dx, dx_lax)
    if levels is not None:  # there, lax's forward mode is not the transpose of its reverse mode
        jacobian = jax.jacrev(partial(lax_pool, window=window, stride=stride, padding=padding))(x)
        dy_lax = jnp.tensordot(jacobian, t, 4)
    np.testing.assert_array_equal(dy, dy_lax)
    np.testing.assert_allclose(jnp.vdot(dx, t), jnp.vdot(normal(1, y.shape), dy), rtol=1e-4)


def test_the_derivative_of_a_tie_is_that_of_the_first_pixel():
    pool, x = partial(ops.max_pool, window=2, stride=2), jnp.zeros((1, 2, 2, 1))
    dx = jax.grad(lambda x: jnp.sum(pool(x)))(x)
    np.testing.assert_array_equal(dx[0, :, :, 0], [[1.0, 0.0], [0.0, 0.0]])
    dy = jax.jvp(pool, (x,), (jnp.array([[1.0, 2.0], [4.0, 8.0]])[None, :, :, None],))[1]
    np.testing.assert_array_equal(dy, [[[[1.0]]]])


def test_max_pool_has_second_derivatives_under_vmap():
    x = normal(0, (2, 7, 7, 3))

    def derivatives(pool):
        def loss(x):
            return jnp.sum(pool(x[None], window=3, stride=2, padding=SAME3) ** 3)

        penalty = jax.grad(lambda x: jnp.sum(jax.grad(loss)(x) ** 2))
        product = lambda x: jax.jvp(jax.grad(loss), (x,), (x,))[1]
        return jax.jit(jax.vmap(lambda x: (penalty(x), product(x), jax.hessian(loss)(x))))(x)

    for actual, expected in zip(derivatives(ops.max_pool), derivatives(lax_pool), strict=True):
        assert_close(actual, expected)


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
