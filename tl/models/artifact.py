"""Saves a classifier as a folder and reads it back.

`classifier.json` and `variables.safetensors` hold what inference needs: architecture, kind of head,
preprocessing, class names and variables. `tl.training.checkpoints` saves the optimizer state and
the checkpoints of an unfinished run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tl import backbones, labels, storage
from tl.models import heads
from tl.models.classifier import Classifier, Provenance
from tl.paths import expanded, flatten, unflatten
from tl.pixels import PixelSpec
from tl.types import Variables
from tl.weights import port, readers, store

ARTIFACT, VARIABLES = "classifier.json", "variables.safetensors"


def save(
    folder: str | Path,
    clf: Classifier,
    variables: Variables,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a classifier to a folder that `load` reads.

    Args:
      folder: directory to write, local or in a bucket; created if missing.
      clf: the classifier. Its compute type is not saved.
      variables: as `Classifier.init` returns them.
      metadata: JSON-ready values to store with the classifier, such as metrics, split hashes and
        flags.

    Returns:
      The folder.

    Raises:
      ValueError: the classifier has no head, or the folder cannot be written.
    """
    from safetensors.numpy import save as serialize

    if clf.head is None or clf.classes is None:
        raise ValueError(f"{clf.arch} has no head to save; train one first")
    folder = expanded(folder)
    data = serialize({name: np.ascontiguousarray(a) for name, a in flatten(variables).items()})
    stored = {
        "format": 2,
        "arch": clf.arch,
        "head": heads.kind(clf.head),
        "pixels": clf.pixels.as_dict(),
        "classes": clf.classes.as_dict(),
        "weights": dataclasses.asdict(clf.weights),
        "sha256": hashlib.sha256(data).hexdigest(),
        "record": dict(metadata or {}),
    }
    try:
        storage.make_folder(folder)
        storage.write_whole(folder / VARIABLES, data)
        storage.write_whole(folder / ARTIFACT, json.dumps(stored, indent=1).encode())
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write a classifier into {str(folder)!r} ({reason})") from error
    return folder


def replace_metadata(folder: str | Path, metadata: Mapping[str, Any]) -> None:
    """Stores other `metadata` with a saved classifier; its variables are not written again."""
    path = expanded(folder) / ARTIFACT
    stored = json.loads(storage.read_range(path))
    content = json.dumps({**stored, "record": dict(metadata)}, indent=1)
    storage.write_whole(path, content.encode())


def metadata(folder: str | Path) -> dict[str, Any]:
    """The `metadata` that `save` stored with a classifier; `{}` if it stored none.

    The folder is not checked: call `load` first, which reports what is wrong with it.
    """
    return json.loads(storage.read_range(expanded(folder) / ARTIFACT)).get("record") or {}


# In format 1 the plain name meant TensorFlow's form, the only one of EfficientNet-Lite0.
_FORMAT_1_ARCHS = {"efficientnet_lite0": "tf_efficientnet_lite0"}


def load_artifact(folder: Path) -> tuple[Classifier, Variables]:
    """Reads a folder that `save` wrote, in format 1 or 2.

    Args:
      folder: directory with `classifier.json` and `variables.safetensors`.

    Returns:
      `(classifier, variables)`; variables are numpy arrays in float32.

    Raises:
      ValueError: `classifier.json` is damaged or has another format, the hash of the variables
        differs from the one in it, or their shapes do not fit the architecture.
    """
    try:
        stored = json.loads(storage.read_range(folder / ARTIFACT))
        if stored["format"] not in (1, 2):
            raise ValueError(
                f"it has another format: got {stored['format']!r}, expected 1 or 2; load it with "
                "the version of tl that wrote it"
            )
        classes = labels.from_dict(stored["classes"])
        pixel_spec = PixelSpec.from_dict(stored["pixels"])
        weights = Provenance(**stored["weights"])
        arch, digest = stored["arch"], stored["sha256"]
        record = dict(stored.get("record") or {})
        temperature, images = record.get("temperature", 1.0), record.get("images") or {}
        if not isinstance(temperature, int | float) or set(map(type, images.values())) - {str}:
            raise TypeError("the temperature or the hashes of images in record")
        if stored["format"] == 1:
            arch = _FORMAT_1_ARCHS.get(arch, arch)
        spec = backbones.get(str(arch))
        # Early artifacts call VGG's own classifier "vgg".
        kind = "own" if stored["head"] == "vgg" else stored["head"]
        head = heads.maker(kind, spec)(len(classes.entries))
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(
            f"{folder / ARTIFACT} is not a classifier that this version of tl wrote: {reason}"
        ) from error
    with storage.local(folder / VARIABLES) as file:
        arrays = readers.read(file)
        if store.sha256(file) != digest:
            raise ValueError(
                f"{folder / VARIABLES} is not the file that {ARTIFACT} names (its sha256 differs); "
                "train or copy it again"
            )
    weights = dataclasses.replace(weights, sha256=digest)
    clf = Classifier(spec.name, spec, head, pixel_spec, classes, weights)
    shapes = flatten(clf.shapes())
    same = {name: port.Target(name) for name in shapes}
    return clf, {"batch_stats": {}, **port.port(arrays, same, unflatten(shapes))}
