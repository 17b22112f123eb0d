"""Loads a classifier by name, with weights from a package, the hub, a file or a saved folder.

`tl.weights` finds and reads weights files. This module chooses the form of the network and the
rename table that fit a file, and adapts the head to the number of classes and the first kernel to
the number of channels.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from tl import backbones, labels
from tl.backbones.spec import BackboneSpec
from tl.labels import ClassTable
from tl.models import heads
from tl.models.artifact import ARTIFACT, VARIABLES, load_artifact
from tl.models.classifier import IMAGENET_CLASSES, Classifier, Provenance
from tl.paths import flatten, unflatten
from tl.pixels import PixelSpec
from tl.types import Variables
from tl.weights import hub, port, readers, store, tables

# Prefix of `Provenance.origin` for weights from the hub.
_HUB = "hub repository "


def load(
    name: str,
    *,
    weights: str | Path | None = None,
    key: jax.Array | None = None,
    in_channels: int | None = None,
    cast: bool = False,
) -> tuple[Classifier, Variables]:
    """Loads a pretrained network.

    Args:
      name: an architecture (`"efficientnet_lite0"`, an alias, or `"arch.tag"`), or a folder written
        by `save`.
      weights: source of the weights. "package": the file of an installed package. "hub": timm's
        repository `timm/ARCH.TAG`, from the cache or the network; "hub:OWNER/REPO" for another
        repository in timm's layout. A path: a torch, Keras, safetensors or pickled numpy file, or a
        folder written by `save`, with its preprocessing and classes. "random": newly initialized.
        Default: the package if it is installed, else the hub. Not for a `name` that is a folder.
      key: from `jax.random.key`, used for "random"; default: key 0.
      in_channels: number of input channels; default: that of the weights. If it is not theirs, the
        first kernel is summed over its three channels (1) or repeated and rescaled
        (`adapt_channels`), and mean and standard deviation are the averages of the three.
      cast: whether to convert tensors of another number type to float32 instead of raising an
        error.

    Returns:
      `(classifier, variables)`; the variables are float32 numpy arrays, not yet on a device. If
      the file holds another form of the architecture (Keras' or TensorFlow's), `classifier.arch`
      names that form.

    Raises:
      ValueError: unknown name, weights that cannot be found (the message says how to get them), a
        file whose hash differs from the published one, tensors that do not fit, or a folder with
        `weights` or another number of channels.
    """
    if (Path(name) / ARTIFACT).is_file():
        return _load_folder(name, str(weights or ""), in_channels)
    if "/" in name or Path(name).is_dir():
        raise ValueError(
            f"no saved classifier in {name}: it has no {ARTIFACT}; "
            "give a folder that transfer wrote"
        )
    if in_channels is not None and in_channels < 1:
        raise ValueError(f"`in_channels` must be at least 1: got {in_channels}")
    arch, _, tag = name.partition(".")
    spec = backbones.get(arch)
    source = str(weights or "")
    if source == "random":
        origin = Provenance(f"{spec.name}.random", "random", "random numbers", "none")
        clf = _with_own_head(spec, _averaged(PixelSpec(), in_channels or 3), origin)
        random_key = jax.random.key(0) if key is None else key
        return clf, jax.tree.map(np.asarray, jax.jit(clf.init)(random_key))
    if (folder := _saved_folder(source)) is not None:
        clf, variables = load_artifact(folder)
        if clf.arch not in [form.name for form in backbones.forms(spec.name)]:
            raise ValueError(
                f"{folder} holds another architecture: got {clf.arch}, expected {spec.name}; "
                f"use `arch={clf.arch}`, or a folder of {spec.name}"
            )
        return _with_channels(clf, variables, in_channels)
    file = _find(spec, tag, source)
    return _port(spec, file, in_channels=in_channels, cast=cast)


def _load_folder(name: str, weights: str, in_channels: int | None) -> tuple[Classifier, Variables]:
    """The classifier in a folder, without arguments that would change it."""
    clf, variables = load_artifact(Path(name))
    if weights:
        raise ValueError(
            f"`weights` cannot be combined with a saved classifier: got {weights!r} for the folder "
            f"{name}, which holds its own; load the folder alone, or {clf.arch!r} with these "
            "`weights`"
        )
    if in_channels not in (None, len(clf.pixels.mean)):
        raise ValueError(
            f"`in_channels` must be {len(clf.pixels.mean)}, as in the saved classifier in {name}: "
            f"got {in_channels}; to change it, use load({clf.arch!r}, weights={name!r}, "
            f"in_channels={in_channels})"
        )
    return clf, variables


def _saved_folder(source: str) -> Path | None:
    """The folder that `save` wrote and that `source`, or the file of variables in it, names."""
    path = Path(source).expanduser()
    path = path.parent if path.name == VARIABLES else path
    return path if source and (path / ARTIFACT).is_file() else None


class _WeightsFile(NamedTuple):
    """A weights file, and the metadata that is known before it is read."""

    path: Path
    weights: Provenance
    arch: str | None = None
    source: str | None = None
    pixels: PixelSpec | None = None
    classes: ClassTable | None = None
    ignore: tuple[str, ...] = ("num_batches_tracked",)


def _find(spec: BackboneSpec, tag: str, source: str) -> _WeightsFile:
    """The file that `weights=source` selects for an architecture and a tag."""
    if source in ("", "package"):
        row = store.packaged_row([form.name for form in backbones.forms(spec.name)], tag)
        if row is not None and (source == "package" or store.installed(row)):
            origin = Provenance(f"{row.arch}.{row.tag}", row.sha256, row.origin, row.licence)
            path = store.verified(row)
            return _WeightsFile(path, origin, row.arch, row.source, row.pixels, None, row.ignore)
        if source == "package":
            raise ValueError(store.no_package(spec.name, tag))
    if source in ("", "hub") or source.startswith("hub:"):
        return _fetch(spec, tag, source.partition(":")[2])
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(
            f"no weights file at {path}; "
            "give package, hub, random, or a path to a safetensors, torch or Keras file"
        )
    store.check_named_hash(path)
    return _WeightsFile(path, Provenance(f"{spec.name}:{path.name}", store.sha256(path)))


def _fetch(spec: BackboneSpec, tag: str, repo: str) -> _WeightsFile:
    """The weights file of a hub repository; default: the one of the architecture and tag."""
    if not repo:
        row = store.hub_row([form.name for form in backbones.forms(spec.name)], spec.name, tag)
        repo = row.hub if row else f"timm/{spec.name}.{tag}" if tag else ""
        if not repo:
            raise ValueError(store.nowhere(spec.name))
    files = hub.fetch(repo)
    arch = hub.architecture_of(files.config)
    if arch not in [form.name for form in backbones.forms(spec.name)]:
        raise ValueError(
            f"{repo} on the hub holds another architecture: got {arch}, expected {spec.name}; "
            f"use `arch={arch}`, or a tag of {spec.name}"
        )
    names = files.config.get("label_names")
    classes = None
    if names and len(names) != IMAGENET_CLASSES:
        classes = labels.from_names(list(names), name=repo)
    origin = Provenance(
        repo.removeprefix("timm/"),
        store.sha256(files.weights),
        f"{_HUB}{repo}",
        hub.licence_of(files.config),
    )
    return _WeightsFile(files.weights, origin, arch, "timm", hub.pixels_of(files.config), classes)


def _with_own_head(spec: BackboneSpec, pixel_spec: PixelSpec, weights: Provenance) -> Classifier:
    """The architecture with the 1000-way classifier of its paper."""
    return Classifier(
        spec.name, spec, heads.own(spec)(IMAGENET_CLASSES), pixel_spec, labels.imagenet(), weights
    )


def _port(
    spec: BackboneSpec, file: _WeightsFile, *, in_channels: int | None, cast: bool
) -> tuple[Classifier, Variables]:
    """A classifier and its variables from a file, by the rename table that fits the file best."""
    arrays = readers.read(file.path)
    spec, source = _best_fit(spec, file, arrays)
    if source is None:  # the file has tl's names
        clf = _with_own_head(spec, PixelSpec(), file.weights)
        table = {
            name: port.Target(name) for name in flatten(jax.eval_shape(clf.init, jax.random.key(0)))
        }
        pixel_spec = file.pixels or PixelSpec()
    else:
        form = tables.sources(spec)[source]
        table = form.table(spec.module, head=True)
        pixel_spec = file.pixels or store.pixels_for(spec.name, source) or form.pixels
    backbone_table = {
        name: target for name, target in table.items() if not target.path.startswith("params/head/")
    }
    clf = _with_own_head(spec, pixel_spec, file.weights)
    has_head = bool((set(table) - set(backbone_table)) & set(arrays))
    if not has_head:
        table, clf = backbone_table, dataclasses.replace(clf, head=None, classes=None)
    shapes = jax.eval_shape(clf.init, jax.random.key(0))
    if has_head:
        clf, shapes = _sized_head(clf, shapes, arrays, table, file.classes)
    try:
        variables = port.port(arrays, table, shapes, ignore=file.ignore, cast=cast)
    except ValueError as error:
        raise ValueError(_misfit(spec, file.path, arrays, str(error))) from None
    return _with_channels(clf, {"batch_stats": {}, **variables}, in_channels)


def _best_fit(
    spec: BackboneSpec, file: _WeightsFile, arrays: readers.Arrays
) -> tuple[BackboneSpec, str | None]:
    """The form of a network and the source whose names cover most of a file's tensors.

    On a tie the requested form comes first. The source is None for a file with tl's own names.
    """
    if file.arch and file.source:
        return backbones.get(file.arch), file.source
    if any(name.startswith("params/backbone/") for name in arrays):
        return spec, None
    pairs = [(form, source) for form in backbones.forms(spec.name) for source in form.sources]

    def fit(pair: tuple[BackboneSpec, str]) -> int:
        form, source = pair
        return len(set(tables.sources(form)[source].table(form.module, head=True)) & set(arrays))

    return max(pairs, key=fit)


def _misfit(spec: BackboneSpec, path: Path, arrays: readers.Arrays, mismatches: str) -> str:
    """The error message for a file that does not fit: its architecture, or else every mismatch."""
    fitting = [
        name
        for name in backbones.names()
        if name != spec.name and _holds(backbones.get(name), arrays)
    ]
    if fitting:
        return (
            f"{path} holds another architecture: got {fitting[0]}, expected {spec.name}; "
            f"use `arch={fitting[0]}`, or a file of {spec.name}"
        )
    if "do not fit" not in mismatches:  # all tensors are there, in another number type
        return f"{path}: {mismatches}"
    sources = ", ".join(spec.sources)
    return (
        f"{path}: {mismatches}; expected the tensors of {spec.name} under the names of {sources}; "
        "use a file of this network"
    )


def _holds(spec: BackboneSpec, arrays: readers.Arrays) -> bool:
    """Whether a file has every tensor of an architecture's backbone, by name and shape."""
    for form in tables.sources(spec).values():
        table = form.table(spec.module, head=False)
        if set(table) <= set(arrays):
            clf = Classifier(spec.name, spec, None, PixelSpec(), None, Provenance("", ""))
            shapes = flatten(jax.eval_shape(clf.init, jax.random.key(0)))
            if all(
                arrays[name].shape == port.LAYOUTS[target.layout].theirs(shapes[target.path].shape)
                for name, target in table.items()
            ):
                return True
    return False


def _sized_head(
    clf: Classifier,
    shapes: Variables,
    arrays: readers.Arrays,
    table: port.Table,
    classes: ClassTable | None,
) -> tuple[Classifier, Variables]:
    """The classifier with as many logits as the file has, and its shapes.

    A file does not hold class names. If it has a number of classes other than ImageNet's 1000,
    `classes` is used if it fits; otherwise the classes are numbered.
    """
    (last,) = (
        name
        for name, leaf in flatten(shapes["params"]["head"]).items()
        if leaf.shape == (IMAGENET_CLASSES,)
    )
    shape = next(
        (
            arrays[name].shape
            for name, target in table.items()
            if target.path == f"params/head/{last}" and name in arrays
        ),
        None,
    )
    if shape is None or len(shape) != 1 or shape[0] == IMAGENET_CLASSES:
        return clf, shapes
    if classes is None or len(classes.entries) != shape[0]:
        classes = labels.from_names([f"class {i}" for i in range(shape[0])], name="unnamed")
    clf = clf.with_head(heads.own(clf.spec)(shape[0]), classes)
    return clf, jax.eval_shape(clf.init, jax.random.key(0))


def _averaged(spec: PixelSpec, channels: int) -> PixelSpec:
    """The spec for another number of input channels, each with the average of the three."""
    if channels == 3:
        return spec
    mean, std = (float(np.mean(v)) for v in (spec.mean, spec.std))
    return spec.replace(mean=(mean,) * channels, std=(std,) * channels, channels="rgb")


def _with_channels(
    clf: Classifier, variables: Variables, channels: int | None
) -> tuple[Classifier, Variables]:
    """The network for another number of input channels; only its first kernel changes."""
    old = len(clf.pixels.mean)
    if channels in (None, old):
        return clf, variables
    if old != 3:
        raise ValueError(
            f"`in_channels` must be {old}, as in these weights: got {channels}, which is possible "
            "only for weights with 3 channels"
        )
    clf = dataclasses.replace(clf, pixels=_averaged(clf.pixels, channels))
    shapes, leaves = flatten(jax.eval_shape(clf.init, jax.random.key(0))), flatten(variables)
    adapted = {
        name: leaf if leaf.shape == shapes[name].shape else adapt_channels(leaf, channels)
        for name, leaf in leaves.items()
    }
    return clf, {"batch_stats": {}, **unflatten(adapted)}


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first kernel for images with another number of channels, by the rule of timm's `in_chans`.

    For one channel, the three are summed, so that a gray image gives the activations that its three
    equal channels gave. For more, the three are repeated in turn and multiplied by 3 / channels,
    which keeps the scale of the sum.

    Args:
      kernel: f32[kh kw 3 o].
      channels: number of input channels, at least 1.

    Returns:
      f32[kh kw channels o].
    """
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.concatenate([kernel] * -(-channels // kernel.shape[2]), axis=2)[:, :, :channels]
    return repeated * np.float32(kernel.shape[2] / channels)


def pretrained_source(clf: Classifier) -> tuple[str, str]:
    """The arguments of `load` for the pretrained weights that a saved classifier was trained from.

    `load(name, weights=weights)` then returns these weights. A classifier that was trained from a
    saved one has the same source as the saved one.

    Args:
      clf: a classifier from `load`.

    Returns:
      `(name, weights)`, for example `("tf_efficientnet_lite0.lukemelas_in1k", "package")` or
      `("resnet50", "hub:timm/resnet50.a1_in1k")`.

    Raises:
      ValueError: the weights were random, or came from a file whose path is not stored.
    """
    name, repo = clf.weights.name, clf.weights.origin.removeprefix(_HUB)
    arch, _, tag = name.partition(".")
    if repo != clf.weights.origin:
        return clf.arch, f"hub:{repo}"
    if (row := store.packaged_row([arch], tag)) is not None and tag == row.tag:
        return name, "package"
    if clf.weights.origin == "random numbers":
        reason = "they were random numbers"
    else:
        reason = f"they came from a file of which only the name is stored, {name!r}"
    raise ValueError(
        f"cannot find the weights that this {clf.arch} was trained from: {reason}; "
        "give them as `before`: a file, a folder or a name"
    )
