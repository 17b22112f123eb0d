"""Networks of other libraries: makes one, fills it, writes its file, and runs it in float64.

torchvision, timm and Keras (on torch) are imported inside the functions. Tensors have the names of
`tl.weights.readers`.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tl import backbones
from tl.evaluation.divergence import STATISTICS, seeded

LIBRARIES = ("torchvision", "timm", "keras")
# The formats in which each library writes weights.
FORMS = {
    "torchvision": ("zip", "stream", "safetensors"),
    "timm": ("safetensors", "zip", "stream"),
    "keras": ("h5", "weights.h5", "keras"),
}
INSTALL = {
    "": "pip install torch==2.13.0 keras h5py && pip install --no-deps torchvision==0.28.0 timm",
    "lucent": "pip install --no-deps torch-lucent kornia==0.4.1; pip install ipython",
    "captum": "pip install captum",
    "foolbox": "pip install foolbox",
    "torchattacks": "pip install --no-deps torchattacks",
}
# Libraries whose distribution has another name.
DISTRIBUTIONS = {"lucent": "torch-lucent"}
# Operators declared for torchvision; they are removed when this list is deleted.
_MISSING_OPERATORS: list[Any] = []


class Network(NamedTuple):
    """A network of another library, the call that makes it, and the number of classes."""

    source: str
    call: str
    classes: int
    model: Any


class Result(NamedTuple):
    """Output of a source, float64, NHWC.

    Attributes:
      logits: [b k]; None for Keras' VGG at other sizes than 224, where it has no top.
      features: pooled, [b d].
      endpoints: by tl's names, in the order of the forward pass.
      stats: running statistics after a pass in training mode, by the source's names.
    """

    logits: np.ndarray | None
    features: np.ndarray
    endpoints: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]


# ---- one network of a library ----


def make(source: str, call: str, classes: int = 1000, *, width: int = 4096) -> Network:
    """A library's network with random weights.

    Args:
      source: one of LIBRARIES.
      call: `"resnet50"` or `"MobileNetV2(alpha=0.35)"`; keywords are literals.
      classes: width of the classifier.
      width: of the hidden layers of torchvision's VGG.

    Raises:
      ValueError: the library is not installed, or does not have the network.
    """
    if source not in LIBRARIES:
        raise ValueError(
            f"unknown `source`: got {source!r}, expected one of {', '.join(LIBRARIES)}"
        )
    name, options = backbones.parse_call(call)
    with imported(source) as library:
        if source == "keras":
            return Network(source, call, classes, _keras(library, name, options, classes))
        timm = source == "timm"
        if not (library.is_model(name) if timm else name in library.models.list_models()):
            raise ValueError(f"{source} {library.__version__} does not have {name}")
        if timm:
            model = library.create_model(name, num_classes=classes, **options)
        else:
            fast = {"init_weights": False} if name.startswith("vgg") else {}
            model = getattr(library.models, name)(num_classes=classes, **fast, **options)
            if name.startswith("vgg") and width != 4096:
                model = _narrow(model, width, classes)
        return Network(source, call, classes, model)


@contextmanager
def imported(library: str) -> Iterator[Any]:
    """Imports a library and yields it, with its warnings off and JAX's default type promotion.

    The backend of Keras is torch unless KERAS_BACKEND is set.

    Raises:
      ValueError: the library is not installed; the error has the command that installs it.
    """
    defaults = jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow")
    with warnings.catch_warnings(), defaults[0], defaults[1]:
        warnings.simplefilter("ignore")
        try:
            if library == "keras":
                os.environ.setdefault("KERAS_BACKEND", "torch")
                importlib.import_module("h5py")  # Keras writes its files with it
            elif library != "foolbox":
                import_torchvision()
            module = importlib.import_module(library)
        except ImportError as error:
            command = INSTALL.get(library, INSTALL[""])
            raise ValueError(
                f"{library} is not installed ({error}); install it with: {command}"
            ) from None
        yield module


def check_words(flag: str, words: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError if one of the words of a flag is not known."""
    for word in words:
        if word not in known:
            raise ValueError(f"unknown `{flag}`: got {word!r}, expected some of {', '.join(known)}")


def installed(library: str, libraries: Sequence[str]) -> str:
    """Name and version of `library`, one of `libraries`; "" and a message if it is missing."""
    check_words("peers", [library], libraries)
    try:
        with imported(library):
            return f"{library} {metadata.version(DISTRIBUTIONS.get(library, library))}"
    except ValueError as error:
        print(f"without {library}: {error}", flush=True)
        return ""


def import_torchvision() -> Any:
    """Imports torchvision; declares the two operators that its import needs if they are missing."""
    import torch

    try:
        import torchvision
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"):
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        _MISSING_OPERATORS.append(library)
    return torchvision


def _narrow(vgg: Any, width: int, classes: int) -> Any:
    from torch import nn

    first, relu, drop, _, _, _, _ = vgg.classifier
    hidden = nn.Linear(first.in_features, width)
    vgg.classifier = nn.Sequential(
        hidden, relu, drop, nn.Linear(width, width), relu, drop, nn.Linear(width, classes)
    )
    return vgg


def _keras(
    keras: Any,
    name: str,
    options: dict,
    classes: int,
    *,
    size: tuple[int, int] = (224, 224),
    dtype: str = "float32",
) -> Any:
    """A Keras network; its input size, and so its padding, is fixed. VGG's top needs 224."""
    if name.startswith("MobileNetV3"):
        options = {**options, "include_preprocessing": False}
    policy = keras.config.dtype_policy()
    keras.utils.clear_session()  # restarts the numbers in layers' names
    keras.config.set_dtype_policy(dtype)
    try:
        return getattr(keras.applications, name)(
            weights=None,
            classes=classes,
            classifier_activation=None,
            include_top=size == (224, 224) or not name.startswith("VGG"),
            input_shape=(*size, 3),
            **options,
        )
    finally:
        keras.config.set_dtype_policy(policy)


def variables(network: Network) -> dict[str, Any]:
    """The network's tensors, named as `tl` reads them from its files, without torch's counters."""
    if network.source == "keras":
        return {
            f"{layer.name}/{v.name}": v for layer in network.model.layers for v in layer.weights
        }
    tensors = network.model.state_dict().items()
    return {name: v for name, v in tensors if not name.endswith("num_batches_tracked")}


def fill(network: Network, seed: int = 0) -> Network:
    """Writes the seeded tensors into a network, in place."""
    import torch

    for name, tensor in variables(network).items():
        values = seeded(name, tuple(tensor.shape), seed)
        if network.source == "keras":
            tensor.assign(values)
        else:
            tensor.copy_(torch.from_numpy(values))
    return network


def fill_in_order(network: Network, arrays: Mapping[str, np.ndarray], prefix: str = "") -> Network:
    """Writes a file's tensors into a torch network, in place, by their order, without a table.

    Args:
      network: of torchvision or timm.
      arrays: as `tl.weights.readers` reads them; torch's counters are left out.
      prefix: of the names of the tensors to fill.

    Raises:
      ValueError: the number of tensors differs.
      RuntimeError: torch's, with the names of tensors whose shapes differ.
    """
    import torch

    names = [name for name in variables(network) if name.startswith(prefix)]
    values = [array for name, array in arrays.items() if not name.endswith("num_batches_tracked")]
    if len(names) != len(values):
        raise ValueError(
            f"the file is of another network: got {len(values)} tensors, expected the {len(names)} "
            f"tensors {prefix}* of {network.source}'s {network.call}"
        )
    state = {n: torch.from_numpy(np.array(a)) for n, a in zip(names, values, strict=True)}
    network.model.load_state_dict(state, strict=False)  # without the counters
    return network


def save(network: Network, path: Path, form: str) -> Path:
    """Writes a network's weights in one of `FORMS`; the name of `path` does not show the format."""
    import torch

    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(network.model.state_dict(), path)
    elif form in ("zip", "stream"):
        torch.save(network.model.state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    else:
        with imported("keras"):
            named = path.with_name(f"{path.name}.{form}")  # Keras chooses by the ending
            if form == "h5":
                import h5py
                from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

                with h5py.File(named, "w") as file:
                    save_weights_to_hdf5_group(file, network.model)
            elif form == "weights.h5":
                network.model.save_weights(named)
            else:
                network.model.save(named)
            named.replace(path)
    return path


def load(network: Network, path: Path) -> Network:
    """Reads a weights file into a network with the library's own reader, in place.

    Raises:
      ValueError: the library cannot read it, or its tensors are of another network.
    """
    with imported(network.source):
        import torch

        try:
            if network.source == "keras":
                network.model.load_weights(path)
            elif path.open("rb").read(9)[8:] == b"{":
                from safetensors.torch import load_file

                network.model.load_state_dict(load_file(path))
            else:
                state = torch.load(path, map_location="cpu", weights_only=True)
                network.model.load_state_dict(state.get("state_dict", state))
        except Exception as error:  # each library raises its own
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{network.source}'s {network.call} does not take {path}: {reason}"
            ) from error
    return network


# ---- a forward pass ----


def run(
    network: Network,
    inputs: np.ndarray,
    ends: Mapping[str, str],
    pooled: str = "",
    *,
    training: bool = False,
) -> Result:
    """A forward pass in float64.

    Args:
      network: a torch model stays in float64; a Keras model is made again for the inputs' size.
      inputs: f64[b h w 3], normalized.
      ends, pooled: as in `tl.weights.tables.Source`.
      training: BatchNorm uses the batch's statistics. Dropout is random, so ignore the logits.
    """
    import torch

    # Next to JAX's threads, two threads in a float64 depthwise convolution take 100 times longer.
    torch.set_num_threads(1)
    forward = _run_keras if network.source == "keras" else _run_torch
    with imported(network.source), torch.no_grad():
        logits, features, maps, stats = forward(network, inputs, ends, pooled, training)
    if features is None:
        features = maps[list(ends)[-1]].mean((1, 2))
    return Result(
        logits, features.reshape(len(inputs), -1), {name: maps[name] for name in ends}, stats
    )


def _run_torch(
    network: Network, inputs: np.ndarray, ends: Mapping[str, str], pooled: str, training: bool
) -> tuple:
    import torch

    maps: dict[str, np.ndarray] = {}
    model = network.model.double().train(training)
    places = dict(model.named_modules())

    def keep(name: str) -> Callable:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            maps[name] = output.numpy().transpose(0, 2, 3, 1).copy()

        return hook

    def keep_pooled(_module: Any, args: Any, output: Any) -> None:
        maps[""] = (args[0] if pooled.startswith("<") else output).numpy().copy()

    hooks = [places[place].register_forward_hook(keep(name)) for name, place in ends.items()]
    if pooled:
        hooks.append(places[pooled.removeprefix("<")].register_forward_hook(keep_pooled))
    logits = model(torch.from_numpy(inputs.transpose(0, 3, 1, 2).copy())).numpy()
    for hook in hooks:
        hook.remove()
    state = model.state_dict() if training else {}
    stats = {k: v.numpy() for k, v in state.items() if k.endswith(STATISTICS)}
    return logits, maps.pop("", None), maps, stats


def _run_keras(
    network: Network, inputs: np.ndarray, ends: Mapping[str, str], pooled: str, training: bool
) -> tuple:
    import keras

    if keras.backend.backend() != "torch":
        raise ValueError(
            f"Keras has the backend {keras.backend.backend()}, expected torch for float64; set "
            "KERAS_BACKEND=torch"
        )
    name, options = backbones.parse_call(network.call)
    size = (inputs.shape[1], inputs.shape[2])
    twin = _keras(keras, name, options, network.classes, size=size, dtype="float64")
    tensors, source = variables(network._replace(model=twin)), variables(network)
    for key, variable in tensors.items():
        variable.assign(source[key].numpy())
    outputs = {end: _keras_layer(twin, place).output for end, place in ends.items()}
    if pooled:
        outputs[""] = twin.get_layer(pooled).output
    if len(tensors) == len(source):  # with the top
        outputs["logits"] = twin.output
    maps = keras.Model(twin.input, outputs)(inputs, training=training)
    maps = {end: array.cpu().numpy() for end, array in maps.items()}
    stats = {k: v.numpy() for k, v in tensors.items() if k.endswith(STATISTICS)} if training else {}
    return maps.pop("logits", None), maps.pop("", None), maps, stats


def _keras_layer(model: Any, place: str) -> Any:
    """The layer of a name; for `NAME>` the layer that reads NAME's output."""
    layer = model.get_layer(place.removesuffix(">"))
    if not place.endswith(">"):
        return layer
    (node,) = layer._outbound_nodes
    return node.operation
