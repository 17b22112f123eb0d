"""Examines a weights file: what it is, and how `load` would read it. Nothing is written.

`tl.pages.doctor` shows the report.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tl.models import artifact, fitting, loading, reading
from tl.models.classifier import Classifier
from tl.paths import flatten


class WeightsReport(NamedTuple):
    """The result of `examine_weights`.

    Attributes:
      path: the file.
      sha256: SHA-256 of the file.
      format: "safetensors", "torch", "numpy", "numpy pickle" or "keras".
      metadata: what the file says about itself, JSON-ready.
      clf: the classifier that `load` would return.
      stated: fields of `clf.pixels` that the file, or a file next to it, states.
      architectures: names of all networks whose backbone fits, `clf.arch` first.
      source: library whose names the tensors have; "tl" for its own.
      dtypes: number type -> number of tensors.
      parameters: number of parameters and statistics that are used.
      chosen: key path of the weights that were chosen among several, or "".
      prefix: what is removed from the beginning of the names.
      used: names of the tensors that are used, without prefix.
      left_out: names of everything else in the file.
    """

    path: Path
    sha256: str
    format: str
    metadata: Mapping[str, Any]
    clf: Classifier
    stated: tuple[str, ...]
    architectures: tuple[str, ...]
    source: str
    dtypes: Mapping[str, int]
    parameters: int
    chosen: str
    prefix: str
    used: tuple[str, ...]
    left_out: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        clf = self.clf
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "format": self.format,
            "metadata": dict(self.metadata),
            "license": clf.weights.licence,
            "arch": clf.arch,
            "architectures": list(self.architectures),
            "source": self.source,
            "dtypes": dict(self.dtypes),
            "parameters": self.parameters,
            "classes": None if clf.classes is None else len(clf.classes),
            "class_names": None if clf.classes is None else list(clf.classes.display_names),
            "pixels": clf.pixels.as_dict(),
            "pixels_stated": list(self.stated),
            "chosen": self.chosen,
            "prefix": self.prefix,
            "used": list(self.used),
            "left_out": list(self.left_out),
            "head_left_out": list(clf.head_left_out),
        }


def examine_weights(source: str | Path, *, which: str = "") -> WeightsReport:
    """What a weights file is, and how `load` would read it without an architecture.

    Tensors of another number type than float32 are no error here, as with `load(cast=True)`.

    Args:
      source: a file, a folder with one, a folder written by `save`, or "hub:OWNER/REPO".
      which: as for `load`.

    Raises:
      ValueError: there is no file, or it cannot be loaded as any network.
    """
    if (folder := loading.saved_folder(str(source))) is not None:
        return _saved(folder)
    file = loading.named_file(source)
    contents, fit, stated = reading.open_as(None, file, which)
    clf, table = reading.classifier_of(fit, stated, file.weights, headless=False)
    reading.ported(clf, table, fit, contents, file, stated, cast=True)
    fitting_names = [other.spec.name for other in fitting.holding(contents.arrays, which)]
    used = [name for name in fit.arrays if name in table]
    dtypes = Counter(str(fit.arrays[name].dtype) for name in used)
    return WeightsReport(
        file.path,
        file.weights.sha256,
        contents.format,
        contents.metadata,
        clf,
        tuple(stated.pixels),
        tuple(dict.fromkeys([fit.spec.name, *fitting_names])),
        fit.source or "tl",
        dtypes,
        sum(math.prod(fit.arrays[name].shape) for name in used),
        contents.chosen,
        contents.prefix + fit.prefix,
        tuple(used),
        (*contents.left_out, *(contents.prefix + name for name in fit.unused(table))),
    )


def _saved(folder: Path) -> WeightsReport:
    """The report on a classifier that `save` wrote."""
    clf, variables = artifact.load_artifact(folder)
    leaves = flatten(variables)
    return WeightsReport(
        folder / artifact.VARIABLES,
        clf.weights.sha256,
        "safetensors",
        {"pretrained": clf.weights.name},
        clf,
        tuple(clf.pixels.as_dict()),
        (clf.arch,),
        "tl",
        Counter(str(leaf.dtype) for leaf in leaves.values()),
        sum(leaf.size for leaf in leaves.values()),
        "",
        "",
        tuple(leaves),
        (),
    )
