"""Convolution and pooling that are fast on every platform.

On a TPU or GPU each operation is the plain one of `lax`. On a CPU, XLA lowers some convolutions to
slow programs, so these are computed in another form. The form is chosen during lowering
(`jax.lax.platform_dependent`), so one traced program, or one exported module, serves all platforms.
No other package of `tl` chooses operations by platform. Layers, parameters, normalization and
activations are in `tl.backbones.layers`.
"""

from __future__ import annotations

import contextlib
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from tl.ops.derivatives import Form, Map, bilinear
from tl.ops.forms import forms
from tl.ops.pool import max_pool as _max_pool
from tl.ops.windows import NO_PADDING, Padding, same_padding

__all__ = [
    "NO_PADDING",
    "Form",
    "Padding",
    "batch_sharded",
    "bilinear",
    "conv2d",
    "global_mean",
    "max_pool",
    "same_padding",
]


def global_mean(x: Array) -> Array:
    """Mean over height and width: `f32[b h w c] -> f32[b c]`."""
    return jnp.mean(x, axis=(1, 2))


def conv2d(
    x: Array, kernel: Array, *, stride: int = 1, padding: Padding = NO_PADDING, groups: int = 1
) -> Array:
    """Cross-correlation of images with a kernel, which neural networks call a convolution.

    It equals `lax.conv_general_dilated` with NHWC images and HWIO kernels, up to the order of the
    sums. It is differentiable any number of times, in forward and in reverse mode, and so is
    `max_pool`. In bfloat16, values and gradients are summed in float32 and rounded once.

    Args:
      x: bf16, f32 or f64[b h w c].
      kernel: [kh kw c/groups o], of the dtype of `x`.
      stride: step of the window, the same in both directions.
      padding: zeros around the image, `((top, bottom), (left, right))`.
      groups: number of channel groups; `c` for a depthwise convolution.

    Returns:
      [b h' w' o] of the dtype of `x`, with `h' = (h + top + bottom - kh) // stride + 1`.

    Raises:
      ValueError: the shapes do not fit each other, or the dtypes differ.
    """
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            f"wrong rank: got `x` of shape {x.shape} and `kernel` of shape {kernel.shape}, "
            "expected x [b h w c] and kernel [kh kw c/groups o]"
        )
    if x.shape[3] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(
            f"`kernel` does not fit: got shape {kernel.shape} for {x.shape[3]} channels in "
            f"{groups} groups, expected [kh kw c/groups o] with o a multiple of groups"
        )
    if x.dtype != kernel.dtype:
        raise ValueError(
            f"`x` and `kernel` differ in dtype: got {x.dtype} and {kernel.dtype}, expected one "
            "dtype; cast one of them"
        )
    pads = ((int(padding[0][0]), int(padding[0][1])), (int(padding[1][0]), int(padding[1][1])))
    mesh = jax.sharding.get_abstract_mesh()
    options = (kernel.shape, int(stride), pads, int(groups), mesh)
    return bilinear(platform_form(x.shape, *options), x, kernel)


def max_pool(x: Array, *, window: int, stride: int, padding: Padding = NO_PADDING) -> Array:
    """Maximum of each channel in a sliding window; padding has the value minus infinity.

    If several pixels of a window share the maximum, the gradient goes to the first of them in
    row-major order, as in lax and torch. The tangent comes from the same pixel; the forward mode of
    lax may choose another one.

    Args:
      x: f32[b h w c].
      window: side of the square window.
      stride: step of the window.
      padding: `((top, bottom), (left, right))`.

    Returns:
      f32[b h' w' c].
    """
    pads = ((int(padding[0][0]), int(padding[0][1])), (int(padding[1][0]), int(padding[1][1])))
    return _max_pool(x, int(window), int(stride), pads)


# --- choice of the form -----------------------------------------------------------------------
# The choice of platform is inside each map of the form, so that no derivative differentiates a
# `cond`.


def batch_sharded(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Within it, operations are traced for batches that are sharded over a mesh with one axis."""
    return jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext()


@lru_cache(maxsize=1024)
def platform_form(
    x_shape, k_shape, stride: int, padding: Padding, groups: int, mesh: AbstractMesh
) -> Form:
    """The form whose maps choose the fastest one of each platform, for a mesh of devices."""
    plain, cpu = _forms(mesh, x_shape, k_shape, stride, padding, groups)

    def choose(plain: Map, cpu: Map) -> Map:
        return lambda a, b: lax.platform_dependent(a, b, cpu=cpu, default=plain)

    return Form(*map(choose, plain, cpu))


def _forms(mesh: AbstractMesh, x_shape, *options) -> tuple[Form, Form]:
    """`forms`; with several devices each computes the form for CPUs for its own images.

    The sums of that form, over a few images at a time, would otherwise move images between devices.
    """
    if mesh.manual_axes or (mesh.empty and jax.local_device_count() == 1):
        return forms(x_shape, *options)
    plain, _ = forms(x_shape, *options)
    sharded = mesh.axis_types == (AxisType.Auto,) and x_shape[0] % mesh.size == 0
    if not sharded:  # or sharded in a way that only XLA knows
        return plain, plain
    _, cpu = forms((x_shape[0] // mesh.size, *x_shape[1:]), *options)
    (axis,), whole = mesh.axis_names, PartitionSpec()
    rows = PartitionSpec(axis)
    divided = partial(jax.shard_map, check_vma=False)
    return plain, Form(
        divided(cpu.forward, in_specs=(rows, whole), out_specs=rows),
        divided(cpu.input_grad, in_specs=(rows, whole), out_specs=rows),
        divided(
            lambda x, g: lax.psum(cpu.kernel_grad(x, g), axis),
            in_specs=(rows, rows),
            out_specs=whole,
        ),
    )
