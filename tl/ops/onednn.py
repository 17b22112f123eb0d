"""Convolutions of oneDNN on a CPU, if the extra `onednn` is installed.

XLA calls the library through its foreign function interface (`jax.ffi`). The handler of such a call
and the calls of the library are written with `ctypes`, so nothing has to be compiled. Images stay
in the order NHWC; a kernel is reordered in each call. `tl.cpu` finds the library.

Sources: `xla/ffi/api/c_api.h` in the folder `jax.ffi.include_dir()`; `dnnl.h` of oneDNN 3.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from tl import cpu
from tl.ops.derivatives import Form, Map
from tl.ops.windows import Padding, out_size

_TARGET = "tl_onednn"


def form(x_shape, k_shape, stride: int, padding: Padding, groups: int) -> Form:
    """The form whose three maps oneDNN computes, for float32 or bfloat16 and shapes without a zero.

    In bfloat16, sums are in float32 and rounded once.

    Raises:
      ValueError: the library cannot be loaded.
    """
    _register(cpu.onednn_path())
    y_shape = (x_shape[0], *out_size(x_shape, k_shape[:2], stride, padding), k_shape[3])

    def of_role(role: int, shape) -> Map:
        options = stride, *padding[0], *padding[1], groups, *x_shape, *k_shape, *y_shape

        def call(a: Array, b: Array) -> Array:
            numbers = np.array([_BFLOAT16 if a.dtype == jnp.bfloat16 else _FLOAT32, role, *options])
            result = jax.ShapeDtypeStruct(shape, a.dtype)
            return jax.ffi.ffi_call(_TARGET, result, vmap_method="sequential")(
                a, b, numbers=numbers.astype(np.int64)
            )

        return call

    return Form(*map(of_role, range(3), (y_shape, x_shape, k_shape)))


def multiplies_bfloat16() -> bool:
    """Whether this processor has products of bfloat16 with sums in float32, as in AVX512-BF16."""
    return bool(_library(cpu.onednn_path()).functions.dnnl_get_effective_cpu_isa() & _BF16_PRODUCTS)


# --- calls from XLA ---------------------------------------------------------------------------
# Structures of c_api.h, up to the last field that is read. Each begins with its size and a pointer
# to extensions.


def _fields(**fields: Any) -> list[tuple[str, Any]]:
    return [("struct_size", c_size_t), ("extension", c_void_p), *fields.items()]


class _Version(Structure):
    _fields_ = _fields(major=c_int, minor=c_int)


class _Metadata(Structure):
    _fields_ = (("struct_size", c_size_t), ("version", _Version))


class _MetadataExtension(Structure):
    _fields_ = (
        ("struct_size", c_size_t),
        ("type", c_int),
        ("next", c_void_p),
        ("metadata", POINTER(_Metadata)),
    )


class _ErrorArgs(Structure):
    _fields_ = _fields(message=c_char_p, code=c_int)


_CreateError = ctypes.CFUNCTYPE(c_void_p, POINTER(_ErrorArgs))


class _Api(Structure):
    _fields_ = _fields(version=_Version, internal=c_void_p, create_error=_CreateError)


class _Buffer(Structure):
    _fields_ = _fields(dtype=c_int, data=c_void_p)


class _Buffers(Structure):
    _fields_ = _fields(size=c_int64, types=c_void_p, items=POINTER(POINTER(_Buffer)))


class _Numbers(Structure):
    _fields_ = (("dtype", c_int), ("size", c_size_t), ("data", c_void_p))


class _Attributes(Structure):
    _fields_ = _fields(
        size=c_int64, types=c_void_p, names=c_void_p, items=POINTER(POINTER(_Numbers))
    )


class _Call(Structure):
    _fields_ = _fields(
        api=POINTER(_Api),
        context=c_void_p,
        stage=c_int,
        arguments=_Buffers,
        results=_Buffers,
        attributes=_Attributes,
    )


_INTERNAL = 13  # XLA_FFI_Error_Code_INTERNAL


@ctypes.CFUNCTYPE(c_void_p, POINTER(_Call))
def _handle(call: Any) -> int | None:
    """Computes one map; returns null, or an error of XLA."""
    call = call.contents
    try:
        if call.extension:  # at registration XLA asks for the version of its own interface
            query = ctypes.cast(call.extension, POINTER(_MetadataExtension)).contents
            version = query.metadata.contents.version
            version.major, version.minor = 0, call.api.contents.version.minor
            return None
        numbers = call.attributes.items[0].contents
        run = _primitive(ctypes.string_at(numbers.data, 8 * numbers.size))
        a, b = (call.arguments.items[i].contents.data for i in range(2))
        run(a, b, call.results.items[0].contents.data)
    except Exception as error:  # ctypes would print it, and XLA would go on
        args = _ErrorArgs(0, None, str(error).encode(), _INTERNAL)
        args.struct_size = ctypes.sizeof(args)
        return call.api.contents.create_error(byref(args))
    return None


@cache
def _register(path: str) -> None:
    _library(path)
    jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(_handle), platform="cpu")


# --- calls of oneDNN --------------------------------------------------------------------------
# Numbers of dnnl_types.h.

_CPU, _ANY_LAYOUT, _TRAINING, _DIRECT, _OF_USER = 1, 1, 64, 1, 1
_BFLOAT16, _FLOAT32 = 2, 3
_BF16_PRODUCTS = 0x80  # a bit of dnnl_cpu_isa_avx512_core_bf16
_KERNEL_LAYOUT, _KERNEL_GRADIENT_LAYOUT, _SCRATCHPAD_LAYOUT = 131, 132, 136
_X, _Y, _KERNEL, _SCRATCHPAD = 1, 17, 33, 80  # arguments of a primitive
_GRADIENT = 128  # is added to the number of an argument for its gradient


class _Argument(Structure):
    _fields_ = (("number", c_int), ("memory", c_void_p))


def _load(path: str) -> Any:
    # Threads of OpenMP that spin would take the cores from those of XLA. OpenMP reads the variable
    # when it is loaded; other libraries must not see it.
    before = os.environ.get("OMP_WAIT_POLICY")
    os.environ["OMP_WAIT_POLICY"] = before or "passive"
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        raise ValueError(
            f"oneDNN cannot be loaded: {error}; install what it needs (Debian has libgomp.so.1 in "
            "the package libgomp1), or set TL_ONEDNN=0"
        ) from error
    finally:
        if before is None:
            del os.environ["OMP_WAIT_POLICY"]


class _Library:
    """The library with an engine, a stream, and memory that all primitives share.

    Only one primitive runs at a time, because of the shared memory. It uses all threads.
    """

    def __init__(self, path: str):
        self.functions = _load(path)
        self.functions.dnnl_primitive_desc_query_md.restype = c_void_p
        self.functions.dnnl_memory_desc_get_size.restype = c_size_t
        self.engine = self.new("engine_create", _CPU, c_size_t(0))
        self.stream = self.new("stream_create", self.engine, 0)
        self.attributes = self.new("primitive_attr_create")
        self.call("primitive_attr_set_scratchpad_mode", self.attributes, _OF_USER)
        self.lock = threading.Lock()
        self.space = np.empty(0, np.uint8)

    def call(self, name: str, *args: Any) -> None:
        status = getattr(self.functions, f"dnnl_{name}")(*args)
        if status:
            raise RuntimeError(f"oneDNN failed: dnnl_{name} has status {status}")

    def new(self, name: str, *args: Any) -> c_void_p:
        """The object that a function writes to its first argument."""
        result = c_void_p()
        self.call(name, byref(result), *args)
        return result

    def layout(self, dtype: int, shape: list[int], strides: list[int] | None = None) -> c_void_p:
        """Memory of a shape; without strides the primitive chooses the layout."""
        size = len(shape), _dims(shape), dtype
        if strides is None:
            return self.new("memory_desc_create_with_tag", *size, _ANY_LAYOUT)
        return self.new("memory_desc_create_with_strides", *size, _dims(strides))

    def images(self, dtype: int, b: int, h: int, w: int, c: int) -> c_void_p:
        return self.layout(dtype, [b, c, h, w], [h * w * c, 1, w * c, c])

    def layout_of(self, description: c_void_p, query: int) -> c_void_p:
        return c_void_p(self.functions.dnnl_primitive_desc_query_md(description, query, 0))

    def bytes_of(self, layout: c_void_p) -> int:
        return -(-self.functions.dnnl_memory_desc_get_size(layout) // 64) * 64

    def address_of_space(self, size: int) -> int:
        """The address of at least `size` bytes, aligned to 64."""
        if self.space.size < size + 64:
            self.space = np.empty(size + 64, np.uint8)
        return -(-self.space.ctypes.data // 64) * 64


def _dims(values: list[int]) -> Any:
    return (c_int64 * 12)(*values)


@cache
def _library(path: str) -> _Library:
    return _Library(path)


class _Step:
    """A primitive and the memory of its arguments."""

    def __init__(self, lib: _Library, description: c_void_p, layouts: dict[int, c_void_p]):
        self.lib, self.primitive = lib, lib.new("primitive_create", description)
        self.memories = [
            lib.new("memory_create", layout, lib.engine, None) for layout in layouts.values()
        ]
        pairs = zip(layouts, self.memories, strict=True)
        self.arguments = (_Argument * len(layouts))(*(_Argument(*pair) for pair in pairs))

    def __call__(self, *addresses: int) -> None:
        for memory, address in zip(self.memories, addresses, strict=True):
            self.lib.call("memory_set_data_handle", memory, c_void_p(address))
        count = len(self.arguments)
        self.lib.call("primitive_execute", self.primitive, self.lib.stream, count, self.arguments)


@cache
def _primitive(numbers: bytes) -> Callable[[int, int, int], None]:
    """The map of `form` as a function of three addresses: two arguments and the result."""
    values = np.frombuffer(numbers, np.int64).tolist()
    dtype, role, stride, top, bottom, left, right, groups = values[:8]
    (b, h, w, c), (kh, kw, i, out), (_, oh, ow, _) = values[8:12], values[12:16], values[16:]
    lib = _library(cpu.onednn_path())

    def convolution(name: str, *args: Any) -> c_void_p:
        window = [_dims(v) for v in ([stride, stride], [0, 0], [top, left], [bottom, right])]
        rest = window if name == "forward" else [*window, forward]
        name = f"convolution_{name}_primitive_desc_create"
        return lib.new(name, lib.engine, *args, *rest, lib.attributes)

    shape, strides = [groups, out // groups, i, kh, kw], [out // groups, 1, out, kw * i * out]
    first = int(groups == 1)
    shape, strides = shape[first:], [*strides, i * out][first:]
    x, y = lib.images(dtype, b, h, w, c), lib.images(dtype, b, oh, ow, out)
    hwio, free, none = lib.layout(dtype, shape, strides), lib.layout(dtype, shape), c_void_p()
    forward = convolution("forward", _TRAINING, _DIRECT, x, free, none, y)
    if role == 0:
        description, at = forward, {_X: x, _KERNEL: free, _Y: y}
    elif role == 1:
        description = convolution("backward_data", _DIRECT, x, free, y)
        at = {_GRADIENT + _Y: y, _KERNEL: free, _GRADIENT + _X: x}
    else:
        description = convolution("backward_weights", _DIRECT, x, free, none, y)
        at = {_X: x, _GRADIENT + _Y: y, _GRADIENT + _KERNEL: free}
    returns_kernel = role == 2
    kernel = _GRADIENT + _KERNEL if returns_kernel else _KERNEL
    at[kernel] = lib.layout_of(
        description, _KERNEL_GRADIENT_LAYOUT if returns_kernel else _KERNEL_LAYOUT
    )
    scratchpad = lib.layout_of(description, _SCRATCHPAD_LAYOUT)
    convolve = _Step(lib, description, {**at, _SCRATCHPAD: scratchpad})
    source, target = (at[kernel], hwio) if returns_kernel else (hwio, at[kernel])
    description = lib.new(
        "reorder_primitive_desc_create", source, lib.engine, target, lib.engine, none
    )
    reorder = _Step(lib, description, {_X: source, _Y: target})
    size, more = lib.bytes_of(at[kernel]), lib.bytes_of(scratchpad)

    def run(a: int, b: int, result: int) -> None:
        with lib.lock:
            inside = lib.address_of_space(size + more)
            if returns_kernel:
                convolve(a, b, inside, inside + size)
                reorder(inside, result)
            else:
                reorder(b, inside)
                convolve(a, inside, result, inside + size)

    return run
