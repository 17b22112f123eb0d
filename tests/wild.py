"""Files as people have them: generators of the situations that users report.

A situation makes small files in a folder and states what is right: what is read from them, or the
sentence that refuses them. The tests in `test_wild_*.py` go through the tables at the end of each
section. To add a situation, write a function `make(folder) -> word` and add a row.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image, TiffTags
from safetensors.numpy import save_file

from tests import toys
from tests.torch_files import Call, Name, checkpoint, namespace
from tl import backbones, data
from tl.models import heads
from tl.models.classifier import Classifier, Provenance
from tl.paths import flatten, printable
from tl.pixels import PixelSpec
from tl.weights import port, tables


class Situation(NamedTuple):
    """Files, and what is right.

    Attributes:
      name: the situation, unique within its section.
      make: writes the files into an empty folder and returns what a user would type: a path, or a
        word such as "folder:DIR".
      refused: regular expression that the one-sentence error matches; "" if the files are read.
      remark: regular expression that one remark matches; "" if there must be no remark.
      right: section-specific values, such as the classes and the number of images in each part.
    """

    name: str
    make: Callable[[Path], Any]
    refused: str = ""
    remark: str = ""
    right: Mapping[str, Any] = {}


def data_set(situation: Situation, folder: Path) -> data.DataSpec | None:
    """The data set of a situation, or None if it is refused in one sentence, as it must be."""
    word = situation.make(folder)
    if not situation.refused:
        return data.get(word)
    with pytest.raises(ValueError, match=situation.refused) as caught:
        data.get(word)
    message = str(caught.value)
    assert len(message) < 400 and "\n" not in message and message == printable(message)
    return None


# ---- weights files -------------------------------------------------------------------------------

# A network of torch with convolution, BatchNorm and classifier.
NETWORK = {
    "conv1.weight": np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3),
    "bn1.weight": np.array([1, 2], np.float32),
    "bn1.running_mean": np.array([3, 4], np.float32),
    "bn1.running_var": np.array([5, 6], np.float32),
    "bn1.num_batches_tracked": np.array(7, np.int64),
    "fc.weight": np.array([[1, 2], [3, 4], [5, 6]], np.float32),
    "fc.bias": np.array([7, 8, 9], np.float32),
}
AVERAGED = {name: np.asarray(array + array.dtype.type(1)) for name, array in NETWORK.items()}
# State of an optimizer and of a schedule, which have tensors too.
TRAINING = {
    "optimizer": {"state": {0: {"momentum_buffer": NETWORK["fc.bias"]}}, "param_groups": []},
    "lr_scheduler": {"base_lrs": [0.1], "_last_lr": [np.zeros(3, np.float32)]},
    "epoch": 12,
}
ARGS = namespace(
    lr=0.1,
    data=Call(Name("pathlib", "PosixPath"), ("/", "data", "birds")),
    device=Call(Name("torch", "device"), ("cuda", 0)),
    img_size=224,
    mean=[0.5, 0.5, 0.5],
)


def prefixed(prefix: str, arrays: Mapping[str, Any] = NETWORK) -> dict[str, Any]:
    return {prefix + name: array for name, array in arrays.items()}


def _file(tree: Any, name: str = "model.pth", form: str = "zip") -> Callable[[Path], Path]:
    """Writes a checkpoint of torch; `tree` has arrays instead of tensors."""
    return lambda folder: checkpoint(folder / name, tree, form=form)


def _read(name: str, tree: Any, remark: str = "", **right: Any) -> Situation:
    """A checkpoint of which the tensors of `NETWORK` are read."""
    return Situation(name, _file(tree), remark=remark, right={"arrays": NETWORK, **right})


def _pickled(tree: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "model.pkl").write_bytes(pickle.dumps(tree))
        return folder / "model.pkl"

    return make


def _npz(folder: Path, write: Callable[..., None]) -> Path:
    write(folder / "weights.npz", **NETWORK)
    return folder / "weights.npz"


def _bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _archive(folder: Path, name: str, inside: str) -> Path:
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr(inside, b"content")
    return folder / name


def _shards(
    files: Sequence[str], index: str, *, missing: Sequence[str] = (), ask: str = ""
) -> Callable[[Path], Path]:
    """Writes `NETWORK` as shards with an index; `ask` is the file to read, default the index."""

    def make(folder: Path) -> Path:
        names = list(NETWORK)
        parts = {file: names[number :: len(files)] for number, file in enumerate(files)}
        for file, part in parts.items():
            tensors = {name: NETWORK[name] for name in part}
            if file in missing or "/" in file:
                continue
            if file.endswith("safetensors"):
                save_file(tensors, folder / file)
            else:
                checkpoint(folder / file, tensors)
        if index:
            places = {name: file for file, part in parts.items() for name in part}
            text = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
            (folder / index).write_text(text)
        return folder / (ask or index)

    return make


def robustness(
    arrays: Mapping[str, Any] = NETWORK, mean: float = 0.485, std: float = 0.229
) -> dict[str, Any]:
    """A checkpoint as MadryLab's robustness library writes it (robustness/train.py, v1.2)."""
    normal = {
        "new_mean": np.full((3, 1, 1), mean, np.float32),
        "new_std": np.full((3, 1, 1), std, np.float32),
    }
    return {
        "model": {
            **prefixed("module.normalizer.", normal),
            **prefixed("module.model.", arrays),
            **prefixed("module.attacker.normalize.", normal),
            **prefixed("module.attacker.model.", arrays),
        },
        **TRAINING,
        "schedule": {
            "lr_lambdas": [Call(Name("dill._dill", "_create_function"), ("code", {}))],
        },
        "amp": "N/A",
        "nat_prec1": 0.62,
        "adv_prec1": Call(
            Name("numpy.core.multiarray", "scalar"),
            (
                Call(Name("numpy", "dtype"), ("f8", 0, 1), (3, "<", None, None, None, -1, -1, 0)),
                Call(Name("_codecs", "encode"), ("\0\0\0\0\0\0\xe0?", "latin1")),  # 0.5
            ),
        ),
    }


def _module(kind: str, parameters: Mapping[str, Any], **modules: Call) -> Call:
    """A module as `torch.save(model)` pickles it."""
    buffers = {n: a for n, a in parameters.items() if n.startswith(("running", "num"))}
    rest = {n: a for n, a in parameters.items() if n not in buffers}
    state = {"training": False, "_parameters": rest, "_buffers": buffers, "_modules": modules}
    return namespace(kind, **state)


def whole_module() -> Call:
    """`NETWORK` as a pickled module, with hooks and a bias that is None."""
    parts: dict[str, dict[str, Any]] = {}
    for name, array in NETWORK.items():
        module, _, last = name.partition(".")
        parts.setdefault(module, {})[last] = array
    parts["conv1"]["bias"] = None
    kinds = {"conv1": "torch.nn.modules.conv.Conv2d", "bn1": "timm.layers.BatchNormAct2d"}
    modules = {name: _module(kinds.get(name, "my.Head"), part) for name, part in parts.items()}
    return _module("my_project.models.Net", {}, **modules)


def planted(function: str, *args: Any) -> dict[str, Any]:
    """A checkpoint with a call of a function next to the weights."""
    module, _, name = function.rpartition(".")
    return {"state_dict": NETWORK, "extra": Call(Name(module, name), args)}


_PREFIX = r"the prefix '{}' was removed from the names of 7 tensors"
_SHARDS = tuple(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))
_EMA = r"EMA weights \({}\) are used instead of the raw ones \({}\); `which=raw` selects those"

READ = (
    # A prefix before all names, in any nesting.
    _read("DataParallel", prefixed("module."), r"prefix 'module\.' .* 7 tensors", prefix="module."),
    _read("compiled", prefixed("_orig_mod."), r"'_orig_mod\.'", prefix="_orig_mod."),
    _read(
        "Lightning",
        {
            "state_dict": prefixed("model."),
            "hyper_parameters": {"lr": 0.1},
            "pytorch-lightning_version": "2.1",
            "callbacks": {"ModelCheckpoint": {}},
            **TRAINING,
        },
        _PREFIX.format("model."),
        prefix="model.",
        chosen="state_dict",
    ),
    _read(
        "compiled and parallel",
        prefixed("module._orig_mod."),
        r"'module\._orig_mod\.'",
        prefix="module._orig_mod.",
    ),
    _read(
        "parallel around a wrapper",
        prefixed("module.model."),
        _PREFIX.format("model."),
        prefix="module.model.",
    ),
    _read(
        "attribute of a wrapper",
        prefixed("net.encoder.trunk."),
        _PREFIX.format("net.encoder.trunk."),
        prefix="net.encoder.trunk.",
    ),
    _read(
        "a fork of FSDP",
        prefixed("_fsdp_wrapped_module.backbone."),
        _PREFIX.format("backbone."),
        prefix="_fsdp_wrapped_module.backbone.",
    ),
    _read(
        "parallel parts",
        {
            "conv1.module.weight": NETWORK["conv1.weight"],
            **{n: a for n, a in NETWORK.items() if n != "conv1.weight"},
        },
        "a wrapper was removed from the names of 1 tensor$",
    ),
    _read(
        "a swa_utils model",
        {"n_averaged": np.array(5, np.int64), **prefixed("module.")},
        r"'module\.'",
        left_out=("n_averaged",),
    ),
    _read(
        "a branch next to a projector",
        {**prefixed("backbone."), "projector.0.weight": np.ones((4, 2), np.float32)},
        _PREFIX.format("backbone."),
        prefix="backbone.",
        left_out=("projector.0.weight",),
    ),
    _read(
        "a branch with buffers of a loss",
        {
            "state_dict": {
                **prefixed("model."),
                "criterion.weight": np.ones(3, np.float32),
                "val_acc.total": np.array(3, np.float32),
            }
        },
        r"2 other tensors are not used \(criterion.weight, val_acc.total\)",
        left_out=("criterion.weight", "val_acc.total"),
    ),
    _read(
        "a sequential with its normalization",
        {
            "0.mean": np.full((1, 3, 1, 1), 0.5, np.float32),
            "0.std": np.full((1, 3, 1, 1), 0.25, np.float32),
            **prefixed("1."),
        },
        r"normalizes its input with mean \[0.5, 0.5, 0.5\] and std \[0.25, 0.25, 0.25\]",
        prefix="1.",
        metadata={"normalizer": {"mean": [0.5] * 3, "std": [0.25] * 3}},
    ),
    # Training checkpoints.
    *(
        _read(
            f"under {key}",
            {key: NETWORK, **TRAINING},
            chosen=key,
            metadata={"epoch": 12},
            left_out=("optimizer", "lr_scheduler", "epoch"),
        )
        for key in (
            "state_dict",
            "model",
            "model_state_dict",
            "net",
            "network",
            "weights",
            "params",
            "module",
            "student",
            "resnet50",
            "best_model",
            "netStateDict",
        )
    ),
    _read(
        "nested keys",
        {"checkpoint": {"model": {"state_dict": NETWORK}, "epoch": 3}},
        chosen="checkpoint/model/state_dict",
        left_out=("checkpoint/epoch",),
    ),
    _read(
        "timm",
        {
            "arch": "resnet18",
            "state_dict": NETWORK,
            "args": ARGS,
            "metric": 71.5,
            "version": 2,
            **TRAINING,
        },
        chosen="state_dict",
        metadata={
            "arch": "resnet18",
            "metric": 71.5,
            "version": 2,
            "epoch": 12,
            "args": {
                "lr": 0.1,
                "data": "/data/birds",
                "device": "torch.device(cuda, 0)",
                "img_size": 224,
                "mean": [0.5, 0.5, 0.5],
            },
        },
    ),
    _read(
        "OmegaConf",
        {
            "model": NETWORK,
            "cfg": namespace(
                "omegaconf.dictconfig.DictConfig",
                _content={"lr": namespace("omegaconf.nodes.AnyNode", _val=0.1)},
            ),
        },
        chosen="model",
        left_out=("cfg",),
    ),
    _read(
        "an enum and a partial",
        {
            "model": NETWORK,
            "mode": Call(Name("my.config", "Mode"), ("max",)),
            "transform": Call(Name("functools", "partial"), (Name("my.data", "resize"),)),
        },
        metadata={"mode": "my.config.Mode(max)"},
        chosen="model",
    ),
    _read(
        "a defaultdict and a size",
        {
            "model": NETWORK,
            "history": Call(Name("collections", "defaultdict"), (Name("__builtin__", "list"),)),
            "shape": Call(Name("torch", "Size"), ([3, 224, 224],)),
        },
        metadata={"shape": [3, 224, 224]},
        chosen="model",
    ),
    _read(
        "weights among settings",
        {**NETWORK, "epoch": 3, "best_acc": 0.5, "args": ARGS},
        left_out=("epoch", "best_acc", "args"),
        chosen="",
    ),
    _read("a whole module", whole_module()),
    _read("a whole module under a key", {"model": whole_module(), **TRAINING}, chosen="model"),
    Situation(
        "the older stream",
        _file({"model": prefixed("module."), "args": ARGS, **TRAINING}, form="stream"),
        remark=r"'module\.'",
        right={"arrays": NETWORK, "chosen": "model"},
    ),
    Situation(
        "numpy arrays and a Namespace",
        _pickled(
            {
                "state_dict": NETWORK,
                "args": argparse.Namespace(lr=0.1, out=PurePosixPath("runs/1")),
                "best": np.float64(0.5),
                "classes": np.array(["cat", "dog"]),
                "when": datetime.date(2024, 1, 2),
            }
        ),
        right={
            "arrays": NETWORK,
            "chosen": "state_dict",
            "metadata": {"args": {"lr": 0.1, "out": "runs/1"}, "best": 0.5},
        },
    ),
    # Averaged weights come first.
    *(
        Situation(
            f"EMA under {key}",
            _file({raw: NETWORK, key: AVERAGED, **TRAINING}),
            remark=_EMA.format(key, raw),
            right={"arrays": AVERAGED, "chosen": key, "raw": raw},
        )
        for key, raw in (
            ("state_dict_ema", "state_dict"),
            ("model_ema", "model"),
            ("ema", "model"),
            ("ema_state_dict", "state_dict"),
            ("shadow", "net"),
            ("params_ema", "params"),
            ("teacher", "student"),
        )
    ),
    Situation(
        "EMA under model.shadow",
        _file({"state_dict": NETWORK, "ema": {"decay": 0.999, "shadow": AVERAGED}}),
        remark=_EMA.format("ema/shadow", "state_dict"),
        right={"arrays": AVERAGED, "chosen": "ema/shadow", "raw": "state_dict"},
    ),
    Situation(
        "EMA without running statistics",
        _file(
            {
                "model": prefixed("module."),
                "shadow": {
                    n: a for n, a in AVERAGED.items() if "running" not in n and "num" not in n
                },
            }
        ),
        remark=r"running statistics are those of model \(3 tensors\), because shadow has ",
        right={
            "arrays": {
                **AVERAGED,
                **{n: NETWORK[n] for n in NETWORK if "bn1." in n and n != "bn1.weight"},
            },
            "chosen": "shadow",
        },
    ),
    Situation(
        "EMA in one dict",
        _file({"state_dict": {**prefixed("model."), **prefixed("ema_model.", AVERAGED)}}),
        remark=_EMA.format("state_dict/ema_model", "state_dict/model"),
        right={"arrays": AVERAGED, "chosen": "state_dict/ema_model", "raw": "state_dict/model"},
    ),
    Situation(
        "EMA without names",
        _file({"model": NETWORK, "ema": {"shadow_params": list(AVERAGED.values())}}),
        remark=r"averaged weights \(ema/shadow_params\) are not used",
        right={"arrays": NETWORK, "chosen": "model"},
    ),
    Situation(
        "EMA of a callback of Lightning",
        _file(
            {
                "state_dict": prefixed("model."),
                "callbacks": {"EMACallback": {"ema_state_dict": prefixed("model.", AVERAGED)}},
            }
        ),
        remark=_EMA.format("callbacks/EMACallback/ema_state_dict", "state_dict"),
        right={"arrays": AVERAGED, "chosen": "callbacks/EMACallback/ema_state_dict"},
    ),
    Situation(
        "stochastic weight averaging of Lightning",
        _file(
            {
                "state_dict": NETWORK,
                "callbacks": {"SWA": {"n_averaged": 3, "average_model_state": AVERAGED}},
            }
        ),
        remark=_EMA.format("callbacks/SWA/average_model_state", "state_dict"),
        right={"arrays": AVERAGED, "chosen": "callbacks/SWA/average_model_state"},
    ),
    _read(
        "a state of a callback that is not averaged",
        {"state_dict": NETWORK, "callbacks": {"Teacher": {"queue": [NETWORK["fc.bias"]]}}},
        chosen="state_dict",
    ),
    Situation(
        "mmengine's EMA with its counter",
        _file(
            {
                "state_dict": prefixed("backbone."),
                "ema_state_dict": {
                    "steps": np.array(3, np.int64),
                    **prefixed("module.backbone.", AVERAGED),
                },
            }
        ),
        remark=_EMA.format("ema_state_dict", "state_dict"),
        right={"arrays": AVERAGED, "chosen": "ema_state_dict", "left_out": ("steps",)},
    ),
    _read(
        "mmcv's EMA as buffers",
        {
            "state_dict": {
                **prefixed("backbone."),
                **{f"ema_backbone_{n.replace('.', '_')}": a for n, a in AVERAGED.items()},
            }
        },
        "7 tensors named ema_. are left out, because mmcv stores the averaged weights under the",
        chosen="state_dict",
        left_out=("ema_backbone_fc_bias",),
    ),
    # Checkpoints of robust networks.
    *(
        _read(
            f"robustness, {name}",
            tree,
            r"7 tensors under 'attacker\.model\.' are left out as "
            r"copies of those under 'model\.'",
            chosen=key,
            metadata={"normalizer": {"mean": [0.485] * 3, "std": [0.229] * 3}},
        )
        for name, key, tree in (
            ("parallel", "model", robustness()),
            ("state_dict", "state_dict", {"state_dict": robustness()["model"]}),
            ("alone", "", robustness()["model"]),
        )
    ),
    *(
        Situation(
            f"{write.__name__} of numpy",
            functools.partial(_npz, write=write),
            right={"arrays": NETWORK},
        )
        for write in (np.savez, np.savez_compressed)
    ),
    # Shards.
    Situation(
        "safetensors shards by their index",
        _shards(_SHARDS, "model.safetensors.index.json"),
        right={"arrays": NETWORK},
    ),
    Situation(
        "shards by their folder",
        _shards(_SHARDS, "model.safetensors.index.json", ask="."),
        right={"arrays": NETWORK},
    ),
    Situation(
        "shards by one of them",
        _shards(_SHARDS, "model.safetensors.index.json", ask=_SHARDS[1]),
        right={"arrays": NETWORK},
    ),
    Situation(
        "shards without an index", _shards(_SHARDS, "", ask=_SHARDS[2]), right={"arrays": NETWORK}
    ),
    Situation(
        "torch shards",
        _shards(
            ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"),
            "pytorch_model.bin.index.json",
        ),
        right={"arrays": NETWORK},
    ),
    # Planted code that stays inert.
    *(
        Situation(
            f"planted {function}",
            _file(planted(function, *args)),
            right={"arrays": NETWORK, "left_out": ("extra",)},
        )
        for function, args in (
            ("__builtin__.getattr", (Name("__builtin__", "object"), "__subclasses__")),
            ("pickle.loads", (b"cos\nsystem\n(S'touch canary'\ntR.",)),
            ("torch.load", ("model.pth",)),
            ("torch.hub.load", ("owner/repo", "evil")),
            ("shutil.rmtree", ("/nowhere",)),
            ("operator.attrgetter", ("system",)),
        )
    ),
)

REFUSED = (
    *(
        Situation(
            f"refused {function}",
            _file(planted(function, "touch canary")),
            refused=f"names {re.escape(function)}, which tensors do not need; nothing was exec",
        )
        for function in (
            "os.system",
            "posix.system",
            "builtins.eval",
            "__builtin__.exec",
            "subprocess.Popen",
            "runpy.run_path",
            "importlib.import_module",
        )
    ),
    Situation(
        "a placeholder instead of the weights",
        _file({"state_dict": Call(Name("my.tools", "load"), ("weights",))}),
        refused="no dict of tensors",
    ),
    *(
        Situation(f"instead of weights, {what}", _bytes(name, start + bytes(600)), refused=what)
        for name, start, what in (
            ("model.onnx", b"\x08\x07\x12\x07pytorch", "it is an ONNX file .export the weights"),
            ("m.tflite", b"\x1c\0\0\0TFL3", "it is a TensorFlow Lite file"),
            ("saved_model.pb", b"\x08\x01\x12", "it is a graph of TensorFlow .save the weights"),
            ("flax_model.msgpack", b"\x82\xa6params", "it is a file of Flax .save the variables"),
            ("m.pth", b"Entry not found", "a message of the hub .the download did not give the fi"),
            ("m.pth", b"<?xml version", "it is XML text .the download did not give the file"),
            ("m.bz2", b"BZh91AY", "it is compressed with bzip2 .bunzip2 gives the file"),
            ("m.7z", b"7z\xbc\xaf'\x1c", "it is a 7z archive"),
            ("m.pkl", b"(dp0\nVconv1", "it is a pickle of protocol 0 .pickle it again with pro"),
            ("m.gguf", b"GGUF\x03", "it is a GGUF file"),
            ("m.npy", b"\x93NUMPY", "it is one array of NumPy"),
        )
    ),
    Situation("an empty file", _bytes("m.pth", b""), refused="it is empty; download or copy it ag"),
    Situation(
        "a download that stopped",
        _bytes("m.safetensors", (4000).to_bytes(8, "little") + b'{"a":'),
        refused="it is a safetensors file that is not complete; download or copy it again",
    ),
    Situation(
        "weights in a zip archive",
        functools.partial(_archive, name="m.zip", inside="best.pth"),
        refused="with 0 data.pkl, expected one; unpack it if it is an archive: it has best.pth",
    ),
    Situation(
        "an archive of torch.export",
        functools.partial(_archive, name="m.pt2", inside="m/data/weights/weight_0"),
        refused="it is an archive of torch.export, expected a state_dict",
    ),
    Situation("only an optimizer", _file(TRAINING), refused="no weights of a network"),
    Situation(
        "a missing shard",
        _shards(_SHARDS, "model.safetensors.index.json", missing=_SHARDS[1:2]),
        refused="1 of 3 shards are missing: model-00002-of-00003",
    ),
    Situation(
        "a shard alone",
        _shards(_SHARDS, "", missing=_SHARDS[:2], ask=_SHARDS[2]),
        refused="2 of 3 shards are missing: model-00001-of-00003.safetensors, model-00002",
    ),
    Situation(
        "a shard outside the folder",
        _shards(("../model-1.bin", "b.bin"), "pytorch_model.bin.index.json"),
        refused="expected a file name",
    ),
)

# -- files next to the weights, metadata, heads and channels (read by tl.models.loading)

NET = dataclasses.replace(
    toys.TOYS["toy_mobilenet"],
    name="wild_net",
    sources=dict.fromkeys(("torchvision", "timm", "lukemelas", "tonylins"), ""),
)
"""The network of the situations; `tests/test_wild_weights.py` adds it to the zoo."""

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
PIXELS_OF_CONFIG = PixelSpec(48, 0.9, interpolation="bilinear", mean=MEAN, std=STD)
FIELDS: dict[str, Any] = {
    "input_size": [3, 48, 48],
    "crop_pct": 0.9,
    "interpolation": "bilinear",
    "mean": list(MEAN),
    "std": list(STD),
    "license": "mit",
}
CONFIG: dict[str, Any] = {
    "architecture": "wild_net",
    "num_classes": 3,
    "label_names": ["ant", "bee", "cat"],
    "pretrained_cfg": FIELDS,
}
TRANSFORMERS = {"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}


@functools.cache
def _tensors(arch: str, source: str, classes: int, channels: int) -> Mapping[str, np.ndarray]:
    spec = NET if arch == "wild_net" else backbones.get(arch)
    pixels = PixelSpec(mean=(0.5,) * channels, std=(0.5,) * channels)
    head = heads.own(spec)(classes) if classes else None
    clf = Classifier(spec.name, spec, head, pixels, None, Provenance("", ""))
    shapes = flatten(jax.eval_shape(clf.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    rows = tables.sources(spec)[source].table(spec.module, head=bool(classes))
    return {
        name: rng.uniform(0.1, 1, port.LAYOUTS[layout].theirs(shapes[path].shape)).astype(
            np.float32
        )
        for name, (path, layout) in rows.items()
    }


def tensors(
    arch: str = "wild_net", source: str = "timm", classes: int = 3, channels: int = 3
) -> dict[str, np.ndarray]:
    """Random tensors of a network, with the names and layouts of a source."""
    return dict(_tensors(arch, source, classes, channels))


def weights(
    folder: Path,
    arrays: Mapping[str, np.ndarray] | None = None,
    *,
    name: str = "model.safetensors",
    config: Any = None,
    header: dict[str, str] | None = None,
    **files: Any,
) -> Path:
    """Writes tensors, and JSON files next to them; returns the path of the weights."""
    save_file(dict(tensors() if arrays is None else arrays), folder / name, metadata=header)
    for stem, content in {"config": config, **files}.items():
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / f"{stem}.json").write_text(text)
    return folder / name


def other_head(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The network without its head, and other tensors: name with "__" for "." -> shape."""
    extra = {name.replace("__", "."): np.ones(shape, np.float32) for name, shape in shapes.items()}
    return tensors(classes=0) | extra


def _snapshot(folder: Path) -> Path:
    """A repository in the hub's cache: links to blobs that are named by their hash."""
    repo = folder / "models--me--net"
    for part in ("blobs", "snapshots/0123abc", "refs"):
        (repo / part).mkdir(parents=True)
    (repo / "refs" / "main").write_text("0123abc")
    file = weights(repo / "blobs", config=CONFIG)
    for path, blob in ((file, "a" * 64), (repo / "blobs" / "config.json", "b" * 40)):
        path.rename(repo / "blobs" / blob)
        (repo / "snapshots" / "0123abc" / path.name).symlink_to(repo / "blobs" / blob)
    return repo


MLP = {
    "classifier__1__0__weight": (256, 16),
    "classifier__1__0__bias": (256,),
    "classifier__1__3__weight": (5, 256),
    "classifier__1__3__bias": (5,),
}
WORDNET = {
    **CONFIG,
    "label_names": ["n02219486", "n02206856", "n02121808"],
    "label_descriptions": {"n02219486": "ant, emmet", "n02206856": "bee"},
}
BY_INDEX = {**CONFIG, "label_names": {"0": "ant", "2": "cat"}}
NOT_TIMM = "config.json next to the weights is not used: it is not of timm"
FROM_CONFIG = "preprocessing and 3 class names are from config.json next to the weights"
WITH_CONFIG = {"pixels": PIXELS_OF_CONFIG, "classes": ("ant", "bee", "cat"), "license": "mit"}
PROCESSOR = {
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "size": {"shortest_edge": 64},
    "crop_size": {"height": 48, "width": 48},
    "do_center_crop": True,
    "resample": 2,
}
GRAY = {**FIELDS, "input_size": [1, 48, 48], "mean": [0.3], "std": [0.2]}
GRAY_PIXELS = PixelSpec(
    mean=(float(np.mean(PixelSpec().mean)),), std=(float(np.mean(PixelSpec().std)),)
)
HEADER = {"format": "pt", "mean": "[0.4, 0.5, 0.6]", "std": "[0.2, 0.3, 0.4]", "img_size": "48"}
TUTORIAL = {"class_to_idx": json.dumps({"cat": 2, "ant": 0, "bee": 1})}
LEFT_OUT = r"the head was left out: {} tensors \({}"


RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
HALVES = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def _config(**fields: Any) -> dict[str, Any]:
    """timm's config without names of classes, with other fields of `pretrained_cfg`."""
    return {"architecture": "wild_net", "pretrained_cfg": FIELDS | fields}


def _with_text(path: Path, name: str, text: str) -> Path:
    """Writes a text file next to a path, and returns the path."""
    path.with_name(name).write_text(text)
    return path


def _keras_top(folder: Path) -> Path:
    arrays = tensors("mobilenetv1_025_keras", "keras", 0)
    top = {"dense/kernel": (256, 64), "dense/bias": (64,), "dense_1/kernel": (64, 5)}
    return weights(folder, arrays | {n: np.ones(s, np.float32) for n, s in top.items()})


def _robust(folder: Path) -> Path:
    """A checkpoint of the robustness library, with its copy and its normalizer."""
    net, arrays = tensors(), {}
    for place in ("module.model.", "module.attacker.model."):
        arrays |= prefixed(place, net)
    for place in ("module.normalizer.", "module.attacker.normalize."):
        for name, value in (("new_mean", MEAN), ("new_std", STD)):
            arrays[place + name] = np.asarray(value, np.float32).reshape(3, 1, 1)
    return weights(folder, arrays)


def _contrastive(folder: Path) -> Path:
    first = prefixed("encoder_q.", tensors(classes=0))
    second = {n.replace("_q", "_k"): array / 2 for n, array in first.items()}
    return weights(folder, {**second, **first, "queue": np.ones((8, 16), np.float32)})


def _long_names(folder: Path) -> Path:
    arrays = {f"{'deep.' * 60}{i}.weight": np.ones((2, 2), np.float32) for i in range(300)}
    return weights(folder, arrays)


def _timm_checkpoint(folder: Path) -> Path:
    """A training checkpoint of timm: raw and averaged weights, and the arguments."""
    raw = tensors()
    averaged = {name: array * 2 for name, array in raw.items()}
    args = namespace(model="wild_net", img_size=48, mean=[0.5] * 3, std=[0.5] * 3, crop_pct=0.9)
    tree = {
        "epoch": 3,
        "arch": "wild_net",
        "state_dict": raw,
        "optimizer": {"state": {0: {"momentum_buffer": raw["bn1.bias"]}}},
        "args": args,
        "state_dict_ema": averaged,
    }
    return checkpoint(folder / "model_best.pth.tar", tree)


LOADED: tuple[Situation, ...] = (
    Situation(
        "checkpoint of timm",
        _timm_checkpoint,
        "",
        r"EMA weights \(state_dict_ema\) are used",
        {
            "pixels": PixelSpec(48, 0.9, mean=(0.5,) * 3, std=(0.5,) * 3),
            "first": tensors()["bn1.weight"] * 2,
        },
    ),
    Situation(
        "preprocessor next to timm's config",
        lambda f: weights(f, config=CONFIG, preprocessor_config=PROCESSOR),
        "",
        "preprocessor_config.json is not used: config.json states the preprocessing",
        WITH_CONFIG,
    ),
    Situation("config", lambda f: weights(f, config=CONFIG), "", FROM_CONFIG, WITH_CONFIG),
    Situation(
        "folder with config",
        lambda f: weights(f, config=CONFIG).parent,
        "",
        FROM_CONFIG,
        WITH_CONFIG,
    ),
    Situation(
        "local-dir",
        lambda f: f"local-dir:{weights(f, config=CONFIG).parent}",
        "",
        FROM_CONFIG,
        WITH_CONFIG,
    ),
    Situation(
        "pytorch_model.bin",
        lambda f: weights(f, name="pytorch_model.bin", config=CONFIG).parent,
        "",
        FROM_CONFIG,
        WITH_CONFIG,
    ),
    Situation(
        "snapshot", lambda f: _snapshot(f) / "snapshots/0123abc", "", FROM_CONFIG, WITH_CONFIG
    ),
    Situation(
        "file of a snapshot",
        lambda f: _snapshot(f) / "snapshots/0123abc/model.safetensors",
        "",
        FROM_CONFIG,
        WITH_CONFIG,
    ),
    Situation("repository in the cache", _snapshot, "", FROM_CONFIG, WITH_CONFIG),
    Situation(
        "flat config",
        lambda f: weights(f, config={"architecture": "wild_net", **FIELDS}),
        "",
        "the preprocessing is from config.json",
        {"pixels": PIXELS_OF_CONFIG, "classes": ("class 0", "class 1", "class 2")},
    ),
    Situation(
        "own file name",
        lambda f: weights(f, name="best.pth", config=CONFIG).parent,
        "",
        FROM_CONFIG,
        WITH_CONFIG,
    ),
    Situation(
        "WordNet ids",
        lambda f: weights(f, config=WORDNET),
        "",
        FROM_CONFIG,
        {"classes": ("ant", "bee", "n02121808")},
    ),
    Situation(
        "names by index",
        lambda f: weights(f, config=BY_INDEX),
        "",
        FROM_CONFIG,
        {"classes": ("ant", "class 1", "cat")},
    ),
    Situation(
        "TimmWrapper",
        lambda f: weights(
            f,
            prefixed("timm_model.", tensors()),
            config={**TRANSFORMERS, **CONFIG, "model_type": "timm_wrapper"},
        ),
        "",
        "prefix 'timm_model.' was removed",
        WITH_CONFIG,
    ),
    Situation(
        "more names than classes",
        lambda f: weights(f, config={**CONFIG, "label_names": list("abcd")}),
        "",
        "4 class names are stated for a head of 3 classes, and not used",
        {"classes": ("class 0", "class 1", "class 2")},
    ),
    *(
        Situation(
            f"config with {name}",
            functools.partial(lambda folder, config: weights(folder, config=config), config=config),
            remark="the preprocessing is from config.json next to the weights$",
            right={"pixels": pixels},
        )
        for name, config, pixels in (
            ("mean and std as texts", _config(mean="[0.4, 0.5, 0.6]", std=str(STD)), {}),
            ("one mean", _config(mean=0.5, std=0.25), HALVES),
            ("a mean in a list", _config(mean=[0.5], std=[0.25]), HALVES),
            ("0 to 255", _config(mean=[127.5] * 3, std=[63.75] * 3), HALVES),
            ("crop_pct 1", _config(crop_pct=1), {"crop": 1.0}),
            ("crop_pct as a text", _config(crop_pct="0.9"), {}),
            ("the filter of training", _config(interpolation="random"), {}),
            ("a filter in capitals", _config(interpolation="BILINEAR"), {}),
            ("fixed_input_size", _config(fixed_input_size=True, pool_size=[2, 2]), {}),
            ("squash", _config(crop_mode="squash", crop_pct=1), {"crop": 1.0, "resize": "squash"}),
            ("a tag", {**_config(), "architecture": "wild_net.a1_in1k"}, {}),
            ("the owner", {**_config(), "architecture": "timm/wild_net"}, {}),
        )
        for pixels in [PIXELS_OF_CONFIG.replace(**pixels)]
    ),
    *(
        Situation(
            f"config with {name}",
            functools.partial(lambda folder, config: weights(folder, config=config), config=config),
            "",
            remark,
            {"classes": classes, "pixels": pixels},
        )
        for name, config, remark, classes, pixels in (
            (
                "id2label",
                _config() | {"id2label": {"0": "ant", "1": "bee", "2": "cat"}},
                FROM_CONFIG,
                ("ant", "bee", "cat"),
                PIXELS_OF_CONFIG,
            ),
            (
                "label2id",
                _config() | {"label2id": {"cat": 2, "ant": 0, "bee": 1}},
                FROM_CONFIG,
                ("ant", "bee", "cat"),
                PIXELS_OF_CONFIG,
            ),
            (
                "names that begin at 1",
                _config() | {"label_names": {"1": "a", "2": "b", "3": "c"}},
                "4 class names are stated for a head of 3 classes, and not used",
                ("class 0", "class 1", "class 2"),
                PIXELS_OF_CONFIG,
            ),
            (
                "mean and std alone",
                {"architecture": "wild_net", "pretrained_cfg": HALVES},
                "does not state input_size and crop_pct and interpolation: the network's default",
                ("class 0", "class 1", "class 2"),
                PixelSpec(**HALVES),
            ),
            (
                "the network alone",
                {"architecture": "wild_net", "num_classes": 3},
                "config.json next to the weights states no preprocessing: that of the network",
                ("class 0", "class 1", "class 2"),
                PixelSpec(),
            ),
        )
    ),
    Situation(
        "config with num_classes 0 and names",
        lambda f: weights(f, tensors(classes=0), config=CONFIG),
        "",
        "3 class names are stated for weights without a head, and not used",
        {"pixels": PIXELS_OF_CONFIG, "classes": None},
    ),
    Situation(
        "config with three means for one channel",
        lambda f: weights(f, tensors(channels=1), config=_config(input_size=[1, 48, 48])),
        "",
        "the first kernel has 1 input channels",
        {"pixels": PIXELS_OF_CONFIG.replace(mean=(0.5,), std=(float(np.mean(STD)),))},
    ),
    Situation(
        "settings of timm next to the weights",
        lambda f: _with_text(weights(f), "args.yaml", "mean: [0.5]"),
        "",
        "args.yaml next to the weights is not read: it may state the preprocessing",
        {"pixels": PixelSpec()},
    ),
    Situation(
        "names of classes next to the weights",
        lambda f: _with_text(weights(f), "labels.txt", "ant"),
        "",
        "labels.txt next to the weights is not read: it may have the names of the classes",
        {"classes": ("class 0", "class 1", "class 2")},
    ),
    Situation(
        "classes of OpenMMLab",
        lambda f: checkpoint(
            f / "m.pth",
            {"state_dict": tensors(), "meta": {"CLASSES": ("ant", "bee", "cat"), "epoch": 3}},
        ),
        "",
        "CLASSES: from 'meta' of the weights file",
        {"classes": ("ant", "bee", "cat")},
    ),
    Situation(
        "classes and normalizer of MMPretrain",
        lambda f: checkpoint(
            f / "m.pth",
            {
                "state_dict": {
                    **prefixed("backbone.", tensors(classes=0)),
                    "head.fc.weight": np.ones((3, 16), np.float32),
                    "data_preprocessor.mean": np.full((3, 1, 1), 127.5, np.float32),
                    "data_preprocessor.std": np.full((3, 1, 1), 63.75, np.float32),
                },
                "meta": {"dataset_meta": {"classes": ("ant", "bee", "cat")}},
            },
        ),
        "",
        "classes: from 'dataset_meta' of the weights file",
        {"classes": None, "pixels": PixelSpec(mean=(0.5,) * 3, std=(0.25,) * 3), "head": 1},
    ),
    Situation(
        "normalizer of one number",
        lambda f: weights(
            f,
            {
                **prefixed("model.", tensors()),
                "norm.mean": np.array([0.5], np.float32),
                "norm.std": np.array([0.25], np.float32),
            },
        ),
        "",
        "the file normalizes its input with mean .0.5. and std .0.25.",
        {"pixels": PixelSpec(mean=(0.5,) * 3, std=(0.25,) * 3)},
    ),
    Situation(
        "header with Python's lists",
        lambda f: weights(
            f, header={"mean": str(MEAN), "std": str(STD), "classes": "['a','b','c']"}
        ),
        "",
        "mean, std, classes: from the metadata of the file",
        {"pixels": PixelSpec(mean=MEAN, std=STD), "classes": ("a", "b", "c")},
    ),
    Situation(
        "header with one mean",
        lambda f: weights(f, header={"mean": "0.5", "std": "0.25"}),
        "",
        "mean, std: from the metadata of the file",
        {"pixels": PixelSpec(mean=(0.5,) * 3, std=(0.25,) * 3)},
    ),
    *(
        Situation(
            f"not a file, {word}",
            functools.partial(lambda folder, word: word, word=word),
            f"no weights file at {re.escape(word)}; {advice}",
        )
        for word, advice in (
            ("me/net.a1", "give .*; or hub:me/net.a1 if it is a repository of the hub$"),
            ("https://huggingface.co/me/net", "give .*; or hub:me/net if it is a repository of"),
            ("https://example.org/net.pth", "download the file, and give its path$"),
        )
    ),
    Situation(
        "quantized weights",
        lambda f: weights(f, {n: a.astype(np.int8) for n, a in tensors().items()}),
        "wrong number type: got 52 tensors in int8 .*use the float32 file$",
    ),
    Situation(
        "folder with an export alone",
        lambda f: _with_text(f / "x", "model.onnx", "onnx").parent,
        "no weights in the folder .*: got model.onnx, expected model.safetensors",
    ),
    Situation(
        "children of a ResNet in a sequence",
        lambda f: weights(
            f,
            {
                ".".join(["backbone", str(RESNET.index(first)), *rest]): array
                for name, array in tensors("resnet18", "torchvision", 0).items()
                for first, *rest in [name.split(".")]
            },
        ),
        "",
        "the numbered layers are read as those of a ResNet: 0 as conv1, 4 as layer1",
        {"arch": "resnet18", "classes": None},
    ),
    Situation(
        "config of a training script",
        lambda f: weights(f, config={"lr": 0.1, "epochs": 3}),
        "",
        NOT_TIMM,
        {"pixels": PixelSpec()},
    ),
    Situation(
        "config of transformers",
        lambda f: weights(f, config=TRANSFORMERS),
        "",
        "not used: it is of transformers \\(ResNetForImageClassification\\)",
        {"pixels": PixelSpec()},
    ),
    Situation(
        "preprocessor of transformers",
        lambda f: weights(f, preprocessor_config=PROCESSOR),
        "",
        "of the preprocessing: from preprocessor_config.json next to the weights",
        {"pixels": PIXELS_OF_CONFIG.replace(crop=0.75)},
    ),
    Situation(
        "header of safetensors",
        lambda f: weights(f, header=HEADER),
        "",
        "mean, std, img_size: from the metadata of the file",
        {"pixels": PixelSpec(48, mean=MEAN, std=STD)},
    ),
    Situation(
        "classes of a tutorial",
        lambda f: weights(f, header=TUTORIAL),
        "",
        "class_to_idx: from the metadata of the file",
        {"classes": ("ant", "bee", "cat")},
    ),
    Situation(
        "normalizer and copy of robustness",
        _robust,
        "",
        "prefix 'model.' was removed",
        {"pixels": PixelSpec(mean=MEAN, std=STD), "classes": ("class 0", "class 1", "class 2")},
    ),
    Situation(
        "loss next to the network",
        lambda f: weights(f, {**prefixed("net.", tensors()), "criterion.weight": np.ones(3, "f4")}),
        "",
        "1 other tensor is not used \\(criterion.weight\\)",
        {"classes": ("class 0", "class 1", "class 2")},
    ),
    Situation(
        "momentum copy",
        _contrastive,
        "",
        "prefix 'encoder_q.' was removed",
        {"classes": None, "first": tensors(classes=0)["bn1.weight"]},
    ),
    Situation("features alone", lambda f: weights(f, tensors(classes=0)), right={"classes": None}),
    Situation(
        "MLP head",
        lambda f: weights(f, other_head(**MLP)),
        "",
        LEFT_OUT.format(4, "classifier.1.0.bias, classifier.1.0.weight and 2 more"),
        {"classes": None, "head": 4},
    ),
    Situation(
        "projector",
        lambda f: weights(f, {**tensors(), "projector.0.weight": np.ones((8, 16), "f4")}),
        "",
        LEFT_OUT.format(3, "classifier.weight"),
        {"classes": None, "head": 3},
    ),
    Situation(
        "renamed head",
        lambda f: weights(f, other_head(head__weight=(5, 16), head__bias=(5,))),
        "",
        LEFT_OUT.format(2, "head.bias, head.weight"),
        {"classes": None, "head": 2},
    ),
    Situation(
        "head next to a backbone",
        lambda f: weights(
            f,
            {**prefixed("backbone.", tensors(classes=0)), "fc_new.weight": np.ones((5, 16), "f4")},
        ),
        "",
        "the head was left out: 1 tensor \\(fc_new.weight",
        {"classes": None, "head": 1},
    ),
    Situation(
        "head of another width",
        lambda f: weights(f, other_head(classifier__weight=(5, 8), classifier__bias=(5,))),
        "",
        LEFT_OUT.format(2, "classifier.weight, classifier.bias"),
        {"classes": None, "head": 2},
    ),
    Situation(
        "top of a functional Keras model",
        _keras_top,
        "",
        LEFT_OUT.format(3, "dense/bias, dense/kernel and 1 more"),
        {"arch": "mobilenetv1_025_keras", "classes": None, "head": 3},
    ),
    Situation(
        "one channel",
        lambda f: weights(f, tensors(channels=1)),
        "",
        "the first kernel has 1 input channels",
        {"pixels": GRAY_PIXELS},
    ),
    Situation(
        "four channels",
        lambda f: weights(f, tensors(channels=4), config=CONFIG),
        "",
        "the first kernel has 4 input channels",
        {"pixels": PIXELS_OF_CONFIG.replace(mean=(0.5,) * 4, std=(float(np.mean(STD)),) * 4)},
    ),
    Situation(
        "one channel with config",
        lambda f: weights(f, tensors(channels=1), config={**CONFIG, "pretrained_cfg": GRAY}),
        "",
        FROM_CONFIG,
        {"pixels": PIXELS_OF_CONFIG.replace(mean=(0.3,), std=(0.2,))},
    ),
    Situation(
        "config of another network",
        lambda f: weights(f, config={**CONFIG, "architecture": "resnet18"}),
        "config.json next to model.safetensors holds another architecture: got resnet18, expected "
        "wild_net; use `arch=resnet18`",
    ),
    Situation(
        "damaged config", lambda f: weights(f, config="{"), "config.json is not a JSON object"
    ),
    Situation(
        "incomplete config",
        lambda f: weights(f, config={**CONFIG, "pretrained_cfg": {**FIELDS, "mean": None}}),
        "wrong mean in config.json: got None, expected three numbers; correct .*config.json",
    ),
    Situation(
        "two files in a folder",
        lambda f: [weights(f, name=n).parent for n in ("a.pth", "b.pth")][0],
        "has 2 weights files \\(a.pth, b.pth\\); give one of them",
    ),
    Situation(
        "empty folder",
        lambda f: f,
        "no weights in the folder .*: got nothing, expected model.safetensors",
    ),
    Situation(
        "larger network",
        lambda f: weights(f, other_head(**{"blocks__9__0__conv_pw__weight": (8, 8, 1, 1)})),
        "these weights do not fit .*extra blocks.9.0.conv_pw.weight",
    ),
    Situation(
        "another network",
        lambda f: weights(f, tensors("mobilenetv1_025_keras", "keras", 1000)),
        "holds another architecture: got mobilenetv1_025_keras, expected wild_net",
    ),
    Situation(
        "network of transformers",
        lambda f: weights(
            f,
            {"resnet.embedder.embedder.convolution.weight": np.ones((8, 3, 7, 7), "f4")},
            config=TRANSFORMERS,
        ),
        "written by transformers \\(ResNetForImageClassification\\), holds 1 tensor with",
    ),
    Situation("300 long names", _long_names, "holds 300 tensors with names of another network"),
)


WEIGHTS: tuple[Situation, ...] = READ + REFUSED + LOADED


# ---- folders and names of classes ----------------------------------------------------------------


def tree(
    *names: str | bytes,
    inside: str = "",
    links: Mapping[str, str] = {},
    word: str = "folder:{folder}",
    content: Mapping[str, bytes] = {},
) -> Callable[[Path], str]:
    """A generator of a folder of images.

    Args:
      names: files below the folder: a different gray PNG of 8 x 8 pixels each if the name ends in
        `.png` or has no text of `content`. A name that ends in a slash is an empty folder.
      inside: folder in which the names are.
      links: name -> target of a symbolic link.
      word: the word that a user types, with `{folder}`.
      content: end of a name -> bytes instead of an image.
    """

    def make(folder: Path) -> str:
        for i, name in enumerate(names):
            path = folder / inside / (name if isinstance(name, str) else os.fsdecode(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            if str(name).endswith("/"):
                path.mkdir(exist_ok=True)
                continue
            data = next((v for end, v in content.items() if str(path).endswith(end)), None)
            if data is None:
                Image.new("L", (8, 8), 3 * i).save(path, "PNG")
            else:
                path.write_bytes(data)
        for name, target in links.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(target.format(folder=folder))
        return word.format(folder=folder)

    return make


def two(*classes: str, n: int = 2, root: str = "") -> tuple[str, ...]:
    """`n` images in each of the class folders; cat and dog by default."""
    return tuple(f"{root}{c}/{i}.png" for c in classes or ("cat", "dog") for i in range(n))


def in_parts(*parts: str, n: int = 2) -> tuple[str, ...]:
    """Parts with images of cat and dog."""
    return tuple(name for part in parts for name in two(n=n, root=f"{part}/"))


def parts_of(train: int = 4, **others: int) -> dict[str, dict[str, int]]:
    return {"parts": {"train": train, **others}}


JPEG_START = b"\xff\xd8\xff\xe0\0\x10JFIF"
HEIC_START = b"\0\0\0\x18ftypheic" + bytes(12)
_LITTER_NAMES = (
    "__MACOSX/cat/._0.png",
    "lost+found/#131073",
    "@eaDir/0.png/thumb.png",
    "$RECYCLE.BIN/desktop.ini",
    "System Volume Information/x",
    ".ipynb_checkpoints/0-checkpoint.png",
    ".git/HEAD",
    "__pycache__/x.pyc",
)

FOLDERS: tuple[Situation, ...] = (
    # Names of parts.
    *(
        Situation(f"parts {a} and {b}", tree(*in_parts(a, b)), right=parts_of(**{part: 4}))
        for a, b, part in (
            ("train", "valid", "validation"),
            ("train", "val", "validation"),
            ("training", "dev", "validation"),
            ("Training", "Testing", "test"),
            ("TRAIN", "TEST", "test"),
            ("Train", "Validation", "validation"),
        )
    ),
    Situation(
        "three parts",
        tree(*in_parts("train", "Valid", "test")),
        right=parts_of(validation=4, test=4),
    ),
    *(
        Situation(
            f"parts {a} and {b} are one",
            tree(*in_parts("train", a, b)),
            refused=f"has the folders '{a}' and '{b}', which are both the {part} part, expected on",
        )
        for a, b, part in (
            ("val", "valid", "validation"),
            ("dev", "validation", "validation"),
            ("Test", "testing", "test"),
            ("Train", "train", "train"),
        )
    ),
    Situation(
        "no training part",
        tree(*in_parts("val", "test")),
        refused="has 'test' and 'val' and no training part.*such as folder:DIR/test",
    ),
    Situation(
        "test images without classes",
        tree(*in_parts("train", "val"), "test/1.png", "test/2.png"),
        remark="^the folder 'test' is not used, because it has 2 images and no class folders$",
        right=parts_of(validation=4),
    ),
    Situation(
        "a folder next to the parts",
        tree(*in_parts("train", "test"), *two("more", root="extra/")),
        remark="^not used: 'extra' next to the parts; names of parts are train, validation and",
        right=parts_of(test=4),
    ),
    Situation(
        "classes called train and test",
        tree("train/1.png", "test/1.png"),
        remark="^the folders 'test' and 'train' are read as classes, because they hold images",
        right={"classes": ("test", "train"), "n": 2},
    ),
    Situation(
        "parts with other names",
        tree(*in_parts("training_set", "test_set")),
        refused="'test_set/cat' of .*inside the class folder 'test_set'.*rename 'test_set' to tra",
    ),
    Situation(
        "a class of the test part is unknown",
        tree(*in_parts("train"), *two("cat", "Dog", root="test/")),
        refused="the test part of .* has 'Dog', which its train part lacks.*nearest: 'dog'$",
    ),
    Situation(
        "validation of one class",
        tree(*in_parts("train"), *two("cat", root="val/")),
        right=parts_of(validation=2),
    ),
    # Folders at the top of an archive.
    Situation(
        "one folder at the top",
        tree(*two(), inside="pets"),
        remark="^the data set is read from 'pets', the only folder in ",
    ),
    Situation(
        "two folders at the top",
        tree(*in_parts("train", "val"), inside="archive/pets"),
        remark="^the data set is read from 'archive/pets', the only folder in ",
        right=parts_of(validation=4),
    ),
    Situation(
        "images/train",
        tree(*in_parts("train", "test"), "README.md", inside="images"),
        remark="^the data set is read from 'images', the only folder in",
        right=parts_of(test=4),
    ),
    Situation(
        "an archive of macOS",
        tree(*(f"pets/{n}" for n in two()), "__MACOSX/pets/._cat"),
        remark="^the data set is read from 'pets', the only folder in",
    ),
    Situation(
        "only a training folder",
        tree(*in_parts("train")),
        remark="^the data set is read from 'train', the only folder in",
    ),
    Situation(
        "images of each class in a folder images",
        tree(*(f"{c}/images/{i}.png" for c in ("cat", "dog") for i in range(2))),
        remark="^the images of 2 class folders are read from a folder 'images' inside$",
    ),
    # Litter.
    Situation("litter next to the classes", tree(*two(), *_LITTER_NAMES), right={"skipped": 8}),
    Situation(
        "litter in a class",
        tree(
            *two(),
            *(f"cat/{name}" for name in _LITTER_NAMES),
            *("cat/._0.png", "cat/._1.png", "cat/Thumbs.db", "dog/.DS_Store", "dog/Desktop.ini"),
        ),
        right={"skipped": 12},
    ),
    Situation(
        "litter in parts",
        tree(*in_parts("train", "val"), "train/__MACOSX/x", "val/lost+found/x"),
        right=parts_of(validation=4) | {"skipped": 2},
    ),
    Situation("hidden files", tree(*two(), "cat/.hidden.png", ".cache/x.png")),
    # Files.
    Situation(
        "files without an ending",
        tree(*two(), "cat/IMG_1", "dog/IMG_2"),
        remark="^read 2 files without the ending of an image by content, such as 'cat/IMG_1'$",
        right={"n": 6},
    ),
    *(
        Situation(
            f"ending {ending}",
            tree(*two(), f"dog/a{ending}"),
            remark=f"^read 1 file without the ending of an image by content, such as .*{ending}",
            right={"n": 5},
        )
        for ending in (".dat", ".JPG_large", ".jpg!d", ".1", ".image")
    ),
    Situation(
        "texts in class folders",
        tree(
            *two(), "cat/a.txt", "dog/b", "dog/c.dat", content={"txt": b"x", "b": b"", "dat": b"x"}
        ),
        right={"skipped": 3},
    ),
    Situation(
        "a broken link",
        tree(*two(), links={"cat/x.png": "{folder}/gone.png"}),
        right={"skipped": 1},
    ),
    Situation("a link to itself", tree(*two(), links={"cat/x.png": "x.png"}), right={"skipped": 1}),
    Situation(
        "a link to the folder above", tree(*two(), links={"cat/up": ".."}), right={"skipped": 1}
    ),
    Situation(
        "a link to a class",
        tree(*two(), "more/x/1.png", links={"set/bird": "{folder}/more/x"}),
        refused="'more/x' of .* is a folder with images inside the class folder 'more'",
    ),
    Situation(
        "links as class folders",
        tree(
            *two(root="a/"),
            word="folder:{folder}/b",
            links={"b/cat": "{folder}/a/cat", "b/dog": "{folder}/a/dog"},
        ),
    ),
    Situation(
        "half of a class in another format",
        tree(*two(), "dog/2.HEIC", "dog/3.heic", content={"EIC": HEIC_START, "eic": HEIC_START}),
        remark=r"^2 .HEIC files are not read; install tl\[heic\] or convert them to .jpg or .png",
        right={"skipped": 2},
    ),
    # Empty and small classes.
    Situation(
        "a class of HEIC files",
        tree(*two("cat"), *(f"dog/{i}.HEIC" for i in range(12)), content={"HEIC": HEIC_START}),
        refused="^no image in 'dog': 12 .HEIC files, expected at least one in each class folder of",
    ),
    Situation(
        "a class of four kinds of files",
        tree(
            *two("cat"),
            "dog/1.HEIC",
            "dog/2.heic",
            "dog/3.txt",
            "dog/4",
            "dog/5.mp4",
            content={"HEIC": HEIC_START, "heic": HEIC_START, "txt": b"", "4": b"x"},
            links={"dog/5.png": "nowhere"},
        ),
        refused="'dog': 2 .HEIC files, 1 .*file.*, 1 .* and 2 other files, expected at least",
    ),
    Situation(
        "empty classes",
        tree(*two(), "ape/", "yak/", "zebra/"),
        refused="^no image in 'ape': no file; in 'yak': no file; and in 1 more, expected",
    ),
    Situation(
        "a class of broken links",
        tree(*two("cat"), links={"dog/1.png": "gone/1.png", "dog/2.png": "gone/2.png"}),
        refused="^no image in 'dog': 2 broken links, expected",
    ),
    Situation(
        "one class",
        tree("1.png", "2.png"),
        refused="has 2 images and no sub-folder, .*if it is one class, name the folder that holds",
    ),
    Situation(
        "an empty folder", tree(), refused="has no sub-folder and 0 files, expected a sub-fo"
    ),
    Situation(
        "images and a table",
        tree("1.png", "labels.csv", content={"csv": b"x"}),
        refused="has 1 image and no sub-folder, .*if 'labels.csv' lists the labels, write csv:FILE",
    ),
    Situation(
        "an archive in the folder",
        tree("train.zip", content={"zip": b"PK"}),
        refused="has no sub-folder and 1 file, expected .*; unpack 'train.zip' first$",
    ),
    Situation(
        "species and breeds",
        tree(*two("siamese", "persian", root="cat/"), *two("pug", "beagle", root="dog/")),
        refused="'cat/persian' of .* folder with images inside the class folder 'cat', expected .*"
        "give folder:DIR/cat to learn its sub-folders",
    ),
    Situation(
        "parts inside the classes",
        tree(*two("train", "test", root="cat/"), *two("train", "test", root="dog/")),
        refused="inside the class folder 'cat', expected images only; make a folder for each part "
        "with the classes inside, such as test/cat, or list all",
    ),
    *(
        Situation(
            f"parts called {a} and {b}",
            tree(*in_parts(a, b)),
            refused=f"inside the class folder '{b}', .*; rename '{b}' to train, validation or test",
        )
        for a, b in (
            ("train_images", "test_images"),
            ("seg_train", "seg_test"),
            ("Training Data", "Testing Data"),
            ("train2", "test2"),
        )
    ),
    *(
        Situation(
            f"classes that are {a} and {b}",
            tree(f"{a}/cat.1.png", f"{a}/dog.1.png", f"{b}/1.png"),
            remark=f"^the folders '{a}' and '{b}' are read as classes, because they hold images; a",
            right={"classes": (a, b), "n": 3},
        )
        for a, b in (("test1", "train"), ("testing", "training"), ("test_set", "train_set"))
    ),
    *(
        Situation(
            f"class folders such as {names[0]}",
            tree(*two(*names)),
            remark=f"^each class folder has the name of a part, such as '{names[0]}', and is",
            right={"classes": names, "n": 8},
        )
        for names in (
            ("test_cat", "test_dog", "train_cat", "train_dog"),
            ("cat-test", "cat-train", "dog-test", "dog-train"),
            ("Test cat", "Test dog", "Train cat", "Train dog"),
        )
    ),
    *(
        Situation(
            f"the parts {a} and {b}",
            tree(*in_parts(f"{a}/{a}", f"{b}/{b}")),
            right=parts_of(**{part: 4}),
        )
        for a, b, part in (("train", "test", "test"), ("Train", "valid", "validation"))
    ),
    Situation(
        "classes called valid and invalid",
        tree(*two("invalid", "valid")),
        right={"classes": ("invalid", "valid")},
    ),
    *(
        Situation(
            f"folders {a} and {b}",
            tree(*two(a, b)),
            remark=f"^possible copies of other classes, which stay classes: '{re.escape(b)}'; ",
            right={"classes": (a, b)},
        )
        for a, b in (("cat", "cat (1)"), ("cat", "cat - Copy"), ("cat", "cat(2)"))
    ),
    Situation(
        "masks next to their images",
        tree(*two(), *(f"{c}/{i}_mask.png" for c in ("cat", "dog") for i in (0, 1))),
        remark="^4 images may be masks of other images, such as 'cat/0_mask', and are read as",
        right={"n": 8},
    ),
    Situation(
        "classes in the names of files",
        tree("cat.0.png", "cat.1.png", "dog.0.png", "dog.1.png"),
        refused="4 images and no sub-folder, .*; if the names begin with the class, such as "
        "'cat.0.png', list path and label of each image in a file for csv:FILE$",
    ),
    Situation(
        "a class that is a broken link",
        tree(*two(), links={"bird": "{folder}/gone"}),
        remark="^1 broken link next to the class folders: 'bird'$",
        right={"skipped": 1},
    ),
    Situation(
        "recycle bins of network drives",
        tree(*two(), "@Recycle/x.png", "@Recently-Snapshot/x.png", "cat/.@__thumb/0.png"),
        right={"skipped": 3},
    ),
    Situation(
        "one image in another format",
        tree(*two(), "dog/2.HEIC", content={"EIC": HEIC_START}),
        remark="^1 .HEIC file is not read; .*convert them to .jpg or .png to use them$",
        right={"skipped": 1},
    ),
    *(
        Situation(
            f"{name} next to the classes",
            tree(*two(), name, content={".pth": b"x", ".txt": b"x"}),
            refused=f"^no image in '{folder}': .*; {advice}move the folder elsewhere if it",
        )
        for name, folder, advice in (
            ("models/best.pth", "models", "convert them to .jpg or .png, or "),
            ("logs/events.txt", "logs", "convert them to .jpg or .png, or "),
            ("output/", "output", "add images, or "),
            ("bird/.gitkeep", "bird", "add images, or "),
        )
    ),
    *(
        Situation(
            f"a folder of {names[0]}",
            tree(*names, content={"": b"x"}),
            refused=f"has no sub-folder and 2 files \\({kinds}\\), expected a sub-folder for each",
        )
        for names, kinds in (
            (("x_train.npy", "y_train.npy"), "2 .npy files"),
            (("train.tfrecord", "val.tfrecord"), "2 .tfrecord files"),
            (("train-images-idx3-ubyte", "labels.txt"), "1 .* file and 1 .* file"),
        )
    ),
    *(
        Situation(
            f"the word {word}",
            tree(*two(), word=word),
            refused="does not exist: .*; write folder:/.*",
        )
        for word in ("folder:'{folder}'", "folder: {folder}", "folder:file://{folder}")
    ),
    # Something else than a folder of classes.
    *(
        Situation(
            f"a {name} file",
            tree(name, word="folder:{folder}/" + name, content={name: b"x"}),
            refused=f"{name}' is {what}",
        )
        for name, what in (
            ("pets.zip", "an archive, .*; unpack it first, for example with unzip 'pets.zip'$"),
            ("pets.tar.gz", "an archive, .*with tar -xf 'pets.tar.gz'$"),
            ("pets.TGZ", "an archive, expected a folder"),
            ("pets.csv", "a table, expected a folder .*; write csv:.*pets.csv$"),
            ("pets.txt", "a file, expected a folder with one sub-folder per class$"),
        )
    ),
    Situation(
        "a folder as a table",
        tree(*two(), word="csv:{folder}"),
        refused="is a folder, expected a CSV file .*; a folder of classes is read as folder:DIR$",
    ),
    Situation(
        "a table without csv:",
        tree("a.csv", word="{folder}/a.csv", content={"csv": b"x"}),
        refused="is a file, expected the name of a data set; write 'csv:.*/a.csv'$",
    ),
    *(
        Situation(
            f"an export of detection, {names[0]} and {b}",
            tree(*names, content={".txt": b"0", ".json": b"{}"}),
            refused=f"has the folders '{a}' and '{b}', as exports for detection or segmentation",
        )
        for a, b, names in (
            ("images", "labels", ("images/train/1.png", "labels/train/1.txt")),
            ("images", "labels", ("train/images/1.png", "train/labels/1.txt")),
            ("images", "annotations", ("images/1.png", "annotations/all.json")),
            ("train2017", "annotations", ("train2017/1.png", "annotations/all.json")),
            ("images", "masks", ("images/1.png", "masks/1.png")),
            ("imgs", "gt", ("imgs/1.png", "gt/1.png")),
            ("image", "ground_truth", ("image/1.png", "ground_truth/1.png")),
        )
    ),
    Situation(
        "parts with the labels in a file",
        tree("train/1.png", "train/_classes.csv", "valid/1.png", content={"csv": b"x"}),
        refused="has parts with the labels in a file, '_classes.csv', expected one sub-folder per",
    ),
    Situation(
        "parts with a label file per image",
        tree("train/1.png", "train/1.xml", "valid/1.png", "valid/1.xml", content={"xml": b"<"}),
        refused="has parts with the labels in a file, '1.xml', expected one sub-folder per class",
    ),
    # Names of classes and files.
    *(
        Situation(
            f"a class called {kind}",
            tree(*two(name, "z")),
            right={"classes": tuple(sorted((name, "z")))},
        )
        for kind, name in (
            ("with a comma", "a, b"),
            ("with brackets", "a[1]*?"),
            ("with a percent sign", "100%s {x}"),
            ("with a leading dash", "-rf"),
            ("with 255 bytes", "n" * 255),
            ("with a new line", "a\nb"),
            ("in another script", "\u732b"),
        )
    ),
    Situation(
        "composed in train and decomposed in test",
        tree(*two("caf\u00e9", "z", root="train/"), *two("cafe\u0301", "z", root="test/")),
        right=parts_of(test=4) | {"classes": ("caf\u00e9", "z")},
    ),
    Situation(
        "two Unicode forms in one part",
        tree(
            *two("cat", "caf\u00e9", root="train/"), *two("caf\u00e9", "cafe\u0301", root="test/")
        ),
        refused="the classes .* differ only in their Unicode form, expected different names",
    ),
    Situation(
        "letter case",
        tree(*two("cat", "Cat")),
        remark="^the classes 'Cat' and 'cat' differ only in letter case",
        right={"classes": ("Cat", "cat")},
    ),
    Situation(
        "a trailing space", tree(*two("cat", "cat ")), refused="differ only in surrounding space"
    ),
    *(
        Situation(
            f"a class name in cp1252, {shown}",
            tree(*two(), raw + b"/1.png"),
            refused=rf"the folder '{re.escape(shown)}' of .* is not UTF-8, .*cp1252 to '{guess}'$",
        )
        for raw, shown, guess in (
            (b"caf\xe9", r"caf\xe9", "caf\u00e9"),
            (b"\xfcber", r"\xfcber", "\u00fcber"),
            (b"na\xefve", r"na\xefve", "na\u00efve"),
            (b"\xdf", r"\xdf", "\u00df"),
            (b"10\xb0", r"10\xb0", "10\u00b0"),
        )
    ),
    Situation("a file name in cp1252", tree(*two(), b"cat/caf\xe9.png"), right={"n": 5}),
)


# ---- tables (CSV) --------------------------------------------------------------------------------

CSV_IMAGES = tuple(f"images/{label}/{i}.png" for label in ("round", "square") for i in range(3))


def csv_table(
    header: str = "path,label",
    row: str = "{path},{label}",
    *,
    values: Sequence[str] = ("",) * 6,
    more: Sequence[str] = (),
    first: str = "",
    newline: str = "\r\n",
    encoding: str = "utf-8",
    images: Sequence[str] = CSV_IMAGES,
    start: bytes = b"",
) -> Callable[[Path], str]:
    """A generator of a table of six images in `images/round` and `images/square`.

    Args:
      header: the line with the names of the columns; none if it is empty.
      row: a line per image, with `{path}`, `{label}`, `{value}`, `{stem}` (the path without ending)
        and `{back}` (the path with backslashes).
      values: `{value}` of each image.
      more: lines after those of the images.
      first: a line before the header.
      newline, encoding: of the text.
      images: the files that are written.
      start: bytes before the text.
    """

    def make(folder: Path) -> str:
        for i, name in enumerate(images):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), i).save(folder / name, "PNG")
        rows = [
            row.format(
                path=path,
                label=path.split("/")[1],
                value=value,
                stem=path.removesuffix(".png"),
                back=path.replace("/", "\\"),
                folder=folder,
            )
            for path, value in zip(CSV_IMAGES, values, strict=True)
        ]
        lines = [*filter(None, (first, header)), *rows, *more]
        text = "".join(line + newline for line in lines)
        (folder / "table.csv").write_bytes(start + text.encode(encoding))
        return f"csv:{folder / 'table.csv'}"

    return make


def _renamed(names: Mapping[str, str]) -> tuple[str, ...]:
    """The images of a table with other names of files."""
    return tuple(names.get(name, name) for name in CSV_IMAGES)


_HALF = {"parts": {"train": 4, "validation": 2}}
_VALID = ("False", "False", "True") * 2
_NFC, _NFD = "caf\u00e9", "cafe\u0301"

TABLES: tuple[Situation, ...] = (
    # Encodings, lines and delimiters of spreadsheets.
    Situation("plain", csv_table()),
    Situation("carriage returns", csv_table(newline="\r")),
    Situation("no line end at the end and empty lines", csv_table(newline="\n", more=("", " , "))),
    Situation("UTF-8 mark", csv_table(encoding="utf-8-sig")),
    Situation("UTF-16 little", csv_table(encoding="utf-16-le", start=b"\xff\xfe")),
    Situation("UTF-16 big", csv_table(encoding="utf-16-be", start=b"\xfe\xff")),
    Situation(
        "Unicode text of Excel",
        csv_table("path\tlabel", "{path}\t{label}", encoding="utf-16-le", start=b"\xff\xfe"),
    ),
    Situation("UTF-32", csv_table(encoding="utf-32-le", start=b"\xff\xfe\0\0")),
    Situation(
        "UTF-16 without a mark",
        csv_table(encoding="utf-16-le"),
        refused="has bytes of value 0, as UTF-16 without its mark has, .* save it as 'CSV UTF-8'$",
    ),
    Situation(
        "cut UTF-16",
        csv_table("path,label ", start=b"\xff\xfe"),
        refused="begins with the mark of UTF-16 but cannot be decoded: .*; save it as 'CSV UTF-8'$",
    ),
    Situation(
        "cp1252",
        csv_table(
            row="{path},{value}", values=["caf\u00e9"] * 3 + ["th\u00e9"] * 3, encoding="cp1252"
        ),
        refused="is not in UTF-8: byte 0xE9 in line 2, in a cell that reads 'caf\u00e9' in cp1252 "
        "of Windows; save it as 'CSV UTF-8'$",
    ),
    Situation(
        "Mac Roman",
        csv_table(
            row="{path},{value}",
            values=["a", "a", "n\u00fc", "b", "b", "b"],
            encoding="mac-roman",
            newline="\r",
        ),
        refused="is not in UTF-8: byte 0x9F in line 4, in a cell that reads 'n\u0178' in cp1252",
    ),
    Situation("sep=;", csv_table("path;label", "{path};{label}", first="sep=;")),
    Situation("quoted sep", csv_table("path;label", "{path};{label}", first='"sep=;"')),
    Situation("sep=, with empty cells", csv_table(first="sep=,,,")),
    Situation("SEP=|", csv_table("path|label", "{path}|{label}", first="SEP=|")),
    Situation(
        "sep=; with a mark",
        csv_table("path;label", "{path};{label}", first="sep=;", encoding="utf-8-sig"),
    ),
    Situation("semicolons", csv_table("path;label", "{path};{label}")),
    Situation("tabs", csv_table("path\tlabel", "{path}\t{label}")),
    Situation("vertical bars", csv_table("path|label", "{path}|{label}")),
    Situation(
        "semicolons and more commas",
        csv_table("path;label;a,b,c,d", "{path};{label};1,2,3,4"),
    ),
    Situation("spaces after commas", csv_table("path, label", '{path}, "{label}"')),
    Situation("trailing empty columns", csv_table("path,label,,,", "{path},{label},,,")),
    Situation("empty cells without a column", csv_table(row="{path},{label},,")),
    Situation(
        "index column", csv_table(",path,label", "{value},{path},{label}", values=tuple("012345"))
    ),
    Situation(
        "row numbers of R",
        csv_table('"path","label"', '"{value}","{path}","{label}"', values=tuple("123456")),
    ),
    Situation(
        "quoted commas and quotes",
        csv_table(row='"{path}","{label}, ""big"""'),
        right={"classes": ('round, "big"', 'square, "big"')},
    ),
    Situation("names of columns in capitals", csv_table(" PATH , Label ")),
    Situation(
        "unquoted comma in a label",
        csv_table(row="{path},{label}, big"),
        refused="has 3 cells in line 2, expected 2: 'big' has no column; name the column, ",
    ),
    Situation(
        "open quote",
        csv_table(more=('"x.png,round',)),
        refused="is not valid CSV: unexpected end of data in line 8, expected cells with commas",
    ),
    Situation(
        "Excel workbook",
        csv_table(start=b"PK\x03\x04\x14\0"),
        refused="is an Excel workbook .\\.xlsx. or another zip archive, expected a CSV file",
    ),
    Situation(
        "old Excel workbook",
        csv_table(start=b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
        refused="is an Excel workbook of the old format .\\.xls., expected a CSV file; export it",
    ),
    Situation(
        "Parquet", csv_table(start=b"PAR1"), refused="is a Parquet file, expected a CSV file"
    ),
    Situation(
        "JSON lines",
        csv_table("", '{{"path": "{path}", "label": "{label}"}}'),
        refused="is a JSON file, expected a CSV file; export it as CSV in UTF-8",
    ),
    Situation("web page", csv_table(first="<!DOCTYPE html>"), refused="is an HTML or XML file"),
    *(
        Situation(
            f"instead of text, {what}, {start[:2]!r}",
            csv_table(start=start),
            refused=f"is {what}, expected",
        )
        for start, what in (
            (b"\x1f\x8b\x08", "an archive"),
            (b"PK\x03\x04" + bytes(26) + b"table.csv", "an archive"),
            (b"ARROW1\0\0", "a Feather file"),
            (b"\x93NUMPY\1\0", "an array of NumPy"),
            (b"\x89PNG\r\n", "an image"),
            (b"\x80\x04\x95", "a pickle"),
            (b'[\n  {"path": ', "a JSON file"),
        )
    ),
    # Names of columns.
    Situation(
        "no names of columns",
        csv_table(""),
        refused="has no line with the names of its columns: line 1 has the image "
        "'images/round/0.png'; add a first line such as path,label",
    ),
    Situation(
        "no names of columns and semicolons",
        csv_table("", "{label};{path}"),
        refused="line 1 has the image 'images/round/0.png'; add a first line such as path;label",
    ),
    Situation(
        "lines of a list with spaces",
        csv_table("", "{path} 0"),
        refused="has no line with the names of its columns: line 1 has the image "
        "'images/round/0.png'; add a first line such as path,label$",
    ),
    *(
        Situation(
            f"columns {path} and {label}",
            csv_table(f"{path},{label}"),
            remark=f"^the table has no column path and no column label; read '{path}' as path and "
            f"'{label}' as label$",
        )
        for path, label in (
            ("filename", "class"),
            ("file", "category"),
            ("Image", "Target"),
            ("image_path", "label_name"),
            ("FilePath", "Class Name"),
            ("fname", "labels"),
            ("id", "class_id"),
            ("name", "category_id"),
            ("filepaths", "labels"),
            ("images", "class"),
        )
    ),
    Situation(
        "path and category",
        csv_table("path,category"),
        remark="^the table has no column label; read 'category' as label$",
    ),
    Situation(
        "index and file name",
        csv_table("id,filename,label", "{value},{path},{label}", values=tuple("012345")),
        remark="^the table has no column path; read 'filename' as path$",
    ),
    Situation(
        "two paths",
        csv_table("file,image,label", "{path},{path},{label}"),
        refused="has no column 'path', and 'file' and 'image' may both be it, expected one",
    ),
    Situation(
        "two labels by name",
        csv_table("path,class,category", "{path},{label},{label}"),
        refused="has no column 'label', and 'class' and 'category' may both be it, expected one",
    ),
    Situation(
        "one column per class",
        csv_table("path,round,square", "{path},1,0"),
        refused="has no column 'label', expected path and label in its first line; its columns: "
        "'path', 'round', 'square'; 'round' and 'square' are 0 or 1, as with one column per class: "
        "write the name of the class of each image to a column label$",
    ),
    Situation(
        "one column per class with decimals and spaces",
        csv_table("filename; ant; bee; cat", "{path}; {value}", values=("1,0; 0,0; 0,0",) * 6),
        refused="no column 'label'.*'ant', 'bee' and 1 more are 0 or 1, as with one column per",
    ),
    *(
        Situation(
            f"columns {path} and {label}",
            csv_table(f"{path},{label}"),
            refused=f"has no column {missing}, expected path and label .*; rename {change}$",
        )
        for path, label, missing, change in (
            ("id", "breed", "'label'", "one to label"),
            ("Datei", "Klasse", "'path' and no column 'label'", "two to path and label"),
            ("image_id", "diagnosis", "'label'", "one to label"),
            ("\u8def\u5f84", "label", "'path'", "one to path"),
        )
    ),
    *(
        Situation(
            f"names of columns below {first!r}",
            csv_table(header, row, first=first),
            refused=f"has the names of its columns in line {line}, below '.*', expected in the fi",
        )
        for first, header, row, line in (
            ("# exported by a tool", "path,label", "{path},{label}", 2),
            ("My data set", "path;label", "{path};{label}", 2),
            ("My data set,,", "path,label,", "{path},{label},", 2),
            ("Labels\n\nof 2024", "filename\tclass", "{path}\t{label}", 4),
            ("sep=;\r\nRound or square", "path;label", "{path};{label}", 3),
        )
    ),
    *(
        Situation(
            f"{twice} twice in {header}",
            csv_table(header, "{path},{label},{label}"),
            refused=f"has the column '{twice}' twice .columns {columns}., expected each name once",
        )
        for header, twice, columns in (
            ("path,label,label", "label", "2 and 3"),
            ("path,label,Label", "Label", "2 and 3"),
            ("label,label,path", "label", "1 and 2"),
            ("path,label, path ", "path", "1 and 3"),
            ("path,label,split,split", "split", "3 and 4"),
            ("path,label,x,x", "x", "3 and 4"),
        )
    ),
    # Parts.
    *(
        Situation(
            f"parts in {column} of {values[2]}",
            csv_table(f"path,label,{column}", "{path},{label},{value}", values=values),
            remark=f"^the parts are read from '{column}': 4 train, 2 validation, 0 test$",
            right=_HALF,
        )
        for column, values in (
            ("is_valid", _VALID),
            ("is_valid", ("0", "0", "1") * 2),
            ("is valid", ("no", "no", "yes") * 2),
            ("set", ("train", "Train", "val") * 2),
            ("subset", ("training", "train", "valid") * 2),
            ("partition", ("TRAIN", "train", "dev") * 2),
            ("phase", ("train", "train", "validation") * 2),
            ("fold", ("train", "train", "val") * 2),
        )
    ),
    Situation(
        "is_valid and is_test",
        csv_table(
            "path,label,is_valid,is_test",
            "{path},{label},{value}",
            values=("0,0", "1,0", "0,1") * 2,
        ),
        remark="^the parts are read from 'is_valid' and 'is_test': 2 train, 2 validation, 2 test$",
        right={"parts": {"train": 2, "validation": 2, "test": 2}},
    ),
    *(
        Situation(
            f"split of {words[2]}",
            csv_table("path,label,split", "{path},{label},{value}", values=words * 2),
            right=_HALF,
        )
        for words in (
            ("train", "train", "valid"),
            ("training", "train", "Dev"),
            ("TRAIN", "Training", " validation "),
            ("train", "train", "VAL"),
        )
    ),
    Situation(
        "misspelled split",
        csv_table(
            "path,label,split", "{path},{label},{value}", values=("train", "train", "tset") * 2
        ),
        refused="has the split 'tset' in line 4, 7, expected train, validation or test in each "
        "line; nearest: 'test'",
    ),
    *(
        Situation(
            f"split of {word!r}",
            csv_table("path,label,split", "{path},{label},{value}", values=("train", word, "") * 2),
            refused=f"has the split '{word}' in line .*, expected train, validation or test in ea",
        )
        for word in ("0", "", "holdout", "eval", "train_1")
    ),
    Situation(
        "two columns of parts",
        csv_table("path,label,set,phase", "{path},{label},{value},train", values=("train",) * 6),
        refused="has the columns 'set' and 'phase' with parts, expected one; name it split",
    ),
    *(
        Situation(
            f"{column} of {values[0]}",
            csv_table(f"path,label,{column}", "{path},{label},{value}", values=values),
            remark=f"^the column '{column}' is not used: {end}$",
        )
        for column, values, end in (
            ("fold", tuple("012012"), "parts are read from a column split with train, .*"),
            ("set", tuple("ABABAB"), "parts are read from a column split with train, .*"),
            ("is_valid", ("yes", "maybe") * 3, "parts are read from a column split .*"),
            ("is_train", ("True", "False") * 3, "parts are read from a column split .*"),
            ("weight", ("0.5",) * 6, "the probability that a label is correct is read from .*"),
            ("Patient ID", tuple("ppqqrr"), "images of one group may be in different parts; .*"),
            ("label_2", tuple("aabbcc"), "each image has one label"),
            ("label.1", tuple("aabbcc"), "each image has one label"),
            ("category", tuple("aabbcc"), "each image has one label"),
            ("type", ("train", "test") * 3, "parts are read from a column split .*"),
            ("Purpose", ("TRAIN", "val") * 3, "parts are read from a column split .*"),
            ("valid", tuple("001001"), "parts are read from a column split .*"),
            ("Usage", ("Training", "PublicTest") * 3, "parts are read from a column split .*"),
            ("bbox", ("1 2 3 4",) * 6, "whole images are read; crop them .*"),
        )
    ),
    Situation(
        "split and fold",
        csv_table("path,label,split,fold", "{path},{label},train,{value}", values=tuple("012012")),
        remark="^the column 'fold' is not used: parts are read from a column split",
        right={"parts": {"train": 6}},
    ),
    Situation(
        "columns without a meaning", csv_table("path,label,width,note", "{path},{label},8,x")
    ),
    # Labels.
    *(
        Situation(
            f"labels {one} and {other}",
            csv_table(row="{path},{value}", values=[one, "7", one, "7", "7", other]),
            refused=f"has the labels '{one}' in line 2 and '{other}' in line 7, which are the same "
            "number, expected one spelling of each class",
        )
        for one, other in (("1", "1.0"), ("1", "01"), ("1.0", "1.00"), ("-1", "-1.0"), ("0", "-0"))
    ),
    Situation(
        "labels of numbers",
        csv_table(row="{path},{value}", values=("10", "9", "-1", "10", "9", "-1")),
        right={"classes": ("-1", "9", "10")},
    ),
    *(
        Situation(
            f"label in two Unicode forms: {name}",
            csv_table(row="{path},{value}", values=(name, other, "dog") * 2),
            remark=f"^read 4 lines with the label '{name}' in several Unicode forms as one class",
            right={"classes": tuple(sorted((name, "dog")))},
        )
        for name, other in (
            (_NFC, _NFD),
            ("\u00c5ngstr\u00f6m", "A\u030angstro\u0308m"),
            ("\ud55c\uae00", "\u1112\u1161\u11ab\u1100\u1173\u11af"),
            ("\u304c", "\u304b\u3099"),
            ("Espa\u00f1a", "Espan\u0303a"),
        )
    ),
    Situation(
        "labels in NFD",
        csv_table(row="{path},{value}", values=(_NFD, _NFD, "dog") * 2),
        right={"classes": (_NFC, "dog")},
    ),
    *(
        Situation(
            f"labels {one!r} and {other!r}",
            csv_table(row="{path},{value}", values=(one, other, "dog") * 2),
            remark="^the classes .* and .* differ only in letter case, space, punctuation or width",
            right={"classes": tuple(sorted((one, other, "dog")))},
        )
        for one, other in (
            ("cat", "Cat"),
            ("big cat", "big  cat"),
            ("big cat", "big\u00a0cat"),
            ("big cat", "big_cat"),
            ("big-cat", "big_cat"),
            ("cat", "cat."),
            ("cat", "c\u200bat"),
            ("cat", "\uff43at"),
        )
    ),
    *(
        Situation(
            f"label with {name} around it",
            csv_table(row='{path},"{value}"', values=("cat", other, "dog") * 2),
            remark="^read the label 'cat' with and without surrounding space as one class for",
            right={"classes": ("cat", "dog")},
        )
        for name, other in (("a space", "cat "), ("a fixed space", "\u00a0cat"), ("a tab", "cat\t"))
    ),
    Situation(
        "a label that looks like a copy",
        csv_table(row="{path},{value}", values=("cat", "cat (1)", "dog") * 2),
        remark="^possible copies of other classes, which stay classes: 'cat .1.'; merge them if",
        right={"classes": ("cat", "cat (1)", "dog")},
    ),
    Situation(
        "grades",
        csv_table(row="{path},{value}", values=("A", "A-", "A+") * 2),
        right={"classes": ("A", "A+", "A-")},
    ),
    Situation(
        "spaces around all labels",
        csv_table(row='{path}," {label} "'),
    ),
    Situation(
        "empty label",
        csv_table(row="{path},{value}", values=("a", "b", "", "b", " ", "b")),
        refused="has no label in line 4, 6, expected a label in each",
    ),
    *(
        Situation(
            f"label {word}",
            csv_table(row="{path},{value}", values=("a", "b", word, "b", "a", "b")),
            refused=f"has the label '{word}' in line 4, expected a label in each",
        )
        for word in ("#N/A", "#REF!", "#VALUE!")
    ),
    *(
        Situation(
            f"label {word}",
            csv_table(row="{path},{value}", values=("a", "b", word, "b", "a", word)),
            remark=f"^read 2 lines with the label '{re.escape(word)}' as a class; remove such",
            right={"classes": tuple(sorted(("a", "b", word)))},
        )
        for word in ("nan", "NULL", "None", "-", "?", "N/A")
    ),
    Situation(
        "several labels in a cell",
        csv_table(row="{path},{value}", values=("a", "b", "a|b", "b", "a", "b")),
        remark="^read 1 label like a list as one class each, such as 'a.b', because an image",
        right={"classes": ("a", "a|b", "b")},
    ),
    *(
        Situation(
            f"several labels in a cell: {name}",
            csv_table(row='{path},"{value}"', values=(name, "a", "b") * 2),
            remark="^read 1 label like a list as one class each, such as .*, because an image has",
            right={"classes": tuple(sorted((name, "a", "b")))},
        )
        for name in ("a;b", "a,b", "a b", "a/b", "['a', 'b']", "[1, 0]", "a + b")
    ),
    *(
        Situation(
            f"labels with a comma or a space: {name}",
            csv_table(row='{path},"{value}"', values=(name, "b", "hot") * 2),
            right={"classes": tuple(sorted((name, "b", "hot")))},
        )
        for name in ("a, b", "hot dog", "a/c", "(a)", "x-ray", "[a]")
    ),
    Situation(
        "labels as formulas of a spreadsheet",
        csv_table(row='{path},"=""{value}"""', values=("01", "02") * 3),
        right={"classes": ("01", "02")},
    ),
    Situation(
        "one label",
        csv_table(row="{path},round"),
        refused="has 1 label in 6 lines .'round'., expected at least two classes",
    ),
    # Images under two labels, and listed twice.
    Situation(
        "one image under two labels",
        csv_table(more=("images/round/0.png,square",)),
        refused="has 1 image under two labels, such as '.*images/round/0.png' with 'round' in line "
        "2 and 'square' in line 8, expected one label per image; keep one of the lines",
    ),
    Situation(
        "three images under two labels",
        csv_table(more=[f"images/round/{i}.png,square" for i in range(3)]),
        refused="has 3 images under two labels, such as '.*images/round/0.png' with 'round' in",
    ),
    Situation(
        "two paths of one image under two labels",
        csv_table(more=("./images/../images/round/1.png,square",)),
        refused="has 1 image under two labels, such as '.*round/1.png' with 'round' in line 3 and",
    ),
    Situation(
        "image listed twice",
        csv_table(more=("images/round/0.png,round", ".\\images\\round\\1.png,round")),
        remark="^2 images listed more than once, and each line counts: "
        "'.*round/0.png' in lines 2 and 8$",
        right={"n": 8},
    ),
    Situation(
        "image in two parts",
        csv_table(
            "path,label,split",
            "{path},{label},train",
            more=("images/round/0.png,round,test",),
        ),
        remark="^1 image listed in more than one part, which is not corrected: '.*0.png' in",
        right={"n": 7, "parts": {"train": 6, "test": 1}},
    ),
    # Confidence.
    Situation(
        "decimal commas",
        csv_table(
            "path;label;confidence", "{path};{label};{value}", values=("0,75", "1", "0,5") * 2
        ),
        right={"confidence": (0.75, 1.0, 0.5) * 2},
    ),
    Situation(
        "quoted decimal commas",
        csv_table(
            "path,label,confidence", '{path},{label},"{value}"', values=("0,75", "1,0", ".5") * 2
        ),
        right={"confidence": (0.75, 1.0, 0.5) * 2},
    ),
    *(
        Situation(
            f"confidence {value!r}",
            csv_table(
                "path;label;confidence", "{path};{label};{value}", values=("1", value, "1") * 2
            ),
            refused=f"has the confidence '{value}' in line 3, 6, expected a number in .0, 1.",
        )
        for value in ("75 %", "0", "1,5", "", "high", "nan", "1.000,5")
    ),
    # Paths.
    Situation("backslashes", csv_table(row="{back},{label}")),
    Situation("dot and backslash", csv_table(row=".\\{back},{label}")),
    Situation("dot and slash", csv_table(row="./{path},{label}")),
    Situation("absolute paths", csv_table(row="{folder}/{path},{label}")),
    Situation("file addresses", csv_table(row="file://{folder}/{path},{label}")),
    Situation(
        "file addresses with a host", csv_table(row="file://localhost{folder}/{path},{label}")
    ),
    Situation(
        "file addresses with escapes",
        csv_table(
            row="file:{folder}/{value},{label}",
            values=("images/round/a%20b.png", *CSV_IMAGES[1:]),
            images=_renamed({CSV_IMAGES[0]: "images/round/a b.png"}),
        ),
    ),
    *(
        Situation(
            f"paths below {start}",
            csv_table(row=f"{start}{{{kind}}},{{label}}"),
            remark="^read 6 absolute paths of another machine below the folder of the table: "
            "'.*' as 'images/round/0.png'$",
        )
        for start, kind in (
            ("C:\\data\\", "back"),
            ("d:/my data/", "path"),
            ("file:///C:/data/", "path"),
            ("\\\\server\\share\\", "back"),
            ("/home/ann/data/", "path"),
            ("C:\\", "back"),
        )
    ),
    *(
        Situation(
            f"paths of Windows that are not here: {path}",
            csv_table(more=(f"{path},round",)),
            refused="has the path of Windows '.*' in line 8, expected an image in each; paths are "
            "relative to the folder of the table$",
        )
        for path in ("C:\\data\\images\\round\\9.png", "d:/9.png", "\\\\server\\share\\9.png")
    ),
    Situation(
        "missing image",
        csv_table(more=("images\\round\\9.png,round",)),
        refused=r"has no image at 'images\\round\\9.png' in line 8, expected an image in each",
    ),
    *(
        Situation(
            f"missing image that is elsewhere: {row}",
            csv_table(row=row, images=images),
            refused="expected an image in each; paths are relative to the folder of the table, "
            f"where it is '{place}'$",
        )
        for row, images, place in (
            ("data/{path},{label}", CSV_IMAGES, "images/round/0.png"),
            ("..\\set\\{back},{label}", CSV_IMAGES, "images/round/0.png"),
            ("round/../x/0.png,{label}", CSV_IMAGES, "images/round/0.png"),
            ("7.png,{label}", (*CSV_IMAGES, "pictures/7.png"), "pictures/7.png"),
            ("x/7.png,{label}", (*CSV_IMAGES, "a/b/7.png"), "a/b/7.png"),
        )
    ),
    Situation(
        "escapes of web addresses",
        csv_table(
            row="{value},{label}",
            values=("images/round/a%20b.png", *CSV_IMAGES[1:]),
            images=_renamed({CSV_IMAGES[0]: "images/round/a b.png"}),
        ),
        remark="^read 1 path with escapes of web addresses: '.*a%20b.png' as '.*/a b.png'$",
    ),
    Situation(
        "a table as an image",
        csv_table(more=("table.csv,round",)),
        refused="has 'table.csv', which is not an image, in line 8, expected an image in each",
    ),
    Situation(
        "folder instead of an image",
        csv_table(more=("images/round,round",)),
        refused="has no image at 'images/round' in line 8",
    ),
    Situation(
        "web address",
        csv_table(more=("https://example.org/9.png,round",)),
        refused="has the address 'https://example.org/9.png' instead of a file in line 8, expected",
    ),
    Situation(
        "paths without endings",
        csv_table(row="{stem},{label}"),
        remark="^read 6 paths without an ending as the image of that name: 'images/round/0' as "
        "'images/round/0.png'$",
    ),
    Situation(
        "path without an ending and a file of another kind",
        csv_table(row="{stem},{label}", images=(*CSV_IMAGES, "images/round/0.txt")),
        remark="^read 6 paths without an ending as the image of that name: 'images/round/0' as",
    ),
    Situation(
        "path without an ending and two images",
        csv_table(row="{stem},{label}", images=(*CSV_IMAGES, "images/round/0.jpg")),
        refused="has the path 'images/round/0', which may be '0.jpg' and '0.png', in line 2",
    ),
    Situation(
        "paths in another letter case",
        csv_table(row="{value},{label}", values=[path.upper() for path in CSV_IMAGES]),
        remark="^read 6 paths as files of another letter case or Unicode form: 'IMAGES/.*' as",
    ),
    Situation(
        "path in another Unicode form",
        csv_table(
            row="{value},{label}",
            values=(f"images/round/{_NFC}.png", *CSV_IMAGES[1:]),
            images=_renamed({CSV_IMAGES[0]: f"images/round/{_NFD}.png"}),
        ),
        remark="^read 1 path as files of another letter case or Unicode form: '.*' as '.*'$",
    ),
    Situation(
        "path that two files fit",
        csv_table(
            row="{value},{label}",
            values=("images/round/A.PNG", *CSV_IMAGES[1:]),
            images=(*CSV_IMAGES, "images/round/a.png", "images/round/A.png"),
        ),
        refused="has the path 'images/round/A.PNG', which may be 'A.png' and 'a.png', in line 2",
    ),
    Situation(
        "a path of 5,000 characters", csv_table(more=("x" * 5000 + ".png,round",)), refused="no im"
    ),
)


# ---- surroundings: paths, caches, environment, terminals -----------------------------------------


class Command(NamedTuple):
    """A command as a user types it.

    Attributes:
      script: name of the file in `experiments/`.
      argv: its arguments; without --workdir the test adds one.
      env: environment variables; None removes one.
      before: Python code that runs in the process of the command before the script, and makes what
        a test cannot make otherwise, such as a full disk.
    """

    script: str
    argv: tuple[str, ...]
    env: Mapping[str, str | None] = {}
    before: str = ""


def command(
    script: str,
    *argv: str,
    files: Callable[[Path], Any] = lambda folder: None,
    env: Mapping[str, str | None] = {},
    before: str = "",
) -> Callable[[Path], Command]:
    """A generator of a command; `{folder}` in its words is the folder of the situation.

    Args:
      script, argv, env, before: as in `Command`. doctor gets a small data set without arguments.
      files: writes further files.
    """

    def make(folder: Path) -> Command:
        fill = lambda text: text.replace("{folder}", str(folder))
        files(folder)
        words = argv
        if script == "doctor" and not argv:
            tree(*two(), word="", inside="set")(folder)
            words = ("--data=folder:{folder}/set",)
        variables = {name: value and fill(value) for name, value in env.items()}
        return Command(script, tuple(map(fill, words)), variables, fill(before))

    return make


def _write(name: str, text: str = "", link: str = "") -> Callable[[Path], None]:
    """Writes a file, or a symbolic link to `link`."""

    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(link) if link else path.write_text(text)

    return write


def _finished(name: str = "predict", **files: str) -> Callable[[Path], None]:
    """Writes the folder of a finished run, `old`; `files` replaces the text of result, ..."""

    def write(folder: Path) -> None:
        config = {"name": name, "flags": {}, "seed": 0}
        texts = {"config": json.dumps(config), "result": "{}", **files}
        for file, text in texts.items():
            _write(f"old/{file}.json", text)(folder)

    return write


DESCRIBE = ("describe", "--arch=squeezenet1_1")
OLD = "--workdir={folder}/old"
FULL_DISK = """
import errno, os
import tl.{module} as module
def full(*args, **more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
module.{function} = full
"""
DENIED = """
import errno, os, pathlib
scandir, listdir = os.scandir, os.listdir
def deny(real):
    def wrapped(path="."):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)
    return wrapped
os.scandir, os.listdir = deny(scandir), deny(listdir)
"""
BROKEN_PIPE = """
import os
reader, writer = os.pipe()
os.dup2(writer, 1)
os.close(reader), os.close(writer)
"""
CLOSED = "import os, sys; os.close(1); sys.stdout = None"
RAISE = """
import jax, tl.models.summary as module
def fail(*args, **more):
    raise {error}
module.describe = fail
"""
INTERRUPT = RAISE.format(error="KeyboardInterrupt")
_CACHE = r"^the cache '.*' cannot be written \({}\), so nothing .* set {} to another folder$"
_NO_WRITE = r"cannot write into '.*' \({}\); give another --workdir"
_NOT_FINISHED = "is not the folder of a finished run"

SURROUNDINGS = (
    # The folder of a run.
    Situation(
        "a workdir that is a file",
        command(*DESCRIBE, "--workdir={folder}/file", files=_write("file")),
        refused=_NO_WRITE.format("File exists"),
    ),
    Situation(
        "a workdir below a file",
        command(*DESCRIBE, "--workdir={folder}/file/run", files=_write("file")),
        refused=_NO_WRITE.format("Not a directory"),
    ),
    Situation(
        "a workdir with a long name",
        command(*DESCRIBE, "--workdir={folder}/" + "x" * 300),
        refused=_NO_WRITE.format("File name too long"),
    ),
    Situation(
        "a workdir with a path of 5,000 characters",
        command(*DESCRIBE, "--workdir={folder}/" + "/".join(["y" * 200] * 25)),
        refused=r"^describe: cannot write into .* \.\.\.; the whole message is in '.*\.txt'$",
    ),
    Situation(
        "a workdir in a loop of links",
        command(*DESCRIBE, "--workdir={folder}/loop/run", files=_write("loop", link="loop")),
        refused=_NO_WRITE.format("Too many levels of symbolic links"),
    ),
    Situation(
        "a workdir of a user that does not exist",
        command(*DESCRIBE, "--workdir=~nobody_has_this_name/run"),
        right={"file": "describe/~nobody_has_this_name/run/result.json"},
    ),
    *(
        Situation(
            f"a workdir with {name}",
            command(*DESCRIBE, "--workdir={folder}/" + word),
            right={"file": f"{word}/result.json"},
        )
        for name, word in (
            ("a space", "my run"),
            ("a slash at the end", "run/"),
            ("a line break", "my\nrun"),
            ("bytes that are not UTF-8", os.fsdecode(b"caf\xe9")),
            ("a quote and a dollar", "it's $5"),
        )
    ),
    Situation(
        "a workdir that cannot be written",
        command(*DESCRIBE, before=FULL_DISK.format(module="reporting.run", function="write_whole")),
        refused=_NO_WRITE.format("No space left on device"),
    ),
    Situation(
        "a disk that is full when the result is written",
        command(*DESCRIBE, before=FULL_DISK.format(module="pages", function="finish")),
        refused="cannot read or write a file .No space left on device.; check",
    ),
    Situation(
        "the workdir of another experiment",
        command(*DESCRIBE, OLD, files=_finished()),
        refused="holds the result of predict, which describe would remove; give another --workdir",
    ),
    Situation(
        "a workdir with a broken config.json",
        command(*DESCRIBE, OLD, files=_finished(config="{")),
        right={"file": "old/result.json"},
    ),
    Situation(
        "a resumed run of another experiment",
        command("transfer", "--resume", "--data=elpv", OLD, files=_finished()),
        refused="it is a run of predict, expected a run of transfer; use another --workdir",
    ),
    Situation(
        "a resumed run with other flags",
        command("transfer", "--resume", "--data=elpv", OLD, files=_finished("transfer")),
        refused=r"was 'not set', is .*; and \d\d more; use the flags of its start; the whole mess",
        right={"whole": "--weight_decay was 'not set', is 0.01"},
    ),
    *(
        Situation(
            f"a resumed run whose config.json is {name}",
            command("transfer", "--resume", "--data=elpv", OLD, files=_finished(config=text)),
            refused="cannot read the flags of the earlier run",
        )
        for name, text in (("cut off", "{"), ("a list", "[]"), ("without flags", "{}"))
    ),
    # Finished runs.
    *(
        Situation(
            f"{script} of a run whose {file}.json is {name}",
            command(script, *["{folder}/old"] * n, files=_finished(**{file: text})),
            refused=_NOT_FINISHED,
        )
        for file in ("result", "config")
        for name, text in (("cut off", "{"), ("a list", "[]"))
        for script, n in (("report", 1), ("versus", 2))
    ),
    Situation(
        "report of a run of a newer version",
        command("report", "{folder}/old", files=_finished(result='{"n": [1], "size": {}}')),
        refused="was written by another version: result.json has .* which the page needs",
    ),
    Situation(
        "report of a file",
        command("report", "{folder}/file", files=_write("file")),
        refused=f"{_NOT_FINISHED} .Not a directory",
    ),
    # Paths of inputs.
    *(
        Situation(
            f"{script} of a name that is too long",
            command(script, *argv, "{folder}/" + "x" * 300)
            if argv == ()
            else command(script, argv[0] + "{folder}/" + "x" * 300, *argv[1:]),
            refused="File name too long",
        )
        for script, *argv in (
            ("doctor", "--data=folder:"),
            ("doctor", "--data=csv:"),
            ("doctor", "--weights="),
            ("evaluate", "--model=", "--data=elpv"),
            ("rerun", "--results="),
        )
    ),
    Situation(
        "a folder that cannot be listed",
        command(
            "doctor",
            "--data=folder:{folder}/locked",
            files=lambda folder: (folder / "locked").mkdir(),
            before=DENIED,
        ),
        refused=r"locked' cannot be (listed|read).*Permission denied",
    ),
    Situation(
        "a link to itself as data",
        command("doctor", "--data=folder:{folder}/loop", files=_write("loop", link="loop")),
        refused="'loop' in .* is a broken link",
    ),
    # Caches.
    Situation(
        "XDG_CACHE_HOME at a file",
        command(
            "doctor",
            env={"XDG_CACHE_HOME": "{folder}/file", "TL_CACHE": None},
            files=_write("file"),
        ),
        remark=_CACHE.format("Not a directory", "XDG_CACHE_HOME"),
    ),
    Situation(
        "TL_CACHE at a file",
        command("doctor", env={"TL_CACHE": "{folder}/file"}, files=_write("file")),
        remark=_CACHE.format("Not a directory", "TL_CACHE"),
    ),
    Situation(
        "JAX_COMPILATION_CACHE_DIR at a file",
        command(
            *DESCRIBE,
            env={"JAX_COMPILATION_CACHE_DIR": "{folder}/file"},
            files=_write("file"),
        ),
        remark=_CACHE.format("File exists", "JAX_COMPILATION_CACHE_DIR"),
    ),
    Situation(
        "a cache that becomes full",
        command("doctor", before=FULL_DISK.format(module="data.shards", function="save")),
        remark=_CACHE.format("No space left on device", "TL_CACHE"),
    ),
    Situation(
        "a cache whose name is not UTF-8",
        command("doctor", env={"TL_CACHE": "{folder}/caf\udce9"}),
        remark=_CACHE.format("its name is not UTF-8", "TL_CACHE"),
    ),
    Situation(
        "no home folder",
        command(
            "doctor",
            env={"TL_CACHE": None, "XDG_CACHE_HOME": None},
            before="import os; os.path.expanduser = lambda path: path",
        ),
        remark=_CACHE.format("Not a directory", "TL_CACHE"),
    ),
    Situation(
        "an empty XDG_CACHE_HOME",
        command("doctor", env={"TL_CACHE": None, "XDG_CACHE_HOME": "", "HOME": "{folder}/home"}),
        right={"file": "home/.cache/tl/fingerprints-2"},
    ),
    Situation(
        "a relative XDG_CACHE_HOME",
        command("doctor", env={"TL_CACHE": None, "XDG_CACHE_HOME": "x", "HOME": "{folder}/home"}),
        right={"file": "home/.cache/tl/fingerprints-2"},
    ),
    Situation(
        "TL_CACHE with a tilde",
        command("doctor", env={"TL_CACHE": "~/c", "HOME": "{folder}/home"}),
        right={"file": "home/c/fingerprints-2"},
    ),
    # Radii.
    *(
        Situation(
            f"{script} with {flag}=8",
            command(script, "--data=elpv", f"--{flag}=8", *more),
            refused="got 8[,;].* write 8/255 for 8 of 255 levels$",
        )
        for script, flag, *more in (
            ("evaluate", "robust_eps"),
            ("transfer", "robust_eps"),
            ("transfer", "adversarial_eps", "--adversarial=pgd"),
        )
    ),
    Situation(
        "attack with eps=8",
        command("attack", "--images=x", "--eps=8"),
        refused="such as 4/255; write 8/255 for 8 of 255 levels$",
    ),
    # The environment.
    Situation(
        "JAX_PLATFORMS of an unknown platform",
        command(
            *DESCRIBE,
            env={"JAX_PLATFORMS": "qpu"},
            before="import jax; jax.config.update('jax_platforms', 'qpu')",
        ),
        refused="JAX cannot start with JAX_PLATFORMS='qpu', expected cpu, cuda, tpu or no value",
    ),
    Situation(
        "TMPDIR without a folder",
        command(
            "transfer",
            "--resume",
            "--data=elpv",
            OLD,
            files=_finished("transfer"),
            before="import tempfile; tempfile._candidate_tempdir_list = lambda: ['/no/folder']",
        ),
        refused="and .. more; use the flags of its start$",
    ),
    Situation(
        "a plain terminal",
        command(*DESCRIBE, env={"TERM": "dumb", "NO_COLOR": "1", "LANG": "C", "LC_ALL": "C"}),
    ),
    *(
        Situation(
            f"too little memory for {name}",
            command(*DESCRIBE, before=RAISE.format(error=error)),
            refused=f"there is too little memory .{text}.*; use smaller images or batches$",
        )
        for name, error, text in (
            ("Python", "MemoryError()", "out of memory"),
            ("NumPy", "MemoryError('Unable to allocate 191. GiB')", "Unable to allocate 191. GiB"),
            ("JAX", "jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out')", "RESOURCE_EXH"),
        )
    ),
    Situation(
        "a seed of more than 32 bits",
        command(*DESCRIBE, "--seed=4294967296"),
        refused="Pass --helpshort or --helpfull to see help on flags",
    ),
    # Standard output.
    Situation("a reader that goes away", command(*DESCRIBE, before=BROKEN_PIPE)),
    Situation("a closed standard output", command(*DESCRIBE, before=CLOSED)),
    *(
        Situation(
            f"a console in {encoding}",
            command(
                "doctor",
                "--data=folder:{folder}/set",
                files=tree(*two("猫", "عربي"), b"\xe7\x8c\xab/caf\xe9", inside="set"),
                before=f"import sys; sys.stdout.reconfigure(encoding='{encoding}')",
            ),
            remark=r"\\u732b/caf\\xe9",
        )
        for encoding in ("cp1252", "ascii")
    ),
    Situation(
        "Ctrl-C",
        command(*DESCRIBE, OLD, before=INTERRUPT),
        refused="interrupted before it was done; no result.json was written$",
        right={"code": 130},
    ),
    Situation(
        "Ctrl-C after the model was saved",
        command(
            *DESCRIBE,
            OLD,
            files=lambda folder: (folder / "old/model").mkdir(parents=True),
            before=INTERRUPT,
        ),
        refused="no result.json was written; '.*old' has model$",
        right={"code": 130},
    ),
)


# ---- pixels --------------------------------------------------------------------------------------


def halves(left: Any, right: Any, dtype: Any = np.uint16) -> np.ndarray:
    """An image [6 8] or [6 8 c] of two colors, which its left and right halves have."""
    pixels = np.empty((6, 8, *np.shape(left)), dtype)
    pixels[:, :4], pixels[:, 4:] = left, right
    return pixels


def png(pixels: np.ndarray, bits: int, color: int, **chunks: bytes) -> bytes:
    """A PNG.

    Args:
      pixels: unsigned integers [h w] or [h w c].
      bits: per channel: 1, 2, 4, 8 or 16.
      color: the color type: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA.
      chunks: further chunks before the pixels, such as `sBIT`.
    """
    chunk = lambda name, body: (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    )
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + _packed(row, bits, ">") for row in pixels)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)),
        *((name.encode(), body) for name, body in chunks.items()),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _packed(row: np.ndarray, bits: int, order: Literal["<", ">"]) -> bytes:
    if bits >= 8 and bits % 8 == 0:
        return row.astype(row.dtype.newbyteorder(order)).tobytes()
    digits = (row.reshape(-1, 1) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(digits.astype(np.uint8)).tobytes()


def tiff(
    *pages: np.ndarray,
    order: Literal["<", ">"] = "<",
    bits: int = 0,
    zipped: bool = False,
    **tags: int,
) -> bytes:
    """A TIFF of one strip per page and, if `PlanarConfiguration` is 2, per channel.

    Args:
      pages: [h w] or [h w c], of any number type.
      order: of the bytes, "<" or ">".
      bits: per channel. Default: those of the number type.
      zipped: whether strips are compressed (Deflate).
      tags: by name, such as `PhotometricInterpretation`. Default: gray or RGB.
    """
    ids: dict[str, Any] = {tag.name: tag.value for tag in TiffTags.TAGS_V2.values()}
    data = bytearray((b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 0))
    link = 4
    for pixels in pages:
        height, width = pixels.shape[:2]
        bands = pixels.reshape(height, width, -1)
        planar = tags.get("PlanarConfiguration", 1) == 2
        strips = [
            b"".join(_packed(row, bits or 8 * pixels.itemsize, order) for row in plane)
            for plane in (np.moveaxis(bands, 2, 0) if planar else [bands])
        ]
        strips = [zlib.compress(strip) for strip in strips] if zipped else strips
        offsets = []
        for strip in strips:
            offsets.append(len(data))
            data += strip + b"\0" * (len(strip) % 2)
        fields: dict[int, Any] = {
            256: width,
            257: height,
            258: [bits or 8 * pixels.itemsize] * bands.shape[2],
            259: 8 if zipped else 1,
            262: 2 if bands.shape[2] in (3, 4) else 1,
            273: offsets,
            277: bands.shape[2],
            278: height,
            279: [len(strip) for strip in strips],
            339: [{"u": 1, "b": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * bands.shape[2],
        }
        fields |= {ids[name]: value for name, value in tags.items()}
        entries = b""
        for tag, value in sorted(fields.items()):
            values = value if isinstance(value, list) else [value]
            kind = "I" if tag in (273, 279) else "H"
            body = struct.pack(f"{order}{len(values)}{kind}", *values)
            if len(body) > 4:
                offset, body = len(data), struct.pack(f"{order}I", len(data))
                data += struct.pack(f"{order}{len(values)}{kind}", *values)
                data += b"\0" * (len(data) % 2)
                assert offset % 2 == 0
            code = 4 if kind == "I" else 3
            entries += struct.pack(f"{order}HHI", tag, code, len(values)) + body.ljust(4, b"\0")
        struct.pack_into(f"{order}I", data, link, len(data))
        link = len(data) + 2 + len(entries)
        data += struct.pack(f"{order}H", len(fields)) + entries + bytes(4)
    return bytes(data)


def written(kind: str, *frames: np.ndarray, **options: Any) -> bytes:
    """The frames as Pillow writes them."""
    images = [Image.fromarray(frame) for frame in frames]
    more = {"save_all": True, "append_images": images[1:]} if images[1:] else {}
    return toys.encoded(images[0], kind, **more, **options)


def _one(name: str, ending: str, content: Callable[[], bytes], **rest: Any) -> Situation:
    """A file; `right` has `white`, `halves` (the levels of both halves) and `within`."""

    def make(folder: Path) -> Path:
        (folder / f"x{ending}").write_bytes(content())
        return folder / f"x{ending}"

    return Situation(name, make, rest.pop("refused", ""), "", rest)


def _set(
    name: str, ending: str, content: Callable[[int], bytes], remark: str = "", **right: Any
) -> Situation:
    """Two classes of `n` files; `content` of 0, 1, ... is a file; `right` also has `white`."""

    def make(folder: Path) -> str:
        for i in range(right.get("n", 12)):
            file = folder / ("cat", "dog")[i % 2] / f"{i}{ending}"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content(i))
        return f"folder:{folder}"

    return Situation(name, make, "", remark, right)


def _wide(bits: int, i: int = 0) -> np.ndarray:
    """An image of n bits in 16, with the largest value in one pixel."""
    pixels = toys.noise(6, 8, 2, seed=i).view(np.uint16)[..., 0] >> (16 - bits)
    pixels[0, 0] = 2**bits - 1
    return pixels


def _photo(i: int = 0, channels: int = 3) -> np.ndarray:
    return toys.noise(6, 8, channels, seed=i)


_GRAYS = ((64,) * 3, (192,) * 3)
_WHITE_IS_0: dict[str, Any] = {"PhotometricInterpretation": 0}
_COLORS = ((64, 128, 192), (192, 64, 0))
_12_BITS, _12_BITS_OF_COLOR = (1028, 3083), ((1028, 2056, 3083), (3083, 1028, 0))
_FULL, _NEGATIVE = (16448, 49344), (65535 - 16448, 65535 - 49344)
_TIFF_OF_RAW: dict[str, Any] = {"Make": 0, "NewSubfileType": 1}
_CMYK = halves((191, 127, 63, 0), (63, 191, 255, 0), np.uint8)
ISOBMFF = b"\0\0\0\x18ftyp%s\0\0\0\0%s" + bytes(64)
_GAIN_MAP = lambda i: written("MPO", _photo(i), _photo(i)[::2, ::2])
_DARK = (
    "^12 of 12 images are nearly black: no level exceeds {} of 255; if they hold fewer than 16 "
    "bits, state the value of white: `white={}`$"
)

PICTURES: tuple[Situation, ...] = (
    # 9 to 14 bits in 16: the value of white is given, or the file states it.
    *(
        _one(
            f"{bits} bits in a PNG of 16",
            ".png",
            lambda bits=bits: png(halves(0, 2**bits - 1), 16, 0),
            white=2**bits - 1,
            halves=((0,) * 3, (255,) * 3),
        )
        for bits in range(9, 15)
    ),
    *(
        _one(f"12 bits in {name}", ".png", content, white=4095, halves=right)
        for name, content, right in (
            ("a PNG", lambda: png(halves(*_12_BITS), 16, 0), _GRAYS),
            ("a color PNG", lambda: png(halves(*_12_BITS_OF_COLOR), 16, 2), _COLORS),
            (
                "a PNG with opacity",
                lambda: png(halves((1028, 2056, 3083, 4095), (3083, 1028, 0, 4095)), 16, 6),
                _COLORS,
            ),
            ("a TIFF", lambda: tiff(halves(*_12_BITS)), _GRAYS),
            ("a zipped TIFF", lambda: tiff(halves(*_12_BITS), zipped=True), _GRAYS),
            ("a TIFF of Motorola", lambda: tiff(halves(*_12_BITS), order=">"), _GRAYS),
            ("a color TIFF", lambda: tiff(halves(*_12_BITS_OF_COLOR)), _COLORS),
            (
                "a color TIFF of Motorola",
                lambda: tiff(halves(*_12_BITS_OF_COLOR), order=">"),
                _COLORS,
            ),
            ("a zipped color TIFF", lambda: tiff(halves(*_12_BITS_OF_COLOR), zipped=True), _COLORS),
            (
                "a TIFF of planes",
                lambda: tiff(halves(*_12_BITS_OF_COLOR), PlanarConfiguration=2),
                _COLORS,
            ),
            (
                "a negative TIFF",
                lambda: tiff(halves(4095 - 1028, 4095 - 3083), **_WHITE_IS_0),
                _GRAYS,
            ),
        )
    ),
    _one(
        "transparent 12 bits of gray",
        ".png",
        lambda: png(halves((1028, 4095), (9, 0)), 16, 4),
        white=4095,
        halves=((64,) * 3, (255,) * 3),
    ),
    _one(
        "sBIT of 12 bits",
        ".png",
        lambda: png(halves(*_12_BITS), 16, 0, sBIT=b"\x0c"),
        halves=_GRAYS,
    ),
    _one(
        "sBIT of 12 bits that were scaled to 16",
        ".png",
        lambda: png(halves(*_FULL), 16, 0, sBIT=b"\x0c"),
        halves=_GRAYS,
    ),
    _one(
        "sBIT of dark pixels that were scaled to 16",
        ".png",
        lambda: png(halves(10 * 16, 128 * 16), 16, 0, sBIT=b"\x0c"),
        halves=((1,) * 3, (8,) * 3),
    ),
    _one(
        "MaxSampleValue 4095",
        ".tif",
        lambda: tiff(halves(*_12_BITS), MaxSampleValue=4095),
        halves=_GRAYS,
    ),
    _one(
        "MaxSampleValue of a dark image",
        ".tif",
        lambda: tiff(halves(2570, 3000), MaxSampleValue=3000),
        halves=((10,) * 3, (12,) * 3),
    ),
    _one("12 packed bits", ".tif", lambda: tiff(halves(*_12_BITS), bits=12), halves=_GRAYS),
    _one(
        "white of 8 bits has no effect",
        ".png",
        lambda: png(halves(64, 192, np.uint8), 8, 0),
        white=4095,
        halves=_GRAYS,
    ),
    # 0 is white.
    *(
        _one(f"negative of {name}", ".tif", content, halves=right)
        for name, content, right in (
            ("16 bits", lambda: tiff(halves(*_NEGATIVE), **_WHITE_IS_0), _GRAYS),
            (
                "16 bits of Motorola",
                lambda: tiff(halves(*_NEGATIVE), order=">", **_WHITE_IS_0),
                _GRAYS,
            ),
            (
                "16 zipped bits",
                lambda: tiff(halves(*_NEGATIVE), zipped=True, **_WHITE_IS_0),
                _GRAYS,
            ),
            (
                "16 zipped bits of Motorola",
                lambda: tiff(halves(*_NEGATIVE), order=">", zipped=True, **_WHITE_IS_0),
                _GRAYS,
            ),
            ("8 bits", lambda: tiff(halves(191, 63, np.uint8), **_WHITE_IS_0), _GRAYS),
            (
                "4 bits",
                lambda: tiff(halves(11, 3, np.uint8), bits=4, **_WHITE_IS_0),
                ((68,) * 3, (204,) * 3),
            ),
            (
                "1 bit",
                lambda: tiff(halves(1, 0, np.uint8), bits=1, **_WHITE_IS_0),
                ((0,) * 3, (255,) * 3),
            ),
            ("12 packed bits", lambda: tiff(halves(3067, 1012), bits=12, **_WHITE_IS_0), _GRAYS),
        )
    ),
    # Other pixels.
    *(
        _one(
            f"a PNG of {bits} bits",
            ".png",
            lambda bits=bits: png(halves(0, 2**bits - 2, np.uint8), bits, 0),
            halves=((0,) * 3, (255 * (2**bits - 2) // (2**bits - 1),) * 3),
        )
        for bits in (1, 2, 4)
    ),
    *(
        _one(
            f"a PNG of {bits} bits with a key",
            ".png",
            lambda bits=bits: png(
                halves(1, 0, np.uint16 if bits > 8 else np.uint8), bits, 0, tRNS=b"\0\1"
            ),
            halves=((255,) * 3, (0,) * 3),
        )
        for bits in (1, 2, 4, 8, 16)
    ),
    _one(
        "a color PNG of 16 bits with a key that differs in the low byte",
        ".png",
        lambda: png(halves((257, 0, 0), (258, 0, 0)), 16, 2, tRNS=b"\1\1\0\0\0\0"),
        halves=((255,) * 3, (1, 0, 0)),
    ),
    _one(
        "planes of 16 bits",
        ".tif",
        lambda: tiff(halves((16448, 32896, 49344), (49344, 16448, 0)), PlanarConfiguration=2),
        halves=_COLORS,
    ),
    _one("CMYK", ".tif", lambda: tiff(_CMYK, PhotometricInterpretation=5), halves=_COLORS),
    _one(
        "gray and opacity of 8 bits",
        ".tif",
        lambda: tiff(
            halves((64, 255), (9, 0), np.uint8), PhotometricInterpretation=1, ExtraSamples=2
        ),
        halves=((64,) * 3, (255,) * 3),
    ),
    # Formats of phones and the web, also under another ending.
    *(
        _one(
            f"{kind} named {ending}",
            ending,
            lambda kind=kind: written(kind, halves(*_COLORS, np.uint8)),
            halves=_COLORS,
            within=12,
            read_by=feature,
        )
        for kind, feature, endings in (
            ("AVIF", "avif", (".avif", ".jpg", ".png")),
            ("JPEG2000", "jpg_2000", (".jp2", ".j2k", ".jpg")),
        )
        for ending in endings
    ),
    # TIFF files that are not an image.
    *(
        _one(name, ".tif", content, refused=refused)
        for name, content, refused in (
            ("five bands", lambda: tiff(_photo(0, 5)), "^is a TIFF of 5 bands, expected gray, RGB"),
            ("two bands", lambda: tiff(_photo(0, 2)), "^is a TIFF of 2 bands, expected"),
            (
                "four bands that are not RGB",
                lambda: tiff(_photo(0, 4), PhotometricInterpretation=1),
                "^is a TIFF of 4 bands, expected .*; save one band as gray or three as RGB, of 8",
            ),
            ("seven bands of 16 bits", lambda: tiff(halves([1] * 7, [2] * 7)), "of 7 bands, exp"),
            (
                "six bands of floats",
                lambda: tiff(halves([0.1] * 6, [0.2] * 6, np.float32)),
                "^is a TIFF of 6 bands of 32-bit floats, expected",
            ),
            (
                "floats",
                lambda: tiff(halves(0.25, 0.75, np.float32)),
                "^is a TIFF of 32-bit floats, whose white is undefined, expected 8 or 16 bits; ",
            ),
            ("floats of 64 bits", lambda: tiff(halves(0.2, 0.7, np.float64)), "of 64-bit floats, "),
            ("half floats", lambda: tiff(halves(0.2, 0.7, np.float16)), "of 16-bit floats, whose"),
            (
                "signed 16 bits",
                lambda: tiff(halves(-9, 9, np.int16)),
                "of signed 16-bit integers, ",
            ),
            ("signed 8 bits", lambda: tiff(halves(-9, 9, np.int8)), "of signed 8-bit integers, w"),
            ("32 bits", lambda: tiff(halves(9, 99, np.uint32)), "of 32-bit integers, whose white"),
            (
                "Lab",
                lambda: tiff(_photo(), PhotometricInterpretation=8),
                "color space LAB, expected",
            ),
            (
                "raw of Nikon or Sony",
                lambda: tiff(_photo(), **_TIFF_OF_RAW),
                "^is a raw camera file; develop it to JPEG, or to TIFF of 8 or 16 bits$",
            ),
            (
                "mosaic of a sensor",
                lambda: tiff(halves(9, 99), PhotometricInterpretation=32803),
                "^is a raw camera file; develop",
            ),
            (
                "packed bits in the other order of bytes",
                lambda: tiff(halves(*_12_BITS), bits=12, order=">"),
                r"^is a TIFF that Pillow cannot read \(1 band of 12 bits, compression 1\), expect",
            ),
        )
    ),
    # Files that are named by content.
    *(
        _one(f"{start[:12]} named .jpg", ".jpg", lambda start=start: start, refused=refused)
        for start, refused in (
            (
                ISOBMFF % (b"mif1", b"heic"),
                "is a HEIC file; `pip install 'tl.heic.'` or conver",
            ),
            (b"\0\0\0\x0cJXL \r\n\x87\n", "is a JPEG XL file; convert it to JPEG or PNG"),
            (b"II*\0\x10\0\0\0CR\2\0" + bytes(99), "is a raw camera file; develop it to JPEG, or"),
            (ISOBMFF % (b"crx ", b"isom"), "is a raw camera file; develop"),
            (b"FUJIFILMCCD-RAW 0201", "is a raw camera file; develop"),
            (
                b"<?xml version='1.0'?>\n<!-- x -->\n<svg xmlns=''/>",
                "is an SVG file; convert it",
            ),
            (b"%PDF-1.7", "is a PDF file; convert it to JPEG or PNG"),
            (b"%!PS-Adobe-3.0 EPSF-3.0", "is an EPS file; convert it to JPEG or PNG"),
            (b"8BPS\0\1", "is a PSD file; convert it to JPEG or PNG"),
            (bytes(128) + b"DICM", "is a DICOM file; export its pixels to PNG"),
            (b"\x5c\1\0\0" + bytes(340) + b"n+1\0", "is a NIfTI file; export its slices to PNG"),
            (ISOBMFF % (b"isom", b"mp42"), "is a video file; convert it to JPEG or PNG"),
            (b"<!DOCTYPE html><html>", "is an HTML file; download the image again"),
            (
                b"version https://git-lfs.github.com/spec/v1",
                "is a Git LFS file; `git lfs pull` ",
            ),
        )
    ),
)

# Whole sets, and the remark on them.
SETS: tuple[Situation, ...] = (
    *(
        _set(
            f"{bits} bits in 16",
            ".png",
            lambda i, bits=bits: png(_wide(bits, i), 16, 0),
            _DARK.format(level, 2**bits - 1),
        )
        for bits, level in ((8, 1), (9, 2), (10, 4), (11, 8), (12, 16), (13, 32), (14, 64))
    ),
    _set(
        "12 bits of color in TIFF",
        ".tif",
        lambda i: tiff(np.stack([_wide(12, 3 * i + k) for k in range(3)], axis=-1)),
        _DARK.format("1[56]", 4095),
    ),
    _set(
        "12 bits where 0 is white",
        ".tif",
        lambda i: tiff(_wide(12, i), **_WHITE_IS_0),
        "^12 of 12 images are nearly white: no level is below 239 of 255; .*: `white=4095`$",
    ),
    _set("12 bits and white=4095", ".png", lambda i: png(_wide(12, i), 16, 0), white=4095),
    _set(
        "10 bits and white=4095",
        ".png",
        lambda i: png(_wide(10, i), 16, 0),
        _DARK.format(64, 1023),
        white=4095,
    ),
    _set("12 bits with sBIT", ".png", lambda i: png(_wide(12, i), 16, 0, sBIT=b"\x0c")),
    _set("16 bits", ".png", lambda i: png(_wide(16, i), 16, 0)),
    _set(
        "8 bits of which few are used",
        ".png",
        lambda i: png(_photo(i, 1) // 16, 8, 0),
        "^12 of 12 images are nearly black: no level exceeds 15 of 255$",
    ),
    _set(
        "8 bits that are nearly white",
        ".png",
        lambda i: png(240 + _photo(i, 1) // 16, 8, 0),
        "^12 of 12 images are nearly white: no level is below 240 of 255$",
    ),
    _set(
        "transparent everywhere",
        ".png",
        lambda i: png(np.concatenate([_photo(i), _photo(i, 1) * 0], axis=-1), 8, 6),
        "^12 of 12 images are transparent everywhere, read as white$",
    ),
    _set(
        "gray that is transparent everywhere",
        ".png",
        lambda i: png(np.concatenate([_photo(i, 1), _photo(i, 1) * 0], axis=-1), 8, 4),
        "^12 of 12 images are transparent everywhere, read",
    ),
    _set(
        "one color",
        ".jpg",
        lambda i: written("JPEG", halves(9 * i, 9 * i, np.uint8)),
        "^12 of 12 images have one color; check the export$",
    ),
    _set(
        "a third of one color",
        ".png",
        lambda i: png(_photo(i, 1) * (i % 3 > 0), 8, 0),
        "^4 of 12 images have one color; check",
    ),
    _set("one of 20 of one color", ".png", lambda i: png(_photo(i, 1) * (i > 0), 8, 0), n=20),
    _set("photographs", ".jpg", lambda i: written("JPEG", _photo(i))),
    *(
        _set(
            name,
            ending,
            content,
            "^12 of 12 images have more pages or frames than the one that is read$",
        )
        for name, ending, content in (
            ("pages", ".tif", lambda i: tiff(_photo(i), _photo(i + 1))),
            ("a channel per page", ".tif", lambda i: tiff(*np.moveaxis(_photo(i), 2, 0))),
            (
                "pages of 16 bits of Motorola",
                ".tif",
                lambda i: tiff(*[_wide(16, i)] * 2, order=">"),
            ),
            ("animated GIF", ".gif", lambda i: written("GIF", _photo(i), _photo(i + 1))),
            ("animated WebP", ".webp", lambda i: written("WEBP", _photo(i), _photo(i + 1))),
            ("animated PNG", ".png", lambda i: written("PNG", _photo(i), _photo(i + 1))),
            ("two views in a JPEG", ".jpg", lambda i: written("MPO", _photo(i), _photo(i + 1))),
        )
    ),
    _set("a gain map in a JPEG", ".jpg", _GAIN_MAP),
    _set(
        "one of 12 with pages",
        ".tif",
        lambda i: tiff(*[_photo(i)] * (2 - bool(i))),
        "^1 of 12 images has more pages or frames than",
    ),
)

PIXELS: tuple[Situation, ...] = PICTURES + SETS
