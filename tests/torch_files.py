"""Writes torch's files without torch: the pickles, the zip and the older stream."""

from __future__ import annotations

import pickle
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tl.weights.readers import TORCH_MAGIC


class Name(NamedTuple):
    """A GLOBAL in the stream."""

    module: str
    name: str


class Call(NamedTuple):
    """GLOBAL, arguments, REDUCE, and BUILD if there is a state."""

    function: Name
    args: tuple
    state: Any = None


class Persistent(NamedTuple):
    """BINPERSID, which torch writes for a storage."""

    pid: Any


class Opcodes(pickle._Pickler):  # the Python version, which can be extended
    dispatch = dict(pickle._Pickler.dispatch)

    def save_name(self, node: Name) -> None:
        self.write(pickle.GLOBAL + f"{node.module}\n{node.name}\n".encode())

    def save_call(self, node: Call) -> None:
        self.save(node.function)
        self.save(node.args)
        self.write(pickle.REDUCE)
        if node.state is not None:
            self.save(node.state)
            self.write(pickle.BUILD)

    def save_persistent(self, node: Persistent) -> None:
        self.save(node.pid)
        self.write(pickle.BINPERSID)

    dispatch |= {Name: save_name, Call: save_call, Persistent: save_persistent}


def pickled(tree: Any) -> bytes:
    file = BytesIO()
    Opcodes(file, protocol=2).dump(tree)
    return file.getvalue()


def storage(kind: str, key: str, count: Any, *view: Any) -> Persistent:
    return Persistent(("storage", Name("torch", kind), key, "cpu", count, *view))


def tensor(stored: Any, shape: Any, strides: Any, offset: Any = 0) -> Call:
    hooks = Call(Name("collections", "OrderedDict"), ())
    return Call(
        Name("torch._utils", "_rebuild_tensor_v2"), (stored, offset, shape, strides, False, hooks)
    )


def torch_zip(
    path: Path,
    tree: Any,
    storages: dict[str, bytes],
    *,
    compress: int = zipfile.ZIP_STORED,
    **more: bytes,
) -> Path:
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("archive/data.pkl", pickled(tree))
        for name, raw in more.items():
            archive.writestr(f"archive/{name}", raw)
        for key, raw in storages.items():
            archive.writestr(f"archive/data/{key}", raw)
    return path


def torch_stream(path: Path, tree: Any, storages: dict[str, tuple[int, bytes]]) -> Path:
    system = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    parts = [pickled(part) for part in (TORCH_MAGIC, 1001, system, tree, list(storages))]
    path.write_bytes(
        b"".join(parts)
        + b"".join(struct.pack("<q", count) + raw for count, raw in storages.values())
    )
    return path


NUMBERS = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def checkpoint(path: Path, tree: Any, *, form: str = "zip") -> Path:
    """Writes a tree of dicts and lists whose arrays become tensors, as `torch.save` does.

    Arrays that are the same object share a storage. `form` is "zip" or "stream".
    """
    storages: dict[str, tuple[int, bytes]] = {}
    keys: dict[int, str] = {}

    def convert(node: Any) -> Any:
        if isinstance(node, np.ndarray):
            key = keys.setdefault(id(node), str(len(keys)))
            storages[key] = (node.size, node.tobytes())
            kind = next(kind for kind, dtype in NUMBERS.items() if dtype == node.dtype)
            strides = np.empty(node.shape, node.dtype).strides
            view = [None] if form == "stream" else []
            return tensor(
                storage(kind, key, node.size, *view),
                node.shape,
                tuple(stride // node.itemsize for stride in strides),
            )
        if isinstance(node, Call):
            return Call(node.function, convert(node.args), convert(node.state))
        if isinstance(node, dict):
            return type(node)((key, convert(value)) for key, value in node.items())
        if type(node) in (list, tuple):
            return type(node)(convert(value) for value in node)
        return node

    converted = convert(tree)
    if form == "stream":
        return torch_stream(path, converted, storages)
    return torch_zip(path, converted, {key: raw for key, (_, raw) in storages.items()})


def namespace(name: str = "argparse.Namespace", **attributes: Any) -> Call:
    """An object with attributes, as a pickle holds it."""
    module, _, last = name.rpartition(".")
    reconstruct = Name("copy_reg", "_reconstructor")
    return Call(reconstruct, (Name(module, last), Name("__builtin__", "object"), None), attributes)
