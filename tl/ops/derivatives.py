"""Bilinear operations whose transposes are given, with derivatives of every order and mode.

`jax.custom_vjp` supports reverse mode only. A rule of `jax.custom_jvp` gives forward mode, but then
JAX transposes it operation by operation, which is slow for the forms of `tl.ops` on a CPU. Here an
operation is a primitive with three maps: y = f(x, k), and the transposes of f in x and in k. Each
map is bilinear, and the transposes of each are the other two, so the derivatives of all orders, in
any order of modes, are made of these three.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

Map = Callable[[Array, Array], Array]


class Form(NamedTuple):
    """One way to compute a bilinear operation of fixed shapes, such as a convolution."""

    forward: Map  # x, kernel -> y
    input_grad: Map  # g, kernel -> dx
    kernel_grad: Map  # x, g -> dkernel


# The roles of the two arguments of each map: 0 is y or its cotangent, 1 is x, 2 is the kernel. The
# map at index i returns role i.
_ARGUMENTS = ((1, 2), (0, 2), (1, 0))


def bilinear(form: Form, x: Array, kernel: Array) -> Array:
    """`form.forward(x, kernel)`, whose derivatives are made of the three maps of the form.

    Args:
      form: hashable; equal forms share one trace. Each map is bilinear, and the second and the
        third are the transposes of the first. If `kernel` is constant, the third is never called.
      x, kernel: arrays of one floating-point dtype.

    Returns:
      The value of the first map.
    """
    return _bind(x, kernel, form=form, role=0, levels=())


def _bind(a: Array, b: Array, *, form: Form, role: int, levels: tuple[tuple[bool, ...], ...]):
    """The map that returns `role`.

    It is traced at once, in the context of the caller (mesh, precision), and not when it is
    lowered. `levels` has an entry per surrounding `vmap`: which of the three roles have its axis.
    """
    jaxpr = _mapped(form, role, levels).trace(a, b).jaxpr
    return bilinear_p.bind(a, b, jaxpr=jaxpr, form=form, role=role, levels=levels)


@lru_cache(maxsize=4096)
def _mapped(form: Form, role: int, levels: tuple[tuple[bool, ...], ...]) -> Any:
    """The jitted map; the axes of `levels` come first, the outermost at the front."""

    def batch(inner: Map, mapped: tuple[bool, ...]) -> Map:
        outer = jax.vmap(inner, [0 if mapped[i] else None for i in _ARGUMENTS[role]])
        # A role without the axis is shared, so its cotangent is a sum.
        return outer if mapped[role] else lambda a, b: jnp.sum(outer(a, b), axis=0)

    f = form[role]
    for mapped in levels:
        f = batch(f, mapped)
    return jax.jit(f)


def _transpose(side: int, g: Array, a: Array, b: Array, *, form: Form, role: int, levels, jaxpr):
    """The cotangent of argument `side`."""
    del jaxpr
    wanted, other = _ARGUMENTS[role][side], _ARGUMENTS[role][1 - side]
    arrays = {role: g, other: (a, b)[1 - side]}
    first, second = (arrays[i] for i in _ARGUMENTS[wanted])
    return _bind(first, second, form=form, role=wanted, levels=levels)


def _batch(arrays, dims, *, form: Form, role: int, levels, jaxpr):
    del jaxpr
    mapped = [True, True, True]
    for i, dim in zip(_ARGUMENTS[role], dims, strict=True):
        mapped[i] = dim is not None
    a, b = (x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(arrays, dims, strict=True))
    return _bind(a, b, form=form, role=role, levels=(*levels, tuple(mapped))), 0


bilinear_p = Primitive("bilinear")
bilinear_p.def_impl(lambda a, b, *, form, role, levels, jaxpr: _mapped(form, role, levels)(a, b))
bilinear_p.def_abstract_eval(lambda a, b, *, jaxpr, **_: jaxpr.out_avals[0])
ad.defbilinear(bilinear_p, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[bilinear_p] = _batch
mlir.register_lowering(
    bilinear_p, mlir.lower_fun(lambda a, b, *, jaxpr, **_: jaxpr_as_fun(jaxpr)(a, b))
)
