"""Reads pickles as data; nothing in them is executed.

The unpickler builds containers, numbers, numpy arrays and torch tensors. Any other class or
function that a pickle names becomes a `Placeholder`, which records what the pickle would do with it
and never becomes a tensor. A pickle that names a function that runs commands or code is an error.
"""

from __future__ import annotations

import itertools
import math
import mmap
import pickle
import pickletools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

# torch's typed storages, by their names in a file.
STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
# Modules and functions that run commands or code. No training script stores them, so a file that
# names one is an attack on programs that unpickle it.
_DANGEROUS_MODULES = frozenset(
    "os posix nt subprocess commands pty runpy importlib ctypes socket webbrowser code".split()
)
_DANGEROUS_BUILTINS = frozenset("eval exec execfile compile __import__ open input file".split())

# Modules and parameters of a pickled module; the largest networks have a few thousand.
_MOST_MODULES = 50_000


class Inert:
    """A value that a pickle can call or fill only in the ways that its class defines."""

    def __setstate__(self, state: Any) -> None:
        raise ValueError(f"it changes a {type(self).__name__.strip('_')}")


class Placeholder(Inert):
    """An object of an unknown class, or the result of an unknown function, as recorded data.

    Attributes:
      path: module and name, such as "argparse.Namespace".
      args: arguments of the call.
      state: what the pickle restores the object from; usually a dict of its attributes.
      entries: what the pickle adds to an object like a dict.
      elements: what the pickle adds to an object like a list.
    """

    path = ""
    args: tuple = ()
    state: Any = None
    entries: dict[Any, Any]
    elements: list[Any]

    def __new__(cls, *args: Any, **_: Any) -> Placeholder:
        self = super().__new__(cls)
        self.args, self.entries, self.elements = args, {}, []
        return self

    def __init__(self, *_: Any, **__: Any):
        pass

    def __call__(self, *args: Any, **_: Any) -> Placeholder:
        return type(self)(*self.args, *args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        self.elements.append(value)

    def extend(self, values: list) -> None:
        self.elements.extend(values)

    @property
    def attributes(self) -> Mapping[Any, Any]:
        """The attributes that the pickle restores, of slots too."""
        parts = self.state if isinstance(self.state, tuple) else (self.state,)
        return {key: part[key] for part in parts if isinstance(part, dict) for key in part}


class _Dict(dict):
    """A dict without attributes: torch keeps `_metadata` on its state dicts."""

    def __setstate__(self, state: Any) -> None:
        del state


class Function(Inert):
    """A function whose attributes a pickle cannot change."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class _StorageType(NamedTuple):
    dtype: np.dtype


class Storage(Inert):
    """A block of numbers of which tensors are views; `data` is filled when its bytes are read."""

    def __init__(self, dtype: np.dtype, count: int, read: Callable[[], np.ndarray] | None = None):
        self.dtype, self.count, self.read = dtype, count, read
        self.content: np.ndarray | None = None

    @property
    def data(self) -> np.ndarray:
        if self.content is None:
            self.content = self.read() if self.read else np.empty(0, self.dtype)
        return self.content


class Tensor(NamedTuple):
    """A view of a storage, in numbers, as torch stores it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        sizes = (*self.shape, self.offset, *self.strides)
        if any(not isinstance(n, int) or n < 0 for n in sizes) or len(self.shape) != len(
            self.strides
        ):
            raise ValueError(
                f"a tensor has shape {self.shape}, strides {self.strides}, offset {self.offset}"
            )
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        stored = self.storage.data.size
        # The number of elements is compared too, because strides of 0 need almost no storage.
        if 0 not in self.shape and (last >= stored or math.prod(self.shape) > stored):
            raise ValueError(
                f"a tensor of shape {self.shape} exceeds the {stored} numbers stored for it"
            )
        width = self.storage.dtype.itemsize
        # A view, so that a thousand tensors on one storage need its memory only once.
        return np.lib.stride_tricks.as_strided(
            self.storage.data[self.offset :],
            self.shape,
            [s * width for s in self.strides],
            writeable=False,
        )


def _rebuild_tensor(
    storage: Any, offset: int, shape: tuple, strides: tuple, *_: Any
) -> Tensor | Placeholder:
    if isinstance(storage, Placeholder):  # of a number type that numpy lacks
        return storage
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor is built on a {type(storage).__name__} instead of a storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_subclass(function: Any, kind: Any, args: tuple, state: Any) -> Any:
    """A tensor with attributes or of a subclass, without these."""
    del kind, state
    known = isinstance(function, Function) and function.function is _rebuild_tensor
    return function(*args) if known else Placeholder(function, args)


class _NumpyDtype(Inert):
    """A number type as numpy pickles it; replaces numpy's unpickling, which trusts the file."""

    def __init__(self, code: str, *_: Any):
        self.dtype = np.dtype(str(code))
        self.numeric = self.dtype.kind in "fiub"

    def __setstate__(self, state: tuple) -> None:
        if self.numeric and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class NumpyArray(Inert):
    """An array as numpy pickles it: (version, shape, dtype, column-major, bytes).

    `array` is None for types other than numbers, such as the objects of a list of names.
    """

    def __init__(self, *_: Any):
        self.array: np.ndarray | None = np.empty(0, np.float32)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, data = state
        if not isinstance(dtype, _NumpyDtype):
            raise ValueError(f"an array's dtype is a {type(dtype).__name__}")
        if not dtype.numeric:
            self.array = None
            return
        raw = data.encode("latin1") if isinstance(data, str) else data
        self.array = np.frombuffer(raw, dtype.dtype).reshape(
            shape, order="F" if column_major else "C"
        )


def _numpy_from_buffer(data: Any, dtype: Any, shape: tuple, order: str) -> NumpyArray:
    """A contiguous array as pickle protocol 5, the default of Python 3.14, writes it."""
    array = NumpyArray()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


def _numpy_scalar(dtype: Any, data: Any = None) -> Any:
    """A number of numpy, such as the best accuracy of a training."""
    array = _numpy_from_buffer(data, dtype, (), "C").array
    return None if array is None else array.item()


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, as protocol 2 writes them."""
    del encoding
    return text.encode("latin1")


def _reconstruct(kind: Any, base: Any, state: Any) -> Any:
    """An object of an unknown class, as protocols 0 and 1 create it before its state is set."""
    del base, state
    if not (isinstance(kind, type) and issubclass(kind, Placeholder)):
        raise ValueError("it creates an object of a class that has no state")
    return kind()


_CONTAINERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("collections", "defaultdict"): Function(lambda factory=None, *items: _Dict(*items)),
    ("collections", "Counter"): _Dict,
    ("torch", "Size"): Function(tuple),
    **{(module, "_reconstructor"): Function(_reconstruct) for module in ("copyreg", "copy_reg")},
    **{(builtins, "set"): Function(set) for builtins in ("builtins", "__builtin__")},
}
_TORCH: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Function(lambda data, requires_grad, hooks: data),
    ("torch._utils", "_rebuild_parameter_with_state"): Function(
        lambda data, requires_grad, hooks, state: data
    ),
    ("torch._tensor", "_rebuild_from_type_v2"): Function(_rebuild_subclass),
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()},
}
_NUMPY: dict[tuple[str, str], Any] = {
    # Protocol 2 writes bytes with `encode`, and empty bytes with `bytes`.
    ("_codecs", "encode"): Function(_encode),
    ("__builtin__", "bytes"): Function(lambda: b""),
    ("numpy", "dtype"): _NumpyDtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): NumpyArray for core in ("core", "_core")},
    **{
        (f"numpy.{core}.multiarray", "scalar"): Function(_numpy_scalar)
        for core in ("core", "_core")
    },
    **{
        (f"numpy.{core}.numeric", "_frombuffer"): Function(_numpy_from_buffer)
        for core in ("core", "_core")
    },
}
NAMES = _CONTAINERS | _TORCH | _NUMPY


class _Unpickler(pickle.Unpickler):
    """Builds containers, numbers and the given names; any other name becomes a placeholder."""

    def __init__(
        self,
        file: Any,
        names: Mapping[tuple[str, str], Any],
        storage: Callable[[tuple], Storage | Placeholder] | None = None,
    ):
        super().__init__(file, encoding="latin1")  # Python 2 pickles hold bytes as str
        self.names, self.storage = names, storage
        self.placeholders: dict[tuple[str, str], type[Placeholder]] = {}

    def find_class(self, module: str, name: str) -> Any:
        key = (module, name)
        if key in self.names:
            return self.names[key]
        builtin = module in ("builtins", "__builtin__", "io", "_io")
        dangerous = module.partition(".")[0] in _DANGEROUS_MODULES or (
            builtin and name.partition(".")[0] in _DANGEROUS_BUILTINS
        )
        if dangerous or not self.names:
            raise ValueError(
                f"it names {module}.{name}, which tensors do not need; nothing was executed"
            )
        if key not in self.placeholders:
            self.placeholders[key] = type(
                "Placeholder", (Placeholder,), {"path": f"{module}.{name}"}
            )
        return self.placeholders[key]

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]  # the class of a module, with its source code
        if self.storage is None or not (
            isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"
        ):
            raise ValueError(f"it refers to {pid!r}, which is not a tensor's storage")
        if isinstance(pid[1], type) and issubclass(pid[1], Placeholder):
            return pid[1]()  # a storage of a number type that numpy lacks
        return self.storage(pid)


def mapped(path: Path) -> mmap.mmap:
    """The memory-mapped file, whose `read(n)` allocates no memory beyond the end of the file."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def load(
    file: Any,
    names: Mapping[tuple[str, str], Any],
    storage: Callable[[tuple], Storage | Placeholder] | None = None,
) -> Any:
    """The next pickle of a file.

    The indices of its memo are checked first, because `pickle` allocates memory for any index that
    it reads.

    Args:
      file: the open file.
      names: (module, name) -> what it stands for; without any, every name is an error.
      storage: returns the storage that a persistent id of torch describes.
    """
    start = file.tell()
    for count, (op, arg, _) in enumerate(pickletools.genops(file)):
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT") and (arg or 0) > count:
            raise ValueError(f"it writes memo {arg} after {count} steps")
    file.seek(start)
    return _Unpickler(file, names, storage).load()


def module_entries(
    node: Placeholder, count: Iterator[int] | None = None
) -> Iterator[tuple[str, Any]]:
    """Parameters and buffers of a whole pickled torch module, under the names of its state dict.

    Modules of TorchScript are read too: their attributes are their parameters and modules.
    """
    count = itertools.count() if count is None else count
    attributes = node.attributes
    if node.path.startswith("__torch__"):
        parts = [attributes]
    else:
        kinds = (attributes.get(kind) for kind in ("_parameters", "_buffers", "_modules"))
        parts = [kind for kind in kinds if isinstance(kind, Mapping)]
    transient = attributes.get("_non_persistent_buffers_set")
    for name, value in (entry for part in parts for entry in part.items()):
        if next(count) > _MOST_MODULES:  # a module in many others could take forever to walk
            raise ValueError(f"its module has more than {_MOST_MODULES} parts")
        if isinstance(value, Placeholder):
            for inner, leaf in module_entries(value, count):
                yield f"{name}.{inner}", leaf
        elif isinstance(value, (Tensor, NumpyArray)):
            if not (isinstance(transient, set) and name in transient):
                yield str(name), value
