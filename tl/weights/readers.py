"""Weights files as flat dicts of numpy arrays, with nothing in the file ever executed.

`read` finds the format by content, not by ending: safetensors, torch's zip, torch's older pickle stream, a pickled dict
of numpy arrays, and Keras' HDF5 files and archives (`hdf5`). Pickles go through an unpickler that knows a handful of
harmless names; any other name in the file is refused and told. Nothing here knows architectures; that is `port`.
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

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER of the older stream
STORAGES = {  # torch's typed storages; the names are in the file, the widths are numpy's
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
    """A run of numbers that tensors view; filled once its bytes have been read."""

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
        if 0 not in self.shape and (
            last >= stored or math.prod(self.shape) > stored
        ):  # stride 0 needs no storage
            raise ValueError(
                f"a tensor of shape {self.shape} reaches past the {stored} numbers stored for it"
            )
        width = self.storage.dtype.itemsize
        return np.lib.stride_tricks.as_strided(  # no copy: a thousand tensors on one storage take its memory once
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
    """A number type as numpy pickles it; takes over numpy's own unpickling, which trusts the file."""

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
    """How protocol 5, Python 3.14's default, writes a contiguous array."""
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
    ("_codecs", "encode"): lambda text, encoding: text.encode(
        "latin1"
    ),  # how protocol 2 wrote bytes
    ("__builtin__", "bytes"): lambda: b"",  # how protocol 2 wrote no bytes
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct, which ignores it
    ("numpy", "dtype"): _NumpyDtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _NumpyArray for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _numpy_from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    """Builds containers, numbers and the given names; refuses every other name in the stream."""

    def __init__(
        self,
        file: Any,
        names: Mapping[tuple[str, str], Any],
        storage: Callable[[tuple], _Storage] | None = None,
    ):
        super().__init__(file, encoding="latin1")  # numpy's Python-2 pickles hold bytes as str
        self.names, self.storage = names, storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise ValueError(
                f"it names {module}.{name}, which tensors do not need; nothing was run"
            )
        return self.names[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if self.storage is None or not (
            isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"
        ):
            raise ValueError(f"it refers to {pid!r}, which is not a tensor's storage")
        return self.storage(pid)


def _mapped(path: Path) -> mmap.mmap:
    """The file for reading; unlike `open`'s, `read(n)` sets no memory aside for an `n` beyond the file's end."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _load(
    file: Any,
    names: Mapping[tuple[str, str], Any],
    storage: Callable[[tuple], _Storage] | None = None,
) -> Any:
    """The next pickle of a file, once its memo is known to be honest: `pickle` makes room for any index it reads."""
    start = file.tell()
    for count, (op, arg, _) in enumerate(pickletools.genops(file)):
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT") and (arg or 0) > count:
            raise ValueError(f"it puts memo {arg} after {count} steps")
    file.seek(start)
    return _Unpickler(file, names, storage).load()


def _flat(tree: Any) -> Arrays:
    """Nested dicts and lists of tensors as a flat dict; a `state_dict` wrapper (and the like) around them is taken off."""
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(tree, Mapping) and isinstance(tree.get(wrapper), Mapping):
            tree = tree[wrapper]
    flat: Arrays = {}
    seen: set[int] = set()

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, (Mapping, list, tuple)) and not isinstance(node, _Tensor):
            if id(node) in seen and len(
                node
            ):  # in itself, or so often that walking them all would take for ever
                raise ValueError(
                    f"the {type(node).__name__} {prefix!r} is also found elsewhere in the file"
                )
            seen.add(id(node))
            for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
                walk(value, f"{prefix}/{key}" if prefix else str(key))
        elif isinstance(node, _Tensor):
            flat[prefix] = node.array()
        elif isinstance(node, _NumpyArray):
            flat[prefix] = node.array
        else:
            raise ValueError(
                f"{prefix or 'the top level'} is a {type(node).__name__}, not a tensor or a dict or list of tensors"
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
            raise ValueError(f"it is a zip with {len(pickles)} data.pkl, where torch writes one")
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("it is a compressed zip, where torch stores tensors as they are")
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
    """torch before 1.6: four pickles (magic, version, system, object), the storages' keys, then their bytes in turn."""
    storages: dict[str, _Storage] = {}

    def storage(pid: tuple) -> _Storage:
        _, kind, key, _, count = pid[:5]
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("it holds views of storages, as torch before 0.4 wrote them")
        return storages.setdefault(key, _Storage(kind.dtype, count))

    with _mapped(path) as file:
        for _ in range(3):
            _load(file, {})
        tree = _load(file, _TORCH_NAMES, storage)
        for key in _load(file, {}):
            (count,) = struct.unpack("<q", file.read(8))
            entry = storages[key]
            if count != entry.count:
                raise ValueError(f"storage {key} announces {entry.count} numbers and holds {count}")
            if not 0 <= count * entry.dtype.itemsize <= file.size() - file.tell():
                raise ValueError("it ends in the middle of a tensor")
            entry.data = np.frombuffer(file.read(count * entry.dtype.itemsize), entry.dtype)
    return _flat(tree)


def _read_numpy_pickle(path: Path) -> Arrays:
    with _mapped(path) as file:
        return _flat(_load(file, _NUMPY_NAMES))


def _read_keras(path: Path) -> Arrays:
    with zipfile.ZipFile(path) as archive:
        return hdf5.read_keras(archive)


def _read_h5(path: Path) -> Arrays:
    with path.open(
        "rb"
    ) as file:  # a Python file takes no lock, which some cluster file systems refuse
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
    raise ValueError(f"its first bytes {head[:8]!r} begin no format that tl reads: {FORMATS}")


def read(path: str | Path) -> Arrays:
    """Every tensor in a weights file, by the file's own names (nested dicts and lists joined by "/").

    Args:
      path: safetensors, torch `.pth` (zip or older stream), a pickled dict of numpy arrays, or Keras' `.h5`,
        `.weights.h5` or `.keras`, whatever its ending.

    Returns:
      name -> array, with the dtype and in the order of the file; of Keras' three under one naming (`hdf5`).

    Raises:
      ValueError: the file is missing, is none of these, is cut short, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no weights file at {path}; give a path to a file of one of: {FORMATS}")
    try:
        return _format(path)(path)
    except (
        Exception
    ) as error:  # whatever a hostile or broken file provokes, the user gets one sentence
        why = " ".join(str(error).split())[:400] or type(error).__name__
        raise ValueError(f"cannot read weights from {path}: {why}") from error
