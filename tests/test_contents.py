"""`readers.open_weights`: metadata and choices; nothing in a file is executed."""

from __future__ import annotations

import json
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.torch_files import Call, Name, checkpoint, pickled, torch_zip
from tests.wild import AVERAGED, NETWORK, prefixed, robustness
from tl.types import DetailedError
from tl.weights import checkpoints, hdf5, pickles, readers
from tl.weights.readers import open_weights


def error_of(path: Path, which: str = "") -> str:
    with pytest.raises(ValueError) as caught:
        open_weights(path, which)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    return str(caught.value)


# --- metadata ---------------------------------------------------------------------------------


def test_the_metadata_of_safetensors_is_reported(tmp_path: Path):
    save_file(NETWORK, tmp_path / "w", {"format": "pt", "arch": "resnet18", "classes": "cat,dog"})
    read = open_weights(tmp_path / "w")
    assert read.format == "safetensors" and read.arrays.keys() == NETWORK.keys()
    assert read.metadata == {"format": "pt", "arch": "resnet18", "classes": "cat,dog"}
    save_file(NETWORK, tmp_path / "none")
    assert open_weights(tmp_path / "none").metadata == {}


KERAS = {
    "class_name": "Functional",
    "config": {
        "name": "mobilenetv2_1.00_224",
        "layers": [
            {"class_name": "InputLayer", "config": {"batch_shape": [None, 96, 96, 3]}},
            {"class_name": "Rescaling", "config": {"name": "r", "scale": 1 / 127.5, "offset": -1}},
            {"class_name": "Sequential", "config": {"name": "s", "layers": [
                {"class_name": "Normalization", "config": {"axis": [-1], "mean": [0.5, 0.4, 0.3]}},
                {"class_name": "RandomFlip", "config": {"mode": "horizontal"}},
            ]}},
            {"class_name": "Dense", "config": {"name": "dense", "units": 2}},
        ],
    },
}  # fmt: skip
KERAS_METADATA = {
    "name": "mobilenetv2_1.00_224",
    "class_name": "Functional",
    "keras_version": "2.15.0",
    "class_names": ["cat", "dog"],
    "input_shape": [None, 96, 96, 3],
    "preprocessing": [
        {"class_name": "Rescaling", "scale": 1 / 127.5, "offset": -1},
        {"class_name": "Normalization", "axis": [-1], "mean": [0.5, 0.4, 0.3]},
    ],
}


def legacy_h5(path: Path, **attributes: Any) -> Path:
    with h5py.File(path, "w") as root:
        group = root.create_group("model_weights")
        group.attrs["layer_names"] = [b"dense"]
        dense = group.create_group("dense")
        dense.attrs["weight_names"] = [b"dense/kernel:0"]
        dense["dense/kernel:0"] = np.ones((3, 2), np.float32)
        for name, value in attributes.items():
            root.attrs[name] = value
    return path


@pytest.mark.parametrize(
    "classes",
    [json.dumps(["cat", "dog"]), [b"cat", b"dog"], np.array(["cat", "dog"], dtype="S3")],
    ids=["JSON", "list of bytes", "array"],
)
def test_the_config_of_a_keras_file_is_reported(tmp_path: Path, classes: Any):
    path = legacy_h5(
        tmp_path / "w.h5",
        model_config=json.dumps(KERAS),
        keras_version="2.15.0",
        class_names=classes,
        training_config="{}",
    )
    read = open_weights(path)
    assert (read.format, read.metadata) == ("keras", KERAS_METADATA)
    assert list(read.arrays) == ["dense/kernel"]


@pytest.mark.parametrize(
    "config",
    ["", "not JSON", "[1, 2]", '{"config": 3}', '{"config": {"layers": 3}}',
     '{"config": {"layers": [1, {"config": []}]}}'],
)  # fmt: skip
def test_a_config_of_another_form_is_not_an_error(tmp_path: Path, config: str):
    read = open_weights(legacy_h5(tmp_path / "w.h5", model_config=config))
    assert read.metadata == {} and len(read.arrays) == 1


def test_the_config_of_a_keras_archive_is_reported(tmp_path: Path):
    with h5py.File(tmp_path / "inner", "w") as root:
        root.create_group("layers/dense/vars")["0"] = np.ones((3, 2), np.float32)
    with zipfile.ZipFile(tmp_path / "w.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(KERAS))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.5.0"}))
        archive.write(tmp_path / "inner", "model.weights.h5")
    read = open_weights(tmp_path / "w.keras")
    expected = {k: v for k, v in KERAS_METADATA.items() if k != "class_names"}
    assert read.metadata == {**expected, "keras_version": "3.5.0"}


def test_every_reported_setting_of_keras_is_a_setting_of_a_reported_layer():
    assert set(hdf5.PREPROCESSING) == {"Resizing", "CenterCrop", "Rescaling", "Normalization"}


@pytest.mark.parametrize(
    "value, expected",
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (True, True),
        (float("nan"), None),
        (10**30, None),
        ("a" * 2000, "a" * 500),
        (np.arange(4), [0, 1, 2, 3]),
        (np.zeros(1000), None),
        (("a", None, 2.5), ["a", 2.5]),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 1}}}),
        ({1, 2}, [1, 2]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_settings_become_json(tmp_path: Path, value: Any, expected: Any):
    (tmp_path / "w").write_bytes(pickle.dumps({"model": NETWORK, "setting": value}))
    read = open_weights(tmp_path / "w")
    assert read.metadata.get("setting") == expected and "setting" in read.left_out


# --- which weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["", "raw", "state_dict", "ema", "state_dict_ema"])
def test_which_selects_the_weights(tmp_path: Path, which: str):
    path = checkpoint(tmp_path / "w", {"state_dict": NETWORK, "state_dict_ema": AVERAGED})
    averaged = which in ("", "ema", "state_dict_ema")
    read = open_weights(path, which)
    np.testing.assert_array_equal(
        read.arrays["fc.bias"], (AVERAGED if averaged else NETWORK)["fc.bias"]
    )
    assert read.left_out == ("state_dict" if averaged else "state_dict_ema",)
    assert len(read.remarks) == (which == "")


@pytest.mark.parametrize("which", ["student/net", "student.net", "net"])
def test_which_can_be_a_key_path(tmp_path: Path, which: str):
    path = checkpoint(tmp_path / "w", {"model": AVERAGED, "student": {"net": NETWORK}})
    assert open_weights(path, which).chosen == "student/net"
    (remark,) = open_weights(path).remarks
    assert remark == "weights model are used; `which` selects others: student/net"


@pytest.mark.parametrize(
    "tree, which, choices",
    [
        ({"model": NETWORK, "model_ema": AVERAGED}, "best", "ema, raw, model, model_ema"),
        ({"model": NETWORK}, "ema", "raw, model"),
        ({"model": NETWORK}, "model_ema", "raw, model"),
        ({"ema": NETWORK}, "raw", "ema, ema"),
        (NETWORK, "ema", "raw"),
    ],
)
def test_an_unknown_which_lists_what_there_is(tmp_path: Path, tree: Any, which: str, choices: str):
    message = error_of(checkpoint(tmp_path / "w", tree), which)
    assert message.endswith(f"it has no weights named `which={which}`, expected one of: {choices}")


# --- copies --------------------------------------------------------------------------------------


def test_equal_layers_of_one_network_are_not_copies(tmp_path: Path):
    """A network of zeros or with equal blocks has no copies: a copy has 80 % of all tensors."""
    blocks = {f"layer{n}.{name}": array for n in range(1, 5) for name, array in NETWORK.items()}
    zeros = {f"fc{n}.weight": np.zeros((2, 2), np.float32) for n in (1, 2)}
    for number, tensors in enumerate((blocks, zeros)):
        save_file({k: v.copy() for k, v in tensors.items()}, tmp_path / str(number))
        assert open_weights(tmp_path / str(number)).arrays.keys() == tensors.keys()


def test_a_second_network_that_differs_is_not_a_copy(tmp_path: Path):
    tree = robustness()
    other = {f"module.attacker.model.{n}": a + a.dtype.type(1) for n, a in NETWORK.items()}
    tree["model"] |= {name: np.asarray(array) for name, array in other.items()}
    read = open_weights(checkpoint(tmp_path / "w", tree))
    assert len(read.arrays) == 2 * len(NETWORK)


# --- nothing is executed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, state",
    [
        (name, state)
        for name in ("torch._utils._rebuild_tensor_v2", "_codecs.encode", "collections.OrderedDict",
                     "numpy.dtype", "numpy.core.multiarray._reconstruct", "torch.FloatStorage",
                     "my.Unknown")
        for state in ({"path": "evil"}, (None, {"__defaults__": (1,), "__call__": len}),
                      (None, {"__setstate__": 1, "function": 2, "dtype": 3}))
    ],
)  # fmt: skip
def test_a_pickle_cannot_change_the_reader(tmp_path: Path, name: str, state: Any):
    module, _, last = name.rpartition(".")
    raw = pickled(Name(module, last))[:-1] + pickled(_globals_to_names(state))[2:-1] + b"b."
    (tmp_path / "w").write_bytes(raw)
    before = {key: _attributes(value) for key, value in pickles.NAMES.items()}
    error_of(tmp_path / "w")
    assert {key: _attributes(value) for key, value in pickles.NAMES.items()} == before
    save_file(NETWORK, tmp_path / "good")
    assert len(open_weights(tmp_path / "good").arrays) == 7


def _globals_to_names(node: Any) -> Any:
    """The same tree with `len` as a GLOBAL."""
    if isinstance(node, dict):
        return {key: _globals_to_names(value) for key, value in node.items()}
    if isinstance(node, tuple):
        return tuple(_globals_to_names(value) for value in node)
    return Name("builtins", "len") if node is len else node


def _attributes(value: Any) -> list[tuple[str, int]]:
    own = getattr(value, "__dict__", {})
    function = getattr(value, "function", None)
    more = getattr(function, "__dict__", {}), getattr(function, "__defaults__", None)
    return sorted((key, id(item)) for key, item in own.items()) + [("", hash(str(more)))]


@pytest.mark.parametrize("where", ["storage", "shape", "offset", "tensor"])
def test_a_placeholder_never_becomes_a_tensor(tmp_path: Path, where: str):
    evil = Call(Name("my.module", "evil"), ())
    parts = {
        "storage": (evil, 0, (2,), (1,)),
        "shape": (NETWORK["bn1.weight"], 0, evil, (1,)),
        "offset": (NETWORK["bn1.weight"], evil, (2,), (1,)),
    }
    weight = Call(Name("torch._utils", "_rebuild_tensor_v2"), (*parts.get(where, ()), False, None))
    weight = evil if where == "tensor" else weight
    good = np.ones(2, np.float32)
    path = checkpoint(tmp_path / "w", {"good": good, "evil": weight})
    try:
        arrays = open_weights(path).arrays
    except ValueError:
        return
    assert list(arrays) == ["good"]


@pytest.mark.parametrize("depth", [1, 3])
def test_a_pickle_in_a_pickle_is_read_as_data(tmp_path: Path, depth: int):
    canary = tmp_path / "canary"
    raw = b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
    for _ in range(depth):
        raw = pickle.dumps(raw)
    loads = Call(Name("torch.storage", "_load_from_bytes"), (raw,))
    (tmp_path / "w").write_bytes(pickled({"w": loads, "model": 1}))
    assert "not stored as torch stores it" in error_of(tmp_path / "w") or depth > 1
    assert not canary.exists()


def laughs(leaf: Any, wrap: Any) -> Any:
    for _ in range(60):  # 2^60 paths
        leaf = wrap(leaf)
    return leaf


def loop() -> dict[str, Any]:
    tree: dict[str, Any] = {"model": NETWORK}
    tree["state_dict"] = tree
    return tree


class Module:
    """Pickles as a module of torch."""

    def __init__(self, parameters: Any, **modules: Any):
        self._parameters, self._buffers, self._modules = parameters, {}, modules


@pytest.mark.parametrize(
    "tree",
    [
        laughs({"w": NETWORK["fc.bias"]}, lambda t: {"model": t, "net": t, "state_dict": t}),
        laughs({"w": NETWORK["fc.bias"]}, lambda t: {"model_ema": t, "ema": t}),
        {"model": NETWORK, "args": laughs({"a": 1}, lambda t: {"b": t, "c": t})},
        {"model": NETWORK, "args": laughs([1], lambda t: [t] * 100)},
        {f"ema{n}.x{n}": np.ones(1, np.float32) for n in range(3000)},
        {f"k{n}": [np.ones(1, np.float32)] for n in range(3000)},
        loop(),
    ],
    ids=["wrappers", "averages", "settings", "lists", "branches", "lists of tensors", "a loop"],
)
def test_files_that_expand_are_read_or_refused_at_once(tmp_path: Path, tree: Any):
    (tmp_path / "w").write_bytes(pickle.dumps(tree))
    start = time.process_time()
    tracemalloc.start()
    try:
        open_weights(tmp_path / "w")
    except ValueError as error:
        assert len(str(error)) < 600
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 50e6 and time.process_time() - start < 10


def test_a_module_in_many_others_is_refused_at_once(tmp_path: Path):
    weight = {"weight": NETWORK["fc.weight"]}
    start = time.process_time()
    for leaf, depth, message in (({}, 60, "50000 parts"), (weight, 60, "50000 parts")):
        module = Module(leaf)
        for _ in range(depth):
            module = Module({}, a=module, b=module)
        (tmp_path / "w").write_bytes(pickle.dumps(module))
        assert message in error_of(tmp_path / "w")
    assert time.process_time() - start < 10
    shared = Module(weight)
    (tmp_path / "w").write_bytes(pickle.dumps(Module({}, a=shared, b=shared, c=Module(NETWORK))))
    names = list(open_weights(tmp_path / "w").arrays)
    assert names == ["a.weight", "b.weight", *prefixed("c.")]


def test_names_with_control_characters_do_not_reach_the_terminal(tmp_path: Path):
    evil = "\x1b[2Jmodel"
    path = torch_zip(tmp_path / "w", {evil: Call(Name("my", evil), ())}, {})
    assert "\x1b" not in error_of(path)
    path = checkpoint(tmp_path / "v", {"state_dict": {evil: NETWORK}, "ema": {evil: AVERAGED}})
    assert all("\x1b" not in remark for remark in open_weights(path).remarks)


@pytest.mark.parametrize(
    "raw, word",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS"),
        (b"<!DOCTYPE html><html>404", "web page"),
        (b"<HTML><body>quota", "web page"),
        (b'{"error": "not found"}', "JSON"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\x93NUMPY\x01\0", "one array"),
    ],
)
def test_files_in_place_of_weights_are_named(tmp_path: Path, raw: bytes, word: str):
    (tmp_path / "w.pth").write_bytes(raw)
    message = error_of(tmp_path / "w.pth")
    assert "unknown format" in message and word in message and "safetensors" in message


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}',
             '{"weight_map": {"a": "../x.bin"}}', '{"weight_map": {"a": "C:\\\\x.bin"}}']
)  # fmt: skip
def test_an_index_of_another_form_is_refused(tmp_path: Path, text: str):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert "cannot read weights from" in error_of(path)


def test_a_shard_that_lacks_a_tensor_of_the_index_is_refused(tmp_path: Path):
    save_file({"a": NETWORK["fc.bias"]}, tmp_path / "m-1.safetensors")
    index = {"weight_map": {"a": "m-1.safetensors", "b": "m-1.safetensors"}}
    (tmp_path / "m.index.json").write_text(json.dumps(index))
    assert error_of(tmp_path).endswith("m-1.safetensors lacks b, which its index lists")


def test_a_detailed_error_is_a_short_value_error_with_a_list():
    error = DetailedError("three problems", (f"problem {n}" for n in range(3)))
    assert isinstance(error, ValueError) and str(error) == "three problems"
    assert error.details == ("problem 0", "problem 1", "problem 2")


def test_tables_of_words_have_no_word_in_common():
    tables = (checkpoints._WEIGHTS, checkpoints._AVERAGED, checkpoints._TRAINING)
    assert len(set.union(*tables)) == sum(map(len, tables))
    assert struct.calcsize("<q") == 8 and readers.INDEX == ".index.json"
