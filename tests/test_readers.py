"""`tl.weights.readers`: files are read by their content, and nothing in a file is executed.

The torch files are written here without torch; test_parity.py reads files that torch wrote.
"""

from __future__ import annotations

import builtins
import os
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tests.torch_files import (
    NUMBERS,
    Call,
    Name,
    Persistent,
    pickled,
    storage,
    tensor,
    torch_stream,
    torch_zip,
)
from tl.weights import pickles
from tl.weights.readers import TORCH_MAGIC, read

MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3) / 4


def write_safetensors(path: Path, array: np.ndarray) -> Path:
    save_file({"w": array}, path)
    return path


def write_zip(path: Path, array: np.ndarray) -> Path:
    kind = next(kind for kind, dtype in NUMBERS.items() if dtype == array.dtype)
    strides = tuple(s // array.itemsize for s in np.empty(array.shape, array.dtype).strides)
    return torch_zip(
        path,
        {"w": tensor(storage(kind, "0", array.size), array.shape, strides)},
        {"0": array.tobytes()},
    )


def write_stream(path: Path, array: np.ndarray) -> Path:
    kind = next(kind for kind, dtype in NUMBERS.items() if dtype == array.dtype)
    strides = tuple(s // array.itemsize for s in np.empty(array.shape, array.dtype).strides)
    stored = storage(kind, "94", array.size, None)
    return torch_stream(
        path, {"w": tensor(stored, array.shape, strides)}, {"94": (array.size, array.tobytes())}
    )


def write_pickle(protocol: int) -> Callable[[Path, np.ndarray], Path]:
    def write(path: Path, array: np.ndarray) -> Path:
        path.write_bytes(pickle.dumps({"w": array}, protocol=protocol))
        return path

    return write


WRITERS = {
    "safetensors": write_safetensors,
    "torch zip": write_zip,
    "torch stream": write_stream,
    **{f"pickle {protocol}": write_pickle(protocol) for protocol in (2, 3, 4, 5)},
}
each_format = pytest.mark.parametrize("form", WRITERS)


def error_of(path: Path) -> str:
    """The error message for a file, without the part that names the file."""
    with pytest.raises(ValueError) as caught:
        read(path)
    message = str(caught.value)
    assert (
        message.startswith(f"cannot read weights from {path}: ")
        and "\n" not in message
        and len(message) < 700
    )
    return message.removeprefix(f"cannot read weights from {path}: ")


# --- files that are read ----------------------------------------------------------------------


@each_format
@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".txt", ""])
def test_the_format_is_given_by_the_content_and_not_the_ending(
    tmp_path: Path, form: str, ending: str
):
    (pair,) = read(WRITERS[form](tmp_path / f"weights{ending}", MATRIX)).items()
    assert pair[0] == "w" and pair[1].dtype == np.float32
    np.testing.assert_array_equal(pair[1], MATRIX)


@pytest.mark.parametrize(
    "form, dtype",
    [
        (form, np.dtype(dtype))
        for form in WRITERS
        for dtype in NUMBERS.values()
        if not (form.startswith("pickle") and dtype is ml_dtypes.bfloat16)  # not a type of numpy
    ],
)
def test_every_number_type_is_read_bit_for_bit(tmp_path: Path, form: str, dtype: Any):
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    arrays = read(WRITERS[form](tmp_path / "w", array))["w"]
    assert arrays.dtype == array.dtype and arrays.tobytes() == array.tobytes()


@each_format
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1, 1, 5)])
def test_scalars_and_empty_tensors_are_read(tmp_path: Path, form: str, shape: tuple[int, ...]):
    arrays = read(WRITERS[form](tmp_path / "w", np.full(shape, 0.5, np.float32)))["w"]
    assert arrays.shape == shape and (arrays == 0.5).all()


@pytest.mark.parametrize("write", ["zip", "stream"])
def test_transposed_sliced_and_shared_tensors_are_read(tmp_path: Path, write: str):
    raw = np.arange(12, dtype=np.float32)
    stored = storage("FloatStorage", "0", 12, *([None] if write == "stream" else []))
    tree = {
        "whole": tensor(stored, (3, 4), (4, 1)),
        "transposed": tensor(stored, (4, 3), (1, 4)),
        "second row": tensor(stored, (4,), (1,), 4),
        "every other column": tensor(stored, (3, 2), (4, 2), 1),
        "parameter": Call(
            Name("torch._utils", "_rebuild_parameter"), (tensor(stored, (2,), (1,)), True, {})
        ),
    }
    if write == "zip":
        arrays = read(
            torch_zip(
                tmp_path / "w.pth", tree, {"0": raw.tobytes()}, version=b"3\n", byteorder=b"little"
            )
        )
    else:
        arrays = read(torch_stream(tmp_path / "w.pth", tree, {"0": (12, raw.tobytes())}))
    whole = raw.reshape(3, 4)
    expected = dict(zip(tree, [whole, whole.T, whole[1], whole[:, 1::2], raw[:2]], strict=True))
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("byteorder", ["<f4", ">f4", "<f8", ">i2"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_numpy_pickles_are_read_in_every_memory_order(
    tmp_path: Path, order: str, byteorder: str, protocol: int
):
    array = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=byteorder, order=order)
    for part in (array, array[:, ::2]):  # the second is not contiguous
        (tmp_path / "w").write_bytes(pickle.dumps({"a": {"b": part}}, protocol=protocol))
        np.testing.assert_array_equal(read(tmp_path / "w")["a/b"], part)


def test_wrappers_are_removed_and_nested_names_are_joined(tmp_path: Path):
    for wrapper in ("state_dict", "model", "model_state_dict"):
        tree = {"epoch": 3, wrapper: OrderedDict(a={"b": MATRIX, "c": MATRIX})}
        (tmp_path / "w").write_bytes(pickle.dumps(tree))
        assert set(read(tmp_path / "w")) == {"a/b", "a/c"}


def test_lists_of_tensors_are_numbered(tmp_path: Path):
    """`ndf`'s SqueezeNet has layer -> [kernel, bias]."""
    (tmp_path / "w").write_bytes(
        pickle.dumps({"fire2/squeeze1x1": [MATRIX, MATRIX[0]], "conv10": (MATRIX[1],), "none": []})
    )
    arrays = read(tmp_path / "w")
    assert list(arrays) == ["fire2/squeeze1x1/0", "fire2/squeeze1x1/1", "conv10/0"]
    np.testing.assert_array_equal(arrays["fire2/squeeze1x1/1"], MATRIX[0])


def test_the_older_module_names_of_numpy_are_read(tmp_path: Path):
    """numpy 1 wrote `numpy.core`, numpy 2 writes `numpy._core`."""
    new = pickle.dumps({"w": MATRIX}, protocol=2)
    assert b"numpy._core." in new
    (tmp_path / "w").write_bytes(new.replace(b"numpy._core.", b"numpy.core."))
    np.testing.assert_array_equal(read(tmp_path / "w")["w"], MATRIX)


# --- files that would execute something -------------------------------------------------------


class Run:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *args: Any):
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def hostile(canary: Path) -> dict[str, Any]:
    touch = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": Run(os.system, f"touch {canary}"),
        "builtins.exec": Run(builtins.exec, touch),
        "builtins.eval": {"w": Run(builtins.eval, touch)},
        "builtins.getattr": Run(getattr, Path(canary), "touch"),
        "pathlib.Path": Run(Path, str(canary)),
        "subprocess": Run(__import__("subprocess").check_call, ["touch", str(canary)]),
        "importlib": Run(__import__("importlib").import_module, "antigravity"),
        "inside an object array": {
            "w": np.array([Run(os.system, f"touch {canary}")], dtype=object)
        },
        "next to good tensors": {
            "w": MATRIX,
            "v": {"deep": [MATRIX, {"x": Run(os.system, f"touch {canary}")}]},
        },
        "as a key": {("a", Run(os.system, f"touch {canary}")): MATRIX},
    }


@pytest.mark.parametrize("name", hostile(Path("x")))
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_that_would_execute_something_is_an_error_and_executes_nothing(
    tmp_path: Path, name: str, protocol: int
):
    canary, file = tmp_path / "canary", tmp_path / "weights.pkl"
    file.write_bytes(pickle.dumps(hostile(canary)[name], protocol=protocol))
    message = error_of(file)
    assert not canary.exists()
    if name in ("builtins.getattr", "pathlib.Path"):  # harmless as a record
        assert "it has no dict of tensors: got an object of" in message
    else:
        assert "which tensors do not need; nothing was executed" in message
    if name in ("os.system", "builtins.exec"):
        pickle.loads(file.read_bytes())
        assert canary.exists(), "the canary itself does not work"


@pytest.mark.parametrize("where", ["zip", "stream", "stream header", "storage id"])
def test_a_torch_file_that_would_execute_something_is_an_error(tmp_path: Path, where: str):
    canary, file = tmp_path / "canary", tmp_path / "weights.pth"
    evil = Call(Name("posix", "system"), (f"touch {canary}",))
    if where == "zip":
        torch_zip(file, {"w": evil}, {})
    elif where == "storage id":
        torch_zip(
            file,
            {"w": tensor(Persistent(("storage", evil, "0", "cpu", 1)), (1,), (1,))},
            {"0": b"\0" * 4},
        )
    elif where == "stream":
        torch_stream(file, {"w": evil}, {})
    else:
        file.write_bytes(
            pickled(TORCH_MAGIC) + pickled(evil) + pickled({}) + pickled({}) + pickled([])
        )
    assert "posix.system" in error_of(file) and not canary.exists()


@pytest.mark.parametrize(
    "module, name",
    [
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.__init__"),
        ("numpy", "load"),
        ("numpy", "memmap"),
        ("tl.weights.readers", "read"),
        ("__main__", "x"),
    ],
)
@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_names_that_tensors_do_not_need_are_placeholders_and_never_tensors(
    tmp_path: Path, module: str, name: str, form: str
):
    tree = {"w": Call(Name(module, name), ("x",))}
    if form == "zip":
        torch_zip(tmp_path / "w", tree, {})
    else:
        (tmp_path / "w").write_bytes(pickled(tree))
    message = error_of(tmp_path / "w")
    if form == "pickle" and name == "_load_from_bytes":  # which is read as data; "x" is not
        assert "bytes-like object" in message
    else:
        assert f"it has no dict of tensors: got dict with w ({module}.{name})" == message


# --- files with false sizes, and files of other formats ---------------------------------------


def four(shape: Any, strides: Any, offset: Any = 0, count: Any = 4) -> Any:
    return {"w": tensor(storage("FloatStorage", "0", count, None), shape, strides, offset)}


LIES = {
    "more rows than stored": four((5,), (1,)),
    "an offset past the end": four((2,), (1,), 3),
    "a negative offset": four((2,), (1,), -1),
    "a negative stride": four((2,), (-1,), 3),
    "a negative length": four((-1,), (1,)),
    "fewer strides": four((2, 2), (1,)),
    "shapes that are not integers": four((2.0,), (1,)),
    "a shape that is not a tuple": four(None, (1,)),
    "a terabyte from stride 0": four((10**12,), (0,)),
    "16 GB from strides 0": four((2**16, 2**16), (0, 0)),
    "beyond 64 bits": four((10**30,), (0,)),
    "a count beyond the data": four((2,), (1,), 0, 10**15),
    "a count that is not a number": four((2,), (1,), 0, "many"),
    "an unknown storage": {"w": tensor(Persistent(("module", "x")), (1,), (1,))},
    "a storage of text": {
        "w": tensor(Persistent(("storage", "FloatStorage", "0", "cpu", 4, None)), (1,), (1,))
    },
    "a tensor on no storage": {"w": tensor(MATRIX.tolist(), (1,), (1,))},
    "an integer for a tensor": {"w": 3},
    "a list of tensors": [1, 2],
    "nothing": None,
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("form", ["zip", "stream"])
def test_false_sizes_are_an_error_and_use_no_memory(tmp_path: Path, name: str, form: str):
    raw = np.zeros(4, np.float32).tobytes()
    if form == "zip":
        torch_zip(tmp_path / "w", LIES[name], {"0": raw})
    else:
        count = 10**15 if name == "a count beyond the data" else 4
        torch_stream(tmp_path / "w", LIES[name], {"0": (count, raw)})
    tracemalloc.start()
    try:
        error_of(tmp_path / "w")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def numpy_pickle(
    shape: Any, code: str, data: Any, state: Any = ("<", None, None, None, -1, -1, 0)
) -> bytes:
    dtype = Call(Name("numpy", "dtype"), (code, 0, 1), (3, *state))
    rebuild = Name("numpy._core.multiarray", "_reconstruct")
    return pickled(
        {"w": Call(rebuild, (Name("numpy", "ndarray"), (0,), b"b"), (1, shape, dtype, False, data))}
    )


def frombuffer_pickle(data: Any, shape: Any) -> bytes:
    dtype = Call(Name("numpy", "dtype"), ("f4", 0, 1))
    return pickled(
        {"w": Call(Name("numpy._core.numeric", "_frombuffer"), (data, dtype, shape, "C"))}
    )


def test_the_handmade_numpy_pickle_is_readable(tmp_path: Path):
    (tmp_path / "w").write_bytes(numpy_pickle((2,), "f4", np.float32([1, 2]).tobytes()))
    assert (
        read(tmp_path / "w")["w"].tolist()
        == [1, 2]
        == pickle.loads((tmp_path / "w").read_bytes())["w"].tolist()
    )


@pytest.mark.parametrize(
    "raw",
    [
        numpy_pickle((10**12,), "f4", b"\0" * 8),
        numpy_pickle((3,), "f4", b"\0" * 8),
        numpy_pickle((1,), "O8", [1]),
        numpy_pickle((1,), "O8", b"\0" * 8),  # a pointer in a file would crash
        numpy_pickle((1,), "M8", b"\0" * 8),
        numpy_pickle((1,), "S8", b"\0" * 8),
        numpy_pickle((1,), "f4,O8", b"\0" * 12),
        numpy_pickle((1,), "no such type", b"\0" * 8),
        numpy_pickle((1,), "f4", 10**12),
        numpy_pickle("shape", "f4", b"\0" * 8),
        frombuffer_pickle(10**12, (10**12,)),
        frombuffer_pickle(b"\0" * 8, (10**12,)),
        pickled({"w": Call(Name("numpy", "dtype"), ("f4", 0, 1))}),
        pickled({"w": Name("numpy", "ndarray")}),
        pickle.dumps([3.0]),
        pickle.dumps({"w": "text"}),
        pickle.dumps(np.array(["a", None], dtype=object)),
        b"\x80\x02r\xff\xff\xff\x7f.",  # memo 2^31 - 1: 32 GB of pointers
        b"\x80\x02}r\xff\xff\xff\x7f.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",  # BINBYTES8 of 2^62
        b"\x80\x04\x8e" + struct.pack("<Q", 2**36) + b".",
        b"\x80\x04\x96" + struct.pack("<Q", 2**36) + b".",  # BYTEARRAY8
        pickled({"w": Call(Name("__builtin__", "bytes"), (10**12,))}),
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",  # LONG4
        b"\x80\x02T" + struct.pack("<i", -1) + b".",  # BINSTRING of -1
        b"\x80\x05\x97.",  # NEXT_BUFFER without a buffer
        b"\x80\x63.",  # protocol 99
        b"\x80\x02.",
        b"\x80",
        b"\x80\x02\x82\x01.",  # EXT1
    ],
    ids=lambda raw: repr(raw[-24:]),
)
def test_pickles_with_false_sizes_are_an_error_and_use_no_memory(tmp_path: Path, raw: bytes):
    (tmp_path / "w").write_bytes(raw)
    tracemalloc.start()
    try:
        error_of(tmp_path / "w")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_recursive_and_deep_dicts_are_an_error(tmp_path: Path):
    loop: dict[str, Any] = {}
    loop["a"] = loop
    laughs: dict[str, Any] = {"w": MATRIX}
    for _ in range(60):  # 2^60 paths
        laughs = {"a": laughs, "b": laughs}
    lists: list[Any] = [MATRIX]
    for _ in range(60):
        lists = [lists, lists]
    raw = [pickle.dumps(loop), pickle.dumps(laughs), pickle.dumps(lists)]
    # 100,000 nested dicts.
    raw.append(b"\x80\x02" + b"}X\x01\0\0\0a" * 100_000 + b"}" + b"s" * 100_000 + b".")
    for content in raw:
        (tmp_path / "w").write_bytes(content)
        error_of(tmp_path / "w")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "unknown format"),
        (
            b"<!DOCTYPE html><html>404",
            "expected safetensors, torch (.pth, .pt, .bin), pickled numpy, Keras",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", "unknown format"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 100, "open file"),
        (b"\x93NUMPY" + b"\0" * 100, "unknown format"),
        (b"PK\x03\x04" + b"\0" * 100, "zip"),
        (struct.pack("<Q", 10**15) + b"{}", "unknown format"),
        (struct.pack("<Q", 2) + b"{]", ""),
        (
            struct.pack("<Q", 60)
            + b'{"w":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}'[:60].ljust(60),
            "",
        ),
    ],
)
def test_other_files_are_an_error(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "w").write_bytes(content)
    assert message in error_of(tmp_path / "w")


def test_missing_files_and_folders_are_an_error(tmp_path: Path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(ValueError, match="no weights file at"):
            read(path)


def test_zips_that_torch_did_not_write_are_an_error(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "none", "w") as archive:
        archive.writestr("word/document.xml", "text")
    assert "a zip with 0 data.pkl" in error_of(tmp_path / "none")
    with zipfile.ZipFile(tmp_path / "two", "w") as archive:
        archive.writestr("a/data.pkl", pickled({}))
        archive.writestr("b/data.pkl", pickled({}))
    assert "a zip with 2 data.pkl" in error_of(tmp_path / "two")
    torch_zip(tmp_path / "missing", four((4,), (1,)), {})
    assert "archive/data/0" in error_of(tmp_path / "missing")
    torch_zip(
        tmp_path / "bomb",
        four((4,), (1,)),
        {"0": b"\0" * 50_000_000},
        compress=zipfile.ZIP_DEFLATED,
    )
    assert "compressed" in error_of(tmp_path / "bomb")
    torch_zip(tmp_path / "big", four((4,), (1,)), {"0": b"\0" * 16}, byteorder=b"big")
    assert "big-endian" in error_of(tmp_path / "big")


def test_views_of_storages_from_torch_before_0_4_are_an_error(tmp_path: Path):
    tree = {"w": tensor(storage("FloatStorage", "0", 4, ("1", 0, 4)), (4,), (1,))}
    assert "before 0.4" in error_of(torch_stream(tmp_path / "w", tree, {"0": (4, b"\0" * 16)}))


@each_format
def test_a_file_truncated_anywhere_is_an_error(tmp_path: Path, form: str):
    whole = WRITERS[form](
        tmp_path / "whole", np.arange(64, dtype=np.float32).reshape(8, 8)
    ).read_bytes()
    rng = random.Random(0)
    for cut in {
        0,
        1,
        2,
        7,
        8,
        9,
        len(whole) // 2,
        *range(len(whole) - 20, len(whole)),
        *rng.sample(range(len(whole)), 60),
    }:
        (tmp_path / "cut").write_bytes(whole[:cut])
        error_of(tmp_path / "cut")


@each_format
@settings(max_examples=60)
@given(data=st.data())
def test_damaged_bytes_raise_only_value_errors(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
):
    folder = tmp_path_factory.getbasetemp()
    raw = bytearray(WRITERS[form](folder / "damaged", MATRIX).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (folder / "damaged").write_bytes(raw)
    try:
        read(folder / "damaged")
    except ValueError as error:
        assert str(error).startswith(f"cannot read weights from {folder / 'damaged'}: ")


@settings(max_examples=200)
@given(
    st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda raw: b"\x80\x02" + raw))
)
def test_random_bytes_raise_only_value_errors(tmp_path_factory: pytest.TempPathFactory, raw: bytes):
    file = tmp_path_factory.getbasetemp() / "random"
    file.write_bytes(raw)
    try:
        read(file)
    except ValueError as error:
        assert str(error).startswith(f"cannot read weights from {file}: ")


def test_every_storage_type_is_tested():
    assert pickles.STORAGES.keys() == NUMBERS.keys()
