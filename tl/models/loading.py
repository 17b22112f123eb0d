"""Builds a classifier from a name and a weights file: a package, the hub, a path, or a saved artifact."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

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

_HUB = "hub repository "  # how an origin begins that is one


def load(
    name: str,
    *,
    weights: str | Path | None = None,
    key: jax.Array | None = None,
    in_channels: int = 3,
    cast: bool = False,
) -> tuple[Classifier, Variables]:
    """A pretrained network and its variables.

    Args:
      name: an architecture (`"efficientnet_lite0"`, an alias, or `"arch.tag"`), or a folder written by `save`.
      weights: where from. "package": the file that an installed package carries. "hub": timm's repository
        `timm/ARCH.TAG`, from the cache or the network ("hub:OWNER/REPO" for another in timm's layout). A path to a file of
        torch, Keras, safetensors or pickled numpy, or to a folder that `save` wrote. "random". Default: the package where it
        is installed, else the hub.
      key: `jax.random.key` for "random"; default key 0.
      in_channels: of the input. Other than 3, the first kernel is summed over its channels (1) or repeated and rescaled
        (`adapt_channels`), and mean and std are the average of the three.
      cast: accept a file in another number type than float32, and convert it.

    Returns:
      `(classifier, variables)`; variables are numpy arrays in float32, so nothing has touched a device yet. Where the file
      holds another form of the network that was asked for (Keras' or TensorFlow's), `classifier.arch` names that form.

    Raises:
      ValueError: unknown name, weights that cannot be found (says what brings them), a file that is not the one its hash
        names, or tensors that do not fit.
    """
    if (Path(name) / ARTIFACT).is_file():
        return load_artifact(Path(name))
    if "/" in name or Path(name).is_dir():
        raise ValueError(
            f"no saved classifier in {name}: it has no {ARTIFACT}; give a folder that `transfer` wrote"
        )
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1; got {in_channels}")
    arch, _, tag = name.partition(".")
    spec = backbones.get(arch)
    words = str(weights or "")
    if words == "random":
        origin = Provenance(f"{spec.name}.random", "random", "random numbers", "none")
        clf = _with_own_head(spec, _averaged(PixelSpec(), in_channels), origin)
        random_key = jax.random.key(0) if key is None else key
        return clf, jax.tree.map(np.asarray, jax.jit(clf.init)(random_key))
    found = _find(spec, tag, words)
    return _ported(spec, found, in_channels=in_channels, cast=cast)


class _Found(NamedTuple):
    """A weights file, and what is known of it before it is read."""

    path: Path
    weights: Provenance
    arch: str | None = None
    source: str | None = None
    pixels: PixelSpec | None = None
    classes: ClassTable | None = None
    ignore: tuple[str, ...] = ("num_batches_tracked",)


def _find(spec: BackboneSpec, tag: str, words: str) -> _Found:
    """The file that `weights=words` means for an architecture and a tag."""
    if words in ("", "package"):
        row = store.packaged_row([form.name for form in backbones.forms(spec.name)], tag)
        if row is not None and (words == "package" or store.installed(row)):
            known_as = Provenance(f"{row.arch}.{row.tag}", row.sha256, row.origin, row.licence)
            return _Found(
                store.verified(row), known_as, row.arch, row.source, row.pixels, None, row.ignore
            )
        if words == "package":
            raise ValueError(store.no_package(spec.name, tag))
    if words in ("", "hub") or words.startswith("hub:"):
        return _fetched(spec, tag, words.partition(":")[2])
    path = Path(words).expanduser()
    if (path / ARTIFACT).is_file():
        path = path / VARIABLES
    if not path.is_file():
        raise ValueError(
            f"no weights file at {path}; give package, hub, random, or a path to a safetensors, torch or Keras file"
        )
    store.check_named_hash(path)
    return _Found(path, Provenance(f"{spec.name}:{path.name}", store.sha256(path)))


def _fetched(spec: BackboneSpec, tag: str, repo: str) -> _Found:
    """The hub's files for an architecture and tag, or of a repository."""
    if not repo:
        row = store.hub_row([form.name for form in backbones.forms(spec.name)], spec.name, tag)
        repo = row.hub if row else f"timm/{spec.name}.{tag}" if tag else ""
        if not repo:
            raise ValueError(store.nowhere(spec.name))
    files = hub.fetch(repo)
    held = hub.architecture_of(files.config)
    if held not in [form.name for form in backbones.forms(spec.name)]:
        raise ValueError(
            f"{repo} on the hub holds {held}; wanted {spec.name}: take --arch={held}, or a tag of {spec.name}"
        )
    names = files.config.get("label_names")
    classes = (
        labels.from_names(list(names), name=repo)
        if names and len(names) != IMAGENET_CLASSES
        else None
    )
    known_as = Provenance(
        repo.removeprefix("timm/"),
        store.sha256(files.weights),
        f"{_HUB}{repo}",
        hub.licence_of(files.config),
    )
    return _Found(files.weights, known_as, held, "timm", hub.pixels_of(files.config), classes)


def _with_own_head(spec: BackboneSpec, pixel_spec: PixelSpec, weights: Provenance) -> Classifier:
    """The architecture under its paper's 1000-way head."""
    return Classifier(
        spec.name, spec, heads.own(spec)(IMAGENET_CLASSES), pixel_spec, labels.imagenet(), weights
    )


def _ported(
    spec: BackboneSpec, found: _Found, *, in_channels: int, cast: bool
) -> tuple[Classifier, Variables]:
    """Variables from a file, through the rename table whose names fit it best."""
    arrays = readers.read(found.path)
    spec, source = _best_fit(spec, found, arrays)
    if source is None:  # tl's own names
        same = flatten(
            jax.eval_shape(_with_own_head(spec, PixelSpec(), found.weights).init, jax.random.key(0))
        )
        whole = {name: port.Target(name) for name in same}
        pixel_spec = found.pixels or PixelSpec()
    else:
        form = tables.sources(spec)[source]
        whole = form.table(spec.module, head=True)
        pixel_spec = found.pixels or store.pixels_for(spec.name, source) or form.pixels
    bare = {
        name: target for name, target in whole.items() if not target.path.startswith("params/head/")
    }
    clf = _with_own_head(spec, pixel_spec, found.weights)
    has_head = bool((set(whole) - set(bare)) & set(arrays))
    if not has_head:
        clf = dataclasses.replace(clf, head=None, classes=None)
    shapes = jax.eval_shape(clf.init, jax.random.key(0))
    if has_head:
        clf, shapes = _sized_head(clf, shapes, arrays, whole, found.classes)
    try:
        variables = port.port(
            arrays, whole if has_head else bare, shapes, ignore=found.ignore, cast=cast
        )
    except ValueError as error:
        raise ValueError(_misfit(spec, found.path, arrays, str(error))) from None
    return _with_channels(clf, {"batch_stats": {}, **variables}, in_channels)


def _best_fit(
    spec: BackboneSpec, found: _Found, arrays: readers.Arrays
) -> tuple[BackboneSpec, str | None]:
    """The form of a network and the source whose names cover most of a file's tensors; forms as asked for come first."""
    if found.arch and found.source:
        return backbones.get(found.arch), found.source
    if any(name.startswith("params/backbone/") for name in arrays):
        return spec, None
    known = [(form, source) for form in backbones.forms(spec.name) for source in form.sources]

    def fit(pair: tuple[BackboneSpec, str]) -> int:
        form, source = pair
        return len(set(tables.sources(form)[source].table(form.module, head=True)) & set(arrays))

    return max(known, key=fit)


def _misfit(spec: BackboneSpec, path: Path, arrays: readers.Arrays, mismatches: str) -> str:
    """What is wrong with a file: it is another architecture's, if one is known that fits it, or else every mismatch."""
    held = [
        name
        for name in backbones.names()
        if name != spec.name and _holds(backbones.get(name), arrays)
    ]
    if held:
        return f"{path} holds the tensors of {held[0]}; wanted {spec.name}: take --arch={held[0]}, or a file of {spec.name}"
    if "do not fit" not in mismatches:  # the tensors are there, in another number type
        return f"{path}: {mismatches}"
    named = ", ".join(spec.sources)
    return f"{path}: {mismatches}; wanted the tensors of {spec.name} as {named} name them: take a file of this network"


def _holds(spec: BackboneSpec, arrays: readers.Arrays) -> bool:
    """Whether a file's backbone is this architecture's, by every name and shape."""
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
    shapes: Any,
    arrays: readers.Arrays,
    table: port.Table,
    classes: ClassTable | None,
) -> tuple[Classifier, Any]:
    """The head as wide as the file's own: a file with k classes other than ImageNet's 1000 brings no names for them."""
    (last,) = (
        name
        for name, leaf in flatten(shapes["params"]["head"]).items()
        if leaf.shape == (IMAGENET_CLASSES,)
    )
    found = next(
        (
            arrays[s].shape
            for s, target in table.items()
            if target.path == f"params/head/{last}" and s in arrays
        ),
        None,
    )
    if found is None or len(found) != 1 or found[0] == IMAGENET_CLASSES:
        return clf, shapes
    unnamed = labels.from_names([f"class {i}" for i in range(found[0])], name="unnamed")
    named = classes if classes is not None and len(classes.entries) == found[0] else unnamed
    clf = clf.with_head(heads.own(clf.spec)(found[0]), named)
    return clf, jax.eval_shape(clf.init, jax.random.key(0))


def _averaged(spec: PixelSpec, channels: int) -> PixelSpec:
    """The spec for another number of input channels: each has the average of the three."""
    if channels == 3:
        return spec
    mean, std = (float(np.mean(v)) for v in (spec.mean, spec.std))
    return spec.replace(mean=(mean,) * channels, std=(std,) * channels, channels="rgb")


def _with_channels(
    clf: Classifier, variables: Variables, channels: int
) -> tuple[Classifier, Variables]:
    """The network for pictures of another number of channels: its first kernel adapted, the rest as it is."""
    if channels == 3:
        return clf, variables
    clf = dataclasses.replace(clf, pixels=_averaged(clf.pixels, channels))
    wanted, leaves = flatten(jax.eval_shape(clf.init, jax.random.key(0))), flatten(variables)
    adapted = {
        name: leaf if leaf.shape == wanted[name].shape else adapt_channels(leaf, channels)
        for name, leaf in leaves.items()
    }
    return clf, {"batch_stats": {}, **unflatten(adapted)}


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first kernel f32[kh kw 3 o] for pictures of another number of channels: f32[kh kw channels o].

    One channel: the sum over the three, so that a grey picture gives what its three equal channels gave. More: the three
    over and over, times 3 / channels, so that the sum keeps its size. The same rule as timm's `in_chans`.
    """
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.concatenate([kernel] * -(-channels // kernel.shape[2]), axis=2)[:, :, :channels]
    return repeated * np.float32(kernel.shape[2] / channels)


def pretrained_source(clf: Classifier) -> tuple[str, str]:
    """What brings back the pretrained weights that a saved classifier began from: `load(name, weights=weights)`.

    A classifier that `transfer` learned from a folder of another began where that one did.

    Returns:
      `(name, weights)`: `("tf_efficientnet_lite0.lukemelas_in1k", "package")`, `("resnet50", "hub:timm/resnet50.a1_in1k")`.

    Raises:
      ValueError: they came from a file whose place is not kept, or were random numbers.
    """
    name, repo = clf.weights.name, clf.weights.origin.removeprefix(_HUB)
    arch, _, tag = name.partition(".")
    if repo != clf.weights.origin:
        return clf.arch, f"hub:{repo}"
    if (row := store.packaged_row([arch], tag)) is not None and tag == row.tag:
        return name, "package"
    drawn = clf.weights.origin == "random numbers"
    what = "random numbers" if drawn else f"a file that is known by its name alone, {name!r}"
    raise ValueError(
        f"the weights that this {clf.arch} began from cannot be found again, for they were {what}; say where they are: "
        "--before=FILE, FOLDER or NAME"
    )
