"""Loads a classifier by name, with weights from a package, the hub, a file or a saved folder.

This module finds the file, and `tl.models.reading` reads it as a classifier.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tl import backbones, labels, storage
from tl.backbones.spec import BackboneSpec
from tl.models import heads, reading
from tl.models.artifact import ARTIFACT, VARIABLES, load_artifact
from tl.models.channels import averaged, with_channels
from tl.models.classifier import IMAGENET_CLASSES, Classifier, Provenance
from tl.models.reading import WeightsFile
from tl.paths import ending, expanded, is_url
from tl.pixels import PixelSpec
from tl.types import Variables
from tl.weights import description, hub, store
from tl.weights.description import Description

# Prefix of `Provenance.origin` for weights from the hub.
_HUB = "hub repository "
# Beginnings of a word that names a repository of the hub, or a local folder in its layout, in timm.
_HUB_WORDS = ("hub:", "hf-hub:", "hf_hub:")
_LOCAL_WORD = "local-dir:"


def load(
    name: str,
    *,
    weights: str | Path | None = None,
    which: str = "",
    headless: bool = False,
    key: jax.Array | None = None,
    in_channels: int | None = None,
    cast: bool = False,
) -> tuple[Classifier, Variables]:
    """Loads a pretrained network.

    Args:
      name: an architecture (`"efficientnet_lite0"`, an alias, or `"arch.tag"`); a folder written by
        `save`, or one with weights and timm's `config.json`; or "" for the architecture that
        `weights` state, or else that fits their tensors.
      weights: source of the weights. "package": the file of an installed package. "hub": timm's
        repository `timm/ARCH.TAG`, from the cache or the network; "hub:OWNER/REPO" for another
        repository in timm's layout; "hub:OWNER/REPO/FILE" for one file of any. A path: a torch,
        Keras, safetensors or pickled numpy file, or a folder with one; or a folder written by
        `save`, with its preprocessing and classes. A `config.json` of timm next to the file is read
        as from the hub. "random": newly initialized. Default: the package if it is installed, else
        the hub. Not for a `name` that is a folder.
      which: the weights to use of a file that holds several, such as "state_dict" or
        "state_dict_ema"; default: an average (EMA) if there is one, as in timm.
      headless: whether to leave out the head of the file. A head that is not the architecture's own
        is left out in any case; `classifier.remarks` names its tensors.
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
        file whose hash differs from the published one, tensors that do not fit (`DetailedError`
        with all mismatches), a `config.json` of another architecture, or a folder with `weights` or
        another number of channels.
    """
    if in_channels is not None and in_channels < 1:
        raise ValueError(f"`in_channels` must be at least 1: got {in_channels}")
    options = {"which": which, "headless": headless, "cast": cast}
    clf, variables = _load(name, str(weights or ""), key, in_channels, **options)
    return _without_head(clf, variables) if headless else (clf, variables)


def _load(
    name: str, source: str, key: jax.Array | None, in_channels: int | None, **options: Any
) -> tuple[Classifier, Variables]:
    """As `load`, but a saved or random network keeps its head; `options` are those of `_read`."""
    if name and storage.is_file(expanded(name) / ARTIFACT):
        return _load_folder(name, source, in_channels)
    if _is_place(name):
        if source:
            raise ValueError(
                f"`weights` cannot be combined with a folder: got {source!r} for {name}; "
                "give an architecture, or the folder alone"
            )
        name, source = "", name
    if not name and not source:
        raise ValueError("no network: give an architecture, such as resnet50, or `weights`")
    arch, _, tag = name.partition(".")
    spec = backbones.get(arch) if arch else None
    if source == "random" and spec:
        origin = Provenance(f"{spec.name}.random", "random", "random numbers", "none")
        clf = Classifier(
            spec.name,
            spec,
            heads.own(spec)(IMAGENET_CLASSES),
            averaged(PixelSpec(), in_channels or 3),
            labels.imagenet(),
            origin,
        )
        random_key = jax.random.key(0) if key is None else key
        return clf, jax.tree.map(np.asarray, jax.jit(clf.init)(random_key))
    if (folder := saved_folder(source)) is not None:
        clf, variables = load_artifact(folder)
        if spec and clf.arch not in [form.name for form in backbones.forms(spec.name)]:
            raise ValueError(
                f"{folder} holds another architecture: got {clf.arch}, expected {spec.name}; "
                f"use `arch={clf.arch}`, or a folder of {spec.name}"
            )
    else:
        clf, variables = _read(spec, _find(spec, tag, source), **options)
    return with_channels(clf, variables, in_channels)


def _is_place(name: str) -> bool:
    """Whether a name is that of a repository or folder instead of an architecture.

    Raises:
      ValueError: it looks like a folder, but has neither a saved classifier nor weights.
    """
    if name.startswith((*_HUB_WORDS, _LOCAL_WORD)):
        return True
    if not name or ("/" not in name and not Path(name).is_dir()):
        return False
    if (Path(name) / description.CONFIG).is_file():
        return True
    raise ValueError(
        f"no saved classifier in {name}: it has no {ARTIFACT}; "
        "give a folder that transfer wrote, or a weights file as `weights`"
    )


def _without_head(clf: Classifier, variables: Variables) -> tuple[Classifier, Variables]:
    params = {name: tree for name, tree in variables["params"].items() if name != "head"}
    return dataclasses.replace(clf, head=None, classes=None), {**variables, "params": params}


def _load_folder(name: str, weights: str, in_channels: int | None) -> tuple[Classifier, Variables]:
    """The classifier in a folder, without arguments that would change it."""
    clf, variables = load_artifact(expanded(name))
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


def saved_folder(source: str) -> Path | None:
    """The folder that `save` wrote and that `source`, or the file of variables in it, names.

    None for any other source.
    """
    path = expanded(source)
    path = path.parent if path.name == VARIABLES else path
    return path if source and storage.is_file(path / ARTIFACT) else None


def _find(spec: BackboneSpec | None, tag: str, source: str) -> WeightsFile:
    """The file that `weights=source` selects for an architecture and a tag."""
    forms = [form.name for form in backbones.forms(spec.name)] if spec else []
    if source in ("", "package"):
        row = store.packaged_row(forms, tag)
        if row is not None and (source == "package" or store.installed(row)):
            origin = Provenance(f"{row.arch}.{row.tag}", row.sha256, row.origin, row.licence)
            stated = Description(row.arch, row.pixels.as_dict())
            path = store.verified(row)
            return WeightsFile(path, origin, stated, row.arch, row.source, row.ignore)
        if source == "package":
            raise ValueError(store.no_package(spec.name if spec else "", tag))
    if source in ("", "hub"):
        return _fetch(spec, tag, "")
    file = named_file(source, spec)
    if spec:
        _check_arch(spec, file.stated)
    return file


def named_file(source: str | Path, spec: BackboneSpec | None = None) -> WeightsFile:
    """The weights file at a path, as `local_file`, or in a repository, "hub:OWNER/REPO"."""
    word = str(source)
    if word.startswith(_HUB_WORDS):
        return _fetch(spec, "", word.partition(":")[2])
    return local_file(source)


def local_file(source: str | Path) -> WeightsFile:
    """The weights file at a path, or in a folder, with what the files next to it state.

    Args:
      source: a file or folder, also with "local-dir:" before it.

    Raises:
      ValueError: there is none, it is a published file with another hash, or `config.json` next to
        it is damaged.
    """
    if is_url(source):
        raise ValueError(f"{str(source)!r} has no {ARTIFACT}; download a file of weights first")
    path = expanded(str(source).removeprefix(_LOCAL_WORD))
    path = store.weights_file(path) if path.is_dir() else path
    if not path.is_file():
        advice = "give package, hub, random, or a path to a safetensors, torch or Keras file"
        if match := re.fullmatch(r"(?:https://huggingface\.co/)?([\w-]+/[\w.-]+)/?", str(source)):
            advice += f"; or hub:{match[1]} if it is a repository of the hub"
        elif "://" in str(source):
            advice = "download the file, and give its path"
        raise ValueError(f"no weights file at {ending(str(source), 200)}; {advice}")
    store.check_named_hash(path)
    stated = description.next_to(path)
    name = path.name if path.name not in store.WEIGHTS_NAMES else f"{path.parent.name}/{path.name}"
    return WeightsFile(
        path,
        Provenance(f":{name}", store.sha256(path), licence=stated.licence or Provenance.licence),
        stated,
    )


def _fetch(spec: BackboneSpec | None, tag: str, repo: str) -> WeightsFile:
    """The weights file of a hub repository; default: the one of the architecture and tag."""
    if not repo:
        if not spec:
            raise ValueError("`weights=hub` needs an architecture; or give hub:OWNER/REPO")
        row = store.hub_row([form.name for form in backbones.forms(spec.name)], spec.name, tag)
        repo = row.hub if row else f"timm/{spec.name}.{tag}" if tag else ""
        if not repo:
            raise ValueError(store.nowhere(spec.name))
    repo, file = "/".join(repo.split("/")[:2]), "/".join(repo.split("/")[2:])
    files = hub.fetch(repo, file) if file else hub.fetch(repo)
    stated = description.of_config(files.config, repo) if files.config else Description()
    if spec:
        _check_arch(spec, stated._replace(place=f"{repo} on the hub"))
    place = f"{repo}/{file}" if file else repo
    origin = Provenance(
        place.removeprefix("timm/"),
        store.sha256(files.weights),
        f"{_HUB}{place}",
        stated.licence or "unknown",
    )
    return WeightsFile(files.weights, origin, stated)


def _check_arch(spec: BackboneSpec, stated: Description) -> None:
    """Raises ValueError if another architecture is stated than the requested one."""
    names = [n for form in backbones.forms(spec.name) for n in (form.name, *form.aliases)]
    if stated.arch is not None and stated.arch not in names:
        raise ValueError(
            f"{stated.place} holds another architecture: got {stated.arch}, expected {spec.name}; "
            f"use `arch={stated.arch}`, or weights of {spec.name}"
        )


def _read(
    spec: BackboneSpec | None, file: WeightsFile, *, which: str, headless: bool, cast: bool
) -> tuple[Classifier, Variables]:
    """A classifier and its variables from a file, by the rename table that fits the file best."""
    contents, fit, stated = reading.open_as(spec, file, which)
    if spec is not None and fit.spec.name != spec.name:
        form = f"these weights belong to {fit.spec.name}, another form of {spec.name}"
        stated = stated._replace(remarks=(form, *stated.remarks))
    clf, table = reading.classifier_of(fit, stated, file.weights, headless=headless)
    return clf, reading.ported(clf, table, fit, contents, file, stated, cast=cast)


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
