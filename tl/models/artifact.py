"""Saves a classifier as a folder and reads it back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tl import backbones, labels
from tl.models import heads
from tl.models.classifier import Classifier, Provenance
from tl.paths import flatten, unflatten
from tl.pixels import PixelSpec
from tl.types import Variables
from tl.weights import port, readers, store

ARTIFACT, VARIABLES = "classifier.json", "variables.safetensors"


def save(
    folder: str | Path,
    clf: Classifier,
    variables: Variables,
    *,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a classifier as one folder: `variables.safetensors` and `classifier.json`; `load(folder)` reads it back.

    Args:
      folder: made where missing.
      record: JSON-ready facts to keep beside it (metrics, split hashes, flags).

    Raises:
      ValueError: the classifier has no head.
    """
    from safetensors.numpy import save_file

    if clf.head is None or clf.classes is None:
        raise ValueError(f"{clf.arch} has no head to save; train one first")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: np.ascontiguousarray(a) for name, a in flatten(variables).items()},
        folder / VARIABLES,
    )
    (folder / ARTIFACT).write_text(
        json.dumps(
            {
                "format": 2,
                "arch": clf.arch,
                "head": heads.kind(clf.head),
                "pixels": clf.pixels.as_dict(),
                "classes": clf.classes.as_dict(),
                "weights": dataclasses.asdict(clf.weights),
                "sha256": store.sha256(folder / VARIABLES),
                "record": dict(record or {}),
            },
            indent=1,
        )
    )
    return folder


def record(folder: str | Path) -> dict[str, Any]:
    """The facts that `save` was given to keep beside a classifier; `load` says what is wrong with a folder that has none."""
    return json.loads((Path(folder) / ARTIFACT).read_text()).get("record", {})


_FORMAT_1 = {
    "efficientnet_lite0": "tf_efficientnet_lite0"
}  # format 1 had one form of it, and called it so


def load_artifact(folder: Path) -> tuple[Classifier, Variables]:
    try:
        about = json.loads((folder / ARTIFACT).read_text())
        classes = labels.from_dict(about["classes"])
        pixel_spec = PixelSpec.from_dict(about["pixels"])
        weights = Provenance(**about["weights"])
        arch, wanted = about["arch"], about["sha256"]
        spec = backbones.get(str(_FORMAT_1.get(arch, arch) if about["format"] == 1 else arch))
        head = heads.maker("own" if about["head"] == "vgg" else about["head"], spec)(
            len(classes.entries)
        )
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / ARTIFACT} is not a classifier that this version of tl wrote: {error!r}"
        ) from error
    file = folder / VARIABLES
    arrays = readers.read(file)
    if store.sha256(file) != wanted:
        raise ValueError(
            f"{file} is not the file that {ARTIFACT} names (its sha256 differs); train or copy it again"
        )
    clf = Classifier(
        spec.name, spec, head, pixel_spec, classes, dataclasses.replace(weights, sha256=wanted)
    )
    shapes = flatten(jax.eval_shape(clf.init, jax.random.key(0)))
    same = {name: port.Target(name) for name in shapes}
    return clf, {"batch_stats": {}, **port.port(arrays, same, unflatten(shapes))}
