"""Reads a weights file as a classifier: network, head, preprocessing, classes, and remarks.

`tl.weights` reads the tensors of a file and what is stated about it, and `tl.models.fitting` finds
the network and the names that fit the tensors. `tl.models.loading` finds the file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from tl import backbones, labels
from tl.backbones.spec import BackboneSpec
from tl.labels import ClassTable
from tl.models import fitting, heads
from tl.models.channels import averaged
from tl.models.classifier import IMAGENET_CLASSES, Classifier, Provenance
from tl.models.fitting import Fit
from tl.paths import unflatten
from tl.pixels import PixelSpec
from tl.types import Variables
from tl.weights import description, metadata, port, readers, store, tables
from tl.weights.description import Description


class WeightsFile(NamedTuple):
    """A weights file, and what is known before it is read.

    Attributes:
      path: the file.
      weights: where it comes from.
      stated: what its publisher states outside the file.
      arch, source: form and rename table, where the manifest has them.
      ignore: endings of tensors that are not needed.
    """

    path: Path
    weights: Provenance
    stated: Description = Description()
    arch: str = ""
    source: str = ""
    ignore: tuple[str, ...] = fitting.IGNORED


def ported(
    clf: Classifier,
    table: port.Table,
    fit: Fit,
    contents: readers.Contents,
    file: WeightsFile,
    stated: Description,
    *,
    cast: bool,
) -> Variables:
    """The variables of a classifier from the tensors of a file.

    Raises:
      ValueError: tensors are missing, misshaped, of another number type or not finite, or the
        file's network is a larger one. The message names another architecture that fits.
    """
    shapes = unflatten(fit.shapes(None if clf.classes is None else len(clf.classes)))
    foreign = set(fit.foreign())
    arrays = {name: a for name, a in fit.arrays.items() if name in table or name in foreign}
    try:
        return {"batch_stats": {}, **port.port(arrays, table, shapes, cast=cast)}
    except ValueError as error:
        raise fitting.misfit(fit, contents, file.path, stated.writer, error) from None


def open_as(
    spec: BackboneSpec | None, file: WeightsFile, which: str = ""
) -> tuple[readers.Contents, Fit, Description]:
    """The content of a file, its reading as a network, and what is stated inside and outside.

    Args:
      spec: the requested form; None for the network that is stated, or else that fits.
      file: from `local_file`, or of a package or the hub.
      which: as for `load`.

    Raises:
      ValueError: the file cannot be read, or `spec` is None and it is no network of the zoo.
    """
    contents, unread = _opened(file.path, which)
    contents = fitting.named_children(contents)
    arrays = {n: a for n, a in contents.arrays.items() if not n.endswith(file.ignore)}
    stated = description.merged(
        metadata.normalizer(contents.metadata), file.stated, metadata.of_metadata(contents.metadata)
    )
    unread_files = description.unread_files(file.path, stated)
    stated = stated._replace(remarks=(*contents.remarks, *stated.remarks, *unread_files))
    if spec is None:
        spec, remark = _architecture(file, stated, contents, which)
        stated = stated._replace(remarks=(*stated.remarks, *remark))
    if any("params/backbone/" in name for name in arrays):
        pairs: list[fitting.Pair] = [(spec, None)]
    elif file.source:
        pairs = [(backbones.get(file.arch), file.source)]
    else:
        forms = backbones.forms(spec.name)
        those = [form for form in forms if stated.arch in (form.name, *form.aliases)]
        if stated.arch and not those:
            remark = f"{stated.place} states {stated.arch[:40]}, not {spec.name}: not used"
            stated = stated._replace(remarks=(*stated.remarks, remark))
        pairs = [(form, source) for form in those or forms for source in form.sources]
    fit = fitting.best_fit(pairs, arrays, which)
    if unread is not None and which not in fit.prefix:
        raise unread
    return contents, fit, stated


def _opened(path: Path, which: str) -> tuple[readers.Contents, ValueError | None]:
    """The content of a file, and the error of the reader if only a prefix can be named `which`."""
    try:
        return readers.open_weights(path, which), None
    except ValueError as error:
        if which in ("", "ema", "raw"):
            raise
        return readers.open_weights(path), error


def _architecture(
    file: WeightsFile, stated: Description, contents: readers.Contents, which: str
) -> tuple[BackboneSpec, list[str]]:
    """The network that is stated, or that fits the tensors, and a remark in the second case."""
    if stated.arch is not None:
        try:
            return backbones.get(stated.arch), []
        except ValueError as error:
            if file.stated.arch:
                raise ValueError(f"{file.stated.place}: {error}") from None
    if any("params/backbone/" in name for name in contents.arrays):
        raise ValueError(
            f"{file.path} has the names of tl, which do not state the network; give `arch`, or the "
            "folder that transfer saved"
        )
    fitting_names = [fit.spec.name for fit in fitting.holding(contents.arrays, which)]
    if not fitting_names:
        raise fitting.unknown(contents, file.path, stated.writer)
    first, *others = fitting_names
    text = f"the tensors are those of {first}"
    if others:
        text += f" and of {fitting.listed(others, 2)}; to load another one, give `arch`"
    return backbones.get(first), [text]


def classifier_of(
    fit: Fit, stated: Description, weights: Provenance, *, headless: bool
) -> tuple[Classifier, port.Table]:
    """The classifier that a file holds, with remarks on its reading, and the table of its tensors.

    A file does not hold class names. If it has a number of classes other than ImageNet's 1000, the
    stated ones are used if they fit; otherwise the classes are numbered.
    """
    count = None if headless else fit.classes()
    if not headless and stated.classes is not None and len(stated.classes) != count:
        names = f"{len(stated.classes)} class names are stated for"
        head = "weights without a head" if count is None else f"a head of {count} classes"
        remark = f"{names} {head}, and not used"
        stated = description.without_classes(stated)
        stated = stated._replace(remarks=(*stated.remarks, remark))
    remarks = [*stated.remarks]
    classes = None if count is None else _class_table(count, stated)
    head = None if count is None else heads.own(fit.spec)(count)
    left_out = tuple(fit.head_names()) if count is None else ()
    remarks += fit.remarks(bool(left_out))
    default = store.pixels_for(fit.spec.name, fit.source or "") or (
        tables.sources(fit.spec)[fit.source].pixels if fit.source else PixelSpec()
    )
    c = fit.channels()
    changes = dict(stated.pixels)
    if len(changes.get("mean", (0, 0, 0))) not in (1, 3, c):
        changes = {k: v for k, v in changes.items() if k not in ("mean", "std")}
        remarks.append(f"mean and std are not used: they are not for {c} input channels")
    if "mean" in changes:
        changes.setdefault("channels", "rgb")
    pixels = default.replace(**changes)
    of_rgb = len(pixels.mean) == 3 != c
    pixels = averaged(pixels, c)
    if of_rgb:
        remarks.append(
            f"the first kernel has {c} input channels: the mean and standard deviation of each are "
            "averages over RGB"
        )
    name = f"{fit.spec.name}{weights.name}" if weights.name.startswith(":") else weights.name
    clf = Classifier(
        fit.spec.name,
        fit.spec,
        head,
        pixels,
        classes,
        dataclasses.replace(weights, name=name),
        remarks=tuple(remarks),
        head_left_out=left_out,
    )
    return clf, {**fit.backbone, **(fit.head if head is not None else {})}


def _class_table(count: int, stated: Description) -> ClassTable:
    """The classes of a head: the stated ones, those of ImageNet, or numbered ones."""
    if stated.classes is not None:
        return stated.classes
    if count == IMAGENET_CLASSES:
        return labels.imagenet()
    return labels.from_names([f"class {i}" for i in range(count)], name="unnamed")
