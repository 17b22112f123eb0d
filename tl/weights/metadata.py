"""What a weights file states about itself: settings of the training, class names, a normalizer.

`readers` returns these values as metadata, and this module reads them as a `Description`. Keys
differ by training script: those of timm, torchvision's references, Lightning and tutorials are
read, and others that concern the input are named in a remark.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tl import backbones
from tl.pixels import INTERPOLATIONS
from tl.weights.description import (
    Description,
    class_table,
    is_number,
    listed,
    mean_std,
    merged,
    parsed,
)

# Keys of settings, as timm, torchvision's references, Lightning and tutorials write them.
_ARCH_KEYS = ("architecture", "arch", "model", "model_name", "backbone", "encoder")
_SIZE_KEYS = ("input_size", "img_size", "image_size", "val_crop_size", "crop_size")
_NAME_KEYS = tuple(
    "label_names class_names classes CLASSES categories labels class_to_idx idx_to_class id2label "
    "label2id".split()
)
# Settings, of which "meta" of OpenMMLab has further ones in "dataset_meta".
_SETTINGS = tuple(
    "args hyper_parameters datamodule_hyper_parameters hparams config cfg model_args "
    "pretrained_cfg meta dataset_meta".split()
)
# Keys that concern the input or the classes; they are reported if they cannot be used.
_RELEVANT = {"mean", "std", "crop_pct", "interpolation", *_SIZE_KEYS, *_NAME_KEYS}


def normalizer(metadata: Mapping[str, Any]) -> Description:
    """Mean and standard deviation of a layer inside the network; the reader has a remark on it."""
    layer = metadata.get("normalizer")
    layer = layer if isinstance(layer, Mapping) else {}
    return Description(pixels=mean_std(layer.get("mean"), layer.get("std")))


def of_metadata(metadata: Mapping[str, Any]) -> Description:
    """What the metadata of a weights file state (`readers.Contents.metadata`).

    Settings are read at the top and below `_SETTINGS`. Settings of the input that cannot be used
    are named in a remark.
    """
    parts = [_of_settings(metadata, "the metadata of the file")]
    nested = parsed(metadata.get("meta"))
    places = {**(nested if isinstance(nested, Mapping) else {}), **metadata}
    for key in _SETTINGS:
        value = parsed(places.get(key))
        if isinstance(value, Mapping):
            parts.append(_of_settings(value, f"{key!r} of the weights file"))
    return merged(_of_keras(metadata), *parts)


def _of_keras(metadata: Mapping[str, Any]) -> Description:
    """The input size of a Keras model, and the layers in it that rescale its input.

    A layer's output for x in [0, 255] is `scale` x + `offset`; together they are mean and standard
    deviation for [0, 1].
    """
    pixels: dict[str, Any] = {}
    shape = metadata.get("input_shape")
    if isinstance(shape, (list, tuple)) and len(shape) == 4 and (size := _square(shape[1:3])):
        pixels["size"] = size
    layers = metadata.get("preprocessing")
    layers = [layer for layer in layers or () if isinstance(layer, Mapping)]
    scale, offset, unused = np.float64(1), np.float64(0), []
    for layer in layers:
        kind = str(layer.get("class_name"))
        try:
            if kind == "Rescaling":
                factor, shift = (
                    np.float64(layer.get(k, d)) for k, d in (("scale", 1), ("offset", 0))
                )
            elif kind == "Normalization":
                deviation = np.sqrt(np.asarray(layer["variance"], np.float64).ravel())
                factor = 1 / deviation
                shift = -np.asarray(layer["mean"], np.float64).ravel() / deviation
            else:
                raise KeyError(kind)
            scale, offset = scale * factor, offset * factor + shift
        except (KeyError, TypeError, ValueError):
            unused.append(kind)
    remarks = []
    if len(layers) > len(unused):
        scale, offset = np.broadcast_arrays(np.atleast_1d(scale), offset, np.zeros(3))[:2]
        std = 1 / (255 * scale)
        pixels |= {"mean": tuple(map(float, -offset * std)), "std": tuple(map(float, std))}
        pixels["channels"] = "rgb"
        remarks.append("mean and std are those of the layers of the Keras model that rescale it")
    if unused:
        remarks.append(f"layers of the Keras model that are not used: {listed(unused)}")
    return Description(pixels=pixels, remarks=tuple(remarks))


def _of_settings(settings: Mapping[str, Any], place: str) -> Description:
    """The settings of a training script, as far as they are known and usable."""
    stated = {str(k): value for k, v in settings.items() if (value := parsed(v)) is not None}
    used: list[str] = []
    pixels: dict[str, Any] = mean_std(stated.get("mean"), stated.get("std"))
    used += pixels
    size = next((side for key in _SIZE_KEYS if (side := _square(stated.get(key)))), None)
    if size:
        pixels["size"] = size
        used += [key for key in _SIZE_KEYS if key in stated]
        resize = _square(stated.get("val_resize_size"))  # torchvision's references
        if resize and resize >= size:
            pixels["crop"] = size / resize
    crop = stated.get("crop_pct")
    if crop is not None and is_number(crop) and 0 < crop <= 1:
        pixels["crop"] = float(crop)
        used.append("crop_pct")
    name = stated.get("interpolation")
    filter_name = "bilinear" if name == "random" else name  # as in timm's evaluation
    if filter_name in INTERPOLATIONS:
        pixels["interpolation"] = filter_name
        used.append("interpolation")
    classes = None
    for key in _NAME_KEYS:
        names = _class_names(stated.get(key))
        if names and classes is None:
            try:
                classes = class_table(names, key)
                used.append(key)
            except ValueError:
                continue
    arch = next((a for key in _ARCH_KEYS if (a := _known_arch(stated.get(key)))), None)
    remarks = []
    if used:
        remarks.append(f"{listed(used, 6)}: from {place}")
    if unused := [
        key
        for key in stated
        if key in _RELEVANT - set(used) and not isinstance(stated[key], int) and stated[key] != ""
    ]:
        remarks.append(f"{listed(unused, 6)} in {place}: not used, not understood")
    return Description(arch, pixels, classes, None, place if arch else "", "", tuple(remarks))


def _square(size: Any) -> int | None:
    """The side of a square image: 224, [224, 224] or [3, 224, 224]."""
    if isinstance(size, (list, tuple)) and len(size) in (1, 2, 3):
        sides = set(size[-2:])
        size = sides.pop() if len(sides) == 1 else None
    return size if type(size) is int and 1 <= size <= 10_000 else None


def _class_names(value: Any) -> list[str] | None:
    """Names in the order of the logits, of a list, of name -> index, or of index -> name."""
    if isinstance(value, Mapping) and value:
        pairs = list(value.items())
        if all(type(index) is int for _, index in pairs):
            pairs = [(index, name) for name, index in pairs]
        try:
            by_index = {int(index): str(name) for index, name in pairs}
        except (TypeError, ValueError):
            return None
        value = [by_index.get(i) for i in range(len(pairs))]
    if isinstance(value, (list, tuple)) and all(isinstance(name, (str, int)) for name in value):
        return [str(name) for name in value]
    return None


def _known_arch(name: Any) -> str | None:
    """The zoo's name of a stated architecture, or None."""
    try:
        return backbones.get(str(name).rpartition("/")[2].partition(".")[0]).name
    except ValueError:
        return None
