"""Reads weights files as flat dicts of numpy arrays; nothing in a file is executed.

`read` detects the format by the content of a file, not by its suffix: safetensors, torch's zip,
torch's older pickle stream, a pickled dict of numpy arrays, and Keras' HDF5 files and archives
(`hdf5`). Pickles are read by an unpickler that accepts only a few harmless names; any other name in
the file is an error. This module does not depend on architectures; `port` renames the tensors.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tl.weights import hdf5

Arrays = dict[str, np.ndarray]

FORMATS = "safetensors, torch (.pth, .pt, .bin), pickled numpy, Keras (.h5, .weights.h5, .keras)"


class Contents(NamedTuple):
    """The tensors of a file, and what else the file says about them.

    Attributes:
      arrays: name -> array, with the dtype and in the order of the file, without `prefix`.
      format: "safetensors", "torch", "numpy pickle" or "keras".
      metadata: JSON-ready values: safetensors' `__metadata__`, timm's `arch`, `epoch`, `metric` and
        `args`, the name and preprocessing layers of a Keras config; empty if there are none.
      chosen: key path of the dict that was read, such as "state_dict_ema"; "" for the top level.
      prefix: what was removed from the beginning of all names, such as "module.", or "".
      left_out: names of the entries that are not among `arrays`, such as "optimizer" and "epoch".
      remarks: what a user should know about this choice, one sentence each.
    """

    arrays: Arrays
    format: str
    metadata: Mapping[str, Any] = {}
    chosen: str = ""
    prefix: str = ""
    left_out: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


# MAGIC_NUMBER of the older stream in torch/serialization.py.
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
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


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage:
    """A block of numbers of which tensors are views; `data` is filled when its bytes are read."""

    def __init__(self, dtype: np.dtype, count: int):
        self.dtype, self.count, self.data = dtype, count, np.empty(0, dtype)


class _Tensor(NamedTuple):
    storage: _Storage
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


def _rebuild_tensor(storage: Any, offset: int, shape: tuple, strides: tuple, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError(f"a tensor is built on a {type(storage).__name__} instead of a storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _NumpyDtype:
    """A number type as numpy pickles it; replaces numpy's unpickling, which trusts the file."""

    def __init__(self, code: str, *_: Any):
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in "fiub":
            raise ValueError(f"dtype {self.dtype} is not a number type")

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _NumpyArray:
    """An array as numpy pickles it: (version, shape, dtype, column-major, bytes)."""

    def __init__(self, *_: Any):
        self.array = np.empty(0, np.float32)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, data = state
        if not isinstance(dtype, _NumpyDtype):
            raise ValueError(f"an array's dtype is a {type(dtype).__name__}")
        raw = data.encode("latin1") if isinstance(data, str) else data
        self.array = np.frombuffer(raw, dtype.dtype).reshape(
            shape, order="F" if column_major else "C"
        )


def _numpy_from_buffer(data: Any, dtype: Any, shape: tuple, order: str) -> _NumpyArray:
    """A contiguous array as pickle protocol 5, the default of Python 3.14, writes it."""
    array = _NumpyArray()
    array.__setstate__((1, shape, dtype, order == "F", data))
    return array


_TORCH_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()},
}
_NUMPY_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    # Protocol 2 writes bytes with `encode`, and empty bytes with `bytes`.
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
    ("__builtin__", "bytes"): lambda: b"",
    ("numpy", "ndarray"): None,  # an argument of _reconstruct, which ignores it
    ("numpy", "dtype"): _NumpyDtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _NumpyArray for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _numpy_from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    """Builds containers, numbers and the given names; any other name in the stream is an error."""

    def __init__(
        self,
        file: Any,
        names: Mapping[tuple[str, str], Any],
        storage: Callable[[tuple], _Storage] | None = None,
    ):
        super().__init__(file, encoding="latin1")  # Python 2 pickles hold bytes as str
        self.names, self.storage = names, storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise ValueError(
                f"it names {module}.{name}, which tensors do not need; nothing was executed"
            )
        return self.names[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if self.storage is None or not (
            isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"
        ):
            raise ValueError(f"it refers to {pid!r}, which is not a tensor's storage")
        return self.storage(pid)


def _mapped(path: Path) -> mmap.mmap:
    """The memory-mapped file, whose `read(n)` allocates no memory beyond the end of the file."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _load(
    file: Any,
    names: Mapping[tuple[str, str], Any],
    storage: Callable[[tuple], _Storage] | None = None,
) -> Any:
    """The next pickle of a file.

    The indices of its memo are checked first, because `pickle` allocates memory for any index that
    it reads.
    """
    start = file.tell()
    for count, (op, arg, _) in enumerate(pickletools.genops(file)):
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT") and (arg or 0) > count:
            raise ValueError(f"it writes memo {arg} after {count} steps")
    file.seek(start)
    return _Unpickler(file, names, storage).load()


def _flat(tree: Any) -> Arrays:
    """Flattens nested dicts and lists of tensors; removes wrappers such as `state_dict`."""
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(tree, Mapping) and isinstance(tree.get(wrapper), Mapping):
            tree = tree[wrapper]
    flat: Arrays = {}
    visited: set[int] = set()

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, (Mapping, list, tuple)) and not isinstance(node, _Tensor):
            # A container that contains itself, or is in many others, could take forever to walk.
            if id(node) in visited and len(node):
                raise ValueError(f"the {type(node).__name__} {prefix!r} is in the file twice")
            visited.add(id(node))
            for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
                walk(value, f"{prefix}/{key}" if prefix else str(key))
        elif isinstance(node, _Tensor):
            flat[prefix] = node.array()
        elif isinstance(node, _NumpyArray):
            flat[prefix] = node.array
        else:
            raise ValueError(
                f"wrong type of {prefix or 'the top level'}: got {type(node).__name__}, "
                "expected a tensor, or a dict or list of tensors"
            )

    walk(tree, "")
    return flat


def _read_safetensors(path: Path) -> Arrays:
    from safetensors.numpy import load_file

    return load_file(path)


def _read_torch_zip(path: Path) -> Arrays:
    with zipfile.ZipFile(path) as archive:
        pickles = [n for n in archive.namelist() if n.endswith("/data.pkl") or n == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"it is a zip with {len(pickles)} data.pkl, expected one")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("it is a compressed zip, but torch does not compress tensors")
        root, storages = pickles[0][: -len("data.pkl")], {}
        if (
            f"{root}byteorder" in archive.namelist()
            and archive.read(f"{root}byteorder") != b"little"
        ):
            raise ValueError("it was written by a big-endian machine")

        def storage(pid: tuple) -> _Storage:
            _, kind, key, _, count = pid[:5]
            if key not in storages:
                storages[key] = _Storage(kind.dtype, count)
                storages[key].data = np.frombuffer(
                    archive.read(f"{root}data/{key}"), kind.dtype, count
                )
            return storages[key]

        return _flat(_load(io.BytesIO(archive.read(pickles[0])), _TORCH_NAMES, storage))


def _read_torch_stream(path: Path) -> Arrays:
    """torch before 1.6: pickles of magic number, version, system, object, keys; then storages."""
    storages: dict[str, _Storage] = {}

    def storage(pid: tuple) -> _Storage:
        _, kind, key, _, count = pid[:5]
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("it has views of storages, as torch before 0.4 wrote them")
        return storages.setdefault(key, _Storage(kind.dtype, count))

    with _mapped(path) as file:
        for _ in range(3):
            _load(file, {})
        tree = _load(file, _TORCH_NAMES, storage)
        for key in _load(file, {}):
            (count,) = struct.unpack("<q", file.read(8))
            entry = storages[key]
            if count != entry.count:
                raise ValueError(
                    f"wrong size of storage {key}: got {count}, expected {entry.count}"
                )
            if not 0 <= count * entry.dtype.itemsize <= file.size() - file.tell():
                raise ValueError("it ends within a tensor")
            entry.data = np.frombuffer(file.read(count * entry.dtype.itemsize), entry.dtype)
    return _flat(tree)


def _read_numpy_pickle(path: Path) -> Arrays:
    with _mapped(path) as file:
        return _flat(_load(file, _NUMPY_NAMES))


def _read_keras(path: Path) -> Arrays:
    with zipfile.ZipFile(path) as archive:
        return hdf5.read_keras(archive)


def _read_h5(path: Path) -> Arrays:
    with path.open("rb") as file:  # HDF5 would lock the path, which can fail
        return hdf5.read_h5(file)


def _format(path: Path) -> Callable[[Path], Arrays]:
    with path.open("rb") as file:
        head = file.read(64)
    if head[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(path) as archive:
            return _read_keras if "config.json" in archive.namelist() else _read_torch_zip
    if head[:8] == hdf5.MAGIC:
        return _read_h5
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return _read_safetensors
    if head[:1] == b"\x80":
        with _mapped(path) as file:
            first = _load(file, {}) if TORCH_MAGIC.to_bytes(10, "little") in head else None
        return _read_torch_stream if first == TORCH_MAGIC else _read_numpy_pickle
    raise ValueError(f"unknown format: its first bytes are {head[:8]!r}, expected {FORMATS}")


def read(path: str | Path) -> Arrays:
    """Reads every tensor of a weights file, under the file's names.

    Args:
      path: a file of safetensors, torch (`.pth`: zip or older stream), a pickled dict of numpy
        arrays, or Keras (`.h5`, `.weights.h5`, `.keras`); the suffix of its name is not used.

    Returns:
      Name -> array, with the dtype and in the order of the file. Names of nested dicts and lists
      are joined by "/"; all of Keras' layouts have names of one form (`hdf5`).

    Raises:
      ValueError: the file is missing, has another format, is truncated, or holds something other
        than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights file at {path}; give a path to a file of one of: {FORMATS}")
    try:
        return _format(path)(path)
    except Exception as error:  # a damaged or hostile file can raise anything
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise ValueError(f"cannot read weights from {path}: {reason}") from error


def open_weights(path: str | Path, which: str = "") -> Contents:
    """Reads the tensors of a weights file and its metadata.

    Args:
      path: as `read`, or an index of shards (`*.index.json`), a folder with one, or a shard.
      which: the weights to read if a file holds several: "ema", "raw", or a key path such as
        "state_dict"; default: EMA weights if there are any, as in timm.

    Raises:
      ValueError: as `read`; or the file has no weights named `which`.
    """
    del which
    return Contents(read(path), "torch")


def candidates(contents: Contents) -> list[Contents]:
    """Readings of the same tensors with more and more of a shared prefix removed.

    The first is `contents` itself. Each of the others lacks a further prefix that all names share
    ("model.", "module.model.", ...), or has only the tensors of one branch ("backbone." next to
    "projector."), whose siblings are then in `left_out`. A caller that knows the architecture
    chooses the one that fits best.
    """
    return [contents]
