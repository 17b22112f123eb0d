"""What the publisher of a weights file states about it, whichever file states it.

Every source gives one `Description`: timm's `config.json` (from the hub, or next to the file),
transformers' `preprocessor_config.json`, and the metadata inside a file (`tl.weights.metadata`).
This module opens no weights file and does not decide which network fits one.
"""

from __future__ import annotations

import ast
import json
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tl import labels
from tl.labels import ClassEntry, ClassTable
from tl.labels.names import counted
from tl.paths import first_few
from tl.pixels import PixelSpec

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
# Files next to the weights that may state the same, and are not read.
_SETTINGS_FILES = ("args.yaml", "args.json", "hparams.yaml", "open_clip_config.json")
_CLASSES_FILES = tuple(
    f"{stem}.{ending}"
    for stem in "labels classes class_names class_indices class_to_idx id2label".split()
    for ending in ("txt", "json")
)
# Pillow's number of a filter in transformers' configs -> its name.
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


class Description(NamedTuple):
    """What is stated about a weights file; a field is None or empty where nothing is stated.

    Attributes:
      arch: name of the architecture, as its publisher writes it.
      pixels: fields of `PixelSpec` -> values; missing fields are those of the weights' library.
      classes: class of each logit.
      licence: license of the weights.
      place: where the architecture is stated, for messages.
      writer: library that wrote the file, if it is not one whose files can be loaded.
      remarks: what was used and what was not, one sentence each.
    """

    arch: str | None = None
    pixels: Mapping[str, Any] = {}
    classes: ClassTable | None = None
    licence: str | None = None
    place: str = ""
    writer: str = ""
    remarks: tuple[str, ...] = ()


def merged(*descriptions: Description) -> Description:
    """One description; where two state the same field, the first counts."""
    first: dict[str, Any] = {}
    for name in ("arch", "classes", "licence", "place", "writer"):
        first[name] = next((value for d in descriptions if (value := getattr(d, name))), None)
    pixels: dict[str, Any] = {}
    for description in reversed(descriptions):
        pixels |= description.pixels
    remarks = tuple(remark for d in descriptions for remark in d.remarks)
    return Description(
        first["arch"],
        pixels,
        first["classes"],
        first["licence"],
        first["place"] or "",
        first["writer"] or "",
        remarks,
    )


# --- timm's config.json -----------------------------------------------------------------------


def of_config(config: Mapping[str, Any], place: str) -> Description:
    """The content of a `config.json` in timm's format.

    Args:
      config: the parsed file.
      place: the repository or file, for messages.

    Raises:
      ValueError: it is not timm's, a field is missing or has another type, or `PixelSpec` cannot
        represent the preprocessing.
    """
    if writer := _transformers(config):
        raise ValueError(
            f"config.json of {place} is of {writer}, whose tensors have other names, expected "
            "timm's format; use the network's weights of timm or torchvision"
        )
    return _of_timm(config, architecture_of(config), place, place)


def _of_timm(config: Mapping[str, Any], arch: str | None, classes: str, place: str) -> Description:
    """The content of a config in timm's format; `classes` is the name of its class table."""
    pixels, missing = pixels_of(config)
    remark = f"config.json does not state {' and '.join(missing)}: the network's default is used"
    table, licence = classes_of(config, classes), licence_of(config)
    return Description(arch, pixels, table, licence, place, "", (remark,) if missing else ())


def _transformers(config: Mapping[str, Any]) -> str:
    """The library and class of a config of transformers, else "".

    Its `TimmWrapper` writes timm's fields, too.
    """
    if "architecture" in config or not ("model_type" in config or "architectures" in config):
        return ""
    listed = config.get("architectures")
    kind = listed[0] if isinstance(listed, list) and listed else config.get("model_type")
    return f"transformers ({str(kind)[:40]})"


def _field(
    config: Mapping[str, Any], name: str, kind: type | tuple[type, ...], expected: str
) -> Any:
    """A field of `pretrained_cfg`, or of the whole config in older files; None if it is missing."""
    part = config.get("pretrained_cfg", config)
    if not isinstance(part, Mapping):
        raise _misfit("pretrained_cfg", part, "an object")
    value = parsed(part.get(name))
    if name in part and (not isinstance(value, kind) or isinstance(value, bool)):
        raise _misfit(name, value, expected)
    return value


def _misfit(name: str, value: Any, expected: str) -> ValueError:
    """The error for a field of a config."""
    text = repr(value)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return ValueError(f"wrong {name} in config.json: got {text}, expected {expected}")


def _numbers(config: Mapping[str, Any], name: str, count: int) -> tuple[float, ...] | None:
    """One number per channel; one for all channels, or three for RGB, count for each of `count`."""
    expected = f"{'three' if count == 3 else count} numbers"
    if (values := _field(config, name, (list, tuple, int, float), expected)) is None:
        return None
    values = [values] if is_number(values) else values
    if len(values) not in (count, 1, 3) or not all(is_number(x) for x in values):
        raise _misfit(name, values, expected)
    return tuple(values) * (count if len(values) == 1 else 1)


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def parsed(value: Any) -> Any:
    """A value, or the one that a text in JSON or Python stands for, such as "[0.5, 0.5, 0.5]"."""
    for parse in (json.loads, ast.literal_eval) if isinstance(value, str) else ():
        if value[:1] in "[({0123456789":
            try:
                return parse(value[:100_000])
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return value


def architecture_of(config: Mapping[str, Any]) -> str:
    """timm's name of the architecture in a `config.json`, without the tag of its weights.

    Raises:
      ValueError: the config has none.
    """
    name = config.get("architecture")
    if not isinstance(name, str):
        raise _misfit("architecture", name, "the name of a network")
    return name.rpartition("/")[2].partition(".")[0]


def licence_of(config: Mapping[str, Any]) -> str:
    """The license of the weights; "see the model card" if the config has none, as is usual."""
    part = config.get("pretrained_cfg", config)
    return str((isinstance(part, Mapping) and part.get("license")) or "see the model card")


def pixels_of(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The preprocessing in a `config.json`, as in the evaluation transform of timm.

    As in `timm.data.create_transform`, size and crop are `input_size` and `crop_pct`. Configs of
    weights that were also tested with larger images have `test_input_size` and `test_crop_pct`; to
    use those, call for example `clf.with_pixels(size=288, crop=1.0)`. The interpolation "random" of
    training is bilinear in timm's evaluation and here. A mean and deviation for values from 0 to
    255 are divided by 255; one number is that of all channels.

    Returns:
      `(fields, missing)`: the stated fields of a `PixelSpec`, and timm's names of those that the
      config does not state. timm has one default for all networks where this library uses that of
      the network.

    Raises:
      ValueError: a field has another type, or `PixelSpec` cannot represent it.
    """
    size = _field(config, "input_size", (list, tuple), "[3, size, size]")
    if size is not None and (
        len(size) != 3 or size[1] != size[2] or not all(type(n) is int and n > 0 for n in size)
    ):
        raise _misfit("input_size", size, "[3, size, size], a square RGB image")
    crop = _field(config, "crop_pct", (int, float), "a fraction in (0, 1]")
    mode = _field(config, "crop_mode", (str, type(None)), "center or squash")
    if mode not in (None, "center") and not (mode == "squash" and crop == 1):
        raise _misfit("crop_mode", mode, f"center, or squash with crop_pct 1 (it is {crop})")
    interpolation = _field(config, "interpolation", str, "the name of a filter")
    mean, std = (_numbers(config, name, size[0] if size else 3) for name in ("mean", "std"))
    if (mean is None) != (std is None):
        raise _misfit("mean and std", [mean, std], "both or neither")
    stated = {
        "input_size": size and {"size": size[1]},
        "crop_pct": crop and {"crop": float(crop)},
        "interpolation": interpolation
        and {"interpolation": interpolation.lower().replace("random", "bilinear")},
        "mean and std": mean and {"mean": mean, "std": std, **mean_std(mean, std)},
    }
    fields = {name: value for part in stated.values() if part for name, value in part.items()}
    if fields:  # files before timm 0.9 have no crop_mode
        fields["resize"] = "squash" if mode == "squash" else "shorter"
        PixelSpec(**fields)
    return fields, [name for name, part in stated.items() if not part]


def classes_of(config: Mapping[str, Any], place: str) -> ClassTable | None:
    """The classes in a `config.json`: `label_names` with `label_descriptions`, or `id2label`.

    timm writes a list of names, or index -> name; names can be WordNet ids with the words in
    `label_descriptions`. `labels` is timm's older key; `id2label` and `label2id` are those of
    transformers.

    Raises:
      ValueError: the names are not text, or repeated.
    """
    part = config.get("pretrained_cfg", config)
    places = [config, part if isinstance(part, Mapping) else {}]
    for key in ("label_names", "labels", "id2label", "label2id"):
        listed = next((value for where in places if (value := where.get(key))), None)
        if key == "label2id" and isinstance(listed, Mapping):
            listed = {index: name for name, index in listed.items()}
        if listed:
            break
    else:
        return None
    if isinstance(listed, Mapping):
        try:
            by_index = {int(index): name for index, name in listed.items()}
        except (TypeError, ValueError):
            raise _misfit(key, listed, "names by index") from None
        count = max(by_index) + 1
        if min(by_index) < 0 or count > 100_000:  # chosen, not tuned
            raise _misfit(key, listed, "names by index")
        listed = [by_index.get(i, f"class {i}") for i in range(count)]
    if not isinstance(listed, list) or not all(isinstance(name, (str, int)) for name in listed):
        raise _misfit(key, listed, "a list of names")
    words = next((value for where in places if (value := where.get("label_descriptions"))), {})
    return class_table(
        [str(name) for name in listed], place, words if isinstance(words, Mapping) else {}
    )


def class_table(
    names: Sequence[str], place: str, descriptions: Mapping[str, Any] = {}
) -> ClassTable:
    """The class table of stated names; that of ImageNet if the names are ImageNet's.

    Args:
      names: name of each class, or its WordNet id.
      place: name of the table for messages.
      descriptions: name -> further words.

    Raises:
      ValueError: a name is empty or repeated.
    """
    imagenet = labels.imagenet()
    if len(names) == len(imagenet):
        shared = sum(
            name == entry.wnid
            or bool(
                {w.strip().casefold() for w in name.split(",")}
                & {n.casefold() for n in entry.names}
            )
            for name, entry in zip(names, imagenet.entries, strict=True)
        )
        if shared >= 900:  # spellings of some classes differ between lists; chosen, not tuned
            return imagenet
    entries = []
    for entry in labels.from_names(names, name=place).entries:
        (name,) = entry.names
        words = [w.strip() for w in str(descriptions.get(name) or "").split(",") if w.strip()]
        if name[:1] == "n" and name[1:].isdigit() and len(name) == 9:
            entries.append(ClassEntry(entry.index, name, tuple(words or [name])))
        else:
            entries.append(ClassEntry(entry.index, None, tuple(dict.fromkeys([name, *words]))))
    return ClassTable(place, tuple(entries))


# --- files next to a weights file -------------------------------------------------------------


def next_to(file: Path) -> Description:
    """What `config.json` and `preprocessor_config.json` in the folder of a weights file state.

    Raises:
      ValueError: one of them is not a JSON object, or as `of_config`.
    """
    config = _read_json(file.with_name(CONFIG))
    processor = _of_processor(_read_json(file.with_name(PREPROCESSOR)))
    if config is None:
        return processor
    part = config.get("pretrained_cfg", config)
    if isinstance(config.get("architecture"), str) or (
        isinstance(part, Mapping) and {"mean", "std", "input_size"} <= set(part)
    ):
        try:
            arch = architecture_of(config) if "architecture" in config else None
            place = f"{CONFIG} next to {file.name}"
            if not isinstance(part, Mapping) or not {"mean", "std", "input_size"} & set(part):
                return _without_pixels(processor, config, arch, place)
            stated = _of_timm(config, arch, CONFIG, place)
        except ValueError as error:
            raise ValueError(
                f"{error}; correct {file.with_name(CONFIG)}, or move it to use the defaults of the "
                "network"
            ) from None
        remarks = [_from_config(len(stated.classes or ())), *stated.remarks]
        if processor.pixels:
            remarks.append(f"{PREPROCESSOR} is not used: {CONFIG} states the preprocessing")
        return stated._replace(remarks=tuple(remarks))
    if writer := _transformers(config):
        why = f"it is of {writer}, not of timm"
    else:
        why = f"it is not of timm (its keys: {listed(list(config))})"
    unused = Description(
        writer=writer, remarks=(f"{CONFIG} next to the weights is not used: {why}",)
    )
    return merged(processor, unused)


def _from_config(classes: int) -> str:
    """The remark on a config in timm's format with a number of class names."""
    names = f"preprocessing and {counted(classes, 'class name')} are"
    return f"{names if classes else 'the preprocessing is'} from {CONFIG} next to the weights"


def without_classes(stated: Description) -> Description:
    """A description without class names, for a network whose head has another number of them."""
    whole = _from_config(len(stated.classes or ()))
    remarks = tuple(_from_config(0) if r == whole else r for r in stated.remarks)
    return stated._replace(classes=None, remarks=remarks)


def _without_pixels(
    processor: Description, config: Mapping[str, Any], arch: str | None, place: str
) -> Description:
    """The content of a config that names an architecture and states no preprocessing."""
    remark = f"{CONFIG} next to the weights states no preprocessing: that of the network is used"
    remarks = () if processor.pixels else (remark,)
    classes, licence = classes_of(config, CONFIG), licence_of(config)
    return merged(Description(arch, {}, classes, licence, place, "", remarks), processor)


def unread_files(file: Path, stated: Description) -> tuple[str, ...]:
    """Remarks on files next to the weights that may state what nothing else states."""
    rows = (
        (stated.pixels, _SETTINGS_FILES, "it may state the preprocessing"),
        (stated.classes, _CLASSES_FILES, "it may have the names of the classes"),
    )
    return tuple(
        f"{name} next to the weights is not read: {reason}"
        for value, names, reason in rows
        for name in names
        if not value and file.with_name(name).is_file()
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object; correct it, or move it to another folder")
    return value


def _of_processor(config: Mapping[str, Any] | None) -> Description:
    """The preprocessing in transformers' `preprocessor_config.json`, as far as it is known."""
    if config is None:
        return Description()
    pixels: dict[str, Any] = dict(mean_std(config.get("image_mean"), config.get("image_std")))
    if config.get("do_normalize") is False:
        pixels = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    size, crop = _side(config.get("size")), _side(config.get("crop_size"))
    if size and config.get("do_resize", True) is not False:
        if config.get("do_center_crop") and crop and crop <= size:
            pixels |= {"size": crop, "crop": crop / size}
        elif is_number(config.get("crop_pct")):
            pixels |= {"size": size, "crop": float(config["crop_pct"])}
        else:
            pixels |= {"size": size, "crop": 1.0, "resize": "squash"}
    if config.get("resample") in RESAMPLE:
        pixels["interpolation"] = RESAMPLE[config["resample"]]
    remarks = [_used(pixels, f"{PREPROCESSOR} next to the weights")]
    if pixels and config.get("size") and not size:
        remarks.append(f"size in {PREPROCESSOR} is not used: it is not a square")
    return Description(pixels=pixels, remarks=tuple(remarks))


def _side(size: Any) -> int | None:
    """The side of a square, or of the shorter side, in transformers' formats of a size."""
    if isinstance(size, Mapping):
        sides = {size.get(key) for key in ("shortest_edge", "height", "width")} - {None}
        size = sides.pop() if len(sides) == 1 else None
    return size if type(size) is int and size > 0 else None


def _used(pixels: Mapping[str, Any], place: str) -> str:
    """The remark on preprocessing that a file states in part."""
    if not pixels:
        return f"{place} is not used: it states no preprocessing that is known"
    return f"{listed(sorted(pixels))} of the preprocessing: from {place}"


def listed(words: Sequence[str], count: int = 4) -> str:
    return first_few([str(word)[:24] for word in words], count)


def mean_std(mean: Any, std: Any) -> dict[str, tuple[float, ...]]:
    """The fields `mean` and `std` of stated numbers; {} unless both are numbers per channel.

    Numbers for values from 0 to 255 are divided by 255.
    """
    try:
        both = [np.asarray(value, np.float64).reshape(-1) for value in (mean, std)]
    except (TypeError, ValueError):
        return {}
    if len(both[0]) != len(both[1]) or not len(both[0]) or not np.isfinite(both).all():
        return {}
    if min(both[1]) <= 0:
        return {}
    if max(both[0]) > 2 or max(both[1]) > 2:
        both = [values / 255 for values in both]
    return {name: tuple(map(float, v)) for name, v in zip(("mean", "std"), both, strict=True)}
