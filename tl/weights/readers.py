"""Reads weights files as flat dicts of numpy arrays; nothing in a file is executed.

`open_weights` detects the format by the content of a file, not by its suffix: safetensors, torch's
zip, torch's older pickle stream, numpy's `.npz`, a pickled dict of numpy arrays, and Keras' HDF5
files and archives (`hdf5`). Pickles are read as data (`pickles`), and `checkpoints` chooses the
weights among the entries of a training checkpoint. This module does not depend on architectures;
`port` renames the tensors.
"""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tl.paths import ending
from tl.weights import checkpoints, hdf5, pickles
from tl.weights.contents import Arrays, Contents
from tl.weights.pickles import NAMES, Storage

__all__ = ["FORMATS", "TORCH_MAGIC", "Arrays", "Contents", "open_weights", "read"]

FORMATS = (
    "safetensors, torch (.pth, .pt, .bin), pickled numpy, Keras (.h5, .weights.h5, .keras), .npz"
)

# MAGIC_NUMBER of the older stream in torch/serialization.py.
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
# Beginnings, in small letters, of files that people have instead of weights.
OTHERS = {
    b"version https://git-lfs": "it is a pointer of Git LFS (git lfs pull fetches the file)",
    b"<!doctype html": "it is a web page (the download did not give the file)",
    b"<html": "it is a web page (the download did not give the file)",
    b"<?xml": "it is XML text (the download did not give the file)",
    b"entry not found": "it is a message of the hub (the download did not give the file)",
    b"repository not found": "it is a message of the hub (the download did not give the file)",
    b"access to model": "it is a message of the hub (the download did not give the file)",
    b"invalid username": "it is a message of the hub (the download did not give the file)",
    b"{": "it is JSON text",
    b"\x1f\x8b": "it is compressed with gzip (gunzip gives the file)",
    b"bzh": "it is compressed with bzip2 (bunzip2 gives the file)",
    b"\xfd7zxz": "it is compressed with xz (unxz gives the file)",
    b"7z\xbc\xaf": "it is a 7z archive (7z x gives the files)",
    b"rar!": "it is a RAR archive (unrar x gives the files)",
    b"\x93numpy": "it is one array of NumPy (.npy)",
    b"gguf": "it is a GGUF file",
    b"matlab": "it is a file of MATLAB",
    b"(": "it is a pickle of protocol 0 (pickle it again with protocol 2 or later)",
}
# Endings of files without a fixed beginning.
OTHER_ENDINGS = {
    ".onnx": "it is an ONNX file (export the weights of the network it was made from)",
    ".tflite": "it is a TensorFlow Lite file",
    ".pb": "it is a graph of TensorFlow (save the weights with Keras as .h5)",
    ".index": "it is a checkpoint of TensorFlow (save the weights with Keras as .h5)",
    ".msgpack": "it is a file of Flax (save the variables as safetensors)",
    ".mlmodel": "it is a Core ML file",
    ".engine": "it is a TensorRT engine",
}
# Ending of the list of shards, as transformers and timm write it.
INDEX = ".index.json"
# Largest ratio of the arrays in a compressed .npz to the file, so that no file fills the memory.
_EXPANSION = 20
# Letters of a reason, and of a path, that an error message keeps.
_REASON, _PATH = 330, 200

_Use = Callable[[Any, str, Mapping[str, Any]], Contents]
"""Takes the tree of a file, its format and its metadata while the file is open."""


def _read_safetensors(path: Path, use: _Use) -> Contents:
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except (AttributeError, KeyError) as error:
        raise ValueError(f"it has a number type that is not read ({error})") from error
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return use(arrays, "safetensors", header.get("__metadata__") or {})


def _read_torch_zip(path: Path, use: _Use) -> Contents:
    with zipfile.ZipFile(path) as archive:
        trees = [n for n in archive.namelist() if n.endswith("/data.pkl") or n == "data.pkl"]
        if len(trees) != 1:
            names = ", ".join(name[-40:] for name in archive.namelist()[:3])
            raise ValueError(
                "it is an archive of torch.export, expected a state_dict"
                if any("/data/weights/" in name for name in archive.namelist())
                else f"it is a zip with {len(trees)} data.pkl, expected one; unpack it if it is an "
                f"archive: it has {names or 'no file'}"
            )
        root, storages = trees[0][: -len("data.pkl")], {}
        # TorchScript compresses its code, which is not read.
        if any(
            info.compress_type != zipfile.ZIP_STORED
            for info in archive.infolist()
            if not info.filename.startswith(f"{root}code/")
        ):
            raise ValueError("it is a compressed zip, but torch does not compress tensors")
        if (
            f"{root}byteorder" in archive.namelist()
            and archive.read(f"{root}byteorder") != b"little"
        ):
            raise ValueError("it was written by a big-endian machine")

        def storage(pid: tuple) -> Storage:
            _, kind, key, _, count = pid[:5]
            dtype = kind.dtype

            def data() -> np.ndarray:
                return np.frombuffer(archive.read(f"{root}data/{key}"), dtype, count)

            return storages.setdefault(key, Storage(dtype, count, data))

        tree = pickles.load(io.BytesIO(archive.read(trees[0])), NAMES, storage)
        return use(tree, "torch", {})


def _read_torch_stream(path: Path, use: _Use) -> Contents:
    with pickles.mapped(path) as file:
        return use(_torch_stream(file, file.size(), NAMES), "torch", {})


def _torch_stream(file: Any, size: int, names: Mapping[tuple[str, str], Any]) -> Any:
    """torch before 1.6: pickles of magic number, version, system, object, keys; then storages."""
    storages: dict[str, Storage] = {}

    def storage(pid: tuple) -> Storage:
        _, kind, key, _, count = pid[:5]
        if len(pid) > 5 and pid[5] is not None:
            raise ValueError("it has views of storages, as torch before 0.4 wrote them")
        return storages.setdefault(key, Storage(kind.dtype, count))

    if pickles.load(file, {}) != TORCH_MAGIC:
        raise ValueError("a tensor in it is not stored as torch stores it")
    for _ in range(2):
        pickles.load(file, {})
    tree = pickles.load(file, names, storage)
    for key in pickles.load(file, {}):
        (count,) = struct.unpack("<q", file.read(8))
        if key not in storages:
            raise ValueError(f"storage {key} has a number type that numpy lacks")
        entry = storages[key]
        if count != entry.count:
            raise ValueError(f"wrong size of storage {key}: got {count}, expected {entry.count}")
        start, length = file.tell(), count * entry.dtype.itemsize
        if not 0 <= length <= size - start:
            raise ValueError("it ends within a tensor")

        def data(entry: Storage = entry, start: int = start, length: int = length) -> np.ndarray:
            file.seek(start)
            return np.frombuffer(file.read(length), entry.dtype)

        entry.read = data
        file.seek(start + length)
    return tree


def _storage_from_bytes(raw: bytes) -> Any:
    """A storage in a `pickle.dump` of a torch tensor: a stream of torch within the pickle."""
    return _torch_stream(io.BytesIO(raw), len(raw), NAMES)


def _read_pickle(path: Path, use: _Use) -> Contents:
    inner = {("torch.storage", "_load_from_bytes"): pickles.Function(_storage_from_bytes)}
    with pickles.mapped(path) as file:
        return use(pickles.load(file, NAMES | inner), "numpy pickle", {})


def _read_keras(path: Path, use: _Use) -> Contents:
    with zipfile.ZipFile(path) as archive:
        arrays, metadata = hdf5.read_keras(archive)
    return use(arrays, "keras", metadata)


def _read_npz(path: Path, use: _Use) -> Contents:
    with np.load(path, allow_pickle=False) as archive:
        size = sum(info.file_size for info in archive.zip.infolist())
        if size > _EXPANSION * path.stat().st_size:
            raise ValueError(f"its arrays have more than {_EXPANSION} times the size of the file")
        return use({name: archive[name] for name in archive.files}, "numpy", {})


def _read_h5(path: Path, use: _Use) -> Contents:
    with path.open("rb") as file:  # HDF5 would lock the path, which can fail
        arrays, metadata = hdf5.read_h5(file)
    return use(arrays, "keras", metadata)


def _format(path: Path) -> Callable[[Path, _Use], Contents]:
    with path.open("rb") as file:
        head = file.read(64)
    if head[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if names and all(name.endswith(".npy") for name in names):
            return _read_npz
        return _read_keras if "config.json" in names else _read_torch_zip
    if head[:8] == hdf5.MAGIC:
        return _read_h5
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return _read_safetensors
    if head[:1] == b"\x80":
        with pickles.mapped(path) as file:
            first = pickles.load(file, {}) if TORCH_MAGIC.to_bytes(10, "little") in head else None
        return _read_torch_stream if first == TORCH_MAGIC else _read_pickle
    finding = next((word for start, word in OTHERS.items() if head.lower().startswith(start)), "")
    if head[8:9] == b"{" or not head:
        finding = "it is empty" if not head else "it is a safetensors file that is not complete"
        raise ValueError(f"unknown format: {finding}; download or copy it again")
    if not finding and tarfile.is_tarfile(path):
        finding = "it is a tar archive (tar -xf gives the files)"
    finding = finding or OTHER_ENDINGS.get(path.suffix.lower(), f"its first bytes are {head[:8]!r}")
    raise ValueError(f"unknown format: {finding}, expected {FORMATS}")


def open_weights(path: str | Path, which: str = "") -> Contents:
    """Reads the tensors of a weights file and its metadata.

    Args:
      path: a file of safetensors, torch (`.pth`: zip or older stream), numpy (`.npz`, or a pickled
        dict of arrays), or Keras (`.h5`, `.weights.h5`, `.keras`); the suffix of its name is not
        used. Or the index of shards (`*.index.json`), the folder that holds it, or one of the
        shards.
      which: the weights to read if a file holds several: "ema", "raw", or a key path such as
        "state_dict"; default: EMA weights if there are any, as in timm.

    Returns:
      The tensors, with the dtype and in the order of the file. Names of nested dicts and lists are
      joined by "/"; all of Keras' layouts have names of one form (`hdf5`).

    Raises:
      ValueError: the file is missing, has another format, is truncated, holds no tensors, names
        code that would run commands, or has no weights named `which`; or shards are missing.
    """
    path = Path(path)

    def choose(tree: Any, form: str, metadata: Mapping[str, Any]) -> Contents:
        return checkpoints.contents(tree, form, which, metadata)

    def whole(tree: Any, form: str, metadata: Mapping[str, Any]) -> Contents:
        return Contents(checkpoints.flat_arrays(tree), form, metadata)

    try:
        shards = _shards(path)
        if not shards and not path.is_file():
            raise FileNotFoundError
        if not shards:
            return _format(path)(path, choose)
        arrays: Arrays = {}
        form, metadata = "", {}
        for shard, names in shards.items():
            part = _format(shard)(shard, whole)
            form, metadata = part.format, {**metadata, **part.metadata}
            if absent := sorted(names - part.arrays.keys()):
                raise ValueError(f"{shard.name} lacks {absent[0][:80]}, which its index lists")
            arrays |= {n: a for n, a in part.arrays.items() if n in names or not names}
        return checkpoints.contents(arrays, form, which, metadata)
    except FileNotFoundError:
        raise ValueError(
            f"no weights file at {ending(path, _PATH)}; give a path to a file of one of: {FORMATS}"
        ) from None
    except Exception as error:  # a damaged or hostile file can raise anything
        text = "".join(c if c.isprintable() else " " for c in str(error)[:4000])
        reason = " ".join(text.split())[:_REASON] or type(error).__name__
        raise ValueError(f"cannot read weights from {ending(path, _PATH)}: {reason}") from error


def read(path: str | Path) -> Arrays:
    """The tensors that `open_weights` reads."""
    return open_weights(path).arrays


def _shards(path: Path) -> dict[Path, set[str]]:
    """The shards that `path` names and the tensors that an index expects in each; {} for a file."""
    numbered = re.fullmatch(r"(.*)-(\d+)-of-(\d+)(\..*)", path.name)
    if path.is_dir():
        indices = sorted(path.glob(f"*{INDEX}"), key=lambda p: "safetensors" not in p.name)
    elif path.name.endswith(INDEX):
        indices = [path] if path.is_file() else []
    elif numbered:
        indices = [p for p in path.parent.glob(f"*{INDEX}") if path.name in _weight_map(p).values()]
    else:
        return {}
    shards: dict[Path, set[str]] = {}
    if indices:
        for name, file in _weight_map(indices[0]).items():
            shards.setdefault(indices[0].parent / file, set()).add(name)
    elif numbered and path.is_file() and int(numbered[3]) <= 10_000:
        stem, digits, total, ending = numbered.groups()
        for number in range(1, int(total) + 1):
            shards[path.parent / f"{stem}-{number:0{len(digits)}d}-of-{total}{ending}"] = set()
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise ValueError(
            f"{len(missing)} of {len(shards)} shards are missing: {', '.join(missing[:3])[:200]}"
            f"{', ...' if missing[3:] else ''}; put all of them into one folder"
        )
    return shards


def _weight_map(index: Path) -> dict[str, str]:
    """Name of a tensor -> file, of an index of shards."""
    with index.open(encoding="utf-8") as file:
        content = json.load(file)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{index.name} is not an index of shards, expected a weight_map")
    for file in files.values():
        if not isinstance(file, str) or Path(file).name != file or "\\" in file:
            raise ValueError(
                f"{index.name} names the shard {str(file)[:80]!r}, expected a file name"
            )
    return files
