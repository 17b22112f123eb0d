"""Reads Keras' weights files, with names `<layer>/<weight>`; nothing in a file is executed.

The layout is detected by the content of a file:

- legacy `.h5`: `layer_names` and `weight_names` list the names in the model's order, under
  `model_weights` for a whole model and at the root for a file of weights.
- `.weights.h5`: groups are named by kind and number (`layers/conv2d_3/vars/0`). Keras 3 adds the
  layer's name as an attribute; for files without it, the group's name (`conv2d_3`) is used. Layers
  of one kind are in the model's order; kinds are sorted by name, because the file does not order
  them.
- `.keras`: a zip with a `.weights.h5` file and `config.json`, which has the model's order and the
  options of each layer.

Weights are named kernel (also in depthwise convolutions), bias, gamma, beta, moving_mean and
moving_variance. Weights of other kinds of layer have the name or number in the file. The state of
an optimizer is not read.

The structure is that of keras/src/saving/saving_lib.py and
keras/src/legacy/saving/legacy_h5_format.py (Keras 3.15). A file that refers to other files (links,
virtual data sets, external storage) is an error. HDF5's C library reads the bytes, through h5py. It
reports truncated files, but a deliberately damaged file can crash it, so prefer .safetensors for
files from untrusted sources.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, ZipFile

import ml_dtypes
import numpy as np

MAGIC = b"\x89HDF\r\n\x1a\n"
# Last part of a name in a legacy file -> name of the weight. The first four are those of Keras 1,
# which the official files of 2016 have.
LEGACY_NAMES = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",  # a variance, despite its name
    "depthwise_kernel": "kernel",
}
# Groups that hold the layers; Keras 2.12 and 2.13 write the second.
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
# Layers that prepare the input, and the settings of them that are reported.
PREPROCESSING = ("Resizing", "CenterCrop", "Rescaling", "Normalization")
SETTINGS = (
    "height width interpolation crop_to_aspect_ratio scale offset axis mean variance invert"
).split()
# Attributes and config entries under which programs keep the names of the classes.
CLASS_NAMES = ("class_names", "classes", "labels", "class_indices")
ATTRIBUTES = ("model_config", "keras_version", *CLASS_NAMES)
KERNELS = {"dense", "depthwise_conv2d"} | {
    f"conv{n}d{form}" for n in (1, 2, 3) for form in ("", "_transpose")
}
NORMS = {"batch_normalization", "sync_batch_normalization"}


def read_keras(archive: ZipFile) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The weights of a `.keras` archive, in the order of the layers in its `config.json`.

    Returns:
      As `read_h5`.

    Raises:
      ValueError: as `read_h5`, or the archive is compressed or lacks the weights.
    """
    names = archive.namelist()
    if "model.weights.h5" not in names:
        raise ValueError(
            f"it is a Keras archive without model.weights.h5, with {', '.join(names[:5])}"
        )
    if any(info.compress_type != ZIP_STORED for info in archive.infolist()):
        raise ValueError("it is a compressed zip, but Keras does not compress archives")
    config = json.loads(archive.read("config.json"))
    file = BytesIO(archive.read("model.weights.h5"))
    arrays, _ = read_h5(file, config.get("config", {}).get("layers", []))
    versions = json.loads(archive.read("metadata.json")) if "metadata.json" in names else {}
    return arrays, _metadata(config, versions)


def read_h5(
    file: BinaryIO, layers: list[dict[str, Any]] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The weights in an HDF5 file of Keras.

    Args:
      file: the open file.
      layers: the layers in the config of a `.keras` archive, if the file is part of one.

    Returns:
      `<layer>/<weight>` -> array, in the file's order and dtype; and the metadata of `_metadata`,
      empty if the file does not hold the model's config. Layers of a model within the model have
      the names `<model>/<layer>/<weight>`.

    Raises:
      ValueError: h5py is not installed, the layout is not one of Keras, or the file refers to other
        files. The message lacks the path, which `readers.read` adds.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError(
            'it is an HDF5 file, which needs h5py; install it with: pip install "tl[keras]"'
        ) from None
    with h5py.File(file, "r") as root:
        reader = _Reader(file.seek(0, 2))
        names = set(root)  # `name in root` would follow a link
        if "model_weights" in names:
            pairs = _legacy(_child(root, "model_weights"), reader)
        elif "layer_names" in root.attrs or "layer_names0" in root.attrs:
            pairs = _legacy(root, reader)
        else:
            containers = [name for name in CONTAINERS if name in names]
            if not containers:
                raise ValueError(
                    "it is HDF5 without the layers of a sequential or functional Keras model"
                )
            pairs = _numbered(_child(root, containers[0]), reader, layers or [])
        arrays: dict[str, np.ndarray] = {}
        for name, array in pairs:
            if name in arrays:
                raise ValueError(f"it has {name} twice")
            arrays[name] = array
        stored = {name: _text(root.attrs[name]) for name in root.attrs if name in ATTRIBUTES}
        model = stored.pop("model_config", None)
        return arrays, _metadata(model if isinstance(model, dict) else {}, stored)


def _text(value: Any) -> Any:
    """An attribute of text, parsed if it is JSON; lists of text as lists."""
    if isinstance(value, np.ndarray):
        return [_text(item) for item in value.ravel().tolist()]
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    try:
        return json.loads(text) if text[:1] in "{[" else text
    except ValueError:
        return text


def _metadata(model: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a Keras file says about its model.

    Args:
      model: the model's config, as in `config.json`; {} if there is none.
      stored: version and class names, as attributes or `metadata.json` hold them.

    Returns:
      `name`, `class_name`, `input_shape`, `keras_version`, `class_names`, and "preprocessing", the
      settings of the layers that resize, rescale or normalize the input; only those in the file.
    """
    config = model.get("config")
    config = config if isinstance(config, dict) else {}
    found: dict[str, Any] = {
        "name": config.get("name"),
        "class_name": model.get("class_name"),
        "keras_version": stored.get("keras_version"),
    }
    for key in CLASS_NAMES:
        found["class_names"] = found.get("class_names") or stored.get(key) or config.get(key)
    preprocessing = []
    for layer in _all_layers(config):
        options = layer.get("config")
        if not isinstance(options, dict):
            continue
        if layer.get("class_name") == "InputLayer":
            shape = options.get("batch_shape") or options.get("batch_input_shape")
            found["input_shape"] = found.get("input_shape") or shape
        if layer.get("class_name") in PREPROCESSING:
            settings = {key: options[key] for key in SETTINGS if options.get(key) is not None}
            preprocessing.append({"class_name": layer["class_name"], **settings})
    found["preprocessing"] = preprocessing
    return {key: value for key, value in found.items() if value}


def _all_layers(config: Mapping[str, Any], depth: int = 4) -> Iterator[Mapping[str, Any]]:
    """The layers of a config and of the models in it."""
    layers = config.get("layers")
    for layer in layers if isinstance(layers, list) and depth else ():
        if isinstance(layer, dict):
            yield layer
            inner = layer.get("config")
            yield from _all_layers(inner if isinstance(inner, dict) else {}, depth - 1)


class _Reader:
    """Reads data sets up to the size of the file in total, so that no file expands in memory."""

    def __init__(self, size: int):
        self.remaining = size

    def array(self, group: Any, path: str) -> np.ndarray:
        data = _child(group, path)
        name = data.name
        if not hasattr(data, "dtype") or data.shape is None:
            raise ValueError(f"{name} is not a data set with numbers")
        if data.is_virtual or data.external:
            raise ValueError(
                f"{name} is in another file, which is not read; save the model again as one file"
            )
        bf16 = data.dtype == np.dtype("V2") and data.attrs.get("dtype") == "bfloat16"
        if data.dtype.kind not in "fiu" and not bf16:
            raise ValueError(f"wrong type of {name}: got {data.dtype}, expected a number type")
        self.remaining -= math.prod(data.shape) * data.dtype.itemsize
        if self.remaining < 0:
            raise ValueError(
                f"its data sets up to {name} exceed the file, but Keras does not compress them"
            )
        array = np.asarray(data[()])
        return array.view(ml_dtypes.bfloat16) if bf16 else array


def _child(group: Any, path: str) -> Any:
    """The object at `path`; soft and external links, which can leave the file, are errors."""
    for part in path.split("/"):
        if not hasattr(group, "keys"):
            raise ValueError(f"{group.name} is a data set, expected a group")
        try:
            hard = group.id.links.get_info(part.encode()).type == 0  # H5L_TYPE_HARD
        except (KeyError, RuntimeError):
            raise ValueError(f"{group.name} has no {part!r}, which its names list") from None
        if not hard:
            raise ValueError(
                f"{part!r} in {group.name} is a link to another place, which is not followed"
            )
        group = group[part]
    return group


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names; Keras splits long lists into `<attribute>0`, `<attribute>1` and so on."""
    whole = group.attrs.get(attribute)
    parts = [] if whole is None else [whole]
    while whole is None and (part := group.attrs.get(f"{attribute}{len(parts)}")) is not None:
        parts.append(part)
    return [
        name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in part
    ]


def _nested(layer: str) -> ValueError:
    return ValueError(
        f"its layer {layer!r} contains layers but is not a model; save that layer by itself: "
        f"model.get_layer({layer!r}).save('{layer}.keras')"
    )


def _legacy(root: Any, reader: _Reader) -> Iterator[tuple[str, np.ndarray]]:
    for layer in _names(root, "layer_names"):
        group = _child(root, layer)
        weights = _names(group, "weight_names")
        # The weights of one layer have the same scope; a model in the model has several.
        nested = len({path.rpartition("/")[0] for path in weights}) > 1
        for path in weights:
            inner = f"{path.split('/')[-2]}/" if nested and "/" in path else ""
            last = re.sub(r":\d+$", "", path.rpartition("/")[2])
            # Keras 1: block1_conv1_W_1:0.
            keras1 = re.fullmatch(rf"{re.escape(layer)}_([A-Za-z_]+?)(_\d+)?", last)
            name = keras1[1] if keras1 else last
            yield f"{layer}/{inner}{LEGACY_NAMES.get(name, name)}", reader.array(group, path)


def _numbered(
    layers: Any, reader: _Reader, config: list[dict[str, Any]]
) -> Iterator[tuple[str, np.ndarray]]:
    configs = dict(zip(_keys(config), config, strict=True))
    keys = set(layers)
    for key in [key for key in configs if key in keys] + sorted(keys - set(configs), key=_natural):
        group, options = _child(layers, key), configs.get(key, {}).get("config", {})
        parts = set(group)
        variables = _child(group, "vars") if "vars" in parts else None
        stored_name = key if variables is None else variables.attrs.get("name", key)
        layer = options.get("name", stored_name)
        models = [_child(group, part) for part in CONTAINERS if part in parts]
        for model in models[:1]:
            for name, array in _numbered(model, reader, options.get("layers", [])):
                yield f"{layer}/{name}", array
        # A seed generator is the random state of dropout.
        for part in parts - {"vars", "seed_generator"} if not models else ():
            if any(
                name != "vars" or len(_child(group, f"{part}/vars")) for name in _child(group, part)
            ):
                raise _nested(layer)
        kind = re.sub(r"_\d+$", "", key)
        for number, weight in enumerate(_weights(kind, len(variables or ()), options, layer)):
            yield f"{layer}/{weight}", reader.array(variables, str(number))


def _weights(kind: str, count: int, options: Mapping[str, Any], layer: str) -> tuple[str, ...]:
    """Names of a layer's variables, in the order in which Keras numbers them."""
    if kind in KERNELS and count in (0, 1, 2):
        return ("kernel", "bias")[:count]
    if kind in NORMS and count in (0, 2, 3, 4):
        gamma, beta = options.get("scale", count == 4), options.get("center", count == 4)
        names = ("gamma",) * gamma + ("beta",) * beta + ("moving_mean", "moving_variance")
        if count == 3 and not options:
            raise ValueError(
                f"its layer {layer!r} lacks gamma or beta, and a .weights.h5 does not say which; "
                "save the model as .keras"
            )
        if count in (0, len(names)):
            return names[:count]
    if kind in KERNELS | NORMS:
        raise ValueError(f"its layer {layer!r}, a {kind}, has {count} variables")
    return tuple(map(str, range(count)))


def _keys(config: list[dict[str, Any]]) -> Iterator[str]:
    """Group names of a config's layers: the class in snake case, numbered per class."""
    counts: Counter[str] = Counter()
    for layer in config:
        word = re.sub(r"\W+", "", str(layer["class_name"]))
        word = re.sub(
            r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", word)
        ).lower()
        yield f"{word}_{counts[word]}" if counts[word] else word
        counts[word] += 1


def _natural(key: str) -> tuple[str, int]:
    """A sort key that puts conv2d_2 before conv2d_10."""
    kind, _, number = key.rpartition("_")
    return (kind, int(number)) if number.isdigit() else (key, 0)
